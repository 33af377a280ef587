"""What the trainer reads from: a source is a pure function of (seed, step, positions)."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import connection, resource_tracker
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from sas.data.augment import Augmentation, augment
from sas.data.entries import Reopened
from sas.io import InputError
from sas.scene import Scene, SceneBatch, collate
from sas.seeding import Keys, generator_for

Place = tuple[int, Sequence[int]]
"""A step and positions in its global batch."""
PATIENCE = 2.0
"""Seconds that processes have to finish what they read, once nobody wants it any more."""


class SceneSource(Protocol):
    """`batch(step, positions)`: the pictures at some positions of the global batch of a step, pure in (seed, step, position)."""

    def batch(self, step: int, positions: Sequence[int]) -> SceneBatch: ...


class SceneLoader(Reopened):
    """Source over a list of scenes, in an order shuffled anew each epoch.

    scenes: any sequence of Scene; a lazy one reads a scene when it is asked for. batch_size: pictures in the global batch.
    buffer: None permutes all scenes at once. A number is for packed scenes (`Shards`) only: an epoch then takes the shards in a random
    order and permutes the scenes within `buffer` of them at a time, so that files are read nearly from front to back. The same
    scenes come, in another order.
    augmentation: None gives scenes as they are; else each epoch gives another version of each, a function of (seed, epoch, scene).
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        *,
        seed: int,
        batch_size: int,
        image_size: int,
        mask_size: int,
        shuffle: bool = True,
        buffer: int | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        if not len(scenes):
            raise ValueError("scenes must hold at least one scene, got none: check the data folder")
        self._buffered = None if buffer is None else _BufferedOrder(_chunks(scenes, buffer, shuffle), seed, buffer)
        self.scenes = scenes
        self.seed = seed
        self.batch_size = batch_size
        self.image_size = image_size
        self.mask_size = mask_size
        self.shuffle = shuffle
        self.augmentation = augmentation
        self._orders: dict[int, torch.Tensor] = {}

    def batch(self, step: int, positions: Sequence[int]) -> SceneBatch:
        scenes = [self._scene(*divmod(step * self.batch_size + position, len(self.scenes))) for position in positions]
        return collate(scenes, image_size=self.image_size, mask_size=self.mask_size)

    def _scene(self, epoch: int, place: int) -> Scene:
        row = self._row(epoch, place)
        scene = self.scenes[row].drop_invisible()
        if scene.order_matrix is None:
            raise InputError(
                f"scene {scene.id} must say who is in front, got no order; add it, or leave the scene out (`sas data check` names all such "
                "scenes)"
            )
        return scene if self.augmentation is None else augment(scene, self.augmentation, Keys(self.seed, epoch, (row,)))

    def _row(self, epoch: int, place: int) -> int:
        """Scene at a place of an epoch."""
        if not self.shuffle:
            return place
        if self._buffered is not None:
            return self._buffered.row(epoch, place)
        order = self._orders.get(epoch)
        if order is None:
            order = torch.randperm(len(self.scenes), generator=generator_for(self.seed, "shuffle", epoch))
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1} | {epoch: order}
        return int(order[place])


def _chunks(scenes: Sequence[Scene], buffer: int, shuffle: bool) -> Sequence[int]:
    """Scenes in each shard; ValueError where a buffer would mean nothing."""
    if buffer < 1:
        raise ValueError(f"buffer must be at least 1, got {buffer}: 10000 mixes well, None permutes everything")
    if not shuffle:
        raise ValueError(f"buffer must be None without shuffling, got {buffer}: leave it out, or pass shuffle=True")
    chunks: Sequence[int] | None = getattr(scenes, "chunks", None)
    if chunks is None:
        raise ValueError(
            f"buffer must be None for scenes that are not packed, got {buffer}: pack them with `sas data pack`, or leave it out"
        )
    return chunks


