"""A training run of seconds, for the tests of the trainer; imported by them, and by the programs they start."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sas.config import Config, load_config

torch.set_num_threads(1)  # on tensors this small, and beside other work, more threads are many times slower

ROOT = Path(__file__).parent.parent

SETTINGS: dict[str, Any] = {
    "data.classes": 2,
    "data.views": 2,
    "data.sprite_size": 16,
    "data.background_count": 4,
    "data.image_size": 16,
    "data.mask_size": 16,
    "data.objects": (1, 3),
    "data.oversample": 2,
    "model.name": "unet",
    "model.attention_sizes": (),
    "model.channels": (8, 16),
    "model.norm_groups": 4,
    "diffusion.mask_scale": 0.5,
    "diffusion.high_noise_bias": 1.0,
    "training.steps": 8,
    "training.batch_size": 4,
    "training.warmup_steps": 3,
    "training.learning_rate": 1e-2,
    "sampling.steps": 2,
    "sampling.members": 2,
    "sampling.max_layers": 2,
    "logging.log_every": 1,
    "logging.checkpoint_every": 3,
    "logging.validate_every": 4,
    "logging.validation_scenes": 2,
}


def tiny_config(**changes: Any) -> Config:
    """The settings above with changes such as `training_steps=3`."""
    named = {name.replace("_", ".", 1): value for name, value in changes.items()}
    return load_config(None, {**SETTINGS, **named})


def write_scenes(folder: Path, count: int = 6) -> str:
    """A folder of scenes of 0 to 3 rectangles: whole numbers only, so that every machine makes the same."""
    from sas.data.folders import write_project
    from sas.scene import Scene

    random = np.random.default_rng(0)
    scenes = []
    for number in range(count):
        objects = (3, 2, 1, 3, 0, 2)[number % 6]
        masks = np.zeros((objects, 32, 48), dtype=bool)
        image = random.integers(0, 90, (32, 48, 3), dtype=np.uint8)
        for i in reversed(range(objects)):
            top, left = random.integers(0, 12), 9 * i + random.integers(0, 6)
            masks[i, top : top + random.integers(12, 20), left : left + random.integers(14, 20)] = True
            image[masks[i]] = random.integers(90, 256, 3)
        order = np.triu(np.ones((objects, objects), dtype=bool), 1) & (masks[:, None] & masks[None]).any(axis=(2, 3))
        scenes.append(Scene(image=image, amodal_masks=masks, order_matrix=order, id=f"scene{number}"))
    write_project(folder, scenes, min_overlap=0.01)
    return str(folder)


def read_metrics(out: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without the speed, which differs from run to run."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def program_environment() -> dict[str, str]:
    """Environment of a program that the tests start: this checkout, one thread, no trace of another launch."""
    launch = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "WANDB_MODE", "WANDB_API_KEY")
    kept = {
        name: value for name, value in os.environ.items() if name not in launch and not name.startswith("ACCELERATE_")
    }
    paths = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
