"""What was probably meant: the field of a file that a word of ours stands for, and the format that a file is in."""

from __future__ import annotations

import difflib
from collections.abc import Container, Mapping
from types import MappingProxyType
from typing import Any

from sas.data.formats.shapes import number

IN_CONFIGURATION = "(data.fields in a configuration)"
SIGNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "cocoa": ("regions",),
        "kins2020": ("a_segm", "i_segm"),
        "kins": ("segmentation", "inmodal_seg"),
        "d2sa": ("segmentation", "visible_mask"),
    }
)
"""Fields of an annotation by which a format is known."""
_OTHER = (
    "bbox", "a_bbox", "i_bbox", "inmodal_bbox", "area", "a_area", "i_area", "occlude_rate", "keypoints", "num_keypoints", "score",
    "caption", "attributes", "author", "url", "license", "coco_url", "flickr_url", "date_captured",
)  # fmt: skip
KNOWN: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(_OTHER, ""),
        **dict.fromkeys(("segmentation", "a_segm"), "amodal"),
        **dict.fromkeys(("visible_mask", "inmodal_seg", "i_segm"), "visible"),
        **{name: name for name in ("id", "image_id", "file_name", "height", "width")},
        "invisible_mask": "invisible",
        "ico_id": "rank",
        "oco_id": "group",
        "category_id": "category",
        "iscrowd": "crowd",
        "isStuff": "stuff",
    }
)
"""What fields of published sets mean, as a word of ours, "" for none: they are never proposed for anything else."""
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("order", "depth", "layer", "level", "z", "z_order", "ordering"), "rank"),
        **dict.fromkeys(("mask", "segmentation", "full", "complete", "segm"), "amodal"),
        **dict.fromkeys(("modal", "inmodal", "seen"), "visible"),
        **dict.fromkeys(("hidden", "occluded"), "invisible"),
        **dict.fromkeys(("label", "class", "name"), "category"),
        **dict.fromkeys(("image", "picture", "file"), "file_name"),
        "cluster": "group",
        "iscrowd": "crowd",
        "isStuff": "stuff",
    }
)
"""Words that people use for ours."""


def looks_like(fields: Container[str]) -> str:
    """Name of the format whose annotations have such fields; "" if there is none."""
    return next((name for name, signs in SIGNS.items() if all(sign in fields for sign in signs)), "")


def suggest(word: str, name: str, examples: Mapping[str, Any], mapped: Mapping[str, str]) -> str | None:
    """The field that was probably meant by `name` for a word of ours: one known to be that, or a close name with a value of the right kind.

    examples: value of each field there is, None if it is not known. mapped: fields that stand for words already.
    """
    taken = {field for other, field in mapped.items() if other != word}
    fit = [
        field
        for field, value in examples.items()
        if field not in taken and KNOWN.get(field, word) == word and (value is None or _is_kind(word, value))
    ]
    known = next((field for field in fit if KNOWN.get(field) == word), None)
    return known or next(iter(difflib.get_close_matches(name, fit, n=1)), None)


def _is_kind(word: str, value: Any) -> bool:
    if word in ("amodal", "visible", "invisible"):
        return isinstance(value, list | dict)
    if word in ("rank", "height", "width"):
        return number(value) is not None
    if word == "file_name":
        return isinstance(value, str)
    return isinstance(value, str | int | float)
