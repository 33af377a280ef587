"""How fast scenes are read into batches in the training loop and by 1, 2 and 4 processes; memory over an epoch; time to open.

    python benchmarks/loading.py [--count COUNT] [--kins PICTURES] [--epoch SCENES]

Composes `--count` scenes, writes them loose (project format) and packed, and reads both through `read_ahead`: pictures of `--size`,
masks of half that. Then the same for `--kins` pictures of 1242 x 375 with KINS 2020 annotations, brought to `--size`. Then packs
`--epoch` small scenes and reads one epoch of them in a process of its own, by `--epoch-workers` processes. 0 leaves a part out.
`--kins` and `--epoch` are 0 unless given. Linux only: the time and memory of processes are read from /proc.
Files were just written, so the disk is hardly asked. Prints tables for docs/performance.md.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sas.config import DataSettings
from sas.data.entries import LazyScenes
from sas.data.folders import open_scenes, write_project
from sas.data.formats.registry import open_format
from sas.data.formats.writers import write_kins2020
from sas.data.shards import Shards, pack
from sas.data.source import SceneLoader, read_ahead
from sas.scene import Scene, SceneBatch

WORKERS = (0, 1, 2, 4)
BATCH = 16
PAUSE = 0.5
KINS = 375, 1242
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
    from sas.factory import build_composer  # here, so that processes that read need not import it

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


def wide(scenes: Sequence[Scene], number: int) -> Scene:
    """Three square scenes beside each other in a picture of KINS's size: uint8 (375, 1242, 3)."""
    three = [scenes[(3 * number + i) % len(scenes)] for i in range(3)]
    height, width = KINS
    counts = np.cumsum([0, *map(len, three)])
    image = np.full((height, width, 3), 127, dtype=np.uint8)
    masks = np.zeros((counts[-1], height, width), dtype=bool)
    order = np.zeros((counts[-1], counts[-1]), dtype=bool)
    for i, scene in enumerate(three):
        objects, columns = slice(counts[i], counts[i + 1]), slice(i * height, (i + 1) * height)
        image[:, columns] = scene.image
        masks[objects, :, columns] = scene.amodal_masks
        order[objects, objects] = scene.order_matrix
    return Scene(image=image, amodal_masks=masks, order_matrix=order, id=f"{number:06d}")


def make_loader(scenes: Sequence[Scene], *, size: int, buffer: int) -> SceneLoader:
    return SceneLoader(
        scenes,
        seed=0,
        batch_size=BATCH,
        image_size=size,
        mask_size=size // 2,
        buffer=buffer if isinstance(scenes, Shards) else None,
    )


def measure(sets: dict[str, Sequence[Scene]], *, size: int, rounds: int, seconds: float, buffer: int) -> None:
    """Print pictures a second of each set and number of processes, which take turns."""
    rates: dict[tuple[str, int], list[float]] = {(kind, workers): [] for kind in sets for workers in WORKERS}
    costs: dict[tuple[str, int], list[np.ndarray]] = {key: [] for key in rates}
    with ExitStack() as stack:
        readers: dict[tuple[str, int], Iterator[SceneBatch]] = {}
        started = time.perf_counter()
        for kind, workers in rates:
            loader = make_loader(sets[kind], size=size, buffer=buffer)
            places = ((step, range(BATCH)) for step in itertools.count())
            readers[kind, workers] = stack.enter_context(read_ahead(loader, places, workers=workers))
        for reader in readers.values():
            next(reader)
        wait_until_idle()
        print(f"{sum(w for _, w in rates)} processes began in {time.perf_counter() - started:.0f} s\n")
        for key in list(rates) * rounds:
            for _ in range(2 * key[1] + 1):  # what was read before the clock starts
                next(readers[key])
            count, before, started = 0, processor_time(), time.perf_counter()
            while time.perf_counter() < started + seconds:
                count += len(next(readers[key]))
            rates[key].append(count / (time.perf_counter() - started))
            costs[key].append((processor_time() - before) / count * 1000)
            wait_until_idle()
    print(
        "| | pictures a second, median (lowest to highest) | beside the loop | CPU ms a picture: training process, others |"
    )
    print("|---|---|---|---|")
    for (kind, workers), values in rates.items():
        name = f"{workers} process{'es' * (workers > 1)}" if workers else "in the loop"
        middle, loop = statistics.median(values), statistics.median(rates[kind, 0])
        own, others = np.median(costs[kind, workers], axis=0)
        print(
            f"| {kind}, {name} | {middle:.0f} ({min(values):.0f} to {max(values):.0f}) | {middle / loop:.2f} times "
            f"| {own:.2f}, {others:.2f} |"
        )


