import concurrent.futures
import json
import os
import re
import shutil

import keras
import pytest

K1 = "digits_11_4_4_k1"
MODULE = "gated_resnext.train"
# Without a network, tensorflow-datasets tries ten times, over three minutes; this is the same command that tries once.
OFFLINE = f"""
import runpy
from tensorflow_datasets.core.download import downloader
downloader.MAX_RETRIES = 0
runpy.run_module("{MODULE}", run_name="__main__", alter_sys=True)
"""
NO_NETWORK = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
NO_NETWORK |= {"no_proxy": "", "NO_PROXY": ""}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FIRST = [f"--entry={K1}", "--epochs_scale=0.02", "--workdir=run", "--data_dir={data}"]
# Mistakes. Flags, and what the line of the error must match; {data} is a data_dir with the digits, {empty} one without,
# {other} the workdir of another entry, {file} a file.
MISTAKES = {
    "unknown entry": (["--entry=digit_11_4_4_k1"], f"no network 'digit_11_4_4_k1'.*closest are {K1}, .*, .*"),
    "unknown recipe": (["--recipe=adam"], "recipe must be one of cifar, .*photos or a .json file. Received: 'adam'"),
    "no epochs": (["--epochs_scale=0"], "epochs_scale must be above 0. Received: 0"),
    "negative epochs": (["--epochs_scale=-1"], "epochs_scale must be above 0. Received: -1"),
    "nan epochs": (["--epochs_scale=nan"], "epochs_scale must be above 0. Received: nan"),
    "infinite epochs": (["--epochs_scale=inf"], "epochs_scale must be above 0. Received: inf"),
    "no rate of the gates": (["--gate_learning_rate=0"], "gate_learning_rate must be above 0. Received: 0"),
    "gates that are not learned": (
        ["--entry=digits_11_4_4_full", "--gate_learning_rate=1"],
        "gate_learning_rate is of gates that are learned; digits_11_4_4_full has a full wiring",
    ),
    "unknown strategy": (
        ["--strategy=tpus"],
        "strategy must be one of auto, one_device, mirrored, multi_worker, tpu. Received: 'tpus'",
    ),
    "no TPU": (["--strategy=tpu"], "no TPU was found .*; choose another --strategy"),
    "no folder": (["--image_folder={empty}/missing"], "of the images must be a folder .* Received: {empty}/missing"),
    "stray argument": ([K1], f"unexpected argument '{K1}'"),
    "unknown flag": (["--epoch_scale=0.1"], "epoch_scale"),
    "negative seed": (["--seed=-1"], "seed"),
    "no data": (["--entry=cifar100_20_4_8_k1", "--data_dir={empty}"], "cifar100 is not in {empty} .*--data_dir=FOLDER"),
    "another entry": (
        ["--entry=digits_11_4_4_k2", "--workdir={other}", "--data_dir={data}"],
        f"belongs to another run .*entry is {K1} there and digits_11_4_4_k2 here.*choose another --workdir",
    ),
    "a file": (["--workdir={file}", "--data_dir={data}"], "{file}"),
    "read only": (
        ["--workdir={read_only}/run", "--data_dir={data}", "--epochs_scale=0.001"],
        "Permission denied: .*{read_only}/run",
    ),
}


