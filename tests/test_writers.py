"""What is written in another format comes back exactly, and a scene that a format cannot hold is refused before anything is lost."""

from __future__ import annotations

import json
import logging
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import box, fresh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools.coco import COCO

from sas.data.atlas import Atlas
from sas.data.composer import Composer, SceneStyle
from sas.data.folders import ProjectFolder, SASFolders, write_project, write_sas_folders
from sas.data.formats.coco import CocoScenes
from sas.data.formats.cocoa import CocoaScenes
from sas.data.formats.mask_folder import MaskFolders
from sas.data.formats.writers import write_cocoa, write_kins2020
from sas.data.shards import Shards, pack
from sas.io import InputError, rle_decode
from sas.masks import overlap_areas
from sas.order import layers_from_order
from sas.scene import Scene

shared_folder = HealthCheck.function_scoped_fixture


def through_cocoa(folder: Path, scenes: Iterable[Scene]) -> Sequence[Scene]:
    write_cocoa(folder, scenes)
    return CocoaScenes(folder / "COCO_amodal_train2014.json")


def through_kins(folder: Path, scenes: Iterable[Scene]) -> Sequence[Scene]:
    """With one scene more, because the reader takes a file without any annotation for a file of another kind."""
    full = np.ones((1, 1, 1), dtype=bool)
    more = Scene(np.zeros((1, 1, 3), np.uint8), full, ~full[0], id="more")
    write_kins2020(folder, [*scenes, more])
    return CocoScenes(folder / "update_train_2020.json", preset="kins2020")[:-1]


def through_project(folder: Path, scenes: Iterable[Scene]) -> Sequence[Scene]:
    write_project(folder, scenes, min_overlap=0.01)
    return ProjectFolder(folder)


def through_shards(folder: Path, scenes: Sequence[Scene]) -> Sequence[Scene]:
    pack(scenes, folder, shard_size=2)
    return Shards(folder)


THROUGH: dict[str, Callable[..., Sequence[Scene]]] = {
    "project": through_project,
    "shards": through_shards,
    "cocoa": through_cocoa,
    "kins": through_kins,
}


def assert_same(read: Scene, written: Scene) -> None:
    assert written.id in (
        read.id,
        Path(read.source).stem,
    )  # COCO ids are numbers; the file's name has the id of the scene
    assert read.names == written.names and read.complete
    assert (read.image == written.image).all() and (read.amodal_masks == written.amodal_masks).all()
    assert read.order_matrix is not None and written.order_matrix is not None
    assert (read.order_matrix == written.order_matrix).all()
    assert (read.visible == written.visible).all()
    assert (read.layer_index == written.layer_index).all() and (read.layer_masks == written.layer_masks).all()


def order_where_shared(scene: Scene) -> np.ndarray:
    assert scene.order_matrix is not None
    return scene.order_matrix & (overlap_areas(scene.amodal_masks) > 0)


def as_read(scene: Scene) -> Scene:
    """What is left of a scene when objects that show no pixel are dropped; the rest is seen as before."""
    return replace(scene, visible_masks=scene.visible).drop_invisible()


# ---------------------------------------------------------------------- scenes of all kinds


@st.composite
def any_scene(draw: st.DrawFn, *, circles: bool = False, id: str = "x") -> Scene:
    """A scene in which all objects that share pixels are ordered: along one depth, or (`circles`) in any way at all."""
    n, h, w = draw(st.tuples(st.integers(0, 6), st.integers(1, 9), st.integers(1, 9)))
    masks = draw(hnp.arrays(bool, (n, h, w)))
    depth = draw(st.permutations(range(n)))
    order = np.array([[a < b for b in depth] for a in depth], dtype=bool).reshape(n, n)
    order &= overlap_areas(masks) > 0
    if circles:
        order |= draw(hnp.arrays(bool, (n, n))) & ~np.eye(n, dtype=bool)
    seen = draw(hnp.arrays(bool, (n, h, w))) & masks if draw(st.booleans()) else None
    letters = st.text(st.characters(exclude_categories=["Cs"]), max_size=5).map(lambda text: f"<{text}>")
    names = tuple(draw(st.lists(letters, min_size=n, max_size=n)))
    image = draw(hnp.arrays(np.uint8, (h, w, 3)))
    return Scene(image=image, amodal_masks=masks, order_matrix=order, names=names, id=id, visible_masks=seen)


