"""Gradients of one's own, on any Keras backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import ops

Tensor = Any


def custom_gradient(function: Callable[..., tuple[Any, Callable[..., Any]]]) -> Any:
    """`keras.ops.custom_gradient`, whose `grad` is given the gradients of the outputs, an argument each.

    Args:
        function: of tensors, no variables; gives its outputs and `grad`, which gives a gradient for each argument.
    """

    def adapted(*args: Tensor) -> tuple[Any, Any]:
        outputs, grad = function(*args)

        def given(*gradients: Any, upstream: Any = None) -> Any:
            if upstream is not None:  # PyTorch, whose positional arguments are the function's
                gradients = (upstream,)
            elif isinstance(gradients[0], (tuple, list)):  # JAX, of several outputs
                (gradients,) = gradients
            return grad(*gradients)

        return outputs, given

    return ops.custom_gradient(adapted)
