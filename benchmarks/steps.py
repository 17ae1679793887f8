"""One side of a comparison in a process of its own: it makes a network, then takes steps when told to.

    python -m benchmarks.steps '{"side": "ours", "kind": "learned", "depth": 20, "width": 4, "fan_in": 4, "batch": 64}'

Reads "train N" or "infer N" from its input, a line each, and answers a line of JSON: seconds a step, and the most
memory it has held, in bytes. It answers once when it is ready. Two libraries in one process would fight for the cores.

    side    "ours" or "peer" (PyTorch)
    depth   under 11: of one stage alone, so that 8 is the stem, a module on it, and one gated module
    kind    "learned", "frozen" (a random wiring, all blocks kept), "pruned" (the same, unused blocks cut), "full"
    norm    of the peer's "full": "block", the same function, or "sum", ResNeXt as it is usually written
    layout  of the peer: "last" or "first"
    jit_compile  whether XLA compiles our training steps
    keep    false: freed memory goes where glibc puts it (`gated_resnext.memory`)
    onednn  false: TensorFlow's own kernels (`gated_resnext.onednn`)
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from gated_resnext import memory, onednn

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CARDINALITY = 8


def architecture(spec: dict[str, Any]) -> Any:
    """The network of a specification: of the zoo's `entry`, or one for 32x32 images and ten classes."""
    from gated_resnext import zoo
    from gated_resnext.architecture import Architecture

    if "entry" in spec:
        return zoo.architecture(spec["entry"])
    full = spec["kind"] == "full"
    return Architecture(
        depth=spec["depth"],
        width=spec["width"],
        cardinality=CARDINALITY,
        fan_in=CARDINALITY if full else spec["fan_in"],
        stem_filters=64 if spec["width"] == 64 else 16,
        aggregation="shared" if full else "mean",
        stages=((spec["depth"] - 2) // 3,) if spec["depth"] < 11 else None,
    )


def wiring(spec: dict[str, Any]) -> Any:
    """The same random wiring for both sides; None where it is learned or full."""
    from gated_resnext.connectivity import Connectivity

    if spec["kind"] in ("learned", "full"):
        return None
    arch = architecture(spec)
    found = Connectivity.random(arch.modules, CARDINALITY, arch.fan_in, seed=0)
    return found.pruned() if spec["kind"] == "pruned" else found


def pixels(spec: dict[str, Any]) -> tuple[Any, Any]:
    """Noise and labels: the time of a step does not depend on what is in the images."""
    import numpy as np

    rng, shape, batch = np.random.default_rng(0), architecture(spec).input_shape, spec["batch"]
    return rng.integers(0, 256, (batch, *shape), np.uint8), rng.integers(0, 10, batch).astype(np.int32)


def ours(spec: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Steps of this library, as the trainer compiles them."""
    import tensorflow as tf

    from gated_resnext import GatedResNeXt
    from gated_resnext.loop import Loop
    from gated_resnext.optimizer import GateConnectSGD

    options = {"precision": spec.get("precision", "float32"), "remat": spec.get("remat", False)}
    model = GatedResNeXt(architecture(spec), wiring(spec), None, seed=0, **options)
    optimizer = GateConnectSGD()
    optimizer.build(model.trainable_variables)
    loop = Loop(model, tf.distribute.get_strategy(), spec["batch"], optimizer, spec.get("jit_compile", False))
    images, labels = map(tf.constant, pixels(spec))
    step = tf.function(loop._step, autograph=False)
    forward = tf.function(lambda images: model(images, training=False), autograph=False)
    return {"train": lambda: step(images, labels).numpy(), "infer": lambda: forward(images).numpy()}


def peer(spec: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Steps of PyTorch, with the same number of threads."""
    import torch

    from benchmarks import torch_peer

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    last = spec.get("layout", "first") == "last"
    network = torch_peer.Network(architecture(spec), wiring(spec), norm=spec.get("norm", "block"), last=last)
    images, labels = pixels(spec)
    inputs = torch_peer.standardized(images, images.mean(0), last)
    targets = torch.tensor(labels, dtype=torch.int64)
    compiled = bool(spec.get("compiled"))
    step = torch_peer.Step(network, compiled)
    forward = step.forward

    def infer() -> Any:
        network.eval()
        with torch.inference_mode():
            return forward(inputs).sum().item()

    return {"train": lambda: step(inputs, targets).item(), "infer": infer}


def peak_memory() -> int:
    """Bytes that this program has held at most; unlike ru_maxrss, not what the program before it in the process had."""
    status = pathlib.Path("/proc/self/status")
    if not status.is_file():  # macOS, whose getrusage tells bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = status.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main(argv: list[str]) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    answers, sys.stdout = sys.stdout, sys.stderr
    spec = json.loads(argv[1])
    if spec.get("keep", True):
        memory.keep_freed_memory()
    if "onednn" in spec:
        os.environ[onednn.VARIABLE] = str(int(spec["onednn"]))
    onednn.use_onednn()
    if spec["side"] == "ours":
        import tensorflow  # noqa: F401  what it takes by itself is not the network's

        import gated_resnext.loop  # noqa: F401
    before = peak_memory()
    calls = {"ours": ours, "peer": peer}[spec["side"]](spec)
    for what in spec.get("warm", ["train", "infer"]):
        for _ in range(2):
            calls[what]()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        what, count = line.split()
        start = time.perf_counter()
        for _ in range(int(count)):
            calls[what]()
        seconds = (time.perf_counter() - start) / int(count)
        print(json.dumps({"seconds": seconds, "peak": peak_memory(), "before": before}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv)
