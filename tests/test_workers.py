"""Reading ahead in processes and in a thread: the same batches as without, errors in plain words, and nothing that stays behind.

Most tests fork, which starts at once. Run as a script (`python test_workers.py FOLDER`), this file is a training run with two
processes that begin as in earnest, for the tests that send signals to it.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from multiprocessing import active_children, synchronize
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import program_environment, read_metrics, tiny_config, write_scenes

from sas.data.atlas import Atlas
from sas.data.augment import Augmentation
from sas.data.composer import Composer
from sas.data.entries import LazyScenes
from sas.data.folders import open_scenes, write_project, write_sas_folders
from sas.data.formats.registry import open_format
from sas.data.formats.writers import write_cocoa, write_kins2020
from sas.data.shards import pack
from sas.data.source import Place, SceneLoader, SceneSource, read_ahead
from sas.distributed import share
from sas.io import InputError
from sas.scene import Scene, SceneBatch

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="most tests fork"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),  # Python 3.12, on a fork beside threads
]

BATCH = 4


def fill(batch: SceneBatch) -> list[object]:
    """All that a batch holds, comparable."""
    values = vars(batch).values()
    return [(v.dtype, v.shape, v.numpy().tobytes()) if isinstance(v, torch.Tensor) else v for v in values]


def loader(scenes: Sequence[Scene], **options: Any) -> SceneLoader:
    return SceneLoader(scenes, **{"seed": 1, "batch_size": BATCH, "image_size": 16, "mask_size": 8, **options})


def steps(start: int, stop: int, positions: range = range(BATCH)) -> list[Place]:
    return [(step, positions) for step in range(start, stop)]


def ahead(source: SceneSource, places: Sequence[Place], workers: int) -> list[SceneBatch]:
    with read_ahead(source, places, workers=workers, start_method="fork") as batches:
        return list(batches)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Scene]:
    return list(open_scenes(write_scenes(tmp_path_factory.mktemp("scenes") / "set", count=11)))


# ---------------------------------------------------------------------- the same batches


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"augmentation": Augmentation.of(0.5)}, {"shuffle": False}])
def test_processes_read_what_the_loop_reads(scenes: list[Scene], options: dict[str, Any], workers: int) -> None:
    source = loader(scenes, **options)
    whole = ahead(source, steps(0, 7), 0)
    assert [fill(batch) for batch in ahead(source, steps(0, 7), workers)] == [fill(batch) for batch in whole]
    assert len({name for batch in whole for name in batch.ids}) == 11


@pytest.mark.parametrize("start", [1, 2, 3, 5])  # an epoch of eleven scenes ends inside steps 2 and 5
def test_a_restart_and_a_part_of_a_batch_read_the_same(scenes: list[Scene], start: int) -> None:
    source = loader(scenes)
    whole = [source.batch(step, range(BATCH)) for step in range(8)]
    assert [fill(b) for b in ahead(source, steps(start, 8), 2)] == [fill(b) for b in whole[start:]]
    for rank in range(2):
        own = share(BATCH, rank=rank, world_size=2)
        read = ahead(source, steps(start, 8, own), 2)
        assert [b.ids for b in read] == [b.ids[own.start : own.stop] for b in whole[start:]]
        assert all(torch.equal(b.image, w.image[list(own)]) for b, w in zip(read, whole[start:], strict=True))


def test_places_may_be_of_any_kind_and_are_asked_for_as_needed(scenes: list[Scene]) -> None:
    asked: list[Place] = []

    def endless() -> Iterator[Place]:
        for step in count():
            asked.append((step, [step % BATCH, 0]))
            yield asked[-1]

    source = loader(scenes)
    with read_ahead(source, endless(), workers=2, start_method="fork") as batches:
        for step in range(10):
            assert fill(next(batches)) == fill(source.batch(step, [step % BATCH, 0]))
        assert len(asked) <= 10 + 2 * 2, "two batches a process are under way at most"
    with read_ahead(source, [], workers=2, start_method="fork") as batches:
        assert list(batches) == []


def test_nobody_elses_random_numbers_are_drawn(scenes: list[Scene]) -> None:
    before = torch.get_rng_state()
    ahead(loader(scenes), steps(0, 2), 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_composed_scenes_are_made_ahead_in_a_thread(tiny_atlas: Atlas, tiny_backgrounds: np.ndarray) -> None:
    composer = Composer(tiny_atlas, tiny_backgrounds, seed=0, image_size=8, mask_size=8)
    places: list[Place] = [(0, range(4)), (1, [2]), (5, range(2, 4)), (0, range(4))]
    assert [fill(b) for b in ahead(composer, places, 3)] == [fill(composer.batch(*place)) for place in places]
    assert ahead(composer, [], 3) == []


# ---------------------------------------------------------------------- what goes to a process


def write_labelme(folder: Path, scenes: Sequence[Scene]) -> Path:
    folder.mkdir()
    for scene in scenes:
        Image.fromarray(scene.image).save(folder / f"{scene.id}.png")
        shape = {"label": "box", "points": [[2, 2], [9, 2], [9, 9], [2, 9]], "shape_type": "polygon"}
        record = {"shapes": [shape], "imagePath": f"{scene.id}.png", "imageHeight": 32, "imageWidth": 48}
        (folder / f"{scene.id}.json").write_text(json.dumps(record))
    return folder


def write_cvat(folder: Path, scenes: Sequence[Scene]) -> Path:
    folder.mkdir()
    lines = ["<annotations>"]
    for scene in scenes:
        Image.fromarray(scene.image).save(folder / f"{scene.id}.png")
        box = '<box label="a" xtl="2" ytl="2" xbr="9" ybr="9" occluded="0" z_order="0"/>'
        lines.append(f'<image id="{len(lines)}" name="{scene.id}.png" width="48" height="32">\n{box}\n</image>')
    (folder / "annotations.xml").write_text("\n".join([*lines, "</annotations>"]))
    return folder


def write_modal(folder: Path, scenes: Sequence[Scene]) -> Path:
    folder.mkdir()
    images, annotations = [], []
    for number in range(len(scenes)):
        image = np.full((96, 96, 3), 60 + number, dtype=np.uint8)
        image[24:70, 24:70] = (200, 40, number)
        Image.fromarray(image).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 96, "width": 96})
        square = [24, 24, 70, 24, 70, 70, 24, 70]
        annotations.append({"id": number, "image_id": number, "category_id": 1, "segmentation": [square]})
    record = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]}
    (folder / "instances.json").write_text(json.dumps(record))
    return folder / "instances.json"


def write_masks(folder: Path, scenes: Sequence[Scene]) -> Path:
    for scene in scenes:
        (folder / scene.id).mkdir(parents=True)
        Image.fromarray(scene.image).save(folder / scene.id / "image.png")
        for i, mask in enumerate(scene.amodal_masks):
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / scene.id / f"{i}.png")
        (folder / scene.id / "order.json").write_text("[]")
    return folder


WRITERS: dict[str, Callable[[Path, Sequence[Scene]], object]] = {
    "project": lambda folder, scenes: write_project(folder, scenes, min_overlap=0.01),
    "shards": lambda folder, scenes: pack(scenes, folder, shard_size=4),
    "sas": write_sas_folders,
    "cocoa": write_cocoa,
    "kins2020": write_kins2020,
    "labelme": write_labelme,
    "cvat": write_cvat,
    "masks": write_masks,
    "modal": write_modal,
}


def opened(format: str, folder: Path, scenes: Sequence[Scene]) -> SceneLoader:
    written = WRITERS[format](folder, scenes)
    path = written if isinstance(written, Path) else folder
    options: dict[str, Any] = {"format": format, **({"seed": 5} if format == "modal" else {})}
    return loader(open_format(path, **options), buffer=5 if format == "shards" else None)


@pytest.mark.parametrize("format", WRITERS)
def test_every_format_is_opened_anew_and_nothing_of_its_size_is_sent(
    scenes: list[Scene], tmp_path: Path, format: str
) -> None:
    source = opened(format, tmp_path / "set", scenes)
    small = opened(format, tmp_path / "one", scenes[:3])
    whole = [fill(batch) for batch in ahead(source, steps(0, 4), 0)]
    sent = pickle.dumps(source)  # after reading, so that what reading keeps would be in it
    assert len(sent) == len(pickle.dumps(small)) < 1500
    assert [fill(batch) for batch in ahead(pickle.loads(sent), steps(0, 4), 0)] == whole
    assert [fill(batch) for batch in ahead(source, steps(0, 4), 2)] == whole, "and shared with a fork"


def test_what_was_said_at_opening_is_not_said_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_modal(tmp_path / "set", range(3))  # type: ignore[arg-type]
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "annotations": [*record["annotations"], {"id": 9, "image_id": 77}]}))
    source = open_format(file, format="modal")
    assert "passed over defects of the file (image-unknown)" in caplog.text
    caplog.clear()
    assert len(pickle.loads(pickle.dumps(source))) == 3 and not caplog.text
    open_format(file, format="modal")
    assert "passed over" in caplog.text, "and warnings are told as before"


class Telling(LazyScenes):
    """Scenes whose id tells of the process that reads them."""

    def __len__(self) -> int:
        return 1

    def read(self, index: int) -> Scene:
        blocked = sorted(signal.Signals(one).name for one in signal.pthread_sigmask(signal.SIG_BLOCK, []))
        words = [os.getpid(), torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], " ".join(blocked)]
        nothing = np.zeros((0, 8, 8), dtype=bool)
        image = np.zeros((8, 8, 3), dtype=np.uint8)
        return Scene(image=image, amodal_masks=nothing, order_matrix=np.zeros((0, 0), bool), id=json.dumps(words))


def test_processes_compute_with_one_thread_and_let_signals_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    told = [json.loads(batch.ids[0]) for batch in ahead(loader(Telling()), steps(0, 6, range(1)), 2)]
    assert len({pid for pid, *_ in told}) == 2 and os.getpid() not in {pid for pid, *_ in told}
    assert {tuple(words) for _, *words in told} == {(1, "1", "SIGINT SIGTERM SIGUSR1")}
    assert os.environ["OMP_NUM_THREADS"] == "3" and signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    assert not active_children()


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_file_is_told_in_the_words_of_the_loop(scenes: list[Scene], tmp_path: Path, packed: bool) -> None:
    folder = tmp_path / "set"
    WRITERS["shards" if packed else "project"](folder, scenes)
    file = folder / ("shard-000001.tar" if packed else "images/scene5.png")
    content = bytearray(file.read_bytes())
    content[520:560] = bytes(40)
    file.write_bytes(bytes(content) if packed else b"no picture")
    source = loader(open_scenes(folder), shuffle=False)
    with pytest.raises(InputError) as plain:
        source.batch(1, range(BATCH))
    assert file.name in str(plain.value)
    with read_ahead(source, steps(0, 3), workers=2, start_method="fork") as batches:
        assert fill(next(batches)) == fill(source.batch(0, range(BATCH))), "what comes before it is read"
        with pytest.raises(InputError) as told:
            next(batches)
    assert str(told.value) == str(plain.value)
    assert not active_children()


def test_a_scene_without_order_is_told_in_the_same_words(scenes: list[Scene]) -> None:
    bare = [Scene(image=one.image, amodal_masks=one.amodal_masks, order_matrix=None, id=one.id) for one in scenes[:1]]
    with pytest.raises(ValueError, match="^scene scene0 must say who is in front, got no order; add it, or leave"):
        ahead(loader(bare), steps(0, 1), 1)


def test_an_error_in_the_thread_is_told_when_its_batch_is_asked_for() -> None:
    class Broken:
        def batch(self, step: int, positions: Sequence[int]) -> SceneBatch:
            if step == 1:
                raise ValueError(f"step {step} is broken")
            return loader([scene]).batch(step, positions)

    scene = Scene(np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8), bool), np.zeros((0, 0), bool))
    with read_ahead(Broken(), steps(0, 3), workers=1) as batches:
        assert next(batches).ids == ("scene",) * BATCH
        with pytest.raises(ValueError, match="^step 1 is broken$"):
            next(batches)


def test_a_process_that_dies_is_told_with_the_cure(scenes: list[Scene]) -> None:
    words = "^a process that reads scenes died .*: lower data.workers, give the container more of it, or set data.workers to 0$"
    with (
        pytest.raises(RuntimeError, match=words),
        read_ahead(loader(scenes), steps(0, 10**6), workers=2, start_method="fork") as batches,
    ):
        next(batches)
        os.kill(active_children()[0].pid or 0, signal.SIGKILL)
        for _ in batches:
            pass
    assert not active_children()


def test_a_process_that_dies_with_a_lock_is_told_too(scenes: list[Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process asks before each batch whether it should end, with a lock that the training process shares."""
    parent, ask = os.getpid(), synchronize.Event.is_set

    def die(event: synchronize.Event) -> bool:
        if os.getpid() == parent:
            return ask(event)
        with event._cond:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    monkeypatch.setattr(synchronize.Event, "is_set", die)
    began = time.monotonic()
    with (
        pytest.raises(RuntimeError, match="^a process that reads scenes died .* set data.workers to 0$"),
        read_ahead(loader(scenes), steps(0, 10**6), workers=2, start_method="fork") as batches,
    ):
        next(batches)
    assert not active_children() and time.monotonic() - began < 60, "and not after ten minutes"


