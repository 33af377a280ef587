"""What a solid shape is, and how signed distances combine into one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import CubicSpline

Points = torch.Tensor
"""Object coordinates, float32 (3, M)."""

Field = Callable[[Points], torch.Tensor]
"""A value at each of M points, mostly (M,)."""


@dataclass(frozen=True)
class Shape:
    """distance: (3, M) -> (M,), never much more than the true distance. materials: what it may be made of.
    trim: (3, M) -> bool (M,), the part in another colour (stem, cap, inside). trim_colour: "#rrggbb", or drawn."""

    distance: Field
    materials: tuple[str, ...]
    trim: Field | None = None
    trim_colour: str | None = None


def radius_curve(radii: list[float], low: float, high: float) -> tuple[Field, float]:
    """Smooth curve through equally spaced radii, and what makes `radius - curve` a distance where it is steepest."""
    spline = CubicSpline(np.linspace(low, high, len(radii)), radii)
    table = torch.from_numpy(spline.c).float()
    step, last = (high - low) / (len(radii) - 1), len(radii) - 2
    slope = float(np.abs(spline(np.linspace(low, high, 64), 1)).max())

    def curve(y: torch.Tensor) -> torch.Tensor:
        y = y.clamp(low, high) - low
        piece = (y / step).long().clamp(max=last)
        t = y - piece * step
        third, second, first, constant = table.index_select(1, piece)
        return ((third * t + second) * t + first) * t + constant

    return curve, 1 / math.sqrt(1 + slope**2)


def rounded_max(a: torch.Tensor, b: torch.Tensor, radius: float) -> torch.Tensor:
    """Intersection of two solids with its edge rounded off (polynomial smooth maximum)."""
    h = (radius - (a - b).abs()).clamp(min=0)
    return torch.maximum(a, b) + h * h / (4 * radius)


def smooth_min(a: torch.Tensor, b: torch.Tensor, radius: float) -> torch.Tensor:
    """Union of two solids with the seam filled."""
    h = (radius - (a - b).abs()).clamp(min=0)
    return torch.minimum(a, b) - h * h / (4 * radius)


def torus_distance(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, major: float, minor: float) -> torch.Tensor:
    """Distance to a ring around the z axis."""
    return (((x * x + y * y).sqrt() - major) ** 2 + z * z).sqrt() - minor
