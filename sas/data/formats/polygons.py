"""Scenes that a person drew: labelme (a JSON file a picture) and CVAT for images 1.1 (one XML file for all).

Both tools stack shapes, and the stack is the order: of two shapes that overlap the upper one is in front. Shapes are amodal: each is drawn
to its full extent, what the upper ones cover is hidden. Shapes of one label and one group are parts of one object.
"""

from __future__ import annotations

import base64
import math
import re
from collections import Counter
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
from PIL import Image

from sas.data.formats.assemble import AnnotatedScenes, bare
from sas.data.formats.coco import PICTURE_CURE, find_picture, picture_folder, scene_id
from sas.data.formats.codes import NO_OBJECT
from sas.data.formats.index import listed as listed_names
from sas.data.formats.raw import Defect, RawScene
from sas.data.formats.segmentation import BadSegmentation
from sas.data.formats.shapes import (
    Shape,
    Size,
    checked_box,
    ellipse,
    join_shapes,
    number,
    placed,
    rectangle,
    stated_number,
    stated_size,
)
from sas.io import InputError, read_json
from sas.order import DEFAULT_MIN_OVERLAP

CHUNK = 1 << 16


class LabelmeScenes(AnnotatedScenes):
    """Scenes of a folder of labelme JSON files, or of one such file.

    Shapes may be polygons, rectangles (two corners), circles (centre and a point of the rim) and masks. Order: a number `z_order` of the
    shape, of its `flags` or of its `attributes`, larger is nearer. Where no shape of a picture has one, the order in the file counts:
    labelme draws later shapes over earlier ones, so with front="last" the last is the nearest; front="first" turns that round. None means
    "last" too, but as an assumption, which `file_defects` tells.
    images: folder of the pictures; without it `imagePath` is followed from the JSON file.
    """

    picture_cure = PICTURE_CURE

    def __init__(
        self,
        path: str | Path,
        *,
        images: str | Path | None = None,
        front: Literal["last", "first"] | None = None,
        min_overlap: float = DEFAULT_MIN_OVERLAP,
    ) -> None:
        if front not in (None, "last", "first"):
            raise InputError(
                f"front must be 'last' or 'first', got {front!r}; name the end of the list that is nearest"
            )
        path = Path(path)
        if not path.exists():
            raise InputError(f"labelme {path} does not exist; name a folder of labelme JSON files")
        files = [path] if path.is_file() else sorted(path.glob("*.json"))
        self.files = [file for file in files if not file.name.startswith(".")]
        if not self.files:
            raise InputError(f"labelme {path} must hold JSON files, got none; name the folder where labelme saved them")
        self.images = None if images is None else picture_folder(path, images)
        self.front = front
        self.min_overlap = min_overlap

    def __len__(self) -> int:
        return len(self.files)

    def file_defects(self) -> list[Defect]:
        """That the order of the list is taken for the order of the objects, if it is and nobody has said so. Reads files up to the first one."""
        for file in self.files if self.front is None else ():
            shapes = _listed_shapes(file)
            if len(shapes) > 1 and all(number(_labelme_height(shape)) is None for shape in shapes):
                words = (
                    f"{file.name} has no z_order, so each shape is taken to lie in front of those before it in the file, here and wherever "
                    "there is none; if you drew from front to back say --front first, else --front last (data.front in a configuration)"
                )
                return [Defect("warning", "order-assumed", words, "keep")]
        return []

    def raw(self, index: int) -> tuple[RawScene, list[Defect]]:
        file = self.files[index]
        name = file.stem
        try:
            record = read_json(file)
            listed, picture = record["shapes"], record["imagePath"].replace("\\", "/")
            if not isinstance(listed, list):
                raise TypeError
        except InputError as error:
            return _refused(file, "json", str(error))
        except (KeyError, TypeError, AttributeError):
            words = f"{file.name} must hold shapes (a list) and imagePath (a text), as labelme writes them; {_other_than_labelme(record)}"
            return _refused(file, "field", words)
        defects: list[Defect] = []
        size = stated_size(record.get("imageHeight"), record.get("imageWidth"), name, defects)
        heights = [
            stated_number("z_order", _labelme_height(shape), name, f"shapes[{place}]", defects)
            for place, shape in enumerate(listed)
        ]
        if all(height is None for height in heights):
            sign = -1 if self.front == "first" else 1
            heights = [sign * float(place) for place in range(len(listed))]
        if not listed:
            defects.append(bare(name))
        shapes: list[Shape] = []
        torn: set[tuple[str, str]] = set()
        for place, (shape, height) in enumerate(zip(listed, heights, strict=True)):
            id = f"shapes[{place}]"
            fields = shape if isinstance(shape, dict) else {}
            label = str(fields.get("label", ""))
            group = "" if fields.get("group_id") is None else str(fields["group_id"])
            try:
                outline = _labelme_outline(shape, size)
            except BadSegmentation as error:
                defects.append(Defect(error.severity, error.code, str(error), "drop", image=name, object=id))
                if error.code not in NO_OBJECT:
                    torn.add((label, group))
                continue
            shapes.append(Shape(id, label, group, outline, height))
        where = file.parent / picture if self.images is None else find_picture(self.images, picture)
        beside = file.parent / PurePosixPath(picture).name
        if self.images is None and not where.is_file() and beside.is_file():
            where = beside  # moved since it was annotated
        return RawScene(name, where, join_shapes(shapes, size, name, defects, torn=torn), size=size), defects


