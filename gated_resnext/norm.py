"""Batch norm of branches: of narrow tensors directly, of wide ones from the statistics of what they are made of.

Variables, statistics and their arithmetic are float32 under every precision, as far as float32 goes: on NVIDIA's GPUs
TensorFlow rounds what it multiplies to TF32 unless `tf.config.experimental.enable_tensor_float_32_execution(False)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from gated_resnext.gradients import custom_gradient
from gated_resnext.products import over_rows

Tensor = Any
EPSILON = 1e-5
MOMENTUM = 0.9
LANES = 64  # channels side by side from which on a broadcast over them runs at full speed on a CPU


class BranchNorm(keras.layers.Layer):
    """Batch norm of J branches: y = gamma (x - mean) / sqrt(variance + 1e-5) + beta, the variables (J, channels).

    Like Keras' own it evaluates in training too, and keeps its statistics, while it is not `trainable`.

    Args:
        gamma: what the scale starts from.
        rate_factor: of gamma's and beta's learning rate, for `GateConnectSGD`.
    """

    def __init__(self, gamma: float = 1.0, rate_factor: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.initial_gamma, self.rate_factor = gamma, rate_factor

    def build(self, shape: Sequence[int]) -> None:
        options: dict[str, Any] = {"shape": tuple(shape), "dtype": "float32", "autocast": False}
        self.gamma = self.add_weight(
            name="gamma", initializer=keras.initializers.Constant(self.initial_gamma), **options
        )
        self.beta = self.add_weight(name="beta", initializer="zeros", **options)
        self.gamma.rate_factor = self.beta.rate_factor = self.rate_factor
        options |= {"trainable": False, "aggregation": "mean"}
        self.moving_mean = self.add_weight(name="moving_mean", initializer="zeros", **options)
        self.moving_variance = self.add_weight(name="moving_variance", initializer="ones", **options)

    def affine(
        self, moments: Callable[[], tuple[Tensor, Tensor]], training: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scale and shift with norm(v) = scale * v + shift, (J, channels) each, for the caller to fold into a kernel.

        `moments` returns the batch's mean and variance, (J, channels) each; it is called in training only.
        """
        if training and self.trainable:
            mean, variance = moments()
            self._move(mean, variance)
        else:
            mean, variance = ops.convert_to_tensor(self.moving_mean), ops.convert_to_tensor(self.moving_variance)
        scale = self.gamma * ops.rsqrt(variance + EPSILON)
        return scale, self.beta - mean * scale

    def normalized(
        self, x: Tensor, training: bool | None, synchronized: bool = False, counted: Tensor | None = None
    ) -> Tensor:
        """The normalised x, (J, rows, channels).

        Args:
            x: (J, rows, channels).
            training: whether to use the batch's statistics.
            synchronized: whether those of all replicas.
            counted: the rows that make the statistics; None for x.
        """
        if not (training and self.trainable) or synchronized or counted is not None:
            scale, shift = self.affine(lambda: moments(x if counted is None else counted, synchronized), training)
            return x * ops.cast(scale, x.dtype)[:, None] + ops.cast(shift, x.dtype)[:, None]
        rows = _side_by_side(ops.cast(x, "float32"))
        copies = rows.shape[-1] // x.shape[-1]
        mean = _per_channel(ops.mean, rows, copies)
        centered = ops.stop_gradient(rows - _tiled(mean, copies))
        variance = _per_channel(ops.mean, ops.square(centered), copies)
        self._move(mean, variance)
        inverse = ops.stop_gradient(ops.rsqrt(variance + EPSILON))
        gamma, beta = ops.copy(self.gamma), ops.copy(self.beta)  # TensorFlow's custom gradients take no variables
        y = _normalized(rows, centered, inverse, gamma, beta)
        return ops.reshape(ops.cast(y, x.dtype), ops.shape(x))

    def _move(self, mean: Tensor, variance: Tensor) -> None:
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * MOMENTUM + ops.stop_gradient(value) * (1.0 - MOMENTUM))


