"""All uses of JAX's private API, for which no public API exists.

* The state of a job (`state`). Processes use its key-value store to agree and to report failures;
  it also gives the process index without initialising devices.
* The environments that JAX detects (`cluster_types`). They give the number of processes before JAX
  connects, which can take a long time.

If JAX moves or renames either, importing this file or joining a job fails, and with it `train` and
`evaluate`. Networks, AGC, weights, predictions and the training step do not need this file.

To fix it, change only this file and run `pytest tests/distributed`. setup.py lists the tested
versions of JAX. No other file imports `jax._src`; `tests/test_house.py` checks this.
"""

from collections.abc import Sequence
from typing import Any

from jax._src import clusters as _clusters
from jax._src import distributed as _distributed


def state() -> Any:
  """JAX's state of the job: `client`, `service`, `process_id`, `num_processes`, ...

  `client` is the key-value store, with `key_value_set`, `key_value_try_get` and
  `blocking_key_value_get`; None without a job.
  """
  return _distributed.global_state


def cluster_types() -> Sequence[Any]:
  """The environments that JAX detects (TPU pods, Slurm, ...), in the order of its attempts."""
  return _clusters.ClusterEnv._cluster_types


def is_kubernetes(cluster: Any) -> bool:
  """Whether one of `cluster_types` is Kubernetes."""
  return cluster is _clusters.K8sCluster
