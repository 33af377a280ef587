"""Folders of a picture and its masks: masks are cut rightly, an order file gives the order, and without one nobody invents an order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import box
from PIL import Image

from sas.config import Config, DataSettings
from sas.data.formats.mask_folder import MaskFolders
from sas.factory import build_source, check_data
from sas.io import InputError
from sas.pictures import write_mask

H, W = 12, 18
BACK, FRONT = box(H, W, 1, 1, 7, 9), box(H, W, 4, 5, 11, 17)


def save(folder: Path, masks: dict[str, np.ndarray], *, image: str = "image.png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((H, W, 3), 70, np.uint8)).save(folder / image)
    for name, mask in masks.items():
        write_mask(folder / f"{name}.png", mask)
    return folder


def test_without_an_order_file_the_order_is_unknown(tmp_path: Path) -> None:
    save(tmp_path / "b", {"gt_01": FRONT, "gt_00": BACK}, image="image.JPG")
    save(tmp_path / "a", {})
    (tmp_path / "no scene").mkdir()
    (tmp_path / "readme.txt").write_text("hello")
    scenes = MaskFolders(tmp_path)
    assert [scene.id for scene in scenes] == ["a", "b"] and len(scenes[0]) == 0
    scene, defects = scenes.inspect(1)
    assert scene is not None and defects == []
    assert scene.names == ("gt_00", "gt_01") and (scene.amodal_masks == [BACK, FRONT]).all()
    assert scene.order_matrix is None and scene.visible_masks is None
    for wanted in ("layer_masks", "layer_index", "visible"):
        with pytest.raises(
            ValueError, match="order_matrix of scene 'b' is unknown, so it has no layers: use order-free"
        ):
            getattr(scene, wanted)


def test_where_nothing_can_be_in_front_no_order_file_is_needed(tmp_path: Path) -> None:
    for name, masks in (("none", {}), ("one", {"front": FRONT})):
        save(tmp_path / name, masks)
    none, one = MaskFolders(tmp_path)
    assert none.order_matrix is not None and none.order_matrix.shape == (0, 0)
    assert (one.layer_masks == [FRONT]).all() and (one.visible == [FRONT]).all()
    assert check_data(DataSettings(scenes=str(tmp_path), format="masks")).startswith("2 scenes")


@pytest.mark.parametrize("name", ["order.json", "order.txt"])
def test_an_order_file_gives_the_order(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path / "one", {"back": BACK, "front": FRONT})
    text = json.dumps([["front", "back"]]) if name.endswith("json") else "\nfront back\n"
    (folder / name).write_text(text)
    scene, defects = MaskFolders(folder).inspect(0)  # one folder by itself
    assert scene is not None and defects == [] and scene.id == "one"
    assert scene.layer_index.tolist() == [1, 0] and (scene.visible == [BACK & ~FRONT, FRONT]).all()


def test_an_order_file_may_name_masks_with_their_endings(tmp_path: Path) -> None:
    folder = save(tmp_path / "one", {"back": BACK, "front": FRONT})
    (folder / "order.json").write_text(json.dumps([["front.png", "back.png"]]))
    scene, defects = MaskFolders(folder).inspect(0)
    assert scene is not None and defects == [] and scene.layer_index.tolist() == [1, 0]


def test_an_order_of_which_no_pair_can_be_used_is_none(tmp_path: Path) -> None:
    folder = save(tmp_path / "one", {"back": BACK, "front": FRONT})
    (folder / "order.json").write_text(json.dumps([["other", "back"]]))
    scene, defects = MaskFolders(folder).inspect(0)
    assert scene is not None and scene.order_matrix is None and [one.code for one in defects] == ["order-object"]
    (folder / "order.json").write_text(json.dumps([["back", "back"]]))
    assert MaskFolders(folder)[0].order_matrix is None
    (folder / "order.json").write_text("[]")
    assert MaskFolders(folder)[0].order_matrix is not None, "that nobody is in front was said"


def test_training_tells_of_a_folder_without_order_before_it_begins(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / "set" / name, {"back": BACK, "front": FRONT})
    (tmp_path / "set" / "a" / "order.json").write_text('[["front", "back"]]')
    data = DataSettings(scenes=str(tmp_path / "set"), format="masks")
    with pytest.raises(InputError, match=r"must say who is in front in each scene, got none in b; to train, give each"):
        check_data(data)
    save(tmp_path / "val" / "c", {"back": BACK, "front": FRONT})
    (tmp_path / "set" / "b" / "order.txt").write_text("front back")
    assert check_data(data).startswith("2 scenes")
    both = data.model_copy(update={"validation": str(tmp_path / "val")})
    for look in (check_data, lambda data: build_source(Config(data=data))):
        with pytest.raises(InputError, match=r"data\.validation .*val must say who is in front"):
            look(both)


def test_training_tells_of_an_order_of_which_nothing_can_be_used(tmp_path: Path) -> None:
    for name, order in (("a", '[["front", "back"]]'), ("b", '[["Front", "Back"]]')):
        save(tmp_path / name, {"back": BACK, "front": FRONT})
        (tmp_path / name / "order.json").write_text(order)
    with pytest.raises(InputError, match=r"must say who is in front in each scene, got none in b; to train, give each"):
        check_data(DataSettings(scenes=str(tmp_path), format="masks"))


def test_a_preview_beside_the_folders_is_no_scene(tmp_path: Path) -> None:
    save(tmp_path / "a", {"back": BACK})
    save(tmp_path, {}, image="image.png")
    assert [scene.id for scene in MaskFolders(tmp_path)] == ["a"]
    save(tmp_path, {"front": FRONT}, image="image.png")  # with a mask it is one
    assert [scene.names for scene in MaskFolders(tmp_path)] == [("front",)]


def test_the_order_may_be_mutual_and_may_leave_pairs_open(tmp_path: Path) -> None:
    folder = save(tmp_path / "one", {"a": BACK, "b": FRONT, "c": BACK})
    (folder / "order.json").write_text('[["a", "b"], ["b", "a"], ["x", "a"]]')
    scene, defects = MaskFolders(folder).inspect(0)
    assert scene is not None and scene.order_matrix is not None
    assert scene.order_matrix.tolist() == [[False, True, False], [True, False, False], [False] * 3]
    assert [(d.object, d.code, d.action) for d in defects] == [
        ("x", "order-object", "keep"),
        ("a", "order-unknown", "keep"),
        ("b", "order-unknown", "keep"),
        ("", "order-cycle", "repair"),
    ]


def test_a_lossy_mask_is_cut_at_127_and_told(tmp_path: Path) -> None:
    folder = save(tmp_path / "one", {})
    grey = np.where(FRONT, 240, 12).astype(np.uint8)
    grey[0, :2] = 127, 128
    Image.fromarray(grey).save(folder / "lossy.png")
    Image.fromarray(BACK.astype(np.uint8)).save(folder / "small.png")  # 0 and 1
    scene, defects = MaskFolders(folder).inspect(0)
    lossy = FRONT.copy()
    lossy[0, 1] = True
    assert scene is not None and (scene.amodal_masks == [lossy, BACK]).all() and scene.complete
    assert [(d.object, d.code, d.action) for d in defects] == [
        ("lossy", "mask-grey", "repair"),
        ("small", "mask-range", "repair"),
    ]


def test_bad_masks_are_dropped_and_told(tmp_path: Path) -> None:
    folder = save(tmp_path / "one", {"wide": np.ones((H, W + 1), dtype=bool), "good": FRONT, "none": FRONT & ~FRONT})
    (folder / "broken.png").write_bytes(b"\x89PNG and nothing more")
    scene, defects = MaskFolders(folder).inspect(0)
    assert scene is not None and scene.names == ("good",) and not scene.complete
    assert [(d.object, d.code) for d in defects] == [
        ("broken", "mask-damaged"),
        ("none", "mask-empty"),
        ("wide", "mask-size"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("order.json", "[", "order-file: .*order.json is not valid JSON at line 1"),
        ("order.json", "{}", r"order-file: order.json must be a list of pairs \[front, behind\], got dict"),
        (
            "order.json",
            '[["a"]]',
            r"order-file: order.json must hold pairs \[front, behind\] of mask names, got \['a'\]",
        ),
        (
            "order.txt",
            "a b c",
            r"order-file: order.txt must hold pairs \[front, behind\] of mask names, got \['a', 'b'",
        ),
        ("order.txt", b"\xff\xfe", r"order-file: order.txt cannot be read as UTF-8 text \(.*\); save it again"),
        ("image.jpg", "", "image-twice: the folder holds image.jpg and image.png"),
        ("a.jpg", "", "mask-twice: more than one mask is called a"),
    ],
)
def test_a_folder_that_cannot_be_understood_is_refused(
    tmp_path: Path, name: str, text: str | bytes, words: str
) -> None:
    save(tmp_path / "good", {"a": BACK})
    folder = save(tmp_path / "bad", {"a": BACK, "b": FRONT})
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    scenes = MaskFolders(tmp_path)
    assert scenes.inspect(0)[0] is None and len(scenes[1]) == 1
    with pytest.raises(InputError, match=f"image bad cannot be used: {words}"):
        scenes[0]


def test_two_order_files_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "one", {"a": BACK})
    (folder / "order.json").write_text("[]")
    (folder / "order.txt").write_text("")
    with pytest.raises(InputError, match=r"order-file: there are both order.json and order.txt; remove one"):
        MaskFolders(folder)[0]


def test_masks_without_their_picture_are_a_missing_picture(tmp_path: Path) -> None:
    save(tmp_path / "a", {"gt_00": BACK})
    lost = save(tmp_path / "b", {"gt_00": BACK, "gt_01": FRONT, "gt_02": FRONT, "gt_03": FRONT})
    (lost / "image.png").unlink()
    (tmp_path / "notes").mkdir()
    scenes = MaskFolders(tmp_path)
    assert len(scenes) == 2
    scene, defects = scenes.inspect(1)
    assert scene is None and [str(defect) for defect in defects] == [
        "ERROR image=b object=- image-missing: the folder holds gt_00.png, gt_01.png, gt_02.png, ... and no picture image.jpg, image.png "
        "or the like; refused"
    ]
    with pytest.raises(InputError, match="image b cannot be used: image-missing: the folder holds gt_00.png"):
        scenes[1]
    for place in (lost, tmp_path / "only"):
        if place != lost:
            (tmp_path / "only").mkdir()
            lost.rename(tmp_path / "only" / "b")
        with pytest.raises(InputError, match=r"got pictures without an image.\* in .*/b; name another folder"):
            MaskFolders(place)


def test_a_folder_of_other_pictures_is_left_out_and_told(tmp_path: Path) -> None:
    save(tmp_path / "a", {"cup": BACK, "fork": FRONT})
    save(tmp_path / "z", {"cup": BACK})
    save(tmp_path / "preview", {f"sheet {k}": BACK for k in range(4)}, image="overview.png")
    scenes = MaskFolders(tmp_path)
    assert [scene.id for scene in scenes] == ["a", "z"]
    assert [str(defect) for defect in scenes.file_defects()] == [
        "WARNING image=- object=- folder-ignored: the folder preview holds overview.png, sheet 0.png, sheet 1.png, ..., no picture image.* "
        "and nothing named like a mask of this set; it is no scene; dropped"
    ]


@pytest.mark.parametrize("name", ["fork", "gt_7", "mask", "Mask_01"])
def test_masks_are_told_from_other_pictures_by_their_names(tmp_path: Path, name: str) -> None:
    save(tmp_path / "a", {"cup": BACK, "fork": FRONT})
    lost = save(tmp_path / "b", {name: BACK, "other": FRONT})
    (lost / "image.png").unlink()
    scenes = MaskFolders(tmp_path)
    assert scenes.file_defects() == []
    assert [defect.code for defect in scenes.inspect(1)[1]] == ["image-missing"]


def test_paths(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="masks .*gone must be a folder, found nothing; name the folder of the scenes"):
        MaskFolders(tmp_path / "gone")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="masks .*file must be a folder, found a file"):
        MaskFolders(tmp_path / "file")
    with pytest.raises(
        InputError, match=r"masks .* must hold a picture image.\* and its masks, or folders of them, got"
    ):
        MaskFolders(tmp_path)


def test_real_folders(samples: Path) -> None:
    scenes = MaskFolders(samples / "amodal" / "d2sa")
    assert len(scenes) == 3
    for i, count in enumerate((3, 8, 3)):
        scene, defects = scenes.inspect(i)
        assert scene is not None and len(scene) == count and defects == [] and scene.order_matrix is None
        assert scene.amodal_masks.any(axis=(1, 2)).all()
