"""What a training begins with in place of fresh weights: those of a trained network, and its wiring."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from gated_resnext import files, heads, pruning, trained, zoo
from gated_resnext.architecture import Architecture
from gated_resnext.connectivity import Connectivity
from gated_resnext.errors import UserError
from gated_resnext.model import GatedResNeXt, load
from gated_resnext.pruning import Weights


class Start(NamedTuple):
    """A trained network, as `own_data.run_of` and `trainer.train` take it.

    `name` is that of the network and a digest of its weights and labels, which tells other ones apart. `connectivity`
    is None of networks without binary gates; `labels` and `dataset`, what it was trained on, are None where it does not
    say.
    """

    name: str
    architecture: Architecture
    connectivity: Connectivity | None
    weights: Weights
    labels: list[str] | None
    dataset: str | None

    def tells_apart(self, labels: Sequence[str]) -> bool:
        """Whether its classifier is of these classes: of as many, where it has no names for them."""
        kernel = self.weights.get(f"{heads.HEAD}kernel")
        return kernel is not None and kernel.shape[-1] == len(labels) and self.labels in (None, list(labels))

    def fitted(self, model: GatedResNeXt, labels: Sequence[str]) -> Weights:
        """Its weights for the network to be trained, which keeps a classifier of its own where the classes are others.

        Raises:
            UserError: if they are of images with other channels.
        """
        return heads.fitted(self.weights, model, new_head=not self.tells_apart(labels))


def read(where: str | os.PathLike[str]) -> Start:
    """The trained network of a workdir, a .keras file or, where there is neither, a name of the zoo.

    Gates that are learned are fixed to their top K: what goes on is the wiring that was found.

    Raises:
        UserError: if it is not there, is damaged, is another kind of model or was pruned.

    Example:

    >>> read("digits_11_4_4_k1").architecture.classes
    10
    """
    path = pathlib.Path(where).expanduser()
    if path.name == "model.keras" and (path.parent / "result.json").is_file():
        path = path.parent
    labels = dataset = None
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            raise UserError(
                f"{where} was exported, to be run and not to be trained: begin with the network before that"
            )
        run = trained.finished(path)
        model, name, dataset = trained.network_of(path), run.entry, run.dataset
        labels = files.read_fields(path / "result.json").get("labels")
    elif path.is_file() or path.suffix == ".keras":
        model, name = load(path), trained.name_of(path)
        if not isinstance(model, GatedResNeXt):
            raise UserError(f"a training begins with a GatedResNeXt. Received: {where}, a {type(model).__name__}")
    else:
        name = os.fspath(where)
        if name not in zoo.ENTRIES:
            raise UserError(
                f"weights are those of a workdir, a .keras file or a published network: {where} is no folder, no file "
                f"and none of {', '.join(zoo.names(published=True))}"
            )
        model, dataset = zoo.load(name, "published"), zoo.entry(name).dataset
        labels = (zoo.card(name) or {}).get("labels")
    model = pruning.freeze(model)
    shape, wiring = model.architecture, model.connectivity
    if wiring is not None and wiring.blocks != (shape.cardinality,) * shape.modules:
        raise UserError(
            f"{where} was pruned, to {' '.join(map(str, wiring.blocks))} blocks: begin with the network before that"
        )
    weights = model.weights_by_name()
    labels = list(map(str, labels)) if isinstance(labels, list) else None
    return Start(f"{name} {_digest(weights, labels)}", shape, wiring, weights, labels, dataset)


def _digest(weights: Weights, labels: list[str] | None) -> str:
    """The same wherever they lie."""
    digest = hashlib.sha256(repr(labels).encode("utf-8", "surrogateescape"))
    for name in sorted(weights):
        digest.update(f"{name} {weights[name].dtype} {weights[name].shape}\n".encode())
        digest.update(weights[name].tobytes())
    return digest.hexdigest()[:16]
