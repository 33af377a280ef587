"""Looks a data set over before it is trained on: what it holds, every defect on a line of its own, a report, and a cleaned copy.

A picture is looked at and let go, so that memory holds one picture, a few thumbnails and the defects. What a reader does about
a defect is decided in `sas.data.formats`; here it is told, and what no reader sees is added: pictures that were cut off without a
complaint of the decoder, ids that come twice, visible masks that only some objects have.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from sas.data.folders import ProjectFolder, SASFolders, write_project
from sas.data.formats.assemble import ROUNDING, AnnotatedScenes
from sas.data.formats.modal_set import ModalSet
from sas.data.formats.raw import Action, Defect, RawScene
from sas.data.formats.report import UNREADABLE, Report, Uses, line, markdown
from sas.data.formats.segmentation import BadSegmentation, decode
from sas.data.formats.sheet import Sheet
from sas.data.formats.writers import write_modal
from sas.data.instances import WholeRule
from sas.io import InputError, atomic_folder, write_json
from sas.masks import area
from sas.pictures import read_image, read_mask
from sas.scene import Scene, open_pairs

logger = logging.getLogger(__name__)

REPORT_FILES = ("report.json", "report.md", "sheet.png")
FIRST = 3
"""If so many pictures at the beginning are missing, the folder is probably wrong."""

# ---------------------------------------------------------------------- looking


def check(
    scenes: Sequence[Scene],
    *,
    limit: int | None = None,
    on_progress: Callable[[int, int], object] | None = None,
    on_defect: Callable[[Defect], object] | None = None,
) -> Report:
    """Look at every scene, or at the first `limit`, and report.

    scenes: `AnnotatedScenes`, or any lazy sequence whose items raise when they cannot be read. on_progress: told after each picture how many are
    done and how many there are. on_defect: told of each defect as it is found. InputError if the set as a whole cannot be read.
    """
    report = Report()
    for _ in _walk(scenes, report, limit=limit, on_progress=on_progress, on_defect=on_defect):
        pass
    return report


def _walk(
    scenes: Sequence[Scene],
    report: Report,
    *,
    limit: int | None = None,
    on_progress: Callable[[int, int], object] | None = None,
    on_defect: Callable[[Defect], object] | None = None,
    sheet: Sheet | None = None,
) -> Iterator[Scene]:
    """The scenes worth keeping, mended, one at a time, while the report fills."""

    def tell(defects: Iterable[Defect]) -> None:
        for defect in defects:
            report.defects.append(defect)
            if on_defect is not None:
                on_defect(defect)

    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}; leave it out to look at all pictures")
    report.listed = len(scenes)
    report.modal = Uses(rule=str(WholeRule())) if isinstance(scenes, ModalSet) else None
    total = report.listed if limit is None else min(limit, report.listed)
    if isinstance(scenes, AnnotatedScenes):
        try:
            of_file = scenes.file_defects()
        except Exception as error:
            raise _CannotRead(_words(error)) from error
        tell(of_file)
        refused = [line(defect) for defect in of_file if defect.action == "refuse"]
        if refused:  # every picture would be refused for the same reason
            raise _CannotRead(refused[0], told=True)
    missing = 0
    known_twice = {defect.image for defect in report.defects if defect.code == "image-twice"}
    taken: set[str] = set()
    owners: dict[Path, str] = {}
    for index in range(total):
        id, scene, defects, picture = _look(scenes, index)
        if picture is not None and (owner := owners.setdefault(picture, id)) != id:
            words = f"it is read from {picture}, as {owner} is; if names of pictures begin with folders, name the one they start from"
            defects.append(Defect("error", "image-twice", words, "keep", image=id))
        if id in taken and id not in known_twice:
            defects.append(Defect("error", "image-twice", "an earlier picture has the same id", "keep", image=id))
        taken.add(id)
        tell(defects)
        missing += any(defect.code == "image-missing" for defect in defects)
        if missing == index + 1 == min(total, FIRST) and (cure := getattr(scenes, "picture_cure", "")):
            tell([_wrong_folder(missing, cure)])
        report.pictures += 1
        if scene is not None:
            report.add(scene)
            if report.modal is not None and isinstance(scenes, ModalSet):
                report.modal.add(scenes.uses(index))
            if sheet is not None:
                sheet.offer(index, total, scene, defects)
            if not any(defect.code == "image-cut" for defect in defects):
                yield scene
        if on_progress is not None:
            on_progress(index + 1, total)
    if report.unordered and report.modal is None:  # modal masks have no order, and need none
        tell([_no_order(report, getattr(scenes, "order_cure", ""))])


def _wrong_folder(missing: int, cure: str) -> Defect:
    which = "the only picture is" if missing == 1 else f"the first {missing} pictures are all"
    words = f"{which} missing, so the folder of the pictures may be another one: {cure}"
    return Defect("warning", "image-folder", words, "keep")


def _no_order(report: Report, cure: str) -> Defect:
    """What it means that pictures have no order at all, told once for the set."""
    every = report.unordered == report.readable
    who = "nothing says" if every else f"{report.unordered} of {report.readable} pictures do not say"
    words = (
        f"{who} who is in front, so there are no layers, and layers cannot be trained on {'this set' if every else 'them'}; drawing "
        f"and scores without order work; {cure or 'to train, add an order to the files'}"
    )
    return Defect("warning", "order-none", words, "keep")


def _look(scenes: Sequence[Scene], index: int) -> tuple[str, Scene | None, list[Defect], Path | None]:
    """Id, mended scene and defects of a picture; no scene if it is refused. And its file, where each file is of one picture."""
    id, picture = f"#{index + 1}", None
    try:
        if isinstance(scenes, AnnotatedScenes):
            raw, _ = scenes.raw(index)
            id = raw.id
            if scenes.picture_once and raw.image.is_file():
                picture = raw.image
            scene, defects = scenes.inspect(index)
            if scene is not None:
                defects = [*defects, *_overlooked(raw, scene, defects)]
        else:
            id = _id(scenes, index)
            scene = scenes[index]
            id, defects = scene.id, list(_findings(scene))
        return id, None if scene is None else mend(scene), list(defects), picture
    except Exception as error:  # hostile data raises nearly every kind, and one picture must not end the whole check
        return id, None, [replace(_diagnosis(scenes, index, error), image=id)], picture


def _overlooked(raw: RawScene, scene: Scene, defects: Sequence[Defect]) -> Iterator[Defect]:
    """What is wrong with a picture that its reader took without a word."""
    if _cut_off(raw.image):
        words = f"{raw.image.name} has no end mark, its lower part may be missing"
        yield Defect("error", "image-cut", words, "keep", image=raw.id)
    told = {defect.object for defect in defects if defect.code.endswith("-twice")}
    for one, times in Counter(one.id for one in raw.objects).items():
        if times > 1 and one not in told:
            yield Defect("error", "object-twice", f"{times} objects have this id", "keep", image=raw.id, object=one)
    objects = [one for one in raw.objects if not one.lost]
    some = sum(one.visible is not None or one.invisible is not None for one in objects)
    if some and len(scene) and scene.visible_masks is None:
        words = f"only {some} of {len(objects)} objects have a visible mask; they are used for the order alone"
        yield Defect("warning", "visible-some", words, "drop", image=raw.id)


def _cut_off(path: Path) -> bool:
    """Whether a JPEG has no end mark (EOI) behind its picture data. Pillow takes zeros in its place for plain grey, without an error."""
    data = path.read_bytes()
    if not data.startswith(b"\xff\xd8"):
        return False
    at = 2
    while (
        data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda"
    ):  # segments before the data may hold thumbnails
        at += 1 if data[at + 1 : at + 2] == b"\xff" else 2 + int.from_bytes(data[at + 2 : at + 4])
    return b"\xff\xd9" not in data[at:]


def _findings(scene: Scene) -> Iterator[Defect]:
    """Defects of a scene that comes without a record of its annotation. Objects are named by their place, from 0."""
    does: Action = "drop" if scene.order_matrix is not None or scene.visible_masks is not None else "keep"
    seen = scene.visible if does == "drop" else None
    for i, full in enumerate(scene.amodal_masks):
        if not full.any():
            yield Defect("warning", "mask-empty", "the amodal mask has no pixel in the picture", does, scene.id, str(i))
        elif seen is not None and not seen[i].any():
            yield Defect("warning", "invisible", "no pixel of the object is visible", does, scene.id, str(i))
        elif seen is not None and (share := float((seen[i] & ~full).sum() / seen[i].sum())) > ROUNDING:
            words = f"{share:.1%} of the visible mask lies outside the amodal mask"
            yield Defect("warning", "visible-outside", words, "keep", scene.id, str(i))
    for i, j in open_pairs(scene):
        yield Defect(
            "warning", "order-unknown", f"nothing says which of {i} and {j} is in front", "keep", scene.id, str(i)
        )
    if scene.order_matrix is not None and scene.assignment.cut_edges:
        cut = ", ".join(f"{i} in front of {j}" for i, j in scene.assignment.cut_edges)
        words = f"the order runs in a circle; for the layers it is cut at {cut}"
        yield Defect("warning", "order-cycle", words, "repair", scene.id)


def mend(scene: Scene) -> Scene:
    """The scene as a cleaned copy holds it: amodal masks widened to what is seen, objects without a pixel left out, no circle in the order.

    Where a circle is cut, what is seen of each object is written down as it was: the order that is left would hide more.
    """
    if scene.visible_masks is not None and (scene.visible_masks & ~scene.amodal_masks).any():
        scene = replace(scene, amodal_masks=scene.amodal_masks | scene.visible_masks)
    filled = area(scene.amodal_masks) > 0
    if not filled.all():
        order, seen = scene.order_matrix, scene.visible_masks
        scene = replace(
            scene,
            amodal_masks=scene.amodal_masks[filled],
            order_matrix=None if order is None else order[np.ix_(filled, filled)],
            visible_masks=None if seen is None else seen[filled],
            names=tuple(name for name, keep in zip(scene.names, filled, strict=True) if keep),
            alternatives=tuple(masks[filled] for masks in scene.alternatives),
            dropped=scene.dropped + int((~filled).sum()),
        )
    scene = scene.drop_invisible()
    if scene.order_matrix is None or not scene.assignment.cut_edges:
        return scene
    order = scene.order_matrix.copy()
    order[tuple(np.transpose(scene.assignment.cut_edges))] = False
    return replace(scene, order_matrix=order, visible_masks=scene.visible)


# ---------------------------------------------------------------------- why a scene cannot be read


def _id(scenes: Sequence[Scene], index: int) -> str:
    """Id of a scene that may not be readable, its number from 1 if nothing better is known."""
    if isinstance(scenes, SASFolders):
        return scenes.ids[index]
    try:
        if isinstance(scenes, ProjectFolder):
            return str(json.loads(scenes.lines[index])["id"])
        named = getattr(scenes, "scene_id", None)
        return f"#{index + 1}" if named is None else str(named(index))
    except Exception:  # what is wrong is told when the scene itself is read
        return f"#{index + 1}"


def _diagnosis(scenes: Sequence[Scene], index: int, error: Exception) -> Defect:
    """The defect behind an error of reading scene `index`."""

    def refused(code: str, words: str, object: str = "") -> Defect:
        return Defect("error", code, words, "refuse", object=object)

    try:
        if isinstance(scenes, ProjectFolder):
            try:
                entry = json.loads(scenes.lines[index])
            except ValueError as fault:
                return refused("json", f"line {index + 1} of scenes.jsonl is no valid JSON ({fault})")
            path, size = scenes.path / entry["file"], (entry["height"], entry["width"])
            objects = {str(i): [one["segmentation"], one.get("visible")] for i, one in enumerate(entry["objects"])}
        elif isinstance(scenes, SASFolders):
            folders = scenes.folders[scenes.ids[index]]
            path, size = folders[0] / "image.png", None
            objects = {folder.name: [folder / "mask.png"] for folder in folders}
        else:
            broken = isinstance(error.__cause__, json.JSONDecodeError | UnicodeDecodeError)
            return refused("json" if broken else "unreadable", _words(error))
        if not path.is_file():
            return refused("image-missing", f"there is no file {path}")
        try:
            image = read_image(path)
        except InputError as fault:
            return refused("image-damaged", str(fault))
        height, width = image.shape[:2]
        if size is not None and size != (height, width):
            words = f"the file says {size[1]}x{size[0]} (width x height), {path.name} has {width}x{height}"
            return refused("image-size", words)
        for name, masks in objects.items():
            for mask in masks:
                try:
                    if isinstance(mask, Path):  # SAS folders store 1 for inside now and then, which is no defect there
                        _check_mask_file(mask, height, width)
                    elif mask is not None:
                        decode(mask, height, width)
                except BadSegmentation as fault:
                    return refused(fault.code, str(fault), name)
    except (KeyError, TypeError, AttributeError, IndexError) as fault:
        return refused("field", f"a field is missing or odd ({_words(fault)})")
    odd = KeyError | TypeError | AttributeError | IndexError
    cause = (
        error.__cause__ if isinstance(error.__cause__, odd | ValueError) else error
    )  # its line is told by other words here
    return refused("field" if isinstance(cause, odd) else "unreadable", _words(cause))


def _check_mask_file(path: Path, height: int, width: int) -> None:
    try:
        mask = read_mask(path, threshold=0)
    except InputError as error:
        raise BadSegmentation("mask-damaged", str(error)) from error
    if mask.shape != (height, width):
        words = f"{path.name} has {mask.shape[1]}x{mask.shape[0]} pixels, the picture {width}x{height}"
        raise BadSegmentation("mask-size", words)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


# ---------------------------------------------------------------------- the whole run


def run_check(
    scenes: Sequence[Scene] | Callable[[], Sequence[Scene]],
    *,
    out: str | Path | None = None,
    repair: str | Path | None = None,
    limit: int | None = None,
    write: Callable[[str], object] = logger.info,
    data: str | Path | None = None,
) -> int:
    """Check a data set and tell each defect on a line as it is found, and the counts on the last; returns the exit status.

    scenes: the scenes, or a function that opens them; if it fails, that is a line too and the status is `UNREADABLE`. out: folder for
    report.json, report.md and sheet.png; an older report there is replaced. repair: new folder for a cleaned copy in the project format; what the reader
    drops or repairs is settled there, pictures that are refused or cut off are left out. limit: only the first pictures, in the copy too. write: takes
    a line. data: file or folder that is read, for the title of the report; the copy may not lie in it. What modal masks are good for is told
    on a line before the counts, and their copy is a COCO-style file.

    InputError for a limit, folder or copy that cannot be; neither folder is then left half-written, and the data are never written to.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}; leave it out to look at all pictures")
    _check_targets(out, repair)
    _rehearse(out)
    report, sheet = Report(data="" if data is None else str(data)), Sheet()

    def tell(defect: Defect) -> None:
        with tqdm.external_write_mode():
            write(line(defect))

    try:
        opened = _open(scenes)
        if repair is not None:
            _check_outside(repair, _sources(opened, data))
            _rehearse(repair)
        with tqdm(
            total=min(len(opened), limit or len(opened)), unit="picture", disable=None, dynamic_ncols=True
        ) as bar:
            walk = _walk(opened, report, limit=limit, on_progress=lambda *_: bar.update(), on_defect=tell, sheet=sheet)
            if repair is not None:
                _write_copy(repair, walk, report, modal=isinstance(opened, ModalSet))
            for _ in walk:
                pass
    except _CannotRead as error:
        if not error.told:
            report.defects.append(Defect("error", "unreadable", str(error), "refuse"))
            tell(report.defects[-1])
        if out is not None:
            _write_report(out, report, None)
        write(str(report))
        return UNREADABLE
    if out is not None:
        _write_report(out, report, sheet.picture())
    if report.modal is not None:
        write(str(report.modal))
    write(str(report))
    if repair is not None and not report.repaired:
        raise InputError(f"cannot write {repair}: no picture is left to copy; mend the errors at their source first")
    return report.status


