"""The inference graph of a network: what one would write by hand for its wiring, in stock Keras layers.

Unused blocks are gone, batch norm is folded into the convolutions, blocks that read the same inputs share the sum, the
shortcut and one merged 1x1 convolution. No layer of ours, no random op, no custom gradient is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from gated_resnext.architecture import ModulePlan
from gated_resnext.layers import EPSILON
from gated_resnext.model import GatedResNeXt
from gated_resnext.pruning import prune

Weights = dict[str, np.ndarray]


class Folded(NamedTuple):
    """A convolution with its batch norm folded in: kernel (..., in_channels, out_channels) and bias (out_channels,)."""

    kernel: np.ndarray
    bias: np.ndarray


def compact(model: GatedResNeXt) -> keras.Model:
    """The same function from uint8 pixels to probabilities as a graph of stock layers.

    Args:
        model: a network, pruned or not.

    Returns:
        A functional `keras.Model` with float32 weights and no training behaviour.

    Raises:
        ValueError: if the gates are real-valued, which leaves no block unused and no sum to share.

    Example:

    >>> from gated_resnext import Architecture, GatedResNeXt
    >>> small = compact(GatedResNeXt(Architecture(depth=11, width=4, cardinality=4, fan_in=1)))
    >>> small.output_shape
    (None, 10)
    """
    if model.architecture.gates == "real":
        raise ValueError("a network with real-valued gates has no compact graph: every block reads every other")
    return _Builder(prune(model)).model()


class _Builder:
    def __init__(self, model: GatedResNeXt) -> None:
        self.source, self.arch, self.wiring = model, model.architecture, model.wiring()
        self.weights: Weights = {name: value.astype(np.float64) for name, value in model.weights_by_name().items()}
        self.filled: list[tuple[Any, Folded]] = []

    def model(self) -> keras.Model:
        """Builds the layers, then fills them."""
        images = keras.Input(self.arch.input_shape, name="images", dtype="uint8")
        mean = self.weights["standardize/mean_image"]
        x = layers.Rescaling(1.0 / 255.0, name="scale")(images)
        standardize = layers.Normalization(
            axis=(1, 2, 3), mean=mean / 255.0, variance=np.ones_like(mean), name="center"
        )
        x = self._stem(standardize(x))
        outputs = [x]
        for module, plan in enumerate(self.arch.plan()):
            outputs = self._module(module, plan, outputs)
        x = outputs[0] if len(outputs) == 1 else layers.Add(name="sum")(outputs)
        x = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU(name="relu")(x))
        head = Folded(self.weights["classifier/kernel"], self.weights["classifier/bias"])
        averaged = self.arch.aggregation == "mean"
        if averaged:  # ReLU and pooling commute with a positive factor
            head = Folded(head.kernel / self.wiring.blocks[-1], head.bias)
        classifier = layers.Dense(self.arch.classes, name="classifier")
        x = layers.Activation("softmax", name="probabilities")(self._filled(classifier, x, head))
        model = keras.Model(images, x, name=self.source.name)
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
            x, padding = layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x), "valid"
        layer = layers.Conv2D(
            folded.kernel.shape[-1], size, stride, padding, activation="relu" if relu else None, name=name
        )
        return self._filled(layer, x, folded)

    def _stem(self, x: Any) -> Any:
        large = self.arch.stem == "conv7_pool"
        x = self._conv(x, self._folded("stem_conv", "stem_norm"), "stem", stride=2 if large else 1, relu=True)
        if self.arch.stem != "conv3":
            x = layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
            x = layers.MaxPooling2D(3, 2, name="stem_pool")(x)
        return x

    def _module(self, module: int, plan: ModulePlan, before: list[Any]) -> list[Any]:
        """What the blocks of a module write: one tensor a block, or one a group where only their sum is read."""
        shared = self.arch.aggregation == "shared"
        blocks = self.wiring.blocks[module]
        if shared or module == 0:
            groups = {tuple(range(len(before))): list(range(blocks))}
        else:
            groups = {}
            for block, sources in enumerate(self.wiring.sources[module - 1]):
                groups.setdefault(sources, []).append(block)
        only_the_sum = shared or module == self.arch.modules - 1
        outputs: dict[int, Any] = {}
        # One layer, called on the input of every group: its weights are stored once.
        project = layers.Conv2D(plan.filters, 1, plan.stride, name=f"{plan.name}_project") if plan.projects else None
        if project is not None:
            self.filled.append((project, self._block(plan, "project", 0)))
        for number, (sources, members) in enumerate(groups.items(), start=1):
            name = f"{plan.name}_group{number}"
            x = self._input([before[source] for source in sources], name) if module else before[0]
            shortcut = x if project is None else project(x)
            narrow = self._narrow(x, plan, members, name)
            if only_the_sum:
                h = narrow[0] if len(narrow) == 1 else layers.Concatenate(name=f"{name}_concat")(narrow)
                expand = _stacked(self._block(plan, "expand", block) for block in members)
                if len(members) > 1 and not shared:
                    shortcut = layers.Rescaling(float(len(members)), name=f"{name}_times{len(members)}")(shortcut)
                outputs[members[0]] = layers.Add(name=f"{name}_add")(
                    [shortcut, self._conv(h, expand, f"{name}_expand")]
                )
                continue
            for block, h in zip(members, narrow, strict=True):
                label = f"{plan.name}_block{block + 1}"
                f = self._conv(h, self._block(plan, "expand", block), f"{label}_expand")
                outputs[block] = layers.Add(name=f"{label}_add")([shortcut, f])
        return [outputs[block] for block in sorted(outputs)]

    def _input(self, y: list[Any], name: str) -> Any:
        """ReLU of the mean (or sum) of what a group reads; a sum of one vanishes."""
        if len(y) > 1:
            y = [(layers.Average if self.arch.aggregation == "mean" else layers.Add)(name=f"{name}_gather")(y)]
        return layers.ReLU(name=f"{name}_relu")(y[0])

    def _narrow(self, x: Any, plan: ModulePlan, members: Sequence[int], name: str) -> list[Any]:
        """The bottlenecks of a group after their 3x3 convolution: one merged 1x1 convolution, then one 3x3 a block."""
        merged = _side_by_side(self._block(plan, "reduce", block) for block in members)
        h = self._conv(x, merged, f"{name}_reduce", relu=True)
        parts = [h] if len(members) == 1 else keras.ops.split(h, len(members), axis=-1)
        return [
            self._conv(
                part,
                self._block(plan, "conv", block),
                f"{plan.name}_block{block + 1}_conv",
                stride=plan.stride,
                relu=True,
            )
            for block, part in zip(members, parts, strict=True)
        ]

    def _block(self, plan: ModulePlan, part: str, block: int) -> Folded:
        """A convolution of one block, as (height, width, in_channels, out_channels)."""
        name = f"{plan.name}/{part}"
        kernel = self.weights[f"{name}/kernel"][block]
        if kernel.ndim == 2:
            kernel = kernel[None, None]
        return _fold(kernel, {key: self.weights[f"{name}/norm/{key}"][block] for key in NORM})

    def _folded(self, conv: str, norm: str) -> Folded:
        return _fold(self.weights[f"{conv}/kernel"], {key: self.weights[f"{norm}/{key}"] for key in NORM})


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
