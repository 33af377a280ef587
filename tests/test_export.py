"""ONNX files must give what torch gives, for any number of images and masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from tiny import tiny_config
from torch import nn

from sas.__main__ import main
from sas.export import export_onnx
from sas.factory import build_model, build_pipeline
from sas.io import InputError
from sas.pipeline import SASPipeline

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")

SPLIT = {
    "model_name": "split", "data_image_size": 32, "data_mask_size": 16, "data_oversample": 1, "model_channels": (8, 16, 16),
    "model_encoder_widths": (8, 8, 16), "model_attention_sizes": (4,),
}  # fmt: skip
LITE = {
    **SPLIT,
    "model_encoder": "efficientnet_lite0",
    "model_encoder_widths": (32, 64, 128),
    "model_patch": 1,
    "model_channels": (8, 16, 16, 16),
}
DEEP = {**LITE, "model_encoder": "efficientnet_lite0_deep", "data_image_size": 64, "model_fusion": (8, 16, 16, 16)}
FINE = {**DEEP, "model_blocks": 2, "model_detail": 8}
LOOK = {
    **FINE,
    "model_patch": 2,
    "model_channels": (8, 16, 16),
    "model_image_unet": (8, 16, 16, 16),
    "model_fusion": (8, 16, 16),
}
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter warns of its own future


def pipe_of(settings: dict) -> SASPipeline:
    config = tiny_config(**settings)
    model = build_model(config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.15)
    return build_pipeline(config, model.eval(), model_id="tiny")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [SPLIT, LITE, FINE, LOOK, {}],
    ids=["conv", "efficientnet", "deep with fusion and detail", "image unet", "unet"],
)
@torch.no_grad()
def test_equal_to_torch(settings: dict, tmp_path: Path) -> None:
    pipe = pipe_of(settings)
    (tmp_path / "onnx").mkdir()  # an empty folder may be taken
    files = export_onnx(pipe, tmp_path / "onnx")
    assert [path.name for path in files] == ["denoiser.onnx", "encoder.onnx", "settings.json"]
    encoder, denoiser = (onnxruntime.InferenceSession(tmp_path / "onnx" / f"{n}.onnx") for n in ("encoder", "denoiser"))
    size, mask_size = pipe.config.image_size, pipe.config.mask_size
    random = np.random.default_rng(0)
    for images, rows in ((1, 1), (3, 5)):
        image = random.uniform(-1, 1, (images, 3, size, size)).astype(np.float32)
        features = pipe.model.encode(torch.from_numpy(image))
        maps = [features] if isinstance(features, torch.Tensor) else list(features)
        for found, expected in zip(encoder.run(None, {"image": image}), maps, strict=True):
            np.testing.assert_allclose(found, expected.numpy(), atol=1e-4, rtol=1e-4)
        picture = torch.arange(rows) % images
        chosen = [part[picture] for part in maps]
        noisy = random.standard_normal((rows, 1, mask_size, mask_size)).astype(np.float32)
        cumulative = np.sign(random.standard_normal(noisy.shape)).astype(np.float32)
        timestep = random.integers(0, 1000, rows)
        given = {"noisy": noisy, "timestep": timestep, "cumulative": cumulative}
        given |= {f"feature_{n}": part.numpy() for n, part in enumerate(chosen)}
        whole = chosen[0] if isinstance(features, torch.Tensor) else tuple(chosen)
        expected = pipe.model(torch.from_numpy(noisy), torch.from_numpy(timestep), torch.from_numpy(cumulative), whole)
        np.testing.assert_allclose(denoiser.run(None, given)[0], expected.numpy(), atol=1e-4, rtol=1e-4)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "names",
    [("notes.txt", "a.txt"), ("a.txt", "settings.json"), ("a.txt", "encoder.onnx", "denoiser.onnx", "settings.json")],
)
def test_a_folder_of_something_else_is_refused_and_left_alone(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text(f"mine: {name}")
    before = contents(tmp_path)
    rule = "out must be a new or empty folder or an earlier export, which is replaced as a whole"
    with pytest.raises(InputError, match=rf"^{rule}, got \S+, which holds a\.txt and is no export; choose a new or"):
        export_onnx(pipe_of(SPLIT), tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = pipe_of(SPLIT)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)  # whose settings hold an infinity
    pipe.save_pretrained(tmp_path / "weights")
    (tmp_path / "onnx").mkdir()
    for name in ("encoder.onnx", "denoiser.onnx", "settings.json"):  # an earlier export, of which nothing stays
        (tmp_path / "onnx" / name).write_text("old")
    assert main(["export", "--weights", str(tmp_path / "weights"), "--out", str(tmp_path / "onnx")]) == 0
    assert str(tmp_path / "onnx" / "encoder.onnx") in capsys.readouterr().out
    assert all(path.read_bytes() != b"old" for path in (tmp_path / "onnx").iterdir())
    settings = json.loads((tmp_path / "onnx" / "settings.json").read_text(), parse_constant=pytest.fail)
    assert settings["pipeline"]["mask_size"] == 16 and settings["scheduler"]["num_train_timesteps"] == 1000
    assert settings["scheduler"]["kind"] == "DPMSolverMultistepScheduler"
    assert not [name for part in settings.values() for name in part if name.startswith("_")]
