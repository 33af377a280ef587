"""Predictions as COCO results: the COCO API reads them, and its evaluation finds in them what was predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import box
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_result import _result

from sas.data.formats.results import coco_results, write_coco_results
from sas.io import InputError, rle_decode
from sas.result import LayeredResult

M = 32
FIRST = box(M, M, 8, 2, 16, 10) | box(M, M, 18, 16, 24, 26)  # two objects of the first layer
SECOND = box(M, M, 12, 6, 22, 20)


@pytest.fixture
def result() -> LayeredResult:
    return _result(np.stack([FIRST, SECOND]))


def truth(folder: Path, results: dict[int, LayeredResult]) -> COCO:
    """Ground truth that the results meet exactly."""
    annotations: list[dict[str, Any]] = []
    for image_id, result in results.items():
        for place, one in enumerate(result.to_dict()["instances"]):
            area = int(rle_decode(one["segmentation"]).sum())
            more = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": 7 + place,
                "iscrowd": 0,
                "area": area,
            }
            annotations.append({**more, "segmentation": one["segmentation"], "bbox": one["bbox"]})
    images = [{"id": image_id, "width": 96, "height": 64, "file_name": f"{image_id}.png"} for image_id in results]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7 + i, "name": f"kind {i}"} for i in range(3)],
    }
    (folder / "truth.json").write_text(json.dumps({"info": {}, **content}))
    return COCO(str(folder / "truth.json"))


def precision(truth: COCO, found: COCO, kind: str) -> float:
    evaluation = COCOeval(truth, found, kind)
    evaluation.params.useCats = 0
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_the_coco_evaluation_reads_them(tmp_path: Path, result: LayeredResult, kind: str) -> None:
    empty, other = _result(np.zeros((0, M, M), dtype=bool)), _result(SECOND[None])
    api = truth(tmp_path, {3: result, 5: other, 9: empty})
    assert write_coco_results(tmp_path / "exact.json", [(3, result), (5, other), (9, empty)], category_id=8) == 4
    assert precision(api, api.loadRes(str(tmp_path / "exact.json")), kind) == 1
    # Of four objects, of three kinds, one is found.
    write_coco_results(tmp_path / "swapped.json", [(3, other), (np.int64(5), empty)], category_id=8)
    assert 0 < precision(api, api.loadRes(str(tmp_path / "swapped.json")), kind) < 0.5


def test_each_entry_in_full(result: LayeredResult) -> None:
    entries = list(coco_results([(3, result)], category_id=4))
    assert len(entries) == 3 and json.loads(json.dumps(entries)) == entries
    for entry, one in zip(entries, result.instances, strict=True):
        assert set(entry) == {
            *("image_id", "category_id", "segmentation", "bbox", "score", "area", "layer", "occlusion_rate"),
            "visible_segmentation",
        }
        assert (entry["image_id"], entry["category_id"]) == (3, 4)
        assert (rle_decode(entry["segmentation"]) == one["segmentation"]).all()
        assert (rle_decode(entry["visible_segmentation"]) == one["visible"]).all()
        for name in ("bbox", "area", "layer", "occlusion_rate"):
            assert entry[name] == one[name]
        assert entry["score"] == one["predicted_iou"]
    assert [entry["layer"] for entry in entries] == [0, 0, 1] and entries[2]["occlusion_rate"] > 0


def test_nothing_found_is_a_valid_empty_list(tmp_path: Path) -> None:
    assert write_coco_results(tmp_path / "none.json", [(1, _result(np.zeros((0, M, M), dtype=bool)))]) == 0
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_bad_ids_are_refused_and_nothing_is_written(tmp_path: Path, result: LayeredResult) -> None:
    for bad in ("3", 3.0, True, None):
        with pytest.raises(
            InputError, match=f"image_id must be an integer, got {bad!r}; pass the id that the image has"
        ):
            write_coco_results(tmp_path / "x.json", [(1, result), (bad, result)])  # type: ignore[list-item]
    with pytest.raises(InputError, match="image_id must come once, got 1 twice; pass one result for each image"):
        write_coco_results(tmp_path / "x.json", [(1, result), (1, result)])
    assert list(tmp_path.iterdir()) == []
