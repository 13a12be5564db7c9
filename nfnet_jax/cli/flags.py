"""The flags of every verb, described as a config's keys are (`nfnet_jax/config/keys.py`)."""

from nfnet_jax.config.keys import DTYPES, KEYS
from nfnet_jax.config.values import Key, Path
from nfnet_jax.models.layers import NUMERICS

_SIZE = KEYS["data.test_size"]
_BATCH_SIZE = KEYS["batch_size"]._replace(default=None)

_FORCE = Key(False, bool, "Replaces the file if it exists.")
_WEIGHTS = Key(None, Path, "Names a weights file or a run directory.")
_OUT = Key(None, Path, "Names the file to write.")
_CONFIG = Key(
  None,
  Path,
  "Names a config file, such as those in experiments/, as FILE:VARIANT if it has variants; or the "
  "config.json of a run.",
)
_NETWORK = {
  "model": Key(
    None,
    str,
    "Names the network. Unless given, it is the one that the file names or fits.",
  ),
  "numerics": Key(
    None, str, "Says timm for weights of a network that timm has trained.", choices=NUMERICS
  ),
}
_NUM_CLASSES = Key(
  None,
  int,
  "Says how many classes the network has. Unless given, it has as many as the file.",
  1,
  2**20,
)
_PIXELS = _SIZE._replace(
  help="Sets an image's side in pixels. Unless given, it is the network's own."
)
_PROCESSES = {
  "coordinator": Key(
    None, str, "Gives the address HOST:PORT of process 0, for a job of several processes."
  ),
  "num_processes": Key(
    None, int, "Says how many processes the job has; 1 runs this one alone.", 1, 2**20
  ),
  "process_id": Key(None, int, "Says which of them this one is; they count from 0.", 0, 2**20),
  "join_timeout": Key(
    25.0, float, "Sets how many seconds to wait until all processes are there.", 1, 1e6
  ),
}
_STEPS = Key(20, int, "Sets how many steps to time.", 1, 10**6)

FLAGS: dict[str, dict[str, Key]] = {
  "train": {
    "config": _CONFIG,
    "workdir": Key(None, Path, "Names the run directory. It is made, or the run in it goes on."),
    **_PROCESSES,
  },
  "evaluate": {
    "workdir": Key(None, Path, "Names a run directory, which is evaluated on its own data set."),
    "weights": Key(None, Path, "Names a weights file or a run directory, in place of --workdir."),
    "dataset": Key(None, str, "Names a data set of TFDS, or says folder; --weights needs it."),
    **_NETWORK,
    "size": _PIXELS,
    "split": Key(None, str, "Names the split to evaluate on. Unless given, it is the test split."),
    "batch_size": _BATCH_SIZE._replace(
      help="Sets how many images all devices compute together. Unless given, the run's, or 64."
    ),
    "data_dir": Key(
      None,
      Path,
      "Says where the data are. Unless given, they are where the run had them, or TFDS has them.",
    ),
    **_PROCESSES,
  },
  "predict": {
    "weights": _WEIGHTS,
    **_NETWORK,
    "num_classes": _NUM_CLASSES,
    "size": _PIXELS,
    "classes": Key(
      None,
      Path,
      "Names a file of class names, one a line or JSON. Unless given, they are the network's own.",
    ),
    "top": Key(5, int, "How many classes to give.", 1, 2**20),
    "batch_size": _BATCH_SIZE._replace(
      help="Sets how many images are computed together. Unless given, it depends on the device."
    ),
    "features": Key(
      None, Path, "Names an .npz file to write pooled features to, in place of predicting classes."
    ),
    "force": _FORCE,
  },
  "convert": {
    "weights": _WEIGHTS,
    **_NETWORK,
    "out": _OUT,
    "to": Key(
      "safetensors", str, "Names the format to write.", choices=("safetensors", "timm", "published")
    ),
    "averaged": Key(
      True, bool, "Takes the EMA weights of a run directory; --noaveraged takes the raw ones."
    ),
    "force": _FORCE,
  },
  "export": {
    "weights": _WEIGHTS,
    **_NETWORK,
    "out": _OUT,
    "to": Key("jax", str, "Names the format to write.", choices=("jax", "onnx")),
    "num_classes": _NUM_CLASSES,
    "size": _PIXELS,
    "force": _FORCE,
  },
  "benchmark input": {
    "config": _CONFIG,
    "batches": Key(50, int, "Sets how many batches to read.", 5, 10**6),
    "step": Key(True, bool, "Times the training step as well; --nostep leaves that out."),
  },
  "benchmark train": {
    "config": _CONFIG,
    "model": Key(None, str, "Names the network, unless a config does."),
    "batch_size": _BATCH_SIZE._replace(help="Sets how many images a step has, on all devices."),
    "image_size": _SIZE._replace(
      help="Sets an image's side in pixels. Unless given, it is the config's."
    ),
    "dtype": Key(None, str, "Sets the dtype of the computation.", choices=tuple(DTYPES)),
    "steps": _STEPS,
  },
  "benchmark predict": {
    "model": Key(None, str, "Names the network."),
    "batch_size": _BATCH_SIZE._replace(
      help="Sets how many images are computed together. Unless given, they are 8."
    ),
    "image_size": _PIXELS,
    "dtype": Key(None, str, "Sets the dtype of the computation.", choices=tuple(DTYPES)),
    "steps": _STEPS,
  },
  "plan": {
    "config": _CONFIG,
    "topology": Key(
      None, str, "Names the machine, such as v4:4x4x8 for TPUs or gpu:h200x8 for GPUs."
    ),
    "compile": Key(
      True, bool, "Compiles for TPUs, which takes minutes; --nocompile goes by formulas alone."
    ),
  },
  "models": {},
}

EXAMPLES: dict[str, tuple[str, ...]] = {
  "train": (
    "nfnet-jax train --config=experiments/digits.py --workdir=runs/digits --config.epochs=20",
    "nfnet-jax train --config=experiments/imagenet_nfnet.py:F0 --workdir=runs/flowers \\",
    "  --config.data.name=folder --config.data.dir=~/flowers --config.data.test_split=test \\",
    "  --config.init.weights=F0_haiku.npz --config.init.head=reset --config.batch_size=64",
  ),
  "evaluate": (
    "nfnet-jax evaluate --workdir=runs/digits",
    "nfnet-jax evaluate --weights=F0_haiku.npz --dataset=imagenet2012",
  ),
  "predict": ("nfnet-jax predict --weights=runs/digits photo.jpg folder/",),
  "convert": ("nfnet-jax convert --weights=F0_haiku.npz --to=timm --out=dm_nfnet_f0.safetensors",),
  "export": (
    "nfnet-jax export --weights=F0_haiku.npz --out=f0.jax",
    "nfnet-jax export --weights=F0_haiku.npz --to=onnx --out=f0.onnx",
  ),
  "benchmark input": ("nfnet-jax benchmark input --config=experiments/digits.py --batches=20",),
  "benchmark train": (
    "nfnet-jax benchmark train --model=nfnet_f0 --batch_size=8 --image_size=192",
  ),
  "benchmark predict": ("nfnet-jax benchmark predict --model=nfnet_f0 --batch_size=8",),
  "plan": ("nfnet-jax plan --config=experiments/imagenet_nfnet.py:F0 --topology=v4:2x2x1",),
}
