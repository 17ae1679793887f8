"""Mini-ImageNet: 100 classes of ImageNet at 84x84, from archives that the user puts into `manual_dir`.

```python
import tensorflow_datasets as tfds
from gated_resnext import datasets

datasets.register()
builder = tfds.builder("mini_imagenet", data_dir=DATA_DIR)
builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=MANUAL_DIR))
```
"""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, ClassVar

import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

_SIDE = 84

_WNIDS = """
    n01532829 n01558993 n01704323 n01749939 n01770081 n01843383 n01855672 n01910747 n01930112 n01981276
    n02074367 n02089867 n02091244 n02091831 n02099601 n02101006 n02105505 n02108089 n02108551 n02108915
    n02110063 n02110341 n02111277 n02113712 n02114548 n02116738 n02120079 n02129165 n02138441 n02165456
    n02174001 n02219486 n02443484 n02457408 n02606052 n02687172 n02747177 n02795169 n02823428 n02871525
    n02950826 n02966193 n02971356 n02981792 n03017168 n03047690 n03062245 n03075370 n03127925 n03146219
    n03207743 n03220513 n03272010 n03337140 n03347037 n03400231 n03417042 n03476684 n03527444 n03535780
    n03544143 n03584254 n03676483 n03770439 n03773504 n03775546 n03838899 n03854065 n03888605 n03908618
    n03924679 n03980874 n03998194 n04067472 n04146614 n04149813 n04243546 n04251144 n04258138 n04275548
    n04296562 n04389033 n04418357 n04435653 n04443257 n04509417 n04515003 n04522168 n04596742 n04604644
    n04612504 n06794110 n07584110 n07613480 n07697537 n07747607 n09246464 n09256479 n13054560 n13133613
"""

_DESCRIPTION = """
Mini-ImageNet for plain classification: 100 classes of ImageNet with 600 photographs each, 84x84. Every class is in both
splits: 500 images of it are in `train`, the other 100 in `test` (the archive calls them val). The images keep the
bytes of their JPEG files.
"""

_CITATION = """
@inproceedings{vinyals2016matching,
  title     = {Matching Networks for One Shot Learning},
  author    = {Vinyals, Oriol and Blundell, Charles and Lillicrap, Timothy and Kavukcuoglu, Koray and Wierstra, Daan},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2016}
}
"""


class MiniImagenet(tfds.core.GeneratorBasedBuilder):
    """Mini-ImageNet, 500 training and 100 test images a class: image uint8 (84, 84, 3), label 0 to 99.

    Labels number the WordNet ids in sorted order. A subclass that sets `wnids`, `train_images_per_class` or
    `test_images_per_class` reads a data set of another size.

    >>> MiniImagenet().info.features["label"].num_classes
    100

    Reference:
        Vinyals et al., 2016, https://arxiv.org/abs/1606.04080
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Initial release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Put mini_imagenet_train.tar.gz and mini_imagenet_val.tar.gz into manual_dir. They hold
    mini_imagenet/train/<wnid>/<name>.jpg (500 images in each of 100 classes) and mini_imagenet/val/<wnid>/<name>.jpg
    (100 in each). The extracted folders manual_dir/mini_imagenet/train and manual_dir/mini_imagenet/val do as well;
    where there are both, the archive is read.
    """

    wnids: ClassVar[tuple[str, ...]] = tuple(_WNIDS.split())
    train_images_per_class: ClassVar[int] = 500
    test_images_per_class: ClassVar[int] = 100

    def _info(self) -> tfds.core.DatasetInfo:
        """Features, licence and citation."""
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(_SIDE, _SIDE, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=sorted(self.wnids)),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://arxiv.org/abs/1606.04080",
            citation=_CITATION,
            license="ImageNet's terms of access: non-commercial research and education",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        """`train` and `test`, once the sources of both are found."""
        train, test = (_source(dl_manager.manual_dir, folder) for folder in ("train", "val"))
        return {
            "train": self._generate_examples(train, "train", self.train_images_per_class),
            "test": self._generate_examples(test, "val", self.test_images_per_class),
        }

    def _generate_examples(
        self, source: epath.Path, folder: str, images_per_class: int
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The images of `source`, and, at its end, a check of how many there were."""
        found = dict.fromkeys(sorted(self.wnids), 0)
        for wnid, name, jpeg in _images(source, folder):
            if wnid not in found:
                raise ValueError(
                    f"Expected the {len(found)} classes of mini_imagenet in {source}; remove any other. "
                    f"Received: {wnid}/{name}"
                )
            _check_side(jpeg, f"{wnid}/{name} in {source}")
            found[wnid] += 1
            yield f"{wnid}/{name}", {"image": jpeg, "label": wnid}
        wrong = [f"{wnid} has {count}" for wnid, count in found.items() if count != images_per_class]
        if wrong:
            more = f" and {len(wrong) - 3} more classes" if len(wrong) > 3 else ""
            raise ValueError(
                f"Expected {images_per_class} images mini_imagenet/{folder}/<wnid>/<name>.jpg in each of {len(found)} "
                f"classes in {source}; fetch or extract it again. Received: {', '.join(wrong[:3])}{more}"
            )


def _source(manual_dir: epath.Path, folder: str) -> epath.Path:
    """The archive of `folder` ("train" or "val"), else the extracted folder."""
    archive = manual_dir / f"mini_imagenet_{folder}.tar.gz"
    extracted = manual_dir / "mini_imagenet" / folder
    if archive.exists():
        return archive
    if extracted.is_dir():
        return extracted
    raise FileNotFoundError(
        f"Expected {archive.name} or the folder mini_imagenet/{folder} in manual_dir; put one of them there. "
        f"Received: manual_dir={manual_dir}"
    )


def _images(source: epath.Path, folder: str) -> Iterator[tuple[str, str, bytes]]:
    """(wnid, file name, JPEG bytes) of every image in an archive or a folder."""
    if source.is_dir():
        for path in sorted(source.glob("*/*.jpg")):
            if not path.name.startswith("."):
                yield path.parent.name, path.name, path.read_bytes()
        return
    try:
        with source.open("rb") as file, tarfile.open(fileobj=file, mode="r|gz") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                in_split = path.parts[-4:-2] == ("mini_imagenet", folder)
                content = archive.extractfile(member) if member.isfile() else None
                if content and in_split and path.suffix == ".jpg" and not path.name.startswith("."):
                    yield path.parts[-2], path.name, content.read()
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"Expected a whole tar.gz archive; fetch it again. Received: {source} ({error})") from error


def _check_side(jpeg: bytes, where: str) -> None:
    """Raises unless the JPEG's header says 84x84: no later step would notice."""
    try:
        height, width, _ = tf.io.extract_jpeg_shape(jpeg).numpy()
        found = f"{height}x{width}"
    except tf.errors.InvalidArgumentError:
        found = "no JPEG"
    if found != f"{_SIDE}x{_SIDE}":
        raise ValueError(f"Expected JPEG images of {_SIDE}x{_SIDE}; resize them first. Received: {found}, {where}")
