import importlib
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from nfnet_jax import __main__
from nfnet_jax.errors import RequestError
from nfnet_jax.runs import checkpoint, digest, storage


class State(NamedTuple):
  step: jax.Array
  params: dict
  opt_state: optax.OptState


def make_state(step=0):
  rng = np.random.default_rng(step)
  params = {
    "NFNet/~/stem_conv0": {
      "w": jnp.asarray(rng.normal(size=(3, 3, 3, 8)), jnp.float32),
      # -0.0 and NaN: equal to the fill value, and unequal to themselves.
      "gain": jnp.asarray([-0.0, 0.0, np.nan, 1.0], jnp.float32),
    },
    "NFNet/~/linear": {"w": jnp.asarray(rng.normal(size=(8, 3)), jnp.bfloat16)},
  }
  recipe = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9))
  return State(jnp.asarray(step, jnp.int32), params, recipe.init(params))


def same_bits(a, b):
  leaves_a, leaves_b = ([np.asarray(leaf) for leaf in jax.tree.leaves(tree)] for tree in (a, b))
  return [(x.shape, x.dtype, x.tobytes()) for x in leaves_a] == [
    (x.shape, x.dtype, x.tobytes()) for x in leaves_b
  ]


def save_all(directory, steps, keep=3, resume_step=None):
  manager = checkpoint.open_manager(directory, keep=keep, resume_step=resume_step)
  for step in steps:
    checkpoint.save(manager, step, make_state(step))
  manager.close()


def steps_in(directory):
  return sorted(path.name for path in directory.iterdir())


def spoil(directory, step, part="state"):
  for path in (directory / str(step) / part).rglob("*"):
    if path.is_file():
      path.write_bytes(b"spoilt")


def test_round_trip_is_exact(tmp_path):
  save_all(tmp_path, [1, 2])
  template = jax.eval_shape(make_state)
  step, state = checkpoint.restore_newest(tmp_path, template)
  assert step == 2
  assert same_bits(state, make_state(2))
  assert jax.tree.structure(state) == jax.tree.structure(template)
  assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(state))


def test_nothing_to_restore(tmp_path):
  assert checkpoint.restore_newest(tmp_path / "none", make_state()) is None
  assert checkpoint.restore_newest(tmp_path, make_state()) is None


def test_leaves_have_readable_names():
  digests = digest.tree_digest(make_state())
  leaf = digests["params/NFNet/~/stem_conv0/w"]
  assert (leaf["shape"], leaf["dtype"]) == ([3, 3, 3, 8], "float32")
  assert "opt_state/1/0/trace/NFNet/~/linear/w" in digests
  assert digests["params/NFNet/~/linear/w"]["dtype"] == "bfloat16"


def test_digest_tells_shape_dtype_and_every_bit_apart():
  zeros = np.zeros(4, np.float32)
  one_bit = zeros.copy()
  one_bit.view(np.uint8)[-1] = 1
  leaves = [zeros, zeros.reshape(2, 2), zeros.astype(np.int32), -zeros, one_bit]
  digests = [str(digest.tree_digest({"x": leaf})) for leaf in leaves]
  assert len(set(digests)) == len(leaves)


def test_two_leaves_of_one_name_are_refused():
  with pytest.raises(ValueError, match="name a/b"):
    digest.tree_digest({"a/b": np.ones(1), "a": {"b": np.ones(1)}})


def test_awkward_names_survive(tmp_path):
  state = {name: np.full(2, i) for i, name in enumerate(["a", "a/0", "..", "x y.z", "é%2F~", "w/"])}
  with checkpoint.open_manager(tmp_path, keep=1, resume_step=None) as manager:
    checkpoint.save(manager, 1, state)
  assert same_bits(checkpoint.restore_newest(tmp_path, state)[1], state)


def test_state_may_change_once_save_has_returned(tmp_path):
  state = {"w": np.zeros(2_000_000, np.float32)}
  with checkpoint.open_manager(tmp_path, keep=1, resume_step=None) as manager:
    checkpoint.save(manager, 1, state)
    state["w"][:] = 7
  assert not checkpoint.restore_newest(tmp_path, state)[1]["w"].any()


