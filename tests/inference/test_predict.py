"""`predict` and `evaluate --weights` through the command line."""

import csv
import io
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from nfnet_jax import augment, create_model, data
from nfnet_jax import config as config_lib
from nfnet_jax.__main__ import main
from nfnet_jax.data import preprocess
from nfnet_jax.data.preprocess import Preprocessing
from nfnet_jax.errors import RequestError
from nfnet_jax.inference import predict as predict_lib
from nfnet_jax.weights import save_weights
from tests import golden
from tests.data import zoo

SIZE = 32
NET = create_model("nfnet_micro", 10)


@jax.jit
def forward(params, images):
  """Logits of pixels."""
  return NET.apply(params, {}, None, augment.normalize(images))[0]


@pytest.fixture(scope="module")
def params():
  shapes = jax.eval_shape(lambda: NET.init(jax.random.key(0), np.zeros((1, 32, 32, 3)), True)[0])
  return golden.fill(jax.tree.map(lambda x: x.shape, shapes))


@pytest.fixture(scope="module")
def weights(params, tmp_path_factory):
  path = tmp_path_factory.mktemp("weights") / "micro.npz"
  np.savez(path, **{f"{m}/{n}": x for m, leaves in params.items() for n, x in leaves.items()})
  return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """A PNG, one in gray, one with transparency, a JPEG lying on its side; and a text."""
  root = tmp_path_factory.mktemp("images")
  pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
  Image.fromarray(pixels).save(root / "a.png")
  Image.fromarray(pixels[..., 0]).save(root / "b.png")
  Image.fromarray(np.dstack([pixels, pixels[..., :1]])).save(root / "c.png")
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned right by a quarter
  Image.fromarray(pixels).save(root / "d.jpg", exif=exif)
  (root / "e.txt").write_text("no image")
  return root


def words(weights, *others):
  return ["predict", f"--weights={weights}", "--model=nfnet_micro", "--num_classes=10", *others]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_file_says_its_network_itself(weights, params, images, capsys, tmp_path, kind):
  """By its metadata, or else by its shapes."""
  path = weights
  if kind == "safetensors":
    path = tmp_path / "f"
    how = '{"size": 40, "padding": 4, "resize": "central"}'
    save_weights(path, params, "nfnet_micro", provenance={"preprocessing": how})
  image = str(images / "a.png")
  assert main(["predict", f"--weights={path}", image]) == 0
  [line] = lines(capsys)
  size, padding, resize = (32, 32, "squash") if kind == "npz" else (40, 4, "central")
  pixels = preprocess.prepare(preprocess.read_image(image), size, padding, resize)
  expected = np.asarray(jax.nn.softmax(forward(params, pixels[None])[0]))
  ours = [each["probability"] for each in line["top"]]
  np.testing.assert_allclose(ours, np.sort(expected)[::-1][:5], atol=1e-5)


def test_a_network_without_classifier_gives_features_alone(params, images, capsys, tmp_path):
  path, out = tmp_path / "f", tmp_path / "features.npz"
  body = {module: leaves for module, leaves in params.items() if module != "NFNet/~/linear"}
  save_weights(path, body, "nfnet_micro")
  assert main(["predict", f"--weights={path}", str(images)]) == 2
  assert "without a classifier: ask for features" in capsys.readouterr().err
  assert main(["predict", f"--weights={path}", f"--features={out}", str(images)]) == 0
  with np.load(out) as stored:
    assert stored["features"].shape == (4, 512)


def lines(capsys):
  return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def logits_of(params, path):
  pixels = preprocess.prepare(preprocess.read_image(path), SIZE, 32, "squash")
  return forward(params, pixels[None])[0]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_classes_are_those_of_the_network(weights, params, images, capsys, batch_size):
  assert main(words(weights, f"--batch_size={batch_size}", "--top=10", str(images))) == 0
  found = lines(capsys)
  assert [line["image"].rpartition("/")[2] for line in found] == [
    *("a.png", "b.png", "c.png", "d.jpg")
  ]
  for line in found:
    expected = np.asarray(jax.nn.softmax(logits_of(params, line["image"])))
    ours = {each["class"]: each["probability"] for each in line["top"]}
    np.testing.assert_allclose([ours[i] for i in range(10)], expected, atol=1e-5)
    probabilities = [each["probability"] for each in line["top"]]
    assert probabilities == sorted(probabilities, reverse=True)


def test_no_more_is_computed_than_there_are_images(weights, images, monkeypatch, capsys):
  sizes = []
  predict = predict_lib.predict

  def watch(predictor, paths, batch_size):
    sizes.append(batch_size)
    return predict(predictor, paths, batch_size)

  monkeypatch.setattr(predict_lib, "predict", watch)
  assert main(words(weights, str(images / "a.png"))) == 0
  monkeypatch.setattr(predict_lib, "_BATCH_SIZE", {"cpu": 3})
  assert main(words(weights, str(images))) == 0
  assert main(words(weights, "--batch_size=2", str(images / "a.png"))) == 0
  assert sizes == [1, 3, 2]
  assert len(lines(capsys)) == 6


