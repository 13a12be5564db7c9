"""The pages that are made while the site is built: nothing is left out, and every link leads on."""

import re

import pytest

import nfnet_jax
from nfnet_jax.cli.flags import EXAMPLES, FLAGS
from nfnet_jax.cli.verbs import VERBS
from nfnet_jax.config.keys import KEYS
from nfnet_jax.config.values import Key
from nfnet_jax.models import MODELS
from nfnet_jax.models.num_params import NUM_PARAMS
from nfnet_jax.weights import accuracy
from tests.docs.generators import ROOT, load

PAGES = load("generated").pages()
# Pages of the site as they are written, and those that are made. The notebook is one of both.
WRITTEN = {f"docs/{path.name}": path.read_text() for path in (ROOT / "docs").glob("*.md")}
MADE = {f"docs/{uri}": text for uri, text in PAGES.items()}


def headings(text, level=2):
  """Titles without code marks and anchors, in order."""
  found = re.findall(rf"^{'#' * level} `?(.+?)`?(?: {{ #[\w.-]+ }})?$", text, re.MULTILINE)
  return [title.strip("`") for title in found]


def test_every_key_of_a_config_has_an_entry():
  page = PAGES["reference/configuration.md"]
  assert sorted(headings(page, level=3)) == sorted(KEYS)
  for name, key in KEYS.items():
    _, _, text = page.partition(f"### `{name}` ")
    entry = text.split("\n\n")[1].replace("\\", "")
    assert entry.startswith(key.help)
    if key.default is not None and key.kind is not bool:
      assert f"Default: {key.default}." in entry


def test_what_markdown_would_read_as_markup_is_shown_as_it_is():
  entry = load("configuration").entry("a.b", Key(None, str, "see `c_d`: (('.*/x_.*', 0)) <e>"), 3)
  assert entry == "### `a.b` { #a-b }\n\nsee `c_d`: (('.\\*/x\\_.\\*', 0)) \\<e\\>"


def test_every_verb_and_flag_has_an_entry():
  page = PAGES["reference/commands.md"]
  assert headings(page) == list(FLAGS)
  assert {title.split()[0] for title in headings(page)} == set(VERBS)
  for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
    verb = part.splitlines()[0]
    assert headings(part, level=3) == [f"--{flag}" for flag in FLAGS[verb]]
    assert f"```text\nnfnet-jax {verb}" in part
    assert all(line in part for line in EXAMPLES.get(verb, ()))
    assert VERBS[verb.split()[0]].__doc__ in part


def test_every_network_has_a_card():
  cards = [PAGES[f"networks/{family.page}.md"] for family in load("families").FAMILIES]
  assert sorted(title for card in cards for title in headings(card)) == sorted(MODELS)
  for name in MODELS:
    [card] = [card for card in cards if f"\n## {name} {{" in card]
    text = card.split(f"\n## {name} {{")[1].split("\n## ")[0]
    assert f"{NUM_PARAMS[name]:,} with 1,000 classes" in text
    found = accuracy.published(name)
    assert all(f"| {row.top1:g} | " in text and row.source in text for row in found)
    assert ("No accuracy is published." in text) == (not found)
  measured = {name for name in MODELS if "measured" in str(accuracy.published(name))}
  assert set(load("families").WEIGHTS) == measured
  for card in cards:
    assert all(f"**{part}:**" in card for part in ("Made for", "Weights", "Licence", "Limits"))


def test_figures_on_the_cards():
  """As in the paper's table 3, and as measured by timm."""
  card = PAGES["networks/nfnet.md"].split("\n## ")[6]
  assert card.startswith("nfnet_f5 ")
  for figure in (
    *("377,214,144", "290 G at 544 pixels", "416 pixels in training", "F5_haiku.npz"),
    *("| ImageNet | 86 | 97.6 |", "| ImageNet | 86.3 | 97.9 |", "| ImageNet | 86.102 | 97.688 |"),
  ):
    assert figure in card
  index = PAGES["networks/index.md"]
  assert "| 377.21 M | 290 G | 416 | 544 | 86.0 | yes |" in index
  assert "(nfnet_plus.md#nfnet_f4-plus) | 524.95 M | 333 G | 384 | 512 | 89.2 † | no |" in index
  assert "| 8.60 M | 0.444 G | 192 | 224 | 77.0 | no |" in index


