"""Backgrounds to paste on: rendered surfaces and rooms, or pictures from a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter, zoom

from sas.io import InputError, find_images, read_image
from sas.seeding import derive_seed

Rng = np.random.Generator


def render_backgrounds(*, seed: int, count: int, size: int = 128) -> np.ndarray:
    """Procedural backgrounds of several kinds: uint8 (count, 3, size, size) RGB; picture i depends on (seed, i, size) alone."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}: ask for one or more backgrounds")
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}: ask for larger backgrounds")
    return np.stack([_render(np.random.default_rng(derive_seed("background", seed, i)), size) for i in range(count)])


def load_backgrounds(folder: str | Path, *, size: int) -> np.ndarray:
    """All pictures directly in a folder, cut to a centred square: uint8 (M, 3, size, size) RGB, sorted by name."""
    if not Path(folder).is_dir():
        raise InputError(
            f"backgrounds {folder} must be a folder, found {'a file' if Path(folder).exists() else 'nothing'}; check the path"
        )
    pictures = [Image.fromarray(read_image(path)) for path in find_images([folder])]
    squares = [ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC) for picture in pictures]
    return np.stack([np.asarray(square).transpose(2, 0, 1) for square in squares])


def _render(rng: Rng, size: int) -> np.ndarray:
    kinds = (_room, _room, _planks, _cloth, _paper, _stone, _tiles, _blur)
    picture = kinds[rng.integers(len(kinds))](rng, size)
    line = np.linspace(-1, 1, size)
    light = 1 + rng.uniform(-0.25, 0.25) * line[:, None] + rng.uniform(-0.25, 0.25) * line[None, :]
    return (np.clip(picture * light[..., None], 0, 1) * 255).round().astype(np.uint8).transpose(2, 0, 1)


def _colour(rng: Rng, *, strength: float = 0.5) -> np.ndarray:
    """A muted colour, (3,) in [0, 1]."""
    grey = rng.uniform(0.2, 0.95)
    return np.clip(grey * (1 + rng.uniform(-strength, strength, 3)), 0.03, 1)


def _noise(rng: Rng, size: int, *, coarsest: int = 4, octaves: int = 4) -> np.ndarray:
    """Smooth noise over several scales, (size, size) in about [-1, 1]."""
    total = np.zeros((size, size))
    for octave in range(octaves):
        cells = min(coarsest * 2**octave, size)
        grid = rng.uniform(-1, 1, (cells + 1, cells + 1))
        total += zoom(grid, (size + 1) / (cells + 1), order=1)[:size, :size] / 2**octave
    return total / 1.5


def _shade(base: np.ndarray, pattern: np.ndarray, amount: float) -> np.ndarray:
    return base * (1 + amount * pattern[..., None])


def _room(rng: Rng, size: int) -> np.ndarray:
    """A table or floor in perspective before a wall."""
    horizon = int(size * rng.uniform(0.1, 0.5))
    wall = _shade(_colour(rng), _noise(rng, size, coarsest=2, octaves=2), rng.uniform(0, 0.12))
    floor_kind: Callable[[Rng, int], np.ndarray] = (_planks, _cloth, _paper, _stone, _tiles)[rng.integers(5)]
    texture = floor_kind(rng, size)
    rows = np.arange(horizon, size)
    depth = (size - horizon) / (rows - horizon + 0.25 * size)  # far rows are squeezed
    v = (depth * size * 0.25).astype(int) % size
    u = ((np.arange(size)[None, :] - size / 2) * depth[:, None] * 0.5 + size / 2).astype(int) % size
    picture = wall.copy()
    picture[horizon:] = texture[v[:, None], u]
    edge = np.exp(-np.abs(np.arange(size) - horizon) / (0.02 * size))
    picture *= 1 - 0.25 * edge[:, None, None]
    return gaussian_filter(picture, (0.6, 0.6, 0))


