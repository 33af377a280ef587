"""The package as users get it: a wheel, installed elsewhere, with everything in it that the first commands need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = (".*", "build", "dist", "out", "runs", "*.egg-info", "__pycache__")

pytestmark = pytest.mark.slow


def start(*words: object, **options: Any) -> str:
    """Standard output of a program that must succeed."""
    command = [str(word) for word in words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False, **options)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: building leaves folders beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "tree", ignore=shutil.ignore_patterns(*LEFT_OUT))
    start(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--quiet", "-w", folder, cwd=folder / "tree")
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("installed") / "site"
    start(sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", folder, wheel)
    return folder


@pytest.fixture
def installed(site: Path) -> dict[str, str]:
    """Environment in which `import sas` finds the installed package and not this checkout, and no hub is asked."""
    return {
        **os.environ,
        "PYTHONPATH": str(site),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HTTPS_PROXY": "http://127.0.0.1:9",  # nobody listens there
    }


def test_wheel_holds_what_is_needed_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        size = sum(entry.compress_size for entry in archive.infolist())
    source = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "sas").rglob("*")
        if path.is_file() and path.suffix not in (".pyc",)
    }
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == source, "every file of sas/, and no tests, tools or configurations"
    weights = "sas/weights/default/"
    for name in (
        "sas/py.typed",
        "sas/result.schema.json",
        f"{weights}model_index.json",
        f"{weights}MANIFEST.json",
        f"{weights}model/config.json",
        f"{weights}model/diffusion_pytorch_model.safetensors",
        f"{weights}scheduler/scheduler_config.json",
    ):
        assert name in packed, name
    assert sum(name.startswith("sas/demo_pictures/") for name in packed) >= 1
    assert any(name.endswith("/LICENSE") for name in names)
    assert any(name.endswith("/entry_points.txt") for name in names)
    assert size < 50e6, "a wheel is downloaded by everybody who installs it"


def test_installed_package_is_the_one_that_is_imported(site: Path, installed: dict[str, str], tmp_path: Path) -> None:
    words = "import sas; print(sas.__file__)"
    assert start(sys.executable, "-c", words, cwd=tmp_path, env=installed).strip() == str(site / "sas" / "__init__.py")


def test_demo_runs_from_another_folder(installed: dict[str, str], tmp_path: Path) -> None:
    told = start(sys.executable, "-m", "sas", "demo", "--out", "results", "--scenes", 1, cwd=tmp_path, env=installed)
    assert "scene-0" in told
    assert (tmp_path / "results" / "scene-0" / "result.json").is_file()
    with Image.open(tmp_path / "results" / "demo" / "overview.png") as sheet:
        assert sheet.mode == "RGB"


def test_shipped_weights_load_and_take_a_picture_apart(site: Path, installed: dict[str, str], tmp_path: Path) -> None:
    pixels = np.full((40, 60, 3), 90, dtype=np.uint8)
    pixels[10:30, 15:40] = (210, 60, 40)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    words = (
        "import sas; pipe = sas.SASPipeline.from_pretrained(); result = pipe('photo.png', seed=1); "
        "print(sas.__file__); print(result.masks_full().shape[1:], result.settings.members, result.model.sha256 != '')"
    )
    file, told = start(sys.executable, "-c", words, cwd=tmp_path, env=installed).splitlines()
    assert file == str(site / "sas" / "__init__.py")
    assert told.startswith("(40, 60) ") and told.endswith(" True")
