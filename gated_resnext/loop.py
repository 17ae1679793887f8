"""TensorFlow's engine: training and evaluation steps, many to a call, under any tf.distribute strategy.

Keras' own `fit` (3.15.1) fails under MultiWorkerMirroredStrategy; and a loop of our own can stop between any two steps
with all that it needs to go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gated_resnext import devices
from gated_resnext.data import Images, Shard
from gated_resnext.distribution import any_true, check_together, is_chief
from gated_resnext.evaluation import LEAST
from gated_resnext.recipes import Recipe
from gated_resnext.scores import Scores


class TensorFlowEngine:
    """What the trainer asks of a strategy.

    Args:
        strategy: None for the one in force.
        jit_compile: whether XLA compiles the steps of a training; of one replica alone.
    """

    Lost = tf.errors.UnavailableError  # what another worker's end raises here
    # What reading images raises, among others.
    Unreadable = (tf.errors.InvalidArgumentError, tf.errors.NotFoundError, tf.errors.DataLossError)

    def __init__(self, strategy: tf.distribute.Strategy | None = None, jit_compile: bool = False) -> None:
        self.strategy = strategy or tf.distribute.get_strategy()
        self.jit_compile = jit_compile
        self.replicas: int = self.strategy.num_replicas_in_sync
        self.chief = is_chief(self.strategy)
        # Workers meet in iterations of equal number, so their calls must be of equal length: with several, of one step.
        several = isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy)
        self.most_steps = 1 if several else 1 << 30
        self._tests: tuple[Images, Any] | None = None
        self.on_cpu = not tf.config.list_logical_devices("GPU")

    @property
    def devices(self) -> str:
        """What trains, for people."""
        if tf.config.list_logical_devices("TPU"):
            kind = "a TPU core"
        elif self.on_cpu:
            kind = devices.cpu("tensorflow[and-cuda]")
        else:
            details = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0])
            kind = f"a GPU ({details.get('device_name', 'of unknown name')})"
        return kind if self.replicas == 1 else f"{self.replicas} replicas, each on {kind}"

    def images(
        self, name: str, recipe: Recipe, data_dir: Any, input_shape: tuple[int, int, int], limit: int | None = None
    ) -> Images:
        """The images of a data set."""
        return Images(name, recipe, data_dir, input_shape, limit)

    def scope(self) -> Any:
        """A context in which variables are made."""
        return self.strategy.scope()

    def check_together(self, step: int) -> None:
        """Finds that all workers begin at the same step."""
        check_together(self.strategy, step)

    def any_asked(self, asked: bool) -> bool:
        """Whether any of the workers was asked to stop: all find the same, after the same step."""
        return any_true(self.strategy, asked)

    def of_images(self, error: Exception) -> bool:
        """Whether an `Unreadable` is of what the network was to read."""
        return "IteratorGetNext" in str(error)

    def loop(self, model: keras.Model, batch_size: int, optimizer: Any = None) -> Loop:
        """The compiled steps of a network."""
        return Loop(model, self.strategy, batch_size, optimizer, self.jit_compile)

    def train_batches(self, images: Images, seed: int, first_step: int, steps: int) -> Iterator[Any]:
        """What `Loop.train` takes its steps on."""
        return iter(self._distributed(lambda shard: images.train(seed, first_step, steps, shard)))

    def test_batches(self, images: Images) -> Any:
        """What `Loop.test` looks at."""
        if self._tests is None or self._tests[0] is not images:
            self._tests = images, self._distributed(images.test_shard)
        return self._tests[1]  # which can be read again and again

    def _distributed(self, of_shard: Any) -> Any:
        """A data set whose rows each replica gets its own part of."""

        def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
            workers = context.num_input_pipelines
            return of_shard(Shard(context.input_pipeline_id, workers, context.num_replicas_in_sync // workers))

        return self.strategy.distribute_datasets_from_function(of_worker)


class Loop:
    """A network and its optimizer, compiled for a strategy.

    Args:
        model: gives logits or, for evaluation alone, probabilities.
        strategy: that which the model was made under.
        batch_size: images of a training step, over all replicas.
        optimizer: already built; None for evaluation alone.
        jit_compile: whether XLA compiles a training step.
    """

    def __init__(
        self,
        model: keras.Model,
        strategy: tf.distribute.Strategy,
        batch_size: int,
        optimizer: Any = None,
        jit_compile: bool = False,
    ) -> None:
        self.model, self.strategy, self.batch_size, self.optimizer = model, strategy, batch_size, optimizer
        self.compiled = False
        self.from_logits = getattr(model, "classifier_activation", None) is None
        self._step = tf.function(self._train_step, jit_compile=True) if jit_compile else self._train_step
        self._train = tf.function(self._train_steps)
        self._test = tf.function(self._test_step, autograph=False)

    def train(self, batches: Iterator[Any], count: int) -> np.ndarray:
        """Takes `count` steps, fewer if a loss is not finite.

        Args:
            batches: of a distributed data set.
            count: of steps.

        Returns:
            The fields of `Scores` for each step taken, (steps, 4) float32.
        """
        return self._train(batches, tf.constant(count)).numpy()

    def test(self, batches: Iterator[Any]) -> Iterator[Scores]:
        """The scores of each batch; an image with a negative label counts for nothing."""
        for batch in batches:
            yield Scores(*self._test(batch).numpy().tolist())

    def _train_steps(self, batches: Iterator[Any], count: tf.Tensor) -> tf.Tensor:
        scores = tf.TensorArray(tf.float32, size=0, dynamic_size=True, element_shape=(4,), clear_after_read=False)
        for step in tf.range(count):
            each = self.strategy.run(self._step, args=next(batches))
            total = self.strategy.reduce(tf.distribute.ReduceOp.SUM, each, axis=None)
            scores = scores.write(step, total)
            if not tf.math.is_finite(total[0]):
                break
        return scores.stack()

    @tf.autograph.experimental.do_not_convert
    def _train_step(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            logits = self.model(images, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, tf.cast(logits, tf.float32))
            # The optimizer adds the gradients of the replicas.
            loss = self.optimizer.scale_loss(tf.reduce_sum(losses) / self.batch_size)
        gradients = tape.gradient(loss, variables)
        if self.strategy.num_replicas_in_sync > 1 and isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            gradients = finite_alike(gradients)
        self.optimizer.apply(gradients, variables)
        return _scores(losses, labels, logits)

    def _test_step(self, batch: Any) -> tf.Tensor:
        each = self.strategy.run(self._test_replica, args=batch)
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, each, axis=None)

    def _test_replica(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        outputs = tf.cast(self.model(images, training=False), tf.float32)
        # The logarithm of zero would be a miss of every class for `in_top_k`.
        logits = outputs if self.from_logits else tf.math.log(tf.maximum(outputs, LEAST))
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(labels, 0), logits)
        return _scores(losses, labels, logits)


def finite_alike(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """The gradients of a replica, the first one not finite where any is not on any replica.

    Keras' loss scale asks one replica, or each its own, whether to skip the step, as if they had been added up before.
    """
    spoilt = tf.add_n([tf.reduce_sum(0.0 * tf.cast(gradient, tf.float32)) for gradient in gradients])
    spoilt = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, spoilt)
    return [gradients[0] + tf.cast(spoilt, gradients[0].dtype), *gradients[1:]]


def _scores(losses: tf.Tensor, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The fields of `Scores`, (4,) float32."""
    counted = labels >= 0
    top1 = tf.equal(tf.argmax(logits, axis=-1, output_type=labels.dtype), labels)
    top5 = tf.math.in_top_k(tf.maximum(labels, 0), tf.cast(logits, tf.float32), min(5, logits.shape[-1]))
    parts = tf.where(counted, losses, 0.0), top1 & counted, top5 & counted, counted
    return tf.stack([tf.reduce_sum(tf.cast(part, tf.float32)) for part in parts])
