"""Cutouts to compose scenes from: square RGBA sprites, each of a group whose members look alike."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from tqdm.auto import tqdm

from sas.console import no_bar
from sas.data.solids import FAMILIES, render_solids
from sas.io import InputError
from sas.masks import check_shape
from sas.pictures import converted, find_images, open_picture, read_image, read_mask
from sas.seeding import derive_seed

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Atlas:
    """Sprites sorted by group.

    sprites: uint8 (S, 4, P, P) RGBA, straight alpha. group: int64 (S,), ascending from 0. names: one a sprite.
    shares: how often each group is drawn, float (G,), adding up to 1; None: all alike.
    """

    sprites: torch.Tensor
    group: torch.Tensor
    names: tuple[str, ...]
    shares: torch.Tensor | None = None

    def __post_init__(self) -> None:
        count = check_shape(self.sprites, "s 4 p q", name="sprites")["s"]
        check_shape(self.group, "s", name="group", s=count)
        if not count:
            raise InputError(
                "sprites must hold at least one cutout, got none; name a folder with pictures that have alpha"
            )
        if not (self.group[1:] >= self.group[:-1]).all() or self.group[0] != 0:
            raise ValueError("group must ascend from 0: sort the sprites by group")

    def __len__(self) -> int:
        return len(self.sprites)

    @property
    def group_starts(self) -> torch.Tensor:
        """First sprite of each group, int64 (G,)."""
        return torch.searchsorted(self.group, torch.arange(int(self.group[-1]) + 1))

    @property
    def group_sizes(self) -> torch.Tensor:
        """Sprites of each group, int64 (G,)."""
        return torch.bincount(self.group)

    @classmethod
    def generated(
        cls, *, seed: int, classes: int, views: int, size: int = 64, families: Sequence[str] = FAMILIES
    ) -> Atlas:
        """Rendered solids: `classes` looks, shared out evenly over `families`, each in `views` poses."""
        if classes < 1:
            raise ValueError(f"classes must be at least 1, got {classes}: ask for one or more looks")
        sprites, names = [], []
        for c in tqdm(
            range(classes), "rendering cutouts", unit="look", disable=no_bar(), leave=False, dynamic_ncols=True
        ):
            family = families[c % len(families)]
            sprites.append(torch.from_numpy(render_solids(family, seed=derive_seed(seed, c), count=views, size=size)))
            names += [f"{family}-{c:03d}"] * views
        return cls(sprites=torch.cat(sprites), group=torch.arange(classes).repeat_interleave(views), names=tuple(names))

    @classmethod
    def from_folders(
        cls, folders: Sequence[str | Path], *, size: int = 64, keep: Callable[[str], bool] = lambda name: True
    ) -> Atlas:
        """Cutouts of one's own: pictures with alpha, or pictures beside a mask of the same stem and the ending `.mask.png`.

        All levels of a folder are read. The group of `Class__Variety__3.webp` is `Class__Variety`; without "__" every
        picture's folder is its group. keep: accepts those to take by their path below the folder, without its ending.
        """
        files = [path for folder in folders for path, name in cutout_files(folder) if keep(name)]
        if not files:
            raise InputError(
                f"folders must hold at least one cutout, got none in {[str(folder) for folder in folders]}; "
                "name a folder with pictures that have alpha"
            )
        for folder in folders:
            _warn_of_masks_alone(folder)
        found = [(_group_of(path), path) for path in files]
        found.sort(key=lambda pair: (pair[0], pair[1].name))
        groups = {name: number for number, name in enumerate(dict.fromkeys(group for group, _ in found))}
        return cls(
            sprites=torch.stack([read_cutout(path, size=size) for _, path in found]),
            group=torch.tensor([groups[name] for name, _ in found]),
            names=tuple(path.stem for _, path in found),
        )

    @classmethod
    def merged(cls, atlases: Sequence[Atlas]) -> Atlas:
        """Several atlases in one; each is drawn equally often, however many groups it has."""
        if len(atlases) == 1:
            return atlases[0]
        groups, shares, first = [], [], 0
        for atlas in atlases:
            count = len(atlas.group_sizes)
            own = torch.full((count,), 1 / count) if atlas.shares is None else atlas.shares
            groups.append(atlas.group + first)
            shares.append(own / len(atlases))
            first += count
        return cls(
            sprites=torch.cat([atlas.sprites for atlas in atlases]),
            group=torch.cat(groups),
            names=tuple(name for atlas in atlases for name in atlas.names),
            shares=torch.cat(shares),
        )


def cutout_files(folder: str | Path) -> list[tuple[Path, str]]:
    """Cutouts of a folder at all levels, each with its path below it without its ending ("mug/001"); masks beside them left out."""
    if not Path(folder).exists():
        raise InputError(f"cutouts {folder} must be a folder, found nothing; check the path")
    found = [path for path in find_images([str(folder)], recursive=True) if not _is_mask(path)]
    return [
        (path, (path.relative_to(folder) if path != Path(folder) else Path(path.name)).with_suffix("").as_posix())
        for path in found
    ]


def _is_mask(path: Path) -> bool:
    return path.suffixes[-2:-1] == [".mask"]


def _warn_of_masks_alone(folder: str | Path) -> None:
    """A mask that lies beside no picture adds no cutout; whoever put it there meant it to."""
    found = find_images([str(folder)], recursive=True)
    pictures = {path.with_suffix("") for path in found if not _is_mask(path)}
    wanted = [path.with_suffix("").with_suffix("") for path in found if _is_mask(path)]
    alone = [picture for picture in wanted if picture not in pictures]
    if alone:
        logger.warning(
            "%d of the masks in %s lie beside no picture and are left out, the first is of %s.jpg, or another picture of that name",
            len(alone), folder, alone[0].name,
        )  # fmt: skip


def _group_of(path: Path) -> str:
    return path.stem.rsplit("__", 1)[0] if "__" in path.stem else str(path.parent)


def read_cutout(path: Path, *, size: int) -> torch.Tensor:
    """One cutout as a sprite: trimmed to its alpha, scaled to fill a square of `size` with 2 pixels of margin; uint8 (4, size, size)."""
    beside = path.with_name(f"{path.stem}.mask.png")
    if beside.exists():
        picture = Image.fromarray(read_image(path, name="cutout"))
        mask = _mask_beside(beside, size=(picture.height, picture.width))
        picture.putalpha(Image.fromarray(mask.astype(np.uint8) * 255))
    else:
        picture = open_picture(path, f"cutout {path}")
    if not picture.has_transparency_data:
        raise InputError(
            f"cutout {path} must have an alpha channel, got mode {picture.mode}; "
            f"save it with transparency or put its mask beside it as {beside.name}"
        )
    picture = converted(picture, "RGBA", f"cutout {path}")
    box = picture.getchannel("A").point(lambda alpha: 255 if alpha > 127 else 0).getbbox()
    if box is None:
        raise InputError(f"cutout {path} must show something, got alpha that is nowhere above 127; remove the file")
    return _fit(picture.crop(box), size)


def _mask_beside(path: Path, *, size: tuple[int, int]) -> np.ndarray:
    """Mask of a cutout, bool (H, W), white on black; one whose brightest value is dark is taken to hold 0 and 1."""
    mask = read_mask(path, size=size)
    if not mask.any():
        mask = read_mask(path, size=size, threshold=0)
        if not mask.any():
            raise InputError(f"mask {path} of a cutout must show something, got black alone; paint the object white")
        logger.warning("mask %s is nowhere brighter than half; all that is not black is taken for the object", path)
    return mask


def _fit(picture: Image.Image, size: int) -> torch.Tensor:
    """Scale to the square, with colours carried under the transparent part so that no dark fringe is sampled."""
    scale = (size - 4) / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    values = np.asarray(picture.convert("RGBa").resize((width, height), Image.Resampling.BOX), dtype=np.float32)
    alpha = values[..., 3:]
    colour = np.where(alpha > 0, values[..., :3] * 255 / np.maximum(alpha, 1), 0)
    mean = (values[..., :3].sum(axis=(0, 1)) * 255 / max(alpha.sum(), 1.0)).clip(0, 255)
    sprite = np.concatenate([np.broadcast_to(mean, (size, size, 3)), np.zeros((size, size, 1))], axis=-1)
    top, left = (size - height) // 2, (size - width) // 2
    sprite[top : top + height, left : left + width, :3] = np.where(alpha > 0, colour.clip(0, 255), mean)
    sprite[top : top + height, left : left + width, 3:] = alpha
    return torch.from_numpy(rearrange(sprite.round().astype(np.uint8), "h w c -> c h w"))
