import dataclasses
import json

import numpy as np
import oracle
import pytest

from gated_resnext import zoo
from gated_resnext.architecture import IMAGENET_STAGES, Architecture
from gated_resnext.connectivity import Connectivity
from gated_resnext.model import GatedResNeXt

SMALL = Architecture(
    depth=11, width=2, cardinality=3, fan_in=2, classes=5, input_shape=(8, 8, 3), stem_filters=4, filters=8
)


@pytest.mark.parametrize(
    ("depth", "width", "cardinality", "stem_filters", "filters", "parameters"),
    [
        (20, 4, 8, 16, 64, 283_572),
        (29, 8, 8, 16, 64, 858_292),
        (29, 64, 8, 64, 256, 34_594_212),
    ],
)
def test_the_papers_networks_have_the_counted_parameters(depth, width, cardinality, stem_filters, filters, parameters):
    arch = Architecture(depth, width, cardinality, 4, classes=100, stem_filters=stem_filters, filters=filters)
    assert arch.parameters() == parameters
    assert arch.replace(fan_in=1).parameters() == parameters


def test_the_large_stem_has_64_filters_and_16_would_count_otherwise():
    large = Architecture(29, 64, 8, 4, classes=100, stem_filters=64, filters=256)
    # The stem's kernel and norm; what reads it: the first layer of 8 blocks and the projection.
    assert large.parameters() - large.replace(stem_filters=16).parameters() == 48 * (27 + 2 + 8 * 64 + 256)


@pytest.mark.parametrize(
    ("stages", "published"), [(IMAGENET_STAGES[50], 25_028_904), (IMAGENET_STAGES[101], 44_177_704)]
)
def test_imagenet_networks_are_the_published_resnext_but_for_the_norm_of_every_block(stages, published):
    arch = Architecture(
        2 + 3 * sum(stages),
        4,
        32,
        32,
        1000,
        (224, 224, 3),
        stem="conv7_pool",
        stem_filters=64,
        filters=256,
        stages=stages,
    )
    # ResNeXt normalises the sum of its 32 branches once: gamma and beta of 31 blocks are ours alone (row 6).
    ours_alone = sum(31 * 2 * count * filters for count, filters in zip(stages, (256, 512, 1024, 2048), strict=True))
    assert arch.parameters() - ours_alone == published


def test_multiply_adds_of_resnext_50():
    arch = Architecture(
        50,
        4,
        32,
        32,
        1000,
        (224, 224, 3),
        "shared",
        stem="conv7_pool",
        stem_filters=64,
        filters=256,
        stages=(3, 4, 6, 3),
    )
    assert round(arch.multiply_adds() / 1e9, 2) == 4.23  # as published for ResNeXt-50 32x4d


def test_plan_of_table_5():
    plan = Architecture(29, 64, 8, 4, classes=100, stem_filters=64, filters=256).plan()
    assert [p.name for p in plan] == [f"stage{s}_module{m}" for s in (1, 2, 3) for m in (1, 2, 3)]
    assert [p.width for p in plan] == [64] * 3 + [128] * 3 + [256] * 3
    assert [p.filters for p in plan] == [256] * 3 + [512] * 3 + [1024] * 3
    assert [p.in_channels for p in plan] == [64, 256, 256, 256, 512, 512, 512, 1024, 1024]
    assert [p.stride for p in plan] == [1, 1, 1, 2, 1, 1, 2, 1, 1]
    assert [p.out_size for p in plan] == [(32, 32)] * 3 + [(16, 16)] * 3 + [(8, 8)] * 3
    assert [p.projects for p in plan] == [True, False, False] * 3


def test_plan_of_an_imagenet_network():
    plan = Architecture(50, 4, 32, 16, 1000, (224, 224, 3), stem="conv7_pool", filters=256, stages=(3, 4, 6, 3)).plan()
    assert [p.out_size[0] for p in plan] == [56] * 3 + [28] * 4 + [14] * 6 + [7] * 3
    assert [i for i, p in enumerate(plan) if p.stride == 2] == [3, 7, 13]
    assert (plan[-1].width, plan[-1].filters) == (32, 2048)


def test_odd_sizes_are_halved_upwards():
    plan = dataclasses.replace(SMALL, input_shape=(9, 7, 3)).plan()
    assert [p.in_size for p in plan] == [(9, 7), (9, 7), (5, 4)]
    assert [p.out_size for p in plan] == [(9, 7), (5, 4), (3, 2)]


@pytest.mark.parametrize(("stem", "size"), [("conv3", (9, 12)), ("conv3_pool", (5, 6)), ("conv7_pool", (3, 3))])
def test_the_stem_sets_the_first_size(stem, size):
    assert dataclasses.replace(SMALL, input_shape=(9, 12, 3), stem=stem).stem_size == size


