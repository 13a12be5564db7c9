"""Model cards: `README.md` beside a report or an exported file, as model hubs expect it."""

import json
import logging
from collections.abc import Mapping
from typing import Any

import nfnet_jax
from nfnet_jax import output
from nfnet_jax.report.found import Run

log = logging.getLogger(__name__)

FILE_NAME = "README.md"
_OURS = "library_name: nfnet_jax"  # by which a card is known that may be replaced
_MOST_CLASSES = 50
_FENCE = "`" * 3
_SHOWN_KEYS = ("batch_size", "epochs", "steps", "loss", "label_smoothing", "ema_decay", "seed")


def free_place(folder: Any) -> Any:
  """Where a card goes in a folder; None, which is logged, if another README.md is there."""
  path = folder / FILE_NAME
  try:
    if not path.exists() or (path.is_file() and _OURS in path.read_text()[:500]):
      return path
  except (OSError, ValueError):  # It cannot be read, so it is not ours.
    pass
  log.info("%s is no model card of this package: it stays, and no card is written", path)
  return None


def of_run(run: Run) -> str:
  """The card of a run."""
  config = run.config
  facts = {
    "network": config.model.name,
    "image size": f"{config.data.test_size} px in tests, {config.data.train_size} px in training",
    "training data": f"{config.data.name}, split {config.data.train_split}"
    + (f", {run.began['num_train']} images" if "num_train" in run.began else ""),
    "test data": f"{config.data.name}, split {config.data.test_split}"
    + (f", {run.began['num_test']} images" if "num_test" in run.began else ""),
    "initial weights": config.init.weights or "random",
    "steps": f"{run.step}" + ("" if run.is_finished else f" of {config.steps}: not finished"),
  }
  metrics = _metrics(run)
  recipe = {key: config[key] for key in _SHOWN_KEYS} | {
    f"optimizer.{key}": value for key, value in config.optimizer.items()
  }
  channels = config.model.in_channels
  usage = "nfnet-jax predict --weights=RUN photo.jpg"
  if channels not in (1, 3):  # No image file holds them.
    facts["input"] = f"arrays of {channels} channels"
    usage = 'nfnet_jax.inference.load_network("RUN")'
  return card(run.name, facts, run.class_names, metrics, recipe, usage, config.data.name)


def of_export(name: str, about: Mapping[str, Any], run: Run | None) -> str:
  """The card of an exported file.

  Args:
    name: of the file.
    about: the contents of `OUT.json`, see `inference.export`.
    run: the run that its weights are from, if they are from one.
  """
  facts = {
    "network": about["model"],
    "input": f"`[N, {about['size']}, {about['size']}, {about['channels']}]` float32 pixels, 0..255",
    "output": f"`[N, {about['num_classes']}]` logits, for a {about['loss']}",
    "preprocessing": f"resize {about['resize']}, padding {about['padding']}",
    "sha256": about["sha256"],
  }
  metrics = _metrics(run) if run else {}
  recipe: dict[str, Any] = {}
  if run:
    facts["training data"] = f"{run.config.data.name}, split {run.config.data.train_split}"
    recipe = {key: run.config[key] for key in _SHOWN_KEYS}
  usage = (
    f'onnxruntime.InferenceSession("{name}").run(["logits"], {{"images": images}})'
    if name.endswith(".onnx")
    else f'jax.export.deserialize(bytearray(pathlib.Path("{name}").read_bytes())).call(images)'
  )
  data = run.config.data.name if run else None
  return card(name, facts, about["class_names"] or (), metrics, recipe, usage, data)


def card(
  name: str,
  facts: Mapping[str, Any],
  class_names: Any,
  metrics: Mapping[str, Any],
  recipe: Mapping[str, Any],
  usage: str,
  data: str | None,
) -> str:
  """A card in Markdown, with the metadata of hubs in front.

  Args:
    name: of what it describes.
    facts: what there is to say of network and data.
    class_names: the names of the classes; () if unknown.
    metrics: of its last test; {} if there are none.
    recipe: keys of the config; {} if unknown.
    usage: a line of code or of the shell.
    data: the name of the data set; None if unknown.
  """
  top1 = metrics.get("ema_top1", metrics.get("top1"))
  parts = [
    _front(name, data, top1),
    f"# {_text(name)}",
    "An image classifier without normalization layers "
    "([Brock et al. 2021](https://arxiv.org/abs/2102.06171)), made with nfnet_jax "
    f"{nfnet_jax.__version__}.",
    _table(facts),
    f"{_FENCE}\n{usage}\n{_FENCE}",
    f"## Classes\n\n{_classes(class_names)}",
  ]
  if metrics:
    shown = {k: v if v is None or v == int(v) else f"{v:.4f}" for k, v in metrics.items()}
    parts.append(
      f"## Metrics\n\nOf the latest test; `ema_` is with EMA weights.\n\n{_table(shown)}"
    )
  if recipe:
    parts.append(f"## Training\n\n{_table(recipe)}")
  parts.append(
    "## Limits\n\nThe metrics hold for images like those of the test data, prepared in the same "
    "way. For other images, probabilities may be high and wrong. Every image gets one of the "
    "classes above, whatever it shows. The licence of the weights is not stated here: it follows "
    "from that of the data and of the initial weights."
  )
  return "\n\n".join(parts) + "\n"


def _metrics(run: Run) -> dict[str, Any]:
  """Those of the latest test, with its step."""
  tests = run.of("test")
  return {k: v for k, v in tests[-1].items() if k not in ("split", "examples")} if tests else {}


def _front(name: str, data: str | None, top1: float | None) -> str:
  """The metadata; strings are JSON, which is YAML."""
  lines = ["---", _OURS, "pipeline_tag: image-classification", "tags:", "- nfnet", "- jax"]
  if data and top1 is not None:
    shown = json.dumps(output.text(name)), json.dumps(data)
    lines += [
      *("model-index:", f"- name: {shown[0]}", "  results:", "  - task:"),
      *("      type: image-classification", "    dataset:", f"      name: {shown[1]}"),
      *(
        f"      type: {shown[1]}",
        "    metrics:",
        "    - type: accuracy",
        f"      value: {top1:.4f}",
      ),
    ]
  return "\n".join([*lines, "---"])


def _table(facts: Mapping[str, Any]) -> str:
  rows = [f"| {_text(key)} | {_text(value)} |" for key, value in facts.items()]
  return "\n".join(["| | |", "|---|---|", *rows])


def _classes(names: Any) -> str:
  if not names:
    return "Their names are not known."
  more = f", … ({len(names)} in all)" if len(names) > _MOST_CLASSES else ""
  return ", ".join(_text(name) for name in names[:_MOST_CLASSES]) + more


def _text(value: Any) -> str:
  """A value as text that Markdown and HTML take literally, in one line."""
  text = output.text(str(value)).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
  return " ".join(text.split())
