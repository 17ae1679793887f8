"""Cuts the blocks that nobody reads; the function stays the same."""

from __future__ import annotations

from typing import Any

from gated_resnext.model import GatedResNeXt

# The arrays with one row a block; what the blocks of a module share has one row in all.
PER_BLOCK = ("/reduce/", "/conv/", "/expand/")
GATE_STATE = ("/real_gates", "/step")


def rebuild(model: GatedResNeXt, **changes: Any) -> GatedResNeXt:
    """A new network with the same weights, some of its arguments changed.

    Args:
        model: a network.
        **changes: `connectivity`, `classifier_activation`; other arguments stay as they are.
    """
    rebuilt = GatedResNeXt.from_config({**model.get_config(), **changes})
    _copy_weights(model, rebuilt)
    return rebuilt


def freeze(model: GatedResNeXt) -> GatedResNeXt:
    """A network with the wiring fixed to the top K of the gates, all blocks kept: phase 2 of the training.

    Args:
        model: a network whose gates are binary.

    Returns:
        A new network with the same weights, or the given one where there is nothing to fix.
    """
    return model if _is_fixed(model) else rebuild(model, connectivity=model.wiring())


def prune(model: GatedResNeXt) -> GatedResNeXt:
    """A smaller network with the same function: unused blocks are cut, the wiring is fixed.

    Args:
        model: a network, its wiring learned or fixed.

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
    if model.connectivity is None and _is_fixed(model):
        return model
    wiring = model.wiring()
    pruned = GatedResNeXt.from_config({**model.get_config(), "connectivity": wiring.pruned()})
    kept = {plan.name: list(active) for plan, active in zip(model.architecture.plan(), wiring.active, strict=True)}
    _copy_weights(model, pruned, kept)
    return pruned


def _is_fixed(model: GatedResNeXt) -> bool:
    """Whether there are no binary gates left to decide."""
    return model.connectivity is not None or not model.gates or model.architecture.gates == "real"


def _copy_weights(source: GatedResNeXt, target: GatedResNeXt, kept: dict[str, list[int]] | None = None) -> None:
    """Assigns to every variable of `target` that of `source`, cut to the kept blocks of its module."""
    values = source.weights_by_name()
    if kept:
        for name, value in values.items():
            if any(part in name for part in PER_BLOCK):
                values[name] = value[kept[name.split("/")[0]]]
    # Only a network that is no longer to learn its wiring has no place for the gates.
    places = {variable.path for variable in target.variables}
    target.assign_by_name(
        {name: value for name, value in values.items() if name in places or not name.endswith(GATE_STATE)}
    )
