"""Readers of the COCO family and their index: every preset on generated files, every defect by its words, nothing read before it is asked for."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import box
from PIL import ExifTags, Image
from tiny import ROOT

from sas.data.formats import stream
from sas.data.formats.coco import PRESETS, CocoScenes, checked_fields, find_picture, truth
from sas.data.formats.cocoa import CocoaScenes
from sas.data.formats.hints import suggest
from sas.data.formats.index import LISTED, AnnotationIndex
from sas.data.formats.raw import Defect
from sas.data.formats.registry import open_format
from sas.data.formats.writers import write_cocoa, write_kins2020
from sas.io import InputError, rle_decode, rle_encode
from sas.scene import Scene

HEIGHT, WIDTH = 20, 30
FRONT = box(HEIGHT, WIDTH, 2, 2, 12, 14)
BEHIND = box(HEIGHT, WIDTH, 4, 8, 16, 24)  # partly behind FRONT
ALONE = box(HEIGHT, WIDTH, 17, 25, 20, 30)
POLYGONS = {"front": [2, 2, 14, 2, 14, 12, 2, 12], "behind": [8, 4, 24, 4, 24, 16, 8, 16], "alone": [25, 17, 30, 17, 30, 20, 25, 20]}  # fmt: skip
SEEN_POLYGON = [14, 4, 24, 4, 24, 16, 8, 16, 8, 12, 14, 12]  # of BEHIND


def write_picture(path: Path, *, height: int = HEIGHT, width: int = WIDTH) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def image_record(id: Any = 1, **more: Any) -> dict[str, Any]:
    return {"id": id, "file_name": f"{id}.png", "height": HEIGHT, "width": WIDTH, **more}


def annotation(id: int, image: Any = 1, **fields: Any) -> dict[str, Any]:
    return {"id": id, "image_id": image, "category_id": 4, "iscrowd": 0, **fields}


CATEGORIES = [{"id": 4, "name": "car"}]


def write_file(folder: Path, images: Any, annotations: Any, categories: Any = CATEGORIES, **more: Any) -> Path:
    """A COCO-style file with its pictures beside it."""
    for image in images:
        write_picture(folder / image["file_name"])
    path = folder / "set.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories, **more}))
    return path


def codes(defects: list[Defect]) -> list[tuple[str, str, str, str, str]]:
    return [(one.severity, one.code, one.action, one.image, one.object) for one in defects]


# ---------------------------------------------------------------------- presets

KINS_2020 = [
    {"a_segm": [POLYGONS["behind"]], "i_segm": [SEEN_POLYGON], "oco_id": 1, "ico_id": 2},
    {"a_segm": [POLYGONS["front"]], "i_segm": [POLYGONS["front"]], "oco_id": 1, "ico_id": 1},
    {"a_segm": [POLYGONS["alone"]], "i_segm": [POLYGONS["alone"]], "oco_id": 0, "ico_id": 0},
]
KINS = [
    {"segmentation": [POLYGONS["behind"]], "inmodal_seg": rle_encode(BEHIND & ~FRONT)},
    {"segmentation": [POLYGONS["front"]], "inmodal_seg": rle_encode(FRONT)},
    {"segmentation": [POLYGONS["alone"]], "inmodal_seg": rle_encode(ALONE)},
]
D2SA = [
    {"segmentation": rle_encode(full), "visible_mask": rle_encode(seen)}
    for full, seen in ((BEHIND, BEHIND & ~FRONT), (FRONT, FRONT), (ALONE, ALONE))
]
RECORDS = {"kins": KINS, "kins2020": KINS_2020, "coco": KINS}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_reads_its_fields(preset: str, tmp_path: Path) -> None:
    records = [annotation(7 + k, **fields) for k, fields in enumerate(RECORDS.get(preset, D2SA))]
    path = write_file(tmp_path, [image_record()], records)
    scenes = CocoScenes(path, preset=preset, images=tmp_path)
    assert len(scenes) == 1 and scenes.file_defects() == []
    scene, defects = scenes.inspect(0)
    assert scene is not None and defects == [] and scene.complete
    assert scene.id == "1" and scene.names == ("car",) * 3
    assert (scene.amodal_masks == np.stack([BEHIND, FRONT, ALONE])).all()
    if preset == "coco":  # nothing but amodal masks is mapped
        assert scene.order_matrix is None and scene.visible_masks is None
    else:
        assert scene.visible_masks is not None and scene.layer_index.tolist() == [1, 0, 0]
        assert (scene.visible_masks == np.stack([BEHIND & ~FRONT, FRONT, ALONE])).all()


def test_what_is_wrong_with_a_file_is_told_when_it_is_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Annotations of pictures that the file does not list: pictures without any may have lost theirs."""
    records = [annotation(7, **KINS[1]), annotation(8, 99, **KINS[2])]
    path = write_file(tmp_path, [image_record(), image_record(2)], records)
    full, bare = open_format(path, format="kins", images=tmp_path)
    assert "image-unknown" in caplog.text and "`sas data check` names each" in caplog.text
    assert full.complete and len(full) == 1
    assert not bare.complete and len(bare) == 0
    caplog.clear()
    write_file(tmp_path, [image_record(), image_record(2)], records[:1])
    full, bare = open_format(path, format="kins", images=tmp_path)
    assert full.complete and bare.complete and caplog.text == ""


def test_a_field_that_no_annotation_has_is_told_when_the_file_is_opened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_file(tmp_path, [image_record()], [annotation(7, **KINS[1])])
    open_format(path, format="coco", images=tmp_path, fields={"crowd": "is_crowd"})
    assert "is_crowd" in caplog.text


@pytest.mark.parametrize(("orientation", "code"), [(1, []), (3, ["image-turned"]), (6, ["image-size"])])
def test_a_picture_that_is_shown_turned_is_told(tmp_path: Path, orientation: int, code: list[str]) -> None:
    path = write_file(tmp_path, [image_record(file_name="1.jpg")], [annotation(7, **KINS[1])])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 9, np.uint8)).save(tmp_path / "1.jpg", exif=exif)
    _, defects = CocoScenes(path, preset="kins", images=tmp_path).inspect(0)
    assert [one.code for one in defects] == code
    square = image_record(9, file_name="9.jpg", width=HEIGHT)
    path = write_file(tmp_path, [square], [annotation(7, 9, **KINS[1])])
    Image.fromarray(np.full((HEIGHT, HEIGHT, 3), 9, np.uint8)).save(tmp_path / "9.jpg", exif=exif)
    _, told = CocoScenes(path, preset="kins", images=tmp_path).inspect(0)
    assert ("image-turned" in [one.code for one in told]) == (orientation != 1), "a square's size never says"
    if orientation == 6:
        assert "the picture is shown turned (EXIF orientation)" in defects[0].words


def test_scenes_opened_with_the_fields_of_a_known_format_go_to_another_process(tmp_path: Path) -> None:
    records = [annotation(7 + k, **fields) for k, fields in enumerate(D2SA)]
    path = write_file(tmp_path, [image_record()], records)
    scenes = CocoScenes(path, fields=PRESETS["d2sa"].fields)
    again = pickle.loads(pickle.dumps(scenes))
    assert again.fields == scenes.fields and again[0].layer_index.tolist() == [1, 0, 0]


