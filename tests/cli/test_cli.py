"""The command line: its output, and its errors for invalid requests."""

import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import pytest

from nfnet_jax import __main__, data, models
from nfnet_jax import config as config_lib
from nfnet_jax.__main__ import main
from nfnet_jax.cli import config_file
from nfnet_jax.runs import checkpoint
from nfnet_jax.training.build import build
from tests.data import examples as data_examples

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENT = ROOT / "experiments/digits.py"
TINY = [
  "model.widths=(16,16)",
  "model.depths=(1,1)",
  "model.group_size=8",
  "data.train_size=16",
  "data.test_size=16",
  "batch_size=16",
  "steps=1",
]


@pytest.fixture
def refused(capsys):
  """Runs what is to be refused; gives the line that says why."""

  def run(*words):
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.splitlines()
    assert line.startswith("nfnet-jax: ")
    assert len(line) < 1500
    return line

  return run


@pytest.fixture
def refused_training(refused, digits, tmp_path):
  """The same for training the tiny network, with changes; nothing may be written."""
  workdir = tmp_path / "refused"

  def run(*changes, config=EXPERIMENT):
    keys = [f"--config.{change}" for change in [*TINY, f"data.dir={digits}", *changes]]
    line = refused("train", f"--config={config}", f"--workdir={workdir}", *keys)
    assert not workdir.exists()
    return line

  return run


@pytest.fixture
def resolved(digits):
  """The tiny run's config as its directory holds it."""
  config = config_file.override(config_file.read(str(EXPERIMENT)), [*TINY, f"data.dir={digits}"])
  return config_lib.resolve(config, data.describe(config.data))


def content_of(directory):
  return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def tiny_train(workdir, directory, *changes):
  keys = [f"--config.{change}" for change in [*TINY, f"data.dir={directory}", *changes]]
  return ["train", f"--config={EXPERIMENT}", f"--workdir={workdir}", *keys]


def save_checkpoint(workdir, state):
  with checkpoint.open_manager(workdir / "checkpoints", keep=1, resume_step=None) as manager:
    checkpoint.save(manager, 1, state)


# Help, and the table of networks.


def test_usage_names_every_verb(capsys):
  assert main(["--help"]) == 0
  out = capsys.readouterr().out
  assert all(f"  {verb} " in out for verb in __main__.VERBS)
  assert {"train", "evaluate", "models"} <= set(__main__.VERBS)
  assert main([]) == 2


@pytest.mark.parametrize(
  ("verb", "flags"),
  [
    ("train", ["config", "workdir"]),
    ("evaluate", ["workdir", "split", "batch_size", "data_dir"]),
    ("predict", ["weights", "model", "numerics", "size", "classes", "top", "features", "force"]),
    ("convert", ["weights", "model", "numerics", "out", "to", "averaged", "force"]),
    ("export", ["weights", "model", "numerics", "out", "size", "force"]),
    ("models", []),
  ],
)
def test_help_names_every_flag(capsys, verb, flags):
  with pytest.raises(SystemExit) as stopped:
    main([verb, "--help"])
  assert not stopped.value.code
  out = capsys.readouterr().out
  assert __main__.VERBS[verb].__doc__ in out
  assert all(f"--{flag} " in out for flag in flags)


def test_help_gives_defaults_and_what_is_needed(capsys):
  with pytest.raises(SystemExit):
    main(["predict", "--help"])
  usage, *_, out = capsys.readouterr().out.split("\n", 1)
  assert usage == "usage: nfnet-jax predict --weights=VALUE [--FLAG=VALUE ...] IMAGE ..."
  assert "Number of classes to print for each image. Default: 5." in out
  for words in ([], ["--weights=x"]):
    with pytest.raises(SystemExit):
      main(["evaluate", *words, "--help"])
    usage = capsys.readouterr().out.splitlines()[0]
    ways = "(--workdir=VALUE | --weights=VALUE --dataset=VALUE)"
    assert usage == f"usage: nfnet-jax evaluate {ways} [--FLAG=VALUE ...]"


def test_models_lists_every_network(capsys):
  assert main(["models"]) == 0
  _, *rows = capsys.readouterr().out.splitlines()
  assert [row.split()[0] for row in rows] == models.list_models()
  assert rows[0].split() == ["nfnet_f0", "71.49M", "192", "256"]


