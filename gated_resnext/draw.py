"""Draws what a network learned.

    python -m gated_resnext.draw --workdir=runs/digits_11_4_4_k1 --output=wiring.svg
    python -m gated_resnext.draw --entry=cifar10_20_4_8_k1 --output=wiring.png
    python -m gated_resnext.draw --model=odd_or_even.keras
    python -m gated_resnext.draw --what=active --workdir=runs/digits_11_4_4_k1,runs/digits_11_4_4_k2
    python -m gated_resnext.draw --what=gates --workdir=runs/digits_11_4_4_k1 --output=gates.gif
    python -m gated_resnext.draw --what=curves --workdir=runs/digits_11_4_4_k1 --entry=digits_11_4_4_k1

The wiring stands beside the full one, as in Figure 3 of the paper; active blocks are Figures 4 and 5; gates are shown
as they moved while they were learned, on a page with a slider or as a GIF, or as they were in the end.
"""

from __future__ import annotations

import pathlib

from absl import flags

from gated_resnext import errors
from gated_resnext.drawing import pictures
from gated_resnext.drawing.subjects import Subject

WHAT = flags.DEFINE_enum("what", "wiring", list(pictures.KINDS), "What to draw.")
# A list that is given twice would be the second alone.
ONCE = {"allow_overwrite": False}
WORKDIR = flags.DEFINE_list("workdir", [], "Folders of trainings, with commas between them.", **ONCE)
ENTRY = flags.DEFINE_list("entry", [], "Networks of the zoo with published weights, with commas between them.", **ONCE)
MODEL = flags.DEFINE_list("model", [], "Files of trained networks, .keras, with commas between them.", **ONCE)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "File to write: .svg or .png, for gates also .gif or .html. Default: "
    + ", ".join(kind.default for kind in pictures.KINDS.values())
    + ".",
)


def main(argv: list[str]) -> None:
    del argv
    errors.check_given(OUTPUT)
    errors.check_local(OUTPUT)
    subjects = [*map(Subject.of_workdir, WORKDIR.value), *map(Subject.of_entry, ENTRY.value)]
    subjects += map(Subject.of_file, MODEL.value)
    if not subjects:
        raise errors.UserError(
            "give --workdir=FOLDER (a training of yours), --entry=NAME (published weights) or --model=FILE.keras, or "
            "several: A,B"
        )
    default = pictures.KINDS[WHAT.value].default
    path = pathlib.Path(default if OUTPUT.value is None else OUTPUT.value).expanduser()
    print(f"{pictures.draw(WHAT.value, subjects, path)}. Written to {path}")


if __name__ == "__main__":
    errors.run(main)
