"""What a run says reaches the networks that train: its recipe, its seed, its options, the rates of each phase."""

import dataclasses

import keras
import numpy as np
import pytest
from runs import SMALL, recipe_of, small_run

from gated_resnext import phase_networks, trainer
from gated_resnext.connectivity import Connectivity
from gated_resnext.loop import TensorFlowEngine
from gated_resnext.model import GatedResNeXt
from gated_resnext.optimizer import GateConnectSGD
from gated_resnext.phase_networks import Options, PhaseNetworks, state_of

RECIPE = dataclasses.replace(recipe_of((1, 0.1, 0.3), (1, 0.05)), weight_decay=1e-3, momentum=0.5)
WIRING = Connectivity.random(2, 3, 1, seed=4)


RUN = dataclasses.replace(small_run((1, 0.1)), recipe=RECIPE)
RUNS = {
    "learned": RUN,
    "given": RUN.with_wiring(WIRING),
    "full": dataclasses.replace(RUN, wiring="full", architecture=SMALL.replace(fan_in=3)),
}


def mean_image():
    return np.full(SMALL.input_shape, 7.0, np.float32)


def networks(run, **options):
    return PhaseNetworks(run, TensorFlowEngine(), mean_image, Options(**options))


def first_loop(found):
    return found.loop(found.run.recipe.phases[0], 0.1, None, fresh=True)


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_the_optimizer_has_the_numbers_of_the_recipe(kind, precision):
    optimizer = first_loop(networks(RUNS[kind], precision=precision)).optimizer
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (precision == "mixed_float16")
    inner = optimizer.inner_optimizer if scaled else optimizer
    assert isinstance(inner, GateConnectSGD)
    assert (inner.l2, inner.momentum, inner.gate_learning_rate) == (1e-3, 0.5, 0.3)
    assert float(keras.ops.convert_to_numpy(optimizer.learning_rate)) == np.float32(0.1)


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_begins_with_the_weights_of_its_seed_and_the_mean_image(kind):
    found = networks(dataclasses.replace(RUNS[kind], seed=7))
    weights = {**state_of(first_loop(found)), **found.unused}
    whole = GatedResNeXt(found.run.architecture, found.wiring, None, seed=7, name="small").weights_by_name()
    of_another = GatedResNeXt(found.run.architecture, found.wiring, None, seed=8, name="small").weights_by_name()
    name = "stem_conv/kernel"
    np.testing.assert_array_equal(weights[name], whole[name])
    assert (weights[name] != of_another[name]).any()
    np.testing.assert_array_equal(weights["classifier/kernel"], whole["classifier/kernel"])
    np.testing.assert_array_equal(weights["standardize/mean_image"], mean_image())


def test_gates_draw_from_the_seed_of_the_run():
    seeds = []
    for seed in (7, 8, 7):
        model = first_loop(networks(dataclasses.replace(RUNS["learned"], seed=seed))).model
        seeds.append([gate.seed for gate in model.gates])
    assert seeds[0] == seeds[2] != seeds[1]


def test_each_phase_has_the_rate_of_its_gates():
    """Two phases that learn the gates at different rates, and real-valued gates, which no phase freezes."""
    for architecture in (SMALL, SMALL.replace(gates="real")):
        run = small_run((1, 0.1, 0.2), (1, 0.1, 5.0), (1, 0.1), architecture=architecture)
        found, state, rates = networks(run), None, []
        for phase in run.recipe.phases:
            if phase.gate_learning_rate == 0:
                state, _ = found.freeze(state)
            loop = found.loop(phase, 0.1, state, fresh=True)
            if loop.model.real_gates():
                rates.append(loop.optimizer.gate_learning_rate)
            state = state_of(loop)
        assert rates == ([0.2, 5.0] if architecture.has_binary_gates else [0.2, 5.0, 0.0])


def test_what_a_training_is_asked_for_reaches_its_networks(digits_dir, tmp_path, monkeypatch):
    made = []

    class Watched(GatedResNeXt):
        def __init__(self, *args, precision, synchronized=False, remat=False, **options):
            made.append((precision, synchronized, remat))
            super().__init__(*args, precision=precision, synchronized=synchronized, remat=remat, **options)

    monkeypatch.setattr(phase_networks, "GatedResNeXt", Watched)
    run = small_run((0.1, 0.1, 0.2), (0.1, 0.1))
    options = {"precision": "mixed_bfloat16", "sync_batch_norm": True, "remat": True}
    trainer.train(run, tmp_path / "run", data_dir=digits_dir, **options)
    assert made == [("mixed_bfloat16", True, True)] * 2 + [("float32", True, False)]
    made.clear()
    trainer.train(run, tmp_path / "default", data_dir=digits_dir)
    assert set(made) == {("float32", False, False)}
