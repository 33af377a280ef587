"""Masks that follow the picture's edges where they are seen, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sas.geometry import Geometry
from sas.io import rle_encode
from sas.pipeline import SASPipeline
from sas.provenance import EnsembleSettings, ModelInfo, Stop
from sas.refine import RefineError, refine, refine_soft
from sas.result import LayeredResult, make_preview

pytest.importorskip("kornia")

SIDE, GRID = 128, 16
CELL = SIDE / GRID
GEOMETRY = Geometry.fit(height=SIDE, width=SIDE, size=GRID, mask_size=GRID)
EMPTY = np.zeros((1, SIDE, SIDE), dtype=bool)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On pictures this small, and beside other work, more threads are many times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def painted(*masks: np.ndarray, noise: int = 0) -> np.ndarray:
    """uint8 (SIDE, SIDE, 3): grey, with masks painted over one another, the first on top."""
    image = np.full((SIDE, SIDE, 3), 90, dtype=np.int64)
    colours = [(230, 40, 40), (30, 60, 220), (20, 200, 60)]
    for mask, colour in reversed(list(zip(masks, colours, strict=False))):
        image[mask] = colour
    image += np.random.default_rng(0).integers(-noise, noise + 1, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def brought_back(*masks: np.ndarray) -> np.ndarray:
    """Reduced to the grid and enlarged again, as a model's masks are: float32 (K, SIDE, SIDE)."""
    return GEOMETRY.to_input(GEOMETRY.masks_to_model(np.stack(masks)).astype(np.float32))


def errors(layers: np.ndarray, truth: np.ndarray) -> int:
    return int((layers != truth).sum())


@pytest.mark.parametrize("noise", [0, 6])
def test_a_step_edge_is_found_to_the_pixel(noise: int) -> None:
    left_half = box(0, 0, SIDE, 67)  # the edge lies inside a cell
    coarse = brought_back(left_half)
    assert errors(coarse[0] > 0.5, left_half) >= 2 * SIDE, "bilinear is some columns off"
    assert errors(refine(coarse, painted(left_half, noise=noise), cell=CELL)[0], left_half) == 0


def test_a_disc_comes_back_nearly_whole() -> None:
    y, x = np.mgrid[:SIDE, :SIDE]
    disc = np.hypot(y - 61.3, x - 66.1) < 37.4
    coarse = brought_back(disc)
    assert errors(refine(coarse, painted(disc), cell=CELL)[0], disc) * 8 < errors(coarse[0] > 0.5, disc)


def test_the_visible_part_is_sharp_and_the_hidden_part_is_bilinear() -> None:
    front, behind = box(0, 0, SIDE, 60), box(37, 20, 91, 109)
    coarse = brought_back(front, behind)
    layers = refine(coarse, painted(front, behind), cell=CELL)
    bilinear = coarse > 0.5
    deep = box(0, 0, SIDE, 60 - 2 * 20 - 2)  # farther from the border than two windows
    deeper = box(0, 0, SIDE, 40)
    np.testing.assert_array_equal(layers[1] & deep, bilinear[1] & deep)
    assert (bilinear[1] & deeper).any()
    soft = refine_soft(coarse, painted(front, behind), cell=CELL)
    inner = box(0, 0, SIDE, 17)
    np.testing.assert_allclose(soft[1][inner], coarse[1][inner], atol=1e-5)
    seen = box(0, 60, SIDE, SIDE)
    assert errors(layers[1] & seen, behind & seen) * 8 < errors(bilinear[1] & seen, behind & seen)
    across = layers[1][50:80, 40:80]
    assert across.all(), "no seam where the seen part meets the hidden one"
    np.testing.assert_array_equal(layers[0], front)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 255), st.integers(0, 10_000))
def test_a_plain_image_changes_nothing(grey: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    coarse = GEOMETRY.to_input((random.random((2, GRID, GRID)) < 0.5).astype(np.float32))
    plain = np.full((SIDE, SIDE, 3), grey, dtype=np.uint8)
    np.testing.assert_allclose(refine_soft(coarse, plain, cell=CELL)[0], coarse[0], atol=0.01)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 60), st.integers(1, 60), st.integers(0, 10_000))
