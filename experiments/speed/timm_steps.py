"""timm's side of `cpu_vs_timm.py`: runs a step and prints its seconds for every line on stdin.

python -m venv V
V/bin/pip install torch==2.13.0 timm==1.0.31
"""

import sys
import time

import torch

# The wheels of torchvision that are built for CUDA look these up when a CPU imports them.
_library = torch.library.Library("torchvision", "DEF")
_library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_library.define(
  "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
  "SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor"
)

import timm  # noqa: E402


def main(name: str, batch: str, size: str, what: str) -> None:
  """Answers each line with the seconds of one step."""
  rates = {"drop_rate": 0.2, "drop_path_rate": 0.25} if "nfnet" in name else {}
  network = timm.create_model(name, **rates).train(what == "train")
  images = torch.randn(int(batch), 3, int(size), int(size))
  labels = torch.randint(0, 1000, (int(batch),))

  def train():
    network.zero_grad()
    torch.nn.functional.cross_entropy(network(images), labels).backward()

  @torch.inference_mode()
  def predict():
    network(images)

  step = train if what == "train" else predict
  for _ in sys.stdin:
    start = time.perf_counter()
    step()
    print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
