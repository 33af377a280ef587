"""How fast packed shards and loose files are read into batches, beside what the trainer needs; memory over an epoch; time to open.

    python benchmarks/loading.py [--count 400] [--epoch 200000] [--needed 14]

Composes `--count` scenes, writes them loose (project format) and packed, and reads both through `SceneLoader.batch` with 0, 2 and 4
threads: pictures of `--size`, masks of half that. Then packs `--epoch` small scenes and reads one epoch of them in a process of its
own (0 leaves that out). Files were just written, so the disk is hardly asked. Prints tables for docs/performance.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from sas.config import DataSettings
from sas.data.entries import LazyScenes
from sas.data.folders import open_scenes, write_project
from sas.data.shards import Shards, pack
from sas.data.source import SceneLoader
from sas.factory import build_composer
from sas.scene import Scene

WORKERS = (0, 2, 4)
BATCH = 16
MEGABYTE = 2**20


class Repeated(LazyScenes):
    """A few scenes again and again, each time with another id."""

    def __init__(self, scenes: Sequence[Scene], count: int) -> None:
        self.scenes, self.length = scenes, count

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> Scene:
        return replace(self.scenes[index % len(self.scenes)], id=f"scene{index}")


def compose(count: int, size: int) -> list[Scene]:
    data = DataSettings(
        image_size=size,
        mask_size=size,
        oversample=1,
        sprite_size=max(16, size // 2),
        classes=8,
        views=2,
        background_count=8,
    )
    composer = build_composer(data, seed=0, atlas_seed=0)
    return [
        scene for start in range(0, count, 16) for scene in composer.scenes(0, range(start, min(start + 16, count)))
    ]


def make_loader(scenes: Sequence[Scene], *, size: int, workers: int, buffer: int) -> SceneLoader:
    return SceneLoader(
        scenes,
        seed=0,
        batch_size=BATCH,
        image_size=size,
        mask_size=size // 2,
        workers=workers,
        buffer=buffer if isinstance(scenes, Shards) else None,
    )


def measure_rates(
    folder: Path, *, count: int, size: int, rounds: int, buffer: int
) -> dict[tuple[str, int], list[float]]:
    """Pictures a second of each kind of file and number of threads, `rounds` values each, taken in turn."""
    scenes = compose(count, size)
    write_project(folder / "loose", scenes, min_overlap=scenes[0].min_overlap)
    pack(scenes, folder / "packed", shard_size=100)
    rates: dict[tuple[str, int], list[float]] = {}
    steps = max(1, count // BATCH)
    for number in range(rounds + 1):
        for workers in WORKERS:
            for kind in ("loose", "packed"):
                loader = make_loader(open_scenes(folder / kind), size=size, workers=workers, buffer=buffer)
                started = time.perf_counter()
                for step in range(steps):
                    loader.batch(step, range(BATCH))
                if number:  # the first round warms up
                    rates.setdefault((kind, workers), []).append(steps * BATCH / (time.perf_counter() - started))
    return rates


def resident() -> float:
    """Memory of this process that is in RAM now, MB."""
    words = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()
    return int(words[0]) * 1024 / MEGABYTE


def read_epoch(path: str, buffer: int) -> dict[str, float]:
    """Open and read one epoch of 32 x 32 pictures; memory at 1 %, 10 %, 50 % and 100 % of it. Runs in a fresh process."""
    torch.set_num_threads(1)
    before = resident()
    started = time.perf_counter()
    shards = Shards(path)
    found = {"open_ms": (time.perf_counter() - started) * 1000, "open_mb": resident() - before}
    loader = make_loader(shards, size=32, workers=0, buffer=buffer)
    steps = len(shards) // BATCH
    marks = {max(0, steps * share // 100 - 1): f"{share}_mb" for share in (1, 10, 50, 100)}
    started = time.perf_counter()
    for step in range(steps):
        loader.batch(step, range(BATCH))
        if step in marks:
            found[marks[step]] = resident()
    return {**found, "rate": steps * BATCH / (time.perf_counter() - started)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400, help="scenes in the comparison (400)")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures; masks have half (128)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds after one to warm up (3)")
    parser.add_argument("--epoch", type=int, default=0, help="scenes of 32 x 32 pixels in the long epoch (0: none)")
    parser.add_argument("--buffer", type=int, default=10000, help="shuffle buffer (10000)")
    parser.add_argument("--needed", type=float, default=14, help="pictures a second that the trainer needs (14)")
    parser.add_argument("--folder", help="where to write the data (a temporary folder)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        print(
            f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread a process besides the readers\n"
        )
        rates = measure_rates(
            folder, count=options.count, size=options.size, rounds=options.rounds, buffer=options.buffer
        )
        print(
            f"| pictures a second, {options.size} x {options.size} | median (lowest to highest) | of the needed {options.needed:g} |"
        )
        print("|---|---|---|")
        for (kind, workers), values in rates.items():
            middle = statistics.median(values)
            spread = f"{middle:.0f} ({min(values):.0f} to {max(values):.0f})"
            print(f"| {kind}, {workers} threads | {spread} | {middle / options.needed:.1f} times |")
        if options.epoch:
            print_epoch(folder, options.epoch, options.buffer)
    finally:
        shutil.rmtree(folder)


def print_epoch(folder: Path, count: int, buffer: int) -> None:
    started = time.perf_counter()
    pack(Repeated(compose(64, 32), count), folder / "epoch")
    seconds = time.perf_counter() - started
    size = sum(file.stat().st_size for file in (folder / "epoch").iterdir()) / MEGABYTE
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(read_epoch, (str(folder / "epoch"), buffer))
    print(f"\n| an epoch of {count:,} scenes of 32 x 32 from shards | |\n|---|---|")
    print(f"| packing | {count / seconds:.0f} scenes a second, {size:,.0f} MB on disk |")
    print(f"| opening | {found['open_ms']:.1f} ms, {found['open_mb']:.1f} MB |")
    print(f"| reading, 0 threads | {found['rate']:.0f} pictures a second |")
    growth = ", ".join(f"{share} %: {found[f'{share}_mb'] - found['1_mb']:+.1f}" for share in (10, 50, 100))
    print(f"| memory, MB, beside {found['1_mb']:.0f} at 1 % | {growth} |")


if __name__ == "__main__":
    main()