def test_guesses_say_that_they_are_guesses() -> None:
    assert {name for name, preset in PRESETS.items() if not preset.sure} == {
        "intra-afruit",
        "acom",
        "interamix",
        "muva",
    }
    assert all(("guessed" in preset.words) != preset.sure for preset in PRESETS.values())


def test_the_order_of_ranks_alone_and_of_hidden_masks_alone(tmp_path: Path) -> None:
    records = [annotation(k, depth=3 - k, full=fields["segmentation"], hidden=rle_encode(hidden)) for k, (fields, hidden) in enumerate(
        zip(D2SA, (BEHIND & FRONT, FRONT & ~FRONT, ALONE & ~ALONE), strict=True)
    )]  # fmt: skip
    path = write_file(tmp_path, [image_record()], records)
    by_rank = CocoScenes(path, fields={"amodal": "full", "rank": "depth"})[0]
    by_hidden = CocoScenes(path, fields={"amodal": "full", "invisible": "hidden"})[0]
    for scene in (by_rank, by_hidden):
        assert scene.layer_index.tolist() == [1, 0, 0]
    assert by_rank.visible_masks is None and by_hidden.visible_masks is not None


def test_a_field_may_be_renamed_and_taken_away(tmp_path: Path) -> None:
    records = [annotation(k, full=one["segmentation"], visible_mask=one["visible_mask"]) for k, one in enumerate(D2SA)]  # fmt: skip
    path = write_file(tmp_path, [image_record()], records)
    assert CocoScenes(path, preset="muva", fields={"amodal": "full"})[0].layer_index.tolist() == [1, 0, 0]
    without = CocoScenes(path, preset="muva", fields={"amodal": "full", "visible": ""})[0]
    assert without.order_matrix is None


def test_stuff_crowds_and_categories(tmp_path: Path) -> None:
    everything = rle_encode(np.ones((HEIGHT, WIDTH), dtype=bool))
    records = [
        annotation(1, segmentation=everything, background=1, category_id=9),
        annotation(2, segmentation=rle_encode(FRONT), iscrowd=1),
        annotation(3, segmentation=rle_encode(ALONE), category_id=None),
    ]
    path = write_file(tmp_path, [image_record()], records)
    scene, defects = CocoScenes(path, fields={"stuff": "background"}).inspect(0)
    assert scene is not None and scene.names == ("9", "object") and not scene.complete
    assert codes(defects) == [
        ("warning", "category-unknown", "keep", "1", "1"),
        ("warning", "covers-all", "keep", "1", "1"),
        ("warning", "crowd", "drop", "1", "2"),
    ]
    assert defects[0].words == "the file lists no category 9; the object is named by the number"


def test_kins_rank_zero_is_no_rank_and_ranks_hold_in_their_cluster_only(tmp_path: Path) -> None:
    # By their numbers the second of each pair would be nearer.
    for first, second in [((0, 1), (0, 0)), ((1, 2), (2, 1))]:
        records = [
            annotation(1, a_segm=[POLYGONS["front"]], i_segm=[POLYGONS["front"]], oco_id=first[0], ico_id=first[1]),
            annotation(2, a_segm=[POLYGONS["behind"]], i_segm=[SEEN_POLYGON], oco_id=second[0], ico_id=second[1]),
        ]
        path = write_file(tmp_path, [image_record()], records)
        scene, defects = CocoScenes(path, preset="kins2020").inspect(0)
        assert scene is not None and scene.layer_index.tolist() == [0, 1] and defects == []


def test_kins_ranks_against_visible_masks(tmp_path: Path) -> None:
    records = [annotation(1, **{**KINS_2020[0], "ico_id": 1}), annotation(2, **{**KINS_2020[1], "ico_id": 2})]
    path = write_file(tmp_path, [image_record()], records)
    scene, defects = CocoScenes(path, preset="kins2020").inspect(0)
    assert scene is not None and scene.layer_index.tolist() == [0, 1]  # the rank wins
    assert [one.code for one in defects] == ["order-conflict"]
    assert defects[0].words == "1 is taken to be in front of 2, but the visible masks say the opposite"


def test_a_rank_that_is_no_number(tmp_path: Path) -> None:
    path = write_file(tmp_path, [image_record()], [annotation(1, **{**KINS_2020[0], "ico_id": "near"})])
    scene, defects = CocoScenes(path, preset="kins2020").inspect(0)
    assert scene is not None and len(scene) == 1
    assert codes(defects) == [("error", "field", "repair", "1", "1")]
    assert defects[0].words == "ico_id (rank) must be a number, got 'near'; it is left out"


# ---------------------------------------------------------------------- fields that are not there


def test_a_wrong_guess_is_told_with_its_cure(tmp_path: Path) -> None:
    records = [annotation(1, segmentations=rle_encode(FRONT), shown=rle_encode(FRONT))]
    path = write_file(tmp_path, [image_record()], records)
    scenes = CocoScenes(path, preset="muva")
    has = "it has id, image_id, category_id, iscrowd, segmentations, shown"
    amodal = f"no annotation has a field 'segmentation' (amodal); {has}; did you mean --fields amodal=segmentations (data.fields in a configuration)?"
    visible = f"no annotation has a field 'visible_mask' (visible); {has}; name the right one: --fields visible=NAME (data.fields in a configuration)"
    assert scenes.file_defects() == [
        Defect("error", "field", amodal, "refuse"),
        Defect("error", "field", visible, "keep"),
    ]
    with pytest.raises(
        InputError,
        match=r"image 1 cannot be used: field: .*did you mean --fields amodal=segmentations \(data.fields in",
    ):
        scenes[0]
    mended = CocoScenes(path, preset="muva", fields={"amodal": "segmentations", "visible": "shown"})
    assert mended.file_defects() == [] and len(mended[0]) == 1


@pytest.mark.parametrize(
    ("word", "name", "fields", "expected"),
    [
        ("amodal", "segmentations", {"segmentations": [[1]], "score": 1}, "segmentations"),
        ("amodal", "segm", {"i_segm": [[1]], "a_bbox": [1]}, None),  # close, and known to be what is seen
        ("amodal", "segmentation", {"i_segm": [[1]], "a_segm": [[1]]}, "a_segm"),
        ("visible", "visible_mask", {"visible_masks": 3, "visible": {"size": []}}, "visible"),  # a number is no mask
        ("rank", "is_crowded", {"iscrowd": 0}, None),
        ("rank", "orders", {"order": 2, "border": "x"}, "order"),
        ("rank", "orders", {"order": None}, "order"),  # nothing is known of its values
        ("rank", "depth", {"group": 1, "dept": "far"}, None),
        ("file_name", "file_name", {"filename": "x", "file_names": ["x"]}, "filename"),
        ("amodal", "mask", {"masks": [[1]]}, None),  # stands for another word already
    ],
)
def test_only_a_field_that_may_be_meant_is_proposed(
    word: str, name: str, fields: dict[str, Any], expected: str | None
) -> None:
    assert suggest(word, name, fields, {"visible": "masks", word: name}) == expected


