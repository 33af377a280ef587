"""Scenes on disk: the project format, and the folders of the SAS authors' code.

**Project format** (version 1). `images/<id>.png`; `scenes.jsonl`, a line a scene: {id, file, width, height, objects: [{name,
segmentation}], order: [[front, behind], ...], alternatives, source, dropped}, masks as COCO RLE of the amodal masks in the
image's frame; `dataset.json` {format_version, min_overlap, generator, seed, count, sha256 of scenes.jsonl}.

**SAS folders.** `<id>_<layer>/{image,mask,newmask}.png`: `mask` is the layer's amodal mask, `newmask` the cumulative mask, and one
more folder after the last layer has an empty `mask`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from sas.io import (
    InputError,
    atomic_folder,
    read_image,
    read_json,
    read_mask,
    rle_decode,
    rle_encode,
    write_json,
    write_mask,
)
from sas.order import edges_from_order, order_from_edges
from sas.scene import Scene

FORMAT_VERSION = 1


def open_scenes(path: str | Path) -> ProjectFolder | SASFolders:
    """The scenes below a folder, in whichever of the two formats it is."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(
            f"data {path} must be a folder, found {'a file' if path.exists() else 'nothing'}; check the path"
        )
    if (path / "dataset.json").exists():
        return ProjectFolder(path)
    if SASFolders.layer_folders(path):
        return SASFolders(path)
    raise InputError(
        f"data {path} holds neither dataset.json nor folders <id>_<layer>; write it with `sas compose --out {path}` or check the path"
    )


class _Scenes(Sequence[Scene]):
    """A lazy sequence: a scene is read when it is asked for."""

    @overload
    def __getitem__(self, index: int) -> Scene: ...
    @overload
    def __getitem__(self, index: slice) -> list[Scene]: ...
    def __getitem__(self, index: int | slice) -> Scene | list[Scene]:
        if isinstance(index, slice):
            return [self.read(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        return self.read(index % len(self))

    def read(self, index: int) -> Scene:
        raise NotImplementedError


class ProjectFolder(_Scenes):
    """Scenes of a folder in the project format."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.info: dict[str, Any] = read_json(self.path / "dataset.json")
        version = self.info.get("format_version")
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
        self.min_overlap = float(self.info.get("min_overlap", 0.01))
        self.lines = text.decode().splitlines()
        if not self.lines:
            raise InputError(f"{self.path} must hold at least one scene, got none; compose some with `sas compose`")

    def __len__(self) -> int:
        return len(self.lines)

    def read(self, index: int) -> Scene:
        entry = json.loads(self.lines[index])
        where = f"{self.path}/scenes.jsonl line {index + 1}"
        height, width = entry["height"], entry["width"]
        image = read_image(self.path / entry["file"])
        if image.shape[:2] != (height, width):
            raise InputError(
                f"{where}: image {entry['file']} must be {width}x{height}, got {image.shape[1]}x{image.shape[0]}; restore the picture"
            )
        masks = _decode([o["segmentation"] for o in entry["objects"]], height, width, where)
        order = entry["order"]
        return Scene(
            image=image,
            amodal_masks=masks,
            order_matrix=None if order is None else order_from_edges(order, len(masks)),
            names=tuple(o["name"] for o in entry["objects"]),
            id=entry["id"],
            visible_masks=_decode([o["visible"] for o in entry["objects"]], height, width, where)
            if entry["objects"] and all("visible" in o for o in entry["objects"])
            else None,
            alternatives=tuple(_decode(masks, height, width, where) for masks in entry["alternatives"]),
            min_overlap=self.min_overlap,
            source=entry["source"],
            dropped=entry.get("dropped", 0),
        )


def _decode(segmentations: list[dict[str, Any]], height: int, width: int, where: str) -> np.ndarray:
    masks = np.zeros((len(segmentations), height, width), dtype=bool)
    for i, rle in enumerate(segmentations):
        mask = rle_decode(rle)
        if mask.shape != (height, width):
            raise InputError(
                f"{where}: segmentation of object {i} must be {height}x{width}, got {mask.shape[0]}x{mask.shape[1]}; write the data set again"
            )
        masks[i] = mask
    return masks


def write_project(
    path: str | Path, scenes: Iterable[Scene], *, min_overlap: float, generator: str = "", seed: int | None = None
) -> int:
    """Write scenes in the project format; returns how many. The folder appears when it is complete."""
    lines: list[str] = []
    with atomic_folder(Path(path)) as folder:
        (folder / "images").mkdir()
        taken: set[str] = set()
        for scene in scenes:
            file = f"images/{_new_id(scene, taken)}.png"
            Image.fromarray(scene.image).save(folder / file)
            lines.append(json.dumps(_entry(scene, file), allow_nan=False))
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


def _new_id(scene: Scene, taken: set[str]) -> str:
    """The scene's id, which names files: refused if it leads elsewhere or if another scene of the set has it."""
    if not scene.id or scene.id.startswith(".") or any(sign in scene.id for sign in "/\\\0"):
        raise InputError(
            f"id of a scene must be a file name without / or a leading dot, got {scene.id!r}; rename the scene"
        )
    if scene.id in taken:
        raise InputError(
            f"id of a scene must be its own, got {scene.id!r} twice; rename one of the scenes, or one picture would replace the other"
        )
    taken.add(scene.id)
    return scene.id


def _entry(scene: Scene, file: str) -> dict[str, Any]:
    objects: list[dict[str, Any]] = []
    for i, name in enumerate(scene.names):
        objects.append({"name": name, "segmentation": rle_encode(scene.amodal_masks[i])})
        if scene.visible_masks is not None:
            objects[-1]["visible"] = rle_encode(scene.visible_masks[i])
    return {
        "id": scene.id,
        "file": file,
        "width": scene.width,
        "height": scene.height,
        "objects": objects,
        "order": None if scene.order_matrix is None else edges_from_order(scene.order_matrix),
        "alternatives": [[rle_encode(mask) for mask in masks] for masks in scene.alternatives],
        "source": scene.source,
        "dropped": scene.dropped,
    }


class SASFolders(_Scenes):
    """Scenes of a root of `<id>_<layer>` folders. A layer is one object here, since the folders do not tell objects apart.

    `min_overlap` is 0: the layers are as given, each in front of those after it. Masks are binarised with > 0, because some
    published `newmask` files hold 253..255 after a wrap of 8-bit numbers.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.folders = self.layer_folders(self.path)
        if not self.folders:
            raise InputError(f"{self.path} must hold folders <id>_<layer>, got none; check the path")
        self.ids = sorted(self.folders)

    @staticmethod
    def layer_folders(path: Path) -> dict[str, list[Path]]:
        """Folders of each image id, by layer."""
        found: dict[str, list[tuple[int, Path]]] = {}
        for folder in path.iterdir():
            name, _, layer = folder.name.rpartition("_")
            if name and layer.isdigit() and (folder / "mask.png").exists():
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
    """Write scenes as `<id>_<layer>` folders; returns how many scenes."""
    taken: set[str] = set()
    with atomic_folder(Path(path)) as root:
        for scene in scenes:
            name = _new_id(scene, taken)
            empty = np.zeros((1, scene.height, scene.width), dtype=bool)
            for layer, mask in enumerate(np.concatenate([scene.layer_masks, empty])):
                folder = root / f"{name}_{layer}"
                folder.mkdir()
                Image.fromarray(scene.image).save(folder / "image.png")
                write_mask(folder / "mask.png", mask)
                write_mask(folder / "newmask.png", scene.cumulative_masks[layer])
    return len(taken)
