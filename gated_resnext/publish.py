"""Puts a finished training into the zoo: its weights and a card of what was measured.

    python -m gated_resnext.publish --workdir=runs/digits_11_4_4_k1

Writes zoo/cards/<entry>.json and zoo/weights/<entry>.npz of this checkout: as float16 where these reach the same top-1,
else as float32.
"""

from __future__ import annotations

import pathlib

from absl import flags

from gated_resnext import errors

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished training.", required=True)
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Folder of tensorflow-datasets, or of gated_resnext.pack. Default: $TFDS_DATA_DIR or ~/tensorflow_datasets.",
)
HARDWARE = flags.DEFINE_string(
    "hardware", None, "What it was trained on, for the card. Default: what the training wrote down of that."
)
ZOO = flags.DEFINE_string("zoo", "zoo", "Folder with cards/ and weights/.")


def main(argv: list[str]) -> None:
    del argv
    errors.check_given(WORKDIR, HARDWARE, ZOO, DATA_DIR)
    errors.check_local(ZOO)
    from gated_resnext import publication

    card = publication.publish(
        pathlib.Path(WORKDIR.value).expanduser(),
        pathlib.Path(ZOO.value).expanduser(),
        data_dir=DATA_DIR.value,
        hardware=HARDWARE.value,
    )
    print(
        f"Published {card['entry']}: top-1 {100 * card['top1']:.2f} % after {card['epochs']:g} of the "
        f"schedule's {card['schedule_epochs']:g} epochs, {card['weights']['bytes']:,} bytes of "
        f"{card['weights']['dtype']} weights"
    )


if __name__ == "__main__":
    errors.run(main)
