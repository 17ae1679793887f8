"""A trained network wherever it is: in the zoo, in a training's workdir, in a file of Keras' or for other programs."""

from __future__ import annotations

import codecs
import dataclasses
import importlib.util
import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from gated_resnext import evaluation, files, recipes, zoo
from gated_resnext.datasets.table import DATASETS, FOLDER
from gated_resnext.errors import UserError
from gated_resnext.workdir import Run

if TYPE_CHECKING:
    import numpy as np

    from gated_resnext.arrays import ArrayImages
    from gated_resnext.data import Images
    from gated_resnext.interchange import Opened

BATCH = 128
SPLITS = ("test", "train", "all")


class Trained(NamedTuple):
    """A network, and what it says of itself.

    `source` tells where it is from; `run` maps (n, height, width, channels) uint8 to (n, classes); `shape` is (height,
    width, channels). None stands for what it does not say: a number in `shape`, `classes`, their names in `labels`,
    the data set it was trained on, the digest of its images, and the shorter side that pictures are resized to before
    their central crop.
    """

    name: str
    source: str
    run: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int | None, ...]
    classes: int | None
    labels: list[str] | None
    dataset: str | None
    resize: int | None
    batch: int = BATCH  # images of a call
    digest: str | None = None


def check_one(sources: dict[str, str | None]) -> None:
    """Finds that one of the four flags that name a network has a value.

    Args:
        sources: the values of --entry, --workdir, --model and --saved_model by those names.

    Raises:
        UserError: if none or several have.
    """
    given = [name for name, value in sources.items() if value is not None]
    if len(given) != 1:
        raise UserError(
            "give one of --entry=NAME (published weights), --workdir=FOLDER (a training of yours), --model=FILE.keras "
            f"and --saved_model=PATH. Received: {', '.join(f'--{name}' for name in given) or 'none'}"
        )


def of_one(sources: dict[str, str | None], *, dataset: str | None = None, white: float = 255.0) -> Trained:
    """The network that `check_one` found to be named.

    Raises:
        UserError: as `of_entry`, `of_workdir`, `of_file` and `of_saved_model`, which see.
    """
    (name, value), *_ = ((name, value) for name, value in sources.items() if value is not None)
    if name == "entry":
        return of_entry(value)
    if name == "workdir":
        return of_workdir(value)
    return of_file(value, dataset) if name == "model" else of_saved_model(value, white, dataset)


def of_entry(name: str) -> Trained:
    """The published network of a zoo's entry.

    Raises:
        UserError: if there is none of that name, or nothing is published.
    """
    dataset = zoo.entry(name).dataset
    recipe = recipes.RECIPES[DATASETS[dataset].recipe]
    model, card = zoo.load(name, "published"), zoo.card(name) or {}
    return _of_model(model, name, "the zoo's published weights", card.get("labels"), dataset, recipe)


def of_workdir(folder: str | os.PathLike[str], model: Any = None) -> Trained:
    """The network of a finished training; `model` is that network, where it was loaded before.

    Raises:
        UserError: if the training has not ended, or its files are damaged.
    """
    run = finished(folder)
    path = pathlib.Path(folder).expanduser()
    model = model or network_of(path)
    result = files.read_fields(path / "result.json")
    found = _of_model(model, run.entry, str(folder), result.get("labels"), run.dataset, run.recipe)
    resize = result.get("resize")
    found = found._replace(digest=result.get("images_digest"))
    return found._replace(resize=resize) if type(resize) is int and resize > 0 else found


def of_file(path: str | os.PathLike[str], dataset: str | None = None) -> Trained:
    """The network of a .keras file, with gates in it somewhere, from pixels to the probabilities or logits of classes.

    Args:
        path: the file.
        dataset: the images it is to be tried on, of which a data set of the zoo's says how they become pixels.

    Raises:
        UserError: if it is not there, is damaged, or holds another kind of model.
    """
    model = model_of(path)
    shape, classes, resize = model.input_shape[1:], model.output_shape[1], shorter_side(dataset, model.input_shape[1:])
    batch = model.architecture.images_at_once(BATCH) if hasattr(model, "architecture") else BATCH
    return Trained(name_of(path), str(path), model.predict_on_batch, shape, classes, None, None, resize, batch)


def shorter_side(dataset: str | None, shape: tuple[int | None, ...]) -> int | None:
    """Of the test pictures of a data set of the zoo's, for a network that takes its size and does not say more."""
    info = DATASETS.get(dataset or "")
    if info is None or info.input_shape != shape:
        return None
    return recipes.RECIPES[info.recipe].shorter_side(info.input_shape, info.side)


def name_of(path: str | os.PathLike[str]) -> str:
    """What the network of a file is called: as the file, or as the folder of a training's model.keras."""
    file = pathlib.Path(path).expanduser().absolute()
    return file.parent.name if file.stem == "model" and file.parent.name else file.stem


