"""How well a network did on some images."""

from __future__ import annotations

from typing import Any, NamedTuple


class Scores(NamedTuple):
    """Sums over images: of the loss, of hits by the most probable class and by the first five, and their number."""

    loss: float = 0.0
    top1: float = 0.0
    top5: float = 0.0
    images: float = 0.0

    def __add__(self, other: Any) -> Scores:
        return Scores(*(a + float(b) for a, b in zip(self, other, strict=True)))

    def means(self) -> dict[str, float]:
        """Loss and accuracies per image."""
        return {name: getattr(self, name) / self.images for name in ("loss", "top1", "top5")}
