"""Operations on boolean masks. Each takes NumPy arrays or torch tensors and returns what it was given.

Masks are bool with shape (..., H, W); a leading axis N runs over instances, K over layers. Nothing here loops over pixels,
instances or images.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from einops import rearrange

Array = TypeVar("Array", np.ndarray, torch.Tensor)


def check_shape(array: np.ndarray | torch.Tensor, pattern: str, *, name: str, **lengths: int) -> dict[str, int]:
    """Lengths of the named axes of `pattern` ("b 1 h w"); ValueError naming the argument if the array does not fit.

    `lengths` fixes the length of named axes, so that two arguments can be held against each other.
    """
    axes = pattern.split()
    wrong = array.ndim != len(axes)
    found = {axis: int(length) for axis, length in zip(axes, array.shape, strict=False) if not axis.isdigit()}
    if not wrong:
        wrong = any(found[axis] != length for axis, length in lengths.items() if axis in found)
        wrong = wrong or any(axis.isdigit() and array.shape[i] != int(axis) for i, axis in enumerate(axes))
    if wrong:
        fixed = ", ".join(f"{axis}={length}" for axis, length in lengths.items())
        raise ValueError(
            f"{name} must have shape ({', '.join(axes)}){' with ' + fixed if fixed else ''}, "
            f"got {tuple(array.shape)}: reshape it or add the missing axes"
        )
    return found


def check_mask(mask: np.ndarray | torch.Tensor, *, name: str, ndim: int | None = None) -> None:
    """ValueError unless `mask` is bool (and of `ndim` axes): a float mask has no agreed range, so none is guessed."""
    if mask.dtype not in (np.bool_, torch.bool):
        raise ValueError(
            f"{name} must be a bool mask, got {mask.dtype}: threshold it first, for example `{name} > 0.5`"
        )
    if ndim is not None and mask.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes, got shape {tuple(mask.shape)}: add or remove axes")


def area(masks: Array) -> Array:
    """Number of pixels of each mask: (..., H, W) bool -> (...) int64."""
    if isinstance(masks, torch.Tensor):
        return masks.sum(dim=(-2, -1))
    return masks.sum(axis=(-2, -1))


def union(masks: Array) -> Array:
    """Union over the axis before the image axes: (..., N, H, W) bool -> (..., H, W) bool; empty for N = 0."""
    if isinstance(masks, torch.Tensor):
        return masks.any(dim=-3)
    return np.any(masks, axis=-3)


def cumulative(layer_masks: Array) -> Array:
    """Cumulative mask before each layer, and after the last: (..., K, H, W) bool -> (..., K + 1, H, W) bool.

    Entry k is the union of the layers before k (SAS, section 3): entry 0 is empty, entry K is the union of all.
    """
    check_mask(layer_masks, name="layer_masks")
    empty = (*layer_masks.shape[:-3], 1, *layer_masks.shape[-2:])
    if isinstance(layer_masks, torch.Tensor):
        return torch.cat([layer_masks.new_zeros(empty), layer_masks.cumsum(dim=-3) > 0], dim=-3)
    return np.concatenate([np.zeros(empty, dtype=bool), layer_masks.cumsum(axis=-3) > 0], axis=-3)


def visible(amodal_masks: Array, order_matrix: Array) -> Array:
    """Part of each instance that no occluder covers: (N, H, W) bool, (N, N) bool -> (N, H, W) bool.

    Two instances declared to occlude each other hide nothing of one another here: which is seen where is not in the matrix.
    """
    check_mask(amodal_masks, name="amodal_masks", ndim=3)
    check_shape(order_matrix, "n m", name="order_matrix", n=len(amodal_masks), m=len(amodal_masks))
    one_way = order_matrix & ~order_matrix.T
    count, height, width = amodal_masks.shape
    if not one_way.any():
        return amodal_masks
    flat = amodal_masks.reshape(count, height * width)
    if isinstance(flat, torch.Tensor):
        hidden = (one_way.T.float() @ flat.float()) > 0
    else:
        hidden = (one_way.T.astype(np.float32) @ flat.astype(np.float32)) > 0
    return amodal_masks & ~hidden.reshape(count, height, width)


def overlap_areas(masks: Array) -> Array:
    """Pixels shared by each pair: (..., N, H, W) bool -> (..., N, N) int64, areas on the diagonal."""
    flat = rearrange(masks, "... n h w -> ... n (h w)")
    if isinstance(flat, torch.Tensor):
        values = flat.view(torch.uint8).float()  # from bytes a CPU takes half as long as from bool
        return (values @ values.mT).round().long()
    values = flat.astype(np.float32)  # exact: counts below 2^24 are represented exactly
    return np.rint(values @ np.swapaxes(values, -1, -2)).astype(np.int64)


def iou(a: Array, b: Array) -> Array:
    """Intersection over union of broadcastable masks: (..., H, W) bool -> (...) float; two empty masks give 1."""
    shared, joined = area(a & b), area(a | b)
    empty = joined == 0
    return (shared + empty) / (joined + empty)


def layer_masks(amodal_masks: Array, layer_index: Array, *, count: int | None = None) -> Array:
    """Union of the instances of each layer: (N, H, W) bool, (N,) int64 -> (K, H, W) bool.

    Index -1 marks an instance that belongs to no layer. K is `count`, or one more than the largest index.
    """
    check_mask(amodal_masks, name="amodal_masks", ndim=3)
    check_shape(layer_index, "n", name="layer_index", n=len(amodal_masks))
    total = count if count is not None else (int(layer_index.max()) + 1 if len(layer_index) else 0)
    height, width = amodal_masks.shape[-2:]
    if isinstance(amodal_masks, torch.Tensor):
        result = torch.zeros(total, height, width, dtype=torch.bool, device=amodal_masks.device)
    else:
        result = np.zeros((total, height, width), dtype=bool)
    for layer in range(total):
        result[layer] = union(amodal_masks[layer_index == layer])
    return result


def reduce_by_area(masks: Array, factor: int, *, shown: Array | None = None) -> Array:
    """Masks on a grid `factor` times coarser: a cell is set where more than half of its area is (..., H, W) -> (..., h, w).

    shown: bool, broadcasts to `masks`, which must lie within it. A cell has no more area than what is shown of it (as in
    `Geometry.masks_to_model`); None: all is.
    """
    height, width = masks.shape[-2:]
    if factor < 1 or height % factor or width % factor:
        raise ValueError(
            f"factor must be a positive divisor of height and width, got {factor} for {height}x{width}: "
            "choose a canvas that is a multiple of the mask size"
        )
    whole = factor * factor if shown is None else _cell_areas(shown, factor)
    return _cell_areas(masks, factor) > whole // 2


def _cell_areas(masks: Array, factor: int) -> Array:
    """Pixels set in each cell: (..., H, W) -> (..., h, w), as bytes where PyTorch's can hold them."""
    if isinstance(masks, torch.Tensor):
        # Bytes, as long as one can hold a cell's area, add up 6 times as fast as pooling would.
        count = torch.uint8 if factor < 16 else torch.int64
        rows = masks.view(torch.uint8).unflatten(-2, (masks.shape[-2] // factor, factor)).sum(-2, dtype=count)
        return rows.unflatten(-1, (masks.shape[-1] // factor, factor)).sum(-1, dtype=count)
    return area(rearrange(masks, "... (h fh) (w fw) -> ... h w fh fw", fh=factor, fw=factor))
