"""A dense block that learns its skip connections: every layer has a gate over the feature maps before it.

    block = GatedDenseBlock(layers=6, growth=12, fan_in=3)

On any Keras backend. `gated_resnext.freeze` and `gated_resnext.prune` take models that have such blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from gated_resnext import dense_wiring
from gated_resnext.aggregation import LearnsGates, hand_down_trainable
from gated_resnext.dense_wiring import DenseWiring
from gated_resnext.errors import whole_number
from gated_resnext.initializers import he_normal
from gated_resnext.layers import LAST, ReplicaMeanNormalization
from gated_resnext.norm import EPSILON, MOMENTUM
from gated_resnext.seeds import a_seed, seeds_from

Tensor = Any


class GatedPointwise(LearnsGates):
    r"""Batch norm, ReLU and a 1x1 convolution without bias of feature maps side by side, of which a gate picks K.

    h = \sum_k g_k W_k z_k, z_k being map k after its batch norm and ReLU and W_k its rows of the kernel. In training K
    maps are drawn, a function of (seed, number of the call); otherwise, and while it is not `trainable`, they are the
    top K. The gradient of a gate, dL/dg_k = <dL/dh, W_k z_k> for all k, also those not drawn, goes straight through to
    the real gate.

    Args:
        filters: output channels.
        fan_in: K; where there are no more maps, all are read and there is no gate.
        sources: the maps that are read, fixed; the layer then has no weights for the others. None to learn them.
        seed: of the initial kernel and the draws.

    Call arguments:
        maps: tensors (batch, height, width, channels_k).
        training: whether to draw, and to use the batch's statistics.

    Returns:
        (batch, height, width, filters).
    """

    def __init__(
        self, filters: int, fan_in: int, sources: Sequence[int] | None = None, *, seed: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.filters, self.fan_in, self.seed = filters, fan_in, seed
        self.sources = None if sources is None else tuple(sources)
        self.norm = ReplicaMeanNormalization(momentum=MOMENTUM, epsilon=EPSILON, name="norm", dtype=self.dtype_policy)

    def build(self, shapes: Any) -> None:
        read = range(len(shapes)) if self.sources is None else self.sources
        self.channels = [int(shapes[source][-1]) for source in read]
        rows = sum(self.channels)
        self.norm.build((*shapes[0][:-1], rows))
        self.kernel = self.add_weight(
            name="kernel",
            shape=(1, 1, rows, self.filters),
            initializer=he_normal(self.filters, self.seed),
        )
        self.learns = self.sources is None and self.fan_in < len(shapes)
        if not self.learns:
            return
        self.add_gates((len(shapes),))
        # Row k has ones where the kernel has the rows of map k.
        self.spread = np.repeat(np.eye(len(shapes), dtype=np.float32), self.channels, axis=1)

    def call(self, maps: Sequence[Tensor], training: bool | None = None) -> Tensor:
        read = maps if self.sources is None else [maps[source] for source in self.sources]
        x = read[0] if len(read) == 1 else ops.concatenate(read, axis=-1)
        x = ops.relu(self.norm(x, training=training))
        kernel = ops.convert_to_tensor(self.kernel)
        if self.learns:  # a gate of zero before the batch norm would not keep its map out
            factors = ops.matmul(self.binary_gates(training)[None], self.spread)
            kernel = kernel * ops.cast(ops.reshape(factors, (1, 1, -1, 1)), kernel.dtype)
        return ops.conv(x, kernel, data_format=LAST)


@keras.saving.register_keras_serializable("gated_resnext")
class GatedDenseBlock(keras.layers.Layer):
    r"""A block of DenseNet whose skip connections are learned.

    Layer l = 1, ..., L has a gate over the l feature maps before it, the block's input and what the layers before
    wrote: x_l = F_l(h_l), h_l = \sum_k g_lk W_lk ReLU(BN_l(x_k)), F_l a 3x3 convolution after batch norm and ReLU.
    With K >= L all gates are one, and this is an ordinary dense block (DenseNet-BC).

    Args:
        layers: L.
        growth: channels that a layer writes.
        fan_in: K, maps that a layer reads; a layer with no more before it reads all.
        transition: output channels of the 1x1 convolution that ends the block, with batch norm and ReLU before it and
            a gate of its own; None returns all maps side by side, so that every layer is read by what follows.
        transition_fan_in: K of its gate; None for all maps.
        bottleneck: outputs of a layer's 1x1 convolution, in units of `growth`.
        sources: fixes the wiring: for each layer, and at the end the output, the maps that it reads, 0 being the
            block's input. There are weights for these alone. None to learn it.
        seed: of the initial weights and the draws; None for a random one.

    Call arguments:
        x: (batch, height, width, channels).
        training: whether to draw, and to use the batch's statistics.

    Returns:
        (batch, height, width, transition), or (batch, height, width, channels + L * growth) without a transition.

    Raises:
        ValueError: if the numbers are not whole and positive, or the wiring is not that of such a block.

    Example:

    >>> GatedDenseBlock(layers=3, growth=4, fan_in=2)(np.ones((1, 8, 8, 6))).shape
    TensorShape([1, 8, 8, 18])

    Reference:
        Section 5 of "Connectivity Learning in Multi-Branch Networks", which proposes it; Huang et al., "Densely
        Connected Convolutional Networks". docs/beyond_weighted.md.
    """

    def __init__(
        self,
        layers: int,
        growth: int,
        fan_in: int,
        transition: int | None = None,
        transition_fan_in: int | None = None,
        bottleneck: int = 4,
        sources: Sequence[Sequence[int]] | None = None,
        *,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        fixed = None if sources is None else DenseWiring(tuple(map(tuple, sources)))
        growth, fan_in = whole_number("growth", growth), whole_number("fan_in", fan_in)
        bottleneck = whole_number("bottleneck", bottleneck)
        if transition is not None:
            transition = whole_number("transition", transition)
        if transition_fan_in is not None:
            transition_fan_in = whole_number("transition_fan_in", transition_fan_in)
            if transition is None:
                raise ValueError(
                    "transition_fan_in is of the gate of the transition: give transition=CHANNELS too. "
                    f"Received: transition_fan_in={transition_fan_in}"
                )
        if fixed is None:
            layers = whole_number("layers", layers)
        elif fixed.layers != layers:
            raise ValueError(
                f"sources must be of {layers} layers and the output. Received: {len(fixed.sources)} entries"
            )
        elif transition is None and len(fixed.sources[-1]) <= layers:
            raise ValueError(
                f"without a transition the output reads all {layers + 1} maps. Received: {list(fixed.sources[-1])}"
            )
        # Not `layers`, which Keras takes for a list of the layers inside.
        self.layer_count, self.growth, self.fan_in, self.bottleneck = layers, growth, fan_in, bottleneck
        self.transition, self.transition_fan_in = transition, transition_fan_in
        self.sources = None if fixed is None else fixed.sources
        self.seed = a_seed(seed)
        seeds = iter(seeds_from(self.seed, 2 * layers + 1))
        counts = dense_wiring.fan_ins(layers, fan_in, transition_fan_in)
        reads = self.sources or [None] * (layers + 1)

        def reader(number: int, filters: int, name: str) -> GatedPointwise:
            gate = counts[number], reads[number]
            return GatedPointwise(filters, *gate, seed=next(seeds), name=name, dtype=self.dtype_policy)

        self.readers, self.norms, self.convs = [], [], []
        for number in range(layers):
            name = f"layer{number + 1}"
            self.readers.append(reader(number, bottleneck * growth, f"{name}_narrow"))
            self.norms.append(
                ReplicaMeanNormalization(
                    momentum=MOMENTUM, epsilon=EPSILON, name=f"{name}_norm", dtype=self.dtype_policy
                )
            )
            self.convs.append(
                keras.layers.Conv2D(
                    growth,
                    3,
                    padding="same",
                    data_format=LAST,
                    use_bias=False,
                    kernel_initializer=he_normal(9 * growth, next(seeds)),
                    name=f"{name}_conv",
                    dtype=self.dtype_policy,
                )
            )
        if transition is not None:
            self.readers.append(reader(layers, transition, "transition"))

    def build(self, shape: Any) -> None:
        if len(shape) != 4 or shape[-1] is None:
            raise ValueError(f"a dense block reads (batch, height, width, channels). Received: shape={tuple(shape)}")
        hand_down_trainable(self)
        self.in_channels = int(shape[-1])
        maps = [tuple(shape)]
        for reader, norm, conv in zip(self.readers, self.norms, self.convs, strict=False):
            reader.build(maps)
            narrow = (*shape[:-1], self.bottleneck * self.growth)
            norm.build(narrow)
            conv.build(narrow)
            maps.append((*shape[:-1], self.growth))
        if self.transition is not None:
            self.readers[-1].build(maps)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        maps = [x]
        for reader, norm, conv in zip(self.readers, self.norms, self.convs, strict=False):
            h = ops.relu(norm(reader(maps, training=training), training=training))
            maps.append(conv(h))
        if self.transition is not None:
            return self.readers[-1](maps, training=training)
        return ops.concatenate(maps, axis=-1)

    def compute_output_spec(self, x: Any, training: bool | None = None) -> keras.KerasTensor:
        channels = x.shape[-1] + self.layer_count * self.growth if self.transition is None else self.transition
        return keras.KerasTensor((*x.shape[:-1], channels), dtype=self.compute_dtype)

    def compute_output_shape(self, shape: Any) -> tuple[int | None, ...]:
        return self.compute_output_spec(keras.KerasTensor(shape)).shape

    def wiring(self) -> DenseWiring:
        """The wiring the block evaluates with: the top K of the gates where they are learned."""
        if not self.built:
            raise ValueError(f"{self.name} was not built: its weights are there once it has read something")
        if self.sources is not None:
            return DenseWiring(self.sources)
        real_gates = [
            ops.convert_to_numpy(reader.real_gates) if reader.learns else np.ones(number)
            for number, reader in enumerate(self.readers, start=1)
        ]
        if self.transition is None:
            real_gates.append(np.ones(self.layer_count + 1))
        counts = dense_wiring.fan_ins(self.layer_count, self.fan_in, self.transition_fan_in)
        return dense_wiring.top_k(real_gates, counts)

    def parameters(self) -> int:
        """Trainable weights, gates not counted, in closed form; of a built block."""
        stored = DenseWiring.full(self.layer_count) if self.sources is None else DenseWiring(self.sources)
        return stored.parameters(self.in_channels, self.growth, self.bottleneck, self.transition)

    def get_config(self) -> dict[str, Any]:
        fields = ("growth", "fan_in", "transition", "transition_fan_in", "bottleneck", "sources", "seed")
        own = {field: getattr(self, field) for field in fields}
        return {**super().get_config(), "layers": self.layer_count, **own}
