"""Composed scenes: pure in their position, and true to the laws of masks, order and layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from sas.data.atlas import Atlas
from sas.data.composer import PRINT_DRAWS, Composer, SceneStyle, layers_front_to_back
from sas.data.degradation import degrade
from sas.data.warp import WARP_DRAWS, Warp
from sas.geometry import PADDING_VALUE, Geometry
from sas.masks import reduce_by_area, union
from sas.order import layers_from_order, significant_order
from sas.scene import Scene
from sas.seeding import Keys

Make = Callable[..., Composer]
PLAIN = SceneStyle(empty=0.0, twins=0.0, letterbox=0.0)
CROWDED = replace(PLAIN, objects=(3, 6), spread=(0.1, 0.4))


@pytest.fixture
def make(tiny_atlas: Atlas, tiny_backgrounds: np.ndarray) -> Make:
    """`make(style, **options)`: a composer of scenes of 16 pixels on a canvas of 32."""

    def build(style: SceneStyle = SceneStyle(), **options: object) -> Composer:
        return Composer(
            tiny_atlas,
            tiny_backgrounds,
            **{"seed": 5, "image_size": 16, "mask_size": 16, "style": style, **options},  # type: ignore[arg-type]
        )

    return build


def identical(a: Scene, b: Scene) -> bool:
    return (
        (a.image == b.image).all()
        and np.array_equal(a.amodal_masks, b.amodal_masks)
        and np.array_equal(a.order_matrix, b.order_matrix)  # type: ignore[arg-type]
        and (a.names, a.id, a.dropped) == (b.names, b.id, b.dropped)
    )


@pytest.mark.parametrize("split", [[[5, 4, 3, 2, 1, 0]], [[0, 1, 2], [3, 4, 5]], [[3], [1, 5], [4], [0, 2]]])
def test_a_scene_depends_on_its_position_alone(make: Make, split: Sequence[Sequence[int]]) -> None:
    composer = make(SceneStyle(twins=0.5))
    whole = composer.scenes(3, range(6))
    torch.manual_seed(len(split))
    for part in split:
        for position, scene in zip(part, composer.scenes(3, part), strict=True):
            assert identical(scene, whole[position])
            assert scene.id == f"5-3-{position}"
    batch, other = composer.batch(3, range(6)), composer.batch(3, [4, 1])
    for row, position in enumerate((4, 1)):
        for name in ("image", "amodal_masks", "counts", "layer_index", "order_matrix", "known"):
            assert torch.equal(getattr(other, name)[row], getattr(batch, name)[position])


def test_step_and_seed_make_other_scenes(make: Make) -> None:
    first = make().scenes(0, range(3))
    assert not any(identical(a, b) for a, b in zip(first, make().scenes(1, range(3)), strict=True))
    other = make(seed=6).scenes(0, range(3))
    assert not any((a.image == b.image).all() for a, b in zip(first, other, strict=True))


def test_number_of_objects_stays_in_its_range(make: Make) -> None:
    scenes = make(replace(PLAIN, objects=(0, 3), min_visible=0.0)).scenes(0, range(60))
    assert {len(scene) + scene.dropped for scene in scenes} == {0, 1, 2, 3}
    assert max(map(len, scenes)) == 3
    for scene in scenes:
        assert scene.visible.any(axis=(1, 2)).all(), "every object shows a pixel"


def test_objects_are_as_large_as_asked_for(make: Make) -> None:
    def longest(scale: tuple[float, float]) -> list[float]:
        style = SceneStyle(objects=(1, 1), empty=0, twins=0, letterbox=0, scale=scale)
        masks = [mask for scene in make(style, image_size=64).scenes(0, range(30)) for mask in scene.amodal_masks]
        return [float(np.ptp(np.argwhere(mask), axis=0).max() + 1) / len(mask) for mask in masks]

    small, large = longest((0.1, 0.2)), longest((0.5, 0.6))
    # Sizes vary by a quarter within a scene, and a sprite that is turned reaches up to its diagonal.
    assert 0.1 <= np.median(small) <= 0.2 and max(small) <= 0.2 * 1.25 * 1.5
    assert 0.4 <= np.median(large) <= 0.6 * 1.25


def heights(scene: Scene) -> list[float]:
    """Where each object's centre lies, from -1 (top) to 1 (bottom)."""
    return [2 * float(np.argwhere(mask)[:, 0].mean() + 0.5) / len(mask) - 1 for mask in scene.amodal_masks]


