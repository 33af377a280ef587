"""Scores of predictions against ground truth: pure functions of NumPy arrays, one image a call.

Masks are bool (H, W), with a leading axis K or L for layers, P for predicted and N for true instances; probabilities
are floats in [0, 1]. Every function states what a missing and an extra prediction cost. A score that is not defined (no
positives, no occluded instance, no images) is nan, never 0 or 1, so that a mean over images has to leave it out
knowingly (`np.nanmean`).
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata

OCCLUSION_BINS: tuple[tuple[float, float], ...] = (
    (0.0, 0.0),
    (0.0, 0.1),
    (0.1, 0.25),
    (0.25, 0.5),
    (0.5, 0.75),
    (0.75, 1.0),
)
"""Bins (low, high] of the occlusion rate; the first holds 0 alone."""

_EXACT_FLOAT32 = 2**24  # whole numbers up to here are exact in float32, so a faster matrix product may count pixels
_BOOTSTRAP_BLOCK = 2**22  # indices drawn at once: 32 MiB


# --------------------------------------------------------------------------------------------------------------- layers


def iou(prediction: np.ndarray, target: np.ndarray) -> float:
    """Intersection over union of two bool (H, W) masks, in [0, 1]; two empty masks give 1."""
    _check_masks(2, prediction=prediction, target=target)
    union = np.count_nonzero(prediction | target)
    return np.count_nonzero(prediction & target) / union if union else 1.0


def layer_ious(predicted_layers: np.ndarray, true_layers: np.ndarray) -> np.ndarray:
    """IoU of layer k against layer k: bool (K, H, W), (L, H, W) -> float64 (L,) in [0, 1] (SAS, per-layer IoU).

    A missing layer (k >= K) scores 0. Extra layers (K > L) do not enter: report `false_layers` beside the mean.
    """
    _check_masks(3, predicted_layers=predicted_layers, true_layers=true_layers)
    scores = np.zeros(len(true_layers))
    for k, (prediction, target) in enumerate(zip(predicted_layers, true_layers, strict=False)):
        scores[k] = iou(prediction, target)
    return scores


def false_layers(predicted_layers: np.ndarray, true_layers: np.ndarray) -> int:
    """Number of predicted layers past the last true one: max(0, K - L) for bool (K, H, W) and (L, H, W)."""
    _check_masks(3, predicted_layers=predicted_layers, true_layers=true_layers)
    return max(0, len(predicted_layers) - len(true_layers))


def layer_count_error(predicted: int, true: int) -> int:
    """|predicted - true| number of layers: a missing and an extra layer cost 1 each."""
    for name, count in (("predicted", predicted), ("true", true)):
        if count < 0:
            raise ValueError(f"{name} must be a number of layers, 0 or more, got {count}: count the layers")
    return abs(int(predicted) - int(true))


def pixel_average_precision(probability: np.ndarray, target: np.ndarray) -> float:
    """Area under the precision-recall curve over pixels: float (H, W) in [0, 1], bool (H, W) -> float in [0, 1].

    Sum of (R_n - R_{n-1}) P_n over the distinct thresholds, falling: equal probabilities enter together, nothing is
    interpolated (`sklearn.metrics.average_precision_score`). A target without positives gives nan.
    """
    _check_probability(probability, target)
    return _average_precision(probability.ravel(), target.ravel())


def layer_average_precisions(predicted_probabilities: np.ndarray, true_layers: np.ndarray) -> np.ndarray:
    """Pixel AP of layer k against layer k: float (K, H, W) in [0, 1], bool (L, H, W) -> float64 (L,).

    A missing layer (k >= K) scores 0, an empty true layer nan. Extra layers do not enter: report `false_layers` beside.
    """
    _check_axes(3, predicted_probabilities=predicted_probabilities, true_layers=true_layers)
    _check_masks(3, true_layers=true_layers)
    _check_range(predicted_probabilities, name="predicted_probabilities")
    scores = np.zeros(len(true_layers))
    scores[~true_layers.any(axis=(1, 2))] = np.nan
    for k, (probability, target) in enumerate(zip(predicted_probabilities, true_layers, strict=False)):
        scores[k] = _average_precision(probability.ravel(), target.ravel())
    return scores


def foreground_iou(predicted_layers: np.ndarray, true_layers: np.ndarray) -> float:
    """IoU of the union of all predicted and the union of all true masks: bool (K, H, W), (L, H, W) -> float in [0, 1].

    Missing and extra masks count by their pixels alone; two empty unions give 1.
    """
    _check_masks(3, predicted_layers=predicted_layers, true_layers=true_layers)
    return iou(np.asarray(predicted_layers.any(axis=0)), np.asarray(true_layers.any(axis=0)))


# ------------------------------------------------------------------------------------------------------------ instances


def match_instances(predicted: np.ndarray, true: np.ndarray) -> list[tuple[int, int, float]]:
    """One-to-one matching with the largest sum of IoU (Hungarian): bool (P, H, W), (N, H, W) -> [(p, n, IoU)], by n.

    Pairs that share no pixel are dropped, so an empty mask is never matched. There is no IoU threshold.
    """
    _check_masks(3, predicted=predicted, true=true)
    scores = _pairwise_ious(predicted, true, both_empty=0.0)
    rows, columns = linear_sum_assignment(scores, maximize=True)
    found = [(int(p), int(n), float(scores[p, n])) for p, n in zip(rows, columns, strict=True) if scores[p, n] > 0]
    return sorted(found, key=lambda pair: pair[1])


def instance_ious(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """IoU of each true instance under `match_instances`: bool (P, H, W), (N, H, W) -> float64 (N,) in [0, 1].

    An unmatched true instance scores 0; extra predictions cost nothing. The mean over instances is mIoU_full. An empty
    true mask cannot be matched and scores 0 too: leave such instances out.
    """
    scores = np.zeros(len(true))
    for _, n, score in match_instances(predicted, true):
        scores[n] = score
    return scores


def occlusion_rate(amodal: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Hidden share of each instance, |A minus V| / |A|: bool (N, H, W) twice -> float64 (N,) in [0, 1].

    Equal to 1 - |V| / |A| where V lies in A, and unharmed by visible pixels that an annotator drew outside A. An
    instance without a pixel has rate nan.
    """
    _check_same_masks(amodal=amodal, visible=visible)
    full, hidden = _areas(amodal), _areas(amodal & ~visible)
    rate = np.full(len(full), np.nan)
    return np.asarray(np.divide(hidden, full, out=rate, where=full > 0))


