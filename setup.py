"""Packaging of nfnet_jax."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "nfnet_jax/__init__.py").read_text())[1]

# What reads images. Models, AGC, checkpoints and the step work without it.
DATA = [
  "tensorflow>=2.20",
  "tensorflow-datasets>=4.9.9",
  "importlib_resources",  # TFDS imports it and does not say so
  "scikit-learn",  # holds the digits
]

setuptools.setup(
  name="nfnet_jax",
  version=VERSION,
  description="Normalizer-free networks and adaptive gradient clipping in JAX, Haiku and optax",
  long_description=(HERE / "README.md").read_text(),
  long_description_content_type="text/markdown",
  author="The nfnet_jax authors",
  license="Apache-2.0",
  keywords="nfnet normalizer-free adaptive-gradient-clipping image-classification jax haiku optax",
  classifiers=[
    "Development Status :: 4 - Beta",
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Typing :: Typed",
  ],
  project_urls={
    "Paper": "https://arxiv.org/abs/2102.06171",
    "Paper (signal propagation, NF-ResNet)": "https://arxiv.org/abs/2101.08692",
  },
  packages=setuptools.find_packages(include=["nfnet_jax", "nfnet_jax.*"]),
  package_data={"nfnet_jax": ["py.typed", "data/imagenet_classes.txt", "report/assets/*"]},
  python_requires=">=3.11",
  install_requires=[
    "absl-py",
    "dm-haiku>=0.0.15",
    "etils[epath]",
    "jax>=0.10,<0.13",
    "jaxlib>=0.10,<0.13",
    "jinja2",
    "matplotlib",
    "ml-collections>=1.0",
    "numpy>=2.0",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.12,<0.13",
    "pillow>=11.3",  # the first to read AVIF
    "safetensors>=0.5",
    "tensorboardX",
    "tqdm",
  ],
  extras_require={
    "data": DATA,
    "docs": ["mkdocs-material>=9.6", "mkdocstrings-python>=2.0", "nbconvert>=7.16"],
    "onnx": ["onnx>=1.18"],
    "gpu": ["jax[cuda12]>=0.10,<0.13"],
    # The TPU compiler, for `nfnet-jax plan` on any Linux machine.
    "plan": ["jax[tpu]>=0.10,<0.13"],
    "tpu": ["jax[tpu]>=0.10,<0.13"],
    # What `train --tracker` sends metrics to; each can be installed alone.
    "trackers": ["mlflow", "trackio", "wandb>=0.31"],
    # For experiments/figures/differential_privacy.py. Not among the tests' requirements, because
    # dp-accounting holds attrs below 24; its tests are skipped without it.
    "privacy": ["jax-privacy>=2.0,<3"],
    "test": [
      *DATA,
      "chex>=0.1.90",
      "hypothesis",
      "ipykernel",
      "mypy",
      "nbclient",
      "onnx>=1.18",
      "onnxruntime",
      "playwright",  # drives an installed Chromium
      "pytest",
      "pytest-xdist",
      "ruff",
    ],
  },
  entry_points={"console_scripts": ["nfnet-jax=nfnet_jax.__main__:main"]},
)
