"""What the command says of pictures is what the network computes of them."""

import csv
import itertools
import os

import numpy as np
import pytest
import tensorflow as tf

import gated_resnext
from gated_resnext import trained as networks
from gated_resnext import zoo
from gated_resnext.data import Images
from gated_resnext.recipes import RECIPES

NAME = "digits_11_4_4_k1"


@pytest.fixture(scope="module")
def place(tmp_path_factory, digits_dir):
    """A folder with `pictures`, larger than the network's and of other shapes, in two folders."""
    folder = tmp_path_factory.mktemp("predict")
    images, labels = Images("optical_digits", RECIPES["digits"], digits_dir).arrays("test")
    for number, (image, label) in enumerate(zip(images[:20], labels[:20], strict=True)):
        path = folder / "pictures" / f"of_{label % 2}" / f"{label}_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        larger = tf.image.resize(image, (30 + number, 50 - number), "nearest")
        path.write_bytes(tf.io.encode_png(larger).numpy())
    (folder / "pictures" / ".hidden.png").write_bytes(b"no picture")
    (folder / "pictures" / "notes.txt").write_text("no picture")
    return folder


def pictures(place):
    found = {}
    for path in place.glob("pictures/of_*/*.png"):
        found[str(path.relative_to(place))] = tf.io.decode_png(path.read_bytes(), channels=3).numpy()
    return found


