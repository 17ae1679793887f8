"""Weights of one Keras layer given to another of the same making."""

from __future__ import annotations

import keras


def copy_weights(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Sets the weights of `target`, and what each `Normalization` in it computed from those it had.

    Keras' `set_weights` alone leaves a `Normalization` with the mean and variance that it began with.
    """
    target.set_weights(source.get_weights())
    for layer in target._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
