"""Settings: what is refused, and that the message names field, rule, value and cure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sas.config import Config, ConfigError, changed_fields, config_from_dict, config_hash, load_config

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def fault(overrides: dict[str, Any], path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_defaults_are_valid() -> None:
    assert load_config() == Config() == config_from_dict({})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path: Path) -> None:
    config = load_config(path)
    assert config != Config()
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_there_are_shipped_configurations() -> None:
    assert CONFIGS or not (Path(__file__).parent.parent / "configs").exists()


# ---------------------------------------------------------------------- unknown keys


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"training.stepz": 3}, "unknown key training.stepz: did you mean training.steps?"),
        ({"data.mask_sizes": 3}, "unknown key data.mask_sizes: did you mean data.mask_size?"),
        ({"trainin.steps": 3}, "unknown key trainin: did you mean training?"),
        ({"model.zzz": 3}, "unknown key model.zzz: known there: name, encoder"),
        ({"zzz.zzz": 3}, "unknown key zzz: known there: data, model, diffusion, sampling, training, logging"),
        ({"data.images.foo": 3}, "unknown key data.images.foo: did you mean data.images?"),
        ({"data.zzz.zzz": 3}, "unknown key data.zzz.zzz: known there: scenes, format"),
        ({"int.steps": 3}, "unknown key int: known there: data, model"),
        ({"steps": 3}, "override steps must be section.field, got 'steps': for example training.steps"),
    ],
)
def test_unknown_key(overrides: dict[str, Any], message: str) -> None:
    assert message in fault(overrides)


def test_unknown_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "training:\n  learning_rat: 1e-4\n")
    assert fault({}, path) == f"{path}: unknown key training.learning_rat: did you mean training.learning_rate?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training.steps: 5\n", "unknown key training.steps: write it as `training:` and below it `  steps:`"),
        ("zzz.steps: 5\n", "unknown key zzz.steps: known there: data, model, diffusion, sampling, training, logging"),
        (
            "data:\n  scenes: x\n  fields.amodal: segmentation\n",
            "unknown key data.fields.amodal: did you mean data.fields?",
        ),
        ("data:\n  scenes: x\n  fields:\n    a.b: 3\n", "data.fields.a.b must be a text, got 3: pass a text"),
    ],
)
def test_keys_with_dots_in_a_file(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    assert fault({}, path).startswith(f"{path}: {message}")


# ---------------------------------------------------------------------- types and ranges


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("training.steps", "many", "a whole number: pass a whole number"),
        ("training.steps", 3.5, "a whole number: pass a whole number"),
        ("training.steps", None, "a whole number: pass a whole number"),
        ("training.steps", 0, "at least 1: pass 1 or more"),
        ("training.seed", -1, "at least 0: pass 0 or more"),
        ("training.seed", 1_000_000, "at most 999999: pass 999999 or less"),
        ("training.learning_rate", 0, "more than 0: pass a larger number"),
        ("training.learning_rate", float("nan"), "a finite number: pass one, or null where that is allowed"),
        ("training.max_grad_norm", float("inf"), "a finite number: pass one, or null where that is allowed"),
        ("training.learning_rate", "1e-4x", "a number: pass a number"),
        ("training.ema_decay", 1.0, "less than 1: pass a smaller number"),
        ("training.max_grad_norm", 0, "more than 0: pass a larger number"),
        ("training.max_grad_norm", "x", "a number: pass a number"),
        ("training.precision", "fp8", "'no', 'fp16' or 'bf16': choose one of them"),
        ("training.compile", "maybe", "true or false: pass one of them"),
        ("data.scenes", 3, "a text: pass a text"),
        ("data.scenes", "", "more than an empty text: leave it out, or look at what should have filled it in"),
        (
            "data.cutouts",
            ("a", " "),
            "more than an empty text: leave it out, or look at what should have filled it in",
        ),
        ("training.steps", True, "a whole number: pass a whole number"),
        ("training.micro_batch", False, "a whole number: pass a whole number"),
        ("training.learning_rate", True, "a number: pass a number"),
        ("training.max_grad_norm", False, "a number: pass a number"),
        ("data.layers", True, "a whole number: pass a whole number"),
        ("data.objects", (False, True), "a whole number: pass a whole number"),
        ("data.scale", (0.5, True), "a number: pass a number"),
        ("data.image_size", 8, "at least 16: pass 16 or more"),
        ("data.augment", 5, "at most 1: pass 1 or less"),
        ("data.twins", 1.5, "at most 1: pass 1 or less"),
        ("data.layers", "x", "'all' or a whole number: pass a whole number"),
        ("data.objects", (1, 2, 3), "at most 2 values: leave some out"),
        ("data.cutouts", "mine", "a list: pass a list, such as [mine]"),
        ("data.objects", 5, "a list: pass a list, such as [5]"),
        ("data.fields", 5, "fields and their values: write NAME: VALUE for each"),
        ("diffusion.loss_type", "l1", "'mse' or 'bce_dice': choose one of them"),
        ("diffusion.mask_scale", 11, "at most 10: pass 10 or less"),
        ("sampling.threshold", 1, "less than 1: pass a smaller number"),
        ("sampling.members", 0, "at least 1: pass 1 or more"),
        ("logging.keep_checkpoints", 0, "at least 1: pass 1 or more"),
        ("logging.validation_steps", 0, "at least 1: pass 1 or more"),
        ("logging.validation_members", 1025, "at most 1024: pass 1024 or less"),
    ],
)
def test_type_or_range(name: str, value: Any, rule: str) -> None:
    rule, _, cure = rule.partition(": ")
    assert fault({name: value}) == f"the command line: {name} must be {rule}, got {value!r}: {cure}"


def test_wrong_tracker_names_its_place() -> None:
    message = fault({"logging.trackers": ["wandb", "mlflow"]})
    assert "logging.trackers.1 must be 'wandb' or 'tensorboard', got 'mlflow'" in message


def test_all_faults_at_once() -> None:
    message = fault({"training.steps": 0, "data.twins": 2, "model.zzz": 1})
    assert all(name in message for name in ("training.steps", "data.twins", "model.zzz"))


# ---------------------------------------------------------------------- combinations


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"data.image_size": 64, "data.mask_size": 128},
            "data.mask_size must divide the canvas on which scenes are composed, image_size x oversample = 64, got 128: choose a divisor, or raise",
        ),
        (
            {"model.attention_sizes": (8, 7)},
            "model.attention_sizes must name sides of the denoiser's maps, 32, 16, 8, 4 here, got 7: choose among them, or remove it",
        ),
        ({"data.layers": 0}, 'data: layers must be "all" or a positive number, got 0: pass 1 or more'),
        ({"data.objects": (3, 1)}, "data: objects must be (fewest, most) with most >= 1, got (3, 1): fix the range"),
        ({"data.objects": (0, 0)}, "objects must be (fewest, most) with most >= 1, got (0, 0)"),
        ({"data.scale": (0.0, 0.5)}, "scale must be (least, most) with 0 < least <= most <= 1, got (0.0, 0.5): fix"),
        ({"data.scale": (0.5, 0.2)}, "scale must be (least, most) with 0 < least <= most <= 1, got (0.5, 0.2): fix"),
        ({"data.scale": (0.5, 1.2)}, "scale must be (least, most) with 0 < least <= most <= 1, got (0.5, 1.2): fix"),
        ({"data.scenes": "s", "data.cutouts": ("c",)}, "scenes excludes cutouts and backgrounds"),
        ({"data.scenes": "s", "data.backgrounds": "b"}, "scenes excludes cutouts and backgrounds"),
        ({"data.cutouts": ("c",), "data.families": ("f",)}, "cutouts excludes families"),
        ({"model.name": "unet"}, "image_size equal to mask_size, got 128 and 64: set both alike"),
        ({"data.image_size": 24, "data.mask_size": 24}, "divisible by patch x 2^(levels - 1) = 16, got 24: change"),
        (
            {"model.channels": (10, 16)},
            "norm_groups must divide every width of channels, fusion, image_unet, detail and encoder_widths, got 16 and 10: change",
        ),
        ({"model.channels": ()}, "channels must be one or more positive widths, got (): for example"),
        ({"model.channels": (-16,)}, "channels must be one or more positive widths, got (-16,)"),
        (
            {"model.name": "unet", "data.image_size": 64, "model.image_unet": (16, 16)},
            "image_unet belongs to the split network",
        ),
        ({"model.image_blocks": 2}, "image_blocks has no effect without image_unet: remove it, or set image_unet"),
        (
            {"data.corruption_drop": 0.2},
            "corruption_drop has no effect without corruption: remove it, or set corruption",
        ),
        (
            {"diffusion.energy_members": 8},
            "energy_members has no effect without energy_weight: remove it, or set energy_weight",
        ),
        (
            {"data.scenes": "x", "data.degradation": 0.5},
            "degradation is for composed scenes and has no effect with scenes: remove it",
        ),
        (
            {"data.scenes": "x", "data.prints": 0.1},
            "prints is for composed scenes and has no effect with scenes: remove it",
        ),
        ({"diffusion.beta_end": 0.01}, "beta_end has no effect with beta_schedule squaredcos_cap_v2: remove it"),
        ({"diffusion.self_alignment": 1.5}, "diffusion.self_alignment"),
        (
            {"model.image_unet": (16, 16, 16, 16)},
            "model.image_unet needs diffusion.layers_weight or model.detail, or nothing uses",
        ),
        (
            {"training.only": ("image_encoder",), "training.encoder_rate": 0.0},
            "training.only names image_encoder, which encoder_rate 0 freezes: leave one of them out",
        ),
        (
            {"diffusion.layers_weight": 1.0},
            "diffusion.layers_weight needs model.image_unet, whose guess it judges: set it, or",
        ),
        ({"diffusion.prediction_type": "epsilon"}, 'loss_type "bce_dice" needs prediction_type "sample", got \'eps'),
        (
            {"diffusion.prediction_type": "epsilon", "diffusion.loss_type": "mse"},
            'zero_terminal_snr cannot go with prediction_type "epsilon"',
        ),
        (
            {"diffusion.learned_variance": True, "diffusion.zero_terminal_snr": False},
            'learned_variance needs loss_type "mse", got "bce_dice": set loss_type',
        ),
        (
            {"diffusion.learned_variance": True, "diffusion.loss_type": "mse"},
            "zero_terminal_snr cannot go with learned_variance",
        ),
        ({"sampling.steps": 2000}, "sampling.steps must be at most num_train_timesteps = 1000, got 2000: lower it"),
        (
            {"sampling.steps": 2000, "sampling.scheduler": "ddpm"},
            "sampling.steps must be at most num_train_timesteps = 1000, got 2000: lower it",
        ),
        (
            {"logging.validation_steps": 1_000_000},
            "logging.validation_steps must be at most num_train_timesteps = 1000, got 1000000: lower it",
        ),
        (
            {"logging.validation_steps": 51, "diffusion.num_train_timesteps": 50},
            "logging.validation_steps must be at most num_train_timesteps = 50, got 51: lower it",
        ),
    ],
)
def test_combination(overrides: dict[str, Any], message: str) -> None:
    assert message in fault(overrides)


def test_validation_may_take_every_step_of_the_schedule() -> None:
    config = load_config(None, {"diffusion.num_train_timesteps": 50, "logging.validation_steps": 50})
    assert config.logging.validation_steps == 50
    assert load_config(None, {"logging.validation_steps": None}).logging.validation_steps is None


# ---------------------------------------------------------------------- files and overrides


def test_numbers_that_yaml_reads_as_text(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "training:\n  learning_rate: 1e-4\n  steps: '30'\ndiffusion: {beta_start: 1e-5, beta_schedule: linear}\n",
    )
    config = load_config(path)
    assert (config.training.learning_rate, config.training.steps, config.diffusion.beta_start) == (1e-4, 30, 1e-5)
    assert isinstance(config.training.learning_rate, float)


def test_null_makes_lists_and_mappings_empty(tmp_path: Path) -> None:
    path = written(tmp_path, "data:\n  scenes: x\n  fields: null\n  cutouts: null\nmodel:\n  fusion: null\n")
    config = load_config(path, {"data.families": None})
    assert (config.data.fields, config.data.cutouts, config.data.families, config.model.fusion) == ({}, (), (), ())
    with pytest.raises(ConfigError, match="data.objects"):
        load_config(None, {"data.objects": None})  # which may not be empty


def test_an_override_is_not_to_blame_for_a_section_that_is_none(tmp_path: Path) -> None:
    path = written(tmp_path, "data: 5\n")
    assert fault({"data.scenes": "x"}, path) == fault({}, path) and "data" in fault({}, path)


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, "training:\n  steps: 30\n  seed: 5\n")
    overrides = {"training.steps": 40, "data.twins": "0.5"}
    config = load_config(path, overrides)
    assert (config.training.steps, config.training.seed, config.data.twins) == (40, 5, 0.5)
    assert config.training.batch_size == Config().training.batch_size
    assert overrides == {"training.steps": 40, "data.twins": "0.5"}


@pytest.mark.parametrize("text", ["", "# nothing\n", "training:\n", "training:\n  # all commented out\ndata:\n"])
def test_empty_files_and_sections(tmp_path: Path, text: str) -> None:
    assert load_config(written(tmp_path, text)) == Config()
    assert load_config(written(tmp_path, text), {"training.steps": 7}).training.steps == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {steps: 3", "is not valid YAML ("),
        ("a:\n\tb: 1\n", "is not valid YAML ("),
        (b"\xff\xfe\x00training", "is not valid YAML ("),
        ("- 1\n- 2\n", "must hold sections such as `training:`, got list: see configs/"),
        ("hello\n", "must hold sections such as `training:`, got str: see configs/"),
        ("training: 3\n", "training must be fields and their values, got 3: write NAME: VALUE for each"),
        ("training: !!python/object/apply:os.getcwd []\n", "is not valid YAML ("),
        (
            "training:\n  steps: 5\ndata:\n  twins: 0\ntraining:\n  seed: 1\n",
            "is not valid YAML ('training' is there twice in ",
        ),
        ("training:\n  steps: 5\n  steps: 6\n", "is not valid YAML ('steps' is there twice in "),
    ],
)
def test_unusable_file(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = written(tmp_path, text)
    found = fault({}, path)
    assert str(path) in found and message in found and "\n" not in found


def test_a_section_that_another_goes_on_from(tmp_path: Path) -> None:
    """YAML's merge key may name what stands beside it, and may be read by two sections."""
    first = "data: &own\n  fields: &words {a: x, b: y}\n  scenes: s\n"
    path = written(tmp_path, first + "sampling: &short {steps: 2, members: 5}\n" + "training: {steps: 3}\n")
    assert load_config(path).sampling.members == 5
    path = written(tmp_path, "data:\n  scenes: s\n  fields: {<<: {a: x, b: y}, b: z}\n")
    assert load_config(path).data.fields == {"a": "x", "b": "z"}


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "absent.yaml"
    assert fault({}, path) == f"configuration {path} cannot be read (No such file or directory): check the path"
    assert "cannot be read (Is a directory)" in fault({}, tmp_path)


def test_frozen() -> None:
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.training.steps = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.training = config.training  # type: ignore[misc]


def test_hash_and_changed_fields() -> None:
    old, new = load_config(None, {"training.steps": 5}), load_config(None, {"data.objects": (1, 2)})
    assert config_hash(old) == config_hash(load_config(None, {"training.steps": 5})) != config_hash(new)
    dumps = [config.model_dump(mode="json") for config in (old, new)]
    assert changed_fields(*dumps) == {"data.objects": ([1, 4], [1, 2]), "training.steps": (5, 10_000)}
    assert changed_fields(dumps[0], dumps[0]) == {}
    # A field that an older or newer version does not know counts as changed.
    del dumps[1]["training"]["seed"]
    assert changed_fields(*dumps)["training.seed"] == (0, None)
