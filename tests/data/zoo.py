"""Small image files of all common kinds, with their expected pixels."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 21, 34
WHITE = 255


def pixels(channels: int = 3, seed: int = 0) -> np.ndarray:
  """A smooth picture with some noise, `[HEIGHT, WIDTH, channels]`."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(30, 226, (3, 4, channels), np.uint8)
  layers = [
    np.asarray(Image.fromarray(coarse[..., k]).resize((WIDTH, HEIGHT), Image.BICUBIC))
    for k in range(channels)
  ]
  noise = rng.integers(-12, 13, (HEIGHT, WIDTH, channels))
  return np.clip(np.stack(layers, -1) + noise, 0, 255).astype(np.uint8)


# What a viewer does to an image of each orientation.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
  1: lambda image: image,
  2: lambda image: image[:, ::-1],
  3: lambda image: np.rot90(image, 2),
  4: lambda image: image[::-1],
  5: lambda image: image.swapaxes(0, 1),
  6: lambda image: np.rot90(image, -1),
  7: lambda image: np.rot90(image, 2).swapaxes(0, 1),
  8: lambda image: np.rot90(image),
}


def exif(orientation: int, order: str = "<") -> bytes:
  """EXIF metadata that hold an orientation alone."""
  tiff = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, 1)
  entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
  return b"Exif\0\0" + tiff + entry + bytes(4)


