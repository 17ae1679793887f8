"""Packs a data set into arrays, for training under JAX on a machine without TensorFlow.

    python -m gated_resnext.pack --dataset=cifar10 --data_dir=~/tensorflow_datasets --output=arrays

There, the same folder is the --data_dir:

    KERAS_BACKEND=jax python -m gated_resnext.train --entry=cifar10_20_4_8_k4 --data_dir=arrays
"""

from __future__ import annotations

import pathlib

from absl import flags

from gated_resnext import errors, recipes, zoo

PACKED = [name for name, info in zoo.DATASETS.items() if not info.streamed]
DATASET = flags.DEFINE_string("dataset", None, f"One of {', '.join(PACKED)}.", required=True)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of tensorflow-datasets. Default: $TFDS_DATA_DIR or ~/tensorflow_datasets."
)
OUTPUT = flags.DEFINE_string("output", "arrays", "Folder in which <dataset>/ is written.")
PART_MIB = flags.DEFINE_integer("part_mib", 48, "The most pixels of a file, in MiB before compression.", lower_bound=1)


def main(argv: list[str]) -> None:
    del argv
    errors.check_given(DATA_DIR, OUTPUT)
    errors.check_local(OUTPUT)
    if DATASET.value not in PACKED:
        raise errors.UserError(f"dataset must be one of {', '.join(PACKED)}. Received: {DATASET.value!r}")
    from gated_resnext import arrays
    from gated_resnext.data import Images

    info = zoo.DATASETS[DATASET.value]
    images = Images(info.name, recipes.read(info.recipe, 1.0), DATA_DIR.value, info.input_shape)
    folder = arrays.write(images, pathlib.Path(OUTPUT.value).expanduser(), PART_MIB.value << 20)
    sizes = [file.stat().st_size for file in folder.glob("*.npz")]
    print(f"Packed {images.size + len(images):,} images into {len(sizes)} files, {sum(sizes):,} bytes, in {folder}")


if __name__ == "__main__":
    errors.run(main)
