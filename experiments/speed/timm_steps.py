"""timm's side of `cpu_vs_timm.py`: runs a step and prints its seconds for every line on stdin.

python -m venv V
V/bin/pip install torch==2.14.1 torchvision==0.29.1 timm==1.0.31
"""

import sys
import time

import timm
import torch


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
