"""GatedResNeXt: the network of an architecture, with a wiring that is learned, fixed or pruned."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from gated_resnext import files
from gated_resnext.aggregation import BranchMean, GatedAggregation
from gated_resnext.architecture import STEMS, Architecture
from gated_resnext.branches import GatedBranches
from gated_resnext.connectivity import Connectivity
from gated_resnext.dense_block import GatedDenseBlock
from gated_resnext.errors import UserError, check_choice, first_line
from gated_resnext.initializers import glorot_uniform, he_normal
from gated_resnext.layers import LAST, MultiBranchModule, ReplicaMeanNormalization, Standardize
from gated_resnext.nested import holds
from gated_resnext.norm import EPSILON, MOMENTUM
from gated_resnext.seeds import a_seed, seeds_from

POOLINGS = (None, "avg", "max")


@keras.saving.register_keras_serializable("gated_resnext")
class GatedResNeXt(keras.Model):
    """A multi-branch residual network from raw pixels to class probabilities.

    Args:
        architecture: its shape.
        connectivity: None learns the wiring (or there is none to learn, for aggregation="shared"); a `Connectivity`
            fixes it, and may have any number of blocks in each module, as after pruning.
        classifier_activation: "softmax", or None for logits.
        include_top: whether the classifier is there; without it the network gives features.
        pooling: of the features: None for the feature maps, "avg" or "max" for a vector an image.
        synchronized: whether batch norm counts the images of all replicas of tf.distribute, not each replica's own.
        precision: a Keras dtype policy, such as "mixed_bfloat16"; None for the one in force. Weights, gates, statistics
            and the classifier are float32 under each of the mixed ones.
        remat: whether learned gates, or learned weights of a sum, keep one wide tensor a module for the backward pass,
            not two, and compute the other again.
        seed: of the initial weights and of the draws; None for a random one.
        name: of the network.
        trainable: False for one none of whose layers learns or draws.
        frozen: names of the layers that do not, such as those of a trunk; they are kept in files and by `prune`.

    Call arguments:
        images: (batch, height, width, channels), 0 to 255, uint8 or floats.

    Returns:
        (batch, classes); without the top (batch, height, width, channels), or (batch, channels) if pooled.

    Raises:
        ValueError: if the wiring does not have one entry a module or there is none to fix, or the pooling is unknown or
            goes with the top.

    Example:

    >>> GatedResNeXt(Architecture(depth=11, width=4, cardinality=4, fan_in=1)).output_shape
    (None, 10)

    Reference:
        "Connectivity Learning in Multi-Branch Networks", section 2.
    """

    def __init__(
        self,
        architecture: Architecture | dict[str, Any],
        connectivity: Connectivity | dict[str, Any] | None = None,
        classifier_activation: str | None = "softmax",
        *,
        include_top: bool = True,
        pooling: str | None = None,
        synchronized: bool = False,
        precision: str | None = None,
        remat: bool = False,
        seed: int | None = None,
        name: str = "gated_resnext",
        trainable: bool = True,
        frozen: Sequence[str] = (),
    ) -> None:
        if isinstance(architecture, dict):
            architecture = Architecture.from_dict(architecture)
        if isinstance(connectivity, dict):
            connectivity = Connectivity.from_dict(connectivity)
        _check(architecture, connectivity)
        check_head(include_top, pooling, classifier_activation, architecture.classes)
        seed = a_seed(seed)
        with _policy(precision):
            images, outputs = _graph(
                architecture, connectivity, classifier_activation, include_top, pooling, synchronized, remat, seed=seed
            )
            super().__init__(inputs=images, outputs=outputs, name=name)
            self.precision = keras.config.dtype_policy().name
        self.architecture = architecture
        self.connectivity = connectivity
        self.classifier_activation = classifier_activation
        self.include_top = include_top
        self.pooling = pooling
        self.synchronized = synchronized
        self.remat = remat
        self.seed = seed
        if isinstance(frozen, str):
            raise ValueError(f"frozen must be a sequence of names. Received: frozen={frozen!r}")
        for layer in self.layers:
            if layer.name in frozen:
                layer.trainable = False
        if not trainable:
            self.trainable = False

    @property
    def gates(self) -> list[GatedAggregation]:
        """The gates of modules 2 to M, in order."""
        return [layer for layer in self.layers if isinstance(layer, GatedAggregation)]

    def real_gates(self) -> list[np.ndarray]:
        """The learned gates, one (C, C) matrix for each of the modules 2 to M; empty where the wiring is fixed."""
        return [keras.ops.convert_to_numpy(gate.real_gates) for gate in self.gates if gate.sources is None]

    def wiring(self) -> Connectivity:
        """The wiring the network evaluates with: the top K of the gates where they are learned."""
        arch = self.architecture
        if self.connectivity is not None:
            return self.connectivity
        if not arch.has_binary_gates:
            return Connectivity.full(arch.modules, arch.cardinality)
        return Connectivity.top_k(self.real_gates(), arch.fan_in, first=arch.cardinality)

    def stages(self) -> keras.Model:
        """A model of the features at the end of each stage, for heads that read several, as those of detection do.

        Returns:
            From images to a list of (batch, height, width, channels), the largest maps first: of each stage what the
            classifier reads of the last one, the ReLU of the branches' mean, or sum; of a fixed wiring without the
            branches that nobody reads, which were not trained on. It shares this network's layers.

        Example:

        >>> GatedResNeXt(Architecture(depth=11, width=4, cardinality=4, fan_in=1)).stages().output_shape
        [(None, 32, 32, 64), (None, 16, 16, 128), (None, 8, 8, 256)]
        """
        last = {plan.name.split("_")[0]: (number, plan.name) for number, plan in enumerate(self.architecture.plan())}
        features = []
        with _policy(self.precision):
            for stage, (number, name) in last.items():
                y, active = self.get_layer(name).output, _counted(self.connectivity, number)
                y = y if active is None else keras.ops.take(y, active, axis=0)
                features.append(_read(y, self.architecture, stage))
        return keras.Model(self.input, features)

    def weights_by_name(self) -> dict[str, np.ndarray]:
        """Every weight and state by its name, such as "stage1_module1/reduce/kernel"."""
        return {name: keras.ops.convert_to_numpy(variable) for name, variable in self.variables_by_name().items()}

    def variables_by_name(self) -> dict[str, keras.Variable]:
        """The variables by those names: without that of a layer or a `keras.name_scope` in which this was made."""
        scope = self.get_layer("standardize").mean_image.path.removesuffix("standardize/mean_image")
        return {variable.path.removeprefix(scope): variable for variable in self.variables}

    def assign_by_name(self, values: dict[str, np.ndarray]) -> None:
        """Sets the variables from what `weights_by_name` gave, cast to their own dtype.

        Args:
            values: arrays by name.

        Raises:
            ValueError: if a name or a shape is not this network's; then nothing was assigned.
        """
        variables = self.variables_by_name()
        missing = sorted(set(variables) - set(values))
        unknown = sorted(set(values) - set(variables))
        if missing or unknown:
            raise ValueError(f"the weights are of another network: {missing[:3]} missing, {unknown[:3]} unknown")
        for name, value in values.items():
            if tuple(value.shape) != tuple(variables[name].shape):
                raise ValueError(f"{name} has the shape {tuple(variables[name].shape)}. Received: {value.shape}")
        for name, value in values.items():
            variables[name].assign(value)

    def get_config(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture.to_dict(),
            "connectivity": self.connectivity and self.connectivity.to_dict(),
            "classifier_activation": self.classifier_activation,
            "include_top": self.include_top,
            "pooling": self.pooling,
            "synchronized": self.synchronized,
            "precision": self.precision,
            "remat": self.remat,
            "seed": self.seed,
            "name": self.name,
            "frozen": [layer.name for layer in self.layers if not layer.trainable],
        }

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Keras' own, for which only the classifier would be a layer to quantise, and the file would not open again.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "a GatedResNeXt is quantised as it is exported: python -m export.prune_and_save --formats=tflite_int8"
        )

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> GatedResNeXt:
        return cls(**config)


def load(path: str | os.PathLike[str]) -> Any:
    """A network from a .keras file, such as a training's `model.keras`, or a model of one's own that has gates.

    Args:
        path: the file. A model of one's own has a `GatedResNeXt`, layers of one, `GatedBranches` or a `GatedDenseBlock`
            in it.

    Returns:
        The `GatedResNeXt`, or the `keras.Model`.

    Raises:
        UserError: if it is not there, is damaged, or holds another kind of model.
    """
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise UserError(f"there is no file {path}")
    try:
        files.check_archive(path)
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:  # zip, HDF5 and Keras each have their own for a damaged file
        raise UserError(f"{path} does not hold a network: {first_line(error)}") from error
    kinds = (GatedResNeXt, GatedBranches, GatedDenseBlock, GatedAggregation, MultiBranchModule)
    if not isinstance(model, GatedResNeXt) and not holds(model, kinds):
        raise UserError(f"{path} holds a {type(model).__name__} without gates, not a GatedResNeXt")
    return model


def _graph(
    architecture: Architecture,
    connectivity: Connectivity | None,
    classifier_activation: str | None,
    include_top: bool,
    pooling: str | None,
    synchronized: bool,
    remat: bool,
    *,
    seed: int,
) -> tuple[Any, Any]:
    """The images and what the network makes of them, of the arguments of `GatedResNeXt`."""
    synchronized = synchronized and keras.backend.backend() == "tensorflow"  # the only one with replicas here
    seeds = iter(seeds_from(seed, 2 * architecture.modules + 2))
    blocks = connectivity.blocks if connectivity else (architecture.cardinality,) * architecture.modules
    shared = architecture.aggregation == "shared"

    # Floats, though pixels come as uint8: what stands before a network may give any, and have its gradient.
    images = keras.Input(architecture.input_shape, name="images", dtype="float32")
    x = _stem(Standardize(name="standardize")(images), architecture, synchronized, seed=next(seeds))
    for module, plan in enumerate(architecture.plan()):
        seed_of_gates, seed_of_module = next(seeds), next(seeds)
        if module and not shared:
            x = GatedAggregation(
                architecture.fan_in,
                architecture.aggregation,
                architecture.gates,
                connectivity.sources[module - 1] if connectivity else None,
                remat=remat,
                seed=seed_of_gates,
                name=f"{plan.name}_gate",
            )(x)
        elif module:
            x = keras.layers.ReLU(name=f"{plan.name}_relu")(x)
        x = MultiBranchModule(
            blocks[module],
            plan.width,
            plan.filters,
            plan.stride,
            "sum" if shared else "none",
            _counted(connectivity, module),
            synchronized,
            _averaged(architecture, connectivity, module),
            seed=seed_of_module,
            name=plan.name,
        )(x)
    x = _read(x, architecture)
    if include_top or pooling == "avg":
        x = keras.layers.GlobalAveragePooling2D(LAST, name="pool")(x)
    elif pooling == "max":
        x = keras.layers.GlobalMaxPooling2D(LAST, name="pool")(x)
    if include_top:
        x = keras.layers.Dense(
            architecture.classes,
            kernel_initializer=glorot_uniform(x.shape[-1], architecture.classes, next(seeds)),
            name="classifier",
            dtype="float32",
        )(x)
    if include_top and classifier_activation is not None:
        x = keras.layers.Activation(classifier_activation, name="probabilities", dtype="float32")(x)
    return images, x


def _read(y: Any, architecture: Architecture, stage: str = "") -> Any:
    """What reads all blocks of a module, be it the head's or, of features, a stage's."""
    prefix = f"{stage}_" if stage else ""
    if architecture.aggregation == "shared":
        return keras.layers.ReLU(name=f"{prefix}relu")(y)
    return BranchMean("sum" if architecture.aggregation == "sum" else "mean", name=f"{prefix}mean")(y)


@contextlib.contextmanager
def _policy(precision: str | None) -> Iterator[None]:
    """A Keras dtype policy for the layers that are made inside; None for the one in force."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision or before)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _check(architecture: Architecture, connectivity: Connectivity | None) -> None:
    if not isinstance(architecture, Architecture):
        raise ValueError(
            f"architecture must be an Architecture; a network of the zoo is zoo.load(name). Received: {architecture!r}"
        )
    if connectivity is None:
        return
    if not isinstance(connectivity, Connectivity):
        raise ValueError(f"connectivity must be a Connectivity or None. Received: {connectivity!r}")
    if not architecture.learnable and architecture.modules > 1:
        raise ValueError("aggregation='shared' is wired fully; it takes no connectivity")
    if architecture.gates == "real":
        raise ValueError("of gates='real' every block reads every other; it takes no connectivity")
    if len(connectivity.blocks) != architecture.modules:
        raise ValueError(
            f"the architecture has {architecture.modules} modules. Received: a wiring of {len(connectivity.blocks)}"
        )


