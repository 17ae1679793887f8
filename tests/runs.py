"""Small runs, and what is read of their workdirs."""

import dataclasses
import json
import shutil

import keras
import pytest
import tensorflow as tf

from gated_resnext import files
from gated_resnext.architecture import Architecture
from gated_resnext.data import Images
from gated_resnext.recipes import Phase, Recipe
from gated_resnext.training import Training
from gated_resnext.workdir import Run

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


def contents(folder, but=("tensorboard", ".lock")):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in but
    }


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return keras.saving.load_model(folder / "model.keras").weights_by_name()


def images_of(run, data_dir):
    return Images(run.dataset, run.recipe, data_dir, run.architecture.input_shape)


def newest(folder):
    """The newest checkpoint's arrays, its place as a dict."""
    state = files.read_arrays(max((folder / "checkpoints").glob("step*.npz")))
    return {**state, "place": json.loads(str(state["place"]))}


def recordings(folder):
    """The gates at every step they were written down at."""
    return {
        f"{path.stem}/{name}": gate
        for path in (folder / "gates").glob("*")
        for name, gate in files.read_arrays(path).items()
    }


def timeless(row):
    return {name: value for name, value in row.items() if name not in ("seconds", "images_per_s")}


def assert_same_end(found, expected):
    """Two finished workdirs are equal to the byte, but for the time they took and the end of a zip's name."""
    assert [timeless(row) for row in rows(found)] == [timeless(row) for row in rows(expected)]
    results = [timeless(files.read_json(folder / "result.json")) for folder in (found, expected)]
    assert results[0] == results[1]
    of_checkpoints, of_models = (newest(found), newest(expected)), (weights(found), weights(expected))
    places = [timeless(state.pop("place")) for state in of_checkpoints]
    assert places[0] == places[1]
    both = [of_checkpoints, of_models]
    if (expected / "gates.npz").exists():
        both.append(tuple(files.read_arrays(folder / "gates.npz") for folder in (found, expected)))
    both.append((recordings(found), recordings(expected)))
    for one, other in both:
        assert set(one) == set(other)
        for name, value in other.items():
            assert (one[name].dtype, one[name].tobytes()) == (value.dtype, value.tobytes()), name


def drawn(folder):
    """What the event files of a workdir hold: (tag, step, value), in order."""
    return sorted(
        (value.tag, event.step, float(tf.make_ndarray(value.tensor)))
        for path in (folder / "tensorboard").iterdir()
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    )


class Photographed(Training):
    """A training that leaves a copy of its workdir beside it after every checkpoint, as a kill would.

    Steps in `within` get a checkpoint of their own: each call of the compiled loop is one step.
    """

    within = ()

    def save(self, loop):
        super().save(loop)
        place = self.place
        copy = self.folder.with_name(f"{'within' if place.steps else 'after'}_step_{place.step}")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder, copy)

    def run_phases(self):
        self.checkpoints.due = lambda: self.place.step in self.within
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gated_resnext.training.CALL_S", 0)
            return super().run_phases()
