"""Clocks that the benchmarks share."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Timing = tuple[float, float, float]


def synchronize() -> None:
    """Wait until an accelerator, if there is one, has done what it was given: its work goes on after a call has returned."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def spread(values: Sequence[float]) -> Timing:
    """Median, lowest and highest."""
    return statistics.median(values), min(values), max(values)


def seconds(work: Callable[[], object], rounds: int, *, warm: int = 2) -> Timing:
    """Median, shortest and longest of some rounds after two to warm up: CUDA graphs are recorded in the second call."""
    for _ in range(warm):
        work()
    taken = []
    for _ in range(rounds):
        synchronize()
        started = time.perf_counter()
        work()
        synchronize()
        taken.append(time.perf_counter() - started)
    return spread(taken)


def in_turns(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each work in each round. The works take turns, each after a run to warm up (the first time two), so that a machine whose
    speed changes is fair to all."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name, work in works.items():
            taken[name].append(seconds(work, 1, warm=1 if number else 2)[0])
    return taken
