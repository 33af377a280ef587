"""The command line: arguments to configuration to call. The only place that parses arguments and prints."""

from __future__ import annotations

import difflib
import inspect
import io
import itertools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import tyro
from tyro.conf import Positional

from sas import cli_data
from sas.config import Config, ConfigError, faults, load_config

if TYPE_CHECKING:
    import torch

    from sas.data.composer import Composer
    from sas.sampling import Outcome

USAGE, FAILED = 2, 1


class UsageError(ValueError):
    """Arguments that cannot be used together or at all; exit status 2."""


# ---------------------------------------------------------------------- arguments


@dataclass(frozen=True)
class Sample:
    """Take photographs apart into ordered amodal layers."""

    inputs: Positional[tuple[str, ...]]
    """Pictures, or folders of pictures."""
    out: str
    """Folder for the results; each picture gets a folder of its own in it."""
    weights: str | None = None
    """Pipeline folder, training folder or hub id; the shipped weights if left out."""
    members: int | None = None
    """Ensemble size."""
    steps: int | None = None
    """Denoising steps a layer."""
    seed: int = 0
    """Names all randomness; the same seed and picture give the same result."""
    mode: Literal["diffusion", "marginal"] = "diffusion"
    """Draw samples, or one step that gives the mean."""
    max_layers: int | None = None
    """Layers at most."""
    consensus: Literal["medoid", "mean"] | None = None
    """Rule for the mask kept of an ensemble."""
    refine: bool | None = None
    """What is seen of a mask follows the picture's edges; as the weights have it if left out."""
    batch_size: int = 64
    """Most masks (pictures x members) in one call of the network."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    recursive: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Search folders at all levels."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show tracebacks."""


@dataclass(frozen=True)
class Demo:
    """Take generated scenes and example pictures apart with the shipped weights."""

    out: str = "out"
    """Folder for the pictures."""
    scenes: int = 4
    """Generated scenes."""
    seed: int = 0
    """Chooses the scenes."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show tracebacks."""


@dataclass(frozen=True)
class Train:
    """Train a network; started again with the same arguments, training goes on where it stopped.

    A value of the configuration file is unset by None or null, as in --data.validation None.
    """

    config: Positional[str] = ""
    """YAML file with what differs from the defaults (see configs/); may be left out."""
    out: str = ""
    """Folder of the run; runs/<name of the configuration> if left out."""
    cutouts: str | None = None
    """Folder of one's own cutouts; the same as --data.cutouts."""
    init_from: str | None = None
    """Weights to start from: a pipeline folder, training folder or hub id."""
    restart: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Set old checkpoints aside and begin anew."""
    max_minutes: float | None = None
    """Stop after this time with a checkpoint and a saved pipeline."""
    cpu: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Do not use an accelerator."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check configuration and data, say what would be done, and stop."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show tracebacks."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


@dataclass(frozen=True)
class Evaluate:
    """Score weights on a data set."""

    weights: Positional[str]
    """Pipeline folder, training folder or hub id; "default" for the shipped weights."""
    dataset: Positional[str]
    """Folder of scenes (project format or SAS folders), or a data YAML."""
    out: str
    """Folder for metrics.json and metrics.md."""
    members: int | None = None
    """Ensemble size."""
    steps: int | None = None
    """Denoising steps a layer."""
    seed: int = 0
    """Seed of the sampler."""
    limit: int | None = None
    """Scenes at most."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show tracebacks."""


@dataclass(frozen=True)
class Compose:
    """Write composed scenes to disk."""

    out: str
    """Folder to write."""
    count: int = 100
    """Scenes."""
    seed: int = 2_000_000
    """Names the scenes; rendered ones for training start at 0, for validation at 1000000, for tests at 2000000."""
    size: int = 256
    """Side of a picture, pixels."""
    cutouts: tuple[str, ...] = ()
    """Folders of cutouts; solids are rendered if left out."""
    from_modal: str | None = None
    """COCO-style JSON with masks of visible parts: its whole objects are cut out and composed."""
    images: str | None = None
    """Folder of the pictures that --from-modal names; that of the JSON if left out."""
    fields: tuple[str, ...] = ()
    """Field names of --from-modal that differ from COCO's, as visible=NAME ..."""
    min_size: int | None = None
    """Least side of an object cut out of --from-modal, pixels; 32 if left out."""
    border: int | None = None
    """Rows and columns at the picture's border in which an object of --from-modal may have no pixel; 2 if left out."""
    share: float | None = None
    """Share of an object of --from-modal that must be in one piece; 0.98 if left out."""
    margin: int | None = None
    """Pixels around an object of --from-modal that must be free of others; 4 if left out."""
    backgrounds: str | None = None
    """Folder of background pictures; rendered if left out."""
    part: Literal["all", "train", "validation", "test"] = "all"
    """Only the cutouts and backgrounds that training with data.split by_name uses for this."""
    rendered: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Rendered solids and backgrounds beside the folders."""
    objects: tuple[int, int] = (1, 4)
    """Fewest and most objects."""
    intra_class: float = 0.3
    """Share of scenes whose objects are all of one class."""
    classes: int = 32
    """Rendered looks."""
    families: tuple[str, ...] = ()
    """Families of rendered solids; all if left out."""
    min_overlap: float = 0.01
    """One object occludes another only if they share more than this fraction of the other's amodal area."""
    format: Literal["project", "sas"] = "project"
    """The project format, or the folders of the SAS authors' code."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show tracebacks."""


