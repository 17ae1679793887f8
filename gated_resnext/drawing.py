"""The wiring of a network as a picture, after Figure 3 of the paper: self-contained SVG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gated_resnext.connectivity import Connectivity

BLOCK = 22
ROW = 64
MARGIN = 36
ACTIVE, UNUSED, EDGE, END = "#2a9d5c", "#d4d7dc", "#33415c", "#c8453b"


def wiring_svg(
    panels: Sequence[tuple[str, Connectivity]], *, real_gates: Sequence[np.ndarray] | None = None, gap: int = 14
) -> str:
    """Wirings side by side: a row a module from the stem down to the head, a square a block, grey where unused.

    Args:
        panels: (title, wiring) of each.
        real_gates: matrices (C, C) of modules 2 to M of the last panel's network; its edges are as dark as their gates.
        gap: pixels between blocks.

    Returns:
        SVG text. Every square has the class "active" or "unused", every edge "edge" or "dead".
    """
    step = BLOCK + gap
    widths = [max(wiring.blocks) * step - gap + 2 * MARGIN for _, wiring in panels]
    height = max(len(wiring.blocks) for _, wiring in panels) * ROW + ROW + 56
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{sum(widths)}" height="{height}" '
        f'viewBox="0 0 {sum(widths)} {height}" font-family="sans-serif">',
        f'<rect width="{sum(widths)}" height="{height}" fill="white"/>',
    ]
    left = 0
    for number, ((title, wiring), width) in enumerate(zip(panels, widths, strict=True)):
        weights = real_gates if number == len(panels) - 1 else None
        parts += [f'<g transform="translate({left} 0)">', *_panel(title, wiring, width, step, weights), "</g>"]
        left += width
    return "\n".join([*parts, "</svg>", ""])


def _panel(
    title: str, wiring: Connectivity, width: int, step: int, real_gates: Sequence[np.ndarray] | None
) -> list[str]:
    """One wiring in a box of its own."""
    modules, active = len(wiring.blocks), wiring.active
    edges: list[str] = []
    squares: list[str] = []

    def place(module: int, block: int) -> tuple[float, float]:
        start = (width - (wiring.blocks[module] * step - (step - BLOCK))) / 2
        return start + block * step + BLOCK / 2, 24 + ROW * (module + 1)

    def edge(begin: tuple[float, float], end: tuple[float, float], alive: bool, weight: float) -> None:
        kind, colour = ("edge", EDGE) if alive else ("dead", UNUSED)
        edges.append(
            f'<line class="{kind}" x1="{begin[0]:.1f}" y1="{begin[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" '
            f'stroke="{colour}" stroke-width="1.3" stroke-opacity="{weight:.2f}"/>'
        )

    stem, head = (width / 2, 44.0), (width / 2, 24.0 + ROW * (modules + 1))
    for module in range(modules):
        for block in range(wiring.blocks[module]):
            x, y = place(module, block)
            used = block in active[module]
            if module == 0:
                edge((stem[0], stem[1] + 8), (x, y - BLOCK / 2), used, 1.0)
            else:
                for source in wiring.sources[module - 1][block]:
                    weight = (
                        1.0 if real_gates is None else float(np.clip(real_gates[module - 1][block][source], 0.15, 1))
                    )
                    from_x, from_y = place(module - 1, source)
                    edge((from_x, from_y + BLOCK / 2), (x, y - BLOCK / 2), used, weight)
            if module == modules - 1:
                edge((x, y + BLOCK / 2), (head[0], head[1] - 8), used, 1.0)
            squares.append(
                f'<rect class="{"active" if used else "unused"}" x="{x - BLOCK / 2:.1f}" y="{y - BLOCK / 2:.1f}" '
                f'width="{BLOCK}" height="{BLOCK}" rx="4" fill="{ACTIVE if used else UNUSED}"/>'
            )
    ends = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" fill="{END}"/>' for x, y in (stem, head)]
    caption = (
        f'<text x="{width / 2:.1f}" y="20" text-anchor="middle" font-size="14" fill="#22272e">{_escape(title)}</text>'
    )
    edges.sort(key=lambda line: '"edge"' in line)  # dead ones below
    return [caption, *edges, *squares, *ends]


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
