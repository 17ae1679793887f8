"""Smaller than the wiring makes it: the compact graph trained on to fewer bits, weights or values, as TFLite.

    content = compress(model, "qat", images, epochs=1.0, seed=0)

Uses tensorflow-model-optimization, the extra `compress`, on a `tf_keras` twin of the compact graph; both are imported
when a function first needs them.
"""

from __future__ import annotations

import math
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from export import backend, tflite
from export.compact import Toolkit, compact
from gated_resnext.data import Images
from gated_resnext.errors import UserError
from gated_resnext.model import GatedResNeXt

LEARNING_RATE = 1e-3


class Tools(NamedTuple):
    """The modules of the extra."""

    tf_keras: Any
    tfmot: Any


def tools() -> Tools:
    """Imports the extra `compress`; Keras 3 stays what `tf.keras` and child processes get.

    Raises:
        UserError: if it is not installed.
    """
    tf.keras.version  # noqa: B018  resolves to Keras 3 for good, before the import below asks for the old one
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it compares versions with distutils
            import tensorflow_model_optimization as tfmot
            import tf_keras
    except ImportError as error:
        raise UserError(
            f"compression needs one more package ({error}): pip install 'gated-resnext[compress]'"
        ) from None
    finally:
        if before is None:
            os.environ.pop("TF_USE_LEGACY_KERAS", None)
        else:
            os.environ["TF_USE_LEGACY_KERAS"] = before
    return Tools(tf_keras, tfmot)


def compress(
    model: GatedResNeXt,
    method: str,
    images: Images,
    *,
    epochs: float = 1.0,
    seed: int,
    sparsity: float = 0.5,
    clusters: int = 16,
    learning_rate: float = LEARNING_RATE,
) -> bytes:
    """Trains the compact graph on under a constraint and writes it; on one CPU the same seed gives the same bytes.

    Batch norm stays folded. There is no network before it to compare with: what it costs in accuracy is measured on the
    file.

    Args:
        model: the trained network, pruned or not.
        method: a key of `METHODS`.
        images: the data set it was trained on.
        epochs: passes over the training images; a fraction is fine.
        seed: of their order and augmentation.
        sparsity: for "magnitude", the share of the kernels' weights in the modules that becomes zero; each kernel's
            smallest.
        clusters: for "cluster", different values that are left in each kernel.
        learning_rate: of Adam.

    Returns:
        The .tflite file.

    Raises:
        UserError: if the method is unknown, a number is out of its range, the extra is not installed or Keras is not
            on TensorFlow.
    """
    backend.check()
    check([method], epochs=epochs, sparsity=sparsity, clusters=clusters)
    tf_keras = tools().tf_keras
    twin = compact(model, bundle_channels=0, toolkit=_toolkit(tf_keras))
    steps = max(2, round(epochs * images.steps_per_epoch))

    def batches(count: int) -> tf.data.Dataset:
        return images.train(seed=seed, first_step=0, steps=count).map(
            lambda pixels, labels: (tf.cast(pixels, tf.float32) / 255.0, labels)
        )

    return METHODS[method](model, twin, Training(batches, steps, learning_rate), sparsity=sparsity, clusters=clusters)


