"""The inference graph of a network: what one would write by hand for its wiring, in stock Keras layers.

Unused blocks are gone, batch norm is folded into the convolutions and the scale of the pixels into the first, blocks
that read the same share the sum, the shortcut and one merged 1x1 convolution, and where they are narrow their
3x3 convolutions are merged too; of the last module only the sum is made. The weights of weighted sums are constants. No
layer of ours, no random op, no custom gradient is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from export.bundles import BUNDLE_CHANNELS, bundles, groups
from gated_resnext.architecture import STEMS, Architecture, ModulePlan
from gated_resnext.connectivity import Connectivity
from gated_resnext.layers import LAST
from gated_resnext.model import GatedResNeXt
from gated_resnext.norm import EPSILON
from gated_resnext.pruning import cut

Weights = dict[str, np.ndarray]


class Folded(NamedTuple):
    """A convolution with its batch norm folded in: kernel (..., in_channels, out_channels) and bias (out_channels,)."""

    kernel: np.ndarray
    bias: np.ndarray


def places(sizes: Sequence[int]) -> Any:
    """Where to split an axis: a number of equal parts, which more runtimes have fast, or else the indices."""
    return len(sizes) if len(set(sizes)) == 1 else np.cumsum(sizes)[:-1].tolist()


class Toolkit(NamedTuple):
    """Where the layers come from: Keras 3, or a library with the same layers.

    `layers` has them by name; `input(shape)` is the tensor of pixels, called "images"; `split(x, sizes)` cuts the last
    axis; `model(inputs, outputs, name=)` makes the model. `white` is what a white pixel is in the input.
    """

    layers: Any
    input: Any
    split: Any
    model: Any
    white: float = 255.0


KERAS = Toolkit(
    keras.layers,
    lambda shape: keras.Input(shape, name="images", dtype="uint8"),
    lambda x, sizes: keras.ops.split(x, places(sizes), axis=-1),
    keras.Model,
)


def compact(model: GatedResNeXt, *, bundle_channels: int = BUNDLE_CHANNELS, toolkit: Toolkit = KERAS) -> Any:
    """The same function from uint8 pixels to probabilities as a graph of stock layers.

    Args:
        model: a network, pruned or not.
        bundle_channels: blocks of a group share a dense 3x3 convolution, with zeros between them, as far as they have
            no more channels together (docs/performance.md, "Export"); 0 leaves each block its own.
        toolkit: what to build it from.

    Returns:
        A functional `keras.Model` (or the toolkit's) with float32 weights and no training behaviour.

    Raises:
        ValueError: if the gates are real-valued, which leaves no block unused and no sum to share; or there is no
            classifier.

    Example:

    >>> from gated_resnext import Architecture, GatedResNeXt
    >>> small = compact(GatedResNeXt(Architecture(depth=11, width=4, cardinality=4, fan_in=1)))
    >>> small.output_shape
    (None, 10)
    """
    if model.architecture.gates == "real":
        raise ValueError("a network with real-valued gates has no compact graph: every block reads every other")
    if not model.include_top:
        raise ValueError("the compact graph ends in probabilities. Received: a network with include_top=False")
    wiring = model.wiring()
    weights, _ = cut(model.weights_by_name(), model.architecture, wiring)  # as `prune` does
    return _Builder(model.name, model.architecture, wiring.pruned(), weights, bundle_channels, toolkit).model()


class _Builder:
    """Of a network without unused blocks."""

    def __init__(
        self,
        name: str,
        architecture: Architecture,
        wiring: Connectivity,
        weights: Weights,
        bundle_channels: int,
        toolkit: Toolkit,
    ) -> None:
        self.name, self.arch, self.wiring = name, architecture, wiring
        self.bundle_channels, self.toolkit, self.layers = bundle_channels, toolkit, toolkit.layers
        self.weights: Weights = {name: value.astype(np.float64) for name, value in weights.items()}
        self.filled: list[tuple[Any, Folded]] = []

    def model(self) -> Any:
        """Builds the layers, then fills them."""
        layers = self.layers
        images = self.toolkit.input(self.arch.input_shape)
        mean = self.weights["standardize/mean_image"] * (self.toolkit.white / 255.0)
        x = layers.Rescaling(1.0, offset=-mean, name="center")(images)
        x = self._stem(x)
        outputs = [x]
        for module, plan in enumerate(self.arch.plan()):
            outputs = self._module(module, plan, outputs)
        x = layers.GlobalAveragePooling2D(data_format=LAST, name="pool")(layers.ReLU(name="relu")(outputs[0]))
        head = Folded(self.weights["classifier/kernel"], self.weights["classifier/bias"])
        if self.arch.aggregation == "sum":  # the last module gives the mean; ReLU and pooling commute with the factor
            head = Folded(head.kernel * self.wiring.blocks[-1], head.bias)
        classifier = layers.Dense(self.arch.classes, name="classifier")
        x = layers.Activation("softmax", name="probabilities")(self._filled(classifier, x, head))
        model = self.toolkit.model(images, x, name=self.name)
        for layer, folded in self.filled:
            layer.set_weights([folded.kernel, folded.bias])
        return model

    def _filled(self, layer: Any, x: Any, folded: Folded) -> Any:
        self.filled.append((layer, folded))
        return layer(x)

    def _conv(self, x: Any, folded: Folded, name: str, *, stride: int = 1, relu: bool = False) -> Any:
        """A convolution padded by half its kernel on every side."""
        size = folded.kernel.shape[0]
        padding = "same"
        if stride != 1 and size > 1:
            x, padding = self.layers.ZeroPadding2D(size // 2, LAST, name=f"{name}_pad")(x), "valid"
        layer = self.layers.Conv2D(
            folded.kernel.shape[-1], size, stride, padding, LAST, activation="relu" if relu else None, name=name
        )
        return self._filled(layer, x, folded)

    def _stem(self, x: Any) -> Any:
        _, stride, pools = STEMS[self.arch.stem]
        stem = _fold(self.weights["stem_conv/kernel"], {key: self.weights[f"stem_norm/{key}"] for key in NORM})
        stem = Folded(stem.kernel / self.toolkit.white, stem.bias)  # the network's own pixels go to 1
        x = self._conv(x, stem, "stem", stride=stride, relu=True)
        if pools:
            x = self.layers.ZeroPadding2D(1, LAST, name="stem_pool_pad")(x)
            x = self.layers.MaxPooling2D(3, 2, data_format=LAST, name="stem_pool")(x)
        return x

    def _module(self, module: int, plan: ModulePlan, before: list[Any]) -> list[Any]:
        """What the blocks of a module write: one tensor a block, or one in all where only their sum is read."""
        grouped = groups(self.arch, self.wiring, module)
        inputs, narrow = [], []
        for number, (sources, members) in enumerate(grouped, start=1):
            name = f"{plan.name}_group{number}"
            inputs.append(self._input(module, [*sources], before, members[0], name) if module else before[0])
            narrow.append(self._narrow(inputs[-1], plan, members, name))
        # One layer, called on the input of every group: its weights are stored once.
        project = None
        if plan.projects:
            project = self.layers.Conv2D(plan.filters, 1, plan.stride, data_format=LAST, name=f"{plan.name}_project")
            self.filled.append((project, self._block(plan, "project", 0)))
        sizes = [len(members) for _, members in grouped]
        if self.arch.aggregation == "shared" or module == self.arch.modules - 1:
            x = self._weighted_mean(inputs, sizes, f"{plan.name}_mean")
            h = [part for parts in narrow for part in parts]
            order = [block for _, members in grouped for block in members]
            return [self._together(plan, x if project is None else project(x), h, order)]
        outputs: dict[int, Any] = {}
        for (_, members), x, parts in zip(grouped, inputs, narrow, strict=True):
            shortcut = x if project is None else project(x)
            each = [own for part in parts for own in self._split(part, [plan.width] * (part.shape[-1] // plan.width))]
            for block, h in zip(members, each, strict=True):
                name = f"{plan.name}_block{block + 1}"
                f = self._conv(h, self._block(plan, "expand", block), f"{name}_expand")
                outputs[block] = self.layers.Add(name=f"{name}_add")([shortcut, f])
        return [outputs[block] for block in sorted(outputs)]

    def _together(self, plan: ModulePlan, shortcut: Any, narrow: list[Any], order: Sequence[int]) -> Any:
        """The sum of the blocks, or their mean where each has a shortcut of its own: the mean's is `shortcut`."""
        h = narrow[0] if len(narrow) == 1 else self.layers.Concatenate(name=f"{plan.name}_concat")(narrow)
        expand = _stacked(self._block(plan, "expand", block) for block in order)
        if self.arch.aggregation != "shared":
            expand = Folded(expand.kernel / len(order), expand.bias / len(order))
        return self.layers.Add(name=f"{plan.name}_add")([shortcut, self._conv(h, expand, f"{plan.name}_expand")])

    def _weighted_mean(self, x: list[Any], weights: Sequence[int], name: str) -> Any:
        layers = self.layers
        if len(x) == 1:
            return x[0]
        if len(set(weights)) == 1:
            return layers.Rescaling(1.0 / len(x), name=name)(self._sum(x, f"{name}_sum"))
        shares = [
            layers.Rescaling(weight / sum(weights), name=f"{name}_share{number}")(part)
            for number, (part, weight) in enumerate(zip(x, weights, strict=True), start=1)
        ]
        return self._sum(shares, name)

    def _sum(self, x: Sequence[Any], name: str) -> Any:
        """In a tree of pairs: as many additions, each of a range that can be known for int8, and few behind another.

        Keras builds a graph by a recursion as deep as it: 64 terms behind each other are too many for Python.
        """
        parts, number = list(x), 1
        while len(parts) > 1:
            paired = []
            for pair in zip(parts[::2], parts[1::2], strict=False):
                number += 1
                paired.append(self.layers.Add(name=f"{name}{number}")([*pair]))
            parts = paired + parts[2 * len(paired) :]
        return parts[0]

    def _split(self, x: Any, sizes: Sequence[int]) -> list[Any]:
        return [x] if len(sizes) == 1 else self.toolkit.split(x, sizes)

    def _input(self, module: int, sources: list[int], before: list[Any], block: int, name: str) -> Any:
        """ReLU of the mean (or sum, or the block's weighted sum) of what a group reads; a sum of one vanishes."""
        layers, count = self.layers, len(sources)
        y = [before[source] for source in sources]
        if self.arch.aggregation == "weighted":
            weights = self.weights[f"{self.arch.plan()[module].name}_gate/branch_weights"][block, sources]
            y = [
                layers.Rescaling(float(weight), name=f"{name}_weighted{source + 1}")(branch)
                for branch, weight, source in zip(y, weights, sources, strict=True)
            ]
        x = layers.ReLU(name=f"{name}_relu")(self._sum(y, f"{name}_gather"))
        if count > 1 and self.arch.aggregation == "mean":
            x = layers.Rescaling(1.0 / count, name=f"{name}_mean")(x)
        return x

    def _narrow(self, x: Any, plan: ModulePlan, members: Sequence[int], name: str) -> list[Any]:
        """The bottlenecks of a group after their 3x3 convolutions, one tensor a bundle of its blocks."""
        merged = _side_by_side(self._block(plan, "reduce", block) for block in members)
        h = self._conv(x, merged, f"{name}_reduce", relu=True)
        bundled = bundles(members, plan.width, self.bundle_channels)
        parts = self._split(h, [len(bundle) * plan.width for bundle in bundled])
        return [
            self._conv(
                part,
                _block_diagonal([self._block(plan, "conv", block) for block in bundle]),
                f"{plan.name}_block{'_'.join(str(block + 1) for block in bundle)}_conv",
                stride=plan.stride,
                relu=True,
            )
            for bundle, part in zip(bundled, parts, strict=True)
        ]

    def _block(self, plan: ModulePlan, part: str, block: int) -> Folded:
        """A convolution of one block, as (height, width, in_channels, out_channels)."""
        name = f"{plan.name}/{part}"
        kernel = self.weights[f"{name}/kernel"][block]
        if kernel.ndim == 2:
            kernel = kernel[None, None]
        return _fold(kernel, {key: self.weights[f"{name}/norm/{key}"][block] for key in NORM})


NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def _fold(kernel: np.ndarray, norm: Weights) -> Folded:
    """Kernel and bias of a convolution followed by batch norm."""
    scale = norm["gamma"] / np.sqrt(norm["moving_variance"] + EPSILON)
    return Folded(kernel * scale, norm["beta"] - norm["moving_mean"] * scale)


def _side_by_side(convs: Iterable[Folded]) -> Folded:
    """One convolution with the outputs of all, for a shared input."""
    kernels, biases = zip(*convs, strict=True)
    return Folded(np.concatenate(kernels, axis=-1), np.concatenate(biases))


def _stacked(convs: Iterable[Folded]) -> Folded:
    """One convolution with the summed outputs of all, for their inputs side by side."""
    kernels, biases = zip(*convs, strict=True)
    return Folded(np.concatenate(kernels, axis=-2), np.sum(biases, axis=0))


def _block_diagonal(convs: Sequence[Folded]) -> Folded:
    """One convolution of inputs side by side to outputs side by side, each from its own alone."""
    width = convs[0].kernel.shape[-1]
    total = width * len(convs)
    kernel = np.zeros((*convs[0].kernel.shape[:2], total, total))
    for number, conv in enumerate(convs):
        own = slice(number * width, (number + 1) * width)
        kernel[:, :, own, own] = conv.kernel
    return Folded(kernel, np.concatenate([conv.bias for conv in convs]))
