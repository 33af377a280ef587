"""From a configuration to objects. Nothing below this file sees a configuration."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import nn

from sas.config import Config, ConfigError, DataSettings, DiffusionSettings, SamplingSettings
from sas.data.atlas import Atlas, cutout_files
from sas.data.augment import Augmentation
from sas.data.backgrounds import background_files, load_backgrounds, render_backgrounds
from sas.data.composer import Composer, SceneStyle
from sas.data.folders import ProjectFolder
from sas.data.formats.mask_folder import MaskFolders
from sas.data.formats.registry import FORMATS, open_format
from sas.data.shards import Shards
from sas.data.solids import FAMILIES
from sas.data.source import SceneLoader, SceneSource
from sas.data.split import TEST_FAMILIES, Part, cutout_part, name_bytes, part_of, split_hash
from sas.diffusion import DiffusionObjective, MaskCodec
from sas.io import InputError
from sas.items import Corruption
from sas.models import ConcatUNet, SplitDenoiser
from sas.order import DEFAULT_MIN_OVERLAP
from sas.pipeline import SASPipeline
from sas.scene import Scene, SceneBatch
from sas.seeding import VALIDATION_SEED, derive_seed

logger = logging.getLogger(__name__)


def build_model(config: Config, *, pretrained: bool = False) -> ConcatUNet | SplitDenoiser:
    """The untrained network; its initial weights depend on training.seed alone.

    pretrained: the image encoder starts from ImageNet features, if the configuration says so.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(config.training.seed, "weights"))
        if config.model.name == "split":
            try:
                model = SplitDenoiser(
                    image_size=config.data.image_size,
                    mask_size=config.data.mask_size,
                    encoder=config.model.encoder,
                    encoder_widths=config.model.encoder_widths,
                    fusion=config.model.fusion,
                    image_unet=config.model.image_unet,
                    image_blocks=config.model.image_blocks,
                    channels=config.model.channels,
                    blocks=config.model.blocks,
                    attention_sizes=config.model.attention_sizes,
                    patch=config.model.patch,
                    detail=config.model.detail,
                    norm_groups=config.model.norm_groups,
                )
            except ValueError as error:  # whether an encoder's maps fit is known when the encoder is
                raise ConfigError(f"model: {error}") from error
            if pretrained and config.model.pretrained:
                model.load_pretrained_encoder()
            return model
        return ConcatUNet(
            size=config.data.mask_size,
            channels=config.model.channels,
            blocks=config.model.blocks,
            attention_sizes=config.model.attention_sizes,
            middle_attention=config.model.middle_attention,
            heads=int(config.diffusion.learned_variance),
            patch=config.model.patch,
            norm_groups=config.model.norm_groups,
        )


def freeze_untaught(model: nn.Module, config: Config) -> None:
    """Freeze what training must leave as it is: weights that no loss of the configuration reaches, and all but the parts of `training.only`.

    Data-parallel training waits for the gradient of each weight that wants one. Raises InputError if `training.only` names another part.
    """
    stop, look = getattr(model, "stop", None), getattr(model, "look", None)
    if not config.diffusion.stop_weight and stop is not None:
        stop.requires_grad_(False)
    if not config.diffusion.layers_weight and look is not None:
        look.guess.requires_grad_(False)
    parts, only = dict(model.named_children()), config.training.only
    taught = [name for name, part in parts.items() if any(one.requires_grad for one in part.parameters())]
    for name in only:
        if name not in taught:
            raise InputError(
                f"training.only must name parts of the network that its losses teach, got {name!r}; choose among {', '.join(taught)}"
            )
    for name, part in parts.items() if only else ():
        if name not in only:
            part.requires_grad_(False).eval()


def build_codec(diffusion: DiffusionSettings) -> MaskCodec:
    return MaskCodec(scale=diffusion.mask_scale, centred=diffusion.mask_centred)


def build_scheduler(diffusion: DiffusionSettings, sampling: SamplingSettings) -> Any:
    """The diffusers scheduler that the objective trains against and the pipeline samples with."""
    common: dict[str, Any] = {
        "num_train_timesteps": diffusion.num_train_timesteps,
        "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end,
        "beta_schedule": diffusion.beta_schedule,
        "prediction_type": diffusion.prediction_type,
        "timestep_spacing": diffusion.timestep_spacing,
        "rescale_betas_zero_snr": diffusion.zero_terminal_snr,
    }
    clip = {"clip_sample": True, "clip_sample_range": diffusion.mask_scale}
    if sampling.scheduler == "ddim":
        return DDIMScheduler(**common, **clip, set_alpha_to_one=True)
    if sampling.scheduler == "ddpm":
        variance = "learned_range" if diffusion.learned_variance else "fixed_small"
        return DDPMScheduler(**common, **clip, variance_type=variance)
    return DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++")


