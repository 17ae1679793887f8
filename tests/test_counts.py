"""The compact graph's counts: the closed form, the layers of the graph and the operators of the files agree."""

import math

import keras
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from test_compact import shaken, wirings

from export import saved_model, tflite
from export.compact import compact
from export.counts import Counts, compact_counts, graph_counts
from gated_resnext import Architecture, Connectivity, GatedResNeXt

STEMS = ("conv3", "conv3_pool", "conv7_pool")


def counted_in_tflite(path):
    """Counts of the operators of a .tflite file."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(path.read_bytes()), 0))
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    (graph,) = model.subgraphs
    stored, multiply_adds = {}, 0
    for operator in graph.operators:
        if codes[operator.opcodeIndex] in (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.FULLY_CONNECTED):
            kernel, bias = (graph.tensors[number] for number in operator.inputs[1:3])
            output = graph.tensors[operator.outputs[0]]
            stored |= {kernel.buffer: math.prod(kernel.shape), bias.buffer: math.prod(bias.shape)}
            multiply_adds += math.prod(kernel.shape) * math.prod(output.shape[1:-1])
    return Counts(int(sum(stored.values())), int(multiply_adds))


def counted_in_saved_model(folder):
    """Counts of the operators of a SavedModel, its functions inlined, for a batch of one; weights once each."""
    loaded = tf.saved_model.load(str(folder))
    serve = convert_variables_to_constants_v2(loaded.signatures["serving_default"])
    multiply_adds = 0
    for operation in serve.graph.get_operations():
        if operation.type in ("Conv2D", "MatMul"):
            pixels = operation.outputs[0].shape[1:-1] if operation.type == "Conv2D" else ()
            multiply_adds += math.prod(operation.inputs[1].shape) * math.prod(pixels)
    variables = tf.train.load_checkpoint(str(folder / "variables" / "variables")).get_variable_to_shape_map()
    stored = sum(math.prod(shape) for name, shape in variables.items() if name.endswith("VARIABLE_VALUE"))
    return Counts(stored, multiply_adds)


@settings(max_examples=8)
@given(
    wiring=wirings(),
    aggregation=st.sampled_from(["mean", "sum", "weighted"]),
    stem=st.sampled_from(STEMS),
    bundle_channels=st.sampled_from([0, 6, 16]),
)
def test_the_closed_form_is_the_graphs(wiring, aggregation, stem, bundle_channels):
    keras.utils.clear_session()
    arch = Architecture(11, 2, 4, 1, 5, (21, 18, 3), aggregation, "binary", stem, 4, 8)
    graph = compact(GatedResNeXt(arch, wiring, seed=0), bundle_channels=bundle_channels)
    assert compact_counts(arch, wiring, bundle_channels=bundle_channels) == graph_counts(graph)
    assert graph_counts(graph).parameters == graph.count_params()


@pytest.mark.parametrize("stem", STEMS)
def test_the_closed_form_is_the_graphs_of_resnext(stem):
    arch = Architecture(8, 4, 4, 4, 5, (21, 18, 1), "shared", "binary", stem, 6, 12, stages=(1, 1))
    counts = compact_counts(arch, Connectivity.full(arch.modules, 4))
    assert counts == graph_counts(compact(GatedResNeXt(arch, seed=0)))


@pytest.mark.parametrize("aggregation", ["mean", "weighted", "shared"])
def test_the_files_hold_what_the_closed_form_says(aggregation, tmp_path):
    shared = aggregation == "shared"
    # Each reads two: TFLite's converter folds 1/K into the convolutions that follow, a copy for every K.
    wiring = Connectivity(4, (((0, 3), (0, 3), (1, 2), (0, 1)), ((0, 1), (0, 1), (1, 2), (0, 3))))
    arch = Architecture(11, 2, 4, 4 if shared else 1, 5, (9, 8, 3), aggregation, stem_filters=4, filters=8)
    graph = compact(shaken(GatedResNeXt(arch, None if shared else wiring, seed=0), 0))
    saved_model.write(graph, tmp_path / "saved_model")
    tflite.write(graph, tmp_path / "model.tflite")
    expected = compact_counts(arch, Connectivity.full(3, 4) if shared else wiring)
    assert counted_in_saved_model(tmp_path / "saved_model") == expected
    assert counted_in_tflite(tmp_path / "model.tflite") == expected


def test_where_blocks_have_nothing_to_share_it_computes_what_the_network_does():
    permuted = ((1,), (2,), (3,), (0,))
    for shape, wiring in (("mean", Connectivity(4, (permuted, permuted))), ("shared", Connectivity.full(3, 4))):
        arch = Architecture(11, 8, 4, 4 if shape == "shared" else 1, aggregation=shape)
        found = compact_counts(arch, wiring, bundle_channels=0).multiply_adds
        merged_shortcut = 0 if shape == "shared" else 3 * arch.plan()[-1].projection_multiply_adds
        assert found == arch.multiply_adds() - merged_shortcut


def test_a_wiring_of_another_depth_is_refused():
    arch = Architecture(11, 2, 4, 1)
    with pytest.raises(ValueError, match="has 3 modules. Received: a wiring of 2"):
        compact_counts(arch, Connectivity.full(2, 4))
