"""Materials, palettes and textures: what a solid looks like wherever light falls on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sas.data.solids.dice import Dice
from sas.data.solids.noise import noise_at
from sas.data.solids.shapes import Field, Points, Shape


@dataclass(frozen=True)
class Surface:
    """colour: (3, M) -> (3, M) linear light in [0, 1]. gloss: strength of reflections. soft: width of their edge.
    bump, grain: height and frequency of unevenness."""

    colour: Field
    gloss: float
    soft: float
    bump: float
    grain: float


@dataclass(frozen=True)
class _Material:
    """palettes: body and second colour. textures: to choose from. free: share of looks of any hue. Rest: Surface."""

    palettes: tuple[str, ...]
    textures: tuple[str, ...]
    gloss: tuple[float, float]
    soft: float
    bump: float = 0.0
    grain: float = 3.0
    free: float = 0.0


_MATERIALS = {
    "ceramic": _Material(
        ("#e8e0d0 #2f5d8a", "#7fa8a0 #e6dcc4", "#2c4a78 #dfe4e8", "#b8502e #f0dcb8", "#39424e #a9b4bb",
         "#d9b24c #6b3d1e", "#8b2f2f #e8cfa8", "#5f7f4f #ece3c6", "#c9a5a0 #7a4650", "#1f5f5b #d8c79a"),
        ("plain", "plain", "glaze", "glaze", "bands", "speckle", "marble"), (0.55, 0.9), 0.06, free=0.25,
    ),
    "clay": _Material(
        ("#b5643c #7d3f26", "#c98f62 #8a5a3a", "#8d6e5a #d6b894", "#a65a3f #e3c4a0", "#6e5548 #b08968"),
        ("plain", "bands", "bands", "speckle", "glaze"), (0.03, 0.1), 0.5, 0.07, 5.0,
    ),
    "plastic": _Material(
        ("#d63a2f #f4f0e6", "#2d6cc0 #f2c230", "#f0b92a #d9472b", "#2f9e5b #f3eee0", "#e87b2c #2f3a4a",
         "#ece8e0 #d03a4a", "#7a4fa3 #f0d24a", "#27292e #d8d8d8", "#e58aa8 #fff3ea"),
        ("plain", "plain", "plain", "bands", "spots", "meridians"), (0.4, 0.75), 0.1, free=0.35,
    ),
    "glass": _Material(
        ("#23402a #d8cfae", "#4a2d18 #e6d9b0", "#1f3a5a #dfe6ea", "#5a1f2a #ead9b8", "#3f5a52 #efe6cf"),
        ("plain",), (0.8, 1.1), 0.03, free=0.2,
    ),
    "fruit": _Material(
        ("#b3261e #e0b84a", "#d9452b #f0c24a", "#8fae3a #d8c85a", "#e0a82e #d8672b", "#e07a22 #f0b040",
         "#5b2a4a #8d3a55", "#c4d04a #7a9a30", "#e8b27a #d2603f", "#e6cf3c #b7b83a",
         "#3f2748 #6a3f66", "#4d7a32 #a5b84a"),
        ("blush", "blush", "blush", "speckle", "plain", "meridians"), (0.2, 0.5), 0.18, 0.05, 5.0,
    ),
    "banana": _Material(
        ("#e8c83a #8a6a24", "#f0d25a #b8963a", "#c8c84a #8fae3a", "#d8b030 #5a4420"),
        ("blush", "speckle", "plain"), (0.12, 0.3), 0.3, 0.03, 4.0,
    ),
    "root": _Material(
        ("#b08a58 #7d5c38", "#c9a56e #9a7444", "#9a5a4a #6e3a34"), ("speckle", "blush"), (0.03, 0.1), 0.5, 0.2, 4.5
    ),
    "crust": _Material(
        ("#c8873a #8a4f20", "#d9a050 #a05f28", "#b8702e #6e3c1a"),
        ("blush", "marble", "speckle"), (0.1, 0.25), 0.3, 0.1, 4.0,
    ),
    "stone": _Material(
        ("#8d8d8a #5f6064", "#b8b0a4 #8a7f74", "#6a7078 #a9adb0", "#d8d4cc #9a9690",
         "#7a6a5e #a8988a", "#4e5a58 #8fa098"),
        ("marble", "speckle", "strata", "speckle"), (0.05, 0.25), 0.35, 0.15, 3.0,
    ),
    "wood": _Material(
        ("#b98550 #8a5a30", "#d8b07a #b88650", "#7a4a2a #4e2c18", "#c89a60 #9a6a3a", "#95603a #6e4426"),
        ("wood",), (0.08, 0.3), 0.3, 0.04, 4.0,
    ),
    "paper": _Material(
        ("#b98f5e #d8c49a", "#c4a074 #e6d9b8", "#a67c4e #c8a878"), ("plain",), (0.02, 0.06), 0.6, 0.03, 4.0
    ),
    "print": _Material(
        ("#1f4e79 #f0e6d0", "#a8322a #f4e8cc", "#2f6b4a #f0dca0", "#e0b040 #5a2a1a", "#e8e2d4 #b03a3a",
         "#5a3a6e #e8cfa0", "#d86a3a #fff0d8", "#2a2f3a #c9a24a"),
        ("plain", "plain", "bands", "spots", "plain"), (0.08, 0.35), 0.2, free=0.3,
    ),
}  # fmt: skip


def draw_surface(shape: Shape, look: Dice, own: Dice) -> Surface:
    """Material, palette and texture of a class, a little different on each instance."""
    material = _MATERIALS[shape.materials[look.choice(len(shape.materials))]]
    first, second = (_linear(code) for code in material.palettes[look.choice(len(material.palettes))].split())
    if look.chance(material.free):
        first = _hsv(look.between(0, 1), look.between(0.25, 0.85), look.between(0.3, 0.9))
    tint = 1 + look.vector(3, -0.15, 0.15) * (0.5 if material.free == 0 else 1)
    kind = material.textures[look.choice(len(material.textures))]
    frequency, level, turn = look.between(1, 2), look.between(-0.45, 0.35), look.vector(3)
    trim_colour = _linear(shape.trim_colour) if shape.trim_colour else second * look.between(0.8, 1.1)
    if kind in ("plain", "glaze") and not shape.trim_colour and look.chance(0.25):
        trim_colour = first * 0.5
    dots = look.vector(3 * 70, -1.05, 1.05).reshape(3, 70)
    reach = dots.square().sum(dim=0)[:, None]
    gloss = look.between(*material.gloss)
    first, second = (
        (colour * tint * own.between(0.9, 1.1) * (1 + own.vector(3, -0.05, 0.05))).clamp(0.004, 0.95)
        for colour in (first, second)
    )
    shift = own.vector(3, 0, 1)

    def share(p: Points, noise: torch.Tensor) -> torch.Tensor:
        """How much of the second colour a point has, in [0, 1]."""
        x, y, z = p
        if kind == "bands":
            return torch.sigmoid((torch.sin(frequency * 6 * y + level) - 0.35) * 14)
        if kind == "spots":
            gap = p.square().sum(dim=0) + (reach - 2 * (dots.T @ p)).amin(dim=0)
            return torch.sigmoid((0.22 / frequency - gap.clamp(min=0).sqrt()) * 120)
        if kind == "speckle":
            fine = noise_at(p, 4 * frequency, shift)[0]
            return torch.sigmoid((fine - 0.55) * 14) * 0.75
        if kind == "marble":
            wave = torch.sin(4 * frequency * (turn[0] * x + turn[1] * y + turn[2] * z) + 5 * noise)
            return (1 - wave.abs()) ** 3 * 0.85
        if kind == "strata":
            return 0.5 + 0.5 * torch.sin(7 * frequency * (y + 0.25 * noise + 0.2 * x))
        if kind == "wood":
            rings = ((x + 0.9) ** 2 + (z - 0.7) ** 2).sqrt() + 0.1 * noise + 0.03 * y
            saw = torch.remainder(rings * 7 * frequency, 1)
            return saw * saw * 0.75 + 0.12 * noise_at(p * torch.tensor([[4.0], [0.4], [4.0]]), 2, shift)[1]
        if kind == "glaze":  # dips and runs
            return torch.sigmoid((y - level + 0.13 * noise) * 40)
        if kind == "meridians":
            streak = torch.cos(round(5 + 3 * frequency) * torch.atan2(z, x) + 2 * noise)
            return torch.sigmoid(streak * 5) * 0.7
        if kind == "blush":
            return torch.sigmoid((turn[0] * x + turn[1] * y + turn[2] * z + 0.6 * noise + 0.3 * level) * 4) * 0.85
        return torch.zeros_like(x)

    def colour(p: Points) -> torch.Tensor:
        noise = noise_at(p, 0.8, shift)[0]
        mix = share(p, noise)
        result = first[:, None] * (1 - mix) + second[:, None] * mix
        if shape.trim is not None:
            result = torch.where(shape.trim(p), trim_colour[:, None], result)
        return (result * (1 + 0.1 * noise)).clamp(0, 1)

    return Surface(colour, gloss, material.soft, material.bump, material.grain)


def _linear(code: str) -> torch.Tensor:
    """Linear light (3,) of "#rrggbb"."""
    return (torch.tensor([int(code[i : i + 2], 16) for i in (1, 3, 5)]) / 255) ** 2.2


def _hsv(hue: float, saturation: float, value: float) -> torch.Tensor:
    """Linear light (3,) of a hue, saturation and value in [0, 1]."""
    k = (torch.tensor([5.0, 3.0, 1.0]) + hue * 6) % 6
    return (value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1)) ** 2.2
