"""The ledger against numpy, and against tables written by hand."""

import csv
import io
import math
import re

import numpy as np
import pytest
from picture import Svg

from gated_resnext import experiments, ledger, zoo
from gated_resnext.connectivity import Connectivity
from gated_resnext.ledger import Difference, Outcome, Setting, Spread
from gated_resnext.recipes import RECIPES

TABLE = experiments.table(3)
FULL, K1, K4, RANDOM = TABLE.rows[:4]
WHOLE = RECIPES["cifar"]
VERSIONS = "gated_resnext 0.1.0, tensorflow 2, keras 3"
SETTING = Setting("python -m x --table=3", WHOLE, WHOLE, seeds=4, versions=VERSIONS, hardware="an abacus")
# Top-1 in percent by seed.
FOUND = {
    FULL: {0: 91.1, 1: 91.2, 2: 91.0, 3: 91.39},
    K4: {0: 92.7, 1: 92.85, 2: 92.6, 3: 92.9},
    RANDOM: {0: 92.6, 1: 92.8, 2: 92.9, 3: 92.3},
}


def outcome(row, seed, top1, active=(8, 8, 8, 8, 8, 8), **changes):
    result = {
        "top1": top1 / 100, "top5": 0.99, "test_images": 10_000, "active_blocks": list(active), "epochs": 319.5,
        "steps": 124_800, "seconds": 3600.0, "precision": "float32", "version": "0.1.0", **changes,
    }  # fmt: skip
    return Outcome(row, seed, result, entropy=1.5 if row.wiring == "learned" else None)


OUTCOMES = [outcome(row, seed, top1) for row, seeds in FOUND.items() for seed, top1 in seeds.items()]


def lines(text, experiment=TABLE):
    """Cells of every row of the first table, by network and column."""
    table = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    head, *rows = ([cell.strip() for cell in cells] for cells in table)
    return {row[0].strip("`"): dict(zip(head, row, strict=True)) for row in rows[: len(experiment.rows)]}


@pytest.mark.parametrize("row", FOUND, ids=lambda row: row.name)
def test_best_mean_and_deviation_are_numpys(row):
    values = np.array([*FOUND[row].values()])
    spread = Spread.of([*FOUND[row].values()])
    assert spread.best == values.max() and spread.seeds == 4
    np.testing.assert_allclose((spread.mean, spread.std), (values.mean(), values.std(ddof=1)), rtol=1e-12)
    cell = lines(ledger.markdown(TABLE, SETTING, OUTCOMES))[row.name]["here: top-1"]
    assert cell == f"{values.max():.2f} ({values.mean():.2f} ± {values.std(ddof=1):.2f})"


def test_rows_that_were_trained_otherwise_are_named():
    assert "alike" not in ledger.markdown(TABLE, SETTING, OUTCOMES)
    mixed = [outcome(FULL, 0, 91.0), outcome(K4, 0, 92.0, version="0.2.0"), outcome(FULL, 1, 91.5)]
    assert (
        "- not all rows were trained alike: gated_resnext 0.1.0, tensorflow, float32: `cifar10_20_4_8_full` seed 0, "
        "`cifar10_20_4_8_full` seed 1; gated_resnext 0.2.0, tensorflow, float32: `cifar10_20_4_8_k4` seed 0\n"
    ) in ledger.markdown(TABLE, SETTING, mixed)
    other = outcome(K4, 0, 92.0, backend="jax", precision="mixed_bfloat16")
    told = (
        "jax, mixed_bfloat16: `cifar10_20_4_8_k4` seed 0; gated_resnext 0.1.0, tensorflow, float32: `cifar10_20_4_8_f"
    )
    assert told in ledger.markdown(TABLE, SETTING, [outcome(FULL, 0, 91.0), other])