def invisible_ious(
    predicted: np.ndarray, true_amodal: np.ndarray, true_visible: np.ndarray, *, occluded_above: float = 0.01
) -> np.ndarray:
    """IoU of the hidden parts, IoU(prediction minus V, A minus V): float64 (N,) in [0, 1]; its nanmean is mIoU_occ.

    predicted: bool (P, H, W) amodal masks. true_amodal A, true_visible V: bool (N, H, W). The prediction is the one
    `match_instances` gives to the whole mask; an unmatched instance scores 0, extra predictions cost nothing. Instances
    whose occlusion rate is not above `occluded_above` are nan.
    """
    if not 0 <= occluded_above < 1:
        raise ValueError(f"occluded_above must be a share in [0, 1), got {occluded_above}: pass 0.01 for one percent")
    _check_invisible(predicted, true_amodal, true_visible)
    rate = occlusion_rate(true_amodal, true_visible)
    shared, joined = _invisible_areas(predicted, true_amodal, true_visible)
    scores = np.full(len(rate), np.nan)
    occluded = rate > occluded_above  # so A minus V holds a pixel and the union is not empty
    scores[occluded] = shared[occluded] / joined[occluded]
    return scores


def invisible_counts(predicted: np.ndarray, true_amodal: np.ndarray, true_visible: np.ndarray) -> tuple[int, int]:
    """Pixels (intersection, union) of the hidden parts, summed over all instances of the image (ASBU, SDAmodal).

    Arguments and matching as in `invisible_ious`. Both counts leave out the instance's own visible pixels (modal = 0).
    An unmatched instance adds |A minus V| to the union; of an unoccluded one, what the prediction adds outside V
    counts. Pool by sum of intersections over sum of unions.
    """
    _check_invisible(predicted, true_amodal, true_visible)
    shared, joined = _invisible_areas(predicted, true_amodal, true_visible)
    return int(shared.sum()), int(joined.sum())


