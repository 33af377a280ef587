"""Shaded solid objects, rendered by our own code: signed distance functions, traced and lit in torch.

An object is drawn in three parts. Its *look* (shape profile, colours, texture, material) belongs to a class and comes from the seed;
its *pose* and small variations belong to the instance; the *light* is shared by all, so that pasted objects agree.
Coordinates: x right, y up, z towards the viewer, objects inside the unit ball.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, reduce
from torch.nn import functional

from sas.seeding import generator_for

FAMILIES = ("vase", "superquadric", "lumpy", "bent", "box", "bottle", "ring", "mug")

KEY_LIGHT = functional.normalize(torch.tensor([-0.45, 0.75, 0.55]), dim=0)
FILL_LIGHT = functional.normalize(torch.tensor([0.8, 0.15, 0.5]), dim=0)
VIEW = torch.tensor([0.0, 0.0, 1.0])
STEPS, SHORTEN, HIT, SAMPLES = 44, 0.8, 4e-3, 2


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


Distance = Callable[[torch.Tensor], torch.Tensor]
Texture = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Solid:
    """One object ready to be traced. distance: (M, 3) -> (M,), at most the true distance. colour: (M, 3) -> (M, 3) in [0, 1].
    rotation: (3, 3), object to camera. gloss, shininess: strength and exponent of the highlight."""

    distance: Distance
    colour: Texture
    rotation: torch.Tensor
    gloss: float
    shininess: float


def render_solids(family: str, *, seed: int, count: int, size: int = 96) -> np.ndarray:
    """`count` views of one class of objects: uint8 (count, 4, size, size) RGBA with straight alpha.

    family: one of FAMILIES. seed: names the look of the class. Instance i has its own pose and small variations, and does not
    depend on `count`. The longer side of an object fills the square but for a margin of two pixels.
    """
    if family not in FAMILIES:
        close = difflib.get_close_matches(family, FAMILIES, n=1)
        raise ValueError(
            f"family must be one of {', '.join(FAMILIES)}, got {family!r}: {f'did you mean {close[0]}?' if close else 'choose one'}"
        )
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}: ask for larger sprites")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}: ask for one or more views")
    with torch.no_grad():
        return np.stack([_render(_make(family, seed, i), size) for i in range(count)])


# ---------------------------------------------------------------------- shapes


def _make(family: str, seed: int, instance: int) -> Solid:
    look, own = Dice(family, seed), Dice(family, seed, instance)
    distance = _SHAPES[family](look, own)
    colour, gloss, shininess = _material(look, own, fruit=family in ("lumpy", "bent"))
    return Solid(distance, colour, _pose(family, own), gloss, shininess)


def _vary(value: float, own: Dice, amount: float = 0.06) -> float:
    return value * own.between(1 - amount, 1 + amount)


def _vase(look: Dice, own: Dice) -> Distance:
    """A body of revolution, often an open pot."""
    height = _vary(look.between(0.55, 0.95), own)
    width = _vary(look.between(0.3, 0.62), own)
    waves = [(look.between(-0.3, 0.3) / k, look.between(0, 2 * math.pi)) for k in (1, 2, 3)]
    open_top, wall = look.chance(0.75), look.between(0.05, 0.09)

    def profile(y: torch.Tensor) -> torch.Tensor:
        at = (y / height).clamp(-1, 1) * math.pi / 2
        wave = sum(a * torch.cos((k + 1) * at + phase) for k, (a, phase) in enumerate(waves))
        return width * (1 + torch.as_tensor(wave))

    def distance(p: torch.Tensor) -> torch.Tensor:
        radius, y = p[:, [0, 2]].norm(dim=1), p[:, 1]
        edge = profile(y)
        body = _rounded_max((radius - edge) * 0.75, y.abs() - height, 0.06)
        if not open_top:
            return body
        hollow = torch.maximum((radius - edge + wall) * 0.75, -y - height + 2 * wall)
        return torch.maximum(body, -hollow)

    return distance


def _bottle(look: Dice, own: Dice) -> Distance:
    """Body, shoulder and neck, with a cap as wide as it likes."""
    body, neck = _vary(look.between(0.24, 0.42), own), look.between(0.08, 0.15)
    shoulder, slope = look.between(0.0, 0.4), look.between(0.12, 0.4)
    waist, squared = look.between(0, 0.12), look.chance(0.25)
    cap = look.between(1.0, 1.5)

    def distance(p: torch.Tensor) -> torch.Tensor:
        y = p[:, 1]
        flat = p[:, [0, 2]]
        radius = (flat.abs() ** 4).sum(dim=1) ** 0.25 if squared else flat.norm(dim=1)
        t = ((y - shoulder) / slope).clamp(0, 1)
        edge = body + (neck - body) * t * t * (3 - 2 * t)
        edge = edge - waist * torch.exp(-((y + 0.35) ** 2) / 0.05) * body
        edge = torch.where(y > 0.78, neck * cap, edge)
        return _rounded_max((radius - edge) * 0.6, y.abs() - 0.95, 0.05)

    return distance


def _mug(look: Dice, own: Dice) -> Distance:
    """An open cylinder with a handle."""
    radius, height = _vary(look.between(0.42, 0.56), own), _vary(look.between(0.42, 0.66), own)
    taper, wall = look.between(-0.15, 0.2), look.between(0.05, 0.08)
    loop, thick = look.between(0.2, 0.3), look.between(0.05, 0.08)

    def distance(p: torch.Tensor) -> torch.Tensor:
        y, across = p[:, 1], p[:, [0, 2]].norm(dim=1)
        edge = radius * (1 + taper * y / height)
        body = _rounded_max((across - edge) * 0.9, y.abs() - height, 0.05)
        hollow = torch.maximum((across - edge + wall) * 0.9, -y - height + 2 * wall)
        cup = torch.maximum(body, -hollow)
        q = torch.stack([p[:, 0] - radius, y * 0.8], dim=1).norm(dim=1) - loop
        handle = torch.stack([q, p[:, 2]], dim=1).norm(dim=1) - thick
        return torch.minimum(cup, torch.maximum(handle, edge - wall * 0.5 - across))

    return distance


def _superquadric(look: Dice, own: Dice) -> Distance:
    """Ellipsoids, rounded cubes, cushions and the like (Barr 1981)."""
    axes = torch.stack([torch.tensor(_vary(look.between(0.4, 0.85), own)) for _ in range(3)])
    power, flat = look.between(1.6, 5.0), look.between(1.6, 5.0)

    def distance(p: torch.Tensor) -> torch.Tensor:
        q = (p / axes).abs().clamp(min=1e-6)
        ring = (q[:, 0] ** power + q[:, 2] ** power) ** (1 / power)
        norm = (ring**flat + q[:, 1] ** flat) ** (1 / flat)
        return (norm - 1) * axes.min() * 0.8

    return distance


def _lumpy(look: Dice, own: Dice) -> Distance:
    """Fruit and pebbles: an ellipsoid with bumps, and dimples at the poles for fruit."""
    axes = torch.stack([torch.tensor(_vary(look.between(0.6, 0.85), own, 0.1)) for _ in range(3)])
    bumps = [(look.between(0.01, 0.09), look.vector(3, -3, 3), own.between(0, 2 * math.pi)) for _ in range(4)]
    fruit = look.chance(0.6)
    dimple, ribs, ribbing = look.between(0.1, 0.3), 3 + look.choice(6), look.between(0, 0.06)
    stem = look.chance(0.7)
    lean = own.vector(2, -0.2, 0.2)

    def distance(p: torch.Tensor) -> torch.Tensor:
        q = p / axes
        norm = q.norm(dim=1)
        radius = 1 + sum(a * torch.sin(p @ k + phase) for a, k, phase in bumps)
        if fruit:
            across2 = q[:, 0] ** 2 + q[:, 2] ** 2
            radius = radius - dimple * torch.exp(-across2 / 0.06) * (1 + 0.5 * torch.sign(q[:, 1]))
            radius = radius + ribbing * torch.cos(ribs * torch.atan2(q[:, 2], q[:, 0])) * across2.clamp(max=1)
        body = (norm - radius) * axes.min() * 0.75
        if not (fruit and stem):
            return body
        along = (p[:, 1] - axes[1] * 0.6).clamp(0, 0.42)
        bent = torch.stack(
            [p[:, 0] - lean[0] * along, p[:, 1] - axes[1] * 0.6 - along, p[:, 2] - lean[1] * along], dim=1
        )
        return torch.minimum(body, bent.norm(dim=1) - 0.05)

    return distance


def _bent(look: Dice, own: Dice) -> Distance:
    """Bananas, croissants and bent tubes: a torus segment whose thickness tapers."""
    half = _vary(look.between(0.5, 1.35), own, 0.12)
    arc = look.between(0.55, 0.7) / max(math.sin(min(half, math.pi / 2)), 0.5)
    thick = _vary(look.between(0.13, 0.26), own)
    taper, facets, edge = look.between(0.0, 0.75), 4 + look.choice(3), look.between(0, 0.1) * look.choice(2)
    sine, cosine = math.sin(half), math.cos(half)
    middle = arc * (1 + cosine) / 2

    def distance(p: torch.Tensor) -> torch.Tensor:
        x, y, z = p[:, 0].abs(), p[:, 1] + middle, p[:, 2]
        outside = cosine * x > sine * y
        along = torch.where(outside, x * sine + y * cosine, torch.stack([x, y], dim=1).norm(dim=1))
        squared = x * x + y * y + z * z + arc**2 - 2 * arc * along
        turn = torch.atan2(x, y).clamp(0, half) / half
        radius = thick * (1 - taper * turn**3)
        around = torch.atan2(z, torch.stack([x, y], dim=1).norm(dim=1) - arc)
        radius = radius * (1 + edge * torch.cos(facets * around))
        return (squared.clamp(min=1e-9).sqrt() - radius) * 0.8

    return distance


def _box(look: Dice, own: Dice) -> Distance:
    """Rounded boxes, from cubes to books."""
    sides = torch.stack([torch.tensor(_vary(look.between(0.2, 0.6), own)) for _ in range(3)])
    rounding = look.between(0.015, 0.12)

    def distance(p: torch.Tensor) -> torch.Tensor:
        q = p.abs() - (sides - rounding)
        return q.clamp(min=0).norm(dim=1) + q.amax(dim=1).clamp(max=0) - rounding

    return distance


def _ring(look: Dice, own: Dice) -> Distance:
    """Tori, from wires to bagels and flat washers."""
    thick = _vary(look.between(0.09, 0.3), own)
    major = 0.92 - thick
    flat, power = look.between(0.6, 1.8), look.between(2.0, 5.0)

    def distance(p: torch.Tensor) -> torch.Tensor:
        q = (p[:, [0, 2]].norm(dim=1) - major).abs().clamp(min=1e-6)
        h = (p[:, 1].abs() * flat).clamp(min=1e-6)
        return ((q**power + h**power) ** (1 / power) - thick) * 0.7 / max(1.0, flat * 0.8)

    return distance


_SHAPES: dict[str, Callable[[Dice, Dice], Distance]] = {
    "vase": _vase,
    "superquadric": _superquadric,
    "lumpy": _lumpy,
    "bent": _bent,
    "box": _box,
    "bottle": _bottle,
    "ring": _ring,
    "mug": _mug,
}


def _rounded_max(a: torch.Tensor, b: torch.Tensor, radius: float) -> torch.Tensor:
    """Intersection of two solids with its edge rounded off."""
    h = (0.5 + 0.5 * (a - b) / radius).clamp(0, 1)
    return b + (a - b) * h + radius * h * (1 - h)


def _pose(family: str, own: Dice) -> torch.Tensor:
    """Rotation from object to camera: upright things seen from a little above, others any way round."""
    turn = own.between(0, 2 * math.pi)
    if family in ("vase", "bottle", "mug", "box"):
        tilt, roll = own.between(0.15, 0.75), own.between(-0.06, 0.06)
        if family == "bottle" and own.chance(0.25):
            roll += math.pi / 2
    elif family == "ring":
        tilt, roll = own.between(0.5, 1.4), own.between(-0.5, 0.5)
    elif family == "bent":
        turn, tilt, roll = own.between(-0.6, 0.6), own.between(-0.6, 0.6), own.between(0, 2 * math.pi)
    else:
        tilt, roll = own.between(-0.2, 0.9), own.between(-0.5, 0.5)
    return _rotation(2, roll) @ _rotation(0, tilt) @ _rotation(1, turn)


def _rotation(axis: int, angle: float) -> torch.Tensor:
    c, s = math.cos(angle), math.sin(angle)
    i, j = [k for k in range(3) if k != axis]
    matrix = torch.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


# ---------------------------------------------------------------------- surfaces


def _material(look: Dice, own: Dice, *, fruit: bool) -> tuple[Texture, float, float]:
    """Colours and texture of a class, a little different on each instance; gloss and shininess."""
    base, second = _palette(look, fruit=fruit)
    tone = 1 + own.vector(3, -0.07, 0.07)
    base, second = (base * tone).clamp(0, 1), (second * tone).clamp(0, 1)
    kind = look.choice(8)
    frequency, turns = look.between(4, 14), look.vector(3)
    waves = [(look.vector(3, -6, 6), own.between(0, 2 * math.pi), 1 / k) for k in (1, 2, 3, 4)]
    threshold = look.between(-0.4, 0.5)

    def noise(p: torch.Tensor) -> torch.Tensor:
        return sum(a * torch.sin(p @ k * (1 + i) + phase) for i, (k, phase, a) in enumerate(waves)) / 2  # type: ignore[return-value]

    def share(p: torch.Tensor) -> torch.Tensor:
        """How much of the second colour a point has, in [0, 1]."""
        if kind == 0:
            return torch.zeros(len(p))
        if kind == 1:  # stripes or bands
            return torch.sigmoid(torch.sin(frequency * p[:, 1]) * 12)
        if kind == 2:  # spots
            return torch.sigmoid((torch.sin(p * frequency * 1.2).prod(dim=1).abs() - 0.35) * 20)
        if kind == 3:  # marble
            return 0.5 + 0.5 * torch.sin(4 * (p @ turns) + 3 * noise(p))
        if kind == 4:  # wood
            return 0.5 + 0.5 * torch.sin(frequency * 2 * p[:, [0, 2]].norm(dim=1) + 1.5 * noise(p) + p[:, 1])
        if kind == 5:  # glaze that ends in a wavy line
            return torch.sigmoid((p[:, 1] - threshold + 0.12 * noise(p)) * 25)
        if kind == 6:  # meridians
            return torch.sigmoid(torch.sin(round(frequency) * torch.atan2(p[:, 2], p[:, 0])) * 6)
        return (0.5 + 0.5 * noise(p)).clamp(0, 1) * 0.7  # blush

    def colour(p: torch.Tensor) -> torch.Tensor:
        mix = share(p)[:, None]
        return (base * (1 - mix) + second * mix) * (1 + 0.06 * noise(p * 2)[:, None])

    matte = look.chance(0.35)
    return (
        colour,
        look.between(0.03, 0.12) if matte else look.between(0.2, 0.6),
        look.between(8, 16) if matte else look.between(24, 70),
    )


def _palette(look: Dice, *, fruit: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Two colours that go together."""
    hue = look.between(-0.05, 0.33) if fruit else look.between(0, 1)
    saturation = look.between(0.5, 0.9) if fruit else look.between(0.05, 0.85)
    value = look.between(0.55, 0.95) if fruit else look.between(0.25, 0.95)
    other = (hue + look.between(-0.12, 0.12) + (0.5 if look.chance(0.2) else 0)) % 1
    second = value * 0.45 if value > 0.6 else min(1.0, value * 1.9)
    return _hsv(hue % 1, saturation, value), _hsv(other, saturation * look.between(0.4, 1), second)