def test_rows_of_another_machine_keep_its_hardware_and_versions():
    theirs = {"hardware": "a loom", "versions": "gated_resnext 0.1.0, tensorflow 1"}
    text = ledger.markdown(TABLE, SETTING, [outcome(FULL, 0, 91.0, **theirs), outcome(K4, 0, 92.0, **theirs)])
    assert (
        "- versions: gated_resnext 0.1.0, tensorflow 1\n" in text
        and "- hardware: a loom, float32\n" in text
        and "alike" not in text
    )
    text = ledger.markdown(TABLE, SETTING, [outcome(FULL, 0, 91.0, **theirs), outcome(K4, 0, 92.0)])
    assert f"- versions: gated_resnext 0.1.0, tensorflow 1; {VERSIONS}\n" in text
    assert "- hardware: a loom; an abacus, float32\n" in text
    one, other = sorted(
        [
            f"gated_resnext 0.1.0, tensorflow, float32, {VERSIONS}, an abacus: `cifar10_20_4_8_k4` seed 0",
            "gated_resnext 0.1.0, tensorflow, float32, gated_resnext 0.1.0, tensorflow 1, a loom: "
            "`cifar10_20_4_8_full` seed 0",
        ]
    )
    assert f"- not all rows were trained alike: {one}; {other}\n" in text
    # Written once more elsewhere, it names those that trained alone.
    ours = outcome(K4, 0, 92.0, hardware="an abacus", versions=VERSIONS)
    again = ledger.markdown(TABLE, SETTING._replace(hardware="a laptop"), [outcome(FULL, 0, 91.0, **theirs), ours])
    assert "- hardware: a loom; an abacus, float32\n" in again and "laptop" not in again


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"version": "0.0.9"}, "gated_resnext 0.0.9, tensorflow, float32"),
        ({"backend": "jax"}, "gated_resnext 0.1.0, jax, float32"),
        ({"batch_norm_images": 32}, "gated_resnext 0.1.0, tensorflow, float32, batch norm over 32 images"),
        (
            {"rollbacks": 2, "batch_norm_images": 128},
            "gated_resnext 0.1.0, tensorflow, float32, 2 times back to a checkpoint and on at half the rate",
        ),
    ],
)
def test_what_the_header_would_hide_of_all_rows_is_told(changes, told):
    rows = [outcome(FULL, 0, 91.0, **changes), outcome(K4, 0, 92.0, **changes)]
    line = f"- trained by {told}: `cifar10_20_4_8_full` seed 0, `cifar10_20_4_8_k4` seed 0\n"
    assert line in ledger.markdown(TABLE, SETTING, rows)
    for name, value in changes.items():
        if name != "version":
            assert [row[name] for row in csv.DictReader(io.StringIO(ledger.csv_lines(SETTING, rows)))] == 2 * [
                f"{value}"
            ]


def test_one_seed_has_no_deviation():
    assert Spread.of([91.0]) == Spread(91.0, 91.0, None, 1)
    cells = lines(ledger.markdown(TABLE, SETTING, [outcome(FULL, 0, 91.0)]))[FULL.name]
    assert (cells["here: top-1"], cells["seeds"]) == ("91.00", "1 of 4")


def test_differences_are_of_the_seeds_in_both_and_measured_by_their_spread():
    first, second = FOUND[K4], {seed: top1 for seed, top1 in FOUND[FULL].items() if seed != 2}
    difference = Difference.of(first, second)
    a, b = (np.array([found[seed] for seed in (0, 1, 3)]) for found in (first, second))
    assert difference.seeds == 3
    assert difference.mean == pytest.approx(np.mean(a - b), rel=1e-12)
    assert difference.pooled == pytest.approx(math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2), rel=1e-12)
    assert Difference.of({0: 1.0}, {1: 1.0}) is None
    assert Difference.of({0: 2.0, 1: 3.0}, {0: 1.5}) == Difference(0.5, None, 1)


def test_the_lines_below_the_table_say_whether_a_difference_exceeds_the_spread():
    text = ledger.markdown(TABLE, SETTING, OUTCOMES)
    told = re.findall(
        r"^- `(\w+)` - `(\w+)`: (\S+) points over 4 seeds, which (exceeds|does not exceed) the", text, re.M
    )
    learned_full = np.mean([*FOUND[K4].values()]) - np.mean([*FOUND[FULL].values()])
    learned_random = np.mean([*FOUND[K4].values()]) - np.mean([*FOUND[RANDOM].values()])
    assert told == [
        (K4.name, FULL.name, f"{learned_full:+.2f}", "exceeds"),
        (K4.name, RANDOM.name, f"{learned_random:+.2f}", "does not exceed"),
    ]
    assert learned_random > 0
    one_seed = ledger.markdown(TABLE, SETTING, [outcome(K4, 0, 92.0), outcome(FULL, 0, 91.0)])
    assert "+1.00 points with one seed each, so the spread of the seeds is not known" in one_seed


