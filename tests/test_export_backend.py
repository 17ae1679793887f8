"""What was trained under another backend is exported by TensorFlow."""

import importlib.util

import numpy as np
import pytest

from export import tflite
from gated_resnext import zoo
from gated_resnext.data import Images
from gated_resnext.recipes import RECIPES

K1 = "digits_11_4_4_k1"
OTHERS = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is missing"))
    for name in ("jax", "torch")
]
WITHOUT = """
import sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None
import runpy
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
LIBRARY = """
import pathlib, sys
import numpy as np
from export import saved_model, shipping, tflite
from export.compact import compact
from gated_resnext import zoo
from gated_resnext.errors import UserError
model = zoo.load("digits_11_4_4_k1", "published")
folder, noise = pathlib.Path(sys.argv[1]), np.zeros((2, 8, 8, 1), np.uint8)
small = compact(model)
for write in (
    lambda: shipping.ship(model, folder / "net", shipping.Probe(noise, None, "noise")),
    lambda: saved_model.write(small, folder / "saved"),
    lambda: tflite.write(small, folder / "model.tflite"),
    lambda: tflite.write_int8(small, folder / "model.tflite", noise),
):
    try:
        write()
    except UserError as error:
        print(error)
"""


@pytest.mark.parametrize("backend", OTHERS)
def test_the_command_takes_tensorflow(backend, digits_dir, tmp_path, run_python):
    flags = [f"--entry={K1}", f"--output={tmp_path}", f"--data_dir={digits_dir}", "--formats=tflite", "--images=50"]
    done = run_python("-m", "export.prune_and_save", *flags, env={"KERAS_BACKEND": backend})
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "KERAS_BACKEND" in line]
    assert line == f"KERAS_BACKEND={backend}: an export needs Keras on TensorFlow, and takes that"
    pixels, _ = Images("optical_digits", RECIPES["digits"], digits_dir).test_batch(20)
    found = tflite.runner(tmp_path / K1 / "1" / "model.tflite")(pixels)
    np.testing.assert_allclose(found, zoo.load(K1, "published").predict_on_batch(pixels), atol=1e-5)


@pytest.mark.parametrize("backend", OTHERS)
def test_functions_say_which_backend_they_need(backend, tmp_path, run_python):
    done = run_python("-c", LIBRARY, tmp_path, env={"KERAS_BACKEND": backend})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and len(set(lines)) == 1
    assert lines[0].startswith(f"an export needs Keras on TensorFlow. Received: KERAS_BACKEND={backend}; start Python")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        ("export.prune_and_save", [f"--entry={K1}"]),
        ("export.compare", ["--saved_model=a", "--saved_model=b"]),
        ("gated_resnext.evaluate", ["--saved_model=a"]),
    ],
)
def test_without_tensorflow_the_commands_say_so(module, flags, tmp_path, run_python):
    done = run_python("-c", WITHOUT, module, *flags, env={"KERAS_BACKEND": "jax"}, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.endswith("TensorFlow, which is not installed: pip install tensorflow")
    assert not list(tmp_path.iterdir())
