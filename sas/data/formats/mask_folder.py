"""Folders of one picture and a mask picture for each object, as single scenes of D2SA and many home-made sets are passed around.

```
SET/<id>/image.jpg     the picture: any file named image.*
SET/<id>/gt_00.png     every other picture is the amodal mask of one object, named by its stem
SET/<id>/order.json    optional: [[front, behind], ...] by stem; or order.txt, a line "front behind" each
```

Without an order file nothing is known of the order of two or more objects: `order_matrix` is None, and asking the scene for its layers is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sas.data.formats.assemble import AnnotatedScenes, bare
from sas.data.formats.raw import Defect, RawObject, RawScene
from sas.io import InputError, read_json
from sas.order import DEFAULT_MIN_OVERLAP
from sas.pictures import IMAGE_SUFFIXES

ORDER_FILES = ("order.json", "order.txt")


class MaskFolders(AnnotatedScenes):
    """Scenes of the folders directly in `path`, or of `path` itself if it is one such folder.

    Beside folders with a picture image.*, one without is a scene whose picture is missing if it holds masks by their names: mask*, gt_*, or
    a name that a mask of another folder has. One with other pictures only is no scene, which `file_defects` tells. Masks are cut at 127; values
    between 0 and 255, as JPEG makes them, are told as a defect.
    """

    order_cure = 'to train, give each folder an order.json: [["front", "behind"], ...] by the names of its masks'

    def __init__(self, path: str | Path, *, min_overlap: float = DEFAULT_MIN_OVERLAP) -> None:
        path = Path(path)
        if not path.is_dir():
            there = "a file" if path.exists() else "nothing"
            raise InputError(f"masks {path} must be a folder, found {there}; name the folder of the scenes")
        images, masks = _pictures(path)
        folders = sorted(one for one in path.iterdir() if one.is_dir() and one.name[0] != ".")
        # A picture beside folders of scenes is a preview of them.
        alone = bool(images) and (bool(masks) or not any(_pictures(one)[0] for one in folders))
        inside = [path] if alone else folders
        found = {one: pictures for one in inside if any(pictures := _pictures(one))}
        if not any(images for images, _ in found.values()):
            without = path if masks else next(iter(found), None)
            got = "neither" if without is None else f"pictures without an image.* in {without}"
            raise InputError(
                f"masks {path} must hold a picture image.* and its masks, or folders of them, got {got}; name another folder, "
                "or call the pictures image.jpg or image.png"
            )
        names = {mask.stem for images, masks in found.values() if images for mask in masks}
        self.folders = [one for one, (images, masks) in found.items() if images or _masks_among(masks, names)]
        kept = set(self.folders)
        self.ignored = [one for one in found if one not in kept]
        self.min_overlap = min_overlap

    def __len__(self) -> int:
        return len(self.folders)

    def without_order(self) -> str | None:
        """The first folder of two or more objects of which no order can be read, None if all have one. Folders that are refused count not."""
        for place, one in enumerate(self.folders):
            raw, defects = self.raw(place)
            if not raw.ordered and not any(defect.action == "refuse" for defect in defects):
                return one.name
        return None

    def file_defects(self) -> list[Defect]:
        """Folders with pictures that are no scenes."""
        return [
            Defect(
                "warning",
                "folder-ignored",
                f"the folder {one.name} holds {_some(_pictures(one)[1])}, no picture image.* and nothing named like a mask of this set; "
                "it is no scene",
                "drop",
            )
            for one in self.ignored
        ]

    def raw(self, index: int) -> tuple[RawScene, list[Defect]]:
        folder = self.folders[index]
        id = folder.resolve().name
        images, masks = _pictures(folder)
        defects: list[Defect] = []

        def refuse(code: str, words: str) -> tuple[RawScene, list[Defect]]:
            return RawScene(id, images[0], ()), [Defect("error", code, words, "refuse", image=id)]

        if not images:
            words = f"the folder holds {_some(masks)} and no picture image.jpg, image.png or the like"
            return RawScene(id, folder, ()), [Defect("error", "image-missing", words, "refuse", image=id)]
        if len(images) > 1:
            return refuse("image-twice", f"the folder holds {' and '.join(image.name for image in images)}")
        stems = [mask.stem for mask in masks]
        if len(set(stems)) < len(stems):
            twice = next(stem for stem in stems if stems.count(stem) > 1)
            return refuse("mask-twice", f"more than one mask is called {twice}")
        try:
            pairs = _order(folder)
        except InputError as error:
            return refuse("order-file", str(error))
        endings = {mask.name: mask.stem for mask in masks if mask.name not in stems}
        pairs = pairs and [(endings.get(front, front), endings.get(behind, behind)) for front, behind in pairs]
        for one in dict.fromkeys(stem for pair in pairs or () for stem in pair if stem not in stems):
            words = f"the order names {one}, which has no mask; its pairs are left out"
            defects.append(Defect("warning", "order-object", words, "keep", image=id, object=one))
        if not masks:
            defects.append(bare(id))
        objects = tuple(RawObject(id=mask.stem, name=mask.stem, amodal=mask) for mask in masks)
        # An order of which nothing can be used says nothing; an empty one says that nobody is in front.
        usable = not pairs or any(front in stems and behind in stems and front != behind for front, behind in pairs)
        ordered = (pairs is not None and usable) or len(objects) <= 1
        return RawScene(id, images[0], objects, pairs=tuple(pairs or ()), ordered=ordered), defects


def _pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files named image.*, and all other pictures, sorted by name."""
    files = sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
    return [file for file in files if file.stem == "image"], [file for file in files if file.stem != "image"]


def _masks_among(files: list[Path], names: set[str]) -> bool:
    """Whether any of the files is named like a mask. names: stems of masks of the set."""
    return any(file.stem in names or file.stem.lower().startswith(("mask", "gt_")) for file in files)


def _some(files: list[Path]) -> str:
    return ", ".join(file.name for file in files[:3]) + (", ..." if len(files) > 3 else "")


def _order(folder: Path) -> list[tuple[str, str]] | None:
    """Pairs (front, behind) of the order file, None without one. InputError if it cannot be understood, or if there are two."""
    found = [file for name in ORDER_FILES if (file := folder / name).is_file()]
    if not found:
        return None
    if len(found) > 1:
        raise InputError("there are both order.json and order.txt; remove one")
    file = found[0]
    listed: Any
    if file.suffix == ".json":
        listed = read_json(file)
    else:
        try:
            listed = [line.split() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file.name} cannot be read as UTF-8 text ({error}); save it again") from error
    if not isinstance(listed, list):
        raise InputError(f"{file.name} must be a list of pairs [front, behind], got {type(listed).__name__}")
    for pair in listed:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(stem, str) for stem in pair)):
            raise InputError(f"{file.name} must hold pairs [front, behind] of mask names, got {str(pair)[:60]}")
    return [(front, behind) for front, behind in listed]
