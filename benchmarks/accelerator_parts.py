"""Parts of one module under JAX, each computed in several ways that give the same, for `benchmarks.accelerator`.

A part is a function that gives its inputs and its ways: the first is what `gated_resnext` does on a CPU, and where one
says "as on accelerators", that is what it does there. Sizes are those of the first stage at 32x32: tensors are (blocks,
rows, channels), rows being images times pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
from jax import numpy as jnp

from gated_resnext import layers, products

Tensor = Any
Ways = dict[str, Callable[..., Any]]
FLOAT32 = jnp.float32


class Sizes(NamedTuple):
    """Of one module."""

    batch: int
    dtype: Any
    width: int = 4
    blocks: int = 8
    side: int = 32
    filters: int = 64

    @property
    def rows(self) -> int:
        """Pixels of all images."""
        return self.batch * self.side**2

    def random(self, seed: int, *shape: int) -> Tensor:
        """A normal tensor."""
        return jax.random.normal(jax.random.key(seed), shape, self.dtype)

    def wide(self, seed: int) -> Tensor:
        """What the blocks read or write."""
        return self.random(seed, self.blocks, self.rows, self.filters)

    def narrow(self, seed: int) -> Tensor:
        """What is between their convolutions."""
        return self.random(seed, self.blocks, self.rows, self.width)

    def gates(self) -> Tensor:
        """A drawn half of all, as a mean."""
        drawn = jax.random.bernoulli(jax.random.key(0), 0.5, (self.blocks, self.blocks))
        return drawn.astype(self.dtype) / 4


def gated_sum(sizes: Sizes) -> tuple[tuple[Tensor, ...], Ways]:
    """ReLU(G y)."""

    def product(gates: Tensor, y: Tensor) -> Tensor:
        return jax.nn.relu((gates @ y.reshape(sizes.blocks, -1)).reshape(y.shape))

    def sums(gates: Tensor, y: Tensor) -> Tensor:
        rows = [sum(gates[j, k] * y[k] for k in range(sizes.blocks)) for j in range(sizes.blocks)]
        return jax.nn.relu(jnp.stack(rows))

    return (sizes.gates(), sizes.wide(1)), {"one product": product, "sums": sums}


def gate_gradient(sizes: Sizes) -> tuple[tuple[Tensor, ...], Ways]:
    """<dx_j, y_k> of all pairs."""

    def in_pieces(pieces: int) -> Callable[..., Any]:
        def way(gradient: Tensor, y: Tensor) -> Tensor:
            a, b = (wide.reshape(sizes.blocks, pieces, -1) for wide in (gradient, y))
            return jnp.einsum("jpn,kpn->pjk", a, b, preferred_element_type=FLOAT32).sum(0)

        return way

    def product(gradient: Tensor, y: Tensor) -> Tensor:
        a, b = (wide.reshape(sizes.blocks, -1) for wide in (gradient, y))
        return lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=FLOAT32)

    def accelerated(gradient: Tensor, y: Tensor) -> Tensor:
        a, b = (wide.reshape(sizes.blocks, -1).T[None] for wide in (gradient, y))
        return products.in_pieces(a, b)[0]

    ways = {"one product": product, "as on accelerators": accelerated, "128 pieces": in_pieces(128)}
    return (sizes.wide(1), sizes.wide(2)), ways


def kernel_gradient(sizes: Sizes) -> tuple[tuple[Tensor, ...], Ways]:
    """Of the narrowing 1x1 convolutions, x' dh."""

    def product(dh: Tensor, x: Tensor) -> Tensor:
        return dh.transpose(0, 2, 1) @ x

    ways = {"a product a block": product, "as on accelerators": products.in_pieces}
    return (sizes.narrow(1), sizes.wide(2)), ways


def covariance(sizes: Sizes) -> tuple[tuple[Tensor, ...], Ways]:
    """h'h, from which the statistics of the last batch norm are made."""

    def product(h: Tensor) -> Tensor:
        h = h.astype(FLOAT32)
        return h.transpose(0, 2, 1) @ h

    def accelerated(h: Tensor) -> Tensor:
        return products.in_pieces(h.astype(FLOAT32), h.astype(FLOAT32))

    def sums(h: Tensor) -> Tensor:
        h = h.astype(FLOAT32)
        return (h[..., None, :] * h[..., None]).sum(1)

    def beside(h: Tensor) -> Tensor:
        row = h.transpose(1, 0, 2).reshape(sizes.rows, -1)
        dense = lax.dot_general(row, row, (((0,), (0,)), ((), ())), preferred_element_type=FLOAT32)
        return jnp.einsum("jwjv->jwv", dense.reshape(2 * (sizes.blocks, sizes.width)))

    ways = {"a float32 product a block": product, "as on accelerators": accelerated, "sums": sums}
    return (sizes.narrow(1),), {**ways, "one dense product": beside}


