"""Compiled programs are cached where the user wants, or in the user's cache directory."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from nfnet_jax.cli import compile_cache

ROOT = pathlib.Path(__file__).parents[2]

# A program that is worth keeping at any length, through the command line's own start.
PROGRAM = """
import jax
from nfnet_jax.__main__ import main
assert main(["convert", "--weights=nowhere", "--out=x"]) == 2
jax.jit(lambda x: x * 3 + 1)(2.0)
"""


@pytest.fixture
def run(tmp_path):
  """Runs PROGRAM with a home of its own; gives the files that it left, below that home."""

  def start(**variables):
    given = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMP", "XDG"))}
    given |= {"HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | variables
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    done = subprocess.run(
      command, cwd=ROOT, env=given, check=True, stderr=subprocess.PIPE, text=True
    )
    assert done.stderr.startswith("nfnet-jax: cannot read weights")
    assert len(done.stderr.splitlines()) == 1
    return [path.relative_to(tmp_path) for path in tmp_path.rglob("*-cache")]

  return start


@pytest.mark.slow
def test_programs_are_kept_in_the_users_cache_directory(run, tmp_path):
  kept = run()
  assert kept
  assert {path.parts[:3] for path in kept} == {(".cache", "nfnet_jax", "compiled")}
  stamps = [(tmp_path / path).stat().st_mtime_ns for path in kept]
  assert run() == kept
  assert [(tmp_path / path).stat().st_mtime_ns for path in kept] == stamps


@pytest.mark.slow
def test_the_user_says_where(run, tmp_path):
  assert run(XDG_CACHE_HOME=f"{tmp_path}/a")[0].parts[:2] == ("a", "nfnet_jax")


@pytest.mark.slow
def test_jaxs_own_variables_come_first(run, tmp_path):
  assert run(JAX_ENABLE_COMPILATION_CACHE="false") == []
  assert {path.parts[0] for path in run(JAX_COMPILATION_CACHE_DIR=f"{tmp_path}/b")} == {"b"}
  assert not (tmp_path / ".cache").exists()


@pytest.mark.slow
def test_a_home_that_cannot_be_written_is_no_obstacle(run, tmp_path):
  (tmp_path / "file").write_text("")
  assert run(HOME=f"{tmp_path}/file") == []


def test_home_is_found_in_both_variables(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.setenv("XDG_CACHE_HOME", "~/mine")
  assert compile_cache.directory().relative_to(tmp_path / "mine")
  before = jax.config.jax_compilation_cache_dir
  try:
    jax.config.update("jax_compilation_cache_dir", "~/compiled")
    compile_cache.enable()
    assert jax.config.jax_compilation_cache_dir == f"{tmp_path}/compiled"
  finally:
    jax.config.update("jax_compilation_cache_dir", before)


def test_unlike_processors_share_nothing(monkeypatch):
  ours = compile_cache.directory()
  monkeypatch.setattr(compile_cache, "_features", lambda: "flags : avx512f")
  assert compile_cache.directory() != ours
  assert compile_cache.directory().parent == ours.parent
