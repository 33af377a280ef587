"""Scenes written in the formats of COCOA and KINS 2020, and modal masks as COCO has them.

Masks are written as COCO RLE, not as polygons: a polygon holds neither holes nor single pixels, and the COCO API reads both. Before a
scene is written, its order is inferred from the record by the rule that the readers use; a scene that would come back with another
order is refused. `write_project` and `write_sas_folders` write the other two formats.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.sparse.csgraph import connected_components

from sas.data.entries import new_id
from sas.data.formats.assemble import infer_order
from sas.data.formats.raw import RawObject, RawScene
from sas.io import InputError, atomic_folder, rle_encode
from sas.masks import area, overlap_areas
from sas.order import DEFAULT_MIN_OVERLAP, contested_area, edges_from_order, layers_from_order
from sas.scene import Scene

logger = logging.getLogger(__name__)


def write_cocoa(path: str | Path, scenes: Iterable[Scene], *, split: str = "train") -> int:
    """Write scenes as COCOA: `path/images/<id>.png` and `path/COCO_amodal_<split>2014.json`; returns how many.

    The folder appears when it is complete; one scene is held in memory at a time. In a region `order` is a rank from 1 (nearest) in
    which everybody comes after those in front of it, `depth_constraint` lists the order matrix pair by pair, circles included;
    `visible_mask` and `invisible_mask` stand where something is hidden. Not held: `alternatives`, `known`, `complete`; blanks around a
    name are not read back, and a name of nothing else is read as "object".
    InputError for a scene of unknown order, or with two objects that share pixels and are not ordered: COCOA ranks all objects.
    """
    return _write(path, scenes, "COCOA", f"COCO_amodal_{_name(split)}2014.json", _cocoa)


def write_kins2020(path: str | Path, scenes: Iterable[Scene], *, split: str = "train") -> int:
    """Write scenes as KINS 2020: `path/images/<id>.png` and `path/update_<split>_2020.json`; returns how many.

    The folder appears when it is complete; one scene is held in memory at a time. `oco_id` numbers the groups of objects that overlap
    in a chain, from 1, and is 0 for an object that overlaps no other; `ico_id` is 1 + the longest chain of objects in front, 0 for an
    object alone. Categories are the objects' names. Not held: `alternatives`, `known`, `complete`, and pairs of the order that
    share no pixel. InputError for a scene of unknown order, with objects in front of one another in a circle, or with an order that
    ranks cannot tell.
    """
    return _write(path, scenes, "KINS 2020", f"update_{_name(split)}_2020.json", _kins)


def write_modal(path: str | Path, scenes: Iterable[Scene]) -> int:
    """Write scenes of a `ModalSet` as COCO: `path/images/<id>.png` and `path/instances.json`; returns how many.

    `segmentation` is the modal mask, which such scenes have as `amodal_masks`. What is not known of a picture (crowds, objects whose mask
    could not be read) is one region with `iscrowd` 1, so that the same objects count as seen whole as before.
    """
    return _write(path, scenes, MODAL, "instances.json", _modal)


def _name(split: str) -> str:
    if not split or not split.replace("_", "").isalnum():
        raise InputError(f"split must be letters and digits, got {split!r}; use train, val or test")
    return split


# ---------------------------------------------------------------------- one file of many scenes

Record = Callable[[Scene, "_Numbers", int, str], list[dict[str, Any]]]
"""Entries of the annotation list for a scene, given its image id and file."""


MODAL = "COCO with modal masks"


class _Numbers:
    """Ids of a file: of images, annotations and categories."""

    def __init__(self) -> None:
        self.images: set[int] = set()
        self.categories: dict[str, int] = {}
        self.annotations = 0
        self._next = 1

    def image(self, id: str) -> int:
        """The scene's id if it is a whole number that is free, else the next free number; the file's name keeps the id in any case."""
        plain = id.isascii() and id.isdigit() and len(id) < 16 and str(int(id)) == id and int(id) not in self.images
        while self._next in self.images:
            self._next += 1
        number = int(id) if plain else self._next
        self.images.add(number)
        return number

    def annotation(self) -> int:
        self.annotations += 1  # from 1: COCOeval takes the id 0 for "no match"
        return self.annotations

    def category(self, name: str) -> int:
        return self.categories.setdefault(name, len(self.categories) + 1)


class _List:
    """A JSON list that is written entry by entry."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.empty = True

    def add(self, entry: Any) -> None:
        self.file.write(("\n" if self.empty else ",\n") + json.dumps(entry, allow_nan=False))
        self.empty = False


