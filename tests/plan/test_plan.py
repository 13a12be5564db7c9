"""`plan` without its compiler: topologies, estimates, attempts, memory, and refused requests."""

import importlib.util
import json
import pathlib

import pytest

from nfnet_jax import config as config_lib
from nfnet_jax import data
from nfnet_jax import plan as plan_lib
from nfnet_jax.__main__ import main
from nfnet_jax.cli import config_file
from nfnet_jax.errors import RequestError
from nfnet_jax.plan import cache, program, roofline, topology
from nfnet_jax.plan import compiler as compiler_lib
from nfnet_jax.plan.paper_table3 import TABLE

EXPERIMENT = pathlib.Path(__file__).parents[2] / "experiments/imagenet_nfnet.py"
PLANS = EXPERIMENT.parent / "speed/plans.jsonl"
TINY = ("model.widths=(16,)", "model.depths=(1,)", "model.group_size=8", "data.train_size=32")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def config(variant="F0", *words):
  return config_file.override(config_file.read(f"{EXPERIMENT}:{variant}"), words)


@pytest.mark.parametrize(
  ("name", "chips", "devices"),
  [
    *(("v3:2x2", 4, 8), ("v3:16x16", 256, 512), ("v4:2x2x1", 4, 4), ("v4:4x4x8", 128, 128)),
    *(("v5e:4x4", 16, 16), ("v5p:2x2x1", 4, 4), ("v6e:2x4", 8, 8), ("v4:8x8x16", 1024, 1024)),
    *(("gpu:h200x8", 8, 8), ("gpu:a100x64", 64, 64), ("gpu:v100x1", 1, 1)),
  ],
)
def test_topologies(name, chips, devices):
  found = topology.parse(name)
  assert (found.num_chips, found.num_devices) == (chips, devices)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("v4:3x3x3", r"the nearest are v4:2x4x4,"),
    ("v5e:4x5", r"the nearest are v5e:4x4,"),
    ("v4:9999x9999x9999", r"the nearest are v4:\S+, v4:\S+, v4:16x16x16"),
    ("v4:0x1x1", r"the nearest are v4:2x2x1"),
    ("v3", r"the nearest are v3:2x2"),
    ("v9:2x2", r"with one of v3, v4, v5e, v5p, v6e"),
    ("gpu:h200x12", r"a multiple of 8"),
    ("gpu:b7x8", r"one of v100, a100, h100, h200"),
    ("", r"such as v4:2x2x1"),
  ],
)
def test_topologies_that_do_not_exist(name, message):
  with pytest.raises(RequestError, match=message):
    topology.parse(name)


def test_the_network_is_as_fast_as_its_links():
  assert topology.parse("v4:4x4x8").egress == 6 * 50e9
  assert topology.parse("v4:2x2x1").egress == 2 * 50e9
  assert topology.parse("gpu:h200x8").egress == 450e9
  assert topology.parse("gpu:h200x16").egress == 50e9


def recorded():
  return [json.loads(line) for line in PLANS.read_text().splitlines()]


def test_the_papers_own_steps_are_as_expected():
  found = []
  for plan in recorded():
    if plan["topology"]["name"] == "v3:8x8" and plan["network"]["name"] != "nfnet_f6":  # with SAM
      # 32 TPUv3 cores, 32 images each.
      seconds = roofline.step_time(plan["per_device"], topology.parse("v3:4x4"), "bfloat16")
      assert max(seconds.compute, seconds.memory, seconds.network) < seconds.low
      assert seconds.low < TABLE[plan["network"]["name"]].v3_seconds < seconds.high
      found.append(plan["network"]["name"])
  assert len(found) >= 4


def test_recorded_plans_follow_from_what_they_counted():
  """With the figures of today's hardware, and of the program where one was compiled."""
  compiled_plans = 0
  for plan in recorded():
    machine = topology.parse(plan["topology"]["name"])
    counts, run_, network = plan["per_device"], plan["run"], plan["network"]
    assert run_["images_per_device"] * machine.num_devices == run_["batch_size"]
    assert network["parameters"] == counts["parameters"]
    seconds = roofline.step_time(counts, machine, network["dtype"])
    step, whole = plan["step_seconds"], plan["whole_run"]
    bounds = [step[f"bound_by_{what}"] for what in ("compute", "memory", "network")]
    assert bounds == pytest.approx([seconds.compute, seconds.memory, seconds.network])
    assert step["expected"] == pytest.approx([seconds.low, seconds.high])
    assert whole["hours"] == pytest.approx(
      [run_["steps"] * each / 3600 for each in step["expected"]]
    )
    if compiled := plan["compiled"]:
      compiled_plans += 1
      memory = plan["topology"]["memory_per_device"]
      assert compiled["fits"] == (compiled["peak"] <= memory)
      assert compiled["all_reduced_bytes"] >= counts["reduced_bytes"]
      assert compiled["arguments"] >= counts["state_bytes"]
  assert compiled_plans >= 4