def shown(scene: Scene, format: str) -> Scene:
    """What a reader of the format gives: those of annotations leave out what shows no pixel, ours keep it."""
    return scene if format in ("project", "shards") else as_read(scene)


@settings(max_examples=30, deadline=None, suppress_health_check=[shared_folder])
@given(scene=any_scene())
@pytest.mark.parametrize("format", THROUGH)
def test_any_scene_comes_back(tmp_path: Path, format: str, scene: Scene) -> None:
    (read,) = THROUGH[format](fresh(tmp_path), [scene])
    assert_same(read, shown(scene, format))


@settings(max_examples=30, deadline=None, suppress_health_check=[shared_folder])
@given(scene=any_scene(circles=True))
@pytest.mark.parametrize("format", ["project", "shards", "cocoa"])
def test_any_circle_comes_back(tmp_path: Path, format: str, scene: Scene) -> None:
    (read,) = THROUGH[format](fresh(tmp_path), [scene])
    assert_same(read, shown(scene, format))


@settings(max_examples=30, deadline=None, suppress_health_check=[shared_folder])
@given(scene=any_scene(circles=True))
def test_kins_holds_a_scene_exactly_or_refuses_it(tmp_path: Path, scene: Scene) -> None:
    order = order_where_shared(scene)
    if layers_from_order(order).cut_edges:
        with pytest.raises(InputError, match="in front of one another, directly or in a circle"):
            write_kins2020(tmp_path / "refused", [scene])
        assert not (tmp_path / "refused").exists()
    else:
        (read,) = through_kins(fresh(tmp_path), [scene])
        assert_same(read, as_read(replace(scene, order_matrix=order)))


@settings(max_examples=30, deadline=None, suppress_health_check=[shared_folder])
@given(scene=any_scene())
def test_any_layers_come_back_from_sas_folders(tmp_path: Path, scene: Scene) -> None:
    """A layer is one object there, and all that is told of the order."""
    folder = fresh(tmp_path)
    write_sas_folders(folder, [scene])
    (read,) = SASFolders(folder)
    layers = scene.layer_masks[scene.layer_masks.any(axis=(1, 2))]
    assert (read.image == scene.image).all() and read.amodal_masks.shape == layers.shape
    assert (read.amodal_masks == layers).all()


def test_many_objects_touching_everything(tmp_path: Path) -> None:
    """Sixty rings with holes on an odd size, up to the border, in a stack; a pixel among them; and an empty scene."""
    y, x = np.mgrid[:37, :53]
    radius = np.arange(60)[:, None, None] % 17 + 2
    distance = np.hypot(y - np.arange(60)[:, None, None] * 5 % 37, x - np.arange(60)[:, None, None] * 11 % 53)
    masks = (distance < radius) & (distance > radius / 2)
    masks[0] = (y == 0) & (x == 52)
    order = np.triu(overlap_areas(masks) > 0, k=1)
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    full = Scene(image=image, amodal_masks=masks, order_matrix=order, id="full")
    empty = Scene(image=image[:5], amodal_masks=masks[:0, :5], order_matrix=order[:0, :0], id="empty")
    for format, through in THROUGH.items():
        for read, written in zip(
            through(tmp_path / format, [full, empty, full_again(full)]), [full, empty, full], strict=True
        ):
            assert_same(replace(read, id=written.id), shown(written, format))


def full_again(scene: Scene) -> Scene:
    return replace(scene, id="again")


def test_composed_scenes_come_back(tmp_path: Path, tiny_atlas: Atlas, tiny_backgrounds: np.ndarray) -> None:
    style = replace(SceneStyle(empty=0.2), objects=(2, 6), spread=(0.1, 0.4))
    composer = Composer(tiny_atlas, tiny_backgrounds, seed=5, image_size=16, mask_size=16, style=style)
    scenes = [scene.drop_invisible() for scene in composer.scenes(0, range(8))]
    assert max(map(len, scenes)) > 3 and any(scene.layer_index.max(initial=0) > 1 for scene in scenes)
    for format, through in THROUGH.items():
        for read, written in zip(through(tmp_path / format, scenes), scenes, strict=True):
            assert_same(read, written)


