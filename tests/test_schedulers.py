"""Schedulers of diffusers: those that reach the x_0 they are told, and those that only say so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from sas.schedulers import check_scheduler, set_steps, takes_variance

OURS = DDIMScheduler(prediction_type="sample", rescale_betas_zero_snr=True, timestep_spacing="trailing")


def check(scheduler: Any, *, steps: int = 4) -> None:
    check_scheduler(lambda: type(scheduler).from_config(scheduler.config), scale=0.3, steps=steps)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "kind",
    [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, UniPCMultistepScheduler],
)  # fmt: skip
def test_those_that_reach_x_0(kind: Any) -> None:
    check(kind.from_config(OURS.config))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (PNDMScheduler, "prediction_type given as sample must be .*"),
        (EulerAncestralDiscreteScheduler, "prediction_type not implemented yet: sample"),
        (FlowMatchEulerDiscreteScheduler, ".* has no attribute .*"),
        (IPNDMScheduler, "it ends .* times the mask's scale away from the x_0 that it was told"),
        (DDIMInverseScheduler, "it ends .* times the mask's scale away from the x_0 that it was told"),
    ],
)
def test_those_that_do_not(kind: Any, reason: str) -> None:
    scheduler = kind.from_config(OURS.config)
    words = rf"works with prediction_type .*, got {kind.__name__} \({reason}\): use DDIMScheduler, "
    with pytest.raises(ValueError, match=words):
        check(scheduler)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_one_that_reaches_x_0_but_magnifies_changes_on_the_way(steps: int) -> None:
    """Heun's second look at the first step multiplies a change of x_0 by sigma_0 / (2 sigma_1): 200 where a cosine schedule ends in pure noise."""
    scheduler = HeunDiscreteScheduler.from_config(OURS.config, beta_schedule="squaredcos_cap_v2")
    reason = "if x_0 changes by 5 %, what it shows the network changes by .* times the mask's scale"
    with pytest.raises(ValueError, match=rf"got HeunDiscreteScheduler \({reason}\): use DDIMScheduler, "):
        check(scheduler, steps=steps)
    check(DDIMScheduler.from_config(scheduler.config), steps=steps)


def test_a_number_of_steps_that_it_cannot_take() -> None:
    solver = PNDMScheduler(prediction_type="epsilon")
    with pytest.raises(ValueError, match=r"num_inference_steps must be a number that PNDMScheduler can take, got 2 \("):
        check(solver, steps=2)
    check(solver, steps=10)


@pytest.mark.parametrize("steps", [3, 4, 61, 103, 206, 1000])
def test_no_step_lies_before_the_first(steps: int) -> None:
    """diffusers' trailing spacing rounds 61 of 1000 to 62 steps, the last at -1."""
    scheduler = DDIMScheduler.from_config(OURS.config)
    set_steps(scheduler, steps)
    assert len(scheduler.timesteps) == steps and scheduler.timesteps[0] == 999 and scheduler.timesteps[-1] >= 0
    check(OURS, steps=steps)


def test_checking_draws_no_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU's random state was set"))
    before = torch.get_rng_state()
    check(DDPMScheduler(prediction_type="sample"))
    assert torch.equal(before, torch.get_rng_state())


def test_only_ddpm_takes_a_learned_variance() -> None:
    learned = DDPMScheduler(variance_type="learned_range")
    check(learned)
    assert takes_variance(learned)
    assert not takes_variance(DPMSolverMultistepScheduler.from_config(learned.config))
    assert not takes_variance(DDPMScheduler())
