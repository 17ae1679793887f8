"""What was measured of an experiment beside what the paper reports: as Markdown, and as CSV with a line a run.

Plain Python: nothing here needs Keras or TensorFlow.
"""

from __future__ import annotations

import csv
import io
import math
import os
import pathlib
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gated_resnext import markdown as tables
from gated_resnext import versions
from gated_resnext.connectivity import Connectivity
from gated_resnext.datasets.table import FOLDER
from gated_resnext.experiments import Experiment, Row
from gated_resnext.recipes import Recipe
from zoo.entries import Paper

# Data sets of the paper, which trained on so many GPUs, each with statistics of its own (Appendix E).
PAPERS, GPUS = ("cifar10", "cifar100", "mini_imagenet", "imagenet2012"), 8
# Wirings drawn for the active blocks that Fixed-Random has on average.
DRAWN = 100


class Setting(NamedTuple):
    """How an experiment is run, told in its header.

    `recipe` is the schedule as trained, `whole` that of the paper or of the data set; seeds are 0 to `seeds` - 1;
    `versions` and `hardware` are text, of the machine at work: a run that names its own is told with those. Without
    `hardware` it is what Python knows of the machine.
    """

    command: str
    recipe: Recipe
    whole: Recipe
    seeds: int
    limit: int | None = None
    versions: str = ""
    hardware: str = ""


class Outcome(NamedTuple):
    """A run that ended: its `result.json`, or the step at which its loss was no longer finite.

    `entropy` is the mean over modules of the gates' at the end of learning, in nats; None where none are learned.
    `how` is the arithmetic and the version of a run that diverged, as far as they are known.
    """

    row: Row
    seed: int
    result: dict[str, Any] | None
    diverged: int | None = None
    entropy: float | None = None
    how: dict[str, str] | None = None


class Spread(NamedTuple):
    """Of the seeds' accuracies, in percent; `std` divides by n - 1, None for one seed."""

    best: float
    mean: float
    std: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one value or more.

        Example:

        >>> Spread.of([90.0, 92.0])
        Spread(best=92.0, mean=91.0, std=1.4142135623730951, seeds=2)
        """
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(max(values), statistics.fmean(values), std, len(values))

    def __str__(self) -> str:
        return f"{self.best:.2f}" if self.std is None else f"{self.best:.2f} ({self.mean:.2f} ± {self.std:.2f})"


class Difference(NamedTuple):
    """Of the means of two rows over the seeds that both have, and the standard deviation they share.

    `pooled` is the root of the mean of both variances, None for one seed.
    """

    mean: float
    pooled: float | None
    seeds: int

    @classmethod
    def of(cls, first: dict[int, float], second: dict[int, float]) -> Difference | None:
        """First minus second, each by seed; None where no seed is in both.

        Example:

        >>> Difference.of({0: 90.0, 1: 92.0}, {0: 89.0, 1: 91.0, 2: 99.0})
        Difference(mean=1.0, pooled=1.4142135623730951, seeds=2)
        """
        seeds = sorted(first.keys() & second.keys())
        if not seeds:
            return None
        a, b = (Spread.of([values[seed] for seed in seeds]) for values in (first, second))
        pooled = None if a.std is None or b.std is None else math.sqrt((a.std**2 + b.std**2) / 2)
        return cls(a.mean - b.mean, pooled, len(seeds))

    def __str__(self) -> str:
        if self.pooled is None:
            return f"{self.mean:+.2f} points with one seed each, so the spread of the seeds is not known"
        exceeds = "exceeds" if abs(self.mean) > self.pooled else "does not exceed"
        return (
            f"{self.mean:+.2f} points over {self.seeds} seeds, which {exceeds} the spread of the seeds "
            f"({self.pooled:.2f}, their pooled standard deviation)"
        )


def markdown(experiment: Experiment, setting: Setting, outcomes: Sequence[Outcome]) -> str:
    """The ledger of an experiment, blank where nothing was run yet."""
    by_row = {row.name: [one for one in outcomes if one.row.name == row.name] for row in experiment.rows}
    parts = [
        [f"# {experiment.title}, {_named(experiment.dataset)}"],
        [_how_much(experiment, setting)],
        _header(experiment, setting, outcomes),
        table(experiment, setting, outcomes).splitlines(),
    ]
    differences = list(_differences(experiment, by_row))
    if differences:
        parts.append(differences)
    if experiment.plots == "active" and outcomes:
        parts.append(["Active blocks in each module, means over the seeds:"])
        parts.append(list(_active_blocks(experiment, by_row)))
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def table(experiment: Experiment, setting: Setting, outcomes: Sequence[Outcome]) -> str:
    """The rows alone: the paper's beside ours."""
    columns = ["network", "connectivity", "K", "paper: top-1", "here: top-1", "seeds", "paper: parameters, M"]
    columns += ["parameters", "pruned", "epochs", "gate entropy, nats", "seconds a run"]
    rows = []
    for row in experiment.rows:
        ended = [one for one in outcomes if one.row.name == row.name]
        rows.append([*_of_paper(row, experiment), *_measured(row, setting, ended)])
    if not _has_paper(experiment):
        kept = [number for number, name in enumerate(columns) if not name.startswith("paper")]
        columns, *rows = [[cells[number] for number in kept] for cells in (columns, *rows)]
    return "\n".join(tables.table(columns, rows))


