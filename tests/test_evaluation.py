"""Numbers by hand, from scikit-learn and SciPy, and from a plain loop."""

import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from gated_resnext import evaluation
from gated_resnext.errors import UserError
from gated_resnext.evaluation import Bin, Evaluation

# Six images of three classes; hits: the first four.
ROWS = [
    [0.7, 0.2, 0.1],
    [0.1, 0.8, 0.1],
    [0.3, 0.3, 0.4],
    [0.9, 0.05, 0.05],
    [0.5, 0.4, 0.1],
    [0.25, 0.65, 0.1],
]
CLASSES = [0, 1, 2, 0, 1, 0]


@pytest.fixture(scope="module")
def random():
    """Probabilities, close to certain for some, and classes of 500 images; the last class has none."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (500, 8))
    return evaluation.softmax(logits), rng.integers(0, 7, 500)


def test_by_hand():
    found = Evaluation.of(ROWS, CLASSES, ["ant", "bee", "cat"], bins=2)
    assert found.images == 6 and found.top1 == 4 / 6 and found.top5 == 1.0
    assert found.confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert found.class_images.tolist() == [3, 2, 1]
    assert found.class_top1.tolist() == [2 / 3, 1 / 2, 1.0]
    assert found.ranked() == [1, 0, 2]
    assert found.loss == pytest.approx(-math.log(0.7 * 0.8 * 0.4 * 0.9 * 0.4 * 0.25) / 6)
    # (0, 1/2] has the third and, at its end, the fifth; (1/2, 1] the others.
    low, high = found.bins
    assert low.images == 2 and low.accuracy == 0.5 and low.confidence == pytest.approx(0.45)
    assert high.images == 4 and high.accuracy == 0.75 and high.confidence == pytest.approx(3.05 / 4)
    assert found.calibration_error == pytest.approx((2 * 0.05 + 4 * (3.05 / 4 - 0.75)) / 6)


def test_as_scikit_learn_has_it(random):
    probabilities, classes = random
    found = Evaluation.of(probabilities.astype(np.float32), classes)
    predicted, every = probabilities.argmax(1), np.arange(8)
    assert found.top1 == sklearn.metrics.accuracy_score(classes, predicted)
    assert found.top5 == sklearn.metrics.top_k_accuracy_score(classes, probabilities, k=5, labels=every)
    np.testing.assert_array_equal(found.confusion, sklearn.metrics.confusion_matrix(classes, predicted, labels=every))
    recall = sklearn.metrics.recall_score(classes, predicted, average=None, labels=every[:7])
    np.testing.assert_allclose(found.class_top1[:7], recall, rtol=1e-15)
    assert math.isnan(found.class_top1[7]) and 7 not in found.ranked()
    assert found.loss == pytest.approx(sklearn.metrics.log_loss(classes, probabilities, labels=every), rel=1e-5)


@pytest.mark.parametrize("bins", [1, 7, 15, 40])
def test_the_calibration_error_is_that_of_a_plain_loop(random, bins):
    probabilities, classes = random
    expected = 0.0
    for number in range(bins):
        inside = [
            (row.max(), row.argmax() == right)
            for row, right in zip(probabilities, classes, strict=True)
            if number / bins < row.max() <= (number + 1) / bins
        ]
        if inside:
            confidence, hits = np.array(inside, np.float64).T
            expected += len(inside) / len(classes) * abs(hits.mean() - confidence.mean())
    assert Evaluation.of(probabilities, classes, bins=bins).calibration_error == pytest.approx(expected, rel=1e-12)
    assert expected > 0.1


def test_one_that_is_as_sure_as_right_has_no_calibration_error():
    rows = [[0.75, 0.25]] * 4
    assert Evaluation.of(rows, [0, 0, 0, 1]).calibration_error == 0.0
    assert Evaluation.of(rows, [0, 0, 1, 1]).calibration_error == 0.25


@pytest.mark.parametrize("hits, images", [(0, 1), (1, 1), (0, 20), (7, 20), (20, 20), (349, 360), (5563, 10_000)])
def test_the_interval_is_wilsons(hits, images):
    expected = scipy.stats.binomtest(hits, images).proportion_ci(method="wilson")
    assert evaluation.wilson(hits, images) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_among_equals_the_first_is_the_most_probable():
    found = Evaluation.of(np.full((3, 10), 0.1), [0, 4, 5])
    assert found.top1 == pytest.approx(1 / 3) and found.top5 == pytest.approx(2 / 3)
    assert evaluation.top1(np.full((2, 10), 0.1), np.array([0, 9])) == 0.5


def test_an_int8_networks_zeros_are_no_hits_among_the_five():
    """Rounded to multiples of 1/256 most of a hundred classes are 0, the right one no more probable than others."""
    rng = np.random.default_rng(0)
    logits, right = 6 * rng.normal(size=(400, 100)), rng.integers(0, 100, 400)
    exact = evaluation.softmax(logits)
    found, rounded = Evaluation.of(exact, right), Evaluation.of(np.rint(256 * exact) / 256, right)
    assert 0.02 < found.top5 < 0.1 and abs(rounded.top5 - found.top5) < 0.04
    assert found.impossible == 0 and 300 < rounded.impossible < 400
    assert rounded.impossible == (np.rint(256 * exact[np.arange(400), right]) == 0).sum()


def test_no_probability_of_the_right_class_is_a_large_loss_and_not_an_infinite_one():
    found = Evaluation.of([[1.0, 0.0]], [1])
    assert found.loss == pytest.approx(126 * math.log(2))  # of 2^-126
    assert found.bins[-1] == Bin(1, 1.0, 0.0) and found.calibration_error == 1.0


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "uint64"])
def test_classes_of_any_whole_type_are_the_same(dtype):
    classes = np.random.default_rng(0).integers(0, 100, 2000)
    found = Evaluation.of(np.eye(100)[classes], classes.astype(dtype))
    np.testing.assert_array_equal(found.confusion, np.diag(np.bincount(classes, minlength=100)))


def test_it_is_a_value_that_json_holds(random):
    found = Evaluation.of(*random)
    fields = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert fields["classes"][7] == {"label": "7", "images": 0, "top1": None}
    assert sum(one["images"] for one in fields["calibration_bins"]) == fields["images"] == 500
    assert np.array(fields["confusion"]).sum() == 500
    assert fields["top1_interval_95"] == list(found.top1_interval)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.top1 = 1.0


@pytest.mark.parametrize(
    "rows, classes, options, message",
    [
        ([0.5, 0.5], [0], {}, r"expected probabilities \(n, classes\)"),
        (np.zeros((0, 3)), np.zeros(0, int), {}, "expected probabilities"),
        (ROWS, CLASSES[:5], {}, r"of 6 images are 6 whole numbers, of shape \(6,\). Received: int64 of shape \(5,\)"),
        (ROWS, np.array(CLASSES)[:, None], {}, r"Received: int64 of shape \(6, 1\)"),
        (ROWS, np.float32(CLASSES), {}, "Received: float32"),
        (ROWS, [0, 1, 2, 0, 1, 3], {}, "classes are 0 to 2. Received: 0 to 3"),
        (ROWS, [0, 1, 2, 0, 1, -1], {}, "Received: -1 to 2"),
        (ROWS, CLASSES, {"labels": ["ant", "bee"]}, "of 3 classes and names of 2"),
        (np.log(ROWS), CLASSES, {}, "Logits go through softmax first"),
        (np.full((6, 3), np.nan), CLASSES, {}, "those given do not"),
        (ROWS, CLASSES, {"bins": 0}, "bins must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(rows, classes, options, message):
    with pytest.raises(UserError, match=message):
        Evaluation.of(rows, classes, **options)


def test_answers_are_those_of_all_batches():
    batches = [(np.full((n, 2), n), np.arange(n)) for n in (3, 1)]
    told = []
    outputs, classes = evaluation.answers(lambda images: images * 10, iter(batches), told.append)
    assert outputs.tolist() == [[30, 30]] * 3 + [[10, 10]] and classes.tolist() == [0, 1, 2, 0] and told == [3, 1]


def test_softmax_of_large_logits():
    np.testing.assert_allclose(evaluation.softmax(np.array([[1000.0, 1000.0 - math.log(3)]])), [[0.75, 0.25]])
    assert evaluation.are_probabilities(np.array([[0.75, 0.25]]))
    assert not evaluation.are_probabilities(np.array([[0.75, 0.5]]))


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_probabilities_of_an_int8_file_are_some_however_many_round_to_zero(classes):
    sure = np.full((1, classes), 0.15 / (classes - 1))
    sure[:, 0] = 0.85
    rows = np.concatenate([sure, np.full((1, classes), 1 / classes)])
    rounded = np.round(rows * 256).clip(0, 255) / 256
    assert evaluation.are_probabilities(rows) and evaluation.are_probabilities(rounded.astype(np.float32))
    assert evaluation.are_probabilities(rows.astype(np.float16))
    assert not evaluation.are_probabilities(rounded - 4 / 256)
    assert not evaluation.are_probabilities(rows * 1.7)