@dataclass(frozen=True)
class Export:
    """Write the network to ONNX: encoder.onnx, denoiser.onnx and settings.json."""

    out: str
    """Folder to write."""
    weights: str = "default"
    """Pipeline folder, training folder, hub id, or "default" for the shipped weights."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show tracebacks."""


@dataclass(frozen=True)
class Doctor:
    """Check the installation, and data if a folder is named."""

    data: str | None = None
    """Folder of scenes to read through."""
    weights: str | None = None
    """Weights to check instead of the shipped ones."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show tracebacks."""


# ---------------------------------------------------------------------- entry points


def main(arguments: Sequence[str] | None = None) -> int:
    """`sas COMMAND ...`; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["--version"]:
        from sas import __version__

        print(f"sas-amodal {__version__}")
        return 0
    commands: dict[str, Any] = {
        "demo": Demo, "sample": Sample, "train": Train, "evaluate": Evaluate, "compose": Compose, "export": Export, "doctor": Doctor,
    }  # fmt: skip
    if arguments[:1] == ["data"]:
        return _data(arguments[1:])
    if arguments and arguments[0] in commands:
        return run(commands[arguments[0]], arguments[1:], program=f"sas {arguments[0]}")
    return _no_command(arguments, commands)


def run(command: type[Any], arguments: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """Parse the arguments of one command and carry it out; errors become one line and an exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        file = _config_argument(arguments) if command is Train else None
        options = _parse(command, arguments, program, file)
        if command is Train and options.config != (file or ""):  # named after an option, so not read yet
            options = _parse(command, arguments, program, options.config)
        return _COMMANDS[command](options)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else USAGE
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if debug:
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


def _parse(command: type[Any], arguments: list[str], program: str | None, file: str | None) -> Any:
    """Arguments of a command; those of `train` change what its configuration file says."""
    if command is not Train:
        return tyro.cli(command, args=arguments, prog=program, description=command.__doc__)
    settings = load_config(file)
    arguments = list(_unset(arguments))

    def parsed() -> Any:
        default = Train(settings=settings)
        return tyro.cli(Train, args=arguments, prog=program, default=default, description=inspect.getdoc(Train))

    if not {"-h", "--help"} & set(arguments):
        # A value that the settings refuse is told as it is for a file; all else in the words of the parser.
        try:
            with redirect_stderr(io.StringIO()):
                return parsed()
        except SystemExit:
            load_config(None, {**_flat(settings), **_overrides(arguments, settings)})
    return parsed()


