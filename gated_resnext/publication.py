"""A finished training as a card and a weights file of the zoo."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from gated_resnext import evaluation, files, trained, zoo
from gated_resnext.errors import UserError
from gated_resnext.model import GatedResNeXt
from gated_resnext.recipes import RECIPES
from gated_resnext.workdir import Run, read_metrics

if TYPE_CHECKING:
    from gated_resnext.arrays import ArrayImages
    from gated_resnext.data import Images


def publish(
    workdir: pathlib.Path, folder: pathlib.Path, *, data_dir: str | os.PathLike[str] | None, hardware: str
) -> dict[str, Any]:
    """Writes `folder`/weights/<entry>.npz and `folder`/cards/<entry>.json.

    Weights are float16 where the top-1 on the test images stays the same to the image, else float32.

    Args:
        workdir: a training that ended.
        folder: the zoo's.
        data_dir: folder of tensorflow-datasets, or of what `gated_resnext.pack` wrote.
        hardware: what it was trained on.

    Returns:
        The card.

    Raises:
        UserError: if the training has not ended, or the folder is no zoo.
    """
    run = Run.read(workdir)
    if run.recipe.name not in RECIPES:
        raise UserError(f"the zoo holds runs of {', '.join(RECIPES)} alone. Received: the recipe {run.recipe.name!r}")
    if run.limit is not None:
        raise UserError(f"the zoo holds runs on all training images. Received: one on the first {run.limit:,}")
    if run.connectivity is not None:
        raise UserError(f"the zoo holds {run.entry} with the wiring of its name. Received: one with a given wiring")
    if not (workdir / "result.json").is_file():
        raise UserError(f"{workdir} has no result.json: its training has not ended")
    if not (folder / "entries.py").is_file():
        raise UserError(
            f"{folder} is no zoo: there is no entries.py in it; run this in a checkout or give --zoo=FOLDER"
        )
    result = files.read_json(workdir / "result.json")
    model = zoo.load(run.entry, workdir / "model.keras")
    images = trained.images_for(trained.of_workdir(workdir), data_dir=data_dir)
    weights = {name: _shrunk(value, np.float16) for name, value in model.weights_by_name().items()}
    model.assign_by_name(weights)
    if top1(model, images) != result["top1"]:
        weights = zoo.load(run.entry, workdir / "model.keras").weights_by_name()
    path = folder / "weights" / f"{run.entry}.npz"
    files.write_arrays(path, weights)
    card = {
        "entry": run.entry,
        "dataset": run.dataset,
        "command": f"python -m gated_resnext.train --entry={run.entry} --seed={run.seed}{_scale(run)}"
        f"{_precision(result)}",
        "recipe": run.recipe.name,
        "epochs": result["epochs"],
        "schedule_epochs": RECIPES[run.recipe.name].epochs,
        "seed": run.seed,
        "hardware": hardware,
        "seconds": result["seconds"],
        "version": result["version"],
        "top1": result["top1"],
        "test_images": result["test_images"],
        "blocks": result["blocks"],
        "active_blocks": result["active_blocks"],
        "parameters": result["parameters"],
        "parameters_pruned": result["parameters_pruned"],
        "labels": result["labels"],
        "connectivity": result["connectivity"],
        "curve": [[row["epoch"], row["loss"], row["test_top1"]] for row in read_metrics(workdir)],
        "weights": {
            "file": path.name,
            "dtype": str(next(iter(weights.values())).dtype),
            "bytes": path.stat().st_size,
            "sha256": files.sha256(path),
        },
    }
    files.write_json(folder / "cards" / f"{run.entry}.json", card)
    return card


def top1(model: GatedResNeXt, images: Images | ArrayImages) -> float:
    """Share of the test images whose most probable class is theirs."""
    batches = images.batches("test", None, trained.BATCH)
    return evaluation.top1(*evaluation.answers(model.predict_on_batch, batches))


def _shrunk(value: np.ndarray, dtype: Any) -> np.ndarray:
    return value.astype(dtype) if value.dtype.kind == "f" else value


def _scale(run: Run) -> str:
    whole = RECIPES[run.recipe.name].epochs
    return "" if run.recipe.epochs == whole else f" --epochs_scale={run.recipe.epochs / whole:.6g}"


def _precision(result: dict[str, Any]) -> str:
    found = result.get("precision", "float32")
    return "" if found == "float32" else f" --precision={found}"