def _planks(rng: Rng, size: int) -> np.ndarray:
    """Wooden boards."""
    boards = rng.integers(2, 7)
    wood = np.array([0.62, 0.42, 0.25]) * rng.uniform(0.5, 1.5) * (1 + rng.uniform(-0.15, 0.15, 3))
    line = np.arange(size) / size * boards
    tone = rng.uniform(0.8, 1.2, boards)[line.astype(int).clip(0, boards - 1)]
    seam = 1 - 0.5 * (np.abs(line - np.round(line)) < 0.02)
    grain = _noise(rng, size, coarsest=3)
    x = np.mgrid[:size, :size][1] / size
    rings = np.sin(2 * np.pi * (rng.uniform(8, 25) * x + 3 * grain + rng.uniform(0, 1)))
    picture = wood * (
        (tone * seam)[None, :, None] + 0.1 * rings[..., None] + 0.06 * _noise(rng, size, coarsest=16)[..., None]
    )
    return picture.transpose(1, 0, 2) if rng.random() < 0.5 else picture


def _cloth(rng: Rng, size: int) -> np.ndarray:
    """Woven checks and stripes with soft folds."""
    first, second = _colour(rng), _colour(rng)
    y, x = np.mgrid[:size, :size] / size
    turn = rng.uniform(0, np.pi)
    a, b = x * np.cos(turn) + y * np.sin(turn), -x * np.sin(turn) + y * np.cos(turn)
    n = rng.uniform(2, 12)
    stripes = (np.sin(2 * np.pi * n * a) > rng.uniform(-0.6, 0.6)).astype(float)
    if rng.random() < 0.6:
        stripes = (stripes + (np.sin(2 * np.pi * n * b) > 0)) / 2
    folds = _noise(rng, size, coarsest=3, octaves=2)
    return _shade(first + (second - first) * stripes[..., None] * rng.uniform(0.2, 1), folds, 0.2)


def _paper(rng: Rng, size: int) -> np.ndarray:
    """A plain surface with grain."""
    grain = rng.normal(0, 1, (size, size)) * rng.uniform(0, 0.04)
    return _shade(_colour(rng, strength=0.3), _noise(rng, size, coarsest=2) * rng.uniform(0, 0.25) + grain, 1)


def _stone(rng: Rng, size: int) -> np.ndarray:
    """Marble, concrete or granite."""
    noise = _noise(rng, size, coarsest=4, octaves=5)
    veins = np.exp(-np.abs(np.sin(3 * noise + rng.uniform(0, 6))) * rng.uniform(3, 12))
    base, vein = _colour(rng, strength=0.2), _colour(rng, strength=0.3)
    return _shade(base, noise, rng.uniform(0.05, 0.3)) * (1 - 0.6 * veins[..., None]) + vein * 0.6 * veins[..., None]


def _tiles(rng: Rng, size: int) -> np.ndarray:
    """Square tiles with joints."""
    n = rng.integers(2, 8)
    y, x = np.mgrid[:size, :size] / size * n + rng.uniform(0, 1)
    joint = (np.minimum(np.abs(y - np.round(y)), np.abs(x - np.round(x))) < 0.03)[..., None]
    tone = rng.uniform(0.8, 1.2, (n + 2, n + 2))[y.astype(int), x.astype(int)]
    picture = _colour(rng) * tone[..., None] + 0.05 * _noise(rng, size)[..., None]
    return np.where(joint, _colour(rng, strength=0.1), picture)


def _blur(rng: Rng, size: int) -> np.ndarray:
    """A scene far out of focus: soft patches and discs of light."""
    picture = np.stack([0.5 + 0.5 * _noise(rng, size, coarsest=2, octaves=3) for _ in range(3)], axis=-1)
    picture = picture * 0.6 + _colour(rng) * 0.5
    y, x = np.mgrid[:size, :size] / size
    for _ in range(rng.integers(0, 10)):
        cy, cx, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.03, 0.12)
        disc = np.clip((radius - np.hypot(y - cy, x - cx)) * size / 3, 0, 1)
        picture = picture * (1 - 0.5 * disc[..., None]) + _colour(rng) * 0.5 * disc[..., None]
    return gaussian_filter(picture, (1.2, 1.2, 0))
