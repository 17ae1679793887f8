"""A finished training as a card and a weights file of the zoo."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from gated_resnext import evaluation, files, trained, zoo
from gated_resnext.datasets.table import DATASETS
from gated_resnext.errors import UserError
from gated_resnext.model import GatedResNeXt
from gated_resnext.recipes import RECIPES, Recipe
from gated_resnext.workdir import NOT_RECORDED, Run, gate_entropies, read_metrics, read_result, trained_on

if TYPE_CHECKING:
    from gated_resnext.arrays import ArrayImages
    from gated_resnext.data import Images


# Of the test images, how many may get another class by the rounding of another device: TF32 of a GPU beside a CPU's.
ROUNDING = 0.005


def publish(
    workdir: pathlib.Path, folder: pathlib.Path, *, data_dir: str | os.PathLike[str] | None, hardware: str | None = None
) -> dict[str, Any]:
    """Writes `folder`/weights/<entry>.npz and `folder`/cards/<entry>.json.

    Weights are float16 where the top-1 on the test images is that of float32, to the image; else float32.

    Args:
        workdir: a training that ended.
        folder: the zoo's.
        data_dir: folder of tensorflow-datasets, or of what `gated_resnext.pack` wrote.
        hardware: what it was trained on; None for what the training wrote down of that.

    Returns:
        The card.

    Raises:
        UserError: if the training has not ended, or hardware is None and it does not say either, the folder is no zoo,
            or the network does not reach on these images what its training measured.
    """
    run = Run.read(workdir)
    whole = RECIPES[DATASETS[zoo.entry(run.entry).dataset].recipe]
    if not run.recipe.is_part_of(whole):
        raise UserError(
            f"the zoo holds {run.entry} after the recipe {whole.name!r}, or a part of it. Received: {run.recipe.name!r}"
            + (", of other numbers" if run.recipe.name == whole.name else "")
        )
    if run.limit is not None:
        raise UserError(f"the zoo holds runs on all training images. Received: one on the first {run.limit:,}")
    if run.connectivity is not None:
        raise UserError(f"the zoo holds {run.entry} with the wiring of its name. Received: one with a given wiring")
    if run.weights is not None:
        raise UserError(f"the zoo holds {run.entry} trained from fresh weights. Received: one from {run.weights}")
    if not (workdir / "result.json").is_file():
        raise UserError(f"{workdir} has no result.json: its training has not ended")
    if not (folder / "entries.py").is_file():
        raise UserError(
            f"{folder} is no zoo: there is no entries.py in it; run this in a checkout or give --zoo=FOLDER"
        )
    result = read_result(workdir)
    if hardware is None:
        hardware = trained_on(workdir)["hardware"]
    if hardware == NOT_RECORDED:
        raise UserError(f"{workdir} does not say what it was trained on; give that by --hardware")
    model = zoo.load(run.entry, workdir / "model.keras")
    images = trained.images_for(trained.of_workdir(workdir, model), data_dir=data_dir)
    weights = model.weights_by_name()
    reached = _reached(model, images, result)
    halved = {name: _shrunk(value, np.float16) for name, value in weights.items()}
    if all(np.isfinite(value).all() for value in halved.values()):  # float16 ends at 65,504
        model.assign_by_name(halved)
        if top1(model, images) == reached:
            weights = halved
    path = folder / "weights" / f"{run.entry}.npz"
    card: dict[str, Any] = {
        "entry": run.entry,
        "dataset": run.dataset,
        "command": f"{_backend(result)}python -m gated_resnext.train --entry={run.entry} --seed={run.seed}"
        f"{_scale(run, whole)}{_arithmetic(result)}{' --on_nan=rollback' if result.get('rollbacks') else ''}",
        "recipe": run.recipe.name,
        "epochs": result["epochs"],
        "schedule_epochs": whole.epochs,
        "seed": run.seed,
        "hardware": hardware,
        "seconds": result["seconds"],
        "version": result.get("version"),
        "versions": trained_on(workdir)["versions"],
        **{name: result[name] for name in ("batch_norm_images", "rollbacks") if name in result},
        "top1": reached,
        "test_images": result["test_images"],
        "blocks": result["blocks"],
        "active_blocks": result["active_blocks"],
        "parameters": result["parameters"],
        "parameters_pruned": result["parameters_pruned"],
        "gate_entropy": gate_entropies(workdir),
        "labels": result.get("labels"),
        "connectivity": result.get("connectivity"),
        "curve": [[row["epoch"], row["loss"], row["test_top1"]] for row in read_metrics(workdir)],
    }
    with files.replacing(path) as written, files.replacing(folder / "cards" / f"{run.entry}.json") as told:
        files.write_arrays(written, weights)  # both or none are replaced
        card["weights"] = {
            "file": path.name,
            "dtype": str(next(iter(weights.values())).dtype),
            "bytes": written.stat().st_size,
            "sha256": files.sha256(written),
        }
        files.write_json(told, card)
    return card


def top1(model: GatedResNeXt, images: Images | ArrayImages) -> float:
    """Share of the test images whose most probable class is theirs."""
    batches = images.batches("test", None, model.architecture.images_at_once(trained.BATCH))
    return evaluation.top1(*evaluation.answers(model.predict_on_batch, batches))


def _reached(model: GatedResNeXt, images: Images | ArrayImages, result: dict[str, Any]) -> float:
    """Top-1 here and now, which another machine's rounding may move a little from what the training measured."""
    found = top1(model, images)
    if abs(found - result["top1"]) > ROUNDING:
        raise UserError(
            f"the network reaches {100 * found:.2f} % on these test images, and its training measured "
            f"{100 * result['top1']:.2f} %; give the images it was trained with, by --data_dir"
        )
    return found


def _shrunk(value: np.ndarray, dtype: Any) -> np.ndarray:
    return value.astype(dtype) if value.dtype.kind == "f" else value


def _scale(run: Run, whole: Recipe) -> str:
    factor = run.recipe.epochs / whole.epochs
    return "" if factor == 1 else f" --epochs_scale={factor:.6g}"


def _backend(result: dict[str, Any]) -> str:
    found = result.get("backend", "tensorflow")
    return "" if found == "tensorflow" else f"KERAS_BACKEND={found} "


def _arithmetic(result: dict[str, Any]) -> str:
    found = result.get("precision", "float32")
    compiled = " --jit_compile" if result.get("jit_compile") else ""
    return compiled if found == "float32" else f" --precision={found}{compiled}"