def test_a_file_of_kins_under_the_other_name_of_kins(tmp_path: Path) -> None:
    new = write_file(tmp_path, [image_record()], [annotation(k, **one) for k, one in enumerate(KINS_2020)])
    (tmp_path / "old").mkdir()
    records = [annotation(k, segmentation=rle_encode(BEHIND), inmodal_seg=rle_encode(FRONT)) for k in range(2)]
    old = write_file(tmp_path / "old", [image_record()], records)
    for path, preset, other in (
        (new, "kins", "kins2020"),
        (new, "coco", "kins2020"),
        (old, "kins2020", "kins"),
        (old, "d2sa", "kins"),
    ):
        words = CocoScenes(path, preset=preset).file_defects()[0].words
        assert words.endswith(
            f"; the file looks like another format: --format {other} (data.format in a configuration)"
        )
        assert "did you mean" not in words
    # It has all that is asked for, and no order: then that is the cure.
    assert CocoScenes(old).file_defects() == [] and CocoScenes(old).order_cure.endswith(
        "--format kins (data.format in a configuration)"
    )
    assert CocoScenes(old, preset="kins").file_defects() == [] == CocoScenes(new, preset="kins2020").file_defects()
    (defect,) = CocoaScenes(old).inspect(0)[1][:1]
    assert defect.words.endswith("the file looks like another format: --format kins (data.format in a configuration)")
    cocoa = cocoa_file(tmp_path, drawing())
    assert "--format cocoa" in CocoScenes(cocoa).file_defects()[0].words


def test_a_set_of_masks_says_what_gives_it_an_order(tmp_path: Path) -> None:
    scenes = CocoScenes(write_file(tmp_path, [image_record()], [annotation(1, segmentation=rle_encode(FRONT))]))
    assert scenes[0].order_matrix is None
    assert scenes.order_cure == (
        "to train, name the field of visible masks or of ranks: --fields visible=NAME or rank=NAME (data.fields in a configuration)"
    )


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_json_does_not_know_costs_one_annotation(tmp_path: Path, word: str) -> None:
    good = annotation(1, segmentation=[[2, 2, 12, 2, 12, 12, 2, 12]], note='NaN "NaN\\')
    bad = annotation(2, segmentation=[[2, 2, "@", 2, 12, 12, 2, 12]])
    path = write_file(tmp_path, [image_record()], [good, {**good, "id": 3, "area": "@"}, bad])
    path.write_text(path.read_text().replace('"@"', word).replace('"id": 3', '\n"id": 3'))
    line = path.read_text()[: path.read_text().index(f'area": {word}')].count("\n") + 1
    for _ in range(2):  # made, and found on disk
        scenes = CocoScenes(path)
        (defect,) = scenes.file_defects()
        assert (defect.severity, defect.code, defect.action) == ("warning", "not-finite", "keep")
        assert re.match(
            rf"{word} at byte \d+, line {line} is a number that JSON does not know; write null or a number in its place; all of them are read as null$",
            defect.words,
        )
        scene, defects = scenes.inspect(0)
        assert scene is not None and len(scene) == 2 and not scene.complete
        assert codes(defects) == [("error", "field", "drop", "1", "2")]
        assert defects[0].words == "a polygon must be a list of numbers, got [2, 2, None, 2, 12, 12, 2, 12]"


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_json_does_not_know_counts_as_null(tmp_path: Path, word: str) -> None:
    objects = [
        {**annotation(1, segmentation=[POLYGONS[name]], visible_mask="@", bg="@"), "id": "@", "iscrowd": "@"}
        for name in ("front", "behind")
    ]
    path = write_file(tmp_path, [image_record(), image_record(2)], [*objects, annotation(3, image=2)])
    text = path.read_text().replace('"2.png"', '"@"').replace('"@"', word)
    path.write_text(text)
    scenes = CocoScenes(path, fields={"visible": "visible_mask", "stuff": "bg"})
    assert [defect.code for defect in scenes.file_defects()] == ["not-finite"]
    raw, defects = scenes.raw(0)
    assert defects == [] and [one.id for one in raw.objects] == ["annotation 1", "annotation 2"]
    assert not any(one.crowd or one.stuff or one.visible is not None for one in raw.objects)
    scene, _ = scenes.inspect(0)
    assert scene is not None and scene.complete
    assert (scene.amodal_masks == np.stack([FRONT, BEHIND])).all()
    _, (defect,) = scenes.inspect(1)
    assert (defect.code, defect.words) == ("field", "file_name (file_name) must not be empty, got None")


def test_a_size_of_nan_is_told_of_the_file_and_not_checked(tmp_path: Path) -> None:
    image = {**image_record(), "height": float("nan")}
    scenes = CocoScenes(write_file(tmp_path, [image], [annotation(1, segmentation=rle_encode(FRONT))]))
    assert [defect.code for defect in scenes.file_defects()] == ["not-finite"]
    scene, defects = scenes.inspect(0)
    assert scene is not None and defects == []


def test_what_counts_as_true() -> None:
    assert all(map(truth, (True, 1, 2.5, -1, "1", "true", " Yes")))
    assert not any(map(truth, (False, None, 0, -0.0, "", "0", "no", "None", "null")))
    assert not any(map(truth, (float("nan"), float("inf"), -float("inf"), "NaN", "Infinity", "-Infinity")))


def test_words_of_json_are_cut_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    text = rb'{"a\"NaN\\": [NaN, "NaN", -Infinity, Infinity, "\\"], "b": NaN}'
    wanted = rb'{"a\"NaN\\": [null, "NaN", null, null, "\\"], "b": null}'
    for size in range(1, 20):
        monkeypatch.setattr(stream, "CHUNK", size)
        assert b"".join(stream._with_null(io.BytesIO(text))) == wanted


