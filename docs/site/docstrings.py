"""The docstrings of this package in the form that mkdocstrings understands."""

import re

# Lines from `>>> ` to the next empty one, indented alike.
_EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.MULTILINE)
# `a, b: text` in a section such as Args, with the further lines of its text.
_SEVERAL = re.compile(r"^(  +)(\*{0,2}\w+(?:, \*{0,2}\w+)+): (.*(?:\n\1 +.*)*)", re.MULTILINE)


def fenced(text: str) -> str:
  """A docstring with its examples as blocks of code; Markdown takes them for quotations."""
  return _EXAMPLE.sub(
    lambda example: f"\n{example[1]}```pycon\n{example[0]}\n{example[1]}```\n", text
  )


def separated(text: str) -> str:
  """A docstring in which names that share a text, `a, b: text`, each have it for themselves."""
  return _SEVERAL.sub(
    lambda item: "\n".join(f"{item[1]}{name}: {item[3]}" for name in item[2].split(", ")), text
  )
