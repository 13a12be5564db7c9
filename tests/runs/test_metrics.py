import json
import os
import resource
import struct
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event, SessionLog

from nfnet_jax import config as config_lib
from nfnet_jax.errors import RequestError
from nfnet_jax.runs import curves, lines, metrics


def write(workdir, steps, resume_step=None):
  with metrics.open_writer(workdir, resume_step=resume_step) as writer:
    for step in steps:
      writer.write(step, "train", {"loss": 1 / step})
      if step % 2 == 0:
        writer.write(step, "test", {"top1": step / 10, "ema_top1": step / 20})


def events(workdir):
  """Every event of a run, in the order of its files: length, its checksum, event, its checksum."""
  found = []
  for path in sorted((workdir / "tensorboard").iterdir(), key=lambda path: path.suffix):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack_from("<Q", data)
      found.append(Event.FromString(data[12 : 12 + length]))
      data = data[16 + length :]
  return found


def test_a_line_each(tmp_path):
  with metrics.open_writer(tmp_path / "run", resume_step=None) as writer:
    writer.write(1, "train", {"loss": np.float32(0.5), "top1": np.ones(())})
    # Each line is there at once, for whoever follows the run or finds it killed.
    assert metrics.read(tmp_path / "run") == [{"step": 1, "split": "train", "loss": 0.5, "top1": 1}]
    writer.write(1, "test", {"loss": 2.0})
  lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
  assert lines[1] == '{"step": 1, "split": "test", "loss": 2.0}'


def test_values_that_are_not_finite_are_null(tmp_path):
  with metrics.open_writer(tmp_path, resume_step=None) as writer:
    writer.write(1, "train", {"loss": np.nan, "grad_norm": -np.inf, "top1": 0.0})
  (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert line == '{"step": 1, "split": "train", "loss": null, "grad_norm": null, "top1": 0.0}'
  assert json.loads(line, parse_constant=pytest.fail) == metrics.read(tmp_path)[0]
  assert [v.tag for event in events(tmp_path) for v in event.summary.value] == ["train/top1"]


def test_a_resumed_run_reads_as_if_it_had_never_stopped(tmp_path):
  write(tmp_path / "whole", range(1, 9))
  write(tmp_path / "parts", range(1, 7))
  with (tmp_path / "parts/metrics.jsonl").open("a") as file:
    file.write('{"step": 7, "split": "tr')
  write(tmp_path / "parts", range(5, 9), resume_step=4)
  whole, parts = ((tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "parts"))
  assert parts == whole


def test_a_last_line_without_an_end_is_dropped(tmp_path):
  write(tmp_path, [1])
  path = tmp_path / "metrics.jsonl"
  whole = path.read_text()
  # It parses, and yet nobody knows that 0.1 is not the beginning of 0.125.
  path.write_text(whole + '{"step": 2, "split": "train", "loss": 0.1}')
  assert len(metrics.read(tmp_path)) == 1
  metrics.open_writer(tmp_path, resume_step=2).close()
  assert path.read_text() == whole


def test_a_run_that_starts_from_nothing_drops_everything(tmp_path):
  write(tmp_path, [1, 2])
  metrics.open_writer(tmp_path, resume_step=None).close()
  assert metrics.read(tmp_path) == []


def test_dropping_leaves_the_old_file_whole_until_it_is_done(tmp_path, monkeypatch):
  write(tmp_path, [1, 2, 3])
  before = (tmp_path / "metrics.jsonl").read_text()

  def killed(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr("os.replace", killed)
  with pytest.raises(KeyboardInterrupt):
    metrics.open_writer(tmp_path, resume_step=1)
  assert (tmp_path / "metrics.jsonl").read_text() == before


def test_an_object_store_gets_the_same_file(tmp_path, monkeypatch):
  for path in (tmp_path / "file", tmp_path / "object"):
    write(path, [1, 2])
    monkeypatch.setattr(lines, "_open", lines._Object)
  write(tmp_path / "object", [3, 4], resume_step=2)
  monkeypatch.undo()
  write(tmp_path / "file", [3, 4], resume_step=2)
  texts = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("file", "object")]
  assert texts[0] == texts[1]
  assert len(texts[0].splitlines()) == 6


def test_a_disk_that_is_full(tmp_path):
  write(tmp_path, [1])
  whole = (tmp_path / "metrics.jsonl").read_text()
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)

  def write_more():
    with metrics.open_writer(tmp_path, resume_step=1) as writer:
      resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, limits[1]))
      writer.write(2, "train", {"loss": 2.0})

  try:
    with pytest.raises(metrics.WriteError) as error:
      write_more()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert str(error.value) == f"cannot write metrics to {tmp_path}: File too large."
  assert len(metrics.read(tmp_path)) == 1
  # What is there goes on as if nothing had been written.
  metrics.open_writer(tmp_path, resume_step=1).close()
  assert (tmp_path / "metrics.jsonl").read_text() == whole


