"""The comparison of the paper's tables, on data of one's own."""

import csv
import json

import numpy as np
import pytest
import tensorflow as tf

from gated_resnext import experiments, files, ledger, own_data, zoo
from gated_resnext.datasets.table import of_folder
from gated_resnext.errors import UserError
from gated_resnext.recipes import RECIPES

SMALL = '{"depth": 11, "width": 2, "cardinality": 4, "input_shape": [8, 8, 3], "stem": "conv3"}'
ROWS = "_11_2_4_full", "_11_2_4_k1", "_11_2_4_k2", "_11_2_4_random_k2"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder called as a data set of the paper: 80 pictures of noise, light and dark ones."""
    folder = tmp_path_factory.mktemp("wirings") / "CIFAR10"
    rng = np.random.default_rng(0)
    for number in range(80):
        path = folder / ("dark", "light")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 128, (9, 11, 3)) + 127 * (number % 2)
        path.write_bytes(tf.io.encode_png(pixels.astype(np.uint8)).numpy())
    return folder


def test_its_rows_are_those_of_the_tables():
    experiment, recipe = own_data.wirings("cifar10")
    assert experiment.rows == experiments.table(3).rows[:4] and recipe == RECIPES["cifar"]
    assert set(experiment.pairs) == {pair for pair in experiments.table(3).pairs if pair[0] in experiment.rows}
    larger, _ = own_data.wirings("cifar10", entry="cifar10_29_8_8_k4")
    assert [row.name for row in larger.rows] == [f"cifar10_29_8_8_{kind}" for kind in ("full", "k1", "k4", "random_k4")]
    assert [row.architecture for row in larger.rows] == [zoo.architecture(row.name) for row in larger.rows]


def test_of_a_folder_they_have_its_classes_and_none_of_the_papers_numbers(photos):
    experiment, recipe = own_data.wirings(of_folder(photos), fields=json.loads(SMALL))
    assert [row.name for row in experiment.rows] == [f"cifar10{kind}" for kind in ROWS]
    assert {row.architecture.classes for row in experiment.rows} == {2} and recipe == RECIPES["photos"]
    assert [row.wiring for row in experiment.rows] == ["full", "learned", "learned", "random"]
    named, _ = own_data.wirings(of_folder(photos), entry="cifar10_20_4_8_full")
    assert named.rows[0].name == "cifar10_20_4_8_full" and zoo.entry("cifar10_20_4_8_full").paper
    assert not any(row.paper for row in named.rows)
    setting = ledger.Setting("", recipe.scaled(0.1), recipe, seeds=1)
    text = ledger.markdown(named, setting, [])
    assert "# Wirings, CIFAR10\n" in text and str(photos.parent) not in text and "paper" not in text.lower()
    assert "paper: top-1" in ledger.markdown(experiments.table(3), setting, [])


def test_of_two_blocks_one_is_half_of_them_and_of_one_there_is_nothing_to_compare():
    experiment, _ = own_data.wirings("cifar10", fields={"cardinality": 2})
    assert [row.name for row in experiment.rows] == [f"cifar10_20_4_2_{kind}" for kind in ("full", "k1", "random_k1")]
    assert len(experiment.pairs) == 2
    for fields in ({"cardinality": 1}, {"depth": 5, "stages": (1,)}):
        with pytest.raises(UserError, match="wirings are compared of two modules of two blocks or more"):
            own_data.wirings("cifar10", fields=fields)


@pytest.mark.parametrize("fields", [{"fan_in": 3}, {"gates": "real"}])
def test_what_the_rows_differ_in_cannot_be_chosen(fields):
    with pytest.raises(UserError, match=rf"the rows of the comparison differ in {next(iter(fields))}: leave it out"):
        own_data.wirings("cifar10", fields=fields)


def test_fewer_blocks_than_the_entry_reads():
    experiment, _ = own_data.wirings("cifar10", entry="cifar10_20_4_8_k4", fields={"cardinality": 2})
    assert experiment.rows == own_data.wirings("cifar10", fields={"cardinality": 2})[0].rows


def test_another_network_of_the_same_name_has_none_of_the_papers_numbers():
    experiment, _ = own_data.wirings("cifar10", fields={"filters": 32})
    assert experiment.rows[0].name == "cifar10_20_4_8_full" and not any(row.paper for row in experiment.rows)
    assert own_data.wirings("cifar10")[0].rows[0].paper


def test_images_that_changed_between_two_rows_are_told():
    experiment, recipe = own_data.wirings("cifar10")
    result = {"test_images": 9, "top1": 0.5, "active_blocks": [8] * 6, "epochs": 1.0, "seconds": 1.0}
    outcomes = [
        ledger.Outcome(row, 0, {**result, "images_digest": digest})
        for row, digest in zip(experiment.rows, ("a", "a", "b", "b"), strict=True)
    ]
    setting = ledger.Setting("", recipe, recipe, seeds=1)
    told = "not all runs were trained on the same images"
    assert told in ledger.markdown(experiment, setting, outcomes)
    assert told not in ledger.markdown(experiment, setting, outcomes[:2])


@pytest.mark.slow
def test_command(photos, tmp_path, run_python):
    flags = [f"--image_folder={photos}", f"--architecture={SMALL}", "--epochs_scale=0.001", "--seeds=1"]
    flags += ["--batch_size=8", f"--output={tmp_path}"]
    done = run_python("-m", "gated_resnext.reproduce", *flags)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "wirings_cifar10_11_2_4.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == [f"cifar10{kind}" for kind in ROWS]
    assert {row["dataset"] for row in rows} == {"CIFAR10"} and {row["test_images"] for row in rows} == {"8"}
    text = (tmp_path / "wirings_cifar10_11_2_4.md").read_text()
    assert "`python -m gated_resnext.reproduce --image_folder=CIFAR10 " in text and str(photos.parent) not in text
    runs = [files.read_json(tmp_path / "wirings_cifar10_11_2_4" / f"{row['row']}-0" / "run.json") for row in rows]
    assert [run["wiring"] for run in runs] == ["full", "learned", "learned", "random"]
    again = run_python("-m", "gated_resnext.reproduce", *flags)
    assert again.returncode == 0 and "Run 1 of" not in again.stdout and "4 runs ended, 0 of them" in again.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--table=3", "--image_folder=photos"], "leave --table, --figure, --ablation and --dataset out"),
        (["--dataset=cifar10", "--image_folder=photos"], "leave --table, --figure, --ablation and --dataset out"),
        (["--table=3", "--entry=cifar10_20_4_8_k4"], "of a comparison on --image_folder or --dataset alone"),
        (["--image_folder=photos"], "must be a folder with a sub-folder for each class. Received: "),
        (["--image_folder="], "--image_folder is empty"),
        ([], "or, to compare wirings, --image_folder or --dataset. Received: none"),
        (["--dataset=cifar10", "--architecture=[]"], '--architecture must be like {"depth": 29'),
    ],
)
def test_mistakes(flags, message, tmp_path, run_python):
    done = run_python("-m", "gated_resnext.reproduce", *flags, cwd=tmp_path)
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and message in line
    assert not any(tmp_path.iterdir())
