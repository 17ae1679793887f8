"""The movement of the gates as a page: one file, with a slider, that needs nothing from elsewhere."""

from __future__ import annotations

import base64
import html
import json
import string
from typing import TYPE_CHECKING

import numpy as np

from gated_resnext.drawing import canvas

if TYPE_CHECKING:
    from gated_resnext.drawing.gate_movement import Movement

# Gates of a page, a byte each; a larger network has fewer of its steps on it: {101,4,64} has 30 of 101.
MOST_VALUES = 4_000_000


def page(movement: Movement) -> str:
    """HTML with the gates of every step, as bytes between the ends of the colours.

    A network whose gates would be more than `MOST_VALUES` is shown at fewer steps, evenly chosen; the page says so.
    """
    import matplotlib

    lowest, highest = movement.range
    times = movement.spread(MOST_VALUES)
    shades = matplotlib.colormaps[canvas.GATES_MAP](np.arange(256))
    data = {
        "cardinality": movement.cardinality,
        "steps": movement.steps[times].tolist(),
        "lowest": lowest,
        "highest": highest,
        "modules": [
            {
                "number": number,
                "colour": colour,
                "gates": [_bytes((gates[time] - lowest) / (highest - lowest)) for time in times],
                "entropy": [round(float(value), 9) for value in entropy[times]],
            }
            for number, (gates, colour, entropy) in enumerate(
                zip(movement.real_gates, movement.colours, movement.entropies, strict=True), start=2
            )
        ],
        "chosen": [[pairs.tolist() for pairs in movement.chosen(time)] for time in times] if movement.marked else None,
        "shades": [matplotlib.colors.to_hex(shade) for shade in shades],
    }
    shown = f"{len(times)} of {len(movement.steps)} recorded steps" if len(times) < len(movement.steps) else ""
    about = [f"C = {movement.cardinality}, K = {movement.fan_in}", f"colours {movement.range_text}", shown]
    if movement.marked:
        about.append(movement.mark_text)
    return _PAGE.substitute(
        name=html.escape(movement.name),
        about=html.escape("; ".join(part for part in about if part)),
        last=len(times) - 1,
        data=json.dumps(data, separators=(",", ":")),  # numbers, base64 and colours: nothing that could end a script
        text=canvas.TEXT,
        quiet=canvas.QUIET,
        line=canvas.UNUSED,
        cursor=canvas.END,
        play=canvas.ACTIVE,
    )


def _bytes(parts: np.ndarray) -> str:
    """Numbers in [0, 1], row by row, as base64."""
    return base64.b64encode(np.round(255 * parts).astype(np.uint8).tobytes()).decode()


_PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$name: how its gates moved</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; color: $text; background: white; margin: 24px auto; max-width: 1180px;
  padding: 0 16px; }
h1 { font-size: 20px; margin: 0; }
p { margin: 4px 0 16px; color: $quiet; }
.controls { display: flex; gap: 14px; align-items: center; position: sticky; top: 0; background: white;
  padding: 8px 0; }
.controls input { flex: 1; accent-color: $play; }
button { font: inherit; width: 5em; padding: 5px 0; border: 0; border-radius: 5px; background: $play; color: white; }
output { min-width: 8em; text-align: right; font-variant-numeric: tabular-nums; }
#maps { display: flex; flex-wrap: wrap; gap: 18px; margin: 10px 0; }
figure { margin: 0; }
figcaption { font-size: 13px; color: $quiet; }
canvas { display: block; image-rendering: pixelated; }
.bar { display: flex; gap: 8px; align-items: center; font-size: 13px; }
.bar canvas { width: 240px; height: 12px; }
#value { color: $quiet; margin-left: 16px; }
svg { display: block; width: 100%; height: auto; margin-top: 18px; font-size: 12px; }
</style>
</head>
<body>
<h1>$name: how its gates moved</h1>
<p>$about</p>
<div class="controls">
<button id="play" type="button">Play</button>
<input id="slider" type="range" min="0" max="$last" value="$last" aria-label="step">
<output id="step"></output>
</div>
<div id="maps"></div>
<div class="bar"><span id="lowest"></span><canvas id="shades" width="256" height="1"></canvas><span id="highest"></span>
<span id="value">row: block; column: the block it reads</span></div>
<svg id="entropy" viewBox="0 0 900 260" role="img" aria-label="entropy of the gates against steps"></svg>
<script type="application/json" id="data">$data</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const C = data.cardinality, side = Math.max(4, Math.min(34, Math.floor(272 / C))), last = data.steps.length - 1;
const at = (id) => document.getElementById(id);
const number = (value) => Number(value.toPrecision(3)).toString();
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const value = (byte) => data.lowest + byte / 255 * (data.highest - data.lowest);

