"""What the trainer reads from: a source is a pure function of (seed, step, positions)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch

from sas.scene import Scene, SceneBatch, collate
from sas.seeding import generator_for


class SceneSource(Protocol):
    """`batch(step, positions)`: the pictures at some positions of the global batch of a step, pure in (seed, step, position)."""

    def batch(self, step: int, positions: Sequence[int]) -> SceneBatch: ...


class SceneLoader:
    """Source over a list of scenes, in an order shuffled anew each epoch.

    scenes: any sequence of Scene; a lazy one reads a scene when it is asked for. batch_size: pictures in the global batch.
    workers: threads that read scenes; their number does not change what is read.
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
    ) -> None:
        if not len(scenes):
            raise ValueError("scenes must hold at least one scene, got none: check the data folder")
        self.scenes = scenes
        self.seed = seed
        self.batch_size = batch_size
        self.image_size = image_size
        self.mask_size = mask_size
        self.shuffle = shuffle
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._orders: dict[int, torch.Tensor] = {}

    def batch(self, step: int, positions: Sequence[int]) -> SceneBatch:
        rows = [self._row(step * self.batch_size + position) for position in positions]
        read = self._pool.map if self._pool else map
        scenes = [scene.drop_invisible() for scene in read(self.scenes.__getitem__, rows)]
        return collate(scenes, image_size=self.image_size, mask_size=self.mask_size)

    def _row(self, place: int) -> int:
        """Scene at a place of the endless stream."""
        epoch, place = divmod(place, len(self.scenes))
        if not self.shuffle:
            return place
        order = self._orders.get(epoch)
        if order is None:
            order = torch.randperm(len(self.scenes), generator=generator_for(self.seed, "shuffle", epoch))
            # Replaced as a whole and not read again: another thread may ask for another epoch meanwhile.
            self._orders = {**{e: o for e, o in self._orders.items() if e == epoch - 1}, epoch: order}
        return int(order[place])


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
