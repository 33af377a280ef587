"""The fixed division of cutouts and backgrounds into training, validation and test, by their names.

A name's SHA-256 decides, so that a division needs no list, does not change when files are added, and is the same everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

Part = Literal["train", "validation", "test"]
TEST_GROUPS = ("vehicle",)
"""Groups of cutouts (what stands before the first "__" of a name) that are for testing only."""
TEST_FAMILIES = ("ring", "bottle")
"""Families of rendered solids that are for testing only."""


def part_of(key: str) -> Part:
    """Part of a key: of ten, one is for testing and one for validation."""
    tenth = int(hashlib.sha256(name_bytes(key)).hexdigest(), 16) % 10
    return "test" if tenth == 0 else "validation" if tenth == 1 else "train"


def cutout_key(name: str) -> str:
    """What the division looks at, so that no look is on both sides: `<Class>__<Variety>` of `<Class>__<Variety>__<view>`, else the folder
    it lies in below the one that was named, as in `mug/001`, else its own name."""
    folder, _, stem = name.rpartition("/")
    return stem.rsplit("__", 1)[0] if "__" in stem else folder or stem


def cutout_part(name: str) -> Part:
    """Part of a cutout by its path below the folder that was named, without its ending."""
    key = cutout_key(name)
    return "test" if key.replace("/", "__").split("__")[0] in TEST_GROUPS else part_of(key)


def split_hash(cutouts: Iterable[str], backgrounds: Iterable[str]) -> str:
    """SHA-256 of a division: of one sorted line `key part` for each cutout's key and each background's name."""
    keys = {cutout_key(name): cutout_part(name) for name in cutouts}
    lines = [f"{key} {part}" for key, part in keys.items()] + [f"{name} {part_of(name)}" for name in set(backgrounds)]
    return hashlib.sha256(name_bytes("\n".join(sorted(lines)))).hexdigest()


def name_bytes(name: str) -> bytes:
    """A name as the file system has it, also where that is no UTF-8."""
    return name.encode("utf-8", "surrogateescape")
