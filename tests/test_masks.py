"""Mask operations: NumPy and torch agree, and the laws that hold for all masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sas import masks as ops

COMMON = settings(max_examples=40, deadline=None)


def stacks(*, least: int = 0, most: int = 5) -> st.SearchStrategy[np.ndarray]:
    """bool (N, H, W), square or not, with N = 0 and one pixel among them."""
    shapes = st.tuples(st.integers(least, most), st.integers(1, 6), st.integers(1, 7))
    return shapes.flatmap(lambda shape: hnp.arrays(bool, shape))


def orders(count: int) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(bool, (count, count)).map(lambda m: m & ~np.eye(count, dtype=bool))


def both(function: Callable[..., Any], *arrays: np.ndarray, **options: Any) -> np.ndarray:
    """Result for NumPy, after checking that torch gives the same values and kind, and that no input was changed."""
    before = [array.copy() for array in arrays]
    plain = function(*arrays, **options)
    tensor = function(*(torch.from_numpy(array.copy()) for array in arrays), **options)
    assert isinstance(tensor, torch.Tensor) and isinstance(plain, np.ndarray | np.generic)
    assert tuple(tensor.shape) == np.shape(plain)
    assert tensor.numpy().dtype.kind == np.asarray(plain).dtype.kind
    np.testing.assert_allclose(tensor.numpy(), plain, rtol=1e-6)
    for array, old in zip(arrays, before, strict=True):
        assert (array == old).all()
    return np.asarray(plain)


@COMMON
@given(stacks())
def test_area_and_union(masks: np.ndarray) -> None:
    areas = both(ops.area, masks)
    assert areas.tolist() == [int(np.count_nonzero(mask)) for mask in masks]
    expected = np.zeros(masks.shape[1:], dtype=bool)
    for mask in masks:
        expected |= mask
    assert (both(ops.union, masks) == expected).all()


@COMMON
@given(stacks())
def test_cumulative_is_the_union_of_the_layers_before(layers: np.ndarray) -> None:
    result = both(ops.cumulative, layers)
    assert result.shape == (len(layers) + 1, *layers.shape[1:]) and result.dtype == bool
    for k in range(len(layers) + 1):
        assert (result[k] == layers[:k].any(axis=0)).all()


def test_cumulative_keeps_leading_axes() -> None:
    layers = np.random.default_rng(0).random((2, 3, 4, 5, 6)) > 0.5
    result = both(ops.cumulative, layers)
    assert result.shape == (2, 3, 5, 5, 6)
    assert (result[1, 2] == ops.cumulative(layers[1, 2])).all()


@COMMON
@given(stacks().flatmap(lambda masks: st.tuples(st.just(masks), orders(len(masks)))))
def test_visible_is_what_no_occluder_covers(pair: tuple[np.ndarray, np.ndarray]) -> None:
    masks, order = pair
    result = both(ops.visible, masks, order)
    for j in range(len(masks)):
        expected = masks[j].copy()
        for i in range(len(masks)):
            if order[i, j] and not order[j, i]:
                expected &= ~masks[i]
        assert (result[j] == expected).all()


def test_mutual_occlusion_hides_nothing() -> None:
    masks = np.ones((2, 3, 4), dtype=bool)
    assert (ops.visible(masks, ~np.eye(2, dtype=bool)) == masks).all()


@COMMON
@given(stacks())
def test_overlap_areas_are_symmetric_with_areas_on_the_diagonal(masks: np.ndarray) -> None:
    shared = both(ops.overlap_areas, masks)
    assert shared.dtype == np.int64 and (shared == shared.T).all()
    assert (np.diagonal(shared) == ops.area(masks)).all()
    for i in range(len(masks)):
        for j in range(len(masks)):
            assert shared[i, j] == np.count_nonzero(masks[i] & masks[j])


@COMMON
@given(stacks().flatmap(lambda m: st.tuples(st.just(m), hnp.arrays(bool, m.shape))))
def test_iou_is_a_symmetric_share(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    value = both(ops.iou, a, b)
    assert ((value >= 0) & (value <= 1)).all()
    assert (value == ops.iou(b, a)).all()
    assert (ops.iou(a, a) == 1).all()


def test_iou_by_hand() -> None:
    a, b = np.zeros((2, 4), dtype=bool), np.zeros((2, 4), dtype=bool)
    assert float(both(ops.iou, a, b)) == 1, "two empty masks agree"
    a[0] = True
    assert float(both(ops.iou, a, b)) == 0
    b[:, :2] = True
    assert float(both(ops.iou, a, b)) == pytest.approx(2 / 6)


@COMMON
@given(
    stacks().flatmap(
        lambda masks: st.tuples(st.just(masks), hnp.arrays(np.int64, len(masks), elements=st.integers(-1, 3)))
    )
)
def test_layer_masks_join_the_objects_of_a_layer(pair: tuple[np.ndarray, np.ndarray]) -> None:
    masks, index = pair
    result = both(ops.layer_masks, masks, index)
    assert len(result) == max(index.max(initial=-1) + 1, 0)
    for k, layer in enumerate(result):
        assert (layer == masks[index == k].any(axis=0)).all()
    wider = both(ops.layer_masks, masks, index, count=6)
    assert wider.shape[0] == 6 and (wider[: len(result)] == result).all() and not wider[len(result) :].any()


@COMMON
@given(stacks(), st.integers(1, 3))
def test_reduce_by_area_undoes_enlarging(masks: np.ndarray, factor: int) -> None:
    enlarged = masks.repeat(factor, axis=1).repeat(factor, axis=2)
    assert (both(ops.reduce_by_area, enlarged, factor=factor) == masks).all()


def test_reduce_by_area_needs_more_than_half() -> None:
    mask = np.zeros((2, 4), dtype=bool)
    mask[0, :2] = True  # exactly half of the left cell
    mask[:, 2:] = [[True, True], [True, False]]
    assert both(ops.reduce_by_area, mask, factor=2).tolist() == [[False, True]]


def test_reduce_by_area_needs_more_than_half_of_what_is_shown() -> None:
    mask, shown = np.zeros((2, 8), dtype=bool), np.zeros((2, 8), dtype=bool)
    # Shown are half of the first cell, half of the second, all of the third and nothing of the last; set is of that all, half,
    # three quarters and nothing.
    shown[:, 1:3] = shown[:, 4:6] = True
    mask[0, [1, 2, 4, 5]] = mask[1, [1, 4]] = True

    def reduced(masks: Any, shown: Any) -> Any:
        return ops.reduce_by_area(masks, 2, shown=shown)

    assert both(reduced, mask, shown).tolist() == [[True, False, True, False]]


@pytest.mark.parametrize("factor", [15, 16])  # the area of a cell fits a byte, or does not
@pytest.mark.parametrize("missing", [0, 1])
def test_reduce_by_area_of_large_cells(factor: int, missing: int) -> None:
    mask = np.ones((factor, 2 * factor), dtype=bool)
    few = factor * factor // 2 + 1 - missing
    mask[:, factor:] = (np.arange(factor * factor) < few).reshape(factor, factor)
    assert both(ops.reduce_by_area, mask, factor=factor).tolist() == [[True, not missing]]


@pytest.mark.parametrize("factor", [0, -1, 3])
def test_reduce_by_area_refuses_what_does_not_divide(factor: int) -> None:
    with pytest.raises(
        ValueError, match=rf"factor must be a positive divisor .* got {factor} for 4x6: choose a canvas"
    ):
        ops.reduce_by_area(np.zeros((4, 6), dtype=bool), factor)


def test_check_shape_names_argument_and_lengths() -> None:
    assert ops.check_shape(np.zeros((2, 1, 5)), "b 1 w", name="x", b=2) == {"b": 2, "w": 5}
    with pytest.raises(ValueError, match=r"x must have shape \(b, 3, w\), got \(2, 1, 5\): reshape it"):
        ops.check_shape(np.zeros((2, 1, 5)), "b 3 w", name="x")
    with pytest.raises(ValueError, match=r"x must have shape \(n, h\) with n=4, got \(2, 5\)"):
        ops.check_shape(torch.zeros(2, 5), "n h", name="x", n=4)
    with pytest.raises(ValueError, match=r"got \(2,\): reshape it or add the missing axes"):
        ops.check_shape(torch.zeros(2), "n h", name="x")


@pytest.mark.parametrize("mask", [np.zeros((2, 2)), np.zeros((2, 2), dtype=np.uint8), torch.zeros(2, 2)])
def test_check_mask_guesses_no_range(mask: np.ndarray | torch.Tensor) -> None:
    with pytest.raises(ValueError, match="m must be a bool mask, got .*: threshold it first, for example `m > 0.5`"):
        ops.check_mask(mask, name="m")


def test_check_mask_counts_axes() -> None:
    ops.check_mask(torch.zeros(2, 2, dtype=torch.bool), name="m", ndim=2)
    with pytest.raises(ValueError, match=r"m must have 3 axes, got shape \(2, 2\)"):
        ops.check_mask(np.zeros((2, 2), dtype=bool), name="m", ndim=3)


def test_operations_refuse_masks_that_do_not_fit() -> None:
    masks = np.zeros((2, 3, 3), dtype=bool)
    with pytest.raises(ValueError, match=r"order_matrix must have shape \(n, m\) with n=2, m=2, got \(3, 3\)"):
        ops.visible(masks, np.zeros((3, 3), dtype=bool))
    with pytest.raises(ValueError, match=r"layer_index must have shape \(n\) with n=2, got \(1,\)"):
        ops.layer_masks(masks, np.zeros(1, dtype=np.int64))
    with pytest.raises(ValueError, match="layer_masks must be a bool mask"):
        ops.cumulative(masks.astype(float))
