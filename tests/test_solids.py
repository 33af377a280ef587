"""Rendered solids and backgrounds: shapes, purity, honest alpha, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from sas.data.backgrounds import load_backgrounds, render_backgrounds
from sas.data.solids import FAMILIES, render_solids
from sas.io import InputError

SIZE = 32
MARGIN = 2


@pytest.mark.parametrize("family", FAMILIES)
def test_sprite_is_one_trimmed_object(family: str) -> None:
    sprites = render_solids(family, seed=5, count=2, size=SIZE)
    assert sprites.shape == (2, 4, SIZE, SIZE) and sprites.dtype == np.uint8
    for alpha in sprites[:, 3]:
        assert 0.03 < (alpha > 127).mean() < 0.97
        assert alpha.max() == 255
        assert 0 < ((alpha > 0) & (alpha < 255)).sum() < alpha.size / 2  # the edge is soft, the rest solid
        assert ndimage.label(alpha > 0, structure=np.ones((3, 3)))[1] == 1
        rows, columns = (np.flatnonzero((alpha > 0).any(axis=axis)) for axis in (1, 0))
        margins = rows[0], SIZE - 1 - rows[-1], columns[0], SIZE - 1 - columns[-1]
        assert min(margins) >= 1, "the object must not be cut off"
        assert max(np.ptp(rows), np.ptp(columns)) + 1 >= SIZE - 2 * MARGIN - 2, "the longer side must fill the square"


@pytest.mark.parametrize("family", FAMILIES)
def test_instances_differ_and_do_not_depend_on_count_or_global_state(family: str) -> None:
    torch.manual_seed(0)
    three = render_solids(family, seed=1, count=3, size=16)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert (render_solids(family, seed=1, count=1, size=16) == three[:1]).all()
    assert (torch.get_rng_state() == state).all()
    assert (three[0] != three[1]).any() and (three[1] != three[2]).any()


def test_seed_decides_the_look() -> None:
    first, second = (render_solids("vase", seed=seed, count=1, size=SIZE) for seed in (0, 1))
    assert (first != second).any()


def test_instances_of_a_class_are_more_alike_than_classes() -> None:
    def tone(seed: int) -> np.ndarray:
        sprites = render_solids("superquadric", seed=seed, count=2, size=SIZE).astype(float)
        weight = sprites[:, 3:] / sprites[:, 3:].sum(axis=(2, 3), keepdims=True)
        return (sprites[:, :3] * weight).sum(axis=(2, 3))

    tones = np.stack([tone(seed) for seed in range(6)])
    within = np.abs(tones[:, 0] - tones[:, 1]).mean()
    across = np.abs(tones[:, 0] - np.roll(tones[:, 0], 1, axis=0)).mean()
    assert within < across / 2


@pytest.mark.parametrize("seed", range(3))
def test_ring_has_a_hole(seed: int) -> None:
    for alpha in render_solids("ring", seed=seed, count=3, size=64)[:, 3]:
        filled = ndimage.binary_fill_holes(alpha > 127)
        if (filled & (alpha == 0)).sum() > 20:
            return
    pytest.fail("no view shows the hole")


def test_colours_go_on_under_transparent_pixels() -> None:
    sprite = render_solids("lumpy", seed=2, count=1, size=SIZE)[0].astype(int)
    rgb, alpha = sprite[:3], sprite[3]
    edge = ndimage.binary_dilation(alpha > 0) & (alpha == 0)
    near = np.stack([ndimage.uniform_filter(np.where(alpha > 0, c, 0).astype(float), 3) for c in rgb])
    weight = ndimage.uniform_filter((alpha > 0).astype(float), 3)
    assert np.abs(rgb - near / np.maximum(weight, 0.01))[:, edge].mean() < 15
    assert rgb[:, alpha == 0].sum(axis=0).min() > 0


def test_objects_are_shaded() -> None:
    """A plain surface under a light from above on the left is brighter there."""
    sprites = [render_solids("superquadric", seed=seed, count=3, size=SIZE).astype(float) for seed in range(4)]
    lit, dark = [], []
    for sprite in np.concatenate(sprites):
        inside = ndimage.binary_erosion(sprite[3] == 255, iterations=3)
        brightness = sprite[:3].mean(axis=0)
        y, x = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
        lit.append(brightness[inside & (x + y < -0.2)].mean())
        dark.append(brightness[inside & (x + y > 0.2)].mean())
    assert np.mean(lit) > 1.3 * np.mean(dark)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "vaze"}, r"family must be one of vase, .*got 'vaze': did you mean 'vase'\?"),
        ({"family": "zzz"}, r"got 'zzz': choose one of these"),
        ({"size": 15}, "size must be at least 16 pixels, got 15"),
        ({"count": 0}, "count must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    given = {"family": "vase", "seed": 0, "count": 1, "size": 16} | arguments
    family = given.pop("family")
    with pytest.raises(ValueError, match=message):
        render_solids(family, **given)  # type: ignore[arg-type]


def test_backgrounds_vary_and_are_pure() -> None:
    many = render_backgrounds(seed=3, count=24, size=48)
    assert many.shape == (24, 3, 48, 48) and many.dtype == np.uint8
    assert len({picture.tobytes() for picture in many}) == 24
    means = many.mean(axis=(2, 3))
    assert means.std(axis=0).min() > 15 and means.min() > 5 and means.max() < 253
    assert (render_backgrounds(seed=3, count=2, size=48) == many[:2]).all()
    assert (render_backgrounds(seed=4, count=2, size=48) != many[:2]).any()


@pytest.mark.parametrize("size", [16, 17, 129])
def test_backgrounds_of_any_size(size: int) -> None:
    assert render_backgrounds(seed=0, count=30, size=size).shape == (30, 3, size, size)


def test_background_errors() -> None:
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        render_backgrounds(seed=0, count=0)
    with pytest.raises(ValueError, match="size must be at least 16 pixels, got 8"):
        render_backgrounds(seed=0, count=1, size=8)


def test_load_backgrounds(tmp_path: Path) -> None:
    """Sorted by name, cut to the middle, turned upright, subfolders and other files passed over."""
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, :20], wide[:, 20:40], wide[:, 40:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    Image.fromarray(wide).save(tmp_path / "b.PNG")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    half = np.zeros((32, 32, 3), dtype=np.uint8)
    half[:16] = 255
    Image.fromarray(half).save(tmp_path / "a.jpg", exif=exif, quality=95)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "below").mkdir()
    Image.fromarray(half).save(tmp_path / "below" / "c.png")
    loaded = load_backgrounds(tmp_path, size=16)
    assert loaded.shape == (2, 3, 16, 16) and loaded.dtype == np.uint8
    assert loaded[0, :, :, 12:].min() > 200 and loaded[0, :, :, :4].max() < 50  # the white half is on the right now
    assert (loaded[1, :, 4:12, 4:12] == np.array([0, 255, 0])[:, None, None]).all()


def test_load_backgrounds_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}.* holds no image"):
        load_backgrounds(tmp_path, size=16)
    with pytest.raises(InputError, match="must be a folder, found nothing"):
        load_backgrounds(tmp_path / "absent", size=16)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    with pytest.raises(InputError, match=r"broken\.png"):
        load_backgrounds(tmp_path, size=16)
    with pytest.raises(ValueError, match="size must be at least 1 pixel, got 0"):
        load_backgrounds(tmp_path, size=0)
