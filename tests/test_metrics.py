"""Scores: small cases worked by hand, scikit-learn as the oracle, and properties that hold for any masks."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    precision_recall_fscore_support,
    roc_auc_score,
)

from sas import metrics

HEIGHT, WIDTH = 4, 6


def strip(*columns: int, width: int = WIDTH) -> np.ndarray:
    """One row, (1, width), set at the given columns."""
    mask = np.zeros((1, width), dtype=bool)
    mask[0, list(columns)] = True
    return mask


def stack(*masks: np.ndarray) -> np.ndarray:
    return np.stack(masks)


def no_masks(width: int = WIDTH) -> np.ndarray:
    return np.zeros((0, 1, width), dtype=bool)


relaxed = settings(deadline=None)  # a busy machine is no failure
masks_2d = arrays(bool, (HEIGHT, WIDTH))


def stacks(least: int = 0) -> st.SearchStrategy[np.ndarray]:
    return st.integers(least, 4).flatmap(lambda count: arrays(bool, (count, HEIGHT, WIDTH)))


# --------------------------------------------------------------------------------------------------------------- layers


def test_iou_by_hand() -> None:
    # {0, 1, 2} and {2, 3}: 1 shared, 4 joined
    assert metrics.iou(strip(0, 1, 2), strip(2, 3)) == 1 / 4
    assert metrics.iou(strip(0), strip(0)) == 1.0
    assert metrics.iou(strip(0), strip(1)) == 0.0


def test_iou_of_empty_masks() -> None:
    assert metrics.iou(strip(), strip()) == 1.0
    assert metrics.iou(strip(), strip(0)) == 0.0


@relaxed
@given(masks_2d, masks_2d)
def test_iou_is_symmetric_and_bounded(a: np.ndarray, b: np.ndarray) -> None:
    assert metrics.iou(a, b) == metrics.iou(b, a)
    assert 0 <= metrics.iou(a, b) <= 1
    assert metrics.iou(a, a) == 1


def test_missing_layer_scores_zero_and_extra_layer_is_counted() -> None:
    true = stack(strip(0, 1), strip(2, 3, 4), strip(5))
    predicted = stack(strip(0, 1), strip(3, 4))  # 2 of 2 pixels; 2 of 3 pixels; nothing
    assert metrics.layer_ious(predicted, true).tolist() == [1, 2 / 3, 0]
    assert metrics.false_layers(predicted, true) == 0
    assert metrics.layer_ious(true, predicted).tolist() == [1, 2 / 3]
    assert metrics.false_layers(true, predicted) == 1
    assert metrics.layer_ious(no_masks(), true).tolist() == [0, 0, 0]
    assert metrics.layer_ious(true, no_masks()).shape == (0,)
    assert metrics.false_layers(true, no_masks()) == 3


def test_missing_layer_scores_zero_even_if_the_true_layer_is_empty() -> None:
    assert metrics.layer_ious(no_masks(), stack(strip())).tolist() == [0]
    assert metrics.layer_ious(stack(strip()), stack(strip())).tolist() == [1]


def test_layer_order_matters() -> None:
    layers = stack(strip(0, 1), strip(2, 3))
    assert metrics.layer_ious(layers[::-1], layers).tolist() == [0, 0]


def test_layer_count_error() -> None:
    assert [metrics.layer_count_error(p, t) for p, t in ((2, 5), (5, 2), (3, 3))] == [3, 3, 0]
    with pytest.raises(ValueError, match="predicted must be a number of layers, 0 or more, got -1"):
        metrics.layer_count_error(-1, 2)


def test_foreground_iou_takes_unions() -> None:
    # unions {0, 1, 2} and {1, 2, 3}: 2 shared, 4 joined, although no layer agrees
    assert metrics.foreground_iou(stack(strip(0), strip(1, 2)), stack(strip(1, 2, 3))) == 2 / 4
    assert metrics.foreground_iou(no_masks(), stack(strip(1))) == 0
    assert metrics.foreground_iou(no_masks(), no_masks()) == 1


# ------------------------------------------------------------------------------------------------------------- pixel AP


def test_average_precision_by_hand() -> None:
    probability = np.array([[0.9, 0.8, 0.8, 0.3]])
    target = np.array([[True, False, True, True]])
    # thresholds .9: P 1, R 1/3; .8: P 2/3, R 2/3 (both pixels at once); .3: P 3/4, R 1
    # AP = 1/3 * 1 + 1/3 * 2/3 + 1/3 * 3/4 = 29/36
    assert metrics.pixel_average_precision(probability, target) == pytest.approx(29 / 36)


@relaxed
@given(
    st.sampled_from([np.float32, np.float64]).flatmap(
        lambda dtype: arrays(dtype, (HEIGHT, WIDTH), elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]))
    ),
    masks_2d,
)
def test_average_precision_equals_scikit_learn_with_ties(probability: np.ndarray, target: np.ndarray) -> None:
    found = metrics.pixel_average_precision(probability, target)
    if target.any():
        assert found == pytest.approx(average_precision_score(target.ravel(), probability.ravel()), abs=1e-12)
    else:
        assert math.isnan(found)


def test_average_precision_equals_scikit_learn_on_a_large_map() -> None:
    generator = np.random.default_rng(0)
    target = generator.random((96, 64)) < 0.2
    probability = np.clip(0.4 * target + 0.6 * generator.random(target.shape), 0, 1)
    expected = average_precision_score(target.ravel(), probability.ravel())
    assert metrics.pixel_average_precision(probability, target) == pytest.approx(expected, abs=1e-12)
    assert 0.3 < expected < 0.99


def test_layer_average_precisions_missing_extra_and_empty() -> None:
    true = stack(strip(0, 1), strip(2), strip(), strip(5))
    perfect = true.astype(np.float32)
    scores = metrics.layer_average_precisions(perfect[:2], true)
    np.testing.assert_array_equal(scores, [1, 1, np.nan, 0])
    np.testing.assert_array_equal(metrics.layer_average_precisions(perfect, true), [1, 1, np.nan, 1])
    assert metrics.layer_average_precisions(perfect, true[:1]).tolist() == [1]
    # a constant map ranks nothing: AP is the share of positives, 2 of 6
    constant = np.full((1, 1, WIDTH), 0.5)
    assert metrics.layer_average_precisions(constant, true[:1]).tolist() == [pytest.approx(2 / 6)]


# ------------------------------------------------------------------------------------------------------------ instances


def test_matching_maximises_the_sum_not_the_best_pair() -> None:
    true = stack(strip(0, 1, 2), strip(0, 1, 2, 3, 4, 5))
    predicted = stack(strip(0, 1, 2, 3), strip(0, 1))
    # IoU, rows predicted: [[3/4, 4/6], [2/3, 2/6]]. Greedy takes 3/4 + 2/6 = 13/12; crossed 4/6 + 2/3 = 16/12 is more.
    assert metrics.match_instances(predicted, true) == [(1, 0, 2 / 3), (0, 1, 4 / 6)]
    assert metrics.instance_ious(predicted, true).tolist() == [2 / 3, 4 / 6]


def test_matching_drops_pairs_without_a_shared_pixel() -> None:
    true = stack(strip(0, 1), strip(3), strip())
    predicted = stack(strip(), strip(1), strip(5))
    assert metrics.match_instances(predicted, true) == [(1, 0, 1 / 2)]
    assert metrics.instance_ious(predicted, true).tolist() == [1 / 2, 0, 0]


def test_instances_without_predictions_or_truth() -> None:
    some = stack(strip(0), strip(1))
    assert metrics.match_instances(no_masks(), some) == []
    assert metrics.instance_ious(no_masks(), some).tolist() == [0, 0]
    assert metrics.match_instances(some, no_masks()) == []
    assert metrics.instance_ious(some, no_masks()).shape == (0,)


@relaxed
@given(stacks(), stacks())
def test_matching_is_one_to_one_and_at_least_as_good_as_any_fixed_pairing(a: np.ndarray, b: np.ndarray) -> None:
    found = metrics.match_instances(a, b)
    assert len({p for p, _, _ in found}) == len({n for _, n, _ in found}) == len(found)
    for p, n, score in found:
        assert score == pytest.approx(metrics.iou(a[p], b[n])) and score > 0
    in_line = sum(metrics.iou(x, y) for x, y in zip(a, b, strict=False) if x.any() or y.any())
    assert sum(score for *_, score in found) >= in_line - 1e-9


@relaxed
@given(stacks(1), st.integers(0, 99))
def test_perfect_instances_in_any_order_score_one(true: np.ndarray, seed: int) -> None:
    true[:, 0, 0] = True  # no empty instance
    shuffled = np.random.default_rng(seed).permutation(true)
    assert metrics.instance_ious(shuffled, true).tolist() == [1] * len(true)
    assert metrics.instance_ious(np.concatenate([shuffled, ~true]), true).min() == 1  # extras cost nothing


def test_large_images_are_counted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    a, b = generator.random((3, 80, 90)) < 0.9, generator.random((2, 80, 90)) < 0.9
    expected = [[np.count_nonzero(x & y) for y in b] for x in a]
    assert metrics._overlap_areas(a, b).tolist() == expected
    monkeypatch.setattr(metrics, "_EXACT_FLOAT32", 1)  # take the way of the largest images
    assert metrics._overlap_areas(a, b).tolist() == expected


# --------------------------------------------------------------------------------------------------------- hidden parts


def test_occlusion_rate() -> None:
    amodal = stack(strip(0, 1, 2, 3), strip(4, 5), strip(0), strip())
    visible = stack(strip(0, 1, 2), strip(4, 5), strip(), strip())
    np.testing.assert_array_equal(metrics.occlusion_rate(amodal, visible), [1 / 4, 0, 1, np.nan])


def test_occlusion_rate_ignores_visible_pixels_outside_the_amodal_mask() -> None:
    # A = {0, 1}, V = {1, 2, 3}: half of A is hidden, although V is larger than A
    assert metrics.occlusion_rate(stack(strip(0, 1)), stack(strip(1, 2, 3))).tolist() == [1 / 2]


@pytest.fixture
def hidden() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions (of instances 1 and 0), amodal and visible masks; 1 is not occluded, 2 is not found."""
    amodal = stack(strip(0, 1, 2, 3, width=12), strip(5, 6, width=12), strip(9, 10, width=12))
    visible = stack(strip(0, 1, width=12), strip(5, 6, width=12), strip(9, width=12))
    predicted = stack(strip(5, 6, 7, width=12), strip(0, 2, 4, width=12))
    return predicted, amodal, visible