def test_the_papers_numbers_stand_beside_ours_and_what_was_not_run_is_blank():
    found = lines(ledger.markdown(TABLE, SETTING, OUTCOMES))
    assert list(found) == [row.name for row in TABLE.rows]
    assert found[FULL.name]["paper: top-1"] == "91.39 (91.13 ± 0.11)"
    assert found[RANDOM.name]["paper: top-1"] == found[K1.name]["paper: top-1"] == ""
    assert [found[K1.name][column] for column in ("here: top-1", "seeds", "pruned", "epochs")] == [""] * 4
    assert found[FULL.name]["parameters"] == found[FULL.name]["pruned"] == "260,442"
    assert found[FULL.name]["epochs"] == "319.5 of 320" and found[FULL.name]["seconds a run"] == "3,600"
    assert found[K4.name]["gate entropy, nats"] == "1.500 of log 8 = 2.079"
    assert found[FULL.name]["gate entropy, nats"] == found[RANDOM.name]["gate entropy, nats"] == ""


def test_parameters_after_pruning_are_the_mean_over_the_seeds():
    actives = [(1, 1, 3, 4, 4, 8), (2, 2, 3, 5, 6, 8)]
    outcomes = [outcome(K1, seed, 90.0, active) for seed, active in enumerate(actives)]
    expected = np.mean([zoo.architecture(K1.name).parameters(active) for active in actives])
    assert lines(ledger.markdown(TABLE, SETTING, outcomes))[K1.name]["pruned"] == f"{expected:,.0f}"
    assert zoo.architecture(K1.name).parameters(actives[0]) == 190_842


def test_numbers_of_other_tables_say_whose_they_are():
    ablation = experiments.ablation("gates")
    found = lines(ledger.markdown(ablation, SETTING, []), ablation)
    assert found[K4.name]["paper: top-1"] == "92.85 (92.76 ± 0.10), Table 3"
    imagenet = experiments.table(2)
    full = imagenet.rows[0]
    found = lines(ledger.markdown(imagenet, SETTING, [outcome(full, 0, 77.0, [32] * 16)]), imagenet)
    assert found[full.name]["paper: top-1"] == "77.8; top-5 93.3"
    assert found[full.name]["here: top-1"] == "77.00; top-5 99.00"
    cifar100 = experiments.table(1)
    found = lines(ledger.markdown(cifar100, SETTING, []), cifar100)
    assert found["cifar100_29_8_8_k1"]["paper: parameters, M"] == "0.86 -> 0.65"


@pytest.mark.parametrize(
    "scale, limit, told",
    [
        (1.0, None, "Trained: the whole schedule, 320 epochs, on all training images."),
        (0.0075, None, "**Trained: 2.4 of the schedule's 320 epochs, on all training images. Not to be compared "),
        (1.0, 500, "**Trained: the whole schedule, 320 epochs, on the first 500 training images. Not to be compared "),
    ],
)
def test_a_short_schedule_cannot_be_read_as_the_papers(scale, limit, told):
    setting = SETTING._replace(recipe=WHOLE.scaled(scale), limit=limit)
    text = ledger.markdown(TABLE, setting, OUTCOMES)
    assert text.splitlines()[2].startswith(told)
    assert ("Not to be compared" in text) == (told.startswith("**"))


@pytest.mark.parametrize("recipe", [RECIPES["digits"], WHOLE.with_gate_rate(5)], ids=lambda recipe: recipe.name)
def test_another_schedule_cannot_either(recipe):
    text = ledger.markdown(TABLE, SETTING._replace(recipe=recipe), OUTCOMES)
    told = (
        f"**Trained: {recipe.epochs:g} epochs of another schedule, {recipe.name!r}, on all training images. Not to be "
    )
    assert text.splitlines()[2].startswith(told)
    assert lines(text)[FULL.name]["epochs"] == "319.5 of 320"


def test_the_header_tells_command_data_schedule_versions_and_hardware():
    setting = SETTING._replace(recipe=WHOLE.with_gate_rate(5).scaled(0.5))
    text = ledger.markdown(TABLE, setting, OUTCOMES)
    for part in (
        "# Table 3, cifar10\n",
        "- command: `python -m x --table=3`\n",
        "- runs: 12 of 64 ended; seeds 0 to 3\n",
        "- data: cifar10, 10,000 test images\n",
        "- schedule: cifar, gates at 5, batches of 128: 60 epochs at rate 0.1, gates at 5; 50 epochs at rate 0.1; ",
        "- batch norm: statistics of 128 images; the paper's are of 16 (docs/deviations.md, row 25)\n",
        f"- versions: {VERSIONS}\n",
        "- hardware: an abacus, float32\n",
        "that of a sample (n - 1), and blank for one seed",
    ):
        assert part in text, part


def test_before_a_run_ended_well_the_header_names_this_machine():
    text = ledger.markdown(TABLE, SETTING._replace(hardware=""), [Outcome(FULL, 0, None, diverged=7)])
    assert re.search(r"^- hardware: \d+ CPU cores, \w+", text, re.MULTILINE)


