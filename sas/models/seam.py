"""The contract between a network and everything that uses one."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import torch

Features: TypeAlias = "torch.Tensor | tuple[Features, ...]"
"""What `encode` returns: a tensor with the batch first, or a nest of tuples of them."""


class MaskDenoiser(Protocol):
    """A conditional denoiser of masks. Rows of all arguments correspond.

    config: if it is a mapping with "image_size" and "mask_size", or "size" for both, a pipeline's own must be the same.
    """

    config: Any
    training: bool

    def encode(self, image: torch.Tensor) -> Features:
        """Float (B, 3, H, W) in [-1, 1] -> features of each image, to be reused for all its layers, steps and members."""
        ...

    def __call__(
        self, noisy: torch.Tensor, timestep: torch.Tensor, cumulative: torch.Tensor, features: Features
    ) -> torch.Tensor:
        """One denoising step.

        noisy: float (M, 1, h, w). timestep: int64 (M,). cumulative: float (M, 1, h, w) in {-1, 1}, 1 where a layer was found.
        features: rows selected to M. Returns float (M, C, h, w): channel 0 is the mask's.
        """
        ...


def select_rows(features: Features, index: torch.Tensor) -> Features:
    """Rows `index` (int64, (M,)) of features, wherever in the nest the tensors lie."""
    if isinstance(features, torch.Tensor):
        return features.index_select(0, index)
    return tuple(select_rows(part, index) for part in features)
