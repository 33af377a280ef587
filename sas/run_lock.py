"""One writer at a time: the lock on the folder of a run."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sas.manifest import CheckpointError

try:
    import fcntl
except ImportError:  # Windows: no advisory locks of this kind
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

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
