"""Pictures come in as they look, bad input is told with its cure, and what goes out is whole or not there."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import subprocess
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco_mask

from sas.io import (
    InputError,
    OpenFile,
    atomic_folder,
    atomic_write_bytes,
    put_back,
    read_json,
    rle_decode,
    rle_encode,
    write_json,
)
from sas.pictures import IMAGE_SUFFIXES, find_images, read_image, read_mask, sha256_pixels, write_mask, write_unit_map

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
NOBODY = 65534
FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=17))


def quarters(height: int = 32, width: int = 48) -> np.ndarray:
    """Red and green above blue and yellow; sides even."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2], image[: height // 2, width // 2 :] = RED, GREEN
    image[height // 2 :, : width // 2], image[height // 2 :, width // 2 :] = BLUE, YELLOW
    return image


def corners(image: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(int(v) for v in image[y, x]) for y in (0, -1) for x in (0, -1)]


def exif(orientation: object) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def refusal(call, *args, **kwargs) -> str:
    """The message of the InputError: one line, "reason; cure"."""
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    reason, _, cure = message.partition("; ")
    assert len(reason) > 5 and len(cure) > 5, message
    return message


@contextmanager
def without_privileges():
    """Root may do everything: put its rights down, so that permissions bind in the tests too."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def open_tmp(tmp_path: Path) -> Path:
    """tmp_path that users without privileges can reach."""
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)
    return tmp_path


# ---------------------------------------------------------------------- find_images


def test_a_folder_stands_for_its_pictures_by_name(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.TiFf", "notes.txt", "d.gif", "e.webp", "f.bmp", "g.jpeg", "h.tif", "png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "deep.png").touch()
    names = [path.name for path in find_images([tmp_path])]
    assert names == ["a.jpg", "b.PNG", "c.TiFf", "e.webp", "f.bmp", "g.jpeg", "h.tif"]
    assert {Path(name).suffix.lower() for name in names} == set(IMAGE_SUFFIXES)


def test_recursive_sorts_by_the_path_inside_the_folder(tmp_path):
    for name in ("z.png", "a/2.png", "a/1.png", "a-b/0.png", "a/x/0.jpg", "a/readme.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_images([str(tmp_path)], recursive=True)]
    assert found == ["a/1.png", "a/2.png", "a/x/0.jpg", "a-b/0.png", "z.png"]


def test_named_files_are_kept_in_order_whatever_they_are(tmp_path):
    (tmp_path / "one.png").touch()
    named = [tmp_path / "two.xyz", tmp_path / "missing", str(tmp_path / "one.png"), "n" * 5000]
    assert find_images(named) == [Path(item) for item in named]
    assert find_images([]) == []


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    message = refusal(find_images, [tmp_path])
    assert str(tmp_path) in message and ".webp" in message and "recursive=True" in message
    assert "recursive" not in refusal(find_images, [tmp_path], recursive=True)
    assert "['photos']" in refusal(find_images, "photos")


def test_a_folder_that_may_not_be_listed_is_told(open_tmp):
    folder = open_tmp / "shut"
    folder.mkdir()
    folder.chmod(0)
    with without_privileges():
        message = refusal(find_images, [folder])
    folder.chmod(0o755)
    assert f"folder {folder} cannot be listed (Permission denied)" in message


# ---------------------------------------------------------------------- read_image: files


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.webp", {"lossless": True}),
        ("a.bmp", {}),
        ("a.tif", {}),
        ("a.tiff", {"compression": "tiff_lzw"}),
        ("suffix.lies", {"format": "PNG"}),
    ],
)
def test_lossless_files_come_back_exactly(tmp_path, name, options):
    expected = quarters(6, 10)
    Image.fromarray(expected).save(tmp_path / name, **options)
    image = read_image(tmp_path / name)
    assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
    assert (image == expected).all()
    assert (read_image(str(tmp_path / name)) == expected).all()


@pytest.mark.parametrize(("name", "options"), [("a.jpg", {"quality": 95}), ("a.webp", {"quality": 95})])
def test_lossy_files_keep_their_corners(tmp_path, name, options):
    Image.fromarray(quarters()).save(tmp_path / name, **options)
    assert np.abs(np.subtract(corners(read_image(tmp_path / name)), [RED, GREEN, BLUE, YELLOW])).max() <= 12


@pytest.mark.parametrize(("height", "width"), [(1, 1), (900, 3), (3, 900), (3000, 5000)])
def test_extreme_sizes(tmp_path, height, width):
    expected = np.full((height, width, 3), (9, 80, 200), np.uint8)
    expected[0, 0], expected[-1, -1] = RED, BLUE
    Image.fromarray(expected).save(tmp_path / "a.bmp")
    image = read_image(tmp_path / "a.bmp")
    assert image.shape == (height, width, 3) and (image == expected).all()


# Exif 2.32: which visual side the first row and the first column of the stored picture are.
STORED = {
    1: lambda u: u,
    2: lambda u: u[:, ::-1],  # top, right
    3: lambda u: u[::-1, ::-1],  # bottom, right
    4: lambda u: u[::-1],  # bottom, left
    5: lambda u: u.swapaxes(0, 1),  # left, top
    6: lambda u: u[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda u: u[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda u: u[::-1].swapaxes(0, 1),  # left, bottom
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_exif_orientation_sets_the_picture_upright(tmp_path, orientation, suffix):
    upright = quarters()
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95}}.get(suffix, {})
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif(orientation), **options)
    image = read_image(path)
    assert image.shape == upright.shape
    assert np.abs(np.subtract(corners(image), [RED, GREEN, BLUE, YELLOW])).max() <= (12 if suffix == "jpg" else 0)
    with Image.open(path) as opened:
        assert (read_image(opened) == image).all()
    assert read_mask(path).shape == upright.shape[:2]
    assert (read_mask(path)[[0, 0, -1, -1], [0, -1, 0, -1]] == [False, True, False, True]).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK"])
def test_a_tiff_that_pillow_opened_by_name_is_upright_too(tmp_path, mode):
    """Pillow 13 maps an uncompressed one into memory with the sides of the upright picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, {"L": 1}.get(mode, 4)), dtype=np.uint8)
    for orientation in range(1, 9):
        Image.fromarray(pixels.squeeze(), mode).save(tmp_path / "a.tif", exif=exif(orientation))
        with Image.open(tmp_path / "a.tif") as opened:
            found = read_image(opened)
            assert opened.filename == str(tmp_path / "a.tif")
        assert np.array_equal(found, read_image(tmp_path / "a.tif")), orientation