def test_leaving_early_ends_the_processes(scenes: list[Scene]) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        read_ahead(loader(scenes), steps(0, 10**6), workers=2, start_method="fork") as batches,
    ):
        next(batches)
        assert len(active_children()) == 2
        raise KeyboardInterrupt
    assert not active_children()


class Hanging(LazyScenes):
    """The first scene is read at once, and no other ever."""

    def __init__(self, folder: str) -> None:
        self.first = open_scenes(folder)[0]

    def __len__(self) -> int:
        return 8

    def read(self, index: int) -> Scene:
        if index:
            time.sleep(600)
        return self.first


def test_leaving_ends_processes_that_hang_in_a_read(scenes: list[Scene], tmp_path: Path) -> None:
    write_project(tmp_path / "set", scenes[:1], min_overlap=0.01)
    hanging = loader(Hanging(str(tmp_path / "set")), shuffle=False, batch_size=1)
    with read_ahead(hanging, steps(0, 8, range(1)), workers=2, start_method="fork") as batches:
        next(batches)
        began = time.monotonic()
    assert not active_children() and time.monotonic() - began < 60, "and not after ten minutes"


def test_leaving_ends_the_others_of_one_that_died(scenes: list[Scene], tmp_path: Path) -> None:
    """Whatever the killed one held then: it slept in its watch, and the other hangs in a read."""
    write_project(tmp_path / "set", scenes[:1], min_overlap=0.01)
    hanging = loader(Hanging(str(tmp_path / "set")), shuffle=False, batch_size=1)
    with read_ahead(hanging, steps(0, 8, range(1)), workers=3, start_method="fork") as batches:
        next(batches)
        time.sleep(0.5)
        os.kill(active_children()[0].pid or 0, signal.SIGKILL)
        began = time.monotonic()
    assert not active_children() and time.monotonic() - began < 60
    assert all(one.daemon for one in threading.enumerate() if one is not threading.main_thread()), (
        "none keeps the program from ending"
    )


