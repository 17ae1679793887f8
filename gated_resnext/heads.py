"""The trunk of a trained network under another head: for other classes, for features, for images of another size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gated_resnext.errors import UserError, first_line
from gated_resnext.model import GatedResNeXt, check_head
from gated_resnext.seeds import a_seed

HEAD = "classifier/"
MEAN = "standardize/mean_image"


def transfer(
    model: GatedResNeXt,
    classes: int | None = None,
    *,
    include_top: bool = True,
    pooling: str | None = None,
    input_shape: Sequence[int] | None = None,
    classifier_activation: str | None = "auto",
    seed: int | None = None,
    name: str | None = None,
) -> GatedResNeXt:
    """A new network with the trunk of a given one, its weights and its wiring, to be trained on.

    Args:
        model: a network, such as `gated_resnext.load("runs/photos/model.keras")`.
        classes: of a new, freshly initialised classifier; None keeps the one there is.
        include_top: False for features, without a classifier.
        pooling: of the features: None for the feature maps, "avg" or "max" for a vector an image.
        input_shape: (height, width, channels) of the images; of another height or width the mean image becomes its
            mean pixel, and all else is the same. None keeps the network's.
        classifier_activation: "softmax", None for logits, or "auto": what a classifier that is kept had, else softmax.
        seed: of the new classifier and of draws; None for a random one.
        name: of the new network; None keeps the old one's.

    Raises:
        UserError: if classes are asked of features, there is no classifier to keep, or the weights do not fit.

    Example:

    >>> from gated_resnext import zoo
    >>> transfer(zoo.load("digits_11_4_4_k1"), classes=2).output_shape
    (None, 2)
    """
    if classifier_activation == "auto":
        kept = include_top and classes is None
        classifier_activation = model.classifier_activation if kept else "softmax"
    told_apart = model.architecture.classes if include_top and classes is None else classes
    check(told_apart, include_top, pooling, classifier_activation, seed)
    if include_top and classes is None and not model.include_top:
        raise UserError(f"{model.name} has no classifier to keep: give one with classes=N, or include_top=False")
    changes = {} if classes is None else {"classes": classes}
    if input_shape is not None:
        changes["input_shape"] = tuple(input_shape)  # type: ignore[assignment]
    config = {
        **model.get_config(),
        "architecture": model.architecture.replace(**changes).to_dict(),
        "include_top": include_top,
        "pooling": pooling,
        "classifier_activation": classifier_activation,
        "seed": seed,
        "name": name or model.name,
    }
    if classes is not None:
        config["frozen"] = [layer for layer in config["frozen"] if layer != HEAD.rstrip("/")]
    target = type(model).from_config(config)
    target.assign_by_name(fitted(model.weights_by_name(), target, new_head=classes is not None))
    return target


def check(
    classes: int | None,
    include_top: bool,
    pooling: str | None,
    classifier_activation: str | None,
    seed: int | None,
) -> None:
    """Finds that the arguments of a head go together."""
    if classes is not None and not include_top:
        raise UserError(f"features have no classes. Received: include_top=False with classes={classes!r}")
    try:
        check_head(include_top, pooling, classifier_activation, classes)
        if seed is not None:
            a_seed(seed)
    except ValueError as error:
        raise UserError(first_line(error)) from None


def fitted(values: dict[str, np.ndarray], model: GatedResNeXt, *, new_head: bool) -> dict[str, np.ndarray]:
    """What `GatedResNeXt.assign_by_name` takes, of the weights of a network with another head or size of images.

    Args:
        values: weights by name.
        model: the network they are for.
        new_head: whether its classifier stays as it is.

    Raises:
        UserError: if they are of images with other channels.
    """
    own = model.weights_by_name()
    trunk = {name: value for name, value in values.items() if not name.startswith(HEAD)}
    heads = own if new_head else values
    head = {name: value for name, value in heads.items() if name.startswith(HEAD) and model.include_top}
    mean = values.get(MEAN)
    if mean is not None and mean.ndim == 3 and mean.shape != own[MEAN].shape:
        if mean.shape[2] != own[MEAN].shape[2]:
            raise UserError(f"the weights are for images of {mean.shape[2]} channels, not {own[MEAN].shape[2]}")
        trunk[MEAN] = np.broadcast_to(mean.mean((0, 1)), own[MEAN].shape)
    return {**trunk, **head}