def test_every_room_of_the_interface_has_a_page():
  rooms = load("interface").ROOMS
  assert set(rooms) - {"nfnet_jax"} == {*nfnet_jax._SUBMODULES} - {"cli", "errors", "cpu_memory"}
  for room, modules in rooms.items():
    named = re.findall(r"^::: (\S+)$", PAGES[f"reference/api/{room}.md"], re.MULTILINE)
    assert named == list(modules)
    paths = [ROOT / module.replace(".", "/") for module in modules]
    assert [p for p in paths if not (p.is_dir() or p.with_suffix(".py").exists())] == []


def test_examples_of_docstrings_become_code():
  docstrings = load("docstrings")
  text = "Doubles.\n\n>>> double(1)\n2\n>>> double(\n...   2)\n4\n"
  text += "\nArgs:\n  a, *b: numbers,\n    or none.\n"
  assert docstrings.fenced(text) == (
    "Doubles.\n\n\n```pycon\n>>> double(1)\n2\n>>> double(\n...   2)\n4\n```\n\n\n"
    "Args:\n  a, *b: numbers,\n    or none.\n"
  )
  assert docstrings.separated(text).endswith(
    "Args:\n  a: numbers,\n    or none.\n  *b: numbers,\n    or none.\n"
  )


@pytest.mark.parametrize("here", [*WRITTEN, *MADE])
def test_links_lead_somewhere_on_the_site(here):
  links = load("links")
  text = links.include((WRITTEN | MADE)[here], here, ROOT)
  there = [target for target in links.targets(text, here) if target not in MADE]
  assert [target for target in there if not (ROOT / target).exists()] == []


def test_links_are_rewritten_for_the_site():
  links = load("links")
  text = (
    "[a](../experiments/README.md#x) [b](files.md) [c](https://d.e) [f](quickstart.ipynb) [g](#h)"
  )
  expected = (
    "[a](experiments/README.md#x) [b](files.md) [c](https://d.e) [f](quickstart.md) [g](#h)"
  )
  assert links.rewrite(text, "docs/pods.md") == expected
  assert links.rewrite("[a](../docs/pods.md) ![b](c.png)", "experiments/README.md") == (
    "[a](../pods.md) ![b](c.png)"
  )
  assert (
    links.rewrite("[a](../../README.md)", "experiments/speed/notes.md") == "[a](../../index.md)"
  )


def test_files_outside_of_docs_belong_to_the_site():
  found = load("links").outside(ROOT)
  assert {"CHANGELOG.md", "experiments/README.md", "experiments/speed/results.md"} <= set(found)
  assert [path for path in found if path.startswith("docs/") or path == "README.md"] == []


def test_sections_of_the_readme_are_filled_in():
  links = load("links")
  text = links.include("a\n\n<!-- README: Questions -->\n", "docs/faq.md", ROOT)
  assert "**Why Haiku?**" in text
  assert "## " not in text
  differences = links.include(
    "<!-- README: Differences from the published code -->", "docs/faq.md", ROOT
  )
  assert "[docs/pods.md](pods.md)" in differences
  with pytest.raises(ValueError, match=r"docs/faq\.md: the README has no section 'Answers'"):
    links.include("<!-- README: Answers -->", "docs/faq.md", ROOT)


def test_every_page_is_in_the_navigation():
  navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
  listed = re.findall(r"([\w/]+\.md)\b", navigation)
  pages = {path.removeprefix("docs/") for path in (*WRITTEN, *MADE)} | {"quickstart.md"}
  assert pages <= set(listed)
  assert len(listed) == len(set(listed))
