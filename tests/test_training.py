"""The trainer in one process: what a step computes, what a run writes, and what it refuses.

The golden losses are written anew by `python tests/test_training.py`, after a change that is meant to change them.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import read_metrics, tiny_config, write_scenes

from sas.checkpoint import latest_checkpoint
from sas.config import Config, TrainingSettings, load_config
from sas.factory import build_model, build_objective, build_source, validation_batch
from sas.io import InputError
from sas.manifest import CheckpointError
from sas.pipeline import SASPipeline
from sas.run_lock import lock_run
from sas.scene import Scene, SceneBatch, collate
from sas.seeding import Keys
from sas.storage import restored, shrunk
from sas.training import NonFiniteError, Trainer, _split, learning_rate, sample_grid
from sas.validation import Validation

GOLDEN = Path(__file__).parent / "golden" / "loss.json"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes")


@pytest.fixture(scope="module")
def finished(scenes: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; tests that go on with it take a copy."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    train(tiny_config(data_scenes=scenes), out)
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "finished"))


def train(config: Config, out: Path, **options: Any) -> Trainer:
    trainer = Trainer(config, out, cpu=True, progress=False, **options)
    trainer.run()
    return trainer


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


# ---------------------------------------------------------------------- parts


def test_learning_rate_by_hand() -> None:
    def rate(step: int, schedule: Any) -> float:
        settings = TrainingSettings(learning_rate=0.1, warmup_steps=4, steps=24, schedule=schedule)
        return learning_rate(step, settings)

    for schedule in ("constant", "linear", "cosine"):
        warmup = [rate(step, schedule) for step in range(4)]
        assert warmup == pytest.approx([0.025, 0.05, 0.075, 0.1])
        assert rate(4, schedule) == pytest.approx(0.1)
    assert [rate(step, "constant") for step in (14, 23, 99)] == pytest.approx([0.1] * 3)
    assert [rate(step, "linear") for step in (9, 14, 24, 99)] == pytest.approx([0.075, 0.05, 0, 0])
    assert [rate(step, "cosine") for step in (14, 24, 99)] == pytest.approx([0.05, 0, 0])
    assert rate(9, "cosine") == pytest.approx(0.05 * (1 + math.sqrt(0.5)))


def test_learning_rate_without_or_with_nothing_but_warm_up() -> None:
    assert learning_rate(0, TrainingSettings(learning_rate=0.1, warmup_steps=0, steps=1)) == pytest.approx(0.1)
    assert learning_rate(2, TrainingSettings(learning_rate=0.1, warmup_steps=10, steps=5)) == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("count", "most", "parts"),
    [(4, None, [4]), (4, 1, [1, 1, 1, 1]), (4, 3, [3, 1]), (4, 9, [4]), (1, None, [1])],
)
def test_micro_batches_cover_the_positions(count: int, most: int | None, parts: list[int]) -> None:
    positions = range(8, 8 + count)
    split = _split(positions, most)
    assert [len(part) for part in split] == parts
    assert [position for part in split for position in part] == list(positions)


def test_told_to_leave_where_a_validation_is_due_saves_first(
    scenes: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validation is made up for by the next start, and everything is as if nobody had disturbed."""
    config, out = tiny_config(data_scenes=scenes), tmp_path / "run"
    trainer = Trainer(config, out, cpu=True, progress=False)
    validated: list[int] = []
    step, check = Trainer._train_step, Trainer._validate

    def train_step(self: Trainer, number: int) -> Any:
        if self is trainer and number == 3:
            self._stop_signal = signal.SIGTERM
        return step(self, number)

    def validate(self: Trainer, tracking: Any) -> None:
        validated.append(self.step)
        check(self, tracking)

    monkeypatch.setattr(Trainer, "_train_step", train_step)
    monkeypatch.setattr(Trainer, "_validate", validate)
    trainer.run()
    checkpoint = latest_checkpoint(out / "checkpoints")
    assert checkpoint is not None and checkpoint.step == 4 and validated == []
    train(config, out)
    assert validated == [4, 8]
    assert read_metrics(out) == read_metrics(finished)
    train(config, out, max_minutes=60)
    assert validated == [4, 8], "what is finished is not measured again"
    assert read_metrics(out) == read_metrics(finished)


