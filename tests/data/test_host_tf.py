"""TensorFlow's notices at its start."""

import os

import pytest

from nfnet_jax.data import host_tf

NOTICES = (
  b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
  b"I0000 00:00:1.2  3 port.cc:153] oneDNN custom operations are on.\n"
)


def test_notices_are_left_out_and_all_else_is_passed_on(capfd):
  with host_tf.without_notices():
    os.write(2, NOTICES + b"E0000 00:00:1.2  3 library.cc:1] broken\n" + NOTICES)
  os.write(2, b"afterwards\n")
  assert capfd.readouterr().err == "E0000 00:00:1.2  3 library.cc:1] broken\nafterwards\n"


def test_an_error_comes_through_with_what_was_said(capfd):
  def load():
    os.write(2, b"why\n")
    raise ImportError("no")

  with pytest.raises(ImportError, match="no"), host_tf.without_notices():
    load()
  assert capfd.readouterr().err == "why\n"
