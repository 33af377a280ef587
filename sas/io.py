"""The border between files and arrays: pictures, masks, RLE, JSON, and writes that happen whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "MPO")


class InputError(ValueError):
    """Input that cannot be used; the message is one line, "what is wrong; cure"."""


# ---------------------------------------------------------------------- pictures


def find_images(inputs: Sequence[str | Path], *, recursive: bool = False) -> list[Path]:
    """Picture files named by the inputs, in order.

    A folder stands for the files directly in it (at all levels if `recursive`) with an ending of IMAGE_SUFFIXES in any case,
    sorted by name; all else in it is passed over. A file named directly is always kept, whatever its ending.
    """
    found: list[Path] = []
    for item in inputs:
        path = Path(item)
        if not path.is_dir():
            found.append(path)
            continue
        entries = sorted(path.rglob("*") if recursive else path.iterdir())
        pictures = [entry for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES and entry.is_file()]
        if not pictures:
            endings = " ".join(IMAGE_SUFFIXES)
            raise InputError(
                f"folder {path} holds no image ({endings}); name another folder{'' if recursive else ', or search below it with --recursive'}"
            )
        found += pictures
    return found


def read_image(source: str | Path | Image.Image | np.ndarray | torch.Tensor, *, name: str = "image") -> np.ndarray:
    """Any supported image as uint8 (H, W, 3) RGB.

    Files and PIL images: EXIF orientation applied, alpha composited on white, 16-bit values rescaled, grey, palette and CMYK
    converted. NumPy: uint8, uint16 or float in [0, 1], of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). torch: uint8 or float in
    [0, 1], of shape (3, H, W), (4, H, W) or (1, H, W). Everything else is an InputError; no range is guessed.
    """
    if isinstance(source, str | Path):
        return _read_file(Path(source), name)
    if isinstance(source, Image.Image):
        return _from_pil(source, name)
    if isinstance(source, torch.Tensor):
        return _from_tensor(source, name)
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    raise InputError(
        f"{name} must be a path, PIL image, NumPy array or torch tensor, got {type(source).__name__}; convert it to one of these"
    )


def _read_file(path: Path, name: str) -> np.ndarray:
    if path.is_dir():
        raise InputError(f"{name} {path} is a folder, not a file; name the pictures in it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as picture:
                picture.load()
                return _from_pil(picture, f"{name} {path}")
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{name} {path} does not exist; check the path") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise InputError(
            f"{name} {path} has more than the {limit} pixels allowed ({error}); scale it down first"
        ) from error
    except Image.UnidentifiedImageError as error:
        what = "is empty" if path.stat().st_size == 0 else "is not a PNG, JPEG, WebP, BMP or TIFF image"
        raise InputError(f"{name} {path} {what}; convert it to PNG or JPEG") from error
    except PermissionError as error:
        raise InputError(f"{name} {path} may not be read (permission denied); change its permissions") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise InputError(
            f"{name} {path} cannot be read, it is damaged or cut off ({reason}); get the file again"
        ) from error


def _from_pil(picture: Image.Image, name: str) -> np.ndarray:
    try:
        picture = ImageOps.exif_transpose(picture)
    except (ValueError, SyntaxError, OSError) as error:
        raise InputError(f"{name} has broken EXIF data ({error}); save it again without them") from error
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
        if low < 0 or high > 65535:
            raise InputError(f"{name} must hold 16-bit values 0..65535, got {low}..{high}; rescale it first")
        return _grey(_to_bytes(values / 65535))
    if picture.mode == "F":
        return _grey(_to_bytes(_unit_floats(np.asarray(picture), name)))
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, rgba)
    return np.ascontiguousarray(np.asarray(picture.convert("RGB")))


def _from_tensor(tensor: torch.Tensor, name: str) -> np.ndarray:
    if tensor.ndim == 4:
        raise InputError(
            f"{name} must be one image (3, H, W), got a batch of shape {tuple(tensor.shape)}; pass a list, for example list(batch)"
        )
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        looks = tensor.ndim == 3 and tensor.shape[-1] in (1, 3, 4)
        cure = "permute it with .permute(2, 0, 1)" if looks else "reshape it"
        raise InputError(f"{name} as a tensor must have shape (3, H, W), got {tuple(tensor.shape)}; {cure}")
    values = tensor.detach().cpu()
    values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
    return _from_array(values.permute(1, 2, 0).numpy(), name, layout=False)


def _from_array(array: np.ndarray, name: str, *, layout: bool = True) -> np.ndarray:
    if layout and array.ndim == 4:
        raise InputError(
            f"{name} must be one image (H, W, 3), got a batch of shape {array.shape}; pass a list, for example list(batch)"
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        looks = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        cure = "transpose it with .transpose(1, 2, 0)" if looks else "reshape it"
        raise InputError(f"{name} as an array must have shape (H, W, 3), got {array.shape}; {cure}")
    if 0 in array.shape:
        raise InputError(
            f"{name} must have at least one pixel, got shape {array.shape}; pass a picture that is not empty"
        )
    if array.dtype == np.uint8:
        values = array
    elif array.dtype == np.uint16:
        values = _to_bytes(array / 65535)
    elif np.issubdtype(array.dtype, np.floating):
        values = _to_bytes(_unit_floats(array, name))
    else:
        raise InputError(
            f"{name} must be uint8, uint16 or float in [0, 1], got {array.dtype}; convert it, for example (x * 255).astype('uint8')"
        )
    if values.shape[-1] == 1:
        return _grey(values[..., 0])
    if values.shape[-1] == 4:
        return _from_pil(Image.fromarray(np.ascontiguousarray(values)), name)
    return np.ascontiguousarray(values)


def _unit_floats(values: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise InputError(f"{name} must hold finite numbers, got NaN or infinity; replace them first")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise InputError(
            f"{name} as floats must lie in [0, 1], got {low:g}..{high:g}; rescale it, for example x / 255 or (x + 1) / 2"
        )
    return values


def _to_bytes(unit: np.ndarray) -> np.ndarray:
    return (unit * 255).round().astype(np.uint8)


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


def sha256_pixels(image: np.ndarray) -> str:
    """Name of an image by its decoded pixels and size, whatever file it came from: hex SHA-256 of uint8 (H, W, 3)."""
    digest = hashlib.sha256(f"{image.shape[0]}x{image.shape[1]}:".encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------- masks


def read_mask(path: str | Path, *, size: tuple[int, int] | None = None, threshold: int = 127) -> np.ndarray:
    """Mask picture as bool (H, W): grey value > threshold. `size` = (H, W) is checked if given."""
    grey = np.asarray(Image.fromarray(_read_file(Path(path), "mask")).convert("L"))
    if size is not None and grey.shape != tuple(size):
        raise InputError(
            f"mask {path} must have the size of its image, {size[1]}x{size[0]}, got {grey.shape[1]}x{grey.shape[0]}; export it again at that size"
        )
    return grey > threshold


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """bool (H, W) as a one-channel PNG of 0 and 255."""
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise ValueError(f"mask must be bool (H, W), got {mask.dtype} {mask.shape}: threshold it first")
    Image.fromarray(mask.astype(np.uint8) * 255).save(path, format="PNG")


def write_unit_map(path: str | Path, values: np.ndarray) -> None:
    """float (H, W) in [0, 1] as a one-channel PNG, round(255 v)."""
    if values.ndim != 2:
        raise ValueError(f"values must have shape (H, W), got {values.shape}: pass one map")
    Image.fromarray(_to_bytes(_unit_floats(values, "values"))).save(path, format="PNG")


def rle_encode(mask: np.ndarray) -> dict[str, Any]:
    """bool (H, W) as compressed COCO RLE, {"size": [H, W], "counts": ASCII text}."""
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise ValueError(f"mask must be bool (H, W), got {mask.dtype} {mask.shape}: threshold it first")
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def rle_decode(rle: Mapping[str, Any], *, name: str = "segmentation") -> np.ndarray:
    """bool (H, W) from compressed COCO RLE; InputError if it does not fill its size."""
    size, counts = (rle.get("size"), rle.get("counts")) if isinstance(rle, Mapping) else (None, None)
    if not (
        isinstance(size, Sequence) and len(size) == 2 and all(isinstance(s, int) and s > 0 for s in size)
    ) or not isinstance(counts, str):
        raise InputError(
            f'{name} must be COCO RLE {{"size": [H, W], "counts": text}}, got {str(rle)[:60]}; encode it with pycocotools'
        )
    try:
        # The decoder writes as many pixels as the counts say, so a wrong sum must be caught before it.
        covered = _rle_length(counts)
    except (ValueError, IndexError) as error:
        raise InputError(f"{name} has counts that are no RLE; encode it with pycocotools") from error
    if covered != size[0] * size[1]:
        raise InputError(
            f"{name} must cover {size[0]}x{size[1]} = {size[0] * size[1]} pixels, got runs over {covered}; encode it with its image's size"
        )
    return coco_mask.decode({"size": list(size), "counts": counts.encode("ascii")}).astype(bool)


def _rle_length(counts: str) -> int:
    """Sum of the runs of compressed COCO RLE: base-32 digits offset by 48, each run after the second relative to two before."""
    runs: list[int] = []
    at = 0
    while at < len(counts):
        value, shift, more = 0, 0, True
        while more:
            digit = ord(counts[at]) - 48
            if not 0 <= digit < 64:
                raise ValueError(counts[at])
            value |= (digit & 0x1F) << (5 * shift)
            more = bool(digit & 0x20)
            at += 1
            shift += 1
            if not more and digit & 0x10:
                value |= -1 << (5 * shift)
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            raise ValueError("negative run")
        runs.append(value)
    return sum(runs)


# ---------------------------------------------------------------------- JSON and atomic writes


def write_json(path: str | Path, value: Any) -> None:
    """UTF-8 JSON with a final newline; NaN and infinity are errors."""
    Path(path).write_text(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """JSON of a file; InputError names line and column of a fault."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} is not valid JSON at line {error.lineno} column {error.colno} ({error.msg}); write it again"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); check the file") from error


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file so that it holds either its old or its new content, never a part."""
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.tmp-", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise _cannot_write(path, error) from error


@contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its name when the block ends well; on an error `target` stays as it was."""
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise InputError(f"cannot write {target}: it is a file; choose another output folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
        temporary.chmod(0o755)
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        _swap(temporary, target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, InputError):
            raise
        raise _cannot_write(target, error) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _swap(new: Path, target: Path) -> None:
    """Put `new` in the place of `target`, which is put back if that fails."""
    if not target.exists():
        new.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    try:
        target.rename(aside / "old")
        try:
            new.rename(target)
        except OSError:
            (aside / "old").rename(target)
            raise
    finally:
        with suppress(OSError):
            shutil.rmtree(aside)


def _cannot_write(path: Path, error: OSError) -> InputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        cure = "free some space or choose another disk"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        cure = "choose a folder that you may write"
    else:
        cure = "choose another output folder"
    return InputError(f"cannot write {path}: {error.strerror or error}; {cure}")
