"""`sas COMMAND`: finding the command, usage errors with a cure, exit statuses, and what the commands write.

Sampling has a file of its own, tests/test_sample_cli.py.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_config

import sas
from sas.__main__ import OVERVIEW, main
from sas.cli import COMMANDS, compose_command, run
from sas.cli_options import Compose, Train, parse
from sas.data.folders import ProjectFolder, SASFolders, open_scenes
from sas.data.split import cutout_part
from sas.demo import write_sheet
from sas.factory import build_model, build_pipeline
from sas.io import InputError
from sas.pipeline import SASPipeline
from sas.result import LayeredResult

ROOT = Path(__file__).resolve().parent.parent
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`call(*arguments) -> (exit status, stdout, stderr)`, in an empty folder; blanks and frames become single blanks."""
    monkeypatch.chdir(tmp_path)

    def words(text: str) -> str:
        return " ".join(text.replace("│", " ").split())

    def run_main(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return status, words(said.out), words(said.err)

    return run_main


# ---------------------------------------------------------------------- which command


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(call: Call, arguments: list[str]) -> None:
    status, out, err = call(*arguments)
    assert (status, err) == (0, "")
    assert out.startswith("usage: sas COMMAND")
    assert all(f" {command} " in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(call: Call, command: str) -> None:
    status, out, err = call(command, "--help")
    assert (status, err) == (0, "")
    assert f"usage: sas {command}" in out and "--debug" in out


def test_version(call: Call) -> None:
    assert call("--version") == (0, f"sas-amodal {sas.__version__}", "")


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("smaple", "sas: 'smaple' is no command; did you mean `sas sample`?"),
        ("trian", "sas: 'trian' is no command; did you mean `sas train`?"),
        (
            "photo.jpg",
            "sas: 'photo.jpg' is no command; commands are demo, sample, train, evaluate, compose, average, export, doctor, data",
        ),
        ("convert", "sas: 'convert' is no command; did you mean `sas data convert`?"),
        ("chekc", "sas: 'chekc' is no command; did you mean `sas data check`?"),
        ("dat", "sas: 'dat' is no command; did you mean `sas data`?"),
    ],
)
def test_unknown_command(call: Call, word: str, hint: str) -> None:
    assert call(word, "--out", "x") == (2, "", hint)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["sample", "--help"], ["smaple"]])
