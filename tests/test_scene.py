"""Ground truth: the laws between masks, order and layers; padded batches; real annotated photographs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from sas.geometry import Geometry
from sas.io import rle_decode
from sas.masks import union, visible
from sas.pictures import read_image
from sas.scene import Scene, SceneBatch, collate

COMMON = settings(max_examples=60, deadline=None)


def make_scene(masks: np.ndarray, order: np.ndarray | None, **more: Any) -> Scene:
    return Scene(image=np.zeros((*masks.shape[1:], 3), dtype=np.uint8), amodal_masks=masks, order_matrix=order, **more)


@st.composite
def stacked_scenes(draw: st.DrawFn, *, least: int = 0) -> Scene:
    """Objects in a heap: whoever comes earlier in some permutation lies in front; empty masks and one pixel included."""
    count = draw(st.integers(least, 6))
    masks = draw(hnp.arrays(bool, (count, draw(st.integers(1, 6)), draw(st.integers(1, 6)))))
    depth = np.array(draw(st.permutations(range(count))), dtype=np.int64)
    return make_scene(masks, depth[:, None] < depth[None, :], min_overlap=0.0)


@COMMON
@given(stacked_scenes())
def test_visible_part_of_a_layer_is_its_mask_minus_the_cumulative_mask(scene: Scene) -> None:
    layers, before = scene.layer_masks, scene.cumulative_masks
    assert len(before) == len(layers) + 1 and not before[0].any()
    assert scene.assignment.cut_edges == ()
    for k, layer in enumerate(layers):
        assert (union(scene.visible[scene.layer_index == k]) == layer & ~before[k]).all()
    assert (before[-1] == union(scene.amodal_masks)).all()


@COMMON
@given(stacked_scenes())
def test_visible_parts_tile_what_is_covered(scene: Scene) -> None:
    assert (scene.visible.sum(axis=0) == union(scene.amodal_masks)).all()


@COMMON
@given(stacked_scenes())
def test_objects_of_one_layer_are_disjoint_and_each_deeper_one_is_occluded_from_the_layer_before(scene: Scene) -> None:
    for k in range(len(scene.layer_masks)):
        members = np.flatnonzero(scene.layer_index == k)
        assert scene.amodal_masks[members].sum(axis=0).max(initial=0) <= 1
        for j in members:
            fronts = scene.layer_index[scene.occlusion[:, j]]
            assert fronts.max(initial=-1) == k - 1


@COMMON
@given(stacked_scenes())
def test_drop_invisible_keeps_the_picture_and_counts(scene: Scene) -> None:
    dropped = scene.drop_invisible()
    assert dropped.dropped == len(scene) - len(dropped)
    assert (dropped.visible.any(axis=(1, 2))).all()
    assert (union(dropped.visible) == union(scene.visible)).all()
    assert dropped.drop_invisible() is dropped


def test_layers_of_the_tiny_scene(tiny_scene: Scene) -> None:
    assert len(tiny_scene) == 4 and (tiny_scene.height, tiny_scene.width) == (20, 30)
    assert tiny_scene.layer_index.tolist() == [0, 1, 2, 0]
    assert tiny_scene.layer_masks.sum(axis=(1, 2)).tolist() == [64 + 48, 64, 64]
    assert tiny_scene.cumulative_masks.sum(axis=(1, 2)).tolist() == [0, 112, 112 + 64 - 16, 112 + 2 * 48]
    assert tiny_scene.visible.sum(axis=(1, 2)).tolist() == [64, 48, 48, 48]


def test_a_cycle_is_cut_where_least_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    masks = np.zeros((2, 4, 6), dtype=bool)
    masks[0, :, :4], masks[1, :, 2:] = True, True
    seen = masks.copy()
    seen[1, 0, 2:4] = False  # of the eight shared pixels object 0 is seen on two, object 1 on six
    seen[0, 1:, 2:4] = False
    scene = make_scene(masks, ~np.eye(2, dtype=bool), visible_masks=seen, id="knot")
    with caplog.at_level("INFO", logger="sas"):
        assert scene.layer_index.tolist() == [1, 0]
    assert scene.assignment.cut_edges == ((0, 1),)
    assert "scene knot: cut 1 edges of cycles: ((0, 1),)" in caplog.text


def test_given_visible_masks_are_kept() -> None:
    masks = np.ones((2, 3, 3), dtype=bool)
    seen = np.stack([np.eye(3, dtype=bool), ~np.eye(3, dtype=bool)])
    assert (make_scene(masks, np.triu(masks[0], 1)[:2, :2], visible_masks=seen).visible == seen).all()


def test_drop_invisible_takes_everything_of_an_object_along(caplog: pytest.LogCaptureFixture) -> None:
    masks = np.zeros((3, 4, 4), dtype=bool)
    masks[0, :3], masks[1, 1:2], masks[2, 2:] = True, True, True
    order = np.triu(np.ones((3, 3), dtype=bool), k=1)
    scene = make_scene(masks, order, names=("a", "b", "c"), alternatives=(masks | True,), id="heap", dropped=2)
    with caplog.at_level("INFO", logger="sas"):
        kept = scene.drop_invisible()
    assert kept.names == ("a", "c") and kept.dropped == 3 and kept.order_matrix is not None
    assert kept.order_matrix.tolist() == [[False, True], [False, False]]
    assert kept.alternatives[0].shape == (2, 4, 4)
    assert kept.layer_index.tolist() == [0, 1]
    assert "scene heap: dropped 1 objects without a visible pixel" in caplog.text
    seen = visible(masks, order)
    by_mask = make_scene(masks, None, visible_masks=seen).drop_invisible()
    assert len(by_mask) == 2 and by_mask.order_matrix is None


def test_unknown_order_has_no_layers() -> None:
    scene = make_scene(np.ones((1, 2, 2), dtype=bool), None, id="photo")
    for ask in ("layer_index", "layer_masks", "visible", "occlusion"):
        with pytest.raises(
            ValueError, match="order_matrix of scene 'photo' is unknown, so it has no layers: use order-free"
        ):
            getattr(scene, ask)
    assert scene.drop_invisible() is scene


def test_no_object_and_one_pixel() -> None:
    empty = make_scene(np.zeros((0, 3, 5), dtype=bool), np.zeros((0, 0), dtype=bool))
    assert empty.layer_masks.shape == (0, 3, 5) and empty.cumulative_masks.shape == (1, 3, 5)
    assert empty.names == () and empty.drop_invisible() is empty
    one = make_scene(np.ones((1, 1, 1), dtype=bool), np.zeros((1, 1), dtype=bool))
    assert one.layer_masks.tolist() == [[[True]]] and one.names == ("object 0",)


def test_bad_input_is_named() -> None:
    masks, order = np.zeros((2, 3, 4), dtype=bool), np.zeros((2, 2), dtype=bool)
    with pytest.raises(ValueError, match=r"image must be uint8 RGB, got float64: multiply"):
        Scene(image=np.zeros((3, 4, 3)), amodal_masks=masks, order_matrix=order)
    with pytest.raises(ValueError, match=r"image must have shape \(h, w, 3\), got \(3, 4\)"):
        Scene(image=np.zeros((3, 4), dtype=np.uint8), amodal_masks=masks, order_matrix=order)
    with pytest.raises(ValueError, match="amodal_masks must be a bool mask, got uint8"):
        make_scene(masks.astype(np.uint8), order)
    with pytest.raises(ValueError, match=r"amodal_masks must have shape \(n, h, w\) with h=3, w=4, got \(2, 4, 3\)"):
        Scene(image=np.zeros((3, 4, 3), dtype=np.uint8), amodal_masks=masks.transpose(0, 2, 1), order_matrix=order)
    with pytest.raises(ValueError, match=r"order_matrix must have shape \(n, m\) with n=2, m=2, got \(3, 3\)"):
        make_scene(masks, np.zeros((3, 3), dtype=bool))
    with pytest.raises(ValueError, match="visible_masks must have shape"):
        make_scene(masks, order, visible_masks=masks[:1])
    with pytest.raises(ValueError, match="alternatives must have shape"):
        make_scene(masks, order, alternatives=(masks[:, :2],))
    with pytest.raises(ValueError, match="names must have one entry for each of 2 objects, got 1"):
        make_scene(masks, order, names=("a",))


# ---------------------------------------------------------------------- batches


def test_collate_pads_and_keeps_full_size_layers(tiny_scene: Scene) -> None:
    empty = make_scene(np.zeros((0, 8, 8), dtype=bool), np.zeros((0, 0), dtype=bool), id="empty")
    batch = collate([tiny_scene, empty], image_size=32, mask_size=16)
    assert batch.image.shape == (2, 3, 32, 32) and batch.amodal_masks.shape == (2, 4, 16, 16) and len(batch) == 2
    assert batch.counts.tolist() == [4, 0] and batch.ids == ("tiny", "empty")
    assert batch.layer_index.tolist() == [[0, 1, 2, 0], [-1] * 4]
    assert batch.layer_counts.tolist() == [3, 0]
    assert (batch.order_matrix[0].numpy() == tiny_scene.occlusion).all() and not batch.order_matrix[1].any()
    geometry = Geometry.fit(height=20, width=30, size=32, mask_size=16)
    assert torch.equal(batch.image[0], geometry.to_model(tiny_scene.image))
    assert (batch.amodal_masks[0].numpy() == geometry.masks_to_model(tiny_scene.amodal_masks)).all()
    assert (batch.known[0, 0].numpy() == geometry.known()).all() and batch.known[1].all()
    assert batch.alternatives is None


def test_batch_layers_are_unions_padded_with_empty_ones(tiny_scene: Scene) -> None:
    first_two = replace(
        tiny_scene, amodal_masks=tiny_scene.amodal_masks[:2], order_matrix=tiny_scene.occlusion[:2, :2], names=()
    )
    batch = collate([tiny_scene, first_two], image_size=16, mask_size=16)
    layers = batch.layers()
    assert layers.shape == (2, 3, 16, 16) and layers.dtype == torch.bool
    assert torch.equal(layers[0, 0], batch.amodal_masks[0, 0] | batch.amodal_masks[0, 3])
    assert torch.equal(layers[1, 1], batch.amodal_masks[1, 1])
    assert not layers[1, 2].any()
    moved = batch.to("cpu")
    assert torch.equal(moved.image, batch.image) and moved.ids == batch.ids


def test_batch_of_empty_scenes_has_no_layer() -> None:
    empty = make_scene(np.zeros((0, 8, 8), dtype=bool), np.zeros((0, 0), dtype=bool))
    batch = collate([empty, empty], image_size=8, mask_size=8)
    assert batch.layers().shape == (2, 0, 8, 8) and batch.layer_counts.tolist() == [0, 0]


def test_objects_that_cover_no_cell_are_left_out_with_their_layer() -> None:
    """A pole of one pixel in front of a box: on the grid the box is the first layer, and no layer is empty."""
    masks = np.zeros((2, 64, 64), dtype=bool)
    masks[0, 5:60, 20], masks[1, 10:40, 10:40] = True, True
    scene = make_scene(masks, np.array([[False, True], [False, False]]), names=("pole", "box"), min_overlap=0.0)
    assert scene.layer_index.tolist() == [0, 1]
    batch = collate([scene], image_size=16, mask_size=16)
    assert (
        batch.counts.tolist() == [1] and batch.layer_index.tolist() == [[0]] and batch.layers()[0].any(dim=(1, 2)).all()
    )
    assert collate([scene], image_size=64, mask_size=64).counts.tolist() == [2]


def test_alternatives_are_all_true_answers(tiny_scene: Scene) -> None:
    other = tiny_scene.amodal_masks | np.roll(tiny_scene.amodal_masks, 1, axis=2)
    batch = collate([replace(tiny_scene, alternatives=(other,)), tiny_scene], image_size=16, mask_size=16)
    assert batch.alternatives is not None and batch.alternatives.shape == (2, 1, 4, 16, 16)
    geometry = Geometry.fit(height=20, width=30, size=16, mask_size=16)
    assert (batch.alternatives[0, 0].numpy() == geometry.masks_to_model(other)).all()
    assert torch.equal(batch.alternatives[1, 0], batch.amodal_masks[1])


def test_collate_and_batch_refuse_what_does_not_fit(tiny_scene: Scene) -> None:
    with pytest.raises(ValueError, match="scenes must hold at least one scene, got none"):
        collate([], image_size=8, mask_size=8)
    batch = collate([tiny_scene], image_size=8, mask_size=8)
    with pytest.raises(ValueError, match=r"layer_index must have shape \(b, n\) with b=1, n=4, got \(1, 3\)"):
        SceneBatch(**{**vars(batch), "layer_index": batch.layer_index[:, :3]})
    with pytest.raises(ValueError, match=r"known must have shape \(b, 1, h, w\)"):
        SceneBatch(**{**vars(batch), "known": batch.known[:, 0]})


# ---------------------------------------------------------------------- annotated photographs


def read_cocoa(folder: Path, number: int, *, min_overlap: float = 0.01) -> Scene:
    """Scene of one COCOA annotation: amodal polygons, a smaller `order` lies in front; stuff regions are objects like others."""
    image = read_image(folder / f"{number}.jpg")
    regions = json.loads((folder / f"{number}.json").read_text())["regions"]
    height, width = image.shape[:2]
    masks, seen = [], []
    for region in regions:
        polygons = coco_mask.frPyObjects([region["segmentation"]], height, width)
        rle = coco_mask.merge(polygons)
        masks.append(rle_decode({"size": rle["size"], "counts": rle["counts"].decode()}))
        seen.append(rle_decode(region["visible_mask"]) if "visible_mask" in region else masks[-1])
    depth = np.array([region["order"] for region in regions])
    return Scene(
        image=image,
        amodal_masks=np.stack(masks),
        order_matrix=depth[:, None] < depth[None, :],
        visible_masks=np.stack(seen),
        names=tuple(region["name"].strip() for region in regions),
        id=f"cocoa-{number}",
        min_overlap=min_overlap,
    )


@pytest.mark.parametrize(("number", "layers"), [(1, [1, 1]), (2, [6, 2, 1, 1, 1]), (3, [12, 2, 4, 1])])
def test_layers_of_real_photographs(samples: Path, number: int, layers: list[int]) -> None:
    scene = read_cocoa(samples / "amodal" / "cocoa", number)
    assert np.bincount(scene.layer_index).tolist() == layers
    assert len(scene) == sum(layers), "stuff regions are kept"
    assert scene.assignment.cut_edges == ()


def test_any_overlap_at_all_gives_deeper_layers(samples: Path) -> None:
    scene = read_cocoa(samples / "amodal" / "cocoa", 3, min_overlap=0.0)
    assert np.bincount(scene.layer_index).tolist() == [9, 2, 2, 3, 2, 1]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_annotated_visible_parts_agree_with_the_order(samples: Path, number: int) -> None:
    """They are drawn by hand, and still nearly equal what amodal masks and order say."""
    scene = read_cocoa(samples / "amodal" / "cocoa", number)
    assert scene.order_matrix is not None
    computed = visible(scene.amodal_masks, scene.order_matrix)
    shared, joined = (computed & scene.visible).sum(axis=(1, 2)), (computed | scene.visible).sum(axis=(1, 2))
    assert (shared / np.maximum(joined, 1)).mean() > 0.97
