"""Cutouts: rendered, or read from pictures with alpha or with a mask beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from sas.data.atlas import Atlas, cutout_files, read_cutout
from sas.io import InputError


def save_cutout(
    path: Path, *, size: tuple[int, int] = (30, 20), box: tuple[int, int, int, int] = (5, 4, 25, 14)
) -> None:
    """RGBA picture of (width, height): green and opaque inside (left, top, right, bottom), red and transparent outside."""
    pixels = np.zeros((size[1], size[0], 4), dtype=np.uint8)
    pixels[..., 0] = 255
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = (0, 200, 0, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_cutout_is_trimmed_centred_and_fills_the_square(tmp_path: Path) -> None:
    save_cutout(tmp_path / "a.png")
    sprite = read_cutout(tmp_path / "a.png", size=24)
    assert sprite.shape == (4, 24, 24) and sprite.dtype == torch.uint8
    alpha = sprite[3] > 127
    rows, columns = (alpha.any(dim=dim).nonzero().flatten() for dim in (1, 0))
    assert (columns[0], columns[-1]) == (2, 21), "the longer side fills all but two pixels of margin"
    assert (rows[0], rows[-1]) == (7, 16), "the shape keeps its proportions, 2 to 1, in the middle"
    assert alpha.sum() == 20 * 10


def test_no_colour_from_outside_the_alpha_leaks_in(tmp_path: Path) -> None:
    """A green disc on transparent red: its soft edge stays as green as its middle."""
    y, x = np.mgrid[:61, :61]
    pixels = np.where((np.hypot(x - 30, y - 30) < 28)[..., None], [0, 200, 0, 255], [255, 0, 0, 0]).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    sprite = read_cutout(tmp_path / "a.png", size=20)
    soft = (sprite[3] > 20) & (sprite[3] < 235)
    assert soft.sum() > 10
    assert sprite[0].max() <= 1 and sprite[2].max() <= 1, "nowhere the red of the transparent part"
    assert (sprite[1][sprite[3] > 20].int() - 200).abs().max() <= 8
    assert (sprite[1][sprite[3] == 0].int() - 200).abs().max() <= 8, "colour goes on under the transparent part"


def test_picture_beside_its_mask(tmp_path: Path) -> None:
    picture, mask = np.full((10, 16, 3), 90, dtype=np.uint8), np.zeros((10, 16), dtype=np.uint8)
    picture[2:8, 4:10], mask[2:8, 4:10] = 210, 255
    Image.fromarray(picture).save(tmp_path / "pear.jpg", quality=100, subsampling=0)
    Image.fromarray(mask).save(tmp_path / "pear.mask.png")
    atlas = Atlas.from_folders([tmp_path], size=16)
    assert len(atlas) == 1 and atlas.names == ("pear",), "the mask is no cutout"
    assert (atlas.sprites[0, 3] > 127).sum() == 12 * 12
    assert (atlas.sprites[0, :3, 4:-4, 4:-4].int() - 210).abs().max() < 8


def test_sixteen_bits_beside_a_mask_are_scaled(tmp_path: Path) -> None:
    values = np.full((12, 12), 30000, dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "pear.png")
    Image.new("L", (12, 12), 255).save(tmp_path / "pear.mask.png")
    sprite = read_cutout(tmp_path / "pear.png", size=16)
    assert (sprite[:3].int() - round(30000 / 65535 * 255)).abs().max() <= 1


def test_a_decompression_bomb_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_cutout(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(InputError, match=r"cutout .*bomb\.png is too large: .*; scale the picture down"):
        read_cutout(tmp_path / "bomb.png", size=16)


def test_a_mask_of_zeros_and_ones_is_taken_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mask = np.zeros((10, 16), dtype=np.uint8)
    mask[2:8, 4:10] = 1
    Image.fromarray(np.full((10, 16, 3), 210, dtype=np.uint8)).save(tmp_path / "pear.jpg")
    Image.fromarray(mask).save(tmp_path / "pear.mask.png")
    assert (read_cutout(tmp_path / "pear.jpg", size=16)[3] > 127).sum() == 12 * 12
    assert "pear.mask.png is nowhere brighter than half" in caplog.text
    Image.fromarray(mask * 0).save(tmp_path / "pear.mask.png")
    with pytest.raises(
        InputError, match=r"mask .*pear.mask.png of a cutout must show something, .* paint the object white"
    ):
        read_cutout(tmp_path / "pear.jpg", size=16)


def test_cutouts_are_read_as_all_pictures_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Upright, uncompressed TIFFs too, whose sides Pillow mixes up; and with EXIF data that is damaged."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(tmp_path / "stored.tif", exif=exif)
    Image.fromarray(np.rot90(pixels, -1).copy()).save(tmp_path / "turned.png")
    assert torch.equal(*(read_cutout(tmp_path / name, size=16) for name in ("stored.tif", "turned.png")))
    Image.fromarray(pixels).save(tmp_path / "damaged.png", exif=b"Exif\0\0 no EXIF at all")
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    assert torch.equal(*(read_cutout(tmp_path / name, size=16) for name in ("damaged.png", "plain.png")))
    assert "EXIF data cannot be read" in caplog.text


def test_hidden_files_are_no_cutouts_and_linked_folders_are_read(tmp_path: Path) -> None:
    save_cutout(tmp_path / "fruits" / "pear.png")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "linked").symlink_to(tmp_path / "fruits")
    (tmp_path / "fruits" / "round").symlink_to(tmp_path / "mine")  # a circle
    for name in ("._pear.png", "__MACOSX/pear.png", ".thumbs/pear.png"):
        (tmp_path / "mine" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(b"no picture")
    assert [name for _, name in cutout_files(tmp_path / "mine")] == ["linked/pear"]


def test_a_folder_of_cutouts_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cutouts .*nowhere must be a folder, found nothing; check the path"):
        Atlas.from_folders([tmp_path / "nowhere"])


def test_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "pear.png")
    Image.new("L", (6, 8), 255).save(tmp_path / "pear.mask.png")
    with pytest.raises(InputError, match=r"pear\.mask\.png must have the size of its image, 6x8 .*got 8x6"):
        read_cutout(tmp_path / "pear.png", size=16)


def test_groups_come_from_names_and_folders(tmp_path: Path) -> None:
    for name in ("Apple__Red__2", "Apple__Red__1", "Apple__Green__1"):
        save_cutout(tmp_path / "fruit" / f"{name}.png")
    for name in ("b", "a"):
        save_cutout(tmp_path / "things" / "deep" / f"{name}.png")
    save_cutout(tmp_path / "things" / "c.png")
    (tmp_path / "things" / "notes.txt").write_text("not a cutout")
    atlas = Atlas.from_folders([tmp_path / "things", tmp_path / "fruit"], size=16)
    groups: dict[int, list[str]] = {}
    for group, name in zip(atlas.group.tolist(), atlas.names, strict=True):
        groups.setdefault(group, []).append(name)
    assert sorted(groups) == list(range(4))
    assert sorted(groups.values()) == [["Apple__Green__1"], ["Apple__Red__1", "Apple__Red__2"], ["a", "b"], ["c"]]
    assert atlas.group_sizes.tolist() == [len(groups[g]) for g in range(4)]
    assert atlas.group_starts.tolist() == np.cumsum([0, *(len(groups[g]) for g in range(3))]).tolist()


def test_cutout_without_alpha_is_refused_with_its_cure(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "pear.png")
    with pytest.raises(
        InputError,
        match=r"cutout .*pear\.png must have an alpha channel, got mode RGB; save it .* mask beside it as pear\.mask\.png",
    ):
        Atlas.from_folders([tmp_path])


@pytest.mark.parametrize("alpha", [0, 127])
def test_transparent_cutout_is_refused(tmp_path: Path, alpha: int) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, alpha)).save(tmp_path / "ghost.png")
    with pytest.raises(
        InputError, match=r"ghost\.png must show something, got alpha that is nowhere above 127; remove"
    ):
        Atlas.from_folders([tmp_path])


def test_one_opaque_pixel_is_a_cutout(tmp_path: Path) -> None:
    save_cutout(tmp_path / "dot.png", box=(7, 7, 8, 8))
    assert (read_cutout(tmp_path / "dot.png", size=16)[3, 2:-2, 2:-2] == 255).all()


def test_palette_with_transparency_is_read(tmp_path: Path) -> None:
    save_cutout(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture)
    palette = Image.fromarray((pixels[..., 3] > 0).astype(np.uint8)).convert("P")
    palette.putpalette([255, 0, 0, 0, 200, 0])
    palette.save(tmp_path / "b.png", transparency=0)
    assert torch.equal(read_cutout(tmp_path / "a.png", size=24), read_cutout(tmp_path / "b.png", size=24))


def test_a_name_that_holds_the_word_mask_is_a_cutout(tmp_path: Path) -> None:
    for name in ("gas.mask.01.png", "pear.png"):
        Image.new("RGBA", (8, 8), (200, 90, 40, 255)).save(tmp_path / name)
    Image.new("L", (8, 8), 255).save(tmp_path / "pear.mask.png")
    assert [name for _, name in cutout_files(tmp_path)] == ["gas.mask.01", "pear"]


def test_folder_without_cutouts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no image file"):
        Atlas.from_folders([tmp_path])
    with pytest.raises(InputError, match="folders must hold at least one cutout, got none in"):
        Atlas.from_folders([])
    Image.new("L", (4, 4)).save(tmp_path / "lonely.mask.png")
    with pytest.raises(InputError, match="folders must hold at least one cutout, got none in .*; name a folder"):
        Atlas.from_folders([tmp_path])
    with pytest.raises(InputError, match=r"cutouts .*absent\.png must be a folder, found nothing"):
        Atlas.from_folders([tmp_path / "absent.png"])
    (tmp_path / "broken.png").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"cutout .*broken\.png is not a PNG"):
        Atlas.from_folders([tmp_path])


def test_generated_atlas_shares_classes_out_over_families() -> None:
    atlas = Atlas.generated(seed=3, classes=3, views=1, size=16, families=("box", "ring"))
    assert atlas.sprites.shape == (3, 4, 16, 16) and atlas.group.tolist() == [0, 1, 2]
    assert atlas.names == ("box-000", "ring-001", "box-002")
    more = Atlas.generated(seed=3, classes=1, views=2, size=16, families=("box", "ring"))
    assert more.group.tolist() == [0, 0] and more.names == ("box-000",) * 2
    assert torch.equal(more.sprites[0], atlas.sprites[0]), "a class depends on seed and number alone"
    with pytest.raises(ValueError, match="classes must be at least 1, got 0"):
        Atlas.generated(seed=0, classes=0, views=1)


def test_joined_atlases_number_groups_anew_and_are_drawn_alike(tiny_atlas: Atlas) -> None:
    rows = [0, 1, 5]
    some = Atlas(
        sprites=tiny_atlas.sprites[rows],
        group=torch.tensor([0, 0, 1]),
        names=tuple(tiny_atlas.names[row] for row in rows),
    )
    both = Atlas.merged([some, tiny_atlas])
    assert both.group.tolist() == [0, 0, 1, 2, 2, 3, 3, 4, 4] and both.names == some.names + tiny_atlas.names
    assert torch.equal(both.sprites, torch.cat([some.sprites, tiny_atlas.sprites]))
    assert both.shares is not None and torch.allclose(both.shares, torch.tensor([1 / 4] * 2 + [1 / 6] * 3))
    thrice = Atlas.merged([both, some]).shares
    assert thrice is not None and torch.allclose(thrice, torch.tensor([1 / 8] * 2 + [1 / 12] * 3 + [1 / 4] * 2))


def test_cutouts_are_chosen_by_their_path_below_the_folder(tmp_path: Path) -> None:
    for name in ("mug/001", "mug/002", "cup/001", "Apple__Red__1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((6, 6, 4), 255, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    seen: list[str] = []
    atlas = Atlas.from_folders([tmp_path], size=16, keep=lambda name: seen.append(name) or name.startswith("mug/"))  # type: ignore[func-returns-value]
    assert sorted(seen) == ["Apple__Red__1", "cup/001", "mug/001", "mug/002"]
    assert atlas.names == ("001", "002") and atlas.group.tolist() == [0, 0]


def test_bad_atlas_is_named() -> None:
    sprites = torch.zeros(2, 4, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"sprites must have shape \(s, 4, p, q\), got \(2, 3, 8, 8\)"):
        Atlas(sprites=sprites[:, :3], group=torch.zeros(2, dtype=torch.int64), names=("a", "b"))
    for group in ([1, 0], [1, 1]):
        with pytest.raises(ValueError, match="group must ascend from 0: sort the sprites by group"):
            Atlas(sprites=sprites, group=torch.tensor(group), names=("a", "b"))
    with pytest.raises(InputError, match="sprites must hold at least one cutout, got none"):
        Atlas(sprites=sprites[:0], group=torch.zeros(0, dtype=torch.int64), names=())


def test_a_mask_beside_no_picture_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.png", "b.jpg", "a.mask.png", "b.mask.png", "c.mask.png", "d.mask.png"):
        Image.fromarray(np.full((10, 16, *((3,) * (".mask" not in name))), 210, dtype=np.uint8)).save(tmp_path / name)
    assert Atlas.from_folders([tmp_path], size=16).names == ("a", "b")
    assert "2 of the masks in" in caplog.text and "the first is of c.jpg, or another" in caplog.text
    caplog.clear()
    for name in ("c.mask.png", "d.mask.png"):
        (tmp_path / name).unlink()
    Atlas.from_folders([tmp_path], size=16)
    assert not caplog.text
