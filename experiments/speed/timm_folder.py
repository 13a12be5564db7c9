"""timm's side of `predict_folder.py`: a pass over the folder of every line on stdin.

The loop is that of timm's `inference.py`: its data set, its loader with workers of their own, the
five most probable classes of each image. Answers with seconds of the clock and of CPU, workers
included.
"""

import json
import os
import sys
import time

import torch
from timm_side import import_timm


def main(name: str, size: str, batch_size: str, workers: str) -> None:
  """Reads what `predict_folder.py` asks for."""
  timm = import_timm()
  from timm.data import create_dataset, create_loader, resolve_data_config

  model = timm.create_model(name).eval()
  config = resolve_data_config({"input_size": (3, int(size), int(size))}, model=model)

  @torch.inference_mode()
  def one_pass(folder):
    dataset = create_dataset("", folder)
    loader = create_loader(
      dataset,
      batch_size=int(batch_size),
      device=torch.device("cpu"),
      num_workers=int(workers),
      persistent_workers=False,  # so that their CPU time is known after a pass
      **config,
    )
    return [model(images).softmax(-1).topk(5)[1].tolist() for images, _ in loader]

  for line in sys.stdin:
    start, before = time.perf_counter(), sum(os.times()[:4])
    classes = one_pass(line.strip())
    count = sum(map(len, classes))
    seconds, cpu = time.perf_counter() - start, sum(os.times()[:4]) - before
    print(json.dumps({"images": count, "seconds": seconds, "cpu": cpu}), flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
