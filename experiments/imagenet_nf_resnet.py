"""NF-ResNets on ImageNet, pre-activation (NF-ResNet paper; NFNet paper, section 4.1 and figure 2).

  python -m nfnet_jax train --config=experiments/imagenet_nf_resnet.py:50 --workdir=runs/nf_resnet50

The variant after the colon is the number of layers: 50, 101, 152, 200, 288 or 600. Training follows
figure 2 of the NFNet paper: 90 epochs, which are 112,602 steps at batch size 1024; Nesterov's
momentum; learning rate 0.1 for 256 images; only random crops and flips. At batch size 4096 these
networks collapse without AGC. Top-1 on ImageNet, read from figure 2a to about 0.05:

  batch                        256     512    1024    2048    4096
  ResNet-50 with BatchNorm    76.9    76.8    76.4    76.8    76.8
  NF-ResNet-50                76.6    76.7    76.9    76.9       -
  NF-ResNet-50, AGC           76.8    76.9    77.0    76.9    76.7
  NF-ResNet-200               79.3    79.5    79.5    79.6       -
  NF-ResNet-200, AGC          79.2    79.4    79.6    79.5    79.2

To train without AGC, use --config.optimizer.clip=none. The paper gives neither times nor the weight
decay of these runs; 5e-5 is the value of the smallest NF-RegNet.
"""

from ml_collections import ConfigDict

from nfnet_jax import config as config_lib
from nfnet_jax.errors import RequestError
from nfnet_jax.models.nf_resnet import DEPTHS


def get_config(depth: str = "50") -> ConfigDict:
  """The config of one depth."""
  if depth not in DEPTHS:
    raise RequestError(f"unknown depth {depth!r}: choose one of {', '.join(DEPTHS)}.")
  config = config_lib.default()
  config.model.name = f"nf_resnet{depth}"
  config.model.stochdepth_rate = 0.1
  config.batch_size = 1024
  config.epochs = 90.0
  config.dtype = "bfloat16"
  config.optimizer.weight_decay = 5e-5

  config.data.name = "imagenet2012"
  config.data.train_split = "train"
  config.data.test_split = "validation"
  return config
