"""Arguments of the command line: how they are parsed, and how invalid ones are refused."""

import json
import pathlib
import random

import pytest

import nfnet_jax
from nfnet_jax import benchmark, inference, plan, weights
from nfnet_jax import config as config_lib
from nfnet_jax.__main__ import main
from nfnet_jax.cli.arguments import given, parse
from nfnet_jax.cli.flags import EXAMPLES, FLAGS
from nfnet_jax.cli.verbs import VERBS
from nfnet_jax.config import keys as keys_lib
from nfnet_jax.config.keys import KEYS
from nfnet_jax.errors import RequestError
from nfnet_jax.inference import evaluate, export, predict
from nfnet_jax.training import loop

EXPERIMENT = pathlib.Path(__file__).parents[2] / "experiments/digits.py"


def parsed(verb, *words, positional=False):
  return parse(verb, words, about="", positional=positional)


def refusal(verb, *words, **kwargs):
  with pytest.raises(RequestError) as caught:
    parsed(verb, *words, **kwargs)
  return str(caught.value)


# What is understood.


@pytest.mark.parametrize(
  "words",
  [
    ["--top=3", "--weights=w.npz", "--force", "a.jpg", "b"],
    ["--top", "3", "--weights", "w.npz", "--force=true", "a.jpg", "b"],
    ["a.jpg", "-top=3", "b", "--weights=w.npz", "--force"],
    ["--noforce", "--top=1", "--top=3", "--weights=w.npz", "--force", "--", "a.jpg", "b"],
  ],
)
def test_flags_come_in_any_form_and_order(words):
  values = parsed("predict", *words, positional=True)
  assert given(values) == {"top": 3, "weights": "w.npz", "force": True}
  assert values.paths == ["a.jpg", "b"]


def test_changes_of_a_config_come_in_both_forms():
  words = ["--config.epochs", "3", "--config=x.py", "--config.data.flip=false"]
  values = parsed("train", *words, "--config.optimizer.learning_rate", "-1", "--workdir=run")
  assert values.changes == ["epochs=3", "data.flip=false", "optimizer.learning_rate=-1"]
  assert (values.config, values.workdir) == ("x.py", "run")
  assert parsed("train", "--config.epochs", "--workdir=run").changes == ["epochs"]  # refused later


