"""Checkpoints under kills, faults, damage, two writers and pickles.

Run as a script (`python test_checkpoint.py faults FOLDER kill`), this file is the process that forks the children to be
killed: one import of torch serves some hundred kills.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sas.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint, set_aside_checkpoints
from sas.manifest import MANIFEST, PICKLE_SUFFIXES, CheckpointError, refuse_pickle, verify_manifest, write_manifest
from sas.optimizer_state import optimizer_from_tensors, optimizer_to_tensors
from sas.run_lock import lock_run

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills are tested on forked processes")
FILES = ("MANIFEST.json", "ema.safetensors", "model.safetensors", "state.json")
# What is saved before the save of step 3 that is disturbed.
SCENARIOS: dict[str, list[int]] = {"first": [], "next": [1, 2], "keep_one": [2], "again": [2, 3], "interrupted": [2, 3]}
TORN = ("next", "again")  # elsewhere a loss of power differs little from a kill

Tensors = dict[str, dict[str, Tensor]]
Outcomes = dict[str, dict[str, int]]


def contents(seed: int) -> tuple[Tensors, dict[str, Any]]:
    values = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))
    return {"model": {"weight": values}, "ema": {"weight": values / 3, "count": torch.tensor(seed)}}, {"seed": seed}


def save(root: Path, step: int, *, seed: int | None = None, keep: int = 2) -> Path:
    tensors, state = contents(step if seed is None else seed)
    return save_checkpoint(root, step=step, tensors=tensors, state=state, keep=keep)


def same_bits(first: Tensor, second: Tensor) -> bool:
    def raw(tensor: Tensor) -> Tensor:
        return tensor.contiguous().reshape(-1).view(torch.uint8)

    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(raw(first), raw(second))


def is_whole(checkpoint: Checkpoint | None, step: int, *, seed: int | None = None) -> bool:
    """The checkpoint is the one that `save` wrote, bit for bit."""
    tensors, state = contents(step if seed is None else seed)
    if checkpoint is None or checkpoint.step != step or checkpoint.state != state:
        return False
    return checkpoint.tensors.keys() == tensors.keys() and all(
        checkpoint.tensors[name].keys() == group.keys()
        and all(same_bits(checkpoint.tensors[name][key], value) for key, value in group.items())
        for name, group in tensors.items()
    )


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def loaded(root: Path) -> Checkpoint:
    checkpoint = latest_checkpoint(root)
    assert checkpoint is not None
    return checkpoint


# ------------------------------------------------------------------------------------------------------ save and load


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "absent") is None


def test_round_trip_and_layout(tmp_path: Path) -> None:
    root = tmp_path / "run" / "nested"
    folder = save(root, 120)
    assert folder == root / "step-00000120"
    assert names(folder) == list(FILES)
    assert names(root) == ["latest", "step-00000120"]
    assert (root / "latest").read_text() == "step-00000120\n"
    checkpoint = loaded(root)
    assert checkpoint.path == folder
    assert is_whole(checkpoint, 120)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64])
def test_every_bit_pattern_survives(tmp_path: Path, dtype: torch.dtype) -> None:
    """NaN payloads and subnormal numbers included: random bytes seen as numbers."""
    raw = torch.randint(0, 256, (1024,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    group = {"many": raw.view(dtype), "one": raw.view(dtype)[3], "none": raw.view(dtype)[:0].reshape(0, 3)}
    save_checkpoint(tmp_path, step=1, tensors={"model": group}, state={})
    back = loaded(tmp_path).tensors["model"]
    assert all(same_bits(back[key], group[key]) for key in group)


def test_shared_strided_and_trainable_tensors(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    weight = torch.nn.Parameter(base)
    group = {
        "weight": weight,
        "tied": weight,
        "slice": base[:, 1],
        "turned": base.permute(2, 0, 1),
        "expanded": torch.ones(1).expand(5),
        "flags": base > 7,
    }
    save_checkpoint(tmp_path, step=0, tensors={"model": group}, state={})
    back = loaded(tmp_path).tensors["model"]
    assert all(same_bits(back[key], value.detach()) and back[key].is_contiguous() for key, value in group.items())
    back["weight"].zero_()
    assert back["tied"].any(), "tensors read back do not share storage"


@pytest.mark.parametrize("tensors", [{}, {"model": {}}])
def test_empty_tensors(tmp_path: Path, tensors: Tensors) -> None:
    save_checkpoint(tmp_path, step=5, tensors=tensors, state={"only": "state"})
    assert loaded(tmp_path).tensors == tensors
    assert loaded(tmp_path).state == {"only": "state"}


def test_state_values(tmp_path: Path) -> None:
    state = {"text": "größe ✓", "none": None, "flag": True, "tiny": 5e-324, "third": 1 / 3, "pair": (1, [2.5, {}])}
    save_checkpoint(tmp_path, step=1, tensors={}, state=state)
    assert loaded(tmp_path).state == state | {"pair": [1, [2.5, {}]]}


def test_steps_beyond_eight_digits_are_ordered_as_numbers(tmp_path: Path) -> None:
    save(tmp_path, 99_999_999)
    save(tmp_path, 100_000_000)
    assert is_whole(latest_checkpoint(tmp_path), 100_000_000)


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=3)
    assert names(tmp_path) == ["latest", "step-00000002", "step-00000003", "step-00000004"]
    save(tmp_path, 5, keep=1)
    assert names(tmp_path) == ["latest", "step-00000005"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2, seed=7)
    save(tmp_path, 2, seed=8)
    assert is_whole(latest_checkpoint(tmp_path), 2, seed=8)
    assert names(tmp_path) == ["latest", "step-00000001", "step-00000002"]


def test_a_missing_or_wrong_pointer_does_not_matter(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "latest").write_text("step-00000001\n")
    assert loaded(tmp_path).step == 2
    (tmp_path / "latest").unlink()
    assert loaded(tmp_path).step == 2


def test_strays_are_ignored_and_kept(tmp_path: Path) -> None:
    strays = [
        "step-abc",
        "step-7",
        "step-7.bak",
        "step-00000009.bak",
        "step-000000009",
        "9",
        "x.tmp-1",
        "step-00000003-b",
    ]
    for name in strays:
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.txt").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "step-00000099").write_text("a file, not a folder")
    for step in (1, 2, 3):
        save(tmp_path, step, keep=1)
    assert loaded(tmp_path).step == 3
    assert names(tmp_path) == sorted([*strays, "notes.txt", "step-00000099", "latest", "step-00000003"])
    assert all(names(tmp_path / name) == ["data.txt"] for name in strays)


def test_left_over_folders_are_removed_by_the_next_save(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000002.tmp-0123")
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000001.replaced-0123456789ab.tmp-4")
    (tmp_path / "latest.tmp-0123").write_text("half")
    assert loaded(tmp_path).step == 1, "an unfinished folder is no checkpoint"
    save(tmp_path, 3)
    assert names(tmp_path) == ["latest", "step-00000001", "step-00000003"]


def test_a_replaced_folder_is_found_when_its_successor_never_came(tmp_path: Path) -> None:
    (save(tmp_path, 1)).rename(tmp_path / "step-00000001.replaced-0123456789ab")
    assert is_whole(latest_checkpoint(tmp_path), 1)
    save(tmp_path, 2)
    assert names(tmp_path) == ["latest", "step-00000001", "step-00000002"]


def test_set_aside_hides_all_and_deletes_nothing(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    moved = set_aside_checkpoints(tmp_path)
    assert [path.name[:23] for path in moved] == ["step-00000020.abandoned", "step-00000010.abandoned"]
    assert latest_checkpoint(tmp_path) is None
    save(tmp_path, 5, keep=1)
    assert is_whole(latest_checkpoint(tmp_path), 5)
    moved[0].rename(tmp_path / "step-00000020")
    assert is_whole(latest_checkpoint(tmp_path), 20)
    assert set_aside_checkpoints(tmp_path / "absent") == []


def test_a_later_step_is_neither_deleted_nor_overlooked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 20)
    save(tmp_path, 10, keep=1)
    assert "a later start would resume from it" in caplog.text
    assert names(tmp_path) == ["latest", "step-00000010", "step-00000020"]


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"step": -1}, ValueError, "step must be an integer of at least 0, got -1"),
        ({"step": True}, ValueError, "step must be an integer"),
        ({"step": 1.0}, ValueError, "step must be an integer"),
        ({"keep": 0}, ValueError, "keep must be an integer of at least 1, got 0"),
        ({"tensors": {"../evil": {}}}, ValueError, r"'\.\./evil' becomes a file name"),
        ({"tensors": {"": {}}}, ValueError, "becomes a file name"),
        ({"tensors": {"model": {"w": [1.0]}}}, TypeError, r"tensors\['model'\]\['w'\] must be .* got list"),
        ({"tensors": {"model": {"w": torch.zeros(1, dtype=torch.complex128)}}}, CheckpointError, r"tensors\['model'\]"),
        ({"tensors": {"model": {"w": torch.zeros(1, device="meta")}}}, CheckpointError, "cannot be written"),
        ({"state": {"loss": float("nan")}}, ValueError, "state must hold finite numbers"),
        ({"state": {"a": [{"b": {1: 2}}]}}, TypeError, r"state\['a'\]\[0\]\['b'\] must have string keys, got 1"),
        ({"state": {"w": torch.zeros(1)}}, TypeError, "put tensors into `tensors`"),
    ],
)
def test_bad_arguments_change_nothing(tmp_path: Path, arguments: dict[str, Any], kind: type, message: str) -> None:
    save(tmp_path, 1)
    before = names(tmp_path)
    valid: dict[str, Any] = {"step": 2, "tensors": {}, "state": {}}
    with pytest.raises(kind, match=message):
        save_checkpoint(tmp_path, **(valid | arguments))
    assert names(tmp_path) == before
    assert is_whole(latest_checkpoint(tmp_path), 1)


def test_the_place_is_taken_by_a_file(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000002").write_text("in the way")
    before = names(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*step-00000002: .*free disk space"):
        save(tmp_path, 2)
    assert names(tmp_path) == before
    for call in (lambda root: save(root, 1), latest_checkpoint, lambda root: lock_run(root).__enter__()):
        with pytest.raises(CheckpointError, match="step-00000002"):
            call(tmp_path / "step-00000002")


# ------------------------------------------------------------------------------------------------------------- damage


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"{")


def flip_last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "reason"),
    [(Path.unlink, "missing"), (truncate, "size"), (empty, "size"), (extend, "size"), (flip_last_bit, "hash")],
)
def test_damage_falls_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None], reason: str
) -> None:
    save(tmp_path, 1)
    damage(save(tmp_path, 2) / name)
    with caplog.at_level(logging.WARNING, logger="sas.checkpoint"):
        assert is_whole(latest_checkpoint(tmp_path), 1)
    warning = caplog.messages[0]
    assert str(tmp_path / "step-00000002") in warning
    assert name in warning
    assert (reason if name != MANIFEST or reason == "missing" else "not a readable JSON manifest") in warning


def test_no_flipped_bit_goes_unseen(tmp_path: Path) -> None:
    """One bit in every byte of every file: what is loaded is always one of the two checkpoints, bit for bit."""
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    for name in FILES:
        whole = (folder / name).read_bytes()
        for index in range(len(whole)):
            damaged = bytearray(whole)
            damaged[index] ^= 1 << index % 8
            (folder / name).write_bytes(damaged)
            checkpoint = latest_checkpoint(tmp_path)
            survived = name == MANIFEST and is_whole(checkpoint, 2)  # its format_version key, say, is not checked
            assert survived or is_whole(checkpoint, 1), (name, index)
        (folder / name).write_bytes(whole)
    assert is_whole(latest_checkpoint(tmp_path), 2)


def test_all_damaged_is_an_error_that_lists_each(tmp_path: Path) -> None:
    truncate(save(tmp_path, 1) / "model.safetensors")
    (save(tmp_path, 2) / "ema.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        latest_checkpoint(tmp_path)
    lines = str(caught.value).splitlines()
    assert "none of the 2 checkpoints" in lines[0]
    assert "step-00000002: ema.safetensors is missing" in lines[1]
    assert "step-00000001: model.safetensors has" in lines[2]
    assert "--restart" in lines[3]


def test_damaged_checkpoints_do_not_count_as_kept(tmp_path: Path) -> None:
    """Otherwise keep=2 would leave one whole checkpoint only, beside a useless one."""
    save(tmp_path, 1)
    truncate(save(tmp_path, 2) / "state.json")
    save(tmp_path, 3, keep=2)
    assert names(tmp_path) == ["latest", "step-00000001", "step-00000002", "step-00000003"]
    save(tmp_path, 4, keep=2)
    assert names(tmp_path) == ["latest", "step-00000003", "step-00000004"]


def test_a_damaged_later_checkpoint_is_not_preferred_to_the_new_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    truncate(save(tmp_path, 9) / "state.json")
    save(tmp_path, 2, keep=1)
    assert is_whole(latest_checkpoint(tmp_path), 2)
    save(tmp_path, 9, keep=1)
    assert is_whole(latest_checkpoint(tmp_path), 9)
    assert names(tmp_path) == ["latest", "step-00000009"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("state.json", b"{", "Expecting property name"),
        ("state.json", b"[]", "cannot be read"),
        ("state.json", b'{"format_version": 2}', "format_version 2 is not 1: update"),
        ("model.safetensors", b"\0" * 100, "deserializing"),
    ],
)
def test_unreadable_in_spite_of_its_manifest(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    folder = save(tmp_path, 1)
    (folder / name).write_bytes(content)
    write_manifest(folder)
    with pytest.raises(CheckpointError, match=reason):
        latest_checkpoint(tmp_path)


def test_a_renamed_folder_is_not_believed(tmp_path: Path) -> None:
    save(tmp_path, 1).rename(tmp_path / "step-00000500")
    with pytest.raises(CheckpointError, match=r"state\.json is of step 1: the folder was renamed"):
        latest_checkpoint(tmp_path)


# ---------------------------------------------------------------------------------------------------------- manifests


def make_pipeline_folder(root: Path) -> Path:
    for name in ("model_index.json", "unet/config.json", "unet/deep/weights.safetensors", "unet/MANIFEST.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "empty").mkdir()
    return root


def test_manifest_of_a_nested_folder(tmp_path: Path) -> None:
    root = make_pipeline_folder(tmp_path)
    write_manifest(root)
    manifest = json.loads((root / MANIFEST).read_text())
    expected = ["model_index.json", "unet/MANIFEST.json", "unet/config.json", "unet/deep/weights.safetensors"]
    assert list(manifest["files"]) == expected
    first = (root / MANIFEST).read_bytes()
    write_manifest(root)
    assert (root / MANIFEST).read_bytes() == first, "it does not list itself"
    (root / "README.md").write_text("added later")
    (root / ".gitattributes").write_text("added later")
    verify_manifest(root)
    (root / MANIFEST).rename(root / "OTHER.json")
    verify_manifest(root, name="OTHER.json")
    with pytest.raises(CheckpointError, match=r"MANIFEST\.json is missing"):
        verify_manifest(root)


def test_manifest_names_the_first_defect_and_the_cure(tmp_path: Path) -> None:
    root = make_pipeline_folder(tmp_path)
    write_manifest(root)
    (root / "unet/config.json").write_text("unet/config.jsoN")
    with pytest.raises(
        CheckpointError, match=r"unet/config\.json does not match its SHA-256 hash .* call .*write_manifest"
    ):
        verify_manifest(root)
    (root / "unet/deep/weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"unet/deep/weights\.safetensors is missing"):
        verify_manifest(root)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "unet/../../outside"])
def test_manifest_does_not_reach_outside(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_text("")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / MANIFEST).write_text(json.dumps({"files": {name: {"size": 0, "sha256": ""}}}))
    with pytest.raises(CheckpointError, match="lies outside the folder"):
        verify_manifest(folder)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"files": []}', '{"files": {"a": 1}}', '{"files": {"a": {}}}', "\0"]
)
def test_malformed_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match="not a readable JSON manifest"):
        verify_manifest(tmp_path)


# ------------------------------------------------------------------------------------------------------------- pickles


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_malicious_pickle_is_refused_unopened(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    attack = pickle.dumps(Attack(marker))
    pickle.loads(attack)
    assert marker.exists(), "the attack works if somebody unpickles it"
    marker.unlink()
    (tmp_path / "model.pt").write_bytes(attack)
    with pytest.raises(CheckpointError, match=r"model\.pt is a \.pt file.*run any code.*Convert it.*pipeline folder"):
        refuse_pickle(tmp_path / "model.pt")
    folder = save(tmp_path, 1)
    (folder / "model.safetensors").write_bytes(attack)
    write_manifest(folder)
    with pytest.raises(CheckpointError, match="cannot be read"):
        latest_checkpoint(tmp_path)
    assert not marker.exists()


def test_refused_suffixes() -> None:
    for suffix in PICKLE_SUFFIXES:
        with pytest.raises(CheckpointError, match="refused"):
            refuse_pickle(Path(f"weights{suffix.upper()}"))
    for name in ("model.safetensors", "model.pt.safetensors", "folder", "config.json", ".pt/model.safetensors"):
        refuse_pickle(Path(name))


# ----------------------------------------------------------------------------------------------------------- optimizer


def adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    convolution, linear = model[0], model[2]  # type: ignore[index]
    groups = [{"params": convolution.parameters(), "lr": 1e-2, "betas": (0.8, 0.9)}, {"params": linear.parameters()}]
    return torch.optim.AdamW(groups, lr=1 / 300, amsgrad=True)


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        images = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()


def make_model() -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(48, 2))
    model[2].bias.requires_grad_(False)  # a parameter without optimizer state
    channels_last: torch.nn.Module = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return channels_last


def assert_same(first: Any, second: Any) -> None:
    assert type(first) is type(second)
    if isinstance(first, Tensor):
        assert same_bits(first, second)
        assert first.stride() == second.stride()
    elif isinstance(first, dict):
        assert list(first) == list(second), "the order of the keys too"
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, two in zip(first, second, strict=True):
            assert_same(one, two)
    else:
        assert first == second


@pytest.mark.parametrize("make_optimizer", [adamw, sgd])
def test_resumed_training_is_bitwise_equal(tmp_path: Path, make_optimizer: Callable[..., Any]) -> None:
    model = make_model()
    optimizer = make_optimizer(model)
    train(model, optimizer, range(3))
    tensors, meta = optimizer_to_tensors(optimizer.state_dict())
    save_checkpoint(
        tmp_path, step=3, tensors={"model": model.state_dict(), "optimizer": tensors}, state={"optimizer": meta}
    )
    checkpoint = loaded(tmp_path)
    restored = optimizer_from_tensors(checkpoint.tensors["optimizer"], checkpoint.state["optimizer"])
    assert_same(restored, optimizer.state_dict())

    resumed = make_model()
    resumed.load_state_dict(checkpoint.tensors["model"])
    resumed_optimizer = make_optimizer(resumed)
    resumed_optimizer.load_state_dict(restored)
    train(model, optimizer, range(3, 6))
    train(resumed, resumed_optimizer, range(3, 6))
    assert_same(resumed.state_dict(), model.state_dict())
    assert_same(resumed_optimizer.state_dict(), optimizer.state_dict())


def test_optimizer_before_its_first_step_and_odd_values() -> None:
    state = sgd(make_model()).state_dict()
    tensors, meta = optimizer_to_tensors(state)
    assert tensors == {}
    assert_same(optimizer_from_tensors(tensors, meta), state)
    odd = {
        "state": {7: {"step": torch.tensor(3.0), "buffer": None, "nested": {"a": [torch.ones(2), (1, ())]}}, "x": {}},
        "param_groups": [{"lr": torch.tensor(1e-3), "limit": float("-inf"), "betas": (0.9, True), "params": [7, 0]}],
    }
    tensors, meta = optimizer_to_tensors(odd)
    assert sorted(tensors) == ["param_groups.0.lr", "state.7.nested.a.0", "state.7.step"]
    assert_same(optimizer_from_tensors(tensors, json.loads(json.dumps(meta, allow_nan=False))), odd)


def test_optimizer_bad_input() -> None:
    with pytest.raises(TypeError, match=r"state\.0\.hook must be a tensor, number.* got builtin_function"):
        optimizer_to_tensors({"state": {0: {"hook": print}}})
    with pytest.raises(TypeError, match=r"a key in state must be int or str, got \(0, 1\)"):
        optimizer_to_tensors({"state": {(0, 1): 3}})
    with pytest.raises(ValueError, match=r"two entries named 'state\.0'"):
        optimizer_to_tensors({"state": {0: torch.ones(1), "0": torch.ones(1)}})
    tensors, meta = optimizer_to_tensors({"state": {0: {"step": torch.ones(1)}}})
    with pytest.raises(CheckpointError, match=r"'state\.0\.step' is missing"):
        optimizer_from_tensors({}, meta)
    with pytest.raises(CheckpointError, match=r"'extra' is not listed"):
        optimizer_from_tensors(tensors | {"extra": torch.ones(1)}, meta)


# ---------------------------------------------------------------------------------------------------------------- lock


def script(*arguments: str) -> list[str]:
    return [sys.executable, __file__, *arguments]


def script_environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(sys.modules["sas.checkpoint"].__file__ or "").parents[1])}


@needs_fork
def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    """The lock goes with its process, even if that is killed and a forked worker lives on."""
    root = tmp_path / "run"
    command = script("hold", str(root))
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=script_environment(), stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        worker = int(holder.stdout.readline())
        message = rf"run is in use by process {holder.pid} on host .*two runs must not write"
        with pytest.raises(CheckpointError, match=message), lock_run(root):
            pass
        holder.kill()
        holder.wait()
        with lock_run(root):
            os.kill(worker, 0)  # still there
            assert f"process {os.getpid()} on" in (root / ".lock").read_text()
    save(root, 1)
    with lock_run(root):
        assert loaded(root).step == 1


@needs_fork
def test_lock_is_released_by_an_exception_and_refused_within_a_process(tmp_path: Path) -> None:
    with lock_run(tmp_path):
        with pytest.raises(CheckpointError, match=f"process {os.getpid()} on"), lock_run(tmp_path):
            pass
        with pytest.raises(CheckpointError, match="in use"), lock_run(tmp_path):
            pass
    with suppress(KeyError), lock_run(tmp_path):
        raise KeyError
    with lock_run(tmp_path):
        pass


def hold_lock(root: Path) -> None:
    """Take the lock, fork a worker, and wait, both, until stdin is closed."""
    with lock_run(root):
        worker = os.fork()
        if worker:
            sys.stdout.write(f"{worker}\n")
            sys.stdout.flush()
        sys.stdin.read()


# ------------------------------------------------------------------------------------- kills and faults at every point


def run_faults(folder: Path, *kinds: str) -> Outcomes:
    """Have the script inject faults of these kinds; it stops with an error where a rule is broken."""
    command = script("faults", str(folder), *kinds)
    done = subprocess.run(command, env=script_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    outcomes: Outcomes = json.loads(done.stdout)
    return outcomes


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return run_faults(tmp_path_factory.mktemp("kills"), "kill")


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return run_faults(tmp_path_factory.mktemp("faults"), "tear", "error", "random", "disk")


def check_every_point_was_tried(outcomes: dict[str, int]) -> None:
    assert outcomes["points"] >= 14
    assert outcomes["old"] >= 8
    assert outcomes["new"] >= 2
    assert outcomes["old"] + outcomes["new"] == outcomes["points"]


@needs_fork
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_kill_at_every_write_point(kills: Outcomes, scenario: str) -> None:
    check_every_point_was_tried(kills[f"{scenario} kill"])


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "fault"), [(scenario, "tear") for scenario in TORN] + [(scenario, "error") for scenario in SCENARIOS]
)
def test_power_loss_and_error_at_every_write_point(faults: Outcomes, scenario: str, fault: str) -> None:
    check_every_point_was_tried(faults[f"{scenario} {fault}"])


@needs_fork
@pytest.mark.slow
def test_random_kills_lose_no_reported_checkpoint(faults: Outcomes) -> None:
    assert faults["random"]["kills"] == 25
    assert faults["random"]["saved"] >= 25


@needs_fork
@pytest.mark.slow
def test_full_disk(faults: Outcomes) -> None:
    """A limit on the size of files stops the write of tensors, of the state and of the manifest."""
    assert faults["disk"]["refused"] >= 5
    assert faults["disk"]["saved"] >= 1
    assert faults["disk"]["named"] == faults["disk"]["refused"], "the message names path, reason and cure"


def prepare(root: Path, scenario: str) -> None:
    root.mkdir(parents=True)
    for step in SCENARIOS[scenario]:
        save(root, step)
    if scenario == "interrupted":  # an earlier save of step 3 was killed between its two renames
        shutil.copytree(root / "step-00000003", root / "step-00000003.tmp-0123")
        (root / "step-00000003").rename(root / "step-00000003.replaced-0123456789ab")


def disturb(fault: str, at: int) -> Callable[[], bool]:
    """Let the `at`-th of all calls that change the disk fail; the function returned tells if that call was reached.

    "kill" and "tear" end the process before the call; "tear" also leaves half of a file that was not synced yet, as a
    loss of power does. "error" raises OSError once.
    """
    calls = 0

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at and fault == "error":
                raise OSError(errno.ENOSPC, "No space left on device (injected)")
            if calls == at:
                if fault == "tear" and function.__name__ == "fsync":
                    with suppress(OSError):  # a folder, or a file open for reading
                        os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return counted

    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
        setattr(os, name, wrap(getattr(os, name)))
    shutil.rmtree = wrap(shutil.rmtree)  # type: ignore[assignment]
    return lambda: calls >= at


DONE, REFUSED, REFUSED_NAMED, NOT_REACHED, BUG = 0, 10, 11, 12, 13


def in_child(action: Callable[[], int]) -> int:
    """Exit status of a forked child: what `action` returns, REFUSED for CheckpointError, or minus the signal."""
    child = os.fork()
    if child == 0:
        status = BUG
        try:
            status = action()
        except CheckpointError:
            status = REFUSED
        except BaseException:
            logging.exception("in a child")
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_scenario(folder: Path, scenario: str, fault: str) -> Counter[str]:
    """Disturb the save of step 3 (of seed 33) at every point in turn; see what is loaded, and save once more."""
    outcomes: Counter[str] = Counter()
    prepare(folder / "template", scenario)
    old = SCENARIOS[scenario][-1] if SCENARIOS[scenario] else None
    while True:
        at = outcomes["points"] + 1
        root = folder / str(at)
        shutil.copytree(folder / "template", root)

        def action(root: Path = root, at: int = at) -> int:
            reached = disturb(fault, at)
            save(root, 3, seed=33, keep=1 if scenario == "keep_one" else 2)
            return DONE if reached() else NOT_REACHED

        status = in_child(action)
        checkpoint = latest_checkpoint(root)
        new = is_whole(checkpoint, 3, seed=33)
        if status == NOT_REACHED:
            assert new
            return outcomes
        assert status in ((DONE, REFUSED) if fault == "error" else (-signal.SIGKILL,)), (scenario, fault, at, status)
        assert new or (status != DONE and (checkpoint is None if old is None else is_whole(checkpoint, old))), at
        for folder_name in names(root):
            if folder_name.startswith("step-") and ".tmp-" not in folder_name:
                verify_manifest(root / folder_name)  # a half deleted one would be reported as damaged
        if status == REFUSED and not new and scenario != "interrupted":
            assert all(len(name) == len("step-00000003") or name == "latest" for name in names(root)), names(root)
        outcomes["points"] += 1
        outcomes["new" if new else "old"] += 1

        save(root, 4)
        assert is_whole(latest_checkpoint(root), 4)
        kept = 3 if new or old == 3 else old
        assert names(root) == ["latest", *(f"step-{step:08d}" for step in (kept, 4) if step is not None)], names(root)


def kill_at_random(root: Path) -> Counter[str]:
    """Kill savers at random moments; each reports a step once it is saved, and continues after the newest one found."""
    outcomes: Counter[str] = Counter()
    clock = random.Random(0)
    for _ in range(25):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                found = latest_checkpoint(root)
                for step in range(found.step + 1 if found else 0, 1_000_000):
                    save(root, step)
                    os.write(writer, step.to_bytes(8, "big"))
            os._exit(BUG)
        os.close(writer)
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            reported = pipe.read(8)  # the first report
            time.sleep(clock.uniform(0, 0.03))
            os.kill(child, signal.SIGKILL)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
            reported += pipe.read()
        last = int.from_bytes(reported[-8:], "big")
        checkpoint = latest_checkpoint(root)
        assert checkpoint is not None
        assert checkpoint.step in (last, last + 1)
        assert is_whole(checkpoint, checkpoint.step)
        outcomes["kills"] += 1
        outcomes["saved"] += len(reported) // 8
    return outcomes


def fill_disk(folder: Path) -> Counter[str]:
    import resource

    outcomes: Counter[str] = Counter()
    for limit in range(0, 1000, 100):
        root = folder / str(limit)
        save(root, 1)
        before = names(root)

        def action(root: Path = root, limit: int = limit) -> int:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                save(root, 2)
            except CheckpointError as error:
                named = all(text in str(error) for text in (f"{root}/step-00000002", "too large", "free disk space"))
                return REFUSED_NAMED if named else REFUSED
            return DONE

        status = in_child(action)
        assert status in (DONE, REFUSED, REFUSED_NAMED), (limit, status)
        outcomes["saved" if status == DONE else "refused"] += 1
        outcomes["named"] += status == REFUSED_NAMED
        assert is_whole(latest_checkpoint(root), 2 if status == DONE else 1)
        assert status == DONE or names(root) == before
        save(root, 3)
        assert is_whole(latest_checkpoint(root), 3)
    return outcomes


def inject_faults(folder: Path, *kinds: str) -> None:
    torch.set_num_threads(1)
    results = {}
    for kind in kinds:
        if kind in ("random", "disk"):
            results[kind] = (kill_at_random if kind == "random" else fill_disk)(folder / kind)
            continue
        for scenario in SCENARIOS if kind != "tear" else TORN:
            results[f"{scenario} {kind}"] = run_scenario(folder / kind / scenario, scenario, kind)
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    if sys.argv[1] == "hold":
        hold_lock(Path(sys.argv[2]))
    else:
        inject_faults(Path(sys.argv[2]), *sys.argv[3:])
