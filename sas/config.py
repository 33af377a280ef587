"""Settings: the one source of truth for every knob of a training run.

A configuration file holds only what differs from the defaults here. Unknown keys, wrong types and values out of range are errors,
in files and on the command line alike, and so are most knobs that would have no effect beside the others.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names field, rule, value and cure."""


class Settings(BaseModel):
    """Base of all sections: frozen, and no field that is not declared."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _null_empties(cls, values: Any) -> Any:
        """null for a list or a mapping is an empty one."""
        if not isinstance(values, dict):
            return values
        empty: dict[Any, Any] = {tuple: (), dict: {}}
        kinds = {name: get_origin(field.annotation) for name, field in cls.model_fields.items()}
        return {name: empty.get(kinds.get(name), value) if value is None else value for name, value in values.items()}

    @field_validator("*", mode="before")
    @classmethod
    def _no_stand_ins(cls, value: Any, told: ValidationInfo) -> Any:
        """A truth value is no number, and an empty text, such as a variable of the shell that is not set leaves, names nothing."""
        some = value if isinstance(value, (list, tuple)) else (value,)
        if any(isinstance(one, str) and not one.strip() for one in some):
            raise PydanticCustomError("empty_text", "")
        kinds = _kinds(cls.model_fields[str(told.field_name)].annotation)
        if any(isinstance(one, bool) for one in some) and bool not in kinds and kinds & {int, float}:
            raise PydanticKnownError("float_type" if float in kinds else "int_type")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that a field takes, by itself, in a union or in a list."""
    inner = get_args(annotation)
    return set().union(*map(_kinds, inner)) if inner and get_origin(annotation) is not Literal else {annotation}


