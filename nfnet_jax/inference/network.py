"""A network with its weights, ready to predict."""

import logging
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax

from nfnet_jax import losses, models, weights
from nfnet_jax.data import classes as classes_lib
from nfnet_jax.data import normalize as normalize_lib
from nfnet_jax.data import preprocess
from nfnet_jax.errors import RequestError

logger = logging.getLogger(__name__)


class Network(NamedTuple):
  """A network with its weights.

  Attributes:
    model: its name.
    num_classes: the number of classes of its classifier; 0 without one.
    net: returns logits, or pooled features.
    params, state: for `net.apply`; a normalizer-free network's weights are already standardised.
    preprocessing: the preprocessing of test images.
    normalize: maps pixel values to the network's input.
    class_names: the names of the classes in the training data, in the order of the logits; ImageNet
      synsets for the published networks; None if unknown.
    loss: with "softmax", the probabilities of classes are the softmax of the logits; with
      "sigmoid", the sigmoid of each.
  """

  model: str
  num_classes: int
  net: hk.TransformedWithState
  params: hk.Params
  state: hk.State
  preprocessing: preprocess.Preprocessing
  normalize: Callable[[Any], jax.Array]
  class_names: tuple[str, ...] | None = None
  loss: str = "softmax"


def load_network(
  path: str | pathlib.Path,
  model: str | None = None,
  *,
  num_classes: int | None = None,
  size: int | None = None,
  features: bool = False,
  averaged: bool = True,
  **overrides: Any,
) -> Network:
  """Loads a network's weights; those of a normalizer-free network are standardised once.

  Args:
    path: the weights, see `weights.load_weights`.
    model: one of `list_models()`; by default the file's metadata or its leaves determine it.
    num_classes: the network's number of classes; by default the file's.
    size: size of the images in pixels. By default, size and other preprocessing are those in the
      file's metadata, or else the published ones of the network. At another size, the padding stays
      the same for the papers' networks, and the share of the image that is seen for timm's own.
    features: whether the network returns pooled features instead of logits.
    averaged: whether to take the EMA weights of a run directory, or else the raw ones.
    **overrides: constructor overrides; by default the file's.

  Raises:
    RequestError: as `weights.load_weights`, and if the weights have no classifier and `features` is
      False.
  """
  stored = weights.open_weights(path, averaged=averaged)
  model, classes, overrides = weights.settle(stored, model, overrides)
  classes = classes if num_classes is None else num_classes
  if not classes and not features:
    raise RequestError(f"{path} holds a network without a classifier: ask for features instead.")
  spec = models.get_spec(model)
  channels = weights.count_channels(stored.entries)
  usual = preprocess.Preprocessing(spec.test_size, spec.test_padding, spec.test_resize)
  found = preprocess.of_metadata(stored.metadata, usual, path)
  found = found if size is None else _resized(found.checked(), size, spec)
  preprocessing = found._replace(channels=channels).checked()
  names, loss = _class_names(stored, classes), _loss(stored)
  params, state = weights.load_stored(
    stored, model, num_classes=classes, in_chans=channels, **overrides
  )
  net, fold = models.create_folded(model, 0 if features else classes, **overrides)

  def normalize(images: Any) -> jax.Array:
    return normalize_lib.normalize(images, **spec.normalization)

  folded = fold(params)
  return Network(model, classes, net, folded, state, preprocessing, normalize, names, loss)


def _resized(
  how: preprocess.Preprocessing, size: int, spec: models.ModelSpec
) -> preprocess.Preprocessing:
  """Preprocessing at another size, by the rules of those who published the network."""
  resized = how._replace(size=size).checked()
  if spec.test_crop is None:
    return resized
  if (how.size, how.padding) == (spec.test_size, spec.test_padding):
    return resized._replace(padding=int(size / spec.test_crop) - size)  # as in timm, to the pixel
  return resized._replace(padding=size * how.padding // how.size)


def _loss(stored: weights.Stored) -> str:
  loss = stored.metadata.get("loss", "softmax")
  if loss not in losses.LOSSES:
    raise RequestError(
      f"{stored.path} has metadata with the unknown loss={loss!r:.80}: it must be one of "
      f"{', '.join(losses.LOSSES)}."
    )
  return loss


def _class_names(stored: weights.Stored, num_classes: int) -> tuple[str, ...] | None:
  names = weights.class_names(stored)
  of_imagenet = classes_lib.imagenet()
  # An older run without recorded names may have 1000 classes that are not ImageNet's.
  if names or num_classes != len(of_imagenet) or stored.kind == "run":
    return names
  logger.info("%s has no class names: its 1000 classes are assumed to be ImageNet's", stored.path)
  return tuple(of_imagenet)
