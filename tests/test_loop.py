import keras
import numpy as np
import pytest
import tensorflow as tf

from gated_resnext.loop import Loop
from gated_resnext.optimizer import GateConnectSGD
from gated_resnext.scores import Scores

CLASSES, BATCH = 7, 16


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def scores_of(logits, labels):
    """Loss, hits by the first class and by the first five, and images, of those with a label."""
    logits, labels = logits[labels >= 0], labels[labels >= 0]
    order = np.argsort(-logits, axis=1)
    loss = -log_softmax(logits)[np.arange(len(labels)), labels].sum()
    return loss, (order[:, 0] == labels).sum(), (order[:, :5] == labels[:, None]).any(1).sum(), len(labels)


class Linear(keras.Sequential):
    """One matrix from the pixels to the classes, written down by the test."""

    def __init__(self, classes=CLASSES, activation=None):
        dense = keras.layers.Dense(classes, use_bias=False, name="classifier")
        super().__init__([keras.Input((2, 3, 1)), keras.layers.Flatten(), dense])
        if activation:
            self.add(keras.layers.Activation(activation))
        self.classifier_activation = activation
        self.matrix = np.random.default_rng(1).normal(size=(6, classes)).astype(np.float32)
        dense.kernel.assign(self.matrix)


def batches_of(count, seed=0, classes=CLASSES):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, BATCH, 2, 3, 1)).astype(np.float32)
    return images, rng.integers(0, classes, (count, BATCH), dtype=np.int32)


def learning(model, batch_size=BATCH, rate=0.5, **options):
    optimizer = GateConnectSGD(rate, gate_learning_rate=0.0, **{"l2": 0.0, "momentum": 0.0, **options})
    optimizer.build(model.trainable_variables)
    return Loop(model, tf.distribute.get_strategy(), batch_size, optimizer)


def test_scores_are_sums_whose_means_are_per_image():
    total = Scores()
    total += (6.0, 1, 2, 4)
    total += np.array([2.0, 1, 2, 4], np.float32)
    assert total == Scores(8.0, 2.0, 4.0, 8.0)
    assert total.means() == {"loss": 1.0, "top1": 0.25, "top5": 0.5}


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_scores_of_a_test_against_numpy(activation):
    images, labels = batches_of(3)
    labels[2, 5:] = -1  # the last batch is filled up
    images[2, 5:] = 1e6
    model = Linear(activation=activation)
    loop = Loop(model, tf.distribute.get_strategy(), BATCH)
    found = list(loop.test(iter(zip(images, labels, strict=True))))
    logits = images.reshape(3, BATCH, 6) @ model.matrix
    expected = [scores_of(*row) for row in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert [row.images for row in found] == [16, 16, 5]
    assert 0 < sum(row.top1 for row in found) < sum(row.top5 for row in found) < 37


def test_a_probability_of_zero_is_no_miss_of_every_class():
    images, _ = batches_of(1)
    sure = Linear(activation="softmax")
    sure.get_layer("classifier").kernel.assign(1000 * sure.matrix)
    assert (np.asarray(sure(images[0])) == 0).any(axis=1).all()
    logits = 1000 * images.reshape(BATCH, 6) @ sure.matrix
    likeliest = logits.argmax(1).astype(np.int32)
    (found,) = Loop(sure, tf.distribute.get_strategy(), BATCH).test(iter([(images[0], likeliest)]))
    assert (found.top1, found.top5, found.images) == (BATCH, BATCH, BATCH) and np.isfinite(found.loss)


def test_a_batch_of_padding_alone_counts_for_nothing():
    images, labels = batches_of(1)
    (found,) = Loop(Linear(), tf.distribute.get_strategy(), BATCH).test(iter([(images[0], labels[0] * 0 - 1)]))
    assert found == Scores()


def test_with_fewer_than_five_classes_top5_is_everything():
    images, labels = batches_of(1, classes=3)
    (found,) = Loop(Linear(3), tf.distribute.get_strategy(), BATCH).test(iter([(images[0], labels[0])]))
    assert found.top5 == BATCH > found.top1


def test_training_steps_against_numpy():
    images, labels = batches_of(5)
    model = Linear()
    matrix = model.matrix.astype(np.float64)
    # A batch of 32 over two replicas, of which this is one: its gradients are divided by the whole batch.
    loop = learning(model, batch_size=2 * BATCH, rate=0.5)
    batches = iter(tf.data.Dataset.from_tensor_slices((images, labels)))
    found = np.concatenate([loop.train(batches, 2), loop.train(batches, 3)])
    expected = []
    for x, y in zip(images.reshape(5, BATCH, 6), labels, strict=True):
        logits = x @ matrix
        expected.append(scores_of(logits, y))  # before the step
        probabilities = np.exp(log_softmax(logits))
        probabilities[np.arange(BATCH), y] -= 1
        matrix -= 0.5 * x.T @ probabilities / (2 * BATCH)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(model.layers[-1].kernel.numpy(), matrix, rtol=1e-5, atol=1e-6)
    assert int(loop.optimizer.iterations) == 5


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_training_stops_at_the_step_whose_loss_is_not_finite(bad):
    images, labels = batches_of(6)
    images[2, 3] = bad
    loop = learning(Linear())
    batches = iter(tf.data.Dataset.from_tensor_slices((images, labels)))
    found = loop.train(batches, 5)
    assert found.shape == (3, 4)
    assert np.isfinite(found[:2]).all() and not np.isfinite(found[2, 0])
    assert int(loop.optimizer.iterations) == 3
    # The batches behind it were not taken.
    np.testing.assert_array_equal(next(batches)[0], images[3])


def test_many_steps_a_call_are_the_same_as_one_a_call():
    images, labels = batches_of(6)
    results = []
    for parts in ((6,), (1, 1, 1, 1, 1, 1), (4, 2)):
        loop = learning(Linear(), l2=1e-2, momentum=0.9)
        batches = iter(tf.data.Dataset.from_tensor_slices((images, labels)))
        scores = np.concatenate([loop.train(batches, count) for count in parts])
        results.append((scores.tobytes(), loop.model.layers[-1].kernel.numpy().tobytes()))
    assert len(set(results)) == 1
