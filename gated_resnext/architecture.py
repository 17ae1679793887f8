"""The shape of a GateConnect network: its stage plan and its size in closed form.

Plain Python: nothing here needs Keras or TensorFlow.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from gated_resnext.errors import check_choice, whole_number

AGGREGATIONS = ("mean", "sum", "weighted", "shared")
GATES = ("binary", "real")
MOST = 100_000  # beyond it a number is a mistake
IMAGENET_STAGES = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Stem(NamedTuple):
    """The first convolution, padded by half its kernel, and whether a 3x3 max pool of stride 2 follows."""

    kernel: int
    stride: int
    pools: bool


STEMS = {"conv3": Stem(3, 1, False), "conv3_pool": Stem(3, 1, True), "conv7_pool": Stem(7, 2, True)}


class ModulePlan(NamedTuple):
    """One module: the channels, the stride and the feature map sizes of its blocks."""

    name: str
    in_channels: int
    width: int
    filters: int
    stride: int
    in_size: tuple[int, int]
    out_size: tuple[int, int]

    @property
    def projects(self) -> bool:
        """Whether the shortcut needs a 1x1 convolution (docs/deviations.md, row 5)."""
        return self.stride != 1 or self.in_channels != self.filters

    @property
    def shared_parameters(self) -> int:
        """Parameters of the shortcut's convolution and batch norm, one per module."""
        return (self.in_channels + 2) * self.filters if self.projects else 0

    @property
    def block_parameters(self) -> int:
        """Parameters of one block: three convolutions without bias, each with its batch norm."""
        w = self.width
        return self.in_channels * w + 9 * w * w + w * self.filters + 2 * (w + w + self.filters)

    @property
    def block_multiply_adds(self) -> int:
        """Multiply-adds an image of the three convolutions of one block."""
        before, after = self.in_size[0] * self.in_size[1], self.out_size[0] * self.out_size[1]
        return before * self.in_channels * self.width + after * self.width * (9 * self.width + self.filters)

    @property
    def projection_multiply_adds(self) -> int:
        """Multiply-adds an image of projecting one input with the shortcut's convolution."""
        return self.out_size[0] * self.out_size[1] * self.in_channels * self.filters if self.projects else 0