class Failing(LazyScenes):
    """Raises an error of its own choice."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __len__(self) -> int:
        return 4

    def read(self, index: int) -> Scene:
        raise self.error("the third shelf is empty")


class TwoWords(Exception):
    """Cannot be taken apart and put together again."""

    def __init__(self, first: str, second: str = "") -> None:
        super().__init__()
        self.lock = lambda: first

    def __str__(self) -> str:
        return "cannot travel"


@pytest.mark.parametrize(
    ("raised", "arrives", "words"),
    [
        (OSError, OSError, "^the third shelf is empty$"),
        (ValueError, ValueError, "^the third shelf is empty$"),
        (TwoWords, RuntimeError, "^TwoWords: cannot travel$"),
    ],
    ids=["OSError", "ValueError", "no pickle"],
)
def test_errors_keep_their_kind_and_say_where_they_came_from(
    raised: type[Exception], arrives: type[Exception], words: str
) -> None:
    with (
        pytest.raises(arrives, match=words) as caught,
        read_ahead(loader(Failing(raised)), steps(0, 2), workers=1, start_method="fork") as batches,
    ):
        next(batches)
    assert type(caught.value) is arrives
    assert "in a process that reads scenes" in str(caught.value.__cause__) and "def read" not in str(caught.value)
    assert 'raise self.error("the third shelf is empty")' in str(caught.value.__cause__)


@pytest.mark.slow
def test_leaving_early_while_large_batches_are_sent(scenes: list[Scene], capfd: pytest.CaptureFixture[str]) -> None:
    """Processes that begin in earnest, four times two batches under way when the block is left."""
    with read_ahead(loader(scenes, image_size=256), steps(0, 10**6), workers=4) as batches:
        for _ in range(6):
            next(batches)
    assert not active_children() and capfd.readouterr().err == ""


# ---------------------------------------------------------------------- a run in earnest


def settings(folder: Path, workers: int) -> Any:
    return tiny_config(
        data_scenes=str(folder / "scenes"),
        data_validation=str(folder / "scenes"),
        data_workers=workers,
        training_steps=20,
        training_micro_batch=2,
        logging_checkpoint_every=100,
        logging_validate_every=100,
    )


class Run:
    """This file as a program in a process group of its own."""

    def __init__(self, folder: Path, *command: str) -> None:
        command = command or (__file__, str(folder))
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error::ResourceWarning", *command],
            env=program_environment(),
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def others(self) -> list[int]:
        """Processes of the group besides the first."""
        found = []
        for file in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                state, _, group = file.read_text().rpartition(")")[2].split()[:3]
                if int(group) == self.process.pid and state != "Z":
                    found.append(int(file.parent.name))
        return [pid for pid in found if pid != self.process.pid]

    def wait_until(self, condition: Callable[[], bool], seconds: float = 180) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, (self.process.poll(), self.others())
            time.sleep(0.05)

    def end(self) -> str:
        errors = self.process.communicate(timeout=180)[1]
        self.wait_until(lambda: not self.others(), seconds=30)
        return errors


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that reads in its loop."""
    from sas.training import Trainer

    folder = tmp_path_factory.mktemp("whole")
    write_scenes(folder / "scenes")
    Trainer(settings(folder, 0), folder / "run", cpu=True, progress=False).run()
    return folder