def test_invisible_ious_by_hand(hidden: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    # instance 0: hidden {2, 3}, prediction minus V {2, 4}: 1 of 3. 1: rate 0, nan. 2: occluded and unmatched, 0.
    np.testing.assert_array_equal(metrics.invisible_ious(*hidden), [1 / 3, np.nan, 0])
    # rates are 1/2, 0, 1/2: nothing lies above 1/2
    assert np.isnan(metrics.invisible_ious(*hidden, occluded_above=0.5)).all()


def test_invisible_counts_by_hand(hidden: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    # instance 0: 1 of 3. Instance 1: {} and {7}, 0 of 1. Instance 2: {} and {10}, 0 of 1.
    assert metrics.invisible_counts(*hidden) == (1, 5)


def test_visible_pixels_do_not_help_the_hidden_score(hidden: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _, amodal, visible = hidden
    np.testing.assert_array_equal(metrics.invisible_ious(visible, amodal, visible), [0, np.nan, 0])
    np.testing.assert_array_equal(metrics.invisible_ious(amodal, amodal, visible), [1, np.nan, 1])
    assert metrics.invisible_counts(amodal, amodal, visible) == (3, 3)
    assert metrics.invisible_counts(no_masks(12), amodal, visible) == (0, 3)
    assert metrics.invisible_counts(amodal, no_masks(12), no_masks(12)) == (0, 0)


def test_occluded_above_is_a_share(hidden: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"occluded_above must be a share in \[0, 1\), got 1.0"):
        metrics.invisible_ious(*hidden, occluded_above=1.0)


def test_occlusion_bins_include_their_upper_end() -> None:
    rates = [0, 0.001, 0.1, 0.1001, 0.25, 0.3, 0.5, 0.6, 0.75, 0.76, 1.0]
    assert [metrics.occlusion_bin(rate) for rate in rates] == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert metrics.bin_names() == ("0", "(0, 0.1]", "(0.1, 0.25]", "(0.25, 0.5]", "(0.5, 0.75]", "(0.75, 1]")
    assert len(metrics.OCCLUSION_BINS) == len(metrics.bin_names())


@pytest.mark.parametrize("rate", [-0.1, 1.01, float("nan")])
def test_occlusion_bin_refuses_what_is_no_rate(rate: float) -> None:
    with pytest.raises(ValueError, match="rate must be an occlusion rate in"):
        metrics.occlusion_bin(rate)


# ---------------------------------------------------------------------------------------------------------------- order


def order(count: int, *edges: tuple[int, int]) -> np.ndarray:
    matrix = np.zeros((count, count), dtype=bool)
    for i, j in edges:
        matrix[i, j] = True
    return matrix


def test_pair_order_by_hand() -> None:
    true = stack(*(strip(i) for i in range(5)))
    edges = order(5, (0, 1), (1, 2), (2, 3), (0, 4), (2, 4), (4, 2))
    # predictions in reverse order; instance 4 is not found; depths of instances 0, 1, 2, 3 are 0, 1, 1, 0
    predicted, depth = true[[3, 2, 1, 0]], np.array([0, 1, 1, 0])
    # 0 < 1 correct; 1 < 1 equal; 1 < 0 wrong; 0 before 4 unmatched; 2 and 4 mutual, left out: 1 of 4
    assert metrics.pair_order_accuracy(predicted, depth, true, edges) == (1, 4)
    assert metrics.pair_order_accuracy(true, np.arange(5), true, edges) == (4, 4)
    assert metrics.pair_order_accuracy(no_masks(), np.zeros(0, dtype=int), true, edges) == (0, 4)
    assert metrics.pair_order_accuracy(true, np.arange(5), true, order(5)) == (0, 0)


def test_pair_order_refuses_wrong_depths_and_orders() -> None:
    true = stack(strip(0), strip(1))
    with pytest.raises(ValueError, match=r"predicted_depth must hold one layer index for each of 2 .* got int64"):
        metrics.pair_order_accuracy(true, np.zeros(3, dtype=np.int64), true, order(2))
    with pytest.raises(ValueError, match=r"predicted_depth .* got float64"):
        metrics.pair_order_accuracy(true, np.zeros(2), true, order(2))
    with pytest.raises(ValueError, match=r"true_order must have shape \(2, 2\), got \(3, 3\)"):
        metrics.pair_order_accuracy(true, np.zeros(2, dtype=int), true, order(3))
    with pytest.raises(ValueError, match=r"true_order must be False on its diagonal, got True at \(1, 1\)"):
        metrics.pair_order_accuracy(true, np.zeros(2, dtype=int), true, order(2, (1, 1)))
    with pytest.raises(ValueError, match="true_amodal must have the height and width of predicted"):
        metrics.pair_order_accuracy(true, np.zeros(2, dtype=int), np.zeros((2, 1, 9), dtype=bool), order(2))


def test_deocclusion_relation_by_hand() -> None:
    visible = stack(strip(0, 1), strip(2, 3), strip(5))
    amodal = stack(strip(0, 1, 2), strip(0, 1, 2, 3), strip(0, 1, 4, 5))
    # 0 and 1 border: |V_0 and A_1| = 2, |V_1 and A_0| = 1: 0 in front. 2 lies under 0 but borders nobody.
    assert metrics.deocclusion_relation(visible, amodal).tolist() == [[0, 1, 0], [-1, 0, 0], [0, 0, 0]]
    # a tie goes to the smaller index; bordering without overlap is no relation
    tie = metrics.deocclusion_relation(stack(strip(0), strip(1)), stack(strip(0, 1), strip(0, 1)))
    assert tie.tolist() == [[0, 1], [-1, 0]]
    assert not metrics.deocclusion_relation(stack(strip(0), strip(1)), stack(strip(0), strip(1))).any()


def test_bordering_is_by_edges_not_by_corners() -> None:
    def pixel(y: int, x: int) -> np.ndarray:
        mask = np.zeros((3, 3), dtype=bool)
        mask[y, x] = True
        return mask

    everything = np.ones((2, 3, 3), dtype=bool)
    neighbours = {
        (y, x): bool(metrics.deocclusion_relation(stack(pixel(1, 1), pixel(y, x)), everything).any())
        for y in range(3)
        for x in range(3)
    }
    assert [spot for spot, related in neighbours.items() if related] == [(0, 1), (1, 0), (1, 1), (1, 2), (2, 1)]


def test_deocclusion_accuracy_counts_each_pair_once() -> None:
    visible = stack(strip(0, 1), strip(2, 3), strip(4))
    amodal = stack(strip(0, 1), strip(1, 2, 3), strip(3, 4))
    truth = metrics.deocclusion_relation(visible, amodal)
    assert truth.tolist() == [[0, 1, 0], [-1, 0, 1], [0, -1, 0]]
    assert metrics.deocclusion_pair_accuracy(truth, visible, amodal) == (2, 2)
    assert metrics.deocclusion_pair_accuracy(-truth, visible, amodal) == (0, 2)
    assert metrics.deocclusion_pair_accuracy(np.zeros((3, 3), dtype=int), visible, amodal) == (0, 2)
    extra = np.array([[0, 1, 1], [-1, 0, -1], [-1, 1, 0]])  # 0-1 right, 1-2 wrong, 0-2 is no true relation
    assert metrics.deocclusion_pair_accuracy(extra, visible, amodal) == (1, 2)


@relaxed
@given(st.integers(1, 4).flatmap(lambda count: arrays(bool, (2, count, HEIGHT, WIDTH))))
def test_deocclusion_equals_the_definition_pair_by_pair(masks: np.ndarray) -> None:
    visible, amodal = masks[0] & masks[1], masks[1]
    found = metrics.deocclusion_relation(visible, amodal)
    for i in range(len(visible)):
        for j in range(i + 1, len(visible)):
            near = {(y + dy, x + dx) for y, x in np.argwhere(visible[i]) for dy, dx in _CROSS}
            ij, ji = np.count_nonzero(visible[i] & amodal[j]), np.count_nonzero(visible[j] & amodal[i])
            related = any((y, x) in near for y, x in np.argwhere(visible[j])) and bool(ij or ji)
            assert found[i, j] == (0 if not related else 1 if ij >= ji else -1)
            assert found[j, i] == -found[i, j]


_CROSS = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))


def test_deocclusion_refuses_what_is_no_relation() -> None:
    visible = stack(strip(0), strip(1))
    with pytest.raises(ValueError, match=r"predicted_relation must have \[j, i\] = -\[i, j\], got 1 at \(0, 1\) and 0"):
        metrics.deocclusion_pair_accuracy(order(2, (0, 1)).astype(int), visible, visible)
    with pytest.raises(ValueError, match=r"matrix of -1, 0 and 1, got \(2, 2\) with values \[0, 2\]"):
        metrics.deocclusion_pair_accuracy(2 * order(2, (0, 1)).astype(int), visible, visible)
    with pytest.raises(ValueError, match="amodal must have the shape of visible"):
        metrics.deocclusion_pair_accuracy(np.zeros((2, 2), dtype=int), visible, visible[:1])


def test_order_precision_recall_f1_by_hand() -> None:
    predicted, true = order(3, (0, 1), (1, 2), (2, 1)), order(3, (0, 1), (0, 2))
    # 1 hit of 3 predicted and 2 true: P 1/3, R 1/2, F1 = 2 * 1 / (3 + 2)
    assert metrics.order_precision_recall_f1(predicted, true) == (1 / 3, 1 / 2, 2 / 5)
    assert metrics.order_precision_recall_f1(order(2), order(2)) == (1, 1, 1)
    assert metrics.order_precision_recall_f1(order(2), order(2, (0, 1))) == (1, 0, 0)
    assert metrics.order_precision_recall_f1(order(2, (0, 1)), order(2)) == (0, 1, 0)
    assert metrics.order_precision_recall_f1(order(0), order(0)) == (1, 1, 1)


@relaxed
@given(arrays(bool, (2, 4, 4)))
def test_order_precision_recall_f1_equals_scikit_learn(pair: np.ndarray) -> None:
    off_diagonal = ~np.eye(4, dtype=bool)
    predicted, true = pair & off_diagonal
    expected = precision_recall_fscore_support(
        true[off_diagonal], predicted[off_diagonal], labels=[True], average="micro", zero_division=1
    )
    assert metrics.order_precision_recall_f1(predicted, true) == pytest.approx(expected[:3])


# ------------------------------------------------------------------------------------------------------------ intervals


def test_bootstrap_covers_the_mean_and_is_repeatable() -> None:
    values = np.random.default_rng(3).normal(5, 2, size=400)
    low, high = metrics.bootstrap_interval(values)
    # normal theory: mean +- 1.96 s / sqrt(n)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert metrics.bootstrap_interval(values) == (low, high)
    assert metrics.bootstrap_interval(values, seed=1) != (low, high)
    narrow = metrics.bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_ignores_nan() -> None:
    values = np.array([0.2, 0.4, 0.9])
    assert metrics.bootstrap_interval(np.array([0.2, np.nan, 0.4, 0.9])) == metrics.bootstrap_interval(values)
    assert np.isnan(metrics.bootstrap_interval(np.array([np.nan, np.nan]))).all()
    assert np.isnan(metrics.bootstrap_interval(np.zeros(0))).all()
    assert metrics.bootstrap_interval(np.array([0.25])) == (0.25, 0.25)


def test_bootstrap_of_a_coin_by_hand() -> None:
    # two images, 0 and 1: the mean of a resample is 0, 1/2, 1 with chances 1/4, 1/2, 1/4
    assert metrics.bootstrap_interval(np.array([0, 1])) == (0, 1)
    assert metrics.bootstrap_interval(np.array([0, 1]), level=0.3) == (0.5, 0.5)


def test_bootstrap_of_many_images_fills_every_block() -> None:
    values = np.linspace(5, 6, 5000)  # drawn in two blocks, of 838 and 162 resamples
    half = 1.96 * values.std() / np.sqrt(5000)
    assert metrics.bootstrap_interval(values) == pytest.approx((5.5 - half, 5.5 + half), abs=half / 5)


def test_ratio_bootstrap_pools() -> None:
    numerators, denominators = np.array([1, 30, 0]), np.array([2, 40, 0])
    low, high = metrics.ratio_bootstrap_interval(numerators, denominators)
    assert 0.5 <= low < 31 / 42 < high <= 0.75  # pooled 31/42 lies between the images' ratios 1/2 and 3/4
    # a constant ratio has no spread, however unequal the images
    assert metrics.ratio_bootstrap_interval(np.array([1, 30]), np.array([2, 60])) == pytest.approx((0.5, 0.5))
    assert np.isnan(metrics.ratio_bootstrap_interval(np.zeros(2), np.zeros(2))).all()
    ignored = metrics.ratio_bootstrap_interval(np.array([1, np.nan, 30, 0]), np.array([2, 5, 40, 0]))
    assert ignored == (low, high)


def test_bootstrap_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match=r"equal length, one value an image, got \(2,\) and \(3,\)"):
        metrics.ratio_bootstrap_interval(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="denominators must be 0 or more, got -1"):
        metrics.ratio_bootstrap_interval(np.zeros(2), np.array([1, -1]))
    with pytest.raises(ValueError, match="resamples must be at least 1 and level in"):
        metrics.bootstrap_interval(np.zeros(2), level=95)


