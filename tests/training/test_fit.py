"""Training on data that a program gives."""

import itertools
import shutil

import chex
import numpy as np
import pytest
from etils import epath
from PIL import Image

from nfnet_jax import config as config_lib
from nfnet_jax import data, inference
from nfnet_jax.data import sequence
from nfnet_jax.errors import RequestError
from nfnet_jax.runs import checkpoint, trackers
from nfnet_jax.runs import metrics as metrics_lib
from nfnet_jax.training import fit, progress

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (24, 8, 8, 3), np.uint8)
LABELS = np.arange(24) % 3


def config_of(**changes):
  config = config_lib.default()
  config.update_from_flattened_dict(
    {
      "model.name": "nfnet_micro",
      "model.widths": (16,),
      "model.depths": (1,),
      "model.group_size": 8,
      "data.train_size": 8,
      "data.test_size": 8,
      "data.max_corrupt": 0.0,
      "batch_size": 8,
      "steps": 4,
      "eval_every": 2,
      "checkpoint_every": 2,
      "optimizer.warmup_steps": 0.0,
      **changes,
    }
  )
  return config


def read(source, start_step=0, num_batches=3, **changes):
  config = config_lib.default().data
  config.update(
    {"name": "python", "train_size": 8, "test_size": 8, "test_padding": 0, "flip": False, **changes}
  )
  batches = data.train_batches(
    config, seed=0, batch_size=8, start_step=start_step, sources={"train": source}
  )
  return list(itertools.islice(batches, num_batches))


def test_an_epoch_holds_every_image_once_and_resumes_anywhere():
  whole = {"crop_area": (1.0, 1.0), "crop_aspect": (1.0, 1.0)}
  batches = read(data.from_arrays(IMAGES, LABELS), **whole)
  seen = {image.tobytes(): label for b in batches for image, label in zip(b[0], b[1], strict=True)}
  assert seen == {image.tobytes(): label for image, label in zip(IMAGES, LABELS, strict=True)}
  [resumed] = read(data.from_arrays(IMAGES, LABELS), start_step=2, num_batches=1, **whole)
  np.testing.assert_array_equal(resumed.images, batches[2].images)
  np.testing.assert_array_equal(resumed.labels, batches[2].labels)


def test_sequences_of_pil_images_and_gray_arrays_are_read_alike():
  gray = [(image[..., 0], label) for image, label in zip(IMAGES, LABELS, strict=True)]
  pictures = [(Image.fromarray(pixels), label) for pixels, label in gray]
  arrays = data.from_arrays(IMAGES[..., 0], LABELS)
  names = ["0", "1", "2"]
  for source in (data.from_sequence(gray, names), data.from_sequence(pictures, names)):
    for ours, theirs in zip(read(source), read(arrays), strict=True):
      np.testing.assert_array_equal(ours.images, theirs.images)
      np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_transparent_pictures_are_read_as_files_are():
  clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
  [batch] = read(data.from_sequence([(clear, 0)] * 8, ["0"]), num_batches=1)
  assert batch.images.min() == 255


SEVERAL = RNG.random((24, 3)) < 0.4


def test_several_correct_labels_are_read_from_arrays_and_sequences():
  whole = {"crop_area": (1.0, 1.0), "crop_aspect": (1.0, 1.0)}
  numbers = [(image, row.astype(np.float32)) for image, row in zip(IMAGES, SEVERAL, strict=True)]
  expected = {image.tobytes(): row for image, row in zip(IMAGES, SEVERAL, strict=True)}
  for source in (data.from_arrays(IMAGES, SEVERAL), data.from_sequence(numbers, "abc")):
    assert source.several_right
    for batch in read(source, **whole):
      assert batch.labels.dtype == bool
      for image, row in zip(batch.images, batch.labels, strict=True):
        np.testing.assert_array_equal(row, expected[image.tobytes()])


@pytest.mark.slow
def test_several_correct_labels_are_learnt_and_predicted(tmp_path):
  """Each class is a colour; most images have none, two or three of them."""
  labels = np.array([[i & 1, i & 2, i & 4] for i in range(24)], bool)
  images = np.uint8(255) * labels[:, None, None].repeat(8, 1).repeat(8, 2)
  splits = {"train": data.from_arrays(images, labels), "test": data.from_arrays(images, labels)}
  config = config_of(steps=60, eval_every=60, ema_decay=0.9, **{"optimizer.learning_rate": 0.1})
  with pytest.raises(RequestError, match=r"--config\.loss=sigmoid"):
    fit(config, tmp_path / "run", **splits)
  assert list(tmp_path.iterdir()) == []
  config.loss = "sigmoid"
  metrics, workdir = fit(config, tmp_path / "run", **splits)
  assert metrics["ema_f1"] > 0.95
  assert inference.load_network(workdir).loss == "sigmoid"


