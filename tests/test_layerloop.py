"""The layer loop with an oracle in place of the network: what is true must come out, and every way to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from einops import repeat
from hypothesis import given, settings
from hypothesis import strategies as st

from sas.layerloop import AcceptedLayer, Draw, LoopRules, LoopState, next_layer, run_loop
from sas.masks import cumulative
from sas.scene import Scene

COMMON = settings(max_examples=40, deadline=None)
SIZE = 6
ONE_PIXEL = 0.5 / SIZE**2  # void_area under which a member of one pixel counts


def start(count: int = 1, *, members: int = 2, size: int = SIZE) -> LoopState:
    return LoopState.start(count=count, ensemble_size=members, mask_size=size)


@st.composite
def truths(draw: st.DrawFn) -> torch.Tensor:
    """Layers of a random heap of objects, each with a visible pixel: bool (K, SIZE, SIZE)."""
    count = draw(st.integers(0, 6))
    masks = np.zeros((count, SIZE, SIZE), dtype=bool)
    for mask in masks:
        top, left, bottom, right = (draw(st.integers(0, SIZE - 1)) for _ in range(4))
        mask[min(top, bottom) : max(top, bottom) + 1, min(left, right) : max(left, right) + 1] = True
    order = np.triu(np.ones((count, count), dtype=bool), k=1)
    image = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    scene = Scene(image=image, amodal_masks=masks, order_matrix=order, min_overlap=0.0)
    return torch.from_numpy(scene.drop_invisible().layer_masks)


def oracle(layers: Sequence[torch.Tensor], *, asked: list[list[int]] | None = None) -> Draw:
    """A network that knows the layers of each image, and finds its place by the cumulative mask alone."""
    before = [cumulative(truth) for truth in layers]

    def draw(state: LoopState, rows: list[int]) -> torch.Tensor:
        if asked is not None:
            asked.append(rows)
        members = state.cumulative.shape[1]
        result = torch.full((len(rows), members, 1, *state.cumulative.shape[-2:]), 0.1)
        for at, row in enumerate(rows):
            image = state.image[row]
            for e in range(members):
                (k,) = [k for k, mask in enumerate(before[image]) if torch.equal(mask, state.cumulative[row, e, 0])]
                if k < len(layers[image]):
                    result[at, e, 0][layers[image][k]] = 0.8
        return result

    return draw


def script(*masks: torch.Tensor) -> Draw:
    """Draws the given masks, bool (h, w) or one a member (e, h, w), one after another, whatever the state."""
    left = list(masks)

    def draw(state: LoopState, rows: list[int]) -> torch.Tensor:
        mask = left.pop(0).float()
        members = state.cumulative.shape[1]
        each = mask if mask.ndim == 3 else repeat(mask, "h w -> e h w", e=members)
        return repeat(each, "e h w -> b e 1 h w", b=len(rows))

    return draw


def block(top: int, left: int, bottom: int, right: int) -> torch.Tensor:
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def masks_of(state: LoopState, row: int) -> torch.Tensor:
    return (
        torch.stack([layer.mask for layer in state.layers[row]])
        if state.layers[row]
        else torch.zeros(0, SIZE, SIZE).bool()
    )


@pytest.mark.parametrize("shared", [True, False])
@COMMON
@given(truth=truths())
def test_an_oracle_recovers_the_truth(truth: torch.Tensor, shared: bool) -> None:
    rules = LoopRules(void_area=ONE_PIXEL, shared=shared)
    end = run_loop(start(members=3), oracle([truth]), rules)
    assert torch.equal(masks_of(end, 0), truth)
    assert end.stop == ("empty",) and end.votes == (3,) and end.passes == (len(truth) + 1,)
    assert (end.cumulative[0] == truth.any(dim=0)).all()
    for layer in end.layers[0]:
        assert torch.equal(layer.members, repeat(layer.mask, "h w -> e h w", e=3))
        assert layer.probability.allclose(torch.where(layer.mask, 0.8, 0.1)) and not layer.uncertainty.any()


@COMMON
@given(st.lists(truths(), min_size=1, max_size=4), st.booleans())
def test_images_stop_at_their_own_depth_and_are_the_same_alone(layers: list[torch.Tensor], shared: bool) -> None:
    rules, asked = LoopRules(void_area=ONE_PIXEL, shared=shared), []
    together = run_loop(start(len(layers)), oracle(layers, asked=asked), rules)
    for row, truth in enumerate(layers):
        alone = run_loop(start(), oracle([truth]), rules)
        assert torch.equal(masks_of(together, row), masks_of(alone, 0))
        assert torch.equal(together.cumulative[row], alone.cumulative[0])
        assert (together.stop[row], together.votes[row], together.passes[row]) == (
            alone.stop[0],
            alone.votes[0],
            alone.passes[0],
        )
    depths = [len(truth) for truth in layers]
    assert asked == [[row for row, depth in enumerate(depths) if depth >= turn] for turn in range(max(depths) + 1)]


@COMMON
@given(truth=truths(), share=st.floats(0, 1))
def test_the_loop_goes_on_from_any_state(truth: torch.Tensor, share: float) -> None:
    done = round(share * len(truth))
    given_layers = tuple(
        AcceptedLayer(
            mask=mask, members=repeat(mask, "h w -> e h w", e=2), probability=mask.float(), uncertainty=0 * mask.float()
        )
        for mask in truth[:done]
    )
    found = repeat(cumulative(truth)[done], "h w -> 1 e 1 h w", e=2).clone()
    state = replace(start(), cumulative=found, layers=(given_layers,))
    end = run_loop(state, oracle([truth]), LoopRules(void_area=ONE_PIXEL))
    assert torch.equal(masks_of(end, 0), truth)
    assert end.layers[0][:done] == given_layers and end.passes == (len(truth) - done + 1,)


def test_several_states_of_one_image() -> None:
    truth = torch.stack([block(0, 0, 3, 3), block(2, 2, 5, 5)])
    state = replace(start(2), image=(0, 0), weight=(0.75, 0.25))
    end = run_loop(state, oracle([truth]), LoopRules(void_area=ONE_PIXEL))
    assert torch.equal(masks_of(end, 0), truth) and torch.equal(masks_of(end, 1), truth)
    assert end.weight == (0.75, 0.25) and end.image == (0, 0)


def test_nothing_in_the_picture() -> None:
    end = run_loop(start(members=3), script(torch.zeros(SIZE, SIZE)), LoopRules())
    assert end.layers == ((),) and end.stop == ("empty",) and end.votes == (3,) and end.passes == (1,)
    assert not end.cumulative.any() and end.active == []
    assert next_layer(end, script(), LoopRules()) is end, "a stopped state is not drawn again"


def test_disjoint_layers_are_one_layer() -> None:
    first, second, third = block(0, 0, 2, 2), block(4, 4, 6, 6), block(1, 1, 5, 5)
    nothing = torch.zeros(SIZE, SIZE)
    end = run_loop(start(), script(first, second, third, nothing), LoopRules())
    assert torch.equal(masks_of(end, 0), torch.stack([first | second, third]))
    assert end.passes == (4,) and end.stop == ("empty",)
    assert torch.equal(end.layers[0][0].members, repeat(first | second, "h w -> e h w", e=2))
    assert torch.equal(end.layers[0][0].probability, (first | second).float())
    apart = run_loop(start(), script(first, second, third, nothing), LoopRules(merge_disjoint=False))
    assert torch.equal(masks_of(apart, 0), torch.stack([first, second, third]))


def test_merging_joins_members_and_takes_the_larger_probability() -> None:
    first, second = (
        torch.stack([block(0, 0, 2, 2), block(0, 0, 2, 3)]),
        torch.stack([block(4, 0, 6, 2), block(4, 0, 6, 3)]),
    )
    state = next_layer(start(), script(first), LoopRules())
    state = next_layer(state, script(second), LoopRules())
    (layer,) = state.layers[0]
    assert torch.equal(layer.members, first | second)
    assert torch.equal(layer.mask, first[0] | second[0])
    assert torch.equal(layer.probability, torch.maximum(first.float().mean(0), second.float().mean(0)))
    assert torch.equal(layer.uncertainty, (first | second).float().var(dim=0, correction=0))


def test_a_layer_found_again_is_no_progress() -> None:
    mask = block(0, 0, 3, 3)
    end = run_loop(start(), script(mask, block(0, 0, 2, 2)), LoopRules())
    assert torch.equal(masks_of(end, 0), mask[None]) and end.stop == ("no_progress",) and end.passes == (2,)
    assert end.votes == (0,)


def test_a_pixel_more_in_one_member_is_no_progress_of_the_consensus() -> None:
    """Members that keep masks of their own: the second layer's consensus is the first again, though one member went beyond it."""
    mask, more = block(0, 0, 3, 3), block(0, 0, 3, 5)
    passes = script(torch.stack([mask, mask, mask]), torch.stack([mask, mask, more]))
    end = run_loop(start(members=3), passes, LoopRules(shared=False))
    assert torch.equal(masks_of(end, 0), mask[None]) and end.stop == ("no_progress",) and end.passes == (2,)