# ---------------------------------------------------------------------------------------------------------- uncertainty


def test_calibration_by_hand() -> None:
    probability = np.array([0.0, 0.2, 0.5, 0.6, 0.9, 1.0])
    target = np.array([False, True, False, True, True, True])
    # two bins, [0, .5] and (.5, 1]: mean probabilities 0.7/3 and 2.5/3, shares 1/3 and 1, three pixels each
    confidence, frequency, count = metrics.reliability_curve(probability, target, bins=2)
    assert confidence == pytest.approx([0.7 / 3, 2.5 / 3])
    assert frequency == pytest.approx([1 / 3, 1])
    assert count.tolist() == [3, 3]
    # ECE = 1/2 * |0.7 - 1| / 3 + 1/2 * |2.5 - 3| / 3 = 0.8 / 6
    assert metrics.expected_calibration_error(probability, target, bins=2) == pytest.approx(0.8 / 6)
    # four bins are unequally full: [0, .25] 2, (.25, .5] 1, (.5, .75] 1, (.75, 1] 2 pixels
    # 2/6 * |.1 - .5| + 1/6 * |.5 - 0| + 1/6 * |.6 - 1| + 2/6 * |.95 - 1| = (.8 + .5 + .4 + .1) / 6
    assert metrics.expected_calibration_error(probability, target, bins=4) == pytest.approx(1.8 / 6)
    # Brier = (0 + .64 + .25 + .16 + .01 + 0) / 6
    assert metrics.brier_score(probability, target) == pytest.approx(1.06 / 6)
    assert metrics.brier_score(probability, target) == pytest.approx(brier_score_loss(target, probability))


