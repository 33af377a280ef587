"""Shaded solid objects, rendered by our own code: signed distance functions, traced and lit in torch.

The *look* (profile, material, colours, texture) belongs to a class and comes from the seed; the *pose* and small
variations belong to the instance; the *light* is shared by all, so that pasted objects agree. Object coordinates: y up,
the object inside a ball of REACH. Camera coordinates: x right, y up, z towards the viewer. Points are float32 (3, M),
so that each coordinate lies together in memory.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, reduce
from scipy.interpolate import CubicSpline
from scipy.ndimage import zoom
from torch.nn import functional

from sas.seeding import generator_for

FAMILIES = ("vase", "superquadric", "lumpy", "bent", "box", "bottle", "ring", "mug")
MARGIN = 2  # pixels between the object and the border, along its longer side

Points = torch.Tensor
Field = Callable[[Points], torch.Tensor]


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


@dataclass(frozen=True)
class Shape:
    """distance: (3, M) -> (M,), never much more than the true distance. materials: what it may be made of.
    trim: (3, M) -> bool (M,), the part in another colour (stem, cap, inside). trim_colour: "#rrggbb", or drawn."""

    distance: Field
    materials: tuple[str, ...]
    trim: Field | None = None
    trim_colour: str | None = None


@dataclass(frozen=True)
class Surface:
    """colour: (3, M) -> (3, M) linear light in [0, 1]. gloss: strength of reflections. soft: width of their edge.
    bump, grain: height and frequency of unevenness."""

    colour: Field
    gloss: float
    soft: float
    bump: float
    grain: float


def render_solids(family: str, *, seed: int, count: int, size: int = 96) -> np.ndarray:
    """`count` views of one class of objects: uint8 (count, 4, size, size) RGBA with straight alpha.

    family: one of FAMILIES. seed: names the look of the class. Instance i has its own pose and small variations, and
    does not depend on `count`. The longer side of an object fills the square but for a margin of 1 to 3 pixels.
    Around the object its colours go on under transparent pixels.

    ValueError: unknown family, size below 16, count below 1.
    """
    if family not in FAMILIES:
        close = difflib.get_close_matches(str(family), FAMILIES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "choose one of these"
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}: {hint}")
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}: ask for larger sprites")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}: ask for one or more views")
    with torch.no_grad():
        return np.stack([_render_instance(family, seed, i, size) for i in range(count)])


def _render_instance(family: str, seed: int, instance: int, size: int) -> np.ndarray:
    look, own = Dice(family, seed), Dice(family, seed, instance)
    shape = _SHAPES[family](look, own)
    surface = _surface(shape, look, own)
    return _render(shape.distance, surface, _pose(family, own), size)


# ---------------------------------------------------------------------- shapes


def _vase(look: Dice, own: Dice) -> Shape:
    """Pots, bowls, jars and vases: a body of revolution around a wall, now and then with handles or a lid."""
    name = tuple(_PROFILES)[look.choice(len(_PROFILES))]
    height, width, knots = _PROFILES[name]
    height, width = _vary(height * look.between(0.85, 1.05), own), _vary(width * look.between(0.85, 1.1), own)
    uneven = look.vector(len(knots), -0.07, 0.07) + own.vector(len(knots), -0.02, 0.02)
    radii = torch.tensor(knots) * (1 + uneven) * width
    wall, lid = look.between(0.05, 0.08), name == "jar" and look.chance(0.5)
    handles = name in ("amphora", "tulip") and look.chance(0.4)
    edge, steep = _spline(radii.tolist(), -height, height)
    ear_at, ear = height * look.between(0.15, 0.35), look.between(0.2, 0.26)

    def distance(p: Points) -> torch.Tensor:
        x, y, z = p
        across = (x * x + z * z).sqrt()
        outside = across - edge(y)
        body = _rounded_max(outside * steep, y.abs() - height, 0.05)
        if lid:
            knob = (across**2 + (y - height - 0.07) ** 2).sqrt() - 0.1
            return _smooth_min(body, knob, 0.04)
        pot = _rounded_max(body, -torch.maximum((outside + wall) * steep, -y - height + 2 * wall), 0.02)
        if not handles:
            return pot
        loop = _torus(x.abs() - edge(y), y - ear_at, z, ear, 0.055) * steep
        return _smooth_min(pot, torch.maximum(loop, -(outside + wall / 2)), 0.03)

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


def _bottle(look: Dice, own: Dice) -> Shape:
    """Body, shoulder, neck and cap, with a label on some."""
    body, neck = _vary(look.between(0.26, 0.42), own), look.between(0.09, 0.15)
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
        glass = _rounded_max((across - edge) * 0.6, y.abs() - 0.9, 0.06)
        stopper = _rounded_max(across - neck * cap, (y - 0.84).abs() - 0.1, 0.03)
        return torch.minimum(glass, stopper * 0.85)

    def trim(p: Points) -> torch.Tensor:
        y = p[1]
        return (y > 0.735) | ((y - middle).abs() < reach) if label == 1 else y > 0.735

    return Shape(distance, ("plastic", "ceramic", "glass", "glass"), trim if label else None)


def _mug(look: Dice, own: Dice) -> Shape:
    """An open cup with a handle; the inside has its own glaze."""
    radius, height = _vary(look.between(0.42, 0.56), own), _vary(look.between(0.42, 0.62), own)
    belly, taper, wall = look.between(-0.06, 0.14), look.between(-0.12, 0.2), look.between(0.045, 0.07)
    loop, thick = look.between(0.2, 0.28), look.between(0.05, 0.075)
    slim, apart = look.between(0.75, 1.1), look.chance(0.35)

    def wide(y: torch.Tensor) -> torch.Tensor:
        t = y / height
        return radius * (1 + taper * t + belly * (1 - t * t))

    def distance(p: Points) -> torch.Tensor:
        x, y, z = p
        outside = (x * x + z * z).sqrt() - wide(y)
        body = _rounded_max(outside * 0.9, y.abs() - height, 0.05)
        cup = _rounded_max(body, -torch.maximum((outside + wall) * 0.9, -y - height + 2 * wall), 0.025)
        handle = _torus(x - wide(y), y * slim, z, loop, thick) * 0.85
        return _smooth_min(cup, torch.maximum(handle, -(outside + wall / 2)), 0.03)

    def trim(p: Points) -> torch.Tensor:
        x, y, z = p
        outside = (x * x + z * z).sqrt() - wide(y)
        inner = (outside < -wall * 0.6) & (y > -height + wall)
        return inner | (outside > 0.02) if apart else inner

    return Shape(distance, ("ceramic", "ceramic", "plastic"), trim)


def _superquadric(look: Dice, own: Dice) -> Shape:
    """Ellipsoids, cushions, rounded cubes and drums (Barr 1981)."""
    a, b, c = (_vary(look.between(0.42, 0.82), own) for _ in range(3))
    power, flat = look.between(1.7, 5.0), look.between(1.7, 5.0)
    cut = look.between(-0.2, 0.3) * b if look.chance(0.3) else 9.0
    least = min(a, b, c)

    def distance(p: Points) -> torch.Tensor:
        x, y, z = p[0].abs() / a, p[1].abs() / b, p[2].abs() / c
        ring = (x**power + z**power + 1e-9) ** (flat / power)
        return ((ring + y**flat + 1e-9) ** (1 / flat) - 1) * least * 0.85

    return Shape(distance, ("plastic", "wood", "stone", "ceramic", "plastic"), lambda p: p[1] > cut)


def _lumpy(look: Dice, own: Dice) -> Shape:
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
            return _smooth_min(low, high, 0.35)
        if kind == "lemon":
            ball = (across2 + y * y).sqrt() - 0.82
            return _smooth_min(ball, (across2 + (y.abs() - 0.86) ** 2).sqrt() - 0.12, 0.22)
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


def _bent(look: Dice, own: Dice) -> Shape:
    """Bananas, horns, croissants and bent pipes: part of a torus, its thickness changing along the way."""
    kind = ("banana", "pipe", "horn", "croissant", "banana")[look.choice(5)]
    angle, width = {"banana": (0.75, 0.2), "pipe": (1.1, 0.19), "horn": (0.9, 0.24), "croissant": (1.25, 0.3)}[kind]
    half = _vary(angle * look.between(0.85, 1.25), own, 0.1)
    arc = 0.62 / max(math.sin(min(half, math.pi / 2)), 0.5)
    thick = _vary(width * look.between(0.85, 1.15), own)
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
            wall = _rounded_max((across - collar) * 0.75, beyond, 0.02)
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


def _box(look: Dice, own: Dice) -> Shape:
    """Cartons, blocks, parcels with tape, labelled packets and books."""
    kind = ("plain", "tape", "label", "book", "lid", "faces")[look.choice(6)]
    a, b, c = (_vary(look.between(0.3, 0.62), own, 0.04) for _ in range(3))
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


def _ring(look: Dice, own: Dice) -> Shape:
    """Tori, from bangles and washers to bagels; some with icing."""
    iced = look.chance(0.3)
    thick = _vary(look.between(0.24, 0.3) if iced else look.between(0.1, 0.28), own)
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


_SHAPES: dict[str, Callable[[Dice, Dice], Shape]] = {
    "vase": _vase, "superquadric": _superquadric, "lumpy": _lumpy, "bent": _bent,
    "box": _box, "bottle": _bottle, "ring": _ring, "mug": _mug,
}  # fmt: skip


def _vary(value: float, own: Dice, amount: float = 0.06) -> float:
    return value * own.between(1 - amount, 1 + amount)


def _spline(radii: list[float], low: float, high: float) -> tuple[Field, float]:
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


def _rounded_max(a: torch.Tensor, b: torch.Tensor, radius: float) -> torch.Tensor:
    """Intersection of two solids with its edge rounded off (polynomial smooth maximum)."""
    h = (radius - (a - b).abs()).clamp(min=0)
    return torch.maximum(a, b) + h * h / (4 * radius)


def _smooth_min(a: torch.Tensor, b: torch.Tensor, radius: float) -> torch.Tensor:
    """Union of two solids with the seam filled."""
    h = (radius - (a - b).abs()).clamp(min=0)
    return torch.minimum(a, b) - h * h / (4 * radius)


def _torus(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, major: float, minor: float) -> torch.Tensor:
    """Distance to a ring around the z axis."""
    return (((x * x + y * y).sqrt() - major) ** 2 + z * z).sqrt() - minor


def _pose(family: str, own: Dice) -> torch.Tensor:
    """Rotation from object to camera: upright things seen from 10 to 50 degrees above, others any way round."""
    turn, roll = own.between(0, 2 * math.pi), own.between(-0.05, 0.05)
    tilt = math.radians(own.between(10, 50))
    if family == "bottle" and own.chance(0.25):
        roll += math.pi / 2
    elif family == "mug":
        turn = own.between(-1.9, 1.9) + math.pi * own.choice(2)  # the handle is seldom hidden
    elif family == "ring":
        tilt, roll = own.between(0.55, 1.5), own.between(-0.5, 0.5)
    elif family == "bent":
        turn, tilt, roll = own.between(-0.6, 0.6), own.between(-0.6, 0.7), own.between(0, 2 * math.pi)
    elif family in ("lumpy", "superquadric"):
        tilt, roll = own.between(-0.1, 0.9), own.between(-0.45, 0.45)
    return _rotation(2, roll) @ _rotation(0, tilt) @ _rotation(1, turn)


def _rotation(axis: int, angle: float) -> torch.Tensor:
    c, s = math.cos(angle), math.sin(angle)
    i, j = [k for k in range(3) if k != axis]
    matrix = torch.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


# ---------------------------------------------------------------------- surfaces


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


def _surface(shape: Shape, look: Dice, own: Dice) -> Surface:
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
            fine = _noise(p, 4 * frequency, shift)[0]
            return torch.sigmoid((fine - 0.55) * 14) * 0.75
        if kind == "marble":
            wave = torch.sin(4 * frequency * (turn[0] * x + turn[1] * y + turn[2] * z) + 5 * noise)
            return (1 - wave.abs()) ** 3 * 0.85
        if kind == "strata":
            return 0.5 + 0.5 * torch.sin(7 * frequency * (y + 0.25 * noise + 0.2 * x))
        if kind == "wood":
            rings = ((x + 0.9) ** 2 + (z - 0.7) ** 2).sqrt() + 0.1 * noise + 0.03 * y
            saw = torch.remainder(rings * 7 * frequency, 1)
            return saw * saw * 0.75 + 0.12 * _noise(p * torch.tensor([[4.0], [0.4], [4.0]]), 2, shift)[1]
        if kind == "glaze":  # dips and runs
            return torch.sigmoid((y - level + 0.13 * noise) * 40)
        if kind == "meridians":
            streak = torch.cos(round(5 + 3 * frequency) * torch.atan2(z, x) + 2 * noise)
            return torch.sigmoid(streak * 5) * 0.7
        if kind == "blush":
            return torch.sigmoid((turn[0] * x + turn[1] * y + turn[2] * z + 0.6 * noise + 0.3 * level) * 4) * 0.85
        return torch.zeros_like(x)

    def colour(p: Points) -> torch.Tensor:
        noise = _noise(p, 0.8, shift)[0]
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


def _noise(p: Points, frequency: float, shift: torch.Tensor) -> torch.Tensor:
    """Noise at points: (3, M) -> (3, M)."""
    where = torch.remainder(p * (frequency / 2) + shift[:, None], 1) * 2 - 1
    grid = rearrange(where, "c m -> 1 1 1 m c")
    return rearrange(functional.grid_sample(_noise_volume(), grid, align_corners=True), "1 c 1 1 m -> c m")


# ---------------------------------------------------------------------- rendering

REACH = 1.45  # radius of the ball that holds every object
CAMERA = 6.0  # distance of the viewer: a weak perspective
STEPS = 40
COARSE = 48
KEY_LIGHT = functional.normalize(torch.tensor([-0.5, 0.75, 0.6]), dim=0)
FILL_LIGHT = functional.normalize(torch.tensor([0.8, 0.1, 0.5]), dim=0)
KEY = torch.tensor([[1.0], [0.96], [0.9]])
FILL = torch.tensor([[0.16], [0.18], [0.21]])
SKY = torch.tensor([[0.23], [0.25], [0.28]])
BOUNCE = torch.tensor([[0.13], [0.115], [0.1]])


@dataclass(frozen=True)
class _Rays:
    """Rays in object coordinates. origin: (3, 1), the viewer. direction: (3, M), of length 1."""

    origin: torch.Tensor
    direction: torch.Tensor

    def at(self, depth: torch.Tensor) -> Points:
        return self.origin + self.direction * depth


def _rays(plane: torch.Tensor, rotation: torch.Tensor) -> _Rays:
    """Rays from the viewer through points (2, M) of the plane z = 0."""
    direction = _unit(torch.cat([plane, torch.full_like(plane[:1], -CAMERA)]))
    return _Rays(rotation.T @ torch.tensor([[0.0], [0.0], [CAMERA]]), rotation.T @ direction)


def _trace(
    distance: Field, rays: _Rays, depth: torch.Tensor, *, near: float, slack: float, steps: int = STEPS
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
            part = _Rays(part.origin, part.direction[:, alive])
    return hit, final


def _render(distance: Field, surface: Surface, rotation: torch.Tensor, size: int) -> np.ndarray:
    """One sprite: uint8 (4, size, size). Four rays a pixel; light is found once a pixel where the surface is smooth."""
    free = _free_depth(distance, rotation)
    centre, half = _bounds(distance, rotation, free)
    half *= size / (size - 2 * MARGIN)
    pixel = 2 * half / size
    plane = _plane(size, 2, half, centre)
    start = _look_up(free, plane)
    alive = start.isfinite().nonzero().flatten()
    rays = _rays(plane[:, alive], rotation)
    found, reached = _trace(distance, rays, start[alive], near=0.15 * pixel, slack=0.3 * pixel)

    rows = found.nonzero().flatten()
    hit, points, direction = alive[rows], rays.at(reached)[:, rows], rays.direction[:, rows]
    which, chosen = _shared(hit, reached[rows], pixel, size)
    light, shine = _light(distance, surface, rotation, points[:, chosen], direction[:, chosen], pixel)
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


def _plane(size: int, samples: int, half: float, centre: tuple[float, float]) -> torch.Tensor:
    """Sample points on the plane z = 0, pixel by pixel from the top left: (2, size * size * samples^2)."""
    line = ((torch.arange(size * samples) + 0.5) / (size * samples) * 2 - 1) * half
    y, x = torch.meshgrid(centre[1] - line, centre[0] + line, indexing="ij")
    return rearrange(torch.stack([x, y]), "c (h a) (w b) -> c (h w a b)", a=samples, b=samples)


def _free_depth(distance: Field, rotation: torch.Tensor) -> torch.Tensor:
    """Depth up to which all rays through a cell of a coarse grid are free, found with rays as thick as a cell.

    float (COARSE, COARSE), inf where they meet nothing.
    """
    start = torch.full((COARSE * COARSE,), CAMERA - REACH)
    near = 2 * REACH / COARSE * 0.75 * (1 + REACH / CAMERA)
    rays = _rays(_plane(COARSE, 1, REACH, (0.0, 0.0)), rotation)
    hit, depth = _trace(distance, rays, start, near=near, slack=0.0, steps=3 * STEPS)
    return rearrange(torch.where(hit, depth - 0.02, torch.inf), "(h w) -> h w", h=COARSE)


def _look_up(free: torch.Tensor, plane: torch.Tensor) -> torch.Tensor:
    """Free depth of rays through points (2, M) of the plane: (M,)."""
    column, row = ((plane * torch.tensor([[1.0], [-1.0]]) / REACH + 1) * (COARSE / 2)).long()
    inside = (column >= 0) & (column < COARSE) & (row >= 0) & (row < COARSE) & (plane.abs().amax(dim=0) < REACH)
    return torch.where(inside, free[row.clamp(0, COARSE - 1), column.clamp(0, COARSE - 1)], torch.inf)


def _bounds(distance: Field, rotation: torch.Tensor, free: torch.Tensor) -> tuple[tuple[float, float], float]:
    """Middle and half of the longer side of the object on the plane z = 0."""
    plane = _plane(2 * COARSE, 1, REACH, (0.0, 0.0))
    start = _look_up(free, plane)
    plane, start = plane[:, start.isfinite()], start[start.isfinite()]
    cell = REACH / COARSE
    seen = plane[:, _trace(distance, _rays(plane, rotation), start, near=cell / 4, slack=cell / 4, steps=24)[0]]
    if not seen.shape[1]:
        raise RuntimeError("a solid is out of sight")
    low, high = seen.amin(dim=1), seen.amax(dim=1)
    x, y = ((low + high) / 2).tolist()
    return (x, y), float((high - low).max() + cell) / 2


def _light(
    distance: Field, surface: Surface, rotation: torch.Tensor, points: Points, direction: torch.Tensor, pixel: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Light that falls on points and light that they mirror, (3, M) each; the object shades itself."""
    key_light, fill_light, up = rotation.T @ KEY_LIGHT, rotation.T @ FILL_LIGHT, rotation.T @ torch.tensor([0.0, 1, 0])
    side = functional.normalize(torch.linalg.cross(key_light, up), dim=0)
    normal = torch.zeros_like(points)
    for corner in ([1.0, -1, -1], [-1.0, -1, 1], [-1.0, 1, -1], [1.0, 1, 1]):
        offset = torch.tensor(corner)[:, None]
        normal += offset * distance(points + 0.3 * pixel * offset)
    normal = _unit(normal)
    free = torch.ones_like(points[0])
    for k in (0.06, 0.15, 0.3):
        free = free - (k - distance(points + k * normal)).clamp(min=0) / k * 0.3
    free = free.clamp(0.1, 1)
    shadow = _shadow(distance, points + 0.03 * normal, key_light)
    if surface.bump:
        normal = _unit(normal + surface.bump * _noise(points, surface.grain, up * 0))

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


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (3, M) at length 1; several times faster than functional.normalize along the first axis."""
    x, y, z = vectors
    return vectors * (x * x + y * y + z * z).clamp(min=1e-12).rsqrt()


def _dot(vectors: torch.Tensor, axis: torch.Tensor) -> torch.Tensor:
    return vectors[0] * axis[0] + vectors[1] * axis[1] + vectors[2] * axis[2]


def _step(value: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """From 0 at `low` to 1 at `high`, smoothly."""
    t = ((value - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


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
