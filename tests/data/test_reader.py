"""Many image files read by Pillow's reader and by the training path, with the same pixels."""

import io
import os
import pathlib
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from nfnet_jax import data
from nfnet_jax.data import formats, image, jpeg, preprocess, reader
from nfnet_jax.data.preprocess import Preprocessing
from nfnet_jax.errors import RequestError
from tests.data import examples, zoo

ZOO = zoo.everything()
KNOWN = {name: pixels for name, (_, pixels) in ZOO.items() if pixels is not None}
ENDINGS = {"JPEG": "jpg", "TIFF": "tif"}


def graph(upright: bool, window: object = image.whole_window) -> object:
  """The training path's decoder, as tf.data runs it."""

  @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
  def decode(content: tf.Tensor) -> tf.Tensor:
    return image.decode(content, window, upright)

  return decode


@pytest.fixture(scope="module")
def decoders() -> dict[bool, object]:
  return {upright: graph(upright) for upright in (False, True)}


def difference(one: np.ndarray, other: np.ndarray) -> int:
  return np.abs(one.astype(int) - other).max() if one.shape == other.shape else 256


def test_the_zoo_is_large() -> None:
  assert len(ZOO) >= 60
  assert {formats.find(content).name for content, _ in ZOO.values()} == {
    kind.name for kind in formats.FORMATS
  }


@pytest.mark.parametrize("name", KNOWN)
def test_files_mean_these_pixels(name: str) -> None:
  assert difference(reader.read(ZOO[name][0]), KNOWN[name]) == 0


@pytest.mark.parametrize("name", [name for name in ZOO if name not in KNOWN and "exif" not in name])
def test_pixels_of_lossy_formats_are_near_the_decoders_own(name: str) -> None:
  """Pillow's own, which decodes JPEG by another transform, over white."""
  content, _ = ZOO[name]
  with Image.open(io.BytesIO(content)) as opened:
    theirs = opened.convert("RGBA")
  white = Image.new("RGBA", theirs.size, "white")
  pixels = np.asarray(Image.alpha_composite(white, theirs).convert("RGB"))
  assert difference(reader.read(content, upright=False), pixels) <= 7


@pytest.mark.parametrize("upright", [False, True])
def test_training_and_prediction_see_the_same_pixels(
  decoders: dict[bool, object], upright: bool
) -> None:
  for name, (content, _) in ZOO.items():
    ours, theirs = reader.read(content, upright), decoders[upright](content).numpy()
    assert difference(ours, theirs) == 0, name


@pytest.mark.parametrize("kind", [*map(str, zoo.TURNS), "6_fill", "6_after_tables"])
def test_jpegs_are_turned_upright(kind: str) -> None:
  content, _ = ZOO[f"jpeg_orientation_{kind}"]
  stored = reader.read(content, upright=False)
  np.testing.assert_array_equal(reader.read(content), zoo.TURNS[int(kind[0])](stored))


def test_signed_pixels_are_refused_as_such() -> None:
  little = zoo.encode(Image.fromarray(np.zeros((4, 4), np.uint16)), "TIFF", tiffinfo={339: 2})
  with pytest.raises(RequestError, match="32 bits or a sign, so their range is unknown"):
    reader.read(little)


@pytest.mark.parametrize("name", zoo.broken_exif())
def test_broken_metadata_do_not_hide_the_pixels(name: str) -> None:
  content, _ = ZOO[f"jpeg_exif_{name}"]
  turn = zoo.TURNS[6 if name in ("resolution", "ifd") else 1]
  np.testing.assert_array_equal(reader.read(content), turn(reader.read(content, upright=False)))


