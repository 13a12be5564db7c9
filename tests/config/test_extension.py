"""A finished run that is made longer."""

import pytest
from etils import epath

from nfnet_jax import config as config_lib
from nfnet_jax import optim
from nfnet_jax.config import extension
from nfnet_jax.errors import RequestError
from tests import tiny


def run_of(steps, **changes):
  return tiny.config(steps=steps, **changes)


def test_a_run_that_is_made_longer_twice():
  first = run_of(8)
  assert extension.extended(run_of(8), first, [8]).former_steps is None
  second = extension.extended(run_of(12), first, [4, 8])
  assert (second.steps, tuple(second.former_steps)) == (12, (8,))
  assert extension.is_extension(second, first)
  assert not extension.is_extension(second, second)
  assert not extension.is_extension(run_of(12), first)
  assert not extension.is_extension(run_of(12, former_steps=(4, 8)), first)
  third = extension.extended(run_of(20), second, [12])
  assert tuple(third.former_steps) == (8, 12)
  assert extension.is_extension(third, second)
  assert not extension.is_extension(third, first)


def test_a_run_that_was_made_longer_resumes(tmp_path):
  longer = extension.extended(run_of(12), run_of(8), [8])
  config_lib.save(longer, epath.Path(tmp_path / "config.json"))
  recorded = config_lib.load(epath.Path(tmp_path / "config.json"))
  asked = run_of(12)
  resumed = config_lib.resolve(asked, tiny.INFO, recorded)
  assert resumed.former_steps == (8,)
  assert config_lib.differences(recorded, resumed) == []
  assert extension.extended(resumed, recorded, [4]) == resumed


@pytest.mark.parametrize(
  ("steps", "saved", "message"),
  [
    (6, [8], "the run has 8 steps, and the config asks for 6: ask for more, by --config.epochs"),
    (12, [6], "has saved 6 of its 8 steps: finish it first"),
    (12, [], "has saved 0 of its 8 steps: finish it first"),
  ],
)
def test_what_is_refused(steps, saved, message):
  with pytest.raises(RequestError, match=message):
    extension.extended(run_of(steps), run_of(8), saved)


def test_a_run_that_ended_early_needs_patience_to_finish():
  early = run_of(8, keep_best="top1", patience=2)
  with pytest.raises(
    RequestError, match="by the command that it was begun with, and more patience"
  ):
    extension.extended(run_of(12), early, [5])


def test_there_has_to_be_a_run():
  with pytest.raises(RequestError, match="there is no run in --workdir yet"):
    extension.extended(run_of(8), None, [])


def test_the_schedule_of_each_length_up_to_its_end():
  lengths = [optim.warmup_cosine(1.0, 2, steps) for steps in (8, 12, 20)]
  schedule = optim.one_after_another(lengths, (8, 12))
  for step in range(21):
    expected = lengths[0 if step < 8 else 1 if step < 12 else 2](step)
    assert float(schedule(step)) == float(expected)
  assert optim.one_after_another(lengths[:1], ()) is lengths[0]
