"""Reads and writes weights: published files, timm's files, and our own runs."""

from nfnet_jax.weights.convert import FORMATS, convert, save_weights
from nfnet_jax.weights.entries import Stored
from nfnet_jax.weights.fit import check_channels, count_channels
from nfnet_jax.weights.load import (
  class_names,
  load_stored,
  load_variables,
  load_weights,
  open_weights,
  settle,
)

__all__ = [
  "FORMATS",
  "Stored",
  "check_channels",
  "class_names",
  "convert",
  "count_channels",
  "load_stored",
  "load_variables",
  "load_weights",
  "open_weights",
  "save_weights",
  "settle",
]