class DataSettings(Settings):
    """Where scenes come from."""

    scenes: str | None = None
    """Scenes to train on: a folder, shards or an annotation file; without it scenes are composed from cutouts."""
    format: str = "auto"
    """Format of `scenes`: see `sas data formats`; "auto" knows the project format, shards and SAS folders."""
    images: str | None = None
    """Folder of the pictures that an annotation file names."""
    fields: dict[str, str] = {}
    """Names of the fields of a COCO-style file, as a mapping from our words: {amodal: segmentation, ...}."""
    annotators: str | None = None
    """COCOA: "all" annotators, the first "one" of each picture, or an annotator's name."""
    regions: Literal["all", "things", "stuff"] | None = None
    """COCOA: which regions."""
    front: Literal["last", "first"] | None = None
    """labelme: which end of a file's list of shapes is nearest, where they have no z_order; None: "last"."""
    min_size: int | None = Field(None, ge=1)
    """Modal masks: least side of an object that is completed, pixels; 32 if left out."""
    validation: str | None = None
    """Scenes to validate on, of the same format; without it those of `scenes`, which then says little."""
    validation_images: str | None = None
    """Folder of the pictures of `validation`; that of `images` if left out."""
    shuffle_buffer: int = Field(2048, ge=1)
    """Items that are shuffled among each other when packed shards are read in sequence."""
    augment: float = Field(0.0, ge=0, le=1)
    """Strength of the augmentation of scenes from disk (flip, rotation, crop, colour, blur, noise, JPEG); 0: none."""
    cutouts: tuple[str, ...] = ()
    """Folders of cutouts (RGBA pictures, or pictures beside masks); without them solids are rendered."""
    backgrounds: str | None = None
    """Folder of background pictures; without it backgrounds are rendered."""
    extra_cutouts: tuple[str, ...] = ()
    """Folders of more cutouts for training alone, each drawn as often as a folder of `cutouts`; they are no part of the split, whose hash
    does not count them, and what their names would put into validation or testing is left out."""
    extra_backgrounds: tuple[str, ...] = ()
    """Folders of more background pictures for training alone, likewise, drawn among those of `backgrounds`."""
    rendered: bool = False
    """Rendered solids and backgrounds beside the folders named; each source of cutouts is drawn equally often."""
    split: Literal["none", "by_name"] = "none"
    """Hold out a tenth of the backgrounds and of the kinds of cutouts (Class__Variety of a name, or its folder) for validation and one for
    testing, by the SHA-256 of their names. The group vehicle and rendered solids of the families ring and bottle are for testing too."""
    image_size: int = Field(128, ge=16, le=1024)
    """Side of the square image the model sees, pixels."""
    mask_size: int = Field(64, ge=16, le=1024)
    """Side of the square masks, pixels."""
    oversample: int = Field(1, ge=1, le=8)
    """Canvas pixels a model pixel when composing; masks are made on the canvas and reduced by area."""
    sprite_size: int = Field(96, ge=16, le=512)
    """Side of a cutout in the atlas, pixels."""
    families: tuple[str, ...] = ()
    """Families of rendered solids; all of them if empty (with split by_name, all that the part may have)."""
    classes: int = Field(240, ge=1)
    """Rendered looks; scenes of one class show several views of one look."""
    views: int = Field(6, ge=1)
    """Rendered views of a look."""
    background_count: int = Field(200, ge=1)
    """Rendered backgrounds."""
    objects: tuple[int, int] = (1, 4)
    """Fewest and most objects of a composed scene."""
    scale: tuple[float, float] = (0.25, 0.6)
    """Least and most of a composed object's longer side, as a share of the picture's; within a scene sizes vary by a quarter more."""
    intra_class: float = Field(0.3, ge=0, le=1)
    """Share of composed scenes whose objects are all of one class."""
    empty: float = Field(0.03, ge=0, le=1)
    """Share of composed scenes without objects."""
    twins: float = Field(0.1, ge=0, le=1)
    """Share of pairs of neighbouring composed scenes of which the second repeats the first without its occluders."""
    appearance: float = Field(0.0, ge=0, le=1)
    """Share of objects and of pictures whose colours are changed beyond what light does."""
    prints: float = Field(0.0, ge=0, le=1)
    """Share of composed objects that wear a print, a piece of a background, all over or on a label."""
    warps: float = Field(0.0, ge=0, le=1)
    """Share of composed objects that are stretched, bent and tapered."""
    touching: float = Field(0.0, ge=0, le=1)
    """Share of composed scenes whose objects lie edge to edge."""
    shades: float = Field(0.0, ge=0, le=1)
    """Share of composed pictures with a patch of shadow or light that is no object."""
    degradation: float = Field(0.0, ge=0, le=1)
    """Share of composed pictures that are blurred, of fewer pixels, noisy or packed as JPEG, as photographs are."""
    letterbox: float = Field(0.15, ge=0, le=1)
    """Share of composed scenes with grey bars, as pictures that are not square have."""
    min_overlap: float = Field(0.01, ge=0, lt=1)
    """i occludes j only if they share more than this fraction of j's amodal area."""
    layers: Literal["all"] | int = "all"
    """Training items a picture: one a layer and the empty one ("all"), or this many draws."""
    corruption: float = Field(0.0, ge=0, le=1)
    """Share of items whose cumulative mask is damaged (objects dropped, outline moved)."""
    corruption_drop: float = Field(0.1, ge=0, le=1)
    """Probability of leaving an object out of a damaged cumulative mask."""
    workers: int = Field(0, ge=0, le=64)
    """Processes that read scenes from disk ahead of training, for each training process; 0 reads in the training loop. The number changes
    no value. Composed scenes are made in the loop with 0, else a batch ahead in a thread."""

    @model_validator(mode="after")
    def _check(self) -> DataSettings:
        if isinstance(self.layers, int) and self.layers < 1:
            raise ValueError(f'layers must be "all" or a positive number, got {self.layers}: pass 1 or more')
        if not 0 <= self.objects[0] <= self.objects[1] or self.objects[1] < 1:
            raise ValueError(f"objects must be (fewest, most) with most >= 1, got {self.objects}: fix the range")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"scale must be (least, most) with 0 < least <= most <= 1, got {self.scale}: fix the range"
            )
        reading = (
            "format", "images", "fields", "annotators", "regions", "front", "min_size", "validation", "validation_images", "shuffle_buffer",
            "augment",
        )  # fmt: skip
        idle = [name for name in reading if getattr(self, name) != type(self).model_fields[name].default]
        if not self.scenes and idle:
            raise ValueError(f"{idle[0]} has no effect without scenes: set scenes, or remove it")
        composing = [
            name
            for name in ("appearance", "prints", "warps", "touching", "shades", "degradation")
            if getattr(self, name)
        ]
        if self.scenes and composing:
            raise ValueError(
                f"{composing[0]} is for composed scenes and has no effect with scenes: remove it, or set augment"
            )
        if self.validation_images and not self.validation:
            raise ValueError("validation_images has no effect without validation: set validation, or remove it")
        if self.scenes and (self.cutouts or self.backgrounds):
            raise ValueError("scenes excludes cutouts and backgrounds, which would have no effect: remove one of them")
        if self.cutouts and self.families and not self.rendered:
            raise ValueError(
                "cutouts excludes families, which would have no effect: remove one of them, or set rendered"
            )
        if self.rendered and not (self.cutouts or self.backgrounds):
            raise ValueError("rendered has no effect without cutouts or backgrounds, all is rendered then: remove it")
        if not self.corruption and self.corruption_drop != type(self).model_fields["corruption_drop"].default:
            raise ValueError("corruption_drop has no effect without corruption: remove it, or set corruption")
        if self.split != "none" and not (self.cutouts or self.backgrounds):
            raise ValueError("split has no effect without cutouts or backgrounds: remove it")
        for extra, base in (("extra_cutouts", "cutouts"), ("extra_backgrounds", "backgrounds")):
            if getattr(self, extra) and not getattr(self, base):
                raise ValueError(f"{extra} go beside {base}, got no {base}: set {base}, or name the folders there")
        return self


