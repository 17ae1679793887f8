"""Tables in Markdown, as lines of text."""

from __future__ import annotations

from collections.abc import Iterable


def row(cells: Iterable[object]) -> str:
    """One line of a table.

    Example:

    >>> row(["learned", 1])
    '| learned | 1 |'
    """
    return f"| {' | '.join(map(str, cells))} |"


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> list[str]:
    """The lines of a table: its head, the ruling, and each row.

    Example:

    >>> table(["wiring", "K"], [["learned", 1], ["random", 2]])
    ['| wiring | K |', '|---|---|', '| learned | 1 |', '| random | 2 |']
    """
    head = list(head)
    return [row(head), "|---" * len(head) + "|", *map(row, rows)]
