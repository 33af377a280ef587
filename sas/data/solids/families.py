"""The families of solids: who builds the shape of each, and how it stands before the viewer."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from sas.data.solids.bodies import bent, box, lumpy, ring, superquadric
from sas.data.solids.dice import Dice
from sas.data.solids.shapes import Shape
from sas.data.solids.vessels import bottle, mug, vase

SHAPES: dict[str, Callable[[Dice, Dice], Shape]] = {
    "vase": vase, "superquadric": superquadric, "lumpy": lumpy, "bent": bent,
    "box": box, "bottle": bottle, "ring": ring, "mug": mug,
}  # fmt: skip

FAMILIES = tuple(SHAPES)


def pose(family: str, own: Dice) -> torch.Tensor:
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
    """Rotation (3, 3) around one coordinate axis by an angle in radians."""
    c, s = math.cos(angle), math.sin(angle)
    i, j = [k for k in range(3) if k != axis]
    matrix = torch.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix
