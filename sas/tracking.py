"""Where the numbers of a run go: metrics.jsonl always, wandb and tensorboard if asked for."""

from __future__ import annotations

import json
import logging
import netrc
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sas.io import InputError, atomic_write_bytes

logger = logging.getLogger(__name__)


class Tracking:
    """Writes numbers and pictures of a run; after a resume it goes on as if nothing had happened.

    state: what a checkpoint must keep (the wandb run's id). validated: whether the checkpoint of `step` knows that step's validation.
    """

    def __init__(
        self,
        out: Path,
        *,
        trackers: Sequence[str],
        project: str,
        config: dict[str, Any],
        step: int,
        state: dict[str, Any],
        validated: bool = True,
    ) -> None:
        self.path = out / "metrics.jsonl"
        self._cut_back(step, validated)
        # The board first: it may be missing, and then nothing else must have been started.
        self._board = _start_tensorboard(out, step) if "tensorboard" in trackers else None
        self._wandb = _start_wandb(out, project, config, state) if "wandb" in trackers else None
        self._file = self.path.open("a", buffering=1)
        # A run that goes on without wandb for a while keeps the name that it has there.
        self.state: dict[str, Any] = {"wandb_id": self._wandb.id} if self._wandb else dict(state)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl and one point a value in each tracker."""
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise InputError(
                f"cannot write {self.path}: {error.strerror}; free some space, and start again: the run goes on from its last checkpoint"
            ) from error
        self._tell_wandb(lambda run: run.log(values, step=step))
        self._tell_board(lambda board: [board.add_scalar(name, value, step) for name, value in values.items()])

    def write_picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture, uint8 (H, W, 3), for trackers that show pictures."""

        def log(run: Any) -> None:
            import wandb

            run.log({name: wandb.Image(picture)}, step=step)

        self._tell_wandb(log)
        self._tell_board(lambda board: board.add_image(name, picture, step, dataformats="HWC"))

    def close(self) -> None:
        with suppress(OSError):  # on a full disk the line that `write` told of is still to be written
            self._file.close()
        self._tell_wandb(lambda run: run.finish())
        self._tell_board(lambda board: board.close())

    def _tell_wandb(self, call: Callable[[Any], object]) -> None:
        if self._wandb and not _told("wandb", call, self._wandb):
            self._wandb = None

    def _tell_board(self, call: Callable[[Any], object]) -> None:
        if self._board and not _told("tensorboard", call, self._board):
            self._board = None

    def _cut_back(self, step: int, validated: bool) -> None:
        """Drop lines that were written after the checkpoint, and a last line that was cut off."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                values = json.loads(line)
                if values["step"] < step or (values["step"] == step and (validated or "val/score" not in values)):
                    kept.append(line)
            except (json.JSONDecodeError, KeyError, TypeError):
                continue
        atomic_write_bytes(self.path, "".join(line + "\n" for line in kept).encode())


def _told(name: str, call: Callable[[Any], object], tracker: Any) -> bool:
    """Whether a tracker took what it was told. One that did not, because its process is gone, say, must not stop a run."""
    try:
        call(tracker)
    except Exception as error:
        logger.warning(
            "%s is told nothing more (%s: %s): the run goes on, and metrics.jsonl has all of it",
            name,
            type(error).__name__,
            error,
        )
        return False
    return True


def _start_wandb(out: Path, project: str, config: dict[str, Any], state: dict[str, Any]) -> Any:
    """A wandb run that needs neither login nor network unless the user has set them up."""
    import wandb

    mode: Any = None if os.environ.get("WANDB_MODE") or _logged_in() else "offline"
    return wandb.init(
        project=project, dir=str(out), config=config, id=state.get("wandb_id"), resume="allow", mode=mode, name=out.name
    )


def _logged_in() -> bool:
    """Whether the user has given wandb a key, in the environment or by `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _start_tensorboard(out: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            'trackers names "tensorboard", which is not installed; pip install "sas-amodal[tensorboard]"'
        ) from error
    return SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)
