"""Families built around a body of their own: superquadrics, fruit and pebbles, bent things, boxes and rings."""

from __future__ import annotations

import math

import torch

from sas.data.solids.dice import Dice, vary
from sas.data.solids.shapes import Points, Shape, rounded_max, smooth_min


def superquadric(look: Dice, own: Dice) -> Shape:
    """Ellipsoids, cushions, rounded cubes and drums (Barr 1981)."""
    a, b, c = (vary(look.between(0.42, 0.82), own) for _ in range(3))
    power, flat = look.between(1.7, 5.0), look.between(1.7, 5.0)
    cut = look.between(-0.2, 0.3) * b if look.chance(0.3) else 9.0
    least = min(a, b, c)

    def distance(p: Points) -> torch.Tensor:
        x, y, z = p[0].abs() / a, p[1].abs() / b, p[2].abs() / c
        ring = (x**power + z**power + 1e-9) ** (flat / power)
        return ((ring + y**flat + 1e-9) ** (1 / flat) - 1) * least * 0.85

    return Shape(distance, ("plastic", "wood", "stone", "ceramic", "plastic"), lambda p: p[1] > cut)


def lumpy(look: Dice, own: Dice) -> Shape:
    """Fruit, vegetables and pebbles."""
    kind = ("apple", "pear", "round", "pumpkin", "lemon", "pebble", "potato")[look.choice(7)]
    waves = look.vector(12, -2.5, 2.5).reshape(4, 3)
    phases = (look.vector(4, 0, 6.3) + own.vector(4, -0.8, 0.8))[:, None]
    rough = {"pebble": 0.05, "potato": 0.07, "round": 0.015}.get(kind, 0.02)
    axes = 1 + look.vector(3, -0.06, 0.06) + own.vector(3, -0.05, 0.05)
    flattened = {"pebble": (1.0, 0.62, 0.8), "potato": (1.0, 0.68, 0.72), "lemon": (0.74, 0.8, 0.74)}
    axes = axes * torch.tensor(flattened.get(kind, (1.0, 1.0, 1.0)))
    stretch, least = (1 / axes)[:, None], 0.85 * float(axes.min())
    hole, ribs, ribbing = look.between(0.28, 0.36), 7 + look.choice(5), look.between(0.03, 0.05)
    squat, neck = look.between(0.75, 0.95), look.between(0.24, 0.34)
    stem = kind in ("apple", "pear", "pumpkin") and look.chance(0.85)
    thick, top = (0.085, 0.22) if kind == "pumpkin" else (0.035, 0.25)
    lean = own.vector(2, -0.35, 0.35).tolist()
    foot = {"apple": 0.3, "pear": 0.72, "pumpkin": 0.42}.get(kind, 0.0)

    def flesh(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        across2 = x * x + z * z
        if kind in ("apple", "pumpkin"):
            across = across2.sqrt() * (1 + 0.1 * y) if kind == "pumpkin" else across2.sqrt() * (1.04 - 0.14 * y)
            thickness = torch.full_like(across, 0.85 - hole)
            if kind == "pumpkin":
                crease = (torch.cos(ribs * torch.atan2(z, x)) ** 2 + 0.02) ** 0.25 - 0.6
                thickness = thickness * (0.94 + 1.6 * ribbing * crease * (across / hole).clamp(max=1))
            return (((across - hole) ** 2 + (y / squat) ** 2).sqrt() - thickness) * squat * 0.85
        if kind == "pear":
            low = (across2 + (y + 0.28) ** 2).sqrt() - 0.56
            high = (across2 + (y - 0.42) ** 2).sqrt() - neck
            return smooth_min(low, high, 0.35)
        if kind == "lemon":
            ball = (across2 + y * y).sqrt() - 0.82
            return smooth_min(ball, (across2 + (y.abs() - 0.86) ** 2).sqrt() - 0.12, 0.22)
        return (across2 + y * y).sqrt() - 0.88

    def distance(p: Points) -> torch.Tensor:
        x, y, z = q = p * stretch
        bumps = torch.sin(waves @ q + phases).sum(dim=0)
        body = (flesh(x, y, z) + rough * bumps) * least
        if not stem:
            return body
        t = ((y - foot) / top).clamp(0, 1)
        at = (x - lean[0] * top * t * t) ** 2 + (z - lean[1] * top * t * t) ** 2 + (y - foot - top * t) ** 2
        return torch.minimum(body, (at.sqrt() - thick * (1 - 0.25 * t)) * 0.8)

    def trim(p: Points) -> torch.Tensor:
        x, y, z = p * stretch
        return flesh(x, y, z) > 0.035 + 4 * rough

    material = {"pebble": "stone", "potato": "root"}.get(kind, "fruit")
    return Shape(distance, (material,), trim if stem else None, "#5b4428")


def bent(look: Dice, own: Dice) -> Shape:
    """Bananas, horns, croissants and bent pipes: part of a torus, its thickness changing along the way."""
    kind = ("banana", "pipe", "horn", "croissant", "banana")[look.choice(5)]
    angle, width = {"banana": (0.75, 0.2), "pipe": (1.1, 0.19), "horn": (0.9, 0.24), "croissant": (1.25, 0.3)}[kind]
    half = vary(angle * look.between(0.85, 1.25), own, 0.1)
    arc = 0.62 / max(math.sin(min(half, math.pi / 2)), 0.5)
    thick = vary(width * look.between(0.85, 1.15), own)
    facets, edge, bore = 5, 0.04 if kind == "banana" else 0.0, look.between(0.55, 0.75)
    rings, hollow = 5 + look.choice(4), kind == "pipe" and look.chance(0.7)
    sine, cosine = math.sin(half), math.cos(half)
    middle = arc * (1 + cosine) / 2

    def along(p: Points) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Place along the way, [-1, 1] between the ends; distance from the torus's centre; how far beyond an end."""
        x, y = p[0], p[1] + middle
        turn = torch.atan2(x, y) / half
        flat = (x * x + y * y).sqrt()
        return turn, flat, (x.abs() * cosine - y * sine)

    def distance(p: Points) -> torch.Tensor:
        turn, flat, beyond = along(p)
        x, y, z = p[0].abs(), p[1] + middle, p[2]
        if kind == "pipe":
            across = ((flat - arc) ** 2 + z * z).sqrt()
            across = torch.where(beyond > 0, ((x * sine + y * cosine - arc) ** 2 + z * z).sqrt(), across)
            collar = thick * (1 + 0.22 * torch.sigmoid((turn.abs() - 0.84) * 60))
            wall = rounded_max((across - collar) * 0.75, beyond, 0.02)
            return torch.maximum(wall, thick * bore - across) if hollow else wall
        near = torch.where(beyond > 0, x * sine + y * cosine, flat)
        squared = p[0] ** 2 + y * y + z * z + arc**2 - 2 * arc * near
        t = turn.clamp(-1, 1)
        if kind == "horn":
            radius = thick * (1.04 - 0.94 * ((t + 1) / 2) ** 1.3)
        elif kind == "croissant":
            crease = (torch.cos(rings * math.pi * t) ** 2 + 0.03) ** 0.25 - 0.6
            radius = thick * (1 - 0.72 * t * t) * (1 + 0.1 * crease)
        else:
            radius = thick * (1 - 0.28 * t * t - 0.5 * t**8)
        if edge:
            radius = radius * (1 + edge * torch.cos(facets * torch.atan2(z, flat - arc)))
        return (squared.clamp(min=1e-9).sqrt() - radius) * 0.7

    def trim(p: Points) -> torch.Tensor:
        turn, _, _ = along(p)
        return turn.abs() > (0.84 if kind == "pipe" else 0.97)

    horn, pipe = ("fruit", "plastic"), ("plastic", "clay", "plastic")
    materials = {"banana": ("banana",), "pipe": pipe, "horn": horn, "croissant": ("crust",)}
    marked = kind == "banana" or (kind == "pipe" and look.chance(0.5))
    return Shape(distance, materials[kind], trim if marked else None, "#4a3a22" if kind == "banana" else None)


def box(look: Dice, own: Dice) -> Shape:
    """Cartons, blocks, parcels with tape, labelled packets and books."""
    kind = ("plain", "tape", "label", "book", "lid", "faces")[look.choice(6)]
    a, b, c = (vary(look.between(0.3, 0.62), own, 0.04) for _ in range(3))
    if kind == "book":
        a, b, c = a * 1.1, 0.1 + 0.2 * b, 0.35 + 0.5 * c
    rounding = look.between(0.012, 0.03) if kind in ("tape", "book", "label") else look.between(0.03, 0.13)
    rounding = min(rounding, 0.4 * min(a, b, c))
    width, level = look.between(0.08, 0.16), look.between(0.15, 0.55)

    def distance(p: Points) -> torch.Tensor:
        x, y, z = p[0].abs() - a + rounding, p[1].abs() - b + rounding, p[2].abs() - c + rounding
        outside = (x.clamp(min=0) ** 2 + y.clamp(min=0) ** 2 + z.clamp(min=0) ** 2).sqrt()
        box = outside + torch.maximum(torch.maximum(x, y), z).clamp(max=0) - rounding
        if kind == "lid":
            brim = torch.maximum(p[0].abs() - a, p[2].abs() - c) - 0.025
            return torch.minimum(box, torch.maximum(brim, (p[1] - b * 0.8).abs() - b * 0.2))
        return box

    def trim(p: Points) -> torch.Tensor:
        x, y, z = p
        if kind == "tape":
            return x.abs() < width
        if kind == "label":
            return (y.abs() < b * level) & (x.abs() < a * 0.75) | (x.abs() < a * 0.6) & (z.abs() < c * 0.6) & (y > 0)
        if kind == "book":
            return (y.abs() < b - 0.035) & ((z > -c + 0.06) & (x.abs() > a - 0.02) | (z > c - 0.02))
        if kind == "lid":
            return y > b * 0.6
        return x.abs() / a > torch.maximum(y.abs() / b, z.abs() / c)

    materials = {"plain": ("wood", "plastic", "stone"), "tape": ("paper",), "label": ("print",), "book": ("print",)}
    paint = "#e9e0c8" if kind == "book" else None
    return Shape(distance, materials.get(kind, ("plastic", "print")), trim if kind != "plain" else None, paint)


def ring(look: Dice, own: Dice) -> Shape:
    """Tori, from bangles and washers to bagels; some with icing."""
    iced = look.chance(0.3)
    thick = vary(look.between(0.24, 0.3) if iced else look.between(0.1, 0.28), own)
    major, power = 0.95 - thick, 2.0 if iced else look.between(2.0, 5.0)
    flat = look.between(0.95, 1.2) if iced else look.between(0.6, 1.6)
    lobes, phase, twist = 4 + look.choice(4), own.between(0, 6.3), look.chance(0.2) and not iced

    def distance(p: Points) -> torch.Tensor:
        x, y, z = p
        q, h = ((x * x + z * z).sqrt() - major).abs(), y.abs() * flat
        radius = thick * (1 + 0.07 * torch.cos(24 * torch.atan2(z, x))) if twist else thick
        return ((q**power + h**power + 1e-9) ** (1 / power) - radius) * (0.85 / max(1.0, flat))

    def icing(p: Points) -> torch.Tensor:
        turn = torch.atan2(p[2], p[0]) + phase
        return p[1] > thick * (0.12 * torch.sin(lobes * turn) + 0.08 * torch.sin(2 * lobes * turn + 1) + 0.05)

    sugar = ("#e88aa8", "#f4ece0", "#5a2f1c", "#8fc4b0", "#e8c24a")[look.choice(5)]
    materials = ("crust",) if iced else ("plastic", "ceramic", "wood", "stone")
    return Shape(distance, materials, icing if iced else None, sugar)
