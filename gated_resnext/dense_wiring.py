"""The skip connections of a dense block as a value: which feature maps its layers read.

Plain numpy: nothing here knows of Keras. Map 0 is the block's input, map l what layer l writes.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class DenseWiring:
    """Fixed skip connections of a dense block of L layers.

    Args:
        sources: for each of the layers 1 to L, the maps before it that it reads; at the end, those that what follows
            the layers reads.

    Raises:
        ValueError: if one reads nothing, a map twice or one that is not there.

    Example:

    >>> wiring = DenseWiring(((0,), (0, 1), (0, 1), (1, 3)))
    >>> wiring.active
    (1, 3)
    >>> wiring.pruned()
    DenseWiring(sources=((0,), (0, 1), (1, 2)))

    Reference:
        Huang et al., "Densely Connected Convolutional Networks", whose wiring is `DenseWiring.full`; section 5 of
        "Connectivity Learning in Multi-Branch Networks".
    """

    sources: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        try:
            sources = tuple(tuple(sorted(map(operator.index, maps))) for maps in self.sources)
        except TypeError:
            raise ValueError(
                f"the wiring of a dense block is a list of lists of whole numbers. Received: {self.sources!r}"
            ) from None
        if not sources:
            raise ValueError("the wiring of a dense block needs at least the maps that its output reads")
        for layer, maps in enumerate(sources, start=1):
            if not maps or len(set(maps)) != len(maps) or maps[0] < 0 or maps[-1] >= layer:
                reader = f"layer {layer}" if layer < len(sources) else "the output"
                raise ValueError(
                    f"{reader} must read one or more different maps out of the {layer} before. Received: {list(maps)}"
                )
        object.__setattr__(self, "sources", sources)

    @classmethod
    def full(cls, layers: int) -> DenseWiring:
        """Everything is read: an ordinary dense block."""
        return cls(tuple(tuple(range(maps)) for maps in range(1, layers + 2)))

    @classmethod
    def random(cls, layers: int, fan_in: int, transition_fan_in: int | None = None, *, seed: int) -> DenseWiring:
        """Every layer reads `fan_in` different maps drawn uniformly, or all where there are no more.

        Args:
            layers: L.
            fan_in: K.
            transition_fan_in: K of what follows the layers; None for all maps.
            seed: of the drawing.
        """
        rng = np.random.default_rng(seed)
        drawn = [
            rng.choice(maps, count, replace=False).tolist()
            for maps, count in enumerate(fan_ins(layers, fan_in, transition_fan_in), start=1)
        ]
        return cls(tuple(map(tuple, drawn)))

    @property
    def layers(self) -> int:
        """L."""
        return len(self.sources) - 1

    @property
    def active(self) -> tuple[int, ...]:
        """The layers that something reads, to the fixed point: one that only unused layers read is unused."""
        used = set(self.sources[-1])
        for layer in range(self.layers, 0, -1):
            if layer in used:
                used.update(self.sources[layer - 1])
        return tuple(sorted(used - {0}))

    def pruned(self) -> DenseWiring:
        """The wiring among the active layers alone, renumbered in order."""
        place = {layer: number for number, layer in enumerate((0, *self.active))}
        readers = [*self.active, self.layers + 1]
        return DenseWiring(tuple(tuple(place[source] for source in self.sources[reader - 1]) for reader in readers))

    def channels(self, in_channels: int, growth: int) -> tuple[int, ...]:
        """Channels that each of the layers, and at the end what follows them, reads.

        Args:
            in_channels: of the block's input.
            growth: channels that a layer writes.
        """
        return tuple(sum(growth if source else in_channels for source in maps) for maps in self.sources)

    def parameters(self, in_channels: int, growth: int, bottleneck: int = 4, transition: int | None = None) -> int:
        """Trainable weights, gates not counted, of a block that stores what is read alone.

        A layer that reads c channels has c rows in its 1x1 convolution and two numbers each in the batch norm before.

        Args:
            in_channels: of the block's input.
            growth: channels that a layer writes.
            bottleneck: outputs of a layer's 1x1 convolution, in units of `growth`.
            transition: outputs of the 1x1 convolution that follows the layers; None for none.

        Example:

        >>> DenseWiring.full(2).parameters(in_channels=3, growth=2)
        400
        """
        *read, at_the_end = self.channels(in_channels, growth)
        narrow = bottleneck * growth
        total = sum(channels * (2 + narrow) + 2 * narrow + 9 * narrow * growth for channels in read)
        return total + (0 if transition is None else at_the_end * (2 + transition))


def fan_ins(layers: int, fan_in: int, transition_fan_in: int | None = None) -> list[int]:
    """How many maps each layer reads and, at the end, what follows them (all, where that is None).

    Example:

    >>> fan_ins(4, 2, 3)
    [1, 2, 2, 2, 3]
    """
    last = layers + 1 if transition_fan_in is None else min(transition_fan_in, layers + 1)
    return [*(min(fan_in, maps) for maps in range(1, layers + 1)), last]


def top_k(real_gates: Sequence[np.ndarray], counts: Sequence[int]) -> DenseWiring:
    """The largest real gates of every reader, the lower index first among equals.

    Args:
        real_gates: for each layer, and at the end what follows, one gate a map before it.
        counts: of the maps that each is to read.
    """
    orders = (np.argsort(-np.asarray(gates, np.float64), kind="stable") for gates in real_gates)
    return DenseWiring(tuple(tuple(order[:count].tolist()) for order, count in zip(orders, counts, strict=True)))
