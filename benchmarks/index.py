"""What the index of a big COCO-style file costs and saves: start-up seconds and peak memory, against plain json.load.

    python benchmarks/index.py [--annotations 200000] [--points 50] [--folder DIR] [--out FILE.json]

A file in the manner of KINS 2020 is generated (13 annotations a picture, two polygons each). Each way to open it runs in a process of its
own, so that peaks of memory do not mix; memory is the peak above that after the imports. Ways: json.load, the
index made for the first time, the index found on disk, and then 200 pictures read in random order.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

PER_PICTURE = 13  # as in KINS
READ = 200


def generate(path: Path, annotations: int, points: int) -> None:
    """A file of that many annotations, written piece by piece."""
    rng = np.random.default_rng(0)
    pictures = -(-annotations // PER_PICTURE)
    with path.open("w", encoding="utf-8") as out:
        images = [{"id": i, "file_name": f"{i:06d}.png", "width": 1242, "height": 375} for i in range(pictures)]
        categories = [{"id": c, "name": f"class {c}"} for c in range(1, 9)]
        out.write(f'{{"images": {json.dumps(images)}, "categories": {json.dumps(categories)}, "annotations": [')
        for k in range(annotations):
            polygon = np.round(rng.uniform(0, 375, 2 * points), 2).tolist()
            entry = {
                "id": k, "image_id": k // PER_PICTURE, "category_id": k % 8 + 1, "iscrowd": 0, "oco_id": k % 3, "ico_id": k % 4,
                "a_segm": [polygon], "i_segm": [polygon[: 2 * points // 3 * 2]], "a_bbox": polygon[:4], "i_bbox": polygon[:4],
            }  # fmt: skip
            out.write((", " if k else "") + json.dumps(entry))
        out.write("]}")


def measure(way: str, path: Path) -> dict[str, float]:
    """Seconds by the clock and of the processor, and peak MB of one way to open the file, in this process."""
    from sas.data.formats.index import AnnotationIndex

    before = peak()
    started, worked = time.perf_counter(), time.process_time()
    if way == "json.load":
        with path.open("rb") as file:
            held: Any = json.load(file)
    else:
        held = AnnotationIndex(path)
    seconds, work = time.perf_counter() - started, time.process_time() - worked
    result = {"seconds": round(seconds, 3), "cpu_seconds": round(work, 3), "peak_mb": round(peak() - before, 1)}
    if way == "cached":
        rows = np.random.default_rng(1).integers(0, len(held), READ).tolist()
        started = time.perf_counter()
        for row in rows:
            held.read(row)
        result["ms_per_picture"] = round(1000 * (time.perf_counter() - started) / READ, 3)
    return result


def peak() -> float:
    """Most memory that this process ever held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=int, default=200_000)
    parser.add_argument("--points", type=int, default=50, help="points of an amodal polygon")
    parser.add_argument("--folder", type=Path, help="where the file is generated; a temporary folder by default")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.folder)))
        return
    folder = Path(tempfile.mkdtemp(dir=options.folder, prefix="index-"))
    try:
        path = folder / "kins.json"
        generate(path, options.annotations, options.points)
        report: dict[str, Any] = {
            "annotations": options.annotations,
            "file_mb": round(path.stat().st_size / 1e6, 1),
            "machine": platform.platform(),
            "ways": {},
        }
        for way in ("json.load", "first", "cached"):
            command = [sys.executable, __file__, "--way", way, "--folder", str(path)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            report["ways"][way] = json.loads(done.stdout)
            print(f"{way:>10}: {report['ways'][way]}", flush=True)
        report["index_mb"] = round(sum(file.stat().st_size for file in (folder / ".kins.json.sas-index").iterdir()) / 1e6, 1)  # fmt: skip
    finally:
        shutil.rmtree(folder)
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