def build_objective(config: Config) -> DiffusionObjective:
    data, diffusion = config.data, config.diffusion
    corruption = Corruption(probability=data.corruption, drop=data.corruption_drop) if data.corruption else None
    return DiffusionObjective(
        build_scheduler(diffusion, config.sampling),
        codec=build_codec(diffusion),
        loss_type=diffusion.loss_type,
        learned_variance=diffusion.learned_variance,
        high_noise_bias=diffusion.high_noise_bias,
        layers=data.layers,
        corruption=corruption,
        stop_weight=diffusion.stop_weight if config.model.name == "split" else 0.0,
        layers_weight=diffusion.layers_weight,
        image_range=config.sampling.image_range,
        rollout=diffusion.rollout,
        energy_weight=diffusion.energy_weight,
        energy_members=diffusion.energy_members,
        self_alignment=diffusion.self_alignment,
        noise_scale=config.sampling.noise_scale,
    )


def build_pipeline(config: Config, model: ConcatUNet | SplitDenoiser, *, model_id: str = "") -> SASPipeline:
    sampling = config.sampling
    return SASPipeline(
        model=model,
        scheduler=build_scheduler(config.diffusion, sampling),
        image_size=config.data.image_size,
        mask_size=config.data.mask_size,
        mask_scale=config.diffusion.mask_scale,
        mask_centred=config.diffusion.mask_centred,
        logits=config.diffusion.loss_type == "bce_dice",
        image_range=sampling.image_range,
        num_inference_steps=sampling.steps,
        ensemble_size=sampling.members,
        consensus=sampling.consensus,
        threshold=sampling.threshold,
        void_area=sampling.void_area,
        refine=sampling.refine,
        merge_disjoint=sampling.merge_disjoint,
        stop_head=config.model.name == "split" and config.diffusion.stop_weight > 0,
        stop_threshold=sampling.stop_threshold,
        noise_scale=sampling.noise_scale,
        max_layers=sampling.max_layers,
        shared_cumulative=sampling.cumulative == "shared",
        min_overlap=config.data.min_overlap,
        data_split=data_split(config.data),
        model_id=model_id,
    )


def scene_style(data: DataSettings) -> SceneStyle:
    return SceneStyle(
        objects=data.objects,
        intra_class=data.intra_class,
        empty=data.empty,
        twins=data.twins,
        scale=data.scale,
        letterbox=data.letterbox,
        appearance=data.appearance,
        prints=data.prints,
        warps=data.warps,
        touching=data.touching,
        shades=data.shades,
        degradation=data.degradation,
    )


def build_composer(
    data: DataSettings, *, seed: int, atlas_seed: int, part: Part = "train", device: torch.device | str = "cpu"
) -> Composer:
    """A composer over the cutouts of a configuration. `atlas_seed` chooses rendered looks, `seed` the scenes, `part` the names
    if the configuration divides them."""
    _check_parts(data, part)
    size = data.image_size * data.oversample
    return Composer(
        build_atlas(data, seed=atlas_seed, part=part),
        _backgrounds(data, seed=atlas_seed, part=part, size=size),
        seed=seed,
        image_size=data.image_size,
        mask_size=data.mask_size,
        oversample=data.oversample,
        style=scene_style(data),
        min_overlap=data.min_overlap,
        device=device,
    )


def build_atlas(data: DataSettings, *, seed: int, part: Part = "train") -> Atlas:
    """All cutouts of a configuration; of folders, if it divides them, those of one part, and for training those beside them too."""
    atlases = []
    for _, folder in _cutout_folders(data, part):
        keep = (lambda name: cutout_part(name) == part) if data.split == "by_name" else (lambda name: True)
        atlases.append(Atlas.from_folders([folder], size=data.sprite_size, keep=keep))
    if not data.cutouts or data.rendered:
        logger.info("rendering %d cutouts of %d classes", data.classes * data.views, data.classes)
        families = _families(data, part)
        atlases.append(
            Atlas.generated(seed=seed, classes=data.classes, views=data.views, size=data.sprite_size, families=families)
        )
    return Atlas.merged(atlases)


def _cutout_folders(data: DataSettings, part: Part) -> list[tuple[str, str]]:
    """Folders with cutouts for a part, each after what to call it; those that are extra are for training alone."""
    extra = data.extra_cutouts if part == "train" else ()
    return [(f"data.cutouts {one}", one) for one in data.cutouts] + [
        (f"data.extra_cutouts {one}", one) for one in extra
    ]


def _background_folders(data: DataSettings, part: Part) -> list[tuple[str, str]]:
    """Folders with backgrounds for a part, likewise."""
    own = [data.backgrounds] if data.backgrounds else []
    extra = data.extra_backgrounds if part == "train" else ()
    return [(f"data.backgrounds {one}", one) for one in own] + [(f"data.extra_backgrounds {one}", one) for one in extra]


