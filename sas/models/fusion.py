"""What the split network works out from the picture alone, between its image encoder and its denoiser, once per image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from torch import nn
from torch.nn import functional


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
            leave = nn.Conv2d(width, channel, 1)
            nn.init.zeros_(leave.weight)
            nn.init.zeros_(leave.bias)  # type: ignore[arg-type]
            self.leave.append(leave)

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Maps of float (B, channels[i], side_i, side_i), from fine to coarse -> the same, each with what the others know."""
        fused = list(maps)
        h: torch.Tensor | None = None
        for level in reversed(range(len(maps))):
            entered = self.enter[level](maps[level])
            h = self.blocks[level](entered if h is None else entered + self.grow[level](h))
            fused[level] = maps[level] + self.leave[level](h)
        return fused


class ImageUNet(nn.Module):
    """A small UNet over the encoder's maps and what became of them: from fine to coarse and back, with attention at the coarser levels.

    entries: of each map of the encoder, the level that it goes to, the side of the pixel blocks folded into its channels to fit there, and
    its width. channels: of the fused maps, which enter at all levels but the first, and leave there. widths: of the levels; each after
    the first has half the side of the one before; attention runs at all but the two finest. What comes out is added to the
    fused maps; before training it is zero.
    """

    def __init__(
        self, entries: Sequence[tuple[int, int, int]], channels: Sequence[int], widths: Sequence[int], *, groups: int
    ) -> None:
        super().__init__()
        self.places = [(level, fold) for level, fold, _ in entries]
        self.enter = nn.ModuleList(nn.Conv2d(width * fold**2, widths[level], 1) for level, fold, width in entries)
        self.join = nn.ModuleList(
            nn.Conv2d(channel, width, 1) for channel, width in zip(channels, widths[1:], strict=True)
        )
        self.shrink, self.down, self.grow, self.up, self.leave = (nn.ModuleList() for _ in range(5))

        def blocks(level: int) -> nn.Sequential:
            # at the two finest levels attention would cost more than all the rest
            one = Block(widths[level], widths[level], groups=groups)
            return nn.Sequential(one, attention_over(widths[level], groups=groups)) if level > 1 else nn.Sequential(one)

        for level, (width, coarser) in enumerate(zip(widths, [*widths[1:], 0], strict=True)):
            self.down.append(blocks(level))
            if coarser:
                self.shrink.append(Downsample2D(width, use_conv=True, out_channels=coarser, name="op"))
            if level:
                self.grow.append(nn.Conv2d(coarser, width, 1) if coarser else nn.Identity())
                self.up.append(blocks(level))
                last = nn.Conv2d(width, channels[level - 1], 1)
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)  # type: ignore[arg-type]
                self.leave.append(nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), last))

    def forward(self, found: Sequence[torch.Tensor], maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The encoder's maps, and the fused ones float (B, channels[i], side_i, side_i) from fine to coarse -> the latter, looked at again."""
        entered: dict[int, torch.Tensor] = {}
        for (level, fold), enter, one in zip(self.places, self.enter, found, strict=True):
            added = enter(functional.pixel_unshuffle(one, fold))
            entered[level] = entered[level] + added if level in entered else added
        h = self.down[0](entered[0])
        skips = []
        for level, one in enumerate(maps):
            h = self.shrink[level](h) + self.join[level](one)
            h = self.down[level + 1](h + entered[level + 1] if level + 1 in entered else h)
            skips.append(h)
        seen = list(maps)
        for level in reversed(range(len(maps))):
            if level < len(maps) - 1:
                h = skips[level] + functional.interpolate(self.grow[level](h), scale_factor=2.0)
            h = self.up[level](h)
            seen[level] = maps[level] + self.leave[level](h)
        return seen


class Block(ResnetBlock2D):
    """diffusers' residual block, with or without a time, that makes fewer copies where no gradient is wanted. Values are the same."""

    def __init__(self, before: int, width: int, *, groups: int, time_width: int | None = None) -> None:
        super().__init__(in_channels=before, out_channels=width, temb_channels=time_width, groups=groups, eps=1e-5)  # type: ignore[arg-type]

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


def attention_over(width: int, *, groups: int) -> Attention:
    """Self-attention over the positions of a map of `width` channels, in heads of 32, around a short cut."""
    return Attention(
        width, heads=max(1, width // 32), dim_head=32, bias=True, norm_num_groups=groups, residual_connection=True
    )