def _hsv(hue: float, saturation: float, value: float) -> torch.Tensor:
    k = (torch.tensor([5.0, 3.0, 1.0]) + hue * 6) % 6
    return value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1)


# ---------------------------------------------------------------------- rendering


def _render(solid: Solid, size: int) -> np.ndarray:
    """Trace one object into a sprite: uint8 (4, size, size)."""
    coarse = 40
    hit, _ = _trace(solid, _rays(coarse, (0.0, 0.0), 1.35))
    seen = hit.reshape(coarse, coarse).nonzero().float()
    if len(seen) == 0:
        raise RuntimeError("a solid is out of sight")
    low, high = seen.amin(dim=0), seen.amax(dim=0) + 1
    cell = 2.7 / coarse
    middle = ((low + high) / 2 * cell - 1.35).tolist()
    half = float((high - low).max()) * cell / 2 + cell / 2  # the coarse grid may miss half a cell at the edge
    side = size * SAMPLES
    hit, points = _trace(solid, _rays(side, (middle[1], -middle[0]), half * size / (size - 4)))
    rgb = torch.zeros(side * side, 3)
    if hit.any():
        rgb[hit] = _shade(solid, points[hit])
    alpha = rearrange(hit.float(), "(h w) -> 1 h w", h=side)
    premultiplied = torch.cat([rearrange(rgb, "(h w) c -> c h w", h=side), alpha])
    small = reduce(premultiplied, "c (h a) (w b) -> c h w", "mean", a=SAMPLES, b=SAMPLES)
    colour = _bleed(small[:3], small[3:])
    return (torch.cat([colour, small[3:]]) * 255).round().byte().numpy()