def _write(path: str | Path, scenes: Iterable[Scene], format: str, file_name: str, record: Record) -> int:
    numbers = _Numbers()
    taken: set[str] = set()
    overlaps: set[float] = set()
    partial = 0
    with atomic_folder(Path(path), new=True) as root:
        (root / "images").mkdir()
        # Images and annotations are two lists of one file: the images wait in a file of their own.
        waiting = root / ".images"
        with (root / file_name).open("w", encoding="utf-8") as out, waiting.open("w+", encoding="utf-8") as aside:
            out.write('{"annotations": [')
            annotations, images = _List(out), _List(aside)
            for scene in scenes:
                file = f"images/{new_id(scene, taken)}.png"  # from the folder of the JSON file, so that readers need no other
                image_id = numbers.image(scene.id)
                for entry in record(scene, numbers, image_id, file):
                    annotations.add(entry)
                images.add({"id": image_id, "file_name": file, "width": scene.width, "height": scene.height})
                Image.fromarray(scene.image).save(root / file)
                overlaps.add(scene.min_overlap)
                partial += format != MODAL and (
                    bool(scene.alternatives) or scene.known is not None or not scene.complete
                )
            aside.seek(0)
            out.write('\n],\n"images": [')
            shutil.copyfileobj(aside, out)
            # The COCO API wants a category_id of every annotation as soon as there are categories; COCOA has none.
            if format != "COCOA":
                categories = [{"id": number, "name": name} for name, number in numbers.categories.items()]
                out.write(f'\n],\n"categories": [{json.dumps(categories)[1:-1]}')
            info = {"description": f"written by sas as {format}", "min_overlap": sorted(overlaps)}
            out.write(f'\n],\n"info": {json.dumps(info)}}}\n')
        waiting.unlink()
    if partial:
        words = "%s: %d of %d scenes have alternatives or are known in parts only, which %s cannot say; use the project format to keep it"
        logger.warning(words, path, partial, len(taken), format)
    if overlaps - {DEFAULT_MIN_OVERLAP}:
        words = "%s: min_overlap of the scenes is %s, which %s cannot say; give it when you read them (data.min_overlap), or their layers may differ"
        logger.warning(words, path, ", ".join(map(str, sorted(overlaps))), format)
    return len(taken)


# ---------------------------------------------------------------------- one scene


def _cocoa(scene: Scene, numbers: _Numbers, image_id: int, file: str) -> list[dict[str, Any]]:
    order = _known_order(scene, "COCOA")
    seen = _visible(scene, "COCOA")
    depth = layers_from_order(order, weights=contested_area(scene.amodal_masks, seen)).layer_index
    ranks = np.empty(len(scene), dtype=np.int64)
    ranks[np.lexsort((np.arange(len(scene)), depth))] = np.arange(1, len(scene) + 1)
    pairs = [(int(ranks[front]), int(ranks[behind])) for front, behind in edges_from_order(order)]
    objects = [
        RawObject(str(rank), name, None, rank=float(rank)) for rank, name in zip(ranks, scene.names, strict=True)
    ]
    stated = tuple((str(front), str(behind)) for front, behind in pairs)
    _check_order(scene, RawScene(scene.id, Path(file), tuple(objects), pairs=stated), order, seen, "COCOA")
    areas = area(scene.amodal_masks)
    regions: list[dict[str, Any]] = []
    for i, name in enumerate(scene.names):
        hidden = scene.amodal_masks[i] & ~seen[i]
        region = {
            "segmentation": rle_encode(scene.amodal_masks[i]),
            "name": name,
            "area": int(areas[i]),
            "isStuff": 0,
            "occlude_rate": int(hidden.sum()) / int(areas[i]) if areas[i] else 0.0,
            "order": int(ranks[i]),
        }
        if hidden.any():
            region |= {"visible_mask": rle_encode(seen[i]), "invisible_mask": rle_encode(hidden)}
        regions.append(region)
    entry = {
        "id": numbers.annotation(),
        "image_id": image_id,
        "author": "sas",
        "url": file,
        "size": len(regions),
        "depth_constraint": ",".join(f"{front}-{behind}" for front, behind in pairs),
        "regions": regions,
    }
    return [entry]


