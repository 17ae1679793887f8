"""The picture of an evaluation, read back from its files."""

import re

import numpy as np
import PIL.Image
import pytest

from gated_resnext.drawing import canvas, confusion
from gated_resnext.evaluation import Evaluation

NAMES = ["ant", "bee & wasp", "cat <3", "a $dollar$ \\alpha$"]


def perfect(classes, labels=None):
    """An evaluation in which every image was recognised."""
    return Evaluation.of(np.eye(classes).repeat(2, 0), np.arange(classes).repeat(2), labels)


def figure_of(evaluation):
    with canvas.figure(*confusion.size(evaluation)) as figure:
        confusion.draw(figure, evaluation, "title")
        figure.draw_without_rendering()
    return figure


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_same_evaluation_gives_the_same_bytes(tmp_path, kind):
    for name in ("one", "other"):
        confusion.write(perfect(4, NAMES), tmp_path / f"{name}.{kind}", "a title")
    one, other = ((tmp_path / f"{name}.{kind}").read_bytes() for name in ("one", "other"))
    assert one == other and len(one) > 5000


def test_svg_has_the_names_as_text(tmp_path):
    confusion.write(perfect(4, NAMES), tmp_path / "a.svg", "ants & bees")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    for name in ("ant", "bee &amp; wasp", "cat &lt;3", "a $dollar$ \\alpha$"):
        assert len(re.findall(f">{re.escape(name)}</text>", text)) == 2, name
    assert ">ants &amp; bees</text>" in text and "calibration error 0.00 %" in text
    assert len(re.findall(">2</text>", text)) == 4  # the images of each cell of the diagonal, and no zeros


@pytest.mark.parametrize("classes", [10, 100])
def test_the_diagonal_of_a_perfect_network_is_dark_and_all_else_white(tmp_path, classes):
    drawn = figure_of(perfect(classes))
    matrix = drawn.axes[0]
    drawn.savefig(tmp_path / "a.png")
    with PIL.Image.open(tmp_path / "a.png") as opened:
        picture = np.asarray(opened.convert("L"))
    assert picture.shape[1] > picture.shape[0] > 600

    def shade(row, column):
        x, y = matrix.transData.transform((column + 0.35, row + 0.35))  # beside the number
        return picture[picture.shape[0] - 1 - round(y), round(x)]

    shades = np.array([[shade(row, column) for column in range(classes)] for row in range(classes)])
    assert shades[np.eye(classes, dtype=bool)].max() < 100
    assert shades[~np.eye(classes, dtype=bool)].min() > 230


def test_of_many_classes_no_cell_has_a_number_and_every_nth_has_a_name():
    few, hundred, many = (figure_of(perfect(classes)).axes[0] for classes in (10, 100, 300))
    assert len(few.texts) == 10 and not hundred.texts and not many.texts
    names = [[text.get_text() for text in axes.get_yticklabels()] for axes in (few, hundred, many)]
    assert names[0] == list(map(str, range(10))) and names[1] == list(map(str, range(100)))
    assert names[2] == list(map(str, range(0, 300, 3)))
    height = hundred.figure.get_size_inches()[1] * 72
    assert sum(text.get_fontsize() for text in hundred.get_yticklabels()) < height  # they do not overlap


def test_a_class_without_images_is_an_empty_row():
    found = Evaluation.of([[0.9, 0.05, 0.05], [0.2, 0.7, 0.1]], [0, 0])
    shares = figure_of(found).axes[0].images[0].get_array()
    np.testing.assert_array_equal(shares, [[0.5, 0.5, 0], [0, 0, 0], [0, 0, 0]])


def test_every_bin_with_images_is_a_bar_as_high_as_its_accuracy():
    found = Evaluation.of([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]], [0, 1, 0], bins=10)
    bars = figure_of(found).axes[1].patches
    assert [(bar.get_x(), bar.get_height()) for bar in bars] == [pytest.approx((0.5, 1.0)), pytest.approx((0.8, 0.5))]
