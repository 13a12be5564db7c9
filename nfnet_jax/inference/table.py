"""Predictions as a table for spreadsheets: a CSV file with a row for each image."""

import csv
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from nfnet_jax import output
from nfnet_jax.errors import RequestError


def keep(lines: Iterable[dict[str, Any]], path: pathlib.Path, top: int) -> Iterator[dict[str, Any]]:
  """Passes predictions on, and writes them to a file, which appears complete at the end.

  Its columns are `image`, `error`, and for each of the most probable classes `class_1`, `name_1`
  and `probability_1`, and so on. What is not known stays empty.

  Args:
    lines: from `predict.run`, `image` and `top` or `error` each.
    path: the file, in UTF-8; it replaces one of that name.
    top: the greatest number of classes of an image.

  Raises:
    RequestError: of `lines`, once all that came before it is in the file.
  """
  kinds = ("class", "name", "probability")
  columns = [f"{kind}_{rank}" for rank in range(1, top + 1) for kind in kinds]
  failure = None
  with output.growing(path) as file:
    writer = csv.writer(file)
    writer.writerow(["image", "error", *columns])
    try:
      for line in lines:
        classes = [each.get(kind, "") for each in line.get("top", ()) for kind in kinds]
        empty = [""] * (len(columns) - len(classes))
        row = [line["image"], line.get("error", ""), *classes, *empty]
        writer.writerow(output.cells(row))
        yield line
    except RequestError as error:
      failure = error
  if failure:
    raise failure
