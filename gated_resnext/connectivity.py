"""The wiring of a network as a value: which blocks of a module feed which blocks of the next.

Plain numpy: nothing here knows of Keras, and everything that follows from a wiring (its unused blocks, what pruning
leaves) is a pure function of it.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from gated_resnext import files
from gated_resnext.errors import UserError

Reads = tuple[tuple[int, ...], ...]
Sources = tuple[Reads, ...]


def reads_of(sources: Sequence[Sequence[int]]) -> Reads:
    """What each block of a module reads: whole numbers, in order.

    Raises:
        ValueError: if it is something else.
    """
    try:
        return tuple(tuple(sorted(map(operator.index, block))) for block in sources)
    except (TypeError, ValueError):
        raise ValueError(f"sources are lists of whole numbers, one a block. Received: sources={sources!r}") from None


@dataclasses.dataclass(frozen=True)
class Connectivity:
    """Fixed wiring of M modules.

    Args:
        first: blocks of module 1, all of which read the stem.
        sources: for each of the modules 2 to M, for each of its blocks, the blocks of the module before that feed it.

    Raises:
        ValueError: if a block reads nothing, reads a block twice or one that is not there.

    Example:

    >>> wiring = Connectivity(first=3, sources=(((0,), (0,), (2,)), ((0,), (1,), (1,))))
    >>> wiring.active
    ((0,), (0, 1), (0, 1, 2))
    >>> wiring.pruned().blocks
    (1, 2, 3)

    Reference:
        Section 2.1 of the paper, "Our gated multi-branch architecture".
    """

    first: int
    sources: Sources

    def __post_init__(self) -> None:
        try:
            first = operator.index(self.first)
            sources = tuple(map(reads_of, self.sources))
        except (TypeError, ValueError):
            raise ValueError(
                f"a wiring is a list of modules of blocks of whole numbers. Received: {self.sources!r}"
            ) from None
        object.__setattr__(self, "first", first)
        object.__setattr__(self, "sources", sources)
        before = first
        if before < 1:
            raise ValueError(f"module 1 needs at least one block. Received: first={self.first}")
        for number, module in enumerate(sources, start=2):
            if not module:
                raise ValueError(f"module {number} of the wiring has no blocks")
            for block, inputs in enumerate(module):
                if not inputs or len(set(inputs)) != len(inputs) or inputs[0] < 0 or inputs[-1] >= before:
                    raise ValueError(
                        f"block {block} of module {number} must read one or more different blocks out of the "
                        f"{before} of module {number - 1}. Received: {list(inputs)}"
                    )
            before = len(module)

    @classmethod
    def full(cls, modules: int, cardinality: int) -> Connectivity:
        """Every block reads every block before: ResNeXt's wiring."""
        everything = tuple(range(cardinality))
        return cls(cardinality, ((everything,) * cardinality,) * (modules - 1))

    @classmethod
    def random(cls, modules: int, cardinality: int, fan_in: int, *, seed: int) -> Connectivity:
        """Every block reads `fan_in` different blocks drawn uniformly: the paper's Fixed-Random baseline."""
        _check_fan_in(fan_in, cardinality)
        rng = np.random.default_rng(seed)
        return cls(
            cardinality,
            tuple(
                tuple(tuple(rng.choice(cardinality, fan_in, replace=False).tolist()) for _ in range(cardinality))
                for _ in range(modules - 1)
            ),
        )

    @classmethod
    def top_k(cls, real_gates: Sequence[np.ndarray], fan_in: int, *, first: int | None = None) -> Connectivity:
        """The K largest real gates of every block, the lower index first among equals: phase 2's rule.

        Args:
            real_gates: one matrix (C, C) for each of the modules 2 to M; row j holds the inputs of block j.
            fan_in: K.
            first: blocks of module 1, where there is no gate to tell it.
        """
        sources = []
        for matrix in real_gates:
            _check_fan_in(fan_in, np.shape(matrix)[1])
            order = np.argsort(-np.asarray(matrix, np.float64), axis=1, kind="stable")
            sources.append(tuple(tuple(row[:fan_in].tolist()) for row in order))
        return cls(np.shape(real_gates[0])[1] if len(real_gates) else int(first or 1), tuple(sources))

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks in each of the M modules."""
        return (self.first, *map(len, self.sources))

    @property
    def active(self) -> tuple[tuple[int, ...], ...]:
        """For each module, the blocks that something reads, to the fixed point.

        A block read only by unused blocks is unused too; the head reads every block of module M.
        """
        used: list[tuple[int, ...]] = [tuple(range(self.blocks[-1]))]
        for module in reversed(self.sources):
            used.append(tuple(sorted({source for block in used[-1] for source in module[block]})))
        return tuple(reversed(used))

    @property
    def active_blocks(self) -> tuple[int, ...]:
        """Number of active blocks in each module."""
        return tuple(len(module) for module in self.active)

    def pruned(self) -> Connectivity:
        """The wiring among the active blocks alone, renumbered in order."""
        active = self.active
        position = [{block: place for place, block in enumerate(module)} for module in active]
        return Connectivity(
            len(active[0]),
            tuple(
                tuple(tuple(position[i][source] for source in module[block]) for block in active[i + 1])
                for i, module in enumerate(self.sources)
            ),
        )

    def binary_gates(self, module: int) -> np.ndarray:
        """Matrix of zeros and ones, shape (blocks of `module`, blocks of the one before), for module 2 to M."""
        matrix = np.zeros((self.blocks[module - 1], self.blocks[module - 2]), np.float32)
        for block, inputs in enumerate(self.sources[module - 2]):
            matrix[block, list(inputs)] = 1.0
        return matrix

    def to_dict(self) -> dict[str, Any]:
        """The wiring as plain JSON values."""
        return {"first": self.first, "sources": [[list(block) for block in module] for module in self.sources]}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Connectivity:
        """The inverse of `to_dict`.

        Raises:
            ValueError: if the fields are not those of a wiring.
        """
        if not isinstance(fields, dict) or set(fields) != {"first", "sources"}:
            raise ValueError(f"a wiring has the fields 'first' and 'sources'. Received: {fields!r}")
        return cls(fields["first"], fields["sources"])

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Connectivity:
        """The wiring of a file of `to_json`, or of one that holds it as `connectivity`: a result.json, a zoo's card.

        Raises:
            UserError: if there is none in it.
        """
        fields = files.read_json(os.path.expanduser(path))
        if isinstance(fields, dict) and "connectivity" in fields:
            fields = fields["connectivity"]
        try:
            return cls.from_dict(fields)
        except ValueError as error:
            raise UserError(f"{path} holds no wiring: {error}") from None

    def to_json(self) -> str:
        """The wiring as JSON text."""
        return json.dumps(self.to_dict())


def _check_fan_in(fan_in: int, cardinality: int) -> None:
    if not 1 <= fan_in <= cardinality:
        raise ValueError(f"fan_in must be between 1 and the {cardinality} blocks before. Received: fan_in={fan_in}")
