"""The structure of the package: allowed imports, cost of importing, lengths of files."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import nfnet_jax
from nfnet_jax import config as config_lib
from nfnet_jax import models
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

# A room is a folder, or a file of the top folder. It imports only from rows above its own.
ROWS = (
  {"errors", "choices"},
  {"output", "seeds", "agc", "losses", "sam", "ops"},
  {"optim", "models"},
  {"data"},
  {"augment"},
  {"config"},
  {"runs"},
  {"weights", "distributed", "report"},
  {"training"},
  {"inference", "plan"},
  {"benchmark"},
  {"cli"},
  {"__main__"},
)
ROW_OF = {room: row for row, rooms in enumerate(ROWS) for room in rooms}

DATA_SETS = {
  "digits": DatasetInfo(10, tuple("0123456789"), num_train=1437, num_test=360),
  "folder": DatasetInfo(3, ("a", "b", "c"), num_train=300, num_test=60),
  "imagenet2012": DatasetInfo(1000, ("",) * 1000, num_train=1281167, num_test=50000),
}

MAX_LINES_OF_A_FILE = 300
MAX_LINES_OF_A_FUNCTION = 60
LONG_FUNCTIONS = {"training.loop.run": 90}  # the loop


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


MODULES = {name_of(path): path for path in FILES}


def module_of(imported):
  """The file of ours that an import reaches, as in MODULES; None for what is not ours."""
  package, _, name = imported.partition(".")
  while package == "nfnet_jax" and name not in MODULES:
    name = name.rpartition(".")[0]
  return name if package == "nfnet_jax" else None


GRAPH = {
  name: {module for each in imports_of(path) if (module := module_of(each)) not in (None, name)}
  for name, path in MODULES.items()
}


def reached_from(name):
  """All modules of ours that one needs, itself included; others read the package's version."""
  found, waiting = set(), {name}
  while waiting:
    module = waiting.pop()
    found.add(module)
    waiting |= GRAPH[module] - found - {""}
  return found


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
  for name, imported in GRAPH.items():
    room = name.partition(".")[0]
    assert not room or room in ROW_OF, f"{room} has no row yet: give it one in ROWS"
    others = {module.partition(".")[0] for module in imported if module} - {room}
    wrong += [
      f"{name} imports {other}" for other in others if ROW_OF[other] >= ROW_OF.get(room, 99)
    ]
  assert not wrong


def test_imports_know_no_circle():
  """Not between files either; the package itself, whose version others read, imports no room."""
  order = graphlib.TopologicalSorter({name: GRAPH[name] - {""} for name in GRAPH if name})
  assert len([*order.static_order()]) > 100


def test_what_is_imported_from_the_package_itself_is_there():
  """Type checkers do not see it: `__getattr__` could give any name."""
  names = {
    each.removeprefix("nfnet_jax.")
    for path in FILES
    for each in imports_of(path)
    if each.startswith("nfnet_jax.") and not module_of(each)
  }
  assert names <= {*nfnet_jax.__all__, "__version__"}


def test_nothing_imports_tests_or_experiments():
  imported = {each.partition(".")[0] for path in FILES for each in imports_of(path)}
  assert not imported & {"tests", "experiments"}


def test_evaluation_needs_no_training():
  """A network, weights and data are enough."""
  assert {"inference.evaluate", "models.nfnet", "data.pipeline"} <= reached_from(
    "inference.evaluate"
  )
  for start in ("inference.evaluate", "inference.predict", "weights"):
    reached = reached_from(start)
    assert {name for name in reached if name.startswith("training")} <= {
      *("training.bar", "training.evaluate", "training.parallel", "training.replicas"),
    }
    assert not {name.partition(".")[0] for name in reached} & {"agc", "augment", "optim", "sam"}


def test_layers_know_no_network():
  names = imports_of(PACKAGE / "models/layers.py")
  ours = {name for name in names if name.startswith("nfnet_jax")}
  assert ours == {
    "nfnet_jax.choices.NUMERICS",
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


def test_the_top_folder_holds_few_files():
  assert len([*PACKAGE.glob("*.py")]) <= 10


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
    ("imagenet_nfnet", (*nfnet.VARIANTS, "f5+sam")),
    ("imagenet_nf_resnet", nf_resnet.DEPTHS),
    ("imagenet_nf_regnet", nf_regnet.VARIANTS),
    ("imagenet_resnet", ("50", "101", "152", "200")),
  ],
)
def test_every_dial_resolves(path, dials):
  for dial in dials:
    config = config_file.read(f"{ROOT}/experiments/{path}.py:{dial}")
    resolved = config_lib.resolve(config, DATA_SETS["imagenet2012"])
    assert resolved.model.name.endswith(dial.removesuffix("+sam"))
    assert (resolved.sam.rho, resolved.sam.share) == (0.05 if "sam" in dial else 0, 0.2)
  with pytest.raises(RequestError, match="'zzz': choose one of"):
    config_file.read(f"{ROOT}/experiments/{path}.py:zzz")


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_resolve_and_make_a_step(path):
  config = config_file.read(str(path))
  config.model.name = config.model.name or "nfnet_micro"
  config.init.head = None
  # A block for each stage: more of them take long to trace, and say nothing new.
  config.model.depths = (1,) * len(models.get_spec(config.model.name).kwargs["depths"])
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
