"""The export command, and its files in a process that cannot import this project."""

import contextlib
import gzip
import json
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
from test_compression import kernels

from gated_resnext import files, zoo
from gated_resnext.data import Images
from gated_resnext.errors import UserError
from gated_resnext.recipes import RECIPES

ALONE = """
import importlib.util, json, sys
import numpy as np
for name in ("gated_resnext", "export", "zoo"):
    assert importlib.util.find_spec(name) is None, f"{name} can be imported"
folder, pixels, out = sys.argv[1:]
images = np.load(pixels)

import tensorflow as tf
loaded = tf.saved_model.load(folder)
pictures = tf.stack([tf.io.encode_png(image) for image in images])
answers = {
    "saved_model": loaded.signatures["serving_default"](images=tf.constant(images)),
    "saved_model_pictures": loaded.signatures["encoded_images"](encoded_images=pictures),
}

from ai_edge_litert.interpreter import Interpreter
for name in ("model", "model_float16"):
    runner = Interpreter(f"{folder}/{name}.tflite").get_signature_runner("serving_default")
    answers[f"litert_{name}"] = runner(images=images)

import openvino
# Where the processor has bfloat16, OpenVINO would compute in it.
precision = {"INFERENCE_PRECISION_HINT": "f32"}
for name, path in (
    ("saved_model", folder),
    ("model", folder + "/model.tflite"),
    ("model_float16", folder + "/model_float16.tflite"),
):
    model = openvino.Core().compile_model(openvino.convert_model(path), "CPU", precision)
    result = model({"images": images})
    names = {name: value for key, value in result.items() for name in key.names}
    answers[f"openvino_{name}"] = names
for key, given in list(answers.items()):
    answers[key] = {n: np.asarray(given[n]) for n in ("probabilities", "classes") if n in given}
np.savez(out, **{f"{key}_{n}": value for key, given in answers.items() for n, value in given.items()})
"""


def run(*flags, cwd=None):
    command = [sys.executable, "-m", "export.prune_and_save", *map(str, flags)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=900)


def test_receipt(exported):
    folder, printed = exported
    receipt = json.loads((folder / "receipt.json").read_text())
    checks = {check["form"]: check for check in receipt["checks"]}
    assert list(checks) == ["pruned", "saved_model", "encoded_images", "tflite", "tflite_float16"]
    assert checks["encoded_images"]["pictures"] == 128
    for form in ("pruned", "saved_model", "tflite"):
        assert checks[form]["max_difference"] <= 1e-4 and checks[form]["top1"] == receipt["top1"]
    assert checks["encoded_images"]["max_difference"] <= 1e-4
    assert receipt["preprocessing"] == {"shape": [8, 8, 1], "resize": 8}
    assert receipt["checked_on"] == "360 test images of optical_digits" and receipt["dataset"] == "optical_digits"
    assert receipt["parameters"] == 93_754
    assert f"{receipt['parameters']:,} -> {receipt['parameters_pruned']:,}" in printed
    parts = {
        "saved_model": ("saved_model.pb", "fingerprint.pb", "variables/*"),
        "tflite": ("model.tflite",),
        "tflite_float16": ("model_float16.tflite",),
    }
    for form, patterns in parts.items():
        paths = [path for pattern in patterns for path in folder.glob(pattern)]
        assert checks[form]["bytes"] == sum(path.stat().st_size for path in paths), form
    assert f"Written to {folder}\n" in printed
    assert (folder / "assets" / "labels.txt").read_text().split() == list("0123456789")
    assert sorted(path.name for path in folder.iterdir()) == [
        "assets",
        "assets.extra",
        "fingerprint.pb",
        "model.tflite",
        "model_float16.tflite",
        "receipt.json",
        "saved_model.pb",
        "variables",
    ]


