"""Group normalisation with a backward pass of its own must be torch's up to rounding, and stand aside where it gains nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sas.models.norm import GroupNorm


def gradients(norm: nn.GroupNorm, x: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor]:
    leaf = x.clone().requires_grad_()
    norm.zero_grad()
    y = norm(leaf)
    y.backward(gradient.to(y.dtype))
    found = [y.detach(), leaf.grad, norm.weight.grad, norm.bias.grad]
    return [one.float() for one in found if one is not None]


@pytest.mark.parametrize("shape", [(2, 8, 6, 5), (1, 32, 4, 4), (3, 4, 5, 3), (2, 4, 64, 64)])
@pytest.mark.parametrize(("offset", "push"), [(0.0, 0.0), (3.0, 0.0), (0.0, 1.0), (3.0, 1.0)])
def test_gradients_are_torchs_up_to_rounding(shape: tuple[int, int, int, int], offset: float, push: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape).add(offset).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(shape).add(push).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    own, theirs = GroupNorm(2, shape[1]), nn.GroupNorm(2, shape[1])
    with torch.no_grad():
        for mine, other in zip(own.parameters(), theirs.parameters(), strict=True):
            mine.normal_()
            other.copy_(mine)
    for found, exact in zip(gradients(own, x, gradient), gradients(theirs, x.float(), gradient.float()), strict=True):
        assert found.shape == exact.shape
        assert float((found - exact).norm()) <= 0.03 * float(exact.norm()) + 0.02, "two digits are bfloat16's"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
def test_it_steps_in_only_where_torch_is_slow(dtype: torch.dtype, last: bool) -> None:
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(2, 8, 4, 4).to(dtype).contiguous(memory_format=layout).requires_grad_()
    y = GroupNorm(2, 8)(x)
    own = "ChannelsLast" in type(y.grad_fn).__name__
    assert own == (dtype == torch.bfloat16 and last)
    assert y.is_contiguous(memory_format=layout)
    with torch.no_grad():
        assert torch.equal(GroupNorm(2, 8)(x), nn.GroupNorm(2, 8)(x))
