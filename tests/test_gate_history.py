"""The gates of a run while they are learned: at which steps they are written down, and what."""

import dataclasses
import shutil

import numpy as np
import pytest
from runs import SMALL, images_of, newest, recordings, small_run

from gated_resnext import files, gate_history, trainer
from gated_resnext.errors import UserError
from gated_resnext.loop import TensorFlowEngine
from gated_resnext.training import Diverged, Training

# 11 steps an epoch: 2 rounds of 11 steps in which gates are learned, then 6 steps.
LEARNING = (2, 0.1, 0.2), (0.5, 0.1)


def test_about_a_hundred_steps_from_the_first_to_the_last():
    assert gate_history.recorded_steps(0) == ()
    assert gate_history.recorded_steps(5) == (0, 1, 2, 3, 4, 5)
    for learning_steps in (99, 100, 101, 528, 46_800):
        steps = gate_history.recorded_steps(learning_steps)
        assert steps[0] == 0 and steps[-1] == learning_steps and len(steps) == min(learning_steps, 100) + 1
        assert set(np.diff(steps)) <= {learning_steps // 100, learning_steps // 100 + 1}


def test_a_call_of_the_loop_ends_where_the_next_recording_is(tmp_path):
    history = gate_history.GateHistory(tmp_path, 250)
    taken = [0]
    while (left := history.until_next(taken[-1])) != float("inf"):
        taken.append(taken[-1] + left)
    assert tuple(taken) == history.steps
    # Steps 2, 5 and 8 are recorded; a resumed run may begin between them.
    assert [history.until_next(step) for step in (3, 4, 5)] == [2, 1, 3]
    assert [history.due(step) for step in (0, 1, 5, 250, 251)] == [True, False, True, True, False]


def test_what_is_read_is_what_was_written_in_the_order_of_the_steps(tmp_path):
    rng, history = np.random.default_rng(0), gate_history.GateHistory(tmp_path, 250)
    gates = {step: rng.random((2, 3, 3), np.float32) for step in (100, 0, 25)}
    for step, matrices in gates.items():
        history.write(step, matrices)
    steps, modules = gate_history.read(tmp_path)
    assert steps.tolist() == [0, 25, 100]
    for module in (0, 1):
        np.testing.assert_array_equal(modules[module], [gates[step][module] for step in (0, 25, 100)])
    history.discard(after=25)
    assert gate_history.read(tmp_path)[0].tolist() == [0, 25]


def test_a_recording_that_is_none_is_said(tmp_path):
    with pytest.raises(UserError, match="no gates are recorded"):
        gate_history.read(tmp_path)
    history = gate_history.GateHistory(tmp_path, 10)
    history.write(0, np.ones((2, 3, 3)))
    history.write(1, np.ones((1, 3, 3)))
    with pytest.raises(UserError, match=r"1\.npz is no recording of the gates of modules 2 to 3"):
        gate_history.read(tmp_path)
    path = tmp_path / "gates" / "1.npz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="damaged"):
        gate_history.read(tmp_path)


def test_a_training_records_from_equal_gates_to_those_it_freezes(trained):
    steps, modules = gate_history.read(trained)
    assert steps.tolist() == list(range(17))  # 0.72 epochs of 22 steps
    frozen = files.read_arrays(trained / "gates.npz")
    for number, history in enumerate(modules, start=2):
        assert (history[0] == 0.25).all()
        np.testing.assert_allclose(history.sum(-1), 1, atol=1e-6)
        assert (np.abs(np.diff(history, axis=0)).max((1, 2)) > 0).all(), "a step that moved nothing"
        np.testing.assert_array_equal(history[-1], frozen[f"module{number}"])


class Interrupted(Training):
    """A training that is gone in the middle of its second round, and keeps a checkpoint of some steps before."""

    def _some_steps(self, loop, batches, left, phase):
        super()._some_steps(loop, batches, left, phase)
        if self.place.step == 14:
            self._record_gates(loop)
            raise InterruptedError


@pytest.mark.slow
def test_a_resumed_training_of_real_gates_ends_in_the_same_recordings(digits_dir, tmp_path):
    run = dataclasses.replace(small_run(*LEARNING), architecture=dataclasses.replace(SMALL, gates="real"))
    trainer.train(run, tmp_path / "whole", data_dir=digits_dir)
    steps, (history,) = gate_history.read(tmp_path / "whole")
    assert steps.tolist() == list(range(23)) and history.shape == (23, 3, 3)
    assert (history[0] == np.float32(1 / 3)).all() and np.abs(history[-1] - 1 / 3).max() > 1e-5

    folder = tmp_path / "cut"
    with pytest.raises(InterruptedError):
        Interrupted(run, folder, images_of(run, digits_dir), TensorFlowEngine()).run_phases()
    assert newest(folder)["place"]["step"] == 11 and gate_history.read(folder)[0][-1] == 14
    # What was written after the checkpoint is not believed.
    shutil.copy(folder / "gates" / "0.npz", folder / "gates" / "13.npz")
    trainer.train(run, folder, data_dir=digits_dir)
    found, expected = recordings(folder), recordings(tmp_path / "whole")
    assert set(found) == set(expected)
    assert {name for name, gate in expected.items() if gate.tobytes() != found[name].tobytes()} == set()


def test_the_recordings_after_the_step_of_a_rollback_are_removed(digits_dir, tmp_path):
    run = small_run(*LEARNING)
    folder = tmp_path / "small"
    with pytest.raises(InterruptedError):
        Interrupted(run, folder, images_of(run, digits_dir), TensorFlowEngine()).run_phases()
    training = Training(run, folder, images_of(run, digits_dir), TensorFlowEngine(), on_nan="rollback")
    training._roll_back(Diverged("", 13))
    assert gate_history.read(folder)[0].tolist() == list(range(12))
