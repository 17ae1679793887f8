import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf

from gated_resnext.aggregation import GatedAggregation
from gated_resnext.architecture import Architecture
from gated_resnext.connectivity import Connectivity
from gated_resnext.layers import BranchPointwise
from gated_resnext.model import GatedResNeXt
from gated_resnext.optimizer import GateConnectSGD

C = 4
SMALL = Architecture(8, 2, 3, 2, classes=4, input_shape=(6, 6, 3), stem_filters=3, filters=4, stages=(1, 1))


def variables():
    """One of each kind: real_gates, branch_weights; kernel, gamma, beta; the classifier's kernel and bias."""
    gate, block, dense = (
        GatedAggregation(2, "weighted", seed=0),
        BranchPointwise(2, 5, seed=1),
        keras.layers.Dense(3, name="classifier"),
    )
    gate.build((C, None, 1, 1, 2))
    block.build((2, None, 3))
    dense.build((None, 5))
    return [*gate.trainable_variables, *block.trainable_variables, *dense.trainable_variables]


def projected(real_gates):
    clipped = np.clip(real_gates, 0, 1)
    total = clipped.sum(axis=1, keepdims=True)
    return np.where(total > 0, clipped / np.where(total > 0, total, 1), 1 / clipped.shape[1])


@pytest.mark.parametrize("l2", [0.0, 0.05])
def test_three_steps_against_numpy(l2):
    optimizer, trained = GateConnectSGD(0.1, gate_learning_rate=0.3, l2=l2, momentum=0.9), variables()
    rng = np.random.default_rng(0)
    for variable in trained[1:]:
        variable.assign(rng.normal(size=variable.shape))
    expected = [np.float64(np.asarray(variable)) for variable in trained]
    velocity = [np.zeros(value.shape) for value in expected]
    kinds = [variable.path.rsplit("/", 1)[-1] for variable in trained]
    assert kinds == ["real_gates", "branch_weights", "kernel", "gamma", "beta", "kernel", "bias"]
    for _ in range(3):
        gradients = [rng.normal(size=value.shape) for value in expected]
        gradients[0][1] = 9.0  # a row that clips to zeros
        optimizer.apply([tf.constant(gradient, tf.float32) for gradient in gradients], trained)
        for i, kind in enumerate(kinds):
            if kind == "real_gates":
                expected[i] = projected(expected[i] - 0.3 * gradients[i])
                continue
            decay = l2 * expected[i] if kind == "kernel" else 0
            velocity[i] = 0.9 * velocity[i] - 0.1 * (gradients[i] + decay)
            expected[i] = expected[i] + velocity[i]
        for variable, value in zip(trained, expected, strict=True):
            np.testing.assert_allclose(variable, value, rtol=1e-4, atol=1e-5, err_msg=variable.path)
    np.testing.assert_array_equal(np.asarray(trained[0])[1], 0.25)
    assert int(optimizer.iterations) == 3


