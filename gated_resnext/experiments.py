"""The paper's tables, figures and ablations as rows to train.

Plain Python: nothing here needs Keras or TensorFlow. What the paper reports stands in `zoo.entries`, once.
"""

from __future__ import annotations

from typing import NamedTuple

from gated_resnext import zoo
from gated_resnext.architecture import Architecture
from gated_resnext.errors import UserError, check_choice
from gated_resnext.recipes import Recipe
from gated_resnext.workdir import Run
from zoo.entries import ENTRIES, ROWS, Entry, Paper

TABLES = (1, 2, 3, 4)
# Data set and {depth, width, cardinality} of the figures that plot what was trained.
FIGURES = {2: ("cifar100", (20, 4, 8)), 4: ("cifar100", (29, 4, 8)), 5: ("imagenet2012", (50, 4, 32))}
ABLATIONS = ("gates", "aggregation", "random")
ABLATED_ON, ABLATED = "cifar10", (20, 4, 8)
# The paper's one number on real-valued gates is of another network, in section 3.1.
REAL_GATES_ON, REAL_GATES = "cifar100", (29, 8, 8)
# Whose images are too small for the paper's networks: every experiment has its one small network there.
SMALL = "optical_digits"

Shape = tuple[int, int, int]


class Row(NamedTuple):
    """One network of an experiment; `name` is the zoo's where the zoo has it."""

    name: str
    architecture: Architecture
    wiring: str
    dataset: str

    def run(self, recipe: Recipe, *, seed: int, limit: int | None = None) -> Run:
        """What is trained for this row and a seed."""
        return Run(self.name, self.architecture, self.wiring, self.dataset, recipe, seed, limit)

    @property
    def paper(self) -> Paper | None:
        """What the paper reports of it."""
        if self.name not in ENTRIES or zoo.architecture(self.name) != self.architecture:
            return None
        return ENTRIES[self.name].paper if ENTRIES[self.name].dataset == self.dataset else None

    @property
    def connectivity(self) -> str:
        """What the paper's column of that name would say."""
        kind = {"full": "Fixed-Full (ResNeXt)", "random": "Fixed-Random"}.get(self.wiring, "Learned")
        if self.architecture.gates == "real":
            return f"{kind}, real-valued gates"
        return f"{kind}, sum" if self.architecture.aggregation == "sum" else kind


class Experiment(NamedTuple):
    """Rows to compare, which share data, schedule and seeds.

    `key` names its files, with the data set where that is not the paper's. `pairs` are rows whose difference is told:
    the first minus the second. `plots` is what a figure of the paper has above its axis: "top1" against the fan-in, or
    the "active" blocks of every module.
    """

    key: str
    title: str
    dataset: str
    rows: tuple[Row, ...]
    pairs: tuple[tuple[Row, Row], ...]
    plots: str | None = None


def table(number: int, dataset: str | None = None) -> Experiment:
    """A table of the paper: for every architecture in it Fixed-Full, Learned with K = 1 and C / 2, Fixed-Random.

    Args:
        number: 1 to 4.
        dataset: the same architectures on another data set; None for the table's own.

    Raises:
        ValueError: if the paper has no such table; a UserError, if the data set has none of these networks.

    Example:

    >>> [row.name for row in table(3).rows[:4]]
    ['cifar10_20_4_8_full', 'cifar10_20_4_8_k1', 'cifar10_20_4_8_k4', 'cifar10_20_4_8_random_k4']
    """
    check_choice("number", number, TABLES)
    reported = [row for row in ROWS if row.paper and row.paper.source == f"Table {number}"]
    rows: list[Row] = []
    pairs: list[tuple[Row, Row]] = []
    own = reported[0].dataset
    for stem in _stems(dataset or own, list(dict.fromkeys(map(_shape, reported)))):
        full, sparse, dense, random = _full(stem), _learned(stem, 1), _learned(stem, _half(stem)), _random(stem)
        rows += [full, sparse, dense, random]
        pairs += [(sparse, full), (dense, full), (dense, random)]
    return _experiment(f"table{number}", f"Table {number}", own, rows, pairs)


