"""Run a predictor over a data set, aggregate scores with intervals, and write a report.

A predictor is a function `images, seed -> list[LayeredResult]`; a pipeline is one, and so is any baseline.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import yaml
from tqdm.auto import tqdm

from sas import __version__, metrics
from sas.config import Config, ConfigError, DataSettings, EachKeyOnce, config_from_dict
from sas.data.composer import Composer
from sas.data.folders import ProjectFolder, open_scenes
from sas.factory import build_composer, open_data
from sas.io import InputError, atomic_write_bytes
from sas.order import DEFAULT_MIN_OVERLAP
from sas.pictures import sha256_pixels
from sas.pipeline import SASPipeline
from sas.result import LayeredResult
from sas.scene import Scene, collate
from sas.seeding import TEST_SEED
from sas.validation import behind_truth

Predictor = Callable[[list[np.ndarray], int], list[LayeredResult]]
TEST_COUNT = 200
OCCLUDED_ABOVE = 0.01
FOREIGN = (
    "annotations are evaluated by a data YAML in their place, with `data: {scenes: PATH, format: NAME}` (`sas data formats` lists the "
    "names), or check the path"
)

RULES = (
    "Scores are taken at the picture's full size; the mean is over images unless a rule below says instances or pooled.",
    "Objects that show no pixel are left out of the truth.",
    "Layer k of the prediction is compared with layer k of the truth, over the images that have it.",
    "A layer that is missing scores 0. Extra layers are counted as false layers and not scored.",
    "Pooled: sum of intersections over sum of unions, missing layers and unmatched instances included.",
    "First three layers: for each image the mean over those of its first three layers that it has, then over images.",
    "Pixel AP is the area under the precision-recall curve of a layer's probability map; a missing layer scores 0.",
    "Instances are matched one to one by the Hungarian method on IoU; an unmatched true instance scores 0, a surplus one costs nothing.",
    "miou full, invisible iou and both by occlusion are means over all instances, and n counts instances.",
    f"An instance counts as occluded if more than {OCCLUDED_ABOVE:.0%} of its amodal area is hidden.",
    "Invisible-part IoU compares both masks without the instance's visible pixels; an unmatched instance scores 0.",
    "Order accuracy is over pairs of which one occludes the other: both must be matched, and the front one's layer smaller; "
    "objects that occlude each other in a circle count with all their pairs, though no layers can have them all right.",
    "Where the truth is unknown pixels are left out; scenes with objects that nobody lists count no layers and no false layers.",
    "Scenes whose order is unknown have no layers: they enter foreground IoU, miou full and seconds per image alone.",
    "Seconds per image is the median; a batch's time is shared equally among its images, and reading them is left out.",
    "Scores named true cumulative are at mask resolution, each layer drawn behind the true cumulative mask.",
    "Intervals are 95 % percentile bootstrap intervals: images are drawn, with all their instances (1000 resamples, seed 0).",
)


@dataclass(frozen=True)
class Score:
    """One number of a report: its value, its interval, and over how many images (or instances, see `RULES`); nan if undefined."""

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
        if np.isnan(self.value):
            return "n/a"
        # Drawn again, one image is always itself: an interval without width would look certain.
        return f"{self.value:.3f}" + (f" [{self.low:.3f}, {self.high:.3f}]" if self.n > 1 else "")


UNDEFINED = Score(float("nan"), float("nan"), float("nan"), 0)


@dataclass(frozen=True)
class Report:
    """Scores by name, and what was scored, with which weights, settings and versions."""

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
        info = self.info
        lines = [f"# Evaluation of {info['model']['id'] or 'a predictor'} on {info['dataset']}", ""]
        lines += [
            f"{info['images']} images ({info['images_without_order']} of unknown order), seed {info['seed']}, "
            f"{info['date']}, {info['hardware']}. Command: `{info['command']}`",
            "",
        ]
        lines += ["| metric | value [95 % interval] | n |", "|---|---|---|"]
        lines += [f"| {name.replace('_', ' ')} | {score} | {score.n} |" for name, score in self.scores.items()]
        return "\n".join([*lines, "", *(f"- {rule}" for rule in self.rules)]) + "\n"

    def save(self, out: str | Path) -> None:
        """Write metrics.json and metrics.md into a folder; what else is in it stays."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        atomic_write_bytes(Path(out) / "metrics.json", (text + "\n").encode())
        atomic_write_bytes(Path(out) / "metrics.md", self.to_markdown().encode("utf-8", "replace"))