def test_a_run_that_dies_while_it_validates_has_saved_its_step(
    scenes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(data_scenes=scenes, training_steps=8, logging_validate_every=4)
    whole = train(config, tmp_path / "whole")

    def killed(self: Trainer, tracking: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_validate", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run")
    checkpoint = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None and checkpoint.step == 4
    again = train(config, tmp_path / "run")
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(whole).items())
    logged = [[(line["step"], line.get("loss")) for line in read_metrics(tmp_path / name)] for name in ("whole", "run")]
    assert logged[0] == logged[1], "and nothing is logged twice"


def test_a_picture_that_cannot_be_written_does_not_stop_the_run(
    scenes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples").write_text("a file where the folder should be")
    train(tiny_config(data_scenes=scenes, training_steps=4), tmp_path / "run")
    assert read_metrics(tmp_path / "run")[-1]["step"] == 4
    assert any("cannot write" in one.getMessage() and "samples" in one.getMessage() for one in caplog.records)


def test_weights_whose_numbers_mean_something_else_are_told_of(
    finished: Path, scenes: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for change, told in ({}, False), ({"diffusion_mask_scale": 1.0, "diffusion_beta_schedule": "linear"}, True):
        caplog.clear()
        trainer = Trainer(
            tiny_config(data_scenes=scenes, training_steps=1, **change),
            tmp_path / f"run-{told}",
            init_from=finished / "pipeline",
            cpu=True,
            progress=False,
        )
        trainer._build()
        words = [one.getMessage() for one in caplog.records if "means something else in this run" in one.getMessage()]
        assert bool(words) == told
        if told:
            assert "has mask_scale 0.5 and not 1.0, beta_schedule 'squaredcos_cap_v2' and not 'linear': " in words[0]


# ---------------------------------------------------------------------- one step


def test_first_step_by_hand(scenes: str, tmp_path: Path) -> None:
    """Loss, gradient norm, AdamW and averaged weights of one step, from the parts the trainer is made of."""
    config = tiny_config(data_scenes=scenes, training_steps=1, training_weight_decay=0.1, training_max_grad_norm=0.25)
    trainer = train(config, tmp_path / "run")

    model = build_model(config).to(memory_format=torch.channels_last)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    batch = build_source(config).batch(0, range(4))
    losses = build_objective(config).loss(model, batch, Keys.span(config.training.seed, 0, 0, 4))
    losses["loss"].mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    rate = 1e-2 / 3

    line = read_metrics(tmp_path / "run")[0]
    assert line["loss"] == pytest.approx(losses["loss"].mean().item(), rel=1e-5)
    assert line["bce"] + line["dice"] == pytest.approx(line["loss"], rel=1e-6)
    assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-4) and norm > 0.25
    assert line["lr"] == pytest.approx(rate)
    for name, value in trainer.model.named_parameters():
        gradient = gradients[name] * (0.25 / norm)
        # The first step of Adam: both moments, freed of their bias, give g / |g|.
        expected = start[name] * (1 - rate * 0.1) - rate * gradient / (gradient.abs() + 1e-8)
        solid = gradient.abs() > 1e-5  # where the gradient is nearly 0, its sign is a matter of rounding
        torch.testing.assert_close(value[solid], expected[solid], rtol=1e-3, atol=1e-5)
    for shadow, (name, value) in zip(trainer.ema.shadow_params, trainer.model.named_parameters(), strict=True):
        decay = min(config.training.ema_decay, trainer.ema.cur_decay_value)
        torch.testing.assert_close(shadow, decay * start[name] + (1 - decay) * value.detach())


def test_loss_is_the_mean_over_items_not_over_pictures(scenes: str, tmp_path: Path) -> None:
    config = tiny_config(data_scenes=scenes, training_steps=1)
    batch = build_source(config).batch(0, range(4))
    objective, model, keys = build_objective(config), build_model(config), Keys.span(0, 0, 0, 4)
    with torch.no_grad():
        losses = objective.loss(model, batch, keys)["loss"]
    counts = (batch.layer_counts + 1).tolist()
    assert len(losses) == sum(counts) and len(set(counts)) > 1
    train(config, tmp_path / "run", restart=False)
    assert read_metrics(tmp_path / "run")[0]["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)


@pytest.mark.parametrize("layers", ["all", 2])
def test_micro_batches_give_the_losses_of_the_whole(scenes: str, tmp_path: Path, layers: Any) -> None:
    """Accumulation over 1, 2, 3 + 1 and all pictures at once: only the order of the sums differs."""
    curves = {}
    for micro in (None, 1, 2, 3):
        config = tiny_config(
            data_scenes=scenes, data_layers=layers, training_micro_batch=micro, logging_validate_every=99
        )
        train(config, tmp_path / f"{micro}")
        curves[micro] = [(r["loss"], r["grad_norm"]) for r in read_metrics(tmp_path / f"{micro}") if "loss" in r]
        assert len(curves[micro]) == 8
    for micro in (1, 2, 3):
        np.testing.assert_allclose(curves[micro], curves[None], rtol=1e-4)


# ---------------------------------------------------------------------- what a run writes


def test_files_of_a_run(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()} - {".lock"}
    assert names == {"checkpoints", "config.yaml", "metrics.jsonl", "pipeline", "samples"}
    checkpoints = {path.name for path in (finished / "checkpoints").iterdir()}
    assert checkpoints == {"step-00000006", "step-00000008", "latest"}
    assert {path.name for path in (finished / "samples").iterdir()} == {"step-00000004.png", "step-00000008.png"}


def test_written_configuration_is_the_run(finished: Path, scenes: str) -> None:
    assert load_config(finished / "config.yaml") == tiny_config(data_scenes=scenes)


def test_metrics_lines(finished: Path) -> None:
    lines = read_metrics(finished)
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [line["step"] for line in lines if "val/score" in line] == [4, 8]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    text = (finished / "metrics.jsonl").read_text()
    speeds = [json.loads(line).get("images_per_second", 1) for line in text.splitlines()]
    assert min(speeds) > 0


def test_log_lines_are_means_since_the_last(scenes: str, finished: Path, tmp_path: Path) -> None:
    train(tiny_config(data_scenes=scenes, logging_log_every=3), tmp_path / "run")
    every = [line for line in read_metrics(finished) if "loss" in line]
    third = [line for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert [line["step"] for line in third] == [3, 6, 8]
    for line, window in zip(third, (every[0:3], every[3:6], every[6:8]), strict=True):
        for name in ("loss", "bce", "dice", "grad_norm"):
            assert line[name] == pytest.approx(np.mean([one[name] for one in window]), rel=1e-12)
        assert line["lr"] == window[-1]["lr"]


def test_pipeline_holds_the_averaged_weights(scenes: str, tmp_path: Path) -> None:
    for kind in ("ema", "raw"):
        config = tiny_config(data_scenes=scenes, training_steps=2, training_sample_weights=kind)
        trainer = Trainer(config, tmp_path / kind, cpu=True, progress=False)
        returned = trainer.run()
        saved = SASPipeline.from_pretrained(tmp_path / kind)
        group = load_file(
            latest_checkpoint(trainer.checkpoints).path / f"{'ema' if kind == 'ema' else 'model'}.safetensors"
        )
        for name, value in saved.model.state_dict().items():
            assert torch.equal(value, group[name]) and torch.equal(value, returned.model.state_dict()[name])
        image = np.full((20, 30, 3), 128, dtype=np.uint8)
        saved.set_progress_bar_config(disable=True)
        assert np.array_equal(saved(image).members, returned(image).members)


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_saved_weights(kind: Any, scenes: str, tmp_path: Path) -> None:
    config = tiny_config(data_scenes=scenes, training_steps=1, logging_saved_weights=kind, model_channels=(16, 16))
    model = train(config, tmp_path / "run")._pipeline().model
    stored = load_file(next((tmp_path / "run" / "pipeline" / "model").glob("*.safetensors")))
    kinds = {torch.float16} if kind == "float16" else {torch.float16, torch.int8, torch.float32}
    assert {value.dtype for value in stored.values()} == kinds
    again = SASPipeline.from_pretrained(tmp_path / "run").model
    assert again.dtype == torch.float32
    for name, value in model.state_dict().items():
        expected = restored(shrunk({name: value}, kind))[name]
        assert torch.equal(again.state_dict()[name], expected.float())


def test_best_weights_stay(scenes: str, tmp_path: Path) -> None:
    """A worse validation keeps the pipeline of the best one, and the checkpoint remembers its score."""
    config = tiny_config(data_scenes=scenes, training_steps=2, logging_validate_every=1)
    trainer = train(config, tmp_path / "run")
    scores = [line["val/score"] for line in read_metrics(tmp_path / "run") if "val/score" in line]
    assert trainer.best == max(scores) == latest_checkpoint(trainer.checkpoints).state["best"]
    before = (tmp_path / "run" / "pipeline" / "MANIFEST.json").read_bytes()
    trainer.best = 2.0
    trainer._validate(None)
    assert (tmp_path / "run" / "pipeline" / "MANIFEST.json").read_bytes() == before and trainer.best == 2.0
    shutil.rmtree(tmp_path / "run" / "pipeline")
    trainer._validate(None)  # no pipeline at all is worse than one that scores less
    assert (tmp_path / "run" / "pipeline" / "model_index.json").exists()


def test_the_best_score_is_forgotten_with_how_it_was_measured(scenes: str, tmp_path: Path) -> None:
    config = tiny_config(data_scenes=scenes, training_steps=2)
    first = train(config, tmp_path / "run")
    same = train(tiny_config(data_scenes=scenes, training_steps=2), tmp_path / "run")
    assert same.best == first.best > -math.inf
    other = train(tiny_config(data_scenes=scenes, training_steps=2, logging_validation_members=2), tmp_path / "run")
    assert other.best == -math.inf


def test_each_scene_is_validated_on_once(scenes: str) -> None:
    many = tiny_config(data_scenes=scenes, data_validation=scenes, logging_validation_scenes=1000)
    ids = validation_batch(many).ids
    assert len(set(ids)) == len(ids) > 1
    assert (
        len(validation_batch(tiny_config(data_scenes=scenes, data_validation=scenes, logging_validation_scenes=1))) == 1
    )


@pytest.mark.parametrize("sizes", [(32, 16), (32, 64), (16, 48)])
def test_pictures_of_a_validation_are_drawn_for_any_sizes(sizes: tuple[int, int]) -> None:
    image_size, mask_size = sizes
    mask = np.zeros((1, mask_size, mask_size), dtype=bool)
    mask[0, : mask_size // 2] = True
    scene = Scene(
        image=np.zeros((image_size, image_size, 3), dtype=np.uint8), amodal_masks=np.zeros((0, image_size, image_size), dtype=bool),
        order_matrix=np.zeros((0, 0), dtype=bool),
    )  # fmt: skip
    batch = collate([scene], image_size=image_size, mask_size=mask_size)
    drawn = sample_grid(batch, SimpleNamespace(predictions=[mask]))  # type: ignore[arg-type]
    assert drawn.ndim == 3 and drawn.any()


def test_composed_scenes_and_a_reader_ahead(tmp_path: Path) -> None:
    """Scenes composed on the way: a batch made ahead in a thread changes nothing."""
    for workers in (0, 2):
        train(tiny_config(training_steps=3, data_workers=workers), tmp_path / f"{workers}")
    assert read_metrics(tmp_path / "0") == read_metrics(tmp_path / "2")


def golden_losses(folder: Path) -> list[float]:
    scenes, out = write_scenes(folder / "scenes"), folder / "run"
    config = tiny_config(data_scenes=scenes, training_steps=30, training_learning_rate=1e-3, logging_validate_every=99)
    train(config, out)
    return [line["loss"] for line in read_metrics(out) if "loss" in line]


def test_golden_losses(tmp_path: Path) -> None:
    """Thirty losses stay what they were; see the top of this file for how to write them anew."""
    expected = json.loads(GOLDEN.read_text())["loss"]
    assert len(expected) == 30 and len(set(expected)) == 30
    np.testing.assert_allclose(golden_losses(tmp_path), expected, rtol=1e-4)


# ---------------------------------------------------------------------- going on, and what may change


def test_finished_run_is_left_alone(copied: Path, scenes: str) -> None:
    before = read_metrics(copied)
    trainer = train(tiny_config(data_scenes=scenes), copied)
    assert trainer.step == 8 and read_metrics(copied) == before


def test_fields_that_may_change(copied: Path, scenes: str) -> None:
    config = tiny_config(
        data_scenes=scenes, training_steps=9, data_workers=1, logging_log_every=2, logging_keep_checkpoints=1
    )
    trainer = train(config, copied)
    assert trainer.step == 9 and [line["step"] for line in read_metrics(copied) if "loss" in line][-2:] == [8, 9]
    assert load_config(copied / "config.yaml") == config


def test_other_fields_stop_with_a_list(copied: Path, scenes: str) -> None:
    config = tiny_config(
        data_scenes=scenes, training_seed=5, data_objects=(1, 2), training_steps=9, logging_log_every=2
    )
    with pytest.raises(InputError) as caught:
        Trainer(config, copied, cpu=True, progress=False).run()
    message = str(caught.value)
    assert "data.objects: [1, 3] -> [1, 2]" in message and "training.seed: 0 -> 5" in message
    assert "--restart" in message and "steps" not in message and "log_every" not in message
    assert load_config(copied / "config.yaml").training.seed == 0  # nothing was written


def test_restart_sets_old_checkpoints_aside(copied: Path, scenes: str, finished: Path) -> None:
    config = tiny_config(data_scenes=scenes, training_seed=5)
    train(config, copied, restart=True)
    folders = sorted(path.name.split("-")[1][:8] + path.name[13:24] for path in (copied / "checkpoints").glob("step-*"))
    assert len(folders) == 4 and sum("abandoned" in path.name for path in (copied / "checkpoints").iterdir()) == 2
    lines = read_metrics(copied)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    assert lines[0]["loss"] != read_metrics(finished)[0]["loss"]
    aside = [path for path in copied.iterdir() if "abandoned" in path.name]
    assert sorted(path.name.split(".abandoned")[0] for path in aside) == ["metrics.jsonl", "pipeline", "samples"]
    kept = next(path for path in aside if path.name.startswith("pipeline"))
    assert SASPipeline.from_pretrained(kept).model_info.sha256 == (
        SASPipeline.from_pretrained(finished / "pipeline").model_info.sha256
    )


def test_a_run_whose_checkpoints_were_deleted_is_set_aside_and_not_overwritten(
    copied: Path, scenes: str, finished: Path
) -> None:
    shutil.rmtree(copied / "checkpoints")
    train(tiny_config(data_scenes=scenes), copied)
    aside = {path.name.split(".abandoned")[0]: path for path in copied.iterdir() if "abandoned" in path.name}
    assert sorted(aside) == ["metrics.jsonl", "pipeline", "samples"]
    assert aside["metrics.jsonl"].read_bytes() == (finished / "metrics.jsonl").read_bytes()
    assert SASPipeline.from_pretrained(aside["pipeline"]).model_info.sha256 == (
        SASPipeline.from_pretrained(finished / "pipeline").model_info.sha256
    )
    assert (copied / "pipeline" / "model_index.json").exists()


def test_restart_that_cannot_begin_leaves_the_old_run(copied: Path, scenes: str, tmp_path: Path) -> None:
    before = sorted(path.name for path in copied.rglob("*"))
    with pytest.raises(InputError):
        train(tiny_config(data_scenes=scenes), copied, restart=True, init_from=tmp_path / "mistyped")
    assert sorted(path.name for path in copied.rglob("*")) == before


def test_a_run_goes_on_without_the_weights_it_began_with(scenes: str, finished: Path, tmp_path: Path) -> None:
    start = Path(shutil.copytree(finished / "pipeline", tmp_path / "start"))
    train(tiny_config(data_scenes=scenes, training_steps=1), tmp_path / "run", init_from=start)
    shutil.rmtree(start)
    assert train(tiny_config(data_scenes=scenes, training_steps=2), tmp_path / "run", init_from=start).step == 2


def test_two_runs_in_one_folder_are_refused(copied: Path, scenes: str) -> None:
    with lock_run(copied), pytest.raises(CheckpointError, match="is in use by process"):
        train(tiny_config(data_scenes=scenes), copied)


def test_no_whole_checkpoint_is_not_a_fresh_start(copied: Path, scenes: str) -> None:
    for path in (copied / "checkpoints").glob("step-*"):
        (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        train(tiny_config(data_scenes=scenes), copied)


def test_damaged_newest_checkpoint_falls_back(
    copied: Path, scenes: str, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = copied / "checkpoints" / "step-00000008" / "ema.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(bytes(content))
    with caplog.at_level(logging.INFO, logger="sas"):
        train(tiny_config(data_scenes=scenes), copied)
    assert "damaged checkpoint passed over" in caplog.text and "resuming at step 6" in caplog.text
    assert read_metrics(copied) == read_metrics(finished)
    for name in ("model", "ema", "optimizer"):
        file = f"checkpoints/step-00000008/{name}.safetensors"
        assert (copied / file).read_bytes() == (finished / file).read_bytes()


# ---------------------------------------------------------------------- starting points and ends


def test_init_from_copies_the_weights(finished: Path, scenes: str, tmp_path: Path) -> None:
    trainer = Trainer(
        tiny_config(data_scenes=scenes, training_seed=9), tmp_path / "run", init_from=finished, cpu=True, progress=False
    )
    trainer._build()
    given = SASPipeline.from_pretrained(finished).model.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in trainer.model.state_dict().items())
    for shadow, value in zip(trainer.ema.shadow_params, trainer.model.parameters(), strict=True):
        assert torch.equal(shadow, value)


@pytest.mark.parametrize(
    "changes", [{"model_channels": (8, 24)}, {"model_channels": (8, 16, 16), "model_patch": 1}, {"model_blocks": 2}]
)
def test_init_from_another_architecture_is_refused(
    finished: Path, scenes: str, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = tiny_config(data_scenes=scenes, **changes)
    with pytest.raises(
        InputError, match=r"init_from .* holds another architecture \(.* and not .*; first difference: .*\); use the"
    ):
        train(config, tmp_path / "run", init_from=finished)


def test_init_from_nothing_is_refused(scenes: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must hold model_index\.json"):
        train(tiny_config(data_scenes=scenes), tmp_path / "run", init_from=tmp_path)


def test_max_minutes_stops_with_checkpoint_and_pipeline(scenes: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trainer = train(tiny_config(data_scenes=scenes, training_steps=10_000), out, max_minutes=1e-6)
    assert trainer.step == 1 and latest_checkpoint(out / "checkpoints").step == 1
    assert [line["step"] for line in read_metrics(out) if "val/score" in line] == [1]
    SASPipeline.from_pretrained(out)


def test_weights_of_a_run_that_was_stopped_come_with_max_minutes(scenes: str, tmp_path: Path) -> None:
    config, out = tiny_config(data_scenes=scenes, training_steps=10_000), tmp_path / "run"
    trainer = Trainer(config, out, cpu=True, progress=False)
    trainer._stop_signal = signal.SIGTERM
    trainer.run()
    with pytest.raises(
        InputError, match=r"found neither; this run has saved no weights yet: .* start it again with --max-minutes"
    ):
        SASPipeline.from_pretrained(out)
    train(config, out, max_minutes=1e-6)
    SASPipeline.from_pretrained(out)


@pytest.mark.parametrize("over", ["minutes", "steps"])
def test_learning_rate_falls_to_its_end_with_max_minutes(
    scenes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: str
) -> None:
    clock = itertools.count()  # one second each time somebody looks
    monkeypatch.setattr("sas.training.time.monotonic", lambda: float(next(clock)))
    changes = {"training_anneal_over": over, "training_schedule": "linear", "training_warmup_steps": 0}
    config = tiny_config(data_scenes=scenes, training_steps=10_000, logging_log_every=1, **changes)
    trainer = train(config, tmp_path / "run", max_minutes=0.5)
    rates = [line["lr"] / config.training.learning_rate for line in read_metrics(tmp_path / "run") if "lr" in line]
    assert len(rates) == trainer.step > 5 and rates[0] == 1
    assert rates == sorted(rates, reverse=True)
    assert (rates[-1] < 0.2) == (over == "minutes") and (rates[-1] > 0.99) == (over == "steps")


@pytest.mark.parametrize("minutes", [0, -1.0, float("nan")])
def test_max_minutes_must_be_positive(tmp_path: Path, minutes: float) -> None:
    with pytest.raises(InputError, match=f"max_minutes must be positive, got {minutes}; leave it out"):
        Trainer(tiny_config(), tmp_path, max_minutes=minutes, cpu=True)


def test_out_that_cannot_be_made(scenes: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"out .*file/run cannot be made \(Not a directory\)"):
        train(tiny_config(data_scenes=scenes), tmp_path / "file" / "run")


def test_signal_handlers_are_given_back(scenes: str, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    train(tiny_config(data_scenes=scenes, training_steps=1), tmp_path / "run")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


# ---------------------------------------------------------------------- what is not finite


class Poisoned:
    """A source whose picture at one place of one step is NaN."""

    def __init__(self, source: Any, step: int, position: int) -> None:
        self.source, self.step, self.position = source, step, position

    def batch(self, step: int, positions: Any) -> SceneBatch:
        batch = self.source.batch(step, positions)
        if step == self.step and self.position in positions:
            batch.image[list(positions).index(self.position)] = float("nan")
        return batch


class Watched(Trainer):
    """Keeps the weights and the optimizer's state from before each step."""

    poison: tuple[int, int] | None = None

    def _build(self) -> None:
        super()._build()
        if self.poison:
            self.source = Poisoned(self.source, *self.poison)

    def _train_step(self, step: int) -> tuple[dict[str, float], float]:
        self.before = weights(self)
        self.shadow = [value.clone() for value in self.ema.shadow_params]
        return super()._train_step(step)


def refused(trainer: Watched) -> str:
    with pytest.raises(NonFiniteError) as caught:
        trainer.run()
    assert all(
        torch.equal(value.nan_to_num(), trainer.before[name].nan_to_num()) for name, value in weights(trainer).items()
    )
    assert all(torch.equal(a, b) for a, b in zip(trainer.shadow, trainer.ema.shadow_params, strict=True))
    return str(caught.value)


@pytest.mark.parametrize(("layers", "micro"), [("all", None), ("all", 1), (2, None), (2, 3)])
def test_a_bad_picture_stops_the_run(scenes: str, tmp_path: Path, layers: Any, micro: int | None) -> None:
    config = tiny_config(data_scenes=scenes, data_layers=layers, training_micro_batch=micro)
    trainer = Watched(config, tmp_path / "run", cpu=True, progress=False)
    trainer.poison = (4, 2)
    message = refused(trainer)
    name = build_source(config).batch(4, [2]).ids[0]
    assert f"loss is not finite at step 4, items {name} (position 2); the weights were not changed" in message
    assert f"last checkpoint before: {tmp_path / 'run' / 'checkpoints' / 'step-00000004'}" in message
    assert "Check these items, or begin another run with a lower training.learning_rate" in message
    assert latest_checkpoint(tmp_path / "run" / "checkpoints").step == 4
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "loss" in line] == [1, 2, 3, 4]


@pytest.mark.parametrize("error", [InputError("image 7 cannot be used: image-missing"), RuntimeError("out of memory")])
def test_an_error_between_steps_costs_no_step(tmp_path: Path, error: Exception) -> None:
    """Steps made since the last checkpoint are kept, and the run goes on from them once the picture is back."""
    scenes = write_scenes(tmp_path / "scenes")
    config = tiny_config(
        data_scenes=scenes, data_validation=scenes, logging_checkpoint_every=100, logging_validate_every=8
    )
    whole = train(config, tmp_path / "whole")

    class Losing(Trainer):
        def _train_step(self, step: int) -> tuple[dict[str, float], float]:
            if step == 3:
                raise error
            return super()._train_step(step)

    with pytest.raises(type(error), match=str(error)):
        Losing(config, tmp_path / "run", cpu=True, progress=False).run()
    assert latest_checkpoint(tmp_path / "run" / "checkpoints").step == 3
    again = train(config, tmp_path / "run")
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(whole).items())


def test_weights_that_are_not_finite_replace_no_checkpoint(scenes: str, tmp_path: Path) -> None:
    class Struck(Trainer):
        def _train_step(self, step: int) -> tuple[dict[str, float], float]:
            if step == 3:
                with torch.no_grad():
                    next(self.model.parameters())[0, 0] = math.nan
            return super()._train_step(step)

    config = tiny_config(
        data_scenes=scenes, logging_checkpoint_every=2, logging_validate_every=100, logging_keep_checkpoints=1
    )
    with pytest.raises(NonFiniteError):
        Struck(config, tmp_path / "run", cpu=True, progress=False).run()
    assert latest_checkpoint(tmp_path / "run" / "checkpoints").step == 2


def test_a_damaged_checkpoint_does_not_hide_what_ended_the_run(scenes: str, tmp_path: Path) -> None:
    class Losing(Trainer):
        def _train_step(self, step: int) -> tuple[dict[str, float], float]:
            if step == 3:
                (file,) = (tmp_path / "run" / "checkpoints").glob("step-*/MANIFEST.json")
                file.write_text("{}")
                raise InputError("image 7 cannot be used")
            return super()._train_step(step)

    config = tiny_config(data_scenes=scenes, logging_checkpoint_every=2, logging_validate_every=100)
    with pytest.raises(InputError, match="image 7 cannot be used"):
        Losing(config, tmp_path / "run", cpu=True, progress=False).run()
    assert latest_checkpoint(tmp_path / "run" / "checkpoints").step == 3


def test_an_error_while_the_weights_change_keeps_none_of_it(scenes: str, tmp_path: Path) -> None:
    class Torn(Trainer):
        def _build(self) -> None:
            super()._build()
            whole = self.ema.step
            self.ema.step = lambda values: whole(values) if self.step < 4 else 1 / 0

    config = tiny_config(data_scenes=scenes, logging_checkpoint_every=3, logging_validate_every=100)
    with pytest.raises(ZeroDivisionError):
        Torn(config, tmp_path / "run", cpu=True, progress=False).run()
    assert latest_checkpoint(tmp_path / "run" / "checkpoints").step == 3


def test_a_missing_picture_to_validate_on_is_told_before_the_first_step(scenes: str, tmp_path: Path) -> None:
    held = Path(write_scenes(tmp_path / "held"))
    pictures = sorted(path for path in held.rglob("*") if path.suffix in (".png", ".jpg"))
    pictures[-1].unlink()
    config = tiny_config(data_scenes=scenes, data_validation=str(held), logging_validation_scenes=1000)
    with pytest.raises(InputError, match=re.escape(pictures[-1].name)):
        train(config, tmp_path / "run")
    assert not read_metrics(tmp_path / "run") if (tmp_path / "run" / "metrics.jsonl").exists() else True
    assert latest_checkpoint(tmp_path / "run" / "checkpoints") is None


def test_of_equal_scores_the_last_is_kept(scenes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = train(tiny_config(data_scenes=scenes, training_steps=2), tmp_path / "run")
    with torch.no_grad():
        for parameter in trainer.ema.shadow_params:
            parameter.add_(1e-7)
    before = (tmp_path / "run" / "pipeline" / "MANIFEST.json").read_bytes()
    monkeypatch.setattr(Validation, "score", property(lambda _: trainer.best))
    trainer._validate(None)
    assert (tmp_path / "run" / "pipeline" / "MANIFEST.json").read_bytes() != before


def test_data_that_changed_under_a_run_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scenes = write_scenes(tmp_path / "scenes")
    train(tiny_config(data_scenes=scenes, training_steps=2), tmp_path / "run")
    train(tiny_config(data_scenes=scenes, training_steps=3), tmp_path / "run")
    assert "the data have changed" not in caplog.text
    shutil.rmtree(tmp_path / "scenes")
    write_scenes(tmp_path / "scenes", 4)
    train(tiny_config(data_scenes=scenes, training_steps=4), tmp_path / "run")
    assert re.search(
        r"changed since the checkpoint \(6 scenes of hash \w{12} then, 4 scenes of hash \w{12} now\)", caplog.text
    )


def test_a_run_that_goes_on_does_not_keep_its_checkpoint_in_memory(
    copied: Path, scenes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr("sas.training.latest_checkpoint", lambda path: read.append(latest_checkpoint(path)) or read[-1])
    train(tiny_config(data_scenes=scenes, training_steps=9), copied)
    assert read[0] is not None and not read[0].tensors and read[0].state


def test_a_bad_weight_stops_the_run_before_the_first_step(scenes: str, tmp_path: Path) -> None:
    class Broken(Watched):
        def _build(self) -> None:
            super()._build()
            with torch.no_grad():
                next(self.model.parameters())[0, 0] = math.inf

    message = refused(Broken(tiny_config(data_scenes=scenes), tmp_path / "run", cpu=True, progress=False))
    assert "loss is not finite at step 0" in message and "last checkpoint before: none" in message
    assert all(f"(position {position})" in message for position in range(4))


def test_a_bad_gradient_stops_the_run(scenes: str, tmp_path: Path) -> None:
    class Broken(Watched):
        def _build(self) -> None:
            super()._build()
            next(self.model.parameters()).register_hook(lambda gradient: gradient * math.nan)

    message = refused(Broken(tiny_config(data_scenes=scenes), tmp_path / "run", cpu=True, progress=False))
    assert message.startswith("gradient is not finite at step 0") and "weights were not changed" in message


def test_steps_that_half_precision_skips_can_be_logged_and_stored(scenes: str, tmp_path: Path) -> None:
    """With float16 the scaler skips a step whose gradient overflows: its norm is infinite, and that is no error."""

    class Overflowing(Trainer):
        def _train_step(self, step: int) -> tuple[dict[str, float], float]:
            losses, norm = super()._train_step(step)
            return losses, math.inf if step == 0 else norm

    config = tiny_config(data_scenes=scenes, training_steps=4, logging_log_every=4, logging_checkpoint_every=1)
    Overflowing(config, tmp_path / "run", cpu=True, progress=False).run()
    line = read_metrics(tmp_path / "run")[0]
    assert line["skipped"] == 0.25 and math.isfinite(line["grad_norm"])


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        losses = golden_losses(Path(folder))
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({"written_by": "python tests/test_training.py", "loss": losses}, indent=1) + "\n")
    sys.stdout.write(f"{len(losses)} losses -> {GOLDEN}\n")