def model_of(path: str | os.PathLike[str]) -> Any:
    """The model of a .keras file, which maps images to classes.

    Raises:
        UserError: as `of_file`.
    """
    import gated_resnext

    model = gated_resnext.load(path)
    shapes = model.input_shape, model.output_shape  # lists, where there are several
    classifies = getattr(model, "include_top", True) and tuple(map(len, shapes)) == (4, 2)
    if not classifies or not all(isinstance(shape, tuple) for shape in shapes):
        raise UserError(f"{path} does not map images to classes: {shapes[0]} to {shapes[1]}")
    return model


def network_of(folder: pathlib.Path) -> Any:
    """The network of a workdir.

    Raises:
        UserError: if its file is not there, is damaged or was replaced by another model.
    """
    import gated_resnext

    model = gated_resnext.load(folder / "model.keras")
    if not isinstance(model, gated_resnext.GatedResNeXt):
        raise UserError(f"{folder / 'model.keras'} holds a {type(model).__name__}, not the network of the training")
    return model


def finished(folder: str | os.PathLike[str]) -> Run:
    """What a finished training trained.

    Raises:
        UserError: if it has not ended, or there is none.
    """
    path = pathlib.Path(folder).expanduser()
    if not (path / "result.json").is_file():
        state = "its training has not ended" if (path / "run.json").is_file() else "it holds no training"
        raise UserError(f"{folder} has no trained network ({state}); run python -m gated_resnext.train first")
    return Run.read(path)


def _of_model(
    model: Any, name: str, source: str, labels: list[str] | None, dataset: str, recipe: recipes.Recipe
) -> Trained:
    shape, info = model.architecture.input_shape, DATASETS.get(dataset)
    resize = recipe.shorter_side(shape, info.side if info else None)
    classes, batch = model.architecture.classes, model.architecture.images_at_once(BATCH)
    return Trained(name, source, model.predict_on_batch, shape, classes, _names(labels), dataset, resize, batch)


