import collections
import itertools
import json

import hypothesis
import numpy as np
import oracle
import pytest
from hypothesis import strategies as st

from gated_resnext.connectivity import Connectivity

CASCADE = (3, (((0,), (0,), (2,)), ((0,), (1,), (1,))))


@hypothesis.given(oracle.wirings())
def test_active_blocks_are_those_with_a_path_to_the_head(wiring):
    connectivity = Connectivity(*wiring)
    assert connectivity.active == oracle.read_by_the_head(wiring)
    assert connectivity.active_blocks == tuple(map(len, oracle.read_by_the_head(wiring)))


def test_a_block_read_by_unused_blocks_alone_is_unused():
    # Block 2 of module 2 is unread, so block 2 of module 1, which it alone reads, goes too.
    assert Connectivity(*CASCADE).active == ((0,), (0, 1), (0, 1, 2))
    assert Connectivity(*CASCADE).pruned() == Connectivity(1, (((0,), (0,)), ((0,), (1,), (1,))))


@hypothesis.given(oracle.wirings())
def test_pruning_keeps_the_edges_among_active_blocks(wiring):
    connectivity, active = Connectivity(*wiring), oracle.read_by_the_head(wiring)
    pruned = connectivity.pruned()
    assert pruned.blocks == tuple(map(len, active))
    for module, matrix in enumerate(oracle.gate_matrices(wiring), start=2):
        expected = matrix[np.ix_(active[module - 1], active[module - 2])]
        np.testing.assert_array_equal(pruned.binary_gates(module), expected)


@hypothesis.given(oracle.wirings())
def test_pruning_again_changes_nothing(wiring):
    pruned = Connectivity(*wiring).pruned()
    assert pruned.pruned() == pruned
    assert pruned.active_blocks == pruned.blocks


@hypothesis.given(oracle.wirings())
def test_the_last_module_is_never_pruned(wiring):
    connectivity = Connectivity(*wiring)
    assert connectivity.pruned().blocks[-1] == connectivity.blocks[-1]


@hypothesis.given(oracle.wirings())
def test_json_round_trip(wiring):
    connectivity = Connectivity(*wiring)
    assert Connectivity.from_dict(json.loads(connectivity.to_json())) == connectivity
    assert hash(Connectivity(*wiring)) == hash(connectivity)


@hypothesis.given(oracle.wirings(modules=st.integers(2, 4)))
def test_binary_gates_hold_the_inputs_of_block_j_in_row_j(wiring):
    connectivity = Connectivity(*wiring)
    for module, expected in enumerate(oracle.gate_matrices(wiring), start=2):
        np.testing.assert_array_equal(connectivity.binary_gates(module), expected)


def test_the_order_of_inputs_does_not_matter():
    assert Connectivity(3, (((2, 0), (1, 0)),)) == Connectivity(3, (((0, 2), (0, 1)),))


def test_full():
    full = Connectivity.full(3, 4)
    assert full.blocks == full.active_blocks == (4, 4, 4)
    assert all(full.binary_gates(module).all() for module in (2, 3))


@pytest.mark.parametrize("fan_in", [1, 2, 4])
def test_random_draws_every_set_alike(fan_in):
    wiring = Connectivity.random(601, 4, fan_in, seed=5)
    assert wiring.blocks == (4,) * 601
    counts = collections.Counter(itertools.chain.from_iterable(wiring.sources))
    sets = list(itertools.combinations(range(4), fan_in))
    assert set(counts) == set(sets)
    if len(sets) > 1:
        assert oracle.chi_square([counts[s] for s in sets], np.full(len(sets), 2400 / len(sets))) < 1


def test_random_is_a_function_of_the_seed():
    assert Connectivity.random(3, 8, 4, seed=1) == Connectivity.random(3, 8, 4, seed=1)
    assert Connectivity.random(3, 8, 4, seed=1) != Connectivity.random(3, 8, 4, seed=2)


@hypothesis.given(st.data(), st.integers(1, 5))
def test_top_k_takes_the_largest_and_the_lower_index_among_equals(data, branches):
    fan_in = data.draw(st.integers(1, branches))
    value = st.sampled_from([0.0, 0.1, 0.25, 0.25000003, 0.7, 1.0])
    row = st.lists(value, min_size=branches, max_size=branches)
    matrix = st.lists(row, min_size=branches, max_size=branches).map(np.float32)
    matrices = data.draw(st.lists(matrix, max_size=2))
    wiring = Connectivity.top_k(matrices, fan_in, first=branches)
    assert wiring.blocks == (branches,) * (1 + len(matrices))
    for matrix, module in zip(matrices, wiring.sources, strict=True):
        for gates, inputs in zip(matrix.tolist(), module, strict=True):
            best = sorted(range(branches), key=lambda k: (-gates[k], k))[:fan_in]
            assert inputs == tuple(sorted(best))


@pytest.mark.parametrize(
    ("first", "sources", "message"),
    [
        (0, (), "module 1 needs at least one block. Received: first=0"),
        (2, (((0,), (2,)),), r"block 1 of module 2 must read .* out of the 2 of module 1. Received: \[2\]"),
        (2, (((0,), (-1,)),), r"block 1 of module 2 must read .*Received: \[-1\]"),
        (2, (((0, 0),),), r"block 0 of module 2 must read one or more different blocks.*Received: \[0, 0\]"),
        (2, (((0,), ()),), r"block 1 of module 2 must read one or more .*Received: \[\]"),
        (2, (((0,),), ((0,), (1,))), r"block 1 of module 3 must read .* out of the 1 of module 2. Received: \[1\]"),
        (2, ((),), "module 2 of the wiring has no blocks"),
        (2, ((0, 1),), "a wiring is a list of modules of blocks of whole numbers"),
    ],
)
def test_a_wiring_that_cannot_be_is_refused(first, sources, message):
    with pytest.raises(ValueError, match=message):
        Connectivity(first, sources)


@pytest.mark.parametrize("fields", [{"first": 2}, {"first": 2, "sources": [], "name": "x"}, [2, []]])
def test_fields_of_something_else_are_refused(fields):
    with pytest.raises(ValueError, match="a wiring has the fields 'first' and 'sources'. Received"):
        Connectivity.from_dict(fields)
