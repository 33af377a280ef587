"""How fast training is: the composer, the loader, the network alone, a plain diffusers loop on the same network, and the trainer, in one
run.

    python benchmarks/throughput.py configs/demo.yaml [--rounds 5]

Prints medians with their spread: scenes a second of the composer and of the loader, which reads scenes that the composer made from a folder
in the project format (files were just written, so the disk is hardly asked); pictures a second of forward and backward pass alone (the
bound), of a training loop as diffusers' examples write it on batches that are ready, and of the trainer on batches that are ready, composed,
read in the loop, and read by one process. Then the shares of a step: of composing, of reading in the loop, and of waiting for the process.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
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

Rate = tuple[float, float, float]


def rate(work: Callable[[int], Any], pictures: int, rounds: int) -> Rate:
    """Pictures a second: median, lowest and highest of some rounds after one to warm up."""
    work(0)
    values = []
    for number in range(rounds):
        synchronize()
        started = time.perf_counter()
        work(number + 1)
        synchronize()
        values.append(pictures / (time.perf_counter() - started))
    return statistics.median(values), min(values), max(values)


def synchronize() -> None:
    """Wait until an accelerator, if there is one, has done what it was given: its work goes on after a call has returned."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def plain_loop(config: Config, batch: SceneBatch, device: torch.device) -> Callable[[int], Any]:
    """One step as diffusers' training examples write it: random noise and times, add_noise, loss, backward, clip, AdamW, EMA."""
    model = build_model(config).to(device, memory_format=torch.channels_last)
    scheduler, codec = build_scheduler(config.diffusion, config.sampling), build_codec(config.diffusion)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rates = get_cosine_schedule_with_warmup(optimizer, 10, 1000)
    ema = EMAModel(model.parameters(), decay=config.training.ema_decay)
    items = layer_items(batch, Keys(0, 0, tuple(range(len(batch)))), layers=config.data.layers)
    target = items.target.float()

    def step(number: int) -> None:
        noise = torch.randn_like(target)
        times = torch.randint(0, config.diffusion.num_train_timesteps, (len(target),), device=device)
        noisy = scheduler.add_noise(codec.encode(target), noise, times)
        features = select_rows(model.encode(in_range(batch.image, config.sampling.image_range)), items.picture)
        output = model(noisy, times, condition(items.cumulative), features)
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
    config = load_config(options.config, small)
    batch = config.training.batch_size
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        trainer = Trainer(config, folder, progress=False)
        trainer._build()
        device = trainer.accelerator.device
        composer = build_composer(config.data, seed=0, atlas_seed=0, device=device)
        loader = loader_over(config, composer, Path(folder) / "scenes")
        ready = composer.batch(0, range(batch))
        objective, keys = build_objective(config), Keys(0, 0, tuple(range(batch)))

        def bound(number: int) -> None:
            objective.loss(trainer.model, ready, keys)["loss"].mean().backward()
            trainer.model.zero_grad()

        def train(batches: Iterator[SceneBatch]) -> Rate:
            trainer._batches = batches
            return rate(trainer._train_step, batch, options.rounds)

        rates = {
            "composer alone, scenes/s": rate(
                lambda number: composer.batch(number, range(batch)), batch, options.rounds
            ),
            "loader alone, scenes/s": rate(lambda number: loader.batch(number, range(batch)), batch, options.rounds),
            "network alone (the bound)": rate(bound, batch, options.rounds),
            "plain diffusers loop": rate(plain_loop(config, ready, device), batch, options.rounds),
            "trainer with composer": train(composer.batch(step, range(batch)) for step in itertools.count()),
            "trainer with loader": train(loader.batch(step, range(batch)) for step in itertools.count()),
            "trainer, batches ready": train(itertools.repeat(ready)),
        }
        places, waits = ((step, range(batch)) for step in itertools.count()), []
        read = stack.enter_context(read_ahead(loader, places, workers=1, pin_memory=device.type == "cuda"))
        next(read)  # the process has begun
        rates["trainer, one process reads"] = train(timed(read, waits))
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, device {device}, {options.config}")
    for name, (median, low, high) in rates.items():
        print(f"{name:28s} {median:8.1f}  ({low:.1f} to {high:.1f})")
    for source in ("composer", "loader"):
        share = rates[f"trainer with {source}"][0] / rates[f"{source} alone, scenes/s"][0]
        print(f"{source}'s share of a step {share:{18 - len(source)}.1%}  (its time over the time of a whole step)")
    share = statistics.median(waits[1:]) * rates["trainer, one process reads"][0] / batch
    print(f"waiting for one process      {share:8.1%}  (of a step)")
    print(f"trainer over plain loop      {rates['trainer, batches ready'][0] / rates['plain diffusers loop'][0]:8.2f}")
    print(
        f"trainer over the bound       {rates['trainer, batches ready'][0] / rates['network alone (the bound)'][0]:8.2f}"
    )


if __name__ == "__main__":
    main()
