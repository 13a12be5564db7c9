"""A network exported to one file, used without this package."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from nfnet_jax import augment, create_model
from nfnet_jax.__main__ import main
from tests import golden

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
import jax, jax.export
import numpy as np
predict = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read())).call
images = np.load(sys.argv[2])
np.savez(sys.argv[3], three=predict(images[:3]), one=predict(images[3:]))
assert not any(name.startswith(("haiku", "nfnet_jax")) for name in sys.modules)
"""


@pytest.fixture(scope="module")
def params():
  net = create_model("nfnet_micro", 10)
  shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), np.zeros((1, 32, 32, 3)), True)[0])
  return golden.fill(jax.tree.map(lambda x: x.shape, shapes))


def test_it_predicts_with_jax_alone_at_any_batch_size(params, tmp_path, capsys):
  weights, out = tmp_path / "micro.npz", tmp_path / "micro.jax"
  np.savez(weights, **{f"{m}/{n}": x for m, leaves in params.items() for n, x in leaves.items()})
  words = ["export", f"--weights={weights}"]
  assert main([*words, f"--out={out}"]) == 0
  result = json.loads(capsys.readouterr().out)
  assert (result["size"], result["bytes"]) == (32, out.stat().st_size)
  assert result["card"] == str(tmp_path / "README.md")
  assert result["sha256"] in (tmp_path / "README.md").read_text()
  images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
  np.save(tmp_path / "images.npy", images)
  paths = [out, tmp_path / "images.npy", tmp_path / "logits.npz"]
  subprocess.run([sys.executable, "-c", PROGRAM, *map(str, paths)], check=True, cwd=tmp_path)
  net = create_model("nfnet_micro", 10)
  forward = jax.jit(lambda images: net.apply(params, {}, None, augment.normalize(images))[0])
  expected = forward(images)
  with np.load(paths[2]) as logits:
    ours = np.concatenate([logits["three"], logits["one"]])
  np.testing.assert_allclose(ours, expected, atol=1e-5)

  assert main([*words, f"--out={tmp_path}/no/where"]) == 2
  assert "in a folder that exists" in capsys.readouterr().err
  before = out.read_bytes()
  assert main([*words, f"--out={out}"]) == 2
  assert "exists" in capsys.readouterr().err
  assert out.read_bytes() == before
  assert main([*words, f"--out={out}", "--force", "--size=64"]) == 0
  assert json.loads(capsys.readouterr().out)["size"] == 64