def occlusion_bin(rate: float) -> int:
    """Index in `OCCLUSION_BINS` of an occlusion rate in [0, 1]; each bin includes its upper end."""
    if not 0 <= rate <= 1:  # also refuses nan
        raise ValueError(f"rate must be an occlusion rate in [0, 1], got {rate}: leave out instances without a pixel")
    return bisect_left([high for _, high in OCCLUSION_BINS], rate)


def bin_names() -> tuple[str, ...]:
    """Names of `OCCLUSION_BINS` for tables: "0", "(0, 0.1]", and so on."""
    return tuple(f"({low:g}, {high:g}]" if high else "0" for low, high in OCCLUSION_BINS)


# ---------------------------------------------------------------------------------------------------------------- order


def pair_order_accuracy(
    predicted: np.ndarray, predicted_depth: np.ndarray, true_amodal: np.ndarray, true_order: np.ndarray
) -> tuple[int, int]:
    """(correct, total) over the true pairs "i occludes j": does the match of i lie in front of the match of j?

    predicted: bool (P, H, W). predicted_depth: int (P,), layer_index of each, 0 in front. true_amodal: bool (N, H, W).
    true_order: bool (N, N), [i, j] True iff i occludes j; mutual pairs are left out. A pair is correct iff both ends
    are matched (`match_instances`) and the depth of i's match is smaller. A pair with an unmatched end, or with equal
    depths, is wrong. Extra predictions, and an order predicted where there is none, cost nothing.
    """
    _check_masks(3, predicted=predicted, true_amodal=true_amodal)
    _check_order(true_order, name="true_order", count=len(true_amodal))
    if predicted_depth.shape != (len(predicted),) or not np.issubdtype(predicted_depth.dtype, np.integer):
        raise ValueError(
            f"predicted_depth must hold one layer index for each of {len(predicted)} predicted instances, "
            f"got {predicted_depth.dtype} {predicted_depth.shape}: pass the int array layer_index"
        )
    depth = np.full(len(true_amodal), np.nan)  # nan: unmatched; a comparison with it is False
    for p, n, _ in match_instances(predicted, true_amodal):
        depth[n] = predicted_depth[p]
    one_way = true_order & ~true_order.T
    in_front = depth[:, None] < depth[None, :]
    return int((one_way & in_front).sum()), int(one_way.sum())


def deocclusion_relation(visible: np.ndarray, amodal: np.ndarray) -> np.ndarray:
    """Order read off the masks: bool (N, H, W) twice -> int64 (N, N), +1 i in front of j, -1 behind, 0 no relation.

    Only pairs whose visible masks border (one dilated by a pixel in the 4-neighbourhood meets the other) are related.
    For i < j: +1 if |V_i and A_j| >= |V_j and A_i|, else -1, and 0 if both are 0; [j, i] is the negative. (deocclusion,
    Zhan et al. 2020, whose code gives a tie to the smaller index.)
    """
    _check_same_masks(visible=visible, amodal=amodal)
    bordering = _overlap_areas(_dilated(visible), visible) > 0
    seen_over = _overlap_areas(visible, amodal)
    sign = np.where(seen_over >= seen_over.T, 1, -1)
    related = bordering & ((seen_over > 0) | (seen_over.T > 0))
    upper = np.triu(np.where(related, sign, 0), 1)
    return upper - upper.T


def deocclusion_pair_accuracy(
    predicted_relation: np.ndarray, visible: np.ndarray, amodal: np.ndarray
) -> tuple[int, int]:
    """(correct, total) over the related pairs; acc_occpair is sum of correct over sum of total (deocclusion).

    predicted_relation: int (N, N) of +1, -1 and 0 with [j, i] = -[i, j], in the order of the true instances.
    visible, amodal: bool (N, H, W), the truth (see `deocclusion_relation`). Each pair counts once. A predicted 0 on a
    related pair is wrong; a relation predicted where there is none costs nothing.
    """
    count = len(visible)
    if predicted_relation.shape != (count, count) or not np.isin(predicted_relation, (-1, 0, 1)).all():
        raise ValueError(
            f"predicted_relation must be a ({count}, {count}) matrix of -1, 0 and 1, got {predicted_relation.shape} "
            f"with values {np.unique(predicted_relation)[:5].tolist()}: pass one row and column for each true instance"
        )
    relation = predicted_relation.astype(np.int64)
    if (relation != -relation.T).any():
        i, j = np.argwhere(relation != -relation.T)[0].tolist()
        raise ValueError(
            f"predicted_relation must have [j, i] = -[i, j], got {relation[i, j]} at ({i}, {j}) and "
            f"{relation[j, i]} at ({j}, {i}): from an order matrix use order.astype(int) - order.T.astype(int)"
        )
    truth = np.triu(deocclusion_relation(visible, amodal))
    return int(((relation == truth) & (truth != 0)).sum()), int((truth != 0).sum())


