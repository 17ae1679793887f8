"""Which blocks of a module work together in the compact graph.

Plain Python: nothing here needs Keras or TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence

from gated_resnext.architecture import Architecture
from gated_resnext.connectivity import Connectivity

# Up to here a dense 3x3 convolution with zeros is faster than one a block (docs/performance.md, "Export").
BUNDLE_CHANNELS = 16


def groups(
    architecture: Architecture, wiring: Connectivity, module: int
) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """The blocks of a module that read the same: the same inputs in the same sum.

    Args:
        architecture: the network's.
        wiring: its wiring, pruned.
        module: from 0.

    Returns:
        For each group, in the order of its first block: what it reads, as blocks of the module before, and its blocks.
        Module 0 reads one tensor, the stem; so does every module of aggregation="shared", the sum. Under "weighted"
        every block has weights, and so a group, of its own.

    Example:

    >>> wiring = Connectivity(first=3, sources=(((0,), (1, 2), (0,)),))
    >>> groups(Architecture(8, 4, 3, 1, stages=(1, 1)), wiring, 1)
    (((0,), (0, 2)), ((1, 2), (1,)))
    """
    if module == 0 or architecture.aggregation == "shared":
        return (((0,), tuple(range(wiring.blocks[module]))),)
    if architecture.aggregation == "weighted":
        return tuple((sources, (block,)) for block, sources in enumerate(wiring.sources[module - 1]))
    readers: dict[tuple[int, ...], list[int]] = {}
    for block, sources in enumerate(wiring.sources[module - 1]):
        readers.setdefault(sources, []).append(block)
    return tuple((sources, tuple(members)) for sources, members in readers.items())


def bundles(members: Sequence[int], width: int, channels: int = BUNDLE_CHANNELS) -> list[tuple[int, ...]]:
    """Cuts the blocks of a group into runs of at most `channels` channels, or of one block where that is wider.

    Args:
        members: the blocks.
        width: channels of each.
        channels: the bound.

    Example:

    >>> bundles([0, 2, 3, 5, 7], width=4)
    [(0, 2, 3, 5), (7,)]
    """
    size = max(1, channels // width)
    return [tuple(members[start : start + size]) for start in range(0, len(members), size)]
