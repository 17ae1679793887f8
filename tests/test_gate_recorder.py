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


def branches(*fan_ins, count=3):
    images = keras.Input(SMALL.input_shape, dtype="uint8")
    y = GatedBranches([keras.layers.Conv2D(4, 1) for _ in range(count)])(keras.layers.Rescaling(1 / 255)(images))
    for seed, fan_in in enumerate(fan_ins):
        y = GatedBranches([keras.layers.Conv2D(4, 1) for _ in range(count)], fan_in=fan_in, seed=seed)(y)
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
    assert [gates.shape for gates in recorder.real_gates] == [(3, 3, 3)] * 2
    recorder.draw(tmp_path / "gates.svg")
    nested = keras.Sequential([keras.Input(SMALL.input_shape, dtype="uint8"), branches(1)])
    nested.compile("sgd", LOSS, jit_compile=False)
    inside = GateRecorder()
    nested.fit(IMAGES, CLASSES, 8, verbose=0, callbacks=[inside])
    assert len(inside.real_gates) == 1
    of_two_kinds, mixed = branches(1, 2), GateRecorder()
    of_two_kinds.fit(IMAGES, CLASSES, 8, verbose=0, callbacks=[mixed])
    assert len(mixed.real_gates) == 2
    with pytest.raises(UserError, match=r"one number of blocks and one K\. Received: \[\(3, 3\)\] and K of \[1, 2\]"):
        mixed.draw(tmp_path / "no.svg")
    assert not (tmp_path / "no.svg").exists()


def test_without_gates_that_learn_it_says_so(tmp_path):
    frozen = freeze(network())
    frozen.compile("sgd", LOSS, jit_compile=False)
    with pytest.raises(UserError, match="has no gates that learn: its wiring is fixed, or it has none"):
        frozen.fit(IMAGES, CLASSES, 8, verbose=0, callbacks=[GateRecorder()])
    with pytest.raises(UserError, match="no gates are recorded: give the recorder to fit"):
        GateRecorder().draw(tmp_path / "gates.svg")
    for every in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="every must be a whole number of steps, at least 1, or None"):
            GateRecorder(every)
