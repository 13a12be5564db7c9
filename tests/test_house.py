"""How the house is built: who may import whom, what importing costs, how long things may get."""

import ast
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from nfnet_jax import config as config_lib
from nfnet_jax.cli import config_file
from nfnet_jax.data import DatasetInfo
from nfnet_jax.data.batch import Batch
from nfnet_jax.errors import RequestError
from nfnet_jax.models import nf_regnet, nf_resnet, nfnet
from nfnet_jax.training import parallel
from nfnet_jax.training.build import build
from nfnet_jax.training.step import images_per_example

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "nfnet_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))

# A room imports only from rows above its own. A file has its own row, or else its folder's.
ROWS = (
  {"errors", "config.values", "data.batch", "data.orientation", "cli.compile_cache"}
  | {"distributed.private"},
  {"data.formats", "data.png", "output"},
  {"data.jpeg"},
  {"data.reader"},
  {"agc", "losses", "sam", "augment", "ops", "plan.flops", "runs.metrics", "data.preprocess"},
  {
    "cli.backend",
    "cli.interrupt",
    "cli.stdout",
    "data.search",
    "runs.digest",
    "runs.lock",
    "runs.storage",
    "distributed.failure",
    "seeds",
  },
  {"models", "data", "runs.curves", "distributed.job", "distributed.notice"},
  {"optim", "groups", "cli.cpu_memory"},
  {"config.keys"},
  {"config", "cli.flags"},
  {"cli.arguments", "distributed.agreement"},
  {"training.replicas"},
  {"training.gradients"},
  {"training.step"},
  {"training.build", "training.meter", "training.parallel"},
  {"runs.checkpoint", "runs.provenance", "training.evaluate"},
  {"weights", "runs.record", "cli.config_file"},
  {"inference", "training.saving"},
  {"inference.evaluate", "inference.predict", "inference.export"},
  {"training.loop", "benchmark", "plan"},
  {"cli.verbs"},
  {"__main__"},
)
# Folders whose files all have rows of their own; the folder itself holds a docstring alone.
PLAIN_FOLDERS = {"cli", "distributed", "runs", "training"}
ROW_OF = {module: row for row, modules in enumerate(ROWS) for module in modules}

DATA_SETS = {
  "digits": DatasetInfo(10, tuple("0123456789"), num_train=1437, num_test=360),
  "imagenet2012": DatasetInfo(1000, ("",) * 1000, num_train=1281167, num_test=50000),
}

MAX_LINES_OF_A_FILE = 300
MAX_LINES_OF_A_FUNCTION = 60
LONG_FUNCTIONS = {"training.loop.run": 90}  # the loop


def room_of(name):
  """The row's entry for a dotted name within the package; None for the package itself."""
  parts = name.split(".")
  names = [".".join(parts[:n]) for n in (2, 1)]
  return next((name for name in names if name in ROW_OF), None)


def name_of(path):
  """`training.step` for nfnet_jax/training/step.py, `models` for nfnet_jax/models/__init__.py."""
  parts = path.relative_to(PACKAGE).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
  """Full names of all that a file imports, wherever in the file."""
  names = []
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
      names += [f"{node.module}.{alias.name}" for alias in node.names]
  return names


def functions_of(path):
  """Names and lines of all functions, with what is inside them but without their docstring."""
  found = {}

  def visit(node, prefix):
    for child in ast.iter_child_nodes(node):
      name = prefix
      if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        name = f"{prefix}.{child.name}"
      if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = child.body[0] if ast.get_docstring(child) else None
        documented = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
        found[name] = child.end_lineno - child.lineno + 1 - documented
      visit(child, name)

  visit(ast.parse(path.read_text()), ".".join(path.relative_to(PACKAGE).with_suffix("").parts))
  return found


def public_definitions(path):
  """The module, its public classes and functions, and their public methods."""
  tree = ast.parse(path.read_text())
  yield tree, path.name
  for scope in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
    if getattr(scope, "name", "").startswith("_"):
      continue
    for node in scope.body:
      if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
        yield node, f"{path.name}: {node.name}"


def test_imports_go_one_way():
  wrong = []
  for path in FILES:
    name = name_of(path)
    if name in ("", *PLAIN_FOLDERS):
      continue
    room = room_of(name)
    assert room, f"{name} has no row yet: give it one in ROWS"
    for imported in imports_of(path):
      package, _, rest = imported.partition(".")
      assert package not in ("tests", "experiments"), f"{path} imports {imported}"
      source = room_of(rest) if package == "nfnet_jax" else None
      if source and source != room and ROW_OF[source] >= ROW_OF[room]:
        wrong.append(f"{path.relative_to(ROOT)} imports {imported}")
  assert not wrong


