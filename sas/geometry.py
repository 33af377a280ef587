"""The one place that resizes: from the input's pixels to the model's square grid, and back.

The image keeps its aspect ratio: it is scaled so that its longer side fills the square, centred, and padded with mid grey
(0 in [-1, 1]), which carries no object.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch.nn import functional

PADDING_VALUE = 127  # uint8; the mid grey around an image that is not square


def in_unit_range(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 (...) -> float32 (...) in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


@dataclass(frozen=True)
class Geometry:
    """Where the input lies on the model's grid. All lengths in pixels.

    height, width: of the input. size: side of the model's square image. mask_size: side of the model's square mask.
    top, left, scaled_height, scaled_width: the rectangle of the image grid that the input fills.
    """

    height: int
    width: int
    size: int
    mask_size: int
    top: int
    left: int
    scaled_height: int
    scaled_width: int

    @classmethod
    def fit(cls, *, height: int, width: int, size: int, mask_size: int) -> Geometry:
        """Letterbox an input of (height, width) into a square of `size`."""
        for name, value in (("height", height), ("width", width), ("size", size), ("mask_size", mask_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1 pixel, got {value}: pass the image's true size")
        scale = size / max(height, width)
        scaled_height, scaled_width = max(1, round(height * scale)), max(1, round(width * scale))
        return cls(
            height=height,
            width=width,
            size=size,
            mask_size=mask_size,
            top=(size - scaled_height) // 2,
            left=(size - scaled_width) // 2,
            scaled_height=scaled_height,
            scaled_width=scaled_width,
        )

    def to_model(self, image: np.ndarray) -> torch.Tensor:
        """Input image on the model's grid: uint8 (height, width, 3) RGB -> float32 (3, size, size) in [-1, 1]."""
        return in_unit_range(torch.from_numpy(self.pixels(image)))

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """Input image on the model's grid, not yet as numbers for a network: uint8 (height, width, 3) RGB -> uint8 (3, size, size)."""
        if image.shape != (self.height, self.width, 3) or image.dtype != np.uint8:
            raise ValueError(
                f"image must be uint8 of shape ({self.height}, {self.width}, 3), got {image.dtype} {image.shape}: "
                "make a Geometry for this image with Geometry.fit"
            )
        scaled = Image.fromarray(image).resize(
            (self.scaled_width, self.scaled_height), Image.Resampling.BILINEAR, reducing_gap=3.0
        )
        canvas = np.full((self.size, self.size, 3), PADDING_VALUE, dtype=np.uint8)
        canvas[self.top : self.top + self.scaled_height, self.left : self.left + self.scaled_width] = np.asarray(scaled)
        return np.ascontiguousarray(rearrange(canvas, "h w c -> c h w"))

    def to_input(self, maps: torch.Tensor | np.ndarray) -> np.ndarray:
        """Maps on the mask grid brought to the input's frame: (..., mask_size, mask_size) -> (..., height, width).

        Float maps come back as float32, resampled bilinearly, or by area where the input has fewer pixels than the grid has cells; bool
        masks as bool, resampled and cut at one half.
        """
        values = maps.cpu() if isinstance(maps, torch.Tensor) else torch.from_numpy(np.array(maps))  # may be read-only
        if values.shape[-2:] != (self.mask_size, self.mask_size):
            raise ValueError(
                f"maps must end in ({self.mask_size}, {self.mask_size}), got {tuple(values.shape)}: "
                "pass maps at the model's mask resolution"
            )
        is_mask = values.dtype == torch.bool
        lead = values.shape[:-2]
        flat = values.reshape(-1, 1, self.mask_size, self.mask_size).float()
        resized = [self._resample(row[None]) for row in flat]
        full = torch.cat(resized) if resized else flat.new_zeros(0, 1, self.height, self.width)
        result = full.reshape(*lead, self.height, self.width)
        return (result > 0.5).numpy() if is_mask else result.clamp(0, 1).numpy()

    def _resample(self, row: torch.Tensor) -> torch.Tensor:
        """(1, 1, mask_size, mask_size) -> (1, 1, height, width) by sampling the rectangle that the input fills."""
        if max(self.height, self.width) < self.mask_size:
            heights = self._shown(self.height, self.top, self.scaled_height)
            widths = self._shown(self.width, self.left, self.scaled_width)
            weights = [torch.from_numpy(shown / shown.sum(axis=0)).float() for shown in (heights, widths)]
            return weights[0].T @ row @ weights[1]
        ys = (self.top + (torch.arange(self.height) + 0.5) * self.scaled_height / self.height) / self.size * 2 - 1
        xs = (self.left + (torch.arange(self.width) + 0.5) * self.scaled_width / self.width) / self.size * 2 - 1
        # Not beyond the middle of the first and last cell that show the input: the bars beside them hold nothing to mix in.
        rows, columns = (np.flatnonzero(shares.sum(axis=1) > 0) for shares in self._both_shares())
        (low_y, high_y), (low_x, high_x) = (
            ((cells[0] + 0.5) / self.mask_size * 2 - 1, (cells[-1] + 0.5) / self.mask_size * 2 - 1)
            for cells in (rows, columns)
        )
        ys, xs = ys.clamp(low_y, high_y), xs.clamp(low_x, high_x)
        grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)[None].float()
        return functional.grid_sample(row, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def masks_to_model(self, masks: np.ndarray) -> np.ndarray:
        """Full-size masks on the mask grid: bool (N, height, width) -> bool (N, mask_size, mask_size).

        A cell is set where the mask covers more than half of what the cell shows of the input.
        """
        if masks.shape[-2:] != (self.height, self.width):
            raise ValueError(
                f"masks must end in ({self.height}, {self.width}), got {masks.shape}: use the image's own frame"
            )
        rows, columns = self._both_shares()
        result = np.zeros((len(masks), self.mask_size, self.mask_size), dtype=bool)
        for i, mask in enumerate(masks):
            covered = rows @ mask.astype(np.float32) @ columns.T
            result[i] = covered > 0.5 + 1e-5  # exactly one half may come out a little above
        return result

    def known(self) -> np.ndarray:
        """Cells of the mask grid that show some of the input: bool (mask_size, mask_size)."""
        rows, columns = self._both_shares()
        return (rows.sum(axis=1) > 0)[:, None] & (columns.sum(axis=1) > 0)

    def _both_shares(self) -> tuple[np.ndarray, np.ndarray]:
        rows = self._shares(self.height, self.top, self.scaled_height)
        return rows, self._shares(self.width, self.left, self.scaled_width)

    def _shares(self, length: int, start: int, scaled: int) -> np.ndarray:
        """Share that each line of the input has in what each line of the mask grid shows of it, float32 (mask_size, length)."""
        shown = self._shown(length, start, scaled)
        total = shown.sum(axis=1, keepdims=True)
        return np.where(total > 1e-6, shown / np.maximum(total, 1e-6), 0).astype(np.float32)

    def _shown(self, length: int, start: int, scaled: int) -> np.ndarray:
        """How much of each line of the input each line of the mask grid shows, in lines of the grid, float64 (mask_size, length)."""
        ends = (start + np.arange(length + 1) * (scaled / length)) * (self.mask_size / self.size)
        cell = np.arange(self.mask_size)[:, None]
        shown: np.ndarray = np.clip(np.minimum(ends[1:], cell + 1) - np.maximum(ends[:-1], cell), 0, None)
        return shown

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
