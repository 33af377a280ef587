"""A network that starts from the weights of another one, which may be smaller."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from diffusers.models.attention_processor import Attention
from torch import nn

from sas.io import InputError
from sas.models import SplitDenoiser
from sas.models.encoders import LITE0_BLOCKS, LITE0_DEEP_BLOCKS
from sas.models.fusion import Block, zeroed
from sas.pipeline import SASPipeline
from sas.pretrained import meanings

logger = logging.getLogger(__name__)


def copy_weights(own: SASPipeline, weights: str | Path, *, pretrained: bool) -> tuple[float, float]:
    """Start the network of `own` from that of a saved pipeline; InputError if its denoiser or its division of the data differs. Returns the
    calibration (scale, shift) of its stop head: (1, 0), with a warning, if what its numbers mean (codes of masks and pictures, schedule) differs.

    What stands around the denoiser may be new: a `Fusion`, `ImageUNet` or `Detail` that the saved network has not, or of other levels or widths, which add
    nothing before they are trained; all necks, where maps come to other levels; and another encoder (from ImageNet features if
    `pretrained`), of which EfficientNet-lite0 and its deep variant take over what they share. So may the denoiser's further residual blocks and attention,
    whose last layers are set to zero: a network that gains nothing but these and the first three begins as the one it grew from.
    """
    pipe = SASPipeline.from_pretrained(weights)
    model, split = own.model, own.config.data_split
    if split and pipe.config.data_split != split:
        raise InputError(
            f"init_from {weights} was trained with data split {pipe.config.data_split[:12] or 'none'}, got {split[:12]} now, and may have "
            "seen what is held out; set data.split to none, or start from weights of the same split"
        )
    begins = _beginning(pipe.model, model)
    state = model.state_dict()
    saved = {name: tensor for name, tensor in pipe.model.state_dict().items() if not name.startswith(begins)}
    new = [name for name in state if name.startswith(begins)]
    wrong = [n for n in state if n not in new and (n not in saved or saved[n].shape != state[n].shape)]
    wrong += [n for n in saved if n not in state]
    networks: tuple[Any, Any] = (pipe.model, model)
    groups = [one.config.get("norm_groups") for one in networks]
    if groups[0] != groups[1]:
        wrong.insert(0, f"norm_groups {groups[0]} and not {groups[1]}")
    if wrong:
        raise InputError(
            f"init_from {weights} holds another architecture ({_settings(pipe.model, model)}first difference: {wrong[0]}); use the "
            "configuration it was trained with (configs/release.yaml for the shipped weights), which may gain fusion, image_unet, "
            "detail, blocks and attention but not lose them"
        )
    if pretrained and any(n.startswith("image_encoder.") for n in new):
        model.load_pretrained_encoder()  # type: ignore[operator]
    model.load_state_dict(saved, strict=False)  # what is not in it was looked at above
    _begin_as_before(model, begins)
    if new:
        parts = ", ".join(sorted({n.split(".")[0] for n in new}))
        logger.info(
            "init_from %s lacks parts of this network, or has others, which begin anew: %s (%d tensors)",
            weights,
            parts,
            len(new),
        )
    changed = [f"{name} {theirs!r} and not {mine!r}" for name, mine, theirs in meanings(own, pipe) if mine != theirs]
    if changed:
        logger.warning(
            "init_from %s has %s: what it has learned to draw means something else in this run, and is unlearned first; set these as they "
            "were to go on from it",
            weights,
            ", ".join(changed),
        )
        return 1.0, 0.0
    return pipe.config.stop_scale, pipe.config.stop_shift


def _settings(saved: Any, model: Any) -> str:
    """What the networks' settings differ in, "detail 16 and not 0; ", or nothing where that is not known."""
    differ = [
        f"{name} {_plain(saved.config[name])} and not {_plain(model.config[name])}; "
        for name in saved.config
        if not name.startswith("_")
        and name in model.config
        and _plain(saved.config[name]) != _plain(model.config[name])
    ]
    return "".join(differ)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _beginning(saved: Any, model: Any) -> tuple[str, ...]:
    """Parts of a network, as beginnings of their tensors' names, that cannot be those of a saved one."""
    encoders = {str(one.config.get("encoder")) for one in (saved, model)}
    levels = [sorted({level for level, _ in getattr(one, "places", ())}) for one in (saved, model)]
    begins = _more_in_the_denoiser(saved, model)
    other_maps = len(encoders) > 1 or getattr(saved, "places", None) != getattr(model, "places", None)
    for part, setting, moved in (
        ("fuse.", "fusion", levels[0] != levels[1]),
        ("look.", "image_unet", other_maps or levels[0] != levels[1]),
        ("fine.", "detail", other_maps),
    ):
        before, after = (_as_tuple(one.config.get(setting, ())) for one in (saved, model))
        if part == "look." and before and after:  # its residual blocks belong to what it is
            before, after = (
                (*widths, one.config.get("image_blocks", 1)) for widths, one in ((before, saved), (after, model))
            )
        if after and (before != after or moved):
            begins += (part, "ahead.") if part == "look." else (part,)
    if "look." in begins and "fine." not in begins and getattr(model, "fine", None) is not None:
        begins += (f"fine.enter.{len(model.fine_maps) - 1}.",)
    if other_maps:
        begins += ("necks.",)
    if encoders == {"efficientnet_lite0", "efficientnet_lite0_deep"}:
        shared = len(LITE0_BLOCKS)
        begins += tuple(f"image_encoder.blocks.{shared + extra}." for extra in range(len(LITE0_DEEP_BLOCKS)))
    elif len(encoders) > 1:
        begins += ("image_encoder.",)
    return begins


def _as_tuple(value: Any) -> tuple[int, ...]:
    """Widths, or one width, of which 0 is none."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * bool(value)


def _more_in_the_denoiser(saved: Any, model: Any) -> tuple[str, ...]:
    """Residual blocks and attention that the denoiser of a split network has beyond those of a saved one."""
    if not isinstance(saved, SplitDenoiser) or not isinstance(model, SplitDenoiser):
        return ()
    begins: list[str] = []
    for blocks, attention in (("down", "down_attention"), ("up", "up_attention")):
        for level, (before, after) in enumerate(zip(getattr(saved, blocks), getattr(model, blocks), strict=False)):
            begins += [f"{blocks}.{level}.{n}." for n in range(len(before), len(after))]
        for level, (before, after) in enumerate(
            zip(getattr(saved, attention), getattr(model, attention), strict=False)
        ):
            if isinstance(before, nn.Identity) and not isinstance(after, nn.Identity):
                begins.append(f"{attention}.{level}.")
    return tuple(begins)


def _begin_as_before(model: nn.Module, begins: tuple[str, ...]) -> None:
    """Zero the last layer of new residual blocks and attention of the denoiser, so that they add nothing yet."""
    for name, module in model.named_modules():
        if f"{name}.".startswith(begins) and name.startswith(("down", "up")):
            if isinstance(module, Block):
                zeroed(module.conv2)
            elif isinstance(module, Attention):
                zeroed(module.to_out[0])  # type: ignore[index]
        elif f"{name}." in begins and name.startswith("fine.enter"):
            zeroed(module)