def test_layers_know_no_network():
  names = imports_of(PACKAGE / "models/layers.py")
  ours = {name for name in names if name.startswith("nfnet_jax")}
  assert ours == {
    "nfnet_jax.errors.RequestError",
    "nfnet_jax.ops.conv.conv",
    "nfnet_jax.ops.gelu.gelu",
    "nfnet_jax.ops.pool_cpu",
  }


def test_private_names_of_jax_are_in_one_file():
  users = set()
  for path in FILES:
    attributes = [n.attr for n in ast.walk(ast.parse(path.read_text())) if type(n) is ast.Attribute]
    if {"_src", "_cluster_types"} & {*attributes, *".".join(imports_of(path)).split(".")}:
      users.add(name_of(path))
  assert users == {"distributed.private"}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_import_the_package_alone(path):
  allowed = {"nfnet_jax", "ml_collections", *sys.stdlib_module_names}
  assert [name for name in imports_of(path) if name.split(".")[0] not in allowed] == []


def test_models_and_clipping_need_no_data_or_checkpoint_libraries():
  program = """
import sys
import jax
import nfnet_jax
net = nfnet_jax.create_model("nfnet_micro", num_classes=10)
images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
jax.eval_shape(lambda x: net.init(jax.random.key(0), x, True), images)
nfnet_jax.adaptive_grad_clip(0.01)
print(*{name.partition(".")[0] for name in sys.modules})
"""
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
  )
  loaded = set(done.stdout.split())
  assert "haiku" in loaded
  assert not loaded & {
    *("tensorflow", "tensorflow_datasets", "keras", "sklearn"),
    *("orbax", "tensorboardX", "matplotlib", "tqdm"),
  }


def test_submodules_are_there_after_the_import():
  program = """
import sys, numpy, nfnet_jax
assert "nfnet_jax.data" not in sys.modules and "nfnet_jax.training" not in sys.modules
print(nfnet_jax.augment.normalize(numpy.zeros((1, 2, 2, 3), "uint8")).shape)
print(nfnet_jax.data.__name__, nfnet_jax.training.__name__, nfnet_jax.cpu_memory.keep.__name__)
print({"agc", "config", "losses", "optim", "weights"} <= set(dir(nfnet_jax)))
print(hasattr(nfnet_jax, "zzz"))
"""
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert done.stdout.splitlines() == [
    "(1, 2, 2, 3)",
    "nfnet_jax.data nfnet_jax.training keep",
    "True",
    "False",
  ]


def test_every_folder_is_a_package():
  """A folder without `__init__.py` is left out of what is installed."""
  folders = {path.parent for path in [*FILES, *(ROOT / "tests").rglob("test_*.py")]}
  assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_files_are_short():
  lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
  assert {k: n for k, n in lengths.items() if n > MAX_LINES_OF_A_FILE} == {}


def test_functions_are_short():
  lengths = {name: n for path in FILES for name, n in functions_of(path).items()}
  assert len(lengths) > 100
  assert set(LONG_FUNCTIONS) <= set(lengths)
  limits = dict.fromkeys(lengths, MAX_LINES_OF_A_FUNCTION) | LONG_FUNCTIONS
  assert {name: n for name, n in lengths.items() if n > limits[name]} == {}


def test_everything_public_says_what_it_is():
  definitions = [each for path in FILES for each in public_definitions(path)]
  assert len(definitions) > 100
  assert [name for node, name in definitions if not ast.get_docstring(node)] == []


@pytest.mark.parametrize(
  ("path", "dials"),
  [
    ("imagenet_nfnet", nfnet.VARIANTS),
    ("imagenet_nf_resnet", nf_resnet.DEPTHS),
    ("imagenet_nf_regnet", nf_regnet.VARIANTS),
    ("imagenet_resnet", ("50", "101", "152", "200")),
  ],
)
def test_every_dial_resolves(path, dials):
  for dial in dials:
    config = config_file.read(f"{ROOT}/experiments/{path}.py:{dial}")
    resolved = config_lib.resolve(config, DATA_SETS["imagenet2012"])
    assert resolved.model.name.endswith(dial)
  with pytest.raises(RequestError, match="'zzz': choose one of"):
    config_file.read(f"{ROOT}/experiments/{path}.py:zzz")


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_resolve_and_make_a_step(path):
  config = config_file.read(str(path))
  config = config_lib.resolve(config, DATA_SETS[config.data.name])
  run = build(config)
  state = jax.eval_shape(run.init)
  size = config.batch_size * images_per_example(config.augment)
  pixels = config.data.train_size
  batch = Batch(
    np.empty((size, pixels, pixels, 3), np.uint8),
    np.empty(size, np.int32),
    np.empty(size, np.float32),
  )
  batch = parallel.shard(batch, jax.device_count())
  new_state, metrics = jax.eval_shape(parallel.map_train_step(run.train_step), state, batch)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), new_state) == jax.tree.map(
    lambda x: (x.shape, x.dtype), state
  )
  assert metrics["loss"].shape == ()
