"""Separates the pixels of a PNG file, with libpng's checks, from its EXIF metadata."""

import zlib

from nfnet_jax.errors import RequestError

_SIGNATURE = 8  # bytes
_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_DEPTH = 24  # offset of the bit depth
_PROFILE = b"Raw profile type exif\0"
_LONGEST = 1 << 20  # most bytes of an unpacked profile


def split(content: bytes) -> tuple[bytes, bytes]:
  """Removes texts, colour profiles, animations and similar chunks.

  Pillow would read all of them, fail if one is damaged, and not detect damaged pixels.

  Args:
    content: content of a PNG file.

  Returns:
    EXIF metadata (empty if there are none), and the file with only the pixels.

  Raises:
    RequestError: if a needed chunk is damaged or cut off.
  """
  exif, profile, kept, at = b"", b"", [content[:_SIGNATURE]], _SIGNATURE
  view = memoryview(content)
  while True:
    name = content[at + 4 : at + 8]
    end = at + 12 + int.from_bytes(content[at : at + 4])
    if len(name) < 4 or (end > len(content) and name in _KEPT):
      raise RequestError("the file is cut off")
    if name == b"eXIf":
      exif = content[at + 8 : end - 4]
    elif name in (b"tEXt", b"zTXt") and content.startswith(_PROFILE, at + 8):
      profile = _of_profile(content[at + 8 + len(_PROFILE) : end - 4], name == b"zTXt")
    elif name in _KEPT:
      if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(content[end - 4 : end]):
        raise RequestError(f"its {name.decode()} chunk is damaged")
      kept.append(content[at:end])
    if name == b"IEND":
      return exif or profile, b"".join(kept)
    at = end


def scale(content: bytes) -> int:
  """The factor by which gray values of fewer than 8 bits are scaled when they are read."""
  return 255 // (2 ** content[_DEPTH] - 1)


def _of_profile(text: bytes, is_packed: bool) -> bytes:
  """EXIF metadata in ImageMagick's form: a name, a length, and lines of hexadecimal digits."""
  try:
    if is_packed:
      text = zlib.decompressobj().decompress(text[1:], _LONGEST)
    digits = b"".join(text.split(b"\n")[3:])
    return bytes.fromhex(digits[: len(digits) // 2 * 2].decode("ascii"))
  except (ValueError, zlib.error):
    return b""
