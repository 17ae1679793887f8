"""The network of each phase, compiled, and its weights on the way from one phase to the next.

While the wiring is learned it is the whole network. Once it is fixed it is the pruned one, the same function with the
same updates of what remains; the weights of the unused blocks wait until the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from gated_resnext import pruning
from gated_resnext.connectivity import Connectivity
from gated_resnext.engines import Engine, Loop
from gated_resnext.errors import UserError
from gated_resnext.model import GatedResNeXt
from gated_resnext.optimizer import GateConnectSGD, restart
from gated_resnext.pruning import Weights
from gated_resnext.recipes import Phase
from gated_resnext.workdir import Run

OPTIMIZER = "optimizer/"


class Options(NamedTuple):
    """Of a network and its arithmetic, as `GatedResNeXt` has them."""

    synchronized: bool = False
    precision: str = "float32"
    remat: bool = False


OPTIONS = Options()


class PhaseNetworks:
    """The networks of a run.

    Args:
        run: what is trained.
        engine: what compiles it.
        mean_image: gives that of the training images, float32, asked for at the start of a run alone.
        options: of the network and its arithmetic.
        first: gives the weights of a network to begin with; None for its own, freshly initialised, and that mean image.

    Attributes:
        wiring: None while it is learned, and of Fixed-Full.
        unused: weights of the blocks that are not trained any more, by name.
    """

    def __init__(
        self,
        run: Run,
        engine: Engine,
        mean_image: Callable[[], np.ndarray],
        options: Options = OPTIONS,
        first: Callable[[GatedResNeXt], Weights] | None = None,
    ) -> None:
        self.run, self.engine, self.mean_image, self.first = run, engine, mean_image, first
        self.options = options
        self.wiring = run.initial_wiring()
        self.unused: Weights = {}
        self._fixed: tuple[Connectivity | None, Loop | None] = (None, None)

    def go_on_from(self, wiring: Connectivity | None, unused: Weights) -> None:
        """Takes the wiring and the unused blocks of a state."""
        self.wiring, self.unused = wiring, unused

    def loop(self, phase: Phase, rate: float, state: Weights | None, *, fresh: bool) -> Loop:
        """The compiled network of a phase.

        Args:
            phase: its gates' rate.
            rate: of the weights.
            state: what it holds; None at the start of a run.
            fresh: without momenta, as a phase begins and what goes on from a rollback.
        """
        if state is None and (self.wiring is not None or self.first is not None):
            state = self._initial()
            if self.wiring is not None:
                state = self._cut(state)
        wiring, loop = self._fixed
        if loop is None or wiring != self.wiring or state is None:  # at its start a run has the initial weights
            loop = self._compiled(phase)
            if not loop.model.real_gates():  # then built and traced once for all phases
                self._fixed = self.wiring, loop
        with self.engine.scope():
            restart(loop.optimizer)
            if state is None:
                loop.model.get_layer("standardize").mean_image.assign(self.mean_image())
            else:
                assign(loop, state, with_optimizer=not fresh)
            loop.optimizer.learning_rate = rate
        return loop

    def freeze(self, state: Weights | None) -> tuple[Weights | None, list[np.ndarray]]:
        """Fixes the wiring to the top K of the gates in a state and cuts the unused blocks.

        Returns:
            The state that is left, and the real gates; those are none, and the state the same, where no gate is binary.
        """
        arch = self.run.architecture
        if not arch.has_binary_gates:
            return state, []
        if state is None:  # a recipe that never learns its gates: all are equal
            state = self._initial()
        real_gates = [state[f"{plan.name}_gate/real_gates"] for plan in arch.plan()[1:]]
        self.wiring = Connectivity.top_k(real_gates, arch.fan_in, first=arch.cardinality)
        weights = {name: value for name, value in _weights(state).items() if not name.endswith(pruning.GATE_STATE)}
        return self._cut(weights), real_gates

    def whole(self, state: Weights) -> Loop:
        """The network with all its blocks and probabilities, compiled for testing, float32 whatever it trained in."""
        weights = _weights(state)
        if self.wiring is not None:
            weights = pruning.uncut(weights, self.unused, self.run.architecture, self.wiring)
        with self.engine.scope():
            model = self._network(self.wiring, "softmax", precision="float32", remat=False)
            loop = self.engine.loop(model, self.run.recipe.batch_size)
            assign(loop, weights, with_optimizer=False)
        return loop

    def _network(self, wiring: Connectivity | None, activation: str | None = None, **changes: Any) -> GatedResNeXt:
        run, options = self.run, {**self.options._asdict(), **changes}
        return GatedResNeXt(run.architecture, wiring, activation, seed=run.seed, name=run.entry, **options)

    def _compiled(self, phase: Phase) -> Loop:
        recipe = self.run.recipe
        with self.engine.scope():
            model = self._network(self.wiring and self.wiring.pruned())
            optimizer: Any = GateConnectSGD(
                phase.learning_rate,
                gate_learning_rate=phase.gate_learning_rate,
                l2=recipe.weight_decay,
                momentum=recipe.momentum,
            )
            if self.options.precision == "mixed_float16":  # its gradients need a scale not to vanish
                # Its name is in its variables' paths, and so in the checkpoints: Keras would number it.
                optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale")
            optimizer.build(model.trainable_variables)
        return self.engine.loop(model, recipe.batch_size, optimizer)

    def _initial(self) -> Weights:
        """Of the whole network, with the unused blocks of a fixed wiring."""
        model = self._network(self.wiring)
        if self.first is not None:
            return self.first(model)
        return {**model.weights_by_name(), "standardize/mean_image": self.mean_image()}

    def _cut(self, state: Weights) -> Weights:
        assert self.wiring is not None
        state, self.unused = pruning.cut(state, self.run.architecture, self.wiring)
        return state


def state_of(loop: Loop) -> Weights:
    """Weights and optimizer state by name."""
    for variable in (*loop.model.variables, *loop.optimizer.variables):
        if hasattr(variable.value, "copy_to_host_async"):  # JAX: all on their way before the first is waited for
            variable.value.copy_to_host_async()
    optimizer = {f"{OPTIMIZER}{v.path}": keras.ops.convert_to_numpy(v) for v in loop.optimizer.variables}
    return {**loop.model.weights_by_name(), **optimizer}


def assign(loop: Loop, state: Weights, *, with_optimizer: bool) -> None:
    """Weights and, if asked, optimizer state by name.

    Raises:
        UserError: if the state is of another network.
    """
    try:
        loop.model.assign_by_name(_weights(state))
        if with_optimizer:
            for variable in loop.optimizer.variables:
                variable.assign(state[f"{OPTIMIZER}{variable.path}"])
    except (KeyError, ValueError) as error:
        raise UserError(
            f"the checkpoint is of another network ({error}); choose another folder to start anew"
        ) from None


def _weights(state: Weights) -> Weights:
    return {name: value for name, value in state.items() if not name.startswith(OPTIMIZER)}