def test_sizes_of_one_module_by_hand():
    arch = Architecture(5, 2, 3, 1, classes=5, input_shape=(4, 4, 1), stem_filters=3, filters=4, stages=(1,))
    stem, head = 9 * 1 * 3 + 2 * 3, 4 * 5 + 5
    block, projection = 3 * 2 + 9 * 2 * 2 + 2 * 4 + 2 * (2 + 2 + 4), 3 * 4 + 2 * 4
    assert arch.parameters() == stem + 3 * block + projection + head == 276
    assert arch.multiply_adds() == 16 * 27 + 3 * 16 * (6 + 36 + 8) + 16 * 12 + 20 == 3044


def test_multiply_adds_of_a_pruned_network_by_hand():
    arch = Architecture(8, 1, 2, 1, classes=3, input_shape=(4, 4, 1), stem_filters=2, filters=2, stages=(1, 1))
    stem, head = 16 * 9 * 2, 4 * 3
    first = 16 * (2 + 9 + 2)  # no projection: 2 channels in and out
    second = 16 * 2 * 2 + 4 * (9 * 2 * 2 + 2 * 4)  # a block; its 1x1 reduction runs before the stride
    assert arch.multiply_adds() == stem + 2 * first + 2 * second + 2 * (4 * 2 * 4) + head
    assert arch.multiply_adds((1, 2)) == stem + first + 2 * second + 2 * (4 * 2 * 4) + head
    shared = arch.replace(aggregation="shared", fan_in=2)
    assert shared.multiply_adds() == stem + 2 * first + 2 * second + 4 * 2 * 4 + head  # one projection for all


COUNTED = {
    "three stages": (SMALL, None),
    "sum": (SMALL.replace(aggregation="sum", fan_in=1), None),
    "shared": (SMALL.replace(aggregation="shared", fan_in=3), None),
    "real": (SMALL.replace(gates="real"), None),
    "weighted": (SMALL.replace(aggregation="weighted"), None),
    "weighted, one module": (SMALL.replace(aggregation="weighted", depth=5, stages=(1,)), None),
    "weighted, pruned": (SMALL.replace(aggregation="weighted"), (1, (((0,), (0,), (0,)), ((1,), (0, 2))))),
    "conv3_pool": (SMALL.replace(stem="conv3_pool", input_shape=(11, 9, 1)), None),
    "conv7_pool": (SMALL.replace(stem="conv7_pool", input_shape=(17, 20, 3), stages=(1, 2)), None),
    "four stages": (SMALL.replace(depth=14, stages=(1, 1, 1, 1), input_shape=(10, 10, 3)), None),
    "no projection": (SMALL.replace(depth=8, stages=(2,), stem_filters=8), None),
    "one module": (SMALL.replace(depth=5, stages=(1,)), None),
    "pruned": (SMALL.replace(depth=14, stages=(2, 2)), (1, (((0,), (0,)), ((0, 1), (1,), (0,)), ((0,), (1, 2), (2,))))),
    "pruned conv7_pool": (SMALL.replace(depth=8, stages=(1, 1), stem="conv7_pool"), (2, (((0, 1), (0,), (1,)),))),
}


@pytest.mark.parametrize("case", COUNTED)
def test_the_closed_forms_equal_the_counts(case):
    arch, wiring = COUNTED[case]
    model = GatedResNeXt(arch, wiring and Connectivity(*wiring), seed=0)
    trainable = [variable for variable in model.trainable_variables if not variable.path.endswith("real_gates")]
    blocks = wiring and Connectivity(*wiring).blocks
    assert arch.parameters(blocks) == sum(int(np.prod(variable.shape)) for variable in trainable)
    mixings = None
    if arch.aggregation != "shared":
        full = (arch.cardinality, ((tuple(range(arch.cardinality)),) * arch.cardinality,) * (arch.modules - 1))
        mixings = [oracle.mixing(matrix) for matrix in oracle.gate_matrices(wiring or full)]
    images = oracle.random_images(arch.input_shape, batch=1, seed=0)
    counted = oracle.forward(model.weights_by_name(), images, mixings, stem=arch.stem).multiply_adds
    assert arch.multiply_adds(blocks) == counted


def test_a_weighted_sum_has_a_weight_for_each_pair_of_blocks():
    weighted = SMALL.replace(aggregation="weighted")
    assert weighted.parameters() - SMALL.parameters() == 3 * 3 + 3 * 3
    assert weighted.parameters((1, 2, 3)) - SMALL.parameters((1, 2, 3)) == 1 * 2 + 2 * 3
    assert weighted.multiply_adds((1, 2, 3)) == SMALL.multiply_adds((1, 2, 3))


def test_parameters_of_full_blocks_are_those_of_none():
    assert SMALL.parameters((3, 3, 3)) == SMALL.parameters()
    assert SMALL.multiply_adds((3, 3, 3)) == SMALL.multiply_adds()


