"""The site as it is built: it opens from a disk, and its search works there."""

import os
import subprocess
import sys

import pytest

from tests.docs.generators import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  pytest.importorskip("material", reason="needs the packages of docs/site/requirements.txt")
  folder = tmp_path_factory.mktemp("site")
  command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"]
  environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
  built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert built.returncode == 0, built.stderr
  return folder


@pytest.mark.parametrize("name", ["index.html", "reference/api/agc.html"])
def test_pages_search_without_a_server(browser, site, name):
  page = browser.new_page()
  said, asked = [], []
  page.on("console", lambda message: said.append(message.text))
  page.on("pageerror", lambda error: said.append(str(error)))
  page.on("request", lambda request: asked.append(request.url))
  page.goto((site / name).as_uri())
  page.locator(".md-search__input").click()
  page.locator(".md-search__input").press_sequentially("adaptive gradient clipping")
  page.locator(".md-search-result__item a", has_text="adaptive_grad_clip").first.click()
  page.wait_for_url("**/nfnet_jax.html?h=*")
  page.wait_for_selector("mark")
  assert said == []
  assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
  page.close()