def test_tensorboard_events(tmp_path):
  write(tmp_path, [1, 2, 3])
  write(tmp_path, [3, 4], resume_step=2)
  scalars = [
    (event.step, value.tag, pytest.approx(value.simple_value))
    for event in events(tmp_path)
    for value in event.summary.value
  ]
  assert scalars == [
    (1, "train/loss", 1.0),
    (2, "train/loss", 0.5),
    (2, "test/top1", 0.2),
    (2, "test/ema_top1", 0.1),
    (3, "train/loss", 1 / 3),
    (3, "train/loss", 1 / 3),
    (4, "train/loss", 0.25),
    (4, "test/top1", 0.4),
    (4, "test/ema_top1", 0.2),
  ]
  # TensorBoard drops what an earlier part of the run wrote from these steps on.
  starts = [e.step for e in events(tmp_path) if e.session_log.status == SessionLog.START]
  assert starts == [0, 3]


BROKEN = [
  *(
    b"garbage",
    b"",
    b"\0\0\0",
    b"\xff\xfe{}",
    b"{}",
    b"null",
    b"[1, 2]",
    b"3",
    b'"text"',
    b"[" * 99_999,
  ),
  *(b'{"loss": 1}', b'{"step": 1}', b'{"step": 1, "split": null}', b'{"step": 1, "split": 3}'),
  *(b'{"step": %s, "split": "test"}' % step for step in (b'"1"', b"1.0", b"true", b"-1", b"null")),
  b'{"step": 1%s, "split": "test"}' % (b"0" * 400),
  *(
    b'{"step": 1, "split": "test", "loss": %s}' % value
    for value in (b'"0.5"', b"true", b"[1]", b'{"a": 1}', b"NaN", b"-Infinity", b"1e999")
  ),
  b'{"step": 1, "split": "test", "loss": 1%s}' % (b"0" * 400),
]


@pytest.mark.parametrize("line", BROKEN, ids=lambda line: line[:40].decode(errors="replace"))
def test_a_broken_line_is_named(tmp_path, line):
  path = tmp_path / "metrics.jsonl"
  whole = b'{"step": 1, "split": "train", "loss": 0.5}\n'
  path.write_bytes(whole + line + b"\n" + whole)
  for read in (
    lambda: metrics.read(tmp_path),
    lambda: metrics.open_writer(tmp_path, resume_step=1),
    lambda: curves.plot(tmp_path),
  ):
    with pytest.raises(RequestError) as error:
      read()
    assert str(error.value).startswith(f"{path}: line 2 is not valid: ")
    assert "\n" not in str(error.value)
  assert path.read_bytes() == whole + line + b"\n" + whole
  # As the last one, without its end, it is what a killed run leaves.
  path.write_bytes(whole + line)
  assert metrics.read(tmp_path) == [{"step": 1, "split": "train", "loss": 0.5}]


def test_requests_that_cannot_be_met(tmp_path):
  with pytest.raises(RequestError, match=r"no metrics\.jsonl"):
    metrics.read(tmp_path)
  (tmp_path / "file").write_text("")
  with pytest.raises(RequestError, match="cannot write metrics"):
    metrics.open_writer(tmp_path / "file", resume_step=None)


def test_a_pipe_is_not_waited_for(tmp_path):
  for name, use in (
    ("metrics.jsonl", metrics.read),
    ("metrics.jsonl", lambda workdir: metrics.open_writer(workdir, resume_step=3)),
    ("config.json", lambda workdir: config_lib.load(epath.Path(workdir) / "config.json")),
  ):
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(RequestError, match=f"{name}: it is not a file"):
      use(tmp_path)


def test_reading_needs_no_tensorboard():
  program = "import sys, nfnet_jax.runs.metrics; sys.exit('tensorboardX' in sys.modules)"
  child = subprocess.run([sys.executable, "-c", program], check=False)
  assert child.returncode == 0
