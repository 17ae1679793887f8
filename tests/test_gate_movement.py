"""The movement of gates: a still, a GIF and a page that hold what was recorded."""

import base64
import html.parser
import json
import math
import shutil
import subprocess

import numpy as np
import PIL.Image
import pytest
from picture import SVG, Svg, pixels, rgb

from gated_resnext.drawing import canvas, gate_movement, movement_page
from gated_resnext.drawing.gate_movement import Movement, movement_picture
from gated_resnext.errors import UserError


def walk(modules, cardinality, times):
    """Gates that leave 1/C a little more with every step."""
    rng, histories = np.random.default_rng(0), []
    for _ in range(modules):
        there = rng.dirichlet(np.ones(cardinality), cardinality)
        parts = np.linspace(0, 0.2, times)[:, None, None]
        histories.append(np.float32((1 - parts) / cardinality + parts * there))
    return histories


MOVEMENT = Movement("a < b", 2, np.array([0, 5, 10, 20]), walk(2, 4, 4))
EVEN = Movement("even", 1, np.array([0]), [np.full((1, 3, 3), 1 / 3, np.float32)])


def entropy(rows):
    return -sum(gate * math.log(gate) for row in rows.tolist() for gate in row) / len(rows)


def test_the_still_has_a_map_and_a_line_a_module_and_marks_what_is_chosen(tmp_path):
    movement_picture(MOVEMENT, tmp_path / "gates.svg")
    svg = Svg(tmp_path / "gates.svg")
    last = [gates[-1] for gates in MOVEMENT.real_gates]
    lines = []
    for number, gates in enumerate(last, start=2):
        marks = svg.middles(f"chosen-{number}")
        assert len(marks) == 4 * 2
        # A mark's row and column from its place; y runs down.
        columns, rows = (np.unique(np.round(marks[:, axis], 2), return_inverse=True)[1] for axis in (0, 1))
        expected = {(row, column) for row in range(4) for column in sorted(range(4), key=lambda k: -gates[row, k])[:2]}
        if len(set(columns)) == 4:
            assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == expected
        [line] = svg.points(f"entropy-{number}")
        lines.append(line)
        assert any(element.get("id") == f"gates-{number}" for element in svg.root.iter(SVG + "image"))
    found = np.concatenate(lines)
    expected = [entropy(gates[time]) for gates in MOVEMENT.real_gates for time in range(4)]
    slope, offset = np.polyfit(expected, found[:, 1], 1)
    np.testing.assert_allclose(slope * np.array(expected) + offset, found[:, 1], atol=0.05)
    [uniform] = svg.points("log-C")
    np.testing.assert_allclose(uniform[:, 1], slope * math.log(4) + offset, atol=0.05)
    [cursor] = svg.points("step")
    np.testing.assert_allclose(cursor[:, 0], lines[0][-1, 0], atol=0.01)
    lowest, highest = min(map(np.min, MOVEMENT.real_gates)), max(map(np.max, MOVEMENT.real_gates))
    assert "a < b: real gates after step 20 of 20" in svg.texts
    assert (
        f"colours from {lowest:.3g} to {highest:.3g}, 1/C being 0.25; a dot: among the 2 largest of its row"
        in svg.texts
    )
    assert {"module 2", "module 3", "log C", "step", "entropy, nats"} <= set(svg.texts)


def test_colours_span_the_range_of_the_gates_however_small(tmp_path):
    """The smallest and the largest gate have the colours of the ends."""
    movement_picture(MOVEMENT, tmp_path / "gates.png")
    image = pixels(tmp_path / "gates.png")
    for colour in ("#440154", "#fde725"):  # viridis' ends
        assert (np.abs(image.astype(int) - rgb(colour)).max(-1) <= 4).sum() > 1000


def test_gates_that_never_moved_are_drawn_too(tmp_path):
    for ending in ("svg", "gif", "html"):
        movement_picture(EVEN, tmp_path / f"gates.{ending}")
    assert "even: real gates after step 0 of 0" in Svg(tmp_path / "gates.svg").texts


def cells(frame, svg, number):
    """The colours (C, C, 3) of a module's map in a frame of a GIF, beside the marks; its place is that in the still."""
    image = next(element for element in svg.root.iter(SVG + "image") if element.get("id") == f"gates-{number}")
    # matplotlib hangs images upside down: y is minus the top.
    left, top, side = float(image.get("x")), -float(image.get("y")), float(image.get("height"))
    at = (np.arange(4) + 0.2) / 4 * side
    scale = gate_movement.GIF_DPI / 72
    return frame[np.round((top + at) * scale).astype(int)[:, None], np.round((left + at) * scale).astype(int)]


def test_a_gif_has_a_frame_a_step_with_the_gates_of_that_step(tmp_path):
    import matplotlib

    movement_picture(MOVEMENT, tmp_path / "gates.gif")
    movement_picture(MOVEMENT, tmp_path / "gates.svg")
    svg = Svg(tmp_path / "gates.svg")
    lowest, highest = min(map(np.min, MOVEMENT.real_gates)), max(map(np.max, MOVEMENT.real_gates))
    with PIL.Image.open(tmp_path / "gates.gif") as gif:
        assert gif.n_frames == 4 and gif.info["loop"] == 0
        for time in range(4):
            gif.seek(time)
            frame = np.asarray(gif.convert("RGB"))
            assert gif.info["duration"] == (gate_movement.FRAME_MS if time < 3 else gate_movement.LAST_FRAME_MS)
            for number, gates in enumerate(MOVEMENT.real_gates, start=2):
                shades = matplotlib.colormaps[canvas.GATES_MAP]((gates[time] - lowest) / (highest - lowest))[..., :3]
                np.testing.assert_allclose(cells(frame, svg, number), 255 * shades, atol=8)
            # The line of the step moves to the right.
            reddish = np.abs(frame.astype(int) - rgb(canvas.END)).max(-1) < 70
            red = np.flatnonzero(reddish.sum(0) > 50)
            [line] = svg.points("entropy-2")
            place = line[0, 0] + (line[-1, 0] - line[0, 0]) * MOVEMENT.steps[time] / 20
            assert abs(red.mean() - place * gate_movement.GIF_DPI / 72) < 2.5


