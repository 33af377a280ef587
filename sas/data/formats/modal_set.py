"""COCO-style files whose masks show visible parts only (modal masks): one reader for training, for cutting objects out, and for the checker.

The file holds `images` [{id, file_name, width, height}], `annotations` [{id, image_id, category_id, segmentation, bbox, iscrowd}] and
`categories` [{id, name}], or other field names by a mapping; a segmentation is polygons or RLE. Nothing is claimed of hidden parts or
of the order. What cannot be used is left out, but an object whose mask cannot be decoded still stands in its picture: it counts as its
box, or as the whole picture if it has none. An annotation without an id of its own is named by its place in the picture.
"""

from __future__ import annotations

import difflib
import logging
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from sas.data.formats.assemble import AnnotatedScenes, read_picture
from sas.data.formats.coco import (
    COCO,
    PICTURE_CURE,
    WORDS,
    checked_fields,
    find_picture,
    picture_folder,
    scene_id,
    truth,
    unique,
)
from sas.data.formats.index import AnnotationIndex, listed
from sas.data.formats.raw import Action, Defect, RawObject, RawScene, Severity
from sas.data.formats.report import Uses
from sas.data.formats.segmentation import BadSegmentation, Note, decode
from sas.data.formats.shapes import number, picture_size
from sas.data.instances import Instance, Picture, Regions, WholeRule, bounds, counted
from sas.data.split import Part, part_of
from sas.io import InputError
from sas.masks import union
from sas.pictures import read_image
from sas.scene import Scene

logger = logging.getLogger(__name__)

MODAL_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "visible": WORDS["visible"],
        "box": "bounding box of that mask: x, y, width, height",
        **{word: WORDS[word] for word in COCO},
    }
)
"""What a mapping may name in a file of modal masks."""

MODAL: Mapping[str, str] = MappingProxyType({"visible": "segmentation", "box": "bbox", **COCO})
"""Names of COCO itself, which hold wherever a mapping does not say otherwise."""

NEEDED = ("visible", "id", "image_id", "file_name", "height", "width")


@dataclass(frozen=True)
class _Record:
    """What the file says of one picture. picture: None if its record cannot be used. segmentations: those of the instances."""

    raw: RawScene
    picture: Picture | None
    instances: tuple[Instance, ...]
    segmentations: tuple[Any, ...]
    defects: list[Defect]


