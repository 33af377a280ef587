"""The pipeline: the same answer for the same question however it is put, an oracle's scene found again, and bad input refused."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    PNDMScheduler,
)  # fmt: skip
from PIL import Image
from tiny import tiny_config
from torch import nn

from sas.factory import build_model, build_pipeline
from sas.geometry import Geometry
from sas.io import InputError
from sas.layerloop import LoopState
from sas.manifest import write_manifest
from sas.masks import cumulative
from sas.models import ConcatUNet
from sas.pictures import sha256_pixels
from sas.pipeline import SASPipeline, out_of_memory
from sas.pretrained import DEFAULT_WEIGHTS, find_weights
from sas.refine import refine_soft
from sas.result import LayeredResult
from sas.scene import Scene
from sas.seeding import generator_for

MakePipe = Callable[..., SASPipeline]
QUICK: dict[str, Any] = {"ensemble_size": 2, "num_inference_steps": 2, "max_layers": 2}


def picture(seed: int = 0, height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def same_drawing(a: LayeredResult, b: LayeredResult) -> bool:
    """Whether everything that was drawn is equal bit by bit; the name of the file may differ."""
    names = ("members", "masks", "probability", "uncertainty")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names) and a.stop == b.stop


# ---------------------------------------------------------------------- what goes in


def test_every_kind_of_image_gives_the_same_result(tiny_pipe: SASPipeline, tmp_path: Path) -> None:
    image = picture()
    path = tmp_path / "photo.png"
    Image.fromarray(image).save(path)
    planes = torch.from_numpy(image).permute(2, 0, 1)
    kinds = [
        path,
        str(path),
        Image.fromarray(image),
        image.astype(np.float64) / 255,
        image.astype(np.float32) / 255,
        planes,
        planes.float() / 255,
        image[::-1][::-1],  # not contiguous
    ]
    expected = tiny_pipe(image, **QUICK)
    assert len(expected) > 0
    for kind in kinds:
        assert same_drawing(tiny_pipe(kind, **QUICK), expected), type(kind)


def test_result_says_how_it_was_made(tiny_pipe: SASPipeline, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(picture()).save(path)
    result = tiny_pipe(path, ensemble_size=2, num_inference_steps=3, seed=7, max_layers=1, consensus="mean")
    told = result.settings
    assert (told.members, told.steps, told.seed, told.consensus, told.mode) == (2, 3, 7, "mean", "diffusion")
    assert (result.geometry.height, result.geometry.width, result.file) == (20, 30, "photo.png")
    assert result.members.shape == (1, 2, 16, 16)
    assert len(result.model.sha256) == 64
    assert tiny_pipe(picture(), **QUICK).file == ""


def test_defaults_come_from_the_pipeline(make_tiny_pipe: MakePipe) -> None:
    pipe = make_tiny_pipe(ensemble_size=4, num_inference_steps=2, max_layers=1, consensus="mean")
    result = pipe(picture())
    assert (result.settings.members, result.settings.steps, result.settings.seed) == (4, 2, 0)
    assert (result.settings.consensus, len(result)) == ("mean", 1)


def test_one_image_gives_one_result_and_a_list_gives_a_list(tiny_pipe: SASPipeline) -> None:
    alone = tiny_pipe(picture(), **QUICK)
    assert isinstance(alone, LayeredResult)
    for sources in ([picture()], (picture(),)):
        listed = tiny_pipe(sources, **QUICK)
        assert isinstance(listed, list) and len(listed) == 1
        assert same_drawing(listed[0], alone)
    assert tiny_pipe([], **QUICK) == []


# ---------------------------------------------------------------------- what the noise depends on


def test_batch_of_four_equals_four_of_one(tiny_pipe: SASPipeline) -> None:
    """Probabilities of the first layer: a later one may follow from another mask where a rounding decides a pixel."""
    images = [
        picture(seed, height, width) for seed, (height, width) in enumerate([(20, 30), (16, 16), (31, 9), (8, 40)])
    ]
    options = {**QUICK, "ensemble_size": 3, "max_layers": 1}
    together = tiny_pipe(images, **options)
    for image, result in zip(images, together, strict=True):
        np.testing.assert_allclose(tiny_pipe(image, **options).probability, result.probability, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_batch_size_does_not_change_the_first_layer(tiny_pipe: SASPipeline, batch_size: int) -> None:
    images = [picture(0), picture(1)]
    options = {**QUICK, "ensemble_size": 3, "max_layers": 1}
    expected = tiny_pipe(images, **options)
    for one, other in zip(expected, tiny_pipe(images, batch_size=batch_size, **options), strict=True):
        np.testing.assert_allclose(other.probability, one.probability, atol=1e-5)


def test_noise_is_bitwise_the_same_in_any_batch_order_and_under_any_name(
    tiny_pipe: SASPipeline, tmp_path: Path
) -> None:
    def noise(sources: Sequence[Any], **options: Any) -> list[np.ndarray]:
        """x_t after the first step of the identity: what the callback sees first is noise plus the network's answer."""
        tiny_pipe.register_modules(model=Silent())
        seen: list[np.ndarray] = []

        def callback(pipe: SASPipeline, step: int, timestep: int, values: dict[str, Any]) -> dict[str, Any]:
            seen.append(values["latents"].numpy().copy())
            return values

        tiny_pipe(list(sources), num_inference_steps=2, callback_on_step_end=callback, **options)
        return seen

    paths = [tmp_path / name for name in ("a.png", "b.png", "other.png")]
    for seed, path in enumerate(paths[:2]):
        Image.fromarray(picture(seed)).save(path)
    shutil.copy(paths[0], paths[2])

    first = noise(paths[:2], ensemble_size=3)[0]  # rows: image, then member
    assert first.shape == (6, 1, 16, 16)
    assert len(np.unique(first[:, 0, 0, 0])) == 6
    np.testing.assert_array_equal(
        noise([paths[1], paths[0]], ensemble_size=3)[0], np.concatenate([first[3:], first[:3]])
    )
    np.testing.assert_array_equal(noise([paths[2]], ensemble_size=3)[0], first[:3])
    np.testing.assert_array_equal(noise([picture(0)], ensemble_size=1)[0], first[:1])
    alone = noise(paths[:2], ensemble_size=3, batch_size=1)
    np.testing.assert_array_equal(np.concatenate(alone[::2]), first)


class Silent(nn.Module):
    """A network that says 0 to everything."""

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return image

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, cumulative: torch.Tensor, features: torch.Tensor
    ) -> torch.Tensor:
        return torch.zeros_like(noisy)


