"""Predicts a folder of photographs, ours and timm's `inference.py`, pass by pass in turns.

  python experiments/speed/predict_folder.py nfnet_f0 --timm_python=PYTHON --images=500

From files to the five most probable classes, without start, weights and compiling: a first pass
over twenty images is left out. timm lives in an interpreter of its own (torch, timm, torchvision).
Ours keeps its memory, as the command line does. Prints a Markdown table, and last one JSON object.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import photographs

from nfnet_jax import inference, models, weights
from nfnet_jax.cli import cpu_memory
from nfnet_jax.inference import predict

THEIRS = {"nfnet_f0": "dm_nfnet_f0", "nfnet_f1": "dm_nfnet_f1"}  # timm's own have our name
WARM_UP = 20


def write_weights(path: str, name: str, size: int) -> None:
  """Writes random weights."""
  net, images = models.create_model(name), jnp.zeros((1, size, size, 3))
  params, _ = jax.jit(net.init, static_argnums=2)(jax.random.key(0), images, False)
  weights.save_weights(path, params, name)


def network(name: str, size: int) -> inference.Network:
  """Random weights, loaded as `nfnet-jax predict` does."""
  with tempfile.TemporaryDirectory() as folder:
    write_weights(f"{folder}/w.safetensors", name, size)
    return inference.load_network(f"{folder}/w.safetensors", size=size)


def our_pass(net: inference.Network, paths: list[str], batch_size: int) -> dict[str, float]:
  """As timm_folder.py answers."""
  start, before = time.perf_counter(), sum(os.times()[:4])
  count = 0
  for _, logits in predict.predict(net, paths, batch_size):
    predict.top_classes(logits, 5, None)
    count += 1
  return {
    "images": count,
    "seconds": time.perf_counter() - start,
    "cpu": sum(os.times()[:4]) - before,
  }


def measure(args: argparse.Namespace, folders: dict[str, str]) -> dict[str, list[dict]]:
  """The passes of both, in turns."""
  theirs = THEIRS.get(args.model, args.model)
  script = pathlib.Path(__file__).with_name("timm_folder.py")
  words = [theirs, args.size, args.timm_batch_size, args.timm_workers]
  command = [args.timm_python, str(script), *map(str, words)]
  net = network(args.model, args.size)
  passes: dict[str, list[dict]] = {"timm": [], "ours": []}
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
  with subprocess.Popen(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, **pipes) as peer:
    for folder in ("few", *["all"] * args.rounds):
      paths = predict.find_images([folders[folder]])
      print(folders[folder], file=peer.stdin, flush=True)
      found = json.loads(peer.stdout.readline()), our_pass(net, paths, args.batch_size)
      assert found[0]["images"] == found[1]["images"] == len(paths)
      if folder == "all":
        for name, each in zip(passes, found, strict=True):
          passes[name].append(each)
    peer.stdin.close()
  return passes


def main() -> None:
  """Measures one network."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("model")
  parser.add_argument("--timm_python", required=True)
  parser.add_argument("--images", type=int, default=500)
  parser.add_argument("--folder", default="/tmp/photographs", help="is filled if need be")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--size", type=int, help="the network's own by default")
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--timm_batch_size", type=int, default=8)
  parser.add_argument("--timm_workers", type=int, default=2)
  args = parser.parse_args()
  args.size = args.size or models.get_spec(args.model).test_size
  root = pathlib.Path(args.folder)
  folders = {"few": str(root / "few"), "all": str(root / str(args.images))}
  photographs.write(root / "few", WARM_UP)
  photographs.write(root / str(args.images), args.images)
  cpu_memory.keep()
  passes = measure(args, folders)
  print("| network | images | side | images/s | of single passes | CPU ms an image |")
  print("|---|---|---|---|---|---|")
  speeds = {}
  for name, each in passes.items():
    rates = sorted(one["images"] / one["seconds"] for one in each)
    speeds[name] = statistics.median(rates)
    cpu = statistics.median(1000 * one["cpu"] / one["images"] for one in each)
    row = (args.model, args.images, name, f"{speeds[name]:.1f}", f"{rates[0]:.1f}-{rates[-1]:.1f}")
    print(f"| {' | '.join(map(str, row))} | {cpu:.1f} |")
  ratios = [
    ours["images"] / ours["seconds"] * timm["seconds"] / timm["images"]
    for ours, timm in zip(passes["ours"], passes["timm"], strict=True)
  ]
  result = vars(args) | {"images_per_second": speeds, "ratio": statistics.median(ratios)}
  print(json.dumps(result | {"ratios": ratios, "passes": passes}))


if __name__ == "__main__":
  sys.exit(main())
