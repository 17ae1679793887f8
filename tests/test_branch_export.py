"""A model of one's own becomes files as a GatedResNeXt does."""

import json

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema_fb
from keras import layers

import gated_resnext
from export import saved_model, tflite
from export.shipping import Probe, ship
from gated_resnext.architecture import Architecture
from gated_resnext.branches import GatedBranches
from gated_resnext.dense_block import GatedDenseBlock
from gated_resnext.errors import UserError
from gated_resnext.model import GatedResNeXt

SHAPE, CLASSES = (8, 8, 2), 5
IMAGES = oracle.random_images(SHAPE, batch=40, seed=0)


def blocks():
    pool = [layers.AveragePooling2D(3, 1, "same"), layers.Conv2D(6, 1)]
    return [
        layers.Conv2D(6, 3, padding="same"),
        keras.Sequential([layers.SeparableConv2D(6, 3, padding="same"), layers.BatchNormalization()]),
        keras.Sequential([*pool, layers.Dropout(0.5, seed=1)]),
    ]


@pytest.fixture(scope="module")
def model():
    """Of module 1, block 1 alone is read; of module 2, blocks 0 and 2."""
    keras.utils.set_random_seed(1)
    images = keras.Input(SHAPE, dtype="uint8")
    y = GatedBranches(blocks(), name="one")(layers.Rescaling(1 / 255)(images))
    y = GatedBranches(blocks(), fan_in=1, seed=1, name="two")(y)
    y = GatedBranches(blocks(), fan_in=2, seed=2, name="three")(y)
    x = layers.GlobalAveragePooling2D()(layers.Average()(y))
    model = keras.Model(images, layers.Dense(CLASSES, activation="softmax")(x), name="own")
    model.get_layer("two").gate.real_gates.assign([[0.2, 0.5, 0.3]] * 3)
    model.get_layer("three").gate.real_gates.assign([[0.5, 0.1, 0.4]] * 3)
    model.layers[-1].set_weights([np.random.default_rng(2).normal(0, 20, (6, CLASSES)), np.zeros(CLASSES)])
    return model


def test_the_files_compute_what_the_trained_model_does(model, tmp_path):
    expected = model.predict_on_batch(IMAGES)
    assert np.ptp(expected, axis=0).max() > 1e-2
    formats = ["saved_model", "tflite", "tflite_int8"]
    probe = Probe(IMAGES, expected.argmax(-1), "images of random pixels", samples=IMAGES)
    shipped = ship(model, tmp_path / "own", probe, formats=formats, max_top1_drop=25)
    assert shipped.folder == tmp_path / "own" / "1"
    receipt = json.loads((shipped.folder / "receipt.json").read_text())
    assert receipt["blocks"] == [3, 3, 3] and receipt["blocks_pruned"] == [1, 2, 3]
    conv, pool = (9 * 2 + 1) * 6, (2 + 1) * 6  # of module 1
    assert receipt["parameters"] - receipt["parameters_pruned"] == conv + pool + 9 * 6 + 6 * 6 + 6 + 12
    assert [check["form"] for check in receipt["checks"]] == ["pruned", *formats]
    for check in receipt["checks"][:3]:
        assert check["max_difference"] < 1e-5 and check["top1"] == 1
    np.testing.assert_allclose(saved_model.runner(shipped.folder)(IMAGES), expected, atol=1e-5)
    np.testing.assert_allclose(tflite.runner(shipped.folder / "model.tflite")(IMAGES), expected, atol=1e-5)


def test_the_graphs_have_nothing_of_the_training(model, tmp_path):
    pruned = gated_resnext.prune(model)
    saved_model.write(pruned, tmp_path / "saved")
    graph = tf.saved_model.load(str(tmp_path / "saved")).signatures["serving_default"].graph.as_graph_def()
    kinds = {node.op for nodes in (graph.node, *(f.node_def for f in graph.library.function)) for node in nodes}
    assert "Conv2D" in kinds
    assert not [kind for kind in kinds if any(word in kind for word in ("Random", "TopK", "OneHot", "Assign"))]
    tflite.write(pruned, tmp_path / "model.tflite")
    content = schema_fb.ModelT.InitFromObj(
        schema_fb.Model.GetRootAs(bytearray((tmp_path / "model.tflite").read_bytes()), 0)
    )
    codes = {max(code.builtinCode, code.deprecatedBuiltinCode) for code in content.operatorCodes}
    builtin = schema_fb.BuiltinOperator
    assert builtin.CONV_2D in codes and builtin.CUSTOM not in codes and builtin.TOPK_V2 not in codes


