"""What the zoo was not trained for yet: a list of runs of the paper's whole schedules, each one command.

    python -c "from gated_resnext import remaining; print(remaining.page(), end='')" > zoo/cards/README.md

Plain Python: nothing here needs Keras or TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from gated_resnext import experiments, markdown, zoo
from gated_resnext.datasets.table import DATASETS
from gated_resnext.recipes import RECIPES
from gated_resnext.reproduction import chosen

# A backward pass takes two products where the forward pass takes one.
PASSES = 3
SEEDS = 4


class Part(NamedTuple):
    """Networks to train together: the rows of one experiment, of those the ones that no part before has."""

    title: str
    experiment: experiments.Experiment
    command: str
    note: str = ""


def _table(title: str, number: int, rows: str, dataset: str | None = None, note: str = "") -> Part:
    of = f" --dataset={dataset}" if dataset else ""
    experiment = chosen(experiments.table(number, dataset), [rows])
    return Part(title, experiment, f"python -m gated_resnext.reproduce --table={number}{of} --rows='{rows}'", note)


def _figure_2(title: str, dataset: str | None = None, note: str = "") -> Part:
    of = f" --dataset={dataset}" if dataset else ""
    return Part(title, experiments.figure(2, dataset), f"python -m gated_resnext.reproduce --figure=2{of}", note)


def parts() -> tuple[Part, ...]:
    """In the order in which they are worth it."""
    mini = f"To have its images, {DATASETS['mini_imagenet'].how}."
    cifar100 = "Its images could not be had here, so nothing of it was run."
    imagenet = f"Its images could not be had here. To have them, {DATASETS['imagenet2012'].how}."
    own = "Not in the paper."
    return (
        _table("CIFAR-10, {20,4,8}: Table 3", 3, "cifar10_20_4_8_*"),
        _table("Mini-ImageNet, {20,4,8}: Table 4", 4, "mini_imagenet_20_4_8_*", note=mini),
        _table("CIFAR-10, {29,8,8}: Table 3", 3, "cifar10_29_8_8_*"),
        _table("Mini-ImageNet, {29,8,8}: Table 4", 4, "mini_imagenet_29_8_8_*", note=mini),
        _table("CIFAR-10, {29,64,8}: Table 3", 3, "cifar10_29_64_8_*"),
        _table("CIFAR-10, {29,4,8}: Table 3", 3, "cifar10_29_4_8_*"),
        _figure_2("CIFAR-10, the fan-ins of Figure 2", "cifar10"),
        _table("CIFAR-100, {29,8,8}: Table 1", 1, "cifar100_29_8_8_*", note=cifar100),
        _table("CIFAR-100, {29,64,8}: Table 1", 1, "cifar100_29_64_8_*", note=cifar100),
        _figure_2("CIFAR-100, {20,4,8}: Figure 2", note=cifar100),
        _table("CIFAR-100, {20,4,8}", 3, "cifar100_20_4_8_*", "cifar100", cifar100),
        _table("CIFAR-100, {29,4,8}: Figure 4", 3, "cifar100_29_4_8_*", "cifar100", cifar100),
        _table("ImageNet, {50,4,32}: Table 2, Figure 5", 2, "imagenet_50_4_32_*", note=imagenet),
        _table("ImageNet, {101,4,32}: Table 2", 2, "imagenet_101_4_32_*", note=imagenet),
        _table("ImageNet, {101,4,64}: Table 2", 2, "imagenet_101_4_64_*", note=imagenet),
        _table("Fashion-MNIST, {20,4,8}", 3, "fashion_mnist_*", "fashion_mnist", own),
        _table("Digits, {11,4,4}", 3, "digits_*", "optical_digits", own),
    )


def multiply_adds(name: str) -> float:
    """Those of a network's whole schedule, were no block cut: 3 passes, images and epochs times those of an image.

    Example:

    >>> f"{multiply_adds('cifar10_20_4_8_k1'):.3g}"
    '3.36e+15'
    """
    info = DATASETS[zoo.entry(name).dataset]
    images = info.train_images * RECIPES[info.recipe].epochs
    return PASSES * zoo.architecture(name).multiply_adds() * images


def done(card: dict[str, Any] | None) -> bool:
    """Whether a card is of the whole schedule."""
    # A round is whole batches, so that an epoch's last images may be missing.
    return card is not None and card["epochs"] >= 0.99 * card["schedule_epochs"]


def page() -> str:
    """The list as `zoo/cards/README.md` has it."""
    sections, listed = [_HEAD], set[str]()
    for part in parts():
        names = [row.name for row in part.experiment.rows if row.name in zoo.ENTRIES and row.name not in listed]
        listed.update(names)
        sections.append("\n".join(_section(part, names)))
    return "\n\n".join(sections) + "\n"


_HEAD = f"""# Cards, and the runs that remain

A card is what was measured of one trained network: its command, how much of the schedule it had, its seed, hardware and
seconds, its curve and its wiring. `python -m gated_resnext.publish` writes it from the workdir of a finished training.

What follows is every network of the zoo and what a run of its whole schedule costs. Each command is resumable: given
again, it goes on where it stopped. The rows of one comparison share data set, schedule and seeds. The first command
of a part trains all its rows with {SEEDS} seeds, as the paper did on CIFAR and Mini-ImageNet, and tables them; the
others train and publish one network each, seed 0, in the workdir where the first one finds it. Each command writes the
table with its own rows over that of the one before; a command given again brings its rows back without training.

Images are read from `$TFDS_DATA_DIR` or `~/tensorflow_datasets`, or from `--data_dir=FOLDER`. On a GPU add
`--precision=mixed_bfloat16`; with JAX and without TensorFlow also set `KERAS_BACKEND=jax`, and give the folder that
`python -m gated_resnext.pack` wrote, but for ImageNet, which is too large to be packed.

What is here so far are published networks; [docs/results](../../docs/results/README.md) has what else was run.
Multiply-adds are computed, not measured: those of an image, times {PASSES} (forward and backward), times images and
epochs, as if no block were pruned during training. Hours are estimated from a card's own seconds and epochs, where
there is one.

The cards and a function write this page, and a test holds it to them:
`python -c "from gated_resnext import remaining; print(remaining.page(), end='')" > zoo/cards/README.md`"""


def _section(part: Part, names: list[str]) -> Iterator[str]:
    yield f"## {part.title}\n"
    if part.note:
        yield f"{part.note}\n"
    rows = []
    for name in names:
        card = zoo.card(name)
        so_far = hours = ""
        if card:
            so_far = f"{100 * card['top1']:.2f} % after {card['epochs']:g} of {card['schedule_epochs']:g} epochs"
            hours = f"{card['seconds'] * card['schedule_epochs'] / card['epochs'] / 3600:.3g} ({card['hardware']})"
        rows.append([f"`{name}`", so_far, f"{multiply_adds(name) / 1e15:.3g}", hours])
    yield from markdown.table(["network", "here so far", "multiply-adds, 10^15", "hours, from the card"], rows)
    yield f"\n```bash\n{part.command}"
    for name in names:
        if not done(zoo.card(name)):
            workdir = f"runs/reproduce/{part.experiment.key}/{name}-0"
            yield f"python -m gated_resnext.train --entry={name} --workdir={workdir} &&"
            yield f"  python -m gated_resnext.publish --workdir={workdir}"
    yield "```"
