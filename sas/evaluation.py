"""Run a predictor over a data set, aggregate scores with intervals, and write a report.

A predictor is a function `images, seed -> list[LayeredResult]`; a pipeline is one, and so is any baseline.
"""

from __future__ import annotations

import datetime
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import ValidationError
from tqdm.auto import tqdm

from sas import metrics
from sas.config import DataSettings
from sas.data.folders import ProjectFolder, open_scenes
from sas.factory import build_composer
from sas.io import InputError, atomic_write_bytes, sha256_pixels
from sas.pipeline import SASPipeline
from sas.result import LayeredResult
from sas.scene import Scene, collate
from sas.validation import validate

Predictor = Callable[[list[np.ndarray], int], list[LayeredResult]]
TEST_SEED = 2_000_000
OCCLUDED_ABOVE = 0.01

RULES = (
    "Scores are taken at the picture's full size and averaged over images unless it says pooled.",
    "A layer that is missing scores 0. Extra layers are counted as false layers and not scored.",
    "Instances are matched one to one by the Hungarian method on IoU; an unmatched true instance scores 0.",
    f"An instance counts as occluded if more than {OCCLUDED_ABOVE:.0%} of its amodal area is hidden.",
    "Invisible-part IoU compares both masks without the instance's visible pixels; an unmatched instance scores 0.",
    "Order accuracy is over pairs of which one occludes the other: both must be matched, and the front one's layer smaller.",
    "Scores named true cumulative are at mask resolution, each layer drawn behind the true cumulative mask.",
    "Pixel AP is the area under the precision-recall curve of a layer's probability map; a missing layer scores 0.",
    "Intervals are 95 % percentile bootstrap intervals over images (1000 resamples, seed 0).",
)


@dataclass(frozen=True)
class Score:
    """One number of a report: mean, its interval, and over how many images (or instances, for occlusion bins)."""

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float | int | None]:
        finite = {
            name: None if np.isnan(v) else v
            for name, v in (("value", self.value), ("low", self.low), ("high", self.high))
        }
        return {**finite, "n": self.n}

    def __str__(self) -> str:
        return "n/a" if np.isnan(self.value) else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Report:
    """Scores by name, and all that is needed to get them again."""

    scores: dict[str, Score]
    info: dict[str, Any]
    rules: tuple[str, ...] = field(default=RULES)

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.info,
            "rules": list(self.rules),
            "metrics": {name: score.to_dict() for name, score in self.scores.items()},
        }

    def to_markdown(self) -> str:
        lines = [f"# Evaluation of {self.info['model']['id'] or 'a predictor'} on {self.info['dataset']}", ""]
        lines += [
            f"{self.info['images']} images, {self.info['date']}, {self.info['hardware']}. Command: `{self.info['command']}`",
            "",
        ]
        lines += ["| metric | value [95 % interval] | n |", "|---|---|---|"]
        lines += [f"| {name.replace('_', ' ')} | {score} | {score.n} |" for name, score in self.scores.items()]
        return "\n".join([*lines, "", *(f"- {rule}" for rule in self.rules)]) + "\n"

    def save(self, out: str | Path) -> None:
        """Write metrics.json and metrics.md into a folder; what else is in it stays."""
        import json

        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        atomic_write_bytes(Path(out) / "metrics.json", (text + "\n").encode())
        atomic_write_bytes(Path(out) / "metrics.md", self.to_markdown().encode())


def load_dataset(path: str | Path) -> Sequence[Scene]:
    """Scenes of a folder, or composed ones from a data YAML: a `data:` section, and optionally `count:` and `seed:`."""
    path = Path(path)
    if path.suffix.lower() not in (".yaml", ".yml"):
        return open_scenes(path)
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise InputError(f"data set {path} cannot be read ({error.strerror}); check the path") from error
    except yaml.YAMLError as error:
        raise InputError(f"data set {path} is no valid YAML ({' '.join(str(error).split())}); fix the file") from error
    unknown = sorted(set(values) - {"data", "count", "seed"}) if isinstance(values, dict) else [type(values).__name__]
    if unknown:
        raise InputError(
            f"data set {path} may hold data, count and seed, got {', '.join(unknown)}; remove what is not known"
        )
    try:
        data = DataSettings.model_validate(values.get("data", {}))
    except ValidationError as error:
        faults = "; ".join(
            f"data.{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()
        )
        raise InputError(f"data set {path}: {faults}; fix the file") from error
    if data.scenes:
        return open_scenes(data.scenes)
    count, seed = int(values.get("count", 200)), int(values.get("seed", TEST_SEED))
    if count < 1:
        raise InputError(f"data set {path}: count must be at least 1, got {count}; ask for one or more scenes")
    return build_composer(data, seed=seed, atlas_seed=seed).scenes(0, range(count))


