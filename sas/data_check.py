"""Looks a data set over before it is trained on: what it holds, every defect on a line of its own, a report, and a cleaned copy.

A picture is looked at and let go, so that memory holds one picture, a few thumbnails and the defects. What a reader does about
a defect is decided in `sas.data.formats`; here it is told, and what no reader sees is added: pictures that were cut off without a
complaint of the decoder, ids that come twice, visible masks that only some objects have.
"""

from __future__ import annotations

import heapq
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from sas.data.folders import ProjectFolder, SASFolders, write_project
from sas.data.formats.assemble import ROUNDING, AnnotatedScenes
from sas.data.formats.raw import Action, Defect, RawScene
from sas.data.formats.segmentation import BadSegmentation, decode
from sas.io import InputError, atomic_folder, read_image, read_mask, write_json
from sas.masks import area
from sas.scene import Scene
from sas.visualize import image_grid, layer_colors, outline, tint

logger = logging.getLogger(__name__)

CLEAN, FAULTY, UNREADABLE = 0, 1, 2
"""Exit status: no defect of severity error; at least one; the data set cannot be read at all."""
REPORT_FILES = ("report.json", "report.md", "sheet.png")
SHEET, WORST, CELL = 24, 12, 240
"""Pictures on the sheet; places on it for those with the most defects; side of a place in pixels."""


# ---------------------------------------------------------------------- what the codes mean


@dataclass(frozen=True)
class Meaning:
    """A code of a defect. severity: that of its lines, or both where it depends. One sentence each: what it means, why it hurts, how to mend it."""

    severity: str
    means: str
    hurts: str
    mend: str