class Recording(nn.Module):
    """Keeps the noisy masks that a network is asked about."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.noisy: list[torch.Tensor] = []

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return self.inner.encode(image)

    def forward(self, noisy: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        self.noisy.append(noisy.clone())
        return self.inner(noisy, *others)


def test_noise_is_named_by_seed_pixels_layer_and_member(make_tiny_pipe: MakePipe) -> None:
    pipe = make_tiny_pipe(merge_disjoint=False)
    recording = Recording(pipe.model)
    pipe.register_modules(model=recording)
    images = [picture(0), picture(1)]
    results = pipe(images, seed=5, ensemble_size=2, num_inference_steps=1, max_layers=3)
    assert [len(result) for result in results] == [3, 3]
    for layer, noisy in enumerate(recording.noisy):
        names = [(5, sha256_pixels(image), layer, member) for image in images for member in range(2)]
        expected = [torch.randn(1, 16, 16, generator=generator_for(*name)) for name in names]
        assert torch.equal(noisy, torch.stack(expected))


def test_the_scale_of_the_first_noise(make_tiny_pipe: MakePipe, tmp_path: Path) -> None:
    pipe = make_tiny_pipe(noise_scale=0.5)
    pipe.save_pretrained(tmp_path / "half")
    loaded = SASPipeline.from_pretrained(tmp_path / "half")
    options = {"ensemble_size": 2, "num_inference_steps": 2, "max_layers": 1}

    def first_noise(pipe: SASPipeline, scale: float | None) -> torch.Tensor:
        network, recording = pipe.model, Recording(pipe.model)
        pipe.register_modules(model=recording)
        told = pipe(picture(), seed=5, noise_scale=scale, **options).settings
        pipe.register_modules(model=network)
        assert told.noise_scale == (0.5 if scale is None else scale) and type(told.noise_scale) is float
        return recording.noisy[0]

    expected = torch.stack(
        [torch.randn(1, 16, 16, generator=generator_for(5, sha256_pixels(picture()), 0, e)) for e in range(2)]
    )
    assert torch.equal(first_noise(loaded, None), expected * 0.5)
    assert torch.equal(first_noise(pipe, np.float32(0.25)), expected * 0.25)  # type: ignore[arg-type]
    assert torch.equal(first_noise(pipe, 1), expected)
    alike = pipe(picture(), noise_scale=0, **{**options, "ensemble_size": 3})
    assert (alike.members == alike.members[:, :1]).all() and not alike.uncertainty.any()
    for value in (-0.1, 2.5, float("nan"), True, "1"):
        with pytest.raises(
            ValueError, match="noise_scale must be a number from 0 to 2, got .*: pass 1 for all the noise"
        ):
            pipe(picture(), noise_scale=value)  # type: ignore[arg-type]


def test_noise_depends_on_pixels_and_on_size(tiny_pipe: SASPipeline) -> None:
    flat = np.full((16, 32, 3), 90, dtype=np.uint8)
    turned = flat.reshape(32, 16, 3)
    changed = flat.copy()
    changed[0, 0, 0] += 1
    options = {**QUICK, "max_layers": 1}
    results = [tiny_pipe(image, **options) for image in (flat, turned, changed)]
    assert not np.array_equal(results[0].probability, results[1].probability)
    assert not np.allclose(results[0].probability, results[2].probability, atol=1e-3)


def test_member_0_of_one_equals_member_0_of_three(tiny_pipe: SASPipeline) -> None:
    one = tiny_pipe(picture(), ensemble_size=1, max_layers=1)
    three = tiny_pipe(picture(), ensemble_size=3, max_layers=1)
    np.testing.assert_array_equal(one.members[0, 0], three.members[0, 0])
    assert not np.array_equal(three.members[0, 0], three.members[0, 1])


def test_members_of_their_own_cumulative_masks_do_not_depend_on_the_others(make_tiny_pipe: MakePipe) -> None:
    pipe = make_tiny_pipe(shared_cumulative=False, merge_disjoint=False)
    one, three = pipe(picture(), ensemble_size=1, max_layers=3), pipe(picture(), ensemble_size=3, max_layers=3)
    layers = min(len(one), len(three))
    assert layers >= 2
    np.testing.assert_array_equal(one.members[:layers, 0], three.members[:layers, 0])
    shared = make_tiny_pipe(merge_disjoint=False)
    assert same_drawing(shared(picture(), ensemble_size=3, max_layers=3, cumulative="member"), three)
    assert not same_drawing(pipe(picture(), ensemble_size=3, max_layers=3, cumulative="shared"), three)
    with pytest.raises(ValueError, match=r'cumulative must be "shared" or "member", got "?\'?own'):
        pipe(picture(), cumulative="own")


def test_two_equal_calls_are_equal(tiny_pipe: SASPipeline) -> None:
    torch.manual_seed(1)
    first = tiny_pipe(picture(), **QUICK)
    torch.manual_seed(2)  # the global generator is nobody's business here
    assert tiny_pipe(picture(), **QUICK) == first


def test_seed_changes_the_result_and_no_seed_is_seed_zero(tiny_pipe: SASPipeline) -> None:
    default = tiny_pipe(picture(), **QUICK)
    assert same_drawing(tiny_pipe(picture(), seed=0, **QUICK), default)
    assert not same_drawing(tiny_pipe(picture(), seed=1, **QUICK), default)
    assert tiny_pipe(picture(), seed=2**63 - 1, **QUICK).settings.seed == 2**63 - 1


def test_one_integer_of_the_generator_takes_the_seeds_place(tiny_pipe: SASPipeline) -> None:
    images = [picture(0), picture(1)]
    results = tiny_pipe(images, generator=torch.Generator().manual_seed(5), **QUICK)
    seeds = [result.settings.seed for result in results]
    source = torch.Generator().manual_seed(5)
    assert seeds == [int(torch.randint(0, 2**62, (1,), generator=source)) for _ in images]
    assert seeds[0] != seeds[1]
    for image, result in zip(images, results, strict=True):
        again = tiny_pipe(image, seed=result.settings.seed, **{**QUICK, "max_layers": 1})
        np.testing.assert_allclose(again.probability[0], result.probability[0], atol=1e-5)
    generator = torch.Generator().manual_seed(5)
    drawn = [tiny_pipe(images[0], generator=generator, **QUICK).settings.seed for _ in range(2)]
    assert drawn == seeds, "each call draws on"


# ---------------------------------------------------------------------- modes and options


def test_marginal_mode_is_one_step_with_the_variance_of_a_coin(tiny_pipe: SASPipeline) -> None:
    result = tiny_pipe(picture(), mode="marginal", ensemble_size=2, max_layers=3)
    assert (result.settings.mode, result.settings.steps) == ("marginal", 1)
    assert len(result) > 0
    np.testing.assert_allclose(result.uncertainty, result.probability * (1 - result.probability), atol=1e-6)
    assert same_drawing(
        tiny_pipe(picture(), mode="marginal", ensemble_size=2, max_layers=3, num_inference_steps=1), result
    )


def test_diffusion_mode_has_the_variance_of_the_members(make_tiny_pipe: MakePipe) -> None:
    result = make_tiny_pipe(merge_disjoint=False)(picture(), ensemble_size=3, max_layers=2)
    np.testing.assert_allclose(result.uncertainty, result.members.astype(np.float32).var(axis=1), atol=1e-6)
    assert result.uncertainty.max() > 0


def test_max_layers_bounds_the_layers(tiny_pipe: SASPipeline) -> None:
    lengths = [len(tiny_pipe(picture(), ensemble_size=2, num_inference_steps=1, max_layers=n)) for n in (1, 2, 5)]
    assert lengths == [1, 2, 5]


def test_consensus_of_the_members(tiny_pipe: SASPipeline) -> None:
    options = {**QUICK, "ensemble_size": 3, "max_layers": 1}
    medoid, mean = (tiny_pipe(picture(), consensus=rule, **options) for rule in ("medoid", "mean"))
    np.testing.assert_array_equal(medoid.members, mean.members)
    assert any(np.array_equal(medoid.masks[0], member) for member in medoid.members[0])
    np.testing.assert_array_equal(mean.masks[0], mean.members[0].mean(axis=0) > 0.5)
    assert not np.array_equal(medoid.masks, mean.masks)


def test_initial_layers_are_kept_and_sampling_goes_on_behind_them(make_tiny_pipe: MakePipe) -> None:
    pipe = make_tiny_pipe(merge_disjoint=False)
    image = picture(0, 16, 16)
    whole = pipe(image, ensemble_size=2, max_layers=3)
    assert len(whole) == 3
    going_on = pipe(image, ensemble_size=2, max_layers=3, initial_layers=whole.masks_full()[:1])
    np.testing.assert_array_equal(going_on.masks, whole.masks)
    np.testing.assert_allclose(going_on.probability[1:], whole.probability[1:], atol=1e-6)
    assert not going_on.uncertainty[0].any(), "what was given is certain"
    nothing = np.zeros((0, 16, 16), dtype=bool)
    assert same_drawing(pipe(image, ensemble_size=2, max_layers=3, initial_layers=nothing), whole)
    full = pipe(image, ensemble_size=2, max_layers=1, initial_layers=whole.masks_full()[:1])
    assert (len(full), full.stop.reason) == (1, "max_layers")


def test_initial_layers_come_back_as_they_were_drawn(make_tiny_pipe: MakePipe) -> None:
    """With refinement, to the pixel; what is drawn next and lies apart is joined to the last of them, and to nothing else of it."""
    image = np.full((40, 64, 3), 128, dtype=np.uint8)
    given = np.zeros((2, 40, 64), dtype=bool)
    given[0, 5:17, 3:21], given[1, 9:30, 11:33] = True, True
    alone = make_tiny_pipe()(image, ensemble_size=1, max_layers=2, initial_layers=given, refine=True)
    np.testing.assert_array_equal(alone.masks_full(), given)

    def draw(x_t: torch.Tensor, *_: object) -> torch.Tensor:
        logits = torch.full_like(x_t, -9.0)
        logits[..., 6:10, 12:] = 9  # cells of 4 pixels: apart from both
        return logits

    pipe = make_tiny_pipe(max_layers=3)
    pipe.model.forward = draw  # type: ignore[method-assign]
    joined = pipe(image, ensemble_size=1, num_inference_steps=1, initial_layers=given, refine=True)
    assert len(joined) == 2
    found = joined.masks_full()
    np.testing.assert_array_equal(found[0], given[0])
    assert found[1][given[1]].all() and found[1][12:28, 48:].mean() > 0.5
    np.testing.assert_array_equal(found[1][:, :44], given[1][:, :44])


def test_no_layer_reaches_beyond_a_picture_that_is_not_square(tiny_pipe: SASPipeline) -> None:
    result = tiny_pipe(picture(0, 12, 40), **QUICK)
    frame = result.geometry.known()
    assert not frame.all() and len(result)
    assert not (result.masks & ~frame).any() and not (result.members & ~frame).any()
    assert not result.probability[:, ~frame].any()


def test_large_pictures_are_refined_at_a_bounded_size(tiny_pipe: SASPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []

    def watched(maps: np.ndarray, image: np.ndarray, **options: Any) -> np.ndarray:
        sizes.append((*maps.shape[1:], *image.shape[:2]))
        return refine_soft(maps, image, **options)

    monkeypatch.setattr("sas.pipeline.refine_soft", watched)
    image = np.kron(picture(0, 5, 8), np.ones((40, 40, 1), dtype=np.uint8))
    whole = tiny_pipe(image, refine=True, **QUICK).masks_full()
    monkeypatch.setattr("sas.refine.LARGEST", 80)
    small = tiny_pipe(image, refine=True, **QUICK).masks_full()
    assert sizes == [(200, 320, 200, 320), (50, 80, 50, 80)] and small.shape == whole.shape
    assert (small == whole).mean() > 0.9


def test_running_out_of_memory_is_known_on_every_device() -> None:
    words = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
    assert all(map(out_of_memory, (torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError(words))))
    assert not out_of_memory(RuntimeError("shapes differ")) and not out_of_memory(ValueError("not enough memory"))


def test_output_types(tiny_pipe: SASPipeline) -> None:
    image = picture()
    result = tiny_pipe(image, **QUICK)
    arrays = tiny_pipe(image, output_type="np", **QUICK)
    assert arrays.dtype == np.bool_ and arrays.shape == (2, 20, 30)
    np.testing.assert_array_equal(arrays, result.masks_full())
    tensor = tiny_pipe(image, output_type="pt", **QUICK)
    assert tensor.dtype == torch.bool
    np.testing.assert_array_equal(tensor.numpy(), arrays)
    pictures = tiny_pipe([image], output_type="pil", **QUICK)[0]
    assert [one.mode for one in pictures] == ["L", "L"]
    np.testing.assert_array_equal(np.stack([np.asarray(one) for one in pictures]), arrays * np.uint8(255))


def test_return_dict_false_gives_a_tuple(tiny_pipe: SASPipeline) -> None:
    expected = tiny_pipe(picture(), **QUICK)
    (alone,) = tiny_pipe(picture(), return_dict=False, **QUICK)
    assert same_drawing(alone, expected)
    (listed,) = tiny_pipe([picture()], return_dict=False, **QUICK)
    assert same_drawing(listed[0], expected)
    (masks,) = tiny_pipe(picture(), return_dict=False, output_type="np", **QUICK)
    np.testing.assert_array_equal(masks, expected.masks_full())


def test_callback_is_called_after_each_step_of_each_pass(tiny_pipe: SASPipeline) -> None:
    calls: list[tuple[int, int, tuple[int, ...]]] = []

    def callback(pipe: SASPipeline, step: int, timestep: int, values: dict[str, Any]) -> dict[str, Any]:
        assert pipe is tiny_pipe
        calls.append((step, timestep, tuple(values["latents"].shape)))
        return {}

    options = {"ensemble_size": 2, "num_inference_steps": 3, "max_layers": 2}
    watched = tiny_pipe([picture(0), picture(1)], callback_on_step_end=callback, **options)
    assert [step for step, _, _ in calls] == [0, 1, 2] * (len(calls) // 3)
    assert [timestep for _, timestep, _ in calls[:3]] == [999, 666, 332]
    assert calls[0][2] == (4, 1, 16, 16)
    assert all(same_drawing(a, b) for a, b in zip(watched, tiny_pipe([picture(0), picture(1)], **options), strict=True))


def test_callback_may_change_the_latents(tiny_pipe: SASPipeline) -> None:
    def square(pipe: SASPipeline, step: int, timestep: int, values: dict[str, Any]) -> dict[str, Any]:
        latents = torch.full_like(values["latents"], -0.5)
        latents[..., 4:12, 4:12] = 0.5
        return {"latents": latents}

    result = tiny_pipe(picture(0, 16, 16), callback_on_step_end=square, **QUICK)
    expected = np.zeros((16, 16), dtype=bool)
    expected[4:12, 4:12] = True
    np.testing.assert_array_equal(result.masks, expected[None])
    assert result.stop.reason == "no_progress"
    assert set(np.unique(result.probability)) == {0.0, 1.0}


def test_progress_bar_can_be_switched_off(make_tiny_pipe: MakePipe, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = make_tiny_pipe()
    pipe.set_progress_bar_config(disable=True)
    pipe(picture(), **QUICK)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(disable=False)
    pipe([picture(), picture(1)], **QUICK)
    assert "2/2" in capsys.readouterr().err


# ---------------------------------------------------------------------- calls of the network


class Counting(nn.Module):
    """Counts the calls of a network, and their rows."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.encoded: list[int] = []
        self.denoised: list[int] = []

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        self.encoded.append(len(image))
        return self.inner.encode(image)

    def forward(self, noisy: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        self.denoised.append(len(noisy))
        return self.inner(noisy, *others)


def test_network_is_called_no_more_than_needed(tiny_pipe: SASPipeline) -> None:
    """Encoded once a batch of images, and steps x passes calls where all rows fit."""
    counting = Counting(tiny_pipe.model)
    tiny_pipe.register_modules(model=counting)
    steps: list[int] = []

    def callback(pipe: SASPipeline, step: int, timestep: int, values: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        return {}

    images = [picture(0), picture(1), picture(2)]
    tiny_pipe(images, ensemble_size=2, num_inference_steps=3, max_layers=2, callback_on_step_end=callback)
    passes = steps.count(0)
    assert counting.encoded == [3]
    assert counting.denoised[:3] == [6, 6, 6]
    assert len(counting.denoised) == len(steps) == 3 * passes

    counting.encoded.clear(), counting.denoised.clear()
    tiny_pipe(images, ensemble_size=2, num_inference_steps=1, max_layers=1, batch_size=4)
    assert counting.encoded == [2, 1], "as many images as fit the batch"
    assert counting.denoised[0] == 4

    counting.encoded.clear(), counting.denoised.clear()
    tiny_pipe(images[0], ensemble_size=5, num_inference_steps=1, max_layers=1, batch_size=2)
    assert counting.encoded == [1]
    assert counting.denoised[:3] == [2, 2, 1], "an ensemble larger than the batch goes in parts"


class Forgetful(Counting):
    """Memory that suffices for two rows."""

    def forward(self, noisy: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        if len(noisy) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(noisy, *others)


def test_out_of_memory_goes_on_with_fewer_rows_and_the_same_noise(
    make_tiny_pipe: MakePipe, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"ensemble_size": 5, "num_inference_steps": 2, "max_layers": 1}
    pipe = make_tiny_pipe()
    expected = pipe(picture(), **options)
    pipe.register_modules(model=Forgetful(pipe.model))
    found = pipe(picture(), **options)
    np.testing.assert_allclose(found.probability, expected.probability, atol=1e-5)
    assert "pass batch_size=2" in caplog.text


# ---------------------------------------------------------------------- an oracle in place of the network


class Oracle(nn.Module):
    """Knows the layers of some images; finds its image by the pixels and its layer by the cumulative mask."""

    def __init__(self, scenes: Sequence[Scene], size: int) -> None:
        super().__init__()
        fits = [Geometry.fit(height=s.height, width=s.width, size=size, mask_size=size) for s in scenes]
        self.images = torch.stack([fit.to_model(s.image) for fit, s in zip(fits, scenes, strict=True)])
        self.layers = [torch.from_numpy(fit.masks_to_model(s.layer_masks)) for fit, s in zip(fits, scenes, strict=True)]

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return image

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, seen: torch.Tensor, features: torch.Tensor
    ) -> torch.Tensor:
        assert set(seen.unique().tolist()) <= {-1.0, 1.0}, "the condition is never noised"
        logits = torch.full_like(noisy, -20)
        for row in range(len(noisy)):
            (image,) = [i for i, known in enumerate(self.images) if torch.equal(known, features[row])]
            before = [np.asarray(mask) for mask in cumulative(self.layers[image].numpy())]
            (k,) = [k for k, mask in enumerate(before) if np.array_equal(mask, seen[row, 0].numpy() > 0)]
            if k < len(self.layers[image]):
                logits[row, 0][self.layers[image][k]] = 20
        return logits


def heap(seed: int, count: int, *, size: int = 16) -> Scene:
    """Boxes on top of each other, each with a visible pixel; in front is who comes first."""
    random = np.random.default_rng(seed)
    masks = np.zeros((count, size, size), dtype=bool)
    for mask in masks:
        top, left = random.integers(0, size - 5, 2)
        height, width = random.integers(4, size - 4, 2)
        mask[top : top + height, left : left + width] = True
    order = np.triu(np.ones((count, count), dtype=bool), k=1)
    scene = Scene(image=picture(seed, size, size), amodal_masks=masks, order_matrix=order, min_overlap=0.0)
    return scene.drop_invisible()


SCHEDULERS = (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler)


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda kind: kind.__name__)
def test_oracle_recovers_the_scenes_exactly(make_tiny_pipe: MakePipe, tiny_scene: Scene, scheduler: Any) -> None:
    scenes = [heap(1, 4), heap(2, 6), tiny_scene, heap(3, 1), heap(4, 0)]
    assert [len(s.layer_masks) for s in scenes][2:] == [3, 1, 0] and len(scenes[1].layer_masks) >= 2
    pipe = make_tiny_pipe(merge_disjoint=False)
    pipe.register_modules(model=Oracle(scenes, 16), scheduler=scheduler.from_config(pipe.scheduler.config))
    for options in ({}, {"batch_size": 4}, {"mode": "marginal"}, {"ensemble_size": 1, "consensus": "mean"}):
        results = pipe([scene.image for scene in scenes], **options)
        for scene, result in zip(scenes, results, strict=True):
            expected = result.geometry.masks_to_model(scene.layer_masks)
            np.testing.assert_array_equal(result.masks, expected)
            np.testing.assert_allclose(result.probability, expected.astype(np.float32), atol=1e-5)
            assert result.stop.reason == "empty" and result.stop.votes == result.settings.members
            if scene.image.shape == (16, 16, 3):
                np.testing.assert_array_equal(result.masks_full(), scene.layer_masks)


def test_oracle_finds_objects_and_their_order(make_tiny_pipe: MakePipe, tiny_scene: Scene) -> None:
    """From the picture to `result.instances`: the chain of three, and the fourth in the first layer."""
    pipe = make_tiny_pipe(image_size=32, mask_size=32, void_area=0.001)
    pipe.register_modules(model=Oracle([tiny_scene], 32))
    result = pipe(tiny_scene.image)
    assert [one["layer"] for one in result.instances] == [0, 0, 1, 2]
    assert [(e["front"], e["behind"]) for e in result.order["edges"]] == [(0, 2), (2, 3)]


# ---------------------------------------------------------------------- other schedulers


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda kind: kind.__name__)
def test_schedulers_can_be_swapped(make_tiny_pipe: MakePipe, scheduler: Any) -> None:
    pipe = make_tiny_pipe()
    reference = pipe(picture(), **QUICK)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    result = pipe(picture(), num_inference_steps=5, ensemble_size=2, max_layers=2)
    assert np.isfinite(result.probability).all()
    assert pipe(picture(), num_inference_steps=5, ensemble_size=2, max_layers=2) == result
    assert same_drawing(pipe(picture(), **QUICK), reference) == (scheduler is DDIMScheduler)


