"""Two networks on disk side by side, one of them of other making; and the command."""

import itertools
import json

import numpy as np
import pytest
import tensorflow as tf

from export import comparison, latency, saved_model, tflite
from export.compact import compact
from gated_resnext import interchange, zoo
from gated_resnext.data import Images
from gated_resnext.errors import UserError
from gated_resnext.recipes import RECIPES

IMAGES = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, foreign_model):
    """saved_model and model.tflite of the published digits network, and `foreign`, the same made differently."""
    folder = tmp_path_factory.mktemp("models")
    small = compact(zoo.load("digits_11_4_4_k1", "published"))
    saved_model.write(small, folder / "saved_model")
    tflite.write(small, folder / "model.tflite")
    # One image from 0 to 1 at a time, logits out, names of its own.
    foreign_model(
        folder / "foreign",
        lambda x: {"scores": tf.math.log(small(tf.cast(tf.round(x * 255.0), tf.uint8))) + 3.0},
        small.variables,
    )
    return folder


def test_the_forms_of_one_network_agree(folder):
    ours, device = (interchange.opened(folder / name) for name in ("saved_model", "model.tflite"))
    assert comparison.image_shape((ours, device)) == (8, 8, 1)
    found = comparison.compare(ours, device, IMAGES, np.zeros(70, np.int32), rounds=1)
    assert found["agreement"] == 1.0 and found["max_difference"] < 1e-4 and found["logits"] == [False, False]
    assert found["bytes"] == [saved_model.size(folder / "saved_model"), (folder / "model.tflite").stat().st_size]
    assert found["top1"][0] == found["top1"][1] == (ours.run(IMAGES).argmax(-1) == 0).mean()
    assert sorted(found["latency"]) == [1, 64] and all(len(row["ms"]) == 2 for row in found["latency"].values())


def test_a_network_of_other_making_is_read(folder):
    theirs, ours = interchange.opened(folder / "foreign", white=1.0), interchange.opened(folder / "saved_model")
    assert theirs.batch == 1 and theirs.reads == "x, float32 (1, 8, 8, 1)"
    found = comparison.compare(theirs, ours, IMAGES, rounds=1)
    assert found["agreement"] == 1.0 and found["max_difference"] < 1e-4
    assert found["logits"] == [True, False] and found["top1"] == [None, None]


def test_other_functions_do_not_agree(folder, tmp_path, foreign_model):
    path = foreign_model(tmp_path / "constant", lambda x: {"y": tf.one_hot([3], 10) + 0.0 * x[:, 0, 0]})
    constant, ours = interchange.opened(path), interchange.opened(folder / "saved_model")
    found = comparison.compare(constant, ours, IMAGES, np.full(70, 3), rounds=1)
    threes = (ours.run(IMAGES).argmax(-1) == 3).mean()
    assert found["agreement"] == found["top1"][1] == threes < 1 and found["top1"][0] == 1.0
    assert found["max_difference"] == pytest.approx(1 - ours.run(IMAGES)[:, 3].min(), abs=1e-6)


def test_what_a_user_can_get_wrong(folder, tmp_path, foreign_model):
    ours = interchange.opened(folder / "saved_model")
    foreign_model(tmp_path / "wide", lambda x: {"y": tf.reduce_sum(x, (1, 2))}, shape=(None, 8, 9, 1))
    with pytest.raises(UserError, match="images of different size"):
        comparison.image_shape((ours, interchange.opened(tmp_path / "wide")))
    foreign_model(tmp_path / "any", lambda x: {"y": tf.reduce_sum(x, (1, 2))}, shape=(None, None, None, None))
    anything = interchange.opened(tmp_path / "any")
    with pytest.raises(UserError, match="neither network says the height"):
        comparison.image_shape((anything, anything))
    with pytest.raises(UserError, match="tells 1 classes apart, .* 10"):
        comparison.compare(anything, ours, IMAGES, rounds=1)
    with pytest.raises(UserError, match=r"any gives one number an image: classes are compared"):
        comparison.compare(anything, anything, IMAGES, rounds=1)
    with pytest.raises(UserError, match=r"are 70 whole numbers, of shape \(70,\). Received: int64 of shape \(70, 1\)"):
        comparison.compare(ours, ours, IMAGES, np.zeros((70, 1), np.int64), rounds=1)