def test_parts_of_jpegs_are_the_same_to_the_border() -> None:
  rng = np.random.default_rng(0)
  window = tf.Variable([0, 0, 0, 0])
  decode = graph(True, lambda _: window)
  noise = rng.integers(0, 256, (70, 90, 3), np.uint8)
  for i in range(60):
    height, width = rng.integers(1, 70), rng.integers(1, 90)
    turn = i % 8 + 1
    content = zoo.encode(
      Image.fromarray(noise[:height, :width]),
      "JPEG",
      subsampling=i % 3,
      progressive=i % 2 == 0,
      exif=zoo.exif(turn),
    )
    if turn > 4:
      height, width = width, height
    tall, wide = rng.integers(1, height + 1), rng.integers(1, width + 1)
    top, left = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
    part = tuple(map(int, (top, left, tall, wide)))
    window.assign(part)
    ours = reader.read(content, window=lambda *_, part=part: part)
    assert difference(ours, decode(content).numpy()) == 0, (i, part)


def test_rows_and_columns_are_those_of_the_whole_image() -> None:
  for i, (name, (content, _)) in enumerate(ZOO.items()):
    whole = reader.read(content)
    part = 1, 2, whole.shape[0] - 1, whole.shape[1] - 2
    cut = reader.read(content, window=lambda *_, part=part: part)
    if formats.find(content).name != "JPEG":
      np.testing.assert_array_equal(cut, whole[1:, 2:], name)
    picks = np.unique(np.random.default_rng(i).integers(0, min(cut.shape[:2]), 5))
    few = reader.read(content, window=lambda *_, part=part: part, picks=lambda _, p=picks: p)
    np.testing.assert_array_equal(few, cut[picks][:, picks], name)
    for size in (9, 40):  # not all of them count, and all do
      squashed = preprocess.load(io.BytesIO(content), Preprocessing(size, 3, "squash"))
      expected = preprocess.prepare(whole, size, 3, "squash")
      np.testing.assert_array_equal(squashed, expected, name)


def test_colours_are_converted_as_libjpeg_does() -> None:
  """In 16-bit fractions: all pairs of blue and red, with some lumas."""
  values = np.arange(256)
  luma = np.append(values[::37], 255)[:, None, None]
  planes = np.broadcast_arrays(luma, values[:, None], values)
  images = [Image.fromarray(plane.reshape(-1, 256).astype(np.uint8)) for plane in planes]
  ours = np.asarray(Image.merge("RGB", images).convert("RGB", jpeg._TO_RGB)).reshape(-1, 3)
  y, blue, red = planes[0], planes[1] - 128, planes[2] - 128
  sums = 91881 * red, -22554 * blue - 46802 * red, 116130 * blue
  expected = np.stack([y + (each + 32768 >> 16) for each in sums], -1).clip(0, 255)
  np.testing.assert_array_equal(ours, expected.reshape(-1, 3))


def write_folder(root: pathlib.Path) -> None:
  """The zoo as two classes: what turns by itself, and the rest."""
  for name, (content, _) in ZOO.items():
    kind = formats.find(content).name
    for split in ("train", "test"):
      folder = root / split / ("turned" if "orientation" in name else "plain")
      folder.mkdir(parents=True, exist_ok=True)
      ending = ENDINGS.get(kind, kind.lower())
      (folder / f"{name.replace(':', '')}.{ending}").write_bytes(content)


@pytest.mark.parametrize("resize", formats.RESIZES)
def test_evaluation_and_prediction_prepare_the_same_images(
  tmp_path: pathlib.Path, resize: str
) -> None:
  write_folder(tmp_path)
  config = examples.config(
    name="folder", dir=str(tmp_path), test_size=24, test_padding=8, test_resize=resize
  )
  [batch] = data.test_batches(config, batch_size=len(ZOO))
  assert batch.mask.all()
  paths = sorted((tmp_path / "test").rglob("*.*"))
  how = Preprocessing(24, 8, resize)
  np.testing.assert_allclose(
    batch.images, [preprocess.load(path, how) for path in paths], atol=0.05
  )
  config.update(crop_area=(1.0, 1.0), crop_aspect=(1e-3, 1e3), flip=False, train_size=24)
  assert next(data.train_batches(config, seed=0, batch_size=len(ZOO))).images.any((1, 2, 3)).all()


