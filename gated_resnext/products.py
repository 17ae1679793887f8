"""Matrix products over all pixels of a batch whose result is tiny, such as a kernel's gradient or a covariance.

A GPU computes each tile of a result on one of its hundred processors. Of these results there is about one tile, so
that it would wait for a single processor: there the pixels are cut into pieces, which all processors share, and what
the pieces give is added, in float32.
"""

from __future__ import annotations

import math
from typing import Any

from keras import backend, ops

from gated_resnext.gradients import custom_gradient

Tensor = Any
PIECES = 1024  # of all products together: several for each processor of a large GPU


def accelerated() -> bool:
    """Whether JAX computes on something else than a CPU; TensorFlow and PyTorch leave such products to libraries."""
    if backend.backend() != "jax":
        return False
    import jax

    return bool(jax.default_backend() != "cpu")


def over_rows(a: Tensor, b: Tensor) -> Tensor:
    """a' b, (J, rows, m) and (J, rows, n) to (J, m, n), in their dtype; on an accelerator summed in float32."""
    if accelerated():
        return ops.cast(in_pieces(a, b), a.dtype)
    return ops.matmul(ops.transpose(a, (0, 2, 1)), b)


def of_rows(a: Tensor, b: Tensor) -> Tensor:
    """<a_j, b_k> for all rows of (J, many) and (C, many): (J, C). JAX gives float32, others the dtype of a and b.

    Of what all gates of a row have in common nothing is left, while they are equal, when the row is scaled to sum 1;
    rounded to 16 bits before that, the rest of their gradient would be lost in it.
    """
    if accelerated():
        return in_pieces(ops.transpose(a)[None], ops.transpose(b)[None])[0]
    if backend.backend() == "jax" and backend.standardize_dtype(a.dtype) != "float32":
        from jax import lax, numpy

        return lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=numpy.float32)
    return ops.matmul(a, ops.transpose(b))


@custom_gradient
def pointwise(x: Tensor, kernel: Tensor) -> tuple[Tensor, Any]:
    """x @ kernel, (J, rows, in) and (J, in, out), whose kernel gradient is a product over rows.

    The transposed one, of few rows: on a CPU it is twice as fast as one of few columns, where `out` is less than `in`.
    """

    def grad(gradient: Tensor) -> tuple[Tensor, Tensor]:
        of_kernel = ops.transpose(over_rows(gradient, x), (0, 2, 1))
        return ops.matmul(gradient, ops.transpose(kernel, (0, 2, 1))), of_kernel

    return ops.matmul(x, kernel), grad


def in_pieces(a: Tensor, b: Tensor) -> Tensor:
    """`over_rows` under JAX, float32."""
    from jax import lax, numpy

    products, rows = a.shape[:2]
    pieces = math.gcd(rows, max(1, PIECES // products))
    a, b = (tensor.reshape(products, pieces, rows // pieces, -1) for tensor in (a, b))
    exact = lax.Precision.HIGHEST if a.dtype == numpy.float32 else None  # else a GPU rounds to TF32
    of_each = lax.dot_general(a, b, (((2,), (2,)), ((0, 1), (0, 1))), exact, numpy.float32)
    return lax.optimization_barrier(of_each).sum(1)  # which XLA may make one product of again
