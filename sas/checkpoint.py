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

import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from sas.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    CheckpointError,
    find_defect,
    fsync_folder,
    verify_manifest,
    write_manifest,
    write_synced,
)

logger = logging.getLogger(__name__)

STATE = "state.json"
POINTER = "latest"

_CHECKPOINT = re.compile(r"step-(\d{8}|[1-9]\d{8,})(\.replaced-[0-9a-f]{12})?", re.ASCII)
_UNFINISHED = re.compile(rf"({_CHECKPOINT.pattern}|{POINTER})\.tmp-.+", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


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
    unfinished folder is removed, earlier checkpoints are untouched). One writer at a time: see `sas.run_lock`.
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
            write_synced(unfinished / f"{name}.safetensors", _tensor_bytes(name, group))
        write_synced(unfinished / STATE, document)
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
    return [set_aside(folder) for _, folder in _list_checkpoints(Path(root))]


def set_aside(path: Path) -> Path:
    """Rename a file or folder to ``<name>.abandoned-<id>`` and return the new path."""
    moved = _sibling(path, "abandoned")
    try:
        os.rename(path, moved)
    except OSError as error:
        raise CheckpointError(f"cannot set {path} aside: {error}. Make {path.parent} writable") from error
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
    fsync_folder(final.parent)


def _point_latest(final: Path) -> None:
    """Replace the pointer. It is a hint for people, so a failure here must not stop a run whose checkpoint is safe."""
    pointer = final.with_name(POINTER)
    unfinished = _sibling(pointer, "tmp")
    try:
        write_synced(unfinished, f"{final.name}\n".encode())
        os.replace(unfinished, pointer)
        fsync_folder(final.parent)
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
            if find_defect(folder, MANIFEST) is None:
                logger.warning("%s is newer than %s: a later start would resume from it", folder, final)
        elif whole >= keep:
            _remove(folder)
        elif find_defect(folder, MANIFEST) is None:
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
