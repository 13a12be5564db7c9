"""All that the package takes from JAX beyond its public API, where there is no public way.

* The record of a job (`state`). Its key-value store lets the processes agree and learn of failures;
  it also knows the rank without a look at the devices.
* The environments that JAX knows (`cluster_types`). They say how many processes there are before
  JAX connects, which can wait for a long time.

What would break: if JAX moves or renames either, importing this file or joining a job fails, and
with it `train` and `evaluate`. Networks, AGC, weights, predictions and the training step do not
need this file.

What to do: mend this file alone and run `pytest tests/distributed`. setup.py names the versions of
JAX that were tested. No other file imports `jax._src`; `tests/test_house.py` holds that.
"""

from collections.abc import Sequence
from typing import Any

from jax._src import clusters as _clusters
from jax._src import distributed as _distributed


def state() -> Any:
  """JAX's own record of the job: `client`, `service`, `process_id`, `num_processes`, ...

  `client` is the key-value store, None without a job: `key_value_set`, `key_value_try_get`,
  `blocking_key_value_get`.
  """
  return _distributed.global_state


def cluster_types() -> Sequence[Any]:
  """The environments that JAX knows jobs of (TPU pods, Slurm, ...), the first that fits first."""
  return _clusters.ClusterEnv._cluster_types


def is_kubernetes(cluster: Any) -> bool:
  """Whether one of `cluster_types` is Kubernetes."""
  return cluster is _clusters.K8sCluster
