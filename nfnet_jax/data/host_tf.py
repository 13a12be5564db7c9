"""TensorFlow for reading data, with the accelerators hidden from it: they belong to JAX."""

import contextlib

import tensorflow as tf

__all__ = ["tf"]

# A program that has already set TensorFlow to work keeps the devices it gave it.
with contextlib.suppress(RuntimeError):
  tf.config.set_visible_devices([], "GPU")
  tf.config.set_visible_devices([], "TPU")
