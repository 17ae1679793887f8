import concurrent.futures
import dataclasses
import json
import math
import os
import pathlib
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from runs import (
    SMALL,
    Photographed,
    assert_same_end,
    contents,
    drawn,
    images_of,
    newest,
    recipe_of,
    recordings,
    rows,
    small_run,
    weights,
)

import gated_resnext
from gated_resnext import devices, files, loop, trainer, workdir
from gated_resnext.connectivity import Connectivity
from gated_resnext.data import Images
from gated_resnext.errors import DivergedError, UserError
from gated_resnext.loop import TensorFlowEngine
from gated_resnext.phase_networks import Options
from gated_resnext.recipes import RECIPES
from gated_resnext.trainer import Run
from gated_resnext.training import Training

K1 = "digits_11_4_4_k1"


def top_k(matrix, k):
    """Indices of the k largest of every row, the lower first among equals, by Python's sort."""
    return tuple(tuple(sorted(sorted(range(len(row)), key=lambda i: (-row[i], i))[:k])) for row in matrix.tolist())


# A whole run


def test_a_run_writes_its_files(trained):
    assert set(contents(trained)) == {
        "run.json",
        "checkpoints/step000000036.npz",
        "checkpoints/step000000043.npz",
        "metrics.jsonl",
        *(f"gates/{step}.npz" for step in range(17)),
        "gates.npz",
        "model.keras",
        "result.json",
    }
    assert [path.name for path in (trained / "tensorboard").iterdir()], "no event files"
    run = Run.of(K1, RECIPES["digits"].scaled(0.03), seed=0)
    assert Run.read(trained) == run
    assert Run.read(trained).to_dict() == json.loads((trained / "run.json").read_text()) == run.to_dict()


@pytest.mark.slow
def test_every_row_is_told_as_it_is_written(digits_dir, tmp_path):
    told = []
    trainer.train(small_run((1, 0.1, 0.2), (1, 0.1)), tmp_path, data_dir=digits_dir, on_round=told.append)
    assert told == rows(tmp_path) and [row["phase"] for row in told] == [1, 2]
    trainer.train(Run.read(tmp_path), tmp_path, data_dir=digits_dir, on_round=told.append)
    assert len(told) == 2, "nothing was left to train"


def test_what_trains_and_on_what_is_told_first(digits_dir, tmp_path, capsys, monkeypatch):
    def step(self, batches, count):
        raise InterruptedError

    monkeypatch.setattr(loop.Loop, "train", step)
    hint = "pip install 'tensorflow[and-cuda]'; TF_CPP_MIN_LOG_LEVEL=0 tells what is missing"
    for driver, cpu in (("missing", "the CPU"), ("", f"the CPU (for the GPU of this machine: {hint})")):
        monkeypatch.setattr(devices, "DRIVER", tmp_path / driver)
        with pytest.raises(InterruptedError):
            trainer.train(small_run((0.1, 0.1)), tmp_path / f"run{driver}", data_dir=digits_dir)
        first = capsys.readouterr().out.splitlines()[0]
        assert first == f"Training on {cpu}: 10 classes, 1,437 training and 360 test images of optical_digits"