def test_names_and_features(weights, params, images, capsys, tmp_path):
  names = tmp_path / "names.txt"
  names.write_text("\n".join(f"class {i}" for i in range(10)))
  image = str(images / "a.png")
  assert main(words(weights, f"--classes={names}", "--top=2", image)) == 0
  [line] = lines(capsys)
  assert [each["name"] for each in line["top"]] == [f"class {e['class']}" for e in line["top"]]
  out = tmp_path / "features.npz"
  assert main(words(weights, f"--features={out}", str(images))) == 0
  assert lines(capsys)[-1] == {"features": str(out), "images": 4}
  with np.load(out) as stored:
    assert stored["features"].shape == (4, 512)
    head = params["NFNet/~/linear"]
    logits = stored["features"][0] @ head["w"] + head["b"]
    assert stored["images"][0] == image
  np.testing.assert_allclose(logits, logits_of(params, image), atol=1e-4)
  before = out.read_bytes()
  assert main(words(weights, f"--features={out}", image)) == 2
  assert out.read_bytes() == before
  assert main(words(weights, f"--features={out}", "--force", image, image)) == 0
  with np.load(out) as stored:  # a row for each
    assert stored["images"].tolist() == [image, image]
    assert stored["features"].shape == (2, 512)


def test_a_table_of_predictions(weights, images, capsys, tmp_path):
  (tmp_path / 'no, "image".png').write_text("")
  path, paths = tmp_path / "p.csv", [str(images / "a.png"), str(tmp_path / 'no, "image".png')]
  names = tmp_path / "names.txt"
  names.write_text("\n".join(f"class, {i}" for i in range(10)))
  options = [f"--csv={path}", "--top=2", f"--classes={names}"]
  assert main(words(weights, *options, *paths)) == 2  # one is no image
  good, bad = lines(capsys)
  with open(path, newline="", encoding="utf-8") as file:
    first, second = csv.DictReader(file)
  assert (first["image"], second["image"]) == tuple(paths)
  assert (first["error"], second["error"]) == ("", bad["error"])
  for rank, each in enumerate(good["top"], 1):
    assert first[f"name_{rank}"] == each["name"] == f"class, {each['class']}"
    assert int(first[f"class_{rank}"]) == each["class"]
    assert float(first[f"probability_{rank}"]) == each["probability"]
  assert second["class_1"] == ""
  assert len(first) == len(second) == 2 + 3 * 2
  before = path.read_bytes()
  for others, said in ((options, "exists"), ([*options, "--features=f"], "give only one")):
    assert main(words(weights, *others, paths[0])) == 2
    assert said in capsys.readouterr().err
  assert path.read_bytes() == before
  assert main(words(weights, *options, "--force", paths[0])) == 0
  assert len(path.read_text().splitlines()) == 2
  assert sorted(tmp_path.iterdir()) == sorted([path, names, tmp_path / 'no, "image".png'])


def test_what_is_no_image_is_named_and_the_others_are_predicted(weights, images, capsys, tmp_path):
  cut = tmp_path / "cut.png"
  cut.write_bytes((images / "a.png").read_bytes()[:500])
  (tmp_path / "long.png").write_bytes(zoo.blank_png(20_000_000, 1))
  (tmp_path / "fake.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n")
  content, _ = zoo.jpegs()["jpeg_exif_resolution"]
  (tmp_path / "exif.jpg").write_bytes(content)
  others = [tmp_path / name for name in ("cut.png", "long.png", "fake.jpg", "exif.jpg")]
  paths = [str(images / "e.txt"), str(images / "a.png"), *map(str, others)]
  assert main(words(weights, *paths)) == 2
  captured = capsys.readouterr()
  text, image, broken, long, fake, exif = map(json.loads, captured.out.splitlines())
  assert text["error"] == f"{paths[0]} is not an image."
  assert fake["error"] == f"{paths[4]} is not an image."
  assert len(image["top"]) == len(exif["top"]) == 5
  assert broken["error"] == f"cannot read image {cut}: the file is cut off."
  assert "it has 20000000 x 1 pixels" in long["error"]
  assert "4 of 6 images could not be read" in captured.err


def test_folders_are_searched_by_the_rule_and_files_taken_as_named(images, tmp_path, caplog):
  content = (images / "a.png").read_bytes()
  names = ("b/album.jpg/2.png", "a.PNG", "._a.png", "__MACOSX/a.png", "b/3.pdf", "b/4.png")
  for name in names:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(content)
  (tmp_path / "b" / "up").symlink_to(tmp_path)
  os.mkfifo(tmp_path / "pipe.png")
  named = [tmp_path / "._a.png", tmp_path / "b" / "3.pdf"]
  found = predict_lib.find_images(iter([*named, tmp_path]))
  in_order = ("a.PNG", "b/4.png", "b/album.jpg/2.png")
  assert found == [str(path) for path in (*named, *(tmp_path / name for name in in_order))]
  assert "3 skipped: " in caplog.text
  for name in ("b/3.pdf", "b/up", "pipe.png"):
    assert f"{name} (" in caplog.text


