"""The rows of experiments are the paper's, and the zoo's."""

import pytest
from test_entries import TABLES, cell

from gated_resnext import experiments, zoo
from gated_resnext.errors import UserError
from gated_resnext.recipes import RECIPES
from gated_resnext.reproduction import chosen
from gated_resnext.workdir import Run
from zoo.entries import ENTRIES

EXPERIMENTS = {
    experiment.key: experiment
    for experiment in [
        *map(experiments.table, experiments.TABLES),
        *map(experiments.figure, experiments.FIGURES),
        *map(experiments.ablation, experiments.ABLATIONS),
        *(experiments.table(3, dataset) for dataset in ("optical_digits", "fashion_mnist", "cifar100")),
        *(experiments.figure(number, "optical_digits") for number in experiments.FIGURES),
        *(experiments.ablation(name, "optical_digits") for name in experiments.ABLATIONS),
    ]
}


@pytest.mark.parametrize("number", experiments.TABLES)
def test_a_table_has_all_rows_of_the_papers_and_four_of_each_architecture(number):
    dataset, printed, columns = TABLES[f"Table {number}"]
    found = experiments.table(number)
    assert (found.key, found.title, found.dataset) == (f"table{number}", f"Table {number}", dataset)
    by_cell = {cell(ENTRIES[row.name]): row for row in found.rows}
    assert set(printed) <= set(by_cell)
    for key, numbers in printed.items():
        assert tuple(getattr(by_cell[key].paper, column) for column in columns) == numbers
    assert all(row.paper is None for key, row in by_cell.items() if key not in printed)
    for shape in dict.fromkeys(shape for shape, _ in printed):
        rows = [row for (of, _), row in by_cell.items() if of == shape]
        half = rows[0].architecture.cardinality // 2
        assert [(row.wiring, row.architecture.fan_in) for row in rows] == [
            ("full", 2 * half),
            ("learned", 1),
            ("learned", half),
            ("random", half),
        ]
    pairs = [(one.name, other.name) for one, other in found.pairs]
    stems = [row.name.removesuffix("_full") for row in found.rows if row.wiring == "full"]
    k = {stem: zoo.architecture(f"{stem}_full").cardinality // 2 for stem in stems}
    assert pairs == [
        pair
        for stem in stems
        for pair in (
            (f"{stem}_k1", f"{stem}_full"),
            (f"{stem}_k{k[stem]}", f"{stem}_full"),
            (f"{stem}_k{k[stem]}", f"{stem}_random_k{k[stem]}"),
        )
    ]


@pytest.mark.parametrize("key", EXPERIMENTS)
def test_rows_of_the_zoo_are_its_own_and_share_all_but_the_network(key):
    experiment = EXPERIMENTS[key]
    recipe = RECIPES[zoo.DATASETS[experiment.dataset].recipe]
    runs = [row.run(recipe, seed=3) for row in experiment.rows]
    assert len({run.entry for run in runs}) == len(runs)
    assert {(run.dataset, run.recipe, run.seed, run.limit) for run in runs} == {(experiment.dataset, recipe, 3, None)}
    for run in runs:
        if run.entry in ENTRIES:
            assert run == Run.of(run.entry, recipe, seed=3)
        else:
            assert run.architecture not in [zoo.architecture(n) for n in ENTRIES if ENTRIES[n].wiring == run.wiring]
    assert {row.name for pair in experiment.pairs for row in pair} <= {run.entry for run in runs}


def test_figures_have_the_papers_fan_ins():
    assert [row.name for row in experiments.figure(2).rows] == [f"cifar100_20_4_8_k{k}" for k in range(1, 9)]
    assert [row.name for row in experiments.figure(4).rows] == ["cifar100_29_4_8_k1", "cifar100_29_4_8_k4"]
    assert [row.name for row in experiments.figure(5).rows] == ["imagenet_50_4_32_k16"]
    assert [row.name for row in experiments.figure(2, "optical_digits").rows] == [
        f"digits_11_4_4_k{k}" for k in range(1, 5)
    ]


def test_ablations_change_one_thing():
    real = experiments.ablation("gates").rows[-1]
    assert real.name == "cifar10_20_4_8_real" and real.connectivity == "Learned, real-valued gates"
    assert real.architecture == zoo.architecture("cifar10_20_4_8_k4").replace(gates="real")
    mean, summed = experiments.ablation("aggregation").rows
    assert summed.architecture == mean.architecture.replace(aggregation="sum") and summed.connectivity == "Learned, sum"
    learned, random = experiments.ablation("random").rows[:2]
    assert learned.architecture == random.architecture and (learned.wiring, random.wiring) == ("learned", "random")
    assert (random.name, random.architecture.fan_in) == ("cifar10_20_4_8_random_k1", 1)
    of_the_paper = experiments.ablation("gates", "cifar100")
    assert [row.name for row in of_the_paper.rows] == [f"cifar100_29_8_8_{end}" for end in ("k1", "k4", "real")]
    assert experiments.ablation("random", "cifar100").rows[0].name == "cifar100_20_4_8_k1"


@pytest.mark.parametrize("make, unknown", [("table", 5), ("figure", 3), ("ablation", "gate")])
def test_what_the_paper_does_not_have_is_refused(make, unknown):
    with pytest.raises(ValueError, match=f"must be one of .* Received: .*={unknown!r}$"):
        getattr(experiments, make)(unknown)


def test_keys_of_another_data_set_are_others():
    assert experiments.table(1, "cifar100").key == "table1"
    assert experiments.table(1, "cifar10").key == "table1_cifar10"
    assert experiments.ablation("gates", "cifar10").key == "ablation_gates"
    assert len(EXPERIMENTS) == 19


def test_rows_are_chosen_by_patterns():
    table = experiments.table(3)
    assert chosen(table, ["*"]) == table
    some = chosen(table, ["cifar10_29_4_8_k?", "cifar10_20_4_8_full"])
    assert [row.name for row in some.rows] == ["cifar10_20_4_8_full", "cifar10_29_4_8_k1", "cifar10_29_4_8_k4"]
    with pytest.raises(UserError, match=r"Table 3 has the rows cifar10_20_4_8_full, .* Received: 'digits_\*'"):
        chosen(table, ["cifar10_*", "digits_*"])


def test_a_data_set_without_the_network_is_told_which_have_it():
    with pytest.raises(UserError, match=r"has \{50,4,32\} for imagenet2012 and a small .* Received: 'cifar10'"):
        experiments.figure(5, "cifar10")
    with pytest.raises(UserError, match=r"has \{20,4,8\} for fashion_mnist, cifar10, .* Received: 'digits'"):
        experiments.ablation("gates", "digits")
