"""The command line: options to calls, faults to one line and an exit status. Here, in `sas.cli_data` and in `sas.__main__` alone is print."""

from __future__ import annotations

import difflib
import io
import logging
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sas import cli_data
from sas.arguments import LARGEST
from sas.cli_options import Average, Compose, Demo, Doctor, Evaluate, Export, Sample, Train, parse
from sas.config import Config, ConfigError, faults, load_config
from sas.console import nobody_reads, reader_may_leave
from sas.imports import quick_imports, share_cores

if TYPE_CHECKING:
    import torch

    from sas.data.composer import Composer
    from sas.pipeline import SASPipeline
    from sas.sampling import Outcome

USAGE, FAILED = 2, 1


class UsageError(ValueError):
    """Arguments that cannot be used together or at all; exit status 2."""


# ---------------------------------------------------------------------- entry points


def dispatch(name: str, arguments: Sequence[str]) -> int:
    """Carry out the command of a name; returns the exit status."""
    if name == "data":
        return _data(list(arguments))
    if name in COMMANDS:
        return run(COMMANDS[name], arguments, program=f"sas {name}")
    whole = {**{name: name for name in (*COMMANDS, "data")}, **{name: f"data {name}" for name in cli_data.COMMANDS}}
    close = difflib.get_close_matches(name, whole, n=1)
    hint = f"did you mean `sas {whole[close[0]]}`?" if close else f"commands are {', '.join(COMMANDS)}, data"
    print(f"sas: {name!r} is no command; {hint}", file=sys.stderr)
    return USAGE


