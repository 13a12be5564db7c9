"""Reports of runs: what is in the page, and what is said of runs that lack something."""

import html
import html.parser
import json
import re

import pytest

from nfnet_jax import report
from nfnet_jax.__main__ import main
from nfnet_jax.errors import RequestError
from nfnet_jax.report import card, curves, found
from tests.report import example

SECTIONS = ["summary", "curves", "layers", "time", "images", "test", "config", "environment"]


class Tags(html.parser.HTMLParser):
  """All tags of a page, and its text outside of scripts and styles."""

  def __init__(self):
    super().__init__()
    self.tags, self.text, self._raw = [], "", None

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    self._raw = tag if tag in ("script", "style") else None

  def handle_endtag(self, tag):
    self._raw = None

  def handle_data(self, data):
    if not self._raw:
      self.text += f"{data} "


def read(path):
  """The text of a page, its tags, and the data of its plots."""
  content = path.read_text()
  parser = Tags()
  parser.feed(content)
  [plots] = re.findall(r'<script id="plots" type="application/json">(.*?)</script>', content)
  return " ".join(parser.text.split()), parser.tags, json.loads(plots)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
  """A finished run, which tests do not change."""
  return example.write(tmp_path_factory.mktemp("runs") / "first")


def test_a_page_has_every_section_and_needs_no_network(shared, tmp_path, capsys):
  out = tmp_path / "report.html"
  assert main(["report", str(shared), f"--out={out}"]) == 0
  said = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert said == {
    "out": str(out),
    "bytes": out.stat().st_size,
    "card": str(tmp_path / "README.md"),
    "runs": [{"workdir": str(shared), "step": 8}],
  }
  text, tags, plots = read(out)
  assert [attrs["id"] for tag, attrs in tags if tag == "section"] == SECTIONS
  addresses = [v for _, attrs in tags for k, v in attrs.items() if k in ("src", "href")]
  assert all(address.startswith(("#", "data:image/")) for address in addresses)
  assert [chart["title"] for chart in plots["charts"]][:2] == ["Loss", "Accuracy"]
  assert [each["title"] for each in plots["maps"][0]] == [
    *("Clipped units", "Gradient norm", "Weight norm", "Update norm")
  ]
  # Of two ants one is a bee, of one d&d none is right.
  assert "top-1 60.00%, mean of the classes 62.50%" in text
  assert "of which 75% were training steps (goodput)" in text
  assert "64 training and 20 test images" in text
  assert sum(tag == "img" for tag, _ in tags) == 4


def test_names_are_text(shared, tmp_path):
  report.write([str(shared)], tmp_path / "report.html")
  content = (tmp_path / "report.html").read_text()
  assert "<script>alert" not in content
  assert html.escape(example.NAMES[2]) in content
  card = (tmp_path / "README.md").read_text()
  assert "<script>" not in card
  assert r"d&amp;d \|" in card


def test_runs_share_their_axes(shared, tmp_path):
  other = example.write(tmp_path / "other", steps=6, **{"optimizer.clipping": 0.02})
  report.write([str(shared), str(other)], tmp_path / "report.html")
  text, _, plots = read(tmp_path / "report.html")
  loss = plots["charts"][0]
  assert loss["steps"] == [*range(1, 9)]
  assert [series["label"] for series in loss["series"]][::3] == ["first, train", "other, train"]
  assert loss["series"][3]["values"][5:] == [pytest.approx(1 / 6, rel=1e-4), None, None]
  assert "optimizer.clipping 0.01 0.02" in text
  assert "differ in their data" not in text
  assert "other is not finished: this page shows it as of step 6" in text
  assert not (tmp_path / "README.md").exists()  # A card is of one model.


def test_runs_of_the_same_name_are_told_apart(shared, tmp_path):
  other = example.write(tmp_path / "elsewhere/first")
  names = [run.name for run in found.read_all([str(shared), str(other)])]
  assert names == [str(shared), str(other)]


@pytest.mark.parametrize(
  ("changes", "what"),
  [
    ({"names": ("a", "b", "c", "d")}, "classes"),
    ({"began": example.BEGAN | {"num_test": 21}}, "numbers of test images"),
    ({"data.name": "folder", "data.dir": "photos"}, "data sets, directories"),
  ],
)
def test_runs_on_other_data_are_said_to_differ(shared, tmp_path, changes, what):
  other = example.write(tmp_path / "other", **changes)
  report.write([str(shared), str(other)], tmp_path / "report.html")
  text, *_ = read(tmp_path / "report.html")
  assert f"These runs differ in their data ({what}), so" in text


def test_a_run_of_an_older_version_has_a_report_of_what_it_recorded(tmp_path):
  workdir = example.write(tmp_path / "run")
  example.without_the_record(workdir)
  report.write([str(workdir)], tmp_path / "report.html")
  text, tags, plots = read(tmp_path / "report.html")
  assert [attrs["id"] for tag, attrs in tags if tag == "section"] == SECTIONS
  assert plots["charts"]
  assert plots["maps"] == [[]]
  for missing in ("values of layers", "times", "training images", "predictions"):
    assert f"No {missing} have been recorded." in text
  assert "jax 0.10.2" in text  # from its provenance


