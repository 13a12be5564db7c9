"""Augmentation on the device: keyed, batched functions.

In the order of the recipe, `pairs` and `mix` combine two images into one, `randaugment` distorts
it, and `normalize` maps it to the network's input (it is defined in `nfnet_jax.data`, because
evaluation needs it too). All are pure, have static shapes and run inside the training step. Random
draws depend on a key and an example's index in the global batch.
"""

from nfnet_jax.augment.mixing import blend as blend
from nfnet_jax.augment.mixing import cutmix_masks as cutmix_masks
from nfnet_jax.augment.mixing import mix as mix
from nfnet_jax.augment.mixing import mixup_ratios as mixup_ratios
from nfnet_jax.augment.mixing import pairs as pairs
from nfnet_jax.augment.rand_augment import check_strength as check_strength
from nfnet_jax.augment.rand_augment import randaugment as randaugment
from nfnet_jax.data.normalize import MEAN_RGB as MEAN_RGB
from nfnet_jax.data.normalize import STDDEV_RGB as STDDEV_RGB
from nfnet_jax.data.normalize import normalize as normalize
