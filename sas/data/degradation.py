"""Pictures as a worse camera, or a website, would give them: out of focus, of fewer pixels, noisy, packed as JPEG.

Composed pictures are clean, and a network that has seen no others takes the pixels of noise and of JPEG's blocks for things. The kinds are
those of Wang et al., "Real-ESRGAN", ICCVW 2021; each has a strength of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch.nn import functional

from sas.data.augment import as_jpeg
from sas.seeding import Keys

BLUR, FEWEST, NOISE, JPEG = 2.5, 0.35, 0.08, (95.0, 25.0)
"""At full strength: standard deviation of the blur, pixels of a picture of 256; the side's share that is left when it is made smaller, before
it is made as large as it was; standard deviation of the noise, white being 1; quality of the JPEG code, at no strength and at full."""


def degrade(image: torch.Tensor, keys: Keys, *, share: float, one_by_one: bool = True) -> torch.Tensor:
    """Some pictures degraded in place, each in about two of the four ways, the others left as they are.

    image: float (B, 3, S, S) in [0, 1], one a key. share: of the pictures that are degraded, in [0, 1]. one_by_one: which a CPU keeps
    in its cache; otherwise all at once, for a GPU, with a JPEG code that runs there and keeps nearly the same. Returns `image`.
    """
    drawn = keys.uniform("degradation", 5)
    rows = torch.where(drawn[:, 0] < share)[0].tolist()
    strength = (drawn[:, 1:] - 0.5).clamp(min=0) * 2
    for some in [[row] for row in rows] if one_by_one or not rows else [rows]:
        named = [keys.at([keys.positions[row]]) for row in some]
        image[some] = _degraded(image[some], named, strength[some], pack=_in_files if one_by_one else _in_codec)
    return image


def _degraded(
    pictures: torch.Tensor,
    keys: Sequence[Keys],
    strength: torch.Tensor,
    *,
    pack: Callable[[torch.Tensor, list[int]], torch.Tensor],
) -> torch.Tensor:
    """Pictures float (K, 3, S, S), one a key, by strengths (K, 4) in [0, 1]: blur, fewer pixels, noise, JPEG."""
    side, device = pictures.shape[-1], pictures.device
    worse = pictures.clamp(0, 1)
    if strength[:, :2].any():
        lens = torch.stack([_lens(side, blur, fewer) for blur, fewer in strength[:, :2].tolist()])[:, None].to(device)
        worse = lens @ worse @ lens.mT
    for picture, key, noise in zip(worse, keys, strength[:, 2].tolist(), strict=True):
        if noise:
            picture.add_(key.normal("speckle", 3, side, side)[0].to(device), alpha=NOISE * noise)
    worse.clamp_(0, 1)
    packed = torch.where(strength[:, 3] > 0)[0].tolist()
    if packed:
        quality = [round(JPEG[0] + (JPEG[1] - JPEG[0]) * value) for value in strength[packed, 3].tolist()]
        worse[packed] = pack(worse[packed], quality)
    return worse


def _in_files(pictures: torch.Tensor, quality: list[int]) -> torch.Tensor:
    """float (K, 3, S, S) in [0, 1] -> the same as JPEG files of these qualities keep them, made on the CPU."""
    pixels = rearrange((pictures * 255).round().byte(), "k c h w -> k h w c").cpu().numpy()
    kept = [np.array(as_jpeg(Image.fromarray(one), value)) for one, value in zip(pixels, quality, strict=True)]
    return rearrange(torch.from_numpy(np.stack(kept)), "k h w c -> k c h w").to(pictures.device).float() / 255


@torch.no_grad()
def _in_codec(pictures: torch.Tensor, quality: list[int]) -> torch.Tensor:
    """Nearly the same, on the device of the pictures."""
    from kornia.enhance import jpeg_codec_differentiable

    return jpeg_codec_differentiable(pictures, torch.tensor(quality, device=pictures.device).float()).clamp(0, 1)


def _lens(side: int, blur: float, fewer: float) -> torch.Tensor:
    """Blur, and fewer pixels made as many as before, along one axis, as a matrix: float (side, side); rows sum to one. Strengths in [0, 1]."""
    lens = torch.eye(side)
    if blur > 0:
        deviation = BLUR * blur * side / 256
        apart = torch.arange(1 - side, side)
        # Farther out a share is below one in a million, and a product of matrices takes 15 times as long over denormal numbers.
        profile = torch.where(apart.abs() <= 6 * deviation, (-(apart**2) / (2 * deviation**2)).exp(), 0)
        lens = profile.unfold(0, side, 1).flip(0)
        lens = lens / lens.sum(dim=1, keepdim=True)
    small = max(1, round(side * (1 - (1 - FEWEST) * fewer)))
    if small < side:
        columns = functional.interpolate(lens.T[None], size=small, mode="area")
        lens = functional.interpolate(columns, size=side, mode="linear")[0].T
    return lens