CODES: dict[str, Meaning] = {
    # The picture.
    "image-missing": Meaning(
        "error",
        "The annotations name a picture that is not on disk.",
        "Without its picture an annotation teaches nothing.",
        "Copy the picture to the place named, or name the right folder of pictures.",
    ),
    "image-damaged": Meaning(
        "error",
        "The file of a picture cannot be decoded: it is empty, truncated or no picture at all.",
        "Training would stop at this file.",
        "Download or copy the picture again.",
    ),
    "image-cut": Meaning(
        "error",
        "A JPEG has no end mark, as a download leaves it that stopped half way.",
        "The decoder does not complain, but the lower part of the picture may be plain grey, and masks there lie on nothing.",
        "Download or copy the picture again; a cleaned copy leaves it out.",
    ),
    "image-size": Meaning(
        "error",
        "A picture has another width or height than its annotation says.",
        "Every mask would lie in the wrong place.",
        "Put the original picture back, not a scaled or turned one.",
    ),
    "image-unknown": Meaning(
        "error",
        "An annotation is of a picture that the file does not list.",
        "Without its picture it teaches nothing.",
        "Add the record of the picture, or remove the annotation; many of them say that two files were mixed up.",
    ),
    "image-twice": Meaning(
        "error",
        "Two pictures have the same id or name.",
        "Nobody can tell to which of them an annotation belongs, and one may be counted twice in a score.",
        "Give each picture its own id, or remove one; a cleaned copy gives the later one the ending -2.",
    ),
    # The record.
    "json": Meaning(
        "error",
        "A file is no valid JSON.",
        "Nothing in it can be read.",
        "Export the file again, or mend the line that the message names.",
    ),
    "field": Meaning(
        "error",
        "A field of the annotation is missing or holds something else than it should.",
        "What it describes has to be left out.",
        "Correct the field, or export the annotation again.",
    ),
    "unreadable": Meaning(
        "error",
        "A record or a data set cannot be read for a reason that no other code names.",
        "What it describes has to be left out.",
        "Follow the message; if it makes no sense, write the data again.",
    ),
    "object-twice": Meaning(
        "error",
        "Two objects have the same id.",
        "The order cannot tell them apart, and an object may be there twice.",
        "Give each object its own id, or remove the copy.",
    ),
    "category-unknown": Meaning(
        "warning",
        "An annotation is of a category that the file does not list.",
        "The object has a number in place of a name, which matters only where names do.",
        "Add the category to the list, or correct the number.",
    ),
    "unannotated": Meaning(
        "warning",
        "A picture has no annotation at all.",
        "If it shows objects, training learns from it that there are none.",
        "Annotate the picture, or remove it from the list; if it really shows nothing, all is well.",
    ),
    "category-unused": Meaning(
        "warning",
        "A category is declared and no annotation is of it.",
        "It is harmless by itself, but objects may have been lost, or put under another category.",
        "Nothing need be done if that is as it should be.",
    ),
    # Masks.
    "polygon-points": Meaning(
        "error",
        "A polygon has fewer than three points.",
        "It encloses nothing, so a part of the object, or all of it, is missing.",
        "Draw the outline again, or remove the object.",
    ),
    "rle-size": Meaning(
        "error",
        "A run-length encoded mask (RLE) does not fit the size of its picture.",
        "Its pixels would land in the wrong places.",
        "Encode the mask again at the size of the picture.",
    ),
    "mask-size": Meaning(
        "error",
        "A mask has another size than its picture.",
        "Its pixels would land in the wrong places.",
        "Export the mask again at the size of the picture.",
    ),
    "mask-missing": Meaning(
        "error",
        "The file of a mask is not on disk.",
        "The object has to be left out though the picture shows it.",
        "Copy the file to the place named.",
    ),
    "mask-damaged": Meaning(
        "error",
        "The file of a mask cannot be decoded.",
        "The object has to be left out though the picture shows it.",
        "Copy or export the file again.",
    ),
    "mask-twice": Meaning(
        "error",
        "Two masks of one picture have the same name.",
        "The order cannot tell them apart.",
        "Rename or remove one of them.",
    ),
    "shape-kind": Meaning(
        "error",
        "A shape is of a kind that encloses nothing, such as a line or a point.",
        "It has no mask, so it is no object.",
        "Draw the object as a polygon, or remove the shape.",
    ),
    "mask-empty": Meaning(
        "warning",
        "A mask has no pixel in the picture: it is empty, or all of it lies outside.",
        "It teaches nothing, and it would count as an object.",
        "Nothing need be done, the object is left out; if the picture shows it, draw its mask.",
    ),
    "outside": Meaning(
        "warning; error if the object is lost",
        "A mask reaches beyond the border of the picture.",
        "A little is harmless, but a lot says that picture and annotation do not belong together.",
        "Nothing need be done where it is cut at the border; look at the sheet to see whether the masks fit.",
    ),
    "mask-range": Meaning(
        "warning",
        "A mask is stored with small numbers, such as 0 and 1, instead of 0 and 255.",
        "Cut at 127 it would be empty, so everything above 0 is taken as inside, which may be wrong.",
        "Save masks with 0 and 255.",
    ),
    "mask-grey": Meaning(
        "warning",
        "A mask holds values between 0 and 255, as a mask saved as JPEG does.",
        "Its outline is off by a pixel or two after the cut at 127.",
        "Save masks as PNG.",
    ),
    "crowd": Meaning(
        "warning",
        "A region stands for a crowd of objects.",
        "A crowd has no single complete shape to learn.",
        "Nothing need be done, the region is left out and the picture counts as not fully annotated.",
    ),
    "covers-all": Meaning(
        "warning",
        "A region of background (stuff) covers nearly the whole picture.",
        "It becomes a layer that is the whole picture, which teaches nothing about objects.",
        "Read things without stuff where the format can, or remove the region.",
    ),
    "invisible": Meaning(
        "warning",
        "No pixel of an object can be seen.",
        "Nothing in the picture tells that the object is there, so nobody can learn to find it.",
        "Nothing need be done, the object is left out.",
    ),
    "visible-outside": Meaning(
        "warning",
        "A part of what is seen of an object lies outside its complete mask.",
        "What is seen of an object belongs to it, so one of the two masks is wrong.",
        "Nothing need be done, the complete mask is widened; look at the object if the share is large.",
    ),
    "visible-some": Meaning(
        "warning",
        "Only some objects of a picture have a visible mask.",
        "What is seen of the others is unknown, so the given ones are not used, and what is seen follows from the order alone.",
        "Give every object a visible mask, or none.",
    ),
    # The order.
    "order-cycle": Meaning(
        "warning",
        "The order runs in a circle: A before B, B before C, C before A.",
        "Objects in a circle have no layers.",
        "Nothing need be done, the circle is cut where the fewest pixels speak for it; or correct the order.",
    ),
    "order-conflict": Meaning(
        "warning",
        "Two sources of the order, such as ranks and visible masks, disagree on who is in front.",
        "The stronger source wins, but a wrong order teaches wrong layers.",
        "Look at the two objects and correct the source that is wrong; a few in a large set are harmless.",
    ),
    "order-unknown": Meaning(
        "warning",
        "Two objects overlap and nothing says which is in front.",
        "Both may land in the same layer, whose mask then joins them.",
        "State the order of the two objects.",
    ),
    "order-object": Meaning(
        "warning",
        "The order names an object that is not there.",
        "The pair says nothing; it may be a slip of the pen that was meant for another object.",
        "Correct the name, or remove the pair.",
    ),
    "order-file": Meaning(
        "error",
        "The file of the order cannot be understood.",
        "Without it nobody knows who is in front.",
        "Write it as the message says, or remove it to do without an order.",
    ),
}

