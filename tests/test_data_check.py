"""The data checker: each defect on its line, exit status, the report, and the cleaned copy."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sas.data.folders import ProjectFolder, SASFolders, write_project, write_sas_folders
from sas.data.formats.assemble import AnnotatedScenes
from sas.data.formats.coco import CocoScenes
from sas.data.formats.cocoa import CocoaScenes
from sas.data.formats.codes import CODES, GLOSSARY, codes_table
from sas.data.formats.mask_folder import MaskFolders
from sas.data.formats.raw import Defect, RawObject, RawScene
from sas.data.formats.report import Report, line
from sas.data_check import check, mend, run_check
from sas.io import InputError, rle_encode
from sas.pictures import write_mask
from sas.scene import Scene

HEIGHT, WIDTH = 24, 32


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


NEAR, FAR = box(4, 4, 12, 16), box(8, 10, 20, 28)


class Listed(AnnotatedScenes):
    """Scenes of records that are given as they are."""

    def __init__(self, *records: RawScene, of_file: tuple[Defect, ...] = ()) -> None:
        self.records, self.of_file = records, of_file

    def __len__(self) -> int:
        return len(self.records)

    def raw(self, index: int) -> tuple[RawScene, list[Defect]]:
        return self.records[index], []

    def file_defects(self) -> list[Defect]:
        return list(self.of_file)


def save_picture(path: Path, height: int = HEIGHT, width: int = WIDTH, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(image).save(path, **options)
    return path


def good(folder: Path, id: str = "p1") -> RawScene:
    """Two objects, a in front of b."""
    objects = (RawObject("a", "cup", rle_encode(NEAR)), RawObject("b", "box", rle_encode(FAR)))
    return RawScene(id, save_picture(folder / f"{id}.png"), objects, size=(HEIGHT, WIDTH), pairs=(("a", "b"),))


def lines_of(scenes: Any, **options: Any) -> tuple[int, list[str]]:
    told: list[str] = []
    return run_check(scenes, write=told.append, **options), told


def hashes(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# ---------------------------------------------------------------------- planted defects


def with_object(record: RawScene, id: str, amodal: Any, **more: Any) -> RawScene:
    return replace(record, objects=(*record.objects, RawObject(id, id, amodal, **more)))


def picture_missing(record: RawScene) -> RawScene:
    record.image.unlink()
    return record


def picture_truncated(record: RawScene) -> RawScene:
    path = save_picture(record.image.with_suffix(".jpg"), quality=95)
    path.write_bytes(path.read_bytes()[:-300])
    with Image.open(path) as picture:
        picture.verify()  # the cheap check of the decoder finds nothing
    return replace(record, image=path)


def picture_cut_off(record: RawScene) -> RawScene:
    """A flat picture whose last bytes are zeros, as a full disk leaves them: it decodes without an error."""
    path = record.image.with_suffix(".jpg")
    slope = np.linspace(0, 255, HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3).astype(np.uint8)
    Image.fromarray(slope).save(path, quality=90)
    path.write_bytes(path.read_bytes()[:-2] + bytes(2))
    return replace(record, image=path)


def picture_resized(record: RawScene) -> RawScene:
    save_picture(record.image, HEIGHT + 2, WIDTH)
    return record


def masks_jpeg(record: RawScene) -> RawScene:
    path = record.image.parent / "mask.jpg"
    disc = np.hypot(*np.mgrid[-12:12, -16:16]) < 5
    Image.fromarray(np.where(disc, 255, 0).astype(np.uint8)).save(path, quality=60)
    return replace(record, objects=(RawObject("m", "m", path),), pairs=())


def masks_of_ones(record: RawScene) -> RawScene:
    path = record.image.parent / "mask.png"
    Image.fromarray(NEAR.astype(np.uint8)).save(path)
    return replace(record, objects=(RawObject("m", "m", path),), pairs=())


def mask_file_gone(record: RawScene) -> RawScene:
    return with_object(record, "c", record.image.parent / "nothing.png")


def with_visible(record: RawScene, near: np.ndarray, far: np.ndarray) -> RawScene:
    a, b = record.objects
    return replace(record, objects=(replace(a, visible=rle_encode(near)), replace(b, visible=rle_encode(far))))


TINY_RLE = {"size": [5, 5], "counts": [0, 25]}
FAR_AWAY = [[100, 100, 120, 100, 120, 120]]

PLANTED: dict[str, tuple[Callable[[RawScene], RawScene], list[str]]] = {
    "clean": (lambda r: r, []),
    "missing": (
        picture_missing,
        ["ERROR image=p1 object=- image-missing: there is no file {folder}/p1.png; refused"],
    ),
    "truncated": (
        picture_truncated,
        ["ERROR image=p1 object=- image-damaged: image {folder}/p1.jpg cannot be decoded, it is damaged or cut off (*"],
    ),
    "cut off": (
        picture_cut_off,
        ["ERROR image=p1 object=- image-cut: p1.jpg has no end mark, its lower part may be missing; kept as it is"],
    ),
    "resized": (
        picture_resized,
        [
            "ERROR image=p1 object=- image-size: the file says 32x24 (width x height), p1.png has 32x26; refused",
        ],
    ),
    "polygon of two points": (
        lambda r: with_object(r, "c", [[1, 1, 5, 5]]),
        [
            "ERROR image=p1 object=c polygon-points: a polygon has 2 points and needs 3; the whole object is left out; dropped"
        ],
    ),
    "one polygon of two": (
        lambda r: with_object(r, "c", [[1, 1, 5, 5], [24, 1, 30, 1, 30, 6]]),
        [
            "ERROR image=p1 object=c polygon-points: polygon 1 of 2 has 2 points and needs 3; it alone is left out, the object is kept; "
            "repaired"
        ],
    ),
    "rle": (
        lambda r: with_object(r, "c", TINY_RLE),
        ["ERROR image=p1 object=c rle-size: the RLE is for 5x5 pixels, the picture has 32x24; dropped"],
    ),
    "rle runs": (
        lambda r: with_object(r, "c", {"size": [HEIGHT, WIDTH], "counts": [3, 4]}),
        ["ERROR image=p1 object=c rle-size: the runs of the RLE must add up to 768 pixels, got [3, 4]; dropped"],
    ),
    "array": (
        lambda r: with_object(r, "c", np.ones((5, 6), dtype=bool)),
        ["ERROR image=p1 object=c mask-size: the mask has 6x5 pixels, the picture 32x24; dropped"],
    ),
    "field": (
        lambda r: with_object(r, "c", "oops"),
        ["ERROR image=p1 object=c field: a segmentation must be polygons or RLE, got str; dropped"],
    ),
    "nan": (
        lambda r: with_object(r, "c", [[1, 1, 5, 5, float("nan"), 2]]),
        ["ERROR image=p1 object=c field: a polygon must hold finite numbers, got NaN or infinity; dropped"],
    ),
    "no mask file": (
        mask_file_gone,
        ["ERROR image=p1 object=c mask-missing: there is no mask file nothing.png; dropped"],
    ),
    "object twice": (
        lambda r: with_object(with_object(r, "c", rle_encode(box(0, 24, 3, 30))), "c", rle_encode(box(20, 0, 24, 4))),
        ["ERROR image=p1 object=c object-twice: 2 objects have this id; kept as it is"],
    ),
    "empty": (
        lambda r: with_object(r, "c", rle_encode(box(0, 0, 0, 0))),
        ["WARNING image=p1 object=c mask-empty: the amodal mask has no pixel in the picture; dropped"],
    ),
    "outside": (
        lambda r: with_object(r, "c", FAR_AWAY),
        [
            "WARNING image=p1 object=c outside: the polygon (x 100..120, y 100..120) leaves the picture of 32x24; "
            "it is cut at the border; repaired",
            "WARNING image=p1 object=c mask-empty: the amodal mask has no pixel in the picture; dropped",
        ],
    ),
    "hidden": (
        lambda r: replace(with_object(r, "c", rle_encode(box(6, 6, 9, 9))), pairs=(("a", "b"), ("a", "c"))),
        ["WARNING image=p1 object=c invisible: no pixel of the object is visible behind those in front; dropped"],
    ),
    "hidden by its mask": (
        lambda r: with_visible(r, NEAR, box(0, 0, 0, 0)),
        ["WARNING image=p1 object=b invisible: no pixel of the object is visible; dropped"],
    ),
    "visible outside": (
        lambda r: with_visible(r, NEAR | box(0, 4, 4, 16), FAR & ~NEAR),
        [
            "WARNING image=p1 object=a visible-outside: 33.3% of the visible mask lies outside the amodal mask, "
            "which is widened; repaired"
        ],
    ),
    "some visible": (
        lambda r: replace(r, objects=(replace(r.objects[0], visible=rle_encode(NEAR)), r.objects[1])),
        [
            "WARNING image=p1 object=- visible-some: only 1 of 2 objects have a visible mask; they are used for the order alone; dropped"
        ],
    ),
    "stuff": (
        lambda r: replace(
            with_object(r, "sky", rle_encode(box(0, 0, HEIGHT, WIDTH)), stuff=True),
            pairs=(("a", "b"), ("a", "sky"), ("b", "sky")),
        ),
        ["WARNING image=p1 object=sky covers-all: a region of stuff covers 100% of the picture; kept as it is"],
    ),
    "crowd": (
        lambda r: with_object(r, "c", rle_encode(box(0, 24, 3, 30)), crowd=True),
        ["WARNING image=p1 object=c crowd: a crowd region is not one object; dropped"],
    ),
    "jpeg mask": (
        masks_jpeg,
        [
            "WARNING image=p1 object=m mask-grey: mask.jpg holds values between 0 and 255, as JPEG makes them; "
            "cut at 127; repaired"
        ],
    ),
    "mask of ones": (
        masks_of_ones,
        [
            "WARNING image=p1 object=m mask-range: mask.png holds values of 127 at most; everything above 0 is taken as "
            "inside; repaired"
        ],
    ),
    "cycle": (
        lambda r: replace(r, pairs=(("a", "b"), ("b", "a"))),
        [
            "WARNING image=p1 object=- order-cycle: the order runs in a circle; for the layers it is cut at a in front of b; "
            "repaired"
        ],
    ),
    "conflict": (
        lambda r: with_visible(r, NEAR & ~FAR, FAR),
        [
            "WARNING image=p1 object=a order-conflict: a is taken to be in front of b, but the visible masks say the "
            "opposite; kept as it is"
        ],
    ),
    "unknown": (
        lambda r: replace(r, pairs=()),
        ["WARNING image=p1 object=a order-unknown: nothing says which of a and b is in front; kept as it is"],
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_each_planted_defect_gives_its_line_and_is_gone_from_the_copy(name: str, tmp_path: Path) -> None:
    plant, expected = PLANTED[name]
    folder = tmp_path / "data"
    scenes = Listed(plant(good(folder)), good(folder, "p2"))
    before = hashes(folder)
    status, told = lines_of(scenes, repair=tmp_path / "copy")
    assert hashes(folder) == before
    assert len(told) == len(expected) + 1
    for got, wanted in zip(told, expected, strict=False):
        wanted = wanted.format(folder=folder)
        assert got == wanted or (wanted.endswith("*") and got.startswith(wanted[:-1]) and got.endswith("; refused"))
    errors = sum(text.startswith("ERROR") for text in expected)
    assert status == (1 if errors else 0)
    kept = 1 if any(code in text for text in expected for code in (" image-", "refused")) else 2
    assert told[-1].startswith("pictures=2 objects=")
    assert told[-1].endswith(f" errors={errors} warnings={len(expected) - errors} repaired={kept}")
    copy = ProjectFolder(tmp_path / "copy")
    assert len(copy) == kept
    left = [line.split()[3] for line in lines_of(copy)[1][:-1]]
    assert lines_of(copy)[0] == 0 and left == (["order-unknown:"] if name == "unknown" else [])  # a copy knows no more


def test_the_end_of_a_jpeg_is_looked_for_behind_its_head(tmp_path: Path) -> None:
    """A thumbnail or comment in the head may hold the end mark, and markers may be filled up; a picture may have a tail behind its end."""
    comment = b"\xff\xfe\x00\x04\xff\xd9"
    for filler in (b"", b"\xff\xff\xff"):
        record = good(tmp_path)
        path = save_picture(tmp_path / "p1.jpg", quality=90)
        whole = path.read_bytes()
        path.write_bytes(whole[:2] + filler + comment + whole[2:] + b"a tail")
        assert check(Listed(replace(record, image=path))).defects == []
        cut = picture_cut_off(record).image.read_bytes()
        path.write_bytes(cut[:2] + filler + comment + cut[2:])
        assert [one.code for one in check(Listed(replace(record, image=path))).defects] == ["image-cut"]


def test_a_clean_set_says_nothing_but_its_counts(tmp_path: Path) -> None:
    scenes = Listed(good(tmp_path), replace(good(tmp_path, "p2"), objects=(), pairs=()))
    assert lines_of(scenes) == (0, ["pictures=2 objects=2 errors=0 warnings=0"])


def test_numbers_of_the_report(tmp_path: Path) -> None:
    seen = with_visible(good(tmp_path), NEAR, FAR & ~NEAR)
    unordered = replace(good(tmp_path, "p2"), pairs=(), ordered=False)
    steps: list[tuple[int, int]] = []
    report = check(
        Listed(seen, unordered, picture_missing(good(tmp_path, "p3"))), on_progress=lambda *at: steps.append(at)
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert (report.pictures, report.readable, report.objects, report.visible, report.ordered) == (3, 2, 4, 2, 2)
    assert report.sizes == {(HEIGHT, WIDTH): 2} and report.layers == {2: 1} and report.depths == {0: 1, 1: 1}
    assert (NEAR & FAR).sum() / FAR.sum() == pytest.approx(24 / 216)  # more than 10 and at most 20 percent
    assert report.rates == [1, 0, 1] + [0] * 8
    assert report.status == 1 and report.errors == 1


@pytest.mark.parametrize(("hidden", "bin"), [(0, 0), (1, 1), (3, 3), (4, 4), (9, 9), (10, 10)])
def test_occlusion_rates_fall_in_their_tenth(hidden: int, bin: int) -> None:
    """One object of 10 x 2 pixels, `hidden` tenths of it unseen; one that is not seen at all is left out before."""
    full = box(0, 0, 2, 10)
    scene = scene_of(full[None], visible_masks=(full & ~box(0, 0, 2, hidden))[None])
    report = Report()
    report.add(scene)
    assert report.rates[bin] == 1 and sum(report.rates) == 1


def test_lines_are_told_as_they_are_found_and_stay_lines(tmp_path: Path) -> None:
    record = with_object(good(tmp_path), "new\nline", [[1, 1, 5, 5]])
    told: list[str] = []
    at: list[int] = []
    check(
        Listed(record, good(tmp_path, "p2")),
        on_defect=lambda d: told.append(line(d)),
        on_progress=lambda *_: at.append(len(told)),
    )
    assert at == [1, 1]
    assert told == [
        "ERROR image=p1 object=new line polygon-points: a polygon has 2 points and needs 3; the whole object is left out; dropped"
    ]


def test_limit_looks_at_the_first_pictures(tmp_path: Path) -> None:
    scenes = Listed(good(tmp_path), picture_missing(good(tmp_path, "p2")))
    assert lines_of(scenes, limit=1) == (0, ["pictures=1 objects=2 errors=0 warnings=0"])
    assert lines_of(scenes, limit=9)[0] == 1
    for call in (check, run_check):
        with pytest.raises(InputError, match=r"limit must be at least 1, got 0; leave it out"):
            call(scenes, limit=0)


# ---------------------------------------------------------------------- ids, files, hostile readers


def test_pictures_with_one_id_are_told_once_and_both_stay_in_the_copy(tmp_path: Path) -> None:
    first, second = good(tmp_path / "data"), replace(good(tmp_path / "data", "p2"), id="p1")
    scenes = Listed(first, second)
    status, told = lines_of(scenes, repair=tmp_path / "copy")
    assert status == 1
    assert told[:-1] == ["ERROR image=p1 object=- image-twice: an earlier picture has the same id; kept as it is"]
    assert [scene.id for scene in ProjectFolder(tmp_path / "copy")] == ["p1", "p1-2"]
    told_by_file = Defect("error", "image-twice", "two pictures have this name", "keep", image="p1")
    assert check(Listed(first, second, of_file=(told_by_file,))).defects == [told_by_file]


def test_ids_that_are_no_file_names_are_renamed_in_the_copy(tmp_path: Path) -> None:
    records = [replace(good(tmp_path / "data", f"p{k}"), id=id) for k, id in enumerate(("a/b", "a_b", "../x", "..."))]
    assert lines_of(Listed(*records), repair=tmp_path / "copy")[0] == 0
    assert [scene.id for scene in ProjectFolder(tmp_path / "copy")] == ["a_b", "a_b-2", "_x", "scene"]


def test_defects_of_the_file_come_first(tmp_path: Path) -> None:
    unused = Defect("warning", "category-unused", "no annotation is of category 3", "keep")
    status, told = lines_of(Listed(good(tmp_path), of_file=(unused,)))
    assert status == 0 and told[0] == str(unused)


class Broken(Listed):
    """A reader that fails on its second record, and on the file if told to."""

    fails_on_file = False

    def raw(self, index: int) -> tuple[RawScene, list[Defect]]:
        if index == 1:
            raise KeyError("segmentation")
        return super().raw(index)

    def file_defects(self) -> list[Defect]:
        if self.fails_on_file:
            raise InputError("annotations x.json are damaged at byte 7; get the file again")
        return []


def test_one_record_that_breaks_its_reader_does_not_end_the_check(tmp_path: Path) -> None:
    status, told = lines_of(Broken(good(tmp_path), good(tmp_path, "p2"), good(tmp_path, "p3")))
    assert status == 1
    assert told == [
        "ERROR image=#2 object=- unreadable: KeyError: 'segmentation'; refused",
        "pictures=3 objects=4 errors=1 warnings=0",
    ]


def test_a_set_that_cannot_be_read_at_all_has_status_2(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    status, told = lines_of(
        lambda: MaskFolders(nowhere), data=nowhere, out=tmp_path / "report", repair=tmp_path / "copy"
    )
    assert status == 2 and len(told) == 2 and told[1] == "pictures=0 objects=0 errors=1 warnings=0"
    assert told[0] == (
        f"ERROR image=- object=- unreadable: masks {nowhere} must be a folder, found nothing; name the folder of the scenes; "
        "refused"
    )
    broken = Broken(good(tmp_path / "data"))
    broken.fails_on_file = True
    status, told = lines_of(broken, repair=tmp_path / "copy")
    assert status == 2 and "annotations x.json are damaged at byte 7" in told[0]
    assert not (tmp_path / "copy").exists()
    assert json.loads((tmp_path / "report" / "report.json").read_text())["errors"] == 1


# ---------------------------------------------------------------------- the files of COCOA and KINS


def ring(top: int, left: int, bottom: int, right: int) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def kins(folder: Path) -> dict[str, Any]:
    """Two pictures of KINS 2020, the first with a car in front of a van."""
    images = [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (1, 2)]
    for i in (1, 2):
        save_picture(folder / f"{i}.png")
    annotations = [
        kins_object(10, 1, rle_encode(NEAR), rle_encode(NEAR), group=1, rank=1),
        kins_object(11, 1, rle_encode(FAR), rle_encode(FAR & ~NEAR), group=1, rank=2),
        kins_object(12, 2, [ring(2, 2, 9, 9)], [ring(2, 2, 9, 9)], category=7),
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 4, "name": "car"}, {"id": 7, "name": "van"}],
    }


def kins_object(
    id: int, image: int, amodal: Any, visible: Any, *, group: int = 0, rank: int = 0, category: int = 4
) -> dict[str, Any]:
    return {
        "id": id,
        "image_id": image,
        "category_id": category,
        "a_segm": amodal,
        "i_segm": visible,
        "oco_id": group,
        "ico_id": rank,
        "iscrowd": 0,
    }


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-600])


def swap_ranks(data: dict[str, Any], folder: Path) -> None:
    first, second, _ = data["annotations"]
    first["ico_id"], second["ico_id"] = 2, 1


CONFLICT = "11 is taken to be in front of 10, but the visible masks say the opposite"
KINS_PLANTED: dict[str, tuple[Callable[[dict[str, Any], Path], Any], list[str]]] = {
    "clean": (lambda data, folder: None, []),
    "missing": (
        lambda data, folder: (folder / "1.png").unlink(),
        ["ERROR image=1 object=- image-missing: there is no file {folder}/1.png; refused"],
    ),
    "truncated": (
        lambda data, folder: cut(folder / "1.png"),
        ["ERROR image=1 object=- image-damaged: image {folder}/1.png cannot be decoded, it is damaged or cut off (*"],
    ),
    "size": (
        lambda data, folder: data["images"][0].update(width=WIDTH + 1),
        ["ERROR image=1 object=- image-size: the file says 33x24 (width x height), 1.png has 32x24; refused"],
    ),
    "image twice": (
        lambda data, folder: data["images"].append({**data["images"][0], "file_name": "2.png"}),
        [
            "ERROR image=1 object=- image-twice: more than one image record has this id; the first counts, and has the "
            "annotations of all; dropped"
        ],
    ),
    "annotation twice": (
        lambda data, folder: data["annotations"].append(data["annotations"][0]),
        ["ERROR image=1 object=10 object-twice: this annotation stands in the file twice; dropped"],
    ),
    "id twice": (
        lambda data, folder: data["annotations"].append(kins_object(10, 1, [ring(0, 24, 3, 30)], [ring(0, 24, 3, 30)])),
        ["ERROR image=1 object=10 object-twice: another annotation has this id; kept as it is"],
    ),
    "no such image": (
        lambda data, folder: data["annotations"].append(kins_object(13, 9, [ring(0, 24, 3, 30)], [ring(0, 24, 3, 30)])),
        ["ERROR image=9 object=13 image-unknown: an annotation is of an image that the file does not list; dropped"],
    ),
    "unused category": (
        lambda data, folder: data["categories"].append({"id": 3, "name": "rider"}),
        ["WARNING image=- object=- category-unused: no annotation is of category 3 (rider); kept as it is"],
    ),
    "two points": (
        lambda data, folder: data["annotations"].append(kins_object(13, 1, [[1, 1, 4, 4]], [[1, 1, 4, 4]])),
        [
            "ERROR image=1 object=13 polygon-points: a polygon has 2 points and needs 3; the whole object is left out; dropped"
        ],
    ),
    "rle size": (
        lambda data, folder: data["annotations"].append(kins_object(13, 1, TINY_RLE, TINY_RLE)),
        ["ERROR image=1 object=13 rle-size: the RLE is for 5x5 pixels, the picture has 32x24; dropped"],
    ),
    "no field": (
        lambda data, folder: data["annotations"].append({"id": 13, "image_id": 1, "category_id": 4}),
        ["ERROR image=1 object=13 field: the annotation has no field 'a_segm' (amodal); *"],
    ),
    "unseen": (
        lambda data, folder: data["annotations"].append(kins_object(13, 1, [ring(0, 24, 3, 30)], [])),
        ["WARNING image=1 object=13 invisible: no pixel of the object is visible; dropped"],
    ),
    "conflict": (swap_ranks, [f"WARNING image=1 object=11 order-conflict: {CONFLICT}; kept as it is"]),
}


@pytest.mark.parametrize("name", KINS_PLANTED)
def test_each_defect_planted_in_a_file_of_kins_gives_its_line(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    plant, expected = KINS_PLANTED[name]
    data = kins(folder)
    plant(data, folder)
    file = folder / "update_train_2020.json"
    file.write_text(json.dumps(data))
    before = hashes(folder)
    told = checked_file(lambda: CocoScenes(file, preset="kins2020"), expected, tmp_path)
    assert {name: digest for name, digest in hashes(folder).items() if name in before} == before
    assert told[-1].startswith("pictures=2 objects=")


def checked_file(open: Callable[[], Any], expected: list[str], tmp_path: Path) -> list[str]:
    """Compares lines and status with what is expected, and the cleaned copy with a clean set."""
    status, told = lines_of(open, repair=tmp_path / "copy")
    assert len(told) == len(expected) + 1, told
    for got, wanted in zip(told, expected, strict=False):
        wanted = wanted.format(folder=tmp_path / "data")
        assert got == wanted or (wanted.endswith("*") and got.startswith(wanted[:-1]))
    errors = sum(text.startswith("ERROR") for text in expected)
    assert status == (1 if errors else 0) and f" errors={errors} warnings={len(expected) - errors} " in told[-1]
    assert (
        lines_of(ProjectFolder(tmp_path / "copy"))[0] == 0 and len(lines_of(ProjectFolder(tmp_path / "copy"))[1]) == 1
    )
    return told


def cocoa(folder: Path) -> dict[str, Any]:
    """A photograph of COCOA: region 1 before region 2."""
    save_picture(folder / "1.jpg", quality=90)
    hidden = {"visible_mask": rle_encode(FAR & ~NEAR), "invisible_mask": rle_encode(FAR & NEAR)}
    regions = [
        {"order": 1, "name": "cup", "segmentation": rle_encode(NEAR), "isStuff": 0},
        {"order": 2, "name": "box", "segmentation": rle_encode(FAR), "isStuff": 0, **hidden},
    ]
    return {"author": "me", "depth_constraint": "1-2", "regions": regions}


def region(data: dict[str, Any], order: int, segmentation: Any, **more: Any) -> None:
    data["regions"].append({"order": order, "name": "new", "segmentation": segmentation, "isStuff": 0, **more})


def sky(data: dict[str, Any], folder: Path) -> None:
    region(data, 3, ring(0, 0, HEIGHT, WIDTH), isStuff=1, visible_mask=rle_encode(~(NEAR | FAR)))
    data["depth_constraint"] = "1-2,1-3,2-3"


COCOA_PLANTED: dict[str, tuple[Callable[[dict[str, Any], Path], Any], list[str]]] = {
    "clean": (lambda data, folder: None, []),
    "cycle": (
        lambda data, folder: data.update(depth_constraint="1-2,2-1"),
        [
            "WARNING image=1 object=- order-cycle: the order runs in a circle; for the layers it is cut at 2 in front of 1; "
            "repaired"
        ],
    ),
    "no such region": (
        lambda data, folder: data.update(depth_constraint="1-2,1-9"),
        [
            "WARNING image=1 object=9 order-object: depth_constraint says 1-9, but no region has the order 9; the pair is "
            "left out; kept as it is"
        ],
    ),
    "stuff": (
        sky,
        ["WARNING image=1 object=3 covers-all: a region of stuff covers 100% of the picture; kept as it is"],
    ),
    "empty": (
        lambda data, folder: region(data, 3, rle_encode(box(0, 0, 0, 0))),
        ["WARNING image=1 object=3 mask-empty: the amodal mask has no pixel in the picture; dropped"],
    ),
    "two points": (
        lambda data, folder: region(data, 3, [1, 1, 4, 4]),
        [
            "ERROR image=1 object=3 polygon-points: a polygon has 2 points and needs 3; the whole object is left out; dropped"
        ],
    ),
    "order twice": (
        lambda data, folder: region(data, 2, rle_encode(box(0, 24, 3, 30))),
        [
            "ERROR image=1 object=2 (2) object-twice: another region of the picture has the order 2; depth_constraint means "
            "the first; kept as it is"
        ],
    ),
    "cut off": (
        lambda data, folder: picture_cut_off(RawScene("1", folder / "1.jpg", ())),
        ["ERROR image=1 object=- image-cut: 1.jpg has no end mark, its lower part may be missing; kept as it is"],
    ),
}


@pytest.mark.parametrize("name", COCOA_PLANTED)
def test_each_defect_planted_in_a_file_of_cocoa_gives_its_line(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    plant, expected = COCOA_PLANTED[name]
    data, other = cocoa(folder), cocoa(folder)
    plant(data, folder)
    (folder / "1.json").write_text(json.dumps(data))
    (folder / "2.json").write_text(json.dumps(other))
    save_picture(folder / "2.jpg", quality=90)
    before = hashes(folder)
    checked_file(lambda: CocoaScenes(folder), expected, tmp_path)
    assert hashes(folder) == before


def test_a_file_of_a_folder_that_is_no_json_has_its_code(tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text(json.dumps(cocoa(tmp_path)))
    (tmp_path / "2.json").write_text("{")
    status, told = lines_of(lambda: CocoaScenes(tmp_path))
    assert status == 1 and len(told) == 2 and " json: " in told[0] and "2.json" in told[0]


def test_a_mapping_that_no_annotation_has_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(kins(tmp_path)))
    status, told = lines_of(lambda: CocoScenes(tmp_path / "a.json"))
    assert status == 2 and len(told) == 2
    assert told[0].startswith("ERROR image=- object=- field: no annotation has ") and "'segmentation'" in told[0]
    assert told[1] == "pictures=0 objects=0 errors=1 warnings=0"
    with pytest.raises(InputError, match=r"field: no annotation has"):
        check(CocoScenes(tmp_path / "a.json"))


# ---------------------------------------------------------------------- project format and SAS folders


def scene_of(masks: np.ndarray, *edges: tuple[int, int], **more: Any) -> Scene:
    order = np.zeros((len(masks), len(masks)), dtype=bool)
    for front, behind in edges:
        order[front, behind] = True
    image = np.zeros((*masks.shape[1:], 3), dtype=np.uint8)
    return Scene(**{"image": image, "amodal_masks": masks, "order_matrix": order, "id": "s", **more})


def project(folder: Path, *scenes: Scene) -> ProjectFolder:
    write_project(folder, scenes, min_overlap=0.01)
    return ProjectFolder(folder)


def edit_entry(folder: Path, change: Callable[[dict[str, Any]], None]) -> ProjectFolder:
    """The project with its first line changed, and the digest put right."""
    first, *rest = (folder / "scenes.jsonl").read_text().splitlines()
    entry = json.loads(first)
    change(entry)
    return rewrite(folder, [json.dumps(entry), *rest])


def rewrite(folder: Path, lines: list[str]) -> ProjectFolder:
    text = "".join(one + "\n" for one in lines)
    (folder / "scenes.jsonl").write_text(text)
    info = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**info, "sha256": hashlib.sha256(text.encode()).hexdigest()}))
    return ProjectFolder(folder)


def test_scenes_of_a_project_are_looked_at_too(tmp_path: Path) -> None:
    masks = np.stack([NEAR, FAR, box(0, 0, 0, 0), box(6, 6, 9, 9)])
    scenes = project(tmp_path / "set", scene_of(masks, (0, 1), (1, 0), (0, 3)))
    status, told = lines_of(scenes, repair=tmp_path / "copy")
    assert status == 0
    assert told == [
        "WARNING image=s object=2 mask-empty: the amodal mask has no pixel in the picture; dropped",
        "WARNING image=s object=3 invisible: no pixel of the object is visible; dropped",
        "WARNING image=s object=- order-cycle: the order runs in a circle; for the layers it is cut at 0 in front of 1; repaired",
        "pictures=1 objects=2 errors=0 warnings=3 repaired=1",
    ]
    copy = ProjectFolder(tmp_path / "copy")
    assert lines_of(copy) == (0, ["pictures=1 objects=2 errors=0 warnings=0"])
    assert (
        copy[0].dropped == 2
        and copy[0].order_matrix is not None
        and copy[0].order_matrix.tolist() == [[False, False], [True, False]]
    )


def test_a_visible_mask_beyond_the_object_widens_it(tmp_path: Path) -> None:
    seen = np.stack([NEAR | box(0, 4, 4, 16)])
    scenes = project(tmp_path / "set", scene_of(np.stack([NEAR]), visible_masks=seen))
    status, told = lines_of(scenes, repair=tmp_path / "copy")
    assert told[0] == (
        "WARNING image=s object=0 visible-outside: 33.3% of the visible mask lies outside the amodal mask; kept as it is"
    )
    assert status == 0 and len(lines_of(ProjectFolder(tmp_path / "copy"))[1]) == 1
    assert np.array_equal(ProjectFolder(tmp_path / "copy")[0].amodal_masks, seen)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (
            lambda e: e["objects"][1].update(segmentation={"size": [5, 5], "counts": "0"}),
            "object=1 rle-size: the RLE is for 5x5",
        ),
        (
            lambda e: e.update(width=31),
            "object=- image-size: the file says 31x24 (width x height), s.png has 32x24; refused",
        ),
        (lambda e: e.update(file="images/no.png"), "object=- image-missing: there is no file"),
        (lambda e: e.pop("objects"), "object=- field: a field is missing or odd (KeyError: 'objects'); refused"),
        (
            lambda e: e.update(order=[[0, 7]]),
            "object=- unreadable: ValueError: order must hold pairs of two different objects",
        ),
    ],
)
def test_an_entry_of_a_project_that_cannot_be_read_has_the_fitting_code(
    change: Callable[[dict[str, Any]], None], wanted: str, tmp_path: Path
) -> None:
    project(tmp_path, scene_of(np.stack([NEAR, FAR]), (0, 1)), scene_of(np.stack([NEAR]), id="t"))
    status, told = lines_of(edit_entry(tmp_path, change))
    assert status == 1 and told[0].startswith(f"ERROR image=s {wanted}") and told[0].endswith("; refused")
    assert told[1] == "pictures=2 objects=1 errors=1 warnings=0"


def test_a_line_that_is_no_json_and_a_damaged_picture(tmp_path: Path) -> None:
    project(tmp_path, scene_of(np.stack([NEAR])), scene_of(np.stack([NEAR]), id="t"))
    lines = (tmp_path / "scenes.jsonl").read_text().splitlines()
    (tmp_path / "images" / "t.png").write_bytes(b"")
    told = lines_of(rewrite(tmp_path, [lines[0][:20], lines[1]]))[1]
    assert told[0].startswith("ERROR image=#1 object=- json: line 1 of scenes.jsonl is no valid JSON (")
    assert told[1].startswith("ERROR image=t object=- image-damaged: image ") and "is empty (0 bytes)" in told[1]


def test_sas_folders(tmp_path: Path) -> None:
    write_sas_folders(tmp_path, [scene_of(np.stack([NEAR, FAR]), (0, 1)), scene_of(np.stack([NEAR]), id="t")])
    assert lines_of(SASFolders(tmp_path)) == (0, ["pictures=2 objects=3 errors=0 warnings=0"])
    write_mask(tmp_path / "s_1" / "mask.png", np.ones((5, 6), dtype=bool))
    (tmp_path / "t_0" / "mask.png").write_bytes(b"no picture")
    status, told = lines_of(SASFolders(tmp_path))
    assert status == 1
    assert told[0] == "ERROR image=s object=s_1 mask-size: mask.png has 6x5 pixels, the picture 32x24; refused"
    assert told[1].startswith("ERROR image=t object=t_0 mask-damaged: ")


# ---------------------------------------------------------------------- mending


def test_mending_a_clean_scene_changes_nothing() -> None:
    for scene in (scene_of(np.stack([NEAR, FAR]), (0, 1)), scene_of(np.zeros((0, HEIGHT, WIDTH), dtype=bool))):
        assert mend(scene) is scene


def test_mending_keeps_what_belongs_to_an_object_together() -> None:
    masks = np.stack([box(0, 0, 0, 0), NEAR, FAR])
    known, other = box(0, 0, 20, 32), np.stack([NEAR, NEAR, FAR])
    scene = scene_of(masks, (1, 2), names=("x", "y", "z"), alternatives=(other,), known=known, complete=False)
    mended = mend(scene)
    assert mended.names == ("y", "z") and mended.dropped == 1 and mended.order_matrix is not None
    assert mended.order_matrix.tolist() == [[False, True], [False, False]]
    assert np.array_equal(mended.alternatives[0], other[1:])
    assert not mended.complete and mended.known is known


def test_mending_a_circle_hides_nothing_more() -> None:
    inside, around = box(5, 5, 10, 10), box(2, 2, 20, 20)
    scene = scene_of(np.stack([around, inside]))
    scene = replace(scene, order_matrix=np.array([[False, True], [True, False]]))
    mended = mend(scene)
    assert mended.order_matrix is not None and mended.order_matrix.sum() == 1
    assert len(mended) == 2 and np.array_equal(mended.visible, scene.visible)
    assert len(mended.drop_invisible()) == len(scene.drop_invisible()) == 2


def test_the_copy_keeps_what_is_known_and_whether_it_is_complete(tmp_path: Path) -> None:
    record = with_object(good(tmp_path / "data"), "c", TINY_RLE)
    lines_of(Listed(record, good(tmp_path / "data", "p2")), repair=tmp_path / "copy")
    assert [scene.complete for scene in ProjectFolder(tmp_path / "copy")] == [False, True]
    partial = scene_of(np.stack([NEAR]), known=box(0, 0, 20, 32), complete=False)
    lines_of([partial], repair=tmp_path / "second")
    again = ProjectFolder(tmp_path / "second")[0]
    assert not again.complete and again.known is not None and np.array_equal(again.known, box(0, 0, 20, 32))


def test_the_copy_keeps_min_overlap_also_where_scenes_differ(tmp_path: Path) -> None:
    loose = scene_of(np.stack([NEAR]), min_overlap=0.2)
    assert lines_of([loose, scene_of(np.stack([NEAR]), id="t")], repair=tmp_path / "copy")[0] == 0
    assert [scene.min_overlap for scene in ProjectFolder(tmp_path / "copy")] == [0.2, 0.01]


def test_what_cannot_be_written_is_told_before_the_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []

    class Watched(Listed):
        def raw(self, index: int) -> tuple[RawScene, list[Defect]]:
            looked.append(index)
            return super().raw(index)

    (tmp_path / "file").write_text("")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    scenes = Watched(good(tmp_path / "data"))
    for target in (".", here, tmp_path / "file" / "report"):
        with pytest.raises(InputError, match="cannot write "):
            lines_of(scenes, out=target)
    assert not looked and not any(here.iterdir())
    with pytest.raises(InputError, match="no picture is left to copy"):
        lines_of(Listed(picture_missing(good(tmp_path / "none"))), repair=tmp_path / "deep" / "a" / "copy")
    assert not (tmp_path / "deep").exists()
    for target in (".", tmp_path / "file" / "copy"):
        with pytest.raises(InputError, match="cannot write "):
            lines_of(scenes, repair=target)
    assert set(looked) <= {0}  # the first tells where the pictures are


def test_a_report_names_files_whose_names_are_no_text(tmp_path: Path) -> None:
    record = replace(good(tmp_path / "data"), id="donn\udce9es")
    record.image.unlink()
    assert lines_of(Listed(record), out=tmp_path / "report", data="donn\udce9es")[0] == 1
    assert "donn?es" in (tmp_path / "report" / "report.md").read_text()


def test_two_records_of_one_picture_are_told(tmp_path: Path) -> None:
    """As where pictures of several cameras have the same names, and the folder of one of them was named."""
    record = good(tmp_path / "data")
    status, told = lines_of(Listed(record, replace(record, id="p2"), good(tmp_path / "data", "p3")))
    assert status == 1 and len(told) == 2
    assert (
        told[0].startswith("ERROR image=p2 object=- image-twice: it is read from ")
        and ", as p1 is; if names" in told[0]
    )


def test_records_without_a_picture_are_no_two_of_one(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    images = [{"id": k, "height": HEIGHT, "width": WIDTH} for k in (1, 2)]
    record = {"id": 5, "image_id": 1, "iscrowd": 0, "visible_mask": rle_encode(NEAR)}
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"images": images, "annotations": [{**record, "segmentation": rle_encode(NEAR)}]}))
    _, told = lines_of(CocoScenes(path, images=tmp_path / "images", preset="d2sa"))
    assert len(told) == 3 and all(" field: the image has no field 'file_name'" in line for line in told[:2])
    save_picture(tmp_path / "images" / "1.png")
    both = [
        {**record, "segmentation": rle_encode(FAR), "visible_mask": None},
        {**record, "id": 6},
    ]  # and one that is lost
    path.write_text(json.dumps({"images": [{**images[0], "file_name": "1.png"}], "annotations": both}))
    _, told = lines_of(CocoScenes(path, images=tmp_path / "images", preset="d2sa"))
    assert not any("visible-some" in line for line in told) and any("object=6 field: " in line for line in told)


def test_open_pairs_of_a_project_are_told_and_copies_of_circles_have_none(tmp_path: Path) -> None:
    status, told = lines_of(project(tmp_path / "a", scene_of(np.stack([NEAR, FAR]))))
    assert status == 0 and len(told) == 2
    assert told[0].startswith("WARNING image=s object=0 order-unknown: nothing says which of 0 and 1 is in front")
    masks = np.stack([box(0, 0, 10, 20), box(5, 5, 15, 25), box(8, 2, 20, 12)])
    circle = project(tmp_path / "b", scene_of(masks, (0, 1), (1, 2), (2, 0)))
    told = lines_of(circle, repair=tmp_path / "copy")[1]
    assert len(told) == 2 and " order-cycle: " in told[0]
    assert len(lines_of(ProjectFolder(tmp_path / "copy"))[1]) == 1


def test_where_a_copy_may_not_go(tmp_path: Path) -> None:
    data = tmp_path / "data"
    scenes = Listed(good(data))
    before = hashes(tmp_path)
    for target in (data / "copy", tmp_path / "x" / ".." / "data" / "deep" / "copy"):
        with pytest.raises(InputError, match=r"repair must lie outside the data, got .* name a folder elsewhere"):
            lines_of(scenes, repair=target)
    with pytest.raises(InputError, match=r"repair must be a new or empty folder, got .* which holds files"):
        lines_of(scenes, repair=data)
    with pytest.raises(InputError, match=r"repair must be a folder, got the file"):
        lines_of(scenes, repair=data / "p1.png")
    with pytest.raises(InputError, match=r"repair must lie outside the data"):
        lines_of(scenes, repair=tmp_path / "copy", data=tmp_path)
    with pytest.raises(InputError, match=r"out must be a new or empty folder"):
        lines_of(scenes, out=data)
    with pytest.raises(InputError, match=r"out and repair must be folders apart"):
        lines_of(scenes, out=tmp_path / "o", repair=tmp_path / "o" / "copy")
    assert hashes(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert lines_of(scenes, repair=tmp_path / "empty")[0] == 0


def test_nothing_is_written_if_no_picture_is_left(tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(InputError, match=r"cannot write .*copy: no picture is left to copy; mend the errors"):
        run_check(Listed(picture_missing(good(tmp_path / "data"))), repair=tmp_path / "copy", write=told.append)
    assert told[-1] == "pictures=1 objects=0 errors=1 warnings=0 repaired=0"
    assert not (tmp_path / "copy").exists()


# ---------------------------------------------------------------------- the report


def test_the_report_holds_everything(tmp_path: Path) -> None:
    records = [plant(good(tmp_path / str(i), "p1")) for i, (plant, _) in enumerate(PLANTED.values())]
    records = [replace(record, id=f"p{i}|x") for i, record in enumerate(records)]
    status, told = lines_of(Listed(*records), out=tmp_path / "report", data="my/set")
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    assert status == 1 and found["pictures"] == len(PLANTED) and found["data"] == "my/set"
    assert len(found["defects"]) == len(told) - 1 == found["errors"] + found["warnings"] == sum(found["codes"].values())
    assert [line(Defect(**defect)) for defect in found["defects"]] == told[:-1]
    assert found["order_conflicts"] == 1
    words = (tmp_path / "report" / "report.md").read_text()
    assert words.startswith("# Data check of my/set\n") and words.endswith(GLOSSARY) and GLOSSARY.count("\n") == 5
    for code in found["codes"]:
        assert f"`{code}`" in words and CODES[code].mend in words
    assert "| 32x24 |" in words and "Order conflicts: 1." in words and "| x |" not in words
    with Image.open(tmp_path / "report" / "sheet.png") as sheet:
        assert sheet.size == (8 + 6 * 248, 8 + 4 * 208)  # 24 places for pictures of 4:3
    status, _ = lines_of(Listed(good(tmp_path)), out=tmp_path / "report")  # an older report is replaced
    assert status == 0 and "Nothing is wrong with it." in (tmp_path / "report" / "report.md").read_text()


def test_a_report_without_a_readable_picture_has_no_sheet(tmp_path: Path) -> None:
    lines_of(Listed(picture_missing(good(tmp_path))), out=tmp_path / "report")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["report.json", "report.md"]
    assert "sheet.png" not in (tmp_path / "report" / "report.md").read_text()


def test_the_sheet_shows_the_worst_first_and_the_rest_spread_evenly(tmp_path: Path) -> None:
    from sas.data.formats.sheet import SHEET, WORST, Sheet

    sheet = Sheet()
    fault, doubt = Defect("error", "field", "", "keep"), Defect("warning", "outside", "", "keep")
    total = 200
    for i in range(total):
        defects = [fault] * (i == 7) + [doubt] * (i % 3) if i < 60 else []
        sheet.offer(i, total, scene_of(np.stack([NEAR]), id=f"s{i}"), defects)
    worst = [-entry[1] for entry in sorted(sheet.worst, key=lambda entry: entry[:2], reverse=True)]
    assert worst == [7, *range(2, 2 + 3 * (WORST - 1), 3)]
    assert len(sheet.spread) == SHEET and min(sheet.spread) == 0 and max(sheet.spread) > total * 0.9
    assert set(np.diff(sorted(sheet.spread)).tolist()) <= {8, 9}
    picture = sheet.picture()
    assert picture is not None and picture.shape == (8 + 4 * 208, 8 + 6 * 248, 3)


# ---------------------------------------------------------------------- what is told once for a set


def test_a_set_without_any_order_is_told_so_once(tmp_path: Path) -> None:
    record = good(tmp_path)
    none = [replace(good(tmp_path, f"n{k}"), ordered=False) for k in range(3)]
    what = "so there are no layers, and layers cannot be trained on {}; drawing and scores without order work; to train, add an order to the files"
    assert lines_of(Listed(*none)) == (
        0,
        [
            f"WARNING image=- object=- order-none: nothing says who is in front, {what.format('this set')}; kept as it is",
            "pictures=3 objects=6 errors=0 warnings=1",
        ],
    )
    told = lines_of(Listed(record, *none))[1]
    who = f"3 of 4 pictures do not say who is in front, {what.format('them')}"
    assert told[:-1] == [f"WARNING image=- object=- order-none: {who}; kept as it is"]
    lines_of(Listed(*none), out=tmp_path / "report")
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["unordered"] == 3 and report["codes"] == {"order-none": 1}


def test_masks_alone_say_what_gives_them_an_order(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_picture(tmp_path / name / "image.png")
        write_mask(tmp_path / name / "gt_00.png", NEAR)
        write_mask(tmp_path / name / "gt_01.png", ~NEAR)
    status, told = lines_of(MaskFolders(tmp_path))
    assert status == 0 and len(told) == 2 and "order-none" in told[0]
    assert told[0].endswith(
        'to train, give each folder an order.json: [["front", "behind"], ...] by the names of its masks; kept as it is'
    )


class Elsewhere(Listed):
    picture_cure = "name the right one"


def test_the_folder_of_the_pictures_is_doubted_once_if_the_first_ones_are_missing(tmp_path: Path) -> None:
    record = good(tmp_path)
    gone = [replace(record, id=f"g{k}", image=tmp_path / f"g{k}.png") for k in range(5)]

    def doubts(*records: RawScene, kind: type[Listed] = Elsewhere) -> list[str]:
        return [one for one in lines_of(kind(*records))[1] if "image-folder" in one]

    words = "missing, so the folder of the pictures may be another one: name the right one; kept as it is"
    many = f"WARNING image=- object=- image-folder: the first 3 pictures are all {words}"
    assert doubts(*gone) == [many] == doubts(*gone[:3], record)
    assert lines_of(Elsewhere(*gone))[1][3] == many  # as soon as it is known
    assert doubts(gone[0]) == [f"WARNING image=- object=- image-folder: the only picture is {words}"]
    assert doubts(*gone[:2], record) == doubts(record, *gone) == doubts(record) == []
    assert doubts(*gone, kind=Listed) == []  # a format whose pictures cannot be elsewhere
    with pytest.raises(
        InputError, match="image g0 cannot be used: image-missing: .*; name the right one; or write a cleaned"
    ):
        Elsewhere(*gone)[0]


# ---------------------------------------------------------------------- the table of codes


def emitted_codes() -> set[str]:
    """Codes that the sources write out: after a severity, or where a parameter is called `code`."""
    root = Path(__file__).parent.parent / "sas"
    files = [*(root / "data" / "formats").glob("*.py"), root / "data_check.py"]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    takes_code = {"BadSegmentation": 0}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name != "__init__":
                names = [argument.arg for argument in node.args.args if argument.arg != "self"]
                takes_code |= {node.name: names.index("code")} if "code" in names else {}
    found: set[str] = set()
    for tree in trees:
        for node in ast.walk(tree):
            values = node.args if isinstance(node, ast.Call) else node.elts if isinstance(node, ast.Tuple) else []
            words = [value.value if isinstance(value, ast.Constant) else None for value in values]
            found |= {b for a, b in pairwise(words) if a in ("error", "warning") and isinstance(b, str)}
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).rpartition(".")[2]
                place = takes_code.get(name, len(words))
                found |= {words[place]} if place < len(words) and isinstance(words[place], str) else set()
    return {code for code in found if code == code.lower() and " " not in code} - {"error", "warning"}


def test_every_code_that_can_be_emitted_has_its_meaning() -> None:
    emitted = emitted_codes()
    assert {"image-missing", "rle-size", "shape-kind", "mask-grey", "image-twice", "json", "image-cut"} <= emitted
    assert emitted - set(CODES) == set(), "codes without a meaning"


def test_meanings_are_single_sentences_and_fit_a_table() -> None:
    for code, about in CODES.items():
        for words in (about.means, about.hurts, about.mend):
            assert words.endswith(".") and ". " not in words and "|" not in words and "\n" not in words, code
        assert about.severity in ("error", "warning")
    rows = codes_table().splitlines()
    assert len(rows) == len(CODES) + 2 and {row.count("|") for row in rows} == {6}


# ---------------------------------------------------------------------- real samples


def test_d2sa_samples(samples: Path, tmp_path: Path) -> None:
    data = samples / "amodal" / "d2sa"
    before = hashes(data)
    status, told = lines_of(
        lambda: MaskFolders(data), data=data, out=tmp_path / "report", repair=tmp_path / "copy", limit=2
    )
    assert status == 0 and told[-1].startswith("pictures=2 objects=11 errors=0 ") and told[-1].endswith("repaired=2")
    assert hashes(data) == before
    assert [one for one in told if "order-none" in one] == [told[-2]]
    assert told[-2].startswith(
        "WARNING image=- object=- order-none: nothing says who is in front, so there are no layers, and "
    )
    again, line = lines_of(ProjectFolder(tmp_path / "copy"))
    assert (again, line[1:]) == (0, ["pictures=2 objects=11 errors=0 warnings=1"]) and "order-none" in line[0]


def test_cocoa_samples(samples: Path, tmp_path: Path) -> None:
    """The layers of the three photographs are [1, 1], [6, 2, 1, 1, 1] and [12, 2, 4, 1] objects."""
    data = samples / "amodal" / "cocoa"
    status, told = lines_of(lambda: CocoaScenes(data), data=data, out=tmp_path / "report")
    assert (status, told) == (0, ["pictures=3 objects=32 errors=0 warnings=0"])
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    assert found["pictures_by_layers"] == {"2": 1, "4": 1, "5": 1}
    assert found["objects_by_layer_index"] == {"0": 19, "1": 5, "2": 5, "3": 2, "4": 1}
