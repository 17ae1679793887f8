"""Prunes a network, writes it, and proves file by file that the function is still the same."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from export.compact import compact
from export.formats import DEFAULT, FORMATS, Run
from gated_resnext import files
from gated_resnext.errors import UserError
from gated_resnext.model import GatedResNeXt
from gated_resnext.pruning import prune

# Probabilities, absolute. Float32 sums in another order differ by about 1e-7 a layer; a wrong graph by far more.
TOLERANCE = 1e-4
BATCH = 128


class Probe(NamedTuple):
    """What the files are checked on: images, uint8 (n, height, width, channels), labels or None, and their origin.

    `samples` are training images, of the same shape, on which the quantised formats measure their ranges.
    """

    images: np.ndarray
    labels: np.ndarray | None
    origin: str
    samples: np.ndarray | None = None


def choose(formats: Sequence[str]) -> list[str]:
    """The formats asked for.

    Raises:
        UserError: if one is unknown, or there is none.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UserError(f"formats must be out of {', '.join(FORMATS)}. Received: {', '.join(unknown) or 'none'}")
    return list(dict.fromkeys(formats))


def ship(
    model: GatedResNeXt,
    output: str | os.PathLike[str],
    probe: Probe,
    *,
    formats: Sequence[str] = DEFAULT,
    max_top1_drop: float = 0.5,
    labels: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Writes `output`, a new folder with one entry a format, `labels.txt` and `receipt.json`.

    Nothing gets its final name before every file, loaded again from disk, gave the trained network's probabilities.

    Args:
        model: the trained network, unpruned.
        output: the new folder.
        probe: the images to prove it on.
        formats: keys of `FORMATS`.
        max_top1_drop: percentage points of top-1 that a quantised format may lose.
        labels: names of the classes.
        say: is told what begins.

    Returns:
        The receipt, as `receipt.json` holds it.

    Raises:
        UserError: if `output` exists, a format is unknown or needs real images and has none, or a file does not compute
            the same function, or loses too much accuracy.
    """
    output = pathlib.Path(output)
    chosen = choose(formats)
    if output.exists():
        raise UserError(f"{output} exists already; remove it or choose another --output")
    lossy = [name for name in chosen if not FORMATS[name].exact]
    if lossy and (probe.labels is None or probe.samples is None):
        raise UserError(f"{lossy[0]} is checked by its top-1, which needs the data set's images; not with --noise")
    samples = probe.images[:0] if probe.samples is None else probe.samples
    arch, wiring = model.architecture, model.wiring()
    pruned = prune(model)
    small = compact(pruned)
    say(f"Running the trained network on {len(probe.images)} {probe.origin}")
    reference = run_in_batches(model.predict_on_batch, probe.images)
    checks = [_check("pruned", pruned.predict_on_batch, reference, probe)]
    with files.replacing(output) as folder:
        folder.mkdir()
        for name in chosen:
            form = FORMATS[name]
            path = folder / form.filename
            say(f"Writing and checking {form.filename}")
            form.write(small, path, samples)
            drop = None if form.exact else max_top1_drop
            checks.append({**_check(name, form.runner(path), reference, probe, drop), "bytes": form.size(path)})
        if labels:
            (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
        receipt = {
            "network": model.name,
            "architecture": arch.to_dict(),
            "checked_on": f"{len(probe.images)} {probe.origin}",
            "blocks": list(wiring.blocks),
            "blocks_pruned": list(pruned.wiring().blocks),
            "parameters": arch.parameters(wiring.blocks),
            "parameters_pruned": arch.parameters(pruned.wiring().blocks),
            "parameters_compact": small.count_params(),
            "top1": _top1(reference, probe.labels),
            "checks": checks,
        }
        files.write_json(folder / "receipt.json", receipt)
    return receipt


def run_in_batches(run: Run, images: np.ndarray) -> np.ndarray:
    """Probabilities of all images, `BATCH` at a time."""
    return np.concatenate([run(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])


def _check(
    name: str, run: Run, reference: np.ndarray, probe: Probe, max_top1_drop: float | None = None
) -> dict[str, Any]:
    """The difference from the reference and the accuracy of one form of the network, neither beyond its bound."""
    probabilities = run_in_batches(run, probe.images)
    difference = float(np.abs(probabilities - reference).max())
    top1, before = _top1(probabilities, probe.labels), _top1(reference, probe.labels)
    if max_top1_drop is not None and top1 is not None and before is not None:
        if not 100 * (before - top1) <= max_top1_drop:
            raise UserError(
                f"{name} reaches {100 * top1:.2f} % top-1 where the trained network reaches {100 * before:.2f} %, and "
                f"may lose {max_top1_drop:g} points (--max_top1_drop); nothing was written"
            )
    elif not difference <= TOLERANCE:
        raise UserError(
            f"the {name} form does not compute what the trained network does: probabilities differ by "
            f"{difference:.2g}, more than {TOLERANCE:g}; nothing was written"
        )
    return {"form": name, "max_difference": difference, "top1": top1}


def _top1(probabilities: np.ndarray, labels: np.ndarray | None) -> float | None:
    return None if labels is None else float((probabilities.argmax(-1) == labels).mean())
