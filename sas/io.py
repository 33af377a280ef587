"""What is kept in files beside pictures: JSON, masks as run-length codes, and writes that happen whole or not at all.

What comes in is checked here and refused with an `InputError`. What goes out appears under its name only when it is
complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

logger = logging.getLogger(__name__)


class InputError(ValueError):
    """Input that cannot be used; the message is one line, "what is wrong; cure"."""


def first_line(error: Exception) -> str:
    """What an error of another library says, as short as it goes into a message of ours; its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def reason(error: object) -> str:
    """What an exception or warning says, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


# ---------------------------------------------------------------------- masks as run-length codes


def checked_mask(mask: np.ndarray) -> np.ndarray:
    """The mask itself; InputError unless it is bool (H, W) with at least one pixel."""
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
        raise InputError(f"mask must be a bool array (H, W), got {kind(mask)}; threshold it first, one mask at a time")
    return mask


def kind(value: object) -> str:
    """What a value is, for the words of an error: dtype and shape of an array, the type of all else."""
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def rle_encode(mask: np.ndarray) -> dict[str, Any]:
    """bool (H, W) as compressed COCO RLE, {"size": [H, W], "counts": ASCII text}."""
    rle = coco_mask.encode(np.asfortranarray(checked_mask(mask).astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def rle_decode(rle: Mapping[str, Any], *, name: str = "segmentation") -> np.ndarray:
    """bool (H, W) from compressed COCO RLE; InputError if it is malformed or does not fill its size exactly."""
    size, counts = (rle.get("size"), rle.get("counts")) if isinstance(rle, Mapping) else (None, None)
    if not isinstance(counts, str):
        raise InputError(
            f'{name} must be compressed COCO RLE {{"size": [H, W], "counts": text}}, got {repr(rle)[:60]}; '
            "encode it with pycocotools (frPyObjects for lists of runs) and .decode('ascii') its counts"
        )
    if not (isinstance(size, Sequence) and len(size) == 2 and all(_is_side(side) for side in size)):
        raise InputError(f"{name} must have a size [H, W] of two positive integers, got {repr(size)[:60]}; correct it")
    height, width = int(size[0]), int(size[1])
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and height * width > limit:
        raise InputError(f"{name} must have at most {limit} pixels, got {height}x{width}; scale the picture down first")
    try:
        runs = _rle_runs(counts)
    except (ValueError, IndexError) as error:
        raise InputError(f"{name} has counts that are no compressed RLE; encode it with pycocotools") from error
    covered = sum(runs)
    if covered != height * width:
        raise InputError(
            f"{name} must cover {height}x{width} = {height * width} pixels, got runs over {covered}; "
            "encode it with its image's size"
        )
    return np.ascontiguousarray(coco_mask.decode({"size": [height, width], "counts": counts}).astype(bool))


def _is_side(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0


def _rle_runs(counts: str) -> list[int]:
    """Runs of compressed COCO RLE, to check them: pycocotools reads past the end of counts that are too short.

    Base-32 digits offset by 48, each run after the third relative to two before, as rleFrString in maskApi.c of the COCO API;
    ValueError or IndexError for text that it would misread.
    """
    runs: list[int] = []
    at = 0
    while at < len(counts):
        value, shift, more = 0, 0, True
        while more:
            digit = ord(counts[at]) - 48
            if not 0 <= digit < 64 or shift > 30:  # seven digits hold every run of a picture
                raise ValueError(counts[at])
            value |= (digit & 0x1F) << shift
            more = bool(digit & 0x20)
            at += 1
            shift += 5
            if not more and digit & 0x10:
                value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            raise ValueError("negative run")
        runs.append(value)
    return runs


# ---------------------------------------------------------------------- JSON and atomic writes


def write_json(path: str | Path, value: Any) -> None:
    """UTF-8 JSON with a final newline; InputError for NaN, infinity and values that JSON does not know."""
    try:
        text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)
        data = f"{text}\n".encode("utf-8", "replace")  # names of files may hold bytes that are no text
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"cannot write {path}: the value is no JSON ({reason(error)}); use finite numbers, text, lists and dicts"
        ) from error
    write_file(path, data, sync=False)


def read_json(path: str | Path) -> Any:
    """JSON of a file; InputError names line and column of a fault."""
    try:
        return json.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} is not valid JSON at line {error.lineno} column {error.colno} ({error.msg}); write it again"
        ) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        column = error.start - error.object.rfind(b"\n", 0, error.start)
        raise InputError(
            f"{path} is not UTF-8 at line {line} column {column} ({error.reason}); save it as UTF-8"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({reason(error)}); check the file") from error


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file so that it holds its old or its new content, never a part, even after a loss of power.

    Missing folders are made; a symbolic link is followed. InputError "cannot write PATH: reason; cure" for what the
    system refuses, with the OSError as its cause; the old file is then untouched.
    """
    write_file(path, data, sync=True)


