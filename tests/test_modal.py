"""Modal masks: which objects are cut out whole, and scenes of partial completion that teach what is known and nothing else."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image, ImageFilter
from pycocotools import mask as coco_mask
from tiny import read_metrics, tiny_config
from torch import nn

from sas.config import Config
from sas.data.atlas import Atlas
from sas.data.composer import Composer
from sas.data.folders import open_scenes, write_project, write_sas_folders
from sas.data.formats.modal_set import ModalSet
from sas.data.instances import WholeRule, cutout, slug
from sas.data.modal import PartialCompletion, cut_objects, paste, shifted
from sas.data.source import SceneLoader
from sas.data.split import part_of
from sas.diffusion import DiffusionObjective, MaskCodec
from sas.factory import build_model, build_objective
from sas.geometry import Geometry
from sas.io import InputError
from sas.items import layer_items
from sas.pictures import read_image
from sas.pipeline import SASPipeline
from sas.scene import Scene, SceneBatch, collate
from sas.seeding import Keys
from sas.training import Trainer, _not_finite
from sas.validation import calibrate_stop, validate

HEIGHT, WIDTH = 60, 80
RULE = WholeRule(min_size=10, border=2, margin=3)


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def ellipse(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    ys, xs = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    y, x = (top + bottom) / 2, (left + right) / 2
    return ((ys - y) / (bottom - top)) ** 2 + ((xs - x) / (right - left)) ** 2 < 0.25


def polygon(top: int, left: int, bottom: int, right: int) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def rle(mask: np.ndarray) -> dict[str, Any]:
    packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode()}


def runs(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed RLE, as COCO has it for crowds."""
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(np.diff(np.concatenate([[False], flat])))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *ends, flat.size]).tolist()}


def box_of(segmentation: Any) -> list[float]:
    packed = segmentation
    if isinstance(segmentation, list):
        packed = coco_mask.merge(coco_mask.frPyObjects(segmentation, HEIGHT, WIDTH))
    elif isinstance(segmentation["counts"], list):
        packed = coco_mask.frPyObjects(segmentation, HEIGHT, WIDTH)
    return [float(value) for value in coco_mask.toBbox(packed)]


# Picture 1: whole objects, and those that something speaks against.
SOUND = {
    11: (1, polygon(5, 5, 20, 25), rectangle(5, 5, 20, 25)),
    12: (2, rle(ellipse(30, 6, 54, 36)), ellipse(30, 6, 54, 36)),
    31: (1, rle(ellipse(10, 12, 44, 60)), ellipse(10, 12, 44, 60)),
}
PICTURE_1 = [
    (11, 1, polygon(5, 5, 20, 25), {}),
    (12, 2, rle(ellipse(30, 6, 54, 36)), {}),
    (13, 1, rle(rectangle(6, 50, 22, 66)), {}),  # touches 14
    (14, 2, polygon(22, 52, 36, 64), {}),
    (15, 1, runs(rectangle(44, 40, 56, 52)), {"iscrowd": 1}),
    (16, 2, rle(rectangle(40, 66, 56, 80)), {}),  # at the border
]
# Picture 2: too small, in pieces, damaged; the damaged ones stand as their boxes.
PICTURE_2 = [
    (21, 1, polygon(4, 4, 10, 30), {}),
    (22, 1, rle(rectangle(30, 30, 50, 42) | rectangle(30, 46, 50, 58)), {}),
    (23, 2, rle(ellipse(16, 56, 28, 76)), {}),  # beside the box of 24
    (24, 2, {"size": [HEIGHT, WIDTH], "counts": "7"}, {"bbox": [60, 4, 12, 11]}),
    (25, 2, [[1, 2, 3, 4]], {"bbox": [2, 54, 4, 4]}),
    (26, 2, [[0, 0, 1e9, 0, 1e9, 1e9]], {"bbox": [74, 54, 4, 4]}),
]
# Picture 3: one whole object alone.
PICTURE_3 = [(31, 1, rle(ellipse(10, 12, 44, 60)), {})]


