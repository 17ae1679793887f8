"""Training steps and inference beside the same networks in PyTorch, and beside what the machine can do.

    python -m benchmarks.training --json=training.json --markdown=docs/performance.md

Every side runs in a process of its own (`benchmarks.steps`), in turns, A B A B ..., so that what else the machine does
meets all alike; ratios are medians over the turns. --markdown replaces the part of a file between this benchmark's two
comments, or prints to "-". The peer needs torch (extra "benchmark"); --peers= leaves it out.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from benchmarks import report, times
from benchmarks.sides import Side
from benchmarks.steps import architecture
from benchmarks.traffic import by_theory, wide_bytes
from export import latency
from gated_resnext import errors
from gated_resnext import markdown as tables

NETWORKS = flags.DEFINE_list(
    "networks", ["8-4", "20-4", "29-8", "29-64"], "Depth-width of the networks, 8 blocks a module; 8 is two modules."
)
BATCHES = flags.DEFINE_list("batches", ["32", "32", "16", "8"], "Images a step, one for each network.")
PEERS = flags.DEFINE_list("peers", ["first", "last"], "Memory layouts of the peer: channels first, channels last.")
COMPILED = flags.DEFINE_bool("compiled", False, "The peer through torch.compile as well.")
LEAVE_OUT = flags.DEFINE_list("leave_out", [], "Parts of names: sides whose name has one are left out.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 3, "Steps in a turn.", lower_bound=1)
MARKDOWN = flags.DEFINE_string("markdown", "-", "File whose part between the benchmark's comments is replaced.")

OURS: dict[str, dict[str, Any]] = {
    "learned K=4": {"kind": "learned", "fan_in": 4},
    "learned K=4, remat": {"kind": "learned", "fan_in": 4, "remat": True},
    "learned K=4, bfloat16": {"kind": "learned", "fan_in": 4, "precision": "mixed_bfloat16"},
    "learned K=4, XLA": {"kind": "learned", "fan_in": 4, "jit_compile": True},
    "frozen K=4": {"kind": "frozen", "fan_in": 4},
    "pruned K=4": {"kind": "pruned", "fan_in": 4},
    "learned K=1": {"kind": "learned", "fan_in": 1},
    "pruned K=1": {"kind": "pruned", "fan_in": 1},
    "full": {"kind": "full", "fan_in": 8},
    "full, XLA": {"kind": "full", "fan_in": 8, "jit_compile": True},
    "full, bfloat16": {"kind": "full", "fan_in": 8, "precision": "mixed_bfloat16"},
}
BESIDE = ("learned K=4", "learned K=4, XLA", "frozen K=4", "full", "full, XLA")
THEIRS: dict[str, dict[str, Any]] = {
    "learned K=4": {"kind": "learned", "fan_in": 4},
    "frozen K=4": {"kind": "frozen", "fan_in": 4},
    "full": {"kind": "full", "fan_in": 8},
    "full, one norm": {"kind": "full", "fan_in": 8, "norm": "sum"},
}


def specifications(network: str, batch: int, peers: bool) -> dict[str, dict[str, Any]]:
    """All sides of a comparison, by name: our own, or some of them and the peer's."""
    depth, width = map(int, network.split("-"))
    common = {"depth": depth, "width": width, "batch": batch}
    specs = {name: {**common, "side": "ours", **spec} for name, spec in OURS.items()}
    if not peers:
        return _kept_in(specs)
    specs = {name: specs[name] for name in BESIDE}
    for layout in PEERS.value:
        for name, spec in THEIRS.items():
            for compiled in (False, True)[: 1 + COMPILED.value]:
                label = f"torch {name} ({layout}{', compiled' if compiled else ''})"
                specs[label] = {**common, "side": "peer", **spec, "layout": layout, "compiled": compiled}
    return _kept_in(specs)


def _kept_in(specs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: spec for name, spec in specs.items() if not any(part in name for part in LEAVE_OUT.value)}


