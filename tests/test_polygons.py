"""Scenes drawn in labelme and CVAT: outlines land on the right pixels, the stack becomes the order, and what is wrong is told."""

from __future__ import annotations

import base64
import io
import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import box
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from sas.data.formats.polygons import CvatScenes, LabelmeScenes
from sas.data.formats.segmentation import decode
from sas.io import InputError

H, W = 20, 30
BACK, FRONT = box(H, W, 2, 2, 12, 14), box(H, W, 6, 8, 18, 24)


def square(mask: np.ndarray) -> list[list[float]]:
    """Polygon around the pixels of a rectangular mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    return [[float(x), float(y)] for x, y in ((left, top), (right, top), (right, bottom), (left, bottom))]


def codes(defects: list[Any]) -> list[tuple[str, str, str]]:
    return [(defect.object, defect.code, defect.action) for defect in defects]


# ---------------------------------------------------------------------- labelme


def shape(outline: np.ndarray, label: str = "thing", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": square(outline), "group_id": None, "shape_type": "polygon", "flags": {}, **more}


def save_labelme(folder: Path, shapes: Any, *, name: str = "a", **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.full((H, W, 3), 90, np.uint8)).save(folder / f"{name}.png")
    record = {"version": "5.5.0", "shapes": shapes, "imagePath": f"{name}.png", "imageHeight": H, "imageWidth": W}
    (folder / f"{name}.json").write_text(json.dumps({**record, **more}))
    return folder


def png_text(mask: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()


def test_later_shapes_are_in_front_unless_the_reader_is_told_otherwise(tmp_path: Path) -> None:
    save_labelme(tmp_path, [shape(BACK, "back"), shape(FRONT, "front")])
    scene = LabelmeScenes(tmp_path)[0]
    assert (scene.id, scene.names, scene.complete) == ("a", ("back", "front"), True)
    assert (scene.amodal_masks == [BACK, FRONT]).all() and (scene.visible == [BACK & ~FRONT, FRONT]).all()
    assert scene.order_matrix is not None and scene.order_matrix.tolist() == [[False, False], [True, False]]
    assert scene.layer_index.tolist() == [1, 0]
    assert LabelmeScenes(tmp_path, front="first")[0].layer_index.tolist() == [0, 1]
    with pytest.raises(InputError, match="front must be 'last' or 'first', got 'top'; name the end of the list"):
        LabelmeScenes(tmp_path, front="top")  # type: ignore[arg-type]


@pytest.mark.parametrize("holder", ["", "flags", "attributes"])
def test_a_z_order_counts_more_than_the_place_in_the_file(tmp_path: Path, holder: str) -> None:
    low, high = ({"z_order": 1}, {"z_order": "2"})
    shapes = [shape(BACK, **({holder: high} if holder else high)), shape(FRONT, **({holder: low} if holder else low))]
    assert LabelmeScenes(save_labelme(tmp_path, shapes))[0].layer_index.tolist() == [0, 1]


def test_where_the_z_order_is_missing_or_equal_the_order_is_unknown(tmp_path: Path) -> None:
    for second in ({}, {"z_order": 1}):
        save_labelme(tmp_path, [shape(BACK, z_order=1), shape(FRONT, **second)])
        scene, defects = LabelmeScenes(tmp_path).inspect(0)
        assert scene is not None and scene.order_matrix is not None and not scene.order_matrix.any()
        assert codes(defects) == [("shapes[0]", "order-unknown", "keep")]
    for second in (True, "near", float("nan")):
        save_labelme(tmp_path, [shape(BACK, z_order=1), shape(FRONT, z_order=second)])
        defects = LabelmeScenes(tmp_path).inspect(0)[1]
        assert codes(defects) == [("shapes[1]", "field", "repair"), ("shapes[0]", "order-unknown", "keep")]
        assert defects[0].words == f"z_order must be a number, got {str(second)!r}; it is left out"


def test_that_the_list_gives_the_order_is_told_once_unless_somebody_said_so(tmp_path: Path) -> None:
    save_labelme(tmp_path, [shape(BACK), shape(FRONT)], name="b")
    save_labelme(tmp_path, [shape(BACK), shape(FRONT)], name="c")
    save_labelme(tmp_path, [shape(BACK)], name="a")
    (defect,) = LabelmeScenes(tmp_path).file_defects()
    assert str(defect) == (
        "WARNING image=- object=- order-assumed: b.json has no z_order, so each shape is taken to lie in front of those before it in the "
        "file, here and wherever there is none; if you drew from front to back say --front first, else --front last (data.front in a "
        "configuration); kept as it is"
    )
    for front in ("last", "first"):
        assert LabelmeScenes(tmp_path, front=front).file_defects() == []  # type: ignore[arg-type]
    for name in ("b", "c"):
        save_labelme(tmp_path, [shape(BACK, z_order=1), shape(FRONT)], name=name)
    (tmp_path / "d.json").write_text("{")
    (tmp_path / "e.json").write_text('{"shapes": 3}')
    assert LabelmeScenes(tmp_path).file_defects() == []


def test_rectangles_circles_and_masks(tmp_path: Path) -> None:
    ring = np.ones((5, 7), dtype=bool)
    ring[1:-1, 1:-1] = False
    placed = np.zeros((H, W), dtype=bool)
    placed[3:8, 22:29] = ring
    shapes = [
        shape(BACK, shape_type="rectangle", points=[[14, 12], [2, 2]]),  # from any corner to the one across
        shape(BACK, shape_type="rectangle", points=square(BACK)),
        shape(BACK, shape_type="circle", points=[[15, 10], [15, 16]]),
        shape(BACK, shape_type="mask", points=[[22, 3], [28, 7]], mask=png_text(ring)),
        shape(BACK, shape_type=None),
    ]
    raw, defects = LabelmeScenes(save_labelme(tmp_path, shapes)).raw(0)
    assert defects == [] and len(raw.objects) == 5
    y, x = np.mgrid[:H, :W] + 0.5
    decoded = [decode(one.amodal, H, W)[0] for one in raw.objects]
    for i in (0, 1, 4):
        assert (decoded[i] == BACK).all()
    distance = np.hypot(x - 15, y - 10)
    assert decoded[2][distance < 5.3].all() and not decoded[2][distance > 6.7].any()
    assert (decoded[3] == placed).all()


def test_what_encloses_nothing_is_no_object_that_is_missing(tmp_path: Path) -> None:
    whole, defects = LabelmeScenes(
        save_labelme(tmp_path / "a", [shape(FRONT, "cup"), shape(BACK, "eye", shape_type="point")])
    ).inspect(0)
    assert [defect.code for defect in defects] == ["shape-kind"]
    assert whole is not None and whole.complete and whole.known is None and whole.names == ("cup",)
    broken, _ = LabelmeScenes(
        save_labelme(tmp_path / "b", [shape(FRONT, "cup"), shape(BACK, "eye", points=[[1, 2], [3, 4]])])
    ).inspect(0)
    assert broken is not None and not broken.complete


def test_shapes_of_one_label_and_group_are_one_object(tmp_path: Path) -> None:
    part, dot = box(H, W, 1, 20, 4, 28), box(H, W, 15, 2, 16, 3)
    shapes = [
        shape(BACK, "cup", group_id=1),
        shape(FRONT, "box"),
        shape(part, "cup", group_id=1),
        shape(dot, "cup", group_id=1, shape_type="mask", points=[[2, 15], [2, 15]], mask=png_text(np.ones((1, 1)))),
        shape(dot, "cup", group_id=2),
    ]
    scene = LabelmeScenes(save_labelme(tmp_path, shapes))[0]
    assert scene.names == ("cup", "box", "cup")
    assert (scene.amodal_masks[0] == (BACK | part | dot)).all()
    assert scene.layer_index.tolist()[:2] == [0, 1]  # its last part is drawn last, and an object is as near as that


@pytest.mark.parametrize(
    ("broken", "code", "words"),
    [
        ({"shape_type": "line"}, "shape-kind", "a line encloses nothing; polygon, rectangle, circle and mask do"),
        (
            {"shape_type": "blob"},
            "field",
            "'blob' is no kind of outline that is known; polygon, rectangle, circle and mask",
        ),
        ({"shape_type": 3}, "field", "shape_type must be a text, got 3"),
        ({"shape_type": "circle"}, "field", "a circle must have two finite points, got"),
        ({"points": [[1, 2, 3]]}, "field", r"a shape must have points \[\[x, y\], ...\]"),
        ({"points": None}, "field", "a shape must have points"),
        ({"points": [[1, 2], [3, 4]]}, "polygon-points", "a polygon has 2 points and needs 3"),
        ({"points": [[1, 2], [3, 4], [float("nan"), 4]]}, "field", "a polygon must hold finite numbers"),
        ({"points": [[0, 0], [1e12, 0], [9, 9]]}, "outside", r"a polygon reaches to 1e\+12, farther than any picture"),
        ({"shape_type": "mask", "points": [[0, 0], [2, 2]]}, "mask-damaged", "the mask must be a PNG in base64"),
        ({"shape_type": "mask", "points": [[0, 0], [2, 2]], "mask": "%%"}, "mask-damaged", "the mask must be a PNG in"),
        ({"shape_type": "mask", "points": [[0, 0], [2, 2]], "mask": "UE5H"}, "mask-damaged", "the mask must be a PNG"),
        (
            {"shape_type": "mask", "points": [[0, 0], [2, 2]], "mask": "\u00e4"},
            "mask-damaged",
            "the mask must be a PNG",
        ),
        (
            {"shape_type": "mask", "points": [[0, 0], [2, 2]], "mask": png_text(np.ones((2, 3)))},
            "mask-size",
            "the mask has 3x2 pixels, its box 3x3",
        ),
        (
            {"shape_type": "mask", "points": [[28, 0], [30, 1]], "mask": png_text(np.ones((2, 3)))},
            "outside",
            r"the box of the mask \(x 28, y 0, 3x2\) leaves the picture of 30x20",
        ),
    ],
)
def test_a_broken_shape_is_dropped_and_told(tmp_path: Path, broken: dict[str, Any], code: str, words: str) -> None:
    save_labelme(tmp_path, [shape(BACK), {**shape(FRONT), **broken}])
    scene, defects = LabelmeScenes(tmp_path).inspect(0)
    assert codes(defects) == [("shapes[1]", code, "drop")]
    assert re.match(words, defects[0].words)
    assert scene is not None and len(scene) == 1 and scene.complete == (code == "shape-kind")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("{", "refuse: json: .*a.json is not valid JSON at line 1 column 2"),
        (
            "[]",
            r"field: a.json must hold shapes \(a list\) and imagePath \(a text\), as labelme writes them; it is a list",
        ),
        ('{"shapes": []}', "field: a.json must hold shapes .*; it has shapes"),
        ('{"images": [], "annotations": []}', "the file looks like another format: --format coco"),
        ('{"shapes": 3, "imagePath": "a.png"}', "field: a.json must hold shapes .*; got int and str"),
        ('{"shapes": [], "imagePath": null}', "field: a.json must hold shapes .*; got list and NoneType"),
        ('{"shapes": [], "imagePath": "b.png"}', "image-missing: there is no file .*b.png"),
        ('{"shapes": [], "imagePath": "a.png", "imageHeight": 5, "imageWidth": 6}', "image-size: the file says 6x5"),
    ],
)
def test_a_labelme_file_that_cannot_be_read_refuses_its_picture_alone(tmp_path: Path, record: str, words: str) -> None:
    save_labelme(tmp_path, [shape(BACK)], name="b2")
    save_labelme(tmp_path, [])
    (tmp_path / "a.json").write_text(record)
    scenes = LabelmeScenes(tmp_path)
    scene, defects = scenes.inspect(0)
    assert scene is None and [defect.action for defect in defects if defect.code != "unannotated"] == ["refuse"]
    with pytest.raises(InputError, match=f"image a cannot be used: .*{words.removeprefix('refuse: ')}"):
        scenes[0]
    assert len(scenes[1]) == 1


def test_a_mask_needs_a_size_and_the_size_must_be_sane(tmp_path: Path) -> None:
    patch = {"shape_type": "mask", "points": [[0, 0], [2, 1]], "mask": png_text(np.ones((2, 3)))}
    save_labelme(tmp_path, [shape(BACK, **patch)], imageHeight=None)
    _, (defect,) = LabelmeScenes(tmp_path).raw(0)
    assert defect.words == "a mask needs the height and width of the picture, which the file does not give"
    save_labelme(tmp_path, [shape(BACK, **patch)], imageHeight=10**7, imageWidth=10**7)
    _, (defect,) = LabelmeScenes(tmp_path).raw(0)
    assert defect.words == "the file claims a picture of 10000000x10000000 pixels, which is too large"


@pytest.mark.parametrize("said", ["C:\\Users\\me\\a.png", "..\\pictures\\a.png", "/home/me/a.png"])
def test_the_picture_of_a_moved_labelme_file_is_found_beside_it(tmp_path: Path, said: str) -> None:
    save_labelme(tmp_path / "set", [shape(FRONT)], imagePath=said)
    (scene,) = LabelmeScenes(tmp_path / "set")
    assert (scene.amodal_masks == [FRONT]).all()
    (tmp_path / "set" / "a.png").unlink()
    _, defects = LabelmeScenes(tmp_path / "set").inspect(0)
    assert [one.code for one in defects if one.severity == "error"] == ["image-missing"]


def test_a_picture_that_nobody_has_drawn_on_is_told(tmp_path: Path) -> None:
    save_labelme(tmp_path / "labelme", [])
    save_cvat(tmp_path / "cvat", '<tag label="good"></tag>', polygon(FRONT))
    for scenes, count in ((LabelmeScenes(tmp_path / "labelme"), 1), (CvatScenes(tmp_path / "cvat"), 2)):
        told = [scenes.inspect(k)[1] for k in range(count)]
        assert codes(told[0]) == [("", "unannotated", "keep")] and told[0][0].severity == "warning"
        assert not any(told[1:])


def test_an_object_of_which_a_part_is_lost_is_no_whole_one(tmp_path: Path) -> None:
    part = box(H, W, 1, 20, 4, 28)
    broken = shape(part, "cup", group_id=1, shape_type="mask", points=[[0, 0], [2, 2]], mask="%%")
    line = {**shape(part, "cup", group_id=2), "shape_type": "line"}  # encloses nothing, so nothing is missing
    save_labelme(tmp_path, [shape(BACK, "cup", group_id=1), broken, shape(FRONT, "cup", group_id=2), line])
    scene, defects = LabelmeScenes(tmp_path).inspect(0)
    assert scene is not None and (scene.amodal_masks == [FRONT]).all() and not scene.complete
    assert scene.known is not None and (scene.known == ~BACK).all()
    assert codes(defects)[-1] == ("shapes[0]", "field", "drop") and len(defects) == 3
    assert "a part of this object (cup, group 1) could not be read, so all of it is left out" in str(defects[-1])
    torn = '<ellipse label="cup" cx="3" cy="x" rx="2" ry="2" group_id="4"/>'
    folder = save_cvat(tmp_path / "cvat", polygon(BACK, "cup", more='group_id="4"') + torn + polygon(FRONT))
    scene, defects = CvatScenes(folder).inspect(0)
    assert scene is not None and (scene.amodal_masks == [FRONT]).all() and not scene.complete
    assert codes(defects) == [("ellipse 2", "field", "drop"), ("polygon 1", "field", "drop")]


def test_pictures_in_folders_below_the_one_named_are_found(tmp_path: Path) -> None:
    folder = save_labelme(tmp_path / "json", [shape(BACK)], imagePath="sub/a.png")
    (tmp_path / "pictures" / "sub").mkdir(parents=True)
    (folder / "a.png").rename(tmp_path / "pictures" / "sub" / "a.png")
    assert len(LabelmeScenes(folder, images=tmp_path / "pictures")[0]) == 1
    for open in (LabelmeScenes, CvatScenes):
        with pytest.raises(InputError, match="images must name the folder of the pictures, found nothing at .*gone"):
            open(save_cvat(folder, ""), images=tmp_path / "gone")


def test_labelme_paths(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="labelme .*gone does not exist; name a folder of labelme JSON files"):
        LabelmeScenes(tmp_path / "gone")
    with pytest.raises(InputError, match="labelme .* must hold JSON files, got none; name the folder"):
        LabelmeScenes(tmp_path)
    save_labelme(tmp_path / "json", [shape(BACK)], imagePath="..\\pictures\\a.png")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "json" / "a.png").rename(tmp_path / "pictures" / "a.png")
    assert len(LabelmeScenes(tmp_path / "json")[0]) == 1  # as Windows writes it
    assert len(LabelmeScenes(tmp_path / "json" / "a.json", images=tmp_path / "pictures")[0]) == 1
    with pytest.raises(InputError, match="image-missing"):
        LabelmeScenes(tmp_path / "json", images=tmp_path)[0]


# ---------------------------------------------------------------------- CVAT

HEAD = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version><meta><task><image>0</image></task></meta>\n'


def save_cvat(folder: Path, *images: str, head: str = HEAD, end: str = "</annotations>\n") -> Path:
    """`images`: the inside of each <image>; picture k is `images/k.png`."""
    (folder / "images").mkdir(exist_ok=True, parents=True)
    body = ""
    for k, inside in enumerate(images):
        Image.fromarray(np.full((H, W, 3), k, np.uint8)).save(folder / "images" / f"{k}.png")
        body += f'<image id="{k}" name="{k}.png" width="{W}" height="{H}">\n{inside}\n</image>\n'
    (folder / "annotations.xml").write_text(head + body + end, encoding="utf-8")
    return folder


def polygon(mask: np.ndarray, label: str = "thing", *, z: int = 0, more: str = "") -> str:
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in square(mask))
    return f'<polygon label="{label}" occluded="0" points="{points}" z_order="{z}" {more}><attribute name="a">b</attribute></polygon>'


def mask_element(patch: np.ndarray, left: int, top: int, *, z: int = 0) -> str:
    flat = patch.ravel()
    changes = np.flatnonzero(np.diff(np.concatenate([[False], flat]).astype(int))).tolist()
    runs = np.diff([0, *changes, flat.size])
    height, width = patch.shape
    text = ", ".join(map(str, runs))
    return f'<mask label="m" rle="{text}" left="{left}" top="{top}" width="{width}" height="{height}" z_order="{z}"/>'


def test_a_larger_z_order_is_nearer(tmp_path: Path) -> None:
    inside = polygon(FRONT, "front", z=3) + '<tag label="good"></tag>' + polygon(BACK, "bäck &lt;&gt;", z=-1)
    save_cvat(tmp_path, inside, "")
    scenes = CvatScenes(tmp_path)
    scene, defects = scenes.inspect(0)
    assert len(scenes) == 2 and defects == [] and scenes.file_defects() == []
    assert scene is not None and scene.id == "0" and scene.names == ("front", "bäck <>")
    assert (scene.amodal_masks == [FRONT, BACK]).all() and scene.layer_index.tolist() == [0, 1]
    assert len(scenes[1]) == 0 and scenes[1].image[0, 0].tolist() == [1, 1, 1]
    equal = CvatScenes(save_cvat(tmp_path / "equal", polygon(FRONT) + polygon(BACK)))
    assert codes(equal.inspect(0)[1]) == [("polygon 1", "order-unknown", "keep")]


def test_a_mask_runs_along_the_rows_of_its_box(tmp_path: Path) -> None:
    """The mask of CVAT's own description of the format: 13x15 pixels, round."""
    runs = "3, 5, 7, 7, 5, 9, 3, 11, 2, 11, 2, 12, 1, 12, 1, 26, 1, 12, 1, 12, 2, 11, 3, 9, 5, 7, 7, 5, 3"
    inside = f'<mask label="car" rle="{runs}" left="7" top="2" width="13" height="15" z_order="0"></mask>'
    (mask,) = CvatScenes(save_cvat(tmp_path, inside))[0].amodal_masks
    patch = mask[2:17, 7:20]
    assert mask.sum() == patch.sum() == sum(map(int, runs.split(",")[1::2]))
    for lines in (
        patch,
        patch.T,
    ):  # a round thing is one stretch on every line, both ways; read down the columns it falls apart
        assert (np.abs(np.diff(np.pad(lines, ((0, 0), (1, 1))).astype(int))).sum(axis=1) == 2).all()
    assert patch[7].all() and patch[0].tolist() == [False] * 3 + [True] * 5 + [False] * 5


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    patch=hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)).filter(np.any),
    left=st.integers(0, W - 9),
    top=st.integers(0, H - 9),
)
def test_any_mask_comes_back(tmp_path: Path, patch: np.ndarray, left: int, top: int) -> None:
    (mask,) = CvatScenes(save_cvat(tmp_path, mask_element(patch, left, top)))[0].amodal_masks
    assert mask.sum() == patch.sum() and (mask[top:, left:][: patch.shape[0], : patch.shape[1]] == patch).all()


