"""The objective against diffusers and against hand-written mathematics; the sampler against networks that know the answer."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from einops import rearrange
from torch import nn
from torch.distributions import Normal, kl_divergence

from sas.diffusion import DiffusionObjective, MaskCodec, Sampler, _bce_dice, condition, in_range, scheduler_for
from sas.items import Corruption, layer_items
from sas.models import ConcatUNet
from sas.scene import SceneBatch
from sas.seeding import Keys, generator_for

SIZE = 8
PREDICTIONS = ("epsilon", "sample", "v_prediction")


def make_scheduler(
    kind: type = DDIMScheduler, *, prediction: str = "sample", zero_snr: bool = False, **more: Any
) -> Any:
    clip = {} if kind is DPMSolverMultistepScheduler else {"clip_sample": True, "clip_sample_range": 1.0}
    return kind(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=zero_snr,
        **clip,
        **more,
    )


def make_batch(count: int = 3, *, size: int = SIZE) -> SceneBatch:
    """Scenes of three rectangles, each in front of the next; the last column is unknown in scene 0, and scene 2 is empty."""
    masks = torch.zeros(count, 3, size, size, dtype=torch.bool)
    masks[:, 0, 1:4, 1:4] = True
    masks[:, 1, 2:6, 2:6] = True
    masks[:, 2, 4:7, 3:7] = True
    layer_index = torch.tensor([0, 1, 2]).repeat(count, 1)
    if count > 2:
        masks[2], layer_index[2] = False, -1
    known = torch.ones(count, 1, size, size, dtype=torch.bool)
    known[0, :, :, -1] = False
    return SceneBatch(
        image=torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1,
        amodal_masks=masks,
        counts=(layer_index >= 0).sum(dim=1),
        layer_index=layer_index,
        order_matrix=torch.ones(count, 3, 3, dtype=torch.bool).triu(1) & (layer_index >= 0)[:, None],
        known=known,
        ids=tuple("abcdef"[:count]),
    )


class Pixelwise(nn.Module):
    """A network of `channels` outputs that mixes its inputs pixel by pixel, and remembers what it was given."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.mix = nn.Parameter(torch.randn(channels, 5, generator=generator) / 4)
        self.shift = nn.Parameter(torch.zeros(channels, SIZE, SIZE))
        self.seen: list[tuple[torch.Tensor, ...]] = []

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return image

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, cumulative: torch.Tensor, features: torch.Tensor
    ) -> torch.Tensor:
        self.seen.append((noisy.clone(), timestep.clone(), cumulative.clone(), features.clone()))
        stacked = torch.cat([features, cumulative, noisy], dim=1)
        return torch.einsum("oc,mchw->mohw", self.mix, stacked) + self.shift


class Oracle(nn.Module):
    """Knows x_0, which the tests hand it as its features, and answers in whatever the scheduler predicts."""

    def __init__(self, scheduler: Any, *, logits: bool = False, variance: float | None = None) -> None:
        super().__init__()
        self.prediction: str = scheduler.config.prediction_type
        self.alphas_cumprod = scheduler.alphas_cumprod.double()
        self.logits = logits
        self.variance = variance
        self.seen: list[tuple[torch.Tensor, ...]] = []

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, cumulative: torch.Tensor, features: torch.Tensor
    ) -> torch.Tensor:
        self.seen.append((noisy.clone(), timestep.clone(), cumulative.clone(), features.clone()))
        x_0, a = features.double(), rearrange(self.alphas_cumprod[timestep], "m -> m 1 1 1")
        noise = (noisy.double() - a.sqrt() * x_0) / (1 - a).sqrt()
        answer = {"epsilon": noise, "sample": x_0, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * x_0}
        mask = 80 * x_0 if self.logits else answer[self.prediction]
        if self.variance is not None:
            mask = torch.cat([mask, torch.full_like(mask, self.variance)], dim=1)
        return mask.float()


def true_masks() -> torch.Tensor:
    """Different masks, an empty, a full and a one-pixel one among them: bool (5, 1, h, w)."""
    masks = torch.zeros(5, 1, SIZE, SIZE, dtype=torch.bool)
    masks[1] = True
    masks[2, 0, 3, 4] = True
    masks[3, 0, :5, 2:] = True
    masks[4, 0, ::2] = True
    return masks


def draw(
    scheduler: Any,
    model: Any,
    codec: MaskCodec,
    *,
    steps: int,
    logits: bool = False,
    rows: int = 64,
    on_step: Any = None,
    members: int = 1,
) -> torch.Tensor:
    """Soft masks of `true_masks`, whose codes are the features: (5 * members, 1, h, w)."""
    picture = torch.arange(5).repeat_interleave(members)
    sampler = Sampler(scheduler=scheduler, codec=codec, logits=logits, steps=steps, rows=rows, on_step=on_step)
    cumulative = true_masks().roll(1, dims=0)[picture]
    return sampler(
        model,
        codec.encode(true_masks()),
        cumulative,
        [generator_for(7, row) for row in range(len(picture))],
        picture=picture,
    )


