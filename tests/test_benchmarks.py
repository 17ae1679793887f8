"""The benchmarks run; what they measure is not a test's business, what they count is."""

import importlib.util
import json
import re

import numpy as np
import pytest
import tensorflow as tf

from gated_resnext import zoo

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("benchmarks") is None, reason="benchmarks/ is in the checkout only"),
]


def kept(path):
    """The benchmarks of a file, by name."""
    pyperf = pytest.importorskip("pyperf", reason="pyperf is not installed")
    return {found.get_name(): found for found in pyperf.BenchmarkSuite.load(str(path)).get_benchmarks()}


def test_training(run_python, tmp_path):
    flags = ("--networks=8-4", "--batches=1", "--rounds=2", "--steps=1", "--peers=")
    left_out = "--leave_out=remat,bfloat16,XLA,frozen,pruned,K=1"
    done = run_python("-m", "benchmarks.training", left_out, *flags, f"--json={tmp_path / 'found.json'}")
    assert done.returncode == 0, done.stderr
    found = kept(tmp_path / "found.json")
    step = found["{8,4,8} learned K=4, batch 1, train"]
    assert len(step.get_values()) == 2 and step.get_metadata()["mem_max_rss"] > 2**28 and len(found) == 4
    assert step.get_metadata()["kind"] == "learned" and step.get_metadata()["copy_bytes_per_s"] > 1e8
    assert f"| learned K=4 | {1 / step.median():.1f} |" in done.stdout


SIDES = """
import json
from absl import flags
from benchmarks import training

calls = []

class Recorded:
    peak = 0

    def __init__(self, spec):
        self.spec = spec

    def take(self, what, count):
        options = [self.spec.get(name) for name in ("remat", "precision", "jit_compile")]
        calls.append([what, count, self.spec["kind"], self.spec["fan_in"], *options])
        return float(len(calls))

    def close(self):
        calls.append("closed")

training.Side = Recorded
flags.FLAGS(["", "--rounds=2", "--steps=3"])
found = training.measured("20-4", 32)
print(json.dumps([calls, found["seconds"]["train"]]))
"""


def test_the_sides_take_turns(run_python):
    done = run_python("-c", SIDES)
    assert done.returncode == 0, done.stderr
    calls, train = json.loads(done.stdout)
    taken, ends = calls[:44], calls[44:]
    assert ends == ["closed"] * 11
    sides = [call[2:] for call in taken[:11]]
    assert len({str(side) for side in sides}) == 11
    assert taken == [[what, 3, *side] for _ in range(2) for what in ("train", "infer") for side in sides]
    assert list(train.values()) == [[float(place), float(place + 22)] for place in range(1, 12)]


def rows_of(text):
    """The cells of the tables in a text."""
    return [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| ") and "---" not in line
    ]


def test_wide_passes_are_those_of_theory(run_python):
    """What a step moves in TensorFlow's graph beside what it must: a pass more anywhere is seen here."""
    if not tf.__version__.startswith("2.21."):
        pytest.skip(f"the passes are those of TensorFlow 2.21's graph optimizer. Here is {tf.__version__}")
    done = run_python("-m", "benchmarks.wide_passes")
    assert done.returncode == 0, done.stderr
    rows = rows_of(done.stdout)
    theory, fact = (row for row in rows if "all" in row)
    assert theory[-1] == "23 in all" and fact == ["all", "23 in all", "29 in all", "21 in all"]
    needed = [(name, int(read) + int(wrote)) for _, name, read, wrote, _ in rows[1 : rows.index(theory)]]
    assert sum(passes for _, passes in needed) == 23 and dict(needed)["gates"] == 23 - 21


