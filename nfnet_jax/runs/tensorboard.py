"""Events for TensorBoard: scalars, histograms of weights, and images.

When a run resumes, TensorBoard hides what an earlier part of it wrote from the same step on.
"""

import io
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

_BINS = 30
_MOST = 2**14  # weights of a layer that a histogram counts, evenly spread over all of them


class Events:
  """A file of events. Create it with `open_events`, and call `close`; all may raise OSError."""

  def __init__(self, writer: Any):
    self._writer = writer

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes finite numbers by tag."""
    self._write(step, {tag: {"simple_value": value} for tag, value in values.items()})

  def weights(self, step: int, params: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes histograms of the weights of all convolutions and linear layers, by layer."""
    arrays = {
      f"weights/{module}": array
      for module, names in params.items()
      for array in names.values()
      if np.ndim(array) > 1 and np.size(array) > np.shape(array)[-1]
    }
    self._write(step, {tag: {"histo": _histogram(array)} for tag, array in arrays.items()})

  def image(self, step: int, tag: str, pixels: np.ndarray) -> None:
    """Writes an image, `[H, W, C]` uint8 with one or three channels."""
    from tensorboardX.proto.summary_pb2 import Summary

    height, width, channels = pixels.shape
    content = io.BytesIO()
    Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(content, "png")
    size = {"height": height, "width": width, "colorspace": channels}
    image = Summary.Image(encoded_image_string=content.getvalue(), **size)
    self._write(step, {tag: {"image": image}})

  def close(self) -> None:
    """Closes the file."""
    self._writer.close()

  def _write(self, step: int, values: Mapping[str, Mapping[str, Any]]) -> None:
    from tensorboardX.proto.summary_pb2 import Summary

    content = [Summary.Value(tag=tag, **value) for tag, value in values.items()]
    _write_event(self._writer, step=int(step), summary=Summary(value=content))


def open_events(workdir: epath.Path, first_step: int) -> Events:
  """Opens another file in `tensorboard/` for events from a step on.

  Raises:
    OSError: if it cannot be written.
    ImportError: if tensorboardX needs another package, as for gs:// paths.
  """
  from tensorboardX.event_file_writer import EventsWriter
  from tensorboardX.proto.event_pb2 import SessionLog

  (workdir / "tensorboard").mkdir(exist_ok=True)
  # Not tensorboardX's SummaryWriter: closing the queue to its thread once caused a hang under
  # Python 3.13. The suffix is needed because file names contain the time only in seconds.
  writer = EventsWriter(str(workdir / "tensorboard" / "events"), f".from{first_step}")
  # This makes TensorBoard hide events of older files from this step on.
  _write_event(writer, step=first_step, session_log=SessionLog(status=SessionLog.START))
  return Events(writer)


def _write_event(writer: Any, **content: Any) -> None:
  from tensorboardX.proto.event_pb2 import Event

  writer.write_event(Event(wall_time=time.time(), **content))
  writer.flush()


def _histogram(array: Any) -> Any:
  from tensorboardX.proto.summary_pb2 import HistogramProto

  values = np.asarray(array).ravel()
  # An odd interval, so that it does not count the same few channels again and again.
  values = values[:: math.ceil(values.size / _MOST) | 1].astype(np.float64)
  counts, edges = np.histogram(values, _BINS)
  return HistogramProto(
    min=values.min(),
    max=values.max(),
    num=values.size,
    sum=values.sum(),
    sum_squares=values @ values,
    bucket_limit=edges[1:],
    bucket=counts,
  )