def float_pixels():
    x = keras.Input(SHAPE)
    y = GatedBranches([layers.Flatten()])(x)
    return keras.Model(x, layers.Dense(CLASSES)(y[0]))


def maps():
    x = keras.Input(SHAPE, dtype="uint8")
    return keras.Model(x, GatedBranches([layers.Conv2D(3, 1)])(layers.Rescaling(1.0)(x)))


class Subclassed(keras.Model):
    def call(self, images):
        return images


@pytest.mark.parametrize(
    ("other", "received"),
    [(float_pixels, "dtype=float32"), (maps, r"outputs=\[<KerasTensor"), (Subclassed, r"inputs=\[\], outputs=\[\]")],
)
def test_other_models_are_refused(other, received, tmp_path):
    probe = Probe(IMAGES, None, "images of random pixels")
    with pytest.raises(UserError, match=rf"begin it with keras.Input\(shape, dtype='uint8'\)\. Received: .*{received}"):
        ship(other(), tmp_path / "own", probe)
    assert not list(tmp_path.iterdir())


class Unregistered(layers.Layer):
    """A branch of a class that Keras does not know by name."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 6), name="kernel")

    def call(self, x):
        return keras.ops.matmul(x, self.kernel)


def test_branches_of_a_class_of_ones_own_become_int8_too(tmp_path):
    images = keras.Input(SHAPE, dtype="uint8")
    y = GatedBranches([Unregistered(), layers.Conv2D(6, 1)])(layers.Rescaling(1 / 255)(images))
    y = GatedBranches([Unregistered(), layers.Conv2D(6, 1)], sources=((0,), (0,)))(y)
    x = layers.GlobalAveragePooling2D()(layers.Average()(y))
    model = keras.Model(images, layers.Dense(CLASSES, activation="softmax")(x), name="own")
    labels = np.asarray(model(IMAGES)).argmax(-1)
    probe = Probe(IMAGES, labels, "images of random pixels", samples=IMAGES)
    receipt = ship(model, tmp_path / "own", probe, formats=["tflite", "tflite_int8"], max_top1_drop=30).receipt
    assert [check["form"] for check in receipt["checks"]] == ["pruned", "tflite", "tflite_int8"]
    assert receipt["blocks_pruned"] == [1, 2] and receipt["versions"].startswith("gated_resnext ")


def test_a_model_that_holds_a_network_is_shipped(tmp_path):
    arch = Architecture(11, 2, 3, 1, 5, SHAPE, stem_filters=4, filters=6)
    inner = GatedResNeXt(arch, None, None, include_top=False, pooling="avg", seed=0)
    inner.assign_by_name(oracle.random_weights(inner.weights_by_name(), seed=0))
    images = keras.Input(SHAPE, dtype="uint8")
    model = keras.Model(images, layers.Dense(CLASSES, activation="softmax")(inner(images)), name="tuned")
    receipt = ship(model, tmp_path / "tuned", Probe(IMAGES, None, "images of random pixels")).receipt
    assert [check["form"] for check in receipt["checks"]] == ["pruned", "saved_model", "tflite"]
    assert receipt["parameters_pruned"] < receipt["parameters"]


def test_a_network_of_dense_blocks_is_shipped(tmp_path):
    inputs = keras.Input(SHAPE, dtype="uint8")
    x = GatedDenseBlock(4, 3, 1, transition=6, transition_fan_in=2, seed=0)(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x), name="dense")
    labels = np.asarray(model(IMAGES)).argmax(-1)
    shipped = ship(model, tmp_path / "dense", Probe(IMAGES, labels, "images of random pixels"))
    assert [check["form"] for check in shipped.receipt["checks"]] == ["pruned", "saved_model", "tflite"]
    assert (
        shipped.receipt["parameters_pruned"] < shipped.receipt["parameters"] == model.layers[2].parameters() + 6 * 3 + 3
    )