@custom_gradient
def _normalized(x: Tensor, centered: Tensor, inverse: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Any]:
    r"""gamma * centered * inverse + beta, with the gradient of the whole batch norm to x.

    dx = gamma * inverse * (dy - mean(dy) - \hat{x} * mean(dy * \hat{x})), \hat{x} = centered * inverse: as autodiff
    through the moments, in fewer passes (Ioffe and Szegedy, "Batch Normalization", section 3).

    Args:
        x: (J, rows, copies * channels).
        centered: x less its mean.
        inverse: 1 / sqrt(variance + epsilon), (J, channels), as gamma and beta.
    """
    copies = x.shape[-1] // gamma.shape[-1]
    scale = gamma * inverse

    def grad(dy: Tensor) -> tuple[Tensor, ...]:
        d_beta = _per_channel(ops.mean, dy, copies)
        d_gamma = inverse * _per_channel(ops.mean, dy * centered, copies)
        dx = _tiled(scale, copies) * (dy - _tiled(d_beta, copies) - centered * _tiled(inverse * d_gamma, copies))
        rows = ops.cast(ops.shape(x)[1] * copies, "float32")
        return dx, ops.zeros_like(centered), ops.zeros_like(inverse), rows * d_gamma, rows * d_beta

    return centered * _tiled(scale, copies) + _tiled(beta, copies), grad


def _side_by_side(x: Tensor) -> Tensor:
    """(J, rows, channels) as (J, rows / n, n * channels), so that few channels still make long rows."""
    rows, channels = x.shape[1:]
    copies = math.gcd(rows or 1, 1 << max(0, (LANES // channels).bit_length() - 1))
    return ops.reshape(x, (x.shape[0], -1, copies * channels))


def _per_channel(reduce: Callable[..., Tensor], x: Tensor, copies: int) -> Tensor:
    """(J, channels): `reduce` over all rows of what `_side_by_side` gave."""
    return reduce(ops.reshape(reduce(x, axis=1), (x.shape[0], copies, -1)), axis=1)


def _tiled(values: Tensor, copies: int) -> Tensor:
    """(J, channels) shaped to broadcast over what `_side_by_side` gave."""
    return ops.tile(values, (1, copies))[:, None]


def _replica_mean(value: Tensor) -> Tensor:
    """Mean over the replicas of tf.distribute, with its gradient; the value itself where there is one device."""
    return ops.moments(value[None], axes=[0], synchronized=True)[0]


def moments(x: Tensor, synchronized: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and variance over the rows of x, (J, rows, channels): two tensors (J, channels), float32.

    `synchronized` counts the rows of all replicas, which must have equally many.
    """
    x = ops.cast(x, "float32")
    if not synchronized:
        return ops.moments(x, axes=1)
    mean = _replica_mean(ops.mean(x, axis=1))
    return mean, _replica_mean(ops.mean(ops.square(x - mean[:, None]), axis=1))


def moments_after(x: Tensor, kernel: Tensor, synchronized: bool = False) -> tuple[Tensor, Tensor]:
    """Moments of x @ kernel without computing it: W'E(x) and diag(W'Cov(x)W).

    Where the product is wider than x, this saves a pass over the wide tensor for the statistics and another for the
    normalisation, whose scale then goes into the kernel.

    Args:
        x: (J, rows, in_channels).
        kernel: (J, in_channels, out_channels).
        synchronized: whether to count the rows of all replicas.

    Returns:
        Mean and variance, (J, out_channels) each, float32.
    """
    x, kernel = ops.cast(x, "float32"), ops.cast(kernel, "float32")
    everywhere = _replica_mean if synchronized else (lambda value: value)
    mean = everywhere(ops.mean(x, axis=1, keepdims=True))
    centered = x - mean
    rows = ops.cast(ops.shape(x)[1], "float32")
    covariance = everywhere(over_rows(centered, centered) / rows)
    variance = ops.sum(kernel * ops.matmul(covariance, kernel), axis=1)
    return ops.matmul(mean, kernel)[:, 0], ops.maximum(variance, 0.0)  # which rounding could make negative