GLOSSARY = """\
- **visible mask**: the pixels at which an object is seen.
- **modal**: of what is seen; a modal mask is a visible mask.
- **amodal**: of the whole object, hidden parts included; an amodal mask holds the visible mask.
- **occluded**: partly or wholly hidden by something in front; the occlusion rate is the hidden share of the amodal mask.
- **occluder**: the object in front that hides another.
"""


def codes_table(codes: Iterable[str] = CODES) -> str:
    """What codes mean, as a table in Markdown."""
    rows = ["| code | severity | what it means | why it hurts | how to mend it |", "|---|---|---|---|---|"]
    for code in codes:
        about = CODES.get(code, CODES["unreadable"])
        rows.append(f"| `{code}` | {about.severity} | {about.means} | {about.hurts} | {about.mend} |")
    return "\n".join(rows) + "\n"


# ---------------------------------------------------------------------- the report


@dataclass
class Report:
    """What was found in a data set. Objects are counted as the reader gives them, without those it leaves out.

    listed: pictures of the set; pictures: those looked at; readable: those that were not refused. visible, ordered: objects in pictures
    with visible masks, with a known order. sizes: pictures by (height, width). layers: pictures by their number of layers. depths: objects by
    layer_index. rates: objects by occlusion rate, [0] none hidden, [k] more than (k - 1) * 10 and at most k * 10 percent.
    """

    data: str = ""
    listed: int = 0
    pictures: int = 0
    readable: int = 0
    objects: int = 0
    visible: int = 0
    ordered: int = 0
    repaired: int | None = None
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    layers: Counter[int] = field(default_factory=Counter)
    depths: Counter[int] = field(default_factory=Counter)
    rates: list[int] = field(default_factory=lambda: [0] * 11)
    defects: list[Defect] = field(default_factory=list)

    @property
    def errors(self) -> int:
        return sum(defect.severity == "error" for defect in self.defects)

    @property
    def warnings(self) -> int:
        return len(self.defects) - self.errors

    @property
    def conflicts(self) -> int:
        """Pairs of objects whose order is told in two ways that disagree."""
        return sum(defect.code == "order-conflict" for defect in self.defects)

    @property
    def status(self) -> int:
        """Exit status."""
        return FAULTY if self.errors else CLEAN

    def __str__(self) -> str:
        """The counts on one line."""
        counts = f"pictures={self.pictures} objects={self.objects} errors={self.errors} warnings={self.warnings}"
        return counts if self.repaired is None else f"{counts} repaired={self.repaired}"

    def add(self, scene: Scene) -> None:
        """Count a scene that `mend` has been over."""
        self.readable += 1
        self.objects += len(scene)
        self.sizes[scene.height, scene.width] += 1
        if scene.visible_masks is not None:
            self.visible += len(scene)
        if scene.order_matrix is not None:
            self.ordered += len(scene)
            self.layers[int(scene.layer_index.max(initial=-1)) + 1] += 1
            self.depths.update(scene.layer_index.tolist())
        if scene.visible_masks is not None or scene.order_matrix is not None:
            full = area(scene.amodal_masks)
            hidden = full - area(scene.visible & scene.amodal_masks)
            for part, whole in zip(hidden.tolist(), full.tolist(), strict=True):
                self.rates[-(-10 * part // whole)] += 1  # whole numbers, so that 3 of 10 pixels are 30 percent exactly

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        names = ("data", "listed", "pictures", "readable", "objects", "visible", "ordered", "repaired")
        return {
            "format_version": 1,
            **{name: getattr(self, name) for name in names},
            "errors": self.errors,
            "warnings": self.warnings,
            "order_conflicts": self.conflicts,
            "codes": dict(sorted(Counter(defect.code for defect in self.defects).items())),
            "sizes": [{"height": h, "width": w, "pictures": count} for (h, w), count in self.sizes.most_common()],
            "pictures_by_layers": {str(layers): count for layers, count in sorted(self.layers.items())},
            "objects_by_layer_index": {str(depth): count for depth, count in sorted(self.depths.items())},
            "objects_by_occlusion_rate": [
                {"above": max(0, k - 1) / 10 if k else None, "up_to": k / 10, "objects": count}
                for k, count in enumerate(self.rates)
            ],
            "defects": [asdict(defect) for defect in self.defects],
        }


def line(defect: Defect) -> str:
    """A defect on one line, whatever ids and messages hold."""
    return " ".join(str(defect).split())


def markdown(report: Report, *, sheet: bool) -> str:
    """The report in plain words. sheet: whether there is a sheet.png to point to."""
    looked = f"{report.pictures}" if report.pictures == report.listed else f"{report.pictures} of {report.listed}"
    parts = [
        f"# Data check{' of ' + report.data if report.data else ''}\n",
        _verdict(report),
        "## What it holds\n",
        _table(
            ("", "count"),
            [
                ("pictures looked at", looked),
                ("of these readable", report.readable),
                ("objects in them", report.objects),
                ("objects with a visible mask", report.visible),
                ("objects whose order is known", report.ordered),
            ],
        ),
        "Without an order there are no layers: pictures whose order is unknown serve scores that need none, not training.\n"
        if report.ordered < report.objects
        else "",
        _bars("size (width x height)", "pictures", [(f"{w}x{h}", n) for (h, w), n in report.sizes.most_common(10)]),
        f"{len(report.sizes) - 10} more sizes are in report.json.\n" if len(report.sizes) > 10 else "",
        _bars("layers in a picture", "pictures", [(str(n), count) for n, count in sorted(report.layers.items())]),
        _bars("layer, 0 = nobody in front", "objects", [(str(n), count) for n, count in sorted(report.depths.items())]),
        _bars("hidden share of the object", "objects", list(zip(_rate_names(), report.rates, strict=True))),
        _found(report),
        _todo(report),
        "## Pictures\n\n![Pictures with their layers](sheet.png)\n\n"
        "Those with the most defects first, then some from all over the set. Nearest layers are warm, farthest cool; each object "
        "is tinted where it is seen, and outlined with its hidden part.\n"
        if sheet
        else "",
        f"## Words\n\n{GLOSSARY}",
    ]
    return "\n".join(part for part in parts if part)


def _verdict(report: Report) -> str:
    if not report.defects:
        return "Nothing is wrong with it.\n"
    words = f"{_many(report.errors, 'error')} and {_many(report.warnings, 'warning')}."
    if report.errors:
        words += " What an error names is lost or doubtful unless it is mended."
    return f"{words} A warning names something that was repaired, left out or only noticed: training works without mending it.\n"


def _found(report: Report) -> str:
    if not report.defects:
        return ""
    counts = Counter((defect.severity, defect.code) for defect in report.defects)
    places: dict[tuple[str, str], list[str]] = {}
    for defect in report.defects:
        few = places.setdefault((defect.severity, defect.code), [])
        if len(few) < 3 and (name := _cell(defect.image)) and name not in few:
            few.append(name)
    rows = [
        (*key, count, ", ".join(places[key]))
        for key, count in sorted(counts.items(), key=lambda kv: (kv[0][0], -kv[1]))
    ]
    codes = dict.fromkeys(code for _, code, _, _ in rows)
    conflicts = f"\nOrder conflicts: {report.conflicts}.\n" if report.conflicts else ""
    return (
        "## What was found\n\n"
        + _table(("severity", "code", "times", "first in pictures"), rows)
        + f"{conflicts}\nEvery single one stands in report.json.\n\n## What the codes mean\n\n{codes_table(codes)}"
    )


def _todo(report: Report) -> str:
    if report.repaired is not None:
        return f"## What to do\n\nA cleaned copy of {_many(report.repaired, 'picture')} was written; use that one.\n"
    if not report.defects:
        return "## What to do\n\nNothing.\n"
    first = (
        "1. Mend the errors at their source, by the table above, or let a cleaned copy leave them out: "
        "`sas data check PATH --format NAME --repair OUT` writes one in the project format and never touches the original.\n"
        if report.errors
        else "1. Nothing has to be mended; `--repair OUT` writes a copy in which the warnings are settled.\n"
    )
    return f"## What to do\n\n{first}2. Look at the pictures: do the outlines fit what you see?\n"


def _rate_names() -> list[str]:
    return ["nothing", *(f"{low} to {low + 10} %" for low in range(0, 100, 10))]


def _bars(label: str, counted: str, rows: list[tuple[str, int]]) -> str:
    """A histogram as a table, or nothing if nothing was counted."""
    most = max((count for _, count in rows), default=0)
    return _table((label, counted, ""), [(name, n, "#" * -(-24 * n // most)) for name, n in rows]) if most else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(str, cells)) + " |\n" for cells in lines)


def _cell(text: str) -> str:
    """A text fit for a cell of a table."""
    return " ".join(text.replace("|", "/").split())


def _many(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


# ---------------------------------------------------------------------- looking


def check(
    scenes: Sequence[Scene],
    *,
    limit: int | None = None,
    on_progress: Callable[[int, int], object] | None = None,
    on_defect: Callable[[Defect], object] | None = None,
) -> Report:
    """Look at every scene, or at the first `limit`, and report.

    scenes: `AnnotatedScenes`, or any lazy sequence whose items raise when they cannot be read. on_progress: told after each picture how many are
    done and how many there are. on_defect: told of each defect as it is found. InputError if the set as a whole cannot be read.
    """
    report = Report()
    for _ in _walk(scenes, report, limit=limit, on_progress=on_progress, on_defect=on_defect):
        pass
    return report


def _walk(
    scenes: Sequence[Scene],
    report: Report,
    *,
    limit: int | None = None,
    on_progress: Callable[[int, int], object] | None = None,
    on_defect: Callable[[Defect], object] | None = None,
    sheet: _Sheet | None = None,
) -> Iterator[Scene]:
    """The scenes worth keeping, mended, one at a time, while the report fills."""

    def tell(defects: Iterable[Defect]) -> None:
        for defect in defects:
            report.defects.append(defect)
            if on_defect is not None:
                on_defect(defect)

    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}; leave it out to look at all pictures")
    report.listed = len(scenes)
    total = report.listed if limit is None else min(limit, report.listed)
    if isinstance(scenes, AnnotatedScenes):
        try:
            of_file = scenes.file_defects()
        except Exception as error:
            raise _CannotRead(_words(error)) from error
        tell(of_file)
        refused = [line(defect) for defect in of_file if defect.action == "refuse"]
        if refused:  # every picture would be refused for the same reason
            raise _CannotRead(refused[0], told=True)
    known_twice = {defect.image for defect in report.defects if defect.code == "image-twice"}
    taken: set[str] = set()
    for index in range(total):
        id, scene, defects = _look(scenes, index)
        if id in taken and id not in known_twice:
            defects.append(Defect("error", "image-twice", "an earlier picture has the same id", "keep", image=id))
        taken.add(id)
        tell(defects)
        report.pictures += 1
        if scene is not None:
            report.add(scene)
            if sheet is not None:
                sheet.offer(index, total, scene, defects)
            if not any(defect.code == "image-cut" for defect in defects):
                yield scene
        if on_progress is not None:
            on_progress(index + 1, total)


def _look(scenes: Sequence[Scene], index: int) -> tuple[str, Scene | None, list[Defect]]:
    """Id, mended scene and defects of a picture; no scene if it is refused."""
    id = f"#{index + 1}"
    try:
        if isinstance(scenes, AnnotatedScenes):
            raw, _ = scenes.raw(index)
            id = raw.id
            scene, defects = scenes.inspect(index)
            if scene is not None:
                defects = [*defects, *_overlooked(raw, scene, defects)]
        else:
            id = _id(scenes, index)
            scene = scenes[index]
            id, defects = scene.id, list(_findings(scene))
        return id, None if scene is None else mend(scene), list(defects)
    except Exception as error:  # hostile data raises nearly every kind, and one picture must not end the whole check
        return id, None, [replace(_diagnosis(scenes, index, error), image=id)]


def _overlooked(raw: RawScene, scene: Scene, defects: Sequence[Defect]) -> Iterator[Defect]:
    """What is wrong with a picture that its reader took without a word."""
    if _cut_off(raw.image):
        words = f"{raw.image.name} has no end mark, its lower part may be missing"
        yield Defect("error", "image-cut", words, "keep", image=raw.id)
    told = {defect.object for defect in defects if defect.code.endswith("-twice")}
    for one, times in Counter(one.id for one in raw.objects).items():
        if times > 1 and one not in told:
            yield Defect("error", "object-twice", f"{times} objects have this id", "keep", image=raw.id, object=one)
    some = sum(one.visible is not None or one.invisible is not None for one in raw.objects)
    if some and len(scene) and scene.visible_masks is None:
        words = f"only {some} of {len(raw.objects)} objects have a visible mask; none is used"
        yield Defect("warning", "visible-some", words, "drop", image=raw.id)


def _cut_off(path: Path) -> bool:
    """Whether a JPEG has no end mark (EOI) behind its picture data. Pillow takes zeros in its place for plain grey, without an error."""
    data = path.read_bytes()
    if not data.startswith(b"\xff\xd8"):
        return False
    at = 2
    while (
        data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda"
    ):  # segments before the data may hold thumbnails
        at += 1 if data[at + 1 : at + 2] == b"\xff" else 2 + int.from_bytes(data[at + 2 : at + 4])
    return b"\xff\xd9" not in data[at:]


def _findings(scene: Scene) -> Iterator[Defect]:
    """Defects of a scene that comes without a record of its annotation. Objects are named by their place, from 0."""
    does: Action = "drop" if scene.order_matrix is not None or scene.visible_masks is not None else "keep"
    seen = scene.visible if does == "drop" else None
    for i, full in enumerate(scene.amodal_masks):
        if not full.any():
            yield Defect("warning", "mask-empty", "the amodal mask has no pixel in the picture", does, scene.id, str(i))
        elif seen is not None and not seen[i].any():
            yield Defect("warning", "invisible", "no pixel of the object is visible", does, scene.id, str(i))
        elif seen is not None and (share := float((seen[i] & ~full).sum() / seen[i].sum())) > ROUNDING:
            words = f"{share:.1%} of the visible mask lies outside the amodal mask"
            yield Defect("warning", "visible-outside", words, "keep", scene.id, str(i))
    if scene.order_matrix is not None and scene.assignment.cut_edges:
        cut = ", ".join(f"{i} in front of {j}" for i, j in scene.assignment.cut_edges)
        words = f"the order runs in a circle; for the layers it is cut at {cut}"
        yield Defect("warning", "order-cycle", words, "repair", scene.id)


def mend(scene: Scene) -> Scene:
    """The scene as a cleaned copy holds it: amodal masks widened to what is seen, objects without a pixel left out, no circle in the order."""
    if scene.visible_masks is not None and (scene.visible_masks & ~scene.amodal_masks).any():
        scene = replace(scene, amodal_masks=scene.amodal_masks | scene.visible_masks)
    filled = area(scene.amodal_masks) > 0
    if not filled.all():
        order, seen = scene.order_matrix, scene.visible_masks
        scene = replace(
            scene,
            amodal_masks=scene.amodal_masks[filled],
            order_matrix=None if order is None else order[np.ix_(filled, filled)],
            visible_masks=None if seen is None else seen[filled],
            names=tuple(name for name, keep in zip(scene.names, filled, strict=True) if keep),
            alternatives=tuple(masks[filled] for masks in scene.alternatives),
            dropped=scene.dropped + int((~filled).sum()),
        )
    scene = scene.drop_invisible()
    if scene.order_matrix is None or not scene.assignment.cut_edges:
        return scene
    order = scene.order_matrix.copy()
    order[tuple(np.transpose(scene.assignment.cut_edges))] = False
    return replace(scene, order_matrix=order)


# ---------------------------------------------------------------------- why a scene cannot be read


def _id(scenes: Sequence[Scene], index: int) -> str:
    """Id of a scene that may not be readable, its number from 1 if nothing better is known."""
    if isinstance(scenes, SASFolders):
        return scenes.ids[index]
    try:
        if isinstance(scenes, ProjectFolder):
            return str(json.loads(scenes.lines[index])["id"])
        named = getattr(scenes, "scene_id", None)
        return f"#{index + 1}" if named is None else str(named(index))
    except Exception:  # what is wrong is told when the scene itself is read
        return f"#{index + 1}"


def _diagnosis(scenes: Sequence[Scene], index: int, error: Exception) -> Defect:
    """The defect behind an error of reading scene `index`."""

    def refused(code: str, words: str, object: str = "") -> Defect:
        return Defect("error", code, words, "refuse", object=object)

    try:
        if isinstance(scenes, ProjectFolder):
            try:
                entry = json.loads(scenes.lines[index])
            except ValueError as fault:
                return refused("json", f"line {index + 1} of scenes.jsonl is no valid JSON ({fault})")
            path, size = scenes.path / entry["file"], (entry["height"], entry["width"])
            objects = {str(i): [one["segmentation"], one.get("visible")] for i, one in enumerate(entry["objects"])}
        elif isinstance(scenes, SASFolders):
            folders = scenes.folders[scenes.ids[index]]
            path, size = folders[0] / "image.png", None
            objects = {folder.name: [folder / "mask.png"] for folder in folders}
        else:
            broken = isinstance(error.__cause__, json.JSONDecodeError | UnicodeDecodeError)
            return refused("json" if broken else "unreadable", _words(error))
        if not path.is_file():
            return refused("image-missing", f"there is no file {path}")
        try:
            image = read_image(path)
        except InputError as fault:
            return refused("image-damaged", str(fault))
        height, width = image.shape[:2]
        if size is not None and size != (height, width):
            words = f"the file says {size[1]}x{size[0]} (width x height), {path.name} has {width}x{height}"
            return refused("image-size", words)
        for name, masks in objects.items():
            for mask in masks:
                try:
                    if isinstance(mask, Path):  # SAS folders store 1 for inside now and then, which is no defect there
                        _check_mask_file(mask, height, width)
                    elif mask is not None:
                        decode(mask, height, width)
                except BadSegmentation as fault:
                    return refused(fault.code, str(fault), name)
    except (KeyError, TypeError, AttributeError, IndexError) as fault:
        return refused("field", f"a field is missing or odd ({_words(fault)})")
    known = "field" if isinstance(error, KeyError | TypeError | AttributeError | IndexError) else "unreadable"
    return refused(known, _words(error))


def _check_mask_file(path: Path, height: int, width: int) -> None:
    try:
        mask = read_mask(path, threshold=0)
    except InputError as error:
        raise BadSegmentation("mask-damaged", str(error)) from error
    if mask.shape != (height, width):
        words = f"{path.name} has {mask.shape[1]}x{mask.shape[0]} pixels, the picture {width}x{height}"
        raise BadSegmentation("mask-size", words)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


# ---------------------------------------------------------------------- the sheet


class _Sheet:
    """Thumbnails of the pictures with the most defects, and of some spread evenly over the set."""

    def __init__(self) -> None:
        self.worst: list[tuple[tuple[int, int], int, str, np.ndarray]] = []
        self.spread: dict[int, tuple[str, np.ndarray]] = {}

    def offer(self, index: int, total: int, scene: Scene, defects: Sequence[Defect]) -> None:
        errors = sum(defect.severity == "error" for defect in defects)
        score = (errors, len(defects) - errors)
        bad = bool(defects) and (len(self.worst) < WORST or (score, -index) > self.worst[0][:2])
        # Picture `index` is the first of its stretch, if the set is cut into as many stretches as the sheet has places.
        even = index == 0 or index * SHEET // total != (index - 1) * SHEET // total
        if not bad and not even:
            return
        told = f": {errors} err, {score[1]} warn" if defects else ""
        caption, thumbnail = f"{scene.id}{told}", draw(scene)
        if even:
            self.spread[index] = caption, thumbnail
        if bad:
            keep = heapq.heappush if len(self.worst) < WORST else heapq.heapreplace
            keep(self.worst, (score, -index, caption, thumbnail))  # no two have one index, so no pictures are compared

    def picture(self) -> np.ndarray | None:
        """uint8 (H, W, 3), None if no picture was readable."""
        first = sorted(self.worst, key=lambda entry: entry[:2], reverse=True)
        shown = {-place: (caption, thumbnail) for _, place, caption, thumbnail in first}
        shown |= {index: entry for index, entry in self.spread.items() if index not in shown}
        entries = list(shown.values())[:SHEET]
        if not entries:
            return None
        captions, pictures = zip(*entries, strict=True)
        return image_grid(pictures, columns=min(6, len(pictures)), captions=captions, cell=CELL)


def draw(scene: Scene) -> np.ndarray:
    """The picture, each object tinted where it is seen and outlined in full, by its layer, or one by one without an order.

    uint8 (h, w, 3), thinned out to at most twice the side of a place on the sheet.
    """
    step = -(-max(scene.height, scene.width) // (2 * CELL))
    canvas = np.ascontiguousarray(scene.image[::step, ::step])
    ordered = scene.order_matrix is not None
    seen = scene.visible if ordered or scene.visible_masks is not None else scene.amodal_masks
    place = scene.layer_index if ordered else np.arange(len(scene))
    colors = layer_colors(int(place.max(initial=-1)) + 1)
    for i in range(len(scene)):
        canvas = tint(canvas, seen[i, ::step, ::step], color=colors[place[i]], alpha=0.45)
    for i in np.argsort(-place, kind="stable"):
        canvas = tint(canvas, outline(scene.amodal_masks[i, ::step, ::step], width=2), color=colors[place[i]], alpha=1)
    return canvas


# ---------------------------------------------------------------------- the whole run


def run_check(
    scenes: Sequence[Scene] | Callable[[], Sequence[Scene]],
    *,
    out: str | Path | None = None,
    repair: str | Path | None = None,
    limit: int | None = None,
    write: Callable[[str], object] = logger.info,
    data: str | Path | None = None,
) -> int:
    """Check a data set and tell each defect on a line as it is found, and the counts on the last; returns the exit status.

    scenes: the scenes, or a function that opens them; if it fails, that is a line too and the status is `UNREADABLE`. out: folder for
    report.json, report.md and sheet.png; an older report there is replaced. repair: new folder for a cleaned copy in the project format; what the reader
    drops or repairs is settled there, pictures that are refused or cut off are left out. limit: only the first pictures, in the copy too. write: takes
    a line. data: file or folder that is read, for the title of the report; the copy may not lie in it.

    InputError for a limit, folder or copy that cannot be; neither folder is then left half-written, and the data are never written to.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}; leave it out to look at all pictures")
    _check_targets(out, repair)
    report, sheet = Report(data="" if data is None else str(data)), _Sheet()

    def tell(defect: Defect) -> None:
        with tqdm.external_write_mode():
            write(line(defect))

    try:
        opened = _open(scenes)
        if repair is not None:
            _check_outside(repair, _sources(opened, data))
        with tqdm(
            total=min(len(opened), limit or len(opened)), unit="picture", disable=None, dynamic_ncols=True
        ) as bar:
            walk = _walk(opened, report, limit=limit, on_progress=lambda *_: bar.update(), on_defect=tell, sheet=sheet)
            if repair is not None:
                _write_copy(repair, walk, report)
            for _ in walk:
                pass
    except _CannotRead as error:
        if not error.told:
            report.defects.append(Defect("error", "unreadable", str(error), "refuse"))
            tell(report.defects[-1])
        write(str(report))
        return UNREADABLE
    if out is not None:
        _write_report(out, report, sheet.picture())
    write(str(report))
    if repair is not None and not report.repaired:
        raise InputError(f"cannot write {repair}: no picture is left to copy; mend the errors at their source first")
    return report.status


class _CannotRead(InputError):
    """The data set as a whole cannot be read. told: whether a defect of the report says so already."""

    def __init__(self, words: str, *, told: bool = False) -> None:
        super().__init__(words)
        self.told = told


def _open(scenes: Sequence[Scene] | Callable[[], Sequence[Scene]]) -> Sequence[Scene]:
    try:
        opened = scenes() if callable(scenes) else scenes
        len(opened)
    except Exception as error:  # as with one picture: whatever hostile data raise, it is a finding
        raise _CannotRead(_words(error)) from error
    return opened


def _write_copy(target: str | Path, walk: Iterator[Scene], report: Report) -> None:
    """Write the scenes as a project, each under an id of its own; nothing if there are none."""
    report.repaired = 0
    first = next(walk, None)
    if first is None:
        return

    def copied() -> Iterator[Scene]:
        taken: set[str] = set()
        for scene in chain([first], walk):
            if scene.min_overlap != first.min_overlap:
                raise InputError(
                    f"min_overlap must be the same in all scenes of a copy, got {first.min_overlap} and {scene.min_overlap} in "
                    f"{scene.id}; copy them apart"
                )
            plain = re.sub(r"[/\\\0]", "_", scene.id).lstrip(".") or "scene"
            names = chain([plain], (f"{plain}-{number}" for number in count(2)))
            id = next(name for name in names if name not in taken)
            taken.add(id)
            report.repaired = len(taken)
            yield scene if id == scene.id else replace(scene, id=id)

    write_project(target, copied(), min_overlap=first.min_overlap, generator="sas data check --repair")


def _write_report(out: str | Path, report: Report, picture: np.ndarray | None) -> None:
    with atomic_folder(out) as folder:
        write_json(folder / "report.json", report.as_json())
        (folder / "report.md").write_text(markdown(report, sheet=picture is not None), encoding="utf-8")
        if picture is not None:
            Image.fromarray(picture).save(folder / "sheet.png")


def _check_targets(out: str | Path | None, repair: str | Path | None) -> None:
    """InputError if a folder to be written is taken, or if one lies in the other."""
    for name, target, own in (("out", out, REPORT_FILES), ("repair", repair, ())):
        if target is None or not os.path.lexists(target):
            continue
        if not os.path.isdir(target):
            raise InputError(f"{name} must be a folder, got the file {target}; name a new folder")
        if any(entry not in own for entry in os.listdir(target)):
            raise InputError(f"{name} must be a new or empty folder, got {target}, which holds files; name another one")
    if out is not None and repair is not None:
        places = [Path(os.path.realpath(target)) for target in (out, repair)]
        if any(one == other or one in other.parents for one, other in (places, places[::-1])):
            raise InputError(f"out and repair must be folders apart, got {out} and {repair}; name another one")


def _sources(scenes: Sequence[Scene], data: str | Path | None) -> list[Path]:
    """Folders that the scenes are read from, as far as they tell."""
    named: list[Any] = [data, getattr(scenes, "path", None), getattr(scenes, "images", None)]
    if isinstance(scenes, AnnotatedScenes) and len(scenes):
        with suppress(Exception):  # the walk tells what is wrong with it
            named.append(scenes.raw(0)[0].image.parent)
    return [Path(os.path.realpath(one)) for one in named if isinstance(one, str | Path) and os.path.isdir(one)]


def _check_outside(repair: str | Path, sources: Iterable[Path]) -> None:
    place = Path(os.path.realpath(repair))
    for source in sources:
        if place == source or source in place.parents:
            raise InputError(f"repair must lie outside the data, got {repair} in {source}; name a folder elsewhere")