def test_words_that_are_none_of_json_are_named(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    for word in ("nan", "None", "True", "undefined"):
        path.write_text('{"images": [{"id": 1}],\n"annotations": [{"id": @}]}'.replace("@", word))
        with pytest.raises(
            InputError, match=rf"line 2 \({word} is no word of JSON, which are true, false and null\); get"
        ):
            AnnotationIndex(path)


@pytest.mark.parametrize("side", [-5, 0, "x", [3]])
def test_a_size_that_is_none_is_told_and_not_checked(tmp_path: Path, side: Any) -> None:
    path = write_file(tmp_path, [{**image_record(), "height": side}], [annotation(1, segmentation=rle_encode(FRONT))])
    scene, defects = CocoScenes(path).inspect(0)
    assert scene is not None and codes(defects) == [("error", "field", "repair", "1", "")]
    assert defects[0].words.startswith("the height of the picture must be a number from 1, got ")
    path = cocoa_file(tmp_path, drawing())
    content = json.loads(path.read_text())
    content["images"][0]["height"] = side
    path.write_text(json.dumps(content))
    scene, defects = CocoaScenes(path).inspect(0)
    assert scene is not None and codes(defects) == [("error", "field", "repair", "1", "")]


def test_a_file_name_with_a_zero_is_a_missing_picture(tmp_path: Path) -> None:
    path = write_file(tmp_path, [image_record()], [annotation(1, segmentation=rle_encode(FRONT))])
    path.write_text(path.read_text().replace("1.png", r"a\u0000b"))
    assert [defect.code for defect in CocoScenes(path).inspect(0)[1]] == ["image-missing"]


def test_a_file_name_that_is_too_long_is_a_missing_picture(tmp_path: Path) -> None:
    path = write_file(tmp_path, [image_record()], [annotation(1, segmentation=rle_encode(FRONT))])
    path.write_text(path.read_text().replace("1.png", f"{'long' * 80}.png"))
    assert [defect.code for defect in CocoScenes(path).inspect(0)[1]] == ["image-missing"]


def test_pairs_of_unknown_order_are_told_once_with_their_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same = {**KINS_2020[0], "i_segm": None, "ico_id": 1, "oco_id": 1}
    records = [annotation(10 * image + k, image, **same) for image in (1, 2) for k in range(3)]
    scenes = CocoScenes(write_file(tmp_path, [image_record(1), image_record(2)], records), preset="kins2020")
    for _ in range(2):
        assert [len(scene) for scene in scenes] == [3, 3]
    assert scenes.counts["order-unknown"] == 12
    (message,) = [one.getMessage() for one in caplog.records]
    assert message.startswith(
        "WARNING image=1 object=10 order-unknown: nothing says which of 10 and 11 is in front; kept as it is; "
    )
    assert "pairs like this in the picture: 3. Neither counts as in front" in message


def test_where_an_object_without_an_amodal_mask_is_seen_the_truth_is_unknown(tmp_path: Path) -> None:
    records = [annotation(7, **D2SA[1]), annotation(8, **{**D2SA[2], "segmentation": None}), annotation(9)]
    path = write_file(tmp_path / "d2sa", [image_record()], records)
    scene, defects = CocoScenes(path, preset="d2sa", images=path.parent).inspect(0)
    assert scene is not None and len(scene) == 1 and not scene.complete
    assert scene.known is not None and (scene.known == ~ALONE).all()
    assert [one[1:] for one in codes(defects)] == [("field", "drop", "1", "8"), ("field", "drop", "1", "9")]
    regions = [
        {"order": 1, "segmentation": POLYGONS["front"]},
        {"order": 2, "visible_mask": rle_encode(ALONE)},
        {"order": 3, "segmentation": POLYGONS["behind"], "invisible_mask": {"size": [1, 1], "counts": "1"},
         "visible_mask": rle_encode(BEHIND & ~FRONT)},
    ]  # fmt: skip
    drawing = {"id": 1, "image_id": 1, "author": "a", "regions": regions, "depth_constraint": "1-2,1-3"}
    cocoa = tmp_path / "cocoa" / "set.json"
    write_picture(cocoa.parent / "1.png")
    cocoa.write_text(json.dumps({"images": [image_record()], "annotations": [drawing]}))
    scene, defects = CocoaScenes(cocoa, images=cocoa.parent).inspect(0)
    assert scene is not None and not scene.complete and scene.layer_index.tolist() == [0, 1]
    assert scene.known is not None and (scene.known == ~ALONE).all()
    assert (scene.amodal_masks == [FRONT, BEHIND]).all(), "a mask that is not needed costs no object"
    assert [(one[0], *one[2:]) for one in codes(defects)] == [("error", "drop", "1", "2"), ("error", "keep", "1", "3")]


def test_cocoa_without_a_drawing_is_refused(tmp_path: Path) -> None:
    path = write_file(tmp_path, [image_record()], [annotation(1, 99, author="a", regions=[])])
    with pytest.raises(InputError, match=r"must hold a drawing of a picture that it lists, got none \(image-unknown: "):
        CocoaScenes(path, images=tmp_path)
    with pytest.raises(InputError, match="must hold a drawing by 'a' of a picture that it lists, got none"):
        CocoaScenes(path, images=tmp_path, annotators="a")


def test_hidden_files_beside_the_annotations_are_none(tmp_path: Path) -> None:
    write_file(tmp_path, [image_record()], [annotation(7, **KINS[1])])
    (tmp_path / "._set.json").write_bytes(b"\0\5")
    assert len(open_format(tmp_path, format="kins")) == 1


def test_what_is_seen_of_a_lost_object_is_unknown_and_not_empty(tmp_path: Path) -> None:
    records = [
        annotation(1, a_segm=[POLYGONS["front"]], i_segm=[POLYGONS["front"]], a_bbox=[2, 2, 12, 10], oco_id=0),
        annotation(2, a_segm=[[1, 2, 3, 4]], i_segm=[SEEN_POLYGON], a_bbox=[8, 4, 16, 12], oco_id=0),
    ]
    path = write_file(tmp_path, [image_record()], records)
    scene, defects = CocoScenes(path, fields=PRESETS["kins2020"].fields).inspect(0)
    assert [defect.code for defect in defects] == ["polygon-points"]
    assert scene is not None and len(scene) == 1 and not scene.complete and scene.known is not None
    seen = BEHIND & ~FRONT
    assert not scene.known[seen].any() and scene.known[~seen].all()


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_pictures_may_lie_behind_a_link_but_not_outside(tmp_path: Path) -> None:
    write_picture(tmp_path / "disk" / "a.png")
    write_picture(tmp_path / "secret.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "train").symlink_to(tmp_path / "disk")
    assert find_picture(tmp_path / "images", "train/a.png") == tmp_path / "images" / "train" / "a.png"
    for name in ("../secret.png", "train/../../secret.png", str(tmp_path / "secret.png"), "..\\secret.png"):
        assert find_picture(tmp_path / "images", name) == tmp_path / "images" / "secret.png"


def test_a_mask_that_one_annotation_lacks(tmp_path: Path) -> None:
    records = [annotation(1, segmentation=rle_encode(FRONT)), annotation(2), annotation(3, segmentation=None)]
    path = write_file(tmp_path, [image_record()], records)
    scene, defects = CocoScenes(path).inspect(0)
    assert scene is not None and len(scene) == 1 and not scene.complete
    assert codes(defects) == [("error", "field", "drop", "1", "2"), ("error", "field", "drop", "1", "3")]
    assert defects[0].words == (
        "the annotation has no field 'segmentation' (amodal); it has id, image_id, category_id, iscrowd; "
        "name the right one: --fields amodal=NAME (data.fields in a configuration)"
    )
    assert defects[1].words == "segmentation (amodal) must not be empty, got None"


def test_an_image_without_a_file_name(tmp_path: Path) -> None:
    path = write_file(tmp_path, [image_record()], [annotation(1, segmentation=rle_encode(FRONT))])
    path.write_text(path.read_text().replace('"file_name"', '"filename"'))
    scene, defects = CocoScenes(path).inspect(0)
    assert scene is None and codes(defects) == [("error", "field", "refuse", "1", "")]
    assert defects[0].words == (
        "the image has no field 'file_name' (file_name); it has id, filename, height, width; "
        "did you mean --fields file_name=filename (data.fields in a configuration)?"
    )


def test_a_picture_without_annotations(tmp_path: Path) -> None:
    records = [annotation(1, segmentation=rle_encode(FRONT))]
    path = write_file(tmp_path, [image_record(1), image_record(2)], records)
    scene, defects = CocoScenes(path).inspect(1)
    assert scene is not None and len(scene) == 0
    assert codes(defects) == [("warning", "unannotated", "keep", "2", "")]
    assert defects[0].words == "no annotation is of this picture; it is read as one without objects"


def test_arguments_that_are_wrong(tmp_path: Path) -> None:
    path = write_file(tmp_path, [image_record()], [annotation(1, segmentation=rle_encode(FRONT))])
    cases: list[tuple[dict[str, Any], str]] = [
        ({"fields": {"amodel": "x"}}, "got 'amodel'; did you mean 'amodal'?"),
        ({"fields": {"zzz": "x"}}, "got 'zzz'; choose one of them"),
        (
            {"fields": {"order": "depth"}},
            "got 'order'; did you mean 'rank' (place from front to back, smaller is nearer)?",
        ),
        ({"fields": {"amodal": 3}}, "fields must map amodal to the name of a field, got 3; pass a text"),
        (
            {"fields": {"image_id": ""}},
            "fields must name a field for image_id (id of the picture that it is of), got none",
        ),
        ({"preset": "kins2021"}, "got 'kins2021'; did you mean 'kins2020'?"),
        (
            {"images": tmp_path / "none"},
            f"images must name the folder of the pictures, found nothing at {tmp_path}/none",
        ),
        ({"images": path}, f"images must name the folder of the pictures, found a file at {path}"),
    ]
    for arguments, words in cases:
        with pytest.raises(InputError, match=re.escape(words)):
            CocoScenes(path, **arguments)
    assert checked_fields({"amodal": "a"}) == {"amodal": "a"}


# ---------------------------------------------------------------------- pictures


def test_pictures_are_found_by_their_whole_name_or_its_last_part(tmp_path: Path) -> None:
    images = [image_record(1, file_name="train/1.png"), image_record("b/2", file_name="elsewhere\\2.png")]
    records = [annotation(k, image["id"], segmentation=rle_encode(FRONT)) for k, image in enumerate(images)]
    (tmp_path / "json").mkdir()
    path = tmp_path / "json" / "set.json"
    path.write_text(json.dumps({"images": images, "annotations": records, "categories": CATEGORIES}))
    write_picture(tmp_path / "pictures" / "train" / "1.png")
    write_picture(tmp_path / "pictures" / "2.png")
    scenes = CocoScenes(path, images=tmp_path / "pictures")
    assert [scene.id for scene in scenes] == ["1", "b_2"]
    assert [scene.source for scene in scenes] == [f"{tmp_path}/pictures/train/1.png", f"{tmp_path}/pictures/2.png"]
    with pytest.raises(
        InputError, match=f"image 1 cannot be used: image-missing: there is no file {path.parent}/train/1.png"
    ):
        CocoScenes(path)[0]


def test_only_the_picture_asked_for_is_opened(tmp_path: Path) -> None:
    images = [image_record(k) for k in range(3)]
    records = [annotation(k, k, segmentation=rle_encode(FRONT)) for k in range(3)]
    records[2]["segmentation"] = "nonsense"
    path = write_file(tmp_path, images, records)
    (tmp_path / "0.png").unlink()
    (tmp_path / "2.png").write_bytes(b"no picture")
    scenes = CocoScenes(path)
    assert len(scenes) == 3 and len(scenes[1]) == 1
    assert [one.code for one in scenes.inspect(0)[1]] == ["image-missing"]
    assert [one.code for one in scenes.inspect(2)[1]] == ["image-damaged"]


def test_a_picture_of_another_size(tmp_path: Path) -> None:
    records = [annotation(1, segmentation=rle_encode(FRONT))]
    path = write_file(tmp_path, [image_record()], records)
    write_picture(tmp_path / "1.png", height=10, width=15)
    scene, defects = CocoScenes(path).inspect(0)
    assert scene is None and [one.code for one in defects] == ["image-size"]
    assert defects[0].words == "the file says 30x20 (width x height), 1.png has 15x10"


# ---------------------------------------------------------------------- the index


def many(folder: Path, pictures: int = 30, per: int = 4, *, pad: int = 0) -> Path:
    """Annotations of all pictures by turns, before the list of images."""
    records = [annotation(k, k % pictures, note="x" * pad) for k in range(pictures * per)]
    path = folder / "many.json"
    images = [{"id": k, "file_name": f"{k}.png"} for k in range(pictures)]
    path.write_text(json.dumps({"info": {}, "annotations": records, "images": images, "categories": CATEGORIES}))
    return path


def cache(path: Path) -> Path:
    return path.parent / f".{path.name}.sas-index"


def token(path: Path) -> str:
    return str(json.loads((cache(path) / "index.json").read_text())["token"])


def test_the_index_groups_annotations_by_picture(tmp_path: Path) -> None:
    index = AnnotationIndex(many(tmp_path, 30, 4, pad=1000))
    assert len(index) == 30 and index.counts.tolist() == [4] * 30 and index.defects == []
    assert index.fields == dict.fromkeys(("id", "image_id", "category_id", "iscrowd", "note"), 120)
    for k in range(30):
        image, annotations = index.read(k)
        assert image == {"id": k, "file_name": f"{k}.png"}
        assert [one["id"] for one in annotations] == [k, k + 30, k + 60, k + 90]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at open files as Linux lists them")
def test_an_index_is_made_and_read_where_there_is_no_pread_and_open_files_pin_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.rename

    def rename(old: Any, new: Any, **more: Any) -> None:  # as on Windows
        links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
        if any(str(link.resolve()).startswith(f"{os.path.realpath(old)}/") for link in links):
            raise PermissionError(errno.EACCES, "Access is denied", str(old))
        real(old, new, **more)

    monkeypatch.delattr("os.pread")
    monkeypatch.delattr("os.getuid")
    monkeypatch.setattr("os.rename", rename)
    monkeypatch.setattr("sas.data.formats.index.WINDOWS", True)
    path = many(tmp_path, 30, 4)
    index = AnnotationIndex(path)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(index.read, range(30)))
    assert [(image["id"], len(annotations)) for image, annotations in found] == [(k, 4) for k in range(30)]
    assert cache(path).is_dir()
    # While one is open another cannot take its place, so that it goes elsewhere.
    assert len(AnnotationIndex(many(tmp_path, 31, 4))) == 31 and index.read(29)[0]["id"] == 29


def test_numbers_texts_and_nested_values_come_back_as_they_were(tmp_path: Path) -> None:
    fields = {"a": [0.1, -3, 1e-7, 12345678901234], "b": {"c": [None, True, "ä\u2028\n"]}}
    path = tmp_path / "set.json"
    text = json.dumps(
        {"images": [{"id": "ß"}], "annotations": [{"id": 1, "image_id": "ß", **fields}]}, ensure_ascii=False
    )
    path.write_text(text, encoding="utf-8-sig")  # with a byte order mark, as some programs write it
    _, (record,) = AnnotationIndex(path).read(0)
    assert {name: record[name] for name in fields} == fields


def test_ids_agree_whatever_their_type(tmp_path: Path) -> None:
    images = [image_record(1), image_record("2"), image_record(3)]
    records = [annotation(1, "1"), annotation(2, 2), annotation(3, 3.0)]
    index = AnnotationIndex(write_file(tmp_path, images, records))
    assert index.counts.tolist() == [1, 1, 1] and index.defects == []


def test_the_index_is_made_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    path = many(tmp_path)
    AnnotationIndex(path)
    first = token(path)
    AnnotationIndex(path)
    assert token(path) == first
    AnnotationIndex(path, category="kind")  # other fields are looked at
    second = token(path)
    assert second != first

    old = AnnotationIndex(path)
    third = token(path)
    os.utime(path, ns=(0, 12345))
    AnnotationIndex(path)
    assert token(path) != third
    many(tmp_path, pictures=31)
    new = AnnotationIndex(path)
    assert (len(old), len(new)) == (30, 31)
    assert old.read(29)[0]["id"] == 29  # who has the old one open goes on with it
    assert [one.name for one in tmp_path.iterdir() if ".tmp-" in one.name or ".old-" in one.name] == []


def test_an_index_of_another_version_or_a_damaged_one_is_made_again(tmp_path: Path) -> None:
    path = many(tmp_path)

    def change_version(folder: Path) -> None:
        info = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps({**info, "index_version": 0}))

    def cut(pattern: str) -> Callable[[Path], None]:
        def change(folder: Path) -> None:
            (file,) = folder.glob(pattern)
            file.write_bytes(file.read_bytes()[:-10])

        return change

    def remove(folder: Path) -> None:
        next(folder.glob("starts-*")).unlink()

    for spoil in (change_version, cut("index.json"), cut("records-*"), cut("starts-*"), cut("counts-*"), remove):
        AnnotationIndex(path)
        before = token(path)
        spoil(cache(path))
        index = AnnotationIndex(path)
        assert token(path) != before and len(index.read(29)[1]) == 4


