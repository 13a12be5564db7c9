"""A normalizer-free network on scikit-learn's 1,797 handwritten digits: the two-minute run.

  python -m nfnet_jax train --config=experiments/digits.py --workdir=runs/digits

Trains `nfnet_micro` (not a network of the paper) on 1,437 images and tests on a held-out split of
360. It uses a scaled-down version of the paper's recipe: AGC, Nesterov momentum, warm-up and cosine
decay, label smoothing and stochastic depth. Nothing is downloaded.
"""

from ml_collections import ConfigDict

from nfnet_jax import config as config_lib


def get_config() -> ConfigDict:
  """The config of this run."""
  config = config_lib.default()
  config.model.name = "nfnet_micro"
  config.model.stochdepth_rate = 0.1
  config.batch_size = 64
  config.epochs = 60.0

  config.data.name = "digits"
  config.data.train_size = config.data.test_size = 16  # The digits have 8 x 8 pixels.
  # Milder crops than for ImageNet, and no flips, since a mirrored 2 is not a 2. With this padding,
  # test digits are as large as in the average training crop.
  config.data.crop_area = (0.5, 1.0)
  config.data.flip = False
  config.data.test_padding = 2

  config.optimizer.learning_rate_per_256 = 0.4
  config.eval_every = 200
  config.checkpoint_every = 200
  return config
