"""The light that all solids share: a window as key light, fill, sky and bounce, and what a surface mirrors."""

from __future__ import annotations

import torch
from torch.nn import functional

from sas.data.solids.noise import noise_at
from sas.data.solids.shapes import Field, Points
from sas.data.solids.surfaces import Surface
from sas.data.solids.tracing import unit

# Directions in camera coordinates; colours (3, 1) in linear light.
KEY_LIGHT = functional.normalize(torch.tensor([-0.5, 0.75, 0.6]), dim=0)
FILL_LIGHT = functional.normalize(torch.tensor([0.8, 0.1, 0.5]), dim=0)
KEY = torch.tensor([[1.0], [0.96], [0.9]])
FILL = torch.tensor([[0.16], [0.18], [0.21]])
SKY = torch.tensor([[0.23], [0.25], [0.28]])
BOUNCE = torch.tensor([[0.13], [0.115], [0.1]])


def light_up(
    distance: Field, surface: Surface, rotation: torch.Tensor, points: Points, direction: torch.Tensor, pixel: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Light that falls on points and light that they mirror, (3, M) each; the object shades itself.

    direction: (3, M), from the viewer to the points. rotation: from object to camera, where the light stands still.
    pixel: side of a pixel at the object, the scale at which the normal is measured.
    """
    key_light, fill_light, up = rotation.T @ KEY_LIGHT, rotation.T @ FILL_LIGHT, rotation.T @ torch.tensor([0.0, 1, 0])
    side = functional.normalize(torch.linalg.cross(key_light, up), dim=0)
    normal = torch.zeros_like(points)
    for corner in ([1.0, -1, -1], [-1.0, -1, 1], [-1.0, 1, -1], [1.0, 1, 1]):
        offset = torch.tensor(corner)[:, None]
        normal += offset * distance(points + 0.3 * pixel * offset)
    normal = unit(normal)
    free = torch.ones_like(points[0])
    for k in (0.06, 0.15, 0.3):
        free = free - (k - distance(points + k * normal)).clamp(min=0) / k * 0.3
    free = free.clamp(0.1, 1)
    shadow = _shadow(distance, points + 0.03 * normal, key_light)
    if surface.bump:
        normal = unit(normal + surface.bump * noise_at(points, surface.grain, up * 0))

    key = _dot(normal, key_light).clamp(min=0) * shadow
    fill, above = _dot(normal, fill_light) * 0.5 + 0.5, _dot(normal, up) * 0.5 + 0.5
    light = 1.15 * key * KEY + free * (fill * FILL + above * SKY + (1 - above) * BOUNCE)

    facing = -(normal * direction).sum(dim=0)
    mirrored = direction + 2 * facing * normal
    window = _step(_dot(mirrored, key_light), 0.0, 0.1)
    for axis, reach in ((side, 0.3), (torch.linalg.cross(side, key_light), 0.34)):
        window = window * _step(reach - _dot(mirrored, axis).abs(), -surface.soft, surface.soft)
    fresnel = 0.08 + 0.5 * (1 - facing.clamp(0, 1)) ** 4
    room = 0.12 + 0.4 * _step(_dot(mirrored, up), -0.3, 0.9)
    spread = 0.16 / (0.16 + surface.soft)  # the wider the highlight, the weaker
    return light, surface.gloss * (window * shadow * spread * 0.75 * KEY + fresnel * room * free)


def _shadow(distance: Field, points: Points, towards: torch.Tensor) -> torch.Tensor:
    """Share of the key light that reaches each point past the object itself, with a soft edge."""
    lit, along = torch.ones_like(points[0]), torch.full_like(points[0], 0.05)
    for _ in range(7):
        gap = distance(points + along * towards[:, None])
        lit = torch.minimum(lit, (gap / along * 7).clamp(0, 1))
        along = along + gap.clamp(0.04, 0.25)
    return lit * lit * (3 - 2 * lit)


def _dot(vectors: torch.Tensor, axis: torch.Tensor) -> torch.Tensor:
    """Products of vectors (3, M) with one axis (3,): (M,)."""
    return vectors[0] * axis[0] + vectors[1] * axis[1] + vectors[2] * axis[2]


def _step(value: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """From 0 at `low` to 1 at `high`, smoothly."""
    t = ((value - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)
