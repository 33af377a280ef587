"""Backgrounds to paste on: rendered surfaces and rooms, or pictures from a folder."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter, map_coordinates
from tqdm.auto import tqdm

from sas.console import no_bar
from sas.io import InputError
from sas.pictures import find_images, read_image
from sas.seeding import derive_seed

Rng = np.random.Generator


def render_backgrounds(*, seed: int, count: int, size: int = 128) -> np.ndarray:
    """Procedural backgrounds of several kinds: uint8 (count, 3, size, size) RGB.

    Picture i depends on (seed, i, size) alone. ValueError: count below 1, size below 16.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}: ask for one or more backgrounds")
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}: ask for larger backgrounds")
    numbers = tqdm(range(count), "rendering backgrounds", disable=no_bar(), leave=False, dynamic_ncols=True)
    return np.stack([_render(np.random.default_rng(derive_seed("background", seed, i)), size) for i in numbers])


def background_files(folder: str | Path) -> list[Path]:
    """Pictures directly in a folder, by name; InputError if it is none, or holds none."""
    if not Path(folder).is_dir():
        found = "a file" if Path(folder).exists() else "nothing"
        raise InputError(f"backgrounds {folder} must be a folder, found {found}; check the path")
    return find_images([folder])


def load_backgrounds(folder: str | Path, *, size: int, keep: Callable[[str], bool] = lambda name: True) -> np.ndarray:
    """All pictures directly in a folder whose file names `keep` accepts, by name, cut to a centred square and resized: uint8
    (M, 3, size, size) RGB.

    InputError: no name accepted, not a folder, no picture in it, a picture that cannot be read. ValueError: size below 1.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}: ask for larger backgrounds")
    squares = []
    names = [path for path in background_files(folder) if keep(path.name)]
    if not names:
        raise InputError(f"backgrounds {folder} must hold a picture of the part asked for, got none; add pictures")
    for path in names:  # one at a time: photographs are large
        picture = Image.fromarray(read_image(path, name="background"))
        squares.append(np.asarray(ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)))
    return rearrange(np.stack(squares), "m h w c -> m c h w")


def _render(rng: Rng, size: int) -> np.ndarray:
    """One picture of a random kind, lit unevenly; kinds work in [0, 1] as displayed, (size, size, 3)."""
    kinds = (_room, _room, _room, _room, _planks, _cloth, _paper, _stone, _tiles, _gradient, _bokeh)
    picture = kinds[rng.integers(len(kinds))](rng, size)
    y, x = _grid(size)
    pool = np.exp(-((x - rng.uniform(0.1, 0.9)) ** 2 + (y - rng.uniform(0, 0.8)) ** 2) / rng.uniform(0.4, 1.5))
    light = rng.uniform(0.72, 0.95) + rng.uniform(0.05, 0.22) * pool
    picture = picture * light[..., None] * (1 + rng.uniform(-0.05, 0.05, 3))  # and not quite white
    return rearrange((np.clip(picture, 0, 1) * 255).round().astype(np.uint8), "h w c -> c h w")


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """y and x in [0, 1), (size, size) each."""
    y, x = (np.mgrid[:size, :size] / size).astype(np.float32)
    return y, x


def _colour(rng: Rng, *, low: float = 0.2, high: float = 0.85, strength: float = 0.35) -> np.ndarray:
    """A colour as walls, cloths and tiles have it, (3,) in [0, 1]: mostly muted, now and then strong."""
    strength = strength * (1.6 if rng.random() < 0.12 else rng.uniform(0.1, 1))
    return np.clip(rng.uniform(low, high) * (1 + rng.uniform(-strength, strength, 3)), 0.03, 0.97)


def _noise(rng: Rng, size: int, *, coarsest: int = 4, octaves: int = 4, stretch: int = 1) -> np.ndarray:
    """Smooth noise over several scales, (size, size) in about [-1, 1]; `stretch` times longer across than down."""
    total = np.zeros((size, size), dtype=np.float32)
    for octave in range(octaves):
        rows = min(coarsest * 2**octave, size)
        columns = max(rows // stretch, 1)
        lattice = rng.uniform(-1, 1, (rows + 3, columns + 3)).astype(np.float32)
        total += _weights(size, rows) @ lattice @ _weights(size, columns).T / 2**octave
    return total / 1.5


@functools.cache
def _weights(size: int, cells: int) -> np.ndarray:
    """Catmull-Rom interpolation of equally spaced values at `size` places, as a matrix (size, cells + 3)."""
    at = np.arange(size) / size * cells
    piece = at.astype(int)
    t = at - piece
    four = np.stack([-(t**3) + 2 * t**2 - t, 3 * t**3 - 5 * t**2 + 2, -3 * t**3 + 4 * t**2 + t, t**3 - t**2]) / 2
    matrix = np.zeros((size, cells + 3), dtype=np.float32)
    for k in range(4):
        matrix[np.arange(size), piece + k] = four[k]
    return matrix


def _shade(base: np.ndarray, pattern: np.ndarray, amount: float) -> np.ndarray:
    return base * (1 + amount * pattern[..., None])


def _room(rng: Rng, size: int) -> np.ndarray:
    """A table or floor in perspective before a wall; it is a surface seen from above, laid back."""
    horizon = int(size * rng.uniform(0.08, 0.5))
    surfaces: tuple[Callable[[Rng, int], np.ndarray], ...] = (_planks, _planks, _cloth, _paper, _stone, _tiles)
    table = gaussian_filter(surfaces[rng.integers(len(surfaces))](rng, 3 * size // 2), (0.7, 0.7, 0))
    steep, turn, zoomed = rng.uniform(0.15, 0.6), rng.normal(0, 0.25), rng.uniform(0.6, 1.1)
    down = (np.arange(size - horizon) + 0.5) / size
    depth = 1 / (down + steep)  # distance of a row from the viewer
    across = (np.arange(size) + 0.5) / size - 0.5
    u, v = across[None, :] * depth[:, None] * zoomed, np.repeat(depth[:, None], size, axis=1) * zoomed * 0.6
    u, v = u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)
    at = np.stack([v, u + 0.5]) * (3 * size // 2)
    floor = np.stack([map_coordinates(table[..., c], at, order=1, mode="grid-wrap") for c in range(3)], axis=-1)
    far = np.clip(1 - down / (0.5 * (1 - horizon / size)), 0, 1)[:, None, None] ** 2
    floor = floor * (1 - 0.5 * far) + gaussian_filter(floor, (1.5, 2, 0)) * 0.5 * far  # the distance is a little soft

    wall = _wall(rng, size)
    picture = np.concatenate([wall[:horizon], floor])
    gap = np.arange(size) - horizon
    contact = np.where(gap < 0, np.exp(gap / (0.03 * size)) * 0.15, np.exp(-gap / (0.05 * size)) * 0.3)
    return picture * (1 - contact[:, None, None])


def _wall(rng: Rng, size: int) -> np.ndarray:
    """Paint, wallpaper, bricks or something far out of focus."""
    kind = rng.integers(5)
    if kind == 0:
        return _bokeh(rng, size)
    wall = _shade(_colour(rng, low=0.35), _noise(rng, size, coarsest=2, octaves=3), rng.uniform(0.02, 0.1))
    if kind == 1:
        _, x = _grid(size)
        wall = _shade(wall, np.sign(np.sin(2 * np.pi * x * rng.integers(4, 14))), rng.uniform(0.02, 0.08))
    if kind == 2:
        wall = _tiles(rng, size, brick=True)
    return gaussian_filter(wall, (rng.uniform(0.5, 2.5),) * 2 + (0,))


def _planks(rng: Rng, size: int) -> np.ndarray:
    """Wooden boards: long grain, each board of its own tone and shifted."""
    boards = int(rng.integers(2, 7))
    woods = ((0.72, 0.52, 0.33), (0.55, 0.36, 0.22), (0.36, 0.23, 0.15), (0.82, 0.68, 0.5), (0.6, 0.56, 0.52))
    wood = np.array(woods[rng.integers(len(woods))]) * rng.uniform(0.85, 1.15) * (1 + rng.uniform(-0.06, 0.06, 3))
    y, _ = _grid(size)
    line = y * boards
    board = line.astype(int)
    shift = rng.integers(0, size, boards)
    columns = (np.arange(size)[None, :] + shift[board]) % size
    rows = np.arange(size)[:, None]
    slow = _noise(rng, size, coarsest=8, octaves=2, stretch=5)[rows, columns]
    fine = _noise(rng, size, coarsest=32, octaves=3, stretch=12)[rows, columns]
    rings = np.sin(2 * np.pi * (line * rng.uniform(1.5, 4) + 1.2 * slow))
    tone = rng.uniform(0.82, 1.15, boards)[board]
    seam = 1 - 0.55 * np.exp(-np.abs(line - np.round(line)) * size / boards / 0.9)
    picture = wood * (tone * seam * (1 + 0.07 * rings + rng.uniform(0.06, 0.16) * fine))[..., None]
    return rearrange(picture, "h w c -> w h c") if rng.random() < 0.5 else picture


def _cloth(rng: Rng, size: int) -> np.ndarray:
    """Woven checks and stripes with a visible weave and soft folds."""
    first, second = _colour(rng, low=0.5), _colour(rng)
    y, x = _grid(size)
    folds = _noise(rng, size, coarsest=3, octaves=2)
    turn, count = rng.uniform(0, np.pi), rng.uniform(2, 9)
    a = x * np.cos(turn) + y * np.sin(turn) + 0.015 * folds
    b = -x * np.sin(turn) + y * np.cos(turn) + 0.015 * folds
    edge = rng.uniform(-0.5, 0.5)
    bands = [np.clip(0.5 + 6 * (np.sin(2 * np.pi * count * axis) - edge), 0, 1) for axis in (a, b)]
    share = (bands[0] + bands[1]) / 2 if rng.random() < 0.6 else bands[0]
    thread = np.sin(np.pi * size / 3 * a) * np.sin(np.pi * size / 3 * b)
    plain = rng.random() < 0.2
    picture = first + (second - first) * (0 if plain else rng.uniform(0.4, 1)) * share[..., None]
    return _shade(picture, 0.12 * folds + 0.04 * thread, 1)


def _paper(rng: Rng, size: int) -> np.ndarray:
    """A plain surface: paper, plaster, felt or painted board."""
    grain = rng.normal(0, 1, (size, size)) * rng.uniform(0, 0.03)
    mottle = _noise(rng, size, coarsest=int(rng.choice([2, 8, 24]))) * rng.uniform(0, 0.1)
    return _shade(_colour(rng), mottle + grain, 1)


def _gradient(rng: Rng, size: int) -> np.ndarray:
    """A studio backdrop that fades from one colour to another."""
    y, x = _grid(size)
    first = _colour(rng)
    second = np.clip(first * rng.uniform(0.5, 1.5) * (1 + rng.uniform(-0.2, 0.2, 3)), 0, 1)
    turn = rng.normal(0, 0.5)
    share = np.clip((y - 0.5) * np.cos(turn) + (x - 0.5) * np.sin(turn) + 0.5, 0, 1)[..., None]
    share = share * share * (3 - 2 * share)
    return first + (second - first) * share + rng.normal(0, 0.006, (size, size, 1))


def _stone(rng: Rng, size: int) -> np.ndarray:
    """Marble with veins, granite with grains, or concrete."""
    noise = _noise(rng, size, coarsest=4, octaves=5)
    base, other = _colour(rng, strength=0.15), _colour(rng, strength=0.2)
    kind = rng.integers(3)
    if kind == 0:
        y, x = _grid(size)
        turn = rng.uniform(0, np.pi)
        wave = np.sin(2 * np.pi * (rng.uniform(1, 3) * (x * np.cos(turn) + y * np.sin(turn)) + 0.7 * noise))
        veins = np.exp(-np.abs(wave) * rng.uniform(5, 14))[..., None] * rng.uniform(0.3, 0.7)
        return _shade(base, noise, 0.08) * (1 - veins) + other * veins
    if kind == 1:
        grains = _noise(rng, size, coarsest=32, octaves=3)[..., None]
        return _shade(base, noise, 0.05) + (other - base) * np.clip(grains * 1.5 - 0.3, 0, 0.6)
    return _shade(base, noise, rng.uniform(0.05, 0.18)) + rng.normal(0, 0.012, (size, size, 1))


def _tiles(rng: Rng, size: int, *, brick: bool = False) -> np.ndarray:
    """Tiles or bricks with joints, each of its own tone; their edges catch the light."""
    count = int(rng.integers(5, 9)) if brick else int(rng.integers(2, 7))
    y, x = _grid(size)
    y, x = y * count * (2 if brick else 1), x * count
    if brick or rng.random() < 0.3:
        x = x + 0.5 * (y.astype(int) % 2)
    tone = rng.uniform(0.82, 1.12, (2 * count + 1, count + 2))[y.astype(int), x.astype(int)]
    if not brick and rng.random() < 0.35:  # a chequerboard
        tone = tone * np.where((y.astype(int) + x.astype(int)) % 2, 1.0, rng.uniform(0.45, 0.8))
    pixel = count / size
    dy, dx = y - np.round(y), x - np.round(x)
    joint = np.clip(1.6 - np.minimum(np.abs(dy) / (2 if brick else 1), np.abs(dx)) / pixel, 0, 1)[..., None]
    lit = 0.06 * ((dy > 0) & (dy < 3 * pixel)) - 0.06 * ((dy < 0) & (dy > -3 * pixel))
    base = np.array([0.58, 0.32, 0.24]) * rng.uniform(0.7, 1.3) if brick else _colour(rng)
    picture = _shade(base * tone[..., None], lit + 0.05 * _noise(rng, size, octaves=5), 1)
    return picture * (1 - joint) + _colour(rng, strength=0.1) * joint


def _bokeh(rng: Rng, size: int) -> np.ndarray:
    """A scene far out of focus: soft patches of two colours, and discs of light."""
    first, second, third = _colour(rng, high=0.6), _colour(rng), _colour(rng, low=0.5)
    mix, spark = (0.5 + 0.5 * _noise(rng, size, coarsest=2, octaves=2)[..., None] for _ in range(2))
    picture = first + (second - first) * np.clip(mix, 0, 1) + (third - first) * np.clip(spark - 0.5, 0, 1)
    y, x = _grid(size)
    radius = rng.uniform(0.03, 0.09)  # one lens, one size of disc
    for _ in range(rng.integers(0, 14)):
        gap = np.hypot(y - rng.uniform(0, 1), x - rng.uniform(0, 1)) / (radius * rng.uniform(0.8, 1.2))
        disc = np.clip((1 - gap) * radius * size / 2, 0, 1) * (0.7 + 0.3 * np.clip(gap, 0, 1) ** 4)
        picture = picture + (_colour(rng, low=0.6) - 0.3 * picture) * rng.uniform(0.1, 0.45) * disc[..., None]
    return gaussian_filter(picture, (1.2, 1.2, 0))
