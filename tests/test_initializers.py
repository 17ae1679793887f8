"""Initial kernels against the closed forms of their distributions, and against Keras' own."""

import keras
import numpy as np
import pytest

from gated_resnext.initializers import NormalRow, UniformRow, glorot_uniform, he_normal


@pytest.mark.parametrize("shape", [(3, 3, 20, 50), (8, 3, 3, 4, 50)])
def test_he_normal_has_the_variance_of_its_fan(shape):
    drawn = keras.ops.convert_to_numpy(he_normal(9 * 50, seed=1)(shape))
    assert drawn.shape == shape
    assert abs(np.mean(drawn)) < 4 * np.sqrt(2 / 450 / drawn.size)
    np.testing.assert_allclose(np.var(drawn), 2 / 450, rtol=4 * np.sqrt(2 / drawn.size))


def test_they_are_those_of_keras_where_a_shape_shows_its_fans():
    of_keras = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal", seed=2)
    np.testing.assert_array_equal(he_normal(9 * 8, seed=2)((3, 3, 4, 8)), of_keras((3, 3, 4, 8)))
    np.testing.assert_array_equal(glorot_uniform(30, 7, seed=2)((30, 7)), keras.initializers.GlorotUniform(2)((30, 7)))


@pytest.mark.parametrize("row", [NormalRow(stddev=0.5, seed=3), UniformRow(-0.5, 0.5, seed=3)])
@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4), (70, 90)])
def test_rows_of_a_file_written_under_jax_are_drawn_on_any_backend(row, shape):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(row))
    drawn = keras.ops.convert_to_numpy(again(shape))
    assert drawn.shape == shape and drawn.dtype == np.float32
    assert np.unique(drawn).size > 0.99 * drawn.size  # chance alone makes two alike
    np.testing.assert_array_equal(drawn, row(shape))
