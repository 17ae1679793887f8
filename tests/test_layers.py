import functools

import hypothesis
import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from gated_resnext import gates, layers, norm
from gated_resnext.connectivity import Connectivity

settings = functools.partial(hypothesis.settings, deadline=None)
C = 4


@pytest.fixture
def mixed_bfloat16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


def unit_branches(count):
    """Branch k writes 1 in channel k alone, so what block j reads are its weights of the sum."""
    return np.eye(count, dtype=np.float32).reshape(count, 1, 1, 1, count)


def weights_of(layer, training=False, branches=C):
    return np.asarray(layer(unit_branches(branches), training=training))[:, 0, 0, 0]


def learned(real_gates=None, **kwargs):
    layer = layers.GatedAggregation(**{"fan_in": 2, "seed": 3, **kwargs})
    layer.build((C, None, 1, 1, C))
    if real_gates is not None:
        layer.real_gates.assign(np.float32(real_gates))
    return layer


def random_gates(seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(C), C)


def round_trip(layer):
    return keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))


def test_gates_begin_uniform():
    layer = learned()
    np.testing.assert_array_equal(layer.real_gates, np.full((C, C), 0.25))
    assert int(layer.step) == 0


@settings(max_examples=60)
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


def test_symbolic_calls_draw_nothing():
    layer = learned()
    layer(keras.Input(batch_shape=(C, None, 1, 1, C)), training=True)
    assert int(layer.step) == 0


@pytest.mark.parametrize(("aggregation", "values"), [("mean", [0.0, 0.5]), ("sum", [0.0, 1.0])])
def test_mean_divides_by_k_and_sum_is_equation_2(aggregation, values):
    for training in (False, True):
        used = weights_of(learned(random_gates(), aggregation=aggregation), training)
        np.testing.assert_array_equal(np.unique(used), values)
        np.testing.assert_array_equal(np.count_nonzero(used, axis=1), 2)


@pytest.mark.parametrize("aggregation", ["mean", "sum"])
def test_sources_fix_the_wiring(aggregation):
    sources = ((0, 3), (1,), (0, 1, 2))
    layer = layers.GatedAggregation(2, aggregation, sources=sources)
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
    result = layers.GatedAggregation(2, aggregation, sources=sources)(y.astype(np.float32))
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


# Learned weights of the sum

SOURCES = ((0, 3), (1,), (0, 1, 2))


def random_branch_weights(rows=C):
    return np.random.default_rng(7).uniform(-0.5, 1.0, (rows, C))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("sources", [None, SOURCES])
def test_weights_begin_as_the_mean_to_the_bit(sources, training):
    y = np.random.default_rng(1).normal(size=(C, 2, 3, 3, 5)).astype(np.float32)
    for fan_in in (1, 2, 3, 4):
        mean, weighted = (
            layers.GatedAggregation(fan_in, aggregation, sources=sources, seed=3)
            for aggregation in ("mean", "weighted")
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
    layer = layers.GatedAggregation(2, "weighted", sources=SOURCES, remat=remat)
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


def test_weights_beside_real_valued_gates_are_refused():
    with pytest.raises(ValueError, match=r"gates must be one of \('binary',\). Received: gates='real'"):
        layers.GatedAggregation(2, "weighted", "real")
    with pytest.raises(ValueError, match=r"aggregation must be one of \('mean', 'sum', 'weighted'\). Received"):
        layers.GatedAggregation(2, "shared")


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
    layer = layers.GatedAggregation(**kwargs, name="stage2_module1_gate")
    other = round_trip(layer)
    assert other.get_config() == layer.get_config()
    assert (other.sources, other.seed, other.name) == (layer.sources, layer.seed, layer.name)
    np.testing.assert_array_equal(weights_of(other, training=True), weights_of(layer, training=True))


def test_without_a_seed_there_is_a_random_one():
    layer, other = layers.GatedAggregation(1), layers.GatedAggregation(1)
    assert isinstance(layer.seed, int) and layer.seed != other.seed
    np.testing.assert_array_equal(weights_of(layer, training=True).sum(axis=1), np.ones(C))
    np.testing.assert_array_equal(weights_of(round_trip(other), training=True), weights_of(other, training=True))


def test_a_module_without_a_seed_has_a_random_one():
    module, other = (layers.MultiBranchModule(2, 2, 4) for _ in range(2))
    assert isinstance(module.seed, int) and module.seed != other.seed


def test_more_inputs_than_branches_are_refused():
    with pytest.raises(ValueError, match="fan_in must be between 1 and the 4 branches. Received: fan_in=5"):
        learned(fan_in=5)


def test_mixed_precision_keeps_gates_and_statistics_in_float32(mixed_bfloat16):
    gate = learned(random_gates())
    module = layers.MultiBranchModule(C, 2, 6, seed=0)
    rng = np.random.default_rng(5)
    with tf.GradientTape() as tape:
        y = module(gate(rng.normal(size=(C, 8, 4, 4, C)), training=True), training=True)
        loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 2)
    assert y.dtype == "bfloat16"
    weights = gate.weights + module.weights
    kinds = {weight.path.rsplit("/", 1)[-1] for weight in weights if weight.dtype == "float32"}
    assert kinds == {"real_gates", "kernel", "gamma", "beta", "moving_mean", "moving_variance"}
    for weight, gradient in zip(
        gate.trainable_weights + module.trainable_weights,
        tape.gradient(loss, [w.value for w in gate.trainable_weights + module.trainable_weights]),
        strict=True,
    ):
        assert gradient.dtype == tf.float32, weight.path
        assert np.isfinite(gradient).all() and np.any(gradient), weight.path
    for each in (module.reduce.norm, module.conv.norm, module.expand.norm, module.project.norm):
        for statistic in (each.moving_mean, each.moving_variance):
            values = np.asarray(statistic)
            assert np.any(values != values.astype(tf.bfloat16.as_numpy_dtype).astype(np.float32)), statistic.path
    np.testing.assert_array_equal(gate.real_gates, np.float32(random_gates()))