# A process of its own.


def test_a_refusal_is_one_line_and_exit_status_2(tmp_path):
  words = [f"--config={EXPERIMENT}", "--config.batchsize=3", f"--workdir={tmp_path}/run"]
  done = subprocess.run(
    [sys.executable, "-m", "nfnet_jax", "train", *words],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stdout == ""
  assert done.stderr == ("nfnet-jax: unknown config key 'batchsize': did you mean batch_size?\n")
  assert list(tmp_path.iterdir()) == []


# Words that are not understood.


def test_unknown_verb(refused):
  line = refused("trian")
  assert f"unknown verb 'trian': choose one of {', '.join(__main__.VERBS)}." in line


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["train"], "--config is missing"),
    (["train", f"--config={EXPERIMENT}"], "--workdir is missing"),
    (["train", "--workdir=run", "--config.seed=1"], "--config is missing"),
    (["evaluate"], "--workdir is missing"),
    (["evaluate", "--workdir"], "missing value for flag --workdir"),
    (["evaluate", "run"], "unexpected argument 'run'"),
    (
      ["evaluate", "--workdir=run", "--splt=test"],
      "unknown flag --splt: did you mean --split=test?",
    ),
    (["evaluate", "--workdir=run", "--batch_size=abc"], "type int, not 'abc'"),
    (["train", "--confg=x"], "unknown flag --confg: did you mean --config=x?"),
    (["train", f"--config={EXPERIMENT}", "--workdir=run", "extra"], "unexpected argument 'extra'"),
    (["models", "nfnet_f0"], "unexpected argument 'nfnet_f0'"),
  ],
)
def test_words_that_are_not_understood(refused, tmp_path, monkeypatch, words, said):
  monkeypatch.chdir(tmp_path)
  line = refused(*words)
  assert list(tmp_path.iterdir()) == []
  assert said in line
  assert f"`nfnet-jax {words[0]} --help` lists the flags." in line


# Configs.


@pytest.mark.parametrize(
  ("content", "said"),
  [
    (None, "there is no config file"),
    ("def get_config(:\n", "SyntaxError: invalid syntax"),
    ("x = 1\n\nx.y\n", "config.py, line 3 fails with AttributeError: 'int'"),
    ("import nowhere\n", "line 1 fails with ModuleNotFoundError: No module named 'nowhere'"),
    ("x = 1\n", "needs a function get_config()"),
    ("import sys\nsys.exit('enough')\n", "line 2 fails with SystemExit: enough"),
    ("def get_config():\n  pass\n", "needs a function get_config()"),
    (
      "from ml_collections import ConfigDict\nget_config = ConfigDict\n",
      "needs a function get_config() that returns nfnet_jax.config.default() with changes",
    ),
    (
      "from nfnet_jax import config\ndef get_config():\n  c = config.default()\n  c.sed = 1\n",
      'line 4 fails with AttributeError: \'Key "sed" does not exist',
    ),
  ],
)
def test_config_files_that_give_no_config(refused_training, tmp_path, content, said):
  path = tmp_path / "config.py"
  if content is not None:
    path.write_text(content)
  line = refused_training(config=path)
  assert str(path) in line
  assert said in line


def test_a_variant_is_handed_to_the_config_file(tmp_path):
  path = tmp_path / "config.py"
  path.write_text(
    "from nfnet_jax import config\n"
    "def get_config(name='nfnet_f0'):\n"
    "  values = config.default()\n"
    "  values.model.name = name\n"
    "  return values\n"
  )
  assert config_file.read(str(path)).model.name == "nfnet_f0"
  assert config_file.read(f"{path}:nfnet_f3").model.name == "nfnet_f3"


def test_an_unknown_variant(refused_training):
  line = refused_training(config=ROOT / "experiments/imagenet_nfnet.py:F9")
  assert line.startswith("nfnet-jax: unknown variant 'F9': choose one of F0, ")


