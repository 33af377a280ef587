"""Amodal annotations in the manner of COCO: lists of images, annotations and categories, under field names that differ from set to set."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any

from sas.data.formats.assemble import AnnotatedScenes, bare
from sas.data.formats.hints import ALIASES, IN_CONFIGURATION, looks_like, suggest
from sas.data.formats.index import AnnotationIndex, listed
from sas.data.formats.raw import Defect, RawObject, RawScene
from sas.data.formats.shapes import stated_number, stated_size
from sas.io import InputError
from sas.order import DEFAULT_MIN_OVERLAP
from sas.scene import Scene

WORDS: Mapping[str, str] = MappingProxyType(
    {
        "amodal": "complete mask of the object",
        "visible": "mask of the part that is seen",
        "invisible": "mask of the hidden part",
        "rank": "place from front to back, smaller is nearer",
        "group": "objects whose ranks may be compared",
        "category": "id of the object's category",
        "stuff": "true for a region of background",
        "crowd": "true for a region of many objects",
        "id": "id of the annotation",
        "image_id": "id of the picture that it is of",
        "file_name": "file of the picture (a field of images)",
        "height": "height of the picture in pixels (a field of images)",
        "width": "width of the picture in pixels (a field of images)",
    }
)
"""What a mapping may name: a word of ours, and what the field of the file holds that it stands for."""

COCO: Mapping[str, str] = MappingProxyType(
    {
        "category": "category_id",
        "crowd": "iscrowd",
        "id": "id",
        "image_id": "image_id",
        "file_name": "file_name",
        "height": "height",
        "width": "width",
    }
)
"""Names of COCO itself, which hold wherever a mapping does not say otherwise."""

GENERIC: Mapping[str, str] = MappingProxyType({"amodal": "segmentation"})
"""Any COCO-style file whose `segmentation` is amodal. Nothing is known of the order unless visible, invisible or rank is mapped."""

KINS: Mapping[str, str] = MappingProxyType({"amodal": "segmentation", "visible": "inmodal_seg"})
"""First release of KINS (`instances_train.json`, `instances_val.json`). Sure: the names are those of its published files and tools."""

KINS_2020: Mapping[str, str] = MappingProxyType(
    {"amodal": "a_segm", "visible": "i_segm", "group": "oco_id", "rank": "ico_id"}
)
"""KINS of 2020 (`update_train_2020.json`, `update_test_2020.json`). Sure: as its authors document them. `ico_id` is 0 for an object that
overlaps no other, which is no rank."""

D2SA: Mapping[str, str] = MappingProxyType({"amodal": "segmentation", "visible": "visible_mask"})
"""D2SA (`D2S_amodal_training_rot0.json` and its like). Sure of `segmentation` and `visible_mask`, both RLE and in
every annotation; `invisible_mask` stands only where something is hidden, and is not needed."""

INTRA_AFRUIT: Mapping[str, str] = MappingProxyType({"amodal": "segmentation", "visible": "visible_mask"})
"""Intra-AFruit, ACom and InterAMix. A guess after D2SA: the sets are given out on request, and their field names are not published."""

MUVA: Mapping[str, str] = MappingProxyType({"amodal": "segmentation", "visible": "visible_mask"})
"""MUVA (`AiFi-MUVA_train.json` and its like). A guess after D2SA: the field names are not published."""


@dataclass(frozen=True)
class Preset:
    """A mapping by its name. words: what it is for. sure: False for a guess. no_rank: the rank that says nothing, if there is one."""

    words: str
    fields: Mapping[str, str]
    sure: bool = True
    no_rank: float | None = None


_GUESS = "field names guessed: check them with `sas data check`, change them with --fields"
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "coco": Preset("COCO-style JSON; `segmentation` is amodal, further fields by --fields", GENERIC),
        "kins": Preset("KINS, first release: instances_*.json", KINS),
        "kins2020": Preset("KINS of 2020: update_*_2020.json", KINS_2020, no_rank=0),
        "d2sa": Preset("D2SA: D2S_amodal_*.json", D2SA),
        "intra-afruit": Preset(f"Intra-AFruit; {_GUESS}", INTRA_AFRUIT, sure=False),
        "acom": Preset(f"ACom; {_GUESS}", INTRA_AFRUIT, sure=False),
        "interamix": Preset(f"InterAMix; {_GUESS}", INTRA_AFRUIT, sure=False),
        "muva": Preset(f"MUVA: AiFi-MUVA_*.json; {_GUESS}", MUVA, sure=False),
    }
)


PICTURE_CURE = "name the right one with --images FOLDER (data.images in a configuration)"
EXAMPLES = 8
"""Pictures, and annotations of each, that are looked at for the kind of a field's values."""
EVIDENCE = ("amodal", "visible", "invisible", "rank")
"""What is read of an object's shape and, but for the first, says something of the order."""


