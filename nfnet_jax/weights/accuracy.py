"""Published accuracy on ImageNet's validation images and its other test sets.

`_PERCENT` and `_TIMMS_PERCENT` were measured on weights that can be downloaded. `_PAPERS` has what
the papers report; the weights of most of these runs were never published.
"""

from typing import NamedTuple

# Data sets by their TFDS names, and the splits that hold all their images.
SPLITS = {
  "imagenet2012": "validation",
  "imagenet2012_real": "validation",
  "imagenet_v2": "test",  # matched frequency, the default of TFDS
  "imagenet_sketch": "test",
  "imagenet_a": "test",
  "imagenet_r": "test",
}

# Top-1 and top-5 in percent at the test size, for the sets in the order above. They were measured
# on these weights and are taken from timm's results tables.
_PERCENT = {
  "nfnet_f0": (
    *((83.468, 96.570), (88.123, 97.903), (71.880, 90.720)),
    *((35.407, 55.525), (26.773, 58.067), (45.680, 61.333)),
  ),
  "nfnet_f1": (
    *((84.700, 97.178), (89.022, 98.254), (74.360, 92.040)),
    *((36.358, 55.717), (42.213, 71.227), (47.460, 62.140)),
  ),
  "nfnet_f2": (
    *((85.184, 97.340), (89.186, 98.228), (75.060, 92.270)),
    *((37.136, 56.993), (46.173, 74.693), (49.300, 63.923)),
  ),
  "nfnet_f3": (
    *((85.676, 97.576), (89.628, 98.461), (75.430, 92.900)),
    *((41.308, 62.135), (53.560, 79.293), (53.430, 67.583)),
  ),
  "nfnet_f4": (
    *((85.838, 97.652), (89.741, 98.405), (75.850, 92.990)),
    *((39.922, 60.414), (56.253, 81.373), (52.397, 66.913)),
  ),
  "nfnet_f5": (
    *((86.102, 97.688), (89.728, 98.435), (75.430, 92.770)),
    *((41.335, 62.019), (57.347, 82.080), (54.390, 68.570)),
  ),
  "nfnet_f6": (
    *((86.364, 97.900), (90.241, 98.629), (76.160, 93.170)),
    *((41.184, 62.821), (56.747, 81.533), (53.660, 68.183)),
  ),
}

# Top-1 in percent on imagenet2012 at the test size, of timm's own networks: the same tables.
_TIMMS_PERCENT = {
  **{"nfnet_l0": 82.766, "eca_nfnet_l0": 82.590, "eca_nfnet_l1": 84.062, "eca_nfnet_l2": 84.710},
  **{"timm_nf_resnet50": 80.658, "timm_nf_regnet_b1": 79.368, "test_nfnet": 47.634},
}

_TABLE_3 = "NFNet paper, table 3, mean of three seeds"
_TABLE_3_SAM = "NFNet paper, table 3, trained with SAM"
_TABLE_5 = "NFNet paper, table 5, pre-trained on JFT-300M"
_FIGURE_2A = "NFNet paper, figure 2a, read off; 90 epochs at batch size 1024, pre-activation"
_REGNETS = "NF-ResNet paper, figure of NF-RegNets, read off; with mixup and cutmix"
_AT_SCALE = "Smith et al. 2023 (arXiv 2310.16764), pre-trained on JFT-4B, tested at 480 pixels"

# Rows of top-1, top-5 (None if not published) and source, on imagenet2012.
_PAPERS: dict[str, tuple[tuple[float, float | None, str], ...]] = {
  "nfnet_f0": ((83.6, 96.8, _TABLE_3),),
  "nfnet_f1": ((84.7, 97.1, _TABLE_3),),
  "nfnet_f2": ((85.1, 97.3, _TABLE_3),),
  "nfnet_f3": ((85.7, 97.5, _TABLE_3),),
  "nfnet_f4": ((85.9, 97.6, _TABLE_3), (89.2, None, _TABLE_5)),
  "nfnet_f5": ((86.0, 97.6, _TABLE_3), (86.3, 97.9, _TABLE_3_SAM)),
  "nfnet_f6": ((86.5, 97.9, _TABLE_3_SAM),),
  "nfnet_f4+": ((89.2, None, _TABLE_5),),
  "nfnet_f7+": ((90.3, None, _AT_SCALE),),
  "nf_resnet50": ((77.0, None, f"{_FIGURE_2A}, with AGC"),),
  "nf_resnet200": ((79.6, None, f"{_FIGURE_2A}, with AGC"),),
  "resnet50": ((76.4, None, _FIGURE_2A),),
  "resnet200": ((78.9, None, _FIGURE_2A),),
  "nf_regnet_b0": ((77.0, None, _REGNETS),),
  "nf_regnet_b1": ((78.7, None, _REGNETS),),
  "nf_regnet_b2": ((80.0, None, _REGNETS),),
  "nf_regnet_b3": ((81.2, None, _REGNETS),),
  "nf_regnet_b4": ((82.5, None, _REGNETS),),
  "nf_regnet_b5": ((83.0, None, _REGNETS),),
}
_MEASURED = "measured on the published weights: timm's results tables"


class Published(NamedTuple):
  """A published accuracy.

  Attributes:
    dataset: the data set's TFDS name.
    top1, top5: in percent; None if not published.
    source: who measured it, where it is published, and what is special about it.
  """

  dataset: str
  top1: float
  top5: float | None
  source: str


def published(model: str) -> list[Published]:
  """All published accuracies of a network, the papers' own first.

  Args:
    model: one of `list_models()`.
  """
  rows = [Published("imagenet2012", *row) for row in _PAPERS.get(model, ())]
  if model in _TIMMS_PERCENT:
    rows.append(Published("imagenet2012", _TIMMS_PERCENT[model], None, _MEASURED))
  percent = _PERCENT.get(model, ())
  return rows + [
    Published(*(dataset, *row, _MEASURED)) for dataset, row in zip(SPLITS, percent, strict=False)
  ]


def expected(model: str, dataset: str, split: str) -> dict[str, float]:
  """`expected_top1` and `expected_top5` of the published weights, in 0..1, as far as known."""
  if (dataset, split) == ("imagenet2012", "validation") and model in _TIMMS_PERCENT:
    return {"expected_top1": round(_TIMMS_PERCENT[model] / 100, 5)}
  if SPLITS.get(dataset) != split or model not in _PERCENT:
    return {}
  percent = _PERCENT[model][list(SPLITS).index(dataset)]
  return {f"expected_top{k}": round(each / 100, 5) for k, each in zip((1, 5), percent, strict=True)}
