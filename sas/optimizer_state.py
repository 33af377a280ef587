"""The state of an optimizer as flat tensors and plain JSON, and back, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sas.manifest import CheckpointError


def optimizer_to_tensors(optimizer_state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split `torch.optim.Optimizer.state_dict()` into flat tensors ("state.0.exp_avg") and JSON-able metadata.

    The tensors are not copied. `optimizer_from_tensors` gives back the same dictionary bit for bit: types and order of
    keys, tuples, infinities, and strides too, because a step on another memory layout may round differently.
    Raises TypeError for a value that is neither a tensor nor plain JSON.
    """
    tensors: dict[str, Tensor] = {}

    def encode(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            if name in tensors:
                raise ValueError(f"optimizer_state has two entries named {name!r}: keys must differ as text")
            tensors[name] = value.detach()
            stride = torch.empty_like(value, device="meta").stride()
            return {"tensor": name} if value.is_contiguous() else {"tensor": name, "stride": list(stride)}
        if isinstance(value, dict):
            items = []
            for key, item in value.items():
                if isinstance(key, bool) or not isinstance(key, (int, str)):
                    raise TypeError(f"optimizer_state: a key in {name or 'it'} must be int or str, got {key!r}")
                items.append([key, encode(item, f"{name}.{key}" if name else str(key))])
            return {"dict": items}
        if isinstance(value, (tuple, list)):
            items = [encode(item, f"{name}.{index}") for index, item in enumerate(value)]
            return {"tuple": items} if isinstance(value, tuple) else items
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(value)}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(
            f"optimizer_state: {name} must be a tensor, number, string, bool, None, list, tuple or dict, "
            f"got {type(value).__name__}"
        )

    meta = {"optimizer": encode(dict(optimizer_state), "")}
    return tensors, meta


def optimizer_from_tensors(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `optimizer_to_tensors`, for `Optimizer.load_state_dict`; CheckpointError if the two do not fit."""
    unused = set(tensors)

    def decode(value: Any) -> Any:
        if isinstance(value, list):
            return [decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "dict" in value:
            return {key: decode(item) for key, item in value["dict"]}
        if "tuple" in value:
            return tuple(decode(item) for item in value["tuple"])
        if "float" in value:
            return float(value["float"])
        tensor = tensors[value["tensor"]]
        unused.discard(value["tensor"])
        if "stride" not in value:
            return tensor
        layout = torch.empty_strided(tensor.shape, value["stride"], dtype=tensor.dtype, device=tensor.device)
        return layout.copy_(tensor)

    try:
        state: dict[str, Any] = decode(meta["optimizer"])
    except KeyError as error:
        raise CheckpointError(f"optimizer metadata and tensors do not belong together: {error} is missing") from error
    if unused:
        raise CheckpointError(f"optimizer metadata and tensors do not belong together: {min(unused)!r} is not listed")
    return state
