"""Class names from folders to a run, its files, its predictions and back."""

import hashlib
import json
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from nfnet_jax.__main__ import main
from nfnet_jax.data import classes
from nfnet_jax.weights import load_weights, open_weights, save_weights
from nfnet_jax.weights.fit import init_shapes, unflatten
from tests import golden, tiny

pytestmark = pytest.mark.slow

NAMES = ("apple", "banana", "caf\u00e9")
COUNTS = {"train": (8, 8, 8), "test": (1, 2, 5)}
SMALL = {"widths": (16, 16), "depths": (1, 1), "group_size": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Images of three classes."""
  root = tmp_path_factory.mktemp("folder")
  rng = np.random.default_rng(0)
  for split, counts in COUNTS.items():
    for name, count in zip(NAMES, counts, strict=True):
      (root / split / name).mkdir(parents=True)
      for i in range(count):
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(root / split / name / f"{i}.png")
  return root


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
  """A run directory, and the words that made it."""
  workdir = tmp_path_factory.mktemp("runs") / "run"
  changes = tiny.OVERRIDES | {"data.name": "folder", "data.dir": folder, "epochs": 1.0}
  keys = [f"--config.{key}={value}" for key, value in changes.items()]
  words = ["train", "--config=experiments/digits.py", f"--workdir={workdir}", *keys]
  assert main(words) == 0
  return workdir, words


@pytest.fixture
def renamed(folder):
  """The same images, with a class called something else as long as the test lasts."""
  for split in COUNTS:
    (folder / split / NAMES[0]).rename(folder / split / "zebra")
  yield folder
  for split in COUNTS:
    (folder / split / "zebra").rename(folder / split / NAMES[0])


@pytest.fixture
def done(capsys):
  """Runs a verb; gives its lines of JSON."""

  def done(*words, status=0):
    capsys.readouterr()
    assert main([str(word) for word in words]) == status
    lines = capsys.readouterr().out.splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]

  return done


@pytest.fixture
def refused(capsys):
  """Runs what is to be refused; gives the line that says why."""

  def refused(*words):
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()[-1]

  return refused


def content_of(directory):
  return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def share_right(lines):
  """Of predictions, those that name the folder that their image is in."""
  named = [unicodedata.normalize("NFC", line["image"].split("/")[-2]) for line in lines]
  guesses = [line["top"][0]["name"] for line in lines]
  return np.mean([a == b for a, b in zip(named, guesses, strict=True)])


def test_names_go_from_folders_to_predictions(run, folder, done, tmp_path):
  workdir, _ = run
  assert json.loads((workdir / "classes.json").read_text()) == list(NAMES)
  image, out = folder / "test/apple/0.png", tmp_path / "w.safetensors"
  [converted] = done("convert", f"--weights={workdir}", f"--out={out}")
  assert converted["class_names"] == list(NAMES)
  for weights in (workdir, out):
    [line] = done("predict", f"--weights={weights}", image)
    assert {each["class"]: each["name"] for each in line["top"]} == dict(enumerate(NAMES))
  own = tmp_path / "own.txt"
  own.write_text("\ufeffx\r\ny\r\nz\r\n", encoding="utf-8")
  [line] = done("predict", f"--weights={out}", f"--classes={own}", image)
  assert {each["class"]: each["name"] for each in line["top"]} == dict(enumerate("xyz"))
  [exported] = done("export", f"--weights={out}", f"--out={tmp_path}/f.jax")
  about = json.loads((tmp_path / "f.jax.json").read_text())
  assert exported == {
    **{"out": f"{tmp_path}/f.jax", "about": f"{tmp_path}/f.jax.json"},
    **{"card": f"{tmp_path}/README.md"},
    **{"bytes": (tmp_path / "f.jax").stat().st_size, **about},
  }
  assert about == {
    **{"model": "nfnet_micro", "num_classes": 3, "class_names": list(NAMES)},
    **{"loss": "softmax", "size": 16, "padding": 0, "resize": "squash", "channels": 3},
    "sha256": hashlib.sha256((tmp_path / "f.jax").read_bytes()).hexdigest(),
  }


def test_held_out_images_are_evaluated(run, folder, done, tmp_path, caplog):
  workdir, _ = run
  copy = shutil.copytree(workdir, tmp_path / "run")
  config = json.loads((copy / "config.json").read_text())
  config["data"]["hold_out"] = 0.25
  del config["provenance"]["train_images"], config["provenance"]["test_images"]  # as older runs
  words = ["evaluate", f"--workdir={copy}", f"--data_dir={folder / 'train'}"]
  for began in ((18, 6), (15, 5)):
    config["provenance"] |= dict(zip(("num_train", "num_test"), began, strict=True))
    (copy / "config.json").write_text(json.dumps(config))
    [result] = done(*words)
    assert result["examples"] == 6
    assert ("may have been trained on" in caplog.text) == (began == (15, 5))


def test_an_export_replaces_nothing(run, refused, tmp_path):
  workdir, _ = run
  (tmp_path / "f.jax.json").write_text("mine")
  assert "f.jax.json exists" in refused("export", f"--weights={workdir}", f"--out={tmp_path}/f.jax")
  assert content_of(tmp_path) == {tmp_path / "f.jax.json": b"mine"}


def test_labels_follow_the_names(run, folder, done, tmp_path):
  """A network whose logits are in another order than the data set's labels."""
  workdir, _ = run
  names = [unicodedata.normalize("NFD", name) for name in NAMES[::-1]]
  params = load_weights(workdir, "nfnet_micro", num_classes=3, **SMALL)
  how = {"preprocessing": open_weights(workdir).metadata["preprocessing"]}
  out = tmp_path / "w.safetensors"
  save_weights(out, params, "nfnet_micro", class_names=names, provenance=how, **SMALL)
  expected = share_right(done("predict", f"--weights={out}", folder / "test"))
  words = ["--dataset=folder", f"--data_dir={folder}", "--batch_size=8"]
  [result] = done("evaluate", f"--weights={out}", *words)
  assert result["examples"] == 8
  assert result["top1"] == pytest.approx(expected)
  # A run, whose names are in another order for once.
  [before] = done("evaluate", f"--workdir={workdir}")
  kept = (workdir / "classes.json").read_bytes()
  (workdir / "classes.json").write_text(json.dumps(names))
  [result] = done("evaluate", f"--workdir={workdir}")
  (workdir / "classes.json").write_bytes(kept)
  assert result["ema_top1"] == pytest.approx(expected)
  assert result["ema_top1"] != pytest.approx(before["ema_top1"])  # or nothing would be tested


def test_a_class_without_an_image_may_be_guessed(run, folder, done, tmp_path):
  """Compared among the classes that are there, every guess of a single one would be right."""
  workdir, _ = run
  name = NAMES[2]
  shutil.copytree(folder / "test" / name, tmp_path / "test" / name)
  (tmp_path / "train/other").mkdir(parents=True)  # no affair of an evaluation's
  lines = done("predict", f"--weights={workdir}", "--top=3", tmp_path)
  shares = [{each["name"]: each["probability"] for each in line["top"]}[name] for line in lines]
  where = f"--data_dir={tmp_path}", "--batch_size=8"
  [of_run] = done("evaluate", f"--workdir={workdir}", *where)
  [of_weights] = done("evaluate", f"--weights={workdir}", "--dataset=folder", *where)
  for result, prefix in (of_run, "ema_"), (of_weights, ""):
    assert result["examples"] == COUNTS["test"][2]
    assert result[prefix + "loss"] == pytest.approx(-np.log(shares).mean(), rel=1e-4)
    assert result[prefix + "top1"] == pytest.approx(share_right(lines))
    assert "compared_classes" not in result


def test_a_folder_of_classes_is_its_own_split(run, folder, done, tmp_path):
  weights = f"--weights={run[0]}", "--dataset=folder", "--batch_size=8"
  [of_split] = done("evaluate", *weights, f"--data_dir={folder}")
  flat = shutil.copytree(folder / "test", tmp_path / "flat")
  [of_folder] = done("evaluate", *weights, f"--data_dir={flat}")
  assert of_folder == of_split | {"split": "."}
  (flat / "val").mkdir()
  done("evaluate", *weights, f"--data_dir={flat}", status=2)


def test_a_renamed_folder_is_refused(run, renamed, refused, tmp_path):
  workdir, words = run
  out = tmp_path / "w.safetensors"
  assert main(["convert", f"--weights={workdir}", f"--out={out}"]) == 0
  before = content_of(workdir)
  where = [f"--data_dir={renamed}", "--batch_size=8"]
  for request in (
    ["evaluate", f"--workdir={workdir}", *where],
    ["evaluate", f"--weights={out}", "--dataset=folder", *where],
    words,
    [*words[:2], f"--workdir={tmp_path}/new", *words[3:], f"--config.init.weights={out}"],
  ):
    line = refused(*request)
    assert "only the network has 'apple'; only the data set has 'zebra'" in line
  assert "by --config.init.head=reset" in line
  assert not (tmp_path / "new").exists()
  assert content_of(workdir) == before


def test_a_run_of_a_time_when_names_were_not_kept(run, folder, done, refused):
  """Its labels are in the order of its folders' names as text, which for numbers is another now."""
  workdir, words = run
  [before] = done("evaluate", f"--workdir={workdir}")
  (workdir / "classes.json").unlink()
  for lost in (["evaluate", f"--workdir={workdir}"], words):
    assert f"{workdir}/classes.json is missing" in refused(*lost)
  config = json.loads((workdir / "config.json").read_text())
  del config["provenance"]
  (workdir / "config.json").write_text(json.dumps(config))
  numbers = dict(zip(NAMES, ("1", "10", "2"), strict=True))
  for split in COUNTS:
    for name, number in numbers.items():
      (folder / split / name).rename(folder / split / number)
  [after] = done("evaluate", f"--workdir={workdir}")
  of_weights = ["--dataset=folder", f"--data_dir={folder}", "--batch_size=8"]
  [weights] = done("evaluate", f"--weights={workdir}", *of_weights)
  line = refused(*words)
  for split in COUNTS:
    for name, number in numbers.items():
      (folder / split / number).rename(folder / split / name)
  assert after.pop("split") == before.pop("split")
  assert after == pytest.approx(before, rel=1e-5)  # of other batches
  assert weights["top1"] == pytest.approx(before["ema_top1"])
  assert "another order (label 1 was '10' and is '2')" in line
  assert not (workdir / "classes.json").exists()
  assert main(words) == 0
  assert json.loads((workdir / "classes.json").read_text()) == list(NAMES)


def filled(num_classes):
  shapes, _ = init_shapes("nfnet_micro", num_classes, **SMALL)
  return golden.fill(unflatten({name: x.shape for name, x in shapes.items()}))


def test_imagenets_names_for_networks_without_any(folder, done, tmp_path):
  out = tmp_path / "w.safetensors"
  save_weights(out, filled(1000), "nfnet_micro", **SMALL)
  [line] = done("predict", f"--weights={out}", "--top=1000", folder / "test/apple/0.png")
  synsets = list(classes.imagenet())
  assert sorted(each["class"] for each in line["top"]) == list(range(1000))
  for each in line["top"]:
    assert each["synset"] == synsets[each["class"]]
    assert each["name"] == classes.imagenet()[each["synset"]]


def test_weights_that_are_finite_and_huge(folder, done, tmp_path):
  out = tmp_path / "w.safetensors"
  params = filled(3)
  head = params["NFNet/~/linear"]
  head["w"] = np.sign(head["w"]) * np.float32(3e38)
  save_weights(out, params, "nfnet_micro", class_names=NAMES, **SMALL)
  paths = [folder / "test/apple/0.png", folder / "test/banana/1.png"]
  lines = done("predict", f"--weights={out}", *paths, status=2)
  assert [line["image"] for line in lines] == [str(path) for path in paths]
  for path, line in zip(paths, lines, strict=True):
    assert f"output for {path} is not finite" in line["error"]
  words = ["--dataset=folder", f"--data_dir={folder}", "--batch_size=8", "--size=16"]
  [result] = done("evaluate", f"--weights={out}", *words)
  assert (result["loss"], result["top1"], result["examples"]) == (None, 0.0, 8)
