import json

import hypothesis
import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from gated_resnext import gates

ROWS = {
    1: [[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25], [0.85, 0.05, 0.05, 0.05]],
    2: [[0.1, 0.1, 0.2, 0.25, 0.35], [0.2] * 5, [0.6, 0.1, 0.1, 0.1, 0.1]],
    4: [[0.1, 0.1, 0.15, 0.2, 0.2, 0.25], [1 / 6] * 6, [0.4, 0.2, 0.1, 0.1, 0.1, 0.1]],
}


def draws(real_gates, fan_in, *, seed, steps):
    """Binary gates of many steps, (steps, rows, C)."""
    real_gates = tf.constant(real_gates, tf.float32)

    @tf.function
    def all_steps():
        return tf.map_fn(
            lambda step: gates.draw(real_gates, fan_in, seed=seed, step=step),
            tf.range(steps),
            fn_output_signature=tf.float32,
        )

    return all_steps().numpy()


@pytest.mark.parametrize("fan_in", ROWS)
def test_draws_are_multinomial_without_replacement(fan_in):
    drawn = draws(ROWS[fan_in], fan_in, seed=20, steps=8000)
    np.testing.assert_array_equal(np.unique(drawn), [0.0, 1.0])
    np.testing.assert_array_equal(drawn.sum(axis=-1), fan_in)
    for number, row in enumerate(ROWS[fan_in]):
        closed_form = oracle.without_replacement(row, fan_in)
        counts = [int(drawn[:, number, list(chosen)].all(axis=-1).sum()) for chosen in closed_form]
        assert oracle.chi_square(counts, [8000 * p for p in closed_form.values()]) < 1


def test_rows_and_steps_are_independent():
    row = np.array([0.2, 0.3, 0.5])
    drawn = draws([row, row], 1, seed=4, steps=8000).argmax(axis=-1)
    expected = 8000 * np.outer(row, row)
    rows = np.histogram2d(drawn[:, 0], drawn[:, 1], bins=3)[0]
    assert oracle.chi_square(rows, expected) < 1
    steps = np.histogram2d(drawn[:-1, 0], drawn[1:, 0], bins=3)[0]
    assert oracle.chi_square(steps, 7999 * np.outer(row, row)) < 1


def test_many_rows_of_one_step_follow_the_closed_form():
    row = [0.1, 0.1, 0.2, 0.25, 0.35]
    drawn = gates.draw(np.tile(np.float32(row), (20000, 1)), 2, seed=7, step=0).numpy()
    closed_form = oracle.without_replacement(row, 2)
    counts = [int(drawn[:, list(chosen)].all(axis=-1).sum()) for chosen in closed_form]
    assert oracle.chi_square(counts, [20000 * p for p in closed_form.values()]) < 1


def test_fewer_than_k_gates_take_the_rest_among_the_zeros_alike():
    drawn = gates.draw(np.tile(np.float32([0, 0.7, 0, 0.3, 0, 0]), (9000, 1)), 3, seed=3, step=1).numpy()
    np.testing.assert_array_equal(drawn.sum(axis=1), 3)
    assert drawn[:, [1, 3]].all()
    assert oracle.chi_square(drawn[:, [0, 2, 4, 5]].sum(axis=0), [2250] * 4) < 1


def test_the_smallest_gate_goes_before_a_zero():
    drawn = gates.draw(np.tile(np.float32([1, 1e-9, 0, 0, 0, 0]), (20000, 1)), 2, seed=3, step=2).numpy()
    np.testing.assert_array_equal(drawn, np.tile([1, 1, 0, 0, 0, 0], (20000, 1)))


def gate_rows(branches, rows):
    """Rows that sum to 1, of gates that are zero or at least 1e-6 of the largest."""
    value = st.one_of(st.just(0.0), st.floats(1e-6, 1.0))
    row = st.lists(value, min_size=branches, max_size=branches).filter(any)
    return st.lists(row, min_size=rows, max_size=rows).map(
        lambda matrix: np.float32(np.array(matrix) / np.sum(matrix, axis=1, keepdims=True))
    )


