"""Named formats from end to end: opened by a line of configuration, trained on, evaluated, drawn, checked, converted and packed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config, write_scenes

from sas.__main__ import main
from sas.config import ConfigError, load_config
from sas.data.folders import open_scenes
from sas.data.formats.registry import FORMATS, open_format
from sas.data.formats.writers import write_cocoa, write_kins2020
from sas.data.source import read_ahead
from sas.doctor import check_scenes
from sas.evaluation import evaluate, load_dataset, pipeline_predictor
from sas.factory import build_source, check_data, open_data
from sas.io import InputError
from sas.pipeline import SASPipeline
from sas.training import Trainer

ROOT = Path(__file__).parent.parent
CONFIGS = ("acom", "cocoa", "d2sa", "interamix", "intra-afruit", "kins", "modal", "muva", "sas-folders")
SAMPLES = Path(os.environ.get("SAS_SAMPLES", "/nowhere"))
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="SAS_SAMPLES names no folder of real samples")


@pytest.fixture
def cocoa(tmp_path: Path) -> Path:
    """Generated scenes in COCOA's layout."""
    scenes = open_scenes(write_scenes(tmp_path / "scenes"))
    write_cocoa(tmp_path / "cocoa", scenes)
    return tmp_path / "cocoa"


def train(tmp_path: Path, **data: object) -> Path:
    Trainer(
        tiny_config(**{f"data_{name}": value for name, value in data.items()}),
        tmp_path / "run",
        progress=False,
        cpu=True,
    ).run()
    return tmp_path / "run" / "pipeline"


# ---------------------------------------------------------------------- the name of a format


def test_an_unknown_format_is_told_with_the_one_meant(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"format must be one that is known, got 'kin2020'; did you mean kins2020\?"):
        open_format(tmp_path, format="kin2020")
    with pytest.raises(InputError, match="got 'xyz'; formats are auto, project"):
        open_format(tmp_path, format="xyz")


def test_an_option_that_a_format_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="annotators has no effect with format masks, got 'one'; leave it out, or set it to None"
    ):
        open_format(tmp_path, format="masks", annotators="one")
    with pytest.raises(InputError, match="fields has no effect with format cocoa"):
        open_format(tmp_path, format="cocoa", fields={"amodal": "x"})


def test_every_format_says_what_is_missing(tmp_path: Path) -> None:
    for name in FORMATS:
        with pytest.raises(InputError) as error:
            open_format(tmp_path / "nothing", format=name)
        assert "nothing" in str(error.value)


def test_a_folder_with_one_annotation_file_stands_for_it(cocoa: Path) -> None:
    by_folder, by_file = open_format(cocoa, format="cocoa"), open_format(next(cocoa.glob("*.json")), format="cocoa")
    assert [scene.id for scene in by_folder] == [scene.id for scene in by_file]


# ---------------------------------------------------------------------- one line of configuration


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_of_the_data_sets_are_valid_and_say_what_they_were_tested_on(name: str) -> None:
    path = ROOT / "configs" / f"{name}.yaml"
    text = path.read_text()
    config = load_config(path)
    assert config.data.format in FORMATS and config.data.scenes
    for words in ("# Get: ", "# Tested on: ", f"configs/{name}.yaml"):
        assert words in text


@pytest.mark.parametrize("name", ["format", "images", "validation", "augment", "front"])
def test_settings_of_reading_need_scenes(name: str) -> None:
    value = {"augment": 0.5, "front": "first"}.get(name, "cocoa")
    with pytest.raises(ConfigError, match=f"{name} has no effect without scenes: set scenes, or remove it"):
        load_config(None, {f"data.{name}": value})


def test_scenes_of_a_format_are_trained_on_validated_on_and_evaluated(cocoa: Path, tmp_path: Path) -> None:
    write_kins2020(tmp_path / "kins", open_scenes(tmp_path / "scenes"))
    pipeline = train(tmp_path, scenes=str(cocoa), format="cocoa", validation=str(cocoa), augment=0.5)
    data = tmp_path / "data.yaml"
    data.write_text(f"data:\n  scenes: {tmp_path / 'kins'}\n  format: kins2020\ntraining:\n  steps: 5\n")
    scenes = load_dataset(data)
    report = evaluate(pipeline_predictor(SASPipeline.from_pretrained(pipeline)), scenes, limit=3, progress=False)
    assert report.info["images"] == 3 and 0 <= report.scores["iou_layer_0"].value <= 1