@pytest.fixture
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_where_the_folder_cannot_be_written_the_index_goes_elsewhere(
    tmp_path: Path, own_temporary_folder: Path
) -> None:
    path = many(tmp_path)
    cache(path).write_text("a file in its place")  # which stops even those who may write everywhere
    index = AnnotationIndex(path)
    assert len(index) == 30 and cache(path).read_text() == "a file in its place"
    (kept,) = own_temporary_folder.glob("sas-index-*/many.json-*")
    stamp = (kept / "index.json").stat().st_ino
    assert len(AnnotationIndex(path)) == 30
    assert (kept / "index.json").stat().st_ino == stamp
    assert (kept.parent.stat().st_mode & 0o077) == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path: Path, own_temporary_folder: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    path = many(folder)
    folder.chmod(0o555)
    try:
        assert len(AnnotationIndex(path)) == 30 and not cache(path).exists()
    finally:
        folder.chmod(0o755)


def test_without_any_place_for_the_index(tmp_path: Path, own_temporary_folder: Path) -> None:
    path = many(tmp_path)
    cache(path).write_text("")
    shutil.rmtree(own_temporary_folder)
    own_temporary_folder.write_text("")
    with pytest.raises(
        InputError, match=r"need a place for their index, and neither .* nor .* can be written; .*TMPDIR"
    ):
        AnnotationIndex(path)