def pipeline_predictor(
    pipe: SASPipeline, *, ensemble_size: int | None = None, num_inference_steps: int | None = None
) -> Predictor:
    """The pipeline as a predictor."""
    pipe.set_progress_bar_config(disable=True)

    def predict(images: list[np.ndarray], seed: int) -> list[LayeredResult]:
        found: list[LayeredResult] = pipe(
            images, ensemble_size=ensemble_size, num_inference_steps=num_inference_steps, seed=seed
        )
        return found

    return predict


def evaluate(
    predictor: Predictor,
    scenes: Sequence[Scene],
    *,
    seed: int = 0,
    limit: int | None = None,
    batch: int = 8,
    progress: bool = True,
) -> Report:
    """Score a predictor on scenes. limit: scenes at most. batch: images given to the predictor at once."""
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}; leave it out for all scenes")
    count = min(len(scenes), limit or len(scenes))
    if not count:
        raise InputError("scenes must hold at least one scene, got none; check the data set")
    rows: list[dict[str, Any]] = []
    model: dict[str, str] = {"id": "", "sha256": ""}
    settings: dict[str, Any] = {}
    digest: list[str] = []
    for start in tqdm(range(0, count, batch), unit="batch", disable=not progress or count <= batch):
        part = [scenes[i].drop_invisible() for i in range(start, min(start + batch, count))]
        began = time.perf_counter()
        results = predictor([scene.image for scene in part], seed)
        seconds = (time.perf_counter() - began) / len(part)
        for scene, result in zip(part, results, strict=True):
            rows.append({**score_scene(scene, result), "seconds_per_image": seconds})
            digest.append(sha256_pixels(scene.image))
            model = {"id": result.model.id, "sha256": result.model.sha256}
            settings = vars(result.settings)
    info = {
        "model": model,
        "sampling": {name: settings[name] for name in ("members", "steps", "seed", "consensus", "mode")},
        "dataset": str(getattr(scenes, "path", "composed scenes")),
        "dataset_sha256": scenes.info["sha256"] if isinstance(scenes, ProjectFolder) else _digest(digest),
        "images": count,
        "command": " ".join(["sas", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "hardware": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
    return Report(scores=aggregate(rows), info=info)


def true_mask_scores(
    pipe: SASPipeline,
    scenes: Sequence[Scene],
    *,
    seed: int = 0,
    limit: int | None = None,
    ensemble_size: int | None = None,
    num_inference_steps: int | None = None,
    batch: int = 16,
) -> dict[str, Score]:
    """Scores at mask resolution when each layer is drawn behind the TRUE cumulative mask: IoU of each layer, and stop accuracy.

    Stop accuracy is the share of scenes in which the pass after the last layer is void and no pass before it is. The gap between
    these IoUs and those of the report is the exposure error.
    """
    count = min(len(scenes), limit or len(scenes))
    stops: list[bool] = []
    ious: list[np.ndarray] = []
    config = pipe.config
    for start in range(0, count, batch):
        part = [scenes[i].drop_invisible() for i in range(start, min(start + batch, count))]
        known = [scene for scene in part if scene.order_matrix is not None]
        if not known:
            continue
        found = validate(
            pipe,
            collate(known, image_size=config.image_size, mask_size=config.mask_size),
            members=ensemble_size or config.ensemble_size,
            steps=num_inference_steps or config.num_inference_steps,
            seed=seed,
        )
        stops += found.stops.tolist()
        ious += found.true_ious
    deepest = max((len(row) for row in ious), default=0)
    scores = {f"iou_layer_{k}_true_cumulative": _mean([row[k] for row in ious if len(row) > k]) for k in range(deepest)}
    return {**scores, "stop_accuracy_true_cumulative": _mean(stops)} if stops else {}


def score_scene(scene: Scene, result: LayeredResult) -> dict[str, Any]:
    """All raw scores of one scene; a scene without order has order-free ones only."""
    shape = (0, scene.height, scene.width)
    found = [instance["segmentation"] for instance in result.instances]
    instances = np.stack(found) if found else np.zeros(shape, dtype=bool)
    predicted = result.masks_full()
    row: dict[str, Any] = {
        "foreground_iou": metrics.foreground_iou(predicted, scene.amodal_masks),
        "instance_ious": metrics.instance_ious(instances, scene.amodal_masks),
    }
    if scene.order_matrix is None:
        return row
    true = scene.layer_masks
    depth = np.array([instance["layer"] for instance in result.instances], dtype=np.int64)
    return {
        **row,
        "layer_ious": metrics.layer_ious(predicted, true),
        "layer_areas": [
            (int((predicted[k] & t).sum()), int((predicted[k] | t).sum())) if k < len(predicted) else (0, int(t.sum()))
            for k, t in enumerate(true)
        ],
        "layer_aps": metrics.layer_average_precisions(result.probability_full(), true),
        "objects": len(scene),
        "false_layers": metrics.false_layers(predicted, true),
        "layer_count_error": metrics.layer_count_error(len(predicted), len(true)),
        "occlusion": metrics.occlusion_rate(scene.amodal_masks, scene.visible),
        "invisible_ious": metrics.invisible_ious(
            instances, scene.amodal_masks, scene.visible, occluded_above=OCCLUDED_ABOVE
        ),
        "invisible_counts": metrics.invisible_counts(instances, scene.amodal_masks, scene.visible),
        "pairs": metrics.pair_order_accuracy(instances, depth, scene.amodal_masks, scene.occlusion),
    }


def aggregate(rows: Sequence[dict[str, Any]]) -> dict[str, Score]:
    """Scores over all scenes, in the order of the report."""
    ordered = [row for row in rows if "layer_ious" in row]
    scores: dict[str, Score] = {}
    deepest = max((len(row["layer_ious"]) for row in ordered), default=0)
    for name in ("iou", "ap"):
        for k in range(deepest):
            scores[f"{name}_layer_{k}"] = _mean(
                [row[f"layer_{name}s"][k] for row in ordered if len(row["layer_ious"]) > k]
            )
        firsts = [float(np.mean(row[f"layer_{name}s"][:3])) for row in ordered if len(row["layer_ious"])]
        if deepest:
            scores[f"{name}_first_three_layers"] = _mean(firsts)
    for k in range(deepest):
        scores[f"iou_layer_{k}_pooled"] = _ratio(
            [row["layer_areas"][k] for row in ordered if len(row["layer_areas"]) > k]
        )
    scores["foreground_iou"] = _mean([row["foreground_iou"] for row in rows])
    scores["miou_full"] = _mean([float(np.mean(row["instance_ious"])) for row in rows if len(row["instance_ious"])])
    if ordered:
        hidden = [row["invisible_ious"] for row in ordered]
        scores["invisible_iou"] = _mean([float(np.nanmean(v)) for v in hidden if np.isfinite(v).any()])
        scores["invisible_iou_pooled"] = _ratio([row["invisible_counts"] for row in ordered])
        scores["order_accuracy"] = _ratio([row["pairs"] for row in ordered if row["pairs"][1]])
        scores["layer_count_error"] = _mean([row["layer_count_error"] for row in ordered])
        scores["layer_count_exact"] = _mean([row["layer_count_error"] == 0 for row in ordered])
        scores["false_layers"] = _mean([row["false_layers"] for row in ordered])
        few = [row["false_layers"] > 0 for row in ordered if row["objects"] <= 1]
        scores["false_layers_at_most_one_object"] = _mean(few)
        rates = np.concatenate([row["occlusion"] for row in ordered])
        ious = np.concatenate([row["instance_ious"] for row in ordered])
        bins = np.array([metrics.occlusion_bin(float(rate)) for rate in rates], dtype=int)
        for number, name in enumerate(metrics.bin_names()):
            scores[f"instance_iou_occluded_{name}"] = _mean(ious[bins == number].tolist())
    scores["seconds_per_image"] = _median([row["seconds_per_image"] for row in rows if "seconds_per_image" in row])
    return scores


def _mean(values: Sequence[float]) -> Score:
    numbers = np.asarray(values, dtype=float)
    if not np.isfinite(numbers).any():
        return Score(float("nan"), float("nan"), float("nan"), 0)
    low, high = metrics.bootstrap_interval(numbers)
    return Score(float(np.nanmean(numbers)), low, high, int(np.isfinite(numbers).sum()))


def _median(values: Sequence[float]) -> Score:
    if not values:
        return Score(float("nan"), float("nan"), float("nan"), 0)
    return Score(float(np.median(values)), float(np.min(values)), float(np.max(values)), len(values))


def _ratio(pairs: Sequence[tuple[int, int]]) -> Score:
    numerators, denominators = (np.asarray([pair[i] for pair in pairs], dtype=float) for i in (0, 1))
    if not denominators.sum():
        return Score(float("nan"), float("nan"), float("nan"), 0)
    low, high = metrics.ratio_bootstrap_interval(numerators, denominators)
    return Score(float(numerators.sum() / denominators.sum()), low, high, len(pairs))


def _digest(parts: Sequence[str]) -> str:
    import hashlib

    return hashlib.sha256("".join(parts).encode()).hexdigest()
