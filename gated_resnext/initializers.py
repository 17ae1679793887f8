"""Initial kernels: the distributions of He et al. and of Glorot and Bengio, as Keras draws them.

JAX compiles a program for every shape that it draws, and those of several axes take a CPU seconds each. What it draws
of a seed begins alike whatever its length, so that one row, cut and folded, has the same numbers in any shape.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

LEAST = 4096  # numbers of a row: it is that long or a power of two, so that few programs do for all kernels


def he_normal(fan_out: int, seed: Any) -> keras.initializers.Initializer:
    """N(0, 2 / fan_out): He et al. (2015), by outputs, also for stacked kernels whose shape hides their fan."""
    kind = NormalRow if keras.backend.backend() == "jax" else keras.initializers.RandomNormal
    return kind(stddev=math.sqrt(2.0 / fan_out), seed=seed)


def glorot_uniform(fan_in: int, fan_out: int, seed: Any) -> keras.initializers.Initializer:
    """U(-l, l), l = sqrt(6 / (fan_in + fan_out)): Glorot and Bengio (2010)."""
    kind = UniformRow if keras.backend.backend() == "jax" else keras.initializers.RandomUniform
    limit = math.sqrt(3.0 * (1.0 / ((fan_in + fan_out) / 2.0)))
    return kind(-limit, limit, seed=seed)


class _Row(keras.initializers.Initializer):
    """Before one of Keras' initializers among the bases: draws a row, and folds its beginning."""

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        size = math.prod(shape)
        row = super().__call__((max(LEAST, 1 << max(0, size - 1).bit_length()),), dtype)
        return ops.convert_to_tensor(ops.convert_to_numpy(row)[:size].reshape(shape))


@keras.saving.register_keras_serializable("gated_resnext")
class NormalRow(_Row, keras.initializers.RandomNormal):
    """Keras' `RandomNormal`, drawn as a row."""


@keras.saving.register_keras_serializable("gated_resnext")
class UniformRow(_Row, keras.initializers.RandomUniform):
    """Keras' `RandomUniform`, drawn as a row."""
