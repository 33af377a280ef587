"""Pictures of every kind through `sample_files`: what is read, and that results lie in the frame that a viewer shows."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import ExifTags, Image

import sas
from sas.pictures import read_image
from sas.pipeline import SASPipeline
from sas.result import LayeredResult
from sas.sampling import Outcome, sample_files

SCHEMA = json.loads((Path(sas.__file__).parent / "result.schema.json").read_text())
Take = Callable[[Path], LayeredResult]


@pytest.fixture
def take(tiny_pipe: SASPipeline, tmp_path: Path) -> Take:
    """`take(file)`: the result that was written, after a look at every file of its folder."""

    def call(file: Path) -> LayeredResult:
        outcome = one_by_one(tiny_pipe, [file], tmp_path / "out", ensemble_size=2, num_inference_steps=1, max_layers=2)[
            0
        ]
        assert outcome.error == "" and outcome.folder is not None
        result = LayeredResult.load(outcome.folder)
        assert result == outcome.result
        check_folder(outcome.folder, result)
        return result

    return call


def one_by_one(*given: Any, **options: Any) -> list[Outcome]:
    """What `sample_files` tells of each file, with its result."""
    told: list[Outcome] = []
    sample_files(*given, on_done=told.append, **options)
    return told


def check_folder(folder: Path, result: LayeredResult) -> None:
    """result.json follows its schema, and all pictures have the size of the input."""
    document = json.loads((folder / "result.json").read_text())
    Draft202012Validator(SCHEMA).validate(document)
    size = (document["image"]["width"], document["image"]["height"])
    assert size == (result.geometry.width, result.geometry.height)
    assert len(document["layers"]) == len(result) > 0
    maps = [layer[kind] for layer in document["layers"] for kind in ("mask", "probability", "uncertainty")]
    for name in [*maps, "uncertainty.png"]:
        with Image.open(folder / name) as picture:
            assert (picture.size, picture.mode) == (size, "L"), name
    for k, layer in enumerate(document["layers"]):
        with Image.open(folder / layer["mask"]) as picture:
            np.testing.assert_array_equal(np.asarray(picture), result[k].mask * np.uint8(255))
    for one in document["instances"]:
        assert one["segmentation"]["size"] == one["visible"]["size"] == [size[1], size[0]]


def drawing(result: LayeredResult) -> list[Any]:
    return [result.members.tolist(), result.probability.tolist()]


def pixels(height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def size(result: LayeredResult) -> tuple[int, int]:
    return result.geometry.height, result.geometry.width


# ---------------------------------------------------------------------- kinds of pictures


def test_grey_is_read_as_equal_channels(take: Take, tmp_path: Path) -> None:
    grey = pixels()[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.repeat(grey[..., None], 3, axis=-1)).save(tmp_path / "colour.png")
    assert drawing(take(tmp_path / "grey.png")) == drawing(take(tmp_path / "colour.png"))


def test_black_and_white_is_read(take: Take, tmp_path: Path) -> None:
    Image.fromarray(pixels()[..., 0] > 127).save(tmp_path / "bits.png")
    Image.fromarray((pixels()[..., 0] > 127).astype(np.uint8) * 255).save(tmp_path / "grey.png")
    assert drawing(take(tmp_path / "bits.png")) == drawing(take(tmp_path / "grey.png"))


def test_palette_is_read_by_its_colours(take: Take, tmp_path: Path) -> None:
    palette = Image.fromarray(pixels()).quantize(16)
    palette.save(tmp_path / "palette.png")
    palette.convert("RGB").save(tmp_path / "colour.png")
    with Image.open(tmp_path / "palette.png") as read:
        assert read.mode == "P"
    assert drawing(take(tmp_path / "palette.png")) == drawing(take(tmp_path / "colour.png"))


def test_alpha_is_laid_on_white(take: Take, tmp_path: Path) -> None:
    rgba = np.dstack([pixels(), np.full((20, 30), 255, dtype=np.uint8)])
    rgba[:10, :, 3] = 0
    on_white = pixels()
    on_white[:10] = 255
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    Image.fromarray(on_white).save(tmp_path / "white.png")
    result = take(tmp_path / "alpha.png")
    assert drawing(result) == drawing(take(tmp_path / "white.png"))
    np.testing.assert_array_equal(result.preview, on_white)


def test_cmyk_is_read(take: Take, tmp_path: Path) -> None:
    flat = np.full((20, 30, 3), (200, 40, 90), dtype=np.uint8)
    Image.fromarray(flat).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    with Image.open(tmp_path / "cmyk.jpg") as read:
        assert read.mode == "CMYK"
    result = take(tmp_path / "cmyk.jpg")
    assert size(result) == (20, 30)
    np.testing.assert_allclose(result.preview.astype(int), flat, atol=3)


def test_sixteen_bits_are_scaled_and_not_cut(take: Take, tmp_path: Path) -> None:
    grey = pixels()[..., 0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    with Image.open(tmp_path / "deep.png") as read:
        assert read.mode.startswith("I;16") or read.mode == "I"
    assert drawing(take(tmp_path / "deep.png")) == drawing(take(tmp_path / "grey.png"))


def test_twelve_bits_of_a_tiff_are_scaled_by_their_own_range(tmp_path: Path) -> None:
    """Written by hand, since Pillow reads such files and writes none: one row of black, grey, grey, white."""
    strip = bytes.fromhex("000800800fff")
    tags = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(strip)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    (tmp_path / "deep.tif").write_bytes(
        struct.pack("<2sHI", b"II", 42, 8 + len(strip)) + strip + struct.pack("<H", len(tags)) + directory + bytes(4)
    )
    with Image.open(tmp_path / "deep.tif") as read:
        assert read.mode.startswith("I;16")
    assert read_image(tmp_path / "deep.tif")[..., 0].tolist() == [[0, 128, 128, 255]]


def test_exif_rotation_is_applied_before_all_else(take: Take, tmp_path: Path) -> None:
    """Orientation 6: a phone held upright. Masks are in the frame that viewers show, with the sides exchanged."""
    stored = pixels()
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = 6
    Image.fromarray(stored).save(tmp_path / "phone.png", exif=tags)
    shown = np.ascontiguousarray(np.rot90(stored, k=-1))
    Image.fromarray(shown).save(tmp_path / "upright.png")
    with Image.open(tmp_path / "phone.png") as read:
        assert read.size == (30, 20)
    result = take(tmp_path / "phone.png")
    assert size(result) == (30, 20) == shown.shape[:2]
    assert result.masks_full().shape[1:] == (30, 20)
    np.testing.assert_array_equal(result.preview, shown)
    assert drawing(result) == drawing(take(tmp_path / "upright.png"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_has_its_frame(take: Take, tmp_path: Path, orientation: int) -> None:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels()).save(tmp_path / "phone.jpg", exif=tags)
    assert size(take(tmp_path / "phone.jpg")) == ((20, 30) if orientation <= 4 else (30, 20))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"])
def test_formats(take: Take, tmp_path: Path, suffix: str) -> None:
    Image.fromarray(pixels()).save(tmp_path / f"picture{suffix}")
    result = take(tmp_path / f"picture{suffix}")
    assert (size(result), result.file) == ((20, 30), f"picture{suffix}")


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize(("height", "width"), [(1, 1), (900, 3), (3, 900), (1, 2), (16, 16), (17, 15)])
def test_sizes(take: Take, tmp_path: Path, height: int, width: int) -> None:
    Image.fromarray(pixels(height, width)).save(tmp_path / "odd.png")
    assert size(take(tmp_path / "odd.png")) == (height, width)


@pytest.mark.slow
def test_large_photograph(take: Take, tmp_path: Path) -> None:
    Image.fromarray(pixels(30, 50)).resize((5000, 3000)).save(tmp_path / "large.jpg")
    result = take(tmp_path / "large.jpg")
    assert size(result) == (3000, 5000)
    assert max(result.preview.shape) == 1024


def test_pictures_of_many_kinds_together(tiny_pipe: SASPipeline, tmp_path: Path) -> None:
    """One call of the network for pictures of different frames; each result is that of the picture alone."""
    Image.fromarray(pixels(9, 31)).save(tmp_path / "wide.png")
    Image.fromarray(pixels(31, 9)[..., 0]).save(tmp_path / "tall.png")
    Image.fromarray(pixels(1, 1)).save(tmp_path / "dot.png")
    files = [tmp_path / f"{name}.png" for name in ("wide", "tall", "dot")]
    options: dict[str, Any] = {"ensemble_size": 2, "num_inference_steps": 1, "max_layers": 1}
    together = one_by_one(tiny_pipe, files, tmp_path / "together", **options)
    for file, outcome in zip(files, together, strict=True):
        (alone,) = one_by_one(tiny_pipe, [file], tmp_path / "alone", **options)
        assert outcome.result is not None and alone.result is not None
        assert outcome.result.geometry == alone.result.geometry
        np.testing.assert_allclose(outcome.result.probability, alone.result.probability, atol=1e-5)


# ---------------------------------------------------------------------- real photographs


@pytest.mark.parametrize("place", ["photos", "amodal/cocoa", "amodal/d2sa"])
@pytest.mark.slow
def test_sample_photographs(tiny_pipe: SASPipeline, samples: Path, tmp_path: Path, place: str) -> None:
    files = sorted(f for f in (samples / place).rglob("*") if f.suffix.lower() in (".jpg", ".png", ".webp"))
    assert files
    outcomes = one_by_one(tiny_pipe, files, tmp_path / "out", ensemble_size=1, num_inference_steps=1, max_layers=2)
    assert [outcome.error for outcome in outcomes] == [""] * len(files)
    for outcome in outcomes:
        assert outcome.folder is not None and outcome.result is not None
        check_folder(outcome.folder, outcome.result)
