"""Tables of predictions: their figures, and the files of `evaluate --out`."""

import csv
import json

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from nfnet_jax import augment, create_model, data
from nfnet_jax.data import preprocess
from nfnet_jax.errors import RequestError
from nfnet_jax.inference import outcome_files, outcome_plot
from nfnet_jax.inference.evaluate import evaluate_weights
from nfnet_jax.losses import top_k_correct
from nfnet_jax.runs import outcome
from nfnet_jax.weights import save_weights
from tests import golden

SMALL = {"widths": (16,), "depths": (1,), "group_size": 8}
NAMES = ("$cat_1$ 猫", "ant", "bee", "dog")
COUNTS = (3, 5, 1, 4)


def answers(labels, predicted, probability):
  columns = np.asarray(labels), np.asarray(predicted), np.asarray(probability, float)
  return outcome.Answers(*columns, of_label=np.zeros(len(labels)))


def test_predictions_are_those_that_top1_counts():
  logits = np.float32([[0, 1, 1], [2, 2, 0], [5, 0, 0], [0, 0, 9]])
  labels, mask = np.int32([1, 1, 0, 0]), np.float32([1, 1, 1, 0])
  found = outcome.answers(logits, labels, mask)
  np.testing.assert_array_equal(found.predicted, [2, 1, 0])
  right = top_k_correct(logits, labels, 1)[:3]
  np.testing.assert_array_equal(found.predicted == found.labels, right == 1)
  p = np.asarray(jax.nn.softmax(logits))[:3]
  np.testing.assert_allclose(found.probability, p.max(1), rtol=1e-6)
  np.testing.assert_allclose(found.of_label, [p[0, 1], p[1, 1], p[2, 0]], rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_are_refused_unless_they_are_padding(value):
  logits = np.float32([[0, 1], [value, 0]])
  assert len(outcome.answers(logits, np.int32([0, 0]), np.float32([1, 0])).labels) == 1
  with pytest.raises(RequestError, match="not finite"):
    outcome.answers(logits, np.int32([0, 0]), np.float32([1, 1]))


def test_the_confusion_matrix_is_scikit_learns():
  rng = np.random.default_rng(0)
  found = answers(*rng.integers(0, 4, (2, 50)), rng.random(50))
  counts = outcome.confusion(found, 5)
  np.testing.assert_array_equal(
    counts, metrics.confusion_matrix(found.labels, found.predicted, labels=range(5))
  )
  figures = outcome.figures(found, 5)
  balanced = metrics.balanced_accuracy_score(found.labels, found.predicted)
  assert figures["mean_per_class_accuracy"] == pytest.approx(balanced)
  assert np.isnan(outcome.accuracies(counts)[4])


def test_the_calibration_error_by_hand():
  # Two bins: (0, 0.5] and (0.5, 1].
  found = answers([0, 0, 0, 0, 0], [0, 1, 0, 0, 1], [0.5, 0.3, 0.6, 0.8, 1.0])
  bins = outcome.calibration(found, 2)
  np.testing.assert_array_equal(bins.images, [2, 3])
  np.testing.assert_allclose(bins.confidence, [0.4, 0.8])
  np.testing.assert_allclose(bins.accuracy, [1 / 2, 2 / 3])
  assert outcome.calibration_error(bins) == pytest.approx(2 / 5 * 0.1 + 3 / 5 * (0.8 - 2 / 3))
  assert outcome.calibration_error(outcome.calibration(found)) == pytest.approx(
    (0.5 + 0.3 + 0.4 + 0.2 + 1.0) / 5
  )


def test_the_most_confident_errors_come_first():
  found = answers([0, 0, 1, 1, 0], [1, 0, 0, 0, 1], [0.6, 0.99, 0.9, 0.7, 0.9])
  np.testing.assert_array_equal(outcome.confident_errors(found, 3), [2, 4, 3])


def test_rows_are_in_the_order_of_names():
  found = answers([0, 1, 2], [0, 1, 2], [0.1, 0.2, 0.3])
  found, images = outcome.in_order(found, ["b/10.png", "b/9.png", "a/10.png"])
  assert images == ["a/10.png", "b/9.png", "b/10.png"]
  np.testing.assert_array_equal(found.labels, [2, 1, 0])
  np.testing.assert_array_equal(found.probability, [0.3, 0.2, 0.1])


def test_classes_that_do_not_occur_are_left_out():
  found, classes = outcome.compact(answers([0, 2, 1], [5, 2, 5], [1, 1, 1]), "abcdefg", 3)
  assert classes == ["a", "b", "c", "f"]
  np.testing.assert_array_equal(found.predicted, [3, 2, 3])
  np.testing.assert_array_equal(found.labels, [0, 2, 1])


@pytest.mark.parametrize("name", ["a.txt", "a", "no/folder/a.csv"])
def test_a_bad_place_is_refused(tmp_path, name):
  with pytest.raises(RequestError, match=r"must end in \.csv|folder that exists"):
    outcome_files.check(tmp_path / name, force=False)


@pytest.mark.parametrize("ending", [".csv", ".json", ".confusion.csv", ".png"])
def test_nothing_is_overwritten_unless_asked(tmp_path, ending):
  (tmp_path / f"a{ending}").touch()
  with pytest.raises(RequestError, match=f"a{ending} exists"):
    outcome_files.check(tmp_path / "a.csv", force=False)
  outcome_files.check(tmp_path / "a.csv", force=True)


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [2, 60])
def test_a_picture_of_any_number_of_classes(num_classes):
  labels = np.arange(num_classes)
  found = answers(labels, labels[::-1], np.linspace(0, 1, num_classes))
  names = [r"$\zzz$ 猫" * 10] * num_classes
  bins = outcome.calibration(found)
  content = outcome_plot.picture(outcome.confusion(found, num_classes), names, bins, "a$b$\udcff")
  assert content.startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("images")
  rng = np.random.default_rng(0)
  for name, count in zip(NAMES, COUNTS, strict=True):
    (root / "test" / name).mkdir(parents=True)
    for i in range(count):
      pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
      Image.fromarray(pixels).save(root / "test" / name / f"{i}.png")
  return root


