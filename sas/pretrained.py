"""Weights on disk: where they are, whether they are whole, and the hash that names them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sas.io import InputError, check_replaceable, first_line, read_json
from sas.manifest import CheckpointError, refuse_pickle, verify_manifest
from sas.storage import SCALE, StoredSmall, stored_names

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "default"


def find_weights(weights: str | Path | None) -> Path | None:
    """Pipeline folder that `weights` means, or None for a hub id. InputError for everything else."""
    if weights is None or weights == "default":  # a Path is a folder, also of that name
        if not (DEFAULT_WEIGHTS / "model_index.json").exists():
            raise InputError(
                f"the shipped weights are missing at {DEFAULT_WEIGHTS}; install sas-amodal again or pass weights="
            )
        return DEFAULT_WEIGHTS
    try:
        path = Path(weights).expanduser()
        if not path.is_dir():
            refuse_pickle(path)
        a_file = path.is_file()
    except CheckpointError as error:
        raise InputError(str(error)) from error
    except (OSError, RuntimeError) as error:  # a name that is too long, the home of nobody
        raise InputError(f"weights {weights} is no valid path ({first_line(error)}); check it") from error
    if a_file:
        raise InputError(
            f"weights {path} must be a pipeline folder, got a file; pass the folder that holds model_index.json"
        )
    for folder in (path, path / "pipeline"):
        if (folder / "model_index.json").exists():
            return folder
    if path.is_dir():
        cure = "pass a folder saved by sas"
        if any((path / "checkpoints").glob("step-*")):
            cure = "this run has saved no weights yet: if it was stopped, start it again with --max-minutes 0.1, which saves them"
        raise InputError(
            f"weights {path} must hold model_index.json or pipeline/model_index.json, found neither; {cure}"
        )
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(weights)) and not str(weights).startswith("."):
        return None
    raise InputError(f"weights {weights} is no folder and no hub id owner/name; check the path")


def verify_weights(folder: Path) -> None:
    """Check the manifest; InputError for a damaged, missing or foreign one."""
    if not (folder / "MANIFEST.json").exists():
        raise InputError(f"weights {folder} hold no MANIFEST.json; pass a folder saved by SASPipeline.save_pretrained")
    try:
        verify_manifest(folder)
    except CheckpointError as error:
        raise InputError(f"weights {error}") from error
    index = read_json(folder / "model_index.json")
    found = index.get("_class_name") if isinstance(index, dict) else None
    if found != "SASPipeline":
        raise InputError(f"weights {folder} must hold a SASPipeline, got {found}; pass a folder saved by sas")


def check_tensors(folder: Path, model: torch.nn.Module) -> None:
    """InputError unless the files hold the network's tensors and no others: diffusers fills gaps with random numbers."""
    suffix = SCALE if isinstance(model, StoredSmall) else ""
    stored = {
        name.removesuffix(suffix) for file in (folder / "model").glob("*.safetensors") for name in stored_names(file)
    }
    if wrong := sorted(stored ^ set(model.state_dict())):
        raise InputError(
            f"weights {folder} do not fit the architecture in model/config.json (first difference: {wrong[0]}); "
            "use the folder as it was saved, with the version of sas that made it"
        )


def file_hash(folder: Path) -> str:
    """SHA-256 of the network's weights file."""
    digest = hashlib.sha256()
    for file in sorted((folder / "model").glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def state_hash(model: torch.nn.Module) -> str:
    """SHA-256 of the network's tensors in memory, by name and value."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


OWN_FILES = r"model_index\.json|MANIFEST\.json|model|scheduler"
"""What a pipeline folder holds of its own."""


def check_folder_to_save(folder: Path, *, name: str) -> None:
    """InputError, which calls the folder `name`, if it has files in it and is no pipeline."""
    check_replaceable(folder, marks=("model_index.json",), kind="pipeline", name=name)


def forget_folder(file: Path) -> None:
    """Drop what diffusers notes of the folder the weights were read from: a private path is nobody else's business."""
    settings = json.loads(file.read_text())
    if settings.pop("_name_or_path", None) is not None:
        file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


_CODES = ("mask_scale", "mask_centred", "logits", "image_range")
_SCHEDULE = (
    "prediction_type",
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "rescale_betas_zero_snr",
)


def meanings(first: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name of each setting that gives a network's numbers their meaning (codes of masks and pictures, schedule), and its values in two pipelines."""
    yield from ((name, first.config[name], other.config[name]) for name in _CODES)
    yield from ((name, first.scheduler.config.get(name), other.scheduler.config.get(name)) for name in _SCHEDULE)
