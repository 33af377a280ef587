"""From raw records to scenes: what is mended, what is dropped, what is refused, and how the order is worked out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import box
from PIL import Image

from sas.data.formats.assemble import AnnotatedScenes, assemble, infer_order
from sas.data.formats.raw import Defect, RawObject, RawScene
from sas.data.formats.segmentation import BadSegmentation, decode
from sas.io import InputError, rle_encode
from sas.pictures import write_mask

HEIGHT, WIDTH = 20, 30
LEFT = box(HEIGHT, WIDTH, 2, 2, 12, 14)
RIGHT = box(HEIGHT, WIDTH, 4, 8, 16, 24)  # shares rows 4..11 and columns 8..13 with LEFT
FAR = box(HEIGHT, WIDTH, 17, 25, 20, 30)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
    return path


def scene_of(picture: Path, *objects: RawObject, **more: Any) -> RawScene:
    return RawScene(id="p", image=picture, objects=objects, **more)


def told(defects: list[Defect]) -> list[tuple[str, str, str, str]]:
    return [(defect.severity, defect.code, defect.action, defect.object) for defect in defects]


# ---------------------------------------------------------------------- segmentations


def polygon_of(top: int, left: int, bottom: int, right: int) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


@pytest.mark.parametrize(
    "segmentation",
    [
        LEFT,
        rle_encode(LEFT),
        {**rle_encode(LEFT), "counts": rle_encode(LEFT)["counts"].encode()},
        [polygon_of(2, 2, 12, 14)],
        polygon_of(2, 2, 12, 14),  # one flat list, as COCOA has it
        [polygon_of(2, 2, 12, 8), polygon_of(2, 8, 12, 14)],
    ],
    ids=["array", "rle", "rle bytes", "polygons", "flat polygon", "two polygons"],
)
def test_every_kind_of_segmentation_gives_the_same_mask(segmentation: Any) -> None:
    mask, notes = decode(segmentation, HEIGHT, WIDTH)
    assert mask.dtype == bool and (mask == LEFT).all() and notes == []


def test_runs_that_are_not_packed() -> None:
    mask, notes = decode({"size": [2, 3], "counts": [1, 2, 3]}, 2, 3)
    assert mask.tolist() == [[False, True, False], [True, False, False]] and notes == []  # column by column


def test_one_pixel_and_nothing() -> None:
    assert decode({"size": [1, 1], "counts": [0, 1]}, 1, 1)[0].tolist() == [[True]]
    assert not decode([], 4, 6)[0].any()


def test_mask_pictures(tmp_path: Path) -> None:
    write_mask(tmp_path / "clean.png", LEFT)
    Image.fromarray(LEFT.astype(np.uint8)).save(tmp_path / "ones.png")
    Image.fromarray((LEFT * np.uint8(200)) + np.uint8(3)).save(tmp_path / "grey.png")
    expected = {"clean": [], "ones": ["mask-range"], "grey": ["mask-grey"]}
    for name, codes in expected.items():
        mask, notes = decode(tmp_path / f"{name}.png", HEIGHT, WIDTH)
        assert (mask == LEFT).all() and [note[1] for note in notes] == codes


def test_a_part_of_an_outline_may_be_bad() -> None:
    mask, notes = decode([polygon_of(2, 2, 12, 14), [1.0, 1.0, 5.0, 5.0]], HEIGHT, WIDTH)
    assert (mask == LEFT).all()
    words = "polygon 2 of 2 has 2 points and needs 3; it alone is left out, the object is kept"
    assert notes == [("error", "polygon-points", words, "repair")]


def test_a_polygon_is_cut_at_the_border() -> None:
    mask, notes = decode([polygon_of(-20, -10, 12, 14)], HEIGHT, WIDTH)
    assert (mask == box(HEIGHT, WIDTH, 0, 0, 12, 14)).all()
    words = "the polygon (x -10..14, y -20..12) leaves the picture of 30x20; it is cut at the border"
    assert notes == [("warning", "outside", words, "repair")]


BAD_SEGMENTATIONS: list[tuple[Any, str, str]] = [
    (None, "field", "a segmentation must be polygons or RLE, got NoneType"),
    ("abc", "field", "a segmentation must be polygons or RLE, got str"),
    (np.ones((3, 4), bool), "mask-size", "the mask has 4x3 pixels, the picture 30x20"),
    ({"counts": "x"}, "field", "RLE must have a size [height, width], got None"),
    ({"size": [30, 20], "counts": "x"}, "rle-size", "the RLE is for 20x30 pixels, the picture has 30x20"),
    ({"size": [20, 30], "counts": [1, 2]}, "rle-size", "the runs of the RLE must add up to 600 pixels, got [1, 2]"),
    ({"size": [20, 30], "counts": [700, -100]}, "rle-size", "the runs of the RLE must add up to 600 pixels"),
    ({"size": [20, 30], "counts": "11"}, "rle-size", "must cover 20x30 = 600 pixels, got runs over 2"),
    ([[1.0, 1.0, 5.0, 5.0]], "polygon-points", "a polygon has 2 points and needs 3; the whole object is left out"),
    (
        [[1, 1], []],
        "polygon-points",
        "none of the 2 polygons has the 3 points that it needs; the whole object is left out",
    ),
    ([[10**400] * 6], "field", "a polygon must be a list of numbers, got [1000"),
    ([[1.0] * 7], "field", "a polygon must have an even number of values x, y, ..., got 7"),
    ([[float("nan")] * 6], "field", "a polygon must hold finite numbers, got NaN or infinity"),
    ([[1e9] * 6], "outside", "a polygon reaches to 1e+09, farther than any picture; the whole object is left out"),
    ([[[1, 2], [3, 4], [5, 6]]], "field", "a polygon must be a list of numbers, got [[1, 2], [3, 4], [5, 6]]"),
    (Path("nowhere.png"), "mask-missing", "there is no mask file nowhere.png"),
]


@pytest.mark.parametrize(("segmentation", "code", "words"), BAD_SEGMENTATIONS)
def test_bad_segmentations_by_their_words(segmentation: Any, code: str, words: str, picture: Path) -> None:
    with pytest.raises(BadSegmentation) as caught:
        decode(segmentation, HEIGHT, WIDTH)
    assert caught.value.code == code and words in str(caught.value)
    # In a scene the object is left out, and the scene says that it does not list everything.
    scene, defects = assemble(scene_of(picture, RawObject("1", "a", segmentation), RawObject("2", "b", FAR)))
    assert scene is not None and scene.names == ("b",) and not scene.complete
    severity = "warning" if code == "outside" else "error"
    assert told(defects) == [(severity, code, "drop", "1")] and words in defects[0].words


def test_bad_mask_pictures(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    write_mask(tmp_path / "small.png", np.ones((3, 4), dtype=bool))
    for name, code, words in [
        ("text", "mask-damaged", "text.png"),
        ("small", "mask-size", "small.png has 4x3 pixels, the picture 30x20"),
    ]:
        with pytest.raises(BadSegmentation) as caught:
            decode(tmp_path / f"{name}.png", HEIGHT, WIDTH)
        assert caught.value.code == code and words in str(caught.value)


# ---------------------------------------------------------------------- pictures


def test_pictures_that_are_refused(picture: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.png"
    cut.write_bytes(picture.read_bytes()[:200])
    cases = [
        (RawScene("p", tmp_path / "none.png", ()), "image-missing", f"there is no file {tmp_path}/none.png"),
        (RawScene("p", cut, ()), "image-damaged", f"image {cut}"),
        (
            RawScene("p", picture, (), size=(WIDTH, HEIGHT)),
            "image-size",
            "the file says 20x30 (width x height), picture.png has 30x20",
        ),
    ]
    for raw, code, words in cases:
        scene, defects = assemble(raw)
        assert scene is None and told(defects) == [("error", code, "refuse", "")] and words in defects[0].words


def test_a_picture_without_objects_is_a_scene(picture: Path) -> None:
    scene, defects = assemble(scene_of(picture, size=(HEIGHT, WIDTH)))
    assert defects == [] and scene is not None and len(scene) == 0 and scene.complete
    assert scene.layer_masks.shape == (0, HEIGHT, WIDTH)


def test_a_defect_on_a_line() -> None:
    assert str(Defect("error", "rle-size", "words", "drop", image="7", object="3")) == (
        "ERROR image=7 object=3 rle-size: words; dropped"
    )
    assert str(Defect("warning", "category-unused", "words", "keep")) == (
        "WARNING image=- object=- category-unused: words; kept as it is"
    )


# ---------------------------------------------------------------------- objects


def test_objects_that_nobody_can_see_are_dropped_and_counted(picture: Path) -> None:
    nothing = np.zeros_like(LEFT)
    raw = scene_of(
        picture,
        RawObject("1", "a", LEFT, visible=LEFT),
        RawObject("2", "b", nothing),
        RawObject("3", "c", LEFT, visible=nothing),
    )
    scene, defects = assemble(raw)
    assert scene is not None and scene.names == ("a",) and scene.dropped == 1 and scene.complete
    assert told(defects) == [("warning", "mask-empty", "drop", "2"), ("warning", "invisible", "drop", "3")]
    assert defects[0].words == "the amodal mask has no pixel in the picture"
    assert defects[1].words == "no pixel of the object is visible"


def test_an_object_wholly_behind_another_is_dropped_by_the_order(picture: Path) -> None:
    inside = box(HEIGHT, WIDTH, 4, 4, 8, 8)
    raw = scene_of(picture, RawObject("1", "a", LEFT, rank=1), RawObject("2", "b", inside, rank=2))
    scene, defects = assemble(raw)
    assert scene is not None and scene.names == ("a",) and scene.dropped == 1
    assert told(defects) == [("warning", "invisible", "drop", "2")]
    assert defects[0].words == "no pixel of the object is visible behind those in front"


def test_crowds_are_no_objects(picture: Path) -> None:
    raw = scene_of(picture, RawObject("1", "a", LEFT, crowd=True), RawObject("2", "b", FAR))
    scene, defects = assemble(raw)
    assert scene is not None and scene.names == ("b",) and not scene.complete
    assert told(defects) == [("warning", "crowd", "drop", "1")]
    assert defects[0].words == "a crowd region is not one object"


@pytest.mark.parametrize(
    "lost", [{"crowd": True}, {"visible": [[1, 1, 2, 2]]}, {"visible": LEFT, "amodal": [[1, 1, 2, 2]]}]
)
def test_what_lies_behind_a_lost_object_is_no_front_layer(picture: Path, lost: dict[str, Any]) -> None:
    """RIGHT is hidden by LEFT, which is left out, and hides THIRD; FAR lies apart."""
    third = box(HEIGHT, WIDTH, 14, 20, 18, 26)  # shares no pixel with LEFT; 8 with RIGHT, 1 with FAR
    raw = scene_of(
        picture,
        RawObject("1", "a", **{"amodal": LEFT, "rank": 1, **lost}),
        RawObject("2", "b", RIGHT, rank=2),
        RawObject("3", "c", third, rank=3),
        RawObject("4", "d", FAR, rank=0),
    )
    scene, defects = assemble(raw, min_overlap=0.2)
    assert scene is not None and scene.names == ("d",) and not scene.complete
    assert told(defects)[1:] == [("warning", "behind-lost", "drop", "2"), ("warning", "behind-lost", "drop", "3")]
    assert [one.words.split(",")[0] for one in defects[1:]] == ["it lies behind 1", "it lies behind 2"]
    assert scene.known is not None and not (scene.known & RIGHT & ~FAR).any() and scene.known[0, 0]


def test_what_another_object_hides_is_not_behind_a_lost_one(picture: Path) -> None:
    """A crowd all over the picture without a visible mask; FRONT is seen whole, LEFT only where FRONT does not hide it."""
    everything, front = np.ones((HEIGHT, WIDTH), dtype=bool), LEFT.copy()
    front[11] = False
    objects = (
        RawObject("1", "crowd", everything, crowd=True),
        RawObject("2", "front", front, visible=front),
        RawObject("3", "left", LEFT, visible=LEFT & ~front),
    )
    scene, defects = assemble(scene_of(picture, *objects))
    assert (
        scene is not None and scene.names == ("front", "left") and told(defects) == [("warning", "crowd", "drop", "1")]
    )
    bare = tuple(replace(one, visible=None) for one in objects)
    scene, defects = assemble(scene_of(picture, *bare))
    assert scene is not None and len(scene) == 2, "nothing says who is in front"


def test_the_first_object_behind_a_lost_one_is_logged(picture: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = scene_of(picture, RawObject("1", "a", LEFT, crowd=True, rank=1), RawObject("2", "b", RIGHT, rank=2))

    class One(AnnotatedScenes):
        def __init__(self) -> None:
            super().__init__()

        def __len__(self) -> int:
            return 1

        def raw(self, index: int) -> tuple[RawScene, list[Defect]]:
            return raw, []

    One()[0]
    assert "object=2 behind-lost: it lies behind 1" in caplog.text


def test_pairs_name_what_lies_behind_a_lost_object_without_a_mask(picture: Path) -> None:
    objects = (RawObject("1", "a", [[1, 1, 2, 2]]), RawObject("2", "b", RIGHT), RawObject("3", "c", FAR))
    scene, defects = assemble(scene_of(picture, *objects, pairs=(("1", "2"),)))
    assert scene is not None and scene.names == ("c",)
    assert told(defects)[1:] == [("warning", "behind-lost", "drop", "2")]
    scene, defects = assemble(scene_of(picture, *objects))
    assert scene is not None and scene.names == ("b", "c") and len(defects) == 1, "nothing says so"


def test_stuff_that_covers_everything_is_told(picture: Path) -> None:
    everything = np.ones((HEIGHT, WIDTH), dtype=bool)
    raw = scene_of(picture, RawObject("1", "sky", everything, stuff=True, rank=2), RawObject("2", "b", FAR, rank=1))
    scene, defects = assemble(raw)
    assert scene is not None and len(scene) == 2
    assert told(defects) == [("warning", "covers-all", "keep", "1")]
    assert defects[0].words == "a region of stuff covers 100% of the picture"


@pytest.mark.parametrize(("extra", "codes"), [(1, []), (40, ["visible-outside"])])
def test_an_amodal_mask_is_widened_to_what_is_seen(picture: Path, extra: int, codes: list[str]) -> None:
    seen = LEFT.copy()
    seen[13, : min(extra, WIDTH)] = True
    seen[14, : max(0, extra - WIDTH)] = True
    scene, defects = assemble(scene_of(picture, RawObject("1", "a", LEFT, visible=seen)))
    assert scene is not None and (scene.amodal_masks[0] == (LEFT | seen)).all()
    assert [defect.code for defect in defects] == codes
    if codes:
        assert defects[0].words == "25.0% of the visible mask lies outside the amodal mask, which is widened"
        assert defects[0].action == "repair"


def test_a_bad_visible_mask_is_named(picture: Path) -> None:
    raw = scene_of(picture, RawObject("1", "a", LEFT, visible={"size": [1, 2], "counts": "x"}))
    scene, defects = assemble(raw)
    assert scene is not None and len(scene) == 0 and not scene.complete
    assert defects[0].words == "visible mask: the RLE is for 2x1 pixels, the picture has 30x20"


def test_what_is_seen_follows_from_what_is_hidden(picture: Path) -> None:
    raw = scene_of(picture, RawObject("1", "a", LEFT), RawObject("2", "b", RIGHT, invisible=LEFT & RIGHT))
    scene, defects = assemble(replace(raw, unoccluded_by_default=True))
    assert defects == [] and scene is not None and scene.visible_masks is not None
    assert (scene.visible_masks[0] == LEFT).all() and (scene.visible_masks[1] == (RIGHT & ~LEFT)).all()
    assert scene.layer_index.tolist() == [0, 1]


def test_visible_masks_of_some_objects_are_not_used(picture: Path) -> None:
    raw = scene_of(
        picture, RawObject("1", "a", LEFT, visible=LEFT & ~RIGHT, rank=1), RawObject("2", "b", RIGHT, rank=2)
    )
    scene, _ = assemble(raw)
    assert scene is not None and scene.visible_masks is None and scene.layer_index.tolist() == [0, 1]


# ---------------------------------------------------------------------- order


def two(**first: Any) -> tuple[RawObject, RawObject]:
    """LEFT and RIGHT; what is given as a pair goes to one each."""
    values = [{name: value[i] for name, value in first.items()} for i in range(2)]
    return RawObject("1", "a", LEFT, **values[0]), RawObject("2", "b", RIGHT, **values[1])


SEEN_LEFT = {"visible": (LEFT, RIGHT & ~LEFT)}
SEEN_RIGHT = {"visible": (LEFT & ~RIGHT, RIGHT)}


@pytest.mark.parametrize(
    ("objects", "pairs", "layers", "conflict"),
    [
        (two(rank=(1, 2)), (), [0, 1], None),
        (two(rank=(2, 1)), (), [1, 0], None),
        (two(**SEEN_LEFT), (), [0, 1], None),
        (two(**SEEN_RIGHT), (), [1, 0], None),
        (two(rank=(1, 1), **SEEN_RIGHT), (), [1, 0], None),
        (two(rank=(1, 2), group=("g", "h"), **SEEN_RIGHT), (), [1, 0], None),
        (two(rank=(None, 2), **SEEN_RIGHT), (), [1, 0], None),
        (two(), (("2", "1"),), [1, 0], None),
        (two(rank=(1, 2), **SEEN_RIGHT), (), [0, 1], "1 is taken to be in front of 2, but the visible masks say"),
        (two(rank=(1, 2)), (("2", "1"),), [1, 0], "2 is taken to be in front of 1, but the ranks say"),
        (
            two(rank=(1, 2), **SEEN_LEFT),
            (("2", "1"),),
            [1, 0],
            "2 is taken to be in front of 1, but the ranks and the visible masks say the opposite",
        ),
    ],
)
def test_the_stronger_evidence_wins(
    picture: Path, objects: tuple[RawObject, ...], pairs: Any, layers: list[int], conflict: str | None
) -> None:
    scene, defects = assemble(scene_of(picture, *objects, pairs=pairs))
    assert scene is not None and scene.layer_index.tolist() == layers
    assert [defect.code for defect in defects] == (["order-conflict"] if conflict else [])
    if conflict:
        assert conflict in defects[0].words and defects[0].action == "keep"


def test_without_evidence_the_order_is_unknown_and_told(picture: Path) -> None:
    scene, defects = assemble(scene_of(picture, *two()))
    assert scene is not None and scene.order_matrix is not None and not scene.order_matrix.any()
    assert told(defects) == [("warning", "order-unknown", "keep", "1")]
    assert defects[0].words == "nothing says which of 1 and 2 is in front"


def test_a_format_without_order_gives_none(picture: Path) -> None:
    scene, defects = assemble(scene_of(picture, *two(), ordered=False))
    assert scene is not None and scene.order_matrix is None and defects == []


def test_overlaps_that_do_not_count_are_not_told(picture: Path) -> None:
    touching = box(HEIGHT, WIDTH, 11, 13, 20, 30)  # shares one pixel with LEFT
    objects = RawObject("1", "a", LEFT), RawObject("2", "b", touching)
    assert assemble(scene_of(picture, *objects), min_overlap=0.01)[1] == []
    assert [one.code for one in assemble(scene_of(picture, *objects), min_overlap=0.0)[1]] == ["order-unknown"]


def test_circles_are_cut_where_the_scene_cuts_them(picture: Path) -> None:
    masks = [box(HEIGHT, WIDTH, 0, 0, 10, 20), box(HEIGHT, WIDTH, 5, 10, 20, 25), box(HEIGHT, WIDTH, 8, 2, 20, 14)]
    objects = [RawObject(str(i), f"o{i}", mask) for i, mask in enumerate(masks)]
    raw = scene_of(picture, *objects, pairs=(("0", "1"), ("1", "2"), ("2", "0")))
    scene, defects = assemble(raw)
    assert scene is not None and len(scene) == 3
    ((front, behind),) = scene.assignment.cut_edges
    assert told(defects) == [("warning", "order-cycle", "repair", "")]
    assert defects[0].words == (f"the order runs in a circle; for the layers it is cut at {front} in front of {behind}")


def test_stated_pairs_both_ways_are_mutual(picture: Path) -> None:
    raw = scene_of(picture, *two(rank=(1, 2)), pairs=(("1", "2"), ("2", "1")))
    scene, defects = assemble(raw)
    assert (
        scene is not None
        and scene.order_matrix is not None
        and scene.order_matrix.tolist() == [[False, True], [True, False]]
    )
    assert [defect.code for defect in defects] == ["order-cycle"]


def test_pairs_with_unknown_objects_or_oneself_say_nothing() -> None:
    raw = RawScene("p", Path("x.png"), two(), pairs=(("1", "9"), ("9", "2"), ("1", "1"), ("1", "2")))
    told: list[str] = []
    order = infer_order(raw, raw.objects, np.stack([LEFT, RIGHT]), [None, None], lambda *defect: told.append(defect[1]))
    assert order is not None and order.tolist() == [[False, True], [False, False]]
    assert told == ["order-object"]  # of oneself; what names nobody the readers have told


# ---------------------------------------------------------------------- the sequence


class Listed(AnnotatedScenes):
    """Scenes of raw records in a list, each with the reader's own defects."""

    def __init__(self, raws: list[tuple[RawScene, list[Defect]]]) -> None:
        self.raws = raws

    def __len__(self) -> int:
        return len(self.raws)

    def raw(self, index: int) -> tuple[RawScene, list[Defect]]:
        return self.raws[index]


