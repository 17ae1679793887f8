"""Freezes and prunes any model that has a `GatedDenseBlock`; the function stays the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import ops

from gated_resnext.copying import with_others
from gated_resnext.dense_block import GatedDenseBlock
from gated_resnext.dense_wiring import DenseWiring
from gated_resnext.nested import holds


def freeze(model: keras.Model) -> keras.Model:
    """A model whose dense blocks have the wiring fixed to the top K of their gates, all layers kept.

    Args:
        model: a functional or sequential model with a `GatedDenseBlock` among its layers, or those of a nested model.

    Returns:
        A new model with the same function and weights, not compiled; the blocks have no rows any more for what is not
        read.

    Raises:
        ValueError: if there is no such block, or it was not built.
    """
    return _rewired(model, lambda wiring: (wiring, range(1, wiring.layers + 1)))


def prune(model: keras.Model) -> keras.Model:
    """The same function in a smaller model: fixed wiring, and no layers that nobody reads.

    Args:
        model: a functional or sequential model with a `GatedDenseBlock` among its layers, or those of a nested model.

    Returns:
        A new model, not compiled.

    Raises:
        ValueError: if there is no such block, or it was not built.

    Example:

    >>> block = GatedDenseBlock(4, 2, 1, transition=3, transition_fan_in=1, seed=0)
    >>> smaller = prune(keras.Sequential([keras.Input((8, 8, 3)), block]))
    >>> block.parameters(), smaller.layers[0].parameters()
    (935, 15)
    """
    return _rewired(model, lambda wiring: (wiring.pruned(), wiring.active))


def _rewired(model: keras.Model, fixed: Callable[[DenseWiring], tuple[DenseWiring, Sequence[int]]]) -> keras.Model:
    """A copy of a model whose blocks have the wiring, and of the old layers those, that `fixed` gives."""
    if not holds(model, GatedDenseBlock):
        raise ValueError(f"there is no GatedDenseBlock among the layers of {model.name}")

    def other(block: GatedDenseBlock) -> GatedDenseBlock:
        wiring, _ = fixed(block.wiring())
        changes = {"layers": wiring.layers, "sources": wiring.sources}
        return type(block).from_config({**block.get_config(), **changes})

    def fill(block: GatedDenseBlock, target: GatedDenseBlock) -> None:
        _, kept = fixed(block.wiring())
        _fill(target, block, kept)

    return with_others(model, GatedDenseBlock, other, fill)


def _fill(target: GatedDenseBlock, source: GatedDenseBlock, kept: Sequence[int]) -> None:
    """Sets the weights of `target`, which has the layers `kept`, counted from 1, of `source`."""
    readers = [*kept, *([source.layer_count + 1] if source.transition is not None else [])]
    for reader, number in zip(target.readers, readers, strict=True):
        old, wanted = source.readers[number - 1], source.wiring().sources[number - 1]
        has = range(number) if old.sources is None else old.sources
        of_map = np.repeat(np.asarray(has), old.channels)  # the map of every row
        rows = np.isin(of_map, wanted)
        reader.kernel.assign(ops.convert_to_numpy(old.kernel)[:, :, rows])
        for one, other in zip(reader.norm.weights, old.norm.weights, strict=True):
            one.assign(ops.convert_to_numpy(other)[rows])
    for place, number in enumerate(kept):
        target.norms[place].set_weights(source.norms[number - 1].get_weights())
        target.convs[place].set_weights(source.convs[number - 1].get_weights())
