"""A second look at the picture, in a UNet over it and all that the encoder made of it, once per image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.resnet import Downsample2D
from torch import nn
from torch.nn import functional

from sas.models.fusion import Block, FoldedConv, attention_over, gathered, zeroed
from sas.models.norm import GroupNorm


class ImageUNet(nn.Module):
    """A UNet from fine to coarse and back, with attention at all but the two finest levels.

    entries: of each map that enters (the picture, the encoder's maps, the denoiser's), the level that it goes to, the side of the pixel blocks
    folded into its channels to fit there, and its channels. widths: of the levels; each after the first has half the side of the
    one before. channels: of the denoiser's maps, which leave at all levels but the first; what is added to them is zero before training.
    layers: how many layers are guessed at once from the first level's map, which teaches all levels what is in front of what.
    blocks: residual blocks a level, on the way down and up alike.
    """

    def __init__(
        self,
        entries: Sequence[tuple[int, int, int]],
        widths: Sequence[int],
        channels: Sequence[int],
        *,
        layers: int,
        blocks: int,
        groups: int,
    ) -> None:
        super().__init__()
        self.places = [(level, fold) for level, fold, _ in entries]
        self.enter = nn.ModuleList(FoldedConv(width, widths[level], fold=fold) for level, fold, width in entries)
        self.shrink, self.down, self.grow, self.up, self.leave = (nn.ModuleList() for _ in range(5))

        def stage(level: int) -> nn.Sequential:
            parts: list[nn.Module] = []
            for _ in range(blocks):
                parts.append(Block(widths[level], widths[level], groups=groups))
                if level > 1:  # at the two finest levels attention would cost more than all the rest
                    parts.append(attention_over(widths[level], groups=groups))
            return nn.Sequential(*parts)

        def leave(width: int, channel: int) -> nn.Sequential:
            return nn.Sequential(GroupNorm(groups, width), nn.SiLU(), zeroed(nn.Conv2d(width, channel, 1)))

        for level, (width, coarser) in enumerate(zip(widths, [*widths[1:], 0], strict=True)):
            self.down.append(stage(level))
            if coarser:
                self.shrink.append(Downsample2D(width, use_conv=True, out_channels=coarser, name="op"))
                self.grow.append(nn.Conv2d(coarser, width, 1))
                self.up.append(stage(level))
        for width, channel in zip(widths[1:], channels, strict=True):
            self.leave.append(leave(width, channel))
        self.guess = leave(widths[0], layers)

    def forward(
        self, image: torch.Tensor, found: Sequence[torch.Tensor], maps: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Images (B, 3, H, W), the encoder's maps of them, the denoiser's from fine to coarse -> the latter, added to, and the first level's own
        map, float (B, widths[0], side, side), of which `guess` makes logits of the layers, float (B, layers, side, side)."""
        entered = gathered(self.places, self.enter, [image, *found, *maps])
        h, skips = entered[0], []
        for level, stage in enumerate(self.down):
            if level:
                h = self.shrink[level - 1](h) + entered[level]
            h = stage(h)
            skips.append(h)
        seen = [skips.pop()]
        for level in reversed(range(len(self.up))):
            larger = functional.interpolate(self.grow[level](seen[0]), scale_factor=2.0)
            seen.insert(0, self.up[level](skips.pop() + larger))
        added = [one + leave(h) for one, leave, h in zip(maps, self.leave, seen[1:], strict=True)]
        return added, seen[0]
