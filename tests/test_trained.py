"""One network from the zoo, from a workdir and from a file is evaluated to the same numbers; and the command."""

import json
import re
import shutil

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from export import shipping
from gated_resnext import Connectivity, GatedResNeXt, files, trained, zoo
from gated_resnext.data import Images
from gated_resnext.datasets.table import FOLDER
from gated_resnext.errors import UserError
from gated_resnext.recipes import RECIPES
from gated_resnext.workdir import Run

K1 = "digits_11_4_4_k1"
CARD = zoo.card(K1)


@pytest.fixture(scope="module")
def places(tmp_path_factory, digits_dir):
    """The published network as the zoo has it, as a finished workdir, and exported twice."""
    folder = tmp_path_factory.mktemp("places")
    model, recipe = zoo.load(K1, "published"), RECIPES["digits"]
    files.write_json(folder / "run" / "run.json", Run.of(K1, recipe, seed=0).to_dict())
    files.write_json(folder / "run" / "result.json", {"labels": CARD["labels"]})
    model.save(folder / "run" / "model.keras")
    pixels, classes = Images("optical_digits", recipe, digits_dir).test_batch(50)
    shipped = shipping.ship(
        model,
        folder / "models" / K1,
        shipping.Probe(pixels, classes, "test images of optical_digits"),
        labels=CARD["labels"],
        dataset="optical_digits",
    )
    return {"run": folder / "run", "saved_model": shipped.folder, "tflite": shipped.folder / "model.tflite"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory, digits_dir):
    """The first 60 test images as a folder of pictures, a sub-folder a class."""
    folder = tmp_path_factory.mktemp("own") / "photos"
    pixels, labels = Images("optical_digits", RECIPES["digits"], digits_dir).test_batch(60)
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = folder / str(label) / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image[..., 0]).save(path)
    return folder


def opened(places, name):
    if name == "zoo":
        return trained.of_entry(K1)
    return trained.of_workdir(places["run"]) if name == "run" else trained.of_saved_model(places[name])


@pytest.mark.parametrize("name", ["zoo", "run", "saved_model", "tflite"])
def test_every_form_of_a_network_reaches_what_its_card_says(places, digits_dir, name):
    network = opened(places, name)
    assert (network.name, network.shape, network.classes) == (K1, (8, 8, 1), 10)
    assert (network.labels, network.dataset) == (CARD["labels"], "optical_digits")
    images = trained.images_for(network, data_dir=digits_dir)
    seen = []
    found, logits = trained.evaluate(network, images, seen=seen.append)
    assert found.top1 == CARD["top1"] and found.images == sum(seen) == CARD["test_images"] and not logits
    expected, _ = trained.evaluate(opened(places, "zoo"), images)
    np.testing.assert_array_equal(found.confusion, expected.confusion)
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)


def test_a_network_that_another_took_the_place_of_is_said(places, tmp_path):
    run = shutil.copytree(places["run"], tmp_path / "run")
    inner = keras.saving.load_model(run / "model.keras")
    images = keras.Input((8, 8, 1))
    keras.Model(images, keras.layers.Dense(10)(inner(images))).save(run / "model.keras")
    with pytest.raises(UserError, match=r"model.keras holds a Functional, not the network of the training$"):
        trained.of_workdir(run)


def test_pictures_come_to_a_cropped_network_as_its_test_images_did(places, tmp_path):
    small = zoo.architecture("cifar10_20_4_8_k1").replace(input_shape=(28, 28, 3))
    model = GatedResNeXt(small, Connectivity.random(small.modules, 8, 1, seed=0), seed=0)
    assert trained._of_model(model, "x", "x", None, "cifar10", RECIPES["cifar"]).resize == 32
    run = shutil.copytree(places["run"], tmp_path / "run")
    assert trained.of_workdir(run).resize == 8
    files.write_json(run / "result.json", {**files.read_json(run / "result.json"), "resize": 12})
    assert trained.of_workdir(run).resize == 12


def test_splits_and_counts(digits_dir):
    network = trained.of_entry(K1)
    images = trained.images_for(network, data_dir=digits_dir)
    assert [images.count(split) for split in trained.SPLITS] == [360, 1437, 1797]
    measured = {split: trained.evaluate(network, images, split=split)[0] for split in trained.SPLITS}
    for split, found in measured.items():
        assert found.images == images.count(split)
    np.testing.assert_array_equal(measured["all"].confusion, measured["train"].confusion + measured["test"].confusion)
    some, _ = trained.evaluate(network, images, count=130, bins=3)
    labels = images.arrays("test")[1][:130]
    assert some.class_images.tolist() == np.bincount(labels, minlength=10).tolist() and len(some.bins) == 3


def test_a_folder_of_pictures(places, photos, digits_dir):
    network = opened(places, "zoo")
    expected, _ = trained.evaluate(network, trained.images_for(network, data_dir=digits_dir), count=60)
    for name in ("zoo", "saved_model"):
        network = opened(places, name)
        found, _ = trained.evaluate(network, trained.images_for(network, f"{FOLDER}{photos}"), split="all")
        np.testing.assert_array_equal(found.confusion, expected.confusion)
        assert found.images == 60 and found.labels == tuple(CARD["labels"])


@pytest.mark.parametrize(
    ("dataset", "shape", "resize"),
    [("imagenet2012", (224, 224, 3), 256), ("imagenet2012", (160, 160, 3), None), (None, (224, 224, 3), None)],
)
def test_one_that_says_nothing_of_pictures_takes_those_of_the_data_set_as_its_networks_do(
    tmp_path, foreign_model, dataset, shape, resize
):
    path = foreign_model(tmp_path / "theirs", lambda x: {"y": x[:, 0, 0, :2]}, shape=(None, *shape))
    assert trained.of_one({"saved_model": str(path)}, dataset=dataset).resize == resize