# ---------------------------------------------------------------------- the code of masks


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0])
def test_codec_round_trip(scale: float, centred: bool) -> None:
    codec = MaskCodec(scale=scale, centred=centred)
    masks = true_masks()
    code = codec.encode(masks)
    assert code.dtype == torch.float32
    assert set(code.unique().tolist()) == {float(torch.tensor(v)) for v in (-scale if centred else 0.0, scale)}
    assert torch.equal(codec.decode(code), masks.float())
    soft = torch.rand(4, 1, SIZE, SIZE)
    torch.testing.assert_close(codec.decode(codec.encode(soft)), soft)
    assert codec.decode(torch.tensor([-99.0, 99.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("scale", [0.0, -1.0, 11.0])
def test_codec_refuses_scale(scale: float) -> None:
    with pytest.raises(ValueError, match=rf"scale must lie in \(0, 10\], got {scale}: pass 1"):
        MaskCodec(scale=scale)


def test_condition_and_image_range() -> None:
    assert condition(torch.tensor([True, False])).tolist() == [1.0, -1.0]
    image = torch.tensor([-1.0, 0.0, 1.0])
    assert torch.equal(in_range(image, "unit"), image)
    assert in_range(image, "bytes").tolist() == [0.0, 127.5, 255.0]


@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler])
def test_clip_range_follows_the_mask_scale(kind: type) -> None:
    scheduler = make_scheduler(kind)
    fresh = scheduler_for(scheduler, MaskCodec(scale=0.3))
    assert (fresh.config.clip_sample_range, scheduler.config.clip_sample_range) == (0.3, 1.0)
    assert fresh.config.timestep_spacing == "trailing"
    same = scheduler_for(scheduler, MaskCodec(scale=1.0))
    same.set_timesteps(3)
    assert same is not scheduler and len(scheduler.timesteps) == 1000


def test_clip_range_of_the_solver_that_has_none() -> None:
    solver = make_scheduler(DPMSolverMultistepScheduler)
    assert scheduler_for(solver, MaskCodec(scale=0.3)) is not solver


# ---------------------------------------------------------------------- the forward process


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_noise_and_velocity_are_those_of_diffusers(schedule: str, zero_snr: bool) -> None:
    scheduler = DDPMScheduler(
        beta_schedule=schedule, rescale_betas_zero_snr=zero_snr, clip_sample=False, prediction_type="v_prediction"
    )
    objective = DiffusionObjective(scheduler, codec=MaskCodec())
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 6, 1, SIZE, SIZE, generator=generator)
    timestep = torch.tensor([0, 1, 250, 500, 998, 999])
    torch.testing.assert_close(
        objective.add_noise(x_0, noise, timestep), scheduler.add_noise(x_0, noise, timestep), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        objective._velocity(x_0, noise, timestep), scheduler.get_velocity(x_0, noise, timestep), rtol=0, atol=1e-6
    )
    last = objective.add_noise(x_0, noise, timestep)[-1]
    assert torch.equal(last, noise[-1]) == zero_snr  # with zero terminal SNR nothing of the mask is left


@pytest.mark.parametrize("corruption", [None, Corruption(probability=1.0, drop=0.5)])
def test_condition_is_never_noised_in_training(corruption: Corruption | None) -> None:
    batch, keys, model = make_batch(), Keys.span(3, 5, 0, 3), Pixelwise()
    objective = DiffusionObjective(make_scheduler(zero_snr=True), codec=MaskCodec(scale=0.5), corruption=corruption)
    objective.loss(model, batch, keys)
    items = layer_items(batch, keys, corruption=corruption)
    noisy, timestep, cumulative, features = model.seen[0]
    assert torch.equal(cumulative, items.cumulative.float() * 2 - 1)
    assert torch.equal(features, batch.image[items.picture])
    assert timestep.dtype == torch.int64
    assert noisy.unique().numel() > SIZE * SIZE  # the mask's channel is the noised one


def test_condition_is_never_noised_in_sampling() -> None:
    codec, scheduler = MaskCodec(scale=0.5), make_scheduler(DDPMScheduler, zero_snr=True)
    model = Oracle(scheduler)
    draw(scheduler, model, codec, steps=5)
    assert len(model.seen) == 5
    for noisy, _, cumulative, features in model.seen:
        assert torch.equal(cumulative, true_masks().roll(1, dims=0).float() * 2 - 1)
        assert torch.equal(features, codec.encode(true_masks()))
        assert noisy.unique().numel() > SIZE * SIZE


def test_time_steps_follow_the_bias() -> None:
    batch, scheduler = make_batch(2), make_scheduler()
    means = {}
    for bias in (0.0, 1.0, 3.0):
        model = Pixelwise()
        objective = DiffusionObjective(scheduler, codec=MaskCodec(), high_noise_bias=bias)
        for step in range(60):
            objective.loss(model, batch, Keys.span(0, step, 0, 2))
        drawn = torch.cat([timestep for _, timestep, _, _ in model.seen])
        assert drawn.min() >= 0 and drawn.max() <= 999
        means[bias] = drawn.double().mean().item() / 1000
    # The mean of a density proportional to t^b is (b + 1) / (b + 2); 480 draws have a standard error below 0.014.
    for bias, mean in means.items():
        assert mean == pytest.approx((bias + 1) / (bias + 2), abs=0.045)