def test_few_objects_lie_in_the_middle_on_average_however_many_there_might_be(make: Make) -> None:
    style = replace(PLAIN, objects=(1, 6), scale=(0.15, 0.2), spread=(0.7, 0.7), min_visible=0.0)
    scenes = [scene for scene in make(style).scenes(0, range(240)) if 1 <= len(scene) <= 2]
    assert len(scenes) > 60
    assert abs(np.mean([np.mean(heights(scene)) for scene in scenes])) < 0.1, "sorted over all six slots they lie low"


def test_nearer_objects_stand_lower_in_most_scenes(make: Make) -> None:
    style = replace(PLAIN, objects=(2, 6), scale=(0.15, 0.2), min_visible=0.0)
    scenes = make(style).scenes(0, range(120))
    pairs = [(near, far) for scene in scenes for near, far in zip(heights(scene), heights(scene)[1:], strict=False)]
    # On tables (0.6 of scenes) all do, but where the picture's edge cuts them; in heaps (0.4) half of them.
    assert 0.7 < np.mean([near > far for near, far in pairs]) < 0.9


def test_empty_scenes_hold_nothing(make: Make) -> None:
    batch = make(replace(PLAIN, empty=1.0)).batch(0, range(4))
    assert batch.counts.tolist() == [0] * 4 and not batch.amodal_masks.any() and (batch.layer_index == -1).all()
    assert batch.image.flatten(1).std(dim=1).min() > 0, "the background is there"


def test_one_object_at_most(make: Make) -> None:
    batch = make(replace(PLAIN, objects=(1, 1))).batch(0, range(5))
    assert batch.amodal_masks.shape[1] == 1 and batch.layer_index.max() == 0


def test_intra_class_scenes_share_a_group(make: Make) -> None:
    def groups(share: float) -> list[set[str]]:
        return [set(scene.names) for scene in make(replace(CROWDED, intra_class=share)).scenes(0, range(20))]

    alike, mixed = groups(1.0), groups(0.0)
    assert all(len(group) == 1 for group in alike) and len(set.union(*alike)) == 3, "a group has one name here"
    assert sum(len(group) > 1 for group in mixed) > 10


def test_twins_show_the_same_objects_without_the_occluders(make: Make) -> None:
    scenes = make(replace(CROWDED, twins=1.0, noise=0.0)).scenes(0, range(16))
    removed, away = 0, []
    for left, twin in zip(scenes[::2], scenes[1::2], strict=True):
        stays = ~left.occlusion.any(axis=1)
        assert np.array_equal(twin.amodal_masks, left.amodal_masks[stays])
        assert twin.names == tuple(name for name, keep in zip(left.names, stays, strict=True) if keep)
        assert not twin.occlusion.any() and twin.dropped == left.dropped + (~stays).sum()
        removed += int((~stays).sum())
        gone = union(left.amodal_masks[~stays])
        near = functional.max_pool2d(torch.from_numpy(gone)[None].float(), 9, stride=1, padding=4)[0].numpy() > 0
        change = np.abs(left.image.astype(int) - twin.image).mean(axis=-1)
        assert change[gone].sum() > 0 or stays.all()
        away.append(change[~near])
    assert removed > 5
    assert np.concatenate(away).size > 1000 and np.concatenate(away).mean() < 3, "elsewhere only shadows differ"


@pytest.mark.parametrize("style", [CROWDED, replace(CROWDED, twins=1.0, letterbox=1.0)])
def test_visible_part_of_a_layer_is_its_mask_minus_the_cumulative_mask(make: Make, style: SceneStyle) -> None:
    for scene in make(style, min_overlap=0.0).scenes(1, range(12)):
        for k, layer in enumerate(scene.layer_masks):
            seen = union(scene.visible[scene.layer_index == k])
            assert (seen == layer & ~scene.cumulative_masks[k]).all()


