"""The files that a search finds, their order, and that the search ends."""

import os
import socket
import unicodedata
from pathlib import Path

import pytest

from nfnet_jax.data import search


def touch(folder: Path, *names: str | bytes) -> None:
  for name in names:
    path = os.path.join(os.fsencode(folder), os.fsencode(name))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb"):
      pass


def found(folder: Path) -> list[str]:
  return [os.path.relpath(path, folder) for path in search.images_below(str(folder)).images]


def skipped(folder: Path) -> dict[str, str]:
  pairs = search.images_below(str(folder)).skipped
  names = {os.path.relpath(path, folder): reason for path, reason in pairs}
  assert len(names) == len(pairs)
  return names


def test_plain_names_keep_the_order_of_their_text(tmp_path: Path) -> None:
  names = ["10.jpg", "9.jpg", "B.png", "a.PNG", "a_b.webp", "a.b.jpeg", "Z.bmp", "b.gif"]
  touch(tmp_path, *names)
  assert found(tmp_path) == sorted(names)
  assert skipped(tmp_path) == {}


def test_nested_images_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
  names = ["a/z.jpg", "a.jpg", "album.jpg/1.tif", "album.jpg/0/x.avif", "b.jpg", "a/b/c/d.ppm"]
  touch(tmp_path, *names)
  assert found(tmp_path) == sorted(names, key=lambda name: Path(name).parts)


@pytest.mark.parametrize(
  "name",
  [
    *(".hidden.jpg", "._a.jpg", ".ipynb_checkpoints/a.jpg", ".git/a.png"),
    *("__MACOSX/a.jpg", "@eaDir/a.jpg", "#recycle/a.jpg", "$RECYCLE.BIN/a.jpg"),
    *("Thumbs.db", "desktop.ini", "lost+found/a.jpg", "a/._a.jpg", "a/__MACOSX/a.jpg"),
  ],
)
def test_hidden_and_system_names_are_passed_over(tmp_path: Path, name: str) -> None:
  touch(tmp_path, "b.jpg", name)
  assert found(tmp_path) == ["b.jpg"]
  assert skipped(tmp_path) == {}


def test_what_is_no_image_is_skipped_with_the_reason(tmp_path: Path) -> None:
  folder = tmp_path / "folder"
  touch(folder, "a.jpg", "notes.txt", "scan.pdf", "no_ending", "sub/archive.zip")
  os.mkfifo(folder / "pipe.jpg")
  with socket.socket(socket.AF_UNIX) as endpoint:
    # The name of a socket may not be long.
    os.symlink(folder, link := f"/tmp/nfnet_jax_{os.getpid()}")
    endpoint.bind(f"{link}/socket.jpg")
    os.remove(link)
  os.symlink("/dev/zero", folder / "zero.jpg")
  os.symlink("nowhere", folder / "broken.jpg")
  os.symlink("self.jpg", folder / "self.jpg")
  assert found(folder) == ["a.jpg"]
  reasons = skipped(folder)
  assert reasons.pop("self.jpg").startswith("not accessible (")
  assert reasons == {
    **dict.fromkeys(("notes.txt", "scan.pdf", "no_ending"), "not a supported kind"),
    "sub/archive.zip": "not a supported kind",
    "pipe.jpg": "a pipe",
    "socket.jpg": "a socket",
    "zero.jpg": "a device",
    "broken.jpg": "a broken link",
  }


def test_links_are_followed_and_circles_named(tmp_path: Path) -> None:
  folder, other = tmp_path / "folder", tmp_path / "other"
  touch(folder, "a.jpg", "deep/er/b.jpg")
  touch(other, "c.jpg")
  os.symlink(folder / "a.jpg", folder / "link.jpg")
  os.symlink(other, folder / "more")
  os.symlink(other, folder / "once_more")
  os.symlink(".", folder / "self")
  os.symlink("..", folder / "up")
  os.symlink(folder / "deep", folder / "deep/er/back")
  assert found(folder) == ["a.jpg", "deep/er/b.jpg", "link.jpg", "more/c.jpg"]
  assert skipped(folder) == dict.fromkeys(
    ["deep/er/back", "once_more", "self", "up"], "a link back to a folder above it or read before"
  )
  # Its own path may be a link; what is above it then is above the folder behind it.
  os.symlink(folder, tmp_path / "alias")
  assert found(tmp_path / "alias") == found(folder)
  assert skipped(tmp_path / "alias") == skipped(folder)


def test_links_that_double_the_folder_at_each_level_take_no_time(tmp_path: Path) -> None:
  for i in range(30):
    touch(tmp_path, f"{i}/{i:02}.jpg")
    for name in "ab":
      os.symlink(tmp_path / str(i + 1), tmp_path / str(i) / name)
  touch(tmp_path, "30/30.jpg")
  images = search.images_below(str(tmp_path / "0")).images
  assert [os.path.basename(path) for path in images] == [f"{i:02}.jpg" for i in range(31)]


def test_names_are_the_same_text_whichever_system_wrote_them() -> None:
  names = ["é", unicodedata.normalize("NFD", "é"), os.fsdecode("é".encode("latin-1"))]
  assert len(set(names)) == 3
  assert {search.text(name) for name in names} == {"é"}
  assert search.text("plain.jpg") == "plain.jpg"


def test_order_is_that_of_the_text_whichever_system_wrote_it(tmp_path: Path) -> None:
  orders = []
  for form in ("NFC", "NFD"):
    names = [unicodedata.normalize(form, name) for name in ("é.jpg", "f.jpg", "e.jpg", "z.jpg")]
    touch(tmp_path / form, *names)
    orders.append([search.text(name) for name in found(tmp_path / form)])
  assert orders[0] == orders[1] == ["e.jpg", "f.jpg", "z.jpg", "é.jpg"]


def test_a_name_that_is_not_utf8_is_found(tmp_path: Path) -> None:
  touch(tmp_path, b"caf\xe9.jpg", b"caf\xe9.txt")
  [image] = search.images_below(str(tmp_path)).images
  assert os.path.exists(image)
  assert os.fsencode(image).endswith(b"caf\xe9.jpg")
  assert "1 skipped: 'caf\\udce9.txt' (" in search.summary(
    search.images_below(str(tmp_path)).skipped, str(tmp_path)
  )


@pytest.mark.parametrize(
  ("names", "order"),
  [
    (map(str, range(1000)), [str(i) for i in range(1000)]),
    (["10", "9", "010"], ["9", "010", "10"]),
    (["-1", "10", "-10", "2"], ["-10", "-1", "2", "10"]),
    (["10", "9", "x"], ["10", "9", "x"]),
    (["n02", "n1", "n10"], ["n02", "n1", "n10"]),
    (["٣", "10", "9"], ["10", "9", "٣"]),
  ],
)
def test_names_that_are_all_integers_sort_as_numbers(names: list[str], order: list[str]) -> None:
  assert search.in_order(names) == order


def test_summary_counts_all_and_names_the_first(tmp_path: Path) -> None:
  touch(tmp_path, *(f"{i}.txt" for i in range(8)))
  skipped = search.images_below(str(tmp_path)).skipped
  why = "not a supported kind"
  assert search.summary(skipped, str(tmp_path)) == (
    f"8 skipped: 0.txt ({why}), 1.txt ({why}), 2.txt ({why}) and 5 more"
  )
