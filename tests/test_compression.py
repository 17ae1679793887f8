"""Fewer bits, weights or values: what the files hold, and that they are still the same network."""

import gzip
import sys

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from test_compact import shaken

from export import compression, tflite
from export.compact import compact
from gated_resnext import Architecture, Connectivity, GatedResNeXt, zoo
from gated_resnext.data import Images
from gated_resnext.errors import UserError
from gated_resnext.recipes import RECIPES

# All that a twin can meet: a group of two, a sum of three, a shortcut called twice, a weighted mean.
ARCH = Architecture(11, 2, 3, 1, 10, (8, 8, 1), stem_filters=4, filters=8)
WIRING = Connectivity(3, (((0, 1, 2), (0, 1, 2), (2,)), ((0,), (0,), (1, 2))))


@pytest.fixture(scope="module")
def digits(digits_dir):
    return Images("optical_digits", RECIPES["digits"], digits_dir)


@pytest.fixture(scope="module")
def network():
    return shaken(GatedResNeXt(ARCH, WIRING, seed=2), 2)


def kernels(path):
    """The kernels of the convolutions and the dense layer of a .tflite file, and the codes of all its operators."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(path.read_bytes()), 0))
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    (graph,) = model.subgraphs
    types = {schema.TensorType.FLOAT32: np.float32, schema.TensorType.INT8: np.int8}
    found = []
    for operator in graph.operators:
        if codes[operator.opcodeIndex] in (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.FULLY_CONNECTED):
            tensor = graph.tensors[operator.inputs[1]]
            found.append(np.frombuffer(bytes(model.buffers[tensor.buffer].data), types[tensor.type]))
    return found, [codes[operator.opcodeIndex] for operator in graph.operators]


def test_starts_from_the_network(network, digits, tmp_path):
    path, (pixels, _) = tmp_path / "model.tflite", digits.test_batch(64)
    options = {"clusters": 10_000, "learning_rate": 1e-9}  # neither constrains nor changes
    path.write_bytes(compression.compress(network, "cluster", digits, epochs=0.01, seed=0, **options))
    np.testing.assert_allclose(tflite.runner(path)(pixels), network.predict_on_batch(pixels), atol=1e-5)


@pytest.mark.parametrize("method", compression.METHODS)
def test_a_trained_network_shrinks_and_keeps_its_accuracy(method, digits, tmp_path):
    model = zoo.load("digits_11_4_4_k1", "published")
    pixels, labels = digits.test_batch(360)
    before, after = tmp_path / "before.tflite", tmp_path / "after.tflite"
    tflite.write(compact(model), before)
    after.write_bytes(compression.compress(model, method, digits, epochs=1, seed=0))
    top1 = [(tflite.runner(path)(pixels).argmax(-1) == labels).mean() for path in (before, after)]
    assert top1[1] > top1[0] - 0.03
    sizes = [len(gzip.compress(path.read_bytes())) for path in (before, after)]
    assert sizes[1] < {"qat": 0.4, "magnitude": 0.75, "cluster": 0.35}[method] * sizes[0]
    (stem, *modules, classifier), operators = kernels(after)
    assert len(modules) >= len(kernels(before)[0]) - 2  # none is lost; the stem and the classifier stand apart
    if method == "qat":  # no float inside
        assert {kernel.dtype for kernel in (stem, *modules, classifier)} == {np.dtype(np.int8)}
        assert operators.count(schema.BuiltinOperator.DEQUANTIZE) == 1  # the probabilities
        assert operators.count(schema.BuiltinOperator.QUANTIZE) == 1  # uint8 to int8
    if method == "magnitude":
        assert all(abs((kernel == 0).mean() - 0.5) <= 1 / kernel.size for kernel in modules)
        assert (stem != 0).all() and (classifier != 0).all()
    if method == "cluster":
        assert all(len(np.unique(kernel)) <= 16 for kernel in modules)
        assert len(np.unique(stem)) > 16 and len(np.unique(classifier)) > 16


def test_the_share_of_zeros_is_that_asked_for(digits, tmp_path):
    model = zoo.load("digits_11_4_4_k1", "published")
    (tmp_path / "sparse.tflite").write_bytes(
        compression.compress(model, "magnitude", digits, epochs=0.5, seed=0, sparsity=0.8)
    )
    (_, *modules, _), _ = kernels(tmp_path / "sparse.tflite")
    assert all(abs((kernel == 0).mean() - 0.8) <= 1 / kernel.size for kernel in modules)


def test_the_seed_decides(digits):
    network = GatedResNeXt(Architecture(5, 2, 2, 1, 10, (8, 8, 1), stages=(1,)), seed=0)
    once, again, other = (
        compression.compress(network, "cluster", digits, epochs=0.1, seed=seed, clusters=4) for seed in (5, 5, 6)
    )
    assert once == again and once != other


def test_keras_3_stays_what_it_is(run_python):
    done = run_python(
        "-W",
        "error",
        "-W",
        "ignore:__array__ implementation:DeprecationWarning",
        "-c",
        "import os, keras, numpy, tensorflow as tf\n"
        "from export import compression\n"
        "found = compression.tools()\n"
        "assert 'TF_USE_LEGACY_KERAS' not in os.environ\n"
        "assert tf.keras.version().startswith('3.') and found.tf_keras.__version__.startswith('2.')\n"
        "from gated_resnext import Architecture, GatedResNeXt\n"
        "model = GatedResNeXt(Architecture(8, 2, 2, 1, 3, (8, 8, 1), stages=(1, 1)), seed=0)\n"
        "assert isinstance(model, keras.Model) and not isinstance(model, found.tf_keras.Model)\n"
        "model.compile('sgd', 'sparse_categorical_crossentropy')\n"
        "before = model.get_weights()[0].copy()\n"
        "model.fit(numpy.full((4, 8, 8, 1), 9, 'uint8'), numpy.arange(4) % 3, verbose=0)\n"
        "print(keras.__version__, numpy.isfinite(model.evaluate(numpy.ones((4, 8, 8, 1), 'uint8'),"
        " numpy.zeros(4), verbose=0)))",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "True"


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_model_optimization", None)
    with pytest.raises(UserError, match=r"pip install 'gated-resnext\[compress\]'"):
        compression.tools()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "zip"}, "must be one of qat, magnitude, cluster. Received: zip"),
        ({"epochs": 0}, "more than 0 epochs. Received: epochs=0"),
        ({"epochs": float("nan")}, "more than 0 epochs. Received: epochs=nan"),
        ({"sparsity": 1.0}, "Received: sparsity=1, clusters=16"),
        ({"clusters": 1}, "Received: sparsity=0.5, clusters=1"),
    ],
)
def test_what_a_user_can_get_wrong(options, message, network):
    with pytest.raises(UserError, match=message):
        compression.compress(network, **{"method": "qat", "images": None, "epochs": 1.0, "seed": 0, **options})