class ModelSettings(Settings):
    """The network; see `sas.models.unet.ConcatUNet` and `sas.models.split.SplitDenoiser`."""

    name: Literal["unet", "split"] = "split"
    """Which network: the paper's UNet over image and masks together, or an image encoder and a light denoiser."""
    encoder: str = "conv"
    """Image encoder of the split network: "conv" (from scratch), "efficientnet_lite0" (to stride 16), "efficientnet_lite0_deep" (to 32, for
    images of 256), "timm/NAME", or a registered one."""
    encoder_widths: tuple[int, ...] = (32, 64, 128)
    """Widths of the "conv" encoder's maps at strides 4, 8 and 16."""
    pretrained: bool = False
    """Start the encoder from ImageNet features (needs the extra `pretrained`, at training time only)."""
    fusion: tuple[int, ...] = ()
    """Widths at which the encoder's maps are fused with each other once per image, from fine to coarse; empty: they are not."""
    image_unet: tuple[int, ...] = ()
    """Widths of a UNet that looks at the picture once more, once per image, from twice the resolution of the denoiser on, and guesses the first layers
    at once; empty: none."""
    image_blocks: int = Field(1, ge=1, le=8)
    """Residual blocks of that UNet at each level, on the way down and up alike."""
    channels: tuple[int, ...] = (32, 64, 128, 160)
    """Width of each level."""
    blocks: int = Field(1, ge=1, le=8)
    """Residual blocks a level."""
    attention_sizes: tuple[int, ...] = (8, 4)
    """Resolutions of the network's maps at which attention runs."""
    middle_attention: bool = True
    """Attention in the middle."""
    patch: int = Field(2, ge=1, le=8)
    """Side of the pixel blocks folded into channels at the input."""
    detail: int = Field(0, ge=0, le=256)
    """Width of a last stage of the split network at the masks' own resolution, which corrects outlines; 0: none."""
    norm_groups: int = Field(16, ge=1)
    """Groups of the group norms; divides every width."""
    gradient_checkpointing: bool = False
    """Trade a third more time for much less memory in training."""

    @model_validator(mode="after")
    def _check(self) -> ModelSettings:
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"channels must be one or more positive widths, got {self.channels}: for example [32, 64]")
        default_widths = type(self).model_fields["encoder_widths"].default
        if self.name == "unet" and (self.encoder != "conv" or self.encoder_widths != default_widths):
            raise ValueError(
                "encoder and encoder_widths belong to the split network: remove them, or set name to split"
            )
        for name in ("fusion", "image_unet", "detail"):
            if self.name == "unet" and getattr(self, name):
                raise ValueError(f"{name} belongs to the split network: remove it, or set name to split")
        if not self.image_unet and self.image_blocks != type(self).model_fields["image_blocks"].default:
            raise ValueError("image_blocks has no effect without image_unet: remove it, or set image_unet")
        if self.name == "split" and (not self.middle_attention or self.gradient_checkpointing):
            raise ValueError(
                "middle_attention and gradient_checkpointing belong to the network unet: remove them, or set name to unet"
            )
        if self.encoder != "conv" and self.encoder_widths != default_widths:
            raise ValueError(f"encoder_widths belong to the conv encoder, got encoder {self.encoder!r}: remove them")
        if self.pretrained and (self.name != "split" or self.encoder == "conv"):
            raise ValueError(
                "pretrained needs the split network with an encoder other than conv: remove it or set encoder"
            )
        wrong = [
            width
            for width in (
                *self.channels,
                *self.fusion,
                *self.image_unet,
                *([self.detail] if self.detail else []),
                *(self.encoder_widths if self.name == "split" and self.encoder == "conv" else ()),
            )
            if width < 1 or width % self.norm_groups
        ]
        if wrong:
            raise ValueError(
                "norm_groups must divide every width of channels, fusion, image_unet, detail and encoder_widths, got "
                f"{self.norm_groups} and {wrong[0]}: change one of them"
            )
        return self