def picture(
    experiment: Experiment, setting: Setting, outcomes: Sequence[Outcome], path: str | os.PathLike[str]
) -> None:
    """The figure of the paper with what was measured in it, means over the seeds where it shows one line a network.

    Args:
        experiment: one that plots something.
        setting: how much of the schedule was trained, which stands above it.
        outcomes: one run that did not diverge, or more.
        path: of the .svg or .png file.
    """
    from gated_resnext.drawing import charts

    title = f"{experiment.title}: {_trained(setting)}"
    ended = {row: [one.result for one in outcomes if one.row == row and one.result] for row in experiment.rows}
    ended = {row: results for row, results in ended.items() if results}
    if experiment.plots == "top1":
        points = {row.architecture.fan_in: [one["top1"] for one in results] for row, results in ended.items()}
        charts.fan_in_chart(points, path, title=title)
        return
    active = {
        row.name: [statistics.fmean(module) for module in zip(*(one["active_blocks"] for one in results), strict=True)]
        for row, results in ended.items()
    }
    charts.active_blocks_chart(active, experiment.rows[0].architecture.cardinality, path, title=title)


def csv_lines(setting: Setting, outcomes: Sequence[Outcome]) -> str:
    """A line a run that ended; a diverged one has no accuracies."""
    buffer = io.StringIO()
    names = ["row", "dataset", "wiring", "fan_in", "seed", "diverged_at_step", "top1", "top5", "test_images"]
    names += ["parameters", "parameters_pruned", "active_blocks", "epochs", "schedule_epochs", "recipe", "limit"]
    names += ["steps", "seconds", "backend", "precision", "jit_compile", "batch_norm_images", "rollbacks"]
    names += ["gate_entropy", "version"]
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    for row, seed, result, diverged, entropy, how in outcomes:
        found = result or how or {}
        of_result = {name: found[name] for name in names if name in found}
        pruned = row.architecture.parameters(result["active_blocks"]) if result else None
        active = " ".join(map(str, found.get("active_blocks", ())))
        writer.writerow(
            {
                **of_result,
                **{"row": row.name, "dataset": _named(row.dataset), "wiring": row.wiring, "seed": seed},
                **{"fan_in": row.architecture.fan_in, "diverged_at_step": diverged, "active_blocks": active},
                **{"parameters": row.architecture.parameters(), "parameters_pruned": pruned, "gate_entropy": entropy},
                **{"schedule_epochs": setting.whole.epochs, "recipe": setting.recipe.name, "limit": setting.limit},
            }
        )
    return buffer.getvalue()


# The header


def _named(dataset: str) -> str:
    """A data set's name; of a folder its own, without where it lies."""
    return pathlib.PurePath(dataset).name if dataset.startswith(FOLDER) else dataset


def _how_much(experiment: Experiment, setting: Setting) -> str:
    """How much of the schedule and of the images was trained, so that no short run is read as the paper's."""
    text = f"Trained: {_trained(setting)}."
    short = setting.recipe != setting.whole or setting.limit is not None
    if short and _has_paper(experiment):
        text += " Not to be compared with the paper's numbers, which are of its whole schedule on all images."
    return f"**{text}**" if short else text


def _has_paper(experiment: Experiment) -> bool:
    """Whether the paper reports any of it; of data that is not its own it reports nothing."""
    return any(row.paper for row in experiment.rows)


def _trained(setting: Setting) -> str:
    recipe = setting.recipe
    epochs = f"the whole schedule, {recipe.epochs:g} epochs"
    if not recipe.is_part_of(setting.whole):
        epochs = f"{recipe.epochs:.4g} epochs of another schedule, {recipe.name!r}"
    elif recipe != setting.whole:
        epochs = f"{recipe.epochs:.4g} of the schedule's {setting.whole.epochs:g} epochs"
    images = "all training images" if setting.limit is None else f"the first {setting.limit:,} training images"
    return f"{epochs}, on {images}"


