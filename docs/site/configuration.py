"""Writes the page on the keys of a config from the table in `nfnet_jax/config/keys.py`."""

import re
from collections.abc import Mapping

from nfnet_jax.cli.arguments import limits
from nfnet_jax.config.keys import KEYS
from nfnet_jax.config.values import Key

_SECTIONS = {
  "": "The run",
  "model": "Network",
  "init": "Start",
  "data": "Data",
  "augment": "Augmentation",
  "optimizer": "Optimizer",
  "sam": "SAM",
}

_START = """# Configuration

Every key of a run's config. A config file sets them in Python, `config.model.name = "nfnet_f0"`,
and the command line with `--config.KEY=VALUE`, as in `--config.model.name=nfnet_f0`. Keys without a
default are open: their values follow from others, see [Configs](../command_line.md#configs).
`nfnet-jax train --help` prints the same table.
"""


def page(keys: Mapping[str, Key] = KEYS) -> str:
  """The page as Markdown, with a heading for each key.

  Args:
    keys: by dotted name. A key of a section that has no title here is under the section's name.
  """
  by_section: dict[str, list[str]] = {}
  for name, key in keys.items():
    section = name.rpartition(".")[0]
    by_section.setdefault(section, []).append(entry(name, key, level=3))
  parts = [_START]
  for section, entries in by_section.items():
    parts += [f"## {_SECTIONS.get(section, section)}", *entries]
  return "\n\n".join(parts) + "\n"


def entry(name: str, key: Key, level: int, anchor: str = "") -> str:
  """A heading with the name, and a paragraph with the meaning, the default and the bounds."""
  anchor = anchor or name.replace(".", "-")
  meaning = " ".join([key.help, *limits(key)])
  return f"{'#' * level} `{name}` {{ #{anchor} }}\n\n{_literal(meaning)}"


def _literal(text: str) -> str:
  """Text in which Markdown's own characters stand for themselves, except in `code`."""
  parts = text.split("`")
  parts[::2] = [re.sub(r"([\\*_<>\[\]{}#])", r"\\\1", part) for part in parts[::2]]
  return "`".join(parts)
