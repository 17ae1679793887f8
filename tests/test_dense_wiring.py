import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gated_resnext.dense_wiring import DenseWiring, fan_ins, top_k


@st.composite
def wirings(draw, layers=st.integers(0, 6)):
    """Any maps before, one or more of them, for each layer and at the end the output."""
    count = draw(layers)
    maps = [st.sets(st.integers(0, layer), min_size=1).map(sorted).map(tuple) for layer in range(count + 1)]
    return tuple(draw(some) for some in maps)


def on_a_path_to_the_output(sources):
    """The layers with at least one path to the output, by powers of the matrix of who reads whom."""
    matrix = np.zeros((len(sources) + 1, len(sources) + 1))
    for number, maps in enumerate(sources, start=1):
        matrix[number, list(maps)] = 1
    reach = np.linalg.matrix_power(np.eye(len(matrix)) + matrix, len(matrix))[-1]
    return tuple(layer for layer in range(1, len(sources)) if reach[layer] > 0)


@hypothesis.given(wirings())
def test_active_layers_are_those_on_a_path_to_the_output(sources):
    wiring = DenseWiring(sources)
    assert wiring.active == on_a_path_to_the_output(sources)
    pruned = wiring.pruned()
    assert pruned.active == tuple(range(1, pruned.layers + 1)) and pruned.layers == len(wiring.active)
    assert pruned.pruned() == pruned
    kept = [0, *wiring.active]
    for number, layer in enumerate([*wiring.active, wiring.layers + 1], start=1):
        assert tuple(kept[source] for source in pruned.sources[number - 1]) == wiring.sources[layer - 1]


@hypothesis.given(wirings(), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.none() | st.integers(1, 5))
def test_parameters_by_hand(sources, in_channels, growth, bottleneck, transition):
    total, narrow = 0, bottleneck * growth
    for number, maps in enumerate(sources, start=1):
        read = sum(in_channels if source == 0 else growth for source in maps)
        if number < len(sources):
            total += 2 * read + read * narrow + 2 * narrow + 9 * narrow * growth
        elif transition is not None:
            total += 2 * read + read * transition
    assert DenseWiring(sources).parameters(in_channels, growth, bottleneck, transition) == total


def test_full_reads_everything_and_random_k_of_it():
    assert DenseWiring.full(3).sources == ((0,), (0, 1), (0, 1, 2), (0, 1, 2, 3))
    assert DenseWiring.random(3, 9, seed=0) == DenseWiring.full(3)
    drawn = {DenseWiring.random(5, 2, 3, seed=seed) for seed in range(40)}
    assert {tuple(map(len, wiring.sources)) for wiring in drawn} == {(1, 2, 2, 2, 2, 3)} and len(drawn) > 30
    assert DenseWiring.random(5, 2, 3, seed=7) == DenseWiring.random(5, 2, 3, seed=7)
    assert {source for wiring in drawn for source in wiring.sources[4]} == set(range(5))
    assert fan_ins(3, 2) == [1, 2, 2, 4]


def test_top_k_takes_the_lower_index_among_equals():
    real_gates = [np.ones(1), np.array([0.2, 0.8]), np.array([0.4, 0.2, 0.4]), np.full(4, 0.25)]
    assert top_k(real_gates, [1, 1, 1, 2]).sources == ((0,), (1,), (0,), (0, 1))


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ((), "needs at least the maps that its output reads"),
        (((),), r"the output must read one or more different maps out of the 1 before. Received: \[\]"),
        (((0,), (0, 2)), r"the output must .* out of the 2 before. Received: \[0, 2\]"),
        (((0,), (-1,), (0,)), r"layer 2 must .* Received: \[-1\]"),
        (((0,), (1, 1), (0,)), r"layer 2 must .* Received: \[1, 1\]"),
        (((0,), (0.5,), (0,)), "list of lists of whole numbers"),
        (5, "list of lists of whole numbers"),
    ],
)
def test_wirings_of_nonsense_are_refused(sources, message):
    with pytest.raises(ValueError, match=message):
        DenseWiring(sources)
