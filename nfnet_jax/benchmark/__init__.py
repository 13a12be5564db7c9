"""Measures how fast this machine reads images, trains and predicts."""

from nfnet_jax.benchmark.host import measure_input
from nfnet_jax.benchmark.steps import measure_predict, measure_train

__all__ = ["measure_input", "measure_predict", "measure_train"]
