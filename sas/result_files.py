"""The two files from which a result is restored: result.json, for every program, and arrays.npz, for this one.

Plain values in and out; whether they fit together, `sas.result` knows.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from sas.geometry import Geometry
from sas.io import InputError, read_json
from sas.provenance import check_int

SCHEMA_VERSION = 1
RESULT_FILE, ARRAYS_FILE = "result.json", "arrays.npz"

_BITS = ("members", "masks")
_VALUES = ("probability", "uncertainty", "preview")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> None:
    """Write arrays.npz: masks as bits, and as JSON the header with the shapes of the masks."""
    shapes = {name: list(arrays[name].shape) for name in _BITS}
    stored: dict[str, Any] = {
        "header": np.frombuffer(json.dumps({**header, **shapes}, sort_keys=True).encode(), dtype=np.uint8),
        **{name: np.packbits(arrays[name]) for name in _BITS},
        **{name: arrays[name] for name in _VALUES},
    }
    np.savez_compressed(path, **stored)


def read_files(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """Document of result.json, arrays and header of arrays.npz; InputError names the file that is missing, damaged or
    foreign."""
    document_path, arrays_path = folder / RESULT_FILE, folder / ARRAYS_FILE
    for path in (document_path, arrays_path):
        if not path.is_file():
            raise InputError(
                f"{path} does not exist; pass a folder that LayeredResult.save wrote, complete with all its files"
            )
    return _read_document(document_path), *_read_arrays(arrays_path)


def _read_document(path: Path) -> dict[str, Any]:
    document = read_json(path)
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise InputError(
            f"{path} must have schema_version {SCHEMA_VERSION}, got {version!r}; "
            "save the result again with this version of sas, or load it with the version that wrote it"
        )
    kinds = {"image": dict, "layers": list, "ensemble": dict, "stop": dict, "model": dict}
    for name, kind in kinds.items():
        if not isinstance(document.get(name), kind):
            raise InputError(
                f"{path} lacks a valid {name!r}: it is no result file, or damaged; "
                "save it again with LayeredResult.save"
            )
    return cast(dict[str, Any], document)


def _read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and header of arrays.npz; nothing in it is ever unpickled."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            stored = {name: archive[name] for name in archive.files}
        header = json.loads(stored["header"].tobytes())
        arrays = {name: _unpack(stored[name], header[name]) for name in _BITS}
        arrays |= {name: stored[name] for name in _VALUES}
    except (
        OSError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise InputError(
            f"{path} is damaged or not of a result: {fault(error)}; save it again with LayeredResult.save"
        ) from error
    return arrays, header


def _unpack(bits: np.ndarray, shape: list[int]) -> np.ndarray:
    count = int(np.prod(shape, dtype=np.int64))
    if bits.dtype != np.uint8 or bits.ndim != 1 or len(bits) != (count + 7) // 8:
        raise ValueError(f"{len(bits)} bytes of bits do not fill the shape {shape}")
    return np.unpackbits(bits, count=count).astype(bool).reshape(shape)


def geometry_from(stored: Mapping[str, Any]) -> Geometry:
    """Geometry of a header; TypeError or ValueError for one that is none."""
    geometry = Geometry(**stored)
    for name, value in stored.items():
        check_int(value, name=f"geometry.{name}", low=0 if name in ("top", "left") else 1)
    return geometry


def fault(error: Exception) -> str:
    """What an exception tells of a stored value, on one line."""
    text = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error) or type(error).__name__
    return " ".join(text.split())
