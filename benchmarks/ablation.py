"""What each choice of the method is worth: one factor at a time around the default, on generated scenes at 32 x 32 masks.

    python benchmarks/ablation.py [--cells default eps ...] [--seeds 0 1] [--steps 1500] [--out results/ablation]
    python benchmarks/ablation.py --table        # docs/ablation.md from the files of finished cells

A cell is one training, or one change of the sampler on a trained network. Each writes one JSON file, and finished ones are skipped, so the
command can be stopped and started again. Minutes are CPU time, which other programs lengthen less than the time of the clock. Nothing is
downloaded: scenes and backgrounds are rendered, the encoder starts from scratch.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

from sas.config import load_config
from sas.factory import build_composer
from sas.pipeline import SASPipeline
from sas.scene import SceneBatch
from sas.seeding import VALIDATION_SEED
from sas.training import Trainer
from sas.validation import validate

ROOT = Path(__file__).resolve().parent.parent
BASE: dict[str, Any] = {
    "data.image_size": 64, "data.mask_size": 32, "data.sprite_size": 48, "data.classes": 80, "data.views": 4,
    "data.background_count": 80, "data.corruption": 0.4, "model.channels": (32, 64, 96), "model.attention_sizes": (4,),
    "training.optimizer": "adamw", "training.batch_size": 16, "training.ema_decay": 0.995, "logging.validation_scenes": 32,
    "logging.validate_every": 100_000, "logging.checkpoint_every": 250, "logging.keep_checkpoints": 1,
}  # fmt: skip
NOISE = {"diffusion.loss_type": "mse", "diffusion.zero_terminal_snr": False}
UNET = {
    "model.name": "unet", "data.image_size": 32, "data.oversample": 2, "data.sprite_size": 48, "model.patch": 2, "model.channels": (40, 72, 96),
    "model.attention_sizes": (), "model.norm_groups": 8,
}  # fmt: skip

# The published method (configs/paper.yaml) at the size and the training of the others.
PAPER = {
    **UNET, "diffusion.beta_schedule": "linear", "diffusion.prediction_type": "epsilon", "diffusion.loss_type": "mse",
    "diffusion.learned_variance": True, "diffusion.zero_terminal_snr": False, "diffusion.mask_scale": 1.0, "diffusion.high_noise_bias": 0.0,
    "data.corruption": 0.0, "data.twins": 0.0, "data.layers": "all", "sampling.scheduler": "ddpm", "sampling.consensus": "medoid",
}  # fmt: skip
LOOK = {"model.fusion": (32, 64, 96), "model.image_unet": (32, 64, 96, 96), "model.detail": 16}


@dataclass(frozen=True)
class Cell:
    """factor: the letter it belongs to. train: settings that differ from the base. sample: changes of the sampler; scenes: fewer than 200,
    where steps are many. of: the cell whose network is sampled, or fine-tuned if there are settings to train with."""

    factor: str
    words: str
    train: dict[str, Any] = field(default_factory=dict)
    sample: dict[str, Any] = field(default_factory=dict)
    of: str | None = None


TRAINED = {
    "default": Cell("-", "the default: x_0 logits, mask scale 0.2, zero terminal SNR, split network, damaged cumulative masks"),
    "eps": Cell("A", "noise prediction", {**NOISE, "diffusion.prediction_type": "epsilon"}),
    "v": Cell("A", "v prediction", {**NOISE, "diffusion.prediction_type": "v_prediction", "diffusion.zero_terminal_snr": True}),
    "x0-mse": Cell("A", "x_0 prediction, with the loss of the two above", {"diffusion.loss_type": "mse"}),
    "scale-0.5": Cell("B", "mask scale 0.5", {"diffusion.mask_scale": 0.5}),
    "snr": Cell("C", "last time step not pure noise", {"diffusion.zero_terminal_snr": False}),
    "monolithic": Cell("E", "concatenating UNet", UNET),
    "small": Cell("E", "split, half the width", {"model.channels": (16, 32, 48), "model.encoder_widths": (16, 32, 64)}),
    "large": Cell("E", "split, one and a half times the width", {"model.channels": (48, 96, 144), "model.encoder_widths": (48, 96, 192)}),
    "true": Cell("F", "true cumulative masks only", {"data.corruption": 0.0}),
    "rollout": Cell("G", "fine-tuned on its own cumulative masks", {"diffusion.rollout": 0.5}, of="default"),
    "energy": Cell("H", "fine-tuned with the energy score", {"diffusion.energy_weight": 1.0}, of="default"),
}  # fmt: skip
# Beyond the twelve trainings at most that the comparison was planned with; run by name.
BEYOND = {
    "scale-1": Cell("B", "mask scale 1", {"diffusion.mask_scale": 1.0}),
    "scale-0.1": Cell("B", "mask scale 0.1", {"diffusion.mask_scale": 0.1}),
    "fusion": Cell("E", "split, the encoder's maps fused once per image", {"model.fusion": (32, 64, 96)}),
    "look": Cell("E", "the same, a UNet that looks at the picture once more, and a stage that corrects outlines by its map", LOOK),
    "look-layers": Cell("E", "the same, which guesses all layers at once and shows the denoiser the next", {**LOOK, "diffusion.layers_weight": 1.0}),
    "paper": Cell("-", "the published method: concatenating UNet, noise prediction, 1000 steps of DDPM", PAPER, {"steps": 1000, "scenes": 12}),
    "more": Cell("G", "fine-tuned as it was trained", of="default"),
    "self-alignment": Cell("G", "fine-tuned on its own guesses under noise", {"diffusion.self_alignment": 0.5}, of="default"),
    "self-alignment-as-sampled": Cell("G", "fine-tuned on its own guesses under 0.6 of the noise, 0.6 of the noise to begin with",
                                {"diffusion.self_alignment": 0.5, "sampling.noise_scale": 0.6}, of="default"),
    "muon": Cell("-", "Muon in place of AdamW", {"training.optimizer": "muon"}),
    "muon-3e-3": Cell("-", "Muon, three times the learning rate", {"training.optimizer": "muon", "training.learning_rate": 3e-3}),
    "adamw-3e-3": Cell("-", "AdamW, three times the learning rate", {"training.learning_rate": 3e-3}),
}  # fmt: skip
SAMPLED = {
    **{f"{name}-{n}-steps": Cell("A", f"{TRAINED[name].words.partition(':')[0]}, {n} steps", sample={"steps": n}, of=name)
       for name in ("default", "eps", "v") for n in (1, 2, 10, 20, 100)},
    "default-12-scenes": Cell("-", "the default, on the scenes of `paper`", sample={"scenes": 12}, of="default"),
    "leading": Cell("C", "leading time steps", sample={"spacing": "leading"}, of="default"),
    "ancestral": Cell("D", "eta 1 (DDPM)", sample={"scheduler": DDPMScheduler}, of="default"),
    "dpmsolver": Cell("D", "DPM-Solver++", sample={"scheduler": DPMSolverMultistepScheduler}, of="default"),
    "own-cumulative": Cell("F", "each member its own cumulative mask", sample={"shared": False}, of="default"),
    "less-noise": Cell("D", "0.6 of the noise to begin with", sample={"noise_scale": 0.6}, of="default"),
    "more-less-noise": Cell("G", "fine-tuned as it was trained, 0.6 of the noise to begin with", sample={"noise_scale": 0.6}, of="more"),
    "self-alignment-less-noise": Cell("G", "fine-tuned on its own guesses, 0.6 of the noise to begin with", sample={"noise_scale": 0.6}, of="self-alignment"),
    "rollout-1-step": Cell("G", "fine-tuned on its own cumulative masks, 1 step", sample={"steps": 1}, of="rollout"),
    "energy-1-step": Cell("H", "fine-tuned with the energy score, 1 step", sample={"steps": 1}, of="energy"),
}  # fmt: skip
NETWORKS = {**TRAINED, **BEYOND}
CELLS = {**NETWORKS, **SAMPLED}


def trained(name: str, seed: int, steps: int, out: Path) -> Path:
    """Folder of the pipeline of a trained cell; trains it if need be."""
    cell, run = NETWORKS[name], out / "runs" / f"{name}-{seed}-{steps}"
    changes = {**BASE, **cell.train, "training.seed": seed, "training.steps": steps if cell.of is None else steps // 4}
    start = None
    if cell.of is not None:
        start = trained(cell.of, seed, steps, out)
        changes["training.learning_rate"] = 3e-4
    trainer = Trainer(load_config(None, changes), run, init_from=start)
    if not trainer.has_pipeline:
        started = time.process_time()
        try:
            trainer.run()
        finally:  # also of a part that was stopped
            spent = (time.process_time() - started) / 60 + (minutes(run) or 0.0)
            (run / "cpu_minutes.json").write_text(f"{spent}\n")
        if not trainer.has_pipeline:
            raise SystemExit(f"stopped before the end of {run}; the same command goes on")
    return run / "pipeline"


def minutes(run: Path) -> float | None:
    """CPU time that the training of a cell has taken so far, in all its parts and without what it began from; None if nobody wrote it down."""
    file = run / "cpu_minutes.json"
    return float(json.loads(file.read_text())) if file.exists() else None


def scenes(seed: int, image_size: int, count: int = 200) -> SceneBatch:
    """Scenes of the validation seeds, the same for all cells of an image size; fewer are the first of them."""
    held_out = load_config(
        None, {**BASE, "data.classes": 40, "data.image_size": image_size, "data.oversample": 128 // image_size}
    ).data
    return build_composer(held_out, seed=VALIDATION_SEED + seed, atlas_seed=VALIDATION_SEED).batch(0, range(count))


def changed(pipe: SASPipeline, sample: dict[str, Any]) -> SASPipeline:
    """The pipeline with a cell's sampler."""
    if "scheduler" in sample:
        extra = {"algorithm_type": "dpmsolver++"} if sample["scheduler"] is DPMSolverMultistepScheduler else {}
        pipe.scheduler = sample["scheduler"].from_config(pipe.scheduler.config, **extra)
    if "spacing" in sample:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing=sample["spacing"])
    if "noise_scale" in sample:
        pipe.register_to_config(noise_scale=sample["noise_scale"])
    if "shared" in sample:
        pipe.register_to_config(shared_cumulative=sample["shared"])
    return pipe


