"""Files of modal masks as a user meets them: each defect with its line, what the objects are good for, the cleaned copy, renamed fields."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

from sas.__main__ import main
from sas.config import ConfigError, load_config
from sas.data.folders import open_scenes
from sas.data.formats.codes import CODES
from sas.data.formats.modal_set import ModalSet
from sas.data.formats.registry import open_format
from sas.data.formats.writers import write_modal
from sas.data.instances import WholeRule
from sas.data.modal import PartialCompletion, cut_objects
from sas.data_check import check, run_check
from sas.factory import build_source, check_data
from sas.io import InputError, rle_encode

HEIGHT, WIDTH = 96, 120
SIDE = 40
Content = dict[str, Any]


def square(top: int, left: int, side: int = SIDE) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return {"segmentation": rle_encode(mask), "bbox": [left, top, side, side], "iscrowd": 0, "category_id": 1}


def modal_set(folder: Path, plant: Callable[[Content, Path], None] = lambda content, folder: None) -> Path:
    """Three pictures with two whole squares each, objects 10 to 31; `plant` damages the file or the pictures."""
    (folder / "pictures").mkdir(parents=True)
    random = np.random.default_rng(0)
    content: Content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "box"}]}
    for number in (1, 2, 3):
        pixels = random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.jpg", quality=95)
        content["images"].append({"id": number, "file_name": f"{number}.jpg", "height": HEIGHT, "width": WIDTH})
        for place, left in enumerate((10, 65)):
            content["annotations"].append({"id": 10 * number + place, "image_id": number, **square(20, left)})
    plant(content, folder / "pictures")
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


def told(file: Path, *more: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    command = ["data", "check", str(file), "--format", "modal", "--images", str(file.parent / "pictures"), *more]
    status = main(command)
    return status, capsys.readouterr().out.splitlines()


def of(place: int, **changes: Any) -> Callable[[Content, Path], None]:
    """Changes of the annotation at a place; None takes the field away."""

    def plant(content: Content, folder: Path) -> None:
        record = content["annotations"][place] | changes
        content["annotations"][place] = {name: value for name, value in record.items() if value is not None}

    return plant


def add(list_name: str, **record: Any) -> Callable[[Content, Path], None]:
    return lambda content, folder: content[list_name].append(record)


def cut_short(content: Content, folder: Path) -> None:
    path = folder / "2.jpg"
    path.write_bytes(path.read_bytes()[:2000])


def no_end_mark(content: Content, folder: Path) -> None:
    """A flat picture whose last bytes are zeros: it decodes without an error."""
    path = folder / "2.jpg"
    slope = np.linspace(0, 255, HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3).astype(np.uint8)
    Image.fromarray(slope).save(path, quality=90)
    path.write_bytes(path.read_bytes()[:-2] + bytes(64))


def removed(content: Content, folder: Path) -> None:
    (folder / "2.jpg").unlink()


def image_2(**changes: Any) -> Callable[[Content, Path], None]:
    def plant(content: Content, folder: Path) -> None:
        record = content["images"][1] | changes
        content["images"][1] = {name: value for name, value in record.items() if value is not None}

    return plant


def without_annotations(content: Content, folder: Path) -> None:
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 2]


BOX = "its box stands for it"
HAS = "id, image_id, bbox, iscrowd, category_id"
# Defect -> how it is planted, its lines, and how many objects are whole and how many can be completed then.
PLANTED: dict[str, tuple[Callable[[Content, Path], None], list[str], tuple[int, int]]] = {
    "clean": (lambda content, folder: None, [], (6, 6)),
    "polygon of two points": (
        of(2, segmentation=[[20, 20, 40, 40]]),
        [
            f"ERROR image=2 object=20 polygon-points: a polygon has 2 points and needs 3; the whole object is left out; {BOX}; dropped"
        ],
        (5, 5),
    ),
    "one polygon of two": (
        of(2, segmentation=[[20, 20, 40, 40], [10, 20, 50, 20, 50, 60, 10, 60]]),
        [
            "ERROR image=2 object=20 polygon-points: polygon 1 of 2 has 2 points and needs 3; it alone is left out, the object is kept; "
            "repaired"
        ],
        (6, 6),
    ),
    "odd polygon without a box": (
        of(2, segmentation=[[1, 2, 3, 4, 5, 6, 7]], bbox=None),
        [
            "ERROR image=2 object=20 field: a polygon must have an even number of values x, y, ..., got 7; it has no box, so "
            "the whole picture counts as hidden by it; dropped"
        ],
        (4, 5),
    ),
    "polygon far away": (
        of(2, segmentation=[[0, 0, 9e4, 0, 9e4, 9e4]]),
        [
            f"WARNING image=2 object=20 outside: the polygon leaves the picture of {WIDTH}x{HEIGHT} by far; {BOX}; dropped",
        ],
        (5, 5),
    ),
    "polygon over the border": (
        of(2, segmentation=[[-9, 20, 50, 20, 50, 60, -9, 60]], bbox=[-9, 20, 59, 40]),
        [
            "WARNING image=2 object=20 outside: the polygon (x -9..50, y 20..60) leaves the picture of 120x96; it is cut at "
            "the border; repaired"
        ],
        (5, 6),
    ),
    "rle": (
        of(2, segmentation={"size": [5, 5], "counts": [25]}),
        [
            f"ERROR image=2 object=20 rle-size: the RLE is for 5x5 pixels, the picture has {WIDTH}x{HEIGHT}; {BOX}; dropped"
        ],
        (5, 5),
    ),
    "text": (
        of(2, segmentation="oops"),
        [f"ERROR image=2 object=20 field: a segmentation must be polygons or RLE, got str; {BOX}; dropped"],
        (5, 5),
    ),
    "no mask": (
        of(2, segmentation=None),
        [
            "ERROR image=2 object=20 field: the annotation has no field 'segmentation' (visible: mask of the part that is "
            f"seen); it has {HAS}; name the right one: --fields visible=NAME; {BOX}; dropped"
        ],
        (5, 5),
    ),
    "empty": (
        of(2, segmentation=[]),
        [f"WARNING image=2 object=20 mask-empty: the mask has no pixel in the picture; {BOX}; dropped"],
        (5, 5),
    ),
    "crowd": (
        of(2, iscrowd=1),
        [
            "WARNING image=2 object=20 crowd: a crowd region is not one object, and none beside it counts as whole; dropped"
        ],
        (5, 5),
    ),
    "odd box": (
        of(2, bbox=[1, 2, "x", 4]),
        [
            "ERROR image=2 object=20 field: bbox (box) must be x, y, width, height of a box with pixels, got [1, 2, 'x', 4]; "
            "it is left out; repaired"
        ],
        (6, 6),
    ),
    "box of shares": (
        of(2, bbox=[0.1, 0.2, 0.3, 0.4]),
        [
            "ERROR image=2 object=20 field: the mask (x 10..50, y 20..60) leaves its box (x 0.1..0.4, y 0.2..0.6); kept as "
            "it is"
        ],
        (6, 5),
    ),
    "unknown category": (
        of(2, category_id=7),
        [
            "WARNING image=2 object=20 category-unknown: the file lists no category 7; the object is named by the number; "
            "kept as it is"
        ],
        (6, 6),
    ),
    "unused category": (
        add("categories", id=2, name="cup"),
        ["WARNING image=- object=- category-unused: no annotation is of category 2 (cup); kept as it is"],
        (6, 6),
    ),
    "unknown image": (
        of(2, image_id=99),
        ["ERROR image=99 object=20 image-unknown: an annotation is of an image that the file does not list; dropped"],
        (5, 5),
    ),
    "no image": (
        of(2, image_id=None),
        [
            "ERROR image=- object=20 field: annotations[2] has no image_id, so no picture; it has id, segmentation, bbox, "
            "iscrowd, category_id; dropped"
        ],
        (5, 5),
    ),
    "object twice": (
        of(2, id=21),
        ["ERROR image=2 object=21 object-twice: another annotation has this id; kept as it is"],
        (6, 6),
    ),
    "copied object": (
        lambda content, folder: content["annotations"].append(content["annotations"][2]),
        ["ERROR image=2 object=20 object-twice: this annotation stands in the file twice; dropped"],
        (6, 6),
    ),
    "image twice": (
        add("images", id=2, file_name="1.jpg", height=HEIGHT, width=WIDTH),
        [
            "ERROR image=2 object=- image-twice: more than one image record has this id; the first counts, and has the "
            "annotations of all; dropped"
        ],
        (6, 6),
    ),
    "missing": (
        removed,
        ["ERROR image=2 object=- image-missing: there is no file {folder}/pictures/2.jpg; refused"],
        (4, 4),
    ),
    "truncated": (
        cut_short,
        [
            "ERROR image=2 object=- image-damaged: image {folder}/pictures/2.jpg cannot be decoded, it is damaged or cut off (*"
        ],
        (4, 4),
    ),
    "no end mark": (
        no_end_mark,
        ["ERROR image=2 object=- image-cut: 2.jpg has no end mark, its lower part may be missing; kept as it is"],
        (6, 6),
    ),
    "other size": (
        image_2(height=HEIGHT + 1),
        ["ERROR image=2 object=- image-size: the file says 120x97 (width x height), 2.jpg has 120x96; refused"],
        (4, 4),
    ),
    "no size": (
        image_2(height=None),
        [
            "ERROR image=2 object=- field: the image must have a height and a width in pixels, got None and 120; it has id, "
            "file_name, width; refused"
        ],
        (4, 4),
    ),
    "huge": (
        image_2(height=10**9),
        [
            "ERROR image=2 object=- image-size: the file claims a picture of 120x1000000000 pixels, which is too large; *"
        ],
        (4, 4),
    ),
    "no file name": (
        image_2(file_name=None, filename="2.jpg"),
        [
            "ERROR image=2 object=- field: the image has no field 'file_name' (file_name: file of the picture (a field of "
            "images)); it has id, height, width, filename; did you mean --fields file_name=filename?; refused"
        ],
        (4, 4),
    ),
    "unannotated": (
        without_annotations,
        [
            "WARNING image=2 object=- unannotated: no annotation is of this picture; nothing is taken from it; kept as it is"
        ],
        (4, 4),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_each_planted_defect_gives_its_line_and_is_gone_from_the_copy(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant, expected, (whole, completion) = PLANTED[name]
    file = modal_set(tmp_path / "data", plant)
    before = file.read_bytes()
    status, lines = told(file, "--repair", str(tmp_path / "copy"), capsys=capsys)
    assert len(lines) == len(expected) + 2
    for got, wanted in zip(lines, expected, strict=False):
        wanted = wanted.replace("{folder}", str(tmp_path / "data"))
        assert got == wanted or (wanted.endswith("*") and got.startswith(wanted[:-1]) and got.endswith("; refused"))
        assert got.split(": ")[0].split()[-1] in CODES
    errors = sum(text.startswith("ERROR") for text in expected)
    kept = 3 - any(line.endswith("; refused") or " image-cut: " in line for line in lines)
    assert status == (1 if errors else 0)
    assert lines[-2].startswith(f"modal whole={whole} completion={completion}; not whole: ")
    assert lines[-1].startswith("pictures=3 objects=")
    assert lines[-1].endswith(f" errors={errors} warnings={len(expected) - errors} repaired={kept}")

    assert file.read_bytes() == before
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"images", "instances.json"}
    assert main(["data", "check", str(tmp_path / "copy"), "--format", "modal"]) == 0
    again = capsys.readouterr().out.splitlines()
    if name == "no end mark":  # the picture was looked at and left out
        whole, completion = 4, 4
    if name == "box of shares":  # the box is that of the mask now
        completion = 6
    assert again[-2].startswith(f"modal whole={whole} completion={completion}; not whole: ")
    assert {line.split()[3] for line in again[:-2]} <= {"crowd:", "unannotated:"}


@pytest.mark.parametrize("name", PLANTED)
def test_the_checker_counts_what_the_readers_use(name: str, tmp_path: Path) -> None:
    """As many whole objects are cut out, and as many can be completed, as it says, but for damaged pictures, which are read later."""
    plant, _, (whole, completion) = PLANTED[name]
    file = modal_set(tmp_path / "data", plant)
    if name not in ("truncated", "other size"):
        assert cut_objects(file, tmp_path / "data" / "pictures", tmp_path / "cut") == whole
        scenes = PartialCompletion(file, tmp_path / "data" / "pictures")
        sizes = [scenes.rule.large(scenes.data.regions(one.picture), one.place) for one in scenes.objects]
        assert sum(sizes) == completion


def test_the_copy_of_a_clean_file_is_the_same_to_the_pixel(tmp_path: Path) -> None:
    data = ModalSet(modal_set(tmp_path), tmp_path / "pictures")
    assert write_modal(tmp_path / "copy", data) == 3
    for one, other in zip(data, ModalSet(tmp_path / "copy" / "instances.json"), strict=True):
        assert (one.image == other.image).all() and (one.amodal_masks == other.amodal_masks).all()
        assert one.names == other.names and one.id == other.id and one.order_matrix is None
        assert one.complete and one.known is None


def test_regions_that_are_no_object_are_unknown(tmp_path: Path) -> None:
    data = ModalSet(modal_set(tmp_path, of(2, iscrowd=1)), tmp_path / "pictures")
    scene = data[1]
    assert len(scene) == 1 and not scene.complete and scene.known is not None
    assert (~scene.known).sum() == SIDE * SIDE and not scene.known[20:60, 10:50].any()


# ---------------------------------------------------------------------- the report


def test_a_report_without_any_readable_picture_says_the_rule_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = modal_set(tmp_path / "data")
    for picture in (tmp_path / "data").rglob("*.jpg"):
        picture.unlink()
    status, lines = told(file, "--out", str(tmp_path / "report"), capsys=capsys)
    assert status == 1 and "modal whole=0 completion=0; not whole: none" in lines
    text = (tmp_path / "report" / "report.md").read_text()
    assert f"are cut out by `sas compose --from-modal`: {WholeRule()}. Objects" in text


def test_the_report_of_modal_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = modal_set(tmp_path / "data", of(0, **square(0, 10)))
    status, lines = told(file, "--out", str(tmp_path / "report"), capsys=capsys)
    assert status == 0 and lines == [
        "modal whole=5 completion=6; not whole: 1 at the border",
        "pictures=3 objects=6 errors=0 warnings=0",
    ]
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    assert found["modal"] == {
        "whole": 5,
        "completion": 6,
        "against": {"at the border": 1},
        "rule": str(WholeRule()),
    }
    assert found["objects"] == 6 and found["ordered"] == 0 and found["sizes"][0]["pictures"] == 3
    text = (tmp_path / "report" / "report.md").read_text()
    for words in ("| objects seen whole | 5 |", "| objects to complete | 6 |", "| at the border | 1 |", "120x96"):
        assert words in text
    for words in ("hidden share of the object", "order is unknown", "order is known", "Nearest layers"):
        assert words not in text
    with Image.open(tmp_path / "report" / "sheet.png") as sheet:
        colours = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 100


def test_a_rule_and_what_it_objects_to_are_told_in_words(tmp_path: Path) -> None:
    data = ModalSet(modal_set(tmp_path), tmp_path / "pictures")
    assert str(WholeRule(min_size=5, margin=1)).startswith(
        "5 pixels or more in both directions, none in the outermost 2"
    )
    uses = data.uses(0, rule=WholeRule(min_size=41))
    assert (uses.whole, uses.completion) == (0, 0) and str(uses).endswith("not whole: 2 too small")
    report = check(data, limit=1)
    assert report.modal is not None and str(report.modal) == "modal whole=2 completion=2; not whole: none"


def test_other_formats_have_no_such_line(tmp_path: Path) -> None:
    lines: list[str] = []
    file = modal_set(tmp_path)
    run_check(lambda: open_format(file, format="coco", images=tmp_path / "pictures"), write=lines.append)
    assert lines[-1] == "pictures=3 objects=6 errors=0 warnings=1"
    assert len(lines) == 2 and " order-none: " in lines[0]  # which is as it should be with modal masks


# ---------------------------------------------------------------------- files that are none, renamed fields


def renamed(content: Content, folder: Path) -> None:
    for record in content["annotations"]:
        record["inmodal_seg"] = record.pop("segmentation")
        record["picture"] = record.pop("image_id")


def test_renamed_fields_are_read_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = modal_set(tmp_path / "data", renamed)
    pictures, fields = tmp_path / "data" / "pictures", ("visible=inmodal_seg", "image_id=picture")
    status, lines = told(file, "--fields", *fields, capsys=capsys)
    assert status == 0 and lines[0].startswith("modal whole=6 completion=6")

    command = ["compose", "--from-modal", str(file), "--images", str(pictures), "--count", "2", "--size", "48"]
    assert main([*command, "--fields", *fields, "--out", str(tmp_path / "composed")]) == 0
    assert all(name.startswith("box__") for scene in open_scenes(tmp_path / "composed") for name in scene.names)

    data = tiny_config(
        data_scenes=str(file),
        data_format="modal",
        data_images=str(pictures),
        data_fields={"visible": "inmodal_seg", "image_id": "picture"},
    )
    assert check_data(data.data).startswith("6 scenes in")
    assert len(build_source(data).batch(0, range(4)).ids) == 4


def test_a_file_without_the_field_names_the_one_that_is_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = modal_set(tmp_path / "data", renamed)
    pictures = tmp_path / "data" / "pictures"
    status, lines = told(file, "--fields", "image_id=picture", capsys=capsys)
    words = (
        "no annotation has a field 'segmentation' (visible: mask of the part that is seen); it has id, bbox, iscrowd, "
        "category_id, inmodal_seg, picture; did you mean --fields visible=inmodal_seg?"
    )
    assert status == 2 and lines[0] == f"ERROR image=- object=- field: {words}; refused"
    with pytest.raises(
        InputError, match=r"did you mean --fields visible=inmodal_seg\? \(data.fields in a configuration"
    ):
        PartialCompletion(file, pictures, fields={"image_id": "picture"})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"modal": "m"}, "fields must map visible to the masks of a modal file, .* got 'modal'; write visible=m"),
        ({"amodal": "m"}, "got 'amodal'; write visible=m"),
        ({"rank": "r"}, "fields must map words of visible, box, category, .*, got 'rank'"),
        ({"visible": ""}, r"fields must name a field for visible \(mask of the part that is seen\), got none"),
    ],
)
def test_fields_that_mean_nothing_here(fields: dict[str, str], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        open_format(modal_set(tmp_path), format="modal", images=tmp_path / "pictures", fields=fields)


def test_a_field_that_no_annotation_has_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = told(modal_set(tmp_path), "--fields", "crowd=is_crowd", capsys=capsys)
    assert status == 1 and lines[0] == (
        "ERROR image=- object=- field: no annotation has a field 'is_crowd' (crowd: true for a region of many objects); it has "
        "id, image_id, segmentation, bbox, iscrowd, category_id; did you mean --fields crowd=iscrowd?; kept as it is"
    )


def test_files_that_cannot_be_read_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = modal_set(tmp_path)
    file.write_text(file.read_text()[:-9])
    status, lines = told(file, capsys=capsys)
    assert status == 2 and "instances.json are not valid JSON after its last byte" in lines[0]
    assert lines[1:] == ["pictures=0 objects=0 errors=1 warnings=0"]


def test_a_folder_stands_for_its_only_file(tmp_path: Path) -> None:
    modal_set(tmp_path)
    assert len(open_format(tmp_path, format="modal", images=tmp_path / "pictures")) == 6
    assert len(open_format(tmp_path, format="modal", images=tmp_path / "pictures", look=True)) == 3


def test_one_pixel_and_no_object_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def plant(content: Content, folder: Path) -> None:
        content["annotations"] = [{"id": 1, "image_id": 1, **square(50, 70, 1)}]

    file = modal_set(tmp_path, plant)
    status, lines = told(file, "--limit", "1", capsys=capsys)
    assert status == 0
    assert lines == [
        "modal whole=0 completion=0; not whole: 1 too small",
        "pictures=1 objects=1 errors=0 warnings=0",
    ]
    assert ModalSet(file, tmp_path / "pictures")[1].amodal_masks.shape == (0, HEIGHT, WIDTH)
    with pytest.raises(InputError, match="lower min_size .--min-size. from 32 to 1 or less"):
        cut_objects(file, tmp_path / "pictures", tmp_path / "cut")


# ---------------------------------------------------------------------- cures that work


@pytest.mark.parametrize(
    ("plant", "asked", "cure"),
    [
        (lambda c, f: [o.update(square(20, 10 + 50 * (o["id"] % 10), 20)) for o in c["annotations"]],
         "lower min_size (--min-size) from 32 to 20 or less", ("--min-size", "20")),
        (lambda c, f: [o.update(square(1, 10 + 55 * (o["id"] % 10))) for o in c["annotations"]],
         "lower border (--border) from 2", ("--border", "1")),
        (lambda c, f: [o.update(square(20, 10 + 42 * (o["id"] % 10))) for o in c["annotations"]],
         "lower margin (--margin) from 4", ("--margin", "1")),
        (lambda c, f: [o.update(segmentation=[[10, 20, 50, 20, 50, 60, 10, 60], [100, 80, 116, 80, 116, 93, 100, 93]],
                                bbox=[10, 20, 106, 73]) for o in c["annotations"]] and c["annotations"].__delitem__(np.s_[::2]),
         "lower share (--share) from 0.98", ("--share", "0.8")),
    ],
    ids=["size", "border", "margin", "pieces"],
)  # fmt: skip
def test_the_cure_that_is_named_works(
    plant: Any, asked: str, cure: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = modal_set(tmp_path / "data", plant)
    command = ["compose", "--from-modal", str(file), "--images", str(tmp_path / "data" / "pictures")]
    command += ["--count", "1", "--size", "32", "--out", str(tmp_path / "composed")]
    assert main(command) == 1
    assert f"; {asked}; look at it with `sas data check {file} --format modal`" in capsys.readouterr().err
    assert not (tmp_path / "composed").exists()
    assert main([*command, *cure]) == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ("--min-size", "0"),
            "min_size and border must be at least 1 and margin at least 0 pixels, got 0, 2, 4: raise",
        ),
        (("--share", "2"), "share must lie in (0, 1], got 2.0: pass 0.98"),
        (("--fields", "visible"), "--fields must be pairs such as amodal=segmentation, got 'visible'"),
    ],
)
def test_arguments_that_make_no_sense(
    more: tuple[str, str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compose", "--from-modal", "x.json", "--out", str(tmp_path / "out"), *more]) != 0
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("more", [("--margin", "3"), ("--fields", "visible=a"), ("--images", "a")])
def test_arguments_of_modal_masks_need_them(
    more: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compose", "--out", str(tmp_path / "out"), *more]) == 2
    assert f"{more[0]} has no effect without --from-modal; remove it" in capsys.readouterr().err


def test_the_least_size_of_objects_to_complete_is_a_setting(tmp_path: Path) -> None:
    def plant(content: Content, folder: Path) -> None:
        for one in content["annotations"]:
            one.update(square(20, 10 + 50 * (one["id"] % 10), 20))

    settings = {
        "data_scenes": str(modal_set(tmp_path, plant)),
        "data_images": str(tmp_path / "pictures"),
        "data_format": "modal",
    }
    with pytest.raises(
        InputError, match=r"two objects of 32 pixels or more, got 0 of 6; lower min_size \(data.min_size"
    ):
        check_data(tiny_config(**settings).data)
    assert check_data(tiny_config(**settings, data_min_size=20).data).startswith("6 scenes in")
    with pytest.raises(InputError, match="min_size has no effect with format coco, got 20; leave it out"):
        check_data(tiny_config(**{**settings, "data_format": "coco"}, data_min_size=20).data)
    with pytest.raises(ConfigError, match="min_size has no effect without scenes"):
        load_config(None, {"data.min_size": 20})
    with pytest.raises(ValueError, match="min_size must be at least 1 pixel, got 0: pass 32"):
        PartialCompletion(settings["data_scenes"], settings["data_images"], min_size=0)
