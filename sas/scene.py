"""Ground truth: one scene, and a padded batch of scenes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from sas.geometry import Geometry, in_unit_range
from sas.masks import area, check_mask, check_shape, cumulative, layer_masks, overlap_areas, visible
from sas.order import (
    DEFAULT_MIN_OVERLAP,
    LayerAssignment,
    contested_area,
    layers_from_order,
    significant_order,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Scene:
    """One picture with the complete mask of every object and who occludes whom.

    image: uint8 (H, W, 3) RGB.
    amodal_masks: bool (N, H, W), in the image's frame; parts outside the frame are unknown to the scene.
    order_matrix: bool (N, N), [i, j] True iff i is in front of j where they overlap, both directions possible; None if unknown.
    visible_masks: bool (N, H, W) if the source gives them, else None: then they follow from the order.
    names: one a object. alternatives: further true amodal masks of the same visible picture, each bool (N, H, W).
    min_overlap: i occludes j only if they share more than this fraction of j's amodal area.
    dropped: objects that were removed because no pixel of them is visible; of composed scenes also those that showed too little to be asked for.
    known: bool (H, W), True where the masks say the truth; None: everywhere. complete: False if the picture shows objects that are
    not listed, so that nobody may learn from it that nothing is left.
    """

    image: np.ndarray
    amodal_masks: np.ndarray
    order_matrix: np.ndarray | None
    names: tuple[str, ...] = ()
    id: str = "scene"
    visible_masks: np.ndarray | None = None
    alternatives: tuple[np.ndarray, ...] = ()
    min_overlap: float = DEFAULT_MIN_OVERLAP
    source: str = ""
    dropped: int = 0
    known: np.ndarray | None = None
    complete: bool = True

    def __post_init__(self) -> None:
        if self.image.dtype != np.uint8:
            raise ValueError(
                f"image must be uint8 RGB, got {self.image.dtype}: multiply a [0, 1] image by 255 and round"
            )
        size = check_shape(self.image, "h w 3", name="image")
        check_mask(self.amodal_masks, name="amodal_masks")
        count = check_shape(self.amodal_masks, "n h w", name="amodal_masks", h=size["h"], w=size["w"])["n"]
        if self.order_matrix is not None:
            check_mask(self.order_matrix, name="order_matrix")
            check_shape(self.order_matrix, "n m", name="order_matrix", n=count, m=count)
        if self.visible_masks is not None:
            check_mask(self.visible_masks, name="visible_masks")
            check_shape(self.visible_masks, "n h w", name="visible_masks", n=count, **{k: size[k] for k in ("h", "w")})
        for masks in self.alternatives:
            check_mask(masks, name="alternatives")
            check_shape(masks, "n h w", name="alternatives", n=count, **{k: size[k] for k in ("h", "w")})
        if self.known is not None:
            check_mask(self.known, name="known")
            check_shape(self.known, "h w", name="known", **{k: size[k] for k in ("h", "w")})
        if not self.names:
            object.__setattr__(self, "names", tuple(f"object {i}" for i in range(count)))
        if len(self.names) != count:
            raise ValueError(
                f"names must have one entry for each of {count} objects, got {len(self.names)}: add or remove names"
            )

    @property
    def height(self) -> int:
        return self.image.shape[0]

    @property
    def width(self) -> int:
        return self.image.shape[1]

    def __len__(self) -> int:
        return len(self.amodal_masks)

    @cached_property
    def visible(self) -> np.ndarray:
        """Visible part of each object, bool (N, H, W): as given, or from the order."""
        if self.visible_masks is not None:
            return self.visible_masks
        return visible(self.amodal_masks, self._known_order())

    @cached_property
    def occlusion(self) -> np.ndarray:
        """The order's edges that count under `min_overlap`, bool (N, N)."""
        return significant_order(self._known_order(), self.amodal_masks, min_overlap=self.min_overlap)

    @cached_property
    def assignment(self) -> LayerAssignment:
        """Layers of the objects, and the edges cut to break cycles."""
        assignment = layers_from_order(self.occlusion, weights=lambda: contested_area(self.amodal_masks, self.visible))
        if assignment.cut_edges:
            logger.info(
                "scene %s: cut %d edges of cycles: %s", self.id, len(assignment.cut_edges), assignment.cut_edges
            )
        return assignment

    @property
    def layer_index(self) -> np.ndarray:
        """(N,) int64, 0 = nobody in front."""
        return self.assignment.layer_index

    @cached_property
    def layer_masks(self) -> np.ndarray:
        """Union of the objects of each layer, bool (K, H, W)."""
        return layer_masks(self.amodal_masks, self.layer_index)

    @property
    def cumulative_masks(self) -> np.ndarray:
        """Union of the layers before k, bool (K + 1, H, W)."""
        return cumulative(self.layer_masks)

    def drop_invisible(self) -> Scene:
        """The scene without objects that show no pixel; `dropped` counts them."""
        if self.order_matrix is None and self.visible_masks is None:
            return self
        seen = area(self.visible) > 0
        if seen.all():
            return self
        logger.info("scene %s: dropped %d objects without a visible pixel", self.id, int((~seen).sum()))
        return self.keep(seen)

    def keep(self, kept: np.ndarray) -> Scene:
        """The scene of some of its objects, bool (N,); `dropped` counts the others."""
        return replace(
            self,
            amodal_masks=self.amodal_masks[kept],
            order_matrix=None if self.order_matrix is None else self.order_matrix[np.ix_(kept, kept)],
            visible_masks=None if self.visible_masks is None else self.visible_masks[kept],
            names=tuple(name for name, stays in zip(self.names, kept, strict=True) if stays),
            alternatives=tuple(masks[kept] for masks in self.alternatives),
            dropped=self.dropped + int((~kept).sum()),
        )

    def _known_order(self) -> np.ndarray:
        if self.order_matrix is None:
            raise ValueError(
                f"order_matrix of scene {self.id!r} is unknown, so it has no layers: "
                "use order-free metrics, or give the order of its objects"
            )
        return self.order_matrix