def test_torch_is_not_imported_to_say_so(arguments: list[str]) -> None:
    program = (
        "import sys\nimport sas.__main__\nassert 'torch' not in sys.modules, 'import'\n"
        f"sas.__main__.main({arguments})\nassert 'torch' not in sys.modules, 'call'"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_help_says_of_each_command_what_the_command_says_of_itself() -> None:
    described = {name: (command.__doc__ or "").splitlines()[0] for name, command in COMMANDS.items()}
    assert {name: words for name, words in OVERVIEW.items() if name not in ("data", "--version")} == described


def test_module_can_be_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sas", "--version"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"sas-amodal {sas.__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["compose", "--help"], ["doctor"]])
def test_whoever_stops_reading_is_no_error(arguments: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "sas", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()  # before it has written anything, as `| head -0` would
        told = child.stderr.read()
        child.wait(timeout=120)
    assert not told, told


# ---------------------------------------------------------------------- train


QUICK = ("--data.classes", 2, "--data.views", 1, "--data.sprite-size", 16, "--data.background-count", 1)
SMALL = ("--model.channels", 8, 16, 16, "--model.norm-groups", 4)


def test_dry_run_says_what_would_be_done(call: Call, tmp_path: Path) -> None:
    status, out, err = call("train", "--dry-run", *QUICK, *SMALL, "--training.steps", 7)
    assert (status, err) == (0, "")
    assert "data: 2 rendered classes with 1 views, 1 rendered backgrounds" in out
    assert "network: split, 0.9" in out and "7 steps of 32 pictures, seed 0" in out
    assert f"output: {Path('runs') / 'train'}" in out
    assert not any(tmp_path.iterdir())


def test_dry_run_with_a_file(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "training: {steps: 7, seed: 5}\nmodel: {channels: [8, 16, 16], norm_groups: 4}\n"
    )
    status, out, _ = call("train", "mine.yaml", "--dry-run", *QUICK, "--training.seed", 6)
    assert status == 0
    assert "7 steps of 32 pictures, seed 6" in out, "the command line changes what the file says"
    assert f"output: {Path('runs') / 'mine'}" in out


def test_configuration_may_be_named_after_options(call: Call, tmp_path: Path) -> None:
    """It must not be passed over in silence."""
    (tmp_path / "mine.yaml").write_text("training: {steps: 7}\nmodel: {channels: [8, 16, 16], norm_groups: 4}\n")
    status, out, _ = call("train", "--dry-run", *QUICK, "--training.seed", 6, "mine.yaml")
    assert status == 0
    assert "7 steps of 32 pictures, seed 6" in out
    status, _, err = call("train", "--dry-run", "missing.yaml")
    assert (status, "configuration missing.yaml cannot be read" in err) == (2, True)


def test_what_only_the_file_allows_may_be_set_before_it_is_named(call: Call, tmp_path: Path) -> None:
    """`data.images` has no effect without scenes, which the file names."""
    (tmp_path / "mine.yaml").write_text("data: {scenes: nowhere, format: cocoa}\n")
    status, _, err = call("train", "--dry-run", "--data.images", "pictures", "mine.yaml")
    assert (status, "data nowhere" in err) == (1, True), err
    status, _, err = call("train", "--dry-run", "--data.images", "pictures")
    assert status == 2 and "images has no effect without scenes" in err


def test_dry_run_looks_at_the_weights_it_would_start_from(call: Call) -> None:
    status, out, err = call("train", "--dry-run", *QUICK, *SMALL, "--init-from", "default")
    assert (status, out) == (1, "")
    assert "init_from default holds another architecture (" in err
    assert "channels [32, 64, 128, 160] and not [8, 16, 16]; " in err and "detail 16 and not 0; " in err
    status, _, err = call("train", "--dry-run", *QUICK, *SMALL, "--init-from", "nowhere")
    assert (status, "nowhere" in err) == (1, True)


def test_dry_run_refuses_parts_that_there_are_not(call: Call) -> None:
    status, _, err = call("train", "--dry-run", *QUICK, *SMALL, "--training.only", "foo")
    assert status == 1 and "training.only must name parts of the network" in err and "got 'foo'" in err


def test_dry_run_refuses_families_that_there_are_not(call: Call) -> None:
    status, _, err = call("train", "--dry-run", *QUICK, *SMALL, "--data.families", "dog")
    assert (status, "data.families must be of vase, " in err and "got 'dog'" in err) == (2, True), err


def test_a_truth_value_for_a_word_is_told_with_its_cure(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("training: {precision: no}\n")
    status, _, err = call("train", "mine.yaml", "--dry-run")
    assert (status, 'put it into quotes, for example "no"' in err) == (2, True), err


def test_names_that_the_terminal_cannot_show_do_not_end_the_work(tmp_path: Path) -> None:
    for name in ("я", "apple"):
        Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(tmp_path / f"{name}.png")
    command = [
        sys.executable,
        "-m",
        "sas",
        "sample",
        ".",
        "--out",
        "results",
        "--steps",
        "1",
        "--members",
        "1",
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {folder.name for folder in (tmp_path / "results").iterdir()} == {"я", "apple"}


def test_dry_run_looks_at_the_data(call: Call, tmp_path: Path) -> None:
    status, _, err = call("train", "--dry-run", "--data.scenes", "nowhere")
    assert status == 1
    assert err == "sas train: data nowhere must be a folder, found nothing; check the path"
    (tmp_path / "cutouts").mkdir()
    for number in range(2):
        cutout = np.zeros((8, 8, 4), dtype=np.uint8)
        cutout[1:7, 1:7] = (200, 90, 40 * number, 255)
        Image.fromarray(cutout).save(tmp_path / "cutouts" / f"{number}.png")
    status, out, _ = call("train", "--dry-run", "--cutouts", "cutouts", *SMALL, "--data.background-count", 1)
    assert status == 0
    assert "data: 2 cutouts in " in out and f"output: {Path('runs') / 'cutouts'}" in out
    # what fits cutouts alone fits --cutouts too
    for option in (("--cutouts", "cutouts"), ("--cutouts=cutouts",), ("--data.cutouts", "cutouts")):
        status, out, _ = call("train", "--dry-run", *option, *SMALL, "--data.rendered")
        assert status == 0 and "data: 2 cutouts in " in out
    # what stands behind its value is the configuration
    Path("mine.yaml").write_text("data: {classes: 7}\ntraining: {steps: 123}\n")
    for option in (
        ("--cutouts", "cutouts"),
        ("--cutouts=cutouts",),
        ("--data.validation", "None"),
        ("--data.families", "None"),
    ):
        options = parse(Train, [*option, "mine.yaml"], None)
        assert (options.config, options.settings.training.steps, options.settings.data.classes) == ("mine.yaml", 123, 7)
        assert options.settings.data.cutouts == (("cutouts",) if "--cutouts" in option[0] else ())
    status, _, err = call("train", "--dry-run", "--cutouts", "cutouts", "--data.cutouts", "others")
    assert (
        status != 0
        and "--cutouts excludes --data.cutouts, which sets the same, got both (--cutouts cutouts): keep one" in err
    )
    status, _, err = call("train", "--dry-run", "--cutouts")
    assert status == 2 and "--cutouts" in err


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_dry_run_refuses_what_the_trainer_would_refuse(
    call: Call, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)  # as on a CPU that emulates bfloat16
    arguments = ("train", "--cpu", *QUICK, *SMALL, "--training.precision", precision)
    message = f'sas train: training.precision must be "no" on this CPU, got "{precision}": half precision is emulated'
    for options in (("--dry-run",), ()):
        status, out, err = call(*arguments, *options)
        assert (status, out) == (1, "") and err.startswith(message) and err.endswith("and bf16, or leave it out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {stepz: 3}", "unknown key training.stepz: did you mean training.steps?"),
        ("trainning: {steps: 3}", "unknown key trainning: did you mean training?"),
        ("training: {steps: 0}", "training.steps must be at least 1, got 0: pass 1 or more"),
        ("training: {steps: many}", "training.steps must be a whole number, got 'many': pass a whole number"),
        ("data: {objects: [3, 1]}", "objects must be (fewest, most) with most >= 1, got (3, 1): fix the range"),
        ("sampling: {steps: 2000}", "sampling.steps must be at most num_train_timesteps = 1000, got 2000: lower it"),
        ("training: [", "is not valid YAML"),
        ("just words", "must hold sections such as `training:`, got str"),
    ],
)
def test_faults_of_a_configuration(call: Call, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    status, out, err = call("train", "mine.yaml", "--dry-run")
    assert (status, out) == (2, "")
    assert err.startswith("sas train: ") and "mine.yaml" in err and message in err


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["missing.yaml"], ["configuration missing.yaml cannot be read (No such file or directory): check the path"]),
        (["--training.stepz", "3"], ["Unrecognized options: --training.stepz", "--training.steps INT"]),
        (["--data.mask-size", "30"], ["data.mask_size must be divisible by patch x 2^(levels - 1) = 16, got 30"]),
        (["--model.channels", "16", "32"], ["maps of encoder conv must fit the denoiser's levels, of sides (32, 16), got one of side 8"]),
    ],
)  # fmt: skip
def test_faults_of_the_arguments(call: Call, tmp_path: Path, arguments: list[str], messages: list[str]) -> None:
    status, out, err = call("train", *arguments, "--dry-run")
    assert (status, out) == (2, "")
    assert all(message in err for message in messages)
    assert "Traceback" not in err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.augment", "5"], "data.augment must be at most 1, got 5: pass 1 or less"),
        (["--data.augment=5"], "data.augment must be at most 1, got 5: pass 1 or less"),
        (["--training.steps", "0", "--cpu"], "training.steps must be at least 1, got 0: pass 1 or more"),
        (["--training.steps", "many"], "training.steps must be a whole number, got 'many': pass a whole number"),
        (["--training.precision", "fp8"], "training.precision must be 'no', 'fp16' or 'bf16', got 'fp8': choose one of them"),
        (["--data.objects", "3", "1"], "data: objects must be (fewest, most) with most >= 1, got (3, 1): fix the range"),
        (["--logging.trackers", "wandb", "ml"], "logging.trackers.1 must be 'wandb' or 'tensorboard', got 'ml': choose one of them"),
        (["--model.name", "net", "--sampling.steps", "0"], "model.name must be 'unet' or 'split', got 'net': choose one of them; "
         "sampling.steps must be at least 1, got 0: pass 1 or more"),
    ],
)  # fmt: skip
def test_a_bad_value_is_one_plain_line(call: Call, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "mine.yaml").write_text("training: {seed: 3}\n")
    assert call("train", "mine.yaml", *arguments) == (2, "", f"sas train: the command line: {message}")


