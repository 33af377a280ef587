"""Several processes: the same losses as one, exact resume, launches that would do something else refused.

Accelerate's known traps, and where a test shows that each is avoided:
1. `accelerate launch --cpu --num_processes 2` runs one process: test_accelerate_launch_on_the_cpu_is_refused, below.
2. `save_state` is not atomic: own protocol; test_resume.test_killed_while_the_checkpoint_is_written, and test_checkpoint.
3. `total_limit` deletes the old checkpoint before the new one is there: the same two; there every kill leaves a whole checkpoint.
4. A stray folder breaks loading: test_stray_names_beside_checkpoints, below, and test_checkpoint.
5. A missing file of random states is ignored: no random state is stored, all of it follows from seed and step (test_resume),
   and a missing file of a checkpoint is a defect: test_training.test_no_whole_checkpoint_is_not_a_fresh_start.
6. The first save after a restart says "already exists": test_resume.test_stopped_after_every_step, test_saving_a_step_again.
7. Data sets get no sampler state: the place in the data follows from the step alone, test_resume.test_killed (workers 0 and 2),
   test_each_scene_once_an_epoch, below.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny import program_environment, read_metrics, tiny_config, write_scenes

from sas.checkpoint import latest_checkpoint
from sas.distributed import (
    LaunchError,
    agree,
    check_launch,
    check_precision,
    make_accelerator,
    share,
    sum_over_processes,
)
from sas.factory import build_source
from sas.training import Trainer

STEPS = 20
SCRIPT = """
import os, signal, sys
from pathlib import Path
from tiny import tiny_config
from sas.training import Trainer

scenes, out, victim, kill_step, micro = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:6])
rank = int(os.environ.get("RANK", 0))

class Disturbed(Trainer):
    def _train_step(self, step):
        if step == kill_step and victim in (rank, -2):
            os.kill(os.getpid(), signal.SIGKILL)
        if step == kill_step and victim == -4 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super()._train_step(step)

if victim == -3 and rank == 1:
    out = Path(f"{out}-elsewhere")  # as on a machine that does not share the folder
