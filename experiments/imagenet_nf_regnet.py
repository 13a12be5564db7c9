"""NF-RegNets on ImageNet (NF-ResNet paper, section 5).

  python -m nfnet_jax train --config=experiments/imagenet_nf_regnet.py:B0 --workdir=runs/regnet_b0

The variant after the colon, `B0` to `B8`, sets depth, widths, image sizes, dropout and weight
decay. The run has 360 epochs, which are 450,410 steps at batch size 1024, in float32, with mixup
and cutmix, without AGC. Top-1 on ImageNet, read from the paper's figure to about 0.1, and
multiply-adds at the test size; the paper gives no times:

  variant          B0      B1      B2      B3      B4      B5
  top-1          77.0    78.7    80.0    81.2    82.5    83.0
  billions       0.44    0.73    1.10    2.00    4.47   10.56

B6 to B8 are only in the published code, without a weight decay; here they use B5's.
"""

from ml_collections import ConfigDict

from nfnet_jax import config as config_lib
from nfnet_jax.errors import RequestError
from nfnet_jax.models.nf_regnet import VARIANTS

WEIGHT_DECAY = {"b0": 5e-5, "b1": 6e-5, "b2": 7e-5, "b3": 8e-5, "b4": 9e-5}


def get_config(variant: str = "B0") -> ConfigDict:
  """The config of one variant; other values that depend on it are resolved later."""
  name = variant.lower()
  if name not in VARIANTS:
    raise RequestError(f"unknown variant {variant!r}: choose one of {', '.join(VARIANTS).upper()}.")
  config = config_lib.default()
  config.model.name = f"nf_regnet_{name}"
  config.model.stochdepth_rate = 0.1
  config.batch_size = 1024
  config.epochs = 360.0
  config.optimizer.learning_rate = 0.4
  config.optimizer.final_learning_rate = 0.001
  config.optimizer.clip = "none"
  config.optimizer.weight_decay = WEIGHT_DECAY.get(name, 1e-4)

  config.data.name = "imagenet2012"
  config.data.train_split = "train"
  config.data.test_split = "validation"

  config.augment.mixup_alpha = 0.2
  config.augment.cutmix = True
  return config
