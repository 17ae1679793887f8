"""The steps, scores, batches and draws of JAX's engine against plain numpy, from a process where Keras is on JAX."""

import itertools
import os
import pathlib
import subprocess
import sys

import numpy as np
import oracle
import pytest
from test_loop import log_softmax, scores_of

from gated_resnext import arrays
from gated_resnext.data import Images
from gated_resnext.recipes import RECIPES

pytest.importorskip("jax", reason="jax is not installed")

CLASSES, BATCH, STEPS, RATE = 7, 16, 5, 0.5
FOUND = r"""
import dataclasses, sys
import jax, keras
import numpy as np
from gated_resnext import GatedResNeXt, gates, initializers, recipes
from gated_resnext.architecture import Architecture
from gated_resnext.jax_loop import Batches, JaxLoop, Plan, key_of
from gated_resnext.optimizer import GateConnectSGD

assert keras.backend.backend() == "jax"
given, found = dict(np.load(sys.argv[1])), {}
key = jax.random.key(3)

# Batches: 9x7 pixels, padded by 1, cropped to 6x5
for flip in (False, True):
    recipe = recipes.Recipe("made_up", (recipes.Phase(1, 0.1),), batch_size=8, weight_decay=0, pad=1, flip=flip)
    plan, data = Plan(recipe, (6, 5, 2), 25), (given["large"], given["large_labels"], given["fill"], key)
    found[f"orders_{flip}"] = np.stack([plan.order(data, epoch) for epoch in range(3)])
    chosen = found[f"orders_{flip}"][0]
    found[f"crops_{flip}"], found[f"labels_{flip}"] = plan.batch(data, 11, chosen)
    of_step = jax.random.fold_in(jax.random.fold_in(key, 1), 11)
    found[f"draws_{flip}"] = jax.random.uniform(of_step, (3, len(chosen)))

# Initial kernels: rows, cut and folded
for shape in ((3, 50), (2, 3000)):
    found[f"he_{shape[0]}"] = initializers.he_normal(8, seed=4)(shape)
    found[f"he_{shape[0]}_of_keras"] = keras.initializers.RandomNormal(stddev=0.5, seed=4)(shape)
found["glorot"] = initializers.glorot_uniform(3, 50, seed=4)((3, 50))
found["glorot_of_keras"] = keras.initializers.GlorotUniform(seed=4)((3, 50))

found["keys"] = np.stack([jax.random.key_data(key_of(seed)) for seed in (3, 3 + 2**32, 3 + 2**33, 2**63 - 1)])
found["key"] = jax.random.key_data(key)

# A linear network: scores and steps
class Linear(keras.Sequential):
    def __init__(self, activation=None):
        dense = keras.layers.Dense(7, use_bias=False)
        super().__init__([keras.Input((2, 3, 1)), keras.layers.Flatten(), dense])
        if activation:
            self.add(keras.layers.Activation(activation))
        self.classifier_activation = activation
        dense.kernel.assign(given["matrix"])

tests = given["images"], given["test_labels"]
for activation in (None, "softmax"):
    found[f"tested_{activation}"] = np.stack([list(row) for row in JaxLoop(Linear(activation), 16).test(tests)])
sure = Linear("softmax")
sure.layers[-2].kernel.assign(1000 * given["matrix"])
likeliest = given["images"][:1], given["likeliest"][None]
found["sure"] = np.stack([list(row) for row in JaxLoop(sure, 16).test(likeliest)])

class Given(Plan):
    # The batches of the file, in their order
    def order(self, data, epoch):
        return jax.numpy.arange(len(data[1]))

    def batch(self, data, step, chosen):
        return data[0][chosen], data[1][chosen]

def learning(model, batch_size, rate, **options):
    optimizer = GateConnectSGD(rate, gate_learning_rate=0.0, **{"l2": 0.0, "momentum": 0.0, **options})
    optimizer.build(model.trainable_variables)
    return JaxLoop(model, batch_size, optimizer)

plan = Given(recipe, (2, 3, 1), 5)
flat = given["images"].reshape(80, 2, 3, 1), given["labels"].reshape(80)
linear = Linear()
loop, batches = learning(linear, 16, 0.5), Batches(plan, flat, 0)
found["trained"] = np.concatenate([loop.train(batches, 2), loop.train(batches, 3)])
found["kernel"] = np.array(linear.layers[-1].kernel)
batches = Batches(plan, flat, 3)
found["to_the_end"] = [*(len(loop.train(batches, count)) for count in (4, 4)), batches.step]
bad = flat[0].copy()
bad[2 * 16 + 3] = np.inf
batches = Batches(plan, (bad, flat[1]), 0)
found["stopped"], found["next"] = learning(Linear(), 16, 0.5).train(batches, 5), batches.step

# A gated network: two steps at a rate of zero
small = Architecture(
    depth=8, width=2, cardinality=3, fan_in=1, input_shape=(8, 8, 1), stem_filters=4, filters=8, stages=(1, 1)
)
model = GatedResNeXt(small, None, None, seed=0)
found.update({f"before/{name}": value for name, value in model.weights_by_name().items()})
(gate,) = model.gates
found["drawn"] = gates.draw(gate.real_gates.value, 1, seed=gate.seed, step=0)
for steps in (1, 2):
    loop, batches = learning(model, 16, 0.0), Batches(plan, (given["digits"], given["digit_labels"]), steps - 1)
    loop.train(batches, 1)
    found.update({f"after_{steps}/{name}": value for name, value in model.weights_by_name().items()})

# Draws
even = np.full((6, 8), 1 / 8, "float32")
found["draws"] = np.stack(
    [[gates.draw(even, 2, seed=seed, step=step) for step in range(40)] for seed in (1, 2, 2**31 - 1)]
)
row = np.array([[0.5, 0.3, 0.15, 0.05]], "float32")
many = jax.jit(jax.vmap(lambda step: gates.draw(row, 2, seed=5, step=step)[0]))
found["sets"] = many(np.arange(8000))
np.savez(sys.argv[2], **{name: np.asarray(value) for name, value in found.items()})
"""


