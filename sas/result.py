"""What comes out of taking one image apart: a small, checked, read-only value that can be indexed, drawn, saved and
loaded.

Two frames occur. The *mask grid* is the model's square of side m = `geometry.mask_size`; everything stored lives there.
The *input frame* (H, W) is the image as it was given; everything derived from the stored maps is brought there on
demand, one map at a time, so that a large photograph costs a few of its own size in memory and not layers x members of
it.
"""

from __future__ import annotations

import io as bytestream
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from sas import masks as mask_ops
from sas.catalog import Catalog, take_stock, to_frame
from sas.geometry import Geometry
from sas.io import InputError, atomic_folder, check_replaceable, rle_decode, write_json
from sas.order import DEFAULT_MIN_OVERLAP, edges_from_order, order_from_layers
from sas.overview import overview as draw_overview
from sas.pictures import write_mask, write_unit_map
from sas.provenance import EnsembleSettings, ModelInfo, Stop, check_text
from sas.result_files import ARRAYS_FILE, RESULT_FILE, SCHEMA_VERSION, fault, geometry_from, read_files, write_arrays

MAX_UNCERTAINTY = 0.25  # largest variance of a yes/no vote: half of the members against the other half
PREVIEW_SIZE = 1024
OVERVIEW_FILE, UNCERTAINTY_FILE = "overview.png", "uncertainty.png"
OWN_FILES = r"result\.json|arrays\.npz|overview\.png|uncertainty\.png|(layer|probability|uncertainty)_\d+\.png"
_DTYPES = {
    "preview": np.uint8,
    "members": np.bool_,
    "masks": np.bool_,
    "probability": np.float32,
    "uncertainty": np.float32,
}
_RANGES = {  # from 0 to this, and the cure
    "probability": (1.0, "apply the sigmoid first"),
    "uncertainty": (MAX_UNCERTAINTY, "pass the population variance of 0/1 votes"),
}
_ROUNDING = 1e-6  # a float32 mean or variance may leave its range by this much
_PARTS = {"geometry": Geometry, "stop": Stop, "settings": EnsembleSettings, "model": ModelInfo}