def _kins(scene: Scene, numbers: _Numbers, image_id: int, file: str) -> list[dict[str, Any]]:
    order = _known_order(scene, "KINS 2020")
    seen = _visible(scene, "KINS 2020")
    shared = overlap_areas(scene.amodal_masks) > 0 if len(scene) else np.zeros((0, 0), dtype=bool)
    np.fill_diagonal(shared, False)
    order = order & shared
    assignment = layers_from_order(order)
    if assignment.cut_edges:
        front, behind = assignment.cut_edges[0]
        words = (
            f"{_object(scene, front)} and {_object(scene, behind)} are in front of one another, directly or in a circle"
        )
        raise _refusal(scene, "KINS 2020", words, "the project format, packed shards and COCOA hold circles")
    overlapping = shared.any(axis=1)
    groups = connected_components(shared, directed=False)[1] if len(scene) else np.zeros(0, dtype=np.int64)
    cluster = np.zeros(len(scene), dtype=np.int64)
    cluster[overlapping] = np.unique(groups[overlapping], return_inverse=True)[1] + 1
    ranks = np.where(overlapping, assignment.layer_index + 1, 0)
    objects = [
        RawObject(str(i), name, None, rank=float(ranks[i]), group=str(cluster[i])) for i, name in enumerate(scene.names)
    ]
    _check_order(scene, RawScene(scene.id, Path(file), tuple(objects)), order, seen, "KINS 2020")
    entries: list[dict[str, Any]] = []
    for i, name in enumerate(scene.names):
        entry: dict[str, Any] = {
            "id": numbers.annotation(),
            "image_id": image_id,
            "category_id": numbers.category(name),
        }
        for letter, mask in (("a", scene.amodal_masks[i]), ("i", seen[i])):
            rle = rle_encode(mask)
            entry |= {f"{letter}_segm": rle, f"{letter}_bbox": _box(rle), f"{letter}_area": int(mask.sum())}
        entries.append({**entry, "oco_id": int(cluster[i]), "ico_id": int(ranks[i])})
    return entries


def _modal(scene: Scene, numbers: _Numbers, image_id: int, file: str) -> list[dict[str, Any]]:
    regions = [(name, mask, 0) for name, mask in zip(scene.names, scene.amodal_masks, strict=True)]
    if scene.known is not None and not scene.known.all():
        regions.append(("crowd", ~scene.known, 1))
    entries: list[dict[str, Any]] = []
    for name, mask, crowd in regions:
        rle = rle_encode(mask)
        entry = {"id": numbers.annotation(), "image_id": image_id, "category_id": numbers.category(name)}
        entries.append({**entry, "segmentation": rle, "bbox": _box(rle), "area": int(mask.sum()), "iscrowd": crowd})
    return entries


def _known_order(scene: Scene, format: str) -> np.ndarray:
    if scene.order_matrix is None:
        cure = "the project format and packed shards hold scenes without an order"
        raise _refusal(scene, format, "its order is unknown (order_matrix is None)", cure)
    return scene.order_matrix


def _visible(scene: Scene, format: str) -> np.ndarray:
    stray = (scene.visible & ~scene.amodal_masks).any(axis=(1, 2))
    if stray.any():
        words = f"visible pixels of {_object(scene, int(np.flatnonzero(stray)[0]))} lie outside its amodal mask"
        raise _refusal(
            scene, format, words, "mend the masks; the project format and packed shards hold them as they are"
        )
    return scene.visible


def _check_order(scene: Scene, raw: RawScene, order: np.ndarray, seen: np.ndarray, format: str) -> None:
    """Refuse a scene whose order would be read back as another one. Objects that show no pixel are not read."""
    kept = np.flatnonzero(area(seen) > 0)
    objects = [raw.objects[i] for i in kept]
    read = infer_order(raw, objects, scene.amodal_masks[kept], list(seen[kept]), lambda *_: None)
    assert read is not None
    wrong = np.argwhere(read != order[np.ix_(kept, kept)])
    if len(wrong):
        a, b = (_object(scene, int(kept[i])) for i in wrong[0])
        words = f"{a} and {b} share pixels and the scene does not say which is in front, but ranks would"
        raise _refusal(scene, format, words, "the project format and packed shards hold such pairs")


def _refusal(scene: Scene, format: str, reason: str, cure: str) -> InputError:
    return InputError(f"scene {scene.id!r} cannot be written as {format}: {reason}; {cure}")


def _object(scene: Scene, index: int) -> str:
    return f"object {index} ({scene.names[index]!r})"


def _box(rle: dict[str, Any]) -> list[int]:
    """[x, y, width, height] of an RLE, in pixels; zeros if it is empty."""
    return [int(side) for side in coco_mask.toBbox(rle)]