@pytest.mark.slow
def test_recorded_plans_are_what_a_plan_gives():
  result = plan_lib.plan(config("F0"), "v3:8x8", compiles=False)
  [same] = [
    plan
    for plan in recorded()
    if (plan["network"]["name"], plan["topology"]["name"]) == ("nfnet_f0", "v3:8x8")
  ]
  versions = {"versions": {}}
  assert result | versions == same | versions
  ratio = result["per_device"]["multiply_adds"] / 32
  assert ratio == pytest.approx(3 * result["network"]["multiply_adds_at_train_size"], rel=2e-3)


def test_a_plan_adds_up(capsys):
  result, err = run(capsys, "gpu:h200x8", "batch_size=2048")
  assert result["compiled"] is None
  assert "whether it fits is unknown" in err
  assert result["run"]["images_per_device"] == 256
  assert result["run"]["steps"] == 360 * 1281167 // 2048
  assert result["per_device"]["reduced_bytes"] == 4 * (result["network"]["parameters"] + 2)
  whole, (low, high) = result["whole_run"], result["step_seconds"]["expected"]
  assert whole["images_per_second"] == pytest.approx([2048 / high, 2048 / low])
  assert whole["images_read_per_second_and_host"] == [2 * x for x in whole["images_per_second"]]
  assert whole["hours"] == pytest.approx([result["run"]["steps"] * s / 3600 for s in (low, high)])
  assert whole["chip_hours"] == pytest.approx([8 * hours for hours in whole["hours"]])


def outcome(fits):
  names = ("arguments", "outputs", "temporaries", "program", "copy", "peak")
  parts = dict.fromkeys(names, 10**9)
  rest = {"all_reduces": 1, "all_reduced_bytes": 4, "host_transfers": 0, "float64": False}
  reason = {} if fits else {"reason": "needs 40G of 31G"}
  return {"fits": fits, "seconds": 1.0, **parts, **rest, **reason}


@pytest.fixture
def compiler(monkeypatch):
  """Settings that a feigned compiler was asked for, and those that fit, to be filled in."""
  asked, fitting = [], set()

  def compile_step(config, topology):
    asked.append((config.model.remat, config.accumulate))
    return outcome(asked[-1] in fitting)

  monkeypatch.setattr(program, "libtpu_version", lambda: "0")
  monkeypatch.setattr(program, "compile_step", compile_step)
  return asked, fitting


def run(capsys, topology, *words, variant="F0"):
  """The JSON and the report of a plan of a tiny network."""
  words = [f"--config.{word}" for word in (*TINY, *words)]
  assert main(["plan", f"--config={EXPERIMENT}:{variant}", f"--topology={topology}", *words]) == 0
  out, err = capsys.readouterr()
  return json.loads(out.splitlines()[-1]), err


def test_what_does_not_fit_is_tried_otherwise(compiler, capsys):
  asked, fitting = compiler
  fitting.add(("block", 2))
  result, report = run(capsys, "v4:2x2x1", "batch_size=16")
  assert asked == [("none", 1), ("block", 1), ("stage", 1), ("block", 2)]
  assert (result["run"]["remat"], result["run"]["accumulate"]) == ("block", 2)
  assert [each["fits"] for each in result["attempts"]] == [False, False, False, True]
  assert "remat=stage, accumulate=1: does not fit, needs 40G of 31G" in report


def test_what_fits_is_not_tried_otherwise(compiler, capsys):
  asked, fitting = compiler
  fitting.add(("block", 2))
  result, report = run(capsys, "v4:2x2x1", "batch_size=16", "model.remat=block", "accumulate=2")
  assert asked == [("block", 2)]
  assert result["compiled"]["fits"]
  assert "1.00 GB arguments" not in report
  assert "1.00 arguments" in report


