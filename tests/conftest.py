"""Eight fake CPU devices for every test, set before JAX starts, and what all tests share."""

import os
import pathlib
import shutil
import signal
import tempfile

import pytest

from tests.devices import xla_flags

# A shell that starts tests in the background has them ignore Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = xla_flags(8)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Shared with the processes that tests start and those that pytest-xdist does, so that each program
# is compiled once.
if "PYTEST_XDIST_WORKER" not in os.environ:
  _SHARED = tempfile.TemporaryDirectory(prefix="nfnet_jax_tests_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{_SHARED.name}/compiled"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


@pytest.fixture(scope="session")
def digits() -> pathlib.Path:
  """A data directory with the digits, written once for all processes. Copy it to change it."""
  from nfnet_jax.data import digits

  directory = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).with_name("digits")
  digits.write_if_absent(str(directory))
  return directory


@pytest.fixture(scope="module")
def browser():
  """Chromium, which Playwright drives; it is closed before other modules' event loops begin."""
  sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
  names = ("chromium", "chromium-browser", "google-chrome")
  path = next(filter(None, map(shutil.which, names)), None)
  if not path:
    pytest.skip("needs Chromium: apt-get install chromium")
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
    yield browser
    browser.close()
