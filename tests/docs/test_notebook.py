"""The notebook runs from its first cell to its last, and is stored with what it shows."""

import nbclient
import nbformat
import pytest

from tests.docs.generators import ROOT

PATH = ROOT / "docs/quickstart.ipynb"


def shown(cell):
  """The kinds of a cell's outputs, and the lines that it prints."""
  kinds = sorted(kind for output in cell.outputs for kind in output.get("data", ()))
  streams = [output for output in cell.outputs if output.output_type == "stream"]
  return kinds, {output.name for output in streams}, "".join(each.text for each in streams)


def stored():
  notebook = nbformat.read(PATH, 4)
  return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebook_is_stored_with_its_outputs():
  notebook, cells = stored()
  nbformat.validate(notebook)
  assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
  assert sum("image/png" in shown(cell)[0] for cell in cells) >= 5
  assert all(shown(cell)[1] <= {"stdout"} for cell in cells)  # no warnings
  assert all("execution" not in cell.metadata for cell in cells)  # no times
  assert PATH.stat().st_size < 1_000_000


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
  for name, value in {"PYTHONPATH": str(ROOT), "JUPYTER_PLATFORM_DIRS": "1"}.items():
    monkeypatch.setenv(name, value)
  monkeypatch.delenv("XLA_FLAGS")  # one device, as its reader has
  notebook, cells = stored()
  expected = [shown(cell) for cell in cells]
  for cell in cells:
    cell.outputs = []
  where = {"metadata": {"path": str(PATH.parent)}}
  nbclient.NotebookClient(notebook, kernel_name="python3", timeout=None, resources=where).execute()
  found = [shown(cell) for cell in cells]
  assert [kinds for kinds, _, _ in found] == [kinds for kinds, _, _ in expected]
  said = "".join(text for _, _, text in found)
  assert said.count("89% of units clipped") == 3  # in each of the three layouts
  assert "same logits up to 1e-05" in said
  assert int(said.partition("top-1 on the test digits: ")[2].partition("%")[0]) >= 80
