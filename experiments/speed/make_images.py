"""Writes a folder of JPEGs of ImageNet's typical size, 500 x 375 pixels and about 130 KB each.

  python experiments/speed/make_images.py /tmp/images

They are smooth random colours with noise on two scales: as costly to decode as photographs, and
free to share. The folder is read with --config.data.name=folder --config.data.dir=/tmp/images.
"""

import pathlib
import sys

import numpy as np
from PIL import Image

WIDTH, HEIGHT, CLASSES = 500, 375, 8
COUNTS = {"train": 2048, "test": 64}


def photograph(rng: np.random.Generator) -> Image.Image:
  """One image."""
  pixels = rng.normal(0, 6, (HEIGHT, WIDTH, 3))
  for height, width, mean, std in ((12, 16, 128, 60), (188, 250, 128, 45)):
    coarse = np.clip(rng.normal(mean, std, (height, width, 3)), 0, 255).astype(np.uint8)
    pixels += np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.BICUBIC)) - 64.0
  return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def main(root: pathlib.Path) -> None:
  """Writes `root`/SPLIT/CLASS/NUMBER.jpg."""
  rng = np.random.default_rng(0)
  for split, count in COUNTS.items():
    for i in range(count):
      path = root / split / f"class{i % CLASSES}" / f"{i}.jpg"
      path.parent.mkdir(parents=True, exist_ok=True)
      photograph(rng).save(path, quality=92)


if __name__ == "__main__":
  if len(sys.argv) != 2:
    sys.exit("usage: python experiments/speed/make_images.py DIRECTORY")
  main(pathlib.Path(sys.argv[1]))
