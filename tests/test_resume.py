"""Runs that are killed, told to stop or cut off, and go on as if nothing had happened.

Run as a script (`python test_resume.py FOLDER`), this file trains once to the end and then in many forked children that are
killed at chosen moments and started again: one import of torch serves them all. It leaves the folders for the tests to compare.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tiny import program_environment, read_metrics, tiny_config, write_scenes

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills are tested on forked processes")
pytestmark = [needs_fork, pytest.mark.slow]

STEPS, EVERY = 8, 3
VALIDATED = 5  # and saved before
GROUPS = ("model", "ema", "optimizer")
# Steps (counted from 0) in which the process is killed: the first, the second, between checkpoints, right after one, the last.
KILLS = {"step_0": 0, "step_1": 1, "between": 4, "after_checkpoint": 3, "last": STEPS - 1}
KILLED = [*((kill, 0) for kill in KILLS), ("between", 2)]  # with so many processes that read
# Files whose opening in the checkpoint of step 6 ends the process, the last being the pointer that is replaced after the commit.
WRITES = ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json", "latest")
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")


# ---------------------------------------------------------------------- the program


def config_for(scenes: str, *, workers: int = 0, **changes: Any) -> Any:
    return tiny_config(
        data_scenes=scenes,
        data_workers=workers,
        data_corruption=0.5,
        training_steps=STEPS,
        training_micro_batch=3,
        logging_log_every=2,
        logging_checkpoint_every=EVERY,
        logging_validate_every=VALIDATED,
        **changes,
    )


def in_child(work: Callable[[], object]) -> int:
    """Exit status of a forked child that does the work; the negative number of the signal that killed it."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def train(config: Any, out: Path, *, at: int = -1, do: Callable[[], object] = lambda: None, late: bool = False) -> None:
    """A run that calls `do` in the step `at`: before its work, or after it."""
    from sas.training import Trainer

    class Disturbed(Trainer):
        def _train_step(self, step: int) -> tuple[dict[str, float], float]:
            if step == at and not late:
                do()
            result = super()._train_step(step)
            if step == at and late:
                do()
            return result

    Disturbed(config, out, cpu=True, progress=False).run()


def send(name: str, times: int = 1, pause: float = 0.01) -> Callable[[], None]:
    def act() -> None:
        for _ in range(times):
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(pause)

    return act


def killed_while_writing(config: Any, out: Path, file: str) -> None:
    """The opening of `file` for the checkpoint of step 6 is the last thing that this process does."""

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], str) or arguments[2] & os.O_ACCMODE == os.O_RDONLY:
            return
        here = Path(arguments[0])
        second = (out / "checkpoints" / "step-00000006").exists()
        if (file == "latest" and here.name.startswith("latest.tmp") and second) or (
            here.name == file and here.parent.name.startswith("step-00000006.tmp")
        ):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    train(config, out)


def program(folder: Path) -> None:
    import sas.training  # noqa: F401  (before the forks)

    scenes, status = write_scenes(folder / "scenes"), {}

    def run(name: str, work: Callable[[], object]) -> None:
        status[name] = in_child(work)

    def again(name: str, **options: Any) -> None:
        """Notes what is there, and starts the same run again."""
        checkpoints = sorted(path.name for path in (folder / name / "checkpoints").glob("step-????????"))
        (folder / f"{name}.json").write_text(json.dumps(checkpoints))
        run(f"{name} again", lambda: train(config_for(scenes, **options), folder / name))

    for workers in (0, 2):
        config = config_for(scenes, workers=workers)
        run(f"whole_{workers}", lambda c=config, w=workers: train(c, folder / f"whole_{w}"))
    for kill, workers in KILLED:
        config, name = config_for(scenes, workers=workers), f"{kill}_{workers}"
        run(name, lambda c=config, n=name, s=KILLS[kill]: train(c, folder / n, at=s, do=send("SIGKILL")))
        again(name, workers=workers)
    config = config_for(scenes)
    for file in WRITES:
        run(file, lambda f=file: killed_while_writing(config, folder / f, f))
        again(file)
    for name in SIGNALS:
        run(name, lambda n=name: train(config, folder / n, at=4, do=send(n), late=n == "SIGINT"))
        again(name)
    for name, pause in (("twice", 1.2), ("echo", 0.01)):
        run(name, lambda n=name, p=pause: train(config, folder / n, at=4, do=send("SIGTERM", 2, p)))
        again(name)
    run("often", lambda: train(config, folder / "often", at=1, do=send("SIGKILL")))
    for step in range(1, STEPS):
        run(f"often {step}", lambda s=step: train(config, folder / "often", at=s, do=send("SIGTERM"), late=True))
    again("often")
    (folder / "status.json").write_text(json.dumps(status))


