import hypothesis
import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from gated_resnext import gates
from gated_resnext.aggregation import BranchMean, GatedAggregation
from gated_resnext.connectivity import Connectivity

C = 4


def round_trip(layer):
    return keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))


def unit_branches(count):
    """Branch k writes 1 in channel k alone, so what block j reads are its weights of the sum."""
    return np.eye(count, dtype=np.float32).reshape(count, 1, 1, 1, count)


def weights_of(layer, training=False, branches=C):
    return np.asarray(layer(unit_branches(branches), training=training))[:, 0, 0, 0]


def learned(real_gates=None, **kwargs):
    layer = GatedAggregation(**{"fan_in": 2, "seed": 3, **kwargs})
    layer.build((C, None, 1, 1, C))
    if real_gates is not None:
        layer.real_gates.assign(np.float32(real_gates))
    return layer


def random_gates(seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(C), C)


def test_gates_begin_uniform():
    layer = learned()
    np.testing.assert_array_equal(layer.real_gates, np.full((C, C), 0.25))
    assert int(layer.step) == 0


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.data())
@pytest.mark.parametrize("fan_in", [1, 2, 4])
def test_evaluation_takes_the_top_k_as_the_wiring_does(fan_in, data):
    # Few different values, so that there are ties.
    values = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5]), min_size=C, max_size=C)
    real_gates = np.float32(data.draw(st.lists(values, min_size=C, max_size=C)))
    layer = learned(real_gates, fan_in=fan_in, aggregation="sum")
    used = weights_of(layer)
    for j, row in enumerate(real_gates.tolist()):
        best = sorted(range(C), key=lambda k: (-row[k], k))[:fan_in]
        assert np.flatnonzero(used[j]).tolist() == sorted(best)
    np.testing.assert_array_equal(used, Connectivity.top_k([real_gates], fan_in).binary_gates(2))


@pytest.mark.parametrize("in_a_graph", [False, True])
def test_training_draws_by_seed_and_step_and_counts_the_calls(in_a_graph):
    layer = learned(random_gates(), aggregation="sum")
    call = tf.function(layer.__call__) if in_a_graph else layer
    used = []
    for step in range(6):
        assert int(layer.step) == step
        used.append(np.asarray(call(unit_branches(C), training=True))[:, 0, 0, 0])
        np.testing.assert_array_equal(used[-1], gates.draw(np.float32(random_gates()), 2, seed=3, step=step))
    assert len({row.tobytes() for row in used}) > 1
    for _ in range(2):
        call(unit_branches(C), training=False)
    layer(unit_branches(C))
    assert int(layer.step) == 6


def test_the_step_decides_the_draw_so_a_run_can_resume():
    layer = learned(random_gates(), fan_in=1)
    run = [weights_of(layer, training=True) for _ in range(5)]
    resumed = learned(random_gates(), fan_in=1)
    resumed.step.assign(3)
    np.testing.assert_array_equal([weights_of(resumed, training=True) for _ in range(2)], run[3:])


@pytest.mark.parametrize(("aggregation", "values"), [("mean", [0.0, 0.5]), ("sum", [0.0, 1.0])])
def test_mean_divides_by_k_and_sum_is_equation_2(aggregation, values):
    for training in (False, True):
        used = weights_of(learned(random_gates(), aggregation=aggregation), training)
        np.testing.assert_array_equal(np.unique(used), values)
        np.testing.assert_array_equal(np.count_nonzero(used, axis=1), 2)


@pytest.mark.parametrize("aggregation", ["mean", "sum"])
def test_sources_fix_the_wiring(aggregation):
    sources = ((0, 3), (1,), (0, 1, 2))
    layer = GatedAggregation(2, aggregation, sources=sources)
    expected = oracle.mixing(oracle.gate_matrices((C, (sources,)))[0], aggregation)
    for training in (False, True):
        np.testing.assert_allclose(weights_of(layer, training), expected, rtol=1e-7)
    assert layer.weights == []


@pytest.mark.parametrize("aggregation", ["mean", "sum"])
def test_a_relu_follows_the_sum(aggregation):
    y = np.random.default_rng(1).normal(size=(C, 2, 3, 3, 5))
    sources = ((0, 3), (1,), (0, 1, 2))
    mixing = oracle.mixing(oracle.gate_matrices((C, (sources,)))[0], aggregation)
    total = np.einsum("jk,kbhwc->jbhwc", mixing, y)
    result = GatedAggregation(2, aggregation, sources=sources)(y.astype(np.float32))
    assert (total < 0).any()
    np.testing.assert_allclose(result, np.maximum(total, 0), rtol=1e-5, atol=1e-6)


def gate_gradient(layer, y, upstream, training):
    """dL/d real_gates for L = <upstream, output>."""
    with tf.GradientTape() as tape:
        x = layer(y.astype(np.float32), training=training)
        loss = tf.reduce_sum(x * tf.constant(upstream, x.dtype))
    return tape.gradient(loss, layer.real_gates.value).numpy()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fan_in", [1, 2, 4])
