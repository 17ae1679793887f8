"""The flags that commands which train share: another architecture, which schedule, devices and arithmetic."""

from __future__ import annotations

import json
import os
from typing import Any

from absl import flags

from gated_resnext import errors, files, recipes

ARCHITECTURE = flags.DEFINE_string(
    "architecture", None, "Fields of the entry's Architecture to change, as JSON or in a .json file."
)
EPOCHS_SCALE = flags.DEFINE_float("epochs_scale", 1.0, "Makes every phase longer or shorter, in proportion.")
RECIPE = flags.DEFINE_string(
    "recipe", None, f"Schedule: {', '.join(recipes.RECIPES)} or a .json file. Default: that of the data set."
)
GATE_LEARNING_RATE = flags.DEFINE_float(
    "gate_learning_rate", None, "Another rate of the gates: a short schedule hardly moves them at the paper's 0.2."
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images of a step, over all devices. Default: the schedule's, whose rates stay.", lower_bound=1
)
CHECKPOINT_SECONDS = flags.DEFINE_float("checkpoint_seconds", 60, "Work that may be lost, in seconds.", lower_bound=0)
ON_NAN = flags.DEFINE_string("on_nan", "stop", "At a loss that is not finite: stop, or rollback and halve the rate.")
STRATEGY = flags.DEFINE_string("strategy", "auto", "auto, one_device, mirrored, multi_worker or tpu.")
SYNC_BATCH_NORM = flags.DEFINE_bool("sync_batch_norm", False, "Batch norm counts the images of all replicas.")
PRECISION = flags.DEFINE_string("precision", "float32", "Of the arithmetic: float32, mixed_bfloat16 or mixed_float16.")
REMAT = flags.DEFINE_bool("remat", False, "Keep half as much for the backward pass of learned gates, compute more.")
JIT_COMPILE = flags.DEFINE_bool("jit_compile", False, "XLA compiles the steps, on one device; with JAX it always does.")
TEXTS = ARCHITECTURE, RECIPE
# What a result depends on, as a ledger's command tells it.
SCHEDULE = RECIPE, GATE_LEARNING_RATE, BATCH_SIZE
ARITHMETIC = STRATEGY, SYNC_BATCH_NORM, PRECISION, REMAT, JIT_COMPILE, ON_NAN


def recipe(default: str) -> recipes.Recipe:
    """The schedule of --recipe, or else of that name, as the other flags change it.

    Raises:
        errors.UserError: if there is none, or a number is out of range.
    """
    return recipes.read(RECIPE.value or default, EPOCHS_SCALE.value, GATE_LEARNING_RATE.value, BATCH_SIZE.value)


def options() -> dict[str, Any]:
    """What `trainer.train` takes of them; `strategy` is None under JAX.

    Raises:
        errors.UserError: if there are no such devices.
    """
    if not CHECKPOINT_SECONDS.value >= 0:  # absl's bound lets NaN pass
        raise errors.UserError(f"checkpoint_seconds must be 0 or more. Received: {CHECKPOINT_SECONDS.value}")
    import keras

    strategy = None
    if keras.backend.backend() != "jax":
        from gated_resnext import distribution

        strategy = distribution.strategy(STRATEGY.value)
    elif STRATEGY.value not in ("auto", "one_device") or SYNC_BATCH_NORM.value:
        raise errors.UserError("under JAX one device trains: leave --strategy and --sync_batch_norm out")
    return {
        "strategy": strategy,
        "sync_batch_norm": SYNC_BATCH_NORM.value,
        "precision": PRECISION.value,
        "remat": REMAT.value,
        "jit_compile": JIT_COMPILE.value,
        "on_nan": ON_NAN.value,
        "checkpoint_s": CHECKPOINT_SECONDS.value,
    }


def fields() -> dict[str, Any]:
    """The object of --architecture; empty without it.

    Raises:
        errors.UserError: if it is something else.
    """
    text = ARCHITECTURE.value
    if text is None:
        return {}
    try:
        found = files.read_json(os.path.expanduser(text)) if text.endswith(".json") else json.loads(text)
    except errors.UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise errors.UserError(f"--architecture is no JSON ({error}). Received: {text[:100]!r}") from None
    if not isinstance(found, dict):
        raise errors.UserError(f'--architecture must be like {{"depth": 29, "fan_in": 2}}. Received: {text[:100]!r}')
    return found
