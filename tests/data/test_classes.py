"""Class names: ImageNet's, those in files, and how they are matched with a data set's."""

import ast
import os
import pathlib
import re
import unicodedata

import pytest
from etils import epath

from nfnet_jax.data import classes
from nfnet_jax.errors import RequestError
from nfnet_jax.runs import record
from tests import tiny

IMAGENET = tuple(classes.imagenet())
E = "caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")


def test_imagenets_names():
  tfds = pytest.importorskip("tensorflow_datasets")
  assert tuple(tfds.builder("imagenet2012").info.features["label"].names) == IMAGENET
  called = classes.imagenet()
  assert (called["n01440764"], called["n15075141"]) == ("tench", "toilet tissue")
  assert (called["n02012849"], called["n03126707"]) == ("crane", "crane")
  assert all(name == name.strip() and name for name in called.values())


def test_imagenets_names_are_installed_too():
  root = pathlib.Path(classes.__file__).parents[1]
  others = [
    path for path in root.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
  ]
  setup = (root.parent / "setup.py").read_text()
  patterns = ast.literal_eval(re.search(r'package_data=\{"nfnet_jax": (\[.*?\])', setup)[1])
  installed = {path for pattern in patterns for path in root.glob(pattern)}
  assert [path for path in others if path not in installed] == []


@pytest.mark.parametrize(
  ("names", "known", "columns"),
  [
    ("abc", None, (0, 1, 2)),
    ("abc", "abc", (0, 1, 2)),
    ("abc", "cab", (1, 2, 0)),
    ("ca", "abc", (2, 0)),
    ("210", "012", (2, 1, 0)),
    ((E[0], "tea"), ("tea", E[1]), (1, 0)),
  ],
)
def test_classes_are_found_by_name(names, known, columns):
  assert classes.choose(names, len(known or names), known) == columns


def test_classes_of_a_network_without_names_are_said_to_be_guessed(caplog):
  assert classes.choose("abc", 3) == (0, 1, 2)
  assert "assumed to be the data set's, 'a', 'b', 'c'" in caplog.text
  caplog.clear()
  assert classes.choose("012", 3) == classes.choose("abc", 3, "abc") == (0, 1, 2)
  assert caplog.text == ""


def test_imagenets_classes_are_found_by_name_or_by_number():
  few = IMAGENET[7], IMAGENET[3]
  assert classes.choose(few, 1000) == (7, 3)
  assert classes.choose(few, 1000, IMAGENET) == (7, 3)
  others = tuple(f"bird {i}" for i in range(1000))
  assert classes.choose(others, 1000) == tuple(range(1000))  # a network without names
  # The folders of ImageNetV2 are called 0 to 999.
  for text in ("{}", "{:04}"):
    numbers = tuple(text.format(i) for i in range(1000))
    assert classes.choose(numbers, 1000, IMAGENET) == tuple(range(1000))


@pytest.mark.parametrize(
  ("names", "num_classes", "known", "said"),
  [
    ("abz", 3, "abc", "only the network has 'c'; only the data set has 'z'"),
    ("abcz", 3, "abc", "only the data set has 'z'"),
    ("012", 3, "abc", "only the data set has '0', '1', '2'"),
    ("abc", 3, "012", "only the data set has 'a', 'b', 'c'"),
    ("abc", 10, None, "10 classes without names, but the data set has 3 ('a', ...)"),
    ((*E, "tea"), 3, ("tea", E[0], "x"), "the same name, 'caf\u00e9'"),
    ((*IMAGENET[:999], "fish"), 1000, None, "with other names ('fish')"),
    (IMAGENET[:2], 2, "ab", "only the data set has 'n01440764'"),
  ],
)
def test_other_names_are_refused(names, num_classes, known, said):
  with pytest.raises(RequestError) as error:
    classes.choose(names, num_classes, known)
  assert said in str(error.value)


@pytest.mark.parametrize(
  "content",
  [
    b"cat\ndog\n",
    b"\xef\xbb\xbfcat\r\n dog \r\n\r\n",
    b'["cat", "dog"]',
    b'\xef\xbb\xbf\n {"1": "dog", "0": "cat"}',
  ],
)
def test_lists_of_names(content, tmp_path):
  (tmp_path / "names").write_bytes(content)
  assert classes.read_list(tmp_path / "names", 2) == ("cat", "dog")


