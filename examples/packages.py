"""Rendered packages to train on: boxes, books, cartons, cans, tubs, jars, tubes and bags with invented labels. Needs no material.

    apt-get install libosmesa6 && pip install vtk
    python examples/packages.py data/packages

writes cutouts `<kind>__<number>__<view>.webp`, up to six views each of 480 packages. Bottles are not among them, since the bottle is a family
for tests. A few minutes on two cores.
"""

import colorsys
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from furniture import cutout, render
from PIL import Image, ImageDraw, ImageFont

KINDS = ("box", "box", "book", "carton", "can", "tub", "jar", "tube", "bag", "bag")
COUNT = 480
PIXELS = 160
"""Of a label, for one unit of length; packages are about one unit tall."""
SYLLABLES = (
    "ba", "be", "bon", "ca", "chi", "co", "da", "del", "fa", "fi", "ga", "go", "ka", "la", "le", "lo", "ma", "mi", "mo",
    "na", "ne", "no", "pa", "pe", "po", "ra", "ri", "ro", "sa", "si", "sol", "ta", "te", "ti", "to", "va", "vi", "za",
)  # fmt: skip

Colour = tuple[int, int, int]
Random = np.random.Generator


class Mesh(NamedTuple):
    """A surface with a texture. points: (V, 3), y up. corners: (V, 2), texture coordinates in [0, 1], v up. normals: (V, 3).
    triangles: (T, 3)."""

    points: np.ndarray
    corners: np.ndarray
    normals: np.ndarray
    triangles: np.ndarray


# ------------------------------------------------------------------ labels


class Palette(NamedTuple):
    ground: Colour
    second: Colour
    accent: Colour
    ink: Colour


def palette(random: Random) -> Palette:
    """Colours that a package would have: a strong or pale ground, a neighbour or opposite of it, and an ink that can be read."""
    hue = random.random()
    pale = random.random() < 0.35
    saturation = random.uniform(0, 0.25) if pale else random.uniform(0.4, 1)
    ground = _colour(hue, saturation, random.uniform(0.75, 1) if pale else random.uniform(0.2, 0.95))
    second = _colour(hue + random.choice([0, 0.08, 0.3, 0.5]), random.uniform(0.1, 1), random.uniform(0.25, 1))
    accent = _colour(random.random(), random.uniform(0.5, 1), random.uniform(0.5, 1))
    if np.dot(ground, (0.3, 0.6, 0.1)) < 128:
        ink = _colour(hue + 0.5, random.uniform(0, 0.4), 1.0)
    else:
        ink = _colour(hue, random.uniform(0, 1), random.uniform(0, 0.35))
    return Palette(ground, second, accent, ink)


def _colour(hue: float, saturation: float, value: float) -> Colour:
    r, g, b = (round(255 * one) for one in colorsys.hsv_to_rgb(hue % 1, saturation, value))
    return r, g, b


def front(size: tuple[int, int], colours: Palette, random: Random) -> Image.Image:
    """The side of a package that is meant to be seen. size: (width, height) in pixels."""
    image = _ground(size, colours, random)
    draw = ImageDraw.Draw(image)
    width, height = size
    if random.random() < 0.7:
        _picture(draw, size, colours, random)
    y = random.uniform(0.05, 0.5)
    tall = random.uniform(0.12, 0.3)
    plate = [random.uniform(-0.05, 0.1) * width, y * height, random.uniform(0.9, 1.05) * width, (y + tall) * height]
    shape = random.integers(4)
    if shape == 0:
        draw.rectangle(plate, fill=colours.second)
    elif shape == 1:
        draw.ellipse(plate, fill=colours.second, outline=colours.accent, width=3)
    elif shape == 2:
        draw.rounded_rectangle(plate, radius=tall * height / 3, fill=colours.accent)
    fill = colours.ink if shape == 3 else _readable(colours.second if shape < 2 else colours.accent)
    _text(image, _word(random), (0.08, y, 0.92, y + 0.9 * tall), fill, bold=random.random() < 0.6)
    y += tall
    for _ in range(random.integers(0, 4)):
        tall = random.uniform(0.03, 0.09)
        words = " ".join(_word(random) for _ in range(random.integers(1, 4)))
        left = random.uniform(0.05, 0.4)
        _text(image, words, (left, y, random.uniform(left + 0.3, 0.98), y + tall), colours.ink)
        y += 1.3 * tall
    if random.random() < 0.4:
        x, y, r = random.uniform(0.15, 0.85), random.uniform(0.1, 0.9), random.uniform(0.08, 0.18)
        ink, high = _readable(colours.accent), r * width / height
        disc = [(x - r) * width, (y - high) * height, (x + r) * width, (y + high) * height]
        draw.ellipse(disc, fill=colours.accent, outline=ink, width=2)
        price = f"{random.integers(2, 99)}"
        _text(image, price, (x - 0.6 * r, y - 0.5 * high, x + 0.6 * r, y + 0.5 * high), ink, bold=True)
    if random.random() < 0.6:
        _text(image, f"{random.integers(5, 90) * 10} g", (0.7, 0.92, 0.95, 0.98), colours.ink)
    return image


