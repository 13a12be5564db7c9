import shutil

import pytest
from etils import epath

from nfnet_jax.errors import RequestError
from nfnet_jax.runs import lock, record
from tests import tiny


def test_a_start_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, "No space left on device")

  workdir, config, names = epath.Path(tmp_path), tiny.config(), tiny.INFO.class_names
  monkeypatch.setattr("os.replace", full)
  with record.claim_workdir(workdir, config, names):
    with pytest.raises(RequestError) as error:
      record.write_config(workdir, config, names, {})
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
  assert f"cannot write run directory {tmp_path}: No space left on device." in str(error.value)
  assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_gone_at_the_end(tmp_path):
  workdir, config = epath.Path(tmp_path / "run"), tiny.config()
  with record.claim_workdir(workdir, config, tiny.INFO.class_names) as check:
    opened = record.open_record(workdir, config, None, check, (), dict)
    opened.__enter__()
    shutil.rmtree(workdir)
    with pytest.raises(lock.GoneError, match="was deleted"):
      opened.__exit__(None, None, None)
  assert not workdir.exists()
