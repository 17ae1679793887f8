"""The memory traffic of a training step by theory: passes over wide tensors, and their bytes."""

from __future__ import annotations

from collections.abc import Sequence

from gated_resnext.architecture import Architecture

# What each operation must read and write, by (pass, operation): wide tensors read, written, and why.
THEORY = (
    ("forward", "sum of the gates", 1, 1, "reads y, writes s"),
    ("forward", "ReLU", 1, 1, "reads s, writes x; kept for the backward pass"),
    ("forward", "narrowing 1x1", 1, 0, "reads x"),
    ("forward", "statistics of the last batch norm", 0, 0, "from the narrow tensor"),
    ("forward", "widening 1x1", 0, 1, "writes f, its scale and shift in the kernel"),
    ("forward", "shortcut", 2, 1, "reads x and f, writes the next y"),
    ("backward", "widening 1x1", 2, 0, "reads dy for its input's gradient and for its kernel's"),
    ("backward", "narrowing 1x1", 1, 1, "reads x for the kernel's gradient, writes its part of dx"),
    ("backward", "shortcut", 2, 1, "adds dy and that part"),
    ("backward", "ReLU", 2, 1, "reads dx and x, writes ds"),
    ("backward", "gates", 2, 0, "reads y and ds"),
    ("backward", "sum of the gates", 1, 1, "reads ds, writes dy of the module before"),
)


def by_theory(learned: bool = True) -> int:
    """Reads and writes of a wide tensor in a training step, for each gated input."""
    return sum(read + written for _, name, read, written, _ in THEORY if learned or name != "gates")


def wide_bytes(arch: Architecture, blocks: Sequence[int], batch: int, size: int = 4) -> int:
    """Bytes of what the blocks that feed a gated input write, each counted once.

    Args:
        arch: the network.
        blocks: in each module.
        batch: images.
        size: bytes of a number.
    """
    written = zip(arch.plan()[:-1], blocks, strict=False)
    return size * batch * sum(plan.out_size[0] * plan.out_size[1] * plan.filters * count for plan, count in written)
