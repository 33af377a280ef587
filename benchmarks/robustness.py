"""What the first layer loses when pictures are worse: blurred, of fewer pixels, packed as JPEG, noisy, sharpened, dark.

    python benchmarks/robustness.py data/val_cutouts [--weights default] [--limit 200]

The first layer drawn (the weights' own defaults, seed 0; nothing, if there is none) against the true one, both at the masks' grid, for each picture
as it is and changed in each way; strengths are of a picture of 256 pixels. Cells whose truth is unknown are left out. Mean IoU over scenes with objects in a
known order, and the mean of its differences from the picture as it is, with 95 % bootstrap intervals over scenes (1000 resamples, seed 0).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
from first_layer import begin
from PIL import Image, ImageFilter

from sas.data.augment import as_jpeg
from sas.metrics import bootstrap_interval, iou


def smaller(picture: Image.Image, share: float) -> Image.Image:
    side = [max(1, round(one * share)) for one in picture.size]
    return picture.resize((side[0], side[1]), Image.Resampling.BOX).resize(picture.size, Image.Resampling.BICUBIC)


def noisy(picture: Image.Image, deviation: float) -> Image.Image:
    pixels = np.asarray(picture)
    grain = np.random.default_rng(0).normal(0, deviation, pixels.shape)
    return Image.fromarray((pixels + grain).round().clip(0, 255).astype(np.uint8))


WAYS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda picture: picture,
    "Gaussian blur, 1 pixel": lambda picture: picture.filter(ImageFilter.GaussianBlur(1)),
    "Gaussian blur, 2 pixels": lambda picture: picture.filter(ImageFilter.GaussianBlur(2)),
    "half as many pixels a side, and back": lambda picture: smaller(picture, 0.5),
    "JPEG of quality 75": lambda picture: as_jpeg(picture, 75),
    "JPEG of quality 40": lambda picture: as_jpeg(picture, 40),
    "noise of 5 of 255": lambda picture: noisy(picture, 5),
    "noise of 10 of 255": lambda picture: noisy(picture, 10),
    "sharpened by 1.5, 2 pixels": lambda picture: picture.filter(ImageFilter.UnsharpMask(2, 150, 0)),
    "a third as bright": lambda picture: picture.point(lambda value: value / 3),
}


def main() -> None:
    (pipe, scenes), values = begin(__doc__), defaultdict(list)
    for scene, known in scenes:
        for name, way in WAYS.items():
            result = pipe(np.asarray(way(Image.fromarray(scene.image))), seed=0, max_layers=1, refine=False)
            true = result.geometry.masks_to_model(scene.amodal_masks)[scene.layer_index == 0].any(axis=0) & known
            drawn = result.masks[0] & known if len(result) else np.zeros_like(true)
            values[name].append(iou(drawn, true))
    plain = np.array(values["as it is"])
    print(f"{len(plain)} scenes with objects")
    for name, column in values.items():
        away = np.array(column) - plain
        low, high = bootstrap_interval(away)
        print(f"{name}: {np.mean(column):.3f}, {away.mean():+.3f} [{low:+.3f}, {high:+.3f}]")


if __name__ == "__main__":
    main()
