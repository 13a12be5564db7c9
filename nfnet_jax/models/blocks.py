"""Runs the blocks of a residual network, with or without rematerialisation.

With rematerialisation, the equal blocks of a stage also become one loop, so they are compiled only
once. Without it, a loop would need more memory, since the activations of all iterations are
stacked, and more time on a CPU. The blocks are then unrolled.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from nfnet_jax.choices import REMAT as REMAT
from nfnet_jax.errors import RequestError
from nfnet_jax.models import layers, propagation

Array = jax.Array
Block = Any  # a Haiku module, see `run_blocks`


def run_blocks(
  x: Array,
  blocks: Sequence[Block],
  is_training: bool,
  example_ids: Array,
  *args: Any,
  remat: str = "none",
  rescales: bool = False,
) -> tuple[Array, list[Array]]:
  """Returns the output of the last block, and the outputs of all stages.

  A block has a `spec` and is called with `[N, H, W, C]`, its row of `layers.stochastic_depth` (None
  keeps all branches), and `args`. A block without state also accepts `beta`, which replaces the
  spec's. For `remat`, see `REMAT`; for `rescales`, `layers.stochastic_depth`.
  """
  if propagation.is_watched():
    return propagation.run_watched(x, blocks, *args)
  rates = [block.spec.stochdepth_rate for block in blocks]
  keep: Any = [None] * len(blocks)
  if is_training and any(rates):
    # Drawn here, outside of the recomputed part.
    keep = layers.stochastic_depth(rates, example_ids, rescales)
  recomputes = remat != "none" and not hk.running_init()  # Initialisation has no backward pass.

  def run_block(x: Array, i: int) -> Array:
    return blocks[i](x, keep[i], *args)

  def run_stage(x: Array, stage: range) -> Array:
    for equal in _equals(blocks, stage):
      if recomputes and len(equal) > 1 and not blocks[equal[0]].state_dict():
        x = _loop(x, [blocks[i] for i in equal], [keep[i] for i in equal], *args)
        continue
      for i in equal:
        # A separate function for each block, because Haiku's remat accepts only arrays.
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
  """A stage's blocks, grouped into runs that differ only in position and parameters."""

  def kind(i: int) -> tuple:
    return blocks[i].spec._replace(beta=0.0, stochdepth_rate=0.0, ends_stage=False)

  return [list(run) for _, run in itertools.groupby(stage, kind)]


def _loop(x: Array, blocks: Sequence[Block], keep: Any, *args: Any) -> Array:
  """Runs equal blocks as iterations of one loop that keeps only their inputs."""
  first = blocks[0]
  block = hk.transform(lambda x, keep, beta: first(x, keep, *args, beta=beta)).apply

  @functools.partial(jax.checkpoint, prevent_cse=False)  # A loop already prevents CSE.
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
  """A block's parameters, renamed to those of the block `name`."""
  params: dict[str, dict[str, Array]] = {}
  for path, value in block.params_dict().items():
    module, _, leaf = path.removeprefix(block.module_name).rpartition("/")
    params.setdefault(name + module, {})[leaf] = value
  return params


def check_remat(remat: str) -> str:
  """Returns `remat` after checking it.

  Raises:
    RequestError: if it is not in `REMAT`.
  """
  if remat not in REMAT:
    raise RequestError(f"unknown remat {remat!r}: choose one of {', '.join(REMAT)}.")
  return remat
