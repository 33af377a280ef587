"""COCOA, the amodal annotations of COCO pictures (Zhu et al., CVPR 2017): whole pictures cut into regions, drawn in full and ordered.

A region's `segmentation` is a flat polygon of its full extent, `order` its rank from 1 (nearest); `visible_mask` and `invisible_mask` stand
only where something is hidden. `depth_constraint` = "1-2,1-5": the region of order 1 is in front of those of order 2 and 5.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np

from sas.data.formats.assemble import AnnotatedScenes
from sas.data.formats.coco import PICTURE_CURE, find_picture, picture_folder, scene_id, truth, unique
from sas.data.formats.hints import looks_like
from sas.data.formats.index import AnnotationIndex, listed
from sas.data.formats.raw import Defect, RawObject, RawScene
from sas.data.formats.shapes import number, stated_size
from sas.io import InputError, read_json
from sas.order import DEFAULT_MIN_OVERLAP
from sas.pictures import IMAGE_SUFFIXES
from sas.scene import Scene

Regions = Literal["all", "things", "stuff"]
PAIR = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*", re.ASCII)
"""Front and behind."""


class CocoaScenes(AnnotatedScenes):
    """Scenes of a COCOA file (`COCO_amodal_train2014.json`), or of a folder of `N.json`, one annotation each, beside `N.jpg`.

    annotators: several people drew some pictures. "all" makes a scene of each drawing, with the id `<image id>-<annotation id>` where a
    picture has several; "one" takes the first; any other text is an author's name. regions: "things" leaves regions of background (stuff)
    out, "stuff" all others. images: folder of the pictures; without it that of the annotations. A region without a visible mask is
    seen as a whole.
    """

    picture_cure = PICTURE_CURE

    picture_once = False  # several people may have drawn on it

    def __init__(
        self,
        path: str | Path,
        *,
        images: str | Path | None = None,
        annotators: str = "all",
        regions: Regions = "all",
        min_overlap: float = DEFAULT_MIN_OVERLAP,
    ) -> None:
        if regions not in get_args(Regions):
            raise InputError(f"regions must be one of all, things, stuff, got {regions!r}; choose one of them")
        if not isinstance(annotators, str) or not annotators:
            raise InputError(
                f"annotators must be 'all', 'one' or an author's name, got {annotators!r}; choose one of them"
            )
        self.path = Path(path)
        self.regions = regions
        self.min_overlap = min_overlap
        self._drawings: _File | _Folder = (
            _Folder(self.path, images, annotators) if self.path.is_dir() else _File(self.path, images, annotators)
        )

    def __len__(self) -> int:
        return len(self._drawings)

    def file_defects(self) -> list[Defect]:
        return self._drawings.defects()

    def raw(self, index: int) -> tuple[RawScene, list[Defect]]:
        id, picture, sides, record = self._drawings.read(index)
        if isinstance(record, InputError):
            return RawScene(id, picture, ()), [Defect("error", "json", str(record), "refuse", image=id)]
        if not isinstance(record, dict) or not isinstance(record.get("regions"), list):
            found = listed(record) if isinstance(record, dict) else type(record).__name__
            words = f"the annotation must have a list of regions, as COCOA has it; it has {found}"
            if isinstance(record, dict) and (other := looks_like(record)) not in ("", "cocoa"):
                words += f"; the file looks like another format: --format {other} (data.format in a configuration)"
            return RawScene(id, picture, ()), [Defect("error", "field", words, "refuse", image=id)]
        defects: list[Defect] = []
        size = stated_size(*sides, id, defects)
        objects, others = self._objects(record["regions"], id, defects)
        pairs = _pairs(record.get("depth_constraint"), {one.id for one in objects if not one.lost}, others, id, defects)
        scene = RawScene(id, picture, tuple(objects), size=size, pairs=pairs, unoccluded_by_default=True)
        return scene, defects

    def inspect(self, index: int) -> tuple[Scene | None, list[Defect]]:
        scene, defects = super().inspect(index)
        if scene is not None and self.regions == "stuff":
            scene = replace(scene, complete=False)  # the picture shows things as well
        return scene, defects

    def _objects(self, regions: list[Any], image: str, defects: list[Defect]) -> tuple[list[RawObject], set[str]]:
        """The regions asked for, and the orders of those that are left out."""
        objects: list[RawObject] = []
        others: set[str] = set()
        taken: Counter[str] = Counter()
        for place, region in enumerate(regions, start=1):
            if not isinstance(region, dict):
                words = f"regions[{place - 1}] must be an object, got {type(region).__name__}"
                defects.append(Defect("error", "field", words, "drop", image=image, object=f"region {place}"))
                continue
            rank = number(region.get("order"))
            plain = f"region {place}" if rank is None else f"{rank:g}"
            if rank is None:
                words = f"order must be a number from 1, got {region.get('order')!r}; the region is read without a rank"
                defects.append(Defect("error", "field", words, "repair", image=image, object=plain))
            name = unique(plain, taken)
            if name != plain:
                words = f"another region of the picture has the order {plain}; depth_constraint means the first"
                defects.append(Defect("error", "object-twice", words, "keep", image=image, object=name))
            stuff = truth(region.get("isStuff"))
            if (self.regions == "things" and stuff) or (self.regions == "stuff" and not stuff):
                others.add(name)
                continue
            if region.get("segmentation") is None:
                words = f"the region has no segmentation; it has {listed(region)}"
                defects.append(Defect("error", "field", words, "drop", image=image, object=name))
                others.add(name)
            one = RawObject(
                id=name,
                name=str(region.get("name") or "object").strip(),
                amodal=region.get("segmentation"),
                visible=region.get("visible_mask"),
                invisible=region.get("invisible_mask"),
                rank=rank,
                stuff=stuff,
                lost=region.get("segmentation") is None,
            )
            objects.append(one)
        return objects, others


def _pairs(
    text: Any, objects: set[str], others: set[str], image: str, defects: list[Defect]
) -> tuple[tuple[str, str], ...]:
    """Pairs (front, behind) of a `depth_constraint`. Those with a region that was left out say nothing any more."""
    if text is None or text == "":
        return ()
    if not isinstance(text, str):
        words = f"depth_constraint must be a text such as '1-2,1-5', got {type(text).__name__}; it is left out"
        defects.append(Defect("error", "field", words, "drop", image=image))
        return ()
    pairs: list[tuple[str, str]] = []
    for piece in text.split(","):
        if not piece.strip():
            continue
        match = PAIR.fullmatch(piece)
        front, behind = (str(int(side)) for side in match.groups()) if match else ("", "")
        if front == behind:
            words = (
                f"depth_constraint must hold pairs front-behind of two regions, such as 1-2, got {piece.strip()[:40]!r}"
            )
            defects.append(Defect("error", "field", words, "drop", image=image))
            continue
        missing = [side for side in (front, behind) if side not in objects | others]
        for side in missing:
            words = f"depth_constraint says {front}-{behind}, but no region has the order {side}; the pair is left out"
            defects.append(Defect("warning", "order-object", words, "keep", image=image, object=side))
        if {front, behind} <= objects:
            pairs.append((front, behind))
    return tuple(pairs)


# ---------------------------------------------------------------------- where the annotations are

Drawing = tuple[str, Path, tuple[Any, Any], Any]
"""Id of the scene, file of the picture, height and width as they are declared, and the annotation or what is wrong with its file."""


class _File:
    """Annotations of one file, by its index."""

    def __init__(self, path: Path, images: str | Path | None, annotators: str) -> None:
        self.images = picture_folder(path, images)
        self.records = AnnotationIndex(path, category="", label="author")
        counts = self.records.counts
        first = np.cumsum(counts) - counts
        row = np.repeat(np.arange(len(counts)), counts)
        drawing = np.arange(len(row)) - first[row]
        if annotators == "one":
            chosen = drawing == 0
        elif annotators == "all":
            chosen = np.ones(len(row), dtype=bool)
        else:
            labels = self.records.labels
            if annotators not in labels:
                raise _no_author(annotators, labels, path)
            chosen = self.records.label_of == labels.index(annotators)
        if not chosen.any():
            whose = "" if annotators in ("one", "all") else f" by {annotators!r}"
            raise InputError(
                f"annotations {path} must hold a drawing{whose} of a picture that it lists, got none"
                + "".join(f" ({defect.code}: {defect.words})" for defect in self.records.defects[:1])
                + "; name the file that has them"
            )
        self.places = np.stack([row[chosen], drawing[chosen]], axis=1)
        # An id names its picture alone where nobody else's drawing of it is read.
        self.alone = np.bincount(row[chosen], minlength=len(counts)) == 1

    def __len__(self) -> int:
        return len(self.places)

    def defects(self) -> list[Defect]:
        bare = np.flatnonzero(self.records.counts == 0)
        if not len(bare):
            return self.records.defects
        first = self.records.read(int(bare[0]))[0]["id"]
        words = f"{len(bare)} images have no annotation, the first of them {first}; no scene is made of them"
        return [*self.records.defects, Defect("warning", "unannotated", words, "drop")]

    def read(self, index: int) -> Drawing:
        row, drawing = self.places[index].tolist()
        image, annotations = self.records.read(row)
        record = annotations[drawing]
        id = scene_id(image["id"])
        if not self.alone[row]:
            id = f"{id}-{scene_id(record.get('id', drawing + 1))}"
        file = image.get("file_name") or PurePosixPath(str(record.get("url", ""))).name
        return id, find_picture(self.images, str(file)), (image.get("height"), image.get("width")), record


class _Folder:
    """Annotations of a folder, a file each."""

    def __init__(self, path: Path, images: str | Path | None, annotators: str) -> None:
        self.images = path if images is None else picture_folder(path, images)
        self.files = [file for file in sorted(path.glob("*.json"), key=_natural) if not file.name.startswith(".")]
        if not self.files:
            raise InputError(
                f"cocoa {path} must hold files N.json with one annotation each beside N.jpg, got none; name that folder, or the "
                "file COCO_amodal_*.json itself"
            )
        if annotators != "all":
            self._choose(path, annotators)

    def _choose(self, path: Path, annotators: str) -> None:
        records = {file: _read(file) for file in self.files}
        if annotators == "one":
            firsts: dict[str, Path] = {}
            for file, record in records.items():
                firsts.setdefault(str(record.get("image_id", file)) if isinstance(record, dict) else str(file), file)
            self.files = list(firsts.values())
            return
        authors = {
            file: str(record.get("author", "")) if isinstance(record, dict) else "" for file, record in records.items()
        }
        self.files = [file for file in self.files if authors[file] == annotators]
        if not self.files:
            raise _no_author(annotators, sorted(set(authors.values())), path)

    def __len__(self) -> int:
        return len(self.files)

    def defects(self) -> list[Defect]:
        return []

    def read(self, index: int) -> Drawing:
        file = self.files[index]
        pictures = [
            self.images / f"{file.stem}{ending}" for suffix in IMAGE_SUFFIXES for ending in (suffix, suffix.upper())
        ]
        found = next((picture for picture in pictures if picture.is_file()), self.images / f"{file.stem}.jpg")
        return scene_id(file.stem), found, (None, None), _read(file)


def _read(file: Path) -> Any:
    try:
        return read_json(file)
    except InputError as error:
        return error


def _natural(file: Path) -> list[Any]:
    """Key that sorts 2 before 10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", file.name)]


def _no_author(name: str, authors: list[str], path: Path) -> InputError:
    known = ", ".join(authors[:20]) + (" ..." if len(authors) > 20 else "")
    return InputError(f"annotators must be 'all', 'one' or an author of {path}, got {name!r}; authors are {known}")
