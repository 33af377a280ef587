"""Scenes packed into a few large files that are read from front to back: tar shards as the `webdataset` package reads them.

Kept as webdataset's tar rather than as Arrow tables of `datasets`: the standard library writes and reads it, so the core needs no
pyarrow; `tar`, webdataset and `datasets` itself all open it; and a file of offsets beside each shard makes every scene
reachable in one read, so that an order of scenes may be a pure function of (seed, epoch) and a killed run goes on exactly.
Arrow's gain, columns that are read alone, is none here: a training step wants the whole scene.

```
shards.json         {"format_version": 1, "count", "generator", "seed", "shards": [{"file", "count", "bytes"}, ...]}
shard-000000.tar    plain USTAR: 000000000.png, 000000000.json, 000000001.png, ...
shard-000000.npy    int64 (count, 6): offset, size and CRC-32 of the picture, then of the JSON
```

The JSON is a scene's entry of the project format with its `min_overlap`. A sample's name is its number in the set, because webdataset
ends the name at its first dot, which ids may hold; the id is in the JSON.
"""

from __future__ import annotations

import io
import json
import tarfile
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from sas.data.entries import LazyScenes, new_id, scene_entry, scene_from_entry
from sas.io import InputError, OpenFile, atomic_folder, read_json, write_json
from sas.scene import Scene
from sas.seeding import generator_for

FORMAT_VERSION = 1
DEFAULT_SHARD_SIZE = 1000
MOST_OPEN = 64
"""Shards kept open at once: each holds a file handle and 48 bytes an item of offsets."""
CURE = "copy the data again, or write it again with `sas data pack`"


# ---------------------------------------------------------------------- writing


def pack(
    scenes: Sequence[Scene],
    out: str | Path,
    *,
    shard_size: int = DEFAULT_SHARD_SIZE,
    seed: int | None = None,
    generator: str = "",
    progress: bool = False,
) -> int:
    """Write scenes as shards into folder `out`, new or empty, which appears when it is complete; returns how many.

    scenes: read one at a time. shard_size: scenes in a shard, the last one may hold fewer. seed: None keeps the order of the scenes;
    a number shuffles them once, which a source sorted by class wants, because a shuffle buffer mixes neighbours alone.
    generator: words on where the data comes from, kept in shards.json. progress: a bar.
    InputError for a shard size below 1, no scenes, and an id that two scenes have or that is no file name.
    """
    if shard_size < 1:
        raise InputError(f"shard_size must be at least 1, got {shard_size}; {DEFAULT_SHARD_SIZE} is the default")
    if not len(scenes):
        raise InputError("scenes must hold at least one scene, got none; check the data to be packed")
    rows: Sequence[int] = range(len(scenes))
    if seed is not None:
        rows = torch.randperm(len(scenes), generator=generator_for(seed, "pack")).tolist()
    records: list[dict[str, Any]] = []
    taken: set[str] = set()
    with atomic_folder(out, new=True) as folder, tqdm(total=len(rows), unit="scene", disable=not progress) as bar:
        for start in range(0, len(rows), shard_size):
            part = rows[start : start + shard_size]
            tar = folder / f"shard-{len(records):06d}.tar"
            _write_shard(tar, (scenes[row] for row in part), first=start, taken=taken, bar=bar)
            records.append({"file": tar.name, "count": len(part), "bytes": tar.stat().st_size})
        info = {"format_version": FORMAT_VERSION, "count": len(rows), "generator": generator, "seed": seed}
        write_json(folder / "shards.json", {**info, "shards": records})
    return len(rows)


def _write_shard(path: Path, scenes: Iterable[Scene], *, first: int, taken: set[str], bar: tqdm[Any]) -> None:
    index: list[tuple[int, ...]] = []
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, scene in enumerate(scenes, start=first):
            new_id(scene, taken)
            key = f"{number:09d}"
            entry = {**scene_entry(scene, f"{key}.png"), "min_overlap": float(scene.min_overlap)}
            text = json.dumps(entry, allow_nan=False).encode()
            index.append((*_add(tar, file, f"{key}.png", _png(scene.image)), *_add(tar, file, f"{key}.json", text)))
            bar.update()
    np.save(path.with_suffix(".npy"), np.array(index, dtype=np.int64))


def _png(image: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, format="PNG")
    return encoded.getvalue()


def _add(tar: tarfile.TarFile, file: BinaryIO, name: str, data: bytes) -> tuple[int, int, int]:
    """Append a member; returns where its data begins in the file, its size and its CRC-32."""
    member = tarfile.TarInfo(name)  # time 0, so that the same scenes give the same bytes
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return file.tell() - padded, len(data), zlib.crc32(data)


# ---------------------------------------------------------------------- reading


