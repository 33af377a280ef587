"""The README's code blocks, the notebook's cells and the documents' links work as printed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from sas.__main__ import main
from sas.config import load_config
from sas.factory import build_model, build_pipeline
from sas.growing import copy_weights
from sas.models import SplitDenoiser
from sas.pipeline import SASPipeline
from sas.pretrained import DEFAULT_WEIGHTS

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
NEEDS_TRAINING_OR_DATA = ("train", "accelerate", "torchrun")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.S)


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture()
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a photo, cutouts of one's own and the configurations, as a reader of the README would have."""
    with Image.open(ROOT / "sas" / "demo_pictures" / "single.png") as picture:
        picture.convert("RGB").save(tmp_path / "photo.jpg")
    (tmp_path / "my_cutouts").mkdir()
    for number in range(3):
        cutout = np.zeros((24, 24, 4), dtype=np.uint8)
        cutout[2:22, 4:20] = (200, 40 * number, 90, 255)
        Image.fromarray(cutout).save(tmp_path / "my_cutouts" / f"thing{number}.png")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    named = [line.split()[1] for line in commands() if line.startswith("make ")]
    assert named == ["demo", "test"]
    assert set(named) <= set(targets)


def test_the_encoder_of_the_training_guide_fits_the_default_network() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), flags=re.S)
    exec(block, {})
    features = SplitDenoiser(encoder="my_encoder").encode(torch.zeros(1, 3, 128, 128))
    assert [tuple(level.shape) for level in features] == [(1, 48, 32, 32), (1, 96, 16, 16)]


@pytest.mark.slow
def test_shell_commands_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command of the README, in order: training with --dry-run, data sets with fewer scenes."""
    ran = 0
    for line in commands():
        words = shlex.split(line)
        if words[0] == "make":
            continue
        if words[0] == "accelerate":
            words = ["sas", "train", *words[3:]]
        elif words[0] == "torchrun":
            words = ["sas", "train", *words[words.index("train.py") + 1 :]]
        assert words[0] == "sas", line
        if words[1] == "train":
            words.append("--dry-run")
        if words[1] == "compose":
            words = [
                *words[: words.index("--count")],
                "--count",
                "3",
                *words[words.index("--count") + 2 :],
                "--classes",
                "1",
            ]
            words += ["--size", "64"]
        status = main(words[1:])
        captured = capsys.readouterr()
        assert status == 0, f"{line}\n{captured.err}"
        ran += 1
    assert ran >= 9
    assert (workplace / "results" / "photo" / "overview.png").exists()
    assert (workplace / "results" / "test" / "metrics.json").exists()


FROM_DEFAULT = sorted(path for path in (ROOT / "configs").glob("*.yaml") if "--init-from default" in path.read_text())


@pytest.mark.parametrize("path", FROM_DEFAULT, ids=lambda path: path.stem)
def test_configurations_that_say_so_start_from_the_shipped_weights(path: Path) -> None:
    assert len(FROM_DEFAULT) >= 8
    config = load_config(path)
    model = build_model(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    own = build_pipeline(config, model)
    copy_weights(own, "default", pretrained=False)
    kept = [name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])]
    saved = SASPipeline.from_pretrained().model.state_dict()
    assert all(torch.equal(model.state_dict()[name], saved[name]) for name in kept), (
        "nothing stays as it was initialised"
    )


def test_python_blocks_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert "layers," in capsys.readouterr().out
    assert len(names["rest"]) >= 1 and np.array_equal(names["rest"][0].mask, names["corrected"])  # type: ignore[index,arg-type]
    assert (workplace / "results" / "photo" / "result.json").exists()


@pytest.mark.slow
def test_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "examples" / "layers.ipynb", as_version=4)
    nbformat.validate(notebook)
    names: dict[str, object] = {}
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    for source in cells:
        exec(compile(source, "layers.ipynb", "exec"), names)
    assert 0 <= float(names["marginal"].uncertainty_map().max()) <= 0.25  # type: ignore[attr-defined]


def test_notebook_is_what_its_script_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import make_notebook

    written = nbformat.read(ROOT / "examples" / "layers.ipynb", as_version=4)
    assert nbformat.writes(make_notebook.notebook()) == nbformat.writes(written)


@pytest.mark.parametrize(
    "document", sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]), ids=lambda path: path.name
)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_shipped_weights_are_small_and_their_card_names_their_split() -> None:
    """They stay in the history for good: at most 12 MB."""
    assert sum(path.stat().st_size for path in DEFAULT_WEIGHTS.rglob("*") if path.is_file()) < 12e6
    settings = json.loads((DEFAULT_WEIGHTS / "model_index.json").read_text())
    card = (DEFAULT_WEIGHTS / "README.md").read_text()
    assert f"`{settings['data_split']}`" in card and f"# Model card: {settings['model_id']}\n" in card
