"""Traces of some steps, which are read back."""

import logging

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from nfnet_jax.__main__ import main
from nfnet_jax.errors import RequestError
from nfnet_jax.training import profile


def run(workdir, steps, wanted):
  """Some steps of a loop; returns the steps that were traced."""
  compute, waited = jax.jit(lambda x: x @ x), []
  with profile.traced(steps, wanted, epath.Path(workdir), lambda: waited.append(True)) as passed:
    done = [jax.block_until_ready(compute(jnp.ones((8, 8)))) is not None for _ in passed]
  assert len(done) == len(steps)
  return traced_steps(workdir), len(waited)


def traced_steps(workdir):
  return [
    dict(event.stats)["step_num"]
    for file in (workdir / "tensorboard/plugins/profile").glob("*/*.xplane.pb")
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes
    for line in plane.lines
    for event in line.events
    if event.name == "train"
  ]


def test_the_steps_from_the_first_to_the_last(tmp_path, caplog):
  with caplog.at_level(logging.INFO):
    assert run(tmp_path, range(1, 8), (3, 5)) == ([3, 4, 5], 2)
  (place,) = (tmp_path / "tensorboard/plugins/profile").iterdir()
  assert caplog.messages == [f"trace of steps 3 to 5: {place}"]


def test_a_run_that_resumes_among_them_traces_the_rest(tmp_path):
  assert run(tmp_path, range(4, 8), (3, 5))[0] == [4, 5]


def test_a_run_that_resumes_after_them_goes_on(tmp_path, caplog):
  """The command that resumes a run is the one that started it."""
  assert run(tmp_path, range(6, 9), (3, 5)) == ([], 0)
  assert caplog.messages == ["--profile=3:5: these steps are done; nothing is traced"]


def test_a_run_that_ends_early_keeps_the_trace(tmp_path):
  with profile.traced(range(1, 8), (3, 5), epath.Path(tmp_path), lambda: None) as steps:
    for step in steps:
      if step == 4:
        break
  assert traced_steps(tmp_path) == [3, 4]


def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
  (tmp_path / "tensorboard").write_text("")
  assert run(tmp_path, range(1, 8), (3, 5))[0] == []
  (message,) = caplog.messages
  assert message.startswith("there is no trace: ")


def test_a_trace_that_cannot_be_made_does_not_end_the_run(tmp_path, caplog):
  jax.profiler.start_trace(str(tmp_path / "other"))
  try:
    assert run(tmp_path, range(1, 8), (3, 5))[0] == []
  finally:
    jax.profiler.stop_trace()
  (message,) = caplog.messages
  assert message.startswith("there is no trace: ")


def test_nothing_is_done_unless_asked_for(tmp_path):
  steps = range(3)
  with profile.traced(steps, None, epath.Path(tmp_path), lambda: None) as passed:
    assert passed is steps


@pytest.mark.parametrize(
  ("wanted", "message"),
  [
    ((0, 5), "--profile=0:5 has no steps: give the first and the last step"),
    ((5, 4), "--profile=5:4 has no steps: give the first and the last step"),
    ((5, 11), "--profile=5:11: the run has 10 steps; give some of them."),
    ((11, 12), "--profile=11:12: the run has 10 steps; give some of them."),
  ],
)
def test_steps_that_a_run_does_not_have(wanted, message):
  with pytest.raises(RequestError, match=message):
    profile.check(wanted, 10)


def test_a_trace_is_limited():
  profile.check((1, 1000), 10**6)
  with pytest.raises(RequestError, match="has 1001 steps: give at most 1000"):
    profile.check((1, 1001), 10**6)


@pytest.mark.parametrize("text", ["100", "100-110", "a:b", "1:2:3", "-1:5", ":", "1.5:2", "٣:٤"])
def test_a_range_that_is_malformed(tmp_path, capsys, text):
  words = ["train", "--config=experiments/digits.py", f"--workdir={tmp_path}/run"]
  assert main([*words, f"--profile={text}"]) == 2
  assert "must be FIRST:LAST" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()
