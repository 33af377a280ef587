"""Sources of batches: each scene once an epoch, and nothing that depends on parts or on what was read before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sas.config import DataSettings
from sas.data.folders import ProjectFolder, write_project
from sas.data.source import SceneLoader, SceneSource
from sas.factory import check_data
from sas.io import InputError
from sas.scene import Scene, SceneBatch

SIZE = 8


def make_scene(number: int) -> Scene:
    image = np.full((SIZE, SIZE, 3), number, dtype=np.uint8)
    masks = np.zeros((number % 3, SIZE, SIZE), dtype=bool)
    masks[:, :4, : 1 + number % 5] = True
    return Scene(
        image=image, amodal_masks=masks, order_matrix=np.triu(np.ones((number % 3,) * 2, bool), 1), id=str(number)
    )


SCENES = [make_scene(number) for number in range(7)]


def make_loader(**options: object) -> SceneLoader:
    settings = {"seed": 1, "batch_size": 4, "image_size": SIZE, "mask_size": SIZE, **options}
    return SceneLoader(SCENES, **settings)  # type: ignore[arg-type]


def ids(source: SceneSource, steps: Sequence[int], *, batch_size: int = 4) -> list[str]:
    return [name for step in steps for name in source.batch(step, range(batch_size)).ids]


def same(a: SceneBatch, b: SceneBatch) -> bool:
    names = ("image", "amodal_masks", "counts", "layer_index", "order_matrix", "known")
    return a.ids == b.ids and all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def test_an_epoch_covers_each_scene_exactly_once() -> None:
    order = ids(make_loader(), range(7))  # 28 places: four epochs of seven scenes, which end within batches
    epochs = [order[start : start + 7] for start in range(0, 28, 7)]
    for epoch in epochs:
        assert sorted(epoch) == [str(number) for number in range(7)]
    assert len({tuple(epoch) for epoch in epochs}) > 1, "shuffled anew"
    assert order != ids(make_loader(seed=2), range(7))


def test_without_shuffling_the_order_is_kept() -> None:
    assert ids(make_loader(shuffle=False), range(3)) == [str(place % 7) for place in range(12)]


def test_batches_do_not_depend_on_what_was_read_before() -> None:
    loader = make_loader()
    straight = [loader.batch(step, range(4)) for step in range(6)]
    for step in (5, 0, 3, 4, 0):
        assert same(make_loader().batch(step, range(4)), straight[step])
        assert same(loader.batch(step, range(4)), straight[step])


def test_parts_of_a_batch_are_its_rows() -> None:
    whole = make_loader().batch(1, range(4))
    for part in ([0, 1], [2, 3], [3], [2, 0]):
        got = make_loader().batch(1, part)
        assert got.ids == tuple(whole.ids[row] for row in part)
        assert torch.equal(got.image, whole.image[part])
        assert torch.equal(got.amodal_masks, whole.amodal_masks[part][:, : got.amodal_masks.shape[1]])


def test_objects_that_nobody_sees_are_left_out() -> None:
    """In scene 2 the second object lies exactly below the first."""
    loader = make_loader(shuffle=False, batch_size=1)
    assert len(SCENES[2]) == 2 and loader.batch(2, [0]).counts.tolist() == [1]


class Packed(Sequence[Scene]):
    """Scenes in chunks, as many as wanted: only those that are asked for are made, and their ids are their rows."""

    def __init__(self, *chunks: int) -> None:
        self.chunks = chunks

    def __len__(self) -> int:
        return sum(self.chunks)

    def __getitem__(self, index: int) -> Scene:  # type: ignore[override]
        masks = np.zeros((0, SIZE, SIZE), dtype=bool)
        image = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
        return Scene(image=image, amodal_masks=masks, order_matrix=np.zeros((0, 0), dtype=bool), id=str(index))


def packed_loader(scenes: Sequence[Scene], **options: object) -> SceneLoader:
    settings = {"seed": 1, "batch_size": 1, "image_size": SIZE, "mask_size": SIZE, **options}
    return SceneLoader(scenes, **settings)  # type: ignore[arg-type]


def rows(chunks: Sequence[int], places: Sequence[int], **options: object) -> list[int]:
    loader = packed_loader(Packed(*chunks), **options)
    return [int(loader.batch(place, [0]).ids[0]) for place in places]


@pytest.mark.parametrize("buffer", [1, 2, 5, 7, 23, 24, 1000])
def test_a_buffered_epoch_covers_each_scene_exactly_once(buffer: int) -> None:
    chunks = (5, 5, 1, 5, 5, 2)
    order = rows(chunks, range(69), buffer=buffer)
    epochs = [order[start : start + 23] for start in (0, 23, 46)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2], "shuffled anew"
    assert order != rows(chunks, range(69), buffer=buffer, seed=2)
    backwards = rows(chunks, range(68, -1, -1), buffer=buffer)
    assert backwards == order[::-1], "a place depends on nothing that was read before"


def test_a_buffered_epoch_reads_shard_after_shard_to_within_the_buffer() -> None:
    chunks, buffer = (5,) * 40, 10
    shard = [row // 5 for row in rows(chunks, range(200), buffer=buffer)]
    blocks = [set(shard[start : start + buffer]) for start in range(0, 200, buffer)]
    assert all(len(block) == 2 for block in blocks) and len(set.union(*blocks)) == 40
    assert [min(block) for block in blocks] != sorted(min(block) for block in blocks), "the shards are shuffled"
    single = rows((3, 3, 3), range(9), buffer=1)
    assert [row % 3 for row in single] == [0, 1, 2] * 3, "a buffer of one reads each shard from front to back"


def test_the_buffered_order_does_not_change_from_release_to_release() -> None:
    """A run that was killed before an update goes on after it."""
    assert rows((4, 3, 4), range(11), buffer=4, seed=7) == [0, 2, 1, 3, 6, 7, 4, 5, 9, 10, 8]


def test_a_place_among_a_billion_scenes_is_found_without_permuting_them_all() -> None:
    loader = packed_loader(Packed(*[1_000_000] * 1000), buffer=1000, batch_size=4)
    names = [loader.batch(step, range(4)).ids for step in (0, 123_456_789, 250_000_000)]
    assert len({name for ids in names for name in ids}) == 12


def test_a_buffer_that_would_mean_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="buffer must be None for scenes that are not packed, got 8: pack them with"):
        make_loader(buffer=8)
    with pytest.raises(ValueError, match="buffer must be None without shuffling, got 8: leave it out"):
        packed_loader(Packed(2), buffer=8, shuffle=False)
    with pytest.raises(ValueError, match="buffer must be at least 1, got 0: 10000 mixes well"):
        packed_loader(Packed(2), buffer=0)


def test_no_scene_is_refused() -> None:
    with pytest.raises(ValueError, match="scenes must hold at least one scene, got none: check the data folder"):
        SceneLoader([], seed=0, batch_size=1, image_size=8, mask_size=8)


def test_a_scene_without_an_order_is_told_before_training_or_where_it_is_read(tmp_path: Path) -> None:
    scenes = [make_scene(2), replace(make_scene(1), order_matrix=None)]
    named = replace(scenes[0], id="n", names=('"order": null',) * len(scenes[0]))  # words in a name are no order
    write_project(tmp_path / "good", [named], min_overlap=0.01)
    assert ProjectFolder(tmp_path / "good").without_order() is None
    write_project(tmp_path / "set", scenes, min_overlap=0.01)
    with pytest.raises(InputError, match="must say who is in front in each scene, got none in 1; add it"):
        check_data(DataSettings(scenes=str(tmp_path / "set")))
    loader = SceneLoader(scenes, seed=0, batch_size=2, image_size=8, mask_size=8)
    with pytest.raises(
        InputError, match="scene 1 must say who is in front, got no order; add it, or leave the scene out"
    ):
        loader.batch(0, [0, 1])
