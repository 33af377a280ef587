"""Decoding what annotation files call a segmentation: COCO polygons and RLE, mask pictures, arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sas.data.formats.codes import LOST_WITH_A_WARNING
from sas.data.formats.raw import Action, Severity
from sas.io import InputError, rle_decode
from sas.pictures import read_mask

Note = tuple[Severity, str, str, Action]
"""Severity, code, words and action of a defect."""
FARTHEST = 100_000
"""Largest coordinate of a polygon, in pixels."""


class BadSegmentation(ValueError):
    """A segmentation that cannot be used: code and words of the defect."""

    def __init__(self, code: str, words: str) -> None:
        super().__init__(words)
        self.code = code

    @property
    def severity(self) -> Severity:
        return "warning" if self.code in LOST_WITH_A_WARNING else "error"


def decode(segmentation: Any, height: int, width: int) -> tuple[np.ndarray, list[Note]]:
    """A segmentation as bool (height, width), with what had to be mended. Raises `BadSegmentation` if nothing can be made of it."""
    notes: list[Note] = []
    if isinstance(segmentation, np.ndarray):
        if segmentation.shape != (height, width):
            raise BadSegmentation(
                "mask-size",
                f"the mask has {segmentation.shape[1]}x{segmentation.shape[0]} pixels, the picture {width}x{height}",
            )
        return segmentation.astype(bool), notes
    if isinstance(segmentation, Path):
        return _mask_picture(segmentation, height, width, notes), notes
    if isinstance(segmentation, dict):
        return _rle(segmentation, height, width), notes
    if isinstance(segmentation, list):
        return _polygons(segmentation, height, width, notes), notes
    raise BadSegmentation("field", f"a segmentation must be polygons or RLE, got {type(segmentation).__name__}")


def _mask_picture(path: Path, height: int, width: int, notes: list[Note]) -> np.ndarray:
    if not path.is_file():
        raise BadSegmentation("mask-missing", f"there is no mask file {path.name}")
    try:
        mask = read_mask(path)
        faint = read_mask(path, threshold=0)
    except InputError as error:
        raise BadSegmentation("mask-damaged", str(error)) from error
    if mask.shape != (height, width):
        raise BadSegmentation(
            "mask-size", f"{path.name} has {mask.shape[1]}x{mask.shape[0]} pixels, the picture {width}x{height}"
        )
    if faint.any() and not mask.any():
        notes.append(
            (
                "warning",
                "mask-range",
                f"{path.name} holds values of 127 at most; everything above 0 is taken as inside",
                "repair",
            )
        )
        return faint
    grey = (faint & ~mask) | ~read_mask(path, threshold=254) & mask
    if grey.any():
        notes.append(
            (
                "warning",
                "mask-grey",
                f"{path.name} holds values between 0 and 255, as JPEG makes them; cut at 127",
                "repair",
            )
        )
    return mask


def _rle(segmentation: dict[str, Any], height: int, width: int) -> np.ndarray:
    size = segmentation.get("size")
    if not (isinstance(size, list | tuple) and len(size) == 2 and all(type(side) is int for side in size)):
        raise BadSegmentation("field", f"RLE must have a size [height, width], got {str(size)[:40]}")
    if tuple(size) != (height, width):
        raise BadSegmentation(
            "rle-size", f"the RLE is for {size[1]}x{size[0]} pixels, the picture has {width}x{height}"
        )
    counts = segmentation.get("counts")
    if isinstance(counts, list):
        if not all(isinstance(run, int) and run >= 0 for run in counts) or sum(counts) != height * width:
            raise BadSegmentation(
                "rle-size", f"the runs of the RLE must add up to {height * width} pixels, got {str(counts)[:40]}"
            )
        packed = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        counts = packed["counts"].decode("ascii")
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
    try:
        return rle_decode({"size": [height, width], "counts": counts})
    except InputError as error:
        # Runs of another length than the picture are told without a cause; all else is no RLE at all.
        fits = isinstance(counts, str) and error.__cause__ is None
        raise BadSegmentation("rle-size" if fits else "field", str(error)) from error


def _polygons(segmentation: list[Any], height: int, width: int, notes: list[Note]) -> np.ndarray:
    """Union of polygons: a list of flat lists [x, y, x, y, ...], or one flat list (as COCOA has it)."""
    rings = [segmentation] if segmentation and not isinstance(segmentation[0], list | tuple) else segmentation
    good: list[list[float]] = []
    thin: list[tuple[int, int]] = []
    for place, ring in enumerate(rings, start=1):
        try:
            values = [float(value) for value in ring]
        except (TypeError, ValueError, OverflowError) as error:
            raise BadSegmentation("field", f"a polygon must be a list of numbers, got {str(ring)[:40]}") from error
        if not np.isfinite(values).all():
            raise BadSegmentation("field", "a polygon must hold finite numbers, got NaN or infinity")
        farthest = max(map(abs, values), default=0.0)
        if farthest > FARTHEST:  # pycocotools walks every pixel of an edge, and runs out of memory without a word
            words = f"a polygon reaches to {farthest:g}, farther than any picture; the whole object is left out"
            raise BadSegmentation("outside", words)
        if len(values) % 2:
            raise BadSegmentation("field", f"a polygon must have an even number of values x, y, ..., got {len(values)}")
        if len(values) < 6:
            thin.append((place, len(values) // 2))
            continue
        good.append(values)
    if not good:
        if thin:
            one = f"a polygon has {_points(thin[0][1])} and needs 3"
            words = one if len(thin) == 1 else f"none of the {len(thin)} polygons has the 3 points that it needs"
            raise BadSegmentation("polygon-points", f"{words}; the whole object is left out")
        return np.zeros((height, width), dtype=bool)
    for place, count in thin:
        words = f"polygon {place} of {len(rings)} has {_points(count)} and needs 3; it alone is left out, the object is kept"
        notes.append(("error", "polygon-points", words, "repair"))
    points = np.concatenate([np.reshape(ring, (-1, 2)) for ring in good])
    low, high = points.min(axis=0), points.max(axis=0)
    if low.min() < -1 or high[0] > width + 1 or high[1] > height + 1:
        box = f"x {low[0]:.0f}..{high[0]:.0f}, y {low[1]:.0f}..{high[1]:.0f}"
        notes.append(
            (
                "warning",
                "outside",
                f"the polygon ({box}) leaves the picture of {width}x{height}; it is cut at the border",
                "repair",
            )
        )
    encoded = coco_mask.merge([coco_mask.frPyObjects([ring], height, width)[0] for ring in good])
    return rle_decode({"size": [height, width], "counts": encoded["counts"].decode("ascii")})


def _points(count: int) -> str:
    return f"{count} point{'' if count == 1 else 's'}"
