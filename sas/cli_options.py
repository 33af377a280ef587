"""What may be written behind each command, and how it becomes options: arguments to configuration.

Imports no torch, so that help comes at once. The options of `sas data ...` are in `sas.cli_data`.
"""

from __future__ import annotations

import inspect
import io
import itertools
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro
from tyro.conf import Positional

from sas.config import Config, ConfigError, load_config


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
    cumulative: Literal["shared", "member"] | None = None
    """Members share the consensus as what is found so far, or each keeps its own; as the weights have it if left out."""
    stop_threshold: float | None = None
    """A layer is drawn if the probability that nothing is left is at most this; lower values draw fewer layers."""
    noise_scale: float | None = None
    """Standard deviation of the noise that members begin with, from 0 (all alike) to 2; 1 is that of training."""
    refine: bool | None = None
    """What is seen of a mask follows the picture's edges; as the weights have it if left out."""
    batch_size: int = 64
    """Most masks (pictures x members) in one call of the network."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; bfloat16 is faster on a GPU, and on a CPU that has it (`sas doctor` says)."""
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
    """Set the old run's checkpoints, log, samples and pipeline aside and begin anew."""
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
    """Folder of scenes (project format, packed shards or SAS folders), or a data YAML."""
    out: str
    """Folder for metrics.json and metrics.md."""
    members: int | None = None
    """Ensemble size."""
    steps: int | None = None
    """Denoising steps a layer."""
    seed: int = 0
    """Seed of the sampler."""
    stop_threshold: float | None = None
    """A layer is drawn if the probability that nothing is left is at most this; lower values draw fewer layers."""
    noise_scale: float | None = None
    """Standard deviation of the noise that members begin with, from 0 (all alike) to 2; 1 is that of training."""
    limit: int | None = None
    """Scenes at most."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; bfloat16 is faster on a GPU, and on a CPU that has it (`sas doctor` says)."""
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
    scale: tuple[float, float] = (0.25, 0.6)
    """Least and most of an object's longer side, as a share of the picture's."""
    intra_class: float = 0.3
    """Share of scenes whose objects are all of one class."""
    prints: float = 0.0
    """Share of objects that wear a print, a piece of a background, all over or on a label."""
    warps: float = 0.0
    """Share of objects that are stretched, bent and tapered."""
    touching: float = 0.0
    """Share of scenes whose objects lie edge to edge."""
    shades: float = 0.0
    """Share of pictures with a patch of shadow or light that is no object."""
    degradation: float = 0.0
    """Share of pictures that are blurred, of fewer pixels, noisy or packed as JPEG."""
    classes: int = 32
    """Rendered looks."""
    families: tuple[str, ...] = ()
    """Families of rendered solids; all that --part may have if left out."""
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
    """Folder to write: a new or empty one, or an earlier export, which is replaced."""
    weights: str = "default"
    """Pipeline folder, training folder, hub id, or "default" for the shipped weights."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show tracebacks."""


@dataclass(frozen=True)
class Average:
    """Average weights of one network: the ends of runs that went on from each other."""

    weights: Positional[tuple[str, ...]]
    """Two or more pipeline folders, training folders, hub ids, or "default"; sampling defaults and calibration are those of the first."""
    out: str
    """Pipeline folder to write: a new or empty one, or a pipeline, which is replaced."""
    saved_weights: Literal["float32", "float16", "int8"] = "float32"
    """Precision on disk."""
    calibrate: str | None = None
    """Training configuration on whose validation scenes the stop probability is calibrated again."""
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


# ---------------------------------------------------------------------- arguments to options


def parse(command: type[Any], arguments: list[str], program: str | None) -> Any:
    """Options of a command from its arguments; SystemExit, after words to the user, where they are none."""
    file = _config_argument(arguments) if command is Train else None
    try:
        options = _parse(command, arguments, program, file)
    except ConfigError:
        # What is set may fit the file alone, which is named after an option.
        later = [word for word in arguments[1:] if word.endswith((".yaml", ".yml"))]
        if command is not Train or file is not None or len(later) != 1:
            raise
        options = _parse(command, arguments, program, later[0])
        file = later[0]
    if command is Train and options.config != (file or ""):  # named after an option, so not read yet
        options = _parse(command, arguments, program, options.config)
    return options


