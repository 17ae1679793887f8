"""Products over pixels, and the convolutions of accelerators, against numpy and against those of a CPU, under JAX.

No accelerator is at hand: JAX is made to say that it has one, and computes what it would have it compute.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

from gated_resnext import layers

pytest.importorskip("jax", reason="jax is not installed")

BEGIN = """
import sys
import jax, keras
import numpy as np
from jax import numpy as jnp
from gated_resnext import Architecture, Connectivity, GatedResNeXt, products

given, found = dict(np.load(sys.argv[1])), {}
backends = {"cpu": jax.default_backend, "gpu": lambda: "gpu"}
"""
PRODUCTS = """
jax.default_backend = backends["gpu"]
assert products.accelerated()
for dtype in ("float32", "bfloat16"):
    a, b = (jnp.asarray(given[name], dtype) for name in "ab")
    found[f"a_{dtype}"], found[f"b_{dtype}"] = a.astype("float32"), b.astype("float32")
    over_rows, of_rows = products.over_rows(a, b), products.of_rows(a[0].T, b[0].T)
    assert over_rows.dtype == dtype and of_rows.dtype == "float32"
    found[f"over_rows_{dtype}"], found[f"of_rows_{dtype}"] = over_rows.astype("float32"), of_rows
text = jax.jit(products.over_rows).lower(given["a"], given["b"]).compile().as_text()
found["in_pieces"] = "f32[3,11,4,6]" in text
"""
NETWORKS = """
def gradients(model):
    fixed = [variable.value for variable in model.non_trainable_variables]
    def loss(trained):
        logits, _ = model.stateless_call(trained, fixed, given["images"], training=True)
        return jnp.mean(jnp.square(logits - given["targets"]))
    return jax.jit(jax.value_and_grad(loss))([variable.value for variable in model.trainable_variables])

options = dict(depth=8, stages=(1, 1), cardinality=3, input_shape=(8, 8, 1), stem_filters=4, filters=8, classes=5)
wired = Connectivity(3, (((0, 1), (1,), (2,)),))
networks = {
    "learned": (Architecture(fan_in=2, width=9, **options), None, {}),
    "remat": (Architecture(fan_in=2, width=2, **options), None, {"remat": True}),
    "fixed": (Architecture(fan_in=2, width=2, **options), wired, {}),
    "full": (Architecture(fan_in=3, width=2, aggregation="shared", **options), None, {}),
}
for name, (architecture, connectivity, more) in networks.items():
    model = GatedResNeXt(architecture, connectivity, None, seed=1, **more)
    names = [variable.path for variable in model.trainable_variables]
    for where, jax.default_backend in backends.items():
        value, of_each = gradients(model)
        found[f"{where}/{name}/loss"] = value
        found.update({f"{where}/{name}/{path}": one for path, one in zip(names, of_each)})
"""
END = """
np.savez(sys.argv[2], **{name: np.asarray(value) for name, value in found.items()})
"""


@pytest.fixture(scope="module")
def given():
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 256, (4, 8, 8, 1)).astype(np.float32),
        "targets": rng.normal(size=(4, 5)).astype(np.float32),
        "a": rng.normal(size=(3, 2 * 2 * 7 * 11, 4)).astype(np.float32),
        "b": rng.normal(size=(3, 2 * 2 * 7 * 11, 6)).astype(np.float32),
    }


def found_by(script, given, folder):
    np.savez(folder / "given.npz", **given)
    path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script + END, folder / "given.npz", folder / "found.npz"],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(folder / "found.npz"))


@pytest.fixture(scope="module")
def of_products(given, tmp_path_factory):
    return found_by(PRODUCTS, given, tmp_path_factory.mktemp("products"))


@pytest.fixture(scope="module")
def of_networks(given, tmp_path_factory):
    return found_by(NETWORKS, given, tmp_path_factory.mktemp("networks"))


def distance(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-6), ("bfloat16", 4e-3)])
def test_products_over_rows(of_products, dtype, rounding):
    a, b = (of_products[f"{name}_{dtype}"].astype(np.float64) for name in "ab")
    assert distance(of_products[f"over_rows_{dtype}"], np.einsum("jrm,jrn->jmn", a, b)) < rounding
    assert distance(of_products[f"of_rows_{dtype}"], a[0].T @ b[0]) < 1e-6  # float32, also of 16 bits


def test_they_are_cut_in_pieces(of_products):
    """Of 2 * 2 * 7 * 11 rows in 3 products, as many as divide 1024 // 3 = 11 * 31."""
    assert of_products["in_pieces"]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["learned", "remat", "fixed", "full"])
def test_an_accelerator_computes_the_same_loss_and_gradients(of_networks, network):
    found = {name: value for name, value in of_networks.items() if name.split("/")[1] == network}
    names = [name.removeprefix("gpu/") for name in found if name.startswith("gpu/")]
    assert len(names) > 15
    for name in names:
        assert distance(found[f"gpu/{name}"], found[f"cpu/{name}"]) < 1e-4, name
    assert any((found[f"gpu/{name}"] != found[f"cpu/{name}"]).any() for name in names), "it computed in the same way"


@pytest.mark.parametrize(("blocks", "channels", "filters"), [(1, 4, 4), (3, 4, 4), (5, 3, 7)])
@pytest.mark.parametrize(("stride", "padding"), [(1, "same"), (2, "valid")])
def test_one_dense_convolution_is_that_of_each_block(blocks, channels, filters, stride, padding):
    """On any backend; here TensorFlow's, whose whole numbers are exact."""
    rng = np.random.default_rng(blocks)
    x = rng.integers(-3, 4, (blocks, 2, 7, 5, channels)).astype(np.float32)
    kernel = rng.integers(-3, 4, (blocks, 3, 3, channels, filters)).astype(np.float32)
    found = layers.convolved_as_one(x, kernel, stride, padding)
    np.testing.assert_array_equal(found, layers.convolved_apart(x, kernel, stride, padding))
