"""Neural networks that learn their own wiring, and ship smaller for it.

    model = gated_resnext.zoo.load("digits_11_4_4_k1")
    smaller = gated_resnext.prune(model)

What is where: `Architecture` and `Connectivity` are values, `GatedResNeXt` is the network they describe, `freeze` and
`prune` cut it, `zoo` lists the paper's networks, `load` reads one that was trained, `Recipe` and `train` learn them.
Importing this package imports neither Keras nor TensorFlow: each name is fetched when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gated_resnext import zoo
    from gated_resnext.architecture import Architecture
    from gated_resnext.connectivity import Connectivity
    from gated_resnext.dense_block import GatedDenseBlock
    from gated_resnext.dense_wiring import DenseWiring
    from gated_resnext.layers import GatedAggregation, MultiBranchModule
    from gated_resnext.model import GatedResNeXt, load
    from gated_resnext.pruning import freeze, prune
    from gated_resnext.recipes import Phase, Recipe

__version__ = "0.1.0"

_HOMES = {
    "Architecture": "architecture",
    "Connectivity": "connectivity",
    "DenseWiring": "dense_wiring",
    "GatedAggregation": "layers",
    "GatedDenseBlock": "dense_block",
    "GatedResNeXt": "model",
    "MultiBranchModule": "layers",
    "Phase": "recipes",
    "Recipe": "recipes",
    "freeze": "pruning",
    "load": "model",
    "prune": "pruning",
}

__all__ = [
    "Architecture",
    "Connectivity",
    "DenseWiring",
    "GatedAggregation",
    "GatedDenseBlock",
    "GatedResNeXt",
    "MultiBranchModule",
    "Phase",
    "Recipe",
    "freeze",
    "load",
    "prune",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name == "zoo":
        return importlib.import_module("gated_resnext.zoo")
    if name in _HOMES:
        return getattr(importlib.import_module(f"gated_resnext.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gated_resnext' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