class DiffusionSettings(Settings):
    """Schedule, mask code and objective."""

    num_train_timesteps: int = Field(1000, ge=2, le=10_000)
    """T."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    """Noise schedule, in diffusers' names (squaredcos_cap_v2 is the cosine one)."""
    beta_start: float = Field(1e-4, gt=0, lt=1)
    """First beta of the linear schedules."""
    beta_end: float = Field(0.02, gt=0, lt=1)
    """Last beta of the linear schedules."""
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "sample"
    """What the network predicts: the noise, x_0, or v."""
    loss_type: Literal["mse", "bce_dice"] = "bce_dice"
    """Squared error on the prediction, or cross-entropy and Dice on x_0 logits."""
    learned_variance: bool = False
    """A second output channel for a learned-range variance, trained by the variational bound."""
    zero_terminal_snr: bool = True
    """Rescale the schedule so that the last time step is pure noise."""
    timestep_spacing: Literal["trailing", "leading", "linspace"] = "trailing"
    """Where sampling steps lie; trailing starts at the last time step."""
    mask_scale: float = Field(0.2, gt=0, le=10)
    """Amplitude of the mask's float code."""
    mask_centred: bool = True
    """Code masks as {-scale, scale} instead of {0, scale}."""
    high_noise_bias: float = Field(3.0, ge=0, le=10)
    """0 draws the time step uniformly; larger values prefer noisy ones."""
    stop_weight: float = Field(1.0, ge=0, le=100)
    """Weight of the loss of the "nothing is left" head, for networks that have one."""
    layers_weight: float = Field(0.0, ge=0, le=100)
    """Weight of the loss of all layers guessed at once from the picture, for networks with `image_unet`."""
    rollout: float = Field(0.0, ge=0, le=1)
    """Share of pictures whose cumulative masks are the network's own drawing so far (one step a layer)."""
    energy_weight: float = Field(0.0, ge=0, le=100)
    """Weight of the energy score of one-step samples, which keeps 1-step ensembles diverse."""
    energy_members: int = Field(4, ge=2, le=64)
    """Samples of the energy score."""
    self_alignment: float = Field(0.0, ge=0, le=1)
    """Share of training items whose noised mask is the network's own first guess, with the noise of sampling.noise_scale."""

    @model_validator(mode="after")
    def _check(self) -> DiffusionSettings:
        if (self.rollout or self.energy_weight or self.self_alignment) and self.loss_type != "bce_dice":
            raise ValueError(
                f'rollout, energy_weight and self_alignment need loss_type "bce_dice", got {self.loss_type!r}: set it, or all three to 0'
            )
        if not self.energy_weight and self.energy_members != type(self).model_fields["energy_members"].default:
            raise ValueError("energy_members has no effect without energy_weight: remove it, or set energy_weight")
        if self.loss_type == "bce_dice" and self.prediction_type != "sample":
            raise ValueError(
                f'loss_type "bce_dice" needs prediction_type "sample", got {self.prediction_type!r}: set loss_type to "mse"'
            )
        fields = type(self).model_fields
        ends = [name for name in ("beta_start", "beta_end") if getattr(self, name) != fields[name].default]
        if ends and self.beta_schedule == "squaredcos_cap_v2":
            raise ValueError(
                f"{ends[0]} has no effect with beta_schedule squaredcos_cap_v2: remove it, or set beta_schedule"
            )
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise ValueError(
                'zero_terminal_snr cannot go with prediction_type "epsilon", which is undefined on pure noise: use "sample" or "v_prediction"'
            )
        if self.learned_variance and self.loss_type == "bce_dice":
            raise ValueError(
                'learned_variance needs loss_type "mse", got "bce_dice": set loss_type to "mse" or learned_variance to false'
            )
        if self.zero_terminal_snr and self.learned_variance:
            raise ValueError(
                "zero_terminal_snr cannot go with learned_variance, whose bound is infinite on pure noise: switch one of them off"
            )
        return self