def test_a_wiring_of_another_length_cannot_be_counted():
    with pytest.raises(ValueError, match="shorter"):
        SMALL.parameters((3, 3))


@pytest.mark.parametrize(
    "changes",
    [{}, {"depth": 14, "stages": (2, 2)}, {"aggregation": "shared", "fan_in": 3}, {"aggregation": "weighted"}],
)
def test_json_round_trip(changes):
    arch = SMALL.replace(**changes)
    assert Architecture.from_dict(json.loads(json.dumps(arch.to_dict()))) == arch


def test_replacing_the_depth_derives_the_stages():
    assert SMALL.replace(depth=20).stages == (2, 2, 2)
    imagenet = Architecture(50, 4, 32, 16, stages=IMAGENET_STAGES[50])
    assert imagenet.replace(depth=101).stages == (3, 4, 23, 3)
    assert imagenet.replace(classes=7).stages == (3, 4, 6, 3)


def test_an_architecture_is_a_value():
    assert SMALL.replace() == SMALL and hash(SMALL) == hash(SMALL.replace())
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL.depth = 20
    assert str(SMALL) == "{11,2,3}"


def test_what_can_be_learned():
    assert SMALL.learnable
    assert not SMALL.replace(aggregation="shared", fan_in=3).learnable
    assert not SMALL.replace(depth=5, stages=(1,)).learnable


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fan_in": 4}, r"fan_in \(K\) must be at most cardinality \(C\).*Received: fan_in=4, cardinality=3"),
        ({"fan_in": 0}, "fan_in must be a whole number of at least 1. Received: fan_in=0"),
        ({"width": 2.0}, "width must be a whole number.*Received: width=2.0"),
        ({"cardinality": True}, "cardinality must be a whole number.*Received: cardinality=True"),
        ({"depth": 12}, r"depth must be 2 \+ 3M.*Received: depth=12"),
        ({"depth": 2}, r"depth must be 2 \+ 3M.*Received: depth=2"),
        ({"depth": 14}, "depth=14 gives 4 modules, which three stages cannot share equally"),
        ({"stages": (1, 1)}, r"stages must sum to the 3 modules of depth 11. Received: \(1, 1\)"),
        ({"stages": (3, 0)}, r"stages must sum to the 3 modules of depth 11. Received: \(3, 0\)"),
        ({"aggregation": "max"}, "aggregation must be one of .*'mean'.*Received: aggregation='max'"),
        ({"gates": "soft"}, "gates must be one of .*'binary'.*Received: gates='soft'"),
        ({"stem": "conv5"}, "stem must be one of .*'conv3'.*Received: stem='conv5'"),
        ({"aggregation": "shared"}, "aggregation='shared'.*fan_in must be 3. Received: fan_in=2"),
        ({"aggregation": "weighted", "gates": "real"}, "'weighted' goes with gates='binary'.*Received: gates='real'"),
        ({"input_shape": (8, 8)}, r"input_shape must be \(height, width, channels\). Received: \(8, 8\)"),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SMALL.replace(**changes)


def test_whole_numbers_of_any_library_are_whole_numbers():
    sizes = np.array([8, 8, 3], np.int32)
    found = Architecture(
        *map(np.int64, (11, 2, 3, 2)), classes=np.uint8(5), input_shape=tuple(sizes), stages=np.array([1, 1, 1])
    )
    assert found == Architecture(11, 2, 3, 2, classes=5, input_shape=(8, 8, 3))
    assert Architecture.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    for classes in (True, np.float64(5), np.True_, "5", None):
        with pytest.raises(ValueError, match="classes must be a whole number of at least 1"):
            Architecture(11, 2, 3, 2, classes=classes)


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(ValueError, match="has the fields.*'cardinality'.*'bandwidth'"):
        Architecture.from_dict({**SMALL.to_dict(), "bandwidth": 3})
    fields = SMALL.to_dict()
    del fields["width"]
    with pytest.raises(ValueError, match="incomplete: .*'width'"):
        Architecture.from_dict(fields)


@pytest.mark.parametrize(
    "name, images",
    [("digits_11_4_4_k1", 128), ("cifar10_20_4_8_k4", 128), ("cifar10_29_64_8_k4", 128), ("imagenet_101_4_64_k32", 5)],
)
def test_no_more_images_at_once_than_a_module_has_memory_for(name, images):
    arch = zoo.architecture(name)
    assert arch.images_at_once(128) == images and arch.images_at_once(3) == 3
    plan = max(arch.plan(), key=lambda plan: plan.filters * plan.out_size[0] * plan.out_size[1])
    written = arch.cardinality * plan.filters * plan.out_size[0] * plan.out_size[1] * 4
    assert written * images <= 2**30 and (images == 128 or written * (images + 1) > 2**30)