class Shards(LazyScenes):
    """Scenes of a folder that `pack` wrote, each reached by one look at an index and two reads, from any thread or process.

    chunks: scenes in each shard, in order; what a `SceneLoader` with a `buffer` shuffles. Every sample read is checked against its
    CRC-32, and the size of every shard when the folder is opened; InputError names the shard.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.info: dict[str, Any] = read_json(self.path / "shards.json")
        where = f"{self.path}/shards.json"
        version = self.info.get("format_version") if isinstance(self.info, dict) else None
        if version != FORMAT_VERSION:
            raise InputError(
                f"{where} must have format_version {FORMAT_VERSION}, got {version}; pack the data again with this version of sas"
            )
        try:
            self.files = tuple(str(shard["file"]) for shard in self.info["shards"])
            self.chunks = tuple(int(shard["count"]) for shard in self.info["shards"])
            sizes = [int(shard["bytes"]) for shard in self.info["shards"]]
            count = int(self.info["count"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{where} must list count and shards of file, count and bytes, got {error!r}; {CURE}"
            ) from error
        if not self.chunks or min(self.chunks) < 1 or sum(self.chunks) != count:
            raise InputError(f"{where} must list shards of {count} scenes in all, got {sum(self.chunks)}; {CURE}")
        for file, size in zip(self.files, sizes, strict=True):
            _check_size(self.path / file, size)
        self._starts = np.cumsum((0, *self.chunks))
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int) -> Scene:
        shard, row = self._find(index)
        png, entry = shard.read(row, 0), self._entry(shard, row)
        image = np.array(Image.open(io.BytesIO(png)))
        where = f"{shard.path}, sample {index:09d}"
        return scene_from_entry(entry, image=image, min_overlap=entry["min_overlap"], where=where)

    def scene_id(self, index: int) -> str:
        """Id of a scene, without decoding its picture and masks."""
        return str(self._entry(*self._find(index))["id"])

    @staticmethod
    def _entry(shard: _Shard, row: int) -> dict[str, Any]:
        entry: dict[str, Any] = json.loads(shard.read(row, 3))
        name = f"{shard.first + row:09d}.png"
        if entry["file"] != name:
            raise InputError(
                f"{shard.path}: row {row} must be {name}, got {entry['file']}; files were exchanged: {CURE}"
            )
        return entry

    def _find(self, index: int) -> tuple[_Shard, int]:
        """The open shard that holds a scene, and its row there."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        with self._lock:
            shard = self._open.get(number)
            if shard is None:
                first = int(self._starts[number])
                shard = _Shard(self.path / self.files[number], count=self.chunks[number], first=first)
                self._open[number] = shard
                if len(self._open) > MOST_OPEN:
                    self._open.popitem(last=False)
            self._open.move_to_end(number)
        return shard, index - int(self._starts[number])


class _Shard:
    """An open shard."""

    def __init__(self, path: Path, *, count: int, first: int) -> None:
        self.path = path
        self.first = first
        try:
            self._file = OpenFile(path)
        except OSError as error:
            raise _unreadable(path, error) from error
        self._index = _read_index(path.with_suffix(".npy"), count, self._file.size)

    def read(self, row: int, column: int) -> bytes:
        """Bytes of a member whose offset, size and CRC-32 stand in the index from `column` on."""
        offset, size, crc = (int(value) for value in self._index[row, column : column + 3])
        try:
            data = self._file.read(offset, size)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if len(data) != size or zlib.crc32(data) != crc:
            name = f"{self.first + row:09d}.{'json' if column else 'png'}"
            raise InputError(
                f"{self.path}: {name} must have {size} bytes with the CRC-32 {crc:08x}, got {len(data)} with {zlib.crc32(data):08x}; "
                f"the shard is damaged: {CURE}"
            )
        return data


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError as error:
        raise InputError(f"shard {path} must exist, found nothing; {CURE}") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if found != size:
        raise InputError(f"shard {path} must have {size} bytes, got {found}; it was cut off or changed: {CURE}")


def _read_index(path: Path, count: int, size: int) -> np.ndarray:
    """Offsets of a shard of `count` samples and `size` bytes."""
    try:
        index = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(index, np.ndarray) or index.shape != (count, 6) or index.dtype != np.int64:
        found = f"{index.dtype} {index.shape}" if isinstance(index, np.ndarray) else type(index).__name__
        raise InputError(f"index {path} must be int64 ({count}, 6), got {found}; {CURE}")
    starts, lengths = index[:, [0, 3]], index[:, [1, 4]]
    if index.min() < 0 or (starts > size).any() or (lengths > size - starts).any():
        raise InputError(f"index {path} must lie in the {size} bytes of its shard, got offsets beyond; {CURE}")
    return index


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} cannot be read ({error}); {CURE}")
