"""The picture of a wiring: what is in it."""

import pathlib

import numpy as np
import pytest
from picture import SVG, Svg, count_of, pixels

from gated_resnext import zoo
from gated_resnext.connectivity import Connectivity
from gated_resnext.drawing import canvas, wiring
from gated_resnext.drawing.wiring import wiring_picture
from gated_resnext.errors import UserError

# Block 2 of module 2, and what feeds it, is unused.
WIRING = Connectivity(3, (((0,), (0,), (2,)), ((0,), (1,), (1,))))
DOCS = pathlib.Path(__file__).parent.parent / "docs"


def counts(svg, panel):
    squares = [svg.count(f"{kind}-{panel}", "use") for kind in ("active", "unused")]
    return (*squares, *(svg.count(f"{kind}-{panel}", "path") for kind in ("edge", "dead")))


def test_a_square_a_block_and_an_edge_a_source(tmp_path):
    wiring_picture([("a < $b_c", WIRING)], tmp_path / "wiring.svg")
    svg = Svg(tmp_path / "wiring.svg")
    # From the stem 1 edge of 3 is alive, into module 2 two of 3, into module 3 all 3, to the head all 3.
    assert counts(svg, 1) == (1 + 2 + 3, 2 + 1, 1 + 2 + 3 + 3, 2 + 1)
    assert {"a < $b_c", "stem", "head", "module 1", "module 2", "module 3", "active", "unused"} <= set(svg.texts)
    assert [text for text in svg.texts if " of " in text] == ["1 of 3", "2 of 3", "3 of 3"]


def test_an_edge_leads_from_its_source_to_the_block_that_reads_it(tmp_path):
    wiring_picture([("", WIRING)], tmp_path / "wiring.svg")
    svg = Svg(tmp_path / "wiring.svg")
    middles = np.concatenate([svg.middles("active-1"), svg.middles("unused-1")])
    heights = sorted({y for _, y in middles})
    assert len(heights) == 3

    def block(point):
        """(module, block) of the square that a point is at the top or at the bottom of."""
        distance = np.abs(middles - point)
        x, y = middles[np.argmin(distance[:, 0] + distance[:, 1])]
        return heights.index(y), sorted(x for x, its in middles if its == y).index(x)

    found = {
        (block(begin), block(end))
        for begin, end in [*svg.points("edge-1"), *svg.points("dead-1")]
        if begin[1] > heights[0] and end[1] < heights[-1]
    }
    expected = {
        ((module, source), (module + 1, number))
        for module, blocks in enumerate(WIRING.sources)
        for number, sources in enumerate(blocks)
        for source in sources
    }
    assert found == expected


def test_panels_stand_side_by_side_within_the_picture(tmp_path):
    panels = [("full", Connectivity.full(2, 8)), ("random", Connectivity.random(5, 64, 1, seed=0))]
    wiring_picture(panels, tmp_path / "wiring.svg")
    svg = Svg(tmp_path / "wiring.svg")
    width, height = svg.size
    first, second = (
        np.concatenate([svg.middles(group) for group in (f"active-{n}", f"unused-{n}") if group in svg.groups])
        for n in (1, 2)
    )
    assert (len(first), len(second)) == (2 * 8, 5 * 64)
    for middles in (first, second):
        assert (middles > 10).all() and (middles < (width - 10, height - 10)).all()
    assert first[:, 0].max() < second[:, 0].min()
    assert svg.count("edge-1", "path") == 8 * 8 + 8 + 8