def _check_parts(data: DataSettings, *parts: Part) -> None:
    """ConfigError if the division by name leaves one of the parts without cutouts, or without pictures to paste on."""
    if data.split == "none":
        return
    for part in parts:
        held = {
            name: [cutout_part(one) for _, one in cutout_files(folder)] for name, folder in _cutout_folders(data, part)
        }
        held |= {
            name: [part_of(one.name) for one in background_files(folder)]
            for name, folder in _background_folders(data, part)
        }
        for name, found in held.items():
            if part not in found:
                raise ConfigError(
                    f'{name} must hold a picture of the {part} part with data.split "by_name", got none among {len(found)} '
                    "(a tenth of the backgrounds, and of the kinds of cutouts, Class__Variety or folders, are for validation, a tenth for testing): "
                    "add pictures, or set data.split to none"
                )


def _families(data: DataSettings, part: Part) -> tuple[str, ...]:
    """Families of rendered solids of a part; ConfigError if one that is for testing only is named for another part."""
    if strange := [family for family in data.families if family not in FAMILIES]:
        raise ConfigError(f"data.families must be of {', '.join(FAMILIES)}, got {strange[0]!r}: choose among them")
    held_out = TEST_FAMILIES if data.split == "by_name" and part != "test" else ()
    if wrong := [family for family in data.families if family in held_out]:
        raise ConfigError(
            f'data.families must leave out {" and ".join(held_out)} with data.split "by_name", which keeps them for testing, got {wrong[0]}: '
            "remove it, or set data.split to none"
        )
    return data.families or tuple(family for family in FAMILIES if family not in held_out)


def _backgrounds(data: DataSettings, *, seed: int, part: Part, size: int) -> np.ndarray:
    """Pictures of the folders and, if asked for, rendered ones: uint8 (M, 3, size, size), as many of either kind."""
    sources = [_background_pictures(data, part=part, size=size)] if data.backgrounds else []
    if not data.backgrounds or data.rendered:
        sources.append(
            render_backgrounds(seed=derive_seed(seed, "backgrounds"), count=data.background_count, size=size)
        )
    most = max(len(pictures) for pictures in sources)
    return np.concatenate([np.resize(pictures, (most, *pictures.shape[1:])) for pictures in sources])


def _background_pictures(data: DataSettings, *, part: Part, size: int) -> np.ndarray:
    """Pictures of the folders of backgrounds, if the configuration divides them those of one part: uint8 (M, 3, size, size)."""

    def keep(name: str) -> bool:
        return data.split == "none" or part_of(name) == part

    folders = _background_folders(data, part)
    return np.concatenate([load_backgrounds(folder, size=size, keep=keep) for _, folder in folders])


def data_split(data: DataSettings) -> str:
    """SHA-256 of the division of cutouts and backgrounds into parts; empty if there is none. What is for training alone is not counted."""
    if data.split == "none":
        return ""
    cutouts = [name for folder in data.cutouts for _, name in cutout_files(folder)]
    pictures = [path.name for path in background_files(data.backgrounds)] if data.backgrounds else []
    return split_hash(cutouts, pictures)


def open_data(data: DataSettings, *, seed: int = 0, validation: bool = False) -> Sequence[Scene]:
    """The scenes on disk that a configuration names; with `validation` those to validate on, if it names some."""
    path, images = data.scenes, data.images
    if validation and data.validation:
        path, images = data.validation, data.validation_images or data.images
    if path is None:
        raise ConfigError("data.scenes must name scenes on disk, got nothing: set it")
    scenes = open_format(
        path,
        format=data.format,
        images=images,
        fields=data.fields,
        annotators=data.annotators,
        regions=data.regions,
        front=data.front,
        min_size=data.min_size,
        min_overlap=data.min_overlap,
        seed=seed,
    )
    if data.min_overlap != DEFAULT_MIN_OVERLAP and "min_overlap" not in FORMATS[data.format].options and len(scenes):
        own = scenes[0].min_overlap
        if own != data.min_overlap:
            raise ConfigError(
                f"data.min_overlap must be {own:g}, which the scenes of {path} bring with them, got {data.min_overlap:g}: set it to theirs, or remove it"
            )
    return scenes


def _check_order(scenes: Sequence[Scene], data: DataSettings, *, validation: bool = False) -> None:
    """InputError before anything is built if the first scene, or one that a look at the files can tell, has no layers to train on."""
    place = f"data.validation {data.validation}" if validation else f"data.scenes {data.scenes}"
    if scenes[0].order_matrix is None:
        raise InputError(
            f"{place} must say who is in front, got scenes without order (format {data.format}); name the fields of visible "
            "masks or ranks in data.fields, add an order to the files, or use this set for evaluation alone"
        )
    if isinstance(scenes, MaskFolders | ProjectFolder) and (id := scenes.without_order()):
        cure = getattr(scenes, "order_cure", "add it, or leave the scene out")
        raise InputError(f"{place} must say who is in front in each scene, got none in {id}; {cure}")
    if (own := scenes[0].min_overlap) != data.min_overlap and not validation:
        logger.warning(
            "%s is layered with min_overlap %g, and the weights will say %g: set data.min_overlap to %g",
            place,
            own,
            data.min_overlap,
            own,
        )


