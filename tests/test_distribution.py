"""Training on several devices and on several machines, which here are processes."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import types

import numpy as np
import pytest
import tensorflow as tf
from processes import ended, in_a_fresh_process, start
from runs import assert_same_end, images_of, newest, small_run

from gated_resnext import checkpoints, distribution, files, onednn, termination, trainer
from gated_resnext.errors import UserError
from gated_resnext.loop import TensorFlowEngine
from gated_resnext.phase_networks import Options
from gated_resnext.training import Training

# Names and clusters that are none


def test_an_unknown_strategy_names_the_known_ones():
    with pytest.raises(UserError, match="one of auto, one_device, mirrored, multi_worker, tpu. Received: 'nonsense'"):
        distribution.strategy("nonsense")


def test_strategies_of_one_machine(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert distribution.strategy("one_device").num_replicas_in_sync == 1
    assert isinstance(distribution.strategy("mirrored"), tf.distribute.MirroredStrategy)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    assert distribution.strategy("auto").num_replicas_in_sync == len(devices)
    assert distribution.is_chief(distribution.strategy("auto"))


TWO = '{"cluster": {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}%s}'
NO_GUIDE = "TF_CONFIG is not what TensorFlow's guide to multi-worker training asks for: "
NOT_TOGETHER = "the workers of TF_CONFIG cannot train together: "
# Strategy, TF_CONFIG and what the error says.
NO_CLUSTERS = {
    "no TF_CONFIG": ("multi_worker", None, "multi_worker needs TF_CONFIG; on the first of two workers: {"),
    "no JSON": ("multi_worker", "{", NO_GUIDE),
    "a list": ("auto", "[1]", NO_GUIDE),
    "no cluster": ("auto", '{"cluster": 3}', NO_GUIDE),
    "no task": ("auto", TWO % "", NOT_TOGETHER),
    "a task too many": ("auto", TWO % ', "task": {"type": "worker", "index": 2}', NOT_TOGETHER),
    "another task": ("multi_worker", TWO % ', "task": {"type": "judge", "index": 0}', NOT_TOGETHER),
    "no TPU": ("tpu", None, "no TPU was found (Please provide a TPU Name to connect to.); choose another --strategy"),
}


# Children


def with_config(function, config, *arguments):
    """Calls a function under that TF_CONFIG."""
    os.environ.pop("TF_CONFIG", None)
    if config:
        os.environ["TF_CONFIG"] = config
    function(*arguments)


def cluster():
    """TF_CONFIG of two workers on this machine, on ports that are free."""
    sockets = [socket.socket() for _ in range(2)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return [
        json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}) for index in (0, 1)
    ]


def workers(function, arguments, log):
    """Starts both workers of a cluster, each with arguments of its own."""
    return [
        start(with_config, function, config, *own, log=log.with_name(f"{log.name}_{index}.log"))
        for index, (config, own) in enumerate(zip(cluster(), arguments, strict=True))
    ]


RUN = small_run((1.6, 0.1, 0.2), (0.5, 0.1))  # 2 rounds of 9 steps, 1 of 6


def work(folder, data_dir, state=None, pipe=None):
    """One worker of a training; it leaves what it trained in `state`, and tells the pipe of every step."""
    checkpoints.PARTS = 0
    some_steps, finish = Training._some_steps, Training._finish

    def told(self, *arguments):
        some_steps(self, *arguments)
        if pipe is not None:
            os.write(pipe, b".")

    def left(self, values):
        files.write_arrays(state, values)
        return finish(self, values)

    Training._some_steps = told
    if state is not None:
        Training._finish = left
    trainer.train(RUN, folder, data_dir=data_dir, strategy=distribution.strategy("multi_worker"), checkpoint_s=0)


def seldom(*arguments):
    """The same, with a checkpoint at the end of a round alone, and patience."""
    termination.GRACE_S = 60
    checkpoints.Checkpoints.due = lambda self: False
    stop = Training._stop_if_asked

    def waiting(self, loop):
        if arguments[-1] is not None and self.place.step == 4:  # the one that is told
            assert self.termination.asked_within(60)
        stop(self, loop)

    Training._stop_if_asked = waiting
    work(*arguments)


# Images of noise. Those of the digits are mostly zeros, so that many units of a ReLU are at exactly zero, where any
# rounding, as that of a sum in another order, decides on their gradient: a change of the weights by 1e-7 changes some
# gradients by a hundredth. For the same reason the rate is low and the steps are few.
FEW_STEPS = dataclasses.replace(small_run((0.5, 0.02, 0.2)), entry="noise")


def of_noise(data_dir):
    images, rng = images_of(FEW_STEPS, data_dir), np.random.default_rng(0)
    for split, size in (("train", images.size), ("test", len(images))):
        labels = rng.integers(0, 10, size, dtype=np.int32)
        pixels = rng.integers(0, 256, (size, 8, 8, 1), dtype=np.uint8)
        images._in_memory[split] = tf.constant(pixels), tf.constant(labels)
    return images


def few_steps(folder, data_dir, strategy, synchronized):
    if strategy == "mirrored":
        device = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
    scope = distribution.strategy(strategy)
    assert scope.num_replicas_in_sync == (1 if strategy == "one_device" else 2)
    Training(
        FEW_STEPS, folder, of_noise(data_dir), TensorFlowEngine(scope), Options(synchronized=synchronized)
    ).run_phases()


def harness(data_dir, folder):
    """All trainings, about two processes at a time; writes the exit statuses to statuses.json."""
    folder, found = pathlib.Path(folder), {}

    def both_end(name, children):
        found[name] = [ended(child, 400) for child in children]

    for number, (strategy, config, _) in enumerate(NO_CLUSTERS.values()):
        child = start(with_config, distribution.strategy, config, strategy, log=folder / f"mistake_{number}.log")
        found[f"mistake {number}"] = ended(child)

    # Uninterrupted; the second worker's workdir is another one, where nothing must appear.
    (folder / "states").mkdir()
    both_end(
        "whole",
        workers(
            work,
            [(folder / name, data_dir, folder / "states" / f"{name}.npz") for name in ("whole", "of_worker_1")],
            folder / "whole",
        ),
    )

    # First the second worker is killed, then the first, then nobody.
    for victim in (1, 0, None):
        reader, writer = os.pipe()
        name = "nobody_killed" if victim is None else f"worker_{victim}_killed"
        arguments = [(folder / "killed", data_dir, None, writer if index == victim else None) for index in (0, 1)]
        children = workers(work, arguments, folder / name)
        os.close(writer)
        if victim is not None:
            for _ in range(4):
                os.read(reader, 1)
            os.kill(children[victim], signal.SIGKILL)
            if victim == 1:  # the other one takes its time: the rest of the trainings meanwhile
                alone = [
                    start(few_steps, folder / "one", data_dir, "one_device", False, log=folder / "one.log"),
                    start(few_steps, folder / "mirrored", data_dir, "mirrored", True, log=folder / "mirrored.log"),
                ]
        both_end(name, children)
        os.close(reader)
        if victim == 1:
            shutil.copytree(folder / "killed", folder / "ahead")
    # One is told to stop: all stop after the same step, and the first one saves.
    for told in (1, 0):
        reader, writer = os.pipe()
        name = f"worker_{told}_told"
        folders = [(folder / name, data_dir, None, writer if index == told else None) for index in (0, 1)]
        children = workers(seldom, folders, folder / name)
        os.close(writer)
        for _ in range(4):
            os.read(reader, 1)
        os.kill(children[told], signal.SIGTERM)
        both_end(name, children)
        os.close(reader)
    both_end("alone", alone)
    apart = start(few_steps, folder / "apart", data_dir, "mirrored", False, log=folder / "apart.log")
    both_end("apart", [apart])
    both_end(
        "synchronized workers",
        workers(few_steps, [(folder / "workers", data_dir, "multi_worker", True)] * 2, folder / "workers"),
    )
    # One has a workdir that has come further.
    both_end(
        "different",
        workers(work, [(folder / name, data_dir) for name in ("ahead", "behind")], folder / "different"),
    )
    files.write_json(folder / "statuses.json", found)


@pytest.fixture(scope="module")
def distributed(digits_dir, tmp_path_factory):
    """The folder of the trainings, and the exit statuses of their processes."""
    folder = tmp_path_factory.mktemp("distributed")
    with pytest.MonkeyPatch.context() as patch:  # kernels as TensorFlow takes them, whose rounding the bounds are for
        patch.delenv(onednn.VARIABLE, raising=False)
        in_a_fresh_process(harness, digits_dir, folder)
    return folder, files.read_json(folder / "statuses.json")


def errors(log):
    return [line for line in log.read_text().splitlines() if line.startswith("error: ")]


@pytest.mark.slow
@pytest.mark.parametrize("name", NO_CLUSTERS)
def test_a_cluster_that_is_none_is_one_line(distributed, name):
    folder, statuses = distributed
    number = list(NO_CLUSTERS).index(name)
    log = folder / f"mistake_{number}.log"
    assert statuses[f"mistake {number}"] == 1, log.read_text()
    (line,) = errors(log)
    assert line.startswith(f"error: {NO_CLUSTERS[name][2]}")
    assert "Traceback" not in log.read_text()


# Several workers


@pytest.mark.slow
def test_two_workers_train_the_same_and_one_writes(distributed):
    folder, statuses = distributed
    assert statuses["whole"] == [0, 0], "".join(path.read_text() for path in folder.glob("whole_*.log"))
    assert not (folder / "of_worker_1").exists()
    result = files.read_json(folder / "whole" / "result.json")
    assert (result["steps"], result["test_images"]) == (24, 360)
    one, other = (files.read_arrays(folder / "states" / f"{name}.npz") for name in ("whole", "of_worker_1"))
    assert set(one) == set(other)
    for name, value in one.items():
        assert other[name].tobytes() == value.tobytes(), name
    assert "Phase 2 of 2" in (folder / "whole_0.log").read_text()
    assert "Phase" not in (folder / "whole_1.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0])
def test_where_a_worker_is_killed_the_other_ends_with_one_line(distributed, victim):
    folder, statuses = distributed
    log = folder / f"worker_{victim}_killed_{1 - victim}.log"
    expected = [1, 1]
    expected[victim] = -signal.SIGKILL
    assert statuses[f"worker_{victim}_killed"] == expected, log.read_text()
    (line,) = errors(log)
    assert line.startswith("error: another worker is gone")
    assert line.endswith("started again on all of them, the same command goes on from the newest checkpoint")
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_killed_workers_started_again_end_in_the_same_bytes(distributed):
    folder, statuses = distributed
    assert statuses["nobody_killed"] == [0, 0]
    resumed = re.findall(r"^Resuming small after step (\d+) of 24$", (folder / "nobody_killed_0.log").read_text(), re.M)
    assert len(resumed) == 1 and 4 <= int(resumed[0]) < 24
    assert_same_end(folder / "killed", folder / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("told", [1, 0])
def test_where_a_worker_is_told_to_stop_all_do_and_the_step_is_saved(distributed, told):
    folder, statuses = distributed
    logs = [(folder / f"worker_{told}_told_{index}.log").read_text() for index in (0, 1)]
    expected = [1, 1]
    expected[told] = 0
    assert statuses[f"worker_{told}_told"] == expected, logs
    step = newest(folder / f"worker_{told}_told")["place"]["step"]
    assert step == 4
    assert f"\nSaved after step {step} of 24; the same command goes on from there\n" in logs[0]
    (line,) = errors(folder / f"worker_{told}_told_{1 - told}.log")
    assert line.startswith(f"error: another worker was told to stop; all did, after step {step}: started again on all")


@pytest.mark.slow
def test_workers_with_different_workdirs_are_told_so(distributed):
    folder, statuses = distributed
    assert statuses["different"] == [1, 1]
    step = newest(folder / "ahead")["place"]["step"]
    assert step > 0
    for index in (0, 1):
        (line,) = errors(folder / f"different_{index}.log")
        start_of_all = f"error: the workers would begin at the steps [{step}, 0]"
        assert line == f"{start_of_all}: --workdir must be one folder that all of them see"


# Batch norm over all replicas


def difference(one, other):
    """Between the weights and statistics of two trainings: the median, that of the statistics, and the largest."""
    states = [newest(folder) for folder in (one, other)]
    for state in states:
        del state["place"]
    assert set(states[0]) == set(states[1])
    found = {name: np.abs(states[0][name] - states[1][name]).ravel() for name in states[0]}
    statistics = [value for name, value in found.items() if "moving_" in name]
    assert statistics
    found = np.concatenate(list(found.values()))
    return np.median(found), np.median(np.concatenate(statistics)), found.max()


def assert_one_device(found, folder):
    """All weights agree to rounding, but for the few that a ReLU moves whose input a rounding carried over zero."""
    median, of_statistics, largest = difference(found, folder / "one")
    of_half, statistics_of_half, largest_of_half = difference(folder / "apart", folder / "one")
    assert of_half > 1e-5 and largest_of_half > 1e-3, "batch norm of half the batch is something else"
    assert median < 1e-7 and of_statistics < statistics_of_half / 50 and largest < largest_of_half / 50


@pytest.mark.slow
def test_two_replicas_with_half_the_batch_are_one_device(distributed):
    folder, statuses = distributed
    logs = "".join(path.read_text() for name in ("one", "mirrored", "apart") for path in folder.glob(f"{name}*.log"))
    assert (statuses["alone"], statuses["apart"]) == ([0, 0], [0]), logs
    assert newest(folder / "one")["place"]["step"] == 6
    assert_one_device(folder / "mirrored", folder)


@pytest.mark.slow
def test_two_workers_with_half_the_batch_are_one_device(distributed):
    folder, statuses = distributed
    assert statuses["synchronized workers"] == [0, 0], (folder / "workers_0.log").read_text()
    assert_one_device(folder / "workers", folder)


@pytest.mark.parametrize(
    ("cluster", "task", "writes"),
    [
        ({"chief": ["a:1"], "worker": ["b:1", "c:1"]}, ("chief", 0), True),
        ({"chief": ["a:1"], "worker": ["b:1", "c:1"]}, ("worker", 0), False),
        ({"chief": ["a:1"], "worker": ["b:1", "c:1"]}, ("worker", 1), False),
        ({"worker": ["b:1", "c:1"]}, ("worker", 0), True),
        ({"worker": ["b:1", "c:1"]}, ("worker", 1), False),
    ],
)
def test_one_process_of_a_cluster_writes(cluster, task, writes, monkeypatch):
    config = {"cluster": cluster, "task": {"type": task[0], "index": task[1]}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    scope = types.SimpleNamespace(cluster_resolver=tf.distribute.cluster_resolver.TFConfigClusterResolver())
    assert distribution.is_chief(scope) is writes
