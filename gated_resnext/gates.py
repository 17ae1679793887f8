"""Gates: draw K of C, pick the top K, project after an update, pass the gradient straight through.

Pure functions of tensors, on any Keras backend. A gate matrix has the shape (J, C); row j holds the inputs of block j.
`real_gates` lie in [0, 1], `binary_gates` in {0, 1}.

Reference:
    Section 2.2 and Algorithm 1 of the paper; docs/deviations.md, rows 9 to 13.
"""

from __future__ import annotations

from typing import Any

from keras import backend, ops, random

from gated_resnext.gradients import custom_gradient
from gated_resnext.products import of_rows, over_rows

Tensor = Any

# Far below any gate that an update leaves standing, and large enough that log(ZERO) plus the largest Gumbel noise that
# float32 can give (16.6) stays under the log of a gate of 1e-10: a zero gate is drawn only when nothing else is left.
ZERO = 1e-20
_TINY = 1.2e-38
SPREAD = 2654435769  # 2^32 by the golden ratio, odd: multiples of neighbours are far apart


def project(real_gates: Tensor) -> Tensor:
    """Clips gates to [0, 1] and scales every row to sum 1; a row of zeros becomes uniform.

    Args:
        real_gates: (..., C).

    Returns:
        Tensor of the same shape.

    Example:

    >>> project([[0.5, -1.0, 0.5, 2.0], [-1.0, -2.0, 0.0, -3.0]]).numpy().tolist()
    [[0.25, 0.0, 0.25, 0.5], [0.25, 0.25, 0.25, 0.25]]
    """
    return normalized(ops.clip(ops.convert_to_tensor(real_gates), 0.0, 1.0))


def normalized(gates: Tensor) -> Tensor:
    """Scales every row (..., C) of gates from 0 to 1 to sum 1; a row of zeros becomes uniform."""
    total = ops.sum(gates, axis=-1, keepdims=True)
    positive = total > 0
    return ops.where(positive, gates / ops.where(positive, total, ops.ones_like(total)), 1.0 / gates.shape[-1])


def top_k(scores: Tensor, fan_in: int) -> Tensor:
    """Binary gates of the K largest scores of every row (..., C), the lower index first among equals.

    Example:

    >>> top_k([[0.1, 0.6, 0.3]], 2).numpy().tolist()
    [[0.0, 1.0, 1.0]]
    """
    scores = ops.convert_to_tensor(scores)
    if backend.backend() == "torch":  # whose top_k takes any among equals
        indices = ops.argsort(-scores, axis=-1)[..., :fan_in]
    else:
        _, indices = ops.top_k(scores, fan_in)
    return ops.sum(ops.one_hot(indices, scores.shape[-1], dtype=scores.dtype), axis=-2)


class _Counter(random.SeedGenerator):
    """A seed generator without a state of its own: its seed is (seed, step), and drawing does not advance it."""

    def __init__(self, seed: int, step: Tensor) -> None:
        if backend.backend() == "torch":  # whose generator takes the sum of both: seeds far apart, not a step apart
            seed, kind = seed * SPREAD % 2**32, "int64"
        else:
            kind = "int32"
        self.pair = ops.stack([ops.convert_to_tensor(seed, kind), ops.cast(step, kind)])

    def next(self, ordered: bool = True) -> Tensor:
        return ops.cast(self.pair, "uint32") if backend.backend() == "jax" else self.pair


def draw(real_gates: Tensor, fan_in: int, *, seed: int, step: Tensor) -> Tensor:
    r"""Draws K different inputs for every block: g_j ~ K of Mult(real_gates_j) without replacement.

    Adding independent Gumbel noise to log g and taking the K largest is the same distribution as K multinomial draws
    in turn, each over what is left: P(a_1, ..., a_K) = \prod_i g_{a_i} / (1 - \sum_{l<i} g_{a_l}).

    Args:
        real_gates: (J, C), rows that sum to 1.
        fan_in: K.
        seed: under 2 ** 31.
        step: whole scalar; the draw is a function of (seed, step) and of nothing else, but that each backend has its
            own, and TensorFlow another one where XLA compiles it, as Keras' `fit` does on a GPU.

    Returns:
        Binary gates of the same shape, K ones in every row.

    Reference:
        Algorithm 1, step 1, of the paper; for the equivalence, Kool et al., "Stochastic Beams and Where to Find Them",
        section 2.3.
    """
    real_gates = ops.convert_to_tensor(real_gates)
    uniform = random.uniform(
        real_gates.shape, minval=_TINY, maxval=1.0, dtype=real_gates.dtype, seed=_Counter(seed, step)
    )
    return top_k(ops.log(real_gates + ZERO) - ops.log(-ops.log(uniform)), fan_in)


