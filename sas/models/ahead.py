"""What a denoiser makes of all layers guessed at once: it is shown the one that comes next, and decides how far to trust it."""

from __future__ import annotations

import torch
from einops import rearrange, reduce, repeat
from torch import nn
from torch.nn import functional

from sas.models.fusion import zeroed


def next_guessed(guess: torch.Tensor, cumulative: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first guessed layer that a cumulative mask does not hold yet.

    guess: logits of the first layers, float (M, K, h, w). cumulative: (M, 1, h, w), positive where a layer has been found. A guessed layer counts
    as found if those before it do and more than half of what it shows beyond them is covered.
    Returns the layer's logits, float (M, 1, h, w), 0 where all are found, and the IoU of the layers found with the cumulative mask,
    float (M, 1, 1, 1) in [0, 1]: how much the guess and what has been found speak of the same layers.
    """
    covered = rearrange(cumulative > 0, "m 1 h w -> m h w")
    front = torch.zeros_like(covered)
    found = repeat(torch.ones_like(covered[:, 0, 0]), "m -> m 1 1")
    chosen = torch.zeros_like(guess[:, 0])
    for logits in guess.unbind(dim=1):
        shown = (logits > 0) & ~front
        taken = reduce((shown & covered).float() - 0.5 * shown.float(), "m h w -> m 1 1", "sum") > 0
        chosen = torch.where(found & ~taken, logits, chosen)
        found = found & taken
        front = front | (shown & found)
    both = reduce((front & covered).float(), "m h w -> m 1 1 1", "sum")
    either = reduce((front | covered).float(), "m h w -> m 1 1 1", "sum")
    return rearrange(chosen, "m h w -> m 1 h w"), (both + 1) / (either + 1)


class Ahead(nn.Module):
    """Shows a denoiser the guessed layer that comes next at its input, and adds it to its output as far as it says.

    channels: width of the denoiser's first level. patch: side of the mask's blocks at each of its positions. Before training nothing is added.
    """

    def __init__(self, channels: int, *, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.hint = zeroed(nn.Conv2d(2 * patch**2, channels, 3, padding=1))
        self.trust = zeroed(nn.Conv2d(channels, patch**2, 3, padding=1))

    def enter(self, logits: torch.Tensor, agreement: torch.Tensor) -> torch.Tensor:
        """What to add to the denoiser's first map, float (M, channels, h / patch, w / patch)."""
        seen = torch.cat([2 * logits.sigmoid() - 1, agreement.expand_as(logits)], dim=1)
        return self.hint(functional.pixel_unshuffle(seen, self.patch))

    def forward(self, h: torch.Tensor, logits: torch.Tensor, agreement: torch.Tensor) -> torch.Tensor:
        """What to add to mask logits, float (M, 1, h, w), by the denoiser's last map (M, channels, h / patch, w / patch)."""
        return functional.pixel_shuffle(self.trust(h), self.patch) * agreement * logits.clamp(-8, 8)