def widening(sizes: Sizes) -> tuple[tuple[Tensor, ...], Ways]:
    """x + h W + b, the shift b being weights of a column of ones."""

    def padded(columns: int) -> Callable[..., Any]:
        def way(h: Tensor, kernel: Tensor, shift: Tensor, x: Tensor) -> Tensor:
            h = jnp.pad(h, ((0, 0), (0, 0), (0, columns)), constant_values=1)
            rest = jnp.zeros((sizes.blocks, columns - 1, sizes.filters), sizes.dtype)
            return x + h @ jnp.concatenate([kernel, shift, rest], 1)

        return way

    def sums(h: Tensor, kernel: Tensor, shift: Tensor, x: Tensor) -> Tensor:
        return x + shift + sum(h[..., i, None] * kernel[:, i, None] for i in range(sizes.width))

    kernel, shift = (
        sizes.random(2, sizes.blocks, sizes.width, sizes.filters),
        sizes.random(3, sizes.blocks, 1, sizes.filters),
    )
    to_a_multiple_of_eight = 8 - sizes.width % 8
    ways = {"a column more": padded(1), "columns to a multiple of 8": padded(to_a_multiple_of_eight), "sums": sums}
    return (sizes.narrow(1), kernel, shift, sizes.wide(4)), ways


def wide_part(sizes: Sizes) -> tuple[tuple[Tensor, ...], Ways]:
    """ReLU(G (x + h W)), forward and backward: y written, and never."""
    blocks = sizes.blocks

    def written(gates: Tensor, x: Tensor, h: Tensor, kernel: Tensor) -> Tensor:
        y = x + h @ kernel
        return jax.nn.relu((gates @ y.reshape(blocks, -1)).reshape(x.shape))

    def never(gates: Tensor, x: Tensor, h: Tensor, kernel: Tensor) -> Tensor:
        gated = jnp.einsum("jk,kwf->jkwf", gates, kernel).reshape(blocks, blocks * sizes.width, sizes.filters)
        beside = h.transpose(1, 0, 2).reshape(sizes.rows, -1)
        return jax.nn.relu((gates @ x.reshape(blocks, -1)).reshape(x.shape) + beside @ gated)

    inputs = sizes.gates(), sizes.wide(1), sizes.narrow(2), sizes.random(3, blocks, sizes.width, sizes.filters)
    return inputs, {"y written": differentiated(written), "y never written": differentiated(never)}


def convolutions(sizes: Sizes) -> tuple[tuple[Tensor, ...], Ways]:
    """The 3x3 convolutions, forward and backward."""
    blocks, width, side = sizes.blocks, sizes.width, sizes.side
    h = sizes.random(0, blocks, sizes.batch, side, side, width)
    kernel = sizes.random(1, blocks, 3, 3, width, width) / (3 * width**0.5)

    def convolved(h: Tensor, kernel: Tensor, groups: int = 1) -> Tensor:
        of = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=of, feature_group_count=groups)

    def apart(h: Tensor, kernel: Tensor) -> Tensor:
        return jnp.stack([convolved(h[block], kernel[block]) for block in range(blocks)])

    def beside(h: Tensor) -> Tensor:
        return h.transpose(1, 2, 3, 0, 4).reshape(*h.shape[1:4], -1)

    def back(h: Tensor) -> Tensor:
        return h.reshape(*h.shape[:3], blocks, width).transpose(3, 0, 1, 2, 4)

    def grouped(h: Tensor, kernel: Tensor) -> Tensor:
        return back(convolved(beside(h), kernel.transpose(1, 2, 3, 0, 4).reshape(3, 3, width, -1), blocks))

    def dense(h: Tensor, kernel: Tensor) -> Tensor:
        return layers.convolved_as_one(h, kernel, 1, "same")

    ways = {"apart": apart, "grouped": grouped, "dense, as on accelerators": dense}
    return (h, kernel), {name: differentiated(way) for name, way in ways.items()}


def differentiated(way: Callable[..., Any]) -> Callable[..., Any]:
    """The gradients of its mean square, of all inputs."""

    def mean_square(*inputs: Tensor) -> Tensor:
        return jnp.mean(jnp.square(way(*inputs).astype(FLOAT32)))

    def gradients(*inputs: Tensor) -> Any:
        return jax.grad(mean_square, tuple(range(len(inputs))))(*inputs)

    return gradients


PARTS = {
    "gated sum": gated_sum,
    "gates' gradient": gate_gradient,
    "narrowing kernels' gradient": kernel_gradient,
    "covariance": covariance,
    "widening and shortcut": widening,
    "wide part, forward and backward": wide_part,
    "3x3, forward and backward": convolutions,
}


def largest_difference(found: Any, expected: Any) -> float:
    """Of two trees of tensors, ||a - b|| / ||b||, the largest."""

    def norm(tensor: Tensor) -> float:
        return float(jnp.linalg.norm(tensor.astype(FLOAT32).ravel()))

    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(norm(a.astype(FLOAT32) - b.astype(FLOAT32)) / norm(b) for a, b in pairs)
