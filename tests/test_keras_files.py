"""A network in a .keras file, as `fit` and `save` leave it, goes to the commands that evaluate, draw and export."""

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from picture import Svg

from gated_resnext import Evaluation, GatedBranches, prune, trained, zoo
from gated_resnext.data import Images
from gated_resnext.datasets.table import DATASETS, FOLDER
from gated_resnext.recipes import RECIPES


@pytest.fixture(scope="module")
def place(tmp_path_factory, digits_dir):
    """A folder of pictures, even and odd digits, and a network with a new head, and one that still learns its gates."""
    folder = tmp_path_factory.mktemp("keras_files")
    images, labels = Images("optical_digits", RECIPES["digits"], digits_dir).arrays("train")
    for number, (image, label) in enumerate(zip(images[:40], labels, strict=False)):
        path = folder / "photos" / ["even", "odd"][label % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(image).numpy())
    zoo.load("digits_11_4_4_k1", classes=2, seed=0).save(folder / "odd_or_even.keras")
    zoo.load("digits_11_4_4_k1", None, seed=0).save(folder / "learning.keras")
    zoo.load("digits_11_4_4_k1", include_top=False, seed=0).save(folder / "features.keras")
    prune(zoo.load("digits_11_4_4_k1")).save(folder / "pruned.keras")
    (folder / "run").mkdir()
    own_model((8, 8, 1)).save(folder / "run" / "model.keras")
    own_model((None, None, 1)).save(folder / "any_size.keras")
    return folder


def own_model(shape):
    """A chain of gated branches."""
    images = keras.Input(shape, dtype="uint8", name="images")
    x = keras.layers.Rescaling(1 / 255)(images)
    for options in ({}, {"fan_in": 1}):
        x = GatedBranches([keras.layers.Conv2D(4, size, padding="same") for size in (1, 3)], **options, seed=0)(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Average()(x))
    return keras.Model(images, keras.layers.Dense(2, activation="softmax")(x))


def command(run_python, place, name, *flags):
    done = run_python("-m", name, *flags, cwd=place)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(run_python, place, name, *flags):
    done = run_python("-m", name, *flags, cwd=place)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_it_is_evaluated(place, run_python, digits_dir):
    flags = "--model=odd_or_even.keras", "--image_folder=photos", "--split=all"
    printed = command(run_python, place, "gated_resnext.evaluate", *flags)
    photos = Images(f"{FOLDER}{place / 'photos'}", RECIPES["photos"].with_batch_size(1), input_shape=(8, 8, 1))
    pixels, labels = map(np.concatenate, zip(*photos.batches("all", None, 40), strict=True))
    model = zoo.load("digits_11_4_4_k1", classes=2, seed=0)
    expected = Evaluation.of(model.predict_on_batch(pixels), labels, ["even", "odd"]).top1
    assert f"top-1              {100 * expected:.2f} %" in printed
    flags = "--model=pruned.keras", "--dataset=optical_digits", f"--data_dir={digits_dir}"
    of_digits = command(run_python, place, "gated_resnext.evaluate", *flags)
    assert f"top-1              {100 * zoo.card('digits_11_4_4_k1')['top1']:.2f} %" in of_digits
    told = refused(run_python, place, "gated_resnext.evaluate", "--model=odd_or_even.keras")
    assert "does not say what it was trained on: give --dataset or --image_folder" in told


