"""Seeds: a random one where none is given, and several out of one."""

from __future__ import annotations

import operator
import random

import numpy as np


def a_seed(seed: int | None) -> int:
    """The seed, or a random one: a function of `keras.utils.set_random_seed`, as those of Keras' own layers are."""
    if seed is None:
        return random.randrange(2**31)
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(f"seed must be a whole number of at least 0 or None. Received: seed={seed!r}")
    return number


def seeds_from(seed: int, count: int) -> list[int]:
    """Independent seeds, under 2^31, derived from one."""
    return [int(value) for value in np.random.SeedSequence(seed).generate_state(count) >> 1]
