"""What a run says when its images are others than at its start."""

import numpy as np
import pytest
from PIL import Image

from nfnet_jax import config as config_lib
from nfnet_jax import data
from nfnet_jax.runs import provenance

IMAGES = np.arange(12 * 48, dtype=np.uint8).reshape(12, 4, 4, 3)
LABELS = np.arange(12) % 2


@pytest.fixture
def folder(tmp_path):
  """A folder with a training and a test split."""
  for i, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
    path = tmp_path / ("test" if i > 7 else "train") / "ab"[label] / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
  return tmp_path


def info_of(folder):
  config = config_lib.default().data
  config.update(name="folder", dir=str(folder))
  return data.describe(config)


def said(then, info, caplog):
  caplog.clear()
  provenance.warn_of_changes(then, info)
  return caplog.text


def test_files_that_have_other_names_or_sizes_are_noticed(folder, caplog):
  then = provenance.of_now(info_of(folder))
  assert said(then, info_of(folder), caplog) == ""
  (folder / "train/a/0.png").rename(folder / "train/a/00.png")
  text = said(then, info_of(folder), caplog)
  assert "(training images: 8 as before, but some are others)" in text
  assert "different order" not in text
  (folder / "train/a/00.png").rename(folder / "train/a/0.png")
  with (folder / "test/b/9.png").open("ab") as file:
    file.write(b"\0")
  assert "(test images: 4 as before, but some are others)" in said(then, info_of(folder), caplog)
  (folder / "test/b/9.png").unlink()
  assert "(test images: 4, now 3)" in said(then, info_of(folder), caplog)
  older = {key: value for key, value in then.items() if not key.endswith("_images")}
  assert "(test images: 4, now 3)" in said(older, info_of(folder), caplog)


def test_a_folder_that_has_moved_is_the_same(folder, tmp_path_factory, caplog):
  then = provenance.of_now(info_of(folder))
  folder = folder.rename(tmp_path_factory.mktemp("moved") / "there")
  assert said(then, info_of(folder), caplog) == ""


def test_older_runs_say_nothing_of_what_they_do_not_know(folder, caplog):
  assert said({}, info_of(folder), caplog) == ""


def test_held_out_and_finished(folder, caplog):
  then = provenance.of_now(info_of(folder))
  for warn in (provenance.warn_of_held_out, provenance.warn_of_finished):
    warn(then, info_of(folder))
    assert caplog.text == ""
  (folder / "test/b/9.png").rename(folder / "test/b/99.png")
  provenance.warn_of_held_out(then, info_of(folder))
  assert "may have been trained on" in caplog.text
  provenance.warn_of_finished(then, info_of(folder))
  assert "its results are not theirs" in caplog.text


def as_pairs(images, labels):
  return data.from_sequence([*zip(images, labels, strict=True)], "ab")


@pytest.mark.parametrize("make", [data.from_arrays, as_pairs])
def test_what_a_program_gives_is_recognised_by_its_content(make):
  def of(images, labels):
    return make(images, labels).fingerprint

  first = of(IMAGES, LABELS)
  assert of(IMAGES.copy(), LABELS.copy()) == first
  changed = IMAGES.copy()
  changed[3, 1, 1, 1] += 1
  assert (
    len({first, of(changed, LABELS), of(IMAGES, 1 - LABELS), of(IMAGES[:11], LABELS[:11])}) == 4
  )
