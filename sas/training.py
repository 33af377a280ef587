"""The trainer: data-parallel, resumable to the bit (on a CPU: some kernels of GPUs add up in no fixed order), and ignorant of networks,
schedules and data.

It knows a source (`batch(step, positions)`), an objective (`loss(model, batch, keys)`, with `averaged=` where it draws roll-outs)
and a pipeline to validate and save. What a step does depends on (seed, step) alone; the number of processes and micro-batches only
changes how the sums are split.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
import yaml
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from sas.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint, set_aside, set_aside_checkpoints
from sas.config import Config, TrainingSettings, changed_fields, config_hash
from sas.data.source import read_ahead
from sas.distributed import (
    LaunchError,
    agree,
    make_accelerator,
    running_statistics,
    share,
    share_from_first,
    sum_over_processes,
)
from sas.factory import (
    build_model,
    build_objective,
    build_pipeline,
    build_source,
    fingerprint,
    freeze_untaught,
    validation_batch,
)
from sas.growing import copy_weights
from sas.io import InputError, atomic_write_bytes, put_back
from sas.optimizer import make_optimizer
from sas.optimizer_state import optimizer_from_tensors, optimizer_to_tensors
from sas.pictures import write_png
from sas.pipeline import SASPipeline
from sas.run_lock import lock_run
from sas.scene import SceneBatch
from sas.seeding import Keys, derive_seed
from sas.tracking import Tracking
from sas.validation import Validation, calibrate_stop, validate
from sas.visualize import image_grid, layer_colors, outline, tint

logger = logging.getLogger(__name__)

MAY_CHANGE = ("training.steps", "data.workers", "data.images", "data.validation_images", "logging.")
"""Fields that a resumed run may change: length, workers, where pictures lie, and all that is only written."""

ECHO = 1.0
"""Seconds after a signal in which another one is taken for the same."""

HOW_VALIDATED = ("validation_scenes", "validation_steps", "validation_members")
"""Fields of `logging` without which scores cannot be compared."""


class NonFiniteError(RuntimeError):
    """A loss or gradient that is not finite; raised before the weights are touched."""


class _Losses(nn.Module):
    """Network and objective as one module, so that data parallelism sees every use of the weights."""

    def __init__(self, model: nn.Module, objective: Any, averaged: nn.Module | None) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self._averaged = (averaged,)  # in a tuple, so that its weights are none of this module's

    def forward(self, batch: SceneBatch, keys: Keys) -> dict[str, torch.Tensor]:
        averaged = self._averaged[0]
        return self.objective.loss(self.model, batch, keys, **({} if averaged is None else {"averaged": averaged}))


class Trainer:
    """One training run in one folder.

    config: the run. out: its folder; if it holds a checkpoint of the same configuration, training goes on from there.
    init_from: weights (pipeline folder or hub id) to start from; a run that goes on does not read them again. restart: begin at step 0, and
    set the old run's checkpoints, log, samples and pipeline aside as soon as the new network is built; nothing is deleted.
    max_minutes: stop after this long, with a checkpoint and a saved pipeline; with `training.anneal_over: minutes` the learning rate is at
    its end by then. cpu: do not use an accelerator.
    """

    def __init__(
        self,
        config: Config,
        out: str | Path,
        *,
        init_from: str | Path | None = None,
        restart: bool = False,
        max_minutes: float | None = None,
        cpu: bool = False,
        progress: bool = True,
    ) -> None:
        if max_minutes is not None and not max_minutes > 0:
            raise InputError(f"max_minutes must be positive, got {max_minutes}; leave it out to train to the end")
        self.config = config
        self.out = Path(out)
        self.max_minutes = max_minutes
        self.progress = progress
        self.accelerator = make_accelerator(precision=config.training.precision, cpu=cpu)
        self.main = self.accelerator.is_main_process
        self.positions = share(
            config.training.batch_size, rank=self.accelerator.process_index, world_size=self.accelerator.num_processes
        )
        self.step = 0
        self.best = -math.inf
        self.validated = -1  # step of the last validation
        self.averaged: nn.Module | None = None
        self._window: dict[str, float] = {}
        self._restart = restart
        self._fresh = True  # the weights are not those of a checkpoint
        self._init_from = init_from
        self._calibration = (1.0, 0.0)  # of the stop head, until a validation finds one
        self._stop_signal: int | None = None
        self._told_to_leave = False
        self._whole = True  # weights, averages and step belong together
        self._saved_step = 0
        self._time_used = 0.0  # share of `max_minutes`, the same in all processes

    # ------------------------------------------------------------------ the run

    def run(self) -> SASPipeline:
        """Train until the configured step, a signal, or the time limit; returns the pipeline with the averaged weights."""
        started = time.monotonic()
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"out {self.out} cannot be made ({error.strerror}); choose a folder that can be written"
            ) from error
        with lock_run(self.out) if self.main else nullcontext(), self._signals():
            checkpoint = None if self._restart else latest_checkpoint(self.checkpoints)
            if not agree(self.accelerator, checkpoint.step if checkpoint else -1):
                raise LaunchError(
                    f"out {self.out} must be one folder for all processes, got folders with different checkpoints: choose one that all machines share"
                )
            if checkpoint:
                self._check_same_run(checkpoint)
            self._fresh = checkpoint is None
            if self.main:
                put_back(self.out / "pipeline")
            self._build()
            if self.main and (self._restart or (checkpoint is None and self.has_pipeline)):
                self._set_aside()  # also what is left of a run whose checkpoints were deleted
            self.accelerator.wait_for_everyone()
            if checkpoint:
                self._restore(checkpoint)
                checkpoint.tensors.clear()  # else they would stay in memory to the end
                logger.info("resuming at step %d from %s", self.step, checkpoint.path)
            self._write_config()
            tracking = self._start_tracking(checkpoint)
            try:
                with self._reading() as self._batches:
                    self._loop(started, tracking)
            except Exception:
                self._save_before_leaving(tracking)
                raise
            finally:
                if tracking:
                    tracking.close()
        self.accelerator.wait_for_everyone()
        return self._pipeline()

    def _loop(self, started: float, tracking: Tracking | None) -> None:
        training, cadence = self.config.training, self.config.logging
        bar = tqdm(
            total=training.steps,
            initial=self.step,
            unit="step",
            disable=not (self.main and self.progress),
            dynamic_ncols=True,
        )
        if self._validation_due():  # told to leave there, the run left it to be done now
            self._validate(tracking)
            self._save(tracking)
        seen, since = 0, time.monotonic()
        while self.step < training.steps:
            losses, norm = self._train_step(self.step)
            self.step += 1
            self._whole = True
            seen += training.batch_size
            # Half precision skips steps whose gradient overflows; those have no norm that could be averaged or stored.
            self._gather_window({**losses, **({"grad_norm": norm} if math.isfinite(norm) else {"skipped": 1.0})})
            bar.update(1)
            if self.step % cadence.log_every == 0 or self.step == training.steps:
                speed = seen / max(time.monotonic() - since, 1e-9)
                seen, since = 0, time.monotonic()
                values = self._empty_window()
                bar.set_postfix(loss=f"{values['loss']:.4f}", images_per_s=f"{speed:.1f}")
                if tracking:
                    tracking.write(
                        self.step, {**values, "lr": self._learning_rate(self.step - 1), "images_per_second": speed}
                    )
            stopping = self._should_stop(started)
            if self._validation_due() and not self._told_to_leave:
                self._save(tracking)  # a kill in the middle of a long validation costs no step
                self._validate(tracking)
                since, seen = time.monotonic(), 0
            if stopping or self.step % cadence.checkpoint_every == 0 or self.step == training.steps:
                self._save(tracking)
            if stopping:
                break
        bar.close()
        if self._told_to_leave:
            return  # told to leave: the checkpoint is written, and a validation would keep others waiting
        (no_pipeline,) = self._summed(float(self.main and not self.has_pipeline))
        if no_pipeline or (self.max_minutes is not None and self.validated != self.step):
            self._validate(tracking)
            self._save(tracking)

    @property
    def has_pipeline(self) -> bool:
        """Whether there are weights to sample from, which the first validation writes."""
        return (self.out / "pipeline" / "model_index.json").exists()

    def _validation_due(self) -> bool:
        at_its_step = self.step % self.config.logging.validate_every == 0 or self.step == self.config.training.steps
        return self.step > 0 and at_its_step and self.validated != self.step

    def _reading(self) -> AbstractContextManager[Iterator[SceneBatch]]:
        """This process's micro-batches from the present step to the last, in their order."""
        training = self.config.training
        parts = _split(self.positions, training.micro_batch)
        places = ((step, part) for step in range(self.step, training.steps) for part in parts)
        gpu = self.accelerator.device.type == "cuda"
        return read_ahead(self.source, places, workers=self.config.data.workers, pin_memory=gpu)

    def _train_step(self, step: int) -> tuple[dict[str, float], float]:
        """One optimizer step; returns the mean of each loss over the items of the global batch, and the gradient's norm."""
        training = self.config.training
        torch.manual_seed(
            derive_seed(training.seed, "step", step)
        )  # nothing should draw from it, but what might is repeatable
        share_from_first(self.accelerator, self._statistics)
        self.optimizer.zero_grad(set_to_none=True)
        parts = _split(self.positions, training.micro_batch)
        totals: dict[str, torch.Tensor] = {}
        judged: list[tuple[torch.Tensor, torch.Tensor, tuple[str, ...], range]] = []
        device = self.accelerator.device
        wide = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        for number, positions in enumerate(parts):
            batch = next(self._batches).to(
                device, non_blocking=device.type == "cuda"
            )  # elsewhere the source may be gone too soon
            last = number == len(parts) - 1
            keys = Keys(training.seed, step, tuple(positions))
            with nullcontext() if last else self.accelerator.no_sync(self.losses):
                losses = self.losses(batch, keys)
                self.accelerator.backward(losses["loss"].sum() / training.batch_size)
            judged.append((losses["loss"].detach(), batch.item_counts, batch.ids, positions))
            for name, value in losses.items():
                totals[name] = totals.get(name, torch.zeros((), device=value.device)) + value.detach().to(wide).sum()
            totals["items"] = totals.get("items", torch.zeros((), device=batch.image.device)) + len(losses["loss"])
        names = list(totals)
        summed = sum_over_processes(self.accelerator, torch.stack([totals[n].to(wide) for n in names]))
        sums = dict(zip(names, summed.tolist(), strict=True))  # at once: each look at a GPU's numbers waits for it
        if not math.isfinite(sums["loss"]):
            layers = self.config.data.layers
            self._refuse("loss", step, [name for part in judged for name in _not_finite(*part, layers)])
        norm = self._scaled_norm(sums["items"])
        if not math.isfinite(norm) and self.accelerator.scaler is None:
            self._refuse("gradient", step, [])
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(step) * group.get("factor", 1.0)  # runs of before have none
        self._whole = False
        self.optimizer.step()
        self.ema.step(self.model.parameters())
        return {name: sums[name] / sums["items"] for name in names if name != "items"}, norm

    def _scaled_norm(self, items: float) -> float:
        """Turn the summed gradient into the mean over the global batch's items, and clip it; returns its norm before."""
        self.accelerator.unscale_gradients(self.optimizer)
        factor = self.accelerator.num_processes * self.config.training.batch_size / items
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        return float(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.training.max_grad_norm or math.inf))

    def _refuse(self, what: str, step: int, suspects: list[str]) -> None:
        last = latest_checkpoint(self.checkpoints)
        raise NonFiniteError(
            f"{what} is not finite at step {step}, items {', '.join(suspects) or 'of another process, or all of them'}; the weights were "
            f"not changed; last checkpoint before: {last.path if last else 'none'}. Check these items, or begin another run with a lower "
            "training.learning_rate (another --out; --init-from takes the weights of this one, if it has saved any)"
        )

    # ------------------------------------------------------------------ building and state

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"

    def _set_aside(self) -> None:
        """Out of the way with what an earlier run left here."""
        set_aside_checkpoints(self.checkpoints)
        for name in ("metrics.jsonl", "samples", "pipeline"):
            if (self.out / name).exists():
                set_aside(self.out / name)

    def _build(self) -> None:
        config, device = self.config, self.accelerator.device
        self.model = build_model(config, pretrained=self._fresh and self._init_from is None)
        if self._fresh and self._init_from is not None:
            own = build_pipeline(config, self.model)
            self._calibration = copy_weights(own, self._init_from, pretrained=config.model.pretrained)
        if config.model.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        freeze_untaught(self.model, config)
        self.model.to(device, memory_format=torch.channels_last)
        self._statistics = running_statistics(self.model)
        self.ema = EMAModel(self.model.parameters(), decay=config.training.ema_decay)
        self.ema.to(device)
        training = config.training
        optimizer = make_optimizer(
            self.model,
            training.optimizer,
            learning_rate=training.learning_rate,
            weight_decay=training.weight_decay,
            encoder_rate=training.encoder_rate,
            half=training.precision == "bf16",
        )
        if config.diffusion.rollout and training.sample_weights == "ema":
            averaged_model = build_model(config).to(device, memory_format=torch.channels_last)
            self.averaged = averaged_model.eval().requires_grad_(False)
            self._share_averages()
        network: Any = self.model
        averaged: Any = self.averaged
        if training.compile:
            network, averaged = _compiled(network), None if averaged is None else _compiled(averaged)
        losses = _Losses(network, build_objective(config), averaged)
        self.losses, self.optimizer = self.accelerator.prepare(losses, optimizer)
        self.source = build_source(config, device=device)
        # Scenes on disk are read now: a picture that is missing is told before the first step and not at the first validation.
        self._validation_batch: SceneBatch | None = (
            validation_batch(config) if self.main and config.data.scenes else None
        )

    def _share_averages(self) -> None:
        """Let `averaged` hold the moving averages themselves, so that there is nothing to copy after each step."""
        if self.averaged is None:
            return
        for own, average in zip(self.averaged.parameters(), self.ema.shadow_params, strict=True):
            own.data = average.data
        for shared, buffer in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
            shared.data = buffer.data

    def _named(self) -> list[str]:
        return [name for name, _ in self.model.named_parameters()]

    def _save_before_leaving(self, tracking: Tracking | None) -> None:
        """Keep the steps made when an error ends the run, unless it struck while the weights were changed. The others may be gone already."""
        kept = (*self.model.state_dict().values(), *self.ema.shadow_params)
        if not self._whole or not all(torch.isfinite(value).all() for value in kept if value.is_floating_point()):
            return
        # A forward pass has changed the running statistics of an encoder that has them; the step could not be made again as it was.
        if self.main and self.step > self._saved_step and not self._statistics:
            try:
                self._write_checkpoint(tracking)
            except Exception as error:  # the disk may be full, or the GPU gone, and what ended the run is to be told
                logger.warning("the steps since the last checkpoint could not be kept: %s", error)
            else:
                logger.info("the steps made are kept: checkpoint of step %d", self.step)

    def _save(self, tracking: Tracking | None) -> None:
        self._write_checkpoint(tracking)
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self, tracking: Tracking | None) -> None:
        if self.main:
            optimizer, meta = optimizer_to_tensors(self.optimizer.state_dict())
            scaler = self.accelerator.scaler
            save_checkpoint(
                self.checkpoints,
                step=self.step,
                tensors={
                    "model": dict(self.model.state_dict()),
                    "ema": dict(zip(self._named(), self.ema.shadow_params, strict=True)),
                    "optimizer": optimizer,
                },
                state={
                    "config": self.config.model_dump(mode="json"),
                    "config_sha256": config_hash(self.config),
                    "optimizer": meta,
                    "ema_steps": self.ema.optimization_step,
                    "best": self.best if math.isfinite(self.best) else None,
                    "validated": self.validated,
                    "window": self._window,
                    "scaler": scaler.state_dict() if scaler else None,
                    "calibration": list(self._calibration),
                    "tracking": tracking.state if tracking else {},
                    "data": fingerprint(self.source),
                    "versions": {"torch": torch.__version__, "numpy": np.__version__},
                },
                keep=self.config.logging.keep_checkpoints,
            )
        self._saved_step = self.step

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self.model.load_state_dict(checkpoint.tensors["model"])
        for name, average in zip(self._named(), self.ema.shadow_params, strict=True):
            average.copy_(checkpoint.tensors["ema"][name])  # into its own memory layout, by which convolutions round
        self.ema.optimization_step = state["ema_steps"]
        self.optimizer.load_state_dict(optimizer_from_tensors(checkpoint.tensors["optimizer"], state["optimizer"]))
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = self._saved_step = checkpoint.step
        self.best = -math.inf if state["best"] is None else state["best"]
        self.validated = state.get("validated", checkpoint.step)  # runs of before validated first
        before, now = state["config"].get("logging", {}), self.config.logging.model_dump(mode="json")
        if any(before.get(name, now[name]) != now[name] for name in HOW_VALIDATED):
            logger.info("validation is measured otherwise than before: the best score so far is forgotten")
            self.best = -math.inf
        self._window = dict(state["window"])
        self._calibration = tuple(state.get("calibration", (1.0, 0.0)))  # runs of before have none
        if self.main and (was := state.get("data")) is not None and was != (found := fingerprint(self.source)):
            logger.warning(
                "the data have changed since the checkpoint (%s then, %s now): the run goes on with what is there, which is not what it "
                "would have seen",
                was,
                found,
            )

    def _check_same_run(self, checkpoint: Checkpoint) -> None:
        # A run that was begun before a field was there had its default.
        own = Config().model_dump(mode="json")
        before = {section: {**own.get(section, {}), **fields} for section, fields in checkpoint.state["config"].items()}
        changed = changed_fields(before, self.config.model_dump(mode="json"))
        refused = {name: pair for name, pair in changed.items() if not name.startswith(MAY_CHANGE)}
        if refused:
            listing = ", ".join(f"{name}: {old} -> {new}" for name, (old, new) in refused.items())
            raise InputError(
                f"{self.out} holds a run with another configuration ({listing}); "
                "set the fields back, choose another --out, or pass --restart to begin anew"
            )

    def _write_config(self) -> None:
        if self.main:
            text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
            atomic_write_bytes(self.out / "config.yaml", text.encode())

    def _start_tracking(self, checkpoint: Checkpoint | None) -> Tracking | None:
        if not self.main:
            return None
        cadence = self.config.logging
        return Tracking(
            self.out,
            trackers=cadence.trackers,
            project=cadence.project,
            config=self.config.model_dump(mode="json"),
            step=self.step,
            state=checkpoint.state["tracking"] if checkpoint else {},
            validated=self.validated == self.step,
        )

    # ------------------------------------------------------------------ validation

    def _pipeline(self) -> SASPipeline:
        """A pipeline with a copy of the weights to sample from (averaged ones unless the configuration says raw)."""
        model = build_model(self.config).to(self.accelerator.device, memory_format=torch.channels_last)
        model.load_state_dict(self.model.state_dict())
        if self.config.training.sample_weights == "ema":
            self.ema.copy_to(model.parameters())
        model.eval()
        pipe = build_pipeline(self.config, model, model_id=self.out.name)
        if pipe.config.stop_head:
            pipe.register_to_config(stop_scale=self._calibration[0], stop_shift=self._calibration[1])
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _validate(self, tracking: Tracking | None) -> None:
        """Score the weights on held-out scenes; keep them as DIR/pipeline if they are the best so far."""
        if self.main:
            cadence, sampling = self.config.logging, self.config.sampling
            if self._validation_batch is None:
                self._validation_batch = validation_batch(self.config)
            pipe = self._pipeline()
            if pipe.config.stop_head:
                self._calibration = calibrate_stop(pipe, self._validation_batch) or self._calibration
                pipe.register_to_config(stop_scale=self._calibration[0], stop_shift=self._calibration[1])
            scores = validate(
                pipe,
                self._validation_batch,
                members=cadence.validation_members or sampling.members,
                steps=cadence.validation_steps or sampling.steps,
            )
            logger.info("step %d: %s", self.step, {name: round(value, 4) for name, value in scores.to_dict().items()})
            picture = sample_grid(self._validation_batch, scores)
            _save_picture(self.out / "samples" / f"step-{self.step:08d}.png", picture)
            if tracking:
                tracking.write(self.step, scores.to_dict())
                tracking.write_picture(self.step, "samples", picture)
            if scores.score >= self.best or not self.has_pipeline:  # of equals the one that has seen more
                self.best = scores.score
                pipe.save_pretrained(self.out / "pipeline", saved_weights=cadence.saved_weights)
        self.validated = self.step
        self.accelerator.wait_for_everyone()

    # ------------------------------------------------------------------ small parts

    def _learning_rate(self, step: int) -> float:
        """Learning rate of a step: a function of it, so that there is no scheduler state to lose; and of the time used, if it is to be."""
        training = self.config.training
        return learning_rate(step, training, time_used=self._time_used if training.anneal_over == "minutes" else 0.0)

    def _gather_window(self, values: dict[str, float]) -> None:
        for name, value in {**values, "steps": 1.0}.items():
            self._window[name] = self._window.get(name, 0.0) + value

    def _empty_window(self) -> dict[str, float]:
        """Means since the last line of the log."""
        count = self._window.pop("steps")
        with_norm = max(1.0, count - self._window.get("skipped", 0.0))
        values = {name: total / (with_norm if name == "grad_norm" else count) for name, total in self._window.items()}
        self._window = {}
        return values

    def _should_stop(self, started: float) -> bool:
        """True on all processes as soon as one of them was told to stop or ran out of time."""
        used = 0.0 if self.max_minutes is None else (time.monotonic() - started) / (60 * self.max_minutes)
        told = self._stop_signal is not None
        # The main process's clock counts for all: their learning rates must be one number.
        self._time_used, leave = self._summed(used if self.main else 0.0, float(told))
        self._told_to_leave = leave > 0
        return self._time_used > 1 or self._told_to_leave

    def _summed(self, *here: float) -> list[float]:
        """Each number's sum over all processes."""
        mine = torch.tensor(here, dtype=torch.float32, device=self.accelerator.device)
        return sum_over_processes(self.accelerator, mine).tolist()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGTERM, SIGINT or SIGUSR1 finishes the step, saves and leaves; one after `ECHO` seconds ends at once. Where a signal goes
        to a whole group of processes, a launcher among them passes it on, so that it comes twice."""
        first = 0.0

        def handle(number: int, frame: FrameType | None) -> None:
            nonlocal first
            if self._stop_signal is None:
                self._stop_signal, first = number, time.monotonic()
            elif time.monotonic() - first > ECHO:
                os._exit(128 + number)

        handled = [signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
        try:
            before: dict[int, Any] = {number: signal.signal(number, handle) for number in handled}
        except ValueError:  # not in the main thread, as in a notebook's helper: signals are somebody else's
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def learning_rate(step: int, training: TrainingSettings, *, time_used: float = 0.0) -> float:
    """Warm-up, then constant, cosine to zero, or linear to zero, over the steps or a share of time in [0, 1], whichever is farther."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    done = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    shape: dict[str, Callable[[float], float]] = {
        "constant": lambda x: 1.0,
        "linear": lambda x: 1 - x,
        "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
    }
    return training.learning_rate * shape[training.schedule](min(max(done, time_used), 1.0))


