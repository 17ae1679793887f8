"""On which devices a training runs: tf.distribute's strategies by name."""

from __future__ import annotations

import functools
import json
import os
from typing import Any

import tensorflow as tf

from gated_resnext.errors import UserError, first_line

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")


def strategy(name: str = "auto") -> tf.distribute.Strategy:
    """The tf.distribute strategy of a name.

    Args:
        name: "one_device"; "mirrored", over the GPUs of this machine, or else its CPUs; "multi_worker", over the
            machines that TF_CONFIG names; "tpu"; or "auto", the first that applies of multi_worker (where TF_CONFIG
            names several workers), mirrored (where there are several devices) and one_device.

    Raises:
        UserError: if the name is unknown, or there is no such cluster or device.
    """
    if name not in STRATEGIES:
        raise UserError(f"strategy must be one of {', '.join(STRATEGIES)}. Received: {name!r}")
    if name == "multi_worker" or (name == "auto" and _workers() > 1):
        return _multi_worker()
    if name == "tpu":
        return _tpu()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if name == "mirrored" or (name == "auto" and len(devices) > 1):
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes: the only one, or the first worker."""
    resolver = getattr(strategy, "cluster_resolver", None)
    if not isinstance(resolver, tf.distribute.cluster_resolver.TFConfigClusterResolver):
        return True
    chief = "chief" if "chief" in resolver.cluster_spec().jobs else "worker"
    return resolver.task_type in (None, chief) and not resolver.task_id


def check_together(strategy: tf.distribute.Strategy, number: int) -> None:
    """Finds that all workers begin at the same step.

    Raises:
        UserError: if they do not, as when each has a workdir of its own.
    """
    if not _are_several(strategy):
        return
    found = _gathered(strategy)(tf.constant([number])).numpy().tolist()
    if len(set(found)) > 1:
        raise UserError(
            f"the workers would begin at the steps {found}: --workdir must be one folder that all of them see"
        )


def any_true(strategy: tf.distribute.Strategy, here: bool) -> bool:
    """Whether it is so on any of the workers, all of which ask at the same time."""
    return bool(_gathered(strategy)(tf.constant([int(here)])).numpy().any()) if _are_several(strategy) else here


def _are_several(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


@functools.cache
def _gathered(strategy: tf.distribute.Strategy) -> Any:
    """Compiled: a number of each worker as the numbers of all replicas."""
    return tf.function(lambda number: strategy.gather(strategy.run(lambda: number), axis=0), autograph=False)


def _workers() -> int:
    """How many workers TF_CONFIG names."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        return 0
    try:
        cluster: dict[str, Any] = json.loads(text).get("cluster", {})
        return sum(len(cluster.get(job, ())) for job in ("chief", "worker"))
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"TF_CONFIG is not what TensorFlow's guide to multi-worker training asks for: {error}"
        ) from None


def _multi_worker() -> tf.distribute.Strategy:
    if not _workers():
        raise UserError(
            'multi_worker needs TF_CONFIG; on the first of two workers: {"cluster": {"worker": ["a:2222", "b:2222"]}, '
            '"task": {"type": "worker", "index": 0}}'
        )
    print(f"Waiting for all {_workers()} workers of TF_CONFIG", flush=True)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (ValueError, KeyError, TypeError, RuntimeError, tf.errors.OpError) as error:
        raise UserError(f"the workers of TF_CONFIG cannot train together: {error}") from error


def _tpu() -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise UserError(f"no TPU was found ({first_line(error)}); choose another --strategy") from error
    return tf.distribute.TPUStrategy(resolver)
