import re

import pytest

from gated_resnext.zoo import architecture
from zoo.entries import ENTRIES, ROWS

# The paper's tables, as they stand there: (architecture, connectivity) and then the columns.
# Table 1, CIFAR-100: parameters in training and in testing in millions, top-1 best, mean, standard deviation.
TABLE_1 = {
    ("{29,8,8}", "Fixed-Full, K=8"): (0.86, 0.86, 73.52, 73.37, 0.13),
    ("{29,8,8}", "Learned, K=1"): (0.86, 0.65, 73.91, 73.76, 0.14),
    ("{29,8,8}", "Learned, K=4"): (0.86, 0.81, 75.89, 75.77, 0.12),
    ("{29,8,8}", "Fixed-Random, K=4"): (0.86, 0.85, 72.85, 72.66, 0.24),
    ("{29,64,8}", "Fixed-Full, K=8"): (34.4, 34.4, 82.23, 82.12, 0.12),
    ("{29,64,8}", "Learned, K=1"): (34.4, 20.5, 82.34, 82.18, 0.19),
    ("{29,64,8}", "Learned, K=4"): (34.4, 32.1, 84.05, 83.94, 0.11),
    ("{29,64,8}", "Fixed-Random, K=4"): (34.4, 34.3, 81.96, 81.73, 0.20),
}
# Table 2, ImageNet: top-1, top-5.
TABLE_2 = {
    ("{50,4,32}", "Fixed-Full, K=32"): (77.8, 93.3),
    ("{50,4,32}", "Learned, K=16"): (79.1, 94.1),
    ("{101,4,32}", "Fixed-Full, K=32"): (78.8, 94.1),
    ("{101,4,32}", "Learned, K=16"): (79.5, 94.5),
    ("{101,4,64}", "Fixed-Full, K=64"): (79.6, 94.7),
    ("{101,4,64}", "Learned, K=32"): (79.8, 94.8),
}
# Table 3, CIFAR-10: top-1 best, mean, standard deviation.
TABLE_3 = {
    ("{20,4,8}", "Fixed-Full, K=8"): (91.39, 91.13, 0.11),
    ("{20,4,8}", "Learned, K=4"): (92.85, 92.76, 0.10),
    ("{29,4,8}", "Fixed-Full, K=8"): (92.77, 92.65, 0.09),
    ("{29,4,8}", "Learned, K=4"): (93.88, 93.76, 0.12),
    ("{29,8,8}", "Fixed-Full, K=8"): (93.26, 93.14, 0.11),
    ("{29,8,8}", "Learned, K=4"): (95.11, 94.96, 0.12),
    ("{29,64,8}", "Fixed-Full, K=8"): (96.35, 96.23, 0.12),
    ("{29,64,8}", "Learned, K=4"): (96.83, 96.73, 0.11),
}
# Table 4, Mini-ImageNet: top-1 best, mean, standard deviation.
TABLE_4 = {
    ("{20,4,8}", "Fixed-Full, K=8"): (62.12, 61.86, 0.15),
    ("{20,4,8}", "Learned, K=4"): (66.09, 65.94, 0.16),
    ("{20,4,8}", "Fixed-Random, K=4"): (62.42, 61.81, 0.32),
    ("{29,8,8}", "Fixed-Full, K=8"): (68.11, 67.89, 0.19),
    ("{29,8,8}", "Learned, K=4"): (71.36, 71.18, 0.19),
    ("{29,8,8}", "Fixed-Random, K=4"): (67.97, 67.53, 0.20),
}
TABLES = {
    "Table 1": ("cifar100", TABLE_1, ("params_train", "params_test", "top1_best", "top1_mean", "top1_std")),
    "Table 2": ("imagenet2012", TABLE_2, ("top1_best", "top5")),
    "Table 3": ("cifar10", TABLE_3, ("top1_best", "top1_mean", "top1_std")),
    "Table 4": ("mini_imagenet", TABLE_4, ("top1_best", "top1_mean", "top1_std")),
}
NUMBERS = ("params_train", "params_test", "top1_mean", "top1_std", "top1_best", "top5")
CONNECTIVITY = {"full": "Fixed-Full", "learned": "Learned", "random": "Fixed-Random"}

