"""How fast the shipped weights are, and against what: ratios in one run on one machine, medians with their spread.

    python benchmarks/speed.py [--weights default] [--device: a GPU if there is one, else cpu] [--rounds 5] [--out results/speed.json]
    python benchmarks/speed.py --dtype bfloat16 --compile reduce-overhead         # on a GPU: the same rows in it, with CUDA graphs

Prints rows for the tables of docs/performance.md, and writes the same as JSON.

protocol: a picture's time by the official protocol (the 83-million-parameter network at the same mask resolution, 3 members x 1000
steps a layer, every layer and the empty one) from the measured time of one pass, multiplied out and not run, against ours, run.
stock: a small monolithic network, and the weights' own, through a plain loop over a diffusers scheduler and through our sampler, at equal
steps. photo: seconds for a picture of 512 x 512, the whole call with its result and edge refinement, and for 1 and 8 members. parts: encoder
(its fusion included and alone) and denoiser (its outline stage included and alone) at batch 8 beside the matrix product, the machine's peak.
growth: seconds against members, layers, steps, picture size and batch. memory: most memory of a fresh process (on a GPU: of its tensors
there) against the same. onnx: encoder and denoiser in onnxruntime beside torch, both on the CPU, and how far apart what they give is (extra
`onnx`). start: seconds of `sas --help`, of a first result, and of `sas sample` on one picture. bfloat16: a photograph, the encoder and the
denoiser in it and in float32, in turns; only where the device has it. gpu: milliseconds an image in bfloat16, as it is and compiled; only
where the device is a GPU. --dtype is of all but onnx, start (float32), bfloat16 and gpu; --compile is of the networks of protocol, stock,
photo, parts (without what encoder and denoiser are made of) and growth.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from protocols import SMALL
from timing import Timing, in_turns, seconds, spread
from torch.utils.flop_counter import FlopCounterMode

from sas.config import load_config
from sas.diffusion import condition, in_range, scheduler_for
from sas.distributed import cpu_has_bfloat16
from sas.factory import build_model, build_pipeline
from sas.models import select_rows
from sas.pipeline import SASPipeline
from sas.seeding import generator_for

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("protocol", "stock", "photo", "parts", "growth", "memory", "onnx", "start", "bfloat16", "gpu")
PLAIN = ("onnx", "start", "bfloat16", "gpu")
"""Parts to which --dtype and --compile do not apply: they say by themselves what they run in."""


def in_ms(timing: Timing) -> Timing:
    median, low, high = timing
    return 1e3 * median, 1e3 * low, 1e3 * high


def picture(side: int, seed: int = 0) -> np.ndarray:
    """A picture with shapes in it; speed does not depend on what they are."""
    random = np.random.default_rng(seed)
    canvas = np.full((side, side, 3), 120, dtype=np.uint8)
    for _ in range(5):
        top, left = random.integers(0, side // 2, 2)
        canvas[top : top + side // 3, left : left + side // 3] = random.integers(0, 255, 3)
    return canvas


def masks_like(pipe: SASPipeline, rows: int) -> torch.Tensor:
    """Empty masks as the pipeline's network takes them, (rows, 1, h, w)."""
    size = pipe.config.mask_size
    return torch.zeros(rows, 1, size, size, device=pipe.device, dtype=pipe.dtype)


def images_like(pipe: SASPipeline, count: int, side: int) -> torch.Tensor:
    """Grey images as the pipeline's network takes them, (count, 3, side, side)."""
    return torch.zeros(count, 3, side, side, device=pipe.device, dtype=pipe.dtype).to(memory_format=torch.channels_last)


def rows_of(pipe: SASPipeline, count: int) -> torch.Tensor:
    """Zeros int64 (count,): time steps, or the one image that all masks belong to."""
    return torch.zeros(count, dtype=torch.int64, device=pipe.device)


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

    with patch.object(pipe.model, "forward", forward):
        yield