def write_file(path: str | Path, data: bytes, *, sync: bool) -> None:
    """`atomic_write_bytes`; `sync=False` is as whole for readers and for a killed process, and leaves durability to
    `atomic_folder`."""
    place = Path(os.path.realpath(path))
    temporary = _beside(place, "tmp")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(place)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise _cannot_write(path, error) from error
        raise
    if sync:
        _sync(place.parent)


def make_folder(folder: Path) -> None:
    """Make the folder if it is not there, before the work whose result it is for; InputError as of `atomic_write_bytes`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def check_replaceable(folder: Path, *, marks: tuple[str, ...], kind: str, name: str) -> None:
    """InputError, which calls the folder `name`, if it has files in it but not all of `marks`, by which a folder of this kind is known."""
    if folder.is_dir() and any(folder.iterdir()) and not all((folder / mark).exists() for mark in marks):
        raise InputError(
            f"{name} {folder} holds files that are no {kind}, which saving would touch; choose a new or empty folder"
        )


@contextmanager
def atomic_folder(target: str | Path, *, own: str | None = None, new: bool = False) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its name when the block ends well.

    A folder that stands there already is replaced as a whole, or, with `own`, but for what is not its own: files and folders directly in it
    whose names the regular expression `own` does not match stay there. With `new` it must be empty. On any exception `target` stays as it
    was and the temporary folder is removed. A symbolic link is followed. InputError if `target` is a file or, with `new`, holds anything, and
    "cannot write TARGET: reason; cure" where the system refuses to write, with the OSError as its cause.
    """
    place = Path(os.path.realpath(target))
    temporary = _beside(place, "tmp")
    try:
        if not new:
            put_back(place)
        with suppress(FileNotFoundError):
            os.lstat(place)  # tells of a name that cannot be, for example one that is too long
        if os.path.lexists(place) and not place.is_dir():
            raise InputError(f"cannot write {target}: it is a file; choose another output folder")
        if place.is_dir() and _holds_working_folder(place):
            raise InputError(
                f"cannot write {target}: the program runs in this folder, which would be replaced; choose another output folder"
            )
        if new and place.is_dir() and any(place.iterdir()):
            raise InputError(f"cannot write {target}: there are files in it; choose a new or empty folder")
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        try:
            yield temporary
        except InputError as error:
            # A writer of this module has told of the file, under a name that nobody has chosen.
            if isinstance(error.__cause__, OSError) and _came_from_writing(error.__cause__, temporary):
                raise _cannot_write(target, error.__cause__) from error.__cause__
            raise
        except OSError as error:
            if _came_from_writing(error, temporary):
                raise _cannot_write(target, error) from error
            raise
        try:
            if own is not None and place.is_dir():
                _carry_over(place, temporary, own)
            for folder, _, files in os.walk(temporary):
                for file in (*files, "."):
                    _sync(Path(folder, file))
            _swap(temporary, place)
        except OSError as error:
            raise _cannot_write(target, error) from error
        _sync(place.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # there only if it did not take its name


def _holds_working_folder(place: Path) -> bool:
    try:
        here = Path(os.path.realpath(os.getcwd()))
    except OSError:  # it is gone
        return False
    return place == here or place in here.parents


def _carry_over(old: Path, new: Path, own: str) -> None:
    """Copy what stands in folder `old` under other names than `own` to the folder `new`."""
    for path in old.iterdir():
        if re.fullmatch(own, path.name) or os.path.lexists(new / path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True)
        else:
            shutil.copy2(path, new / path.name, follow_symlinks=False)


def _swap(new: Path, target: Path) -> None:
    """Put folder `new` in the place of `target`, which is put back if that fails."""
    aside = _beside(target, "old")
    try:
        if os.path.lexists(target):
            target.rename(aside)
        new.rename(target)
    except BaseException:
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise
    with suppress(OSError):
        aside = aside.rename(_beside(target, "tmp"))  # by that name `put_back` passes it over
    shutil.rmtree(aside, ignore_errors=True)
    if aside.exists():
        logger.warning("the old content of %s could not be removed and is left at %s", target, aside)


def put_back(target: str | Path) -> None:
    """Give a folder its name again if a kill or a power cut struck in the moment at which another one took it: it is there under a
    hidden name then, and nothing under its own."""
    place = Path(os.path.realpath(target))
    with suppress(OSError):
        if not os.path.lexists(place):
            name = re.compile(re.escape(_prefix(place, "old")) + "[0-9a-f]{12}")
            aside = [path for path in place.parent.iterdir() if name.fullmatch(path.name) and path.is_dir()]
            if aside:
                max(aside, key=lambda path: path.stat().st_mtime).rename(place)


def _beside(path: Path, kind: str) -> Path:
    """A hidden name in the same folder, hence on the same file system, that nobody else uses."""
    return path.parent / (_prefix(path, kind) + secrets.token_hex(6))


def _prefix(path: Path, kind: str) -> str:
    name = path.name
    if len(name) > 50:  # a hidden name has 255 bytes at most
        name = f"{name[:41]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"
    return f".{name}.{kind}-"


WINDOWS = os.name == "nt"


class OpenFile:
    """A file open for reading, whose bytes several threads take from any place at once. It closes when nobody holds it any more,
    so that dropping it takes no file from a thread that still reads. OSError if it cannot be opened or read.

    size: bytes of the file when it was opened."""

    def __init__(self, path: str | Path) -> None:
        self._handle = -1
        self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock = threading.Lock()
        self.size = os.fstat(self._handle).st_size

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start` on, fewer if the file ends before."""
        pieces = []
        while size > 0 and (piece := self._piece(start, size)):
            pieces.append(piece)
            start, size = start + len(piece), size - len(piece)
        return b"".join(pieces)

    def _piece(self, start: int, size: int) -> bytes:
        if hasattr(os, "pread"):  # it has no position that threads would share; Windows lacks it
            return os.pread(self._handle, size, start)
        with self._lock:
            os.lseek(self._handle, start, os.SEEK_SET)
            return os.read(self._handle, size)


def _sync(path: Path) -> None:
    """Force a file or folder to disk."""
    if not path.exists():  # a link to nowhere
        return
    if WINDOWS and path.is_dir():  # it opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot sync folders; a full or broken disk must be told.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def _came_from_writing(error: OSError, folder: Path) -> bool:
    """Whether an error in the block is about the folder being written, and not about a file that the block reads."""
    if isinstance(error.filename, str | os.PathLike):
        return folder in Path(os.path.realpath(error.filename)).parents
    return error.errno in (*_FULL, errno.EROFS, errno.EIO)


def _cannot_write(path: str | Path, error: OSError) -> InputError:
    if error.errno in _FULL:
        cure = "free some space or choose another disk"
    elif error.errno in _FORBIDDEN:
        cure = "choose a folder that you may write"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST):
        cure = "a part of the path is a file: choose another path"
    else:
        cure = "choose another path"
    return InputError(f"cannot write {path}: {reason(error)}; {cure}")
