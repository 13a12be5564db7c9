import math
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet_jax.training import meter as meter_lib
from nfnet_jax.training import parallel
from nfnet_jax.training.build import build
from nfnet_jax.training.meter import DivergedError, Meter
from tests import tiny
from tests.training.clock import Clock


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(meter_lib, "time", clock)
  return clock


def take(meter, clock, step, loss, seconds=0.0):
  """A step that is done when it is waited for, `seconds` after it was dispatched."""
  meter.add(step, {"loss": jnp.float32(loss)})
  clock.seconds += seconds


def test_means_since_the_last_report(clock):
  meter = Meter(batch_size=16)
  for step, loss in enumerate([4.0, 2.0, 3.0], start=1):
    take(meter, clock, step, loss, seconds=1.0)
  assert meter.report()["loss"] == 3.0
  take(meter, clock, 4, 5.0, seconds=1.0)
  assert meter.report()["loss"] == 5.0


def test_the_latest_means_without_a_report(clock):
  meter = Meter(batch_size=16)
  assert meter.latest() == {}
  take(meter, clock, 1, 4.0, seconds=1.0)
  take(meter, clock, 2, 2.0, seconds=1.0)
  assert meter.latest() == {"loss": 4.0}  # The second step may still be going on.
  reported = meter.report()
  assert meter.latest() == reported == {"loss": 3.0, "images_per_second": 16.0}
  take(meter, clock, 3, 5.0, seconds=1.0)
  meter.wait()
  assert meter.latest() == {"loss": 5.0, "images_per_second": 16.0}


def test_the_speed_leaves_compilation_and_pauses_out(clock):
  meter = Meter(batch_size=16)
  take(meter, clock, 1, 0.0, seconds=60.0)  # compiles
  take(meter, clock, 2, 0.0, seconds=0.5)
  take(meter, clock, 3, 0.0, seconds=0.5)
  assert meter.report()["images_per_second"] == 2 * 16 / 1.0
  take(meter, clock, 4, 0.0, seconds=0.25)
  meter.wait()
  clock.seconds += 30.0  # an evaluation
  meter.restart_clock()
  take(meter, clock, 5, 0.0, seconds=0.25)
  assert meter.report()["images_per_second"] == 16 / 0.25


def test_the_first_step_alone_has_no_speed(clock):
  meter = Meter(batch_size=16)
  take(meter, clock, 1, 0.0, seconds=60.0)
  assert meter.report() == {"loss": 0.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "grad_norm", "param_norm"])
def test_what_is_not_finite_is_found_one_step_later(name, value):
  meter = Meter(batch_size=16)
  fine = {"loss": 1.0, "grad_norm": 1.0, "param_norm": 1.0}
  meter.add(1, fine)
  meter.add(2, fine | {name: jnp.float32(value)})
  with pytest.raises(DivergedError, match=rf"step 2 is not finite: .*{name}={value}"):
    meter.add(3, fine)


@pytest.mark.parametrize("ask", [Meter.wait, Meter.report])
def test_or_at_once_if_asked(ask):
  meter = Meter(batch_size=16)
  meter.add(7, {"loss": jnp.float32(math.nan)})
  with pytest.raises(DivergedError, match="step 7"):
    ask(meter)


def test_parameters_that_are_not_finite_are_found_whatever_the_loss():
  run = build(tiny.config())
  state = run.init()
  poisoned = jax.tree.map_with_path(
    lambda path, x: jnp.full_like(x, jnp.nan) if path[-1].key == "skip_gain" else x, state.params
  )
  state = parallel.replicate(state._replace(params=poisoned))
  _, metrics = parallel.map_train_step(run.train_step)(state, parallel.shard(tiny.batch(0), 8))
  # Compiled for CPU, such a network may well give logits, and a loss, that are finite.
  metrics |= {"loss": jnp.float32(1.4), "grad_norm": jnp.float32(1.0)}
  meter = Meter(batch_size=16)
  meter.add(1, metrics)
  with pytest.raises(DivergedError, match=r"step 1 is not finite: .*param_norm=nan"):
    meter.wait()


def test_layers_are_those_of_the_last_step_and_no_metric():
  meter = Meter(batch_size=16)
  for step, share in enumerate([0.0, 0.5, 1.0], start=1):
    # A share that there is not is no reason to stop.
    meter.add(step, {"loss": jnp.float32(1.0), "layers": jnp.array([[share, math.nan]])})
  assert meter.report() | {"images_per_second": 0} == {"loss": 1.0, "images_per_second": 0}
  np.testing.assert_array_equal(meter.layers, [[1.0, math.nan]])


def test_idle_devices_are_noticed():
  meter, gate = Meter(batch_size=16), threading.Event()
  assert meter.idle_since() == 0.0
  before = time.perf_counter()

  class Late:
    """Is there when the gate opens."""

    def __array__(self, *_, **__):
      gate.wait()
      return np.zeros(())

  meter.add(1, {"loss": Late()})
  assert meter.idle_since() == math.inf
  gate.set()
  while (since := meter.idle_since()) == math.inf:
    time.sleep(0.001)
  assert before < since < time.perf_counter()
  meter.wait()
  assert meter.idle_since() == since