def test_values_from_the_command_line():
  config = config_file.override(
    config_lib.default(),
    [
      *("batch_size=32", "epochs=3", "data.flip=false", "model.widths=(8,16)", "data.dir=123"),
      *("data.train_split=train[:10%]", "model.alpha=0.5", "steps=7"),
    ],
  )
  assert (config.batch_size, config.epochs, config.data.flip) == (32, 3.0, False)
  assert (config.model.widths, config.model.alpha, config.steps) == ((8, 16), 0.5, 7)
  assert (config.data.dir, config.data.train_split) == ("123", "train[:10%]")
  assert config.seed == config_lib.default().seed


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ("batchsize=3", "unknown config key 'batchsize': did you mean batch_size?"),
    ("learning_rate=3", "did you mean optimizer.learning_rate?"),
    ("model=3", "unknown config key 'model'"),
    ("zzz=3", "unknown config key 'zzz': `nfnet-jax train --help` lists them all."),
    ("batch_size", "config key batch_size has no value: write --config.batch_size=VALUE."),
    ("batch_size=abc", "config key batch_size takes a value of type int, not 'abc'."),
    ("steps=1.5", "config key steps takes a value of type int, not '1.5'."),
    ("epochs=many", "config key epochs takes a value of type float, not 'many'."),
    ("data.flip=maybe", "config key data.flip takes a value of type bool, not 'maybe'."),
    ("batch_size=12", "batch_size=12 does not divide over 8 devices"),
    ("batch_size=0", "batch_size=0 must be at least 1."),
    ("batch_size=1440", "batch_size=1440 is too large for 1437 training images"),
    ("steps=0", "steps=0 must be at least 1."),
    ("optimizer.learning_rate=nan", "optimizer.learning_rate=nan must be finite."),
    ("optimizer.clipping=-1", "optimizer.clipping=-1.0 must be at least 0."),
    ("optimizer.clip=agcc", "unknown optimizer.clip='agcc': choose one of agc"),
    ("model.name=nfnet_f9", "unknown model 'nfnet_f9': did you mean nfnet_f"),
    ("model.name=resnet", "unknown model 'resnet': "),
    ("model.widths=abc", "abc"),
    ("model.widths=(4,4)", "fewer than one group of 8"),
    ("model.activation=gelo", "unknown model.activation='gelo': choose one of"),
    ("model.num_classes=11", "model.num_classes=11, but data set 'digits' has 10 classes"),
    ("accumulate=0", "accumulate=0 must be at least 1."),
    ("augment.randaugment_magnitude=21", "augment.randaugment_magnitude=21 must be at most 20."),
    ("augment.mixup_alpha=-1", "augment.mixup_alpha=-1.0 must be at least 0."),
    ("data.crop_area=0.5", "data.crop_area=(0.5,): give two numbers, 0 < low <= high."),
    ("data.crop_aspect=(a,b)", "data.crop_aspect takes a value of type tuple, not '(a,b)'."),
    ("data.name=a/b/c", "TFDS cannot open data set 'a/b/c'"),
    ("data.name=digit", "unknown data set 'digit': choose another, such as digits"),
    ("data.train_split=trian", "no split 'trian' in data set 'digits', which has"),
    ("data.test_split=validation", "no split 'validation' in data set 'digits', which has"),
  ],
)
def test_configs_that_make_no_run(refused_training, change, said):
  assert said in refused_training(change)


# Run directories.


def test_a_workdir_that_cannot_be_written(refused, digits, tmp_path):
  (tmp_path / "file").write_text("mine")
  for workdir in (tmp_path / "file", tmp_path / "file/run"):
    line = refused(*tiny_train(workdir, digits))
    assert f"cannot write run directory {workdir}: " in line
    assert "Choose another --workdir." in line
  assert (tmp_path / "file").read_text() == "mine"


def test_a_workdir_of_another_run(refused, resolved, digits, tmp_path):
  config_lib.save(resolved, tmp_path / "config.json")
  (tmp_path / "metrics.jsonl").write_text("{}")
  before = content_of(tmp_path)
  line = refused(*tiny_train(tmp_path, digits, "seed=3", "model.alpha=0.3", "log_every=7"))
  assert "(key: there, here): model.alpha: None, 0.3; seed: 0, 3. " in line
  assert content_of(tmp_path) == before