class Failing:
  """The same examples, until one is asked for too often."""

  classes = ("0", "1", "2")

  def __init__(self, most):
    self.most = most

  def __len__(self):
    return len(IMAGES)

  def __getitem__(self, index):
    self.most -= 1
    if self.most < 0:
      raise OSError("the cable is out")
    return IMAGES[index], LABELS[index]


@pytest.mark.slow
def test_a_run_that_was_interrupted_ends_with_the_same_weights(tmp_path, monkeypatch):
  monkeypatch.setattr(sequence, "_RECENT", 1)
  test = data.from_arrays(IMAGES[:6], LABELS[:6])
  config = config_of(steps=20, eval_every=20, checkpoint_every=1)
  whole = fit(config, tmp_path / "whole", train=data.from_arrays(IMAGES, LABELS), test=test)
  with pytest.raises(RequestError, match="the cable is out"):
    fit(config, tmp_path / "cut", train=data.from_sequence(Failing(100)), test=test)
  assert 0 < max(checkpoint.saved_steps(epath.Path(tmp_path / "cut/checkpoints"))) < 20
  cut = fit(config, tmp_path / "cut", train=data.from_sequence(Failing(10**6)), test=test)
  assert cut == (whole.metrics, tmp_path / "cut")
  ours, theirs = (inference.load_network(run.workdir).params for run in (cut, whole))
  chex.assert_trees_all_equal(ours, theirs)


@pytest.mark.slow
def test_a_finished_run_goes_on_as_one_that_was_interrupted_there_would(tmp_path):
  """From where it was extended, from an earlier checkpoint, and by the config's epochs."""
  splits = dict.fromkeys(("train", "test"), data.from_arrays(IMAGES, LABELS))
  config, longer = (config_of(steps=None, epochs=epochs) for epochs in (1, 2))
  for each in (config, longer):
    each.keep_checkpoints, each.checkpoint_every, each.log_every = 9, 1, 1
  _, workdir = fit(config, tmp_path / "run", **splits)
  with pytest.raises(RequestError, match=r"steps: 3, 6.*--extend to go on"):
    fit(longer, workdir, **splits)
  extended = fit(longer, workdir, **splits, extend=True)
  assert extended == fit(longer, workdir, **splits, extend=True)
  recorded = config_lib.load(epath.Path(workdir / "config.json"))
  assert (recorded.steps, tuple(recorded.former_steps)) == (6, (3,))

  def weights_of(workdir):
    return inference.load_network(workdir).params

  wanted, lines = weights_of(workdir), metrics_of(workdir)
  for step in (2, 3, 4, 5, 6):
    shutil.rmtree(workdir / f"checkpoints/{step}")
  assert fit(longer, workdir, **splits, extend=True) == extended
  chex.assert_trees_all_equal(weights_of(workdir), wanted)
  assert metrics_of(workdir) == lines


def metrics_of(workdir):
  lines = metrics_lib.read(workdir)
  return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


@pytest.mark.slow
def test_steps_are_traced_and_metrics_sent_where_they_are_asked_for(tmp_path, monkeypatch):
  splits = dict.fromkeys(("train", "test"), data.from_arrays(IMAGES, LABELS))
  sent = []
  tracker = trackers.Tracker("id", "there", lambda values, step: sent.append(step), sent.append)
  monkeypatch.setitem(trackers.TRACKERS, "json", lambda run: tracker)  # any package there is
  with pytest.raises(RequestError, match=r"unknown --tracker=.nothing.: choose"):
    fit(config_of(), tmp_path / "run", **splits, trackers=["nothing"])
  with pytest.raises(RequestError, match="5:6: the run has 4 steps"):
    fit(config_of(), tmp_path / "run", **splits, profile=(5, 6))
  assert list(tmp_path.iterdir()) == []
  _, workdir = fit(config_of(), tmp_path / "run", **splits, profile=(3, 4), trackers=["json"])
  assert sent == [2, 4, 4, False]  # tests, training, and the end
  assert (workdir / "tensorboard/plugins/profile/steps_3_to_4").is_dir()