@dataclass(frozen=True, eq=False)
class LayeredResult:
    """One image taken apart, front to back. K layers (may be 0), E members, mask grid of side m.

    preview: uint8 (h', w', 3), RGB, the input scaled down to at most 1024 px on its longer side (`make_preview`); for
    drawing.
    geometry: height and width of the input in pixels, and where it lies on the mask grid.
    members: bool (K, E, m, m), the mask of each member, cut at the threshold in the weights.
    masks: bool (K, m, m), the consensus of the members; amodal, hidden parts included.
    probability: float32 (K, m, m) in [0, 1], mean over the members of their soft prediction.
    uncertainty: float32 (K, m, m) in [0, 0.25], population variance over `members`; p(1-p) in marginal mode.
    stop, settings, model: why it ended, how it was drawn, with which weights.
    file: name of the input file, "" when the image came from memory; bytes that are no text become "?".
    min_overlap: fraction in [0, 1) of the rear object's amodal area that has to be shared before one object hides
    another.
    min_instance_area: fraction in [0, 1) of the mask grid; a smaller connected component of a layer is not an instance.
    refined: None, or one COCO run-length code a layer: its mask in the input frame with the picture's own edges
    (`sas.refine`), which then stands wherever `masks` would have been enlarged. An instance of it takes the pixels that
    lie nearest to its component on the mask grid.

    Arrays are copied and made read-only. A ValueError (TypeError for a wrong kind of value) names the field that breaks
    a rule.
    """

    preview: np.ndarray
    geometry: Geometry
    members: np.ndarray
    masks: np.ndarray
    probability: np.ndarray
    uncertainty: np.ndarray
    stop: Stop
    settings: EnsembleSettings
    model: ModelInfo
    file: str = ""
    min_overlap: float = DEFAULT_MIN_OVERLAP
    min_instance_area: float = 0.001
    refined: tuple[dict[str, Any], ...] | None = None

    def __post_init__(self) -> None:
        for name, kind in _PARTS.items():
            if not isinstance(value := getattr(self, name), kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}: build one first")
        check_text(self.file, name="file")
        object.__setattr__(self, "file", self.file.encode("utf-8", "replace").decode("utf-8"))
        _check_fraction(self.min_overlap, name="min_overlap")
        _check_fraction(self.min_instance_area, name="min_instance_area")
        if self.stop.votes > self.settings.members:
            raise ValueError(
                f"stop.votes must not exceed settings.members = {self.settings.members}, got {self.stop.votes}: "
                "count each void member once"
            )
        self._check_arrays()
        self._check_refined()
        for name in _DTYPES:
            array = np.array(getattr(self, name), order="C")
            if name in _RANGES:
                np.clip(array, 0, _RANGES[name][0], out=array)
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    def _check_arrays(self) -> None:
        for name, dtype in _DTYPES.items():
            array = getattr(self, name)
            if not isinstance(array, np.ndarray):
                raise TypeError(f"{name} must be a NumPy array, got {type(array).__name__}: pass np.asarray(...)")
            if array.dtype != dtype:
                raise ValueError(f"{name} must be {np.dtype(dtype)}, got {array.dtype}: convert it")
        expected = (*preview_size(self.geometry.height, self.geometry.width), 3)
        if self.preview.shape != expected:
            raise ValueError(
                f"preview must have shape {expected} for an input of height {self.geometry.height} and width "
                f"{self.geometry.width}, got {self.preview.shape}: pass make_preview(image)"
            )
        m = self.geometry.mask_size
        count = mask_ops.check_shape(self.masks, "K m n", name="masks", m=m, n=m)["K"]
        sizes = {"K": count, "m": m, "n": m}
        mask_ops.check_shape(self.members, "K E m n", name="members", E=self.settings.members, **sizes)
        for name, (top, cure) in _RANGES.items():
            values = getattr(self, name)
            mask_ops.check_shape(values, "K m n", name=name, **sizes)
            inside = values.size == 0 or (values.min() >= -_ROUNDING and values.max() <= top + _ROUNDING)
            if not inside:  # NaN is not inside either
                got = f"[{values.min():g}, {values.max():g}]"
                raise ValueError(f"{name} must lie in [0, {top:g}], got {got}: {cure}")

    def _check_refined(self) -> None:
        if self.refined is None:
            return
        object.__setattr__(self, "refined", tuple(self.refined))
        size = [self.geometry.height, self.geometry.width]
        if len(self.refined) != len(self.masks) or any(rle["size"] != size for rle in self.refined):
            got = [rle["size"] for rle in self.refined]
            raise ValueError(
                f"refined must hold one run-length code of size {size} for each of {len(self.masks)} layers, got sizes {got}: "
                "encode the masks of `sas.refine.refine` for this image with sas.io.rle_encode"
            )

    def equals(self, other: object) -> bool:
        """Whether every field is equal, arrays value by value."""
        if not isinstance(other, LayeredResult):
            return False
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in pairs)

    def __eq__(self, other: object) -> bool:
        return self.equals(other) if isinstance(other, LayeredResult) else NotImplemented

    def __repr__(self) -> str:
        height, width = self.geometry.height, self.geometry.width
        return (
            f"LayeredResult({len(self)} layers, input {height}x{width} (height x width), {self.settings.members} "
            "members, "
            f"stop={self.stop.reason!r}, file={self.file!r})"
        )

    # -- layers ------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> Layer:
        if not isinstance(index, int | np.integer):
            raise TypeError(
                f"a layer's index must be an integer, got {type(index).__name__}: use list(result) to slice"
            )
        if not -len(self) <= index < len(self):
            raise IndexError(f"layer {index} does not exist: the result has {len(self)} layers, counted from 0")
        return Layer(self, index % len(self))

    def __iter__(self) -> Iterator[Layer]:
        return (Layer(self, index) for index in range(len(self)))

    @cached_property
    def cumulative_masks(self) -> np.ndarray:
        """bool (K + 1, m, m): union of the layers before each layer, and of all layers at the end."""
        return mask_ops.cumulative(self.masks)

    def masks_full(self) -> np.ndarray:
        """bool (K, H, W): consensus masks in the input frame."""
        if self.refined is None:
            return to_frame(self.geometry, self.masks)
        full = [self._layer_full(index) for index in range(len(self))]
        return np.stack(full) if full else np.zeros((0, self.geometry.height, self.geometry.width), dtype=bool)

    def _layer_full(self, index: int) -> np.ndarray:
        """bool (H, W): consensus mask of one layer in the input frame, refined if the result is."""
        if self.refined is None:
            return to_frame(self.geometry, self.masks[index])
        return rle_decode(self.refined[index], name=f"refined[{index}]")

    def probability_full(self) -> np.ndarray:
        """float32 (K, H, W) in [0, 1]: probability in the input frame."""
        return to_frame(self.geometry, self.probability)

    def uncertainty_full(self) -> np.ndarray:
        """float32 (K, H, W) in [0, 0.25]: uncertainty in the input frame."""
        return to_frame(self.geometry, self.uncertainty)

    def uncertainty_map(self) -> np.ndarray:
        """float32 (H, W) in [0, 0.25]: largest uncertainty over the layers; zero without layers."""
        return _largest(self.uncertainty, self.geometry)

    def predictive_variance_map(self) -> np.ndarray:
        """float32 (H, W) in [0, 0.25]: largest p (1 - p) over the layers, p the mean probability; zero without layers.

        The variance of a pixel's yes or no, whether members differ or all hesitate alike. Of the two maps this one finds wrong pixels
        (docs/results.md), and the overview shows it; `uncertainty_map` shows where there are several completions.
        """
        return self._predictive_variance(self.geometry)

    def _predictive_variance(self, geometry: Geometry) -> np.ndarray:
        return _largest(self.probability * (1 - self.probability), geometry)

    # -- instances and their order -----------------------------------------------------------------

    @cached_property
    def _catalog(self) -> Catalog:
        return take_stock(
            self.masks,
            full=self._layer_full,
            members=self.members,
            probability=self.probability,
            geometry=self.geometry,
            min_area=self.min_instance_area,
            refined=self.refined is not None,
        )

    def _describe(self, number: int) -> dict[str, Any]:
        found = self._catalog.instances[number]
        return {
            "id": number,
            "segmentation": rle_decode(found.segmentation),
            "visible": rle_decode(found.visible),
            "bbox": list(found.bbox),
            "area": found.area,
            "predicted_iou": found.score,
            "layer": found.layer,
            "occlusion_rate": found.occlusion_rate,
        }

    @property
    def instances(self) -> list[dict[str, Any]]:
        """Objects in layer order: the 8-connected components of the consensus masks, in a layer the one of the most cells first.

        Each is a dict: id (int from 0), segmentation (H, W) bool amodal mask, visible (H, W) bool mask of the part that
        no earlier layer covers, bbox [x, y, w, h] in pixels of the amodal mask, area in pixels, predicted_iou in [0, 1]
        (mean probability inside the mask x mean over members of the share of the mask that they set), layer,
        occlusion_rate in [0, 1). All masks are in the input frame; components of which no pixel shows there are left out.
        """
        return [{**one, "bbox": list(one["bbox"])} for one in self._described]

    @cached_property
    def _described(self) -> list[dict[str, Any]]:
        return [self._describe(number) for number in range(len(self._catalog.instances))]

    @property
    def count(self) -> int:
        """Number of instances, without their masks."""
        return len(self._catalog.instances)

    @property
    def order(self) -> dict[str, Any]:
        """{"edges": [{"front": id, "behind": id, "confidence": in [0, 1]}], "cycles": []}: who hides whom.

        An edge wants a smaller layer in front and, on the mask grid, a shared area above `min_overlap` of the rear
        object. Its confidence is the smaller of the two scores. Layers cannot form a cycle, so "cycles" is empty.
        """
        found = self._catalog.instances
        edges = [{"front": i, "behind": j, "confidence": min(found[i].score, found[j].score)} for i, j in self._pairs]
        return {"edges": edges, "cycles": []}

    @cached_property
    def _pairs(self) -> list[tuple[int, int]]:
        found = self._catalog.instances
        amodal = (
            np.stack([one.grid_mask for one in found]) if found else np.zeros((0, *self.masks.shape[1:]), dtype=bool)
        )
        layer_index = np.array([one.layer for one in found], dtype=np.int64)
        return edges_from_order(order_from_layers(amodal, layer_index, min_overlap=self.min_overlap))

    # -- files -------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON, as sas/result.schema.json describes it; masks as COCO run-length codes, boxes [x, y, w,
        h]."""
        found = self._catalog.instances
        ids = [[i for i, one in enumerate(found) if one.layer == k] for k in range(len(self))]
        layers = [
            {
                "index": k,
                "area": area,
                "mask": f"layer_{k:02d}.png",
                "probability": f"probability_{k:02d}.png",
                "uncertainty": f"uncertainty_{k:02d}.png",
                "instances": ids[k],
            }
            for k, area in enumerate(self._catalog.areas)
        ]
        instances = [
            {
                "id": i,
                "layer": one.layer,
                "bbox": list(one.bbox),
                "score": one.score,
                "segmentation": one.segmentation,
                "visible": one.visible,
                "occlusion_rate": one.occlusion_rate,
            }
            for i, one in enumerate(found)
        ]
        return {
            "schema_version": SCHEMA_VERSION,
            "image": {"file": self.file, "width": self.geometry.width, "height": self.geometry.height},
            "layers": layers,
            "instances": instances,
            "order": self.order,
            "ensemble": asdict(self.settings),
            "stop": asdict(self.stop),
            "model": asdict(self.model),
        }

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the folder whole or not at all; returns its path. An earlier result there is replaced, other files beside it stay. InputError if
        a folder that holds something else is in the way.

        result.json; layer_XX.png (0 or 255), probability_XX.png = round(255 p), uncertainty_XX.png = round(255 u /
        0.25), one of each a layer, and uncertainty.png, their largest value, all in the input frame; overview.png;
        arrays.npz, from which `load` restores.
        """
        check_replaceable(Path(directory), marks=(RESULT_FILE, ARRAYS_FILE), kind="result", name="directory")
        document = self.to_dict()
        arrays = {name: getattr(self, name) for name in _DTYPES}
        header = {
            "geometry": self.geometry.to_dict(),
            "min_overlap": float(self.min_overlap),
            "min_instance_area": float(self.min_instance_area),
            "refined": self.refined,
            "told": _told(document),
        }
        with atomic_folder(Path(directory), own=OWN_FILES) as folder:
            for layer, names in zip(self, document["layers"], strict=True):
                write_mask(folder / names["mask"], layer.mask)
                write_unit_map(folder / names["probability"], layer.probability)
                write_unit_map(folder / names["uncertainty"], layer.uncertainty / MAX_UNCERTAINTY)
            write_unit_map(folder / UNCERTAINTY_FILE, self.uncertainty_map() / MAX_UNCERTAINTY)
            Image.fromarray(self.overview()).save(folder / OVERVIEW_FILE)
            write_arrays(folder / ARRAYS_FILE, arrays, header)
            write_json(folder / RESULT_FILE, document)
        return Path(directory)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> LayeredResult:
        """Restore what `save` wrote, equal in every field; InputError names the file that is missing, damaged or
        foreign."""
        folder = Path(directory)
        document, arrays, header = read_files(folder)
        try:
            result = cls(
                **arrays,
                geometry=geometry_from(header["geometry"]),
                stop=Stop(**document["stop"]),
                settings=EnsembleSettings(**document["ensemble"]),
                model=ModelInfo(**document["model"]),
                file=document["image"]["file"],
                min_overlap=header["min_overlap"],
                min_instance_area=header["min_instance_area"],
                refined=header.get("refined"),  # files of older versions have none
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{folder} holds no valid result: {fault(error)}; save it again with LayeredResult.save"
            ) from error
        size = {"width": result.geometry.width, "height": result.geometry.height}
        told = {key: document["image"].get(key) for key in size}
        if told != size or len(document["layers"]) != len(result):
            raise InputError(
                f"{folder / RESULT_FILE} tells of {len(document['layers'])} layers and image {told}, {ARRAYS_FILE} of "
                f"{len(result)} layers and image {size}: the two files are of different results; "
                "save it again with LayeredResult.save"
            )
        if "told" in header and header["told"] != _told(document):  # files of older versions have none
            raise InputError(
                f"{folder / RESULT_FILE} and {ARRAYS_FILE} are of different results: take both from one folder that "
                "LayeredResult.save wrote"
            )
        return result

    # -- pictures ----------------------------------------------------------------------------------

    def overview(self) -> np.ndarray:
        """uint8 (height, width, 3): one sheet that shows layers, hidden parts and uncertainty; drawn from `preview`."""
        height, width = self.preview.shape[:2]
        frame = replace(self.geometry, height=height, width=width)
        found = self._catalog.instances
        counts = [sum(one.layer == index for one in found) for index in range(len(self))]
        hidden = mask_ops.area(self.masks & self.cumulative_masks[:-1]) / np.maximum(mask_ops.area(self.masks), 1)
        return draw_overview(
            self.preview,
            layer_masks=to_frame(frame, self.masks) if self.refined is None else self._refined_masks(width, height),
            uncertainty=self._predictive_variance(frame) / MAX_UNCERTAINTY,
            marks=self._marks(frame),
            layer_notes=[_layer_note(n, share) for n, share in zip(counts, hidden.tolist(), strict=True)],
            title=f"{counted(len(self), 'layer')}, {counted(len(found), 'object')}"
            + (f" in {self.file}" if self.file else ""),
            captions=self._captions(),
        )

    def _refined_masks(self, width: int, height: int) -> np.ndarray:
        """bool (K, height, width): refined masks scaled to the preview."""
        scaled = np.zeros((len(self), height, width), dtype=bool)
        for index in range(len(self)):
            full = Image.fromarray(self._layer_full(index).astype(np.uint8) * 255)
            scaled[index] = np.asarray(full.resize((width, height), Image.Resampling.BOX)) > 127
        return scaled

    def show(self) -> None:
        """Open the overview in the desktop's image viewer, or below the cell in a notebook."""
        picture = Image.fromarray(self.overview())
        if "ipykernel" in sys.modules:
            from IPython.display import display  # only there: the notebook brings it

            display(picture)
        else:
            picture.show(title=self.file or "layers")

    def _repr_png_(self) -> bytes:
        stream = bytestream.BytesIO()
        Image.fromarray(self.overview()).save(stream, format="PNG")
        return stream.getvalue()

    def _marks(self, frame: Geometry) -> list[tuple[str, float, float]]:
        """Id of each instance at the most inner cell of its visible part (of its whole mask where nothing is seen)."""
        marks = []
        for number, one in enumerate(self._catalog.instances):
            seen = one.grid_mask & ~self.cumulative_masks[one.layer]
            depth = ndimage.distance_transform_edt(np.pad(seen if seen.any() else one.grid_mask, 1))[1:-1, 1:-1]
            row, column = np.unravel_index(int(depth.argmax()), depth.shape)
            cell = frame.size / frame.mask_size
            x = ((int(column) + 0.5) * cell - frame.left) / frame.scaled_width * frame.width - 0.5
            y = ((int(row) + 0.5) * cell - frame.top) / frame.scaled_height * frame.height - 0.5
            marks.append((str(number), min(max(x, 0.0), frame.width - 1.0), min(max(y, 0.0), frame.height - 1.0)))
        return marks

    def _captions(self) -> list[str]:
        settings, nothing, most = self.settings, self.stop.probability, self.stop.threshold
        by_rule = nothing is not None and most is not None and nothing > most
        stop = {
            "empty": f"{self.stop.votes} of {counted(settings.members, 'try', 'tries')} found no further object"
            if nothing is None
            else f"nothing is left with a probability of {nothing:.2f}, and {most:g} is enough to stop (stop_threshold)"
            if by_rule
            else f"no further object found, probability that nothing is left {nothing:.2f}",
            "no_progress": "the next layer would have added nothing new",
            "max_layers": "the largest number of layers, or of parts joined to them, was reached",
        }[self.stop.reason]
        model = f"{self.model.id} {self.model.sha256[:12]}".rstrip()
        drawn = f"{counted(settings.members, 'member')}, {counted(settings.steps, 'step')}, seed {settings.seed}"
        if settings.noise_scale != 1:
            drawn += f", noise {settings.noise_scale:g}"
        return [
            f"Stopped after {counted(len(self), 'layer')}: {stop}.",
            f"Settings: {drawn}, consensus {settings.consensus}, mode {settings.mode}. Model: {model}.",
        ]