ACCOUNT = """
from benchmarks.memory import WAYS, account
from gated_resnext import zoo
from gated_resnext.architecture import Architecture

gib = {name: account(zoo.architecture("imagenet_50_4_32_k16"), 32, **way) / 1e9 for name, way in WAYS.items()}
assert gib["bfloat16, remat"] < 24, gib
assert gib["float32"] > gib["float32, remat"] > gib["bfloat16, remat"] and gib["float32"] > gib["bfloat16"], gib

# Two modules of two blocks, of 4x4 pixels and 6 channels, 3 narrow; 5 images: by hand.
arch = Architecture(8, 3, 2, 1, input_shape=(4, 4, 3), classes=7, stem_filters=5, filters=6, stages=(2,))
pixels = 5 * 4 * 4 * 2
for name, size in (("float32", 4), ("mixed_bfloat16", 2)):
    for remat in (False, True):
        kept = (1 if remat else 2) * size * pixels * 6 + 2 * 4 * 3 * 6 * pixels
        expected = kept + 4 * size * pixels * 6 + 12 * arch.parameters()
        assert account(arch, 5, name, remat) == expected, (name, remat, account(arch, 5, name, remat), expected)
print("ok")
"""


def test_memory(run_python):
    done = run_python("-c", ACCOUNT)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
    done = run_python("-m", "benchmarks.memory", "--small_batches=1", "--large_batches=", "--device_batches=32")
    assert done.returncode == 0, done.stderr
    rows = rows_of(done.stdout)
    assert [len(row) for row in rows] == [5] * 4 and [row[0] for row in rows[1::2]] == ["batch 1", "batch 32"]
    measured = [float(cell.split()[0]) for cell in rows[1][1:]]
    assert min(measured) > 0.01


def test_settings(run_python):
    done = run_python("-m", "benchmarks.settings", "--batches=1", "--nopeer", "--rounds=1", "--steps=1")
    assert done.returncode == 0, done.stderr
    found = rows_of(done.stdout)
    networks = ["learned K=4, batch 1", "full, batch 1"]
    assert [row[0] for row in found] == 2 * ["{20,4,8}", *networks]
    assert [head[2] for head in found[::3]] == ["kept", "oneDNN's"]
    for row in (row for row in found if row[0] in networks):
        for without, told, ratio in (map(float, row[1:4]), map(float, row[4:7])):
            assert ratio == pytest.approx(told / without, abs=0.01 + ratio * (0.06 / without + 0.06 / told))


def test_imports(run_python):
    done = run_python("-m", "benchmarks.imports", "--rounds=1")
    assert done.returncode == 0, done.stderr
    assert "keras 3." in done.stdout and "Medians of 1 turns" in done.stdout
    seconds = {name: float(cell) for name, cell in rows_of(done.stdout)[1:]}
    assert seconds["nothing"] < seconds["`gated_resnext`"] < seconds["`keras`"] and len(seconds) == 5


def test_input_pipeline(run_python, digits_dir):
    flags = ("--datasets=optical_digits", f"--data_dir={digits_dir}", "--steps=3", "--rounds=1")
    done = run_python("-m", "benchmarks.input_pipeline", *flags)
    assert done.returncode == 0, done.stderr
    name, batch, alone, trained, ratio = rows_of(done.stdout)[1]
    assert (name, batch) == ("optical_digits", "64")
    alone, trained = (float(cell.replace(",", "")) for cell in (alone, trained))
    off = 0.06 + alone / trained * (0.6 / alone + 0.6 / trained)  # each is rounded
    assert float(ratio) == pytest.approx(alone / trained, abs=off)


def test_export_profile(run_python):
    done = run_python("-m", "benchmarks.export_profile", "--entry=digits_11_4_4_k1", "--batch=1", "--rounds=1")
    assert done.returncode == 0, done.stderr
    rows = rows_of(done.stdout)
    assert "(published wiring), batch 1, one thread." in done.stdout and rows[-1][0] == "all"
    assert all(0 < int(rows[-1][column]) < 500 for column in (2, 4))


def test_accelerator(run_python, tmp_path):
    pytest.importorskip("jax", reason="JAX is not installed")
    flags = ("--networks=11-4", "--batch=2", "--rounds=1", "--steps=1", "--mebi=1", "--precision=float32", "--profile")
    command = ("-m", "benchmarks.accelerator", *flags, f"--json={tmp_path / 'found.json'}")
    done = run_python(*command, env={"KERAS_BACKEND": "jax"})
    assert done.returncode == 0, done.stderr
    names = [f"{{11,4,8}}, {kind}, train" for kind in ("learned K=4", "learned K=1", "full")]
    found = kept(tmp_path / "found.json")
    parts = [name for name in found if name.startswith("one module, ")]
    assert list(found) == [*parts, *names]
    convolutions = "one module, 3x3, forward and backward, width 4, "
    assert done.stdout.count("No kernel of a GPU was seen") == len(names)
    assert [name.removeprefix(convolutions) for name in parts[-3:]] == ["apart", "grouped", "dense, as on accelerators"]
    assert found[names[0]].get_metadata()["precision"] == "float32"


