"""A network with its weights, ready to predict."""

import json
import logging
import pathlib
from typing import Any, NamedTuple

import haiku as hk

from nfnet_jax import models, weights
from nfnet_jax.data import classes as classes_lib
from nfnet_jax.data.preprocess import Preprocessing
from nfnet_jax.errors import RequestError

logger = logging.getLogger(__name__)


class Network(NamedTuple):
  """What a weights file holds.

  Attributes:
    model: its name.
    num_classes: of its classifier; 0 without one.
    net: gives logits, or pooled features.
    params, state: for `net.apply`; folded, if it is a normalizer-free network.
    preprocessing: of the images that it is tested on.
    class_names: in the order of the logits, as the data set had them that the network was trained
      on; ImageNet's synsets for the published networks; None if they are not known.
  """

  model: str
  num_classes: int
  net: hk.TransformedWithState
  params: hk.Params
  state: hk.State
  preprocessing: Preprocessing
  class_names: tuple[str, ...] | None = None


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
  """Loads weights, and standardises those of a normalizer-free network once.

  Args:
    path: of the weights, see `weights.load_weights`.
    model: one of `list_models()`; by default the one that the file names or fits.
    num_classes: of the network; by default the file's.
    size: of the images in pixels. By default all of `preprocessing` is the run's that made the
      weights, as far as the file says, or else what the network is published with.
    features: whether the network is to give pooled features instead of logits.
    averaged: of a run directory, the EMA weights or the raw ones.
    **overrides: constructor overrides; by default the file's.

  Raises:
    RequestError: as `weights.load_weights`; for weights without a classifier, if not `features`.
  """
  stored = weights.open_weights(path, averaged=averaged)
  model, classes, overrides = weights.settle(stored, model, overrides)
  classes = classes if num_classes is None else num_classes
  if not classes and not features:
    raise RequestError(f"{path} holds a network without classifier, which gives features only.")
  preprocessing = _preprocessing(models.get_spec(model), stored.metadata, size)
  names = _class_names(stored, classes)
  params, state = weights.load_stored(stored, model, num_classes=classes, **overrides)
  net, fold = models.create_folded(model, 0 if features else classes, **overrides)
  return Network(model, classes, net, fold(params), state, preprocessing, names)


def _preprocessing(spec: models.ModelSpec, said: dict[str, str], size: int | None) -> Preprocessing:
  usual = Preprocessing(spec.test_size, padding=32, resize=spec.test_resize)
  try:
    found = usual._replace(**json.loads(said.get("preprocessing", "{}")))
  except (ValueError, TypeError) as error:
    raise RequestError(f"the weights' file has damaged metadata: {error}.") from error
  return found._replace(size=found.size if size is None else size).checked()


def _class_names(stored: weights.Stored, num_classes: int) -> tuple[str, ...] | None:
  names = weights.class_names(stored)
  of_imagenet = classes_lib.imagenet()
  # A run of another data set with 1000 classes, of a time when runs had no names, has none.
  if names or num_classes != len(of_imagenet) or stored.kind == "run":
    return names
  logger.info("%s names no classes: its 1000 are taken for ImageNet's.", stored.path)
  return tuple(of_imagenet)