@pytest.mark.parametrize("orientation", [0, 9, 777])
def test_unknown_orientations_leave_the_picture_alone(tmp_path, orientation):
    Image.fromarray(quarters()).save(tmp_path / "a.png", exif=exif(orientation))
    assert corners(read_image(tmp_path / "a.png")) == [RED, GREEN, BLUE, YELLOW]


def test_broken_exif_does_not_cost_the_picture(tmp_path, caplog):
    Image.fromarray(quarters()).save(tmp_path / "a.png", exif=b"Exif\0\0no TIFF header here")
    with caplog.at_level(logging.WARNING, logger="sas.pictures"):
        image = read_image(tmp_path / "a.png")
    assert corners(image) == [RED, GREEN, BLUE, YELLOW]
    assert "EXIF" in caplog.text and "a.png" in caplog.text


def test_grey_one_bit_and_palette(tmp_path):
    grey = np.array([[0, 77, 255]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "l.png")
    assert (read_image(tmp_path / "l.png") == grey[..., None]).all()
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "1.png")
    assert read_image(tmp_path / "1.png").tolist() == [[[255] * 3, [0] * 3]]
    Image.fromarray(quarters(4, 6)).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.png")
    assert corners(read_image(tmp_path / "p.png")) == [RED, GREEN, BLUE, YELLOW]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_alpha_is_composited_on_white(tmp_path, mode, suffix):
    colour = (200, 0, 40) if mode == "RGBA" else (40,)
    pixels = np.array([[(*colour, 255), (*colour, 0), (*colour, 51)]], np.uint8)
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", **options)
    image = read_image(tmp_path / f"a.{suffix}")
    full = np.array(colour * (3 // len(colour)))
    assert (image[0, 0] == full).all()
    assert (image[0, 1] == 255).all(), "the hidden colour shows through"
    assert np.abs(image[0, 2] - (0.2 * full + 0.8 * 255)).max() <= 1


def palette_picture() -> Image.Image:
    indexed = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    indexed.putpalette([*RED, *GREEN, *BLUE])
    return indexed


@pytest.mark.parametrize(
    ("transparency", "expected"),
    [
        (1, [RED, (255, 255, 255), BLUE]),
        (b"\xff\x00\x33", [RED, (255, 255, 255), (204, 204, 255)]),
    ],
)
def test_palette_transparency_becomes_white(tmp_path, transparency, expected):
    palette_picture().save(tmp_path / "p.png", transparency=transparency)
    image = read_image(tmp_path / "p.png")
    assert np.abs(np.subtract(image[0].astype(int), expected)).max() <= 1
    assert (image[0, 1] == 255).all()
    assert read_mask(tmp_path / "p.png", threshold=100).tolist() == [[False, True, False]]  # luma 76, 150, 29


def test_transparent_colours_become_white(tmp_path):
    Image.fromarray(np.array([[9, 10]], np.uint8)).save(tmp_path / "l.png", transparency=9)
    assert read_image(tmp_path / "l.png")[0, :, 0].tolist() == [255, 10]
    Image.fromarray(np.array([[RED, BLUE]], np.uint8)).save(tmp_path / "rgb.png", transparency=RED)
    assert read_image(tmp_path / "rgb.png")[0].tolist() == [[255] * 3, list(BLUE)]
    Image.fromarray(np.array([[257 * 9, 257 * 10]], np.uint16)).save(tmp_path / "i.png", transparency=257 * 9)
    assert read_image(tmp_path / "i.png")[0, :, 0].tolist() == [255, 10]


def png(width: int, depth: int, colour: int, row: bytes, transparent: bytes) -> bytes:
    """A PNG of one row, as Pillow does not write them."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])
    pixels = zlib.compress(b"\0" + row)
    chunks = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


@pytest.mark.parametrize(
    ("depth", "row", "transparent", "expected"),
    [
        (1, 0b0101_0000, 0, [255, 255, 255, 255]),
        (2, 0b0001_1011, 1, [0, 255, 170, 255]),
        (4, 0x055F, 5, [0, 255, 255, 255]),
        (8, 0x00_05_55_09, 5, [0, 255, 85, 9]),
    ],
)
def test_transparent_grey_of_few_bits_becomes_white(tmp_path, depth, row, transparent, expected):
    packed = row.to_bytes((4 * depth + 7) // 8, "big")
    (tmp_path / "g.png").write_bytes(png(4, depth, 0, packed, transparent.to_bytes(2, "big")))
    assert read_image(tmp_path / "g.png")[0, :, 0].tolist() == expected


def test_a_transparent_colour_of_sixteen_bits_becomes_white(tmp_path):
    red, other = [256 * value + 99 for value in (200, 10, 10)], [256 * value + 99 for value in (10, 20, 30)]
    row, transparent = (b"".join(value.to_bytes(2, "big") for value in values) for values in (red + other, red))
    (tmp_path / "c.png").write_bytes(png(2, 16, 2, row, transparent))
    assert read_image(tmp_path / "c.png")[0].tolist() == [[255] * 3, [10, 20, 30]]


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_sixteen_bit_tiffs_whose_white_is_zero(tmp_path, compression):
    values = Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16))
    for photometric, expected in ((0, [255, 155, 0]), (1, [0, 100, 255])):
        values.save(tmp_path / "g.tif", compression=compression, tiffinfo={262: photometric})
        with Image.open(tmp_path / "g.tif") as saved:
            assert saved.tag_v2[262] == photometric
        assert read_image(tmp_path / "g.tif")[0, :, 0].tolist() == expected


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(tmp_path, suffix):
    cmyk = np.zeros((16, 32, 4), np.uint8)
    cmyk[:, :16], cmyk[:, 16:] = (0, 255, 255, 0), (255, 0, 0, 51)
    picture = Image.merge("CMYK", [Image.fromarray(np.ascontiguousarray(cmyk[..., i])) for i in range(4)])
    picture.save(tmp_path / f"a.{suffix}", **({"quality": 95} if suffix == "jpg" else {}))
    image = read_image(tmp_path / f"a.{suffix}").astype(int)
    assert np.abs(image[0, 0] - RED).max() <= 8
    assert np.abs(image[-1, -1] - (0, 204, 204)).max() <= 8


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_is_rescaled_and_not_cut_off(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    expected = np.round(values / 257).astype(int)
    assert (read_image(tmp_path / f"a.{suffix}") == expected[..., None]).all()
    assert expected.tolist() == [[0, 0, 1, 1, 128, 254, 255, 255]]
    assert (read_image(values) == expected[..., None]).all()
    assert (read_image(values.astype(">u2")) == expected[..., None]).all()
    assert (read_image(Image.fromarray(values.astype(np.int32))) == expected[..., None]).all()


def test_integers_beyond_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "a.tif")
    assert "16-bit values 0..65535, got 0..70000; rescale" in refusal(read_image, tmp_path / "a.tif")
    assert "got -1..5" in refusal(read_image, Image.fromarray(np.array([[-1, 5]], np.int32)), name="photo")


def test_float_pictures_in_either_range(tmp_path):
    for scale in (1, 255):
        Image.fromarray(np.array([[0, 0.2, 1]], np.float32) * scale).save(tmp_path / "f.tif")
        assert read_image(tmp_path / "f.tif")[0, :, 1].tolist() == [0, 51, 255]
        assert read_mask(tmp_path / "f.tif", threshold=50).tolist() == [[False, True, True]]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([[0.0, np.nan]], "finite numbers, got NaN or infinity; replace"),
        ([[0.0, -np.inf]], "finite numbers, got NaN or infinity; replace"),
        ([[-0.5, 1.0]], r"[0, 1] or [0, 255], got -0.5..1.0; rescale"),
        ([[0.0, 256.0]], r"[0, 1] or [0, 255], got 0.0..256.0; rescale"),
    ],
)
def test_float_pictures_out_of_range_are_refused(tmp_path, values, told):
    Image.fromarray(np.array(values, np.float32)).save(tmp_path / "f.tif")
    message = refusal(read_image, tmp_path / "f.tif")
    assert told in message and "f.tif" in message
    assert told in refusal(read_mask, tmp_path / "f.tif")


@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("webp", {"lossless": True}), ("tif", {})])
def test_of_several_frames_the_first_is_read(tmp_path, suffix, options):
    frames = [Image.new("RGB", (4, 2), colour) for colour in (RED, GREEN, BLUE)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert (read_image(tmp_path / f"a.{suffix}") == np.array(RED)).all()


def test_phone_jpegs_with_two_pictures_are_read(tmp_path):
    Image.new("RGB", (16, 8), BLUE).save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (16, 8), RED)]
    )
    with Image.open(tmp_path / "a.jpg") as opened:
        assert opened.format == "MPO"
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - BLUE).max() <= 3


# ---------------------------------------------------------------------- read_image: bad files


def test_unusable_files_are_told_apart(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture at all, only words")
    (tmp_path / "folder").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a.gif")
    os.mkfifo(tmp_path / "pipe.png")
    for name, told in {
        "empty.png": "is empty (0 bytes); get the file again",
        "text.png": "is not a PNG, JPEG, WebP, BMP or TIFF image",
        "a.gif": "is not a PNG, JPEG, WebP, BMP or TIFF image",
        "folder": "is a folder, not a file; name the pictures in it",
        "pipe.png": "is a device or pipe, not a file; save",
        "missing.png": "does not exist; check the path",
        "empty.png/below.png": "cannot be opened (Not a directory); check the path",
        "n" * 300: "cannot be opened (File name too long); check the path",
        "nul\0": "is no valid path (embedded null byte); check",
    }.items():
        assert f"image {tmp_path / name} {told}" in refusal(read_image, tmp_path / name)
        assert f"mask {tmp_path / name} {told}" in refusal(read_mask, tmp_path / name)
    assert refusal(read_image, tmp_path / "missing.png", name="image[3]").startswith(f"image[3] {tmp_path}/missing.png")


def test_files_that_may_not_be_read_are_told(open_tmp):
    path = open_tmp / "a.png"
    Image.new("RGB", (2, 2)).save(path)
    path.chmod(0)
    with without_privileges():
        assert f"image {path} may not be read (permission denied); change its" in refusal(read_image, path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
def test_cut_off_files_are_refused(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, format={"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix))
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    message = refusal(read_image, path)
    assert f"image {path} " in message and "damaged" in message
    if suffix != "tif" and suffix != "webp":  # their index stands at the end or in one piece with the pixels
        assert "cut off" in message and "get the file again" in message
        with Image.open(path) as lazy:
            assert "image cannot be decoded, it is damaged or cut off" in refusal(read_image, lazy)


def test_flipped_bits_never_raise_anything_else(tmp_path):
    rng = np.random.default_rng(1)
    outcomes = set()
    for suffix in ("png", "jpg", "webp", "bmp"):
        whole = io.BytesIO()
        Image.fromarray(quarters(8, 10)).save(whole, format={"jpg": "JPEG"}.get(suffix, suffix), exif=exif(6))
        for _ in range(60):
            data = np.frombuffer(whole.getvalue(), np.uint8).copy()
            data[rng.integers(len(data), size=3)] = rng.integers(256, size=3)
            (tmp_path / "a").write_bytes(data.tobytes())
            try:
                outcomes.add(read_image(tmp_path / "a").ndim)
            except InputError as error:
                assert "; " in str(error)
                outcomes.add("refused")
    assert outcomes == {3, "refused"}


@pytest.mark.parametrize("sides", [(10_000, 10_000), (30_000, 30_000)], ids=["warning", "error"])
def test_decompression_bombs_are_refused_before_decoding(tmp_path, sides):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = b"".join(side.to_bytes(4, "big") for side in sides) + bytes([8, 2, 0, 0, 0])
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    message = refusal(read_image, path)
    limit = Image.MAX_IMAGE_PIXELS * (2 if sides[0] > 20_000 else 1)
    assert f"{path} is too large" in message and "scale the picture down" in message
    assert str(sides[0] * sides[1]) in message and str(limit) in message


# ---------------------------------------------------------------------- read_image: PIL, NumPy, torch


MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pil_becomes_rgb(mode):
    white = Image.new("RGB", (3, 2), "white")
    picture = white.convert("LA").convert("La") if mode == "La" else None
    if picture is None:
        picture = white.convert("RGBA").convert("RGBa") if mode == "RGBa" else white.convert(mode)
    assert picture.mode == mode
    image = read_image(picture)
    assert image.shape == (2, 3, 3) and image.dtype == np.uint8 and (image == 255).all() and image.flags.writeable


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16", "F"])
def test_pil_pictures_without_pixels_are_refused(mode):
    assert "photo must have at least one pixel, got 0x4; " in refusal(read_image, Image.new(mode, (0, 4)), name="photo")


@pytest.mark.parametrize(
    "source",
    [np.zeros((30, 41, 3), np.uint8), np.zeros((30, 41)), torch.zeros(3, 30, 41), Image.new("RGB", (41, 30))],
    ids=["array", "grey", "tensor", "pil"],
)
def test_pictures_in_memory_have_the_limit_of_files(source, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1230)
    assert read_image(source).shape == (30, 41, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1229)
    with pytest.raises(
        InputError, match="image must have at most 1229 pixels, got 30x41; scale the picture down first"
    ):
        read_image(source)


def test_the_source_is_neither_changed_nor_shared():
    array, picture = quarters(4, 6), Image.fromarray(quarters(4, 6))
    for source in (array, picture, torch.from_numpy(array.copy()).permute(2, 0, 1)):
        image = read_image(source)
        image[:] = 0
        assert corners(read_image(source)) == [RED, GREEN, BLUE, YELLOW]
    locked = quarters(4, 6)[:, ::-1]
    locked.flags.writeable = False
    assert read_image(locked).flags.writeable and read_image(locked).flags.c_contiguous


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8])
def test_arrays_and_tensors(dtype):
    expected = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    source = expected if dtype == np.uint8 else (expected / 255).astype(dtype)
    assert (read_image(source) == expected).all()
    assert (read_image(source[..., 0]) == expected[..., :1]).all()
    assert (read_image(source[..., :1]) == expected[..., :1]).all()
    tensor = torch.from_numpy(source).permute(2, 0, 1)
    assert (read_image(tensor) == expected).all()
    assert (read_image(tensor[:1]) == expected[..., :1]).all()
    if dtype == np.float32:
        assert (read_image(tensor.clone().requires_grad_()) == expected).all()
        assert np.abs(read_image(tensor.bfloat16()).astype(int) - expected).max() <= 1


def test_alpha_of_arrays_and_tensors():
    rgba = np.array([[(10, 20, 30, 255), (10, 20, 30, 0)]], np.uint8)
    for source in (rgba, rgba / 255, torch.from_numpy(rgba).permute(2, 0, 1)):
        assert read_image(source)[0].tolist() == [[10, 20, 30], [255] * 3]


def test_ambiguous_shapes_follow_their_library():
    source = np.zeros((3, 5, 3), np.uint8)
    source[0] = 255
    assert (read_image(source)[0] == 255).all() and not read_image(source)[1:].any()
    assert (read_image(torch.from_numpy(source))[..., 0] == 255).all()
    assert read_image(torch.from_numpy(source)).shape == (5, 3, 3)


CHW = "it looks like (C, H, W): transpose it with .transpose(1, 2, 0)"
HWC = "it looks like (H, W, C): permute it with .permute(2, 0, 1)"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (np.zeros((3, 8, 9), np.uint8), "laid out (H, W, C) with 1, 3 or 4 channels, got shape (3, 8, 9); " + CHW),
        (np.zeros((2, 8, 9, 3), np.uint8), "got a batch of shape (2, 8, 9, 3); pass a list"),
        (np.zeros((8, 9, 2), np.uint8), "got shape (8, 9, 2); give it the shape (H, W, 3)"),
        (np.zeros(8, np.uint8), "got shape (8,); give it the shape (H, W, 3)"),
        (np.zeros((0, 9, 3), np.uint8), "at least one pixel, got shape (0, 9, 3); pass a picture"),
        (np.zeros((8, 9, 3), bool), "got bool; convert it, for example x.astype('uint8') * 255"),
        (np.zeros((8, 9, 3), np.int64), "got int64; convert it, for example x.astype('uint8')"),
        (np.zeros((8, 9, 3), complex), "got complex128; convert it"),
        (np.full((2, 2, 3), 255.0), "as floats must lie in [0, 1], got 255.0..255.0; rescale it, for example x / 255"),
        (np.array([[-1.0, 1.0]]), "as floats must lie in [0, 1], got -1.0..1.0; rescale it"),
        (np.array([[0, np.nextafter(1, 2)]]), "got 0.0..1.0000000000000002; rescale it"),
        (np.array([[0, np.nan]]), "finite numbers, got NaN or infinity; replace them"),
        (np.array([[0, np.inf]], np.float32), "finite numbers, got NaN or infinity; replace them"),
        (torch.zeros(8, 9, 3), "shape (C, H, W) with 1, 3 or 4 channels, got (8, 9, 3); " + HWC),
        (torch.zeros(2, 3, 8, 9), "got a batch of shape (2, 3, 8, 9); pass a list"),
        (torch.zeros(1, 3, 8, 9), "got a batch of shape (1, 3, 8, 9); pass a list"),
        (torch.zeros(8, 9), "got (8, 9); a grey image gets its channel with x[None]"),
        (torch.zeros(2, 8, 9), "got (2, 8, 9); give it the shape (3, H, W)"),
        (torch.zeros(3, 0, 9), "at least one pixel"),
        (torch.zeros(3, 8, 9, dtype=torch.bool), "got torch.bool; convert it, for example x.to(torch.uint8) * 255"),
        (torch.zeros(3, 8, 9, dtype=torch.int64), "got torch.int64; convert it, for example x.to(torch.uint8)"),
        (torch.full((3, 2, 2), -1.0), "lie in [0, 1], got -1.0..-1.0; rescale it, for example x / 255 or (x + 1) / 2"),
        (torch.full((3, 2, 2), float("nan")), "finite numbers, got NaN or infinity; replace them"),
        ([[1, 2]], "must be a path, PIL image, NumPy array or torch tensor, got list; convert it"),
        (None, "got NoneType; convert it"),
    ],
)  # fmt: skip
def test_bad_arrays_and_tensors_are_refused(source, told):
    message = refusal(read_image, source, name="photo")
    assert message.startswith("photo ") and told in message


# ---------------------------------------------------------------------- sha256_pixels


def test_the_hash_names_pixels_and_size(tmp_path):
    image = quarters(4, 6)
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(image).save(tmp_path / "a.bmp")
    name = sha256_pixels(image)
    assert re.fullmatch("[0-9a-f]{64}", name)
    assert sha256_pixels(read_image(tmp_path / "a.png")) == sha256_pixels(read_image(tmp_path / "a.bmp")) == name
    assert sha256_pixels(image.reshape(6, 4, 3)) != name
    assert sha256_pixels(image[:, ::-1]) == sha256_pixels(image[:, ::-1].copy()) != name
    black = np.zeros((1, 1, 3), np.uint8)
    # printf '1x1:\0\0\0' | sha256sum
    assert sha256_pixels(black) == "cca88ecc224532e53eb3b1e0b63d2eb63f3df73a1ea384094d116e196d299b3b"
    assert "image must be uint8 (H, W, 3), got float64 (1, 1, 3); " in refusal(sha256_pixels, black / 255)


# ---------------------------------------------------------------------- masks


@FAST
@given(mask=MASKS)
def test_masks_survive_their_png(tmp_path, mask):
    write_mask(tmp_path / "m.png", mask)
    assert (read_mask(tmp_path / "m.png", size=mask.shape) == mask).all()
    with Image.open(tmp_path / "m.png") as picture:
        assert picture.mode == "L" and picture.format == "PNG"
        assert set(np.unique(np.asarray(picture))) <= {0, 255}


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (37, 3), (480, 640)])
def test_empty_and_full_masks(tmp_path, fill, shape):
    mask = np.full(shape, fill)
    write_mask(tmp_path / "m.png", mask)
    assert (read_mask(tmp_path / "m.png") == mask).all()
    assert (rle_decode(rle_encode(mask)) == mask).all()


def test_the_threshold_is_exclusive_and_alpha_is_left_out(tmp_path):
    Image.fromarray(np.array([[0, 1, 127, 128, 255]], np.uint8)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[False, False, False, True, True]]
    assert read_mask(tmp_path / "m.png", threshold=0).tolist() == [[False, True, True, True, True]]
    assert not read_mask(tmp_path / "m.png", threshold=254)[0, :4].any()
    Image.fromarray(np.array([[(255, 0), (0, 255)]], np.uint8)).save(tmp_path / "la.png")
    assert read_mask(tmp_path / "la.png").tolist() == [[True, False]]
    Image.fromarray(np.array([[(255, 255, 255, 0), (0, 0, 0, 0)]], np.uint8)).save(tmp_path / "rgba.png")
    assert read_mask(tmp_path / "rgba.png").tolist() == [[True, False]]
    Image.fromarray(np.array([[0, 65535]], np.uint16)).save(tmp_path / "i.png")
    assert read_mask(tmp_path / "i.png").tolist() == [[False, True]]
    Image.fromarray(np.array([[0, 1, 128, 32767, 32768]], np.uint16)).save(tmp_path / "i.png")
    assert read_mask(tmp_path / "i.png").tolist() == [[False, False, False, False, True]]
    assert read_mask(tmp_path / "i.png", threshold=0).tolist() == [[False, True, True, True, True]]
    image = Image.fromarray(np.array([[0, 65535]], np.uint16))
    image.save(tmp_path / "i.png", transparency=0)
    with Image.open(tmp_path / "i.png") as written:
        assert written.info["transparency"] == 0
    assert read_mask(tmp_path / "i.png").tolist() == [[False, True]], "what is transparent is not thereby white"
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "1.png")
    assert read_mask(tmp_path / "1.png").tolist() == [[False, True]]
    for threshold in (-1, 255):
        assert f"threshold must lie in 0..254, got {threshold}; " in refusal(
            read_mask, tmp_path / "m.png", threshold=threshold
        )


def test_a_mask_of_another_size_is_refused(tmp_path):
    write_mask(tmp_path / "m.png", np.zeros((4, 7), bool))
    assert read_mask(tmp_path / "m.png", size=(4, 7)).shape == (4, 7)
    message = refusal(read_mask, tmp_path / "m.png", size=(7, 4))
    assert "m.png must have the size of its image, 7x4 (HxW), got 4x7; export" in message


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (np.zeros((2, 2), np.uint8), "uint8 (2, 2)"),
        (np.zeros((1, 2, 2), bool), "bool (1, 2, 2)"),
        (np.zeros((0, 2), bool), "bool (0, 2)"),
        (torch.zeros(2, 2, dtype=torch.bool), "Tensor"),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path, mask, got):
    told = f"mask must be a bool array (H, W), got {got}; threshold it first"
    assert told in refusal(write_mask, tmp_path / "m.png", mask)
    assert told in refusal(rle_encode, mask)
    assert list(tmp_path.iterdir()) == []


def test_unit_maps_are_rounded(tmp_path):
    values = np.array([[0, 0.5 / 255 + 1e-6, 0.2, 0.7, 1]])
    for dtype in (np.float32, np.float64):
        write_unit_map(tmp_path / "u.png", values.astype(dtype))
        with Image.open(tmp_path / "u.png") as picture:
            assert picture.mode == "L" and np.asarray(picture).tolist() == [[0, 1, 51, 178, 255]]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.array([[np.nan]]), "values must hold finite numbers, got NaN or infinity; "),
        (np.array([[0, 1.5]]), "values as floats must lie in [0, 1], got 0.0..1.5; "),
        (np.array([[-0.1, 1]]), "got -0.1..1.0; "),
        (np.zeros((1, 2, 2)), "values must be a float array (H, W), got float64 (1, 2, 2); pass one map"),
        (np.zeros((2, 2), np.uint8), "got uint8 (2, 2); "),
        (np.zeros((0, 2)), "got float64 (0, 2); "),
    ],
)
def test_bad_unit_maps_leave_the_old_file(tmp_path, values, told):
    write_unit_map(tmp_path / "u.png", np.ones((1, 1)))
    old = (tmp_path / "u.png").read_bytes()
    assert told in refusal(write_unit_map, tmp_path / "u.png", values)
    assert (tmp_path / "u.png").read_bytes() == old and len(list(tmp_path.iterdir())) == 1


# ---------------------------------------------------------------------- RLE


@FAST
@given(mask=MASKS)
def test_rle_round_trip_and_oracle(mask):
    rle = rle_encode(mask)
    assert rle["size"] == list(mask.shape) and rle["counts"].isascii()
    decoded = rle_decode(json.loads(json.dumps(rle)))
    assert decoded.dtype == np.bool_ and decoded.flags.c_contiguous and (decoded == mask).all()
    assert (coco_mask.decode(rle).astype(bool) == decoded).all()


def test_rle_of_large_masks_agrees_with_the_oracle():
    y, x = np.mgrid[:700, :900]
    for mask in (np.hypot(y - 300, x - 500) < 250, (x // 7 + y // 3) % 2 == 0, (y == 699) & (x == 899)):
        rle = rle_encode(mask)
        assert (rle_decode(rle) == mask).all() and (coco_mask.decode(rle).astype(bool) == mask).all()


GOOD = {"size": [2, 3], "counts": "6"}


@pytest.mark.parametrize(
    ("rle", "told"),
    [
        (None, "must be compressed COCO RLE"),
        ("6", "must be compressed COCO RLE"),
        ([[1, 2, 3, 4, 5, 6]], "must be compressed COCO RLE"),
        ({}, "must be compressed COCO RLE"),
        ({**GOOD, "counts": b"6"}, ".decode('ascii') its counts"),
        ({**GOOD, "counts": [6]}, "frPyObjects"),
        ({"counts": "6"}, "must have a size [H, W] of two positive integers, got None; "),
        ({**GOOD, "size": [2]}, "of two positive integers, got [2]; "),
        ({**GOOD, "size": [2, 3, 1]}, "got [2, 3, 1]; "),
        ({**GOOD, "size": [0, 3]}, "got [0, 3]; "),
        ({**GOOD, "size": [-2, -3]}, "got [-2, -3]; "),
        ({**GOOD, "size": [2.0, 3]}, "got [2.0, 3]; "),
        ({**GOOD, "size": [True, 6]}, "got [True, 6]; "),
        ({**GOOD, "size": "23"}, "got '23'; "),
        ({**GOOD, "size": [3, 3]}, "must cover 3x3 = 9 pixels, got runs over 6; "),
        ({**GOOD, "counts": ""}, "must cover 2x3 = 6 pixels, got runs over 0; "),
        ({**GOOD, "counts": "666"}, "got runs over 18; "),
        ({**GOOD, "counts": "é"}, "counts that are no compressed RLE; encode it"),
        ({**GOOD, "counts": " "}, "counts that are no compressed RLE; encode it"),
        ({**GOOD, "counts": "V"}, "counts that are no compressed RLE; encode it"),
        ({**GOOD, "counts": "O"}, "counts that are no compressed RLE; encode it"),
        ({**GOOD, "counts": "o" * 100_000}, "counts that are no compressed RLE; encode it"),
        (
            {**GOOD, "counts": "V" + "P" * 8 + "0"},
            "counts that are no compressed RLE; encode it",
        ),  # 6, but in ten digits
        ({**GOOD, "size": [10**6, 10**6]}, "pixels, got 1000000x1000000; scale"),
    ],
)
def test_bad_rle_is_refused(rle, told):
    assert rle_decode(GOOD).tolist() == [[False] * 3] * 2
    message = refusal(rle_decode, rle, name="annotations[4].segmentation")
    assert message.startswith("annotations[4].segmentation ") and told in message


@FAST
@given(
    counts=st.text(alphabet=st.characters(min_codepoint=40, max_codepoint=120), max_size=12),
    size=st.tuples(st.integers(1, 8), st.integers(1, 8)),
)
def test_any_counts_are_decoded_to_their_size_or_refused(counts, size):
    try:
        mask = rle_decode({"size": size, "counts": counts})
    except InputError:
        return
    assert mask.shape == size
    assert (rle_decode(rle_encode(mask)) == mask).all()


# ---------------------------------------------------------------------- JSON


def test_json_round_trip(tmp_path):
    value = {"name": "Äpfel 🍎", "numbers": [1, 0.1, None, True], "empty": {}}
    write_json(tmp_path / "a.json", value)
    data = (tmp_path / "a.json").read_bytes()
    assert read_json(tmp_path / "a.json") == value
    assert data.endswith(b"}\n") and "Äpfel 🍎".encode() in data and data.count(b"\n") > 4
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + data)
    assert read_json(str(tmp_path / "bom.json")) == value


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": {1, 2}}, np.float32(1)])
def test_what_json_does_not_know_leaves_the_old_file(tmp_path, value):
    write_json(tmp_path / "a.json", 1)
    message = refusal(write_json, tmp_path / "a.json", value)
    assert f"cannot write {tmp_path}/a.json: the value is no JSON" in message and "use finite numbers" in message
    assert read_json(tmp_path / "a.json") == 1 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b'{"a": 1,\n "b": }', "is not valid JSON at line 2 column 7 (Expecting value); write"),
        (b"", "is not valid JSON at line 1 column 1 (Expecting value); write"),
        (b'{\n"a": "\xff"}', "is not UTF-8 at line 2 column 7 (invalid start byte); save it as UTF-8"),
        (b"[" * 200_000, "cannot be read ("),
    ],
)
def test_bad_json_is_told_by_line_and_column(tmp_path, data, told):
    (tmp_path / "a.json").write_bytes(data)
    assert f"{tmp_path}/a.json {told}" in refusal(read_json, tmp_path / "a.json")


def test_json_that_is_not_there(tmp_path):
    assert f"{tmp_path}/b.json does not exist; check the path" in refusal(read_json, tmp_path / "b.json")
    assert f"{tmp_path} cannot be read (Is a directory); " in refusal(read_json, tmp_path)


# ---------------------------------------------------------------------- atomic writes of a file


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "new" / "folder" / "a.bin"
    atomic_write_bytes(path, b"old")
    atomic_write_bytes(str(path), b"")
    assert path.read_bytes() == b""
    atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"new" and [p.name for p in path.parent.iterdir()] == ["a.bin"]
    reference = tmp_path / "reference"
    reference.touch()
    assert path.stat().st_mode == reference.stat().st_mode, "the umask decides on permissions"


def test_a_link_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "a.bin")
    atomic_write_bytes(tmp_path / "link", b"data")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "a.bin").read_bytes() == b"data"


WRITERS = [
    lambda path: atomic_write_bytes(path, b"new"),
    lambda path: write_json(path, 1),
    lambda path: write_mask(path, np.ones((2, 2), bool)),
    lambda path: write_unit_map(path, np.ones((2, 2))),
]


@pytest.mark.parametrize("write", WRITERS)
def test_forbidden_and_impossible_places_are_told(open_tmp, write):
    (open_tmp / "file").write_bytes(b"old")
    message = refusal(write, open_tmp / "file" / "below.bin")
    assert f"cannot write {open_tmp}/file/below.bin: " in message
    assert "part of the path is a file: choose another" in message
    (open_tmp / "folder").mkdir()
    assert f"cannot write {open_tmp}/folder: Is a directory; choose" in refusal(write, open_tmp / "folder")
    with without_privileges(), pytest.raises(InputError) as caught:
        write(open_tmp / "file")
    assert str(caught.value) == f"cannot write {open_tmp}/file: Permission denied; choose a folder that you may write"
    assert isinstance(caught.value.__cause__, PermissionError)
    assert (open_tmp / "file").read_bytes() == b"old"
    assert sorted(p.name for p in open_tmp.iterdir()) == ["file", "folder"]


def test_a_failure_of_any_kind_leaves_the_old_file(tmp_path):
    atomic_write_bytes(tmp_path / "a", b"old")
    with pytest.raises(TypeError):
        atomic_write_bytes(tmp_path / "a", "text")
    assert (tmp_path / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_the_old_file_and_folder(tmp_path):
    """The system refuses every byte beyond 4096 in a process of its own."""
    atomic_write_bytes(tmp_path / "file", b"old")
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "a").write_bytes(b"old")
    script = """
import resource, sys
from pathlib import Path
from sas.io import InputError, atomic_folder, atomic_write_bytes
import numpy as np
from sas.pictures import write_unit_map
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
base = Path(sys.argv[1])
def bytes_(): atomic_write_bytes(base / "file", b"x" * 10_000)
def map_(): write_unit_map(base / "file", np.random.default_rng(0).random((200, 200)))
def folder_():
    with atomic_folder(base / "folder") as folder:
        (folder / "a").write_bytes(b"new")
        (folder / "b").write_bytes(b"x" * 10_000)
for write in (bytes_, map_, folder_):
    try:
        write()
    except InputError as error:
        print(error, type(error.__cause__).__name__, error.__cause__.errno, sep="|")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cure = f"File too large; free some space or choose another disk|OSError|{errno.EFBIG}"
    assert done.stdout.splitlines() == [
        f"cannot write {tmp_path}/file: {cure}",
        f"cannot write {tmp_path}/file: {cure}",
        f"cannot write {tmp_path}/folder: {cure}",
    ]
    assert (tmp_path / "file").read_bytes() == b"old"
    assert {p.name: p.read_bytes() for p in (tmp_path / "folder").iterdir()} == {"a": b"old"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


# ---------------------------------------------------------------------- atomic folders


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "old").write_bytes(b"old")
    return tmp_path / "out"


def test_a_new_folder_may_be_empty_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out", new=True) as folder:
        (folder / "mine").write_bytes(b"mine")
    with (
        pytest.raises(InputError, match=r"cannot write .*out: there are files in it; choose a new or empty folder"),
        atomic_folder(tmp_path / "out", new=True),
    ):
        raise AssertionError("the block must not begin")
    assert tree(tmp_path) == {"out/mine": b"mine"}


def test_a_folder_appears_at_the_end_and_replaces_the_old(tmp_path):
    target = tmp_path / "deep" / "out"
    for content in (b"first", b"second"):
        with atomic_folder(str(target)) as folder:
            assert folder.parent == target.parent and re.fullmatch(r"\.out\.tmp-\w+", folder.name)
            (folder / "sub").mkdir()
            (folder / "sub" / content.decode()).write_bytes(content)
            (folder / "link").symlink_to("nowhere")
            assert not target.exists() or tree(target) == {"sub/first": b"first"}
        assert tree(target) == {f"sub/{content.decode()}": content}
        assert [p.name for p in target.parent.iterdir()] == ["out"]
    (tmp_path / "reference").mkdir()
    assert target.stat().st_mode == (tmp_path / "reference").stat().st_mode


def test_what_is_not_its_own_stays_in_a_folder_that_is_replaced(tmp_path):
    target = tmp_path / "out"
    (target / "deep").mkdir(parents=True)
    for name in ("own.txt", "own_2.txt", "notes.txt", "deep/more.txt"):
        (target / name).write_text("old")
    (target / "link").symlink_to("nowhere")
    with atomic_folder(target, own=r"own(_\d+)?\.txt") as folder:
        (folder / "own.txt").write_text("new")
    assert tree(target) == {"own.txt": b"new", "notes.txt": b"old", "deep/more.txt": b"old"}
    assert (target / "link").is_symlink()
    with pytest.raises(ValueError, match="mine"), atomic_folder(target, own="own.txt"):
        raise ValueError("mine")
    assert tree(target)["own.txt"] == b"new"


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), FileNotFoundError(2, "mine", "/other")])
def test_an_exception_leaves_the_old_folder_and_comes_out_as_it_is(old, error):
    with pytest.raises(type(error)) as caught, atomic_folder(old) as folder:
        (folder / "new").write_bytes(b"new")
        raise error
    assert caught.value is error
    assert tree(old) == {"old": b"old"} and [p.name for p in old.parent.iterdir()] == ["out"]