def test_a_data_set_that_is_not_the_papers_has_no_batch_norm_of_the_papers():
    digits, recipe = experiments.table(3, "optical_digits"), RECIPES["digits"]
    text = ledger.markdown(digits, SETTING._replace(recipe=recipe, whole=recipe), [])
    assert "batch norm" not in text and "batch norm: " in ledger.markdown(TABLE, SETTING, [])


def test_a_diverged_run_is_a_result():
    how = {"precision": "mixed_float16", "backend": "jax", "version": "0.2.0"}
    outcomes = [Outcome(FULL, 0, None, diverged=7), outcome(FULL, 1, 90.0), Outcome(K4, 0, None, diverged=12, how=how)]
    text = ledger.markdown(TABLE, SETTING, outcomes)
    found = lines(text)
    assert found[FULL.name]["here: top-1"] == "90.00; seed 0 diverged at step 7"
    assert found[FULL.name]["seeds"] == "2 of 4"
    assert found[K4.name]["here: top-1"] == "seed 0 diverged at step 12, in mixed_float16"
    assert found[K4.name]["pruned"] == found[K4.name]["epochs"] == ""
    assert "points" not in text
    rows = list(csv.DictReader(io.StringIO(ledger.csv_lines(SETTING, outcomes))))
    assert [(row["diverged_at_step"], row["top1"]) for row in rows] == [("7", ""), ("", "0.9"), ("12", "")]


def test_the_csv_has_a_line_a_run_with_all_digits():
    rows = list(csv.DictReader(io.StringIO(ledger.csv_lines(SETTING._replace(limit=500), OUTCOMES))))
    assert [(row["row"], int(row["seed"])) for row in rows] == [(one.row.name, one.seed) for one in OUTCOMES]
    for row, one in zip(rows, OUTCOMES, strict=True):
        assert float(row["top1"]) == one.result["top1"] and float(row["top5"]) == one.result["top5"]
        assert row["active_blocks"] == "8 8 8 8 8 8" and row["limit"] == "500" and row["diverged_at_step"] == ""
        assert int(row["parameters"]) == int(row["parameters_pruned"]) == 260_442
        assert (float(row["epochs"]), float(row["schedule_epochs"])) == (319.5, 320)
        assert row["gate_entropy"] == ("1.5" if one.row.wiring == "learned" else "")
        assert int(row["fan_in"]) == one.row.architecture.fan_in


def test_figures_tell_active_blocks_beside_those_of_random_wirings():
    figure = experiments.figure(4)
    k1 = figure.rows[0]
    actives = [(1, 2, 3, 4, 5, 6, 7, 8, 8), (3, 2, 3, 4, 5, 6, 7, 8, 8)]
    outcomes = [outcome(k1, seed, 70.0, active) for seed, active in enumerate(actives)]
    text = ledger.markdown(figure, SETTING, outcomes)
    told = [line.strip("| ").split(" | ") for line in text.split("means over the seeds:")[1].splitlines() if line]
    assert told[0] == ["network", *map(str, range(1, 10))]
    assert told[2] == [f"`{k1.name}`", "2.00", "2.00", "3.00", "4.00", "5.00", "6.00", "7.00", "8.00", "8.00"]
    drawn = np.mean([Connectivity.random(9, 8, 1, seed=seed).active_blocks for seed in range(100)], axis=0)
    assert told[3] == ["random, K = 1, 100 wirings", *(f"{mean:.2f}" for mean in drawn)]
    assert told[4][0] == "random, K = 4, 100 wirings" and len(told) == 5


@pytest.mark.parametrize(("number", "groups"), [(2, {"mean", "range", "seeds"}), (4, {"series-1", "series-2"})])
def test_a_figure_is_drawn_of_the_rows_that_ended(tmp_path, number, groups):
    figure = experiments.figure(number)
    outcomes = [outcome(row, seed, 70.0 + seed, (4,) * 9) for row in figure.rows[:2] for seed in range(2)]
    diverged = ledger.Outcome(figure.rows[-1], 2, None, diverged=7)
    part = SETTING._replace(recipe=WHOLE.scaled(0.0075))
    ledger.picture(figure, part, [*outcomes, diverged], tmp_path / "figure.svg")
    drawn = (tmp_path / "figure.svg").read_text()
    title = f"{figure.title}: 2.4 of the schedule's 320 epochs, on all training images"
    assert title in " ".join(Svg(tmp_path / "figure.svg").texts)
    assert {group for group in groups if f'id="{group}"' in drawn} == groups
    assert "series-3" not in drawn and ("fan-in K" in drawn) == (number == 2)