def written(path):
    """(picture, the rows of its classes), in order."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: list(group) for name, group in itertools.groupby(rows, lambda row: row["picture"])}


def said(run_python, place, *arguments, status=0):
    done = run_python("-m", "gated_resnext.predict", *arguments, cwd=place)
    assert done.returncode == status, done.stderr
    return done


def assert_are(answers, model, images, labels, top, resize=None):
    pixels = gated_resnext.preprocess_input(list(images.values()), model, resize=resize)
    probabilities = model.predict(pixels, verbose=0)
    assert list(answers) == sorted(images)
    for name, row in zip(images, probabilities, strict=True):
        order = np.argsort(-row, kind="stable")[:top]
        found = answers[name]
        assert [(int(one["rank"]), one["class"]) for one in found] == [
            (rank, labels[number]) for rank, number in enumerate(order, start=1)
        ]
        np.testing.assert_allclose([float(one["probability"]) for one in found], row[order], atol=2e-6)


def test_of_a_published_network(place, run_python):
    done = said(run_python, place, f"--entry={NAME}", "--output=answers.csv", "pictures")
    assert_are(written(place / "answers.csv"), zoo.load(NAME), pictures(place), "0123456789", 3)
    lines = done.stdout.splitlines()
    assert len(lines) == 21 and lines[-1] == "Written to answers.csv"
    right = [line.split("/")[-1][0] == line.split("  ")[1][0] for line in lines[:-1]]
    assert sum(right) >= 18


@pytest.mark.slow
def test_of_files_of_keras_with_names_of_ones_own(place, run_python):
    model = gated_resnext.transfer(zoo.load(NAME), classes=2, input_shape=(12, 16, 1), classifier_activation=None)
    model.save(place / "own.keras")
    (place / "names.txt").write_text("an even one\nan odd one\n")
    flags = ["--model=own.keras", "--labels=names.txt", "--top=5", "--output=own.csv"]
    said(run_python, place, *flags, "pictures/of_1", "pictures/of_0")
    answers = written(place / "own.csv")
    assert [name.split("/")[1] for name in answers] == sorted((name.split("/")[1] for name in answers), reverse=True)
    softmax = gated_resnext.transfer(model, classifier_activation="softmax")
    assert_are(dict(sorted(answers.items())), softmax, pictures(place), ["an even one", "an odd one"], 5)
    said(run_python, place, "--model=own.keras", "--labels=even,odd", "pictures/of_1")
    done = said(run_python, place, "--model=own.keras", "pictures/of_1", "--labels=a,b,c", status=1)
    assert done.stderr.startswith("error: own tells 2 classes apart. Received: names of 3; ")
    done = said(run_python, place, "--model=own.keras", "pictures/of_1", "--labels=gone.txt", status=1)
    assert done.stderr.endswith("or a file. There is no gone.txt\n")


def test_of_a_training_and_of_what_is_exported(place, trained, exported, run_python):
    folder, _ = exported
    said(run_python, place, f"--workdir={trained}", "--output=workdir.csv", "pictures")
    network = networks.of_workdir(trained)
    model = gated_resnext.load(trained / "model.keras")
    assert_are(written(place / "workdir.csv"), model, pictures(place), "0123456789", 3, network.resize)
    expected = written(place / "workdir.csv")
    for path in (folder, folder / "model.tflite"):
        said(run_python, place, f"--saved_model={path}", "--output=exported.csv", "pictures")
        found = written(place / "exported.csv")
        assert found.keys() == expected.keys()
        for name, rows in expected.items():
            assert [row["class"] for row in found[name]] == [row["class"] for row in rows]
            both = [[float(row["probability"]) for row in one] for one in (found[name], rows)]
            np.testing.assert_allclose(*both, atol=1e-5)


def test_what_cannot_be_decoded_is_named_and_the_rest_answered(place, run_python, tmp_path):
    good = next(place.glob("pictures/of_0/*.png")).read_bytes()
    (tmp_path / "a_good.png").write_bytes(good)
    (tmp_path / "b_bad.png").write_bytes(good[:100])
    (tmp_path / "c_good.png").write_bytes(good)
    (tmp_path / "d_bad.jpg").write_bytes(b"")
    done = said(run_python, tmp_path, f"--entry={NAME}", "--output=answers.csv", ".", status=1)
    # Between them TensorFlow says what it did not like.
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.endswith(" cannot be read or decoded")] == [
        "b_bad.png cannot be read or decoded",
        "d_bad.jpg cannot be read or decoded",
        "error: 2 of 4 pictures cannot be read or decoded",
    ]
    assert list(written(tmp_path / "answers.csv")) == ["a_good.png", "c_good.png"]
    only = said(run_python, tmp_path, f"--entry={NAME}", "b_bad.png", status=1)
    assert only.stdout == "" and only.stderr.endswith("error: 1 of 1 pictures cannot be read or decoded\n")


def test_names_are_any_bytes_and_pictures_may_be_named_twice(place, run_python, tmp_path):
    good = next(place.glob("pictures/of_0/*.png")).read_bytes()
    named = os.fsdecode(b"caf\xe9, \xc3\xbc.png")
    (tmp_path / named).write_bytes(good)
    (tmp_path / "labels.txt").write_bytes(b"\xef\xbb\xbf\xe9\r\n" + b"".join(b"%d\r\n" % n for n in range(9)))
    flags = [f"--entry={NAME}", "--labels=labels.txt", "--top=10", "--output=answers.csv"]
    said(run_python, tmp_path, *flags, named, ".")
    with open(tmp_path / "answers.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert [row["picture"] for row in rows] == [named] * 20
    assert {row["class"] for row in rows} == {os.fsdecode(b"\xe9"), *"012345678"}


@pytest.mark.slow
def test_what_takes_no_pictures_is_refused(place, run_python):
    zoo.load(NAME, include_top=False, pooling="avg").save(place / "features.keras")
    done = said(run_python, place, "--model=features.keras", "pictures", status=1)
    assert "features.keras does not map images to classes" in done.stderr
    shape = zoo.architecture(NAME).replace(input_shape=(8, 8, 4))
    gated_resnext.GatedResNeXt(shape, None, seed=0).save(place / "four.keras")
    done = said(run_python, place, "--model=four.keras", "pictures", status=1)
    assert "pictures have 3 channels, or 1 if grey. Received: four, which takes (8, 8, 4)" in done.stderr


def test_more_pictures_than_a_batch_holds(place, run_python, tmp_path):
    some = [path.read_bytes() for path in sorted(place.glob("pictures/of_*/*.png"))]
    for number in range(140):
        (tmp_path / f"{number:03}.png").write_bytes(some[number % len(some)])
    (tmp_path / "127.png").write_bytes(b"no picture")  # the last of the first 128
    said(run_python, tmp_path, f"--entry={NAME}", "--output=answers.csv", ".", status=1)
    answers = written(tmp_path / "answers.csv")
    assert list(answers) == [f"{number:03}.png" for number in range(140) if number != 127]
    for number in range(128, 140):
        found, first = answers[f"{number:03}.png"], answers[f"{number % len(some):03}.png"]
        assert [row["class"] for row in found] == [row["class"] for row in first]
        both = [[float(row["probability"]) for row in one] for one in (found, first)]
        np.testing.assert_allclose(*both, atol=2e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pictures"], "give one of --entry=NAME (published weights), "),
        ([f"--entry={NAME}", "--workdir=a", "pictures"], "Received: --entry, --workdir"),
        ([f"--entry={NAME}"], "name the pictures, files or folders, behind the options"),
        ([f"--entry={NAME}", "gone.png"], "there is no gone.png"),
        ([f"--entry={NAME}", "empty"], "empty has no picture in it; those are .jpg, "),
        ([f"--entry={NAME}", "--output=answers.txt", "pictures"], "--output is a .csv file. Received: answers.txt"),
        ([f"--entry={NAME}", "--top=0", "pictures"], "--top=0"),
        (["--entry=", "pictures"], "--entry is empty"),
    ],
)
def test_mistakes(arguments, message, place, run_python):
    (place / "empty").mkdir(exist_ok=True)
    done = said(run_python, place, *arguments, status=1)
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.stdout == "" and message in line
