"""Objects of photographs with modal masks only: what is known of each, telling which are seen whole, and cutting them out."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from sas.masks import union


@dataclass(frozen=True)
class Picture:
    """One entry of `images`. height, width: as the file declares them, pixels. index: its place in the file."""

    id: str
    file: str
    height: int
    width: int
    index: int


@dataclass(frozen=True)
class Instance:
    """One entry of `annotations`. id: one of its own in its picture. place: that among the picture's annotations. box: (x, y, width, height)
    in pixels or None. filled: whether it has a mask, as far as can be told without decoding it."""

    id: str
    picture: Picture
    category: str
    place: int
    box: tuple[float, float, float, float] | None
    crowd: bool
    filled: bool

    @property
    def name(self) -> str:
        """`<image id>-<annotation id>`, fit for a file name."""
        return slug(f"{self.picture.id}-{self.id}")

    def completable(self, min_size: int) -> bool:
        """Whether it may be an object of that size, as far as the file says without decoding its mask."""
        return self.filled and not self.crowd and (self.box is None or min(self.box[2:]) >= min_size - 1)


@dataclass(frozen=True, eq=False)
class Regions:
    """All annotated regions of one picture: N instances, their modal masks bool (N, H, W), and which of them were decoded, bool (N,)."""

    instances: tuple[Instance, ...]
    masks: np.ndarray
    decoded: np.ndarray

    def others(self, row: int) -> np.ndarray:
        """What belongs to any other region, bool (H, W)."""
        return union(np.delete(self.masks, row, axis=0))


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

    def __str__(self) -> str:
        return (
            f"{self.min_size} pixels or more in both directions, none in the outermost {self.border} rows and columns of the picture, "
            f"{self.share:.0%} in one piece, nothing else annotated within {self.margin} pixels"
        )

    def large(self, regions: Regions, row: int) -> bool:
        """Whether the object of a row has a mask that measures `min_size` in both directions, whole or not."""
        top, bottom, left, right = bounds(regions.masks[row])
        return bool(regions.decoded[row]) and min(bottom - top, right - left) >= self.min_size

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