def test_a_saved_model_of_other_making(tmp_path, digits_dir, foreign_model):
    """It knows the digits by one pixel, takes one image of any size at a time, from 0 to 1, and gives logits."""
    path = foreign_model(
        tmp_path / "theirs",
        lambda x: {"y": 9.0 * tf.one_hot(tf.cast(x[:, 4, 4, 0] * 9, tf.int32), 10)},
        shape=(1, None, None, 1),
    )
    network = trained.of_saved_model(path, white=1.0)
    assert (network.name, network.labels, network.dataset, network.resize) == ("theirs", None, None, None)
    with pytest.raises(UserError, match="theirs does not say what it was trained on"):
        trained.images_for(network, data_dir=digits_dir)
    images = trained.images_for(network, "optical_digits", digits_dir)
    found, logits = trained.evaluate(network, images, count=50)
    pixels, labels = images.arrays("test")
    predicted = (pixels[:50, 4, 4, 0] / np.float32(255) * 9).astype(int)
    assert logits and found.top1 == (predicted == labels[:50]).mean()
    folder = tmp_path / "photos"
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for number in range(5):
            PIL.Image.new("L", (9, 9)).save(folder / label / f"{number}.png")
    with pytest.raises(UserError, match="does not say the size of its images"):
        trained.images_for(network, f"{FOLDER}{folder}")
    with pytest.raises(UserError, match="tells 10 classes apart, .*photos has 2"):
        trained.images_for(trained.of_entry(K1), f"{FOLDER}{folder}")


def test_classes_of_other_names_are_refused(places, photos, tmp_path):
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for label in CARD["labels"]:
        (renamed / f"digit {label}").symlink_to(photos / label)
    names = [f"digit {label}" for label in CARD["labels"]]
    network = trained.of_entry(K1)
    with_names = network._replace(labels=[*names[:3], "dog", *names[4:]])
    with pytest.raises(UserError, match=f"class 3 is 'dog' to {K1} and 'digit 3' in folder:"):
        trained.images_for(with_names, f"{FOLDER}{renamed}")
    for labels in (names, CARD["labels"], None):  # the same, numbers, none
        images = trained.images_for(network._replace(labels=labels), f"{FOLDER}{renamed}")
        found, _ = trained.evaluate(network._replace(labels=labels), images, count=5)
        assert found.labels == tuple(names)


def test_numbers_in_the_order_of_folders_are_other_classes():
    numbers = [str(number) for number in range(12)]
    network = trained.of_entry(K1)._replace(classes=12)
    for own, others in ((numbers, sorted(numbers)), (sorted(numbers), numbers)):
        with pytest.raises(UserError, match=f"class 2 is '{own[2]}' to {K1} and '{others[2]}' in folder:signs"):
            trained.check_classes(network._replace(labels=own), "folder:signs", others)
        trained.check_classes(network._replace(labels=own), "folder:signs", own)


def test_a_workdir_without_a_trained_network_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no trained network .it holds no training"):
        trained.of_workdir(tmp_path)
    with pytest.raises(UserError, match="cifar10_20_4_8_k2; train them"):
        trained.of_entry("cifar10_20_4_8_k2")
    with pytest.raises(UserError, match="there is no .*nowhere"):
        trained.of_saved_model(tmp_path / "nowhere")


# The command


@pytest.mark.parametrize("name", ["zoo", "saved_model"])
def test_the_command(places, digits_dir, tmp_path, run_python, name):
    source = f"--entry={K1}" if name == "zoo" else f"--saved_model={places[name]}"
    done = run_python(
        "-m", "gated_resnext.evaluate", source, f"--data_dir={digits_dir}", f"--output={tmp_path / 'out'}"
    )
    assert done.returncode == 0, done.stderr
    top1 = f"{100 * CARD['top1']:.2f} %"
    assert f"{K1} on 360 test images of optical_digits\n  top-1              {top1}, 95 % interval 9" in done.stdout
    assert re.search(r"worst classes\n +90.91 %  of 33  8\n", done.stdout)
    assert done.stdout.endswith(f"Written to {tmp_path / 'out'}: evaluation.json, confusion.png, confusion.svg\n")
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["top1"] == CARD["top1"] and [one["label"] for one in found["classes"]] == CARD["labels"]
    with PIL.Image.open(tmp_path / "out" / "confusion.png") as picture:
        assert picture.width > 900 and picture.height > 500
    assert f"top-1 {top1}</text>" in (tmp_path / "out" / "confusion.svg").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "confusion.png", "confusion.svg", "evaluation.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "flags, message",
    [
        ((), "Received: none"),
        (("--entry=a", "--workdir=b"), "Received: --entry, --workdir"),
        (("--entry=a", "--dataset=b", "--image_folder=c"), "give one of --dataset=NAME and --image_folder=FOLDER"),
        (("--entry=digits_11_4_4_k9",), "the closest are digits_11_4_4_k"),
        (("--workdir=nowhere",), "nowhere has no trained network"),
        (("--saved_model=",), "--saved_model is empty"),
        ((f"--entry={K1}", "--split=val"), "--split"),
        ((f"--entry={K1}", "--images=0"), "--images"),
    ],
)
def test_what_is_wrong_is_one_line(flags, message, run_python, tmp_path):
    done = run_python("-m", "gated_resnext.evaluate", *flags, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not list(tmp_path.iterdir())
