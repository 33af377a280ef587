"""Weights in fewer bits on disk: as half precision, or as 8-bit integers with one scale an output channel. In memory they are floats."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

Precision = Literal["float32", "float16", "int8"]

SCALE = ".int8_scale"
"""End of the name of the scales of a tensor of 8-bit integers: float32 (out, 1, ...)."""
SMALLEST = 1000
"""Matrices of fewer numbers stay in half precision."""


class StoredSmall:
    """What makes a diffusers model read the files that `store` wrote; it stands before `ModelMixin`, which a model's module must import by this
    name: diffusers looks for it there."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As diffusers' method of this name."""
        folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        files = sorted(folder.glob("*.safetensors"))
        if not any(name.endswith(SCALE) for file in files for name in stored_names(file)):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]
        kwargs.pop("subfolder", None)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as whole:
            for file in folder.iterdir():
                if file in files:
                    save_file(restored(load_file(file)), Path(whole, file.name), metadata={"format": "pt"})
                elif file.is_file():
                    shutil.copy(file, whole)
            return super().from_pretrained(whole, **kwargs)  # type: ignore[misc]


def store(file: Path, precision: Precision) -> None:
    """Write a safetensors file again in fewer bits."""
    if precision != "float32":
        save_file(shrunk(load_file(file), precision), file, metadata={"format": "pt"})


def stored_names(file: Path) -> list[str]:
    """Names of the tensors of a safetensors file."""
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def shrunk(tensors: dict[str, torch.Tensor], precision: Precision) -> dict[str, torch.Tensor]:
    """Tensors as they are stored: matrices of at least `SMALLEST` numbers as `precision` says, other floats in half precision.

    int8: each output channel's largest magnitude becomes 127, so that a weight is off by at most 1/254 of it.
    """
    small = {}
    for name, value in tensors.items():
        if precision == "int8" and value.is_floating_point() and value.ndim > 1 and value.numel() >= SMALLEST:
            rows = value.float()
            scale = rows.flatten(1).abs().amax(dim=1).clamp(min=1e-30).reshape(-1, *[1] * (value.ndim - 1)) / 127
            small[name], small[name + SCALE] = (rows / scale).round().to(torch.int8), scale
        elif precision != "float32" and value.is_floating_point():
            small[name] = value.to(torch.float16)
        else:
            small[name] = value
    return {name: value.contiguous() for name, value in small.items()}


def restored(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `shrunk` left of the tensors, integers brought back to float32."""
    whole = {name: value for name, value in tensors.items() if not name.endswith(SCALE)}
    for name in tensors.keys() - whole.keys():
        whole[name.removesuffix(SCALE)] = tensors[name] * tensors[name.removesuffix(SCALE)].float()
    return whole
