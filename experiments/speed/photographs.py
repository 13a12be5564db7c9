"""Writes a folder of JPEGs of mixed sizes, cut from the two photographs that scikit-learn brings.

  python experiments/speed/photographs.py /tmp/photographs 500

Seven of ten have ImageNet's usual 500 x 375 pixels, one in twenty 12 megapixels; a fine grain, as
of a sensor, makes them as costly to decode as photographs.
"""

import pathlib
import sys

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

# width, height, and how many of twenty have them
SIZES = (((500, 375), 14), ((375, 500), 1), ((1024, 768), 2), ((1920, 1080), 2), ((4000, 3000), 1))
GRAIN = 4.0  # standard deviation, of 255


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
  """One image: a random part of one of the two, perhaps mirrored, enlarged."""
  source = Image.fromarray(load_sample_images().images[rng.integers(2)])
  share = rng.uniform(0.5, 1.0)
  side = share * min(source.width / width, source.height / height)
  left = rng.uniform(0, source.width - side * width)
  top = rng.uniform(0, source.height - side * height)
  box = (left, top, left + side * width, top + side * height)
  pixels = np.asarray(source.resize((width, height), Image.Resampling.BICUBIC, box))
  grain = rng.normal(0, GRAIN, (height, width, 1)).astype(np.float32)
  return Image.fromarray(np.clip(pixels[:, :: rng.choice([-1, 1])] + grain, 0, 255).astype("uint8"))


def write(folder: pathlib.Path, count: int) -> list[str]:
  """Writes those that are not there yet; gives all `count` paths."""
  folder.mkdir(parents=True, exist_ok=True)
  sizes = [size for size, number in SIZES for _ in range(number)]
  paths = [folder / f"{i:05}.jpg" for i in range(count)]
  for i, path in enumerate(paths):
    if not path.exists():
      # Every twenty have them all.
      width, height = sizes[i * 7 % len(sizes)]
      photograph(np.random.default_rng(i), width, height).save(path, quality=90)
  return [str(path) for path in paths]


if __name__ == "__main__":
  if len(sys.argv) != 3 or not sys.argv[2].isdecimal():
    sys.exit(f"usage: {sys.argv[0]} DIRECTORY COUNT")
  write(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
