"""What the trainer reads from: a source is a pure function of (seed, step, positions)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from sas.data.augment import Augmentation, augment
from sas.scene import Scene, SceneBatch, collate
from sas.seeding import Keys, generator_for


class SceneSource(Protocol):
    """`batch(step, positions)`: the pictures at some positions of the global batch of a step, pure in (seed, step, position)."""

    def batch(self, step: int, positions: Sequence[int]) -> SceneBatch: ...


class SceneLoader:
    """Source over a list of scenes, in an order shuffled anew each epoch.

    scenes: any sequence of Scene; a lazy one reads a scene when it is asked for. batch_size: pictures in the global batch.
    workers: threads that read scenes; their number does not change what is read. buffer: None permutes all scenes at once. A number
    is for packed scenes (`Shards`) only: an epoch then takes the shards in a random order and permutes the scenes within `buffer` of
    them at a time, so that files are read nearly from front to back. The same scenes come, in another order.
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
        workers: int = 0,
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
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._orders: dict[int, torch.Tensor] = {}

    def batch(self, step: int, positions: Sequence[int]) -> SceneBatch:
        places = [step * self.batch_size + position for position in positions]
        rows = [self._row(place) for place in places]
        epochs = [place // len(self.scenes) for place in places]
        read = self._pool.map if self._pool else map
        return collate(list(read(self._scene, rows, epochs)), image_size=self.image_size, mask_size=self.mask_size)

    def _scene(self, row: int, epoch: int) -> Scene:
        scene = self.scenes[row].drop_invisible()
        return scene if self.augmentation is None else augment(scene, self.augmentation, Keys(self.seed, epoch, (row,)))

    def _row(self, place: int) -> int:
        """Scene at a place of the endless stream."""
        epoch, place = divmod(place, len(self.scenes))
        if not self.shuffle:
            return place
        if self._buffered is not None:
            return self._buffered.row(epoch, place)
        order = self._orders.get(epoch)
        if order is None:
            order = torch.randperm(len(self.scenes), generator=generator_for(self.seed, "shuffle", epoch))
            # Replaced as a whole and not read again: another thread may ask for another epoch meanwhile.
            self._orders = {**{e: o for e, o in self._orders.items() if e == epoch - 1}, epoch: order}
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
        # A batch lies in one or two blocks; while one thread reads them, another may read the next.
        self._block = lru_cache(maxsize=4)(self._make_block)

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


class Prefetcher:
    """A source read one batch ahead in a thread. Sources are pure, so this changes no value."""

    def __init__(self, source: SceneSource) -> None:
        self.source = source
        self._pool = ThreadPoolExecutor(1)
        self._ahead: dict[tuple[int, tuple[int, ...]], Future[SceneBatch]] = {}

    def batch(self, step: int, positions: Sequence[int]) -> SceneBatch:
        waiting = self._ahead.pop((step, tuple(positions)), None)
        return waiting.result() if waiting else self.source.batch(step, positions)

    def prepare(self, step: int, positions: Sequence[int]) -> None:
        """Start reading a batch that will be asked for soon."""
        key = (step, tuple(positions))
        if key not in self._ahead:
            self._ahead = {key: self._pool.submit(self.source.batch, *key)}