def sample_grid(batch: SceneBatch, scores: Validation, *, count: int = 8) -> np.ndarray:
    """Pictures of a validation: each scene with its predicted layers, uint8 (H, W, 3)."""
    pictures, captions = [], []
    images = ((batch.image + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    for b in range(min(count, len(batch))):
        image = np.asarray(images[b].repeat(3, axis=0).repeat(3, axis=1))
        drawn, colors = image, layer_colors(len(scores.predictions[b]))
        for k, mask in enumerate(scores.predictions[b]):
            large = np.asarray(Image.fromarray(mask).resize(image.shape[1::-1], Image.Resampling.NEAREST))
            drawn = tint(drawn, large, color=colors[k], alpha=0.3)
            drawn = tint(drawn, outline(large), color=colors[k], alpha=1.0)
        pictures += [image, drawn]
        captions += [f"scene {b}", f"{len(scores.predictions[b])} of {int(batch.layer_counts[b])} layers"]
    return image_grid(pictures, columns=4, captions=captions)


def _split(positions: range, most: int | None) -> list[range]:
    size = min(len(positions), most or len(positions))
    return [positions[start : start + size] for start in range(0, len(positions), size)]


def _not_finite(
    losses: torch.Tensor,
    item_counts: torch.Tensor,
    ids: tuple[str, ...],
    positions: range,
    layers: Literal["all"] | int,
) -> list[str]:
    """Names of the pictures of a micro-batch of which a loss is not finite. losses: (M,), one an item; the others, one a picture."""
    bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
    items_a_picture = item_counts.tolist() if layers == "all" else [layers] * len(ids)
    owner = [b for b, count in enumerate(items_a_picture) for _ in range(count)]
    if bad and len(owner) != len(losses):
        return list(ids)
    return sorted({f"{ids[owner[m]]} (position {positions[owner[m]]})" for m in bad})


def _compiled(model: Any) -> Any:
    """A network with both entrances compiled: `encode`, which a module's compilation leaves out, and `forward`."""
    model.encode = torch.compile(model.encode)
    return torch.compile(model)


def _save_picture(path: Path, picture: np.ndarray) -> None:
    """A picture to look at: that it cannot be written (a full disk, say) must not stop a run."""
    try:
        write_png(path, picture)
    except InputError as error:
        logger.warning("%s", error)
