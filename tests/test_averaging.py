"""The mean of weights: its numbers, its settings, and what cannot be averaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import tiny_config
from torch import nn

from sas.__main__ import main
from sas.averaging import average_weights
from sas.config import Config
from sas.factory import build_model, build_pipeline, build_validation
from sas.io import InputError
from sas.manifest import write_manifest
from sas.models import register_encoder
from sas.pipeline import SASPipeline
from sas.validation import calibrate_stop


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


def test_the_same_shapes_built_otherwise(tmp_path: Path) -> None:
    one, other = saved(tmp_path / "one", seed=1), saved(tmp_path / "other", seed=1, model_norm_groups=2)
    with pytest.raises(InputError, match=rf"weights {other} are of another architecture than {one}"):
        average_weights([one, other])


def test_weights_saved_before_a_setting_was_known(tmp_path: Path) -> None:
    settings = {**SPLIT, "model_attention_sizes": ()}
    one, other = saved(tmp_path / "one", seed=1, **settings), saved(tmp_path / "other", seed=2, **settings)
    file = one / "model" / "config.json"
    config = json.loads(file.read_text())
    del config["detail"], config["attention_sizes"]
    file.write_text(json.dumps({**config, "attention_sizes": []}))
    write_manifest(one)
    for pair in ([one, other], [other, one]):
        average_weights(pair)


def test_another_schedule(tmp_path: Path) -> None:
    one = saved(tmp_path / "one", seed=1)
    other = saved(tmp_path / "other", seed=1, diffusion_beta_schedule="linear")
    with pytest.raises(InputError, match=rf"weights {other} must have the beta_schedule of {one}"):
        average_weights([one, other])


def test_a_folder_with_something_else_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert main(["average", str(tmp_path / "none"), str(tmp_path / "none"), "--out", str(tmp_path / "full")]) != 0
    assert "holds files that are no pipeline" in capsys.readouterr().err
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(("field", "value"), [("mask_scale", 0.3), ("data_split", "0" * 64), ("image_range", "unit")])
def test_weights_that_were_trained_otherwise(field: str, value: object, tmp_path: Path) -> None:
    one = saved(tmp_path / "one", seed=1, changes={"image_range": "bytes"})
    other = saved(tmp_path / "other", seed=2, changes={"image_range": "bytes", field: value})
    with pytest.raises(InputError, match=rf"weights {other} must have the {field} of {one}"):
        average_weights([one, other])
    assert main(["average", str(one), str(other), "--out", str(tmp_path / "mean")]) != 0
    assert not (tmp_path / "mean").exists()


SPLIT = {
    "model_name": "split", "data_image_size": 32, "data_mask_size": 16, "data_oversample": 1, "model_encoder_widths": (8, 8, 16),
    "model_attention_sizes": (4,), "model_channels": (8, 16, 16), "logging_validation_scenes": 8,
}  # fmt: skip


def calibrated(folder: Path, config: Config, settings: dict[str, Any]) -> tuple[int, list[Path]]:
    """Status of `sas average --calibrate` on two weights, and those weights."""
    weights = [saved(folder / name, seed=seed, **settings) for name, seed in (("one", 1), ("two", 2))]
    (folder / "training.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    options = ["--out", str(folder / "mean"), "--calibrate", str(folder / "training.yaml")]
    return main(["average", *map(str, weights), *options]), weights


def test_calibration_again(tmp_path: Path) -> None:
    config = tiny_config(**SPLIT)
    status, weights = calibrated(tmp_path, config, SPLIT)
    assert status == 0
    found = SASPipeline.from_pretrained(tmp_path / "mean").config
    scenes = build_validation(config).batch(0, range(config.logging.validation_scenes))
    assert (found.stop_scale, found.stop_shift) == pytest.approx(calibrate_stop(average_weights(weights), scenes))
    assert found.stop_scale != SASPipeline.from_pretrained(weights[0]).config.stop_scale


@pytest.mark.parametrize("settings, of_config", [({}, {}), (SPLIT, {**SPLIT, "data_image_size": 64})])
def test_calibration_that_does_not_fit(
    settings: dict[str, Any], of_config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = calibrated(tmp_path, tiny_config(**of_config), settings)
    assert status != 0
    assert (
        "must be of the sizes and the data split of the weights, which must have a stop output"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "mean").exists()
