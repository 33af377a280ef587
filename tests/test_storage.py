"""Weights stored in fewer bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import ModelMixin
from safetensors.torch import load_file, save_file
from tiny import tiny_config

from sas import SASPipeline
from sas.factory import build_model, build_pipeline
from sas.io import InputError
from sas.manifest import write_manifest
from sas.models import ConcatUNet
from sas.storage import SCALE, restored, shrunk


def make_pipe() -> SASPipeline:
    config = tiny_config(model_channels=(16, 32))
    model = build_model(config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return build_pipeline(config, model.eval(), model_id="tiny")


def test_integers_are_off_by_half_a_step_of_their_channel() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(20, 8, 3, 3) * torch.logspace(-6, 3, 20)[:, None, None, None]
    matrix[3] = 0
    small = {"matrix": matrix, "few": torch.randn(3, 3), "long": torch.randn(5000), "steps": torch.tensor([70_000])}
    stored = shrunk(small, "int8")
    assert {name: value.dtype for name, value in stored.items()} == {
        "matrix": torch.int8, "matrix" + SCALE: torch.float32, "few": torch.float16, "long": torch.float16, "steps": torch.int64,
    }  # fmt: skip
    back = restored(stored)
    assert back.keys() == small.keys()
    largest = matrix.flatten(1).abs().amax(dim=1)
    off = (back["matrix"] - matrix).flatten(1).abs().amax(dim=1)
    assert bool((off <= largest / 254 * 1.001).all()) and bool((off[largest > 0] > 0).all())
    assert torch.equal(back["steps"], small["steps"]) and not back["matrix"][3].any()


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_pipeline_comes_back_and_the_one_in_memory_stays(precision: str, tmp_path: Path) -> None:
    pipe = make_pipe()
    before = {name: value.clone() for name, value in pipe.model.state_dict().items()}
    pipe.save_pretrained(tmp_path / "small", saved_weights=precision)
    assert all(torch.equal(value, before[name]) for name, value in pipe.model.state_dict().items())
    expected = restored(shrunk(before, precision))
    for dtype in (torch.float32, torch.float64):
        again = SASPipeline.from_pretrained(tmp_path / "small", dtype=dtype)
        assert again.dtype == dtype
        for name, value in again.model.state_dict().items():
            assert torch.equal(value, expected[name].to(dtype)), name
    alone = ConcatUNet.from_pretrained(tmp_path / "small", subfolder="model")
    assert all(torch.equal(value, expected[name].float()) for name, value in alone.state_dict().items())
    again.save_pretrained(tmp_path / "again", saved_weights=precision)
    first, second = (load_file(next((tmp_path / n / "model").glob("*.safetensors"))) for n in ("small", "again"))
    assert all(torch.equal(value, second[name]) for name, value in first.items()), "rounding twice is rounding once"


def test_everything_is_read_as_one_type(tmp_path: Path) -> None:
    make_pipe().save_pretrained(tmp_path / "small", saved_weights="int8")
    again = SASPipeline.from_pretrained(tmp_path / "small", low_cpu_mem_usage=False)
    assert {value.dtype for value in again.model.state_dict().values()} == {torch.float32}


def test_the_hub_gets_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[set[torch.dtype]] = []

    def upload(self: SASPipeline, folder: Path, *_: object, **__: object) -> None:
        file = next((Path(folder) / "model").glob("*.safetensors"))
        pushed.append({value.dtype for value in load_file(file).values()})

    monkeypatch.setattr(SASPipeline, "_upload_folder", upload)
    monkeypatch.setattr(
        "diffusers.utils.hub_utils.create_repo", lambda *_, **__: type("Url", (), {"repo_id": "me/small"})()
    )
    monkeypatch.setattr("diffusers.utils.hub_utils.load_or_create_model_card", lambda *_, **__: None, raising=False)
    monkeypatch.setattr("diffusers.utils.hub_utils.populate_model_card", lambda card: NoCard(), raising=False)
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path / "small", saved_weights="int8", push_to_hub=True, repo_id="me/small")
    assert pushed == [{torch.int8, torch.float16, torch.float32}]
    pipe.save_pretrained(tmp_path / "large")
    stored = load_file(next((tmp_path / "large" / "model").glob("*.safetensors")))
    assert {value.dtype for value in stored.values()} == {torch.float32}


class NoCard:
    def save(self, path: str) -> None:
        Path(path).write_text("")


def test_what_cannot_be_stored_is_named(tmp_path: Path) -> None:
    pipe = make_pipe()
    with pytest.raises(InputError, match=r"saved_weights must be one of float32, float16, int8, got 'float8'; choose"):
        pipe.save_pretrained(tmp_path / "out", saved_weights="float8")  # type: ignore[arg-type]
    with torch.no_grad():
        pipe.model.unet.conv_in.weight[0, 0, 0, 0] = float("nan")
        pipe.model.unet.conv_in.bias[0] = 1e5
    for precision in ("float16", "int8"):
        with pytest.raises(InputError, match=rf"saved_weights {precision} needs finite weights .* in unet\.conv_in\."):
            pipe.save_pretrained(tmp_path / "out", saved_weights=precision)
    pipe.model = torch.nn.Linear(3, 3)
    with pytest.raises(InputError, match="must be float32 or float16 for a network of class Linear, got 'int8'"):
        pipe.save_pretrained(tmp_path / "out", saved_weights="int8")
    assert not (tmp_path / "out").exists()


def test_integers_of_a_hub_id_are_refused_and_not_taken_for_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = {"unexpected_keys": ["a.weight" + SCALE], "missing_keys": []}
    monkeypatch.setattr(ModelMixin, "from_pretrained", classmethod(lambda cls, *_, **__: (object(), notes)))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="weights me/small are stored as 8-bit integers, .* a folder alone"):
        ConcatUNet.from_pretrained("me/small", subfolder="model")


@pytest.mark.parametrize("lost", ["integers", "scale"])
def test_half_of_a_pair_is_told(lost: str, tmp_path: Path) -> None:
    make_pipe().save_pretrained(tmp_path / "small", saved_weights="int8")
    file = next((tmp_path / "small" / "model").glob("*.safetensors"))
    stored = load_file(file)
    scale = next(name for name in stored if name.endswith(SCALE))
    del stored[scale if lost == "scale" else scale.removesuffix(SCALE)]
    save_file(stored, file)
    write_manifest(tmp_path / "small")
    with pytest.raises(InputError, match="need each tensor and its scale, got .* alone; save them again"):
        SASPipeline.from_pretrained(tmp_path / "small")


def test_size(tmp_path: Path) -> None:
    pipe = make_pipe()
    sizes = []
    for precision in ("float32", "float16", "int8"):
        pipe.save_pretrained(tmp_path / precision, saved_weights=precision)
        sizes.append(next((tmp_path / precision / "model").glob("*.safetensors")).stat().st_size)
    assert sizes[1] < 0.55 * sizes[0] and sizes[2] < 0.65 * sizes[1]