def side(size: tuple[int, int], colours: Palette, random: Random) -> Image.Image:
    """A side with what has to be told: small print, a table, a bar code."""
    image = Image.new("RGB", size, colours.ground)
    draw = ImageDraw.Draw(image)
    width, height = size
    if random.random() < 0.3:
        draw.rectangle([0, 0, width, random.uniform(0.1, 0.3) * height], fill=colours.second)
    y = random.uniform(0.05, 0.3)
    while y < 0.7:
        _text(image, " ".join(_word(random) for _ in range(4)), (0.08, y, 0.92, y + 0.035), colours.ink)
        y += random.choice([0.05, 0.05, 0.12])
    x0, y0, x1, y1 = 0.15 * width, 0.75 * height, random.uniform(0.5, 0.85) * width, 0.93 * height
    draw.rectangle([x0, y0, x1, y1], fill=(250, 250, 250))
    if random.random() < 0.6:
        x = x0 + 3
        while x < x1 - 4:
            bar = random.integers(1, 4)
            draw.line([x, y0 + 1, x, y1 - 1], fill=(20, 20, 20), width=int(bar))
            x += bar + random.integers(1, 4)
    else:
        for line in np.linspace(y0, y1, 6):
            draw.line([x0, line, x1, line], fill=(40, 40, 40))
    return image


def _ground(size: tuple[int, int], colours: Palette, random: Random) -> Image.Image:
    width, height = size
    kind = random.integers(5)
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    if kind == 0:
        share = np.zeros((height, width))
    elif kind == 1:
        share = rows * random.uniform(0.3, 1) + columns * random.uniform(-0.3, 0.3)
    elif kind == 2:
        share = (rows * max(size) / height > random.uniform(0.3, 0.8)).astype(float)
    elif kind == 3:
        a = random.uniform(0, np.pi)
        wave = np.sin((rows * np.sin(a) + columns * np.cos(a)) * random.uniform(10, 60))
        share = (wave > random.uniform(-0.5, 0.9)) * random.uniform(0.2, 1)
    else:
        curve = random.uniform(0.3, 0.8) + random.uniform(-0.2, 0.2) * np.sin(
            columns * random.uniform(2, 9) + random.uniform(0, 6)
        )
        share = (rows * max(size) / height > curve).astype(float)
    mixed = np.asarray(colours.ground) * (1 - share[..., None]) + np.asarray(colours.second) * share[..., None]
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def _picture(draw: ImageDraw.ImageDraw, size: tuple[int, int], colours: Palette, random: Random) -> None:
    """A few round things or leaves, shaded in steps, on some part of the label."""
    width, height = size
    centre = np.array([random.uniform(0.25, 0.75) * width, random.uniform(0.45, 0.85) * height])
    own = [_colour(random.random(), random.uniform(0.4, 1), random.uniform(0.4, 1)) for _ in range(2)]
    for _ in range(random.integers(1, 9)):
        middle = centre + random.normal(0, 0.14, 2) * width
        rx, ry = random.uniform(0.06, 0.25, 2) * width
        tint = np.array(own[random.integers(2)])
        leaf = random.random() < 0.3
        for step in range(5):
            k = 1 - step / 6
            fill = tuple(int(v) for v in (tint * (0.55 + 0.1 * step) + 12 * step).clip(0, 255))
            x, y = middle - np.array([rx, ry]) * 0.25 * (1 - k)
            if leaf:
                draw.polygon([(x - k * rx, y), (x, y - k * ry / 2), (x + k * rx, y), (x, y + k * ry / 2)], fill=fill)
            else:
                draw.ellipse([x - k * rx, y - k * ry, x + k * rx, y + k * ry], fill=fill)