# ---------------------------------------------------------------------- the losses


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_mse_is_that_of_the_prediction(prediction: str) -> None:
    batch, keys, scheduler = make_batch(), Keys.span(0, 1, 0, 3), make_scheduler(prediction=prediction)
    codec = MaskCodec(scale=0.5)

    class Answer(Pixelwise):
        def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, cumulative: Any, features: Any) -> torch.Tensor:
            x_0 = codec.encode(layer_items(batch, keys).target)
            return Oracle(scheduler)(noisy, timestep, cumulative, x_0) + 0.25

    losses = DiffusionObjective(scheduler, codec=codec).loss(Answer(), batch, keys)
    assert set(losses) == {"loss", "mse"}
    # Off by 1/4 everywhere. Noise is computed back from the noised mask, which loses digits where little noise was added.
    torch.testing.assert_close(losses["mse"], torch.full((9,), 0.0625), rtol=2e-3, atol=0)


def test_bce_and_dice_by_hand() -> None:
    logits = torch.tensor([[0.0, 2.0], [-1.0, 5.0]]).reshape(1, 1, 2, 2)
    target = torch.tensor([[True, True], [False, False]]).reshape(1, 1, 2, 2)
    known = torch.tensor([[True, True], [True, False]]).reshape(1, 1, 2, 2)
    sigmoid = [1 / (1 + math.exp(-v)) for v in (0.0, 2.0, -1.0)]
    entropy = -(math.log(sigmoid[0]) + math.log(sigmoid[1]) + math.log(1 - sigmoid[2])) / 3
    dice = 1 - (2 * (sigmoid[0] + sigmoid[1]) + 1) / (sum(sigmoid) + 2 + 1)
    parts = _bce_dice(logits, target, known)
    assert parts["bce"].item() == pytest.approx(entropy, rel=1e-6)
    assert parts["dice"].item() == pytest.approx(dice, rel=1e-6)


def test_bce_and_dice_of_empty_targets_and_unknown_pictures() -> None:
    logits = torch.full((1, 1, 4, 4), 3.0, requires_grad=True)
    empty, everywhere = torch.zeros(1, 1, 4, 4, dtype=torch.bool), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    parts = _bce_dice(logits, empty, everywhere)
    parts["dice"].sum().backward()
    assert parts["dice"].item() > 0.9 and logits.grad is not None and (logits.grad > 0).all()
    assert _bce_dice(torch.full((1, 1, 4, 4), -40.0), empty, everywhere)["dice"].item() == pytest.approx(0, abs=1e-6)
    nothing = _bce_dice(logits, empty, ~everywhere)
    assert {name: value.item() for name, value in nothing.items()} == {"bce": 0.0, "dice": 0.0}


@pytest.mark.parametrize(
    ("loss_type", "learned"), [("mse", False), ("mse", True), ("bce_dice", False)], ids=["mse", "vlb", "bce_dice"]
)
def test_unknown_pixels_change_neither_loss_nor_gradient(loss_type: Any, learned: bool) -> None:
    batch, keys = make_batch(1), Keys.span(0, 0, 0, 1)
    objective = DiffusionObjective(
        make_scheduler(), codec=MaskCodec(), loss_type=loss_type, learned_variance=learned, high_noise_bias=1.0
    )
    model = Pixelwise(channels=1 + learned)
    plain = objective.loss(model, batch, keys)["loss"]
    plain.sum().backward()
    assert model.shift.grad is not None
    assert (model.shift.grad[:, :, -1] == 0).all() and (model.shift.grad[:, :, :-1] != 0).all()
    with torch.no_grad():
        model.shift[:, :, -1] = 9.0
    moved = objective.loss(model, batch, keys)["loss"]
    assert torch.equal(plain, moved)
    with torch.no_grad():
        model.shift[:, 0, 0] = 0.5
    assert not torch.equal(plain, objective.loss(model, batch, keys)["loss"])


