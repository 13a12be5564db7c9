"""An extension of Griffe, which reads the docstrings for mkdocstrings."""

import pathlib
import sys
from typing import Any

import griffe

sys.path.append(str(pathlib.Path(__file__).parent))

from docstrings import fenced, separated


class Docstrings(griffe.Extension):
  """Rewrites every docstring before it is parsed."""

  def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
    """Called for every module, class and function."""
    if obj.docstring:
      obj.docstring.value = separated(fenced(obj.docstring.value))
