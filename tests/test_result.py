"""The result of taking one image apart: rules of its fields, what is derived from them, and its files."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from sas.geometry import Geometry
from sas.io import InputError, rle_decode
from sas.provenance import EnsembleSettings, ModelInfo, Stop
from sas.result import LayeredResult, make_preview, preview_size

MASK_SIZE = 32
SCHEMA = json.loads((resources.files("sas") / "result.schema.json").read_text(encoding="utf-8"))


def _result(
    masks: np.ndarray, *, height: int = 64, width: int = 96, members: int = 2, share: float = 0.8, **others: Any
) -> LayeredResult:
    """A result whose first member sets the masks, the others only what of them lies in the grid's left half."""
    masks = np.asarray(masks, dtype=bool).reshape(-1, MASK_SIZE, MASK_SIZE)
    votes = np.repeat(masks[:, None], members, axis=1)
    votes[:, 1:, :, MASK_SIZE // 2 :] = False
    image = np.arange(height * width * 3, dtype=np.uint32).reshape(height, width, 3).astype(np.uint8)
    fields: dict[str, Any] = {
        "preview": make_preview(image),
        "geometry": Geometry.fit(height=height, width=width, size=2 * MASK_SIZE, mask_size=MASK_SIZE),
        "members": votes,
        "masks": masks,
        "probability": np.where(masks, share, 0.05).astype(np.float32),
        "uncertainty": votes.astype(np.float32).var(axis=1) if len(masks) else np.zeros(masks.shape, np.float32),
        "stop": Stop("empty", votes=members),
        "settings": EnsembleSettings(members=members, steps=4, seed=7, consensus="medoid", mode="diffusion"),
        "model": ModelInfo(id="tiny", sha256="0a" * 32),
        "file": "photo.jpg",
    }
    return LayeredResult(**(fields | others))


@pytest.fixture
def layers() -> np.ndarray:
    """A block in front; behind it a bar and, apart, a small block. The input fills rows 5 to 26 of the grid."""
    masks = np.zeros((2, MASK_SIZE, MASK_SIZE), dtype=bool)
    masks[0, 10:20, 8:16] = True
    masks[1, 12:16, 12:24] = True
    masks[1, 22:25, 2:6] = True
    return masks


@pytest.fixture
def result(layers: np.ndarray) -> LayeredResult:
    return _result(layers)


def _picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# -- fields -----------------------------------------------------------------------------------------


def test_fields_are_copied_and_read_only(layers: np.ndarray) -> None:
    result = _result(layers)
    with pytest.raises(ValueError, match="read-only"):
        result.masks[0, 0, 0] = True
    with pytest.raises(AttributeError):
        result.file = "other.jpg"  # type: ignore[misc]
    own = result.masks.copy()
    again = replace(result, masks=own)
    own[:] = False
    assert again.equals(result) and own.flags.writeable


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("masks", np.zeros((2, 32, 32)), "masks must be bool, got float64"),
        ("masks", np.zeros((3, 32, 32), dtype=bool), "members must have shape .* with .*K=3"),
        ("masks", np.zeros((2, 32, 31), dtype=bool), "masks must have shape"),
        ("members", np.zeros((2, 3, 32, 32), dtype=bool), "members must have shape .*E=2"),
        ("probability", np.zeros((2, 32, 32)), "probability must be float32, got float64"),
        ("probability", np.full((2, 32, 32), 1.1, np.float32), r"probability must lie in \[0, 1\], got \[1.1, 1.1\]"),
        ("probability", np.full((2, 32, 32), np.nan, np.float32), r"probability must lie in \[0, 1\]"),
        ("probability", np.zeros((1, 32, 32), np.float32), "probability must have shape"),
        ("uncertainty", np.full((2, 32, 32), 0.3, np.float32), r"uncertainty must lie in \[0, 0.25\], .*variance"),
        ("uncertainty", np.full((2, 32, 32), -0.1, np.float32), r"uncertainty must lie in \[0, 0.25\]"),
        ("preview", np.zeros((96, 64, 3), dtype=np.uint8), r"preview must have shape \(64, 96, 3\).*make_preview"),
        ("stop", Stop("empty", votes=3), "stop.votes must not exceed settings.members = 2, got 3"),
        ("min_overlap", 1.0, r"min_overlap must be a fraction in \[0, 1\), got 1.0"),
        ("min_instance_area", float("nan"), "min_instance_area must be a fraction"),
    ],
)
def test_a_field_that_breaks_its_rule_is_named(layers: np.ndarray, field: str, value: Any, message: str) -> None:
    good = _result(layers)
    with pytest.raises(ValueError, match=message):
        replace(good, **{field: value})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("masks", [[True]], "masks must be a NumPy array, got list"),
        ("stop", "empty", "stop must be a Stop, got str"),
        ("geometry", None, "geometry must be a Geometry, got NoneType"),
        ("file", Path("a.jpg"), "file must be a str, got"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(result: LayeredResult, field: str, value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        replace(result, **{field: value})


def test_settings_refuse_what_has_no_meaning() -> None:
    with pytest.raises(
        ValueError, match=r"stop\.reason must be one of 'empty', 'no_progress', 'max_layers', got 'done'"
    ):
        Stop("done", votes=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"stop\.votes must be an integer of at least 0, got -1"):
        Stop("empty", votes=-1)
    with pytest.raises(ValueError, match=r"stop\.probability must lie in \[0, 1\] or be None, got 1\.5"):
        Stop("empty", votes=1, probability=1.5)
    for wrong in (0.0, 1.5):
        with pytest.raises(
            ValueError, match=rf"stop\.threshold must lie in \(0, 1\] or be None, got {wrong}: pass that"
        ):
            Stop("empty", votes=1, probability=0.5, threshold=wrong)
    good: dict[str, Any] = {"members": 1, "steps": 1, "seed": 0, "consensus": "mean", "mode": "marginal"}
    wrong_ones = {"members": 0, "steps": True, "seed": -1, "consensus": "best", "mode": "fast", "noise_scale": 2.1}
    for name, value in wrong_ones.items():
        with pytest.raises(ValueError, match=f"settings.{name} must be"):
            EnsembleSettings(**(good | {name: value}))
    with pytest.raises(ValueError, match=r"model\.sha256 must be 64 lower-case hex digits"):
        ModelInfo(id="x", sha256="ABC")
    assert ModelInfo(id="x", sha256="").sha256 == ""


def test_rounding_errors_are_brought_back_into_range(layers: np.ndarray) -> None:
    result = _result(layers, uncertainty=np.full((2, 32, 32), 0.25 + 5e-7, np.float32))
    assert result.uncertainty.max() == 0.25


def test_equality_sees_every_field(result: LayeredResult, layers: np.ndarray) -> None:
    assert result == _result(layers) and result.equals(_result(layers))
    assert result != "photo.jpg"
    changed = result.probability.copy()
    changed[1, 3, 3] += 0.01
    others = {
        "probability": changed,
        "members": ~result.members,
        "preview": 255 - result.preview,
        "file": "other.jpg",
        "stop": Stop("max_layers", votes=0),
        "min_overlap": 0.5,
        "model": ModelInfo(id="tiny", sha256=""),
    }
    for name, value in others.items():
        assert not replace(result, **{name: value}).equals(result), name


def test_what_shows_no_pixel_is_no_instance(layers: np.ndarray) -> None:
    layers[1, 22:25, 2:6] = False
    layers[0, 21:26, 1:7] = layers[1, 22:25, 2:6] = True  # the small block behind a larger one
    result = _result(layers)
    assert [(one["layer"], one["occlusion_rate"] < 1) for one in result.instances] == [(0, True), (0, True), (1, True)]
    assert result.masks[1, 23, 3], "the mask of the layer stays as it was drawn"
    layers[0, 23, 3] = False
    assert [one["layer"] for one in _result(layers).instances] == [0, 0, 1, 1]


# -- layers -----------------------------------------------------------------------------------------


def test_layers_are_seen_in_the_input_frame(result: LayeredResult) -> None:
    assert len(result) == 2 and [layer.index for layer in result] == [0, 1] and result[-1].index == 1
    layer = result[1]
    assert layer.mask.shape == layer.probability.shape == layer.uncertainty.shape == (64, 96)
    assert layer.mask.dtype == bool and layer.probability.dtype == layer.uncertainty.dtype == np.float32
    assert layer.area == layer.mask.sum()
    assert (layer.mask == result.masks_full()[1]).all()
    assert (layer.probability == result.probability_full()[1]).all()
    assert (layer.uncertainty == result.uncertainty_full()[1]).all()
    assert layer.members.shape == (len(result.members[1]), 64, 96) and layer.members.dtype == bool
    assert (layer.members == result.geometry.to_input(result.members[1])).all()
    assert [one["id"] for one in layer.instances] == [1, 2]
    # 32 cells span 96 pixels, so 8 x 10 cells are about 24 x 30 pixels
    assert result[0].area == pytest.approx(24 * 30, rel=0.05)
    with pytest.raises(IndexError, match="layer 2 does not exist: the result has 2 layers"):
        result[2]


def test_uncertainty_map_is_the_largest_over_layers(result: LayeredResult) -> None:
    assert (result.uncertainty_map() == result.uncertainty_full().max(axis=0)).all()
    assert result.uncertainty_map().max() == 0.25


def test_predictive_variance_map_is_that_of_the_mean_probability(result: LayeredResult) -> None:
    own = result.predictive_variance_map()
    assert own.dtype == np.float32 and own.shape == result.uncertainty_map().shape
    certain = replace(result, probability=(result.probability > 0.5).astype(np.float32))
    assert not certain.predictive_variance_map().any() and certain.uncertainty_map().max() == 0.25
    half = np.full_like(result.probability, 0.5)
    half[:, :16] = 0.1
    open_question = replace(result, probability=half).predictive_variance_map()
    assert open_question[-1].max() == open_question[-1].min() == 0.25
    assert open_question[0] == pytest.approx(0.09), "0.1 x 0.9"
    assert own.min() >= 0 and own.max() <= 0.25
    assert not np.array_equal(replace(result, probability=half).overview(), certain.overview()), "the overview shows it"


def test_cumulative_masks_start_empty_and_end_with_all(result: LayeredResult) -> None:
    assert result.cumulative_masks.shape == (3, 32, 32)
    assert not result.cumulative_masks[0].any()
    assert (result.cumulative_masks[2] == result.masks.any(axis=0)).all()


# -- instances and order ----------------------------------------------------------------------------


def test_instances_are_the_components_in_layer_order(result: LayeredResult) -> None:
    square, bar, small = result.instances
    assert [one["id"] for one in result.instances] == [0, 1, 2]
    assert [one["layer"] for one in result.instances] == [0, 1, 1]
    assert bar["area"] > small["area"]
    for one in result.instances:
        rows, columns = np.nonzero(one["segmentation"])
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert one["bbox"] == box and all(type(value) is int for value in one["bbox"])
        assert one["area"] == one["segmentation"].sum() == len(rows)
        assert not (one["visible"] & ~one["segmentation"]).any()
        assert one["occlusion_rate"] == pytest.approx(1 - one["visible"].sum() / one["area"], abs=1e-6)
    assert (square["visible"] == square["segmentation"]).all() and square["occlusion_rate"] == 0
    assert (bar["visible"] == (bar["segmentation"] & ~square["segmentation"])).all()
    assert bar["occlusion_rate"] == pytest.approx(4 / 12, abs=0.03)
    assert small["occlusion_rate"] == 0
    assert ((bar["segmentation"] | small["segmentation"]) == result[1].mask).all()


def test_score_is_probability_times_agreement(result: LayeredResult) -> None:
    square, bar, small = result.instances
    # member 1 drops everything right of the middle (column 16): all of the square stays, 4 of 12 columns of the bar
    assert square["predicted_iou"] == pytest.approx(0.8, abs=1e-6)
    assert bar["predicted_iou"] == pytest.approx(0.8 * (1 + 4 / 12) / 2, abs=1e-6)
    assert small["predicted_iou"] == pytest.approx(0.8, abs=1e-6)


def test_components_touch_at_corners_and_specks_are_dropped() -> None:
    masks = np.zeros((1, 32, 32), dtype=bool)
    masks[0, 8:12, 8:12] = masks[0, 12:16, 12:16] = True  # one object: 8-connected
    masks[0, 24, 24] = True  # 1 of 1024 cells
    assert len(_result(masks, min_instance_area=0.002).instances) == 1
    assert len(_result(masks, min_instance_area=0.0005).instances) == 2


def test_an_instance_in_the_padding_only_is_dropped() -> None:
    masks = np.zeros((1, 32, 32), dtype=bool)
    masks[0, 0:3, 4:12] = True  # the input fills rows 5 to 26
    result = _result(masks)
    assert len(result) == 1 and result[0].area == 0
    assert result.instances == [] and result.order == {"edges": [], "cycles": []}


def test_order_has_an_edge_where_enough_is_shared(result: LayeredResult) -> None:
    lowest = min(result.instances[0]["predicted_iou"], result.instances[1]["predicted_iou"])
    assert result.order == {"edges": [{"front": 0, "behind": 1, "confidence": lowest}], "cycles": []}
    # the square covers 4 x 4 of the bar's 12 x 4 cells
    assert replace(result, min_overlap=0.32).order["edges"] == result.order["edges"]
    assert replace(result, min_overlap=0.34).order["edges"] == []


# -- JSON and files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (1, 1), (3, 900), (50, 50)])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_folder_is_complete_and_restores_the_result(
    tmp_path: Path, layers: np.ndarray, count: int, size: tuple[int, int]
) -> None:
    height, width = size
    result = _result(layers[:count], height=height, width=width)
    result.save(tmp_path / "out")
    document = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    assert document == result.to_dict() and document["image"] == {"file": "photo.jpg", "width": width, "height": height}
    named = {layer[kind] for layer in document["layers"] for kind in ("mask", "probability", "uncertainty")}
    always = {"result.json", "arrays.npz", "overview.png", "uncertainty.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == named | always and len(named) == 3 * count
    for name in named | {"uncertainty.png"}:
        assert _picture(tmp_path / "out" / name).shape == (height, width)

    loaded = LayeredResult.load(tmp_path / "out")
    assert loaded.equals(result) and not loaded.masks.flags.writeable
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / "result.json").read_bytes() == (tmp_path / "out" / "result.json").read_bytes()


def test_pictures_hold_the_scaled_values(tmp_path: Path, result: LayeredResult) -> None:
    result.save(tmp_path / "out")
    stored = {path.name: _picture(path) for path in (tmp_path / "out").glob("*.png")}
    for k, layer in enumerate(result):
        assert (stored[f"layer_{k:02d}.png"] == np.where(layer.mask, 255, 0)).all()
        assert (stored[f"probability_{k:02d}.png"] == np.rint(255 * layer.probability)).all()
        assert (stored[f"uncertainty_{k:02d}.png"] == np.rint(255 * layer.uncertainty / 0.25)).all()
    assert (stored["uncertainty.png"] == np.rint(255 * result.uncertainty_map() / 0.25)).all()
    assert stored["uncertainty.png"].max() == 255
    assert (stored["overview.png"] == result.overview()).all()


def test_an_empty_result_is_black_and_says_so(tmp_path: Path) -> None:
    result = _result(np.zeros((0, 32, 32), dtype=bool))
    result.save(tmp_path / "out")
    assert len(result) == 0 and list(result) == [] and result.instances == []
    assert not _picture(tmp_path / "out" / "uncertainty.png").any()
    assert result.uncertainty_map().shape == (64, 96) and not result.uncertainty_map().any()
    assert result.masks_full().shape == (0, 64, 96) and result.cumulative_masks.shape == (1, 32, 32)


def test_the_overview_says_why_it_stopped_as_far_as_it_is_known(result: LayeredResult) -> None:
    assert "noise" not in result._captions()[1]
    quiet = replace(result, settings=replace(result.settings, noise_scale=0.6))
    assert "seed 7, noise 0.6, consensus" in quiet._captions()[1]
    assert "2 of 2 tries found no further object." in result._captions()[0]
    told = replace(result, stop=Stop("empty", votes=2, probability=0.327))
    assert told._captions()[0].endswith("no further object found, probability that nothing is left 0.33."), (
        "masks may have been drawn"
    )
    by_rule = "nothing is left with a probability of 0.33, and 0.04 is enough to stop (stop_threshold)."
    for threshold, words in ((0.04, by_rule), (0.5, "left 0.33.")):  # where all tries were empty
        told = replace(result, stop=Stop("empty", votes=2, probability=0.327, threshold=threshold))
        assert told._captions()[0].endswith(words)


def test_save_replaces_an_older_result_whole(tmp_path: Path, result: LayeredResult, layers: np.ndarray) -> None:
    result.save(tmp_path / "out")
    smaller = _result(layers[:1])
    assert smaller.save(tmp_path / "out") == tmp_path / "out"
    assert not (tmp_path / "out" / "layer_01.png").exists() and LayeredResult.load(tmp_path / "out") == smaller
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="it is a file"):
        result.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_save_replaces_nothing_but_results(tmp_path: Path, result: LayeredResult) -> None:
    (tmp_path / "cat").mkdir()
    result.save(tmp_path / "cat")  # empty: nothing to lose
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("mine")
    with pytest.raises(InputError, match="directory .*photos holds files that are no result, .* choose a new or empty"):
        result.save(tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    (tmp_path / "photos" / "result.json").write_text("{}")  # of another program
    with pytest.raises(InputError, match="directory .*photos holds files that are no result"):
        result.save(tmp_path / "photos")
    assert (tmp_path / "photos" / "result.json").read_text() == "{}"


def test_what_a_result_tells_is_the_readers_own(result: LayeredResult) -> None:
    before = json.dumps(result.to_dict())
    result.order["edges"].clear()
    result.instances[0]["bbox"].clear()
    result.instances[0]["area"] = -5
    assert result.order["edges"] and result.instances[0]["area"] > 0 and len(result.instances[0]["bbox"]) == 4
    assert json.dumps(result.to_dict()) == before
    assert result.instances[0]["segmentation"] is result.instances[0]["segmentation"], "masks are made once"


def test_a_model_whose_name_is_no_utf8_comes_back(tmp_path: Path, layers: np.ndarray, result: LayeredResult) -> None:
    odd = replace(result, model=replace(result.model, id="gewichte-\udcc4"))
    assert LayeredResult.load(odd.save(tmp_path / "out")).model.id == "gewichte-?"


def test_load_refuses_files_of_two_results(tmp_path: Path, result: LayeredResult, layers: np.ndarray) -> None:
    folder = result.save(tmp_path / "out")
    other = replace(result, settings=replace(result.settings, seed=result.settings.seed + 1))
    foreign = other.save(tmp_path / "other") / "result.json"
    (folder / "result.json").write_bytes(foreign.read_bytes())
    with pytest.raises(InputError, match=r"result\.json and arrays\.npz are of different results: take both"):
        LayeredResult.load(folder)


@pytest.mark.parametrize("file", ["", "Äpfel 苹果.jpg", "odd\udcff.jpg"])
def test_any_file_name_survives(tmp_path: Path, layers: np.ndarray, file: str) -> None:
    result = _result(layers, file=file)
    result.save(tmp_path / "out")
    assert LayeredResult.load(tmp_path / "out").file == result.file == file.replace("\udcff", "?")


def test_a_result_of_before_the_threshold_and_the_noise_were_kept_loads(tmp_path: Path, result: LayeredResult) -> None:
    folder = result.save(tmp_path / "out")
    document = json.loads((folder / "result.json").read_text())
    del document["stop"]["threshold"], document["ensemble"]["noise_scale"]
    (folder / "result.json").write_text(json.dumps(document))
    with np.load(folder / "arrays.npz") as archive:
        stored = dict(archive)
    header = json.loads(stored["header"].tobytes())
    del header["told"]
    np.savez(folder / "arrays.npz", **(stored | {"header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)}))
    loaded = LayeredResult.load(folder)
    assert loaded.stop == result.stop and loaded.settings == result.settings


def test_dict_matches_the_instances(result: LayeredResult) -> None:
    document = result.to_dict()
    assert [layer["instances"] for layer in document["layers"]] == [[0], [1, 2]]
    assert [layer["area"] for layer in document["layers"]] == [layer.area for layer in result]
    for told, one in zip(document["instances"], result.instances, strict=True):
        assert (rle_decode(told["segmentation"]) == one["segmentation"]).all()
        assert (rle_decode(told["visible"]) == one["visible"]).all()
        assert (told["score"], told["bbox"], told["layer"]) == (one["predicted_iou"], one["bbox"], one["layer"])
    assert document["ensemble"] == {
        "members": 2, "steps": 4, "seed": 7, "consensus": "medoid", "mode": "diffusion", "noise_scale": 1.0
    }  # fmt: skip
    assert document["stop"] == {"reason": "empty", "votes": 2, "probability": None, "threshold": None}
    assert document["model"] == {"id": "tiny", "sha256": "0a" * 32}


@pytest.mark.parametrize(
    "damage",
    [
        {"schema_version": 2},
        {"extra": 1},
        {"stop": {"reason": "empty", "votes": -1}},
        {"stop": {"reason": "empty", "votes": 1, "probability": 1.5}},
        {"model": {"id": "x", "sha256": "zz"}},
        {"image": {"file": "a", "width": 0, "height": 1}},
    ],
)
def test_schema_refuses_what_is_wrong(result: LayeredResult, damage: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    assert validator.is_valid(result.to_dict())
    assert not validator.is_valid(result.to_dict() | damage)


def test_schema_is_valid_and_closed() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    def objects(node: Any) -> list[dict[str, Any]]:
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
        own = [node] if isinstance(node, dict) and node.get("type") == "object" else []
        return own + [found for child in children for found in objects(child)]

    assert len(objects(SCHEMA)) == 10
    assert all(node["additionalProperties"] is False for node in objects(SCHEMA))
    assert all(set(node["required"]) == set(node["properties"]) for node in objects(SCHEMA))


@pytest.mark.parametrize("name", ["result.json", "arrays.npz"])
def test_load_names_a_missing_file(tmp_path: Path, result: LayeredResult, name: str) -> None:
    folder = result.save(tmp_path / "out")
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name} does not exist"):
        LayeredResult.load(folder)


@pytest.mark.parametrize("content", [b"", b"not an archive", None])
def test_load_names_damaged_arrays(tmp_path: Path, result: LayeredResult, content: bytes | None) -> None:
    folder = result.save(tmp_path / "out")
    path = folder / "arrays.npz"
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(InputError, match=r"arrays\.npz is damaged or not of a result"):
        LayeredResult.load(folder)


@pytest.mark.parametrize(("place", "value"), [(6, 200), (8, 1)])
def test_load_names_a_damaged_list_of_arrays(tmp_path: Path, result: LayeredResult, place: int, value: int) -> None:
    """The version of the format that an entry needs, and the flag that it is encrypted, for which zipfile has errors of other kinds."""
    folder = result.save(tmp_path / "out")
    content = bytearray((folder / "arrays.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + place] = value
    (folder / "arrays.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"arrays\.npz is damaged or not of a result: .*(version|encrypted)"):
        LayeredResult.load(folder)


def test_load_never_unpickles(tmp_path: Path, result: LayeredResult) -> None:
    folder = result.save(tmp_path / "out")
    with np.load(folder / "arrays.npz") as archive:
        stored = dict(archive)
    assert not any(array.dtype.hasobject for array in stored.values())
    stored["probability"] = np.array([{"an": "object"}], dtype=object)
    np.savez(folder / "arrays.npz", **stored, allow_pickle=True)
    with pytest.raises(InputError, match=r"arrays\.npz is damaged"):
        LayeredResult.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema_version=2), "schema_version 1, got 2"),
        (lambda d: d.pop("schema_version"), "schema_version 1, got None"),
        (lambda d: d.pop("ensemble"), "lacks a valid 'ensemble'"),
        (lambda d: d["ensemble"].update(members=3), "members must have shape"),
        (lambda d: d["stop"].update(reason="bored"), "stop.reason must be one of"),
        (lambda d: d["model"].update(colour="red"), "colour"),
        (lambda d: d["image"].pop("file"), "'file' is missing"),
        (lambda d: d["image"].update(width=5), "the two files are of different results"),
        (lambda d: d["layers"].pop(), "the two files are of different results"),
    ],
)
def test_load_names_a_damaged_document(tmp_path: Path, result: LayeredResult, change: Any, message: str) -> None:
    folder = result.save(tmp_path / "out")
    document = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    change(document)
    (folder / "result.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        LayeredResult.load(folder)


def test_load_refuses_arrays_of_another_shape(tmp_path: Path, result: LayeredResult) -> None:
    folder = result.save(tmp_path / "out")
    with np.load(folder / "arrays.npz") as archive:
        stored = dict(archive)
    np.savez(folder / "arrays.npz", **(stored | {"masks": stored["masks"][:-1]}))
    with pytest.raises(InputError, match="do not fill the shape"):
        LayeredResult.load(folder)


# -- pictures ---------------------------------------------------------------------------------------


def test_preview_is_at_most_1024_pixels_and_never_larger() -> None:
    assert preview_size(3000, 5000) == (614, 1024)
    assert preview_size(1, 5000) == (1, 1024)
    assert preview_size(10, 7) == (10, 7)
    image = np.zeros((30, 2048, 3), dtype=np.uint8)
    image[:, 1024:] = 200
    small = make_preview(image)
    assert small.shape == (15, 1024, 3) and small.dtype == np.uint8
    assert not small[:, :500].any() and (small[:, 530:] == 200).all()
    assert (make_preview(image[:, :1000]) == image[:, :1000]).all()
    with pytest.raises(ValueError, match=r"image must be uint8 of shape \(H, W, 3\), got float64"):
        make_preview(image / 255)


def test_overview_is_shown_in_a_notebook(result: LayeredResult) -> None:
    sheet = result.overview()
    assert sheet.shape[1:] == (1400, 3) and sheet.dtype == np.uint8
    assert result._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"


def test_overview_colours_the_hidden_part_of_the_second_layer(result: LayeredResult) -> None:
    with_hidden = result.overview().astype(int)
    apart = result.masks.copy()
    apart[1, :, :16] = False
    without = replace(result, masks=apart).overview().astype(int)
    blue = [((sheet[..., 2] - sheet[..., 0]) > 60).sum() for sheet in (with_hidden, without)]
    assert blue[0] > blue[1] + 300


def test_repr_tells_layers_size_and_stop(result: LayeredResult) -> None:
    text = "LayeredResult(2 layers, input 64x96 (height x width), 2 members, stop='empty', file='photo.jpg')"
    assert repr(result) == text
    assert repr(result[1]).startswith("Layer(index=1, area=") and repr(result[1]).endswith("instances=[1, 2])")