def test_validation_reads_its_own_scenes(cocoa: Path, tmp_path: Path) -> None:
    write_cocoa(tmp_path / "other", list(open_scenes(tmp_path / "scenes"))[:2], split="val")
    data = tiny_config(data_scenes=str(cocoa), data_format="cocoa", data_validation=str(tmp_path / "other")).data
    assert len(open_data(data)) == 6 and len(open_data(data, validation=True)) == 2
    assert check_data(data).startswith("6 scenes in")


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on a fork beside threads
def test_packed_shards_are_read_in_blocks_and_the_stream_does_not_depend_on_workers(tmp_path: Path) -> None:
    assert (
        main(
            ["data", "pack", write_scenes(tmp_path / "scenes"), "--out", str(tmp_path / "shards"), "--shard-size", "2"]
        )
        == 0
    )
    streams = []
    for workers in (0, 2):
        changes = {
            "data_scenes": str(tmp_path / "shards"),
            "data_shuffle_buffer": 2,
            "data_augment": 0.5,
        }
        source = build_source(tiny_config(**changes))
        places = ((step, range(4)) for step in range(4))
        with read_ahead(source, places, workers=workers, start_method="fork") as batches:
            streams.append(list(batches))
    for one, other in zip(*streams, strict=True):
        assert one.ids == other.ids and (one.image == other.image).all()


# ---------------------------------------------------------------------- the command line


def drawn(folder: Path, *heights: int | None) -> Path:
    """A labelme file of squares, each over the one before, with these z_orders."""
    folder.mkdir()
    Image.fromarray(np.full((24, 32, 3), 90, np.uint8)).save(folder / "a.png")
    shapes = []
    for k, height in enumerate(heights):
        points = [[4 * k + x, 2 * k + y] for x, y in ((1, 1), (13, 1), (13, 13), (1, 13))]
        shapes.append({"label": f"o{k}", "points": points, **({} if height is None else {"z_order": height})})
    record = {"shapes": shapes, "imagePath": "a.png", "imageHeight": 24, "imageWidth": 32}
    (folder / "a.json").write_text(json.dumps(record))
    return folder


def test_the_nearest_end_of_a_list_is_an_option_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = drawn(tmp_path / "drawn", None, None)
    call = ["data", "check", str(folder), "--format", "labelme"]
    assert main(call) == 0 and " order-assumed: a.json has no z_order" in capsys.readouterr().out
    for front, layers in (("last", [1, 0]), ("first", [0, 1])):
        assert main([*call, "--front", front]) == 0
        assert capsys.readouterr().out == "pictures=1 objects=2 errors=0 warnings=0\n"
        out = str(tmp_path / f"shards-{front}")
        assert main(["data", "pack", str(folder), "--format", "labelme", "--front", front, "--out", out]) == 0
        assert open_scenes(out)[0].layer_index.tolist() == layers
        config = load_config(None, {"data.scenes": str(folder), "data.format": "labelme", "data.front": front})
        assert open_data(config.data)[0].layer_index.tolist() == layers
        capsys.readouterr()
    with pytest.raises(InputError, match="front has no effect with format cocoa, got 'last'; leave it out"):
        open_format(tmp_path, format="cocoa", front="last")