class SamplingSettings(Settings):
    """Defaults of the sampler; they are stored in the weights."""

    scheduler: Literal["ddim", "ddpm", "dpmsolver++"] = "ddim"
    """Reverse process."""
    steps: int = Field(4, ge=1, le=10_000)
    """Denoising steps a layer."""
    members: int = Field(3, ge=1, le=1024)
    """Ensemble size."""
    consensus: Literal["medoid", "mean"] = "medoid"
    """Rule for the mask kept."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """Soft mask above which a pixel of a member is set."""
    void_area: float = Field(0.0025, ge=0, lt=1)
    """Share of the grid below which a member is void."""
    refine: bool = True
    """What is seen of a mask follows the picture's edges when it is brought to the picture's size."""
    merge_disjoint: bool = True
    """A layer that shares no pixel with the one before belongs to that one."""
    stop_threshold: float = Field(0.5, gt=0, le=1)
    """Probability that nothing is left above which sampling stops, for networks that say so."""
    noise_scale: float = Field(1.0, ge=0, le=2)
    """Standard deviation of the noise that members begin with; with less than 1 they differ less, and their consensus is better."""
    max_layers: int = Field(8, ge=1, le=64)
    """Most layers of an image."""
    cumulative: Literal["shared", "member"] = "shared"
    """Members share the consensus as their cumulative mask, or each keeps its own."""
    image_range: Literal["unit", "bytes"] = "unit"
    """Range of the image the network was trained on: [-1, 1], or 0..255 (a quirk of the official code)."""


class TrainingSettings(Settings):
    """The trainer."""

    seed: int = Field(0, ge=0, le=999_999)
    """Seed of everything random in training; from a million on seeds are those of validation and test scenes."""
    steps: int = Field(10_000, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(32, ge=1)
    """Pictures in the global batch, over all processes and micro-batches."""
    micro_batch: int | None = Field(None, ge=1)
    """Most pictures of a process at once; smaller parts are accumulated. None: the process's whole share."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW for all weights, or Muon for those of convolutions and matrices and AdamW for the rest."""
    learning_rate: float = Field(1e-3, gt=0, lt=1)
    """Peak learning rate."""
    only: tuple[str, ...] = ()
    """Parts of the network that are trained, by their names in it (fuse, fine, ...); the others keep their weights. Empty: all."""
    encoder_rate: float = Field(1.0, ge=0, le=1)
    """Learning rate of the split network's image encoder, as a factor; 0 freezes it."""
    weight_decay: float = Field(0.0, ge=0, lt=1)
    """Decoupled weight decay."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """Learning rate after the warm-up."""
    anneal_over: Literal["steps", "minutes"] = "steps"
    """What the schedule runs over: the steps, or the time of --max-minutes as well, whichever ends first (a run that goes on later begins anew)."""
    warmup_steps: int = Field(100, ge=0)
    """Steps of linear warm-up."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Gradients are clipped to this norm; null: never."""
    ema_decay: float = Field(0.999, gt=0, lt=1)
    """Decay of the exponential moving average of the weights."""
    sample_weights: Literal["ema", "raw"] = "ema"
    """Which weights are validated and saved (raw is a quirk of the official code)."""
    precision: Literal["no", "fp16", "bf16"] = "no"
    """Mixed precision."""
    compile: bool = False
    """torch.compile the network; for GPUs."""


class LoggingSettings(Settings):
    """What is written while training runs; none of it changes the weights."""

    log_every: int = Field(20, ge=1)
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1)
    """Checkpoints kept."""
    validate_every: int = Field(1000, ge=1)
    """Steps between validations."""
    validation_scenes: int = Field(64, ge=1)
    """Scenes of a validation."""
    validation_steps: int | None = Field(None, ge=1)
    """Denoising steps a layer in validations; None: sampling.steps."""
    validation_members: int | None = Field(None, ge=1, le=1024)
    """Ensemble size in validations; None: sampling.members."""
    trackers: tuple[Literal["wandb", "tensorboard"], ...] = ()
    """Trackers beside metrics.jsonl. wandb works offline unless told otherwise."""
    project: str = "sas"
    """Project name for the trackers."""
    saved_weights: Literal["float32", "float16", "int8"] = "float32"
    """Precision of the saved pipeline; int8 stores matrices as 8-bit integers with a scale for each output channel, and the rest in 16 bits."""


