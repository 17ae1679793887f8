"""A wiring that is given stays as it is, and trains as the same wiring drawn at random would."""

import dataclasses
import json

import numpy as np
import pytest

from gated_resnext import files, publication, recipes, trainer, zoo
from gated_resnext.connectivity import Connectivity
from gated_resnext.errors import UserError
from gated_resnext.workdir import Run

K2 = Run.of("digits_11_4_4_k2", recipes.read("digits", 0.01), seed=3)
WIRING = Connectivity.random(3, 4, 2, seed=3)


def weights(folder):
    return zoo.load(K2.entry, folder / "model.keras").weights_by_name()


@pytest.fixture(scope="module")
def workdir(digits_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("given") / "run"
    trainer.train(K2.with_wiring(WIRING), folder, data_dir=digits_dir)
    return folder


@pytest.mark.slow
def test_it_trains_as_the_same_wiring_drawn(workdir, digits_dir, tmp_path):
    trainer.train(dataclasses.replace(K2, wiring="random"), tmp_path / "random", data_dir=digits_dir)
    given, drawn = weights(workdir), weights(tmp_path / "random")
    assert given.keys() == drawn.keys() and all(np.array_equal(given[name], drawn[name]) for name in given)
    assert files.read_json(workdir / "result.json")["connectivity"] == WIRING.to_dict()
    assert not (workdir / "gates.npz").exists() and Run.read(workdir) == K2.with_wiring(WIRING)


def test_it_is_read_from_what_a_training_writes(workdir, tmp_path):
    (tmp_path / "wiring.json").write_text(WIRING.to_json())
    assert Connectivity.read(tmp_path / "wiring.json") == Connectivity.read(workdir / "result.json") == WIRING
    card = zoo.card("digits_11_4_4_k1")
    files.write_json(tmp_path / "card.json", card)
    assert Connectivity.read(tmp_path / "card.json").to_dict() == card["connectivity"]


@pytest.mark.parametrize(
    "fields", [None, [], {}, {"connectivity": None}, {"first": 4}, {"first": 4, "sources": [[[4]]]}]
)
def test_a_file_without_one_is_refused(fields, tmp_path):
    (tmp_path / "no.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"no\.json holds no wiring: "):
        Connectivity.read(tmp_path / "no.json")
    with pytest.raises(UserError, match=r"there is no .*gone\.json"):
        Connectivity.read(tmp_path / "gone.json")


@pytest.mark.parametrize(
    ("wiring", "message"),
    {
        Connectivity.random(2, 4, 2, seed=0): "has 3 modules of 4 blocks. Received: a wiring of 4 4 blocks",
        Connectivity.random(3, 5, 2, seed=0): "has 3 modules of 4 blocks. Received: a wiring of 5 5 5 blocks",
        Connectivity.random(3, 4, 1, seed=0): "reads K = 2 blocks. Received: a wiring with blocks that read 1",
    }.items(),
)
def test_one_that_does_not_fit_is_refused(wiring, message):
    with pytest.raises(UserError, match=message):
        K2.with_wiring(wiring)


@pytest.mark.parametrize("change", [{"gates": "real"}, {"aggregation": "shared", "fan_in": 4}])
def test_a_network_without_binary_gates_takes_none(change):
    with pytest.raises(UserError, match=r"digits_11_4_4_k2 takes no wiring: it has no binary gates"):
        dataclasses.replace(K2, architecture=K2.architecture.replace(**change)).with_wiring(WIRING)


def test_its_workdir_is_its_own(workdir, digits_dir):
    for run, what in (
        (K2, r"\(wiring is given there and learned here\)"),
        (
            K2.with_wiring(Connectivity.random(3, 4, 2, seed=4)),
            r"\((sources of the connectivity differ\)|connectivity is one of . 4 4 active .* there and one)",
        ),
    ):
        with pytest.raises(UserError, match=rf"belongs to another run {what}"):
            trainer.train(run, workdir, data_dir=digits_dir)


def test_the_zoo_does_not_hold_it(workdir, tmp_path):
    with pytest.raises(UserError, match="the wiring of its name. Received: one with a given wiring"):
        publication.publish(workdir, tmp_path, data_dir=None, hardware="")


@pytest.mark.slow
def test_command(workdir, digits_dir, tmp_path, run_python):
    flags = [f"--entry={K2.entry}", "--epochs_scale=0.01", "--seed=3", f"--data_dir={digits_dir}"]
    flags += [f"--wiring={workdir / 'result.json'}", f"--workdir={tmp_path / 'run'}"]
    done = run_python("-m", "gated_resnext.train", *flags)
    assert done.returncode == 0, done.stderr
    assert "wiring fixed" in done.stderr.split("Phase 2")[0] + done.stdout.split("Phase 2")[0]
    assert files.read_json(tmp_path / "run" / "run.json") == files.read_json(workdir / "run.json")
    assert all(np.array_equal(value, weights(workdir)[name]) for name, value in weights(tmp_path / "run").items())
