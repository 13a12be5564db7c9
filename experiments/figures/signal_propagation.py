"""How a signal propagates through 600 layers (NF-ResNet paper, figures 1 and 2).

  python experiments/figures/signal_propagation.py
  python experiments/figures/signal_propagation.py --plot

Pre-activation ResNets of four stages with 50 blocks each, at initialisation, on independent N(0, 1)
pixels: with BatchNorm before or after each ReLU, and without any, with and without scaled weight
standardisation. `nfnet_jax.models.signal_propagation` measures them. With BatchNorm before the
ReLU, and without standardised weights, initialisation is He's: weights of variance 2 / fan-in; the
others have 1 / fan-in. Without normalisation, alpha and the gains of the branches are 1.
"""

import math
import pathlib
import sys
from typing import Any

import numpy as np
import style
import sweep
import table

NETWORKS = ("BN→ReLU", "ReLU→BN", "NF, scaled WS", "NF, He")
WIDTHS = (256, 512, 1024, 2048)
STAGES = len(WIDTHS)
RUNS = [
  {"network": network, "blocks": 50, "pixels": 512, "batch": 2, "seed": 0} for network in NETWORKS
]
# Of every block, with spaces between them.
VALUES = ("variance", "squared_mean", "branch_variance")


def measure(run: sweep.Run, workdir: pathlib.Path, data: pathlib.Path | None) -> dict[str, str]:
  """The signal after each block of one network."""
  import functools

  import jax

  from nfnet_jax import models

  net, variance = network(run["network"], run["blocks"])
  rng = np.random.default_rng(run["seed"])
  shape = (run["batch"], run["pixels"], run["pixels"], 3)
  images = rng.standard_normal(shape, np.float32)
  init = functools.partial(net.init, is_training=True)
  shapes, _ = jax.eval_shape(init, jax.random.key(0), images)
  params = initial(shapes, variance, rng)
  skip_gain = 1.0 if run["network"].startswith("NF") else None
  blocks = models.signal_propagation(net, params, images, skip_gain=skip_gain)
  return {name: " ".join(f"{getattr(each, name):.4g}" for each in blocks) for name in VALUES}


def initial(shapes: Any, variance: float, rng: np.random.Generator) -> dict[str, dict[str, Any]]:
  """Weights of a variance by their fan-in, gains and scales of 1, and all else 0."""

  def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name == "w":
      deviation = math.sqrt(variance / math.prod(shape[:-1]))
      return rng.standard_normal(shape, np.float32) * np.float32(deviation)
    return np.full(shape, name in ("gain", "scale"), np.float32)

  return {
    module: {name: value(name, leaf.shape) for name, leaf in leaves.items()}
    for module, leaves in shapes.items()
  }


def network(name: str, blocks: int) -> tuple[Any, float]:
  """A network, and the variance of its weights at initialisation times their fan-in."""
  from nfnet_jax import models
  from nfnet_jax.models import layers

  size = {"num_classes": 0, "widths": WIDTHS, "depths": (blocks,) * STAGES}
  if name == "BN→ReLU":
    return models.create_model("resnet50", **size), 2.0
  if name == "ReLU→BN":
    return relu_first(size["widths"], size["depths"]), 1.0
  if name == "NF, scaled WS":
    return models.create_model("nf_resnet50", **size, alpha=1.0), 1.0
  # Folded weights are taken as they are. The network's ReLU has a factor, which He's has not.
  net = models.create_model("nf_resnet50", **size, alpha=1.0, folded=True)
  return net, 2.0 / layers.GAMMAS["relu"] ** 2


def relu_first(widths: tuple[int, ...], depths: tuple[int, ...]) -> Any:
  """A ResNet whose blocks normalise after each ReLU, which the package does not have."""
  import functools

  import haiku as hk
  import jax
  import jax.numpy as jnp

  from nfnet_jax.models import layers, residual, resnet
  from nfnet_jax.models.blocks import run_blocks

  class Block(resnet.ResBlockV2):
    def __call__(self, x: jax.Array, keep: jax.Array | None, is_training: bool) -> jax.Array:
      out, shortcut = x, x
      for i, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
        out = norm(jax.nn.relu(out), is_training)
        if i == 0 and self.conv_shortcut is not None:
          shortcut = self.conv_shortcut(out)
        out = conv(out)
      return residual.drop_branch(out, keep) + shortcut

  def forward(images: jax.Array, is_training: bool) -> jax.Array:
    stem = widths[0] // 4
    specs = residual.block_specs(
      stem,
      widths,
      depths,
      inner=lambda _, __, out_channels: out_channels // 4,
      group_size=None,
      alpha=0.0,
      stochdepth_rate=0.0,
    )
    norm = functools.partial(layers.BatchNorm, 0.9, None)
    x = layers.max_pool(layers.Conv2D(stem, 7, stride=2, name="initial_conv")(images))
    blocks = [Block(spec, norm=norm, name="res_block_v2") for spec in specs]
    return run_blocks(x, blocks, is_training, jnp.arange(len(images)), is_training)[0]

  return hk.transform_with_state(forward)


def plot(rows: list[table.Row]) -> Any:
  """Each quantity by block, with BatchNorm above and without it below; theory is dashed."""
  colours = dict(zip(NETWORKS, style.COLOURS, strict=False))
  panels, axes = style.panels(3, rows=2)
  heads = {
    "variance": "variance",
    "squared_mean": "mean²",
    "branch_variance": "variance of the branch",
  }
  for line, kind in zip(axes, ("BN", "NF"), strict=True):
    chosen = sorted(
      (row for row in rows if kind in row["network"]), key=lambda r: NETWORKS.index(r["network"])
    )
    for panel, (value, head) in zip(line, heads.items(), strict=True):
      for row in chosen:
        name, colour = row["network"], colours[row["network"]]
        measured = [float(each) for each in row[value].split()]
        panel.plot(range(1, len(measured) + 1), measured, color=colour, label=name, linewidth=1.2)
        expected = theory(name, int(row["blocks"]))[value]
        if expected is not None:
          panel.plot(range(1, len(measured) + 1), expected, "--", color=style.BLACK, linewidth=0.8)
      prefix = "With BatchNorm: " if kind == "BN" else "Without: "
      style.title(panel, prefix + head, x="block", y=head)
      panel.set_ylim(bottom=0)
      if (kind, value) == ("NF", "squared_mean"):
        panel.set_yscale("symlog", linthresh=0.1)
    line[2].plot([], [], "--", color=style.BLACK, linewidth=0.8, label="theory")
    style.legend(line[2], loc="center left")
  return panels


def theory(name: str, blocks: int) -> dict[str, list[float] | None]:
  """What each quantity is expected to be after each block; None for what has no simple theory.

  The first block of a stage has the variance of its branch twice, since its shortcut is a
  convolution of the same input.
  """
  depth = [k + 1 for k in range(1, blocks + 1)] * STAGES
  ones = [1.0] * len(depth)
  if name == "BN→ReLU":  # He's weights keep a ReLU's second moment, 1 / pi of which is in its mean.
    share = 1 - 1 / math.pi
    return {
      "variance": [share * each for each in depth],
      "squared_mean": [each / math.pi for each in depth],
      "branch_variance": [share * one for one in ones],
    }
  if name == "NF, He":
    return dict.fromkeys(VALUES)
  return {
    "variance": [float(each) for each in depth],
    "squared_mean": None,
    "branch_variance": ones,
  }


FIGURE = sweep.Figure("signal_propagation", RUNS, VALUES, measure, plot)

if __name__ == "__main__":
  sys.exit(sweep.main(FIGURE))
