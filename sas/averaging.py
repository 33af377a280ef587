"""The mean of several weights of one network, as one pipeline.

Runs that begin from each other's ends (`--init-from`) stop at different places around one optimum; their mean lies nearer to it and usually
scores better than each (Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sas.io import InputError
from sas.pipeline import SASPipeline
from sas.pretrained import meanings

_SIZES = ("image_size", "mask_size", "stop_head", "data_split")


def average_weights(weights: Sequence[str | Path | None]) -> SASPipeline:
    """The mean of two or more weights, with the sampling defaults and the calibration of the first.

    weights: as `SASPipeline.from_pretrained` takes them; the same one twice counts twice. Floating tensors (statistics of normalisations
    too) are averaged in float64 and keep their type; whole numbers are those of the first. The result has no `model_id`: name it.
    InputError: fewer than two, another architecture, or weights whose masks, pictures, schedule or data split are not those of the first.
    """
    if len(weights) < 2:
        raise InputError(f"weights must be two or more, got {len(weights)}; name those to average")
    names = ["default" if name is None else str(name) for name in weights]
    first = SASPipeline.from_pretrained(weights[0])
    own = first.model.state_dict()
    sums = {key: value.double() for key, value in own.items() if value.is_floating_point()}
    for name, source in zip(names[1:], weights[1:], strict=True):
        other = SASPipeline.from_pretrained(source)
        state = other.model.state_dict()
        shapes = ({key: value.shape for key, value in tensors.items()} for tensors in (own, state))
        if _plan(other) != _plan(first) or len({str(sorted(one.items())) for one in shapes}) > 1:
            raise InputError(
                f"weights {name} are of another architecture than {names[0]}, and cannot be averaged; name weights of one network"
            )
        sizes = ((name, first.config[name], other.config[name]) for name in _SIZES)
        for field, mine, theirs in (*sizes, *meanings(first, other)):
            if mine != theirs:
                raise InputError(
                    f"weights {name} must have the {field} of {names[0]}, {mine!r}, got {theirs!r}; name weights that were trained alike"
                )
        for key, total in sums.items():
            total += state[key].double()
    mean = {key: (total / len(weights)).to(own[key].dtype) for key, total in sums.items()}
    first.model.load_state_dict({**own, **mean})
    first._weights_sha256 = None
    first.register_to_config(model_id="")
    return first


def _plan(pipe: SASPipeline) -> tuple[type, dict[str, Any]]:
    """What a network is built from, without what the library notes beside it; lists, which JSON makes of tuples, as tuples."""
    return type(pipe.model), {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in pipe.model.config.items()
        if not name.startswith("_")
    }