def test_donated_state_is_saved_as_it_was(tmp_path):
  state = {"w": jnp.zeros(2_000_000)}
  with checkpoint.open_manager(tmp_path, keep=1, resume_step=None) as manager:
    checkpoint.save(manager, 1, state)
    state = jax.jit(lambda tree: {"w": tree["w"] + 7}, donate_argnums=0)(state)
    jax.block_until_ready(state)
  assert not checkpoint.restore_newest(tmp_path, state)[1]["w"].any()


def test_keeps_the_newest(tmp_path):
  save_all(tmp_path, [1, 2, 3, 4], keep=2)
  assert steps_in(tmp_path) == ["3", "4"]


def damages(path, rng):
  """Yields versions of a file: six with one bit flipped, two cut short, one of noise, none."""
  data = path.read_bytes()
  for offset, bit in zip(rng.integers(len(data), size=6), rng.integers(8, size=6), strict=True):
    flipped = bytearray(data)
    flipped[offset] ^= 1 << bit
    yield bytes(flipped)
  yield from (data[: len(data) // 2], b"", rng.bytes(len(data)), None)


@pytest.mark.slow
def test_damage_anywhere_is_skipped_or_harmless(tmp_path, caplog):
  save_all(tmp_path, [1, 2])
  rng = np.random.default_rng(0)
  skipped = {}
  for path in sorted(file for file in (tmp_path / "2").rglob("*") if file.is_file()):
    data = path.read_bytes()
    for damaged in damages(path, rng):
      path.unlink() if damaged is None else path.write_bytes(damaged)
      caplog.clear()
      step, state = checkpoint.restore_newest(tmp_path, make_state())
      assert same_bits(state, make_state(step)), path
      warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
      assert [f"{tmp_path}/2:" in text for text in warned] == [True] * (step == 1), path
      skipped.setdefault(path.relative_to(tmp_path / "2").parts[:2], []).append(step == 1)
      path.write_bytes(data)
  # Every bit of the digest and of what the leaves are read from counts; markers of Orbax's do not.
  assert all(skipped["digest", "metadata"] + skipped["state", "d"])
  assert all(skipped["state", "manifest.ocdbt"])
  assert not any(skipped["commit_success.txt",])


def test_the_digest_alone_notices_a_changed_value(tmp_path, caplog):
  save_all(tmp_path, [1, 2])
  other = make_state(2)
  other.params["NFNet/~/linear"]["w"] += 1
  with checkpoint.open_manager(tmp_path / "other", keep=1, resume_step=None) as manager:
    checkpoint.save(manager, 2, other)
  shutil.rmtree(tmp_path / "2/state")
  shutil.copytree(tmp_path / "other/2/state", tmp_path / "2/state")
  assert checkpoint.restore_newest(tmp_path, make_state())[0] == 1
  message = "1 of 7 leaves do not match their digest, first params/NFNet/~/linear/w"
  assert message in caplog.text


def test_a_renamed_step_is_not_believed(tmp_path, caplog):
  save_all(tmp_path, [1, 2])
  (tmp_path / "1").rename(tmp_path / "9")
  assert checkpoint.restore_newest(tmp_path, make_state())[0] == 2
  assert "it was saved as step 1" in caplog.text


@pytest.mark.parametrize("part", ["state", "digest"])
def test_missing_part(tmp_path, part):
  save_all(tmp_path, [1, 2])
  shutil.rmtree(tmp_path / "2" / part)
  assert checkpoint.restore_newest(tmp_path, make_state())[0] == 1


def test_none_verifies(tmp_path):
  save_all(tmp_path, [1, 2])
  spoil(tmp_path, 1)
  spoil(tmp_path, 2, "digest")
  with pytest.raises(checkpoint.CheckpointError) as error:
    checkpoint.restore_newest(tmp_path, make_state())
  for said in ["step 1: its leaves", "step 2: its digest", "Nothing was deleted", str(tmp_path)]:
    assert said in str(error.value)
  assert steps_in(tmp_path) == ["1", "2"]


def test_a_run_that_goes_on_replaces_its_checkpoints(tmp_path, monkeypatch):
  save_all(tmp_path, [1])
  read = checkpoint._read

  def read_late(path, *wanted):
    if path == tmp_path / "1":
      save_all(tmp_path, [2], keep=1, resume_step=1)
    return read(path, *wanted)

  monkeypatch.setattr(checkpoint, "_read", read_late)
  step, state = checkpoint.restore_newest(tmp_path, make_state())
  assert step == 2
  assert same_bits(state, make_state(2))


def test_some_fields_alone(tmp_path):
  """They are compared with their digests and their template; the others may be anything."""
  fields = {"step": jnp.asarray(0, jnp.int32), "params": make_state().params}
  save_all(tmp_path, [1, 2])
  step, found = checkpoint.restore_newest(tmp_path, fields, partial=True)
  assert step == 2
  assert same_bits(found, {name: getattr(make_state(2), name) for name in fields})

  ones = jax.tree.map(jnp.ones_like, make_state().opt_state)
  for params_of, newest in ((2, 2), (3, 1)):
    # The digest of a state that differs in the optimizer's alone, and in the parameters too.
    other = make_state(2)._replace(params=make_state(params_of).params, opt_state=ones)
    with checkpoint.open_manager(
      tmp_path / f"other{params_of}", keep=1, resume_step=None
    ) as manager:
      checkpoint.save(manager, 2, other)
    shutil.copytree(
      tmp_path / f"other{params_of}/2/digest", tmp_path / "2/digest", dirs_exist_ok=True
    )
    assert checkpoint.restore_newest(tmp_path, make_state())[0] == 1
    assert checkpoint.restore_newest(tmp_path, fields, partial=True)[0] == newest
  fields["params"].pop("NFNet/~/linear")
  with pytest.raises(RequestError, match=r"linear/w is .* in the checkpoint and missing"):
    checkpoint.restore_newest(tmp_path, fields, partial=True)


def test_one_step_on_request(tmp_path):
  save_all(tmp_path, [1, 2])
  step, state = checkpoint.restore_newest(tmp_path, make_state(), step=1)
  assert step == 1
  assert same_bits(state, make_state(1))
  with pytest.raises(RequestError, match=r"no checkpoint of step 3 .*\[1, 2\]"):
    checkpoint.restore_newest(tmp_path, make_state(), step=3)
  spoil(tmp_path, 2)
  with pytest.raises(checkpoint.CheckpointError):
    checkpoint.restore_newest(tmp_path, make_state(), step=2)


def test_another_model_is_refused(tmp_path):
  save_all(tmp_path, [1])
  template = make_state()
  conv = template.params["NFNet/~/stem_conv0"]
  conv["bias"] = conv.pop("gain")
  conv["w"] = conv["w"].astype(jnp.bfloat16)
  template.params["NFNet/~/linear"]["w"] = jnp.zeros((8, 5), jnp.bfloat16)
  with pytest.raises(RequestError) as error:
    checkpoint.restore_newest(tmp_path, template)
  for said in [
    "another model",
    "stem_conv0/bias is missing in the checkpoint and float32[4] in the model",
    "stem_conv0/gain is float32[4] in the checkpoint and missing in the model",
    "stem_conv0/w is float32[3, 3, 3, 8] in the checkpoint and bfloat16[3, 3, 3, 8] in the model",
    "linear/w is bfloat16[8, 3] in the checkpoint and bfloat16[8, 5] in the model",
  ]:
    assert said in str(error.value)
  assert "\n" not in str(error.value)


def test_only_ten_differences_are_listed(tmp_path):
  save_all(tmp_path, [1])
  with pytest.raises(RequestError, match="and 7 more") as error:
    checkpoint.restore_newest(tmp_path, {str(i): np.ones(1) for i in range(10)})
  assert str(error.value).count("in the model") == 10


def test_a_step_that_did_not_verify_can_be_saved_again(tmp_path):
  save_all(tmp_path, [1, 2, 3])
  spoil(tmp_path, 2)
  spoil(tmp_path, 3, "digest")
  assert checkpoint.restore_newest(tmp_path, make_state())[0] == 1
  save_all(tmp_path, [2], resume_step=1)
  step, state = checkpoint.restore_newest(tmp_path, make_state())
  assert step == 2
  assert same_bits(state, make_state(2))
  assert steps_in(tmp_path) == ["1", "2", "2.corrupt", "3.corrupt"]
  # And again, with the name taken.
  spoil(tmp_path, 2)
  save_all(tmp_path, [2], resume_step=1)
  assert steps_in(tmp_path) == ["1", "2", "2.corrupt", "2.corrupt2", "3.corrupt"]


def test_damaged_steps_do_not_push_out_the_good_one(tmp_path):
  save_all(tmp_path, [1, 8, 9])
  spoil(tmp_path, 8)
  spoil(tmp_path, 9)
  save_all(tmp_path, [2], keep=2, resume_step=1)
  assert steps_in(tmp_path) == ["1", "2", "8.corrupt", "9.corrupt"]


def test_saving_the_same_step_again(tmp_path):
  with checkpoint.open_manager(tmp_path, keep=2, resume_step=None) as manager:
    checkpoint.save(manager, 1, make_state(1))
    checkpoint.save(manager, 1, make_state(1))
    with pytest.raises(ValueError, match="step 1 was saved before"):
      checkpoint.save(manager, 1, make_state(2))
  assert same_bits(checkpoint.restore_newest(tmp_path, make_state())[1], make_state(1))


@pytest.mark.parametrize("resume_step", [None, 2])
def test_checkpoints_of_another_run_are_not_overwritten(tmp_path, resume_step):
  save_all(tmp_path, [1, 3])
  with pytest.raises(RequestError, match=r"steps \[1, 3\]"):
    checkpoint.open_manager(tmp_path, keep=3, resume_step=resume_step)
  assert steps_in(tmp_path) == ["1", "3"]


@pytest.mark.parametrize(
  "name", ["lr=[0.1]", "a*", "a?", "**", "{a,b}", "a\\b", "a\\", "logs:/x", "a\nb", "caf\udce9"]
)
def test_paths_that_orbax_takes_for_patterns(tmp_path, name):
  save_all(tmp_path / "ab", [5])  # What a pattern would find.
  save_all(tmp_path / name, [1])
  save_all(tmp_path / name, [2], resume_step=1)
  assert steps_in(tmp_path / name) == ["1", "2"]
  # Where it was written, not through the link that it was written by.
  moved = (tmp_path / name).rename(tmp_path / "plain")
  step, state = checkpoint.restore_newest(moved, make_state())
  assert step == 2
  assert same_bits(state, make_state(2))
  moved.rename(tmp_path / name)
  assert same_bits(checkpoint.restore_newest(tmp_path / name, make_state())[1], make_state(2))


def test_an_object_store_has_no_links():
  with pytest.raises(
    RequestError, match=r"cannot keep checkpoints in gs://bucket/a\[1\]: Orbax treats"
  ):
    storage.plain(epath.Path("gs://bucket/a[1]"))
  assert storage.plain(epath.Path("gs://bucket/a=1")) == epath.Path("gs://bucket/a=1")


def test_what_does_not_read_back_is_refused_before_a_run(tmp_path, monkeypatch):
  monkeypatch.setattr(storage, "plain", lambda path: path)
  with pytest.raises(RequestError, match=r"cannot write checkpoints to .* reading it back failed"):
    checkpoint.open_manager(tmp_path / "[1]", keep=1, resume_step=None)
  assert steps_in(tmp_path / "[1]") == []


def test_what_is_written_is_read_back(tmp_path, monkeypatch):
  manager = checkpoint.open_manager(tmp_path, keep=1, resume_step=None)
  checkpoint.save(manager, 1, make_state(1), read_back=True)
  wait = manager.wait_until_finished

  def wait_and_spoil():
    wait()
    spoil(tmp_path, 2)

  monkeypatch.setattr(manager, "wait_until_finished", wait_and_spoil)
  with pytest.raises(checkpoint.SaveError, match="2 was written, but reading it back failed: its"):
    checkpoint.save(manager, 2, make_state(2), read_back=True)
  monkeypatch.undo()
  manager.close()
  assert steps_in(tmp_path) == ["2.corrupt"]


@pytest.fixture
def largest_file():
  """Bounds what a file may hold from now on: a disk that is full as far as Orbax can tell."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)

  def bound(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

  yield bound
  resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_save_that_fails_says_so_in_one_line(tmp_path, largest_file, capfd):
  state = {name: np.random.default_rng(0).normal(size=20_000) for name in "abcdefgh"}
  manager = checkpoint.open_manager(tmp_path, keep=2, resume_step=None)
  checkpoint.save(manager, 1, state)
  checkpoint.finish(manager)
  largest_file(50_000)
  with pytest.raises(checkpoint.SaveError) as error, checkpoint.closing(manager):
    checkpoint.save(manager, 2, state)
  assert str(error.value) == f"cannot save to {tmp_path}: File too large."
  assert capfd.readouterr().err == ""
  step, restored = checkpoint.restore_newest(tmp_path, state)
  assert step == 1
  assert same_bits(restored, state)


def test_requests_that_cannot_be_met(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(RequestError, match="cannot write"):
    checkpoint.open_manager(tmp_path / "file", keep=1, resume_step=None)
  with pytest.raises(RequestError, match="keep=0"):
    checkpoint.open_manager(tmp_path, keep=0, resume_step=None)


KILLED_WHILE_SAVING = """
import os, pathlib, signal, sys
import numpy as np
from nfnet_jax.runs import checkpoint
from nfnet_jax.runs import digest
directory = pathlib.Path(sys.argv[1])
state = {"w": np.random.default_rng(0).normal(size=5_000_000)}
manager = checkpoint.open_manager(directory, keep=1, resume_step=None)
checkpoint.save(manager, 1, state)
manager.wait_until_finished()
checkpoint.save(manager, 2, state)
while not (directory / "2.orbax-checkpoint-tmp").exists():
  pass
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_killed_while_saving(tmp_path, caplog):
  command = [sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path)]
  path = os.pathsep.join(filter(None, sys.path))
  child = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False)
  assert child.returncode == -signal.SIGKILL
  assert steps_in(tmp_path) == ["1", "2.orbax-checkpoint-tmp"]
  state = {"w": np.random.default_rng(0).normal(size=5_000_000)}
  step, restored = checkpoint.restore_newest(tmp_path, state)
  assert step == 1
  assert same_bits(restored, state)
  assert "2.orbax-checkpoint-tmp: it is incomplete, since its save has not finished" in caplog.text
  with checkpoint.open_manager(tmp_path, keep=2, resume_step=1) as manager:
    checkpoint.save(manager, 3, state)
  assert steps_in(tmp_path) == ["1", "3"]


def test_the_command_line_alone_silences_orbax(tmp_path, caplog, monkeypatch):
  """Others' logging is theirs: importing this package changes nothing of it."""
  absl = logging.getLogger("absl")
  monkeypatch.setattr(absl, "filters", [])
  importlib.reload(storage)
  assert not absl.filters
  caplog.set_level(logging.INFO)
  save_all(tmp_path, [1])
  assert any("orbax" in record.pathname for record in caplog.records)
  assert __main__.main(["nonsense"]) == 2  # any command
  caplog.clear()
  save_all(tmp_path, [2], resume_step=1)
  checkpoint.restore_newest(tmp_path, make_state())
  assert not caplog.records
  absl.warning("heard")
  assert "heard" in caplog.text