@custom_gradient
def _straight_through(real_gates: Tensor, binary_gates: Tensor) -> tuple[Tensor, Any]:
    def grad(gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, ops.zeros_like(gradient)

    return ops.copy(binary_gates), grad


def straight_through(real_gates: Tensor, binary_gates: Tensor) -> Tensor:
    """Returns the binary gates; the gradient with respect to them goes unchanged to the real gates.

    Args:
        real_gates: (J, C), what is learned.
        binary_gates: (J, C), what is used.

    Reference:
        Algorithm 1, step 3.
    """
    return _straight_through(ops.convert_to_tensor(real_gates), ops.stop_gradient(ops.convert_to_tensor(binary_gates)))


@custom_gradient
def _inputs_and_narrowed(gates: Tensor, y: Tensor, kernel: Tensor) -> tuple[Any, Any]:
    def inputs(gates: Tensor) -> Tensor:
        gates = ops.cast(gates, y.dtype)
        return ops.relu(ops.reshape(ops.matmul(gates, ops.reshape(y, (y.shape[0], -1))), (gates.shape[0], *rows)))

    rows = ops.shape(y)[1:]

    def grad(of_x: Tensor, of_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # That the product waits for the gradient keeps compilers from taking the forward pass's, which would stay.
        x = inputs(gates + 0 * ops.cast(of_h[:1, :1, :1], gates.dtype)[0])
        of_kernel = over_rows(of_h, x)
        of_x = ops.where(x > 0, of_x + ops.matmul(of_h, ops.transpose(kernel, (0, 2, 1))), ops.zeros((), x.dtype))
        of_gates, of_y = _product_gradient(gates, ops.reshape(y, (y.shape[0], -1)), ops.reshape(of_x, (x.shape[0], -1)))
        return of_gates, ops.reshape(of_y, ops.shape(y)), ops.transpose(of_kernel, (0, 2, 1))

    x = inputs(gates)
    return (x, ops.matmul(x, kernel)), grad


def inputs_and_narrowed(gates: Tensor, y: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """What the blocks read and its 1x1 convolution, keeping only y for the backward pass, not also what they read.

    Args:
        gates: (J, C), the weights of the sum.
        y: (C, rows, channels).
        kernel: (J, channels, filters).

    Returns:
        x = ReLU(gates y), (J, rows, channels), and x @ kernel, (J, rows, filters).
    """
    gates = ops.convert_to_tensor(gates)
    if backend.backend() == "torch":  # where Keras' custom gradients are of one output; it keeps what they read
        x = ops.relu(aggregate(gates, y))
        return x, ops.matmul(x, kernel)
    pair = _inputs_and_narrowed(gates, y, kernel)
    return pair[0], pair[1]


def aggregate(gates: Tensor, y: Tensor, learned: bool = True) -> Tensor:
    """Weighted sums of branches, x_j = sum_k g_jk y_k (Eq. 2), as one matrix product.

    Differentiated, it gives dL/dg_jk = <dL/dx_j, y_k> for every k, also those with a gate of zero.

    Args:
        gates: (J, C).
        y: (C, batch, height, width, channels).
        learned: whether the gradient of the gates is wanted.

    Returns:
        (J, batch, height, width, channels).
    """
    shape = ops.shape(y)
    gates, flat = ops.convert_to_tensor(gates), ops.reshape(y, (shape[0], -1))
    flat = _product(gates, flat) if learned else ops.matmul(ops.cast(gates, y.dtype), flat)
    return ops.reshape(flat, (gates.shape[0], *shape[1:]))


@custom_gradient
def _product(gates: Tensor, y: Tensor) -> tuple[Tensor, Any]:
    """gates @ y for y (C, many), whose gate gradient is in the dtype of the gates."""

    def grad(gradient: Tensor) -> tuple[Tensor, Tensor]:
        return _product_gradient(gates, y, gradient)

    return ops.matmul(ops.cast(gates, y.dtype), y), grad


def _product_gradient(gates: Tensor, y: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """That of the gates in their own dtype, and that of y in its."""
    of_gates = ops.cast(of_rows(gradient, y), gates.dtype)
    return of_gates, ops.matmul(ops.transpose(ops.cast(gates, y.dtype)), gradient)


def entropy(real_gates: Tensor) -> Tensor:
    """Mean entropy of the rows in nats: log C where the gates are uniform, 0 where they are decided."""
    real_gates = ops.convert_to_tensor(real_gates)
    return ops.mean(-ops.sum(real_gates * ops.log(real_gates + ZERO), axis=-1))
