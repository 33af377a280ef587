"""The paper's network: one UNet over the channels [R, G, B, cumulative, noisy mask].

The blocks are those of guided diffusion in diffusers' `UNet2DModel`. Nothing is encoded ahead: the features are the image itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch.nn import functional

from sas.storage import StoredSmall


class ConcatUNet(StoredSmall, ModelMixin, ConfigMixin):
    """UNet denoiser that sees image, cumulative mask and noisy mask as channels of one input.

    size: side of image and mask, pixels. channels: width of each level; each level after the first halves the resolution.
    blocks: residual blocks a level. attention_sizes: resolutions of the UNet's own maps at which attention runs (and in the
    middle, if `middle_attention`). heads: output channels after the mask's, for example 1 for a learned variance.
    patch: side of the pixel blocks folded into channels at the input and unfolded at the output; 1 is the paper's.
    dropout: 0 in the paper, and 0 wherever exact resume matters.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        *,
        size: int = 64,
        channels: Sequence[int] = (128, 256, 384, 512),
        blocks: int = 2,
        attention_sizes: Sequence[int] = (16,),
        middle_attention: bool = True,
        heads: int = 1,
        patch: int = 1,
        norm_groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        side = size // patch
        if size % patch or side % 2 ** (len(channels) - 1):
            raise ValueError(
                f"size must be divisible by patch x 2^(levels - 1) = {patch * 2 ** (len(channels) - 1)}, got {size}: "
                "change size, patch or the number of channels"
            )
        with_attention = [side // 2**level in set(attention_sizes) for level in range(len(channels))]
        self.unet = UNet2DModel(
            sample_size=side,
            in_channels=5 * patch**2,
            out_channels=(1 + heads) * patch**2,
            layers_per_block=blocks,
            block_out_channels=tuple(channels),
            down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in with_attention),
            up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(with_attention)),
            add_attention=middle_attention,
            attention_head_dim=None,  # one head as wide as the level, as in the paper
            norm_num_groups=norm_groups,
            dropout=dropout,
        )

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """The image itself: float (B, 3, size, size)."""
        size = self.config["size"]
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[-2:] != (size, size):
            raise ValueError(
                f"image must have shape (B, 3, {size}, {size}), got {tuple(image.shape)}: "
                "bring it to the model's size with sas.geometry.Geometry"
            )
        return image

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, cumulative: torch.Tensor, features: torch.Tensor
    ) -> torch.Tensor:
        """See `sas.models.seam.MaskDenoiser`."""
        patch = self.config["patch"]
        conditioned = torch.cat([features, cumulative, noisy], dim=1)
        output = self.unet(functional.pixel_unshuffle(conditioned, patch), timestep, return_dict=False)[0]
        return functional.pixel_shuffle(output, patch)
