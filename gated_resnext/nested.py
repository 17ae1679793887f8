"""Layers of a model, and of the models in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras


def layers_of(model: keras.Model, kind: type | tuple[type, ...]) -> Iterator[Any]:
    """The layers of a kind in a model and in those nested in it, in order."""
    for layer in model.layers:
        if isinstance(layer, kind):
            yield layer
        elif isinstance(layer, keras.Model):
            yield from layers_of(layer, kind)


def holds(model: keras.Model, kind: type | tuple[type, ...]) -> bool:
    """Whether there is a layer of a kind in a model or in those nested in it."""
    return any(True for _ in layers_of(model, kind))