# ---------------------------------------------------------------------- what stands in the files


def chain(id: str = "tiny", **more: Any) -> Scene:
    """The nearest last: c hides b, b hides a; d touches nobody."""
    masks = np.stack(
        [box(12, 20, 0, 0, 6, 6), box(12, 20, 3, 3, 9, 9), box(12, 20, 8, 8, 12, 12), box(12, 20, 0, 15, 4, 20)]
    )
    order = np.zeros((4, 4), dtype=bool)
    order[1, 0] = order[2, 1] = True
    image = np.random.default_rng(1).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    return replace(Scene(image, masks, order, names=("a", "b", "c", "a"), id=id), **more)


def test_a_cocoa_file_in_full(tmp_path: Path) -> None:
    scene = chain()
    mutual = np.array(scene.order_matrix)
    mutual[0, 1] = True
    assert write_cocoa(tmp_path / "set", [scene, chain("7", order_matrix=mutual)], split="val") == 2
    content = json.loads((tmp_path / "set" / "COCO_amodal_val2014.json").read_text())
    assert content["images"] == [
        {"id": 1, "file_name": "images/tiny.png", "width": 20, "height": 12},
        {"id": 7, "file_name": "images/7.png", "width": 20, "height": 12},
    ]
    first, second = content["annotations"]
    assert (first["id"], first["image_id"], first["size"], second["id"], second["image_id"]) == (1, 1, 4, 2, 7)
    assert [(r["name"], r["order"], r["area"], r["isStuff"]) for r in first["regions"]] == [
        ("a", 4, 36, 0),
        ("b", 3, 36, 0),
        ("c", 1, 16, 0),
        ("a", 2, 20, 0),
    ]
    assert first["depth_constraint"] == "3-4,1-3" and len(second["depth_constraint"].split(",")) == 3
    a, b, c, _ = first["regions"]
    assert a["occlude_rate"] == 9 / 36 and b["occlude_rate"] == 1 / 36 and c["occlude_rate"] == 0
    assert "visible_mask" not in c and "invisible_mask" not in c
    assert (rle_decode(a["visible_mask"]) == scene.visible[0]).all()
    assert (rle_decode(a["invisible_mask"]) == scene.amodal_masks[0] & scene.amodal_masks[1]).all()
    assert (rle_decode(a["segmentation"]) == scene.amodal_masks[0]).all()
    api = COCO(str(tmp_path / "set" / "COCO_amodal_val2014.json"))
    assert api.getImgIds() == [1, 7] and len(api.getAnnIds()) == 2
    assert sorted(file.name for file in (tmp_path / "set").rglob("*") if file.is_file()) == [
        "7.png",
        "COCO_amodal_val2014.json",
        "tiny.png",
    ]


def test_a_kins_file_in_full(tmp_path: Path) -> None:
    scene = chain()
    assert write_kins2020(tmp_path / "set", [scene], split="test") == 1
    api = COCO(str(tmp_path / "set" / "update_test_2020.json"))
    assert [category["name"] for category in api.loadCats(api.getCatIds())] == ["a", "b", "c"]
    entries = api.loadAnns(api.getAnnIds())
    assert [(e["id"], e["image_id"], e["category_id"], e["oco_id"], e["ico_id"]) for e in entries] == [
        (1, 1, 1, 1, 3),
        (2, 1, 2, 1, 2),
        (3, 1, 3, 1, 1),
        (4, 1, 1, 0, 0),
    ]
    assert entries[1]["a_bbox"] == [3, 3, 6, 6] and (entries[1]["a_area"], entries[1]["i_area"]) == (36, 35)
    for i, entry in enumerate(entries):
        assert (rle_decode(entry["a_segm"]) == scene.amodal_masks[i]).all()
        assert (rle_decode(entry["i_segm"]) == scene.visible[i]).all()
    assert entries[0]["i_bbox"] == [0, 0, 6, 6] and entries[0]["i_area"] == 27


