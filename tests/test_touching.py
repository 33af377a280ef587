"""Objects of composed scenes that lie edge to edge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from sas.data.atlas import Atlas
from sas.data.composer import Composer, SceneStyle
from sas.data.touching import TOUCH_DRAWS, alike, edge_to_edge, half_sizes
from sas.seeding import Keys

PLAIN = SceneStyle(objects=(2, 4), empty=0.0, twins=0.0, letterbox=0.0, scale=(0.2, 0.3))


def drawn(scenes: int, slots: int, **fixed: float) -> dict[str, torch.Tensor]:
    table = Keys(3, 0, tuple(range(scenes))).uniform("touch", slots, len(TOUCH_DRAWS))
    values = dict(zip(TOUCH_DRAWS, table.unbind(dim=-1), strict=True))
    return values | {name: torch.full((scenes, slots), value) for name, value in fixed.items()}


def boxed(atlas: Atlas, backgrounds: np.ndarray, style: SceneStyle) -> Composer:
    return Composer(atlas, backgrounds, seed=5, image_size=32, mask_size=32, style=style)


def test_half_sizes_are_those_of_what_shows() -> None:
    sprites = torch.zeros(2, 4, 16, 16, dtype=torch.uint8)
    sprites[0, 3, 4:12] = 255
    sprites[1, 3, 6:10, 7:9] = 128
    sprites[1, 3, 0, 0] = 127
    torch.testing.assert_close(half_sizes(sprites), torch.tensor([[1.0, 0.5], [0.125, 0.25]]))


@pytest.mark.parametrize(("gap", "least"), [(0.0, 0.65), (1.0, 0.95)])
def test_an_object_lies_on_an_axis_of_its_neighbour_at_the_distance_of_their_edges(gap: float, least: float) -> None:
    """Two boxes of the same turn: half widths along the axis add up, times what the draw of the gap leaves."""
    angle = torch.full((40, 2), 0.3)
    half = torch.tensor([[0.3, 0.1], [0.2, 0.15]]).expand(40, 2, 2)
    x, y, fit = edge_to_edge(
        angle, half, torch.ones(40, 2).bool(), torch.zeros(40).bool(), drawn(40, 2, gap=gap, slide=0.5)
    )
    assert (fit == 1).all()
    away = torch.stack([x[:, 1] - x[:, 0], y[:, 1] - y[:, 0]], dim=-1)
    turn = torch.tensor([[np.cos(0.3), np.sin(0.3)], [-np.sin(0.3), np.cos(0.3)]], dtype=torch.float32)
    own = away @ turn.T  # in the coordinates of the boxes
    along = own.abs().argmax(dim=1)
    assert set(along.tolist()) == {0, 1} and (own.abs().amin(dim=1) < 1e-6).all()
    expected = torch.tensor([0.5, 0.25])[along] * least
    torch.testing.assert_close(own.abs().amax(dim=1), expected)
    assert len({(int(a), bool(s > 0)) for a, s in zip(along, own.gather(1, along[:, None]), strict=True)}) == 4


def test_an_object_slides_along_the_edge_by_half_of_it_at_most() -> None:
    angle, half = torch.zeros(60, 2), torch.full((60, 2, 2), 0.2)
    everywhere = torch.ones(60, 2).bool()
    x, y, _ = edge_to_edge(angle, half, everywhere, torch.zeros(60).bool(), drawn(60, 2, gap=1.0))
    away = torch.stack([(x[:, 1] - x[:, 0]).abs(), (y[:, 1] - y[:, 0]).abs()]).sort(dim=0).values
    assert away[0].max() <= 0.1 + 1e-6 and away[0].max() > 0.08 and away[0].min() < 0.02


def test_on_a_table_nothing_lies_lower_than_what_it_stands_behind_but_for_its_slide() -> None:
    angle, half = torch.zeros(60, 2), torch.full((60, 2, 2), 0.2)
    both = torch.ones(60, 2).bool()
    for upwards in (True, False):
        _, y, _ = edge_to_edge(angle, half, both, torch.full((60,), upwards), drawn(60, 2, slide=0.5))
        assert (y[:, 1] > y[:, 0] + 1e-6).any() == (not upwards)


def test_a_group_is_in_the_middle_and_fits_the_picture() -> None:
    angle, half = torch.zeros(30, 6), torch.full((30, 6, 2), 0.5)
    present = torch.arange(6)[None] < torch.tensor([1, 3, 6] * 10)[:, None]
    x, y, fit = edge_to_edge(angle, half, present, torch.zeros(30).bool(), drawn(30, 6))
    reach = 0.5 * fit
    for place in (x, y):
        low = (place - reach).masked_fill(~present, 9).amin(dim=1)
        high = (place + reach).masked_fill(~present, -9).amax(dim=1)
        torch.testing.assert_close(low, -high, rtol=0, atol=1e-6)
        assert high.max() <= 0.9 + 1e-6
    assert (fit[0::3] == 1).all() and (fit[2::3] < 1).all()


def test_half_of_the_scenes_have_objects_of_about_one_turn() -> None:
    angle = torch.linspace(-3, 3, 600).reshape(100, 6)
    values = drawn(100, 6)
    turned = alike(angle, values)
    same = (turned == angle).all(dim=1)
    assert 30 < same.sum() < 70
    assert ((turned - angle[:, :1])[~same].abs() <= 0.1 + 1e-6).all()


def test_composed_objects_touch_and_hide_little_and_other_scenes_stay(
    tiny_atlas: Atlas, tiny_backgrounds: np.ndarray
) -> None:
    plain, some, touching = (
        boxed(tiny_atlas, tiny_backgrounds, replace(PLAIN, touching=share)).compose(1, range(60))
        for share in (0.0, 0.4, 1.0)
    )
    same = (plain.masks == some.masks).flatten(1).all(dim=1)
    assert 0.4 < same.float().mean() < 0.8
    torch.testing.assert_close(some.image[same], plain.image[same], rtol=0, atol=0)
    assert torch.equal(some.masks[~same], touching.masks[~same])

    def apart(made: object) -> float:
        """Share of objects that are farther than a pixel from all others of their scene."""
        alone = []
        for masks, count in zip(made.masks, made.counts, strict=True):  # type: ignore[attr-defined]
            for i in range(int(count)):
                wider = functional.max_pool2d(masks[i][None].float(), 3, stride=1, padding=1)[0] > 0
                others = masks[torch.arange(len(masks)) != i].any(dim=0)
                alone.append(not bool((wider & others).any()))
        return float(np.mean(alone))

    assert apart(touching) < 0.25 < 0.4 < apart(plain)
    hidden = touching.dropped.sum() / (touching.dropped + touching.counts).sum()
    assert hidden < 0.05
