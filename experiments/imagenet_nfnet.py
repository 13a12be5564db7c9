"""NFNets on ImageNet: the paper's runs (NFNet paper, Table 3 and appendix A).

  python -m nfnet_jax train --config=experiments/imagenet_nfnet.py:F0 --workdir=runs/f0

The variant after the colon, `F0` to `F7` or `F0+` to `F7+`, sets depth, widths, image sizes,
dropout and RandAugment's magnitude. 360 epochs at batch size 4096 are 112,602 steps. `F5+SAM` and
`F6+SAM` train with SAM, whose ascent takes 20 % of a device's images; every variant can.

What the paper reports for ImageNet, mean of three seeds (with SAM: one), and its milliseconds per
step of 32 images per device on TPUv3 and on one V100:

  variant   top-1   top-5    TPUv3     V100
  F0         83.6    96.8     73.3     56.7
  F1         84.7    97.1    158.5    133.9
  F2         85.1    97.3    295.8    226.3
  F3         85.7    97.5    532.2    524.5
  F4         85.9    97.6   1033.3   1190.6
  F5         86.0    97.6   1398.5   2177.1
  F5+SAM     86.3    97.9   1958.0
  F6+SAM     86.5    97.9   2774.1

It has no F6 without SAM. SAM's rho is published for fine-tuning alone, 0.05, and taken from there.
"""

from ml_collections import ConfigDict

from nfnet_jax import config as config_lib
from nfnet_jax.errors import RequestError
from nfnet_jax.models.nfnet import VARIANTS


def get_config(variant: str = "F0") -> ConfigDict:
  """The config of one variant; values that depend on it are resolved later."""
  network = variant.lower().removesuffix("+sam")
  if network not in VARIANTS:
    names = ", ".join(VARIANTS).upper()
    raise RequestError(f"unknown variant {variant!r}: choose one of {names}, with +SAM or without.")
  config = config_lib.default()
  config.model.name = f"nfnet_{network}"
  config.sam.rho = 0.05 if network != variant.lower() else 0.0
  config.model.stochdepth_rate = 0.25
  config.batch_size = 4096
  config.epochs = 360.0
  config.dtype = "bfloat16"

  # All 1,281,167 training images, as published. To tune, hold 10,000 of them out:
  # train_split="train[10000:]", test_split="train[:10000]".
  config.data.name = "imagenet2012"
  config.data.train_split = "train"
  config.data.test_split = "validation"

  config.augment.mixup_alpha = 0.2
  config.augment.cutmix = True
  config.augment.randaugment_layers = 4
  return config