def check_data(data: DataSettings) -> str:
    """Look at the data of a configuration without loading it all; returns what there is, in words."""
    if data.scenes:
        scenes = open_data(data)
        _check_order(scenes, data)
        if data.validation:
            _check_order(open_data(data, validation=True), data, validation=True)
        return f"{len(scenes)} scenes in {data.scenes}, first one {scenes[0].width}x{scenes[0].height}"
    _check_parts(data, "train", "validation")
    if data.rendered or not data.cutouts:
        _families(data, "train")
    sprites = f"{data.classes} rendered classes with {data.views} views"
    if data.cutouts:
        atlas = build_atlas(data.model_copy(update={"rendered": False, "families": ()}), seed=0)
        folders = ", ".join(folder for _, folder in _cutout_folders(data, "train"))
        found = f"{len(atlas)} cutouts in {len(atlas.group_sizes)} groups from {folders}"
        sprites = f"{found}, {sprites}" if data.rendered else found
    if data.backgrounds:
        folders = ", ".join(folder for _, folder in _background_folders(data, "train"))
        count = len(_background_pictures(data, part="train", size=data.image_size))
        return f"{sprites}, {count} backgrounds from {folders}"
    return f"{sprites}, {data.background_count} rendered backgrounds"


def build_source(config: Config, *, device: torch.device | str = "cpu") -> SceneSource:
    """Where training reads from."""
    data, training = config.data, config.training
    if data.scenes:
        scenes = open_data(data, seed=training.seed)
        _check_order(scenes, data)
        if data.validation:
            # a wrong path and what cannot be validated on are told now and not at the first validation
            _check_order(open_data(data, validation=True), data, validation=True)
        return SceneLoader(
            scenes,
            seed=training.seed,
            batch_size=training.batch_size,
            image_size=data.image_size,
            mask_size=data.mask_size,
            buffer=data.shuffle_buffer if isinstance(scenes, Shards) else None,
            augmentation=Augmentation.of(data.augment) if data.augment else None,
        )
    _check_parts(data, "train", "validation")  # told now and not at the first validation
    return build_composer(data, seed=training.seed, atlas_seed=training.seed, device=device)


def fingerprint(source: SceneSource) -> str:
    """What training reads, in a few words by which another set is noticed: how much there is, and of what names."""
    if isinstance(source, SceneLoader):
        digest = source.scenes.info.get("sha256") if isinstance(source.scenes, ProjectFolder) else None
        return f"{len(source.scenes)} scenes" + (f" of hash {str(digest)[:12]}" if digest else "")
    if not isinstance(source, Composer):
        return ""
    names = hashlib.sha256(name_bytes("\n".join(source.names))).hexdigest()[:12]
    return f"{len(source.names)} cutouts with names of hash {names}, {len(source.backgrounds)} backgrounds"


def validation_batch(config: Config) -> SceneBatch:
    """The scenes to validate on, each once."""
    source, count = build_validation(config), config.logging.validation_scenes
    if isinstance(source, SceneLoader):
        count = min(count, len(source.scenes))
    return source.batch(0, range(count))


def build_validation(config: Config) -> SceneSource:
    """Held-out scenes, their colours as they are: other rendered looks and backgrounds; with data.split by_name the cutouts of the validation
    part; else, of folders of cutouts or scenes, other arrangements of the same."""
    data = config.data
    if data.scenes:
        if not data.validation:
            logger.warning("data.validation names no scenes: validation uses those of training, and says little")
        return SceneLoader(
            open_data(data, seed=VALIDATION_SEED, validation=True),
            seed=VALIDATION_SEED,
            batch_size=config.logging.validation_scenes,
            image_size=data.image_size,
            mask_size=data.mask_size,
        )
    if data.cutouts and data.split == "none":
        logger.warning(
            "data.split none keeps no cutout back: validation is of other scenes of the same things, and says little of others; "
            "by_name keeps a tenth of the kinds back"
        )
    smaller = data.model_copy(
        update={
            "classes": max(8, data.classes // 4),
            "background_count": max(8, data.background_count // 4),
            "appearance": 0.0,
            "prints": 0.0,
            "warps": 0.0,
            "touching": 0.0,
            "shades": 0.0,
            "degradation": 0.0,
        }
    )
    seed = VALIDATION_SEED + config.training.seed
    return build_composer(smaller, seed=seed, atlas_seed=seed, part="validation")