def test_objects_come_first_in_depth_order_and_padding_last(make: Make) -> None:
    made = make(CROWDED).compose(0, range(6))
    for b in range(6):
        n = int(made.counts[b])
        assert made.masks[b, :n].any(dim=(-2, -1)).all() and not made.masks[b, n:].any()
        assert not made.order[b, n:].any() and not made.order[b, :, n:].any()
        assert not made.order[b].tril().any(), "the front ones come first"
        assert not (made.order[b] & ~made.overlaps[b]).any()


@pytest.mark.parametrize("min_overlap", [0.0, 0.01, 0.2])
def test_batch_is_the_scenes_reduced_by_area(make: Make, min_overlap: float) -> None:
    composer = make(replace(CROWDED, letterbox=0.5, empty=0.1), min_overlap=min_overlap, mask_size=8)
    positions = range(16)
    batch, scenes = composer.batch(2, positions), composer.scenes(2, positions)
    assert batch.counts.tolist() == [len(scene) for scene in scenes] and batch.ids == tuple(s.id for s in scenes)
    deepest = barred = 0
    for b, scene in enumerate(scenes):
        n = len(scene)
        known = np.ones_like(scene.image[..., 0], dtype=bool) if scene.known is None else scene.known
        reduced = reduce_by_area(scene.amodal_masks, 4, shown=known)
        assert (batch.amodal_masks[b, :n].numpy() == reduced).all() and not batch.amodal_masks[b, n:].any()
        assert scene.order_matrix is not None
        order = significant_order(scene.order_matrix, scene.amodal_masks, min_overlap=min_overlap)
        assert (batch.order_matrix[b, :n, :n].numpy() == order).all()
        assert batch.layer_index[b].tolist() == layers_from_order(order).layer_index.tolist() + [-1] * (6 - n)
        assert (reduce_by_area(known, 4, shown=known) == batch.known[b, 0].numpy()).all()
        barred += scene.known is not None
        image = functional.avg_pool2d(torch.from_numpy(scene.image).permute(2, 0, 1)[None].float(), 2)[0]
        assert (batch.image[b] - (image / 127.5 - 1)).abs().max() < 0.01
        deepest = max(deepest, int(batch.layer_counts[b]))
    assert deepest >= 3 and 0 < barred < 16, "the scenes must have some depth, and some of them bars"


def test_cells_that_bars_cut_are_as_the_sampler_sees_them(make: Make) -> None:
    composer = make(replace(CROWDED, letterbox=1.0), image_size=32, mask_size=8, oversample=1)
    batch, scenes = composer.batch(0, range(16)), composer.scenes(0, range(16))
    cut = 0
    for b, scene in enumerate(scenes):
        known = np.ones((32, 32), dtype=bool) if scene.known is None else scene.known
        rows, columns = known.any(axis=1), known.any(axis=0)
        geometry = Geometry.fit(height=int(rows.sum()), width=int(columns.sum()), size=32, mask_size=8)
        assert (batch.known[b, 0].numpy() == geometry.known()).all()
        masks = scene.amodal_masks[:, rows][:, :, columns]
        assert (batch.amodal_masks[b, : len(scene)].numpy() == geometry.masks_to_model(masks)).all()
        cut += bool((reduce_by_area(known, 4) != batch.known[b, 0].numpy()).any())
    assert cut >= 3, "in some scenes a bar must cover half of a cell or more"


def test_letterbox_bars_are_grey_unknown_and_free_of_objects(make: Make) -> None:
    composer = make(replace(CROWDED, letterbox=1.0))
    batch, made = composer.batch(0, range(12)), composer.compose(0, range(12))
    assert batch.known.shape == (12, 1, 16, 16) and batch.known.dtype == torch.bool
    partly = ~batch.known.flatten(1).all(dim=1)
    assert partly.sum() > 6 and batch.known.flatten(1).any(dim=1).all()
    assert not (made.masks & ~made.frame).any()
    bars = (~made.frame).expand(-1, 3, -1, -1)
    assert (made.image[bars] == torch.tensor(PADDING_VALUE / 255)).all()
    for known in batch.known[:, 0]:
        rows, columns = known.any(dim=1), known.any(dim=0)
        assert torch.equal(known, rows[:, None] & columns[None]), "the known part is a rectangle"
        assert torch.equal(known, known.flip(0)) and torch.equal(known, known.flip(1)), "in the middle"
    assert make(PLAIN).batch(0, range(4)).known.all()