def test_a_value_of_the_file_is_unset(call: Call, tmp_path: Path) -> None:
    text = "data: {scenes: nowhere, validation: gone}\ntraining: {steps: 7}\n"
    (tmp_path / "mine.yaml").write_text(text + "model: {channels: [8, 16, 16], norm_groups: 4}\n")
    for word in ("None", "null"):
        for unset in (
            ("--data.scenes", word, "--data.validation", word),
            (f"--data.scenes={word}", f"--data.validation={word}"),
        ):
            status, out, err = call("train", "mine.yaml", "--dry-run", *unset, *QUICK)
            assert (status, err) == (0, "") and "data: 2 rendered classes" in out
    assert "unset by None or null, as in --data.validation None" in call("train", "--help")[1]


def test_null_unsets_nothing_but_fields_that_may_be_unset(call: Call, tmp_path: Path) -> None:
    for out in (("--out", "null"), ("--out=null",)):
        status, told, err = call("train", "--dry-run", *out, *QUICK)
        assert (status, err) == (0, "") and told.endswith("output: null")
    for steps in (("--training.steps", "null"), ("--training.steps=null",)):
        message = "training.steps must be a whole number, got 'null': pass a whole number"
        assert call("train", *steps) == (2, "", f"sas train: the command line: {message}")


