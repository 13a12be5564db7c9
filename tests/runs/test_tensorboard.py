"""Events as TensorBoard reads them."""

import io

import numpy as np
import pytest
from etils import epath
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from nfnet_jax.runs import tensorboard


def values_of(workdir):
  """The events of all files, the oldest first: step, tag and value."""
  found = []
  for path in sorted((workdir / "tensorboard").iterdir()):
    content = path.read_bytes()
    while content:  # A length and its checksum, the event and its checksum.
      length = int.from_bytes(content[:8], "little")
      event = Event.FromString(content[12 : 12 + length])
      content = content[16 + length :]
      found += [(event.step, value.tag, value) for value in event.summary.value]
  return found


@pytest.fixture
def events(tmp_path):
  events = tensorboard.open_events(epath.Path(tmp_path), 0)
  yield events
  events.close()


def test_histograms_of_layers(tmp_path, events):
  weights = np.linspace(-1, 3, 4 * 3 * 5).reshape(4, 3, 5)
  params = {
    "net/conv": {"w": weights, "bias": np.ones(5), "gain": np.ones((1, 1, 1, 5))},
    "net/skip": {"skip_gain": np.zeros(())},
  }
  events.weights(7, params)
  ((step, tag, value),) = values_of(tmp_path)
  assert (step, tag) == (7, "weights/net/conv")
  histogram = value.histo
  assert (histogram.min, histogram.max, histogram.num) == (-1, 3, 60)
  assert histogram.sum == pytest.approx(weights.sum())
  assert histogram.sum_squares == pytest.approx((weights**2).sum())
  # Evenly spread values: two in each of the 30 bins.
  assert list(histogram.bucket) == [2] * 30
  assert list(histogram.bucket_limit) == pytest.approx(np.linspace(-1, 3, 31)[1:])


def test_a_large_layer_is_sampled(tmp_path, events):
  weights = np.zeros((1000, 1000), np.float32)
  weights[::2] = 1
  events.weights(1, {"layer": {"w": weights}})
  ((_, _, value),) = values_of(tmp_path)
  assert 2**13 < value.histo.num <= 2**14
  assert value.histo.sum / value.histo.num == pytest.approx(0.5, abs=0.02)


def test_weights_that_are_all_equal(tmp_path, events):
  events.weights(1, {"head": {"w": np.zeros((8, 4))}})
  ((_, _, value),) = values_of(tmp_path)
  assert (value.histo.num, sum(value.histo.bucket)) == (32, 32)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image(tmp_path, events, channels):
  pixels = np.random.default_rng(0).integers(0, 256, (6, 9, channels), np.uint8)
  events.image(3, "confusion", pixels)
  ((step, tag, value),) = values_of(tmp_path)
  assert (step, tag) == (3, "confusion")
  assert (value.image.height, value.image.width, value.image.colorspace) == (6, 9, channels)
  read = np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
  np.testing.assert_array_equal(read.reshape(pixels.shape), pixels)