class ComposedScenes(Sequence[Scene]):
    """Scenes made when they are asked for, and the same each time: `path` names the file that describes them."""

    def __init__(self, composer: Composer, count: int, *, path: Path) -> None:
        self.composer, self.path, self._length = composer, path, count

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Scene: ...
    @overload
    def __getitem__(self, index: slice) -> list[Scene]: ...
    def __getitem__(self, index: int | slice) -> Scene | list[Scene]:
        chosen = range(self._length)[index]  # IndexError past the end, so that a loop over the sequence ends
        return self.composer.scenes(0, [chosen])[0] if isinstance(chosen, int) else self.composer.scenes(0, chosen)


def load_dataset(path: str | Path) -> Sequence[Scene]:
    """Scenes of a folder, or composed ones from a data YAML.

    The YAML holds a `data:` section as a configuration does, and optionally `count:` (200) and `seed:` (2000000, which
    training and validation never use). It may be a training configuration, whose other sections have no say here; the scenes of
    `data.validation` are taken if it names some, and of cutouts and backgrounds that it divides by name those for testing.
    InputError names the file, the fault and the cure.
    """
    path = Path(path)
    if path.suffix.lower() not in (".yaml", ".yml"):
        return open_scenes(path, foreign=FOREIGN)
    values = _read_yaml(path)
    unknown = [str(key) for key in values if key not in ("data", "count", "seed", *Config.model_fields)]
    if unknown:
        raise InputError(
            f"data set {path} may hold data, count and seed, got {', '.join(unknown)}; remove what is not known"
        )
    try:
        data: DataSettings = config_from_dict({"data": values.get("data") or {}}, where=f"data set {path}").data
    except ConfigError as error:
        raise InputError(str(error)) from error
    if data.scenes:
        given = [name for name in ("count", "seed") if name in values]
        if given:
            raise InputError(
                f"data set {path}: data.scenes excludes {' and '.join(given)}, which would have no effect; "
                "remove one of them, and use --limit for fewer scenes"
            )
        with _naming(path):
            return open_data(data, seed=TEST_SEED, validation=True)
    count = _whole(values.get("count", TEST_COUNT), low=1, name="count", path=path)
    seed = _whole(values.get("seed", TEST_SEED), low=0, name="seed", path=path)
    with _naming(path):
        return ComposedScenes(build_composer(data, seed=seed, atlas_seed=seed, part="test"), count, path=path)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """InputError that names the data YAML for what is wrong with the data that it names."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"data set {path}: {error}") from error


def _read_yaml(path: Path) -> dict[Any, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=EachKeyOnce)
    except OSError as error:
        raise InputError(f"data set {path} cannot be read ({error.strerror}); check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"data set {path} is no valid YAML ({' '.join(str(error).split())}); fix the file") from error
    if not isinstance(values, dict | None):
        raise InputError(
            f"data set {path} must hold a section `data:`, got {type(values).__name__}; write `data:` and its fields"
        )
    return values or {}


def _whole(value: object, *, low: int, name: str, path: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise InputError(f"data set {path}: {name} must be a whole number of at least {low}, got {value!r}; change it")
    return value


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
    """Score a predictor on scenes; the rules are `RULES`, and stand in the report.

    predictor: (uint8 (H, W, 3) images, seed) -> one LayeredResult an image. limit: scenes at most, the first ones.
    batch: images given to the predictor at once. InputError for an empty data set, and for results that do not fit.
    """
    for name, value in (("limit", limit), ("batch", batch)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}; leave it out for the default")
    count = len(scenes) if limit is None else min(len(scenes), limit)
    if not count:
        raise InputError("scenes must hold at least one scene, got none; check the data set")
    rows: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    for start in tqdm(range(0, count, batch), unit="batch", disable=not progress or count <= batch):
        part = [scenes[i].drop_invisible() for i in range(start, min(start + batch, count))]
        began = time.perf_counter()
        results = predictor([scene.image for scene in part], seed)
        seconds = (time.perf_counter() - began) / len(part)
        _check_results(results, part)
        for scene, result in zip(part, results, strict=True):
            rows.append({**score_scene(scene, result), "seconds_per_image": seconds})
            _add_scene(digest, scene)
    last = results[-1]
    info = {
        "model": asdict(last.model),
        "sampling": asdict(last.settings),
        "stop_threshold": last.stop.threshold,
        "seed": seed,
        "dataset": str(getattr(scenes, "path", "scenes in memory")),
        "dataset_sha256": scenes.info["sha256"] if isinstance(scenes, ProjectFolder) else digest.hexdigest(),
        "scored_sha256": digest.hexdigest(),
        "images": count,
        "images_without_order": sum("layer_ious" not in row for row in rows),
        "command": shlex.join([_program(), *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "hardware": _hardware(),
        "versions": {
            "sas": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "diffusers", "numpy", "scipy")},
        },
    }
    return Report(scores=aggregate(rows), info=info)


def _program() -> str:
    """The program as it was started: `sas` for `python -m sas` too (a package's folder names it), `python` where there is no file."""
    file = Path(sys.argv[0])
    return (file.parent.name if file.name == "__main__.py" else file.name) or "python"


def _check_results(results: Sequence[LayeredResult], scenes: Sequence[Scene]) -> None:
    """A predictor is somebody else's function: say what it got wrong before a metric stumbles over it."""
    if len(results) != len(scenes):
        raise InputError(
            f"predictor must return one result an image, got {len(results)} for {len(scenes)}; "
            "return a LayeredResult without layers where nothing was found"
        )
    for scene, result in zip(scenes, results, strict=True):
        got = (result.geometry.height, result.geometry.width)
        if got != (scene.height, scene.width):
            raise InputError(
                f"predictor must return results in the frame of scene {scene.id!r}, {scene.height}x{scene.width} "
                f"(HxW), got {got[0]}x{got[1]}; make the Geometry from the image it was given"
            )


def _add_scene(digest: Any, scene: Scene) -> None:
    """Pixels, masks and order of one scene: two data sets with one hash ask the same question."""
    order = b"unknown" if scene.order_matrix is None else np.packbits(scene.order_matrix).tobytes()
    digest.update(f"{sha256_pixels(scene.image)}:{len(scene)}:".encode())
    parts = [np.packbits(scene.amodal_masks).tobytes(), order]
    # What most scenes do not have is left out, so that their hash stays what it was.
    if scene.visible_masks is not None:
        parts.append(b"visible" + np.packbits(scene.visible_masks).tobytes())
    if scene.min_overlap != DEFAULT_MIN_OVERLAP:
        parts.append(f"min_overlap {scene.min_overlap!r}".encode())
    if scene.known is not None:
        parts.append(b"known" + np.packbits(scene.known).tobytes())
    if not scene.complete:
        parts.append(b"incomplete")
    for part in parts:
        digest.update(hashlib.sha256(part).digest())


def _hardware() -> str:
    """Processor and threads, and the accelerator if this process has used it."""
    words = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name()}; {words}" if torch.cuda.is_initialized() else words


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
    """Scores at mask resolution when each layer is drawn behind the TRUE cumulative mask: IoU of each layer, and how it stops.

    Stop accuracy is the share of scenes in which the pass after the last layer is void and no pass before it is. Stop calibration is the
    expected calibration error of the stop head's probability over all passes. The gap between these IoUs and those of the
    report is the exposure error.
    """
    count = min(len(scenes), limit or len(scenes))
    stops: list[bool] = []
    ious: list[np.ndarray] = []
    probabilities: list[np.ndarray] = []
    config = pipe.config
    for start in range(0, count, batch):
        part = [scenes[i].drop_invisible() for i in range(start, min(start + batch, count))]
        known = [scene for scene in part if scene.order_matrix is not None]
        if not known:
            continue
        found = behind_truth(
            pipe,
            collate(known, image_size=config.image_size, mask_size=config.mask_size),
            members=ensemble_size or config.ensemble_size,
            steps=num_inference_steps or config.num_inference_steps,
            seed=seed,
        )
        stops += found.stops.tolist()
        ious += found.ious
        probabilities += found.stop_probabilities
    deepest = max((len(row) for row in ious), default=0)
    scores = {f"iou_layer_{k}_true_cumulative": _mean([row[k] for row in ious if len(row) > k]) for k in range(deepest)}
    if stops:
        scores["stop_accuracy_true_cumulative"] = _mean(stops)
    if probabilities:
        scores["stop_calibration_error_true_cumulative"] = _stop_calibration(probabilities)
    return scores


