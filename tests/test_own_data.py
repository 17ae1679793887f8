"""Training on images of one's own, from the folder to the exported network."""

import dataclasses
import json
import shutil
import textwrap

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets

import gated_resnext
from gated_resnext import files, trained, trainer, zoo
from gated_resnext.architecture import Architecture
from gated_resnext.datasets.table import FOLDER
from gated_resnext.errors import UserError
from gated_resnext.own_data import run_of
from gated_resnext.recipes import RECIPES, read
from gated_resnext.sources import FolderSource
from gated_resnext.workdir import Run

TINY = {
    "depth": 8, "width": 2, "cardinality": 3, "fan_in": 1, "input_shape": [16, 16, 3],
    "stem": "conv3", "stem_filters": 4, "filters": 8, "stages": [1, 1],
}  # fmt: skip
RECIPE = {
    "name": "quick",
    "phases": [
        {"epochs": 1, "learning_rate": 0.1, "gate_learning_rate": 0.2},
        {"epochs": 1, "learning_rate": 0.1},
    ],
    "batch_size": 16,
    "weight_decay": 5e-4,
    "crop": "resized",
    "flip": False,
}


def folder_of(path, classes, count):
    """A folder of small images of one colour."""
    for label in classes:
        (path / label).mkdir(parents=True)
        for number in range(count):
            PIL.Image.new("RGB", (5, 4), (number, 9, 9)).save(path / label / f"{number:03}.png")
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("own") / "My Photos-2", ["ant", "bee", "cat"], 10)


# What is trained


def test_a_folder_is_trained_as_mini_imagenet_with_its_own_classes(photos):
    run = run_of(f"{FOLDER}{photos}", seed=7)
    assert run.architecture == zoo.architecture("mini_imagenet_20_4_8_k1").replace(classes=3)
    assert (run.entry, run.wiring, run.seed) == ("my_photos_2_20_4_8_k1", "learned", 7)
    assert (run.dataset, run.recipe) == (f"{FOLDER}{photos}", RECIPES["photos"])


def test_images_of_one_size_are_trained_as_cifar10_in_their_own_shape_by_their_own_recipe(digits_dir):
    run = run_of("optical_digits", data_dir=digits_dir)
    assert run.architecture == zoo.architecture("cifar10_20_4_8_k1").replace(input_shape=(8, 8, 1))
    assert (run.entry, run.recipe) == ("optical_digits_20_4_8_k1", RECIPES["digits"])


@pytest.mark.parametrize("fields, recipe", [({}, "digits"), ({"input_shape": (6, 6, 1)}, "cifar")])
def test_the_recipe_of_a_data_set_is_of_its_own_input(digits_dir, fields, recipe):
    run = run_of("optical_digits", entry="digits_11_4_4_k1", fields=fields, data_dir=digits_dir)
    assert run.recipe == RECIPES[recipe]


@pytest.mark.parametrize(
    "entry, fields, name",
    [
        (None, {"fan_in": 2}, "my_photos_2_20_4_8_k2"),
        (None, {"depth": 29, "width": 8}, "my_photos_2_29_8_8_k1"),
        (None, {"aggregation": "weighted", "fan_in": 2}, "my_photos_2_20_4_8_weighted_k2"),
        (None, {"aggregation": "sum", "gates": "real", "fan_in": 2}, "my_photos_2_20_4_8_sum_real_k2"),
        ("cifar10_29_8_8_k4", {}, "my_photos_2_29_8_8_k4"),
        ("cifar10_20_4_8_full", {}, "my_photos_2_20_4_8_full"),
        ("cifar10_20_4_8_full", {"cardinality": 4}, "my_photos_2_20_4_4_full"),
        ("cifar10_20_4_8_random_k4", {"fan_in": 3}, "my_photos_2_20_4_8_random_k3"),
        ("imagenet_50_4_32_k16", {"depth": 101}, "my_photos_2_101_4_32_k16"),
    ],
)
def test_an_entry_and_fields_of_the_architecture(photos, entry, fields, name):
    run = run_of(f"{FOLDER}{photos}", entry=entry, fields=fields)
    assert run.entry == name and run.architecture.classes == 3
    template = zoo.architecture(entry or "mini_imagenet_20_4_8_k1")
    assert run.architecture.input_shape == template.input_shape
    assert {field: getattr(run.architecture, field) for field in fields} == fields
    assert run.wiring == (zoo.entry(entry).wiring if entry else "learned")
    assert sum(run.architecture.stages) == run.architecture.modules


