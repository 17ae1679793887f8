"""How large the compact graph is and how much it computes, without building it, and counted from it.

A multiply-add is one product with its addition, of a convolution or a dense layer, for one image; padding is counted as
if it were image, and the additions of biases, shortcuts, sums and pooling are not counted. Nor are the factors of means
and weighted sums, which are constants of the graph. This is how `Architecture.multiply_adds` counts the network before
it is exported.

Plain Python: nothing here needs Keras or TensorFlow.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from export.bundles import BUNDLE_CHANNELS, bundles, groups
from gated_resnext.architecture import Architecture, ModulePlan
from gated_resnext.connectivity import Connectivity


class Counts(NamedTuple):
    """Weights and biases stored, and multiply-adds an image."""

    parameters: int
    multiply_adds: int


def compact_counts(
    architecture: Architecture, connectivity: Connectivity, *, bundle_channels: int = BUNDLE_CHANNELS
) -> Counts:
    """Counts of the compact graph of a wiring, in closed form.

    Every convolution has a bias, into which its batch norm is folded. Zeros between the blocks of a bundle are stored
    and multiplied, so they count.

    Args:
        architecture: the network's, its gates binary.
        connectivity: its wiring, pruned or not; `Connectivity.full` for aggregation="shared".
        bundle_channels: as for `compact`.

    Raises:
        ValueError: if the wiring is of another number of modules.

    Example:

    >>> arch = Architecture(depth=20, width=4, cardinality=8, fan_in=1)
    >>> compact_counts(arch, Connectivity.random(arch.modules, 8, 1, seed=0), bundle_channels=0)
    Counts(parameters=193978, multiply_adds=31902208)
    """
    wiring = connectivity if architecture.aggregation == "shared" else connectivity.pruned()
    plans = architecture.plan()
    if len(wiring.blocks) != len(plans):
        raise ValueError(f"the architecture has {len(plans)} modules. Received: a wiring of {len(wiring.blocks)}")
    stem, head = architecture.stem_kernel, plans[-1].filters * architecture.classes
    counts = [Counts(stem + architecture.stem_filters, stem * math.prod(architecture.stem_conv_size))]
    counts.append(Counts(head + architecture.classes, head))
    for module, plan in enumerate(plans):
        counts += _module(architecture, wiring, module, plan, bundle_channels)
    return Counts(sum(count.parameters for count in counts), sum(count.multiply_adds for count in counts))


def graph_counts(model: Any) -> Counts:
    """Counts of the convolutions and dense layers of a functional model of fixed image size, from its layers.

    A layer that is called several times is stored once and computed every time.
    """
    parameters = multiply_adds = 0
    for layer in model.layers:
        if type(layer).__name__ not in ("Conv2D", "Dense"):
            continue
        parameters += sum(math.prod(weight.shape) for weight in layer.weights)
        for node in layer._inbound_nodes:
            pixels = math.prod(node.output_tensors[0].shape[1:-1])
            multiply_adds += math.prod(layer.kernel.shape) * pixels
    return Counts(parameters, multiply_adds)


def _module(
    architecture: Architecture, wiring: Connectivity, module: int, plan: ModulePlan, bundle_channels: int
) -> list[Counts]:
    """Counts of the convolutions of a module."""
    before, after = math.prod(plan.in_size), math.prod(plan.out_size)
    readers = [members for _, members in groups(architecture, wiring, module)]
    counts = []
    for members in readers:
        counts.append(_conv(plan.in_channels, len(members) * plan.width, before))
        for bundle in bundles(members, plan.width, bundle_channels):
            channels = len(bundle) * plan.width
            counts.append(_conv(9 * channels, channels, after))
    blocks, shortcuts = sum(map(len, readers)), len(readers)
    if architecture.aggregation == "shared" or module == architecture.modules - 1:  # only the sum is read
        counts.append(_conv(blocks * plan.width, plan.filters, after))
        shortcuts = 1
    else:
        counts += [_conv(plan.width, plan.filters, after)] * blocks
    if plan.projects:
        project = _conv(plan.in_channels, plan.filters, after)
        counts.append(Counts(project.parameters, project.multiply_adds * shortcuts))
    return counts


def _conv(fan_in: int, filters: int, pixels: int) -> Counts:
    """Counts of a convolution with a bias that reads `fan_in` numbers a pixel."""
    return Counts((fan_in + 1) * filters, fan_in * filters * pixels)
