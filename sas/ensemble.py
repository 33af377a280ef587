"""From the members of an ensemble to one layer: void members, consensus mask, probability, uncertainty.

Shapes: b states, e members. Members are bool (b, e, h, w); their soft masks are float (b, e, h, w) in [0, 1].
"""

from __future__ import annotations

import torch
from einops import reduce

from sas.provenance import Consensus


def void_members(members: torch.Tensor, *, void_area: float) -> torch.Tensor:
    """Members that found nothing: bool (b, e), True where the mask covers less than `void_area` of the grid.

    SAS's code uses 0.0025: at most 10 of 4096 pixels.
    """
    return reduce(members.float(), "b e h w -> b e", "mean") < void_area


def consensus(
    members: torch.Tensor, void: torch.Tensor, *, rule: Consensus = "medoid", void_area: float = 0.0
) -> torch.Tensor:
    """The mask kept for each state, bool (b, h, w), from the members that are not void.

    "medoid": the member with the smallest L1 distance to the mean of them (SAS; the first one on ties), a shape that was really
    drawn. "mean": pixels in more than half of them, which may be a shape that no member has; the medoid where members agree on no
    pixel, or on so few that they would be void (less than `void_area` of the grid), so that what they found is not lost. All void: an
    empty mask.
    """
    usable = ~void
    weight = usable.float()[:, :, None, None]
    # L1 distance times the number of usable members: whole numbers, so that rounding decides no tie.
    total, count = (members * weight).sum(dim=1, keepdim=True), weight.sum(dim=1, keepdim=True)
    distance = reduce((members * count - total).abs(), "b e h w -> b e", "sum")
    nearest = distance.masked_fill(void, torch.inf).argmin(dim=1)
    chosen = members[torch.arange(len(members), device=members.device), nearest]
    medoid = chosen & usable.any(dim=1)[:, None, None]
    if rule == "medoid":
        return medoid
    majority = (2 * total > count)[:, 0]
    agreed = majority.flatten(1).any(dim=1) & ~void_members(majority[:, None], void_area=void_area)[:, 0]
    return torch.where(agreed[:, None, None], majority, medoid)


def probability(soft: torch.Tensor) -> torch.Tensor:
    """Mean over members of their soft masks, void ones included: float (b, h, w) in [0, 1]."""
    return reduce(soft, "b e h w -> b h w", "mean")


def uncertainty(members: torch.Tensor) -> torch.Tensor:
    """Population variance over thresholded members, float (b, h, w) in [0, 0.25] (DIS, Wolleb et al. 2022)."""
    return members.float().var(dim=1, correction=0)


def marginal_uncertainty(probabilities: torch.Tensor) -> torch.Tensor:
    """Variance p (1 - p) of a pixel that is set with probability p: float in [0, 0.25], for marginal mode."""
    return probabilities * (1 - probabilities)
