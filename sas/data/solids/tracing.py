"""Rays from the viewer: which points of a solid they meet, and how large it appears."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange

from sas.data.solids.shapes import Field, Points

REACH = 1.45  # radius of the ball that holds every object
CAMERA = 6.0  # distance of the viewer: a weak perspective
STEPS = 40  # of a ray, unless its caller says otherwise
COARSE = 48  # cells along a side of the grid that thick rays explore first


@dataclass(frozen=True)
class Rays:
    """Rays in object coordinates. origin: (3, 1), the viewer. direction: (3, M), of length 1."""

    origin: torch.Tensor
    direction: torch.Tensor

    def at(self, depth: torch.Tensor) -> Points:
        return self.origin + self.direction * depth


def cast_rays(plane: torch.Tensor, rotation: torch.Tensor) -> Rays:
    """Rays from the viewer through points (2, M) of the plane z = 0."""
    direction = unit(torch.cat([plane, torch.full_like(plane[:1], -CAMERA)]))
    return Rays(rotation.T @ torch.tensor([[0.0], [0.0], [CAMERA]]), rotation.T @ direction)


def trace(
    distance: Field, rays: Rays, depth: torch.Tensor, *, near: float, slack: float, steps: int = STEPS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sphere tracing (Hart 1996) from the given depths: whether a ray comes within `near`, and at which depth.

    Rays that creep along the object take longer steps later on, too long by `slack` at most. One that is still under
    way after the last step has met the object if it is within `slack` more than `near`.
    """
    hit = torch.zeros(len(depth), dtype=torch.bool)
    final = depth.clone()
    rows, part, far = torch.arange(len(depth)), rays, CAMERA + REACH
    for step in range(steps):
        gap = distance(part.at(depth))
        close = gap < (near if step < steps - 1 else near + slack)
        ahead = gap + (gap * (0.1 * step)).clamp(max=slack)
        depth = depth + ahead.masked_fill(close, 0)
        if step % 3 == 2 or step == steps - 1:  # to leave finished rays behind costs about as much as two evaluations
            final[rows] = depth
            hit[rows] = close
            alive = (~close & (depth < far)).nonzero().flatten()
            if not len(alive):
                break
            rows, depth = rows[alive], depth[alive]
            part = Rays(part.origin, part.direction[:, alive])
    return hit, final


def sample_plane(size: int, samples: int, half: float, centre: tuple[float, float]) -> torch.Tensor:
    """Sample points on the plane z = 0, pixel by pixel from the top left: (2, size * size * samples^2)."""
    line = ((torch.arange(size * samples) + 0.5) / (size * samples) * 2 - 1) * half
    y, x = torch.meshgrid(centre[1] - line, centre[0] + line, indexing="ij")
    return rearrange(torch.stack([x, y]), "c (h a) (w b) -> c (h w a b)", a=samples, b=samples)


def free_depth(distance: Field, rotation: torch.Tensor) -> torch.Tensor:
    """Depth up to which all rays through a cell of a coarse grid are free, found with rays as thick as a cell.

    float (COARSE, COARSE), inf where they meet nothing.
    """
    start = torch.full((COARSE * COARSE,), CAMERA - REACH)
    near = 2 * REACH / COARSE * 0.75 * (1 + REACH / CAMERA)
    rays = cast_rays(sample_plane(COARSE, 1, REACH, (0.0, 0.0)), rotation)
    hit, depth = trace(distance, rays, start, near=near, slack=0.0, steps=3 * STEPS)
    return rearrange(torch.where(hit, depth - 0.02, torch.inf), "(h w) -> h w", h=COARSE)


def look_up(free: torch.Tensor, plane: torch.Tensor) -> torch.Tensor:
    """Free depth of rays through points (2, M) of the plane: (M,)."""
    column, row = ((plane * torch.tensor([[1.0], [-1.0]]) / REACH + 1) * (COARSE / 2)).long()
    inside = (column >= 0) & (column < COARSE) & (row >= 0) & (row < COARSE) & (plane.abs().amax(dim=0) < REACH)
    return torch.where(inside, free[row.clamp(0, COARSE - 1), column.clamp(0, COARSE - 1)], torch.inf)


def find_bounds(distance: Field, rotation: torch.Tensor, free: torch.Tensor) -> tuple[tuple[float, float], float]:
    """Middle and half of the longer side of the object on the plane z = 0."""
    plane = sample_plane(2 * COARSE, 1, REACH, (0.0, 0.0))
    start = look_up(free, plane)
    plane, start = plane[:, start.isfinite()], start[start.isfinite()]
    cell = REACH / COARSE
    seen = plane[:, trace(distance, cast_rays(plane, rotation), start, near=cell / 4, slack=cell / 4, steps=24)[0]]
    if not seen.shape[1]:
        raise RuntimeError("a solid is out of sight")
    low, high = seen.amin(dim=1), seen.amax(dim=1)
    x, y = ((low + high) / 2).tolist()
    return (x, y), float((high - low).max() + cell) / 2


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (3, M) at length 1; several times faster than functional.normalize along the first axis."""
    x, y, z = vectors
    return vectors * (x * x + y * y + z * z).clamp(min=1e-12).rsqrt()
