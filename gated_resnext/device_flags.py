"""The flags that commands which train share: on which devices, in which arithmetic."""

from __future__ import annotations

from typing import Any

from absl import flags

from gated_resnext import errors

STRATEGY = flags.DEFINE_string("strategy", "auto", "auto, one_device, mirrored, multi_worker or tpu.")
SYNC_BATCH_NORM = flags.DEFINE_bool("sync_batch_norm", False, "Batch norm counts the images of all replicas.")
PRECISION = flags.DEFINE_string("precision", "float32", "Of the arithmetic: float32, mixed_bfloat16 or mixed_float16.")
REMAT = flags.DEFINE_bool("remat", False, "Keep half as much for the backward pass of learned gates, compute more.")
ALL = STRATEGY, SYNC_BATCH_NORM, PRECISION, REMAT


def options() -> dict[str, Any]:
    """What `trainer.train` takes of them; `scope` is None under JAX.

    Raises:
        errors.UserError: if there are no such devices.
    """
    import keras

    scope = None
    if keras.backend.backend() != "jax":
        from gated_resnext import distribution

        scope = distribution.strategy(STRATEGY.value)
    elif STRATEGY.value not in ("auto", "one_device") or SYNC_BATCH_NORM.value:
        raise errors.UserError("under JAX one device trains: leave --strategy and --sync_batch_norm out")
    return {
        "scope": scope,
        "sync_batch_norm": SYNC_BATCH_NORM.value,
        "precision": PRECISION.value,
        "remat": REMAT.value,
    }
