"""Steps that XLA compiles: those of TensorFlow's kernels to rounding, resumable, and not mixed with them."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from runs import SMALL, Photographed, assert_same_end, contents, images_of, newest, small_run

from gated_resnext import GateConnectSGD, GatedResNeXt, files, trainer
from gated_resnext.connectivity import Connectivity
from gated_resnext.errors import UserError
from gated_resnext.loop import TensorFlowEngine

# The wiring learned in 4 steps, then fixed for 4.
RUN = small_run((0.4, 0.1, 0.2), (0.4, 0.1))


def stepped(jit_compile, precision):
    """The scores of three steps of a fixed wiring, which draws nothing, and the weights after them."""
    rng = np.random.default_rng(0)
    wiring = Connectivity.random(SMALL.modules, SMALL.cardinality, SMALL.fan_in, seed=0)
    model = GatedResNeXt(SMALL, wiring, classifier_activation=None, precision=precision, seed=0)
    optimizer = GateConnectSGD(0.1, l2=5e-4, momentum=0.9)
    if precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    loop = TensorFlowEngine(jit_compile=jit_compile).loop(model, 32, optimizer)
    images = rng.integers(0, 256, (3, 32, 8, 8, 1)).astype(np.uint8)
    labels = rng.integers(0, 10, (3, 32)).astype(np.int32)
    batches = iter(tf.data.Dataset.from_tensor_slices((images, labels)))
    graph = loop._train.get_concrete_function(batches, tf.constant(3)).graph.as_graph_def()
    assert any(function.attr["_XlaMustCompile"].b for function in graph.library.function) == jit_compile
    scores = loop.train(batches, 3)
    return scores, [weight.numpy() for weight in model.weights]


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-4), ("mixed_bfloat16", 3e-2), ("mixed_float16", 3e-2)]
)
def test_a_step_is_that_of_the_kernels(precision, tolerance):
    (scores, weights), (expected_scores, expected) = stepped(True, precision), stepped(False, precision)
    np.testing.assert_allclose(scores[:, 0], expected_scores[:, 0], rtol=tolerance)  # the losses
    # The median: where a rounding carries the input of a ReLU over zero, a few weights move more.
    differences = [np.abs(weight - other).ravel() for weight, other in zip(weights, expected, strict=True)]
    assert np.median(np.concatenate(differences)) < (1e-6 if precision == "float32" else 1e-3)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, digits_dir):
    """A finished workdir; beside it `after_step_4`, as it was then."""
    folder = tmp_path_factory.mktemp("compiled") / "small"
    Photographed(RUN, folder, images_of(RUN, digits_dir), TensorFlowEngine(jit_compile=True)).run_phases()
    return folder


@pytest.mark.slow
def test_resumed_equals_uninterrupted(compiled, digits_dir, tmp_path):
    folder = shutil.copytree(compiled.with_name("after_step_4"), tmp_path / "small")
    assert newest(folder)["place"]["step"] == 4
    result = trainer.train(RUN, folder, data_dir=digits_dir, jit_compile=True)
    assert result["jit_compile"] is True
    assert_same_end(folder, compiled)


def test_it_goes_on_as_it_began(compiled, digits_dir, tmp_path):
    folder = shutil.copytree(compiled.with_name("after_step_4"), tmp_path / "small")
    before = contents(folder)
    with pytest.raises(UserError, match="the run began with --jit_compile=True; go on with that"):
        trainer.train(RUN, folder, data_dir=digits_dir)
    assert contents(folder) == before


@pytest.mark.parametrize("began", ["a backend", "nothing"])  # what it knows of its arithmetic
def test_a_checkpoint_of_before_there_was_a_choice_is_of_the_kernels(compiled, digits_dir, tmp_path, began):
    folder = shutil.copytree(compiled.with_name("after_step_4"), tmp_path / "small")
    for path in (folder / "checkpoints").glob("*.npz"):
        state = files.read_arrays(path)
        place = json.loads(str(state["place"]))
        if began == "a backend":
            del place["arithmetic"]["jit_compile"]
        else:
            del place["arithmetic"]
        files.write_arrays(path, {**state, "place": np.array(json.dumps(place))})
    with pytest.raises(UserError, match="the run began with --jit_compile=False; go on with that"):
        trainer.train(RUN, folder, data_dir=digits_dir, jit_compile=True)
    assert trainer.train(RUN, folder, data_dir=digits_dir)["jit_compile"] is False


def test_several_replicas_are_refused(digits_dir, tmp_path, monkeypatch):
    strategy = tf.distribute.get_strategy()
    monkeypatch.setattr(type(strategy), "num_replicas_in_sync", 2)
    with pytest.raises(UserError, match="--jit_compile is for one device and there are 2 replicas"):
        trainer.train(RUN, tmp_path / "small", data_dir=digits_dir, strategy=strategy, jit_compile=True)
    assert not (tmp_path / "small").exists()
