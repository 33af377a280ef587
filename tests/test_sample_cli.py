"""`python sample.py` and `sas sample`: what scripts depend on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sas.__main__ import main
from sas.cli import run
from sas.cli_options import Sample
from sas.models import ConcatUNet
from sas.pipeline import SASPipeline
from sas.result import LayeredResult
from sas.sampling import Outcome, result_folders, sample_files

ROOT = Path(__file__).resolve().parent.parent
Call = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def weights(make_tiny_pipe: Callable[..., SASPipeline], tmp_path: Path) -> Path:
    """Saved weights that have learned nothing, and whose defaults are quick."""
    folder = tmp_path / "weights"
    make_tiny_pipe(num_inference_steps=1, ensemble_size=2, max_layers=2, model_id="tiny").save_pretrained(folder)
    return folder


@pytest.fixture
def sample(weights: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """`sample(*arguments) -> (exit status, lines of stdout, lines of stderr)` with those weights."""

    def call(*arguments: object) -> tuple[int, list[str], list[str]]:
        words = [str(argument) for argument in arguments]
        status = run(Sample, [*words, *(() if "--weights" in words else ("--weights", str(weights)))])
        said = capsys.readouterr()
        return status, said.out.splitlines(), said.err.splitlines()

    return call


def photo(path: Path, seed: int = 0, size: tuple[int, int] = (20, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden names included."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


# ---------------------------------------------------------------------- results


def test_one_picture(sample: Call, tmp_path: Path) -> None:
    status, out, err = sample(photo(tmp_path / "photo.png"), "--out", tmp_path / "out")
    assert (status, err) == (0, [])
    assert len(out) == 1 and out[0].startswith(f"{tmp_path / 'photo.png'}: 2 layers, ")
    assert names(tmp_path / "out") == ["photo"]
    folder = tmp_path / "out" / "photo"
    maps = [f"{kind}_{k:02d}.png" for kind in ("layer", "probability", "uncertainty") for k in range(2)]
    assert names(folder) == sorted([*maps, "arrays.npz", "overview.png", "result.json", "uncertainty.png"])
    document = read(folder)
    assert document["image"] == {"file": "photo.png", "width": 30, "height": 20}
    assert document["ensemble"] == {
        "members": 2,
        "steps": 1,
        "seed": 0,
        "consensus": "medoid",
        "mode": "diffusion",
        "noise_scale": 1.0,
    }
    assert document["model"]["id"] == "tiny"
    assert len(LayeredResult.load(folder)) == 2


def test_options_reach_the_pipeline(sample: Call, tmp_path: Path) -> None:
    status, _, _ = sample(
        photo(tmp_path / "photo.png"), "--out", tmp_path / "out", "--members", 3, "--steps", 4, "--seed", 9,
        "--max-layers", 1, "--consensus", "mean", "--batch-size", 2, "--device", "cpu",
    )  # fmt: skip
    document = read(tmp_path / "out" / "photo")
    assert status == 0
    assert document["ensemble"] == {
        "members": 3,
        "steps": 4,
        "seed": 9,
        "consensus": "mean",
        "mode": "diffusion",
        "noise_scale": 1.0,
    }
    assert len(document["layers"]) == 1


def test_dtype_is_what_the_network_computes_in(sample: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    kinds = []
    network = ConcatUNet.forward

    def forward(self: ConcatUNet, noisy: torch.Tensor, *rest: Any) -> torch.Tensor:
        kinds.append({noisy.dtype, *(parameter.dtype for parameter in self.parameters())})
        return network(self, noisy, *rest)

    monkeypatch.setattr(ConcatUNet, "forward", forward)
    for dtype in ("float32", "bfloat16"):
        kinds.clear()
        status, out, err = sample(
            photo(tmp_path / "p.png"), "--out", tmp_path / dtype, "--device", "cpu", "--dtype", dtype
        )
        assert (status, len(out), err) == (0, 1, [])
        assert kinds and set().union(*kinds) == {getattr(torch, dtype)}
        assert len(LayeredResult.load(tmp_path / dtype / "p")) == 2


def test_a_dtype_that_the_cpu_emulates_is_refused(
    sample: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    given = (photo(tmp_path / "p.png"), "--out", tmp_path / "out", "--device", "cpu", "--dtype", "bfloat16")
    status, out, err = sample(*given)
    assert (status, out, len(err)) == (2, [], 1)
    assert "--dtype must be float32 on this CPU, got bfloat16, which is emulated there; leave it out" in err[0]
    assert not (tmp_path / "out").exists()


def test_marginal_mode(sample: Call, tmp_path: Path) -> None:
    status, _, _ = sample(photo(tmp_path / "photo.png"), "--out", tmp_path / "out", "--mode", "marginal")
    document = read(tmp_path / "out" / "photo")
    assert (status, document["ensemble"]["mode"], document["ensemble"]["steps"]) == (0, "marginal", 1)


def test_no_layers_is_a_result(sample: Call, make_tiny_pipe: Callable[..., SASPipeline], tmp_path: Path) -> None:
    make_tiny_pipe(void_area=0.999).save_pretrained(tmp_path / "blind")
    status, out, err = sample(photo(tmp_path / "photo.png"), "--out", tmp_path / "out", "--weights", tmp_path / "blind")
    assert (status, err) == (0, [])
    assert ": 0 layers, 0 instances -> " in out[0]
    assert (read(tmp_path / "out" / "photo")["layers"], names(tmp_path / "out" / "photo")) == (
        [],
        ["arrays.npz", "overview.png", "result.json", "uncertainty.png"],
    )


def test_same_result_for_any_order_batch_and_name(sample: Call, tmp_path: Path) -> None:
    a, b, c = (photo(tmp_path / f"{name}.png", seed) for seed, name in enumerate("abc"))
    shutil.copy(a, tmp_path / "z.png")
    sample(a, b, c, "--out", tmp_path / "one")
    sample(c, b, tmp_path / "z.png", "--out", tmp_path / "two", "--batch-size", 1)
    for first, second in (("a", "z"), ("b", "b"), ("c", "c")):
        one, two = (LayeredResult.load(tmp_path / out / name) for out, name in (("one", first), ("two", second)))
        np.testing.assert_allclose(one.probability[0], two.probability[0], atol=1e-5)
    sample(a, b, c, "--out", tmp_path / "three")
    for name in "abc":
        assert LayeredResult.load(tmp_path / "one" / name) == LayeredResult.load(tmp_path / "three" / name)
    sample(a, "--out", tmp_path / "four", "--seed", 1)
    changed = LayeredResult.load(tmp_path / "four" / "a").probability[0]
    assert not np.allclose(changed, LayeredResult.load(tmp_path / "one" / "a").probability[0], atol=1e-3)


def test_training_folder_as_weights(sample: Call, weights: Path, tmp_path: Path) -> None:
    shutil.copytree(weights, tmp_path / "run" / "pipeline")
    status, _, err = sample(photo(tmp_path / "photo.png"), "--out", tmp_path / "out", "--weights", tmp_path / "run")
    assert (status, err) == (0, [])


# ---------------------------------------------------------------------- which files


def test_folder_means_the_pictures_directly_in_it_by_name(sample: Call, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for seed, name in enumerate(["d.TIF", "b.jpg", "a.PNG", "c.JPEG", "e.webp", "f.bmp", "g.tiff"]):
        photo(folder / name, seed)
    (folder / "notes.txt").write_text("no picture")
    (folder / "labels.json").write_text("{}")
    (folder / "sub.png").mkdir()
    photo(folder / "deeper" / "h.png")
    status, out, err = sample(folder, "--out", tmp_path / "out")
    assert (status, err) == (0, [])
    assert [Path(line.partition(":")[0]).name for line in out] == [
        "a.PNG", "b.jpg", "c.JPEG", "d.TIF", "e.webp", "f.bmp", "g.tiff",
    ]  # fmt: skip
    assert names(tmp_path / "out") == list("abcdefg")


def test_recursive(sample: Call, tmp_path: Path) -> None:
    photo(tmp_path / "in" / "b.png")
    photo(tmp_path / "in" / "x" / "y" / "a.png", 1)
    status, out, _ = sample(tmp_path / "in", "--recursive", "--out", tmp_path / "out")
    assert (status, len(out), names(tmp_path / "out")) == (0, 2, ["a", "b"])


def test_file_named_directly_is_tried_whatever_its_ending(sample: Call, tmp_path: Path) -> None:
    photo(tmp_path / "photo.png").rename(tmp_path / "photo.data")
    status, _, err = sample(tmp_path / "photo.data", "--out", tmp_path / "out")
    assert (status, err, names(tmp_path / "out")) == (0, [], ["photo"])


def test_same_stems_get_numbers(sample: Call, tmp_path: Path) -> None:
    files = [photo(tmp_path / name, seed) for seed, name in enumerate(["x/a.png", "x/a.jpg", "y/a.png"])]
    status, _, _ = sample(*files, "--out", tmp_path / "out")
    assert (status, names(tmp_path / "out")) == (0, ["a", "a-2", "a-3"])
    found = [read(tmp_path / "out" / name)["image"]["file"] for name in ("a", "a-2", "a-3")]
    assert found == ["a.png", "a.jpg", "a.png"]


def test_names_of_dots_stay_inside_the_output() -> None:
    files = [Path("in/..png"), Path("in/...png"), Path("in/.png")]
    assert result_folders(files, Path("out")) == [Path("out/image"), Path("out/image-2"), Path("out/.png")]


def test_folders_never_collide() -> None:
    files = [Path(name) for name in ("a.png", "a.jpg", "a-2.png", "b/a.png", ".hidden", "noending")]
    folders = [folder.name for folder in result_folders(files, Path("out"))]
    assert folders == ["a", "a-2", "a-2-2", "a-3", ".hidden", "noending"]
    files = [Path(name) for name in ("IMG_1.JPG", "img_1.png", "caf\u00e9.png", "cafe\u0301.png")]
    folders = [folder.name for folder in result_folders(files, Path("out"))]
    assert folders == ["IMG_1", "img_1-2", "caf\u00e9", "cafe\u0301-2"], "one folder where systems see no difference"


def test_existing_result_is_replaced_as_a_whole(sample: Call, tmp_path: Path) -> None:
    file = photo(tmp_path / "photo.png")
    sample(file, "--out", tmp_path / "out", "--max-layers", 2)
    sample(file, "--out", tmp_path / "out", "--max-layers", 1)
    assert names(tmp_path / "out") == ["photo"]
    assert "layer_01.png" not in names(tmp_path / "out" / "photo")
    assert len(LayeredResult.load(tmp_path / "out" / "photo")) == 1
    (tmp_path / "out" / "photo" / "layer_00_fixed.png").write_text("by hand")
    sample(file, "--out", tmp_path / "out", "--max-layers", 2)
    assert {"layer_01.png", "layer_00_fixed.png"} < set(names(tmp_path / "out" / "photo")), "not the result's own"


def test_odd_file_names(sample: Call, tmp_path: Path) -> None:
    """Blanks, dots, letters of any script, a name as long as a name can be, and bytes that are no text."""
    stems = ["a photo", "v1.2.final", "фото 写真", "x" * 251]
    files = [photo(tmp_path / "in" / f"{stem}.png", seed) for seed, stem in enumerate(stems)]
    odd = tmp_path / "in" / os.fsdecode(b"caf\xe9.png")
    try:
        shutil.copy(files[0], odd)
    except OSError:  # file systems that take UTF-8 only
        odd = photo(tmp_path / "in" / "café.png")
    status, out, err = sample(*files, odd, "--out", tmp_path / "out")
    assert (status, err, len(out)) == (0, [], 5)
    assert names(tmp_path / "out") == sorted([*stems, odd.stem])


# ---------------------------------------------------------------------- failures


def test_bad_files_do_not_stop_the_others(sample: Call, tmp_path: Path) -> None:
    good = [photo(tmp_path / "good.png"), photo(tmp_path / "fine.jpg", 1)]
    broken, text, empty = tmp_path / "broken.png", tmp_path / "text.png", tmp_path / "empty.jpg"
    broken.write_bytes(good[0].read_bytes()[:400])
    text.write_text("not a picture")
    empty.touch()
    gone = tmp_path / "gone.png"
    status, out, err = sample(broken, good[0], text, empty, good[1], gone, "--out", tmp_path / "out")
    assert status == 1
    assert names(tmp_path / "out") == ["fine", "good"]
    assert len(out) == 2
    assert [line.partition(": ")[0] for line in err] == [str(file) for file in (broken, text, empty, gone)]
    for line, reason in zip(err, ["cut off", "not a PNG", "is empty", "does not exist"], strict=True):
        assert reason in line and "; " in line.partition(": ")[2]


def test_all_bad_is_a_failure_too(sample: Call, tmp_path: Path) -> None:
    status, out, err = sample(tmp_path / "gone.png", "--out", tmp_path / "out")
    assert (status, out, names(tmp_path / "out")) == (1, [], [])
    assert err == [f"{tmp_path / 'gone.png'}: does not exist; check the path"]


def test_folder_without_pictures_is_a_failure(sample: Call, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    status, _, err = sample(tmp_path / "in", photo(tmp_path / "photo.png"), "--out", tmp_path / "out")
    assert (status, names(tmp_path / "out"), len(err)) == (1, ["photo"], 1)
    assert err[0].startswith(f"{tmp_path / 'in'}: ") and "holds no image file" in err[0] and "; " in err[0]


def test_out_below_a_file(sample: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    files = [photo(tmp_path / "a.png"), photo(tmp_path / "b.png", 1)]
    status, out, err = sample(*files, "--out", tmp_path / "file" / "out")
    assert (status, out, len(err)) == (1, [], 2)
    for file, line in zip(files, err, strict=True):
        assert line.startswith(f"{file}: cannot write ") and line.endswith(
            "; a part of the path is a file: choose another path"
        )
    assert (tmp_path / "file").read_text() == "mine"


def test_result_whose_place_is_a_file(sample: Call, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("mine")
    status, _, err = sample(photo(tmp_path / "a.png"), photo(tmp_path / "b.png", 1), "--out", tmp_path / "out")
    assert (status, len(err), names(tmp_path / "out")) == (1, 1, ["a", "b"])
    assert "it is a file; choose another output folder" in err[0]
    assert (tmp_path / "out" / "a").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out"),
        (["--out", "o"], "name at least one picture or folder"),
        (["p.png", "", "--out", "o"], "pictures must have names, got an empty one: leave it out, or look at what should have"),
        (["p.png"], "--out"),
        (["p.png", "--out", "o", "--members", "0"], "--members must be at least 1, got 0; pass"),
        (["p.png", "--out", "o", "--steps", "0"], "--steps must be at least 1, got 0; 4 are"),
        (["p.png", "--out", "o", "--max-layers", "-2"], "--max-layers must be at least 1, got -2; pass"),
        (["p.png", "--out", "o", "--batch-size", "0"], "--batch-size must be at least 1, got 0; pass"),
        (["p.png", "--out", "o", "--members", "many"], "--members"),
        (["p.png", "--out", "o", "--mode", "medium"], "--mode"),
        (["p.png", "--out", "o", "--consensus", "loudest"], "--consensus"),
        (["p.png", "--out", "o", "--device", "tpu"], "--device"),
        (["p.png", "--out", "o", "--memebers", "3"], "--members"),
        (["p.png", "--out", "o", "--steps", "2000"], "--steps must be at most 1000 with these weights, got 2000; "),
        (["p.png", "--out", "o", "--steps", "1000000"], "--steps must be at most 10000, got 1000000; 4 are"),
        (["p.png", "--out", "o", "--members", "5000"], "--members must be at most 4096, got 5000; pass a number from 1 to"),
        (["p.png", "--out", "o", "--seed", "-1"], "seed must be an integer from 0 to 9223372036854775807, got -1: "),
        (["p.png", "--out", "o", "--mode", "marginal", "--steps", "3"], "--steps must be 1 with --mode marginal, got 3; leave"),
    ],
)  # fmt: skip
def test_usage_errors(
    sample: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "p.png")
    status, out, err = sample(*arguments)
    assert (status, out) == (2, [])
    assert message in " ".join(" ".join(err).replace("│", " ").split())
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("kind", ["missing", "pickle", "foreign", "damaged"])
def test_unusable_weights_are_one_line(sample: Call, weights: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "net.pt").write_bytes(b"pickle")
    shutil.copytree(weights, tmp_path / "damaged")
    tensors = tmp_path / "damaged" / "model" / "diffusion_pytorch_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\xff")
    path, message = {
        "missing": (tmp_path / "none", "is no folder"),
        "pickle": (tmp_path / "net.pt", "Python pickles"),
        "foreign": (tmp_path / "foreign", "must hold model_index.json"),
        "damaged": (tmp_path / "damaged", "does not match its SHA-256"),
    }[kind]
    status, out, err = sample(photo(tmp_path / "p.png"), "--out", tmp_path / "out", "--weights", path)
    assert (status, out, len(err)) == (2, [], 1)
    assert message in err[0] and str(path) in err[0]
    assert not (tmp_path / "out").exists()


def test_tracebacks_only_with_debug(sample: Call, tmp_path: Path) -> None:
    arguments = (tmp_path / "gone.png", photo(tmp_path / "p.png"), "--out", tmp_path / "out")
    assert "Traceback" not in "\n".join(sample(*arguments)[2])
    status, _, err = sample(*arguments, "--debug")
    assert status == 1
    assert err[0] == f"{tmp_path / 'gone.png'}: does not exist; check the path"
    assert "Traceback" in "\n".join(err) and "InputError" in "\n".join(err)


# ---------------------------------------------------------------------- from Python


def test_outcomes_come_in_order_and_one_by_one(tiny_pipe: SASPipeline, tmp_path: Path) -> None:
    files = [photo(tmp_path / f"{n}.png", n) for n in range(3)]
    files.insert(1, tmp_path / "gone.png")
    told: list[Outcome] = []
    outcomes = sample_files(
        tiny_pipe, files, tmp_path / "out", batch_size=2, on_done=told.append,
        ensemble_size=1, num_inference_steps=1, max_layers=1,
    )  # fmt: skip
    assert [outcome.file for outcome in outcomes] == files
    assert outcomes[1].result is None and outcomes[1].folder is None
    assert outcomes[1].error == "does not exist; check the path"
    for outcome in (told[0], *told[2:]):
        assert outcome.folder is not None and LayeredResult.load(outcome.folder) == outcome.result
    # Those returned hold no results, which would fill the memory.
    assert outcomes == [replace(outcome, result=None) for outcome in told]


def test_results_are_no_photographs(sample: Call, tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "a.png", 0)
    out = tmp_path / "photos" / "results"
    for _ in range(2):
        assert sample(tmp_path / "photos", "--recursive", "--out", out)[0] == 0
        assert [folder.name for folder in out.iterdir()] == ["a"]
    status, _, err = sample(out / "a", "--out", tmp_path / "more")
    assert status == 1 and "holds results of `sas sample` and no other picture; name another folder" in "".join(err)
    assert sample(out / "a" / "overview.png", "--out", tmp_path / "more")[0] == 0, "what is named is wanted"
    photo(out / "a" / "mine.png", 1)  # somebody's own picture beside a result is no drawing of it
    assert sample(out / "a", "--out", tmp_path / "own")[0] == 0
    assert [folder.name for folder in (tmp_path / "own").iterdir()] == ["mine"]


def test_large_pictures_are_not_held_all_at_once(
    tiny_pipe: SASPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures are read in parts of bounded size, so the first results come before the last pictures are read."""
    monkeypatch.setattr("sas.sampling.MANY_PIXELS", 1000)  # two pictures of 600
    files = [photo(tmp_path / f"{n}.png", n) for n in range(4)]
    seen: list[bool] = []

    def on_done(outcome: Any) -> None:
        seen.append((tmp_path / "out" / "2").exists())
        if outcome.file == files[1]:
            files[3].unlink()  # not read yet

    outcomes = sample_files(
        tiny_pipe, files, tmp_path / "out", on_done=on_done, ensemble_size=1, num_inference_steps=1, max_layers=1
    )
    assert [outcome.error for outcome in outcomes] == ["", "", "", "does not exist; check the path"]
    assert seen[:2] == [False, False]


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError])
def test_a_picture_that_is_too_large_for_the_memory_does_not_stop_the_others(
    kind: type[Exception], tiny_pipe: SASPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [photo(tmp_path / f"{n}.png", n, size=(40, 30) if n == 1 else (20, 30)) for n in range(3)]
    take_apart = SASPipeline._take_apart

    def short(self: SASPipeline, images: list[np.ndarray], *others: Any) -> Any:
        if any(len(image) == 40 for image in images):
            raise kind("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes.")
        return take_apart(self, images, *others)

    monkeypatch.setattr(SASPipeline, "_take_apart", short)
    quick = {"ensemble_size": 1, "num_inference_steps": 1, "max_layers": 1}
    outcomes = sample_files(tiny_pipe, files, tmp_path / "out", **quick)
    assert [bool(outcome.error) for outcome in outcomes] == [False, True, False]
    assert outcomes[1].error == "not enough memory; pass a smaller --batch-size, fewer --members, or --device cpu"
    assert names(tmp_path / "out") == ["0", "2"]
    monkeypatch.setattr(SASPipeline, "_take_apart", lambda *_: (_ for _ in ()).throw(RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        sample_files(tiny_pipe, files, tmp_path / "out", **quick)


# ---------------------------------------------------------------------- real programs


def environment() -> dict[str, str]:
    """Nothing that leads to this checkout but the script itself."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
def test_script_from_another_folder(weights: Path, tmp_path: Path) -> None:
    photo(tmp_path / "pictures" / "one.png")
    (tmp_path / "pictures" / "two.png").write_text("no picture")
    done = subprocess.run(
        [sys.executable, ROOT / "sample.py", "pictures", "--out", "results", "--weights", weights.name, "--device", "cpu"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[0].startswith("pictures/one.png: 2 layers, ")
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("pictures/two.png: is not a PNG")
    assert names(tmp_path / "results") == ["one"]


FULL_DISK = """
import resource, sys
from sas.__main__ import main
from sas.overview import overview  # what is loaded now need not be written to a cache
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
sys.dont_write_bytecode = True
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_full_disk(weights: Path, tmp_path: Path) -> None:
    """A limit on the size of files takes the place of a full disk: both refuse the bytes in the midst of a write."""
    pytest.importorskip("resource")
    photo(tmp_path / "one.png", size=(200, 300))
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, "sample", "one.png", "--out", "results", "--weights", weights.name],
        cwd=tmp_path, env={**environment(), "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines() == [
        "one.png: cannot write results/one: File too large; free some space or choose another disk"
    ]
    assert names(tmp_path / "results") == []


def test_sas_sample_is_the_same(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = photo(tmp_path / "photo.png")
    arguments = [str(file), "--weights", str(weights), "--out"]
    assert main(["sample", *arguments, str(tmp_path / "one")]) == 0
    assert run(Sample, [*arguments, str(tmp_path / "two")]) == 0
    assert LayeredResult.load(tmp_path / "one" / "photo") == LayeredResult.load(tmp_path / "two" / "photo")
    assert capsys.readouterr().err == ""
