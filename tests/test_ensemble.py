"""Members to one layer, against computations by brute force in whole numbers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sas.ensemble import consensus, marginal_uncertainty, probability, uncertainty, void_members

COMMON = settings(max_examples=60, deadline=None)


@st.composite
def ensembles(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Members bool (b, e, h, w), and which of them are void, bool (b, e)."""
    b, e, h, w = (draw(st.integers(1, most)) for most in (3, 7, 4, 5))
    return draw(hnp.arrays(bool, (b, e, h, w))), draw(hnp.arrays(bool, (b, e)))


def brute_medoid(members: np.ndarray, void: np.ndarray) -> np.ndarray:
    """The first member that is nearest to the exact mean of the usable ones."""
    usable = [member for member, empty in zip(members, void, strict=True) if not empty]
    if not usable:
        return np.zeros(members.shape[1:], dtype=bool)
    distances = []
    for member in usable:
        distance = Fraction(0)
        for place in np.ndindex(member.shape):
            mean = Fraction(sum(int(other[place]) for other in usable), len(usable))
            distance += abs(int(member[place]) - mean)
        distances.append(distance)
    return usable[distances.index(min(distances))]


@COMMON
@given(ensembles())
def test_medoid_is_the_member_nearest_the_mean_and_the_first_on_ties(pair: tuple[np.ndarray, np.ndarray]) -> None:
    members, void = pair
    result = consensus(torch.from_numpy(members), torch.from_numpy(void)).numpy()
    for b in range(len(members)):
        assert (result[b] == brute_medoid(members[b], void[b])).all()


@pytest.mark.parametrize("count", [3, 5, 6, 7])
def test_rounding_decides_no_tie(count: int) -> None:
    """Members of one pixel each are equally far from their mean, which has no exact binary form."""
    members = torch.eye(count, dtype=torch.bool).reshape(1, count, 1, count)
    for turn in range(count):
        turned = members.roll(turn, dims=1)
        assert torch.equal(consensus(turned, torch.zeros(1, count, dtype=torch.bool)), turned[:, 0])


@COMMON
@given(ensembles())
def test_mean_keeps_pixels_of_more_than_half(pair: tuple[np.ndarray, np.ndarray]) -> None:
    members, void = pair
    result = consensus(torch.from_numpy(members), torch.from_numpy(void), rule="mean").numpy()
    for b in range(len(members)):
        usable = members[b][~void[b]]
        most = 2 * usable.sum(axis=0) > max(len(usable), 1)
        if most.any() or not len(usable):
            assert (result[b] == most).all()
        else:  # nothing in common: not nothing at all
            assert (result[b] == consensus(torch.from_numpy(members), torch.from_numpy(void))[b].numpy()).all()


def test_members_that_found_different_things_have_not_found_nothing() -> None:
    members = torch.zeros(1, 3, 4, 4, dtype=torch.bool)
    members[0, 0, 0], members[0, 1, 3] = True, True
    void = torch.tensor([[False, False, True]])
    assert torch.equal(consensus(members, void, rule="mean")[0], members[0, 0])


def test_void_members_have_no_vote() -> None:
    members = torch.zeros(1, 3, 2, 2, dtype=torch.bool)
    members[0, 1, 0] = True
    void = torch.tensor([[True, False, True]])
    for rule in ("medoid", "mean"):
        assert torch.equal(consensus(members, void, rule=rule)[0], members[0, 1])  # type: ignore[arg-type]
        assert not consensus(~members, torch.ones(1, 3, dtype=torch.bool), rule=rule).any()  # type: ignore[arg-type]


@pytest.mark.parametrize(("pixels", "expected"), [(0, True), (10, True), (11, False), (4096, False)])
def test_void_is_at_most_ten_pixels_of_4096(pixels: int, expected: bool) -> None:
    members = torch.zeros(1, 2, 64 * 64, dtype=torch.bool)
    members[0, 0, :pixels] = True
    members[0, 1, 1000:2000] = True
    void = void_members(members.reshape(1, 2, 64, 64), void_area=0.0025)
    assert void.tolist() == [[expected, False]]


@COMMON
@given(ensembles())
def test_uncertainty_is_the_population_variance(pair: tuple[np.ndarray, np.ndarray]) -> None:
    members = pair[0]
    result = uncertainty(torch.from_numpy(members)).numpy()
    np.testing.assert_allclose(result, np.var(members.astype(float), axis=1), atol=1e-6)
    assert result.min() >= 0 and result.max() <= 0.25 + 1e-6


def test_one_member_is_certain() -> None:
    member = torch.rand(2, 1, 3, 4) > 0.5
    assert not uncertainty(member).any()
    assert torch.equal(consensus(member, torch.zeros(2, 1, dtype=torch.bool)), member[:, 0])


def test_probability_is_the_mean_of_all_members() -> None:
    soft = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 3, 1, 1).expand(1, 3, 2, 5)
    assert probability(soft).allclose(torch.full((1, 2, 5), 0.5))


def test_marginal_uncertainty_is_that_of_a_coin() -> None:
    values = torch.tensor([0.0, 0.1, 0.5, 1.0])
    assert marginal_uncertainty(values).allclose(torch.tensor([0.0, 0.09, 0.25, 0.0]))
    members = torch.rand(1, 9, 4, 4) > 0.4
    assert marginal_uncertainty(probability(members.float())).allclose(uncertainty(members), atol=1e-6)


def test_a_mean_of_fewer_pixels_than_a_void_mask_has_gives_way_to_the_medoid() -> None:
    members = torch.zeros(1, 3, 64, 64, dtype=torch.bool)
    for e in range(3):  # of 100 pixels each, of which neighbours share one
        members[0, e, 9 * e : 9 * e + 10, 9 * e : 9 * e + 10] = True
    void = torch.zeros(1, 3, dtype=torch.bool)
    assert consensus(members, void, rule="mean").sum() == 2
    kept = consensus(members, void, rule="mean", void_area=0.0025)
    assert kept.sum() == 100 and torch.equal(kept, consensus(members, void))
