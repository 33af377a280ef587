"""Rendered household things to train on, from a package of Debian 12; nothing of it is part of this repository.

    apt-get download sweethome3d-furniture && dpkg-deb -x sweethome3d-furniture_*.deb material
    apt-get install libosmesa6 && pip install vtk
    python examples/furniture.py material data/furniture

writes cutouts `<category>__<name>__<view>.webp`: up to six views each of the models of Kator Legaz, Reallusion and Scopia, and of
contributors of Blend Swap (CC BY 3.0, CC BY 3.0 US, CC0). What drives becomes the group `vehicle`. A few minutes on two cores.
"""

import ctypes.util
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

CATALOGS = "usr/share/sweethome3d/furniture"
NO_THINGS = ("Doors and windows", "Staircases")
"""Categories of what is part of a house."""
VIEWS = ((10, 25), (20, 35), (25, 45), (35, 60), (50, 75), (70, 88))
"""Least and greatest height of the camera in each view, degrees."""
SIDE, LONGEST = 384, 128
"""Side of a rendering, and longer side of a cutout, pixels."""


class Model(NamedTuple):
    """One entry of a catalog. path: the OBJ file inside the catalog. rotation: (3, 3), which sets the model upright."""

    name: str
    category: str
    path: str
    rotation: np.ndarray


def models(properties: str) -> Iterator[Model]:
    """Entries of a catalog's PluginFurnitureCatalog.properties."""
    entries: dict[int, dict[str, str]] = {}
    for key, number, value in re.findall(r"^(\w+)#(\d+)=(.*)$", properties, re.MULTILINE):
        entries.setdefault(int(number), {})[key] = value.strip()
    for _, entry in sorted(entries.items()):
        if entry["model"].endswith(".obj") and entry["category"] not in NO_THINGS:
            rotation = np.array(entry.get("modelRotation", "1 0 0 0 1 0 0 0 1").split(), dtype=float).reshape(3, 3)
            name = re.sub(r"\W+", "-", Path(entry["model"]).stem)
            yield Model(name, entry["category"], entry["model"].lstrip("/"), rotation)


def simplify(path: Path) -> None:
    """Number the materials of an OBJ file and its MTL file, and let none be clearer than glass that is seen.

    Names that are numbers or have blanks, and some rarer statements, stop the importer.
    """
    library = path.with_suffix(".mtl")
    numbers: dict[str, int] = {}
    kept: list[str] = []
    for line in library.read_text("latin1").splitlines() if library.exists() else ():
        word, _, rest = line.strip().partition(" ")
        if word == "newmtl":
            kept.append(f"newmtl m{numbers.setdefault(rest.strip(), len(numbers))}")
        elif word == "map_Kd" or word in ("Kd", "Ks", "Ns"):
            kept.append(f"{word} {rest.strip()}")
        elif word == "d":
            kept.append(f"d {max(float(rest.split()[-1]), 0.6)}")
    library.write_text("\n".join(kept) + "\n", "latin1")
    lines = []
    for line in path.read_text("latin1").splitlines():
        if line.startswith("usemtl"):
            name = line[6:].strip()
            line = f"usemtl m{numbers[name]}" if name in numbers else ""
        if line.startswith(("v ", "vn ", "vt ", "f ", "usemtl")):
            lines.append(line)
    path.write_text("\n".join(lines) + "\n", "latin1")


