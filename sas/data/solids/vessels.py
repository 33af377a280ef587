"""Families turned on a wheel: vases, bottles and mugs, hollow or with a neck, around the y axis."""

from __future__ import annotations

import torch

from sas.data.solids.dice import Dice, vary
from sas.data.solids.shapes import Points, Shape, radius_curve, rounded_max, smooth_min, torus_distance


def vase(look: Dice, own: Dice) -> Shape:
    """Pots, bowls, jars and vases: a body of revolution around a wall, now and then with handles or a lid."""
    name = tuple(_PROFILES)[look.choice(len(_PROFILES))]
    height, width, knots = _PROFILES[name]
    height, width = vary(height * look.between(0.85, 1.05), own), vary(width * look.between(0.85, 1.1), own)
    uneven = look.vector(len(knots), -0.07, 0.07) + own.vector(len(knots), -0.02, 0.02)
    radii = torch.tensor(knots) * (1 + uneven) * width
    wall, lid = look.between(0.05, 0.08), name == "jar" and look.chance(0.5)
    handles = name in ("amphora", "tulip") and look.chance(0.4)
    edge, steep = radius_curve(radii.tolist(), -height, height)
    ear_at, ear = height * look.between(0.15, 0.35), look.between(0.2, 0.26)

    def distance(p: Points) -> torch.Tensor:
        x, y, z = p
        across = (x * x + z * z).sqrt()
        outside = across - edge(y)
        body = rounded_max(outside * steep, y.abs() - height, 0.05)
        if lid:
            knob = (across**2 + (y - height - 0.07) ** 2).sqrt() - 0.1
            return smooth_min(body, knob, 0.04)
        pot = rounded_max(body, -torch.maximum((outside + wall) * steep, -y - height + 2 * wall), 0.02)
        if not handles:
            return pot
        loop = torus_distance(x.abs() - edge(y), y - ear_at, z, ear, 0.055) * steep
        return smooth_min(pot, torch.maximum(loop, -(outside + wall / 2)), 0.03)

    def trim(p: Points) -> torch.Tensor:
        x, y, z = p
        if lid:
            return y > height * 0.86
        return ((x * x + z * z).sqrt() < edge(y) - wall * 0.6) & (y > -height + wall)

    return Shape(distance, ("ceramic", "ceramic", "clay", "stone"), trim)


_PROFILES: dict[str, tuple[float, float, tuple[float, ...]]] = {  # half height, radius, radii from foot to lip
    "amphora": (0.9, 0.62, (0.42, 0.7, 0.98, 0.88, 0.45, 0.5)),
    "bowl": (0.42, 0.88, (0.45, 0.68, 0.85, 0.94, 0.99, 1.02)),
    "beaker": (0.72, 0.6, (0.72, 0.76, 0.82, 0.88, 0.94, 1.0)),
    "tulip": (0.85, 0.6, (0.5, 0.85, 0.95, 0.74, 0.62, 0.88)),
    "gourd": (0.88, 0.6, (0.55, 0.98, 0.85, 0.48, 0.6, 0.5)),
    "jar": (0.68, 0.66, (0.72, 0.95, 1.0, 1.0, 0.88, 0.7)),
    "bud": (0.9, 0.58, (0.6, 0.98, 0.82, 0.42, 0.26, 0.36)),
    "pot": (0.6, 0.72, (0.68, 0.75, 0.82, 0.88, 0.94, 1.0)),
}


def bottle(look: Dice, own: Dice) -> Shape:
    """Body, shoulder, neck and cap, with a label on some."""
    body, neck = vary(look.between(0.26, 0.42), own), look.between(0.09, 0.15)
    shoulder, slope = look.between(0.0, 0.35), look.between(0.15, 0.4)
    waist, squared, cap = look.between(-0.05, 0.16), look.chance(0.25), look.between(1.05, 1.4)
    label = look.choice(3)  # none, around the body, cap alone in the other colour
    middle, reach = look.between(-0.4, -0.25), look.between(0.15, 0.3)

    def distance(p: Points) -> torch.Tensor:
        x, y, z = p
        across = ((x**4 + z**4).sqrt() if squared else x * x + z * z).sqrt()
        t = ((y - shoulder) / slope).clamp(0, 1)
        edge = body + (neck - body) * t * t * (3 - 2 * t)
        edge = edge * (1 - waist * torch.exp(-((y + 0.35) ** 2) / 0.06))
        glass = rounded_max((across - edge) * 0.6, y.abs() - 0.9, 0.06)
        stopper = rounded_max(across - neck * cap, (y - 0.84).abs() - 0.1, 0.03)
        return torch.minimum(glass, stopper * 0.85)

    def trim(p: Points) -> torch.Tensor:
        y = p[1]
        return (y > 0.735) | ((y - middle).abs() < reach) if label == 1 else y > 0.735

    return Shape(distance, ("plastic", "ceramic", "glass", "glass"), trim if label else None)


def mug(look: Dice, own: Dice) -> Shape:
    """An open cup with a handle; the inside has its own glaze."""
    radius, height = vary(look.between(0.42, 0.56), own), vary(look.between(0.42, 0.62), own)
    belly, taper, wall = look.between(-0.06, 0.14), look.between(-0.12, 0.2), look.between(0.045, 0.07)
    loop, thick = look.between(0.2, 0.28), look.between(0.05, 0.075)
    slim, apart = look.between(0.75, 1.1), look.chance(0.35)

    def wide(y: torch.Tensor) -> torch.Tensor:
        t = y / height
        return radius * (1 + taper * t + belly * (1 - t * t))

    def distance(p: Points) -> torch.Tensor:
        x, y, z = p
        outside = (x * x + z * z).sqrt() - wide(y)
        body = rounded_max(outside * 0.9, y.abs() - height, 0.05)
        cup = rounded_max(body, -torch.maximum((outside + wall) * 0.9, -y - height + 2 * wall), 0.025)
        handle = torus_distance(x - wide(y), y * slim, z, loop, thick) * 0.85
        return smooth_min(cup, torch.maximum(handle, -(outside + wall / 2)), 0.03)

    def trim(p: Points) -> torch.Tensor:
        x, y, z = p
        outside = (x * x + z * z).sqrt() - wide(y)
        inner = (outside < -wall * 0.6) & (y > -height + wall)
        return inner | (outside > 0.02) if apart else inner

    return Shape(distance, ("ceramic", "ceramic", "plastic"), trim)
