"""Freezes and prunes any model that is made of `GatedBranches`; the function stays the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import keras

from gated_resnext.branches import GatedBranches
from gated_resnext.connectivity import Connectivity
from gated_resnext.copying import copy_weights, made_again
from gated_resnext.nested import holds

Tensor = Any
Node = Any

UNUSED = object()  # stands for a tensor that nothing depends on


class Kept(NamedTuple):
    """What is left of a GatedBranches: of its branches, and of the outputs before that it may read."""

    branches: list[int]
    sources: list[int]


def wiring(model: keras.Model) -> Connectivity:
    """The wiring that a chain of `GatedBranches` evaluates with: the top K of the gates where they are learned.

    Args:
        model: a functional or Sequential model. Between two `GatedBranches` there may be layers of one tensor, such as
            pooling, on each of the outputs.

    Its `active` blocks are those that pruning leaves where all of the last `GatedBranches` is read, and nothing else
    reads one before.

    Raises:
        ValueError: if it is not a chain: the first reads one tensor, each of the others what the one before gave.

    Example:

    >>> images = keras.Input((8,))
    >>> y = GatedBranches([keras.layers.Dense(4), keras.layers.Dense(4)])(images)
    >>> y = GatedBranches([keras.layers.Dense(4), keras.layers.Dense(4)], sources=((0,), (0,)))(y)
    >>> wiring(keras.Model(images, keras.layers.Average()(y))).active
    ((0,), (0, 1))
    """
    graph = _graph(model)
    calls = [node for node in reversed(_calls(graph)) if isinstance(node.operation, GatedBranches)]
    for before, node in itertools.pairwise(calls):
        places = [(before.operation, place) for place in range(len(before.outputs))]
        if not node.operation.gated or [_origin(tensor) for tensor in node.input_tensors] != places:
            raise ValueError(
                f"in a chain {node.operation.name} reads all that {before.operation.name} gave, in order. "
                f"Received: inputs={[tensor.name for tensor in node.input_tensors]}"
            )
    if not calls:
        raise ValueError(f"the chain of {model.name} is in a model that is one of its layers: give that one")
    first, *others = [node.operation for node in calls]
    if first.gated:
        raise ValueError(f"the first GatedBranches of a chain reads one tensor. Received: a list, in {first.name}")
    return Connectivity(len(first.branches), tuple(layer.reads() for layer in others))


def freeze(model: keras.Model) -> keras.Model:
    """A model with the wiring of each `GatedBranches` fixed to the top K of its gates, all branches kept.

    Args:
        model: a functional or Sequential model.

    Returns:
        A new model with the same weights, not compiled.

    Raises:
        ValueError: if it is another kind of model, or holds no `GatedBranches`.
    """
    return _rebuilt(model, _all)


def prune(model: keras.Model) -> keras.Model:
    """A smaller model with the same function: branches that no output depends on are cut, the wiring is fixed.

    Whatever reads a branch counts, be it a `GatedBranches` or any other layer; a branch that only cut branches read is
    cut too. Nested models are pruned as well, branches that hold `GatedBranches` themselves are not.

    Args:
        model: a functional or Sequential model.

    Returns:
        A new functional model with the same weights, not compiled.

    Raises:
        ValueError: if it is another kind of model, holds no `GatedBranches`, or calls one twice.
    """
    return _rebuilt(model, _read)


def _graph(model: keras.Model) -> keras.Model:
    """The model as a functional one."""
    graph = model._functional if isinstance(model, keras.Sequential) else model
    try:
        graph = keras.Model(graph.input, graph.output, name=model.name)
    except (AttributeError, ValueError):
        raise ValueError(
            f"expected a functional model, or a Sequential one that was built. Received: {model}"
        ) from None
    if not holds(graph, GatedBranches):
        raise ValueError(
            f"expected a model that is made of GatedBranches. Received: {model}, which has none. What "
            "keras.models.clone_model or stages() made of a GatedResNeXt is one no longer: prune it before, or copy it "
            "by copy.deepcopy"
        )
    return graph


def _calls(graph: keras.Model) -> list[Node]:
    """What is called in a model, each before what it reads."""
    return [node for _, nodes in sorted(graph._nodes_by_depth.items()) for node in nodes]


def _origin(tensor: Tensor) -> tuple[Any, int]:
    """The layer that made a tensor, and as which of its outputs; layers of one tensor are passed over."""
    while True:
        layer, node, place = tensor._keras_history
        inputs = layer._inbound_nodes[node].input_tensors
        if isinstance(layer, GatedBranches) or len(inputs) != 1:
            return layer, place
        (tensor,) = inputs


def _all(graph: keras.Model) -> dict[str, Kept]:
    """Everything, by the names of the GatedBranches."""
    return {
        node.operation.name: Kept(list(range(len(node.outputs))), list(range(len(node.input_tensors))))
        for node in _calls(graph)
        if isinstance(node.operation, GatedBranches)
    }


def _read(graph: keras.Model) -> dict[str, Kept]:
    """What an output of the model depends on, by the names of the GatedBranches."""
    needed = {id(tensor) for tensor in graph.outputs}
    kept: dict[str, Kept] = {}
    for node in _calls(graph):
        places = [place for place, tensor in enumerate(node.outputs) if id(tensor) in needed]
        layer, inputs = node.operation, node.input_tensors
        if not places:
            continue
        if isinstance(layer, GatedBranches):
            if layer.name in kept:
                raise ValueError(f"a GatedBranches is pruned where it is called once. Received: {layer}, called twice")
            reads = layer.reads()
            read = {0} if reads is None else {source for place in places for source in reads[place]}
            kept[layer.name] = Kept(places, sorted(read))
            inputs = [inputs[source] for source in sorted(read)]
        needed |= set(map(id, inputs))
    return kept


def _rebuilt(model: keras.Model, choose: Callable[[keras.Model], dict[str, Kept]]) -> keras.Model:
    """The model with a fixed wiring and the chosen branches of each GatedBranches, and its weights."""
    graph = _graph(model)
    kept = choose(graph)
    gives: dict[int, int] = {}  # tensors, by the layer of the new model

    def cloned(layer: Any) -> Any:
        if isinstance(layer, GatedBranches):
            clone = _fixed(layer, kept[layer.name]) if layer.name in kept else layer
        elif isinstance(layer, keras.Model) and holds(layer, GatedBranches):
            clone = _rebuilt(layer, choose)
        else:
            clone = made_again(layer)
        gives[id(clone)] = len(layer._inbound_nodes[0].outputs)
        return clone

    def called(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, GatedBranches) and layer.name not in kept:
            return [UNUSED] * gives[id(layer)]
        if isinstance(layer, GatedBranches):
            (y,), (branches, sources), before = args, kept[layer.name], graph.get_layer(layer.name)
            if before.gated:
                y = [y[source] for source in sources]
            given = dict(zip(branches, layer(y, **kwargs), strict=True))
            return [given.get(place, UNUSED) for place in range(len(before.branches))]
        if any(value is UNUSED for value in keras.tree.flatten((args, kwargs))):
            return [UNUSED] * gives[id(layer)]
        return layer(*args, **kwargs)

    rebuilt = keras.models.clone_model(graph, clone_function=cloned, call_function=called)
    for layer in rebuilt.layers:
        if not layer.weights:
            continue
        before = graph.get_layer(layer.name)
        if isinstance(layer, GatedBranches):
            for branch, place in zip(layer.branches, kept[layer.name].branches, strict=True):
                copy_weights(before.branches[place], branch)
        elif not (isinstance(layer, keras.Model) and holds(layer, GatedBranches)):
            copy_weights(before, layer)
    return rebuilt


def _fixed(layer: GatedBranches, kept: Kept) -> GatedBranches:
    """What is kept of a layer, without the weights; what the branches read is renumbered."""
    reads, sources = layer.reads(), None
    if reads is not None:
        position = {source: place for place, source in enumerate(kept.sources)}
        sources = [[position[source] for source in reads[branch]] for branch in kept.branches]
    return layer.remade(kept.branches, sources)