class CocoScenes(AnnotatedScenes):
    """Scenes of a COCO-style JSON file, in the order of its images.

    images: folder of the pictures; without it the JSON's own. A picture is looked for there under its `file_name`, and under the last
    part of it. preset: a name in PRESETS. fields: changes to the preset's mapping, a word of WORDS -> name of the field in the file,
    "" for a field that is not to be read. The order is known if the file has ranks, or visible or invisible masks.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        images: str | Path | None = None,
        preset: str = "coco",
        fields: Mapping[str, str] = MappingProxyType({}),
        min_overlap: float = DEFAULT_MIN_OVERLAP,
    ) -> None:
        self.path = Path(path)
        if preset not in PRESETS:
            raise InputError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}; {_meant(preset, PRESETS)}")
        self._preset = preset
        self.asked = {**PRESETS[self._preset].fields, **checked_fields(fields)}
        self.fields = {word: name for word, name in {**COCO, **self.asked}.items() if name}
        for word in ("amodal", "id", "image_id", "file_name"):
            if word not in self.fields:
                raise InputError(f"fields must name a field for {word} ({WORDS[word]}), got none; add {word}=NAME")
        self.min_overlap = min_overlap
        self.images = picture_folder(self.path, images)
        self.records = AnnotationIndex(
            path,
            image_id=self.fields["image_id"],
            id=self.fields["id"],
            category=self.fields.get("category", ""),
        )
        self.names = {str(one["id"]): str(one.get("name", one["id"])) for one in self.records.categories if "id" in one}
        evidence = [self.fields[word] for word in EVIDENCE[1:] if word in self.fields]
        self.ordered = any(self.records.fields.get(name) for name in evidence)
        self.picture_cure = PICTURE_CURE
        self.order_cure = self._likeness() or (
            f"to train, name the field of visible masks or of ranks: --fields visible=NAME or rank=NAME {IN_CONFIGURATION}"
        )

    def __len__(self) -> int:
        return len(self.records)

    def file_defects(self) -> list[Defect]:
        """Defects of the index, and fields of the mapping that no annotation has."""
        defects: list[Defect] = []
        for word, name in self.asked.items():
            if name and word not in ("file_name", "height", "width") and not self.records.fields.get(name):
                words = self._missing("no annotation has a field", word, self.records.fields)
                defects.append(Defect("error", "field", words, "refuse" if word == "amodal" else "keep"))
        return defects + self.records.defects

    @cached_property
    def _astray(self) -> bool:
        """Whether some annotations are of pictures that the file does not list, so that pictures may have lost theirs."""
        return any(defect.code == "image-unknown" for defect in self.records.defects)

    def inspect(self, index: int) -> tuple[Scene | None, list[Defect]]:
        scene, defects = super().inspect(index)
        if scene is not None and self._astray and any(defect.code == "unannotated" for defect in defects):
            scene = replace(scene, complete=False)
        return scene, defects

    def raw(self, index: int) -> tuple[RawScene, list[Defect]]:
        image, annotations = self.records.read(index)
        id = scene_id(image["id"])
        file = image.get(self.fields["file_name"])
        defects: list[Defect] = []
        if not (isinstance(file, str) and file):
            words = self._missing("the image has no field", "file_name", image)
            return RawScene(id, self.images, ()), [Defect("error", "field", words, "refuse", image=id)]
        where = find_picture(self.images, file)
        if not self.records.fields.get(self.fields["amodal"]):
            words = self._missing("no annotation has a field", "amodal", self.records.fields)
            return RawScene(id, where, ()), [Defect("error", "field", words, "refuse", image=id)]
        if not annotations:
            defects.append(bare(id))
        objects: list[RawObject] = []
        taken: Counter[str] = Counter()
        for place, record in enumerate(annotations):
            name = unique(str(self._get(record, "id", f"annotation {place + 1}")), taken)
            if self._get(record, "amodal") is None:
                words = self._missing("the annotation has no field", "amodal", record)
                defects.append(Defect("error", "field", words, "drop", image=id, object=name))
            objects.append(self._object(record, name, id, defects))
        height, width = (image.get(self.fields.get(side, "")) for side in ("height", "width"))
        size = stated_size(height, width, id, defects)
        return RawScene(id, where, tuple(objects), size=size, ordered=self.ordered), defects

    def _object(self, record: dict[str, Any], name: str, image: str, defects: list[Defect]) -> RawObject:
        category = self._get(record, "category")
        if category is not None and self.names and str(category) not in self.names:
            words = f"the file lists no category {category}; the object is named by the number"
            defects.append(Defect("warning", "category-unknown", words, "keep", image=image, object=name))
        rank = stated_number(f"{self.fields.get('rank')} (rank)", self._get(record, "rank"), image, name, defects)
        return RawObject(
            id=name,
            name="object" if category is None else self.names.get(str(category), str(category)),
            amodal=self._get(record, "amodal"),
            visible=self._get(record, "visible"),
            invisible=self._get(record, "invisible"),
            rank=None if rank == PRESETS[self._preset].no_rank else rank,
            group=str(self._get(record, "group", "")),
            stuff=truth(self._get(record, "stuff")),
            crowd=truth(self._get(record, "crowd")),
            lost=self._get(record, "amodal") is None,
        )

    def _get(self, record: Mapping[str, Any], word: str, default: Any = None) -> Any:
        """The field that a word stands for; the default if it is not mapped, not there, or null."""
        value = record.get(self.fields.get(word, ""))
        return default if value is None else value

    def _missing(self, words: str, word: str, record: Mapping[str, Any]) -> str:
        """The words, what field they are about, what there is instead, and the cure."""
        name = self.fields[word]
        if name in record:
            return f"{name} ({word}) must not be empty, got {str(record[name])[:40]}"
        if other := self._likeness():
            cure = other
        elif meant := suggest(word, name, self._examples(record), self.fields):
            cure = f"did you mean --fields {word}={meant} {IN_CONFIGURATION}?"
        else:
            cure = f"name the right one: --fields {word}=NAME {IN_CONFIGURATION}"
        return f"{words} {name!r} ({word}); it has {listed(record)}; {cure}"

    def _examples(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """The record, or, for the counts of fields of all annotations, values of the first ones."""
        if record is not self.records.fields:
            return record
        values: dict[str, Any] = dict.fromkeys(record)
        for place in range(min(len(self), EXAMPLES)):
            for annotation in self.records.read(place)[1][:EXAMPLES]:
                values.update({name: value for name, value in annotation.items() if value is not None})
        return values

    def _likeness(self) -> str:
        """The cure if the file looks like another format, whose fields it has while some of ours are missing; else ""."""
        found = looks_like(self.records.fields)
        mapped = {self.fields[word] for word in EVIDENCE if word in self.fields}
        if not found or (mapped <= self.records.fields.keys() and self.ordered):
            return ""
        if found in PRESETS and PRESETS[found].fields == PRESETS[self._preset].fields:
            return ""
        return f"the file looks like another format: --format {found} (data.format in a configuration)"


def checked_fields(fields: Mapping[str, str], *, words: Mapping[str, str] = WORDS) -> dict[str, str]:
    """The mapping if all its words are known and all its names are texts."""
    for word, name in fields.items():
        if word not in words:
            alias = ALIASES.get(word, "")
            cure = f"did you mean {alias!r} ({words[alias]})?" if alias in words else _meant(word, words)
            raise InputError(f"fields must map words of {', '.join(words)}, got {word!r}; {cure}")
        if not isinstance(name, str):
            raise InputError(f"fields must map {word} to the name of a field, got {name!r}; pass a text")
    return dict(fields)


def _meant(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else "choose one of them"


# ---------------------------------------------------------------------- shared with COCOA


def picture_folder(path: Path, images: str | Path | None) -> Path:
    """The folder to look for pictures in: as given, or that of the annotation file."""
    if images is None:
        return path.parent
    if not Path(images).is_dir():
        found = "a file" if Path(images).exists() else "nothing"
        raise InputError(f"images must name the folder of the pictures, found {found} at {images}; correct the path")
    return Path(images)


def find_picture(folder: Path, name: str) -> Path:
    """A picture under its name in a folder or, if it is not there, under the last part of the name."""
    name = name.replace("\\", "/").replace("\0", "\N{REPLACEMENT CHARACTER}")  # no file name can hold a zero
    # Nor can one have more than 255 bytes; asking for such a file is an error, and not an answer.
    name = "/".join(
        part if len(part.encode(errors="replace")) <= 255 else f"{part[:40]}..." for part in name.split("/")
    )
    last = folder / PurePosixPath(name).name
    whole = folder / name
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or PureWindowsPath(name).drive:
        return last  # a name may not lead out of the folder; a link in the folder may
    return last if last.is_file() and not whole.is_file() else whole


def scene_id(id: Any) -> str:
    """An id as the id of a scene, which names files: without slashes and without a dot at its beginning."""
    text = str(int(id)) if isinstance(id, float) and id.is_integer() else str(id)
    return text.replace("/", "_").replace("\\", "_").lstrip(".") or "_"


def unique(name: str, taken: Counter[str]) -> str:
    """The name, with a number behind it if it is taken; the index has told of that."""
    taken[name] += 1
    return name if taken[name] == 1 else f"{name} ({taken[name]})"


def truth(value: Any) -> bool:
    """True for true, any finite number but 0, and texts of these. NaN says nothing, though Python takes it for true."""
    word = str(value).strip().lower()
    return word.lstrip("+-") not in ("", "none", "null", "0", "0.0", "false", "no", "nan", "inf", "infinity")
