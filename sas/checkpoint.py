"""Checkpoints that survive a kill at any moment, a full disk and a flipped bit; no pickle anywhere.

A checkpoint is a folder ``step-00000120`` below the run's folder (root):

    model.safetensors, ema.safetensors, ...    one file for each name in `tensors`
    state.json                                 step, names of the tensor files, the caller's state
    MANIFEST.json                              size and SHA-256 of every other file

It is built as ``step-00000120.tmp-<id>``: files, fsync, manifest last, fsync of the folder, and then one rename makes
it visible. After that the text file ``latest`` is replaced, and only then are older checkpoints deleted. A folder of
the same step that is already there is moved to ``step-00000120.replaced-<id>`` first; the loader knows that name, so
there is no moment at which it finds nothing. Any other name in root is somebody else's: neither read nor deleted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows: no advisory locks of this kind
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST = "MANIFEST.json"
STATE = "state.json"
POINTER = "latest"
PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl"})

_CHECKPOINT = re.compile(r"step-(\d{8}|[1-9]\d{8,})(\.replaced-[0-9a-f]{12})?", re.ASCII)
_UNFINISHED = re.compile(rf"({_CHECKPOINT.pattern}|{POINTER})\.tmp-.+", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


class CheckpointError(RuntimeError):
    """A checkpoint, manifest or weight file that cannot be written, read or trusted."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back. `tensors` are contiguous CPU tensors; tuples in `state` have become JSON lists."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


# ---------------------------------------------------------------------------------------------------- save and load