def test_edges_are_as_dark_as_their_real_gates(tmp_path):
    gates = [np.array([[0.5, 0.25, 0.25], [0.3, 0.4, 0.3], [0.0, 0.0, 1.0]])]
    wiring_picture(
        [("full", Connectivity.full(2, 3)), ("", Connectivity(3, (((0,), (1,), (2,)),)))],
        tmp_path / "wiring.svg",
        real_gates=gates,
    )
    svg = Svg(tmp_path / "wiring.svg")
    styles = [path.get("style") for path in svg.groups["edge-2"].iter(SVG + "path")]
    greys = [sum(int(style.split("stroke: #")[1][i : i + 2], 16) for i in (0, 2, 4)) for style in styles]
    # From light to dark 0.4, 0.5 and 1; then the stem's and the head's six, which have no gate.
    assert len(greys) == 9 and len(set(greys[3:])) == 1
    assert greys[0] > greys[1] > greys[2]
    light, dark = (sum(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in (wiring.LIGHTEST, wiring.DARKEST))
    np.testing.assert_allclose((light - np.array(greys[:3])) / (light - dark), [0, 1 / 6, 1], atol=0.02)
    assert "real gate 0.4" in svg.texts and "1" in svg.texts
    assert len({path.get("style") for path in svg.groups["edge-1"].iter(SVG + "path")}) == 1


def test_a_png_has_the_area_of_the_squares_in_their_colours(tmp_path):
    wiring_picture([("", WIRING)], tmp_path / "wiring.png")
    wiring_picture([("", WIRING)], tmp_path / "wiring.svg")
    image, svg = pixels(tmp_path / "wiring.png"), Svg(tmp_path / "wiring.svg")
    np.testing.assert_allclose(image.shape[1::-1], np.array(svg.size) * canvas.DPI / 72, atol=1)
    for colour, squares in ((canvas.ACTIVE, 6), (canvas.UNUSED, 3)):
        # Of squares with rounded corners and a smooth rim, and a smaller one in the legend.
        area = squares * (0.62 * wiring.STEP * canvas.DPI) ** 2 + (0.14 * canvas.DPI) ** 2
        assert 0.85 * area < count_of(image, colour) < 1.05 * area + 300 * (colour == canvas.UNUSED)
    for kind, colour in (("active", canvas.ACTIVE), ("unused", canvas.UNUSED)):
        for x, y in svg.middles(f"{kind}-1") * canvas.DPI / 72:
            assert tuple(image[round(y), round(x)]) == tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def test_many_edges_are_shaded_where_they_are(tmp_path, monkeypatch):
    # Block j reads block j: columns of ink under the blocks, and none between them.
    straight = Connectivity(8, (tuple((j,) for j in range(8)),) * 3)
    monkeypatch.setattr(wiring, "MOST_LINES", 10)
    wiring_picture([("", straight)], tmp_path / "wiring.svg")
    wiring_picture([("", straight)], tmp_path / "wiring.png")
    svg, image = Svg(tmp_path / "wiring.svg"), pixels(tmp_path / "wiring.png").astype(int)
    assert "weave-1" in (element.get("id") for element in svg.root.iter())
    assert svg.count("edge-1", "path") == 8 + 8, "the stem's and the head's"
    gates = np.random.default_rng(0).uniform(0.001, 0.1, (3, 8, 8))
    wiring_picture([("", straight)], tmp_path / "gates.svg", real_gates=list(gates))
    texts = Svg(tmp_path / "gates.svg").texts
    assert "darker: more edges, and larger real gates" in texts and not any(t.startswith("real gate") for t in texts)
    middles = svg.middles("active-1") * canvas.DPI / 72
    half = 0.5 * wiring.ROW * canvas.DPI
    for x, y in middles[:-8]:  # half way to the next module
        strip = image[round(y + half), round(x - 20) : round(x + 21)].sum(-1)
        assert strip[17:24].min() < 600 and strip[:10].min() == strip[-10:].min() == 3 * 255


def test_the_largest_network_of_the_zoo_is_a_picture_of_two_megabytes(tmp_path):
    arch = zoo.architecture("imagenet_101_4_64_random_k32")
    random = Connectivity.random(arch.modules, 64, 32, seed=0)
    wiring_picture([("full", Connectivity.full(arch.modules, 64)), ("random", random)], tmp_path / "wiring.svg")
    svg = Svg(tmp_path / "wiring.svg")
    assert [svg.count(f"active-{panel}", "use") for panel in (1, 2)] == [33 * 64, sum(random.active_blocks)]
    assert {f"module {number}" for number in range(1, 34)} <= set(svg.texts)
    gap = np.diff(np.unique(np.round(svg.middles("active-1")[:64, 0], 2)))
    assert gap.min() > 5, "blocks of a module, apart by points"
    assert (tmp_path / "wiring.svg").stat().st_size < 2e6


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_same_picture_is_the_same_file(tmp_path, ending):
    for name in ("one", "other"):
        wiring_picture([("", WIRING)], tmp_path / f"{name}.{ending}")
    assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"other.{ending}").read_bytes()


def test_a_name_that_tells_no_kind_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(UserError, match=r"must end in \.svg or \.png\. Received: .*wiring\.pdf"):
        wiring_picture([("", WIRING)], tmp_path / "wiring.pdf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not DOCS.is_dir(), reason="docs/ is in the checkout only, and this is the installed package")
def test_the_picture_of_the_readme_is_that_of_the_published_network():
    card, svg = zoo.card("cifar10_20_4_8_k1"), Svg(DOCS / "wiring.svg")
    active, blocks = sum(card["active_blocks"]), sum(card["blocks"])
    assert [svg.count(f"{kind}-2", "use") for kind in ("active", "unused")] == [active, blocks - active]
    assert svg.count("active-1", "use") == blocks and "cifar10_20_4_8_k1" in svg.texts
    assert [text for text in svg.texts if text.endswith(" of 8")] == [
        f"{count} of 8" for count in card["active_blocks"]
    ]


def test_a_users_own_style_does_not_matter(tmp_path, monkeypatch):
    """LaTeX would take the names for formulas, and is not always there."""
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    from gated_resnext.drawing import canvas

    with canvas.picture(tmp_path / "a.svg", 3, 2) as figure:
        figure.suptitle("digits_11_4_4_k1")
    assert "digits_11_4_4_k1" in (tmp_path / "a.svg").read_text()