# Trainable weights of every network, gates not counted. With x channels in, f out, bottleneck w and C blocks, a module
# has C * ((x*w + 2*w) + (9*w*w + 2*w) + (w*f + 2*f)), and in the first module of a stage x*f + 2*f for the shortcut;
# the stem k*k*channels*s + 2*s; the classifier (f + 1) * classes.
# fmt: off
PARAMETERS = {
    "digits_11_4_4_full": 93_754,
    "digits_11_4_4_k1": 93_754,
    "digits_11_4_4_k2": 93_754,
    "digits_11_4_4_random_k2": 93_754,
    "fashion_mnist_20_4_8_full": 260_154,
    "fashion_mnist_20_4_8_k1": 260_154,
    "fashion_mnist_20_4_8_k4": 260_154,
    "fashion_mnist_20_4_8_random_k4": 260_154,
    "cifar10_20_4_8_full": 260_442,
    "cifar10_20_4_8_k1": 260_442,
    "cifar10_20_4_8_k2": 260_442,
    "cifar10_20_4_8_k3": 260_442,
    "cifar10_20_4_8_k4": 260_442,
    "cifar10_20_4_8_k5": 260_442,
    "cifar10_20_4_8_k6": 260_442,
    "cifar10_20_4_8_k7": 260_442,
    "cifar10_20_4_8_k8": 260_442,
    "cifar10_20_4_8_random_k4": 260_442,
    "cifar10_29_4_8_full": 378_714,
    "cifar10_29_4_8_k1": 378_714,
    "cifar10_29_4_8_k4": 378_714,
    "cifar10_29_4_8_random_k4": 378_714,
    "cifar10_29_8_8_full": 835_162,
    "cifar10_29_8_8_k1": 835_162,
    "cifar10_29_8_8_k4": 835_162,
    "cifar10_29_8_8_random_k4": 835_162,
    "cifar10_29_64_8_full": 34_501_962,
    "cifar10_29_64_8_k1": 34_501_962,
    "cifar10_29_64_8_k4": 34_501_962,
    "cifar10_29_64_8_random_k4": 34_501_962,
    "cifar100_20_4_8_full": 283_572,
    "cifar100_20_4_8_k1": 283_572,
    "cifar100_20_4_8_k2": 283_572,
    "cifar100_20_4_8_k3": 283_572,
    "cifar100_20_4_8_k4": 283_572,
    "cifar100_20_4_8_k5": 283_572,
    "cifar100_20_4_8_k6": 283_572,
    "cifar100_20_4_8_k7": 283_572,
    "cifar100_20_4_8_k8": 283_572,
    "cifar100_20_4_8_random_k4": 283_572,
    "cifar100_29_4_8_full": 401_844,
    "cifar100_29_4_8_k1": 401_844,
    "cifar100_29_4_8_k4": 401_844,
    "cifar100_29_4_8_random_k4": 401_844,
    "cifar100_29_8_8_full": 858_292,
    "cifar100_29_8_8_k1": 858_292,
    "cifar100_29_8_8_k4": 858_292,
    "cifar100_29_8_8_random_k4": 858_292,
    "cifar100_29_64_8_full": 34_594_212,
    "cifar100_29_64_8_k1": 34_594_212,
    "cifar100_29_64_8_k4": 34_594_212,
    "cifar100_29_64_8_random_k4": 34_594_212,
    "mini_imagenet_20_4_8_full": 283_572,
    "mini_imagenet_20_4_8_k1": 283_572,
    "mini_imagenet_20_4_8_k4": 283_572,
    "mini_imagenet_20_4_8_random_k4": 283_572,
    "mini_imagenet_29_8_8_full": 858_292,
    "mini_imagenet_29_8_8_k1": 858_292,
    "mini_imagenet_29_8_8_k4": 858_292,
    "mini_imagenet_29_8_8_random_k4": 858_292,
    "imagenet_50_4_32_full": 25_965_352,
    "imagenet_50_4_32_k1": 25_965_352,
    "imagenet_50_4_32_k16": 25_965_352,
    "imagenet_50_4_32_random_k16": 25_965_352,
    "imagenet_101_4_32_full": 46_193_448,
    "imagenet_101_4_32_k1": 46_193_448,
    "imagenet_101_4_32_k16": 46_193_448,
    "imagenet_101_4_32_random_k16": 46_193_448,
    "imagenet_101_4_64_full": 87_551_784,
    "imagenet_101_4_64_k1": 87_551_784,
    "imagenet_101_4_64_k32": 87_551_784,
    "imagenet_101_4_64_random_k32": 87_551_784,
}
# fmt: on


def cell(entry):
    """What the paper's first two columns call an entry."""
    shape = f"{{{entry.depth},{entry.width},{entry.cardinality}}}"
    return shape, f"{CONNECTIVITY[entry.wiring]}, K={entry.fan_in}"


def test_the_imagenet_networks_are_torchvisions_but_for_the_batch_norm_of_every_branch():
    # resnext50_32x4d and resnext101_64x4d; filters of a module, and how many modules have them
    for torchvision, cardinality, modules, name in (
        (25_028_904, 32, {256: 3, 512: 4, 1024: 6, 2048: 3}, "imagenet_50_4_32_full"),
        (83_455_272, 64, {256: 3, 512: 4, 1024: 23, 2048: 3}, "imagenet_101_4_64_full"),
    ):
        extra = sum((cardinality - 1) * 2 * filters * count for filters, count in modules.items())
        assert torchvision + extra == PARAMETERS[name]


@pytest.mark.parametrize("table", TABLES)
def test_every_row_of_the_papers_table_is_there_with_its_numbers(table):
    dataset, rows, columns = TABLES[table]
    found = {cell(e): e.paper for e in ROWS if e.paper and e.paper.source == table}
    assert set(found) == set(rows)
    assert {e.dataset for e in ROWS if e.paper and e.paper.source == table} == {dataset}
    for key, numbers in rows.items():
        expected = dict.fromkeys(NUMBERS) | dict(zip(columns, numbers, strict=True))
        assert {name: getattr(found[key], name) for name in NUMBERS} == expected, key