@pytest.mark.parametrize("remove", [True, False])
def test_a_run_without_metrics(tmp_path, remove):
  workdir = example.write(tmp_path / "run")
  if remove:
    (workdir / "metrics.jsonl").unlink()
  else:
    (workdir / "metrics.jsonl").write_text("")
  report.write([str(workdir)], tmp_path / "report.html")
  text, _, plots = read(tmp_path / "report.html")
  assert plots["charts"] == []
  assert "It has no metrics yet." in text


@pytest.mark.parametrize("name", ["metrics.jsonl", "layers.jsonl", "sessions.jsonl"])
def test_a_damaged_line_is_left_out_and_named(tmp_path, name):
  workdir = example.write(tmp_path / "run")
  example.damage(workdir, name)
  report.write([str(workdir)], tmp_path / "report.html")
  text, _, plots = read(tmp_path / "report.html")
  assert f"{name}: line 3 is not valid" in text
  assert plots["charts"]
  assert plots["maps"][0]


@pytest.mark.parametrize("name", ["samples.npz", "predictions.npz", "classes.json"])
def test_a_damaged_file_is_left_out_and_named(tmp_path, name):
  workdir = example.write(tmp_path / "run")
  (workdir / name).write_bytes((workdir / name).read_bytes()[:-30])
  report.write([str(workdir)], tmp_path / "report.html")
  text, *_ = read(tmp_path / "report.html")
  assert str(workdir / name) in text


def test_bad_requests_write_nothing(shared, tmp_path):
  out = tmp_path / "report.html"
  for runs, message in [
    ([tmp_path], "is not a run directory: it has no config.json"),
    ([shared, shared], "is given twice"),
    ([shared] * 9, "9 runs: name 1 to 8"),
  ]:
    with pytest.raises(RequestError, match=message):
      report.write([*map(str, runs)], out)
  assert main(["report", f"--out={out}"]) == 2
  assert [*tmp_path.iterdir()] == []
  out.write_text("mine")
  with pytest.raises(RequestError, match="exists: choose another name, or replace it with --force"):
    report.write([str(shared)], out)
  assert out.read_text() == "mine"
  assert report.write([str(shared)], out, force=True)["bytes"] > 10_000


def test_a_readme_of_somebody_stays(shared, tmp_path):
  (tmp_path / "README.md").write_text("# Mine\n")
  assert report.write([str(shared)], tmp_path / "report.html", force=True)["card"] is None
  assert (tmp_path / "README.md").read_text() == "# Mine\n"


def test_a_card_is_replaced_and_says_what_hubs_ask_for(tmp_path):
  workdir = example.write(tmp_path / "run", steps=6)
  for _ in range(2):
    assert report.write_beside(workdir) == workdir / "report.html"
  card = (workdir / "README.md").read_text()
  front = card.split("---")[1]
  assert "pipeline_tag: image-classification" in front
  assert "value: 0.7500" in front
  assert "| steps | 6 of 8: not finished |" in card
  assert "| training data | folder" not in card
  assert "ant, bee, &lt;script>" in card


def test_a_report_that_fails_ends_no_run(tmp_path, caplog, monkeypatch):
  workdir = example.write(tmp_path / "run")
  monkeypatch.setattr(curves, "charts", lambda runs: 1 / 0)
  assert report.write_beside(workdir) is None
  assert "no report was written (ZeroDivisionError" in caplog.text
  assert not (workdir / "report.html").exists()


def test_a_long_run_of_a_deep_network_fits_into_a_megabyte(tmp_path):
  """As F0's 10,000 steps with a line every 50."""
  workdir = example.write(tmp_path / "run", steps=200, num_layers=94)
  assert report.write([str(workdir)], tmp_path / "report.html")["bytes"] < 2**20
  *_, plots = read(tmp_path / "report.html")
  steps = plots["maps"][0][0]["steps"]
  assert (len(steps), steps[0], steps[-1]) == (100, 2, 200)  # Each column is the mean of two lines.


@pytest.mark.parametrize("has_run", [True, False])
def test_an_exported_file_has_a_card(shared, has_run):
  about = {
    **{"model": "nfnet_micro", "num_classes": 4, "class_names": example.NAMES, "loss": "softmax"},
    **{"size": 16, "padding": 0, "resize": "pil", "channels": 3, "sha256": "abc"},
  }
  run = found.read(shared) if has_run else None
  text = card.of_export("micro.onnx", about, run)
  assert "`[N, 16, 16, 3]` float32 pixels" in text
  assert "| sha256 | abc |" in text
  assert 'onnxruntime.InferenceSession("micro.onnx")' in text
  assert "&lt;script>" in text
  assert ("| ema_top1 | 0.7500 |" in text) == has_run
  assert ("model-index" in text) == has_run
  assert ("| batch_size | 16 |" in text) == has_run
