"""Packed shards: everything comes back exactly, other tools read them, damage is named, and any number of readers sees one stream."""

from __future__ import annotations

import gc
import io
import json
import os
import shutil
import tarfile
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fresh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from sas.data.folders import open_scenes, write_project
from sas.data.shards import Shards, pack
from sas.data.source import SceneLoader
from sas.distributed import share
from sas.doctor import check_scenes
from sas.io import InputError
from sas.scene import Scene, SceneBatch


def make_scene(masks: np.ndarray, order: np.ndarray | None, *, id: str = "x", **more: object) -> Scene:
    image = np.random.default_rng(len(masks)).integers(0, 256, (*masks.shape[1:], 3), dtype=np.uint8)
    return Scene(image=image, amodal_masks=masks, order_matrix=order, id=id, **more)  # type: ignore[arg-type]


def numbered(count: int) -> list[Scene]:
    """Small scenes of 0 to 2 objects with ids "0", "1", ..."""
    scenes = []
    for number in range(count):
        masks = np.zeros((number % 3, 6, 8), dtype=bool)
        masks[:, : 1 + number % 5, 2:5] = True
        order = np.triu(np.ones((number % 3,) * 2, dtype=bool), 1)
        scenes.append(make_scene(masks, order, id=str(number), names=tuple(f"{number}.{i}" for i in range(number % 3))))
    return scenes


def assert_same(a: Scene, b: Scene) -> None:
    for field in fields(Scene):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, np.ndarray) or field.name == "alternatives":
            assert type(left) is type(right) and len(left) == len(right), field.name
            for x, y in zip(left, right, strict=True) if isinstance(left, tuple) else [(left, right)]:
                assert x.dtype == y.dtype and x.shape == y.shape and (x == y).all(), field.name
        else:
            assert left == right, field.name


# ---------------------------------------------------------------------- round trip


