"""An extension of Griffe: examples in docstrings become blocks of code."""

import re
from typing import Any

import griffe

# Lines from `>>> ` to the next empty one, indented alike.
_EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.MULTILINE)


class Examples(griffe.Extension):
  """Fences the examples of every docstring, which Markdown takes for quotations otherwise."""

  def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
    """Called for every module, class and function."""
    if obj.docstring:
      obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
  """A docstring with its examples as blocks of code."""
  return _EXAMPLE.sub(
    lambda example: f"\n{example[1]}```pycon\n{example[0]}\n{example[1]}```\n", text
  )
