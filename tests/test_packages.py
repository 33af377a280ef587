"""The script that renders packages: its shapes, their labels and its files; what renders is that of `examples/furniture.py`."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sas.data.atlas import Atlas

FOLDER = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def script() -> Iterator[dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))  # it imports its neighbour
        yield runpy.run_path(str(FOLDER / "packages.py"))


KINDS = ("box", "book", "carton", "can", "tub", "jar", "tube", "bag")


def test_every_kind_has_a_shape_and_bottles_have_none(script: dict) -> None:
    assert set(script["KINDS"]) == set(script["SHAPES"]) == set(script["LIES"]) == set(KINDS)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_meshes_are_whole_and_face_outwards(script: dict, kind: str, seed: int) -> None:
    mesh, texture = script["SHAPES"][kind](np.random.default_rng(seed))
    count = len(mesh.points)
    assert mesh.points.shape == mesh.normals.shape == (count, 3) and mesh.corners.shape == (count, 2)
    assert np.isfinite(mesh.points).all() and 0.2 < np.ptp(mesh.points, axis=0).max() < 1.7
    assert (mesh.corners >= 0).all() and (mesh.corners <= 1).all()
    assert mesh.triangles.min() == 0 and mesh.triangles.max() == count - 1
    a, b, c = (mesh.points[mesh.triangles[:, k]] for k in range(3))
    area = np.cross(b - a, c - a)
    # By the divergence theorem: the volume that the triangles enclose, seen from outside, is positive, and so what their normals say.
    middle = (a + b + c) / 3 - mesh.points.mean(axis=0)
    volume = (middle * area).sum() / 6
    box = np.ptp(mesh.points, axis=0).prod()
    assert 0.02 * box < volume < 1.01 * box
    normal = mesh.normals[mesh.triangles].mean(axis=1)
    agree = (normal * area).sum(axis=1) > 0
    assert np.linalg.norm(area, axis=1)[~agree].sum() < 0.02 * np.linalg.norm(area, axis=1).sum()
    assert len(texture.getcolors(1 << 20) or ()) > 8, "there is nothing on the label"


def test_a_number_has_one_package_and_others_have_others(script: dict, tmp_path: Path) -> None:
    def written(seed: int) -> tuple[bytes, ...]:
        mesh, texture = script["box"](np.random.default_rng(seed))
        path = script["write"](tmp_path, mesh, texture, 0.1)
        return path.read_bytes(), texture.tobytes()

    first = written(0)
    assert written(0) == first and written(1)[0] != first[0] and written(1)[1] != first[1]


def test_obj_files_hold_the_mesh_and_name_the_texture(script: dict, tmp_path: Path) -> None:
    mesh, texture = script["can"](np.random.default_rng(0))
    path = script["write"](tmp_path, mesh, texture, 0.5)
    words = [line.split() for line in path.read_text().splitlines()]
    assert [sum(word[0] == kind for word in words) for kind in ("v", "vt", "vn")] == [len(mesh.points)] * 3
    points = np.array([word[1:] for word in words if word[0] == "v"], dtype=float)
    np.testing.assert_allclose(points, mesh.points, atol=1e-5)
    faces = np.array([[one.split("/")[0] for one in word[1:]] for word in words if word[0] == "f"], dtype=int)
    np.testing.assert_array_equal(faces - 1, mesh.triangles)
    assert "map_Kd package.png" in path.with_suffix(".mtl").read_text()
    with Image.open(tmp_path / "package.png") as picture:
        assert picture.tobytes() == texture.tobytes()


def test_text_fits_its_box(script: dict) -> None:
    image = Image.new("RGB", (100, 60), (0, 0, 0))
    script["_text"](image, "a long line of words", (0.2, 1 / 6, 0.8, 0.5), (255, 255, 255))
    rows, columns = np.nonzero(np.asarray(image)[..., 0] > 40)
    assert len(rows) and columns.min() >= 20 and columns.max() < 80 and rows.min() >= 10 and rows.max() < 30
    script["_text"](image, "none", (0.2, 2 / 3, 0.22, 1), (255, 255, 255))
    assert not np.asarray(image)[40:].any(), "a box without room was written on"


def test_packages_become_cutouts_that_can_be_read(
    script: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = []

    def render(path: Path, upright: np.ndarray, random: np.random.Generator) -> Iterator[np.ndarray]:
        turns.append(upright)
        assert path.read_text().startswith("usemtl m\nv ")
        view = np.zeros((384, 384, 4), np.float32)
        view[100:250, 100:200] = random.random()
        view[100:110, 100:110] = 0
        view[100:250, 100:200, 3] = view[100:250, 100:200].any(axis=2)
        yield from (view, view * 0)

    monkeypatch.setitem(script["packages"].__globals__, "render", render)
    assert script["packages"](tmp_path, 20) == 20
    expected = {f"{kind}__{number:03d}__0" for number, kind in enumerate(script["KINDS"] * 2)}
    assert {path.stem for path in tmp_path.iterdir()} == expected
    assert len(Atlas.from_folders([tmp_path], size=16).group_sizes) == 20
    for upright in turns:
        np.testing.assert_array_equal(upright @ upright.T, np.eye(3))
        assert np.linalg.det(upright) == pytest.approx(1), "a package was mirrored"
    assert 2 <= len({str(upright) for upright in turns}) <= 3