def test_the_front_object_owns_the_pixels_it_covers(tiny_backgrounds: np.ndarray) -> None:
    """Plain sprites of two colours: where a mask is visible, the picture has its object's colour."""
    colours = torch.tensor([[255, 0, 0], [0, 255, 0]], dtype=torch.uint8)
    sprites = torch.zeros(2, 4, 16, 16, dtype=torch.uint8)
    sprites[:, :3] = colours[:, :, None, None]
    sprites[:, 3, 3:-3, 3:-3] = 255
    atlas = Atlas(sprites=sprites, group=torch.tensor([0, 1]), names=("red", "green"))
    style = replace(CROWDED, lighting=0.0, colour=0.0, noise=0.0, intra_class=0.0)
    composer = Composer(atlas, tiny_backgrounds, seed=0, image_size=32, mask_size=32, style=style, min_overlap=0.0)
    seen = set()
    for scene in composer.scenes(0, range(8)):
        for name, mask in zip(scene.names, scene.visible, strict=True):
            inside = functional.max_pool2d(1 - torch.from_numpy(mask)[None].float(), 7, stride=1, padding=3)[0] == 0
            if inside.any():
                own = ("red", "green").index(name)
                pixels = scene.image[inside.numpy()]
                assert pixels[:, own].min() > 60 and np.delete(pixels, own, axis=1).max() <= 1, (
                    "only shadows fall on it"
                )
                seen.add(name)
    assert seen == {"red", "green"}


def test_ranges(make: Make) -> None:
    composer = make(replace(CROWDED, lighting=1.0, colour=1.0, noise=1.0))
    batch = composer.batch(0, range(8))
    assert batch.image.dtype == torch.float32 and batch.image.shape == (8, 3, 16, 16)
    assert batch.image.min() >= -1 and batch.image.max() <= 1
    made = composer.compose(0, range(8)).image
    assert made.min() >= 0 and made.max() <= 1 and made.isfinite().all()
    assert composer.scenes(0, [0])[0].image.shape == (32, 32, 3)


@pytest.mark.parametrize(
    "style",
    [
        SceneStyle(
            objects=(0, 4),
            letterbox=0.5,
            twins=0.5,
            appearance=0.5,
            prints=0.5,
            warps=0.5,
            touching=0.5,
            shades=0.5,
            degradation=0.5,
        ),
        replace(CROWDED, warps=1.0, min_visible=0.3),
        replace(PLAIN, objects=(1, 6), scale=(0.1, 0.9), spread=(0.9, 3.0)),  # some lie partly or wholly outside
    ],
)
def test_windows_of_a_cpu_and_whole_canvases_of_a_gpu_give_the_same_scenes(make: Make, style: SceneStyle) -> None:
    composer = make(style)
    windows = composer.compose(2, range(24))
    assert (windows.dropped > 0).any() and (windows.counts > 1).any()
    composer.one_by_one = False
    whole = composer.compose(2, range(24))
    for name in ("masks", "counts", "overlaps", "order", "frame", "dropped"):
        assert torch.equal(getattr(whole, name), getattr(windows, name)), name
    apart = (whole.image - windows.image).abs()
    packed = apart.amax(dim=(1, 2, 3)) > 1e-5  # as JPEG, by another code there
    assert packed.any() == bool(style.degradation) and packed.sum() < 12
    assert apart.mean() < 0.005


