"""JAX's engine: many steps a call as one compiled loop, on one device, with all images in its memory.

A step is a function of (seed, step) and the state before it, as under TensorFlow; the random numbers are JAX's own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import keras
import numpy as np
from jax import lax
from jax import numpy as jnp

from gated_resnext import devices
from gated_resnext.arrays import ArrayImages
from gated_resnext.evaluation import LEAST
from gated_resnext.recipes import Recipe
from gated_resnext.scores import Scores

Tensor = Any
MOST_STEPS = 4096  # scores that one call can return
CALL_S = 0.5  # of a call that tests


class JaxEngine:
    """What the trainer asks of JAX."""

    Lost = Unreadable = ()  # there are no other workers, and all images are in memory

    replicas, chief, most_steps = 1, True, MOST_STEPS
    jit_compile = False  # JAX knows nothing else

    def __init__(self) -> None:
        self.on_cpu = jax.default_backend() == "cpu"

    @property
    def devices(self) -> str:
        """What trains, for people."""
        if self.on_cpu:
            return devices.cpu("jax[cuda]")
        return f"a {jax.default_backend().upper()} ({jax.devices()[0].device_kind})"

    def images(
        self, name: str, recipe: Recipe, data_dir: Any, input_shape: tuple[int, int, int], limit: int | None = None
    ) -> ArrayImages:
        """The images of a data set, as `gated_resnext.pack` wrote them."""
        return ArrayImages(name, recipe, data_dir, input_shape, limit)

    def scope(self) -> Any:
        """A context in which variables are made."""
        return contextlib.nullcontext()

    def check_together(self, step: int) -> None:
        """Nothing to find."""

    def any_asked(self, asked: bool) -> bool:
        """Whether this, the only worker, was asked to stop."""
        return asked

    def of_images(self, error: Exception) -> bool:
        """Never asked."""
        return False

    def loop(self, model: keras.Model, batch_size: int, optimizer: Any = None) -> JaxLoop:
        """The compiled steps of a network."""
        return JaxLoop(model, batch_size, optimizer)

    def train_batches(self, images: ArrayImages, seed: int, first_step: int, steps: int) -> Batches:
        """What `JaxLoop.train` takes its steps on."""
        if not hasattr(self, "on_device"):
            pixels, labels = images.arrays("train")
            fill = np.rint(images.mean_image().mean((0, 1))).astype(np.uint8)
            self.on_device = jnp.asarray(pixels), jnp.asarray(labels), jnp.asarray(fill)
        plan = Plan(images.recipe, images.input_shape, images.steps_per_epoch)
        return Batches(plan, (*self.on_device, key_of(seed)), first_step)

    def test_batches(self, images: ArrayImages) -> tuple[Tensor, Tensor]:
        """What `JaxLoop.test` looks at: batches of equal size, what is missing has the label -1."""
        if not hasattr(self, "tests"):
            pixels, (_, labels), size = images.cropped("test"), images.arrays("test"), images.recipe.batch_size
            missing = -len(labels) % size
            pixels = np.pad(pixels, ((0, missing), (0, 0), (0, 0), (0, 0)))
            labels = np.pad(labels, (0, missing), constant_values=-1)
            self.tests = jnp.asarray(pixels.reshape(-1, size, *pixels.shape[1:])), jnp.asarray(labels.reshape(-1, size))
        return self.tests


def key_of(seed: int) -> Tensor:
    """The key of a seed of up to 63 bits, of which JAX's own takes the last 32."""
    key, rest = jax.random.key(seed % 2**32), seed >> 32
    return jax.random.fold_in(key, rest) if rest else key


@dataclasses.dataclass
class Batches:
    """The endless shuffled, augmented sequence of a seed, from a step on.

    Args:
        plan: how a batch is made of the images.
        data: all images, labels, the pixel of the padding and the key of the seed, on the device.
        step: the next one.
    """

    plan: Plan
    data: tuple[Tensor, ...]
    step: int