@pytest.mark.parametrize(
  ("content", "said"),
  [
    (b"cat\n", "names 1 classes, but the network has 2"),
    (b"cat\ncat\n", "the name 'cat' twice"),
    (E[0].encode() + b"\n" + E[1].encode(), "the name 'caf\u00e9' twice"),
    ("caf\u00e9\ntea".encode("latin-1"), "not text in UTF-8"),
    ("cat\ndog".encode("utf-16"), "not text in UTF-8"),
    (b'["cat", 2]', "not a list of names"),
    (b'["cat", "dog"', "delimiter"),
    (b"[" * 100_000, "recursion"),
    (b'{"cat": 0, "dog": 1}', "its keys are not the numbers from 0 to 1"),
    (b'{"1": "cat", "2": "dog"}', "its keys are not the numbers from 0 to 1"),
    (b'{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}', "not a list of names"),
  ],
)
def test_bad_lists_of_names(content, said, tmp_path):
  (tmp_path / "names").write_bytes(content)
  with pytest.raises(RequestError, match="cannot read class names from") as error:
    classes.read_list(tmp_path / "names", 2)
  assert said in str(error.value)


def test_names_are_read_from_regular_files(tmp_path):
  for path, said in (
    (tmp_path, "not a regular"),
    ("/dev/zero", "not a regular"),
    ("no", "No such"),
  ):
    with pytest.raises(RequestError, match=said):
      classes.read_list(path, 2)


# A run's names.


@pytest.fixture
def claim(tmp_path):
  """Claims a run directory for a data set; gives the names that it holds then."""
  workdir = epath.Path(tmp_path / "run")

  def claim(*names, data="folder"):
    config = tiny.config(**{"data.name": data, "data.dir": str(tmp_path)})
    with record.claim_workdir(workdir, config, names):
      record.write_config(workdir, config, names, {})
      return classes.load(workdir, 4)

  claim.file = tmp_path / "run/classes.json"
  return claim


def test_a_run_keeps_its_names(claim):
  assert claim("a", "b", E[1], "d") == ("a", "b", E[0], "d")
  assert claim("a", "b", E[0], "d") == ("a", "b", E[0], "d")
  before = claim.file.read_bytes()
  with pytest.raises(RequestError, match="only the network has 'b'; only the data set has 'z'"):
    claim("a", E[0], "d", "z")
  with pytest.raises(RequestError, match=r"another order \(label 0 was 'a' and is 'b'\)"):
    claim("b", "a", E[0], "d")
  assert claim.file.read_bytes() == before
  claim.file.write_text('["a", "b"]')
  with pytest.raises(RequestError, match="names 2 classes, but the network has 4"):
    claim("a", "b", E[0], "d")


@pytest.mark.parametrize(
  ("content", "said"),
  [
    (b"", "Expecting value"),
    (b"null", "not a list of names"),
    (b'{"0": "a"}', "not a list of names"),
    (b'["a", "b", "c", 4]', "not a list of names"),
    (b'["a", "b", "c", "a"]', "the name 'a' twice"),
    (b'["a", "b", "c", "\xe9"]', "can't decode"),
    (b"[" * 100_000, "nested"),
    (None, "it is not a file"),
  ],
)
def test_damaged_names_of_a_run(claim, content, said):
  claim("a", "b", "c", "d")
  claim.file.unlink()
  os.mkfifo(claim.file) if content is None else claim.file.write_bytes(content)
  with pytest.raises(RequestError) as error:
    claim("a", "b", "c", "d")
  assert said in str(error.value)
  assert str(claim.file) in str(error.value)


def test_nothing_is_written_for_two_classes_of_one_name(claim):
  with pytest.raises(RequestError, match="have the same name"):
    claim("a", *E, "d")
  assert not claim.file.parent.exists()


def test_names_of_runs_of_a_time_when_they_were_not_kept(claim, tmp_path):
  names = ("1", "2", "10", "11")
  claim(*names, data="tiny")
  claim.file.unlink()
  assert claim(*names, data="tiny") == names
  claim.file.with_name("config.json").unlink()
  claim(*names)
  claim.file.unlink()
  for name in names:
    (tmp_path / "train" / name).mkdir(parents=True)
  # Folders were sorted as text: 1, 10, 11, 2.
  with pytest.raises(RequestError, match=r"another order \(label 1 was '10' and is '2'\)") as error:
    claim(*names)
  assert not claim.file.exists()
  # The advice, followed.
  assert "put a letter before the number of each class folder (c0, c1, ...)" in str(error.value)
  for name in names:
    (tmp_path / "train" / name).rename(tmp_path / "train" / f"c{name}")
  assert claim("c1", "c10", "c11", "c2") == ("c1", "c10", "c11", "c2")