def _header(experiment: Experiment, setting: Setting, outcomes: Sequence[Outcome]) -> list[str]:
    recipe = setting.recipe
    phases = "; ".join(
        f"{phase.epochs:.4g} epochs at rate {phase.learning_rate:g}"
        + (f", gates at {phase.gate_learning_rate:g}" if phase.gate_learning_rate else "")
        for phase in recipe.phases
    )
    tested = {one.result["test_images"] for one in outcomes if one.result}
    images = f", {tested.pop():,} test images" if len(tested) == 1 else ""
    precision = " ".join(sorted({one.result.get("precision", "float32") for one in outcomes if one.result}))
    hardware = _of_all("hardware", setting.hardware or versions.hardware(), outcomes)
    runs = len(experiment.rows) * setting.seeds
    seeds = "seed 0" if setting.seeds == 1 else f"seeds 0 to {setting.seeds - 1}"
    return [
        f"- command: `{setting.command}`",
        f"- runs: {len(outcomes)} of {runs} ended; {seeds}",
        f"- data: {_named(experiment.dataset)}{images}",
        *_on_others(outcomes),
        f"- schedule: {recipe.name}, batches of {recipe.batch_size}: {phases}",
        *_batch_norm(experiment, setting, outcomes),
        f"- versions: {_of_all('versions', setting.versions, outcomes)}",
        *_trained_by(setting, outcomes),
        f"- hardware: {hardware}{f', {precision}' if precision else ''}",
        "- top-1: in percent, of the weights at the end of the schedule: best (mean ± standard deviation) of the "
        "seeds, the deviation being that of a sample (n - 1), and blank for one seed",
        "- parameters: gates not counted; pruned: without unused blocks, mean over the seeds",
    ]


def _on_others(outcomes: Sequence[Outcome]) -> list[str]:
    """A warning, where a folder changed between two rows."""
    digests = {one.result["images_digest"] for one in outcomes if one.result and "images_digest" in one.result}
    if len(digests) < 2:
        return []
    return ["- **not all runs were trained on the same images: they changed in between, so the rows do not compare**"]


def _batch_norm(experiment: Experiment, setting: Setting, outcomes: Sequence[Outcome]) -> list[str]:
    """Of how many images its statistics are, beside the paper's, where it is a data set of the paper."""
    recipe = setting.recipe
    if experiment.dataset not in PAPERS:
        return []
    found = sorted({one.result.get("batch_norm_images", recipe.batch_size) for one in outcomes if one.result})
    images = " or ".join(map(str, found or [recipe.batch_size]))
    theirs = setting.whole.batch_size // GPUS
    return [f"- batch norm: statistics of {images} images; the paper's are of {theirs} (docs/deviations.md, row 25)"]


def _of_all(name: str, ours: str, outcomes: Sequence[Outcome]) -> str:
    """What the runs say of themselves under a name, each once; ours of those that say nothing, or where none ended."""
    return "; ".join(dict.fromkeys(one.result.get(name, ours) for one in outcomes if one.result)) or ours


def _trained_by(setting: Setting, outcomes: Sequence[Outcome]) -> list[str]:
    """Which rows were trained otherwise than others, or than the lines of versions and hardware say."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for one in outcomes:
        if one.result and "version" in one.result:
            rows.setdefault(_how(one.result, setting, outcomes), []).append(f"`{one.row.name}` seed {one.seed}")
    texts = "; ".join(f"{', '.join(how)}: {', '.join(rows[how])}" for how in sorted(rows))
    if len(rows) > 1:
        return [f"- not all rows were trained alike: {texts}"]
    versions = _of_all("versions", setting.versions, outcomes)
    for by, backend, _, *more in rows:
        if more or f"{by}, {backend} " not in versions:
            return [f"- trained by {texts}"]
    return []


def _how(result: dict[str, Any], setting: Setting, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Version, backend and precision of a run, and what else is not as a reader of the header would think."""
    parts = [f"gated_resnext {result['version']}", result.get("backend", "tensorflow")]
    parts.append(result.get("precision", "float32"))
    for name, ours in (("versions", setting.versions), ("hardware", setting.hardware)):
        if result.get(name, ours) != _of_all(name, ours, outcomes):
            parts.append(result.get(name, ours))
    if result.get("batch_norm_images", setting.recipe.batch_size) != setting.recipe.batch_size:
        parts.append(f"batch norm over {result['batch_norm_images']} images")
    if result.get("jit_compile"):
        parts.append("steps compiled by XLA")
    if result.get("rollbacks"):
        parts.append(f"{result['rollbacks']} times back to a checkpoint and on at half the rate")
    return tuple(parts)


