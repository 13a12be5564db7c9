"""The files of `evaluate --out`: a row for each image, a summary, and a picture."""

import csv
import io
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nfnet_jax import output
from nfnet_jax.errors import RequestError
from nfnet_jax.inference import outcome_plot
from nfnet_jax.runs import outcome
from nfnet_jax.runs.outcome import Answers

_ENDINGS = (".csv", ".json", ".confusion.csv", ".png")


def check(out: pathlib.Path, force: bool) -> None:
  """Raises RequestError unless all files can be written; call it before the work.

  Args:
    out: the table, which ends in .csv; the other files are beside it and begin with the same name.
    force: whether files may be replaced.
  """
  if out.suffix != ".csv":
    raise RequestError(
      f"--out={out} must end in .csv: it is a table of all images, and files beside it end in "
      f"{', '.join(_ENDINGS[1:])}."
    )
  for path in _paths(out):
    output.check_free(path, force)


def write(
  out: pathlib.Path,
  found: Answers,
  classes: Sequence[str],
  images: Sequence[str],
  about: Mapping[str, Any],
) -> None:
  """Writes all files or none.

  Args:
    out: see `check`.
    found: the predictions.
    classes: names of the classes.
    images: names of the images.
    about: where they are from, for the head of the summary, see `outcome.summary`.

  Raises:
    RequestError, RunError: as `output.write`.
  """
  summary = {**about, **outcome.summary(found, classes, images)}
  counts = outcome.confusion(found, len(classes))
  corner = "class \\ predicted"
  contents = (
    _table(_rows(found, classes, images)),
    f"{output.to_json(summary)}\n".encode(),
    _table(
      [[corner, *classes], *([name, *row] for name, row in zip(classes, counts, strict=True))]
    ),
    outcome_plot.picture(counts, classes, outcome.calibration(found), out.stem),
  )
  output.write(dict(zip(_paths(out), contents, strict=True)))


def _paths(out: pathlib.Path) -> list[pathlib.Path]:
  return [out.with_suffix(ending) for ending in _ENDINGS]


def _rows(found: Answers, classes: Sequence[str], images: Sequence[str]) -> Iterable[list[Any]]:
  yield ["image", "class", "predicted", "probability", "probability_of_class"]
  for image, *numbers in zip(images, *(column.tolist() for column in found), strict=True):
    label, predicted, probability, of_label = numbers
    yield [image, classes[label], classes[predicted], probability, of_label]


def _table(rows: Iterable[Sequence[Any]]) -> bytes:
  text = io.StringIO(newline="")
  writer = csv.writer(text)
  writer.writerows(map(output.cells, rows))
  return text.getvalue().encode()
