"""The command that draws: every kind of picture of a training and of the zoo, and what it says when it cannot."""

import importlib.util
import json
import pathlib
import re
import shutil

import numpy as np
import PIL.Image
import pytest
from picture import Svg

from gated_resnext import files, gate_history, zoo
from gated_resnext.connectivity import Connectivity
from gated_resnext.drawing import pictures
from gated_resnext.drawing.subjects import Subject
from gated_resnext.errors import UserError


def documented():
    """The commands of the module's docstring, read and not imported: every command has flags of the same names."""
    text = pathlib.Path(importlib.util.find_spec("gated_resnext.draw").origin).read_text(encoding="utf-8")
    return re.findall(r"^    (python -m .*)$", text, re.MULTILINE)


K1 = "digits_11_4_4_k1"
PUBLISHED = "cifar10_20_4_8_k1"


@pytest.fixture
def other(trained, tmp_path):
    """The same training under another name."""
    return shutil.copytree(trained, tmp_path / "runs" / "another")


def test_every_documented_command_runs_without_tensorflow(trained, tmp_path, run_python):
    # But for the file, which Keras reads (tests/test_keras_files.py).
    lines = [line.split() for line in documented() if "--model=" not in line]
    assert len(lines) == 5 == len(documented()) - 1
    for entry in (K1, K1.replace("k1", "k2")):
        shutil.copytree(trained, tmp_path / "runs" / entry)
    blocked = "import runpy, sys; sys.modules['tensorflow'] = sys.modules['keras'] = None; "
    for words in lines:
        code = blocked + f"sys.argv = {words[2:]!r}; runpy.run_module({words[2]!r}, run_name='__main__')"
        done = run_python("-c", code, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        path = tmp_path / done.stdout.strip().rpartition("Written to ")[2]
        assert path.is_file(), done.stdout
    written = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert written == ["active.svg", "curves.svg", "gates.gif", "wiring.png", "wiring.svg"]


def test_the_wiring_of_a_training_has_its_gates(trained, tmp_path):
    said = pictures.draw("wiring", [Subject.of_workdir(trained)], tmp_path / "wiring.svg")
    svg, active = Svg(tmp_path / "wiring.svg"), files.read_json(trained / "result.json")["active_blocks"]
    assert said == f"{K1}: {sum(active)} of 12 blocks are active"
    assert [svg.count(f"active-{panel}", "use") for panel in (1, 2)] == [12, sum(active)]
    gates = files.read_arrays(trained / "gates.npz")
    drawn = np.concatenate([gates[name].max(1) for name in gates])  # K = 1: the largest of every row
    assert {f"real gate {drawn.min():.3g}", f"{drawn.max():.3g}"} <= set(svg.texts)


def test_active_blocks_of_a_training_and_of_the_zoo(trained, tmp_path):
    subjects = [Subject.of_workdir(trained), Subject.of_entry(K1)]
    said = pictures.draw("active", subjects, tmp_path / "active.svg").splitlines()
    svg = Svg(tmp_path / "active.svg")
    for number, (name, found) in enumerate(
        [(str(trained), files.read_json(trained / "result.json")), (K1, zoo.card(K1))], start=1
    ):
        assert said[number - 1] == f"{name}: {' '.join(map(str, found['active_blocks']))} of 4 blocks are active"
        heights = svg.middles(f"series-{number}")[:, 1]
        order = np.argsort(found["active_blocks"], kind="stable")
        assert (np.diff(heights[order]) <= 0.01).all(), "more active blocks are higher up"
        assert name in svg.texts


def test_networks_of_one_name_from_one_place_are_all_drawn(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / K1)
    monkeypatch.chdir(tmp_path)  # where the workdir is called as the entry is
    said = pictures.draw("active", [Subject.of_workdir(K1), Subject.of_entry(K1)], tmp_path / "active.svg")
    assert [line.partition(": ")[0] for line in said.splitlines()] == [K1, f"{K1} (2)"]
    shutil.copytree(trained, tmp_path / f"{K1} (2)")
    subjects = [Subject.of_workdir(f"{K1} (2)"), Subject.of_workdir(K1), Subject.of_workdir(K1)]
    said = pictures.draw("curves", subjects, tmp_path / "curves.svg")
    assert [line.partition(": ")[0] for line in said.splitlines()] == [f"{K1} (2)", K1, f"{K1} (3)"]


def test_gates_of_a_training_as_a_page_and_as_a_gif(trained, tmp_path):
    said = pictures.draw("gates", [Subject.of_workdir(trained)], tmp_path / "gates.html")
    assert said.startswith(f"{K1}: gates at 17 steps from 0 to 16, from 0.")
    steps, _ = gate_history.read(trained)
    text = (tmp_path / "gates.html").read_text()
    assert f'"steps":{json.dumps(steps.tolist(), separators=(",", ":"))}' in text
    pictures.draw("gates", [Subject.of_workdir(trained)], tmp_path / "gates.gif")
    with PIL.Image.open(tmp_path / "gates.gif") as gif:
        assert gif.n_frames == 17


def test_curves_of_a_training_and_of_the_zoo(trained, tmp_path):
    subjects = [Subject.of_workdir(trained), Subject.of_entry(PUBLISHED)]
    said = pictures.draw("curves", subjects, tmp_path / "curves.svg")
    card = zoo.card(PUBLISHED)
    assert (
        f"{K1}: 4 rounds, " in said
        and f"{PUBLISHED}: {len(card['curve'])} rounds, {100 * card['top1']:.2f} % top-1" in said
    )
    svg = Svg(tmp_path / "curves.svg")
    assert len(svg.middles("test-top1-1")) == 4 and len(svg.middles("loss-2")) == len(card["curve"])
    # Phases of the card, from its recipe: 120, 100, 50 and 50 of 320 epochs.
    curve = Subject.of_entry(PUBLISHED).curve()
    np.testing.assert_allclose(curve.phase_ends, card["epochs"] * np.array([120, 220, 270, 320]) / 320)
    # Of the training: 16, 13, 7 and 7 steps at 22 an epoch.
    assert Subject.of_workdir(trained).curve().phase_ends == [round(step / 22, 4) for step in (16, 29, 36, 43)]


def test_a_training_under_way_has_gates_and_curves_and_no_wiring_yet(other, tmp_path):
    (other / "result.json").unlink()
    subject = Subject.of_workdir(other)
    pictures.draw("gates", [subject], tmp_path / "gates.png")
    pictures.draw("curves", [subject], tmp_path / "curves.png")
    for what in ("wiring", "active"):
        with pytest.raises(UserError, match=r"has no result\.json: its training has not ended"):
            pictures.draw(what, [subject], tmp_path / "x.svg")
    (other / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="no round of its training has ended"):
        pictures.draw("curves", [subject], tmp_path / "x.svg")
    shutil.rmtree(other / "gates")
    with pytest.raises(UserError, match="no gates are recorded in"):
        pictures.draw("gates", [subject], tmp_path / "x.svg")
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "gates.png", "curves.png"}


