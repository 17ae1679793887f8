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
from typing import TYPE_CHECKING, Any

import zoo
from gated_resnext import files
from gated_resnext.architecture import Architecture
from gated_resnext.connectivity import Connectivity
from gated_resnext.datasets.table import DATASETS
from gated_resnext.errors import UserError
from zoo.entries import ENTRIES, Entry, Paper

if TYPE_CHECKING:
    from gated_resnext.model import GatedResNeXt

FOLDER = pathlib.Path(zoo.__file__).parent
DEFAULT = "digits_11_4_4_k1"


def names(pattern: str = "*") -> list[str]:
    """Names of the networks that match a shell pattern, in the table's order.

    Example:

    >>> names("digits_*")
    ['digits_11_4_4_full', 'digits_11_4_4_k1', 'digits_11_4_4_k2', 'digits_11_4_4_random_k2']
    """
    return [name for name in ENTRIES if fnmatch.fnmatchcase(name, pattern)]


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
    classifier_activation: str | None = "softmax",
    seed: int | None = None,
) -> GatedResNeXt:
    """A network of the zoo.

    Args:
        name: an entry, such as "cifar100_29_64_8_k1".
        weights: "auto" takes the published weights, or warns and initialises where there are none; "published" takes
            them or fails; None initialises; else the path of a .keras, .weights.h5 or .npz file.
        classifier_activation: "softmax", or None for logits.
        seed: of the initial weights, the draws and a random wiring.

    Returns:
        A `keras.Model` from uint8 images (batch, height, width, channels) to probabilities (batch, classes). With
        published weights the wiring is the one that was learned.

    Raises:
        UserError: if the name is unknown, or the weights are missing or damaged.

    Example:

    >>> load("digits_11_4_4_k1").output_shape
    (None, 10)
    """
    from gated_resnext.model import GatedResNeXt

    shape, published = architecture(name), card(name)
    wiring: Connectivity | None = None
    if weights == "published" and published is None:
        raise UserError(
            f"there are no published weights of {name}; train them: python -m gated_resnext.train --entry={name}"
        )
    if weights in ("auto", "published") and published is not None:
        try:
            stored = published["weights"]
            arrays = files.read_arrays(FOLDER / "weights" / stored["file"], digest=str(stored["sha256"]))
            wiring = Connectivity.from_dict(published["connectivity"]) if published["connectivity"] else None
            model = GatedResNeXt(shape, wiring, classifier_activation, seed=seed, name=name)
            model.assign_by_name(arrays)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the card or the weights of {name} are damaged ({error}); fetch them again") from None
        return model
    if entry(name).wiring == "random":
        wiring = Connectivity.random(shape.modules, shape.cardinality, shape.fan_in, seed=seed or 0)
    if weights == "auto" and published is None:
        warnings.warn(
            f"{name} has no published weights: this network is freshly initialised and knows nothing. Train it with "
            f"python -m gated_resnext.train --entry={name}, or pass weights=None to silence this.",
            stacklevel=2,
        )
    model = GatedResNeXt(shape, wiring, classifier_activation, seed=seed, name=name)
    if weights not in ("auto", None):
        model = _read_weights(model, pathlib.Path(weights))  # type: ignore[arg-type]
    return model


def _read_weights(model: GatedResNeXt, path: pathlib.Path) -> GatedResNeXt:
    """The network with the weights, and from a .keras file the wiring, of a file."""
    import keras

    from gated_resnext import pruning
    from gated_resnext.model import GatedResNeXt

    if not path.is_file():
        raise UserError(
            f"weights must be 'auto', 'published', None or a file. Received: {str(path)!r}, which is no file"
        )
    try:
        if path.suffix == ".npz":
            model.assign_by_name(files.read_arrays(path))
        elif path.suffix == ".keras":
            loaded = keras.saving.load_model(path, compile=False)
            if not isinstance(loaded, GatedResNeXt) or loaded.architecture != model.architecture:
                raise ValueError("it holds another network")
            return pruning.rebuild(loaded, classifier_activation=model.classifier_activation, name=model.name)
        else:
            model.load_weights(path)
    except UserError:
        raise
    except Exception as error:  # zip, HDF5 and Keras each have their own for a damaged file
        raise UserError(
            f"{path} does not hold weights of {model.name}: {str(error).strip().splitlines()[0]}"
        ) from error
    return model


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
