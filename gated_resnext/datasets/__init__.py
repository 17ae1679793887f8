"""tensorflow-datasets builders of this project.

| name | module | where the data comes from |
|---|---|---|
| `optical_digits` | `optical_digits.py` | shipped inside the package: 1,797 digits, 8x8, 10 classes |
| `mini_imagenet` | `mini_imagenet.py` | `manual_dir`: 60,000 photographs, 84x84, 100 classes |

Importing this package imports neither TensorFlow nor tensorflow-datasets; `register` does.
"""

import importlib
import re

__all__ = ["labels", "register"]

_BUILDER_MODULES = ("mini_imagenet", "optical_digits")


def register(name: str | None = None) -> None:
    """Makes this project's data sets known to `tfds.builder` and `tfds.load`. Calling it again does nothing.

    With a name, makes that data set known alone, and none if it is not of this project: a builder of the caller's may
    have the name of another.

    >>> import tensorflow_datasets as tfds
    >>> register()
    >>> tfds.builder("optical_digits").info.features["image"].shape
    (8, 8, 1)
    """
    for module in _BUILDER_MODULES if name is None else set(re.split("[:/]", name)).intersection(_BUILDER_MODULES):
        importlib.import_module(f"{__name__}.{module}")


def labels(name: str) -> list[str]:
    """The names of a data set's classes, as tensorflow-datasets knows them before the images are there; else numbers.

    >>> labels("fashion_mnist")[:2]
    ['T-shirt/top', 'Trouser']
    """
    import tensorflow_datasets as tfds

    register(name)
    return list(tfds.builder(name, try_gcs=False).info.features["label"].names)
