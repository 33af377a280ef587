"""The mean of weights: its numbers, its settings, and what cannot be averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config
from torch import nn

from sas.__main__ import main
from sas.averaging import average_weights
from sas.factory import build_model, build_pipeline
from sas.io import InputError
from sas.models import register_encoder
from sas.pipeline import SASPipeline


def saved(folder: Path, *, seed: int, changes: dict[str, Any] | None = None, **settings: Any) -> Path:
    config = tiny_config(**settings)
    model = build_model(config).eval()
    torch.manual_seed(seed)
    for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
        nn.init.normal_(tensor, std=0.1)
    for tensor in model.buffers():
        if not tensor.is_floating_point():
            tensor.fill_(seed)
    pipe = build_pipeline(config, model, model_id=f"of-seed-{seed}")
    pipe.register_to_config(**(changes or {}))
    pipe.save_pretrained(folder)
    return folder


def test_the_mean_with_the_settings_of_the_first(tmp_path: Path) -> None:
    folders = [
        saved(tmp_path / str(seed), seed=seed, changes={"stop_shift": float(seed), "ensemble_size": 2 + seed})
        for seed in (1, 2, 3)
    ]
    before = {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
    pipe = average_weights([folders[0], folders[1], folders[1], folders[2]])
    states = [SASPipeline.from_pretrained(folder).model.state_dict() for folder in folders]
    differs = 0
    for name, value in pipe.model.state_dict().items():
        one, two, three = (state[name].double() for state in states)
        torch.testing.assert_close(value.double(), (one + 2 * two + three) / 4, atol=1e-6, rtol=1e-6)
        differs += bool((one != two).any())
    assert differs > 5
    assert pipe.config.stop_shift == 1.0 and pipe.config.ensemble_size == 3
    assert (
        pipe.config.model_id == ""
        and pipe.model_info.sha256 != SASPipeline.from_pretrained(folders[0]).model_info.sha256
    )
    assert before == {path: path.read_bytes() for path in before}


class Normalised(nn.Module):
    """An encoder whose normalisation keeps statistics and counts batches."""

    strides, widths = (1, 2), (8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 2, stride=2)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        first = self.norm(self.first(image))
        return [first, self.second(first)]


def test_statistics_are_averaged_and_whole_numbers_are_those_of_the_first(tmp_path: Path) -> None:
    register_encoder("normalised", Normalised)
    settings = {
        "model_name": "split", "model_encoder": "normalised", "model_patch": 1, "model_channels": (8, 16), "data_image_size": 32,
        "data_mask_size": 32, "data_oversample": 1, "model_attention_sizes": (),
    }  # fmt: skip
    folders = [saved(tmp_path / str(seed), seed=seed, **settings) for seed in (3, 4)]
    one, two = (SASPipeline.from_pretrained(folder).model.state_dict() for folder in folders)
    state = average_weights(folders).model.state_dict()
    (counts,) = (name for name, value in state.items() if not value.is_floating_point())
    assert counts.endswith("num_batches_tracked") and state[counts] == one[counts] == 3
    (means,) = (name for name in state if name.endswith("running_mean"))
    torch.testing.assert_close(state[means], (one[means] + two[means]) / 2)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (saved(tmp_path / name, seed=seed) for name, seed in (("one", 1), ("two", 2)))
    out = tmp_path / "mean"
    assert main(["average", str(one), str(two), "--out", str(out), "--saved-weights", "float16"]) == 0
    assert f"average of 2 weights -> {out}" in capsys.readouterr().out
    pipe = SASPipeline.from_pretrained(out)
    assert pipe.model_info.id == "mean"
    mean = average_weights([one, two]).model.state_dict()
    for name, value in pipe.model.state_dict().items():
        torch.testing.assert_close(value, mean[name], atol=1e-3, rtol=1e-3)


def test_one_alone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="weights must be two or more, got 1"):
        average_weights([tmp_path])


def test_another_architecture(tmp_path: Path) -> None:
    one, wide = saved(tmp_path / "one", seed=1), saved(tmp_path / "wide", seed=1, model_channels=(16, 16, 16))
    with pytest.raises(InputError, match=rf"weights {wide} are of another architecture than {one}"):
        average_weights([one, wide])


@pytest.mark.parametrize(("field", "value"), [("mask_scale", 0.3), ("data_split", "0" * 64), ("image_range", "unit")])
def test_weights_that_were_trained_otherwise(field: str, value: object, tmp_path: Path) -> None:
    one = saved(tmp_path / "one", seed=1, changes={"image_range": "signed"})
    other = saved(tmp_path / "other", seed=2, changes={"image_range": "signed", field: value})
    with pytest.raises(InputError, match=rf"weights {other} must have the {field} of {one}"):
        average_weights([one, other])
    assert main(["average", str(one), str(other), "--out", str(tmp_path / "mean")]) != 0
    assert not (tmp_path / "mean").exists()
