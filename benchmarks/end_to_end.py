"""Trains, evaluates, prunes and exports networks of the zoo on a handful of real photographs, to see every part run.

    python -m benchmarks.end_to_end --archives=FOLDER --entries=imagenet_50_4_32_k16,mini_imagenet_29_8_8_k4

FOLDER holds mini_imagenet_train.tar.gz and mini_imagenet_val.tar.gz. A photograph of each of their 100 classes goes
into two data sets, one in the format of imagenet2012 (JPEG files, a thousand classes, splits train and validation) and
one in that of mini_imagenet. Each network takes --steps steps in each of the four phases at full input size, on --batch
images, and is evaluated on 100 test images (16 for ImageNet) after each: enough to see that it runs, far too little to
learn. Prints seconds, peak memory and the receipt of the export as Markdown. Given again it keeps the data sets and
trains anew.
"""

from __future__ import annotations

import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator

from absl import app, flags

from benchmarks import report
from gated_resnext import files, markdown

ARCHIVES = flags.DEFINE_string("archives", None, "Folder of the two archives of Mini-ImageNet.", required=True)
ENTRIES = flags.DEFINE_list(
    "entries",
    [
        "mini_imagenet_20_4_8_k4",
        "mini_imagenet_29_8_8_k4",
        "imagenet_50_4_32_k16",
        "imagenet_101_4_32_k16",
        "imagenet_101_4_64_k32",
    ],
    "Networks of the zoo.",
)
WORK = flags.DEFINE_string("work", "end_to_end", "Folder for the data sets and the runs.")
BATCH = flags.DEFINE_integer("batch", 2, "Images of a step.")
STEPS = flags.DEFINE_integer("steps", 2, "Steps of each phase.")


def photographs(archive: str, step: int) -> Iterator[tuple[str, str, bytes]]:
    """Class, file name and JPEG bytes of every `step`-th photograph of an archive."""
    with tarfile.open(pathlib.Path(ARCHIVES.value) / archive) as tar:
        members = [member for member in tar.getmembers() if member.name.endswith(".jpg")]
        for member in members[::step]:
            _, wnid, name = member.name.rsplit("/", 2)
            content = tar.extractfile(member)
            assert content is not None
            yield wnid, name, content.read()


def make_data_sets(folder: pathlib.Path) -> None:
    """Two data sets as tensorflow-datasets would have prepared them: one photograph of each of 100 classes a split."""
    import tensorflow_datasets as tfds

    from gated_resnext.datasets import mini_imagenet

    tfds.disable_progress_bar()
    rows = {
        "train": list(photographs("mini_imagenet_train.tar.gz", 500)),
        "val": list(photographs("mini_imagenet_val.tar.gz", 100)),
    }
    with tfds.core.registered.skip_registration():

        class MiniImagenet(mini_imagenet.MiniImagenet):
            train_images_per_class = test_images_per_class = 1

        class Imagenet2012(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("5.1.0")

            def _info(self):  # type: ignore[no-untyped-def]
                official = tfds.builder_cls("imagenet2012")(data_dir=folder / "unused").info.features
                columns = {name: official[name] for name in ("image", "label", "file_name")}
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(columns))

            def _split_generators(self, dl_manager):  # type: ignore[no-untyped-def]
                return {
                    "train": self._generate_examples(rows["train"]),
                    "validation": self._generate_examples(rows["val"][:16]),
                }

            def _generate_examples(self, photos):  # type: ignore[no-untyped-def]
                for wnid, name, jpeg in photos:
                    yield name, {"image": io.BytesIO(jpeg), "label": wnid, "file_name": name}

    for split, photos in rows.items():
        for wnid, name, jpeg in photos:
            file = folder / "downloads" / "manual" / "mini_imagenet" / split / wnid / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(jpeg)
    for builder in (MiniImagenet, Imagenet2012):
        builder(data_dir=folder).download_and_prepare()


def recipe(dataset: str) -> dict:
    """The paper's schedule of a data set, cut to a few steps."""
    from gated_resnext.recipes import RECIPES

    fields = RECIPES[dataset].to_dict()
    epochs = STEPS.value / (100 // BATCH.value)
    phases = [{**phase, "epochs": epochs, "learning_rate": phase["learning_rate"] / 10} for phase in fields["phases"]]
    return {**fields, "name": f"{dataset}_in_few_steps", "batch_size": BATCH.value, "phases": phases}


def run(*command: str) -> tuple[float, float]:
    """Seconds and peak memory, in GiB, of a command of this project."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)  # of this child, where getrusage tells the most of all children
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{printed}")
    return time.monotonic() - began, used.ru_maxrss / 2**20


def main(argv: list[str]) -> None:
    del argv
    work = pathlib.Path(WORK.value).absolute()
    work.mkdir(parents=True, exist_ok=True)
    data = work / "data"
    if not data.exists():
        make_data_sets(data)
    print(f"{report.described(report.machine())}.\n")
    head = ["network", "train, s", "export, s", "peak memory, GiB", "parameters", "form: max difference"]
    print(*markdown.table(head, []), sep="\n")
    for entry in ENTRIES.value:
        file = work / f"{entry}.json"
        file.write_text(json.dumps(recipe("imagenet" if entry.startswith("imagenet") else "mini_imagenet")))
        folder, flags_of_data = work / "runs" / entry, f"--data_dir={data}"
        shutil.rmtree(folder, ignore_errors=True)  # of a run before, which would only be gone on with
        train_s, train_gib = run(
            "gated_resnext.train", f"--entry={entry}", f"--recipe={file}", f"--workdir={folder}", flags_of_data
        )
        models = work / "models"
        export_s, export_gib = run("export.prune_and_save", f"--workdir={folder}", f"--output={models}", flags_of_data)
        receipt = models / entry / str(files.versions(models / entry)[-1]) / "receipt.json"
        found = json.loads(receipt.read_text())
        forms = ", ".join(f"{check['form']}: {check['max_difference']:.1e}" for check in found["checks"])
        peak = max(train_gib, export_gib)
        sizes = f"{found['parameters']:,} -> {found['parameters_pruned']:,}"
        cells = [entry, f"{train_s:.0f}", f"{export_s:.0f}", f"{peak:.1f}", sizes, forms]
        print(markdown.row(cells), flush=True)


if __name__ == "__main__":
    app.run(main)
