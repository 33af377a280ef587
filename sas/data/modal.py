"""Training from modal masks alone, in two ways: whole objects to compose scenes from, and partial completion.

**Whole objects.** `cut_objects` cuts out the objects that nothing annotated can be in front of; scenes composed from them have amodal
masks by construction.

**Partial completion** (PCNet, Zhan et al., CVPR 2020). Nobody knows how an object of a modal data set goes on behind others. But if one
covers a part of what is seen of it oneself, that part is known. So a scene is a crop around an object A, itself occluded or
not, with another object of the set laid over 10 to 70 percent of it. Two layers are taught: the object in front, and A with
its modal mask. Not taught is what is not known. The pixels of the other annotated objects in the crop are unknown: A may go on
behind them, and they are objects that the scene does not list. For the same reason the scene is not complete: it never
teaches that nothing is left.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from sas.data.entries import LazyScenes
from sas.data.formats.modal_set import ModalSet
from sas.data.instances import Instance, WholeRule, bounds, counted, cutout, slug
from sas.data.split import Part
from sas.io import InputError, atomic_folder
from sas.masks import area
from sas.scene import Scene
from sas.seeding import derive_seed, generator_for

logger = logging.getLogger(__name__)

NEIGHBOURS = 64
"""Objects tried, one after the other, if that of an index cannot be used."""
ERASERS, DRAWS, SCALES, PLACES = 3, 4, 3, 8
"""Objects in front tried for an object; draws to find one that is whole; sizes tried of it; places tried of each size."""
ENLARGED = 2.0
"""An object in front is enlarged at most this much, so that it is not told by its blur."""


def cut_objects(
    file: str | Path,
    images: str | Path | None,
    out: str | Path,
    *,
    rule: WholeRule = WholeRule(),
    limit: int | None = None,
    seed: int = 0,
    part: Part | None = None,
    fields: Mapping[str, str] = MappingProxyType({}),
    progress: bool = False,
) -> int:
    """Write the whole objects of a modal data set as cutouts that `Atlas.from_folders` reads; returns how many.

    `<category>__<image id>-<annotation id>__0.png`: RGBA, trimmed, alpha 255 on the mask and 0 elsewhere, where the colour is black. The
    folder, new or empty, appears when it is complete. limit: stop after this many, the pictures taken in an order drawn from `seed`. file, images, part,
    fields: see `ModalSet`.
    InputError if there is no such object; the message counts what spoke against the objects there are, and says what to loosen.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}; leave it out to cut all objects")
    data = ModalSet(file, images, part=part, fields=fields)
    pictures = data.pictures
    order = torch.randperm(len(pictures), generator=generator_for(seed, "cutouts")).tolist()
    against: Counter[str] = Counter()
    largest = count = 0
    with atomic_folder(out, new=True) as folder:
        for number in tqdm(order, unit="picture", disable=not progress, dynamic_ncols=True):
            regions = data.regions(pictures[number])
            objections = [rule.objection(regions, row) for row in range(len(regions.instances))]
            whole = [row for row, words in enumerate(objections) if not words]
            small = [regions.masks[row] for row, words in enumerate(objections) if words == "too small"]
            largest = max([largest, *map(_side, small)])
            against.update(words for words in objections if words)
            if not whole:
                continue
            try:
                image = data.image(pictures[number])
            except InputError as error:
                logger.warning("%s", error)
                against["in pictures that cannot be read"] += len(whole)
                continue
            for row in whole[: None if limit is None else limit - count]:
                instance = regions.instances[row]
                path = folder / f"{slug(instance.category)}__{instance.name}__0.png"
                if path.exists():  # ids that are texts may differ in signs that file names cannot have
                    against["whose file name is taken"] += 1
                    continue
                Image.fromarray(cutout(image, regions.masks[row])).save(path)
                count += 1
            if count == limit:
                break
        if not count:
            raise InputError(
                f"{file} must hold at least one whole object, got none ({counted(against) or 'no objects at all'}); "
                f"{_cures(against, rule, largest, file)}"
            )
    logger.info("%s: cut %d whole objects; left out %s", file, count, counted(against) or "none")
    return count


def _cures(against: Counter[str], rule: WholeRule, largest: int, file: str | Path) -> str:
    """What to loosen in a rule, by what spoke against the objects. largest: lesser side of the largest that is too small, pixels."""
    loosen = [
        words
        for reason, possible, words in (
            ("too small", largest > 0, f"lower min_size (--min-size) from {rule.min_size} to {largest} or less"),
            ("at the border", rule.border > 1, f"lower border (--border) from {rule.border}"),
            ("in pieces", True, f"lower share (--share) from {rule.share:g}"),
            ("beside other objects", rule.margin > 0, f"lower margin (--margin) from {rule.margin}"),
        )
        if against[reason] and possible
    ]
    look = f"look at it with `sas data check {file} --format modal`, or name another file"
    return "; ".join(filter(None, [" or ".join(loosen), look]))