def compile_network(network: torch.nn.Module, mode: str | None) -> None:
    """Encoder and denoiser by torch.compile; None leaves them as they are. What they give is copied: CUDA graphs write the next call's to
    the same memory."""
    if mode is None:
        return

    def own(given: Any) -> Any:
        return given.clone() if isinstance(given, torch.Tensor) else type(given)(own(one) for one in given)

    def copied(work: Callable[..., Any]) -> Callable[..., Any]:
        compiled = torch.compile(work, mode=mode)
        return lambda *given: own(compiled(*given))

    for name in ("encode", "forward"):
        setattr(network, name, copied(getattr(network, name)))


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


def protocol(pipe: SASPipeline, rounds: int, mode: str | None) -> dict[str, Any]:
    paper = build_model(load_config(ROOT / "configs" / "paper.yaml")).eval()
    paper.to(pipe.device, pipe.dtype, memory_format=torch.channels_last)
    compile_network(paper, mode)
    masks, image, times = masks_like(pipe, 3), images_like(pipe, 3, pipe.config.mask_size), rows_of(pipe, 3)
    with torch.no_grad():
        one_pass = seconds(lambda: paper(masks, times, masks, image), rounds)
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


def stock(pipe: SASPipeline, rounds: int, mode: str | None) -> dict[str, Any]:
    """One network, members batched in both, 20 steps: a loop as diffusers' pipelines write it, and ours, taking turns; for the small
    monolithic network of `benchmarks/protocols.py` (untrained: speed does not depend on it) and for the one of the weights."""
    config = load_config(None, SMALL)
    small = build_pipeline(config, build_model(config).eval().to(pipe.device, pipe.dtype))
    compile_network(small.model, mode)
    return {"small monolithic": _stock(small, 4 * rounds), "the weights' network": _stock(pipe, 4 * rounds)}


def _stock(pipe: SASPipeline, rounds: int) -> dict[str, Any]:
    size, members, steps = pipe.config.mask_size, 3, 20
    with torch.no_grad():
        features = pipe.model.encode(images_like(pipe, 1, pipe.config.image_size))
    found, rows = masks_like(pipe, members).bool(), rows_of(pipe, members)

    @torch.no_grad()
    def plain() -> torch.Tensor:
        scheduler = scheduler_for(pipe.scheduler, pipe.codec)
        scheduler.set_timesteps(steps, device=pipe.device)
        sample, seen = torch.randn(members, 1, size, size, device=pipe.device), condition(found).to(pipe.dtype)
        chosen = select_rows(features, rows)
        for t in scheduler.timesteps:
            output = pipe.model(sample.to(pipe.dtype), t.expand(members), seen, chosen)[:, :1]
            sample = scheduler.step(pipe.codec.encode(output.sigmoid()), t, sample).prev_sample
        return sample

    def ours() -> torch.Tensor:
        noise = [generator_for(0, row) for row in range(members)]
        return pipe.sampler(steps=steps, rows=64)(pipe.model, features, found, noise, picture=rows)

    one, other = in_turns({"plain": plain, "ours": ours}, rounds).values()
    return {
        "parameters": sum(p.numel() for p in pipe.model.parameters()),
        "steps": steps,
        "members": members,
        "plain_loop_s": spread(one),
        "ours_s": spread(other),
        "ours_over_plain": spread([theirs / plains for plains, theirs in zip(one, other, strict=True)]),
    }


def photo(pipe: SASPipeline, rounds: int) -> dict[str, Any]:
    timings = {m: seconds(fixed_work(pipe, 512, layers=5, members=m, steps=4), rounds) for m in (1, 3, 8)}
    return {
        "members_1_s": timings[1], "members_3_s": timings[3], "members_8_s": timings[8],
        "members_8_over_1": timings[8][0] / timings[1][0],
    }  # fmt: skip