class _Rehearsed(Exception):
    """A folder could be written."""


def _rehearse(target: str | Path | None) -> None:
    """InputError if a folder cannot be written: now, and not after hours of looking."""
    if target is None:
        return
    made = [one for one in Path(os.path.realpath(target)).parents if not os.path.lexists(one)]
    try:
        with suppress(_Rehearsed), atomic_folder(target):
            raise _Rehearsed
    finally:
        for one in made:
            with suppress(OSError):  # somebody else has put something there
                one.rmdir()


class _CannotRead(InputError):
    """The data set as a whole cannot be read. told: whether a defect of the report says so already."""

    def __init__(self, words: str, *, told: bool = False) -> None:
        super().__init__(words)
        self.told = told


def _open(scenes: Sequence[Scene] | Callable[[], Sequence[Scene]]) -> Sequence[Scene]:
    try:
        opened = scenes() if callable(scenes) else scenes
        len(opened)
    except Exception as error:  # as with one picture: whatever hostile data raise, it is a finding
        raise _CannotRead(_words(error)) from error
    return opened


def _write_copy(target: str | Path, walk: Iterator[Scene], report: Report, *, modal: bool = False) -> None:
    """Write the scenes as a project, or as a COCO-style file of modal masks, each under an id of its own; nothing if there are none."""
    report.repaired = 0
    first = next(walk, None)
    if first is None:
        return

    def copied() -> Iterator[Scene]:
        taken: set[str] = set()
        for scene in chain([first], walk):
            plain = re.sub(r"[/\\\0]", "_", scene.id).lstrip(".") or "scene"
            names = chain([plain], (f"{plain}-{number}" for number in count(2)))
            id = next(name for name in names if name not in taken)
            taken.add(id)
            report.repaired = len(taken)
            yield scene if id == scene.id else replace(scene, id=id)

    if modal:
        write_modal(target, copied())
        return
    write_project(target, copied(), min_overlap=first.min_overlap, generator="sas data check --repair")


