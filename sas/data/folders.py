"""Scenes on disk: the project format, and the folders of the SAS authors' code.

**Project format** (version 1). `images/<id>.png`; `scenes.jsonl`, a line a scene: {id, file, width, height, objects: [{name,
segmentation}], order: [[front, behind], ...], alternatives, source, dropped}, masks as COCO RLE of the amodal masks in the
image's frame; with `known` (RLE) where the truth is known in parts only, and `complete: false` where the picture shows more objects
than are listed, `visible` (RLE) of an object where it is given (`"visible": []` of a scene without objects), and `min_overlap` where it is
not that of the set; `dataset.json` {format_version, min_overlap, generator, seed, count, sha256 of scenes.jsonl}.

**SAS folders.** `<id>_<layer>/{image,mask,newmask}.png`: `mask` is the layer's amodal mask, `newmask` the cumulative mask, and one
more folder after the last layer has an empty `mask`. They cannot tell what is not known: a scene that is not complete is written with
a warning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sas.data.entries import LazyScenes, new_id, scene_entry, scene_from_entry
from sas.data.shards import Shards
from sas.io import InputError, atomic_folder, read_json, write_json
from sas.pictures import read_image, read_mask, write_mask
from sas.scene import Scene

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_NO_ORDER = re.compile(r'"order"\s*:\s*null')


FOREIGN = (
    "name the format of annotations with --format NAME or, in a configuration, data.format (`sas data formats` lists them), or check the "
    "path"
)


def open_scenes(path: str | Path, *, foreign: str = FOREIGN) -> ProjectFolder | SASFolders | Shards:
    """The scenes below a folder: in the project format, packed in shards, or as SAS folders, whichever it is.

    foreign: the cure to name for a file, and for a folder that holds none of these.
    """
    path = Path(path)
    if not path.is_dir():
        found, cure = ("a file", foreign) if path.exists() else ("nothing", "check the path")
        raise InputError(f"data {path} must be a folder, found {found}; {cure}")
    if (path / "dataset.json").exists():
        return ProjectFolder(path)
    if (path / "shards.json").exists():
        return Shards(path)
    if SASFolders.layer_folders(path):
        return SASFolders(path)
    raise InputError(f"data {path} holds neither dataset.json nor shards.json nor folders <id>_<layer>; {foreign}")


class ProjectFolder(LazyScenes):
    """Scenes of a folder in the project format."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.info: dict[str, Any] = read_json(self.path / "dataset.json")
        version = self.info.get("format_version") if isinstance(self.info, dict) else None
        if version != FORMAT_VERSION:
            raise InputError(
                f"{self.path}/dataset.json must have format_version {FORMAT_VERSION}, got {version}; write it again with this version of sas"
            )
        lines = self.path / "scenes.jsonl"
        try:
            text = lines.read_bytes()
        except OSError as error:
            raise InputError(
                f"{lines} cannot be read ({error}); restore the file or write the data set again"
            ) from error
        digest = hashlib.sha256(text).hexdigest()
        if digest != self.info.get("sha256"):
            raise InputError(
                f"{lines} must have the SHA-256 {self.info.get('sha256')} of dataset.json, got {digest}; the file was changed or cut: write the data set again"
            )
        share = self.info.get("min_overlap", 0.01)
        if not isinstance(share, int | float) or not 0 <= share < 1:
            raise InputError(
                f"{self.path}/dataset.json must have a min_overlap in [0, 1), got {str(share)[:40]}; write the data set again"
            )
        self.min_overlap = float(share)
        self.lines = text.decode().splitlines()
        if not self.lines:
            raise InputError(f"{self.path} must hold at least one scene, got none; compose some with `sas compose`")

    def __len__(self) -> int:
        return len(self.lines)

    def without_order(self) -> str | None:
        """Id of the first scene that has no order, None if all have one."""
        for line in self.lines:
            # Only lines that may be meant are decoded: there may be many, and masks are long.
            if _NO_ORDER.search(line):
                with suppress(ValueError):
                    entry = json.loads(line)
                    if isinstance(entry, dict) and entry.get("order", "") is None:
                        return str(entry.get("id"))
        return None

    def read(self, index: int) -> Scene:
        entry = json.loads(self.lines[index])
        where = f"{self.path}/scenes.jsonl line {index + 1}"
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            raise InputError(f"{where}: file must name the picture, got none; write the data set again")
        return scene_from_entry(
            entry,
            image=read_image(self.path / entry["file"]),
            min_overlap=entry.get("min_overlap", self.min_overlap),
            where=where,
        )


