"""How fast training is: the composer, the loader, the network alone, a plain diffusers loop on the same network, and the trainer, in one
run.

    python benchmarks/throughput.py configs/demo.yaml [--rounds 5]

The works take turns, but for the last. Prints medians with their spread: scenes a second of the composer and of the loader, which reads
scenes that the composer made from a folder in the project format (files were just written, so the disk is hardly asked); pictures a second
of forward and backward pass alone (the bound), of a training loop as diffusers' examples write it on batches that are ready, and of the
trainer on batches that are ready, composed, read in the loop, and read by one process. Then the shares of a step: of composing, of reading
in the loop, and of waiting for the process. The roll-out is off, the optimizer AdamW, as in
the plain loop.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from timing import in_turns, spread
from torch.nn import functional

from sas.config import Config, load_config
from sas.data.composer import Composer
from sas.data.folders import open_scenes, write_project
from sas.data.source import SceneLoader, read_ahead
from sas.diffusion import condition, in_range
from sas.factory import build_codec, build_composer, build_model, build_objective, build_scheduler
from sas.items import layer_items
from sas.models import select_rows
from sas.scene import SceneBatch
from sas.seeding import Keys
from sas.training import Trainer


def plain_loop(config: Config, batch: SceneBatch, accelerator: Accelerator) -> Callable[[], None]:
    """One step as diffusers' training examples write it: random noise and times, add_noise, loss, backward, clip, AdamW, EMA."""
    device = accelerator.device
    model = build_model(config).to(device, memory_format=torch.channels_last)
    scheduler, codec = build_scheduler(config.diffusion, config.sampling), build_codec(config.diffusion)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rates = get_cosine_schedule_with_warmup(optimizer, 10, 1000)
    ema = EMAModel(model.parameters(), decay=config.training.ema_decay)
    items = layer_items(batch, Keys(0, 0, tuple(range(len(batch)))), layers=config.data.layers)
    target = items.target.float()

    def step() -> None:
        noise = torch.randn_like(target)
        times = torch.randint(0, config.diffusion.num_train_timesteps, (len(target),), device=device)
        noisy = scheduler.add_noise(codec.encode(target), noise, times)
        with accelerator.autocast():
            features = select_rows(model.encode(in_range(batch.image, config.sampling.image_range)), items.picture)
            output = model(noisy, times, condition(items.cumulative), features).float()
        loss = functional.binary_cross_entropy_with_logits(output[:, :1], target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        ema.step(model.parameters())

    return step


def loader_over(config: Config, composer: Composer, folder: Path) -> SceneLoader:
    """Four batches of composed scenes, written at the size the composer makes them, and a loader over them."""
    size = config.training.batch_size
    scenes = composer.scenes(0, range(4 * size))
    write_project(folder, scenes, min_overlap=scenes[0].min_overlap)
    return SceneLoader(
        open_scenes(folder), seed=0, batch_size=size, image_size=config.data.image_size, mask_size=config.data.mask_size
    )


def timed(batches: Iterator[SceneBatch], waits: list[float]) -> Iterator[SceneBatch]:
    """The same batches; notes for how many seconds each was waited for."""
    while True:
        started = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - started)
        yield batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    small = {"data.classes": 16, "data.views": 2, "data.background_count": 16}
    plain = {"training.optimizer": "adamw", "training.compile": False, "training.micro_batch": None}
    config = load_config(options.config, {**small, "diffusion.rollout": 0.0, **plain})
    batch = config.training.batch_size
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        trainer = Trainer(config, folder, progress=False)
        trainer._build()
        device = trainer.accelerator.device
        composer = build_composer(config.data, seed=0, atlas_seed=0, device=device)
        loader = loader_over(config, composer, Path(folder) / "scenes")
        ready = composer.batch(0, range(batch))
        objective, keys, number = build_objective(config), Keys(0, 0, tuple(range(batch))), itertools.count()
        plain = plain_loop(config, ready, trainer.accelerator)

        def bound() -> None:
            with trainer.accelerator.autocast():
                loss = objective.loss(trainer.model, ready, keys)["loss"].mean()
            loss.backward()
            trainer.model.zero_grad()

        def train(batches: Iterator[SceneBatch]) -> Callable[[], None]:
            def step() -> None:
                trainer._batches = batches
                trainer._train_step(next(number))

            return step

        places, waits = ((step, range(batch)) for step in itertools.count()), []
        read = stack.enter_context(read_ahead(loader, places, workers=1, pin_memory=device.type == "cuda"))
        next(read)  # the process has begun
        works = {
            "composer alone": lambda: composer.batch(next(number), range(batch)),
            "loader alone": lambda: loader.batch(next(number), range(batch)),
            "network alone (the bound)": bound,
            "plain diffusers loop": plain,
            "trainer, batches ready": train(itertools.repeat(ready)),
            "trainer with composer": train(composer.batch(step, range(batch)) for step in itertools.count()),
            "trainer with loader": train(loader.batch(step, range(batch)) for step in itertools.count()),
        }
        taken = in_turns(works, options.rounds)
        # by itself, since while others take their turns the process would read ahead
        for _ in range(2):
            next(read)
        taken["trainer, one process reads"] = in_turns({"": train(timed(read, waits))}, options.rounds)[""]
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, device {device}, {options.config}")
    for name, values in taken.items():
        median, low, high = spread([batch / value for value in values])
        print(f"{name + ', pictures/s':40s} {median:6.1f}  ({low:.1f} to {high:.1f})")

    def share(name: str, part: str, whole: str, parts: list[float], wholes: list[float]) -> None:
        median, low, high = spread([one / other for one, other in zip(parts, wholes, strict=True)])
        print(f"{name:40s} {median:6.1%}  ({low:.1%} to {high:.1%}) {part} over {whole}")

    for source in ("composer", "loader"):
        with_it = taken[f"trainer with {source}"]
        share(f"{source}'s share of a step", "its time", "the step's", taken[f"{source} alone"], with_it)
    reading = taken["trainer, one process reads"]
    share("waiting for one process", "its time", "the step's", waits[1::2], reading)  # every other one warms up
    ready_steps = taken["trainer, batches ready"]
    share("speed beside the plain loop", "its time", "the trainer's", taken["plain diffusers loop"], ready_steps)
    share("speed beside the bound", "its time", "the trainer's", taken["network alone (the bound)"], ready_steps)


if __name__ == "__main__":
    main()
