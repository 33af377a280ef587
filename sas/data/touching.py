"""Places for objects of composed scenes that lie edge to edge, as things on a table and in a shop do.

They are found before objects are warped, so that warped ones may lie apart or hide more.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

TOUCH_DRAWS = ("neighbour", "side", "gap", "slide", "aligned")


def half_sizes(sprites: Tensor) -> Tensor:
    """Half of each sprite's width and height, where its alpha is above 127, as shares of half of the square: uint8 (S, 4, P, P) -> float (S, 2)."""
    shown = sprites[:, 3] > 127
    return torch.stack([shown.any(dim=1).sum(dim=1), shown.any(dim=2).sum(dim=1)], dim=-1) / sprites.shape[-1]


def alike(angle: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
    """Angles of a scene's objects, float (B, N): in half of the scenes nearly that of the first, in the others as they are."""
    return torch.where(drawn["aligned"][:, :1] < 0.5, angle[:, :1] + (drawn["aligned"] - 0.5) * 0.2, angle)


def edge_to_edge(
    angle: Tensor, half: Tensor, present: Tensor, upwards: Tensor, drawn: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Put each object beside an earlier one, so that what lies behind is hidden by little: x, y and a factor on sizes, float (B, N), (B, N), (B, 1).

    Coordinates reach from -1 to 1. Objects are taken for ellipses; the middle of the group is (0, 0), and one that would be larger than the picture is
    drawn smaller. angle: radians (B, N). half: half of the width and height (B, N, 2). present: bool (B, N), those in use first.
    upwards: bool (B,), scenes where each is put beside or above what it stands behind, and only slides along its edge may lower it.
    drawn: uniform numbers, (B, N) each.
    """
    count = angle.shape[1]
    ahead = torch.stack([angle.cos(), angle.sin()], dim=-1)
    aside = torch.stack([-angle.sin(), angle.cos()], dim=-1)
    places = [torch.zeros_like(ahead[:, 0])]
    scenes = torch.arange(len(angle), device=angle.device)

    def reach(slot: Tensor | int, way: Tensor) -> Tensor:
        """From the middle of an ellipse to the tangent across `way`: (B,)."""
        along = [(axis[scenes, slot] * way).sum(dim=-1) for axis in (ahead, aside)]
        return (torch.stack(along, dim=-1) * half[scenes, slot]).norm(dim=-1)

    for i in range(1, count):
        near = (drawn["neighbour"][:, i].sqrt() * i).long()  # the last ones more often
        side = (drawn["side"][:, i] * 4).long()
        axis = torch.where((side % 2 == 0)[:, None], ahead[scenes, near], aside[scenes, near])
        way = axis * torch.where(side < 2, 1.0, -1.0)[:, None]
        way = torch.where((upwards & (way[:, 1] > 0))[:, None], -way, way)
        across = torch.stack([-way[:, 1], way[:, 0]], dim=-1)
        apart = (reach(near, way) + reach(i, way)) * (0.65 + 0.3 * drawn["gap"][:, i])
        along = reach(near, across) * (drawn["slide"][:, i] - 0.5)
        places.append(torch.stack(places, dim=1)[scenes, near] + way * apart[:, None] + across * along[:, None])
    place = torch.stack(places, dim=1)
    longest = half.amax(dim=-1, keepdim=True)
    low = (place - longest).masked_fill(~present[..., None], torch.inf).amin(dim=1, keepdim=True)
    high = (place + longest).masked_fill(~present[..., None], -torch.inf).amax(dim=1, keepdim=True)
    span = (high - low).amax(dim=2)
    fit = torch.where(span > 1.8, 1.8 / span, 1.0)
    x, y = ((place - (low + high) / 2) * fit[..., None]).unbind(dim=-1)
    return x, y, fit