config = tiny_config(
    data_scenes=scenes, training_steps=int(sys.argv[6]), logging_checkpoint_every=7, training_micro_batch=micro or None,
    training_batch_size=2 * int(os.environ["WORLD_SIZE"]),
)
out.mkdir(parents=True, exist_ok=True)
Path(f"{out}.{rank}.pid").write_text(str(os.getpid()))
trainer = Disturbed(config, out, cpu=True, progress=False)
assert trainer.accelerator.num_processes == int(os.environ["WORLD_SIZE"])
trainer.run()
"""


# ---------------------------------------------------------------------- fast: shares, launches, sums


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_shares_are_disjoint_and_cover_the_batch(world_size: int) -> None:
    shares = [share(12, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [position for part in shares for position in part] == list(range(12))
    assert {len(part) for part in shares} == {12 // world_size}


@pytest.mark.parametrize(("total", "world_size", "cure"), [(5, 2, 4), (32, 3, 30), (2, 4, 4)])
def test_batch_that_cannot_be_shared(total: int, world_size: int, cure: int) -> None:
    message = (
        rf"training.batch_size must be divisible by the number of processes = {world_size}, got {total}: use {cure}$"
    )
    with pytest.raises(LaunchError, match=message):
        share(total, rank=0, world_size=world_size)


def test_launches_that_are_what_they_say() -> None:
    torchrun = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    for environment in ({}, {"HOME": "/"}, torchrun, {"MASTER_ADDR": "a", "OMPI_COMM_WORLD_RANK": "0"}):
        check_launch(environment)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_on_a_cpu_that_emulates_it_is_refused(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    with pytest.raises(LaunchError, match=f'training.precision must be "no" on this CPU, got "{precision}"'):
        make_accelerator(precision=precision, cpu=True)
    with pytest.raises(
        LaunchError, match=f'training.precision must be "no" on this CPU, got "{precision}": .* use a GPU'
    ):
        check_precision(precision, cpu=True)
    check_precision("no", cpu=True)


@pytest.mark.parametrize(("told", "refused"), [("true", True), ("1", True), ("false", False), ("", False)])
def test_half_precision_where_accelerate_was_told_to_stay_on_the_cpu(
    told: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", told)
    with pytest.raises(LaunchError, match="training.precision must be") if refused else nullcontext():
        check_precision("bf16")


@pytest.mark.parametrize("instructions", ["amx_bf16", "avx512_bf16"])
def test_a_cpu_with_bfloat16_may_use_it(instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instructions: True}, raising=False)
    check_precision("bf16", cpu=True)
    with pytest.raises(LaunchError, match='training.precision must be "no" on this CPU, got "fp16"'):
        check_precision("fp16", cpu=True)


def test_accumulation_by_accelerate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would scale the gradients and accumulate nothing."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(LaunchError, match=r"gradient accumulation must be 1, got 4 .* set training.micro_batch"):
        make_accelerator(precision="no", cpu=True)


@pytest.mark.parametrize("asked", ["no", "bf16"])
def test_precision_asked_of_accelerate_is_not_passed_over_in_silence(
    asked: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    assert make_accelerator(precision="no", cpu=True).mixed_precision == "no"
    told = [one.getMessage() for one in caplog.records]
    assert bool(told) == (asked == "bf16")
    assert all('training.precision is "no"; pass --training.precision bf16' in one for one in told)


def test_another_precision_in_one_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    make_accelerator(precision="no", cpu=True)
    with pytest.raises(
        LaunchError, match='training.precision must be the same .* got "bf16" after another: start a new'
    ):
        make_accelerator(precision="bf16", cpu=True)


def test_launch_of_one_process_for_several_is_refused() -> None:
    """The variables that `accelerate launch --cpu --num_processes 2` sets."""
    environment = {
        "ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "KMP_AFFINITY": "granularity=fine,compact,1,0", "KMP_BLOCKTIME": "1",
    }  # fmt: skip
    with pytest.raises(
        LaunchError, match=r"several processes were asked for, but one was started .*torchrun --nproc_per_node"
    ):
        check_launch(environment)


def test_one_process_sums_to_itself() -> None:
    accelerator = make_accelerator(precision="no", cpu=True)
    assert accelerator.init_handler.timeout >= timedelta(hours=12), "a validation may take hours"
    assert isinstance(accelerator, Accelerator) and accelerator.num_processes == 1
    values = torch.tensor([1.0, 2.0])
    assert torch.equal(sum_over_processes(accelerator, values), values)
    assert agree(accelerator, 3)


STATISTICS = """
from pathlib import Path

import torch
from torch import nn
from sas.distributed import make_accelerator, running_statistics, share_from_first

