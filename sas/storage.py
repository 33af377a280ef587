"""Weights in fewer bits on disk: as half precision, or as 8-bit integers with one scale an output channel. In memory they are floats."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sas.io import InputError

Precision = Literal["float32", "float16", "int8"]

SCALE = ".int8_scale"
"""End of the name of the scales of a tensor of 8-bit integers: float32 (out, 1, ...)."""
SMALLEST = 1000
"""Matrices of fewer numbers stay in half precision."""


class StoredSmall:
    """What makes a diffusers model read the files that `store` wrote; named before `ModelMixin` among a network's classes.

    (The network's module must import `ModelMixin` under this name: diffusers looks for it there.)
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As diffusers' method of this name. InputError for weights of 8-bit integers named by a hub id."""
        load = super().from_pretrained  # type: ignore[misc]
        folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        if not folder.is_dir():
            wanted = kwargs.pop("output_loading_info", False)
            model, notes = load(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
            if any(name.endswith(SCALE) for name in notes["unexpected_keys"]):
                raise InputError(
                    f"weights {pretrained_model_name_or_path} are stored as 8-bit integers, which are read from a folder alone; "
                    "use SASPipeline.from_pretrained, or download them first"
                )
            return (model, notes) if wanted else model
        files = sorted(folder.glob("*.safetensors"))
        if not any(name.endswith(SCALE) for file in files for name in stored_names(file)):
            return load(pretrained_model_name_or_path, **kwargs)
        kwargs.pop("subfolder", None)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as whole:
            for file in folder.iterdir():
                if file in files:
                    save_file(restored(load_file(file)), Path(whole, file.name), metadata={"format": "pt"})
                elif file.is_file():
                    shutil.copy(file, whole)
            loaded = load(whole, **kwargs)
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            for tensor in itertools.chain(model.parameters(), model.buffers()):
                tensor.data = tensor.data.clone()  # what is read may still lie in the file, which goes away
            return loaded


def check_precision(precision: str, model: object) -> None:
    """InputError for a precision that is not known, or that a network could not be read back from."""
    known = get_args(Precision)
    if precision not in known:
        raise InputError(f"saved_weights must be one of {', '.join(known)}, got {precision!r}; choose one of them")
    if precision == "int8" and not isinstance(model, StoredSmall):
        raise InputError(
            f"saved_weights must be float32 or float16 for a network of class {type(model).__name__}, got 'int8'; or let the class inherit from "
            "sas.storage.StoredSmall before ModelMixin"
        )


def store(file: Path, precision: Precision) -> None:
    """Write a safetensors file again in fewer bits."""
    if precision != "float32":
        save_file(shrunk(load_file(file), precision), file, metadata={"format": "pt"})


def stored_names(file: Path) -> list[str]:
    """Names of the tensors of a safetensors file."""
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def shrunk(tensors: dict[str, torch.Tensor], precision: Literal["float16", "int8"]) -> dict[str, torch.Tensor]:
    """Tensors as they are stored: with int8 matrices of at least `SMALLEST` numbers as integers, all other floats in half precision.

    Each output channel's largest magnitude becomes 127, so that a weight is off by at most 1/254 of it. InputError for a tensor with values
    that are not finite, or too large for half precision.
    """
    small = {}
    for name, value in tensors.items():
        if not value.is_floating_point():
            small[name] = value
        elif precision == "int8" and value.ndim > 1 and value.numel() >= SMALLEST:
            rows = value.float()
            scale = rows.flatten(1).abs().amax(dim=1).clamp(min=1e-30).reshape(-1, *[1] * (value.ndim - 1)) / 127
            small[name], small[name + SCALE] = (rows / scale).round().to(torch.int8), scale
        else:
            small[name] = value.to(torch.float16)
    for name, value in small.items():
        if not bool(torch.isfinite(value).all()):
            raise InputError(
                f"saved_weights {precision} needs finite weights of at most 65504, got others in {name.removesuffix(SCALE)}; look at the weights, "
                "or save them as float32"
            )
    return {name: value.contiguous() for name, value in small.items()}


def restored(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `shrunk` left of the tensors; floats and integers with a scale as float32. InputError for a half of a pair."""
    for name, value in tensors.items():
        scaled = value.dtype == torch.int8 and not name.endswith(SCALE)
        if (scaled and name + SCALE not in tensors) or (
            name.endswith(SCALE) and name.removesuffix(SCALE) not in tensors
        ):
            raise InputError(
                f"weights in 8-bit integers need each tensor and its scale, got {name} alone; save them again from a whole copy"
            )
    whole = {}
    for name, value in tensors.items():
        if name + SCALE in tensors:
            whole[name] = value.float() * tensors[name + SCALE]
        elif not name.endswith(SCALE):
            whole[name] = value.float() if value.is_floating_point() else value
    return whole