def test_replicas_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "missing")
    engine = TensorFlowEngine(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    engine.on_cpu = True
    assert engine.devices == "2 replicas, each on the CPU"


def test_metrics_have_a_row_a_round(trained):
    # 64 images a batch are 22 steps an epoch: 0.72, 0.6, 0.3 and 0.3 epochs are 15.84, 13.2, 6.6 and 6.6 steps.
    found = rows(trained)
    assert [(row["phase"], row["round"], row["step"]) for row in found] == [
        (1, 1, 16),
        (2, 1, 29),
        (3, 1, 36),
        (4, 1, 43),
    ]
    assert [(row["learning_rate"], row["gate_learning_rate"]) for row in found] == [
        (0.1, 0.2),
        (0.1, 0.0),
        (0.01, 0.0),
        (0.001, 0.0),
    ]
    assert [row["epoch"] for row in found] == [round(step / 22, 4) for step in (16, 29, 36, 43)]
    assert [row["seconds"] for row in found] == sorted(row["seconds"] for row in found)
    for row in found:
        assert math.isfinite(row["loss"]) and math.isfinite(row["test_loss"])
        assert 0 <= row["top1"] <= row["top5"] <= 1 and 0 <= row["test_top1"] <= row["test_top5"] <= 1
        assert row["images_per_s"] > 0
    assert found == workdir.read_metrics(trained)


def test_tensorboard_has_what_the_metrics_have(trained):
    found = drawn(trained)
    events = {(tag, step): value for tag, step, value in found}
    assert len(events) == len(found)
    for row in rows(trained):
        assert events["test_top1", row["step"]] == pytest.approx(row["test_top1"])
        assert events["loss", row["step"]] == pytest.approx(row["loss"])
        blocks = [events[f"active_blocks/module{m}", row["step"]] for m in (1, 2, 3)]
        assert blocks == row["active_blocks"]
    assert [events[f"gate_entropy/module{m}", 16] for m in (2, 3)] == pytest.approx(rows(trained)[0]["gate_entropy"])


def test_the_network_learns(trained):
    found = rows(trained)
    assert found[-1]["loss"] < found[0]["loss"] - 0.3
    assert found[-1]["test_top1"] > 0.3, "chance is 0.1"


def test_the_result(trained, digits_dir):
    result = json.loads((trained / "result.json").read_text())
    model = keras.saving.load_model(trained / "model.keras")
    images, labels = Images("optical_digits", RECIPES["digits"], digits_dir).arrays("test")
    hits = model(images).numpy().argmax(1) == labels
    assert (result["top1"], result["test_images"]) == (hits.mean(), 360)
    assert result["top1"] == pytest.approx(rows(trained)[-1]["test_top1"], abs=1.5 / 360)
    assert result["top5"] == pytest.approx(rows(trained)[-1]["test_top5"], abs=1.5 / 360)
    expected = {
        "entry": K1,
        "dataset": "optical_digits",
        "recipe": "digits",
        "epochs": round(43 / 22, 3),
        "steps": 43,
        "seed": 0,
        "rollbacks": 0,
        "blocks": [4, 4, 4],
        "parameters": 93_754,
        "labels": list("0123456789"),
        "connectivity": model.connectivity.to_dict(),
    }
    assert {name: result[name] for name in expected} == expected
    assert result["seconds"] == pytest.approx(rows(trained)[-1]["seconds"], abs=0.1)
    # Walk back from the last module: a block counts if a block that counts reads it.
    (module_2, module_3), used = model.connectivity.sources, {0, 1, 2, 3}
    active = [len(used)]
    for module in (module_3, module_2):
        used = {source for block in used for source in module[block]}
        active.insert(0, len(used))
    assert result["active_blocks"] == active
    # A block of the three modules has 288, 1,184 and 4,416 weights (test_entries.py has the formula).
    per_block = [16 * w + 2 * w + 9 * w * w + 2 * w + w * f + 2 * f for w, f in ((4, 64),)]
    per_block += [x * w + 2 * w + 9 * w * w + 2 * w + w * f + 2 * f for x, w, f in ((64, 8, 128), (128, 16, 256))]
    cut = sum((4 - left) * size for left, size in zip(active, per_block, strict=True))
    assert result["parameters_pruned"] == 93_754 - cut


def test_the_gates_moved_and_then_were_frozen_to_their_top_k(trained):
    gates = files.read_arrays(trained / "gates.npz")
    assert set(gates) == {"module2", "module3"}
    for matrix in gates.values():
        assert matrix.shape == (4, 4) and matrix.min() >= 0 and matrix.max() <= 1
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
        assert np.abs(matrix - 0.25).max() > 1e-3, "the gates did not move"
    model = keras.saving.load_model(trained / "model.keras")
    assert model.connectivity.sources == (top_k(gates["module2"], 1), top_k(gates["module3"], 1))
    assert model.real_gates() == [] and not [name for name in model.weights_by_name() if "gate" in name]
    first, *later = rows(trained)
    entropies = [-(matrix * np.log(matrix + 1e-20)).sum(1).mean() for matrix in gates.values()]
    np.testing.assert_allclose(first["gate_entropy"], entropies, atol=2e-5)
    assert max(first["gate_entropy"]) < math.log(4) - 1e-4
    assert not any("gate_entropy" in row for row in later)
    assert [row["active_blocks"] for row in later] == [list(model.connectivity.active_blocks)] * 3


@pytest.mark.parametrize(("rate", "decided"), [(0.2, False), pytest.param(500.0, True, marks=pytest.mark.slow)])
def test_what_the_gates_came_to_is_said_when_the_wiring_is_frozen(digits_dir, tmp_path, capsys, rate, decided):
    run = small_run((0.1, 0.1, 0.2), (0.1, 0.1))
    trainer.train(dataclasses.replace(run, recipe=run.recipe.with_gate_rate(rate)), tmp_path, data_dir=digits_dir)
    (line,) = re.findall("^Wiring frozen: .*", capsys.readouterr().out, re.MULTILINE)
    (gates,) = files.read_arrays(tmp_path / "gates.npz").values()
    entropy = abs((gates * np.log(gates + 1e-20)).sum(1).mean())
    assert (entropy < 0.99 * math.log(3)) == decided
    active = " ".join(map(str, files.read_json(tmp_path / "result.json")["active_blocks"]))
    told = f"Wiring frozen: active blocks {active} of 3, entropy of the gates {entropy:.3f} of 1.099 nats"
    hint = ": hardly decided; more epochs decide them, or --gate_learning_rate above 0.2, in a new --workdir"
    assert line == told + ("" if decided else hint)


def test_the_mean_image_is_that_of_the_training_images(trained, digits_dir):
    images, _ = Images("optical_digits", RECIPES["digits"], digits_dir).arrays("train")
    np.testing.assert_allclose(weights(trained)["standardize/mean_image"], images.mean(0, dtype=np.float64), rtol=1e-6)


def test_training_a_finished_run_again_changes_nothing(trained, digits_dir, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "copy")
    result = json.loads((folder / "result.json").read_text())
    assert trainer.train(Run.read(folder), folder, data_dir=digits_dir) == result
    after, before = contents(folder), contents(trained)
    assert {name for name in before | after if after.get(name) != before.get(name)} <= {"model.keras"}
    assert_same_end(folder, trained)
    assert drawn(folder) == drawn(trained)


def test_a_disk_that_fills_up_keeps_the_files_of_the_run(trained, digits_dir, tmp_path):
    resource = pytest.importorskip("resource", reason="needs the resource module, to limit the size of a file")
    folder = shutil.copytree(trained, tmp_path / "copy")
    assert (folder / "model.keras").stat().st_size > 200_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # Python ignores SIGXFSZ: the write fails with EFBIG
    try:
        with pytest.raises(OSError, match="File too large"):
            trainer.train(Run.read(folder), folder, data_dir=digits_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(folder) == contents(trained)
    assert drawn(folder) == drawn(trained)


# Interrupted and resumed

PHASES = ((1.6, 0.1, 0.2), (0.5, 0.1), (1.6, 0.01))  # 2 rounds of 9 steps, 1 of 6 (5.5, to even), 2 of 9


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, digits_dir):
    """A finished workdir; beside it `after_step_9`, 18, 24, 33 and 42, and `within_step_28`, as it was then."""
    folder, run = tmp_path_factory.mktemp("uninterrupted") / "small", small_run(*PHASES)
    training = Photographed(run, folder, images_of(run, digits_dir), TensorFlowEngine())
    training.within = (28,)
    training.run_phases()
    return folder


@pytest.mark.parametrize(
    "moment, step, done, next_row",
    [
        ("after_step_24", 24, (2, 1), '{"phase": 3, "round": 1, "st'),
        # The row of a round is written before the round's checkpoint.
        ("within_step_28", 28, (2, 1), '{"phase": 3, "round": 1, "step": 33, "loss": 99.0}\n{"phase": 3, "rou'),
    ],
    ids=["at the end of a phase", "in the middle of a round"],
)
def test_resumed_equals_uninterrupted(uninterrupted, digits_dir, tmp_path, capsys, moment, step, done, next_row):
    folder = shutil.copytree(uninterrupted.with_name(moment), tmp_path / "small")
    assert [(row["phase"], row["round"]) for row in rows(folder)][-1] == done
    assert newest(folder)["place"]["step"] == step
    assert not (folder / "model.keras").exists()
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(next_row)
    result = trainer.train(small_run(*PHASES), folder, data_dir=digits_dir)
    assert f"Resuming small after step {step} of 42\n" in capsys.readouterr().out
    assert_same_end(folder, uninterrupted)
    assert result == files.read_json(folder / "result.json")
    learned = keras.saving.load_model(folder / "model.keras").connectivity
    assert learned == Connectivity.from_dict(result["connectivity"])
    times = [row["seconds"] for row in rows(folder)]
    assert times == sorted(times) and times[0] > 0
    tags = [(tag, step) for tag, step, _ in drawn(folder)]
    assert tags == [(tag, step) for tag, step, _ in drawn(uninterrupted)]
    assert len(set(tags)) == len(tags)


def test_momentum_is_kept_within_a_phase_and_zero_at_the_start_of_the_next(uninterrupted):
    within, state = newest(uninterrupted.with_name("within_step_28")), newest(uninterrupted)
    names = [name for name in state if name.startswith("optimizer/") and name.endswith("kernel_momentum")]
    assert names and all(np.abs(state[name]).max() > 0 for name in names)
    assert int(state["optimizer/sgd/iteration"]) == 18, "steps of phase 3 alone"
    assert int(within["optimizer/sgd/iteration"]) == 4


def test_unused_blocks_rest_once_the_wiring_is_fixed_and_come_back_at_the_end(uninterrupted):
    learned, state = newest(uninterrupted.with_name("after_step_18")), newest(uninterrupted)
    wiring = Connectivity.from_dict(state["place"]["wiring"])
    (used, _), whole = wiring.active, weights(uninterrupted)
    assert 0 < len(used) < 3, "this seed learns a wiring with unused blocks"
    name, unused = "stage1_module1/conv/kernel", [block for block in range(3) if block not in used]
    assert state[name].shape[0] == len(used) and state[f"unused/{name}"].shape[0] == len(unused)
    np.testing.assert_array_equal(whole[name][unused], learned[name][unused])
    np.testing.assert_array_equal(whole[name][list(used)], state[name])
    assert not np.array_equal(whole[name][list(used)], learned[name][list(used)])


@pytest.mark.slow
def test_weights_of_the_sums_are_learned_kept_when_the_wiring_is_fixed_and_learned_on(digits_dir, tmp_path, capsys):
    arch = dataclasses.replace(SMALL, aggregation="weighted")
    run, name = small_run(*PHASES, architecture=arch), "stage2_module1_gate/branch_weights"
    folder = tmp_path / "whole"
    training = Photographed(run, folder, images_of(run, digits_dir), TensorFlowEngine())
    training.within = (28,)
    result = training.run_phases()
    learned, fixed, state = (newest(tmp_path / at) for at in ("after_step_18", "after_step_24", "within_step_28"))
    assert np.abs(learned[name] - 1).max() > 1e-3, "they were learned along with the gates"
    used = list(Connectivity.from_dict(state["place"]["wiring"]).active[0])
    assert learned[name].shape == (3, 3) and fixed[name].shape == (3, len(used)) and len(used) < 3
    np.testing.assert_array_equal(fixed[f"unused/{name}"], np.delete(learned[name], used, axis=1).ravel())
    # A pair that is wired learns on from where it stood, one that is not stays there.
    wired = Connectivity.from_dict(state["place"]["wiring"]).binary_gates(2)[:, used] > 0
    moved = fixed[name] != learned[name][:, used]
    np.testing.assert_array_equal(moved, wired)
    np.testing.assert_allclose(fixed[name], learned[name][:, used], atol=0.3)
    assert result["parameters"] - result["parameters_pruned"] == (3 - len(used)) * (
        3 + SMALL.plan()[0].block_parameters
    )
    whole = weights(folder)[name]
    assert whole.shape == (3, 3)
    np.testing.assert_array_equal(np.delete(whole, used, axis=1), np.delete(learned[name], used, axis=1))
    # Cut off in the middle of phase 3 and gone on with, it ends the same.
    again = trainer.train(run, tmp_path / "within_step_28", data_dir=digits_dir)
    assert "Resuming small after step 28 of 42\n" in capsys.readouterr().out
    assert again["top1"] == result["top1"]
    assert_same_end(tmp_path / "within_step_28", folder)


def test_a_cut_off_row_of_metrics_is_left_out(tmp_path):
    assert workdir.read_metrics(tmp_path) == []
    written = [{"phase": 1, "round": number, "step": 9 * number} for number in (1, 2, 3)]
    first, second, third = map(json.dumps, written)
    (tmp_path / "metrics.jsonl").write_text(f"{first}\n{second}\n{third[:-4]}")
    assert workdir.read_metrics(tmp_path) == written[:2]
    for bad in (b"{", b"\xff\xfe", b"[]", b"5", b'{"step": 3}'):
        (tmp_path / "metrics.jsonl").write_bytes(f"{first}\n".encode() + bad + f"\n{third}\n".encode())
        with pytest.raises(UserError, match=r"line 2 of .*metrics\.jsonl is no row of a training; mend or remove it"):
            workdir.read_metrics(tmp_path)


# A workdir that is not this run's


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"entry": "digits_11_4_4_k2"}, "entry is small there and digits_11_4_4_k2 here"),
        ({"seed": 6}, "seed is 5 there and 6 here"),
        (
            {"recipe": recipe_of(*PHASES).scaled(2)},
            "recipe is made_up of 3.7 epochs there and made_up of 7.4 epochs here",
        ),
        ({"architecture": SMALL.replace(fan_in=2)}, "fan_in of the architecture differs: 1 there and 2 here"),
        (
            {"recipe": dataclasses.replace(recipe_of(*PHASES), flip=True)},
            "flip of the recipe differs: False there and True here",
        ),
        ({"wiring": "random"}, "wiring is learned there and random here"),
        ({"dataset": "cifar10"}, "dataset is optical_digits there and cifar10 here"),
    ],
)
def test_a_workdir_of_another_run_is_refused_and_left_alone(uninterrupted, digits_dir, changes, named):
    before = contents(uninterrupted, but=())
    run = dataclasses.replace(small_run(*PHASES), **changes)
    with pytest.raises(UserError, match=f"{uninterrupted} belongs to another run .*{named}.*choose another --workdir"):
        trainer.train(run, uninterrupted, data_dir=digits_dir)
    assert contents(uninterrupted, but=()) == before


