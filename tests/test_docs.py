"""The blocks of the pages in docs/ run; their files are what they say they are."""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time

import links
import pytest
from test_draw import documented

from gated_resnext import zoo
from gated_resnext.drawing.pictures import KINDS
from gated_resnext.recipes import Recipe

DOCS = pathlib.Path(__file__).parent.parent / "docs"
pytestmark = pytest.mark.skipif(
    not DOCS.is_dir(), reason="docs/ is in the checkout only, and this is the installed package"
)


def blocks(page, *languages):
    """Language and text of the fenced blocks of a page, in order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(language, block) for language, block in found if language in languages]


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path, digits_dir):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "HOME": str(tmp_path)}
    (tmp_path / "tensorflow_datasets").symlink_to(digits_dir)
    printed = []
    for language, block in blocks("tutorial.md", "bash", "python"):
        if language == "python":
            command = [sys.executable, "-c", block]
        else:
            assert block.startswith("python -m ") and block.replace("\\\n", "").count("\n") == 1, block
            # A twentieth of the schedule takes minutes; a two hundredth is enough to see every command run.
            short = block.replace("epochs_scale=0.05", "epochs_scale=0.005")
            command = [sys.executable, *shlex.split(short.replace("\\\n", " "))[1:]]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, (command, done.stderr)
        printed.append(done.stdout)
    assert len(list((tmp_path / "photos").rglob("*.png"))) == 1437
    assert "Trained photos_11_4_4_k1 on folder:" in printed[1] and re.search(r"of 14\d test images", printed[1])
    assert (tmp_path / "wiring.svg").is_file() and (tmp_path / "gates.html").is_file()
    assert "Written to models/photos_11_4_4_k1" in printed[4]
    assert printed[5].count("photos/digit_7/") == len(list((tmp_path / "photos" / "digit_7").iterdir()))
    answers = printed[6].strip()
    assert re.fullmatch(r"\['digit_\d'(, 'digit_\d'){7}\]", answers), answers
    assert printed[7].count("Prediction(number=") == 4 and printed[7].count("label='digit_") == 4


def test_the_pictures_of_the_training_page_are_those_of_the_command():
    """Whose documented lines run in tests/test_draw.py."""
    lines = [
        line for _, block in blocks("training.md", "") for line in block.splitlines() if "gated_resnext.draw" in line
    ]
    assert len(lines) == 4 and set(lines) <= set(documented())
    text = (DOCS / "training.md").read_text(encoding="utf-8")
    for what, kind in KINDS.items():
        assert re.search(rf"^\| `{what}` \| .* \| {re.escape(', '.join(kind.endings))} \|$", text, re.MULTILINE), what


@pytest.mark.slow
def test_the_transfer_page_runs(tmp_path, digits_dir):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "HOME": str(tmp_path)}
    (tmp_path / "tensorflow_datasets").symlink_to(digits_dir)
    code = "\n".join(block for _, block in blocks("transfer.md", "python"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    for line in blocks("transfer.md", "bash")[0][1].splitlines():
        ran = subprocess.run(
            [sys.executable, *shlex.split(line)[1:]], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "odd_or_even.svg").is_file() and (tmp_path / "models" / "odd_or_even" / "2").is_dir()
    first, top1, of_folder, features, maps, stages, shipped = done.stdout.splitlines()[-7:]
    assert re.fullmatch(r"\[Prediction\(number=[01], label='(even|odd)', probability=[01]\.\d+\)\]", first)
    assert float(top1) > 0.93 and float(of_folder) > 0.6
    assert (features, maps) == ("(360, 256)", "(None, 4, 4, 256)")
    assert stages == "[(None, 8, 8, 64), (None, 4, 4, 128), (None, 2, 2, 256)]"
    card = zoo.card("digits_11_4_4_k1")
    assert shipped == f"models/odd_or_even/1 {card['blocks']} -> {card['active_blocks']}"
    folder = tmp_path / "models" / "odd_or_even" / "1"
    assert (folder / "model.tflite").is_file() and (folder / "saved_model.pb").is_file()
    assert (folder / "assets" / "labels.txt").read_text() == "even\nodd\n"


@pytest.mark.slow
def test_the_page_of_devices_runs(tmp_path, digits_dir):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "HOME": str(tmp_path)}
    (tmp_path / "tensorflow_datasets").symlink_to(digits_dir)
    printed = []
    for language, block in blocks("devices.md", "bash", "python"):
        for line in [block] if language == "python" else block.replace("\\\n", " ").splitlines():
            command = [sys.executable, "-c", line] if language == "python" else [sys.executable, *shlex.split(line)[1:]]
            done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400)
            assert done.returncode == 0, (command, done.stderr)
            printed.append(done.stdout)
    assert len(printed) == 4 and "Written to models/digits_11_4_4_k1/1" in printed[0]
    assert re.fullmatch(r"\['\d', '\d'\] \(2, 10\)", printed[1].strip())
    assert re.search(r"top-1 +9\d\.\d+ %", printed[2]) and "top-1" in printed[3]


def test_the_table_of_devices_is_that_of_the_formats():
    from export.compression import METHODS
    from export.formats import FORMATS

    text = (DOCS / "devices.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w=-]+)` \| `(\w+\.tflite)` \| .* \| (?:yes|no: .*) \|$", text, re.MULTILINE))
    ours = {name: form.filename for name, form in FORMATS.items() if form.filename}
    assert rows == {**ours, "--compress=qat": "model_qat.tflite"} and "qat" in METHODS
    for name, form in FORMATS.items():
        if form.filename:
            assert re.search(rf"^\| `{name}` .* \| {'no: .*' if form.exact else 'yes'} \|$", text, re.MULTILINE)


@pytest.mark.slow
def test_the_training_page_follows_a_run(tmp_path, digits_dir):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "HOME": str(tmp_path)}
    (tmp_path / "tensorflow_datasets").symlink_to(digits_dir)
    block, *_ = [block for _, block in blocks("training.md", "python")]
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    assert re.fullmatch(r"\d+ \[\(\d+, 4, 4\), \(\d+, 4, 4\)\]", last), last
    assert re.search(r"^[\d.]+ 0\.\d+ \[[\d., ]+\]\n(.*\n)*[\d.]+ 0\.\d+ None$", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_the_training_page_fits(tmp_path, digits_dir, run_python):
    (tmp_path / "tensorflow_datasets").symlink_to(digits_dir)
    _, block = [block for _, block in blocks("training.md", "python")]
    done = run_python("-c", block, cwd=tmp_path, env={"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    before, after, top1 = re.fullmatch(r"(.*) -> (.*) ([\d.]+)%\n", done.stdout).groups()
    assert before == "(4, 4, 4)" and after != before and float(top1) > 85


@pytest.mark.slow
def test_branches_of_ones_own_are_trained_and_exported(tmp_path, digits_dir, run_python):
    (tmp_path / "tensorflow_datasets").symlink_to(digits_dir)
    block, *_ = [block for _, block in blocks("beyond.md", "python") if "GatedBranches" in block]
    text = (DOCS / "beyond.md").read_text(encoding="utf-8")
    block += textwrap.dedent(re.search(r"^  ```python\n(.*?)^  ```$", text, re.MULTILINE | re.DOTALL)[1])
    short = block.replace("epochs=10", "epochs=1").replace("epochs=5", "epochs=1")
    done = run_python("-c", short, cwd=tmp_path, env={"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"11909 -> \d+", lines[1]) and re.fullmatch(r"\d+\.\d\d%", lines[2])
    assert [line.split()[0] for line in lines[3:]] == ["pruned", "saved_model", "tflite"]
    assert (tmp_path / "own_digits.svg").is_file()
    assert (tmp_path / "models" / "own_digits" / "1" / "saved_model.pb").is_file()


@pytest.mark.slow
def test_the_page_of_weights_and_dense_blocks_runs(tmp_path, digits_dir):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "HOME": str(tmp_path)}
    (tmp_path / "tensorflow_datasets").symlink_to(digits_dir)
    [(_, lines), *python] = blocks("beyond_weighted.md", "bash", "python")
    commands = [shlex.split(line)[1:] for line in lines.splitlines()]
    commands[0].append("--epochs_scale=0.005")
    printed = []
    for arguments in (*commands, *(["-c", block] for _, block in python)):
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, (command, done.stderr)
        printed.append(done.stdout)
    assert "Next: python -m export.prune_and_save --workdir=runs/optical_digits_11_4_4_weighted_k2" in printed[0]
    assert "Written to models/optical_digits_11_4_4_weighted_k2" in printed[1]
    before, after, _ = printed[2].split(maxsplit=2)
    assert int(before) > int(after)
    assert printed[3] == "4.33 0.212\n"


def test_the_recipe_of_the_training_page_is_one():
    [(_, block)] = blocks("training.md", "json")
    recipe = Recipe.from_dict(json.loads(block))
    assert recipe.epochs == 100 and [phase.gate_learning_rate > 0 for phase in recipe.phases] == [True, False, False]


def test_the_job_of_several_workers_sets_their_cluster(run_python):
    yaml = pytest.importorskip("yaml", reason="needs PyYAML, to read the Kubernetes manifest")
    service, job = yaml.safe_load_all((DOCS / "kubernetes-training.yaml").read_text(encoding="utf-8"))
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    assert service["spec"]["clusterIP"] == "None", "a headless service, for a name a pod"
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    [container] = pod["containers"]
    # The script as a pod runs it, up to the training itself.
    script = container["args"][0].split("result=")[0] + 'echo "$TF_CONFIG"\n'
    for index in range(job["spec"]["completions"]):
        env = {**os.environ, "JOB_COMPLETION_INDEX": str(index)}
        done = subprocess.run([*container["command"], script], env=env, capture_output=True, text=True, check=True)
        workers = [f"gated-resnext-{i}.gated-resnext:2222" for i in range(job["spec"]["completions"])]
        assert json.loads(done.stdout) == {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
    flags = set(re.findall(r"--(\w+)=", container["args"][0]))
    known = set(
        re.findall(r"^  --(?:\[no\])?(\w+):", run_python("-m", "gated_resnext.train", "--help").stdout, re.MULTILINE)
    )
    assert "strategy" in known and flags <= known


TRAINING = """#!/usr/bin/env bash
# In the place of python: a training of some steps, which saves when it is told to end.
trap 'touch {folder}/saved; exit 0' TERM
touch {folder}/began
for _ in $(seq {seconds}); do sleep 0.1; done
{then}
"""


@pytest.mark.parametrize(
    ("seconds", "then", "signals", "status"),
    [
        (3, "touch {folder}/runs/imagenet_50_4_32_k16/result.json", False, 0),
        (300, "", True, 1),
        (3, "exit 1", False, 1),
    ],
    ids=["finished", "stopped", "failed"],
)
def test_the_job_ends_as_its_training_does(tmp_path, seconds, then, signals, status):
    yaml = pytest.importorskip("yaml", reason="needs PyYAML, to read the Kubernetes manifest")
    _, job = yaml.safe_load_all((DOCS / "kubernetes-training.yaml").read_text(encoding="utf-8"))
    [container] = job["spec"]["template"]["spec"]["containers"]
    (tmp_path / "runs" / "imagenet_50_4_32_k16").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(TRAINING.format(folder=tmp_path, seconds=seconds, then=then.format(folder=tmp_path)))
    python.chmod(0o755)
    script = container["args"][0].replace("/data/", f"{tmp_path}/").replace("tries=20", "tries=2")
    env = {**os.environ, "JOB_COMPLETION_INDEX": "0", "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    command = [*container["command"], script]
    began = time.monotonic()
    with subprocess.Popen(command, env=env) as process:
        while not (tmp_path / "began").exists():
            assert time.monotonic() - began < 60
            time.sleep(0.02)
        if signals:
            while not handles(process.pid, signal.SIGTERM):
                assert time.monotonic() - began < 60
                time.sleep(0.02)
            process.terminate()
        assert process.wait(250) == status
    assert (tmp_path / "saved").exists() == signals
    if status == 0:  # the run is done: nothing is begun again
        (tmp_path / "began").unlink()
        assert subprocess.run(command, env=env).returncode == 0 and not (tmp_path / "began").exists()


def handles(process, number):
    """Whether a process has come to where it handles a signal; where nothing tells, it is given a second."""
    status = pathlib.Path(f"/proc/{process}/status")
    if not status.is_file():
        time.sleep(1)
        return True
    return int(re.search(r"^SigCgt:\s*(\w+)", status.read_text(), re.MULTILINE)[1], 16) >> number - 1 & 1


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")) if DOCS.is_dir() else [])
def test_links_lead_to_files_and_to_headings(page):
    for link, anchor in links.of_page(DOCS / page):
        links.check(DOCS / page, link, anchor)