def test_the_defaults_are_the_papers():
    optimizer, trained = GateConnectSGD(), variables()
    before = [np.asarray(variable) for variable in trained]
    gradients = [np.full(variable.shape, 0.01, np.float32) for variable in trained]
    gradients[0] *= np.arange(C) / C  # more alike it would be normalised away
    optimizer.apply([tf.constant(gradient) for gradient in gradients], trained)
    np.testing.assert_allclose(trained[0], projected(before[0] - 0.2 * gradients[0]), rtol=1e-5)
    np.testing.assert_allclose(trained[1], before[1] - 0.1 * 0.01, rtol=1e-5)
    np.testing.assert_allclose(trained[2], before[2] - 0.1 * (0.01 + 5e-4 * before[2]), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(trained[3], before[3] - 0.1 * 0.01, rtol=1e-5)
    assert optimizer.momentum == 0.9


def test_the_rate_of_the_weights_is_not_that_of_the_gates():
    optimizer, trained = GateConnectSGD(0.1, gate_learning_rate=0.3), variables()
    optimizer.build(trained)
    optimizer.learning_rate = 0.0
    before = [np.asarray(variable) for variable in trained]
    gradient = np.random.default_rng(1).normal(size=(C, C)) / 10
    optimizer.apply(
        [tf.constant(gradient, tf.float32), *(tf.ones(variable.shape) for variable in trained[1:])], trained
    )
    np.testing.assert_allclose(trained[0], projected(before[0] - 0.3 * gradient), rtol=1e-5)
    for variable, value in zip(trained[1:], before[1:], strict=True):
        np.testing.assert_array_equal(variable, value)


def test_round_trip():
    optimizer = GateConnectSGD(0.05, gate_learning_rate=0.7, l2=0.01, momentum=0.8)
    other = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert isinstance(other, GateConnectSGD)
    assert other.get_config() == optimizer.get_config()
    assert (other.gate_learning_rate, other.l2, other.momentum) == (0.7, 0.01, 0.8)


def trained_once(gate_learning_rate, connectivity=None):
    """A network before and after one step of `train_on_batch`."""
    model = GatedResNeXt(SMALL, connectivity, seed=2)
    before = model.weights_by_name()
    if connectivity is None:
        before["stage2_module1_gate/real_gates"] = np.random.default_rng(3).dirichlet(np.ones(3), 3).astype(np.float32)
        model.assign_by_name(before)
    optimizer = GateConnectSGD(0.1, gate_learning_rate=gate_learning_rate)
    model.compile(optimizer, "sparse_categorical_crossentropy", run_eagerly=True)
    model.train_on_batch(oracle.random_images(SMALL.input_shape, batch=8, seed=4), np.arange(8) % 4)
    return model, before


def test_gates_do_not_move_at_a_rate_of_zero():
    model, before = trained_once(gate_learning_rate=0.0)
    after = model.weights_by_name()
    np.testing.assert_allclose(model.real_gates()[0], before["stage2_module1_gate/real_gates"], rtol=1e-6)
    assert (after["stage2_module1/expand/kernel"] != before["stage2_module1/expand/kernel"]).any()


def test_gates_move_otherwise_and_stay_on_the_simplex():
    model, before = trained_once(gate_learning_rate=0.2)
    (after,) = model.real_gates()
    assert np.abs(after - before["stage2_module1_gate/real_gates"]).max() > 1e-4
    np.testing.assert_allclose(after.sum(axis=1), 1, rtol=1e-6)
    assert (after >= 0).all()


def test_a_fixed_wiring_has_no_gates_to_learn():
    model, before = trained_once(gate_learning_rate=0.2, connectivity=Connectivity.random(2, 3, 2, seed=0))
    assert not any("gate" in variable.path for variable in (*model.variables, *model.optimizer.variables))
    after = model.weights_by_name()
    trainable = {variable.path for variable in model.trainable_variables}
    assert {name for name in before if (after[name] != before[name]).any()} >= trainable


def test_a_rate_factor_multiplies_the_rate():
    optimizer, trained = GateConnectSGD(0.1, momentum=0.9, l2=0.05), variables()
    trained[3].rate_factor = trained[2].rate_factor = 9.0
    optimizer.build(trained)
    before = [np.float64(np.asarray(variable)) for variable in trained]
    velocity = [np.zeros(value.shape) for value in before]
    for step in range(3):
        optimizer.apply([tf.fill(variable.shape, 0.01 * (step + 1)) for variable in trained], trained)
        for i, factor in ((2, 9), (3, 9), (4, 1)):  # kernel, gamma, beta
            decay = 0.05 * before[i] if i == 2 else 0
            velocity[i] = 0.9 * velocity[i] - factor * 0.1 * (0.01 * (step + 1) + decay)
            before[i] = before[i] + velocity[i]
            np.testing.assert_allclose(trained[i], before[i], rtol=1e-4, atol=1e-6)
