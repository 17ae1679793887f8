"""The export command on images of one's own, which may have changed since the training."""

import dataclasses

import numpy as np
import PIL.Image
import pytest
import test_own_data

from gated_resnext import GatedResNeXt, files, own_data
from gated_resnext.datasets.table import FOLDER
from gated_resnext.recipes import RECIPES, read
from gated_resnext.workdir import Run

CLASSES = ["ant", "bee", "cat"]
TINY = {**test_own_data.TINY, "input_shape": [8, 8, 3]}
RECIPE = {**test_own_data.RECIPE, "batch_size": 4}


def fill(folder, label, count):
    """So many pictures of noise as one class."""
    (folder / label).mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng([number, *label.encode()]).integers(0, 256, (9, 10, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(folder / label / f"{number:02}.png")


def ended(run, folder, labels):
    """The workdir of a training that has just ended, of a network as it began."""
    files.write_json(folder / "run.json", run.to_dict())
    files.write_json(folder / "result.json", {"labels": labels})
    GatedResNeXt(run.architecture, run.initial_wiring(), seed=0).save(folder / "model.keras")


@pytest.fixture
def place(tmp_path):
    """`photos`, and in `run` the workdir of a training on them that has just ended."""
    for label in CLASSES:
        fill(tmp_path / "photos", label, 20)
    files.write_json(tmp_path / "quick.json", RECIPE)
    quick = read(str(tmp_path / "quick.json"))
    run = own_data.run_of(f"{FOLDER}{tmp_path / 'photos'}", fields=TINY, recipe=lambda own: quick)
    ended(run, tmp_path / "run", CLASSES)
    return tmp_path


@pytest.fixture
def export(place, run_python):
    """Runs the command in that place."""

    def run(*flags):
        return run_python("-m", "export.prune_and_save", "--workdir=run", "--output=models", *flags, cwd=place)

    return run


def one_line(done):
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def shipped(place):
    (folder,) = (place / "models").glob("*/1")
    return folder


def test_a_class_that_came_or_went_is_refused(place, export):
    fill(place / "photos", "bat", 20)
    assert "photos_8_2_3_k1 tells 3 classes apart, folder:" in one_line(export("--formats=tflite"))
    (place / "photos" / "bee").rename(place / "bee")
    error = one_line(export("--formats=tflite"))
    assert "class 1 is 'bee' to photos_8_2_3_k1 and 'bat' in folder:" in error
    assert not (place / "models").exists()


def test_the_names_are_those_of_the_training(place, export):
    files.write_json(place / "run" / "result.json", {"labels": ["0", "1", "2"]})  # it knew no names
    done = export("--formats=tflite")
    assert done.returncode == 0, done.stderr
    assert (shipped(place) / "labels.txt").read_text().split() == ["0", "1", "2"]
    files.write_json(place / "run" / "result.json", {"labels": CLASSES[:2]})
    error = one_line(export("--formats=tflite"))
    assert "photos_8_2_3_k1 tells 3 classes apart, and its training named 2" in error


def test_a_broken_image_is_named(place, export):
    (place / "photos" / "bee" / "07.png").write_bytes(b"")
    assert f"1 of 60 images cannot be decoded; mend or remove them: {place}/photos/bee/07.png" in one_line(export())
    assert not (place / "models").exists()


def test_a_folder_that_moved_is_named_and_what_to_do(place, export):
    (place / "photos").rename(place / "pictures")
    error = one_line(export())
    told = "give --image_folder=FOLDER, where they are now; or export with --noise"
    assert f"sub-folder for each class. Received: {place}/photos; {told}" in error
    assert not (place / "models").exists()
    done = export("--image_folder=pictures", "--formats=tflite")
    assert done.returncode == 0, done.stderr
    assert files.read_json(shipped(place) / "receipt.json")["dataset"] == f"{FOLDER}{place / 'pictures'}"
    assert (shipped(place) / "labels.txt").read_text().split() == CLASSES


def test_a_folder_is_of_a_training_on_one(place, export, run_python):
    done = run_python("-m", "export.prune_and_save", "--entry=digits_11_4_4_k1", "--image_folder=photos", cwd=place)
    assert "--image_folder goes with --workdir and --model: an entry was trained on a data set" in one_line(done)
    run = Run.read(place / "run")
    files.write_json(place / "run" / "run.json", {**run.to_dict(), "dataset": "cifar10"})
    assert "is for a training on a folder; run is of cifar10" in one_line(export("--image_folder=photos"))


# Without the images


@pytest.mark.slow
def test_noise_gives_the_names_and_the_signature_that_the_images_give(run_python, digits_dir, tmp_path):
    """Digits are cropped to 6x6 here, and so their pictures of 8x8 are before."""
    run = Run.of("digits_11_4_4_k1", RECIPES["digits"], seed=0)
    run = dataclasses.replace(run, architecture=run.architecture.replace(input_shape=(6, 6, 1)))
    labels = [f"digit {digit}" for digit in range(10)]
    ended(run, tmp_path / "run", labels)
    receipts = []
    for flag in ("--noise", f"--data_dir={digits_dir}"):
        flags = ("--workdir=run", "--output=models", "--formats=saved_model", "--images=9", flag)
        done = run_python("-m", "export.prune_and_save", *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        version = tmp_path / "models" / run.entry / str(len(receipts) + 1)
        assert (version / "assets" / "labels.txt").read_text().splitlines() == labels
        receipts.append(files.read_json(version / "receipt.json"))
    noise, images = receipts
    assert noise["preprocessing"] == images["preprocessing"] == {"shape": [6, 6, 1], "resize": 8}
    forms = [[check["form"] for check in receipt["checks"]] for receipt in receipts]
    assert forms[0] == forms[1] == ["pruned", "saved_model", "encoded_images"]


def test_noise_leaves_out_the_signature_of_pictures_whose_size_nobody_knows(run_python, tmp_path):
    run = dataclasses.replace(Run.of("digits_11_4_4_k1", RECIPES["digits"], seed=0), dataset="somebodys_letters")
    ended(run, tmp_path / "run", None)
    flags = ("--workdir=run", "--output=models", "--formats=saved_model", "--images=9", "--noise")
    done = run_python("-m", "export.prune_and_save", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    receipt = files.read_json(tmp_path / "models" / run.entry / "1" / "receipt.json")
    assert receipt["preprocessing"] is None
    assert [check["form"] for check in receipt["checks"]] == ["pruned", "saved_model"]
