"""A batch of images, as it is sent from the host to the devices at every step."""

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from nfnet_jax.errors import RequestError

if TYPE_CHECKING:
  import jax

Array: TypeAlias = "jax.Array | np.ndarray"


class Batch(NamedTuple):
  """`N` labelled images. A short last batch is padded; padding is not counted.

  Attributes:
    images: `[N, H, W, C]` pixel values 0..255; uint8 for training. For testing, float32 values that
      keep the overshoot of the interpolation, as in the published evaluation.
    labels: `[N]` int32 class indices; or `[N, num_classes]` bool, for data sets with any number of
      correct labels per image. With softmax cross-entropy, these are for testing only.
    mask: `[N]` float32, 1 for an example and 0 for padding.
  """

  images: Array
  labels: Array
  mask: Array


def check(batch: Batch, *, several_right: bool = False, in_channels: int = 3) -> None:
  """Checks the shapes and dtypes of a batch; this also works during tracing.

  Args:
    batch: the input of a step.
    several_right: whether labels may be `[N, num_classes]` bool.
    in_channels: the channels of the network's images.

  Raises:
    RequestError: if a shape or dtype is wrong; it names all of them.
  """
  images, labels, mask = batch
  n = images.shape[0] if images.ndim == 4 and images.shape[3] == in_channels else 0
  is_labels = labels.shape == (n,) and labels.dtype == np.int32
  is_labels |= several_right and labels.ndim == 2 and len(labels) == n and labels.dtype == bool
  if not (n and is_labels and mask.shape == (n,)):
    or_bool = " (or [N, num_classes] bool)" if several_right else ""
    found = ", ".join(
      f"{name} {array.dtype}{list(array.shape)}" for name, array in batch._asdict().items()
    )
    raise RequestError(
      f"a step takes images [N, H, W, {in_channels}], labels [N] int32{or_bool} and mask [N], N at "
      f"least 1, but was given {found}: pass such a nfnet_jax.data.Batch, and for a mapped step "
      "split it over the devices with training.parallel.shard."
    )
