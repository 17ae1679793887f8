"""Prunes a network, writes it, and proves file by file that the function is still the same."""

from __future__ import annotations

import gzip
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from export import backend, saved_model, serving, tflite, warmup
from export.compact import compact
from export.counts import compact_counts
from export.formats import DEFAULT, FORMATS
from gated_resnext import files, trained, versions
from gated_resnext.branches import GatedBranches
from gated_resnext.datasets.names import readable
from gated_resnext.errors import UserError
from gated_resnext.evaluation import are_probabilities, check_one_class_each, filled, top1
from gated_resnext.model import GatedResNeXt
from gated_resnext.nested import layers_of
from gated_resnext.preprocessing import Preprocessing
from gated_resnext.pruning import prune, rebuild

# Probabilities, absolute. Float32 sums in another order differ by about 1e-7 a layer; a wrong graph by far more.
TOLERANCE = 1e-4
# And of the logarithms of those above `SMALL`: of a thousand classes, all near a thousandth, logits may differ by a
# tenth within the other bound.
SMALL, LOG_TOLERANCE = 1e-6, 0.01
BATCH = 128


class Probe(NamedTuple):
    """What the files are checked on: images, uint8 (n, height, width, channels), labels or None, and their origin.

    `samples` are training images, of the same shape, on which tflite_int8 measures its ranges; `pictures` the picture
    files that the first of the images came from.
    """

    images: np.ndarray
    labels: np.ndarray | None
    origin: str
    samples: np.ndarray | None = None
    pictures: Sequence[bytes] = ()


class Proof(NamedTuple):
    """What each file is held to: the probabilities of the trained network, `at_once` images at a time.

    `max_top1_drop` is what one that is not exact may lose, in percentage points.
    """

    images: np.ndarray | Sequence[bytes]
    labels: np.ndarray | None
    reference: np.ndarray
    at_once: int
    max_top1_drop: float


class Shipped(NamedTuple):
    """The version's folder, its receipt, as `receipt.json` holds it, and what was written around it, or not."""

    folder: pathlib.Path
    receipt: dict[str, Any]
    notes: list[str]


