"""A contact sheet of a data set: pictures with their layers drawn, the worst first."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from sas.data.formats.raw import Defect
from sas.scene import Scene
from sas.visualize import image_grid, layer_colors, outline, tint

SHEET, WORST, CELL = 24, 12, 240
"""Pictures on the sheet; places on it for those with the most defects; side of a place in pixels."""


class Sheet:
    """Thumbnails of the pictures with the most defects, and of some spread evenly over the set."""

    def __init__(self) -> None:
        self.worst: list[tuple[tuple[int, int], int, str, np.ndarray]] = []
        self.spread: dict[int, tuple[str, np.ndarray]] = {}

    def offer(self, index: int, total: int, scene: Scene, defects: Sequence[Defect]) -> None:
        errors = sum(defect.severity == "error" for defect in defects)
        score = (errors, len(defects) - errors)
        bad = bool(defects) and (len(self.worst) < WORST or (score, -index) > self.worst[0][:2])
        # Picture `index` is the first of its stretch, if the set is cut into as many stretches as the sheet has places.
        even = index == 0 or index * SHEET // total != (index - 1) * SHEET // total
        if not bad and not even:
            return
        told = f": {errors} err, {score[1]} warn" if defects else ""
        caption, thumbnail = f"{scene.id}{told}", draw(scene)
        if even:
            self.spread[index] = caption, thumbnail
        if bad:
            keep = heapq.heappush if len(self.worst) < WORST else heapq.heapreplace
            keep(self.worst, (score, -index, caption, thumbnail))  # no two have one index, so no pictures are compared

    def picture(self) -> np.ndarray | None:
        """uint8 (H, W, 3), None if no picture was readable."""
        first = sorted(self.worst, key=lambda entry: entry[:2], reverse=True)
        shown = {-place: (caption, thumbnail) for _, place, caption, thumbnail in first}
        shown |= {index: entry for index, entry in self.spread.items() if index not in shown}
        entries = list(shown.values())[:SHEET]
        if not entries:
            return None
        captions, pictures = zip(*entries, strict=True)
        return image_grid(pictures, columns=min(6, len(pictures)), captions=captions, cell=CELL)


def draw(scene: Scene) -> np.ndarray:
    """The picture, each object tinted where it is seen and outlined in full, by its layer, or one by one without an order.

    uint8 (h, w, 3), thinned out to at most twice the side of a place on the sheet.
    """
    step = -(-max(scene.height, scene.width) // (2 * CELL))
    canvas = np.ascontiguousarray(scene.image[::step, ::step])
    ordered = scene.order_matrix is not None
    seen = scene.visible if ordered or scene.visible_masks is not None else scene.amodal_masks
    place = scene.layer_index if ordered else np.arange(len(scene))
    colors = layer_colors(int(place.max(initial=-1)) + 1)
    for i in range(len(scene)):
        canvas = tint(canvas, seen[i, ::step, ::step], color=colors[place[i]], alpha=0.45)
    for i in np.argsort(-place, kind="stable"):
        canvas = tint(canvas, outline(scene.amodal_masks[i, ::step, ::step], width=2), color=colors[place[i]], alpha=1)
    return canvas
