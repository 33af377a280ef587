"""Masks brought back to the picture's size: nearest, bilinear and refined on the picture (`sas.refine`), against the truth.

    python benchmarks/upsampling.py [--count 100] [--sizes 256 512] [--seed 2000000] [--out FILE.json]

Scenes are composed as `sas compose --count N --size S --seed SEED` does. "true masks": the true layers reduced to the weights' mask
grid (a cell is set where more than half of it is covered); "true area": the same, as the share covered; "shipped weights": what the
model finds, layer k against layer k, over the layers that are both found and true.
IoU and boundary F of the amodal layers and of their visible parts (layer minus the layers before it), mean over the layers of a picture,
then over pictures, with 95 % bootstrap intervals over pictures; "gain" is refined minus bilinear of the same pictures. Seconds are for
one picture, all its layers. --seed 1000000 are the scenes that the filter's settings were chosen on (--radius, --eps).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from sas.config import DataSettings
from sas.factory import build_composer
from sas.geometry import Geometry
from sas.metrics import bootstrap_interval, iou
from sas.pipeline import SASPipeline
from sas.refine import EPS, RADIUS_CELLS, refine, require
from sas.scene import Scene

METHODS = ("nearest", "bilinear", "refined")
SCORES = ("iou", "boundary f", "visible iou", "visible boundary f")
Upsample = Callable[[np.ndarray, Scene, Geometry], np.ndarray]


def boundary_f(prediction: np.ndarray, target: np.ndarray, *, tolerance: float) -> float:
    """F-measure of two outlines, bool (H, W) -> float in [0, 1] (Perazzi et al. 2016, with distances in place of dilation).

    An outline is a mask's pixels with a 4-neighbour outside it, the picture's border aside. Precision: share of predicted outline pixels
    with a true one within `tolerance` pixels; recall the other way round. Two masks without outline give 1, one of them 0.
    """
    outlines = [mask & ~ndimage.binary_erosion(mask, border_value=1) for mask in (prediction, target)]
    if not all(outline.any() for outline in outlines):
        return float(not any(outline.any() for outline in outlines))
    near = [ndimage.distance_transform_edt(~outline) <= tolerance for outline in outlines]
    precision, recall = near[1][outlines[0]].mean(), near[0][outlines[1]].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def visible_parts(layers: np.ndarray) -> np.ndarray:
    """Each layer without the layers before it: bool (K, H, W) -> bool (K, H, W)."""
    return layers & ~(layers.cumsum(axis=0) - layers > 0)


def scores(layers: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Means over the layers of one picture; the outlines' tolerance is 0.4 % of the side: 1 pixel at 256, 2 at 512."""
    tolerance = max(1, round(0.004 * max(truth.shape[1:])))
    found = {}
    for name, a, b in (("", layers, truth), ("visible ", visible_parts(layers), visible_parts(truth))):
        pairs = list(zip(a, b, strict=True))
        found[f"{name}iou"] = float(np.mean([iou(x, y) for x, y in pairs]))
        found[f"{name}boundary f"] = float(np.mean([boundary_f(x, y, tolerance=tolerance) for x, y in pairs]))
    return found


def upsamplers(radius: float, eps: float) -> dict[str, Upsample]:
    def nearest(maps: np.ndarray, scene: Scene, geometry: Geometry) -> np.ndarray:
        small = [Image.fromarray((m > 0.5).astype(np.uint8)) for m in maps]
        return np.stack(
            [np.asarray(m.resize((scene.width, scene.height), Image.Resampling.NEAREST)) > 0 for m in small]
        )

    def bilinear(maps: np.ndarray, scene: Scene, geometry: Geometry) -> np.ndarray:
        return geometry.to_input(maps.astype(np.float32)) > 0.5

    def refined(maps: np.ndarray, scene: Scene, geometry: Geometry) -> np.ndarray:
        full = geometry.to_input(maps.astype(np.float32))
        return refine(full, scene.image, cell=scene.width / geometry.mask_size, radius=radius, eps=eps)

    return {"nearest": nearest, "bilinear": bilinear, "refined": refined}


