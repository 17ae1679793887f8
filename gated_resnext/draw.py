"""Draws what a network learned beside the full wiring, after Figure 3 of the paper.

python -m gated_resnext.draw --workdir=runs/digits_11_4_4_k1 --output=wiring.svg
python -m gated_resnext.draw --entry=cifar10_20_4_8_k1 --output=wiring.svg
"""

from __future__ import annotations

import pathlib

from absl import flags

from gated_resnext import errors, files, zoo
from gated_resnext.connectivity import Connectivity
from gated_resnext.drawing import wiring_svg
from gated_resnext.workdir import Run

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training whose wiring is frozen.")
ENTRY = flags.DEFINE_string("entry", None, "Network of the zoo with published weights, instead of a workdir.")
OUTPUT = flags.DEFINE_string("output", "wiring.svg", "SVG file to write.")


def main(argv: list[str]) -> None:
    del argv
    if (WORKDIR.value is None) == (ENTRY.value is None):
        raise errors.UserError(
            "give one of --workdir=FOLDER (a training of yours) and --entry=NAME (published weights)"
        )
    if ENTRY.value:
        name, arch, found = ENTRY.value, zoo.architecture(ENTRY.value), zoo.card(ENTRY.value)
        if found is None:
            raise errors.UserError(
                f"{name} has no published weights; train it: python -m gated_resnext.train --entry={name}"
            )
    else:
        workdir = pathlib.Path(WORKDIR.value).expanduser()
        run = Run.read(workdir)
        name, arch, found = run.entry, run.architecture, files.read_json(workdir / "result.json")
    full = Connectivity.full(arch.modules, arch.cardinality)
    try:
        learned = Connectivity.from_dict(found["connectivity"]) if found["connectivity"] else full
        if len(learned.blocks) != arch.modules:
            raise ValueError(f"{len(learned.blocks)} modules instead of {arch.modules}")
    except (KeyError, TypeError, ValueError) as error:
        raise errors.UserError(f"{ENTRY.value or WORKDIR.value} holds no wiring of {name}: {error}") from None
    path = pathlib.Path(OUTPUT.value).expanduser()
    with files.replacing(path) as temporary:
        temporary.write_text(wiring_svg([("full (ResNeXt)", full), (name, learned)]), encoding="utf-8")
    print(f"{name}: {sum(learned.active_blocks)} of {sum(learned.blocks)} blocks are active. Written to {path}")


if __name__ == "__main__":
    errors.run(main)
