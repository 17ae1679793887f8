"""What pruning and the compact graph bring: latency of one network in its forms, beside real ResNeXt of the same size.

    python -m benchmarks.export_latency --json=export_latency.json --markdown=export_latency.md

Of every entry: the trained network exported as it is, the compact SavedModel, the compact TFLite file (XNNPACK), and
the compact graph of Fixed-Full ResNeXt with the same {D, w, C}, each read from disk; random pixels, batches of 1 and
64, in turns in one run. Weights do not change the time, but the wiring does: it is the published one or else random.
"""

from __future__ import annotations

import pathlib
import statistics
import tempfile
from collections.abc import Iterator
from typing import Any

from absl import flags

from benchmarks import times
from gated_resnext import errors, markdown

ENTRIES = flags.DEFINE_list(
    "entries", ["cifar10_20_4_8_k1", "cifar100_29_8_8_k1", "cifar100_29_64_8_k1"], "Networks of the zoo."
)
BATCHES = flags.DEFINE_list("batches", ["1", "64"], "Images a call.")
ROUNDS = flags.DEFINE_integer("rounds", 15, "Turns of each.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of a random wiring.")
MARKDOWN = flags.DEFINE_string("markdown", None, "File for the table; it is printed in any case.")

# What is divided by what: how many times as long the first takes.
RATIOS = (
    ("unpruned", "compact"),
    ("compact", "compact_tflite"),
    ("resnext", "compact"),
    ("resnext_tflite", "compact_tflite"),
)
FORMS = ("unpruned", "compact", "compact_tflite", "resnext", "resnext_tflite")


def main(argv: list[str]) -> None:
    del argv
    from export import latency

    times.check()
    networks = [_measured(name) for name in ENTRIES.value]
    result = {"machine": latency.machine(), "rounds": ROUNDS.value, "networks": networks}
    table = _markdown(result)
    print(table)
    times.save(found for network in networks for found in _kept(network))
    if MARKDOWN.value:
        pathlib.Path(MARKDOWN.value).expanduser().write_text(table + "\n", encoding="utf-8")


def _measured(name: str) -> dict[str, Any]:
    import numpy as np

    from export import comparison, latency
    from export.compact import compact
    from export.counts import graph_counts
    from gated_resnext import GatedResNeXt, interchange

    model, wiring = network(name)
    arch = model.architecture
    resnext = compact(GatedResNeXt(arch.replace(aggregation="shared", fan_in=arch.cardinality), seed=0))
    small = compact(model)
    counts = {
        "unpruned": [arch.parameters(), arch.multiply_adds()],
        "compact": list(graph_counts(small)),
        "resnext": list(graph_counts(resnext)),
    }
    taken, sizes = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        paths = _written(pathlib.Path(folder), {"unpruned": model, "compact": small, "resnext": resnext})
        opened = {form: interchange.opened(paths[form]) for form in FORMS}
        sizes = {form: comparison.size(network.path) for form, network in opened.items()}
        for batch in map(int, BATCHES.value):
            pixels = np.random.default_rng(0).integers(0, 256, (batch, *arch.input_shape), np.uint8)
            calls = {form: _call(network.run, pixels) for form, network in opened.items()}
            taken[batch] = latency.interleaved(calls, rounds=ROUNDS.value)
            print(f"{name}, batch {batch}: measured", flush=True)
    blocks = list(model.wiring().active_blocks)
    return {"name": name, "wiring": wiring, "blocks": blocks, "counts": counts, "bytes": sizes, "ms": taken}


def network(name: str) -> tuple[Any, str]:
    """The network, all its blocks in it, and where its wiring is from."""
    from gated_resnext import Connectivity, GatedResNeXt, zoo

    if zoo.card(name):
        return zoo.load(name, "published"), "published"
    arch = zoo.architecture(name)
    wiring = Connectivity.random(arch.modules, arch.cardinality, arch.fan_in, seed=SEED.value)
    return GatedResNeXt(arch, wiring, seed=0), f"random, seed {SEED.value}"


def _kept(network: dict[str, Any]) -> Iterator[times.Times]:
    """Each form's calls, with its wiring and size."""
    for batch, taken in network["ms"].items():
        for form, milliseconds in taken.items():
            parameters, products = network["counts"][form.removesuffix("_tflite")]
            about = {"wiring": network["wiring"], "blocks": " ".join(map(str, network["blocks"]))}
            about |= {"parameters": parameters, "multiply_adds": products, "bytes": network["bytes"][form]}
            yield times.Times(f"{network['name']} {form}, batch {batch}", [ms / 1000 for ms in milliseconds], about)


def _written(folder: pathlib.Path, models: dict[str, Any]) -> dict[str, pathlib.Path]:

    from export import saved_model, tflite

    paths = {}
    for form, model in models.items():
        paths[form] = folder / form
        saved_model.write(model, paths[form])
        if form != "unpruned":
            paths[f"{form}_tflite"] = folder / f"{form}.tflite"
            tflite.write(model, paths[f"{form}_tflite"])
    return paths


def _call(run: Any, pixels: Any) -> Any:
    return lambda: run(pixels)


def _markdown(result: dict[str, Any]) -> str:
    from export import latency

    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [f"{machine['cores']} cores of {machine['processor']}, {machine['system']}, {versions}", ""]
    head = ["network", "batch", *(f"{slow} / {fast}" for slow, fast in RATIOS), *(f"{form}, ms" for form in FORMS)]
    rows = []
    for network in result["networks"]:
        for batch, taken in network["ms"].items():
            cells = [f"`{network['name']}` ({network['wiring']} wiring)", str(batch)]
            cells += [f"{latency.ratio(taken[slow], taken[fast]):.2f}" for slow, fast in RATIOS]
            cells += [f"{statistics.median(taken[form]):.3g}" for form in FORMS]
            rows.append(cells)
    lines += [*markdown.table(head, rows), ""]
    head = ["network", "blocks", "form", "parameters", "multiply-adds", "bytes"]
    rows = []
    for network in result["networks"]:
        for form in FORMS:
            parameters, products = network["counts"][form.removesuffix("_tflite")]
            cells = [f"`{network['name']}`", " ".join(map(str, network["blocks"])), form]
            cells += [f"{parameters:,}", f"{products:,}", f"{network['bytes'][form]:,}"]
            rows.append(cells)
    return "\n".join([*lines, *markdown.table(head, rows)])


if __name__ == "__main__":
    errors.run(main)
