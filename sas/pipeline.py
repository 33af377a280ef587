"""`SASPipeline`: from images to layered results, as a diffusers pipeline."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DiffusionPipeline
from einops import rearrange
from PIL import Image
from safetensors import SafetensorError
from torch.nn import functional

from sas.arguments import LARGEST, MAX_SEED, check_arguments, check_integer, check_sizes
from sas.diffusion import MaskCodec, Sampler, in_range, scheduler_for
from sas.distributed import cpu_has_bfloat16
from sas.geometry import Geometry
from sas.io import InputError, atomic_folder, first_line, rle_encode
from sas.layerloop import LoopRules, LoopState, run_loop, start_behind
from sas.manifest import write_manifest
from sas.models.seam import Features
from sas.pictures import read_image, sha256_pixels
from sas.pretrained import (
    OWN_FILES,
    check_folder_to_save,
    check_tensors,
    file_hash,
    find_weights,
    forget_folder,
    state_hash,
    verify_weights,
)
from sas.provenance import EnsembleSettings, ModelInfo, Stop, check_noise_scale
from sas.refine import refine_soft, working_size
from sas.refine import require as require_refine
from sas.result import LayeredResult, make_preview
from sas.schedulers import check_scheduler
from sas.seeding import generator_for
from sas.storage import Precision, check_precision, store

logger = logging.getLogger(__name__)

ImageInput = str | Path | Image.Image | np.ndarray | torch.Tensor


class SASPipeline(DiffusionPipeline):
    """Takes images apart into ordered amodal layers.

    The components are a network (see `sas.models.seam`) and a diffusers scheduler; the keyword arguments are the defaults of
    sampling, and travel with the weights. Their meaning: `sas.config.SamplingSettings`.
    """

    model_cpu_offload_seq = "model"

    def __init__(
        self,
        model: Any,
        scheduler: Any,
        *,
        image_size: int = 64,
        mask_size: int = 64,
        mask_scale: float = 1.0,
        mask_centred: bool = True,
        logits: bool = False,
        image_range: str = "unit",
        num_inference_steps: int = 4,
        ensemble_size: int = 3,
        consensus: str = "medoid",
        threshold: float = 0.5,
        void_area: float = 0.0025,
        merge_disjoint: bool = True,
        max_layers: int = 8,
        shared_cumulative: bool = True,
        min_overlap: float = 0.01,
        refine: bool = False,
        stop_head: bool = False,
        stop_threshold: float = 0.5,
        stop_scale: float = 1.0,
        stop_shift: float = 0.0,
        noise_scale: float = 1.0,
        data_split: str = "",
        model_id: str = "",
    ) -> None:
        super().__init__()
        defaults = {
            "num_inference_steps": num_inference_steps,
            "ensemble_size": ensemble_size,
            "consensus": consensus,
            "threshold": threshold,
            "void_area": void_area,
            "max_layers": max_layers,
            "stop_threshold": stop_threshold,
            "noise_scale": noise_scale,
            "min_overlap": min_overlap,
            "image_range": image_range,
        }
        check_arguments(defaults)
        check_sizes(model, image_size=image_size, mask_size=mask_size)
        if isinstance(model, torch.nn.Module):
            # 8 to 24 % faster on a CPU, and what tensor cores want. Here, not when loading: another layout rounds differently,
            # and a pipeline must give what it gives after it was saved and loaded.
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.register_modules(model=model, scheduler=scheduler)
        self.register_to_config(
            image_size=image_size,
            mask_size=mask_size,
            mask_scale=mask_scale,
            mask_centred=mask_centred,
            logits=logits,
            image_range=image_range,
            num_inference_steps=num_inference_steps,
            ensemble_size=ensemble_size,
            consensus=consensus,
            threshold=threshold,
            void_area=void_area,
            merge_disjoint=merge_disjoint,
            max_layers=max_layers,
            shared_cumulative=shared_cumulative,
            min_overlap=min_overlap,
            refine=refine,
            stop_head=stop_head,
            stop_threshold=stop_threshold,
            stop_scale=stop_scale,
            stop_shift=stop_shift,
            noise_scale=noise_scale,
            data_split=data_split,
            model_id=model_id,
        )
        self._weights_sha256: tuple[str, list[tuple[int, int]]] | None = None
        self._scheduler_checked: tuple[Any, str, float, int] | None = None

    # ------------------------------------------------------------------ loading and saving

    _saved_weights: Precision = "float32"

    @classmethod
    def from_pipe(cls, pipeline: SASPipeline, **kwargs: Any) -> SASPipeline:
        """Another pipeline of the same network and scheduler, or of those that are named, as diffusers makes it."""
        # diffusers goes by the class that a signature names, and takes it for a foreign one if it names none. Without a type it would
        # turn the network, which is shared, to float32.
        network: Any = kwargs.get("model", pipeline.model)
        given = {"model": network, "dtype": _dtype(network), **kwargs}
        if "torch_dtype" in kwargs and "dtype" not in kwargs:
            del given["dtype"]
        before = torch.finfo(pipeline.dtype).bits
        made = super().from_pipe(pipeline, **given)
        if made.model is pipeline.model:
            if before < 32 and torch.finfo(pipeline.dtype).bits > before:
                pipeline._weights_sha256 = None  # see `to`
            made._weights_sha256 = pipeline._weights_sha256
        return made  # type: ignore[no-any-return]

    def to(self, *args: Any, **kwargs: Any) -> SASPipeline:
        """Move it, or change its type, as diffusers does. Half precision made wide again is no longer what the file holds."""
        before = torch.finfo(self.dtype).bits
        moved = super().to(*args, **kwargs)
        if before < 32 and torch.finfo(self.dtype).bits > before:
            self._weights_sha256 = None
        return moved  # type: ignore[no-any-return]

    @classmethod
    def from_pretrained(cls, weights: str | Path | None = None, **kwargs: Any) -> SASPipeline:  # type: ignore[override]
        """Load a pipeline: the shipped weights (nothing given), a pipeline folder, a training folder, or a hub id.

        No connection is opened unless `weights` is a hub id ("owner/name" that is no folder). The manifest of a folder is
        verified, so a damaged file is an error and never a wrong result. Other arguments go to diffusers (`dtype=`, `variant=`).
        """
        if kwargs.pop("use_safetensors", True) is not True:
            raise InputError(
                "use_safetensors must be True, got False; pickled weights can run any code and are refused"
            )
        check_arguments(kwargs)
        folder = find_weights(weights)
        if folder is None:
            try:
                pipe = super().from_pretrained(str(weights), use_safetensors=True, **kwargs)
            except OSError as error:
                offline = "local_files_only" in str(error)  # whose own words are several lines
                why = "which was not reached" if offline else f"which says: {first_line(error)}"
                raise InputError(
                    f"weights {weights} is no folder here, and no pipeline of that name can be had from the hub, {why}; "
                    "check the path, or the hub id and the connection"
                ) from error
            pipe.register_to_config(model_id=str(weights))
            return pipe
        verify_weights(folder)
        kwargs = {"local_files_only": True, **kwargs}
        try:
            pipe = super().from_pretrained(str(folder), use_safetensors=True, **kwargs)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
            raise InputError(
                f"weights {folder} do not load into this architecture ({first_line(error)}); "
                "use the folder as it was saved, with the version of sas that made it"
            ) from error
        if not isinstance(pipe, cls):
            raise InputError(
                f"weights {folder} must hold a SASPipeline, got {type(pipe).__name__}; pass a folder saved by sas"
            )
        if "model" not in kwargs:
            check_tensors(folder, pipe.model)
            pipe._weights_sha256 = (file_hash(folder), _versions(pipe.model))
        if not pipe.config.model_id:
            pipe.register_to_config(model_id=folder.name)
        return pipe

    def save_pretrained(
        self, save_directory: str | Path, *, saved_weights: Precision | None = None, **kwargs: Any
    ) -> None:
        """Write the pipeline folder (safetensors, configuration, defaults, MANIFEST.json); it appears when it is complete. An earlier pipeline there
        is replaced, and other files beside it stay, such as a model card.

        saved_weights: "float32" (the default) keeps them as they are, "float16" and "int8" round them (`sas.storage`); the pipeline in memory
        stays.
        """
        precision = saved_weights or self._saved_weights
        check_precision(precision, self.model)
        if kwargs.pop("safe_serialization", True) is not True:
            raise InputError("safe_serialization must be True, got False; pipelines are saved as safetensors only")
        push, repo_id = kwargs.pop("push_to_hub", False), kwargs.pop("repo_id", Path(save_directory).name)
        upload = {
            name: kwargs.pop(name) for name in ("commit_message", "private", "token", "create_pr") if name in kwargs
        }
        if upload and not push:
            raise InputError(f"{', '.join(upload)} have no effect without push_to_hub=True; pass it, or leave them out")
        check_folder_to_save(Path(save_directory), name="save_directory")
        with atomic_folder(Path(save_directory), own=OWN_FILES) as folder:
            super().save_pretrained(str(folder), safe_serialization=True, **kwargs)
            for file in folder.rglob("*.safetensors"):
                store(file, precision)
            mode = (folder / "model_index.json").stat().st_mode
            for file in folder.rglob("*.safetensors"):
                file.chmod(mode)  # safetensors lets nobody but the owner read
            for file in folder.rglob("*.json"):
                forget_folder(file)
            write_manifest(folder)
        if push:
            self._saved_weights = precision  # it saves once more
            try:
                self.push_to_hub(repo_id, variant=kwargs.get("variant"), **upload)
            finally:
                self._saved_weights = "float32"

    @property
    def device(self) -> torch.device:
        """Where the network is; the CPU if it has no tensors. Unlike diffusers', asks nothing of it beyond `torch.nn.Module`."""
        first = next(itertools.chain(self.model.parameters(), self.model.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the network; float32 if it has no parameters."""
        return _dtype(self.model)

    @property
    def model_info(self) -> ModelInfo:
        """Name of the weights, and their SHA-256: of the file if they were loaded from a folder and not changed since, else of the tensors in
        memory. Changes through `.data`, as `EMAModel.copy_to` makes them, are not seen: set `model_id` to another name after them. Of weights
        that are offloaded the file's counts, "" if there is none."""
        known = self._weights_sha256
        if any(parameter.is_meta for parameter in self.model.parameters()):
            return ModelInfo(id=self.config.model_id, sha256=known[0] if known else "")
        same = known is not None and known[1] == _versions(self.model)
        return ModelInfo(id=self.config.model_id, sha256=known[0] if known and same else state_hash(self.model))

    # ------------------------------------------------------------------ sampling

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Sequence[ImageInput],
        *,
        ensemble_size: int | None = None,
        num_inference_steps: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        max_layers: int | None = None,
        mode: Literal["diffusion", "marginal"] = "diffusion",
        consensus: Literal["medoid", "mean"] | None = None,
        cumulative: Literal["shared", "member"] | None = None,
        stop_threshold: float | None = None,
        noise_scale: float | None = None,
        batch_size: int = 64,
        initial_layers: np.ndarray | None = None,
        refine: bool | None = None,
        output_type: Literal["result", "np", "pt", "pil"] = "result",
        return_dict: bool = True,
        callback_on_step_end: Callable[[SASPipeline, int, int, dict[str, Any]], dict[str, Any]] | None = None,
    ) -> Any:
        """Take one image, or a list of them, apart.

        image: a path, a PIL image, NumPy uint8 or float in [0, 1] (H, W, 3), or torch (3, H, W); or a list of these, of any sizes.
        ensemble_size: members. num_inference_steps: denoising steps a layer (1 in marginal mode).
        seed: integer that names all noise, 0 if nothing is given; noise depends on (seed, pixels, pass of the loop, member) alone.
        generator: one integer is drawn from it for each image and takes the seed's place.
        max_layers: layers at most. mode: "diffusion" draws samples; "marginal" takes one step from noise, which gives the mean.
        cumulative: members share the consensus as their cumulative mask, or each "member" keeps its own.
        stop_threshold: a layer is drawn if the weights' probability that nothing is left is at most this, in (0, 1]: lower values draw fewer.
        noise_scale: standard deviation of the noise that members begin with, in [0, 2]; 1 is that of training. With less they differ less
        and their consensus is better, with 0 all are one.
        batch_size: most masks (images x members) in one call of the network; memory grows with it, results change by rounding only.
        initial_layers: bool (K, H, W) masks of layers already known, nearest first (for one image); sampling goes on behind them. What is drawn
        next and lies apart from the last of them joins it. The result has them on the mask grid, and refined masks exactly as given.
        refine: masks at the picture's size follow its edges where they are seen (see `sas.refine`).
        output_type: "result" gives a LayeredResult; "np", "pt", "pil" give its layer masks (K, H, W) as bool arrays, bool tensors
        or lists of 8-bit pictures. return_dict=False: a tuple around it.
        callback_on_step_end: as in diffusers, `callback(pipe, step, timestep, {"latents": x_t})`, may return changed latents.

        Returns a LayeredResult for one image, a list of them for a list.
        """
        # 1. Inputs and defaults.
        settings = self._settings(ensemble_size, num_inference_steps, seed, mode, consensus, noise_scale)
        layers = self.config.max_layers if max_layers is None else max_layers
        self._check_inputs(settings, layers, seed, generator, batch_size, cumulative, output_type)
        single = not isinstance(image, list | tuple)
        sources: list[Any] = [image] if single else list(image)  # type: ignore[arg-type]
        if initial_layers is not None and len(sources) != 1:
            raise ValueError(
                f"initial_layers needs one image, got {len(sources)}: call the pipeline once for each image"
            )
        images = [read_image(source, name="image" if single else f"image[{i}]") for i, source in enumerate(sources)]
        seeds = [_drawn_seed(generator) if generator is not None else settings.seed for _ in images]
        rules = replace(
            self.rules,
            consensus=settings.consensus,
            max_layers=layers,
            marginal=settings.mode == "marginal",
            shared=self.config.shared_cumulative if cumulative is None else cumulative == "shared",
            stop_threshold=self.resolve_stop_threshold(stop_threshold),
        )

        if not isinstance(refine, bool | None):
            raise ValueError(f"refine must be True, False or None, got {refine!r}: pass one of them")
        sharpen = self.config.refine if refine is None else refine
        if sharpen:
            require_refine()  # before the work, not after it

        # 2. As many images at once as fit the network's batch.
        results: list[LayeredResult] = []
        together = max(1, batch_size // settings.members)
        with self.progress_bar(total=len(images)) as bar:
            for start in range(0, len(images), together):
                part = slice(start, start + together)
                named = [replace(settings, seed=s) for s in seeds[part]]
                try:
                    found = self._take_apart(
                        images[part], sources[part], named, rules, batch_size, initial_layers, callback_on_step_end
                    )
                finally:
                    self.maybe_free_model_hooks()  # of `enable_model_cpu_offload`
                if sharpen:
                    found = [_refined(r, i, initial_layers) for r, i in zip(found, images[part], strict=True)]
                results += found
                bar.update(len(images[part]))

        # 3. In the form that was asked for.
        output = [_as_type(result, output_type) for result in results]
        answer = output[0] if single else output
        return answer if return_dict else (answer,)

    def _take_apart(
        self,
        images: list[np.ndarray],
        sources: list[Any],
        settings: list[EnsembleSettings],
        rules: LoopRules,
        batch_size: int,
        initial_layers: np.ndarray | None,
        callback: Callable[..., dict[str, Any]] | None,
    ) -> list[LayeredResult]:
        """The layer loop over some images at once."""
        config = self.config
        geometries = [
            Geometry.fit(height=i.shape[0], width=i.shape[1], size=config.image_size, mask_size=config.mask_size)
            for i in images
        ]
        pixels = torch.stack([g.to_model(i) for g, i in zip(geometries, images, strict=True)])
        features = self.model.encode(in_range(pixels, config.image_range).to(self._execution_device, self.dtype))
        shown = torch.from_numpy(np.stack([g.known() for g in geometries]))[:, None]
        frame = None if bool(shown.all()) else shown.to(self._execution_device)
        hashes = [sha256_pixels(i) for i in images]
        state = LoopState.start(
            count=len(images),
            ensemble_size=settings[0].members,
            mask_size=config.mask_size,
            device=self._execution_device,
        )
        if initial_layers is not None:
            state = start_behind(state, initial_layers, geometries[0], rules)

        def draw(state: LoopState, rows: list[int]) -> torch.Tensor:
            members = state.cumulative.shape[1]
            generators = [
                generator_for(settings[state.image[row]].seed, hashes[state.image[row]], state.passes[row], member)
                for row in rows
                for member in range(members)
            ]
            picture = torch.tensor(
                [state.image[row] for row in rows for _ in range(members)], device=state.cumulative.device
            )
            cumulative = rearrange(state.cumulative[rows], "b e 1 h w -> (b e) 1 h w")
            soft = self._draw(features, cumulative, generators, picture, frame, settings[0], batch_size, callback)
            return rearrange(soft, "(b e) c h w -> b e c h w", e=members)

        state = run_loop(state, draw, rules)
        info = self.model_info
        return [
            self._result(
                state,
                row,
                image=images[row],
                source=sources[row],
                geometry=geometries[row],
                settings=settings[row],
                info=info,
                threshold=rules.stop_threshold,
            )
            for row in range(len(images))
        ]

    def _draw(
        self,
        features: Features,
        cumulative: torch.Tensor,
        generators: list[torch.Generator],
        picture: torch.Tensor,
        frame: torch.Tensor | None,
        settings: EnsembleSettings,
        batch_size: int,
        callback: Callable[..., dict[str, Any]] | None,
    ) -> torch.Tensor:
        """Soft masks; when memory runs out, again with half as many rows a call."""

        def on_step(index: int, t: torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
            changed = callback(self, index, int(t), {"latents": x_t}) if callback is not None else None
            if changed is None:
                return x_t
            if not isinstance(changed, dict):
                raise ValueError(
                    f'callback_on_step_end must return None or a dict, got {type(changed).__name__}: return {{"latents": ...}}'
                )
            latents = changed.get("latents", x_t)
            if not isinstance(latents, torch.Tensor) or latents.shape != x_t.shape:
                got = tuple(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
                raise ValueError(
                    f"callback_on_step_end must return latents of shape {tuple(x_t.shape)}, got {got}: change those that it is given"
                )
            return latents

        rows = min(batch_size, len(generators))
        while True:
            sampler = self.sampler(
                steps=settings.steps,
                rows=rows,
                on_step=on_step if callback is not None else None,
                noise_scale=settings.noise_scale,
            )
            try:
                # A retry must draw the same noise, so each attempt starts from copies of the generators.
                fresh = [g.clone_state() for g in generators]
                return sampler(self.model, features, cumulative, fresh, picture=picture, frame=frame)
            except (RuntimeError, MemoryError) as error:
                if rows == 1 or not out_of_memory(error):
                    raise
                rows = rows // 2
                logger.warning(
                    "out of memory: going on with %d masks a call; pass batch_size=%d to start there", rows, rows
                )

    def _result(
        self,
        state: LoopState,
        row: int,
        *,
        image: np.ndarray,
        source: Any,
        geometry: Geometry,
        settings: EnsembleSettings,
        info: ModelInfo,
        threshold: float,
    ) -> LayeredResult:
        layers, size = state.layers[row], self.config.mask_size
        reason = state.stop[row]
        if reason is None:
            raise RuntimeError("the layer loop ended with a state that goes on")

        def stacked(field: str, *lead: int, dtype: torch.dtype) -> np.ndarray:
            tensors = [getattr(layer, field) for layer in layers]
            empty = torch.zeros(0, *lead, size, size)
            return (torch.stack(tensors) if tensors else empty).to("cpu", dtype).numpy()

        return LayeredResult(
            preview=make_preview(image),
            geometry=geometry,
            members=stacked("members", settings.members, dtype=torch.bool),
            masks=stacked("mask", dtype=torch.bool),
            probability=stacked("probability", dtype=torch.float32),
            uncertainty=stacked("uncertainty", dtype=torch.float32),
            stop=Stop(
                reason=reason,
                votes=state.votes[row],
                probability=state.nothing[row],
                threshold=threshold if self.config.stop_head else None,
            ),
            settings=settings,
            model=info,
            file=Path(source).name if isinstance(source, str | Path) else "",
            min_overlap=self.config.min_overlap,
        )

    # ------------------------------------------------------------------ settings and checks

    @property
    def codec(self) -> MaskCodec:
        return MaskCodec(scale=self.config.mask_scale, centred=self.config.mask_centred)

    def sampler(
        self,
        *,
        steps: int,
        rows: int,
        on_step: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        noise_scale: float | None = None,
    ) -> Sampler:
        """The reverse process with this pipeline's scheduler and codes; see `sas.diffusion.Sampler`. noise_scale: None for that of the weights."""
        config = self.config
        return Sampler(
            scheduler=self.scheduler,
            codec=self.codec,
            logits=config.logits,
            steps=steps,
            rows=rows,
            stop=(config.stop_scale, config.stop_shift) if config.stop_head else None,
            on_step=on_step,
            noise_scale=config.noise_scale if noise_scale is None else noise_scale,
        )

    def _settings(
        self,
        ensemble_size: int | None,
        num_inference_steps: int | None,
        seed: int | None,
        mode: str,
        consensus: str | None,
        noise_scale: float | None,
    ) -> EnsembleSettings:
        config = self.config
        if mode not in ("diffusion", "marginal"):
            raise ValueError(f'mode must be "diffusion" or "marginal", got {mode!r}: choose one of them')
        if mode == "marginal" and num_inference_steps not in (None, 1):
            raise ValueError(
                f'num_inference_steps must be 1 in mode "marginal", got {num_inference_steps}: leave it out or use mode="diffusion"'
            )
        if consensus is not None:
            check_arguments({"consensus": consensus})
        members = config.ensemble_size if ensemble_size is None else ensemble_size
        steps = config.num_inference_steps if num_inference_steps is None else num_inference_steps
        steps = check_integer("num_inference_steps", steps, low=1, high=self.scheduler.config.num_train_timesteps)
        return EnsembleSettings(
            members=check_integer("ensemble_size", members, low=1, high=LARGEST["ensemble_size"]),
            steps=1 if mode == "marginal" else steps,
            seed=check_integer("seed", 0 if seed is None else seed, low=0, high=MAX_SEED),
            consensus=config.consensus if consensus is None else consensus,  # type: ignore[arg-type]
            mode=mode,  # type: ignore[arg-type]
            noise_scale=self.resolve_noise_scale(noise_scale),
        )

    def resolve_noise_scale(self, value: float | None = None) -> float:
        """`value`, or that of the weights for None. ValueError unless it lies in [0, 2]."""
        if value is None:
            return float(self.config.noise_scale)
        check_noise_scale(value, name="noise_scale")
        return float(value)

    def resolve_stop_threshold(self, value: float | None = None) -> float:
        """`value`, or the threshold in the weights for None. ValueError unless it lies in (0, 1] and the weights have a stop output."""
        if value is None:
            return float(self.config.stop_threshold)
        check_arguments({"stop_threshold": value})
        if not self.config.stop_head:
            raise ValueError(
                f"stop_threshold has no effect on weights without a stop output, got {value!r}: leave it out"
            )
        return float(value)

    @property
    def rules(self) -> LoopRules:
        """How a layer is judged, by the defaults in the weights."""
        config = self.config
        return LoopRules(
            threshold=config.threshold,
            void_area=config.void_area,
            consensus=config.consensus,
            merge_disjoint=config.merge_disjoint,
            max_layers=config.max_layers,
            shared=config.shared_cumulative,
            stop_threshold=config.stop_threshold,
        )

    def _check_inputs(
        self,
        settings: EnsembleSettings,
        max_layers: int,
        seed: int | None,
        generator: torch.Generator | None,
        batch_size: int,
        cumulative: str | None,
        output_type: str,
    ) -> None:
        check_arguments({"max_layers": max_layers, "batch_size": batch_size})
        if seed is not None and generator is not None:
            raise ValueError(
                f"seed and generator exclude each other, got seed={seed} and a generator: pass one of them"
            )
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ValueError(
                f"generator must be one torch.Generator, got {type(generator).__name__}: "
                "a seed for each image is drawn from it, so a list is not needed"
            )
        if cumulative not in (None, "shared", "member"):
            raise ValueError(f'cumulative must be "shared" or "member", got {cumulative!r}: choose one of them')
        if output_type not in ("result", "np", "pt", "pil"):
            raise ValueError(
                f'output_type must be "result", "np", "pt" or "pil", got {output_type!r}: choose one of them'
            )
        prediction = self.scheduler.config.get("prediction_type")
        if self.config.logits and prediction != "sample":
            raise ValueError(
                f'scheduler must have prediction_type "sample" for these weights, got {prediction!r}: '
                "make it with from_config(pipe.scheduler.config)"
            )
        self._check_scheduler(settings.steps)
        if settings.mode == "marginal" and prediction == "epsilon":
            raise ValueError(
                'mode "marginal" needs weights that predict x_0 or v, got prediction_type "epsilon": use mode="diffusion"'
            )
        native = self.dtype == torch.float32 or (self.dtype == torch.bfloat16 and cpu_has_bfloat16())
        if self._execution_device.type == "cpu" and not native:
            why = "is not what it was trained in" if self.dtype == torch.float64 else "is emulated there"
            raise ValueError(
                f"dtype must be float32 on this CPU, got {self.dtype}, which {why}: use pipe.to(torch.float32)"
            )

    def _check_scheduler(self, steps: int) -> None:
        """`check_scheduler`, once for each scheduler, configuration and number of steps in a row: it takes milliseconds."""
        scale = self.codec.scale
        asked = (self.scheduler, self.scheduler.to_json_string(), scale, steps)
        if asked != self._scheduler_checked:
            check_scheduler(lambda: scheduler_for(self.scheduler, self.codec), scale=scale, steps=steps)
            self._scheduler_checked = asked


def _refined(result: LayeredResult, image: np.ndarray, given: np.ndarray | None) -> LayeredResult:
    """The result with its consensus masks refined on the image, in the input frame; layers that were given stay as they were.

    The masks and not the probability: what the rules of the layer loop decided (void members, merged layers) stays decided. Large pictures
    are refined at a smaller size and brought to their own one layer at a time.
    """
    geometry = result.geometry
    height, width = working_size(geometry.height, geometry.width)
    small = replace(geometry, height=height, width=width)
    if small != geometry:
        image = np.asarray(Image.fromarray(image).resize((small.width, small.height), Image.Resampling.BOX))
    maps = small.to_input(result.masks.astype(np.float32))
    soft = refine_soft(maps, image, cell=max(small.height, small.width) / geometry.mask_size)
    masks = []
    for k, layer in enumerate(soft):
        if small != geometry:
            row = torch.from_numpy(layer)[None, None]
            layer = functional.interpolate(row, size=(geometry.height, geometry.width), mode="bilinear")[0, 0].numpy()
        mask = layer > 0.5
        if given is not None and k < len(given):
            joined = result.masks[k] & ~geometry.masks_to_model(given[k : k + 1])[0]
            near = geometry.to_input(joined[None].astype(np.float32))[0] > 0
            mask = given[k] | (mask & near)
        masks.append(rle_encode(mask))
    return replace(result, refined=tuple(masks))


def _dtype(model: torch.nn.Module) -> torch.dtype:
    """Floating type of a network; float32 if it has no parameters."""
    kinds = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return next(kinds, torch.float32)


def _versions(model: torch.nn.Module) -> list[tuple[int, int]]:
    """What changes when a tensor of the network is replaced or written to, but not when it is moved or its precision changes."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return [(id(tensor), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU, or on a CPU or one of Apple's GPUs, whose allocators have no exception of their own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and any(
            words in str(error) for words in ("can't allocate memory", "not enough memory", "MPS backend out of memory")
        )
    )


def _as_type(result: LayeredResult, output_type: str) -> Any:
    if output_type == "result":
        return result
    masks = result.masks_full()
    if output_type == "np":
        return masks
    if output_type == "pt":
        return torch.from_numpy(masks)
    return [Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks]


def _drawn_seed(generator: torch.Generator) -> int:
    return int(torch.randint(0, 2**62, (1,), generator=generator, device=generator.device))