@hypothesis.settings(max_examples=60)
@hypothesis.given(gate_rows(5, 5), st.integers(1, 5), st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
def test_k_ones_and_a_zero_gate_only_where_nothing_else_is_left(real_gates, fan_in, seed, step):
    drawn = gates.draw(real_gates, fan_in, seed=seed, step=step).numpy()
    assert set(np.unique(drawn)) <= {0.0, 1.0}
    np.testing.assert_array_equal(drawn.sum(axis=1), fan_in)
    non_zero = np.count_nonzero(real_gates, axis=1)
    np.testing.assert_array_equal(np.sum(drawn * (real_gates > 0), axis=1), np.minimum(non_zero, fan_in))


def test_a_draw_is_a_function_of_seed_and_step_alone():
    real_gates = np.full((12, 12), 1 / 12, np.float32)
    first = gates.draw(real_gates, 3, seed=5, step=9).numpy()
    keras.utils.set_random_seed(77)
    keras.random.uniform((3,))
    tf.random.uniform((3,))
    np.testing.assert_array_equal(gates.draw(real_gates, 3, seed=5, step=tf.constant(9)).numpy(), first)
    np.testing.assert_array_equal(draws(real_gates, 3, seed=5, steps=10)[9], first)
    for seed, step in ((6, 9), (5, 10), (9, 5)):
        assert (gates.draw(real_gates, 3, seed=seed, step=step).numpy() != first).any()


def test_drawing_all_leaves_no_choice():
    np.testing.assert_array_equal(gates.draw(np.float32([[0, 1], [0.5, 0.5]]), 2, seed=0, step=0), np.ones((2, 2)))


def projected(real_gates):
    clipped = np.clip(np.asarray(real_gates, np.float64), 0, 1)
    total = clipped.sum(axis=1, keepdims=True)
    return np.where(total > 0, clipped / np.where(total > 0, total, 1), 1 / clipped.shape[1])


@hypothesis.settings(max_examples=100)
@hypothesis.given(
    st.lists(
        st.lists(st.one_of(st.just(0.0), st.floats(-3, 3, width=32, allow_subnormal=False)), min_size=4, max_size=4),
        min_size=3,
        max_size=3,
    )
)
def test_project_clips_then_normalises(rows):
    result = gates.project(np.float32(rows)).numpy()
    np.testing.assert_allclose(result, projected(rows), rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(result.sum(axis=1), 1.0, rtol=1e-6)
    assert (result >= 0).all() and (result <= 1).all()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]),
        ([-1, -0.5, 0, -7], [0.25, 0.25, 0.25, 0.25]),
        ([0.5, -1, 0.5, 9], [0.25, 0, 0.25, 0.5]),
        ([0.1, 0, -2, 0], [1, 0, 0, 0]),
        ([2, 3, 4, 5], [0.25, 0.25, 0.25, 0.25]),
        ([0.4, 0.3, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_rows_after_an_update(row, expected):
    np.testing.assert_allclose(gates.project(np.float32([row]))[0], expected, rtol=1e-6)


@pytest.mark.parametrize("row", [[1e-40, 0, 0], [1e-45, 1e-39, -1], [1.2e-38, 1e-38, 0]])
def test_rows_too_small_for_float32_stay_finite(row):
    result = gates.project(np.float32([row])).numpy()
    np.testing.assert_allclose(result.sum(axis=1), 1.0, rtol=1e-6)


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=4, max_size=4), st.integers(1, 5)
)
def test_top_k_takes_the_lower_index_among_equals(rows, fan_in):
    result = gates.top_k(np.float32(rows), fan_in).numpy()
    expected = np.zeros((4, 5))
    for j, row in enumerate(rows):
        expected[j, sorted(range(5), key=lambda k: (-row[k], k))[:fan_in]] = 1
    np.testing.assert_array_equal(result, expected)


def test_the_gradient_of_binary_gates_goes_straight_to_the_real_ones():
    rng = np.random.default_rng(0)
    real, binary, upstream = (tf.constant(rng.normal(size=(4, 4)), tf.float32) for _ in range(3))
    with tf.GradientTape() as tape:
        tape.watch([real, binary])
        used = gates.straight_through(real, binary)
        loss = tf.reduce_sum(used * upstream)
    np.testing.assert_array_equal(used, binary)
    of_real, of_binary = tape.gradient(loss, [real, binary], unconnected_gradients="zero")
    np.testing.assert_array_equal(of_real, upstream)
    np.testing.assert_array_equal(of_binary, np.zeros((4, 4)))


def test_aggregate_and_both_its_gradients():
    rng = np.random.default_rng(1)
    weights, y, upstream = rng.normal(size=(2, 3)), rng.normal(size=(3, 2, 4, 5, 6)), rng.normal(size=(2, 2, 4, 5, 6))
    weights[0, 1] = 0.0
    g, x = tf.constant(weights, tf.float32), tf.constant(y, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch([g, x])
        result = gates.aggregate(g, x)
        loss = tf.reduce_sum(result * tf.constant(upstream, tf.float32))
    np.testing.assert_allclose(result, np.einsum("jk,kbhwc->jbhwc", weights, y), rtol=1e-5, atol=1e-5)
    of_g, of_x = tape.gradient(loss, [g, x])
    np.testing.assert_allclose(of_g, np.einsum("jbhwc,kbhwc->jk", upstream, y), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(of_x, np.einsum("jk,jbhwc->kbhwc", weights, upstream), rtol=1e-5, atol=1e-5)


def test_entropy_is_the_mean_of_the_rows():
    np.testing.assert_allclose(gates.entropy(np.full((8, 8), 0.125, np.float32)), np.log(8), rtol=1e-6)
    np.testing.assert_allclose(gates.entropy(np.eye(8, dtype=np.float32)), 0.0, atol=1e-6)
    rows = np.random.default_rng(2).dirichlet(np.ones(6), 6)
    np.testing.assert_allclose(gates.entropy(np.float32(rows)), -np.sum(rows * np.log(rows)) / 6, rtol=1e-5)


ON_TORCH = """
import numpy as np
from gated_resnext import gates
even = np.full((6, 8), 1 / 8, "float32")
draws = [[np.asarray(gates.draw(even, 2, seed=seed, step=step)) for step in range(40)] for seed in (1, 2, 2**31 - 1)]
flat = [str(draw.tolist()) for of_seed in draws for draw in of_seed]
assert len(set(flat)) == len(flat), "a seed draws what another drew a step before"
assert all((draw.sum(1) == 2).all() for of_seed in draws for draw in of_seed)
again = np.asarray(gates.draw(even, 2, seed=2, step=7))
assert (again == draws[1][7]).all()
print(np.mean(draws, (0, 1, 2)).round(3).tolist())
"""


def test_seeds_draw_apart_under_torch(run_python):
    pytest.importorskip("torch", reason="torch is not installed (extra: benchmark)")
    done = run_python("-c", ON_TORCH, env={"KERAS_BACKEND": "torch"})
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), 1 / 4, atol=0.07)  # 720 rows, 4.3 deviations