def _config_argument(arguments: Sequence[str]) -> str | None:
    """The configuration file among the arguments of `train`: the first one, if it is no option."""
    return arguments[0] if arguments and not arguments[0].startswith("-") else None


def _parse(command: type[Any], arguments: list[str], program: str | None, file: str | None) -> Any:
    """Arguments of a command; those of `train` change what its configuration file says."""
    if command is not Train:
        return tyro.cli(command, args=arguments, prog=program, description=command.__doc__)
    settings = load_config(file)
    cutouts = _option("--cutouts", arguments)
    if cutouts is not None and _option("--data.cutouts", arguments) is not None:
        raise ConfigError(
            f"--cutouts excludes --data.cutouts, which sets the same, got both (--cutouts {cutouts}): keep one of them"
        )
    arguments = list(_plain(arguments))

    def parsed() -> Any:
        default = Train(settings=settings)
        options = tyro.cli(Train, args=arguments, prog=program, default=default, description=inspect.getdoc(Train))
        return replace(options, cutouts=cutouts)

    if not {"-h", "--help"} & set(arguments):
        # A value that the settings refuse is told as it is for a file; all else in the words of the parser.
        try:
            with redirect_stderr(io.StringIO()):
                return parsed()
        except SystemExit:
            load_config(None, {**flat(settings), **_overrides(arguments)})
    return parsed()


def _option(name: str, arguments: Sequence[str]) -> str | None:
    """The value of an option, the first if it has several; None where it is not named, or has none."""
    for word, after in zip(arguments, [*arguments[1:], "--"], strict=True):
        option, equals, value = word.partition("=")
        if option == name and (equals or not after.startswith("--")):
            return value if equals else after
    return None


def _plain(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments as the parser wants them: None for the null of YAML where a field may have none, an option alone for a list or mapping
    that is to be empty, --section.field or --section.no-field for a truth value that is written out, and --data.cutouts for --cutouts."""
    places = [at for at, word in enumerate(arguments) if word.startswith("--")] + [len(arguments)]
    yield from arguments[: places[0]]
    for at, end in itertools.pairwise(places):
        option, equals, value = arguments[at].partition("=")
        words = list(arguments[at + 1 : end])
        values, after = ([value], words) if equals else (words, words[1:])
        kind = _kind(option)
        if option == "--cutouts" and values:
            yield from (*after, "--data.cutouts", values[0])  # which would take what stands behind it
        elif values[:1] in (["None"], ["null"]) and type(None) in get_args(kind):
            yield from (option, "None", *after)
        elif values[:1] in (["None"], ["null"]) and get_origin(kind) in (tuple, dict):
            yield from (*after, option)  # likewise
        elif kind is bool and values and values[0].lower() in ("true", "false"):
            section, _, name = option.removeprefix("--").partition(".")
            yield from (option if values[0].lower() == "true" else f"--{section}.no-{name}", *after)
        else:
            yield from arguments[at:end]


def _kind(option: str) -> Any:
    """Type of the field of the configuration that an option sets, None if it sets none."""
    section, _, name = option.removeprefix("--").replace("-", "_").partition(".")
    kind = Config.model_fields[section].annotation if section in Config.model_fields else None
    fields = getattr(kind, "model_fields", {})
    return fields[name].annotation if name in fields else None


def _overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """{"section.field": value} of the options that name a field."""
    found: dict[str, Any] = {}
    for place, word in enumerate(arguments):
        option, equals, value = word.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        section, _, field = name.partition(".")
        kind = _kind(option)
        given = (
            [value]
            if equals
            else list(itertools.takewhile(lambda one: not one.startswith("--"), arguments[place + 1 :]))
        )
        if not option.startswith("--"):
            continue
        if kind is bool and not equals:
            found[name] = True
        elif kind is not None and (given or get_origin(kind) in (tuple, dict)):
            found[name] = _value(kind, given)
        elif field.startswith("no_") and _kind(f"{section}.{field[3:]}") is bool:
            found[f"{section}.{field[3:]}"] = False
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


def flat(settings: Config) -> dict[str, Any]:
    """{"section.field": value} of a configuration."""
    return {
        f"{section}.{field}": value
        for section, fields in settings.model_dump(mode="json").items()
        for field, value in fields.items()
    }
