"""Networks with their weights at work: predictions, evaluation, export."""

from nfnet_jax.inference.network import Network, load_network

__all__ = ["Network", "load_network"]