def test_other_runtimes_agree_without_this_project(exported, trained, digits_dir, tmp_path):
    folder, _ = exported
    pixels, _ = Images("optical_digits", RECIPES["digits"], digits_dir).test_batch(100)
    expected = zoo.load("digits_11_4_4_k1", trained / "model.keras").predict_on_batch(pixels)
    np.save(tmp_path / "pixels.npy", pixels)
    (tmp_path / "alone.py").write_text(textwrap.dedent(ALONE))
    # -P and an empty folder, and a path that holds the installed packages but not this project's sources or links.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    blocked = tmp_path / "site"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('gated_resnext', 'export', 'zoo'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "import importlib.util\n"
        "real = importlib.util.find_spec\n"
        "def find_spec(name, package=None):\n"
        "    try:\n"
        "        return real(name, package)\n"
        "    except ModuleNotFoundError:\n"
        "        return None\n"
        "importlib.util.find_spec = find_spec\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "alone.py", folder, tmp_path / "pixels.npy", tmp_path / "answers.npz"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**env, "PYTHONPATH": str(blocked)},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    answers = np.load(tmp_path / "answers.npz")
    runtimes = {key.removesuffix("_probabilities") for key in answers if key.endswith("_probabilities")}
    assert runtimes == {
        "saved_model",
        "saved_model_pictures",
        "litert_model",
        "litert_model_float16",
        "openvino_saved_model",
        "openvino_model",
        "openvino_model_float16",
    }
    for runtime in runtimes:
        # Weights rounded to float16 move the probabilities; both runtimes must move them alike.
        rounded = runtime.endswith("float16")
        found = answers[f"{runtime}_probabilities"]
        np.testing.assert_allclose(found, expected, atol=2e-3 if rounded else 1e-4, err_msg=runtime)
        if rounded:
            np.testing.assert_allclose(found, answers["litert_model_float16_probabilities"], atol=1e-4)
        assert (f"{runtime}_classes" in answers) != rounded  # the files for devices have none
        if not rounded:
            np.testing.assert_array_equal(answers[f"{runtime}_classes"], expected.argmax(-1), err_msg=runtime)


def one_line(done):
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0]


def test_what_a_user_can_get_wrong(exported, trained, digits_dir, tmp_path):
    folder, _ = exported
    data = f"--data_dir={digits_dir}"
    cases = {
        ("--formats=onnx", f"--workdir={trained}"): "Received: onnx",
        (f"--output={folder.parent.parent}", f"--workdir={trained}", "--formats=tflite"): "must hold a SavedModel",
        ("--workdir=nowhere",): "nowhere has no trained network",
        ("--entry=cifar10_20_4_8_k99",): "the closest are",
        ("--entry=cifar100_29_64_8_k1",): "python -m gated_resnext.train --entry=cifar100_29_64_8_k1",
        (): "give one of --workdir",
    }
    for flags, message in cases.items():
        output = () if any(flag.startswith("--output") for flag in flags) else (f"--output={tmp_path / 'models'}",)
        assert message in one_line(run(*flags, *output, data, cwd=tmp_path)), flags
    assert not (tmp_path / "models").exists()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["1"]


