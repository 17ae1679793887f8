"""The peer in PyTorch computes the same function: outputs, statistics and gradients."""

import numpy as np
import pytest
import tensorflow as tf

from gated_resnext import Architecture, Connectivity, GatedResNeXt

torch = pytest.importorskip("torch", reason="torch is not installed (extra: benchmark)")
torch_peer = pytest.importorskip("benchmarks.torch_peer", reason="benchmarks/ is not here")

BATCH = 4


def pair(kind, **options):
    """A network, its weights all different from where they begin, and its peer."""
    full = kind == "full"
    arch = Architecture(
        depth=20,
        width=4,
        cardinality=4,
        fan_in=4 if full else 2,
        input_shape=(16, 16, 3),
        aggregation="shared" if full else "mean",
    )
    wiring = Connectivity.random(arch.modules, 4, 2, seed=0) if kind in ("frozen", "pruned") else None
    if kind == "pruned":
        wiring = wiring.pruned()
    model = GatedResNeXt(arch, wiring, None, seed=0)
    rng = np.random.default_rng(1)
    for variable in model.variables:
        name = variable.path.split("/")[-1]
        if name == "real_gates":
            variable.assign(rng.dirichlet(np.ones(4), 4))
        elif name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif name in ("beta", "moving_mean", "mean_image"):
            variable.assign(rng.normal(size=variable.shape))
    return model, torch_peer.network(model.weights_by_name(), arch, connectivity=wiring, **options)


def pixels():
    return np.random.default_rng(2).integers(0, 256, (BATCH, 16, 16, 3), np.uint8)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", ["learned", "frozen", "pruned", "full"])
def test_outputs_agree(kind, last):
    model, peer = pair(kind, last=last)
    images = pixels()
    inputs = torch_peer.standardized(images, np.asarray(model.get_layer("standardize").mean_image), last)
    with torch.no_grad():
        found = peer.eval()(inputs).numpy()
    expected = model(images).numpy()
    assert np.abs(found - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("kind", ["frozen", "full"])
def test_losses_and_gradients_in_training_agree(kind):
    model, peer = pair(kind, last=False)
    images, labels = pixels(), np.arange(BATCH)
    with tf.GradientTape() as tape:
        logits = model(images, training=True)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    gradients = dict(
        zip([v.path for v in model.trainable_variables], tape.gradient(loss, model.trainable_variables), strict=True)
    )
    inputs = torch_peer.standardized(images, np.asarray(model.get_layer("standardize").mean_image), last=False)
    of_peer = torch.nn.functional.cross_entropy(peer.train()(inputs), torch.tensor(labels))
    of_peer.backward()
    assert of_peer.item() == pytest.approx(float(loss), rel=1e-3)
    ours = gradients["classifier/kernel"].numpy().T
    np.testing.assert_allclose(peer.classifier.weight.grad, ours, atol=1e-2 * np.abs(ours).max())
    ours = gradients["stage1_module2/expand/norm/gamma"].numpy().reshape(-1)
    found = peer.modules_[1].expand_norm.weight.grad
    np.testing.assert_allclose(found, ours, atol=3e-2 * np.abs(ours).max())
    ours = np.asarray(model.get_layer("stage1_module1").reduce.norm.moving_mean).reshape(-1)
    np.testing.assert_allclose(peer.modules_[0].reduce_norm.running_mean, ours, atol=1e-4)


def test_the_gates_gradient_agrees():
    """Of the top K, in float32 without a draw: ours and the peer's, for all inputs of every block."""
    model, peer = pair("learned", last=False)
    images, labels = pixels(), np.arange(BATCH)
    gates = [gate.real_gates for gate in model.gates]
    with tf.GradientTape() as tape:
        logits = model(images, training=False)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    ours = tape.gradient(loss, [gate.value for gate in gates])
    inputs = torch_peer.standardized(images, np.asarray(model.get_layer("standardize").mean_image), last=False)
    torch.nn.functional.cross_entropy(peer.eval()(inputs), torch.tensor(labels)).backward()
    assert len(ours) == len(peer.gates) == 5
    for gradient, gate in zip(ours, peer.gates, strict=True):
        sizes = np.abs(gradient)
        scale, counts = sizes.max(), sizes.any(1)  # a block that nobody reads asks for nothing
        assert counts.sum() >= 2 and (sizes[counts] > 1e-5 * scale).all(), "also of inputs that are not read"
        np.testing.assert_allclose(gate.real_gates.grad, gradient, atol=1e-3 * scale)


def test_a_step_learns_the_gates_and_keeps_their_rows_at_one():
    _, peer = pair("learned", last=False)
    before = [gate.real_gates.detach().clone() for gate in peer.gates]
    step = torch_peer.Step(peer)
    inputs = torch_peer.standardized(pixels(), np.zeros((16, 16, 3), np.float32), last=False)
    assert np.isfinite(step(inputs, torch.arange(BATCH)).item())
    for gate, old in zip(peer.gates, before, strict=True):
        np.testing.assert_allclose(gate.real_gates.detach().sum(1), 1, rtol=1e-5)
        assert not torch.equal(gate.real_gates, old)
