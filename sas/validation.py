"""Quick scores of a network on a batch of scenes while it trains; the full evaluation is `sas.evaluation`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import rearrange, repeat
from scipy.optimize import minimize

from sas.diffusion import Sampler, in_range
from sas.ensemble import consensus
from sas.items import Items, layer_items
from sas.layerloop import LoopRules, LoopState, judged_void, nothing_left, run_loop
from sas.metrics import false_layers, layer_ious
from sas.models import Features
from sas.pipeline import SASPipeline
from sas.scene import SceneBatch
from sas.seeding import Keys, generator_for


@dataclass(frozen=True)
class BehindTruth:
    """What is drawn behind true cumulative masks.

    ious: IoU of each layer, float (K,) a scene, nan where none of its pixels is known. stops: bool (complete scenes,), whether the step
    after the last layer is void and no step before it is. stop_probabilities: float (K + 1,) a complete scene, what the stop head says
    before each layer and after the last (mean over members); empty for networks without one.
    """

    ious: list[np.ndarray]
    stops: np.ndarray
    stop_probabilities: list[np.ndarray]

    @property
    def by_layer(self) -> list[float]:
        """Mean IoU of each layer; nan where no scene has the layer."""
        return _by_layer(self.ious)

    @property
    def stop_accuracy(self) -> float:
        """Share of complete scenes that end right; nan if there are none."""
        return float(self.stops.mean()) if len(self.stops) else float("nan")


@dataclass(frozen=True)
class Validation:
    """Scores of one validation.

    own: mean IoU of each layer with the model's own cumulative masks (nan where no scene has the layer); what it falls short of
    `behind.by_layer` is the exposure error. false_layers: extra layers a scene, and predictions: bool (K, m, m) a scene, both with own
    cumulative masks too. behind: the same network behind true cumulative masks.
    Scenes that are not complete are scored on their known pixels, and have no say in `behind.stops` and `false_layers` (both nan if
    no scene is complete), because nobody knows where they end.
    """

    own: list[float]
    false_layers: float
    predictions: list[np.ndarray]
    behind: BehindTruth

    @property
    def score(self) -> float:
        """The criterion for the best weights: mean IoU of the first three layers, own cumulative masks."""
        known = [value for value in self.own[:3] if not np.isnan(value)]
        return float(np.mean(known)) if known else 0.0

    def to_dict(self) -> dict[str, float]:
        rows: dict[str, float] = {
            "val/score": self.score,
            "val/stop_accuracy": self.behind.stop_accuracy,
            "val/false_layers": self.false_layers,
        }
        for name, values in (("own", self.own), ("true", self.behind.by_layer)):
            rows |= {f"val/iou_{name}_{k}": v for k, v in enumerate(values)}
        return {name: value for name, value in rows.items() if not np.isnan(value)}


@torch.no_grad()
def validate(
    pipe: SASPipeline, batch: SceneBatch, *, members: int, steps: int, seed: int = 0, rows: int = 64
) -> Validation:
    """Score the pipeline's network on a batch, with its own and with true cumulative masks."""
    batch = batch.to(pipe.device)
    sampler, features = pipe.sampler(steps=steps, rows=rows), _encoded(pipe, batch)
    predictions = _own(pipe, sampler, features, batch, pipe.rules, members, seed)
    layers, judged, complete = _truth(batch)
    # A true layer of which no pixel is known says nothing.
    own = [
        np.where(true.any(axis=(1, 2)), layer_ious(found & judged[b], true), np.nan)
        for b, (found, true) in enumerate(zip(predictions, layers, strict=True))
    ]
    extra = [false_layers(p & judged[b], layers[b]) for b, p in enumerate(predictions) if complete[b]]
    return Validation(
        own=_by_layer(own),
        false_layers=float(np.mean(extra)) if extra else float("nan"),
        predictions=predictions,
        behind=_behind_truth(pipe, sampler, features, batch, members, seed),
    )


@torch.no_grad()
def behind_truth(
    pipe: SASPipeline, batch: SceneBatch, *, members: int, steps: int, seed: int = 0, rows: int = 64
) -> BehindTruth:
    """The part of `validate` that needs true cumulative masks only, the same numbers."""
    batch = batch.to(pipe.device)
    return _behind_truth(pipe, pipe.sampler(steps=steps, rows=rows), _encoded(pipe, batch), batch, members, seed)


def _behind_truth(
    pipe: SASPipeline, sampler: Sampler, features: Features, batch: SceneBatch, members: int, seed: int
) -> BehindTruth:
    layers, judged, complete = _truth(batch)
    items = layer_items(batch, Keys(seed, 0, tuple(range(len(batch)))))
    masks, void, stop = _with_true_masks(pipe, sampler, features, batch, items, pipe.rules, members, seed)
    ious = [np.zeros(len(true)) for true in layers]
    stops = np.ones(len(batch), dtype=bool)
    for m, (b, k) in enumerate(zip(items.picture.tolist(), items.layer.tolist(), strict=True)):
        if k < len(layers[b]):
            known = layers[b][k].any()
            ious[b][k] = layer_ious(masks[m : m + 1] & judged[b], layers[b][k : k + 1])[0] if known else np.nan
        stops[b] &= bool(void[m]) == (k == len(layers[b]))
    picture = items.picture.cpu().numpy()
    return BehindTruth(
        ious=ious,
        stops=stops[complete],
        stop_probabilities=[stop[picture == b] for b in range(len(batch)) if complete[b] and len(stop)],
    )


