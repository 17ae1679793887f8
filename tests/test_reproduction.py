"""Experiments run, stop anywhere, go on, and keep their ledger; on digits, a step a phase."""

import csv
import dataclasses
import functools
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from runs import assert_same_end

from gated_resnext import experiments, files, ledger, reproduction, trainer, workdir, zoo
from gated_resnext.connectivity import Connectivity
from gated_resnext.errors import UserError
from gated_resnext.recipes import RECIPES, Phase
from gated_resnext.workdir import Run

FULL, K1 = "digits_11_4_4_full", "digits_11_4_4_k1"
KEY = "table3_optical_digits"
RESULTS = pathlib.Path(__file__).parent.parent / "docs" / "results" / "README.md"
COMMAND = f"python -m gated_resnext.reproduce --table=3 --dataset=optical_digits --rows={FULL},{K1} --seeds=2"
# 640 images in batches of 64 are 10 steps an epoch; each phase is of one step.
SHORT = ["--epochs_scale=0.004", "--limit=640", "--checkpoint_seconds=0"]
RECIPE = RECIPES["digits"].scaled(0.004)
SETTING = ledger.Setting("", RECIPE, RECIPES["digits"], seeds=1, limit=640)


def arguments(digits_dir, output):
    return [*shlex.split(COMMAND)[1:], *SHORT, f"--data_dir={digits_dir}", f"--output={output}"]


def read(folder, key=KEY):
    """Rows of the CSV by (row, seed)."""
    with open(folder / f"{key}.csv", encoding="utf-8", newline="") as file:
        return {(row["row"], int(row["seed"])): row for row in csv.DictReader(file)}


def stopped_at(moment, number, command, log):
    """Runs a command until what it printed matches, then sends it a signal; its exit status and what it printed."""
    path = os.pathsep.join(path for path in sys.path if path)
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "2"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 600
        while not re.search(moment, log.read_text(), re.DOTALL):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        process.send_signal(number)
        return process.wait(timeout=60), log.read_text()
    finally:
        process.kill()


@pytest.fixture(scope="module")
def reproduced(digits_dir, tmp_path_factory, run_python):
    """The folder of a table killed in its second run, terminated in its third and then finished; and what happened."""
    folder = tmp_path_factory.mktemp("reproduced")
    output = folder / "output"
    command, found = arguments(digits_dir, output), {}
    moments = {
        "killed": (rf"Run 2 of 4: {K1}, seed 0.*Phase 2 of 4", signal.SIGKILL),
        "terminated": (rf"Run 3 of 4: {FULL}, seed 1.*Phase 1 of 4", signal.SIGTERM),
    }
    for name, (moment, number) in moments.items():
        status, printed = stopped_at(moment, number, command, folder / name)
        known = {path.parent.name for path in output.glob("*/*/trained_on.json")}
        found[name] = {
            "status": status,
            "printed": printed,
            "machines": known,
            "csv": (output / f"{KEY}.csv").read_text(),
        }
        found[name]["markdown"] = (output / f"{KEY}.md").read_text()
    for name in ("finished", "again"):
        done = run_python(*command, *{"finished": [], "again": ["--hardware=another"]}[name])
        assert done.returncode == 0, done.stderr
        found[name] = {"printed": done.stdout, "csv": (output / f"{KEY}.csv").read_text()}
        found[name]["markdown"] = (output / f"{KEY}.md").read_text()
    return output, found


@pytest.mark.slow
def test_a_killed_table_keeps_what_had_ended(reproduced):
    _, found = reproduced
    assert found["killed"]["status"] == -signal.SIGKILL
    assert found["killed"]["csv"].count("\n") == 2 and f"{FULL},optical_digits,full,4,0," in found["killed"]["csv"]
    assert "- runs: 1 of 4 ended" in found["killed"]["markdown"]
    assert "Run 1 of 4" not in found["terminated"]["printed"]


@pytest.mark.slow
def test_sigterm_ends_it_with_status_0_and_the_same_command_finishes(reproduced):
    _, found = reproduced
    assert found["terminated"]["status"] == 0, found["terminated"]["printed"]
    assert "Traceback" not in found["terminated"]["printed"]
    assert "- runs: 2 of 4 ended" in found["terminated"]["markdown"]
    printed = found["finished"]["printed"]
    assert re.findall(r"^Run (\d) of 4: (\w+), seed (\d); about \d+ min left for all runs$", printed, re.M) == [
        ("3", FULL, "1"),
        ("4", K1, "1"),
    ]
    assert "Table 3 on optical_digits: 4 runs ended, 0 of them diverged" in printed
    assert "- runs: 4 of 4 ended" in found["finished"]["markdown"]


