"""ResNets with BatchNorm on ImageNet: the baseline (NFNet paper, section 4.1 and figure 2).

  python -m nfnet_jax train --config=experiments/imagenet_resnet.py:50 --workdir=runs/resnet50

The variant after the colon is the number of layers: 50, 101, 152 or 200. Training is the same as in
imagenet_nf_resnet.py without AGC; only the networks differ. Top-1 on ImageNet, read from figure 2a
to about 0.05:

  batch             256     512    1024    2048    4096
  ResNet-50        76.9    76.8    76.4    76.8    76.8
  ResNet-200       78.7    79.0    78.9    79.0    78.9

Table 3 gives for ResNet-50 41.6 ms per step of 32 images per device on TPUv3, and 35.3 ms on one
V100. As in the paper, each device normalises over its own images; to normalise over those of all
devices, use --config.model.cross_replica_axis=devices.
"""

from ml_collections import ConfigDict

from nfnet_jax import config as config_lib
from nfnet_jax.errors import RequestError

DEPTHS = ("50", "101", "152", "200")


def get_config(depth: str = "50") -> ConfigDict:
  """The config of one depth."""
  if depth not in DEPTHS:
    raise RequestError(f"unknown depth {depth!r}: choose one of {', '.join(DEPTHS)}.")
  config = config_lib.default()
  config.model.name = f"resnet{depth}"
  config.model.stochdepth_rate = 0.0
  config.batch_size = 1024
  config.epochs = 90.0
  config.dtype = "bfloat16"
  config.optimizer.clip = "none"
  config.optimizer.weight_decay = 5e-5

  config.data.name = "imagenet2012"
  config.data.train_split = "train"
  config.data.test_split = "validation"
  return config
