"""The random numbers that a look or an instance of a solid is made of."""

from __future__ import annotations

import torch

from sas.seeding import generator_for


class Dice:
    """Random numbers of one look or one instance, drawn one after another."""

    def __init__(self, *name: object) -> None:
        self._generator = generator_for("solids", *name)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self._generator))

    def chance(self, probability: float) -> bool:
        return self.between(0, 1) < probability

    def choice(self, count: int) -> int:
        return min(int(self.between(0, count)), count - 1)

    def vector(self, count: int, low: float = -1, high: float = 1) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=self._generator)


def vary(value: float, own: Dice, amount: float = 0.06) -> float:
    """A measure of the look, up to a share of `amount` larger or smaller on each instance."""
    return value * own.between(1 - amount, 1 + amount)