@dataclass(frozen=True, eq=False)
class SceneBatch:
    """Scenes at model resolution, padded to the same number N of objects.

    image: float32 (B, 3, H, W) in [-1, 1]. amodal_masks: bool (B, N, h, w). counts: int64 (B,), objects before the padding.
    layer_index: int64 (B, N), -1 where padded. order_matrix: bool (B, N, N), the edges that count.
    known: bool (B, 1, h, w), True where the truth is known (False on letterbox padding). ids: one a scene.
    alternatives: None, or bool (B, A, N, h, w): further true amodal masks of the same visible picture.
    complete: None if every scene lists all its objects, else bool (B,), see `Scene`.
    inside: bool (B, 1, h, w), the pictures without their grey bars; None where that is `known`, as in scenes that list all their objects.
    """

    image: torch.Tensor
    amodal_masks: torch.Tensor
    counts: torch.Tensor
    layer_index: torch.Tensor
    order_matrix: torch.Tensor
    known: torch.Tensor
    ids: tuple[str, ...] = field(default=())
    alternatives: torch.Tensor | None = None
    complete: torch.Tensor | None = None
    inside: torch.Tensor | None = None

    def __post_init__(self) -> None:
        b = check_shape(self.image, "b 3 h w", name="image")["b"]
        n = check_shape(self.amodal_masks, "b n h w", name="amodal_masks", b=b)["n"]
        check_shape(self.counts, "b", name="counts", b=b)
        check_shape(self.layer_index, "b n", name="layer_index", b=b, n=n)
        check_shape(self.order_matrix, "b n m", name="order_matrix", b=b, n=n, m=n)
        check_shape(self.known, "b 1 h w", name="known", b=b)
        if self.complete is not None:
            check_mask(self.complete, name="complete")
            check_shape(self.complete, "b", name="complete", b=b)
        if self.inside is not None:
            check_shape(self.inside, "b 1 h w", name="inside", b=b)

    def __len__(self) -> int:
        return len(self.image)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> SceneBatch:
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SceneBatch:
        """A copy in page-locked memory, from which a GPU copies while the CPU goes on."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> SceneBatch:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        changed: dict[str, Any] = {name: change(value) for name, value in tensors.items()}
        return replace(self, **changed)

    @property
    def layer_counts(self) -> torch.Tensor:
        """Number of layers of each scene, int64 (B,)."""
        if not self.layer_index.shape[1]:
            return torch.zeros_like(self.counts)
        return self.layer_index.amax(dim=1) + 1

    @property
    def item_counts(self) -> torch.Tensor:
        """Training items of each scene, int64 (B,): its layers and the EMPTY one, which scenes that are not complete lack.

        One at least, so that every scene has an item; that of a scene without layers that is not complete teaches nothing.
        """
        if self.complete is None:
            return self.layer_counts + 1
        return (self.layer_counts + self.complete.long()).clamp(min=1)

    @property
    def frame(self) -> torch.Tensor:
        """Where masks can be, bool (B, 1, h, w): all but the grey bars, whose truth nobody knows even in a scene that lists all its objects."""
        return self.known if self.inside is None else self.inside

    def layers(self) -> torch.Tensor:
        """Layer masks, padded with empty layers: bool (B, K, h, w), K = the most layers of any scene."""
        count = int(self.layer_counts.max()) if len(self) else 0
        member = self.layer_index[:, None, :] == torch.arange(count, device=self.layer_index.device)[None, :, None]
        return (member.float() @ self.amodal_masks.flatten(2).float() > 0).unflatten(2, self.amodal_masks.shape[-2:])


def open_pairs(scene: Scene) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of objects that share more than `min_overlap` of the smaller one while neither the order nor what is seen says
    which is in front; none if nothing is known of the order at all."""
    if scene.order_matrix is None:
        return []
    shared = overlap_areas(scene.amodal_masks)
    areas = np.diagonal(shared)
    said = scene.order_matrix | scene.order_matrix.T
    if scene.visible_masks is not None:
        seen = contested_area(scene.amodal_masks, scene.visible_masks)
        said = said | (seen + seen.T > 0)
    open = (shared > scene.min_overlap * np.minimum(areas[:, None], areas[None, :])) & ~said
    return [(int(i), int(j)) for i, j in np.argwhere(np.triu(open, 1))]