def test_clip_range_follows_the_mask_scale(make_tiny_pipe: MakePipe) -> None:
    """A scheduler that clips elsewhere would cut the code of the masks, or let it grow."""
    pipe = make_tiny_pipe(logits=False)
    pipe.model.unet.conv_out.weight.data.mul_(4)  # far out of the range
    settings = pipe.scheduler.config
    options = {"ensemble_size": 2, "num_inference_steps": 3, "max_layers": 2}
    expected = pipe(picture(), **options)
    pipe.scheduler = DDIMScheduler.from_config(settings, clip_sample_range=1.0)
    assert same_drawing(pipe(picture(), **options), expected)
    assert pipe.scheduler.config.clip_sample_range == 1.0, "the caller's scheduler stays as it is"
    pipe.scheduler = DDIMScheduler.from_config(settings, clip_sample=False)
    assert not same_drawing(pipe(picture(), **options), expected), "or else the network never left the range"


def test_the_pipelines_scheduler_is_not_changed_by_a_call(tiny_pipe: SASPipeline) -> None:
    before = tiny_pipe.scheduler.timesteps.clone()
    tiny_pipe(picture(), **QUICK)
    assert torch.equal(tiny_pipe.scheduler.timesteps, before)


# ---------------------------------------------------------------------- saving and loading


