"""How fast the shipped weights are, and against what: ratios in one run on one machine, medians with their spread.

    python benchmarks/speed.py [--weights default] [--rounds 5] [--out results/speed.json]

protocol: a picture's time by the official protocol (the 83-million-parameter network at the same mask resolution, 3 members x 1000
steps a layer, every layer and the empty one) from the measured time of one pass, multiplied out and not run, against ours, run.
stock: a small monolithic network, and the weights' own, through a plain loop over a diffusers scheduler and through our sampler, at equal
steps. photo: seconds for a picture of 512 x 512, the whole call with its result and edge refinement, and for 1 and 8 members. parts: encoder
(its fusion included and alone) and denoiser at batch 8 beside the matrix product, the machine's peak.
growth: seconds against members, layers, picture size and batch. memory: most memory of a fresh process against the same.
onnx: encoder and denoiser in onnxruntime beside torch (extra `onnx`). start: seconds of `sas --help`, of a first result, and of
`sas sample` on one picture.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from protocols import SMALL
from torch.utils.flop_counter import FlopCounterMode

from sas.config import load_config
from sas.diffusion import condition, scheduler_for
from sas.factory import build_model, build_pipeline
from sas.models import select_rows
from sas.pipeline import SASPipeline
from sas.seeding import generator_for

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("protocol", "stock", "photo", "parts", "growth", "memory", "onnx", "start")
Timing = tuple[float, float, float]


def seconds(work: Callable[[], object], rounds: int) -> Timing:
    """Median, shortest and longest of some rounds after one to warm up."""
    work()
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken), min(taken), max(taken)


def picture(side: int, seed: int = 0) -> np.ndarray:
    """A picture with shapes in it; speed does not depend on what they are."""
    random = np.random.default_rng(seed)
    canvas = np.full((side, side, 3), 120, dtype=np.uint8)
    for _ in range(5):
        top, left = random.integers(0, side // 2, 2)
        canvas[top : top + side // 3, left : left + side // 3] = random.integers(0, 255, 3)
    return canvas


@contextmanager
def scripted(pipe: SASPipeline, layers: int) -> Iterator[None]:
    """The network is run as ever, but what it says is put aside for bands from the top down, each overlapping the one before: any picture
    has `layers` layers, and one pass more finds nothing."""
    network, side = pipe.model.forward, pipe.config.mask_size
    edges = torch.linspace(0, side, layers + 1).long().tolist()

    def forward(noisy: torch.Tensor, timestep: torch.Tensor, cumulative: torch.Tensor, features: Any) -> torch.Tensor:
        output = network(noisy, timestep, cumulative, features)
        for row, found in enumerate((cumulative[:, 0, :, side // 2] > 0).sum(dim=1).tolist()):
            done = edges.index(found)
            output[row, 0] = -20
            output[row, 0, max(0, found - 1) : edges[min(done + 1, layers)]] = 20 if done < layers else -20
            output[row, 1:] = -20 if done < layers else 20
        return output

    pipe.model.forward = forward
    try:
        yield
    finally:
        del pipe.model.forward


def fixed_work(
    pipe: SASPipeline, side: int, *, layers: int, members: int, steps: int, images: int = 1
) -> Callable[[], object]:
    """The whole call, from pixels to refined masks at the pictures' size, for pictures of one size with `layers` layers each."""
    pictures = [picture(side, seed) for seed in range(images)]

    def work() -> None:
        with scripted(pipe, layers):
            results = pipe(pictures, ensemble_size=members, num_inference_steps=steps, max_layers=layers + 1)
        assert [len(result) for result in results] == [layers] * images, [len(result) for result in results]

    return work


def protocol(pipe: SASPipeline, rounds: int) -> dict[str, Any]:
    paper = build_model(load_config(ROOT / "configs" / "paper.yaml")).eval().to(memory_format=torch.channels_last)
    size = pipe.config.mask_size
    masks, image = torch.zeros(3, 1, size, size), torch.zeros(3, 3, size, size)
    with torch.no_grad():
        one_pass = seconds(lambda: paper(masks, torch.zeros(3, dtype=torch.int64), masks, image), rounds)
    layers = 5
    official = tuple(value * 1000 * (layers + 1) for value in one_pass)
    ours = seconds(fixed_work(pipe, 512, layers=layers, members=3, steps=4), rounds)
    return {
        "layers": layers,
        "official_parameters": sum(p.numel() for p in paper.parameters()),
        "official_pass_of_3_members_s": one_pass,
        "official_picture_s_multiplied_out": official,
        "ours_picture_s": ours,
        "ratio_time": official[0] / ours[0],
        "official_sequential_passes_of_single_masks": 3 * 1000 * (layers + 1),
        "ours_sequential_passes": 4 * (layers + 1),
        "ratio_sequential_passes": 3 * 1000 / 4,
    }


