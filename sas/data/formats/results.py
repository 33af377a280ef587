"""Predictions as COCO results, the list of scored masks that the COCO API and its evaluation read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sas.io import InputError, atomic_write_bytes
from sas.result import LayeredResult


def coco_results(results: Iterable[tuple[int, LayeredResult]], *, category_id: int = 1) -> Iterator[dict[str, Any]]:
    """Predictions as entries of a COCO results file, one an instance, in the order of `results`: pairs of image id and result.

    Each has image_id, category_id, segmentation (RLE of the amodal mask), bbox [x, y, width, height], score and area as `COCO.loadRes`
    reads them, and of our own layer (0 = nearest), occlusion_rate in [0, 1] and visible_segmentation (RLE). We know no categories, so
    all entries have one: evaluate with `COCOeval.params.useCats = 0`, and pass a category_id that the ground truth has, because COCOeval
    leaves all others out without a word. InputError for an image id that is no integer or comes twice.
    """
    taken: set[int] = set()
    for image_id, result in results:
        if isinstance(image_id, bool) or not isinstance(image_id, int | np.integer):
            raise InputError(
                f"image_id must be an integer, got {image_id!r}; pass the id that the image has in the ground truth"
            )
        if int(image_id) in taken:
            raise InputError(f"image_id must come once, got {image_id} twice; pass one result for each image")
        taken.add(int(image_id))
        for one in result.to_dict()["instances"]:
            yield {
                "image_id": int(image_id),
                "category_id": category_id,
                "segmentation": one["segmentation"],
                "bbox": one["bbox"],
                "score": one["score"],
                "area": int(coco_mask.area(one["segmentation"])),
                "layer": one["layer"],
                "occlusion_rate": one["occlusion_rate"],
                "visible_segmentation": one["visible"],
            }


def write_coco_results(path: str | Path, results: Iterable[tuple[int, LayeredResult]], *, category_id: int = 1) -> int:
    """Write `coco_results` as a JSON file, whole or not at all; returns how many predictions.

    A file without any prediction is valid JSON, but `COCO.loadRes` fails on it, whoever wrote it.
    """
    lines = [json.dumps(entry, allow_nan=False) for entry in coco_results(results, category_id=category_id)]
    atomic_write_bytes(path, ("[\n" + ",\n".join(lines) + "\n]\n").encode())
    return len(lines)
