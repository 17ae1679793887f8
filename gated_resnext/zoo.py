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
from gated_resnext import markdown as tables
from gated_resnext.architecture import Architecture
from gated_resnext.connectivity import Connectivity
from gated_resnext.datasets.table import DATASETS
from gated_resnext.errors import UserError
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
    model_name: str | None = None,
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
        model_name: of the `keras.Model`, which in a larger model must be its alone; None for the entry's, by which
            `preprocess_input` knows how pictures are resized for it.

    Returns:
        A `keras.Model` from pixels, uint8 or floats from 0 to 255, (batch, height, width, channels), to probabilities
        (batch, classes), or to features. With published weights the wiring is the one that was learned.

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
    from gated_resnext import heads, weights_file
    from gated_resnext.model import GatedResNeXt

    heads.check(classes, include_top, pooling, classifier_activation, seed)
    if model_name is not None and (not isinstance(model_name, str) or "/" in model_name):
        raise UserError(f"model_name must be a string without a slash. Received: {model_name!r}")
    changes = {"classes": classes, "fan_in": fan_in, "cardinality": cardinality, "input_shape": input_shape}
    shape = _changed(own, {field: value for field, value in changes.items() if value is not None})
    unfit = _why_not_published(name, own, shape) if published else ""
    if weights == "published" and (unfit or published is None):
        train = f"there are no published weights of {name}; train them: python -m gated_resnext.train --entry={name}"
        raise UserError(f"{unfit}; weights=None initialises them" if unfit else train)
    options: dict[str, Any] = {
        "include_top": include_top,
        "pooling": pooling,
        "seed": seed,
        "name": model_name or name,
    }
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
        model = weights_file.read(model, pathlib.Path(weights).expanduser(), own, classes is not None)  # type: ignore[arg-type]
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


def markdown(pattern: str = "*") -> str:
    """The zoo as a Markdown table: what the paper reports beside what was measured here, blank where nothing was."""
    head = ["network", "wiring", "parameters", "paper: top-1", "paper: pruned, M"]
    head += ["here: top-1", "here: pruned", "here: epochs"]
    rows = []
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
        rows.append(cells)
    return "\n".join(tables.table(head, rows))


def _accuracy(paper: Paper | None) -> str:
    if paper is None or paper.top1_best is None:
        return ""
    return f"{paper.top1_mean:.2f} ± {paper.top1_std:.2f}" if paper.top1_mean else f"{paper.top1_best:.1f}"