def test_calibration_of_certain_and_of_no_pixels() -> None:
    target = np.array([[True, False, False]])
    assert metrics.expected_calibration_error(target.astype(float), target) == 0
    assert metrics.expected_calibration_error((~target).astype(float), target) == 1
    assert metrics.brier_score((~target).astype(float), target) == 1
    assert math.isnan(metrics.expected_calibration_error(np.zeros(0), np.zeros(0, dtype=bool)))
    assert math.isnan(metrics.brier_score(np.zeros(0), np.zeros(0, dtype=bool)))
    confidence, frequency, count = metrics.reliability_curve(np.array([0.5]), np.array([True]), bins=3)
    np.testing.assert_array_equal(confidence, [np.nan, 0.5, np.nan])
    np.testing.assert_array_equal(frequency, [np.nan, 1, np.nan])
    assert count.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        metrics.expected_calibration_error(np.zeros(2), np.zeros(2, dtype=bool), bins=0)


def test_calibrated_probabilities_have_a_small_error() -> None:
    generator = np.random.default_rng(4)
    probability = generator.random((200, 100))
    target = generator.random((200, 100)) < probability
    assert metrics.expected_calibration_error(probability, target) < 0.02
    assert metrics.expected_calibration_error(probability**3, target) > 0.1


def test_energy_distance_by_hand() -> None:
    samples, truths = stack(strip(0), strip(0, 1)), stack(strip(0, 1), strip(1))
    # d(s, y): {0}-{0,1} 1/2, {0}-{1} 1, {0,1}-{0,1} 0, {0,1}-{1} 1/2: sum 2; d(s, s'): 1/2 twice; d(y, y') too
    # GED^2 = 2/4 * 2 - 1/4 * 1 - 1/4 * 1 = 1/2
    assert metrics.generalized_energy_distance(samples, truths) == pytest.approx(1 / 2)
    assert metrics.generalized_energy_distance(samples[:1], samples[1:]) == pytest.approx(2 * 1 / 2)
    assert metrics.generalized_energy_distance(stack(strip(0)), stack(strip(1))) == 2


