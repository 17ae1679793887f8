"""What the trainer asks of an engine: compiled steps, and the images they take. TensorFlow's and JAX's answer alike."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import keras
import numpy as np

from gated_resnext.recipes import Recipe
from gated_resnext.scores import Scores


class TrainingImages(Protocol):
    """The images of a data set, `data.Images` or `arrays.ArrayImages`."""

    name: str
    labels: list[str]

    def __len__(self) -> int:
        """Number of test images."""

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the training images."""

    @property
    def resize(self) -> int | None:
        """Shorter side that a picture has before its crop."""

    @property
    def left_alone(self) -> str:
        """What of a folder is not trained on, for people."""

    def count(self, split: str) -> int:
        """Number of images of "train", "test" or "all"."""

    def digest(self) -> str:
        """Tells other images apart."""

    def digests(self) -> tuple[str, ...]:
        """The digest, and what earlier versions had in its place."""

    def check(self) -> None:
        """Raises UserError where an image cannot be read."""

    def mean_image(self) -> np.ndarray:
        """Per-pixel mean of the training images, float32, 0 to 255."""


class Loop(Protocol):
    """A network and its optimizer, compiled; `compiled` once the first call has ended."""

    model: Any
    optimizer: Any
    compiled: bool

    def train(self, batches: Any, count: int) -> np.ndarray:
        """Takes at most `count` steps, fewer if an epoch ends or a loss is not finite.

        Returns:
            The fields of `Scores` of each step taken, (steps, 4).
        """

    def test(self, batches: Any) -> Iterator[Scores]:
        """The scores of each batch."""


class Engine(Protocol):
    """What computes: `Lost` is raised where another worker is gone, `Unreadable` where an image cannot be read.

    `jit_compile` says whether XLA compiles what TensorFlow's kernels would otherwise compute one by one.
    """

    Lost: Any
    Unreadable: Any
    replicas: int
    chief: bool
    most_steps: int
    on_cpu: bool
    jit_compile: bool

    @property
    def devices(self) -> str:
        """What trains, for people."""

    def images(
        self, name: str, recipe: Recipe, data_dir: Any, input_shape: tuple[int, int, int], limit: int | None = None
    ) -> TrainingImages:
        """The images of a data set."""

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which variables are made."""

    def check_together(self, step: int) -> None:
        """Finds that all workers begin at the same step."""

    def any_asked(self, asked: bool) -> bool:
        """Whether any of the workers was asked to stop."""

    def of_images(self, error: Exception) -> bool:
        """Whether an `Unreadable` is of what the network was to read."""

    def loop(self, model: keras.Model, batch_size: int, optimizer: Any = None) -> Loop:
        """The compiled steps of a network."""

    def train_batches(self, images: Any, seed: int, first_step: int, steps: int) -> Any:
        """What `Loop.train` takes its steps on."""

    def test_batches(self, images: Any) -> Any:
        """What `Loop.test` looks at."""