def _write_report(out: str | Path, report: Report, picture: np.ndarray | None) -> None:
    with atomic_folder(out) as folder:
        write_json(folder / "report.json", report.as_json())
        text = markdown(report, sheet=picture is not None)
        (folder / "report.md").write_bytes(text.encode("utf-8", errors="replace"))  # names of files may be no text
        if picture is not None:
            Image.fromarray(picture).save(folder / "sheet.png")


def _check_targets(out: str | Path | None, repair: str | Path | None) -> None:
    """InputError if a folder to be written is taken, or if one lies in the other."""
    for name, target, own in (("out", out, REPORT_FILES), ("repair", repair, ())):
        if target is None or not os.path.lexists(target):
            continue
        if not os.path.isdir(target):
            raise InputError(f"{name} must be a folder, got the file {target}; name a new folder")
        if any(entry not in own for entry in os.listdir(target)):
            raise InputError(f"{name} must be a new or empty folder, got {target}, which holds files; name another one")
    if out is not None and repair is not None:
        places = [Path(os.path.realpath(target)) for target in (out, repair)]
        if any(one == other or one in other.parents for one, other in (places, places[::-1])):
            raise InputError(f"out and repair must be folders apart, got {out} and {repair}; name another one")


def _sources(scenes: Sequence[Scene], data: str | Path | None) -> list[Path]:
    """Folders that the scenes are read from, as far as they tell."""
    named: list[Any] = [data, getattr(scenes, "path", None), getattr(scenes, "images", None)]
    if isinstance(scenes, AnnotatedScenes) and len(scenes):
        with suppress(Exception):  # the walk tells what is wrong with it
            named.append(scenes.raw(0)[0].image.parent)
    return [Path(os.path.realpath(one)) for one in named if isinstance(one, str | Path) and os.path.isdir(one)]


def _check_outside(repair: str | Path, sources: Iterable[Path]) -> None:
    place = Path(os.path.realpath(repair))
    for source in sources:
        if place == source or source in place.parents:
            raise InputError(f"repair must lie outside the data, got {repair} in {source}; name a folder elsewhere")
