"""A network in a .keras file, as `fit` and `save` leave it, goes to the commands that evaluate, draw and export."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf
from picture import Svg

from gated_resnext import Evaluation, zoo
from gated_resnext.data import Images
from gated_resnext.datasets.table import FOLDER
from gated_resnext.recipes import RECIPES


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of pictures, even and odd digits, and a network with a new head, and one that still learns its gates."""
    folder = tmp_path_factory.mktemp("keras_files")
    images, labels = Images("optical_digits", RECIPES["digits"]).arrays("train")
    for number, (image, label) in enumerate(zip(images[:40], labels, strict=False)):
        path = folder / "photos" / ["even", "odd"][label % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(image).numpy())
    zoo.load("digits_11_4_4_k1", classes=2, seed=0).save(folder / "odd_or_even.keras")
    zoo.load("digits_11_4_4_k1", None, seed=0).save(folder / "learning.keras")
    zoo.load("digits_11_4_4_k1", include_top=False, seed=0).save(folder / "features.keras")
    return folder


def command(run_python, place, name, *flags):
    done = run_python("-m", name, *flags, cwd=place)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(run_python, place, name, *flags):
    done = run_python("-m", name, *flags, cwd=place)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


def test_it_is_evaluated(place, run_python):
    flags = "--model=odd_or_even.keras", "--image_folder=photos", "--split=all"
    printed = command(run_python, place, "gated_resnext.evaluate", *flags)
    photos = Images(f"{FOLDER}{place / 'photos'}", RECIPES["photos"].with_batch_size(1), input_shape=(8, 8, 1))
    pixels, labels = map(np.concatenate, zip(*photos.batches("all", None, 40), strict=True))
    model = zoo.load("digits_11_4_4_k1", classes=2, seed=0)
    expected = Evaluation.of(model.predict_on_batch(pixels), labels, ["even", "odd"]).top1
    assert f"top-1              {100 * expected:.2f} %" in printed
    told = refused(run_python, place, "gated_resnext.evaluate", "--model=odd_or_even.keras")
    assert "does not say what it was trained on: give --dataset or --image_folder" in told


def test_it_is_drawn_also_while_it_learns(place, run_python):
    printed = command(run_python, place, "gated_resnext.draw", "--model=odd_or_even.keras", "--output=fixed.svg")
    model = zoo.load("digits_11_4_4_k1", classes=2, seed=0)
    assert f"odd_or_even: {sum(model.wiring().active_blocks)} of 12 blocks are active" in printed
    assert "odd_or_even" in Svg(place / "fixed.svg").texts
    command(run_python, place, "gated_resnext.draw", "--model=learning.keras", "--output=learning.svg")
    assert "learning" in Svg(place / "learning.svg").texts
    told = refused(run_python, place, "gated_resnext.draw", "--what=gates", "--model=learning.keras")
    assert "learning.keras does not keep how the gates moved; give the --workdir of a training" in told


def test_it_is_exported(place, run_python):
    flags = "--model=odd_or_even.keras", "--image_folder=photos", "--images=0", "--formats=saved_model,tflite"
    command(run_python, place, "export.prune_and_save", *flags)
    folder = place / "models" / "odd_or_even" / "1"
    receipt = json.loads((folder / "receipt.json").read_text())
    assert receipt["checked_on"] == f"4 test images of {FOLDER}{place / 'photos'}"
    assert receipt["preprocessing"] == {"shape": [8, 8, 1], "resize": 8}
    assert (folder / "assets" / "labels.txt").read_text() == "even\nodd\n"
    assert {"saved_model", "encoded_images", "tflite"} < {check["form"] for check in receipt["checks"]}
    both = f"--saved_model={folder}", f"--saved_model={folder / 'model.tflite'}", "--rounds=1", "--json=found.json"
    command(run_python, place, "export.compare", *both, "--image_folder=photos")
    found = json.loads((place / "found.json").read_text())
    assert found["top1"] == [receipt["top1"]] * 2 and found["images"] == receipt["checked_on"]
    command(run_python, place, "export.prune_and_save", "--model=odd_or_even.keras", "--noise", "--output=noise")
    receipt = json.loads((place / "noise" / "odd_or_even" / "1" / "receipt.json").read_text())
    assert receipt["dataset"] is None and receipt["preprocessing"] is None and receipt["top1"] is None


WRONG = {
    "no images": (("--model=odd_or_even.keras",), "--model goes with --image_folder=FOLDER or --dataset=NAME"),
    "other classes": (("--model=learning.keras", "--image_folder=photos"), "learning tells 10 classes apart, .* has 2"),
    "features": (("--model=features.keras", "--noise"), "features.keras does not map images to classes"),
    "nothing there": (("--model=nowhere.keras", "--noise"), "there is no file nowhere.keras"),
    "two": (("--model=learning.keras", "--entry=digits_11_4_4_k1"), "give one of --workdir"),
    "no file's": (("--entry=digits_11_4_4_k1", "--dataset=optical_digits"), "--dataset goes with --model"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_go_together_is_refused(place, run_python, wrong):
    flags, message = WRONG[wrong]
    told = refused(run_python, place, "export.prune_and_save", *flags, "--output=refused")
    assert re.match(f"error: {message}", told), told
    assert not (place / "refused").exists()
