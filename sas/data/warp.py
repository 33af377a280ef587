"""Other shapes for the sprites of composed scenes: stretched, bent and tapered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

WARP_DRAWS = ("warped", "across", "stretch", "bend", "taper")


class Warp(NamedTuple):
    """Stretches, bends and tapers sprites along one of their axes. Each is float (B * N,), for every slot; `across` is bool.

    In the sprite's coordinates, from -1 to 1, the axis y is kept and what lies at x is drawn at x * stretch / (1 + taper * y) + bend * (y^2 - 1/3);
    with `across` x and y change places. What is stretched to more than 1 is drawn smaller, so that the longer side stays as it was.
    """

    across: torch.Tensor
    stretch: torch.Tensor
    bend: torch.Tensor
    taper: torch.Tensor

    @classmethod
    def drawn(cls, drawn: Mapping[str, torch.Tensor], share: float) -> Warp:
        """From uniform numbers; a `share` of the slots is warped: stretch 0.4 to 2.5, bend up to 0.35, taper up to 0.4 either way."""
        some = (drawn["warped"] < share).float()
        return cls(
            across=drawn["across"] < 0.5,
            stretch=torch.exp((drawn["stretch"] * 2 - 1) * some * float(np.log(2.5))),
            bend=(drawn["bend"] * 2 - 1) * some * 0.35,
            taper=(drawn["taper"] * 2 - 1) * some * 0.4,
        )

    def reach(self) -> torch.Tensor:
        """How far a sprite reaches at most across and down, 1 without a warp: float (B * N, 2)."""
        smaller = 1 / self.stretch.clamp(min=1)
        x = (self.stretch / (1 - self.taper.abs()) + self.bend.abs() * 2 / 3) * smaller
        pair = torch.stack([x, smaller], dim=-1)
        return torch.where(self.across[:, None], pair.flip(1), pair)

    def moves(self) -> torch.Tensor:
        """Slots whose points `apply` moves at all: bool (B * N,)."""
        return (self.stretch != 1) | (self.bend != 0) | (self.taper != 0)

    def apply(self, grid: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Where in the sprites of these slots, int64 (U,), the points are drawn from: float (U, H, W, 2) -> the same."""
        across, stretch, bend, taper = (values[slots][:, None, None] for values in self)
        x, y = (grid * stretch.clamp(min=1)[..., None]).unbind(dim=-1)
        x, y = torch.where(across, y, x), torch.where(across, x, y)
        x = (x - bend * (y * y - 1 / 3)) * (1 + taper * y) / stretch
        return torch.stack([torch.where(across, y, x), torch.where(across, x, y)], dim=-1)
