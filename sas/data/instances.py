"""Photographs with modal masks only (COCO-style JSON): reading them, and telling which objects are seen whole.

The file holds `images` [{id, file_name, width, height}], `annotations` [{id, image_id, category_id, segmentation, bbox, iscrowd}] and
`categories` [{id, name}]; a segmentation is polygons or RLE. Ids and fields are looked at when the file is opened, masks and pictures
when they are asked for. What cannot be used is passed over and counted in a warning, but an object whose mask cannot be decoded
still stands in its picture: it counts as its `bbox`, or as the whole picture if it has none. An annotation without an id of its own
is named by its row in the file.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from scipy import ndimage

from sas.data.formats.segmentation import BadSegmentation, decode
from sas.data.split import Part, part_of
from sas.io import InputError, read_image, read_json
from sas.masks import union

logger = logging.getLogger(__name__)

Key = int | str


@dataclass(frozen=True)
class Picture:
    """One entry of `images`. height, width: as the file declares them, pixels."""

    id: Key
    file: str
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Instance:
    """One entry of `annotations`. segmentation: polygons or RLE, as in the file. box: (x, y, width, height) in pixels or None."""

    id: Key
    picture: Picture
    category: str
    segmentation: Any
    box: tuple[float, float, float, float] | None
    crowd: bool

    @property
    def name(self) -> str:
        """`<image id>-<annotation id>`, fit for a file name."""
        return slug(f"{self.picture.id}-{self.id}")


@dataclass(frozen=True, eq=False)
class Regions:
    """All annotated regions of one picture: N instances, their modal masks bool (N, H, W), and which of them were decoded, bool (N,)."""

    instances: tuple[Instance, ...]
    masks: np.ndarray
    decoded: np.ndarray

    def others(self, row: int) -> np.ndarray:
        """What belongs to any other region, bool (H, W)."""
        return union(np.delete(self.masks, row, axis=0))


class ModalSet:
    """A COCO-style file and its folder of pictures.

    images: where the file names start from; None: the folder of the file. part: only the pictures of one part of the fixed division, by
    the SHA-256 of their file names; None: all.
    InputError if the file is no such JSON or if the folder holds none of its pictures.
    """

    def __init__(self, file: str | Path, images: str | Path | None = None, *, part: Part | None = None) -> None:
        self.file = Path(file)
        self.folder = self.file.parent if images is None else Path(images)
        content = read_json(self.file)
        tables = {name: content.get(name) if isinstance(content, dict) else None for name in ("images", "annotations")}
        for name, table in tables.items():
            if not isinstance(table, list):
                raise InputError(
                    f"{self.file} must be COCO-style JSON with a list {name!r}, got {type(table).__name__}; "
                    "name an instance annotation file such as instances_train2017.json"
                )
        if not self.folder.is_dir():
            raise InputError(f"images {self.folder} must be a folder of pictures, found none; check the path")
        passed: Counter[str] = Counter()
        self._elsewhere: set[Key] = set()
        self.pictures = self._pictures(tables["images"] or [], part, passed)
        names = {
            row.get("id"): str(row.get("name")) for row in content.get("categories") or [] if isinstance(row, dict)
        }
        self.instances = list(self._instances(tables["annotations"] or [], names, passed))
        self._rows: dict[Key, list[int]] = {}
        for row, instance in enumerate(self.instances):
            self._rows.setdefault(instance.picture.id, []).append(row)
        if passed.total():
            logger.warning("%s: passed over %s", self.file, counted(passed))

    def regions(self, picture: Picture) -> Regions:
        """The regions of a picture, decoded in its frame."""
        found = tuple(self.instances[row] for row in self._rows.get(picture.id, []))
        masks = np.zeros((len(found), picture.height, picture.width), dtype=bool)
        decoded = np.zeros(len(found), dtype=bool)
        for i, instance in enumerate(found):
            try:
                masks[i] = self.mask(instance)
                decoded[i] = True
            except BadSegmentation as error:
                logger.info("%s: annotation %s counts as its box: %s", self.file, instance.id, error)
                x, y, w, h = instance.box or (0, 0, picture.width, picture.height)
                bottom, right = (max(0, int(np.ceil(end))) for end in (y + h, x + w))
                masks[i, max(0, int(y)) : bottom, max(0, int(x)) : right] = True
        return Regions(found, masks, decoded)

    def mask(self, instance: Instance) -> np.ndarray:
        """The modal mask of one instance, bool (H, W). BadSegmentation if it cannot be decoded or has no pixel in the picture."""
        return _decode(instance.segmentation, instance.picture.height, instance.picture.width)

    def image(self, picture: Picture) -> np.ndarray:
        """uint8 (H, W, 3). InputError if the file is damaged or of another size than declared."""
        path = self.folder / picture.file
        image = read_image(path)
        if image.shape[:2] != (picture.height, picture.width):
            raise InputError(
                f"image {path} must be {picture.width}x{picture.height} as {self.file.name} says, "
                f"got {image.shape[1]}x{image.shape[0]}; restore the picture"
            )
        return image

    def _pictures(self, table: list[Any], part: Part | None, passed: Counter[str]) -> dict[Key, Picture]:
        found: dict[Key, Picture] = {}
        for row in table:
            fields: dict[str, Any] = row if isinstance(row, dict) else {}
            key: Any = fields.get("id")
            file, height, width = (fields.get(name) for name in ("file_name", "height", "width"))
            if not (_is_key(key) and isinstance(file, str) and file and _is_side(height) and _is_side(width)):
                passed["pictures without id, file_name, width or height"] += 1
            elif key in found:
                passed["pictures whose id is taken"] += 1
            elif part is not None and part_of(file) != part:
                self._elsewhere.add(key)
            elif not (self.folder / file).is_file():
                self._elsewhere.add(key)
                passed["pictures that are missing"] += 1
            else:
                found[key] = Picture(key, file, height, width)
        if not found:
            which = "" if part is None else f" of part {part!r}"
            raise InputError(
                f"images {self.folder} must hold pictures{which} that {self.file} names, got none of {len(table)}; "
                "name the folder that its file_name fields start from"
            )
        return found

    def _instances(self, table: list[Any], names: dict[Any, str], passed: Counter[str]) -> Iterable[Instance]:
        taken: set[Key] = set()
        for number, row in enumerate(table):
            fields: dict[str, Any] = row if isinstance(row, dict) else {}
            image, category = fields.get("image_id"), fields.get("category_id")
            if not _is_key(image) or image not in self.pictures:
                passed["annotations without a picture"] += not _is_key(image) or image not in self._elsewhere
                continue
            # The region is there, whatever its id: it may hide others.
            key: Any = fields.get("id")
            key = key if _is_key(key) and key not in taken else f"row-{number}"
            taken.add(key)
            name = names.get(category, str(category)) if _is_key(category) else "object"
            crowd = bool(fields.get("iscrowd", 0))
            yield Instance(key, self.pictures[image], name, fields.get("segmentation"), _box(fields.get("bbox")), crowd)


@dataclass(frozen=True)
class WholeRule:
    """When an object is taken to be seen whole: nothing that is annotated can be in front of it, and the picture does not cut it.

    It is no crowd, its bounding box measures at least `min_size` pixels in both directions, no pixel lies in the outermost `border` rows
    and columns of the picture, `share` of it is one connected component (of 8 neighbours), and no other region, crowds and
    those that cannot be decoded included, has a pixel within `margin` rows and columns of one of its own.
    """

    min_size: int = 32
    border: int = 2
    share: float = 0.98
    margin: int = 4

    def __post_init__(self) -> None:
        if min(self.min_size, self.border, self.margin + 1) < 1:
            raise ValueError(
                f"min_size and border must be at least 1 and margin at least 0 pixels, got {self.min_size}, {self.border}, "
                f"{self.margin}: raise them"
            )
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}: pass 0.98 for 98 percent")

    def objection(self, regions: Regions, row: int) -> str:
        """Why the object of a row does not count as whole, in words; empty if it does."""
        instance, mask = regions.instances[row], regions.masks[row]
        if instance.crowd:
            return "crowds"
        if not regions.decoded[row]:
            return "masks that cannot be decoded"
        top, bottom, left, right = bounds(mask)
        if min(bottom - top, right - left) < self.min_size:
            return "too small"
        height, width = mask.shape
        if min(top, left, height - bottom, width - right) < self.border:
            return "at the border"
        parts, _ = ndimage.label(mask[top:bottom, left:right], structure=np.ones((3, 3)))
        if np.bincount(parts.ravel())[1:].max() < self.share * mask.sum():
            return "in pieces"
        window = np.s_[
            max(0, top - self.margin) : bottom + self.margin, max(0, left - self.margin) : right + self.margin
        ]
        near = ndimage.maximum_filter(mask[window].astype(np.uint8), size=2 * self.margin + 1) > 0
        return "beside other objects" if (near & regions.others(row)[window]).any() else ""


def cutout(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Object of a picture, trimmed: uint8 (H, W, 3), bool (H, W) -> uint8 (h, w, 4), RGBA with alpha 0 or 255 and black outside."""
    top, bottom, left, right = bounds(mask)
    window = np.s_[top:bottom, left:right]
    return np.concatenate([image[window], np.full_like(image[window][..., :1], 255)], axis=-1) * mask[window][..., None]


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """First row, row after the last, first column, column after the last of a mask bool (H, W); all 0 if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def slug(text: str) -> str:
    """A text fit for a part of a file name: letters, digits, single "_", "-" and "." inside, 80 characters at most."""
    plain = re.sub(r"_+", "_", re.sub(r"[^\w.-]+", "-", text)).strip("-._")
    return plain[:80].rstrip("-._") or "object"


def counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {words}" for words, count in sorted(reasons.items()) if count)


def _decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """bool (height, width). BadSegmentation also for polygons far outside the picture: decoding takes time by their length."""
    if isinstance(segmentation, list):
        rings = [ring if isinstance(ring, list) else [ring] for ring in segmentation]
        far = 10 * (height + width)
        if any(isinstance(value, int | float) and abs(value) > far for ring in rings for value in ring):
            raise BadSegmentation("outside", f"the polygon leaves the picture of {width}x{height} by far")
    mask = decode(segmentation, height, width)[0]
    if not mask.any():
        raise BadSegmentation("mask-empty", "the mask has no pixel in the picture")
    return mask


def _box(value: Any) -> tuple[float, float, float, float] | None:
    """(x, y, width, height) if the value is one; None otherwise."""
    numbers = isinstance(value, list) and all(isinstance(v, int | float) and np.isfinite(v) for v in value)
    if not numbers or len(value) != 4 or min(value[2:]) <= 0:
        return None
    x, y, w, h = value
    return float(x), float(y), float(w), float(h)


def _is_key(value: Any) -> TypeGuard[Key]:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _is_side(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
