"""The split network: an image encoder that runs once per image, and a light denoiser that runs per layer, step and member.

The denoiser is a UNet over [noisy mask, cumulative mask]; the encoder's maps, brought to the denoiser's widths once per image, are
added to its own at every level that has their size. Its last level also says how likely nothing is left to draw. What can be
worked out from the picture alone is cheapest where it is done once: `Fusion` lets the encoder's maps see each other first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import reduce, repeat
from torch import nn
from torch.nn import functional

from sas.io import InputError
from sas.models.encoder_check import check_maps, declared_maps
from sas.models.encoders import BUILT_IN, EfficientNetLite0, TimmEncoder, build_encoder


class SplitDenoiser(ModelMixin, ConfigMixin):
    """Image encoder and light mask denoiser.

    image_size, mask_size: sides of image and masks, pixels. encoder: "conv", "efficientnet_lite0" (to stride 16), "efficientnet_lite0_deep"
    (to stride 32), "timm/NAME" or a registered one; the last two are run once on an empty picture, to see that their maps are as they say.
    encoder_widths: of the "conv" encoder's three maps. fusion: width of each level at which the encoder's maps are fused, from fine to
    coarse; empty for none. channels: width of each level of the denoiser; each after the first halves the resolution. blocks: residual
    blocks a level. attention_sizes: resolutions of the denoiser's maps at which attention runs.
    patch: side of the pixel blocks folded into channels at its input and unfolded at its output.
    Output channels: the mask's, then "stop", a logit that no layer is left, the same at every pixel.
    """

    _supports_gradient_checkpointing = False
    heads = ("mask", "stop")

    @register_to_config
    def __init__(
        self,
        *,
        image_size: int = 128,
        mask_size: int = 64,
        encoder: str = "conv",
        encoder_widths: Sequence[int] = (32, 64, 128),
        fusion: Sequence[int] = (),
        channels: Sequence[int] = (48, 96, 160, 192),
        blocks: int = 1,
        attention_sizes: Sequence[int] = (8, 4),
        patch: int = 2,
        norm_groups: int = 16,
    ) -> None:
        super().__init__()
        side = mask_size // patch
        if mask_size % patch or side % 2 ** (len(channels) - 1):
            raise ValueError(
                f"mask_size must be divisible by patch x 2^(levels - 1) = {patch * 2 ** (len(channels) - 1)}, got {mask_size}: "
                "change mask_size, patch or the number of channels"
            )
        self.image_encoder = build_encoder(encoder, widths=encoder_widths, norm_groups=norm_groups)
        strides, widths = declared_maps(self.image_encoder, encoder)
        sides = [side // 2**level for level in range(len(channels))]
        self.places = [_place(image_size, stride, sides, encoder) for stride in strides]
        if encoder not in BUILT_IN:
            check_maps(self.image_encoder, name=encoder, image_size=image_size)
        self.necks = nn.ModuleList(
            nn.Conv2d(width * fold**2, channels[level], 1)
            for (level, fold), width in zip(self.places, widths, strict=True)
        )
        given = sorted({level for level, _ in self.places})
        if fusion and len(fusion) != len(given):
            raise ValueError(
                f"fusion must name the width of each of the {len(given)} levels that have maps of the encoder, got {tuple(fusion)}: "
                "change it, or leave it empty"
            )
        if fusion and given != list(range(given[0], given[-1] + 1)):
            raise ValueError(
                f"fusion must be empty for encoder {encoder}, whose maps leave out a level between {given[0]} and {given[-1]}, got "
                f"{tuple(fusion)}: each map must have half the side of the one before"
            )
        self.fuse = Fusion([channels[level] for level in given], fusion, groups=norm_groups) if fusion else None

        time_width = 4 * channels[0]
        self.time = nn.Sequential(
            Timesteps(channels[0], flip_sin_to_cos=True, downscale_freq_shift=0),
            TimestepEmbedding(channels[0], time_width),
        )

        def block(before: int, width: int) -> _Block:
            return _Block(before, width, groups=norm_groups, time_width=time_width)

        def attention(width: int, at: int) -> nn.Module:
            if at not in set(attention_sizes):
                return nn.Identity()
            return Attention(
                width, heads=max(1, width // 32), dim_head=32, bias=True, norm_num_groups=norm_groups, residual_connection=True
            )  # fmt: skip

        self.stem = nn.Conv2d(2 * patch**2, channels[0], 3, padding=1)
        self.down, self.down_attention, self.shrink = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.up, self.up_attention, self.grow = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        before = channels[0]
        for level, width in enumerate(channels):
            self.shrink.append(
                nn.Identity() if level == 0 else Downsample2D(before, use_conv=True, out_channels=width, name="op")
            )
            self.down.append(nn.ModuleList(block(width, width) for _ in range(blocks)))
            self.down_attention.append(attention(width, sides[level]))
            before = width
        for level in reversed(range(len(channels))):
            width = channels[level]
            deepest = level == len(channels) - 1
            self.grow.append(nn.Identity() if deepest else Upsample2D(before, use_conv=True, out_channels=width))
            self.up.append(nn.ModuleList(block(width if deepest or n else 2 * width, width) for n in range(blocks)))
            self.up_attention.append(attention(width, sides[level]))
            before = width
        self.norm = nn.GroupNorm(norm_groups, channels[0])
        self.head = nn.Conv2d(channels[0], patch**2, 3, padding=1)
        self.stop = nn.Linear(channels[-1], 1)
        for final in (self.head, self.stop):
            nn.init.zeros_(final.weight)
            assert final.bias is not None
            nn.init.zeros_(final.bias)

    def load_pretrained_encoder(self) -> None:
        """Start the image encoder from ImageNet features; InputError if the package that holds them is not installed, or there are none."""
        encoder = self.image_encoder
        if isinstance(encoder, EfficientNetLite0):
            encoder.load_imagenet()
        elif isinstance(encoder, TimmEncoder):
            encoder.load_state_dict(TimmEncoder(encoder.name, pretrained=True).state_dict())
        else:
            raise InputError(
                f"pretrained must be false for encoder {self.config['encoder']!r}, whose features are not known here; remove it, and load them "
                "where you build the encoder"
            )

    @apply_forward_hook
    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Features of each image at the denoiser's widths, one map a level: float (B, 3, image_size, image_size) -> tuple."""
        size = self.config["image_size"]
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[-2:] != (size, size):
            raise ValueError(
                f"image must have shape (B, 3, {size}, {size}), got {tuple(image.shape)}: "
                "bring it to the model's size with sas.geometry.Geometry"
            )
        levels: dict[int, torch.Tensor] = {}
        for (level, fold), neck, found in zip(self.places, self.necks, self.image_encoder(image), strict=True):
            added = neck(functional.pixel_unshuffle(found, fold))
            levels[level] = levels[level] + added if level in levels else added
        maps = [levels[level] for level in sorted(levels)]
        return tuple(self.fuse(maps) if self.fuse is not None else maps)

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, cumulative: torch.Tensor, features: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """See `sas.models.seam.MaskDenoiser`; channels of the output: mask, stop."""
        patch = self.config["patch"]
        numbers = sorted({level for level, _ in self.places})
        given = dict(zip(numbers, features, strict=True))
        time = self.time[1](self.time[0](timestep).to(noisy.dtype))
        h = self.stem(functional.pixel_unshuffle(torch.cat([noisy, cumulative], dim=1), patch))
        skips = []
        for level, (shrink, blocks, attend) in enumerate(zip(self.shrink, self.down, self.down_attention, strict=True)):
            h = shrink(h)
            if level in given:
                h = h + given[level]
            for block in blocks:  # type: ignore[union-attr,attr-defined]
                h = block(h, time)
            h = attend(h)
            skips.append(h)
        deep = skips.pop()
        for number, (grow, blocks, attend) in enumerate(zip(self.grow, self.up, self.up_attention, strict=True)):
            h = grow(h)
            if number:
                h = torch.cat([h, skips.pop()], dim=1)
            for block in blocks:  # type: ignore[union-attr,attr-defined]
                h = block(h, time)
            h = attend(h)
            if not number:
                deep = h
        mask = functional.pixel_shuffle(self.head(functional.silu(self.norm(h))), patch)
        stop = self.stop(reduce(functional.silu(deep), "m c h w -> m c", "mean"))
        return torch.cat([mask, repeat(stop, "m 1 -> m 1 h w", h=mask.shape[-2], w=mask.shape[-1])], dim=1)


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
                layers.append(_Block(width, width, groups=groups))
                if level > 0:  # at the finest map attention costs more than all the rest
                    layers.append(
                        Attention(
                            width, heads=max(1, width // 32), dim_head=32, bias=True, norm_num_groups=groups, residual_connection=True
                        )
                    )  # fmt: skip
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


class _Block(ResnetBlock2D):
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


def _place(image_size: int, stride: int, sides: Sequence[int], encoder: str) -> tuple[int, int]:
    """Level that a map of this stride goes to, and the side of the pixel blocks folded into its channels to fit there."""
    side = image_size // stride
    if image_size % stride == 0 and side in sides:
        return list(sides).index(side), 1
    if image_size % stride == 0 and side > sides[0] and side % sides[0] == 0 and side // sides[0] <= 4:
        return 0, side // sides[0]
    raise ValueError(
        f"the maps of encoder {encoder} must fit the denoiser's levels, of sides {tuple(sides)}, got one of side {image_size / stride:g} "
        f"(image_size {image_size}, stride {stride}): change image_size, mask_size, patch or the number of channels"
    )