@pytest.mark.parametrize("command", ["convert", "pack"])
def test_an_unknown_order_is_told_with_its_count_when_scenes_are_written(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = drawn(tmp_path / "drawn", 1, 1, 1)
    assert main(["data", command, str(folder), "--format", "labelme", "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert out == f"1 scenes -> {tmp_path / 'out'}\n"
    words = "order-unknown: 3 pairs of objects overlap and nothing says which is in front; neither counts as in front in what was"
    assert f"WARNING {words} written; `sas data check` names each\n" in err
    assert not [record for record in caplog.records if "order-unknown" in record.getMessage()]
    masks = tmp_path / "masks"
    for name in ("a", "b"):
        (masks / name).mkdir(parents=True)
        Image.fromarray(np.full((24, 32, 3), 90, np.uint8)).save(masks / name / "image.png")
        for number in range(2):
            Image.fromarray(np.eye(24, 32, number, dtype=np.uint8) * 255).save(masks / name / f"gt_{number}.png")
    assert main(["data", command, str(masks), "--format", "masks", "--out", str(tmp_path / "one")]) == 0
    words = "nothing says who is in front; scenes without an order have no layers and cannot be trained on"
    assert f"WARNING order-none: {words}\n" in capsys.readouterr().err
    (masks / "b" / "order.txt").write_text("")
    assert main(["data", command, str(masks), "--format", "masks", "--out", str(tmp_path / "two")]) == 0
    assert f"WARNING order-none: in 1 of 2 scenes {words}\n" in capsys.readouterr().err


def test_an_unknown_order_is_told_when_it_is_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = drawn(tmp_path / "drawn", 1, 1, 1)
    source = build_source(tiny_config(data_scenes=str(folder), data_format="labelme"))
    for step in range(3):
        source.batch(step, range(4))
    (message,) = [record.getMessage() for record in caplog.records]
    assert "order-unknown: nothing says which of shapes[0] and shapes[1] is in front" in message
    assert "pairs like this in the picture: 3." in message


def test_a_file_is_annotations_and_the_cure_fits_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "set.json"
    file.write_text("{}")
    found = f"data {file} must be a folder, found a file; "
    cure = "name the format of annotations with --format NAME or, in a configuration, data.format (`sas data formats` lists them)"
    assert main(["data", "check", str(file)]) == 2 and found + cure in capsys.readouterr().out
    with pytest.raises(
        InputError, match="annotations are evaluated by a data YAML in their place, with `data: {scenes: PATH"
    ):
        load_dataset(file)
    (check,) = check_scenes(file)
    assert not check.ok and check.words == found.removesuffix("; ")
    assert check.cure.startswith("look annotations over with `sas data check PATH --format NAME`")
    assert "--format" not in check_scenes(tmp_path / "none")[0].cure
    data = tmp_path / "data.yaml"
    data.write_text(f"data: {{scenes: {file}, format: coco, min_overlap: 0.2}}")
    with pytest.raises(InputError, match="must hold the lists images and annotations"):
        load_dataset(data)
    file.write_text('{"shapes": [], "imagePath": "x"}')
    with pytest.raises(InputError, match=r"--format labelme \(data.format in a configuration\)"):
        load_dataset(data)
    data.write_text(f"data: {{scenes: {file}, format: coko, min_overlap: 0.2}}")
    with pytest.raises(InputError, match=r"format must be one that is known, got 'coko'; did you mean coco\?"):
        load_dataset(data)


def test_check_convert_and_pack(cocoa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["data", "convert", str(cocoa), "--format", "cocoa", "--to", "kins2020", "--out", str(tmp_path / "kins")])
        == 0
    )
    assert (
        main(["data", "check", str(tmp_path / "kins"), "--format", "kins2020", "--out", str(tmp_path / "report")]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "pictures=6 objects=11 errors=0 warnings=1" and " unannotated: " in lines[-2]
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.json", "report.md", "sheet.png"}
    assert main(["data", "convert", str(cocoa), "--format", "cocoa", "--out", str(tmp_path / "kins")]) == 1
    assert "must be a new or empty folder" in capsys.readouterr().err
    assert (
        main(["data", "pack", str(cocoa), "--format", "cocoa", "--limit", "3", "--out", str(tmp_path / "shards")]) == 0
    )
    assert len(open_scenes(tmp_path / "shards")) == 3


def test_exit_status_of_the_checker(cocoa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tmp_path / "nowhere"), "--format", "cocoa"]) == 2
    assert " unreadable: cocoa data " in capsys.readouterr().out
    next((cocoa / "images").glob("*.png")).unlink()
    assert main(["data", "check", str(cocoa), "--format", "cocoa", "--repair", str(tmp_path / "clean")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ERROR image=") and " image-missing: " in lines[0] and lines[0].endswith("; refused")
    assert main(["data", "check", str(tmp_path / "clean")]) == 0
    assert len(open_scenes(tmp_path / "clean")) == 5


def test_words_that_are_no_command_and_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data"]) == 0 and "check" in capsys.readouterr().out
    assert main(["data", "chek"]) == 2 and "did you mean `sas data check`?" in capsys.readouterr().err
    assert main(["data", "xyz"]) == 2 and "commands are check, convert, pack, formats" in capsys.readouterr().err
    assert main(["data", "formats"]) == 0 and "kins2020" in capsys.readouterr().out
    assert (
        main(["data", "check", str(tmp_path), "--limit", "0"]) == 2
        and "limit must be at least 1, got 0" in capsys.readouterr().err
    )
    assert main(["data", "check", str(tmp_path), "--fields", "x"]) == 2
    assert "--fields must be pairs such as amodal=segmentation, got 'x'" in capsys.readouterr().err


def modal_set(folder: Path) -> Path:
    """Two pictures with a square object each, alone in the middle."""
    folder.mkdir()
    images, annotations = [], []
    for number in range(2):
        picture = np.full((96, 96, 3), 60 + 90 * number, dtype=np.uint8)
        picture[24:70, 24:70] = (200, 40, 40)
        Image.fromarray(picture).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 96, "width": 96})
        square = [24, 24, 70, 24, 70, 70, 24, 70]
        annotations.append({"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "segmentation": [square]})
    file = folder / "instances.json"
    file.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]})
    )
    return file