def test_mixed_precision_computes_the_same_function(mixed_bfloat16):
    x = np.random.default_rng(6).normal(size=(2, 6, 6, 3)).astype(np.float32)
    mixed = layers.MultiBranchModule(C, 2, 6, seed=0)
    full = layers.MultiBranchModule(C, 2, 6, seed=0, dtype="float32")
    result, expected = np.float32(mixed(x)), full(x).numpy()
    assert full(x).dtype == "float32"
    assert 0 < np.abs(result - expected).max() < 0.05 * np.abs(expected).max()


def direct_moments(x, kernel, of_mean, of_variance):
    """Moments of x @ kernel in float64, and the gradients of <of_mean, mean> + <of_variance, variance>."""
    x, kernel = np.float64(x), np.float64(kernel)
    z = x @ kernel
    mean, variance = z.mean(axis=1), z.var(axis=1)
    of_z = (of_mean[:, None] + 2 * of_variance[:, None] * (z - mean[:, None])) / x.shape[1]
    return mean, variance, of_z @ kernel.transpose(0, 2, 1), x.transpose(0, 2, 1) @ of_z


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_moments_from_the_narrow_tensor_equal_the_direct_ones(offset):
    rng = np.random.default_rng(7)
    x = (rng.normal(size=(3, 50, 4)) * [1, 2, 0.5, 1] + offset).astype(np.float32)
    kernel = rng.normal(size=(3, 4, 9)).astype(np.float32)
    of_mean, of_variance = rng.normal(size=(3, 9)), rng.normal(size=(3, 9))
    inputs = [tf.constant(x), tf.constant(kernel)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        mean, variance = norm.moments_after(*inputs)
        loss = tf.reduce_sum(mean * np.float32(of_mean)) + tf.reduce_sum(variance * np.float32(of_variance))
    of_x, of_kernel = tape.gradient(loss, inputs)
    expected = direct_moments(x, kernel, of_mean, of_variance)
    for result, reference in zip((mean, variance, of_x, of_kernel), expected, strict=True):
        np.testing.assert_allclose(result, reference, rtol=1e-4, atol=1e-5 * np.abs(reference).max())


@settings(max_examples=25)
@hypothesis.given(
    st.integers(1, 3), st.integers(1, 20), st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**32 - 1)
)
def test_moments_of_any_shape(branches, rows, narrow, wide, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(branches, rows, narrow)).astype(np.float32)
    kernel = rng.normal(size=(branches, narrow, wide)).astype(np.float32)
    mean, variance = norm.moments_after(x, kernel)
    product = np.float64(x) @ np.float64(kernel)
    np.testing.assert_allclose(mean, product.mean(axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance, product.var(axis=1), rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@hypothesis.given(st.integers(1, 3), st.integers(2, 40), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_batch_norm_and_its_gradient_equal_the_formula_in_float64(branches, rows, channels, seed):
    rng = np.random.default_rng(seed)
    layer = norm.BranchNorm()
    layer.build((branches, channels))
    gamma, beta = rng.normal(size=(2, branches, channels)).astype(np.float32)
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    sides = np.where(np.arange(rows) % 2, 1.0, -1.0)[:, None]
    x = (3 + sides + 0.3 * rng.normal(size=(branches, rows, channels))).astype(np.float32)
    upstream = rng.normal(size=x.shape).astype(np.float32)
    with tf.GradientTape() as tape:
        inputs = tf.constant(x)
        tape.watch(inputs)
        y = layer.normalized(inputs, training=True)
        loss = tf.reduce_sum(y * upstream)
    gradients = tape.gradient(loss, [inputs, layer.gamma.value, layer.beta.value])
    x, dy = np.float64(x), np.float64(upstream)
    mean, variance = x.mean(1, keepdims=True), x.var(1, keepdims=True)
    hat = (x - mean) / np.sqrt(variance + 1e-5)
    along = dy - dy.mean(1, keepdims=True) - hat * (dy * hat).mean(1, keepdims=True)
    expected = gamma[:, None] / np.sqrt(variance + 1e-5) * along, (dy * hat).sum(1), dy.sum(1)
    np.testing.assert_allclose(y, gamma[:, None] * hat + beta[:, None], rtol=1e-3, atol=1e-4)
    for result, reference in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(result, reference, rtol=1e-3, atol=1e-4 * np.abs(reference).max() + 1e-5)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * mean[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * variance[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("narrow", "wide"), [(3, 8), (8, 3)])
def test_moving_statistics_have_momentum_nine_tenths_and_biased_variance(narrow, wide):
    rng = np.random.default_rng(8)
    layer = layers.BranchPointwise(2, wide, seed=0)
    mean, variance = np.zeros((2, wide)), np.ones((2, wide))
    for _ in range(3):
        x = rng.normal(size=(2, 7, narrow)).astype(np.float32) + 1
        layer(x, training=True)
        product = np.float64(x) @ np.float64(np.asarray(layer.kernel))
        mean = 0.9 * mean + 0.1 * product.mean(axis=1)
        variance = 0.9 * variance + 0.1 * product.var(axis=1, ddof=0)
    layer(x, training=False)
    np.testing.assert_allclose(layer.norm.moving_mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.norm.moving_variance, variance, rtol=1e-4)


def normalised(z, norm, block, training=False):
    """Batch norm of one block in float64."""
    gamma, beta, mean, variance = (np.float64(np.asarray(variable))[block] for variable in norm.variables)
    if training:
        axes = tuple(range(z.ndim - 1))
        mean, variance = z.mean(axes), z.var(axes)
    return (z - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def randomise(norm, seed):
    rng = np.random.default_rng(seed)
    assert [variable.name for variable in norm.variables] == ["gamma", "beta", "moving_mean", "moving_variance"]
    for variable in norm.variables:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("narrow", "wide"), [(3, 8), (8, 3)])
@pytest.mark.parametrize(("merge", "same_input"), [("none", False), ("sum", False), ("none", True)])
def test_pointwise_convolution_and_norm(narrow, wide, same_input, merge, training):
    layer = layers.BranchPointwise(2, wide, merge, seed=0)
    layer.build((None, narrow))
    randomise(layer.norm, 9)
    x = np.random.default_rng(10).normal(size=(7, narrow) if same_input else (2, 7, narrow)).astype(np.float32)
    product = np.float64(x) @ np.float64(np.asarray(layer.kernel))
    expected = np.stack([normalised(product[j], layer.norm, j, training) for j in range(2)])
    expected = expected.sum(axis=0) if merge == "sum" else expected
    np.testing.assert_allclose(layer(x, training=training), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (8, 5), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_3x3_convolutions_pad_one_on_every_side(stride, size):
    layer = layers.BranchConv3x3(2, 4, stride, seed=0)
    layer.build((None, 3))
    randomise(layer.norm, 11)
    x = np.random.default_rng(12).normal(size=(2, 2, *size, 3)).astype(np.float32)
    result = layer(x).numpy()
    for j in range(2):
        convolved = oracle.convolve(np.float64(x[j]), np.float64(np.asarray(layer.kernel)[j]), stride, padding=1)
        expected = normalised(convolved, layer.norm, j)
        np.testing.assert_allclose(result[j], expected, rtol=1e-4, atol=1e-5)


def test_tensorflows_same_padding_would_differ_at_stride_2():
    layer = layers.BranchConv3x3(1, 1, 2, seed=0)
    layer.build((None, 1))
    layer.kernel.assign(np.arange(9.0).reshape(1, 3, 3, 1, 1))
    layer.norm.moving_variance.assign([[1 - 1e-5]])
    corner = np.zeros((1, 1, 4, 4, 1), np.float32)
    corner[0, 0, 0, 0] = 1
    # Only the middle tap of the first window, 4, sees the corner; padded right and bottom alone, tap 0 would.
    np.testing.assert_allclose(layer(corner)[0, 0, :, :, 0], [[4, 0], [0, 0]], atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 4), (4, 5), (5, 7), (1, 1), (2, 1)])
def test_every_second_row_and_column_and_the_gradient(height, width):
    rng = np.random.default_rng(13)
    x = rng.normal(size=(3, height, width, 2)).astype(np.float32)
    upstream = rng.normal(size=x[:, ::2, ::2].shape).astype(np.float32)
    tensor = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        result = layers._every_second(tensor)
        loss = tf.reduce_sum(result * upstream)
    np.testing.assert_array_equal(result, x[:, ::2, ::2])
    scattered = np.zeros_like(x)
    scattered[:, ::2, ::2] = upstream
    np.testing.assert_array_equal(tape.gradient(loss, tensor), scattered)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("merge", ["none", "sum"])
def test_the_shapes_promised_are_those_that_come(merge, stride):
    for shape in ((2, 7, 6, 4), (2, 8, 5, 8)):
        module = layers.MultiBranchModule(3, 2, 8, stride, merge)
        promised = module.compute_output_spec(keras.KerasTensor((None, *shape[1:]))).shape
        came = module(np.ones(shape, np.float32)).shape
        assert tuple(came) == tuple(2 if size is None else size for size in promised)


@pytest.mark.parametrize(("stride", "channels", "projects"), [(1, 8, False), (2, 8, True), (1, 4, True)])
def test_one_projection_a_module_where_channels_or_stride_change(stride, channels, projects):
    module = layers.MultiBranchModule(3, 2, 8, stride)
    module(np.ones((3, 1, 4, 4, channels), np.float32))
    shapes = [tuple(w.shape) for w in module.trainable_weights if "/project/" in w.path]
    assert shapes == ([(1, channels, 8), (1, 8), (1, 8)] if projects else [])
    assert not any("bias" in weight.path for weight in module.weights)


def test_the_identity_shortcut_carries_what_the_block_reads():
    module = layers.MultiBranchModule(3, 2, 8)
    x = np.random.default_rng(14).normal(size=(3, 2, 4, 4, 8)).astype(np.float32)
    module.build(x.shape)
    module.expand.norm.gamma.assign(np.zeros((3, 8)))
    np.testing.assert_array_equal(module(x), x)  # y = x + F(x) with F = 0, and no ReLU: x has negative values


def test_module_round_trip_and_seeds():
    x = np.random.default_rng(15).normal(size=(1, 4, 4, 3)).astype(np.float32)
    module = layers.MultiBranchModule(3, 2, 8, 2, "sum", seed=21, name="stage2_module1")
    other = round_trip(module)
    assert other.get_config() == module.get_config()
    np.testing.assert_array_equal(other(x), module(x))
    assert np.abs(layers.MultiBranchModule(3, 2, 8, 2, "sum", seed=22)(x) - module(x)).max() > 1e-3


def test_stride_3_is_refused():
    with pytest.raises(ValueError, match="stride must be 1 or 2. Received: stride=3"):
        layers.MultiBranchModule(3, 2, 8, stride=3)


@pytest.mark.parametrize(("aggregation", "reduction"), [("mean", np.mean), ("sum", np.sum)])
def test_the_head_reads_the_relu_of_all_branches(aggregation, reduction):
    y = np.random.default_rng(16).normal(size=(3, 2, 4, 4, 5)).astype(np.float32)
    layer = round_trip(layers.BranchMean(aggregation))
    np.testing.assert_allclose(layer(y), np.maximum(reduction(y, axis=0), 0), rtol=1e-5, atol=1e-6)


def test_standardize_subtracts_the_mean_image_and_divides_by_255():
    layer = round_trip(layers.Standardize())
    layer.build((None, 4, 5, 3))
    images = oracle.random_images((4, 5, 3), batch=2, seed=17)
    mean_image = np.random.default_rng(18).uniform(0, 255, (4, 5, 3))
    layer.mean_image.assign(mean_image)
    result = layer(images)
    np.testing.assert_allclose(result, (images - mean_image) / 255, atol=1e-6)
    assert result.dtype == "float32"
