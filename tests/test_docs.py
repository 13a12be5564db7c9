"""README, docs and docstrings: snippets run, commands parse, links and pictures exist."""

import ast
import doctest
import importlib
import pathlib
import re
import shlex

import jax
import numpy as np
import onnxruntime
import pytest

import nfnet_jax
from nfnet_jax.cli import config_file
from nfnet_jax.cli.arguments import parse
from nfnet_jax.inference import onnx_graph
from nfnet_jax.training import fitting

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "experiments/README.md"])
RUNS = sorted((ROOT / "experiments").glob("*.py"))
MODULES = sorted((ROOT / "nfnet_jax").rglob("*.py"))


def fences(text, language):
  found = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
  return [block for name, block in found if name == language]


def docstrings(path):
  kinds = ast.Module | ast.ClassDef | ast.FunctionDef
  nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
  return "\n".join(ast.get_docstring(node) or "" for node in nodes)


def commands():
  """The words of every `nfnet-jax` command in a code block, and in a run's docstring."""
  texts = [(page, "".join(fences(page.read_text(), ""))) for page in PAGES]
  for path, text in [*texts, *((path, docstrings(path)) for path in RUNS)]:
    for line in text.replace("\\\n", " ").splitlines():
      line = re.sub("^python -m nfnet_jax ", "nfnet-jax ", line.strip())
      if line.startswith("nfnet-jax ") and "VERB" not in line:
        _, *words = shlex.split(line.partition(">>")[0], comments=True)
        yield pytest.param(words, id=f"{path.name}: {' '.join(words)[:60]}")


@pytest.mark.slow
def test_snippets_of_the_readme_run():
  snippets = fences((ROOT / "README.md").read_text(), "python")
  assert len(snippets) >= 3
  # The smallest network in place of F0, which takes a minute to compile.
  program = "\n".join(snippets).replace('"nfnet_f0"', '"nfnet_micro"').replace("64, 64", "32, 32")
  names = {}
  exec(compile(program, "README.md", "exec"), names)
  assert names["logits"].shape == (8, 1000)
  assert int(names["train_state"].step) == 1


def test_the_snippet_of_fine_tuning_makes_its_photographs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  [snippet] = fences((ROOT / "docs/finetuning.md").read_text(), "python")
  exec(compile(snippet, "finetuning.md", "exec"), {})
  assert [len(list(tmp_path.glob(f"photos/{name}/*.jpg"))) for name in ("china", "flower")] == [
    150
  ] * 2


@pytest.mark.slow
def test_snippets_of_the_recipes_run(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  names = {}
  for snippet in fences((ROOT / "docs/recipes.md").read_text(), "python"):
    exec(compile(snippet, "recipes.md", "exec"), names)
  said = capsys.readouterr().out.splitlines()
  classes = [line.partition("images/")[2].split(" ") for line in said[:2]]
  assert [name for name, _ in classes] == ["china.jpg", "flower.jpg"]
  assert {found for _, found in classes} <= {"china", "flower"}
  assert said[2].endswith("[(64, 4), (128, 8), (256, 16)]")
  assert 0 < float(said[3]) <= 1
  assert float(names["loss"]) == pytest.approx((16 + 17 * 0.05 / 170**0.5) ** 2)  # moved by rho
  assert names["grads"]["head"]["w"].shape == (16, 10)


def test_no_other_page_has_snippets():
  pages = {page.name for page in PAGES if fences(page.read_text(), "python")}
  assert pages == {"README.md", "finetuning.md", "recipes.md"}, "have a test run them"


def modules_with_examples():
  for path in MODULES:
    if ">>> " in path.read_text():
      name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
      # A network is compiled.
      compiles = name in ("nfnet_jax.models", "nfnet_jax.models.propagation")
      marks = [pytest.mark.slow] if compiles else []
      yield pytest.param(name, docstrings(path).count(">>> "), id=name, marks=marks)


@pytest.mark.parametrize(("name", "examples"), list(modules_with_examples()))
def test_examples_of_docstrings_run(name, examples):
  outcome = doctest.testmod(importlib.import_module(name))
  assert (outcome.failed, outcome.attempted) == (0, examples)


def test_no_other_docstring_has_snippets():
  with_fences = {path.name for path in MODULES if "```" in path.read_text()}
  assert with_fences == {"export.py", "fitting.py"}, "have a test run them"


def snippets_of(name):
  return fences(docstrings(ROOT / "nfnet_jax" / name), "")


def test_snippets_of_exported_files_run(tmp_path):
  """The files hold a function that doubles its images."""

  def double(images):
    return 2 * images

  images = np.ones((3, 2, 2, 3), np.float32)
  exported = jax.export.export(jax.jit(double))(jax.ShapeDtypeStruct(images.shape, "float32"))
  files = {
    "predict": exported.serialize(),
    "logits": onnx_graph.build(double, (2, 2, 3), "logits").SerializeToString(),
  }
  names = {"jax": jax, "onnxruntime": onnxruntime, "pathlib": pathlib, "images": images}
  snippets = snippets_of("inference/export.py")
  for snippet, (name, content) in zip(snippets, files.items(), strict=True):
    names["out"] = tmp_path / name
    names["out"].write_bytes(content)
    exec(compile(snippet, name, "exec"), names)
  np.testing.assert_array_equal(names["predict"](images), 2 * images)
  np.testing.assert_array_equal(names["logits"], 2 * images)


def test_snippet_of_training_runs(monkeypatch):
  """All but the loop."""
  monkeypatch.setattr(fitting, "run", lambda config, workdir, data, **_: {"run": (config, data)})
  names = {"nfnet_jax": nfnet_jax}
  names |= dict.fromkeys(("images", "test_images"), np.zeros((4, 8, 8, 3), np.uint8))
  names |= dict.fromkeys(("labels", "test_labels"), np.arange(4))
  [snippet] = snippets_of("training/fitting.py")
  exec(compile(snippet, "fitting.py", "exec"), names)
  config, data = names["metrics"]["run"]
  assert (config.model.name, config.batch_size, config.epochs) == ("nfnet_micro", 32, 5)
  assert (data["train"], data["test"]) == (names["train"], names["test"])
  assert names["workdir"] == pathlib.Path("runs/mine")


@pytest.mark.parametrize("words", list(commands()))
def test_commands_parse(words, monkeypatch):
  monkeypatch.chdir(ROOT)
  verb = " ".join(words[:2]) if words[0] == "benchmark" else words[0]
  values = parse(
    verb, words[len(verb.split()) :], about="", positional=words[0] in ("predict", "report")
  )
  path = getattr(values, "config", None)
  if path and str(path).startswith("experiments/"):
    config_file.load(path, values.changes)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
  links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
  local = [link for link in links if "://" not in link]
  # Pages that are made while the site is built; tests/docs/test_pages.py has their links.
  local = [link for link in local if not link.startswith(("reference/", "networks/"))]
  assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [*PAGES, *RUNS], ids=lambda page: page.name)
def test_files_that_are_named_are_there(page):
  names = re.findall(r"\b(?:docs|experiments|nfnet_jax|tests)/[\w/]+\.\w+\b", page.read_text())
  written = {"experiments/plan/plans.jsonl", "experiments/figures/NAME.py"}
  assert [name for name in names if name not in written and not (ROOT / name).exists()] == []