def write_set(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """A COCO-style file and its pictures of noise; `changes` replace parts of the file."""
    images = folder / "images"
    images.mkdir(parents=True)
    random = np.random.default_rng(0)
    annotations = []
    for number, entries in enumerate((PICTURE_1, PICTURE_2, PICTURE_3), start=1):
        pixels = random.integers(1, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
        for key, category, segmentation, more in entries:
            annotations.append(
                {"id": key, "image_id": number, "category_id": category, "segmentation": segmentation, "iscrowd": 0}
                | more
            )
    for entry in annotations:
        if "bbox" not in entry and entry["id"] != 21:  # one goes without
            entry["bbox"] = box_of(entry["segmentation"])
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in (1, 2, 3)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "hot dog"}, {"id": 2, "name": "bear/cub"}],
    }
    file = folder / "instances.json"
    file.write_text(json.dumps(content | changes))
    return file, images


@pytest.fixture(scope="module")
def modal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_set(tmp_path_factory.mktemp("modal"))


@pytest.fixture(scope="module")
def scenes(modal: tuple[Path, Path]) -> PartialCompletion:
    return PartialCompletion(*modal, min_size=10, seed=3)


# ---------------------------------------------------------------------- whole objects


def test_objects_that_count_as_whole(modal: tuple[Path, Path]) -> None:
    data = ModalSet(*modal)
    said = {}
    for picture in data.pictures:
        regions = data.regions(picture)
        said |= {int(one.id): RULE.objection(regions, row) for row, one in enumerate(regions.instances)}
    assert said == {
        11: "",
        12: "",
        13: "beside other objects",
        14: "beside other objects",
        15: "crowds",
        16: "at the border",
        21: "too small",
        22: "in pieces",
        23: "beside other objects",
        24: "masks that cannot be decoded",
        25: "masks that cannot be decoded",
        26: "masks that cannot be decoded",
        31: "",
    }


def test_each_part_of_the_rule_has_an_edge(modal: tuple[Path, Path]) -> None:
    data = ModalSet(*modal)
    regions = [data.regions(picture) for picture in data.pictures]
    assert replace(RULE, min_size=15).objection(regions[0], 0) == "", "15 rows high"
    assert replace(RULE, min_size=16).objection(regions[0], 0) == "too small"
    assert replace(RULE, border=5).objection(regions[0], 0) == "", "the fifth row is free"
    assert replace(RULE, border=6).objection(regions[0], 0) == "at the border"
    assert replace(RULE, margin=9).objection(regions[0], 0) == "", "nine rows lie between 11 and 12"
    assert replace(RULE, margin=11).objection(regions[0], 0) == "beside other objects"
    assert replace(RULE, share=0.5).objection(regions[1], 1) == "", "half of 22 is one piece"
    assert replace(RULE, margin=0).objection(regions[1], 2) == "", "23 is one row away from a box"