def test_threads_may_build_it_at_the_same_time(tmp_path: Path) -> None:
    path = many(tmp_path, pictures=50, per=4)
    for change in range(3):
        os.utime(path, ns=(0, change))  # there is an old one to replace from the second time on
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: AnnotationIndex(path), range(4)))
        for index in found:
            assert len(index) == 50 and sum(len(index.read(k)[1]) for k in range(50)) == 200
        before = token(path)
        assert len(AnnotationIndex(path)) == 50 and token(path) == before


@pytest.mark.slow
def test_processes_may_build_it_at_the_same_time(tmp_path: Path) -> None:
    path = many(tmp_path, pictures=200, per=20, pad=300)
    program = (
        "import sys, time\n"
        "from sas.data.formats.index import AnnotationIndex\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "index = AnnotationIndex(sys.argv[1])\n"
        "print(len(index), sum(len(index.read(k)[1]) for k in range(len(index))))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    running = [subprocess.Popen([sys.executable, "-c", program, str(path)], **pipes) for _ in range(2)]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=120)[0] for process in running]
    assert answers == ["200 4000\n"] * 2 and [process.returncode for process in running] == [0, 0]
    before = token(path)
    assert len(AnnotationIndex(path)) == 200 and token(path) == before


def test_threads_and_copies_read_the_same(tmp_path: Path) -> None:
    index = AnnotationIndex(many(tmp_path, pictures=60))
    again = pickle.loads(pickle.dumps(index))
    rows = np.random.default_rng(0).integers(0, 60, 600).tolist()
    with ThreadPoolExecutor(4) as pool:
        for row, (image, annotations) in zip(rows, pool.map(index.read, rows), strict=True):
            assert image["id"] == row and {one["image_id"] for one in annotations} == {row}
            assert again.read(row) == (image, annotations)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = many(tmp_path, pictures=150, per=10, pad=3000)
    size = path.stat().st_size
    (tmp_path / "small").mkdir()
    AnnotationIndex(many(tmp_path / "small", 1, 1))  # imports what is lazy
    ways: dict[str, Callable[[], Any]] = {
        "json": lambda: json.loads(path.read_bytes()),
        "first": lambda: AnnotationIndex(path),
        "cached": lambda: AnnotationIndex(path),
    }
    peaks = {}
    for name, read in ways.items():
        tracemalloc.start()
        held = read()
        peaks[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        del held
    assert size > 4_000_000 and peaks["json"] > size
    assert peaks["first"] < size / 4 and peaks["cached"] < size / 50


# ---------------------------------------------------------------------- defects of a file


def test_defects_of_the_file_as_a_whole(tmp_path: Path) -> None:
    images = [image_record(1), image_record(2), image_record(1, file_name="other.png"), {"file_name": "x.png"}, 5]
    same = annotation(20, 2, segmentation=rle_encode(FRONT))
    records = [
        annotation(10, 1, segmentation=rle_encode(FRONT)),
        annotation(10, 1, segmentation=rle_encode(ALONE)),
        same,
        same,
        annotation(30, 99),
        {"id": 40, "category_id": 4},
        "text",
    ]
    path = tmp_path / "set.json"
    categories = [*CATEGORIES, {"id": 3, "name": "rider"}]
    path.write_text(json.dumps({"images": images, "annotations": records, "categories": categories}))
    for file in ("1.png", "2.png"):
        write_picture(tmp_path / file)
    expected = [
        ("error", "field", "drop", "", "", "images[3] has no id; it has file_name"),
        ("error", "field", "drop", "", "", "images[4] must be an object, got int"),
        ("error", "field", "drop", "", "40", "annotations[5] has no image_id, so no picture; it has id, category_id"),
        ("error", "field", "drop", "", "", "annotations[6] must be an object, got str"),
        ("error", "image-twice", "drop", "1", "", "more than one image record has this id; the first counts, and has the annotations of all"),
        ("error", "image-unknown", "drop", "99", "30", "an annotation is of an image that the file does not list"),
        ("error", "object-twice", "keep", "1", "10", "another annotation has this id"),
        ("error", "object-twice", "drop", "2", "20", "this annotation stands in the file twice"),
        ("warning", "category-unused", "keep", "", "", "no annotation is of category 3 (rider)"),
    ]  # fmt: skip
    for _ in range(2):  # made, and found on disk
        scenes = CocoScenes(path)
        assert [(*found, one.words) for found, one in zip(codes(scenes.file_defects()), scenes.file_defects(), strict=True)] == expected  # fmt: skip
    assert len(scenes) == 2 and [len(scene) for scene in scenes] == [2, 1]
    assert [one.id for one in scenes.raw(0)[0].objects] == ["10", "10 (2)"]


def test_many_defects_of_a_kind_are_counted(tmp_path: Path) -> None:
    records = [annotation(k, 99) for k in range(LISTED + 7)] + [annotation(999, 1)]
    index = AnnotationIndex(write_file(tmp_path, [image_record()], records))
    assert len(index.defects) == LISTED + 1
    assert (index.defects[-1].words, index.defects[-1].code) == ("and 7 more like this", "image-unknown")


def damage(text: str) -> dict[str, tuple[str, str]]:
    """Damaged texts, and where the fault is."""
    middle = text.index('"image_id"', len(text) // 2)
    return {
        "cut": (text[:middle], f"after its last byte, {middle}: it was cut off"),
        "letters": (text[:middle] + "§" + text[middle:], f"at byte {middle}, line 1"),
        "nan": (text[:middle] + "nan" + text[middle:], f"at byte {middle}, line 1 (nan is no word of JSON"),
        "behind": (text + "]", f"at byte {len(text)}, line 1"),
        "empty": ("", "after its last byte, 0: it was cut off"),
    }


@pytest.mark.parametrize("kind", ["cut", "letters", "nan", "behind", "empty"])
def test_damaged_json_is_refused_with_its_place(kind: str, tmp_path: Path) -> None:
    path = many(tmp_path, pictures=100, per=8, pad=200)  # several chunks
    text, where = damage(path.read_text())[kind]
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        AnnotationIndex(path)
    assert str(caught.value).startswith(f"annotations {path} are not valid JSON {where}")
    assert " (" in str(caught.value)
    assert str(caught.value).endswith("; get the file again, or mend it there")
    assert list(tmp_path.iterdir()) == [path]  # nothing half-made is left


def test_the_line_of_a_fault_is_told(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_text('{\n"images": [],\n"annotations": [{"id": 1, }]}')
    with pytest.raises(InputError, match="are not valid JSON at byte 42, line 3 "):
        AnnotationIndex(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"image_id": 1}], "must be an object with the lists images and annotations, got a list or a single value"),
        ({"images": [{"id": 1}]}, "but annotations is missing; it holds images: name the file of the data set that holds both"),
        ({"images": [], "annotations": []}, "but images is an empty list and annotations is an empty list; it holds images, annotations"),
        ({"images": {"1": {}}, "annotations": [{}]}, "but images is an object; it holds images, annotations"),
        ({"image_id": 1, "regions": [], "size": 0}, "this is a single annotation of COCOA: name its folder with --format cocoa"),
        ({"shapes": [], "imagePath": "x"}, "this is a file of labelme: name its folder with --format labelme"),
        ({"format_version": 1, "sha256": ""}, "this is a data set in the project format: name its folder with --format project"),
        ({"images": [{"file_name": "x"}], "annotations": [{}]}, "must list an image with an id, got none; give each its id"),
        ({}, "but images is missing and annotations is missing; it holds nothing"),
    ],
)  # fmt: skip
def test_files_that_are_something_else(content: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=re.escape(words)):
        AnnotationIndex(path)


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.json cannot be read \(No such file or directory\); check the path"):
        CocoScenes(tmp_path / "none.json")
    with pytest.raises(InputError, match="must be a JSON file, found a folder; name the file in it"):
        CocoScenes(tmp_path)


