import hypothesis
import keras
import numpy as np
import oracle
import pytest
from hypothesis import strategies as st
from keras import layers, ops

import gated_resnext
from gated_resnext.branches import GatedBranches
from gated_resnext.connectivity import Connectivity

FEATURES = 4
X = np.random.default_rng(0).normal(size=(7, FEATURES)).astype(np.float32)


def blocks(count):
    """Dense, a model, and one with statistics, in turns."""
    made = []
    for number in range(count):
        x = keras.Input((FEATURES,))
        made.append(
            [
                layers.Dense(FEATURES),
                keras.Model(x, layers.Add()([x, layers.Dense(FEATURES, use_bias=False)(x)])),
                keras.Sequential([layers.Dense(FEATURES), layers.BatchNormalization()]),
            ][number % 3]
        )
    return made


def shaken(model, seed=0):
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.path.endswith("real_gates"):
            variable.assign(rng.dirichlet(np.ones(variable.shape[1]), variable.shape[0]))
        elif variable.dtype == "float32":
            variable.assign(rng.uniform(0.2, 1.2, variable.shape) * rng.choice([1, 1, 1, -1], variable.shape))
        if variable.path.endswith("moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def chain(first, sources=None, *, blocks_of=(3, 3), fan_in=1, aggregation="mean"):
    """A model of branches, one GatedBranches after another, with a fixed wiring or learned gates."""
    x = keras.Input((FEATURES,))
    y = GatedBranches(blocks(first), name="module1")(layers.Dense(FEATURES, name="stem")(x))
    for number, module in enumerate(sources if sources is not None else blocks_of, start=2):
        y = GatedBranches(
            blocks(module if sources is None else len(module)),
            fan_in,
            aggregation,
            sources=None if sources is None else module,
            seed=number,
            name=f"module{number}",
        )(y)
    return shaken(keras.Model(x, layers.Dense(3, name="head")(layers.Average()(y))))


def differ(model):
    """Whether no ReLU left everything at zero."""
    return np.ptp(np.asarray(model(X)), axis=0).max() > 1e-3


@hypothesis.settings(max_examples=12)
@hypothesis.given(oracle.wirings(modules=st.integers(2, 4), blocks=st.integers(1, 4)), st.sampled_from(["mean", "sum"]))
@hypothesis.example((4, (((0,),) * 4,) * 3), "mean")
@hypothesis.example((3, (((2, 0), (1,), (0, 1, 2)), ((1,), (0, 2)), ((1,),))), "sum")
def test_the_pruned_model_is_the_same_to_the_last_bit(wiring, aggregation):
    keras.utils.clear_session()
    model = chain(*wiring, aggregation=aggregation)
    hypothesis.assume(differ(model))
    pruned = gated_resnext.prune(model)
    np.testing.assert_array_equal(pruned(X), model(X))
    read = oracle.read_by_the_head(wiring)
    assert [len(layer.branches) for layer in pruned.layers if isinstance(layer, GatedBranches)] == list(map(len, read))
    for number, (places, layer) in enumerate(zip(read, model.layers[2:-2], strict=True), start=1):
        kept = pruned.get_layer(f"module{number}").branches
        for branch, place in zip(kept, places, strict=True):
            for value, expected in zip(branch.get_weights(), layer.branches[place].get_weights(), strict=True):
                np.testing.assert_array_equal(value, expected)
    assert gated_resnext.wiring(model) == Connectivity(*wiring)
    assert gated_resnext.wiring(pruned) == Connectivity(*wiring).pruned()


@pytest.mark.parametrize("fan_in", [1, 2])
def test_learned_gates_are_frozen_and_pruned_to_their_top_k(fan_in):
    model = chain(4, blocks_of=(4, 3, 4), fan_in=fan_in)
    frozen, pruned = gated_resnext.freeze(model), gated_resnext.prune(model)
    assert differ(model)
    np.testing.assert_allclose(frozen(X), model(X), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(pruned(X), frozen(X))
    real = [model.get_layer(f"module{number}").gate.real_gates for number in (2, 3, 4)]
    sources = tuple(tuple(map(tuple, np.sort(np.argsort(-np.asarray(each))[:, :fan_in]).tolist())) for each in real)
    assert gated_resnext.wiring(frozen) == gated_resnext.wiring(model) == Connectivity(4, sources)
    assert gated_resnext.wiring(pruned).blocks == tuple(map(len, oracle.read_by_the_head((4, sources))))
    for fixed in (frozen, pruned):
        assert not any("gate" in variable.path.split("/") for variable in fixed.variables)
    assert frozen.count_params() == model.count_params() - sum(np.size(each) + 1 for each in real)
    np.testing.assert_array_equal(gated_resnext.prune(frozen)(X), pruned(X))
    np.testing.assert_array_equal(gated_resnext.prune(pruned)(X), pruned(X))


def test_pruning_leaves_the_given_model_as_it_was(tmp_path):
    model = chain(3, fan_in=1)
    before = model.get_weights()
    pruned = gated_resnext.prune(model)
    for value, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, expected)
    pruned.compile("sgd", "mse")
    pruned.train_on_batch(X, np.zeros((7, 3)))
    pruned.save(tmp_path / "pruned.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "pruned.keras")(X), pruned(X))


READS_TWO = ((0,), (0,), (2,))


def test_what_any_other_layer_reads_stays():
    x = keras.Input((FEATURES,))
    one = GatedBranches(blocks(3), name="one")(x)
    scaled = [layers.Rescaling(2.0, name=f"twice{number}")(each) for number, each in enumerate(one)]
    two = GatedBranches(blocks(3), sources=READS_TWO, name="two")(scaled)
    three = GatedBranches(blocks(2), sources=((3,), (0,)), name="three")([*two, one[1]])
    model = shaken(keras.Model(x, [layers.Average()(three), layers.Dense(2, name="aside")(two[2])]))
    pruned = gated_resnext.prune(model)
    # Of `two`, 0 is read by `three` and 2 aside; they read 0 and 2 of `one`, whose 1 `three` reads.
    assert [len(pruned.get_layer(name).branches) for name in ("one", "two", "three")] == [3, 2, 2]
    assert pruned.get_layer("two").sources == ((0,), (1,)) and pruned.get_layer("three").sources == ((1,), (0,))
    assert {layer.name for layer in pruned.layers} & {"twice0", "twice1", "twice2"} == {"twice0", "twice2"}
    for value, expected in zip(pruned(X), model(X), strict=True):
        np.testing.assert_array_equal(value, expected)
    with pytest.raises(ValueError, match="in a chain three reads all that two gave, in order. Received: inputs="):
        gated_resnext.wiring(model)


def test_a_layer_of_which_nothing_is_read_goes():
    x = keras.Input((FEATURES,))
    one, stem = GatedBranches(blocks(2), name="one")(x), layers.Dense(FEATURES, name="stem")(x)
    aside = GatedBranches(blocks(2), sources=((0,), (1,)), name="aside")(GatedBranches(blocks(2), name="before")(stem))
    last = GatedBranches(blocks(2), sources=((0, 1), (1,)), name="last")([*one, *aside])
    model = shaken(keras.Model(x, layers.Average()(last)))
    pruned = gated_resnext.prune(model)
    assert {"aside", "before", "stem"} <= {layer.name for layer in model.layers}
    assert [layer.name for layer in pruned.layers if layer.weights] == ["one", "last"]
    np.testing.assert_array_equal(pruned(X), model(X))
    np.testing.assert_array_equal(gated_resnext.freeze(model)(X), model(X))


def test_a_layer_may_read_over_one_of_which_less_is_left():
    """Of the branches beside those read, and of a split of one of them, nothing is left to be read."""
    x = keras.Input((FEATURES,))
    one = GatedBranches(blocks(3), name="one")(x)
    two = GatedBranches(blocks(3), sources=((0,), (1,), (2,)), name="two")(one)
    halves = [each for y in two for each in ops.split(layers.Dense(2 * FEATURES)(y), 2, axis=-1)]
    last = GatedBranches(blocks(2), fan_in=1, name="last")([*one, *two, *halves])
    model = shaken(keras.Model(x, layers.Average()(last)))
    gates = np.full((2, 12), 0.01, np.float32)
    for reads, expected in (((0, 0), [1]), ((0, 4), [2, 1]), ((9, 9), [1, 1]), ((0, 11), [2, 1])):
        for block, source in enumerate(reads):
            gates[block] = 0.01
            gates[block, source] = 0.89
        model.get_layer("last").gate.real_gates.assign(gates)
        for _ in range(2):  # and leaves nothing behind in the first model
            pruned = gated_resnext.prune(model)
            np.testing.assert_array_equal(pruned(X), model(X))
            found = [len(layer.branches) for layer in pruned.layers if isinstance(layer, GatedBranches)]
            assert found == [*expected, 2], reads
        assert [len(layer._inbound_nodes) for layer in model.layers if isinstance(layer, GatedBranches)] == [1, 1, 1]


class OfOnesOwn(layers.Dense):
    """A class that Keras has not been told of."""


def test_branches_may_be_of_a_class_of_ones_own():
    x = keras.Input((FEATURES,))
    compiled = keras.Sequential([keras.Input((FEATURES,)), layers.Dense(FEATURES)])

    def of_ones_own(labels, outputs):
        return outputs

    compiled.compile("sgd", loss=of_ones_own)
    y = GatedBranches([OfOnesOwn(FEATURES), OfOnesOwn(FEATURES), compiled])(x)
    y = GatedBranches([OfOnesOwn(FEATURES) for _ in range(2)], fan_in=2, seed=0)(y)
    model = shaken(keras.Model(x, layers.Average()(y)))
    for fixed in (gated_resnext.freeze(model), gated_resnext.prune(model)):
        np.testing.assert_allclose(fixed(X), model(X), rtol=1e-5, atol=1e-6)
        assert all(type(branch) is OfOnesOwn for branch in fixed.layers[-2].branches)


def test_layers_of_one_tensor_may_stand_between():
    x = keras.Input((FEATURES,))
    one = GatedBranches(blocks(3), name="one")(x)
    two = GatedBranches(blocks(3), sources=READS_TWO, name="two")([layers.Rescaling(2.0)(each) for each in one])
    model = shaken(keras.Model(x, layers.Average()(two)))
    assert gated_resnext.wiring(model) == Connectivity(3, (READS_TWO,))
    pruned = gated_resnext.prune(model)
    assert gated_resnext.wiring(pruned).blocks == (2, 3)
    np.testing.assert_array_equal(pruned(X), model(X))


def test_a_nested_model_is_pruned_too():
    inner = chain(3, (((0,), (0,), (0,)),))
    x = keras.Input((FEATURES,))
    model = keras.Model(x, layers.Dense(2)(inner(x)))
    pruned = gated_resnext.prune(model)
    [nested] = [layer for layer in pruned.layers if isinstance(layer, keras.Model)]
    assert gated_resnext.wiring(nested).blocks == (1, 3)
    np.testing.assert_array_equal(pruned(X), model(X))


def test_the_wiring_of_a_nested_chain_is_that_of_the_nested_model():
    inner = chain(3, (((0,), (0,), (0,)),))
    model = keras.Sequential([keras.Input((FEATURES,)), inner, layers.Dense(2)], name="outer")
    with pytest.raises(ValueError, match="the chain of outer is in a model that is one of its layers: give that one"):
        gated_resnext.wiring(model)


def test_a_sequential_model_is_pruned():
    model = keras.Sequential(
        [keras.Input((FEATURES,)), GatedBranches(blocks(3)), GatedBranches(blocks(2), seed=0), layers.Average()]
    )
    shaken(model).layers[1].gate.real_gates.assign([[0.1, 0.2, 0.7]] * 2)
    pruned = gated_resnext.prune(model)
    assert gated_resnext.wiring(model).active == ((2,), (0, 1))
    assert gated_resnext.wiring(pruned).blocks == (1, 2)
    np.testing.assert_allclose(pruned(X), model(X), rtol=1e-6, atol=1e-6)


def called_twice():
    x = keras.Input((FEATURES,))
    layer = GatedBranches(blocks(2))
    return keras.Model(x, layers.Average()(layer(layers.Average()(layer(x)))))


class Subclassed(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize("cut", [gated_resnext.freeze, gated_resnext.prune, gated_resnext.wiring])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: keras.Sequential([keras.Input((2,)), layers.Dense(2)]),
            "made of GatedBranches. Received: <Sequential",
        ),
        (
            lambda: keras.Sequential([layers.Dense(2)]),
            "functional model, or a Sequential one that was built. Received:",
        ),
        (Subclassed, "functional model, or a Sequential one that was built. Received: <Subclassed"),
    ],
)
def test_other_models_are_refused(cut, model, message):
    with pytest.raises(ValueError, match=message):
        cut(model())


def test_a_layer_that_is_called_twice_is_refused():
    with pytest.raises(ValueError, match="pruned where it is called once. Received: <GatedBranches"):
        gated_resnext.prune(called_twice())


def test_a_chain_begins_with_one_tensor():
    inputs = [keras.Input((FEATURES,)) for _ in range(2)]
    model = keras.Model(inputs, layers.Average()(GatedBranches(blocks(2), name="only")(inputs)))
    with pytest.raises(ValueError, match="reads one tensor. Received: a list, in only"):
        gated_resnext.wiring(model)