def by_hand(
    scheduler: Any, x_0: float, x_t: float, t: int, predicted: float, fraction: float, prediction: str
) -> float:
    """The variational bound of one pixel in bits, from Bayes' rule and torch.distributions, in double precision."""
    beta, a = scheduler.betas.double(), scheduler.alphas_cumprod.double()

    def posterior(mean_0: float, t: int) -> Normal:
        # q(x_{t-1} | x_t, x_0) is the product of two Gaussians in x_{t-1}: precisions add, means are weighted by them.
        likelihood, prior = (1 - beta[t]) / beta[t], 1 / (1 - a[t - 1])
        mean = (x_t * (1 - beta[t]).sqrt() / beta[t] + mean_0 * a[t - 1].sqrt() * prior) / (likelihood + prior)
        return Normal(mean, (likelihood + prior) ** -0.5)

    if prediction == "epsilon":
        predicted = float((x_t - (1 - a[t]).sqrt() * predicted) / a[t].sqrt())
    elif prediction == "v_prediction":
        predicted = float(a[t].sqrt() * x_t - (1 - a[t]).sqrt() * predicted)
    small = posterior(0.0, max(t, 1)).variance.log()  # at t = 0 the variance of t = 1 stands in for zero
    scale = (0.5 * (fraction * beta[t].log() + (1 - fraction) * small)).exp()
    if t:
        return float(kl_divergence(posterior(x_0, t), Normal(posterior(predicted, t).mean, scale))) / math.log(2)
    model = Normal(torch.tensor(predicted, dtype=torch.float64), scale)
    below = 0.0 if x_0 < -0.999 else float(model.cdf(torch.tensor(x_0 - 1 / 255)))
    above = 1.0 if x_0 > 0.999 else float(model.cdf(torch.tensor(x_0 + 1 / 255)))
    return -math.log2(max(above - below, 1e-12))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_variational_bound_by_hand(prediction: str, scale: float) -> None:
    scheduler = DDPMScheduler(beta_schedule="linear", prediction_type=prediction, variance_type="learned_range")
    objective = DiffusionObjective(scheduler, codec=MaskCodec(scale=scale), learned_variance=True)
    timestep = torch.tensor([0, 1, 2, 40, 500, 999])
    generator = torch.Generator().manual_seed(0)
    x_0 = (torch.rand(6, 1, 2, 2, generator=generator) > 0.5).float() * 2 * scale - scale
    noise = torch.randn(x_0.shape, generator=generator)
    x_t = objective.add_noise(x_0, noise, timestep)
    truth = {"epsilon": noise, "sample": x_0, "v_prediction": objective._velocity(x_0, noise, timestep)}[prediction]
    output = torch.cat([truth + 0.01, torch.rand(x_0.shape, generator=generator) * 2 - 1], dim=1)
    known = torch.ones_like(x_0, dtype=torch.bool)
    known[:, :, 1, 1] = False
    bound = objective._variational_bound(x_0, x_t, timestep, output, known)
    pixels = [(0, 0), (0, 1), (1, 0)]
    for m, t in enumerate(timestep.tolist()):
        expected = [
            by_hand(
                scheduler,
                x_0[m, 0, i, j].item(),
                x_t[m, 0, i, j].item(),
                t,
                output[m, 0, i, j].item(),
                (output[m, 1, i, j].item() + 1) / 2,
                prediction,
            )
            for i, j in pixels
        ]
        assert bound[m].item() == pytest.approx(sum(expected) / 3, rel=5e-3, abs=2e-5), t


def test_variational_bound_trains_only_the_variance() -> None:
    model, keys = Pixelwise(channels=2), Keys.span(0, 0, 0, 3)
    objective = DiffusionObjective(make_scheduler(), codec=MaskCodec(), learned_variance=True)
    losses = objective.loss(model, make_batch(), keys)
    torch.testing.assert_close(losses["loss"], losses["mse"] + losses["vlb"])
    losses["vlb"].sum().backward()
    assert model.shift.grad is not None
    assert (model.shift.grad[0] == 0).all() and (model.shift.grad[1] != 0).any()


def test_losses_do_not_depend_on_the_split_of_the_batch() -> None:
    objective = DiffusionObjective(make_scheduler(zero_snr=True), codec=MaskCodec(scale=0.5), loss_type="bce_dice")
    batch, model = make_batch(3), Pixelwise()
    whole = objective.loss(model, batch, Keys.span(2, 9, 0, 3))["loss"]
    parts = []
    for b in range(3):
        one = slice(b, b + 1)
        single = SceneBatch(
            image=batch.image[one],
            amodal_masks=batch.amodal_masks[one],
            counts=batch.counts[one],
            layer_index=batch.layer_index[one],
            order_matrix=batch.order_matrix[one],
            known=batch.known[one],
            ids=batch.ids[one],
        )
        parts.append(objective.loss(model, single, Keys.span(2, 9, b, b + 1))["loss"])
    assert [len(part) for part in parts] == [4, 4, 1]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-6, atol=1e-7)


def test_logit_loss_needs_sample_prediction() -> None:
    with pytest.raises(ValueError, match='loss_type "bce_dice" needs prediction_type "sample", got \'epsilon\''):
        DiffusionObjective(make_scheduler(prediction="epsilon"), codec=MaskCodec(), loss_type="bce_dice")


# ---------------------------------------------------------------------- the reverse process


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler])
def test_oracle_recovers_the_masks(kind: type, prediction: str, steps: int) -> None:
    zero_snr = prediction != "epsilon"  # on pure noise the noise says nothing about the mask
    scheduler = make_scheduler(kind, prediction=prediction, zero_snr=zero_snr)
    for codec in (MaskCodec(scale=1.0), MaskCodec(scale=0.5), MaskCodec(scale=1.0, centred=False)):
        soft = draw(scheduler, Oracle(scheduler), codec, steps=steps)
        assert soft.shape == (5, 1, SIZE, SIZE) and torch.isfinite(soft).all()
        assert torch.equal(soft > 0.5, true_masks())
        # One step from a_T near 0 divides the noise's rounding error by sqrt(a_T).
        torch.testing.assert_close(soft, true_masks().float(), rtol=0, atol=0.02 if prediction == "epsilon" else 1e-3)


@pytest.mark.parametrize(
    "steps", [1, 4, 6, 20, 61, 128]
)  # with 6, 61 and 128 the last time step is 0, or one is dropped
@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler])
def test_oracle_of_logits_recovers_the_masks(kind: type, steps: int) -> None:
    scheduler = make_scheduler(kind, zero_snr=True)
    for scale in (0.1, 0.5, 1.0):
        codec = MaskCodec(scale=scale)
        soft = draw(scheduler, Oracle(scheduler, logits=True), codec, steps=steps, logits=True)
        torch.testing.assert_close(soft, true_masks().float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 4, 20])