accelerator = make_accelerator(precision="no", cpu=True)
rank = accelerator.process_index
model = nn.Sequential(nn.Identity(), nn.BatchNorm2d(3))
model.register_buffer("own", torch.full((2,), float(rank)))
model(torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(rank)) + rank)
before = model[1].running_mean.clone()
share_from_first(accelerator, running_statistics(model))
assert torch.equal(before, model[1].running_mean) == (rank == 0)
assert model.own.tolist() == [rank, rank]
Path(f"rank{rank}").write_text(str([buffer.tolist() for buffer in model[1].buffers()]))
torch.distributed.destroy_process_group()
"""


def test_running_statistics_are_those_of_the_first_process(tmp_path: Path) -> None:
    (tmp_path / "statistics.py").write_text(STATISTICS)
    options = ["--nnodes", "1", "--nproc_per_node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "statistics.py"]
    done = subprocess.run(command, cwd=tmp_path, env=program_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "rank0").read_text() == (tmp_path / "rank1").read_text()


def test_shares_read_the_scenes_of_the_whole_batch(tmp_path: Path) -> None:
    source = build_source(tiny_config(data_scenes=write_scenes(tmp_path / "scenes")))
    for step in range(4):
        whole = source.batch(step, range(4)).ids
        parts = [source.batch(step, share(4, rank=rank, world_size=2)).ids for rank in range(2)]
        assert parts[0] + parts[1] == whole


def test_each_scene_once_an_epoch(tmp_path: Path) -> None:
    """6 scenes in batches of 4: two epochs are three steps, and each holds every scene once."""
    scenes = write_scenes(tmp_path / "scenes", count=6)
    source = build_source(tiny_config(data_scenes=scenes))
    seen = [name for step in range(3) for name in source.batch(step, range(4)).ids]
    assert sorted(seen[:6]) == sorted(seen[6:]) == [f"scene{number}" for number in range(6)]
    assert seen[:6] != seen[6:]
    jumped = build_source(tiny_config(data_scenes=scenes))
    assert list(jumped.batch(2, range(4)).ids) == seen[8:]  # no state: a source that begins later gives the same


def test_stray_names_beside_checkpoints(tmp_path: Path) -> None:
    config = tiny_config(data_scenes=write_scenes(tmp_path / "scenes"), training_steps=2)
    for name in ("checkpoint_5", "step-99", "step-00000099.old", "notes"):
        (tmp_path / "run" / "checkpoints" / name).mkdir(parents=True)
    Trainer(config, tmp_path / "run", cpu=True, progress=False).run()
    found = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert found is not None and found.step == 2
    assert (tmp_path / "run" / "checkpoints" / "step-00000099.old").is_dir()


def test_saving_a_step_again(tmp_path: Path) -> None:
    config = tiny_config(data_scenes=write_scenes(tmp_path / "scenes"), training_steps=1)
    trainer = Trainer(config, tmp_path / "run", cpu=True, progress=False)
    trainer.run()
    trainer._save(None)
    found = latest_checkpoint(trainer.checkpoints)
    assert found is not None and found.step == 1
    assert [path.name for path in trainer.checkpoints.glob("step-*")] == ["step-00000001"]


# ---------------------------------------------------------------------- slow: real launches


class Launches:
    """Starts of the script above, of two pictures a process, and what became of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scenes = write_scenes(folder / "scenes")
        (folder / "run.py").write_text(SCRIPT)

    def start(
        self,
        name: str,
        *,
        victim: int = -1,
        kill_step: int = -1,
        micro: int = 0,
        steps: int = STEPS,
        processes: int = 2,
    ) -> Any:
        options = ["--nnodes", "1", "--nproc_per_node", str(processes)]
        options += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        rest = [str(self.folder / "run.py"), self.scenes, str(self.folder / name), victim, kill_step, micro, steps]
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *options, *map(str, rest)],
            env=program_environment(),
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: Any, *, seconds: float = 150) -> str:
        try:
            return process.communicate(timeout=seconds)[1]
        finally:
            for path in self.folder.glob("*.pid"):
                if process.poll() is None:
                    kill(int(path.read_text()))
            with suppress(ProcessLookupError):
                process.kill()

    def run(self, name: str, **options: Any) -> tuple[int, str]:
        process = self.start(name, **options)
        errors = self.finish(process)
        return process.returncode, errors

    def losses(self, name: str) -> list[float]:
        return [line["loss"] for line in read_metrics(self.folder / name) if "loss" in line]

    def weights(self, name: str, *, steps: int = STEPS) -> dict[str, bytes]:
        last = self.folder / name / "checkpoints" / f"step-{steps:08d}"
        return {group: (last / f"{group}.safetensors").read_bytes() for group in ("model", "ema", "optimizer")}


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> Launches:
    return Launches(tmp_path_factory.mktemp("launches"))


@pytest.fixture(scope="module")
def whole(launches: Launches) -> str:
    status, errors = launches.run("whole")
    assert status == 0, errors[-3000:]
    assert "`broadcast_buffers` is deprecated" not in errors
    return "whole"


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(launches: Launches, whole: str) -> None:
    config = tiny_config(data_scenes=launches.scenes, training_steps=STEPS, logging_checkpoint_every=7)
    Trainer(config, launches.folder / "single", cpu=True, progress=False).run()
    assert len(launches.losses(whole)) == STEPS
    np.testing.assert_allclose(launches.losses(whole), launches.losses("single"), rtol=1e-4)
    assert {path.name for path in (launches.folder / whole).iterdir()} == {
        path.name for path in (launches.folder / "single").iterdir()
    }