@pytest.mark.parametrize(
    "folder, stem",
    [("größe 雪", "gr_e"), ("雪", "images"), ("..x..", "x"), ("A--B", "a_b"), ("x" * 300, "x" * 300), ("a/b/", "b")],
)
def test_the_name_is_made_of_the_folders(folder, stem, photos, tmp_path):
    target = tmp_path / folder[:200]
    shutil.copytree(photos, target)
    assert run_of(f"{FOLDER}{target}").entry == f"{stem[:200]}_20_4_8_k1"


def test_a_recipe_by_name_scaled_or_from_a_file(photos, tmp_path):
    files.write_json(tmp_path / "quick.json", RECIPE)
    run = run_of(f"{FOLDER}{photos}", recipe=lambda own: read("imagenet", 0.5))
    assert run.recipe == RECIPES["imagenet"].scaled(0.5)
    recipe = run_of(f"{FOLDER}{photos}", recipe=lambda own: read(str(tmp_path / "quick.json"), 2.0)).recipe
    assert (recipe.name, recipe.epochs, recipe.batch_size) == ("quick", 4, 16)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"entry": "cifar10_20_4_8_k9"}, "there is no network 'cifar10_20_4_8_k9'"),
        ({"fields": {"classes": 4}}, "has 3 classes. Received: classes=4"),
        ({"fields": {"fan_in": 9}}, "--architecture: fan_in .* at most cardinality"),
        ({"fields": {"wdith": 9}}, "--architecture: .*wdith"),
        ({"fields": {"depth": 21}}, "--architecture: depth must be"),
        ({"recipe": lambda own: read("adam")}, "recipe must be one of"),
        ({"recipe": lambda own: read(own, 0.0)}, "epochs_scale must be above 0"),
    ],
)
def test_what_does_not_fit_is_refused(photos, options, message):
    with pytest.raises(UserError, match=message):
        run_of(f"{FOLDER}{photos}", **options)


def test_the_number_of_classes_may_be_told(photos):
    assert run_of(f"{FOLDER}{photos}", fields={"classes": 3}).architecture.classes == 3


def test_another_network_on_the_zoos_data_needs_no_tensorflow(run_python):
    code = """
        import sys
        from gated_resnext.own_data import run_of
        run = run_of("cifar100", entry="cifar100_29_8_8_k4", fields={"fan_in": 2})
        print(run.entry, run.wiring, run.architecture.fan_in, run.architecture.classes, run.recipe.name)
        print(*sorted({"tensorflow", "keras", "jax"} & set(sys.modules)))
    """
    done = run_python("-c", textwrap.dedent(code))
    assert done.stdout == "cifar100_29_8_8_k2 learned 2 100 cifar\n\n", done.stderr


def test_another_batch_size_is_the_schedule_but_for_it(photos):
    run = run_of(f"{FOLDER}{photos}", recipe=lambda own: read(own, batch_size=7))
    assert run.recipe == dataclasses.replace(RECIPES["photos"], name="photos, batches of 7", batch_size=7)
    assert run_of(f"{FOLDER}{photos}", recipe=lambda own: read(own, batch_size=64)).recipe == RECIPES["photos"]


def test_a_run_on_names_that_are_no_unicode_can_be_written_down(tmp_path):
    folder = tmp_path / b"caf\xe9".decode(errors="surrogateescape")
    run = run_of(f"{FOLDER}{folder_of(folder, ['a', 'b'], 5)}")
    files.write_json(tmp_path / "run" / "run.json", run.to_dict())
    assert Run.read(tmp_path / "run") == run


# From the folder to the exported network


def digits_folder(path):
    """24 of each of scikit-learn's digits as PNG files, with a folder for each class."""
    digits = sklearn.datasets.load_digits()
    for digit in range(10):
        target = path / f"digit {digit}"
        target.mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.target == digit][:24]):
            pixels = np.rint(image * 15.9375).astype(np.uint8)
            PIL.Image.fromarray(pixels).resize((12, 12)).save(target / f"größe {number:04}.png")
    (path / "digit 0" / "notes.txt").write_text("no image")
    return path


def command(run_python, folder, workdir, recipe, cwd):
    return run_python(
        "-m",
        "gated_resnext.train",
        f"--image_folder={folder}",
        f"--architecture={json.dumps(TINY)}",
        f"--recipe={recipe}",
        f"--workdir={workdir}",
        cwd=cwd,
    )


