"""What the arguments of sampling may be. Names and words are those of `SASPipeline`."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, get_args

from sas.provenance import Consensus, check_noise_scale

MAX_SEED = 2**63 - 1
LARGEST = {"ensemble_size": 4096, "num_inference_steps": 10_000, "max_layers": 1024, "batch_size": 1_000_000}
"""Most that each of these arguments may be; the least is 1."""
FRACTIONS = {
    "threshold": ("()", "pass a fraction"),
    "void_area": ("[)", "pass a fraction"),
    "stop_threshold": ("(]", "lower values draw fewer layers"),
    "min_overlap": ("[)", "pass a fraction"),
}
"""Open and closed ends of an argument that lies between 0 and 1, and how to choose it."""
CHOICES = {"consensus": get_args(Consensus), "image_range": ("unit", "bytes")}


def check_arguments(values: Mapping[str, Any]) -> None:
    """ValueError that names the argument unless each of these arguments of sampling that is given is one that it could use."""
    for name, most in LARGEST.items():
        if name in values:
            check_integer(name, values[name], low=1, high=most)
    for name, (ends, cure) in FRACTIONS.items():
        if name in values:
            value = values[name]
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not number or not (0 < value < 1 or (value == 0 and ends[0] == "[") or (value == 1 and ends[1] == "]")):
                raise ValueError(f"{name} must lie in {ends[0]}0, 1{ends[1]}, got {value!r}: {cure}")
    if "noise_scale" in values:
        check_noise_scale(values["noise_scale"], name="noise_scale")
    for name, choices in CHOICES.items():
        if name in values and values[name] not in choices:
            rule = " or ".join(f'"{one}"' for one in choices)
            raise ValueError(f"{name} must be {rule}, got {values[name]!r}: choose one of them")


def check_sizes(model: Any, *, image_size: int, mask_size: int) -> None:
    """ValueError unless images and masks are as large as the network was built for, as far as its configuration tells."""
    built = getattr(model, "config", None)
    if not isinstance(built, Mapping):
        return
    for name, value in (("image_size", image_size), ("mask_size", mask_size)):
        own = built.get(name, built.get("size"))
        if own is not None and value != own:
            raise ValueError(f"{name} must be what the network was built for, {own}, got {value!r}: pass {own}")


def check_integer(name: str, value: object, *, low: int, high: int) -> int:
    """The value as a plain int, which NumPy's are not."""
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if number is None or not low <= number <= high:
        raise ValueError(f"{name} must be an integer from {low} to {high}, got {value!r}: pass a number in that range")
    return number
