"""Keras layers of a GateConnect network, on any backend.

Activations between modules are branch-first, (C, batch, height, width, channels): the gated sum is then one matrix
product, and the 1x1 convolutions of all blocks are one batched product.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from gated_resnext import gates
from gated_resnext.aggregation import hand_down_trainable
from gated_resnext.errors import check_choice
from gated_resnext.initializers import he_normal
from gated_resnext.norm import BranchNorm, moments_after
from gated_resnext.products import accelerated, pointwise
from gated_resnext.seeds import a_seed, seeds_from

Tensor = Any
LAST = "channels_last"  # whatever Keras is set to: the layout of everything here
MOST_AS_ONE = 16  # channels of a block up to which those of all blocks are convolved as one, on an accelerator


@keras.saving.register_keras_serializable("gated_resnext")
class Standardize(keras.layers.Layer):
    """Raw uint8 pixels to floats: subtracts the training images' per-pixel mean and divides by 255.

    Call arguments:
        images: (batch, height, width, channels), 0 to 255, any dtype.

    Returns:
        Tensor of the same shape in the compute dtype.

    Reference:
        Appendix E.1 of the paper.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)

    def build(self, shape: Any) -> None:
        self.mean_image = self.add_weight(
            name="mean_image", shape=shape[1:], initializer="zeros", trainable=False, autocast=False
        )

    def call(self, images: Tensor) -> Tensor:
        centered = (ops.cast(images, "float32") - self.mean_image) * (1.0 / 255.0)
        return ops.cast(centered, self.compute_dtype)

    def compute_output_spec(self, images: Any) -> keras.KerasTensor:
        return keras.KerasTensor(images.shape, dtype=self.compute_dtype)


@keras.saving.register_keras_serializable("gated_resnext")
class ReplicaMeanNormalization(keras.layers.BatchNormalization):
    """Keras' batch norm, whose running statistics under tf.distribute are the mean over replicas, not the first's."""

    def add_weight(self, *args: Any, **kwargs: Any) -> keras.Variable:
        return super().add_weight(*args, **{**kwargs, "aggregation": "mean"})


