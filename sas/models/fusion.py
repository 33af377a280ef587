"""What brings the image encoder's maps to the split network's denoiser, once per image, and the blocks that both are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D, Upsample2D
from torch import nn
from torch.nn import functional

from sas.models.norm import GroupNorm

Layer = TypeVar("Layer", bound=nn.Module)


class Fusion(nn.Module):
    """Maps of one picture that see each other: from coarse to fine, with residual blocks at each and attention at the coarser ones.

    channels: of the maps, from fine to coarse; each has half the side of the one before. widths: inside, at each map. What comes out has
    the maps' shapes and is added to them; before training it is zero.
    """

    def __init__(self, channels: Sequence[int], widths: Sequence[int], *, groups: int) -> None:
        super().__init__()
        self.enter, self.grow, self.blocks, self.leave = (nn.ModuleList() for _ in range(4))
        for level, (channel, width) in enumerate(zip(channels, widths, strict=True)):
            coarsest = level == len(widths) - 1
            self.enter.append(nn.Conv2d(channel, width, 1))
            self.grow.append(
                nn.Identity() if coarsest else Upsample2D(widths[level + 1], use_conv=True, out_channels=width)
            )
            layers: list[nn.Module] = []
            for _ in range(2):
                layers.append(Block(width, width, groups=groups))
                if level > 0:  # at the finest map attention costs more than all the rest
                    layers.append(attention_over(width, groups=groups))
            self.blocks.append(nn.Sequential(*layers))
            self.leave.append(zeroed(nn.Conv2d(width, channel, 1)))

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Maps of float (B, channels[i], side_i, side_i), from fine to coarse -> the same, each with what the others know."""
        fused = list(maps)
        h: torch.Tensor | None = None
        for level in reversed(range(len(maps))):
            entered = self.enter[level](maps[level])
            h = self.blocks[level](entered if h is None else entered + self.grow[level](h))
            fused[level] = maps[level] + self.leave[level](h)
        return fused


class Block(ResnetBlock2D):
    """diffusers' residual block, with or without a time, that makes fewer copies where no gradient is wanted. Values are the same."""

    def __init__(self, before: int, width: int, *, groups: int, time_width: int | None = None) -> None:
        super().__init__(in_channels=before, out_channels=width, temb_channels=time_width, groups=groups, eps=1e-5)  # type: ignore[arg-type]
        self.norm1, self.norm2 = GroupNorm(groups, before, eps=1e-5), GroupNorm(groups, width, eps=1e-5)

    def forward(self, x: torch.Tensor, time: torch.Tensor | None = None) -> torch.Tensor:  # type: ignore[override]
        """float (B, before, h, w), and with a time float (B, time_width) -> float (B, width, h, w)."""
        inplace = not torch.is_grad_enabled()
        h = self.conv1(functional.silu(self.norm1(x), inplace=inplace))
        if time is not None:
            shift = self.time_emb_proj(functional.silu(time))[:, :, None, None]  # type: ignore[misc]
            h = h.add_(shift) if inplace else h + shift
        h = self.conv2(functional.silu(self.norm2(h), inplace=inplace))
        short_cut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return h.add_(short_cut) if inplace else h + short_cut


class _Attention(Attention):
    """diffusers' attention, which stays in float32 on the CPU: the backward pass of its half precision takes 2 to 15 times as long there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        if x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.to(self.to_q.weight.dtype)).to(x.dtype)  # type: ignore[union-attr]


def attention_over(width: int, *, groups: int) -> Attention:
    """Self-attention over the positions of a map of `width` channels, in heads of 32, around a short cut."""
    return _Attention(
        width, heads=max(1, width // 32), dim_head=32, bias=True, norm_num_groups=groups, residual_connection=True
    )


class FoldedConv(nn.Conv2d):
    """A 1 x 1 convolution of maps whose blocks of fold x fold pixels are folded into channels: that of `pixel_unshuffle(map, fold)`, without
    a copy of the map."""

    def __init__(self, channels: int, width: int, *, fold: int) -> None:
        super().__init__(channels * fold**2, width, 1)
        self.fold = fold

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float (B, channels, h, w) -> float (B, width, h / fold, w / fold)."""
        weight = self.weight.reshape(self.out_channels, -1, self.fold, self.fold)
        return functional.conv2d(x, weight, self.bias, stride=self.fold)


def gathered(
    places: Sequence[tuple[int, int]], convolutions: nn.ModuleList, found: Sequence[torch.Tensor]
) -> dict[int, torch.Tensor]:
    """The encoder's maps at the levels they go to: each through its `FoldedConv`, and added up where several go to one level.

    places: of each map its level, and the side of the pixel blocks folded into its channels.
    """
    levels: dict[int, torch.Tensor] = {}
    for (level, _), convolution, one in zip(places, convolutions, found, strict=True):
        added = convolution(one)
        levels[level] = levels[level] + added if level in levels else added
    return levels


def zeroed(layer: Layer) -> Layer:
    """The layer, its weights and bias set to zero: what it adds is nothing before training."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
