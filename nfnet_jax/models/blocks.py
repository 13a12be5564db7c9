"""Running the blocks of a residual network: what is kept for the backward pass, and what is a loop.

Rematerialisation also makes one loop of the equal blocks of a stage, which a compiler then sees
once. Without it a loop would cost memory, for all that an iteration
keeps is stacked, and time on a CPU; so the blocks then follow one another in the program.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from nfnet_jax.errors import RequestError
from nfnet_jax.models import layers

Array = jax.Array
Block = Any  # a Haiku module as `run_blocks` wants it

# Rematerialisation: which activations the backward pass finds in memory; it computes the others
# again. "none": all. "block": what enters each block, for about a third more arithmetic. "stage":
# what enters each stage, and within the stage at work what enters each block, for about two thirds.
REMAT = ("none", "block", "stage")


def run_blocks(
  x: Array,
  blocks: Sequence[Block],
  is_training: bool,
  example_ids: Array,
  *args: Any,
  remat: str = "none",
) -> tuple[Array, list[Array]]:
  """The output of the last block, and that of the last one of each stage.

  Every block has a `spec` and maps `[N, H, W, C]`, its row of `layers.stochastic_depth` (None for
  all to be kept), and `args`; one without state also takes `beta` in place of its spec's. What
  `remat` means: see `REMAT`.
  """
  rates = [block.spec.stochdepth_rate for block in blocks]
  keep: Any = [None] * len(blocks)
  if is_training and any(rates):
    # Drawn outside of what is computed twice.
    keep = layers.stochastic_depth(rates, example_ids)
  recomputes = remat != "none" and not hk.running_init()  # initialisation only makes parameters

  def run_block(x: Array, i: int) -> Array:
    return blocks[i](x, keep[i], *args)

  def run_stage(x: Array, stage: range) -> Array:
    for equal in _equals(blocks, stage):
      if recomputes and len(equal) > 1 and not blocks[equal[0]].state_dict():
        x = _loop(x, [blocks[i] for i in equal], [keep[i] for i in equal], *args)
        continue
      for i in equal:
        # A function of its own for each block: Haiku's remat takes arrays alone.
        f = functools.partial(run_block, i=i)
        x = hk.remat(f)(x) if recomputes else f(x)
    return x

  ends = [i + 1 for i, block in enumerate(blocks) if block.spec.ends_stage]
  outputs = []
  for start, end in itertools.pairwise([0, *ends]):
    f = functools.partial(run_stage, stage=range(start, end))
    x = hk.remat(f)(x) if recomputes and remat == "stage" else f(x)
    outputs.append(x)
  return x, outputs


def _equals(blocks: Sequence[Block], stage: range) -> list[list[int]]:
  """A stage's blocks in runs that differ in their place and parameters alone."""

  def kind(i: int) -> tuple:
    return blocks[i].spec._replace(beta=0.0, stochdepth_rate=0.0, ends_stage=False)

  return [list(run) for _, run in itertools.groupby(stage, kind)]


def _loop(x: Array, blocks: Sequence[Block], keep: Any, *args: Any) -> Array:
  """Runs equal blocks as iterations of one loop, whose backward pass finds their inputs alone."""
  first = blocks[0]
  block = hk.transform(lambda x, keep, beta: first(x, keep, *args, beta=beta)).apply

  @functools.partial(jax.checkpoint, prevent_cse=False)  # the loop keeps its passes apart
  def step(x: Array, block_of: tuple) -> tuple[Array, None]:
    params, keep, beta = block_of
    return block(params, None, x, keep, beta), None

  stacked = jax.tree.map(
    lambda *leaves: jnp.stack(leaves),
    *(_params(each, first.module_name) for each in blocks),
  )
  betas = jnp.asarray([each.spec.beta for each in blocks], x.dtype)
  kept = None if keep[0] is None else jnp.stack(keep)
  return jax.lax.scan(step, x, (stacked, kept, betas))[0]


def _params(block: Block, name: str) -> Mapping[str, Mapping[str, Array]]:
  """A block's parameters as those of the block `name`."""
  params: dict[str, dict[str, Array]] = {}
  for path, value in block.params_dict().items():
    module, _, leaf = path.removeprefix(block.module_name).rpartition("/")
    params.setdefault(name + module, {})[leaf] = value
  return params


def check_remat(remat: str) -> str:
  """Gives `remat` back.

  Raises:
    RequestError: if it is not in `REMAT`.
  """
  if remat not in REMAT:
    raise RequestError(f"unknown remat {remat!r}: choose one of {', '.join(REMAT)}.")
  return remat