@st.composite
def any_scene(draw: Callable[..., object]) -> Scene:
    height, width, count = (draw(st.integers(low, 9)) for low in (1, 1, 0))

    def masks(n: int = count) -> st.SearchStrategy[np.ndarray]:
        return hnp.arrays(bool, (n, height, width))

    order = draw(st.none() | hnp.arrays(bool, (count, count)))
    return Scene(
        image=draw(hnp.arrays(np.uint8, (height, width, 3))),
        amodal_masks=draw(masks()),
        order_matrix=None if order is None else order & ~np.eye(count, dtype=bool),
        names=tuple(draw(st.lists(st.text(max_size=5), min_size=count, max_size=count))),
        id="Äpfel 3.7",
        visible_masks=draw(st.none() | masks()),
        alternatives=tuple(draw(st.lists(masks(), max_size=2))),
        min_overlap=draw(st.floats(0, 1)),
        source=draw(st.text(max_size=5)),
        dropped=draw(st.integers(0, 9)),
        known=draw(st.none() | hnp.arrays(bool, (height, width))),
        complete=draw(st.booleans()),
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(any_scene())
def test_any_scene_comes_back(tmp_path: Path, scene: Scene) -> None:
    folder = fresh(tmp_path)
    assert pack([scene], folder) == 1
    assert_same(scene, Shards(folder)[0])


def corner_cases(tiny_scene: Scene) -> list[Scene]:
    nothing = np.zeros((0, 5, 7), dtype=bool)
    whole, one = np.ones((1, 3, 101), dtype=bool), np.zeros((2, 2), dtype=bool)
    pixel = np.zeros((2, 4, 3), dtype=bool)
    pixel[0, 3, 2] = True  # one pixel in the corner, and an empty mask
    return [
        replace(tiny_scene, min_overlap=0.25, source="by hand", dropped=3),
        replace(tiny_scene, id="no.order", order_matrix=None, names=("Apfel", "Äpfel", 'a "b"\n\u2028', "")),
        replace(tiny_scene, id="knot", order_matrix=~np.eye(4, dtype=bool), visible_masks=tiny_scene.visible),
        replace(tiny_scene, id="no.answers", alternatives=(~tiny_scene.amodal_masks, tiny_scene.amodal_masks)),
        make_scene(np.ones((1, 1, 1), dtype=bool), np.zeros((1, 1), dtype=bool), id="one pixel"),
        make_scene(whole, np.zeros((1, 1), dtype=bool), id="touches every border"),
        make_scene(pixel, one, id="empty mask"),
        make_scene(nothing, np.zeros((0, 0), dtype=bool), id="nothing"),
        make_scene(nothing, None, id="nothing, seen", visible_masks=nothing, alternatives=(nothing,)),
    ]


@pytest.mark.parametrize("shard_size", [1, 4, 9, 100])
def test_corner_cases_come_back_whatever_the_shards(tmp_path: Path, tiny_scene: Scene, shard_size: int) -> None:
    scenes = corner_cases(tiny_scene)
    assert pack(scenes, tmp_path / "set", shard_size=shard_size, generator="test") == 9
    shards = open_scenes(tmp_path / "set")
    assert isinstance(shards, Shards) and len(shards) == 9 and sum(shards.chunks) == 9
    assert max(shards.chunks) <= shard_size and len(shards.chunks) == -(-9 // shard_size)
    for written, read in zip(scenes, shards, strict=True):
        assert_same(written, read)
    assert [shards.scene_id(i) for i in range(9)] == [scene.id for scene in scenes]
    assert shards[-1].id == scenes[-1].id and [scene.id for scene in shards[1:3]] == ["no.order", "knot"]
    with pytest.raises(IndexError, match="scene 9 of 9"):
        shards[9]


def test_packing_again_gives_the_same_bytes_and_shards_can_be_packed(tmp_path: Path, tiny_scene: Scene) -> None:
    pack(corner_cases(tiny_scene), tmp_path / "a", shard_size=4)
    write_project(tmp_path / "loose", numbered(5), min_overlap=0.25)
    pack(Shards(tmp_path / "a"), tmp_path / "b", shard_size=4)
    for file in sorted(os.listdir(tmp_path / "a")):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    pack(open_scenes(tmp_path / "loose"), tmp_path / "c")
    for loose, packed in zip(open_scenes(tmp_path / "loose"), Shards(tmp_path / "c"), strict=True):
        assert_same(loose, packed)


def test_a_seed_shuffles_once(tmp_path: Path) -> None:
    scenes = numbered(20)
    orders = []
    for number, seed in enumerate((3, 3, 4)):
        pack(scenes, tmp_path / str(number), seed=seed, shard_size=6)
        orders.append([scene.id for scene in Shards(tmp_path / str(number))])
    assert orders[0] == orders[1] != orders[2]
    assert all(sorted(order, key=int) == [scene.id for scene in scenes] != order for order in orders)


def test_scenes_are_packed_one_at_a_time(tmp_path: Path) -> None:
    made: list[weakref.ref[Scene]] = []

    class Lazy(Sequence[Scene]):
        def __len__(self) -> int:
            return 7

        def __getitem__(self, index: int) -> Scene:  # type: ignore[override]
            assert index == len(made) and sum(scene() is not None for scene in made) <= 1
            scene = numbered(7)[index]
            made.append(weakref.ref(scene))
            return scene

    assert pack(Lazy(), tmp_path / "set", shard_size=5) == len(made) == 7


# ---------------------------------------------------------------------- other tools


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it leaves the files that it has read to the garbage collector
def test_webdataset_reads_the_shards(tmp_path: Path, tiny_scene: Scene) -> None:
    import webdataset

    scenes = corner_cases(tiny_scene)
    pack(scenes, tmp_path / "set", shard_size=4)
    files = [str(tmp_path / "set" / file) for file in Shards(tmp_path / "set").files]
    samples = list(webdataset.WebDataset(files, shardshuffle=False).decode("rgb8"))
    gc.collect()
    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in range(9)]
    for sample, scene in zip(samples, scenes, strict=True):
        assert set(sample) >= {"png", "json"} and (sample["png"] == scene.image).all()
        assert sample["json"]["id"] == scene.id and sample["json"]["min_overlap"] == scene.min_overlap
        assert [o["name"] for o in sample["json"]["objects"]] == list(scene.names)


def test_any_tar_program_reads_the_shards_and_the_index_points_into_them(tmp_path: Path) -> None:
    pack(numbered(5), tmp_path / "set", shard_size=3)
    content = (tmp_path / "set" / "shard-000001.tar").read_bytes()
    index = np.load(tmp_path / "set" / "shard-000001.npy")
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == [f"00000000{n}.{kind}" for n in (3, 4) for kind in ("png", "json")]
    for number, member in enumerate(members):
        offset, size = index[number // 2, 3 * (number % 2) :][:2]
        assert (offset, size) == (member.offset_data, member.size)
    assert Image.open(io.BytesIO(content[index[0, 0] :][: index[0, 1]])).size == (8, 6)
    assert json.loads(content[index[1, 3] :][: index[1, 4]])["file"] == "000000004.png"


# ---------------------------------------------------------------------- refusals


def test_what_cannot_be_packed_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    scenes = numbered(4)
    bad: list[tuple[list[Scene], dict[str, int], str]] = [
        ([*scenes, scenes[1]], {"shard_size": 2}, "id of a scene must be its own, got '1' twice; rename one"),
        ([replace(scenes[0], id="a/b")], {}, "id of a scene must be a file name without / or a leading dot, got 'a/b'"),
        ([], {}, "scenes must hold at least one scene, got none; check the data to be packed"),
        (scenes, {"shard_size": 0}, "shard_size must be at least 1, got 0; 1000 is the default"),
    ]
    for given_scenes, options, message in bad:
        with pytest.raises(InputError, match=message):
            pack(given_scenes, tmp_path / "set", **options)
        assert not os.listdir(tmp_path)
    pack(scenes, tmp_path / "set")
    with pytest.raises(InputError, match="choose a new or empty folder"):
        pack(scenes[:1], tmp_path / "set")
    assert len(Shards(tmp_path / "set")) == 4 and os.listdir(tmp_path) == ["set"]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Nine scenes in shards of 4, 4 and 1."""
    pack(numbered(9), tmp_path / "set", shard_size=4)
    return tmp_path / "set"


def test_a_missing_or_cut_shard_is_named_when_the_folder_is_opened(packed: Path) -> None:
    shard = packed / "shard-000001.tar"
    whole = shard.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"", whole + b"\0"):
        shard.write_bytes(damaged)
        message = rf"shard .*shard-000001\.tar must have {len(whole)} bytes, got {len(damaged)}; .* copy the data again"
        with pytest.raises(InputError, match=message):
            Shards(packed)
    shard.unlink()
    with pytest.raises(InputError, match=r"shard .*shard-000001\.tar must exist, found nothing; copy the data again"):
        open_scenes(packed)


@pytest.mark.parametrize(("column", "name"), [(0, "000000006.png"), (3, "000000006.json")])
def test_one_changed_byte_is_found_and_the_other_scenes_are_still_read(packed: Path, column: int, name: str) -> None:
    shard = packed / "shard-000001.tar"
    content = bytearray(shard.read_bytes())
    offset, size, crc = np.load(packed / "shard-000001.npy")[2, column : column + 3]
    content[offset + size // 2] ^= 1
    shard.write_bytes(content)
    shards = Shards(packed)
    with pytest.raises(
        InputError, match=rf"shard-000001\.tar: {name} must have {size} bytes with the CRC-32 {crc:08x}, got .* damaged"
    ):
        shards[6]
    assert [shards[i].id for i in (5, 7, 8)] == ["5", "7", "8"]
    faults = [check for check in check_scenes(packed) if not check.ok][1:]
    assert [check.name for check in faults] == ["scene 6" if column == 0 else "scene in line 7"]


def test_a_shard_that_is_cut_while_it_is_read_is_named(packed: Path) -> None:
    shards = Shards(packed)
    assert shards[3].id == "3"
    os.truncate(packed / "shard-000000.tar", 700)
    with pytest.raises(InputError, match=r"shard-000000\.tar: 000000003\.png must have .* got 0 with"):
        shards[3]
    shutil.rmtree(packed)
    with pytest.raises(InputError, match=r"shard-000002\.tar cannot be read .*No such file.*copy the data again"):
        shards[8]


def test_a_damaged_index_is_named(packed: Path) -> None:
    path = packed / "shard-000000.npy"
    index = np.load(path)
    beyond, negative = index.copy(), index.copy()
    beyond[1, 0], negative[2, 4] = 2**62, -5
    cases: list[tuple[np.ndarray, str]] = [
        (index[:3], r"index .*shard-000000\.npy must be int64 \(4, 6\), got int64 \(3, 6\)"),
        (index.astype(np.float64), r"must be int64 \(4, 6\), got float64 \(4, 6\)"),
        (beyond, r"index .*000\.npy must lie in the \d+ bytes of its shard, got offsets beyond; copy"),
        (negative, "got offsets beyond"),
        (index[::-1].copy(), r"000\.tar: row 0 must be 000000000\.png, got 000000003\.png; files were exchanged: copy"),
    ]
    for damaged, message in cases:
        np.save(path, damaged)
        with pytest.raises(InputError, match=message):
            Shards(packed)[0]
    for content in (b"", b"text", path.read_bytes()[:100]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"shard-000000\.npy cannot be read"):
            Shards(packed)[0]
    path.unlink()
    with pytest.raises(InputError, match=r"shard-000000\.npy cannot be read .*No such file"):
        Shards(packed)[0]


def test_a_damaged_list_of_shards_is_named(packed: Path) -> None:
    path = packed / "shards.json"
    info = json.loads(path.read_text())
    first = info["shards"][0]
    cases: list[tuple[object, str]] = [
        ({**info, "format_version": 2}, r"shards\.json must have format_version 1, got 2; pack the data again"),
        ([info], "must have format_version 1, got None"),
        ({**info, "count": 10}, r"shards\.json must list shards of 10 scenes in all, got 9; copy"),
        ({**info, "count": 0, "shards": []}, "must list shards of 0 scenes in all, got 0"),
        (
            {**info, "shards": [{"file": "shard-000000.tar"}]},
            "must list count and shards of file, count and bytes, got",
        ),
        ({**info, "shards": [{**first, "count": "many"}]}, "must list count and shards of file, count and bytes"),
        ({**info, "shards": 7}, "must list count and shards of file, count and bytes"),
    ]
    for value, message in cases:
        path.write_text(json.dumps(value))
        with pytest.raises(InputError, match=message):
            Shards(packed)
    path.write_text("{")
    with pytest.raises(InputError, match=r"shards\.json is not valid JSON at line 1"):
        open_scenes(packed)


# ---------------------------------------------------------------------- one stream for any number of readers


class Counted(Shards):
    """Shards that note which scenes were read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reads: list[int] = []

    def read(self, index: int) -> Scene:
        self.reads.append(index)
        return super().read(index)


COUNT, BATCH, STEPS = 23, 4, 13  # 52 places: two epochs, each of which ends inside a batch, and a part of a third


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stream") / "set"
    pack(numbered(COUNT), folder, shard_size=5)
    return folder


def loader(scenes: Sequence[Scene], **options: object) -> SceneLoader:
    settings = {"seed": 1, "batch_size": BATCH, "image_size": 8, "mask_size": 8, "buffer": 7, **options}
    return SceneLoader(scenes, **settings)  # type: ignore[arg-type]


def reference(folder: Path) -> list[SceneBatch]:
    source = loader(Shards(folder))
    return [source.batch(step, range(BATCH)) for step in range(STEPS)]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_read_one_stream_and_every_scene_once_an_epoch(stream: Path, ranks: int) -> None:
    sources = [loader(Counted(stream)) for _ in range(ranks)]
    parts = [share(BATCH, rank=rank, world_size=ranks) for rank in range(ranks)]
    ids: list[str] = []
    for step, whole in enumerate(reference(stream)):
        batches = [source.batch(step, part) for source, part in zip(sources, parts, strict=True)]
        assert torch.equal(torch.cat([batch.image for batch in batches]), whole.image)
        assert torch.equal(torch.cat([batch.counts for batch in batches]), whole.counts)
        ids += [name for batch in batches for name in batch.ids]
        assert tuple(ids[-BATCH:]) == whole.ids
    for epoch in (ids[:COUNT], ids[COUNT : 2 * COUNT]):
        assert sorted(epoch, key=int) == [str(number) for number in range(COUNT)]
    assert ids[:COUNT] != ids[COUNT : 2 * COUNT], "shuffled anew"
    for source, part in zip(sources, parts, strict=True):
        own = [ids[step * BATCH + position] for step in range(STEPS) for position in part]
        assert sorted(map(str, source.scenes.reads)) == sorted(own), "a rank reads its own positions and no others"  # type: ignore[attr-defined]


@pytest.mark.parametrize("start", [1, 3, 5, 6, 11, 12])  # the epoch ends inside step 5, the next inside step 11
def test_a_restart_goes_on_with_the_identical_rest(stream: Path, start: int) -> None:
    source = loader(Shards(stream))
    for step, whole in list(enumerate(reference(stream)))[start:]:
        batch = source.batch(step, range(BATCH))
        assert batch.ids == whole.ids
        for name in ("image", "amodal_masks", "counts", "layer_index", "order_matrix", "known"):
            assert torch.equal(getattr(batch, name), getattr(whole, name))


def test_without_a_buffer_the_order_is_that_of_loose_files(stream: Path, tmp_path: Path) -> None:
    write_project(tmp_path / "loose", numbered(COUNT), min_overlap=0.01)
    loose, packed = (loader(open_scenes(path), buffer=None) for path in (tmp_path / "loose", stream))
    for step in range(STEPS):
        assert loose.batch(step, range(BATCH)).ids == packed.batch(step, range(BATCH)).ids


def open_tars(folder: Path) -> int:
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum(str(link.resolve()).startswith(str(folder.resolve())) for link in links)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux lists them")
@pytest.mark.parametrize("pread", [True, False])
def test_few_files_stay_open_and_threads_may_read_while_they_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pread: bool
) -> None:
    if not pread:  # as on Windows
        monkeypatch.delattr("os.pread")
    monkeypatch.setattr("sas.data.shards.MOST_OPEN", 2)
    pack(numbered(24), tmp_path / "set", shard_size=2)
    shards = Shards(tmp_path / "set")
    rows = np.random.default_rng(0).integers(0, 24, 600).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert [scene.id for scene in pool.map(shards.__getitem__, rows)] == [str(row) for row in rows]
    assert open_tars(tmp_path / "set") == 2
    del shards
    assert open_tars(tmp_path / "set") == 0
