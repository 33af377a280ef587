"""Order to layers: chains, cycles and the rule that cuts them, and what counts as an overlap."""

from __future__ import annotations

from graphlib import TopologicalSorter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sas.order import (
    contested_area,
    edges_from_order,
    layers_from_order,
    order_from_edges,
    order_from_layers,
    significant_order,
)

COMMON = settings(max_examples=60, deadline=None)


def matrices(most: int = 7) -> st.SearchStrategy[np.ndarray]:
    sizes = st.integers(0, most)
    return sizes.flatmap(lambda n: hnp.arrays(bool, (n, n))).map(lambda m: m & ~np.eye(len(m), dtype=bool))


def strips(*bounds: tuple[int, int], length: int = 20) -> np.ndarray:
    """Masks of one row: object i covers pixels bounds[i][0] up to bounds[i][1]."""
    masks = np.zeros((len(bounds), 1, length), dtype=bool)
    for mask, (start, stop) in zip(masks, bounds, strict=True):
        mask[0, start:stop] = True
    return masks


def test_chain_and_diamond() -> None:
    assert layers_from_order(order_from_edges([(2, 1), (1, 0)], 3)).layer_index.tolist() == [2, 1, 0]
    diamond = layers_from_order(order_from_edges([(0, 1), (0, 2), (1, 3), (2, 3), (0, 3)], 5))
    assert diamond.layer_index.tolist() == [0, 1, 1, 2, 0], "the longest chain of occluders counts"
    assert diamond.cut_edges == ()


@pytest.mark.parametrize("count", [0, 1, 4])
def test_without_edges_all_are_in_the_first_layer(count: int) -> None:
    result = layers_from_order(np.zeros((count, count), dtype=bool))
    assert result.layer_index.tolist() == [0] * count and result.layer_index.dtype == np.int64


@COMMON
@given(matrices())
def test_layer_is_one_more_than_the_deepest_occluder(matrix: np.ndarray) -> None:
    acyclic = np.triu(matrix, k=1)
    result = layers_from_order(acyclic)
    assert result.cut_edges == ()
    for j in range(len(acyclic)):
        deepest = max((int(result.layer_index[i]) for i in np.flatnonzero(acyclic[:, j])), default=-1)
        assert result.layer_index[j] == deepest + 1


@COMMON
@given(matrices(), st.randoms(use_true_random=False))
def test_layers_do_not_depend_on_numbering(matrix: np.ndarray, random: object) -> None:
    acyclic = np.triu(matrix, k=1)
    turn = list(range(len(acyclic)))
    random.shuffle(turn)  # type: ignore[attr-defined]
    shuffled = layers_from_order(acyclic[np.ix_(turn, turn)]).layer_index
    assert (shuffled == layers_from_order(acyclic).layer_index[turn]).all()


@COMMON
@given(matrices())
def test_any_cycle_is_cut_and_every_cut_is_told(matrix: np.ndarray) -> None:
    result = layers_from_order(matrix)
    left = matrix.copy()
    for i, j in result.cut_edges:
        assert left[i, j], "a cut edge was there, and is cut once"
        left[i, j] = False
    list(TopologicalSorter({j: np.flatnonzero(left[:, j]).tolist() for j in range(len(left))}).static_order())
    assert (layers_from_order(left).layer_index == result.layer_index).all()
    for i, j in edges_from_order(left):
        assert result.layer_index[i] < result.layer_index[j]


@pytest.mark.parametrize(("forth", "back", "cut"), [(5, 3, (1, 0)), (3, 5, (0, 1)), (4, 4, (0, 1))])
def test_of_two_the_weaker_edge_is_cut(forth: int, back: int, cut: tuple[int, int]) -> None:
    weights = np.array([[0, forth], [back, 0]])
    result = layers_from_order(~np.eye(2, dtype=bool), weights=weights)
    assert result.cut_edges == (cut,)
    assert result.layer_index.tolist() == ([0, 1] if cut == (1, 0) else [1, 0])


@pytest.mark.parametrize(
    ("values", "cut", "layers"),
    [((9, 2, 7), (1, 2), [1, 2, 0]), ((9, 7, 2), (2, 0), [0, 1, 2]), ((3, 3, 3), (0, 1), [2, 0, 1])],
)
def test_of_three_the_weakest_edge_is_cut(values: tuple[int, ...], cut: tuple[int, int], layers: list[int]) -> None:
    edges = [(0, 1), (1, 2), (2, 0)]
    weights = np.zeros((3, 3), dtype=np.int64)
    for edge, value in zip(edges, values, strict=True):
        weights[edge] = value
    result = layers_from_order(order_from_edges(edges, 3), weights=weights)
    assert result.cut_edges == (cut,)
    assert result.layer_index.tolist() == layers