def measured(network: str, batch: int, peers: bool = False) -> dict[str, Any]:
    """Seconds of a step of every side, in turns, and the most memory each held."""
    specs = specifications(network, batch, peers)
    sides: dict[str, Side] = {}
    began = time.monotonic()
    for name, spec in specs.items():
        sides[name] = Side(spec)
        print(f"{network}: {name} is ready after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    taken: dict[str, dict[str, list[float]]] = {what: {name: [] for name in sides} for what in ("train", "infer")}
    for _ in range(ROUNDS.value):
        for what, of_sides in taken.items():
            for name, side in sides.items():
                of_sides[name].append(side.take(what, STEPS.value))
    peaks = {name: side.peak for name, side in sides.items()}
    for side in sides.values():
        side.close()
    return {"network": network, "batch": batch, "seconds": taken, "peak": peaks, "specs": specs}


def main(argv: list[str]) -> None:
    del argv
    if len(BATCHES.value) != len(NETWORKS.value):
        raise errors.UserError("--batches must have one number for each of --networks")
    times.check()
    limits = report.limits()
    rows = []
    for name, batch in zip(NETWORKS.value, BATCHES.value, strict=True):
        # In two parts, for the memory that all these processes hold.
        rows += [measured(name, int(batch), peers) for peers in (False, True)[: 1 + bool(PEERS.value)]]
    result = {
        "machine": report.machine(),
        "limits": limits,
        "rounds": ROUNDS.value,
        "steps": STEPS.value,
        "networks": rows,
    }
    about = {"copy_bytes_per_s": limits["copy"], "product_flop_per_s": limits["product"], "loops": STEPS.value}
    times.save((found for row in rows for found in _kept(row)), about)
    report.publish(MARKDOWN.value, "training", markdown(result))


def _kept(row: dict[str, Any]) -> Iterator[times.Times]:
    """Each side's training and inference, with what it was and the most memory it held."""
    beside = ", beside PyTorch" if any(spec["side"] == "peer" for spec in row["specs"].values()) else ""
    for what, of_sides in row["seconds"].items():
        for name, seconds in of_sides.items():
            about = {**row["specs"][name], "mem_max_rss": row["peak"][name]}
            title = f"{{{row['network'].replace('-', ',')},8}} {name}, batch {row['batch']}, {what}{beside}"
            yield times.Times(title, seconds, about)


def markdown(result: dict[str, Any]) -> str:
    """The tables of a result."""
    limits = result["limits"]
    lines = [
        f"{report.described(result['machine'])}. Adding two tensors moves {limits['copy'] / 1e9:.1f} GB/s, a float32 "
        f"product of two matrices of 2048 does {limits['product'] / 1e9:.0f} GFLOP/s. {result['rounds']} turns of "
        f"{result['steps']} steps. The bandwidth is that of the wide passes that theory asks for ({by_theory()} of a "
        f"learned input, {by_theory(False)} of a fixed one).",
        "",
    ]
    for row in result["networks"]:
        lines += [*_network_table(row, limits), "", *_ratios(row), ""]
    return "\n".join(lines).rstrip()


def _network_table(row: dict[str, Any], limits: dict[str, float]) -> list[str]:
    head = [f"{{{row['network'].replace('-', ',')},8}}, batch {row['batch']}"]
    head += ["training, images/s", "of the matrix rate", "of the bandwidth", "inference, images/s", "peak memory, GiB"]
    rows = []
    for name, taken in row["seconds"]["train"].items():
        step, call = statistics.median(taken), statistics.median(row["seconds"]["infer"][name])
        spec = row["specs"][name]
        blocks = _blocks(spec)
        operations = 6 * architecture(spec).multiply_adds(blocks) * row["batch"] / step
        cells = [name, f"{row['batch'] / step:.1f}", f"{100 * operations / limits['product']:.0f} %"]
        cells += [_of_the_bandwidth(spec, blocks, row["batch"], step, limits)]
        cells += [f"{row['batch'] / call:.1f}", f"{row['peak'][name] / 2**30:.2f}"]
        rows.append(cells)
    return tables.table(head, rows)


def _of_the_bandwidth(
    spec: dict[str, Any], blocks: Sequence[int], batch: int, step: float, limits: dict[str, float]
) -> str:
    """The share of the machine's bandwidth that a step's wide passes take; none where all blocks share one input."""
    if spec["kind"] == "full":
        return ""
    size = 2 if spec.get("precision") == "mixed_bfloat16" else 4
    moved = by_theory(spec["kind"] == "learned") * wide_bytes(architecture(spec), blocks, batch, size)
    return f"{100 * moved / step / limits['copy']:.0f} %"


def _blocks(spec: dict[str, Any]) -> Sequence[int]:
    from benchmarks.steps import wiring

    found = wiring(spec)
    return architecture(spec).modules * (8,) if found is None else found.blocks


def _ratios(row: dict[str, Any]) -> list[str]:
    """What a step costs beside another, above 1 where the first is slower; of the peer, its fastest form."""
    train = row["seconds"]["train"]
    pairs: list[tuple[str | None, str]] = [
        ("learned K=4", "frozen K=4"),
        ("learned K=1", "learned K=4"),
        ("learned K=4", "pruned K=4"),
    ]
    pairs += [("learned K=4, remat", "learned K=4"), ("learned K=4", "full")]
    pairs += [(name, f"{name}, XLA") for name in ("learned K=4", "full")]
    pairs += [(name, f"{name}, bfloat16") for name in ("learned K=4", "full")]
    pairs += [(_fastest(train, f"torch {name} ("), name) for name in ("learned K=4", "frozen K=4", "full")]
    pairs += [(_fastest(train, f"torch {name} ("), f"{name}, XLA") for name in ("learned K=4", "full")]
    pairs += [(_fastest(train, "torch full, one norm ("), "full")]
    rows = [
        [f"{slow} / {fast}", f"{latency.ratio(train[slow], train[fast]):.2f}"]
        for slow, fast in pairs
        if slow in train and fast in train
    ]
    return tables.table(["ratio of training steps", ""], rows)


def _fastest(taken: dict[str, list[float]], beginning: str) -> str | None:
    found = [name for name in taken if name.startswith(beginning)]
    return min(found, key=lambda name: statistics.median(taken[name])) if found else None


if __name__ == "__main__":
    errors.run(main)