def test_boxes_and_ellipses_may_be_turned(tmp_path: Path) -> None:
    inside = (
        '<box label="b" xtl="4" ytl="6" xbr="12" ybr="8" z_order="1"/>'
        '<box label="b" xtl="10" ytl="9" xbr="18" ybr="11" rotation="90" z_order="2"/>'
        '<ellipse label="e" cx="22" cy="10" rx="2" ry="6" rotation="90.0" z_order="3"/>'
    )
    objects = CvatScenes(save_cvat(tmp_path, inside)).raw(0)[0].objects
    level, turned, egg = (decode(one.amodal, H, W)[0] for one in objects)
    assert (level == box(H, W, 6, 4, 8, 12)).all() and (turned == box(H, W, 6, 13, 14, 15)).all()
    y, x = np.mgrid[:H, :W] + 0.5
    distance = ((x - 22) / 6) ** 2 + ((y - 10) / 2) ** 2
    assert egg[distance < 0.6].all() and not egg[distance > 1.5].any()


def test_shapes_of_one_cvat_group_are_one_object(tmp_path: Path) -> None:
    inside = (
        polygon(BACK, "cup", more='group_id="4"')
        + polygon(FRONT, "box", z=1)
        + polygon(FRONT, "cup", z=2, more='group_id="4"')
    )
    scene = CvatScenes(save_cvat(tmp_path, inside))[0]
    assert scene.names == ("cup",) and scene.dropped == 1 and (scene.amodal_masks[0] == BACK | FRONT).all()


