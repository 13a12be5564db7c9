"""What a run keeps of its images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet_jax.runs import pictures
from nfnet_jax.runs.pictures import MAX_IMAGES, Predictions, Samples
from nfnet_jax.training import parallel, showing, step
from nfnet_jax.training.evaluate import Guesses, guesses
from tests import tiny


def predicted(workdir):
  damaged = []
  found = pictures.load(workdir, Predictions, damaged)
  assert damaged == []
  return found


@pytest.mark.parametrize(
  "changes", [{}, {"augment.mixup_alpha": 0.2, "augment.cutmix": True, "accumulate": 2}]
)
def test_samples_are_the_first_images_of_the_first_step(tmp_path, changes):
  config = tiny.config(batch_size=32, **changes)
  sources = step.images_per_example(config.augment)
  batch = tiny.batch(0, size=32 * sources)
  showing.keep_samples(tmp_path, config, 2, None)
  showing.keep_samples(tmp_path, config, 1, parallel.send(batch))
  # The first device's part of the batch, as the first accumulation step gets it.
  count = 32 * sources // 8 // config.accumulate
  part = jax.tree.map(lambda x: x[:count], batch)
  _, key = jax.random.split(step.step_key(config.seed, config.seeding, 0))
  plain = {"mean": (0,) * 3, "stddev": (1 / 255,) * 3}
  ids = jnp.arange(count // sources)
  images, labels, _ = step.augmented(part, key, ids, config.augment, 4, 0.1, plain)
  found = pictures.load(tmp_path, Samples, [])
  np.testing.assert_allclose(found.images, images, atol=0.51)
  np.testing.assert_allclose(found.labels, np.sort(labels)[:, ::-1][:, :3], atol=1e-6)
  assert found.classes.shape == (count // sources, 3)


def test_guesses_are_those_of_the_largest_logits():
  logits = jnp.log(jnp.array([[0.1, 0.7, 0.2], [0.4, 0.2, 0.4]]))
  found = guesses(logits, jnp.array([0, 1]), jnp.ones(2))
  np.testing.assert_array_equal(found.predicted, [1, 2])  # the last of equal ones
  np.testing.assert_allclose(found.probability, [0.7, 0.4], rtol=1e-6)
  np.testing.assert_allclose(found.of_label, [0.1, 0.2], rtol=1e-6)


def batch_of(rng, size):
  """A batch with a few images of padding, and guesses of it."""
  batch = tiny.batch(rng.integers(100), size)
  batch = batch._replace(
    images=batch.images.astype(np.float32), mask=(rng.random(size) < 0.9).astype(np.float32)
  )
  columns = rng.integers(0, 4, size), rng.random(size).astype(np.float32)
  return batch, Guesses(batch.labels, *columns, np.zeros(size, np.float32), batch.mask)


def test_the_worst_errors_are_kept_with_their_images(tmp_path):
  rng, witness = np.random.default_rng(0), showing.Witness()
  parts = [batch_of(rng, 64) for _ in range(3)]
  for batch, found in parts:
    witness.keep("ema_", found, parallel.send(batch))
    witness.keep("", found, None)  # Raw weights are not kept.
  witness.save(tmp_path, 5)
  kept = predicted(tmp_path)
  columns = [np.concatenate(each) for each in zip(*(found for _, found in parts), strict=True)]
  images = np.concatenate([batch.images for batch, _ in parts])
  labels, guessed, *_, mask = columns
  real = np.flatnonzero(mask)
  np.testing.assert_array_equal(kept.labels, labels[real])
  np.testing.assert_array_equal(kept.predicted, guessed[real])
  wrong = np.flatnonzero(kept.labels != kept.predicted)
  worst = wrong[np.argsort(-kept.probability[wrong])][:MAX_IMAGES]
  np.testing.assert_array_equal(kept.errors, worst)
  np.testing.assert_array_equal(kept.images, images[real[worst]])
  assert kept.step == 5


def test_a_test_without_an_error_has_no_images(tmp_path):
  witness, size = showing.Witness(), 8
  batch = tiny.batch(0, size)
  sure = np.ones(size, np.float32)
  witness.keep("ema_", Guesses(batch.labels, batch.labels, sure, sure, sure), parallel.send(batch))
  witness.save(tmp_path, 1)
  assert len(predicted(tmp_path).images) == 0


def test_what_is_not_finite_is_not_kept(tmp_path):
  witness, size = showing.Witness(), 8
  batch, nan = tiny.batch(0, size), np.full(8, np.nan, np.float32)
  mask = np.ones(size, np.float32)
  witness.keep("ema_", Guesses(batch.labels, batch.labels, nan, nan, mask), parallel.send(batch))
  witness.save(tmp_path, 1)
  assert predicted(tmp_path) is None


def test_a_disk_that_is_full_ends_nothing(tmp_path, caplog):
  showing.keep_samples(tmp_path / "gone", tiny.config(), 1, parallel.send(tiny.batch(0)))
  assert "cannot write" in caplog.text
