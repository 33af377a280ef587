"""The one place that resizes: letterboxing, and the way back into the input's frame."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sas.geometry import PADDING_VALUE, Geometry

COMMON = settings(max_examples=60, deadline=None)
SIDES = st.integers(1, 90)


def test_landscape_is_centred_between_bars() -> None:
    geometry = Geometry.fit(height=10, width=40, size=16, mask_size=8)
    assert (geometry.scaled_height, geometry.scaled_width) == (4, 16)
    assert (geometry.top, geometry.left) == (6, 0)
    upright = Geometry.fit(height=40, width=10, size=16, mask_size=8)
    assert (upright.top, upright.left, upright.scaled_height, upright.scaled_width) == (0, 6, 16, 4)


@COMMON
@given(SIDES, SIDES, st.sampled_from([8, 16, 33]))
def test_the_rectangle_lies_inside_and_the_longer_side_fills(height: int, width: int, size: int) -> None:
    geometry = Geometry.fit(height=height, width=width, size=size, mask_size=size)
    assert max(geometry.scaled_height, geometry.scaled_width) == size
    assert geometry.scaled_height >= 1 and geometry.scaled_width >= 1
    for start, length in ((geometry.top, geometry.scaled_height), (geometry.left, geometry.scaled_width)):
        assert start >= 0 and start + length <= size
        assert abs(start - (size - start - length)) <= 1, "the bars are equal but for an odd pixel"


def test_image_range_and_padding() -> None:
    image = np.zeros((4, 8, 3), dtype=np.uint8)
    image[..., 0] = 255
    result = Geometry.fit(height=4, width=8, size=8, mask_size=8).to_model(image)
    assert result.shape == (3, 8, 8) and result.dtype == torch.float32
    assert (result[0, 2:6] == 1).all() and (result[1:, 2:6] == -1).all()
    grey = PADDING_VALUE / 127.5 - 1
    assert result[:, :2].allclose(torch.tensor(grey)) and result[:, 6:].allclose(torch.tensor(grey))
    assert abs(grey) < 0.01, "padding is mid grey"


@COMMON
@given(SIDES, SIDES)
def test_a_plain_image_stays_plain(height: int, width: int) -> None:
    geometry = Geometry.fit(height=height, width=width, size=16, mask_size=16)
    result = geometry.to_model(np.full((height, width, 3), 200, dtype=np.uint8))
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[
        geometry.top : geometry.top + geometry.scaled_height, geometry.left : geometry.left + geometry.scaled_width
    ] = True
    assert result[:, inside].allclose(torch.tensor(200 / 127.5 - 1))
    assert result[:, ~inside].allclose(torch.tensor(PADDING_VALUE / 127.5 - 1))


def test_image_of_the_models_size_is_not_resampled() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    result = Geometry.fit(height=16, width=16, size=16, mask_size=16).to_model(image)
    assert (((result + 1) * 127.5).round().byte().permute(1, 2, 0).numpy() == image).all()


@COMMON
@given(SIDES, SIDES, st.sampled_from([4, 8, 16]))
def test_full_and_empty_masks_survive_both_ways(height: int, width: int, mask_size: int) -> None:
    geometry = Geometry.fit(height=height, width=width, size=16, mask_size=mask_size)
    full = np.ones((1, height, width), dtype=bool)
    assert geometry.to_input(np.ones((1, mask_size, mask_size), dtype=bool)).all()
    assert not geometry.to_input(np.zeros((1, mask_size, mask_size), dtype=bool)).any()
    assert (geometry.masks_to_model(full)[0] == geometry.known()).all()
    assert not geometry.masks_to_model(~full).any()
    assert geometry.known().any()


@pytest.mark.parametrize("shape", [(16, 16), (20, 31), (64, 40), (200, 150)])
def test_a_mask_comes_back_where_it_was(shape: tuple[int, int]) -> None:
    height, width = shape
    y, x = np.mgrid[:height, :width]
    disc = np.hypot((y - height * 0.6) / height, (x - width * 0.4) / width) < 0.27
    geometry = Geometry.fit(height=height, width=width, size=64, mask_size=64)
    back = geometry.to_input(geometry.masks_to_model(disc[None]))[0]
    assert back.shape == shape and back.dtype == bool
    assert (back & disc).sum() / (back | disc).sum() > 0.9
    for axis in (0, 1):  # no shift: the centre of mass stays
        assert abs(np.argwhere(back).mean(axis=0)[axis] - np.argwhere(disc).mean(axis=0)[axis]) < shape[axis] / 100


def test_the_mask_grid_may_be_coarser_than_the_image() -> None:
    geometry = Geometry.fit(height=8, width=16, size=16, mask_size=4)
    mask = np.zeros((1, 8, 16), dtype=bool)
    mask[0, :4, :8] = True
    expected = np.zeros((4, 4), dtype=bool)
    expected[1, :2] = True
    assert (geometry.masks_to_model(mask)[0] == expected).all()
    assert (geometry.known() == np.array([[False], [True], [True], [False]])).all()


@pytest.mark.parametrize(("height", "width"), [(375, 1242), (427, 640), (1242, 375)])
def test_a_mask_lies_where_the_image_shows_it(height: int, width: int) -> None:
    """Pictures whose bars end within a cell of the mask grid: centres of masks come back to where they were."""
    geometry = Geometry.fit(height=height, width=width, size=256, mask_size=64)
    cell = max(height, width) / 64
    y, x = np.mgrid[:height, :width]
    for row in (0.2, 0.5, 0.8):
        disc = np.hypot(y - row * height, x - 0.4 * width) < 4 * cell
        back = geometry.to_input(geometry.masks_to_model(disc[None]))[0]
        middle, expected = np.argwhere(back).mean(axis=0), np.argwhere(disc).mean(axis=0)
        assert np.abs(middle - expected).max() < 0.25 * cell
        assert (back & disc).sum() / (back | disc).sum() > 0.9


def test_a_cell_at_the_pictures_edge_goes_by_what_it_shows() -> None:
    geometry = Geometry.fit(
        height=10, width=16, size=16, mask_size=4
    )  # rows 3 to 13 of 16: cells 0 and 3 show a quarter
    mask = np.zeros((2, 10, 16), dtype=bool)
    mask[0, :1] = True  # all that cell 0 shows, nothing else
    mask[1, 1:5] = True  # all of cell 1
    assert geometry.masks_to_model(mask).any(axis=2).tolist() == [
        [True, False, False, False],
        [False, True, False, False],
    ]
    assert geometry.known().all()


def test_half_a_cell_is_not_enough() -> None:
    geometry = Geometry.fit(height=4, width=4, size=2, mask_size=2)
    mask = np.zeros((2, 4, 4), dtype=bool)
    mask[0, :1, :2] = True  # 2 of 4 pixels of the first cell
    mask[1, :1, :2] = mask[1, 1, 0] = True  # 3 of 4
    assert geometry.masks_to_model(mask).sum(axis=(1, 2)).tolist() == [0, 1]


def test_maps_come_back_as_they_were_given() -> None:
    geometry = Geometry.fit(height=5, width=9, size=8, mask_size=8)
    soft = geometry.to_input(torch.full((2, 3, 8, 8), 0.25))
    assert soft.shape == (2, 3, 5, 9) and soft.dtype == np.float32
    np.testing.assert_allclose(soft, 0.25)
    assert geometry.to_input(torch.zeros(0, 8, 8, dtype=torch.bool)).shape == (0, 5, 9)
    assert geometry.masks_to_model(np.zeros((0, 5, 9), dtype=bool)).shape == (0, 8, 8)
    assert geometry.to_input(torch.zeros(8, 8)).shape == (5, 9)


def test_a_ramp_comes_back_as_a_ramp() -> None:
    ramp = torch.linspace(0, 1, 16).repeat(16, 1)
    back = Geometry.fit(height=40, width=40, size=16, mask_size=16).to_input(ramp)
    assert (np.diff(back, axis=1) >= 0).all() and back.min() >= 0 and back.max() <= 1
    assert np.abs(back - np.clip((np.arange(40) + 0.5) / 40 * 16 / 15 - 0.5 / 15, 0, 1)).max() < 1e-5


def test_extreme_shapes_keep_one_pixel() -> None:
    geometry = Geometry.fit(height=1, width=1000, size=16, mask_size=4)
    assert geometry.scaled_height == 1 and geometry.known().any()
    assert Geometry.fit(height=1, width=1, size=16, mask_size=16).known().all()


def test_record_is_plain_json() -> None:
    geometry = Geometry.fit(height=5, width=9, size=8, mask_size=8)
    assert Geometry(**json.loads(json.dumps(geometry.to_dict()))) == geometry
    assert geometry.to_dict() == asdict(geometry)


def test_bad_input_is_named() -> None:
    geometry = Geometry.fit(height=5, width=9, size=8, mask_size=4)
    with pytest.raises(ValueError, match="width must be at least 1 pixel, got 0"):
        Geometry.fit(height=5, width=0, size=8, mask_size=8)
    with pytest.raises(
        ValueError, match=r"image must be uint8 of shape \(5, 9, 3\), got uint8 \(9, 5, 3\): make a Geometry"
    ):
        geometry.to_model(np.zeros((9, 5, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="got float64"):
        geometry.to_model(np.zeros((5, 9, 3)))
    with pytest.raises(ValueError, match=r"maps must end in \(4, 4\), got \(1, 8, 8\): pass maps"):
        geometry.to_input(torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match=r"masks must end in \(5, 9\), got \(1, 9, 5\)"):
        geometry.masks_to_model(np.zeros((1, 9, 5), dtype=bool))


@pytest.mark.parametrize(("height", "width"), [(2250, 3000), (3000, 2250), (30, 40), (100, 300)])
def test_bars_beside_the_picture_do_not_fade_its_edges(height: int, width: int) -> None:
    geometry = Geometry.fit(height=height, width=width, size=64, mask_size=64)
    shown = geometry.known()
    assert not shown.all()
    full = geometry.to_input(shown.astype(np.float32))
    assert full.shape == (height, width) and full.min() > 0.999999
    mask = np.zeros((1, height, width), dtype=bool)
    if width > height:  # a stripe on lines of the grid, from bar to bar
        mask[:, :, width // 4 : 3 * width // 4] = True
    else:
        mask[:, height // 4 : 3 * height // 4] = True
    assert np.array_equal(geometry.to_input(geometry.masks_to_model(mask)), mask)


@COMMON
@given(st.integers(1, 15), st.integers(1, 15), st.randoms(use_true_random=False))
def test_small_pictures_get_what_most_of_a_pixel_shows(height: int, width: int, random: object) -> None:
    """Where a pixel has several cells, maps come back as the mean of them, as `masks_to_model` takes the mean of pixels."""
    geometry = Geometry.fit(height=height, width=width, size=64, mask_size=16)
    drawn = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    masks = drawn.random((2, height, width)) > 0.5
    if max(height, width) <= 8:  # two cells and more a pixel, so none is decided by another
        assert (geometry.to_input(geometry.masks_to_model(masks)) == masks).all() or min(height, width) * 16 < max(
            height, width
        )
    plain = geometry.to_input(np.full((16, 16), 0.25, dtype=np.float32))
    assert plain.shape == (height, width) and np.allclose(plain, 0.25, atol=1e-6)


def test_a_pixel_of_many_cells_goes_by_their_majority() -> None:
    geometry = Geometry.fit(height=2, width=2, size=64, mask_size=64)
    mask = np.zeros((64, 64), dtype=bool)
    mask[:32, :32] = True
    mask[12:20, 12:20] = False  # the middle of the first pixel
    mask[44:52, 44:52] = True  # that of the last
    assert geometry.to_input(mask).tolist() == [[True, False], [False, False]]
    assert geometry.to_input(mask.astype(np.float32))[0, 0] == pytest.approx(1 - 64 / 1024)