# A row


def _of_paper(row: Row, experiment: Experiment) -> list[str]:
    """Network, connectivity, K and what the paper says of its accuracy."""
    real = row.architecture.gates == "real"
    return [f"`{row.name}`", row.connectivity, "" if real else f"{row.architecture.fan_in}", _accuracy(row, experiment)]


def _accuracy(row: Row, experiment: Experiment) -> str:
    paper = row.paper
    if paper is None or paper.top1_best is None:
        return ""
    text = f"{paper.top1_best:g}"
    if paper.top1_mean is not None and paper.top1_std is not None:
        text = f"{paper.top1_best:.2f} ({paper.top1_mean:.2f} ± {paper.top1_std:.2f})"
    if paper.top5 is not None:
        text += f"; top-5 {paper.top5:g}"
    return text if paper.source == experiment.title else f"{text}, {paper.source}"


def _measured(row: Row, setting: Setting, ended: Sequence[Outcome]) -> list[str]:
    """Our accuracy, the seeds, parameters, epochs, entropy and seconds."""
    results = [one.result for one in ended if one.result]
    cells = [_ours(row, ended), f"{len(ended)} of {setting.seeds}" if ended else "", _parameters(row.paper)]
    cells += [f"{row.architecture.parameters():,}"]
    if not results:
        return [*cells, "", "", "", ""]
    pruned = statistics.fmean(row.architecture.parameters(result["active_blocks"]) for result in results)
    entropies = [one.entropy for one in ended if one.entropy is not None]
    of = f"of log {row.architecture.cardinality} = {math.log(row.architecture.cardinality):.3f}"
    return [
        *cells,
        f"{pruned:,.0f}",
        f"{statistics.fmean(result['epochs'] for result in results):.4g} of {setting.whole.epochs:g}",
        f"{statistics.fmean(entropies):.3f} {of}" if entropies else "",
        f"{statistics.fmean(result['seconds'] for result in results):,.0f}",
    ]


def _ours(row: Row, ended: Sequence[Outcome]) -> str:
    results = [one.result for one in ended if one.result]
    texts = []
    if results:
        texts.append(str(Spread.of([100 * result["top1"] for result in results])))
        if row.paper and row.paper.top5 is not None:
            texts.append(f"top-5 {100 * statistics.fmean(result['top5'] for result in results):.2f}")
    for one in ended:
        if one.diverged is not None:
            how = one.how or {}
            precision = how.get("precision", "float32")
            of = "" if precision == "float32" else f", in {precision}"
            of += ", compiled by XLA" if how.get("jit_compile") else ""
            texts.append(f"seed {one.seed} diverged at step {one.diverged}{of}")
    return "; ".join(texts)


def _parameters(paper: Paper | None) -> str:
    if paper is None or paper.params_train is None:
        return ""
    return (
        f"{paper.params_train:g}" if paper.params_test is None else f"{paper.params_train:g} -> {paper.params_test:g}"
    )


# Between rows


def _differences(experiment: Experiment, by_row: dict[str, list[Outcome]]) -> Iterable[str]:
    for pair in experiment.pairs:
        # A pair whose row is not among those chosen has no outcomes.
        by_seed = [
            {one.seed: 100 * one.result["top1"] for one in by_row.get(row.name, ()) if one.result} for row in pair
        ]
        difference = Difference.of(*by_seed)
        if difference is not None:
            yield f"- `{pair[0].name}` - `{pair[1].name}`: {difference}."


def _active_blocks(experiment: Experiment, by_row: dict[str, list[Outcome]]) -> Iterable[str]:
    """Of every row, and of random wirings with its K, which show what was learned and what the depth alone does."""
    modules = experiment.rows[0].architecture.modules
    yield from tables.table(["network", *range(1, modules + 1)], [])
    for row in experiment.rows:
        counts = [one.result["active_blocks"] for one in by_row[row.name] if one.result]
        shape = row.architecture
        drawn = [
            Connectivity.random(shape.modules, shape.cardinality, shape.fan_in, seed=seed).active_blocks
            for seed in range(DRAWN)
        ]
        for name, rows in ((f"`{row.name}`", counts), (f"random, K = {shape.fan_in}, {DRAWN} wirings", drawn)):
            if rows:
                yield tables.row([name, *(f"{statistics.fmean(module):.2f}" for module in zip(*rows, strict=True))])
