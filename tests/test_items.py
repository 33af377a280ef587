"""From scenes to training items: one a layer and the EMPTY one, and nothing that depends on the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from sas.items import Corruption, Items, layer_items
from sas.scene import Scene, SceneBatch, collate
from sas.seeding import Keys

SIZE = 12


def random_scene(number: int, count: int) -> Scene:
    """`count` overlapping rectangles, the first in front; not square, so that part of the grid is unknown."""
    rng = np.random.default_rng(number)
    masks = np.zeros((count, SIZE, SIZE - 4), dtype=bool)
    for mask in masks:
        top, left = rng.integers(0, (SIZE - 5, SIZE - 9))
        mask[top : top + rng.integers(3, 6), left : left + rng.integers(3, 6)] = True
    order = np.triu(np.ones((count, count), dtype=bool), k=1)
    image = rng.integers(0, 256, (SIZE, SIZE - 4, 3), dtype=np.uint8)
    return Scene(image=image, amodal_masks=masks, order_matrix=order, id=str(number))


SCENES = tuple(random_scene(number, count) for number, count in enumerate((3, 0, 5, 1)))


def batch_of(rows: Sequence[int]) -> SceneBatch:
    return collate([SCENES[row] for row in rows], image_size=SIZE, mask_size=SIZE)


def keys_of(rows: Sequence[int], *, step: int = 4) -> Keys:
    return Keys(seed=7, step=step, positions=tuple(rows))


def same(a: Items, b: Items, *, shift: int = 0, start: int = 0) -> bool:
    """Whether `b` is the part of `a` from item `start` on, its pictures counted from `shift`."""
    stop = start + len(b)
    return torch.equal(a.picture[start:stop] - shift, b.picture) and all(
        torch.equal(getattr(a, name)[start:stop], getattr(b, name))
        for name in ("layer", "cumulative", "target", "known", "slot")
    )


def test_one_item_a_layer_and_the_empty_one() -> None:
    batch = batch_of(range(4))
    items = layer_items(batch, keys_of(range(4)))
    layers, counts = batch.layers(), batch.layer_counts.tolist()
    assert counts[1] == 0 and max(counts) >= 2, "the scenes must try both"
    assert len(items) == sum(count + 1 for count in counts)
    assert items.picture.tolist() == [b for b, count in enumerate(counts) for _ in range(count + 1)]
    assert items.layer.tolist() == [k for count in counts for k in range(count + 1)]
    assert items.slot.tolist() == items.layer.tolist()
    for m, (b, k) in enumerate(zip(items.picture.tolist(), items.layer.tolist(), strict=True)):
        expected = layers[b, k] if k < counts[b] else torch.zeros(SIZE, SIZE, dtype=torch.bool)
        assert torch.equal(items.target[m, 0], expected)
        assert torch.equal(items.cumulative[m, 0], layers[b, :k].any(dim=0))
        assert torch.equal(items.known[m], batch.known[b]) and not items.known[m].all()
    assert items.target.dtype == items.cumulative.dtype == items.known.dtype == torch.bool


def test_batch_of_empty_scenes_has_only_empty_targets() -> None:
    items = layer_items(batch_of([1, 1]), keys_of([0, 1]))
    assert items.layer.tolist() == [0, 0] and items.picture.tolist() == [0, 1]
    assert not items.target.any() and not items.cumulative.any()


@pytest.mark.parametrize("draws", [1, 2, 9])
def test_draws_have_no_repeats_while_there_are_enough(draws: int) -> None:
    batch = batch_of(range(4))
    items = layer_items(batch, keys_of(range(4)), layers=draws)
    complete = layer_items(batch, keys_of(range(4)))
    assert len(items) == 4 * draws
    for b, count in enumerate(batch.layer_counts.tolist()):
        mine = items.layer[items.picture == b]
        often = torch.bincount(mine, minlength=count + 1)
        assert len(mine) == draws and len(often) == count + 1
        assert often.max() - often.min() <= 1, "no item is drawn again before all others"
        assert items.slot[items.picture == b].tolist() == list(range(draws))
        for m in torch.nonzero(items.picture == b).flatten():
            twin = torch.nonzero((complete.picture == b) & (complete.layer == items.layer[m])).item()
            assert torch.equal(items.target[m], complete.target[twin])
            assert torch.equal(items.cumulative[m], complete.cumulative[twin])


def test_every_layer_is_drawn_in_the_long_run() -> None:
    batch = batch_of([0])
    seen = {int(layer_items(batch, keys_of([0], step=step), layers=1).layer[0]) for step in range(40)}
    assert seen == set(range(int(batch.layer_counts[0]) + 1))


@pytest.mark.parametrize("layers", ["all", 2])
@pytest.mark.parametrize("corruption", [None, Corruption(probability=0.7, drop=0.4, grow=2, warp=2.0)])
@pytest.mark.parametrize("split", [((0, 1), (2, 3)), ((0,), (1, 2, 3)), ((0,), (1,), (2,), (3,))])
def test_items_do_not_depend_on_the_split(
    layers: str | int, corruption: Corruption | None, split: tuple[tuple[int, ...], ...]
) -> None:
    """Nor on the padding: the parts have different numbers of objects."""
    whole = layer_items(batch_of(range(4)), keys_of(range(4)), layers=layers, corruption=corruption)  # type: ignore[arg-type]
    start = shift = 0
    for rows in split:
        part = layer_items(batch_of(rows), keys_of(rows), layers=layers, corruption=corruption)  # type: ignore[arg-type]
        assert same(whole, part, shift=shift, start=start)
        start, shift = start + len(part), shift + len(rows)
    assert start == len(whole)


def test_items_are_decided_by_their_key() -> None:
    batch, corruption = batch_of(range(4)), Corruption(probability=1.0, drop=0.5, warp=2.0)
    torch.manual_seed(0)
    once = layer_items(batch, keys_of(range(4)), layers=2, corruption=corruption)
    torch.manual_seed(1)
    assert same(once, layer_items(batch, keys_of(range(4)), layers=2, corruption=corruption))
    later = layer_items(batch, keys_of(range(4), step=5), layers=2, corruption=corruption)
    other = layer_items(batch, replace(keys_of(range(4)), seed=8), layers=2, corruption=corruption)
    assert not same(once, later) and not same(once, other)


def big_batch(count: int) -> SceneBatch:
    return collate([SCENES[2]] * count, image_size=SIZE, mask_size=SIZE)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_corruption_touches_only_cumulative_masks_and_only_its_share(probability: float) -> None:
    batch = big_batch(40)
    clean = layer_items(batch, keys_of(range(40)))
    hurt = layer_items(
        batch, keys_of(range(40)), corruption=Corruption(probability=probability, grow=1, warp=0, drop=0.5)
    )
    for name in ("picture", "layer", "target", "known", "slot"):
        assert torch.equal(getattr(clean, name), getattr(hurt, name))
    full = clean.cumulative.flatten(1).any(dim=1)
    changed = (clean.cumulative != hurt.cumulative).flatten(1).any(dim=1)
    assert not changed[~full].any(), "nothing is invented where no layer was found"
    share = changed[full].float().mean().item()
    assert share == 0 if probability == 0 else abs(share - 0.8 * probability) < 0.2 * probability + 0.1


def test_dropping_every_object_leaves_nothing() -> None:
    items = layer_items(
        big_batch(3), keys_of(range(3)), corruption=Corruption(probability=1.0, drop=1.0, grow=0, warp=0)
    )
    assert not items.cumulative.any()


def test_dropping_takes_away_whole_objects() -> None:
    batch = big_batch(30)
    items = layer_items(batch, keys_of(range(30)), corruption=Corruption(probability=1.0, drop=0.4, grow=0, warp=0))
    masks, index = batch.amodal_masks[0], batch.layer_index[0]
    partial = 0
    for m, k in enumerate(items.layer.tolist()):
        front = [n for n in range(len(masks)) if 0 <= index[n] < k]
        unions = [
            masks[[n for place, n in enumerate(front) if chosen >> place & 1]].any(dim=0)
            for chosen in range(2 ** len(front))
        ]
        assert any(torch.equal(items.cumulative[m, 0], union) for union in unions)
        partial += not torch.equal(items.cumulative[m, 0], masks[front].any(dim=0))
    assert partial > 10


def test_growing_moves_the_outline_by_at_most_its_radius() -> None:
    batch = big_batch(60)
    clean = layer_items(batch, keys_of(range(60)))
    hurt = layer_items(batch, keys_of(range(60)), corruption=Corruption(probability=1.0, drop=0, grow=1, warp=0))
    pool = torch.nn.functional.max_pool2d
    mask = clean.cumulative.float()
    grown, shrunk = pool(mask, 3, 1, 1) > 0, pool(1 - mask, 3, 1, 1) == 0
    kinds = [
        "grown" if torch.equal(h, g) else "shrunk" if torch.equal(h, s) else "kept" if torch.equal(h, c) else "other"
        for h, g, s, c in zip(hurt.cumulative, grown, shrunk, clean.cumulative, strict=True)
        if c.any()
    ]
    assert set(kinds) == {"grown", "shrunk", "kept"}
    assert min(kinds.count(kind) for kind in set(kinds)) > len(kinds) / 6


def test_bad_number_of_draws_is_named() -> None:
    with pytest.raises(ValueError, match='layers must be "all" or a positive number of draws, got 0: pass 1 or more'):
        layer_items(batch_of([0]), keys_of([0]), layers=0)