def stock(pipe: SASPipeline, rounds: int) -> dict[str, Any]:
    """One network, members batched in both, 20 steps: a loop as diffusers' pipelines write it, and ours, taking turns; for the small
    monolithic network of `benchmarks/protocols.py` (untrained: speed does not depend on it) and for the one of the weights."""
    config = load_config(None, SMALL)
    small = build_pipeline(config, build_model(config).eval())
    return {"small monolithic": _stock(small, 4 * rounds), "the weights' network": _stock(pipe, 4 * rounds)}


def _stock(pipe: SASPipeline, rounds: int) -> dict[str, Any]:
    size, members, steps = pipe.config.mask_size, 3, 20
    with torch.no_grad():
        features = pipe.model.encode(torch.zeros(1, 3, pipe.config.image_size, pipe.config.image_size))
    found = torch.zeros(members, 1, size, size, dtype=torch.bool)
    rows = torch.zeros(members, dtype=torch.int64)

    @torch.no_grad()
    def plain() -> torch.Tensor:
        scheduler = scheduler_for(pipe.scheduler, pipe.codec)
        scheduler.set_timesteps(steps)
        sample, seen, chosen = torch.randn(members, 1, size, size), condition(found), select_rows(features, rows)
        for t in scheduler.timesteps:
            output = pipe.model(sample, t.expand(members), seen, chosen)[:, :1]
            sample = scheduler.step(pipe.codec.encode(output.sigmoid()), t, sample).prev_sample
        return sample

    def ours() -> torch.Tensor:
        noise = [generator_for(0, row) for row in range(members)]
        return pipe.sampler(steps=steps, rows=64)(pipe.model, features, found, noise, picture=rows)

    pairs = [(seconds(plain, 1)[0], seconds(ours, 1)[0]) for _ in range(rounds)]
    one, other = zip(*pairs, strict=True)
    return {
        "parameters": sum(p.numel() for p in pipe.model.parameters()),
        "steps": steps,
        "members": members,
        "plain_loop_s": (statistics.median(one), min(one), max(one)),
        "ours_s": (statistics.median(other), min(other), max(other)),
        "ours_over_plain": statistics.median(theirs / plains for plains, theirs in pairs),
    }


def photo(pipe: SASPipeline, rounds: int) -> dict[str, Any]:
    timings = {m: seconds(fixed_work(pipe, 512, layers=5, members=m, steps=4), rounds) for m in (1, 3, 8)}
    return {
        "members_1_s": timings[1], "members_3_s": timings[3], "members_8_s": timings[8],
        "members_8_over_1": timings[8][0] / timings[1][0],
    }  # fmt: skip


def parts(pipe: SASPipeline, rounds: int) -> dict[str, Any]:
    """The works take turns, so that a machine whose speed changes is fair to all; each has several times the rounds, being short."""
    model, size = pipe.model, pipe.config.mask_size
    a = torch.randn(2048, 2048)
    image = torch.zeros(1, 3, pipe.config.image_size, pipe.config.image_size).to(memory_format=torch.channels_last)
    with torch.no_grad():
        features = select_rows(model.encode(image), torch.zeros(8, dtype=torch.int64))
        masks, times = torch.zeros(8, 1, size, size), torch.zeros(8, dtype=torch.int64)
        works: dict[str, Callable[[], object]] = {
            "matrix product": lambda: a @ a,
            "denoiser": lambda: model(masks, times, masks, features),
            "encoder": lambda: model.encode(image),
        }
        if hasattr(model, "image_encoder"):
            small = torch.zeros(1, 3, 128, 128).to(memory_format=torch.channels_last)
            works["image encoder alone, 128 x 128"] = lambda: model.image_encoder(small)
        if getattr(model, "fuse", None) is not None:
            maps = [torch.zeros(1, *part.shape[1:]).to(memory_format=torch.channels_last) for part in features]
            works["fusion"] = lambda: model.fuse(maps)
        work, taken = {}, {name: [] for name in works}
        for name, one in works.items():
            with FlopCounterMode(display=False) as counter:
                one()
            work[name] = counter.get_total_flops() / 1e9
        for _ in range(6 * rounds):
            for name, one in works.items():
                taken[name].append(seconds(one, 1)[0])
    median = {name: statistics.median(values) for name, values in taken.items()}
    rate = {name: work[name] / median[name] for name in works}
    return {
        "ms": {name: tuple(1e3 * value for value in (median[name], min(values), max(values))) for name, values in taken.items()},
        "gflops": rate,
        "share_of_the_matrix_product": {name: value / rate["matrix product"] for name, value in rate.items()},
    }  # fmt: skip


def growth(pipe: SASPipeline, rounds: int) -> dict[str, Any]:
    def timed(**changes: int) -> Timing:
        given = {"side": 512, "layers": 3, "members": 3, "steps": 4, "images": 1, **changes}
        return seconds(fixed_work(pipe, given.pop("side"), **given), rounds)

    return {
        name: {str(value): timed(**{name: value}) for value in values}
        for name, values in (
            ("members", (1, 2, 4, 8, 16)), ("layers", (1, 2, 4, 8)), ("side", (256, 512, 1024, 2048)), ("images", (1, 2, 4, 8)),
            ("steps", (1, 2, 4, 8)),
        )
    }  # fmt: skip


