"""The script that renders household things, on a catalog made up here."""

from __future__ import annotations

import ctypes.util
import runpy
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sas.data.atlas import Atlas

SCRIPT = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "furniture.py"))

CATALOG = """# a comment
id=made#up
name#1=Cube
category#1=Kitchen
model#1=/shop/cube/cube.obj
modelRotation#1=0 0 1 0 1 0 -1 0 0
category#2=Doors and windows
model#2=/shop/door/door.obj
category#10=Living room
model#10=/shop/two words/two words.obj
model#4=/shop/cart/cart.obj
category#4=Vehicles
category#5=Kitchen
model#5=/shop/packed.zip
"""
CUBE = """# a cube
mtllib cube.mtl
o cube
v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nv 0 0 1\nv 1 0 1\nv 1 1 1\nv 0 1 1
s off
usemtl 1
f 1 2 3 4\nf 5 6 7 8\nf 1 2 6 5
usemtl two words
f 4 3 7 8\nf 1 4 8 5\nf 2 3 7 6
usemtl nowhere
"""
MATERIALS = """# materials
newmtl 1
illum 9
Ka 0 0 0
Kd 1 0 0
d 0.1
  newmtl two words
Kd 0 1 0
map_Kd -s 1 1 1 wood.jpg
Tf 1 1 1
"""


@pytest.fixture
def cube(tmp_path: Path) -> Path:
    (tmp_path / "cube.obj").write_text(CUBE)
    (tmp_path / "cube.mtl").write_text(MATERIALS)
    return tmp_path / "cube.obj"


@pytest.fixture
def material(tmp_path: Path) -> Path:
    folder = tmp_path / "material" / SCRIPT["CATALOGS"]
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "Shop.sh3f", "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", CATALOG)
        for name in ("cube", "two words", "cart"):
            archive.writestr(f"shop/{name}/{name}.obj", CUBE)
            archive.writestr(f"shop/{name}/{name}.mtl", MATERIALS)
    return tmp_path / "material"


def view(*, spots: int = 0) -> np.ndarray:
    """A ring, red, half of it clear glass over nothing, in the middle of a rendering; colours times alpha. spots: how many lie beside it."""
    side = SCRIPT["SIDE"]
    y, x = np.mgrid[:side, :side] - side / 2 + 0.5
    radius = np.hypot(x / 1.5, y)
    ring = ((radius > 30) & (radius < 80)).astype(np.float32)
    for k in range(spots):
        ring[10:40, 40 * k : 40 * k + 30] = 1
    alpha = ring * np.where(x > 0, 1, 0.6).astype(np.float32)
    return np.stack([alpha, 0 * alpha, 0 * alpha, alpha], axis=2)


def test_catalogs_are_read() -> None:
    found = list(SCRIPT["models"](CATALOG))
    assert [(model.name, model.category, model.path) for model in found] == [
        ("cube", "Kitchen", "shop/cube/cube.obj"),
        ("cart", "Vehicles", "shop/cart/cart.obj"),
        ("two-words", "Living room", "shop/two words/two words.obj"),
    ]
    assert found[0].rotation.tolist() == [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]
    assert np.array_equal(found[1].rotation, np.eye(3))


def test_materials_are_numbered_and_glass_is_seen(cube: Path) -> None:
    SCRIPT["simplify"](cube)
    assert cube.with_suffix(".mtl").read_text().split("\n") == [
        "newmtl m0", "Kd 1 0 0", "d 0.6", "newmtl m1", "Kd 0 1 0", "map_Kd -s 1 1 1 wood.jpg", "",
    ]  # fmt: skip
    lines = cube.read_text().splitlines()
    assert [line for line in lines if line[0] not in "vf"] == ["usemtl m0", "usemtl m1"]
    assert len([line for line in lines if line[0] == "v"]) == 8 and len([line for line in lines if line[0] == "f"]) == 6


def test_a_model_without_materials(cube: Path) -> None:
    cube.with_suffix(".mtl").unlink()
    SCRIPT["simplify"](cube)
    assert "usemtl" not in cube.read_text() and cube.with_suffix(".mtl").read_text() == "\n"


def test_views_are_trimmed_and_keep_their_colours() -> None:
    picture = SCRIPT["cutout"](view())
    assert picture.size == (128, 85) and picture.mode == "RGBA"  # 240 x 160, its longer side made 128
    pixels = np.asarray(picture)
    assert pixels[42, 64, 3] == 0 and pixels[42, 4, 3] == 153 and pixels[42, -4, 3] == 255
    inside = pixels[..., 3] > 100
    assert (pixels[inside][:, :3] == [255, 0, 0]).all(), "the colour is not times alpha any more"


@pytest.mark.parametrize(
    "bad",
    [view() * 0, view(spots=8), np.pad(np.ones((200, 200, 4), np.float32), ((92, 92), (92, 92), (0, 0)))],
    ids=["empty", "pieces", "rectangle"],
)
def test_views_that_show_no_thing_are_left_out(bad: np.ndarray) -> None:
    assert SCRIPT["cutout"](bad) is None


def test_models_become_cutouts_that_can_be_read(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def render(path: Path, rotation: np.ndarray, random: np.random.Generator) -> Iterator[np.ndarray]:
        assert "usemtl m0" in path.read_text() and rotation.shape == (3, 3)
        yield from (view(), view() * 0, view())

    monkeypatch.setitem(SCRIPT["furniture"].__globals__, "render", render)
    out = tmp_path / "out"
    out.mkdir()
    assert SCRIPT["furniture"](material, out) == 6
    things = ("kitchen__shop-cube", "living__shop-two-words", "vehicle__shop-cart")
    assert {path.stem for path in out.iterdir()} == {f"{thing}__{number}" for thing in things for number in (0, 2)}
    assert len(Atlas.from_folders([out], size=16).names) == 6


def test_models_are_rendered(cube: Path) -> None:
    needed = "needs VTK and OSMesa (pip install vtk, libosmesa6 of Debian), which nothing else here does"
    pytest.importorskip("vtkmodules", reason=needed)
    if not ctypes.util.find_library("OSMesa"):
        pytest.skip(needed)
    SCRIPT["simplify"](cube)
    cube.with_suffix(".mtl").write_text("newmtl m0\nKd 1 0 0\nnewmtl m1\nKd 0 1 0\n")
    views = list(SCRIPT["render"](cube, np.eye(3), np.random.default_rng(0)))
    assert len(views) == len(SCRIPT["VIEWS"])
    for picture in views:
        shown = picture[..., 3] > 0.5
        assert 0.1 < shown.mean() < 0.9 and not shown[[0, 0, -1, -1], [0, -1, 0, -1]].any()
        assert picture[..., 2].max() < 0.05, "no material is blue, but for what shines"
        assert SCRIPT["cutout"](picture) is not None
    assert max(picture[..., 1].max() for picture in views) > 0.3, "the top is green"


def test_without_vtk_the_error_names_it(cube: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vtkmodules", None)
    with pytest.raises(SystemExit, match="rendered with VTK, which cannot be loaded .* pip install vtk"):
        next(SCRIPT["render"](cube, np.eye(3), np.random.default_rng(0)))
