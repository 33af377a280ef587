"""Checks an installation and a data folder, and says in words what is wrong and what to do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sas.data.folders import open_scenes
from sas.io import InputError
from sas.pipeline import SASPipeline, find_weights

MINIMA = {
    "torch": (2, 6),
    "diffusers": (0, 42),
    "accelerate": (1, 0),
    "numpy": (1, 26),
    "pillow": (11, 0),
    "pydantic": (2, 9),
}
EXTRAS = {"tensorboard": "tensorboard", "matplotlib": "notebook", "IPython": "notebook"}


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, whether it is in order, what was found, and what to do if it is not."""

    name: str
    ok: bool
    words: str
    cure: str = ""


def examine(weights: str | None = None) -> list[Check]:
    """Look at versions, devices, weights and the working folder."""
    python = sys.version_info[:2]
    checks = [Check("Python", python >= (3, 11), platform.python_version(), "install Python 3.11 or newer")]
    checks += [_version(package, least) for package, least in MINIMA.items()]
    checks += [_device(), _weights(weights), _guarded("sampling", lambda: _sampling(weights)), _folder()]
    for module, extra in EXTRAS.items():
        found = importlib.util.find_spec(module) is not None
        words = "installed" if found else f'not installed (optional: pip install "sas-amodal[{extra}]")'
        checks.append(Check(f"extra {module}", True, words))
    mode = os.environ.get("WANDB_MODE") or (
        "online" if os.environ.get("WANDB_API_KEY") else "offline unless WANDB_API_KEY is set"
    )
    checks.append(Check("wandb", True, mode))
    return checks


def check_scenes(path: str | Path) -> list[Check]:
    """Read every scene of a data folder and name what is wrong with it."""
    try:
        scenes = open_scenes(path)
    except (InputError, OSError) as error:
        words, _, cure = str(error).partition("; ")
        return [Check(f"data {path}", False, words, cure or "check the path")]
    checks, objects, layers = [], 0, 0
    for number in range(len(scenes)):
        try:
            scene = scenes[number]
        except (InputError, ValueError, KeyError, OSError) as error:
            words, _, cure = str(error).partition("; ")
            checks.append(Check(f"scene {number}", False, words, cure or "write the data set again"))
            continue
        empty = [i for i, mask in enumerate(scene.amodal_masks) if not mask.any()]
        if empty:
            checks.append(Check(f"scene {scene.id}", False, f"objects {empty} have empty masks", "remove them"))
        whole = scene.drop_invisible()
        if whole.dropped > scene.dropped:
            hidden = whole.dropped - scene.dropped
            checks.append(Check(f"scene {scene.id}", True, f"{hidden} objects show no pixel and will be dropped"))
        if whole.order_matrix is not None:
            if whole.assignment.cut_edges:
                checks.append(
                    Check(f"scene {scene.id}", True, f"cycles: edges {whole.assignment.cut_edges} will be cut")
                )
            layers += len(whole.layer_masks)
        objects += len(whole)
    words = f"{len(scenes)} scenes, {objects} objects, {layers} layers"
    return [Check(f"data {path}", all(check.ok for check in checks), words, "see the lines below"), *checks]


def _version(package: str, least: tuple[int, ...]) -> Check:
    wanted = ".".join(map(str, least))
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return Check(package, False, "not installed", f'pip install "{package}>={wanted}"')
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
    return Check(package, numbers >= least, version, f'pip install "{package}>={wanted}"')


def _device() -> Check:
    if torch.cuda.is_available():
        half = "with" if torch.cuda.is_bf16_supported() else "without"
        return Check("device", True, f"{torch.cuda.get_device_name()}, {half} bfloat16")
    if torch.backends.mps.is_available():
        return Check("device", True, "mps")
    return Check("device", True, f"CPU, {torch.get_num_threads()} threads, float32")


def _weights(weights: str | None) -> Check:
    def look() -> Check:
        folder = find_weights(weights)
        pipe = SASPipeline.from_pretrained(weights)
        count = sum(parameter.numel() for parameter in pipe.model.parameters())
        return Check("weights", True, f"{folder or weights}, {count / 1e6:.2f} M parameters, manifest verified")

    return _guarded("weights", look)


def _sampling(weights: str | None) -> Check:
    pipe = SASPipeline.from_pretrained(weights)
    pipe.set_progress_bar_config(disable=True)
    started = time.perf_counter()
    result = pipe(np.full((64, 64, 3), 128, dtype=np.uint8))
    return Check(
        "sampling", True, f"a grey picture took {time.perf_counter() - started:.1f} s and has {len(result)} layers"
    )


def _folder() -> Check:
    try:
        with tempfile.TemporaryFile(dir=Path.cwd()):
            return Check("working folder", True, f"{Path.cwd()} can be written")
    except OSError as error:
        return Check(
            "working folder", False, f"{Path.cwd()} cannot be written ({error.strerror})", "change to another folder"
        )


def _guarded(name: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except (InputError, ValueError, RuntimeError, OSError) as error:
        words, _, cure = " ".join(str(error).split()).partition("; ")
        return Check(name, False, words, cure or "install sas-amodal again")
