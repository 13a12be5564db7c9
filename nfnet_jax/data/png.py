"""What of a PNG file makes its pixels, checked as libpng checks it, and its EXIF metadata."""

import zlib

from nfnet_jax.errors import RequestError

_SIGNATURE = 8  # bytes
_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}


def split(content: bytes) -> tuple[bytes, bytes]:
  """Takes texts, colour profiles, animations and the like out.

  Pillow would read them all, give up for a damaged one, and not notice damaged pixels.

  Args:
    content: of a PNG file.

  Returns:
    EXIF metadata (empty if there are none), and the file with the pixels alone.

  Raises:
    RequestError: a chunk that is needed is damaged or cut off.
  """
  exif, kept, at = b"", [content[:_SIGNATURE]], _SIGNATURE
  view = memoryview(content)
  while True:
    name = content[at + 4 : at + 8]
    end = at + 12 + int.from_bytes(content[at : at + 4])
    if len(name) < 4 or (end > len(content) and name in _KEPT):
      raise RequestError("the file is cut off")
    if name == b"eXIf":
      exif = content[at + 8 : end - 4]
    elif name in _KEPT:
      if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(content[end - 4 : end]):
        raise RequestError(f"its {name.decode()} chunk is damaged")
      kept.append(content[at:end])
    if name == b"IEND":
      return exif, b"".join(kept)
    at = end
