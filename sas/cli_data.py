"""`sas data ...`: look at annotated data, convert it, pack it. Arguments to calls; besides it only `sas.cli` and `sas.__main__` print."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional

if TYPE_CHECKING:
    from sas.scene import Scene


@dataclass(frozen=True)
class _Reading:
    """What every command on annotated data reads."""

    path: Positional[str]
    """Annotation file, or folder of scenes."""
    format: str = "auto"
    """Format of the data; `sas data formats` lists them."""
    images: str | None = None
    """Folder of the pictures that an annotation file names."""
    fields: tuple[str, ...] = ()
    """Field names of a COCO-style file that differ from the preset, as amodal=NAME visible=NAME ...; modal: visible=NAME."""
    annotators: str | None = None
    """COCOA: "all" annotators, the first "one" of each picture, or an annotator's name."""
    regions: Literal["all", "things", "stuff"] | None = None
    """COCOA: which regions."""
    front: Literal["last", "first"] | None = None
    """labelme: which end of a file's list of shapes is nearest, where they have no z_order; "last" is assumed."""
    limit: int | None = None
    """Pictures at most, the first ones."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show tracebacks."""


@dataclass(frozen=True)
class Check(_Reading):
    """Find what is wrong with annotations, in plain words, before a training does."""

    out: str | None = None
    """Folder for report.md, report.json and a contact sheet with layers drawn."""
    repair: str | None = None
    """Folder for a cleaned copy in the project format; of modal masks, a COCO-style file."""


@dataclass(frozen=True)
class Convert(_Reading):
    """Write scenes in another format."""

    out: str = ""
    """Folder to write."""
    to: Literal["project", "sas", "cocoa", "kins2020"] = "project"
    """Format to write."""


@dataclass(frozen=True)
class Pack(_Reading):
    """Write scenes as shards that stream from disk in sequence, for large sets."""

    out: str = ""
    """Folder to write."""
    shard_size: int = 1000
    """Scenes a shard."""


@dataclass(frozen=True)
class Formats:
    """List the formats that can be read."""

    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show tracebacks."""


def open_scenes(options: _Reading, *, look: bool = False) -> Sequence[Scene]:
    """The scenes that the arguments name. look: for the checker, see `open_format`."""
    from sas.data.formats.registry import open_format

    return open_format(
        options.path,
        format=options.format,
        look=look,
        images=options.images,
        fields=named_fields(options.fields),
        annotators=options.annotators,
        regions=options.regions,
        front=options.front,
    )


def named_fields(pairs: Sequence[str]) -> dict[str, str]:
    """The mapping that --fields gives as WORD=NAME."""
    from sas.io import InputError

    wrong = [one for one in pairs if "=" not in one]
    if wrong:
        raise InputError(f"--fields must be pairs such as amodal=segmentation, got {wrong[0]!r}; write it as WORD=NAME")
    return dict(one.split("=", 1) for one in pairs)  # type: ignore[misc]


def check(options: Check) -> int:
    from sas.data_check import run_check

    named_fields(options.fields)  # a mistake in the arguments is no defect of the data
    return run_check(
        lambda: open_scenes(options, look=True),
        data=options.path,
        out=options.out,
        repair=options.repair,
        limit=options.limit,
        write=print,
    )


def convert(options: Convert) -> int:
    from sas.data.folders import write_project, write_sas_folders
    from sas.data.formats.writers import write_cocoa, write_kins2020

    out = new_folder(options.out)
    chosen = _Chosen(open_scenes(options), options.limit)
    if options.to == "project":
        count = write_project(out, chosen, min_overlap=0.01, generator=f"sas data convert {options.path}")
    else:
        writers: dict[str, Any] = {"sas": write_sas_folders, "cocoa": write_cocoa, "kins2020": write_kins2020}
        count = writers[options.to](out, chosen)
    _tell_order(chosen)
    print(f"{count} scenes -> {out}")
    return 0


def pack_shards(options: Pack) -> int:
    from sas.data.shards import pack

    out = new_folder(options.out)
    chosen = _Chosen(open_scenes(options), options.limit)
    count = pack(chosen, out, shard_size=options.shard_size, progress=True)
    _tell_order(chosen)
    print(f"{count} scenes -> {out}")
    return 0


class _Chosen(Sequence["Scene"]):
    """The first scenes of a sequence, still read one by one. unordered: how many of those read have no order at all. open: pairs of
    objects in the others of which nothing says which is in front."""

    def __init__(self, scenes: Sequence[Scene], limit: int | None) -> None:
        self.scenes, self.places, self.unordered, self.open = scenes, _places(scenes, limit), 0, 0
        self.counts = getattr(scenes, "counts", None)  # of annotated scenes, which count while they are read
        if (told := getattr(scenes, "told", None)) is not None:
            told.add("order-unknown")  # the count comes at the end

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        from sas.scene import open_pairs

        scene = self.scenes[self.places[index]]
        self.unordered += scene.order_matrix is None
        if self.counts is None:
            self.open += len(open_pairs(scene))
        return scene


def _tell_order(chosen: _Chosen) -> None:
    """What is not known of the order of scenes that were written, with counts."""
    if chosen.unordered:
        which = (
            "nothing says"
            if chosen.unordered == len(chosen)
            else f"in {chosen.unordered} of {len(chosen)} scenes nothing says"
        )
        words = f"order-none: {which} who is in front; scenes without an order have no layers and cannot be trained on"
        print(f"WARNING {words}", file=sys.stderr)
    if pairs := chosen.open if chosen.counts is None else chosen.counts["order-unknown"]:
        words = f"order-unknown: {pairs} pair{'' if pairs == 1 else 's'} of objects overlap and nothing says which is in front"
        cure = "neither counts as in front in what was written; `sas data check` names each"
        print(f"WARNING {words}; {cure}", file=sys.stderr)


def formats(options: Formats) -> int:
    from sas.data.formats.registry import FORMATS

    for name, chosen in FORMATS.items():
        print(f"  {name:14s}{chosen.words}")
    return 0


def new_folder(out: str) -> Path:
    """The folder that `--out` names; InputError if it holds anything."""
    from sas.io import InputError

    if not out:
        raise InputError("--out must name a folder, got nothing; name a new one")
    folder = Path(out)
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"--out {out} must be a new or empty folder, got one with files in it; choose another")
    return folder


def _places(scenes: Sequence[Scene], limit: int | None) -> range:
    """Numbers of the first scenes."""
    from sas.io import InputError

    if limit is not None and limit < 1:
        raise InputError(f"--limit must be at least 1, got {limit}; leave it out for all pictures")
    return range(len(scenes) if limit is None else min(limit, len(scenes)))


COMMANDS: dict[str, tuple[type[Any], Callable[[Any], int]]] = {
    "check": (Check, check),
    "convert": (Convert, convert),
    "pack": (Pack, pack_shards),
    "formats": (Formats, formats),
}
