"""A scene as JSON and back, as the project format and the packed shards keep it; and lazy sequences of scenes."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self, overload

import numpy as np

from sas.io import InputError, rle_decode, rle_encode
from sas.order import edges_from_order, order_from_edges
from sas.scene import Scene


class Reopened:
    """An object that goes to another process as the arguments it was made with: nothing it holds is copied, and files are opened anew."""

    _made_with: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **options: Any) -> Self:
        self = super().__new__(cls)
        self._made_with = tuple(map(_plain, args)), {name: _plain(value) for name, value in options.items()}
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), *self._made_with)


def _plain(value: Any) -> Any:
    """Mappings as dicts: a view of one, such as the fields of the known formats are, goes to no other process."""
    return dict(value) if isinstance(value, Mapping) else value


def _reopen(kind: type[Reopened], args: tuple[Any, ...], options: dict[str, Any]) -> Reopened:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # what there was to say was said when it was opened first
    try:
        return kind(*args, **options)
    finally:
        logging.disable(before)


class LazyScenes(Reopened, Sequence[Scene]):
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

    @abstractmethod
    def read(self, index: int) -> Scene:
        """The scene at a place from 0 to len(self) - 1."""


def new_id(scene: Scene, taken: set[str]) -> str:
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


def scene_entry(scene: Scene, file: str) -> dict[str, Any]:
    """All of a scene but its pixels and `min_overlap`, as JSON values; masks are COCO RLE. file: where its picture is."""
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
        **({} if scene.known is None else {"known": rle_encode(scene.known)}),
        **({} if scene.complete else {"complete": False}),
        # Without objects, nothing else would say that visible masks were given.
        **({"visible": []} if scene.visible_masks is not None and not objects else {}),
    }


def scene_from_entry(entry: dict[str, Any], *, image: np.ndarray, min_overlap: float, where: str) -> Scene:
    """Scene of a `scene_entry`. image: uint8 (H, W, 3), its picture. where: file and line, for errors (InputError)."""
    try:
        return _scene(entry, image=image, min_overlap=min_overlap, where=where)
    except KeyError as error:
        raise InputError(f"{where}: {error.args[0]} is missing; write the data set again") from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        words = str(error)
        if words.startswith(where):
            raise
        raise InputError(f"{where}: {words}; write the data set again") from error


def _scene(entry: dict[str, Any], *, image: np.ndarray, min_overlap: float, where: str) -> Scene:
    height, width = entry["height"], entry["width"]
    if image.shape[:2] != (height, width):
        raise InputError(
            f"{where}: image {entry['file']} must be {width}x{height}, got {image.shape[1]}x{image.shape[0]}; restore the picture"
        )
    if not isinstance(entry["id"], str):
        raise InputError(f"{where}: id must be a text, got {str(entry['id'])[:40]}; write the data set again")
    if not isinstance(min_overlap, int | float) or not 0 <= min_overlap <= 1:
        raise InputError(
            f"{where}: min_overlap must lie in [0, 1], got {str(min_overlap)[:40]}; write the data set again"
        )
    complete = entry.get("complete", True)
    if not isinstance(complete, bool):
        raise InputError(
            f"{where}: complete must be true or false, got {str(complete)[:40]!r}; write the data set again"
        )
    objects, order = entry["objects"], entry["order"]
    masks = _decode([o["segmentation"] for o in objects], height, width, where)
    seen = all("visible" in o for o in objects) if objects else "visible" in entry
    return Scene(
        image=image,
        amodal_masks=masks,
        order_matrix=None if order is None else order_from_edges(order, len(masks)),
        names=tuple(o["name"] for o in objects),
        id=entry["id"],
        visible_masks=_decode([o["visible"] for o in objects], height, width, where) if seen else None,
        alternatives=tuple(_decode(masks, height, width, where) for masks in entry["alternatives"]),
        min_overlap=min_overlap,
        source=entry["source"],
        dropped=entry.get("dropped", 0),
        known=_decode([entry["known"]], height, width, where)[0] if "known" in entry else None,
        complete=complete,
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