def of_saved_model(path: str | os.PathLike[str], white: float = 255.0, dataset: str | None = None) -> Trained:
    """A SavedModel folder or a .tflite file; where export.prune_and_save wrote it, with what its receipt says.

    Args:
        path: folder or file.
        white: what a white pixel is in its input, where that is of floats.
        dataset: as `of_file`'s, where no receipt says how pictures become pixels.

    Raises:
        UserError: if it cannot be read, or does not map one batch of images to one batch of classes.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(f"{path} is read by TensorFlow, which is not installed: pip install tensorflow")
    from gated_resnext import interchange

    return of_opened(interchange.opened(path, white), dataset)


def of_opened(opened: Opened, given: str | None = None) -> Trained:
    """The same of one that was opened already."""
    folder = opened.path if opened.path.is_dir() else opened.path.parent
    receipt = files.read_fields(folder / "receipt.json") if (folder / "receipt.json").is_file() else {}
    name, dataset, pictures = receipt.get("network"), receipt.get("dataset"), receipt.get("preprocessing")
    resize = pictures.get("resize") if isinstance(pictures, dict) else None
    return Trained(
        name if isinstance(name, str) else opened.path.name,
        str(opened.path),
        opened.answers,
        opened.shape,
        opened.classes,
        labels_beside(folder),
        dataset if isinstance(dataset, str) else None,
        resize if type(resize) is int and resize > 0 else shorter_side(given, opened.shape),
    )


def labels_beside(folder: pathlib.Path) -> list[str] | None:
    """The names of the classes that an export wrote beside the network."""
    found = [path for path in (folder / "assets" / "labels.txt", folder / "labels.txt") if path.is_file()]
    return read_labels(found[0]) or None if found else None


def read_labels(path: pathlib.Path) -> list[str]:
    """Names of classes, a line each; they are any bytes, as those of folders are."""
    text = path.read_bytes().removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    lines = text.removesuffix("\n").split("\n") if text else []  # a name may hold other ends of lines
    if all(line.endswith("\r") for line in lines):  # as Windows ends them
        lines = [line.removesuffix("\r") for line in lines]
    return lines


def _names(labels: Any) -> list[str] | None:
    return list(map(str, labels)) if isinstance(labels, list) else None


def images_for(
    network: Trained, dataset: str | None = None, data_dir: str | os.PathLike[str] | None = None
) -> Images | ArrayImages:
    """Images to try a network on, of its input's shape.

    Args:
        network: a trained network.
        dataset: what `sources.open_source` takes; None for what it was trained on.
        data_dir: folder of tensorflow-datasets, or of what `gated_resnext.pack` wrote, which needs no TensorFlow.

    Raises:
        UserError: if nobody says which, it is not there, has other classes, or does not fit the network's input.
    """
    name = dataset or network.dataset
    if name is None:
        raise UserError(f"{network.name} does not say what it was trained on: give --dataset or --image_folder")
    images = _images(network, name, data_dir)
    check_classes(network, name, images.labels)
    return images


def changed(network: Trained, images: Any) -> str:
    """What to tell where a folder, one image of ten of which is for testing, is not what the network was trained on."""
    if network.digest is None or not images.name.startswith(FOLDER) or network.digest in images.digests():
        return ""
    return (
        f"the images of {images.name} have changed since the training; where they have no folder of their own for "
        "testing, some that are tested now were trained on"
    )


def _images(network: Trained, name: str, data_dir: str | os.PathLike[str] | None) -> Images | ArrayImages:
    from gated_resnext import arrays

    # Recipes of no training, so that there may be any number of images.
    packed = data_dir is not None and arrays.are_packed(name, data_dir)
    alone = importlib.util.find_spec("tensorflow") is None
    if alone and (name not in DATASETS or DATASETS[name].streamed):
        raise UserError(f"the images of {name} are read by TensorFlow alone, which is not installed")
    if packed or alone:
        recipe = dataclasses.replace(recipes.RECIPES["cifar"], batch_size=1)
        return arrays.ArrayImages(name, recipe, data_dir, network.shape)
    import tensorflow

    from gated_resnext import devices, own_data, sources
    from gated_resnext.data import Images

    devices.leave_gpus(tensorflow)
    source = sources.open_source(name, data_dir)
    recipe = dataclasses.replace(recipes.RECIPES[own_data.RECIPES[source.streamed]], batch_size=1)
    if source.streamed:
        recipe = dataclasses.replace(recipe, test_resize=network.resize)
    return Images(name, recipe, data_dir, whole_shape(network, source.info.input_shape))


def recipe_for(
    dataset: str, shape: tuple[int, int, int], data_dir: str | os.PathLike[str] | None = None
) -> recipes.Recipe:
    """The schedule of a data set for an input, which says how a picture becomes the pixels of a test image.

    Args:
        dataset: what `sources.open_source` takes; it is opened where neither the zoo nor its name says what it is.
        shape: (height, width, channels).
        data_dir: folder of tensorflow-datasets.

    Raises:
        UserError: if the images are not there.
    """
    from gated_resnext import own_data

    info = DATASETS.get(dataset)
    if info and info.input_shape == shape:
        return recipes.RECIPES[info.recipe]
    streamed = info.streamed if info else dataset.startswith(FOLDER)
    if not info and not streamed:
        from gated_resnext import sources

        streamed = sources.open_source(dataset, data_dir).streamed
    return recipes.RECIPES[own_data.RECIPES[streamed]]


def whole_shape(network: Trained, others: tuple[int, int, int] = (0, 0, 0)) -> tuple[int, int, int]:
    """The network's input, (height, width, channels), in what it does not say that of `others`.

    Raises:
        UserError: if neither says it.
    """
    height, width, channels = (own or other for own, other in zip(network.shape, others, strict=True))
    if not (height and width and channels):
        raise UserError(f"{network.name} does not say the size of its images, and they are of any size")
    return height, width, channels


def check_classes(network: Trained, dataset: str, labels: list[str]) -> None:
    """Finds that both have as many classes and number them alike, as far as both have names for them.

    Raises:
        UserError: if not.
    """
    if network.classes not in (None, len(labels)):
        raise UserError(f"{network.name} tells {network.classes} classes apart, {dataset} has {len(labels)}")
    if network.labels is None:
        return
    if (_are_numbers(network.labels) or _are_numbers(labels)) and set(network.labels) != set(labels):
        return  # the same numbers in another order are those of folders: 0, 1, 10, 2
    for number, (own, other) in enumerate(zip(network.labels, labels, strict=False)):
        if own != other:
            raise UserError(f"class {number} is {own!r} to {network.name} and {other!r} in {dataset}")


def _are_numbers(labels: list[str]) -> bool:
    """Whether these are no names: tensorflow-datasets numbers the classes of which it knows none."""
    return labels == [str(number) for number in range(len(labels))]


def evaluate(
    network: Trained,
    images: Images | ArrayImages,
    *,
    split: str = "test",
    count: int | None = None,
    bins: int = evaluation.BINS,
    seen: Callable[[int], None] = lambda images: None,
) -> tuple[evaluation.Evaluation, bool]:
    """Runs a network on images.

    Args:
        network: a trained network.
        images: what `images_for` gave.
        split: one of `SPLITS`.
        count: images, the first or, of a folder, evenly spaced ones; None for all.
        bins: of the calibration error.
        seen: is told how many images each batch had.

    Returns:
        What was measured; and whether the network gave logits, of which a softmax made probabilities.

    Raises:
        UserError: if an image cannot be decoded, or the network does not take them.
    """
    images.check(split, count)
    outputs, classes = evaluation.answers(network.run, images.batches(split, count, network.batch), seen)
    logits = not evaluation.are_probabilities(outputs)
    probabilities = evaluation.softmax(outputs) if logits else outputs
    named = network.labels is not None and len(network.labels) == len(images.labels) and _are_numbers(images.labels)
    labels = network.labels if named else images.labels
    return evaluation.Evaluation.of(probabilities, classes, labels, bins=bins), logits
