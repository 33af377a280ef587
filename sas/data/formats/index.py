"""A random-access index of a COCO-style JSON file, so that neither start-up nor memory grows with the file.

The file is streamed once into a folder beside it, `.<name>.sas-index/`: the records as JSON lines, a picture's own record and then its
annotations, so that one picture is one contiguous read; and the places of the pictures as an array. The folder is made again when
the file's size or time of change, the fields asked for or `INDEX_VERSION` differ. It may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import stat
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sas.data.entries import Reopened
from sas.data.formats.raw import Action, Defect, Severity
from sas.data.formats.stream import BadFile, NotFinite, refuse, stream_lists
from sas.io import WINDOWS, InputError, OpenFile, atomic_folder, write_json

logger = logging.getLogger(__name__)

INDEX_VERSION = 2
LISTED = 100
"""Defects of one code that are told one by one; the others are counted."""
ENCODER = json.JSONEncoder(separators=(",", ":"))


class AnnotationIndex(Reopened):
    """The pictures of a COCO-style JSON file, each with its annotations, in the order of the file.

    image_id, id: names of those fields in annotations. category: that of the category's id, "" if there are no categories. label: a
    field of annotations whose value is kept in memory (`label_of`), "" for none. Safe to read from several threads and processes.

    counts: int64 (N,), annotations of each picture. label_of: int32 (A,), place in `labels` of each annotation, picture by picture.
    fields: how many annotations have a field. categories: as in the file. defects: those of the file as a whole.
    InputError if the file is damaged (where it is), is something else (what it is), or holds no picture.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        image_id: str = "image_id",
        id: str = "id",
        category: str = "category_id",
        label: str = "",
    ) -> None:
        self.path = Path(path)
        self._names = _Names(image_id, id, category, label)
        real = Path(os.path.realpath(path))
        try:
            status = real.stat()
        except OSError as error:
            raise InputError(f"annotations {path} cannot be read ({error.strerror}); check the path") from error
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"annotations {path} must be a JSON file, found a folder; name the file in it")
        self._stamp = {
            "index_version": INDEX_VERSION,
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "names": list(asdict(self._names).values()),
        }
        beside = real.parent / f".{real.name}.sas-index"
        if not self._load(beside) and not self._build(real, beside):
            aside = _elsewhere(real)
            logger.info("the index of %s is kept in %s, because %s cannot be written", path, aside, beside)
            if not self._load(aside) and not self._build(real, aside):
                raise InputError(
                    f"annotations {path} need a place for their index, and neither {beside} nor {aside} can be written; "
                    "free some space, or set TMPDIR to a folder that you may write"
                )

    def __len__(self) -> int:
        return len(self.counts)

    def read(self, index: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Record of picture `index` and its annotations, in the order of the file."""
        start, end = int(self._starts[index]), int(self._starts[index + 1])
        lines = self._records.read(start, end - start).splitlines()
        return json.loads(lines[0]), [json.loads(line) for line in lines[1:]]

    def _build(self, source: Path, place: Path) -> bool:
        """Make the index at `place` and load it; False if it cannot be written there."""
        made = False
        try:
            with atomic_folder(place) as folder:
                try:
                    _Builder(source, folder, self._names).build(self._stamp)
                except NotFinite as fault:  # one number that JSON does not know need not cost the whole file
                    _Builder(source, folder, self._names, not_finite=fault.words).build(self._stamp)
                # Loaded before it takes its name: another process may put its own there at the same time.
                if not WINDOWS:  # where a folder with an open file cannot be renamed
                    made = self._load(folder)
            if not made:
                made = self._load(place)
        except BadFile:
            raise
        except InputError as error:
            logger.debug("%s", error)
        return made

    def _load(self, folder: Path) -> bool:
        """Open the index in a folder; False if there is none, or one of another state of the file."""
        try:
            info = json.loads((folder / "index.json").read_bytes())
            if {name: info[name] for name in self._stamp} != self._stamp:
                return False
            # Files carry a word of their own, so that two indexes are never mixed while one replaces the other.
            token = info["token"]
            starts = np.load(folder / f"starts-{token}.npy", allow_pickle=False)
            counts = np.load(folder / f"counts-{token}.npy", allow_pickle=False)
            label_of = np.load(folder / f"labels-{token}.npy", allow_pickle=False)
            records = OpenFile(folder / f"records-{token}.jsonl")
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return False
        if records.size != starts[-1] or len(starts) != len(counts) + 1:
            return False
        self._records, self._starts = records, starts
        self.counts: np.ndarray = counts
        self.label_of: np.ndarray = label_of
        self.labels: list[str] = info["labels"]
        self.fields: dict[str, int] = info["fields"]
        self.categories: list[dict[str, Any]] = info["categories"]
        self.defects: list[Defect] = [Defect(**one) for one in info["defects"]]
        return True


@dataclass(frozen=True)
class _Names:
    image_id: str
    id: str
    category: str
    label: str


# ---------------------------------------------------------------------- making it


class _Builder:
    """Streams a file into a folder. Memory holds a few numbers for each record, never the records."""

    def __init__(self, source: Path, folder: Path, names: _Names, *, not_finite: str = "") -> None:
        self.source, self.folder, self.names, self.not_finite = source, folder, names, not_finite
        self.faults = _Faults()
        self.image_keys, self.image_starts = array("Q"), array("q", [0])
        self.owner_keys, self.id_keys, self.starts = array("Q"), array("Q"), array("q", [0])
        self.label_of = array("i")
        self.labels: dict[str, int] = {}
        self.fields: Counter[str] = Counter()
        self.used: set[int] = set()
        self.categories: list[dict[str, Any]] = []

    def build(self, stamp: dict[str, Any]) -> None:
        images, annotations = self.folder / "images.part", self.folder / "annotations.part"
        found: set[str] = set()
        if self.not_finite:
            words = f"{self.not_finite}; all of them are read as null"
            self.faults.add("warning", "not-finite", words, "keep")
        with images.open("wb") as image_lines, annotations.open("wb") as annotation_lines:
            for name, number, record in stream_lists(self.source, not_finite_as_null=bool(self.not_finite)):
                found.add(name)
                if not isinstance(record, dict):
                    words = f"{name}[{number}] must be an object, got {type(record).__name__}"
                    self.faults.add("error", "field", words, "drop")
                elif name == "images":
                    self._image(number, record, image_lines)
                elif name == "annotations":
                    self._annotation(number, record, annotation_lines)
                else:
                    self.categories.append(record)
        if not {"images", "annotations"} <= found:
            refuse(self.source)
        if not self.image_keys:
            raise BadFile(f"annotations {self.source} must list an image with an id, got none; give each its id")
        after = self.source.stat()
        if (after.st_size, after.st_mtime_ns) != (stamp["size"], stamp["mtime_ns"]):
            raise BadFile(
                f"annotations {self.source} changed while they were read; try again when the file is complete"
            )
        token = secrets.token_hex(6)
        self._group(OpenFile(images), OpenFile(annotations), token)
        images.unlink()
        annotations.unlink()
        self._unused()
        info = {
            **stamp,
            "token": token,
            "labels": list(self.labels),
            "fields": dict(self.fields),
            "categories": self.categories,
            "defects": [asdict(defect) for defect in self.faults.all()],
        }
        write_json(self.folder / "index.json", info)

    def _image(self, number: int, record: dict[str, Any], out: BinaryIO) -> None:
        if record.get("id") is None:
            self.faults.add("error", "field", f"images[{number}] has no id; it has {listed(record)}", "drop")
            return
        self.image_keys.append(_key(record["id"]))
        self.image_starts.append(self.image_starts[-1] + out.write(_line(record)))

    def _annotation(self, number: int, record: dict[str, Any], out: BinaryIO) -> None:
        self.fields.update(record.keys())
        id, owner = record.get(self.names.id), record.get(self.names.image_id)
        if owner is None:
            words = f"annotations[{number}] has no {self.names.image_id}, so no picture; it has {listed(record)}"
            self.faults.add("error", "field", words, "drop", object="" if id is None else str(id))
            return
        self.owner_keys.append(_key(owner))
        # Without an id a number of its own, which is no digest of an id but by a chance of one in 10^19.
        self.id_keys.append(number if id is None else _key(id))
        self.starts.append(self.starts[-1] + out.write(_line(record)))
        if self.names.category in record:
            self.used.add(_key(record[self.names.category]))
        if self.names.label:
            label = str(record.get(self.names.label, ""))
            self.label_of.append(self.labels.setdefault(label, len(self.labels)))

    def _group(self, images: OpenFile, annotations: OpenFile, token: str) -> None:
        """Write the records picture by picture, and where each picture begins."""
        firsts = self._pictures(images)
        rows = self._owners(firsts, annotations)
        kept = (rows >= 0) & ~self._copies(annotations)
        order = np.flatnonzero(kept)
        order = order[np.argsort(rows[order], kind="stable")]
        counts = np.bincount(rows[order], minlength=len(firsts)).astype(np.int64)
        ends = np.zeros(len(firsts) + 1, dtype=np.int64)
        with (self.folder / f"records-{token}.jsonl").open("wb") as out:
            at = 0
            for place, first in enumerate(firsts):
                size = out.write(_slice(images, self.image_starts, int(first)))
                for row in order[at : at + counts[place]]:
                    size += out.write(_slice(annotations, self.starts, int(row)))
                at += counts[place]
                ends[place + 1] = ends[place] + size
        np.save(self.folder / f"starts-{token}.npy", ends)
        np.save(self.folder / f"counts-{token}.npy", counts)
        labels = np.array(self.label_of, dtype=np.int32)
        np.save(self.folder / f"labels-{token}.npy", labels[order] if len(labels) else labels)

    def _pictures(self, images: OpenFile) -> np.ndarray:
        """Numbers of the image records that count: the first of each id, in the order of the file."""
        keys = np.array(self.image_keys, dtype=np.uint64)
        firsts = np.sort(np.unique(keys, return_index=True)[1])
        for number in np.setdiff1d(np.arange(len(keys)), firsts):
            record = json.loads(_slice(images, self.image_starts, int(number)))
            words = "more than one image record has this id; the first counts, and has the annotations of all"
            self.faults.add("error", "image-twice", words, "drop", image=str(record["id"]))
        return firsts

    def _owners(self, firsts: np.ndarray, annotations: OpenFile) -> np.ndarray:
        """Place of the picture of each annotation, -1 if there is none."""
        keys = np.array(self.image_keys, dtype=np.uint64)[firsts]
        wanted = np.array(self.owner_keys, dtype=np.uint64)
        if not len(keys):
            return np.full(len(wanted), -1, dtype=np.int64)
        sorter = np.argsort(keys)
        place = sorter[np.minimum(np.searchsorted(keys, wanted, sorter=sorter), len(keys) - 1)]
        rows = np.where(keys[place] == wanted, place, -1).astype(np.int64)
        for number in np.flatnonzero(rows < 0):
            record = json.loads(_slice(annotations, self.starts, int(number)))
            image, id = str(record[self.names.image_id]), record.get(self.names.id)
            words = "an annotation is of an image that the file does not list"
            self.faults.add("error", "image-unknown", words, "drop", image=image, object="" if id is None else str(id))
        return rows

    def _copies(self, annotations: OpenFile) -> np.ndarray:
        """bool (A,), True for annotations that repeat an earlier one word for word. Any other second use of an id is told and kept."""
        keys = np.array(self.id_keys, dtype=np.uint64)
        copies = np.zeros(len(keys), dtype=bool)
        order = np.argsort(keys, kind="stable")
        new = np.ones(len(keys), dtype=bool)
        new[1:] = keys[order][1:] != keys[order][:-1]
        first_of = order[np.maximum.accumulate(np.where(new, np.arange(len(keys)), 0))] if len(keys) else order
        for number, first in sorted(zip(order[~new].tolist(), first_of[~new].tolist(), strict=True)):
            here, there = (_slice(annotations, self.starts, one) for one in (number, first))
            copies[number] = here == there
            record = json.loads(here)
            words = "this annotation stands in the file twice" if here == there else "another annotation has this id"
            action: Action = "drop" if here == there else "keep"
            image, id = str(record[self.names.image_id]), str(record.get(self.names.id))
            self.faults.add("error", "object-twice", words, action, image=image, object=id)
        return copies

    def _unused(self) -> None:
        if not self.names.category:
            return
        for category in self.categories:
            if "id" in category and _key(category["id"]) not in self.used:
                words = f"no annotation is of category {category['id']} ({category.get('name', 'without a name')})"
                self.faults.add("warning", "category-unused", words, "keep")


class _Faults:
    """Defects of the file, at most LISTED of a code one by one."""

    def __init__(self) -> None:
        self.told: dict[str, list[Defect]] = {}
        self.counts: Counter[str] = Counter()

    def add(
        self, severity: Severity, code: str, words: str, action: Action, *, image: str = "", object: str = ""
    ) -> None:
        self.counts[code] += 1
        told = self.told.setdefault(code, [])
        if len(told) < LISTED:
            told.append(Defect(severity, code, words, action, image=image, object=object))

    def all(self) -> Iterator[Defect]:
        for code, told in self.told.items():
            yield from told
            if more := self.counts[code] - len(told):
                yield Defect(told[0].severity, code, f"and {more} more like this", told[-1].action)


# ---------------------------------------------------------------------- small parts


def listed(record: Iterable[str]) -> str:
    """Names of the fields of a record, for a message."""
    names = [str(name) for name in record]
    return ", ".join(names[:20]) + (" ..." if len(names) > 20 else "") if names else "no field at all"


def _key(value: Any) -> int:
    """A number for an id, the same for 7, 7.0 and "7"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return int.from_bytes(hashlib.blake2b(str(value).encode(), digest_size=8).digest(), "little")


def _line(record: dict[str, Any]) -> bytes:
    return ENCODER.encode(record).encode() + b"\n"


def _slice(file: OpenFile, starts: array[int], number: int) -> bytes:
    return file.read(starts[number], starts[number + 1] - starts[number])


def _elsewhere(source: Path) -> Path:
    """A place for the index of a file in the temporary folder: one that only this user may write, the same in each process."""
    user = os.getuid() if hasattr(os, "getuid") else 0  # as files are said to be owned on Windows
    root = Path(tempfile.gettempdir()) / f"sas-index-{user}"
    with suppress(OSError):
        root.mkdir(mode=0o700, exist_ok=True)
        status = root.lstat()
        if status.st_uid != user or not stat.S_ISDIR(status.st_mode):  # somebody else was there first
            root = Path(tempfile.mkdtemp(prefix="sas-index-"))
    return root / f"{source.name[:80]}-{hashlib.blake2b(str(source).encode(), digest_size=8).hexdigest()}"