@pytest.mark.slow
def test_once_more_trains_nothing_and_writes_the_same(reproduced):
    _, found = reproduced
    assert "Run " not in found["again"]["printed"] and "Phase" not in found["again"]["printed"]
    for kind in ("csv", "markdown"):
        assert found["again"][kind] == found["finished"][kind]


@pytest.mark.slow
def test_the_ledger_is_what_the_workdirs_say(reproduced):
    output, found = reproduced
    rows = read(output)
    assert list(rows) == [(FULL, 0), (FULL, 1), (K1, 0), (K1, 1)]
    results = {key: files.read_json(output / KEY / f"{key[0]}-{key[1]}" / "result.json") for key in rows}
    for key, row in rows.items():
        for name in ("top1", "top5", "seconds", "epochs", "steps", "test_images", "parameters_pruned", "parameters"):
            assert float(row[name]) == results[key][name], name
        assert (row["limit"], row["test_images"], float(row["epochs"])) == ("640", "360", row_epochs(results[key]))
    for name in (FULL, K1):
        top1 = np.array([100 * results[name, seed]["top1"] for seed in (0, 1)])
        cell = f"| {top1.max():.2f} ({top1.mean():.2f} ± {top1.std(ddof=1):.2f}) | 2 of 2 |"
        [line] = [line for line in found["finished"]["markdown"].splitlines() if line.startswith(f"| `{name}`")]
        assert cell in line
    gates = [files.read_arrays(output / KEY / f"{K1}-{seed}" / "gates.npz") for seed in (0, 1)]
    for seed, of_run in enumerate(gates):
        entropies = [-(g * np.log(np.where(g > 0, g, 1))).sum(-1).mean() for g in of_run.values()]
        assert float(rows[K1, seed]["gate_entropy"]) == pytest.approx(np.mean(entropies), abs=1e-4)
    assert rows[FULL, 0]["gate_entropy"] == ""


def row_epochs(result):
    return round(result["steps"] / 10, 3)


@pytest.mark.slow
def test_the_header_names_the_command_and_no_folder(reproduced, digits_dir):
    output, found = reproduced
    text = found["finished"]["markdown"]
    expected = f"{COMMAND} --epochs_scale=0.004 --limit=640"
    assert f"- command: `{expected}`\n" in text
    assert str(output) not in text and str(digits_dir) not in text
    assert text.splitlines()[2].startswith("**Trained: 0.256 of the schedule's 64 epochs, on the first 640 training")


@pytest.mark.slow
def test_each_run_names_the_machine_it_was_trained_on(reproduced):
    output, found = reproduced
    assert found["killed"]["machines"] == {f"{FULL}-0", f"{K1}-0"}
    assert "another" not in found["again"]["markdown"]
    (machine,) = files.read_json(output / KEY / f"{K1}-1" / "trained_on.json")
    assert (
        f"- versions: {machine['versions']}\n- hardware: {machine['hardware']}, float32\n" in found["again"]["markdown"]
    )
    place = output.parent / "moved" / f"{K1}-1"
    shutil.copytree(output / KEY / f"{K1}-1", place)
    workdir.note_machine(place, "", "another")
    workdir.note_machine(place, "", "another")
    assert workdir.machines(place) == [machine, {"versions": "", "hardware": "another"}]


@pytest.mark.slow
def test_a_run_among_others_ends_in_the_bytes_of_one_alone(reproduced, digits_dir, tmp_path):
    output, _ = reproduced
    [row] = [row for row in experiments.table(3, "optical_digits").rows if row.name == K1]
    trainer.train(row.run(RECIPE, seed=1, limit=640), tmp_path / "alone", data_dir=digits_dir, checkpoint_s=0)
    assert_same_end(output / KEY / f"{K1}-1", tmp_path / "alone")


