"""The blocks of the pages in docs/ run; their files are what they say they are."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from gated_resnext.recipes import Recipe

DOCS = pathlib.Path(__file__).parent.parent / "docs"
pytestmark = pytest.mark.skipif(
    not DOCS.is_dir(), reason="docs/ is in the checkout only, and this is the installed package"
)


def blocks(page, *languages):
    """Language and text of the fenced blocks of a page, in order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(language, block) for language, block in found if language in languages]


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
    assert (tmp_path / "wiring.svg").is_file()
    assert "Written to models/photos_11_4_4_k1" in printed[3]
    answers = printed[4].strip()
    assert re.fullmatch(r"\['digit_\d'(, 'digit_\d'){7}\]", answers), answers


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


def test_the_job_of_several_workers_sets_their_cluster():
    yaml = pytest.importorskip("yaml", reason="needs PyYAML, to read the Kubernetes manifest")
    service, job = yaml.safe_load_all((DOCS / "kubernetes-training.yaml").read_text(encoding="utf-8"))
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    assert service["spec"]["clusterIP"] == "None", "a headless service, for a name a pod"
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    [container] = pod["containers"]
    # The script as a pod runs it, up to the training itself.
    script = container["args"][0].split("python -m")[0] + 'echo "$TF_CONFIG"\n'
    for index in range(job["spec"]["completions"]):
        env = {**os.environ, "JOB_COMPLETION_INDEX": str(index)}
        done = subprocess.run([*container["command"], script], env=env, capture_output=True, text=True, check=True)
        workers = [f"gated-resnext-{i}.gated-resnext:2222" for i in range(job["spec"]["completions"])]
        assert json.loads(done.stdout) == {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
    flags = set(re.findall(r"--(\w+)=", container["args"][0]))
    from gated_resnext import train

    assert flags <= {flag.name for flag in train.flags.FLAGS.flags_by_module_dict()["gated_resnext.train"]}


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")) if DOCS.is_dir() else [])
def test_links_lead_to_files(page):
    text = re.sub(r"^```.*?^```$", "", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (DOCS / link).is_file(), link
