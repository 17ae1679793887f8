"""Images of a data set as plain arrays in .npz files: what trains where there is no TensorFlow.

`write` packs them on a machine that has tensorflow-datasets; `ArrayImages` reads them anywhere. A folder holds
`<dataset>/arrays.json` and parts of at most so many bytes, so that they can travel one by one.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from gated_resnext import files
from gated_resnext.datasets.table import DATASETS
from gated_resnext.errors import UserError
from gated_resnext.recipes import Recipe

PART_BYTES = 48 << 20
SPLITS = ("train", "test")


def write(images: Any, folder: pathlib.Path, part_bytes: int = PART_BYTES) -> pathlib.Path:
    """Packs the images of a `gated_resnext.data.Images` that memory holds.

    Args:
        images: with `arrays(split)`, `labels` and `source`.
        folder: where `<dataset>/` goes.
        part_bytes: the most pixels of a part.

    Returns:
        The folder written.

    Raises:
        UserError: if the data set is one of files, or is packed there already.
    """
    name = images.source.info.name
    target = folder / name
    if images.source.streamed:
        raise UserError(f"{name} is too large for arrays: it is read from its files")
    if target.exists():
        packed = are_packed(name, folder)
        raise UserError(
            f"{target} exists{'; remove it or' if packed else ', and is not what this command wrote:'} choose another "
            "--output"
        )
    with files.replacing(target) as temporary:
        temporary.mkdir()
        parts: list[dict[str, Any]] = []
        for split in SPLITS:
            pixels, labels = images.arrays(split)
            rows = max(1, part_bytes // max(1, pixels[0].nbytes))
            for first in range(0, len(pixels), rows):
                file = f"{split}-{first // rows:03d}.npz"
                part = {"images": pixels[first : first + rows], "labels": labels[first : first + rows]}
                np.savez_compressed(temporary / file, **part)
                parts.append({"file": file, "split": split, "sha256": files.sha256(temporary / file)})
        about = {"name": name, "labels": images.labels, "digest": images.digest(), "parts": parts}
        files.write_json(temporary / "arrays.json", about)
    return target


def are_packed(name: str, folder: Any) -> bool:
    """Whether the folder holds that data set as `write` packed it."""
    return _about(name, folder).is_file()


def _about(name: str, folder: Any) -> pathlib.Path:
    return pathlib.Path(folder or ".").expanduser() / name / "arrays.json"


def _splits(split: str) -> tuple[str, ...]:
    return SPLITS if split == "all" else (split,)


class ArrayImages:
    """The images that `write` packed, for a recipe; what the trainer asks of `gated_resnext.data.Images`.

    Args:
        name: of the data set.
        recipe: batch size and augmentation.
        folder: what `write` was given.
        input_shape: (height, width, channels) that the network takes; None in it for the images' own.
        limit: of the training images, only the first so many; None for all.

    Raises:
        UserError: if a part is missing or damaged, or the images do not fit the network or the recipe.
    """

    def __init__(
        self, name: str, recipe: Recipe, folder: Any, input_shape: tuple[int | None, ...], limit: int | None = None
    ) -> None:
        self.name, self.recipe, self.left_alone = name, recipe, ""  # no files are looked at
        path = _about(name, folder)
        root = path.parent
        if not path.is_file():
            if name not in DATASETS or DATASETS[name].streamed:
                raise UserError(f"the images of {name} are read by TensorFlow alone: KERAS_BACKEND=tensorflow")
            raise UserError(
                f"there is no {path}; where TensorFlow is, python -m gated_resnext.pack --dataset={name} "
                "--output=arrays writes one, for --data_dir=arrays"
            )
        about = files.read_json(path)
        try:
            self.labels, self._digest = list(about["labels"]), str(about["digest"])
            read = {
                split: [
                    files.read_arrays(root / part["file"], digest=part["sha256"])
                    for part in about["parts"]
                    if part["split"] == split
                ]
                for split in SPLITS
            }
            self._arrays = {
                split: tuple(np.concatenate([part[key] for part in parts]) for key in ("images", "labels"))
                for split, parts in read.items()
            }
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not what gated_resnext.pack writes: {error!r}") from None
        pixels, labels = self.arrays("train")
        if limit is not None:
            if not 1 <= limit <= len(pixels):
                raise UserError(
                    f"limit must be between 1 and the {len(pixels):,} training images of {name}. Received: {limit}"
                )
            pixels, self._digest = pixels[:limit], f"{self._digest}, the first {limit}"
            self._arrays["train"] = pixels, labels[:limit]
        height, width, channels = (wanted or own for wanted, own in zip(input_shape, pixels.shape[1:], strict=True))
        self.input_shape = height, width, channels
        if pixels.shape[3] != channels or pixels.shape[1] < height or pixels.shape[2] < width:
            raise UserError(f"the images of {name} are {pixels.shape[1:]}. Received: a network of {self.input_shape}")
        if recipe.crop != "pad":
            raise UserError(f"arrays are trained on crops of the kind 'pad'. Received: a recipe of {recipe.crop!r}")
        recipe.check_enough(name, len(pixels))

    def __len__(self) -> int:
        """Number of test images."""
        return len(self.arrays("test")[1])

    @property
    def resize(self) -> int:
        """Shorter side that a picture has before its crop."""
        return int(min(self.arrays("train")[0].shape[1:3]))

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the training images."""
        return int(len(self.arrays("train")[1]) // self.recipe.batch_size)

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """All images, uint8, and labels, int32, of "train" or "test"."""
        images, labels = self._arrays[split]
        return images, labels

    def count(self, split: str) -> int:
        """Number of images of "train", "test" or "all"."""
        return sum(len(self.arrays(one)[1]) for one in _splits(split))

    def batches(self, split: str, count: int | None, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images of "train", "test" or "all", once, in order, cropped at the centre, and labels.

        Args:
            split: "all" is the training images and then the test images.
            count: how many, from the first; None for all.
            batch_size: images of a batch, but for the last of a split.
        """
        left = self.count(split) if count is None else count
        for one in _splits(split):
            images, labels = self.cropped(one), self.arrays(one)[1]
            for first in range(0, min(left, len(labels)), batch_size):
                batch = slice(first, min(first + batch_size, left))
                yield images[batch], labels[batch]
            left -= min(left, len(labels))

    def digest(self) -> str:
        """Tells other images apart."""
        return self._digest

    def digests(self) -> tuple[str, ...]:
        """The digest alone: it has been the same in every version."""
        return (self.digest(),)

    def check(self, split: str = "all", count: int | None = None) -> None:
        """Nothing to find: the parts were compared with their checksums."""

    def cropped(self, split: str) -> np.ndarray:
        """All images of a split, cropped at the centre."""
        images, (height, width, _) = self.arrays(split)[0], self.input_shape
        top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
        return images[:, top : top + height, left : left + width]

    def mean_image(self) -> np.ndarray:
        """Per-pixel mean of the centrally cropped training images, float32, 0 to 255 (docs/deviations.md, row 20)."""
        return self._mean_image

    @functools.cached_property
    def _mean_image(self) -> np.ndarray:
        images = self.cropped("train")
        total = sum(images[i : i + 1000].sum(0, dtype=np.float64) for i in range(0, len(images), 1000))
        return np.asarray(total / len(images), np.float32)
