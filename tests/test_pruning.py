import hypothesis
import numpy as np
import oracle
import pytest
from hypothesis import strategies as st

from gated_resnext.architecture import Architecture
from gated_resnext.connectivity import Connectivity
from gated_resnext.model import GatedResNeXt
from gated_resnext.pruning import freeze, prune, rebuild

SMALL = Architecture(
    14, 2, 4, 2, classes=5, input_shape=(6, 7, 3), stem_filters=3, filters=4, stages=(1, 2, 1)
)  # four modules, of which one has no projection
IMAGES = oracle.random_images(SMALL.input_shape, batch=4, seed=0)
ALL_READ_BLOCK_0 = Connectivity(4, (((0,),) * 4,) * 3)


def network(arch=SMALL, connectivity=None, *, seed=0, activation=None):
    """A network of random weights, statistics and gates."""
    model = GatedResNeXt(arch, connectivity, activation, seed=1)
    model.assign_by_name(oracle.random_weights(model.weights_by_name(), seed=seed))
    return model


def counted(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables if not v.path.endswith("/real_gates"))


def images_matter(model):
    """Whether no ReLU left everything at zero."""
    outputs = np.asarray(model(IMAGES))
    return outputs.std(axis=0).max() > 1e-3 * np.abs(outputs).max()


def assert_same_function(one, other):
    assert images_matter(other)
    result, expected = np.asarray(one(IMAGES)), np.asarray(other(IMAGES))
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@hypothesis.settings(max_examples=8)
@hypothesis.given(
    oracle.wirings(modules=st.just(4), blocks=st.integers(1, 4)),
    st.sampled_from(["mean", "sum", "weighted"]),
    st.integers(0, 2**32 - 1),
)
@hypothesis.example((4, (((0,),) * 4,) * 3), "mean", 1)
@hypothesis.example((3, (((2, 0), (1,), (0, 1, 2)), ((1,), (0, 2)), ((1,),))), "sum", 2)
@hypothesis.example((3, (((2, 0), (1,), (0, 1, 2)), ((1,), (0, 2)), ((1,),))), "weighted", 3)
def test_the_pruned_network_is_the_same_function_and_no_larger_than_it_says(wiring, aggregation, seed):
    arch = SMALL.replace(aggregation=aggregation)
    model = network(arch, Connectivity(*wiring), seed=seed)
    hypothesis.assume(images_matter(model))
    pruned = prune(model)
    assert_same_function(pruned, model)
    blocks = tuple(map(len, oracle.read_by_the_head(wiring)))
    assert pruned.connectivity.blocks == blocks
    assert counted(pruned) == arch.parameters(blocks)
    # Against the oracle too, which prunes nothing.
    weights = model.weights_by_name()
    mixings = [
        oracle.mixing(matrix, aggregation, weights.get(f"{plan.name}_gate/branch_weights"))
        for plan, matrix in zip(arch.plan()[1:], oracle.gate_matrices(wiring), strict=True)
    ]
    logits = oracle.forward(model.weights_by_name(), IMAGES, mixings, aggregation=aggregation).logits
    np.testing.assert_allclose(pruned(IMAGES), logits, rtol=0, atol=1e-4 * np.abs(logits).max())


def test_unused_blocks_take_with_them_those_that_they_alone_read():
    # Of module 4, all blocks read blocks 0 and 1 of module 3; these read block 3 of module 2, which reads block 1.
    wiring = Connectivity(
        4,
        (
            ((0,), (2,), (3,), (1,)),
            ((3,), (3,), (0, 1), (1, 2)),
            ((0, 1), (0,), (1,), (0, 1)),
        ),
    )
    model = network(connectivity=wiring)
    pruned = prune(model)
    assert pruned.connectivity == Connectivity(1, (((0,),), ((0,), (0,)), ((0, 1), (0,), (1,), (0, 1))))
    assert_same_function(pruned, model)
    before, after = model.weights_by_name(), pruned.weights_by_name()
    for module, kept in (("stage1_module1", [1]), ("stage2_module1", [3]), ("stage2_module2", [0, 1])):
        for layer in ("reduce", "conv", "expand"):
            for part in ("kernel", "norm/gamma", "norm/beta", "norm/moving_mean", "norm/moving_variance"):
                name = f"{module}/{layer}/{part}"
                np.testing.assert_array_equal(after[name], before[name][kept], err_msg=name)
    for name in ("stage2_module1/project/kernel", "classifier/kernel", "stem_conv/kernel", "standardize/mean_image"):
        np.testing.assert_array_equal(after[name], before[name])


