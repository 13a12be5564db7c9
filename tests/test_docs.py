"""README and docs: snippets run, commands parse, links and pictures exist."""

import pathlib
import re
import shlex

import pytest

from nfnet_jax.cli import config_file
from nfnet_jax.cli.arguments import parse

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "experiments/README.md"])


def blocks(page, language):
  fences = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
  return [text for name, text in fences if name == language]


def commands():
  """The words of every `nfnet-jax` command in a code block."""
  for page in PAGES:
    for line in "".join(blocks(page, "")).replace("\\\n", " ").splitlines():
      line = re.sub("^python -m nfnet_jax ", "nfnet-jax ", line)
      if line.startswith("nfnet-jax ") and "VERB" not in line:
        _, *words = shlex.split(line.partition(">>")[0], comments=True)
        yield pytest.param(words, id=f"{page.name}: {' '.join(words)[:60]}")


def test_snippets_of_the_readme_run():
  snippets = blocks(ROOT / "README.md", "python")
  assert len(snippets) >= 3
  # The smallest network in place of F0, which takes a minute to compile.
  program = "\n".join(snippets).replace('"nfnet_f0"', '"nfnet_micro"').replace("64, 64", "32, 32")
  names = {}
  exec(compile(program, "README.md", "exec"), names)
  assert names["logits"].shape == (8, 1000)
  assert int(names["train_state"].step) == 1


@pytest.mark.parametrize("words", list(commands()))
def test_commands_parse(words, monkeypatch):
  monkeypatch.chdir(ROOT)
  verb = " ".join(words[:2]) if words[0] == "benchmark" else words[0]
  values = parse(verb, words[len(verb.split()) :], about="", positional=words[0] == "predict")
  path = getattr(values, "config", None)
  if path and str(path).startswith("experiments/"):
    config_file.load(path, values.changes)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
  links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
  local = [link for link in links if "://" not in link]
  assert [link for link in local if not (page.parent / link).exists()] == []
