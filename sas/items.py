"""From a batch of scenes to training items: (picture, layer k, cumulative mask, target mask, known).

Every picture with K layers has K + 1 items: one for each layer, and one after the last, whose target is EMPTY. That last one teaches
the model to stop (SAS, section 3), so a picture that shows more objects than its scene lists does not have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from sas.scene import SceneBatch
from sas.seeding import Keys


@dataclass(frozen=True)
class Corruption:
    """Damage done to the cumulative mask at training, so that the model's own errors at sampling do not snowball.

    drop: probability of leaving out each object in front. grow: largest dilation or erosion, pixels. warp: largest shift of the
    mask's outline by a smooth random field, pixels. probability: share of items damaged at all.
    """

    probability: float = 0.0
    drop: float = 0.1
    grow: int = 1
    warp: float = 1.0


@dataclass(frozen=True)
class Items:
    """Training items of a batch of pictures; M items in all.

    picture: int64 (M,), row of the picture in the batch. layer: int64 (M,), index of the layer, K for the empty one.
    cumulative, target: bool (M, 1, h, w). known: bool (M, 1, h, w). slot: int64 (M,), the item's place among its picture's items.
    complete: None if all pictures are complete, else bool (M,); False: the picture shows objects that nobody lists.
    frame: bool (M, 1, h, w), where masks can be, see `SceneBatch.frame`.
    """

    picture: torch.Tensor
    layer: torch.Tensor
    cumulative: torch.Tensor
    target: torch.Tensor
    known: torch.Tensor
    slot: torch.Tensor
    frame: torch.Tensor
    complete: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.picture)

    @property
    def taught(self) -> torch.Tensor | None:
        """Items to learn from, bool (M,); None: all. An empty target is no truth where more objects may be left."""
        return None if self.complete is None else self.complete | self.target.flatten(1).any(dim=1)


def layer_items(
    batch: SceneBatch, keys: Keys, *, layers: Literal["all"] | int = "all", corruption: Corruption | None = None
) -> Items:
    """Items of a batch. `layers="all"`: one a layer and the EMPTY one (see `SceneBatch.item_counts`); `layers=m`: m draws a picture, without replacement
    while it has enough items.

    keys: one a picture; the items of a picture depend on its key alone.
    """
    if layers != "all" and layers < 1:
        raise ValueError(f'layers must be "all" or a positive number of draws, got {layers}: pass 1 or more')
    counts = batch.item_counts.cpu()
    if layers == "all":
        choices = [torch.arange(int(count)) for count in counts]
    else:
        shuffles = keys.uniform("layer", 64)
        choices = [_draw(row, int(count), layers) for row, count in zip(shuffles, counts, strict=True)]
    device = batch.image.device
    picture = torch.cat([torch.full_like(choice, b) for b, choice in enumerate(choices)]).to(device)
    layer = torch.cat(choices).to(device)
    slot = torch.cat([torch.arange(len(choice)) for choice in choices]).to(device)

    masks, index = batch.amodal_masks[picture], batch.layer_index[picture]
    in_front = (index >= 0) & (index < layer[:, None])
    target = _union(masks, index == layer[:, None])
    if corruption is not None and corruption.probability > 0:
        cumulative = _corrupted(masks, in_front, corruption, keys, picture, slot)
    else:
        cumulative = _union(masks, in_front)
    return Items(
        picture=picture,
        layer=layer,
        cumulative=cumulative,
        target=target,
        known=batch.known[picture],
        slot=slot,
        frame=batch.frame[picture],
        complete=None if batch.complete is None else batch.complete[picture],
    )


def _draw(uniform: torch.Tensor, available: int, count: int) -> torch.Tensor:
    """`count` of `available` items: whole shuffled rounds, then the start of another one."""
    order = uniform[:available].argsort()
    return torch.cat([order] * (count // available) + [order[: count % available]])


def _union(masks: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Union of the chosen objects of each row: (M, N, h, w), (M, N) -> (M, 1, h, w)."""
    return (masks & chosen[:, :, None, None]).any(dim=1, keepdim=True)


def _corrupted(
    masks: torch.Tensor,
    in_front: torch.Tensor,
    corruption: Corruption,
    keys: Keys,
    picture: torch.Tensor,
    slot: torch.Tensor,
) -> torch.Tensor:
    """Cumulative masks with objects dropped and outlines moved; every random number is keyed by picture and slot."""
    device, (height, width), objects = masks.device, masks.shape[-2:], masks.shape[1]
    cells = 4
    # The objects' numbers come last: how many there are depends on the padding of the batch, and must move no other number.
    moves = 2 * cells * cells
    row = keys.items(picture, slot).uniform("corruption", 2 + moves + objects).to(device)
    touched = row[:, 0] < corruption.probability
    dropped = (row[:, 2 + moves :] < corruption.drop) & touched[:, None]
    clean = _union(masks, in_front)
    mask = _union(masks, in_front & ~dropped).float()

    # A radius in -grow..grow: dilation is a maximum over a window, erosion a minimum.
    radius = ((row[:, 1] * (2 * corruption.grow + 1)).floor() - corruption.grow).long()
    for step in range(1, corruption.grow + 1):
        grown = functional.max_pool2d(mask, 3, stride=1, padding=1)
        shrunk = 1 - functional.max_pool2d(1 - mask, 3, stride=1, padding=1)
        mask = torch.where((radius >= step)[:, None, None, None], grown, mask)
        mask = torch.where((radius <= -step)[:, None, None, None], shrunk, mask)

    if corruption.warp > 0:
        field = row[:, 2 : 2 + moves].reshape(-1, 2, cells, cells) * 2 - 1
        flow = functional.interpolate(field, (height, width), mode="bicubic", align_corners=True) * corruption.warp
        ys, xs = torch.meshgrid(
            torch.linspace(-1, 1, height, device=device), torch.linspace(-1, 1, width, device=device), indexing="ij"
        )
        grid = torch.stack([xs + flow[:, 0] * 2 / width, ys + flow[:, 1] * 2 / height], dim=-1)
        mask = functional.grid_sample(mask, grid, mode="bilinear", align_corners=True)
    return torch.where(touched[:, None, None, None], mask > 0.5, clean)
