"""The objects of a result: the connected components of its layers, and what can be measured of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from sas.geometry import Geometry
from sas.io import rle_encode

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=int)


@dataclass(frozen=True)
class Instance:
    """One object, small enough to keep: its mask on the mask grid, and what was measured in the input frame."""

    layer: int
    grid_mask: np.ndarray
    score: float
    segmentation: dict[str, Any]
    visible: dict[str, Any]
    bbox: tuple[int, int, int, int]
    area: int
    occlusion_rate: float


@dataclass(frozen=True)
class Catalog:
    """What the layers of one result hold."""

    areas: tuple[int, ...]  # pixels of each layer in the input frame
    instances: tuple[Instance, ...]


def take_stock(
    masks: np.ndarray,
    *,
    full: Callable[[int], np.ndarray],
    members: np.ndarray,
    probability: np.ndarray,
    geometry: Geometry,
    min_area: float,
    refined: bool,
) -> Catalog:
    """One pass over the layers, one full-size mask after the other; of a layer's instances that of the most cells of the grid comes first.

    masks: bool (K, m, m) on the mask grid. full(k): bool (H, W), layer k in the input frame. members: bool (K, E, m, m).
    probability: float (K, m, m). min_area: fraction of the mask grid below which a component is not an instance.
    refined: the full masks follow the picture's edges; an instance then takes the pixels nearest to its component.
    """
    shape = (geometry.height, geometry.width)
    before = np.zeros(shape, dtype=bool)
    areas: list[int] = []
    instances: list[Instance] = []
    for index, mask in enumerate(masks):
        layer_full = full(index)
        owner = _nearest_component(geometry, mask) if refined else None
        for number, component in enumerate(_components(mask, min_area=min_area * mask.size)):
            if np.array_equal(component, mask):
                segmentation = layer_full
            else:
                segmentation = to_frame(geometry, component) if owner is None else layer_full & (owner == number)
            seen = segmentation & ~before
            if seen.any():  # of what shows no pixel nobody can tell that it is there
                instances.append(
                    _measure(index, component, segmentation, seen, members=members, probability=probability)
                )
        areas.append(int(layer_full.sum()))
        before |= layer_full
    return Catalog(areas=tuple(areas), instances=tuple(instances))


def _measure(
    layer: int,
    component: np.ndarray,
    segmentation: np.ndarray,
    seen: np.ndarray,
    *,
    members: np.ndarray,
    probability: np.ndarray,
) -> Instance:
    rows, columns = np.flatnonzero(segmentation.any(axis=1)), np.flatnonzero(segmentation.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    area = int(segmentation.sum())
    agreement = members[layer][:, component].mean(dtype=np.float64)
    confidence = probability[layer][component].mean(dtype=np.float64)
    return Instance(
        layer=layer,
        grid_mask=component,
        score=min(1.0, round(float(confidence * agreement), 6)),
        segmentation=rle_encode(segmentation),
        visible=rle_encode(seen),
        bbox=(left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1),
        area=area,
        occlusion_rate=round(1 - int(seen.sum()) / area, 6),
    )


def _components(mask: np.ndarray, *, min_area: float) -> list[np.ndarray]:
    """8-connected components of a bool (m, m) mask with at least `min_area` cells, largest first."""
    labels, count = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    largest_first = np.argsort(-areas, kind="stable")
    return [labels == number + 1 for number in largest_first if areas[number] >= min_area]


def _nearest_component(geometry: Geometry, mask: np.ndarray) -> np.ndarray:
    """int64 (H, W): for each pixel of the input frame the number of the nearest of `_components(mask, min_area=0)`."""
    owner = np.zeros((geometry.height, geometry.width), dtype=np.int64)
    components = _components(mask, min_area=0)
    if len(components) < 2:
        return owner
    number = np.argmax(components, axis=0)
    rows, columns = ndimage.distance_transform_edt(~mask, return_distances=False, return_indices=True)
    nearest = number[rows, columns]
    best = np.zeros(owner.shape, dtype=np.float32)
    for index in range(len(components)):
        share = to_frame(geometry, (nearest == index).astype(np.float32))
        owner[share > best] = index
        np.maximum(best, share, out=best)
    return owner


def to_frame(geometry: Geometry, maps: np.ndarray) -> np.ndarray:
    """Maps on the mask grid brought to the frame of `geometry`; from a copy, since torch takes no read-only memory."""
    return geometry.to_input(maps.copy())