def collate(scenes: Sequence[Scene], *, image_size: int, mask_size: int) -> SceneBatch:
    """Bring scenes to model resolution and pad them into a batch. Who is in which layer follows from the full size; each object is then reduced
    by area > 0.5, and a layer's mask is the union of its objects' (two that meet inside a cell may leave it out).

    Objects that cover no cell of the mask grid are left out: an empty mask would teach that nothing is left.
    """
    if not scenes:
        raise ValueError("scenes must hold at least one scene, got none: pass a non-empty list")
    fitted = [_on_grid(scene, image_size=image_size, mask_size=mask_size) for scene in scenes]
    scenes = [scene for scene, _, _ in fitted]
    most = max(len(scene) for scene in scenes)
    batch = len(scenes)
    pixels = np.empty((batch, 3, image_size, image_size), dtype=np.uint8)
    masks = np.zeros((batch, most, mask_size, mask_size), dtype=bool)
    layer_index = np.full((batch, most), -1, dtype=np.int64)
    order = np.zeros((batch, most, most), dtype=bool)
    known = np.zeros((batch, 1, mask_size, mask_size), dtype=bool)
    inside = np.zeros_like(known)
    for b, (scene, geometry, reduced) in enumerate(fitted):
        n = len(scene)
        pixels[b] = geometry.pixels(scene.image)
        masks[b, :n] = reduced
        layer_index[b, :n] = scene.layer_index
        order[b, :n, :n] = scene.occlusion
        known[b] = geometry.known() if scene.known is None else geometry.masks_to_model(scene.known[None])
        inside[b] = known[b] if scene.complete else geometry.known()
    return SceneBatch(
        image=in_unit_range(torch.from_numpy(pixels)),
        amodal_masks=torch.from_numpy(masks),
        counts=torch.tensor([len(scene) for scene in scenes]),
        layer_index=torch.from_numpy(layer_index),
        order_matrix=torch.from_numpy(order),
        known=torch.from_numpy(known),
        ids=tuple(scene.id for scene in scenes),
        alternatives=_collate_alternatives(scenes, most, image_size, mask_size),
        complete=None if all(scene.complete for scene in scenes) else torch.tensor([s.complete for s in scenes]),
        inside=None if all(scene.complete for scene in scenes) else torch.from_numpy(inside),
    )


def _on_grid(scene: Scene, *, image_size: int, mask_size: int) -> tuple[Scene, Geometry, np.ndarray]:
    """The scene without objects that cover no cell of the mask grid, where it lies, and its masks, bool (N, h, w)."""
    geometry = Geometry.fit(height=scene.height, width=scene.width, size=image_size, mask_size=mask_size)
    reduced = geometry.masks_to_model(scene.amodal_masks)
    kept = np.asarray(reduced.any(axis=(1, 2)))
    return (scene, geometry, reduced) if kept.all() else (scene.keep(kept), geometry, reduced[kept])


def _collate_alternatives(scenes: Sequence[Scene], most: int, image_size: int, mask_size: int) -> torch.Tensor | None:
    """(B, A, N, h, w); a scene with fewer alternatives repeats its own masks, so that every entry is a true answer."""
    depth = max(len(scene.alternatives) for scene in scenes)
    if not depth:
        return None
    result = torch.zeros(len(scenes), depth, most, mask_size, mask_size, dtype=torch.bool)
    for b, scene in enumerate(scenes):
        geometry = Geometry.fit(height=scene.height, width=scene.width, size=image_size, mask_size=mask_size)
        for a in range(depth):
            truth = scene.alternatives[a] if a < len(scene.alternatives) else scene.amodal_masks
            result[b, a, : len(scene)] = torch.from_numpy(geometry.masks_to_model(truth))
    return result