def test_another_folder_of_the_same_name(refused, resolved, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  workdir = tmp_path / "runs/finetune-pets"
  workdir.mkdir(parents=True)
  resolved.data.dir = "here/pets"
  config_lib.save(resolved, workdir / "config.json")
  before = content_of(tmp_path)
  words = [f"--config={ROOT}/experiments/finetune.py", f"--config.init.weights={tmp_path}"]
  line = refused("train", *words, "--config.data.dir=there/pets")
  assert "runs/finetune-pets holds a run on the images in here/pets, not there/pets: " in line
  assert content_of(tmp_path) == before
  for same in ("here/pets/", tmp_path / "here/pets"):
    assert "holds a run on" not in refused("train", *words, f"--config.data.dir={same}")


def test_a_workdir_with_results_but_no_config(refused, digits, tmp_path):
  (tmp_path / "metrics.jsonl").write_text("{}")
  line = refused(*tiny_train(tmp_path, digits))
  assert f"{tmp_path} holds results but no config.json" in line
  assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_a_checkpoint_of_another_model(refused, resolved, digits, tmp_path, verb):
  config_lib.save(resolved, tmp_path / "config.json")
  save_checkpoint(tmp_path, {"w": jnp.zeros(3)})
  before = content_of(tmp_path)
  words = {
    "train": tiny_train(tmp_path, digits),
    "evaluate": ["evaluate", f"--workdir={tmp_path}"],
  }
  line = refused(*words[verb])
  assert f"checkpoint {tmp_path}/checkpoints/1 belongs to another model: " in line
  assert content_of(tmp_path) == before


def test_evaluating_what_is_no_run(refused, resolved, tmp_path):
  line = refused("evaluate", f"--workdir={tmp_path}")
  assert f"{tmp_path} is not a run directory: it has no config.json." in line
  config_lib.save(resolved, tmp_path / "config.json")
  line = refused("evaluate", f"--workdir={tmp_path}")
  assert f"{tmp_path} holds no checkpoint yet" in line
  assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
  ("flag", "said"),
  [
    ("--split=valid", "no split 'valid' in data set 'digits'"),
    ("--batch_size=12", "batch_size=12 does not divide over 8 devices"),
    ("--batch_size=0", "--batch_size=0 must be at least 1."),
    ("--out=no/folder/p.csv", "cannot write no/folder/p.csv: it must be a file in a folder"),
  ],
)
def test_evaluating_as_it_cannot_be(refused, resolved, tmp_path, flag, said):
  config_lib.save(resolved, tmp_path / "config.json")
  assert said in refused("evaluate", f"--workdir={tmp_path}", flag)


# Images.


def test_a_data_set_without_images(refused_training, tmp_path):
  for split in ("train", "test"):
    (tmp_path / split / "cat").mkdir(parents=True)
  line = refused_training("data.name=folder", f"data.dir={tmp_path}")
  assert f"no images in {tmp_path}/train" in line


@pytest.mark.slow
def test_training_on_a_damaged_image(refused, tmp_path):
  data_examples.write_folder(tmp_path / "images", num_train=16)
  bad = tmp_path / "images/train/b/4.PNG"
  bad.write_bytes(bad.read_bytes()[:40])
  changes = ["data.name=folder", "data.max_corrupt=0"]
  line = refused(*tiny_train(tmp_path / "run", tmp_path / "images", *changes))
  assert f"cannot read image {bad}: " in line
  assert "Remove or replace the file." in line


@pytest.mark.slow
def test_evaluating_on_a_damaged_image(refused, resolved, tmp_path):
  data_examples.write_folder(tmp_path / "images", num_train=16)
  bad = tmp_path / "images/test/b/1.PNG"
  bad.write_bytes(b"no image")
  with resolved.unlocked():
    resolved.data.name, resolved.data.dir = "folder", str(tmp_path / "images")
    resolved.model.num_classes = 3
  (tmp_path / "run").mkdir()
  config_lib.save(resolved, tmp_path / "run/config.json")
  save_checkpoint(tmp_path / "run", build(resolved).init())
  line = refused("evaluate", f"--workdir={tmp_path}/run")
  assert f"cannot read image {bad}: " in line


def test_evaluating_on_data_of_other_classes(refused, resolved, tmp_path):
  data_examples.write_folder(tmp_path / "images")
  config = json.loads(json.dumps(resolved.to_dict()))
  config["data"] |= {"name": "folder"}
  (tmp_path / "config.json").write_text(json.dumps(config))
  line = refused("evaluate", f"--workdir={tmp_path}", f"--data_dir={tmp_path}/images")
  assert f"the run in {tmp_path} has 10 classes, but data set 'folder' has 3" in line
