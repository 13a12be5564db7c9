import pytest

from nfnet_jax.errors import RequestError
from nfnet_jax.runs import lines, provenance, sessions


def work(workdir, start, steps):
  """A session whose every report finds another second of training."""
  seconds = {"start": 0.5, "train": 0.0}

  def so_far():
    seconds["train"] += 1.00049
    return seconds

  with lines.closing(sessions.open_writer(workdir, start, so_far)) as writer:
    for step in steps:
      writer.write(step)


def test_sessions_follow_each_other_and_none_is_dropped(tmp_path):
  assert sessions.read(tmp_path) == []
  work(tmp_path, 0, [50, 100])
  work(tmp_path, 50, [100, 150])
  first, second = sessions.read(tmp_path)
  assert (first.start, first.last, second.start, second.last) == (0, 100, 50, 150)
  # Closing reports once more: saving and testing after the last step count, too.
  assert second.seconds == {"start": 0.5, "train": 3.001}
  assert first.environment == provenance.environment()
  assert first.began.endswith("+00:00")


def test_a_session_that_was_killed_counts_up_to_its_last_report(tmp_path):
  work(tmp_path, 0, [50])
  path = tmp_path / "sessions.jsonl"
  path.write_text(path.read_text()[:-10])
  (session,) = sessions.read(tmp_path)
  assert (session.last, session.seconds["train"]) == (50, 1.0)
  work(tmp_path, 50, [])
  assert [each.start for each in sessions.read(tmp_path)] == [0, 50]


@pytest.mark.parametrize(
  "line", ["[]", '{"step": 1}', '{"step": 1, "seconds": {"train": "x"}}', '{"step": 1, "began": 2}']
)
def test_damage_is_refused_or_left_out(tmp_path, line):
  (tmp_path / "sessions.jsonl").write_text(f"{line}\n")
  with pytest.raises(RequestError, match=r"sessions\.jsonl: line 1 is not valid"):
    sessions.read(tmp_path)
  with pytest.raises(RequestError, match="line 1 is not valid"):
    work(tmp_path, 0, [])
  damaged = []
  assert sessions.read(tmp_path, damaged) == []
  assert len(damaged) == 1


def test_the_environment_names_versions_and_devices():
  found = provenance.environment()
  assert found["devices"] == 8
  assert found["backend"] == "cpu"
  assert {"nfnet_jax", "jax", "optax", "python", "commit", "device"} <= {*found}


def test_the_commit_is_that_of_the_packages_own_checkout(tmp_path, monkeypatch):
  package = tmp_path / "nfnet_jax/__init__.py"
  monkeypatch.setattr(provenance.nfnet_jax, "__file__", str(package))
  assert provenance.environment()["commit"] is None
  (tmp_path / ".git").write_text("damaged")
  assert provenance.environment()["commit"] is None