def test_nothing_else_is_said_to_be_the_papers():
    others = {e.name: e.paper for e in ROWS if e.paper and e.paper.source not in TABLES}
    # Figure 2 states one number, the parameters of all its networks; Figure 4 none.
    figure_2 = {f"cifar100_20_4_8_k{k}": ("Figure 2", 0.28, None, None, None, None, None) for k in range(1, 9)}
    figure_4 = {f"cifar100_29_4_8_k{k}": ("Figure 4", None, None, None, None, None, None) for k in (1, 4)}
    assert others == figure_2 | figure_4


def test_names_are_unique():
    assert len(ROWS) == len({entry.name for entry in ROWS}) == len(ENTRIES)
    assert list(ENTRIES) == [entry.name for entry in ROWS]
    assert all(ENTRIES[name] is row for name, row in zip(ENTRIES, ROWS, strict=True))


@pytest.mark.parametrize("name", ENTRIES)
def test_a_name_says_what_the_entry_is(name):
    entry = ENTRIES[name]
    dataset = {"optical_digits": "digits", "imagenet2012": "imagenet"}.get(entry.dataset, entry.dataset)
    wiring = {"full": "full", "learned": f"k{entry.fan_in}", "random": f"random_k{entry.fan_in}"}[entry.wiring]
    assert name == f"{dataset}_{entry.depth}_{entry.width}_{entry.cardinality}_{wiring}"
    assert re.fullmatch("[a-z0-9_]+", name)
    assert 1 <= entry.fan_in <= entry.cardinality
    assert entry.wiring != "full" or entry.fan_in == entry.cardinality


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_every_fan_in_of_figure_2_is_there(dataset):
    learned = [e for e in ROWS if (e.dataset, e.depth, e.width, e.cardinality) == (dataset, 20, 4, 8)]
    assert sorted(e.fan_in for e in learned if e.wiring == "learned") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert sorted(e.fan_in for e in learned if e.wiring == "random") == [4]
    assert [e.fan_in for e in learned if e.wiring == "full"] == [8]


def test_the_table_of_parameters_has_every_entry():
    assert set(PARAMETERS) == set(ENTRIES)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    assert architecture(name).parameters() == PARAMETERS[name]


@pytest.mark.parametrize("entry", [e for e in ROWS if e.paper and e.paper.params_train], ids=lambda e: e.name)
def test_parameters_are_the_papers_to_its_digits(entry):
    # The paper's 34.4M is Xie et al.'s figure: one batch norm a module, ten classes. With 100 classes it is 34.52M, and
    # with a batch norm for every block, by which alone the smaller networks have the paper's counts, 34.59M.
    stated = {34.4: 34.6}.get(entry.paper.params_train, entry.paper.params_train)
    digits = 2 if stated < 1 else 1
    assert round(PARAMETERS[entry.name] / 1e6, digits) == stated


# Tables 5 and 6: modules of each stage, channels into a block of its first module, bottleneck, channels out.
STAGES = {
    (20, 4, 8): [(2, 16, 4, 64), (2, 64, 8, 128), (2, 128, 16, 256)],
    (29, 4, 8): [(3, 16, 4, 64), (3, 64, 8, 128), (3, 128, 16, 256)],
    (29, 8, 8): [(3, 16, 8, 64), (3, 64, 16, 128), (3, 128, 32, 256)],
    (29, 64, 8): [(3, 64, 64, 256), (3, 256, 128, 512), (3, 512, 256, 1024)],
}


@pytest.mark.parametrize("name", [e.name for e in ROWS if e.dataset in ("cifar10", "cifar100", "mini_imagenet")])
def test_stages_are_those_of_tables_5_and_6(name):
    entry, plan = ENTRIES[name], architecture(name).plan()
    sizes = iter((32, 32, 16, 8))  # the input's, then the stages'; Mini-ImageNet's 64 are halved by the pool first
    size, first = next(sizes), 0
    for modules, x, w, f in STAGES[entry.depth, entry.width, entry.cardinality]:
        stage, before, size = plan[first : first + modules], size, next(sizes)
        assert [(p.in_channels, p.width, p.filters) for p in stage] == [(x, w, f)] + [(f, w, f)] * (modules - 1)
        assert [p.out_size for p in stage] == [(size, size)] * modules
        assert stage[0].in_size == (before, before)
        first += modules
    assert first == len(plan)
    assert entry.stem == ("conv3_pool" if entry.dataset == "mini_imagenet" else "conv3")


def test_the_table_needs_the_standard_library_alone(run_python):
    code = (
        "import sys, zoo.entries; print(sorted({n.split('.')[0] for n in sys.modules} - set(sys.stdlib_module_names)))"
    )
    done = run_python("-S", "-c", code, env={"PYTHONPATH": __import__("zoo").__path__[0].rpartition("zoo")[0]})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['__main__', 'zoo']"