def test_a_first_folder_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "out") as folder:
        (folder / "new").write_bytes(b"new")
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_the_old_folder_is_put_back_if_the_new_one_cannot_take_its_place(old):
    told = r"cannot write .*/out: No such file or directory; choose"
    with pytest.raises(InputError, match=told), atomic_folder(old) as folder:
        folder.rmdir()
    assert tree(old) == {"old": b"old"} and [p.name for p in old.parent.iterdir()] == ["out"]


def test_no_space_left_is_told(old):
    with pytest.raises(InputError) as caught, atomic_folder(old) as folder:
        (folder / "new").write_bytes(b"new")
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")
    assert str(caught.value) == f"cannot write {old}: No space left on device; free some space or choose another disk"
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ENOSPC
    assert tree(old) == {"old": b"old"} and [p.name for p in old.parent.iterdir()] == ["out"]


def test_errors_of_writing_are_told_with_the_target(old):
    with pytest.raises(InputError, match=r"cannot write .*/out: Is a directory; "), atomic_folder(old) as folder:
        (folder / "sub").mkdir()
        (folder / "sub").write_bytes(b"")
    assert tree(old) == {"old": b"old"}


def test_files_in_the_way_and_forbidden_places(open_tmp):
    (open_tmp / "file").write_bytes(b"old")
    for path, told in {
        "file": "it is a file; choose another output folder",
        "file/below": "part of the path is a file: choose another",
        "n" * 300: "File name too long; choose another path",
    }.items():
        with pytest.raises(InputError, match=told) as caught, atomic_folder(open_tmp / path):
            pytest.fail("the block must not run")
        assert str(caught.value).startswith(f"cannot write {open_tmp / path}: ")
    with without_privileges(), pytest.raises(InputError) as caught, atomic_folder(open_tmp / "out"):
        pytest.fail("the block must not run")
    assert str(caught.value) == f"cannot write {open_tmp}/out: Permission denied; choose a folder that you may write"
    assert isinstance(caught.value.__cause__, PermissionError)
    assert tree(open_tmp) == {"file": b"old"}