def memory(pipe: SASPipeline, rounds: int) -> dict[str, Any]:
    """Most memory, MiB, of a fresh process that takes pictures apart, and of one that only loads the weights (Linux)."""
    code = """
import sys
sys.path.insert(0, "benchmarks")
from sas import SASPipeline
from speed import fixed_work
side, members, images, layers = map(int, sys.argv[1:])
pipe = SASPipeline.from_pretrained()
pipe.set_progress_bar_config(disable=True)
if images:
    fixed_work(pipe, side, layers=layers, members=members, steps=4, images=images)()
# getrusage would also count what the process that started this one held.
print(next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""

    def most(*, side: int = 512, members: int = 3, images: int = 1, layers: int = 3) -> int:
        given = [str(value) for value in (side, members, images, layers)]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, *given], check=True, capture_output=True, text=True, cwd=ROOT
        )
        return int(done.stdout.split()[-1])

    cases = (("members", (1, 4, 16)), ("layers", (1, 4, 8)), ("side", (256, 1024, 2048)), ("images", (1, 4, 8)))
    found: dict[str, Any] = {"weights_only_mib": most(images=0)}
    for name, values in cases:
        found[name] = {str(value): most(**{name: value}) for value in values}
    return found


def onnx(pipe: SASPipeline, rounds: int) -> dict[str, Any]:
    """Milliseconds of an image through the encoder and of 8 masks through the denoiser, in both runtimes, on as many threads."""
    import onnxruntime

    from sas.export import export_onnx

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(pipe, Path(folder) / "onnx")
        encoder, denoiser = (
            onnxruntime.InferenceSession(f"{folder}/onnx/{name}.onnx", settings, providers=["CPUExecutionProvider"])
            for name in ("encoder", "denoiser")
        )
    size = pipe.config.mask_size
    image = torch.zeros(1, 3, pipe.config.image_size, pipe.config.image_size).to(memory_format=torch.channels_last)
    masks, times = torch.zeros(8, 1, size, size), torch.zeros(8, dtype=torch.int64)
    with torch.no_grad():
        maps = select_rows(pipe.model.encode(image), torch.zeros(8, dtype=torch.int64))
        own_encoder = seconds(lambda: pipe.model.encode(image), rounds)
        own_denoiser = seconds(lambda: pipe.model(masks, times, masks, maps), rounds)
    given = {"noisy": masks.numpy(), "timestep": times.numpy(), "cumulative": masks.numpy()}
    features = (maps,) if isinstance(maps, torch.Tensor) else maps
    given |= {f"feature_{number}": one.contiguous().numpy() for number, one in enumerate(features)}
    picture_in = {"image": image.contiguous().numpy()}
    other_encoder = seconds(lambda: encoder.run(None, picture_in), rounds)
    other_denoiser = seconds(lambda: denoiser.run(None, given), rounds)
    in_ms = {
        name: tuple(1e3 * value for value in timing)
        for name, timing in (
            ("torch_encoder_ms", own_encoder), ("onnxruntime_encoder_ms", other_encoder),
            ("torch_denoiser_8_masks_ms", own_denoiser), ("onnxruntime_denoiser_8_masks_ms", other_denoiser),
        )
    }  # fmt: skip
    return {**in_ms, "onnxruntime": onnxruntime.__version__}


def start(pipe: SASPipeline, rounds: int) -> dict[str, Any]:
    """Fresh processes on a warm cache: the overview, a result in Python, and a photograph from the command line with all its files."""
    first = "import numpy, sys; from sas import SASPipeline; print(len(SASPipeline.from_pretrained()(numpy.load(sys.argv[1]))))"
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/picture.npy", picture(512))
        Image.fromarray(picture(512)).save(f"{folder}/picture.png")
        programs = {
            "help_s": ["-m", "sas", "--help"],
            "first_result_s": ["-c", first, f"{folder}/picture.npy"],
            "sample_command_s": ["-m", "sas", "sample", f"{folder}/picture.png", "--out", f"{folder}/out"],
        }

        def program(given: list[str]) -> Callable[[], object]:
            return lambda: subprocess.run([sys.executable, *given], check=True, capture_output=True, cwd=ROOT)

        return {name: seconds(program(given), rounds) for name, given in programs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", default="results/speed.json")
    options = parser.parse_args()
    pipe = SASPipeline.from_pretrained(None if options.weights == "default" else options.weights)
    pipe.set_progress_bar_config(disable=True)
    if torch.cuda.is_available():
        pipe.to("cuda")
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {pipe.device}",
        "weights": pipe.model_info.id,
        "date": time.strftime("%Y-%m-%d"),
        "timings": "median, shortest, longest",
    }
    work = {
        "protocol": protocol, "stock": stock, "photo": photo, "parts": parts, "growth": growth, "memory": memory, "onnx": onnx,
        "start": start,
    }  # fmt: skip
    for name in options.only:
        found[name] = work[name](pipe, options.rounds)
        print(name, json.dumps(found[name], indent=1), flush=True)
        out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
