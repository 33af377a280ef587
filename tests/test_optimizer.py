"""Muon: orthogonal updates of one size for matrices, AdamW for the rest."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sas.optimizer import UPDATE_RMS, Muon, make_optimizer, orthogonalized


class Network(nn.Module):
    """One weight of each sort that the library's networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 5, groups=16))
        self.body = nn.Conv2d(16, 32, 3)
        self.norm = nn.GroupNorm(4, 32)
        self.mix = nn.Linear(32, 24)
        self.head = nn.Conv2d(24, 2, 1)


def give_gradients(network: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 1e-3


@pytest.mark.parametrize("shape", [(24, 24), (16, 144), (144, 16), (64, 70)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_orthogonalized_keeps_directions_and_levels_lengths(shape: tuple[int, int], size: float) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * size
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalized(matrix[None])[0]
    assert found.shape == matrix.shape
    along = u.mT @ found @ v.mT  # diagonal in the matrix's own directions
    lengths = along.diagonal()
    # The iteration is meant for few rounds: directions of more than a hundredth of the longest come near 1.
    assert lengths[s > s.max() / 100].min() > 0.5
    assert lengths.max() < 1.3
    assert (along - lengths.diag()).abs().max() < 1e-3


def test_orthogonalized_zero_is_zero() -> None:
    assert torch.equal(orthogonalized(torch.zeros(2, 8, 20)), torch.zeros(2, 8, 20))


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_each_matrix_of_a_batch_is_as_if_it_were_alone(dtype: torch.dtype, rounding: float) -> None:
    sizes = (1e-6, 1.0, 1e4)
    generator = torch.Generator().manual_seed(1)
    batch = torch.stack([torch.randn(12, 40, generator=generator) * size for size in sizes])
    found = orthogonalized(batch.to(dtype)).float()
    for one, matrix in zip(found, batch, strict=True):
        alone = orthogonalized(matrix[None])[0]
        assert float((one - alone).norm()) <= rounding * float(alone.norm())


@pytest.mark.parametrize("half", [False, True])
def test_weights_of_one_shape_get_their_own_updates(half: bool) -> None:
    """They are worked on together."""

    def moved(names: set[str]) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        network = nn.ModuleDict({name: nn.Linear(16, 24) for name in ("a", "b", "c")})
        network["head"] = nn.Linear(24, 2)
        optimizer = make_optimizer(network, "muon", learning_rate=0.1, weight_decay=0.0, encoder_rate=1.0, half=half)
        before = copy.deepcopy(network.state_dict())
        for number, name in enumerate(("a", "b", "c")):
            generator = torch.Generator().manual_seed(number)
            gradient = torch.randn(24, 16, generator=generator) * 10.0 ** (3 * number)
            network[name].weight.grad = gradient if name in names else None
        optimizer.step()
        return {name: network[name].weight.detach() - before[f"{name}.weight"] for name in ("a", "b", "c")}

    together = moved({"a", "b", "c"})
    for name, step in together.items():
        alone = moved({name})
        assert all(torch.equal(alone[other], torch.zeros(24, 16)) for other in together if other != name)
        torch.testing.assert_close(step, alone[name], rtol=0.03, atol=1e-3 if half else 1e-5)
        assert float(step.square().mean().sqrt()) == pytest.approx(0.1 * UPDATE_RMS, rel=0.3)


def test_groups() -> None:
    network = Network()
    optimizer = make_optimizer(network, "muon", learning_rate=0.1, weight_decay=0.0, encoder_rate=0.25)
    assert isinstance(optimizer, Muon)
    names = {id(p): name for name, p in network.named_parameters()}
    found = {
        (group["factor"], group["orthogonal"]): {names[id(p)] for p in group["params"]}
        for group in optimizer.param_groups
    }
    assert found == {
        (1.0, True): {"body.weight", "mix.weight"},
        (1.0, False): {"body.bias", "norm.weight", "norm.bias", "mix.bias", "head.weight", "head.bias"},
        (0.25, True): {"image_encoder.0.weight"},
        (0.25, False): {"image_encoder.0.bias", "image_encoder.1.weight", "image_encoder.1.bias"},
    }


def test_updates_have_one_size_whatever_the_shape() -> None:
    network = Network()
    before = copy.deepcopy(network)
    optimizer = make_optimizer(network, "muon", learning_rate=0.01, weight_decay=0.0, encoder_rate=1.0)
    give_gradients(network)
    optimizer.step()
    for name in ("body.weight", "mix.weight", "image_encoder.0.weight"):
        moved = (network.get_parameter(name) - before.get_parameter(name)).detach()
        assert float(moved.square().mean().sqrt()) == pytest.approx(0.01 * UPDATE_RMS, rel=0.3), name


def test_the_rest_takes_the_steps_of_adamw() -> None:
    network, plain = Network(), Network()
    plain.load_state_dict(network.state_dict())
    muon = make_optimizer(network, "muon", learning_rate=0.01, weight_decay=0.1, encoder_rate=1.0)
    adamw = make_optimizer(plain, "adamw", learning_rate=0.01, weight_decay=0.1, encoder_rate=1.0)
    for seed in range(3):
        for one, optimizer in ((network, muon), (plain, adamw)):
            give_gradients(one, seed)
            optimizer.step()
    for name, parameter in network.named_parameters():
        same = torch.equal(parameter, plain.get_parameter(name))
        assert same == (name not in {"body.weight", "mix.weight", "image_encoder.0.weight"}), name


def test_weight_decay_shrinks_matrices() -> None:
    network = Network()
    before = network.body.weight.detach().clone()
    optimizer = make_optimizer(network, "muon", learning_rate=0.1, weight_decay=0.5, encoder_rate=1.0)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(network.body.weight, before * 0.95)


def test_matrices_without_gradient_stay() -> None:
    network = Network()
    before = copy.deepcopy(network.state_dict())
    optimizer = make_optimizer(network, "muon", learning_rate=0.1, weight_decay=0.5, encoder_rate=0.0)
    network.body.weight.grad = torch.ones_like(network.body.weight)
    optimizer.step()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"body.weight"}
    assert not any(p.requires_grad for p in network.image_encoder.parameters())
    assert not network.image_encoder.training and network.body.training, "statistics of norms are frozen too"
