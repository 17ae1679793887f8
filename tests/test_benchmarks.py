"""The benchmarks run; what they measure is not a test's business."""

import importlib.util
import json

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("benchmarks") is None, reason="benchmarks/ is in the checkout only"
)


def test_conv3x3(run_python, tmp_path):
    flags = ("--stages=3", "--widths=4", "--blocks=2", "--read=each", "--batches=1", "--rounds=1")
    done = run_python("-m", "benchmarks.conv3x3", *flags, f"--json={tmp_path / 'found.json'}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["runtime"] for row in found["rows"]] == ["tensorflow", "tflite"]
    assert list(found["rows"][0]["ms"]) == ["split", "grouped", "merged", "bundled"] and found["machine"]["cores"]
    assert len(done.stdout.splitlines()) == 3


def test_weighted(run_python, tmp_path):
    flags = ("--sums=weighted", "--wirings=random", "--seeds=2", "--epochs_scale=0.004")
    done = run_python("-m", "benchmarks.weighted", *flags, f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    row = [cell.strip() for cell in done.stdout.splitlines()[-1].split("|")]
    assert row[1:3] == ["weighted", "random"] and row[5] == "93,786"
    assert (tmp_path / "weighted_random_1" / "result.json").is_file()


def test_dense(run_python):
    flags = ("--layers=3", "--growth=4", "--fan_in=1", "--transition_fan_in=1", "--seeds=2", "--epochs_scale=0.01")
    done = run_python("-m", "benchmarks.dense", *flags)
    assert done.returncode == 0, done.stderr
    full, learned, random = (line.split("|") for line in done.stdout.splitlines()[-3:])
    sizes = [[int(cell.replace(",", "")) for cell in (row[4], *row[5].split(", "))] for row in (full, learned, random)]
    assert sizes[0][0] == sizes[0][1] == sizes[1][0] > max(sizes[1][1:]) and sizes[2][0] >= max(sizes[2][1:])
    done = run_python("-m", "benchmarks.dense", "--images=7")
    assert done.returncode == 1 and done.stderr.endswith("error: images must be 64 to 1437. Received: 7\n")


def test_gate_gradient(run_python):
    done = run_python("-m", "benchmarks.gate_gradient", "--batch=1", "--rounds=1")
    assert done.returncode == 0, done.stderr
    forms = [line.split(" | ")[0] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert forms[:3] == ["| form", "| one product", "| two halves of the rows"] and "| reading both" in forms


def test_export_latency(run_python, tmp_path):
    flags = ("--entries=digits_11_4_4_k2", "--batches=1", "--rounds=1", f"--markdown={tmp_path / 'table.md'}")
    done = run_python("-m", "benchmarks.export_latency", *flags, f"--json={tmp_path / 'found.json'}")
    assert done.returncode == 0, done.stderr
    (network,) = json.loads((tmp_path / "found.json").read_text())["networks"]
    assert network["wiring"] == "random, seed 0" and network["counts"]["unpruned"][0] == 93_754
    assert set(network["ms"]["1"]) == {"unpruned", "compact", "compact_tflite", "resnext", "resnext_tflite"}
    assert (tmp_path / "table.md").read_text().count("`digits_11_4_4_k2`") == 6


def test_gated_branches(run_python, digits_dir):
    flags = ("--modules=2", "--channels=2", "--epochs=1,1", "--train_images=64", "--test_images=32", "--seeds=2")
    done = run_python(
        "-m", "benchmarks.gated_branches", *flags, f"--data_dir={digits_dir}", "--wirings=full;learned, K = 1"
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["| wiring", "| full", "| learned, K = 1"]
    entropy = float(rows[2][-1].removesuffix(" |"))
    assert rows[1][4] == "4.0 of 4" and 1.0 < entropy < 1.3863  # log 4
    assert int(rows[2][3].replace(",", "")) < int(rows[1][3].replace(",", "")) == int(rows[1][2].replace(",", ""))
