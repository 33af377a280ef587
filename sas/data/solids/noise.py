"""Smooth noise in space, the same for all solids, that makes surfaces uneven and colours wander."""

from __future__ import annotations

import functools

import numpy as np
import torch
from einops import rearrange
from scipy.ndimage import zoom
from torch.nn import functional

from sas.data.solids.shapes import Points
from sas.seeding import generator_for


@functools.cache
def _noise_volume() -> torch.Tensor:
    """Three fields of noise over several scales that repeat with period 1: (1, 3, 49, 49, 49), about [-1, 1]."""
    side, generator = 48, generator_for("solids", "noise volume")
    fields = []
    for _ in range(3):
        total = np.zeros((side, side, side))
        for octave, cells in enumerate((4, 8, 16)):
            lattice = torch.rand(cells, cells, cells, generator=generator).numpy() * 2 - 1
            total += zoom(lattice, side / cells, order=3, mode="grid-wrap", grid_mode=True) * 0.6**octave
        fields.append(np.pad(total / (2 * total.std()), (0, 1), mode="wrap"))
    return torch.from_numpy(np.stack(fields)).float()[None]


def noise_at(p: Points, frequency: float, shift: torch.Tensor) -> torch.Tensor:
    """Noise at points: (3, M) -> (3, M)."""
    where = torch.remainder(p * (frequency / 2) + shift[:, None], 1) * 2 - 1
    grid = rearrange(where, "c m -> 1 1 1 m c")
    return rearrange(functional.grid_sample(_noise_volume(), grid, align_corners=True), "1 c 1 1 m -> c m")
