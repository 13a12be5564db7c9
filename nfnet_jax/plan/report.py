"""Formats a plan as text."""

GB = 1e9


def report(plan: dict) -> str:
  """Formats a plan (`nfnet_jax.plan.plan`) as a dozen lines of text."""
  topology, network, run = plan["topology"], plan["network"], plan["run"]
  device, seconds, whole = plan["per_device"], plan["step_seconds"], plan["whole_run"]
  low, high = (1e3 * each for each in seconds["expected"])
  bounds = [1e3 * seconds[f"bound_by_{name}"] for name in ("compute", "memory", "network")]
  return "\n".join(
    [
      f"{network['name']} on {topology['name']}: {topology['chips']:,} chips, "
      f"{topology['devices']:,} devices of {topology['memory_per_device'] / GB:.1f} GB",
      f"  run       {run['steps']:,} steps of {run['batch_size']:,} images, "
      f"{run['images_per_device']} per device, {network['dtype']}, remat={run['remat']}, "
      f"accumulate={run['accumulate']}",
      *_compiled(plan),
      f"  network   {network['parameters'] / 1e6:.2f}M parameters, "
      f"{network['multiply_adds_at_test_size'] / 1e9:.2f}G multiply-adds an image at test size"
      + _paper(network["published_multiply_adds"], "{:.2f}G", 1e-9)
      + f", {network['multiply_adds_at_train_size'] / 1e9:.2f}G at training size",
      f"  step      {device['multiply_adds'] / 1e12:.3f}T multiply-adds and "
      f"{device['reduced_bytes'] / GB:.3f} GB to reduce on each device",
      "  bounds    {:.1f} ms by compute, {:.1f} by memory, {:.1f} by network".format(*bounds),
      f"  expected  {low:.0f} to {high:.0f} ms a step"
      + _paper(seconds["published_v3"], "{:.1f} ms for 32 images a core on TPUv3", 1e3),
      "  speed     {:,.0f} to {:,.0f} images/s".format(*whole["images_per_second"]),
      "  input     {:,.0f} to {:,.0f} images/s to read".format(
        *whole["images_read_per_second_and_host"]
      )
      + f" on each of {topology['hosts']:,} hosts (`benchmark input` measures a host)",
      "  whole run {:,.1f} to {:,.1f} hours, {:,.0f} to {:,.0f} chip-hours; evaluation, "
      "checkpoints and compiling not counted".format(*whole["hours"], *whole["chip_hours"]),
    ]
  )


def _paper(value: float | None, text: str, scale: float) -> str:
  return f" (paper: {text.format(value * scale)})" if value else ""


def _compiled(plan: dict) -> list[str]:
  """The lines on the compiler's result."""
  lines = [
    f"  tried     remat={tried['remat']}, accumulate={tried['accumulate']}: "
    + ("fits" if tried["fits"] else f"does not fit, {tried['reason']}")
    for tried in plan["attempts"]
    if len(plan["attempts"]) > 1
  ]
  found, capacity = plan["compiled"], plan["topology"]["memory_per_device"]
  if found is None:
    return ["  compiler  not used: whether it fits is unknown"]
  if not found["fits"]:
    return [*lines, f"  compiler  does not fit: {found['reason']}; no attempt fits"]
  names = ("arguments", "temporaries", "program", "copy", "peak")
  parts = {name: found[name] / GB for name in names}
  return [
    *lines,
    "  memory    {peak:.2f} GB a device: {arguments:.2f} arguments, {temporaries:.2f} temporaries, "
    "{program:.2f} program, {copy:.2f} copy of the parameters".format(**parts)
    + f"; {found['peak'] / capacity:.0%} of what it has",
    f"  compiler  done after {found['seconds']:.0f} s; {found['all_reduced_bytes'] / GB:.3f} GB in "
    f"{found['all_reduces']} all-reduces; {found['host_transfers']} transfers to the host",
  ]