def parts(pipe: SASPipeline, rounds: int, *, mode: str | None) -> dict[str, Any]:
    """The works take turns; each has several times the rounds, being short. mode: of torch.compile, which compiles encoder and denoiser as
    wholes: what they are made of is then left out."""
    model = pipe.model
    a = torch.randn(2048, 2048, device=pipe.device, dtype=pipe.dtype)
    image = images_like(pipe, 1, pipe.config.image_size)
    with torch.no_grad():
        masks, times = masks_like(pipe, 8), rows_of(pipe, 8)
        features = select_rows(model.encode(image), times)
        works: dict[str, Callable[[], object]] = {
            "matrix product": lambda: a @ a,
            "denoiser": lambda: model(masks, times, masks, features),
            "encoder": lambda: model.encode(image),
        }
        if mode is None:
            works |= stages(pipe, masks, features)
        work = {}
        for name, one in works.items():
            # What is compiled as operations are counted would run uncompiled from then on.
            with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
                one()
            work[name] = counter.get_total_flops() / 1e9
        taken = in_turns(works, 6 * rounds)
    median = {name: statistics.median(values) for name, values in taken.items()}
    rate = {name: work[name] / median[name] for name in works}
    return {
        "ms": {name: in_ms(spread(values)) for name, values in taken.items()},
        "gflops": rate,
        "share_of_the_matrix_product": {name: value / rate["matrix product"] for name, value in rate.items()},
    }  # fmt: skip


def stages(pipe: SASPipeline, masks: torch.Tensor, features: Any) -> dict[str, Callable[[], object]]:
    """What encoder and denoiser are made of, as far as the network has it, each by itself."""
    model, works = pipe.model, {}
    if hasattr(model, "image_encoder"):
        small = images_like(pipe, 1, 128)
        works["image encoder alone, 128 x 128"] = lambda: model.image_encoder(small)
    if getattr(model, "fuse", None) is not None:
        maps = [
            torch.zeros_like(part[:1], memory_format=torch.channels_last) for part in features[: len(model.fuse.enter)]
        ]
        works["fusion"] = lambda: model.fuse(maps)
    if getattr(model, "fine", None) is not None:
        side = pipe.config.mask_size // model.config.patch
        last = torch.zeros(8, model.config.channels[0], side, side, device=pipe.device, dtype=pipe.dtype)
        works["outline stage"] = lambda: model.fine(last, masks, masks, features[-1])
    return works


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