def test_lists_are_emptied_and_truth_values_written_out(call: Call, tmp_path: Path) -> None:
    text = (
        "data: {cutouts: [nowhere], rendered: true, families: [vase]}\nmodel: {channels: [8, 16, 16], norm_groups: 4}\n"
    )
    (tmp_path / "mine.yaml").write_text(text)
    common = ("train", "mine.yaml", "--dry-run", *QUICK)
    for nothing in (("--data.cutouts", "None"), ("--data.cutouts=null",), ("--data.cutouts",)):
        for rendered in (("--data.rendered", "False"), ("--data.rendered=false",), ("--data.no-rendered",)):
            status, out, err = call(*common, *nothing, *rendered)
            assert (status, err) == (0, "") and "data: 2 rendered classes" in out
    later = ("train", "--dry-run", *QUICK)
    for word in ("--data.cutouts=None", "--data.rendered=false"):
        status, out, err = call(*later, "--data.cutouts", "--data.no-rendered", word, "mine.yaml", "--training.steps=7")
        assert "output: runs/mine" in out
        assert (status, err) == (0, "") and "network: split, 0.9" in out and "7 steps" in out
    status, _, err = call(*later, "--sampling.refine", "True", "mine.yaml", "--trainin.steps", 5)
    assert status == 2 and "--trainin.steps" in err and "refine" not in err
    assert call(*common, "--data.cutouts", "None", "--data.rendered", "True", "--sampling.refine", "True")[0] == 2
    status, _, err = call(*common, "--data.no-rendered")
    words = "data: cutouts excludes families, which would have no effect: remove one of them, or set rendered"
    assert (status, err) == (2, f"sas train: the command line: {words}")