def _plain(value: Any) -> Any:
    """A whole number of any library as Python's own; anything else as it is."""
    try:
        return value if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return value


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A stack of M = (depth - 2) / 3 modules of `cardinality` residual blocks side by side.

    Args:
        depth: learnable layers D = 2 + 3M.
        width: bottleneck width w of a block in the first stage; it doubles with every stage.
        cardinality: blocks in a module, C.
        fan_in: blocks of the module before that feed a block, K, with 1 <= K <= C.
        classes: outputs of the classifier.
        input_shape: (height, width, channels) of the image, in pixels.
        aggregation: what a block reads. "mean": ReLU of the mean of its K inputs; "sum": Eq. 2 to the letter;
            "weighted": their sum with learned weights (docs/beyond_weighted.md); "shared": Eq. 1, all blocks read one
            sum, which is ResNeXt (docs/deviations.md, rows 1 and 14).
        gates: "binary" draws K gates at each step; "real" is the paper's ablation with real-valued gates.
        stem: "conv3", a 3x3 convolution; "conv3_pool", the same and a 3x3 max pool of stride 2;
            "conv7_pool", a 7x7 convolution of stride 2 and that pool.
        stem_filters: output channels of the stem.
        filters: output channels of a block in the first stage; they double with every stage.
        stages: modules in each stage, or None for three equal ones (the ImageNet depths 50 and 101 have four).

    Raises:
        ValueError: if the numbers do not fit together.

    Example:

    >>> Architecture(depth=20, width=4, cardinality=8, fan_in=4, classes=100).parameters()
    283572

    Reference:
        Section 2.1 and Tables 5 and 6 of "Connectivity Learning in Multi-Branch Networks".
    """

    depth: int
    width: int
    cardinality: int
    fan_in: int
    classes: int = 10
    input_shape: tuple[int, int, int] = (32, 32, 3)
    aggregation: Literal["mean", "sum", "weighted", "shared"] = "mean"
    gates: Literal["binary", "real"] = "binary"
    stem: Literal["conv3", "conv3_pool", "conv7_pool"] = "conv3"
    stem_filters: int = 16
    filters: int = 64
    stages: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for field in ("depth", "width", "cardinality", "fan_in", "classes", "stem_filters", "filters"):
            value = whole_number(field, getattr(self, field))
            object.__setattr__(self, field, value)
            if value > MOST:
                raise ValueError(f"{field} must be at most {MOST:,}. Received: {field}={value:.3g}")
        if self.depth < 5 or (self.depth - 2) % 3:
            raise ValueError(
                f"depth must be 2 + 3M for M modules (5, 8, 11, ..., 20, 29, 50, 101). Received: depth={self.depth}"
            )
        if self.fan_in > self.cardinality:
            raise ValueError(
                f"fan_in (K) must be at most cardinality (C): a block cannot read more blocks than there are. "
                f"Received: fan_in={self.fan_in}, cardinality={self.cardinality}"
            )
        for field, choices in (("aggregation", AGGREGATIONS), ("gates", GATES), ("stem", STEMS)):
            check_choice(field, getattr(self, field), tuple(choices))
        if self.aggregation == "shared" and self.fan_in != self.cardinality:
            raise ValueError(
                f"aggregation='shared' feeds every block all {self.cardinality} blocks before, so fan_in must be "
                f"{self.cardinality}. Received: fan_in={self.fan_in}"
            )
        if self.aggregation == "weighted" and self.gates == "real":
            raise ValueError(
                "aggregation='weighted' goes with gates='binary': real-valued gates are weights of the sum already. "
                "Received: gates='real'"
            )
        shape = tuple(map(_plain, self.input_shape)) if isinstance(self.input_shape, Iterable) else ()
        if len(shape) != 3 or not all(type(n) is int and 0 < n <= MOST for n in shape):
            raise ValueError(f"input_shape must be (height, width, channels). Received: {self.input_shape!r}")
        object.__setattr__(self, "input_shape", shape)
        if self.stages is None:
            if self.modules % 3:
                raise ValueError(
                    f"depth={self.depth} gives {self.modules} modules, which three stages cannot share equally: "
                    f"use a depth of 2 + 9n or pass stages=(...), the modules in each stage."
                )
            object.__setattr__(self, "stages", (self.modules // 3,) * 3)
        stages = tuple(map(_plain, self.stages)) if isinstance(self.stages, Iterable) else ()
        whole = all(type(count) is int for count in stages)
        if not stages or not whole or min(stages) < 1 or sum(stages) != self.modules:
            raise ValueError(
                f"stages must sum to the {self.modules} modules of depth {self.depth}. Received: {self.stages!r}"
            )
        object.__setattr__(self, "stages", stages)

    @property
    def modules(self) -> int:
        """M, the number of modules."""
        return (self.depth - 2) // 3

    @property
    def learnable(self) -> bool:
        """Whether there are gates to learn: not in ResNeXt, whose blocks share one input."""
        return self.aggregation != "shared" and self.modules > 1

    @property
    def has_binary_gates(self) -> bool:
        """Whether there is a wiring to be learned, and fixed: gates to learn, and they are binary."""
        return self.learnable and self.gates == "binary"

    @property
    def stem_conv_size(self) -> tuple[int, int]:
        """Height and width of what the first convolution writes."""
        size = self.input_shape[:2]
        return _halved(size) if STEMS[self.stem].stride == 2 else size

    @property
    def stem_size(self) -> tuple[int, int]:
        """Height and width of the feature maps that the first module reads."""
        return _halved(self.stem_conv_size) if STEMS[self.stem].pools else self.stem_conv_size

    @property
    def stem_kernel(self) -> int:
        """Weights of the first convolution."""
        return STEMS[self.stem].kernel ** 2 * self.input_shape[2] * self.stem_filters

    def plan(self) -> tuple[ModulePlan, ...]:
        """The M modules, from the stem to the head."""
        plans: list[ModulePlan] = []
        channels, size = self.stem_filters, self.stem_size
        for stage, count in enumerate(self.stages or ()):
            for module in range(count):
                stride = 2 if stage > 0 and module == 0 else 1
                out_size = _halved(size) if stride == 2 else size
                filters = self.filters << stage
                name = f"stage{stage + 1}_module{module + 1}"
                plans.append(ModulePlan(name, channels, self.width << stage, filters, stride, size, out_size))
                channels, size = filters, out_size
        return tuple(plans)

    def parameters(self, blocks: Sequence[int] | None = None) -> int:
        """Trainable weights, gates not counted; of a weighted sum, one for each pair of a block and a block before.

        Args:
            blocks: blocks in each module, as `Connectivity.blocks` gives them; None for C in every one.
        """
        plans = self.plan()
        total = self.stem_kernel + 2 * self.stem_filters + (plans[-1].filters + 1) * self.classes
        counts = self._blocks(blocks)
        for plan, count in zip(plans, counts, strict=True):
            total += count * plan.block_parameters + plan.shared_parameters
        if self.aggregation == "weighted":
            total += sum(before * count for before, count in itertools.pairwise(counts))
        return total

    def images_at_once(self, most: int) -> int:
        """As many images, `most` at most, as keep what a module's blocks write under 1 GiB in float32."""
        wide = self.cardinality * max(plan.filters * math.prod(plan.out_size) for plan in self.plan())
        return max(1, min(most, (1 << 30) // (4 * wide)))

    def multiply_adds(self, blocks: Sequence[int] | None = None) -> int:
        """Multiply-adds an image of the convolutions and the classifier, as the layers compute them.

        The additions of the aggregation, batch norm and pooling are not counted.

        Args:
            blocks: blocks in each module; None for C in every one.
        """
        plans = self.plan()
        total = math.prod(self.stem_conv_size) * self.stem_kernel + plans[-1].filters * self.classes
        for module, (plan, count) in enumerate(zip(plans, self._blocks(blocks), strict=True)):
            inputs = 1 if module == 0 or self.aggregation == "shared" else count
            total += count * plan.block_multiply_adds + inputs * plan.projection_multiply_adds
        return total

    def _blocks(self, blocks: Sequence[int] | None) -> Sequence[int]:
        return (self.cardinality,) * self.modules if blocks is None else blocks

    def replace(self, **changes: Any) -> Architecture:
        """A copy with some fields changed; `stages` is derived anew where only the depth changes."""
        if "depth" in changes and "stages" not in changes:
            changes["stages"] = IMAGENET_STAGES.get(changes["depth"]) if len(self.stages or ()) == 4 else None
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        fields = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Architecture:
        """The inverse of `to_dict`.

        Raises:
            ValueError: if a field is unknown or missing.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) - known:
            raise ValueError(f"an architecture has the fields {sorted(known)}. Received: {fields!r}")
        try:
            values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"an architecture is incomplete: {error}") from error

    def __str__(self) -> str:
        return f"{{{self.depth},{self.width},{self.cardinality}}}"


def _halved(size: tuple[int, int]) -> tuple[int, int]:
    """Feature map size after a stride of 2 with a padding of half the kernel."""
    return ((size[0] + 1) // 2, (size[1] + 1) // 2)