def test_what_never_fits_is_said(compiler, capsys):
  asked, _ = compiler
  result, report = run(capsys, "v4:2x2x1", "batch_size=16", "model.remat=stage")
  # Down to one image at a time.
  assert asked == [("stage", 1), ("stage", 2), ("stage", 4)]
  assert (result["run"]["remat"], result["run"]["accumulate"]) == ("stage", 1)
  assert "no attempt fits" in report


def test_batch_norm_is_not_computed_in_parts(compiler, capsys):
  asked, _ = compiler
  sizes = {"model.widths": "(16,)", "model.depths": "(1,)", "data.train_size": 32, "batch_size": 16}
  words = [f"--config.{key}={value}" for key, value in sizes.items()]
  experiment = EXPERIMENT.with_name("imagenet_resnet.py")
  assert main(["plan", f"--config={experiment}:50", "--topology=v4:2x2x1", *words]) == 0
  assert asked == [("none", 1), ("block", 1), ("stage", 1)]


def test_sam_by_a_share_is_not_computed_in_more_parts(compiler, capsys):
  """Each would ascend by itself, by fewer images."""
  asked, fitting = compiler
  run(capsys, "v4:2x2x1", "batch_size=64", "sam.rho=0.05", "model.remat=stage")
  assert asked == [("stage", 1)]
  fitting.add(("stage", 2))
  run(capsys, "v4:2x2x1", "batch_size=64", "sam.rho=0.05", "model.remat=stage", "sam.share=1")
  assert asked[1:] == [("stage", 1), ("stage", 2)]


def test_the_passes_of_sam_are_counted(capsys):
  def plan(variant, *words):
    words = ("batch_size=32", "data.train_size=16", *words)
    found, _ = run(capsys, "gpu:h200x8", *words, variant=variant)
    published = found["step_seconds"]["published_v3"]
    return found["per_device"]["multiply_adds"], found["per_device"]["reduced_bytes"], published

  work, reduced, published = plan("F5")
  assert published == 1.3985
  assert plan("F5+SAM", "sam.share=0.5") == (1.5 * work, reduced, 1.9580)
  whole = plan("F5", "sam.rho=0.1", "sam.share=1")
  assert whole == (2 * work, pytest.approx(2 * reduced, rel=1e-3), 1.9580)
  assert plan("F6")[2] is None


def test_an_outcome_is_remembered(compiler, capsys, tmp_path):
  asked, fitting = compiler
  fitting.add(("none", 1))
  first, _ = run(capsys, "v4:2x2x1", "batch_size=16")
  again, _ = run(capsys, "v4:2x2x1", "batch_size=16")
  assert again == first
  assert len(asked) == 1
  run(capsys, "v4:2x2x1", "batch_size=16", "seed=1", "eval_every=7")
  assert len(asked) == 1
  run(capsys, "v4:2x2x1", "batch_size=32")
  run(capsys, "v4:2x2x2", "batch_size=32")
  assert len(asked) == 3
  for path in cache.directory().glob("*.json"):  # of no use, after a full disk for instance
    path.write_text("{")
  assert run(capsys, "v4:2x2x1", "batch_size=16")[0] == first
  assert len(asked) == 4


def test_the_sources_that_are_watched_are_there():
  package = pathlib.Path(plan_lib.__file__).parents[1]
  for name in cache._SOURCES:
    assert (package / name).is_dir() or (package / f"{name}.py").is_file(), name


def test_another_version_is_another_outcome(tmp_path):
  calls = []

  def find_out(config, topology):
    calls.append(topology.name)
    return {}

  resolved = config_lib.resolve(config(), data.outline(config().data))
  for versions in ({"jax": "1"}, {"jax": "1"}, {"jax": "2"}):
    cache.remember(find_out, resolved, topology.parse("v3:2x2"), versions)
  assert len(calls) == 2


@pytest.mark.parametrize("content", ["[]", "3", "{}", "{", None])
def test_a_cache_of_no_use_is_no_obstacle(tmp_path, monkeypatch, content):
  resolved = config_lib.resolve(config(), data.outline(config().data))
  find_out = lambda config, topology: {"found": topology.name}  # noqa: E731
  for _ in range(2):
    found = cache.remember(find_out, resolved, topology.parse("v3:2x2"), {})
    assert found == {"found": "v3:2x2"}
    for path in cache.directory().rglob("*.json"):
      path.write_text(content or "")
    if content is None:
      monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/no")