def figure(number: int, dataset: str | None = None) -> Experiment:
    """A figure of the paper: the fan-ins of Figure 2, the active blocks of Figures 4 and 5.

    Args:
        number: a key of `FIGURES`.
        dataset: the same architecture on another data set; None for the figure's own.

    Raises:
        ValueError: if it is none; a UserError, if the data set has no such network.

    Example:

    >>> [row.architecture.fan_in for row in figure(2).rows]
    [1, 2, 3, 4, 5, 6, 7, 8]
    """
    check_choice("number", number, tuple(FIGURES))
    own, shape = FIGURES[number]
    (stem,) = _stems(dataset or own, [shape])
    half = _half(stem)
    fan_ins = {2: tuple(range(1, 2 * half + 1)), 4: (1, half), 5: (half,)}[number]
    rows = [_learned(stem, fan_in) for fan_in in fan_ins]
    pairs = [(_learned(stem, half), rows[0]), (_learned(stem, half), rows[-1])] if number == 2 else []
    return _experiment(f"figure{number}", f"Figure {number}", own, rows, pairs, "top1" if number == 2 else "active")


def ablation(name: str, dataset: str | None = None) -> Experiment:
    """What a part of the method is worth, on {20,4,8}; of real-valued gates on CIFAR-100 the paper's {29,8,8}.

    Args:
        name: "gates", real-valued against binary; "aggregation", the sum of Eq. 2 to the letter against the mean
            (docs/deviations.md, row 1); "random", fixed random wirings against learned ones with K = 1 and C / 2.
        dataset: None for CIFAR-10.

    Raises:
        ValueError: if it is none of these; a UserError, if the data set has no such network.

    Example:

    >>> [row.name for row in ablation("aggregation").rows]
    ['cifar10_20_4_8_k4', 'cifar10_20_4_8_k4_sum']
    """
    check_choice("name", name, ABLATIONS)
    shape = REAL_GATES if (name, dataset) == ("gates", REAL_GATES_ON) else ABLATED
    (stem,) = _stems(dataset or ABLATED_ON, [shape])
    sparse, dense = _learned(stem, 1), _learned(stem, _half(stem))
    if name == "gates":
        real = dense._replace(name=f"{stem}_real", architecture=dense.architecture.replace(gates="real"))
        rows, pairs = [sparse, dense, real], [(sparse, real), (dense, real)]
    elif name == "aggregation":
        summed = dense.architecture.replace(aggregation="sum")
        rows = [dense, dense._replace(name=f"{dense.name}_sum", architecture=summed)]
        pairs = [(rows[0], rows[1])]
    else:
        rows = [sparse, _random(stem, 1), dense, _random(stem)]
        pairs = [(rows[0], rows[1]), (rows[2], rows[3])]
    return _experiment(f"ablation_{name}", f"Ablation: {name}", ABLATED_ON, rows, pairs)


def _experiment(
    key: str, title: str, own: str, rows: list[Row], pairs: list[tuple[Row, Row]], plots: str | None = None
) -> Experiment:
    dataset = rows[0].dataset
    key = key if dataset == own else f"{key}_{dataset}"
    return Experiment(key, title, dataset, tuple(rows), tuple(pairs), plots)


# A network's rows in the zoo have names of one stem: <data set>_<D>_<w>_<C>.


def _stems(dataset: str, shapes: list[Shape]) -> list[str]:
    """Stems of the networks of these shapes that the zoo has for a data set."""
    full = [row for row in ROWS if row.wiring == "full"]
    found = [row for row in full if row.dataset == dataset and (dataset == SMALL or _shape(row) in shapes)]
    if not found:
        others = ", ".join(dict.fromkeys(row.dataset for row in full if _shape(row) in shapes))
        names = ", ".join(f"{{{','.join(map(str, shape))}}}" for shape in shapes)
        raise UserError(f"the zoo has {names} for {others} and a small network for {SMALL}. Received: {dataset!r}")
    return [row.name.removesuffix("_full") for row in found]


def _shape(row: Entry) -> Shape:
    return row.depth, row.width, row.cardinality


def _half(stem: str) -> int:
    """C / 2, the larger of the two fan-ins that the paper has for every network."""
    return zoo.architecture(f"{stem}_full").cardinality // 2


def _full(stem: str) -> Row:
    row = zoo.entry(f"{stem}_full")
    return Row(row.name, zoo.architecture(row.name), row.wiring, row.dataset)


def _learned(stem: str, fan_in: int) -> Row:
    full = _full(stem)
    shape = full.architecture.replace(aggregation="mean", fan_in=fan_in)
    return Row(f"{stem}_k{fan_in}", shape, "learned", full.dataset)


def _random(stem: str, fan_in: int | None = None) -> Row:
    learned = _learned(stem, fan_in or _half(stem))
    return learned._replace(name=f"{stem}_random_k{learned.architecture.fan_in}", wiring="random")
