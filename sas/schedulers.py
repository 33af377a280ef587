"""Whether a diffusers scheduler can do what some weights ask of it; many accept a setting and then refuse or ignore it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from sas.io import first_line

CURE = "use DDIMScheduler, DDPMScheduler or DPMSolverMultistepScheduler"


def takes_variance(scheduler: Any) -> bool:
    """Whether `step` wants the network's second channel, a learned variance; others that have the setting from DDPM's make no use of it."""
    return type(scheduler).__name__ == "DDPMScheduler" and scheduler.config.get("variance_type") in (
        "learned",
        "learned_range",
    )


def check_scheduler(fresh: Callable[[], Any], *, scale: float, steps: int) -> None:
    """ValueError for a scheduler that does not work with its own prediction type, or not in this number of steps.

    fresh: makes a new copy of it. scale: value of a pixel inside a mask, as the network sees it. One that is told x_0 must end near the
    x_0 that it is told, and a small change of that from step to step must not grow on the way, as Heun's correction of a first step from
    pure noise makes it; of other prediction types the first step is tried.
    """
    scheduler = fresh()
    name, prediction = type(scheduler).__name__, scheduler.config.get("prediction_type")
    words = f"scheduler must be one that works with prediction_type {prediction!r}, got {name}"
    few = min(10, scheduler.config.num_train_timesteps)
    try:
        with torch.random.fork_rng(devices=[]):
            if prediction == "sample":
                shown, told, ended = _path(scheduler, scale, few)
                shaken, _, _ = _path(fresh(), scale, few, shake=0.05)
            else:
                _first_step(scheduler, few)
                shown = shaken = told = ended = torch.zeros(1)
    except Exception as error:
        raise ValueError(f"{words} ({first_line(error)}): {CURE}") from error
    if not (far := _distance(ended, told, scale)) < 0.5:
        raise ValueError(
            f"{words} (it ends {far:.2g} times the mask's scale away from the x_0 that it was told): {CURE}"
        )
    if not (far := _distance(shown, shaken, scale)) < 0.5:
        raise ValueError(
            f"{words} (if x_0 changes by 5 %, what it shows the network changes by {far:.2g} times the mask's scale): {CURE}"
        )
    try:
        set_steps(fresh(), steps)
    except Exception as error:
        raise ValueError(
            f"num_inference_steps must be a number that {name} can take, got {steps} ({first_line(error)}): use more steps, or DDIMScheduler"
        ) from error


def set_steps(scheduler: Any, steps: int, device: torch.device | str | None = None) -> None:
    """`set_timesteps`, without the step at t = -1 that rounding adds for some numbers (61 of 1000, say) with trailing spacing."""
    scheduler.set_timesteps(steps, device=device)
    inside = scheduler.timesteps >= 0
    if not inside.all():
        if len(getattr(scheduler, "sigmas", ())) == len(inside) + 1:  # one a step, and where the last step ends
            scheduler.sigmas = torch.cat(
                [scheduler.sigmas[:-1][inside.to(scheduler.sigmas.device)], scheduler.sigmas[-1:]]
            )
        scheduler.timesteps = scheduler.timesteps[inside]


def _path(
    scheduler: Any, scale: float, steps: int, *, shake: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What it shows the network, step by step, if told each time that x_0 is a mask of all pixels, in turns a little larger and smaller;
    the last x_0 that it was told, and the one that it ends at."""
    set_steps(scheduler, steps)
    draw = torch.Generator().manual_seed(0)
    x_t = torch.randn(1, 1, 4, 4, generator=draw) * scheduler.init_noise_sigma
    shown, told = [], torch.full_like(x_t, scale)
    torch.default_generator.manual_seed(0)
    for step, t in enumerate(scheduler.timesteps):
        shown.append(scheduler.scale_model_input(x_t, t))
        told = torch.full_like(x_t, scale * (1 + shake * (-1) ** step))
        x_t = scheduler.step(told, t, x_t)[0]
    return torch.stack(shown), told, x_t


def _distance(one: torch.Tensor, other: torch.Tensor, scale: float) -> float:
    far = float((one - other).abs().max()) / scale
    return far if math.isfinite(far) else math.inf


def _first_step(scheduler: Any, steps: int) -> None:
    set_steps(scheduler, steps)
    x_t = torch.zeros(1, 1, 4, 4)
    told = torch.zeros(1, 2, 4, 4) if takes_variance(scheduler) else x_t
    scheduler.scale_model_input(x_t, scheduler.timesteps[0])
    scheduler.step(told, scheduler.timesteps[0], x_t)