def _truth(batch: SceneBatch) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """The known part of a scene's layers, bool (K, m, m) each; known pixels, bool (B, m, m); which scenes are complete, bool (B,)."""
    judged = batch.known[:, 0].cpu().numpy()
    layers = batch.layers().cpu().numpy() & judged[:, None]
    complete = np.ones(len(batch), dtype=bool) if batch.complete is None else batch.complete.cpu().numpy()
    return [layers[b, :count] for b, count in enumerate(batch.layer_counts.tolist())], judged, complete


def _encoded(pipe: SASPipeline, batch: SceneBatch) -> Features:
    return pipe.model.encode(in_range(batch.image, pipe.config.image_range).to(pipe.dtype))


@torch.no_grad()
def calibrate_stop(
    pipe: SASPipeline, batch: SceneBatch, *, seed: int = 0, rows: int = 64
) -> tuple[float, float] | None:
    """Scale and shift that make the stop head's probability a calibrated one (Platt 1999): logistic regression of "nothing is
    left" on its logit, one draw an item, true cumulative masks. Without a scene that is complete there is nothing to go by: None.
    """
    if batch.complete is not None and not batch.complete.any():
        return None
    batch = batch.to(pipe.device)
    items = layer_items(batch, Keys(seed, 0, tuple(range(len(batch)))))
    features = _encoded(pipe, batch)
    generators = [generator_for(seed, "stop", m) for m in range(len(items))]
    # It is read at the first step of sampling, which is that of a single step only where steps are trailing.
    trailing = pipe.scheduler.config.get("timestep_spacing") == "trailing"
    raw = replace(pipe.sampler(steps=1 if trailing else pipe.config.num_inference_steps, rows=rows), stop=(1.0, 0.0))
    drawn = raw(pipe.model, features, items.cumulative, generators, picture=items.picture)
    logit = drawn[:, 1].flatten(1).mean(dim=1).cpu().double().logit(eps=1e-9).numpy()
    empty = (~items.target.flatten(1).any(dim=1)).cpu().numpy()
    if items.complete is not None:  # the others have layers and no end: with them it would seem rarer than it is
        complete = items.complete.cpu().numpy()
        logit, empty = logit[complete], empty[complete]

    def entropy(values: np.ndarray) -> float:
        margin = np.where(empty, 1, -1) * (values[0] * logit + values[1])
        return float(np.logaddexp(0, -margin).mean() + 1e-4 * (values**2).sum())

    scale, shift = minimize(entropy, np.array([1.0, 0.0]), method="Nelder-Mead").x
    return float(scale), float(shift)


def _own(
    pipe: SASPipeline,
    sampler: Sampler,
    features: Features,
    batch: SceneBatch,
    rules: LoopRules,
    members: int,
    seed: int,
) -> list[np.ndarray]:
    """Layers found with the model's own cumulative masks: bool (K, m, m) a scene."""

    frame = batch.frame

    def draw(state: LoopState, active: list[int]) -> torch.Tensor:
        generators = [
            generator_for(seed, batch.ids[state.image[row]], state.passes[row], member)
            for row in active
            for member in range(members)
        ]
        picture = torch.tensor([state.image[row] for row in active], device=state.cumulative.device).repeat_interleave(
            members
        )
        cumulative = rearrange(state.cumulative[active], "b e 1 h w -> (b e) 1 h w")
        soft = sampler(pipe.model, features, cumulative, generators, picture=picture, frame=frame)
        return rearrange(soft, "(b e) c h w -> b e c h w", e=members)

    size = pipe.config.mask_size
    start = LoopState.start(count=len(batch), ensemble_size=members, mask_size=size, device=pipe.device)
    state = run_loop(start, draw, rules)
    empty = torch.zeros(0, size, size, dtype=torch.bool)
    return [(torch.stack([layer.mask for layer in found]).cpu() if found else empty).numpy() for found in state.layers]


def _with_true_masks(
    pipe: SASPipeline,
    sampler: Sampler,
    features: Features,
    batch: SceneBatch,
    items: Items,
    rules: LoopRules,
    members: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One pass for each item: consensus masks bool (M, m, m), whether all members were void, bool (M,), and the stop head's
    probability, float (M,) or (0,)."""
    generators = [
        generator_for(seed, "true", batch.ids[b], k, member)
        for b, k in zip(items.picture.tolist(), items.layer.tolist(), strict=True)
        for member in range(members)
    ]
    repeated = repeat(items.cumulative, "m 1 h w -> (m e) 1 h w", e=members)
    picture = items.picture.repeat_interleave(members)
    soft = sampler(pipe.model, features, repeated, generators, picture=picture, frame=batch.frame)
    soft = rearrange(soft, "(m e) c h w -> m e c h w", e=members)
    drawn = soft[:, :, 0] > rules.threshold
    nothing = nothing_left(soft)
    void = judged_void(drawn, nothing, rules)
    stop = soft.new_zeros(0) if nothing is None else nothing
    masks = consensus(drawn, void, rule=rules.consensus, void_area=rules.void_area)
    return masks.cpu().numpy(), void.all(dim=1).cpu().numpy(), stop.float().cpu().numpy()


def _by_layer(scores: list[np.ndarray]) -> list[float]:
    """Mean over the scenes that have each layer and know a pixel of it."""
    deepest = max((len(s) for s in scores), default=0)
    columns = [[s[k] for s in scores if len(s) > k and not np.isnan(s[k])] for k in range(deepest)]
    return [float(np.mean(column)) if column else float("nan") for column in columns]
