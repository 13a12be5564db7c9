"""Turns the notebook, with the outputs that are stored in it, into a page."""

import pathlib
from typing import Any

import nbconvert

_START = (
  "!!! note\n    This page is a notebook: [quickstart.ipynb](quickstart.ipynb). A test runs it.\n\n"
)


def page(path: pathlib.Path) -> tuple[str, dict[str, Any]]:
  """The notebook as Markdown, and the pictures that it names, by file name."""
  exporter = nbconvert.MarkdownExporter()
  text, resources = exporter.from_filename(
    str(path), resources={"output_files_dir": f"{path.stem}_files", "unique_key": path.stem}
  )
  title, _, rest = text.lstrip().partition("\n")
  return f"{title}\n\n{_START}{rest}", resources["outputs"]