def _word(random: Random) -> str:
    word = "".join(random.choice(SYLLABLES, random.integers(1, 4)))
    return [word, word.title(), word.upper()][random.integers(3)]


def _readable(ground: Colour) -> Colour:
    return (250, 250, 245) if np.dot(ground, (0.3, 0.6, 0.1)) < 140 else (25, 20, 30)


def _text(
    image: Image.Image, words: str, box: tuple[float, float, float, float], fill: Colour, bold: bool = False
) -> None:
    """Words in a box (left, top, right, bottom), shares of the image, as large as they fit."""
    left, top, right, bottom = (round(one * side) for one, side in zip(box, 2 * image.size, strict=True))
    if right - left < 4 or bottom - top < 3:
        return
    font = ImageFont.load_default(32)
    x0, y0, x1, y1 = font.getbbox(words, stroke_width=2 if bold else 0)
    mask = Image.new("L", (max(1, round(x1 - x0)), max(1, round(y1 - y0))))
    ImageDraw.Draw(mask).text((-x0, -y0), words, fill=255, font=font, stroke_width=2 if bold else 0)
    factor = min((right - left) / mask.width, 1.6 * (bottom - top) / mask.height)
    fitted = (max(1, round(mask.width * factor)), max(1, min(bottom - top, round(mask.height * factor))))
    image.paste(fill, ((left + right - fitted[0]) // 2, top), mask.resize(fitted, Image.Resampling.LANCZOS))


# ------------------------------------------------------------------ shapes; each gives a mesh and its texture


def box(
    random: Random, sizes: tuple[float, float, float] | None = None, gable: float = 0.0
) -> tuple[Mesh, Image.Image]:
    """A box of width, height and depth, with a roof of some height on it."""
    w, h, d = sizes or (random.uniform(0.3, 1.0), random.uniform(0.3, 1.2), random.uniform(0.12, 0.6))
    colours = palette(random)
    faces = [front, side, front if random.random() < 0.6 else side, side, _plain, _plain]
    spans = [(w, h), (d, h), (w, h), (d, h), (w, d), (w, d)]
    texture = Image.new("RGB", (6 * PIXELS, PIXELS))
    for k, (face, span) in enumerate(zip(faces, spans, strict=True)):
        wide, tall = (max(8, round(one * PIXELS)) for one in span)
        texture.paste(face((wide, tall), colours, random).resize((PIXELS, PIXELS)), (k * PIXELS, 0))
    x, y, z = w / 2, h / 2, d / 2
    quads = [
        ([(-x, -y, z), (x, -y, z), (x, y, z), (-x, y, z)], (0, 0, 1)),
        ([(x, -y, z), (x, -y, -z), (x, y, -z), (x, y, z)], (1, 0, 0)),
        ([(x, -y, -z), (-x, -y, -z), (-x, y, -z), (x, y, -z)], (0, 0, -1)),
        ([(-x, -y, -z), (-x, -y, z), (-x, y, z), (-x, y, -z)], (-1, 0, 0)),
        ([(-x, -y, -z), (x, -y, -z), (x, -y, z), (-x, -y, z)], (0, -1, 0)),
    ]
    top = y + gable
    if gable:
        slope = np.array([0, z, gable]) / np.hypot(z, gable)
        quads += [
            ([(-x, y, z), (x, y, z), (x, top, 0), (-x, top, 0)], slope),
            ([(x, y, -z), (-x, y, -z), (-x, top, 0), (x, top, 0)], slope * (1, 1, -1)),
            ([(x, y, z), (x, y, -z), (x, top, 0), (x, top, 0)], (1, 0, 0)),
            ([(-x, y, -z), (-x, y, z), (-x, top, 0), (-x, top, 0)], (-1, 0, 0)),
            ([(-x, top, 0), (x, top, 0), (x, top + gable / 3, 0), (-x, top + gable / 3, 0)], (0, 0, 1)),
        ]
    else:
        quads += [([(-x, y, z), (x, y, z), (x, y, -z), (-x, y, -z)], (0, 1, 0))]
    points, corners, normals, triangles = [], [], [], []
    for k, (quad, normal) in enumerate(quads):
        column = min(k, 5)
        inset = 1 / PIXELS
        for point, (u, v) in zip(quad, [(0, 0), (1, 0), (1, 1), (0, 1)], strict=True):
            points.append(point)
            corners.append(((column + inset + u * (1 - 2 * inset)) / 6, inset + v * (1 - 2 * inset)))
            normals.append(normal)
        triangles += [(4 * k, 4 * k + 1, 4 * k + 2), (4 * k, 4 * k + 2, 4 * k + 3)]
    return Mesh(np.array(points), np.array(corners), np.array(normals), np.array(triangles)), texture


def _plain(size: tuple[int, int], colours: Palette, random: Random) -> Image.Image:
    """The top or the bottom of a box."""
    image = Image.new("RGB", size, colours.ground if random.random() < 0.6 else colours.second)
    if random.random() < 0.5:
        word = _word(random)
        fill = colours.ink if random.random() < 0.5 else colours.accent
        _text(image, word, (0.1, 0.3, 0.9, 0.7), fill, bold=True)
    return image


def book(random: Random) -> tuple[Mesh, Image.Image]:
    wide = random.uniform(0.6, 0.85)
    return box(random, (wide, wide * random.uniform(1.0, 1.5), random.uniform(0.04, 0.2)))


def carton(random: Random) -> tuple[Mesh, Image.Image]:
    wide = random.uniform(0.35, 0.5)
    return box(
        random, (wide, random.uniform(0.5, 1.0), wide * random.uniform(0.8, 1.0)), gable=random.uniform(0.12, 0.25)
    )


def turned(rings: list[tuple[float, float, float, float]]) -> Mesh:
    """A surface of rings, ellipses from the bottom up: half of their width, half of their depth, height, v of the texture."""
    wide, deep, height, v = np.array(rings).T[..., None]
    angle = np.linspace(0, 2 * np.pi, 49)
    points = np.broadcast_arrays(wide * np.sin(angle), height, deep * np.cos(angle))
    return _sheet(np.stack(points, axis=-1), np.stack(np.broadcast_arrays(angle / (2 * np.pi), v), axis=-1))


def _sheet(points: np.ndarray, corners: np.ndarray) -> Mesh:
    """A mesh from a grid of points (R, C, 3) and their texture coordinates (R, C, 2)."""
    rows, columns = points.shape[:2]
    at = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = (one.ravel() for one in (at[:-1, :-1], at[:-1, 1:], at[1:, 1:], at[1:, :-1]))
    triangles = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    flat = points.reshape(-1, 3)
    each = np.cross(flat[triangles[:, 1]] - flat[triangles[:, 0]], flat[triangles[:, 2]] - flat[triangles[:, 0]])
    normals = np.zeros_like(flat)
    for k in range(3):
        np.add.at(normals, triangles[:, k], each)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    return Mesh(flat, corners.reshape(-1, 2), normals, triangles)


def _wrapped(label: Image.Image, below: Colour, above: Colour, lid: Colour) -> Image.Image:
    """Texture of what is turned, upwards: a tenth what lies below the label, six what is the label, two what is above it, one the lid."""
    texture = Image.new("RGB", (4 * PIXELS, 2 * PIXELS), below)
    unit = 2 * PIXELS // 10
    texture.paste(lid, (0, 0, texture.width, unit))
    texture.paste(above, (0, unit, texture.width, 3 * unit))
    texture.paste(label.resize((texture.width, 6 * unit)), (0, 3 * unit))
    return texture


def _round_label(tall: float, wide: float, random: Random) -> tuple[Image.Image, Palette]:
    """A label to go around: front, side, front, side. tall, wide: its height and its circumference."""
    colours = palette(random)
    height, quarter = max(24, round(tall * PIXELS)), max(24, round(wide * PIXELS / 4))
    label = Image.new("RGB", (4 * quarter, height))
    faces = [front((quarter, height), colours, random), side((quarter, height), colours, random)]
    for k in range(4):
        label.paste(faces[k % 2], (k * quarter, 0))
    return label, colours


def can(random: Random) -> tuple[Mesh, Image.Image]:
    r, h = random.uniform(0.25, 0.45), random.uniform(0.3, 1.0)
    label, _ = _round_label(h, 2 * np.pi * r, random)
    metal = _colour(random.random(), random.uniform(0, 0.15), random.uniform(0.55, 0.9))
    dark = tuple(int(0.75 * one) for one in metal)
    rim = random.uniform(0.02, 0.06) * h
    profile = [
        (0, 0.03, 0.05), (0.9 * r, 0.03, 0.05), (r, 0, 0.05), (r, rim, 0.05), (r, rim, 0.11), (r, h - rim, 0.69),
        (r, h - rim, 0.95), (r, h, 0.95), (0.93 * r, h, 0.95), (0.91 * r, h - 0.03, 0.8), (0.6 * r, h - 0.03, 0.8),
        (0.58 * r, h - 0.02, 0.95), (0, h - 0.02, 0.95),
    ]  # fmt: skip
    return turned([(one, one, y, v) for one, y, v in profile]), _wrapped(label, metal, dark, metal)


def tub(random: Random) -> tuple[Mesh, Image.Image]:
    """A cup or tub, wider or narrower above, with a lid."""
    r, h, taper = random.uniform(0.3, 0.5), random.uniform(0.3, 0.9), random.uniform(0.7, 1.05)
    label, colours = _round_label(h, 2 * np.pi * r, random)
    lid = colours.accent
    if random.random() >= 0.5:
        lid = _colour(random.random(), random.uniform(0, 0.3), random.uniform(0.7, 1))
    squash = random.choice([1.0, 1.0, 0.6])
    profile = [
        (0, 0, 0.05), (taper * r, 0, 0.05), (taper * r, 0, 0.11), (r, h, 0.69), (1.06 * r, h, 0.95),
        (1.06 * r, 1.08 * h, 0.95), (r, 1.1 * h, 0.95), (0, 1.1 * h, 0.95),
    ]  # fmt: skip
    return turned([(one, squash * one, y, v) for one, y, v in profile]), _wrapped(label, *2 * [colours.ground], lid)


def jar(random: Random) -> tuple[Mesh, Image.Image]:
    """A jar with a wide lid, what is in it below and above the label."""
    r, h = random.uniform(0.28, 0.42), random.uniform(0.45, 0.9)
    label, colours = _round_label(0.5 * h, 2 * np.pi * r, random)
    hue = random.choice([0.02, 0.07, 0.1, 0.13, 0.3, 0.95])
    inside = _colour(hue, random.uniform(0.3, 0.9), random.uniform(0.25, 0.8))
    neck = random.uniform(0.78, 0.95) * r
    a, b = random.uniform(0.08, 0.25) * h, random.uniform(0.65, 0.8) * h
    profile = [
        (0, 0, 0.05), (0.92 * r, 0, 0.05), (r, 0.05 * h, 0.05), (r, a, 0.05), (1.005 * r, a, 0.11),
        (1.005 * r, b, 0.69), (r, b, 0.75), (r, 0.85 * h, 0.8), (neck, 0.93 * h, 0.85), (1.03 * neck, 0.93 * h, 0.95),
        (1.03 * neck, 1.1 * h, 0.95), (0.97 * neck, 1.12 * h, 0.95), (0, 1.12 * h, 0.95),
    ]  # fmt: skip
    return turned([(one, one, y, v) for one, y, v in profile]), _wrapped(label, inside, inside, colours.accent)


def tube(random: Random) -> tuple[Mesh, Image.Image]:
    """A tube: round at its cap, flat at its other end."""
    colours = palette(random)
    r, h = random.uniform(0.16, 0.24), random.uniform(0.7, 1.1)
    label = Image.new("RGB", (4 * PIXELS, PIXELS))
    for k, face in enumerate((front, side)):
        drawn = face((round(h * PIXELS), round(3 * r * PIXELS)), colours, random)
        label.paste(drawn.rotate(90, expand=True).resize((2 * PIXELS, PIXELS)), (2 * k * PIXELS, 0))
    cap = _colour(random.random(), random.uniform(0, 0.8), random.uniform(0.3, 1))
    rings = [
        (0, 0, 0, 0.95),
        (0.6 * r, 0.6 * r, 0, 0.95),
        (0.6 * r, 0.6 * r, 0.13, 0.95),
        (0.6 * r, 0.6 * r, 0.13, 0.8),
    ]
    rings += [(r, r, 0.18, 0.75)]
    for t in np.linspace(0, 1, 24):
        flat = max(0.004, r * (1 - t**1.5))
        rings.append((r * (1 + 0.5 * t), flat, 0.18 + (h - 0.18) * t, 0.69 - 0.58 * t))
    return turned(rings), _wrapped(label, colours.ground, colours.ground, cap)


def bag(random: Random) -> tuple[Mesh, Image.Image]:
    """A bag, pouch or wrapped bar: two sheets, welded at their ends, that bulge and crease."""
    colours = palette(random)
    w, h = random.uniform(0.4, 0.9), random.uniform(0.3, 1.2)
    thick = random.uniform(0.1, 0.35) * min(w, h)
    texture = Image.new("RGB", (4 * PIXELS, 2 * PIXELS))
    size = (round(w * PIXELS), round(h * PIXELS))
    for k, face in enumerate((front, front if random.random() < 0.5 else side)):
        texture.paste(face(size, colours, random).resize((2 * PIXELS, 2 * PIXELS)), (2 * k * PIXELS, 0))
    v, u = np.meshgrid(np.linspace(-1, 1, 41), np.linspace(-1, 1, 41), indexing="ij")
    seam = random.uniform(0.03, 0.12)
    bulge = np.clip(1 - (np.abs(v) / (1 - seam)) ** 2.5, 0, 1) ** 0.6
    bulge = bulge * np.clip(1 - np.abs(u) ** random.uniform(2, 5), 0, 1) ** 0.6
    crease = sum(
        random.normal(0, 0.12 / k) * np.sin(k * (3 * np.cos(a) * u + 3 * np.sin(a) * v) + p)
        for k, a, p in zip(range(1, 7), random.uniform(0, 6, 6), random.uniform(0, 6, 6), strict=True)
    )
    waist = 1 - random.uniform(0, 0.12) * bulge.max(axis=1, keepdims=True) * (1 - np.abs(v))
    waist = waist + 0.02 * np.sin(v * random.uniform(4, 14))
    sheets = []
    for k, sign in enumerate((1, -1)):
        depth = sign * thick * bulge * (1 + crease * (0.6 + 0.4 * sign)) + sign * 1e-3
        points = np.stack([w / 2 * u * waist * sign, h / 2 * v, depth], axis=-1)
        sheets.append(_sheet(points, np.stack([(u + 1) / 4 * 0.99 + k / 2 + 0.002, (v + 1) / 2], axis=-1)))
    first, second = sheets
    joined = [np.concatenate(pair) for pair in zip(first[:3], second[:3], strict=True)]
    return Mesh(*joined, np.concatenate([first.triangles, second.triangles + len(first.points)])), texture


SHAPES: dict[str, Callable[[Random], tuple[Mesh, Image.Image]]] = {
    "box": box, "book": book, "carton": carton, "can": can, "tub": tub, "jar": jar, "tube": tube, "bag": bag
}  # fmt: skip
LIES = {"box": 0.5, "book": 0.9, "carton": 0.1, "can": 0.3, "tub": 0.05, "jar": 0.1, "tube": 0.9, "bag": 0.6}
"""How often a package of a kind does not stand."""


def write(folder: Path, mesh: Mesh, texture: Image.Image, shine: float) -> Path:
    """The OBJ file of a mesh, with its material and texture beside it."""
    texture.save(folder / "package.png")
    (folder / "package.mtl").write_text(f"newmtl m\nKd 1 1 1\nKs {shine} {shine} {shine}\nNs 30\nmap_Kd package.png\n")
    lines = ["usemtl m"]
    for word, rows in (("v", mesh.points), ("vt", mesh.corners), ("vn", mesh.normals)):
        lines += [word + "".join(f" {one:.5f}" for one in row) for row in rows]
    lines += ["f" + "".join(f" {k}/{k}/{k}" for k in row) for row in mesh.triangles + 1]
    (folder / "package.obj").write_text("\n".join(lines) + "\n")
    return folder / "package.obj"


def packages(out: Path, count: int = COUNT) -> int:
    """Cutouts of `count` packages, written to `out`; returns how many."""
    pictures = 0
    for number in range(count):
        random = np.random.default_rng([32, number])
        kind = KINDS[number % len(KINDS)]
        mesh, texture = SHAPES[kind](random)
        upright = np.eye(3)
        if random.random() < LIES[kind]:
            on_its_back = random.random() < 0.7
            upright = np.array(
                [[1, 0, 0], [0, 0, 1], [0, -1, 0]] if on_its_back else [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
            )
        with tempfile.TemporaryDirectory() as folder:
            path = write(Path(folder), mesh, texture, random.choice([0.0, 0.1, 0.5]))
            for view, pixels in enumerate(render(path, upright, random)):
                picture = cutout(pixels)
                if picture is not None:
                    picture.save(out / f"{kind}__{number:03d}__{view}.webp", lossless=True)
                    pictures += 1
    return pictures


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    print(f"{packages(target)} pictures in {target}")
