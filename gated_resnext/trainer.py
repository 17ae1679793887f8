"""Trains what a run says, in a workdir that training again resumes.

The workdir holds: `run.json` (what is trained), `checkpoints/` (the newest states), `metrics.jsonl` and `tensorboard/`
(one row a round), `gates/` (how they moved), `gates.npz` (as they were frozen), and at the end `model.keras` and
`result.json`.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

import keras

from gated_resnext import workdir
from gated_resnext.engines import Engine
from gated_resnext.errors import UserError, shortened
from gated_resnext.phase_networks import Options
from gated_resnext.start import Start
from gated_resnext.termination import Termination
from gated_resnext.training import Training
from gated_resnext.workdir import Run

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
ON_NAN = ("stop", "rollback")


def train(
    run: Run,
    folder: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    strategy: Any = None,
    sync_batch_norm: bool = False,
    precision: str = "float32",
    remat: bool = False,
    jit_compile: bool = False,
    on_nan: str = "stop",
    checkpoint_s: float = 60.0,
    began: Callable[[str], None] | None = None,
    on_round: Callable[[dict[str, Any]], None] | None = None,
    start: Start | None = None,
) -> dict[str, Any]:
    """Trains, or goes on training, and evaluates.

    Every step is a function of the state before it, so that a run stopped anywhere ends in the weights of an
    uninterrupted one, to the bit on a CPU. There the process keeps its freed memory from then on
    (`gated_resnext.memory`). SIGTERM saves and raises SystemExit(0), Ctrl-C saves and raises
    KeyboardInterrupt.

    Args:
        run: what to train.
        folder: the workdir; made if it is not there. Several workers share one.
        data_dir: folder of tensorflow-datasets; under JAX, of what `gated_resnext.pack` wrote.
        strategy: of tf.distribute; None for the one in force. Under JAX there is none.
        sync_batch_norm: whether batch norm counts the images of all replicas.
        precision: "float32", "mixed_bfloat16" or "mixed_float16"; gates, statistics and weights are float32 in all,
            and so is the network that comes out, whose accuracy is the result's.
        remat: whether learned gates keep one wide tensor a module for the backward pass, not two.
        jit_compile: whether XLA compiles TensorFlow's steps, of one replica alone. JAX's it always compiles, whatever
            this says.
        on_nan: what a loss that is not finite does: "stop", or "rollback" to the newest checkpoint and on from there
            at half the rate until the end of the phase.
        checkpoint_s: seconds of work that may be lost.
        began: called with what trains, such as "the CPU", before the first step, once nothing is left to be refused;
            not where no step is left.
        on_round: called with every new row of `metrics.jsonl`; of several workers, in the first.
        start: the network that the run begins with, as `start.read` gave it; None of a run from fresh weights, or of
            one that has a checkpoint.

    Returns:
        The result, as `result.json` holds it.

    Raises:
        UserError: if the workdir is of another run or another training is at work in it, no checkpoint is whole, the
            data is not there, or, a `DivergedError`, the loss is no longer finite.

    Reference:
        Section 2.2, Algorithm 1 and Appendix E of the paper.
    """
    if on_nan not in ON_NAN:
        raise UserError(f"on_nan must be one of {', '.join(ON_NAN)}. Received: {on_nan!r}")
    if precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}. Received: {precision!r}")
    if start is not None and run.weights != start.name:
        raise UserError(f"the run begins with {run.weights or 'fresh weights'}. Received: start={start.name!r}")
    engine = _engine(strategy, jit_compile)
    if engine.jit_compile and engine.replicas > 1:
        raise UserError(
            f"--jit_compile is for one device and there are {engine.replicas} replicas: --strategy=one_device takes one"
        )
    if run.recipe.batch_size % engine.replicas:
        raise UserError(
            f"the batch of {run.recipe.batch_size} does not divide into {engine.replicas} replicas: --batch_size=N "
            "takes another, --strategy=one_device one of the devices, CUDA_VISIBLE_DEVICES=0,1 some"
        )
    folder = pathlib.Path(folder).absolute()  # wherever the caller goes meanwhile
    workdir.check(run, folder)
    images = engine.images(run.dataset, run.recipe, data_dir, run.architecture.input_shape, run.limit)
    with Termination() as termination, workdir.alone(folder, engine.chief) as locked:
        workdir.check(run, folder, free=locked)  # another may have begun while the images were prepared
        options = Options(sync_batch_norm, precision, remat)
        hooks = began or (lambda devices: None), on_round or (lambda row: None)
        training = Training(run, folder, images, engine, options, on_nan, checkpoint_s, termination, *hooks, start)
        try:
            return training.run_phases()
        except engine.Unreadable as error:
            if not engine.of_images(error):
                raise
            images.check()  # which names those of a folder
            raise UserError(
                f"an image could not be read ({shortened(error)}); mend that, and the same command goes on"
            ) from error
        except engine.Lost as error:
            if termination.asked:  # and so was the worker that is gone
                termination.end()
            raise UserError(
                "another worker is gone; started again on all of them, the same command goes on from the newest "
                "checkpoint"
            ) from error


def _engine(strategy: Any, jit_compile: bool) -> Engine:
    """What trains under Keras' backend: compiled steps, and the images they take."""
    if keras.backend.backend() == "jax":
        from gated_resnext.jax_loop import JaxEngine

        return JaxEngine()
    if keras.backend.backend() != "tensorflow":
        raise UserError(f"KERAS_BACKEND must be tensorflow or jax to train. Received: {keras.backend.backend()}")
    from gated_resnext.loop import TensorFlowEngine

    return TensorFlowEngine(strategy, jit_compile)
