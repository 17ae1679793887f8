"""The picture of a wiring: what is in it."""

import xml.etree.ElementTree as ElementTree

import numpy as np

from gated_resnext.connectivity import Connectivity
from gated_resnext.drawing import wiring_svg

SVG = "{http://www.w3.org/2000/svg}"


def count(svg, tag, kind):
    return sum(1 for node in ElementTree.fromstring(svg).iter(SVG + tag) if node.get("class") == kind)


def test_a_square_a_block_and_an_edge_a_source():
    wiring = Connectivity(3, (((0,), (0,), (2,)), ((0,), (1,), (1,))))  # block 2 of module 2, and what feeds it, unused
    svg = wiring_svg([("a < b", wiring)])
    assert (count(svg, "rect", "active"), count(svg, "rect", "unused")) == (1 + 2 + 3, 2 + 1)
    # From the stem 1 of 3 is alive, into module 2 two of 3, into module 3 all 3, to the head all 3.
    assert (count(svg, "line", "edge"), count(svg, "line", "dead")) == (1 + 2 + 3 + 3, 2 + 1)
    assert "a &lt; b" in svg


def test_panels_stand_side_by_side_within_the_picture():
    svg = wiring_svg([("full", Connectivity.full(2, 8)), ("random", Connectivity.random(5, 64, 1, seed=0))])
    root = ElementTree.fromstring(svg)
    width, height = float(root.get("width")), float(root.get("height"))
    lefts = [float(g.get("transform")[len("translate(") :].split()[0]) for g in root.iter(SVG + "g")]
    for left, group in zip(lefts, root.iter(SVG + "g"), strict=True):
        for square in group.iter(SVG + "rect"):
            assert 0 <= left + float(square.get("x")) <= width - float(square.get("width"))
            assert 0 <= float(square.get("y")) <= height - float(square.get("height"))
    assert count(svg, "line", "edge") >= 8 * 8


def test_edges_are_as_dark_as_their_real_gates():
    gates = [np.array([[0.75, 0.25], [0.5, 0.5]])]
    svg = wiring_svg([("", Connectivity(2, (((0,), (1,)),)))], real_gates=gates)
    shades = [line.get("stroke-opacity") for line in ElementTree.fromstring(svg).iter(SVG + "line")]
    assert shades.count("0.75") == 1 and shades.count("0.50") == 1