def test_well_known_data_need_not_be_there():
  given = config("F0", "data.dir=/nowhere", "data.train_split=train[10000:]")
  assert data.outline(given.data)[2:4] == (1271167, 50000)
  for split, count in {"train[:10000]": 10000, "train[-5:]": 5, "train": 1281167}.items():
    given.data.train_split = split
    assert data.outline(given.data).num_train == count
  given.data.train_split = "train[:10%]"  # is for TFDS to understand, with the data there
  with pytest.raises(RequestError, match="not prepared"):
    data.outline(given.data)


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--topology=v4:2x2x1", "--config.batch_size=258"], "does not divide over 4 devices: use a"),
    (["--topology=gpu:h200x"], "there is no topology 'gpu:h200x': write gpu:KINDxNUMBER, with one"),
    (["--topology=gpu:h200x٨"], "write gpu:KINDxNUMBER, with one of"),
    (["--topology=gpu:h200x" + "9" * 200], "write gpu:KINDxNUMBER, with one of"),
    (["--topology=v4:٢x2x1"], "there is no topology 'v4:٢x2x1': the nearest are v4:2x2x1"),
    (["--topology=v4:7x7x7"], "there is no topology 'v4:7x7x7': the nearest are"),
    (["--topology=v4:2x2x1"], "libtpu, which is not installed: pip install 'nfnet_jax[plan]'"),
    ([], "--topology is missing"),
    (["--topology=v4:2x2x1", "--config.model.remat=all"], "unknown model.remat='all'"),
    (
      ["--topology=v4:2x2x1", "--config.batch_size=8", "--config.sam.rho=0.05"],
      "sam.share=0.2 of the 2 images that a device takes at once rounds to 0: give",
    ),
  ],
)
def test_what_is_refused(words, message, capsys, monkeypatch):
  find_spec = importlib.util.find_spec
  absent = lambda name, *args: None if name == "libtpu" else find_spec(name, *args)  # noqa: E731
  monkeypatch.setattr(importlib.util, "find_spec", absent)
  assert main(["plan", f"--config={EXPERIMENT}:F0", *words]) == 2
  err = capsys.readouterr().err
  assert message in err
  assert err.count("\n") == 1


def test_reading_a_compiled_program():
  text = """
  %all-reduce.2 = (f32[3,4]{1,0:T(8,128)S(3)}, /*index=1*/f32[]{:T(128)}) all-reduce(%a, %b)
  %all-reduce-start = bf16[8]{0} all-reduce-start(%c), channel_id=1
  %all-reduce-done = bf16[8]{0} all-reduce-done(%all-reduce-start)
  %g = f32[3,4]{1,0} get-tuple-element(%all-reduce.2), index=0
  ROOT %outfeed = token[] outfeed(%g, %t)
  %h = f64[2]{0} add(%i, %j)
"""
  assert compiler_lib.read_program(text) == {
    "all_reduces": 2,
    "all_reduced_bytes": 4 * 13 + 2 * 8,
    "host_transfers": 1,
    "float64": True,
  }


def test_reading_how_much_memory_is_short():
  message = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 40.50G of 31.25G hbm. Exceeded hbm capacity by 9.25G."
  )
  assert compiler_lib.read_shortage(message) == {
    "reason": "needs 40.50G of 31.25G",
    "peak": int(40.5 * 2**30),
    "capacity": int(31.25 * 2**30),
  }
  assert compiler_lib.read_shortage("RESOURCE_EXHAUSTED: no idea\n...")["reason"].endswith(
    "no idea"
  )


def test_network_and_dtype_count():
  counts = {
    "multiply_adds": 10**12,
    "matrix_bytes": 10**9,
    "state_bytes": 0,
    "reduced_bytes": 10**8,
  }
  four, many = topology.parse("v4:2x2x1"), topology.parse("v4:4x4x8")
  found = roofline.step_time(counts, four, "bfloat16")
  assert found.compute == pytest.approx(2e12 / 275e12)
  assert found.memory == pytest.approx(1e9 / 1200e9)
  assert found.network == pytest.approx(2 * 1e8 * 3 / 4 / 100e9)
  assert roofline.step_time(counts, many, "bfloat16").network < found.network
  alone = topology.parse("gpu:h100x1")
  assert roofline.step_time(counts, alone, "bfloat16").network == 0
  assert roofline.step_time(counts, alone, "float32").compute == pytest.approx(2e12 / 494e12)