def order_precision_recall_f1(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float, float]:
    """(precision, recall, F1) of the directed edges of one image, each in [0, 1] (InstaOrder; average over images).

    predicted, true: bool (N, N), [i, j] True iff i occludes j, both directions possible, False on the diagonal. A
    missing edge lowers recall, an extra one precision. A ratio of 0 over 0 is 1 (zero_division = 1): no edge predicted
    gives precision 1, none true recall 1, neither F1 1.
    """
    _check_order(true, name="true", count=len(true))
    _check_order(predicted, name="predicted", count=len(true))
    hits, guesses, edges = int((predicted & true).sum()), int(predicted.sum()), int(true.sum())
    precision = hits / guesses if guesses else 1.0
    recall = hits / edges if edges else 1.0
    f1 = 2 * hits / (guesses + edges) if guesses + edges else 1.0
    return precision, recall, f1


# ------------------------------------------------------------------------------------------------------------ intervals


def bootstrap_interval(
    values: np.ndarray, *, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean over images (Efron and Tibshirani 1993, ch. 13).

    values: float (n,), one an image; nan is left out before resampling. Without any value (nan, nan). `level` lies
    in (0, 1).
    """
    return ratio_bootstrap_interval(values, np.ones(len(values)), seed=seed, resamples=resamples, level=level)


def ratio_bootstrap_interval(
    numerators: np.ndarray, denominators: np.ndarray, *, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of a pooled value, sum of numerators over sum of denominators.

    numerators, denominators: numbers (n,), one an image (say pixels of intersection and union); an image is drawn
    with both. Images with a nan are left out, and so are resamples whose denominators sum to 0; if nothing is left the
    interval is (nan, nan).
    """
    if numerators.ndim != 1 or denominators.shape != numerators.shape:
        raise ValueError(
            "numerators and denominators must be of shape (n,) and equal length, one value an image, "
            f"got {numerators.shape} and {denominators.shape}: score every image once"
        )
    if (denominators < 0).any():
        raise ValueError(f"denominators must be 0 or more, got {denominators.min()}: pass counts of pixels or pairs")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"resamples must be at least 1 and level in (0, 1), got {resamples} and {level}: pass 1000 and 0.95"
        )
    known = ~(np.isnan(numerators) | np.isnan(denominators))
    above, below = numerators[known].astype(np.float64), denominators[known].astype(np.float64)
    count = len(above)
    if not count or not below.any():
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    sums = np.empty((2, resamples))
    rows = max(1, _BOOTSTRAP_BLOCK // count)
    for start in range(0, resamples, rows):
        drawn = generator.integers(count, size=(min(rows, resamples - start), count))
        sums[0, start : start + rows] = above[drawn].sum(axis=1)
        sums[1, start : start + rows] = below[drawn].sum(axis=1)
    defined = sums[:, sums[1] > 0]
    if not defined.size:
        return float("nan"), float("nan")
    low, high = np.quantile(defined[0] / defined[1], ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


# ---------------------------------------------------------------------------------------------------------- uncertainty


def brier_score(probability: np.ndarray, target: np.ndarray) -> float:
    """Mean of (probability - target)^2: float (...) in [0, 1], bool (...) -> float in [0, 1]; nan without pixels.

    For visible, hidden or boundary pixels alone pass `probability[where]` and `target[where]`.
    """
    _check_probability(probability, target)
    return float(np.square(probability.astype(np.float64) - target).mean()) if target.size else float("nan")


def reliability_curve(
    probability: np.ndarray, target: np.ndarray, *, bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean probability, share of positives, count) of each of `bins` equally wide bins (low, high], 0 in the first.

    probability: float (...) in [0, 1]; target: bool (...). Returns float64, float64, int64 (bins,); empty bins are nan.
    """
    _check_probability(probability, target)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}: 15 is usual")
    values = probability.ravel().astype(np.float64)
    index = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], values, side="left")
    count = np.bincount(index, minlength=bins)
    sums = np.bincount(index, weights=values, minlength=bins)
    positives = np.bincount(index, weights=target.ravel(), minlength=bins)
    empty, filled = np.full(bins, np.nan), count > 0
    confidence = np.divide(sums, count, out=empty.copy(), where=filled)
    frequency = np.divide(positives, count, out=empty.copy(), where=filled)
    return confidence, frequency, count


def expected_calibration_error(probability: np.ndarray, target: np.ndarray, *, bins: int = 15) -> float:
    """Mean over pixels of |mean probability - share of positives| of the pixel's bin (Guo et al. 2017, eq. 3).

    Arguments and bins as in `reliability_curve`. In [0, 1]; nan without pixels. The probability is that of the object,
    so 0 and 1 are both certain.
    """
    confidence, frequency, count = reliability_curve(probability, target, bins=bins)
    filled = count > 0
    if not filled.any():
        return float("nan")
    return float(np.average(np.abs(confidence - frequency)[filled], weights=count[filled]))


def generalized_energy_distance(samples: np.ndarray, truths: np.ndarray) -> float:
    """GED^2 between drawn and true masks, with d = 1 - IoU and d = 0 for two empty masks (Kohl et al. 2018, eq. 3).

    (2 / nm) sum d(s_i, y_j) - (1 / n^2) sum d(s_i, s_i') - (1 / m^2) sum d(y_j, y_j'), i = i' and j = j' included.
    samples: bool (n, H, W), truths: bool (m, H, W), n and m at least 1. In [0, 2], 0 for the same masks in the same
    proportions. With a single truth it is smallest for samples that all equal it: use scenes with several truths.
    """
    _check_masks(3, samples=samples, truths=truths)
    for name, masks in (("samples", samples), ("truths", truths)):
        if not len(masks):
            raise ValueError(f"{name} must hold at least one mask, got shape {masks.shape}: leave the image out")
    between = 1 - _pairwise_ious(samples, truths, both_empty=1.0)
    within_samples = 1 - _pairwise_ious(samples, samples, both_empty=1.0)
    within_truths = 1 - _pairwise_ious(truths, truths, both_empty=1.0)
    return float(2 * between.mean() - within_samples.mean() - within_truths.mean())


def error_detection_auroc(uncertainty: np.ndarray, error: np.ndarray) -> float:
    """Chance that a wrong pixel is more uncertain than a right one, ties counting half (Mann-Whitney): float in [0, 1].

    uncertainty: finite float (...), larger = less certain. error: bool (...), True where the prediction is wrong. nan
    if all pixels are right or all are wrong. AUPRC: `pixel_average_precision(uncertainty, error)`.
    """
    _check_same_shape(uncertainty=uncertainty, error=error)
    _check_bool(error, name="error")
    if not np.isfinite(uncertainty).all():
        raise ValueError("uncertainty must be finite, got nan or infinity: leave those pixels out")
    wrong = int(error.sum())
    right = error.size - wrong
    if not wrong or not right:
        return float("nan")
    ranks = rankdata(uncertainty.ravel())
    return float((ranks[error.ravel()].sum() - wrong * (wrong + 1) / 2) / (wrong * right))


# -------------------------------------------------------------------------------------------------------------- helpers


def _average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    if not labels.any():
        return float("nan")
    order = np.argsort(scores)[::-1]
    falling = scores[order]
    last = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(falling) - 1)  # end of each run of equal scores
    hits = np.cumsum(labels[order])[last]
    return float(np.sum(np.diff(hits, prepend=0) * (hits / (last + 1))) / hits[-1])


def _areas(masks: np.ndarray) -> np.ndarray:
    return np.asarray(masks.sum(axis=(1, 2), dtype=np.int64))


def _overlap_areas(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pixels shared by each pair: bool (P, H, W), (N, H, W) -> int64 (P, N)."""
    pixels = a.shape[1] * a.shape[2]
    number: type[np.floating] = np.float32 if pixels <= _EXACT_FLOAT32 else np.float64
    rows: np.ndarray = a.reshape(len(a), pixels).astype(number)
    columns: np.ndarray = b.reshape(len(b), pixels).astype(number)
    return np.asarray(rows @ columns.T).astype(np.int64)


def _pairwise_ious(a: np.ndarray, b: np.ndarray, *, both_empty: float) -> np.ndarray:
    """IoU of each pair: bool (P, H, W), (N, H, W) -> float64 (P, N)."""
    shared = _overlap_areas(a, b)
    joined = _areas(a)[:, None] + _areas(b)[None, :] - shared
    scores = np.full(shared.shape, both_empty)
    return np.asarray(np.divide(shared, joined, out=scores, where=joined > 0))


def _invisible_areas(
    predicted: np.ndarray, true_amodal: np.ndarray, true_visible: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Intersection and union, without V, of each true instance and its match: int64 (N,), (N,)."""
    hidden = true_amodal & ~true_visible
    shared, joined = np.zeros(len(hidden), dtype=np.int64), _areas(hidden)
    for p, n, _ in match_instances(predicted, true_amodal):
        completed = predicted[p] & ~true_visible[n]
        shared[n], joined[n] = np.count_nonzero(completed & hidden[n]), np.count_nonzero(completed | hidden[n])
    return shared, joined


def _dilated(masks: np.ndarray) -> np.ndarray:
    """Masks grown by one pixel up, down, left and right: bool (N, H, W)."""
    grown = masks.copy()
    grown[:, 1:] |= masks[:, :-1]
    grown[:, :-1] |= masks[:, 1:]
    grown[:, :, 1:] |= masks[:, :, :-1]
    grown[:, :, :-1] |= masks[:, :, 1:]
    return grown


def _check_bool(array: np.ndarray, *, name: str) -> None:
    if array.dtype != np.bool_:
        raise ValueError(f"{name} must be bool, got {array.dtype}: threshold it first, for example `{name} > 0.5`")


def _check_axes(ndim: int, **arrays: np.ndarray) -> None:
    """Every array has `ndim` axes, and the last two as long as those of the first array."""
    (first, reference), *_ = arrays.items()
    for name, array in arrays.items():
        if array.ndim != ndim:
            axes = "(H, W)" if ndim == 2 else "(count, H, W)"
            raise ValueError(f"{name} must have shape {axes}, got {array.shape}: add or remove axes")
        if array.shape[-2:] != reference.shape[-2:]:
            raise ValueError(
                f"{name} must have the height and width of {first}, {reference.shape[-2:]}, got {array.shape[-2:]}: "
                "resize one of them"
            )


def _check_masks(ndim: int, **masks: np.ndarray) -> None:
    for name, mask in masks.items():
        _check_bool(mask, name=name)
    _check_axes(ndim, **masks)


def _check_same_shape(**arrays: np.ndarray) -> None:
    (first, reference), *others = arrays.items()
    for name, array in others:
        if array.shape != reference.shape:
            raise ValueError(
                f"{name} must have the shape of {first}, {reference.shape}, got {array.shape}: pass one entry for each"
            )


def _check_same_masks(**masks: np.ndarray) -> None:
    _check_masks(3, **masks)
    _check_same_shape(**masks)


def _check_invisible(predicted: np.ndarray, true_amodal: np.ndarray, true_visible: np.ndarray) -> None:
    _check_same_masks(true_amodal=true_amodal, true_visible=true_visible)
    _check_masks(3, true_amodal=true_amodal, predicted=predicted)


def _check_range(probability: np.ndarray, *, name: str) -> None:
    if not np.issubdtype(probability.dtype, np.floating):
        raise ValueError(f"{name} must be float, got {probability.dtype}: divide bytes by 255, or use an IoU for masks")
    if probability.size and not (probability.min() >= 0 and probability.max() <= 1):  # also refuses nan
        raise ValueError(
            f"{name} must lie in [0, 1], got values from {probability.min()} to {probability.max()}: rescale or clip it"
        )


def _check_probability(probability: np.ndarray, target: np.ndarray) -> None:
    _check_same_shape(probability=probability, target=target)
    _check_bool(target, name="target")
    _check_range(probability, name="probability")


def _check_order(matrix: np.ndarray, *, name: str, count: int) -> None:
    _check_bool(matrix, name=name)
    if matrix.shape != (count, count):
        raise ValueError(
            f"{name} must have shape ({count}, {count}), got {matrix.shape}: "
            "pass one row and column for each true instance"
        )
    if np.diagonal(matrix).any():
        i = int(np.flatnonzero(np.diagonal(matrix))[0])
        raise ValueError(f"{name} must be False on its diagonal, got True at ({i}, {i}): clear the diagonal")
