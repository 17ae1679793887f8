"""Says what is in pictures.

    python -m gated_resnext.predict --entry=cifar10_20_4_8_k1 horse.jpg boat.png
    python -m gated_resnext.predict --workdir=runs/photos --top=3 new_pictures
    python -m gated_resnext.predict --model=odd_or_even.keras --labels=even,odd digit.png
    python -m gated_resnext.predict --saved_model=models/photos_11_4_4_k1/1 --output=answers.csv new_pictures

Pictures are JPEG, PNG, GIF or BMP files of any size, or folders of such. Each is prepared as the test images of the
network were, where it says how; a .keras file and what others exported do not, and it is scaled to fit and cropped in
the middle. A line a picture: its most probable classes. What cannot be decoded is named on stderr and the rest
answered; the exit status is then 1.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import csv
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from absl import flags

from gated_resnext import errors, files, trained
from gated_resnext.datasets.names import readable
from gated_resnext.evaluation import are_probabilities, filled, softmax

ENTRY = flags.DEFINE_string("entry", None, "Network of the zoo with published weights.")
WORKDIR = flags.DEFINE_string("workdir", None, "Or the folder of a finished training.")
MODEL = flags.DEFINE_string("model", None, "Or a .keras file.")
SAVED_MODEL = flags.DEFINE_string("saved_model", None, "Or a SavedModel folder or .tflite file, exported here or not.")
LABELS = flags.DEFINE_list(
    "labels",
    None,
    "Names of the classes, with commas between, or the file with a line each. Default: the network's own.",
)
TOP = flags.DEFINE_integer("top", 3, "How many classes of each picture, the most probable first.", lower_bound=1)
WHITE = flags.DEFINE_float("white", 255.0, "A white pixel in a SavedModel's input of floats: 255 or 1.")
OUTPUT = flags.DEFINE_string("output", None, "Or also a .csv file: picture, rank, class, probability.")

Answer = list[tuple[str, float]]  # label and probability, the most probable first


def main(argv: list[str]) -> None:
    errors.check_given(ENTRY, WORKDIR, MODEL, SAVED_MODEL, OUTPUT)
    errors.check_local(OUTPUT)
    sources = {flag.name: flag.value for flag in (ENTRY, WORKDIR, MODEL, SAVED_MODEL)}
    trained.check_one(sources)
    if importlib.util.find_spec("tensorflow") is None:
        raise errors.UserError("pictures are read by TensorFlow, which is not installed: pip install tensorflow")
    pictures = _pictures(argv[1:])
    network, broken = trained.of_one(sources, white=WHITE.value), 0
    with _written() as write:
        for path, answer in _answered(network, pictures):
            if answer is None:
                broken += 1
                print(f"{path} cannot be read or decoded", file=sys.stderr)
                continue
            write(path, answer)
            print(f"{path}  {', '.join(f'{label} {100 * share:.1f} %' for label, share in answer)}", flush=True)
    if OUTPUT.value:
        print(f"Written to {OUTPUT.value}")
    if broken:
        raise errors.UserError(f"{broken} of {len(pictures)} pictures cannot be read or decoded")


@contextlib.contextmanager
def _written() -> Iterator[Callable[[pathlib.Path, Answer], None]]:
    """What writes a picture's answer into --output, which is there once all are; nothing without it."""
    if not OUTPUT.value:
        yield lambda path, answer: None
        return
    output = pathlib.Path(OUTPUT.value).expanduser()
    if output.suffix != ".csv":
        raise errors.UserError(f"--output is a .csv file. Received: {output}")
    with (
        files.replacing(output) as partial,
        open(partial, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(["picture", "rank", "class", "probability"])

        def write(path: pathlib.Path, answer: Answer) -> None:
            rows.writerows([path, rank, label, f"{share:.6f}"] for rank, (label, share) in enumerate(answer, start=1))

        yield write


def _pictures(operands: Sequence[str]) -> list[pathlib.Path]:
    """The files that are named, and the pictures in the folders that are, in order."""
    from gated_resnext import sources

    found: list[pathlib.Path] = []
    for operand in operands:
        path = pathlib.Path(operand).expanduser()
        if not path.exists():
            raise errors.UserError(f"there is no {operand}")
        inside = [file for file in sources.walked(path) if sources.is_picture(file)] if path.is_dir() else [path]
        if not inside:
            raise errors.UserError(f"{operand} has no picture in it; those are {', '.join(sources.SUFFIXES)} files")
        found += inside
    if not found:
        raise errors.UserError("name the pictures, files or folders, behind the options")
    return found


def _answered(
    network: trained.Trained, pictures: Sequence[pathlib.Path]
) -> Iterator[tuple[pathlib.Path, Answer | None]]:
    """Each picture with its most probable classes; None of one that cannot be decoded."""
    import tensorflow

    from gated_resnext import devices, sources
    from gated_resnext.preprocessing import Preprocessing

    devices.leave_gpus(tensorflow)
    shape, labels = trained.whole_shape(network), _labels(network)
    if shape[2] not in (1, 3):
        raise errors.UserError(f"pictures have 3 channels, or 1 if grey. Received: {network.name}, which takes {shape}")
    read = sources.reader(Preprocessing(shape, network.resize or min(shape[:2])))
    size = min(network.batch, len(pictures))
    logits: bool | None = None
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for begin in range(0, len(pictures), size):
            some = pictures[begin : begin + size]
            pixels = list(pool.map(read, some))
            whole = [image for image in pixels if image is not None]
            outputs = np.asarray(network.run(filled(np.stack(whole), size)), np.float64) if whole else np.empty((0, 0))
            if whole and outputs.shape[1] < 2:
                raise errors.UserError(f"{network.name} gives one number a picture, not a probability for each class")
            if whole and logits is None:
                logits = not are_probabilities(outputs)
            rows = iter(softmax(outputs) if logits else outputs)
            for path, image in zip(some, pixels, strict=True):
                yield path, None if image is None else _named(next(rows), labels)


def _named(row: np.ndarray, labels: list[str] | None) -> Answer:
    """The most probable classes, which without names are called by their numbers."""
    order = np.argsort(-row, kind="stable")[: TOP.value]
    if labels is not None and len(labels) != len(row):
        raise errors.UserError(f"the network tells {len(row)} classes apart. Received: names of {len(labels)}")
    return [(labels[number] if labels else str(number), float(row[number])) for number in order]


def _labels(network: trained.Trained) -> list[str] | None:
    """Names of the classes: those given, else the network's."""
    given = LABELS.value
    if given is None:
        given = None if network.labels is None else readable(network.labels)
    elif len(given) == 1:
        path = pathlib.Path(given[0]).expanduser()
        if not path.is_file():
            raise errors.UserError(f"--labels names all classes, with commas between, or a file. There is no {path}")
        given = trained.read_labels(path)
    if given is not None and network.classes not in (None, len(given)):
        raise errors.UserError(
            f"{network.name} tells {network.classes} classes apart. Received: names of {len(given)}; --labels=FILE "
            "gives others"
        )
    return given


if __name__ == "__main__":
    errors.run(main, operands=True)