def memory(pipe: SASPipeline, rounds: int, weights: str, dtype: str) -> dict[str, Any]:
    """Most memory, MiB, of a fresh process that takes pictures apart, and of one that only loads the weights (Linux). On a GPU it is what
    tensors held there, by PyTorch's count, and leaves the CPU's out."""
    code = """
import sys
sys.path.insert(0, "benchmarks")
import torch
from sas import SASPipeline
from speed import fixed_work
weights, device, dtype, *numbers = sys.argv[1:]
side, members, images, layers = map(int, numbers)
pipe = SASPipeline.from_pretrained(weights).to(device, getattr(torch, dtype))
pipe.set_progress_bar_config(disable=True)
if images:
    fixed_work(pipe, side, layers=layers, members=members, steps=4, images=images)()
if pipe.device.type == "cuda":
    print(torch.cuda.max_memory_allocated(pipe.device) // 2**20)
else:  # getrusage would also count what the process that started this one held
    print(next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""

    def most(*, side: int = 512, members: int = 3, images: int = 1, layers: int = 3) -> int:
        given = [str(value) for value in (weights, pipe.device, dtype, side, members, images, layers)]
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
    """Milliseconds of an image through the encoder and of 8 masks through the denoiser, in both runtimes, on as many threads, and the
    largest difference between what they give for the same random inputs. Both run in float32 on the CPU, wherever the pipeline is."""
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
    model, config, random = copy.deepcopy(pipe.model).float().cpu(), pipe.config, torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, config.image_size, config.image_size, generator=random) * 2 - 1
    image = in_range(image, config.image_range).to(memory_format=torch.channels_last)
    noisy = torch.randn(8, 1, config.mask_size, config.mask_size, generator=random)
    seen = condition(torch.rand(noisy.shape, generator=random) < 0.5)
    times = torch.randint(0, pipe.scheduler.config.num_train_timesteps, (8,), generator=random)
    with torch.no_grad():
        features = model.encode(image)
        maps = select_rows(features, torch.zeros(8, dtype=torch.int64))
        own_masks = model(noisy, times, seen, maps)
        own_encoder = seconds(lambda: model.encode(image), rounds)
        own_denoiser = seconds(lambda: model(noisy, times, seen, maps), rounds)
    # The denoiser gets torch's maps in both, so that its difference is its own.
    picture_in = {"image": image.contiguous().numpy()}
    given = {"noisy": noisy.numpy(), "timestep": times.numpy(), "cumulative": seen.numpy()}
    given |= {f"feature_{number}": one.contiguous().numpy() for number, one in enumerate(_maps(maps))}
    other_encoder = seconds(lambda: encoder.run(None, picture_in), rounds)
    other_denoiser = seconds(lambda: denoiser.run(None, given), rounds)
    own_maps, other_maps = [one.numpy() for one in _maps(features)], encoder.run(None, picture_in)
    return {
        "torch_encoder_ms": in_ms(own_encoder),
        "onnxruntime_encoder_ms": in_ms(other_encoder),
        "encoder_largest_difference": _largest_difference(own_maps, other_maps),
        "torch_denoiser_8_masks_ms": in_ms(own_denoiser),
        "onnxruntime_denoiser_8_masks_ms": in_ms(other_denoiser),
        "denoiser_largest_difference": _largest_difference([own_masks.numpy()], denoiser.run(None, given)),
        "onnxruntime": onnxruntime.__version__,
    }


def _maps(features: Any) -> tuple[torch.Tensor, ...]:
    return (features,) if isinstance(features, torch.Tensor) else features


def _largest_difference(own: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    return max(float(np.abs(one - two).max()) for one, two in zip(own, other, strict=True))


def start(pipe: SASPipeline, rounds: int, weights: str) -> dict[str, Any]:
    """Fresh processes on a warm cache: the overview, a result in Python, and a photograph from the command line with all its files."""
    first = "import numpy, sys; from sas import SASPipeline; print(len(SASPipeline.from_pretrained(sys.argv[2])(numpy.load(sys.argv[1]))))"
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/picture.npy", picture(512))
        Image.fromarray(picture(512)).save(f"{folder}/picture.png")
        programs = {
            "help_s": ["-m", "sas", "--help"],
            "first_result_s": ["-c", first, f"{folder}/picture.npy", weights],
            "sample_command_s": ["-m", "sas", "sample", f"{folder}/picture.png", "--weights", weights, "--out", f"{folder}/out"],
        }  # fmt: skip

        def program(given: list[str]) -> Callable[[], object]:
            return lambda: subprocess.run([sys.executable, *given], check=True, capture_output=True, cwd=ROOT)

        return {name: seconds(program(given), rounds) for name, given in programs.items()}


def bfloat16(pipe: SASPipeline, rounds: int) -> dict[str, Any]:
    """What `--dtype bfloat16` gains: the same works in both, in turns."""
    pipes = {"float32": pipe, "bfloat16": copy.deepcopy(pipe).to(torch.bfloat16)}
    pipes["bfloat16"].set_progress_bar_config(disable=True)

    def works_of(name: str) -> dict[str, Callable[[], object]]:
        one = pipes[name]
        image, masks, times = images_like(one, 1, one.config.image_size), masks_like(one, 8), rows_of(one, 8)
        features = select_rows(one.model.encode(image), times)
        return {
            f"photo, 3 members, {name}": fixed_work(one, 512, layers=5, members=3, steps=4),
            f"photo, 8 members, {name}": fixed_work(one, 512, layers=5, members=8, steps=4),
            f"encoder, {name}": lambda: one.model.encode(image),
            f"denoiser, {name}": lambda: one.model(masks, times, masks, features),
        }

    with torch.no_grad():
        plain, half = works_of("float32"), works_of("bfloat16")
        turns = {name: work for pair in zip(plain.items(), half.items(), strict=True) for name, work in pair}
        return {name: in_ms(spread(values)) for name, values in in_turns(turns, 3 * rounds).items()}


def gpu(pipe: SASPipeline, rounds: int) -> dict[str, Any]:
    """Milliseconds an image in bfloat16, one image or 32 at once: the network as it is, compiled, and compiled to CUDA graphs.

    Has not been run on a GPU yet; elsewhere it is left out.
    """
    modes = {"as it is": None, "torch.compile": "default", "torch.compile, reduce-overhead": "reduce-overhead"}
    return {
        name: {f"{images} at once, ms an image": drawing(pipe, rounds, images=images, mode=mode) for images in (1, 32)}
        for name, mode in modes.items()
    }


def drawing(pipe: SASPipeline, rounds: int, *, images: int, mode: str | None, layers: int = 6) -> Timing:
    """Milliseconds an image of what the network does in a call, in bfloat16: encoding, then 3 members in 4 steps for each layer. The CPU's
    part of a call (reading, consensus, refinement) is left out. mode: of torch.compile; None leaves the network as it is."""
    members, steps = 3, 4
    model = copy.deepcopy(pipe.model).bfloat16()
    torch.compiler.reset()  # each number of images by itself: the second one would be compiled for any number
    compile_network(model, mode)
    image = images_like(pipe, images, pipe.config.image_size).bfloat16()
    found = masks_like(pipe, members * images).bool()
    picture = torch.arange(images, device=pipe.device).repeat_interleave(members)
    noise = [generator_for(0, row) for row in range(len(found))]
    sampler = pipe.sampler(steps=steps, rows=len(found))

    @torch.no_grad()
    def work() -> None:
        features = model.encode(image)
        for _ in range(layers):
            sampler(model, features, found, noise, picture=picture)

    for _ in range(2):  # CUDA graphs are recorded in the second call
        work()
    median, low, high = in_ms(seconds(work, rounds))
    return median / images, low / images, high / images


def shown(value: Any) -> str:
    """Three numbers as median (lowest to highest)."""
    if isinstance(value, tuple):
        median, low, high = (shown(number) for number in value)
        return f"{median} ({low} to {high})"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def table_rows(found: dict[str, Any], name: str) -> Iterator[str]:
    """Rows of a table: a row a value, and one row for what grows with a number."""
    if all(key.isdecimal() for key in found):
        yield f"| {name} | {', '.join(f'{key}: {shown(value)}' for key, value in found.items())} |"
        return
    for key, value in found.items():
        if isinstance(value, dict):
            yield from table_rows(value, f"{name}, {key}")
        else:
            yield f"| {name}, {key} | {shown(value)} |"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="default")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, ..."
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument(
        "--compile", metavar="MODE", help="of torch.compile: default, reduce-overhead (CUDA graphs), max-autotune"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", default="results/speed.json")
    options = parser.parse_args()
    if Path(options.weights).is_dir():  # other processes run elsewhere
        options.weights = str(Path(options.weights).resolve())
    plain, pipe = (SASPipeline.from_pretrained(options.weights).to(options.device) for _ in range(2))
    if options.dtype != "float32":
        pipe.to(getattr(torch, options.dtype))
    for one in (plain, pipe):
        one.set_progress_bar_config(disable=True)
    compile_network(pipe.model, options.compile)
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {_device_name(pipe.device)}",
        "weights": pipe.model_info.id,
        "dtype": options.dtype,
        "compile": options.compile,
        "date": time.strftime("%Y-%m-%d"),
        "timings": "median, shortest, longest",
    }
    mode = options.compile
    work = {
        "protocol": partial(protocol, mode=mode), "stock": partial(stock, mode=mode), "photo": photo,
        "parts": partial(parts, mode=mode), "growth": growth, "memory": partial(memory, weights=options.weights, dtype=options.dtype), "onnx": onnx,
        "start": partial(start, weights=options.weights), "bfloat16": bfloat16, "gpu": gpu,
    }  # fmt: skip
    for name in options.only:
        if name == "gpu" and pipe.device.type != "cuda":
            print("gpu: left out, the device is no GPU", flush=True)
            continue
        if name == "bfloat16" and pipe.device.type == "cpu" and not cpu_has_bfloat16():
            print("bfloat16: left out, this CPU emulates it", flush=True)
            continue
        found[name] = work[name](plain if name in PLAIN else pipe, options.rounds)
        print("\n".join(table_rows(found[name], name)), flush=True)
        out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
