"""What a callback of `fit` keeps of the gates is what they were."""

import keras
import numpy as np
import oracle
import pytest
from runs import SMALL

from gated_resnext import GateConnectSGD, GatedBranches, GatedResNeXt, GateRecorder, freeze
from gated_resnext.errors import UserError

IMAGES = oracle.random_images(SMALL.input_shape, batch=24, seed=1)
CLASSES = np.arange(24) % SMALL.classes
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(**changes):
    model = GatedResNeXt(SMALL.replace(depth=11, stages=(1, 1, 1), **changes), None, None, seed=3)
    model.compile(GateConnectSGD(0.02, gate_learning_rate=2.0), LOSS, jit_compile=False)
    return model


def branches(*fan_ins, count=(3, 3)):
    first, rest = count
    images = keras.Input(SMALL.input_shape, dtype="uint8")
    y = GatedBranches([keras.layers.Conv2D(4, 1) for _ in range(first)])(keras.layers.Rescaling(1 / 255)(images))
    for seed, fan_in in enumerate(fan_ins):
        y = GatedBranches([keras.layers.Conv2D(4, 1) for _ in range(rest)], fan_in=fan_in, seed=seed)(y)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Average()(y))
    model = keras.Model(images, keras.layers.Dense(SMALL.classes)(x), name="of_branches")
    model.compile(GateConnectSGD(0.02, gate_learning_rate=2.0), LOSS, jit_compile=False)
    return model


