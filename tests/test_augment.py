"""Augmentation: image and masks move together, the truth stays true, and the same key gives the same scene."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sas.data.augment import Augmentation, augment, inner_size
from sas.data.source import SceneLoader
from sas.masks import area, layer_masks
from sas.scene import Scene, SceneBatch
from sas.seeding import Keys

COMMON = settings(max_examples=40, deadline=None)
NOTHING = Augmentation.of(0)
ALWAYS = Augmentation(flip=1, rotation=1, crop=1, colour=1, blur=1, noise=1, jpeg=1)
GEOMETRY = replace(NOTHING, flip=0.5, rotation=1, degrees=40, crop=1, crop_side=0.3)
MASKS = ("amodal_masks", "visible_masks", "known", "order_matrix")


def make_scene(
    seed: int, *, count: int = 3, shape: tuple[int, int] = (21, 34), order: bool = True, given_visible: bool = False
) -> Scene:
    """Boxes, front to back, painted in their own colours: pixel and mask can be held against each other."""
    random = np.random.default_rng(seed)
    height, width = shape
    masks = np.zeros((count, height, width), dtype=bool)
    image = np.zeros((height, width, 3), dtype=np.uint8)
    for i in reversed(range(count)):
        top, left = random.integers(0, height), random.integers(0, width)
        masks[i, top : top + random.integers(1, height + 1), left : left + random.integers(1, width + 1)] = True
        image[masks[i]] = 60 + 40 * i
    covered = np.cumsum(masks, axis=0) - masks > 0
    return Scene(
        image=image,
        amodal_masks=masks,
        order_matrix=np.triu(np.ones((count, count), dtype=bool), 1) if order else None,
        visible_masks=masks & ~covered if given_visible else None,
        alternatives=(masks.copy(),),
        known=random.random(shape) < 0.9,
        id=f"scene{seed}",
    )


def same(a: Scene, b: Scene) -> bool:
    if a.names != b.names or a.dropped != b.dropped or not np.array_equal(a.image, b.image):
        return False
    if not all(np.array_equal(x, y) for x, y in zip(a.alternatives, b.alternatives, strict=True)):
        return False
    pairs = [(getattr(a, name), getattr(b, name)) for name in MASKS]
    return all((x is None and y is None) or np.array_equal(x, y) for x, y in pairs)


SCENES = st.builds(
    make_scene,
    st.integers(0, 1000),
    count=st.integers(0, 4),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    order=st.booleans(),
    given_visible=st.booleans(),
)


@COMMON
@given(SCENES, st.integers(0, 2**31))
def test_what_holds_between_masks_holds_afterwards(scene: Scene, key: int) -> None:
    made = augment(scene, ALWAYS, key)
    assert made.image.dtype == np.uint8 and made.image.shape[:2] == made.amodal_masks.shape[1:]
    assert made.height >= 1 and made.width >= 1
    assert set(made.names) <= set(scene.names)
    np.testing.assert_array_equal(made.alternatives[0], made.amodal_masks)
    if scene.order_matrix is None and scene.visible_masks is None:
        assert (area(made.amodal_masks) > 0).all()
        return
    assert (area(made.visible) > 0).all(), "what shows no pixel is dropped"
    assert len(made) + made.dropped == len(scene)
    assert not (made.visible & ~made.amodal_masks).any()
    assert (made.visible.sum(axis=0) <= 1).all(), "a pixel shows one object"
    if scene.order_matrix is not None:
        assert made.order_matrix is not None and made.order_matrix.shape == (len(made), len(made))
        kept = [scene.names.index(name) for name in made.names]
        np.testing.assert_array_equal(made.order_matrix, scene.order_matrix[np.ix_(kept, kept)])
        fresh = Scene(
            image=made.image,
            amodal_masks=made.amodal_masks,
            order_matrix=made.order_matrix,
            visible_masks=made.visible_masks,
        )
        np.testing.assert_array_equal(made.layer_masks, layer_masks(made.amodal_masks, fresh.layer_index))
        np.testing.assert_array_equal(made.layer_masks, fresh.layer_masks)


@COMMON
@given(SCENES, st.integers(0, 2**31))
def test_masks_stay_on_their_pixels(scene: Scene, key: int) -> None:
    """The objects are painted in their own colours, so the moved picture must agree with the moved masks, off the outlines."""
    made = augment(replace(scene, known=None), GEOMETRY, key)
    if scene.order_matrix is None:
        return
    for mask, name in zip(made.visible, made.names, strict=True):
        inside = np.pad(mask, 2)
        inner = np.logical_and.reduce([np.roll(inside, (dy, dx), (0, 1)) for dy in range(-2, 3) for dx in range(-2, 3)])
        assert (np.abs(made.image[inner[2:-2, 2:-2]].astype(int) - 60 - 40 * scene.names.index(name)) <= 1).all()


def test_strength_zero_changes_nothing_and_one_is_the_default() -> None:
    scene = make_scene(1).drop_invisible()
    assert all(same(augment(scene, NOTHING, key), scene) for key in range(20))
    assert Augmentation.of(1) == Augmentation()
    half = Augmentation.of(0.5)
    assert half.flip == 0.25 and half.degrees == 7.5 and half.crop_side == 0.8 and half.jpeg_quality == 68


def test_flipping_twice_gives_the_scene_back() -> None:
    flip = replace(NOTHING, flip=1)
    scene = make_scene(2, given_visible=True).drop_invisible()
    once = augment(scene, flip, 0)
    assert not same(once, scene)
    np.testing.assert_array_equal(once.image, scene.image[:, ::-1])
    np.testing.assert_array_equal(once.amodal_masks, scene.amodal_masks[..., ::-1])
    np.testing.assert_array_equal(once.known, scene.known[:, ::-1])
    assert same(augment(once, flip, 1), scene)


def test_a_crop_is_the_scene_of_cropped_masks() -> None:
    crop = replace(NOTHING, crop=1, crop_side=0.4)
    sizes = set()
    for key in range(30):
        scene = make_scene(key, count=4)
        # A ramp in the image says where the crop was taken.
        rows, columns = np.mgrid[: scene.height, : scene.width]
        ramp = np.stack([rows, columns, rows * 0], axis=-1).astype(np.uint8)
        scene = replace(scene, image=ramp)
        made = augment(scene, crop, key)
        top, left, _ = made.image[0, 0].tolist()
        window = (slice(top, top + made.height), slice(left, left + made.width))
        np.testing.assert_array_equal(made.image, ramp[window])
        built = Scene(
            image=ramp[window],
            amodal_masks=scene.amodal_masks[:, *window],
            order_matrix=scene.order_matrix,
            alternatives=tuple(a[:, *window] for a in scene.alternatives),
            known=scene.known[window],
        ).drop_invisible()
        assert same(made, built)
        np.testing.assert_array_equal(made.layer_index, built.layer_index)
        assert made.height >= round(0.4 * scene.height) and made.width >= round(0.4 * scene.width)
        sizes.add((made.height, made.width))
    assert len(sizes) > 10


def test_an_occluder_that_is_cut_away_leaves_its_object_in_front() -> None:
    masks = np.zeros((2, 4, 40), dtype=bool)
    masks[0, :, :2] = masks[1] = True
    scene = Scene(
        image=np.zeros((4, 40, 3), dtype=np.uint8), amodal_masks=masks, order_matrix=np.triu(np.ones((2, 2), bool), 1)
    )
    assert scene.layer_index.tolist() == [0, 1]
    versions = [augment(scene, replace(NOTHING, crop=1, crop_side=0.1), key) for key in range(30)]
    alone = [made for made in versions if made.names == ("object 1",)]
    assert alone and len(alone) < 30
    assert all(made.layer_index.tolist() == [0] and made.dropped == 1 for made in alone)


@COMMON
@given(st.integers(1, 90), st.integers(1, 90), st.floats(-45, 45))
def test_the_inner_rectangle_shows_no_unknown_pixel_and_is_the_largest(height: int, width: int, degrees: float) -> None:
    h, w = inner_size(height, width, degrees)
    sin, cos = abs(math.sin(math.radians(degrees))), abs(math.cos(math.radians(degrees)))

    def fits(h: float, w: float, slack: float) -> bool:
        return w * cos + h * sin <= width + slack and w * sin + h * cos <= height + slack

    assert fits(h - 1, w - 1, 1e-6), "all pixel centres lie inside"
    if min(h, w) > 1:
        assert fits(h, w, 1e-6)
    grid = np.linspace(0.01, max(height, width), 400)
    best = max(
        a * min((width - a * sin) / cos, (height - a * cos) / sin if sin > 1e-9 else math.inf)
        for a in grid
        if a * sin <= width and a * cos <= height
    )
    assert (h + 1) * (w + 1) >= best * 0.98, "rounding down costs less than a row and a column"


def test_rotation_by_nothing_changes_nothing_and_a_turn_shows_no_fill() -> None:
    scene = make_scene(3).drop_invisible()
    assert same(augment(scene, replace(NOTHING, rotation=1, degrees=0), 5), scene)
    white = replace(scene, image=np.full_like(scene.image, 255), known=np.ones_like(scene.known))
    for key in range(40):
        made = augment(white, replace(NOTHING, rotation=1, degrees=45), key)
        assert (made.image == 255).all() and made.known is not None and made.known.all()
        assert made.height < white.height or made.width < white.width


@pytest.mark.parametrize("change", ["colour", "blur", "noise", "jpeg"])
def test_what_changes_colours_leaves_masks_alone(change: str) -> None:
    scene = make_scene(4, given_visible=True).drop_invisible()
    made = augment(scene, replace(ALWAYS, **dict.fromkeys(_others(change), 0.0), blur_radius=0.1), 7)
    assert not np.array_equal(made.image, scene.image)
    assert same(replace(made, image=scene.image), scene)
    assert made.image.dtype == np.uint8 and made.image.shape == scene.image.shape


def _others(change: str) -> list[str]:
    return [f for f in ("flip", "rotation", "crop", "colour", "blur", "noise", "jpeg") if f != change]


def test_noise_has_the_strength_that_was_asked_for() -> None:
    grey = replace(make_scene(5, count=0), image=np.full((21, 34, 3), 128, dtype=np.uint8))
    levels = [augment(grey, replace(NOTHING, noise=1, noise_level=0.1), k).image.std() / 255 for k in range(200)]
    assert max(levels) < 0.11 and 0.04 < np.mean(levels) < 0.06 and min(levels) < 0.01


def test_a_key_names_one_version() -> None:
    scene = make_scene(6)
    assert same(augment(scene, ALWAYS, 1), augment(scene, ALWAYS, 1))
    assert same(augment(scene, ALWAYS, 1), augment(scene, ALWAYS, Keys(1, 0, (0,))))
    versions = [augment(scene, ALWAYS, key).image.tobytes() for key in range(20)]
    assert len(set(versions)) == 20
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - that nobody draws from it is what is tested
    augment(scene, ALWAYS, 2)
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_a_new_knob_leaves_the_other_draws_alone() -> None:
    scene = make_scene(7)
    crop = replace(NOTHING, crop=1)
    assert augment(scene, crop, 3).image.shape == augment(scene, replace(crop, colour=1, noise=1), 3).image.shape


def test_probabilities_are_kept() -> None:
    scene = make_scene(8, count=1, shape=(3, 5))
    flip = replace(NOTHING, flip=0.3)
    scene = replace(scene, image=np.arange(45, dtype=np.uint8).reshape(3, 5, 3))
    share = np.mean([augment(scene, flip, key).image[0, 0, 0] != 0 for key in range(500)])
    assert 0.24 < share < 0.36


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (2, 2)])
@pytest.mark.parametrize("count", [0, 2])
def test_the_smallest_pictures(shape: tuple[int, int], count: int) -> None:
    for key in range(20):
        made = augment(make_scene(key, count=count, shape=shape), ALWAYS, key)
        assert made.height >= 1 and made.width >= 1 and made.image.shape[2] == 3


def test_without_an_order_only_absent_objects_are_dropped() -> None:
    masks = np.zeros((3, 4, 40), dtype=bool)
    masks[0, :, :2] = masks[1] = masks[2] = True
    scene = Scene(image=np.zeros((4, 40, 3), dtype=np.uint8), amodal_masks=masks, order_matrix=None)
    versions = [augment(scene, replace(NOTHING, crop=1, crop_side=0.1), key) for key in range(30)]
    assert {made.names for made in versions} == {("object 0", "object 1", "object 2"), ("object 1", "object 2")}
    assert all(made.order_matrix is None and made.visible_masks is None for made in versions)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": 1.5}, r"flip must be a number from 0 to 1, got 1\.5: pass a probability"),
        ({"degrees": 90}, "degrees must be a number from 0 to 45, got 90: pass the largest angle"),
        ({"crop_side": 0.0}, r"crop_side must be a number from 1e-06 to 1, got 0\.0: pass the share"),
        ({"colour_change": 1.0}, r"colour_change must be .* got 1\.0: pass 0\.3"),
        ({"blur_radius": -1}, "blur_radius must be a number from 0 to 0.1, got -1: pass a share"),
        ({"noise_level": float("nan")}, "noise_level must be a number from 0 to 1, got nan"),
        ({"noise": "much"}, "noise must be a number from 0 to 1, got 'much'"),
        ({"jpeg": True}, "jpeg must be a number from 0 to 1, got True"),
        ({"jpeg_quality": 96}, "jpeg_quality must be a number from 1 to 95, got 96: pass the lowest quality"),
        ({"jpeg_quality": 50.5}, r"jpeg_quality must be a whole number, got 50\.5: round it"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**settings)  # type: ignore[arg-type]


def test_bad_strength_and_key_are_named() -> None:
    with pytest.raises(ValueError, match="strength must be a number from 0 to 1, got 2: pass 0 for no augmentation"):
        Augmentation.of(2)
    with pytest.raises(ValueError, match=r"key must name one scene, got 2 positions: pass keys\.at"):
        augment(make_scene(0), ALWAYS, Keys(0, 0, (1, 2)))


def test_every_field_is_explained() -> None:
    words = Augmentation.__doc__ or ""
    assert [f.name for f in fields(Augmentation) if f"{f.name}" not in words] == []


# ------------------------------------------------------------------------------------------------------------ the loader


def make_loader(**options: object) -> SceneLoader:
    scenes = [make_scene(number, count=number % 3) for number in range(5)]
    fixed = {"seed": 3, "batch_size": 4, "image_size": 16, "mask_size": 16, "augmentation": ALWAYS}
    return SceneLoader(scenes, **{**fixed, **options})  # type: ignore[arg-type]


def pictures(batch: SceneBatch) -> list[tuple[str, bytes]]:
    return [(name, image.numpy().tobytes()) for name, image in zip(batch.ids, batch.image, strict=True)]


def test_the_loader_shows_another_version_each_epoch() -> None:
    loader = make_loader()
    seen = [
        pair for step in range(5) for pair in pictures(loader.batch(step, range(4)))
    ]  # 20 places: four epochs of five
    assert all(
        sorted(name for name, _ in seen[start : start + 5]) == [f"scene{i}" for i in range(5)] for start in (0, 5, 10)
    )
    assert len(set(seen)) == 20, "no version comes twice"
    plain = [pair for step in range(5) for pair in pictures(make_loader(augmentation=None).batch(step, range(4)))]
    assert len(set(plain)) == 5 and not set(plain) & set(seen)
    assert [name for name, _ in plain] == [name for name, _ in seen], "which scenes come does not change"


@pytest.mark.parametrize("options", [{}, {"shuffle": False}])
def test_a_batch_depends_on_its_place_alone(options: dict[str, object]) -> None:
    straight = [make_loader(**options).batch(step, range(4)) for step in range(4)]
    loader = make_loader(**options)
    for step in (3, 0, 2):
        assert pictures(loader.batch(step, range(4))) == pictures(straight[step])
    assert pictures(loader.batch(1, [2, 0])) == [pictures(straight[1])[2], pictures(straight[1])[0]]
