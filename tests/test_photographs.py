"""The script that makes folders of photographed cutouts and backgrounds, on packages made up here."""

from __future__ import annotations

import io
import runpy
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sas.data.atlas import Atlas
from sas.data.backgrounds import load_backgrounds

SCRIPT = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "photographs.py"))


def noise(seed: int, *, low: int = 0, high: int = 255, size: tuple[int, int] = (300, 260)) -> Image.Image:
    """Coarse coloured noise, of which no two look alike."""
    small = np.random.default_rng(seed).integers(low, high, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.NEAREST)


def stamp(path: Path, *, size: tuple[int, int] = (200, 100), margin: int = 10, opaque: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    alpha = np.full((size[1], size[0]), 255 if opaque else 0, dtype=np.uint8)
    alpha[margin:-margin, margin:-margin] = 255
    alpha[margin, margin] = alpha[-margin - 1, margin] = 0  # corners, so that what is left is no full rectangle
    picture = noise(0, size=size)
    picture.putalpha(Image.fromarray(alpha if not opaque else np.full_like(alpha, 255)))
    picture.save(path)


@pytest.fixture
def material(tmp_path: Path) -> Path:
    stamps = tmp_path / "material" / SCRIPT["STAMPS"]
    for name in (
        "food/fruit/pear",
        "animals/mammals/cats/lion",
        "vehicles/bus",
        "military/vehicles/tank",
        "plants/rose",
    ):
        stamp(stamps / f"{name}.png")
    for name in ("symbols/a", "food/fruit/cartoon/apple", "clothes/t_sock", "plants/rose_mirror", "household/button"):
        stamp(stamps / f"{name}.png")
    stamp(stamps / "food/small.png", size=(60, 60))
    stamp(stamps / "food/whole.png", opaque=True)
    (tmp_path / "material" / SCRIPT["PLACES"] / "Nature").mkdir(parents=True)
    noise(1).save(tmp_path / "material" / SCRIPT["PLACES"] / "Nature" / "hill.jpg")
    noise(2).save(tmp_path / "material" / SCRIPT["PLACES"] / "Nature" / "drawn.gif")
    (tmp_path / "material" / SCRIPT["NATURE"]).mkdir(parents=True)
    noise(3).save(tmp_path / "material" / SCRIPT["NATURE"] / "Dune.jpg")
    noise(4).save(tmp_path / "material" / SCRIPT["NATURE"] / "LadyBird.jpg")
    archive = tmp_path / "material" / SCRIPT["TEXTURES"]
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as textures:
        for name, picture in {
            "wall1": noise(5),
            "wall2": noise(5),  # as the one before
            "wall1_nm": noise(6),
            "lamp": noise(7),
            "floor_dark": noise(8, high=20),
            "floor_small": noise(9, size=(128, 300)),
            "wood": noise(10),
            "rust": Image.new("RGB", (256, 256), "grey"),
        }.items():
            data = io.BytesIO()
            picture.save(data, "PNG")
            textures.writestr(f"textures/tex_a/{name}.png", data.getvalue())
    return tmp_path / "material"


def test_photographed_things_become_cutouts_that_can_be_read(material: Path, tmp_path: Path) -> None:
    out = tmp_path / "cutouts"
    out.mkdir()
    names = {"fruit__pear__0", "mammals__lion__0", "vehicle__bus__0", "vehicle__tank__0", "plants__rose__0"}
    assert SCRIPT["cutouts"](material, out) == 5
    assert {path.stem for path in out.iterdir()} == names
    with Image.open(out / "fruit__pear__0.webp") as pear:
        assert pear.size == (128, 57) and pear.mode == "RGBA"  # 180 x 80 without its margin, made smaller
    assert set(Atlas.from_folders([out], size=16).names) == names


def test_surfaces_and_places_become_backgrounds(material: Path, tmp_path: Path) -> None:
    out = tmp_path / "backgrounds"
    out.mkdir()
    assert SCRIPT["backgrounds"](material, out) == 4
    assert {path.name for path in out.iterdir()} == {
        "scratch_hill.jpg", "mate_Dune.jpg", "ufoai_tex_a_wall1.jpg", "ufoai_tex_a_wood.jpg",
    }  # fmt: skip
    assert load_backgrounds(out, size=32).shape == (4, 3, 32, 32)