def wait_until_idle() -> None:
    """Until the children have read ahead what they may, and leave the cores to others."""
    before = -1.0
    while before != (before := processor_time()[1]):
        time.sleep(PAUSE)


def processor_time() -> np.ndarray:
    """Seconds of CPU time that this process and its children have used, float64 (2,)."""
    ticks = 0
    for child in multiprocessing.active_children():
        ticks += sum(map(int, Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return np.array([time.process_time(), ticks / os.sysconf("SC_CLK_TCK")])


def memory() -> float:
    """Memory of this process and its children, shared pages counted once, MB."""
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(text.split("\nPss:")[1].split()[0]) for text in texts) * 1024 / MEGABYTE


def read_epoch(path: str, buffer: int, workers: int) -> dict[str, float]:
    """Open and read one epoch of 32 x 32 pictures; memory at 1 %, 10 %, 50 % and 100 % of it. Runs in a fresh process."""
    torch.set_num_threads(1)
    before = memory()
    started = time.perf_counter()
    shards = Shards(path)
    found = {"open_ms": (time.perf_counter() - started) * 1000, "open_mb": memory() - before}
    steps = len(shards) // BATCH
    marks = {max(0, steps * share // 100 - 1): f"{share}_mb" for share in (1, 10, 50, 100)}
    places = ((step, range(BATCH)) for step in range(steps + 2 * workers))
    with read_ahead(make_loader(shards, size=32, buffer=buffer), places, workers=workers) as batches:
        started = time.perf_counter()
        for step, _ in zip(range(steps), batches, strict=False):
            if step in marks:
                found[marks[step]] = memory()
    return {**found, "rate": steps * BATCH / (time.perf_counter() - started)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400, help="scenes in the comparison (400)")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures; masks have half (128)")
    parser.add_argument("--kins", type=int, default=0, help="pictures of KINS's size (0: none)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (3)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (2)")
    parser.add_argument("--epoch", type=int, default=0, help="scenes of 32 x 32 pixels in the long epoch (0: none)")
    parser.add_argument("--epoch-workers", type=int, default=0, help="processes that read the long epoch (0)")
    parser.add_argument("--buffer", type=int, default=10000, help="shuffle buffer (10000)")
    parser.add_argument("--folder", help="where to write the data (a temporary folder)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    settings = {"size": options.size, "rounds": options.rounds, "seconds": options.seconds, "buffer": options.buffer}
    try:
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}\n")
        if options.count:
            scenes = compose(options.count, options.size)
            write_project(folder / "loose", scenes, min_overlap=scenes[0].min_overlap)
            pack(scenes, folder / "packed", shard_size=100)
            measure({name: open_scenes(folder / name) for name in ("loose", "packed")}, **settings)
        if options.kins:
            squares = compose(options.kins, KINS[0])
            pictures = [wide(squares, number) for number in range(options.kins)]
            write_kins2020(folder / "kins", pictures)
            measure({"KINS 2020": open_format(folder / "kins", format="kins2020")}, **settings)
        if options.epoch:
            print_epoch(folder, options.epoch, options.buffer, options.epoch_workers)
    finally:
        shutil.rmtree(folder)


def print_epoch(folder: Path, count: int, buffer: int, workers: int) -> None:
    started = time.perf_counter()
    pack(Repeated(compose(64, 32), count), folder / "epoch")
    seconds = time.perf_counter() - started
    size = sum(file.stat().st_size for file in (folder / "epoch").iterdir()) / MEGABYTE
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(read_epoch, str(folder / "epoch"), buffer, workers).result()
    print(f"\n| an epoch of {count:,} scenes of 32 x 32 from shards | |\n|---|---|")
    print(f"| packing | {count / seconds:.0f} scenes a second, {size:,.0f} MB on disk |")
    print(f"| opening | {found['open_ms']:.1f} ms, {found['open_mb']:.1f} MB |")
    print(f"| reading, {workers} processes | {found['rate']:.0f} pictures a second |")
    growth = ", ".join(f"{share} %: {found[f'{share}_mb'] - found['1_mb']:+.1f}" for share in (10, 50, 100))
    print(f"| memory, MB, beside {found['1_mb']:.0f} at 1 % | {growth} |")


if __name__ == "__main__":
    main()