const maps = data.modules.map((module, place) => {
  const figure = document.createElement("figure"), picture = document.createElement("canvas");
  const caption = document.createElement("figcaption");
  picture.width = picture.height = C * side;
  caption.textContent = "module " + module.number;
  figure.append(caption, picture);
  at("maps").append(figure);
  const map = { place, gates: module.gates.map(bytes), pen: picture.getContext("2d") };
  picture.addEventListener("mousemove", (event) => {
    const block = Math.min(C - 1, Math.floor(event.offsetY / side));
    const source = Math.min(C - 1, Math.floor(event.offsetX / side));
    at("value").textContent = "module " + module.number + ": block " + (block + 1) + " reads block " + (source + 1)
      + " at " + number(value(map.gates[slider.value][block * C + source]));
  });
  return map;
});

const bar = at("shades").getContext("2d");
data.shades.forEach((colour, byte) => { bar.fillStyle = colour; bar.fillRect(byte, 0, 1, 1); });
at("lowest").textContent = number(data.lowest);
at("highest").textContent = number(data.highest);

const plot = { left: 70, right: 760, top: 14, bottom: 214 };
const uniform = Math.log(C), all = data.modules.flatMap((module) => module.entropy).concat(uniform);
const low = Math.min(...all), high = Math.max(...all), margin = 0.04 * (high - low) || 0.001;
const across = (step) => plot.left + (plot.right - plot.left) * step / Math.max(1, data.steps[last]);
const up = (entropy) => plot.bottom
  - (plot.bottom - plot.top) * (entropy - low + margin) / (high - low + 2 * margin);
const digits = Math.max(0, Math.ceil(2 - Math.log10(high - low || 0.001)));
const draw = (tag, attributes, text) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const name in attributes) node.setAttribute(name, attributes[name]);
  node.textContent = text || "";
  at("entropy").append(node);
  return node;
};
for (let i = 0; i <= 4; i++) {
  const entropy = low + i / 4 * (high - low), step = Math.round(i / 4 * data.steps[last]);
  draw("line", { x1: plot.left, x2: plot.right, y1: up(entropy), y2: up(entropy), stroke: "$line" });
  draw("text", { x: plot.left - 8, y: up(entropy) + 4, "text-anchor": "end" }, entropy.toFixed(digits));
  draw("text", { x: across(step), y: plot.bottom + 18, "text-anchor": "middle" }, String(step));
}
draw("text", { x: (plot.left + plot.right) / 2, y: 254, "text-anchor": "middle" }, "step");
draw("text", { x: 14, y: 114, transform: "rotate(-90 14 114)", "text-anchor": "middle" }, "entropy, nats");
draw("line", { x1: plot.left, x2: plot.right, y1: up(uniform), y2: up(uniform), stroke: "$quiet",
  "stroke-dasharray": "5 4" });
draw("text", { x: plot.right + 8, y: up(uniform) + 4, fill: "$quiet" }, "log C");
const spacing = Math.min(16, 190 / data.modules.length);
data.modules.forEach((module, place) => {
  const points = module.entropy.map((entropy, time) => across(data.steps[time]) + "," + up(entropy));
  draw("polyline", { points: points.join(" "), fill: "none", stroke: module.colour, "stroke-width": 1.8 });
  const y = plot.top + 24 + place * spacing;
  draw("line", { x1: 780, x2: 804, y1: y, y2: y, stroke: module.colour, "stroke-width": 2.5 });
  draw("text", { x: 812, y: y + 4, "font-size": Math.min(12, spacing + 1) }, "module " + module.number);
});
const cursor = draw("line", { y1: plot.top, y2: plot.bottom, stroke: "$cursor", "stroke-width": 1.5 });

const slider = at("slider");
function show(time) {
  slider.value = time;
  at("step").textContent = "step " + data.steps[time].toLocaleString("en");
  cursor.setAttribute("x1", across(data.steps[time]));
  cursor.setAttribute("x2", across(data.steps[time]));
  for (const { place, gates, pen } of maps) {
    gates[time].forEach((byte, cell) => {
      pen.fillStyle = data.shades[byte];
      pen.fillRect(cell % C * side, Math.floor(cell / C) * side, side, side);
    });
    for (const [block, source] of data.chosen ? data.chosen[time][place] : []) {
      pen.beginPath();
      pen.arc((source + 0.5) * side, (block + 0.5) * side, Math.min(5, side / 5), 0, 2 * Math.PI);
      pen.fillStyle = "white";
      pen.fill();
      pen.strokeStyle = "$text";
      pen.stroke();
    }
  }
}
let timer = null;
function stop() { clearInterval(timer); timer = null; at("play").textContent = "Play"; }
at("play").addEventListener("click", () => {
  if (timer !== null) return stop();
  at("play").textContent = "Pause";
  if (Number(slider.value) === last) show(0);
  timer = setInterval(() => Number(slider.value) < last ? show(Number(slider.value) + 1) : stop(), 80);
});
slider.addEventListener("input", () => { if (timer !== null) stop(); show(Number(slider.value)); });
show(last);
</script>
</body>
</html>
""")