class Page(html.parser.HTMLParser):
    """The elements of a page and what is in its scripts; it fails where a tag is not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.scripts, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        else:
            self.text += data


def read_page(path):
    page = Page(path.read_text(encoding="utf-8"))
    return page, json.loads(page.scripts[0])


def values(data, module, time):
    """The gates that a page has of a step."""
    bytes_ = np.frombuffer(base64.b64decode(data["modules"][module]["gates"][time]), np.uint8)
    side = data["cardinality"]
    return data["lowest"] + bytes_.reshape(side, side) / 255 * (data["highest"] - data["lowest"])


def test_a_page_holds_all_the_steps_and_needs_nothing_else(tmp_path):
    movement_picture(MOVEMENT, tmp_path / "gates.html")
    page, data = read_page(tmp_path / "gates.html")
    assert data["steps"] == [0, 5, 10, 20] and [module["number"] for module in data["modules"]] == [2, 3]
    for module, gates in enumerate(MOVEMENT.real_gates):
        for time in range(4):
            half_a_shade = 0.51 / 255 * (data["highest"] - data["lowest"])
            np.testing.assert_allclose(values(data, module, time), gates[time], atol=half_a_shade)
            assert data["modules"][module]["entropy"][time] == pytest.approx(entropy(gates[time]), abs=2e-5)
            for row, gates_of_row in enumerate(gates[time]):
                chosen = [source for block, source in data["chosen"][time][module] if block == row]
                assert chosen == sorted(sorted(range(4), key=lambda k: (-gates_of_row[k], k))[:2])
    assert "a < b: how its gates moved" in page.text and "C = 4, K = 2" in page.text
    slider = next(attributes for tag, attributes in page.elements if tag == "input")
    assert (slider["min"], slider["max"]) == ("0", "3")
    assert not [tag for tag, attributes in page.elements if {"src", "href"} & set(attributes) or tag == "link"]
    text = (tmp_path / "gates.html").read_text()
    assert text.count("http") == 1 and "http://www.w3.org/2000/svg" in text, "the name of SVG alone"


def test_a_large_network_has_fewer_steps_in_a_page_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(movement_page, "MOST_VALUES", 3 * 2 * 16)
    movement_picture(MOVEMENT, tmp_path / "gates.html")
    page, data = read_page(tmp_path / "gates.html")
    assert data["steps"] == [0, 10, 20] and len(data["modules"][0]["gates"]) == 3
    assert "3 of 4 recorded steps" in page.text
    np.testing.assert_allclose(values(data, 1, 1), MOVEMENT.real_gates[1][2], atol=1e-3)


# A page's script between a document that only counts what is drawn.
NODE = """
const texts = JSON.parse(require("fs").readFileSync(0, "utf8")), nodes = {}, made = [];
let cells = 0, marks = 0;
const pen = { fillRect() { cells++; }, beginPath() {}, arc() { marks++; }, fill() {}, stroke() {} };
const node = (tag) => ({ tag, value: "0", attributes: {}, listeners: {}, append() {}, getContext: () => pen,
  setAttribute(name, value) { this.attributes[name] = String(value); },
  addEventListener(name, call) { this.listeners[name] = call; } });
const create = (tag) => { made.push(node(tag)); return made.at(-1); };
globalThis.document = { createElement: create, createElementNS: (_, tag) => create(tag),
  getElementById: (id) => nodes[id] ??= Object.assign(node(id), id === "data" ? { textContent: texts[0] } : {}) };
eval(texts[1]);
cells = marks = 0;
nodes.slider.value = "1";
nodes.slider.listeners.input();
const map = made.find((one) => one.tag === "canvas");
map.listeners.mousemove({ offsetX: 0, offsetY: map.height - 1 });
const lines = made.filter((one) => one.tag === "polyline").map((one) => one.attributes.points);
console.log(JSON.stringify({ cells, marks, step: nodes.step.textContent, value: nodes.value.textContent, lines }));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node, to run the script of a page")
def test_the_script_of_a_page_draws_a_step(tmp_path):
    movement_picture(MOVEMENT, tmp_path / "gates.html")
    page, _ = read_page(tmp_path / "gates.html")
    done = subprocess.run(
        ["node", "-e", NODE], input=json.dumps(page.scripts), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["cells"], found["marks"], found["step"]) == (2 * 16, 2 * 4 * 2, "step 5")
    said = float(found["value"].removeprefix("module 2: block 4 reads block 1 at "))
    assert said == pytest.approx(MOVEMENT.real_gates[0][1, 3, 0], abs=1e-3)
    assert len(found["lines"]) == 2 and "NaN" not in str(found["lines"])
    assert [len(line.split()) for line in found["lines"]] == [4, 4]


def test_a_name_that_tells_no_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"must end in \.html or \.gif or \.svg or \.png"):
        movement_picture(MOVEMENT, tmp_path / "gates.mp4")
    assert list(tmp_path.iterdir()) == []
