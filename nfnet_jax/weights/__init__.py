"""Foreign weights in and out: published files, timm's, our own runs."""

from nfnet_jax.weights.convert import FORMATS, convert, save_weights
from nfnet_jax.weights.load import load_variables, load_weights

__all__ = ["FORMATS", "convert", "load_variables", "load_weights", "save_weights"]
