import errno

import numpy as np
import pytest

from gated_resnext import checkpoints, files
from gated_resnext.checkpoints import KEPT, PARTS, Checkpoints, Place
from gated_resnext.errors import UserError

STATE = {
    "stem/kernel": np.linspace(-1, 1, 600, dtype=np.float32).reshape(2, 300),
    "optimizer/sgd/iteration": np.array(7),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""
    now = [1000.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def silent(line):
    raise AssertionError(line)


# Writing and reading


def test_what_is_written_is_read(tmp_path):
    wiring = {"first": 2, "sources": [[[0], [1]]]}
    place = Place(2, 1, 123, 4, (1.5, 2.0, 3.0, 64.0), 12.5, 0.25, 2, 1437, wiring)
    Checkpoints(tmp_path / "new" / "checkpoints").write(place, STATE)
    found, state = Checkpoints(tmp_path / "new" / "checkpoints").newest(silent)
    assert found == place
    assert set(state) == set(STATE)
    for name, value in STATE.items():
        assert (state[name].dtype, state[name].shape) == (value.dtype, value.shape)
        assert state[name].tobytes() == value.tobytes()


def test_an_empty_folder_has_none(tmp_path):
    assert Checkpoints(tmp_path).newest(silent) is None
    assert Checkpoints(tmp_path / "not_there").newest(silent) is None
    assert not (tmp_path / "not_there").exists()


def test_the_newest_two_stay(tmp_path):
    assert KEPT == 2
    of_run = Checkpoints(tmp_path)
    for step in (1, 2, 2, 30, 1_000_000_000):  # ten digits sort after nine only as numbers
        of_run.write(Place(step=step), STATE)
    assert names(tmp_path) == ["step000000030.npz", "step1000000000.npz"]
    assert of_run.newest(silent)[0].step == 1_000_000_000


def test_other_files_are_left_alone(tmp_path):
    for name in ("notes.txt", "stepmother.npz", "step7.npz.bak"):
        (tmp_path / name).write_text("precious")
    of_run = Checkpoints(tmp_path)
    assert of_run.newest(silent) is None
    for step in (1, 2, 3):
        of_run.write(Place(step=step), STATE)
    assert of_run.newest(silent)[0].step == 3
    assert {"notes.txt", "stepmother.npz", "step7.npz.bak"} < set(names(tmp_path))


def test_a_write_that_fails_leaves_those_before(tmp_path, monkeypatch):
    of_run = Checkpoints(tmp_path)
    for step in (1, 2):
        of_run.write(Place(step=step), STATE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_sync", full)
    with pytest.raises(OSError, match="No space left"):
        of_run.write(Place(step=3), STATE)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# Damage


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def with_place(text):
    return lambda path: files.write_arrays(path, {**STATE, "place": np.array(text)})


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "flipped bit": flipped,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "text": lambda path: path.write_text("not an archive\n" * 10),
    "no place": lambda path: files.write_arrays(path, STATE),
    "place is no JSON": with_place("{"),
    "place is a list": with_place("[1, 2]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_named_and_the_one_before_is_used(tmp_path, damage):
    of_run, said = Checkpoints(tmp_path), []
    for step in (5, 6):
        of_run.write(Place(step=step), {"step": np.array(step)})
    DAMAGES[damage](tmp_path / "step000000006.npz")
    place, state = of_run.newest(said.append)
    assert (place.step, state["step"]) == (5, 5)
    (line,) = said
    assert line.startswith(f"Skipped a damaged checkpoint: {tmp_path / 'step000000006.npz'} is ")
    assert "\n" not in line


def test_one_of_another_version_is_not_called_damaged(tmp_path):
    of_run = Checkpoints(tmp_path)
    for step in (5, 6):
        of_run.write(Place(step=step), STATE)
    with_place('{"phase": 1, "step": 6, "epoch": 3}')(tmp_path / "step000000006.npz")
    expected = f"{tmp_path}/step000000006.npz is of another version of gated_resnext, which also keeps epoch; go on"
    with pytest.raises(UserError, match=expected):
        of_run.newest([].append)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ETIMEDOUT])
def test_one_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch, number):
    Checkpoints(tmp_path).write(Place(step=5), STATE)

    def load(*args, **options):
        raise OSError(number, "no")

    monkeypatch.setattr(np, "load", load)
    with pytest.raises(OSError, match="no"):
        Checkpoints(tmp_path).newest([].append)


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_none_is_whole_nothing_is_overwritten(tmp_path, damage):
    of_run, said = Checkpoints(tmp_path), []
    for step in (5, 6):
        of_run.write(Place(step=step), STATE)
        DAMAGES[damage](tmp_path / f"step00000000{step}.npz")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        UserError, match=f"no checkpoint in {tmp_path} is whole; delete {tmp_path.parent} to start anew"
    ):
        of_run.newest(said.append)
    assert len(said) == 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# How often


def test_one_is_due_after_so_many_seconds(tmp_path, clock):
    of_run = Checkpoints(tmp_path, at_most_s=60)
    assert not of_run.due()
    clock(59)
    assert not of_run.due()
    clock(1)
    assert of_run.due()
    of_run.write(Place(), STATE)
    assert not of_run.due()
    clock(60)
    assert of_run.due()


def test_one_that_takes_long_to_write_is_due_less_often(tmp_path, clock, monkeypatch):
    of_run = Checkpoints(tmp_path, at_most_s=60)
    write = files.write_arrays

    def slowly(*arguments):
        write(*arguments)
        clock(10)

    monkeypatch.setattr(files, "write_arrays", slowly)
    of_run.write(Place(), STATE)
    clock(10 * PARTS - 1)
    assert not of_run.due()
    clock(1)
    assert of_run.due()


def test_without_a_pause_one_is_always_due(tmp_path, clock):
    assert Checkpoints(tmp_path, at_most_s=0).due()