def test_files_of_this_folder_have_no_dot_before_their_names(images, monkeypatch):
  monkeypatch.chdir(images)
  names = ["a.png", "b.png", "c.png", "d.jpg"]
  assert predict_lib.find_images(["."]) == names
  assert predict_lib.find_images([f"../{images.name}/", "./a.png"]) == [
    *(f"../{images.name}/{name}" for name in names),
    "a.png",
  ]


def test_a_folder_without_an_image_says_what_it_has(tmp_path):
  with pytest.raises(RequestError, match=f"no image in {tmp_path}: name a file."):
    predict_lib.find_images(iter([tmp_path]))
  (tmp_path / "notes.txt").write_text("")
  with pytest.raises(RequestError, match=r"\(1 skipped: .*notes.txt \(not a supported kind"):
    predict_lib.find_images(iter([tmp_path]))


def test_a_name_that_is_not_utf8(weights, images, capsys, tmp_path):
  path = tmp_path / os.fsdecode(b"caf\xe9.png")
  path.write_bytes((images / "a.png").read_bytes())
  (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"no image")
  assert main(words(weights, str(tmp_path))) == 2
  broken, intact = lines(capsys)
  assert "is not an image" in broken["error"]
  # JSON has no way to hold bytes, and half of a surrogate pair is what strict readers refuse.
  assert (broken["image"], intact["image"]) == (
    f"{tmp_path}/caf\xe9.jpg",
    f"{tmp_path}/caf\xe9.png",
  )
  assert len(intact["top"]) == 5


@pytest.mark.parametrize(
  ("path", "kind"), [("pipe", "a pipe"), ("/dev/zero", "a device"), ("link", "a broken link")]
)
def test_what_is_no_file_is_refused(weights, capsys, tmp_path, path, kind):
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "link").symlink_to("nowhere")
  path = str(tmp_path / path)
  assert main(words(weights, path)) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert line == f"nfnet-jax: {path} is {kind}: name image files, or folders of them."


@pytest.mark.parametrize(
  ("others", "said"),
  [
    (["nowhere.png"], "there is no image or folder nowhere.png"),
    ([], "no images are given: name image files, or folders"),
    (["--top=0", "{images}"], "top=0"),
    (["--batch_size=0", "{images}"], "batch_size=0"),
    (["--classes=nowhere", "{images}"], "cannot read class names from nowhere"),
    (["--classes={images}/e.txt", "{images}"], "names 1 classes, but the network has 10"),
    (["--features={images}/no/f.npz", "{images}"], "in a folder that exists"),
    (["--features={images}", "{images}"], "cannot write"),
    (["--size=0", "{images}"], "size=0"),
    (["--num_classes=9", "{images}"], "num_classes=10: use that number"),
  ],
)
def test_bad_requests(weights, images, capsys, others, said):
  assert main(words(weights, *(word.format(images=images) for word in others))) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert said in line


def test_no_tensorflow(weights, images):
  program = (
    "import sys; from nfnet_jax.__main__ import main\n"
    f"assert main({words(weights, str(images / 'a.png'))!r}) == 0\n"
    "assert 'tensorflow' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_pixels_are_those_of_evaluation():
  """To the paper's own figures, the border of the central square included."""
  record = golden.load_npz("golden_eval_preproc.npz")
  for resize, name in (("squash", "resize_crop_32"), ("central", "crop_resize")):
    ours = preprocess.load(io.BytesIO(record["jpeg"]), Preprocessing(64, 32, resize))
    np.testing.assert_allclose(ours, record[name], atol=1e-2)


def test_images_are_turned_upright(images):
  upright = preprocess.read_image(images / "d.jpg")
  assert upright.shape == (60, 40, 3)
  plain = preprocess.read_image(images / "d.jpg", upright=False)
  np.testing.assert_array_equal(upright, np.rot90(plain, -1))


@pytest.mark.slow
def test_evaluating_weights(weights, params, capsys, digits):
  flags = [f"--weights={weights}", "--model=nfnet_micro", "--dataset=digits"]
  assert main(["evaluate", *flags, f"--data_dir={digits}", "--batch_size=200"]) == 0
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert (result["examples"], result["split"], result["model"]) == (360, "test", "nfnet_micro")
  assert "expected_top1" not in result
  config = config_lib.default().data
  config.update(name="digits", dir=str(digits), test_size=SIZE, test_resize="squash")
  [batch] = data.test_batches(config, batch_size=360)
  right = np.asarray(forward(params, batch.images)).argmax(1) == batch.labels
  assert result["top1"] == pytest.approx(right.mean(), abs=1e-6)


@pytest.mark.parametrize(
  ("argv", "said"),
  [
    (["--weights=x", "--model=nfnet_f0"], "--dataset is missing"),
    (["--workdir=x", "--size=64"], "--weights is missing"),
    (["--workdir=x", "--weights=y"], "exclude each other"),
    (["--weights=nowhere", "--model=nfnet_micro", "--dataset=digits"], "nowhere"),
  ],
)
def test_evaluations_that_cannot_be(argv, said, capsys, tmp_path):
  assert main(["evaluate", f"--data_dir={tmp_path}", "--batch_size=8", *argv]) == 2
  assert said in capsys.readouterr().err.splitlines()[-1]