def test_ids_are_kept_where_they_are_numbers_and_in_the_file_name_always(tmp_path: Path) -> None:
    names = ["12", "b", "1", "012", "2", "ä b.c", "-3", "99999999999999999999"]
    write_kins2020(tmp_path / "set", [chain(name) for name in names])
    images = json.loads((tmp_path / "set" / "update_train_2020.json").read_text())["images"]
    assert [image["file_name"] for image in images] == [f"images/{name}.png" for name in names]
    # "b" had taken 1 before the scene "1" came.
    assert [image["id"] for image in images] == [12, 1, 2, 3, 4, 5, 6, 7]
    assert all((tmp_path / "set" / "images" / f"{name}.png").is_file() for name in names)


@pytest.mark.parametrize("write", [write_cocoa, write_kins2020])
def test_no_scenes_give_a_valid_empty_file(tmp_path: Path, write: Callable[..., int]) -> None:
    assert write(tmp_path / "set", []) == 0
    (file,) = (tmp_path / "set").glob("*.json")
    content = json.loads(file.read_text())
    assert content["images"] == content["annotations"] == [] and content["info"]["min_overlap"] == []


@pytest.mark.parametrize("write", [write_cocoa, write_kins2020])
def test_a_scene_at_a_time_is_in_memory(tmp_path: Path, write: Callable[..., int]) -> None:
    noise = np.random.default_rng(0).random((3, 60, 60)) > 0.5  # nothing packs this
    order = np.triu(np.ones((3, 3), dtype=bool), k=1)
    image = np.zeros((60, 60, 3), np.uint8)
    peaks = []
    for count in (5, 80):
        scenes = (Scene(image, noise.copy(), order, id=f"s{number}") for number in range(count))
        tracemalloc.start()
        write(tmp_path / f"{count}", scenes)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    (file,) = (tmp_path / "80").glob("*.json")
    assert peaks[1] - peaks[0] < file.stat().st_size / 4 and file.stat().st_size > 800_000


# ---------------------------------------------------------------------- what is refused or warned of


def with_order(*pairs: tuple[int, int]) -> Scene:
    order = np.zeros((4, 4), dtype=bool)
    for pair in pairs:
        order[pair] = True
    return chain(order_matrix=order)


def write_plainly(folder: Path, scenes: Iterable[Scene]) -> int:
    return write_project(folder, scenes, min_overlap=0.01)


def write_shards(folder: Path, scenes: Sequence[Scene]) -> int:
    return pack(scenes, folder)


@pytest.mark.parametrize("write", [write_plainly, write_sas_folders, write_cocoa, write_kins2020, write_shards])
def test_a_folder_that_holds_anything_is_refused(tmp_path: Path, write: Callable[..., int]) -> None:
    (tmp_path / "own.png").write_bytes(b"own")
    with pytest.raises(InputError, match=r"cannot write .*: there are files in it; choose a new or empty folder"):
        write(tmp_path, [chain()])
    assert [file.name for file in tmp_path.rglob("*")] == ["own.png"]


WRITE = {"COCOA": write_cocoa, "KINS 2020": write_kins2020}
THREE = replace(chain(), amodal_masks=np.repeat(box(12, 20, 2, 2, 9, 9)[None], 4, axis=0))


@pytest.mark.parametrize(
    ("format", "scene", "words"),
    [
        (
            "COCOA",
            chain(order_matrix=None),
            r"its order is unknown \(order_matrix is None\); the project format and packed",
        ),
        (
            "KINS 2020",
            chain(order_matrix=None),
            r"its order is unknown \(order_matrix is None\); the project format and",
        ),
        (
            "KINS 2020",
            with_order((0, 1), (1, 0), (2, 1)),
            r"object 0 \('a'\) and object 1 \('b'\) are in front of one another, directly or in a circle; the project format, "
            "packed shards and COCOA hold circles",
        ),
        (
            "KINS 2020",
            replace(THREE, order_matrix=np.eye(4, dtype=bool)[[1, 2, 0, 3]] & ~np.eye(4, dtype=bool)),
            "are in front of one another, directly or in a circle",
        ),
        (
            "COCOA",
            with_order((1, 0)),
            r"object 1 \('b'\) and object 2 \('c'\) share pixels and the scene does not say which is in front, but ranks would; "
            "the project format and packed shards hold such pairs",
        ),
        (
            "KINS 2020",
            with_order((2, 1)),
            r"object 0 .* and object 1 .* share pixels and the scene does not say which is in front, but ranks would",
        ),
        (
            "COCOA",
            chain(visible_masks=np.ones((4, 12, 20), dtype=bool)),
            r"visible pixels of object 0 \('a'\) lie outside its amodal mask; mend the masks; the project format",
        ),
    ],
)
def test_a_scene_that_a_format_cannot_hold_is_refused(tmp_path: Path, format: str, scene: Scene, words: str) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(InputError, match=f"^scene 'tiny' cannot be written as {format}: .*{words}"):
        WRITE[format](tmp_path / "set", [chain("good"), scene])
    assert [file.name for file in tmp_path.rglob("*")] == ["set"]  # the empty folder, and nothing half written