def _rays(side: int, centre: tuple[float, float], half: float) -> torch.Tensor:
    """Points on the image plane, rows from the top: (side * side, 2)."""
    line = (torch.arange(side) + 0.5) / side * 2 - 1
    ys, xs = torch.meshgrid(-line, line, indexing="ij")
    return torch.stack([xs.flatten() * half + centre[0], ys.flatten() * half + centre[1]], dim=1)


def _trace(solid: Solid, plane: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sphere tracing (Hart 1996) along -z: whether each ray hits, and where, in camera coordinates."""
    count = len(plane)
    depth = (2.2 - plane.square().sum(dim=1)).clamp(min=0).sqrt()  # start on a ball around the object
    points = torch.cat([plane, depth[:, None]], dim=1)
    hit = torch.zeros(count, dtype=torch.bool)
    active = (plane.square().sum(dim=1) < 2.2).nonzero().flatten()
    for _ in range(STEPS):
        if not len(active):
            break
        distance = solid.distance(points[active] @ solid.rotation)
        near = distance < HIT
        hit[active[near]] = True
        points[active, 2] -= torch.where(near, 0.0, distance * SHORTEN)
        active = active[~near & (points[active, 2] > -1.5)]
    return hit, points


def _shade(solid: Solid, points: torch.Tensor) -> torch.Tensor:
    """Colour of surface points: two lights, sky light, occlusion by the object itself, highlight; (M, 3) in [0, 1]."""
    rotation = solid.rotation

    def distance(p: torch.Tensor) -> torch.Tensor:
        return solid.distance(p @ rotation)

    offsets = torch.tensor([[1.0, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
    normal = sum(o * distance(points + 0.004 * o)[:, None] for o in offsets)
    normal = functional.normalize(normal, dim=1)  # type: ignore[arg-type]
    open_sky = 1 - sum(((0.1 * k - distance(points + 0.1 * k * normal)).clamp(min=0)) * 2.2 / k for k in (1, 2, 3))
    open_sky = open_sky.clamp(0.15, 1)  # type: ignore[union-attr]
    shadow = _shadow(distance, points + 0.03 * normal)
    key = (normal @ KEY_LIGHT).clamp(min=0) * shadow
    fill = (normal @ FILL_LIGHT * 0.5 + 0.5).clamp(min=0)
    sky = 0.5 + 0.5 * normal[:, 1]
    half = functional.normalize(KEY_LIGHT + VIEW, dim=0)
    highlight = (normal @ half).clamp(min=0) ** solid.shininess * solid.gloss * shadow
    rim = (1 - normal[:, 2].clamp(0, 1)) ** 3 * 0.12
    light = 0.85 * key + open_sky * (0.16 * fill + 0.22 * sky + 0.1 + rim)
    albedo = solid.colour(points @ rotation).clamp(0, 1) ** 2.2
    linear = albedo * light[:, None] + highlight[:, None]
    return linear.clamp(0, 1) ** (1 / 2.2)


def _shadow(distance: Distance, points: torch.Tensor) -> torch.Tensor:
    """Share of the key light that reaches each point past the object itself, with a soft edge."""
    lit, along = torch.ones(len(points)), torch.full((len(points),), 0.04)
    for _ in range(8):
        d = distance(points + along[:, None] * KEY_LIGHT)
        lit = torch.minimum(lit, (d / along * 8).clamp(0, 1))
        along = along + d.clamp(0.03, 0.2)
    return lit


def _bleed(premultiplied: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Straight colours, carried outwards under the transparent pixels so that sampling meets no dark fringe."""
    colour, weight = premultiplied, alpha
    result = torch.where(alpha > 0, premultiplied / alpha.clamp(min=1e-6), 0)
    filled = alpha > 0
    for _ in range(3):
        colour = functional.avg_pool2d(colour[None], 3, stride=1, padding=1)[0]
        weight = functional.avg_pool2d(weight[None], 3, stride=1, padding=1)[0]
        new = ~filled & (weight > 0)
        result = torch.where(new, colour / weight.clamp(min=1e-6), result)
        filled = filled | new
    mean = premultiplied.sum(dim=(1, 2)) / alpha.sum().clamp(min=1)
    return torch.where(filled, result, mean[:, None, None]).clamp(0, 1)
