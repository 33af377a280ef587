"""Diffusion of masks: their float code, the training objective, and the reverse process.

Notation as in DDPM (Ho et al. 2020) and Improved DDPM (Nichol & Dhariwal 2021): x_0 the coded mask, x_t its noised version,
a_t the cumulative product of alphas.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from diffusers import SchedulerMixin
from einops import rearrange, reduce
from torch.nn import functional

from sas.items import Corruption, Items, layer_items
from sas.models.seam import Features, MaskDenoiser, select_rows
from sas.scene import SceneBatch
from sas.schedulers import set_steps, takes_variance
from sas.seeding import Keys


@dataclass(frozen=True)
class MaskCodec:
    """Float code of a mask: {-scale, scale} if centred, else {0, scale}.

    A small scale lets the noise destroy the mask at most time steps (analog bits, Chen et al. 2023); 1 is the paper's.
    """

    scale: float = 1.0
    centred: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 10:
            raise ValueError(f"scale must lie in (0, 10], got {self.scale}: pass 1 for the paper's code")

    def encode(self, soft: torch.Tensor) -> torch.Tensor:
        """bool or float in [0, 1] -> float code."""
        values = soft.float()
        return (2 * values - 1) * self.scale if self.centred else values * self.scale

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        """Float code -> float in [0, 1], clipped."""
        values = code / self.scale
        return ((values + 1) / 2 if self.centred else values).clamp(0, 1)


def condition(cumulative: torch.Tensor) -> torch.Tensor:
    """Cumulative mask as the network sees it, bool (M, 1, h, w) -> float in {-1, 1}. It is never noised."""
    return cumulative.float() * 2 - 1


def in_range(image: torch.Tensor, image_range: Literal["unit", "bytes"]) -> torch.Tensor:
    """Image in [-1, 1] as the network takes it: as it is, or as 0..255 (a quirk of the SAS authors' code)."""
    return (image + 1) * 127.5 if image_range == "bytes" else image


class DiffusionObjective:
    """What training minimises; the trainer knows only `loss`.

    scheduler: any diffusers scheduler with `alphas_cumprod`; its prediction_type says what the network predicts.
    loss_type: "mse" on that prediction, or "bce_dice" on x_0 logits (prediction_type "sample").
    learned_variance: the second output channel is a learned-range variance, trained by the variational bound.
    high_noise_bias: 0 draws t uniformly; larger values draw it with density proportional to t^bias.
    layers, corruption: see `sas.items.layer_items`. image_range: see `in_range`.
    stop_weight: weight of the cross-entropy of the second output channel, a logit that the target is empty; 0: no such channel.
    layers_weight: weight of the loss of all layers guessed at once from the picture, for networks that do (`SplitDenoiser.image_unet`).
    rollout: share of pictures whose cumulative masks are what the network itself has drawn so far, in one step a layer from noise of
    standard deviation `noise_scale` (with averaged weights, where `loss` is given a network that has them). energy_weight: weight of an
    energy score of `energy_members` one-step samples, which keeps them diverse. self_alignment: share of items that see what sampling
    shows the network after its first step, its own guess under the noise that it began with, of standard deviation `noise_scale` too
    (self-aligned denoising, Ji et al. 2023). These three need x_0 logits.
    """

    def __init__(
        self,
        scheduler: SchedulerMixin,
        *,
        codec: MaskCodec,
        loss_type: Literal["mse", "bce_dice"] = "mse",
        learned_variance: bool = False,
        high_noise_bias: float = 0.0,
        layers: Literal["all"] | int = "all",
        corruption: Corruption | None = None,
        image_range: Literal["unit", "bytes"] = "unit",
        stop_weight: float = 0.0,
        layers_weight: float = 0.0,
        rollout: float = 0.0,
        energy_weight: float = 0.0,
        energy_members: int = 4,
        self_alignment: float = 0.0,
        noise_scale: float = 1.0,
    ) -> None:
        self.prediction_type: str = scheduler.config.prediction_type
        if (rollout or energy_weight or self_alignment) and loss_type != "bce_dice":
            raise ValueError(
                f'rollout, energy_weight and self_alignment need loss_type "bce_dice", got {loss_type!r}: '
                "their one-step samples are read from x_0 logits; change it or set all three to 0"
            )
        if loss_type == "bce_dice" and self.prediction_type != "sample":
            raise ValueError(
                f'loss_type "bce_dice" needs prediction_type "sample", got {self.prediction_type!r}: '
                'its network predicts x_0 logits; set prediction_type or use loss_type "mse"'
            )
        self.alphas_cumprod: torch.Tensor = scheduler.alphas_cumprod
        self.betas: torch.Tensor = scheduler.betas
        self.codec = codec
        self.loss_type = loss_type
        self.learned_variance = learned_variance
        self.high_noise_bias = high_noise_bias
        self.layers = layers
        self.corruption = corruption
        self.image_range = image_range
        self.stop_weight = stop_weight
        self.layers_weight = layers_weight
        self.rollout = rollout
        self.energy_weight, self.energy_members = energy_weight, energy_members
        self.self_alignment, self.noise_scale = self_alignment, noise_scale

    def loss(
        self, model: MaskDenoiser, batch: SceneBatch, keys: Keys, *, averaged: MaskDenoiser | None = None
    ) -> dict[str, torch.Tensor]:
        """Losses of each training item of a batch: "loss" (what to minimise) and its parts, each float (M,).

        averaged: the network with averaged weights, those that will sample, which draws the roll-out; None: `model` draws it.
        """
        items = layer_items(batch, keys, layers=self.layers, corruption=self.corruption)
        image = in_range(batch.image, self.image_range)
        encoded = model.encode(image)
        if self.rollout:
            if averaged is None:
                items = self._with_own_cumulative(model, encoded, image, batch.frame, items, keys)
                torch.clear_autocast_cache()  # it may hold weights in half precision that know of no gradient
            else:
                items = self._with_own_cumulative(averaged, None, image, batch.frame, items, keys)
        features = select_rows(encoded, items.picture)
        x_0, noise, timestep = self._draw(items, keys)
        x_t = self.add_noise(x_0, noise, timestep)
        if self.self_alignment:
            x_t, timestep = self._with_own_guess(model, features, items, noise, x_t, timestep, keys)
            torch.clear_autocast_cache()
        output = model(x_t, timestep, condition(items.cumulative), features).float()
        if self.loss_type == "bce_dice":
            parts = _bce_dice(output[:, :1], items.target, items.known)
        else:
            target = {"epsilon": noise, "sample": x_0, "v_prediction": self._velocity(x_0, noise, timestep)}
            squared = (output[:, :1] - target[self.prediction_type]) ** 2
            parts = {"mse": _mean_where(squared, items.known)}
        if self.learned_variance:
            parts["vlb"] = self._variational_bound(x_0, x_t, timestep, output, items.known)
        if self.stop_weight:
            empty = (~items.target.flatten(1).any(dim=1)).float()
            logit = reduce(output[:, 1], "m h w -> m", "mean")
            stop = self.stop_weight * functional.binary_cross_entropy_with_logits(logit, empty, reduction="none")
            # A picture that is not complete has no last layer: its others alone would teach never to stop.
            parts["stop"] = stop if items.complete is None else stop * items.complete
        if self.layers_weight:
            guess = _leaves(encoded)[-1]
            parts["layers"] = self.layers_weight * _layers_at_once(guess, batch)[items.picture]
        if self.energy_weight:
            parts["energy"] = self.energy_weight * self._energy_score(model, features, items, keys)
        if items.taught is not None:
            parts = {name: value * items.taught for name, value in parts.items()}
        return {"loss": torch.stack(list(parts.values())).sum(dim=0), **parts}

    def _one_step(
        self, model: MaskDenoiser, features: Features, cumulative: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Soft masks (M, 1, h, w) drawn in one step from the last time step."""
        last = torch.full((len(noise),), len(self.alphas_cumprod) - 1, device=noise.device)
        x_t = self.add_noise(torch.zeros_like(noise), noise, last)
        return model(x_t, last, condition(cumulative), features)[:, :1].float().sigmoid()

    @torch.no_grad()
    def _with_own_cumulative(
        self,
        model: MaskDenoiser,
        encoded: Features | None,
        image: torch.Tensor,
        frame: torch.Tensor,
        items: Items,
        keys: Keys,
    ) -> Items:
        """The items of some pictures with the cumulative mask that the network, drawing layer after layer by itself, would stand at."""
        chosen = keys.uniform("rollout") < self.rollout
        last = torch.zeros(len(keys), dtype=torch.int64).scatter_reduce(
            0, items.picture.cpu(), items.layer.cpu(), "amax"
        )
        depth = last * chosen
        drawing = torch.where(depth > 0)[0]
        places = drawing.to(image.device)
        if encoded is not None:
            features = select_rows(encoded, places)
        elif len(drawing):
            features = model.encode(image[places])
        height, width = items.target.shape[-2:]
        found = torch.zeros(len(keys), 1, height, width, dtype=torch.bool, device=items.target.device)
        stands = [found]
        for layer in range(int(depth.max())):
            noise = keys.normal(f"rollout-{layer}", 1, height, width) * self.noise_scale
            at = torch.where(depth[drawing] > layer)[0]
            rows = drawing[at].to(found.device)
            some = select_rows(features, at.to(found.device))
            drawn = self._one_step(model, some, found[rows], noise[drawing[at]].to(found.device)) > 0.5
            found = found.index_copy(0, rows, found[rows] | drawn & frame[rows])
            stands.append(found)
        own = torch.stack(stands)[items.layer.clamp(max=len(stands) - 1), items.picture]
        mixed = torch.where(chosen.to(own.device)[items.picture][:, None, None, None], own, items.cumulative)
        return replace(items, cumulative=mixed)

    @torch.no_grad()
    def _with_own_guess(
        self,
        model: MaskDenoiser,
        features: Features,
        items: Items,
        noise: torch.Tensor,
        x_t: torch.Tensor,
        timestep: torch.Tensor,
        keys: Keys,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x_t and t of all items; those of the items chosen as DDIM reaches them from noise, with t drawn uniformly."""
        item_keys = keys.items(items.picture, items.slot)
        rows = torch.where(item_keys.uniform("self-alignment") < self.self_alignment)[0].to(x_t.device)
        if not len(rows):
            return x_t, timestep
        noise = noise[rows] * self.noise_scale
        soft = self._one_step(model, select_rows(features, rows), items.cumulative[rows], noise)
        even = (item_keys.uniform("self-alignment-time") * len(self.alphas_cumprod)).long().to(timestep.device)[rows]
        shown = self.add_noise(self.codec.encode(soft * items.frame[rows]), noise, even)
        return x_t.index_copy(0, rows, shown), timestep.index_copy(0, rows, even)

    def _energy_score(self, model: MaskDenoiser, features: Features, items: Items, keys: Keys) -> torch.Tensor:
        """E |s - y| - E |s - s'| / 2 over one-step samples s (Gneiting & Raftery 2007), per item; smallest for the true distribution.

        |.| is the root mean square over known pixels; the second term is the unbiased mean over pairs.
        """
        members = self.energy_members
        rows = torch.arange(len(items), device=items.target.device).repeat_interleave(members)
        noise = keys.items(items.picture, items.slot).normal("energy", members, *items.target.shape[1:])
        soft = self._one_step(
            model, select_rows(features, rows), items.cumulative[rows], noise.flatten(0, 1).to(rows.device)
        )
        samples = rearrange(soft, "(m e) 1 h w -> m e h w", e=members)
        known = items.known.float()

        def distance(difference: torch.Tensor) -> torch.Tensor:
            squared = reduce(difference**2 * known, "m e h w -> m e", "sum")
            return (squared / reduce(known, "m 1 h w -> m 1", "sum").clamp(min=1) + 1e-6).sqrt()

        pairs = [distance(samples - samples.roll(shift, dims=1)).mean(dim=1) for shift in range(1, members)]
        return distance(samples - items.target.float()).mean(dim=1) - torch.stack(pairs).mean(dim=0) / 2

    def add_noise(self, x_0: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Sample of q(x_t | x_0) = N(sqrt(a_t) x_0, (1 - a_t) I); all (M, 1, h, w), timestep (M,)."""
        a = self._at(self.alphas_cumprod, timestep)
        return a.sqrt() * x_0 + (1 - a).sqrt() * noise

    def _draw(self, items: Items, keys: Keys) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Coded target, noise and time step of each item, keyed by the item."""
        item_keys = keys.items(items.picture, items.slot)
        x_0 = self.codec.encode(items.target & items.frame)
        if items.complete is not None:
            # What nobody knows must not show through the noise as "no object here": it gets the code of one half.
            hidden = ~items.known & items.frame & ~rearrange(items.complete, "m -> m 1 1 1")
            x_0 = torch.where(hidden, self.codec.encode(torch.full_like(x_0, 0.5)), x_0)
        noise = item_keys.normal("noise", *x_0.shape[1:]).to(x_0.device)
        uniform = item_keys.uniform("time")
        timestep = (uniform ** (1 / (1 + self.high_noise_bias)) * len(self.alphas_cumprod)).long()
        return x_0, noise, timestep.clamp(max=len(self.alphas_cumprod) - 1).to(x_0.device)

    def _velocity(self, x_0: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """v = sqrt(a_t) noise - sqrt(1 - a_t) x_0 (Salimans & Ho 2022)."""
        a = self._at(self.alphas_cumprod, timestep)
        return a.sqrt() * noise - (1 - a).sqrt() * x_0

    def _variational_bound(
        self, x_0: torch.Tensor, x_t: torch.Tensor, timestep: torch.Tensor, output: torch.Tensor, known: torch.Tensor
    ) -> torch.Tensor:
        """L_vlb in bits a pixel for the learned-range variance; the mean is held fixed (Improved DDPM, section 3.1)."""
        a = self._at(self.alphas_cumprod, timestep)
        previous = torch.where(timestep > 0, timestep - 1, 0)
        a_previous = torch.where(timestep[:, None, None, None] > 0, self._at(self.alphas_cumprod, previous), 1.0)
        beta = self._at(self.betas, timestep)
        # q(x_{t-1} | x_t, x_0), eqs. (6) and (7) of DDPM.
        # At t = 0 the mean is x_0 itself; 1 - a has too few digits left there to say so.
        weight_0 = torch.where(timestep[:, None, None, None] > 0, beta * a_previous.sqrt() / (1 - a), 1.0)
        weight_t = (1 - a_previous) * (1 - beta).sqrt() / (1 - a)
        smallest = self._at(self.betas, torch.ones_like(timestep)) * (1 - self.alphas_cumprod[0].item())
        smallest = smallest / (1 - self.alphas_cumprod[1].item())
        posterior_log = torch.where(
            timestep[:, None, None, None] > 0, beta * (1 - a_previous) / (1 - a), smallest
        ).log()
        fraction = (output[:, 1:2] + 1) / 2
        model_log = fraction * beta.log() + (1 - fraction) * posterior_log  # eq. (15) of Improved DDPM
        predicted = output[:, :1].detach()
        if self.prediction_type == "epsilon":
            predicted = (x_t - (1 - a).sqrt() * predicted) / a.sqrt()
        elif self.prediction_type == "v_prediction":
            predicted = a.sqrt() * x_t - (1 - a).sqrt() * predicted
        true_mean = weight_0 * x_0 + weight_t * x_t
        model_mean = weight_0 * predicted + weight_t * x_t
        divergence = 0.5 * (
            model_log
            - posterior_log
            - 1
            + (posterior_log - model_log).exp()
            + (true_mean - model_mean) ** 2 * (-model_log).exp()
        )
        likelihood = -_discretized_log_likelihood(x_0, model_mean, 0.5 * model_log)
        terms = torch.where(timestep[:, None, None, None] > 0, divergence, likelihood)
        return _mean_where(terms, known) / math.log(2)

    def _at(self, values: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Schedule values at each item's time, shaped to broadcast over masks."""
        return rearrange(values.to(timestep.device)[timestep].float(), "m -> m 1 1 1")


def _mean_where(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Mean over the known pixels of each item: (M, 1, h, w) -> (M,)."""
    weight = known.float()
    return reduce(values * weight, "m 1 h w -> m", "sum") / reduce(weight, "m 1 h w -> m", "sum").clamp(min=1)


def _bce_dice(logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> dict[str, torch.Tensor]:
    """Cross-entropy, and soft Dice (Milletari et al. 2016) with one pixel of smoothing, so that an empty target has a gradient."""
    truth = target.float()
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    soft, weight = logits.sigmoid() * known, truth * known
    shared = reduce(soft * weight, "m 1 h w -> m", "sum")
    total = reduce(soft + weight, "m 1 h w -> m", "sum")
    return {"bce": _mean_where(entropy, known), "dice": 1 - (2 * shared + 1) / (total + 1)}


def _layers_at_once(logits: torch.Tensor, batch: SceneBatch) -> torch.Tensor:
    """Cross-entropy and soft Dice of logits (B, K, h, w) of the first K layers, true ones and empty ones; the mean over layers, float (B,).

    Of a picture that is not complete the true layers alone count: what lies behind them nobody knows.
    """
    count = logits.shape[1]
    of_layer = batch.layer_index[:, None] == torch.arange(count, device=logits.device)[:, None]
    true = torch.stack([(batch.amodal_masks & of_layer[:, k, :, None, None]).any(dim=1) for k in range(count)], dim=1)
    flat = _bce_dice(
        rearrange(logits.float(), "b k h w -> (b k) 1 h w"),
        rearrange(true, "b k h w -> (b k) 1 h w"),
        batch.known.repeat_interleave(count, dim=0),
    )
    each = rearrange(flat["bce"] + flat["dice"], "(b k) -> b k", k=count)
    if batch.complete is None:
        return each.mean(dim=1)
    taught = batch.complete[:, None] | (torch.arange(count, device=logits.device) < batch.layer_counts[:, None])
    return (each * taught).sum(dim=1) / taught.sum(dim=1).clamp(min=1)


def _discretized_log_likelihood(x: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Log-likelihood of x in [-1, 1] under a Gaussian discretised to 256 levels (DDPM, eq. (13))."""
    inverse = (-log_scale).exp()
    normal = torch.distributions.Normal(0.0, 1.0)
    upper = normal.cdf(inverse * (x - mean + 1 / 255))
    lower = normal.cdf(inverse * (x - mean - 1 / 255))
    inner = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return inner.clamp(min=1e-12).log()


def scheduler_for(scheduler: Any, codec: MaskCodec) -> Any:
    """A fresh copy of a scheduler whose clipping follows the code of the masks."""
    if "clip_sample_range" in scheduler.config and scheduler.config.clip_sample_range != codec.scale:
        return type(scheduler).from_config(scheduler.config, clip_sample_range=codec.scale)
    return copy.deepcopy(scheduler)


@dataclass(frozen=True)
class Sampler:
    """The reverse process: from noise to soft masks, for many rows at once.

    logits: channel 0 of the network's output holds x_0 logits. steps: number of denoising steps. rows: most rows a call.
    stop: the network's second channel is a logit that nothing is left; its probability is sigmoid(scale x logit + shift) for
    stop = (scale, shift), read at the first step, where it sees no mask yet. noise_scale: standard deviation of the noise that a row begins
    with, as a share of the scheduler's.
    """

    scheduler: Any
    codec: MaskCodec
    logits: bool
    steps: int
    rows: int
    stop: tuple[float, float] | None = None
    on_step: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    noise_scale: float = 1.0

    @torch.no_grad()
    def __call__(
        self,
        model: MaskDenoiser,
        features: Features,
        cumulative: torch.Tensor,
        generators: list[torch.Generator],
        *,
        picture: torch.Tensor,
        frame: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Soft masks float (M, 1, h, w) in [0, 1]; with `stop` (M, 2, h, w), the second channel the probability that nothing is left.

        cumulative: bool (M, 1, h, w). generators: M CPU generators, the only source of noise. picture: int64 (M,), the row of
        `features` that belongs to each mask. frame: bool (B, 1, h, w), one a row of `features`, the cells that show the picture and
        not grey bars, on which no mask is taught; masks are 0 beyond it. None: all cells.
        """
        chunks = []
        for start in range(0, len(generators), self.rows):
            part = slice(start, start + self.rows)
            chunks.append(
                self._reverse(
                    model,
                    select_rows(features, picture[part]),
                    cumulative[part],
                    generators[part],
                    None if frame is None else frame[picture[part]],
                )
            )
        soft = torch.cat(chunks)
        if not bool(torch.isfinite(soft).all()):
            raise RuntimeError(
                f"the masks drawn must be finite, got NaN or infinite values from a network in {next(iter(_leaves(features))).dtype}: "
                "use float32 or bfloat16, and look at the weights"
            )
        return soft

    def _reverse(
        self,
        model: MaskDenoiser,
        features: Features,
        cumulative: torch.Tensor,
        generators: list[torch.Generator],
        frame: torch.Tensor | None,
    ) -> torch.Tensor:
        scheduler = scheduler_for(self.scheduler, self.codec)
        if self.steps == 1 and scheduler.config.get("timestep_spacing") in ("leading", "linspace"):
            # Their only step would be the last one, at which a mask shows: a single step begins with noise alone.
            scheduler = type(scheduler).from_config(scheduler.config, timestep_spacing="trailing")
        set_steps(scheduler, self.steps, cumulative.device)
        dtype = next(iter(_leaves(features))).dtype
        seen = condition(cumulative)
        noise = [torch.randn(cumulative.shape[1:], generator=generator) for generator in generators]
        x_t = torch.stack(noise).to(cumulative.device) * scheduler.init_noise_sigma * self.noise_scale
        for index, t in enumerate(scheduler.timesteps):
            last = index == len(scheduler.timesteps) - 1
            scaled = scheduler.scale_model_input(x_t, t)
            time = t.expand(len(x_t)).to(cumulative.device)
            output = model(scaled.to(dtype), time, seen.to(dtype), features).float()
            if index == 0 and self.stop is not None:
                nothing = (self.stop[0] * output[:, 1:2] + self.stop[1]).sigmoid()
            if last:
                # The smallest variance: DDPM in few steps would leave noise in its result. A model's own tensor stays as it is.
                output = torch.cat([output[:, :1], torch.full_like(output[:, 1:], -1)], dim=1)
            estimate = self._for_scheduler(output, scheduler, frame)
            stepped = scheduler.step(estimate, t, x_t, **self._noise(scheduler, generators))
            # With some numbers of steps DDIM's last one ends before the schedule does, and leaves noise.
            final = getattr(stepped, "pred_original_sample", None) if last else None
            x_t = stepped[0] if final is None else final
            if self.on_step is not None:
                x_t = self.on_step(index, t, x_t)
        soft = self.codec.decode(x_t)
        soft = soft if frame is None else soft * frame
        return soft if self.stop is None else torch.cat([soft, nothing], dim=1)

    def _for_scheduler(self, output: torch.Tensor, scheduler: Any, frame: torch.Tensor | None) -> torch.Tensor:
        """The network's output as the scheduler wants it: logits decoded, the variance channel only for DDPM."""
        mask = output[:, :1]
        if self.logits:
            soft = mask.sigmoid()
            mask = self.codec.encode(soft if frame is None else soft * frame)
        return torch.cat([mask, output[:, 1:2]], dim=1) if takes_variance(scheduler) else mask

    @staticmethod
    def _noise(scheduler: Any, generators: list[torch.Generator]) -> dict[str, Any]:
        """Keyword for schedulers that add noise: each row goes on with its own generator."""
        takes = "generator" in scheduler.step.__code__.co_varnames[: scheduler.step.__code__.co_argcount]
        return {"generator": generators} if takes else {}


def _leaves(features: Features) -> list[torch.Tensor]:
    if isinstance(features, torch.Tensor):
        return [features]
    return [leaf for part in features for leaf in _leaves(part)]