def broken_exif() -> dict[str, bytes]:
  """Metadata by name that libraries stumble over; the last two hold an orientation, 6."""

  def tags(*entries: tuple[int, int, int, int]) -> bytes:
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)

  return {
    "cut": b"Exif\0\0II*\0",
    "offset": b"Exif\0\0II*\0" + struct.pack("<I", 1 << 30),
    "order": b"Exif\0\0XX*\0" + bytes(30),
    "text": b"Exif\0\0" + b"none" * 9,
    "orientation_0": exif(0),
    "orientation_9": exif(9),
    "no_orientation": tags((0x011A, 5, 1, 1 << 28)),
    "resolution": tags((0x0112, 3, 1, 6), (0x011A, 2, 9, 7), (0x0128, 7, 1 << 30, 5)),
    "ifd": tags((0x0112, 3, 1, 6), (0x8769, 2, 4, 4), (0x8825, 9, 1, 1 << 31)),
  }


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
  return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(values: np.ndarray, depth: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
  """A PNG of rows of bytes, `[HEIGHT, n]`, with further chunks before its pixels."""
  header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, 0)
  rows = b"".join(b"\0" + row.tobytes() for row in values)
  parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
  return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def blank_png(width: int, height: int, depth: int = 1) -> bytes:
  """A PNG of one colour, a thousandth of its pixels in size."""
  header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
  row = b"\0" + bytes((width * depth + 7) // 8)
  packer = zlib.compressobj(9)
  pixels = b"".join([packer.compress(row) for _ in range(height)]) + packer.flush()
  parts = (b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def repeated(gray: np.ndarray) -> np.ndarray:
  return np.repeat(gray[..., None], 3, axis=-1).astype(np.uint8)


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
  share = alpha[..., None] / 255
  return np.rint(colours * share + WHITE * (1 - share))


def jpegs() -> dict[str, tuple[bytes, None]]:
  """JPEG files; which pixels they mean is the decoder's affair."""
  colour, gray = Image.fromarray(pixels()), Image.fromarray(pixels()[..., 0])
  found = {
    f"{name}_{subsampling}_{'progressive' if progressive else 'baseline'}": encode(
      image, "JPEG", quality=80, subsampling=subsampling, progressive=progressive
    )
    for name, image in {"colour": colour, "gray": gray}.items()
    for subsampling in (["4:4:4", "4:2:2", "4:2:0"] if image.mode == "RGB" else ["4:4:4"])
    for progressive in (False, True)
  }
  # As many blocks in a row of the one as in a column of the other.
  wide = encode(colour.resize((32, 32)), "JPEG", subsampling="4:2:2")
  at = wide.index(b"\xff\xc0") + 11
  assert wide[at] == 0x21
  found["colour_4:4:0"] = wide[:at] + b"\x12" + wide[at + 1 :]
  found["colour_rgb"] = encode(colour, "JPEG", keep_rgb=True)
  found["cmyk"] = encode(colour.convert("CMYK"), "JPEG")
  found["with_text"] = encode(colour, "JPEG", comment=b"Exif\0\0 is only mentioned")
  found["with_profile"] = encode(colour, "JPEG", icc_profile=b"no profile" * 9000)
  found["mpo"] = encode(
    colour, "MPO", save_all=True, append_images=[Image.fromarray(pixels(seed=1))]
  )
  found["behind"] = encode(colour, "JPEG") + b"\0" * 50
  for orientation in range(1, 9):
    for order in "<>" if orientation in (1, 6) else "<":
      name = f"orientation_{orientation}{'_big' if order == '>' else ''}"
      found[name] = encode(colour, "JPEG", exif=exif(orientation, order))
  for name, metadata in broken_exif().items():
    plain = encode(colour, "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(metadata) + 2) + metadata
    found[f"exif_{name}"] = plain[:2] + segment + plain[2:]
  segment = b"\xff\xe1" + struct.pack(">H", len(exif(6)) + 2) + exif(6)
  found["orientation_6_fill"] = plain[:2] + b"\xff\xff" + segment + b"\xff" + plain[2:]
  at = plain.index(b"\xff\xc0")
  found["orientation_6_after_tables"] = plain[:at] + segment + plain[at:]
  return {f"jpeg_{name}": (content, None) for name, content in found.items()}


def pngs() -> dict[str, tuple[bytes, np.ndarray]]:
  colours, gray = pixels(), pixels()[..., 0]
  alpha = pixels(seed=2)[..., 0]
  alpha[:4], alpha[4:8] = 0, 255
  indices, palette = gray // 16, pixels(seed=3)[:4, :4].reshape(16, 3)
  deep = (gray.astype(int) * 256 + alpha).astype(">u2")
  deep_colours = (colours.astype(int) * 256 + 77).astype(">u2")
  bits = np.packbits(gray > 128, axis=1)
  transparent_index = bytes([0, 128]) + b"\xff" * 14
  shades = np.array([*transparent_index])[indices]
  profile = b"\nexif\n      %d\n%s\n" % (len(exif(6)), exif(6).hex().encode())
  dark = np.repeat(np.arange(HEIGHT, dtype=np.uint8)[:, None] % 4 * 0b01010101, 9, axis=1)
  shade = np.arange(HEIGHT)[:, None].repeat(WIDTH, 1) % 4 * 85
  return {
    "png_gray_2_key": (
      png(dark, 2, 0, (b"tRNS", b"\0\1")),
      repeated(np.where(shade == 85, WHITE, shade)),
    ),
    "png_bits_key": (
      png(np.packbits(gray > 128, axis=1), 1, 0, (b"tRNS", b"\0\0")),
      np.full((HEIGHT, WIDTH, 3), WHITE),
    ),
    "png_gray_4_key": (
      png((gray[:, ::2] // 16 << 4) + gray[:, 1::2] // 16, 4, 0, (b"tRNS", b"\0\6")),
      repeated(np.where(gray // 16 == 6, WHITE, gray // 16 * 17)),
    ),
    "png_orientation_6_text": (
      png(colours, 8, 2, (b"tEXt", b"Raw profile type exif\0" + profile)),
      TURNS[6](colours),
    ),
    "png_orientation_6_packed": (
      png(colours, 8, 2, (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile))),
      TURNS[6](colours),
    ),
    "png_profile_damaged": (
      png(colours, 8, 2, (b"zTXt", b"Raw profile type exif\0\0" + profile)),
      colours,
    ),
    "png_colour": (png(colours, 8, 2), colours),
    "png_gray": (png(gray, 8, 0), repeated(gray)),
    "png_compressed": (encode(Image.fromarray(colours), "PNG", optimize=True), colours),
    "png_bits": (png(bits, 1, 0), repeated((gray > 128) * 255)),
    "png_gray_4": (
      png((gray[:, ::2] // 16 << 4) + gray[:, 1::2] // 16, 4, 0),
      repeated(gray // 16 * 17),
    ),
    "png_palette": (png(indices, 8, 3, (b"PLTE", palette.tobytes())), palette[indices]),
    "png_palette_alpha": (
      png(indices, 8, 3, (b"PLTE", palette.tobytes()), (b"tRNS", transparent_index)),
      over_white(palette[indices], shades),
    ),
    "png_alpha": (
      png(np.dstack([colours, alpha]), 8, 6),
      over_white(colours, alpha),
    ),
    "png_gray_alpha": (
      png(np.dstack([gray, alpha]), 8, 4),
      over_white(repeated(gray), alpha),
    ),
    "png_gray_key": (
      png(gray, 8, 0, (b"tRNS", struct.pack(">H", gray[0, 0]))),
      np.where((gray == gray[0, 0])[..., None], WHITE, repeated(gray)),
    ),
    "png_colour_key": (
      png(colours, 8, 2, (b"tRNS", struct.pack(">HHH", *colours[0, 0]))),
      np.where((colours == colours[0, 0]).all(-1)[..., None], WHITE, colours),
    ),
    "png_gray_16": (png(deep, 16, 0), repeated(deep >> 8)),
    "png_gray_16_key": (
      png(deep, 16, 0, (b"tRNS", struct.pack(">H", deep[0, 0]))),
      np.where((deep == deep[0, 0])[..., None], WHITE, repeated(deep >> 8)),
    ),
    "png_colour_16": (png(deep_colours, 16, 2), colours),
    "png_alpha_16": (
      png(np.dstack([deep_colours, alpha.astype(int) * 257]).astype(">u2"), 16, 6),
      over_white(colours, alpha),
    ),
    "apng": (
      encode(
        Image.fromarray(colours),
        "PNG",
        save_all=True,
        append_images=[Image.fromarray(pixels(seed=1))],
      ),
      colours,
    ),
    "png_text": (png(colours, 8, 2, (b"tEXt", b"Comment\0tRNS and eXIf")), colours),
    "png_bomb": (png(colours, 8, 2, (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 22)))), colours),
    "png_palette_bomb": (
      png(
        indices,
        8,
        3,
        (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 22))),
        (b"PLTE", palette.tobytes()),
      ),
      palette[indices],
    ),
    **{
      f"png_orientation_{k}": (png(colours, 8, 2, (b"eXIf", exif(k)[6:])), TURNS[k](colours))
      for k in range(2, 9)
    },
    "png_exif_cut": (png(colours, 8, 2, (b"eXIf", b"II*")), colours),
  }


def others() -> dict[str, tuple[bytes, np.ndarray | None]]:
  colours, gray, alpha = pixels(), pixels()[..., 0], pixels(seed=2)[..., 0]
  image, second = Image.fromarray(colours), Image.fromarray(pixels(seed=1))
  transparent = Image.fromarray(np.dstack([colours, alpha]))
  few = image.quantize(16)
  drawn = np.asarray(few.convert("RGB"))
  binary = Image.fromarray(gray > 128)
  deep = gray.astype(np.uint16) * 256 + alpha
  animated = {"save_all": True, "append_images": [second]}
  little = b"II*\0" + encode(Image.fromarray(deep), "TIFF")[4:]
  at = little.index(struct.pack("<HHI", 262, 3, 1)) + 8
  negative = little[:at] + b"\0" + little[at + 1 :]
  rows, bits = b"".join(b"%d " % value for value in colours.ravel()), repeated((gray > 128) * 255)
  return {
    "webp": (encode(image, "WEBP", lossless=True), colours),
    "webp_lossy": (encode(image, "WEBP"), None),
    "webp_alpha": (
      encode(transparent, "WEBP", lossless=True, exact=True),
      over_white(colours, alpha),
    ),
    "webp_animated": (encode(image, "WEBP", lossless=True, **animated), colours),
    **{
      f"webp_orientation_{k}": (
        encode(image, "WEBP", lossless=True, exif=exif(k)),
        TURNS[k](colours),
      )
      for k in (3, 6)
    },
    "webp_exif_cut": (encode(image, "WEBP", lossless=True, exif=b"Exif\0\0II*"), colours),
    "gif": (encode(few, "GIF"), drawn),
    "gif_gray": (encode(Image.fromarray(gray), "GIF"), repeated(gray)),
    "gif_animated": (encode(few, "GIF", **animated), drawn),
    "gif_transparent": (
      encode(few, "GIF", transparency=3),
      np.where((np.asarray(few) == 3)[..., None], WHITE, drawn),
    ),
    "tiff": (encode(image, "TIFF"), colours),
    "tiff_lzw": (encode(image, "TIFF", compression="tiff_lzw"), colours),
    "tiff_deflate": (encode(image, "TIFF", compression="tiff_adobe_deflate"), colours),
    "tiff_pages": (encode(image, "TIFF", **animated), colours),
    "tiff_bits": (encode(binary, "TIFF", compression="group4"), bits),
    "tiff_palette": (encode(few, "TIFF"), drawn),
    "tiff_alpha": (encode(transparent, "TIFF"), over_white(colours, alpha)),
    "tiff_gray_16": (encode(Image.fromarray(deep), "TIFF"), repeated(gray)),
    "tiff_gray_16_negative": (negative, repeated(255 - gray)),
    "tiff_cmyk": (encode(image.convert("CMYK"), "TIFF"), colours),
    "tiff_orientation_6": (encode(image, "TIFF", tiffinfo={274: 6}), TURNS[6](colours)),
    "bmp": (encode(image, "BMP"), colours),
    "bmp_palette": (encode(few, "BMP"), drawn),
    "bmp_gray": (encode(Image.fromarray(gray), "BMP"), repeated(gray)),
    "bmp_bits": (encode(binary, "BMP"), bits),
    "bmp_32": (encode(transparent, "BMP"), colours),  # whose fourth byte means nothing
    "ppm": (encode(image, "PPM"), colours),
    "ppm_text": (b"P3 %d %d 255\n" % (WIDTH, HEIGHT) + rows, colours),
    "pgm": (encode(Image.fromarray(gray), "PPM"), repeated(gray)),
    "pgm_16": (
      b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + deep.astype(">u2").tobytes(),
      repeated(gray),
    ),
    "pbm": (encode(binary, "PPM"), bits),
    "avif": (encode(image, "AVIF"), None),
    "avif_alpha": (encode(transparent, "AVIF"), None),
    "avif_animated": (encode(image, "AVIF", **animated), None),
    "avif_orientation_6": (encode(image, "AVIF", exif=exif(6)), None),
  }


def everything() -> dict[str, tuple[bytes, np.ndarray | None]]:
  """By name, the content of each file and its pixels, where they do not depend on a decoder."""
  return {**jpegs(), **pngs(), **others()}
