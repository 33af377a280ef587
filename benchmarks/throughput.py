"""How fast scenes are composed beside how fast the network trains on them, in one run on one machine.

    python benchmarks/throughput.py configs/demo.yaml [--rounds 5]

Prints medians with their spread: scenes a second of the composer, pictures a second of the training step without and with it.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable

import torch

from sas.config import load_config
from sas.factory import build_composer
from sas.training import Trainer


def rate(work: Callable[[int], None], pictures: int, rounds: int) -> tuple[float, float, float]:
    """Pictures a second: median, lowest and highest of some rounds after one to warm up."""
    work(0)
    values = []
    for number in range(rounds):
        started = time.perf_counter()
        work(number + 1)
        values.append(pictures / (time.perf_counter() - started))
    return statistics.median(values), min(values), max(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    small = {"data.classes": 16, "data.views": 2, "data.background_count": 16}
    config = load_config(options.config, small)
    batch = config.training.batch_size
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, folder, progress=False)
        trainer._build()
        device = trainer.accelerator.device
        composer = build_composer(config.data, seed=0, atlas_seed=0, device=device)
        ready = composer.batch(0, range(batch))

        def step(number: int) -> None:
            trainer._train_step(number)

        composing = rate(lambda number: composer.batch(number, range(batch)) and None, batch, options.rounds)
        both = rate(step, batch, options.rounds)

        class Ready:
            def batch(self, step: int, positions: object) -> object:
                return ready

        trainer.source = Ready()  # type: ignore[assignment]
        alone = rate(step, batch, options.rounds)
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, device {device}"
    )
    for name, (median, low, high) in (
        ("composer, scenes/s", composing),
        ("network alone, pictures/s", alone),
        ("training, pictures/s", both),
    ):
        print(f"{name:28s} {median:8.1f}  ({low:.1f} to {high:.1f})")
    print(f"composer's share of a step   {1 - both[0] / alone[0]:8.1%}")


if __name__ == "__main__":
    main()
