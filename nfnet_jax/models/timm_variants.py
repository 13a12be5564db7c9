"""The table of timm's own normalizer-free networks, from its release 1.0.31."""

from typing import Any, NamedTuple


class Variant(NamedTuple):
  """Arguments by which a network differs from the others, and how its images are cropped.

  Sizes are in pixels; `crop` is the side of the test crop by that of the resized image.
  """

  kwargs: dict[str, Any]
  train_size: int
  test_size: int
  crop: float


_NFNET: dict[str, Any] = {"widths": (256, 512, 1536, 1536), "stem": "deep", "stem_width": 128}
_NFNET |= {"use_two_convs": True, "final_width": 3072}
_LIGHT = _NFNET | {"expansion": 0.25, "group_size": 64, "activation": "silu"}
_FULL = _NFNET | {"expansion": 0.5, "group_size": 128, "activation": "gelu", "se_ratio": 0.5}
_RESNET: dict[str, Any] = {"widths": (256, 512, 1024, 2048), "stem": "pooled", "stem_width": 64}
_RESNET |= {"expansion": 0.25, "group_size": None, "activation": "relu"}
_REGNET: dict[str, Any] = {
  "stem": "plain",
  "expansion": 2.25,
  "group_size": 8,
  "activation": "silu",
}
_REGNET |= {"se_ratio": 0.5, "inner_attention": True}
_TEST: dict[str, Any] = {
  "widths": (32, 64, 96, 128),
  "group_size": 8,
  "se_ratio": 0.25,
  "final_width": 192,
}

_NFNET_DEPTHS = [(k, 2 * k, 6 * k, 3 * k) for k in range(1, 9)]
_NFNET_SIZES = (
  *((192, 256), (224, 320), (256, 352), (320, 416)),
  *((384, 512), (416, 544), (448, 576), (480, 608)),
)
_LIGHT_SIZES = ((224, 288), (256, 320), (320, 384), (352, 448))
_RESNET_DEPTHS = {"26": (2, 2, 2, 2), "50": (3, 4, 6, 3), "101": (3, 4, 23, 3)}
_RESNETS: dict[str, Any] = {
  "timm_nf_resnet": {},
  "nf_seresnet": {"se_ratio": 1 / 16},
  "nf_ecaresnet": {"eca": True},
}
# Depths, widths (the papers' times 0.75), the last convolution's, sizes.
_REGNETS = {
  "b0": ((1, 3, 6, 6), (40, 80, 160, 328), 960, 192, 256),
  "b1": ((2, 4, 7, 7), (40, 80, 160, 328), 960, 256, 288),
  "b2": ((2, 4, 8, 8), (40, 88, 176, 368), 1064, 240, 272),
  "b3": ((2, 5, 9, 9), (40, 96, 184, 400), 1152, 288, 320),
  "b4": ((2, 6, 11, 11), (48, 112, 216, 464), 1344, 320, 384),
  "b5": ((3, 7, 14, 14), (64, 128, 256, 528), 1536, 384, 456),
}


def _light(k: int, *, crop: float = 1.0, **kwargs: Any) -> Variant:
  return Variant(_LIGHT | {"depths": _NFNET_DEPTHS[k]} | kwargs, *_LIGHT_SIZES[k], crop)


def _resnet(kind: str, depth: str) -> Variant:
  trained = (kind, depth) == ("timm_nf_resnet", "50")
  images = (256, 288, 0.94) if trained else (224, 224, 0.9)
  return Variant(_RESNET | _RESNETS[kind] | {"depths": _RESNET_DEPTHS[depth]}, *images)


def _regnet(row: tuple) -> Variant:
  depths, widths, final_width, train_size, test_size = row
  kwargs = {"depths": depths, "widths": widths, "stem_width": widths[0]}
  return Variant(_REGNET | kwargs | {"final_width": final_width}, train_size, test_size, 0.9)


# By timm's names, and with `timm_` before those that are the papers' networks' names here.
VARIANTS = {
  "nfnet_l0": _light(0, se_ratio=0.25, final_width=2304),
  "eca_nfnet_l0": _light(0, eca=True, final_width=2304),
  **{f"eca_nfnet_l{k}": _light(k, eca=True) for k in (1, 2, 3)},
  **{f"{kind}{depth}": _resnet(kind, depth) for kind in _RESNETS for depth in _RESNET_DEPTHS},
  **{f"timm_nf_regnet_{name}": _regnet(row) for name, row in _REGNETS.items()},
  **{
    f"timm_nfnet_f{k}": Variant(_FULL | {"depths": depths}, *_NFNET_SIZES[k], 0.9)
    for k, depths in enumerate(_NFNET_DEPTHS)
  },
  "test_nfnet": Variant(_LIGHT | _TEST | {"depths": (1, 1, 1, 1)}, 160, 160, 0.95),
}