def test_a_linked_folder_is_replaced_where_it_lies(old):
    link = old.parent / "link"
    link.symlink_to(old)
    with atomic_folder(link) as folder:
        (folder / "new").write_bytes(b"new")
    assert link.is_symlink() and tree(old) == {"new": b"new"}


def test_reading_in_threads_leaves_the_warning_filters_alone(tmp_path: Path) -> None:
    """`warnings.catch_warnings` in several threads at once would leave what another thread had set."""
    import warnings
    from concurrent.futures import ThreadPoolExecutor

    Image.new("RGB", (64, 64), (1, 2, 3)).save(tmp_path / "a.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: read_image(tmp_path / "a.png").sum(), range(200)))) == 1
    assert list(warnings.filters) == before


def test_names_that_are_no_text_do_not_cost_a_file(tmp_path):
    write_json(tmp_path / "a.json", {"generator": "donn\udce9es"})
    assert read_json(tmp_path / "a.json") == {"generator": "donn?es"}


def test_folders_that_cannot_be_opened_are_written_on_windows(tmp_path, monkeypatch):
    real = os.open

    def refuses_folders(path, *rest, **more):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr("sas.io.os.open", refuses_folders)
    monkeypatch.setattr("sas.io.WINDOWS", True)
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a.txt").write_text("a")
    assert (tmp_path / "out" / "a.txt").read_text() == "a"


@pytest.mark.parametrize("pread", [True, False])
def test_bytes_from_any_place_of_a_file(tmp_path, monkeypatch, pread):
    content = bytes(range(256)) * 10
    (tmp_path / "a").write_bytes(content)
    if not pread:  # as on Windows
        monkeypatch.delattr("os.pread")
    file = OpenFile(tmp_path / "a")
    assert file.size == 2560
    for start, size in ((5, 7), (0, 2560), (2550, 100), (3000, 5), (9, 0), (5, 7)):
        assert file.read(start, size) == content[start : start + size]


def test_bytes_that_come_in_pieces_are_put_together(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"abcdefgh")
    file, real = OpenFile(tmp_path / "a"), os.pread
    monkeypatch.setattr("os.pread", lambda handle, size, start: real(handle, min(size, 3), start))
    assert file.read(1, 6) == b"bcdefg"


def test_a_file_that_cannot_be_opened_is_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        OpenFile(tmp_path / "none")


@pytest.mark.parametrize("struck", ["after the old one was set aside", "after the new one took its name"])
def test_a_kill_while_a_folder_is_exchanged_loses_nothing(tmp_path, struck):
    place = tmp_path / "out"
    with atomic_folder(place) as folder:
        (folder / "a").write_text("old")
    aside = tmp_path / ".out.old-0123456789ab"
    place.rename(aside)
    if struck == "after the new one took its name":
        place.mkdir()
        (place / "a").write_text("new")
    put_back(place)
    assert (place / "a").read_text() == ("new" if struck == "after the new one took its name" else "old")
    if struck == "after the old one was set aside":
        place.rename(aside)
        with atomic_folder(place, own="b") as folder:
            (folder / "b").write_text("new")
        assert sorted(path.name for path in place.iterdir()) == ["a", "b"], "what else stood there stays"
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / ".none.old-0123456789ab").write_text("a file")
    put_back(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_is_put_back_is_ones_own(tmp_path):
    """Neither the folder of another name that begins alike, nor one that somebody else is writing."""
    (tmp_path / ".a.old-x.tmp-0123456789ab").mkdir()
    put_back(tmp_path / "a")
    long = [tmp_path / ("n" * 60 + str(k)) for k in (1, 2)]
    for place in long:
        with atomic_folder(place) as folder:
            (folder / "own").write_text(place.name)
            (aside,) = (path for path in tmp_path.iterdir() if path.name.startswith(".nnn"))
    hidden = tmp_path / aside.name.replace(".tmp-", ".old-")  # of the second
    long[1].rename(hidden)
    long[0].rename(tmp_path / "elsewhere")
    put_back(long[0])
    assert not long[0].exists() and hidden.exists()
    put_back(long[1])
    assert (long[1] / "own").read_text() == long[1].name and not (tmp_path / "a").exists()


def test_what_is_left_of_an_exchange_that_was_finished_is_passed_over(tmp_path, monkeypatch):
    for words in ("old", "new"):
        with monkeypatch.context() as patched:
            patched.setattr("sas.io.shutil.rmtree", lambda *_, **__: None)  # killed before it could clean up
            with atomic_folder(tmp_path / "out") as folder:
                (folder / "a").write_text(words)
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "out").rename(tmp_path / "gone")
    put_back(tmp_path / "out")
    assert not (tmp_path / "out").exists()