class _BufferedOrder:
    """Order of an epoch over shards: shards shuffled, then scenes permuted within consecutive blocks of `buffer` places.

    A block is a pure function of (seed, epoch, block), so that any place is found without what came before it.
    """

    def __init__(self, chunks: Sequence[int], seed: int, buffer: int) -> None:
        self.sizes = np.asarray(chunks, dtype=np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.seed = seed
        self.buffer = buffer
        self._block = lru_cache(maxsize=2)(self._make_block)  # a batch lies in one or two blocks

    def row(self, epoch: int, place: int) -> int:
        block, inside = divmod(place, self.buffer)
        return int(self._block(epoch, block)[inside])

    def _make_block(self, epoch: int, block: int) -> np.ndarray:
        """Rows at the places of a block, int64 (buffer,), the last block of an epoch shorter."""
        order = self._permutation(len(self.sizes), "shards", epoch)
        ends = np.cumsum(self.sizes[order])
        start = block * self.buffer
        stop = min(start + self.buffer, int(ends[-1]))
        places = start + self._permutation(stop - start, "buffer", epoch, block)
        at = np.searchsorted(ends, places, side="right")
        chunk = order[at]
        return self.starts[chunk] + places - (ends[at] - self.sizes[chunk])

    def _permutation(self, count: int, *name: object) -> np.ndarray:
        return torch.randperm(count, generator=generator_for(self.seed, *name)).numpy()


# ---------------------------------------------------------------------- reading ahead


@contextmanager
def read_ahead(
    source: SceneSource,
    places: Iterable[Place],
    *,
    workers: int,
    pin_memory: bool = False,
    start_method: str = "spawn",
) -> Iterator[Iterator[SceneBatch]]:
    """The batches of a source at some places, in their order, made while earlier ones are in use. Sources are pure: no value changes.

    workers: processes that read scenes from disk, each whole batches with one thread; at most two batches a process wait to be used.
    0: a batch is read when it is asked for. Composed scenes are made one batch ahead in a thread, however many workers there are.
    pin_memory: batches of processes lie where a GPU copies from them quickly. start_method: of processes; "fork" may deadlock
    beside the threads that a training process has, "spawn" imports the main program anew, which needs `if __name__ == "__main__":`.

    Leaving the block ends the processes, within seconds even if they hang in a read. An error of the source is raised as it is, when its
    batch is asked for; RuntimeError if a process dies.
    """
    if not workers:
        yield (source.batch(*place) for place in places)
    elif isinstance(source, SceneLoader):
        batches: Any = None
        try:
            with _beginning_processes():
                leave, end = multiprocessing.Pipe(duplex=False)
                loader = DataLoader(
                    _Batches(source),
                    sampler=places,  # type: ignore[arg-type]
                    batch_size=None,
                    num_workers=workers,
                    pin_memory=pin_memory,
                    multiprocessing_context=start_method,
                    worker_init_fn=partial(_begin_worker, leave, logging.getLogger("sas").getEffectiveLevel()),
                    generator=torch.Generator(),  # else it draws from everybody's
                )
                batches = iter(loader)
                _watch_by_asking(batches)
            yield _told(batches)
        finally:
            if batches is not None:
                _end(batches, end)
    else:
        with ThreadPoolExecutor(1) as pool:
            yield _one_ahead(pool, source, places)


@dataclass(frozen=True)
class _Failed:
    """An error on its way from a process: as a value, since the loader would wrap it in a traceback. where: its own traceback."""

    error: Exception
    where: str


class _Batches(Dataset[SceneBatch | _Failed]):
    """A source as PyTorch's data loader wants it."""

    def __init__(self, source: SceneSource) -> None:
        self.source = source

    def __getitem__(self, place: Place) -> SceneBatch | _Failed:
        try:
            return self.source.batch(*place)
        except Exception as error:
            where = traceback.format_exc()
            try:
                ForkingPickler.loads(ForkingPickler.dumps(error))
            except Exception:  # some errors cannot travel
                error = RuntimeError(f"{type(error).__name__}: {error}")
            return _Failed(error, where)


def _told(batches: Iterator[SceneBatch | _Failed]) -> Iterator[SceneBatch]:
    """The batches of a data loader; what went wrong in a process, and what became of a process, as errors with their cure."""
    while True:
        try:
            batch = next(batches, None)
        except (RuntimeError, OSError, EOFError) as error:  # the last two: a batch whose sender is gone
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
                raise
            raise RuntimeError(
                f"a process that reads scenes died ({str(error) or type(error).__name__}); if nothing above says why, memory or shared memory "
                "(/dev/shm) ran out: lower data.workers, give the container more of it, or set data.workers to 0"
            ) from error
        if batch is None:
            return
        if isinstance(batch, _Failed):
            raise batch.error from RuntimeError(f"in a process that reads scenes:\n{batch.where}")
        yield batch


def _watch_by_asking(batches: Any) -> None:
    """A process that died is found while its batch is waited for. PyTorch would also raise from the handler of a signal, that is on any
    line of ours, the one that ends the processes included. And before it tells, it asks whether the end has been called, for which it
    would wait forever if the process died while it asked the same: its own record says that without a lock."""
    signal_handling._remove_worker_pids(id(batches))
    batches._worker_pids_set = False
    batches._workers_done_event.is_set = lambda: batches._shutdown


def _end(batches: Any, end: connection.Connection) -> None:
    """End the processes: by PyTorch's way, which lets them finish a batch; then by their own; then by force.

    PyTorch's way has a thread of its own, for it may wait forever for a lock that a killed process took with it. There is no public way.
    """
    asked = threading.Thread(target=batches._shutdown_workers, daemon=True)
    asked.start()
    asked.join(PATIENCE)
    end.send_bytes(b"end")
    asked.join(PATIENCE)
    for process in batches._workers:
        if process.is_alive():
            process.kill()
        process.join()


def _begin_worker(leave: connection.Connection, level: int, worker: int) -> None:
    """The first thing a process does: the first of them says what all would say, and each ends when it should.

    That is when `leave` has something to read, and when the process that began it is gone, however it went; PyTorch's own watch misses
    one that went early. A pipe has no lock that a killed process could keep. It ends without taking the interpreter apart: a thread that
    is sending a batch meanwhile would abort the process.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("sas").setLevel(level if worker == 0 else logging.ERROR)
    atexit.register(os._exit, 0)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([leave, parent.sentinel])
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _beginning_processes() -> Iterator[None]:
    """Processes that begin in this block compute with one thread each, and signals do not reach them: a terminal and a batch system
    signal whole groups, and the training process still needs its batches to finish the step. Windows has no such signals."""
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # NumPy's matrix product counts its threads when it is imported
    posix = os.name == "posix"
    signals = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1] if posix else []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals) if posix else set()
    try:
        if posix:
            resource_tracker.ensure_running()
            signal.pthread_sigmask(
                signal.SIG_BLOCK, signals
            )  # again, for starting the tracker lets two of them through
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # how many processes is the user's choice
            yield
    finally:
        if posix:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads


def _one_ahead(pool: Executor, source: SceneSource, places: Iterable[Place]) -> Iterator[SceneBatch]:
    waiting: Future[SceneBatch] | None = None
    for place in places:
        ready, waiting = waiting, pool.submit(source.batch, *place)
        if ready is not None:
            yield ready.result()
    if waiting is not None:
        yield waiting.result()