def test_kernels_of_a_trace():
    """As the profiler writes it: two streams of a GPU beside the host's threads; times are microseconds."""
    from benchmarks import accelerator_kernels

    def named(kind, name, **of):
        return {"ph": "M", "name": kind, "args": {"name": name}, **of}

    def ran(name, ts, dur, pid, tid):
        return {"ph": "X", "name": name, "ts": ts, "dur": dur, "pid": pid, "tid": tid}

    events = [
        named("process_name", "/device:GPU:0", pid=1),
        named("thread_name", "Stream #14(Compute)", pid=1, tid=14),
        named("thread_name", "Stream #15(MemcpyD2H)", pid=1, tid=15),
        named("thread_name", "XLA Ops", pid=1, tid=16),
        named("process_name", "/host:CPU", pid=7),
        named("thread_name", "Stream #1", pid=7, tid=14),
        ran("fusion_1", 100.0, 10.0, 1, 14),
        ran("gemm", 120.0, 30.0, 1, 14),
        ran("fusion_1", 160.0, 5.0, 1, 14),
        ran("copy", 190.0, 10.0, 1, 15),
        ran("an operation's name, of the same time", 100.0, 100.0, 1, 16),
        ran("on the host", 0.0, 1000.0, 7, 14),
        {"name": "without a phase"},
    ]
    found = accelerator_kernels.summed(events)
    np.testing.assert_allclose((found.busy, found.span), (55e-6, 100e-6))
    assert [(name, times) for name, _, times in found.of_each] == [("gemm", 1), ("fusion_1", 2), ("copy", 1)]
    np.testing.assert_allclose([seconds for _, seconds, _ in found.of_each], [30e-6, 15e-6, 10e-6])
    assert accelerator_kernels.summed([]) == (0.0, 0.0, [])


def test_a_file_needs_pyperf(run_python, tmp_path):
    hidden = "import importlib.metadata as m; v = m.version\ndef version(name):\n    if name == 'pyperf': raise "
    hidden += "m.PackageNotFoundError(name)\n    return v(name)\nm.version = version\n"
    hidden += "from gated_resnext import errors; from benchmarks import conv3x3; errors.run(conv3x3.main)"
    done = run_python("-c", hidden, f"--json={tmp_path / 'found.json'}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: --json is written by pyperf: pip install -e '.[benchmark]'\n"


def test_conv3x3(run_python, tmp_path):
    flags = ("--stages=3", "--widths=4", "--blocks=2", "--read=each", "--batches=1", "--rounds=1")
    done = run_python("-m", "benchmarks.conv3x3", *flags, f"--json={tmp_path / 'found.json'}")
    assert done.returncode == 0, done.stderr
    found = kept(tmp_path / "found.json")
    assert [name.split()[0] for name in found] == 4 * ["tensorflow"] + 4 * ["tflite"]
    assert [name.split()[-1] for name in found] == 2 * ["split", "grouped", "merged", "bundled"]
    assert len(done.stdout.splitlines()) == 3


def test_weighted(run_python, tmp_path, digits_dir):
    flags = ("--sums=weighted", "--wirings=random", "--seeds=2", "--epochs_scale=0.004", f"--workdir={tmp_path}")
    done = run_python("-m", "benchmarks.weighted", *flags, env={"TFDS_DATA_DIR": str(digits_dir)})
    assert done.returncode == 0, done.stderr
    row = [cell.strip() for cell in done.stdout.splitlines()[-1].split("|")]
    assert row[1:3] == ["weighted", "random"] and row[5] == "93,786"
    assert (tmp_path / "weighted_random_1" / "result.json").is_file()


def test_gate_agreement(run_python, digits_dir):
    flags = ("--entry=digits_11_4_4_k2", "--steps=3", "--batch=16", f"--data_dir={digits_dir}")
    done = run_python("-m", "benchmarks.gate_agreement", *flags)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "| " in line]
    assert [len(row) for row in rows] == [6, 6, 6] and [row[0] for row in rows[1:]] == ["2", "3"]
    refused = run_python("-m", "benchmarks.gate_agreement", "--entry=digits_11_4_4_full")
    assert refused.stderr.startswith("error: --entry must have a learned wiring. Received: digits_11_4_4_full")