@pytest.mark.parametrize(
    ("element", "code", "words"),
    [
        (
            '<points label="p" points="1,2"/>',
            "shape-kind",
            "a points encloses nothing; polygon, mask, box and ellipse do",
        ),
        (
            '<cuboid label="p" xtl1="1"/>',
            "field",
            "a cuboid is no kind of outline that can be read; polygon, mask, box and ellipse are",
        ),
        ('<polygon label="p"/>', "field", "a polygon must have the attribute points"),
        (
            '<polygon points="1,2;3,x;5,6"/>',
            "field",
            "a polygon must hold numbers (could not convert string to float: 'x')",
        ),
        (
            '<box xtl="1" ytl="2" xbr="inf" ybr="3"/>',
            "field",
            "a polygon must hold finite numbers, got NaN or infinity",
        ),
        (
            '<mask rle="1, 2" left="0" top="0" width="2" height="2"/>',
            "rle-size",
            "the runs of the mask must fill its box of 2x2, got 3",
        ),
        (
            '<mask rle="-1, 5" left="0" top="0" width="2" height="2"/>',
            "rle-size",
            "the runs of the mask must fill its box of 2x2, got 4",
        ),
        (
            '<mask rle="0, 1000000000000" left="0" top="0" width="1000000" height="1000000"/>',
            "outside",
            "the box of the mask (x 0, y 0, 1000000x1000000) leaves the picture of 30x20",
        ),
    ],
)
def test_a_broken_cvat_shape_is_dropped_and_told(tmp_path: Path, element: str, code: str, words: str) -> None:
    scene, defects = CvatScenes(save_cvat(tmp_path, polygon(BACK) + element)).inspect(0)
    assert [(defect.code, defect.action, defect.words) for defect in defects] == [(code, "drop", words)]
    assert scene is not None and len(scene) == 1 and scene.complete == (code == "shape-kind")


