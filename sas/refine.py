"""Masks with the picture's own edges: what of a mask is seen follows the image, what is hidden stays smooth.

Masks come from a coarse grid, so their outlines are off by up to a cell. Where an object is seen, the picture shows the true outline,
and a guided filter (He, Sun, Tang: Guided Image Filtering, TPAMI 2013) moves the mask's edge onto it. Behind other objects the picture
shows their outlines and not this one's, so there the mask stays as it was resampled.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch.nn import functional

from sas.masks import check_shape

RADIUS_CELLS = 2.5
EPS = 1e-5
FINEST_CELL = 4
LARGEST = 1536
"""Radius of the filter's window in cells of the mask grid, and its `eps`, chosen on composed scenes of validation seeds
(benchmarks/upsampling.py). Cells of more pixels than FINEST_CELL are filtered on a thinned grid, and pictures with a longer side than
LARGEST are refined at that size, so that neither time nor memory grows without bound."""


def working_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which a picture is refined: its own, or scaled so that the longer side is LARGEST."""
    scale = min(1.0, LARGEST / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class RefineError(ImportError):
    """The library that refines masks is not installed."""


def refine(
    probabilities: np.ndarray,
    image: np.ndarray,
    *,
    cell: float,
    radius: float = RADIUS_CELLS,
    eps: float = EPS,
) -> np.ndarray:
    """Masks of layers with sharp edges: `refine_soft(...)` cut at one half, bool (K, H, W)."""
    return refine_soft(probabilities, image, cell=cell, radius=radius, eps=eps) > 0.5


def refine_soft(
    probabilities: np.ndarray,
    image: np.ndarray,
    *,
    cell: float,
    radius: float = RADIUS_CELLS,
    eps: float = EPS,
) -> np.ndarray:
    """Soft masks of layers, front to back, with the image's edges where they are seen: float32 (K, H, W) in [0, 1].

    probabilities: bool or float (K, H, W) in [0, 1], amodal, in the image's frame (`Geometry.to_input` brings them there); a bool
    mask counts as 0 and 1. image: uint8 (H, W, 3) RGB. cell: pixels a cell of the grid that the maps come from, above 0.
    radius: of the filter's window in cells, above 0. eps: variance of the image, in units of [0, 1] squared, below which a window
    counts as flat, above 0.

    The visible part of layer k is v_k = p_k (1 - c_k), c_k being the largest p before it. With G the guided filter and c'_k the
    largest refined mask before k, the refined mask is G(v_k) + c'_k p_k: the filtered part where it is seen, p_k where it is hidden,
    and in between a blend as soft as the occluder's own edge. Where the window is flat there is no edge to follow, so the filter's
    answer is weighted by s / (s + eps), s the image's variance in it, and a plain picture changes nothing.
    """
    size = _check_inputs(probabilities, image, cell, radius, eps)
    maps = torch.from_numpy(probabilities.astype(np.float32))
    if not size["k"] or not maps.any():
        return maps.numpy()
    height, width = working_size(size["h"], size["w"])
    if (height, width) != (size["h"], size["w"]):
        scale = max(height, width) / max(size["h"], size["w"])
        few = functional.interpolate(maps[None], size=(height, width), mode="area")[0].numpy()
        small = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))
        found = torch.from_numpy(refine_soft(few, small, cell=cell * scale, radius=radius, eps=eps))
        return functional.interpolate(found[None], size=(size["h"], size["w"]), mode="bilinear")[0].numpy()
    guide = rearrange(torch.from_numpy(image.astype(np.float32)), "h w c -> 1 c h w") / 255
    guide = guide - guide.mean(dim=(-2, -1), keepdim=True)  # variances of float32 lose digits far from zero
    shown = _guided(_visible_parts(maps), guide, reach=max(1, round(radius * cell)), cell=cell, eps=eps)

    covered, refined = torch.zeros_like(maps[0]), torch.empty_like(maps)
    for k, (part, whole) in enumerate(zip(shown, maps, strict=True)):
        refined[k] = (part + covered * whole).clamp(0, 1)
        covered = torch.maximum(covered, refined[k])
    return refined.numpy()


def require() -> ModuleType:
    """kornia.filters; RefineError, which says what to install, where it is missing."""
    try:
        import kornia.filters  # takes a second, so only when it is needed
    except ImportError as error:
        raise RefineError(
            'refine needs the package kornia, which is not installed: pip install "kornia>=0.9", or pass refine=False'
        ) from error
    return kornia.filters


def _visible_parts(maps: torch.Tensor) -> torch.Tensor:
    """p_k (1 - max of p before k): (K, H, W) -> (K, H, W)."""
    before = torch.cat([torch.zeros_like(maps[:1]), maps.cummax(dim=0).values[:-1]])
    return maps * (1 - before)


def _guided(maps: torch.Tensor, guide: torch.Tensor, *, reach: int, cell: float, eps: float) -> torch.Tensor:
    """Guided filter of (K, H, W) maps, with a window of 2 reach + 1 pixels, mixed with the maps where the image is flat."""
    filters = require()
    thinned = max(1, int(cell // FINEST_CELL))
    # Reflection needs a window smaller than the picture; repeating the border pixel does not.
    answer = filters.guided_blur(
        guide, maps[None], 2 * reach + 1, eps, border_type="replicate", subsample=thinned, separable=True
    )[0]
    few = guide[:, :, ::thinned, ::thinned]
    window = {"kernel_size": 2 * (reach // thinned) + 1, "border_type": "replicate", "separable": True}
    variance = (filters.box_blur(few.square(), **window) - filters.box_blur(few, **window).square()).sum(
        dim=1, keepdim=True
    )
    trust = functional.interpolate(variance / (variance + eps), size=maps.shape[-2:], mode="bilinear")[0]
    return maps + (answer - maps) * trust.clamp(0, 1)


def _check_inputs(
    probabilities: np.ndarray, image: np.ndarray, cell: float, radius: float, eps: float
) -> dict[str, int]:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        got = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"image must be a uint8 array (H, W, 3), got {got}: read it with sas.pictures.read_image")
    size = check_shape(image, "h w 3", name="image")
    if not isinstance(probabilities, np.ndarray) or probabilities.dtype.kind not in "bf":
        got = probabilities.dtype if isinstance(probabilities, np.ndarray) else type(probabilities).__name__
        raise ValueError(f"probabilities must be a bool or float array (K, H, W), got {got}: pass values in [0, 1]")
    if probabilities.ndim != 3 or probabilities.shape[1:] != image.shape[:2]:
        raise ValueError(
            f"probabilities must have shape (K, {size['h']}, {size['w']}) like the image, got {probabilities.shape}: "
            "bring them to the image's frame with Geometry.to_input"
        )
    if probabilities.size and not (probabilities.min() >= 0 and probabilities.max() <= 1):  # NaN is not inside either
        raise ValueError(
            f"probabilities must lie in [0, 1], got [{probabilities.min():g}, {probabilities.max():g}]: apply the sigmoid first"
        )
    cures = {"cell": "pass the image's side / the grid's side", "radius": "pass 2.5", "eps": "pass 1e-5"}
    for (name, cure), value in zip(cures.items(), (cell, radius, eps), strict=True):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be a positive number, got {value!r}: {cure}")
    return {**size, "k": len(probabilities)}