def test_a_learned_network_is_pruned_to_its_top_k():
    model = network(SMALL.replace(fan_in=1), seed=3)
    pruned = prune(model)
    # Every block reads its largest gate.
    sources = tuple(tuple((int(k),) for k in real.argmax(axis=1)) for real in model.real_gates())
    assert pruned.connectivity.blocks == tuple(map(len, oracle.read_by_the_head((4, sources))))
    assert sum(pruned.connectivity.blocks) < 16
    assert pruned.real_gates() == []
    assert counted(pruned) == SMALL.parameters(pruned.connectivity.blocks) < counted(model)
    assert_same_function(pruned, model)


def test_pruning_leaves_the_given_network_as_it_was():
    model = network(connectivity=ALL_READ_BLOCK_0)
    before = model.weights_by_name()
    prune(model)
    assert model.connectivity == ALL_READ_BLOCK_0
    for name, value in model.weights_by_name().items():
        np.testing.assert_array_equal(value, before[name])


def test_pruning_again_changes_nothing():
    pruned = prune(network(connectivity=ALL_READ_BLOCK_0))
    again = prune(pruned)
    assert again.connectivity == pruned.connectivity
    weights = pruned.weights_by_name()
    assert set(again.weights_by_name()) == set(weights)
    for name, value in again.weights_by_name().items():
        np.testing.assert_array_equal(value, weights[name])


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_the_head_stays_what_it_was(activation):
    model = network(connectivity=ALL_READ_BLOCK_0, activation=activation)
    assert prune(model).classifier_activation == activation
    assert_same_function(prune(model), model)


@pytest.mark.parametrize("changes", [{"aggregation": "shared", "fan_in": 4}, {"gates": "real"}])
def test_networks_whose_blocks_are_all_read_come_back_as_they_are(changes):
    model = network(SMALL.replace(**changes))
    assert prune(model) is model
    assert freeze(model) is model


def test_freezing_keeps_the_function_and_all_blocks():
    model = network(SMALL, seed=4)
    frozen = freeze(model)
    assert_same_function(frozen, model)
    assert frozen.connectivity == model.wiring()
    assert frozen.connectivity.blocks == (4, 4, 4, 4)
    for j, real in enumerate(model.real_gates()):
        best = (np.argsort(np.argsort(-real, axis=1), axis=1) < SMALL.fan_in).astype(float)
        np.testing.assert_array_equal(frozen.connectivity.binary_gates(j + 2), best)
    assert frozen.real_gates() == [] and not any("gate" in name for name in frozen.weights_by_name())
    assert counted(frozen) == counted(model) == SMALL.parameters()
    assert freeze(frozen) is frozen


def test_freezing_and_pruning_take_over_the_weights_of_the_sums():
    arch = SMALL.replace(aggregation="weighted", fan_in=1)
    model = network(arch, seed=11)
    frozen, pruned, before = freeze(model), prune(model), model.weights_by_name()
    assert_same_function(frozen, model)
    assert_same_function(pruned, model)
    names = [name for name in before if name.endswith("/branch_weights")]
    assert len(names) == 3 and [n for n in frozen.weights_by_name() if "_gate/" in n] == names
    active = model.wiring().active
    assert sum(map(len, active)) < 16
    for number, name in enumerate(names):
        np.testing.assert_array_equal(frozen.weights_by_name()[name], before[name])
        rows = before[name][list(active[number + 1])]
        np.testing.assert_array_equal(pruned.weights_by_name()[name], rows[:, list(active[number])])
    assert counted(pruned) == arch.parameters(pruned.connectivity.blocks)


def test_freezing_then_pruning_is_pruning():
    model = network(SMALL.replace(fan_in=1), seed=5)
    one, other = prune(freeze(model)), prune(model)
    assert one.connectivity == other.connectivity
    np.testing.assert_array_equal(one(IMAGES), other(IMAGES))


def test_a_pruned_network_still_learns():
    pruned = prune(network(connectivity=ALL_READ_BLOCK_0))
    before = pruned.weights_by_name()
    pruned(IMAGES, training=True)
    moved = [name for name, value in pruned.weights_by_name().items() if (value != before[name]).any()]
    assert moved == [name for name in before if "/moving_" in name]


@pytest.mark.parametrize(
    ("arch", "wiring"), [(SMALL, ALL_READ_BLOCK_0), (SMALL, None), (SMALL.replace(gates="real"), None)]
)
def test_rebuilding_changes_the_head_alone(arch, wiring):
    model = network(arch, wiring, activation="softmax")
    logits = rebuild(model, classifier_activation=None)
    assert logits.wiring() == model.wiring()
    for name, value in model.weights_by_name().items():
        np.testing.assert_array_equal(logits.weights_by_name()[name], value, err_msg=name)
    powers = np.exp(np.float64(logits(IMAGES)))
    np.testing.assert_allclose(model(IMAGES), powers / powers.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-7)
