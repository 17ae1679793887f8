import concurrent.futures
import dataclasses
import json
import math
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from gated_resnext import files, trainer
from gated_resnext.architecture import Architecture
from gated_resnext.connectivity import Connectivity
from gated_resnext.data import Images
from gated_resnext.errors import UserError
from gated_resnext.recipes import RECIPES, Phase, Recipe
from gated_resnext.trainer import Run

K1 = "digits_11_4_4_k1"
# Two modules of three blocks: the smallest network with gates.
SMALL = Architecture(
    depth=8, width=2, cardinality=3, fan_in=1, input_shape=(8, 8, 1), stem_filters=4, filters=8, stages=(1, 1)
)


def recipe_of(*phases):
    return Recipe(
        "made_up", tuple(Phase(*phase) for phase in phases), batch_size=128, weight_decay=5e-4, pad=1, flip=False
    )


def small_run(*phases, **changes):
    """1,437 images in batches of 128 are 11 steps an epoch."""
    return dataclasses.replace(Run("small", SMALL, "learned", "optical_digits", recipe_of(*phases), 5), **changes)


def contents(folder, but=("tensorboard",)):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in but
    }


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def weights(workdir):
    return keras.saving.load_model(workdir / "model.keras").weights_by_name()


def top_k(matrix, k):
    """Indices of the k largest of every row, the lower first among equals, by Python's sort."""
    return tuple(tuple(sorted(sorted(range(len(row)), key=lambda i: (-row[i], i))[:k])) for row in matrix.tolist())


class Photographed(trainer._Training):
    """A training that leaves a copy of its workdir beside it after every checkpoint, as a kill would."""

    def save(self, model):
        super().save(model)
        shutil.copytree(self.workdir, self.workdir.with_name(f"after_step_{self.step}"))


# A whole run


def test_a_run_writes_its_files(trained):
    assert set(contents(trained)) == {
        "run.json",
        "checkpoint.npz",
        "metrics.jsonl",
        "gates.npz",
        "model.keras",
        "result.json",
    }
    assert [path.name for path in (trained / "tensorboard").iterdir()], "no event files"
    run = Run.of(K1, RECIPES["digits"].scaled(0.03), seed=0)
    assert Run.read(trained) == run
    assert Run.read(trained).to_dict() == json.loads((trained / "run.json").read_text()) == run.to_dict()


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
        assert 0 <= row["top1"] <= 1 and 0 <= row["test_top1"] <= 1
        assert row["images_per_s"] > 0
    assert found == trainer.read_metrics(trained)