def test_energy_distance_of_empty_masks() -> None:
    assert metrics.generalized_energy_distance(stack(strip()), stack(strip(), strip())) == 0
    assert metrics.generalized_energy_distance(stack(strip()), stack(strip(1))) == 2
    with pytest.raises(ValueError, match="samples must hold at least one mask"):
        metrics.generalized_energy_distance(no_masks(), stack(strip(1)))


@relaxed
@given(stacks(1), stacks(1))
def test_energy_distance_is_a_distance(samples: np.ndarray, truths: np.ndarray) -> None:
    found = metrics.generalized_energy_distance(samples, truths)
    assert -1e-9 <= found <= 2
    assert found == pytest.approx(metrics.generalized_energy_distance(truths, samples))
    twice = np.concatenate([samples, samples])  # the same masks in the same proportions
    assert metrics.generalized_energy_distance(samples, twice) == pytest.approx(0, abs=1e-9)


@relaxed
@given(arrays(np.float64, (HEIGHT, WIDTH), elements=st.sampled_from([0.0, 0.1, 0.2, 0.25])), masks_2d)
def test_auroc_equals_scikit_learn_with_ties(uncertainty: np.ndarray, error: np.ndarray) -> None:
    found = metrics.error_detection_auroc(uncertainty, error)
    if error.any() and not error.all():
        assert found == pytest.approx(roc_auc_score(error.ravel(), uncertainty.ravel()), abs=1e-12)
    else:
        assert math.isnan(found)


