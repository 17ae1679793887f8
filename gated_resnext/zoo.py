"""The zoo: the paper's networks by name.

    import gated_resnext
    gated_resnext.zoo.names("cifar100_*")
    model = gated_resnext.zoo.load("cifar10_20_4_8_k1")

`names`, `entry` and `card` need neither Keras nor TensorFlow.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import zoo
from gated_resnext import files
from gated_resnext.architecture import Architecture
from gated_resnext.connectivity import Connectivity
from gated_resnext.datasets.table import DATASETS
from gated_resnext.errors import UserError, first_line
from zoo.entries import ENTRIES, Entry, Paper

if TYPE_CHECKING:
    from gated_resnext.model import GatedResNeXt

FOLDER = pathlib.Path(zoo.__file__).parent
DEFAULT = "digits_11_4_4_k1"


def names(pattern: str = "*", *, published: bool = False) -> list[str]:
    """Names of the networks that match a shell pattern, in the table's order.

    Args:
        pattern: such as "cifar10_*".
        published: whether to name those alone that have published weights.

    Example:

    >>> names("digits_*")
    ['digits_11_4_4_full', 'digits_11_4_4_k1', 'digits_11_4_4_k2', 'digits_11_4_4_random_k2']
    >>> names("digits_*", published=True)
    ['digits_11_4_4_k1']
    """
    found = [name for name in ENTRIES if fnmatch.fnmatchcase(name, pattern)]
    return [name for name in found if (FOLDER / "cards" / f"{name}.json").is_file()] if published else found


def entry(name: str) -> Entry:
    """The row of the table.

    Raises:
        UserError: if there is no network of that name; it suggests the closest three.
    """
    if name not in ENTRIES:
        close = difflib.get_close_matches(name, ENTRIES, n=3, cutoff=0.0)
        raise UserError(f"there is no network {name!r} in the zoo; the closest are {', '.join(close)}")
    return ENTRIES[name]


def architecture(name: str) -> Architecture:
    """The architecture of an entry.

    Example:

    >>> architecture("cifar100_29_64_8_k1").parameters()
    34594212
    """
    row = entry(name)
    info = DATASETS[row.dataset]
    return Architecture(
        depth=row.depth,
        width=row.width,
        cardinality=row.cardinality,
        fan_in=row.fan_in,
        classes=info.classes,
        input_shape=info.input_shape,
        aggregation="shared" if row.wiring == "full" else "mean",
        stem=row.stem,  # type: ignore[arg-type]
        stem_filters=row.stem_filters,
        filters=row.filters,
        stages=row.stages,
    )


def card(name: str) -> dict[str, Any] | None:
    """What this project measured of an entry; None where nothing is published."""
    entry(name)
    path = FOLDER / "cards" / f"{name}.json"
    if not path.is_file():
        return None
    fields = files.read_json(path)
    if not isinstance(fields, dict):
        raise UserError(f"{path} is no card; fetch it again")
    return fields


def load(
    name: str,
    weights: str | os.PathLike[str] | None = "auto",
    *,
    classes: int | None = None,
    include_top: bool = True,
    pooling: str | None = None,
    fan_in: int | None = None,
    cardinality: int | None = None,
    input_shape: Sequence[int] | None = None,
    classifier_activation: str | None = "softmax",
    seed: int | None = None,
) -> GatedResNeXt:
    """A network of the zoo, as it was trained or to be trained on for another task.

    Args:
        name: an entry, such as "cifar100_29_64_8_k1".
        weights: "auto" takes the published weights, or warns and initialises where there are none that fit;
            "published" takes them or fails; None initialises; else the path of a .keras, .weights.h5 or .npz file.
        classes: of a classifier of your own, instead of the data set's: freshly initialised, even if there are as many,
            unless the weights are a file's whose classifier has as many. None keeps the trained one.
        include_top: False for features, without the classifier.
        pooling: of the features: None for the feature maps, "avg" or "max" for a vector an image.
        fan_in: K instead of the entry's; published weights are of theirs.
        cardinality: C instead of the entry's; published weights are of theirs.
        input_shape: (height, width, channels) instead of the data set's. Published weights fit any height and width.
        classifier_activation: "softmax", or None for logits.
        seed: of the initial weights, the draws and a random wiring; a file of weights alone needs that of its training.

    Returns:
        A `keras.Model` from uint8 images (batch, height, width, channels) to probabilities (batch, classes), or to
        features. With published weights the wiring is the one that was learned.

    Raises:
        UserError: if the name is unknown, the weights are missing, damaged or do not fit, or the arguments do not go
            together.

    Example:

    >>> load("digits_11_4_4_k1").output_shape
    (None, 10)
    >>> load("digits_11_4_4_k1", include_top=False, pooling="avg").output_shape
    (None, 256)
    """
    own, published = architecture(name), card(name)
    # The import of Keras waits until the name is known.
    from gated_resnext import heads
    from gated_resnext.model import GatedResNeXt

    heads.check(classes, include_top, pooling)
    changes = {"classes": classes, "fan_in": fan_in, "cardinality": cardinality, "input_shape": input_shape}
    shape = _changed(own, {field: value for field, value in changes.items() if value is not None})
    unfit = _why_not_published(name, own, shape) if published else ""
    if weights == "published" and (unfit or published is None):
        train = f"there are no published weights of {name}; train them: python -m gated_resnext.train --entry={name}"
        raise UserError(f"{unfit}; weights=None initialises them" if unfit else train)
    options: dict[str, Any] = {"include_top": include_top, "pooling": pooling, "seed": seed, "name": name}
    wiring: Connectivity | None = None
    if weights in ("auto", "published") and published is not None and not unfit:
        try:
            stored = published["weights"]
            arrays = files.read_arrays(FOLDER / "weights" / stored["file"], digest=str(stored["sha256"]))
            wiring = Connectivity.from_dict(published["connectivity"]) if published["connectivity"] else None
            model = GatedResNeXt(shape, wiring, classifier_activation, **options)
            model.assign_by_name(heads.fitted(arrays, model, new_head=classes is not None))
        except UserError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the card or the weights of {name} are damaged ({error}); fetch them again") from None
        return model
    if entry(name).wiring == "random":
        file = "" if weights in ("auto", None) else os.fspath(weights)  # type: ignore[arg-type]
        if file and not file.endswith(".keras") and seed is None:
            raise UserError(
                f"{file} does not hold the wiring of {name}, which is that of a seed: give seed=, the training's, or "
                "the .keras file"
            )
        wiring = Connectivity.random(shape.modules, shape.cardinality, shape.fan_in, seed=seed or 0)
    if weights == "auto":
        warnings.warn(
            f"{unfit or f'{name} has no published weights'}: this network is freshly initialised and knows nothing. "
            f"Train it with python -m gated_resnext.train --entry={name}, or pass weights=None to silence this.",
            stacklevel=2,
        )
    model = GatedResNeXt(shape, wiring, classifier_activation, **options)
    if weights not in ("auto", None):
        model = _read_weights(model, pathlib.Path(weights), own, classes is not None)  # type: ignore[arg-type]
    return model


def _changed(own: Architecture, changes: dict[str, Any]) -> Architecture:
    """The architecture of an entry with some fields of one's own."""
    if own.aggregation == "shared" and "cardinality" in changes:
        changes.setdefault("fan_in", changes["cardinality"])
    try:
        return own.replace(**changes)
    except (ValueError, TypeError) as error:
        raise UserError(f"{error}. Changed: {changes}") from None