@pytest.fixture
def saved(make_tiny_pipe: MakePipe, tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    make_tiny_pipe().save_pretrained(folder)
    return folder


def load(folder: str | Path, **options: Any) -> SASPipeline:
    pipe = SASPipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_saved_and_loaded_gives_the_same_bit_by_bit(tiny_pipe: SASPipeline, saved: Path, tmp_path: Path) -> None:
    loaded = load(saved)
    expected = tiny_pipe([picture(0), picture(1)], **QUICK)
    for one, other in zip(expected, loaded([picture(0), picture(1)], **QUICK), strict=True):
        assert same_drawing(one, other)
    assert loaded.config.logits and loaded.config.mask_scale == 0.5 and loaded.config.image_size == 16
    assert isinstance(loaded.scheduler, DDIMScheduler)
    for pipe in (tiny_pipe, loaded):  # the faster layout, and the same for both: another one rounds differently
        assert pipe.model.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    loaded.save_pretrained(tmp_path / "again")
    assert all(str(tmp_path) not in file.read_text() for file in (tmp_path / "again").rglob("*.json"))
    name = "model/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_folder_holds_safetensors_and_text_only(saved: Path) -> None:
    files = sorted(path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file())
    assert files == [
        "MANIFEST.json",
        "model/config.json",
        "model/diffusion_pytorch_model.safetensors",
        "model_index.json",
        "scheduler/scheduler_config.json",
    ]
    assert sorted(json.loads((saved / "MANIFEST.json").read_text())["files"]) == files[1:]
    assert len({(saved / name).stat().st_mode for name in files}) == 1, "who may read one file may read them all"


def test_model_info_names_the_weights_file(saved: Path, tiny_pipe: SASPipeline) -> None:
    import hashlib

    info = load(saved)(picture(), **QUICK).model
    content = (saved / "model" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert (info.id, info.sha256) == ("weights", hashlib.sha256(content).hexdigest())

    pipe = load(saved)
    pipe.to(torch.float64)
    pipe.to(torch.float32)
    assert pipe.model_info.sha256 == info.sha256, "moved, and not changed"
    rounded = load(saved)
    rounded.to(torch.bfloat16)
    assert rounded.model_info.sha256 == info.sha256, "what is rounded as it runs is the file's"
    rounded.to(torch.float32)
    assert rounded.model_info.sha256 != info.sha256, "and no longer where it is called float32 again"
    pipe.model.load_state_dict({name: value + 1 for name, value in pipe.model.state_dict().items()})
    changed = pipe.model_info.sha256
    assert changed != info.sha256
    pipe.model = load(saved).model
    assert pipe.model_info.sha256 not in ("", changed)


def test_half_precision_files_load_as_float32(make_tiny_pipe: MakePipe, tmp_path: Path) -> None:
    pipe = make_tiny_pipe()
    expected = pipe(picture(), **{**QUICK, "max_layers": 1})
    pipe.model.to(torch.float16)
    pipe.save_pretrained(tmp_path / "half")
    loaded = load(tmp_path / "half")
    assert loaded.model.dtype == torch.float32
    result = loaded(picture(), **{**QUICK, "max_layers": 1})
    np.testing.assert_allclose(result.probability, expected.probability, atol=0.02)


def test_a_training_folder_is_as_good_as_the_pipeline_in_it(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "run" / "pipeline")
    assert find_weights(tmp_path / "run") == tmp_path / "run" / "pipeline"
    assert find_weights("default") == find_weights(None) != Path("default")
    assert same_drawing(load(tmp_path / "run")(picture(), **QUICK), load(saved)(picture(), **QUICK))


def test_local_folders_open_no_connection(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load(saved)(picture(), **QUICK)
    monkeypatch.chdir(saved.parent.parent)
    load(f"{saved.parent.name}/{saved.name}")  # has the look of a hub id


def test_saving_replaces_a_pipeline_and_nothing_else(make_tiny_pipe: MakePipe, saved: Path, tmp_path: Path) -> None:
    (saved / "README.md").write_text("a model card")
    (saved / ".git").mkdir()
    (saved / ".git" / "HEAD").write_text("ref")
    (saved / "model" / "left.txt").write_text("of the old one")
    make_tiny_pipe(seed=1).save_pretrained(saved)
    assert (saved / "README.md").read_text() == "a model card" and (saved / ".git" / "HEAD").read_text() == "ref"
    assert not (saved / "model" / "left.txt").exists()
    load(saved)
    mine = tmp_path / "mine"
    mine.mkdir()
    make_tiny_pipe().save_pretrained(mine)  # empty: nothing to lose
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear diary")
    with pytest.raises(InputError, match="save_directory .*notes holds files that are no pipeline.*; choose a new"):
        make_tiny_pipe().save_pretrained(tmp_path / "notes")
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["diary.txt"]


def test_what_belongs_to_an_upload_reaches_it(
    make_tiny_pipe: MakePipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(SASPipeline, "push_to_hub", lambda self, name, **options: calls.append((name, options)))
    pipe = make_tiny_pipe()
    pipe.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="me/mine", private=True, commit_message="first")
    assert calls == [("me/mine", {"variant": None, "private": True, "commit_message": "first"})]
    with pytest.raises(InputError, match="private have no effect without push_to_hub=True"):
        pipe.save_pretrained(tmp_path / "other", private=True)
    assert not (tmp_path / "other").exists()


def test_a_network_passed_along_is_named_by_its_own_weights(make_tiny_pipe: MakePipe, saved: Path) -> None:
    own = make_tiny_pipe(seed=7)
    assert load(saved, model=own.model).model_info.sha256 == own.model_info.sha256 != load(saved).model_info.sha256


def test_save_that_fails_leaves_nothing(make_tiny_pipe: MakePipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="cannot write .*; a part of the path is a file"):
        make_tiny_pipe().save_pretrained(tmp_path / "file" / "weights")
    with pytest.raises(InputError, match="safe_serialization must be True, got False; .*safetensors"):
        make_tiny_pipe().save_pretrained(tmp_path / "pickled", safe_serialization=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


# ---------------------------------------------------------------------- bad arguments

LIMITS = [
    ({"ensemble_size": 0}, r"ensemble_size must be an integer from 1 to 4096, got 0: pass a number in that range"),
    ({"ensemble_size": True}, r"ensemble_size must be an integer .*, got True: pass"),
    ({"ensemble_size": 2.0}, r"ensemble_size must be an integer .*, got 2\.0: pass"),
    ({"num_inference_steps": 0}, r"num_inference_steps must be an integer from 1 to 1000, got 0: pass"),
    ({"num_inference_steps": 10**6}, r"num_inference_steps must be an integer from 1 to 1000, got 1000000: pass"),
    ({"seed": -1}, r"seed must be an integer from 0 to \d+, got -1: pass"),
    ({"seed": 2**63}, r"seed must be an integer from 0 to \d+, got 9223372036854775808: pass"),
    ({"seed": False}, r"seed must be an integer .*, got False: pass"),
    ({"max_layers": 0}, r"max_layers must be an integer from 1 to 1024, got 0: pass"),
    ({"batch_size": 0}, r"batch_size must be an integer from 1 to 1000000, got 0: pass"),
    ({"mode": "medium"}, r'mode must be "diffusion" or "marginal", got \'medium\': choose'),
    ({"consensus": "loudest"}, r"consensus must be \"medoid\" or \"mean\", got 'loudest': choose"),
    ({"output_type": "jpg"}, r'output_type must be "result", "np", "pt" or "pil", got \'jpg\': choose'),
    ({"mode": "marginal", "num_inference_steps": 4}, r'num_inference_steps must be 1 in mode "marginal", got 4: leave'),
    ({"seed": 3, "generator": torch.Generator()}, r"seed and generator exclude each other, got seed=3 .*: pass one"),
    ({"generator": [torch.Generator()]}, r"generator must be one torch.Generator, got list: a seed"),
    (
        {"initial_layers": np.zeros((1, 20, 30))},
        r"initial_layers must be a bool array \(K, H, W\), got float64 .*: thr",
    ),
    ({"initial_layers": [[True]]}, r"initial_layers must be a bool array \(K, H, W\), got list: threshold"),
    (
        {"initial_layers": np.zeros((1, 30, 20), dtype=bool)},
        r"initial_layers must have the image's height and width \(20, 30\), got \(30, 20\): draw",
    ),
    (
        {"initial_layers": np.ones((3, 20, 30), dtype=bool), "max_layers": 2},
        "initial_layers must hold at most max_layers = 2 masks, got 3: pass a larger max_layers",
    ),
    (
        {"initial_layers": np.arange(2 * 600).reshape(2, 20, 30) < 601},
        r"initial_layers\[1\] must cover most of at least one cell of the 16 x 16 mask grid, got 1 pixels: draw it larger",
    ),
    ({"refine": "no"}, "refine must be True, False or None, got 'no': pass one"),
]


def test_another_pipeline_of_the_same_network(tiny_pipe: SASPipeline) -> None:
    """diffusers' `from_pipe`, which knows networks by the class that a signature names."""
    other = SASPipeline.from_pipe(tiny_pipe)
    assert other.model is tiny_pipe.model and other.config == tiny_pipe.config
    shorter = SASPipeline.from_pipe(tiny_pipe, max_layers=1)
    assert (shorter.config.max_layers, tiny_pipe.config.max_layers) == (1, 8)
    assert shorter(picture(), seed=3) == tiny_pipe(picture(), seed=3, max_layers=1)
    tiny_pipe.to(torch.bfloat16)
    assert SASPipeline.from_pipe(tiny_pipe).dtype == tiny_pipe.dtype == torch.bfloat16, "it is shared"
    assert SASPipeline.from_pipe(tiny_pipe, dtype=torch.float32).dtype == tiny_pipe.dtype == torch.float32
    with pytest.warns(FutureWarning, match="torch_dtype"):  # the older name of it
        assert SASPipeline.from_pipe(tiny_pipe, torch_dtype=torch.bfloat16).dtype == torch.bfloat16


def test_another_pipeline_names_the_weights_of_the_first(saved: Path) -> None:
    first = load(saved)
    assert SASPipeline.from_pipe(first).model_info.sha256 == first.model_info.sha256
    first.to(torch.bfloat16)
    wider = SASPipeline.from_pipe(first, dtype=torch.float32)
    file = load(saved).model_info.sha256
    assert file not in (wider.model_info.sha256, first.model_info.sha256), "rounded, and shared"
    network = load(saved).model
    assert SASPipeline.from_pipe(first.to(torch.bfloat16), model=network).dtype == torch.float32, "it is another's"
    first = load(saved)
    other = SASPipeline.from_pipe(first, model=load(saved).model)
    assert other.model_info.sha256 != first.model_info.sha256, "a network that nobody has read from that file here"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_range": "byte"}, 'image_range must be "unit" or "bytes", got \'byte\': choose one of them'),
        ({"threshold": 2.0}, "threshold must lie in (0, 1), got 2.0: pass a fraction"),
        ({"void_area": -1.0}, "void_area must lie in [0, 1), got -1.0: pass a fraction"),
        ({"stop_threshold": 7.0}, "stop_threshold must lie in (0, 1], got 7.0: lower values draw fewer layers"),
        ({"min_overlap": 3.0}, "min_overlap must lie in [0, 1), got 3.0: pass a fraction"),
        ({"noise_scale": 9.0}, "noise_scale must be a number from 0 to 2, got 9.0: "),
        ({"ensemble_size": 0}, "ensemble_size must be an integer from 1 to 4096, got 0: pass a number in that range"),
        (
            {"num_inference_steps": 0},
            "num_inference_steps must be an integer from 1 to 10000, got 0: pass a number in that range",
        ),
    ],
)
def test_defaults_are_looked_at_where_they_are_given(saved: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        load(saved, **options)
    pipe = load(saved)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        SASPipeline(pipe.model, pipe.scheduler, **options)


def test_sizes_are_those_of_the_network(saved: Path) -> None:
    pipe = load(saved)
    with pytest.raises(ValueError, match="^mask_size must be what the network was built for, 16, got 32: pass 16$"):
        SASPipeline(pipe.model, pipe.scheduler, image_size=16, mask_size=32)
    with pytest.raises(InputError, match=r"\(image_size must be what the network was built for, 16, got 64: pass 16\)"):
        load(saved, image_size=64)


def test_numbers_may_be_numpys(tiny_pipe: SASPipeline) -> None:
    plain = tiny_pipe(picture(), seed=3, ensemble_size=2, num_inference_steps=1, max_layers=1)
    given = tiny_pipe(
        picture(), seed=np.int64(3), ensemble_size=np.uint8(2), num_inference_steps=np.int32(1), max_layers=np.int64(1)
    )
    assert given == plain and type(given.settings.seed) is int


@pytest.mark.parametrize(("options", "message"), LIMITS, ids=lambda v: str(list(v)) if isinstance(v, dict) else "")
def test_bad_options_name_argument_value_and_cure(
    tiny_pipe: SASPipeline, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_pipe(picture(), **options)


IMAGES = [
    (np.full((4, 4, 3), np.nan), r"image must hold finite numbers, got NaN or infinity; replace"),
    (np.full((4, 4, 3), 200.0), r"image as floats must lie in \[0, 1\], got 200\.0\.\.200\.0; rescale it"),
    (np.full((4, 4, 3), -1.0), r"image as floats must lie in \[0, 1\], got -1\.0\.\.-1\.0; rescale it"),
    (picture().transpose(2, 0, 1), r"image .*got shape \(3, 20, 30\); it looks like \(C, H, W\): transpose"),
    (torch.from_numpy(picture()), r"image .*got \(20, 30, 3\); it looks like \(H, W, C\): permute"),
    (torch.zeros(2, 3, 4, 4), r"image must be one image \(3, H, W\), got a batch .*; pass a list"),
    (np.zeros((4, 4, 3), dtype=np.int64), r"image must be uint8, uint16 or float in \[0, 1\], got int64; convert"),
    (np.zeros((0, 4, 3), dtype=np.uint8), r"image .*\(0, 4, 3\); "),
    (None, r"image must be a path, PIL image, .*got NoneType; convert"),
    ("no/such.png", r"image no/such\.png does not exist; check the path"),
]


@pytest.mark.parametrize(("image", "message"), IMAGES, ids=range(len(IMAGES)))
def test_bad_images_are_refused(tiny_pipe: SASPipeline, image: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny_pipe(image, **QUICK)


def test_bad_image_of_a_list_is_named_by_its_place(tiny_pipe: SASPipeline) -> None:
    with pytest.raises(InputError, match=r"image\[1\] must hold finite numbers"):
        tiny_pipe([picture(), np.full((4, 4, 3), np.nan)], **QUICK)


def test_initial_layers_are_of_one_image(tiny_pipe: SASPipeline) -> None:
    """Also where the images would be worked on one by one."""
    layers = np.zeros((1, 20, 30), dtype=bool)
    with pytest.raises(ValueError, match="initial_layers needs one image, got 2: call the pipeline once"):
        tiny_pipe([picture(), picture()], initial_layers=layers, batch_size=1)


def test_half_precision_on_a_cpu_that_emulates_it_is_refused_when_called(
    make_tiny_pipe: MakePipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    pipe = make_tiny_pipe().to(torch.bfloat16)
    with pytest.raises(
        ValueError,
        match=r"dtype must be float32 on this CPU, got torch\.bfloat16, which is emulated .*pipe\.to\(torch\.float32\)",
    ):
        pipe(picture(), **QUICK)
    pipe.to(torch.float32)
    assert len(pipe(picture(), **QUICK)) > 0


def test_scheduler_that_predicts_something_else_is_refused(tiny_pipe: SASPipeline) -> None:
    tiny_pipe.scheduler = DDIMScheduler(prediction_type="epsilon")
    with pytest.raises(
        ValueError, match=r'scheduler must have prediction_type "sample" .*got \'epsilon\': make it with'
    ):
        tiny_pipe(picture(), **QUICK)


def test_scheduler_that_cannot_predict_x_0_is_refused(tiny_pipe: SASPipeline) -> None:
    """It takes the setting and refuses it at its first step, in words of its own."""
    tiny_pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(tiny_pipe.scheduler.config)
    with pytest.raises(
        ValueError, match=r"works with prediction_type 'sample', got EulerAncestralDiscreteScheduler \("
    ):
        tiny_pipe(picture(), **QUICK)


def test_scheduler_is_checked_again_only_if_something_changed(
    tiny_pipe: SASPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []
    monkeypatch.setattr("sas.pipeline.check_scheduler", lambda fresh, *, scale, steps: checked.append(steps))
    for steps in (2, 2, 3):
        tiny_pipe(picture(), seed=0, num_inference_steps=steps)
    assert checked == [2, 3]
    tiny_pipe.scheduler = type(tiny_pipe.scheduler).from_config(tiny_pipe.scheduler.config)
    tiny_pipe(picture(), seed=0, num_inference_steps=3)
    tiny_pipe.scheduler.register_to_config(timestep_spacing="leading")
    for _ in range(2):
        tiny_pipe(picture(), seed=0, num_inference_steps=3)
    assert checked == [2, 3, 3, 3]


def test_scheduler_that_wants_more_steps(make_tiny_pipe: MakePipe) -> None:
    pipe = make_tiny_pipe(logits=False)
    pipe.scheduler = PNDMScheduler(prediction_type="epsilon")
    with pytest.raises(ValueError, match=r"num_inference_steps must be a number that PNDMScheduler can take, got 2 "):
        pipe(picture(), **QUICK)
    assert pipe(picture(), **{**QUICK, "num_inference_steps": 10}).stop is not None


def test_weights_that_learned_their_variance_are_called(tmp_path: Path) -> None:
    """The published recipe's second output channel reaches the scheduler through a whole call, from a saved folder too."""
    settings = {
        "model_name": "unet", "data_image_size": 32, "data_mask_size": 32, "diffusion_loss_type": "mse", "diffusion_learned_variance": True,
        "diffusion_prediction_type": "epsilon", "diffusion_zero_terminal_snr": False, "sampling_scheduler": "ddpm",
    }  # fmt: skip
    config = tiny_config(**settings)
    build_pipeline(config, build_model(config), model_id="variance").save_pretrained(tmp_path / "weights")
    pipe = SASPipeline.from_pretrained(tmp_path / "weights")
    assert pipe.scheduler.config.variance_type == "learned_range"
    assert pipe(picture(), **QUICK).stop is not None


def test_marginal_mode_refuses_noise_predictors(make_tiny_pipe: MakePipe) -> None:
    pipe = make_tiny_pipe(logits=False)
    pipe.scheduler = DDIMScheduler(prediction_type="epsilon")
    with pytest.raises(ValueError, match=r'mode "marginal" needs weights that predict x_0 or v, got .*"epsilon": use'):
        pipe(picture(), mode="marginal")


# ---------------------------------------------------------------------- bad weights


def refused(weights: str | Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        SASPipeline.from_pretrained(weights)
    assert ";" in str(caught.value) or "Copy or download" in str(caught.value), "a cure"


def test_missing_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tmp_path / "nowhere", r"weights .*nowhere is no folder and no hub id owner/name; check the path")
    monkeypatch.setattr("sas.pretrained.DEFAULT_WEIGHTS", tmp_path / "default")
    with pytest.raises(
        InputError, match=r"the shipped weights are missing at .*default; install sas-amodal again or pass"
    ):
        SASPipeline.from_pretrained()


def test_hub_id_without_a_connection() -> None:
    """A relative path that does not exist may be a hub id: both are named."""
    with pytest.raises(
        InputError,
        match=r"weights runs/mistyped is no folder here, and no pipeline .* the hub, which was not reached; check the path, or",
    ):
        SASPipeline.from_pretrained("runs/mistyped", local_files_only=True)


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model.ckpt", "model.pth", "model.PKL"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    refused_as = rf"{name} is a .* file, which holds Python pickles.*refused. Convert it to .safetensors"
    for weights in (tmp_path / name, f"owner/{name}"):  # the second has the look of a hub id
        with pytest.raises(InputError, match=refused_as):
            SASPipeline.from_pretrained(weights)
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(InputError, match=refused_as):
        SASPipeline.from_pretrained(tmp_path / name)


def test_pickles_inside_a_folder_are_not_read(saved: Path) -> None:
    (saved / "model" / "diffusion_pytorch_model.safetensors").rename(saved / "model" / "diffusion_pytorch_model.bin")
    write_manifest(saved)
    refused(saved, r"weights .* do not load into this architecture")
    with pytest.raises(InputError, match="use_safetensors must be True, got False; pickled weights"):
        SASPipeline.from_pretrained(saved, use_safetensors=False)


def test_a_safetensors_file_alone_is_no_pipeline(saved: Path) -> None:
    refused(saved / "model" / "diffusion_pytorch_model.safetensors", "must be a pipeline folder, got a file; pass")


@pytest.mark.parametrize("at", [9, -1], ids=["header", "last byte"])
def test_one_flipped_bit_is_found(saved: Path, at: int) -> None:
    file = saved / "model" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
    refused(saved, r"weights .*diffusion_pytorch_model\.safetensors does not match its SHA-256")


@pytest.mark.parametrize("name", ["model/diffusion_pytorch_model.safetensors", "model_index.json", "MANIFEST.json"])
def test_truncated_files_are_found(saved: Path, name: str) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: len(content) // 2])
    refused(saved, r"weights .*(bytes instead of the size|is not a readable JSON manifest)")


def test_missing_files_are_found(saved: Path) -> None:
    (saved / "scheduler" / "scheduler_config.json").unlink()
    refused(saved, r"weights .*scheduler/scheduler_config\.json is missing")
    (saved / "MANIFEST.json").unlink()
    refused(saved, r"weights .* hold no MANIFEST\.json; pass a folder saved by SASPipeline\.save_pretrained")


def test_foreign_folders_are_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(
        tmp_path / "empty", r"weights .*empty must hold model_index\.json or pipeline/model_index\.json, found neither"
    )
    other = Plain(ConcatUNet(size=16, channels=(8,), norm_groups=4, heads=0))
    other.save_pretrained(tmp_path / "plain")
    refused(tmp_path / "plain", r"weights .*plain hold no MANIFEST\.json; pass")
    write_manifest(tmp_path / "plain")
    refused(tmp_path / "plain", r"weights .*plain must hold a SASPipeline, got Plain; pass a folder saved by sas")


class Plain(DiffusionPipeline):
    """Some other pipeline of diffusers."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet)


CHANGES = [
    {"channels": [8, 32]},  # other shapes
    {"blocks": 3},  # tensors that the file lacks: they would be random numbers
    {"middle_attention": False},  # tensors that nobody wants
    {"channels": "wide"},  # no architecture at all
    {"patch": 3},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.filterwarnings("ignore")
def test_weights_of_another_architecture_are_refused(saved: Path, change: dict[str, Any]) -> None:
    path = saved / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    write_manifest(saved)
    refused(saved, r"weights .* do not (load into this|fit the) architecture .*; use the folder as it was saved")


def test_loop_state_needs_an_end(tiny_pipe: SASPipeline) -> None:
    """The pipeline's own mistake would not pass as a result."""
    state = LoopState.start(count=1, ensemble_size=1, mask_size=16)
    with pytest.raises(RuntimeError, match="ended with a state that goes on"):
        tiny_pipe._result(
            state, 0, image=picture(), source=None, geometry=None, settings=None, info=None, threshold=0.5
        )  # type: ignore[arg-type]


def test_offloaded_weights_give_the_same_result_and_keep_their_name(make_tiny_pipe: MakePipe, tmp_path: Path) -> None:
    make_tiny_pipe().save_pretrained(tmp_path / "weights")
    pipe = SASPipeline.from_pretrained(tmp_path / "weights")
    before, info = pipe(picture(), **QUICK), pipe.model_info
    cpu_offload(pipe.model, execution_device=torch.device("cpu"))
    assert pipe.device.type == "meta"
    after = pipe(picture(), **QUICK)
    assert np.array_equal(before.members, after.members) and after.model == info


def test_offloading_hooks_are_freed_after_each_call(tiny_pipe: SASPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    freed = []
    monkeypatch.setattr(tiny_pipe, "maybe_free_model_hooks", lambda: freed.append(True))
    tiny_pipe(picture(), **QUICK)
    assert freed == [True]
    with pytest.raises(ZeroDivisionError):
        tiny_pipe(picture(), callback_on_step_end=lambda *_: 1 / 0, **QUICK)
    assert freed == [True, True], "also after an error"


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda x: x, "must return None or a dict, got Tensor: return"),
        (lambda x: {"latents": x[:1, :, :4]}, r"must return latents of shape .*, got \(1, 1, 4, 16\): change those"),
        (lambda x: {"latents": 3}, r"must return latents of shape .*, got int: change those"),
    ],
)
def test_what_a_callback_may_not_return_is_named(tiny_pipe: SASPipeline, returned: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"callback_on_step_end {words}"):
        tiny_pipe(picture(), callback_on_step_end=lambda pipe, i, t, given: returned(given["latents"]), **QUICK)


def test_a_rule_or_type_that_does_not_exist_is_named(tiny_pipe: SASPipeline) -> None:
    with pytest.raises(ValueError, match='^consensus must be "medoid" or "mean", got \'median\': choose'):
        tiny_pipe(picture(), consensus="median", **QUICK)  # type: ignore[arg-type]
    tiny_pipe.to(torch.float64)
    with pytest.raises(ValueError, match=r"got torch\.float64, which is not what it was trained in: use pipe\.to"):
        tiny_pipe(picture(), **QUICK)


def test_only_the_word_default_means_the_shipped_weights(
    make_tiny_pipe: MakePipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_tiny_pipe(model_id="mine").save_pretrained("default")
    for weights in (Path("default"), Path("./default"), "./default"):
        assert SASPipeline.from_pretrained(weights).config.model_id == "mine"
    assert find_weights("default") == find_weights(None) == DEFAULT_WEIGHTS


@pytest.mark.parametrize("weights", ["x" * 300, "~nobody-of-this-name/weights"])
def test_weights_that_are_no_path_are_named(weights: str) -> None:
    with pytest.raises(InputError, match="weights .* is no valid path"):
        SASPipeline.from_pretrained(weights)


def test_a_weights_file_that_is_none_is_named(make_tiny_pipe: MakePipe, tmp_path: Path) -> None:
    make_tiny_pipe().save_pretrained(tmp_path / "weights")
    (file,) = (tmp_path / "weights" / "model").glob("*.safetensors")
    file.write_bytes(b"\xff" * 200)
    write_manifest(tmp_path / "weights")
    with pytest.raises(InputError, match="do not load into this architecture"):
        SASPipeline.from_pretrained(tmp_path / "weights")


def test_the_working_folder_is_not_replaced(
    make_tiny_pipe: MakePipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = make_tiny_pipe()
    pipe.save_pretrained(tmp_path / "here")
    (tmp_path / "here" / "below").mkdir()
    before = sorted((tmp_path / "here").rglob("*"))
    for place, target in (("here", "."), ("here/below", ".."), ("here/below", "."), ("here", str(tmp_path / "here"))):
        monkeypatch.chdir(tmp_path / place)
        with pytest.raises(
            InputError, match="the program runs in this folder, which would be replaced; choose another"
        ):
            pipe.save_pretrained(target)
        assert Path.cwd() == tmp_path / place
    assert sorted((tmp_path / "here").rglob("*")) == before
