"""How the house is built: who may import whom, what importing costs, how long things may get."""

import ast
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from nfnet_jax import config as config_lib
from nfnet_jax import config_file, parallel
from nfnet_jax.batch import Batch
from nfnet_jax.build import build
from nfnet_jax.data import DatasetInfo
from nfnet_jax.errors import RequestError
from nfnet_jax.models import nf_regnet, nf_resnet, nfnet
from nfnet_jax.step import images_per_example

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "nfnet_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))

# A module imports only from rows above its own. `models`, `data` and `augment` count as one each.
ROWS = (
  {"errors", "batch", "compile_cache", "cpu_memory"},
  {"agc", "losses", "augment", "flops", "metrics", "output", "preprocess"},
  {"arguments", "digest", "failure"},
  {"models", "data", "curves", "distributed"},
  {"config", "optim"},
  {"config_file", "agreement"},
  {"step"},
  {"build", "meter", "parallel"},
  {"checkpoint"},
  {"weights", "record"},
  {"inference"},
  {"evaluate", "predict", "export"},
  {"train", "benchmark", "plan"},
  {"verbs"},
  {"__main__"},
)
ROW_OF = {module: row for row, modules in enumerate(ROWS) for module in modules}

DATA_SETS = {
  "digits": DatasetInfo(10, tuple("0123456789"), num_train=1437, num_test=360),
  "imagenet2012": DatasetInfo(1000, ("",) * 1000, num_train=1281167, num_test=50000),
}

MAX_LINES_OF_A_FILE = 300
MAX_LINES_OF_A_FUNCTION = 60
LONG_FUNCTIONS = {"train.run": 90, "config.default": 100}  # the loop, and the list of keys


def module_of(path):
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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
    module = module_of(path)
    if path == PACKAGE / "__init__.py":
      continue
    assert module in ROW_OF, f"{module} has no row yet: give it one in ROWS"
    for name in imports_of(path):
      package, _, rest = name.partition(".")
      imported = rest.partition(".")[0]
      assert package not in ("tests", "experiments"), f"{path} imports {name}"
      if package == "nfnet_jax" and imported != module and ROW_OF[imported] >= ROW_OF[module]:
        wrong.append(f"{path.relative_to(ROOT)} imports {name}")
  assert not wrong


def test_layers_know_no_network():
  names = imports_of(PACKAGE / "models/layers.py")
  ours = {name for name in names if name.startswith("nfnet_jax")}
  assert ours == {
    "nfnet_jax.errors.RequestError",
    "nfnet_jax.models.conv.conv",
    "nfnet_jax.models.gelu.gelu",
    "nfnet_jax.models.pool_cpu",
  }


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
