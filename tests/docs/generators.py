"""The scripts that make pages of the site; they import each other by their own names."""

import importlib
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[2]


def load(name):
  """A module of docs/site/."""
  if (folder := str(ROOT / "docs/site")) not in sys.path:
    sys.path.append(folder)
  return importlib.import_module(name)