def spread(pipe: SASPipeline, batch: SceneBatch, steps: int) -> float:
    """How far members differ where they do: mean over first layers of 1 - IoU of pairs of members."""
    images = ((batch.image[:40] + 1) / 2).clamp(0, 1)
    results = pipe(list(images), ensemble_size=4, num_inference_steps=steps, max_layers=1)
    values = []
    for result in results:
        for members in result.members[:1]:
            flat = torch.from_numpy(members).flatten(1).double()
            both = flat @ flat.T
            union = flat.sum(1)[:, None] + flat.sum(1)[None] - both
            pairs = torch.where(union > 0, 1 - both / union.clamp(min=1), 0.0)[
                torch.triu(torch.ones_like(both, dtype=torch.bool), 1)
            ]
            values.append(float(pairs.mean()))
    return statistics.fmean(values) if values else 0.0


def run(name: str, seed: int, steps: int, out: Path) -> None:
    file = out / f"{name}-{seed}.json"
    if file.exists():
        done = json.loads(file.read_text())
        if (done.get("scene_seed"), done["training_steps"]) == (VALIDATION_SEED + seed, steps):
            return
    cell = CELLS[name]
    folder = trained(cell.of if name in SAMPLED and cell.of else name, seed, steps, out)
    pipe = changed(SASPipeline.from_pretrained(folder), cell.sample)
    pipe.set_progress_bar_config(disable=True)
    batch = scenes(seed, pipe.config.image_size, cell.sample.get("scenes", 200))
    sampling_steps = cell.sample.get("steps", 4)
    scores = validate(pipe, batch, members=3, steps=sampling_steps)
    found = {
        "cell": name, "factor": cell.factor, "words": cell.words, "seed": seed, "training_steps": steps, "minutes": minutes(folder.parent),
        "sampling_steps": sampling_steps, "parameters": sum(p.numel() for p in pipe.model.parameters()), "scenes": len(batch),
        "scene_seed": VALIDATION_SEED + seed,
        "own": scores.own, "true": scores.behind.by_layer, "stop_accuracy": scores.behind.stop_accuracy, "false_layers": scores.false_layers,
        "spread": spread(pipe, batch, sampling_steps), "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n")
    print(name, seed, [round(value, 3) for value in scores.own], flush=True)