def test_prints_change_the_surface_of_objects_and_nothing_else(make: Make) -> None:
    style = replace(PLAIN, noise=0.0)
    plain, printed = (make(replace(style, prints=share)).compose(1, range(24)) for share in (0.0, 1.0))
    for name in ("masks", "counts", "order"):
        assert torch.equal(getattr(plain, name), getattr(printed, name)), name
    changed = (plain.image - printed.image).abs().amax(dim=1) > 1e-3
    near = (
        functional.max_pool2d(plain.masks.any(dim=1).float(), 5, stride=1, padding=2) > 0
    )  # camera and edges are soft
    assert changed.any() and not (changed & ~near).any()
    some = make(replace(style, prints=0.3, objects=(1, 1))).compose(1, range(60))
    alone = make(replace(style, objects=(1, 1))).compose(1, range(60))
    share = ((some.image - alone.image).abs().amax(dim=(1, 2, 3)) > 1e-3).float().mean()
    assert 0.1 < share < 0.5


def test_a_print_keeps_light_and_shade_and_may_be_a_label(tiny_atlas: Atlas) -> None:
    """On a square, white above and grey below, the background's red appears all over, or on a part with straight edges."""
    red = np.zeros((1, 3, 32, 32), dtype=np.uint8)
    red[:, 0] = 100
    composer = Composer(tiny_atlas, red, seed=0, image_size=16, mask_size=16)
    square = torch.ones(2, 3, 32, 32)
    square[:, :, 16:] = 0.5
    drawn = {name: torch.full((2,), 0.5) for name in PRINT_DRAWS} | {"strength": torch.ones(2)}
    drawn["label"] = torch.tensor([0.0, 1.0])
    whole, label = composer._printed(square, torch.ones(2, 1, 32, 32), drawn)
    assert whole[1:].max() < 1e-6
    torch.testing.assert_close(whole[0, :16] / 2, whole[0, 16:])
    on = label[1] < 0.25
    side = round(0.375 * 32)  # the middle of 0.15 to 0.6
    assert on.sum() == side**2 and on[16 - side // 2 : 16 + side // 2, 16 - side // 2 : 16 + side // 2].all()
    assert torch.equal(label[:, ~on], square[1][:, ~on])


def test_warps_give_objects_other_shapes_and_leave_the_rest(make: Make) -> None:
    style = replace(PLAIN, objects=(1, 1), noise=0.0, spread=(0.0, 0.1))  # nothing is cut off by the picture's edge
    plain, some, warped = (make(replace(style, warps=share)).compose(1, range(60)) for share in (0.0, 0.5, 1.0))
    same = (plain.masks == some.masks).flatten(1).all(dim=1)
    assert 0.3 < same.float().mean() < 0.7, "half of the objects are warped"
    torch.testing.assert_close(some.image[same], plain.image[same], rtol=0, atol=1e-6)
    assert torch.equal(plain.sprite, warped.sprite)
    far = functional.max_pool2d((plain.masks | warped.masks).float(), 15, stride=1, padding=7)[:, 0] == 0
    torch.testing.assert_close(plain.image.amax(1)[far], warped.image.amax(1)[far], rtol=0.1, atol=0.02)
    areas = (warped.masks.sum(dim=(1, 2, 3)) / plain.masks.sum(dim=(1, 2, 3))).float()
    assert areas.median() < 1 and areas.max() < 1.6, "the longer side stays about as it was"


def warp_of(**drawn: float) -> Warp:
    return Warp.drawn({name: torch.tensor([drawn.get(name, 0.5)]) for name in WARP_DRAWS}, 1.0)


def test_a_warp_draws_from_where_its_formula_says() -> None:
    line = torch.linspace(-1, 1, 5)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)[None]
    slot = torch.tensor([0])
    torch.testing.assert_close(warp_of().apply(grid, slot), grid)
    assert torch.equal(Warp.drawn({name: torch.tensor([0.9]) for name in WARP_DRAWS}, 0.5).apply(grid, slot), grid)
    # Where a point of the sprite is drawn to, and back.
    for across in (0.1, 0.9):
        warp = warp_of(across=across, stretch=0.2, bend=1.0, taper=0.0)
        stretch = 2.5**-0.6
        x, y = grid.flip(-1).unbind(-1) if across < 0.5 else grid.unbind(-1)
        to = torch.stack([x * stretch / (1 - 0.4 * y) + 0.35 * (y * y - 1 / 3), y], dim=-1)
        to = to.flip(-1) if across < 0.5 else to
        torch.testing.assert_close(warp.apply(to, slot), grid, rtol=0, atol=1e-6)
        assert (to.abs().amax(dim=(0, 1, 2)) <= warp.reach()[0] + 1e-6).all()
    wide = warp_of(across=0.9, stretch=1.0)
    torch.testing.assert_close(wide.apply(grid, slot), grid * torch.tensor([1.0, 2.5]))
    torch.testing.assert_close(wide.reach(), torch.tensor([[1.0, 0.4]]))


