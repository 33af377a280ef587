"""How a result came about: why its layers ended, how its members were drawn, and with which weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

StopReason = Literal["empty", "no_progress", "max_layers"]
Consensus = Literal["medoid", "mean"]
Mode = Literal["diffusion", "marginal"]


@dataclass(frozen=True)
class Stop:
    """Why the sequence of layers ended.

    reason: "empty" (nothing more was found), "no_progress" (the next layer added nothing), "max_layers" (as many layers as allowed, or twice as many
        parts that were joined to them).
    votes: members that were void at the last step, 0..members; all of them if `probability` lay above the threshold.
    probability: of the weights' own stop output, calibrated: that nothing was left at the last step, in [0, 1]; None if they have none.
    threshold: above which that probability ends the sequence, in (0, 1]; None for weights without that output, and in results of before.
    """

    reason: StopReason
    votes: int
    probability: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        _check_choice(self.reason, get_args(StopReason), name="stop.reason")
        check_int(self.votes, name="stop.votes", low=0)
        if self.probability is not None and not 0 <= self.probability <= 1:
            raise ValueError(
                f"stop.probability must lie in [0, 1] or be None, got {self.probability!r}: pass a probability"
            )
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(
                f"stop.threshold must lie in (0, 1] or be None, got {self.threshold!r}: pass that of the rules"
            )


@dataclass(frozen=True)
class EnsembleSettings:
    """How the members were drawn: how many, in how many denoising steps, from which seed, and how they became one
    mask.

    noise_scale: standard deviation of the noise that a member begins with, in [0, 2]; 1 in results of before."""

    members: int
    steps: int
    seed: int
    consensus: Consensus
    mode: Mode
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        check_int(self.members, name="settings.members", low=1)
        check_int(self.steps, name="settings.steps", low=1)
        check_int(self.seed, name="settings.seed", low=0)
        _check_choice(self.consensus, get_args(Consensus), name="settings.consensus")
        _check_choice(self.mode, get_args(Mode), name="settings.mode")
        check_noise_scale(self.noise_scale, name="settings.noise_scale")


@dataclass(frozen=True)
class ModelInfo:
    """Which weights were used: a name, and the SHA-256 of the weights file in lower-case hex ("" for weights never
    saved)."""

    id: str
    sha256: str

    def __post_init__(self) -> None:
        check_text(self.id, name="model.id")
        check_text(self.sha256, name="model.sha256")
        if not re.fullmatch(r"([0-9a-f]{64})?", self.sha256):
            raise ValueError(
                f'model.sha256 must be 64 lower-case hex digits or "", got {self.sha256!r}: pass '
                "hashlib.sha256(...).hexdigest()"
            )


def check_int(value: object, *, name: str, low: int) -> None:
    """ValueError unless `value` is an integer of at least `low`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}: pass int(...)")


def check_noise_scale(value: object, *, name: str) -> None:
    """ValueError unless `value` is a number in [0, 2]."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) <= 2:
        raise ValueError(
            f"{name} must be a number from 0 to 2, got {value!r}: pass 1 for all the noise of training, less for members that differ less"
        )


def check_text(value: object, *, name: str) -> None:
    """TypeError unless `value` is a str."""
    if not isinstance(value, str):
        raise TypeError(f'{name} must be a str, got {type(value).__name__}: pass its name, or "" if it has none')


def _check_choice(value: object, choices: tuple[str, ...], *, name: str) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}: choose one of these")