def test_auroc_by_hand() -> None:
    # wrong pixels .2 and .1 against right ones .1 and 0: wins 1, 1, 1/2 (tie), 1: 3.5 of 4
    uncertainty, error = np.array([0.2, 0.1, 0.1, 0.0]), np.array([True, True, False, False])
    assert metrics.error_detection_auroc(uncertainty, error) == 3.5 / 4
    with pytest.raises(ValueError, match="uncertainty must be finite"):
        metrics.error_detection_auroc(np.array([np.nan, 0, 0, 0]), error)


# ------------------------------------------------------------------------------------------------------------ bad input


def test_soft_masks_are_refused() -> None:
    soft = np.zeros((1, WIDTH))
    with pytest.raises(ValueError, match="prediction must be bool, got float64: threshold it first"):
        metrics.iou(soft, strip(0))
    with pytest.raises(ValueError, match="target must be bool, got float64"):
        metrics.pixel_average_precision(soft, soft)
    with pytest.raises(ValueError, match="true must be bool, got uint8"):
        metrics.match_instances(no_masks(), np.zeros((1, 1, WIDTH), dtype=np.uint8))


def test_sizes_are_held_against_each_other() -> None:
    with pytest.raises(ValueError, match=r"target must have the height and width of prediction, \(1, 6\), got"):
        metrics.iou(strip(0), strip(0, width=9))
    with pytest.raises(ValueError, match=r"prediction must have shape \(H, W\), got \(1, 1, 6\)"):
        metrics.iou(stack(strip(0)), strip(0))
    with pytest.raises(ValueError, match=r"true_layers must have the height and width of predicted_layers"):
        metrics.layer_ious(no_masks(), no_masks(9))
    with pytest.raises(ValueError, match=r"true_visible must have the shape of true_amodal, \(2, 1, 6\), got"):
        metrics.invisible_counts(no_masks(), stack(strip(0), strip(1)), stack(strip(0)))
    with pytest.raises(ValueError, match="predicted must have the height and width of true_amodal"):
        metrics.invisible_ious(no_masks(9), stack(strip(0)), stack(strip(0)))
    with pytest.raises(ValueError, match="error must have the shape of uncertainty"):
        metrics.error_detection_auroc(np.zeros(3), np.zeros(4, dtype=bool))