def render(path: Path, rotation: np.ndarray, random: np.random.Generator) -> Iterator[np.ndarray]:
    """The views of a model, each from another side and in another light: float (SIDE, SIDE, 4), colours times alpha, in [0, 1]."""
    if ctypes.util.find_library("OSMesa"):  # draws without a screen; else VTK looks for what there is
        os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkOSOpenGLRenderWindow")
    try:
        import vtkmodules.vtkRenderingOpenGL2  # noqa: F401  registers what renders
        from vtkmodules.util.numpy_support import vtk_to_numpy
        from vtkmodules.vtkCommonCore import vtkObject
        from vtkmodules.vtkIOImport import vtkOBJImporter
        from vtkmodules.vtkRenderingCore import vtkLight, vtkRenderer, vtkRenderWindow, vtkWindowToImageFilter
    except ImportError as error:
        sys.exit(f"models are rendered with VTK, which cannot be loaded ({error}): pip install vtk")
    window, renderer, importer = vtkRenderWindow(), vtkRenderer(), vtkOBJImporter()
    vtkObject.GlobalWarningDisplayOff()  # of textures that the package has not got, not of a window that cannot be had
    window.SetOffScreenRendering(1)
    window.SetSize(SIDE, SIDE)
    window.SetAlphaBitPlanes(1)
    window.SetMultiSamples(0)
    renderer.SetBackgroundAlpha(0)
    window.AddRenderer(renderer)
    importer.SetFileName(str(path))
    importer.SetFileNameMTL(str(path.with_suffix(".mtl")))
    importer.SetTexturePath(str(path.parent))
    importer.SetRenderWindow(window)
    importer.Update()
    actors = renderer.GetActors()
    actors.InitTraversal()
    for _ in range(actors.GetNumberOfItems()):
        surface = actors.GetNextActor().GetProperty()
        surface.SetAmbientColor(surface.GetDiffuseColor())
        surface.SetAmbient(0.25)
        surface.SetDiffuse(0.9)
    renderer.AutomaticLightCreationOff()
    renderer.RemoveAllLights()
    lamp, sky = vtkLight(), vtkLight()
    for light in (lamp, sky):
        light.SetLightTypeToSceneLight()
        renderer.AddLight(light)
    sky.SetIntensity(0.35)
    for least, most in VIEWS:
        camera = renderer.GetActiveCamera()
        camera.SetFocalPoint(0, 0, 0)
        camera.SetPosition(*_direction(random.uniform(0, 360), random.uniform(least, most)) @ rotation)
        camera.SetViewUp(*np.array([0, 1, 0]) @ rotation)
        camera.SetViewAngle(random.uniform(15, 40))
        renderer.ResetCamera()
        lamp.SetPosition(*_direction(random.uniform(0, 360), random.uniform(25, 80)) @ rotation)
        lamp.SetIntensity(random.uniform(0.5, 0.9))
        sky.SetPosition(*camera.GetPosition())
        sky.SetFocalPoint(*camera.GetFocalPoint())
        renderer.ResetCameraClippingRange()
        window.Render()
        grab = vtkWindowToImageFilter()
        grab.SetInput(window)
        grab.SetInputBufferTypeToRGBA()
        grab.ReadFrontBufferOff()
        grab.Update()
        pixels = vtk_to_numpy(grab.GetOutput().GetPointData().GetScalars()).reshape(SIDE, SIDE, 4)
        yield pixels[::-1] / np.float32(255)
    window.Finalize()


def _direction(azimuth: float, height: float) -> np.ndarray:
    a, h = np.radians(azimuth), np.radians(height)
    return np.array([np.cos(h) * np.sin(a), np.sin(h), np.cos(h) * np.cos(a)])


def cutout(view: np.ndarray) -> Image.Image | None:
    """A view, trimmed and scaled; None if hardly anything is seen, it falls to pieces, or it fills its rectangle."""
    shown = view[..., 3] > 0.5
    pieces, _ = ndimage.label(shown)
    if shown.sum() < 0.02 * shown.size or np.bincount(pieces[shown]).max() < 0.9 * shown.sum():
        return None
    rows, columns = (np.flatnonzero(shown.any(axis=axis)) for axis in (1, 0))
    view = view[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if view[..., 3].min() > 0.5:
        return None
    height, width = view.shape[:2]
    factor = LONGEST / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    bands = [np.asarray(Image.fromarray(band).resize(size, Image.Resampling.BOX)) for band in np.moveaxis(view, 2, 0)]
    small = np.stack(bands, axis=2)
    small[..., :3] /= np.maximum(small[..., 3:], 1e-3)
    return Image.fromarray((small.clip(0, 1) * 255).round().astype(np.uint8))


def furniture(material: Path, out: Path) -> int:
    """Cutouts of all models in the catalogs, written to `out`; returns how many."""
    count = 0
    for catalog in sorted((material / CATALOGS).glob("*.sh3f")):
        with zipfile.ZipFile(catalog) as archive, tempfile.TemporaryDirectory() as folder:
            archive.extractall(folder)
            for model in models(archive.read("PluginFurnitureCatalog.properties").decode("latin1")):
                path = Path(folder) / model.path
                simplify(path)
                random = np.random.default_rng([*f"{catalog.stem} {model.name}".encode()])
                group = "vehicle" if model.category == "Vehicles" else model.category.split()[0].lower()
                for number, view in enumerate(render(path, model.rotation, random)):
                    picture = cutout(view)
                    if picture is not None:
                        picture.save(
                            out / f"{group}__{catalog.stem.lower()}-{model.name}__{number}.webp", lossless=True
                        )
                        count += 1
    return count


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    target = Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    print(f"{furniture(Path(sys.argv[1]), target)} pictures in {target}")
