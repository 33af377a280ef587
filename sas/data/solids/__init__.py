"""Shaded solid objects, rendered by our own code: signed distance functions, traced and lit in torch.

The *look* (profile, material, colours, texture) belongs to a class and comes from the seed; the *pose* and small
variations belong to the instance; the *light* is shared by all, so that pasted objects agree. Object coordinates: y up,
the object inside a ball of REACH. Camera coordinates: x right, y up, z towards the viewer. Points are float32 (3, M),
so that each coordinate lies together in memory.

From the parts to the whole: `dice` draws the random numbers, `shapes` says what a solid is and combines distances,
`vessels` and `bodies` build the families, `families` lists and poses them, `noise` and `surfaces` colour them,
`tracing` finds what a ray meets, `lighting` lights it, `sprites` assembles the picture, `render` does it for a class.
"""

from sas.data.solids.dice import Dice
from sas.data.solids.families import FAMILIES
from sas.data.solids.render import render_solids
from sas.data.solids.shapes import Field, Points, Shape
from sas.data.solids.sprites import MARGIN
from sas.data.solids.surfaces import Surface

__all__ = ["FAMILIES", "MARGIN", "Dice", "Field", "Points", "Shape", "Surface", "render_solids"]