@pytest.mark.slow
def test_it_is_drawn_also_while_it_learns(place, run_python):
    printed = command(run_python, place, "gated_resnext.draw", "--model=odd_or_even.keras", "--output=fixed.svg")
    model = zoo.load("digits_11_4_4_k1", classes=2, seed=0)
    assert f"odd_or_even: {sum(model.wiring().active_blocks)} of 12 blocks are active" in printed
    assert "odd_or_even" in Svg(place / "fixed.svg").texts
    command(run_python, place, "gated_resnext.draw", "--model=learning.keras", "--output=learning.svg")
    assert "learning" in Svg(place / "learning.svg").texts
    printed = command(run_python, place, "gated_resnext.draw", "--model=pruned.keras", "--output=pruned.svg")
    active = sum(zoo.card("digits_11_4_4_k1")["active_blocks"])
    assert f"pruned: {active} of {active} blocks are active" in printed
    told = refused(run_python, place, "gated_resnext.draw", "--what=curves", "--model=learning.keras")
    assert "learning.keras holds no learning curve; give the --workdir of a training" in told
    told = refused(run_python, place, "gated_resnext.draw", "--model=run/model.keras")
    assert "run/model.keras holds a Functional; a GatedResNeXt is drawn" in told
    told = refused(run_python, place, "gated_resnext.draw", "--what=gates", "--model=learning.keras")
    assert "learning.keras does not keep how the gates moved; give the --workdir of a training" in told


@pytest.mark.slow
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
    assert receipt["network"] == "odd_or_even"
    command(run_python, place, "export.prune_and_save", "--model=odd_or_even.keras", "--noise", "--output=noise")
    receipt = json.loads((place / "noise" / "odd_or_even" / "1" / "receipt.json").read_text())
    assert receipt["dataset"] is None and receipt["preprocessing"] is None and receipt["top1"] is None


def test_one_of_ones_own_is_exported(place, run_python):
    flags = "--model=run/model.keras", "--image_folder=photos", "--output=own", "--formats=tflite"
    printed = command(run_python, place, "export.prune_and_save", *flags)
    assert "run, checked on 4 test images" in printed and "folded" not in printed
    assert (place / "own" / "run" / "1" / "model.tflite").is_file()


@pytest.mark.slow
def test_noise_wants_no_images(place, run_python):
    """Also where it is told how pictures become pixels: by a data set that is not there, or as those of a folder."""
    for number, images in enumerate(("--dataset=imagenet2012", "--image_folder=nowhere"), start=1):
        flags = "--model=odd_or_even.keras", images, "--noise", "--output=unseen", "--formats=tflite"
        command(run_python, place, "export.prune_and_save", *flags, "--data_dir=empty")
        assert (place / "unseen" / "odd_or_even" / str(number) / "model.tflite").is_file()


def test_the_images_say_how_they_are_prepared():
    for name in ("mini_imagenet_20_4_8_k4", "imagenet_50_4_32_k16", "digits_11_4_4_k1"):
        dataset = zoo.entry(name).dataset
        info = DATASETS[dataset]
        assert trained.recipe_for(dataset, info.input_shape) == RECIPES[info.recipe]
    assert trained.recipe_for("mini_imagenet", (48, 48, 3)) == RECIPES["cifar"]  # as `train` has it for another input
    assert trained.recipe_for(f"{FOLDER}/nowhere", (48, 48, 3)) == RECIPES["photos"]


WRONG = {
    "no images": (("--model=odd_or_even.keras",), "--model goes with --image_folder=FOLDER or --dataset=NAME"),
    "other classes": (("--model=learning.keras", "--image_folder=photos"), "learning tells 10 classes apart, .* has 2"),
    "features": (("--model=features.keras", "--noise"), "features.keras does not map images to classes"),
    "nothing there": (("--model=nowhere.keras", "--noise"), "there is no file nowhere.keras"),
    "any size": (("--model=any_size.keras", "--noise"), "a model is exported for images of one size"),
    "not to be compressed": (
        ("--model=run/model.keras", "--image_folder=photos", "--compress=qat"),
        "--compress is for a GatedResNeXt. Received: run/model.keras, a Functional",
    ),
    "two": (("--model=learning.keras", "--entry=digits_11_4_4_k1"), "give one of --workdir"),
    "no file's": (("--entry=digits_11_4_4_k1", "--dataset=optical_digits"), "--dataset goes with --model"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_go_together_is_refused(place, run_python, wrong):
    flags, message = WRONG[wrong]
    told = refused(run_python, place, "export.prune_and_save", *flags, "--output=refused")
    assert re.match(f"error: {message}", told), told
    assert not (place / "refused").exists()
