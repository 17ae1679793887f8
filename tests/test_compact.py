"""The compact graph computes the trained network's function for arbitrary wirings."""

import keras
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export import saved_model, tflite
from export.compact import compact
from gated_resnext import Architecture, Connectivity, GatedResNeXt, prune

STOCK = {
    "InputLayer",
    "Rescaling",
    "ZeroPadding2D",
    "Conv2D",
    "ReLU",
    "MaxPooling2D",
    "Add",
    "Concatenate",
    "Split",
    "GlobalAveragePooling2D",
    "Dense",
    "Activation",
}


def shaken(model, seed):
    """The network with random weights, statistics and mean image, none of them at its initial value."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        last = variable.path.rsplit("/", 1)[-1]
        if last in ("gamma", "moving_variance"):
            values = rng.uniform(0.5, 1.5, variable.shape)
            few = values[..., ::5]  # channels of so small a variance that the constant beside it counts
            values[..., ::5] = 0.003 * few if last == "gamma" else rng.choice([0, 1e-6, 1e-5], few.shape)
            variable.assign(values)
        elif last in ("beta", "moving_mean", "bias"):
            variable.assign(rng.normal(0, 0.2, variable.shape))
        elif last == "mean_image":
            variable.assign(rng.uniform(60, 180, variable.shape))
        elif last == "branch_weights":
            variable.assign(rng.uniform(-0.3, 1.0, variable.shape))
        elif last == "real_gates":
            variable.assign(rng.dirichlet(np.ones(variable.shape[1]), variable.shape[0]))
    return model


def wirings(modules=3, cardinality=4):
    block = st.sets(st.integers(0, cardinality - 1), min_size=1).map(sorted).map(tuple)
    module = st.tuples(*[block] * cardinality)
    return st.tuples(*[module] * (modules - 1)).map(lambda sources: Connectivity(cardinality, sources))


def logits(model, images):
    probabilities = np.asarray(model.predict_on_batch(images), np.float64)
    return np.log(probabilities)


def images_for(model, seed=0, count=3):
    return np.random.default_rng(seed).integers(0, 256, (count, *model.input_shape[1:]), np.uint8)


@settings(max_examples=12)
@given(
    wiring=wirings(),
    seed=st.integers(0, 2**31 - 1),
    aggregation=st.sampled_from(["mean", "sum", "weighted"]),
    bundle_channels=st.sampled_from([0, 6, 16]),
)
def test_equals_the_network_for_any_wiring(wiring, seed, aggregation, bundle_channels):
    keras.utils.clear_session()
    arch = Architecture(11, 2, 4, 1, 5, (9, 8, 3), aggregation, stem_filters=4, filters=8)
    model = shaken(GatedResNeXt(arch, wiring, seed=seed), seed)
    images = images_for(model, seed)
    expected, found = logits(model, images), logits(compact(model, bundle_channels=bundle_channels), images)
    np.testing.assert_allclose(found - found[:, :1], expected - expected[:, :1], rtol=1e-4, atol=1e-4)
    assert np.ptp(expected, axis=1).min() > 1e-3  # the classes do differ


@pytest.mark.parametrize("stem", ["conv3", "conv3_pool", "conv7_pool"])
@pytest.mark.parametrize(("aggregation", "fan_in"), [("mean", 1), ("mean", 2), ("weighted", 2), ("shared", 4)])
def test_equals_the_network_for_every_stem_and_kind(stem, aggregation, fan_in):
    arch = Architecture(8, 2, 4, fan_in, 5, (20, 17, 1), aggregation, "binary", stem, 6, 12, stages=(1, 1))
    model = shaken(GatedResNeXt(arch, seed=3), 3)
    images = images_for(model)
    np.testing.assert_allclose(compact(model).predict_on_batch(images), model.predict_on_batch(images), atol=1e-6)


@pytest.mark.parametrize("aggregation", ["mean", "shared"])
def test_has_stock_layers_alone_and_no_weight_twice(aggregation):
    arch = Architecture(11, 2, 4, 4 if aggregation == "shared" else 1, 5, (8, 8, 3), aggregation)
    model = prune(GatedResNeXt(arch, seed=1))
    small = compact(model, bundle_channels=0)
    assert {type(layer).__name__ for layer in small.layers} <= STOCK
    # Batch norm is folded: gamma and beta go, one bias comes, at every convolution.
    blocks, plans = model.wiring().blocks, arch.plan()
    expected = arch.parameters(blocks) - arch.stem_filters
    for module, (plan, count) in enumerate(zip(plans, blocks, strict=True)):
        expected -= count * (2 * plan.width + plan.filters) + (plan.filters if plan.projects else 0)
        if module == arch.modules - 1 or aggregation == "shared":  # one bias for what is only read as a sum
            expected -= (count - 1) * plan.filters
    assert small.count_params() == expected


def test_files_of_a_weighted_network_compute_what_it_does(tmp_path):
    arch = Architecture(11, 2, 4, 2, 5, (9, 8, 3), "weighted", stem_filters=4, filters=8)
    model = shaken(GatedResNeXt(arch, seed=2), 2)
    images, graph = images_for(model), compact(model)
    expected = model.predict_on_batch(images)
    assert np.ptp(expected, axis=0).max() > 1e-3  # the images do matter
    for form, place in ((saved_model, tmp_path / "saved_model"), (tflite, tmp_path / "model.tflite")):
        form.write(graph, place)
        np.testing.assert_allclose(form.runner(place)(images), expected, atol=1e-5)
    # Of every weight in use there is a constant in the graph, and no other factor.
    factors = [
        layer.scale for layer in graph.layers if type(layer).__name__ == "Rescaling" and "weighted" in layer.name
    ]
    used = prune(model)
    wired = [
        gate.branch_weights.numpy()[used.wiring().binary_gates(module) > 0]
        for module, gate in enumerate(used.gates, start=2)
    ]
    np.testing.assert_allclose(np.sort(factors), np.sort(np.concatenate(wired)), rtol=1e-6)


def test_real_valued_gates_have_none():
    model = GatedResNeXt(Architecture(11, 2, 4, 2, 5, (8, 8, 3), gates="real"))
    with pytest.raises(ValueError, match="real-valued"):
        compact(model)


def test_many_terms_are_added_in_a_tree():
    """Keras builds a graph by a recursion as deep as it."""
    arch = Architecture(8, 1, 64, 64, 3, (4, 4, 1), stem_filters=2, filters=4, stages=(2,))
    model = GatedResNeXt(arch, Connectivity.full(2, 64), seed=0)
    model.assign_by_name(oracle.random_weights(model.weights_by_name(), seed=0))
    small = compact(model)
    adds = [layer for layer in small.layers if "_gather" in layer.name]
    assert len(adds) == 63 and max(small._nodes_by_depth) < 30
    images = oracle.random_images(arch.input_shape, batch=4, seed=0)
    np.testing.assert_allclose(small(images), model(images), atol=1e-5)