@pytest.mark.slow
def test_a_run_that_kept_nothing_leaves_its_workdir_to_another(digits_dir, tmp_path, monkeypatch):
    def fail(self, batches, count):
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(loop.Loop, "train", fail)
        trainer.train(small_run((0.1, 0.1, 0.2)), tmp_path, data_dir=digits_dir)
    smaller = dataclasses.replace(small_run((0.1, 0.1, 0.2)), seed=8)
    workdir.note_machine(tmp_path, "gated_resnext 0.2.0", "an abacus")
    (tmp_path / "gates" / "0.npz").write_text("the gates of the other")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="belongs to another run .seed is 5 there"):
        patch.setattr(workdir, "_lock", lambda file, folder: False)  # who knows whether the other is still at work
        trainer.train(smaller, tmp_path, data_dir=digits_dir)
    trainer.train(smaller, tmp_path, data_dir=digits_dir)
    assert Run.read(tmp_path) == smaller and workdir.machines(tmp_path) == []
    assert len(recordings(tmp_path)) > 1
    with pytest.raises(UserError, match="belongs to another run .seed is 8 there and 5 here"):
        trainer.train(small_run((0.1, 0.1, 0.2)), tmp_path, data_dir=digits_dir)


def test_another_run_that_begins_while_the_images_are_prepared_keeps_the_workdir(digits_dir, tmp_path, monkeypatch):
    images, other = TensorFlowEngine.images, dataclasses.replace(small_run((0.1, 0.1)), seed=8)

    def slowly(self, *args):
        if not (tmp_path / "run.json").exists():
            files.write_json(tmp_path / "run.json", other.to_dict())
            (tmp_path / "metrics.jsonl").touch()
        return images(self, *args)

    monkeypatch.setattr(TensorFlowEngine, "images", slowly)
    with pytest.raises(UserError, match="belongs to another run"):
        trainer.train(small_run((0.1, 0.1)), tmp_path, data_dir=digits_dir)
    assert Run.read(tmp_path) == other