@pytest.mark.parametrize(("depth", "stop"), [(2, "empty"), (3, "max_layers"), (5, "max_layers")])
def test_max_layers_ends_only_what_goes_on(depth: int, stop: str) -> None:
    truth = torch.stack([block(k, 0, k + 2, SIZE) for k in range(depth)])
    end = run_loop(start(), oracle([truth]), LoopRules(max_layers=2))
    assert torch.equal(masks_of(end, 0), truth[:2]) and end.stop == (stop,) and end.passes == (3,)
    assert torch.equal(end.cumulative[0, 0, 0], truth[:2].any(dim=0)), "what is refused is not taken in"


def test_merging_for_ever_is_bounded() -> None:
    single = torch.eye(SIZE * SIZE, dtype=torch.bool).reshape(-1, SIZE, SIZE)
    end = run_loop(start(), script(*single), LoopRules(max_layers=3, void_area=ONE_PIXEL))
    assert end.stop == ("max_layers",) and end.passes == (6,)
    assert torch.equal(masks_of(end, 0), single[:6].any(dim=0)[None])


def test_votes_count_the_void_members_of_the_last_pass() -> None:
    nothing, mask = torch.zeros(SIZE, SIZE, dtype=torch.bool), block(0, 0, 3, 3)
    first = torch.stack([mask, nothing, mask])
    state = next_layer(start(members=3), script(first), LoopRules())
    assert state.votes == (1,) and state.stop == (None,) and state.active == [0]
    assert torch.equal(state.layers[0][0].mask, mask), "void members do not vote on the mask"
    assert state.layers[0][0].uncertainty.max() == pytest.approx(2 / 9)
    state = next_layer(state, script(torch.stack([nothing] * 3)), LoopRules())
    assert state.votes == (3,) and state.stop == ("empty",)