def test_orientation_is_the_owners_for_folders_alone(tmp_path: pathlib.Path) -> None:
  content, _ = ZOO["jpeg_orientation_3"]
  examples.write_tfds(tmp_path, train=[content] * examples.NUM_TRAIN)
  for split in ("train", "test"):
    (tmp_path / split / "only").mkdir(parents=True)
    (tmp_path / split / "only" / "a.jpg").write_bytes(content)
  stored = preprocess.prepare(reader.read(content, upright=False), 24, 0, "squash")
  upright = preprocess.prepare(reader.read(content), 24, 0, "squash")
  for name, chosen, expected in (
    ("tiny", None, stored),
    ("tiny", True, upright),
    ("folder", None, upright),
    ("folder", False, stored),
  ):
    config = examples.config(
      name=name, dir=str(tmp_path), test_split="train", test_size=24, test_padding=0
    )
    config.exif_orientation = chosen
    images = next(data.test_batches(config, batch_size=1)).images
    np.testing.assert_allclose(images[0], expected, atol=0.01)
  del config.exif_orientation  # as in runs from before the key
  np.testing.assert_allclose(
    next(data.test_batches(config, batch_size=1)).images[0], upright, atol=0.01
  )


def test_records_of_any_set_are_read_by_the_same_reader(tmp_path: pathlib.Path) -> None:
  names = list(KNOWN)[: examples.NUM_TRAIN]
  names[:9] = "webp_alpha", "gif", "tiff", "bmp_palette", "bmp_bits", "pgm_16", "pbm", "webp", "bmp"
  examples.write_tfds(tmp_path, train=[ZOO[name][0] for name in names])
  config = examples.config(
    dir=str(tmp_path), test_split="train", test_size=24, test_padding=0, exif_orientation=True
  )
  [batch] = data.test_batches(config, batch_size=len(names))
  expected = [preprocess.prepare(KNOWN[names[k]], 24, 0, "squash") for k in batch.labels]
  np.testing.assert_allclose(batch.images, expected, atol=0.01)


def claiming(content: bytes, width: int, height: int) -> bytes:
  """A JPEG whose header promises another size."""
  at = content.index(b"\xff\xc0") + 5
  return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


@pytest.mark.parametrize(
  "content",
  [
    zoo.blank_png(20_000_000, 1),
    zoo.blank_png(formats.MAX_SIDE + 1, 1, 8),
    claiming(ZOO["jpeg_colour_4:4:4_baseline"][0], 60_000, 60_000),
    ZOO["bmp"][0][:18] + struct.pack("<ii", 1 << 20, 1 << 20) + ZOO["bmp"][0][26:],
    b"P6 100000 100000 255\n" + bytes(100),
  ],
  ids=["long", "wide", "jpeg", "bmp", "ppm"],
)
def test_what_is_too_large_is_refused_by_its_header(
  decoders: dict[bool, object], content: bytes
) -> None:
  with pytest.raises(
    RequestError, match=r"it has \d+ x \d+ pixels; the limits are 1 to 65535 on a side"
  ):
    reader.read(content)
  with pytest.raises(tf.errors.InvalidArgumentError, match=r"it has \d+ x \d+ pixels"):
    decoders[True](content)


@pytest.mark.parametrize("depth", [1, 8])
def test_long_images_are_resized_at_the_cost_of_short_ones(
  decoders: dict[bool, object], depth: int
) -> None:
  content = zoo.blank_png(formats.MAX_SIDE, 1, depth)
  pixels = reader.read(content)
  assert pixels.shape == decoders[True](content).shape == (1, formats.MAX_SIDE, 3)
  for resize, theirs in (("squash", image.squash), ("central", image.central)):
    assert not preprocess.prepare(pixels, 224, 32, resize).any()
    assert not theirs(tf.constant(content), 224, 32).numpy().any()


def test_an_image_of_190_megapixels_is_read() -> None:
  width, height = 16_320, 11_700  # Pillow's own limit is 178,956,970 pixels.
  pixels = reader.read(zoo.blank_png(width, height), window=lambda *_: (height - 2, 0, 2, width))
  assert pixels.shape == (2, width, 3)