@pytest.mark.slow
def test_the_caller_may_go_elsewhere_meanwhile(digits_dir, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    trainer.train(
        small_run((0.1, 0.1), (0.1, 0.1)),
        "run",
        data_dir=digits_dir,
        on_round=lambda row: monkeypatch.chdir(tmp_path / "elsewhere"),
    )
    assert (tmp_path / "run" / "result.json").is_file() and not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.slow
def test_a_workdir_may_have_any_name_and_its_tensorboard_lie_elsewhere(digits_dir, tmp_path):
    folder = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 %d {x}"))
    (tmp_path / "events").mkdir()
    folder.mkdir()
    (folder / "tensorboard").symlink_to(tmp_path / "events")
    (tmp_path / "events" / "events.out.tfevents.1").touch()
    files.write_json(folder / "run.json", small_run((0.1, 0.1)).to_dict())
    trainer.train(small_run((0.1, 0.1)), folder, data_dir=digits_dir)
    (events,) = (tmp_path / "events").iterdir()
    assert events.stat().st_size > 0 and (folder / "model.keras").is_file()


def test_a_folder_of_other_things_is_refused_and_left_alone(digits_dir, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=f"{tmp_path} is not empty and holds no run; choose another --workdir"):
        trainer.train(small_run(*PHASES), tmp_path, data_dir=digits_dir)
    assert contents(tmp_path, but=()) == {"thesis.tex": b"precious"}


@pytest.mark.parametrize("text", ["{", "{}", "[]", "3", '{"entry": "small", "architecture": {"depth": 20}}'])
def test_a_damaged_description_of_a_run_is_refused(digits_dir, tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match="run.json (is not a JSON file|does not describe a run)"):
        trainer.train(small_run(*PHASES), tmp_path, data_dir=digits_dir)
    assert contents(tmp_path, but=()) == {"run.json": text.encode()}


def test_a_folder_without_a_run_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is no training's workdir"):
        Run.read(tmp_path)


def rewritten(path, change):
    arrays = files.read_arrays(path)
    change(arrays)
    files.write_arrays(path, arrays)


def displaced(path, **changes):
    def change(arrays):
        arrays["place"] = np.array(json.dumps({**json.loads(str(arrays["place"])), **changes}))

    rewritten(path, change)


NONE_WHOLE = "no checkpoint in .*/checkpoints is whole; delete .*/copy to start anew"
OF_ANOTHER = "is of another network .*choose another folder"
DAMAGES = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:5000]), NONE_WHOLE),
    "text": (lambda path: path.write_text("not an archive"), NONE_WHOLE),
    "no place": (lambda path: rewritten(path, lambda arrays: arrays.pop("place")), NONE_WHOLE),
    "no phase": (lambda path: displaced(path, phase=9), "are of another run; choose another --workdir"),
    "other images": (
        lambda path: displaced(path, images="of another data set"),
        "began with other images of optical_digits; restore them or choose another --workdir",
    ),
    "a weight less": (lambda path: rewritten(path, lambda arrays: arrays.pop("classifier/kernel")), OF_ANOTHER),
    "another shape": (
        lambda path: rewritten(path, lambda arrays: arrays.update({"classifier/bias": np.zeros(9)})),
        OF_ANOTHER,
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_workdir_without_a_whole_checkpoint_is_refused_and_nothing_overwritten(
    uninterrupted, digits_dir, tmp_path, damage
):
    folder = shutil.copytree(uninterrupted.with_name("after_step_33"), tmp_path / "copy")
    change, message = DAMAGES[damage]
    for path in sorted((folder / "checkpoints").iterdir()):
        change(path)
    before = contents(folder)
    with pytest.raises(UserError, match=message):
        trainer.train(small_run(*PHASES), folder, data_dir=digits_dir)
    assert contents(folder) == before


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(uninterrupted, digits_dir, tmp_path, capsys):
    folder = shutil.copytree(uninterrupted.with_name("after_step_42"), tmp_path / "copy")
    older, damaged = sorted((folder / "checkpoints").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    trainer.train(small_run(*PHASES), folder, data_dir=digits_dir)
    said = capsys.readouterr().out
    assert re.search(rf"^Skipped a damaged checkpoint: {damaged} is damaged and cannot be read", said, re.MULTILINE)
    assert "Resuming small after step 33 of 42\n" in said
    assert older.exists()
    assert_same_end(folder, uninterrupted)


@pytest.mark.slow
def test_a_damaged_checkpoint_takes_no_place_of_a_whole_one(uninterrupted, digits_dir, tmp_path):
    folder = shutil.copytree(uninterrupted.with_name("after_step_42"), tmp_path / "copy")
    older, damaged = sorted((folder / "checkpoints").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    run = small_run(*PHASES)
    training = Photographed(run, folder, images_of(run, digits_dir), TensorFlowEngine())
    training.within = (35,)
    training.run_phases()
    kept = sorted(path.name for path in (tmp_path / "within_step_35" / "checkpoints").iterdir())
    assert kept == [older.name, "step000000035.npz"] and older.name == "step000000033.npz"


# What can go wrong in training


def begun(uninterrupted, folder, run, moment="after_step_42"):
    """A workdir of `run` with the checkpoints of a moment of another whose phases it continues."""
    shutil.copytree(uninterrupted.with_name(moment), folder)
    files.write_json(folder / "run.json", run.to_dict())
    return folder


@pytest.fixture
def diverging(monkeypatch):
    """The third and later steps of a process have no finite loss where the rate is above 0.006."""
    steps, train = [], loop.Loop.train

    def diverge(self, batches, count):
        scores = train(self, batches, count)
        steps.extend(scores)
        if len(steps) > 3 and float(self.optimizer.learning_rate) > 0.006:
            scores[-1] = np.nan
        return scores

    monkeypatch.setattr(loop.Loop, "train", diverge)
    return steps


def test_a_loss_that_is_no_longer_finite_stops_and_keeps_the_last_good_checkpoint(uninterrupted, digits_dir, tmp_path):
    # The finished run goes on with a fourth phase at a senseless rate.
    run = small_run(*PHASES, (4, 1e6))
    folder = begun(uninterrupted, tmp_path / "small", run)
    before = contents(folder)
    with pytest.raises(UserError) as error:
        trainer.train(run, folder, data_dir=digits_dir)
    message = str(error.value)
    found = re.search(r"the loss is (nan|inf) at step (\d+), in phase 4 at learning rate 1e\+06", message)
    assert found and 42 < int(found[2]) <= 42 + 44, message
    assert "the last good checkpoint is that of step 42. --on_nan=rollback goes on from it at half the rate" in message
    assert contents(folder) == before


@pytest.mark.slow
def test_rolling_back_ends_when_it_does_not_help(uninterrupted, digits_dir, tmp_path, capsys):
    run = small_run(*PHASES, (4, 1e6))
    folder = begun(uninterrupted, tmp_path / "small", run)
    before = contents(folder)
    with pytest.raises(UserError, match=r"at learning rate 31250, after 5 rollbacks; .* of step 42\. Lower the rates"):
        trainer.train(run, folder, data_dir=digits_dir, on_nan="rollback")
    said = capsys.readouterr().out
    rates = re.findall(r"^Rolled back: the loss is .* at learning rate (\S+); on from step 42", said, re.MULTILINE)
    assert [float(rate) for rate in rates] == [1e6, 5e5, 2.5e5, 1.25e5, 62500]
    assert contents(folder) == before


def test_rolling_back_halves_the_rate_until_the_phase_ends(uninterrupted, digits_dir, tmp_path, capsys, diverging):
    run = small_run(*PHASES, (0.5, 0.004))
    whole = begun(uninterrupted, tmp_path / "whole", run, "after_step_33")
    training = Photographed(run, whole, images_of(run, digits_dir), TensorFlowEngine(), on_nan="rollback")
    training.within = (38,)
    momenta, loop_of = [], training.networks.loop

    def watched(*arguments, **options):
        loop = loop_of(*arguments, **options)
        state = {v.path: np.abs(np.asarray(v)).max() for v in loop.optimizer.variables}
        momenta.append(max(value for path, value in state.items() if path.endswith("momentum")))
        return loop

    training.networks.loop = watched
    result = training.run_phases()
    said = capsys.readouterr().out
    assert said.count("Rolled back") == 1
    # As it goes on within phase 3, back at the same place, and as phase 4 begins.
    assert momenta[0] > 0 and momenta[1:] == [0, 0]
    assert "at step 37, in phase 3 at learning rate 0.01; on from step 33 at half the rate" in said
    assert result["rollbacks"] == 1 and result["steps"] == 48
    rates = [(row["phase"], row["round"], row["learning_rate"]) for row in rows(whole)[-3:]]
    assert rates == [(3, 1, 0.01), (3, 2, 0.005), (4, 1, 0.004)]

    # Killed after the rollback.
    killed = whole.with_name("within_step_38")
    diverging.clear()
    trainer.train(run, killed, data_dir=digits_dir, on_nan="rollback")
    assert "Rolled back" not in capsys.readouterr().out
    assert_same_end(killed, whole)


@pytest.mark.parametrize("whole", [pytest.param(1, marks=pytest.mark.slow), 0])
def test_checkpoints_that_are_damaged_meanwhile_do_not_hide_a_divergence(
    uninterrupted, digits_dir, tmp_path, capsys, monkeypatch, whole
):
    run, train = small_run(*PHASES, (0.5, 0.004)), loop.Loop.train
    folder = begun(uninterrupted, tmp_path / "small", run)
    damaged, steps = sorted((folder / "checkpoints").iterdir())[whole:], []

    def diverge(self, batches, count):
        scores = train(self, batches, count)
        steps.extend(scores)
        if damaged and len(steps) > 1:  # of the second step on, so that the weights before it are good
            while damaged:
                os.truncate(damaged.pop(), 100)
            scores[-1] = np.nan
        return scores

    monkeypatch.setattr(loop.Loop, "train", diverge)
    if not whole:
        with pytest.raises(DivergedError, match=r"^the loss is nan at step 4\d, .*; no checkpoint in .* is whole"):
            trainer.train(run, folder, data_dir=digits_dir, on_nan="rollback")
        return
    assert trainer.train(run, folder, data_dir=digits_dir, on_nan="rollback")["rollbacks"] == 1
    said = capsys.readouterr().out
    assert said.count("Skipped a damaged checkpoint") == 1 and "on from step 33 at half the rate" in said


@pytest.mark.slow
@pytest.mark.parametrize(("times", "rate"), [(1, 0.005), (2, 0.0025)])
def test_rolling_back_over_the_end_of_a_phase_halves_the_rate_of_that_each_time(
    uninterrupted, digits_dir, tmp_path, capsys, monkeypatch, times, rate
):
    run, train, left = small_run(*PHASES, (0.5, 0.004)), loop.Loop.train, [True] * times

    def diverge(self, batches, count):
        scores = train(self, batches, count)
        if left and float(self.optimizer.learning_rate) == np.float32(0.004):
            left.pop()
            scores[-1] = np.nan
        return scores

    monkeypatch.setattr(loop.Loop, "train", diverge)
    monkeypatch.setattr("gated_resnext.training.CALL_S", 0)  # a step a call: the first of its phase
    folder = begun(uninterrupted, tmp_path / "small", run)
    result = trainer.train(run, folder, data_dir=digits_dir, on_nan="rollback")
    back = "at step 43, in phase 4 at learning rate 0.004; on from step 33 at half the rate"
    assert capsys.readouterr().out.count(back) == times
    assert result["rollbacks"] == times and result["steps"] == 48
    rates = [(row["phase"], row["round"], row["learning_rate"]) for row in rows(folder)[-3:]]
    assert rates == [(3, 1, 0.01), (3, 2, rate), (4, 1, 0.004)]


@pytest.mark.parametrize(
    "wiring", ["learned", *(pytest.param(name, marks=pytest.mark.slow) for name in ("random", "full"))]
)
def test_rolling_back_where_there_is_no_checkpoint_begins_again(wiring, digits_dir, tmp_path, capsys, diverging):
    shape = SMALL.replace(aggregation="shared", fan_in=3) if wiring == "full" else SMALL
    run = small_run((0.5, 0.01), wiring=wiring, architecture=shape)
    result = trainer.train(run, tmp_path / "small", data_dir=digits_dir, on_nan="rollback")
    assert "; on from step 0 at half the rate" in capsys.readouterr().out
    assert (result["rollbacks"], result["steps"]) == (1, 6)
    assert [row["learning_rate"] for row in rows(tmp_path / "small")] == [0.005]
    trainer.train(
        dataclasses.replace(run, recipe=small_run((0.5, 0.005)).recipe), tmp_path / "half", data_dir=digits_dir
    )
    learned = files.read_json(tmp_path / "half" / "result.json")["connectivity"]
    assert result["connectivity"] == learned and (learned is None) == (wiring == "full")
    for name, value in weights(tmp_path / "half").items():  # the initial weights, not those that diverged
        np.testing.assert_array_equal(weights(tmp_path / "small")[name], value, err_msg=name)


def test_a_schedule_that_learns_to_its_end_ends_in_a_wiring(digits_dir, tmp_path):
    result = trainer.train(small_run((0.5, 0.1, 5.0)), tmp_path, data_dir=digits_dir)
    wiring = Connectivity.from_dict(result["connectivity"])
    assert wiring == Connectivity.read(tmp_path / "result.json")
    assert list(wiring.active_blocks) == result["active_blocks"]
    gates = files.read_arrays(tmp_path / "gates.npz")
    assert wiring.sources == (top_k(gates["module2"], len(wiring.sources[0][0])),)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("moment", ["after_step_33", "small"])
def test_to_go_on_in_another_arithmetic_is_refused(uninterrupted, digits_dir, tmp_path, precision, moment):
    folder = shutil.copytree(uninterrupted.with_name(moment), tmp_path / "copy")
    before = contents(folder)
    with pytest.raises(UserError, match="the run began with --precision=float32; go on with that, or begin in another"):
        trainer.train(Run.read(folder), folder, data_dir=digits_dir, precision=precision)
    assert contents(folder) == before


@pytest.mark.parametrize("digest", ["that", "another"])  # as where both backends know a limit by another name
def test_to_go_on_under_another_backend_is_refused(uninterrupted, digits_dir, tmp_path, digest):
    folder = shutil.copytree(uninterrupted.with_name("after_step_33"), tmp_path / "copy")
    for path in (folder / "checkpoints").glob("*.npz"):
        state = files.read_arrays(path)
        place = json.loads(str(state["place"]))
        assert place["arithmetic"]["backend"] == "tensorflow"
        place["arithmetic"]["backend"] = "jax"
        place["images"] += "" if digest == "that" else ", the first 640"
        files.write_arrays(path, {**state, "place": np.array(json.dumps(place))})
    before = contents(folder)
    with pytest.raises(UserError, match="the run began with KERAS_BACKEND=jax; go on with that, or begin in another"):
        trainer.train(Run.read(folder), folder, data_dir=digits_dir)
    assert contents(folder) == before


def test_a_backend_that_does_not_train_is_one_line(digits_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(UserError, match="KERAS_BACKEND must be tensorflow or jax to train. Received: torch"):
        trainer.train(small_run((1, 0.1)), tmp_path / "small", data_dir=digits_dir)
    assert not (tmp_path / "small").exists()


def test_batch_norm_keeps_the_images_it_takes(uninterrupted, digits_dir, tmp_path):
    """Two replicas that synchronize go on with what one began; two that do not, do not."""
    run, folder = Run.read(uninterrupted), shutil.copytree(uninterrupted, tmp_path / "copy")
    batch, two = run.recipe.batch_size, TensorFlowEngine()
    two.replicas = 2
    for synchronized in (True, False):
        training = Training(run, folder, images_of(run, digits_dir), two, Options(synchronized))
        assert training._arithmetic["batch_norm_images"] == (batch if synchronized else batch // 2)
        if synchronized:
            training._restore()
        else:
            with pytest.raises(UserError, match=f"the run began with batch norm over {batch} images, which --strategy"):
                training._restore()


@pytest.mark.slow
def test_a_checkpoint_of_before_the_arithmetic_was_kept_goes_on(uninterrupted, digits_dir, tmp_path):
    folder = shutil.copytree(uninterrupted.with_name("after_step_33"), tmp_path / "copy")
    for path in (folder / "checkpoints").glob("*.npz"):
        state = files.read_arrays(path)
        place = json.loads(str(state["place"]))
        del place["arithmetic"]
        files.write_arrays(path, {**state, "place": np.array(json.dumps(place))})
    trainer.train(Run.read(folder), folder, data_dir=digits_dir)
    assert_same_end(folder, uninterrupted)


@pytest.mark.slow
def test_to_evaluate_again_keeps_the_version_that_trained(trained, digits_dir, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "copy")
    result = {**files.read_json(folder / "result.json"), "version": "0.0.1"}
    files.write_json(folder / "result.json", result)
    assert trainer.train(Run.read(folder), folder, data_dir=digits_dir) == result
    shutil.rmtree(folder / "checkpoints")
    before = contents(folder)
    gone = "is of a training whose checkpoints are gone; put checkpoints/ back, or choose another folder"
    with pytest.raises(UserError, match=gone):
        trainer.train(Run.read(folder), folder, data_dir=digits_dir)
    assert contents(folder) == before
    (folder / "result.json").unlink()
    with pytest.raises(UserError, match=gone):
        trainer.train(Run.read(folder), folder, data_dir=digits_dir)
    (folder / "metrics.jsonl").unlink()
    assert trainer.train(Run.read(folder), folder, data_dir=digits_dir)["version"] == gated_resnext.__version__


def test_a_checkpoint_of_broken_weights_is_not_gone_on_from(digits_dir, tmp_path, monkeypatch):
    # The first step's loss is finite, the weights after it are not.
    monkeypatch.setattr("gated_resnext.checkpoints.PARTS", 0)
    monkeypatch.setattr("gated_resnext.training.CALL_S", 0)
    run, folder = small_run((1, 1e38)), tmp_path / "small"
    with pytest.raises(UserError, match=r"the loss is .* at step 2, in phase 1 .*; there is no checkpoint before"):
        trainer.train(run, folder, data_dir=digits_dir, checkpoint_s=0)
    assert not list((folder / "checkpoints").glob("step*"))


def test_weights_that_the_last_step_broke_are_no_result(digits_dir, tmp_path):
    with pytest.raises(UserError, match=r"the test loss is nan after step 1, in phase 1 at learning rate 1e\+38; "):
        trainer.train(small_run((1 / 11, 1e38)), tmp_path / "small", data_dir=digits_dir)
    assert not (tmp_path / "small" / "result.json").exists() and not (tmp_path / "small" / "metrics.jsonl").exists()


def test_what_a_divergence_does_is_one_of_two(digits_dir, tmp_path):
    with pytest.raises(UserError, match="on_nan must be one of stop, rollback. Received: 'ignore'"):
        trainer.train(small_run((1, 0.1)), tmp_path / "small", data_dir=digits_dir, on_nan="ignore")
    assert not (tmp_path / "small").exists()


def test_a_batch_that_does_not_divide_among_the_replicas_is_refused(digits_dir, tmp_path):
    class Three:
        num_replicas_in_sync = 3

    with pytest.raises(UserError, match="the batch of 128 does not divide into 3 replicas"):
        trainer.train(small_run((1, 0.1)), tmp_path / "small", data_dir=digits_dir, strategy=Three())
    assert not (tmp_path / "small").exists()


# The fixed wirings


def test_a_full_wiring_has_no_gates_to_learn_or_freeze(digits_dir, tmp_path):
    run = Run.of("digits_11_4_4_full", recipe_of((0.5, 0.1, 0.2), (0.5, 0.1)), seed=0)
    result = trainer.train(run, tmp_path / "run", data_dir=digits_dir)
    assert not (tmp_path / "run" / "gates.npz").exists() and not (tmp_path / "run" / "gates").exists()
    assert result["active_blocks"] == result["blocks"] == [4, 4, 4]
    assert result["parameters_pruned"] == result["parameters"] == 93_754
    assert result["connectivity"] is None
    first, second = rows(tmp_path / "run")
    assert "gate_entropy" not in first and second["loss"] < first["loss"]


def test_a_random_wiring_is_that_of_the_seed_and_stays(digits_dir, tmp_path):
    run = Run.of("digits_11_4_4_random_k2", recipe_of((0.5, 0.1, 0.2)), seed=3)
    result = trainer.train(run, tmp_path / "run", data_dir=digits_dir)
    rng = np.random.default_rng(3)
    drawn = [[sorted(rng.choice(4, 2, replace=False).tolist()) for _ in range(4)] for _ in range(2)]
    assert result["connectivity"] == {"first": 4, "sources": drawn}
    assert keras.saving.load_model(tmp_path / "run" / "model.keras").connectivity.to_dict() == result["connectivity"]
    assert not (tmp_path / "run" / "gates.npz").exists() and not (tmp_path / "run" / "gates").exists()
    assert "gate_entropy" not in rows(tmp_path / "run")[0]
    mean_image = images_of(run, digits_dir).arrays("train")[0].mean(0, dtype=np.float64)
    np.testing.assert_allclose(weights(tmp_path / "run")["standardize/mean_image"], mean_image, rtol=1e-6)


@pytest.mark.slow
def test_a_training_asks_for_the_batches_of_its_seed_and_step(digits_dir, tmp_path, monkeypatch):
    asked, given = [], TensorFlowEngine.train_batches

    def train_batches(self, images, *where):
        asked.append(where)
        return given(self, images, *where)

    monkeypatch.setattr(TensorFlowEngine, "train_batches", train_batches)
    trainer.train(small_run((1.6, 0.1, 0.2), (0.5, 0.1), (0.5, 0.01)), tmp_path, data_dir=digits_dir)
    assert asked == [(5, 0, 18), (5, 18, 6), (5, 24, 6)]


# Several devices

MIRRORED = """
import pathlib, sys
import tensorflow as tf

device = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)

import runs
from gated_resnext.loop import TensorFlowEngine
from gated_resnext import distribution, trainer

scope = distribution.strategy()
assert type(scope).__name__ == "MirroredStrategy" and scope.num_replicas_in_sync == 2, scope
run = runs.small_run((1.6, 0.1, 0.2), (0.5, 0.1))
data_dir, whole = sys.argv[1], pathlib.Path(sys.argv[2])
engine = TensorFlowEngine(scope)
training = runs.Photographed(run, whole, runs.images_of(run, data_dir), engine)
training.within = (13,)
training.run_phases()
trainer.train(run, whole.with_name("within_step_13"), data_dir=data_dir, strategy=scope)
"""


@pytest.fixture(scope="module", autouse=True)
def two_devices(request, run_python, digits_dir, tmp_path_factory):
    """The script, which runs beside the other tests of this file: its end, and the folder it trained in."""
    if not any(item.name.startswith("test_two_devices") for item in request.session.items):
        yield None
        return
    folder = tmp_path_factory.mktemp("two_devices")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        yield pool.submit(run_python, "-c", MIRRORED, digits_dir, folder / "whole"), folder


def test_two_devices_train_together_and_resume(two_devices):
    future, folder = two_devices
    done, whole, parts = future.result(), folder / "whole", folder / "within_step_13"
    assert done.returncode == 0, done.stderr
    assert "\nResuming small after step 13 of 24\n" in done.stdout
    assert [(row["phase"], row["round"], row["step"]) for row in rows(parts)] == [(1, 1, 9), (1, 2, 18), (2, 1, 24)]
    assert_same_end(parts, whole)
    matrix = files.read_arrays(parts / "gates.npz")["module2"]
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    assert np.abs(matrix - 1 / 3).max() > 1e-4, "the gates did not move"
    learned = newest(folder / "after_step_18")
    assert learned["stage2_module1_gate/step"] == 18, "a step counted by each replica"