def save_checkpoint(
    root: Path,
    *,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write the checkpoint of `step` below `root` and return its folder; a kill at any point loses no earlier one.

    tensors: {"model": {name: tensor}, ...}; any device, layout and dtype of safetensors, shared storage allowed.
    state: JSON values under string keys, finite numbers only.
    keep: so many checkpoints stay, this one included; damaged ones do not count, later steps are left alone.

    Raises ValueError or TypeError for a bad argument (nothing is written) and CheckpointError if the disk refuses (the
    unfinished folder is removed, earlier checkpoints are untouched). One writer at a time: see `lock_run`.
    """
    _check_save(step, tensors, keep)
    document = _state_document(step, tensors, state)
    final = Path(root) / f"step-{step:08d}"
    unfinished = _sibling(final, "tmp")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _tidy(final.parent)
        unfinished.mkdir()
        for name, group in tensors.items():
            _write_file(unfinished / f"{name}.safetensors", _tensor_bytes(name, group))
        _write_file(unfinished / STATE, document)
        write_manifest(unfinished)
        _commit(unfinished, final)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError):
            raise CheckpointError(
                f"cannot write checkpoint {final}: {error}. Earlier checkpoints are untouched; "
                "free disk space or make the folder writable, then start the same command again to resume"
            ) from error
        raise
    _point_latest(final)
    _prune(final, step, keep)
    return final


def latest_checkpoint(root: Path) -> Checkpoint | None:
    """The newest checkpoint below `root` whose manifest verifies, or None if there is no checkpoint at all.

    Each damaged folder passed over is logged as a warning with its defect. Raises CheckpointError if there are
    checkpoints but none is whole: starting from scratch silently would throw a run away.
    """
    defects = []
    for step, folder in _list_checkpoints(Path(root)):
        try:
            checkpoint = _read(folder, step)
        except CheckpointError as error:
            logger.warning("damaged checkpoint passed over: %s", error)
            defects.append(str(error))
            continue
        if defects:
            logger.warning("falling back to checkpoint %s", folder)
        return checkpoint
    if defects:
        raise CheckpointError(
            f"none of the {len(defects)} checkpoints in {root} is whole:\n  " + "\n  ".join(defects) + "\n"
            "Copy one back from a backup, or pass --restart to begin from scratch"
        )
    return None


def set_aside_checkpoints(root: Path) -> list[Path]:
    """Rename every checkpoint below `root` to ``<name>.abandoned-<id>`` and return the new paths, newest first.

    For a restart from scratch: otherwise the loader would prefer the old run's later steps. Nothing is deleted.
    """
    moved = []
    try:
        for _, folder in _list_checkpoints(Path(root)):
            moved.append(_sibling(folder, "abandoned"))
            os.rename(folder, moved[-1])
    except OSError as error:
        raise CheckpointError(f"cannot set the checkpoints in {root} aside: {error}. Make it writable") from error
    return moved


def _check_save(step: int, tensors: Mapping[str, Mapping[str, Tensor]], keep: int) -> None:
    for argument, number, least in (("step", step, 0), ("keep", keep, 1)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"{argument} must be an integer of at least {least}, got {number!r}")
    for name, group in tensors.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"tensors: {name!r} becomes a file name; use letters, digits, '_' and '-' only")
        for key, value in group.items():
            if not isinstance(key, str) or not isinstance(value, Tensor):
                raise TypeError(f"tensors[{name!r}][{key!r}] must be a string and a tensor, got {type(value).__name__}")


def _state_document(step: int, tensors: Mapping[str, Any], state: Mapping[str, Any]) -> bytes:
    _check_json_keys(state, "state")
    document = {"format_version": FORMAT_VERSION, "step": step, "tensors": sorted(tensors), "state": dict(state)}
    try:
        return json.dumps(document, indent=1, allow_nan=False).encode()
    except ValueError as error:
        raise ValueError(f"state must hold finite numbers only, JSON has no NaN or infinity: {error}") from error
    except TypeError as error:
        raise TypeError(f"state must hold JSON values only; put tensors into `tensors`: {error}") from error


def _check_json_keys(value: Any, where: str) -> None:
    """json.dumps would turn the key 1 into "1" silently, and the state read back would differ from the one saved."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} must have string keys, got {key!r}: convert it with str()")
            _check_json_keys(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_json_keys(item, f"{where}[{index}]")


def _tensor_bytes(name: str, group: Mapping[str, Tensor]) -> bytes:
    """Safetensors file of contiguous CPU copies: safetensors refuses views and tensors that share storage."""
    try:
        copies = {
            key: value.detach().to(device="cpu", copy=True, memory_format=torch.contiguous_format)
            for key, value in group.items()
        }
        return safetensors.torch.save(copies)
    except (RuntimeError, KeyError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"tensors[{name!r}] cannot be written as safetensors: {error!r}") from error


def _read(folder: Path, step: int) -> Checkpoint:
    """Verify and load one folder; CheckpointError names the folder and its first defect."""
    verify_manifest(folder)
    try:
        document = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if document["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version {document['format_version']} is not {FORMAT_VERSION}: update the package")
        if document["step"] != step:
            raise ValueError(f"{STATE} is of step {document['step']}: the folder was renamed")
        # Read into memory: a memory map would keep the disk space of a deleted checkpoint, or break if it is rewritten.
        tensors = {
            name: safetensors.torch.load((folder / f"{name}.safetensors").read_bytes()) for name in document["tensors"]
        }
        return Checkpoint(path=folder, step=step, tensors=tensors, state=document["state"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be read: {error}") from error


# ------------------------------------------------------------------------------------------- folders and their names


def _sibling(folder: Path, kind: str) -> Path:
    return folder.with_name(f"{folder.name}.{kind}-{uuid.uuid4().hex[:12]}")


def _list_checkpoints(root: Path) -> list[tuple[int, Path]]:
    """(step, folder), newest first; at equal step the regular folder before one that it replaced."""
    found = []
    try:
        for path in root.iterdir():
            match = _CHECKPOINT.fullmatch(path.name)
            if match and path.is_dir():
                found.append((int(match[1]), match[2] is None, path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"cannot list the checkpoints in {root}: {error}. Pass a readable folder") from error
    return [(step, path) for step, _, path in sorted(found, reverse=True)]


def _is_replaced(folder: Path) -> bool:
    return ".replaced-" in folder.name


def _tidy(root: Path) -> None:
    """Clean up after a killed process: finish its moves and remove what it did not finish writing."""
    for step, folder in _list_checkpoints(root):
        regular = root / f"step-{step:08d}"
        if _is_replaced(folder) and not regular.exists():
            os.rename(folder, regular)
    for path in root.iterdir():
        if _UNFINISHED.fullmatch(path.name):
            _remove(path)


def _commit(unfinished: Path, final: Path) -> None:
    replaced = _sibling(final, "replaced")
    if final.is_dir():
        os.rename(final, replaced)  # a folder cannot be renamed onto a non-empty one
    try:
        os.rename(unfinished, final)
    except OSError:
        if replaced.is_dir():
            os.rename(replaced, final)
        raise
    _fsync_folder(final.parent)


def _point_latest(final: Path) -> None:
    """Replace the pointer. It is a hint for people, so a failure here must not stop a run whose checkpoint is safe."""
    pointer = final.with_name(POINTER)
    unfinished = _sibling(pointer, "tmp")
    try:
        _write_file(unfinished, f"{final.name}\n".encode())
        os.replace(unfinished, pointer)
        _fsync_folder(final.parent)
    except OSError as error:
        logger.warning("checkpoint %s is complete, but the pointer %s cannot be replaced: %s", final, pointer, error)
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _prune(final: Path, step: int, keep: int) -> None:
    """Delete what is older than the `keep` newest whole checkpoints up to `step`; `final` is the first of them."""
    whole = 1
    for other_step, folder in _list_checkpoints(final.parent):
        if folder == final:
            continue
        if _is_replaced(folder):
            _remove(folder)
        elif other_step > step:
            if _find_defect(folder, MANIFEST) is None:
                logger.warning("%s is newer than %s: a later start would resume from it", folder, final)
        elif whole >= keep:
            _remove(folder)
        elif _find_defect(folder, MANIFEST) is None:
            whole += 1


def _remove(path: Path) -> None:
    """Delete under a temporary name: a half deleted checkpoint must not look like a damaged one."""
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        if not _UNFINISHED.fullmatch(path.name):
            doomed = _sibling(path, "tmp")
            os.rename(path, doomed)
            path = doomed
        shutil.rmtree(path)
    except OSError as error:
        logger.warning("cannot delete %s: %s", path, error)


def _write_file(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Windows cannot open folders; some network file systems refuse the call."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
        logger.debug("the file system of %s does not sync folders: %s", folder, error)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------------------- manifests


def write_manifest(folder: Path) -> None:
    """Write ``MANIFEST.json`` with size and SHA-256 of all regular files below `folder`, nested ones included.

    Names are relative POSIX paths, sorted. The files, their folders and the manifest are synced to disk, the manifest
    last. Raises OSError if a file cannot be read or the manifest not written.
    """
    folder = Path(folder)
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    paths.pop(MANIFEST, None)
    files = {}
    for name in sorted(name for name, path in paths.items() if path.is_file()):
        size, digest = _measure(paths[name], sync=os.name != "nt")
        files[name] = {"size": size, "sha256": digest}
    for name in sorted(name for name, path in paths.items() if path.is_dir()):
        _fsync_folder(paths[name])
    document = {"format_version": FORMAT_VERSION, "files": files}
    _write_file(folder / MANIFEST, (json.dumps(document, indent=1) + "\n").encode())
    _fsync_folder(folder)


def verify_manifest(folder: Path, *, name: str = MANIFEST) -> None:
    """Check every file listed in the manifest `name` of `folder`; CheckpointError names the first defect.

    Files that are not listed are ignored: a README or .gitattributes may be added later.
    """
    defect = _find_defect(Path(folder), name)
    if defect is not None:
        raise CheckpointError(
            f"{folder}: {defect}. Copy or download the folder again; "
            "after a change made on purpose, call sas.checkpoint.write_manifest on it"
        )


def _find_defect(folder: Path, manifest: str) -> str | None:
    """What is wrong with the folder, or None. Sizes come first: they find most damage without reading the files."""
    try:
        files = json.loads((folder / manifest).read_text(encoding="utf-8"))["files"]
        listed = sorted((name, entry["size"], entry["sha256"]) for name, entry in files.items())
    except FileNotFoundError:
        return f"{manifest} is missing, so the folder was never finished or is incomplete"
    except OSError as error:
        return f"{manifest} cannot be read: {error}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{manifest} is not a readable JSON manifest: {error!r}"
    try:
        for name, size, _ in listed:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                return f"{manifest} lists {name!r}, which lies outside the folder"
            if not (folder / name).is_file():
                return f"{name} is missing"
            actual_size = (folder / name).stat().st_size
            if actual_size != size:
                return f"{name} has {actual_size} bytes instead of the size {size} in {manifest}"
        for name, _, digest in listed:
            if _measure(folder / name)[1] != digest:
                return f"{name} does not match its SHA-256 hash in {manifest}: its content was changed or damaged"
    except (OSError, ValueError) as error:
        return f"cannot be checked: {error}"
    return None


def _measure(path: Path, *, sync: bool = False) -> tuple[int, str]:
    """Size in bytes and hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        size = file.tell()
        if sync:  # files written by others (save_pretrained) were never synced
            os.fsync(file.fileno())
    return size, digest.hexdigest()


def refuse_pickle(path: Path) -> None:
    """Raise CheckpointError if `path` has the suffix of a pickled weight file; the file is not opened."""
    suffix = Path(path).suffix.lower()
    if suffix in PICKLE_SUFFIXES:
        raise CheckpointError(
            f"{path} is a {suffix} file, which holds Python pickles: loading one can run any code hidden in it, "
            "so it is refused. Convert it to .safetensors if you trust it, or pass a pipeline folder of safetensors"
        )


# ------------------------------------------------------------------------------------------------------ optimizer state


def optimizer_to_tensors(optimizer_state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split `torch.optim.Optimizer.state_dict()` into flat tensors ("state.0.exp_avg") and JSON-able metadata.

    The tensors are not copied. `optimizer_from_tensors` gives back the same dictionary bit for bit: types and order of
    keys, tuples, infinities, and strides too, because a step on another memory layout may round differently.
    Raises TypeError for a value that is neither a tensor nor plain JSON.
    """
    tensors: dict[str, Tensor] = {}

    def encode(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            if name in tensors:
                raise ValueError(f"optimizer_state has two entries named {name!r}: keys must differ as text")
            tensors[name] = value.detach()
            stride = torch.empty_like(value, device="meta").stride()
            return {"tensor": name} if value.is_contiguous() else {"tensor": name, "stride": list(stride)}
        if isinstance(value, dict):
            items = []
            for key, item in value.items():
                if isinstance(key, bool) or not isinstance(key, (int, str)):
                    raise TypeError(f"optimizer_state: a key in {name or 'it'} must be int or str, got {key!r}")
                items.append([key, encode(item, f"{name}.{key}" if name else str(key))])
            return {"dict": items}
        if isinstance(value, (tuple, list)):
            items = [encode(item, f"{name}.{index}") for index, item in enumerate(value)]
            return {"tuple": items} if isinstance(value, tuple) else items
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(value)}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(
            f"optimizer_state: {name} must be a tensor, number, string, bool, None, list, tuple or dict, "
            f"got {type(value).__name__}"
        )

    meta = {"optimizer": encode(dict(optimizer_state), "")}
    return tensors, meta


def optimizer_from_tensors(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `optimizer_to_tensors`, for `Optimizer.load_state_dict`; CheckpointError if the two do not fit."""
    unused = set(tensors)

    def decode(value: Any) -> Any:
        if isinstance(value, list):
            return [decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "dict" in value:
            return {key: decode(item) for key, item in value["dict"]}
        if "tuple" in value:
            return tuple(decode(item) for item in value["tuple"])
        if "float" in value:
            return float(value["float"])
        tensor = tensors[value["tensor"]]
        unused.discard(value["tensor"])
        if "stride" not in value:
            return tensor
        layout = torch.empty_strided(tensor.shape, value["stride"], dtype=tensor.dtype, device=tensor.device)
        return layout.copy_(tensor)

    try:
        state: dict[str, Any] = decode(meta["optimizer"])
    except KeyError as error:
        raise CheckpointError(f"optimizer metadata and tensors do not belong together: {error} is missing") from error
    if unused:
        raise CheckpointError(f"optimizer metadata and tensors do not belong together: {min(unused)!r} is not listed")
    return state


# ------------------------------------------------------------------------------------------------------------ run lock

_held_locks: set[int] = set()


def _close_inherited_locks() -> None:
    """In a forked child: a data loader worker that outlives its killed trainer must not keep the lock."""
    while _held_locks:
        os.close(_held_locks.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited_locks)


@contextmanager
def lock_run(root: Path) -> Iterator[None]:
    """Hold the only right to write checkpoints below `root` (created if absent) for the duration of the block.

    An advisory flock on ``root/.lock``: the kernel releases it when the process ends, however it ends. Raises
    CheckpointError naming process and host if another holds it. Without flock there is no lock, only a log line.
    """
    if fcntl is None:
        logger.debug("no file locks on this platform: nothing keeps a second run out of %s", root)
        yield
        return
    path = Path(root) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise CheckpointError(f"cannot create the lock {path}: {error}. Pass a folder that is writable") from error
    _held_locks.add(descriptor)
    try:
        _take_lock(descriptor, path)
        yield
    finally:
        if descriptor in _held_locks:  # not in a forked child, where it is closed already
            _held_locks.remove(descriptor)
            os.close(descriptor)


def _take_lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "an unknown process"
        raise CheckpointError(
            f"{path.parent} is in use by {holder}: two runs must not write the same folder. "
            "Wait for it, stop it, or pass another folder"
        ) from error
    except OSError as error:
        logger.warning("the file system of %s has no locks, so keep other runs out of it: %s", path.parent, error)
    with suppress(OSError):  # the text is for the message above only; a full disk must not cost the lock
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on host {socket.gethostname()}".encode(), 0)