needs_proc = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="looks at /proc and /dev/shm for what is left")


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGKILL"])
def test_a_signal_to_the_whole_group(whole: Path, tmp_path: Path, name: str) -> None:
    """The step is finished and saved. SIGKILL goes to the training process alone, when the others have just begun: they notice."""
    os.symlink(whole / "scenes", tmp_path / "scenes")
    shared = set(os.listdir("/dev/shm"))
    run = Run(tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    run.wait_until(lambda: len(run.others()) >= 3)  # two that read, and Python's keeper of semaphores
    if name == "SIGKILL":
        run.process.kill()
    else:
        run.wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 3)
        os.killpg(run.process.pid, getattr(signal, name))
    errors = run.end()
    assert {one for one in os.listdir("/dev/shm") if one.startswith(("sem.mp-", "torch_"))} <= shared
    if name == "SIGKILL":
        assert run.process.returncode == -signal.SIGKILL
        return
    assert run.process.returncode == 0 and errors == ""
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
    again = Run(tmp_path)
    assert again.end() == "" and again.process.returncode == 0
    assert read_metrics(tmp_path / "run") == read_metrics(whole / "run")
    last = "checkpoints/step-00000020/model.safetensors"
    assert (tmp_path / "run" / last).read_bytes() == (whole / "run" / last).read_bytes()


@needs_proc
@pytest.mark.slow
def test_the_command_line_tells_of_a_damaged_picture_in_one_line(whole: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes")
    (tmp_path / "scenes" / "images" / "scene3.png").write_bytes(b"no picture")
    (tmp_path / "config.yaml").write_text((whole / "run" / "config.yaml").read_text())
    command = ["train", "config.yaml", "--out", "run", "--cpu", "--data.workers", "2", "--data.scenes", "scenes"]
    run = Run(tmp_path, "-m", "sas", *command)
    errors = run.end()
    assert run.process.returncode == 1 and "Traceback" not in errors and "DataLoader" not in errors
    assert re.search(
        r"sas train: image scenes/images/scene3\.png is not a PNG, .*; convert it to PNG or JPEG\n", errors
    )


if __name__ == "__main__":
    from sas.training import Trainer

    here = Path(sys.argv[1])
    Trainer(settings(here, 2), here / "run", cpu=True, progress=False).run()
