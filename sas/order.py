"""Occlusion order: from a directed order matrix to layers and back, with a rule for cycles.

`order_matrix[i, j]` is True iff instance i occludes instance j. A layer is the depth of an instance in that graph: 0 where nobody
is in front, else one more than its deepest occluder (SAS, section 3).

**Cycles.** SAS does not treat mutual occlusion. The rule here: inside each strongly connected component the weakest edge is cut,
again and again, until no cycle is left. The weight of the edge i -> j is its contested visible area: the pixels of both amodal
masks at which i is the one seen. Ties are cut at the smallest (i, j). The cut edges are returned, so that nothing is lost silently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange

from sas.masks import check_mask, check_shape, overlap_areas

if TYPE_CHECKING:
    import networkx as nx

DEFAULT_MIN_OVERLAP = 0.01


@dataclass(frozen=True)
class LayerAssignment:
    """Layers of one scene.

    layer_index: (N,) int64, 0 = nobody in front.
    cut_edges: edges (front, behind) removed to break cycles, in the order of cutting.
    """

    layer_index: np.ndarray
    cut_edges: tuple[tuple[int, int], ...] = ()


def significant_order(
    order_matrix: np.ndarray, amodal_masks: np.ndarray, *, min_overlap: float = DEFAULT_MIN_OVERLAP
) -> np.ndarray:
    """Edges that count: i occludes j only if they share more than `min_overlap` of j's amodal area.

    order_matrix (N, N) bool and amodal_masks (N, H, W) bool -> (N, N) bool. `min_overlap` is a fraction in [0, 1).
    """
    if not 0 <= min_overlap < 1:
        raise ValueError(f"min_overlap must be a fraction in [0, 1), got {min_overlap}: pass 0.01 for one percent")
    check_mask(amodal_masks, name="amodal_masks", ndim=3)
    check_shape(order_matrix, "n m", name="order_matrix", n=len(amodal_masks), m=len(amodal_masks))
    shared = overlap_areas(amodal_masks)
    areas = np.diagonal(shared)
    significant = shared > min_overlap * areas[None, :]
    np.fill_diagonal(significant, False)
    return order_matrix & significant


def contested_area(amodal_masks: np.ndarray, visible_masks: np.ndarray) -> np.ndarray:
    """Weight of each edge: entry (i, j) counts the pixels in both amodal masks at which i is visible; (N, N) int64."""
    check_mask(visible_masks, name="visible_masks", ndim=3)
    seen, full = (rearrange(masks, "n h w -> n (h w)").astype(np.float32) for masks in (visible_masks, amodal_masks))
    return np.rint((seen * full) @ full.T).astype(np.int64)


def layers_from_order(
    order_matrix: np.ndarray, *, weights: np.ndarray | Callable[[], np.ndarray] | None = None
) -> LayerAssignment:
    """Layer of each instance; cycles are cut at their weakest edge (see the module's rule).

    order_matrix: (N, N) bool without self-occlusion. weights: (N, N) numbers, or a function that makes them if there is a cycle;
    without them every edge weighs the same.
    """
    check_shape(order_matrix, "n m", name="order_matrix", n=len(order_matrix), m=len(order_matrix))
    if np.diagonal(order_matrix).any():
        i = int(np.flatnonzero(np.diagonal(order_matrix))[0])
        raise ValueError(f"order_matrix must be False on its diagonal, got True at ({i}, {i}): clear the diagonal")
    cut: list[tuple[int, int]] = []
    layer_index = _depths(order_matrix)
    if layer_index is None:
        import networkx as nx  # rarely needed, and slow to import

        graph = nx.from_numpy_array(order_matrix, create_using=nx.DiGraph)
        cut = _break_cycles(graph, weights() if callable(weights) else weights)
        layer_index = _depths(nx.to_numpy_array(graph, dtype=bool))
        assert layer_index is not None  # nothing that is a cycle is left
    return LayerAssignment(layer_index=layer_index, cut_edges=tuple(cut))


def _depths(order_matrix: np.ndarray) -> np.ndarray | None:
    """Edges of the longest way to each instance from the front, (N,) int64; None if there is a cycle, where ways have no end."""
    depth = np.zeros(len(order_matrix), dtype=np.int64)
    for _ in range(len(order_matrix)):
        before, depth = depth, np.max(order_matrix * (depth + 1)[:, None], axis=0)
        if (depth == before).all():
            return depth
    return None if len(depth) else depth


def _break_cycles(graph: nx.DiGraph, weights: np.ndarray | None) -> list[tuple[int, int]]:
    """Remove the weakest edges of the graph's cycles in place; returns them in the order of cutting."""
    import networkx as nx

    cut: list[tuple[int, int]] = []
    while True:
        cyclic = [component for component in nx.strongly_connected_components(graph) if len(component) > 1]
        if not cyclic:
            return cut
        for component in cyclic:
            edges = sorted(graph.subgraph(component).edges)
            weakest = min(edges, key=lambda edge: (0 if weights is None else weights[edge], edge))
            graph.remove_edge(*weakest)
            cut.append(weakest)


def order_from_edges(edges: list[tuple[int, int]] | list[list[int]], count: int) -> np.ndarray:
    """(count, count) bool order matrix from [front, behind] pairs."""
    matrix = np.zeros((count, count), dtype=bool)
    for front, behind in edges:
        if not (0 <= front < count and 0 <= behind < count) or front == behind:
            raise ValueError(
                f"order must hold pairs of two different objects in 0..{count - 1}, got [{front}, {behind}]: remove the pair"
            )
        matrix[front, behind] = True
    return matrix


def edges_from_order(order_matrix: np.ndarray) -> list[tuple[int, int]]:
    """[front, behind] pairs of an order matrix, sorted."""
    return [(int(i), int(j)) for i, j in np.argwhere(order_matrix)]


def order_from_layers(
    amodal_masks: np.ndarray, layer_index: np.ndarray, *, min_overlap: float = DEFAULT_MIN_OVERLAP
) -> np.ndarray:
    """Order implied by predicted layers: i occludes j iff its layer is smaller and the overlap counts; (N, N) bool."""
    in_front = layer_index[:, None] < layer_index[None, :]
    return significant_order(in_front, amodal_masks, min_overlap=min_overlap)