class Plan(NamedTuple):
    """How a batch is made of the images: all that a compiled step depends on besides the network."""

    recipe: Recipe
    shape: tuple[int, int, int]
    per_epoch: int

    def order(self, data: Any, epoch: Tensor) -> Tensor:
        """The images of an epoch, shuffled."""
        return jax.random.permutation(jax.random.fold_in(jax.random.fold_in(data[3], 0), epoch), len(data[1]))

    def batch(self, data: Any, step: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Random crops of the padded images or of their mirror images, and labels (docs/deviations.md, row 19)."""
        pixels, labels, fill, key = data
        (height, width, channels), pad = self.shape, self.recipe.pad
        images = pixels[chosen]
        key = jax.random.fold_in(jax.random.fold_in(key, 1), step)
        draws = jax.random.uniform(key, (3, len(chosen)))
        sides = ((0, 0), (pad, pad), (pad, pad), (0, 0))
        padded = jnp.pad(images - fill, sides) + fill  # uint8 wraps around and back
        free = jnp.array([padded.shape[1] - height, padded.shape[2] - width])[:, None]
        top, left = jnp.floor(draws[:2] * (free + 1)).astype(jnp.int32)

        def crop(image: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
            image = lax.dynamic_slice(image, (top, left, 0), (height, width, channels))
            return jnp.where(mirrored, image[:, ::-1], image)

        mirrored = (draws[2] < 0.5) & self.recipe.flip
        return jax.vmap(crop)(padded, top, left, mirrored), labels[chosen]


class JaxLoop:
    """A network and its optimizer, compiled.

    Args:
        model: gives logits or, for evaluation alone, probabilities.
        batch_size: images of a training step.
        optimizer: already built; None for evaluation alone.
    """

    def __init__(self, model: keras.Model, batch_size: int, optimizer: Any = None) -> None:
        self.model, self.batch_size, self.optimizer = model, batch_size, optimizer
        self.compiled = False
        self.from_logits = getattr(model, "classifier_activation", None) is None
        self._train = jax.jit(self._steps, static_argnums=0, donate_argnums=2)
        self._test = jax.jit(self._scores_of_tests)
        self.tests_of_call = 1

    def train(self, batches: Batches, count: int) -> np.ndarray:
        """Takes `count` steps, at most `MOST_STEPS`, fewer if an epoch ends or a loss is not finite.

        Returns:
            The fields of `Scores` for each step taken, (steps, 4) float32.
        """
        count = min(count, batches.plan.per_epoch - batches.step % batches.plan.per_epoch)
        taken, state, rows = self._train(batches.plan, batches.data, self._state(), batches.step, count)
        for variables, values in zip(self._variables(), state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        batches.step += int(taken)
        return np.asarray(rows)[: int(taken)]

    def test(self, batches: tuple[Tensor, Tensor]) -> Iterator[Scores]:
        """The scores of each batch; as many a call as take about `CALL_S`, so that a device does not wait for each.

        Args:
            batches: images, (batches, batch, height, width, channels), and labels, (batches, batch); an image with a
                negative label counts for nothing.
        """
        state, first, end = self._state()[:2], 0, len(batches[1])
        while first < end:
            count, began = min(self.tests_of_call, end - first), time.monotonic()
            rows = np.asarray(self._test(state, batches, first, count))[:count]
            fitting = math.floor(CALL_S * count / max(time.monotonic() - began, 1e-3))
            self.tests_of_call = max(1, min(2 * self.tests_of_call, fitting))
            first += count
            for row in rows:
                yield Scores(*row.tolist())

    def _variables(self) -> tuple[list[Any], ...]:
        optimizer = self.optimizer.variables if self.optimizer is not None else []
        return self.model.trainable_variables, self.model.non_trainable_variables, optimizer

    def _state(self) -> tuple[list[Tensor], ...]:
        return tuple([variable.value for variable in variables] for variables in self._variables())

    def _steps(self, plan: Plan, data: Any, state: Any, first: Tensor, count: Tensor) -> Any:
        size = self.batch_size
        order = plan.order(data, first // plan.per_epoch)  # a call is of one epoch: a device need not wait for a choice

        def going_on(carry: Any) -> Tensor:
            taken, finite, *_ = carry
            return (taken < count) & finite

        def step(carry: Any) -> Any:
            taken, _, state, rows = carry
            number = first + taken
            place = number % plan.per_epoch
            images, labels = plan.batch(data, number, lax.dynamic_slice(order, (place * size,), (size,)))
            state, scores = self._step(state, images, labels)
            return taken + 1, jnp.isfinite(scores[0]), state, rows.at[taken].set(scores)

        taken, _, state, rows = lax.while_loop(going_on, step, (0, True, state, jnp.zeros((MOST_STEPS, 4))))
        return taken, state, rows

    def _step(self, state: Any, images: Tensor, labels: Tensor) -> tuple[Any, Tensor]:
        trained, fixed, of_optimizer = state

        def of_loss(trained: Any) -> tuple[Tensor, Any]:
            logits, after = self.model.stateless_call(trained, fixed, images, training=True)
            losses = _cross_entropy(logits, labels)
            with keras.StatelessScope(state_mapping=list(zip(self.optimizer.variables, of_optimizer, strict=True))):
                loss = self.optimizer.scale_loss(jnp.sum(losses) / self.batch_size)
            return loss, (after, losses, logits)

        gradients, (after, losses, logits) = jax.grad(of_loss, has_aux=True)(trained)
        trained, of_optimizer = self.optimizer.stateless_apply(of_optimizer, gradients, trained)
        return (trained, after, of_optimizer), _scores(losses, labels, logits)

    def _scores_of_tests(self, state: Any, batches: tuple[Tensor, Tensor], first: Tensor, count: Tensor) -> Tensor:
        images, labels = batches

        def scored(number: Tensor, rows: Tensor) -> Tensor:
            return rows.at[number].set(self._scores_of_test(state, images[first + number], labels[first + number]))

        return lax.fori_loop(0, count, scored, jnp.zeros((len(labels), 4)))

    def _scores_of_test(self, state: Any, images: Tensor, labels: Tensor) -> Tensor:
        outputs, _ = self.model.stateless_call(*state, images, training=False)
        outputs = outputs.astype(jnp.float32)
        logits = outputs if self.from_logits else jnp.log(jnp.maximum(outputs, LEAST))
        return _scores(_cross_entropy(logits, jnp.maximum(labels, 0)), labels, logits)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(log_probabilities, labels[:, None], 1)[:, 0]


def _scores(losses: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
    """The fields of `Scores`, (4,) float32."""
    counted = labels >= 0
    own = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], 1)
    before = jnp.sum(logits > own, axis=1)  # classes more probable than the right one
    first = jnp.argmax(logits, axis=1) == labels
    parts = jnp.where(counted, losses, 0.0), first & counted, (before < 5) & counted, counted
    return jnp.stack([jnp.sum(part.astype(jnp.float32)) for part in parts])
