"""What an annotation file says of one picture, before anything is decoded, and the defects that are found on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Severity = Literal["error", "warning"]
Action = Literal["drop", "repair", "refuse", "keep"]


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong, and what the reader does about it.

    action: "drop" leaves the object (or the bad part of it) out, "repair" mends it, "refuse" does not read the picture,
    "keep" reads it as it stands. object: "" if the defect is the picture's or the file's.
    """

    severity: Severity
    code: str
    words: str
    action: Action
    image: str = ""
    object: str = ""

    def __str__(self) -> str:
        return f"{self.severity.upper()} image={self.image or '-'} object={self.object or '-'} {self.code}: {self.words}; {_DOES[self.action]}"


_DOES = {"drop": "dropped", "repair": "repaired", "refuse": "refused", "keep": "kept as it is"}


@dataclass(frozen=True)
class RawObject:
    """One object as its file has it.

    amodal, visible, invisible: COCO polygons, COCO RLE (compressed or not), the path of a mask picture, a bool (H, W) array, or None
    where the file has none. rank: smaller is nearer; ranks are compared within a `group` only. stuff: a region of background.
    lost: it is left out, which the reader has told; what masks it has say where the truth is unknown.
    """

    id: str
    name: str
    amodal: Any
    visible: Any = None
    invisible: Any = None
    rank: float | None = None
    group: str = ""
    stuff: bool = False
    crowd: bool = False
    lost: bool = False


@dataclass(frozen=True)
class RawScene:
    """One picture as its file has it. size: (height, width) that the file declares, None if it does not.

    pairs: ids (front, behind) that the file states. unoccluded_by_default: an object without a visible mask is seen as a whole.
    ordered: False if the format says nothing of the order; the scene's `order_matrix` is None then.
    """

    id: str
    image: Path
    objects: tuple[RawObject, ...]
    size: tuple[int, int] | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    unoccluded_by_default: bool = False
    ordered: bool = True