def _unset(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments with None for null, as YAML writes it, where it is the value of a field that may have none."""
    option = ""
    for word in arguments:
        if word.startswith("--"):
            option, _, value = word.partition("=")
            yield f"{option}=None" if value == "null" and _may_be_none(option) else word
        else:
            yield "None" if word == "null" and _may_be_none(option) else word


def _may_be_none(option: str) -> bool:
    section, _, name = option.removeprefix("--").replace("-", "_").partition(".")
    kind = Config.model_fields[section].annotation if section in Config.model_fields else None
    fields = getattr(kind, "model_fields", {})
    return name in fields and type(None) in get_args(fields[name].annotation)


def _overrides(arguments: Sequence[str], settings: Config) -> dict[str, Any]:
    """{"section.field": value} of the options that name a field and give it a value."""
    found: dict[str, Any] = {}
    for place, word in enumerate(arguments):
        option, equals, value = word.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        section, _, field = name.partition(".")
        known = getattr(type(getattr(settings, section, None)), "model_fields", {})
        given = (
            [value]
            if equals
            else list(itertools.takewhile(lambda one: not one.startswith("--"), arguments[place + 1 :]))
        )
        if option.startswith("--") and field in known and given:
            found[name] = _value(known[field].annotation, given)
    return found


def _value(kind: Any, given: list[str]) -> Any:
    """Words of the command line as the value of a field of some type; a word that does not fit stays a text."""
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        every = kinds[-1] is Ellipsis
        return [_value(kinds[0], [word]) for word in (given if every else given[: len(kinds)])]
    if get_origin(kind) is dict:
        return dict(zip(given[::2], given[1::2], strict=False))
    word, types = given[0], get_args(kind) or (kind,)
    if word == "None" and type(None) in types:
        return None
    for number in (int, float):
        if number in types or (number is int and float in types):
            with suppress(ValueError):
                return number(word)
    return word


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


def _no_command(arguments: list[str], commands: dict[str, Any]) -> int:
    """`sas`, `sas --help`, and words that are no command."""
    asked = not arguments or arguments[0] in ("-h", "--help")
    lines = [
        "usage: sas COMMAND ...",
        "",
        "Sequential amodal segmentation: images to ordered, complete object masks.",
        "",
    ]
    lines += [f"  {name:10s} {command.__doc__.splitlines()[0]}" for name, command in commands.items()]
    lines += ["  data       Check, convert and pack annotated data sets; `sas data --help`."]
    lines += ["  --version  Print the version.", "", "`sas COMMAND --help` lists the options of a command."]
    if asked:
        print("\n".join(lines))
        return 0
    whole = {**{name: name for name in (*commands, "data")}, **{name: f"data {name}" for name in cli_data.COMMANDS}}
    close = difflib.get_close_matches(arguments[0], whole, n=1)
    hint = f"did you mean `sas {whole[close[0]]}`?" if close else f"commands are {', '.join(commands)}, data"
    print(f"sas: {arguments[0]!r} is no command; {hint}", file=sys.stderr)
    return USAGE


def _config_argument(arguments: Sequence[str]) -> str | None:
    """The configuration file among the arguments of `train`: the first one, if it is no option."""
    return arguments[0] if arguments and not arguments[0].startswith("-") else None


# ---------------------------------------------------------------------- commands


def _device(name: str) -> torch.device:
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        raise UsageError(f"device {name} is not available here; use --device auto")
    return torch.device(name)


def _load(weights: str | None, device: str) -> Any:
    from diffusers.utils.logging import disable_progress_bar

    from sas.pipeline import SASPipeline

    disable_progress_bar()
    pipe = SASPipeline.from_pretrained(weights).to(_device(device))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _tell(words: str, *, error: bool = False) -> None:
    """Print, whatever bytes the name of a file has: those that are no text become "?"."""
    print(words.encode("utf-8", "replace").decode("utf-8"), file=sys.stderr if error else sys.stdout)


def _sample(options: Sample) -> int:
    if not options.inputs:
        raise UsageError("name at least one picture or folder, for example `sas sample photo.jpg --out results`")
    for name in ("members", "steps", "max_layers", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {value}; pass a positive number")
    from sas.io import InputError
    from sas.pictures import find_images
    from sas.sampling import sample_files

    files: list[Path] = []
    failures = 0
    for item in options.inputs:
        try:
            files += find_images([item], recursive=options.recursive)
        except (InputError, OSError) as error:
            failures += 1
            _tell(f"{item}: {error}", error=True)
    if not files:
        return FAILED
    pipe = _load(options.weights, options.device)

    def report(outcome: Outcome) -> None:
        if outcome.result is None:
            _tell(f"{outcome.file}: {outcome.error}", error=True)
            return
        count, instances = len(outcome.result), len(outcome.result.instances)
        _tell(f"{outcome.file}: {count} layer{'' if count == 1 else 's'}, {instances} instances -> {outcome.folder}")

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
        refine=options.refine,
    )
    bad = [outcome for outcome in outcomes if outcome.cause is not None]
    if bad and options.debug:
        import traceback

        for outcome in bad:
            traceback.print_exception(outcome.cause)
    return FAILED if bad or failures else 0


def _demo(options: Demo) -> int:
    if options.scenes < 0:
        raise UsageError(f"--scenes must be at least 0, got {options.scenes}; pass a positive number")
    from sas.demo import run_demo

    pipe = _load(None, "auto")
    for line in run_demo(pipe, Path(options.out), scenes=options.scenes, seed=options.seed):
        print(line)
    return 0


def _train(options: Train) -> int:
    settings = options.settings
    if options.cutouts is not None:
        settings = load_config(None, {**_flat(settings), "data.cutouts": [options.cutouts]})
    name = Path(options.config).stem if options.config else ("cutouts" if options.cutouts else "train")
    out = Path(options.out or f"runs/{name}")
    logging.getLogger("sas").setLevel(logging.INFO)
    if options.dry_run:
        return _dry_run(settings, out)
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
        print(f"step {trainer.step} of {settings.training.steps}; best weights: {out / 'pipeline'}")
    return 0


def _dry_run(settings: Config, out: Path) -> int:
    """What a run would do, after looking at its data."""
    from sas.factory import build_model, check_data

    words = check_data(settings.data)
    parameters = sum(parameter.numel() for parameter in build_model(settings).parameters())
    training = settings.training
    print(f"data: {words}")
    print(f"network: {settings.model.name}, {parameters / 1e6:.2f} M parameters, {settings.data.image_size} px")
    print(f"training: {training.steps} steps of {training.batch_size} pictures, seed {training.seed}")
    print(f"output: {out}")
    return 0


def _flat(settings: Config) -> dict[str, Any]:
    """{"section.field": value} of a configuration."""
    return {
        f"{section}.{field}": value
        for section, fields in settings.model_dump(mode="json").items()
        for field, value in fields.items()
    }


def _evaluate(options: Evaluate) -> int:
    from dataclasses import replace

    from sas.evaluation import evaluate, load_dataset, pipeline_predictor, true_mask_scores

    scenes = load_dataset(options.dataset)
    pipe = _load(None if options.weights == "default" else options.weights, options.device)
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
    report.save(Path(options.out))
    print(report.to_markdown())
    return 0


_RULE = ("min_size", "border", "share", "margin")
"""Arguments of `sas compose` that say when an object of modal masks is seen whole."""


def _compose(options: Compose) -> int:
    if options.count < 1:
        raise UsageError(f"--count must be at least 1, got {options.count}; ask for one or more scenes")
    if options.from_modal and options.cutouts:
        raise UsageError("--from-modal excludes --cutouts; cut the objects first, or leave one of them out")
    given = [name for name in ("images", "fields", *_RULE) if getattr(options, name) not in (None, ())]
    if given and not options.from_modal:
        raise UsageError(f"--{given[0].replace('_', '-')} has no effect without --from-modal; remove it")
    from sas.data.folders import SASFolders, write_project, write_sas_folders

    out = Path(options.out)
    if out.is_dir() and any(out.iterdir()) and not ((out / "dataset.json").exists() or SASFolders.layer_folders(out)):
        raise UsageError(
            f"--out {out} holds files that are no scenes, and would be replaced as a whole; choose a new or empty folder"
        )
    composer = _composer(options)
    scenes = (scene for place in range(options.count) for scene in composer.scenes(0, [place]))
    if options.format == "sas":
        count = write_sas_folders(options.out, scenes)
    else:
        command = "sas compose " + " ".join(
            f"--{n.replace('_', '-')} {v}" for n, v in vars(options).items() if n not in ("out", "debug")
        )
        count = write_project(
            options.out, scenes, min_overlap=options.min_overlap, generator=command, seed=options.seed
        )
    print(f"{count} scenes -> {options.out}")
    return 0


def _composer(options: Compose) -> Composer:
    """The composer that the arguments describe; cutouts of modal data are needed only until its atlas is read."""
    import tempfile

    from sas.config import DataSettings
    from sas.data.instances import WholeRule
    from sas.data.modal import cut_objects
    from sas.factory import build_composer

    try:
        rule = WholeRule(**{name: getattr(options, name) for name in _RULE if getattr(options, name) is not None})
    except ValueError as error:
        raise UsageError(str(error)) from error
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
            intra_class=options.intra_class,
            classes=options.classes,
            views=4,
            background_count=max(8, min(options.count, 64)),
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


def _doctor(options: Doctor) -> int:
    from sas.doctor import check_scenes, examine

    started = time.perf_counter()
    checks = examine(options.weights) + (check_scenes(options.data) if options.data else [])
    for check in checks:
        print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.words}{'' if check.ok else '; ' + check.cure}")
    bad = sum(not check.ok for check in checks)
    print(f"{len(checks)} checks, {bad} failed, {time.perf_counter() - started:.1f} s")
    return FAILED if bad else 0


_COMMANDS: dict[type[Any], Callable[[Any], int]] = {
    Demo: _demo,
    Sample: _sample,
    Train: _train,
    Evaluate: _evaluate,
    Compose: _compose,
    Export: _export,
    Doctor: _doctor,
    **dict(cli_data.COMMANDS.values()),
}

if __name__ == "__main__":
    sys.exit(main())