@pytest.fixture(scope="module")
def trained_on_a_folder(run_python, tmp_path_factory):
    place = tmp_path_factory.mktemp("own data, größer")
    folder, recipe = digits_folder(place / "digits"), place / "quick.json"
    files.write_json(recipe, RECIPE)
    done = command(run_python, "digits", "run", "quick.json", place)
    assert done.returncode == 0, done.stderr
    return place, folder, done


def test_a_training_on_a_folder_ends_in_its_files(trained_on_a_folder):
    place, folder, done = trained_on_a_folder
    assert "Traceback" not in done.stderr
    result = files.read_json(place / "run" / "result.json")
    assert (result["entry"], result["dataset"]) == ("digits_8_2_3_k1", f"{FOLDER}{folder}")
    assert result["labels"] == [f"digit {digit}" for digit in range(10)]
    # Of 24 images of a class, those in the places 4 and 14.
    assert result["test_images"] == 20
    assert result["epochs"] == 2
    assert 0 <= result["top1"] <= 1
    assert "Trained digits_8_2_3_k1 on " in done.stdout and "Next: " in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Training on ") and lines[1].startswith("Phase 1 of 2")
    images = f"10 classes, 220 training and 20 test images of {FOLDER}{folder}"
    assert lines[0].endswith(f": {images}; left alone there: 1 .txt")


def test_its_network_is_loaded(trained_on_a_folder):
    place, _, _ = trained_on_a_folder
    model = gated_resnext.load(place / "run" / "model.keras")
    assert model.architecture == Architecture(**{**TINY, "classes": 10})
    result = files.read_json(place / "run" / "result.json")
    assert model.connectivity.to_dict() == result["connectivity"]
    probabilities = model.predict_on_batch(np.zeros((2, 16, 16, 3), np.uint8))
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


@pytest.mark.slow
def test_its_network_is_exported(trained_on_a_folder, run_python):
    place, _, _ = trained_on_a_folder
    done = run_python("-m", "export.prune_and_save", "--workdir=run", "--output=models", cwd=place)
    assert done.returncode == 0, done.stderr
    written = [path for path in (place / "models").rglob("*") if path.is_file()]
    assert any(path.name == "saved_model.pb" for path in written)
    assert any(path.suffix == ".tflite" for path in written)


def add(folder, *names):
    for name in names:
        shutil.copy(next((folder / "digit 3").iterdir()), folder / "digit 3" / name)


def remove(folder):
    min((folder / "digit 3").iterdir()).unlink()


CHANGES = {
    "one added, and as many for training as before": lambda folder: add(folder, "a.png"),
    "several added": lambda folder: add(folder, "a.png", "b.png", "z.png"),
    "one removed": remove,
    "one replaced": lambda folder: (remove(folder), add(folder, "z.png")),
    "one with another content": lambda folder: shutil.copy(
        min((folder / "digit 0").iterdir()), min((folder / "digit 3").iterdir())
    ),
    "a class added": lambda folder: shutil.copytree(folder / "digit 3", folder / "digit 33"),
    "a class removed": lambda folder: shutil.rmtree(folder / "digit 9"),
}


@pytest.fixture
def copied(trained_on_a_folder, tmp_path):
    """The images and the workdir of the training, to be changed."""
    place, folder, _ = trained_on_a_folder
    images, workdir = shutil.copytree(folder, tmp_path / "digits"), shutil.copytree(place / "run", tmp_path / "run")
    files.write_json(workdir / "run.json", {**files.read_json(workdir / "run.json"), "dataset": f"{FOLDER}{images}"})
    return images, workdir


@pytest.mark.parametrize("change", [name for name in CHANGES if "class" not in name])
def test_to_test_on_other_images_is_told(copied, change, run_python):
    images, workdir = copied
    network = trained.of_workdir(workdir)
    assert trained.changed(network, trained.images_for(network)) == ""
    CHANGES[change](images)
    told = trained.changed(network, trained.images_for(network))
    assert told.startswith(f"the images of {FOLDER}{images} have changed since the training")
    if change == "several added":
        done = run_python("-m", "gated_resnext.evaluate", f"--workdir={workdir}")
        assert f"note: {told}" in done.stdout, done.stderr
        done = run_python("-m", "export.prune_and_save", f"--workdir={workdir}", "--formats=tflite", cwd=images.parent)
        [receipt] = images.parent.glob("models/*/1/receipt.json")
        assert f"note: {told}" in done.stdout, done.stderr
        assert files.read_json(receipt)["checked_on"].endswith("which has changed since the training")