class Config(Settings):
    """One training run."""

    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    diffusion: DiffusionSettings = DiffusionSettings()
    sampling: SamplingSettings = SamplingSettings()
    training: TrainingSettings = TrainingSettings()
    logging: LoggingSettings = LoggingSettings()

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.model.name == "unet" and self.data.image_size != self.data.mask_size:
            raise ValueError(
                f"the concatenating UNet needs image_size equal to mask_size, got {self.data.image_size} and {self.data.mask_size}: set both alike"
            )
        if self.model.name == "unet" and self.training.encoder_rate != 1:
            raise ValueError(
                "training.encoder_rate belongs to the split network: remove it, or set model.name to split"
            )
        if self.training.encoder_rate == 0 and "image_encoder" in self.training.only:
            raise ValueError("training.only names image_encoder, which encoder_rate 0 freezes: leave one of them out")
        if self.diffusion.layers_weight and not self.model.image_unet:
            raise ValueError(
                "diffusion.layers_weight needs model.image_unet, whose guess it judges: set it, or remove layers_weight"
            )
        if self.model.image_unet and not (self.diffusion.layers_weight or self.model.detail):
            raise ValueError(
                "model.image_unet needs diffusion.layers_weight or model.detail, or nothing uses its finest map: set one of them"
            )
        if self.model.name == "split" and self.diffusion.learned_variance:
            raise ValueError("the split network has no learned_variance: remove it, or set model.name to unet")
        side = self.model.patch * 2 ** (len(self.model.channels) - 1)
        if self.data.mask_size % side:
            raise ValueError(
                f"data.mask_size must be divisible by patch x 2^(levels - 1) = {side}, got {self.data.mask_size}: "
                "change mask_size, model.patch or the number of model.channels"
            )
        if self.data.scenes is None and self.data.image_size * self.data.oversample % self.data.mask_size:
            raise ValueError(
                "data.mask_size must divide the canvas on which scenes are composed, image_size x oversample = "
                f"{self.data.image_size * self.data.oversample}, got {self.data.mask_size}: choose a divisor, or raise data.oversample"
            )
        maps = [self.data.mask_size // self.model.patch // 2**level for level in range(len(self.model.channels))]
        nowhere = (
            set(self.model.attention_sizes) - set(maps) - set(type(self.model).model_fields["attention_sizes"].default)
        )
        if nowhere:
            raise ValueError(
                f"model.attention_sizes must name sides of the denoiser's maps, {', '.join(map(str, maps))} here, got {min(nowhere)}: "
                "choose among them, or remove it"
            )
        longest = self.diffusion.num_train_timesteps
        for name, steps in (
            ("sampling.steps", self.sampling.steps),
            ("logging.validation_steps", self.logging.validation_steps),
        ):
            if steps is not None and steps > longest:
                raise ValueError(f"{name} must be at most num_train_timesteps = {longest}, got {steps}: lower it")
        return self


class EachKeyOnce(yaml.SafeLoader):
    """YAML of which no mapping names a key twice: plain YAML would drop what the first one holds without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def load_config(path: str | Path | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """Defaults, changed by a YAML file, changed by `overrides` ({"section.field": value})."""
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=EachKeyOnce) or {}
        except OSError as error:
            raise ConfigError(f"configuration {path} cannot be read ({error.strerror}): check the path") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"configuration {path} is not valid YAML ({' '.join(str(error).split())}): fix the file"
            ) from error
        if not isinstance(values, dict):
            raise ConfigError(
                f"configuration {path} must hold sections such as `training:`, got {type(values).__name__}: see configs/ for examples"
            )
        values = {
            section: fields for section, fields in values.items() if fields is not None
        }  # `training:` and no more
    for name, value in (overrides or {}).items():
        section, _, field = name.partition(".")
        if not field:
            raise ConfigError(f"override {name} must be section.field, got {name!r}: for example training.steps")
        if not isinstance(values.setdefault(section, {}), dict):
            break  # a section that is none, which is told below
        values[section][field] = value
    return config_from_dict(values, where=str(path) if path else "the command line")


def config_from_dict(values: dict[str, Any], *, where: str = "configuration") -> Config:
    """Validated Config; ConfigError with one line a fault."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {faults(error)}") from None


