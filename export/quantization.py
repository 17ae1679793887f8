"""The compact graph with its rounding to int8 emulated, so that training on meets it.

Imports tensorflow-model-optimization, and so only `export.compression` imports this, when it is needed.
"""

from __future__ import annotations

import tempfile
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras import quant_ops, quantize_wrapper
from tensorflow_model_optimization.quantization.keras import QuantizeConfig, quantizers

from export import saved_model, tflite

DECAY = 0.9  # of the moving ranges; theirs of 0.999 would need thousands of steps to leave its start
CALIBRATION_STEPS = 50


class _Range(quantizers.MovingAverageQuantizer):
    """A tensor to 8 bits, over the moving range of its values."""

    def __init__(self) -> None:
        super().__init__(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)

    def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **kwargs: Any) -> Any:
        return quant_ops.MovingAvgQuantize(
            inputs, weights["min_var"], weights["max_var"], ema_decay=DECAY, is_training=training
        )


class _Kernel(quantizers.LastValueQuantizer):
    """A kernel to 8 bits, a scale an output channel, as TFLite's convolutions have it."""

    def __init__(self) -> None:
        super().__init__(num_bits=8, per_axis=True, symmetric=True, narrow_range=True)

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        def limit(end: str, value: float) -> Any:
            initial = tf_keras.initializers.Constant(value)
            return layer.add_weight(f"{name}_{end}", tensor_shape[-1:], initializer=initial, trainable=False)

        return {"min_var": limit("min", -1.0), "max_var": limit("max", 1.0)}


class _Matrix(quantizers.LastValueQuantizer):
    """A kernel to 8 bits with one scale, as TFLite's dense layers have it."""

    def __init__(self) -> None:
        super().__init__(num_bits=8, per_axis=False, symmetric=True, narrow_range=True)


class _Weighted(QuantizeConfig):
    """A convolution or dense layer: its kernel, and its output after the activation."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.output = kernel, _Range()

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        return [(layer.kernel, self.kernel)]

    def get_activations_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        return [(layer.activation, self.output)]

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        layer.kernel = quantize_weights[0]

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        layer.activation = quantize_activations[0]

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        return []

    def get_config(self) -> dict[str, Any]:
        return {"kernel": self.kernel}


class _Output(QuantizeConfig):
    """A layer without weights: its output."""

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        return []

    def get_activations_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        pass

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        pass

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        return [_Range()]

    def get_config(self) -> dict[str, Any]:
        return {}


def quantized(layer: Any) -> Any:
    """The layer with its rounding, or as it is where int8 passes through it or where TFLite fuses it with the next.

    `quantize_apply` cannot do this: it knows no split, no rescaling, and no layer that is called twice.
    """
    layers = tf_keras.layers
    if isinstance(layer, layers.Conv2D):
        return _wrapped(layer, _Weighted(_Kernel()))
    if isinstance(layer, layers.Dense):
        return _wrapped(layer, _Weighted(_Matrix()))
    readers = [node.layer for node in layer.outbound_nodes]
    fused = isinstance(layer, layers.Add) and len(readers) == 1 and isinstance(readers[0], layers.ReLU)
    changes_values = (layers.Add, layers.Rescaling, layers.ReLU, layers.Concatenate, layers.GlobalAveragePooling2D)
    return _wrapped(layer, _Output()) if isinstance(layer, changes_values) and not fused else layer


def _wrapped(layer: Any, config: QuantizeConfig) -> Any:
    return quantize_wrapper.QuantizeWrapperV2(layer, config, name=layer.name)


def calibrate(model: Any, batches: tf.data.Dataset) -> None:
    """Lets the ranges follow the values of the batches, (images, labels), without a change of the weights."""
    forward = tf.function(lambda images: model(images, training=True), autograph=False, reduce_retracing=True)
    for images, _ in batches:
        forward(images)


def to_tflite(model: Any) -> bytes:
    """An int8 .tflite, uint8 pixels in and float32 probabilities out, with the ranges of the training."""
    shape = model.input_shape[1:]
    serve = saved_model.signature(model, lambda images, shape: images, classes=False)

    def ranged(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return serve(tf.quantization.fake_quant_with_min_max_args(images, 0.0, 1.0))  # steps of 1/255: the pixels

    module = tf.Module()
    module.weights = model.weights
    spec = tf.TensorSpec((None, *shape), tf.float32, name="images")
    module.serve = tf.function(ranged, input_signature=[spec], autograph=False)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={saved_model.SIGNATURE: module.serve})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[saved_model.SIGNATURE])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = tf.uint8
        return tflite.tidied(tflite.converted(converter))