def test_scenes_are_composed_from_modal_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = modal_set(tmp_path / "modal")
    command = ["compose", "--from-modal", str(file), "--count", "3", "--size", "64", "--objects", "2", "2"]
    assert main([*command, "--out", str(tmp_path / "composed")]) == 0
    scenes = open_scenes(tmp_path / "composed")
    assert len(scenes) == 3 and all(name.startswith("box__") for scene in scenes for name in scene.names)
    assert main([*command, "--cutouts", "x", "--out", str(tmp_path / "no")]) == 2
    assert "--from-modal excludes --cutouts" in capsys.readouterr().err


def test_partial_completion_trains_from_modal_masks(tmp_path: Path) -> None:
    file = modal_set(tmp_path / "modal")
    assert (train(tmp_path, scenes=str(file), format="modal") / "model_index.json").exists()


# ---------------------------------------------------------------------- real samples


@needs_samples
def test_cocoa_samples_train_evaluate_and_draw(tmp_path: Path) -> None:
    folder = SAMPLES / "amodal" / "cocoa"
    pipeline = train(tmp_path, scenes=str(folder), format="cocoa", augment=0.3)
    scenes = open_format(folder, format="cocoa")
    assert [[len(np.flatnonzero(scene.layer_index == k)) for k in range(len(scene.layer_masks))] for scene in scenes] == [
        [1, 1], [6, 2, 1, 1, 1], [12, 2, 4, 1]
    ]  # fmt: skip
    report = evaluate(pipeline_predictor(SASPipeline.from_pretrained(pipeline)), scenes, progress=False)
    assert report.info["images"] == 3 and report.info["images_without_order"] == 0
    assert main(["data", "check", str(folder), "--format", "cocoa", "--out", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "sheet.png").stat().st_size > 10_000


@needs_samples
def test_d2sa_samples_are_scored_without_order(tmp_path: Path) -> None:
    folder = SAMPLES / "amodal" / "d2sa"
    scenes = open_format(folder, format="masks")
    assert [len(scene) for scene in scenes] == [3, 8, 3]
    with pytest.raises(ValueError, match="is unknown, so it has no layers"):
        _ = scenes[0].layer_masks
    pipe = SASPipeline.from_pretrained(train(tmp_path))
    report = evaluate(pipeline_predictor(pipe), scenes, progress=False)
    assert report.info["images_without_order"] == 3
    assert 0 <= report.scores["miou_full"].value <= 1 and "iou_layer_0" not in report.scores
    assert main(["data", "check", str(folder), "--format", "masks", "--out", str(tmp_path / "report")]) == 0
