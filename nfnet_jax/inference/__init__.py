"""Uses networks with their weights: predictions, evaluation, export."""

from nfnet_jax.inference.network import Network, load_network

__all__ = ["Network", "load_network"]