@pytest.mark.parametrize("shared", [True, False])
def test_cumulative_masks_are_shared_or_the_members_own(shared: bool) -> None:
    members = torch.stack([block(0, 0, 3, 3), block(0, 0, 3, 3), block(0, 0, 4, 4)])
    before = start(members=3)
    state = next_layer(before, script(members), LoopRules(shared=shared))
    expected = repeat(members[0], "h w -> e h w", e=3) if shared else members
    assert torch.equal(state.cumulative[0, :, 0], expected)
    assert not before.cumulative.any() and before.layers == ((),), "the state before stays as it was"


def test_threshold_is_exclusive_and_consensus_rule_is_used() -> None:
    soft = torch.full((3, SIZE, SIZE), 0.5)
    end = run_loop(start(members=3), script(soft), LoopRules(threshold=0.5))
    assert end.stop == ("empty",)
    state = next_layer(start(members=3), script(soft), LoopRules(threshold=0.4))
    assert state.layers[0][0].mask.all()
    three = torch.stack([block(0, 0, 2, 3), block(1, 0, 3, 3), block(0, 0, 1, 3) | block(2, 0, 3, 3)])
    by_mean = next_layer(start(members=3), script(three), LoopRules(consensus="mean"))
    assert torch.equal(by_mean.layers[0][0].mask, block(0, 0, 3, 3)), "a shape that no member has"
    by_medoid = next_layer(start(members=3), script(three), LoopRules())
    assert torch.equal(by_medoid.layers[0][0].mask, three[0])


def test_marginal_uncertainty_comes_from_the_probability() -> None:
    draw: Callable[..., torch.Tensor] = script(torch.full((SIZE, SIZE), 0.9))
    layer = next_layer(start(), draw, LoopRules(marginal=True)).layers[0][0]
    assert layer.uncertainty.allclose(torch.full((SIZE, SIZE), 0.09))


def test_bad_bound_is_named() -> None:
    with pytest.raises(ValueError, match="max_layers must be at least 1, got 0: pass the most layers you want"):
        run_loop(start(), script(), LoopRules(max_layers=0))
