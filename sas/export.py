"""Export both parts of the network to ONNX, for runtimes without torch (the extra `onnx`)."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import torch
from torch import nn

from sas.io import InputError, atomic_folder
from sas.models import Features
from sas.pipeline import SASPipeline

WRITTEN = {"encoder.onnx", "denoiser.onnx", "settings.json"}
"""All files of an export; a folder with just these may be replaced."""


class _Encoder(nn.Module):
    """`encode` as a module: image -> one output a feature map."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.model.encode(image)  # type: ignore[operator]
        return (features,) if isinstance(features, torch.Tensor) else tuple(features)


class _Denoiser(nn.Module):
    """`forward` with the feature maps as further inputs."""

    def __init__(self, model: nn.Module, single: bool) -> None:
        super().__init__()
        self.model = model
        self.single = single

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, cumulative: torch.Tensor, *maps: torch.Tensor
    ) -> torch.Tensor:
        features: Features = maps[0] if self.single else maps
        return self.model(noisy, timestep, cumulative, features)


def export_onnx(pipe: SASPipeline, out: str | Path, *, opset: int = 18) -> list[Path]:
    """Write `encoder.onnx`, `denoiser.onnx` and `settings.json` (sizes, schedule, codes) to a folder that appears when complete.

    encoder: image float32 (batch, 3, H, W) in [-1, 1], or in [0, 255] where the settings' `image_range` is "bytes" -> feature_0, feature_1, ...
    denoiser: noisy (rows, 1, h, w), timestep int64 (rows,), cumulative (rows, 1, h, w) in {-1, 1}, feature_0, ... -> output (rows, C, h, w).
    Batch and rows are free.
    The pipeline stays as it is. An earlier export is replaced. InputError: the folder holds other files, or the extra `onnx` is not installed.
    """
    names = {path.name for path in Path(out).iterdir()} if Path(out).is_dir() else set()
    if names and names != WRITTEN:
        found = min(names - WRITTEN or names)
        raise InputError(
            f"out must be a new or empty folder or an earlier export, which is replaced as a whole, got {out}, which holds {found} and is no "
            "export; choose a new or empty folder"
        )
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError("export needs packages that are not installed; pip install 'sas-amodal[onnx]'") from error
    model, config = copy.deepcopy(pipe.model).float().cpu().eval(), pipe.config
    image = torch.zeros(2, 3, config.image_size, config.image_size)
    masks = torch.zeros(2, 1, config.mask_size, config.mask_size)
    encoder = _Encoder(model).eval()
    with torch.no_grad():
        maps = encoder(image)
        single = isinstance(model.encode(image), torch.Tensor)
    features = [f"feature_{number}" for number in range(len(maps))]
    batch, rows = torch.export.Dim("batch", min=1), torch.export.Dim("rows", min=1)
    with atomic_folder(Path(out)) as folder:
        torch.onnx.export(
            encoder, (image,), folder / "encoder.onnx", input_names=["image"], output_names=features, opset_version=opset,
            dynamic_shapes=({0: batch},), dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip
        given = (
            masks,
            torch.zeros(2, dtype=torch.int64),
            masks.clone(),
            *maps,
        )  # not one tensor twice: it would be one input
        torch.onnx.export(
            _Denoiser(model, single).eval(), given, folder / "denoiser.onnx", input_names=["noisy", "timestep", "cumulative", *features],
            output_names=["output"], opset_version=opset, dynamo=True, external_data=False, verbose=False,
            dynamic_shapes=({0: rows}, {0: rows}, {0: rows}, tuple({0: rows} for _ in maps)),
        )  # fmt: skip
        settings = {
            "pipeline": _plain(dict(config)),
            "scheduler": {"kind": type(pipe.scheduler).__name__, **_plain(dict(pipe.scheduler.config))},
        }
        (folder / "settings.json").write_text(json.dumps(settings, indent=2, sort_keys=True, allow_nan=False) + "\n")
        written = sorted(path.name for path in folder.iterdir())
    return [Path(out) / name for name in written]


def _plain(values: dict) -> dict:
    """Settings that JSON can hold, which knows no infinity, and another program can use."""
    return {
        k: v
        for k, v in values.items()
        if not k.startswith("_")
        and isinstance(v, str | int | float | bool | type(None))
        and not (isinstance(v, float) and not math.isfinite(v))
    }