class BranchPointwise(keras.layers.Layer):
    """A 1x1 convolution without bias and its batch norm, in each of J branches.

    Args:
        branches: J.
        filters: output channels.
        merge: "none" keeps the branches apart; "sum" adds their outputs in one product.
        synchronized: whether the statistics are those of all replicas.
        rate_factor: of the batch norm's gamma and beta.
        seed: of the initial kernel.

    Call arguments:
        x: (J, rows, in_channels), or (rows, in_channels) where all branches read the same.
        counted: the rows of x that make the statistics, (J, some, in_channels); None for all.
        narrowing: of a gated sum, what makes of x, which the C blocks before wrote, and of the kernel what the blocks
            read, returned before the result, and its product. A function, as Keras would round float32 gates to the
            layer's precision.
        shift_apart: where the product is wider than x, returns it without the shift of its batch norm, and that shift,
            (J, filters), which costs nothing as `more_shift` of another.
        more_shift: added to all rows of the result, (1, filters).

    Returns:
        (J, rows, filters), or (rows, filters) after a sum.
    """

    def __init__(
        self,
        branches: int,
        filters: int,
        merge: str = "none",
        synchronized: bool = False,
        rate_factor: float = 1.0,
        *,
        seed: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.branches, self.filters, self.merge, self.seed = branches, filters, merge, seed
        self.synchronized = synchronized
        # A sum of C unit variances would grow C times a module: it starts as their mean (docs/deviations.md, row 14).
        gamma = 1.0 / branches if merge == "sum" else 1.0
        self.norm = BranchNorm(gamma, rate_factor, name="norm", dtype=self.dtype_policy)

    def build(self, shape: Any) -> None:
        self.in_channels = int(shape[-1])
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.branches, self.in_channels, self.filters),
            initializer=he_normal(self.filters, self.seed),
        )
        self.norm.build((self.branches, self.filters))

    def call(
        self,
        x: Tensor,
        training: bool | None = None,
        counted: Tensor | None = None,
        narrowing: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        shift_apart: bool = False,
        more_shift: Tensor | None = None,
    ) -> Any:
        kernel = ops.copy(self.kernel)  # a tensor: TensorFlow's custom gradients take no variables
        if len(x.shape) == 2:  # (rows, in) @ (in, J * filters) -> (J, rows, filters)
            flat = ops.reshape(ops.transpose(kernel, (1, 0, 2)), (self.in_channels, -1))
            wide = ops.reshape(_product(x, flat), (-1, self.branches, self.filters))
            return self._normalized(ops.transpose(wide, (1, 0, 2)), training)
        if narrowing is not None:
            x, h = narrowing(x, kernel)
            return x, self._normalized(h, training)
        if self.in_channels >= self.filters:
            return self._normalized(
                pointwise(x, kernel), training, None if counted is None else pointwise(counted, kernel)
            )
        scale, shift = self.norm.affine(
            lambda: moments_after(x if counted is None else counted, kernel, self.synchronized), training
        )
        kernel = kernel * ops.cast(scale, kernel.dtype)[:, None]
        if shift_apart:
            return _product(x, kernel), shift
        if more_shift is not None:
            once = more_shift if self.merge == "none" else ops.pad(more_shift, ((0, self.branches - 1), (0, 0)))
            shift = shift + ops.cast(once, shift.dtype)  # Keras casts what a layer is called with
        # The shift enters as the weights of a column of ones: a narrow copy instead of a pass over the wide result.
        kernel = ops.concatenate([kernel, ops.cast(shift, kernel.dtype)[:, None]], 1)
        x = ops.pad(x, ((0, 0), (0, 0), (0, 1)), constant_values=1)
        if self.merge == "sum":
            columns = self.branches * (self.in_channels + 1)
            x = ops.reshape(ops.transpose(x, (1, 0, 2)), (-1, columns))
            return _product(x, ops.reshape(kernel, (columns, self.filters)))
        return _product(x, kernel)

    def _normalized(self, y: Tensor, training: bool | None, counted: Tensor | None = None) -> Tensor:
        y = self.norm.normalized(y, training, self.synchronized, counted)
        return ops.sum(y, axis=0) if self.merge == "sum" else y


def _product(x: Tensor, kernel: Tensor) -> Tensor:
    """x @ kernel, of several branches or of one."""
    if not accelerated():
        return ops.matmul(x, kernel)
    return pointwise(x, kernel) if len(x.shape) == 3 else pointwise(x[None], kernel[None])[0]


class BranchConv3x3(keras.layers.Layer):
    """A 3x3 convolution without bias, padded by 1 on every side, and its batch norm, in each of J branches.

    Args:
        branches: J.
        filters: output channels.
        stride: 1 or 2.
        synchronized: whether the statistics are those of all replicas.
        seed: of the initial kernel.

    Call arguments:
        x: (J, batch, height, width, channels).

    Returns:
        (J, batch, height / stride, width / stride, filters).
    """

    def __init__(
        self, branches: int, filters: int, stride: int, synchronized: bool = False, *, seed: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.branches, self.filters, self.stride, self.seed = branches, filters, stride, seed
        self.synchronized = synchronized
        self.norm = BranchNorm(name="norm", dtype=self.dtype_policy)

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.branches, 3, 3, shape[-1], self.filters),
            initializer=he_normal(9 * self.filters, self.seed),
        )
        self.norm.build((self.branches, self.filters))

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        padding = "same"
        if self.stride != 1:  # "same" pads only right and bottom here (docs/deviations.md, row 7b)
            x, padding = ops.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0))), "valid"
        way = convolved_as_one if accelerated() and self.filters <= MOST_AS_ONE else convolved_apart
        y = way(x, ops.convert_to_tensor(self.kernel), self.stride, padding)
        rows = ops.reshape(y, (self.branches, -1, self.filters))
        return ops.reshape(self.norm.normalized(rows, training, self.synchronized), ops.shape(y))


