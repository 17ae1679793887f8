"""Images a second of the input pipeline alone, beside what the fastest network of the zoo takes of them.

    python -m benchmarks.input_pipeline --data_dir=~/tensorflow_datasets --markdown=docs/performance.md

Batches are drawn from the training sequence as the trainer draws them, shuffled, cropped and mirrored, and dropped. The
network beside it is Fixed-Full {20,4,8}, in turns.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from absl import flags

from benchmarks import report
from benchmarks.sides import Side
from export import latency
from gated_resnext import errors, markdown

DATASETS = flags.DEFINE_list("datasets", ["cifar10"], "Data sets of the zoo.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets.")
STEPS = flags.DEFINE_integer("steps", 200, "Batches a turn.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.", lower_bound=1)
MARKDOWN = flags.DEFINE_string("markdown", "-", "File whose part between the benchmark's comments is replaced.")


def main(argv: list[str]) -> None:
    del argv
    from gated_resnext.data import Images
    from gated_resnext.recipes import RECIPES
    from gated_resnext.zoo import DATASETS as TABLE

    spec: dict[str, Any] = {"side": "ours", "kind": "full", "depth": 20, "width": 4, "fan_in": 8, "batch": 64}
    side = Side(spec)
    lines = [f"{report.described(report.machine())}. {ROUNDS.value} turns of {STEPS.value} batches.", ""]
    head = ["data set", "batch", "data alone, images/s", "a training takes, images/s", "ratio"]
    rows = []
    for name in DATASETS.value:
        recipe = RECIPES[TABLE[name].recipe]
        images = Images(name, recipe, DATA_DIR.value, TABLE[name].input_shape)
        taken, trained = [], []
        for turn in range(ROUNDS.value):
            taken.append(recipe.batch_size / _seconds(images, turn))
            trained.append(spec["batch"] / side.take("train", 3))
        cells = [name, recipe.batch_size, f"{statistics.median(taken):,.0f}", f"{statistics.median(trained):,.0f}"]
        cells.append(f"{latency.ratio(taken, trained):.1f}")
        rows.append(cells)
    side.close()
    report.publish(MARKDOWN.value, "input pipeline", "\n".join([*lines, *markdown.table(head, rows)]))


def _seconds(images: Any, turn: int) -> float:
    """Of a batch, without the first one."""
    batches = iter(images.train(seed=0, first_step=turn * STEPS.value, steps=STEPS.value + 1))
    next(batches)
    start = time.perf_counter()
    for pixels, _ in batches:
        pixels.numpy()
    return (time.perf_counter() - start) / STEPS.value


if __name__ == "__main__":
    errors.run(main)
