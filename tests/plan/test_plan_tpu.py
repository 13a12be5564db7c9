"""The training step of F0 compiled for TPUs that are not here: minutes each, so only when asked.

NFNET_JAX_COMPILE_FOR_TPU=1 python -m pytest tests/plan/test_plan_tpu.py
"""

import os
import pathlib

import pytest

from nfnet_jax import plan
from nfnet_jax.cli import config_file

EXPERIMENT = pathlib.Path(__file__).parents[2] / "experiments/imagenet_nfnet.py"

pytestmark = pytest.mark.skipif(
  not os.environ.get("NFNET_JAX_COMPILE_FOR_TPU"),
  reason="compiles for minutes: NFNET_JAX_COMPILE_FOR_TPU=1 runs it, with nfnet_jax[plan] there",
)


@pytest.mark.parametrize(
  ("topology", "devices"), [("v3:2x2", 8), ("v4:2x2x1", 4), ("v5e:4x4", 16), ("v5p:2x2x1", 4)]
)
def test_f0_compiles(topology, devices):
  config = config_file.read(f"{EXPERIMENT}:F0")
  config.batch_size = 32 * devices
  result = plan.plan(config, topology)
  compiled, counts = result["compiled"], result["per_device"]
  assert len(result["attempts"]) == 1
  assert compiled["fits"]
  assert 0 < compiled["peak"] < result["topology"]["memory_per_device"]
  assert compiled["arguments"] >= counts["state_bytes"] + counts["batch_bytes"]
  # Gradients are reduced once, combined by the compiler.
  assert compiled["all_reduced_bytes"] == counts["reduced_bytes"]
  assert compiled["all_reduces"] <= 8
  assert compiled["host_transfers"] == 0
  assert not compiled["float64"]
