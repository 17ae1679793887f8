"""The full int8 file, whose ranges are measured on samples."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from export import tflite
from export.compact import compact
from gated_resnext import zoo
from gated_resnext.data import Images
from gated_resnext.recipes import RECIPES


@pytest.fixture(scope="module")
def digits(digits_dir):
    return Images("optical_digits", RECIPES["digits"], digits_dir)


def test_samples_without_black_or_white_keep_their_contrast_to_each_other():
    samples = np.stack([np.full((4, 4, 1), 100, np.uint8), np.full((4, 4, 1), 150, np.uint8)])
    samples[1, 0] = 254
    given = tflite._with_black_and_white(samples)
    np.testing.assert_array_equal(given[:2], samples)
    np.testing.assert_array_equal(given[2:], np.rint((samples - 100.0) * 255 / 154).astype(np.uint8))
    of_one_colour = tflite._with_black_and_white(samples[:1])
    assert (of_one_colour[1].min(), of_one_colour[1].max()) == (0, 255)


@pytest.mark.parametrize(
    "darkened",
    [lambda x: np.minimum(x, 100), lambda x: x // 2 + 50, lambda x: x],
    ids=["no white", "no black, no white", "all pixels"],
)
def test_pixels_stay_what_they_are_whatever_the_samples_hold(darkened, digits, tmp_path):
    model = zoo.load("digits_11_4_4_k1", "published")
    pixels, labels = digits.test_batch(360)
    tflite.write_int8(compact(model), tmp_path / "model.tflite", darkened(digits.samples(256)))
    (given,) = Interpreter(str(tmp_path / "model.tflite")).get_input_details()
    assert given["dtype"] == np.uint8 and given["quantization"] == (1.0, 0)
    found = tflite.runner(tmp_path / "model.tflite")(pixels)
    before, after = ((rows.argmax(-1) == labels).mean() for rows in (model.predict_on_batch(pixels), found))
    assert 100 * (before - after) <= 0.5  # --max_top1_drop


def test_samples_of_one_colour_do(digits, tmp_path):
    small = compact(zoo.load("digits_11_4_4_k1", "published"))
    tflite.write_int8(small, tmp_path / "model.tflite", np.full((3, 8, 8, 1), 9, np.uint8))
    (given,) = Interpreter(str(tmp_path / "model.tflite")).get_input_details()
    assert given["quantization"] == (1.0, 0)
