"""Jobs that are traced and tracked: every process traces itself, and process 0 alone is heard."""

import json

import jax
import pytest

from nfnet_jax.runs import metrics
from tests.distributed.processes import finish, start_job
from tests.distributed.test_pods import train


@pytest.mark.slow
def test_a_trace_has_a_file_of_each_process_and_a_tracker_gets_each_line_once(tmp_path):
  env = {"PRELOAD": "tests.distributed.tracker", "TOLD": f"{tmp_path}/told"}
  words = [*train(tmp_path / "run", steps=4, eval_every=2), "--profile=2:3", "--tracker=wandb"]
  assert finish(start_job(2, words, tmp_path / "logs", env=env)) == [0, 0]
  # TensorBoard and xprof show the files of one folder together, as so many hosts.
  (place,) = (tmp_path / "run/tensorboard/plugins/profile").iterdir()
  traces = sorted(place.glob("*.xplane.pb"))
  assert [trace.name.partition("_")[0] for trace in traces] == ["process0", "process1"]
  assert [steps_of(trace) for trace in traces] == [[2, 3], [2, 3]]
  assert [path.name for path in tmp_path.glob("told.*")] == ["told.0"]
  told = [json.loads(line) for line in (tmp_path / "told.0").read_text().splitlines()]
  assert told == [[line["step"], line["split"]] for line in metrics.read(tmp_path / "run")]


def steps_of(trace):
  return [
    dict(event.stats)["step_num"]
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes
    for line in plane.lines
    for event in line.events
    if event.name == "train"
  ]
