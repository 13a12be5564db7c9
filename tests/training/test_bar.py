"""The line of progress, as a terminal shows it."""

import contextlib
import io
import logging
import os
import pty
import re
import struct
import sys
import termios
import threading
from fcntl import ioctl

import jax
import pytest
from ml_collections import ConfigDict

from nfnet_jax.training import bar

ERASE = "\x1b[K"  # what is in the rest of the line
CONFIG = ConfigDict({"steps": 100, "batch_size": 64})
VALUES = {"loss": 0.25, "top1": 0.875, "images_per_second": 12345.0}


class Terminal:
  """Takes what is written to a terminal, and says what can be seen."""

  def __init__(self, columns):
    self._ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    self.file = os.fdopen(theirs, "w", buffering=1, encoding="utf-8")
    self._written = b""
    self._reader = threading.Thread(target=self._read, daemon=True)
    self._reader.start()

  def _read(self):
    with contextlib.suppress(OSError):  # when the other side is closed
      while content := os.read(self._ours, 2**16):
        self._written += content

  def lines(self):
    """What can be seen of each line, once nothing more is written."""
    self.file.close()
    self._reader.join()
    os.close(self._ours)
    self.written = self._written.decode()
    seen = []
    for line in self.written.replace("\r\n", "\n").split("\n"):
      text = ""
      for part in line.split("\r"):
        text, part = ("", part.removeprefix(ERASE)) if part.startswith(ERASE) else (text, part)
        assert part.isprintable()
        text = part + text[len(part) :]
      seen.append(text.rstrip())
    return seen


@pytest.fixture
def screen(monkeypatch):
  """Gives a terminal of some columns to which errors and the log are written."""
  handler = logging.StreamHandler()

  def make(columns):
    terminal = Terminal(columns)
    monkeypatch.setattr(sys, "stderr", terminal.file)
    handler.setStream(terminal.file)
    return terminal

  root = logging.getLogger()
  monkeypatch.setattr(root, "handlers", [handler])
  return make


log = logging.getLogger("nfnet_jax.tests")


def train(values, during=lambda line: None):
  """Three steps, a test of two batches, and a warning in the middle of it."""
  with bar.of_run(CONFIG, 100, 0, lambda: values) as line:
    log.warning("the first step compiles")
    for step in range(3):
      line.update()
      if step == 1:
        for batch in line.testing(range(2)):
          log.warning("batch %d", batch)
    log.warning("step 3")
    during(line)
  log.warning("done")


def test_the_line_is_gone_in_the_end_and_the_log_is_whole(screen):
  terminal = screen(80)
  train(VALUES)
  wanted = ["the first step compiles", "batch 0", "batch 1", "step 3", "done", ""]
  assert terminal.lines() == wanted


@pytest.mark.parametrize(("columns", "words"), [(120, 4), (80, 4), (60, 3), (42, 2), (25, 0)])
def test_what_the_line_shows_in_a_terminal(screen, columns, words):
  terminal = screen(columns)
  train(VALUES, during=lambda line: terminal.file.write("\nTHE END"))
  last = terminal.lines()[-3]
  assert len(last) == columns - 3  # With ^C, and as a full line would wrap in some terminals.
  assert last.startswith("3/100 ")
  assert "  3%" in last
  known = (" left", "  loss 0.250", "  top-1 87.5%", "  12,345 images/s")
  assert [word in last for word in known] == [number < words for number in range(4)]


def test_before_the_first_step_it_compiles(screen):
  terminal = screen(80)
  with bar.of_run(CONFIG, 100, 0, dict):
    terminal.file.write("\n")
  assert terminal.lines()[0].endswith("0%  compiling")


def test_a_test_shows_its_own_progress(screen):
  terminal = screen(80)
  with bar.of_run(CONFIG, 100, 0, lambda: VALUES) as line:
    line.update()
    for batch in line.testing(range(2)):
      log.warning("batch %d", batch)
      terminal.file.write("\n")
  shown = terminal.lines()
  assert shown[1].startswith("testing step 1 ")
  assert shown[1].endswith("0%")
  assert shown[3].split("%")[0].endswith(" 64")
  _, during, _ = re.split("batch [01]", terminal.written)
  assert "testing step 1 " in during
  assert "1/100 " not in during


def test_a_test_outside_of_a_run(screen):
  terminal = screen(80)
  assert list(bar.of_test(100, 64)(range(2))) == [0, 1]
  assert terminal.lines() == [""]


def test_a_file_gets_only_the_log(monkeypatch):
  file = io.StringIO()
  monkeypatch.setattr(sys, "stderr", file)
  monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(file)])
  train(VALUES)
  assert file.getvalue() == "the first step compiles\nbatch 0\nbatch 1\nstep 3\ndone\n"


def test_other_processes_show_no_line(screen, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  terminal = screen(80)
  train(VALUES, during=lambda line: terminal.file.write("THE END\n"))
  assert terminal.lines()[-3:] == ["THE END", "done", ""]


def test_the_line_is_gone_after_an_error(screen):
  terminal = screen(80)

  def fail(_):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    train(VALUES, during=fail)
  terminal.file.write("nfnet-jax: interrupted.\n")
  assert terminal.lines()[-2:] == ["nfnet-jax: interrupted.", ""]


def test_the_time_left_leaves_compilation_out(screen, monkeypatch):
  now = [1000.0]
  for name in ("time.time", "tqdm.std.time"):
    monkeypatch.setattr(name, lambda: now[0])
  terminal = screen(80)
  with bar.of_run(CONFIG, 100, 10, lambda: VALUES) as line:
    now[0] += 600.0  # It compiles.
    line.update()
    for _ in range(9):
      now[0] += 2.0
      line.update()
    terminal.file.write("\n")
  assert "  02:40 left  " in terminal.lines()[0]  # 80 steps of two seconds
