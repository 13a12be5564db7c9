"""TensorFlow for reading data, with the accelerators hidden from it: they belong to JAX."""

import contextlib
import logging

import tensorflow as tf

__all__ = ["tf"]

# Under Python 3.13 AutoGraph warns of every function it leaves as it is. The pipeline is written
# without it, and runs the same.
logging.getLogger("tensorflow").addFilter(
  lambda record: "AutoGraph could not transform" not in record.getMessage()
)

# A program that has already set TensorFlow to work keeps the devices it gave it.
with contextlib.suppress(RuntimeError):
  tf.config.set_visible_devices([], "GPU")
  tf.config.set_visible_devices([], "TPU")
