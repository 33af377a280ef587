"""The layer loop: draw the next layer, judge it, take it in, until nothing is left.

The loop knows no network. It asks a `draw` function for the soft masks of the next layer of some states, and keeps everything
that it has decided in an explicit state, so that it can start from any state (a layer corrected by hand, say) and hold several
states of one image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import rearrange, reduce, repeat

from sas.ensemble import consensus, marginal_uncertainty, probability, uncertainty, void_members
from sas.geometry import Geometry
from sas.provenance import Consensus, StopReason


@dataclass(frozen=True)
class LoopRules:
    """How a layer is judged.

    threshold: soft mask above which a pixel of a member is set. void_area: share of the grid below which a member is void.
    consensus: rule for the mask kept. merge_disjoint: a layer that shares no pixel with the one before belongs to that one.
    max_layers: layers at most. shared: members share the consensus as their cumulative mask, else each keeps its own.
    marginal: uncertainty is p (1 - p) instead of the members' variance. stop_threshold: a layer is void if the members' mean
    probability that nothing is left, where they give one, lies above.
    """

    threshold: float = 0.5
    void_area: float = 0.0025
    consensus: Consensus = "medoid"
    merge_disjoint: bool = True
    max_layers: int = 8
    shared: bool = True
    marginal: bool = False
    stop_threshold: float = 0.5


@dataclass(frozen=True, eq=False)
class AcceptedLayer:
    """One accepted layer of one state: consensus mask bool (h, w), members bool (e, h, w), probability and uncertainty float (h, w)."""

    mask: torch.Tensor
    members: torch.Tensor
    probability: torch.Tensor
    uncertainty: torch.Tensor


@dataclass(frozen=True, eq=False)
class LoopState:
    """States of the loop, one a row; an image may have several.

    cumulative: bool (b, e, 1, h, w), what each member of each state has found so far.
    layers: the accepted layers of each state. votes: void members at the last pass. nothing: mean over members of the probability that
    nothing was left at the last pass, None where `draw` gives none. weight: the state's share among the states
    of its image, in [0, 1]. passes: how often a layer was drawn. stop: why a state ended, None while it goes on.
    image: the row of each state's image.
    """

    cumulative: torch.Tensor
    layers: tuple[tuple[AcceptedLayer, ...], ...]
    votes: tuple[int, ...]
    nothing: tuple[float | None, ...]
    weight: tuple[float, ...]
    passes: tuple[int, ...]
    stop: tuple[StopReason | None, ...]
    image: tuple[int, ...]

    @classmethod
    def start(cls, *, count: int, ensemble_size: int, mask_size: int, device: torch.device | str = "cpu") -> LoopState:
        """Nothing found yet: one state for each of `count` images."""
        return cls(
            cumulative=torch.zeros(count, ensemble_size, 1, mask_size, mask_size, dtype=torch.bool, device=device),
            layers=((),) * count,
            votes=(0,) * count,
            nothing=(None,) * count,
            weight=(1.0,) * count,
            passes=(0,) * count,
            stop=(None,) * count,
            image=tuple(range(count)),
        )

    @property
    def active(self) -> list[int]:
        """Rows of the states that go on."""
        return [row for row, reason in enumerate(self.stop) if reason is None]


def start_behind(state: LoopState, layers: np.ndarray, geometry: Geometry, rules: LoopRules) -> LoopState:
    """`state` of one image, at its start, with some layers already in it, certain and in all members.

    layers: bool (K, H, W), front to back, in the frame of `geometry`. The arguments' names in errors are those of `SASPipeline`.
    ValueError unless they are such an array, at most `rules.max_layers`, and each covers a cell of the mask grid.
    """
    if not isinstance(layers, np.ndarray) or layers.ndim != 3 or layers.dtype != np.bool_:
        got = f"{layers.dtype} {layers.shape}" if isinstance(layers, np.ndarray) else type(layers).__name__
        raise ValueError(f"initial_layers must be a bool array (K, H, W), got {got}: threshold or stack the masks")
    if layers.shape[1:] != (geometry.height, geometry.width):
        raise ValueError(
            f"initial_layers must have the image's height and width {(geometry.height, geometry.width)}, got {layers.shape[1:]}: "
            "draw them on the image itself"
        )
    if len(layers) > rules.max_layers:
        raise ValueError(
            f"initial_layers must hold at most max_layers = {rules.max_layers} masks, got {len(layers)}: pass a larger max_layers"
        )
    on_grid = geometry.masks_to_model(layers)
    for k, mask in enumerate(on_grid):
        if not mask.any():
            raise ValueError(
                f"initial_layers[{k}] must cover most of at least one cell of the {geometry.mask_size} x {geometry.mask_size} mask grid, "
                f"got {int(layers[k].sum())} pixels: draw it larger, or leave it out"
            )
    masks = torch.from_numpy(on_grid).to(state.cumulative.device)
    members = state.cumulative.shape[1]
    accepted = tuple(
        AcceptedLayer(
            mask=m,
            members=m[None].repeat(members, 1, 1),
            probability=m.float(),
            uncertainty=torch.zeros_like(m.float()),
        )
        for m in masks
    )
    cumulative = state.cumulative | masks.any(dim=0)
    full = len(accepted) >= rules.max_layers
    return replace(
        state,
        layers=(accepted,),
        cumulative=cumulative,
        passes=(len(accepted),),
        stop=("max_layers" if full else None,),
    )


Draw = Callable[[LoopState, list[int]], torch.Tensor]
"""`draw(state, rows) -> soft`: soft masks of the next layer of some rows, float (len(rows), e, 1, h, w) in [0, 1]; a second channel,
if there is one, holds the probability that nothing is left.
"""


def next_layer(state: LoopState, draw: Draw, rules: LoopRules) -> LoopState:
    """Draw one more layer for every state that goes on, and judge it."""
    rows = state.active
    if not rows:
        return state
    drawn = draw(state, rows)
    soft = drawn[:, :, 0]
    members = soft > rules.threshold
    nothing = nothing_left(drawn)
    void = judged_void(members, nothing, rules)
    masks = consensus(members, void, rule=rules.consensus, void_area=rules.void_area)
    probabilities = probability(soft)
    spread = marginal_uncertainty(probabilities) if rules.marginal else uncertainty(members)

    for at, row in enumerate(rows):
        found = AcceptedLayer(
            mask=masks[at], members=members[at], probability=probabilities[at], uncertainty=spread[at]
        )
        state = replace(state, nothing=_put(state.nothing, row, None if nothing is None else float(nothing[at])))
        state = _judge(state, row, found, void[at], rules)
    return state


def nothing_left(drawn: torch.Tensor) -> torch.Tensor | None:
    """Probability that nothing is left, float (b,): the mean over members; None where `drawn` (b, e, 1 or 2, h, w) gives none."""
    return reduce(drawn[:, :, 1], "b e h w -> b", "mean") if drawn.shape[2] > 1 else None


def judged_void(members: torch.Tensor, nothing: torch.Tensor | None, rules: LoopRules) -> torch.Tensor:
    """Void members, bool (b, e): masks too small; all of them where nothing seems to be left.

    members: bool (b, e, h, w). nothing: float (b,), probability that nothing is left.
    """
    void = void_members(members, void_area=rules.void_area)
    return void if nothing is None else void | (nothing > rules.stop_threshold)[:, None]


def run_loop(state: LoopState, draw: Draw, rules: LoopRules) -> LoopState:
    """Draw layers until every state has stopped."""
    if rules.max_layers < 1:
        raise ValueError(f"max_layers must be at least 1, got {rules.max_layers}: pass the most layers you want")
    while state.active:
        state = next_layer(state, draw, rules)
    return state


def _judge(state: LoopState, row: int, found: AcceptedLayer, void: torch.Tensor, rules: LoopRules) -> LoopState:
    """Take the drawn layer of one state in, merge it, or stop."""
    layers, before = state.layers[row], state.cumulative[row]
    state = replace(
        state,
        votes=_put(state.votes, row, int(void.sum())),
        passes=_put(state.passes, row, state.passes[row] + 1),
    )
    if bool(void.all()) or not bool(found.mask.any()):
        return replace(state, stop=_put(state.stop, row, "empty"))
    taken = (
        repeat(found.mask, "h w -> e 1 h w", e=len(before))
        if rules.shared
        else rearrange(found.members, "e h w -> e 1 h w")
    )
    covered = torch.stack([layer.mask for layer in layers]).any(dim=0) if layers else torch.zeros_like(found.mask)
    if not bool((taken & ~before).any()) or not bool((found.mask & ~covered).any()):
        return replace(state, stop=_put(state.stop, row, "no_progress"))
    merges = rules.merge_disjoint and layers and not bool((layers[-1].mask & found.mask).any())
    if not merges and len(layers) == rules.max_layers:
        return replace(state, stop=_put(state.stop, row, "max_layers"))
    layers = (*layers[:-1], _merged(layers[-1], found, rules)) if merges else (*layers, found)
    cumulative = state.cumulative.clone()
    cumulative[row] = before | taken
    # A layer may be merged into the last one again and again; each merge adds pixels, but a bound keeps the cost known.
    exhausted = state.passes[row] >= 2 * rules.max_layers
    return replace(
        state,
        cumulative=cumulative,
        layers=_put(state.layers, row, layers),
        stop=_put(state.stop, row, "max_layers") if exhausted else state.stop,
    )


def _merged(last: AcceptedLayer, found: AcceptedLayer, rules: LoopRules) -> AcceptedLayer:
    """Two disjoint parts of one layer as one: masks and members joined, the larger probability at each pixel."""
    members = last.members | found.members
    probabilities = torch.maximum(last.probability, found.probability)
    return AcceptedLayer(
        mask=last.mask | found.mask,
        members=members,
        probability=probabilities,
        uncertainty=marginal_uncertainty(probabilities) if rules.marginal else members.float().var(dim=0, correction=0),
    )


def _put(values: tuple, row: int, value: object) -> tuple:
    return (*values[:row], value, *values[row + 1 :])
