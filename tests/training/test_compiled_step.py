"""Properties of the compiled training step."""

import collections
import re

import jax
import pytest

from nfnet_jax.training import parallel
from nfnet_jax.training.build import build
from nfnet_jax.training.step import images_per_example
from tests import tiny

pytestmark = pytest.mark.slow


def lower(**changes):
  """The parameters' shapes, and the step of a tiny run, traced for all devices."""
  config = tiny.config(**changes)
  run = build(config)
  state = jax.eval_shape(run.init)
  size = config.batch_size * images_per_example(config.augment)
  batch = parallel.shard(tiny.batch(0, size), jax.device_count())
  return state.params, parallel.map_train_step(run.train_step).lower(state, batch)


@pytest.fixture(scope="module")
def compiled():
  params, lowered = lower()
  return params, lowered.compile().as_text()


def test_every_gradient_is_reduced_once_and_all_together(compiled):
  params, text = compiled
  reductions = [
    (name, shapes)
    for name, shapes in re.findall(r"%(\S+) = (.+?) all-reduce(?:-start)?\(", text)
    if "get-tuple-element" not in shapes
  ]
  # XLA combines what the step asks for, leaf by leaf, into one.
  [(_, shapes)] = reductions
  reduced = collections.Counter(re.findall(r"(\w+\[[\d,]*\])", shapes))
  gradients = [f"f32[{','.join(map(str, leaf.shape))}]" for leaf in jax.tree.leaves(params)]
  metrics = ["f32[]", "f32[]"]  # loss and accuracy
  assert reduced == collections.Counter(gradients + metrics)
  others = ("all-gather", "reduce-scatter", "all-to-all", "collective-permute")
  assert [name for name in others if f" {name}(" in text] == []


def test_nothing_is_double_or_leaves_the_device(compiled):
  _, text = compiled
  assert len(text) > 10_000
  assert "f64[" not in text
  ways_out = ("infeed", "outfeed", "send", "recv", "send-done", "recv-done")
  assert [name for name in ways_out if re.search(rf" {name}\(", text)] == []
  assert not re.search(r"custom_call_target=\"[^\"]*(callback|[Hh]ost)", text)


def test_nor_does_augmentation():
  """As it is traced: it takes a minute to compile."""
  _, lowered = lower(
    **{
      "augment.mixup_alpha": 0.2,
      "augment.cutmix": True,
      "augment.randaugment_layers": 1,
      "augment.randaugment_magnitude": 5,
    }
  )
  text = lowered.as_text()
  assert text.count("stablehlo.all_reduce") > 50
  assert "f64>" not in text
  assert not re.search("callback|infeed|outfeed|stablehlo.send|stablehlo.recv", text)