@pytest.mark.parametrize(
  ("images", "labels", "names", "message"),
  [
    (IMAGES / 255, LABELS, None, r"float64\[24, 8, 8, 3\]: give uint8"),
    (IMAGES[..., :0], LABELS, None, r"uint8\[24, 8, 8, 0\]: give uint8"),
    (IMAGES[:, :, None].repeat(33, 3).reshape(24, 8, 1, -1), LABELS, None, "C at most 256"),
    (IMAGES, LABELS[:5], None, r"int64\[5\] for 24 images"),
    (IMAGES, LABELS / 2, None, "give one integer"),
    (IMAGES, LABELS, ["a", "b"], "example 2 has label 2, but labels are 0 to 1"),
    (IMAGES, LABELS - 1, None, "example 0 has label -1"),
    (IMAGES, SEVERAL[:5], None, r"bool\[5, 3\] for 24 images"),
    (IMAGES, SEVERAL.astype(int), None, "or bool"),
    (IMAGES, SEVERAL, ["a", "b"], r"bool\[24, 3\] for 2 class_names"),
    (IMAGES[:0], LABELS[:0], ["a"], "the data set is empty"),
  ],
)
def test_arrays_that_are_no_data_set_are_refused(images, labels, names, message):
  with pytest.raises(RequestError, match=message):
    data.from_arrays(images, labels, names)


def test_sequences_without_classes_are_refused():
  with pytest.raises(RequestError, match="give class_names"):
    data.from_sequence([(IMAGES[0], 0)])


@pytest.mark.parametrize(
  ("example", "message"),
  [
    ((IMAGES[0] / 255, 0), r"example 1: it cannot be read \(ValueError: float64"),
    ((IMAGES[0], 3), "example 1: it has label 3, but labels are 0 to 2"),
    (("photo.jpg", 0), "example 1: it cannot be read"),
    (7, "example 1: it cannot be read"),
  ],
)
def test_an_example_that_is_none_is_named(example, message):
  good = (IMAGES[0], 0)
  with pytest.raises(RequestError, match=message):
    read(data.from_sequence([good, example, *[good] * 7], ["0", "1", "2"]), max_corrupt=0.0)


@pytest.mark.parametrize("label", [[1, 0], [1, 0, 2], 1])
def test_an_example_with_labels_of_another_kind_is_named(label):
  several = [(IMAGES[0], [1, 0, 1]), (IMAGES[0], label), *[(IMAGES[0], [1, 0, 1])] * 6]
  with pytest.raises(
    RequestError, match=r"example 1: it has the labels .* 0 or 1 for each of the 3"
  ):
    read(data.from_sequence(several, "abc"), max_corrupt=0.0)


def test_a_first_example_that_cannot_be_read_is_named():
  with pytest.raises(RequestError, match="example 0 cannot be read"):
    data.from_sequence([7], "abc")


def test_a_first_example_of_another_kind_is_named():
  first = (IMAGES[0].transpose(2, 0, 1) / 255, 0)
  with pytest.raises(RequestError, match=r"example 0: it cannot be read \(ValueError: float64"):
    data.from_sequence([first], class_names=["a"])


def test_a_finished_run_is_not_taken_for_one_on_other_images(caplog):
  info = data.DatasetInfo(3, ("a", "b", "c"), 24, 6)
  config = config_of(**{"data.name": "python"})
  for began, is_said in (
    ({"num_train": 24, "num_test": 6}, False),
    ({"num_train": 20, "num_test": 6}, True),
  ):
    caplog.clear()
    progress.announce(config, info, [], config.steps, began)
    assert ("choose another run directory" in caplog.text) == is_said


def test_other_classes_in_the_test_set_are_refused(tmp_path):
  train, test = data.from_arrays(IMAGES, LABELS), data.from_arrays(IMAGES[:2], LABELS[:2])
  with pytest.raises(RequestError, match="train has 3 classes and test has 2"):
    fit(config_of(), tmp_path / "run", train=train, test=test)
  assert list(tmp_path.iterdir()) == []


def test_the_name_alone_is_no_data():
  config = config_lib.default().data
  config.name = "python"
  with pytest.raises(RequestError, match=r"train by nfnet_jax\.training\.fit"):
    data.describe(config)