@pytest.fixture(scope="module")
def places(trained, digits_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    (folder / "file").write_text("precious")
    (folder / "read_only").mkdir(mode=0o555)
    shutil.copytree(trained, folder / "other")
    (folder / "empty").mkdir()
    return {name: folder / name for name in ("file", "read_only", "other", "empty")} | {"data": digits_dir}


@pytest.fixture(scope="module")
def ran(places, run_python, tmp_path_factory):
    """Every command, two at a time: what it printed, and the folder it ran in."""

    def run(name, flags, before=None):
        folder = tmp_path_factory.getbasetemp() / f"command_{name.replace(' ', '_')}"
        shutil.copytree(before, folder) if before else folder.mkdir()
        program = ["-c", OFFLINE] if name == "no data" else ["-m", MODULE]
        return run_python(*program, *[flag.format(**places) for flag in flags], cwd=folder, env=NO_NETWORK), folder

    def first_and_again():
        first = run("first", FIRST)
        return {"first": first, "again": run("again", FIRST, before=first[1])}

    def mistake(name):
        if name == "read only" and os.access(places["read_only"], os.W_OK):
            return None
        return run(name, MISTAKES[name][0])

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        trained_twice = pool.submit(first_and_again)
        return dict(zip(MISTAKES, pool.map(mistake, MISTAKES), strict=True)) | trained_twice.result()


def test_the_command_trains_and_says_what_came_out(ran, digits_dir):
    done, folder = ran["first"]
    workdir = folder / "run"
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and not any(line.startswith("error:") for line in done.stderr.splitlines())
    result = json.loads((workdir / "result.json").read_text())
    next_one = f"python -m export.prune_and_save --workdir=run --data_dir={digits_dir} --output=models"
    assert done.stdout.endswith(f"\nNext: {next_one}\n")
    phases = re.findall(r"^Phase \d of 4: .*", done.stdout, re.MULTILINE)
    assert len(phases) == 4
    for number, line in enumerate(phases, start=1):
        assert line.startswith(f"Phase {number} of 4: ")
        assert ("gates learned at rate 0.2" in line) == (number == 1) and ("wiring fixed" in line) == (number > 1)
    for part in (
        # 22 steps an epoch: 0.48, 0.4, 0.2 and 0.2 epochs are 11 + 9 + 4 + 4 steps.
        f"Trained {K1} on optical_digits: {round(28 / 22, 3):g} epochs (0.02 of the schedule 'digits')",
        f"{100 * result['top1']:.2f} % of 360 test images",
        f"{' '.join(map(str, result['active_blocks']))} of 4 4 4",
        f"93,754; {result['parameters_pruned']:,} after pruning",
        "run/model.keras",
    ):
        assert part in done.stdout
    rounds = re.findall(
        r"^  phase (\d), round 1 of 1: loss \S+, top-1 .* %; test loss .* min left$", done.stdout, re.MULTILINE
    )
    assert rounds == list("1234")
    assert (result["seed"], result["steps"]) == (0, 28)
    [machine] = json.loads((workdir / "trained_on.json").read_text())
    assert machine["versions"].startswith("gated_resnext ") and "CPU cores" in machine["hardware"]
    assert keras.saving.load_model(workdir / "model.keras").architecture.fan_in == 1


def test_the_same_command_again_trains_no_more(ran):
    (first, folder), (done, copy) = ran["first"], ran["again"]
    assert done.returncode == 0, done.stderr
    assert f"Resuming {K1} after step 28 of 28\n" in done.stdout and "Phase" not in done.stdout
    assert done.stdout.splitlines()[-8:] == first.stdout.splitlines()[-8:]
    before, after = (
        {re.sub(r"events\..*", "events", name): content for name, content in contents(place).items()}
        for place in (folder, copy)
    )
    assert len(after) == len(contents(copy)), "more than one file of events"
    assert set(after) == set(before)
    assert {name for name in before if after[name] != before[name]} <= {
        "run/model.keras",
        "run/.lock",
        "run/tensorboard/events",
    }


def test_the_defaults_are_the_documented_ones(run_python, tmp_path):
    done = run_python("-m", MODULE, "--help", cwd=tmp_path)
    for name, default in (
        ("epochs_scale", "1.0"),
        ("seed", "0"),
        ("strategy", "auto"),
        ("on_nan", "stop"),
        ("checkpoint_seconds", "60.0"),
        ("[no]sync_batch_norm", "false"),
        ("precision", "float32"),
        ("[no]remat", "false"),
        ("[no]jit_compile", "false"),
    ):
        assert re.search(rf"--{re.escape(name)}: [^-]*\(default: '{default}'\)", done.stdout, re.DOTALL), name
    assert re.search(rf"--entry: [^-]*Default: {K1}, or\s+one\s+that\s+fits", done.stdout)
    for name in ("recipe", "workdir", "data_dir", "dataset", "image_folder", "architecture"):
        assert f"--{name}:" in done.stdout
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_a_status(ran, places, name):
    if ran[name] is None:
        pytest.skip("needs a user whom a read-only folder stops: root writes there all the same")
    done, _ = ran[name]
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "Traceback" not in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(MISTAKES[name][1].format(**places), line), line
    assert "\nTrained" not in done.stdout


def test_mistakes_leave_everything_as_it_was(ran, places, trained):
    assert set(ran) == {"first", "again", *MISTAKES}
    assert contents(places["other"]) == contents(trained)
    assert places["file"].read_text() == "precious"
    assert contents(places["empty"]) == {}
    assert os.listdir(places["read_only"]) == []


def test_mistakes_leave_no_workdir_to_be_in_the_way(ran):
    folders = [ran[name][1] for name in MISTAKES if ran[name]]
    assert [path for folder in folders for path in folder.rglob("*")] == []