@reader_may_leave()
def run(command: type[Any], arguments: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """Parse the arguments of one command and carry it out; errors become one line and an exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    share_cores()
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show must not end the work
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return _CALLS[command](parse(command, arguments, program))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else USAGE
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if debug or (isinstance(error, BrokenPipeError) and nobody_reads()):
            raise
        from pydantic import ValidationError

        words = faults(error) if isinstance(error, ValidationError) else str(error)
        if not isinstance(error, ValueError | RuntimeError | OSError):
            words = f"{type(error).__name__}: {words} (--debug shows where)"
        print(f"{program or 'sas'}: {' '.join(words.split())}", file=sys.stderr)
        return (
            USAGE
            if isinstance(error, ConfigError | UsageError | ValidationError)
            or command in (Sample, Demo, cli_data.Check)
            else FAILED
        )


def _data(arguments: list[str]) -> int:
    """`sas data COMMAND ...`."""
    if arguments and arguments[0] in cli_data.COMMANDS:
        return run(cli_data.COMMANDS[arguments[0]][0], arguments[1:], program=f"sas data {arguments[0]}")
    asked = not arguments or arguments[0] in ("-h", "--help")
    lines = ["usage: sas data COMMAND ...", "", "Check, convert and pack annotated data sets.", ""]
    lines += [
        f"  {name:10s} {(command.__doc__ or '').splitlines()[0]}" for name, (command, _) in cli_data.COMMANDS.items()
    ]
    words = "\n".join(lines)
    if not asked:
        close = difflib.get_close_matches(arguments[0], cli_data.COMMANDS, n=1)
        hint = f"did you mean `sas data {close[0]}`?" if close else f"commands are {', '.join(cli_data.COMMANDS)}"
        words = f"sas data: {arguments[0]!r} is no command; {hint}"
    print(words, file=sys.stdout if asked else sys.stderr)
    return 0 if asked else USAGE


# ---------------------------------------------------------------------- commands


def _device(name: str) -> torch.device:
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        raise UsageError(f"device {name} is not available here; use --device auto")
    return torch.device(name)


def _load(weights: str | None, device: str, dtype: str = "float32") -> Any:
    with quick_imports():
        import torch
        from diffusers.utils.logging import disable_progress_bar

        from sas.distributed import cpu_has_bfloat16
        from sas.pipeline import SASPipeline

    disable_progress_bar()
    place = _device(device)
    if place.type == "cpu" and dtype == "bfloat16" and not cpu_has_bfloat16():
        raise UsageError("--dtype must be float32 on this CPU, got bfloat16, which is emulated there; leave it out")
    pipe = SASPipeline.from_pretrained(weights, dtype=getattr(torch, dtype)).to(place)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _sample(options: Sample) -> int:
    if not options.inputs:
        raise UsageError("name at least one picture or folder, for example `sas sample photo.jpg --out results`")
    if not all(options.inputs):
        raise UsageError(
            "pictures must have names, got an empty one: leave it out, or look at what should have filled it in"
        )
    _check_counts(options, "members", "steps", "max_layers", "batch_size")
    if options.mode == "marginal" and options.steps not in (None, 1):
        raise UsageError(
            f"--steps must be 1 with --mode marginal, got {options.steps}; leave it out, or leave out --mode"
        )
    if not options.out:
        raise UsageError("--out must name a folder, got nothing; pass --out results")
    with quick_imports():
        from sas.io import InputError
        from sas.pictures import find_images
        from sas.result import counted
        from sas.sampling import sample_files, without_results

    files: list[Path] = []
    failures = 0
    for item in options.inputs:
        try:
            found = find_images([item], recursive=options.recursive)
            files += without_results(found, folder=item) if Path(item).is_dir() else found
        except (InputError, OSError) as error:
            failures += 1
            print(f"{item}: {error}", file=sys.stderr)
    if not files:
        return FAILED
    pipe = _load(options.weights, options.device, options.dtype)
    _check_steps(options.steps, pipe)

    def report(outcome: Outcome) -> None:
        if outcome.result is None:
            print(f"{outcome.file}: {outcome.error}", file=sys.stderr)
            return
        count, instances = len(outcome.result), outcome.result.count  # not `instances`, which keeps full-size masks
        print(f"{outcome.file}: {counted(count, 'layer')}, {counted(instances, 'instance')} -> {outcome.folder}")

    outcomes = sample_files(
        pipe,
        files,
        Path(options.out),
        batch_size=options.batch_size,
        on_done=report,
        ensemble_size=options.members,
        num_inference_steps=options.steps,
        seed=options.seed,
        mode=options.mode,
        max_layers=options.max_layers,
        consensus=options.consensus,
        cumulative=options.cumulative,
        stop_threshold=options.stop_threshold,
        noise_scale=options.noise_scale,
        refine=options.refine,
    )
    bad = [outcome for outcome in outcomes if outcome.cause is not None]
    if bad and options.debug:
        import traceback

        for outcome in bad:
            traceback.print_exception(outcome.cause)
    return FAILED if bad or failures else 0


def _check_counts(options: object, *names: str) -> None:
    """UsageError unless each of these options, if it is given, lies from 1 to the largest value of the argument that it sets."""
    for name in names:
        value = getattr(options, name)
        largest = LARGEST[{"members": "ensemble_size", "steps": "num_inference_steps"}.get(name, name)]
        if value is not None and not 1 <= value <= largest:
            rule = "at least 1" if value < 1 else f"at most {largest}"
            cure = "4 are the usual number" if name == "steps" else f"pass a number from 1 to {largest}"
            raise UsageError(f"--{name.replace('_', '-')} must be {rule}, got {value}; {cure}")


def _check_steps(steps: int | None, pipe: SASPipeline) -> None:
    """UsageError if there are more steps than the weights were trained with."""
    most = pipe.scheduler.config.num_train_timesteps
    if steps is not None and steps > most:
        raise UsageError(f"--steps must be at most {most} with these weights, got {steps}; 4 are the usual number")


def _demo(options: Demo) -> int:
    if options.scenes < 0:
        raise UsageError(f"--scenes must be at least 0, got {options.scenes}; pass a positive number")
    with quick_imports():
        from sas.demo import run_demo

    pipe = _load(None, "auto")
    for line in run_demo(pipe, Path(options.out), scenes=options.scenes, seed=options.seed):
        print(line)
    return 0


def _train(options: Train) -> int:
    settings = options.settings
    name = Path(options.config).stem if options.config else ("cutouts" if options.cutouts else "train")
    out = Path(options.out or f"runs/{name}")
    logging.getLogger("sas").setLevel(logging.INFO)
    if options.dry_run:
        return _dry_run(settings, out, cpu=options.cpu, init_from=options.init_from)
    with quick_imports():
        from sas.training import Trainer

    trainer = Trainer(
        settings,
        out,
        init_from=options.init_from,
        restart=options.restart,
        max_minutes=options.max_minutes,
        cpu=options.cpu,
    )
    trainer.run()
    if trainer.main:
        best = f"best weights: {out / 'pipeline'}"
        words = best if trainer.has_pipeline else "a checkpoint is saved; the same command goes on"
        print(f"step {trainer.step} of {settings.training.steps}; {words}")
    return 0


def _dry_run(settings: Config, out: Path, *, cpu: bool, init_from: str | None) -> int:
    """What a run would do, after looking at its data, at the weights it starts from and at what it would run on."""
    from sas.distributed import check_precision
    from sas.factory import build_model, build_pipeline, check_data, freeze_untaught
    from sas.growing import copy_weights

    check_precision(settings.training.precision, cpu=cpu)
    words = check_data(settings.data)
    model = build_model(settings)
    if init_from is not None:
        copy_weights(build_pipeline(settings, model), init_from, pretrained=False)
    freeze_untaught(model, settings)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    training = settings.training
    print(f"data: {words}")
    print(f"network: {settings.model.name}, {parameters / 1e6:.2f} M parameters, {settings.data.image_size} px")
    print(f"training: {training.steps} steps of {training.batch_size} pictures, seed {training.seed}")
    if init_from is not None:
        print(f"starts from: {init_from}")
    print(f"output: {out}")
    return 0


def _evaluate(options: Evaluate) -> int:
    _check_counts(options, "members", "steps")
    if not options.out:
        raise UsageError("--out must name a folder, got nothing; pass --out results")
    from dataclasses import replace

    with quick_imports():
        from sas.evaluation import evaluate, load_dataset, pipeline_predictor, true_mask_scores
        from sas.io import make_folder

    out = Path(options.out)
    scenes = load_dataset(options.dataset)
    make_folder(out)
    pipe = _load(None if options.weights == "default" else options.weights, options.device, options.dtype)
    _check_steps(options.steps, pipe)
    pipe.register_to_config(
        stop_threshold=pipe.resolve_stop_threshold(options.stop_threshold),
        noise_scale=pipe.resolve_noise_scale(options.noise_scale),
    )
    predictor = pipeline_predictor(pipe, ensemble_size=options.members, num_inference_steps=options.steps)
    report = evaluate(predictor, scenes, seed=options.seed, limit=options.limit)
    behind_truth = true_mask_scores(
        pipe,
        scenes,
        seed=options.seed,
        limit=options.limit,
        ensemble_size=options.members,
        num_inference_steps=options.steps,
    )
    report = replace(report, scores={**report.scores, **behind_truth})
    report.save(out)
    print(report.to_markdown())
    return 0


_RULE = ("min_size", "border", "share", "margin")
"""Arguments of `sas compose` that say when an object of modal masks is seen whole."""


def _compose(options: Compose) -> int:
    if options.count < 1:
        raise UsageError(f"--count must be at least 1, got {options.count}; ask for one or more scenes")
    if not 16 <= options.size <= 1024:
        raise UsageError(f"--size must be from 16 to 1024 pixels, got {options.size}; pass one of these")
    if options.part != "all" and not options.cutouts and options.backgrounds is None:
        raise UsageError(
            f"--part {options.part} has no effect without --cutouts or --backgrounds, which it divides; remove it"
        )
    if options.from_modal and options.cutouts:
        raise UsageError("--from-modal excludes --cutouts; cut the objects first, or leave one of them out")
    given = [name for name in ("images", "fields", *_RULE) if getattr(options, name) not in (None, ())]
    if given and not options.from_modal:
        raise UsageError(f"--{given[0].replace('_', '-')} has no effect without --from-modal; remove it")
    from sas.data.folders import write_project, write_sas_folders

    out = cli_data.new_folder(options.out)
    composer = _composer(options)
    scenes = (scene for place in range(options.count) for scene in composer.scenes(0, [place]))
    if options.format == "sas":
        count = write_sas_folders(out, scenes)
    else:
        count = write_project(
            out, scenes, min_overlap=options.min_overlap, generator=compose_command(options), seed=options.seed
        )
    print(f"{count} scenes -> {options.out}")
    return 0


def compose_command(options: Compose) -> str:
    """What to type for the same scenes, but for --out."""
    words = ["sas", "compose"]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in ("out", "debug") or value == field.default:
            continue
        words.append(f"--{field.name.replace('_', '-')}")
        if value is not True:
            words += map(str, value if isinstance(value, tuple) else (value,))
    return shlex.join(words)


def _composer(options: Compose) -> Composer:
    """The composer that the arguments describe; cutouts of modal data are needed only until its atlas is read."""
    import tempfile

    from sas.config import DataSettings
    from sas.data.instances import WholeRule
    from sas.data.modal import cut_objects
    from sas.data.split import TEST_FAMILIES

    with quick_imports():
        from sas.factory import build_composer

    try:
        rule = WholeRule(**{name: getattr(options, name) for name in _RULE if getattr(options, name) is not None})
    except ValueError as error:
        raise UsageError(str(error)) from error
    held_out = [family for family in options.families if family in TEST_FAMILIES]
    if held_out and options.part in ("train", "validation"):
        raise UsageError(
            f"--families must leave out {held_out[0]} with --part {options.part}, which is for testing only; remove it, or pass --part test or all"
        )
    with tempfile.TemporaryDirectory() as folder:
        cutouts = options.cutouts
        if options.from_modal:
            cutouts = (f"{folder}/cutouts",)
            cut_objects(
                options.from_modal,
                options.images,
                cutouts[0],
                rule=rule,
                fields=cli_data.named_fields(options.fields),
                seed=options.seed,
                progress=True,
            )
        data = DataSettings(
            image_size=options.size,
            mask_size=options.size,
            oversample=1,
            sprite_size=max(32, options.size // 2),
            cutouts=cutouts,
            backgrounds=options.backgrounds,
            objects=options.objects,
            scale=options.scale,
            intra_class=options.intra_class,
            prints=options.prints,
            warps=options.warps,
            touching=options.touching,
            shades=options.shades,
            degradation=options.degradation,
            classes=options.classes,
            views=4,
            background_count=64,  # of whatever number of scenes, so that the first of many are those of few
            families=options.families,
            min_overlap=options.min_overlap,
            rendered=options.rendered,
            split="none" if options.part == "all" else "by_name",
        )
        part = "train" if options.part == "all" else options.part
        return build_composer(data, seed=options.seed, atlas_seed=options.seed, part=part)


def _export(options: Export) -> int:
    from sas.export import export_onnx
    from sas.pipeline import SASPipeline

    pipe = SASPipeline.from_pretrained(None if options.weights == "default" else options.weights)
    for path in export_onnx(pipe, options.out):
        print(path)
    return 0


def _average(options: Average) -> int:
    settings = load_config(Path(options.calibrate)) if options.calibrate is not None else None
    with quick_imports():
        from diffusers.utils.logging import disable_progress_bar

        from sas.averaging import average_weights
        from sas.factory import data_split, validation_batch
        from sas.pretrained import check_folder_to_save
        from sas.validation import calibrate_stop

    check_folder_to_save(Path(options.out), name="--out")
    disable_progress_bar()
    pipe = average_weights(options.weights)
    if settings is not None:
        own = {name: pipe.config[name] for name in ("image_size", "mask_size", "data_split")}
        data = settings.data
        theirs = {"image_size": data.image_size, "mask_size": data.mask_size, "data_split": data_split(data)}
        if not pipe.config.stop_head or own != theirs:
            raise UsageError(
                f"--calibrate {options.calibrate} must be of the sizes and the data split of the weights, which must have a stop output; "
                f"got {theirs} for {own}, stop output {pipe.config.stop_head}; name their training's configuration, or leave it out"
            )
        calibration = calibrate_stop(pipe, validation_batch(settings))
        if calibration is None:
            raise UsageError(
                f"--calibrate {options.calibrate} must name validation scenes that list all their objects, got none; leave it out"
            )
        pipe.register_to_config(stop_scale=calibration[0], stop_shift=calibration[1])
    pipe.save_pretrained(options.out, saved_weights=options.saved_weights)
    print(f"average of {len(options.weights)} weights -> {options.out}")
    return 0


def _doctor(options: Doctor) -> int:
    from diffusers.utils.logging import disable_progress_bar

    from sas.doctor import check_scenes, examine

    disable_progress_bar()
    started = time.perf_counter()
    checks = examine(options.weights) + (check_scenes(options.data) if options.data else [])
    for check in checks:
        print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.words}{'' if check.ok else '; ' + check.cure}")
    bad = sum(not check.ok for check in checks)
    print(f"{len(checks)} checks, {bad} failed, {time.perf_counter() - started:.1f} s")
    return FAILED if bad else 0


COMMANDS: dict[str, type[Any]] = {
    "demo": Demo,
    "sample": Sample,
    "train": Train,
    "evaluate": Evaluate,
    "compose": Compose,
    "average": Average,
    "export": Export,
    "doctor": Doctor,
}
_CALLS: dict[type[Any], Callable[[Any], int]] = {
    Demo: _demo,
    Sample: _sample,
    Train: _train,
    Evaluate: _evaluate,
    Compose: _compose,
    Average: _average,
    Export: _export,
    Doctor: _doctor,
    **dict(cli_data.COMMANDS.values()),
}