def test_a_damaged_network_is_named_and_nothing_is_written(trained, digits_dir, tmp_path):
    workdir = tmp_path / "damaged"
    workdir.mkdir()
    for name in ("run.json", "result.json"):
        (workdir / name).write_bytes((trained / name).read_bytes())
    whole = (trained / "model.keras").read_bytes()
    (workdir / "model.keras").write_bytes(whole[: len(whole) // 2])
    error = one_line(run(f"--workdir={workdir}", f"--output={tmp_path / 'models'}", f"--data_dir={digits_dir}"))
    assert "model.keras does not hold a network" in error
    assert not (tmp_path / "models").exists()


def test_a_form_that_differs_is_not_written(trained, digits_dir, tmp_path, monkeypatch):
    from export import formats, shipping

    def wrong(path):
        return lambda images: np.full((len(images), 10), 0.1, np.float32)

    broken = formats.FORMATS["tflite"]._replace(runner=wrong)
    monkeypatch.setitem(formats.FORMATS, "tflite", broken)
    model = zoo.load("digits_11_4_4_k1", trained / "model.keras")
    pixels, classes = Images("optical_digits", RECIPES["digits"], digits_dir).test_batch(16)
    with pytest.raises(UserError, match="tflite form does not compute"):
        shipping.ship(model, tmp_path / "out", shipping.Probe(pixels, classes, "images"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def twenty(trained, digits_dir):
    """A network, and the 20 images that it is surest of, its answers as their classes: all are right, rounded too."""
    from export import shipping

    model = zoo.load("digits_11_4_4_k1", trained / "model.keras")
    pixels, _ = Images("optical_digits", RECIPES["digits"], digits_dir).arrays("test")
    answers = model.predict_on_batch(pixels)
    second, first = np.sort(answers)[:, -2:].T
    surest = np.argsort(second - first)[:20]
    return model, shipping.Probe(pixels[surest], answers[surest].argmax(-1).astype(np.int32), "images")


def changed(monkeypatch, name, change):
    """The format's file runs as it is, and what it answers is changed."""
    from export import formats

    whole = formats.FORMATS[name]

    def runner(path):
        run = whole.runner(path)
        return lambda images: change(np.array(run(images)))

    monkeypatch.setitem(formats.FORMATS, name, whole._replace(runner=runner))


def test_a_lossy_form_may_lose_as_many_points_as_is_said(twenty, tmp_path, monkeypatch):
    from export import shipping

    def one_wrong(answers):
        answers[0] = np.roll(answers[0], 1)
        return answers

    changed(monkeypatch, "tflite_float16", one_wrong)
    model, probe = twenty
    with pytest.raises(
        UserError, match=r"reaches 95\.00 % top-1 where the trained network reaches 100\.00 %, and may lose 4"
    ):
        shipping.ship(model, tmp_path / "out", probe, formats=("tflite_float16",), max_top1_drop=4)
    assert list(tmp_path.iterdir()) == []
    # Exactly 5 points, which as a difference of two shares are a little more.
    shipping.ship(model, tmp_path / "out", probe, formats=("tflite_float16",), max_top1_drop=5)
    (version,) = (tmp_path / "out").rglob("receipt.json")
    assert [check["top1"] for check in files.read_json(version)["checks"] if check["form"] == "tflite_float16"] == [
        0.95
    ]


@pytest.mark.parametrize("name", ["tflite", "tflite_float16"])
def test_a_form_with_numbers_that_are_none_is_refused(twenty, tmp_path, monkeypatch, name):
    from export import shipping

    def one_unknown(answers):
        answers[3, 0] = np.nan  # which arg-max takes for the largest
        return answers

    changed(monkeypatch, name, one_unknown)
    model, probe = twenty
    with pytest.raises(UserError, match=f"^{name} gives numbers that are not finite; nothing was written"):
        shipping.ship(model, tmp_path / "out", probe, formats=(name,), max_top1_drop=100)
    assert list(tmp_path.iterdir()) == []


def test_forms_are_checked_on_as_many_images_at_once_as_the_network_has_memory_for(twenty, tmp_path, monkeypatch):
    from export import shipping
    from gated_resnext.architecture import Architecture

    given = {"saved_model": [], "tflite_int8": []}
    for name, sizes in given.items():
        changed(monkeypatch, name, lambda answers, sizes=sizes: sizes.append(len(answers)) or answers)
    monkeypatch.setattr(Architecture, "images_at_once", lambda self, most: min(7, most))
    model, probe = twenty
    probe = probe._replace(samples=probe.images)
    shipping.ship(model, tmp_path / "out", probe, formats=tuple(given), max_top1_drop=100)
    assert given == {name: [7, 7, 7] for name in given}


def test_an_exact_form_has_the_same_logarithms():
    """Of a thousand classes, all near a thousandth, a twentieth of each is less than the bound of differences."""
    from export import shipping

    reference = np.full((4, 1000), 1e-3)
    for off, fits in ((0.005, True), (0.05, False)):
        found = reference * np.where(np.arange(1000) % 2, 1 + off, 1 - off)
        assert np.abs(found - reference).max() < shipping.TOLERANCE
        with contextlib.nullcontext() if fits else pytest.raises(UserError, match=r"logarithms of .* differ by 0\.051"):
            proof = shipping.Proof(np.zeros((4, 1)), None, reference, at_once=4, max_top1_drop=0)
            check = shipping._check("tflite", lambda images, found=found: found, proof)
            assert check["max_difference"] == pytest.approx(off * 1e-3)


@pytest.mark.parametrize(
    ("change", "is_written"),
    [(lambda answers: answers + np.float32(5e-4), False), (lambda answers: answers * np.float32(1 + 2e-5), True)],
    ids=["wrong", "rounded"],
)
def test_an_exact_form_may_differ_by_rounding_alone(twenty, tmp_path, monkeypatch, change, is_written):
    from export import shipping

    changed(monkeypatch, "tflite", change)
    model, probe = twenty
    if is_written:
        shipping.ship(model, tmp_path / "out", probe, formats=("tflite",))
    else:
        with pytest.raises(UserError, match="the tflite form does not compute what the trained network does"):
            shipping.ship(model, tmp_path / "out", probe, formats=("tflite",))
    assert bool(list(tmp_path.rglob("*.tflite"))) is is_written


def test_quantised_formats_keep_their_accuracy(trained, digits_dir, tmp_path):
    formats = ("tflite", "tflite_float16", "tflite_dynamic", "tflite_int8")
    done = run(
        f"--workdir={trained}",
        f"--output={tmp_path}",
        f"--data_dir={digits_dir}",
        f"--formats={','.join(formats)}",
        "--max_top1_drop=2",
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "digits_11_4_4_k1" / "1"
    checks = {check["form"]: check for check in files.read_json(folder / "receipt.json")["checks"]}
    assert (folder / "labels.txt").read_text().split() == list("0123456789")
    assert [path.name for path in tmp_path.iterdir()] == ["digits_11_4_4_k1"]  # nothing for TF Serving
    assert all(100 * (checks["tflite"]["top1"] - checks[form]["top1"]) <= 2 for form in formats)
    sizes = [checks[form]["bytes"] for form in formats]
    assert sizes[1] < 0.65 * sizes[0] and max(sizes[2:]) < 0.5 * sizes[0]


def test_a_format_that_loses_accuracy_is_not_written(trained, digits_dir, tmp_path):
    flags = (f"--workdir={trained}", f"--output={tmp_path / 'models'}", f"--data_dir={digits_dir}")
    error = one_line(run(*flags, "--formats=tflite_int8", "--max_top1_drop=-100.5"))
    assert "may lose -100.5 points (--max_top1_drop); nothing was written" in error
    assert "not with --noise" in one_line(run(*flags, "--formats=tflite_int8", "--noise"))
    assert not list(tmp_path.rglob("*.tflite"))


def test_noise_checks_without_the_data_set(trained, tmp_path):
    done = run(
        f"--workdir={trained}",
        f"--output={tmp_path}",
        "--noise",
        "--images=8",
        "--formats=tflite",
        "--data_dir=nowhere",
    )
    assert done.returncode == 0, done.stderr
    receipt = files.read_json(tmp_path / "digits_11_4_4_k1" / "1" / "receipt.json")
    assert receipt["top1"] is None and receipt["checked_on"] == "8 images of random pixels"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--entry=",), "--entry is empty"),
        (("--workdir=",), "--workdir is empty"),
        (("--entry=digits_11_4_4_k1", "--output= "), "--output is empty"),
    ],
)
def test_a_flag_without_a_value_is_said(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in one_line(run(*flags))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_noise_takes_the_size_of_pictures_from_the_training(trained, tmp_path):
    """Of a data set that is neither at hand nor in the table; where the training did not say, nobody knows."""
    for name, resize, signatures in (("said", 9, 2), ("unsaid", None, 1)):
        workdir = tmp_path / name
        shutil.copytree(trained, workdir)
        run_json, result = files.read_json(workdir / "run.json"), files.read_json(workdir / "result.json")
        files.write_json(workdir / "run.json", {**run_json, "dataset": "mnist"})
        files.write_json(workdir / "result.json", {**result, "dataset": "mnist", "labels": None, "resize": resize})
        output = tmp_path / f"{name}_models"
        done = run(f"--workdir={workdir}", f"--output={output}", "--noise", "--images=8", "--formats=saved_model")
        assert done.returncode == 0, done.stderr
        loaded = tf.saved_model.load(output / "digits_11_4_4_k1" / "1")
        assert len(loaded.signatures) == signatures
        receipt = files.read_json(output / "digits_11_4_4_k1" / "1" / "receipt.json")
        assert receipt["preprocessing"] == (None if resize is None else {"shape": [8, 8, 1], "resize": 9})


@pytest.mark.slow
def test_compressed_files_are_checked_and_weighed(trained, digits_dir, tmp_path):
    flags = (f"--workdir={trained}", f"--output={tmp_path / 'models'}", f"--data_dir={digits_dir}", "--formats=tflite")
    assert "must be one of qat, magnitude, cluster. Received: zip" in one_line(run(*flags, "--compress=zip"))
    assert "not with --noise" in one_line(run(*flags, "--compress=qat", "--noise"))
    assert not (tmp_path / "models").exists()
    done = run(*flags, "--compress=cluster", "--compress_epochs=0.2", "--clusters=4", "--max_top1_drop=100")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "models" / "digits_11_4_4_k1" / "1"
    checks = {check["form"]: check for check in files.read_json(folder / "receipt.json")["checks"]}
    content = (folder / "model_cluster.tflite").read_bytes()
    assert checks["cluster"]["bytes"] == len(content)
    assert checks["cluster"]["bytes_gzip"] == len(gzip.compress(content, mtime=0)) < 0.4 * len(content)
    assert f"in gzip {checks['cluster']['bytes_gzip']:,}" in done.stdout
    (_, *modules, _), _ = kernels(folder / "model_cluster.tflite")
    assert all(len(np.unique(kernel)) <= 4 for kernel in modules)