def test_any_input_gives_probabilities(count: int, height: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    maps = random.random((count, height, width), dtype=np.float32)
    image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    soft = refine_soft(maps, image, cell=max(height, width) / 16)
    assert soft.shape == maps.shape and soft.dtype == np.float32
    assert soft.min() >= 0 and soft.max() <= 1
    np.testing.assert_array_equal(refine(maps, image, cell=max(height, width) / 16), soft > 0.5)


def test_empty_and_full_masks_stay() -> None:
    image = painted(box(20, 30, 90, 100), noise=20)
    assert not refine(EMPTY, image, cell=CELL).any()
    assert refine(~EMPTY, image, cell=CELL).all()
    assert refine(EMPTY[:0], image, cell=CELL).shape == (0, SIDE, SIDE)
    behind_all = refine(np.concatenate([~EMPTY, box(10, 10, 50, 50)[None]]), image, cell=CELL)
    np.testing.assert_array_equal(behind_all[1], box(10, 10, 50, 50))


def test_a_bool_mask_counts_as_zero_and_one() -> None:
    mask = box(20, 30, 90, 100)[None]
    image = painted(mask[0])
    np.testing.assert_array_equal(refine_soft(mask, image, cell=8), refine_soft(mask.astype(np.float64), image, cell=8))


def test_input_is_not_changed() -> None:
    coarse, image = brought_back(box(20, 30, 90, 100)), painted(box(20, 30, 90, 100))
    before = coarse.copy(), image.copy()
    coarse.flags.writeable = image.flags.writeable = False
    refine(coarse, image, cell=CELL)
    assert (coarse == before[0]).all() and (image == before[1]).all()


def test_large_pictures_are_filtered_on_a_thinned_grid_with_the_same_outcome() -> None:
    """Cells of 20 pixels: a fifth of the pixels in each direction, and the edge still to within a pixel or two."""
    side = 320
    y, x = np.mgrid[:side, :side]
    disc = np.hypot(y - 150.3, x - 166.1) < 97.4
    geometry = Geometry.fit(height=side, width=side, size=GRID, mask_size=GRID)
    coarse = geometry.to_input(geometry.masks_to_model(disc[None]).astype(np.float32))
    image = np.where(disc[..., None], [200, 40, 40], [90, 100, 90]).astype(np.uint8)
    assert errors(refine(coarse, image, cell=20)[0], disc) * 8 < errors(coarse[0] > 0.5, disc)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((SIDE, SIDE, 3))}, r"image must be a uint8 array \(H, W, 3\), got float64: read it"),
        ({"image": "photo.jpg"}, "image must be a uint8 array .* got str"),
        ({"image": np.zeros((SIDE, SIDE), dtype=np.uint8)}, r"image must have shape \(h, w, 3\), got \(128, 128\)"),
        (
            {"probabilities": EMPTY.astype(int)},
            r"probabilities must be a bool or float array .*, got int64: pass values",
        ),
        (
            {"probabilities": EMPTY[:, :16, :16]},
            r"must have shape \(K, 128, 128\) like the image, got \(1, 16, 16\): bring",
        ),
        ({"probabilities": EMPTY[0]}, r"got \(128, 128\): bring them to the image's frame with Geometry\.to_input"),
        ({"probabilities": EMPTY + 1.5}, r"probabilities must lie in \[0, 1\], got \[1\.5, 1\.5\]: apply the sigmoid"),
        ({"probabilities": EMPTY * np.nan}, r"probabilities must lie in \[0, 1\], got \[nan, nan\]"),
        ({"cell": 0}, "cell must be a positive number, got 0: pass the image's side / the grid's side"),
        ({"radius": -1.0}, r"radius must be a positive number, got -1\.0: pass 2\.5"),
        ({"eps": float("inf")}, "eps must be a positive number, got inf: pass 1e-5"),
    ],
)
def test_bad_input_is_named(changes: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"probabilities": EMPTY, "image": painted(), "cell": CELL}
    with pytest.raises(ValueError, match=message):
        refine(**{**good, **changes})  # type: ignore[arg-type]


def test_without_the_library_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, make_tiny_pipe: Callable[..., SASPipeline]
) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "kornia"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kornia", None)  # what Python does for a package that cannot be imported
    message = r'refine needs the package kornia, which is not installed: pip install "kornia>=0.9"'
    with pytest.raises(RefineError, match=message):
        refine(~EMPTY, painted(), cell=CELL)
    with pytest.raises(RefineError, match=message):
        make_tiny_pipe(refine=True)(painted())


# ---------------------------------------------------------------------------------------------------- pipeline and result


