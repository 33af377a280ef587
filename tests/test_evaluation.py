"""Running predictors over data sets: scores by hand, an oracle, reports on disk, data sets by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import box
from scipy import ndimage
from tiny import tiny_config, write_scenes

from sas.config import DataSettings
from sas.data.composer import Composer
from sas.data.folders import ProjectFolder, SASFolders, write_sas_folders
from sas.evaluation import (
    RULES,
    Predictor,
    Report,
    Score,
    aggregate,
    evaluate,
    load_dataset,
    pipeline_predictor,
    score_scene,
    true_mask_scores,
)
from sas.factory import build_composer, check_data
from sas.geometry import Geometry
from sas.io import InputError
from sas.metrics import bin_names
from sas.pipeline import SASPipeline
from sas.provenance import EnsembleSettings, ModelInfo, Stop
from sas.result import LayeredResult, make_preview
from sas.scene import Scene, collate
from sas.seeding import TEST_SEED
from sas.validation import validate

SIDE = 16  # a power of two: the way from the mask grid to the picture is then exact, also for probabilities
DATA = {
    "classes": 3,
    "views": 2,
    "sprite_size": 20,
    "background_count": 3,
    "image_size": 16,
    "mask_size": 16,
    "families": ["superquadric", "box"],
}


def result_of(image: np.ndarray, layers: np.ndarray) -> LayeredResult:
    """A result with the given layers, bool (K, H, W), of an image whose longer side is the side of the mask grid."""
    height, width = image.shape[:2]
    side = max(height, width)
    geometry = Geometry.fit(height=height, width=width, size=side, mask_size=side)
    masks = np.zeros((len(layers), side, side), dtype=bool)
    masks[:, geometry.top : geometry.top + height, geometry.left : geometry.left + width] = layers
    return LayeredResult(
        preview=make_preview(image),
        geometry=geometry,
        members=masks[:, None],
        masks=masks,
        probability=masks.astype(np.float32),
        uncertainty=np.zeros(masks.shape, dtype=np.float32),
        stop=Stop(reason="empty", votes=1),
        settings=EnsembleSettings(members=1, steps=1, seed=0, consensus="medoid", mode="diffusion"),
        model=ModelInfo(id="stand-in", sha256=""),
        min_instance_area=0.0,
    )


def answers(scenes: Sequence[Scene], layers: Sequence[np.ndarray]) -> Predictor:
    """A predictor that knows the layers of each picture."""
    known = {scene.image.tobytes(): masks for scene, masks in zip(scenes, layers, strict=True)}
    return lambda images, seed: [result_of(image, known[image.tobytes()]) for image in images]


def nothing(images: list[np.ndarray], seed: int) -> list[LayeredResult]:
    return [result_of(image, np.zeros((0, *image.shape[:2]), dtype=bool)) for image in images]


def make_scene(number: int, masks: Sequence[np.ndarray], *edges: tuple[int, int], shape: tuple[int, int]) -> Scene:
    order = np.zeros((len(masks), len(masks)), dtype=bool)
    for front, behind in edges:
        order[front, behind] = True
    return Scene(
        image=np.full((*shape, 3), number, dtype=np.uint8),
        amodal_masks=np.stack(masks) if masks else np.zeros((0, *shape), dtype=bool),
        order_matrix=order,
        id=f"scene{number}",
    )


def square(*corners: int) -> np.ndarray:
    return box(SIDE, SIDE, *corners)


@pytest.fixture
def pair() -> list[Scene]:
    """A: object 0 in front of object 1, 16 pixels each, 4 of object 1 hidden. B: one object of 16 pixels."""
    a = make_scene(1, [square(0, 0, 4, 4), square(2, 2, 6, 6)], (0, 1), shape=(SIDE, SIDE))
    return [a, make_scene(2, [square(0, 0, 4, 4)], shape=(SIDE, SIDE))]


@pytest.fixture
def pair_report(pair: list[Scene]) -> Report:
    """A: layer 0 as it is, layer 1 without its first column (12 of 16 pixels), and a false layer of 4. B: nothing."""
    found = np.stack([square(0, 0, 4, 4), square(2, 3, 6, 6), square(8, 8, 10, 10)])
    return evaluate(answers(pair, [found, found[:0]]), pair, progress=False)


@pytest.fixture(scope="module")
def composer() -> Composer:
    return build_composer(DataSettings(**DATA), seed=TEST_SEED, atlas_seed=TEST_SEED)


@pytest.fixture(scope="module")
def composed(composer: Composer) -> list[Scene]:
    """Composed scenes whose objects can be told apart: each layer has as many components as objects.

    Results know objects as connected components only, so others cannot be scored perfectly by anybody.
    """

    def apart(scene: Scene) -> bool:
        pieces = [ndimage.label(mask, np.ones((3, 3)))[1] for mask in scene.layer_masks]
        return pieces == np.bincount(scene.layer_index, minlength=len(pieces)).tolist()

    scenes = [scene for scene in composer.scenes(0, range(24)) if apart(scene)]
    assert len(scenes) >= 8
    assert max(len(scene.layer_masks) for scene in scenes) >= 3
    return scenes


# --------------------------------------------------------------------------------------------------------------- scores


def test_aggregate_of_two_scenes_by_hand(pair_report: Report) -> None:
    expected = {
        "iou_layer_0": (0.5, 2),  # A 16/16, B missing
        "iou_layer_1": (0.75, 1),  # A 12/16
        "iou_first_three_layers": (0.4375, 2),  # A (1 + 0.75) / 2, B 0
        "iou_layer_0_pooled": (0.5, 2),  # (16 + 0) / (16 + 16)
        "iou_layer_1_pooled": (0.75, 1),
        "ap_layer_0": (0.5, 2),
        "ap_layer_1": (0.765625, 1),  # recall 12/16 at precision 1, the rest at precision 16/256: 0.75 + 0.25 / 16
        "ap_first_three_layers": (0.44140625, 2),  # A (1 + 0.765625) / 2, B 0
        "foreground_iou": (0.40625, 2),  # A: 16 + 12 - 2 shared = 26 right, of 28 true and 4 extra: 26/32; B 0
        "miou_full": (1.75 / 3, 3),  # instances: 1, 0.75, 0
        "invisible_iou": (0.5, 1),  # 2 of the 4 hidden pixels of object 1
        "invisible_iou_pooled": (0.5, 1),
        "order_accuracy": (1.0, 1),
        "layer_count_error": (1.0, 2),  # 3 for 2, 0 for 1
        "layer_count_exact": (0.0, 2),
        "false_layers": (0.5, 2),
        "false_layers_at_most_one_object": (0.0, 1),
        "instance_iou_occluded_0": (0.5, 2),  # object 0 of A, and B's
        "instance_iou_occluded_(0.1, 0.25]": (0.75, 1),  # 4/16 hidden: the upper end belongs to the bin
        "invisible_iou_occluded_(0.1, 0.25]": (0.5, 1),
    }
    for name, (value, n) in expected.items():
        assert pair_report.scores[name].value == pytest.approx(value), name
        assert pair_report.scores[name].n == n, name
    binned = {f"instance_iou_occluded_{name}" for name in bin_names()}
    binned |= {f"invisible_iou_occluded_{name}" for name in bin_names()[1:]}
    empty = binned - set(expected)
    assert all(math.isnan(pair_report.scores[name].value) and pair_report.scores[name].n == 0 for name in empty)
    assert set(pair_report.scores) == set(expected) | empty | {"seconds_per_image"}


def test_intervals_draw_images_with_all_their_instances(pair_report: Report) -> None:
    # Two images: A twice gives (1 + 0.75) / 2 = 0.875, B twice 0. Drawn one by one, instances would reach 1.
    score = pair_report.scores["miou_full"]
    assert (score.low, score.high) == (0.0, 0.875)


def test_bins_hold_instances_and_draw_images() -> None:
    scenes = [make_scene(n, [square(0, 4 * i, 3, 4 * i + 3) for i in range(n)], shape=(SIDE, SIDE)) for n in (1, 3)]
    report = evaluate(answers(scenes, [scenes[0].layer_masks[:0], scenes[1].layer_masks]), scenes, progress=False)
    score = report.scores["instance_iou_occluded_0"]
    assert (score.value, score.low, score.high, score.n) == (0.75, 0.0, 1.0, 4)  # 3 of 4 found


def test_first_three_layers_are_three() -> None:
    chain = [square(2 * i, 2 * i, 2 * i + 4, 2 * i + 4) for i in range(4)]
    scene = make_scene(0, chain, (0, 1), (1, 2), (2, 3), shape=(SIDE, SIDE))
    report = evaluate(answers([scene], [scene.layer_masks[:2]]), [scene], progress=False)
    for name in ("iou", "ap"):  # 1, 1, and 0 for the missing third; the fourth does not enter
        assert report.scores[f"{name}_first_three_layers"].value == pytest.approx(2 / 3)
        assert report.scores[f"{name}_layer_3"].value == 0


def test_seconds_are_a_median_whose_interval_leaves_out_a_slow_start(pair: list[Scene]) -> None:
    rows = [{**score_scene(pair[0], result_of(pair[0].image, pair[0].layer_masks)), "seconds_per_image": 1.0}] * 8
    score = aggregate([{**rows[0], "seconds_per_image": 50.0}, *rows])["seconds_per_image"]
    assert (score.value, score.low, score.high, score.n) == (1.0, 1.0, 1.0, 9)


def test_oracle_scores_one_everywhere(composed: list[Scene]) -> None:
    report = evaluate(answers(composed, [s.layer_masks for s in composed]), composed, progress=False)
    zero = {"layer_count_error", "false_layers", "false_layers_at_most_one_object"}
    for name, score in report.scores.items():
        if name != "seconds_per_image" and score.n:
            assert (score.value, score.low, score.high) == ((0, 0, 0) if name in zero else (1, 1, 1)), name
    defined = {name for name, score in report.scores.items() if score.n}
    assert {"iou_layer_2", "ap_layer_2", "invisible_iou", "order_accuracy", *zero} <= defined


def test_oracle_on_a_picture_that_is_not_square(tiny_scene: Scene) -> None:
    report = evaluate(answers([tiny_scene], [tiny_scene.layer_masks]), [tiny_scene], progress=False)
    assert report.scores["miou_full"] == Score(1.0, 1.0, 1.0, 4)
    assert report.scores["order_accuracy"].value == 1


def test_finding_nothing(composed: list[Scene]) -> None:
    scores = evaluate(nothing, composed, progress=False).scores
    full = [len(scene.layer_masks) for scene in composed]
    for name in ("iou_layer_0", "ap_layer_0", "iou_layer_0_pooled", "miou_full", "invisible_iou", "order_accuracy"):
        assert scores[name].value == 0, name
    assert scores["layer_count_error"].value == pytest.approx(np.mean(full))
    assert scores["layer_count_exact"].value == pytest.approx(np.mean([count == 0 for count in full]))
    assert scores["false_layers"].value == 0


def test_a_false_layer_on_an_empty_picture() -> None:
    scene = make_scene(0, [], shape=(SIDE, SIDE))
    report = evaluate(answers([scene], [square(0, 0, 1, 1)[None]]), [scene], progress=False)
    assert report.scores["false_layers_at_most_one_object"].value == 1
    assert report.scores["foreground_iou"].value == 0
    assert report.scores["miou_full"].n == 0
    assert not any(name.startswith(("iou_layer", "ap_")) for name in report.scores)
    assert evaluate(nothing, [scene], progress=False).scores["foreground_iou"].value == 1  # two empty masks


def test_swapped_layers_lose_the_order_and_keep_the_instances(pair: list[Scene]) -> None:
    scores = evaluate(answers(pair[:1], [pair[0].layer_masks[::-1]]), pair[:1], progress=False).scores
    assert scores["order_accuracy"].value == 0
    assert scores["miou_full"].value == 1
    assert scores["iou_layer_0"].value == pytest.approx(4 / 28)


def test_scenes_of_unknown_order_have_scores_without_order_only(pair: list[Scene]) -> None:
    unordered = replace(pair[0], order_matrix=None)
    layers = pair[0].layer_masks
    report = evaluate(answers([unordered], [layers]), [unordered], progress=False)
    assert set(report.scores) == {"foreground_iou", "miou_full", "seconds_per_image"}
    assert report.scores["miou_full"] == Score(1.0, 1.0, 1.0, 2)
    mixed = [unordered, pair[1]]
    report = evaluate(answers(mixed, [layers, pair[1].layer_masks]), mixed, progress=False)
    assert (report.scores["foreground_iou"].n, report.scores["iou_layer_0"].n) == (2, 1)
    assert report.info["images_without_order"] == 1
    assert "2 images (1 of unknown order)" in report.to_markdown()
    assert any("order is unknown" in rule for rule in report.rules)


def test_pixels_whose_truth_is_unknown_enter_no_score(pair: list[Scene]) -> None:
    """A prediction that goes on where nobody knows the truth is as good as one that does not."""
    known = np.ones((SIDE, SIDE), dtype=bool)
    known[:, 4:] = False
    scene = replace(pair[1], known=known)
    wider = square(0, 0, 4, 12)
    scores = evaluate(answers([scene], [wider[None]]), [scene], progress=False).scores
    for name in ("iou_layer_0", "ap_layer_0", "foreground_iou", "miou_full"):
        assert scores[name].value == 1, name
    lost = replace(pair[0], order_matrix=None, known=~square(2, 2, 6, 6))
    report = evaluate(answers([lost], [pair[0].layer_masks[:1]]), [lost], progress=False)
    assert report.scores["miou_full"].n == 1, "an object of which nothing is known is left out"
    nothing = replace(pair[1], known=np.zeros((SIDE, SIDE), dtype=bool), complete=False)
    report = evaluate(answers([scene, nothing], [wider[None], wider[None]]), [scene, nothing], progress=False)
    assert report.scores["foreground_iou"].n == 1, "two masks that nobody can judge agree on nothing"


@pytest.mark.parametrize("drawn", [1, 2])
def test_a_layer_of_which_no_pixel_is_known_enters_no_score(pair: list[Scene], drawn: int) -> None:
    layers = pair[0].layer_masks
    scene = replace(pair[0], known=~layers[1])
    assert (layers[0] & ~layers[1]).any()
    report = evaluate(answers([scene], [layers[:drawn]]), [scene], progress=False)
    for name in ("iou", "ap"):
        assert report.scores[f"{name}_layer_0"].value == report.scores[f"{name}_first_three_layers"].value == 1
        assert report.scores[f"{name}_layer_1"].n == 0
    assert "n/a" in report.to_markdown()
    raw = score_scene(scene, result_of(scene.image, np.ones_like(layers)))
    assert raw["layer_areas"][1] == (0, 0), "what is drawn there costs nothing"
    assert raw["pairs"] == (0, 0), "nor does a pair of which one end cannot be found"


def test_who_occludes_whom_is_known_where_their_overlap_is_not(pair: list[Scene]) -> None:
    """The objects touch in unknown pixels alone: the layers stay those of the whole masks, and a perfect answer stays perfect."""
    scene = replace(pair[0], known=~square(2, 2, 4, 4))
    scores = evaluate(answers([scene], [pair[0].layer_masks]), [scene], progress=False).scores
    for name in ("iou_layer_0", "iou_layer_1", "order_accuracy", "layer_count_exact"):
        assert scores[name].value == 1, name
    assert scores["false_layers"].value == 0


def test_objects_without_a_pixel_are_left_out() -> None:
    front, lost = square(0, 0, 6, 6), square(1, 1, 3, 3)
    scene = make_scene(0, [front, lost], (0, 1), shape=(SIDE, SIDE))
    report = evaluate(answers([scene], [front[None]]), [scene], progress=False)
    assert report.scores["miou_full"] == Score(1.0, 1.0, 1.0, 1)
    assert str(report.scores["miou_full"]) == "1.000", "one instance has no interval"
    assert report.scores["layer_count_exact"].value == 1
    blank = replace(scene, amodal_masks=np.stack([front, np.zeros_like(front)]), order_matrix=None)
    assert evaluate(answers([blank], [front[None]]), [blank], progress=False).scores["miou_full"].n == 1


# ------------------------------------------------------------------------------------------------------------ predictors


def test_limit_batch_and_seed_reach_the_predictor(composed: list[Scene]) -> None:
    calls: list[tuple[int, int]] = []

    def watch(images: list[np.ndarray], seed: int) -> list[LayeredResult]:
        assert all(image.dtype == np.uint8 and image.ndim == 3 for image in images)
        calls.append((len(images), seed))
        return nothing(images, seed)

    report = evaluate(watch, composed, limit=5, batch=2, seed=7, progress=False)
    assert calls == [(2, 7), (2, 7), (1, 7)]
    assert (report.info["images"], report.info["seed"]) == (5, 7)
    assert evaluate(watch, composed, limit=10_000, progress=False).info["images"] == len(composed)


def test_batch_size_changes_no_score(composed: list[Scene]) -> None:
    oracle = answers(composed, [scene.layer_masks[:1] for scene in composed])
    whole, single = (evaluate(oracle, composed, batch=batch, progress=False) for batch in (8, 1))
    names = set(whole.scores) - {"seconds_per_image"}
    assert {n: whole.scores[n].to_dict() for n in names} == {n: single.scores[n].to_dict() for n in names}
    assert whole.info["scored_sha256"] == single.info["scored_sha256"]


def test_pipeline_is_a_predictor(tiny_pipe: SASPipeline, composed: list[Scene]) -> None:
    predictor = pipeline_predictor(tiny_pipe, ensemble_size=2, num_inference_steps=1)
    first, again, other = (evaluate(predictor, composed[:3], seed=seed, progress=False) for seed in (3, 3, 4))
    assert first.info["sampling"] == {
        "members": 2, "steps": 1, "seed": 3, "consensus": "medoid", "mode": "diffusion", "noise_scale": 1.0
    }  # fmt: skip
    assert first.info["model"]["sha256"] == tiny_pipe.model_info.sha256
    assert first.info["stop_threshold"] is None  # this network has no stop output
    stable = [name for name in first.scores if name != "seconds_per_image"]
    assert [str(first.scores[n]) for n in stable] == [str(again.scores[n]) for n in stable]
    assert other.info["sampling"]["seed"] == other.info["seed"] == 4
    assert first.scores["seconds_per_image"].value > 0


def test_true_masks_as_cumulative_masks(tiny_pipe: SASPipeline, pair: list[Scene]) -> None:
    scores = true_mask_scores(tiny_pipe, pair, ensemble_size=1, num_inference_steps=1)
    assert set(scores) == {f"iou_layer_{k}_true_cumulative" for k in (0, 1)} | {"stop_accuracy_true_cumulative"}
    assert [scores[f"iou_layer_{k}_true_cumulative"].n for k in (0, 1)] == [2, 1]
    assert all(0 <= score.low <= score.value <= score.high <= 1 for score in scores.values())
    assert true_mask_scores(tiny_pipe, [replace(pair[0], order_matrix=None)]) == {}
    config = tiny_pipe.config
    batch = collate(pair, image_size=config.image_size, mask_size=config.mask_size)
    whole = validate(tiny_pipe, batch, members=1, steps=1)
    assert [scores[f"iou_layer_{k}_true_cumulative"].value for k in (0, 1)] == pytest.approx(whole.behind.by_layer[:2])
    assert scores["stop_accuracy_true_cumulative"].value == whole.behind.stop_accuracy


@pytest.mark.parametrize("name", ["limit", "batch"])
def test_limit_and_batch_are_positive(name: str, composed: list[Scene]) -> None:
    with pytest.raises(InputError, match=f"{name} must be at least 1, got 0"):
        evaluate(nothing, composed, progress=False, **{name: 0})  # type: ignore[arg-type]


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(InputError, match="scenes must hold at least one scene, got none"):
        evaluate(nothing, [], progress=False)


def test_results_must_fit_the_pictures(pair: list[Scene]) -> None:
    with pytest.raises(InputError, match="one result an image, got 1 for 2"):
        evaluate(lambda images, seed: nothing(images[:1], seed), pair, progress=False)
    with pytest.raises(InputError, match=r"in the frame of scene 'scene1', 16x16 \(HxW\), got 8x16"):
        evaluate(lambda images, seed: nothing([image[:8] for image in images], seed), pair, progress=False)


# --------------------------------------------------------------------------------------------------------------- reports


def test_report_files(pair_report: Report, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "metrics.json").write_text("old")
    pair_report.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"notes.txt", "metrics.json", "metrics.md"}
    assert (tmp_path / "notes.txt").read_text() == "mine"
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored == pair_report.to_dict()
    assert stored["metrics"]["iou_layer_1"] == {"value": 0.75, "low": 0.75, "high": 0.75, "n": 1}
    assert stored["metrics"]["instance_iou_occluded_(0, 0.1]"] == {"value": None, "low": None, "high": None, "n": 0}
    assert stored["rules"] == list(RULES)
    assert stored["model"] == {"id": "stand-in", "sha256": ""}
    wanted = {"seed", "sampling", "dataset", "dataset_sha256", "scored_sha256", "command", "date", "hardware", "images"}
    assert wanted <= set(stored)
    assert {"sas", "python", "torch", "diffusers", "numpy"} <= set(stored["versions"])


def test_report_in_words(pair_report: Report) -> None:
    lines = pair_report.to_markdown().splitlines()
    assert lines[0] == "# Evaluation of stand-in on scenes in memory"
    assert "| miou full | 0.583 [0.000, 0.875] | 3 |" in lines
    assert "| instance iou occluded (0, 0.1] | n/a | 0 |" in lines
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(pair_report.scores)
    assert [line[2:] for line in lines if line.startswith("- ")] == list(RULES)


def test_report_to_a_place_that_is_a_file(pair_report: Report, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InputError, match=r"cannot write .*taken"):
        pair_report.save(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_hash_names_pictures_masks_and_order(pair: list[Scene]) -> None:
    def digest(scene: Scene) -> str:
        return evaluate(nothing, [scene], progress=False).info["scored_sha256"]

    a = pair[0]
    image = a.image.copy()
    image[0, 0, 0] ^= 1
    masks = a.amodal_masks.copy()
    masks[0, 15, 15] = True
    variants = [a, replace(a, image=image), replace(a, amodal_masks=masks), replace(a, order_matrix=a.order_matrix.T)]  # type: ignore[union-attr]
    variants.append(replace(a, order_matrix=None))
    assert len({digest(scene) for scene in variants}) == len(variants)
    assert digest(a) == digest(replace(a, id="another name"))


# -------------------------------------------------------------------------------------------------------------- data sets


@pytest.fixture
def write_yaml(tmp_path: Path) -> Callable[[object], Path]:
    def write(content: object) -> Path:
        path = tmp_path / "data.yaml"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


def test_data_set_of_a_folder(tmp_path: Path, write_yaml: Callable[[object], Path]) -> None:
    folder = write_scenes(tmp_path / "project")
    scenes = load_dataset(folder)
    assert isinstance(scenes, ProjectFolder)
    report = evaluate(nothing, scenes, limit=2, progress=False)
    assert report.info["dataset"] == folder
    assert report.info["dataset_sha256"] == scenes.info["sha256"] != report.info["scored_sha256"]
    write_sas_folders(tmp_path / "sas", scenes)
    assert isinstance(load_dataset(str(tmp_path / "sas")), SASFolders)
    assert len(load_dataset(write_yaml({"data": {"scenes": folder}}))) == len(scenes)


def test_data_set_of_composed_scenes(write_yaml: Callable[[object], Path], composer: Composer) -> None:
    path = write_yaml({"data": DATA, "count": 6})
    scenes, expected = load_dataset(str(path)), composer.scenes(0, range(6))  # the default seed is the test seed
    assert len(scenes) == 6
    for one, other in zip(scenes, expected, strict=True):
        assert one.id == other.id
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.amodal_masks, other.amodal_masks)
        assert np.array_equal(one.order_matrix, other.order_matrix)  # type: ignore[arg-type]
    assert scenes[-1].id == expected[5].id
    assert [scene.id for scene in scenes[1:3]] == [scene.id for scene in expected[1:3]]
    with pytest.raises(IndexError):
        scenes[6]
    assert evaluate(nothing, scenes, limit=1, progress=False).info["dataset"] == str(path)
    other = load_dataset(write_yaml({"data": DATA, "count": 1, "seed": TEST_SEED + 1}))
    assert not np.array_equal(other[0].image, scenes[0].image)


def test_two_hundred_scenes_if_no_count_is_given(write_yaml: Callable[[object], Path]) -> None:
    assert len(load_dataset(write_yaml({"data": DATA}))) == 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("count: abc", "count must be a whole number of at least 1, got 'abc'"),
        ("count: 2.7", r"count must be a whole number of at least 1, got 2\.7"),
        ("count: true", "count must be a whole number of at least 1, got True"),
        ("count: 0", "count must be a whole number of at least 1, got 0"),
        ("seed: -1", "seed must be a whole number of at least 0, got -1"),
        ("sead: 1", "may hold data, count and seed, got sead"),
        ("1: x", "may hold data, count and seed, got 1"),
        ("- a", "must hold a section `data:`, got list"),
        ("data: [1]", "data must be fields and their values, got"),
        ("data: {clases: 3}", r"unknown key data\.clases: did you mean data\.classes"),
        ("data: {objects: [3, 1]}", "objects must be "),
        ("data: {families: [nonsense]}", r"data\.yaml: data\.families must be of"),
        ("data: {scenes: nowhere}", r"data\.yaml: data nowhere must be a folder, found nothing"),
        ("data: {cutouts: [nowhere]}", r"data\.yaml: .*nowhere"),
        ("count: 5\ncount: 7", "is no valid YAML .*'count' is there twice"),
        ("data: {scenes: nowhere}\ncount: 5", r"data\.scenes excludes count, which would have no effect"),
        ("data: {", "is no valid YAML"),
        (b"\xff", "is no valid YAML"),
    ],
)
def test_faults_of_a_data_file_are_named(content: object, message: str, write_yaml: Callable[[object], Path]) -> None:
    with pytest.raises(InputError, match=message):
        load_dataset(write_yaml(content))


def test_min_overlap_is_that_of_the_scenes_or_refused(
    tmp_path: Path, write_yaml: Callable[[object], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_scenes(tmp_path / "set")  # with 0.01
    info = json.loads((tmp_path / "set" / "dataset.json").read_text())
    (tmp_path / "set" / "dataset.json").write_text(json.dumps({**info, "min_overlap": 0.3}))
    data = {"scenes": folder, "format": "project"}
    with pytest.raises(
        InputError, match=r"data\.yaml: data\.min_overlap must be 0\.3, which the scenes of .* bring .*, got 0\.5"
    ):
        load_dataset(write_yaml({"data": {**data, "min_overlap": 0.5}}))
    assert load_dataset(write_yaml({"data": {**data, "min_overlap": 0.3}}))[0].min_overlap == 0.3
    for value, words in ((0.01, "set data.min_overlap to 0.3"), (0.3, "")):
        caplog.clear()
        check_data(tiny_config(data_scenes=folder, data_min_overlap=value).data)
        assert words in caplog.text and bool(words) == bool(caplog.text)


def test_data_sets_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml cannot be read"):
        load_dataset(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="must be a folder, found nothing"):
        load_dataset(tmp_path / "none")
