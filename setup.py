"""Metadata of the package; the settings of the tools are in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "gated_resnext" / "__init__.py").read_text()).group(1)

COMPRESS = [
    "setuptools",  # tensorflow-model-optimization imports distutils, which Python 3.12 no longer has
    "tensorflow-model-optimization>=0.8.1,<0.9",
    "tf_keras>=2.21",
]
SERVING = ["tensorflow-serving-api>=2.21"]  # the warm-up requests of an export, and clients

TEST = [
    *COMPRESS,
    *SERVING,
    "hypothesis>=6.100",
    "jax>=0.6",  # the same layers on another backend
    "ipykernel>=6.29",
    "mypy>=1.10",
    "nbclient>=0.10",
    "build>=1.2",
    "openvino>=2026.0",
    "pyperf>=2.7",
    "pytest>=8",
    "pytest-xdist>=3.5",
    "pyyaml>=6",
    "ruff>=0.6",
    "scikit-learn>=1.4",
    "scipy>=1.11",
]

setup(
    name="gated-resnext",
    version=VERSION,
    description="Neural networks that learn their own wiring, and ship smaller for it",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["gated_resnext*", "zoo*", "export*"]),
    package_data={
        "gated_resnext": ["py.typed"],
        "export": ["py.typed"],
        "gated_resnext.datasets": ["*.csv.gz", "*.txt"],
        "zoo": ["py.typed", "cards/*.json", "weights/*.npz"],
    },
    install_requires=[
        "absl-py>=1.4",
        "ai-edge-litert>=2.0",
        "flatbuffers>=24.3",
        "importlib_resources>=6.0",  # tensorflow-datasets 4.9.10 imports it and does not ask for it
        "keras>=3.15",
        "matplotlib>=3.10",
        "numpy>=1.26",
        "pillow>=10",
        "tensorboard>=2.20",
        "tensorflow>=2.21",
        "tensorflow-datasets>=4.9.10",
    ],
    extras_require={"benchmark": ["pyperf>=2.7", "torch>=2.6"], "compress": COMPRESS, "serving": SERVING, "test": TEST},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
