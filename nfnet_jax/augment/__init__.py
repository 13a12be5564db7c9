"""What happens to a batch on the device before the network sees it: keyed, batched functions.

In the order of the recipe: `pairs` and `mix` make one image of two, `randaugment` distorts it,
`normalize` maps it to the network's input. All are pure, have static shapes and run inside the
training step. Their randomness follows from a key and an example's index in the global batch.
"""

from nfnet_jax.augment.mix import blend as blend
from nfnet_jax.augment.mix import cutmix_masks as cutmix_masks
from nfnet_jax.augment.mix import mix as mix
from nfnet_jax.augment.mix import mixup_ratios as mixup_ratios
from nfnet_jax.augment.mix import pairs as pairs
from nfnet_jax.augment.normalize import MEAN_RGB as MEAN_RGB
from nfnet_jax.augment.normalize import STDDEV_RGB as STDDEV_RGB
from nfnet_jax.augment.normalize import normalize as normalize
from nfnet_jax.augment.randaugment import randaugment as randaugment
