"""Shapes of drawing tools, and how they become the objects of a scene: parts are joined, masks placed, boxes and ellipses given corners."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from sas.data.formats.raw import Defect, RawObject
from sas.data.formats.segmentation import BadSegmentation, decode

Size = tuple[int, int]
"""(height, width) in pixels."""
CORNERS = 72  # of the polygon that stands for a circle or an ellipse


@dataclass(frozen=True)
class Shape:
    """One shape. outline: polygons as flat lists, or a bool array of the picture's size. nearness: larger is nearer."""

    id: str
    label: str
    group: str
    outline: list[list[float]] | np.ndarray
    nearness: float | None


def join_shapes(
    shapes: Sequence[Shape],
    size: Size | None,
    image: str,
    defects: list[Defect],
    *,
    torn: Collection[tuple[str, str]] = (),
) -> tuple[RawObject, ...]:
    """Shapes joined to objects; an object is as near as the nearest of its parts.

    torn: label and group of objects of which a part could not be read, which is told; what is left of them is no whole object.
    """
    parts: dict[tuple[str, ...], list[Shape]] = {}
    for shape in shapes:
        parts.setdefault((shape.label, shape.group) if shape.group else (shape.id,), []).append(shape)
    objects: list[RawObject] = []
    for key, one in parts.items():
        heights = [shape.nearness for shape in one if shape.nearness is not None]
        rank = -max(heights) if heights else None
        lost = key in torn
        if lost:
            words = f"a part of this object ({one[0].label}, group {one[0].group}) could not be read, so all of it is left out"
            defects.append(Defect("error", "field", words, "drop", image=image, object=one[0].id))
        try:
            outline = _union([shape.outline for shape in one], size)
            objects.append(RawObject(one[0].id, one[0].label, outline, rank=rank, lost=lost))
        except BadSegmentation as error:
            defects.append(Defect(error.severity, error.code, str(error), "drop", image=image, object=one[0].id))
    return tuple(objects)


def _union(outlines: list[list[list[float]] | np.ndarray], size: Size | None) -> list[list[float]] | np.ndarray:
    if len(outlines) == 1:
        return outlines[0]
    polygons = [ring for outline in outlines if isinstance(outline, list) for ring in outline]
    masks = [outline for outline in outlines if isinstance(outline, np.ndarray)]
    if not masks or size is None:  # a mask is made only where the size is known
        return polygons
    return np.logical_or.reduce([*masks, decode(polygons, *size)[0]] if polygons else masks)


def placed(patch: np.ndarray, box: tuple[int, int, int, int], size: Size | None) -> np.ndarray:
    """bool (H, W) of a mask that is given for its box (left, top, width, height) only."""
    height, width = checked_box(box, size)
    left, top = box[:2]
    full = np.zeros((height, width), dtype=bool)
    full[top : top + box[3], left : left + box[2]] = patch
    return full


def checked_box(box: tuple[int, int, int, int], size: Size | None) -> Size:
    if size is None:
        raise BadSegmentation("field", "a mask needs the height and width of the picture, which the file does not give")
    if size[0] * size[1] > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise BadSegmentation(
            "mask-size", f"the file claims a picture of {size[1]}x{size[0]} pixels, which is too large"
        )
    left, top, width, height = box
    if left < 0 or top < 0 or left + width > size[1] or top + height > size[0]:
        words = f"the box of the mask (x {left}, y {top}, {width}x{height}) leaves the picture of {size[1]}x{size[0]}"
        raise BadSegmentation("outside", words)
    return size


def rectangle(x: float, y: float, half_width: float, half_height: float, turn: float = 0.0) -> list[float]:
    """Rectangle around (x, y), turned clockwise by `turn` radians as one sees it (y points down), as a flat polygon."""
    corners = [
        (-half_width, -half_height),
        (half_width, -half_height),
        (half_width, half_height),
        (-half_width, half_height),
    ]
    return _turned(x, y, corners, turn)


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> list[float]:
    angles = [2 * math.pi * corner / CORNERS for corner in range(CORNERS)]
    return _turned(x, y, [(rx * math.cos(angle), ry * math.sin(angle)) for angle in angles], turn)


def _turned(x: float, y: float, points: list[tuple[float, float]], turn: float) -> list[float]:
    c, s = math.cos(turn), math.sin(turn)
    return [value for u, v in points for value in (x + c * u - s * v, y + s * u + c * v)]


def number(value: Any) -> float | None:
    """A finite number, or text that holds one; else None."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def stated_number(name: str, value: Any, image: str, object: str, defects: list[Defect]) -> float | None:
    """A number that a file states, None if it states none; anything else is a defect, and left out."""
    found = number(value)
    if found is None and value is not None:
        words = f"{name} must be a number, got {str(value)[:40]!r}; it is left out"
        defects.append(Defect("error", "field", words, "repair", image=image, object=object))
    return found


def stated_size(height: Any, width: Any, image: str, defects: list[Defect]) -> Size | None:
    """The size that a file states for a picture, None if it states none; sides that are no numbers from 1 are a defect."""
    for name, side in (("height", height), ("width", width)):
        if side is not None and ((found := number(side)) is None or found < 1):
            words = (
                f"the {name} of the picture must be a number from 1, got {str(side)[:40]!r}; its size is not checked"
            )
            defects.append(Defect("error", "field", words, "repair", image=image))
    return picture_size(height, width)


def picture_size(height: Any, width: Any) -> Size | None:
    sides = (number(height), number(width))
    return None if any(side is None or side < 1 for side in sides) else (int(sides[0] or 0), int(sides[1] or 0))
