"""A network takes the weights of a .keras, .weights.h5 or .npz file, of the same network or of one with its trunk."""

from __future__ import annotations

import pathlib
from typing import Any

import h5py  # type: ignore[import-untyped]
import keras

from gated_resnext import files, heads, pruning
from gated_resnext.architecture import Architecture
from gated_resnext.errors import UserError, first_line
from gated_resnext.model import GatedResNeXt


def read(model: GatedResNeXt, path: pathlib.Path, own: Architecture, new_head: bool) -> GatedResNeXt:
    """The network with the weights, and from a .keras file the wiring, of a file.

    The file may hold the same network, or one with another head or of images of another size, where the `own`
    architecture of the entry has another.

    Args:
        model: what was asked for, freshly initialised.
        path: the file.
        own: the entry's.
        new_head: whether the classifier may stay as it is where the file's tells another number of classes apart.

    Raises:
        UserError: if the file is not there, is damaged, or holds weights of another network.
    """
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
            files.check_archive(path)
            loaded = keras.saving.load_model(path, compile=False)
            if not isinstance(loaded, GatedResNeXt):
                raise ValueError("it holds another network")
            found = loaded.architecture
            if same and found == shape and loaded.include_top:
                fits = all(getattr(loaded, name) == value for name, value in head.items())
                return loaded if fits else pruning.rebuild(loaded, **head)
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