def convolved_apart(x: Tensor, kernel: Tensor, stride: int, padding: str) -> Tensor:
    """J plain convolutions: on 2 CPU cores faster in training than one grouped one, which needs the channels last."""
    pairs = zip(ops.unstack(x, x.shape[0]), ops.unstack(kernel, x.shape[0]), strict=True)
    return ops.stack([ops.conv(branch, one, stride, padding, data_format=LAST) for branch, one in pairs])


def convolved_as_one(x: Tensor, kernel: Tensor, stride: int, padding: str) -> Tensor:
    """The same as one dense convolution with zeros between the blocks: accelerators have arithmetic to spare."""
    blocks, channels, filters = x.shape[0], x.shape[-1], kernel.shape[-1]
    beside = ops.reshape(ops.transpose(x, (1, 2, 3, 0, 4)), (*ops.shape(x)[1:4], blocks * channels))
    between = ops.einsum("jhwio,jk->hwjiko", kernel, ops.eye(blocks, dtype=kernel.dtype))
    between = ops.reshape(between, (*kernel.shape[1:3], blocks * channels, blocks * filters))
    of_eight = [(0, -size % 8) for size in (blocks * channels, blocks * filters)]  # what their units of matrices take
    beside, between = ops.pad(beside, (*3 * ((0, 0),), of_eight[0])), ops.pad(between, (*2 * ((0, 0),), *of_eight))
    y = ops.conv(beside, between, stride, padding, data_format=LAST)[..., : blocks * filters]
    return ops.transpose(ops.reshape(y, (*ops.shape(y)[:3], blocks, filters)), (3, 0, 1, 2, 4))


def _every_second(x: Tensor) -> Tensor:
    """x[:, ::2, ::2] by reshaping: on a CPU ten times faster than a strided slice, its gradient, a pad, five times."""
    height, width, channels = x.shape[1:]
    if height % 2 or width % 2:
        x = ops.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    rows, columns = (height + 1) // 2, (width + 1) // 2
    x = ops.reshape(x, (-1, 2, columns, 2 * channels))
    x = ops.slice(x, (0, 0, 0, 0), (ops.shape(x)[0], 1, columns, channels))
    return ops.reshape(x, (-1, rows, columns, channels))