@pytest.fixture(scope="module")
def given():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(6, CLASSES)).astype(np.float32)
    images = rng.normal(size=(STEPS, BATCH, 2, 3, 1)).astype(np.float32)
    labels = rng.integers(0, CLASSES, (STEPS, BATCH), dtype=np.int32)
    test_labels = labels.copy()
    test_labels[-1, 5:] = -1  # the last batch is filled up
    return {
        "large": rng.integers(0, 256, (200, 9, 7, 2), dtype=np.uint8),
        "large_labels": rng.integers(0, 10, 200, dtype=np.int32),
        "fill": np.array([3, 250], np.uint8),
        "matrix": matrix,
        "images": images,
        "labels": labels,
        "test_labels": test_labels,
        "likeliest": (images[0].reshape(BATCH, 6) @ matrix).argmax(1).astype(np.int32),
        "digits": oracle.random_images((8, 8, 1), batch=80, seed=1),
        "digit_labels": rng.integers(0, 10, 80, dtype=np.int32),
    }


@pytest.fixture(scope="module")
def found(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("jax")
    np.savez(folder / "given.npz", **given)
    done = subprocess.run(
        [sys.executable, "-c", FOUND, folder / "given.npz", folder / "found.npz"],
        env={
            **os.environ,
            "KERAS_BACKEND": "jax",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        },
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(folder / "found.npz"))


def test_an_epoch_has_every_image_once_and_each_another_order(found):
    orders = found["orders_False"]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(200))
    assert not any((one == other).mean() > 0.1 for one, other in itertools.combinations(orders, 2))


@pytest.mark.parametrize("name", ["he_3", "he_2", "glorot"])
def test_initial_kernels_are_those_of_keras(found, name):
    np.testing.assert_array_equal(found[name], found[f"{name}_of_keras"])


def test_seeds_of_any_size_differ(found):
    assert len({key.tobytes() for key in found["keys"]}) == 4
    np.testing.assert_array_equal(found["keys"][0], found["key"])