class Layer:
    """One layer of a result, seen in the input frame (H, W). Maps are made when first asked for, then kept.

    index: place in the sequence, 0 = nobody in front.
    """

    def __init__(self, result: LayeredResult, index: int) -> None:
        self._result = result
        self.index = index

    def __repr__(self) -> str:
        return f"Layer(index={self.index}, area={self.area}, instances={[one['id'] for one in self.instances]})"

    @cached_property
    def mask(self) -> np.ndarray:
        """bool (H, W): consensus amodal mask."""
        return self._result._layer_full(self.index)

    @cached_property
    def probability(self) -> np.ndarray:
        """float32 (H, W) in [0, 1]."""
        return to_frame(self._result.geometry, self._result.probability[self.index])

    @cached_property
    def uncertainty(self) -> np.ndarray:
        """float32 (H, W) in [0, 0.25]."""
        return to_frame(self._result.geometry, self._result.uncertainty[self.index])

    @property
    def members(self) -> np.ndarray:
        """bool (E, H, W): the mask of each member, a plausible completion each; as coarse as the mask grid, and made anew at each call."""
        return to_frame(self._result.geometry, self._result.members[self.index])

    @property
    def area(self) -> int:
        """Pixels of `mask`."""
        return self._result._catalog.areas[self.index]

    @cached_property
    def instances(self) -> list[dict[str, Any]]:
        """The result's `instances` that lie in this layer."""
        found = self._result._catalog.instances
        return [self._result._describe(number) for number, one in enumerate(found) if one.layer == self.index]


