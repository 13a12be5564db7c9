"""What the networks of a family share, for their cards; and where the weights of each are found."""

from typing import NamedTuple

from nfnet_jax.models import MODELS


class Family(NamedTuple):
  """Networks with one origin.

  Attributes:
    page: name of their page.
    title: its title.
    networks: names as in `nfnet_jax.list_models()`.
    what: what they are, in a sentence or two.
    purpose: what they are made for.
    weights: where the family's weights come from, and what reads them.
    licence: that of the weights.
    limits: what they cannot do, and what has not been tried.
  """

  page: str
  title: str
  networks: list[str]
  what: str
  purpose: str
  weights: str
  licence: str
  limits: str


_STORAGE = "https://storage.googleapis.com/dm-nfnets"
_HUB = "https://huggingface.co/timm"

# By network: links to files that people can download. This package downloads nothing.
WEIGHTS = {
  **{
    f"nfnet_f{k}": f"[`F{k}_haiku.npz`]({_STORAGE}/F{k}_haiku.npz) of the paper's authors, the "
    f"same as [`timm/dm_nfnet_f{k}.dm_in1k`]({_HUB}/dm_nfnet_f{k}.dm_in1k)"
    + (", trained with SAM" if k == 6 else "")
    for k in range(7)
  },
  **{
    name: f"[`timm/{tag}`]({_HUB}/{tag})"
    for name, tag in (
      ("nfnet_l0", "nfnet_l0.ra2_in1k"),
      ("eca_nfnet_l0", "eca_nfnet_l0.ra2_in1k"),
      ("eca_nfnet_l1", "eca_nfnet_l1.ra2_in1k"),
      ("eca_nfnet_l2", "eca_nfnet_l2.ra3_in1k"),
      ("timm_nf_resnet50", "nf_resnet50.ra2_in1k"),
      ("timm_nf_regnet_b1", "nf_regnet_b1.ra2_in1k"),
      ("test_nfnet", "test_nfnet.r160_in1k"),
    )
  },
}

_NONE = (
  "None are published. Train the network ([Experiments](../../experiments/README.md)), or choose "
  "one that has weights."
)
_NO_LICENCE = "This code is under Apache-2.0. There are no weights to license."
_IMAGENET = (
  "ImageNet's 1,000 classes, with its photographs' bias in content and origin: accuracy on other "
  "photographs is lower, as the rows for other test sets show where they are known. Not for "
  "decisions about people. ImageNet's own terms of access apply to its images."
)
_NEVER_LOADED = (
  "The published files themselves have never been loaded by this project, only files of the same "
  "layout with other values."
)
_OTHER_CLASSES = "classifying photographs, and as a start for [fine-tuning](../finetuning.md)"


def _of(*beginnings: str) -> list[str]:
  return [name for name in MODELS if name.startswith(beginnings)]


_NFNETS = [name for name in _of("nfnet_f") if not name.endswith("+")]

FAMILIES = (
  Family(
    "nfnet",
    "NFNet-F0 to F7",
    _NFNETS,
    "The networks of the NFNet paper (Brock et al. 2021, table 1): wide residual networks without "
    "normalisation, with scaled weight standardisation, squeeze-and-excitation and GELU. Depth "
    "and image size grow with the number. F7 is in the paper's code, not in the paper.",
    f"{_OTHER_CLASSES}.",
    "The paper's authors published F0 to F6, trained for 360 epochs on ImageNet with batch size "
    "4096. Their files, and timm's files of the same weights, are read as they are "
    "([Files](../files.md#weights)).",
    "The hub's pages of timm's copies state Apache-2.0, the licence of the authors' code.",
    f"{_IMAGENET} {_NEVER_LOADED} With timm's numerics the logits differ slightly "
    "([Questions](../faq.md)).",
  ),
  Family(
    "nfnet_plus",
    "NFNet-F0+ to F7+",
    [name for name in _of("nfnet_f") if name.endswith("+")],
    "Wider NFNets for pre-training on large data sets. The paper describes F4+; the others are "
    "in its code. The paper gives F4+ 527 million parameters and 367 billion multiply-adds; its "
    "code, and this one, have those of the table.",
    "pre-training on hundreds of millions of images.",
    _NONE,
    _NO_LICENCE,
    "Published figures need data that only their authors have (JFT-300M, JFT-4B).",
  ),
  Family(
    "nf_resnet",
    "NF-ResNets",
    _of("nf_resnet"),
    "Pre-activation ResNets without normalisation, of the NF-ResNet paper (Brock et al. 2021, "
    "arXiv 2101.08692). `se_ratio=0.25` adds squeeze-and-excitation.",
    "comparisons with BatchNorm ResNets, signal propagation, and research at small scale.",
    f"{_NONE} timm's network of the same name is another one: `timm_nf_resnet50`.",
    _NO_LICENCE,
    "Without AGC they fail at large batch sizes (NFNet paper, figure 2a).",
  ),
  Family(
    "nf_regnet",
    "NF-RegNets",
    _of("nf_regnet"),
    "Networks in the manner of RegNet and EfficientNet, without normalisation, of the NF-ResNet "
    "paper. B6 to B8 are in its code only.",
    "few parameters and multiply-adds.",
    f"{_NONE} timm's network of the same name is another one: `timm_nf_regnet_b1`.",
    _NO_LICENCE,
    "Narrow grouped convolutions: slower than their multiply-adds suggest.",
  ),
  Family(
    "timm",
    "timm's own networks",
    _of("nfnet_l", "eca_nfnet", "timm_", "nf_seresnet", "nf_ecaresnet", "test_nfnet"),
    "Normalizer-free networks that timm defines: smaller ones than the paper's (`nfnet_l0`, "
    "`eca_nfnet_l0` to `l3`), and variants of the papers' networks that differ from these in "
    "details. They compute what timm computes, up to rounding.",
    f"{_OTHER_CLASSES}: `nfnet_l0` and `eca_nfnet_l0` need much less time than NFNet-F0. "
    "`test_nfnet` is for trying things out.",
    "timm's authors published those with a link. `.safetensors`, `.pth` and `.bin` files are read "
    "as they are, with timm's preprocessing.",
    "The hub's pages of `nfnet_l0` and `eca_nfnet_l0` state Apache-2.0; see the page of your file.",
    f"{_IMAGENET} {_NEVER_LOADED}",
  ),
  Family(
    "batchnorm",
    "BatchNorm ResNets",
    _of("resnet"),
    "The papers' baseline: pre-activation ResNets with BatchNorm (`preactivation=False` for the "
    "original order).",
    "comparisons.",
    _NONE,
    _NO_LICENCE,
    "Results depend on the batch and on the number of devices ([Pods](../pods.md)).",
  ),
  Family(
    "micro",
    "nfnet_micro",
    ["nfnet_micro"],
    "An NFNet of half a million parameters (with ten classes) for images of about 32 pixels, not "
    "from the papers. With 1,000 classes, as counted here, it has twice as many.",
    "trying things out: `make train`, tests and examples.",
    "None. `make train` trains it on handwritten digits in about a minute.",
    _NO_LICENCE,
    "Too small for photographs of many classes.",
  ),
)