@pytest.mark.parametrize("name", [name for name in ZOO if "orientation" not in name])
def test_damage_is_the_images_error(name: str) -> None:
  """Whatever decoders raise for it; intact pixels may be found all the same."""
  content, _ = ZOO[name]
  rng, said = np.random.default_rng(len(content)), []
  for i in range(12):
    damaged = bytearray(content)
    at = rng.integers(len(damaged))
    if i % 3:
      damaged[at : at + 4] = rng.integers(0, 256, 4, np.uint8).tobytes()
    else:
      del damaged[at:]
    try:
      assert reader.read(bytes(damaged)).ndim == 3
    except RequestError as error:
      said.append(str(error))
  assert [line for line in said if not re.fullmatch(r"(it|its|the file) [^\n]+", line)] == []


@pytest.mark.parametrize("exception", [TypeError, AttributeError, KeyError, struct.error])
def test_any_exception_of_a_decoder_is_the_images_error(
  exception: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
  def fail(*_: object) -> None:
    raise exception("odd")

  from PIL import WebPImagePlugin

  monkeypatch.setattr(WebPImagePlugin.WebPImageFile, "load", fail)
  (tmp_path / "a.webp").write_bytes(ZOO["webp"][0])
  with pytest.raises(RequestError, match=r"cannot read image .*a\.webp: it is damaged .*odd"):
    preprocess.read_image(tmp_path / "a.webp")


def test_no_program_is_started_for_postscript(
  monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
  def started(*_: object, **__: object) -> None:
    raise AssertionError("a program was started")

  monkeypatch.setattr(subprocess, "Popen", started)
  (tmp_path / "photo.jpg").write_bytes(
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
  )
  with pytest.raises(RequestError, match=r"photo\.jpg is not an image"):
    preprocess.read_image(tmp_path / "photo.jpg")


def test_what_is_no_regular_file_or_a_heic_is_refused(tmp_path: pathlib.Path) -> None:
  os.mkfifo(tmp_path / "pipe.jpg")
  with pytest.raises(RequestError, match=r"pipe\.jpg is not an image: it is not a regular file"):
    preprocess.read_image(tmp_path / "pipe.jpg")
  with pytest.raises(RequestError, match="not a regular file"):
    preprocess.read_image("/dev/zero")
  with pytest.raises(RequestError, match="not a regular file"):
    preprocess.read_image(tmp_path)
  (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
  with pytest.raises(RequestError, match=r"a\.heic: it is a HEIC photograph"):
    preprocess.read_image(tmp_path / "a.heic")
  with pytest.raises(RequestError, match=r"nowhere\.png: No such file"):
    preprocess.read_image(tmp_path / "nowhere.png")


def test_the_page_lists_the_formats_and_bounds() -> None:
  page = (pathlib.Path(__file__).parents[2] / "docs/images.md").read_text()
  listed = re.findall(r"^\| (\w+) \| ([^|]*`\.\w[^|]+)\|", page, re.MULTILINE)
  assert [name for name, _ in listed] == [kind.name for kind in formats.FORMATS]
  endings = re.findall(r"\.\w+", " ".join(endings for _, endings in listed))
  assert sorted(endings) == sorted(formats.IMAGE_ENDINGS)
  for bound in (formats.MAX_PIXELS, formats.MAX_SIDE, formats.MAX_BYTES):
    assert f"{bound:,}" in page


def test_a_program_ends_while_images_are_decoded(tmp_path: pathlib.Path) -> None:
  """Threads that decode with Pillow want Python for themselves, which is about to end."""
  for split in ("train", "test"):
    (tmp_path / split / "only").mkdir(parents=True)
    for i in range(8):
      (tmp_path / split / "only" / f"{i}.webp").write_bytes(ZOO["webp"][0])
  program = """
import sys, time
from nfnet_jax import data
from nfnet_jax.data import reader
from tests.data import examples
read = reader.read
def slow(*args):
  time.sleep(0.2)
  return read(*args)
reader.read = slow
batches = data.train_batches(examples.config(name="folder", dir=sys.argv[1]), seed=0, batch_size=2)
next(batches)
"""
  subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=300)