def test_training_that_cannot_start_is_one_line(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    scenes = tmp_path / "scenes"
    assert call("compose", "--out", scenes, "--count", 2, "--size", 32, "--classes", 1)[0] == 0
    status, _, err = call("train", "--cpu", "--out", "file/run", "--data.scenes", scenes, *SMALL)
    assert status == 1
    assert err.startswith("sas train: ") and "file/run" in err and "Traceback" not in err


def test_script_has_its_own_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(Train, [str(tmp_path / "missing.yaml")], program="train.py") == 2
    assert capsys.readouterr().err.startswith("train.py: configuration ")


def test_debug_lets_errors_through(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"configuration .* cannot be read"):
        run(Train, [str(tmp_path / "missing.yaml"), "--debug"])


# ---------------------------------------------------------------------- compose


COMPOSE = ("--count", 2, "--size", 48, "--classes", 2, "--objects", 2, 3)


def test_compose_writes_a_project(call: Call, tmp_path: Path) -> None:
    status, out, err = call("compose", "--out", "scenes", *COMPOSE, "--seed", 7)
    assert (status, out, err) == (0, "2 scenes -> scenes", "")
    scenes = open_scenes("scenes")
    assert isinstance(scenes, ProjectFolder) and len(scenes) == 2
    info = json.loads((tmp_path / "scenes" / "dataset.json").read_text())
    assert (
        info["seed"] == 7 and info["generator"] == "sas compose --count 2 --seed 7 --size 48 --objects 2 3 --classes 2"
    )
    for scene in scenes:
        assert scene.image.shape == (48, 48, 3)
        assert 1 <= len(scene) <= 3 and scene.visible.any(axis=(1, 2)).all()
    call("compose", "--out", "again", *COMPOSE, "--seed", 7)
    again = open_scenes("again")
    assert all(np.array_equal(a.image, b.image) for a, b in zip(scenes, again, strict=True))
    call("compose", "--out", "more", *COMPOSE, "--seed", 7, "--count", 20)
    more = open_scenes("more")
    assert len(more) == 20 and all(np.array_equal(a.image, b.image) for a, b in zip(scenes, more, strict=False))


def test_the_command_that_a_data_set_names_can_be_typed() -> None:
    options = Compose(out="a", cutouts=("my cutouts", "more"), rendered=True, part="test", objects=(1, 6), seed=3)
    words = shlex.split(compose_command(options))
    assert words[:2] == ["sas", "compose"] and "--out" not in words
    assert parse(Compose, [*words[2:], "--out", "a"], "sas compose") == options


def test_compose_takes_only_the_part_asked_for(call: Call, tmp_path: Path) -> None:
    (tmp_path / "cutouts").mkdir()
    for n in range(40):
        picture = Image.new("RGBA", (12, 12), (250, 10, 10, 255))
        picture.save(tmp_path / "cutouts" / f"look__{n}__0.png")
    for part in ("train", "validation", "test"):
        arguments = ("--cutouts", "cutouts", "--part", part, "--count", 4, "--size", 32)
        assert call("compose", "--out", part, *arguments)[0] == 0
        names = {name for scene in open_scenes(part) for name in scene.names}
        assert names and {cutout_part(name) for name in names} == {part}
    status, _, err = call("compose", "--out", "none", "--cutouts", "cutouts", "--part", "train", "--families", "ring")
    assert (
        status == 2 and "--families must leave out ring with --part train, which is for testing only; remove it" in err
    )
    status, _, err = call("compose", "--out", "none", "--part", "test", "--count", 4)
    assert status == 2 and "--part test has no effect without --cutouts or --backgrounds, which it divides" in err
    status, _, err = call("compose", "--out", "none", "--size", 2048)
    assert status == 2 and "--size must be from 16 to 1024 pixels, got 2048; pass one of these" in err


def test_compose_with_prints_shades_or_degradation_shows_the_same_objects_in_other_colours(call: Call) -> None:
    for option in ("prints", "shades", "degradation"):
        for share in (0, 1):
            assert call("compose", "--out", f"{option}{share}", *COMPOSE, f"--{option}", share)[0] == 0
        for a, b in zip(open_scenes(f"{option}0"), open_scenes(f"{option}1"), strict=True):
            np.testing.assert_array_equal(a.amodal_masks, b.amodal_masks)
            assert (a.image != b.image).any()


def test_sample_needs_a_folder_to_write_to(call: Call) -> None:
    status, out, err = call("sample", "photo.png", "--out", "")
    assert (status, out) == (2, "") and "--out must name a folder, got nothing; pass --out results" in err


@pytest.mark.parametrize("option", ["warps", "touching"])
def test_compose_with_warps_or_touching_shows_the_same_objects_otherwise(call: Call, option: str) -> None:
    for share in (0, 1):
        assert call("compose", "--out", f"{option}{share}", *COMPOSE, f"--{option}", share)[0] == 0
    for a, b in zip(open_scenes(f"{option}0"), open_scenes(f"{option}1"), strict=True):
        assert set(a.names) & set(b.names)
        assert a.amodal_masks.shape != b.amodal_masks.shape or (a.amodal_masks != b.amodal_masks).any()


def test_compose_writes_the_folders_of_the_sas_code(call: Call, tmp_path: Path) -> None:
    assert call("compose", "--out", "folders", *COMPOSE, "--seed", 7, "--format", "sas")[0] == 0
    call("compose", "--out", "project", *COMPOSE, "--seed", 7)
    folders, project = open_scenes("folders"), open_scenes("project")
    assert isinstance(folders, SASFolders) and len(folders) == 2
    masks = {scene.id: scene.layer_masks for scene in project}
    for scene in folders:
        np.testing.assert_array_equal(scene.layer_masks, masks[scene.id])
    assert {path.name for path in next((tmp_path / "folders").iterdir()).iterdir()} == {
        "image.png", "mask.png", "newmask.png",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0"], "--count must be at least 1, got 0; ask for one or more scenes"),
        (["--size", "8"], "--size must be from 16 to 1024 pixels, got 8; pass one of these"),
        (["--objects", "3", "1"], "objects must be (fewest, most) with most >= 1, got (3, 1): fix the range"),
        (["--intra-class", "2"], "intra_class must be at most 1, got 2.0: pass 1 or less"),
        (["--prints", "-1"], "prints must be at least 0, got -1.0: pass 0 or more"),
        (["--warps", "1.5"], "warps must be at most 1, got 1.5: pass 1 or less"),
        (["--touching", "1.5"], "touching must be at most 1, got 1.5: pass 1 or less"),
        (["--shades", "-1"], "shades must be at least 0, got -1.0: pass 0 or more"),
        (["--degradation", "2"], "degradation must be at most 1, got 2.0: pass 1 or less"),
        (["--format", "coco"], "--format"),
        (["--coutn", "3"], "--count"),
    ],
)
def test_faults_of_compose(call: Call, tmp_path: Path, arguments: list[str], message: str) -> None:
    status, out, err = call("compose", "--out", "scenes", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert not (tmp_path / "scenes").exists()


def test_compose_replaces_nothing(call: Call, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    assert call("compose", "--out", "new", *COMPOSE)[0] == 0
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "diary.txt").write_text("dear diary")
    for folder in ("home", "new"):
        before = sorted(Path(tmp_path / folder).rglob("*"))
        for form in ("project", "sas"):
            status, _, err = call("compose", "--out", folder, *COMPOSE, "--format", form)
            assert status == 1
            assert f"--out {folder} must be a new or empty folder, got one with files in it; choose another" in err
        assert sorted(Path(tmp_path / folder).rglob("*")) == before


def test_compose_from_cutouts_that_are_not_there(call: Call, tmp_path: Path) -> None:
    status, _, err = call("compose", "--out", "scenes", "--cutouts", "nowhere")
    assert status == 1
    assert "cutouts nowhere must be a folder, found nothing; check the path" in err and "Traceback" not in err
    assert not (tmp_path / "scenes").exists()


# ---------------------------------------------------------------------- commands that need weights


@pytest.fixture
def shipped(make_tiny_pipe: Callable[..., SASPipeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Quick weights in the place of the shipped ones, in a folder beside the one that `call` works in."""
    folder = tmp_path.with_name(tmp_path.name + "-shipped")
    make_tiny_pipe(num_inference_steps=1, ensemble_size=1, max_layers=2, model_id="tiny").save_pretrained(folder)
    monkeypatch.setattr("sas.pretrained.DEFAULT_WEIGHTS", folder)
    return folder


@pytest.mark.slow
def test_demo(call: Call, shipped: Path, tmp_path: Path) -> None:
    status, out, err = call("demo", "--out", "out", "--scenes", 1)
    assert (status, err) == (0, "")
    assert "weights: tiny" in out and "scene-0" in out
    pictures = sorted(path.stem for path in (Path(sas.__file__).parent / "demo_pictures").iterdir())
    assert pictures
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(["demo", "scene-0", *pictures])
    for name in ("scene-0", *pictures):
        assert len(LayeredResult.load(tmp_path / "out" / name)) > 0
    with Image.open(tmp_path / "out" / "demo" / "overview.png") as sheet:
        assert min(sheet.size) > 700


def test_the_sheet_of_the_demo_keeps_what_is_not_its_own(tmp_path: Path, tiny_pipe: SASPipeline) -> None:
    sheet = np.zeros((8, 8, 3), dtype=np.uint8)
    for _ in range(2):
        write_sheet(tmp_path / "demo", [sheet], ["x"])
        (tmp_path / "demo" / "notes.txt").write_text("mine")
    write_sheet(tmp_path / "demo", [sheet], ["x"])
    assert (tmp_path / "demo" / "notes.txt").read_text() == "mine"
    tiny_pipe(sheet, ensemble_size=1, num_inference_steps=1).save(tmp_path / "photo")
    before = sorted(path.name for path in (tmp_path / "photo").iterdir())
    with pytest.raises(InputError, match=r"out .*photo holds the result of a picture, which saving would touch"):
        write_sheet(tmp_path / "photo", [sheet], ["x"])
    assert sorted(path.name for path in (tmp_path / "photo").iterdir()) == before


def test_demo_refuses_a_negative_number(call: Call, shipped: Path) -> None:
    status, _, err = call("demo", "--scenes", -1)
    assert (status, err) == (2, "sas demo: --scenes must be at least 0, got -1; pass a positive number")


def test_demo_without_weights(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sas.pretrained.DEFAULT_WEIGHTS", tmp_path / "gone")
    status, _, err = call("demo", "--out", "out")
    assert status == 2
    assert "the shipped weights are missing at " in err and "; install sas-amodal again" in err
    assert not (tmp_path / "out").exists()


def test_evaluate_writes_scores(call: Call, shipped: Path, tmp_path: Path) -> None:
    assert call("compose", "--out", "scenes", *COMPOSE)[0] == 0
    status, out, err = call("evaluate", "default", "scenes", "--out", "scores", "--device", "cpu", "--limit", 1)
    assert (status, err) == (0, "")
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert (tmp_path / "scores" / "metrics.md").read_text().split()[:3] == out.split()[:3]


def test_a_stop_threshold_can_be_given(call: Call, tmp_path: Path) -> None:
    config = tiny_config(
        model_name="split", data_image_size=32, data_mask_size=16, data_oversample=1, model_channels=(8, 16, 16),
        model_encoder_widths=(8, 8, 16), model_attention_sizes=(4,),
    )  # fmt: skip
    model = build_model(config)
    torch.nn.init.constant_(model.head.bias, 5.0)
    torch.nn.init.constant_(model.stop.bias, 0.0)  # nothing is left with probability 0.5
    build_pipeline(config, model, model_id="half").save_pretrained(tmp_path / "half")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    assert call("compose", "--out", "scenes", *COMPOSE)[0] == 0
    drawn = {}
    for value in ("0.4", "0.6"):
        common = ("--weights", "half", "--device", "cpu", "--stop-threshold", value)
        assert call("sample", "a.png", "--out", f"out-{value}", *common)[0] == 0
        drawn[value] = len(json.loads((tmp_path / f"out-{value}" / "a" / "result.json").read_text())["layers"])
        options = ("--device", "cpu", "--limit", 1, "--stop-threshold", value)
        assert call("evaluate", "half", "scenes", "--out", f"scores-{value}", *options)[0] == 0
    assert drawn == {"0.4": 0, "0.6": 1}
    scores = [json.loads((tmp_path / f"scores-{value}" / "metrics.json").read_text())["metrics"] for value in drawn]
    assert scores[0]["foreground_iou"]["value"] == 0 < scores[1]["foreground_iou"]["value"]
    for words in (("sample", "a.png", "--weights", "half"), ("evaluate", "half", "scenes")):
        status, _, err = call(*words, "--out", "none", "--device", "cpu", "--stop-threshold", 2)
        assert status == (2 if words[0] == "sample" else 1)
        assert err == f"sas {words[0]}: stop_threshold must lie in (0, 1], got 2.0: lower values draw fewer layers"


def test_a_noise_scale_can_be_given(call: Call, shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    assert call("compose", "--out", "scenes", *COMPOSE)[0] == 0
    scales = []
    sampler = SASPipeline.sampler

    def watched(self: SASPipeline, **options: Any) -> Any:
        made = sampler(self, **options)
        scales.append(made.noise_scale)
        return made

    monkeypatch.setattr(SASPipeline, "sampler", watched)
    assert call("sample", "a.png", "--out", "out", "--device", "cpu", "--noise-scale", 0.3)[0] == 0
    assert json.loads((tmp_path / "out" / "a" / "result.json").read_text())["ensemble"]["noise_scale"] == 0.3
    options = ("--device", "cpu", "--limit", 1, "--noise-scale", 0.3)
    assert call("evaluate", "default", "scenes", "--out", "scores", *options)[0] == 0
    assert len(scales) >= 3 and set(scales) == {0.3}  # of the picture, of the scene, and behind its true masks
    for words in (("sample", "a.png"), ("evaluate", "default", "scenes")):
        status, _, err = call(*words, "--out", "none", "--device", "cpu", "--noise-scale", 3)
        assert status == (2 if words[0] == "sample" else 1)
        assert err.startswith(f"sas {words[0]}: noise_scale must be a number from 0 to 2, got 3.0: pass 1")


def test_evaluate_without_data(call: Call, shipped: Path, tmp_path: Path) -> None:
    status, _, err = call("evaluate", "default", "scenes", "--out", "")
    assert status == 2 and "--out must name a folder, got nothing" in err
    status, _, err = call("evaluate", "default", "nowhere", "--out", "scores")
    assert status == 1
    assert err.startswith("sas evaluate: ") and "nowhere" in err and "Traceback" not in err
    assert not (tmp_path / "scores").exists()


def test_doctor_exit_status_follows_the_checks(call: Call, shipped: Path, tmp_path: Path) -> None:
    status, out, _ = call("doctor")
    assert (status, ", 0 failed" in out) == (0, True), out
    status, out, _ = call("doctor", "--weights", tmp_path / "gone")
    assert (status, ", 0 failed" in out, "FAIL weights: " in out) == (1, False, True), out
