"""Writes the pages on the Python interface: a page for each room, which mkdocstrings fills."""

# Modules by room. The first is the room itself; of the others, those that one calls or reads.
ROOMS = {
  "nfnet_jax": ("nfnet_jax", "nfnet_jax.errors", "nfnet_jax.cli.cpu_memory"),
  "agc": ("nfnet_jax.agc",),
  "models": (
    *("nfnet_jax.models", "nfnet_jax.models.propagation"),
    *("nfnet_jax.models.nfnet", "nfnet_jax.models.nf_resnet", "nfnet_jax.models.nf_regnet"),
    *("nfnet_jax.models.resnet", "nfnet_jax.models.timm", "nfnet_jax.models.layers"),
    *("nfnet_jax.models.blocks", "nfnet_jax.models.residual", "nfnet_jax.models.groups"),
    "nfnet_jax.models.propagation",
  ),
  "weights": ("nfnet_jax.weights", "nfnet_jax.weights.accuracy"),
  "optim": ("nfnet_jax.optim",),
  "sam": ("nfnet_jax.sam",),
  "losses": ("nfnet_jax.losses",),
  "config": ("nfnet_jax.config", "nfnet_jax.config.values"),
  "data": (
    "nfnet_jax.data",
    *("nfnet_jax.data.batch", "nfnet_jax.data.source", "nfnet_jax.data.normalize"),
    *("nfnet_jax.data.preprocess", "nfnet_jax.data.reader", "nfnet_jax.data.classes"),
  ),
  "augment": ("nfnet_jax.augment",),
  "training": (
    "nfnet_jax.training",
    *("nfnet_jax.training.step", "nfnet_jax.training.build", "nfnet_jax.training.parallel"),
    *("nfnet_jax.training.loop", "nfnet_jax.training.evaluate", "nfnet_jax.training.gradients"),
  ),
  "inference": (
    "nfnet_jax.inference",
    *("nfnet_jax.inference.predict", "nfnet_jax.inference.evaluate", "nfnet_jax.inference.export"),
  ),
  "ops": ("nfnet_jax.ops.conv", "nfnet_jax.ops.gelu"),
  "runs": (
    *("nfnet_jax.runs.record", "nfnet_jax.runs.metrics", "nfnet_jax.runs.checkpoint"),
    *("nfnet_jax.runs.curves", "nfnet_jax.runs.layers", "nfnet_jax.runs.sessions"),
    *("nfnet_jax.runs.pictures", "nfnet_jax.runs.outcome"),
  ),
  "report": ("nfnet_jax.report.page", "nfnet_jax.report.card"),
  "distributed": ("nfnet_jax.distributed.job", "nfnet_jax.distributed.agreement"),
  "plan": ("nfnet_jax.plan", "nfnet_jax.plan.flops"),
  "benchmark": ("nfnet_jax.benchmark",),
}


def page(room: str) -> str:
  """The page of a room, as Markdown. The room's own module has the title of the page."""
  title = room if room == "nfnet_jax" else f"nfnet_jax.{room}"
  parts = [f"# {title}", *(_module(module, module != title) for module in ROOMS[room])]
  return "\n\n".join(parts) + "\n"


def _module(name: str, has_heading: bool) -> str:
  lines = [f"::: {name}"]
  if not has_heading:
    lines += ["    options:", "      show_root_heading: false", "      show_root_toc_entry: false"]
  return "\n".join(lines)
