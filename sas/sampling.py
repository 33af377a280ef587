"""From picture files to result folders, many at a time; one bad file does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sas.io import InputError, read_image
from sas.pipeline import SASPipeline
from sas.result import LayeredResult


@dataclass(frozen=True)
class Outcome:
    """What became of one file: its result folder, or the reason why there is none ("reason; cure")."""

    file: Path
    folder: Path | None = None
    result: LayeredResult | None = None
    error: str = ""
    cause: BaseException | None = None


def result_folders(files: Sequence[Path], out: Path) -> list[Path]:
    """`out/<stem>` for each file; a second file with the same stem gets `<stem>-2`, and so on."""
    taken: set[str] = set()
    folders = []
    for file in files:
        stem = file.stem or "image"
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name)
        folders.append(out / name)
    return folders


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

    A folder is written under a temporary name and renamed; an existing one is replaced. options: keyword arguments of the pipeline.
    """
    members = options.get("ensemble_size") or pipe.config.ensemble_size
    together = max(1, batch_size // members)
    work = list(zip(files, result_folders(files, out), strict=True))
    outcomes: list[Outcome] = []
    for start in range(0, len(work), together):
        for outcome in _chunk(pipe, work[start : start + together], batch_size, options):
            outcomes.append(outcome)
            if on_done:
                on_done(outcome)
    return outcomes


def _chunk(
    pipe: SASPipeline, work: list[tuple[Path, Path]], batch_size: int, options: dict[str, Any]
) -> Iterator[Outcome]:
    images: dict[int, np.ndarray] = {}
    failed: dict[int, Outcome] = {}
    for at, (file, _) in enumerate(work):
        try:
            images[at] = read_image(file)
        except (InputError, OSError, MemoryError) as error:
            failed[at] = Outcome(file, error=_reason(error, file), cause=error)
    results = dict(zip(images, _results(pipe, list(images.values()), batch_size, options), strict=True))
    for at, (file, folder) in enumerate(work):
        if at in failed:
            yield failed[at]
            continue
        found = results[at]
        if isinstance(found, BaseException):
            yield Outcome(file, error=_reason(found, file), cause=found)
            continue
        result = replace(found, file=file.name)
        try:
            result.save(folder)
        except (InputError, OSError) as error:
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
    except (torch.OutOfMemoryError, MemoryError):
        results: list[LayeredResult | BaseException] = []
        for image in images:
            try:
                results.append(pipe(image, batch_size=1, **options))
            except (torch.OutOfMemoryError, MemoryError) as error:
                results.append(error)
        return results


def _reason(error: BaseException, file: Path) -> str:
    """One line "reason; cure" without the file's name, which the caller prints."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "not enough memory; pass a smaller --batch-size, fewer --members, or --device cpu"
    words = " ".join(str(error).split()) or type(error).__name__
    words = words.removeprefix(f"image {file} ")
    return words if ";" in words else f"{words}; check the file"
