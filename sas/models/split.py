"""The split network: an image encoder that runs once per image, and a light denoiser that runs per layer, step and member.

The denoiser is a UNet over [noisy mask, cumulative mask]; the encoder's maps, brought to the denoiser's widths once per image, are
added to its own at every level that has their size. Its last level also says how likely nothing is left to draw. What can be
worked out from the picture alone is cheapest where it is done once: `Fusion` lets the encoder's maps see each other first, and
`ImageUNet` looks at the picture once more, more finely, and guesses the first layers at once, of which `Ahead` shows the denoiser the
one that comes next. `Detail` corrects outlines at the masks' own resolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import Downsample2D, Upsample2D
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import reduce, repeat
from torch import nn
from torch.nn import functional

from sas.io import InputError
from sas.models.ahead import Ahead, next_guessed
from sas.models.detail import Detail
from sas.models.encoder_check import check_maps, declared_maps
from sas.models.encoders import BUILT_IN, EfficientNetLite0, TimmEncoder, build_encoder
from sas.models.fusion import Block, FoldedConv, Fusion, attention_over, gathered, zeroed
from sas.models.image_unet import ImageUNet
from sas.models.norm import GroupNorm
from sas.storage import StoredSmall


class SplitDenoiser(StoredSmall, ModelMixin, ConfigMixin):
    """Image encoder and light mask denoiser.

    image_size, mask_size: sides of image and masks, pixels. encoder: "conv", "efficientnet_lite0" (to stride 16), "efficientnet_lite0_deep"
    (to stride 32), "timm/NAME" or a registered one; the last two are run once on an empty picture, to see that their maps are as they say.
    encoder_widths: of the "conv" encoder's three maps. fusion: width of each level at which the encoder's maps are fused, from fine to
    coarse; empty for none. image_unet: widths of an `ImageUNet`, whose first level has twice the side of the denoiser's first and whose
    others are the levels at which the encoder has maps; empty for none. image_blocks: its residual blocks a level and way. layers: how many
    layers it guesses at once. channels: width of each level of the denoiser; each after the first halves the resolution.
    blocks: residual blocks a level. attention_sizes: resolutions of the denoiser's maps at which attention runs.
    patch: side of the pixel blocks folded into channels at its input and unfolded at its output. detail: width of a `Detail` stage behind
    it, which needs an `ImageUNet`, or a map of the encoder at least as fine as the masks, of at most 4 times their side; 0 for none.
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
        image_unet: Sequence[int] = (),
        image_blocks: int = 1,
        layers: int = 6,
        channels: Sequence[int] = (48, 96, 160, 192),
        blocks: int = 1,
        attention_sizes: Sequence[int] = (8, 4),
        patch: int = 2,
        detail: int = 0,
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
            FoldedConv(width, channels[level], fold=fold)
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
        self.look, self.ahead = None, None
        if image_unet:
            finer = [2 * side, *sides[: len(given)]]
            if patch > 2:
                raise ValueError(
                    f"image_unet must be empty with patch {patch}, whose masks are finer than its first level: use patch 2, or leave it empty"
                )
            if given != list(range(len(given))) or len(image_unet) != len(finer):
                raise ValueError(
                    f"image_unet must name the width of each of {len(finer)} levels, of sides {tuple(finer)}, at all of which but the first encoder "
                    f"{encoder} must have maps, got {tuple(image_unet)}: change it, or leave it empty"
                )
            if image_size not in (finer[0] * fold for fold in (1, 2, 3, 4)):
                raise ValueError(
                    f"image_unet needs an image_size of 1, 2, 3 or 4 times its first side = {finer[0]}, got {image_size}: change image_size, "
                    "mask_size or patch, or leave it empty"
                )
            own = [channels[level] for level in given]
            entries = [
                *(
                    (*_place(image_size, stride, finer, encoder), width)
                    for stride, width in zip((1, *strides), (3, *widths), strict=True)
                ),
                *((level + 1, 1, width) for level, width in zip(given, own, strict=True)),
            ]
            self.look = ImageUNet(entries, image_unet, own, layers=layers, blocks=image_blocks, groups=norm_groups)
            self.ahead = Ahead(channels[0], patch=patch)

        time_width = 4 * channels[0]
        self.time = nn.Sequential(
            Timesteps(channels[0], flip_sin_to_cos=True, downscale_freq_shift=0),
            TimestepEmbedding(channels[0], time_width),
        )

        def block(before: int, width: int) -> Block:
            return Block(before, width, groups=norm_groups, time_width=time_width)

        def attention(width: int, at: int) -> nn.Module:
            return attention_over(width, groups=norm_groups) if at in set(attention_sizes) else nn.Identity()

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
        self.norm = GroupNorm(norm_groups, channels[0])
        self.head = zeroed(nn.Conv2d(channels[0], patch**2, 3, padding=1))
        self.stop = zeroed(nn.Linear(channels[-1], 1))
        self.fine = None
        if detail < 0 or detail % norm_groups:
            raise ValueError(
                f"detail must be 0 or a positive multiple of norm_groups = {norm_groups}, got {detail}: change one of them"
            )
        if detail:
            found = [image_size // stride for stride in strides]
            self.fine_maps = [n for n, one in enumerate(found) if one in (mask_size, 2 * mask_size, 4 * mask_size)]
            if not self.fine_maps and not image_unet:
                raise ValueError(
                    f"detail must be 0 for encoder {encoder}, whose maps are of sides {found}, none of which is 1, 2 or 4 times the masks' "
                    f"{mask_size}, got {detail}: remove it, or change the encoder or image_size"
                )
            if channels[0] % patch**2:
                raise ValueError(
                    f"the first width of channels must be divisible by patch^2 = {patch**2} for detail, got {channels[0]}: change one of them"
                )
            kept = [(found[n] // mask_size, widths[n]) for n in self.fine_maps]
            if image_unet:
                kept.append((2 * side // mask_size, image_unet[0]))
                self.fine_maps.append(len(found))
            self.fine = Detail(kept, before=channels[0], patch=patch, width=detail, groups=norm_groups)

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
        """Features of each image: float (B, 3, image_size, image_size) -> a map at the denoiser's width for each of its levels that has one, then,
        if there is a `Detail` stage, (B, detail, mask_size, mask_size) for it, and, if there is an `ImageUNet`, its logits of the first layers, (B, layers,
        mask_size, mask_size)."""
        size = self.config["image_size"]
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[-2:] != (size, size):
            raise ValueError(
                f"image must have shape (B, 3, {size}, {size}), got {tuple(image.shape)}: "
                "bring it to the model's size with sas.geometry.Geometry"
            )
        found = self.image_encoder(image)
        levels = gathered(self.places, self.necks, found)
        maps = [levels[level] for level in sorted(levels)]
        if self.fuse is not None:
            maps = self.fuse(maps)
        if self.look is not None:
            maps, finest = self.look(image, found, maps)
            found = [*found, finest]
        if self.fine is not None:
            maps = [*maps, self.fine.encode([found[number] for number in self.fine_maps])]
        if self.look is not None:
            guess = self.look.guess(finest)
            maps = [*maps, functional.avg_pool2d(guess, guess.shape[-1] // self.config["mask_size"])]
        return tuple(maps)

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, cumulative: torch.Tensor, features: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """See `sas.models.seam.MaskDenoiser`; channels of the output: mask, stop."""
        patch = self.config["patch"]
        numbers = sorted({level for level, _ in self.places})
        given = dict(zip(numbers, features[: len(numbers)], strict=True))
        time = self.time[1](self.time[0](timestep).to(noisy.dtype))
        h = self.stem(functional.pixel_unshuffle(torch.cat([noisy, cumulative], dim=1), patch))
        if self.ahead is not None:
            # The guess has its own loss, of all layers at once; what is made of one of them here shall not move it.
            logits, agreement = (one.to(noisy.dtype) for one in next_guessed(features[-1].detach(), cumulative))
            h = h + self.ahead.enter(logits, agreement)
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
        h = functional.silu(self.norm(h))
        mask = functional.pixel_shuffle(self.head(h), patch)
        if self.ahead is not None:
            mask = mask + self.ahead(h, logits, agreement)
        if self.fine is not None:
            mask = mask + self.fine(h, noisy, cumulative, features[len(numbers)])
        stop = self.stop(reduce(functional.silu(deep), "m c h w -> m c", "mean"))
        return torch.cat([mask, repeat(stop, "m 1 -> m 1 h w", h=mask.shape[-2], w=mask.shape[-1])], dim=1)


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