def test_the_pipeline_refines_on_demand(make_tiny_pipe: Callable[..., SASPipeline], tmp_path: Path) -> None:
    image = painted(box(20, 30, 90, 100), noise=10)[:100]  # not square
    pipe = make_tiny_pipe(void_area=0.0, max_layers=3)
    plain, sharp = pipe(image), pipe(image, refine=True)
    assert len(plain) and plain.refined is None and sharp.refined is not None
    np.testing.assert_array_equal(plain.masks, sharp.masks)
    expected = refine(plain.geometry.to_input(plain.masks.astype(np.float32)), image, cell=128 / 16)
    np.testing.assert_array_equal(sharp.masks_full(), expected)
    np.testing.assert_array_equal(pipe(image, refine=True, output_type="np"), expected)
    assert (expected != plain.masks_full()).any()

    stored = make_tiny_pipe(void_area=0.0, max_layers=3, refine=True)
    assert stored(image).equals(sharp) and stored(image, refine=False).equals(plain)
    stored.save_pretrained(tmp_path / "pipe")
    assert SASPipeline.from_pretrained(tmp_path / "pipe").config.refine is True
    other = pipe([painted(), image], refine=True)[1]  # each picture of a batch on its own edges
    coarse = other.geometry.to_input(other.masks.astype(np.float32))
    np.testing.assert_array_equal(other.masks_full(), refine(coarse, image, cell=128 / 16))


def make_result(image: np.ndarray, masks: np.ndarray, refined: object) -> LayeredResult:
    height, width = image.shape[:2]
    return LayeredResult(
        preview=make_preview(image),
        geometry=Geometry.fit(height=height, width=width, size=GRID, mask_size=GRID),
        members=masks[:, None],
        masks=masks,
        probability=masks.astype(np.float32),
        uncertainty=np.zeros(masks.shape, dtype=np.float32),
        stop=Stop("empty", votes=1),
        settings=EnsembleSettings(members=1, steps=1, seed=0, consensus="mean", mode="diffusion"),
        model=ModelInfo(id="tiny", sha256=""),
        refined=refined,  # type: ignore[arg-type]
    )


@pytest.fixture
def two_objects() -> tuple[LayeredResult, np.ndarray]:
    """One layer with two objects, whose refined mask spreads a little past their cells; and a layer behind."""
    left, right, behind = box(20, 11, 60, 43), box(70, 77, 101, 117), box(30, 30, 90, 90)
    layers = np.stack([left | right, behind])
    grid = GEOMETRY.masks_to_model(layers)
    return make_result(painted(left | right, behind), grid, [rle_encode(mask) for mask in layers]), layers


def test_everything_of_a_result_follows_the_refined_masks(two_objects: tuple[LayeredResult, np.ndarray]) -> None:
    result, layers = two_objects
    np.testing.assert_array_equal(result.masks_full(), layers)
    np.testing.assert_array_equal(result[0].mask, layers[0])
    assert [layer.area for layer in result] == layers.sum(axis=(1, 2)).tolist()
    first, second, behind = result.instances
    np.testing.assert_array_equal(first["segmentation"] | second["segmentation"], layers[0])
    assert not (first["segmentation"] & second["segmentation"]).any()
    assert sorted([first["bbox"], second["bbox"]]) == [[11, 20, 32, 40], [77, 70, 40, 31]]
    np.testing.assert_array_equal(behind["segmentation"], layers[1])
    np.testing.assert_array_equal(behind["visible"], layers[1] & ~layers[0])


def test_refined_results_are_saved_and_loaded(two_objects: tuple[LayeredResult, np.ndarray], tmp_path: Path) -> None:
    result, layers = two_objects
    result.save(tmp_path / "result")
    loaded = LayeredResult.load(tmp_path / "result")
    assert loaded.equals(result) and loaded.refined == result.refined
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "result" / "layer_01.png")) > 0, layers[1])
    plain = make_result(painted(), result.masks, None)
    assert not plain.equals(result) and not np.array_equal(plain.overview(), result.overview())
    nothing = make_result(painted(), result.masks[:0], [])
    assert nothing.masks_full().shape == (0, SIDE, SIDE) and nothing.overview().ndim == 3


def test_refined_masks_of_another_picture_are_refused(two_objects: tuple[LayeredResult, np.ndarray]) -> None:
    result, layers = two_objects
    for wrong in ([rle_encode(layers[0])], [rle_encode(mask[:50]) for mask in layers]):
        with pytest.raises(
            ValueError, match=r"refined must hold one run-length code of size \[128, 128\] for each of 2"
        ):
            make_result(painted(), result.masks, wrong)