def _side(mask: np.ndarray) -> int:
    """The lesser side of the bounding box of a mask bool (H, W), pixels."""
    top, bottom, left, right = bounds(mask)
    return min(bottom - top, right - left)


class PartialCompletion(LazyScenes):
    """Lazy scenes with one object in front of another, from a COCO-style file with modal masks; see the module.

    Scene i is about object i modulo their number; all else is drawn from (seed, i). Object 0 of a scene is the one in front, object 1
    is A; `known` is False on other objects' pixels, `complete` is False. Whatever is named by index is the same on every machine.

    file, images, part, fields: see `ModalSet`. draws: scenes of each object. erased: least and greatest share of A that is covered. context:
    least and greatest side of the crop, as a multiple of A's longer side. min_size: least side of A's bounding box and of
    that of the object in front, pixels. An object in front is a whole one (`WholeRule`) if one of a few draws is.
    """

    def __init__(
        self,
        file: str | Path,
        images: str | Path | None = None,
        *,
        seed: int = 0,
        part: Part | None = None,
        fields: Mapping[str, str] = MappingProxyType({}),
        draws: int = 1,
        erased: tuple[float, float] = (0.1, 0.7),
        context: tuple[float, float] = (1.3, 2.5),
        min_size: int = 32,
    ) -> None:
        if not 0 < erased[0] < erased[1] < 1:
            raise ValueError(
                f"erased must be (least, greatest) share with 0 < least < greatest < 1, got {erased}: pass (0.1, 0.7)"
            )
        if not 1 <= context[0] <= context[1]:
            raise ValueError(
                f"context must be (least, greatest) multiple of at least 1, got {context}: pass (1.3, 2.5)"
            )
        if draws < 1:
            raise ValueError(f"draws must be at least 1, got {draws}: pass the number of scenes of each object")
        if min_size < 1:
            raise ValueError(f"min_size must be at least 1 pixel, got {min_size}: pass 32")
        self.seed, self.draws, self.erased, self.context = seed, draws, erased, context
        self.rule = WholeRule(min_size=min_size)
        self._verdicts: dict[tuple[int, int], tuple[bool, bool]] = {}
        self.data = ModalSet(file, images, part=part, fields=fields)
        self.objects = [one for one in self.data.instances if one.completable(min_size)]
        if len(self.objects) < 2:
            raise InputError(
                f"{file} must hold at least two objects of {min_size} pixels or more, got {len(self.objects)} of "
                f"{len(self.data.instances)}; lower min_size (data.min_size in a configuration), or name another file"
            )

    def __len__(self) -> int:
        return len(self.objects) * self.draws

    def read(self, index: int) -> Scene:
        """Scene of an index; where its object cannot be used (damaged, too small, or nothing fits over it) of the next one that can."""
        for step in range(min(NEIGHBOURS, len(self.objects))):
            chosen = self.objects[(index + step) % len(self.objects)]
            rng = np.random.default_rng(derive_seed(self.seed, "completion", index, step))
            try:
                scene = self._scene(chosen, rng, id=f"{index}-{chosen.name}")
            except InputError as error:
                logger.warning("%s", error)
                continue
            if scene is not None:
                return scene
        raise InputError(
            f"{self.data.path} gives no scene near object {index % len(self.objects)}: none of {step + 1} objects can be read and covered by "
            f"{self.erased[0]:.0%} to {self.erased[1]:.0%}; look at its pictures and masks with `sas data check {self.data.path} --format modal`"
        )

    def _scene(self, chosen: Instance, rng: np.random.Generator, *, id: str) -> Scene | None:
        # 1. The object A in its photograph.
        regions = self.data.regions(chosen.picture)
        row = chosen.place
        if not self.rule.large(regions, row):
            return None
        window = self._crop(regions.masks[row], rng)
        mask, others = regions.masks[row][window], regions.others(row)[window]
        photograph = self.data.image(chosen.picture)[window]

        # 2. Another object, laid over a part of it.
        for _ in range(ERASERS):
            drawn = self._eraser(chosen, rng)
            laid = None if drawn is None else self._lay_over(mask, drawn[1], rng)
            if drawn is None or laid is None:
                continue
            front, (eraser, top, left) = drawn[0], laid
            image, covered = paste(photograph, eraser, top=top, left=left)

            # 3. What is known of the result.
            return Scene(
                image=image,
                amodal_masks=np.stack([covered, mask]),
                order_matrix=np.array([[False, True], [False, False]]),
                names=(front.category, chosen.category),
                id=id,
                min_overlap=0.0,
                source=str(self.data.path),
                known=~(others & ~mask),
                complete=False,
            )
        return None

    def _judged(self, instance: Instance) -> tuple[bool, bool]:
        """Whether an object can be used, and whether it is whole. Remembered, because it takes all masks of a picture to tell."""
        key = instance.picture.index, instance.place
        if key not in self._verdicts:
            regions = self.data.regions(instance.picture)
            row = instance.place
            self._verdicts[key] = self.rule.large(regions, row), not self.rule.objection(regions, row)
        return self._verdicts[key]

    def _crop(self, mask: np.ndarray, rng: np.random.Generator) -> tuple[slice, slice]:
        """A square around the whole object, which lies anywhere in it, as far as the picture reaches."""
        top, bottom, left, right = bounds(mask)
        side = max(bottom - top, right - left) * rng.uniform(*self.context)
        y, x = (low - round((side - (high - low)) * rng.random()) for low, high in ((top, bottom), (left, right)))
        return slice(max(0, y), max(bottom, y + round(side))), slice(max(0, x), max(right, x + round(side)))

    def _eraser(self, chosen: Instance, rng: np.random.Generator) -> tuple[Instance, Image.Image] | None:
        """Another object and its cutout: a whole one if one of a few draws is, else the first that can be used."""
        found: tuple[Instance, Image.Image] | None = None
        for _ in range(DRAWS):
            other = self.objects[int(rng.integers(len(self.objects)))]
            if other == chosen:
                continue
            usable, whole = self._judged(other)
            if not usable or (found is not None and not whole):
                continue
            try:
                rgba = cutout(self.data.image(other.picture), self.data.mask(other))
            except InputError as error:
                logger.warning("%s", error)
                continue
            found = other, Image.fromarray(rgba)
            if whole:
                break
        if found is not None and rng.random() < 0.5:
            return found[0], ImageOps.mirror(found[1])
        return found

    def _lay_over(
        self, mask: np.ndarray, eraser: Image.Image, rng: np.random.Generator
    ) -> tuple[np.ndarray, int, int] | None:
        """The cutout scaled, uint8 (h, w, 4), and its place (top, left) over a mask (H, W) so that its share covered is right; or None."""
        total, solid = area(mask), np.count_nonzero(np.asarray(eraser)[..., 3])
        inside = np.argwhere(mask)
        for _ in range(SCALES):
            wanted = rng.uniform(*self.erased) * rng.uniform(1.0, 2.5) * total
            scale = min(ENLARGED, float(np.sqrt(wanted / solid)))
            rgba = resized(eraser, scale)
            alpha = rgba[..., 3] > 127
            for _ in range(PLACES):
                y, x = inside[int(rng.integers(len(inside)))]
                top, left = (int(at - rng.integers(side)) for at, side in zip((y, x), alpha.shape, strict=True))
                share = np.count_nonzero(shifted(alpha, mask.shape, top=top, left=left) & mask) / total
                if self.erased[0] <= share <= self.erased[1]:
                    return rgba, top, left
        return None


