"""The demonstration: generated scenes, for which the truth is known, and example pictures that come with the package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from sas.data.atlas import Atlas
from sas.data.backgrounds import render_backgrounds
from sas.data.composer import Composer, SceneStyle
from sas.io import InputError, atomic_folder, check_replaceable
from sas.metrics import layer_ious
from sas.pictures import find_images, read_image
from sas.pipeline import SASPipeline
from sas.result import counted
from sas.result_files import RESULT_FILE
from sas.scene import Scene
from sas.seeding import TEST_SEED
from sas.visualize import image_grid

PICTURES = Path(__file__).parent / "demo_pictures"
SIZE = 384


def demo_scenes(count: int, *, seed: int, size: int = SIZE) -> list[Scene]:
    """Held-out generated scenes of two to four objects that occlude each other (test seeds: never trained on)."""
    if count == 0:
        return []
    atlas = Atlas.generated(seed=TEST_SEED + seed, classes=12, views=3, size=size // 2)
    backgrounds = render_backgrounds(seed=TEST_SEED + seed, count=8, size=size)
    style = SceneStyle(
        objects=(2, 4), empty=0.0, twins=0.0, letterbox=0.0, scale=(0.35, 0.6), spread=(0.25, 0.5), noise=0.01
    )
    composer = Composer(
        atlas, backgrounds, seed=TEST_SEED + seed, image_size=size, mask_size=size, oversample=1, style=style
    )
    found: list[Scene] = []
    step = 0
    while len(found) < count:
        found += [scene for scene in composer.scenes(step, range(4)) if len(scene.layer_masks) >= 2]
        step += 1
    return [replace(scene, id=f"scene-{number}") for number, scene in enumerate(found[:count])]


def run_demo(pipe: SASPipeline, out: Path, *, scenes: int = 4, seed: int = 0) -> Iterator[str]:
    """Take scenes and pictures apart, write a folder for each and one sheet over all; yields what to tell the user."""
    yield f"Taking {scenes} generated scenes and the example pictures apart (weights: {pipe.config.model_id}) ..."
    truths = demo_scenes(scenes, seed=seed)
    sheets, captions = [], []
    for scene in truths:
        result = replace(pipe(scene.image), file=f"{scene.id}.png")
        result.save(out / scene.id)
        scores = layer_ious(result.masks_full(), scene.layer_masks)
        words = ", ".join(f"{score:.2f}" for score in scores)
        yield f"  {out / scene.id / 'overview.png'}: {counted(len(result), 'layer')} found, {len(scores)} true; IoU of each true layer: {words}"
        sheets.append(result.overview())
        captions.append(scene.id)
    for path in find_images([PICTURES]):
        result = replace(pipe(read_image(path)), file=path.name)
        result.save(out / path.stem)
        yield f"  {out / path.stem / 'overview.png'}: {counted(len(result), 'layer')}, {counted(result.count, 'instance')}"
        sheets.append(result.overview())
        captions.append(path.stem)
    write_sheet(out / "demo", sheets, captions)
    yield f"All of them on one sheet: {out / 'demo' / 'overview.png'}"
    yield "Each overview shows the photo, its layers from front to back with hidden parts hatched, and where the model is unsure."
    yield "Your own picture: sas sample photo.jpg --out out"


def write_sheet(folder: Path, sheets: list[np.ndarray], captions: list[str]) -> None:
    """All overviews on one picture."""
    check_replaceable(folder, marks=("overview.png",), kind="demo", name="out")
    if (folder / RESULT_FILE).exists():
        raise InputError(f"out {folder} holds the result of a picture, which saving would touch; choose another folder")
    with atomic_folder(folder, own=r"overview\.png") as temporary:
        Image.fromarray(image_grid(sheets, columns=2, captions=captions, cell=700)).save(temporary / "overview.png")
