"""Randomness as a function of position: every random number is named by what it is for, never by when it was drawn.

A stream of numbers is named by a tuple such as ``(seed, "noise", step, position)``. Its generator is seeded by a hash of that
name, so a value depends neither on the number of processes, workers or micro-batches, nor on what was drawn before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

VALIDATION_SEED, TEST_SEED = 1_000_000, 2_000_000
"""First seeds of scenes for validation and for tests; training's lie below the first."""


def derive_seed(*parts: object) -> int:
    """Integer in [0, 2^63) from the SHA-256 of the parts' text, the same on every machine and in every process."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(*parts: object) -> torch.Generator:
    """CPU generator seeded by `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


@dataclass(frozen=True)
class Keys:
    """Names of the pictures of one (micro-)batch: run seed, optimizer step, and each picture's place in the global batch.

    `uniform` and `normal` give one row a picture; a row depends only on (seed, stream, step, position).
    """

    seed: int
    step: int
    positions: tuple[int | str, ...]

    @classmethod
    def span(cls, seed: int, step: int, start: int, stop: int) -> Keys:
        return cls(seed=seed, step=step, positions=tuple(range(start, stop)))

    def __len__(self) -> int:
        return len(self.positions)

    def at(self, positions: Sequence[int | str]) -> Keys:
        """The same seed and step at other positions."""
        return replace(self, positions=tuple(positions))

    def items(self, picture: torch.Tensor, slot: torch.Tensor) -> Keys:
        """Keys of training items: entry m belongs to item `slot[m]` of picture `picture[m]` (rows of this object)."""
        pairs = zip(picture.tolist(), slot.tolist(), strict=True)
        return self.at([f"{self.positions[row]}.{place}" for row, place in pairs])

    def generators(self, stream: str) -> list[torch.Generator]:
        return [generator_for(self.seed, stream, self.step, position) for position in self.positions]

    def uniform(self, stream: str, *shape: int) -> torch.Tensor:
        """float32 (len(self), *shape) in [0, 1), on the CPU."""
        return _stack([torch.rand(shape, generator=g) for g in self.generators(stream)], shape)

    def normal(self, stream: str, *shape: int) -> torch.Tensor:
        """float32 (len(self), *shape), standard normal, on the CPU."""
        return _stack([torch.randn(shape, generator=g) for g in self.generators(stream)], shape)


def _stack(rows: list[torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    return torch.stack(rows) if rows else torch.zeros(0, *shape)