# ---------------------------------------------------------------------- COCOA

REGIONS = [
    {"segmentation": POLYGONS["front"], "name": "cup ", "isStuff": 0, "occlude_rate": 0, "order": 1},
    {
        "segmentation": POLYGONS["behind"], "name": "plate", "isStuff": 0, "order": 2,
        "visible_mask": rle_encode(BEHIND & ~FRONT), "invisible_mask": rle_encode(BEHIND & FRONT),
    },
    {"segmentation": POLYGONS["alone"], "name": "sky", "isStuff": "1", "order": 3},
]  # fmt: skip


def drawing(id: int = 5, image: Any = 1, *, author: str = "ann", regions: Any = REGIONS, **more: Any) -> dict[str, Any]:
    return {"id": id, "image_id": image, "author": author, "url": f"https://x/{image}.png", "regions": regions, **more}


def cocoa_file(folder: Path, *drawings: dict[str, Any], images: int = 1) -> Path:
    path = write_file(folder, [image_record(k + 1) for k in range(images)], list(drawings))
    content = json.loads(path.read_text())
    del content["categories"]
    path.write_text(json.dumps(content))
    return path


def check_cocoa(scene: Scene) -> None:
    assert scene.names == ("cup", "plate", "sky") and scene.complete
    assert (scene.amodal_masks == np.stack([FRONT, BEHIND, ALONE])).all()
    assert scene.visible_masks is not None
    assert (scene.visible_masks == np.stack([FRONT, BEHIND & ~FRONT, ALONE])).all()  # without a mask: seen as a whole
    assert scene.layer_index.tolist() == [0, 1, 0]


def test_cocoa_file_and_folder_read_alike(tmp_path: Path) -> None:
    path = cocoa_file(tmp_path / "file", drawing(depth_constraint="1-2"))
    folder = tmp_path / "folder"
    for name in ("2", "10"):
        write_picture(folder / f"{name}.jpg")
        (folder / f"{name}.json").write_text(json.dumps(drawing(depth_constraint=" 1-2, ")))
    from_file, from_folder = CocoaScenes(path), CocoaScenes(folder)
    assert [scene.id for scene in from_file] == ["1"] and [scene.id for scene in from_folder] == ["2", "10"]
    assert from_file.file_defects() == [] and from_folder.file_defects() == []
    for scenes in (from_file, from_folder):
        scene, defects = scenes.inspect(0)
        assert scene is not None and defects == []
        check_cocoa(scene)
    assert CocoaScenes(folder, images=folder)[1].id == "10"


def test_cocoa_annotators(tmp_path: Path) -> None:
    drawings = [
        drawing(5, 1),
        drawing(6, 2, author="bob"),
        drawing(7, 1, author="bob", regions=REGIONS[:1]),
        drawing(8, 2, author="cy"),
    ]
    path = cocoa_file(tmp_path, *drawings, images=3)

    def read(annotators: str) -> list[tuple[str, int]]:
        return [(scene.id, len(scene)) for scene in CocoaScenes(path, annotators=annotators)]

    assert read("all") == [("1-5", 3), ("1-7", 1), ("2-6", 3), ("2-8", 3)]
    assert read("one") == [("1", 3), ("2", 3)]
    assert read("bob") == [("1", 1), ("2", 3)]
    assert read("cy") == [("2", 3)]
    with pytest.raises(InputError, match=r"got 'dee'; authors are ann, bob, cy"):
        read("dee")
    with pytest.raises(InputError, match="annotators must be 'all', 'one' or an author's name, got ''"):
        read("")
    (defect,) = CocoaScenes(path).file_defects()
    assert (defect.code, defect.words) == (
        "unannotated",
        "1 images have no annotation, the first of them 3; no scene is made of them",
    )