def test_home_is_found_in_every_path(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  for verb, flags in FLAGS.items():
    for name, key in flags.items():
      if key.kind is pathlib.Path:
        assert getattr(parsed(verb, f"--{name}=~/x"), name) == "/home/me/x"
        assert getattr(parsed(verb, f"--{name}", "~"), name) == "/home/me"
  assert parsed("predict", "~/x.jpg", positional=True).paths == ["/home/me/x.jpg"]


def test_networks_go_by_other_names():
  assert parsed("convert", "--model=dm_nfnet_f3").model == "nfnet_f3"


# What is not.


@pytest.mark.parametrize(
  ("verb", "word", "said"),
  [
    ("train", "--epochs=3", "did you mean --config.epochs=3?"),
    ("plan", "--learning_rate=3", "did you mean --config.optimizer.learning_rate=3?"),
    ("benchmark train", "--data.name=x", "did you mean --config.data.name=x?"),
    ("train", "--epoch=3", "did you mean --config.epochs=3?"),
    ("train", "--work-dir=x", "did you mean --workdir=x?"),
    ("evaluate", "--batch-size=8", "did you mean --batch_size=8?"),
    ("evaluate", "--config.epochs=3", "unknown flag --config.epochs"),
    ("predict", "--no-force", "did you mean --force?"),
    ("predict", "--zzz", "unknown flag --zzz: `nfnet-jax predict --help` lists the flags."),
    ("train", "--noconfig.data.flip", "did you mean --config.data.flip"),
  ],
)
def test_unknown_flags_name_the_nearest(verb, word, said):
  assert said in refusal(verb, word)


@pytest.mark.parametrize(
  ("verb", "word", "said"),
  [
    ("predict", "--top=0", "--top=0 must be at least 1."),
    ("predict", "--top=١٢", "--top takes a value of type int, not '١٢'."),
    ("predict", "--top=" + "9" * 30, "must be at most 1048576."),
    ("predict", "--top=" + "9" * 5000, "--top takes a value of type int, not '999"),
    ("predict", "--size=0", "--size=0 must be at least 1."),
    ("predict", "--force=maybe", "--force takes a value of type bool, not 'maybe'."),
    ("predict", "--num_classes=-1", "--num_classes=-1 must be at least 1."),
    ("evaluate", "--batch_size=4294967296", "must be at most 1048576."),
    ("evaluate", "--join_timeout=nan", "--join_timeout=nan must be finite."),
    ("evaluate", "--numerics=tim", "unknown --numerics='tim': choose one of published, timm."),
    ("benchmark input", "--batches=4", "--batches=4 must be at least 5."),
    ("benchmark train", "--steps=0", "--steps=0 must be at least 1."),
    ("benchmark train", "--dtype=float8", "unknown --dtype='float8': choose one of"),
    ("train", "--workdir=", "--workdir='' is empty"),
    ("train", "--workdir=a\0b", "holds a NUL character."),
    ("train", "--workdir=" + "x" * 250, "is too long"),
    ("train", "--workdir=" + "x/" * 3000, "is too long"),
    ("train", "--workdir=~nobody_of_that_name/x", "names an unknown user's home: write ./~nobody"),
    ("train", "--workdir", "missing value for flag --workdir"),
    ("export", "--model=nfnet_f9", "unknown model 'nfnet_f9': did you mean nfnet_f"),
  ],
)
def test_values_out_of_bounds(verb, word, said):
  line = refusal(verb, word)
  assert said in line
  assert len(line) < 400


def test_a_missing_value_is_not_the_next_flag():
  assert "missing value for flag --workdir" in refusal("train", "--workdir", "--config=x.py")


# Help.


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_complete_and_readable(capsys, verb):
  with pytest.raises(SystemExit):
    main([verb, "--help"])
  out = capsys.readouterr().out
  assert max(map(len, out.splitlines())) <= 100
  words = " ".join(out.split())
  tables = [table for name, table in FLAGS.items() if name.partition(" ")[0] == verb]
  for table in tables:
    for name, key in table.items():
      assert f"--{name} {key.help}" in words
  if verb == "train":
    for name, key in KEYS.items():
      default = [] if key.default is None else ["Default: " + str(key.default).lower()]
      assert " ".join([name, key.help, *default]) in words.replace("True", "true")
    assert len([line for line in EXAMPLES["train"] if line.startswith("nfnet-jax")]) == 2


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_understood(name):
  for command in " ".join(EXAMPLES[name]).replace("\\", " ").split("nfnet-jax ")[1:]:
    words = command.split()[len(name.split()) :]
    parse(name, words, about="", positional=name in ("predict", "report"))


# Whatever is typed.

VALUES = (
  *("", "0", "-1", "3", "64", "١٢", "1e999", "nan", "-inf", "-0.0", "9" * 400, "1" * 5000, "0x10"),
  *("a\0b", "é", "\udcff", "a" * 300, "a/" * 2000, "~", "~/x", "~nobody/x", "(1,2)", "((", "true"),
  *(
    "nfnet_f0",
    "NFNet-F0",
    "x.npz",
    "..",
    "/",
    "/dev/null",
    "/proc/self/mem",
    "F0",
    "-",
    "=",
    "%s",
  ),
  *("gpu:h200x", "gpu:h200x8", "v4:2x2x1", "v4:²", "localhost:1", "localhost:١٢", "folder", "{}"),
  *("[0.1]", "\\", "a\nb", "timm", "float8", "bfloat16", "🙂", str(EXPERIMENT), f"{EXPERIMENT}:F0"),
)
TABLE = {"zzz": KEYS["seed"], "config.": KEYS["seed"], "config.zzz": KEYS["seed"]}
TABLE |= {name: key for flags in FLAGS.values() for name, key in flags.items()}


def accepted(key):
  """A value that a key or flag takes."""
  if key.type in (int, float, bool, tuple):
    return str(key.default or {bool: "true", tuple: "(1,1)"}.get(key.type, key.least))
  return key.choices[0] if key.choices else "nfnet_micro"


def random_line(rng):
  """A verb with what it needs, and up to five more words: some right, some of another verb."""
  verb = rng.choice([*FLAGS, *FLAGS, *FLAGS, rng.choice(VALUES)])
  flags, nasty = FLAGS.get(verb, {}), rng.random() < 0.7
  words = verb.split(" ")
  for name in ("config", "workdir", "weights", "out", "model", "topology"):
    if name in flags and rng.random() < 0.9:
      words += [
        f"--{name}={EXPERIMENT}" if name == "config" else f"--{name}={accepted(flags[name])}"
      ]
  keys_ = {f"config.{name}": key for name, key in KEYS.items()} if "config" in flags else {}
  for _ in range(rng.randrange(5)):
    table = rng.choice([flags, keys_ or flags, TABLE if nasty else flags]) or TABLE
    name = rng.choice(list(table))
    value = rng.choice(VALUES) if nasty and rng.random() < 0.5 else accepted(table[name])
    forms = [[f"--{name}={value}"], [f"--{name}", value], [f"-{name}={value}"]]
    words += rng.choice(forms + [[f"--no{name}"], [value]] * nasty)
  return words


@pytest.fixture
def calls(monkeypatch):
  """What the command line asks of the library, which does nothing here."""
  made = []

  def stub(module, name, result):
    def called(*args, **kwargs):
      made.append((name, args, kwargs))
      return result

    monkeypatch.setattr(module, name, called)

  for module, name, result in (
    *((loop, "run", {}), (evaluate, "evaluate_workdir", {}), (evaluate, "evaluate_weights", {})),
    *((predict, "run", [{}]), (weights, "convert", {}), (export, "export", {})),
    *((benchmark, f"measure_{kind}", {}) for kind in ("input", "train", "predict")),
    *((plan, "plan", {}), (plan, "report", "report")),
  ):
    stub(module, name, result)
  monkeypatch.setattr("jax.distributed.initialize", lambda *_, **__: 1 / 0)
  return made


def test_no_command_line_ends_in_a_traceback(calls, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  assert inference  # imported, so that its parts can be replaced
  rng = random.Random(0)
  done = 0
  for _ in range(600):
    words = random_line(rng)
    try:
      status = main(words)
    except SystemExit as stopped:  # help
      status = stopped.code or 0
    except BaseException as error:
      raise AssertionError(words) from error
    out, err = capsys.readouterr()
    assert status in (0, 2), words
    if status == 2 and words[0] != "":
      assert len(err.splitlines()) == 1, (words, err)
      assert err.startswith("nfnet-jax: "), words
      assert len(err) < 2000, words
      assert out == "", words
    elif not words[0].startswith("models"):
      done += 1
      assert all(json.loads(line) == {} for line in out.splitlines()), words
  assert list(tmp_path.iterdir()) == []
  assert 40 < done < 560
  for name, args, _ in calls:
    if name in ("run", "measure_train", "measure_input", "plan") and len(args) > 1:
      assert keys_lib.problems(config_lib.flatten(args[0].to_dict())) == []


def test_version(capsys):
  assert main(["--version"]) == 0
  assert capsys.readouterr().out == f"nfnet_jax {nfnet_jax.__version__}\n"