def choose(formats: Sequence[str]) -> list[str]:
    """The formats asked for.

    Raises:
        UserError: if one is unknown, or there is none.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UserError(f"formats must be out of {', '.join(FORMATS)}. Received: {', '.join(unknown) or 'none'}")
    return list(dict.fromkeys(formats))


@backend.float32()
def ship(
    model: keras.Model,
    output: str | os.PathLike[str],
    probe: Probe,
    *,
    preprocessing: Preprocessing | None = None,
    formats: Sequence[str] = DEFAULT,
    max_top1_drop: float = 0.5,
    compressed: Mapping[str, Callable[[], bytes]] | None = None,
    labels: Sequence[str] | None = None,
    dataset: str | None = None,
    replace: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Shipped:
    """Writes the next version of a network, `output`/1, `output`/2 and so on, with a file a format and a receipt.

    The folder gets its number, by which TF Serving finds it, once every file, loaded again from disk, gave the trained
    network's probabilities. Beside `output` the files for TF Serving are brought up to date, if this is one for it.

    Args:
        model: the trained network, unpruned: a `GatedResNeXt`, or a model of one's own that is made of `GatedBranches`
            or has a `GatedDenseBlock`, from uint8 images to the probabilities of classes.
        output: the folder of the network's versions, named as TF Serving is to name it.
        probe: the images to prove it on.
        preprocessing: how pictures become its pixels; None leaves out the signature that takes pictures.
        formats: keys of `FORMATS`.
        max_top1_drop: percentage points of top-1 that a quantised or compressed format may lose.
        compressed: by method, what makes the content of a further .tflite file.
        labels: names of the classes.
        dataset: what it was trained on, as `gated_resnext.sources.open_source` calls it, for the receipt.
        replace: whether the versions before may be of other classes or another input.
        say: is told what begins.

    Raises:
        UserError: if Keras is not on TensorFlow, a format is unknown or needs real images and has none, if the model
            takes or gives something else, if TF Serving could not find or load what is written, or a file does not
            compute the same function, or loses too much accuracy.
    """
    backend.check()
    output = pathlib.Path(output)
    chosen = choose(formats)
    _check_model(model)
    if model.input_shape[-1] not in (1, 3):  # which no picture file is decoded to
        preprocessing = None
    served = any(FORMATS[name].decodes for name in chosen)
    if served:
        serving.check_name(output)
    _check_served(output, served)
    if not replace:
        _check_versions(output, model.input_shape[1:], model.output_shape[-1], labels)
    if labels and len(labels) != model.output_shape[-1]:
        raise UserError(f"the network tells {model.output_shape[-1]} classes apart. Received: {len(labels)} labels")
    if any("\n" in label for label in labels or ()):
        raise UserError("names of classes are lines of labels.txt: none may hold an end of line")
    _check_probe(probe, chosen, [*(name for name in chosen if not FORMATS[name].exact), *(compressed or {})])
    if isinstance(model, GatedResNeXt) and model.precision != "float32":
        model = rebuild(model, precision="float32")
    pruned = prune(model)
    small = compact(pruned) if isinstance(pruned, GatedResNeXt) else pruned
    say(f"Running the trained network on {len(probe.images)} {probe.origin}")
    at_once = model.architecture.images_at_once(BATCH) if isinstance(model, GatedResNeXt) else BATCH
    reference = run_in_batches(model.predict_on_batch, probe.images, at_once)
    _check_probabilities(model, reference)
    proof = Proof(probe.images, probe.labels, reference, at_once, max_top1_drop)
    checks = [_check("pruned", pruned.predict_on_batch, proof)]
    notes = []
    with files.next_version(output) as version:
        for name in chosen:
            say(f"Writing and checking {name}")
            checks += _write_form(name, small, version.folder, probe, proof, preprocessing)
        for name, content in (compressed or {}).items():
            say(f"Training on, writing and checking {name}")
            checks.append(_write_compressed(name, content(), version.folder, proof))
        if labels:
            _write_names(version.folder, labels, served)
        if served and preprocessing is None and model.input_shape[-1] in (1, 3):
            why = "nobody told how they become pixels (preprocessing=)"
            notes.append(f"It has no signature {saved_model.PICTURES}, which takes picture files: {why}")
        if served:
            notes += warmup.write(version.folder, output.name, small.input_shape[1:], pictures=bool(preprocessing))
        receipt = {
            "network": output.name,
            "dataset": dataset,
            "checked_on": f"{len(probe.images)} {probe.origin}",
            "input_shape": list(small.input_shape[1:]),
            "classes": small.output_shape[-1],
            **_size(model, pruned, small),
            "top1": _top1(reference, probe.labels),
            "preprocessing": preprocessing and preprocessing.to_dict(),
            "checks": checks,
            "versions": versions.of_training(),
        }
        files.write_json(version.folder / "receipt.json", receipt)
        _check_served(output, served)  # again, as what follows: another export may have ended meanwhile
        if not replace:
            _check_versions(output, model.input_shape[1:], model.output_shape[-1], labels)
    if served:
        try:
            notes += serving.write(output.parent)
        except OSError as error:  # the version is there, and a server loads it already
            said = f"{error.strerror or error}: {error.filename}"
            notes.append(f"models.config and the files beside it could not be brought up to date ({said})")
    return Shipped(version.path, receipt, notes)


def _write_form(
    name: str,
    small: keras.Model,
    folder: pathlib.Path,
    probe: Probe,
    proof: Proof,
    preprocessing: Preprocessing | None,
) -> list[dict[str, Any]]:
    """A format's file, and what was found of it as it lies on the disk."""
    form = FORMATS[name]
    path = folder / form.filename
    given: dict[str, Any] = {"preprocessing": preprocessing} if form.decodes else {}
    given |= {"samples": probe.samples} if form.measures else {}
    form.write(small, path, **given)
    check = _check(name, form.runner(path), proof, exact=form.exact)
    checks = [{**check, "bytes": form.size(path)}]
    if form.decodes and preprocessing is not None and probe.pictures:
        checks.append(_check_pictures(path, probe.pictures, proof))
    return checks


def _write_compressed(name: str, content: bytes, folder: pathlib.Path, proof: Proof) -> dict[str, Any]:
    """The same of a compression."""
    path = folder / f"model_{name}.tflite"
    path.write_bytes(content)
    check = _check(name, tflite.runner(path), proof, exact=False)
    return {**check, "bytes": len(content), "bytes_gzip": len(gzip.compress(content, mtime=0))}


