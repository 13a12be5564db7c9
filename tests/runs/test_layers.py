import contextlib
import json
import resource

import numpy as np
import pytest

from nfnet_jax.errors import RequestError
from nfnet_jax.runs import layers, lines

NAMES = ("Net/~/stem", "Net/~/block", "Net/~/linear")
VALUES = np.array([[0.123456, 0, np.nan], [1, 2, 3e-9], [1.2345678, 5, 6], [7, 8, np.inf]])


def write(workdir, steps, resume_step=None):
  with lines.closing(layers.open_writer(workdir, NAMES, resume_step=resume_step)) as writer:
    for step in steps:
      writer.write(step, VALUES * step)


def test_names_once_and_a_line_for_each_report(tmp_path):
  write(tmp_path, [1, 2])
  head, line, _ = map(json.loads, (tmp_path / "layers.jsonl").read_text().splitlines())
  assert head == {"step": 0, "layers": [*NAMES]}
  assert line == {
    "step": 1,
    "clipped_share": [0.123, 0, None],
    "grad_norm": [1, 2, 3e-9],
    "param_norm": [1.2346, 5, 6],
    "update_norm": [7, 8, None],
  }
  found = layers.read(tmp_path)
  assert (found.names, found.steps.tolist()) == (NAMES, [1, 2])
  np.testing.assert_allclose(found.values["param_norm"], [[1.2346, 5, 6], [2.4691, 10, 12]])
  assert np.isnan(found.values["update_norm"][:, 2]).all()


def test_without_clipping_there_is_no_share(tmp_path):
  values = VALUES.copy()
  values[0] = np.nan
  with lines.closing(layers.open_writer(tmp_path, NAMES, resume_step=None)) as writer:
    writer.write(1, values)
  assert "clipped_share" not in (tmp_path / "layers.jsonl").read_text()
  assert np.isnan(layers.read(tmp_path).values["clipped_share"]).all()


def test_a_resumed_run_reads_as_if_it_had_never_stopped(tmp_path):
  for part in ("whole", "parts"):
    (tmp_path / part).mkdir()
  write(tmp_path / "whole", range(1, 9))
  write(tmp_path / "parts", range(1, 7))
  with (tmp_path / "parts/layers.jsonl").open("a") as file:
    file.write('{"step": 7, "clip')
  write(tmp_path / "parts", range(5, 9), resume_step=4)
  whole, parts = ((tmp_path / run / "layers.jsonl").read_text() for run in ("whole", "parts"))
  assert parts == whole


def test_a_run_of_an_older_version_gets_the_record_from_where_it_goes_on(tmp_path):
  assert layers.read(tmp_path) is None
  write(tmp_path, [6], resume_step=5)
  assert layers.read(tmp_path).steps.tolist() == [6]


@pytest.mark.parametrize(
  "line",
  [
    "{",
    '{"step": 3, "grad_norm": [NaN, 1, 2]}',
    '{"step": 3, "grad_norm": 7}',
    '{"step": 3, "grad_norm": ["a", 1, 2]}',
    '{"step": -1, "grad_norm": [1, 1, 2]}',
    '{"grad_norm": [1, 1, 2]}',
  ],
)
def test_damage_is_refused_or_left_out(tmp_path, line):
  write(tmp_path, [1, 2])
  with (tmp_path / "layers.jsonl").open("a") as file:
    file.write(f"{line}\n")
  with pytest.raises(RequestError, match=r"layers\.jsonl: line 4 is not valid"):
    layers.open_writer(tmp_path, NAMES, resume_step=2)
  with pytest.raises(RequestError, match="line 4 is not valid"):
    layers.read(tmp_path)
  damaged = []
  assert layers.read(tmp_path, damaged).steps.tolist() == [1, 2]
  assert len(damaged) == 1
  assert "line 4 is not valid" in damaged[0]


def test_lines_of_another_number_of_layers_are_left_out(tmp_path):
  write(tmp_path, [1, 2])
  with (tmp_path / "layers.jsonl").open("a") as file:
    file.write('{"step": 3, "grad_norm": [1, 2]}\n')
  assert layers.read(tmp_path).steps.tolist() == [1, 2]


def test_a_disk_that_is_full(tmp_path):
  write(tmp_path, [1])
  whole = (tmp_path / "layers.jsonl").read_text()
  writer = layers.open_writer(tmp_path, NAMES, resume_step=1)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, limits[1]))
    with pytest.raises(lines.WriteError, match=f"cannot write metrics to {tmp_path}: File too"):
      writer.write(2, VALUES)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    (tmp_path / "new").mkdir()
    with pytest.raises(RequestError, match="File too large"):
      layers.open_writer(tmp_path / "new", NAMES, resume_step=None)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  with contextlib.suppress(lines.WriteError):
    writer.close()
  write(tmp_path, [], resume_step=1)
  assert (tmp_path / "layers.jsonl").read_text() == whole
