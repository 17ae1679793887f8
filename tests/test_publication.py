"""A finished training becomes a card and weights that the zoo loads; its wiring becomes a picture."""

import json
import shutil

import numpy as np
import pytest
from picture import Svg

from gated_resnext import files, publication, zoo
from gated_resnext.data import Images
from gated_resnext.errors import UserError
from gated_resnext.recipes import RECIPES
from gated_resnext.workdir import note_machine

NAME = "digits_11_4_4_k1"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty zoo that `gated_resnext.zoo` reads instead of its own."""
    shutil.copy(zoo.FOLDER / "entries.py", tmp_path)
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    return tmp_path


def test_published_weights_reach_what_the_card_says(trained, digits_dir, folder):
    card = publication.publish(trained, folder, data_dir=digits_dir, hardware="2 CPU cores")
    result = files.read_json(trained / "result.json")
    assert card == zoo.card(NAME)
    assert (card["top1"], card["epochs"]) == (result["top1"], result["epochs"])
    assert card["schedule_epochs"] == 64
    assert card["command"] == f"python -m gated_resnext.train --entry={NAME} --seed=0 --epochs_scale=0.03"
    model = zoo.load(NAME, "published")
    assert model.connectivity.to_dict() == card["connectivity"] == result["connectivity"]
    assert publication.top1(model, Images("optical_digits", RECIPES["digits"], digits_dir)) == card["top1"]
    original = zoo.load(NAME, trained / "model.keras").weights_by_name()
    for name, value in model.weights_by_name().items():
        np.testing.assert_allclose(value, original[name], rtol=2**-10, atol=1e-6, err_msg=name)
    assert f"| {100 * card['top1']:.2f} | {card['parameters_pruned']:,} | {card['epochs']:g} of 64 |" in zoo.markdown(
        NAME
    )


def test_the_command_has_the_arithmetic(trained, digits_dir, folder, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "copy")
    result = files.read_json(workdir / "result.json")
    files.write_json(workdir / "result.json", {**result, "precision": "mixed_bfloat16", "jit_compile": True})
    card = publication.publish(workdir, folder, data_dir=digits_dir, hardware="")
    assert card["command"].endswith(" --seed=0 --epochs_scale=0.03 --precision=mixed_bfloat16 --jit_compile")


def test_the_card_tells_of_rollbacks_and_of_the_images_of_batch_norm(trained, digits_dir, folder, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "copy")
    result = files.read_json(workdir / "result.json")
    files.write_json(workdir / "result.json", {**result, "rollbacks": 2, "batch_norm_images": 16})
    card = publication.publish(workdir, folder, data_dir=digits_dir, hardware="")
    assert card["command"].endswith(" --epochs_scale=0.03 --on_nan=rollback")
    assert (card["rollbacks"], card["batch_norm_images"]) == (2, 16)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert card["gate_entropy"] == [row for row in rows if "gate_entropy" in row][-1]["gate_entropy"] != []


def test_the_card_names_the_machines_that_the_training_wrote_down(trained, digits_dir, folder, tmp_path):
    place = shutil.copytree(trained, tmp_path / "copy")
    for machine in ("an abacus", "a loom"):
        note_machine(place, "gated_resnext 0.2.0", machine)
    card = publication.publish(place, folder, data_dir=digits_dir)
    assert (card["hardware"], card["versions"]) == ("an abacus, then a loom", "gated_resnext 0.2.0")
    (place / "trained_on.json").unlink()
    with pytest.raises(UserError, match=r"copy does not say what it was trained on; give that by --hardware"):
        publication.publish(place, folder, data_dir=digits_dir)


def test_weights_and_card_are_replaced_together(trained, digits_dir, folder, monkeypatch):
    publication.publish(trained, folder, data_dir=digits_dir, hardware="an abacus")
    published = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    write = files.write_json

    def full(path, value):
        write(path, value)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        publication.publish(trained, folder, data_dir=digits_dir, hardware="a loom")
    assert {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()} == published


def test_weights_that_halves_would_change_stay_float32(trained, digits_dir, folder, monkeypatch):
    measured, top1 = [], publication.top1

    def first_whole_then_worse(model, images):
        measured.append(top1(model, images))
        return measured[0] - (len(measured) - 1) / len(images)

    monkeypatch.setattr(publication, "top1", first_whole_then_worse)
    card = publication.publish(trained, folder, data_dir=digits_dir, hardware="2 CPU cores")
    assert (card["weights"]["dtype"], card["top1"], len(measured)) == ("float32", measured[0], 2)
    original = zoo.load(NAME, trained / "model.keras").weights_by_name()
    for name, value in files.read_arrays(folder / "weights" / f"{NAME}.npz").items():
        np.testing.assert_array_equal(value, original[name], err_msg=name)


def test_other_images_than_the_trainings_are_refused(trained, digits_dir, folder, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "copy")
    result = files.read_json(workdir / "result.json")
    files.write_json(workdir / "result.json", {**result, "top1": result["top1"] - 0.01})
    with pytest.raises(UserError, match=r"reaches .* % on these test images, and its training measured"):
        publication.publish(workdir, folder, data_dir=digits_dir, hardware="")
    assert not (folder / "cards").exists() and not (folder / "weights").exists()


def test_an_unfinished_training_or_no_zoo_is_refused(trained, digits_dir, folder, tmp_path):
    with pytest.raises(UserError, match=r"there is no entries\.py in it"):
        publication.publish(trained, tmp_path / "elsewhere", data_dir=digits_dir, hardware="")
    workdir = tmp_path / "unfinished"
    workdir.mkdir()
    shutil.copy(trained / "run.json", workdir)
    with pytest.raises(UserError, match="has not ended"):
        publication.publish(workdir, folder, data_dir=digits_dir, hardware="")


@pytest.mark.parametrize("damaged", [[], {"top1": 0.9}, {"top1": "0.9"}])
def test_a_result_that_is_none_is_refused(trained, digits_dir, folder, tmp_path, damaged):
    workdir = shutil.copytree(trained, tmp_path / "run")
    files.write_json(workdir / "result.json", damaged)
    with pytest.raises(UserError, match="result.json holds no result; delete it, and the same training writes it anew"):
        publication.publish(workdir, folder, data_dir=digits_dir, hardware="an abacus")


def test_a_recipe_of_ones_own_is_refused(trained, digits_dir, folder, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "copy")
    run = files.read_json(workdir / "run.json")
    files.write_json(workdir / "run.json", {**run, "recipe": {**run["recipe"], "name": "mine"}})
    with pytest.raises(UserError, match="after the recipe 'digits', or a part of it. Received: 'mine'"):
        publication.publish(workdir, folder, data_dir=digits_dir, hardware="")
    files.write_json(workdir / "run.json", {**run, "recipe": {**run["recipe"], "batch_size": 32}})
    with pytest.raises(UserError, match="Received: 'digits', of other numbers"):
        publication.publish(workdir, folder, data_dir=digits_dir, hardware="")


def test_a_run_on_some_of_the_images_is_refused(trained, digits_dir, folder, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "copy")
    files.write_json(workdir / "run.json", {**files.read_json(workdir / "run.json"), "limit": 1000})
    with pytest.raises(UserError, match=r"on all training images\. Received: one on the first 1,000"):
        publication.publish(workdir, folder, data_dir=digits_dir, hardware="")


def test_a_network_that_is_not_of_the_zoo_is_refused(trained, digits_dir, folder, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "copy")
    files.write_json(workdir / "run.json", {**files.read_json(workdir / "run.json"), "entry": "photos_20_4_8_k1"})
    with pytest.raises(UserError, match="there is no network 'photos_20_4_8_k1' in the zoo"):
        publication.publish(workdir, folder, data_dir=digits_dir, hardware="")


def test_commands(trained, digits_dir, folder, run_python):
    flags = (f"--workdir={trained}", f"--data_dir={digits_dir}", f"--zoo={folder}", "--hardware=2 CPU cores")
    done = run_python("-m", "gated_resnext.publish", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Published {NAME}: top-1 ")
    done = run_python("-m", "gated_resnext.draw", f"--workdir={trained}", f"--output={folder / 'wiring.svg'}")
    assert done.returncode == 0, done.stderr
    active = files.read_json(trained / "result.json")["active_blocks"]
    assert f"{sum(active)} of 12 blocks are active" in done.stdout
    svg = Svg(folder / "wiring.svg")
    assert [svg.count(f"active-{panel}", "use") for panel in (1, 2)] == [12, sum(active)]
    done = run_python("-m", "gated_resnext.draw", "--entry=cifar100_29_64_8_k1")
    assert done.returncode == 1 and "error: cifar100_29_64_8_k1 has no published weights" in done.stderr
