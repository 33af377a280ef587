"""Where the numbers go: metrics.jsonl, tensorboard, and wandb without login and network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import program_environment, tiny_config, write_scenes

from sas.io import InputError
from sas.tracking import Tracking
from sas.training import Trainer

PICTURE = np.zeros((6, 8, 3), dtype=np.uint8)


def make(out: Path, *, trackers: Any = (), step: int = 0, state: dict[str, Any] | None = None) -> Tracking:
    out.mkdir(exist_ok=True)
    return Tracking(out, trackers=trackers, project="test", config={"a": {"b": 1}}, step=step, state=state or {})


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_one_line_a_step(tmp_path: Path) -> None:
    tracking = make(tmp_path)
    tracking.write(1, {"loss": 0.1 + 0.2, "lr": 1e-5})
    assert lines(tmp_path) == [{"step": 1, "loss": 0.1 + 0.2, "lr": 1e-5}]  # at once, and to the last digit
    tracking.write(2, {"loss": 0.25})
    tracking.write_picture(2, "samples", PICTURE)
    tracking.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2] and tracking.state == {}
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl"}


def test_a_run_that_goes_on_without_wandb_keeps_its_name_there(tmp_path: Path) -> None:
    tracking = make(tmp_path, state={"wandb_id": "abc"})
    tracking.close()
    assert tracking.state == {"wandb_id": "abc"}


@pytest.mark.parametrize("name", ["_wandb", "_board"])
def test_a_tracker_that_dies_is_told_nothing_more(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    tracking, asked = make(tmp_path, state={"wandb_id": "abc"}), []

    class Gone:
        def __getattr__(self, call: str) -> Any:
            def fail(*_: Any, **__: Any) -> None:
                asked.append(call)
                raise ConnectionResetError("Connection reset by peer")

            return fail

    setattr(tracking, name, Gone())
    tracking.write(1, {"loss": 0.5})
    tracking.write(2, {"loss": 0.25})
    tracking.write_picture(2, "samples", PICTURE)
    tracking.close()
    assert len(asked) == 1 and [line["loss"] for line in lines(tmp_path)] == [0.5, 0.25]
    assert [one.getMessage() for one in caplog.records] == [
        f"{'wandb' if name == '_wandb' else 'tensorboard'} is told nothing more (ConnectionResetError: Connection reset by peer): the "
        "run goes on, and metrics.jsonl has all of it"
    ]
    assert tracking.state == {"wandb_id": "abc"}, "a run that goes on may try again"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_full_disk_is_told_and_trackers_are_closed(tmp_path: Path) -> None:
    tracking, closed = make(tmp_path), []

    class Board:
        def close(self) -> None:
            closed.append(True)

    tracking._file.close()
    tracking._file = open("/dev/full", "a", buffering=1)  # noqa: SIM115
    tracking._board = Board()
    with pytest.raises(InputError, match="No space left on device; free some space, and start again"):
        try:
            tracking.write(1, {"loss": 0.5})
        finally:
            tracking.close()
    assert closed


@pytest.mark.parametrize(
    ("step", "kept"),
    [(0, []), (2, [1, 2, 2]), (3, [1, 2, 2, 3]), (99, [1, 2, 2, 3, 4])],
)
def test_cut_back_to_the_checkpoint(tmp_path: Path, step: int, kept: list[int]) -> None:
    tracking = make(tmp_path)
    for number in (1, 2, 2, 3, 4):
        tracking.write(number, {"loss": number / 3})
    tracking.close()
    tracking = make(tmp_path, step=step)
    assert [line["step"] for line in lines(tmp_path)] == kept
    tracking.write(step + 1, {"loss": 0.5})
    tracking.close()
    assert [line["step"] for line in lines(tmp_path)] == [*kept, step + 1]


@pytest.mark.parametrize("tail", ['{"step": 3, "lo', "\x00\x00\x00", "[1]", '{"loss": 1}', "\n\n", '{"step": "3"}'])
def test_a_last_line_that_was_cut_off_is_dropped(tmp_path: Path, tail: str) -> None:
    whole = '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_text(whole + tail)
    make(tmp_path, step=5).close()
    assert (tmp_path / "metrics.jsonl").read_text() == whole


def test_bytes_that_are_no_text_are_dropped(tmp_path: Path) -> None:
    """A crash of the machine may leave anything in the block that was last written."""
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2.0}\n\xff\xfe{"st')
    make(tmp_path, step=5).close()
    assert lines(tmp_path) == [{"step": 1, "loss": 2.0}]


# ---------------------------------------------------------------------- tensorboard


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    tags = found.Tags()
    scalars = {name: [(e.step, e.value) for e in found.Scalars(name)] for name in tags["scalars"]}
    return {**scalars, **{name: [(e.step, 0.0) for e in found.Images(name)] for name in tags["images"]}}


def test_tensorboard_goes_on_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tracking = make(tmp_path, trackers=("tensorboard",))
    for step in (1, 2, 3):
        tracking.write(step, {"loss": step / 4})
    tracking.write_picture(2, "samples", PICTURE)
    tracking.close()
    tracking = make(tmp_path, trackers=("tensorboard",), step=2)
    tracking.write(3, {"loss": 9.0})
    tracking.close()
    found = events(tmp_path / "tensorboard")
    assert found == {"loss": [(1, 0.25), (2, 0.5), (3, 9.0)], "samples": [(2, 0.0)]}


def test_missing_tensorboard_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        InputError, match=r'"tensorboard", which is not installed; pip install "sas-amodal\[tensorboard\]"'
    ):
        make(tmp_path, trackers=("tensorboard",))


def test_a_run_with_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    scenes = write_scenes(tmp_path / "scenes")
    config = tiny_config(data_scenes=scenes, training_steps=2, logging_trackers=("tensorboard",))
    Trainer(config, tmp_path / "run", cpu=True, progress=False).run()
    found = events(tmp_path / "run" / "tensorboard")
    assert [step for step, _ in found["loss"]] == [1, 2] and [step for step, _ in found["val/score"]] == [2]
    assert found["samples"] == [(2, 0.0)]


# ---------------------------------------------------------------------- wandb

PROGRAM = """
import json, socket, sys, time
from pathlib import Path

def refuse(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in ("127.0.0.1", "::1", "localhost"):
        print("connects to", arguments[1], flush=True)

sys.addaudithook(refuse)
import numpy as np
from sas.tracking import Tracking

state = {}
for step in (0, 2):
    tracking = Tracking(Path("run"), trackers=("wandb",), project="test", config={"a": 1}, step=step, state=state)
    for number in (step + 1, step + 2, step + 3):
        tracking.write(number, {"loss": number / 4})
    tracking.write_picture(step + 3, "samples", np.zeros((6, 8, 3), dtype=np.uint8))
    tracking.close()
    print(json.dumps(tracking.state), flush=True)
    state = json.loads(json.dumps(tracking.state))
    time.sleep(1.1)  # wandb names an offline folder by the second
"""


@pytest.mark.slow
def test_wandb_without_login_and_network(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    (tmp_path / "run").mkdir()
    environment = {
        **program_environment(),
        "WANDB_SILENT": "true",
        "HOME": str(tmp_path),
        "NETRC": str(tmp_path / "no"),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr[-3000:]
    states = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(states) == 2 and states[0] == states[1] and len(states[0]["wandb_id"]) > 4  # one run, resumed
    written = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*-{states[0]['wandb_id']}/*.wandb"))
    assert len(written) == 2 and all(path.stat().st_size > 100 for path in written)
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4, 5]