@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_finite_on_pure_noise_with_a_wild_network(kind: type, steps: int, prediction: str) -> None:
    class Wild(nn.Module):
        def forward(self, noisy: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            return 1e4 * torch.sin(50 * noisy)

    soft = draw(make_scheduler(kind, prediction=prediction, zero_snr=True), Wild(), MaskCodec(scale=0.5), steps=steps)
    assert torch.isfinite(soft).all() and soft.min() >= 0 and soft.max() <= 1


def test_sampling_starts_at_pure_noise_and_walks_down() -> None:
    scheduler = make_scheduler(zero_snr=True)
    model = Oracle(scheduler)
    steps: list[tuple[int, int]] = []

    def watch(index: int, t: torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
        steps.append((index, int(t)))
        return x_t

    draw(scheduler, model, MaskCodec(), steps=4, on_step=watch)
    assert steps == [(0, 999), (1, 749), (2, 499), (3, 249)]
    first = model.seen[0][0]
    noise = torch.stack([torch.randn(1, SIZE, SIZE, generator=generator_for(7, row)) for row in range(5)])
    assert torch.equal(first, noise)
    assert len(scheduler.timesteps) == 1000  # the caller's scheduler is left as it was


@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler])
def test_rows_do_not_change_the_result(kind: type) -> None:
    torch.manual_seed(0)
    model = ConcatUNet(
        size=SIZE, channels=(8, 16), blocks=1, attention_sizes=(), patch=1, norm_groups=4, heads=0
    ).eval()
    images = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    picture = torch.tensor([0, 0, 0, 1, 1])
    drawn = {}
    for rows in (1, 2, 64):
        sampler = Sampler(
            scheduler=make_scheduler(kind, zero_snr=True), codec=MaskCodec(scale=0.5), logits=True, steps=3, rows=rows
        )
        generators = [generator_for(0, row) for row in range(5)]
        drawn[rows] = sampler(model, model.encode(images), true_masks(), generators, picture=picture)
    torch.testing.assert_close(drawn[1], drawn[64], rtol=0, atol=1e-6)
    torch.testing.assert_close(drawn[2], drawn[64], rtol=0, atol=1e-6)
    assert all(not torch.equal(a, b) for a, b in pairwise(drawn[64]))  # members differ