def _told(document: dict[str, Any]) -> dict[str, Any]:
    """What both files of a result know, by which a pair of two different results is noticed."""
    areas = [layer.get("area") if isinstance(layer, dict) else None for layer in document["layers"]]
    told = {"areas": areas, **{name: document[name] for name in ("ensemble", "stop", "model")}}
    # As it comes back from a file: a name that is no UTF-8 loses what it cannot say.
    return json.loads(json.dumps(told, ensure_ascii=False).encode("utf-8", "replace"))  # type: ignore[no-any-return]


def _largest(maps: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Largest over the layers, (K, m, m) -> float32 (H, W) in the frame of `geometry`; one layer of full size at a time."""
    largest = np.zeros((geometry.height, geometry.width), dtype=np.float32)
    for layer in maps:
        np.maximum(largest, to_frame(geometry, layer), out=largest)
    return largest


def preview_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) in pixels of the preview of an image: its longer side at most 1024, never enlarged."""
    scale = min(1.0, PREVIEW_SIZE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def make_preview(image: np.ndarray) -> np.ndarray:
    """The image scaled down to at most 1024 px on its longer side: uint8 (H, W, 3) -> uint8 (h', w', 3); never
    enlarged."""
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[2] != 3
        or not image.size
    ):
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"image must be uint8 of shape (H, W, 3), got {got}: read it with sas.pictures.read_image")
    height, width = preview_size(*image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image.copy()
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)).copy()


def counted(number: int, word: str, plural: str = "") -> str:
    """ "1 layer", "2 layers"; the plural where an s does not make it."""
    return f"{number} {word if number == 1 else plural or word + 's'}"


def _layer_note(instances: int, hidden: float) -> str:
    return f"{counted(instances, 'object')}, {f'{hidden:.0%} of the area' if hidden else 'nothing'} hidden"


def _check_fraction(value: object, *, name: str) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a fraction in [0, 1), got {value!r}: pass 0.01 for one percent")
