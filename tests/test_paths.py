"""`~` is the user's home in every function that takes a path."""

import re

import pytest

from nfnet_jax import config as config_lib
from nfnet_jax import load_weights, weights
from nfnet_jax.errors import RequestError
from nfnet_jax.inference import evaluate, export, predict
from nfnet_jax.training import loop


def config():
  config = config_lib.default()
  config.batch_size = 64
  config.data.name, config.data.dir = "folder", "~/there"
  return config


CALLS = {
  "train": lambda: loop.run(config(), "~/run"),
  "evaluate a run": lambda: evaluate.evaluate_workdir("~/there"),
  "evaluate weights": lambda: evaluate.evaluate_weights(
    "~/there", dataset="folder", data_dir="~/there"
  ),
  "load": lambda: load_weights("~/there", "nfnet_f0"),
  "save": lambda: weights.save_weights("~/there/w", {}, "nfnet_f0"),
  "convert": lambda: weights.convert("w.npz", "~/there/w"),
  "export": lambda: export.export("w.npz", "~/there/w"),
  "predict": lambda: next(predict.run([__file__], weights="w.npz", features="~/there/w")),
}


@pytest.mark.parametrize("call", CALLS)
def test_home_is_found(call, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  with pytest.raises(RequestError, match=re.escape(f"{tmp_path}/there")):
    CALLS[call]()
  assert not {path.name for path in tmp_path.iterdir()} & {"~", "run", "there"}