def test_tensorboard_has_what_the_metrics_have(trained):
    events = {}
    for path in (trained / "tensorboard").iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                events[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
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
    expected = {
        "entry": K1,
        "dataset": "optical_digits",
        "recipe": "digits",
        "epochs": round(43 / 22, 3),
        "steps": 43,
        "seed": 0,
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


def test_the_mean_image_is_that_of_the_training_images(trained, digits_dir):
    images, _ = Images("optical_digits", RECIPES["digits"], digits_dir).arrays("train")
    np.testing.assert_allclose(weights(trained)["standardize/mean_image"], images.mean(0, dtype=np.float64), rtol=1e-6)


def test_training_a_finished_run_again_changes_nothing(trained, digits_dir, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "copy")
    before, result = weights(workdir), json.loads((workdir / "result.json").read_text())
    assert trainer.train(Run.read(workdir), workdir, data_dir=digits_dir) == result
    after = contents(workdir)
    for name, content in contents(trained).items():
        assert name == "model.keras" or after.pop(name) == content, name
    assert set(after) == {"model.keras"}
    for name, value in weights(workdir).items():
        np.testing.assert_array_equal(value, before[name])


def test_a_disk_that_fills_up_keeps_the_files_of_the_run(trained, digits_dir, tmp_path):
    resource = pytest.importorskip("resource", reason="needs the resource module, to limit the size of a file")
    workdir = shutil.copytree(trained, tmp_path / "copy")
    assert (workdir / "model.keras").stat().st_size > 200_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # Python ignores SIGXFSZ: the write fails with EFBIG
    try:
        with pytest.raises(OSError, match="File too large"):
            trainer.train(Run.read(workdir), workdir, data_dir=digits_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(workdir, but=()) == contents(trained, but=())


# Interrupted and resumed

PHASES = ((1.6, 0.1, 0.2), (0.5, 0.1), (1.6, 0.01))  # 2 rounds of 9 steps, 1 of 6 (5.5, to even), 2 of 9


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, digits_dir):
    """A finished workdir; beside it `after_step_9`, 18, 24 and 33, as it was then."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "small"
    Photographed(small_run(*PHASES), workdir, digits_dir, tf.distribute.get_strategy()).run_phases()
    return workdir


@pytest.mark.parametrize("step, phase", [(9, 1), (33, 3)])
def test_resumed_equals_uninterrupted(uninterrupted, digits_dir, tmp_path, step, phase):
    run, workdir = (
        small_run(*PHASES),
        shutil.copytree(uninterrupted.with_name(f"after_step_{step}"), tmp_path / "small"),
    )
    assert [(row["phase"], row["round"], row["step"]) for row in rows(workdir)][-1] == (phase, 1, step)
    assert not (workdir / "model.keras").exists()
    # Killed while it wrote the next row.
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write(f'{{"phase": {phase}, "round": 2, "st')
    result = trainer.train(run, workdir, data_dir=digits_dir)

    expected, found = weights(uninterrupted), weights(workdir)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6, err_msg=name)
    assert keras.saving.load_model(workdir / "model.keras").connectivity == Connectivity.from_dict(
        result["connectivity"]
    )
    whole = json.loads((uninterrupted / "result.json").read_text())
    timeless = {name: value for name, value in whole.items() if name != "seconds"}
    assert {name: result[name] for name in timeless} == timeless

    for row, other in zip(rows(workdir), rows(uninterrupted), strict=True):
        assert set(row) == set(other)
        for name in set(row) - {"seconds", "images_per_s"}:
            assert row[name] == pytest.approx(other[name], rel=1e-5), name
    times = [row["seconds"] for row in rows(workdir)]
    assert times == sorted(times)
    gates = files.read_arrays(workdir / "gates.npz")
    for name, gate in files.read_arrays(uninterrupted / "gates.npz").items():
        np.testing.assert_allclose(gates[name], gate, atol=1e-6)


def test_momentum_is_kept_within_a_phase_and_zero_at_the_start_of_the_next(uninterrupted):
    state = files.read_arrays(uninterrupted / "checkpoint.npz")
    moments = [
        value for name, value in state.items() if name.startswith("optimizer/") and name.endswith("kernel_momentum")
    ]
    assert moments and all(np.abs(value).max() > 0 for value in moments)
    assert int(state["optimizer/sgd/iteration"]) == 18, "steps of phase 3 alone"


def test_a_cut_off_row_of_metrics_is_left_out(tmp_path):
    assert trainer.read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert trainer.read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]


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
        ({"architecture": SMALL.replace(fan_in=2)}, "architecture is .* there and .* here"),
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


def rewritten(workdir, change):
    arrays = files.read_arrays(workdir / "checkpoint.npz")
    change(arrays)
    files.write_arrays(workdir / "checkpoint.npz", arrays)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "flipped": lambda path: path.write_bytes((lambda b: b[:9000] + bytes([b[9000] ^ 1]) + b[9001:])(path.read_bytes())),
    "text": lambda path: path.write_text("not an archive"),
    "no place": lambda path: rewritten(path.parent, lambda arrays: arrays.pop("place")),
    "another place": lambda path: rewritten(path.parent, lambda arrays: arrays.update(place=np.array('{"phase": 9}'))),
    "no phase": lambda path: rewritten(
        path.parent,
        lambda arrays: arrays.update(
            place=np.array('{"phase": 9, "round": 1, "step": 3, "seconds": 1, "wiring": null}')
        ),
    ),
    "a weight less": lambda path: rewritten(path.parent, lambda arrays: arrays.pop("classifier/kernel")),
    "another shape": lambda path: rewritten(
        path.parent, lambda arrays: arrays.update({"classifier/bias": np.zeros(9)})
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_nothing_overwritten(uninterrupted, digits_dir, tmp_path, damage):
    workdir = shutil.copytree(uninterrupted, tmp_path / "copy")
    DAMAGES[damage](workdir / "checkpoint.npz")
    before = contents(workdir, but=())
    with pytest.raises(UserError, match="checkpoint.*delete it"):
        trainer.train(small_run(*PHASES), workdir, data_dir=digits_dir)
    assert contents(workdir, but=()) == before


# What can go wrong in training


def test_a_loss_that_is_no_longer_finite_stops_and_keeps_the_last_good_checkpoint(uninterrupted, digits_dir, tmp_path):
    # The finished run goes on with a fourth phase at a senseless rate.
    run, workdir = small_run(*PHASES, (4, 1e6)), tmp_path / "small"
    workdir.mkdir()
    for name in ("checkpoint.npz", "metrics.jsonl"):
        shutil.copy(uninterrupted / name, workdir)
    files.write_json(workdir / "run.json", run.to_dict())
    before = contents(workdir)
    with pytest.raises(UserError) as error:
        trainer.train(run, workdir, data_dir=digits_dir)
    message = str(error.value)
    assert re.search(r"the loss is (nan|inf) after step \d+ in phase 4 at learning rate 1e\+06", message), message
    assert "the last good checkpoint is that of step 42." in message
    assert contents(workdir) == before


def test_a_batch_that_does_not_divide_among_the_replicas_is_refused(digits_dir, tmp_path):
    class Three:
        num_replicas_in_sync = 3

    with pytest.raises(UserError, match="the batch of 128 does not divide into 3 replicas"):
        trainer.train(small_run((1, 0.1)), tmp_path / "small", data_dir=digits_dir, scope=Three())
    assert not (tmp_path / "small").exists()


def test_an_unknown_strategy_names_the_known_ones():
    with pytest.raises(UserError, match="one of auto, one_device, mirrored. Received: 'nonsense'"):
        trainer.strategy("nonsense")
    assert trainer.strategy("one_device").num_replicas_in_sync == 1
    assert isinstance(trainer.strategy("mirrored"), tf.distribute.MirroredStrategy)


# The fixed wirings


def test_a_full_wiring_has_no_gates_to_learn_or_freeze(digits_dir, tmp_path):
    run = Run.of("digits_11_4_4_full", recipe_of((0.5, 0.1, 0.2), (0.5, 0.1)), seed=0)
    result = trainer.train(run, tmp_path / "run", data_dir=digits_dir)
    assert not (tmp_path / "run" / "gates.npz").exists()
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
    assert not (tmp_path / "run" / "gates.npz").exists()
    assert "gate_entropy" not in rows(tmp_path / "run")[0]


# Several devices

MIRRORED = """
import pathlib, sys
import tensorflow as tf

device = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)

import test_trainer
from gated_resnext import trainer

scope = trainer.strategy()
assert type(scope).__name__ == "MirroredStrategy" and scope.num_replicas_in_sync == 2, scope
run = test_trainer.small_run((1.6, 0.1, 0.2))
data_dir, whole = sys.argv[1], pathlib.Path(sys.argv[2])
test_trainer.Photographed(run, whole, data_dir, scope).run_phases()
trainer.train(run, whole.with_name("after_step_9"), data_dir=data_dir, scope=scope)
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
    done, whole, parts = future.result(), folder / "whole", folder / "after_step_9"
    assert done.returncode == 0, done.stderr
    assert "\nResuming small after step 9 of 18\n" in done.stdout
    assert [(row["phase"], row["round"], row["step"]) for row in rows(parts)] == [(1, 1, 9), (1, 2, 18)]
    expected, found = weights(whole), weights(parts)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6, err_msg=name)
    matrix = found["stage2_module1_gate/real_gates"]
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    assert np.abs(matrix - 1 / 3).max() > 1e-4, "the gates did not move"
    assert found["stage2_module1_gate/step"] == 18