def _why_not_published(name: str, own: Architecture, shape: Architecture) -> str:
    """What keeps an entry's published weights from fitting another architecture; nothing if they do."""

    def said(arch: Architecture) -> str:
        return f"K = {arch.fan_in}, C = {arch.cardinality} and {arch.input_shape[2]} channels"

    return "" if said(own) == said(shape) else f"the published weights of {name} are of {said(own)}, not {said(shape)}"


def _read_weights(model: GatedResNeXt, path: pathlib.Path, own: Architecture, new_head: bool) -> GatedResNeXt:
    """The network with the weights, and from a .keras file the wiring, of a file.

    The file may hold the same network, or one with another head or of images of another size, where the `own`
    architecture of the entry has another.

    Args:
        model: what was asked for, freshly initialised.
        path: the file.
        own: the entry's.
        new_head: whether the classifier may stay as it is where the file's tells another number of classes apart.
    """
    import keras

    from gated_resnext import heads, pruning
    from gated_resnext.model import GatedResNeXt

    if not path.is_file():
        raise UserError(
            f"weights must be 'auto', 'published', None or a file. Received: {str(path)!r}, which is no file"
        )
    shape = model.architecture
    other = shape.replace(classes=own.classes, input_shape=own.input_shape)
    same = shape == other and model.include_top and not new_head
    head = {"classifier_activation": model.classifier_activation, "name": model.name}

    def kept(classes: int | None) -> bool:
        """Whether the classifier of the file, which tells so many classes apart, stays."""
        if model.include_top and classes != shape.classes and not new_head:
            holds = f"tells {classes} classes apart, not {shape.classes}" if classes else "has no classifier"
            raise UserError(f"{path} {holds}: give classes= for one of as many, or else for a new one")
        return classes == shape.classes

    try:
        if path.suffix == ".keras":
            loaded = keras.saving.load_model(path, compile=False)
            if not isinstance(loaded, GatedResNeXt):
                raise ValueError("it holds another network")
            found = loaded.architecture
            if same and found == shape and loaded.include_top:
                return pruning.rebuild(loaded, **head)
            trunk = found.replace(classes=own.classes, input_shape=own.input_shape)
            if same or trunk != other:
                raise ValueError("it holds another network")
            stays = kept(found.classes if loaded.include_top else None)
            return heads.transfer(
                loaded,
                None if stays or not model.include_top else shape.classes,
                include_top=model.include_top,
                pooling=model.pooling,
                input_shape=shape.input_shape,
                seed=model.seed,
                **head,
            )
        values = files.read_arrays(path) if path.suffix == ".npz" else _hdf5(model, path, same)
        if model.real_gates() and not any(name.endswith("/real_gates") for name in values):
            raise UserError(
                f"{path} does not hold weights of {model.name} with its gates: where they were fixed, give the .keras "
                "file, which has the wiring, or the file to load_weights of a network with that wiring"
            )
        if not same:
            kernel = values.get("classifier/kernel")
            values = heads.fitted(values, model, new_head=not kept(None if kernel is None else kernel.shape[-1]))
        model.assign_by_name(values)
    except UserError:
        raise
    except Exception as error:  # zip, HDF5 and Keras each have their own for a damaged file
        raise UserError(f"{path} does not hold weights of {model.name}: {first_line(error)}") from error
    return model