def test_scenes_as_a_sequence(picture: Path) -> None:
    scenes = Listed([(replace(scene_of(picture, RawObject("1", "a", LEFT)), id=str(i)), []) for i in range(3)])
    assert [scene.id for scene in scenes] == ["0", "1", "2"]
    assert scenes[-1].id == "2" and [scene.id for scene in scenes[1:]] == ["1", "2"]
    assert scenes.file_defects() == []
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"scene {index} of 3"):
            scenes[index]


def test_a_refused_picture_says_why(picture: Path, tmp_path: Path) -> None:
    missing = RawScene("gone", tmp_path / "gone.png", ())
    bad_record = [Defect("error", "field", "the image has no name", "refuse", image="p")]
    scenes = Listed([(missing, []), (scene_of(picture), bad_record)])
    with pytest.raises(InputError, match=r"image gone cannot be used: image-missing: there is no file .*--repair OUT"):
        scenes[0]
    with pytest.raises(InputError, match="image p cannot be used: field: the image has no name; mend the file"):
        scenes[1]
    assert scenes.inspect(1) == (None, bad_record)


def test_an_object_that_the_reader_left_out_makes_the_scene_incomplete(picture: Path) -> None:
    defects = [Defect("error", "field", "no mask", "drop", image="p", object="1")]
    scene, told = Listed([(scene_of(picture), defects)]).inspect(0)
    assert scene is not None and not scene.complete and told == defects
