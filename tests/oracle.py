"""The whole network in plain float64 numpy, written from the paper's equations: shares no code with the library.

`forward` takes the weights by name. Everything else the tests compare with is here too: wirings to try, the closed form
of sampling without replacement, the limit of a chi-square statistic.
"""

import itertools
import re
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

EPSILON = 1e-5
MOMENTUM = 0.9


class Output(NamedTuple):
    """What a forward pass gives: the head's outputs, the moving statistics after it and its multiply-adds an image."""

    logits: np.ndarray
    probabilities: np.ndarray
    moving: dict[str, np.ndarray]
    multiply_adds: int


def relu(x):
    return np.maximum(x, 0.0)


def convolve(x, kernel, stride=1, padding=0):
    """Cross-correlation of (batch, height, width, in) with (kh, kw, in, out), zeros on every side."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
    return np.tensordot(windows, kernel, axes=((4, 5, 3), (0, 1, 2)))


def max_pool(x):
    """3x3, stride 2, one row and column more on every side; for values of at least zero."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2].max(axis=(-2, -1))


def mixing(binary_gates, aggregation="mean", branch_weights=None):
    """The factors with which a block sums what it reads: gates (J, C), divided by their number or times weights."""
    gates = np.asarray(binary_gates, np.float64)
    if aggregation == "weighted":
        return gates * np.asarray(branch_weights, np.float64)
    return gates / gates.sum(axis=1, keepdims=True) if aggregation == "mean" else gates


def gate_matrices(wiring):
    """The wiring (first, sources) as matrices of zeros and ones, one for each of the modules 2 to M."""
    blocks, matrices = wiring[0], []
    for module in wiring[1]:
        matrices.append(np.array([[float(k in inputs) for k in range(blocks)] for inputs in module]))
        blocks = len(module)
    return matrices


def forward(weights, images, mixings=None, *, stem="conv3", aggregation="mean", training=False):
    """Runs the network.

    Args:
        weights: arrays by name, as `GatedResNeXt.weights_by_name` gives them.
        images: (batch, height, width, channels), 0 to 255.
        mixings: for each of the modules 2 to M, the (J, C) weights of Eq. 2; None for Eq. 1, one input for all blocks.
        stem: "conv3", "conv3_pool" or "conv7_pool".
        aggregation: the head's is the mean, but under "sum"; "shared" with Eq. 1.
        training: whether batch norm uses the batch's statistics.
    """
    weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    moving, multiply_adds = {}, []

    def conv(x, kernel, stride=1, padding=0):
        y = convolve(x, kernel, stride, padding)
        multiply_adds.append(y[0, ..., 0].size * kernel.size)
        return y

    def norm(x, name, block=...):
        mean, variance = weights[f"{name}/moving_mean"][block], weights[f"{name}/moving_variance"][block]
        if training:
            axes = tuple(range(x.ndim - 1))
            old, (mean, variance) = (mean, variance), (x.mean(axes), x.var(axes))
            for key, before, now in (("moving_mean", old[0], mean), ("moving_variance", old[1], variance)):
                updated = moving.setdefault(f"{name}/{key}", weights[f"{name}/{key}"].copy())
                updated[block] = MOMENTUM * before + (1 - MOMENTUM) * now
        gamma, beta = weights[f"{name}/gamma"][block], weights[f"{name}/beta"][block]
        return (x - mean) / np.sqrt(variance + EPSILON) * gamma + beta

    def residual(x, name, block, stride):
        h = relu(norm(conv(x, weights[f"{name}/reduce/kernel"][block][None, None]), f"{name}/reduce/norm", block))
        h = relu(norm(conv(h, weights[f"{name}/conv/kernel"][block], stride, 1), f"{name}/conv/norm", block))
        return norm(conv(h, weights[f"{name}/expand/kernel"][block][None, None]), f"{name}/expand/norm", block)

    def shortcuts(inputs, name, stride):
        if f"{name}/project/kernel" not in weights:
            assert stride == 1, f"{name} has a stride and no projection"
            return np.stack(inputs)
        kernel = weights[f"{name}/project/kernel"][0][None, None]
        return norm(np.stack([conv(x[:, ::stride, ::stride], kernel) for x in inputs]), f"{name}/project/norm", 0)

    x = (np.asarray(images, np.float64) - weights["standardize/mean_image"]) / 255.0
    x = conv(x, weights["stem_conv/kernel"], *((2, 3) if stem == "conv7_pool" else (1, 1)))
    x = relu(norm(x, "stem_norm"))
    if stem != "conv3":
        x = max_pool(x)

    y = None
    modules = dict.fromkeys(name.split("/")[0] for name in weights if name.startswith("stage") and "/reduce/" in name)
    for position, name in enumerate(modules):
        stage, number = map(int, re.findall(r"\d+", name))
        stride = 2 if stage > 1 and number == 1 else 1
        blocks = len(weights[f"{name}/reduce/kernel"])
        if position == 0:
            inputs = [x]  # one input for all blocks
        elif mixings is None:
            inputs = [relu(y)]
        else:
            inputs = [relu(np.tensordot(row, y, axes=1)) for row in mixings[position - 1]]
        each = inputs if len(inputs) > 1 else inputs * blocks
        residuals = [residual(x_j, name, block, stride) for block, x_j in enumerate(each)]
        shortcut = shortcuts(inputs, name, stride)
        y = shortcut[0] + sum(residuals) if mixings is None else shortcut + np.stack(residuals)

    total = y if mixings is None else np.sum(y, axis=0) if aggregation == "sum" else np.mean(y, axis=0)
    kernel = weights["classifier/kernel"]
    logits = relu(total).mean(axis=(1, 2)) @ kernel + weights["classifier/bias"]
    multiply_adds.append(kernel.size)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return Output(logits, powers / powers.sum(axis=1, keepdims=True), moving, sum(multiply_adds))


