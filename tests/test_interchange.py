"""SavedModels and .tflite files, ours and of other making, are read alike."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from export import saved_model
from gated_resnext import interchange
from gated_resnext.architecture import Architecture
from gated_resnext.errors import UserError
from gated_resnext.model import GatedResNeXt

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), np.uint8)


def test_any_network_of_a_random_wiring_can_be_opened(tmp_path):
    model = GatedResNeXt(Architecture(5, 2, 2, 1, 3, (6, 5, 2), stages=(1,)), seed=0)
    saved_model.write(model, tmp_path / "trained")  # as it is, not compact
    pixels = np.random.default_rng(1).integers(0, 256, (3, 6, 5, 2), np.uint8)
    opened = interchange.opened(tmp_path / "trained")
    np.testing.assert_allclose(opened.run(pixels), model.predict_on_batch(pixels), atol=1e-6)
    assert (opened.shape, opened.batch, opened.classes) == ((6, 5, 2), None, 3)
    with pytest.raises(UserError, match=r"does not take images of the shape \(9, 9, 1\)"):
        opened.answers(np.zeros((1, 9, 9, 1), np.uint8))


def test_one_that_takes_a_fixed_number_of_images_is_asked_in_such_batches(tmp_path, foreign_model):
    path = foreign_model(tmp_path / "four", lambda x: {"y": x[:, 0, 0] * tf.constant([[1.0, 2.0]])}, shape=(4, 8, 8, 1))
    for white in (255.0, 1.0):
        opened = interchange.opened(path, white)
        assert opened.batch == 4 and opened.classes == 2
        expected = IMAGES[:, 0, 0] * (white / 255.0) * np.array([[1.0, 2.0]])
        np.testing.assert_allclose(opened.answers(IMAGES), expected, rtol=1e-6)


def test_many_images_go_in_several_calls(tmp_path, foreign_model):
    path = foreign_model(tmp_path / "any", lambda x: {"y": tf.reduce_sum(x, (1, 2))}, shape=(None,) * 4)
    opened = interchange.opened(path)
    many = np.arange(150, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 1, 1, 3), np.uint8)
    assert opened.shape == (None, None, None) and opened.classes is None
    np.testing.assert_array_equal(opened.answers(many), np.arange(150)[:, None] * np.ones((1, 3)))


def test_what_cannot_be_read(tmp_path, foreign_model):
    (tmp_path / "text").write_text("not a network")
    (tmp_path / "empty").mkdir()
    foreign_model(tmp_path / "rank", lambda x: {"y": tf.reduce_sum(x, 1)}, shape=(None, 8))
    foreign_model(tmp_path / "type", lambda x: {"y": tf.reduce_sum(x, (1, 2))}, dtype=tf.int32)
    foreign_model(tmp_path / "two", lambda x: {"y": tf.reduce_sum(x, (1, 2)), "z": tf.reduce_max(x, (1, 2))})
    cases = {
        "nowhere": "there is no .*nowhere",
        "text": "cannot be read as a SavedModel folder or a .tflite file",
        "empty": "cannot be read as a SavedModel folder or a .tflite file",
        "rank": r"one input, images .* Its inputs: x, float32 \(any, 8\)",
        "type": r"Its inputs: x, int32",
        "two": r"Its outputs: y, float32 .*; z, float32",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message):
            interchange.opened(tmp_path / name)


@pytest.mark.filterwarnings("ignore:Statistics for quantized inputs were expected")
def test_answers_in_whole_numbers_are_those_of_floats(tmp_path):
    """A .tflite file whose output is int8: 256 steps of a scale from a zero of its own."""
    inputs = keras.Input((8, 8, 1), batch_size=1)
    x = keras.layers.Dense(5, activation="softmax")(keras.layers.Flatten()(inputs / 255.0))
    model = keras.Model(inputs, x)
    images = np.random.default_rng(2).integers(0, 256, (30, 8, 8, 1), np.uint8)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None].astype(np.float32)] for image in images)
    converter.inference_output_type = tf.int8
    (tmp_path / "model.tflite").write_bytes(converter.convert())
    opened = interchange.opened(tmp_path / "model.tflite")
    found = opened.answers(images)
    np.testing.assert_allclose(found, model.predict(images.astype(np.float32), verbose=0), atol=0.02)
    assert np.abs(found * 256 - np.rint(found * 256)).max() < 1e-6 and found.max() > 0.4
