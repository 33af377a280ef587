"""Photographed cutouts and backgrounds to train on, from four packages of Debian 12; nothing of them is part of this repository.

    apt-get download tuxpaint-stamps-default ufoai-textures scratch mate-backgrounds
    for package in *.deb; do dpkg-deb -x $package material; done
    python examples/photographs.py material data/photographed data/surfaces

writes cutouts `<group>__<name>__0.webp` (stamps of Tux Paint, GPL-2) and backgrounds `<package>_<name>.jpg` (textures of UFO: Alien
Invasion, GPL-2+ and CC BY(-SA) 3.0; pictures of Scratch, CC BY-SA 3.0; of MATE, GPL-2+ and CC BY-SA 4.0).
"""

import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

STAMPS = "usr/share/tuxpaint/stamps"
TEXTURES = "usr/share/games/ufoai/base/0textures.pk3"
PLACES = "usr/share/scratch/Media/Backgrounds"
NATURE = "usr/share/backgrounds/mate/nature"

NO_PHOTOGRAPHS = (
    "symbols",
    "cartoon",
    "flags",
    "roadsigns",
    "naturalforces",
    "hats",
    "easter",
    "hanukkah",
    "newyears",
    "body_parts",
)
"""Folders of stamps that are drawn, or no objects."""
DRAWN = {
    "bee", "fly", "hedgehog", "echidna", "button", "pizza", "glass", "tooth", "eye", "bow", "candy_cane", "hard_candy", "lamp", "santahat",
    "Santa", "star", "stocking", "tree", "xmas_tp_bulb", "bat_left", "blackcat", "ghost", "skull", "spider", "moon_3qt", "moon_crescent",
    "1_mercury", "0_sun", "rugby_goal_posts", "inukshuk-outline", "paratrooper", "fireman200b", "birch", "thyme", "lavender",
    "lettuce_bolted", "albino_peahen", "tiger_sumatran", "highlighter",
}  # fmt: skip
SURFACES = (
    "bark", "brick", "carpet", "ceiling", "cement", "concrete", "desert", "dirt", "door", "dung", "floor", "grass", "ground", "hedge", "ice",
    "japwall", "marble", "metal", "paving", "pebbles", "pjrock", "rock", "roof", "rust", "sand", "snow", "stainless", "straw", "street",
    "stucco", "textil", "tile", "wall", "water", "wood",
)  # fmt: skip
"""What the names of surfaces begin with, among textures that are signs, lamps and machines too."""
MAPS = ("_nm", "_sm", "_gm", "_rm", "_norm", "_local", "_glow", "_s")
"""Endings of textures that hold no colours."""
LONGEST, SHORTEST, SIDE = 128, 60, 384
"""Longer side of a cutout at most and at least, and side of a background, pixels."""


def cutouts(material: Path, out: Path) -> int:
    """Photographed stamps, trimmed and made smaller; t_NAME, NAME_mirror and NAME_flip are drawn or come twice."""
    count = 0
    for path in sorted((material / STAMPS).rglob("*.png")):
        folders, name = path.relative_to(material / STAMPS).parts[:-1], path.stem
        if (
            set(folders) & set(NO_PHOTOGRAPHS)
            or name in DRAWN
            or name.startswith("t_")
            or name.endswith(("_mirror", "_flip"))
        ):
            continue
        picture = Image.open(path).convert("RGBA")
        alpha = np.asarray(picture)[..., 3]
        shown = Image.fromarray((alpha > 127).astype(np.uint8))
        if alpha.min() > 250 or shown.getbbox() is None:
            continue
        picture = picture.crop(shown.getbbox())
        if max(picture.size) < SHORTEST:
            continue
        picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        group = "vehicle" if "vehicles" in folders else folders[min(1, len(folders) - 1)]
        picture.save(out / f"{group}__{name}__0.webp", lossless=True)
        count += 1
    return count


def backgrounds(material: Path, out: Path) -> int:
    """Surfaces and places, squared; what is dark, one shade of grey, or looks like one before it is left out."""
    seen: list[np.ndarray] = []
    for name, picture in _pictures(material):
        square = ImageOps.fit(picture.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
        small = np.asarray(square.resize((16, 16), Image.Resampling.BOX), dtype=np.float32) / 255
        if small.mean() < 0.1 or np.asarray(square).std() < 6 or any(np.abs(small - one).mean() < 0.05 for one in seen):
            continue
        seen.append(small)
        square.save(out / f"{name}.jpg", quality=92)
    return len(seen)


def _pictures(material: Path) -> Iterator[tuple[str, Image.Image]]:
    for path in sorted((material / NATURE).glob("*.jpg")):
        if not any(
            word in path.stem for word in ("Flower", "Garden", "LadyBird", "RainDrops", "TwoWings", "Aqua")
        ):  # things
            yield f"mate_{path.stem}", Image.open(path)
    for path in sorted((material / PLACES).rglob("*.jpg")):  # the others are drawn
        yield f"scratch_{path.stem}", Image.open(path)
    with zipfile.ZipFile(material / TEXTURES) as archive:
        for entry in sorted(archive.namelist()):
            path = Path(entry)
            if path.suffix not in (".jpg", ".png") or path.stem.endswith(MAPS) or not path.name.startswith(SURFACES):
                continue
            picture = Image.open(io.BytesIO(archive.read(entry)))
            whole = picture.mode not in ("RGBA", "LA") or np.asarray(picture)[..., -1].min() >= 250
            if min(picture.size) >= 256 and whole:
                yield f"ufoai_{path.parent.name}_{path.stem}", picture


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    material, *folders = (Path(argument) for argument in sys.argv[1:])
    for folder, write in zip(folders, (cutouts, backgrounds), strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{write(material, folder)} pictures in {folder}")