def composed(count: int, size: int, seed: int) -> Iterator[Scene]:
    """Scenes that show at least one object, made as `sas compose` makes them."""
    data = DataSettings(
        image_size=size,
        mask_size=size,
        oversample=1,
        sprite_size=max(32, size // 2),
        classes=32,
        views=4,
        background_count=max(8, min(count, 64)),
    )
    composer = build_composer(data, seed=seed, atlas_seed=seed)
    for place in range(count):
        scene = composer.scenes(0, [place])[0]
        if len(scene):
            yield scene


def shares(masks: np.ndarray, grid: int) -> np.ndarray:
    """Share of each cell of the grid that a mask covers: bool (K, H, W) -> float32 (K, grid, grid)."""
    boxes = [Image.fromarray(m.astype(np.float32)).resize((grid, grid), Image.Resampling.BOX) for m in masks]
    return np.stack([np.asarray(box) for box in boxes])


def measure(
    pipe: SASPipeline, scenes: Iterable[Scene], methods: dict[str, Upsample]
) -> dict[str, dict[str, list[float]]]:
    """Scores of each picture by "input/method" and score, and seconds."""
    grid = pipe.config.mask_size
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for scene in scenes:
        geometry = Geometry.fit(height=scene.height, width=scene.width, size=pipe.config.image_size, mask_size=grid)
        truth = scene.layer_masks
        result = pipe(scene.image)
        both = min(len(result), len(truth))
        inputs = {
            "true masks": (geometry.masks_to_model(truth), truth),
            "true area": (shares(truth, grid), truth),
            "shipped weights": (result.masks[:both], truth[:both]),
        }
        for source, (maps, target) in inputs.items():
            if not len(target):
                continue
            for name, method in methods.items():
                started = time.perf_counter()
                layers = method(maps, scene, geometry)
                taken = time.perf_counter() - started
                row = found[f"{source}/{name}"]
                known = True if scene.known is None else scene.known  # not what grey bars hide
                for score, value in {**scores(layers & known, target & known), "seconds": taken}.items():
                    row[score].append(value)
    return found


def table(size: int, found: dict[str, dict[str, list[float]]]) -> tuple[list[str], dict[str, object]]:
    """Lines of a markdown table, and the same as numbers."""
    lines: list[str] = []
    numbers: dict[str, object] = {}

    def interval(values: np.ndarray) -> tuple[float, float, float]:
        return float(values.mean()), *bootstrap_interval(values)

    for source in dict.fromkeys(name.partition("/")[0] for name in found):
        rows = {name: found[f"{source}/{name}"] for name in METHODS}
        entries = {name: {s: interval(np.array(row[s])) for s in SCORES} for name, row in rows.items()}
        entries["gain"] = {s: interval(np.array(rows["refined"][s]) - np.array(rows["bilinear"][s])) for s in SCORES}
        for name, entry in entries.items():
            cells = [f"{m:{'+' * (name == 'gain')}.3f} [{low:.3f}, {high:.3f}]" for m, low, high in entry.values()]
            seconds = f"{statistics.median(rows[name]['seconds']):.3f}" if name in rows else ""
            lines.append(
                f"| {size} | {source} ({len(rows['nearest']['iou'])}) | {name} | {' | '.join(cells)} | {seconds} |"
            )
        numbers[source] = {**entries, "seconds": {n: statistics.median(r["seconds"]) for n, r in rows.items()}}
    return lines, numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--seed", type=int, default=2_000_000)
    parser.add_argument("--radius", type=float, default=RADIUS_CELLS)
    parser.add_argument("--eps", type=float, default=EPS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    require()  # imported before anything is timed
    pipe = SASPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    lines = [f"| side | input (pictures) | method | {' | '.join(SCORES)} | seconds |", "|---" * (len(SCORES) + 4) + "|"]
    numbers: dict[str, object] = {"settings": {k: v for k, v in vars(options).items() if k != "out"}}
    for size in options.sizes:
        scenes = tqdm(composed(options.count, size, options.seed), total=options.count, desc=f"{size} px")
        more, numbers[str(size)] = table(size, measure(pipe, scenes, upsamplers(options.radius, options.eps)))
        lines += more
    print("\n".join(lines))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
