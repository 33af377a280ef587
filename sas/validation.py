"""Quick scores of a network on a batch of scenes while it trains; the full evaluation is `sas.evaluation`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import rearrange, repeat
from scipy.optimize import minimize

from sas.diffusion import Sampler, in_range
from sas.ensemble import consensus
from sas.items import layer_items
from sas.layerloop import LoopRules, LoopState, judged_void, run_loop
from sas.metrics import false_layers, layer_ious
from sas.pipeline import SASPipeline
from sas.scene import SceneBatch
from sas.seeding import Keys, generator_for


@dataclass(frozen=True)
class Validation:
    """Scores of one validation.

    own, true: mean IoU of each layer with the model's own, and with the true cumulative masks (nan where no scene has the layer);
    their difference is the exposure error. stop_accuracy: share of scenes whose step after the last layer is void and no step
    before it is, with true cumulative masks; `stops` holds it for each scene, `true_ious` the IoU of each of its layers.
    false_layers: extra layers a scene, with own cumulative masks.
    predictions: bool (K, m, m) a scene, with own cumulative masks.
    """

    own: list[float]
    true: list[float]
    true_ious: list[np.ndarray]
    stops: np.ndarray
    false_layers: float
    predictions: list[np.ndarray]

    @property
    def stop_accuracy(self) -> float:
        return float(self.stops.mean())

    @property
    def score(self) -> float:
        """The criterion for the best weights: mean IoU of the first three layers, own cumulative masks."""
        known = [value for value in self.own[:3] if not np.isnan(value)]
        return float(np.mean(known)) if known else 0.0

    def to_dict(self) -> dict[str, float]:
        rows: dict[str, float] = {
            "val/score": self.score,
            "val/stop_accuracy": self.stop_accuracy,
            "val/false_layers": self.false_layers,
        }
        for name, values in (("own", self.own), ("true", self.true)):
            rows |= {f"val/iou_{name}_{k}": v for k, v in enumerate(values) if not np.isnan(v)}
        return rows


@torch.no_grad()
def validate(
    pipe: SASPipeline, batch: SceneBatch, *, members: int, steps: int, seed: int = 0, rows: int = 64
) -> Validation:
    """Score the pipeline's network on a batch, with its own and with true cumulative masks."""
    config, device = pipe.config, pipe.device
    batch = batch.to(device)
    sampler = pipe.sampler(steps=steps, rows=rows)
    features = pipe.model.encode(in_range(batch.image, config.image_range).to(pipe.dtype))
    rules = pipe.rules
    predictions = _own(pipe, sampler, features, batch, rules, members, seed)
    layers = batch.layers().cpu().numpy()
    counts = batch.layer_counts.tolist()
    own = [layer_ious(found, layers[b, : counts[b]]) for b, found in enumerate(predictions)]

    items = layer_items(batch, Keys(seed, 0, tuple(range(len(batch)))))
    masks, void = _with_true_masks(
        pipe, sampler, features, items.cumulative, items.picture, items.layer, rules, members, seed
    )
    picture, layer = items.picture.tolist(), items.layer.tolist()
    true = [np.zeros(count) for count in counts]
    stops = np.ones(len(batch), dtype=bool)
    for m, (b, k) in enumerate(zip(picture, layer, strict=True)):
        if k < counts[b]:
            true[b][k] = layer_ious(masks[m : m + 1], layers[b, k : k + 1])[0]
        stops[b] &= bool(void[m]) == (k == counts[b])
    return Validation(
        own=_by_layer(own),
        true=_by_layer(true),
        true_ious=true,
        stops=stops,
        false_layers=float(np.mean([false_layers(p, layers[b, : counts[b]]) for b, p in enumerate(predictions)])),
        predictions=predictions,
    )


@torch.no_grad()
def calibrate_stop(pipe: SASPipeline, batch: SceneBatch, *, seed: int = 0, rows: int = 64) -> tuple[float, float]:
    """Scale and shift that make the stop head's probability a calibrated one (Platt 1999): logistic regression of "nothing is
    left" on its logit, one draw an item, true cumulative masks.
    """
    batch = batch.to(pipe.device)
    items = layer_items(batch, Keys(seed, 0, tuple(range(len(batch)))))
    features = pipe.model.encode(in_range(batch.image, pipe.config.image_range).to(pipe.dtype))
    generators = [generator_for(seed, "stop", m) for m in range(len(items))]
    raw = replace(pipe.sampler(steps=1, rows=rows), stop=(1.0, 0.0))
    drawn = raw(pipe.model, features, items.cumulative, generators, picture=items.picture)
    logit = drawn[:, 1].flatten(1).mean(dim=1).double().logit(eps=1e-9).cpu().numpy()
    empty = (~items.target.flatten(1).any(dim=1)).cpu().numpy()

    def entropy(values: np.ndarray) -> float:
        margin = np.where(empty, 1, -1) * (values[0] * logit + values[1])
        return float(np.logaddexp(0, -margin).mean() + 1e-4 * (values**2).sum())

    scale, shift = minimize(entropy, np.array([1.0, 0.0]), method="Nelder-Mead").x
    return float(scale), float(shift)


def _own(
    pipe: SASPipeline, sampler: Sampler, features: object, batch: SceneBatch, rules: LoopRules, members: int, seed: int
) -> list[np.ndarray]:
    """Layers found with the model's own cumulative masks: bool (K, m, m) a scene."""

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
        soft = sampler(pipe.model, features, cumulative, generators, picture=picture)  # type: ignore[arg-type]
        return rearrange(soft, "(b e) c h w -> b e c h w", e=members)

    size = pipe.config.mask_size
    start = LoopState.start(count=len(batch), ensemble_size=members, mask_size=size, device=pipe.device)
    state = run_loop(start, draw, rules)
    empty = torch.zeros(0, size, size, dtype=torch.bool)
    return [(torch.stack([layer.mask for layer in found]).cpu() if found else empty).numpy() for found in state.layers]


def _with_true_masks(
    pipe: SASPipeline,
    sampler: Sampler,
    features: object,
    cumulative: torch.Tensor,
    picture: torch.Tensor,
    layer: torch.Tensor,
    rules: LoopRules,
    members: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """One pass for each item: consensus masks bool (M, m, m), and whether all members were void, bool (M,)."""
    generators = [
        generator_for(seed, int(b), int(k), member)
        for b, k in zip(picture.tolist(), layer.tolist(), strict=True)
        for member in range(members)
    ]
    repeated = repeat(cumulative, "m 1 h w -> (m e) 1 h w", e=members)
    soft = sampler(pipe.model, features, repeated, generators, picture=picture.repeat_interleave(members))  # type: ignore[arg-type]
    soft = rearrange(soft, "(m e) c h w -> m e c h w", e=members)
    drawn = soft[:, :, 0] > rules.threshold
    void = judged_void(drawn, soft[:, :, 1:], rules)
    return consensus(drawn, void, rule=rules.consensus).cpu().numpy(), void.all(dim=1).cpu().numpy()


def _by_layer(scores: list[np.ndarray]) -> list[float]:
    """Mean over the scenes that have each layer."""
    deepest = max((len(s) for s in scores), default=0)
    return [float(np.mean([s[k] for s in scores if len(s) > k])) for k in range(deepest)]