def test_shades_darken_part_of_a_picture_and_are_no_objects(make: Make) -> None:
    style = replace(PLAIN, noise=0.0, lighting=0.0, objects=(1, 3))
    plain, shaded = (make(replace(style, shades=share)).compose(1, range(60)) for share in (0.0, 1.0))
    for name in ("masks", "counts", "order", "sprite"):
        assert torch.equal(getattr(plain, name), getattr(shaded, name)), name
    ratio = (shaded.image.clamp(min=1e-3) / plain.image.clamp(min=1e-3)).mean(dim=1)
    assert ratio.max() < 1 + 1e-3 and 0.35 < ratio.min() < 0.7
    spared = ((ratio - 1).abs() < 0.02).flatten(1).float().mean(dim=1)
    assert ((spared > 0.1) & (spared < 0.9)).float().mean() > 0.3, "a patch, and not the picture"
    inner = -functional.max_pool2d(-plain.masks.any(dim=1).float(), 5, stride=1, padding=2) > 0
    dark = (ratio - 1).abs() > 0.1
    on_objects = torch.stack([(dark & inner)[i].any() for i in range(60)])
    anywhere = dark.flatten(1).any(dim=1)
    assert (on_objects & anywhere).sum() > 8 and (anywhere & ~on_objects).sum() > 15, "half lie behind the objects"
    some = make(replace(style, shades=0.3)).compose(1, range(60))
    assert 0.1 < ((some.image - plain.image).abs().amax(dim=(1, 2, 3)) > 1e-3).float().mean() < 0.5