def test_edges_outside_cycles_are_never_cut() -> None:
    order = order_from_edges([(0, 1), (1, 2), (2, 1), (3, 4), (4, 3)], 5)
    weights = np.full((5, 5), 9)
    weights[0, 1] = 0  # the weakest of all, but in no cycle
    weights[2, 1] = weights[3, 4] = 1
    result = layers_from_order(order, weights=weights)
    assert sorted(result.cut_edges) == [(2, 1), (3, 4)]
    assert result.layer_index.tolist() == [0, 1, 2, 1, 0]


def test_cutting_goes_on_until_no_cycle_is_left_in_the_order_of_cutting() -> None:
    edges = [(0, 1), (1, 0), (1, 2), (2, 1)]
    weights = np.zeros((3, 3), dtype=int)
    for edge, value in zip(edges, (1, 5, 5, 2), strict=True):
        weights[edge] = value
    result = layers_from_order(order_from_edges(edges, 3), weights=weights)
    assert result.cut_edges == ((0, 1), (2, 1))
    assert result.layer_index.tolist() == [1, 0, 1]


def test_contested_area_counts_pixels_where_the_front_one_is_seen() -> None:
    masks = strips((0, 10), (4, 14))
    seen = masks.copy()
    seen[0, 0, 4:6] = False  # of the six shared pixels, two show object 1 ...
    seen[1, 0, 6:10] = False  # ... and four show object 0
    weights = contested_area(masks, seen)
    assert weights.tolist() == [[8, 4], [2, 6]] and weights.dtype == np.int64
    result = layers_from_order(~np.eye(2, dtype=bool), weights=weights)
    assert result.cut_edges == ((1, 0),) and result.layer_index.tolist() == [0, 1]


def test_min_overlap_is_a_share_of_the_one_behind() -> None:
    masks = strips((0, 4), (3, 20))  # one shared pixel: a quarter of the first, a seventeenth of the second
    order = order_from_edges([(0, 1)], 2)
    assert significant_order(order, masks, min_overlap=0.05).tolist() == order.tolist()
    assert not significant_order(order, masks, min_overlap=0.06).any()
    assert significant_order(order.T, masks, min_overlap=0.06)[1, 0]


@pytest.mark.parametrize("side", [10, 20, 30, 50, 70])
def test_exactly_one_percent_does_not_count(side: int) -> None:
    behind = np.ones((side, side), dtype=bool)
    percent = side * side // 100
    front = np.zeros(side * side, dtype=bool)
    front[:percent] = True
    order = order_from_edges([(0, 1)], 2)
    assert not significant_order(order, np.stack([front.reshape(side, side), behind])).any()
    front[percent] = True
    assert significant_order(order, np.stack([front.reshape(side, side), behind]))[0, 1]


def test_no_shared_pixel_never_counts() -> None:
    masks = np.concatenate([strips((0, 4), (4, 8)), np.zeros((1, 1, 20), dtype=bool)])
    assert not significant_order(~np.eye(3, dtype=bool), masks, min_overlap=0).any(), "an empty mask is not occluded"


@COMMON
@given(st.integers(0, 4).flatmap(lambda n: st.tuples(hnp.arrays(bool, (n, 3, 4)), hnp.arrays(bool, (n, n)))))
def test_significant_order_only_takes_away(pair: tuple[np.ndarray, np.ndarray]) -> None:
    masks, order = pair
    loose, strict = (significant_order(order, masks, min_overlap=share) for share in (0.0, 0.5))
    assert not (loose & ~order).any() and not (strict & ~loose).any() and not np.diagonal(loose).any()


@COMMON
@given(matrices())
def test_edges_round_trip(matrix: np.ndarray) -> None:
    edges = edges_from_order(matrix)
    assert edges == sorted(edges)
    assert (order_from_edges(edges, len(matrix)) == matrix).all()


def test_order_from_layers_needs_an_overlap() -> None:
    masks = strips((0, 6), (4, 10), (8, 14), (18, 20))
    order = order_from_layers(masks, np.array([0, 1, 2, 1]))
    assert edges_from_order(order) == [(0, 1), (1, 2)]


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"order_matrix must be False on its diagonal, got True at \(1, 1\)"):
        layers_from_order(np.diag([False, True]))
    with pytest.raises(ValueError, match=r"order_matrix must have shape \(n, m\) with n=2, m=2, got \(2, 3\)"):
        layers_from_order(np.zeros((2, 3), dtype=bool))
    with pytest.raises(ValueError, match=r"min_overlap must be a fraction in \[0, 1\), got 1: pass 0.01"):
        significant_order(np.zeros((1, 1), dtype=bool), np.ones((1, 1, 1), dtype=bool), min_overlap=1)
    with pytest.raises(ValueError, match="visible_masks must be a bool mask"):
        contested_area(strips((0, 1)), strips((0, 1)).astype(float))


@pytest.mark.parametrize("pair", [(0, 0), (0, 2), (-1, 0)])
def test_order_from_edges_refuses_impossible_pairs(pair: tuple[int, int]) -> None:
    with pytest.raises(
        ValueError, match=rf"two different objects in 0..1, got \[{pair[0]}, {pair[1]}\]: remove the pair"
    ):
        order_from_edges([pair], 2)