BOMB = '<?xml version="1.0"?>\n<!DOCTYPE a [<!ENTITY x "boom"><!ENTITY y "&x;&x;&x;">]>\n<annotations>&y;'


@pytest.mark.parametrize(
    ("head", "end", "words"),
    [
        (BOMB, "</annotations>", "holds a DOCTYPE, which CVAT never writes and which may hide entity bombs; remove it"),
        (HEAD, "", r"is not valid XML at line 7 column 1 \(no element found\); export it again"),
        (
            HEAD + "<track/>",
            "</annotations>",
            "holds <track> elements, as CVAT for video does; export as CVAT for images 1.1",
        ),
        (
            "<annotation>",
            "</annotation>",
            "must begin with <annotations>, got <annotation>; export as CVAT for images 1.1",
        ),
        (
            '<?xml version="1.0" encoding="latin1"?><annotations>',
            "</annotations>",
            "must be UTF-8, got latin1; save it as UTF-8",
        ),
    ],
)
def test_xml_that_is_no_export_for_images_is_refused(tmp_path: Path, head: str, end: str, words: str) -> None:
    save_cvat(tmp_path, "<x/>", head=head, end=end)
    with pytest.raises(InputError, match=f"cvat .*annotations.xml {words}"):
        CvatScenes(tmp_path)


