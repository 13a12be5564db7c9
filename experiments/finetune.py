"""Fine-tuning on one's own pictures: a weights file and a folder of photographs are all it needs.

  nfnet-jax train --config=experiments/finetune.py --config.init.weights=FILE --config.data.dir=DIR

DIR holds a folder of images for each class, or `train` and `test` with such folders. Without `test`
a fifth of every class is held out. Network, image size and preprocessing are those of the file, or
of `--config.model.name`; classes are those of the folder. Steps, batch size, learning rate, mixup
and the EMA's horizon follow from the number of images (`nfnet_jax/config/by_size.py`), and each can
be given instead. The run is written to `runs/finetune-DIR`, unless `--workdir` says otherwise.

  variant   what is trained
  all       everything (the default)
  probe     a linear classifier on the network's features, which stay as they are; images are
            prepared as for testing, so their features are computed once, before the first step
  paper     everything, by the recipe that the NFNet paper fine-tunes with after pre-training on
            300 million images (section 6.2): 15,000 steps of 2,048 images
"""

from ml_collections import ConfigDict

from nfnet_jax import config as config_lib
from nfnet_jax.config import by_size
from nfnet_jax.errors import RequestError


def get_config(variant: str = "all") -> ConfigDict:
  """The config of one variant; what it leaves open follows from the weights and the data."""
  if variant not in ("all", "probe", "paper"):
    raise RequestError(f"unknown variant {variant!r}: choose one of all, probe, paper.")
  config = config_lib.default()
  config.data.name = "folder"
  config.data.hold_out = 0.2
  config.init.head = "reset"
  config.model.stochdepth_rate = 0.1
  config.optimizer.weight_decay = 1e-5
  config.data.crop_area = (0.25, 1.0)
  config.update_from_flattened_dict(
    dict.fromkeys(("model.name", "model.in_channels", *by_size.OPEN))
  )
  if variant == "probe":
    config.optimizer.groups = ((r"[^/]+/~/linear/[wb]", 1.0), (".*", 0.0))
    config.optimizer.learning_rate_per_256 = 2.0
    config.model.stochdepth_rate = config.model.drop_rate = 0.0
    config.augment.mixup_alpha = 0.0
    config.data.random_crop = config.data.flip = False  # So features are computed once.
  if variant == "paper":
    config.batch_size, config.steps = 2048, 15000
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 0.1, 5000.0
    config.sam.rho = 0.05
    config.model.drop_rate = 0.25
    config.augment.mixup_alpha, config.ema_decay = 0.0, 0.99999
  return config
