"""Training and evaluation steps, many to a call, under any tf.distribute strategy.

Keras' own `fit` (3.15.1) fails under MultiWorkerMirroredStrategy; and a loop of our own can stop between any two steps
with all that it needs to go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf


class Scores(NamedTuple):
    """Sums over images: of the loss, of hits by the most probable class and by the first five, and their number."""

    loss: float = 0.0
    top1: float = 0.0
    top5: float = 0.0
    images: float = 0.0

    def __add__(self, other: Any) -> Scores:
        return Scores(*(a + float(b) for a, b in zip(self, other, strict=True)))

    def means(self) -> dict[str, float]:
        """Loss and accuracies per image."""
        return {name: getattr(self, name) / self.images for name in ("loss", "top1", "top5")}


class Loop:
    """A network and its optimizer, compiled for a strategy.

    Args:
        model: gives logits or, for evaluation alone, probabilities.
        scope: the strategy that the model was made under.
        batch_size: images of a training step, over all replicas.
        optimizer: already built; None for evaluation alone.
    """

    def __init__(
        self,
        model: keras.Model,
        scope: tf.distribute.Strategy,
        batch_size: int,
        optimizer: Any = None,
    ) -> None:
        self.model, self.scope, self.batch_size, self.optimizer = model, scope, batch_size, optimizer
        self.compiled = False
        self.from_logits = getattr(model, "classifier_activation", None) is None
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
            each = self.scope.run(self._train_step, args=next(batches))
            total = self.scope.reduce(tf.distribute.ReduceOp.SUM, each, axis=None)
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
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return _scores(losses, labels, logits)

    def _test_step(self, batch: Any) -> tf.Tensor:
        each = self.scope.run(self._test_replica, args=batch)
        return self.scope.reduce(tf.distribute.ReduceOp.SUM, each, axis=None)

    def _test_replica(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        outputs = tf.cast(self.model(images, training=False), tf.float32)
        logits = outputs if self.from_logits else tf.math.log(outputs)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(labels, 0), logits)
        return _scores(losses, labels, logits)


def _scores(losses: tf.Tensor, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The fields of `Scores`, (4,) float32."""
    counted = labels >= 0
    top1 = tf.equal(tf.argmax(logits, axis=-1, output_type=labels.dtype), labels)
    top5 = tf.math.in_top_k(tf.maximum(labels, 0), tf.cast(logits, tf.float32), min(5, logits.shape[-1]))
    parts = tf.where(counted, losses, 0.0), top1 & counted, top5 & counted, counted
    return tf.stack([tf.reduce_sum(tf.cast(part, tf.float32)) for part in parts])
