import hypothesis
import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from test_aggregation import learned, random_gates, round_trip

from gated_resnext import layers, norm
from gated_resnext.architecture import Architecture
from gated_resnext.dense_block import GatedDenseBlock
from gated_resnext.model import GatedResNeXt

C = 4


@pytest.fixture
def mixed_bfloat16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


# Learned weights of the sum


def test_a_module_without_a_seed_has_a_random_one():
    module, other = (layers.MultiBranchModule(2, 2, 4) for _ in range(2))
    assert isinstance(module.seed, int) and module.seed != other.seed


def test_a_module_needs_the_size_of_its_input():
    with pytest.raises(ValueError, match="height, width and channels must be known. Received: shape="):
        layers.MultiBranchModule(C, 2, 6)(keras.Input((None, None, 3)))


def test_a_module_that_is_not_trainable_from_the_start_keeps_its_statistics():
    module = layers.MultiBranchModule(C, 2, 6, trainable=False, seed=0)
    x = np.random.default_rng(6).normal(size=(2, 6, 6, 3)).astype(np.float32)
    expected = module(x)
    before = module.get_weights()
    np.testing.assert_array_equal(module(x, training=True), expected)
    for one, other in zip(module.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


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


@hypothesis.settings(max_examples=25)
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


@hypothesis.settings(max_examples=40)
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
    whole = {"counted": (0, 2), "synchronized": True, "averaged": 2}
    for fields in ({name: value} for name, value in whole.items()):
        module = layers.MultiBranchModule(3, 2, 8, seed=21, **fields)
        other = round_trip(module)
        assert {name: getattr(other, name) for name in fields} == fields
        assert other.expand.norm.rate_factor == module.expand.norm.rate_factor
        assert other.reduce.synchronized == module.reduce.synchronized


def test_stride_3_is_refused():
    with pytest.raises(ValueError, match="stride must be 1 or 2. Received: stride=3"):
        layers.MultiBranchModule(3, 2, 8, stride=3)


def test_standardize_subtracts_the_mean_image_and_divides_by_255():
    layer = round_trip(layers.Standardize())
    layer.build((None, 4, 5, 3))
    images = oracle.random_images((4, 5, 3), batch=2, seed=17)
    mean_image = np.random.default_rng(18).uniform(0, 255, (4, 5, 3))
    layer.mean_image.assign(mean_image)
    result = layer(images)
    np.testing.assert_allclose(result, (images - mean_image) / 255, atol=1e-6)
    assert result.dtype == "float32"


# Initial weights: docs/deviations.md, row 28


def assert_normal(kernel, deviation):
    """Numbers of that deviation about zero, within 4.5 of the deviations that so many have."""
    kernel = np.asarray(kernel)
    np.testing.assert_allclose(kernel.std(), deviation, rtol=4.5 / np.sqrt(2 * kernel.size))
    np.testing.assert_allclose(kernel.mean(), 0, atol=4.5 * deviation / np.sqrt(kernel.size))


def test_the_stem_and_the_classifier_begin_with_the_deviations_of_the_paper():
    arch = Architecture(8, 4, 2, 1, classes=50, input_shape=(8, 8, 1), stem_filters=128, filters=32, stages=(1, 1))
    model = GatedResNeXt(arch, seed=0)
    assert_normal(model.get_layer("stem_conv").kernel, np.sqrt(2 / (9 * 128)))
    kernel = np.asarray(model.get_layer("classifier").kernel)  # (64, 50), uniform
    limit = np.sqrt(6 / sum(kernel.shape))
    assert 0.99 * limit < np.abs(kernel).max() <= limit
    assert_normal(kernel, limit / np.sqrt(3))


def test_the_convolutions_of_a_dense_block_begin_by_their_outputs():
    block = GatedDenseBlock(2, growth=24, fan_in=3, bottleneck=2, transition=44, seed=0)
    block(np.zeros((1, 4, 4, 40), np.float32))
    found = {weight.path.split("/", 1)[1]: weight for weight in block.trainable_weights if "kernel" in weight.path}
    outputs = {
        "layer1_narrow/kernel": 48, "layer2_narrow/kernel": 48, "layer1_conv/kernel": 9 * 24,
        "layer2_conv/kernel": 9 * 24, "transition/kernel": 44,
    }  # fmt: skip
    assert set(found) == set(outputs)
    for name, fan_out in outputs.items():
        assert_normal(found[name], np.sqrt(2 / fan_out))


@pytest.mark.parametrize("merge", ["none", "sum"])
def test_kernels_begin_with_he_et_als_deviation_by_the_outputs_of_a_block(merge):
    module = layers.MultiBranchModule(8, 16, 64, stride=2, merge=merge, seed=0)
    module.build((4, 4, 4, 32) if merge == "sum" else (8, 4, 4, 4, 32))
    outputs = {"reduce": 16, "conv": 9 * 16, "expand": 64, "project": 64}
    for name, fan_out in outputs.items():
        kernel = np.asarray(getattr(module, name).kernel)
        of_blocks = kernel.reshape(len(kernel), -1)
        # The deviation of n normal numbers has one of 1 / sqrt(2 n) of itself.
        np.testing.assert_allclose(of_blocks.std(1), np.sqrt(2 / fan_out), rtol=4.5 / np.sqrt(2 * of_blocks.shape[1]))
        np.testing.assert_allclose(of_blocks.mean(), 0, atol=4.5 * np.sqrt(2 / fan_out / of_blocks.size))
