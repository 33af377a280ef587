"""Image encoders brought along are taken at their word by the split network, so here what they say is compared with what they do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from numbers import Integral
from typing import Any

import torch
from torch import nn

from sas.io import reason


def declared_maps(encoder: nn.Module, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`strides` and `widths` of an encoder; ValueError unless they are positive whole numbers, as many of each."""
    found = {}
    for word in ("strides", "widths"):
        given: Any = getattr(encoder, word, None)
        if not _are_sizes(given):
            got = repr(given)[:60] if hasattr(encoder, word) else f"a {type(encoder).__name__} without it"
            raise ValueError(
                f"encoder {name} must have an attribute {word}, a tuple of one positive whole number for each of its maps, got {got}: "
                "set it where the encoder is built, for example strides = (4, 8) and widths = (64, 128)"
            )
        found[word] = tuple(int(size) for size in given)
    if len(found["strides"]) != len(found["widths"]):
        raise ValueError(
            f"encoder {name} must have as many widths as strides, got strides {found['strides']} and widths {found['widths']}: "
            "name both for every map"
        )
    return found["strides"], found["widths"]


def check_maps(encoder: nn.Module, *, name: str, image_size: int) -> None:
    """ValueError unless a zero image gives the maps that the encoder declares: their number, channels and sides.

    image_size: a multiple of every stride. The encoder stays as it is: it runs without gradients and in eval mode, and each of its
    modules has its own mode again afterwards; torch's random numbers go on as if nothing had been drawn. Nothing is checked while
    tensors hold no values (torch's meta device, accelerate's empty weights) or are of half precision, for which a CPU lacks some
    operations: weights are loaded so, and were checked when they were trained.
    """
    strides, widths = declared_maps(encoder, name)
    tensors = [tensor for tensor in chain(encoder.parameters(), encoder.buffers()) if tensor.is_floating_point()]
    like = tensors[0] if tensors else torch.empty(0)
    if any(tensor.is_meta for tensor in (*tensors, torch.empty(0))) or like.dtype not in (torch.float32, torch.float64):
        return
    image = torch.zeros(1, 3, image_size, image_size, dtype=like.dtype, device=like.device)
    try:
        with _undisturbed(encoder):
            maps = encoder(image)
            listed = isinstance(maps, Iterable) and not isinstance(maps, torch.Tensor)
            found = [_shape(one) for one in (maps if listed else [maps])]
    except Exception as error:
        raise ValueError(
            f"encoder {name} must turn an image of shape {tuple(image.shape)} into maps, got {type(error).__name__} ({reason(error)}): "
            "set image_size to what it takes, or choose another encoder"
        ) from error
    sides = [image_size // stride for stride in strides]
    expected = [(1, width, side, side) for side, width in zip(sides, widths, strict=True)]
    if not listed or found != expected:
        got = ", ".join(map(str, found)) or "none"
        cure = _cure(found if listed else [], expected, image_size)
        if name.startswith("timm/"):
            cure = "choose another one, or register a module that wraps it and gives such maps with sas.models.register_encoder"
        raise ValueError(
            f"encoder {name} with strides {strides} and widths {widths} must turn an image of shape {tuple(image.shape)} into a list of "
            f"maps of shapes {', '.join(map(str, expected))}, got {got if listed else f'no list but {got}'}: {cure}"
        )


def _are_sizes(given: Any) -> bool:
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        return False
    return all(isinstance(size, Integral) and not isinstance(size, bool) and int(size) > 0 for size in given)


@contextmanager
def _undisturbed(encoder: nn.Module) -> Iterator[None]:
    """In eval mode and without gradients; afterwards modes and random numbers are as before."""
    whole, modes = encoder.training, [(module, module.training) for module in encoder.modules()]
    try:
        encoder.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        encoder.train(whole)  # a network may do more in it than set the mode
        for module, mode in modes:
            module.training = mode


def _shape(one: Any) -> Any:
    """Shape of a map; of anything else, what it is."""
    return tuple(one.shape) if isinstance(one, torch.Tensor) else type(one).__name__


def _cure(found: Sequence[Any], expected: Sequence[tuple[int, ...]], image_size: int) -> str:
    """What to do about maps of other shapes than declared; `found` is empty if no list came."""
    if len(found) != len(expected) or not all(
        isinstance(shape, tuple) and len(shape) == 4 and shape[0] == 1 for shape in found
    ):
        return "return a list or tuple with one map (B, C, H, W) for each stride"
    if any(
        shape != right and (shape[0], shape[3], *shape[1:3]) == right
        for shape, right in zip(found, expected, strict=True)
    ):
        return "its channels are last; return its maps as (B, C, H, W)"
    if any(height != width or height < 1 or image_size % height for _, _, height, width in found):
        return "return maps whose sides divide the image's"
    strides, widths = (
        tuple(sizes) for sizes in zip(*((image_size // shape[2], shape[1]) for shape in found), strict=True)
    )
    return f"declare strides {strides} and widths {widths}"