def test_the_command(folder, digits_dir, tmp_path, run_python):
    paths = [f"--saved_model={folder / name}" for name in ("saved_model", "model.tflite")]
    data = ("--images_from=optical_digits", f"--data_dir={digits_dir}")
    done = run_python("-m", "export.compare", *paths, *data, "--rounds=1", f"--json={tmp_path / 'found.json'}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["images"] == "360 test images of optical_digits" and found["agreement"] == 1.0
    assert found["top1"] == [zoo.card("digits_11_4_4_k1")["top1"]] * 2
    assert done.stdout.startswith("A's time by B's: ")
    assert "same class for 100.00 % of 360 test images of optical_digits" in done.stdout
    assert f"{(folder / 'model.tflite').stat().st_size:,}" in done.stdout


def test_images_of_a_data_set_are_cropped_to_the_networks_size(tmp_path, digits_dir, foreign_model, run_python):
    """Both say the class by one pixel, which is another one after a crop from the corner."""
    sized = foreign_model(
        tmp_path / "sized",
        lambda x: {"y": tf.one_hot(tf.cast(x[:, 2, 3, 0] * (9 / 255), tf.int32), 10)},
        shape=(None, 6, 6, 1),
    )
    foreign_model(
        tmp_path / "any",
        lambda x: {"y": tf.one_hot(tf.cast(x[:, 2, 3, 0] * (9 / 255), tf.int32), 10)},
        shape=(None, None, None, 1),
    )
    paths = (f"--saved_model={sized}", f"--saved_model={tmp_path / 'any'}", f"--json={tmp_path / 'found.json'}")
    data = ("--images_from=optical_digits", f"--data_dir={digits_dir}", "--rounds=1", "--images=200")
    done = run_python("-m", "export.compare", *paths, *data)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    pixels, labels = Images("optical_digits", RECIPES["digits"], digits_dir).test_batch(200)
    top1 = ((pixels[:, 3, 4, 0] * np.float32(9 / 255)).astype(int) == labels).mean()
    assert found["top1"] == [top1] * 2 and found["agreement"] == 1
    assert found["images"] == "200 test images of optical_digits"


def test_images_of_other_classes_are_refused(folder, tmp_path, digits_dir, foreign_model, run_python):
    path = foreign_model(tmp_path / "seven", lambda x: {"y": tf.one_hot(tf.zeros_like(x[:, 0, 0, 0], tf.int32), 7)})
    flags = [f"--saved_model={path}"] * 2 + ["--images_from=optical_digits", f"--data_dir={digits_dir}", "--rounds=1"]
    done = run_python("-m", "export.compare", *flags)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: seven tells 7 classes apart, optical_digits has 10" in done.stderr
    ours = interchange.opened(folder / "saved_model")
    with pytest.raises(UserError, match="saved_model tells 10 classes apart, the images are of 7"):
        comparison.compare(ours, ours, IMAGES, np.zeros(70, np.int32), classes=7, rounds=1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--saved_model=a",), "give --saved_model=PATH twice"),
        (("--saved_model=a", "--saved_model=b"), "there is no a"),
        (("--saved_model=a", "--saved_model=b", "--images_from=mnist"), "Received: --images_from=mnist"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(flags, message, run_python, tmp_path):
    done = run_python("-m", "export.compare", *flags, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in line


def test_calls_take_turns(monkeypatch):
    clock, order = itertools.count(), []
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clock) * 0.1)  # every look takes 100 ms
    times = latency.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "a", "b", "b", *"ababab"]
    assert times == {"a": pytest.approx([100.0] * 3), "b": pytest.approx([100.0] * 3)}


def test_a_ratio_is_of_the_same_round():
    assert latency.ratio([2.0, 40.0, 6.0], [1.0, 10.0, 2.0]) == 3.0