def check(methods: Sequence[str], *, epochs: float, sparsity: float, clusters: int) -> None:
    """Finds that the arguments of `compress` are in their ranges.

    Raises:
        UserError: if one is not.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise UserError(f"the compression must be one of {', '.join(METHODS)}. Received: {', '.join(unknown)}")
    if not 0 < epochs < math.inf:
        raise UserError(f"compression needs more than 0 epochs. Received: epochs={epochs:g}")
    if not 0 < sparsity < 1 or clusters < 2:
        raise UserError(
            f"compression needs 0 < sparsity < 1 and 2 or more clusters. Received: sparsity={sparsity:g}, "
            f"clusters={clusters}"
        )


class Training(NamedTuple):
    """How a twin is trained on: `batches(count)` of images from 0 to 1 and labels; `steps` of them."""

    batches: Callable[[int], tf.data.Dataset]
    steps: int
    learning_rate: float

    def run(self, model: Any, callback: Any = None) -> None:
        """Adam on the cross-entropy, its rate falling to zero."""
        tf_keras = tools().tf_keras
        optimizer = tf_keras.optimizers.Adam(
            tf_keras.optimizers.schedules.PolynomialDecay(self.learning_rate, self.steps, 0.0)
        )
        optimizer.build(model.trainable_variables)
        model.optimizer = optimizer
        loss = tf_keras.losses.SparseCategoricalCrossentropy()

        @tf.function(autograph=False)
        def step(images: tf.Tensor, labels: tf.Tensor) -> None:
            with tf.GradientTape() as tape:
                value = loss(labels, model(images, training=True))
            gradients = tape.gradient(value, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

        if callback is not None:
            callback.set_model(model)
            callback.on_train_begin()
        for number, batch in enumerate(self.batches(self.steps)):
            if callback is not None:
                callback.on_train_batch_begin(number)
            step(*batch)
        if callback is not None:
            callback.on_epoch_end(0)


def _quantized(model: GatedResNeXt, twin: Any, training: Training, **_: Any) -> bytes:
    tf_keras = tools().tf_keras
    from export import quantization

    emulated = tf_keras.models.clone_model(twin, clone_function=quantization.quantized)
    quantization.calibrate(emulated, training.batches(quantization.CALIBRATION_STEPS))
    training.run(emulated)
    quantization.calibrate(emulated, training.batches(1))  # the kernels' ranges after the last step
    return quantization.to_tflite(emulated)


def _pruned(model: GatedResNeXt, twin: Any, training: Training, *, sparsity: float, **_: Any) -> bytes:
    """The share of zeros grows over the first half of the steps; the other half mends."""
    tf_keras, tfmot = tools()
    every = max(1, training.steps // 40)
    last = every * max(1, training.steps // 2 // every)
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, sparsity, 0, last, frequency=every)

    def wrapped(layer: Any) -> Any:
        if _in_a_module(layer):
            return tfmot.sparsity.keras.prune_low_magnitude(layer, schedule)
        return layer

    sparse = tf_keras.models.clone_model(twin, clone_function=wrapped)
    training.run(sparse, tfmot.sparsity.keras.UpdatePruningStep())
    return _written(model, tfmot.sparsity.keras.strip_pruning(sparse))


def _clustered(model: GatedResNeXt, twin: Any, training: Training, *, clusters: int, **_: Any) -> bytes:
    tf_keras, tfmot = tools()

    def wrapped(layer: Any) -> Any:
        if _in_a_module(layer) and math.prod(layer.kernel.shape) > clusters:
            return tfmot.clustering.keras.cluster_weights(layer, clusters)
        return layer

    few = tf_keras.models.clone_model(twin, clone_function=wrapped)
    training.run(few)
    return _written(model, tfmot.clustering.keras.strip_clustering(few))


METHODS: dict[str, Callable[..., bytes]] = {"qat": _quantized, "magnitude": _pruned, "cluster": _clustered}


def _toolkit(tf_keras: Any) -> Toolkit:
    """Layers of a twin that trains: float pixels from 0 to 1, so that the stem's kernel is as large as the others."""
    return Toolkit(
        tf_keras.layers,
        lambda shape: tf_keras.Input(shape, name="images"),
        lambda x, sizes: tf.split(x, len(sizes) if len(set(sizes)) == 1 else sizes, axis=-1),
        tf_keras.Model,
        white=1.0,
    )


def _in_a_module(layer: Any) -> bool:
    """Whether a layer is a convolution of the blocks and shortcuts: not the stem, not the classifier."""
    return type(layer).__name__ == "Conv2D" and layer.name.startswith("stage")


def _written(model: GatedResNeXt, twin: Any) -> bytes:
    """The compact graph with the twin's weights as a float32 .tflite file."""
    small = compact(model, bundle_channels=0)
    trained = {layer.name: layer.get_weights() for layer in twin.layers if layer.weights}
    for layer in small.layers:
        if layer.weights:
            kernel, bias = trained.pop(layer.name)
            layer.set_weights([kernel / 255.0 if layer.name == "stem" else kernel, bias])
    if trained:
        raise AssertionError(f"weights of layers that the compact graph does not have: {sorted(trained)}")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        tflite.write(small, path, classes=False)
        return path.read_bytes()