def cross_entropy(logits, labels):
    """Mean of -log softmax(logits)[label]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]))


def random_images(shape, *, batch, seed):
    """Noise about a colour of its own for every image, so that the pooled features differ too."""
    rng = np.random.default_rng(seed)
    colours, noise = rng.uniform(0, 155, (batch, 1, 1, shape[-1])), rng.uniform(0, 101, (batch, *shape))
    return (colours + noise).astype(np.uint8)


def random_weights(weights, *, seed):
    """Other values for every variable: kernels that keep the scale, statistics far from zero and one, simplex gates."""
    rng = np.random.default_rng(seed)
    values = {}
    for name, old in weights.items():
        kind, shape = name.rsplit("/", 1)[-1], old.shape
        if kind == "kernel":
            fan_in = np.prod(shape[1:-1] if name.startswith("stage") else shape[:-1])
            value = rng.normal(scale=4.0 if name.startswith("stem") else 1.0, size=shape) / np.sqrt(fan_in)
        elif kind in ("gamma", "moving_variance"):
            value = rng.uniform(0.4, 1.6, shape)
        elif kind in ("beta", "moving_mean", "bias"):
            value = rng.normal(scale=0.4, size=shape)
        elif kind == "mean_image":
            value = rng.uniform(0, 255, shape)
        elif kind == "real_gates":
            value = rng.dirichlet(np.ones(shape[1]), shape[0])
        elif kind == "branch_weights":
            value = rng.uniform(-0.3, 1.0, shape)
        elif kind == "step":
            value = old
        else:
            raise AssertionError(f"{name} is a weight this oracle does not know")
        values[name] = np.asarray(value, old.dtype)
    return values


@st.composite
def wirings(draw, modules=st.integers(1, 4), blocks=st.integers(1, 5)):
    """(first, sources): any number of blocks in each module, any number of inputs of each block."""
    before = first = draw(blocks)
    sources = []
    for _ in range(draw(modules) - 1):
        inputs = st.sets(st.integers(0, before - 1), min_size=1).map(lambda chosen: tuple(sorted(chosen)))
        module = tuple(draw(inputs) for _ in range(draw(blocks)))
        sources.append(module)
        before = len(module)
    return first, tuple(sources)


def read_by_the_head(wiring):
    """For each module, the blocks from which a path leads to the head: the count of paths is above zero."""
    matrices = gate_matrices(wiring)
    paths = np.ones(len(wiring[1][-1]) if wiring[1] else wiring[0])
    counts = [paths]
    for matrix in reversed(matrices):
        paths = paths @ matrix
        counts.append(paths)
    return tuple(tuple(np.flatnonzero(count).tolist()) for count in reversed(counts))


def without_replacement(row, count):
    """Probability of every set of `count` of the indices, drawn one by one out of what is left, by all orders."""
    probabilities = dict.fromkeys(itertools.combinations(range(len(row)), count), 0.0)
    for order in itertools.permutations(range(len(row)), count):
        probability, left = 1.0, 1.0
        for index in order:
            probability *= row[index] / left
            left -= row[index]
        probabilities[tuple(sorted(order))] += probability
    return probabilities


def chi_square(observed, expected):
    """Pearson's statistic over its limit, which it passes once in 10,000 times (Wilson and Hilferty)."""
    observed, expected = np.ravel(observed).astype(float), np.ravel(expected).astype(float)
    assert expected.min() >= 5, "too few samples for the statistic"
    assert observed.sum() == round(expected.sum())
    freedom = len(observed) - 1
    limit = freedom * (1 - 2 / (9 * freedom) + 3.719 * np.sqrt(2 / (9 * freedom))) ** 3
    return float(np.sum((observed - expected) ** 2 / expected) / limit)