def check_head(
    include_top: bool, pooling: str | None, classifier_activation: str | None, classes: int | None = None
) -> None:
    """Raises ValueError where there is no such head."""
    check_choice("classifier_activation", classifier_activation, ("softmax", None))
    if include_top and classes == 1 and classifier_activation == "softmax":
        raise ValueError("the softmax of one class is always 1: take classes=2, or classifier_activation=None")
    if not isinstance(include_top, bool):
        raise ValueError(f"include_top must be True or False. Received: include_top={include_top!r}")
    check_choice("pooling", pooling, POOLINGS)
    if include_top and pooling is not None:
        raise ValueError(f"pooling is of features, with include_top=False. Received: pooling={pooling!r}")


def _counted(connectivity: Connectivity | None, module: int) -> tuple[int, ...] | None:
    """The active blocks of a module that has unused ones beside them."""
    if connectivity is None or len(connectivity.active[module]) == connectivity.blocks[module]:
        return None
    return connectivity.active[module]


def _averaged(architecture: Architecture, connectivity: Connectivity | None, module: int) -> int:
    """Of how many blocks a reader of this module takes the mean, 1 where it takes the sum.

    The head reads all blocks, any other the K of the architecture, also where a wiring has other numbers: pruning
    may change those, and the blocks are to learn as before. Real-valued gates sum to 1, whatever the
    aggregation.
    """
    last = module == architecture.modules - 1
    if architecture.aggregation == "shared" or (
        architecture.aggregation == "sum" and (last or architecture.gates != "real")
    ):
        return 1
    if last:
        return connectivity.blocks[-1] if connectivity else architecture.cardinality
    return architecture.cardinality if architecture.gates == "real" else architecture.fan_in


def _stem(x: Any, architecture: Architecture, synchronized: bool, *, seed: int) -> Any:
    """The first convolution, with batch norm, ReLU and, for larger images, pooling; padded on every side."""
    size, stride, pools = STEMS[architecture.stem]
    x = keras.layers.ZeroPadding2D(size // 2, LAST, name="stem_pad")(x)
    x = keras.layers.Conv2D(
        architecture.stem_filters,
        size,
        stride,
        data_format=LAST,
        use_bias=False,
        kernel_initializer=he_normal(size * size * architecture.stem_filters, seed),
        name="stem_conv",
    )(x)
    x = ReplicaMeanNormalization(momentum=MOMENTUM, epsilon=EPSILON, synchronized=synchronized, name="stem_norm")(x)
    x = keras.layers.ReLU(name="stem_relu")(x)
    if pools:
        x = keras.layers.ZeroPadding2D(1, LAST, name="stem_pool_pad")(x)
        x = keras.layers.MaxPooling2D(3, 2, data_format=LAST, name="stem_pool")(x)
    return x