def test_real_valued_gates_weigh_the_full_wiring(trained, other, tmp_path):
    """Their network is never frozen: the last of what was recorded is what it has."""
    (other / "gates.npz").unlink()
    run, result = files.read_json(other / "run.json"), files.read_json(other / "result.json")
    files.write_json(other / "run.json", {**run, "architecture": {**run["architecture"], "gates": "real"}})
    files.write_json(other / "result.json", {**result, "connectivity": None})
    pictures.draw("wiring", [Subject.of_workdir(other)], tmp_path / "wiring.svg")
    svg, gates = Svg(tmp_path / "wiring.svg"), files.read_arrays(trained / "gates.npz")
    assert svg.count("edge-2", "path") == 4 + 2 * 16 + 4
    both = np.stack(list(gates.values()))
    assert {f"real gate {both.min():.3g}", f"{both.max():.3g}"} <= set(svg.texts)


def test_gates_of_another_network_are_refused(other, tmp_path):
    files.write_arrays(other / "gates.npz", {"module2": np.ones((3, 3)), "module3": np.ones((3, 3))})
    with pytest.raises(UserError, match=r"gates\.npz does not hold the gates of \{11,4,4\}"):
        pictures.draw("wiring", [Subject.of_workdir(other)], tmp_path / "x.svg")
    for path in (other / "gates").iterdir():
        files.write_arrays(path, {"module2": np.ones((4, 4))})
    with pytest.raises(UserError, match=r"gates does not hold the gates of \{11,4,4\}"):
        pictures.draw("gates", [Subject.of_workdir(other)], tmp_path / "x.svg")


def test_damaged_metrics_are_one_line(other, tmp_path):
    (other / "metrics.jsonl").write_text('{"phase": 1, "round": 1, "step": 5, "loss": "small"}\n')
    with pytest.raises(UserError, match="holds no learning curve of"):
        pictures.draw("curves", [Subject.of_workdir(other)], tmp_path / "x.svg")


def test_two_trainings_of_a_network_are_called_by_their_folders(trained, other, tmp_path):
    pictures.draw("curves", [Subject.of_workdir(trained), Subject.of_workdir(other)], tmp_path / "curves.svg")
    assert {str(trained), str(other)} <= set(Svg(tmp_path / "curves.svg").texts)


@pytest.mark.parametrize("kind", ["full", "random"])
def test_a_wiring_that_was_not_learned_has_no_movement(trained, tmp_path, kind):
    folder = shutil.copytree(trained, tmp_path / kind)
    shutil.rmtree(folder / "gates")
    (folder / "gates.npz").unlink()
    result = files.read_json(folder / "result.json")
    wiring = None if kind == "full" else Connectivity.random(3, 4, 1, seed=0).to_dict()
    files.write_json(folder / "result.json", {**result, "connectivity": wiring})
    pictures.draw("wiring", [Subject.of_workdir(folder)], tmp_path / "wiring.svg")
    active = 12 if wiring is None else sum(Connectivity.from_dict(wiring).active_blocks)
    assert Svg(tmp_path / "wiring.svg").count("active-2", "use") == active
    with pytest.raises(UserError, match="no gates are recorded"):
        pictures.draw("gates", [Subject.of_workdir(folder)], tmp_path / "x.html")