@pytest.mark.parametrize("aggregation", ["mean", "sum"])
def test_every_gate_has_its_gradient_drawn_or_not(aggregation, fan_in, training):
    rng = np.random.default_rng(2)
    y, upstream = rng.normal(size=(C, 3, 2, 2, 5)), rng.normal(size=(C, 3, 2, 2, 5))
    layer = learned(random_gates(), fan_in=fan_in, aggregation=aggregation)
    binary = gates.draw(np.float32(random_gates()), fan_in, seed=3, step=0).numpy()
    if not training:
        binary = Connectivity.top_k([random_gates()], fan_in).binary_gates(2)
    scale = fan_in if aggregation == "mean" else 1
    of_sum = upstream * (np.einsum("jk,kbhwc->jbhwc", binary, y) > 0)
    closed_form = np.einsum("jbhwc,kbhwc->jk", of_sum, y) / scale
    assert np.abs(closed_form).min() > 1e-3
    np.testing.assert_allclose(gate_gradient(layer, y, upstream, training), closed_form, rtol=1e-4, atol=1e-5)


SOURCES = ((0, 3), (1,), (0, 1, 2))


def random_branch_weights(rows=C):
    return np.random.default_rng(7).uniform(-0.5, 1.0, (rows, C))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("sources", [None, SOURCES])
def test_weights_begin_as_the_mean_to_the_bit(sources, training):
    y = np.random.default_rng(1).normal(size=(C, 2, 3, 3, 5)).astype(np.float32)
    for fan_in in (1, 2, 3, 4):
        mean, weighted = (
            GatedAggregation(fan_in, aggregation, sources=sources, seed=3) for aggregation in ("mean", "weighted")
        )
        np.testing.assert_array_equal(weighted(y, training=training), mean(y, training=training))
        assert weighted.branch_weights.shape == (C if sources is None else 3, C)
        assert weighted.branch_weights.path.endswith("/branch_weights")
    assert not hasattr(mean, "branch_weights")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fan_in", [1, 2, 4])
def test_weights_and_gates_have_the_gradients_of_the_closed_form(fan_in, training):
    rng = np.random.default_rng(2)
    y, upstream = rng.normal(size=(C, 3, 2, 2, 5)), rng.normal(size=(C, 3, 2, 2, 5))
    layer = learned(random_gates(), fan_in=fan_in, aggregation="weighted")
    layer.branch_weights.assign(np.float32(random_branch_weights()))
    binary = gates.draw(np.float32(random_gates()), fan_in, seed=3, step=0).numpy()
    if not training:
        binary = Connectivity.top_k([random_gates()], fan_in).binary_gates(2)
    mixing = oracle.mixing(binary, "weighted", random_branch_weights())
    of_sum = upstream * (np.einsum("jk,kbhwc->jbhwc", mixing, y) > 0)
    of_mixing = np.einsum("jbhwc,kbhwc->jk", of_sum, y)
    with tf.GradientTape() as tape:
        x = layer(y.astype(np.float32), training=training)
        loss = tf.reduce_sum(x * tf.constant(upstream, x.dtype))
    of_gates, of_weights = tape.gradient(loss, [layer.real_gates.value, layer.branch_weights.value])
    np.testing.assert_allclose(of_gates, random_branch_weights() * of_mixing, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_weights, binary * of_mixing, rtol=1e-4, atol=1e-5)
    assert np.abs(of_gates).min() > 1e-4  # also of those not drawn
    assert np.count_nonzero(of_weights) == fan_in * C


@pytest.mark.parametrize("remat", [False, True])
def test_weights_of_a_fixed_wiring_have_the_gradient_of_finite_differences(remat):
    rng = np.random.default_rng(3)
    y, upstream = rng.normal(size=(C, 3, 2, 2, 5)), rng.normal(size=(3, 3, 2, 2, 5))
    binary = oracle.gate_matrices((C, (SOURCES,)))[0]

    def output(branch_weights):
        mixing = oracle.mixing(binary, "weighted", branch_weights)
        return np.maximum(np.einsum("jk,kbhwc->jbhwc", mixing, y), 0)

    start = random_branch_weights(rows=3)
    layer = GatedAggregation(2, "weighted", sources=SOURCES, remat=remat)
    layer.build((C, None, 2, 2, 5))
    layer.branch_weights.assign(np.float32(start))
    with tf.GradientTape() as tape:
        x = layer(y.astype(np.float32))
        if remat:
            x = gates.inputs_and_narrowed(x[1], tf.reshape(x[0], (C, -1, 5)), tf.zeros((3, 5, 1)))[0]
            x = tf.reshape(x, (3, 3, 2, 2, 5))
        loss = tf.reduce_sum(x * tf.constant(upstream, x.dtype))
    np.testing.assert_allclose(x, output(start), rtol=1e-4, atol=1e-5)
    finite = np.zeros((3, C))
    for index in np.ndindex(3, C):
        step = np.zeros((3, C))
        step[index] = 1e-6
        finite[index] = np.sum(upstream * (output(start + step) - output(start - step))) / 2e-6
    assert np.count_nonzero(finite) == 6  # the wired pairs
    np.testing.assert_allclose(tape.gradient(loss, layer.branch_weights.value), finite, rtol=1e-3, atol=1e-3)


