"""The paper's optimizer: SGD with momentum and L2 for the weights, plain SGD for the gates."""

from __future__ import annotations

import numbers
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("gated_resnext")
class GateConnectSGD(keras.optimizers.SGD):
    r"""One optimizer, three kinds of variables, told apart by the last word of their name.

    `kernel`: v <- momentum * v - rate * (gradient + weight_decay * w); w <- w + v, the L2 coupled as in the paper; also
        for what ends so, such as `depthwise_kernel`.
    `real_gates`: g <- g - gate_rate * gradient; the gate's own constraint then clips and normalises it.
    All others (gamma, beta, bias, branch_weights): as the kernels, without L2.

    A variable may have a `rate_factor`, by which its rate is multiplied: what a mean over n inputs makes n times weaker
    moves as that of a sum with n^2 (docs/deviations.md, row 14).

    Args:
        learning_rate: of the weights.
        gate_learning_rate: of the gates, a number; one that is set later counts once the model is compiled again.
        l2: weight decay of the kernels. (Keras' own `weight_decay` is decoupled, and of gates, gamma and beta too.)
        momentum: of the weights.

    Raises:
        ValueError: if there is a `weight_decay`, or the gates' rate is no number.

    Reference:
        Algorithm 1, step 3, and Appendix E of the paper; docs/deviations.md, rows 11, 14 and 16.
    """

    def __init__(
        self,
        learning_rate: float = 0.1,
        *,
        gate_learning_rate: float = 0.2,
        l2: float = 5e-4,
        momentum: float = 0.9,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("weight_decay"):
            raise ValueError(
                "l2 decays the kernels; weight_decay would decay gates, gamma and beta too. "
                f"Received: weight_decay={kwargs['weight_decay']!r}"
            )
        if isinstance(gate_learning_rate, bool) or not isinstance(gate_learning_rate, numbers.Real):
            raise ValueError(
                f"gate_learning_rate must be a number. Received: gate_learning_rate={gate_learning_rate!r}"
            )
        kwargs.setdefault("name", "sgd")
        super().__init__(learning_rate, momentum, **kwargs)
        self.gate_learning_rate: float = gate_learning_rate
        self.l2: float = l2

    def build(self, variables: list[keras.Variable]) -> None:
        # Under tf.distribute `update_step` sees variables without a path, but in the order given here.
        self._kinds = [variable.path.rsplit("/", 1)[-1] for variable in variables]
        self._factors = [float(getattr(variable, "rate_factor", 1.0)) for variable in variables]
        super().build(variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        index = self._get_variable_index(variable)
        kind, factor = self._kinds[index], self._factors[index]
        if kind == "real_gates":
            self.assign_sub(variable, gradient * ops.cast(self.gate_learning_rate, gradient.dtype))
            return
        if kind.endswith("kernel") and self.l2:
            gradient = gradient + ops.cast(self.l2, gradient.dtype) * variable
        super().update_step(gradient, variable, learning_rate * factor if factor != 1.0 else learning_rate)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gate_learning_rate": self.gate_learning_rate, "l2": self.l2}


def restart(optimizer: Any) -> None:
    """Sets momentum, counters and loss scale to where they begin."""
    for variable in optimizer.variables:
        scale = variable.path.endswith("dynamic_scale")
        variable.assign(ops.full(variable.shape, optimizer.initial_scale if scale else 0, dtype=variable.dtype))
