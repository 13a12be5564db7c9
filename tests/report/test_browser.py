"""The page in a browser: it needs Chromium, which Playwright drives."""

import json

import pytest

from nfnet_jax import report
from tests.report import example

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
  folder = tmp_path_factory.mktemp("report")
  runs = [str(example.write(folder / name)) for name in ("first", "second")]
  report.write(runs, folder / "report.html")
  return folder / "report.html"


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_draws_without_an_error_or_a_request(browser, page_file, scheme, width):
  page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
  said, asked = [], []
  page.on("console", lambda message: said.append(message.text))
  page.on("pageerror", lambda error: said.append(str(error)))
  page.on("request", lambda request: asked.append(request.url))
  page.goto(page_file.as_uri())
  page.wait_for_selector("html[data-plots]")
  assert said == []
  assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
  assert (
    page.locator("canvas").count() == int(page.locator("html").get_attribute("data-plots")) == 14
  )
  assert page.evaluate("document.documentElement.scrollWidth") == width
  paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
  assert (sum(map(int, paper[4:-1].split(","))) > 400) == (scheme == "light")
  page.close()


def test_keys_show_values_and_zoom(browser, page_file):
  page = browser.new_page(viewport={"width": 1400, "height": 900})
  page.goto(page_file.as_uri())
  page.wait_for_selector("html[data-plots]")
  plot = page.locator(".uplot").first
  plot.focus()
  for key in ("Home", "ArrowRight", "ArrowRight"):
    plot.press(key)
  page.wait_for_timeout(100)
  assert "first, train0.3333" in "".join(plot.inner_text().splitlines()).replace("\t", "")
  zoomed = "plots[0].scales.x.max - plots[0].scales.x.min"
  assert page.evaluate(zoomed) == 7
  plot.press("+")
  page.wait_for_timeout(100)
  assert page.evaluate(zoomed) < 7
  plot.press("0")
  page.wait_for_timeout(100)
  assert page.evaluate(zoomed) == 7
  page.close()


def test_scales_of_curves_that_never_change(browser, tmp_path):
  run = example.write(tmp_path / "run")
  constant = {"top1": 1.0, "learning_rate": 0.0, "clipped_share": 0.0}
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  for line in lines:
    line.update({name: constant[name] for name in line if name in constant})
    if "ema_top1" in line:
      line.update({"ema_top1": 0.96, "top5": 1.0})
  (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  report.write([str(run)], tmp_path / "report.html")
  page = browser.new_page()
  page.goto((tmp_path / "report.html").as_uri())
  page.wait_for_selector("html[data-plots]")
  page.wait_for_timeout(100)
  found = page.evaluate("data.charts.map((c, i) => [c.title, plots[i].scales.y])")
  scales = {title: (round(y["min"], 4), round(y["max"], 4)) for title, y in found}
  assert scales["Accuracy"][0] >= 0.9
  assert scales["Accuracy"][1] == 1
  for title in ("Accuracy among five", "Clipped units", "Learning rate"):
    assert scales[title] == (0, 1)
  page.close()