def _write_names(folder: pathlib.Path, labels: Sequence[str], served: bool) -> None:
    """What tells who is who, labels.txt, and where those are WordNet's ids what an application shows, names.txt."""
    names = readable(labels)
    files_of = {saved_model.LABELS: labels, **({saved_model.NAMES: names} if names != list(labels) else {})}
    for place, lines in files_of.items():
        path = folder / (place if served else place.name)
        path.parent.mkdir(exist_ok=True)
        text = "".join(f"{line}\n" for line in lines)
        path.write_bytes(text.encode("utf-8", "surrogateescape"))  # folders' names are any bytes


def _check_served(output: pathlib.Path, served: bool) -> None:
    """Finds that TF Serving could load the next version, if it serves those before."""
    if not served and serving.is_served(output):
        raise UserError(
            f"{output} is served by TF Serving, which loads its largest version: that must hold a SavedModel. "
            "Add saved_model to --formats or choose another --output"
        )


def _check_versions(output: pathlib.Path, shape: tuple[int, ...], classes: int, labels: Sequence[str] | None) -> None:
    """Finds that the newest version before, as far as it says so, has the input and classes that its clients know."""
    newest = files.newest_version(output)
    if newest is None or not (newest / "receipt.json").is_file():
        return
    said, before = files.read_fields(newest / "receipt.json"), trained.labels_beside(newest)
    found, count = said.get("input_shape"), said.get("classes", len(before) if before else None)
    other = ""
    if isinstance(found, list) and tuple(found) != tuple(shape):
        other = f"images of {tuple(found)}, not {tuple(shape)}"
    elif count not in (None, classes):
        other = f"{count} classes, not {classes}"
    elif before and labels and list(labels) != before:
        other = f"the classes {_few(before)}, not {_few(labels)}"
    if other:
        raise UserError(
            f"{newest} is of {other}, and its clients would be given this network: choose another --output, or say "
            "--replace (in Python replace=True)"
        )


def _few(labels: Sequence[str]) -> str:
    return ", ".join([*labels[:3], *(["..."] if len(labels) > 3 else [])])


def _check_probe(probe: Probe, formats: Sequence[str], lossy: Sequence[str]) -> None:
    """Finds that it has what the formats are checked by, and what they are made with."""
    for what, pixels in (("images", probe.images), ("samples", probe.samples)):
        if pixels is not None and getattr(pixels, "dtype", None) != np.uint8:
            raise UserError(
                f"Probe.{what} are raw pixels, an array of uint8 from 0 to 255. Received: "
                f"{getattr(pixels, 'dtype', type(pixels).__name__)}"
            )
    if lossy and probe.labels is None:
        raise UserError(f"{lossy[0]} is checked by its top-1: give Probe.labels, the classes of the images")
    if probe.labels is not None:
        check_one_class_each(probe.labels, len(probe.images))
    measured = [name for name in formats if FORMATS[name].measures]
    if measured and (probe.samples is None or len(probe.samples) == 0):
        raise UserError(f"{measured[0]} measures its ranges on training images: give Probe.samples")


def _check_model(model: keras.Model) -> None:
    """Refuses what has no graph of the signature that is exported."""
    if isinstance(model, GatedResNeXt):
        if model.architecture.gates == "real":
            raise UserError("a network with real-valued gates is not exported: every block reads every other")
        if not model.include_top:
            raise UserError(
                "an export gives probabilities, and this network has no classifier (include_top=False); give it one "
                "with gated_resnext.transfer and train it"
            )
        return
    halves = {"float16", "bfloat16"}
    short = sorted({layer.compute_dtype for layer in model._flatten_layers() if layer.weights} & halves)
    if short:
        raise UserError(
            "an export computes in float32: make the model again under that policy, and give it the weights. Received: "
            f"layers that compute in {', '.join(short)}"
        )
    inputs, outputs = (getattr(model, name, None) or [] for name in ("inputs", "outputs"))  # none where subclassed
    if (
        isinstance(getattr(model, "output", None), dict)
        or [(each.dtype, len(each.shape)) for each in inputs] != [("uint8", 4)]
        or [len(y.shape) for y in outputs] != [2]
        or any(None in tensor.shape[1:] for tensor in (*inputs, *outputs))
    ):
        raise UserError(
            "a model is exported that goes from uint8 images of one size, (batch, height, width, channels), to (batch, "
            f"classes): begin it with keras.Input(shape, dtype='uint8'). Received: inputs={inputs}, outputs={outputs}"
        )


