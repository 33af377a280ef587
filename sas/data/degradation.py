"""Pictures as a worse camera, or a website, would give them: out of focus, of fewer pixels, noisy, packed as JPEG.

Composed pictures are clean, and a network that has seen no others takes the pixels of noise and of JPEG's blocks for things. The kinds are
those of Wang et al., "Real-ESRGAN", ICCVW 2021; each has a strength of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    strength = (drawn[rows, 1:] - 0.5).clamp(min=0) * 2
    named = [keys.at([keys.positions[row]]) for row in rows]
    if one_by_one:
        for row, ways, key in zip(rows, strength.tolist(), named, strict=True):
            _degrade_one(image[row], key, *ways)
    elif rows:
        image[rows] = _degraded_together(image[rows], named, strength)
    return image


def _degrade_one(picture: torch.Tensor, key: Keys, blur: float, fewer: float, noise: float, packed: float) -> None:
    """A picture, float (3, S, S), in place, by strengths in [0, 1]."""
    side = picture.shape[-1]
    picture.clamp_(0, 1)
    if blur or fewer:
        lens = _lens(side, blur, fewer).to(picture.device)
        picture.copy_(lens @ picture @ lens.mT)
    if noise:
        picture.add_(key.normal("speckle", 3, side, side)[0].to(picture.device), alpha=NOISE * noise)
    picture.clamp_(0, 1)
    if packed:
        picture.copy_(_packed(picture, quality=_quality(packed)))


@torch.no_grad()
def _degraded_together(pictures: torch.Tensor, keys: Sequence[Keys], strength: torch.Tensor) -> torch.Tensor:
    """The same of float (K, 3, S, S), one a key, by strengths (K, 4), on the device of the pictures."""
    from kornia.enhance import jpeg_codec_differentiable

    side, device = pictures.shape[-1], pictures.device
    lens = torch.stack([_lens(side, blur, fewer) for blur, fewer in strength[:, :2].tolist()]).to(device)[:, None]
    worse = lens @ pictures.clamp(0, 1) @ lens.mT
    noisy = torch.where(strength[:, 2] > 0)[0].tolist()
    if noisy:
        grain = torch.cat([keys[row].normal("speckle", 3, side, side) for row in noisy])
        worse[noisy] += (NOISE * strength[noisy, 2, None, None, None] * grain).to(device)
    worse.clamp_(0, 1)
    packed = torch.where(strength[:, 3] > 0)[0].tolist()
    if packed:
        quality = torch.tensor([float(_quality(value)) for value in strength[packed, 3].tolist()], device=device)
        worse[packed] = jpeg_codec_differentiable(worse[packed], quality).clamp(0, 1)
    return worse


def _quality(strength: float) -> int:
    return round(JPEG[0] + (JPEG[1] - JPEG[0]) * strength)


def _packed(picture: torch.Tensor, *, quality: int) -> torch.Tensor:
    """float (3, S, S) in [0, 1] -> the same as JPEG keeps it, on the CPU."""
    pixels = rearrange((picture * 255).round().byte(), "c h w -> h w c").cpu().numpy()
    kept = np.array(as_jpeg(Image.fromarray(pixels), quality))
    return rearrange(torch.from_numpy(kept), "h w c -> c h w").float() / 255


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
