"""Scenes on disk: what is written comes back exactly, and damaged or foreign data is refused by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import fresh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from sas.data.folders import ProjectFolder, SASFolders, open_scenes, write_project, write_sas_folders
from sas.io import InputError
from sas.pictures import read_mask
from sas.scene import Scene


def make_scene(masks: np.ndarray, order: np.ndarray | None = None, *, id: str = "x", **more: object) -> Scene:
    rng = np.random.default_rng(len(masks))
    image = rng.integers(0, 256, (*masks.shape[1:], 3), dtype=np.uint8)
    return Scene(image=image, amodal_masks=masks, order_matrix=order, id=id, **more)  # type: ignore[arg-type]


def empty_scene(id: str = "nothing") -> Scene:
    return make_scene(np.zeros((0, 5, 7), dtype=bool), np.zeros((0, 0), dtype=bool), id=id)


def assert_same(a: Scene, b: Scene) -> None:
    assert (a.id, a.names, a.min_overlap, a.source, a.dropped) == (b.id, b.names, b.min_overlap, b.source, b.dropped)
    assert len(a.alternatives) == len(b.alternatives)
    pairs = [(a.image, b.image), (a.amodal_masks, b.amodal_masks), *zip(a.alternatives, b.alternatives, strict=True)]
    for name in ("order_matrix", "visible_masks"):
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None)
        pairs += [] if left is None else [(left, right)]
    for left, right in pairs:
        assert left.shape == right.shape and left.dtype == right.dtype and (left == right).all()


# ---------------------------------------------------------------------- project format


def test_project_round_trip(tmp_path: Path, tiny_scene: Scene) -> None:
    mutual = ~np.eye(4, dtype=bool)
    scenes = [
        replace(tiny_scene, source="by hand", dropped=3),
        replace(tiny_scene, id="no-order", order_matrix=None, names=("Apfel", "Äpfel", 'a "b"\n\u2028', "")),
        replace(tiny_scene, id="knot", order_matrix=mutual, visible_masks=tiny_scene.visible),
        replace(tiny_scene, id="two.answers", alternatives=(~tiny_scene.amodal_masks, tiny_scene.amodal_masks)),
        make_scene(np.ones((1, 1, 1), dtype=bool), np.zeros((1, 1), dtype=bool), id="one pixel"),
        make_scene(np.zeros((2, 3, 101), dtype=bool), np.zeros((2, 2), dtype=bool), id="odd"),
        empty_scene(),
    ]
    assert write_project(tmp_path / "set", scenes, min_overlap=0.01, generator="test", seed=9) == len(scenes)
    folder = open_scenes(tmp_path / "set")
    assert isinstance(folder, ProjectFolder) and len(folder) == len(scenes)
    for written, read in zip(scenes, folder, strict=True):
        assert_same(written, read)
    info = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert info["count"] == len(scenes) and info["generator"] == "test" and info["seed"] == 9
    lines = (tmp_path / "set" / "scenes.jsonl").read_bytes()
    assert info["format_version"] == 1 and info["sha256"] == hashlib.sha256(lines).hexdigest()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6).flatmap(
        lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, (shape[0], shape[0])))
    )
)
def test_any_masks_and_order_come_back(tmp_path: Path, pair: tuple[np.ndarray, np.ndarray]) -> None:
    masks, order = pair
    scene = make_scene(masks, order & ~np.eye(len(masks), dtype=bool), min_overlap=0.25)
    folder = fresh(tmp_path)
    write_project(folder, [scene], min_overlap=0.25)
    assert_same(scene, ProjectFolder(folder)[0])


def test_scenes_are_a_sequence(tmp_path: Path) -> None:
    scenes = [empty_scene(id=name) for name in "abc"]
    write_project(tmp_path / "set", iter(scenes), min_overlap=0.01)
    folder = ProjectFolder(tmp_path / "set")
    assert [scene.id for scene in folder[1:]] == ["b", "c"] and folder[-1].id == "c"
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"scene {index} of 3"):
            folder[index]


@pytest.fixture
def project(tmp_path: Path, tiny_scene: Scene) -> Path:
    write_project(tmp_path / "set", [tiny_scene, replace(tiny_scene, id="second")], min_overlap=0.01)
    return tmp_path / "set"


def sign(folder: Path, **changes: object) -> None:
    """Make dataset.json fit scenes.jsonl again."""
    path = folder / "dataset.json"
    digest = hashlib.sha256((folder / "scenes.jsonl").read_bytes()).hexdigest()
    path.write_text(json.dumps({**json.loads(path.read_text()), "sha256": digest, **changes}))


def test_tampered_lines_are_refused(project: Path) -> None:
    lines = project / "scenes.jsonl"
    whole = lines.read_bytes()
    for damaged in (whole.replace(b'"second"', b'"Second"'), whole[:-1], whole + whole, b""):
        lines.write_bytes(damaged)
        with pytest.raises(
            InputError, match=r"scenes\.jsonl must have the SHA-256 [0-9a-f]{64} .* changed or cut: write"
        ):
            open_scenes(project)
    lines.unlink()
    with pytest.raises(InputError, match=r"scenes\.jsonl cannot be read .*restore the file"):
        open_scenes(project)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_versions_are_refused(project: Path, version: object) -> None:
    sign(project, format_version=version)
    with pytest.raises(InputError, match=f"must have format_version 1, got {version}; write it again"):
        open_scenes(project)


def test_picture_of_another_size_or_none_is_refused(project: Path) -> None:
    Image.new("RGB", (20, 30)).save(project / "images" / "tiny.png")
    (project / "images" / "second.png").unlink()
    folder = open_scenes(project)
    with pytest.raises(
        InputError, match=r"line 1: image images/tiny\.png must be 30x20, got 20x30; restore the picture"
    ):
        folder[0]
    with pytest.raises(InputError, match=r"second\.png does not exist"):
        folder[1]


def test_mask_of_another_size_is_refused(project: Path) -> None:
    lines = project / "scenes.jsonl"
    entry = json.loads(lines.read_text().splitlines()[0])
    entry["objects"][2]["segmentation"]["size"] = [30, 20]
    lines.write_text(json.dumps(entry) + "\n")
    sign(project)
    with pytest.raises(InputError, match=r"line 1: segmentation of object 2 must be 20x30, got 30x20; write"):
        open_scenes(project)[0]


@pytest.mark.parametrize("field", ["id", "file", "width", "objects", "order", "alternatives", "source"])
def test_a_line_without_a_field_is_named(project: Path, field: str) -> None:
    lines = project / "scenes.jsonl"
    entry = json.loads(lines.read_text().splitlines()[0])
    del entry[field]
    lines.write_text(json.dumps(entry) + "\n")
    sign(project)
    with pytest.raises(InputError, match=rf"scenes\.jsonl line 1: {field} .*; write the data set again"):
        open_scenes(project)[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"order": [["a", "b"]]}, ""),
        ({"order": [[0, 99]]}, "99"),
        ({"complete": "no"}, "complete must be true or false, got 'no'"),
        ({"min_overlap": "x"}, "min_overlap must lie in"),
        ({"objects": [{"name": "a", "segmentation": None}]}, ""),
        ({"objects": [{"segmentation": {"size": [20, 30], "counts": ""}}]}, ""),
    ],
)
def test_a_field_of_a_wrong_kind_is_told_with_its_line(project: Path, changes: dict, words: str) -> None:
    lines = project / "scenes.jsonl"
    lines.write_text(json.dumps({**json.loads(lines.read_text().splitlines()[0]), **changes}) + "\n")
    sign(project)
    with pytest.raises(InputError, match=rf"scenes\.jsonl line 1: .*{words}.*write the data set again"):
        open_scenes(project)[0]


def test_a_folder_that_ends_in_a_raised_digit_is_no_layer(tmp_path: Path) -> None:
    (tmp_path / "photo_\N{SUPERSCRIPT TWO}").mkdir()
    Image.new("L", (4, 4), 255).save(tmp_path / "photo_\N{SUPERSCRIPT TWO}" / "mask.png")
    assert SASFolders.layer_folders(tmp_path) == {}


def test_empty_set_and_other_folders_are_refused(tmp_path: Path) -> None:
    assert write_project(tmp_path / "none", [], min_overlap=0.01) == 0
    with pytest.raises(
        InputError, match="none must hold at least one scene, got none; compose some with `sas compose`"
    ):
        open_scenes(tmp_path / "none")
    info = tmp_path / "none" / "dataset.json"
    for content, words in (
        ("[]", "must have format_version 1, got None"),
        ('{"format_version": 1}', "must have the SHA-256 None"),
    ):
        info.write_text(content)
        with pytest.raises(InputError, match=words):
            open_scenes(tmp_path / "none")
    (tmp_path / "photos").mkdir()
    with pytest.raises(
        InputError,
        match="photos holds neither dataset.json nor shards.json nor folders <id>_<layer>; name the format of",
    ):
        open_scenes(tmp_path / "photos")
    with pytest.raises(InputError, match="absent must be a folder, found nothing; check the path"):
        open_scenes(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file must be a folder, found a file"):
        open_scenes(tmp_path / "file")


@pytest.mark.parametrize("write", [lambda p, s: write_project(p, s, min_overlap=0.01), write_sas_folders])
def test_ids_must_be_unique_and_stay_inside(tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    def refused(ids: Sequence[str], words: str) -> None:
        with pytest.raises(InputError, match=words):
            write(tmp_path / "set", [empty_scene(id=id) for id in ids])
        assert list(tmp_path.iterdir()) == [], "nothing half-written"

    refused(["a", "b", "a"], "id of a scene must be its own, got 'a' twice; rename one of the scenes")
    for id in ("../up", "a/b", "", ".hidden", "a\\b"):
        refused([id], "id of a scene must be a file name without / or a leading dot")


# ---------------------------------------------------------------------- SAS folders


def test_sas_folders_hold_layers_cumulative_masks_and_the_empty_one(tmp_path: Path, tiny_scene: Scene) -> None:
    assert write_sas_folders(tmp_path / "set", [tiny_scene, empty_scene()]) == 2
    names = sorted(folder.name for folder in (tmp_path / "set").iterdir())
    assert names == ["nothing_0", "tiny_0", "tiny_1", "tiny_2", "tiny_3"]
    for k in range(4):
        folder = tmp_path / "set" / f"tiny_{k}"
        assert sorted(file.name for file in folder.iterdir()) == ["image.png", "mask.png", "newmask.png"]
        expected = tiny_scene.layer_masks[k] if k < 3 else np.zeros((20, 30), dtype=bool)
        assert (read_mask(folder / "mask.png") == expected).all()
        assert (read_mask(folder / "newmask.png") == tiny_scene.cumulative_masks[k]).all()


def test_sas_folders_round_trip_layers(tmp_path: Path, tiny_scene: Scene) -> None:
    write_sas_folders(tmp_path / "set", [tiny_scene, empty_scene()])
    folder = open_scenes(tmp_path / "set")
    assert isinstance(folder, SASFolders) and len(folder) == 2 and folder.ids == ["nothing", "tiny"]
    scene = folder[1]
    assert (scene.image == tiny_scene.image).all() and scene.id == "tiny" and scene.min_overlap == 0
    assert (scene.layer_masks == tiny_scene.layer_masks).all()
    assert scene.names == ("layer 0", "layer 1", "layer 2")
    assert (scene.cumulative_masks == tiny_scene.cumulative_masks).all()
    assert len(folder[0]) == 0 and folder[0].amodal_masks.shape == (0, 5, 7)
    write_sas_folders(tmp_path / "again", folder)
    assert (SASFolders(tmp_path / "again")[1].layer_masks == tiny_scene.layer_masks).all()


def test_ten_layers_and_ids_with_underscores_stay_in_order(tmp_path: Path) -> None:
    masks = np.zeros((12, 4, 30), dtype=bool)
    for k, mask in enumerate(masks):
        mask[:, 2 * k : 2 * k + 4] = True
    order = np.zeros((12, 12), dtype=bool)
    order[np.arange(11), np.arange(1, 12)] = True
    scene = make_scene(masks, order, id="a_7")
    write_sas_folders(tmp_path / "set", [scene])
    assert (SASFolders(tmp_path / "set")[0].layer_masks == masks).all() and SASFolders(tmp_path / "set").ids == ["a_7"]


@pytest.mark.parametrize("values", [(0, 255), (0, 1), (0, 253, 254, 255)])
def test_published_masks_of_odd_values_are_read(tmp_path: Path, tiny_scene: Scene, values: tuple[int, ...]) -> None:
    """Some published files hold 1 for inside, and some cumulative masks 253..255 after a wrap of 8-bit sums."""
    write_sas_folders(tmp_path / "set", [tiny_scene])
    rng = np.random.default_rng(0)
    for file in (tmp_path / "set").glob("*/*mask.png"):
        inside = read_mask(file)
        odd = np.where(inside, rng.choice(values[1:], inside.shape), 0).astype(np.uint8)
        Image.fromarray(odd).save(file)
        assert (read_mask(file, threshold=0) == inside).all()
    assert (SASFolders(tmp_path / "set")[0].layer_masks == tiny_scene.layer_masks).all()


def test_damaged_sas_folders_are_refused(tmp_path: Path, tiny_scene: Scene) -> None:
    with pytest.raises(InputError, match="must hold folders <id>_<layer>, got none; check the path"):
        SASFolders(tmp_path)
    write_project(tmp_path / "project", [tiny_scene], min_overlap=0.01)
    with pytest.raises(InputError, match='as `sas compose` writes them: set data.format to "auto"'):
        SASFolders(tmp_path / "project")
    write_sas_folders(tmp_path / "set", [tiny_scene])
    Image.new("L", (20, 30)).save(tmp_path / "set" / "tiny_1" / "mask.png")
    with pytest.raises(InputError, match=r"tiny_1/mask\.png must have the size of its image, 20x30 .*got 30x20"):
        SASFolders(tmp_path / "set")[0]


def test_a_missing_layer_of_sas_folders_is_refused(tmp_path: Path, tiny_scene: Scene) -> None:
    write_sas_folders(tmp_path / "set", [tiny_scene])
    (tmp_path / "set" / "tiny_1" / "mask.png").unlink()
    with pytest.raises(
        InputError, match=r"must hold every layer of an image, got tiny_3 and no tiny_1/mask\.png; copy"
    ):
        SASFolders(tmp_path / "set")


def test_other_entries_beside_sas_folders_are_passed_over(tmp_path: Path, tiny_scene: Scene) -> None:
    write_sas_folders(tmp_path / "set", [tiny_scene])
    for name in ("notes", "tiny_x", "_0", "other_0"):
        (tmp_path / "set" / name).mkdir()
    (tmp_path / "set" / "file_0").write_text("")
    assert SASFolders(tmp_path / "set").ids == ["tiny"]
