"""Cuts the blocks that nobody reads; the function stays the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from gated_resnext import branch_pruning, dense_pruning
from gated_resnext.architecture import Architecture
from gated_resnext.branches import GatedBranches
from gated_resnext.connectivity import Connectivity
from gated_resnext.copying import with_others
from gated_resnext.dense_block import GatedDenseBlock
from gated_resnext.model import GatedResNeXt
from gated_resnext.nested import holds, layers_of

Weights = dict[str, np.ndarray]

# The arrays with one row a block; what the blocks of a module share has one row in all.
PER_BLOCK = ("/reduce/", "/conv/", "/expand/")
# Those with one row a block and one column a block of the module before.
PER_PAIR = "_gate/branch_weights"
GATE_STATE = ("/real_gates", "/step")


def rebuild(model: GatedResNeXt, **changes: Any) -> GatedResNeXt:
    """A new network with the same weights, some of its arguments changed.

    Args:
        model: a network.
        **changes: arguments of `GatedResNeXt`; others stay as they are.
    """
    rebuilt = type(model).from_config({**model.get_config(), **changes})
    _copy_weights(model, rebuilt)
    return rebuilt


def wiring(model: keras.Model) -> Connectivity:
    """The wiring that a network evaluates with: the top K of the gates where they are learned.

    Args:
        model: a `GatedResNeXt`, or a model of one's own that is a chain of `GatedBranches` (`branch_pruning.wiring`).
    """
    if isinstance(model, GatedResNeXt):
        return model.wiring()
    if isinstance(model, keras.Model) and not holds(model, GatedBranches):
        layer = next(layers_of(model, (GatedResNeXt, GatedDenseBlock)), None)
        if layer is not None:
            raise ValueError(f"{model.name} has no wiring of its own: ask its layer {layer.name!r} for its wiring()")
    return branch_pruning.wiring(model)


def freeze(model: keras.Model) -> keras.Model:
    """A network with the wiring fixed to the top K of the gates, all blocks kept: phase 2 of the training.

    Args:
        model: a `GatedResNeXt` whose gates are binary, or a model of one's own that is made of `GatedBranches`
            (`branch_pruning.freeze`) or has a `GatedDenseBlock` (`dense_pruning.freeze`) or a `GatedResNeXt` in it.

    Returns:
        A new network with the same weights, or the given `GatedResNeXt` where there is nothing to fix.
    """
    if not isinstance(model, GatedResNeXt):
        return _of_ones_own(model, freeze, dense_pruning.freeze, branch_pruning.freeze)
    nothing_to_fix = model.connectivity is not None or not model.architecture.has_binary_gates
    return model if nothing_to_fix else rebuild(model, connectivity=model.wiring())


def prune(model: keras.Model) -> keras.Model:
    """A smaller network with the same function: unused blocks are cut, the wiring is fixed.

    Args:
        model: a `GatedResNeXt`, its wiring learned or fixed, or a model of one's own that is made of `GatedBranches`
            (`branch_pruning.prune`) or has a `GatedDenseBlock` (`dense_pruning.prune`) or a `GatedResNeXt` in it.

    Returns:
        A new network whose `connectivity` has the active blocks alone, renumbered; the given network where every
        block is read by all (ResNeXt, or the real-valued variant).

    Example:

    >>> from gated_resnext import Architecture, Connectivity
    >>> everyone_reads_block_0 = Connectivity(4, (((0,),) * 4,) * 2)
    >>> model = GatedResNeXt(Architecture(depth=11, width=4, cardinality=4, fan_in=1), everyone_reads_block_0)
    >>> prune(model).connectivity.blocks
    (1, 1, 4)

    Reference:
        Section 2.1 of the paper; docs/deviations.md, row 15.
    """
    if not isinstance(model, GatedResNeXt):
        return _of_ones_own(model, prune, dense_pruning.prune, branch_pruning.prune)
    if model.connectivity is None and not model.architecture.has_binary_gates:
        return model
    wiring = model.wiring()
    pruned = type(model).from_config({**model.get_config(), "connectivity": wiring.pruned()})
    _copy_weights(model, pruned, wiring)
    return pruned


Change = Callable[[keras.Model], keras.Model]


def _of_ones_own(model: keras.Model, network: Change, dense: Change, branches: Change) -> keras.Model:
    """What is done to the networks in a model, to its dense blocks and to its branches, where it has some."""

    def other(inner: GatedResNeXt) -> GatedResNeXt:
        changed = network(inner)
        return rebuild(inner) if changed is inner else changed

    whole, found = isinstance(model, keras.Model), False
    if whole and holds(model, GatedResNeXt):
        model, found = with_others(model, GatedResNeXt, other, lambda before, after: None), True
    if whole and holds(model, GatedDenseBlock):
        model, found = dense(model), True
    return model if found and not holds(model, GatedBranches) else branches(model)


def cut(values: Weights, architecture: Architecture, wiring: Connectivity) -> tuple[Weights, Weights]:
    """The weights of the active blocks, and those of the unused ones.

    Args:
        values: weights by name, of a network of `architecture` with all blocks of `wiring`.
        architecture: its shape.
        wiring: tells which blocks are active.

    Returns:
        All arrays, those with one row a block, or one row and column, cut to the active blocks; and what was cut.
    """
    kept, unused = dict(values), {}
    for name, places, left in _per_block(values, architecture, wiring):
        kept[name] = values[name][places]
        if left.any():
            unused[name] = values[name][left]
    return kept, unused


def uncut(kept: Weights, unused: Weights, architecture: Architecture, wiring: Connectivity) -> Weights:
    """The inverse of `cut`."""
    values = dict(kept)
    for name, places, left in _per_block(kept, architecture, wiring):
        if name in unused:
            values[name] = np.empty((*left.shape, *kept[name].shape[left.ndim :]), kept[name].dtype)
            values[name][places] = kept[name]
            values[name][left] = unused[name]
    return values


def _per_block(
    values: Weights, architecture: Architecture, wiring: Connectivity
) -> Iterator[tuple[str, tuple[np.ndarray, ...], np.ndarray]]:
    """Name, index of what is of active blocks and mask of the rest, of every array that is cut with the blocks."""
    modules = {plan.name: number for number, plan in enumerate(architecture.plan())}
    for name in values:
        if any(part in name for part in PER_BLOCK):
            axes = [modules[name.split("/")[0]]]
        elif name.endswith(PER_PAIR):
            module = modules[name.removesuffix(PER_PAIR)]
            axes = [module, module - 1]
        else:
            continue
        places = np.ix_(*(wiring.active[module] for module in axes))
        left = np.ones([wiring.blocks[module] for module in axes], bool)
        left[places] = False
        yield name, places, left


def _copy_weights(source: GatedResNeXt, target: GatedResNeXt, wiring: Connectivity | None = None) -> None:
    """Assigns to every variable of `target` that of `source`, cut to the active blocks of `wiring`."""
    values = source.weights_by_name()
    if wiring is not None:
        values, _ = cut(values, source.architecture, wiring)
    # Only a network that is no longer to learn its wiring has no place for the gates.
    places = target.variables_by_name()
    target.assign_by_name(
        {name: value for name, value in values.items() if name in places or not name.endswith(GATE_STATE)}
    )