def test_kins_leaves_a_pair_open_where_neither_rank_nor_sight_tells(tmp_path: Path) -> None:
    """b hides a; b and c share a pixel, have one rank and are both seen there: the reader says, too, that it does not know."""
    scene = with_order((1, 0))
    assert_same(through_kins(tmp_path / "set", [scene])[0], scene)
    seen = scene.visible.copy()
    seen[2] &= ~scene.amodal_masks[1]
    with pytest.raises(InputError, match="share pixels and the scene does not say"):
        write_kins2020(tmp_path / "other", [replace(scene, visible_masks=seen)])


def test_names_of_files_are_checked(tmp_path: Path) -> None:
    for write in WRITE.values():
        with pytest.raises(InputError, match=r"split must be letters and digits, got '../x'; use train, val or test"):
            write(tmp_path / "set", [], split="../x")
        with pytest.raises(InputError, match="id of a scene must be its own, got 'a' twice"):
            write(tmp_path / "set", [chain("a"), chain("a")])
        with pytest.raises(
            InputError, match=r"id of a scene must be a file name without / or a leading dot, got 'a/b'"
        ):
            write(tmp_path / "set", [chain("a/b")])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write .*file: it is a file; choose another output folder"):
        write_cocoa(tmp_path / "file", [])


def test_what_a_format_cannot_say_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = chain()
    partial = [
        scene,
        chain("b", complete=False),
        chain("c", known=np.ones((12, 20), dtype=bool)),
        chain("d", alternatives=(scene.amodal_masks,)),
    ]
    for format, write in WRITE.items():
        caplog.clear()
        write(fresh(tmp_path), [scene, chain("e", source="x", dropped=3)])
        assert caplog.records == []
        write(fresh(tmp_path), [*partial, chain("f", min_overlap=0.25)])
        words, overlap = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
        assert f"3 of 5 scenes have alternatives or are known in parts only, which {format} cannot say" in words
        assert (
            f"min_overlap of the scenes is 0.01, 0.25, which {format} cannot say; give it when you read them" in overlap
        )


# ---------------------------------------------------------------------- real samples


def test_real_cocoa_comes_back(samples: Path, tmp_path: Path) -> None:
    scenes = CocoaScenes(samples / "amodal" / "cocoa")[:]
    assert [np.bincount(scene.layer_index).tolist() for scene in scenes] == [[1, 1], [6, 2, 1, 1, 1], [12, 2, 4, 1]]
    for format, through in THROUGH.items():
        for read, written in zip(through(tmp_path / format, scenes), scenes, strict=True):
            assert_same(read, written)
            assert read.id == written.id


def test_real_masks_without_an_order_come_back_and_are_refused_where_an_order_is_needed(
    samples: Path, tmp_path: Path
) -> None:
    scene = MaskFolders(samples / "amodal" / "d2sa")[0]
    for through in (through_project, through_shards):
        read = through(tmp_path / through.__name__, [scene])[0]
        assert read.order_matrix is None and read.names == scene.names
        assert (read.image == scene.image).all() and (read.amodal_masks == scene.amodal_masks).all()
    for format, write in WRITE.items():
        with pytest.raises(InputError, match=f"scene 'D2S_004811' cannot be written as {format}: its order is unknown"):
            write(tmp_path / "set", [scene])