def test_cutouts_hold_the_object_and_nothing_else(modal: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "cut"
    assert cut_objects(*modal, out, rule=RULE) == 3
    assert sorted(path.name for path in out.iterdir()) == [
        "bear-cub__1-12__0.png",
        "hot-dog__1-11__0.png",
        "hot-dog__3-31__0.png",
    ]
    for path in out.iterdir():
        key = int(path.stem.split("__")[1].split("-")[1])
        mask, image = SOUND[key][2], read_image(modal[1] / f"{str(key)[0]}.png")
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        with Image.open(path) as opened:
            rgba = np.asarray(opened)
        assert opened.mode == "RGBA" and (rgba[..., 3] == 255 * mask[window]).all()
        assert (rgba[..., :3] == image[window] * mask[window][..., None]).all()


def test_cutouts_make_an_atlas_and_scenes(
    modal: tuple[Path, Path], tmp_path: Path, tiny_backgrounds: np.ndarray
) -> None:
    cut_objects(*modal, tmp_path / "cut", rule=RULE)
    atlas = Atlas.from_folders([tmp_path / "cut"], size=24)
    assert len(atlas) == 3 and atlas.group_sizes.tolist() == [1, 1, 1]
    composer = Composer(atlas, tiny_backgrounds, seed=0, image_size=24, mask_size=24, oversample=1)
    scenes = composer.scenes(0, range(4))
    assert any(len(scene) > 1 for scene in scenes)
    assert {name for scene in scenes for name in scene.names} <= set(atlas.names)


def test_a_limit_takes_some_and_the_seed_says_which(modal: tuple[Path, Path], tmp_path: Path) -> None:
    found = set()
    for seed in range(6):
        out = tmp_path / f"cut {seed}"
        assert cut_objects(*modal, out, rule=RULE, limit=1, seed=seed) == 1
        (path,) = out.iterdir()
        found.add(path.name.split("__")[1].split("-")[0])
    assert found == {"1", "3"}
    with pytest.raises(InputError, match="limit must be at least 1, got 0; leave it out"):
        cut_objects(*modal, tmp_path / "cut", limit=0)


def test_no_whole_object_leaves_nothing_behind(modal: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        cut_objects(*modal, tmp_path / "cut", rule=WholeRule(min_size=70))
    assert (
        "must hold at least one whole object, got none (1 crowds, 3 masks that cannot be decoded, 9 too small); "
        "lower min_size (--min-size) from 70 to 34 or less; look at it with `sas data check"
    ) in str(caught.value)
    assert not (tmp_path / "cut").exists()


def test_damaged_pictures_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, images = write_set(tmp_path)
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:500])
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(images / "3.png")
    with pytest.raises(InputError, match="3 in pictures that cannot be read"):
        cut_objects(file, images, tmp_path / "cut", rule=RULE)
    assert "cannot be decoded, it is damaged or cut off" in caplog.text
    assert f"must be {WIDTH}x{HEIGHT} as instances.json says, got {WIDTH}x{HEIGHT + 1}" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"min_size": 0}, "min_size and border must be at least 1 and margin at least 0 pixels, got 0, 2, 4"),
        ({"margin": -1}, "min_size and border must be at least 1 and margin at least 0 pixels, got 32, 2, -1"),
        ({"share": 0.0}, r"share must lie in \(0, 1\], got 0.0"),
    ],
)
def test_rules_that_make_no_sense(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        WholeRule(**change)


# ---------------------------------------------------------------------- the file


def test_the_folder_of_the_file_is_where_pictures_are_looked_for(modal: tuple[Path, Path]) -> None:
    assert ModalSet(*modal).images == modal[1]
    with pytest.raises(
        InputError, match="must hold pictures that .*instances.json names, got none of 3; name the folder .*--images"
    ):
        _ = ModalSet(modal[0]).pictures


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "must be an object with the lists images and annotations, got a list or a single value"),
        ('{"images": [], "annotations": 3}', "but images is an empty list and annotations is a value"),
        ('{"images": [}', "are not valid JSON at byte 12, line 1"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=words):
        ModalSet(tmp_path / "a.json", tmp_path)
    with pytest.raises(
        InputError, match="images must name the folder of the pictures, found nothing at .*/nowhere; correct"
    ):
        write_set(tmp_path / "set")
        ModalSet(tmp_path / "set" / "instances.json", tmp_path / "nowhere")