def test_degradation_changes_pictures_and_no_mask_and_leaves_grey_bars(make: Make) -> None:
    style = replace(PLAIN, objects=(1, 3), letterbox=0.5)
    plain, worse = (make(replace(style, degradation=share)).compose(1, range(24)) for share in (0.0, 1.0))
    for name in ("masks", "counts", "order", "sprite", "frame"):
        assert torch.equal(getattr(plain, name), getattr(worse, name)), name
    away = (worse.image - plain.image).abs()
    assert not (away * ~plain.frame).any() and worse.image.min() >= 0 and worse.image.max() <= 1
    changed = away.amax(dim=(1, 2, 3)) > 1e-3
    assert changed.sum() > 15, "of four ways each is taken by half of the pictures"
    assert ((worse.image - plain.image) * plain.frame).mean().abs() < 0.02, "no darker and no lighter"
    some = make(replace(style, degradation=0.3)).compose(1, range(24))
    kept = (some.image == plain.image).flatten(1).all(dim=1)
    assert 8 < kept.sum() < 24
    alone = make(replace(style, degradation=1.0)).compose(1, [7])
    torch.testing.assert_close(alone.image[0], worse.image[7], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("strength", "check"),
    [
        ((1.0, 0.0, 0.0, 0.0), "blur"),
        ((0.0, 1.0, 0.0, 0.0), "fewer"),
        ((0.0, 0.0, 1.0, 0.0), "noise"),
        ((0.0, 0.0, 0.0, 1.0), "jpeg"),
    ],
)
def test_each_way_of_degradation(monkeypatch: pytest.MonkeyPatch, strength: tuple[float, ...], check: str) -> None:
    keys = Keys(0, 0, (0,))
    drawn = torch.tensor([[0.0, *(0.5 + 0.5 * value for value in strength)]])
    monkeypatch.setattr(Keys, "uniform", lambda self, *_: drawn)
    side = 40  # no multiple of the blocks of a JPEG
    image = torch.full((1, 3, side, side), 0.25)
    image[..., side // 2 :] = 0.75
    made = degrade(image.clone(), keys, share=1.0)
    edge = made[0, :, side // 2, side // 2 - 1 : side // 2 + 1]
    if check in ("blur", "fewer"):
        assert (edge[:, 0] > 0.26).all() and (edge[:, 1] < 0.74).all(), "the edge is soft"
        torch.testing.assert_close(made[..., :8], image[..., :8], rtol=0, atol=1e-3)
        torch.testing.assert_close(made.mean(), image.mean(), rtol=0, atol=1e-3)
    elif check == "noise":
        noise = made - image
        assert 0.07 < noise.std() < 0.09 and abs(noise.mean()) < 0.01
        assert not torch.allclose(noise[:, 0], noise[:, 1], atol=0.05), "each colour has its own"
    else:
        assert 0 < (made - image).abs().max() < 0.2 and (made - image).std() < 0.05
    monkeypatch.undo()
    assert degrade(image, keys, share=0.0) is image


def test_pictures_degraded_together_are_those_degraded_one_by_one(make: Make) -> None:
    image = make(replace(PLAIN, objects=(1, 3))).compose(1, range(24)).image
    keys = Keys.span(0, 0, 0, len(image))
    alone, together = (degrade(image.clone(), keys, share=0.7, one_by_one=one_by_one) for one_by_one in (True, False))
    kept = (alone == image).flatten(1).all(dim=1)
    assert 4 < kept.sum() < 16 and torch.equal(alone[kept], together[kept])
    apart = (alone - together).abs().mean(dim=(1, 2, 3))
    packed = apart > 1e-5
    assert 2 < packed.sum() < 14, "all but JPEG is the same"
    changed = (alone - image).abs().mean(dim=(1, 2, 3))
    assert (apart[packed] < 0.5 * changed[packed]).all(), "and JPEG nearly so"
    nothing = image.clone()
    assert degrade(nothing, keys, share=0.0, one_by_one=False) is nothing and torch.equal(nothing, image)


def test_hardly_visible_objects_are_left_out(make: Make) -> None:
    style = replace(CROWDED, min_visible=0.5)
    scenes = make(style, min_overlap=0.0).scenes(0, range(20))
    for scene in scenes:
        share = scene.visible.sum(axis=(1, 2)) / scene.amodal_masks.sum(axis=(1, 2))
        assert (share >= 0.5).all()
    assert sum(scene.dropped for scene in scenes) > 5


def test_objects_that_cover_no_cell_of_the_mask_grid_are_left_out(make: Make) -> None:
    style = replace(PLAIN, objects=(2, 5), scale=(0.06, 0.2), min_visible=0.0)
    fine, coarse = make(style, mask_size=16), make(style, mask_size=4)
    batch = coarse.batch(0, range(30))
    assert batch.amodal_masks.flatten(2).any(dim=2).sum(dim=1).equal(batch.counts), "none is empty"
    assert batch.counts.sum() < fine.batch(0, range(30)).counts.sum()


def test_layers_front_to_back_agrees_with_the_general_rule() -> None:
    order = torch.rand(50, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.4
    order = order.triu(1)
    counts = torch.arange(50) % 7
    inside = torch.arange(6)[None] < counts[:, None]
    order &= inside[:, :, None] & inside[:, None, :]
    result = layers_front_to_back(order, counts)
    for b in range(50):
        n = int(counts[b])
        expected = layers_from_order(order[b, :n, :n].numpy()).layer_index.tolist()
        assert result[b].tolist() == expected + [-1] * (6 - n)


def test_bad_settings_are_named(make: Make) -> None:
    with pytest.raises(
        ValueError, match="mask_size must divide the canvas of image_size x oversample = 32, got 12: choose"
    ):
        make(mask_size=12)
    for objects in ((2, 1), (-1, 2), (0, 0)):
        with pytest.raises(
            ValueError, match=r"objects must be \(fewest, most\) with 0 <= fewest <= most and most >= 1, got"
        ):
            make(replace(PLAIN, objects=objects))
