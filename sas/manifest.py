"""Folders that can be trusted: files forced to disk, a manifest of their hashes, and no pickle among them."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from pathlib import Path, PurePosixPath

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1  # of manifests, and of the checkpoints that they seal
MANIFEST = "MANIFEST.json"
PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl"})


class CheckpointError(RuntimeError):
    """A checkpoint, manifest or weight file that cannot be written, read or trusted."""


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
        fsync_folder(paths[name])
    document = {"format_version": FORMAT_VERSION, "files": files}
    write_synced(folder / MANIFEST, (json.dumps(document, indent=1) + "\n").encode())
    fsync_folder(folder)


def verify_manifest(folder: Path, *, name: str = MANIFEST) -> None:
    """Check every file listed in the manifest `name` of `folder`; CheckpointError names the first defect.

    Files that are not listed are ignored: a README or .gitattributes may be added later.
    """
    defect = find_defect(Path(folder), name)
    if defect is not None:
        raise CheckpointError(
            f"{folder}: {defect}. Copy or download the folder again; "
            "after a change made on purpose, call sas.manifest.write_manifest on it"
        )


def find_defect(folder: Path, manifest: str) -> str | None:
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


# ------------------------------------------------------------------------------------------- writes that last


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and force it to disk; a reader may see a part of it, so its folder gets its name afterwards."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
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