def _check_probabilities(model: keras.Model, outputs: np.ndarray) -> None:
    """Refuses what would be shipped under the name `probabilities` and is none."""
    _check_finite(model.name, outputs)
    if not are_probabilities(outputs):
        sums = outputs.sum(-1)
        raise UserError(
            f"an export gives probabilities, and {model.name} ends in logits; end it in a softmax. Received: rows from "
            f"{outputs.min():.3g} to {outputs.max():.3g} that sum to {sums.min():.3g} to {sums.max():.3g}"
        )


def _check_finite(name: str, outputs: np.ndarray) -> None:
    if not np.isfinite(outputs).all():
        raise UserError(f"{name} gives numbers that are not finite; nothing was written")


def _size(model: keras.Model, pruned: keras.Model, small: keras.Model) -> dict[str, Any]:
    """What was cut, as the receipt tells it: gates do not count."""
    if not isinstance(model, GatedResNeXt):
        return {
            "blocks": [len(layer.branches) for layer in layers_of(model, GatedBranches)],
            "blocks_pruned": [len(layer.branches) for layer in layers_of(pruned, GatedBranches)],
            "parameters": _parameters(model),
            "parameters_pruned": _parameters(pruned),
        }
    arch, wiring = model.architecture, model.wiring()
    return {
        "architecture": arch.to_dict(),
        "blocks": list(wiring.blocks),
        "blocks_pruned": list(pruned.wiring().blocks),
        "parameters": arch.parameters(wiring.blocks),
        "parameters_pruned": arch.parameters(pruned.wiring().blocks),
        "parameters_compact": small.count_params(),
        "multiply_adds": arch.multiply_adds(wiring.blocks),
        "multiply_adds_compact": compact_counts(arch, pruned.wiring()).multiply_adds,
    }


def _parameters(model: keras.Model) -> int:
    """Weights that can be trained, whether or not their layers are: those of batch norm's statistics cannot."""
    found = {id(v): v for layer in model._flatten_layers() for v in layer._trainable_variables}
    return sum(math.prod(v.shape) for v in found.values() if not v.path.endswith("real_gates"))


def run_in_batches(run: Callable[[Any], np.ndarray], images: Any, size: int = BATCH) -> np.ndarray:
    """Probabilities of all images or pictures, `size` at a time."""
    size = min(size, len(images))
    rows = [run(filled(images[start : start + size], size)) for start in range(0, len(images), size)]
    return np.concatenate(rows)[: len(images)]


def _check(name: str, run: Callable[[Any], np.ndarray], proof: Proof, *, exact: bool = True) -> dict[str, Any]:
    """The difference from the reference and the accuracy of one form of the network, neither beyond its bound."""
    reference, labels, max_top1_drop = proof.reference, proof.labels, proof.max_top1_drop
    probabilities = run_in_batches(run, proof.images, proof.at_once)
    _check_finite(name, probabilities)
    difference = float(np.abs(probabilities - reference).max())
    reached, before = _top1(probabilities, labels), _top1(reference, labels)
    if not exact and reached is not None and before is not None:
        if not 100 * (before - reached) <= max_top1_drop + 1e-9:  # of two shares, each rounded
            raise UserError(
                f"{name} reaches {100 * reached:.2f} % top-1 where the trained network reaches {100 * before:.2f} %, "
                f"and may lose {max_top1_drop:g} points (--max_top1_drop); nothing was written"
            )
        return {"form": name, "max_difference": difference, "top1": reached}
    logarithms = np.log(np.maximum(probabilities, SMALL)) - np.log(np.maximum(reference, SMALL))
    relative = float(np.abs(logarithms).max())
    for what, off, bound in (("", difference, TOLERANCE), ("logarithms of ", relative, LOG_TOLERANCE)):
        if not off <= bound:
            raise UserError(
                f"the {name} form does not compute what the trained network does: {what}probabilities differ by "
                f"{off:.2g}, more than {bound:g}; nothing was written"
            )
    return {"form": name, "max_difference": difference, "top1": reached}


def _check_pictures(folder: pathlib.Path, pictures: Sequence[bytes], proof: Proof) -> dict[str, Any]:
    """The same of the signature that takes picture files; without top-1, as there may be fewer of them."""
    count = len(pictures)
    run = saved_model.runner(folder, saved_model.PICTURES, saved_model.PICTURES)
    of_pictures = proof._replace(images=pictures, labels=None, reference=proof.reference[:count])
    return {**_check(saved_model.PICTURES, run, of_pictures), "pictures": count}


def _top1(probabilities: np.ndarray, labels: np.ndarray | None) -> float | None:
    return None if labels is None else top1(probabilities, labels)