def test_cvat_paths(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="cvat .*annotations.xml does not exist; name the XML file of an unpacked CVAT"
    ):
        CvatScenes(tmp_path)
    with pytest.raises(InputError, match="cvat .* must hold <image> elements, got none; export as CVAT for images 1.1"):
        CvatScenes(save_cvat(tmp_path))
    file = tmp_path / "set.xml"
    file.write_text('<annotations><image name="a > b/1.png"/><image name="a > b/1.jpg"/></annotations>')
    (tmp_path / "photos").mkdir()
    scenes = CvatScenes(file, images=tmp_path / "photos")
    assert scenes.raw(0)[0].image == tmp_path / "photos" / "a > b" / "1.png"
    assert [scenes.raw(i)[0].id for i in (0, 1)] == ["a > b_1"] * 2
    assert [(d.image, d.code) for d in scenes.file_defects()] == [("a > b_1", "image-twice")]
    file.write_text(
        '<annotations><image name="../secret.png"/><image name="/"/><image name="sub/p.png"/></annotations>'
    )
    (tmp_path / "photos" / "p.png").write_bytes(b"")
    scenes = CvatScenes(file, images=tmp_path / "photos")
    found = [scenes.raw(i)[0] for i in range(3)]
    assert [one.id for one in found] == ["_secret", "_", "sub_p"], "an id names files"
    assert [one.image for one in found[::2]] == [tmp_path / "photos" / name for name in ("secret.png", "p.png")], (
        "none leads out"
    )
    file.write_text("<annotations></annotations>")
    with pytest.raises(InputError, match="cvat .*set.xml was changed after it was opened .*; open it again"):
        scenes.raw(1)


def test_a_large_file_is_read_in_constant_memory(tmp_path: Path) -> None:
    many = ";".join(f"{i % W}.25,{i % H}.75" for i in range(400))
    element = f'<polygon label="x" points="{many}" z_order="1"/>'
    with (tmp_path / "big.xml").open("w") as file:
        file.write("<annotations>")
        for k in range(600):
            file.write(f'<image id="{k}" name="{k}.png" width="{W}" height="{H}">{element * 4}</image>\n')
        file.write("</annotations>")
    size = (tmp_path / "big.xml").stat().st_size
    tracemalloc.start()
    try:
        scenes = CvatScenes(tmp_path / "big.xml")
        raw, _ = scenes.raw(599)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(scenes) == 600 and raw.id == "599" and len(raw.objects) == 4
    assert size > 10_000_000 and peak < size / 8