@pytest.mark.parametrize("change", CHANGES)
def test_to_go_on_with_other_images_is_refused(copied, change):
    images, workdir = copied
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file() and path.name != ".lock"}
    CHANGES[change](images)
    with pytest.raises(UserError, match="choose another --workdir"):
        trainer.train(Run.read(workdir), workdir)
    assert {path: path.read_bytes() for path in before} == before


def test_to_go_on_with_the_same_images_is_not(copied):
    images, workdir = copied
    result = files.read_json(workdir / "result.json")
    assert trainer.train(Run.read(workdir), workdir) == {**result, "dataset": f"{FOLDER}{images}"}


def test_the_folder_may_have_moved(copied):
    images, workdir = copied
    moved = Run.read(workdir)
    moved = dataclasses.replace(moved, dataset=f"{FOLDER}{images.rename(images.parent / 'moved')}")
    result = files.read_json(workdir / "result.json")
    assert trainer.train(moved, workdir) == {**result, "dataset": moved.dataset}
    assert Run.read(workdir) == moved


def test_a_folder_with_other_images_is_not_the_one_that_moved(copied):
    images, workdir = copied
    before = files.read_json(workdir / "run.json")
    place = shutil.copytree(images, images.parent / "other")
    other = dataclasses.replace(Run.read(workdir), dataset=f"{FOLDER}{place}")
    with pytest.raises(UserError, match="belongs to another run .dataset is folder:.* there and folder:.*other here"):
        trainer.train(other, workdir)  # equal as they are: the first is still there
    remove(place)
    shutil.rmtree(images)
    with pytest.raises(UserError, match="began with other images of folder:.*choose another --workdir"):
        trainer.train(other, workdir)
    assert files.read_json(workdir / "run.json") == before


def test_the_command_says_so_in_one_line(copied, run_python, tmp_path):
    images, _ = copied
    remove(images)
    files.write_json(tmp_path / "quick.json", RECIPE)
    done = command(run_python, "digits", "run", "quick.json", tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "began with other images of folder:" in line and line.endswith("choose another --workdir")


def test_a_run_that_knew_its_images_by_name_alone_goes_on(copied):
    images, workdir = copied
    names = FolderSource(images).digests()[1]
    for path in (workdir / "checkpoints").glob("*.npz"):
        state = files.read_arrays(path)
        place = {**json.loads(str(state["place"])), "images": names}
        files.write_arrays(path, {**state, "place": np.array(json.dumps(place))})
    assert trainer.train(Run.read(workdir), workdir)["top1"] == files.read_json(workdir / "result.json")["top1"]
    remove(images)
    with pytest.raises(UserError, match="began with other images"):
        trainer.train(Run.read(workdir), workdir)


@pytest.mark.parametrize("damage", ["gone", pytest.param("broken", marks=pytest.mark.slow)])
def test_an_image_that_is_lost_in_the_middle_is_named(copied, tmp_path, damage):
    images, _ = copied
    files.write_json(tmp_path / "quick.json", RECIPE)
    run = run_of(f"{FOLDER}{images}", fields=TINY, recipe=lambda own: read(str(tmp_path / "quick.json")))

    def lost(row):
        for path in (images / "digit 7").iterdir():
            path.unlink() if damage == "gone" else path.write_bytes(b"\x89PNG, but not for long")

    with pytest.raises(UserError, match=r"\d+ of 240 images cannot be decoded; mend or remove them: .*digit 7/"):
        trainer.train(run, tmp_path / "new", on_round=lost)


def test_a_broken_image_is_named_before_the_training(copied, run_python, tmp_path):
    images, _ = copied
    (images / "digit 7" / "größe 0003.png").write_bytes(b"\x89PNG, but not for long")
    files.write_json(tmp_path / "quick.json", RECIPE)
    run = run_of(f"{FOLDER}{images}", fields=TINY, recipe=lambda own: read(str(tmp_path / "quick.json")))
    with pytest.raises(UserError, match=r"1 of 240 images cannot be decoded.*digit 7/größe 0003\.png$"):
        trainer.train(run, tmp_path / "new")
    assert not (tmp_path / "new" / "metrics.jsonl").exists()
