"""Neural networks that learn their own wiring, and ship smaller for it.

    model = gated_resnext.zoo.load("digits_11_4_4_k1")
    smaller = gated_resnext.prune(model)

What is where: `Architecture` and `Connectivity` are values, `GatedResNeXt` is the network they describe, `freeze` and
`prune` cut it, `zoo` lists the paper's networks, `load` reads one that was trained, `transfer` gives it another head,
`Recipe` and `trainer.train` learn them, and `GateConnectSGD` is what a `fit` of one's own wants, `GateRecorder`
watches its gates. `preprocess_input` and `decode_predictions` stand before and behind a network, `Evaluation` says
how well it does. `GatedBranches` gates layers of one's own, `GatedDenseBlock` the skip connections of a dense block;
`wiring` reads what a network has learned. `prepare_cpu` makes steps on a CPU faster.
Importing this package imports neither Keras nor TensorFlow: each name is fetched when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gated_resnext import zoo
    from gated_resnext.aggregation import GatedAggregation
    from gated_resnext.architecture import Architecture
    from gated_resnext.branches import GatedBranches
    from gated_resnext.connectivity import Connectivity
    from gated_resnext.cpu import prepare_cpu
    from gated_resnext.dense_block import GatedDenseBlock
    from gated_resnext.dense_wiring import DenseWiring
    from gated_resnext.evaluation import Evaluation
    from gated_resnext.gate_recorder import GateRecorder
    from gated_resnext.heads import transfer
    from gated_resnext.layers import MultiBranchModule
    from gated_resnext.model import GatedResNeXt, load
    from gated_resnext.optimizer import GateConnectSGD
    from gated_resnext.predictions import decode_predictions, preprocess_input
    from gated_resnext.pruning import freeze, prune, wiring
    from gated_resnext.recipes import Phase, Recipe

__version__ = "0.2.0"

_HOMES = {
    "Architecture": "architecture",
    "Connectivity": "connectivity",
    "DenseWiring": "dense_wiring",
    "Evaluation": "evaluation",
    "GateConnectSGD": "optimizer",
    "GateRecorder": "gate_recorder",
    "GatedAggregation": "aggregation",
    "GatedBranches": "branches",
    "GatedDenseBlock": "dense_block",
    "GatedResNeXt": "model",
    "MultiBranchModule": "layers",
    "Phase": "recipes",
    "Recipe": "recipes",
    "decode_predictions": "predictions",
    "freeze": "pruning",
    "load": "model",
    "prepare_cpu": "cpu",
    "preprocess_input": "predictions",
    "prune": "pruning",
    "transfer": "heads",
    "wiring": "pruning",
}

__all__ = [
    "Architecture",
    "Connectivity",
    "DenseWiring",
    "Evaluation",
    "GateConnectSGD",
    "GateRecorder",
    "GatedAggregation",
    "GatedBranches",
    "GatedDenseBlock",
    "GatedResNeXt",
    "MultiBranchModule",
    "Phase",
    "Recipe",
    "decode_predictions",
    "freeze",
    "load",
    "prepare_cpu",
    "preprocess_input",
    "prune",
    "transfer",
    "wiring",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name in ("preprocessing", "trainer", "zoo", *_HOMES.values()):
        return importlib.import_module(f"gated_resnext.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"gated_resnext.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gated_resnext' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