@pytest.fixture
def evaluated(folder, tmp_path):
  """Evaluates a network of five classes, in an order of its own; gives files and network, too."""
  net = create_model("nfnet_micro", 5, **SMALL)
  shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), np.zeros((1, 8, 8, 3)), True)[0])
  params = golden.fill(jax.tree.map(lambda x: x.shape, shapes))
  params["NFNet/~/linear"]["w"] *= 30
  names = ("elk", *NAMES[::-1])

  def evaluated(loss="softmax", **request):
    about = {"preprocessing": '{"size": 8, "padding": 0}', "class_names": json.dumps(names)}
    path = tmp_path / f"w_{loss}"
    about["loss"] = loss
    save_weights(path, params, "nfnet_micro", provenance=about, force=True, **SMALL)
    request = {"dataset": "folder", "data_dir": str(folder), "batch_size": 8} | request
    return evaluate_weights(path, **{"out": str(tmp_path / "p.csv")} | request)

  return evaluated, lambda x: net.apply(params, {}, None, x)[0], names


@pytest.mark.slow
def test_every_row_is_of_its_image(evaluated, folder, tmp_path):
  """Eight devices, batches that are not full, and another order of the classes."""
  run, apply, names = evaluated
  plain, result = run(out=None), run()
  assert result.items() >= plain.items()
  assert result["out"] == str(tmp_path / "p.csv")
  with open(tmp_path / "p.csv", newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  paths = [str(path) for path in folder.rglob("*.png")]
  assert [row["image"] for row in rows] == sorted(paths)
  right = []
  for row in rows:
    pixels = preprocess.prepare(preprocess.read_image(row["image"]), 8, 0, "squash")
    p = np.asarray(jax.nn.softmax(apply(augment.normalize(pixels[None]))[0]))
    own = row["image"].split("/")[-2]
    assert row["class"] == own
    assert row["predicted"] == names[p.argmax()]
    assert float(row["probability"]) == pytest.approx(p.max(), abs=1e-5)
    assert float(row["probability_of_class"]) == pytest.approx(p[names.index(own)], abs=1e-5)
    right.append(row["predicted"] == own)
  assert 0 < np.mean(right) < 1
  assert result["top1"] == pytest.approx(np.mean(right))
  summary = json.loads((tmp_path / "p.json").read_text())
  assert summary["top1"] == result["top1"]
  for name in ("ece", "mean_per_class_accuracy"):
    assert summary[name] == pytest.approx(result[name])
  classes = [each["class"] for each in summary["classes"]]
  assert tuple(classes[:4]) == NAMES
  assert [each["images"] for each in summary["classes"]][:4] == list(COUNTS)
  expected = metrics.confusion_matrix(
    [row["class"] for row in rows], [row["predicted"] for row in rows], labels=classes
  )
  assert summary["confusion"] == expected.tolist()
  with open(tmp_path / "p.confusion.csv", newline="", encoding="utf-8") as file:
    table = list(csv.reader(file))
  assert table[0][1:] == classes
  assert [[int(x) for x in line[1:]] for line in table[1:]] == expected.tolist()
  errors = [row["image"] for row in rows if row["predicted"] != row["class"]]
  assert sorted(each["image"] for each in summary["confident_errors"]) == sorted(errors)
  assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize(
  ("loss", "several", "why"),
  [("sigmoid", False, "loss='sigmoid'"), ("softmax", True, "several correct labels")],
)
def test_other_questions_are_refused(evaluated, tmp_path, monkeypatch, loss, several, why):
  run, *_ = evaluated
  describe = data.describe
  monkeypatch.setattr(
    data, "describe", lambda *a, **kw: describe(*a, **kw)._replace(several_right=several)
  )
  with pytest.raises(RequestError, match=f"{why}: evaluate without --out"):
    run(loss)
  assert not list(tmp_path.glob("p*"))


@pytest.mark.slow
def test_images_that_change_meanwhile_are_refused(evaluated, tmp_path, monkeypatch):
  run, *_ = evaluated
  names = data.test_names
  monkeypatch.setattr(data, "test_names", lambda *args, **kwargs: [*names(*args, **kwargs)][1:])
  with pytest.raises(RequestError, match="changed while they were evaluated"):
    run()
  assert not list(tmp_path.glob("p*"))
