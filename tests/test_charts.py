"""Charts: that their points are where the numbers are."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from picture import SVG, Svg, count_of, pixels

from gated_resnext.drawing import canvas
from gated_resnext.drawing.charts import Curve, active_blocks_chart, curves_chart, fan_in_chart
from gated_resnext.errors import UserError


def assert_in_proportion(values, places):
    """Places along an axis are a linear function of the values."""
    values, places = np.asarray(values, float), np.asarray(places, float)
    assert values.shape == places.shape
    slope, offset = np.polyfit(values, places, 1)
    np.testing.assert_allclose(slope * values + offset, places, atol=0.01)
    return slope, offset


SERIES = {"K = 1": (1, 1, 3, 4, 4, 8), "K = 4": (8, 7, 8, 8, 8, 8)}


def test_active_blocks_are_points_at_their_numbers_beside_c(tmp_path):
    active_blocks_chart(SERIES, 8, tmp_path / "active.svg")
    svg = Svg(tmp_path / "active.svg")
    places = np.concatenate([svg.middles("series-1"), svg.middles("series-2")])
    assert_in_proportion([*range(1, 7)] * 2, places[:, 0])
    slope, offset = assert_in_proportion([*SERIES["K = 1"], *SERIES["K = 4"]], places[:, 1])
    [line] = svg.points("cardinality")
    np.testing.assert_allclose(line[:, 1], 8 * slope + offset, atol=0.01)
    assert {"K = 1", "K = 4", "C = 8", *map(str, range(1, 7))} <= set(svg.texts)


def test_active_blocks_of_a_deep_network_fit(tmp_path):
    active = [min(64, 2 * number) for number in range(33)]
    active_blocks_chart({"{101,4,64}": active}, 64, tmp_path / "active.svg")
    svg = Svg(tmp_path / "active.svg")
    middles = svg.middles("series-1")
    assert len(middles) == 33 and (middles > 0).all() and (middles < svg.size).all()
    assert {"0", "8", "64", "{101,4,64}"} <= set(svg.texts)


POINTS = {1: [0.50, 0.52, 0.51], 2: [0.55, 0.53], 4: [0.6]}


def test_fan_in_shows_the_mean_and_every_seed(tmp_path):
    fan_in_chart(POINTS, tmp_path / "fan_in.svg")
    svg = Svg(tmp_path / "fan_in.svg")
    means = svg.middles("mean")
    assert_in_proportion([1, 2, 4], means[:, 0])
    slope, offset = assert_in_proportion([0.51, 0.54, 0.6], means[:, 1])
    seeds = svg.middles("seeds")
    assert len(seeds) == 6
    every = [seed for fan_in in POINTS for seed in POINTS[fan_in]]
    np.testing.assert_allclose(seeds[:, 1], slope * np.array(every) + offset, atol=0.01)
    ranges = [sorted(line[:, 1]) for line in svg.points("range")]
    lowest_and_highest = [(0.50, 0.52), (0.53, 0.55), (0.6, 0.6)]
    expected = [sorted(slope * np.array(pair) + offset) for pair in lowest_and_highest]
    np.testing.assert_allclose(ranges, expected, atol=0.01)
    assert {"learned, 1 to 3 seeds", "1", "2", "4"} <= set(svg.texts)


WHOLE = Curve(
    epochs=[1, 2, 3, 4],
    loss=[2.0, 1.5, 1.0, 0.8],
    test_top1=[0.2, 0.4, 0.5, 0.6],
    top1=[0.3, 0.5, 0.7, 0.8],
    test_loss=[2.2, 1.4, 1.1, 1.0],
    phase_ends=[2, 3, 4],
)
OF_A_CARD = Curve([0.5, 1.5], [2.1, 1.9], [0.1, 0.3])


def test_curves_are_where_their_numbers_are_and_phases_are_marked(tmp_path):
    curves_chart({"whole": WHOLE, "card": OF_A_CARD}, tmp_path / "curves.svg")
    svg = Svg(tmp_path / "curves.svg")
    losses = np.concatenate([svg.middles(group) for group in ("loss-1", "test-loss-1", "loss-2")])
    across, zero = assert_in_proportion([*WHOLE.epochs] * 2 + [*OF_A_CARD.epochs], losses[:, 0])
    assert_in_proportion([*WHOLE.loss, *WHOLE.test_loss, *OF_A_CARD.loss], losses[:, 1])
    shares = np.concatenate([svg.middles(group) for group in ("top1-1", "test-top1-1", "test-top1-2")])
    assert_in_proportion([*WHOLE.top1, *WHOLE.test_top1, *OF_A_CARD.test_top1], shares[:, 1])
    assert "top1-2" not in svg.groups and "test-loss-2" not in svg.groups
    for number, end in enumerate([2, 3], start=1):
        [line] = svg.points(f"phase-end-1-{number}")
        np.testing.assert_allclose(line[:, 0], zero + across * end, atol=0.01)
    assert {"whole", "card", "training images", "test images", "epoch", "loss", "top-1, %"} <= set(svg.texts)


def test_the_phases_of_one_training_have_numbers(tmp_path):
    curves_chart({"whole": WHOLE}, tmp_path / "curves.svg")
    assert {"phase 1", "phase 2", "phase 3"} <= set(Svg(tmp_path / "curves.svg").texts)


def test_trainings_have_colours_of_their_own(tmp_path):
    curves_chart({"whole": WHOLE, "card": OF_A_CARD}, tmp_path / "curves.svg")
    svg = Svg(tmp_path / "curves.svg")
    for number, colour in ((1, canvas.SERIES[0]), (2, canvas.SERIES[1])):
        styles = [path.get("style", "") for path in svg.groups[f"loss-{number}"].iter(SVG + "path")]
        assert any(f"stroke: {colour}" in style for style in styles)


@pytest.mark.parametrize(
    "chart, data, colours",
    [
        (active_blocks_chart, (SERIES, 8), canvas.SERIES[:2]),
        (fan_in_chart, (POINTS,), canvas.SERIES[:1]),
        (curves_chart, ({"whole": WHOLE, "card": OF_A_CARD},), canvas.SERIES[:2]),
    ],
    ids=["active", "fan-in", "curves"],
)
def test_a_png_has_every_series_in_its_colour(tmp_path, chart, data, colours):
    chart(*data, tmp_path / "chart.png")
    chart(*data, tmp_path / "chart.svg")
    image = pixels(tmp_path / "chart.png")
    np.testing.assert_allclose(image.shape[1::-1], np.array(Svg(tmp_path / "chart.svg").size) * canvas.DPI / 72, atol=1)
    assert count_of(image, "#ffffff") > image.size / 3 / 2
    for colour in colours:
        assert count_of(image, colour) > 100


NAMES = [f"mini_imagenet_20_4_8_{kind}" for kind in ("full", "k4", "random_k4")]


@pytest.mark.parametrize(
    "names", [NAMES, [*NAMES, "runs/" + 70 * "x"], ["a", "b", "c", "d"]], ids=["zoo", "path", "short"]
)
def test_the_legend_lies_within_the_picture(names):
    with canvas.figure(6, 4) as figure:
        axes = figure.add_subplot()
        for name in names:
            axes.plot([0, 1], label=name)
        canvas.legend_below(figure, axes.get_legend_handles_labels()[0], 3)
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        (legend,) = figure.legends
        box, whole = legend.get_window_extent(renderer), figure.bbox
        assert [text.get_text() for text in legend.get_texts()] == names
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0
        assert box.y1 <= axes.get_window_extent(renderer).y0
        assert axes.get_window_extent(renderer).height > 2 * figure.dpi


def test_a_name_that_begins_as_none_of_matplotlibs_has_its_entry(tmp_path):
    active_blocks_chart({"_mine": [4, 3], "yours": [4, 4]}, 4, tmp_path / "active.svg")
    assert {"_mine", "yours"} <= {text.strip() for text in Svg(tmp_path / "active.svg").texts}


def test_more_lines_than_colours_are_refused(tmp_path):
    series = {f"network {number}": [4, 3] for number in range(9)}
    with pytest.raises(UserError, match="tells 8 lines apart; draw fewer at once. Received: 9"):
        active_blocks_chart(series, 4, tmp_path / "active.svg")
    curves = {name: Curve([1], [1.0], [0.5]) for name in series}
    with pytest.raises(UserError, match="tells 8 lines apart; draw fewer at once. Received: 9"):
        curves_chart(curves, tmp_path / "curves.svg")


def test_seeds_of_points_are_counted_from_the_fewest_to_the_most(tmp_path):
    fan_in_chart({1: [0.5], 2: [0.6, 0.7]}, tmp_path / "fan_in.svg")
    assert "learned, 1 to 2 seeds" in (tmp_path / "fan_in.svg").read_text()