class Every(keras.callbacks.Callback):
    """The gates after every step, by the network's own account."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def on_train_batch_end(self, batch, logs=None):
        self.found[int(self.model.optimizer.iterations)] = self.model.real_gates()


@pytest.mark.parametrize(("every", "steps"), [(None, [0, 3, 6]), (2, [0, 2, 4, 6]), (4, [0, 4, 6]), (99, [0, 6])])
def test_it_keeps_the_gates_at_some_steps(every, steps):
    model, recorder, truth = network(), GateRecorder(every), Every()
    begun = model.real_gates()
    model.fit(IMAGES, CLASSES, 8, epochs=2, verbose=0, callbacks=[recorder, truth])
    assert recorder.steps == steps and len(recorder.real_gates) == 2
    truth.found[0] = begun
    for module, recorded in enumerate(recorder.real_gates):
        assert recorded.shape == (len(steps), 3, 3)
        np.testing.assert_array_equal(recorded, np.stack([truth.found[step][module] for step in steps]))
    assert not np.array_equal(recorder.real_gates[0][0], recorder.real_gates[0][-1])


def test_it_goes_on_in_a_second_fit_and_draws(tmp_path):
    model, recorder = network(), GateRecorder(2)
    for _ in range(2):
        model.fit(IMAGES, CLASSES, 8, epochs=1, verbose=0, callbacks=[recorder])
    assert recorder.steps == [0, 2, 3, 5, 6]
    for name in ("gates.html", "gates.gif", "gates.svg", "gates.png"):
        recorder.draw(tmp_path / name)
    page, still = (tmp_path / "gates.html").read_text(), (tmp_path / "gates.svg").read_text()
    assert model.name in page and 'id="gates-2"' in still and 'id="gates-3"' in still
    with pytest.raises(UserError, match=r"gates\.jpg"):
        recorder.draw(tmp_path / "gates.jpg")


def test_gates_between_branches_of_ones_own(tmp_path):
    model, recorder = branches(1, 1), GateRecorder()
    model.fit(IMAGES, CLASSES, 8, epochs=2, verbose=0, callbacks=[recorder])
    layers = [layer for layer in model.layers if isinstance(layer, GatedBranches)][1:]
    for recorded, layer in zip(recorder.real_gates, layers, strict=True):
        assert recorded.shape == (3, 3, 3) and not np.array_equal(recorded[0], recorded[1])
        np.testing.assert_array_equal(recorded[-1], np.asarray(layer.gate.real_gates))
    recorder.draw(tmp_path / "gates.svg")
    nested = keras.Sequential([keras.Input(SMALL.input_shape, dtype="uint8"), branches(1)])
    nested.compile("sgd", LOSS, jit_compile=False)
    inside = GateRecorder()
    nested.fit(IMAGES, CLASSES, 8, verbose=0, callbacks=[inside])
    assert len(inside.real_gates) == 1
    of_two_kinds, mixed = branches(1, 2), GateRecorder()
    of_two_kinds.fit(IMAGES, CLASSES, 8, verbose=0, callbacks=[mixed])
    assert len(mixed.real_gates) == 2
    with pytest.raises(UserError, match=r"one K\. Received: modules of 3 blocks, K of 1 and 2"):
        mixed.draw(tmp_path / "no.svg")
    wider, more = branches(1, count=(2, 3)), GateRecorder()
    wider.fit(IMAGES, CLASSES, 8, verbose=0, callbacks=[more])
    assert more.real_gates[0].shape == (2, 3, 2)
    with pytest.raises(UserError, match=r"Received: modules of 2 and 3 blocks, K of 1"):
        more.draw(tmp_path / "no.svg")
    assert not (tmp_path / "no.svg").exists()


def test_without_gates_that_learn_it_says_so(tmp_path):
    frozen = freeze(network())
    frozen.compile("sgd", LOSS, jit_compile=False)
    with pytest.raises(UserError, match="has no GatedResNeXt, GatedBranches or GatedAggregation whose gates are"):
        frozen.fit(IMAGES, CLASSES, 8, verbose=0, callbacks=[GateRecorder()])
    with pytest.raises(UserError, match="no gates are recorded: give the recorder to fit"):
        GateRecorder().draw(tmp_path / "gates.svg")
    for every in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="every must be a whole number of steps, at least 1, or None"):
            GateRecorder(every)


def test_a_model_compiled_anew_goes_on_and_another_is_refused():
    model, recorder = network(), GateRecorder(2)
    model.fit(IMAGES, CLASSES, 8, verbose=0, callbacks=[recorder])
    model.compile(GateConnectSGD(0.02, gate_learning_rate=2.0), LOSS, jit_compile=False)
    model.fit(IMAGES, CLASSES, 8, verbose=0, callbacks=[recorder])
    assert recorder.steps == [0, 2, 3, 5, 6]
    np.testing.assert_array_equal(recorder.real_gates[0][-1], model.real_gates()[0])
    with pytest.raises(UserError, match="a recorder is of one model: take a new one for "):
        network().fit(IMAGES, CLASSES, 8, verbose=0, callbacks=[recorder])


def test_what_was_gone_back_from_is_forgotten():
    model, recorder = network(), GateRecorder()
    model.fit(IMAGES, CLASSES, 8, epochs=2, verbose=0, callbacks=[recorder])
    model.optimizer.iterations.assign(3)  # as a backup that is restored
    model.fit(IMAGES, CLASSES, 8, verbose=0, callbacks=[recorder])
    assert recorder.steps == [0, 3, 6]
    np.testing.assert_array_equal(recorder.real_gates[0][-1], model.real_gates()[0])


def test_several_steps_at_once_and_a_strategy():
    import tensorflow as tf

    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = network()
        model.compile(GateConnectSGD(0.02, gate_learning_rate=2.0), LOSS, jit_compile=False, steps_per_execution=2)
    recorder = GateRecorder(1)
    model.fit(IMAGES, CLASSES, 6, verbose=0, callbacks=[recorder])
    assert recorder.steps == [0, 2, 4]
    np.testing.assert_array_equal(recorder.real_gates[0][-1], model.real_gates()[0])


def test_a_model_without_weights_yet_is_told_to_be_built():
    blocks = [[keras.layers.Conv2D(4, 1) for _ in range(3)] for _ in range(2)]
    layers = [GatedBranches(blocks[0]), GatedBranches(blocks[1], fan_in=1)]
    layers = [keras.layers.Rescaling(1 / 255), *layers, keras.layers.Average(), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([*layers, keras.layers.Dense(SMALL.classes)])
    model.compile("sgd", LOSS)
    with pytest.raises(UserError, match="has no weights before its first step: build it, or begin with an Input"):
        model.fit(IMAGES, CLASSES, 8, verbose=0, callbacks=[GateRecorder()])
