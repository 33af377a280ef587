"""Both protocols, run in full, on one small monolithic network that was trained once.

    python benchmarks/protocols.py [--weights results/protocols/pipeline] [--scenes 8] [--out results/protocols.json]

The official protocol: three members one after the other, 1000 steps of DDPM a layer, one mask in a call, all behind the consensus of the
layers before. Ours: the same members in one call, 4 steps of DDIM, behind the consensus too, and, in a further row, each behind the layers
that it drew itself. Same network (the concatenating UNet of `benchmarks/ablation.py`, narrower: 0.98 million parameters, 32 x 32), same
scenes, same consensus, until the network finds nothing. Without weights the network is trained first, as the ablation trains.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from ablation import BASE, UNET
from diffusers import DDPMScheduler

from sas import layerloop
from sas.config import load_config
from sas.evaluation import evaluate
from sas.factory import build_composer
from sas.metrics import bootstrap_interval
from sas.pipeline import SASPipeline
from sas.result import LayeredResult
from sas.scene import Scene
from sas.seeding import TEST_SEED
from sas.training import Trainer

SMALL = {**BASE, **UNET, "model.channels": (32, 56, 64)}
"""A monolithic network of at most a million parameters, for masks of 32 x 32."""
SCORES = ("iou_layer_0", "iou_layer_1", "iou_first_three_layers")


def train(steps: int, out: Path) -> Path:
    """The network, trained if it is not there yet; returns the folder of its pipeline."""
    run = out / f"{steps}-steps"
    trainer = Trainer(load_config(None, {**SMALL, "training.steps": steps}), run)
    if not trainer.has_pipeline:
        trainer.run()
        if not trainer.has_pipeline:
            raise SystemExit(f"stopped before the end of {run}; the same command goes on")
    return run / "pipeline"


def scenes(count: int) -> list[Scene]:
    """Scenes with objects that training has not seen, 128 x 128 pixels."""
    data = load_config(None, {**BASE, "data.classes": 40, "data.image_size": 128, "data.mask_size": 128}).data
    composer = build_composer(data, seed=TEST_SEED, atlas_seed=TEST_SEED)
    found = (composer.scenes(0, [place])[0] for place in itertools.count())
    return list(itertools.islice((scene for scene in found if len(scene)), count))


def run(
    pipe: SASPipeline,
    pictures: list[Scene],
    *,
    steps: int,
    batch_size: int,
    cumulative: Literal["shared", "member"] = "shared",
) -> dict[str, Any]:
    """Seconds, calls, passes of the loop and IoU of one protocol over all pictures, one after the other."""
    calls = 0
    seconds = 0.0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    def predict(images: list[np.ndarray], seed: int) -> list[LayeredResult]:
        nonlocal seconds
        started = time.perf_counter()
        found: LayeredResult = pipe(
            images[0],
            ensemble_size=3,
            num_inference_steps=steps,
            seed=seed,
            batch_size=batch_size,
            cumulative=cumulative,
        )
        seconds += time.perf_counter() - started
        return [found]

    hook = pipe.model.register_forward_hook(count)
    with patch.object(layerloop, "next_layer", wraps=layerloop.next_layer) as passes:
        reports = [evaluate(predict, [picture], batch=1, progress=False) for picture in pictures]
    hook.remove()
    found = {
        name: [report.scores[name].value if name in report.scores else np.nan for report in reports] for name in SCORES
    }
    return {
        "seconds": seconds,
        "calls": calls,
        "calls_a_layer_pass": calls / passes.call_count,
        "layer_passes": passes.call_count,
        "iou": {name: float(np.nanmean(values)) for name, values in found.items()},
        "iou_of_each_scene": found["iou_first_three_layers"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, ..."
    )
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--steps", type=int, default=700, help="training steps, if there are no weights")
    parser.add_argument("--out", default="results/protocols.json")
    options = parser.parse_args()
    out = Path(options.out)
    folder = options.weights or train(options.steps, out.with_suffix(""))
    pipe = SASPipeline.from_pretrained(folder).to(options.device)
    pipe.set_progress_bar_config(disable=True)
    pictures = scenes(options.scenes)
    fast = pipe.scheduler
    ours = run(pipe, pictures, steps=4, batch_size=64)
    print("ours", ours, flush=True)
    apart = run(pipe, pictures, steps=4, batch_size=64, cumulative="member")
    print("ours, each member behind its own layers", apart, flush=True)
    pipe.scheduler = DDPMScheduler.from_config(fast.config, variance_type="fixed_small")
    official = run(pipe, pictures, steps=1000, batch_size=1)
    print("official protocol", official, flush=True)

    def difference(one: dict[str, Any]) -> list[float]:
        """Of the first three layers, with its 95 % interval over the scenes."""
        values = np.subtract(one["iou_of_each_scene"], official["iou_of_each_scene"])
        return [float(np.nanmean(values)), *bootstrap_interval(values)]

    found = {
        "network": "concatenating UNet",
        "parameters": sum(p.numel() for p in pipe.model.parameters()),
        "scenes": len(pictures),
        "ours": ours,
        "ours_each_behind_its_own": apart,
        "official": official,
        "iou_ours_minus_official": difference(ours),
        "iou_each_behind_its_own_minus_official": difference(apart),
        "ratio_time": official["seconds"] / ours["seconds"],
        "ratio_time_each_behind_its_own": official["seconds"] / apart["seconds"],
        "ratio_calls_a_layer_pass": official["calls_a_layer_pass"] / ours["calls_a_layer_pass"],
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {pipe.device}",
        "date": time.strftime("%Y-%m-%d"),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(
        json.dumps(
            {name: value for name, value in found.items() if name.startswith(("parameters", "ratio", "iou_"))}, indent=1
        )
    )


if __name__ == "__main__":
    main()