@pytest.mark.parametrize("aggregation", ["mean", "sum"])
def test_the_parts_of_the_gates_gradient_are_the_whole(aggregation):
    from benchmarks.gate_agreement import of_gates
    from gated_resnext.model import GatedResNeXt

    arch = zoo.architecture("cifar10_20_4_8_k4").replace(cardinality=3, fan_in=2, input_shape=(8, 8, 3))
    model = GatedResNeXt(arch.replace(aggregation=aggregation), classifier_activation=None, seed=0)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    found, variables = of_gates(model, images, np.arange(4))
    assert len(variables) == len(model.trainable_variables)
    assert sorted({number for number, _ in found}) == [2, 3, 4, 5, 6]
    assert sorted({number for number, name in found if name != "all"}) == [2, 4, 6]
    for number in (2, 4, 6):
        shortcut, residual, whole = (np.asarray(found[number, name]) for name in ("shortcut", "residual", "all"))
        assert np.abs(shortcut).max() > 0 and np.abs(residual).max() > 0
        np.testing.assert_allclose(shortcut + residual, whole, atol=1e-5 * np.abs(whole).max())


def test_dense(run_python, digits_dir):
    flags = ("--layers=3", "--growth=4", "--fan_in=1", "--transition_fan_in=1", "--seeds=2", "--epochs_scale=0.01")
    done = run_python("-m", "benchmarks.dense", *flags, f"--data_dir={digits_dir}")
    assert done.returncode == 0, done.stderr
    full, learned, random = (line.split("|") for line in done.stdout.splitlines()[-3:])
    sizes = [[int(cell.replace(",", "")) for cell in (row[4], *row[5].split(", "))] for row in (full, learned, random)]
    assert sizes[0][0] == sizes[0][1] == sizes[1][0] > max(sizes[1][1:]) and sizes[2][0] >= max(sizes[2][1:])
    done = run_python("-m", "benchmarks.dense", "--images=7", f"--data_dir={digits_dir}")
    assert done.returncode == 1 and "has 7 training images, fewer than the batch of 64: take smaller" in done.stderr


def test_gate_gradient(run_python):
    done = run_python("-m", "benchmarks.gate_gradient", "--batch=1", "--rounds=1")
    assert done.returncode == 0, done.stderr
    forms = [line.split(" | ")[0] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert forms[:3] == ["| form", "| one product", "| two halves of Y"] and "| reading both" in forms


def test_export_latency(run_python, tmp_path):
    flags = ("--entries=digits_11_4_4_k2", "--batches=1", "--rounds=1", f"--markdown={tmp_path / 'table.md'}")
    done = run_python("-m", "benchmarks.export_latency", *flags, f"--json={tmp_path / 'found.json'}")
    assert done.returncode == 0, done.stderr
    found = kept(tmp_path / "found.json")
    forms = ("unpruned", "compact", "compact_tflite", "resnext", "resnext_tflite")
    assert list(found) == [f"digits_11_4_4_k2 {form}, batch 1" for form in forms]
    about = found["digits_11_4_4_k2 unpruned, batch 1"].get_metadata()
    assert about["wiring"] == "random, seed 0" and about["parameters"] == 93_754 and about["keras_version"]
    assert (tmp_path / "table.md").read_text().count("`digits_11_4_4_k2`") == 6


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--epochs=12", "error: --epochs are those before and those after pruning, like 12,8. Received: 12"),
        ("--wirings=random, K = 5", "error: --wirings are full, or .* K up to 4. Received: 'random, K = 5'"),
    ],
)
def test_gated_branches_refuses_in_a_line_before_it_trains(run_python, flag, message):
    done = run_python("-m", "benchmarks.gated_branches", flag)
    assert done.returncode == 1 and re.fullmatch(message, done.stderr.splitlines()[-1])


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