def test_cocoa_annotators_of_a_folder(tmp_path: Path) -> None:
    for name, author, image in [("a", "ann", 1), ("b", "bob", 1), ("c", "bob", 2)]:
        write_picture(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.json").write_text(json.dumps(drawing(author=author, image=image)))
    for annotators, ids in {"all": ["a", "b", "c"], "one": ["a", "c"], "bob": ["b", "c"]}.items():
        assert [scene.id for scene in CocoaScenes(tmp_path, annotators=annotators)] == ids
    with pytest.raises(InputError, match="got 'cy'; authors are ann, bob"):
        CocoaScenes(tmp_path, annotators="cy")


def test_cocoa_things_and_stuff(tmp_path: Path) -> None:
    path = cocoa_file(tmp_path, drawing(depth_constraint="1-2,1-3"))
    things, defects = CocoaScenes(path, regions="things").inspect(0)
    assert things is not None and things.names == ("cup", "plate") and things.complete and defects == []
    stuff, defects = CocoaScenes(path, regions="stuff").inspect(0)
    assert stuff is not None and stuff.names == ("sky",) and not stuff.complete and defects == []
    with pytest.raises(InputError, match="regions must be one of all, things, stuff, got 'thing'"):
        CocoaScenes(path, regions="thing")  # type: ignore[arg-type]


def test_cocoa_stated_pairs_are_stronger_than_ranks_and_masks(tmp_path: Path) -> None:
    path = cocoa_file(tmp_path, drawing(depth_constraint="2-1"))
    scene, defects = CocoaScenes(path).inspect(0)
    assert scene is not None and scene.layer_index.tolist() == [1, 0, 0]
    assert [one.words for one in defects] == [
        "2 is taken to be in front of 1, but the ranks and the visible masks say the opposite"
    ]


@pytest.mark.parametrize(
    ("constraint", "code", "object", "words"),
    [
        ("1-2,1-9", "order-object", "9", "depth_constraint says 1-9, but no region has the order 9; the pair is left out"),
        ("1-2,3>4", "field", "", "depth_constraint must hold pairs front-behind of two regions, such as 1-2, got '3>4'"),
        ("1-2,2-2", "field", "", "depth_constraint must hold pairs front-behind of two regions, such as 1-2, got '2-2'"),
        ("1-2,1-2-3", "field", "", "depth_constraint must hold pairs front-behind of two regions, such as 1-2, got '1-2-3'"),
        ([[1, 2]], "field", "", "depth_constraint must be a text such as '1-2,1-5', got list; it is left out"),
    ],
)  # fmt: skip
def test_cocoa_constraints_that_say_nothing(
    constraint: Any, code: str, object: str, words: str, tmp_path: Path
) -> None:
    path = cocoa_file(tmp_path, drawing(depth_constraint=constraint))
    scene, defects = CocoaScenes(path).inspect(0)
    assert scene is not None
    check_cocoa(scene)
    assert [(one.code, one.object, one.words) for one in defects] == [(code, object, words)]


@pytest.mark.parametrize(
    ("region", "severity", "code", "object", "words"),
    [
        ("text", "error", "field", "region 4", "regions[3] must be an object, got str"),
        ({"order": 4, "name": "x"}, "error", "field", "4", "the region has no segmentation; it has order, name"),
        ({"order": 4, "segmentation": [1, 2, 3, 4]}, "error", "polygon-points", "4",
         "a polygon has 2 points and needs 3; the whole object is left out"),
    ],
)  # fmt: skip
def test_cocoa_regions_that_are_dropped(
    region: Any, severity: str, code: str, object: str, words: str, tmp_path: Path
) -> None:
    path = cocoa_file(tmp_path, drawing(regions=[*REGIONS, region]))
    scene, defects = CocoaScenes(path).inspect(0)
    assert scene is not None and len(scene) == 3 and not scene.complete
    assert codes(defects) == [(severity, code, "drop", "1", object)] and defects[0].words == words


def test_cocoa_orders_that_are_missing_or_come_twice(tmp_path: Path) -> None:
    far = {"segmentation": [0, 17, 3, 17, 3, 20, 0, 20], "name": "x"}
    other = {**far, "segmentation": [0, 0, 2, 0, 2, 2, 0, 2]}
    path = cocoa_file(tmp_path, drawing(regions=[*REGIONS, {**far, "order": 2}, other]))
    scene, defects = CocoaScenes(path).inspect(0)
    assert scene is not None and len(scene) == 5 and scene.complete
    assert [(one.code, one.object, one.words) for one in defects] == [
        ("object-twice", "2 (2)", "another region of the picture has the order 2; depth_constraint means the first"),
        ("field", "region 5", "order must be a number from 1, got None; the region is read without a rank"),
    ]


def test_cocoa_annotations_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"must hold files N.json .* got none; name that folder, or the file COCO_amodal"
    ):
        CocoaScenes(tmp_path)
    write_picture(tmp_path / "1.jpg")
    (tmp_path / "1.json").write_text("{")
    (tmp_path / "2.json").write_text('{"shapes": []}')
    (tmp_path / "3.json").write_text("[]")
    (tmp_path / "4.json").write_text(json.dumps(drawing()))
    scenes = CocoaScenes(tmp_path)
    expected = [
        ("json", f"{tmp_path}/1.json is not valid JSON at line 1 column 2"),
        ("field", "the annotation must have a list of regions, as COCOA has it; it has shapes"),
        ("field", "the annotation must have a list of regions, as COCOA has it; it has list"),
        ("image-missing", f"there is no file {tmp_path}/4.jpg"),
    ]
    for number, (code, words) in enumerate(expected):
        scene, (defect,) = scenes.inspect(number)
        assert scene is None and (defect.code, defect.action) == (code, "refuse") and words in defect.words
    with pytest.raises(InputError, match="this is a single annotation of COCOA: name its folder with --format cocoa"):
        CocoaScenes(tmp_path / "4.json")


# ---------------------------------------------------------------------- what our own writers write


def test_written_files_read_back(tmp_path: Path, tiny_scene: Scene) -> None:
    write_cocoa(tmp_path / "cocoa", [tiny_scene])
    write_kins2020(tmp_path / "kins", [tiny_scene])
    for scenes in (
        CocoaScenes(tmp_path / "cocoa" / "COCO_amodal_train2014.json", images=tmp_path / "cocoa" / "images"),
        CocoScenes(
            tmp_path / "kins" / "update_train_2020.json", preset="kins2020", images=tmp_path / "kins" / "images"
        ),
    ):
        scene, defects = scenes.inspect(0)
        assert scene is not None and defects == [] and scenes.file_defects() == []
        assert scene.names == tiny_scene.names and (scene.image == tiny_scene.image).all()
        assert (scene.amodal_masks == tiny_scene.amodal_masks).all() and (scene.visible == tiny_scene.visible).all()
        assert (scene.order_matrix == tiny_scene.order_matrix).all()


# ---------------------------------------------------------------------- real samples


def test_real_cocoa_samples(samples: Path) -> None:
    folder = samples / "amodal" / "cocoa"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    scenes = CocoaScenes(folder)
    layers = [np.bincount(scene.layer_index).tolist() for scene in scenes]
    assert layers == [[1, 1], [6, 2, 1, 1, 1], [12, 2, 4, 1]]
    for number in range(len(scenes)):
        raw, _ = scenes.raw(number)
        scene, defects = scenes.inspect(number)
        assert scene is not None and defects == [] and scene.complete
        for mask, one in zip(scene.amodal_masks, raw.objects, strict=True):
            if one.visible is not None:  # the flat polygon is what its two parts say, to the pixel
                parts = [scenes_mask(part, mask.shape) for part in (one.visible, one.invisible)]
                assert (mask == (parts[0] | parts[1])).all() and not (parts[0] & parts[1]).any()


def scenes_mask(rle: dict[str, Any], size: tuple[int, ...]) -> np.ndarray:
    mask = rle_decode(rle)
    assert mask.shape == size
    return mask
