"""Keras layers that add what branches wrote: by learned gates, by a fixed wiring, or all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

import gated_resnext.optimizer  # noqa: F401  whose name is in the file of a model that was compiled with it
from gated_resnext import gates
from gated_resnext.architecture import AGGREGATIONS, GATES
from gated_resnext.connectivity import Connectivity, reads_of
from gated_resnext.errors import check_choice, whole_number
from gated_resnext.seeds import a_seed

Tensor = Any


def hand_down_trainable(layer: keras.layers.Layer) -> None:
    """Makes the layers of one that was made with `trainable=False` what it is: Keras sets the outer one alone."""
    if not layer.trainable:
        layer.trainable = True  # else what follows assigns what is there, which reaches no other layer
        layer.trainable = False


class LearnsGates(keras.layers.Layer):
    """A layer with real gates, of which training draws K a row.

    A subclass sets `fan_in` and `seed`, and calls `add_gates` when it is built where it learns its wiring.

    Reference:
        Section 2.2 of the paper; docs/deviations.md, rows 9 to 13.
    """

    fan_in: int
    seed: int

    def add_gates(self, shape: tuple[int, ...]) -> None:
        """The real gates, all equal, rows along the last axis, and the number of the draw."""
        self.real_gates = self.add_weight(
            name="real_gates",
            shape=shape,
            initializer=keras.initializers.Constant(1.0 / shape[-1]),
            constraint=gates.project,
            dtype="float32",
            autocast=False,
        )
        # A counter of our own, not a SeedGenerator: all replicas of a step must read the same value and count it once.
        self.step = self.add_weight(
            name="step",
            shape=(),
            initializer="zeros",
            dtype="int",  # of 64 bits under TensorFlow, which keeps no others on a GPU
            trainable=False,
            aggregation="only_first_replica",
        )

    def binary_gates(self, training: bool | None) -> Tensor:
        """K ones a row, gradients straight through: drawn in training of a layer that is `trainable`, else the top K.

        The draw is a function of (seed, number of the call).
        """
        real = ops.convert_to_tensor(self.real_gates)
        if training and self.trainable:
            step = ops.convert_to_tensor(self.step)
            binary = gates.draw(real, self.fan_in, seed=self.seed, step=step)
            self.step.assign(step + 1)
        else:
            binary = gates.top_k(real, self.fan_in)
        return gates.straight_through(real, binary)


@keras.saving.register_keras_serializable("gated_resnext")
class GatedAggregation(LearnsGates):
    r"""What each block of a module reads: x_j = ReLU((1/K) \sum_k g_jk y_k).

    With `sources` the wiring is fixed. Without, the layer learns `real_gates`, a weight of shape (J, C): in training it
    draws K binary gates a row, once a call, a function of (seed, number of the call); otherwise, and while it is not
    `trainable`, it takes the top K. What calls it twice for a step, as `keras.RematScope` does, gets two draws: `remat`
    is for that.

    With aggregation="weighted", x_j = ReLU(\sum_k g_jk a_jk y_k), where `branch_weights` a of shape (J, C) is learned,
    beginning at 1/K, with which it is the mean. For s_j, the sum before its ReLU, dL/da_jk = g_jk <dL/ds_j, y_k> and
    dL/dg_jk = a_jk <dL/ds_j, y_k>, the latter for all k and straight through to the real gate.

    Args:
        fan_in: K.
        aggregation: "mean" as above, "sum" without the 1/K, or "weighted".
        gates: "binary", or "real" to weigh by the real gates themselves.
        sources: for each block, the blocks before that feed it; None to learn them.
        remat: returns y and the (J, C) weights of the sum instead, of which a `MultiBranchModule` makes the same x and
            does not keep it. Without effect where neither gates nor weights are learned: there x alone is kept anyway.
        blocks: J, where the wiring is learned; None for as many as there are branches before.
        seed: of the draws; None for a random one.

    Call arguments:
        y: (C, batch, height, width, channels), what the blocks before wrote.
        training: whether to draw.

    Returns:
        (J, batch, height, width, channels), the input of each of the J blocks.

    Example:

    >>> GatedAggregation(fan_in=2)(np.ones((4, 1, 8, 8, 16))).shape
    TensorShape([4, 1, 8, 8, 16])

    Reference:
        Eq. 2, Algorithm 1 and, for the weights, section 5 of the paper; docs/deviations.md, rows 1, 2 and 9 to 13.
    """

    def __init__(
        self,
        fan_in: int,
        aggregation: str = "mean",
        gates: str = "binary",
        sources: Sequence[Sequence[int]] | None = None,
        remat: bool = False,
        blocks: int | None = None,
        *,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("aggregation", aggregation, [name for name in AGGREGATIONS if name != "shared"])
        check_choice("gates", gates, GATES if aggregation != "weighted" else ("binary",))
        self.fan_in = whole_number("fan_in", fan_in)
        self.aggregation = aggregation
        self.gates = gates
        self.sources = None if sources is None else reads_of(sources)
        self.remat = remat
        self.blocks = blocks
        self.seed = a_seed(seed)

    def build(self, shape: Any) -> None:
        branches = shape[0]
        if not isinstance(branches, int) or len(shape) < 3:
            raise ValueError(
                "expected one tensor (branches, batch, height, width, channels), of a list keras.ops.stack(list). "
                f"Received: shape={tuple(shape)}"
            )
        if self.sources is not None:
            Connectivity(branches, (self.sources,))
            self.fixed_gates = np.zeros((len(self.sources), branches), np.float32)
            for block, inputs in enumerate(self.sources):
                self.fixed_gates[block, list(inputs)] = 1.0 / len(inputs) if self.aggregation == "mean" else 1.0
            self._add_branch_weights([1.0 / len(inputs) for inputs in self.sources], branches)
            return
        if not 1 <= self.fan_in <= branches:
            raise ValueError(f"fan_in must be between 1 and the {branches} branches. Received: fan_in={self.fan_in}")
        blocks = self.blocks or branches
        self.add_gates((blocks, branches))
        self._add_branch_weights([1.0 / self.fan_in] * blocks, branches)

    def _add_branch_weights(self, first: list[float], branches: int) -> None:
        """The learned weights, row j at `first[j]`; of a pair that is not wired there is one, which is never used."""
        if self.aggregation != "weighted":
            return
        rows = np.tile(np.array(first, np.float32)[:, None], (1, branches))
        self.branch_weights = self.add_weight(
            name="branch_weights",
            shape=rows.shape,
            initializer=lambda shape, dtype: ops.convert_to_tensor(rows, dtype),
            dtype="float32",
            autocast=False,
        )

    def _gates(self, training: bool | None) -> Tensor:
        """(J, C) factors of the sum, from the real gates."""
        if self.gates == "real":
            # Not clipped, as each update leaves them so: under JAX a clipped zero has half its gradient.
            return gates.normalized(ops.convert_to_tensor(self.real_gates))
        binary = self.binary_gates(training)
        return binary * (1.0 / self.fan_in) if self.aggregation == "mean" else binary

    def call(self, y: Tensor, training: bool | None = None) -> Any:
        weights = ops.convert_to_tensor(self._gates(training) if self.sources is None else self.fixed_gates)
        if self.aggregation == "weighted":
            weights = weights * ops.convert_to_tensor(self.branch_weights)
        if self._leaves_it:
            return y, weights
        return ops.relu(gates.aggregate(weights, y, learned=self._learns and self.trainable))

    @property
    def _learns(self) -> bool:
        return self.sources is None or self.aggregation == "weighted"

    @property
    def _leaves_it(self) -> bool:
        return self.remat and self._learns

    def compute_output_spec(self, y: Any, training: bool | None = None) -> Any:
        blocks = (self.blocks or y.shape[0]) if self.sources is None else len(self.sources)
        if self._leaves_it:
            return keras.KerasTensor(y.shape, dtype=y.dtype), keras.KerasTensor((blocks, y.shape[0]), dtype="float32")
        return keras.KerasTensor((blocks, *y.shape[1:]), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "fan_in": self.fan_in,
            "aggregation": self.aggregation,
            "gates": self.gates,
            "sources": self.sources,
            "remat": self.remat,
            "blocks": self.blocks,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable("gated_resnext")
class BranchMean(keras.layers.Layer):
    """ReLU of the mean (or sum) over the branches: what the head reads.

    Call arguments:
        y: (C, batch, height, width, channels).

    Returns:
        (batch, height, width, channels).

    Reference:
        docs/deviations.md, row 4.
    """

    def __init__(self, aggregation: str = "mean", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.aggregation = aggregation

    def call(self, y: Tensor) -> Tensor:
        return ops.relu(ops.mean(y, axis=0) if self.aggregation == "mean" else ops.sum(y, axis=0))

    def compute_output_spec(self, y: Any) -> keras.KerasTensor:
        return keras.KerasTensor(y.shape[1:], dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "aggregation": self.aggregation}