def _listed_shapes(file: Path) -> list[Any]:
    """Shapes of a file, none if it cannot be read, which is told when its picture is."""
    try:
        shapes = read_json(file)["shapes"]
    except (InputError, KeyError, TypeError):
        return []
    return shapes if isinstance(shapes, list) else []


def _other_than_labelme(record: Any) -> str:
    """What a JSON file holds that labelme has not written."""
    if not isinstance(record, dict):
        return f"it is a {type(record).__name__}"
    if {"images", "annotations"} <= record.keys():
        return "the file looks like another format: --format coco (data.format in a configuration)"
    if {"shapes", "imagePath"} <= record.keys():
        return f"got {type(record['shapes']).__name__} and {type(record['imagePath']).__name__}"
    return f"it has {listed_names(record)}"


def _labelme_height(shape: Any) -> Any:
    """The `z_order` of a shape, wherever a tool of the labelme family puts it."""
    if isinstance(shape, dict):
        for holder in (shape, shape.get("flags"), shape.get("attributes")):
            if isinstance(holder, dict) and "z_order" in holder:
                return holder["z_order"]
    return None


def _labelme_outline(shape: Any, size: Size | None) -> list[list[float]] | np.ndarray:
    try:
        kind = shape.get("shape_type") or "polygon"
        points = [(float(x), float(y)) for x, y in shape["points"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadSegmentation("field", "a shape must have points [[x, y], ...]") from error
    if not isinstance(kind, str):
        raise BadSegmentation("field", f"shape_type must be a text, got {str(kind)[:40]}")
    if kind == "polygon" or (kind == "rectangle" and len(points) == 4):
        return [[value for point in points for value in point]]
    if kind not in ("rectangle", "circle", "mask"):
        if kind in ("line", "linestrip", "point", "points"):
            raise BadSegmentation("shape-kind", f"a {kind} encloses nothing; polygon, rectangle, circle and mask do")
        words = f"{kind[:40]!r} is no kind of outline that is known; polygon, rectangle, circle and mask are"
        raise BadSegmentation("field", words)
    if len(points) != 2 or not np.isfinite(points).all():
        raise BadSegmentation("field", f"a {kind} must have two finite points, got {str(points)[:60]}")
    (left, top), (right, bottom) = points
    if kind == "rectangle":
        return [rectangle((left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2)]
    if kind == "circle":
        radius = math.hypot(right - left, bottom - top)
        return [ellipse(left, top, radius, radius)]
    # The second point of a mask is its last pixel, not the one after it.
    box = (int(left), int(top), int(right) - int(left) + 1, int(bottom) - int(top) + 1)
    return placed(_labelme_mask(shape.get("mask"), box[2], box[3]), box, size)


def _labelme_mask(text: Any, width: int, height: int) -> np.ndarray:
    """bool (height, width) of a PNG in base64."""
    try:
        picture = Image.open(BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",))
        if picture.size != (width, height):  # read from the header, before a pixel is unpacked
            found = f"{picture.width}x{picture.height}"
            raise BadSegmentation("mask-size", f"the mask has {found} pixels, its box {width}x{height}")
        return np.asarray(picture.convert("L")) > 0
    except BadSegmentation:
        raise
    except (TypeError, ValueError, OSError, SyntaxError, Image.DecompressionBombError, Warning) as error:
        raise BadSegmentation("mask-damaged", f"the mask must be a PNG in base64 ({error})") from error


class CvatScenes(AnnotatedScenes):
    """Scenes of an XML file of CVAT for images 1.1, or of a folder that holds one as `annotations.xml`.

    Shapes may be polygons, masks, boxes and ellipses (the last two may be turned); a larger `z_order` is nearer. images: folder of the
    pictures; without it `images/` beside the file if there is one, else the file's own folder.
    The file is read through once for the places of its pictures, in constant memory; after that a picture costs its own lines.
    """

    picture_cure = PICTURE_CURE

    def __init__(
        self, path: str | Path, *, images: str | Path | None = None, min_overlap: float = DEFAULT_MIN_OVERLAP
    ) -> None:
        path = Path(path)
        self.path = path / "annotations.xml" if path.is_dir() else path
        if not self.path.is_file():
            raise InputError(f"cvat {self.path} does not exist; name the XML file of an unpacked CVAT export")
        beside = self.path.parent / "images"
        self.images = picture_folder(self.path, beside if images is None and beside.is_dir() else images)
        self.min_overlap = min_overlap
        self.starts, self.names = _find_images(self.path)
        if not self.starts:
            raise InputError(f"cvat {self.path} must hold <image> elements, got none; export as CVAT for images 1.1")

    def __len__(self) -> int:
        return len(self.starts)

    def file_defects(self) -> list[Defect]:
        twice = [name for name, count in Counter(map(_scene_id, self.names)).items() if count > 1]
        words = "more than one image has this name"
        return [Defect("error", "image-twice", words, "keep", image=name) for name in twice]

    def raw(self, index: int) -> tuple[RawScene, list[Defect]]:
        image = _read_image_element(self.path, self.starts[index])
        name = image.get("name", "")
        id = _scene_id(name)
        shapes: list[Shape] = []
        defects: list[Defect] = []
        size = stated_size(image.get("height"), image.get("width"), id, defects)
        torn: set[tuple[str, str]] = set()
        drawn = [element for element in image if element.tag != "tag"]
        if not drawn:
            defects.append(bare(id))
        for place, element in enumerate(drawn, start=1):
            label, group = element.get("label", ""), element.get("group_id", "0")
            try:
                outline = _cvat_outline(element, size)
            except BadSegmentation as error:
                object = f"{element.tag} {place}"
                defects.append(Defect(error.severity, error.code, str(error), "drop", image=id, object=object))
                if error.code not in NO_OBJECT:
                    torn.add((label, group))
                continue
            height = stated_number("z_order", element.get("z_order", "0"), id, f"{element.tag} {place}", defects)
            shapes.append(Shape(f"{element.tag} {place}", label, "" if group == "0" else group, outline, height))
        return RawScene(
            id, find_picture(self.images, name), join_shapes(shapes, size, id, defects, torn=torn), size=size
        ), defects


def _scene_id(name: str) -> str:
    """Name of a picture without its ending, as the id of a scene."""
    return scene_id(re.sub(r"\.[^./]*$", "", name)) if name else ""


def _find_images(path: Path) -> tuple[list[int], list[str]]:
    """Byte at which each <image> begins, and its name. Only the current piece of the file is held in memory."""
    starts: list[int] = []
    names: list[str] = []
    depth = 0
    parser = expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        if depth == 0 and tag != "annotations":
            raise InputError(f"cvat {path} must begin with <annotations>, got <{tag}>; export as CVAT for images 1.1")
        if depth == 1 and tag == "track":
            raise InputError(
                f"cvat {path} holds <track> elements, as CVAT for video does; export as CVAT for images 1.1"
            )
        if depth == 1 and tag == "image":
            starts.append(parser.CurrentByteIndex)
            names.append(attributes.get("name", ""))
        depth += 1

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1

    def doctype(*_: Any) -> None:
        # Entities, which can blow a small file up without bound, are declared there and nowhere else.
        raise InputError(
            f"cvat {path} holds a DOCTYPE, which CVAT never writes and which may hide entity bombs; remove it"
        )

    def declaration(version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and encoding.lower() not in ("utf-8", "utf8", "us-ascii", "ascii"):
            raise InputError(f"cvat {path} must be UTF-8, got {encoding}; save it as UTF-8")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.StartDoctypeDeclHandler = doctype
    parser.XmlDeclHandler = declaration
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except expat.ExpatError as error:
        raise InputError(
            f"cvat {path} is not valid XML at line {error.lineno} column {error.offset + 1} "
            f"({expat.ErrorString(error.code)}); export it again"
        ) from error
    except OSError as error:
        raise InputError(f"cvat {path} cannot be read ({error.strerror}); check the file") from error
    return starts, names


def _read_image_element(path: Path, start: int) -> ElementTree.Element:
    """The <image> element at a byte of the file."""
    parser: ElementTree.XMLPullParser[Any] = ElementTree.XMLPullParser(("end",))
    parser.feed("<annotations>")  # so that what follows the element is no second root
    try:
        with path.open("rb") as file:
            file.seek(start)
            while piece := file.read(CHUNK):
                parser.feed(piece)
                ended: Any = parser.read_events()
                for _, element in ended:
                    if element.tag == "image":
                        return element
    except (OSError, ElementTree.ParseError) as error:
        raise InputError(f"cvat {path} was changed after it was opened ({error}); open it again") from error
    raise InputError(f"cvat {path} was changed after it was opened (it ends too early); open it again")


def _cvat_outline(element: ElementTree.Element, size: Size | None) -> list[list[float]] | np.ndarray:
    tag = element.tag
    try:
        if tag == "polygon":
            return [[float(value) for point in element.attrib["points"].split(";") for value in point.split(",")]]
        turn = math.radians(float(element.get("rotation", "0")))
        if tag == "box":
            left, top, right, bottom = (float(element.attrib[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
            return [rectangle((left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2, turn)]
        if tag == "ellipse":
            x, y, rx, ry = (float(element.attrib[part]) for part in ("cx", "cy", "rx", "ry"))
            return [ellipse(x, y, rx, ry, turn)]
        if tag == "mask":
            runs = [int(run) for run in element.attrib["rle"].split(",")]
            left, top, width, height = (int(element.attrib[side]) for side in ("left", "top", "width", "height"))
            box = (left, top, width, height)
        elif tag in ("points", "polyline"):
            raise BadSegmentation("shape-kind", f"a {tag} encloses nothing; polygon, mask, box and ellipse do")
        else:
            words = f"a {tag} is no kind of outline that can be read; polygon, mask, box and ellipse are"
            raise BadSegmentation("field", words)
    except KeyError as error:
        raise BadSegmentation("field", f"a {tag} must have the attribute {error.args[0]}") from error
    except ValueError as error:
        if isinstance(error, BadSegmentation):
            raise
        raise BadSegmentation("field", f"a {tag} must hold numbers ({error})") from error
    if min(runs) < 0 or width < 1 or height < 1 or sum(runs) != width * height:
        raise BadSegmentation(
            "rle-size", f"the runs of the mask must fill its box of {width}x{height}, got {sum(runs)}"
        )
    checked_box(box, size)  # before anything of the size that the file claims is made
    # Runs of outside and inside by turns, along the rows of the box (unlike COCO, which goes down the columns).
    patch = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return placed(patch, box, size)


def _refused(file: Path, code: str, words: str) -> tuple[RawScene, list[Defect]]:
    return RawScene(file.stem, file, ()), [Defect("error", code, words, "refuse", image=file.stem)]
