"""Randomness is a function of its name: of no order, no batch and no process."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sas.seeding import Keys, derive_seed, generator_for


def test_seeds_are_the_same_for_ever() -> None:
    """A change here would change every run and every result."""
    assert derive_seed(0, "noise", 1, 2) == 7454679448656141705
    assert derive_seed("a") == 7299139317422481125
    assert derive_seed() == 8203414616412130826


@settings(deadline=None, max_examples=40)
@given(st.lists(st.one_of(st.integers(), st.text()), max_size=4))
def test_seeds_fit_a_generator(parts: list[int | str]) -> None:
    assert 0 <= derive_seed(*parts) < 2**63
    generator_for(*parts)


def test_names_lead_to_different_seeds() -> None:
    names = [
        (seed, stream, step, place)
        for seed in (0, 1)
        for stream in ("a", "b")
        for step in range(9)
        for place in range(9)
    ]
    assert len({derive_seed(*name) for name in names}) == len(names)
    assert derive_seed(1, 11) != derive_seed(11, 1)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 99), max_size=6), st.sampled_from(["uniform", "normal"]))
def test_a_row_depends_on_its_position_alone(positions: list[int], kind: str) -> None:
    keys = Keys(seed=1, step=2, positions=tuple(positions))
    rows = getattr(keys, kind)("stream", 3, 2)
    assert rows.shape == (len(positions), 3, 2) and rows.dtype == torch.float32
    for row, position in zip(rows, positions, strict=True):
        assert torch.equal(row, getattr(keys.at([position]), kind)("stream", 3, 2)[0])


def test_seed_step_and_stream_all_count() -> None:
    base = Keys.span(1, 2, 0, 3)
    numbers = [
        base.uniform("a", 4),
        base.uniform("b", 4),
        Keys.span(1, 3, 0, 3).uniform("a", 4),
        Keys.span(2, 2, 0, 3).uniform("a", 4),
    ]
    assert len({tuple(rows.flatten().tolist()) for rows in numbers}) == 4


def test_numbers_are_drawn_as_told() -> None:
    keys = Keys.span(0, 0, 0, 64)
    uniform, normal = keys.uniform("u", 100), keys.normal("n", 100)
    assert uniform.min() >= 0 and uniform.max() < 1
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.02)
    assert normal.mean().item() == pytest.approx(0, abs=0.05) and normal.std().item() == pytest.approx(1, abs=0.05)
    rows = torch.corrcoef(normal)
    assert (rows - torch.eye(64)).abs().max() < 0.6, "rows are unrelated"


def test_a_longer_row_begins_like_a_shorter_one() -> None:
    """Training items rely on it: the padding of a batch may lengthen a row."""
    keys = Keys.span(0, 0, 0, 2)
    for short, long in ((1, 3), (34, 39), (60, 300)):
        assert torch.equal(keys.uniform("u", long)[:, :short], keys.uniform("u", short))


def test_keys_of_items_name_picture_and_slot() -> None:
    keys = Keys(seed=5, step=6, positions=(10, 20))
    items = keys.items(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]))
    assert items.positions == ("10.0", "10.1", "20.0") and (items.seed, items.step) == (5, 6)
    assert len(items) == 3
    assert torch.equal(
        items.normal("n", 4)[2], keys.at([20]).items(torch.tensor([0]), torch.tensor([0])).normal("n", 4)[0]
    )


def test_span_and_global_state() -> None:
    assert Keys.span(1, 2, 3, 6).positions == (3, 4, 5)
    assert Keys.span(1, 2, 3, 3).uniform("u", 5).shape == (0, 5)
    before = torch.get_rng_state()
    Keys.span(0, 0, 0, 3).normal("n", 2)
    assert torch.equal(torch.get_rng_state(), before)