def table(out: Path) -> str:
    """Markdown of all finished cells: mean over seeds, and their range where there are several."""
    lines = [
        "| factor | cell | network | minutes | layer 0 | layer 1 | layer 2 | stop | false layers | member spread |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, cell in CELLS.items():
        found = sorted(path for path in out.glob(f"{name}-*.json") if re.fullmatch(rf"{name}-\d+", path.stem))
        files = [json.loads(path.read_text()) for path in found]
        if not files:
            continue

        def words(values: list[float]) -> str:
            own = [value for value in values if value == value]
            span = f" ({min(own):.3f} to {max(own):.3f})" if len(own) > 1 else ""
            return f"{statistics.fmean(own):.3f}{span}" if own else "-"

        layers = [words([one["own"][k] if k < len(one["own"]) else float("nan") for one in files]) for k in range(3)]
        rest = [words([one[key] for one in files]) for key in ("stop_accuracy", "false_layers", "spread")]
        size = f"{files[0]['parameters'] / 1e6:.2f} M"
        spent = [one["minutes"] for one in files if name not in SAMPLED and one["minutes"] is not None]
        taken = " and ".join(f"{one:.0f}" for one in spent) or "-"
        lines.append(f"| {cell.factor} | `{name}`: {cell.words} | {size} | {taken} | {' | '.join(layers + rest)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cells",
        nargs="+",
        choices=CELLS,
        default=[name for name, cell in CELLS.items() if not {name, cell.of} & set(BEYOND)],
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", default="results/ablation")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    out = Path(options.out)
    if options.table:
        print(table(out))
        return
    for seed in options.seeds:
        for name in options.cells:
            run(name, seed, options.steps, out)


if __name__ == "__main__":
    main()
