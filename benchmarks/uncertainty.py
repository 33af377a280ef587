"""Whether the ensemble knows where it is wrong: calibration of the mean probability, and errors found by the uncertainty map.

    python benchmarks/uncertainty.py data/test [--weights default] [--limit 100] [--members 3 8] [--steps 4] [--noise-scale 1] [--out results/uncertainty.json]

Layer k of a result is compared with layer k of the truth at the resolution of the masks, over the first three layers that are both found
and true, own cumulative masks. Pixels whose truth is unknown, such as those under grey bars, are left out. "hidden": pixels that true
layers in front cover; "visible": all others; "boundary": within one pixel of the true mask's outline. Brier score and calibration error (15
bins) are over all such pixels of all pictures. "errors found": AUROC and AUPRC of an uncertainty map against the wrong pixels of the
consensus mask, of one layer, then the mean over layers of a picture and over pictures; by chance AUROC is 0.5 and AUPRC the share of wrong
pixels, which is printed too. "variance" is that of the members' masks, as in `LayeredResult.uncertainty`; "p (1 - p)" that of a pixel set
with the mean probability. IoU: of the consensus mask, the mean over members, and the best member, which needs the truth to be picked. 95 %
bootstrap intervals over pictures.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from tqdm import tqdm

from sas.evaluation import load_dataset
from sas.metrics import (
    bootstrap_interval,
    brier_score,
    error_detection_auroc,
    expected_calibration_error,
    iou,
    pixel_average_precision,
)
from sas.pipeline import SASPipeline
from sas.result import LayeredResult
from sas.scene import Scene, collate

REGIONS = ("all", "visible", "hidden", "boundary")
LAYERS = 3


def true_layers(scene: Scene, result: LayeredResult) -> tuple[np.ndarray, np.ndarray]:
    """The true layers where the result's are, bool (K, m, m), and where the truth is known, bool (m, m)."""
    batch = collate([scene], image_size=result.geometry.size, mask_size=result.geometry.mask_size)
    return batch.layers()[0, : int(batch.layer_counts[0])].numpy(), batch.known[0, 0].numpy()


def regions(truth: np.ndarray, layer: int, known: np.ndarray) -> dict[str, np.ndarray]:
    """Pixels of each kind for one layer, bool (m, m), where the truth is known."""
    hidden = truth[:layer].any(axis=0)
    edge = ndimage.binary_dilation(truth[layer]) & ~ndimage.binary_erosion(truth[layer])
    kinds = {"all": np.ones_like(hidden), "visible": ~hidden, "hidden": hidden, "boundary": edge}
    return {name: where & known for name, where in kinds.items()}


def layer_scores(result: LayeredResult, layer: int, target: np.ndarray, known: np.ndarray) -> dict[str, float]:
    """Scores of one layer that stand for themselves, over the pixels of which the truth is known."""
    seen = [result.masks[layer], result.probability[layer], result.uncertainty[layer], target, *result.members[layer]]
    mask, probability, variance, target, *drawn = (values[known][None] for values in seen)
    probability = probability.astype(np.float64)
    wrong = mask != target
    found = {"share of wrong pixels": float(wrong.mean()), "IoU of the consensus": iou(mask, target)}
    members = [iou(member, target) for member in drawn]
    found |= {"IoU of a member, mean": float(np.mean(members)), "IoU of the best member": max(members)}
    maps = {"variance": variance, "p (1 - p)": probability * (1 - probability)}
    for name, values in maps.items():
        found[f"errors found, AUROC, {name}"] = error_detection_auroc(values, wrong)
        found[f"errors found, AUPRC, {name}"] = pixel_average_precision(values / 0.25, wrong)
    return found


def measure(
    pipe: SASPipeline, scenes: list[Scene], *, members: int, steps: int, noise_scale: float
) -> dict[str, tuple[float, float, float] | float]:
    pixels: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    pictures: dict[str, list[float]] = defaultdict(list)
    for scene in tqdm(scenes, desc=f"{members} members"):
        result = pipe(scene.image, ensemble_size=members, num_inference_steps=steps, seed=0, noise_scale=noise_scale)
        truth, known = true_layers(scene, result)
        rows = []
        for layer in range(min(LAYERS, len(truth), len(result))):
            rows.append(layer_scores(result, layer, truth[layer], known))
            for region, where in regions(truth, layer, known).items():
                pixels[region].append((result.probability[layer][where], truth[layer][where]))
        for name in rows[0] if rows else ():
            values = [row[name] for row in rows if row[name] == row[name]]
            pictures[name].append(float(np.mean(values)) if values else float("nan"))
    found: dict[str, tuple[float, float, float] | float] = {}
    for region in REGIONS:
        if not pixels[region]:
            continue
        probability, target = (np.concatenate(parts) for parts in zip(*pixels[region], strict=True))
        found[f"Brier score, {region}"] = brier_score(probability, target)
        found[f"calibration error, {region}"] = expected_calibration_error(probability.clip(0, 1), target)
    for name, values in pictures.items():
        found[name] = (float(np.nanmean(values)), *bootstrap_interval(np.array(values)))
    return found


def words(value: tuple[float, float, float] | float) -> str:
    if isinstance(value, tuple):
        return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"
    return f"{value:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--members", type=int, nargs="+", default=[3, 8])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--noise-scale", type=float, help="that of the weights if left out")
    parser.add_argument("--out", default="results/uncertainty.json")
    options = parser.parse_args()
    pipe = SASPipeline.from_pretrained(options.weights)
    pipe.set_progress_bar_config(disable=True)
    dataset = load_dataset(options.data)
    scenes = [dataset[index].drop_invisible() for index in range(min(options.limit, len(dataset)))]
    scenes = [scene for scene in scenes if scene.order_matrix is not None]
    scale = pipe.resolve_noise_scale(options.noise_scale)
    found = {
        members: measure(pipe, scenes, members=members, steps=options.steps, noise_scale=scale)
        for members in options.members
    }
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {len(scenes)} scenes, {options.steps} steps, "
        f"noise of standard deviation {scale:g}\n"
    )
    print("| | " + " | ".join(f"{members} members" for members in found) + " |")
    print("|---|" + "---|" * len(found))
    for name in dict.fromkeys(name for column in found.values() for name in column):
        print(
            f"| {name} | "
            + " | ".join(words(column[name]) if name in column else "-" for column in found.values())
            + " |"
        )
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