def resized(picture: Image.Image, scale: float) -> np.ndarray:
    """RGBA scaled, uint8 (h, w, 4); colours are weighed by alpha, so that no dark fringe appears."""
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return np.asarray(picture.convert("RGBa").resize((width, height), Image.Resampling.BILINEAR).convert("RGBA"))


def shifted(values: np.ndarray, size: tuple[int, ...], *, top: int, left: int) -> np.ndarray:
    """An array (h, w, ...) at a place of a frame of `size` (H, W), zero around it and cut where it leaves the frame."""
    result = np.zeros((*size[:2], *values.shape[2:]), dtype=values.dtype)
    bottom, right = top + values.shape[0], left + values.shape[1]
    window = np.s_[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    target = result[window]
    target[...] = values[max(0, -top) :, max(0, -left) :][: target.shape[0], : target.shape[1]]
    return result


def paste(image: np.ndarray, rgba: np.ndarray, *, top: int, left: int) -> tuple[np.ndarray, np.ndarray]:
    """A cutout over a picture: uint8 (H, W, 3), uint8 (h, w, 4) -> uint8 (H, W, 3) and the mask bool (H, W) of alpha above one half."""
    layer = shifted(rgba, image.shape, top=top, left=left)
    alpha = layer[..., 3:].astype(np.float32) / 255
    mixed = alpha * layer[..., :3] + (1 - alpha) * image
    return mixed.round().astype(np.uint8), layer[..., 3] > 127