def test_bad_entries_are_passed_over_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = {"id": 1, "file_name": "1.png", "height": HEIGHT, "width": WIDTH}
    mask = polygon(5, 5, 20, 25)
    file, images = write_set(
        tmp_path,
        images=[good, {**good, "id": 2, "file_name": "no.png"}, good, {"id": 9}, None, {**good, "id": 4, "height": 0}],
        annotations=[
            {"id": 7, "image_id": 1, "category_id": 3, "segmentation": mask},
            {"id": 7, "image_id": 1, "segmentation": mask, "bbox": [1, 2, 3]},
            {"image_id": 1, "segmentation": None, "bbox": [-30, -30, 10, 10]},
            {"id": 8, "image_id": 1, "segmentation": "what", "bbox": [70, 50, 40, 40]},
            {"id": 9, "image_id": 1, "segmentation": []},
            {"id": 10, "image_id": 2},
            {"id": 11, "image_id": [1]},
            5,
        ],
        categories=None,
    )
    data = ModalSet(file, images)
    assert len(data) == 4 and [one.id for one in data.pictures] == ["1"]
    assert (
        "passed over 1 pictures that are missing, 2 pictures without file name or size and defects of the file "
        "(field, image-twice, image-unknown, object-twice); `sas data check"
    ) in caplog.text
    assert [one.id for one in data.instances] == ["7", "7 (2)", "annotation 3", "8", "9"], (
        "a region is there, whatever its id"
    )
    assert [one.category for one in data.instances] == ["3", *["object"] * 4]
    regions = data.regions(data.pictures[0])
    assert regions.decoded.tolist() == [True, True, False, False, False]
    assert [int(mask.sum()) for mask in regions.masks] == [300, 300, 0, 100, HEIGHT * WIDTH]


def test_parts_divide_the_pictures(modal: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    assert [part_of(f"{n}.png") for n in (1, 2, 3)] == ["train"] * 3
    assert len(ModalSet(*modal, part="train").pictures) == 3
    with pytest.raises(InputError, match="must hold pictures of part 'test' that"):
        _ = ModalSet(*modal, part="test").pictures
    assert "annotations without a picture" not in caplog.text


def test_names_fit_for_files() -> None:
    assert slug("a/b c__d") == "a-b-c_d" and slug("..") == "object" and slug("Bär 2") == "Bär-2"
    assert len(slug("x" * 300)) == 80


# ---------------------------------------------------------------------- partial completion


def crops_of(data: ModalSet, scene: Scene) -> tuple[int, np.ndarray, tuple[slice, slice]]:
    """Row of A, the photograph, and the window that the scene is a crop of: the place where A's mask lies as in the scene."""
    key = scene.id.rsplit("-", 1)[1]
    instance = next(one for one in data.instances if one.id == key)
    regions = data.regions(instance.picture)
    row = regions.instances.index(instance)
    full, part = regions.masks[row], scene.amodal_masks[1]
    top = int(np.flatnonzero(full.any(axis=1))[0] - np.flatnonzero(part.any(axis=1))[0])
    left = int(np.flatnonzero(full.any(axis=0))[0] - np.flatnonzero(part.any(axis=0))[0])
    return row, full, np.s_[top : top + scene.height, left : left + scene.width]


def test_scenes_have_the_eraser_in_front_and_know_what_they_do_not_know(scenes: PartialCompletion) -> None:
    assert len(scenes) == 10, (
        "15 is a crowd, 25 and 26 are too small; 21 and 24 show what they are when they are decoded"
    )
    assert {scene.id.rsplit("-")[-1] for scene in scenes} == {"11", "12", "13", "14", "16", "22", "23", "31"}
    unknown = 0
    for scene in scenes:
        assert scene.layer_index.tolist() == [0, 1] and not scene.complete and scene.known is not None
        row, full, window = crops_of(scenes.data, scene)
        eraser, mask = scene.amodal_masks
        assert (mask == full[window]).all() and mask.sum() == full.sum(), "A lies in the crop as a whole"
        share = (eraser & mask).sum() / mask.sum()
        assert 0.1 <= share <= 0.7

        picture = next(p for p in scenes.data.pictures if scene.id.split("-")[1] == str(p.id))
        others = scenes.data.regions(picture).others(row)[window]
        assert (scene.known == ~(others & ~mask)).all()
        unknown += int((~scene.known).sum())

        photograph = scenes.data.image(picture)[window]
        grown = np.asarray(Image.fromarray(eraser).convert("L").filter(ImageFilter.MaxFilter(7)))
        assert (scene.image == photograph)[grown == 0].all(), "beside the object in front, nothing has changed"
        assert (scene.image != photograph).any(axis=-1)[eraser].mean() > 0.9
    assert unknown > 0


def test_scenes_depend_on_seed_and_index_alone(modal: tuple[Path, Path], scenes: PartialCompletion) -> None:
    again = PartialCompletion(*modal, min_size=10, seed=3, draws=2)
    assert len(again) == 20 and (again[4].image == scenes[4].image).all() and again[4].id == scenes[4].id
    assert again[14].id.split("-")[1:] == again[4].id.split("-")[1:], "draw 2 of the same object"
    assert again[14].image.shape != again[4].image.shape or (again[14].image != again[4].image).any()
    other = PartialCompletion(*modal, min_size=10, seed=4)[4]
    assert other.image.shape != scenes[4].image.shape or (other.image != scenes[4].image).any()
    assert [scene.id for scene in scenes[-2:]] == [scenes[8].id, scenes[9].id]


def test_an_object_that_cannot_be_read_gives_way_to_the_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, images = write_set(tmp_path)
    scenes = PartialCompletion(file, images, min_size=10)
    (images / "1.png").write_bytes(b"broken")
    assert {scene.id.split("-")[1] for scene in scenes} == {"2", "3"}
    assert "1.png is not a PNG" in caplog.text
    for path in images.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(
        InputError, match="gives no scene near object 2: none of 10 objects can be read and covered by 10% to 70%"
    ):
        scenes[2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"erased": (0.5, 0.2)}, r"erased must be \(least, greatest\) share .* got \(0.5, 0.2\): pass"),
        ({"context": (0.5, 2)}, r"context must be \(least, greatest\) multiple of at least 1, got \(0.5, 2\): pass"),
        ({"draws": 0}, "draws must be at least 1, got 0: pass"),
        ({"min_size": 70}, "must hold at least two objects of 70 pixels or more, got 1"),
    ],
)
def test_settings_that_make_no_sense(modal: tuple[Path, Path], change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PartialCompletion(*modal, **change)


def test_pasting_is_cut_at_the_frame() -> None:
    values = np.arange(1, 7).reshape(2, 3)
    assert shifted(values, (2, 2), top=-1, left=1).tolist() == [[0, 4], [0, 0]]
    assert shifted(values, (2, 2), top=0, left=-2).tolist() == [[3, 0], [6, 0]]
    assert not shifted(values, (2, 2), top=5, left=0).any() and not shifted(values, (2, 2), top=0, left=-9).any()
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 128], [200, 100, 0, 127]]], dtype=np.uint8)
    image, mask = paste(np.zeros((1, 4, 3), dtype=np.uint8), rgba, top=0, left=1)
    assert mask.tolist() == [[False, True, True, False]]
    assert image[0].tolist() == [[0, 0, 0], [200, 100, 0], [100, 50, 0], [100, 50, 0]]


