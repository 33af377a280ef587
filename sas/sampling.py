"""From picture files to result folders, many at a time; one bad file does not stop the others."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sas.io import InputError
from sas.pictures import read_image
from sas.pipeline import SASPipeline, out_of_memory
from sas.result import OWN_FILES, LayeredResult
from sas.result_files import ARRAYS_FILE, RESULT_FILE

MANY_PIXELS = 100_000_000
"""So many pixels at least are worth a call of the pipeline, even if more pictures would fit the network's batch."""

Read = tuple[Path, Path, np.ndarray | BaseException]
"""A file, its result folder, and its picture or why it cannot be read."""


@dataclass(frozen=True)
class Outcome:
    """What became of one file: its result folder, or the reason why there is none ("reason; cure")."""

    file: Path
    folder: Path | None = None
    result: LayeredResult | None = None
    error: str = ""
    cause: BaseException | None = None


def result_folders(files: Sequence[Path], out: Path) -> list[Path]:
    """`out/<stem>` for each file; a second file with the same stem gets `<stem>-2`, and so on. Stems that differ in case, or in how an accented
    letter is written, are the same: they are one folder on some systems."""
    taken: set[str] = set()
    folders = []
    for file in files:
        stem = file.stem if file.stem.strip(".") else "image"
        name, number = stem, 1
        while (key := unicodedata.normalize("NFC", name).casefold()) in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(key)
        folders.append(out / name)
    return folders


def without_results(files: Sequence[Path], *, folder: str | Path) -> list[Path]:
    """The files found in `folder` but for the pictures that results are drawn in, beside their arrays; InputError if none is left."""
    kept = [
        file
        for file in files
        if not re.fullmatch(OWN_FILES, file.name)
        or not all((file.parent / name).is_file() for name in (RESULT_FILE, ARRAYS_FILE))
    ]
    if not kept:
        raise InputError(f"folder {folder} holds results of `sas sample` and no other picture; name another folder")
    return kept


def sample_files(
    pipe: SASPipeline,
    files: Sequence[Path],
    out: Path,
    *,
    batch_size: int = 64,
    on_done: Callable[[Outcome], None] | None = None,
    **options: Any,
) -> list[Outcome]:
    """Take the pictures of some files apart and write a folder for each; returns what became of each, in order.

    A folder is written under a temporary name and renamed; an existing one is replaced. on_done: gets each outcome with its result; those
    returned hold none, which would fill the memory. options: keyword arguments of the pipeline.
    """
    members = options.get("ensemble_size") or pipe.config.ensemble_size
    together = max(1, batch_size // members)
    outcomes: list[Outcome] = []
    for part in _parts(files, result_folders(files, out), together):
        for outcome in _finish(pipe, part, batch_size, options):
            if on_done:
                on_done(outcome)
            outcomes.append(replace(outcome, result=None))
    return outcomes


def _parts(files: Sequence[Path], folders: Sequence[Path], together: int) -> Iterator[list[Read]]:
    """Files read, as many as fit the network's batch and a modest memory: a folder may hold large photographs."""
    part: list[Read] = []
    pixels = count = 0
    for file, folder in zip(files, folders, strict=True):
        try:
            image = read_image(file)
        except (InputError, OSError, MemoryError) as error:
            part.append((file, folder, error))
            continue
        part.append((file, folder, image))
        pixels, count = pixels + image.size // 3, count + 1
        if count == together or pixels >= MANY_PIXELS:
            yield part
            part, pixels, count = [], 0, 0
    if part:
        yield part


def _finish(pipe: SASPipeline, part: list[Read], batch_size: int, options: dict[str, Any]) -> Iterator[Outcome]:
    """Take the pictures apart that could be read, and write their results."""
    images = [image for _, _, image in part if isinstance(image, np.ndarray)]
    results = iter(_results(pipe, images, batch_size, options))
    for file, folder, image in part:
        found = next(results) if isinstance(image, np.ndarray) else image
        if isinstance(found, BaseException):
            yield Outcome(file, error=_reason(found, file), cause=found)
            continue
        result = replace(found, file=file.name)
        try:
            result.save(folder)
        except (InputError, OSError, RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and not out_of_memory(error):
                raise
            yield Outcome(file, error=_reason(error, file), cause=error)
            continue
        yield Outcome(file, folder=folder, result=result)


def _results(
    pipe: SASPipeline, images: list[np.ndarray], batch_size: int, options: dict[str, Any]
) -> list[LayeredResult | BaseException]:
    """All images in one call; if memory does not suffice, one by one."""
    if not images:
        return []
    try:
        return list(pipe(images, batch_size=batch_size, **options))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    results: list[LayeredResult | BaseException] = []
    for image in images:
        try:
            results.append(pipe(image, batch_size=1, **options))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            results.append(error)
    return results


def _reason(error: BaseException, file: Path) -> str:
    """One line "reason; cure" without the file's name, which the caller prints."""
    if out_of_memory(error):
        return "not enough memory; pass a smaller --batch-size, fewer --members, or --device cpu"
    words = " ".join(str(error).split()) or type(error).__name__
    words = words.removeprefix(f"image {file} ")
    return words if ";" in words else f"{words}; check the file"