def faults(error: ValidationError) -> str:
    """What a section refuses, in plain words: field, rule, value and cure of each fault."""
    told: dict[tuple[tuple[str, ...], str], list[Any]] = {}
    for one in error.errors():
        # A field of several types has a fault for each, at a place that ends with the type. A key that nobody knows may be called so.
        unknown = one["type"] == "extra_forbidden"
        place = tuple(str(part) for part in one["loc"] if unknown or not _TYPE.fullmatch(str(part)))
        told.setdefault((place, "" if one["type"] in _PLAIN else one["type"]), []).append(one)
    return "; ".join(_fault(place, some) for (place, _), some in told.items())


def _fault(place: tuple[str, ...], errors: list[Any]) -> str:
    first = errors[0]
    name = ".".join(place)
    if first["type"] == "extra_forbidden":
        return f"unknown key {name}: {_known_key(place[:-1], place[-1])}"
    if first["type"] == "value_error":
        return f"{name + ': ' if name else ''}{first['msg'].removeprefix('Value error, ')}"
    if first["type"] not in _PLAIN:
        return f"{name}: {first['msg']}, got {first['input']!r}: change the value"
    rules = [
        tuple(part.format(**{"input": one["input"], **one.get("ctx", {})}) for part in _PLAIN[one["type"]])
        for one in errors
    ]
    rule, cure = " or ".join(dict.fromkeys(rule for rule, _ in rules)), rules[-1][1]
    if first["type"] == "literal_error" and isinstance(first["input"], bool):
        cure = 'YAML takes a bare no, off, yes or on for a truth value: put it into quotes, for example "no"'
    return f"{name} must be {rule}, got {first['input']!r}: {cure}"


_TYPE = re.compile(r"literal\[.*\]|int|float|str|bool")
_WHOLE, _NUMBER = ("a whole number", "pass a whole number"), ("a number", "pass a number")
_PLAIN: dict[str, tuple[str, str]] = {
    "greater_than_equal": ("at least {ge:g}", "pass {ge:g} or more"),
    "greater_than": ("more than {gt:g}", "pass a larger number"),
    "less_than_equal": ("at most {le:g}", "pass {le:g} or less"),
    "less_than": ("less than {lt:g}", "pass a smaller number"),
    "empty_text": ("more than an empty text", "leave it out, or look at what should have filled it in"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), _WHOLE),
    **dict.fromkeys(("float_type", "float_parsing"), _NUMBER),
    **dict.fromkeys(("bool_type", "bool_parsing"), ("true or false", "pass one of them")),
    "finite_number": ("a finite number", "pass one, or null where that is allowed"),
    "string_type": ("a text", "pass a text"),
    "literal_error": ("{expected}", "choose one of them"),
    "tuple_type": ("a list", "pass a list, such as [{input}]"),
    "too_long": ("at most {max_length} values", "leave some out"),
    "missing": ("given", "add it"),
    **dict.fromkeys(("dict_type", "model_type"), ("fields and their values", "write NAME: VALUE for each")),
}
"""Rule and cure of what pydantic finds, by its name for it."""


def _known_key(place: tuple[str, ...], key: str) -> str:
    """The cure for a key that is not known at a place. A key may hold dots, as people write `training.steps: 5`."""
    known = _fields_at(place)
    head, dot, rest = key.partition(".")
    if dot and _fields_at((*place, head)):
        return f"write it as `{head}:` and below it `  {rest}:`"
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"did you mean {'.'.join((*place, close[0]))}?"
    return f"known there: {', '.join(known)}" if known else "remove it"


def _fields_at(place: tuple[str, ...]) -> list[str]:
    """Names of the fields of the section at a place; none where there is no section."""
    model: Any = Config
    for part in place:
        field = model.model_fields.get(part)
        model = None if field is None else field.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return []
    return list(model.model_fields)


def changed_fields(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields that differ between two dumped configurations: {"section.field": (old, new)}."""
    names = sorted({f"{s}.{f}" for config in (old, new) for s, fields in config.items() for f in fields})
    found = {}
    for name in names:
        section, field = name.split(".", 1)
        before, after = old.get(section, {}).get(field), new.get(section, {}).get(field)
        if before != after:
            found[name] = (before, after)
    return found


def config_hash(config: Config) -> str:
    """SHA-256 of the whole configuration."""
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
