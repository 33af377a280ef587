"""Where the weights fail: the scenes of a set with the lowest scores, drawn beside the truth.

    python benchmarks/failures.py data/test [--weights default] [--limit 200] [--worst 6] [--out results/failures.png]

A scene's score is the mean IoU of those of its first three layers that it has. For each of them, two in a row: the scene, its true layers,
and the layers found, drawn as outlines, the front one in the first colour.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
from PIL import Image

from sas.evaluation import load_dataset, score_scene
from sas.pipeline import SASPipeline
from sas.visualize import image_grid, layer_colors, outline, tint


def outlined(image: np.ndarray, layers: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) with the outline of each of bool (K, H, W) on it, from back to front."""
    for mask, color in reversed(list(zip(layers, layer_colors(len(layers)), strict=True))):
        image = tint(tint(image, mask, color=color, alpha=0.25), outline(mask, width=2), color=color, alpha=1.0)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--worst", type=int, default=6)
    parser.add_argument("--out", default="results/failures.png")
    options = parser.parse_args()
    pipe = SASPipeline.from_pretrained(options.weights)
    pipe.set_progress_bar_config(disable=True)
    scenes, scored = load_dataset(options.data), []
    for index in range(min(options.limit, len(scenes))):
        scene = scenes[index].drop_invisible()
        result = pipe(scene.image, seed=0)
        ious = np.array(score_scene(scene, result).get("layer_ious", ())[:3], dtype=float)
        ious = ious[~np.isnan(ious)]  # of a layer of which no pixel is known
        if len(ious):
            scored.append((statistics.fmean(ious), index, scene, result.masks_full()))
    pictures, captions = [], []
    for score, _, scene, found in sorted(scored, key=lambda one: one[:2])[: options.worst]:
        pictures += [scene.image, outlined(scene.image, scene.layer_masks), outlined(scene.image, found)]
        captions += [
            f"scene {scene.id}",
            f"truth: {len(scene.layer_masks)} layers",
            f"found: {len(found)}, {score:.2f}",
        ]
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_grid(pictures, columns=6, captions=captions, cell=150)).save(options.out, optimize=True)
    for score, _, scene, found in sorted(scored, key=lambda one: one[:2])[: options.worst]:
        print(f"{scene.id}: {score:.3f}, {len(found)} layers found of {len(scene.layer_masks)}")


if __name__ == "__main__":
    main()
