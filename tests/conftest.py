"""Shared by the tests: few threads, the sample photographs if there are any, and tiny real objects."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # read once, by NumPy: its threads and torch's get in each other's way

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from sas.data.atlas import Atlas
from sas.data.backgrounds import render_backgrounds
from sas.models import ConcatUNet
from sas.pipeline import SASPipeline
from sas.scene import Scene


def pytest_configure() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder of the sample photographs."""
    folder = os.environ.get("SAS_SAMPLES")
    if not folder:
        pytest.skip("SAS_SAMPLES is not set: the sample photographs are not part of the repository")
    return Path(folder)


def fresh(folder: Path) -> Path:
    """A new folder in `folder`, for tests that write several times."""
    return Path(tempfile.mkdtemp(dir=folder))


def box(height: int, width: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    """bool (height, width), True on rows top..bottom-1 and columns left..right-1."""
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.fixture(scope="session")
def tiny_scene() -> Scene:
    """Four objects on 20x30 pixels: a chain of three, and one by itself; layers [0, 1, 2, 0]."""
    boxes = [(2, 2, 10, 10), (6, 6, 14, 14), (10, 10, 18, 18), (2, 20, 8, 28)]
    masks = np.stack([box(20, 30, *corners) for corners in boxes])
    order = np.zeros((4, 4), dtype=bool)
    order[0, 1] = order[1, 2] = True
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return Scene(image=image, amodal_masks=masks, order_matrix=order, id="tiny", names=("a", "b", "c", "d"))


@pytest.fixture(scope="session")
def tiny_atlas() -> Atlas:
    """Three looks in two poses each."""
    return Atlas.generated(seed=1, classes=3, views=2, size=20, families=("superquadric", "box", "ring"))


@pytest.fixture(scope="session")
def tiny_backgrounds() -> np.ndarray:
    """uint8 (3, 3, 24, 24)."""
    return render_backgrounds(seed=2, count=3, size=24)


@pytest.fixture
def make_tiny_pipe() -> Callable[..., SASPipeline]:
    """`make_tiny_pipe(seed=0, **defaults)`: a small pipeline that has learned nothing; the same weights for the same seed."""

    def make(*, seed: int = 0, **defaults: object) -> SASPipeline:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            size = int(defaults.get("image_size", 16))  # type: ignore[call-overload]
            model = ConcatUNet(size=size, channels=(8, 16), patch=2, norm_groups=4, heads=0).eval()
        scheduler = DDIMScheduler(
            prediction_type="sample", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample_range=0.5
        )
        settings: dict[str, object] = {"image_size": 16, "mask_size": 16, "mask_scale": 0.5, "logits": True}
        pipe = SASPipeline(model, scheduler, **{**settings, **defaults})  # type: ignore[arg-type]
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture
def tiny_pipe(make_tiny_pipe: Callable[..., SASPipeline]) -> SASPipeline:
    return make_tiny_pipe()
