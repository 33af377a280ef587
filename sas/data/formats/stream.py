"""Streaming a COCO-style JSON file, and saying where it is damaged or what it is instead."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import ijson
from tqdm.auto import tqdm

from sas.io import InputError

CHUNK = 1 << 16
LISTS = ("images", "annotations", "categories")
BOM = b"\xef\xbb\xbf"
TEXT_OR_WORD = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|-?(?:NaN|Infinity)', re.DOTALL)
"""A JSON text, which the end of the bytes may cut, or a number that JSON does not know."""
WORD = re.compile(rb"-?[A-Za-z]+")


class BadFile(InputError):
    """The annotation file cannot be used, wherever its index is kept."""


class NotFinite(BadFile):
    """The file holds NaN or Infinity, which JSON does not know; it may be well otherwise. words: what it holds, and where."""

    def __init__(self, path: Path, words: str) -> None:
        super().__init__(f"annotations {path} are not valid JSON: {words}")
        self.words = words


def stream_lists(path: Path, *, not_finite_as_null: bool = False) -> Iterator[tuple[str, int, Any]]:
    """Entries of the top-level lists of a JSON file as (list, number in it, entry), in one pass. BadFile where the file is damaged.

    not_finite_as_null: NaN and Infinity are read as null; else the first one is an error, `NotFinite`.
    """
    lists = {name: ijson.sendable_list() for name in LISTS}
    readers = {name: ijson.items_coro(lists[name], f"{name}.item", use_float=True) for name in LISTS}
    numbers: Counter[str] = Counter()
    size = path.stat().st_size
    bar = tqdm(total=size, unit="B", unit_scale=True, desc=f"indexing {path.name}", delay=2, disable=None, leave=False)
    with path.open("rb") as file, bar:
        if file.read(len(BOM)) != BOM:
            file.seek(0)
        pieces = _with_null(file) if not_finite_as_null else _chunks(file)
        while True:
            start = file.tell()
            chunk = next(pieces, b"")
            try:
                for reader in readers.values():
                    reader.send(chunk) if chunk else reader.close()
            except (ijson.JSONError, ValueError, ArithmeticError) as error:  # also numbers that no float can hold
                if not_finite_as_null:  # bytes were put in and left out, so that places say nothing
                    raise BadFile(
                        f"annotations {path} are not valid JSON ({_reason(error)}); write the file again"
                    ) from error
                raise _damaged(path, start, error) from error
            running = {name for name in readers if numbers[name]}
            for name in readers:
                for entry in lists[name]:
                    yield name, numbers[name], entry
                    numbers[name] += 1
                lists[name].clear()
            if not chunk:
                return
            if any(numbers[name] for name in readers.keys() - running):
                # Another list has begun, so those that ran before are over: their readers would look at the rest in vain.
                readers = {name: reader for name, reader in readers.items() if name not in running}
            bar.update(len(chunk))


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(CHUNK):
        yield piece


def _with_null(file: BinaryIO) -> Iterator[bytes]:
    """The rest of a file with null in place of NaN and Infinity, but for those inside of texts."""
    rest = b""
    for piece in chain(_chunks(file), [b""]):
        data = rest + piece
        done: list[bytes] = []
        at = 0
        cut = False
        for match in TEXT_OR_WORD.finditer(data):
            text = match.group()[:1] == b'"'
            cut = text and match.end() == len(data) and bool(piece)
            if cut:  # the text may go on in the next piece
                break
            done += [data[at : match.start()], match.group() if text else b"null"]
            at = match.end()
        if not cut:
            keep = len(b"-Infinity") if piece else 0  # a word may go on, too
            done.append(data[at : max(at, len(data) - keep)])
            at = max(at, len(data) - keep)
        rest = data[at:]
        if any(done):
            yield b"".join(done)


def _damaged(path: Path, start: int, error: Exception) -> BadFile:
    """The fault in words, with the byte and the line at which the parser gives up, from the chunk that begins at `start`."""
    sink = ijson.sendable_list()
    parser = ijson.basic_parse_coro(sink, use_float=True)
    at = end = path.stat().st_size
    lines = 1
    with path.open("rb") as file:
        skip = len(BOM) if file.read(len(BOM)) == BOM else 0
        file.seek(skip)
        position = skip
        while position < end:
            # Whole chunks up to the bad one, then byte by byte.
            piece = file.read(min(CHUNK, start - position) if position < start else 1)
            try:
                parser.send(piece)
            except (ijson.JSONError, ValueError, ArithmeticError):
                at = position
                break
            sink.clear()
            lines += piece.count(b"\n")
            position += len(piece)
        file.seek(max(0, at - 1))
        found = next((one for one in WORD.finditer(file.read(80)) if one.start() <= 1 < one.end()), None)
    word = ""
    if found is not None and at < end:  # the parser may give up on its second letter
        word, at = found.group().decode(), max(0, at - 1) + found.start()
    where = f"after its last byte, {end}: it was cut off" if at == end else f"at byte {at}, line {lines}"
    if word.removeprefix("-") in ("NaN", "Infinity"):
        return NotFinite(
            path, f"{word} {where} is a number that JSON does not know; write null or a number in its place"
        )
    reason = f"{word} is no word of JSON, which are true, false and null" if word else _reason(error)
    return BadFile(f"annotations {path} are not valid JSON {where} ({reason}); get the file again, or mend it there")


def _reason(error: Exception) -> str:
    words = error.args[0] if error.args else ""
    text = words.decode("utf-8", "replace") if isinstance(words, bytes) else str(words)
    return text.partition("\n")[0].removeprefix("parse error: ").removeprefix("lexical error: ").strip()


def refuse(path: Path) -> NoReturn:
    """Say what a JSON file is if it does not hold the two lists."""
    kinds: dict[str, str] = {}
    top = ""
    key: str | None = None
    with path.open("rb") as file:
        if file.read(len(BOM)) != BOM:
            file.seek(0)
        with suppress(ijson.JSONError, ValueError, ArithmeticError):  # what was read up to there tells enough
            for prefix, event, value in ijson.parse(file, use_float=True):
                top = top or event
                if not prefix and event == "map_key":
                    key = value
                elif key is not None and prefix == key and key not in kinds:
                    kinds[key] = (
                        "a list" if event == "start_array" else "an object" if event == "start_map" else "a value"
                    )
                elif key is not None and prefix == f"{key}.item" and kinds.get(key) == "a list":
                    kinds[key] = "a list of entries"
    if top != "start_map":
        raise BadFile(
            f"annotations {path} must be an object with the lists images and annotations, got a list or a single value; a list of "
            "results holds no pictures: name the file that the data set came with"
        )
    wrong = [f"{name} is {kinds.get(name, 'missing')}" for name in ("images", "annotations")]
    wrong = [words.replace("a list", "an empty list") for words in wrong if not words.endswith("a list of entries")]
    for signs, words in _OTHER_FORMATS:
        if signs <= kinds.keys():
            cure = words
            break
    else:
        cure = "name the file of the data set that holds both"
    found = ", ".join(list(kinds)[:12]) or "nothing"
    cure += " (data.format in a configuration)" if "--format" in cure else ""
    raise BadFile(
        f"annotations {path} must hold the lists images and annotations with entries, but {' and '.join(wrong)}; it holds {found}: {cure}"
    )


_OTHER_FORMATS: tuple[tuple[set[str], str], ...] = (
    ({"regions", "image_id"}, "this is a single annotation of COCOA: name its folder with --format cocoa"),
    ({"shapes", "imagePath"}, "this is a file of labelme: name its folder with --format labelme"),
    ({"format_version", "sha256"}, "this is a data set in the project format: name its folder with --format project"),
)
