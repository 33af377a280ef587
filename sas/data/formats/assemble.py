"""From a raw record to a `Scene`, for all formats alike: decode, check, repair or drop, and work out the order.

Evidence of the order is, from strong to weak: pairs that the file states; ranks within a group; visible masks, where the object seen on
the shared pixels is the nearer one. Where two kinds disagree the stronger one wins and the conflict is a defect.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, overload

import numpy as np

from sas.data.entries import Reopened
from sas.data.formats.codes import LOST_WITH_A_WARNING, NO_OBJECT
from sas.data.formats.raw import Action, Defect, RawObject, RawScene, Severity
from sas.data.formats.segmentation import BadSegmentation, Note, decode
from sas.io import InputError
from sas.masks import overlap_areas
from sas.order import DEFAULT_MIN_OVERLAP
from sas.pictures import read_turned
from sas.scene import Scene

_Masks = tuple[np.ndarray, np.ndarray | None]
"""Amodal and visible mask of an object."""
logger = logging.getLogger(__name__)

Tell = Callable[[Severity, str, str, Action, str], None]
"""Takes a defect: severity, code, words, action, object."""

COVERS_ALL = 0.95
"""Share of the picture above which a region of stuff is reported."""
ROUNDING = 0.02
"""Share of a visible mask that may lie outside its amodal mask, as polygons and RLE of one outline do, without a word."""


class AnnotatedScenes(Reopened, Sequence[Scene], ABC):
    """Lazy scenes of an annotated data set: a picture is read when it is asked for.

    order_cure, picture_cure: what to do where the format could say who is in front and does not, and where its pictures are missing; ""
    if there is nothing of its own to say. picture_once: no two records are of one picture.
    """

    min_overlap: float = DEFAULT_MIN_OVERLAP
    order_cure: str = ""
    picture_cure: str = ""
    picture_once: bool = True

    @cached_property
    def counts(self) -> Counter[str]:
        """Defects by code in all scenes that were asked for by index; a scene counts each time."""
        return Counter()

    @cached_property
    def told(self) -> set[str]:
        """What was already told of by logging; add "lost" or "order-unknown" to tell it yourself."""
        return set()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def raw(self, index: int) -> tuple[RawScene, list[Defect]]:
        """What the file says of picture `index`, and what was wrong with the record itself."""

    def file_defects(self) -> list[Defect]:
        """Defects of the file as a whole: ids used twice, categories never used. May read the whole file."""
        return []

    def inspect(self, index: int) -> tuple[Scene | None, list[Defect]]:
        """Scene `index`, or None if it is refused, with all its defects."""
        raw, defects = self.raw(index)
        if any(defect.action == "refuse" for defect in defects):
            return None, defects
        scene, more = assemble(raw, min_overlap=self.min_overlap)
        if scene is not None and any(
            defect.action == "drop" and defect.object and defect.code not in NO_OBJECT for defect in defects
        ):
            scene = replace(scene, complete=False)  # the reader has left an object out
        return scene, defects + more

    @overload
    def __getitem__(self, index: int) -> Scene: ...
    @overload
    def __getitem__(self, index: slice) -> list[Scene]: ...
    def __getitem__(self, index: int | slice) -> Scene | list[Scene]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        scene, defects = self.inspect(index % len(self))
        self._tell_once(defects)
        if scene is None:
            first = next(defect for defect in defects if defect.action == "refuse")
            cure = (
                f"{self.picture_cure}; or "
                if first.code == "image-missing" and self.picture_cure
                else "mend the file, or "
            )
            raise InputError(
                f"image {first.image} cannot be used: {first.code}: {first.words}; {cure}write a cleaned copy with "
                "`sas data check PATH --format NAME --repair OUT`"
            )
        return scene

    def _tell_once(self, defects: Sequence[Defect]) -> None:
        """Say, the first time, that objects or parts of them are left out, and that the order of some is unknown."""
        self.counts.update(defect.code for defect in defects)
        lost = [
            one
            for one in defects
            if (one.severity == "error" and one.action in ("drop", "repair"))
            or (one.code in (*LOST_WITH_A_WARNING, "behind-lost") and one.action == "drop")
        ]
        if lost and "lost" not in self.told:
            self.told.add("lost")
            logger.warning("%s; further ones are not told here: `sas data check` names them all", lost[0])
        open_pairs = [defect for defect in defects if defect.code == "order-unknown"]
        if open_pairs and "order-unknown" not in self.told:
            self.told.add("order-unknown")
            logger.warning(
                "%s; pairs like this in the picture: %d. Neither counts as in front, so layers taught from them may be wrong. Further "
                "pictures are not told here: `sas data check` names them all",
                open_pairs[0],
                len(open_pairs),
            )


def bare(image: str) -> Defect:
    """Nothing is drawn in a picture, which may be so, or nobody has looked at it yet."""
    words = "no annotation is of this picture; it is read as one without objects"
    return Defect("warning", "unannotated", words, "keep", image=image)


def assemble(raw: RawScene, *, min_overlap: float = DEFAULT_MIN_OVERLAP) -> tuple[Scene | None, list[Defect]]:
    """Scene of a raw record and its defects; None if the picture is refused."""
    defects: list[Defect] = []

    def tell(severity: Severity, code: str, words: str, action: Action, object: str = "") -> None:
        defects.append(Defect(severity, code, words, action, image=raw.id, object=object))

    # 1. The picture.
    image = read_picture(raw, tell)
    if image is None:
        return None, defects

    # 2. The masks of each object.
    read = [_masks(raw, one, image.shape[:2], tell) for one in raw.objects]
    for at, front in _behind_lost(raw, read, image.shape[:2], min_overlap).items():
        words = f"it lies behind {front}, which is left out: without that it would count as nearer than it is"
        tell("warning", "behind-lost", words, "drop", raw.objects[at].id)
        read[at] = "lost"
    kept = [one for one, masks in zip(raw.objects, read, strict=True) if isinstance(masks, tuple)]
    found = [masks for masks in read if isinstance(masks, tuple)]
    lost = [one for one, masks in zip(raw.objects, read, strict=True) if masks == "lost"]
    amodal = np.zeros((len(kept), *image.shape[:2]), dtype=bool)
    for row, (full, _) in enumerate(found):
        amodal[row] = full
    seen = [visible for _, visible in found]
    whole = [visible for visible in seen if visible is not None]
    visible_masks = np.stack(whole) if whole and len(whole) == len(kept) else None

    # 3. Who is in front.
    scene = Scene(
        image=image,
        amodal_masks=amodal,
        order_matrix=infer_order(raw, kept, amodal, seen, tell, min_overlap=min_overlap),
        names=tuple(one.name for one in kept),
        id=raw.id,
        visible_masks=visible_masks,
        min_overlap=min_overlap,
        source=str(raw.image),
        dropped=read.count("unseen"),
        complete=not lost,
        known=_known(lost, image.shape[:2], found) if lost else None,
    )
    if scene.order_matrix is None:
        return scene, defects
    if cut := scene.assignment.cut_edges:
        words = ", ".join(f"{kept[i].id} in front of {kept[j].id}" for i, j in cut)
        tell("warning", "order-cycle", f"the order runs in a circle; for the layers it is cut at {words}", "repair")
    for one, part in zip(kept, scene.visible, strict=True):
        if not part.any():
            tell("warning", "invisible", "no pixel of the object is visible behind those in front", "drop", one.id)
    return scene.drop_invisible(), defects


def _behind_lost(
    raw: RawScene,
    read: Sequence[_Masks | Literal["lost", "unseen", "empty"]],
    size: tuple[int, ...],
    min_overlap: float,
) -> dict[int, str]:
    """Objects behind one that is lost, or behind such a one: their places in the record, each with the id of what hides it. Of lost ones
    counts what can be read of their masks, and what the file states of them in pairs."""
    if "lost" not in read or not raw.ordered:
        return {}
    places = [at for at, masks in enumerate(read) if masks == "lost" or isinstance(masks, tuple)]
    objects = [raw.objects[at] for at in places]
    shown = [masks[1] for masks in read if isinstance(masks, tuple)]
    known = [visible for visible in shown if visible is not None]
    masks: list[_Masks] = []
    for at, one in zip(places, objects, strict=True):
        own = read[at]
        if not isinstance(own, tuple):
            full, visible = _readable(one, size)
            if visible is None and len(known) == len(shown):
                visible = full & ~np.any(known, axis=0) if known else full  # where nothing else is seen
            own = full, visible
        masks.append(own)
    full = np.stack([one[0] for one in masks])
    order = infer_order(raw, objects, full, [one[1] for one in masks], lambda *_: None, min_overlap=min_overlap)
    assert order is not None
    shared = overlap_areas(full)
    areas = np.diagonal(shared)
    order &= (shared > min_overlap * areas[None, :]) | (areas == 0)[:, None]  # without a mask, what the file states
    behind: dict[int, str] = {}
    fronts = [row for row, at in enumerate(places) if read[at] == "lost"]
    while fronts:
        front = fronts.pop()
        for row in np.flatnonzero(order[front]).tolist():
            if read[places[row]] != "lost" and places[row] not in behind:
                behind[places[row]] = objects[front].id
                fronts.append(row)
    return behind


def _readable(one: RawObject, size: tuple[int, ...]) -> _Masks:
    """All that is drawn of an object that is left out, and its visible mask, as far as they can be read."""
    found: dict[str, np.ndarray] = {}
    for name, mask in (("amodal", one.amodal), ("visible", one.visible), ("invisible", one.invisible)):
        if mask is not None:
            with suppress(BadSegmentation):
                found[name] = decode(mask, *size)[0]
    return np.any([np.zeros(size, dtype=bool), *found.values()], axis=0), found.get("visible")


def _known(lost: Sequence[RawObject], size: tuple[int, ...], found: Sequence[_Masks]) -> np.ndarray:
    """Where the truth is known although objects were left out: bool (H, W), False where those are, as far as their masks say, but for what is
    seen there of others."""
    known = np.ones(size, dtype=bool)
    for one in lost:
        known &= ~_readable(one, size)[0]
    for _, visible in found:
        if visible is not None:
            known |= visible
    return known


def read_picture(raw: RawScene, tell: Tell) -> np.ndarray | None:
    """uint8 (H, W, 3), None if it is missing, damaged or of another size than its record says."""
    if not raw.image.is_file():
        tell("error", "image-missing", f"there is no file {raw.image}", "refuse", "")
        return None
    try:
        image, orientation = read_turned(raw.image)
    except InputError as error:
        tell("error", "image-damaged", str(error), "refuse", "")
        return None
    height, width = image.shape[:2]
    if raw.size is not None and raw.size != (height, width):
        declared = f"{raw.size[1]}x{raw.size[0]}"
        words = f"the file says {declared} (width x height), {raw.image.name} has {width}x{height}"
        if raw.size == (width, height) and orientation != 1:
            words += (
                ": the picture is shown turned (EXIF orientation), the annotation is of it as it is stored; remove the orientation from the "
                "picture"
            )
        tell("error", "image-size", words, "refuse", "")
        return None
    if orientation in (2, 3, 4) or (orientation != 1 and height == width):
        words = f"{raw.image.name} is shown turned or mirrored (EXIF orientation {orientation}), and its size does not say which the masks are of"
        tell("warning", "image-turned", words, "keep", "")
    return image


def _masks(
    raw: RawScene, one: RawObject, size: tuple[int, ...], tell: Tell
) -> _Masks | Literal["lost", "unseen", "empty"]:
    """Amodal and visible mask (None if unknown) of an object, bool (H, W); if it is dropped, which is told, what it was: an object
    that the picture shows, one that it does not show, or none."""
    height, width = size
    if one.lost:
        return "lost"
    if one.crowd:
        tell("warning", "crowd", "a crowd region is not one object", "drop", one.id)
        return "lost"
    try:
        full, notes = decode(one.amodal, height, width)
        seen = _part("visible", one.visible, height, width, notes)
    except BadSegmentation as error:
        tell(error.severity, error.code, str(error), "drop", one.id)
        return "lost"
    try:
        hidden = _part("invisible", one.invisible, height, width, notes)
    except BadSegmentation as error:
        tell(error.severity, error.code, str(error), "drop" if seen is None else "keep", one.id)
        if seen is None:
            return "lost"
        hidden = None  # it would say nothing that the visible mask does not
    for severity, code, words, action in notes:
        tell(severity, code, words, action, one.id)
    if seen is None and hidden is not None:
        seen = full & ~hidden
    if seen is None and raw.unoccluded_by_default:
        seen = full
    if seen is not None and seen.any() and not full.any():
        tell("error", "field", "the visible mask has pixels in the picture, the amodal mask has none", "drop", one.id)
        return "lost"
    if seen is not None and (seen & ~full).any():
        share = float((seen & ~full).sum() / seen.sum())
        if share > ROUNDING:
            words = f"{share:.1%} of the visible mask lies outside the amodal mask, which is widened"
            tell("warning", "visible-outside", words, "repair", one.id)
        full = full | seen
    if not full.any():
        tell("warning", "mask-empty", "the amodal mask has no pixel in the picture", "drop", one.id)
        return "empty"
    if seen is not None and not seen.any():
        tell("warning", "invisible", "no pixel of the object is visible", "drop", one.id)
        return "unseen"
    if one.stuff and full.mean() > COVERS_ALL:
        tell("warning", "covers-all", f"a region of stuff covers {full.mean():.0%} of the picture", "keep", one.id)
    return full, seen


def _part(name: str, segmentation: Any, height: int, width: int, notes: list[Note]) -> np.ndarray | None:
    """The visible or invisible part of an object, None if the file has none. An error says which of its masks is meant.

    Errors that were mended go to `notes`; a warning would repeat what is told of the amodal mask.
    """
    if segmentation is None:
        return None
    try:
        mask, more = decode(segmentation, height, width)
    except BadSegmentation as error:
        raise BadSegmentation(error.code, f"{name} mask: {error}") from error
    notes += [
        (severity, code, f"{name} mask: {words}", does) for severity, code, words, does in more if severity == "error"
    ]
    return mask


def infer_order(
    raw: RawScene,
    objects: Sequence[RawObject],
    amodal: np.ndarray,
    visible: Sequence[np.ndarray | None],
    tell: Tell,
    *,
    min_overlap: float = 0.0,
) -> np.ndarray | None:
    """Order matrix (N, N) of the kept objects by the rule of this module, None if the format has no order.

    amodal: bool (N, H, W). visible: bool (H, W) of each object, None where it is not known.
    `tell(severity, code, words, action, object)` takes the defects; nothing is told of two objects that share at most `min_overlap` of either.
    """
    if not raw.ordered:
        return None
    count = len(objects)
    place = {one.id: i for i, one in enumerate(objects)}
    order = np.zeros((count, count), dtype=bool)
    for front, behind in raw.pairs:
        if front == behind:
            words = f"the order says that {front} is in front of itself; the pair is left out"
            tell("warning", "order-object", words, "keep", front)
        elif front in place and behind in place:
            order[place[front], place[behind]] = True
    stated = order | order.T
    shared = overlap_areas(amodal) if count else np.zeros((0, 0), dtype=np.int64)
    areas = np.diagonal(shared)
    counts = shared > min_overlap * np.minimum(areas[:, None], areas[None, :])
    for i in range(count):
        for j in range(i + 1, count):
            if not shared[i, j] and not stated[i, j]:
                continue
            by_rank = _by_rank(objects[i], objects[j])
            by_sight = _by_sight(amodal[i] & amodal[j], visible[i], visible[j])
            if stated[i, j]:
                chosen = 0 if order[i, j] and order[j, i] else (1 if order[i, j] else -1)
            else:
                chosen = by_rank or by_sight
                if chosen:
                    order[(i, j) if chosen > 0 else (j, i)] = True
                elif counts[i, j]:
                    words = f"nothing says which of {objects[i].id} and {objects[j].id} is in front"
                    tell("warning", "order-unknown", words, "keep", objects[i].id)
            against = [
                word for word, sign in (("ranks", by_rank), ("visible masks", by_sight)) if chosen and sign == -chosen
            ]
            if against and counts[i, j]:
                a, b = (objects[i], objects[j]) if chosen > 0 else (objects[j], objects[i])
                words = (
                    f"{a.id} is taken to be in front of {b.id}, but the {' and the '.join(against)} say the opposite"
                )
                tell("warning", "order-conflict", words, "keep", a.id)
    return order


def _by_sight(shared: np.ndarray, a: np.ndarray | None, b: np.ndarray | None) -> int:
    """1 if a is the one seen on most of the shared pixels, -1 if b is, 0 if nothing says. One visible mask is enough: what it
    does not show there is hidden by the other."""
    seen_a = None if a is None else int((shared & a).sum())
    seen_b = None if b is None else int((shared & b).sum())
    total = int(shared.sum())
    if seen_a is None and seen_b is None:
        return 0
    return int(
        np.sign(
            (total - (seen_b or 0) if seen_a is None else seen_a)
            - (total - (seen_a or 0) if seen_b is None else seen_b)
        )
    )


def _by_rank(a: RawObject, b: RawObject) -> int:
    """1 if a is nearer by rank, -1 if b is, 0 if the ranks do not say."""
    if a.rank is None or b.rank is None or a.group != b.group:
        return 0
    return int(np.sign(b.rank - a.rank))