def _stop_calibration(probabilities: list[np.ndarray]) -> Score:
    """Expected calibration error of "nothing is left", with an interval over scenes; the last pass of each scene is the one to stop at."""

    def error(rows: list[np.ndarray]) -> float:
        truth = np.concatenate([np.arange(len(row)) == len(row) - 1 for row in rows])
        return metrics.expected_calibration_error(np.concatenate(rows).astype(np.float64), truth, bins=10)

    random = np.random.default_rng(0)
    drawn = [random.integers(0, len(probabilities), len(probabilities)) for _ in range(1000)]
    low, high = np.quantile([error([probabilities[i] for i in rows]) for rows in drawn], (0.025, 0.975))
    return Score(error(probabilities), float(low), float(high), len(probabilities))


def score_scene(scene: Scene, result: LayeredResult) -> dict[str, Any]:
    """All raw scores of one scene; a scene without order has order-free ones only, one that is not complete none that count layers.

    Pixels whose truth is unknown are left out on both sides.
    """
    shape = (0, scene.height, scene.width)
    found = [instance["segmentation"] for instance in result.instances]
    known = np.ones(shape[1:], dtype=bool) if scene.known is None else scene.known
    instances = (np.stack(found) if found else np.zeros(shape, dtype=bool)) & known
    predicted = result.masks_full() & known
    ordered = scene.order_matrix is not None
    # Who occludes whom, and so the layers, follows from the whole masks; only then are they cut.
    true = scene.layer_masks & known if ordered else np.zeros(shape, dtype=bool)
    occlusion = scene.occlusion if ordered else None
    if occlusion is not None:
        judged = (scene.amodal_masks & known).any(axis=(1, 2))  # the others' pairs could not be right
        occlusion = occlusion & judged[:, None] & judged[None, :]
    if scene.known is not None:
        visible = scene.visible & known if ordered else None
        scene = replace(scene, amodal_masks=scene.amodal_masks & known, visible_masks=visible)
    row: dict[str, Any] = {
        "foreground_iou": metrics.foreground_iou(predicted, scene.amodal_masks) if known.any() else np.nan,
        "instance_ious": np.where(
            scene.amodal_masks.any(axis=(1, 2)), metrics.instance_ious(instances, scene.amodal_masks), np.nan
        ),
    }
    if occlusion is None:
        return row
    if scene.complete:
        row["objects"] = len(scene)
        row["false_layers"] = metrics.false_layers(predicted, true)
        row["layer_count_error"] = metrics.layer_count_error(len(predicted), len(true))
    depth = np.array([instance["layer"] for instance in result.instances], dtype=np.int64)
    return {
        **row,
        # A true layer of which no pixel is known says nothing.
        "layer_ious": np.where(true.any(axis=(1, 2)), metrics.layer_ious(predicted, true), np.nan),
        "layer_areas": [
            (int((predicted[k] & t).sum()), int((predicted[k] | t).sum()))
            if k < len(predicted) and t.any()
            else (0, int(t.sum()))
            for k, t in enumerate(true)
        ],
        "layer_aps": metrics.layer_average_precisions(result.probability_full()[:, None, known], true[:, None, known]),
        "occlusion": metrics.occlusion_rate(scene.amodal_masks, scene.visible),
        "invisible_ious": metrics.invisible_ious(
            instances, scene.amodal_masks, scene.visible, occluded_above=OCCLUDED_ABOVE
        ),
        "invisible_counts": metrics.invisible_counts(instances, scene.amodal_masks, scene.visible),
        "pairs": metrics.pair_order_accuracy(instances, depth, scene.amodal_masks, occlusion),
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
        firsts = [
            float(np.nanmean(row)) for row in (row[f"layer_{name}s"][:3] for row in ordered) if not np.isnan(row).all()
        ]
        if deepest:
            scores[f"{name}_first_three_layers"] = _mean(firsts)
    for k in range(deepest):
        scores[f"iou_layer_{k}_pooled"] = _ratio(
            [row["layer_areas"][k] for row in ordered if len(row["layer_areas"]) > k]
        )
    scores["foreground_iou"] = _mean([row["foreground_iou"] for row in rows])
    scores["miou_full"] = _instance_mean([row["instance_ious"] for row in rows])
    if ordered:
        scores["invisible_iou"] = _instance_mean([row["invisible_ious"] for row in ordered])
        scores["invisible_iou_pooled"] = _ratio([row["invisible_counts"] for row in ordered])
        scores["order_accuracy"] = _ratio([row["pairs"] for row in ordered if row["pairs"][1]])
        complete = [row for row in ordered if "objects" in row]
        scores["layer_count_error"] = _mean([row["layer_count_error"] for row in complete])
        scores["layer_count_exact"] = _mean([row["layer_count_error"] == 0 for row in complete])
        scores["false_layers"] = _mean([row["false_layers"] for row in complete])
        few = [row["false_layers"] > 0 for row in complete if row["objects"] <= 1]
        scores["false_layers_at_most_one_object"] = _mean(few)
        bins = [_bins(row["occlusion"]) for row in ordered]
        for kind in ("instance", "invisible"):
            for number, name in enumerate(metrics.bin_names()):
                if number or kind == "instance":  # what is not occluded has no hidden part
                    scores[f"{kind}_iou_occluded_{name}"] = _instance_mean(
                        [row[f"{kind}_ious"][own == number] for row, own in zip(ordered, bins, strict=True)]
                    )
    scores["seconds_per_image"] = _median([row["seconds_per_image"] for row in rows if "seconds_per_image" in row])
    return scores


def _bins(rates: np.ndarray) -> np.ndarray:
    """Occlusion bin of each instance, -1 for one without a pixel: float (N,) -> int (N,)."""
    return np.array([-1 if np.isnan(rate) else metrics.occlusion_bin(float(rate)) for rate in rates], dtype=int)


def _mean(values: Sequence[float]) -> Score:
    numbers = np.asarray(values, dtype=float)
    if not np.isfinite(numbers).any():
        return UNDEFINED
    low, high = metrics.bootstrap_interval(numbers)
    return Score(float(np.nanmean(numbers)), low, high, int(np.isfinite(numbers).sum()))


def _instance_mean(values: Sequence[np.ndarray]) -> Score:
    """Mean over all instances (nan left out), one array an image; the interval draws images, whose instances go together."""
    counts = [int(np.isfinite(scores).sum()) for scores in values]
    return replace(_ratio([(float(np.nansum(v)), n) for v, n in zip(values, counts, strict=True)]), n=sum(counts))


def _median(values: Sequence[float]) -> Score:
    if not values:
        return UNDEFINED
    numbers = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(0).integers(len(numbers), size=(1000, len(numbers)))
    low, high = np.quantile(np.median(numbers[drawn], axis=1), (0.025, 0.975))
    return Score(float(np.median(numbers)), float(low), float(high), len(numbers))


def _ratio(pairs: Sequence[tuple[float, float]]) -> Score:
    numerators, denominators = (np.asarray([pair[i] for pair in pairs], dtype=float) for i in (0, 1))
    if not denominators.sum():
        return UNDEFINED
    low, high = metrics.ratio_bootstrap_interval(numerators, denominators)
    return Score(float(numerators.sum() / denominators.sum()), low, high, int((denominators > 0).sum()))
