"""Runs that are not the zoo's: another network, or data of one's own, fitted to the classes and the images.

A data set that the zoo knows needs no TensorFlow here.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gated_resnext import zoo
from gated_resnext.architecture import Architecture
from gated_resnext.datasets.table import DATASETS, FOLDER, DatasetInfo
from gated_resnext.errors import UserError
from gated_resnext.experiments import Experiment, Row
from gated_resnext.recipes import Recipe, read
from gated_resnext.workdir import Run

if TYPE_CHECKING:
    from gated_resnext.start import Start

# For images of any size, and for small ones of one size, which memory holds.
TEMPLATES = {True: "mini_imagenet_20_4_8_k1", False: "cifar10_20_4_8_k1"}
RECIPES = {True: "photos", False: "cifar"}


def run_of(
    dataset: str,
    *,
    entry: str | None = None,
    fields: dict[str, Any] | None = None,
    recipe: Callable[[str], Recipe] = read,
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    start: Start | None = None,
) -> Run:
    """What to train on a data set of one's own, or with another network than the zoo's.

    Args:
        dataset: what `sources.open_source` takes.
        entry: the zoo's network to take after; None for a small one.
        fields: of its `Architecture`, to change.
        recipe: what makes the schedule of the name of one: that of the data set, where the zoo knows it, else one that
            fits.
        seed: of weights, draws, shuffling and augmentation.
        data_dir: folder of tensorflow-datasets.
        start: the trained network to begin with, in the place of an entry: its shape, its wiring and its weights.

    Raises:
        UserError: if the data is not there, there is no such entry, architecture or recipe, or the images or the fields
            do not fit what it begins with.
    """
    info = DATASETS.get(dataset) or _looked_at(dataset, data_dir)
    template = start.architecture if start else zoo.architecture(entry or TEMPLATES[info.streamed])
    wiring = zoo.entry(entry).wiring if entry else "learned"
    if start and not template.learnable:
        wiring = "full"
    changes = {"classes": info.classes, **(fields or {})}
    if not info.streamed:
        changes.setdefault("input_shape", info.input_shape)
    if info.classes < 2:
        raise UserError(f"{dataset} has one class: there is nothing to tell apart")
    if changes["classes"] != info.classes:
        raise UserError(f"{dataset} has {info.classes} classes. Received: classes={changes['classes']!r}")
    if wiring == "full" and "cardinality" in changes:
        changes.setdefault("fan_in", changes["cardinality"])
    if wiring == "random" and changes.get("gates") == "real":
        raise UserError(f"{entry} has a fixed wiring, which needs binary gates. Received: gates='real'")
    try:
        shape = template.replace(**changes)
    except (ValueError, TypeError) as error:
        raise UserError(f"--architecture: {error}") from None
    # The recipe of a data set is that of its crops: for another input it does not hold.
    own = info.recipe if dataset in DATASETS and info.input_shape == shape.input_shape else RECIPES[info.streamed]
    run = Run(_name(dataset, shape, wiring), shape, wiring, dataset, recipe(own), seed)
    return _begun(run, start) if start else run


def check_backend(dataset: str) -> None:
    """Finds that TensorFlow reads the images, where no table says what they are.

    Raises:
        UserError: if Keras' backend is JAX.
    """
    import keras

    if keras.backend.backend() == "jax" and dataset not in DATASETS:
        raise UserError(
            "under JAX a network is trained on what gated_resnext.pack wrote of "
            f"{', '.join(name for name, info in DATASETS.items() if not info.streamed)}; for any other --dataset and "
            "--image_folder set KERAS_BACKEND=tensorflow"
        )


def wirings(
    dataset: str,
    *,
    entry: str | None = None,
    fields: dict[str, Any] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> tuple[Experiment, Recipe]:
    """The comparison of the paper's tables on data of one's own, and the whole schedule that fits it.

    Args:
        dataset: what `sources.open_source` takes.
        entry: the zoo's network whose shape the rows have; None for a small one.
        fields: of its `Architecture`, to change.
        data_dir: folder of tensorflow-datasets.

    Returns:
        Fixed-Full, learned with K = 1 and C / 2, and a random wiring with K = C / 2; and the schedule.

    Raises:
        UserError: as `run_of`, and if a module has one block.
    """
    fields = dict(fields or {})
    for name in ("fan_in", "gates"):
        if name in fields:
            raise UserError(f"the rows of the comparison differ in {name}: leave it out of --architecture")
    if not entry or zoo.entry(entry).wiring != "full":
        fields["fan_in"] = 1  # as long as it is none of the rows'
    run = run_of(dataset, entry=entry, fields=fields, data_dir=data_dir)
    shape, most = run.architecture, run.architecture.cardinality
    if most < 2 or shape.modules < 2:
        raise UserError(
            "wirings are compared of two modules of two blocks or more. Received: "
            f"{shape.modules} of cardinality={most}"
        )
    aggregation = "mean" if shape.aggregation == "shared" else shape.aggregation

    def row(wiring: str, fan_in: int) -> Row:
        other = shape.replace(aggregation="shared" if wiring == "full" else aggregation, fan_in=fan_in, gates="binary")
        return Row(_name(dataset, other, wiring), other, wiring, dataset)

    full, learned, random = row("full", most), [row("learned", k) for k in (1, most // 2)], row("random", most // 2)
    pairs = [*((one, full) for one in learned), (learned[-1], random)]
    rows = dict.fromkeys([full, *learned, random])  # of two blocks K = 1 is C / 2
    key = f"wirings_{_stem(dataset)}_{shape.depth}_{shape.width}_{most}"
    experiment = Experiment(key, "Wirings", dataset, tuple(rows), tuple(dict.fromkeys(pairs)))
    return experiment, run.recipe


def _begun(run: Run, start: Start) -> Run:
    """The run from the weights and the wiring of a trained network."""
    own, shape = start.architecture, run.architecture
    if shape.replace(classes=own.classes, input_shape=own.input_shape) != own:
        raise UserError(f"--architecture changes what {start.name} has weights of: leave all but input_shape out")
    if shape.input_shape[2] != own.input_shape[2]:
        raise UserError(
            f"{start.name} has weights for images of {own.input_shape[2]} channels, not of {shape.input_shape[2]}, as "
            f"the run on {run.dataset} would be"
        )
    run = dataclasses.replace(run, weights=start.name)
    return run if start.connectivity is None else run.with_wiring(start.connectivity)


def _looked_at(dataset: str, data_dir: str | os.PathLike[str] | None) -> DatasetInfo:
    """What a data set that no table has says of itself."""
    from gated_resnext.sources import open_source

    return open_source(dataset, data_dir).info


def _name(dataset: str, shape: Architecture, wiring: str) -> str:
    """As the zoo names its own: <data set>_<D>_<w>_<C>_k<K>, with another sum or other gates <..>_<which>_k<K>."""
    kind = {"full": "full", "random": f"random_k{shape.fan_in}"}.get(wiring, f"k{shape.fan_in}")
    other = "".join(f"{name}_" for name in (shape.aggregation, shape.gates) if name in ("sum", "weighted", "real"))
    return f"{_stem(dataset)}_{shape.depth}_{shape.width}_{shape.cardinality}_{other}{kind}"


def _stem(dataset: str) -> str:
    """What names of its networks begin with."""
    name = pathlib.PurePath(dataset.removeprefix(FOLDER)).name
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "images"
