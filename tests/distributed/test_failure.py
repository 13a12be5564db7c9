"""The end of a process: its last message, and that nothing delays it."""

import threading

import pytest

from nfnet_jax.distributed import failure


def end_early(say):
  with pytest.raises(OSError, match="gone"), failure.last_words(say):
    raise OSError("gone")


def test_what_is_lost_is_said_if_anything_is(caplog):
  end_early(lambda: "lost: 3 steps")
  assert caplog.messages == ["lost: 3 steps"]
  end_early(str)
  with failure.last_words(lambda: "never"):
    pass
  assert caplog.messages == ["lost: 3 steps"]


def test_a_disk_that_fails_or_hangs_holds_nothing_up(monkeypatch, caplog):
  monkeypatch.setattr(failure, "_PATIENCE", 0.1)
  hanging = threading.Event()

  def fail():
    raise PermissionError(13, "Permission denied")

  end_early(fail)
  end_early(lambda: hanging.wait() and "too late")
  hanging.set()
  assert "Permission" not in caplog.text
