"""The flags of every verb, in the form of the config's keys (`nfnet_jax/config/keys.py`)."""

from nfnet_jax.choices import DTYPES, NUMERICS
from nfnet_jax.config.keys import KEYS
from nfnet_jax.config.values import Key, Path

_SIZE = KEYS["data.test_size"]
_BATCH_SIZE = KEYS["batch_size"]._replace(default=None)

_FORCE = Key(False, bool, "Whether to replace the file if it exists.")
_WEIGHTS = Key(
  None,
  Path,
  "A weights file, a run directory, or its RUN/checkpoints/best or RUN/checkpoints/STEP.",
)
_OUT = Key(None, Path, "The file to write.")
_CONFIG = Key(
  None,
  Path,
  "A config file, such as those in experiments/, as FILE:VARIANT if it has variants; or the "
  "config.json of a run.",
)
_NETWORK = {
  "model": Key(
    None,
    str,
    "The network. By default the weights file determines it.",
  ),
  "numerics": Key(
    None, str, "Numerics of the network; timm for weights that timm trained.", choices=NUMERICS
  ),
}
_NUM_CLASSES = Key(
  None,
  int,
  "Number of classes of the network. By default that of the weights file.",
  1,
  2**20,
)
_PIXELS = _SIZE._replace(
  help="Side of the images in pixels. By default that of the weights file or the network."
)
_PROCESSES = {
  "coordinator": Key(None, str, "Address HOST:PORT of process 0, for a job of several processes."),
  "num_processes": Key(
    None, int, "Number of processes in the job; 1 for a single process.", 1, 2**20
  ),
  "process_id": Key(None, int, "Index of this process in the job, from 0.", 0, 2**20),
  "join_timeout": Key(25.0, float, "Seconds to wait for all processes of the job to join.", 1, 1e6),
}
_STEPS = Key(20, int, "Number of steps to time.", 1, 10**6)

FLAGS: dict[str, dict[str, Key]] = {
  "train": {
    "config": _CONFIG,
    "workdir": Key(
      None,
      Path,
      "The run directory. It is created, or the run in it is resumed. Default, for a run with "
      "init.weights and data.dir: runs/finetune-DIR.",
    ),
    "extend": Key(
      False, bool, "Lets a finished run go on with the greater number of epochs that is asked for."
    ),
    "profile": Key(
      None,
      str,
      "Steps to trace, FIRST:LAST, such as 100:110, for the profile view of TensorBoard or xprof.",
    ),
    "tracker": Key(
      None,
      str,
      "Where to send the metrics as well: wandb, trackio or mlflow, or several with commas between "
      "them.",
    ),
    **_PROCESSES,
  },
  "evaluate": {
    "workdir": Key(
      None,
      Path,
      "A run directory or RUN/checkpoints/best, to evaluate the run on its own data set.",
    ),
    "weights": Key(None, Path, "A weights file or a run directory, instead of --workdir."),
    "dataset": Key(None, str, "A data set of TFDS, or folder; required with --weights."),
    **_NETWORK,
    "size": _PIXELS,
    "split": Key(None, str, "The split to evaluate on. By default the test split."),
    "batch_size": _BATCH_SIZE._replace(
      help="Images per batch, over all devices. By default the run's batch size, or 64."
    ),
    "data_dir": Key(
      None,
      Path,
      "The directory of the data. By default that of the run, or of TFDS.",
    ),
    "out": Key(
      None,
      Path,
      "A .csv file to write the prediction for each image to. Beside it go the accuracy of each "
      "class, the confusion matrix and the calibration: .json, .confusion.csv and .png.",
    ),
    "force": _FORCE,
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
      "A file of class names, one per line or JSON. By default the names in the weights file.",
    ),
    "top": Key(5, int, "Number of classes to print for each image.", 1, 2**20),
    "batch_size": _BATCH_SIZE._replace(
      help="Images per batch. By default a good size for the device."
    ),
    "features": Key(
      None, Path, "An .npz file to write pooled features to, instead of predicting classes."
    ),
    "csv": Key(None, Path, "A file to write the predictions to as well, a row for each image."),
    "force": _FORCE,
  },
  "convert": {
    "weights": _WEIGHTS,
    **_NETWORK,
    "out": _OUT,
    "to": Key(
      "safetensors", str, "The format to write.", choices=("safetensors", "timm", "published")
    ),
    "averaged": Key(
      True, bool, "Whether to take a run's EMA weights; --noaveraged takes the raw ones."
    ),
    "force": _FORCE,
  },
  "export": {
    "weights": _WEIGHTS,
    **_NETWORK,
    "out": _OUT,
    "to": Key("jax", str, "The format to write.", choices=("jax", "onnx")),
    "num_classes": _NUM_CLASSES,
    "size": _PIXELS,
    "force": _FORCE,
  },
  "report": {
    "out": _OUT._replace(default="report.html", help="The page to write."),
    "force": _FORCE,
  },
  "benchmark input": {
    "config": _CONFIG,
    "batches": Key(50, int, "Number of batches to read.", 5, 10**6),
    "step": Key(True, bool, "Whether to time the training step too; --nostep skips it."),
  },
  "benchmark train": {
    "config": _CONFIG,
    "model": Key(None, str, "The network, if no config is given."),
    "batch_size": _BATCH_SIZE._replace(help="Images per step, over all devices."),
    "image_size": _SIZE._replace(help="Side of the images in pixels. By default the config's."),
    "dtype": Key(None, str, "Dtype of the computation.", choices=DTYPES),
    "steps": _STEPS,
  },
  "benchmark predict": {
    "model": Key(None, str, "The network."),
    "batch_size": _BATCH_SIZE._replace(help="Images per batch. By default 8."),
    "image_size": _SIZE._replace(
      help="Side of the images in pixels. By default the network's test size."
    ),
    "dtype": Key(None, str, "Dtype of the computation.", choices=DTYPES),
    "steps": _STEPS,
  },
  "plan": {
    "config": _CONFIG,
    "topology": Key(None, str, "The machine, such as v4:4x4x8 for TPUs or gpu:h200x8 for GPUs."),
    "compile": Key(
      True,
      bool,
      "Whether to compile for TPUs, which takes minutes; --nocompile uses only formulas.",
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
    "nfnet-jax evaluate --workdir=runs/digits --out=predictions.csv",
    "nfnet-jax evaluate --weights=F0_haiku.npz --dataset=imagenet2012",
  ),
  "predict": ("nfnet-jax predict --weights=runs/digits photo.jpg folder/",),
  "convert": ("nfnet-jax convert --weights=F0_haiku.npz --to=timm --out=dm_nfnet_f0.safetensors",),
  "export": (
    "nfnet-jax export --weights=F0_haiku.npz --out=f0.jax",
    "nfnet-jax export --weights=F0_haiku.npz --to=onnx --out=f0.onnx",
  ),
  "report": (
    "nfnet-jax report runs/digits --out=digits.html",
    "nfnet-jax report runs/digits runs/digits_sgd --out=comparison.html",
  ),
  "benchmark input": ("nfnet-jax benchmark input --config=experiments/digits.py --batches=20",),
  "benchmark train": (
    "nfnet-jax benchmark train --model=nfnet_f0 --batch_size=8 --image_size=192",
  ),
  "benchmark predict": ("nfnet-jax benchmark predict --model=nfnet_f0 --batch_size=8",),
  "plan": ("nfnet-jax plan --config=experiments/imagenet_nfnet.py:F0 --topology=v4:2x2x1",),
}