@pytest.mark.parametrize("flip", [False, True])
def test_a_batch_is_pad_crop_and_mirror(found, given, flip):
    """Image by image, from the same draws."""
    chosen, draws = found[f"orders_{flip}"][0], found[f"draws_{flip}"]
    np.testing.assert_array_equal(found[f"labels_{flip}"], given["large_labels"][chosen])
    mirrored = 0
    for crop, image, (top, left, side) in zip(found[f"crops_{flip}"], given["large"][chosen], draws.T, strict=True):
        padded = np.empty((11, 9, 2), np.uint8)
        padded[:] = given["fill"]
        padded[1:-1, 1:-1] = image
        top, left = int(top * np.float32(6)), int(left * np.float32(5))  # 11 - 6 + 1 and 9 - 5 + 1 places
        expected = padded[top : top + 6, left : left + 5]
        if flip and side < 0.5:
            expected, mirrored = expected[:, ::-1], mirrored + 1
        np.testing.assert_array_equal(crop, expected)
    assert 70 < mirrored < 130 if flip else mirrored == 0


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_scores_of_a_test(found, given, activation):
    logits = given["images"].reshape(STEPS, BATCH, 6) @ given["matrix"]
    expected = [scores_of(*row) for row in zip(logits, given["test_labels"], strict=True)]
    np.testing.assert_allclose(found[f"tested_{activation}"], expected, rtol=1e-5)
    _, top1, top5, images = np.sum(expected, 0)
    assert 0 < top1 < top5 < images == 69


def test_a_probability_of_zero_has_a_finite_loss_and_is_no_miss(found):
    ((loss, top1, top5, images),) = found["sure"]
    assert (top1, top5, images) == (BATCH, BATCH, BATCH) and np.isfinite(loss)


def test_training_steps(found, given):
    matrix, expected = given["matrix"].astype(np.float64), []
    for x, y in zip(given["images"].reshape(STEPS, BATCH, 6), given["labels"], strict=True):
        logits = x @ matrix
        expected.append(scores_of(logits, y))  # before the step
        probabilities = np.exp(log_softmax(logits))
        probabilities[np.arange(BATCH), y] -= 1
        matrix -= RATE * x.T @ probabilities / BATCH
    np.testing.assert_allclose(found["trained"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["kernel"], matrix, rtol=1e-5, atol=1e-6)


def test_a_call_ends_with_its_epoch(found):
    """Of five steps, from the fourth on: two, and of the next as many as were asked for."""
    np.testing.assert_array_equal(found["to_the_end"], [2, 4, 9])


def test_training_stops_at_the_step_whose_loss_is_not_finite(found):
    assert found["stopped"].shape == (3, 4) and found["next"] == 3
    assert np.isfinite(found["stopped"][:2]).all() and not np.isfinite(found["stopped"][2, 0])


def test_a_step_moves_the_statistics_of_batch_norm_and_the_count_of_draws(found, given):
    states = [
        {name.split("/", 1)[1]: value for name, value in found.items() if name.startswith(f"{moment}/")}
        for moment in ("before", "after_1", "after_2")
    ]
    before, after, later = states
    (step,) = [name for name in before if name.endswith("gate/step")]
    assert [int(state[step]) for state in states] == [0, 1, 2]
    mixings = [oracle.mixing(found["drawn"])]
    moving = oracle.forward(before, given["digits"][:BATCH], mixings, training=True).moving
    assert len(moving) == 2 * sum(name.endswith("gamma") for name in before)
    for name, value in moving.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
        assert (later[name] != after[name]).any(), name
    for name in {*before} - {*moving, step}:  # at a rate of zero
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def test_draws_are_of_the_seed_and_the_step_and_of_the_gates(found):
    draws = found["draws"]
    flat = [draw.tobytes() for of_seed in draws for draw in of_seed]
    assert len(set(flat)) == len(flat) == 120
    np.testing.assert_array_equal(draws.sum(-1), 2)
    expected = oracle.without_replacement([0.5, 0.3, 0.15, 0.05], 2)
    observed = [int((found["sets"][:, list(pair)] == 1).all(1).sum()) for pair in expected]
    assert sum(observed) == 8000
    assert oracle.chi_square(observed, 8000 * np.array([*expected.values()])) < 1


@pytest.fixture(scope="module")
def packed(tmp_path_factory, digits_dir):
    folder = tmp_path_factory.mktemp("arrays")
    arrays.write(Images("optical_digits", RECIPES["digits"], digits_dir), pathlib.Path(folder))
    return folder


def test_larger_images_are_tested_at_their_centre(packed):
    images = arrays.ArrayImages("optical_digits", RECIPES["digits"], packed, (6, 3, 1))
    for split in ("train", "test"):
        np.testing.assert_array_equal(images.cropped(split), images.arrays(split)[0][:, 1:7, 2:5])
    centre = images.arrays("train")[0][:, 1:7, 2:5]
    np.testing.assert_allclose(images.mean_image(), centre.mean(0, dtype=np.float64), rtol=1e-6)
