"""The image data sets that the zoo's networks are trained on.

Plain Python: nothing here needs Keras or TensorFlow.
"""

from __future__ import annotations

import os
import pathlib
from typing import NamedTuple

# "folder:PATH" is a data set too: the images of a folder of one's own.
FOLDER = "folder:"


def of_folder(path: str | os.PathLike[str]) -> str:
    """The name of the data set that a folder is."""
    return FOLDER + str(pathlib.Path(path).expanduser().absolute())


class DatasetInfo(NamedTuple):
    """What a network must know of a data set before its images are there.

    `name` is the one tensorflow-datasets knows; `input_shape` is the network's, (height, width, channels).
    `picture_side` is the shorter side of the data set's own pictures where they all have one that is not the network's.
    `train_images` is how many there are.
    """

    name: str
    classes: int
    input_shape: tuple[int, int, int]
    recipe: str
    test_split: str = "test"
    streamed: bool = False
    how: str = "tensorflow-datasets downloads it by itself where there is a network"
    picture_side: int | None = None
    train_images: int = 0

    @property
    def side(self) -> int | None:
        """The shorter side of its own pictures, None where they have several sizes."""
        return self.picture_side or (None if self.streamed else min(self.input_shape[:2]))


DATASETS = {
    info.name: info
    for info in (
        DatasetInfo(
            "optical_digits", 10, (8, 8, 1), "digits", how="it is embedded in this package", train_images=1_437
        ),
        DatasetInfo("fashion_mnist", 10, (28, 28, 1), "cifar", train_images=60_000),
        DatasetInfo("cifar10", 10, (32, 32, 3), "cifar", train_images=50_000),
        DatasetInfo("cifar100", 100, (32, 32, 3), "cifar", train_images=50_000),
        DatasetInfo(
            "mini_imagenet",
            100,
            (64, 64, 3),
            "mini_imagenet",
            how="put mini_imagenet_train.tar.gz and mini_imagenet_val.tar.gz into DATA_DIR/downloads/manual",
            picture_side=84,
            train_images=50_000,
        ),
        DatasetInfo(
            "imagenet2012",
            1000,
            (224, 224, 3),
            "imagenet",
            test_split="validation",
            streamed=True,
            how="put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into DATA_DIR/downloads/manual",
            train_images=1_281_167,
        ),
    )
}
