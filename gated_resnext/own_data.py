"""A run that is not the zoo's: another network, or data of one's own, fitted to the classes and the images.

A data set that the zoo knows needs no TensorFlow here.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

from gated_resnext import zoo
from gated_resnext.architecture import Architecture
from gated_resnext.datasets.table import DATASETS, FOLDER, DatasetInfo
from gated_resnext.errors import UserError
from gated_resnext.recipes import Recipe, read
from gated_resnext.workdir import Run

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

    Raises:
        UserError: if the data is not there, or there is no such entry, architecture or recipe.
    """
    info = DATASETS.get(dataset) or _looked_at(dataset, data_dir)
    template = zoo.architecture(entry or TEMPLATES[info.streamed])
    wiring = zoo.entry(entry).wiring if entry else "learned"
    changes = {"classes": info.classes, **(fields or {})}
    if not info.streamed:
        changes.setdefault("input_shape", info.input_shape)
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
    return Run(_name(dataset, shape, wiring), shape, wiring, dataset, recipe(own), seed)


def _looked_at(dataset: str, data_dir: str | os.PathLike[str] | None) -> DatasetInfo:
    """What a data set that no table has says of itself."""
    from gated_resnext.sources import open_source

    return open_source(dataset, data_dir).info


def _name(dataset: str, shape: Architecture, wiring: str) -> str:
    """As the zoo names its own: <data set>_<D>_<w>_<C>_k<K>, with another sum or other gates <..>_<which>_k<K>."""
    stem = pathlib.PurePath(dataset.removeprefix(FOLDER)).name
    stem = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_") or "images"
    kind = {"full": "full", "random": f"random_k{shape.fan_in}"}.get(wiring, f"k{shape.fan_in}")
    other = "".join(f"{name}_" for name in (shape.aggregation, shape.gates) if name in ("sum", "weighted", "real"))
    return f"{stem}_{shape.depth}_{shape.width}_{shape.cardinality}_{other}{kind}"
