"""Freezes and prunes any model that has a `GatedDenseBlock`; the function stays the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from gated_resnext.branches import GatedBranches
from gated_resnext.copying import copy_weights
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
    blocks = {layer.name: layer for layer in model.layers if isinstance(layer, GatedDenseBlock)}
    nested = {layer.name for layer in model.layers if isinstance(layer, keras.Model) and holds(layer, GatedDenseBlock)}
    if not (blocks or nested):
        raise ValueError(f"there is no GatedDenseBlock among the layers of {model.name}")

    def copied(layer: keras.layers.Layer) -> keras.layers.Layer:
        if layer.name in nested:
            return _rewired(layer, fixed)
        if isinstance(layer, GatedBranches):
            return layer.remade(range(len(layer.branches)), layer.sources)
        changes: dict[str, Any] = {}
        if layer.name in blocks:
            wiring, _ = fixed(layer.wiring())
            changes = {"layers": wiring.layers, "sources": wiring.sources}
        return type(layer).from_config({**layer.get_config(), **changes})

    with _uncompiled(model):  # cloning would look for a loss of one's own among Keras' own
        copy = keras.models.clone_model(model, clone_function=copied)
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer) or layer.name in nested:  # renamed, filled already
            continue
        target = copy.get_layer(layer.name)
        if layer.name in blocks:
            _, kept = fixed(layer.wiring())
            _fill(target, layer, kept)
        else:
            copy_weights(layer, target)
    return copy


@contextlib.contextmanager
def _uncompiled(model: keras.Model) -> Iterator[None]:
    """The model, which passes for one that was not compiled."""
    before, model.compiled = model.compiled, False
    try:
        yield
    finally:
        model.compiled = before


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