def test_the_page_of_results_has_this_command():
    if not RESULTS.is_file():
        pytest.skip("docs/ is in the checkout only, and this is the installed package")
    blocks = re.findall(r"^```bash\n(.*?)^```$", RESULTS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks == [f"{COMMAND}\n"]
    checkout = (RESULTS.parents[2] / "setup.py").is_file()  # else some links lead out of docs/
    for link in re.findall(r"\]\(([^)#:]+)\)", RESULTS.read_text(encoding="utf-8")):
        assert (RESULTS.parent / link).exists() or (link.startswith("../../") and not checkout), link


LEDGERS = sorted(path for path in RESULTS.parent.glob("*.md") if path != RESULTS)


@pytest.mark.parametrize("path", LEDGERS, ids=lambda path: path.stem)
def test_a_committed_ledger_is_what_its_runs_say(path):
    assert f"]({path.name})" in RESULTS.read_text(encoding="utf-8"), "it is not in the list"
    text = path.read_text(encoding="utf-8")
    assert re.search(r"^- command: `python -m gated_resnext\.reproduce --\w+=", text, re.MULTILINE)
    runs = read(path.parent, path.stem)
    for row in dict.fromkeys(row for row, _ in runs):
        top1 = [100 * float(run["top1"]) for (name, _), run in runs.items() if name == row and run["top1"]]
        [line] = [line for line in text.splitlines() if line.startswith(f"| `{row}` |")]
        if len(top1) > 1:
            assert f"| {np.max(top1):.2f} ({np.mean(top1):.2f} ± {np.std(top1, ddof=1):.2f})" in line
        elif top1:
            assert f"| {top1[0]:.2f} |" in line or f"| {top1[0]:.2f};" in line
        for name, told in (
            ("parameters_pruned", "| {:,.0f} |"),
            ("epochs", "| {:.4g} of "),
            ("gate_entropy", "| {:.3f} of log "),
            ("seconds", "| {:,.0f} |"),
        ):
            values = [float(run[name]) for (of, _), run in runs.items() if of == row and run[name]]
            assert not values or told.format(np.mean(values)) in line
    for run in runs.values():
        another = f"another schedule, {run['recipe']!r}, on" in text
        assert another == (run["recipe"] != zoo.DATASETS[run["dataset"]].recipe)
    pairs = re.findall(r"^- `(\w+)` - `(\w+)`: (\S+) points (.*)$", text, re.MULTILINE)
    for first, second, told, more in pairs:
        of = [{seed: 100 * float(run["top1"]) for (row, seed), run in runs.items() if row == name}
              for name in (first, second)]  # fmt: skip
        seeds = sorted(of[0].keys() & of[1].keys())
        a, b = (np.array([each[seed] for seed in seeds]) for each in of)
        assert told == f"{a.mean() - b.mean():+.2f}"
        if len(seeds) > 1:
            pooled = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
            exceeds = "exceeds" if abs(a.mean() - b.mean()) > pooled else "does not exceed"
            assert more.startswith(f"over {len(seeds)} seeds, which {exceeds} ") and f"({pooled:.2f}, " in more


# Workdirs of other making


def test_a_workdir_of_the_train_command_is_taken_over(trained, digits_dir, tmp_path, run_python):
    for place in (tmp_path / "at_its_place" / KEY, tmp_path / "in_the_folder"):
        shutil.copytree(trained, place / f"{K1}-0")
    flags = ["--table=3", "--dataset=optical_digits", f"--rows={K1}", "--seeds=1", "--epochs_scale=0.03"]
    for name in ("at_its_place", "in_the_folder"):
        done = run_python(
            "-m", "gated_resnext.reproduce", *flags, f"--output={tmp_path / name}", "--hardware=an abacus"
        )
        assert done.returncode == 0, done.stderr
        assert "Run " not in done.stdout
        row = read(tmp_path / name)[K1, 0]
        assert float(row["top1"]) == files.read_json(trained / "result.json")["top1"] and row["limit"] == ""
        text = (tmp_path / name / f"{KEY}.md").read_text()  # the function `train` knows no machine, the command does
        assert "- hardware: not recorded, float32\n" in text and "abacus" not in text
    assert Run.read(tmp_path / "at_its_place" / KEY / f"{K1}-0").limit is None


@pytest.mark.slow
def test_devices_and_precision_are_those_asked_for(digits_dir, tmp_path, run_python):
    flags = ["--table=3", "--dataset=optical_digits", f"--rows={FULL}", "--seeds=1", "--epochs_scale=0.001"]
    flags += ["--limit=64", "--precision=mixed_bfloat16", "--strategy=mirrored", "--nosync_batch_norm"]
    done = run_python(
        "-m", "gated_resnext.reproduce", *flags, f"--output={tmp_path}", f"--data_dir={digits_dir}",
        env={"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read(tmp_path)[FULL, 0]["precision"] == "mixed_bfloat16"
    text = (tmp_path / f"{KEY}.md").read_text()
    assert ", mixed_bfloat16\n" in text and "--precision=mixed_bfloat16" in text and "--strategy=mirrored" in text


@pytest.fixture(scope="module")
def ablated(reproduced, digits_dir):
    """Every ablation in the folder of the table, which has one of their rows; what was told of each."""
    output, _ = reproduced
    told = {}
    for name in experiments.ABLATIONS:
        said = told[name] = []
        experiment = experiments.ablation(name, "optical_digits")
        outcomes = reproduction.reproduce(experiment, SETTING, output, data_dir=digits_dir, say=said.append)
        assert [one.row for one in outcomes] == list(experiment.rows)
    return output, told


@pytest.mark.slow
def test_every_ablation_trains_what_no_experiment_before_has(ablated):
    output, told = ablated
    runs = {name: [re.search(r": (\w+), seed 0", line)[1] for line in said] for name, said in told.items()}
    assert runs == {
        "gates": ["digits_11_4_4_k2", "digits_11_4_4_real"],
        "aggregation": ["digits_11_4_4_k2_sum"],
        "random": ["digits_11_4_4_random_k1", "digits_11_4_4_random_k2"],
    }
    for name, rows in runs.items():
        key = f"ablation_{name}_optical_digits"
        assert sorted(path.name for path in (output / key).iterdir()) == sorted(f"{row}-0" for row in rows)
        assert len(read(output, key)) == len(experiments.ablation(name, "optical_digits").rows)
        assert "points with one seed each" in (output / f"{key}.md").read_text()


@pytest.mark.slow
def test_ablations_train_what_they_say(ablated):
    output, _ = ablated
    real = Run.read(output / "ablation_gates_optical_digits" / "digits_11_4_4_real-0")
    assert real.architecture.gates == "real" and real.limit == 640
    assert read(output, "ablation_gates_optical_digits")["digits_11_4_4_real", 0]["active_blocks"] == "4 4 4"
    summed = Run.read(output / "ablation_aggregation_optical_digits" / "digits_11_4_4_k2_sum-0")
    assert summed.architecture.aggregation == "sum"
    random = files.read_json(output / "ablation_random_optical_digits" / "digits_11_4_4_random_k1-0" / "result.json")
    assert Connectivity.from_dict(random["connectivity"]) == Connectivity.random(3, 4, 1, seed=0)


def test_a_loss_that_is_not_finite_is_a_result_and_is_not_tried_again(digits_dir, tmp_path):
    experiment = reproduction.chosen(experiments.table(3, "optical_digits"), [FULL])
    recipe = dataclasses.replace(RECIPES["digits"], name="wild", phases=(Phase(0.5, 1e30), Phase(0.5, 1e30)))
    setting, said = ledger.Setting("", recipe, recipe, seeds=1), []
    for _ in range(2):
        [outcome] = reproduction.reproduce(experiment, setting, tmp_path, data_dir=digits_dir, say=said.append)
    # The first step's loss is that of the initial weights, the second's of weights beyond all measure.
    assert outcome.result is None and outcome.diverged == 2
    assert len(said) == 2 and said[0].startswith("\nRun 1 of 1") and "at step 2" in said[1]
    assert f"| `{FULL}` " in (tmp_path / f"{KEY}.md").read_text()
    assert "seed 0 diverged at step 2" in (tmp_path / f"{KEY}.md").read_text()
    told = read(tmp_path)[FULL, 0]
    assert (told["diverged_at_step"], told["backend"], told["precision"]) == ("2", "tensorflow", "float32")


@pytest.mark.slow
def test_a_diverged_run_can_be_gone_on_with(digits_dir, tmp_path):
    experiment = reproduction.chosen(experiments.table(3, "optical_digits"), [FULL])
    recipe = dataclasses.replace(RECIPES["digits"], name="wild", phases=(Phase(0.1, 1e6), Phase(0.1, 0.1)))
    setting, said = ledger.Setting("", recipe, recipe, seeds=1, hardware="an abacus"), []
    run = functools.partial(reproduction.reproduce, experiment, setting, tmp_path, data_dir=digits_dir, say=said.append)
    [outcome] = run(options=lambda: {"checkpoint_s": 0.0})
    assert outcome.diverged
    place = tmp_path / KEY / f"{FULL}-0"
    kept = files.read_json(place / "diverged.json")
    assert kept["backend"] == "tensorflow" and kept["precision"] == "float32" and kept["version"]
    [outcome] = run(again=True, options=lambda: {"checkpoint_s": 0.0, "on_nan": "rollback"})
    assert len(said) == 4 and "Run 1 of 1" in said[2], "it was tried again"
    # A result beside it is the one that counts, in its place or in another of the same run.
    shutil.copytree(place, tmp_path / place.name)
    result = {"top1": 0.5, "top5": 0.9, "epochs": 1, "seconds": 1, "test_images": 360}
    result |= {"parameters": 93_754, "parameters_pruned": 93_754, "blocks": [4, 4, 4], "active_blocks": [4, 4, 4]}
    files.write_json(tmp_path / place.name / "result.json", result)
    [outcome] = run()
    assert outcome.diverged is None and outcome.result["top1"] == 0.5
    assert outcome.result["hardware"] == "an abacus"


@pytest.mark.slow
def test_a_run_that_another_command_trained_meanwhile_is_taken_over(reproduced, tmp_path):
    output, _ = reproduced
    experiment = reproduction.chosen(experiments.table(3, "optical_digits"), [FULL, K1])

    def meanwhile():  # before the first run trains, somebody else ends both
        for name in (FULL, K1):
            shutil.copytree(output / KEY / f"{name}-0", tmp_path / KEY / f"{name}-0", dirs_exist_ok=True)
        return {}

    said, trained_ones = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train", lambda run, *rest, **more: trained_ones.append(run.entry))
        found = reproduction.reproduce(experiment, SETTING, tmp_path, options=meanwhile, say=said.append)
    assert trained_ones == [FULL] and len(found) == 2, "the second was not begun"


def test_a_figure_needs_matplotlib_before_it_trains(run_python, tmp_path):
    code = """
        import importlib.util, runpy, sys
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "matplotlib" else find(name, *rest)
        sys.argv = ["reproduce", "--figure=2", "--dataset=cifar10", "--data_dir=nowhere"]
        runpy.run_module("gated_resnext.reproduce", run_name="__main__")
    """
    done = run_python("-c", textwrap.dedent(code), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: a picture needs matplotlib: pip install matplotlib"
    assert list(tmp_path.iterdir()) == []


# Mistakes

BASE = ["--table=3", "--dataset=optical_digits"]
MISTAKES = {
    "nothing": ([], "--ablation, or, to compare wirings, --image_folder or --dataset. Received: none"),
    "two": (["--table=3", "--figure=2"], "Received: --table=3 and --figure=2"),
    "no table": (["--table=5"], "value should be one of <1|2|3|4>"),
    "no ablation": (["--ablation=momentum"], "value should be one of <gates|aggregation|random>"),
    "no data set": (["--table=3", "--dataset=mnist"], "and a small network for optical_digits. Received: 'mnist'"),
    "no row": ([*BASE, "--rows=cifar10_*"], f"Table 3 has the rows {FULL}, "),
    "an empty row": ([*BASE, "--rows="], f"Table 3 has the rows {FULL}, "),
    "no seed": ([*BASE, "--seeds=0"], "seeds"),
    "no epochs": ([*BASE, "--epochs_scale=0"], "epochs_scale must be above 0. Received: 0.0"),
    "no images": ([*BASE, "--limit=0"], "limit"),
    "too many images": ([*BASE, "--limit=1438"], "limit must be between 1 and the 1,437 training images"),
    "fewer than a batch": ([*BASE, "--limit=63"], "63 training images, fewer than the batch of 64"),
    "no seconds": ([*BASE, "--checkpoint_seconds=nan"], "checkpoint_seconds must be 0 or more. Received: nan"),
    "no rate": ([*BASE, "--gate_learning_rate=0"], "gate_learning_rate must be above 0. Received: 0.0"),
    "endless rate": ([*BASE, "--gate_learning_rate=inf"], "--gate_learning_rate: phase 1 needs"),
    "no recipe": ([*BASE, "--recipe=adam"], "recipe must be one of cifar, "),
    "recipe of other images": ([*BASE, "--recipe=imagenet"], "is trained on crops of the kind 'pad'"),
    "another limit": ([*BASE, f"--rows={K1}", "--epochs_scale=0.03", "--limit=640", "--output={taken}"],
                      "(limit is None there and 640 here); choose another --output"),
    "another schedule": ([*BASE, f"--rows={K1}", "--output={taken}"],
                         "(recipe is digits of 1.92 epochs there and digits of 64 epochs here); choose another"),
    "another rate": ([*BASE, f"--rows={K1}", "--epochs_scale=0.03", "--gate_learning_rate=5", "--output={taken}"],
                     "and digits, gates at 5 of 1.92 epochs here); choose another --output"),
    "several machines": ([*BASE, "--strategy=multi_worker"], "reproduce trains on one machine: give --strategy="),
    "no such strategy": ([*BASE, "--strategy=tpus"], "strategy must be one of auto, one_device, mirrored"),
    "no such precision": ([*BASE, "--precision=float8"],
                          "precision must be one of float32, mixed_bfloat16, mixed_float16. Received: 'float8'"),
    "no result": ([*BASE, f"--rows={FULL}", "--epochs_scale=0.03", "--seeds=1", "--output={damaged}"],
                  "result.json holds no result; delete it"),
    "no step": ([*BASE, f"--rows={K1}", "--epochs_scale=0.03", "--seeds=1", "--output={damaged}"],
                "diverged.json names no step; delete it"),
}  # fmt: skip


@pytest.fixture(scope="module")
def mistaken(trained, digits_dir, tmp_path_factory):
    """What every mistake ended in, in one process: status and the lines of its errors; and the folder."""
    folder = tmp_path_factory.mktemp("mistaken")
    places = {name: folder / name for name in ("taken", "damaged")}
    shutil.copytree(trained, places["taken"] / KEY / f"{K1}-0")
    runs = {
        row.name: row.run(RECIPES["digits"].scaled(0.03), seed=0) for row in experiments.table(3, "optical_digits").rows
    }
    for name, file in ((FULL, "result.json"), (K1, "diverged.json")):
        files.write_json(places["damaged"] / KEY / f"{name}-0" / "run.json", runs[name].to_dict())
        files.write_json(places["damaged"] / KEY / f"{name}-0" / file, [])
    cases = {name: [flag.format(**places) for flag in flags] for name, (flags, _) in MISTAKES.items()}
    files.write_json(folder / "cases.json", cases)
    code = f"""
import contextlib, io, json
from absl import flags
from gated_resnext import errors, reproduce
import sys
found = {{}}
for name, arguments in json.load(open("cases.json")).items():
    for module in ("gated_resnext.reproduce", "gated_resnext.training_flags"):
        for flag in flags.FLAGS.flags_by_module_dict()[module]:
            flag.unparse()
    flags.FLAGS.unparse_flags()
    err = io.StringIO()
    sys.argv = ["reproduce", "--output=none", "--data_dir={digits_dir}", *arguments]
    with contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
        errors.run(reproduce.main)
    found[name] = err.getvalue()
json.dump(found, open("found.json", "w"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return folder, files.read_json(folder / "found.json")


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(mistaken, name):
    _, found = mistaken
    [line] = [line for line in found[name].splitlines() if line.startswith("error: ")]
    assert MISTAKES[name][1] in line
    assert "Traceback" not in found[name]


def test_mistakes_leave_nothing(mistaken, trained):
    folder, _ = mistaken
    assert sorted(path.name for path in folder.iterdir()) == ["cases.json", "damaged", "found.json", "taken"]
    assert [path.name for path in (folder / "taken").iterdir()] == [KEY]
    assert Run.read(folder / "taken" / KEY / f"{K1}-0") == Run.read(trained)


def test_a_workdir_of_another_limit_is_refused(trained, tmp_path):
    run = dataclasses.replace(Run.read(trained), limit=5)
    assert Run.read(trained).limit is None and "limit" not in files.read_json(trained / "run.json")
    with pytest.raises(UserError, match=r"\(limit is None there and 5 here\); choose another --workdir"):
        workdir.check(run, trained)
    files.write_json(tmp_path / "run.json", run.to_dict())
    assert Run.read(tmp_path) == run