@pytest.mark.slow
def test_two_processes_with_micro_batches(launches: Launches, whole: str) -> None:
    status, errors = launches.run("micro", micro=1)
    assert status == 0, errors[-3000:]
    np.testing.assert_allclose(launches.losses("micro"), launches.losses(whole), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_rank_ends_the_others_and_the_run_resumes_to_the_bit(launches: Launches, whole: str) -> None:
    status, errors = launches.run("killed", victim=1, kill_step=11)
    assert status != 0 and "SIGKILL" in errors
    pids = [int((launches.folder / f"killed.{rank}.pid").read_text()) for rank in range(2)]
    assert wait_until(lambda: not any(alive(pid) for pid in pids), 30)
    found = latest_checkpoint(launches.folder / "killed" / "checkpoints")
    # Of step 8 before it was validated, or, if the survivor had the time, of the last that both had made.
    assert found is not None and found.step in (8, 11)
    status, errors = launches.run("killed")
    assert status == 0, errors[-3000:]
    assert launches.weights("killed") == launches.weights(whole)
    assert read_metrics(launches.folder / "killed") == read_metrics(launches.folder / whole)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_three_processes_resume_to_the_bit(launches: Launches) -> None:
    """Unlike two, three sum otherwise when DDP packs the gradients otherwise, as it does after its first step."""
    status, errors = launches.run("three", processes=3, steps=8)
    assert status == 0, errors[-3000:]
    status, errors = launches.run("three-killed", processes=3, steps=8, victim=1, kill_step=6)
    assert status != 0 and "SIGKILL" in errors
    status, errors = launches.run("three-killed", processes=3, steps=8)
    assert status == 0, errors[-3000:]
    assert launches.weights("three-killed", steps=8) == launches.weights("three", steps=8)
    assert read_metrics(launches.folder / "three-killed") == read_metrics(launches.folder / "three")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no signals of this kind")
def test_a_launcher_told_to_stop_leaves_a_checkpoint_of_the_last_step(launches: Launches) -> None:
    process = launches.start("stopped", steps=100_000)
    log = launches.folder / "stopped" / "metrics.jsonl"
    started = wait_until(lambda: log.exists() and len(log.read_text().splitlines()) > 3, 100)
    process.send_signal(signal.SIGTERM)
    errors = launches.finish(process)
    assert started, errors[-3000:]
    found = latest_checkpoint(launches.folder / "stopped" / "checkpoints")
    assert found is not None and found.step == read_metrics(launches.folder / "stopped")[-1]["step"]
    pids = [int((launches.folder / f"stopped.{rank}.pid").read_text()) for rank in range(2)]
    assert wait_until(lambda: not any(alive(pid) for pid in pids), 30)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no signals of this kind")
def test_a_signal_to_one_process_ends_all(launches: Launches) -> None:
    """Before there is a pipeline: the others must not wait for one in a validation."""
    code, errors = launches.run("one-told", victim=-4, kill_step=1)
    assert code == 0, errors[-3000:]
    found = latest_checkpoint(launches.folder / "one-told" / "checkpoints")
    assert found is not None and found.step == 2
    assert not (launches.folder / "one-told" / "pipeline").exists()


@pytest.mark.slow
def test_processes_that_see_different_checkpoints_are_refused(launches: Launches) -> None:
    code, errors = launches.run("apart", steps=1)
    assert code == 0, errors[-3000:]
    code, errors = launches.run("apart", steps=2, victim=-3)
    assert code != 0 and "must be one folder for all processes, got folders with different checkpoints" in errors


@pytest.mark.slow
def test_accelerate_launch_on_the_cpu_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text("from sas.distributed import check_launch\ncheck_launch()\nprint('went on')\n")
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "run.py"],
        env={**program_environment(), "HOME": str(tmp_path), "HF_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode != 0 and "went on" not in done.stdout
    assert "LaunchError: several processes were asked for, but one was started" in done.stderr