def test_a_cutout_of_one_pixel() -> None:
    image = np.full((3, 4, 3), 7, dtype=np.uint8)
    mask = np.zeros((3, 4), dtype=bool)
    mask[2, 1] = True
    assert cutout(image, mask).tolist() == [[[7, 7, 7, 255]]]


# ---------------------------------------------------------------------- scenes that are known in parts only


def test_what_is_known_survives_the_disk(scenes: PartialCompletion, tmp_path: Path, tiny_scene: Scene) -> None:
    write_project(tmp_path / "a", [scenes[0], tiny_scene], min_overlap=0.0)
    back, whole = open_scenes(tmp_path / "a")
    assert scenes[0].known is not None and back.known is not None
    assert (back.known == scenes[0].known).all() and not back.complete
    assert whole.known is None and whole.complete
    lines = (tmp_path / "a" / "scenes.jsonl").read_text().splitlines()
    assert "known" in lines[0] and not {"known", "complete"} & set(json.loads(lines[1])), "old files stay as they were"


def test_sas_folders_warn_of_what_they_lose(
    scenes: PartialCompletion, tmp_path: Path, tiny_scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        write_sas_folders(tmp_path / "a", [tiny_scene])
        assert not caplog.records
        write_sas_folders(tmp_path / "b", [tiny_scene, scenes[0]])
    assert "1 of 2 scenes are known in parts only" in caplog.text


def test_known_is_checked_and_kept(tiny_scene: Scene) -> None:
    known = np.zeros((20, 30), dtype=bool)
    hidden = replace(tiny_scene, known=known, complete=False, visible_masks=np.zeros_like(tiny_scene.amodal_masks))
    dropped = hidden.drop_invisible()
    assert len(dropped) == 0 and dropped.known is known and not dropped.complete
    with pytest.raises(ValueError, match="known must be a bool mask, got float64"):
        replace(tiny_scene, known=known.astype(float))
    with pytest.raises(ValueError, match=r"known must have shape \(h, w\) with h=20, w=30, got \(30, 20\)"):
        replace(tiny_scene, known=known.T)


def mixed_batch(tiny_scene: Scene) -> SceneBatch:
    """A complete scene; the same one with its right half unknown and more objects left; one without objects that is not complete."""
    known = np.ones((20, 30), dtype=bool)
    known[:, 15:] = False
    partial = replace(tiny_scene, known=known, complete=False, id="partial")
    none = np.zeros(4, dtype=bool)
    empty = Scene(
        image=tiny_scene.image,
        amodal_masks=tiny_scene.amodal_masks[none],
        order_matrix=np.zeros((0, 0), dtype=bool),
        complete=False,
        id="empty",
    )
    return collate([tiny_scene, partial, empty], image_size=16, mask_size=16)


def test_letterbox_and_unknown_pixels_are_both_unknown(tiny_scene: Scene) -> None:
    batch = mixed_batch(tiny_scene)
    assert batch.complete is not None and batch.complete.tolist() == [True, False, False]
    assert batch.known[0, 0, 3:13].all() and not batch.known[0, 0, :2].any()
    assert torch.equal(batch.known[1, 0, :, :8], batch.known[0, 0, :, :8]) and not batch.known[1, 0, :, 8:].any()
    assert collate([tiny_scene], image_size=16, mask_size=16).complete is None
    with pytest.raises(ValueError, match=r"complete must have shape \(b\) with b=3, got \(2,\)"):
        replace(batch, complete=batch.complete[:2])
    assert batch.to("cpu").complete is not None


def test_the_empty_item_is_not_taught_where_more_is_left(tiny_scene: Scene) -> None:
    batch = mixed_batch(tiny_scene)
    assert batch.layer_counts.tolist() == [3, 3, 0] and batch.item_counts.tolist() == [4, 3, 1]
    keys = Keys(0, 0, (0, 1, 2))
    items = layer_items(batch, keys)
    assert items.picture.tolist() == [0, 0, 0, 0, 1, 1, 1, 2] and items.layer.tolist() == [0, 1, 2, 3, 0, 1, 2, 0]
    assert items.taught is not None and items.taught.tolist() == [True] * 7 + [False]
    drawn = layer_items(batch, keys, layers=4)
    assert drawn.picture.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert sorted(drawn.layer[:4].tolist()) == [0, 1, 2, 3] and set(drawn.layer[4:8].tolist()) == {0, 1, 2}

    objective = make_objective(stop_weight=1.0, energy_weight=1.0)
    losses = objective.loss(Blurred(), batch, keys)
    assert all(value[-1] == 0 for value in losses.values()), "nothing is known of a picture without objects"
    assert (losses["stop"][:4] > 0).all() and (losses["loss"][:7] > 0).all()
    assert not losses["stop"][4:].any(), "a picture without an end does not teach that it never comes"
    losses["loss"][2] = losses["loss"][5] = losses["loss"][7] = torch.nan
    words = _not_finite(losses["loss"].detach(), batch.item_counts, batch.ids, range(3), "all")
    assert words == ["empty (position 2)", "partial (position 1)", "tiny (position 0)"]


class Blurred(nn.Module):
    """A network that mixes each pixel with its neighbours, so that what goes in at one comes out at others."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(channels, 5, 5, 5, generator=generator) / 5)
        self.outputs: list[torch.Tensor] = []

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return image

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, cumulative: torch.Tensor, features: torch.Tensor
    ) -> torch.Tensor:
        stacked = torch.cat([features, cumulative, noisy], dim=1)
        output = nn.functional.conv2d(stacked, self.weight, padding=2)
        if output.requires_grad:
            output.retain_grad()
            self.outputs.append(output)
        return output


def make_objective(**settings: Any) -> DiffusionObjective:
    kind = settings.get("loss_type", "bce_dice")
    scheduler = DDIMScheduler(
        num_train_timesteps=50, prediction_type="sample" if kind == "bce_dice" else "v_prediction"
    )
    return DiffusionObjective(scheduler, codec=MaskCodec(scale=0.5), **{"loss_type": kind, **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss_type": "mse"},
        {"loss_type": "mse", "learned_variance": True},
        {"rollout": 0.7},
        {"energy_weight": 1.0},
    ],
    ids=str,
)
def test_unknown_pixels_teach_nothing(scenes: PartialCompletion, settings: dict[str, Any]) -> None:
    """No gradient at their outputs, and the same loss whatever the masks are there, though each output sees its neighbours."""
    batch = collate(scenes[:4], image_size=16, mask_size=16)
    unknown = ~batch.known
    assert all(unknown[b].any() for b in range(3))
    keys, network, objective = Keys(0, 0, (0, 1, 2, 3)), Blurred(), make_objective(**settings)
    losses = objective.loss(network, batch, keys)
    losses["loss"].sum().backward()
    items = layer_items(batch, keys)
    assert network.outputs
    for output in network.outputs:
        gradient = output.grad
        assert gradient is not None
        rows = items.picture.repeat_interleave(len(output) // len(items))
        outside = unknown[rows].expand_as(gradient)
        assert (gradient[outside] == 0).all() and (gradient[:, :1][~outside[:, :1]] != 0).any()

    # Layer 1 is A, whose mask is in no cumulative mask: flip it wherever it is not known.
    flipped = batch.amodal_masks.clone()
    flipped[:, 1] ^= unknown[:, 0]
    changed = objective.loss(Blurred(), replace(batch, amodal_masks=flipped), keys)
    assert not torch.equal(flipped, batch.amodal_masks)
    for name in losses:
        assert torch.equal(losses[name], changed[name]), name


def test_complete_scenes_are_learned_as_before(tiny_scene: Scene) -> None:
    """A batch that says of each scene that it is complete gives the losses of one that says nothing."""
    batch = collate([tiny_scene, tiny_scene], image_size=16, mask_size=16)
    keys, objective = Keys(0, 0, (0, 1)), make_objective(stop_weight=1.0, rollout=0.5)
    plain = objective.loss(Blurred(), batch, keys)
    said = objective.loss(Blurred(), replace(batch, complete=torch.ones(2, dtype=torch.bool)), keys)
    assert all(torch.equal(plain[name], said[name]) for name in plain)


# ---------------------------------------------------------------------- training and validation


def small_config(**changes: Any) -> Config:
    return tiny_config(diffusion_rollout=0.3, **changes)


def train(scenes: PartialCompletion, *, steps: int) -> list[float]:
    config = small_config()
    loader = SceneLoader(scenes, seed=0, batch_size=4, image_size=16, mask_size=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, objective = build_model(config), build_objective(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(steps):
        loss = objective.loss(model, loader.batch(step, range(4)), Keys(0, step, tuple(range(4))))["loss"]
        assert len(loss) == 8, "two layers a picture"
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        losses.append(float(loss.detach().mean()))
    return losses


def test_three_steps_of_training(scenes: PartialCompletion) -> None:
    losses = train(scenes, steps=3)
    assert np.isfinite(losses).all() and len(set(losses)) == 3


@pytest.mark.parametrize("layers", ["all", 2])
def test_the_trainer_takes_them_from_disk(scenes: PartialCompletion, tmp_path: Path, layers: Any) -> None:
    write_project(tmp_path / "scenes", scenes, min_overlap=0.0)
    config = tiny_config(
        data_scenes=str(tmp_path / "scenes"), data_layers=layers, training_steps=3, logging_validate_every=3
    )
    Trainer(config, tmp_path / "run", cpu=True, progress=False).run()
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    (scored,) = (line for line in lines if "val/score" in line)
    assert np.isfinite(list(scored.values())).all() and "val/stop_accuracy" not in scored


def test_validation_judges_what_is_known(tiny_scene: Scene, make_tiny_pipe: Any) -> None:
    pipe: SASPipeline = make_tiny_pipe()
    batch = mixed_batch(tiny_scene)
    scores = validate(pipe, batch, members=2, steps=2)
    assert len(scores.behind.stops) == 1, "only the complete scene can say whether the end was found"
    assert [len(row) for row in scores.behind.ious] == [3, 3, 0]
    only = validate(
        pipe, collate([replace(tiny_scene, complete=False)], image_size=16, mask_size=16), members=2, steps=2
    )
    assert np.isnan(only.behind.stop_accuracy) and np.isnan(only.false_layers)
    assert not any(np.isnan(value) for value in only.to_dict().values()) and "val/score" in only.to_dict()


def test_what_is_drawn_on_unknown_pixels_is_neither_right_nor_wrong(tiny_scene: Scene, make_tiny_pipe: Any) -> None:
    known = np.zeros((20, 30), dtype=bool)
    pipe: SASPipeline = make_tiny_pipe()
    nothing = replace(tiny_scene, known=known, complete=False)
    scores = validate(pipe, collate([nothing], image_size=16, mask_size=16), members=2, steps=2)
    assert all(mask.any() for mask in scores.predictions[0])
    assert np.isnan(scores.behind.ious[0]).all() and np.isnan(scores.own).all() and scores.score == 0, (
        "nothing is known"
    )
    known[:, :15] = True
    batch = collate([replace(nothing, known=known)], image_size=16, mask_size=16)
    scores = validate(pipe, batch, members=2, steps=2)
    found, truth = (masks & batch.known[0].numpy() for masks in (scores.predictions[0], batch.layers()[0].numpy()))
    assert scores.own[0] == pytest.approx((found[0] & truth[0]).sum() / (found[0] | truth[0]).sum())


def test_grey_bars_of_a_picture_that_is_not_complete_are_no_picture(tiny_scene: Scene) -> None:
    geometry = Geometry.fit(height=20, width=30, size=16, mask_size=16)
    known = np.zeros((20, 30), dtype=bool)
    known[:, :15] = True
    batch = collate([replace(tiny_scene, complete=False, known=known)], image_size=16, mask_size=16)
    listed = replace(tiny_scene, known=known)  # what a complete scene does not know are bars, wherever they lie
    both = collate([listed, replace(listed, complete=False)], image_size=16, mask_size=16)
    assert torch.equal(both.frame[0], both.known[0]) and torch.equal(both.frame[1], batch.frame[0])
    bars = ~torch.from_numpy(geometry.known())
    assert bars.any() and torch.equal(batch.frame[0, 0], ~bars)
    objective = DiffusionObjective(DDIMScheduler(prediction_type="sample"), codec=MaskCodec(scale=0.2))
    keys = Keys(0, 0, (0,))
    x_0, _, _ = objective._draw(layer_items(batch, keys), keys)
    assert (x_0[:, 0, bars] == -0.2).all(), "as in sampling, which draws nothing there"
    assert (x_0[:, 0, ~bars & ~batch.known[0, 0]] == 0).all(), "what nobody knows is one half"


def test_the_stop_head_is_not_calibrated_without_an_end(tiny_scene: Scene, make_tiny_pipe: Any) -> None:
    batch = collate([replace(tiny_scene, complete=False)], image_size=16, mask_size=16)
    assert calibrate_stop(make_tiny_pipe(), batch) is None
