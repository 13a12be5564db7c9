"""Output files: all files that belong together are written, or none."""

import resource

import pytest

from nfnet_jax import output
from nfnet_jax.__main__ import main
from nfnet_jax.errors import RequestError, RunError


def test_files_that_belong_together_are_written_together(tmp_path):
  small, large = tmp_path / "small", tmp_path / "large"
  output.write({small: b"old", large: b"old"})
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as if the disk were full
  try:
    with pytest.raises(RunError, match=r"cannot write .*small and .*large: File too large"):
      output.write({small: b"new", large: bytes(2000)})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
    "small": b"old",
    "large": b"old",
  }
  output.write({small: b"new", large: bytes(2000)})
  assert (small.read_bytes(), large.read_bytes()) == (b"new", bytes(2000))


def test_a_place_that_cannot_be_is_a_wrong_request(tmp_path):
  with pytest.raises(RequestError, match="No such file or directory"):
    output.write({tmp_path / "no/where": b""})


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["export", "--out=f0.onnx"], "--to=jax does not write .onnx files"),
    (["export", "--out=f0.JAX", "--to=onnx"], "--to=onnx does not write .jax files"),
    (["convert", "--out=f0.npz"], "a name such as f0.safetensors"),
    (["convert", "--out=f0.pth", "--to=timm"], "--to=timm does not write .pth files"),
    (["convert", "--out=f0.safetensors", "--to=published"], "a name such as f0.npz"),
  ],
)
def test_a_name_does_not_promise_another_format(words, said, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert main([*words, "--weights=absent"]) == 2
  assert said in capsys.readouterr().err
