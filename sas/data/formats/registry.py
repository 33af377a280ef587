"""One name for each format that scenes can be read from, and the one function that opens them all."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sas.data.folders import ProjectFolder, SASFolders, open_scenes
from sas.data.formats.assemble import AnnotatedScenes
from sas.data.formats.coco import PRESETS, CocoScenes
from sas.data.formats.cocoa import CocoaScenes
from sas.data.formats.mask_folder import MaskFolders
from sas.data.formats.modal_set import ModalSet
from sas.data.formats.polygons import CvatScenes, LabelmeScenes
from sas.data.modal import PartialCompletion
from sas.data.shards import Shards
from sas.io import InputError
from sas.scene import Scene

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    """A format by its name: what it is in words, how it is opened, and which options mean something to it.

    one_file: the data is one annotation file, which may be named by its folder if it is the only one there.
    look: opens what stands in the data, for the checker, where scenes are made of it anew; it takes of the options images and fields.
    """

    words: str
    open: Callable[..., Sequence[Scene]]
    options: tuple[str, ...] = ()
    one_file: bool = False
    look: Callable[..., Sequence[Scene]] | None = None


FORMATS: dict[str, Format] = {
    "auto": Format("a folder in the project format, packed shards, or SAS folders: whichever it is", open_scenes),
    "project": Format("the project format, as `sas compose` and `sas data convert` write it", ProjectFolder),
    "shards": Format("packed shards, as `sas data pack` writes them", Shards),
    "sas": Format("folders <id>_<layer> of the SAS authors' code", SASFolders),
    "cocoa": Format(
        "COCOA: COCO_amodal_*2014.json, or a folder of N.jpg + N.json",
        CocoaScenes,
        ("images", "annotators", "regions", "min_overlap"),
        one_file=True,
    ),
    **{
        name: Format(preset.words, partial(CocoScenes, preset=name), ("images", "fields", "min_overlap"), one_file=True)
        for name, preset in PRESETS.items()
    },
    "labelme": Format("a folder of labelme JSON files", LabelmeScenes, ("images", "front", "min_overlap")),
    "cvat": Format("CVAT for images 1.1, an XML file", CvatScenes, ("images", "min_overlap")),
    "masks": Format(
        "folders of one picture and one mask an object; order by an optional order.json", MaskFolders, ("min_overlap",)
    ),
    "modal": Format(
        "COCO-style JSON; `segmentation` is visible parts only, for partial completion; other names by --fields visible=NAME",
        PartialCompletion,
        ("images", "fields", "min_size", "seed"),
        one_file=True,
        look=ModalSet,
    ),
}


def open_format(path: str | Path, *, format: str = "auto", look: bool = False, **options: Any) -> Sequence[Scene]:
    """Scenes of a file or folder in a named format, read when they are asked for.

    options, each left out or None if it is not wanted: images (folder of the pictures an annotation file names), fields (mapping of
    our words to the file's field names), annotators ("all", "one" or a name), regions ("all", "things" or "stuff"), front (labelme: "last" or "first"),
    min_overlap, min_size (modal: least side of an object, pixels), seed. look: what stands in the data, as the checker wants it, where
    scenes are made of it (modal).
    InputError for an unknown format, an option that the format does not have (min_overlap and seed have no effect there), and data that cannot be read.
    """
    if format not in FORMATS:
        close = difflib.get_close_matches(format, FORMATS, n=1)
        cure = f"did you mean {close[0]}?" if close else f"formats are {', '.join(FORMATS)}"
        raise InputError(f"format must be one that is known, got {format!r}; {cure}")
    given = {name: value for name, value in options.items() if value is not None and value != {}}
    chosen = FORMATS[format]
    strange = [name for name in given if name not in chosen.options and name not in ("min_overlap", "seed")]
    if strange:
        cure = (
            "name the format of the annotations, `sas data formats` lists them"
            if format == "auto"
            else "leave it out, or set it to None"
        )
        raise InputError(f"{strange[0]} has no effect with format {format}, got {given[strange[0]]!r}; {cure}")
    if format != "auto" and not Path(path).exists():
        raise InputError(f"{format} data {path} must exist, found nothing; check the path")
    if chosen.one_file:
        path = _annotation_file(Path(path), format)
    taken = {name: value for name, value in given.items() if name in chosen.options}
    if look and chosen.look is not None:
        return chosen.look(path, **{name: taken[name] for name in ("images", "fields") if name in taken})
    scenes = chosen.open(path, **taken)
    if not look and isinstance(scenes, CocoScenes | CocoaScenes):
        _tell_of_the_file(scenes, path)
    return scenes


def _tell_of_the_file(scenes: AnnotatedScenes, path: str | Path) -> None:
    """Warn of what is wrong with a file as a whole, which no picture of it would tell."""
    wrong = [defect for defect in scenes.file_defects() if defect.severity == "error"]
    if wrong:
        codes = ", ".join(dict.fromkeys(defect.code for defect in wrong))
        logger.warning(
            "%s: %s; defects of the file: %d (%s). `sas data check` names each", path, wrong[0], len(wrong), codes
        )


def _annotation_file(path: Path, format: str) -> Path:
    """The one JSON file of a folder, as the writers leave it; the path itself otherwise. A folder of COCOA may hold a file a picture."""
    files = [one for one in sorted(path.glob("*.json")) if one.name[0] != "."] if path.is_dir() else []
    alone = len(files) == 1 and (format != "cocoa" or files[0].name.startswith("COCO_amodal"))
    return files[0] if alone else path