class ModalSet(AnnotatedScenes):
    """A COCO-style file of modal masks and its folder of pictures.

    As a sequence: a scene for each picture that the file lists, whose `amodal_masks` are the modal masks and whose order is unknown, for
    the checker to look at. `pictures`, `instances` and `regions` are for cutting and completing objects: those that can be used.

    images: where the file names start from; None: the folder of the file. part: only the pictures of one part of the fixed division, by
    the SHA-256 of their file names; None: all. fields: a word of MODAL_WORDS -> name of the field in the file, "" for one not to be read.
    InputError if the file is no such JSON; `pictures` and `instances` also raise it if no picture is there, or no annotation has a mask.
    """

    picture_cure = PICTURE_CURE

    def __init__(
        self,
        file: str | Path,
        images: str | Path | None = None,
        *,
        part: Part | None = None,
        fields: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.path = Path(file)
        self.asked = dict(fields)
        self.fields = modal_fields(fields)
        self.images = picture_folder(self.path, images)
        self.part = part
        self.records = AnnotationIndex(
            file, image_id=self.fields["image_id"], id=self.fields["id"], category=self.fields.get("category", "")
        )
        self.names = {str(one["id"]): str(one.get("name", one["id"])) for one in self.records.categories if "id" in one}
        self._recent: tuple[int, Regions] | None = None

    # ------------------------------------------------------------------ what can be used

    @property
    def pictures(self) -> list[Picture]:
        """The pictures that can be used, in the order of the file."""
        return self._usable[0]

    @property
    def instances(self) -> list[Instance]:
        """The annotated regions of these pictures, picture by picture."""
        return self._usable[1]

    def regions(self, picture: Picture) -> Regions:
        """The regions of a picture, decoded in its frame."""
        record = self._record(picture.index)
        return _regions(picture, record, self.path)[0]

    def mask(self, instance: Instance) -> np.ndarray:
        """The modal mask of one instance, bool (H, W). BadSegmentation if it cannot be decoded or has no pixel in the picture."""
        _, annotations = self.records.read(instance.picture.index)
        return _decode(annotations[instance.place].get(self.fields["visible"]), instance.picture)[0]

    def image(self, picture: Picture) -> np.ndarray:
        """uint8 (H, W, 3). InputError if the file is damaged or of another size than declared."""
        path = find_picture(self.images, picture.file)
        image = read_image(path)
        if image.shape[:2] != (picture.height, picture.width):
            raise InputError(
                f"image {path} must be {picture.width}x{picture.height} as {self.path.name} says, "
                f"got {image.shape[1]}x{image.shape[0]}; restore the picture"
            )
        return image

    @cached_property
    def _usable(self) -> tuple[list[Picture], list[Instance]]:
        if refused := [defect for defect in self.file_defects() if defect.action == "refuse"]:
            raise InputError(f"{self.path}: {refused[0].words} (data.fields in a configuration)")
        pictures: list[Picture] = []
        instances: list[Instance] = []
        passed: Counter[str] = Counter()
        quiet = True if multiprocessing.parent_process() else None  # one bar is enough where several processes read
        for index in tqdm(range(len(self)), unit="picture", delay=2, disable=quiet, leave=False, dynamic_ncols=True):
            record = self._record(index)
            if record.picture is None:
                passed["pictures without file name or size"] += 1
            elif self.part is not None and part_of(record.picture.file) != self.part:
                continue
            elif not record.raw.image.is_file():
                passed["pictures that are missing"] += 1
            else:
                pictures.append(record.picture)
                instances += record.instances
        codes = sorted({defect.code for defect in self.records.defects if defect.severity == "error"})
        if passed or codes:
            told = [counted(passed), f"defects of the file ({', '.join(codes)})" if codes else ""]
            words = "%s: passed over %s; `sas data check %s --format modal` names each"
            logger.warning(words, self.path, " and ".join(filter(None, told)), self.path)
        if not pictures:
            which = "" if self.part is None else f" of part {self.part!r}"
            raise InputError(
                f"images {self.images} must hold pictures{which} that {self.path} names, got none of {len(self)}; "
                f"name the folder that its {self.fields['file_name']} fields start from (--images, or data.images in a configuration)"
            )
        return pictures, instances

    # ------------------------------------------------------------------ what the checker looks at

    def __len__(self) -> int:
        return len(self.records)

    def file_defects(self) -> list[Defect]:
        """Defects of the index, and fields of the mapping that no annotation has."""
        defects: list[Defect] = []
        for word in ("visible", *self.asked):
            name = self.fields.get(word, "")
            if name and word not in ("file_name", "height", "width") and not self.records.fields.get(name):
                words = self._missing("no annotation has a field", word, self.records.fields)
                defects.append(Defect("error", "field", words, "refuse" if word == "visible" else "keep"))
        return list(dict.fromkeys(defects)) + self.records.defects

    def raw(self, index: int) -> tuple[RawScene, list[Defect]]:
        record = self._record(index)
        return record.raw, list(record.defects)

    def inspect(self, index: int) -> tuple[Scene | None, list[Defect]]:
        """Picture `index` with its modal masks, or None if it is refused, and all its defects. `known` is False where crowds and objects
        without a usable mask stand."""
        record = self._record(index)
        defects = list(record.defects)
        if record.picture is None:
            return None, defects

        def tell(severity: Severity, code: str, words: str, action: Action, object: str = "") -> None:
            defects.append(Defect(severity, code, words, action, image=record.raw.id, object=object))

        image = read_picture(record.raw, tell)
        if image is None:
            return None, defects
        regions, notes = _regions(record.picture, record, self.path)
        for row, note in notes:
            tell(*note, record.raw.objects[row].id)
        self._recent = index, regions
        kept = [row for row, one in enumerate(regions.instances) if regions.decoded[row] and not one.crowd]
        lost = np.delete(regions.masks, kept, axis=0)
        scene = Scene(
            image=image,
            amodal_masks=regions.masks[kept],
            order_matrix=None,
            names=tuple(regions.instances[row].category for row in kept),
            id=record.raw.id,
            source=str(record.raw.image),
            known=~union(lost) if len(lost) else None,
            complete=not len(lost),
        )
        return scene, defects

    def uses(self, index: int, *, rule: WholeRule = WholeRule()) -> Uses:
        """What the objects of picture `index` are good for; the record must have a usable picture."""
        recent = self._recent
        if recent is not None and recent[0] == index:  # the checker has just decoded them
            regions = recent[1]
        else:
            record = self._record(index)
            if record.picture is None:
                return Uses()
            regions = _regions(record.picture, record, self.path)[0]
        said = [rule.objection(regions, row) for row in range(len(regions.instances))]
        large = [one.completable(rule.min_size) and rule.large(regions, i) for i, one in enumerate(regions.instances)]
        return Uses(said.count(""), sum(large), Counter(words for words in said if words), rule=str(rule))

    # ------------------------------------------------------------------ records

    def _record(self, index: int) -> _Record:
        image, annotations = self.records.read(index)
        id = scene_id(image["id"])
        defects: list[Defect] = []
        file = image.get(self.fields["file_name"])
        size = picture_size(*(number(image.get(self.fields[side])) for side in ("height", "width")))
        if not (isinstance(file, str) and file):
            words = self._missing("the image has no field", "file_name", image)
            return _refused(RawScene(id, self.images, ()), "field", words)
        where = find_picture(self.images, file)
        if size is None:
            sides = [self.fields[side] for side in ("height", "width")]
            got = " and ".join(str(image.get(side))[:20] for side in sides)
            words = f"the image must have a {sides[0]} and a {sides[1]} in pixels, got {got}; it has {listed(image)}"
            return _refused(RawScene(id, where, ()), "field", words)
        if size[0] * size[1] > (Image.MAX_IMAGE_PIXELS or float("inf")):
            words = f"the file claims a picture of {size[1]}x{size[0]} pixels, which is too large"
            return _refused(RawScene(id, where, ()), "image-size", words)
        if not annotations:
            words = "no annotation is of this picture; nothing is taken from it"
            defects.append(Defect("warning", "unannotated", words, "keep", image=id))
        picture = Picture(id, file, *size, index)
        taken: Counter[str] = Counter()
        instances = [self._instance(one, picture, place, taken, defects) for place, one in enumerate(annotations)]
        return _Record(
            RawScene(
                id, where, tuple(RawObject(one.id, one.category, None) for one in instances), size=size, ordered=False
            ),
            picture,
            tuple(instances),
            tuple(record.get(self.fields["visible"]) for record in annotations),
            defects,
        )

    def _instance(
        self, record: dict[str, Any], picture: Picture, place: int, taken: Counter[str], defects: list[Defect]
    ) -> Instance:
        given = record.get(self.fields["id"])
        id = unique(f"annotation {place + 1}" if given is None else str(given), taken)
        category = record.get(self.fields.get("category", ""))
        if category is not None and self.names and str(category) not in self.names:
            words = f"the file lists no category {category}; the object is named by the number"
            defects.append(Defect("warning", "category-unknown", words, "keep", image=picture.id, object=id))
        stated = record.get(self.fields.get("box", ""))
        box = _box(stated)
        if stated is not None and box is None:
            name = self.fields["box"]
            words = (
                f"{name} (box) must be x, y, width, height of a box with pixels, got {str(stated)[:40]}; it is left out"
            )
            defects.append(Defect("error", "field", words, "repair", image=picture.id, object=id))
        mask = record.get(self.fields["visible"])
        if mask is None:
            words = self._missing("the annotation has no field", "visible", record)
            words = f"{words}; {_stands(box)}"
            defects.append(Defect("error", "field", words, "drop", image=picture.id, object=id))
        return Instance(
            id=id,
            picture=picture,
            category="object" if category is None else self.names.get(str(category), str(category)),
            place=place,
            box=box,
            crowd=truth(record.get(self.fields.get("crowd", ""))),
            filled=bool(isinstance(mask, list | dict) and mask),
        )

    def _missing(self, words: str, word: str, record: Mapping[str, Any]) -> str:
        """The words, what field they are about, what there is instead, and the cure."""
        name = self.fields[word]
        if name in record:
            return f"{name} ({word}) must not be empty, got {str(record[name])[:40]}"
        masks = [one for one in record if word == "visible" and any(part in one.lower() for part in ("seg", "mask"))]
        close = difflib.get_close_matches(name, record, n=1) or masks[:1]
        meant = f"{word}={close[0] if close else 'NAME'}"
        cure = f"did you mean --fields {meant}?" if close else f"name the right one: --fields {meant}"
        return f"{words} {name!r} ({word}: {MODAL_WORDS[word]}); it has {listed(record)}; {cure}"


def modal_fields(fields: Mapping[str, str]) -> dict[str, str]:
    """All fields of a file of modal masks by our words, those of a mapping in place of COCO's. InputError for a mapping that cannot be."""
    for word in ("amodal", "modal", "segmentation"):
        if word in fields:
            raise InputError(
                f"fields must map visible to the masks of a modal file, which show what is seen, got {word!r}; "
                f"write visible={fields[word]}"
            )
    chosen = {word: name for word, name in {**MODAL, **checked_fields(fields, words=MODAL_WORDS)}.items() if name}
    for word in NEEDED:
        if word not in chosen:
            raise InputError(f"fields must name a field for {word} ({MODAL_WORDS[word]}), got none; add {word}=NAME")
    return chosen


def _refused(raw: RawScene, code: str, words: str) -> _Record:
    return _Record(raw, None, (), (), [Defect("error", code, words, "refuse", image=raw.id)])


def _stands(box: tuple[float, float, float, float] | None) -> str:
    """What stands for an object without a usable mask, for a message."""
    return "its box stands for it" if box else "it has no box, so the whole picture counts as hidden by it"


def _regions(picture: Picture, record: _Record, file: Path) -> tuple[Regions, list[tuple[int, Note]]]:
    """The regions of a picture, decoded in its frame, and what was wrong with them, by row."""
    found = record.instances
    masks = np.zeros((len(found), picture.height, picture.width), dtype=bool)
    decoded = np.zeros(len(found), dtype=bool)
    notes: list[tuple[int, Note]] = []
    for row, (instance, segmentation) in enumerate(zip(found, record.segmentations, strict=True)):
        try:
            masks[row], mended = _decode(segmentation, picture)
            decoded[row] = True
            notes += [(row, note) for note in [*mended, *_beside_box(instance, masks[row])]]
        except BadSegmentation as error:
            x, y, w, h = instance.box or (0, 0, picture.width, picture.height)
            bottom, right = (max(0, int(np.ceil(end))) for end in (y + h, x + w))
            masks[row, max(0, int(y)) : bottom, max(0, int(x)) : right] = True
            if segmentation is not None:  # a mask that is not there was told with its record
                severity: Severity = "warning" if error.code == "mask-empty" else error.severity
                notes.append((row, (severity, error.code, f"{error}; {_stands(instance.box)}", "drop")))
        if instance.crowd:
            words = "a crowd region is not one object, and none beside it counts as whole"
            notes.append((row, ("warning", "crowd", words, "drop")))
    return Regions(found, masks, decoded), notes


def _decode(segmentation: Any, picture: Picture) -> tuple[np.ndarray, list[Note]]:
    """bool (H, W), and what was mended. BadSegmentation also for polygons far outside the picture: decoding takes time by their length."""
    height, width = picture.height, picture.width
    if isinstance(segmentation, list):
        rings = [ring if isinstance(ring, list) else [ring] for ring in segmentation]
        far = 10 * (height + width)
        if any(isinstance(value, int | float) and abs(value) > far for ring in rings for value in ring):
            raise BadSegmentation("outside", f"the polygon leaves the picture of {width}x{height} by far")
    mask, notes = decode(segmentation, height, width)
    if not mask.any():
        raise BadSegmentation("mask-empty", "the mask has no pixel in the picture")
    return mask, notes


def _beside_box(instance: Instance, mask: np.ndarray) -> Iterator[Note]:
    """A defect if the mask goes on beyond its box: objects are first chosen by their boxes."""
    if instance.box is None:
        return
    x, y, w, h = instance.box
    top, bottom, left, right = bounds(mask)
    slack = 3 + 0.02 * max(mask.shape)
    if x > left + slack or y > top + slack or x + w < right - slack or y + h < bottom - slack:
        words = (
            f"the mask (x {left}..{right}, y {top}..{bottom}) leaves its box (x {x:g}..{x + w:g}, y {y:g}..{y + h:g})"
        )
        yield "error", "field", words, "keep"


def _box(value: Any) -> tuple[float, float, float, float] | None:
    """(x, y, width, height) if the value is one; None otherwise."""
    sides = [number(side) for side in value] if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(sides) != 4 or any(side is None for side in sides):
        return None
    x, y, w, h = (float(side) for side in sides if side is not None)
    return (x, y, w, h) if min(w, h) > 0 else None