def _hdf5(model: GatedResNeXt, path: pathlib.Path, same: bool) -> dict[str, Any]:
    """Weights by name of an HDF5 file: of this very network, or else of its trunk, whose images and head it tells."""
    import h5py  # type: ignore[import-untyped]

    from gated_resnext.model import GatedResNeXt

    with h5py.File(path) as file:  # Keras names layers by their class there
        found = (file.get(f"layers/{layer}/vars/0") for layer in ("dense", "standardize", "gated_aggregation"))
        classes, size, gates = (None if weight is None else weight.shape for weight in found)
    if model.real_gates() and gates is None:
        return {}
    if same:
        model.load_weights(path)
        return model.weights_by_name()
    if size is None:
        raise ValueError("it holds another network")
    arch = model.architecture.replace(input_shape=size, **({"classes": classes[-1]} if classes else {}))
    whole = GatedResNeXt(arch, model.connectivity, include_top=classes is not None)
    whole.load_weights(path)
    return whole.weights_by_name()


def markdown(pattern: str = "*") -> str:
    """The zoo as a Markdown table: what the paper reports beside what was measured here, blank where nothing was."""
    head = ["network", "wiring", "parameters", "paper: top-1", "paper: pruned, M"]
    head += ["here: top-1", "here: pruned", "here: epochs"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in names(pattern):
        row, paper, measured = entry(name), entry(name).paper, card(name)
        wiring = {"full": "full (ResNeXt)", "random": f"random, K = {row.fan_in}"}.get(row.wiring, f"K = {row.fan_in}")
        cells = [f"`{name}`", wiring, f"{architecture(name).parameters():,}"]
        cells += [_accuracy(paper), f"{paper.params_test}" if paper and paper.params_test else ""]
        if measured:
            of = f"{measured['epochs']:g} of {measured['schedule_epochs']:g}"
            cells += [f"{100 * measured['top1']:.2f}", f"{measured['parameters_pruned']:,}", of]
        else:
            cells += ["", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _accuracy(paper: Paper | None) -> str:
    if paper is None or paper.top1_best is None:
        return ""
    return f"{paper.top1_mean:.2f} ± {paper.top1_std:.2f}" if paper.top1_mean else f"{paper.top1_best:.1f}"
