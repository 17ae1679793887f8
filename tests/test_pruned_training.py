"""Once the wiring is fixed, the pruned network trains as the whole one would."""

import hypothesis
import numpy as np
import oracle
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from gated_resnext import pruning
from gated_resnext.architecture import Architecture
from gated_resnext.connectivity import Connectivity
from gated_resnext.loop import Loop
from gated_resnext.model import GatedResNeXt
from gated_resnext.optimizer import GateConnectSGD

ARCH = Architecture(
    14, 2, 3, 2, classes=5, input_shape=(6, 7, 3), stem_filters=3, filters=4, stages=(1, 2, 1)
)  # four modules, of which one has no projection
STEPS, BATCH, RATE, L2, MOMENTUM = 4, 16, 0.05, 1e-2, 0.9
# Unused blocks in the modules 1; 1 to 3; 2 and 3 beside a block that reads one that the rest does not; none.
WIRINGS = [
    Connectivity(3, (((0,), (0, 2), (2,)), ((0, 1, 2),) * 3, ((0, 1), (1, 2), (0, 2)))),
    Connectivity(3, (((1,),) * 3, ((0, 2),) * 3, ((1,),) * 3)),
    Connectivity(3, (((0, 1), (1, 2), (2,)), ((0,), (2,), (0, 1)), ((1,), (1,), (0, 1)))),
    Connectivity(3, (((0, 1), (1, 2), (0, 2)),) * 3),
]


@pytest.fixture(scope="module", autouse=True)
def eager():
    """Without tracing, which would take most of the time."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


# Images of noise and labels at random: on images with areas of one colour many units of a ReLU are at exactly zero,
# where rounding decides on the gradient.
def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        yield (
            tf.constant(rng.integers(0, 256, (BATCH, *ARCH.input_shape), dtype=np.uint8)),
            tf.constant(rng.integers(0, 5, BATCH, dtype=np.int32)),
        )


def trained(arch, wiring, state):
    """Losses of some steps from a state, and the state after them, the optimizer's included."""
    model = GatedResNeXt(arch, wiring, None, seed=1)
    model.assign_by_name(state)
    optimizer = GateConnectSGD(RATE, gate_learning_rate=0.0, l2=L2, momentum=MOMENTUM)
    optimizer.build(model.trainable_variables)
    loop = Loop(model, tf.distribute.get_strategy(), BATCH, optimizer)
    scores = loop.train(batches(), STEPS)
    momenta = {
        variable.path: optimizer.variables[2 + number].numpy()
        for number, variable in enumerate(model.trainable_variables)
    }
    return scores, model.weights_by_name(), momenta


def close(found, expected, name):
    """Float32 rounding of sums in another order, grown over a few steps; relative to the largest of the array."""
    atol = 1e-4 * max(np.abs(expected).max(initial=0), 1e-2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize(
    ("wiring", "aggregation"), [*((wiring, "mean") for wiring in WIRINGS), (WIRINGS[2], "weighted")]
)
def test_active_blocks_learn_the_same_without_the_unused(wiring, aggregation):
    arch = ARCH.replace(aggregation=aggregation)
    start = GatedResNeXt(arch, wiring, None, seed=3).weights_by_name()
    scores, after, momenta = trained(arch, wiring, start)
    kept, unused_before = pruning.cut(start, ARCH, wiring)
    scores_pruned, after_pruned, momenta_pruned = trained(arch, wiring.pruned(), kept)
    np.testing.assert_allclose(scores_pruned[:, 0], scores[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(scores_pruned[:, 3], BATCH)

    active, unused = pruning.cut(after, ARCH, wiring)
    assert set(after_pruned) == set(active)
    for name, value in active.items():
        close(after_pruned[name], value, name)
    moved = [name for name in after_pruned if np.abs(after_pruned[name] - kept[name]).max() > 1e-3]
    assert {"stem_conv/kernel", "stage1_module1/conv/kernel", "classifier/kernel"} <= set(moved)
    active_momenta, unused_momenta = pruning.cut(momenta, ARCH, wiring)
    for name, value in active_momenta.items():
        close(momenta_pruned[name], value, name)

    # What was cut sees no gradient: its kernels shrink by L2 alone, gamma and beta stay.
    blocks = sum(wiring.blocks) - sum(wiring.active_blocks)
    assert len(unused) == len(unused_before) and bool(unused) == (blocks > 0)
    for name, value in unused_before.items():
        if name.endswith("kernel"):
            velocity, expected = 0.0, value.astype(np.float64)
            for _ in range(STEPS):
                velocity = MOMENTUM * velocity - RATE * L2 * expected
                expected = expected + velocity
            np.testing.assert_allclose(unused[name], expected, rtol=1e-5, atol=1e-8, err_msg=name)
            np.testing.assert_allclose(unused_momenta[name], velocity, rtol=1e-4, atol=1e-8, err_msg=name)
        elif name.endswith(("gamma", "beta", "branch_weights")):
            np.testing.assert_array_equal(unused[name], value, err_msg=name)


# Cutting and putting back


def values_of(arch, wiring, seed):
    """Arrays with the names of a network's and as many rows as it has blocks, random."""
    rng, values = np.random.default_rng(seed), {"stem_conv/kernel": np.ones((3, 3, 3, 4), np.float32)}
    for plan, blocks, before in zip(arch.plan(), wiring.blocks, (1, *wiring.blocks[:-1]), strict=True):
        for part, shape in (
            ("reduce/kernel", (4, 2)),
            ("reduce/norm/moving_mean", (2,)),
            ("conv/kernel", (3, 3, 2, 2)),
            ("conv/norm/gamma", (2,)),
            ("expand/norm/beta", (5,)),
        ):
            values[f"{plan.name}/{part}"] = rng.normal(size=(blocks, *shape)).astype(np.float32)
        values[f"{plan.name}/project/kernel"] = rng.normal(size=(1, 4, 5)).astype(np.float32)
        if plan.name != "stage1_module1":
            values[f"{plan.name}_gate/branch_weights"] = rng.normal(size=(blocks, before)).astype(np.float32)
    return values


@hypothesis.given(oracle.wirings(modules=st.just(4), blocks=st.integers(1, 5)), st.integers(0, 2**32 - 1))
@hypothesis.example((3, (((1,),) * 3, ((0, 2),) * 3, ((1,),) * 3)), 0)
def test_uncut_is_the_inverse_of_cut(plain, seed):
    wiring = Connectivity(*plain)
    values = values_of(ARCH, wiring, seed)
    kept, unused = pruning.cut(values, ARCH, wiring)
    back = pruning.uncut(kept, unused, ARCH, wiring)
    assert set(back) == set(kept) == set(values)
    for name, value in values.items():
        assert back[name].dtype == value.dtype
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    read = oracle.read_by_the_head(plain)
    for plan, blocks, used in zip(ARCH.plan(), wiring.blocks, read, strict=True):
        rows = sorted(used)
        np.testing.assert_array_equal(kept[f"{plan.name}/conv/kernel"], values[f"{plan.name}/conv/kernel"][rows])
        left = unused.get(f"{plan.name}/conv/kernel", np.zeros(0))
        assert len(left) == blocks - len(rows)
        assert f"{plan.name}/project/kernel" not in unused
    assert "stem_conv/kernel" not in unused
