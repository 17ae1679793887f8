"""Optical digits: a real data set small enough to ship, for tests, tutorials and machines without a network.

```python
import tensorflow_datasets as tfds
from gated_resnext import datasets

datasets.register()
train, test = tfds.load("optical_digits", split=["train", "test"], as_supervised=True)
```
"""

import csv
import gzip
import importlib.resources
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

_DATA_FILE = "optical_digits.csv.gz"
_TRAIN_IMAGES = 1437

_DESCRIPTION = """
Handwritten digits as 8x8 grey images: the 1,797 images of the test part of "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, by E. Alpaydin and C. Kaynak (1998), https://doi.org/10.24432/C50P49,
licensed under CC BY 4.0.

Changes: the first 1,437 images of that file are `train` here and the last 360 `test`, both in the file's order, and
pixels, which count from 0 to 16, are scaled to round(v * 255 / 16).
"""

_CITATION = """
@misc{alpaydin1998optical,
  title        = {Optical Recognition of Handwritten Digits},
  author       = {Alpaydin, E. and Kaynak, C.},
  year         = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi          = {10.24432/C50P49},
  note         = {CC BY 4.0}
}
"""


class OpticalDigits(tfds.core.GeneratorBasedBuilder):
    """UCI's optical digits (E. Alpaydin and C. Kaynak, 1998, CC BY 4.0): image uint8 (8, 8, 1), label 0 to 9.

    Building it takes no network: the data file lies beside this module.

    >>> OpticalDigits().info.features["label"].num_classes
    10

    Reference:
        https://doi.org/10.24432/C50P49
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Initial release."}

    def _info(self) -> tfds.core.DatasetInfo:
        """Features, licence and citation."""
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
            citation=_CITATION,
            license="CC BY 4.0",
            # Keeps the file's order on disk, so that example i of a split can be checked against row i.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        """The split by position in the file."""
        del dl_manager  # nothing to download
        return {
            "train": self._generate_examples(0, _TRAIN_IMAGES),
            "test": self._generate_examples(_TRAIN_IMAGES, None),
        }

    def _generate_examples(self, start: int, stop: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows `start` to `stop` of the data file: 64 pixels, then the digit."""
        path = importlib.resources.files(__package__).joinpath(_DATA_FILE)
        with path.open("rb") as compressed, gzip.open(compressed, "rt", newline="") as rows:
            for row, fields in itertools.islice(enumerate(csv.reader(rows)), start, stop):
                pixels = np.array(fields[:64], dtype=np.int64).reshape(8, 8, 1)
                yield row, {"image": np.round(pixels * 255 / 16).astype(np.uint8), "label": int(fields[64])}