def write_project(
    path: str | Path, scenes: Iterable[Scene], *, min_overlap: float, generator: str = "", seed: int | None = None
) -> int:
    """Write scenes in the project format; returns how many. The folder, new or empty, appears when it is complete."""
    lines: list[str] = []
    with atomic_folder(Path(path), new=True) as folder:
        (folder / "images").mkdir()
        taken: set[str] = set()
        for scene in scenes:
            file = f"images/{new_id(scene, taken)}.png"
            Image.fromarray(scene.image).save(folder / file)
            entry = scene_entry(scene, file)
            if scene.min_overlap != min_overlap:
                entry["min_overlap"] = scene.min_overlap  # its layers depend on it
            lines.append(json.dumps(entry, allow_nan=False))
        text = "".join(line + "\n" for line in lines).encode()
        (folder / "scenes.jsonl").write_bytes(text)
        info = {
            "format_version": FORMAT_VERSION,
            "min_overlap": min_overlap,
            "generator": generator,
            "seed": seed,
            "count": len(lines),
            "sha256": hashlib.sha256(text).hexdigest(),
        }
        write_json(folder / "dataset.json", info)
    return len(lines)


class SASFolders(LazyScenes):
    """Scenes of a root of `<id>_<layer>` folders. A layer is one object here, since the folders do not tell objects apart.

    Each mask is in front of those after it, and `min_overlap` is 0. As everywhere, an object's layer follows from what occludes it: a mask that
    overlaps none of those before it belongs to the first layer, whatever its number; folders that `write_sas_folders` wrote have none
    such. Masks are binarised with > 0, because some published `newmask` files hold 253..255 after a wrap of 8-bit numbers.

    InputError: a number between an image's first and last is missing, since what lies behind the gap would be taught wrongly.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.folders = self.layer_folders(self.path)
        if not self.folders:
            cure = "check the path"
            if (self.path / "dataset.json").exists():
                cure = 'these are scenes as `sas compose` writes them: set data.format to "auto"'
            raise InputError(f"{self.path} must hold folders <id>_<layer>, got none; {cure}")
        self.ids = sorted(self.folders)
        for name, folders in self.folders.items():
            first, last = (int(folder.name.rpartition("_")[2]) for folder in (folders[0], folders[-1]))
            if last - first >= len(folders):
                numbers = {int(folder.name.rpartition("_")[2]) for folder in folders}
                gap = next(number for number in range(first, last) if number not in numbers)
                raise InputError(
                    f"{self.path} must hold every layer of an image, got {folders[-1].name} and no {name}_{gap}/mask.png; "
                    "copy what is missing, or remove the folders of this image"
                )

    @staticmethod
    def layer_folders(path: Path) -> dict[str, list[Path]]:
        """Folders of each image id, by layer; a folder without a mask counts as missing."""
        found: dict[str, list[tuple[int, Path]]] = {}
        for folder in path.iterdir():
            name, _, layer = folder.name.rpartition("_")
            if name and layer.isdecimal() and (folder / "mask.png").exists():
                found.setdefault(name, []).append((int(layer), folder))
        return {name: [folder for _, folder in sorted(pairs)] for name, pairs in found.items()}

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> Scene:
        name = self.ids[index]
        folders = self.folders[name]
        image = read_image(folders[0] / "image.png")
        size = image.shape[:2]
        masks = [read_mask(folder / "mask.png", size=size, threshold=0) for folder in folders]
        layers = (
            np.stack([mask for mask in masks if mask.any()])
            if any(m.any() for m in masks)
            else np.zeros((0, *size), bool)
        )
        order = np.triu(np.ones((len(layers), len(layers)), dtype=bool), k=1)
        return Scene(
            image=image,
            amodal_masks=layers,
            order_matrix=order,
            names=tuple(f"layer {k}" for k in range(len(layers))),
            id=name,
            min_overlap=0.0,
            source=str(self.path),
        )


def write_sas_folders(path: str | Path, scenes: Iterable[Scene]) -> int:
    """Write scenes as `<id>_<layer>` folders into `path`, new or empty, which appears when it is complete; returns how many scenes."""
    taken: set[str] = set()
    partial = 0
    with atomic_folder(Path(path), new=True) as root:
        for scene in scenes:
            name = new_id(scene, taken)
            partial += scene.known is not None or not scene.complete
            empty = np.zeros((1, scene.height, scene.width), dtype=bool)
            for layer, mask in enumerate(np.concatenate([scene.layer_masks, empty])):
                folder = root / f"{name}_{layer}"
                folder.mkdir()
                Image.fromarray(scene.image).save(folder / "image.png")
                write_mask(folder / "mask.png", mask)
                write_mask(folder / "newmask.png", scene.cumulative_masks[layer])
    if partial:
        logger.warning(
            "%s: %d of %d scenes are known in parts only, which SAS folders cannot say; use the project format to keep it",
            path,
            partial,
            len(taken),
        )
    return len(taken)
