"""Keras layers and models copied with their weights, some layers by others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from gated_resnext.branches import GatedBranches
from gated_resnext.nested import holds

Layer = Any


def copy_weights(source: Layer, target: Layer) -> None:
    """Sets the weights of `target`, and what each `Normalization` in it computed from those it had.

    Keras' `set_weights` alone leaves a `Normalization` with the mean and variance that it began with.
    """
    target.set_weights(source.get_weights())
    for layer in target._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def made_again(layer: Layer) -> Layer:
    """A layer of the same making, without the weights; one of a Python lambda, which has none, is itself.

    Keras makes no `Lambda` of such a config, as of a file of which nobody knows who wrote it.
    """
    if isinstance(layer, keras.layers.Lambda):
        return layer
    if type(layer).__name__ in ("Functional", "Sequential"):  # there may be one in it
        return keras.models.clone_model(layer, clone_function=made_again)
    if isinstance(layer, GatedBranches):
        return layer.remade(range(len(layer.branches)), layer.sources)
    return type(layer).from_config(layer.get_config())


def with_others(
    model: keras.Model,
    kind: type,
    other: Callable[[Layer], Layer],
    fill: Callable[[Layer, Layer], None] = copy_weights,
) -> keras.Model:
    """A copy of a model, with its weights, that has other layers in place of those of a kind.

    Args:
        model: a functional or Sequential model; those nested in it count.
        kind: of a layer.
        other: makes of such a layer the one to take its place, of the same name.
        fill: gives it its weights, once it is built: (old, new).

    Returns:
        A new model, not compiled.

    Raises:
        ValueError: if it is another kind of model.
    """
    if not getattr(model, "inputs", None):
        raise ValueError(f"expected a functional model, or a Sequential one that was built. Received: {model}")
    nested = {layer.name for layer in model.layers if not isinstance(layer, kind) and _holds(layer, kind)}

    def copied(layer: Layer) -> Layer:
        if layer.name in nested:
            return with_others(layer, kind, other, fill)
        return other(layer) if isinstance(layer, kind) else made_again(layer)

    with _uncompiled(model):  # cloning would look for a loss of one's own among Keras' own
        copy = keras.models.clone_model(model, clone_function=copied)
    for layer in model.layers:
        if isinstance(layer, (keras.layers.InputLayer, keras.layers.Lambda)) or layer.name in nested:
            continue  # renamed, the same, filled already
        (fill if isinstance(layer, kind) else copy_weights)(layer, copy.get_layer(layer.name))
    return copy


def _holds(layer: Layer, kind: type) -> bool:
    return isinstance(layer, keras.Model) and holds(layer, kind)


@contextlib.contextmanager
def _uncompiled(model: keras.Model) -> Iterator[None]:
    """The model, which passes for one that was not compiled."""
    before, model.compiled = model.compiled, False
    try:
        yield
    finally:
        model.compiled = before
