"""Views of one class of solids: each instance with its look, its own variations and its pose."""

from __future__ import annotations

import difflib

import numpy as np
import torch

from sas.data.solids.dice import Dice
from sas.data.solids.families import FAMILIES, SHAPES, pose
from sas.data.solids.sprites import render_sprite
from sas.data.solids.surfaces import draw_surface


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
    shape = SHAPES[family](look, own)
    surface = draw_surface(shape, look, own)
    return render_sprite(shape.distance, surface, pose(family, own), size)
