"""From a configuration to objects. Nothing below this file sees a configuration."""

from __future__ import annotations

import logging
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from sas.config import Config, DataSettings, DiffusionSettings, SamplingSettings
from sas.data.atlas import Atlas
from sas.data.backgrounds import load_backgrounds, render_backgrounds
from sas.data.composer import Composer, SceneStyle
from sas.data.folders import open_scenes
from sas.data.solids import FAMILIES
from sas.data.source import Prefetcher, SceneLoader, SceneSource
from sas.diffusion import DiffusionObjective, MaskCodec
from sas.items import Corruption
from sas.models import ConcatUNet
from sas.pipeline import SASPipeline
from sas.seeding import derive_seed

logger = logging.getLogger(__name__)

VALIDATION_SEED = 1_000_000
"""Seeds of generated scenes: training below this, validation from here, test from twice this on."""


def build_model(config: Config) -> ConcatUNet:
    """The untrained network; its initial weights depend on training.seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.training.seed, "weights"))
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
        image_range=config.sampling.image_range,
    )


def build_pipeline(config: Config, model: ConcatUNet, *, model_id: str = "") -> SASPipeline:
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
        merge_disjoint=sampling.merge_disjoint,
        max_layers=sampling.max_layers,
        shared_cumulative=sampling.cumulative == "shared",
        min_overlap=config.data.min_overlap,
        model_id=model_id,
    )


def scene_style(data: DataSettings) -> SceneStyle:
    return SceneStyle(
        objects=data.objects,
        intra_class=data.intra_class,
        empty=data.empty,
        twins=data.twins,
        letterbox=data.letterbox,
    )


def build_composer(data: DataSettings, *, seed: int, atlas_seed: int, device: torch.device | str = "cpu") -> Composer:
    """A composer over the cutouts of a configuration. `atlas_seed` chooses rendered looks, `seed` the scenes."""
    if data.cutouts:
        atlas = Atlas.from_folders(data.cutouts, size=data.sprite_size)
    else:
        families = data.families or FAMILIES
        logger.info("rendering %d cutouts of %d classes", data.classes * data.views, data.classes)
        atlas = Atlas.generated(
            seed=atlas_seed, classes=data.classes, views=data.views, size=data.sprite_size, families=families
        )
    size = data.image_size * data.oversample
    backgrounds = (
        load_backgrounds(data.backgrounds, size=size)
        if data.backgrounds
        else render_backgrounds(seed=derive_seed(atlas_seed, "backgrounds"), count=data.background_count, size=size)
    )
    return Composer(
        atlas,
        backgrounds,
        seed=seed,
        image_size=data.image_size,
        mask_size=data.mask_size,
        oversample=data.oversample,
        style=scene_style(data),
        min_overlap=data.min_overlap,
        device=device,
    )


def check_data(data: DataSettings) -> str:
    """Look at the data of a configuration without loading it all; returns what there is, in words."""
    if data.scenes:
        scenes = open_scenes(data.scenes)
        return f"{len(scenes)} scenes in {data.scenes}, first one {scenes[0].width}x{scenes[0].height}"
    sprites = f"{data.classes} rendered classes with {data.views} views"
    if data.cutouts:
        atlas = Atlas.from_folders(data.cutouts, size=data.sprite_size)
        sprites = f"{len(atlas)} cutouts in {len(atlas.group_sizes)} groups from {', '.join(data.cutouts)}"
    if data.backgrounds:
        count = len(load_backgrounds(data.backgrounds, size=data.image_size))
        return f"{sprites}, {count} backgrounds from {data.backgrounds}"
    return f"{sprites}, {data.background_count} rendered backgrounds"


def build_source(config: Config, *, device: torch.device | str = "cpu") -> SceneSource:
    """Where training reads from."""
    data, training = config.data, config.training
    source: SceneSource
    if data.scenes:
        source = SceneLoader(
            open_scenes(data.scenes),
            seed=training.seed,
            batch_size=training.batch_size,
            image_size=data.image_size,
            mask_size=data.mask_size,
            workers=data.workers,
        )
    else:
        source = build_composer(data, seed=training.seed, atlas_seed=training.seed, device=device)
    return Prefetcher(source) if data.workers else source


def build_validation(config: Config) -> SceneSource:
    """Held-out scenes: other rendered looks and backgrounds; of folders of cutouts or scenes, other arrangements of the same."""
    data = config.data
    if data.scenes:
        return SceneLoader(
            open_scenes(data.scenes),
            seed=VALIDATION_SEED,
            batch_size=config.logging.validation_scenes,
            image_size=data.image_size,
            mask_size=data.mask_size,
        )
    smaller = data.model_copy(
        update={"classes": max(8, data.classes // 4), "background_count": max(8, data.background_count // 4)}
    )
    return build_composer(
        smaller, seed=VALIDATION_SEED + config.training.seed, atlas_seed=VALIDATION_SEED + config.training.seed
    )