# ---------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", __file__, str(folder)],
        env=program_environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def status(folder: Path, name: str) -> int:
    return json.loads((folder / "status.json").read_text())[name]


def checkpoints_at_the_kill(folder: Path, name: str) -> list[str]:
    return json.loads((folder / f"{name}.json").read_text())


def same_as_whole(folder: Path, name: str) -> None:
    """The second start ended well, and weights, averages, optimizer and logged numbers are those of the run nobody disturbed."""
    assert status(folder, f"{name} again") == 0
    last = f"checkpoints/step-{STEPS:08d}"
    for group in GROUPS:
        file = f"{last}/{group}.safetensors"
        assert (folder / name / file).read_bytes() == (folder / "whole_0" / file).read_bytes(), group
    states = [json.loads((folder / run / last / "state.json").read_text())["state"] for run in (name, "whole_0")]
    for key in ("optimizer", "ema_steps", "best", "window"):
        assert states[0][key] == states[1][key]
    assert read_metrics(folder / name) == read_metrics(folder / "whole_0")
    assert not list((folder / name / "checkpoints").glob("*.tmp-*"))


def test_undisturbed(folder: Path) -> None:
    assert status(folder, "whole_0") == status(folder, "whole_2") == 0
    lines = read_metrics(folder / "whole_0")
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8]
    assert [line["step"] for line in lines if "val/score" in line] == [5, 8]
    assert lines == read_metrics(folder / "whole_2")  # the number of workers changes nothing


@pytest.mark.parametrize(("kill", "workers"), KILLED)
def test_killed(folder: Path, kill: str, workers: int) -> None:
    name = f"{kill}_{workers}"
    assert status(folder, name) == -signal.SIGKILL
    saved = [step for step in range(1, KILLS[kill] + 1) if step % EVERY == 0 or step % VALIDATED == 0]
    assert checkpoints_at_the_kill(folder, name) == [f"step-{step:08d}" for step in saved[-2:]], "two are kept"
    same_as_whole(folder, name)


@pytest.mark.parametrize("file", WRITES)
def test_killed_while_the_checkpoint_is_written(folder: Path, file: str) -> None:
    assert status(folder, file) == -signal.SIGKILL
    assert checkpoints_at_the_kill(folder, file) == [f"step-{step:08d}" for step in (3, 5, 6)[: 2 + (file == "latest")]]
    same_as_whole(folder, file)


@pytest.mark.parametrize("name", SIGNALS)
def test_told_to_stop(folder: Path, name: str) -> None:
    """The step is finished and saved, and the process leaves without an error."""
    assert status(folder, name) == 0
    assert checkpoints_at_the_kill(folder, name) == ["step-00000003", "step-00000005"]
    same_as_whole(folder, name)


def test_a_signal_that_a_launcher_repeats_is_one(folder: Path) -> None:
    """As where the whole group of processes gets it, and torchrun passes it on."""
    assert status(folder, "echo") == 0
    assert checkpoints_at_the_kill(folder, "echo") == ["step-00000003", "step-00000005"]
    same_as_whole(folder, "echo")


def test_a_second_signal_ends_at_once(folder: Path) -> None:
    assert status(folder, "twice") == 128 + signal.SIGTERM
    assert checkpoints_at_the_kill(folder, "twice") == ["step-00000003"]
    same_as_whole(folder, "twice")


def test_stopped_after_every_step(folder: Path) -> None:
    assert [status(folder, f"often {step}") for step in range(1, STEPS)] == [0] * (STEPS - 1)
    same_as_whole(folder, "often")


def wait_for(path: Path, lines: int, process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert process.poll() is None and time.monotonic() < end, process.communicate(timeout=10)
        time.sleep(0.05)


def test_the_command_line_stops_when_told(folder: Path, tmp_path: Path) -> None:
    """The real program, told to stop from outside: exit status 0, and a checkpoint of the last step it logged."""
    options = [
        "--out", "run", "--cpu", "--data.scenes", str(folder / "scenes"), "--data.image-size", "16", "--data.mask-size", "16",
        "--model.name", "unet", "--model.channels", "8", "16", "--model.norm-groups", "4", "--training.batch-size", "2", "--logging.log-every", "1",
    ]  # fmt: skip
    command = [sys.executable, "-c", "import sys; from sas.__main__ import main; sys.exit(main())", "train", *options]
    process = subprocess.Popen(
        command, env=program_environment(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(tmp_path / "run" / "metrics.jsonl", 3, process)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 0, errors
    step = int(read_metrics(tmp_path / "run")[-1]["step"])
    assert output.startswith(f"step {step} of 10000")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == [f"step-{step:08d}"]


if __name__ == "__main__":
    program(Path(sys.argv[1]))
