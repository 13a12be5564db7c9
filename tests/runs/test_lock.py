import os
import subprocess
import sys

import pytest
from etils import epath

from nfnet_jax.errors import RequestError
from nfnet_jax.runs import lock

HOLDS_IT = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_one_at_a_time(tmp_path):
  with lock.hold(epath.Path(tmp_path)):
    with pytest.raises(RequestError) as error:
      lock.hold(epath.Path(tmp_path)).__enter__()
    assert f"{tmp_path} is in use by process {os.getpid()} on " in str(error.value)
    assert ", since 20" in str(error.value)
  assert list(tmp_path.iterdir()) == []
  with lock.hold(epath.Path(tmp_path)):
    pass


def test_a_dead_process_holds_nothing(tmp_path):
  command = [sys.executable, "-c", HOLDS_IT, str(tmp_path / "lock")]
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
  with subprocess.Popen(command, **pipes) as child:
    assert child.stdout.readline() == b"held\n"
    with pytest.raises(RequestError, match="in use by another run"):
      lock.hold(epath.Path(tmp_path)).__enter__()
    child.kill()
    child.wait()
    assert (tmp_path / "lock").exists()
    with lock.hold(epath.Path(tmp_path)) as check:
      check()


@pytest.mark.parametrize("how", ["deleted", "moved", "another"])
def test_a_directory_that_is_gone(tmp_path, how):
  place = tmp_path / "run"
  place.mkdir()
  with lock.hold(epath.Path(place)) as check:
    check()
    place.rename(tmp_path / "elsewhere")
    if how == "another":
      place.mkdir()
      (place / "lock").write_text("another run's")
    elif how == "deleted":
      (tmp_path / "elsewhere/lock").unlink()
    with pytest.raises(lock.GoneError, match=f"{place} was deleted, moved or replaced"):
      check()
  assert place.exists() == (how == "another")
  if how == "another":
    assert (place / "lock").read_text() == "another run's"


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
  def refuse(*_):
    raise OSError(95, "Operation not supported")

  monkeypatch.setattr("fcntl.flock", refuse)
  with lock.hold(epath.Path(tmp_path)) as check:
    check()
  assert "/lock (Operation not supported): do not start" in caplog.text
