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


def test_export_latency(run_python, tmp_path):
    flags = ("--entries=digits_11_4_4_k2", "--batches=1", "--rounds=1", f"--markdown={tmp_path / 'table.md'}")
    done = run_python("-m", "benchmarks.export_latency", *flags, f"--json={tmp_path / 'found.json'}")
    assert done.returncode == 0, done.stderr
    (network,) = json.loads((tmp_path / "found.json").read_text())["networks"]
    assert network["wiring"] == "random, seed 0" and network["counts"]["unpruned"][0] == 93_754
    assert set(network["ms"]["1"]) == {"unpruned", "compact", "compact_tflite", "resnext", "resnext_tflite"}
    assert (tmp_path / "table.md").read_text().count("`digits_11_4_4_k2`") == 6
