"""What people call the classes of ImageNet and Mini-ImageNet, which both number their WordNet ids.

`wordnet_names.txt` has a line a class: its id, and the first lemma of that synset of WordNet 3.0.
"""

from __future__ import annotations

import collections
import functools
import importlib.resources
from collections.abc import Sequence


def readable(labels: Sequence[str]) -> list[str]:
    """Labels with names in the place of WordNet ids; a name that two ids share is followed by the id.

    Args:
        labels: of any data set; what is no id, or that of no class, stays.

    Example:

    >>> readable(["n02099601", "n02012849", "ant", "n99999999"])
    ['golden retriever', 'crane (n02012849)', 'ant', 'n99999999']
    """
    return [_names().get(label, label) for label in labels]


@functools.cache
def _names() -> dict[str, str]:
    text = importlib.resources.files(__package__).joinpath("wordnet_names.txt").read_text(encoding="utf-8")
    names = dict(line.split(" ", 1) for line in text.splitlines())
    shared = {name for name, count in collections.Counter(names.values()).items() if count > 1}
    return {label: f"{name} ({label})" if name in shared else name for label, name in names.items()}
