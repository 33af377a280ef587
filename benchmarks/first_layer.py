"""Where the first layer loses: missed objects, objects drawn too early, parts of objects, background; and how much of it lies at outlines.

    python benchmarks/first_layer.py data/held_out_cutouts [--weights default] [--limit 200]

The first layer drawn (the weights' own defaults, seed 0; nothing, if there is none) against the true one, both at the masks' grid. Cells
whose truth is unknown, such as those under grey bars, are left out. Each wrong cell counts as a share of their union. "missed": in an
object of the true layer of which less than half is drawn. "too early": in what can be seen behind the true layer of an object of which more
than half of that is drawn. "parts": all others in an object. "background": where nothing is. "at outlines": all that are within one cell of
the true layer's outline, whichever they are. A cell that belongs to several objects counts for the first that claims it, in this order.
"were decisions right": the IoU if what is missed were drawn and what is too early were not, as true masks, and all else stayed. "were shapes
right": if just the true masks of the objects that are drawn, too early or not, were drawn.
Means over scenes with objects in a known order.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion
from tqdm.auto import tqdm

from sas.evaluation import load_dataset
from sas.metrics import iou
from sas.pipeline import SASPipeline
from sas.scene import Scene, collate

GROUPS = 8
"""Groups of objects, as their names begin, that are told apart; the largest ones."""
NEIGHBOURS = np.ones((3, 3), dtype=bool)


def losses(
    scene: Scene, drawn: np.ndarray, objects: np.ndarray
) -> tuple[dict[str, float], list[tuple[str, bool, bool]]]:
    """Shares of the union by kind; and of each object its group, whether it is of the true first layer, and whether it counts as drawn.

    drawn: bool (h, w). objects: the scene's amodal masks, bool (N, h, w).
    """
    front = scene.layer_index == 0
    true = objects[front].any(axis=0)
    wrong, union = drawn != true, max(1, int((drawn | true).sum()))
    kinds = {name: np.zeros_like(true) for name in ("missed", "too early")}
    taken, decided, shaped = [], drawn.copy(), np.zeros_like(true)
    for mask, first, name in zip(objects, front, scene.names, strict=True):
        asked = mask if first else mask & ~true
        if asked.any():
            found = bool((drawn & asked).sum() * 2 > asked.sum())
            taken.append((name.split("__")[0], bool(first), found))
            if found:
                shaped |= asked
            if found != first:
                kinds["missed" if first else "too early"] |= wrong & asked
                decided = decided | asked if first else decided & ~asked
    kinds["too early"] &= ~kinds["missed"]
    anywhere = objects.any(axis=0)
    kinds["parts"] = wrong & anywhere & ~kinds["missed"] & ~kinds["too early"]
    kinds["background"] = wrong & ~anywhere
    outline = binary_dilation(true, NEIGHBOURS) & ~binary_erosion(true, NEIGHBOURS, border_value=1)
    kinds["at outlines"] = wrong & outline
    shares = {name: float(cells.sum()) / union for name, cells in kinds.items()}
    if outline.any():
        shares["wrong cells at outlines, of all there"] = float((wrong & outline).sum() / outline.sum())
    others = {"were decisions right": decided, "were shapes right": shaped}
    return {"IoU": iou(drawn, true), **{name: iou(one, true) for name, one in others.items()}, **shares}, taken


def begin(description: str | None) -> tuple[SASPipeline, Iterator[tuple[Scene, np.ndarray]]]:
    """The weights and the scenes that the command line names: those with objects in a known order, each with its known cells, bool (h, w)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--limit", type=int, default=200)
    options = parser.parse_args()
    pipe = SASPipeline.from_pretrained(options.weights)
    pipe.set_progress_bar_config(disable=True)
    scenes = load_dataset(options.data)

    def each() -> Iterator[tuple[Scene, np.ndarray]]:
        for index in tqdm(range(min(options.limit, len(scenes)))):
            scene = scenes[index].drop_invisible()
            if len(scene) and scene.order_matrix is not None:
                batch = collate([scene], image_size=pipe.config.image_size, mask_size=pipe.config.mask_size)
                yield scene, batch.known[0, 0].numpy()

    return pipe, each()


def main() -> None:
    (pipe, scenes), values, taken = begin(__doc__), defaultdict(list), []
    for scene, known in scenes:
        result = pipe(scene.image, seed=0)
        objects = result.geometry.masks_to_model(scene.amodal_masks)
        drawn = result.masks[0] if len(result) else np.zeros_like(objects[0])
        shares, found = losses(scene, drawn & known, objects & known)
        taken += found
        for name, value in shares.items():
            values[name].append(value)
    print(f"{len(values['IoU'])} scenes with objects")
    for name, column in values.items():
        print(f"{name}: {statistics.fmean(column):.3f}")
    for first, words in ((True, "of the first layer, drawn there"), (False, "behind it, drawn in it")):
        hits = [found for _, front, found in taken if front == first]
        print(f"objects {words}: {sum(hits)} of {len(hits)}")
    groups = defaultdict(list)
    for group, first, found in taken:
        if first:
            groups[group].append(found)
    many = sorted(groups.items(), key=lambda one: -len(one[1]))[:GROUPS]
    print("of the first layer, by group: " + ", ".join(f"{name} {sum(hits)} of {len(hits)}" for name, hits in many))


if __name__ == "__main__":
    main()