@pytest.mark.parametrize("bad", [-0.1, 1.5, float("nan")])
def test_probabilities_lie_in_their_range(bad: float) -> None:
    probability = np.full((1, WIDTH), 0.5)
    probability[0, 2] = bad
    with pytest.raises(ValueError, match=r"probability must lie in \[0, 1\], got values from"):
        metrics.pixel_average_precision(probability, strip(0))
    with pytest.raises(ValueError, match=r"predicted_probabilities must lie in \[0, 1\]"):
        metrics.layer_average_precisions(probability[None], stack(strip(0)))


def test_bytes_are_no_probabilities() -> None:
    with pytest.raises(ValueError, match="probability must be float, got uint8: divide bytes by 255"):
        metrics.brier_score(np.zeros((1, WIDTH), dtype=np.uint8), strip(0))


# ---------------------------------------------------------------------------------------------------------------- whole


@relaxed
@given(stacks(1))
def test_a_perfect_prediction_scores_one_everywhere(true: np.ndarray) -> None:
    true[:, 0, 0] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.layer_ious(true, true).tolist() == [1] * len(true)
        assert metrics.layer_average_precisions(true.astype(float), true).tolist() == [1] * len(true)
        assert metrics.foreground_iou(true, true) == 1
        visible = true.copy()
        visible[:, 0, 0] = False
        hidden = metrics.invisible_ious(true, true, visible, occluded_above=0.0)
        assert hidden.tolist() == [1] * len(true)


def test_inputs_are_left_alone() -> None:
    generator = np.random.default_rng(5)
    a, b = generator.random((2, 3, HEIGHT, WIDTH)) < 0.5
    before = a.copy(), b.copy()
    for array in (a, b):
        array.setflags(write=False)
    metrics.match_instances(a, b)
    metrics.invisible_ious(a, b, b & a)
    metrics.deocclusion_relation(a & b, b)
    np.testing.assert_array_equal(a, before[0])
    np.testing.assert_array_equal(b, before[1])
