import os
import shutil
import subprocess
import sys
import tempfile
import time

import hypothesis
import pytest

from gated_resnext import onednn

pytest.register_assert_rewrite("runs", "processes")

os.environ.pop("TFDS_DATA_DIR", None)  # no test reads or writes the user's data
# What is promised to the last bit is promised on a CPU, and several processes share no GPU's memory.
os.environ.update(CUDA_VISIBLE_DEVICES="", JAX_PLATFORMS="cpu")
# JAX takes most of a test's time to compile, and most of that to make fast what then runs a few times.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")
os.environ.update(JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0", JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1")
onednn.use_onednn()  # as commands do: what is computed here is what they compute

# A stall of the machine is no failure, and what failed once fails again.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")


def pytest_addoption(parser):
    parser.addoption("--within", type=float, metavar="SECONDS", help="begin no test marked slow later than this")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: it or its fixture takes 15 s or more on two slow cores; see WORKSPACE.md")
    config.began = time.monotonic()
    # What one process compiled, the next ones read; not those beside it, which would find files half written.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = config.compiled = tempfile.mkdtemp(prefix="compiled")


def pytest_unconfigure(config):
    shutil.rmtree(config.compiled, ignore_errors=True)


def pytest_runtest_setup(item):
    within = item.config.getoption("--within")
    if within is not None and item.get_closest_marker("slow") and time.monotonic() - item.config.began > within:
        pytest.skip(f"a slow test, {within:.0f} s after the first: no time was left; pytest -m slow runs it")


@pytest.fixture(autouse=True)
def same_random_numbers():
    """What a test leaves to chance, such as the first weights of Keras' own layers, is the same at each run of it."""
    import keras

    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def run_python():
    """Runs `python *arguments` to its end; stdout and stderr come back as text."""

    def run(*arguments, env=None, **options):
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **(env or {})},
            capture_output=True,
            text=True,
            timeout=1800,
            **options,
        )

    return run


@pytest.fixture(scope="session")
def foreign_model():
    """Writes a SavedModel of other making, with one input `x`, of a function; returns its path."""
    import tensorflow as tf

    def write(path, function, variables=(), shape=(1, 8, 8, 1), dtype=tf.float32):
        module = tf.Module()
        module.weights = [variable.value for variable in variables]
        specs = [tf.TensorSpec(shape, dtype, name="x")]
        module.serve = tf.function(function, input_signature=specs, autograph=False)
        tf.saved_model.save(module, str(path), signatures={"serving_default": module.serve})
        return path

    return write


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    """A data_dir that holds optical_digits, and nothing else."""
    import tensorflow_datasets as tfds

    from gated_resnext import datasets

    datasets.register()
    folder = tmp_path_factory.mktemp("data")
    tfds.builder("optical_digits", data_dir=folder).download_and_prepare()
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory, digits_dir):
    """The finished workdir of digits_11_4_4_k1 after 3 % of its schedule. Read only: copy it to change it."""
    from gated_resnext import trainer
    from gated_resnext.recipes import RECIPES

    workdir = tmp_path_factory.mktemp("trained") / "digits_11_4_4_k1"
    run = trainer.Run.of("digits_11_4_4_k1", RECIPES["digits"].scaled(0.03), seed=0)
    trainer.train(run, workdir, data_dir=digits_dir)
    return workdir


@pytest.fixture(scope="session")
def exported(trained, digits_dir, tmp_path_factory, run_python):
    """The first version of that network in an output folder of its own, and what the export printed. Read only."""
    output = tmp_path_factory.mktemp("exported") / "models"
    done = run_python(
        "-m",
        "export.prune_and_save",
        f"--workdir={trained}",
        f"--output={output}",
        f"--data_dir={digits_dir}",
        "--formats=saved_model,tflite,tflite_float16",
        "--max_top1_drop=2",
    )
    assert done.returncode == 0, done.stderr
    return output / "digits_11_4_4_k1" / "1", done.stdout