def test_there_is_a_weight_for_each_gate_where_blocks_and_branches_differ():
    layer = learned(aggregation="weighted", blocks=3)
    assert layer.branch_weights.shape == layer.real_gates.shape == (3, C)
    np.testing.assert_array_equal(weights_of(layer), learned(blocks=3)(unit_branches(C))[:, 0, 0, 0])


def test_weights_beside_real_valued_gates_are_refused():
    with pytest.raises(ValueError, match=r"gates must be one of \('binary',\). Received: gates='real'"):
        GatedAggregation(2, "weighted", "real")
    with pytest.raises(ValueError, match=r"aggregation must be one of \('mean', 'sum', 'weighted'\). Received"):
        GatedAggregation(2, "shared")


@pytest.mark.parametrize("training", [False, True])
def test_real_gates_weigh_forward_and_backward(training):
    rng = np.random.default_rng(3)
    y, upstream = rng.normal(size=(C, 3, 2, 2, 5)), rng.normal(size=(C, 3, 2, 2, 5))

    def output(real_gates):
        weights = real_gates / real_gates.sum(axis=1, keepdims=True)
        return np.maximum(np.einsum("jk,kbhwc->jbhwc", weights, y), 0)

    start = np.float64(np.float32(random_gates(seed=4)))
    layer = learned(start, gates="real")
    np.testing.assert_allclose(layer(y.astype(np.float32), training=training), output(start), rtol=1e-5, atol=1e-6)
    finite = np.zeros((C, C))
    for index in np.ndindex(C, C):
        step = np.zeros((C, C))
        step[index] = 1e-6
        finite[index] = np.sum(upstream * (output(start + step) - output(start - step))) / 2e-6
    np.testing.assert_allclose(gate_gradient(layer, y, upstream, training), finite, rtol=1e-3, atol=1e-3)
    assert int(layer.step) == 0


def test_real_gates_are_normalised_in_the_forward_pass():
    used = weights_of(learned([[0.2, 0.2, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0.5, 0, 0, 0]], gates="real"))
    np.testing.assert_allclose(used, [[0.5, 0.5, 0, 0], [0.25] * 4, [0.25] * 4, [1, 0, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"fan_in": 1, "seed": 8},
        {"fan_in": 2, "aggregation": "sum", "sources": ((0, 3), (1,), (2,), (0,))},
        {"fan_in": 3, "gates": "real"},
        {"fan_in": 2, "aggregation": "weighted"},
    ],
)
def test_gated_aggregation_round_trip(kwargs):
    layer = GatedAggregation(**kwargs, name="stage2_module1_gate")
    other = round_trip(layer)
    assert other.get_config() == layer.get_config()
    assert (other.sources, other.seed, other.name) == (layer.sources, layer.seed, layer.name)
    np.testing.assert_array_equal(weights_of(other, training=True), weights_of(layer, training=True))


@pytest.mark.parametrize(("field", "value"), [("remat", True), ("blocks", 3)])
def test_what_a_round_trip_keeps_beside(field, value):
    assert getattr(GatedAggregation(1), field) != value
    assert getattr(round_trip(GatedAggregation(1, **{field: value})), field) == value


def test_without_a_seed_there_is_a_random_one():
    layer, other = GatedAggregation(1), GatedAggregation(1)
    assert isinstance(layer.seed, int) and layer.seed != other.seed
    np.testing.assert_array_equal(weights_of(layer, training=True).sum(axis=1), np.ones(C))
    np.testing.assert_array_equal(weights_of(round_trip(other), training=True), weights_of(other, training=True))


def test_more_inputs_than_branches_are_refused():
    with pytest.raises(ValueError, match="fan_in must be between 1 and the 4 branches. Received: fan_in=5"):
        learned(fan_in=5)


@pytest.mark.parametrize(("aggregation", "reduction"), [("mean", np.mean), ("sum", np.sum)])
def test_the_head_reads_the_relu_of_all_branches(aggregation, reduction):
    y = np.random.default_rng(16).normal(size=(3, 2, 4, 4, 5)).astype(np.float32)
    layer = round_trip(BranchMean(aggregation))
    np.testing.assert_allclose(layer(y), np.maximum(reduction(y, axis=0), 0), rtol=1e-5, atol=1e-6)