def test_member_noise_is_its_generators_alone() -> None:
    """DDPM adds noise at every step: each row must go on with its own generator, whatever its neighbours."""
    scheduler = make_scheduler(DDPMScheduler, zero_snr=True)
    seen: dict[int, list[torch.Tensor]] = {1: [], 64: []}
    for rows in seen:
        draw(scheduler, model := Oracle(scheduler), MaskCodec(), steps=4, rows=rows, members=2)
        seen[rows] = [noisy for noisy, *_ in model.seen]
    by_row = torch.stack(seen[1]).reshape(10, 4, 1, SIZE, SIZE).transpose(0, 1)
    torch.testing.assert_close(by_row, torch.stack(seen[64]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_variance_channel_is_split_off(kind: type) -> None:
    scheduler = make_scheduler(kind)
    one = draw(scheduler, Oracle(scheduler), MaskCodec(), steps=4)
    two = draw(scheduler, Oracle(scheduler, variance=0.7), MaskCodec(), steps=4)
    assert torch.equal(one, two)


@pytest.mark.parametrize("variance", [-1.0, 0.3, 1.0])
def test_variance_channel_is_passed_to_ddpm(variance: float) -> None:
    scheduler = make_scheduler(DDPMScheduler, variance_type="learned_range")
    seen: list[torch.Tensor] = []

    def watch(index: int, t: torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
        seen.append(x_t.clone())
        return x_t

    soft = draw(scheduler, Oracle(scheduler, variance=variance), MaskCodec(), steps=4, on_step=watch)
    # By hand: at each step the posterior's mean, and noise between the smallest and the largest variance.
    a, codes = scheduler.alphas_cumprod, MaskCodec().encode(true_masks())
    generators = [generator_for(7, row) for row in range(5)]
    x_t = torch.stack([torch.randn(1, SIZE, SIZE, generator=generator) for generator in generators])
    for index, (t, previous) in enumerate(pairwise([999, 749, 499, 249])):
        alpha = a[t] / a[previous]
        mean = (a[previous].sqrt() * (1 - alpha) * codes + alpha.sqrt() * (1 - a[previous]) * x_t) / (1 - a[t])
        small, large = ((1 - a[previous]) / (1 - a[t]) * (1 - alpha)).log(), (1 - alpha).log()
        deviation = (((variance + 1) / 2 * large + (1 - variance) / 2 * small) / 2).exp()
        noise = torch.stack([torch.randn(1, SIZE, SIZE, generator=generator) for generator in generators])
        x_t = mean + deviation * noise
        torch.testing.assert_close(seen[index], x_t, rtol=1e-4, atol=1e-4)
    assert torch.equal(soft > 0.5, true_masks())  # the last step adds no noise, however few there are


def test_features_may_be_a_nest() -> None:
    scheduler = make_scheduler(zero_snr=True)
    codec, picture = MaskCodec(), torch.tensor([4, 0, 2])

    class Nested(Oracle):
        def forward(self, noisy: Any, timestep: Any, cumulative: Any, features: Any) -> torch.Tensor:
            assert len(features[1][0]) == len(noisy)
            return super().forward(noisy, timestep, cumulative, features[0])

    sampler = Sampler(scheduler=scheduler, codec=codec, logits=False, steps=2, rows=2)
    features = (codec.encode(true_masks()), (torch.arange(5.0),))
    cumulative = torch.zeros(3, 1, SIZE, SIZE, dtype=torch.bool)
    soft = sampler(
        Nested(scheduler), features, cumulative, [generator_for(0, row) for row in range(3)], picture=picture
    )
    assert torch.equal(soft > 0.5, true_masks()[picture])


# ---------------------------------------------------------------------- the network's own cumulative masks, and the energy score


class Constant(nn.Module):
    """Draws a given mask for each number of pixels found so far, whatever the noise; a parameter makes it trainable."""

    def __init__(self, answers: dict[int, torch.Tensor]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))
        self.answers = answers
        self.cumulative: list[torch.Tensor] = []

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return image

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, cumulative: torch.Tensor, features: torch.Tensor
    ) -> torch.Tensor:
        self.cumulative.append(cumulative > 0)
        found = (cumulative > 0).flatten(1).sum(dim=1).tolist()
        nothing = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        masks = torch.stack([self.answers.get(number, nothing) for number in found])[:, None]
        return (masks.float() * 2 - 1) * self.scale


def logit_objective(**changes: Any) -> DiffusionObjective:
    scheduler = make_scheduler(zero_snr=True)
    return DiffusionObjective(scheduler, codec=MaskCodec(scale=0.5), loss_type="bce_dice", **changes)


def test_rollout_is_what_the_network_would_have_found() -> None:
    batch, keys = make_batch(), Keys(0, 0, (0, 1, 2))
    wrong = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    wrong[0, :3] = True  # not the first layer, whatever the picture
    more = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    more[7] = True
    network = Constant({0: wrong, 3: more})
    logit_objective(rollout=1.0).loss(network, batch, keys)
    items = layer_items(batch, keys)
    seen = network.cumulative[-1][:, 0]
    for m, layer in enumerate(items.layer.tolist()):
        expected = [torch.zeros_like(wrong), wrong, wrong | more, wrong | more][layer]
        assert torch.equal(seen[m], expected & batch.frame[items.picture[m], 0]), (m, layer)


def test_nothing_is_drawn_on_grey_bars() -> None:
    """A network that sets every cell sees none beyond the frame, and the frame of its own picture is taken."""
    frame = torch.ones(2, 1, SIZE, SIZE, dtype=torch.bool)
    frame[1, :, : SIZE // 2] = False
    codec, seen = MaskCodec(scale=1.0), []
    network = Constant({0: torch.ones(SIZE, SIZE, dtype=torch.bool)})
    sampler = Sampler(
        scheduler=make_scheduler(prediction="sample"),
        codec=codec,
        logits=True,
        steps=3,
        rows=2,
        on_step=lambda index, t, x_t: seen.append(x_t) or x_t,
    )
    picture = torch.tensor([1, 0, 1])
    drawn = sampler(
        network,
        torch.zeros(2, 3, SIZE, SIZE),
        torch.zeros(3, 1, SIZE, SIZE, dtype=torch.bool),
        [generator_for(0, row) for row in range(3)],
        picture=picture,
        frame=frame,
    )
    assert torch.equal(drawn > 0.5, frame[picture])
    assert (drawn[~frame[picture]] == 0).all()
    last = torch.cat([seen[2], seen[5]])  # of both calls
    assert (last[~frame[picture]] == -1).all() and (last[frame[picture]] == 1).all()


def test_masks_that_are_no_numbers_are_an_error_and_not_an_empty_layer() -> None:
    sampler = Sampler(
        scheduler=make_scheduler(prediction="sample"), codec=MaskCodec(scale=1.0), logits=True, steps=1, rows=2
    )
    with pytest.raises(RuntimeError, match=r"masks drawn must be finite, got NaN .* torch.float32: use float32"):
        sampler(
            lambda x_t, *_: torch.full_like(x_t, torch.nan),
            torch.zeros(1, 3, SIZE, SIZE),
            torch.zeros(1, 1, SIZE, SIZE, dtype=torch.bool),
            [generator_for(0)],
            picture=torch.tensor([0]),
        )


def test_rollout_is_drawn_with_averaged_weights_where_there_are_any() -> None:
    batch, keys = make_batch(), Keys(0, 0, (0, 1, 2))
    wrong = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    wrong[0, :3] = True
    trained, averaged = Constant({}), Constant({0: wrong})
    logit_objective(rollout=1.0).loss(trained, batch, keys, averaged=averaged)
    assert len(trained.cumulative) == 1, "the trained network draws nothing"
    for seen, layer in zip(trained.cumulative[0][:, 0], layer_items(batch, keys).layer.tolist(), strict=True):
        assert torch.equal(seen, wrong if layer else torch.zeros_like(wrong))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_rollout_takes_its_share_of_pictures(share: float) -> None:
    batch, touched, steps = make_batch(), 0, 40
    for step in range(steps):
        keys, network = Keys(0, step, (0, 1, 2)), Constant({})
        logit_objective(rollout=share).loss(network, batch, keys)
        items = layer_items(batch, keys)
        own = (network.cumulative[-1] != items.cumulative).flatten(1).any(dim=1)
        within = [own[items.picture == picture] & (items.layer > 0)[items.picture == picture] for picture in range(3)]
        expected = [(items.layer > 0)[items.picture == picture] for picture in range(3)]
        for found, all_of_them in zip(
            within, expected, strict=True
        ):  # an empty drawing differs from every layer but the first
            assert torch.equal(found, all_of_them) or not found.any()
            touched += bool(found.any())
    pictures = steps * sum(bool(count) for count in batch.layer_counts)
    assert touched == 0 if share == 0 else 0.3 * pictures < touched < 0.7 * pictures


def test_rollout_has_no_gradient_and_is_reproducible() -> None:
    batch, keys = make_batch(), Keys(0, 0, (0, 1, 2))
    losses = []
    for _ in range(2):
        network = ConcatUNet(size=SIZE, channels=(8,), blocks=1, heads=0, norm_groups=4)
        torch.manual_seed(0)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
        losses.append(logit_objective(rollout=0.7).loss(network, batch, keys)["loss"])
    assert torch.equal(*losses) and losses[0].requires_grad


class Guesses(nn.Module):
    """Guesses the left half at the last time step and the right half before it; remembers the noised masks and times it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return image

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        self.seen.append((noisy, timestep))
        left = torch.where(torch.arange(SIZE) < SIZE // 2, 100.0, -100.0).expand(len(noisy), 1, SIZE, SIZE)
        return torch.where((timestep == 999)[:, None, None, None], left, -left)


@pytest.mark.parametrize("noise_scale", [1.0, 0.6])
def test_self_alignment_shows_the_own_guess_under_the_noise_it_began_with(noise_scale: float) -> None:
    batch, keys, network = make_batch(), Keys(0, 0, (0, 1, 2)), Guesses()
    batch.frame[1, :, :2] = False
    objective = logit_objective(self_alignment=1.0, noise_scale=noise_scale)
    losses = objective.loss(network, batch, keys)  # type: ignore[arg-type]
    (begun, last), (shown, timestep) = network.seen
    items = layer_items(batch, keys)
    noise = keys.items(items.picture, items.slot).normal("noise", 1, SIZE, SIZE) * noise_scale
    torch.testing.assert_close(begun, noise, atol=2e-3, rtol=0)  # the last signal rate is not quite zero
    assert (last == 999).all() and len(timestep.unique()) == len(items)
    assert timestep.min() < 300 and timestep.max() < 999
    guess = (torch.arange(SIZE) < SIZE // 2) & items.frame
    a = rearrange(objective.alphas_cumprod[timestep], "m -> m 1 1 1")
    torch.testing.assert_close(shown, a.sqrt() * objective.codec.encode(guess) + (1 - a).sqrt() * noise)
    answer = (torch.arange(SIZE) >= SIZE // 2).expand_as(items.target)
    wrong = ((answer != items.target) & items.known).flatten(1).sum(dim=1) / items.known.flatten(1).sum(dim=1)
    torch.testing.assert_close(losses["bce"], wrong * 100)  # what is taught is the truth and not the guess


def test_the_sampler_shows_at_its_second_step_what_self_alignment_shows() -> None:
    """In the words of the test above: the guess at the second time step, under the noise that the first one saw."""
    objective, network = logit_objective(self_alignment=1.0), Guesses()
    scheduler = make_scheduler(zero_snr=True)
    sampler = Sampler(scheduler=scheduler, codec=objective.codec, logits=True, steps=4, rows=8, noise_scale=0.6)
    sampler(
        network,  # type: ignore[arg-type]
        torch.zeros(1, 3, SIZE, SIZE),
        torch.zeros(2, 1, SIZE, SIZE, dtype=torch.bool),
        [generator_for(0, row) for row in range(2)],
        picture=torch.tensor([0, 0]),
    )
    (begun, last), (shown, timestep) = network.seen[:2]
    assert last.tolist() == [999, 999] and timestep.tolist() == [749, 749]
    guess = objective.codec.encode((torch.arange(SIZE) < SIZE // 2).expand_as(begun))
    torch.testing.assert_close(shown, objective.add_noise(guess, begun, timestep), atol=2e-3, rtol=0)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_self_alignment_takes_its_share_of_items_and_leaves_the_others(share: float) -> None:
    batch, taken, items = make_batch(), 0, 0
    for step in range(30):
        keys, network, plain = Keys(0, step, (0, 1, 2)), Pixelwise(), Pixelwise()
        logit_objective(self_alignment=share).loss(network, batch, keys)
        logit_objective().loss(plain, batch, keys)
        other = (network.seen[-1][0] != plain.seen[-1][0]).flatten(1).any(dim=1)
        assert torch.equal(network.seen[-1][1][~other], plain.seen[-1][1][~other])
        taken, items = taken + int(other.sum()), items + len(other)
    assert taken == 0 if share == 0 else 0.4 * items < taken < 0.6 * items


def test_self_alignment_has_no_gradient_of_the_guess_and_is_reproducible() -> None:
    batch, keys = make_batch(), Keys(0, 0, (0, 1, 2))
    gradients = []
    for _ in range(2):
        network = Pixelwise()
        logit_objective(self_alignment=1.0).loss(network, batch, keys)["loss"].sum().backward()
        gradients.append(network.mix.grad)
    noisy, timestep, cumulative, features = network.seen[1]
    items, fresh = layer_items(batch, keys), Pixelwise()
    losses = _bce_dice(fresh(noisy, timestep, cumulative, features), items.target, items.known)
    (losses["bce"] + losses["dice"]).sum().backward()
    assert torch.equal(*gradients) and not noisy.requires_grad  # type: ignore[call-overload]
    torch.testing.assert_close(gradients[0], fresh.mix.grad)


def test_energy_score_by_hand() -> None:
    """Two samples of one pixel: distance to the truth less half their own distance."""
    batch, keys = make_batch(1), Keys(0, 0, (0,))
    objective = logit_objective(energy_weight=1.0, energy_members=2)
    items = layer_items(batch, keys)

    class Samples(nn.Module):
        def forward(self, noisy: torch.Tensor, *rest: object) -> torch.Tensor:
            sample = torch.full((len(noisy), 1, SIZE, SIZE), 100.0)
            sample[::2] = -100.0  # an empty mask and a full one in turn
            return sample

    score = objective._energy_score(Samples(), batch.image[items.picture], items, keys)  # type: ignore[arg-type]
    for m in range(len(items)):
        known, target = items.known[m, 0], items.target[m, 0]
        share = float((target & known).sum() / known.sum())
        by_hand = (math.sqrt(share) + math.sqrt(1 - share)) / 2 - 1 / 2
        assert float(score[m]) == pytest.approx(by_hand, abs=2e-3)


def test_energy_score_prefers_the_true_distribution() -> None:
    """Truth: a full or an empty mask with equal chance. Samples that do the same score better than always one of them or the mean."""
    batch, keys = make_batch(1), Keys(0, 0, (0,))
    items = layer_items(batch, keys)
    objective = logit_objective(energy_weight=1.0, energy_members=16)

    def expected(logits: torch.Tensor) -> float:
        class Samples(nn.Module):
            def forward(self, noisy: torch.Tensor, *rest: object) -> torch.Tensor:
                return logits.repeat(len(noisy) // 16)[:, None, None, None].expand(-1, 1, SIZE, SIZE)

        scores = []
        for value in (False, True):
            truth = torch.full_like(items.target, value)
            scores.append(
                objective._energy_score(
                    Samples(), batch.image[items.picture], replace(items, target=truth), keys
                ).mean()
            )  # type: ignore[arg-type]
        return float(torch.stack(scores).mean())

    both = expected(torch.tensor([-100.0, 100.0] * 8))
    assert both < expected(torch.full((16,), 100.0)) - 0.1 and both < expected(torch.zeros(16)) - 0.1


def test_stop_loss_is_the_cross_entropy_of_emptiness() -> None:
    batch, keys = make_batch(), Keys(0, 0, (0, 1, 2))
    network = Pixelwise(2)
    losses = logit_objective(stop_weight=2.0).loss(network, batch, keys)
    items = layer_items(batch, keys)
    noisy, timestep, cumulative, features = network.seen[-1]
    logit = network(noisy, timestep, cumulative, features)[:, 1].mean(dim=(1, 2))
    empty = (~items.target.flatten(1).any(dim=1)).float()
    by_hand = 2 * nn.functional.binary_cross_entropy_with_logits(logit, empty, reduction="none")
    torch.testing.assert_close(losses["stop"], by_hand)
    torch.testing.assert_close(losses["loss"], losses["bce"] + losses["dice"] + losses["stop"])


@pytest.mark.parametrize("changes", [{"rollout": 0.5}, {"energy_weight": 1.0}, {"self_alignment": 0.5}])
def test_own_samples_need_logits(changes: dict[str, float]) -> None:
    with pytest.raises(
        ValueError, match="rollout, energy_weight and self_alignment need loss_type \"bce_dice\", got 'mse'"
    ):
        DiffusionObjective(make_scheduler(), codec=MaskCodec(), **changes)  # type: ignore[arg-type]


def test_stop_probability_is_read_at_the_first_step() -> None:
    class Steps(nn.Module):
        """Says 3 at the last time step and -3 later."""

        def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, *rest: object) -> torch.Tensor:
            logit = torch.where(timestep == 999, 3.0, -3.0)[:, None, None, None].expand(-1, 1, SIZE, SIZE)
            return torch.cat([torch.zeros_like(logit), logit], dim=1)

    sampler = Sampler(
        scheduler=make_scheduler(zero_snr=True), codec=MaskCodec(), logits=True, steps=4, rows=8, stop=(2.0, 1.0)
    )
    drawn = sampler(
        Steps(),  # type: ignore[arg-type]
        torch.zeros(1, 3, SIZE, SIZE),
        torch.zeros(2, 1, SIZE, SIZE, dtype=torch.bool),
        [generator_for(0, "a", n) for n in range(2)],
        picture=torch.tensor([0, 0]),
    )
    assert drawn.shape == (2, 2, SIZE, SIZE)
    torch.testing.assert_close(drawn[:, 1], torch.full((2, SIZE, SIZE), 1 / (1 + math.exp(-7))))
