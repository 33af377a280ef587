"""The fixed division of cutouts and backgrounds by their names, and its way into configuration, weights and --init-from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

from sas.config import Config, ConfigError, DataSettings
from sas.data.composer import Composer
from sas.data.solids import FAMILIES
from sas.data.split import TEST_FAMILIES, cutout_key, cutout_part, part_of, split_hash
from sas.evaluation import load_dataset
from sas.factory import build_atlas, build_composer, build_source, build_validation, check_data, data_split, scene_style
from sas.io import InputError
from sas.pipeline import SASPipeline
from sas.training import Trainer


def key_of(part: str, *, prefix: str = "look") -> str:
    """The first `prefix__N` of a part."""
    return next(f"{prefix}__{n}" for n in range(100) if part_of(f"{prefix}__{n}") == part)


@pytest.fixture
def cutouts(tmp_path: Path) -> Path:
    """Two views of one look of each part, a vehicle, and backgrounds of each part."""
    (tmp_path / "cutouts").mkdir()
    (tmp_path / "backgrounds").mkdir()
    for key in (*(key_of(part) for part in ("train", "validation", "test")), key_of("train", prefix="vehicle")):
        for view in range(2):
            picture = np.full((8, 8, 4), 255, dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "cutouts" / f"{key}__{view}.png")
    for part in ("train", "validation", "test"):
        name = next(f"{n}.png" for n in range(100) if part_of(f"{n}.png") == part)
        Image.new("RGB", (8, 8), {"train": "red", "validation": "green", "test": "blue"}[part]).save(
            tmp_path / "backgrounds" / name
        )
    return tmp_path


def test_rule_by_hand() -> None:
    for key in ("Apple__Braeburn", "object__rosette", "1.jpg", ""):
        tenth = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10
        assert part_of(key) == {0: "test", 1: "validation"}.get(tenth, "train")
    shares = [part_of(str(n)) for n in range(2000)]
    assert 0.08 < shares.count("test") / 2000 < 0.12 and 0.08 < shares.count("validation") / 2000 < 0.12
    assert cutout_key("Apple__Red 1__r_07") == "Apple__Red 1" and cutout_key("plain") == "plain"
    assert cutout_part("vehicle__bus__1f68c") == "test"
    assert all(cutout_part(f"vehicle__{n}__x") == "test" for n in range(20)), "whatever their names say"


def test_a_name_that_is_no_utf8_is_divided_by_its_bytes() -> None:
    odd = b"\xc4pfel__a".decode("utf-8", "surrogateescape")  # as os.listdir gives it
    tenth = int(hashlib.sha256(b"\xc4pfel__a").hexdigest(), 16) % 10
    assert part_of(odd) == {0: "test", 1: "validation"}.get(tenth, "train")
    assert len(split_hash([odd + "__1"], [odd])) == 64


def test_views_of_one_look_are_on_one_side() -> None:
    for n in range(30):
        assert len({cutout_part(f"Apple__{n}__{view}") for view in range(24)}) == 1


def test_evaluating_a_configuration_takes_what_is_for_testing(cutouts: Path) -> None:
    path = cutouts / "data.yaml"
    data = {
        "cutouts": [str(cutouts / "cutouts")], "backgrounds": str(cutouts / "backgrounds"), "split": "by_name", "sprite_size": 16,
        "image_size": 16, "mask_size": 16, "oversample": 1, "empty": 0.0, "letterbox": 0.0,
    }  # fmt: skip
    path.write_text(json.dumps({"data": data, "count": 8}))
    for scene in load_dataset(path):
        assert scene.names and all(cutout_part(name) == "test" for name in scene.names)
        behind = scene.image[~scene.amodal_masks.any(axis=0)].astype(int)
        assert (behind[:, 2] > behind[:, 0] + 50).all(), "the blue background is the one for testing"


def test_pictures_in_folders_are_divided_by_their_folder(tmp_path: Path) -> None:
    assert cutout_key("mug/001") == "mug" and cutout_key("kitchen/mug/001") == "kitchen/mug"
    assert cutout_key("any/Apple__Red__3") == "Apple__Red" and cutout_part("vehicle/3") == "test"
    for look in (key_of("train"), key_of("test")):
        (tmp_path / look.replace("__", "-")).mkdir()
    for folder in tmp_path.iterdir():
        for view in range(6):
            Image.fromarray(np.full((8, 8, 4), 255, dtype=np.uint8)).save(folder / f"{view:03d}.png")
    parts = {folder.name: part_of(folder.name) for folder in tmp_path.iterdir()}
    for part in set(parts.values()):
        data = tiny_config(data_cutouts=[str(tmp_path)], data_split="by_name", data_sprite_size=16).data
        assert len(build_atlas(data, seed=0, part=part)) == 6 * list(parts.values()).count(part)


@pytest.mark.parametrize("what", ["cutouts", "backgrounds"])
def test_a_part_without_pictures_is_told_before_training(cutouts: Path, tmp_path: Path, what: str) -> None:
    for path in (cutouts / what).iterdir():
        key = path.name if what == "backgrounds" else path.stem
        if (part_of(key) if what == "backgrounds" else cutout_part(key)) == "validation":
            path.unlink()
    config = tiny_config(
        data_cutouts=[str(cutouts / "cutouts")], data_backgrounds=str(cutouts / "backgrounds"), data_split="by_name", data_sprite_size=16
    )  # fmt: skip
    message = (
        rf"data\.{what} .* must hold a picture of the validation part .* got none among .* or set data\.split to none"
    )
    with pytest.raises(ConfigError, match=message):
        check_data(config.data)
    with pytest.raises(ConfigError, match=message):
        Trainer(config, tmp_path / "run", cpu=True, progress=False).run()


def test_backgrounds_that_are_not_there_are_told_as_such(cutouts: Path) -> None:
    config = tiny_config(data_cutouts=[str(cutouts / "cutouts")], data_backgrounds="nowhere", data_split="by_name")
    with pytest.raises(InputError, match="backgrounds nowhere must be a folder, found nothing; check the path"):
        check_data(config.data)


def test_validation_without_things_kept_back_says_so(cutouts: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("none", "by_name"):
        caplog.clear()
        build_validation(tiny_config(data_cutouts=[str(cutouts / "cutouts")], data_split=split, data_sprite_size=16))
        assert ("keeps no cutout back" in caplog.text) == (split == "none")


def test_hash_names_the_division_and_nothing_else() -> None:
    some = split_hash(["a__b__1", "a__b__2", "c"], ["1.jpg", "2.jpg"])
    assert some == split_hash(["c", "a__b__7"], ["2.jpg", "1.jpg"]), "neither order nor number of views"
    assert some != split_hash(["a__b__1", "d"], ["1.jpg", "2.jpg"]) and some != split_hash(["a__b__1", "c"], ["1.jpg"])
    lines = sorted([f"c {cutout_part('c')}", f"a__b {cutout_part('a__b__1')}", f"1.jpg {part_of('1.jpg')}"])
    assert split_hash(["c", "a__b__1"], ["1.jpg"]) == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_the_list_of_the_shipped_split_is_what_its_hash_says() -> None:
    """docs/split.txt holds the lines that the hash is of; the last word of each is the part."""
    listed = (Path(__file__).parent.parent / "docs" / "split.txt").read_text(encoding="utf-8").splitlines()
    entries = [line.rsplit(" ", 1) for line in listed]
    cutouts = [f"{key}__view" for key, _ in entries if not key.endswith(".jpg")]
    backgrounds = [key for key, _ in entries if key.endswith(".jpg")]
    assert (len(cutouts), len(backgrounds)) == (559 + 49, 21)
    assert split_hash(cutouts, backgrounds) == SASPipeline.from_pretrained().config.data_split
    assert all(part == (part_of(key) if key.endswith(".jpg") else cutout_part(f"{key}__view")) for key, part in entries)


def test_parts_of_folders(cutouts: Path) -> None:
    config = tiny_config(
        data_cutouts=(str(cutouts / "cutouts"),), data_backgrounds=str(cutouts / "backgrounds"), data_split="by_name"
    )
    for part, colour in (("train", 0), ("validation", 1), ("test", 2)):
        composer = build_composer(config.data, seed=0, atlas_seed=0, part=part)  # type: ignore[arg-type]
        own = {cutout_key(name) for name in composer.names}
        expected = {key_of(part)} | ({key_of("train", prefix="vehicle")} if part == "test" else set())
        assert own == expected, part
        assert len(composer.backgrounds) == 1 and composer.backgrounds[0, colour].min() > 100, part
    everything = config.data.model_copy(update={"split": "none"})
    assert len(build_atlas(everything, seed=0)) == 8


@pytest.fixture
def extra(tmp_path: Path) -> Path:
    """More cutouts and backgrounds: one of each part."""
    (tmp_path / "extra").mkdir()
    for part in ("train", "validation", "test"):
        Image.fromarray(np.full((8, 8, 4), 255, dtype=np.uint8)).save(
            tmp_path / "extra" / f"{key_of(part, prefix='more')}__0.png"
        )
    (tmp_path / "walls").mkdir()
    for part, colour in (("train", "yellow"), ("validation", "cyan"), ("test", "magenta")):
        name = next(f"{n}.png" for n in range(100) if part_of(f"{n}.png") == part)
        Image.new("RGB", (8, 8), colour).save(tmp_path / "walls" / name)
    return tmp_path


def extended(cutouts: Path, extra: Path, **changes: object) -> DataSettings:
    given = {
        "data_cutouts": (str(cutouts / "cutouts"),), "data_backgrounds": str(cutouts / "backgrounds"), "data_split": "by_name",
        "data_extra_cutouts": (str(extra / "extra"),), "data_extra_backgrounds": (str(extra / "walls"),),
    }  # fmt: skip
    return tiny_config(**(given | changes)).data


def test_what_is_extra_is_for_training_alone_and_no_part_of_the_split(cutouts: Path, extra: Path) -> None:
    data = extended(cutouts, extra)
    alone = data.model_copy(update={"extra_cutouts": (), "extra_backgrounds": ()})
    assert data_split(data) == data_split(alone)
    composer = build_composer(data, seed=0, atlas_seed=0)
    assert {cutout_key(name) for name in composer.names} == {key_of("train"), key_of("train", prefix="more")}
    shown = {tuple(picture[:, 0, 0].tolist()) for picture in composer.backgrounds}
    assert shown == {(255, 0, 0), (255, 255, 0)}, "red and yellow: those of the training part"
    for part in ("validation", "test"):
        with_extra, without = (build_composer(one, seed=0, atlas_seed=0, part=part) for one in (data, alone))  # type: ignore[arg-type]
        assert with_extra.names == without.names and (with_extra.backgrounds == without.backgrounds).all()
    words = check_data(data)
    assert "3 cutouts in 2 groups" in words and "2 backgrounds" in words
    assert str(extra / "extra") in words and str(extra / "walls") in words


def test_each_extra_folder_is_drawn_as_often_as_another(cutouts: Path, extra: Path) -> None:
    shares = build_atlas(extended(cutouts, extra, data_rendered=True, data_families=("box",)), seed=0).shares
    assert shares is not None and shares[:2].tolist() == pytest.approx([1 / 3, 1 / 3])
    undivided = extended(cutouts, extra, data_split="none")
    assert len(build_atlas(undivided, seed=0)) == 8 + 3 and len(build_atlas(undivided, seed=0, part="test")) == 8


def test_weights_trained_with_what_is_extra_may_be_gone_on_from(cutouts: Path, extra: Path, tmp_path: Path) -> None:
    divided = {
        "data_cutouts": (str(cutouts / "cutouts"),), "data_backgrounds": str(cutouts / "backgrounds"), "data_split": "by_name",
        "training_steps": 1,
    }  # fmt: skip
    more = {"data_extra_cutouts": (str(extra / "extra"),), "data_extra_backgrounds": (str(extra / "walls"),)}
    Trainer(tiny_config(**divided), tmp_path / "first").run()
    Trainer(tiny_config(**divided, **more), tmp_path / "second", init_from=tmp_path / "first" / "pipeline").run()
    Trainer(tiny_config(**divided), tmp_path / "third", init_from=tmp_path / "second" / "pipeline").run()


@pytest.mark.parametrize(("what", "folder"), [("extra_cutouts", "extra"), ("extra_backgrounds", "walls")])
def test_extra_folders_that_are_not_right(cutouts: Path, extra: Path, what: str, folder: str) -> None:
    base = what.removeprefix("extra_")
    with pytest.raises(ConfigError, match=f"{what} go beside {base}, got no {base}: set {base}"):
        tiny_config(**{f"data_{what}": (str(extra / folder),)})
    data = extended(cutouts, extra, **{f"data_{what}": (str(extra / "nowhere"),)})
    for look in (check_data, lambda data: build_source(Config(data=data))):
        with pytest.raises(InputError, match="nowhere"):
            look(data)
    for path in (extra / folder).iterdir():
        if (cutout_part(path.stem) if what == "extra_cutouts" else part_of(path.name)) == "train":
            path.unlink()
    message = rf"data\.{what} .*{folder} must hold a picture of the train part .* got none among 2"
    for look in (check_data, lambda data: build_source(Config(data=data))):
        with pytest.raises(ConfigError, match=message):
            look(extended(cutouts, extra))


def test_rendered_beside_folders_is_drawn_equally_often(cutouts: Path) -> None:
    config = tiny_config(data_cutouts=(str(cutouts / "cutouts"),), data_rendered=True, data_families=("box",))
    atlas = build_atlas(config.data, seed=0)
    assert atlas.shares is not None
    rendered = [n.startswith("box") for n in atlas.names]
    assert sum(rendered) == 4 and len(rendered) == 12
    own = [float(atlas.shares[group]) for group in range(len(atlas.shares))]
    assert sum(own) == pytest.approx(1) and sum(own[-2:]) == pytest.approx(0.5)


def test_augmentation_is_for_training_alone() -> None:
    changes = {"appearance": 0.4, "prints": 0.3, "warps": 0.2, "touching": 0.3, "shades": 0.1, "degradation": 0.5}
    config = tiny_config(**{f"data_{name}": share for name, share in changes.items()})
    training = scene_style(config.data)
    assert {name: getattr(training, name) for name in changes} == changes
    validation = build_validation(config)
    assert isinstance(validation, Composer)
    assert validation.style == replace(training, **dict.fromkeys(changes, 0.0))


def test_families_for_testing_stay_out_of_training(cutouts: Path) -> None:
    divided = {
        "data_cutouts": (str(cutouts / "cutouts"),),
        "data_rendered": True,
        "data_split": "by_name",
        "data_classes": len(FAMILIES),
    }
    for part in ("train", "validation", "test"):
        names = build_atlas(tiny_config(**divided).data, seed=0, part=part).names  # type: ignore[arg-type]
        assert any(name.startswith(TEST_FAMILIES) for name in names) == (part == "test"), part
    named = tiny_config(**divided, data_families=("box", "ring"))
    with pytest.raises(
        ConfigError,
        match=r'data\.families must leave out ring and bottle with data\.split "by_name", .* got ring: remove it',
    ):
        build_atlas(named.data, seed=0)
    with pytest.raises(ConfigError, match="got ring"):
        check_data(named.data)  # before anything is built
    assert any(name.startswith("ring") for name in build_atlas(named.data, seed=0, part="test").names)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_split": "by_name"}, "split has no effect without cutouts or backgrounds"),
        ({"data_rendered": True}, "rendered has no effect without cutouts or backgrounds"),
        ({"model_fusion": (8, 8)}, "fusion belongs to the split network"),
        ({"model_detail": 8}, "detail belongs to the split network"),
        ({"model_encoder": "efficientnet_lite0"}, "encoder and encoder_widths belong to the split network"),
        (
            {"model_name": "split", "model_middle_attention": False},
            "middle_attention and gradient_checkpointing belong to the network unet",
        ),
        ({"training_encoder_rate": 0.1}, "training.encoder_rate belongs to the split network"),
        ({"model_pretrained": True}, "pretrained needs the split network with an encoder other than conv"),
        (
            {"diffusion_rollout": 0.5, "diffusion_loss_type": "mse"},
            "rollout, energy_weight and self_alignment need loss_type \"bce_dice\", got 'mse'",
        ),
    ],
)
def test_knobs_without_effect_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_config(**changes)
    assert words in str(caught.value)


def test_init_from_refuses_weights_of_another_split(cutouts: Path, tmp_path: Path) -> None:
    divided = {
        "data_cutouts": (str(cutouts / "cutouts"),), "data_backgrounds": str(cutouts / "backgrounds"), "data_split": "by_name",
        "training_steps": 1,
    }  # fmt: skip
    config = tiny_config(**divided)
    Trainer(config, tmp_path / "divided").run()
    weights = tmp_path / "divided" / "pipeline"
    split = SASPipeline.from_pretrained(weights).config.data_split
    assert split == data_split(config.data) and len(split) == 64
    Trainer(config, tmp_path / "again", init_from=weights).run()  # the same split
    own = tiny_config(training_steps=1)
    Trainer(own, tmp_path / "own", init_from=weights).run()  # nothing held out: nothing to spoil
    with pytest.raises(InputError, match=r"init_from .* was trained with data split none, got [0-9a-f]{12} now"):
        Trainer(config, tmp_path / "spoilt", init_from=tmp_path / "own" / "pipeline").run()
    (cutouts / "cutouts" / "another__look__0.png").write_bytes(next((cutouts / "cutouts").iterdir()).read_bytes())
    with pytest.raises(InputError, match=f"was trained with data split {split[:12]}, got"):
        Trainer(config, tmp_path / "grown", init_from=weights).run()
