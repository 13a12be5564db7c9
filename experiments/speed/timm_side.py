"""timm's side of `gpu_vs_timm.py`, for a Python with torch and timm; prints one line of JSON.

Training is what the paper's recipe asks of it: forward, backward, AGC without the classifier, SGD
with Nesterov's momentum and weight decay, and the EMA weights, on random uint8 images that
are normalised on the device. The keys are those of `nfnet-jax benchmark`.
"""

import argparse
import itertools
import json
import resource
import statistics
import time

import torch

WARM_UP = 5  # steps after the first, which compiles
DROP_RATES = {"dm_nfnet_f0": 0.2, "dm_nfnet_f1": 0.3, "dm_nfnet_f2": 0.4, "dm_nfnet_f3": 0.4}
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def import_timm():
  """Imports timm, even if torchvision's operators were built for another kind of machine."""
  try:
    import timm
  except RuntimeError:  # Its import looks for these operators, which no NFNet uses.
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
      library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define(
      "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
      "SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor"
    )
    import timm

    import_timm.library = library  # It lives as long as this reference.
  return timm


def make_train(timm, model, args):
  """A training step that maps images and labels on the device to the loss."""
  trained = torch.compile(model) if args.compile else model
  clipped = list(timm.models.model_parameters(model, exclude_head=True))
  optimizer = torch.optim.SGD(
    model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-5, nesterov=True
  )
  averaged = timm.utils.ModelEmaV3(model, decay=0.99999)
  model.train()

  def step(images, labels):
    optimizer.zero_grad(set_to_none=True)
    with autocast(args):
      logits = trained(normalize(images, args))
    loss = torch.nn.functional.cross_entropy(logits.float(), labels, label_smoothing=0.1)
    loss.backward()
    timm.utils.agc.adaptive_clip_grad(clipped, clip_factor=0.01, eps=1e-3)
    optimizer.step()
    averaged.update(model)
    return loss

  return step


def make_predict(_, model, args):
  """Logits of a batch."""
  model.eval()
  applied = torch.compile(model) if args.compile else model

  def step(images, labels):
    del labels
    with torch.inference_mode(), autocast(args):
      return applied(normalize(images, args))

  return step


def autocast(args):
  """Autocast to bfloat16 as in timm's own training, or nothing."""
  return torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16")


def normalize(images, args):
  """Converts uint8 `[N, H, W, 3]` to the network's input."""
  mean, std = (torch.tensor(x, device=args.device) for x in (MEAN, STD))
  x = ((images.float() - mean) / std).permute(0, 3, 1, 2)
  layout = torch.channels_last if args.channels_last else torch.contiguous_format
  return x.contiguous(memory_format=layout)


def wait(args):
  """Waits for the device."""
  if args.device == "cuda":
    torch.cuda.synchronize()


def matrix_peak(args):
  """Operations per second of a large matrix product; the best of ten."""
  size = 8192 if args.device == "cuda" else 1024
  dtype = getattr(torch, args.dtype)
  x = torch.randn(size, size, device=args.device).to(dtype)
  seconds = []
  for _ in range(11):
    wait(args)
    start = time.perf_counter()
    torch.mm(x, x)
    wait(args)
    seconds.append(time.perf_counter() - start)
  return 2 * size**3 / min(seconds[1:])


def measure(args):
  """The figures of one run."""
  timm = import_timm()
  torch.backends.cudnn.benchmark = True
  torch.set_float32_matmul_precision("high")
  torch.manual_seed(0)
  rates = {"drop_rate": DROP_RATES.get(args.model, 0.0), "drop_path_rate": 0.25}
  model = timm.create_model(args.model, **rates).to(args.device)
  if args.channels_last:
    model = model.to(memory_format=torch.channels_last)
  step = {"train": make_train, "predict": make_predict}[args.what](timm, model, args)
  shape = (args.batch_size, args.image_size, args.image_size, 3)
  hosts = [torch.randint(0, 256, shape, dtype=torch.uint8) for _ in range(2)]
  if args.device == "cuda":
    hosts = [host.pin_memory() for host in hosts]
  labels = torch.randint(0, 1000, (args.batch_size,), device=args.device)
  seconds = {"transfer": [], "compute": []}
  for host in itertools.islice(itertools.cycle(hosts), 1 + WARM_UP + args.steps):
    start = time.perf_counter()
    images = host.to(args.device, non_blocking=True)
    wait(args)
    there = time.perf_counter()
    step(images, labels)
    wait(args)
    seconds["transfer"].append(there - start)
    seconds["compute"].append(time.perf_counter() - there)
  wholes = [sum(parts) for parts in zip(*seconds.values(), strict=True)]
  timed = wholes[1 + WARM_UP :]
  median = statistics.median(timed)
  kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  on_gpu = args.device == "cuda"
  return {
    **vars(args),
    "images_per_second": args.batch_size / median,
    "step_seconds": median,
    "lowest": min(timed),
    "highest": max(timed),
    **{f"{part}_seconds": statistics.median(v[1 + WARM_UP :]) for part, v in seconds.items()},
    "compile_seconds": max(wholes[0] - median, 0.0),
    "peak_device_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
    "peak_host_bytes": kibibytes * 1024,
    "matrix_peak": matrix_peak(args),
    "device_name": torch.cuda.get_device_name() if on_gpu else "cpu",
    "torch": torch.__version__,
    "timm": timm.__version__,
  }


def main():
  """Reads the flags that `gpu_vs_timm.py` gives."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("what", choices=["train", "predict"])
  parser.add_argument("--model", required=True)
  parser.add_argument("--batch_size", type=int, required=True)
  parser.add_argument("--image_size", type=int, required=True)
  parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
  parser.add_argument("--steps", type=int, required=True)
  parser.add_argument("--channels_last", action="store_true")
  parser.add_argument("--compile", action="store_true")
  args = parser.parse_args()
  args.device = "cuda" if torch.cuda.is_available() else "cpu"
  print(json.dumps(measure(args)))


if __name__ == "__main__":
  main()
