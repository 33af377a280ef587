"""Encoders brought along: what they declare of their maps must be what they return, and asking them must leave no trace."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from tiny import tiny_config
from torch import nn
from torch.nn import functional

from sas.config import ConfigError
from sas.factory import build_model
from sas.models import SplitDenoiser, register_encoder
from sas.models.encoder_check import check_maps

NUMBERS = itertools.count()


class Pooling(nn.Module):
    """Maps of 6 and 10 channels at strides 4 and 8; `after` makes of them what is returned."""

    strides: Any = (4, 8)
    widths: Any = (6, 10)

    def __init__(self, after: Callable[[list[torch.Tensor]], Any] = lambda maps: maps, **declared: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 1)
        self.norm = nn.BatchNorm2d(10)
        self.after = after
        self.seen: list[tuple[bool, bool, torch.dtype]] = []
        for word, value in declared.items():
            setattr(self, word, value)

    def forward(self, image: torch.Tensor) -> Any:
        self.seen.append((self.training, torch.is_grad_enabled(), image.dtype))
        x = self.norm(self.conv(image + torch.rand(1, dtype=image.dtype, device=image.device)))
        return self.after([functional.avg_pool2d(x[:, :6], 4), functional.avg_pool2d(x, 8)])


def name_of(build: Callable[[], nn.Module]) -> str:
    name = f"brought-{next(NUMBERS)}"
    register_encoder(name, build)
    return name


def small(build: Callable[[], nn.Module]) -> SplitDenoiser:
    return SplitDenoiser(
        image_size=32, mask_size=16, encoder=name_of(build), channels=(8, 16, 16), attention_sizes=(4,), norm_groups=4
    )


def fault(build: Callable[[], nn.Module]) -> str:
    with pytest.raises(ValueError) as caught:
        small(build)
    return str(caught.value)


def lists(maps: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    yield from maps


# ---------------------------------------------------------------------- what is refused


class Silent(nn.Module):
    """Says nothing of its maps."""

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return Pooling()(image)


class Narrow(Silent):
    strides = (4, 8)


@pytest.mark.parametrize(
    ("build", "word", "got"),
    [
        (Silent, "strides", "a Silent without it"),
        (Narrow, "widths", "a Narrow without it"),
        (lambda: Pooling(strides=4), "strides", "4"),
        (lambda: Pooling(strides=()), "strides", "()"),
        (lambda: Pooling(strides=(4, 0)), "strides", "(4, 0)"),
        (lambda: Pooling(strides=(4, 8.0)), "strides", "(4, 8.0)"),
        (lambda: Pooling(widths="ab"), "widths", "'ab'"),
        (lambda: Pooling(widths=(6, -10)), "widths", "(6, -10)"),
    ],
)
def test_what_is_declared_must_be_sizes(build: Callable[[], nn.Module], word: str, got: str) -> None:
    rule = (
        f"must have an attribute {word}, a tuple of one positive whole number for each of its maps, got {got}: set it"
    )
    told = fault(build)
    assert told.startswith("encoder brought-") and rule in told


def test_as_many_widths_as_strides() -> None:
    told = fault(lambda: Pooling(widths=(6,)))
    assert "must have as many widths as strides, got strides (4, 8) and widths (6,): name both for every map" in told


@pytest.mark.parametrize(
    ("build", "got", "cure"),
    [
        (lambda: Pooling(strides=(8, 4)), "(1, 6, 8, 8), (1, 10, 4, 4)", "declare strides (4, 8) and widths (6, 10)"),
        (lambda: Pooling(strides=(4, 16)), "(1, 6, 8, 8), (1, 10, 4, 4)", "declare strides (4, 8) and widths (6, 10)"),
        (lambda: Pooling(widths=(6, 12)), "(1, 6, 8, 8), (1, 10, 4, 4)", "declare strides (4, 8) and widths (6, 10)"),
        (
            lambda: Pooling(lambda maps: [one.permute(0, 2, 3, 1) for one in maps]),
            "(1, 8, 8, 6), (1, 4, 4, 10)",
            "its channels are last; return its maps as (B, C, H, W)",
        ),
        (lambda: Pooling(lambda maps: maps[:1]), "(1, 6, 8, 8)", "return a list or tuple with one map"),
        (lambda: Pooling(lambda maps: []), "none", "return a list or tuple with one map"),
        (lambda: Pooling(lambda maps: dict(zip("ab", maps, strict=True))), "str, str", "return a list or tuple with"),
        (
            lambda: Pooling(lambda maps: maps[0], strides=(4,), widths=(6,)),
            "no list but (1, 6, 8, 8)",
            "return a list or tuple with one map (B, C, H, W) for each stride",
        ),
        (lambda: Pooling(lambda maps: None), "no list but NoneType", "return a list or tuple with one map"),
        (
            lambda: Pooling(lambda maps: [torch.cat([one, one]) for one in maps]),
            "(2, 6, 8, 8), (2, 10, 4, 4)",
            "return a list or tuple with one map (B, C, H, W) for each stride",
        ),
        (lambda: Pooling(lambda maps: [one[0] for one in maps]), "(6, 8, 8), (10, 4, 4)", "return a list or tuple"),
        (
            lambda: Pooling(lambda maps: [one[..., :-1] for one in maps]),
            "(1, 6, 8, 7), (1, 10, 4, 3)",
            "return maps whose sides divide the image's",
        ),
    ],
    ids=["order", "strides", "widths", "channels last", "too few", "none", "mapping", "tensor", "nothing", "two pictures", "no batch", "sides"],
)  # fmt: skip
def test_maps_that_are_not_as_declared(build: Callable[[], Pooling], got: str, cure: str) -> None:
    encoder = build()
    told = fault(build)
    assert (
        f"with strides {encoder.strides} and widths {encoder.widths} must turn an image of shape (1, 3, 32, 32)" in told
    )
    assert f", got {got}: {cure}" in told


def test_an_encoder_that_fails_is_named() -> None:
    def fails(maps: list[torch.Tensor]) -> None:
        raise AssertionError("Input height (32) doesn't match model (224).")

    told = fault(lambda: Pooling(fails))
    assert "must turn an image of shape (1, 3, 32, 32) into maps, got AssertionError (Input height (32) doesn't" in told
    assert told.endswith("set image_size to what it takes, or choose another encoder")


def test_timm_networks_cannot_be_changed_so_the_cure_is_another() -> None:
    encoder = Pooling(lambda maps: [one.permute(0, 2, 3, 1) for one in maps])
    with pytest.raises(
        ValueError, match=r"encoder timm/x with .*, got \(1, 8, 8, 6\), .*: choose another one, or register"
    ):
        check_maps(encoder, name="timm/x", image_size=32)


def test_told_as_a_fault_of_the_configuration() -> None:
    config = tiny_config(
        model_name="split", data_image_size=32, data_mask_size=16, data_oversample=1, model_channels=(8, 16, 16), model_attention_sizes=(4,),
        model_encoder=name_of(lambda: Pooling(widths=(6, 12))),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"^model: encoder brought-\d+ with .*: declare strides \(4, 8\) and widths"):
        build_model(config)


# ---------------------------------------------------------------------- what is left as it was


@pytest.mark.parametrize("after", [lambda maps: maps, tuple, lists], ids=["list", "tuple", "generator"])
def test_honest_encoders_are_taken(after: Callable[[list[torch.Tensor]], Any]) -> None:
    model = small(lambda: Pooling(after)).eval()
    assert model.image_encoder.seen == [(False, False, torch.float32)], "one picture, in eval mode, without gradients"
    assert [tuple(level.shape) for level in model.encode(torch.zeros(2, 3, 32, 32))] == [(2, 8, 8, 8), (2, 16, 4, 4)]


def test_maps_without_parameters() -> None:
    class Pools(nn.Module):
        strides, widths = (4,), (3,)

        def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
            return [functional.avg_pool2d(image, 4)]

    assert len(small(Pools).necks) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_modes_statistics_and_random_numbers_stay(fails: bool) -> None:
    encoder = Pooling((lambda maps: None) if fails else (lambda maps: maps))
    encoder.train()
    encoder.norm.eval()  # frozen statistics in a network that trains
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    random = torch.get_rng_state()
    if fails:
        with pytest.raises(ValueError, match="no list but NoneType"):
            check_maps(encoder, name="mine", image_size=32)
    else:
        check_maps(encoder, name="mine", image_size=32)
    assert encoder.seen == [(False, False, torch.float32)]
    assert (encoder.training, encoder.conv.training, encoder.norm.training) == (True, True, False)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize("where", ["meta", "empty weights", "half"])
def test_not_asked_while_there_are_no_values(where: str) -> None:
    build = name_of(Pooling)
    settings = {"image_size": 32, "mask_size": 16, "encoder": build, "channels": (8, 16, 16), "attention_sizes": (4,)}
    if where == "half":
        torch.set_default_dtype(torch.float16)
    try:
        with {"meta": torch.device("meta"), "empty weights": init_empty_weights()}.get(where, torch.no_grad()):
            model = SplitDenoiser(**settings, norm_groups=4)  # type: ignore[arg-type]
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.image_encoder.seen == []
    assert model.image_encoder.conv.weight.is_meta or where == "half"


def test_double_precision_is_asked_in_its_own() -> None:
    encoder = Pooling().double()
    check_maps(encoder, name="mine", image_size=32)
    assert encoder.seen == [(False, False, torch.float64)]


@pytest.mark.parametrize("low_memory", [True, False])
def test_saved_weights_are_loaded(low_memory: bool, tmp_path: Path) -> None:
    model = small(Pooling)
    model.save_pretrained(tmp_path)
    again = SplitDenoiser.from_pretrained(tmp_path, low_cpu_mem_usage=low_memory)
    assert torch.equal(again.image_encoder.conv.weight, model.image_encoder.conv.weight)
    assert len(again.image_encoder.seen) == (0 if low_memory else 1)
