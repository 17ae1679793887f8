"""Branches of any kind, each with a gate that learns which of the branches before it reads."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from gated_resnext import gates
from gated_resnext.aggregation import GatedAggregation, hand_down_trainable
from gated_resnext.connectivity import Connectivity, Reads, reads_of
from gated_resnext.errors import check_choice

Tensor = Any


@keras.saving.register_keras_serializable("gated_resnext")
class GatedBranches(keras.layers.Layer):
    r"""J layers or models side by side, each of which reads x_j = ReLU((1/K) \sum_k g_jk y_k) of the outputs before.

    The branches may differ in kind; only the shapes that they give must agree. The first `GatedBranches` of a network
    is called on one tensor, which all its branches read; each of the others on a list, such as the one before returned.
    With `sources` the wiring is fixed. Without, the layer learns gates as `GatedAggregation` does.
    `gated_resnext.freeze` and `gated_resnext.prune` take a functional or Sequential model that is made of such layers.

    Args:
        branches: the J layers or models, each of them given once.
        fan_in: K.
        aggregation: "mean" as above, or "sum" without the 1/K.
        activation: what follows the sum, by its name in Keras; None for nothing.
        sources: for each branch, the outputs before that it reads; None to learn them.
        seed: of the draws; None for a random one.

    Call arguments:
        y: a list of C tensors of one shape, what the branches before gave; or one tensor, which every branch reads as
            it is.
        training: whether to draw.

    Returns:
        A list of J tensors.

    Raises:
        ValueError: if there are no branches, one is no layer or is there twice, they give different shapes, K is more
            than C, `aggregation` is another, or `sources` are out of what is read.

    Example:

    >>> def blocks():
    ...     return [keras.layers.Conv2D(16, size, padding="same") for size in (1, 3, 5)]
    >>> images = keras.Input((8, 8, 1))
    >>> y = GatedBranches(blocks())(images)
    >>> y = GatedBranches(blocks(), fan_in=2)(y)
    >>> x = keras.layers.GlobalAveragePooling2D()(keras.layers.Average()(y))
    >>> keras.Model(images, keras.layers.Dense(10)(x)).output_shape
    (None, 10)

    Reference:
        Eq. 2 and Algorithm 1 of the paper, whose branches are bottlenecks.
    """

    def __init__(
        self,
        branches: Sequence[keras.layers.Layer],
        fan_in: int = 1,
        aggregation: str = "mean",
        activation: str | None = "relu",
        sources: Sequence[Sequence[int]] | None = None,
        *,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("aggregation", aggregation, ("mean", "sum"))
        branches = list(branches)
        layers = all(isinstance(branch, keras.layers.Layer) for branch in branches)
        if not branches or not layers or len(set(map(id, branches))) != len(branches):
            raise ValueError(
                f"branches must be one or more layers or models, each given once. Received: branches={branches}"
            )
        self.branches = branches
        # With `remat` it leaves the sum to this layer, whose activation is not always a ReLU.
        self.gate = GatedAggregation(
            fan_in, aggregation, remat=True, blocks=len(branches), seed=seed, name="gate", dtype=self.dtype_policy
        )
        self.activation = keras.activations.get(activation)
        self.sources = None if sources is None else reads_of(sources)
        if self.sources is not None and len(self.sources) != len(branches):
            raise ValueError(
                f"sources must have an entry for each of the {len(branches)} branches. Received: sources={self.sources}"
            )

    def build(self, shape: Any) -> None:
        hand_down_trainable(self)
        self.gated = isinstance(shape[0], (tuple, list))
        if self.gated:
            shapes = {tuple(each) for each in shape}
            if len(shapes) != 1:
                raise ValueError(
                    f"the tensors to choose from must have one shape. Received: shapes={sorted(shapes, key=str)}"
                )
            if self.sources is None:
                self.gate.build((len(shape), *shape[0]))
            else:
                Connectivity(len(shape), (self.sources,))
            shape = shape[0]
        elif self.sources is not None:
            raise ValueError(f"one tensor is read by all branches. Received: sources={self.sources}")
        read = keras.KerasTensor(shape, self.compute_dtype)
        outputs = [branch(read) for branch in self.branches]
        given = [getattr(output, "shape", None) for output in outputs]
        if None in given:
            raise ValueError(f"each branch must give one tensor. Received: outputs={outputs}")
        if len(set(given)) != 1:
            raise ValueError(f"the branches must give one shape. Received: shapes={given}")

    def reads(self) -> Reads | None:
        """For each branch, the outputs before that it evaluates with (its top K if learned); None of one tensor.

        Raises:
            ValueError: if the layer was not built.
        """
        if not self.built:
            raise ValueError(f"{self.name} was not built: it has gates once it has read something")
        if self.sources is not None or not self.gated:
            return self.sources
        real_gates = ops.convert_to_numpy(self.gate.real_gates)
        return Connectivity.top_k([real_gates], self.gate.fan_in).sources[0]

    def call(self, y: Any, training: bool | None = None) -> list[Tensor]:
        inputs = self._inputs(y, training) if self.gated else [y] * len(self.branches)
        return [branch(x) for branch, x in zip(self.branches, inputs, strict=True)]

    def _inputs(self, y: Sequence[Tensor], training: bool | None) -> list[Tensor]:
        if self.sources is None:
            stacked, weights = self.gate(ops.stack(y), training=training)
            return ops.unstack(
                self.activation(gates.aggregate(weights, stacked, learned=self.gate.trainable)), len(self.branches)
            )
        # Term by term, so that a sum is the same to the last bit once the outputs that it leaves out are gone.
        read = {}
        for block in set(self.sources):
            total = functools.reduce(ops.add, [y[source] for source in block])
            # A product of one, too: the output of a branch itself would keep its mask, which learned gates drop.
            read[block] = self.activation(total * (1.0 / len(block) if self.gate.aggregation == "mean" else 1.0))
        return [read[block] for block in self.sources]

    def remade(self, branches: Sequence[int], sources: Sequence[Sequence[int]] | None) -> GatedBranches:
        """A layer of some of the branches and with other sources, without the weights.

        Its branches are made by their own classes: Keras finds by name only those that are registered.
        """
        chosen = [self.branches[branch] for branch in branches]
        clones = [type(branch).from_config(branch.get_config()) for branch in chosen]
        return GatedBranches(**{**self._settings(), "branches": clones, "sources": sources})

    def get_config(self) -> dict[str, Any]:
        branches = [keras.saving.serialize_keras_object(branch) for branch in self.branches]
        return {**self._settings(), "branches": branches}

    def _settings(self) -> dict[str, Any]:
        """All but the branches."""
        return {
            **super().get_config(),
            "fan_in": self.gate.fan_in,
            "aggregation": self.gate.aggregation,
            "activation": keras.activations.serialize(self.activation),
            "sources": self.sources,
            "seed": self.gate.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> GatedBranches:
        branches = [keras.saving.deserialize_keras_object(branch) for branch in config["branches"]]
        return cls(**{**config, "branches": branches})
