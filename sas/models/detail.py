"""The last word on outlines: a stage of the split network at the masks' own resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from sas.models.fusion import Block, FoldedConv, gathered, zeroed


class Detail(nn.Module):
    """Corrects a mask where the denoiser's maps, a patch of the mask at each position, are too coarse, by the encoder's finest maps.

    entries: of each map of the encoder used, the side of the pixel blocks folded into its channels to be as large as the mask, and its
    width. before: width of the denoiser's last map. patch: side of the mask's blocks at each of its positions. What it adds is zero before
    training.
    """

    def __init__(self, entries: Sequence[tuple[int, int]], *, before: int, patch: int, width: int, groups: int) -> None:
        super().__init__()
        self.places, self.patch = [(0, fold) for fold, _ in entries], patch
        self.enter = nn.ModuleList(FoldedConv(channels, width, fold=fold) for fold, channels in entries)
        self.block = Block(width, width, groups=groups)
        self.first = nn.Conv2d(before // patch**2 + 2 + width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.last = zeroed(nn.Conv2d(width, 1, 3, padding=1))

    def encode(self, found: Sequence[torch.Tensor]) -> torch.Tensor:
        """The encoder's maps that are as fine as the mask or finer -> float (B, width, h, w), once a picture."""
        return self.block(gathered(self.places, self.enter, found)[0])

    def forward(
        self, h: torch.Tensor, noisy: torch.Tensor, cumulative: torch.Tensor, seen: torch.Tensor
    ) -> torch.Tensor:
        """What to add to masks (M, 1, h, w): of the denoiser's last map, normalised (M, before, h / patch, w / patch), both masks and `encode`'s map."""
        both = torch.cat([functional.pixel_shuffle(h, self.patch), noisy, cumulative, seen], dim=1)
        return self.last(functional.silu(self.second(functional.silu(self.first(both)))))