@keras.saving.register_keras_serializable("gated_resnext")
class MultiBranchModule(keras.layers.Layer):
    r"""J residual blocks side by side: y_j = x_j + F(x_j; theta_j), F a bottleneck of 1x1, 3x3 and 1x1 convolutions.

    Batch norm follows each convolution, a ReLU the first two. Where channels or size change, the shortcut is a 1x1
    convolution with batch norm that all blocks of the module share.

    Args:
        blocks: J.
        width: channels of the bottleneck.
        filters: output channels.
        stride: of the 3x3 convolution and the shortcut, 1 or 2.
        merge: "none" keeps the blocks apart; "sum" returns y = x + \sum_j F(x; theta_j) for one shared x (Eq. 1).
        counted: the blocks whose inputs make the statistics of the shared shortcut; None for all.
        synchronized: whether batch norm counts the images of all replicas of tf.distribute.
        averaged: of how many blocks those that read these take the mean. The mean makes a block's residual n times
            weaker, and its last gamma and beta learn n^2 times as fast, so that they move as those of a sum.
        seed: of the initial weights; None for a random one.

    Call arguments:
        x: (J, batch, height, width, channels), or (batch, height, width, channels) where all blocks read the same; or
            what a `GatedAggregation` with `remat` returns.
        training: whether batch norm uses the batch's statistics.

    Returns:
        (J, batch, height / stride, width / stride, filters), without the J after a sum.

    Example:

    >>> MultiBranchModule(blocks=4, width=2, filters=16)(ops.ones((1, 8, 8, 3))).shape
    TensorShape([4, 1, 8, 8, 16])

    Reference:
        Section 2.1 and Figure 1 of the paper; docs/deviations.md, rows 2, 3, 5, 6, 7, 7b and 14.
    """

    def __init__(
        self,
        blocks: int,
        width: int,
        filters: int,
        stride: int = 1,
        merge: str = "none",
        counted: Sequence[int] | None = None,
        synchronized: bool = False,
        averaged: int = 1,
        *,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)  # which would round the gates beside y
        check_choice("merge", merge, ("none", "sum"))
        if stride not in (1, 2):
            raise ValueError(f"stride must be 1 or 2. Received: stride={stride}")
        self.blocks, self.width, self.filters, self.stride, self.merge = blocks, width, filters, stride, merge
        self.counted = None if counted is None else tuple(map(int, counted))
        self.synchronized, self.averaged = synchronized, averaged
        self.seed = a_seed(seed)
        seeds, options = seeds_from(self.seed, 4), {"synchronized": synchronized, "dtype": self.dtype_policy}
        self.reduce = BranchPointwise(blocks, width, seed=seeds[0], name="reduce", **options)
        self.conv = BranchConv3x3(blocks, width, stride, seed=seeds[1], name="conv", **options)
        self.expand = BranchPointwise(
            blocks, filters, merge, rate_factor=averaged**2, seed=seeds[2], name="expand", **options
        )
        self.project = BranchPointwise(1, filters, seed=seeds[3], name="project", **options)

    def build(self, shape: Any) -> None:
        hand_down_trainable(self)
        shape = _of_y(shape)
        if None in tuple(shape[-3:]):
            raise ValueError(f"height, width and channels must be known. Received: shape={tuple(shape)}")
        self.reduce.build(shape)
        self.conv.build((None, self.width))
        self.expand.build((None, self.width))
        self.projects = self.stride != 1 or shape[-1] != self.filters
        if self.projects:
            self.project.build(shape)

    def call(self, x: Any, training: bool | None = None) -> Tensor:
        x, weights = x if isinstance(x, (tuple, list)) else (x, None)
        x = ops.cast(x, self.compute_dtype)
        shape = ops.shape(x)
        shared, (batch, height, width, channels) = len(shape) == 4, shape[-4:]
        lead = () if shared else (self.blocks,)

        flat = ops.reshape(x, (*shape[:-4], -1, channels))  # of a gated sum that is still to be made, C branches
        if weights is None:
            h = self.reduce(flat, training=training)
        else:
            narrowing = functools.partial(gates.inputs_and_narrowed, weights)
            x, h = self.reduce(flat, training=training, narrowing=narrowing)
        h = ops.relu(ops.reshape(h, (self.blocks, batch, height, width, self.width)))
        h = ops.relu(self.conv(h, training=training))
        out = (batch, *h.shape[2:4], self.filters)
        more_shift = None
        if self.stride != 1:
            x = _every_second(ops.reshape(x, (-1, height, width, channels)))
        if self.projects:
            counted = None
            if training and self.counted is not None and not shared:
                branches = ops.reshape(x, (self.blocks, -1, channels))
                counted = ops.reshape(ops.take(branches, self.counted, axis=0), (1, -1, channels))
            widens = channels < self.filters and self.width < self.filters
            x = self.project(ops.reshape(x, (1, -1, channels)), training=training, counted=counted, shift_apart=widens)
            x, more_shift = x if widens else (x, None)
        f = self.expand(ops.reshape(h, (self.blocks, -1, self.width)), training=training, more_shift=more_shift)
        f = ops.reshape(f, out if self.merge == "sum" else (self.blocks, *out))
        return ops.reshape(x, (*lead, *out)) + f

    def compute_output_spec(self, x: Any, training: bool | None = None) -> keras.KerasTensor:
        batch, height, width = (x[0] if isinstance(x, (tuple, list)) else x).shape[-4:-1]
        size = ((height - 1) // self.stride + 1, (width - 1) // self.stride + 1)
        lead = () if self.merge == "sum" else (self.blocks,)
        return keras.KerasTensor((*lead, batch, *size, self.filters), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        fields = ("blocks", "width", "filters", "stride", "merge", "counted", "synchronized", "averaged", "seed")
        return {**super().get_config(), **{field: getattr(self, field) for field in fields}}


def _of_y(shape: Any) -> Any:
    """The shape of y, also where that of the gates stands beside it."""
    return shape[0] if isinstance(shape[0], (tuple, list)) else shape
