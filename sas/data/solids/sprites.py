"""From a solid to its sprite: samples, shared light, straight alpha."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange, reduce
from torch.nn import functional

from sas.data.solids.lighting import light_up
from sas.data.solids.shapes import Field
from sas.data.solids.surfaces import Surface
from sas.data.solids.tracing import cast_rays, find_bounds, free_depth, look_up, sample_plane, trace

MARGIN = 2  # pixels between the object and the border, along its longer side


def render_sprite(distance: Field, surface: Surface, rotation: torch.Tensor, size: int) -> np.ndarray:
    """One sprite: uint8 (4, size, size). Four rays a pixel; light is found once a pixel where the surface is smooth."""
    free = free_depth(distance, rotation)
    centre, half = find_bounds(distance, rotation, free)
    half *= size / (size - 2 * MARGIN)
    pixel = 2 * half / size
    plane = sample_plane(size, 2, half, centre)
    start = look_up(free, plane)
    alive = start.isfinite().nonzero().flatten()
    rays = cast_rays(plane[:, alive], rotation)
    found, reached = trace(distance, rays, start[alive], near=0.15 * pixel, slack=0.3 * pixel)

    rows = found.nonzero().flatten()
    hit, points, direction = alive[rows], rays.at(reached)[:, rows], rays.direction[:, rows]
    which, chosen = _shared(hit, reached[rows], pixel, size)
    light, shine = light_up(distance, surface, rotation, points[:, chosen], direction[:, chosen], pixel)
    linear = surface.colour(points) * light[:, which] + shine[:, which]

    picture = torch.zeros(4, 4 * size * size)
    picture[:3, hit] = (1 - torch.exp(-1.35 * linear)) ** (1 / 2.2)  # bright places fade to white and do not clip
    picture[3, hit] = 1
    small = reduce(picture, "c (h w s) -> c h w", "mean", h=size, w=size, s=4)
    return (torch.cat([_bleed(small[:3], small[3:]), small[3:]]) * 255).round().byte().numpy()


def _shared(hit: torch.Tensor, depth: torch.Tensor, pixel: float, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which samples share their light: those of a pixel, all hit, where the surface is neither steep nor creased.

    hit: int64 (M,) ascending sample numbers, four a pixel. Returns int64 (M,), each sample's row among the samples that
    are lit, and int64 (L,), these samples' places among the M.
    """
    spread = torch.full((4 * size * size,), torch.nan)
    spread[hit] = depth
    four = rearrange(spread, "(h w s) -> h w s", h=size, w=size, s=4)
    centre = four.mean(dim=2)
    around = functional.pad(centre, (1, 1, 1, 1), value=torch.nan)
    bend = (around[:-2, 1:-1] + around[2:, 1:-1] - 2 * centre).abs()
    bend += (around[1:-1, :-2] + around[1:-1, 2:] - 2 * centre).abs()
    smooth = (four.amax(dim=2) - four.amin(dim=2) < 2 * pixel) & (bend < 0.25 * pixel)  # nan, thus False, by the border
    lit = ~smooth.flatten()[hit // 4] | (hit % 4 == 0)
    return lit.cumsum(dim=0) - 1, lit.nonzero().flatten()


def _bleed(premultiplied: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Straight colours (3, H, W), carried on under the transparent pixels so that sampling meets no dark fringe."""
    both, filled = torch.cat([premultiplied, alpha]), alpha > 0
    result = torch.where(filled, premultiplied / alpha.clamp(min=1e-6), 0)
    for _ in range(3):
        both = functional.avg_pool2d(both[None], 3, stride=1, padding=1)[0]
        new = ~filled & (both[3:] > 0)
        result = torch.where(new, both[:3] / both[3:].clamp(min=1e-6), result)
        filled = filled | new
    mean = premultiplied.sum(dim=(1, 2)) / alpha.sum()
    return torch.where(filled, result, mean[:, None, None]).clamp(0, 1)
