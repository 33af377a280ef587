"""The border between picture files and arrays: photographs of any kind in, masks and maps in and out.

What comes in is checked here and refused with an `InputError`; no value range, layout or orientation is guessed.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import stat
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError

from sas.io import InputError, checked_mask, kind, reason, write_file

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# Pillow opens the two-picture JPEGs of phones (MPO) through "JPEG" too; "MPO" itself is no name that `open` knows.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")

# EXIF orientation -> what sets the picture upright (Exif 2.32, tag 0x0112).
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# ---------------------------------------------------------------------- reading


def find_images(inputs: Sequence[str | Path], *, recursive: bool = False) -> list[Path]:
    """Picture files named by the inputs, in order.

    A folder stands for the files directly in it (at all levels if `recursive`, linked folders included) with an ending of
    IMAGE_SUFFIXES in any case, sorted by their path inside it; all else in it is passed over, and so is what is hidden (its name begins
    with a dot) or in a folder `__MACOSX`. A file named directly is always kept, whatever its ending and whether or not it exists:
    reading it says what is wrong. InputError for a folder without pictures.
    """
    if isinstance(inputs, str | Path):
        raise InputError(f"inputs must be a list of paths, got the single path {inputs}; pass [{str(inputs)!r}]")
    found: list[Path] = []
    for item in inputs:
        path = Path(item)
        if not os.path.isdir(path):  # unlike Path.is_dir false, not an error, for a name that is too long or forbidden
            found.append(path)
            continue
        try:
            entries = sorted(_below(path) if recursive else path.iterdir(), key=lambda entry: entry.parts)
            pictures = [
                entry
                for entry in entries
                if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
            ]
        except OSError as error:
            raise InputError(f"folder {path} cannot be listed ({reason(error)}); change its permissions") from error
        if not pictures:
            deeper = "" if recursive else ", or search the folders below it too with recursive=True (--recursive)"
            raise InputError(
                f"folder {path} holds no image file ({' '.join(IMAGE_SUFFIXES)}); name another folder{deeper}"
            )
        found += pictures
    return found


def _below(folder: Path) -> Iterator[Path]:
    """What lies in a folder and in the folders below it that are not hidden; linked ones are followed, each once."""
    seen: set[str] = set()

    def told(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(folder, onerror=told, followlinks=True):
        seen.add(os.path.realpath(parent))
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".")
            and name != "__MACOSX"
            and os.path.realpath(os.path.join(parent, name)) not in seen
        ]
        yield from (Path(parent, name) for name in files)


_TURNED = "sas_orientation"
"""Key of `info` for the EXIF orientation by which a picture was set upright."""


def read_turned(path: Path, *, name: str = "image") -> tuple[np.ndarray, int]:
    """As `read_image` reads a file, and the EXIF orientation by which it was turned or mirrored, 2 to 8; 1 if it was not."""
    picture = open_picture(path, f"{name} {path}")
    return _rgb(picture, f"{name} {path}"), picture.info.get(_TURNED, 1)


def read_image(source: str | Path | Image.Image | np.ndarray | torch.Tensor, *, name: str = "image") -> np.ndarray:
    """Any supported image as a new, writable, contiguous uint8 array (H, W, 3), RGB.

    Files (PNG, JPEG, WebP, BMP, TIFF; the first frame of several) and PIL images: EXIF orientation applied, alpha
    composited on white, grey, palette and CMYK converted, 16-bit grey rescaled by 65535, of 16-bit colours the upper half
    kept, as Pillow reads them. Float pictures (mode F) must lie in [0, 1] or in [0, 255]; one that exceeds 1 nowhere is
    read as [0, 1].
    NumPy: uint8, uint16 or float in [0, 1], of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
    torch: uint8 or float in [0, 1], channels first as usual there: (1, H, W), (3, H, W) or (4, H, W).
    At most `PIL.Image.MAX_IMAGE_PIXELS` pixels, however they come.

    Everything else is an InputError that begins with `name` and ends with the cure.
    """
    if isinstance(source, str | Path):
        return read_turned(Path(source), name=name)[0]
    if isinstance(source, Image.Image):
        _check_pixels(source.size[::-1], name)
        return _rgb(_upright(source, name), name)
    if isinstance(source, torch.Tensor):
        _check_pixels(source.shape[-2:], name)
        return _from_tensor(source, name)
    if isinstance(source, np.ndarray):
        _check_pixels(source.shape[:2], name)
        return _from_array(source, name)
    raise InputError(
        f"{name} must be a path, PIL image, NumPy array or torch tensor, got {type(source).__name__}; "
        "convert it to one of these"
    )


def _check_pixels(size: Sequence[int], name: str) -> None:
    """InputError where a picture in memory is larger than a file may be: its result could be written, but not read."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and math.prod(size) > limit:
        raise InputError(
            f"{name} must have at most {limit} pixels, got {'x'.join(map(str, size))}; scale the picture down first"
        )


def open_picture(path: Path, name: str) -> Image.Image:
    """Picture of a file, fully decoded and upright, in the mode of the file."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{name} is a folder, not a file; name the pictures in it")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{name} is a device or pipe, not a file; save the picture to a file first")
        if status.st_size == 0:
            raise InputError(f"{name} is empty (0 bytes); get the file again")
        content = path.open("rb")
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist; check the path") from error
    except PermissionError as error:
        raise InputError(f"{name} may not be read (permission denied); change its permissions") from error
    except OSError as error:
        raise InputError(f"{name} cannot be opened ({reason(error)}); check the path") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is no valid path ({reason(error)}); check the path") from error

    with content, _caught_warnings() as caught:
        try:
            # No `with` around the picture: closing it would drop pixels that `_upright` may hand on uncopied.
            opened = Image.open(content, formats=FORMATS)
            if Image.MAX_IMAGE_PIXELS is not None and opened.width * opened.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(
                    f"Image size ({opened.width * opened.height} pixels) exceeds limit of {Image.MAX_IMAGE_PIXELS} pixels"
                )
            picture = _upright(opened, name)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            size = reason(error).partition(", could")[0]
            raise InputError(f"{name} is too large: {size}; scale the picture down first") from error
        except UnidentifiedImageError as error:
            raise InputError(
                f"{name} is not a PNG, JPEG, WebP, BMP or TIFF image, or its header is damaged; "
                "convert it to PNG or JPEG"
            ) from error
        except (InputError, MemoryError):
            raise
        except Exception as error:
            raise _damaged(name, error) from error
    for warning in caught:
        logger.warning("%s: %s", name, reason(warning.message))
    return picture


@contextmanager
def _caught_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Warnings of the block. Python keeps its filters for all threads at once, so only the main thread may set them aside."""
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield caught


def _damaged(name: str, error: Exception) -> InputError:
    # Not by type of exception: the decoders raise nearly every one when the bytes are hostile.
    return InputError(f"{name} cannot be decoded, it is damaged or cut off ({reason(error)}); get the file again")


def _upright(picture: Image.Image, name: str) -> Image.Image:
    """The picture fully decoded, with its EXIF orientation applied."""
    by_name = getattr(picture, "filename", None) if picture.format == "TIFF" else None
    _note_units(picture)
    try:
        if by_name:
            # Pillow 13 maps such a file into memory with the sides of the picture set upright: pixels out of place
            picture.filename = ""  # type: ignore[attr-defined]
        picture.load()
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(name, error) from error
    finally:
        if by_name:
            picture.filename = by_name  # type: ignore[attr-defined]
    if 0 in picture.size:
        raise InputError(f"{name} must have at least one pixel, got {picture.width}x{picture.height}; pass a picture")
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:
        logger.warning("%s: EXIF data cannot be read (%s), orientation taken as upright", name, reason(error))
        return picture
    # Not ImageOps.exif_transpose: it writes all EXIF data anew and fails on pictures whose other tags are odd.
    turn = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    if turn is None:
        return picture
    turned = picture.transpose(turn)
    turned.info[_TURNED] = orientation
    return turned


def _note_units(picture: Image.Image) -> None:
    """Notes in `info`, before decoding, what Pillow leaves in the file's own units: transparent values and how many bits a grey value has and
    which end of them is white. A Pillow picture that is loaded already has lost a part of it."""
    transparent = picture.info.get("transparency")
    tiles = getattr(picture, "tile", None)  # empty once the pixels are there
    if picture.format == "PNG" and transparent is not None and tiles:
        # Pillow spreads 2 and 4 bits of grey over a byte and keeps the high byte of 16 bits of a colour. Colours that
        # differ in their low bytes alone cannot be told apart then.
        match tiles[0][3]:
            case "L;2":
                picture.info["transparency"] = transparent * 85
            case "L;4":
                picture.info["transparency"] = transparent * 17
            case "RGB;16B":
                picture.info["transparency"] = tuple(value >> 8 for value in transparent)
    if picture.format == "TIFF" and picture.mode.startswith("I;16"):
        photometric = picture.tag_v2.get(262)  # type: ignore[attr-defined]
        picture.info["white_is_zero"] = photometric == 0
        bits = picture.tag_v2.get(258)  # type: ignore[attr-defined]
        picture.info["bits"] = bits[0] if isinstance(bits, tuple) else bits


def _rgb(picture: Image.Image, name: str) -> np.ndarray:
    """uint8 (H, W, 3) of a decoded picture of any mode."""
    if picture.mode.startswith("I"):
        return _grey(_sixteen_bit(picture, name))
    if picture.mode == "F":
        values = np.asarray(picture)
        scale = 255 if values.size and values.max() > 1 else 1
        return _grey(_to_bytes(_bounded(values, name, top=scale, rule="[0, 1] or [0, 255]") / np.float32(scale)))
    if picture.has_transparency_data:
        rgba = converted(picture, "RGBA", name)
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(converted(picture, "RGB", name))


def converted(picture: Image.Image, mode: str, name: str) -> Image.Image:
    """The picture in another mode; InputError if Pillow knows no way."""
    try:
        if picture.mode == "La":  # Pillow leads from premultiplied grey to nothing but grey with alpha
            picture = picture.convert("LA")
        return picture.convert(mode)
    except (ValueError, OSError, KeyError) as error:
        raise InputError(
            f"{name} has mode {picture.mode}, which cannot become {mode} ({reason(error)}); save it as RGB"
        ) from error


def _sixteen_bit(picture: Image.Image, name: str) -> np.ndarray:
    """uint8 (H, W) of an integer picture by the 16-bit range; its transparent value is white."""
    values = _integers(picture, name)
    grey = _from_sixteen(values)
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return grey


def _integers(picture: Image.Image, name: str) -> np.ndarray:
    """int (H, W) in 0..65535 of an integer picture, whose largest value is white."""
    values = np.asarray(picture)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise InputError(f"{name} must hold 16-bit values 0..65535, got {low}..{high}; rescale it first")
    if picture.info.get("bits") == 12:  # Pillow leaves them as they are, 0..4095
        values = np.rint(np.clip(values, 0, 4095) * (65535 / 4095)).astype(np.int32)
    if picture.info.get("white_is_zero"):
        values = 65535 - values
    return values


def _from_tensor(tensor: torch.Tensor, name: str) -> np.ndarray:
    if tensor.ndim == 4:
        raise InputError(
            f"{name} must be one image (3, H, W), got a batch of shape {tuple(tensor.shape)}; "
            "pass a list, for example list(batch)"
        )
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        cure = "give it the shape (3, H, W)"
        if tensor.ndim == 3 and tensor.shape[-1] in (1, 3, 4):
            cure = "it looks like (H, W, C): permute it with .permute(2, 0, 1)"
        elif tensor.ndim == 2:
            cure = "a grey image gets its channel with x[None]"
        raise InputError(
            f"{name} as a tensor must have shape (C, H, W) with 1, 3 or 4 channels, got {tuple(tensor.shape)}; {cure}"
        )
    if tensor.dtype != torch.uint8 and not tensor.dtype.is_floating_point:
        raise InputError(
            f"{name} must be uint8 or float in [0, 1], got {tensor.dtype}; convert it, for example "
            + ("x.to(torch.uint8) * 255" if tensor.dtype == torch.bool else "x.to(torch.uint8) if it holds 0..255")
        )
    values = tensor.detach().cpu()
    values = values if values.dtype in (torch.uint8, torch.float64) else values.float()  # NumPy has no bfloat16
    return _from_array(values.permute(1, 2, 0).numpy(), name)


def _from_array(array: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim == 4:
        raise InputError(
            f"{name} must be one image (H, W, 3), got a batch of shape {array.shape}; "
            "pass a list, for example list(batch)"
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        looks = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        chw = "it looks like (C, H, W): transpose it with .transpose(1, 2, 0)"
        cure = chw if looks else "give it the shape (H, W, 3)"
        raise InputError(
            f"{name} as an array must be laid out (H, W, C) with 1, 3 or 4 channels, got shape {array.shape}; {cure}"
        )
    if array.size == 0:
        raise InputError(f"{name} must have at least one pixel, got shape {array.shape}; pass a picture")
    if array.dtype == np.uint8:
        values = array
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
        values = _from_sixteen(array)
    elif array.dtype.kind == "f":
        values = _to_bytes(_bounded(array, name))
    else:
        cure = "x.astype('uint8') * 255" if array.dtype == np.bool_ else "x.astype('uint8') if it holds 0..255"
        raise InputError(
            f"{name} must be uint8, uint16 or float in [0, 1], got {array.dtype}; convert it, for example {cure}"
        )
    if values.shape[-1] == 1:
        return _grey(values[..., 0])
    if values.shape[-1] == 4:
        return _rgb(Image.fromarray(np.ascontiguousarray(values)), name)
    return np.array(values, order="C")


def _bounded(values: np.ndarray, name: str, *, top: int = 1, rule: str = "[0, 1]") -> np.ndarray:
    """The values as float32 or float64, all finite and in [0, top]."""
    if not np.isfinite(values).all():
        raise InputError(f"{name} must hold finite numbers, got NaN or infinity; replace them first, for example by 0")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > top:
        raise InputError(
            f"{name} as floats must lie in {rule}, got {low}..{high}; rescale it, for example x / 255 or (x + 1) / 2, "
            "or clip it"
        )
    return values if values.itemsize >= 4 else values.astype(np.float32)


def _to_bytes(unit: np.ndarray) -> np.ndarray:
    return (unit * 255).round().astype(np.uint8)


def _from_sixteen(values: np.ndarray) -> np.ndarray:
    # 65535 = 255 * 257, and 257 is odd: adding 128 before the division rounds exactly.
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


def sha256_pixels(image: np.ndarray) -> str:
    """Name of an image by its decoded pixels and size, whatever file it came from: hex SHA-256 of uint8 (H, W, 3)."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise InputError(f"image must be uint8 (H, W, 3), got {image.dtype} {image.shape}; read it with read_image")
    digest = hashlib.sha256(f"{image.shape[0]}x{image.shape[1]}:".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


# ---------------------------------------------------------------------- masks


def read_mask(path: str | Path, *, size: tuple[int, int] | None = None, threshold: int = 127) -> np.ndarray:
    """Mask picture as bool (H, W): grey value (0..255) > threshold. `size` = (H, W) is checked if given.

    Colours count by their luma, 16-bit values rescaled to 0..255; alpha is left out of account. Masks that store 1 for
    "inside", with 8 bits or 16, need `threshold=0`, by which all that is not 0 counts.
    """
    if not 0 <= threshold <= 254:
        raise InputError(f"threshold must lie in 0..254, got {threshold}; 127 suits masks of 0 and 255")
    name = f"mask {path}"
    picture = open_picture(Path(path), name)
    if picture.mode.startswith("I"):
        values = _integers(picture, name)
        grey = _from_sixteen(values) if threshold else np.where(values > 0, np.uint8(255), np.uint8(0))
    elif picture.mode == "F":
        grey = _rgb(picture, name)[..., 0]
    else:
        picture.info.pop("transparency", None)  # Pillow warns where a palette loses it
        plain = picture if picture.mode in ("1", "L", "LA", "RGB") else converted(picture, "RGB", name)
        grey = np.asarray(plain.convert("L"))
    if size is not None and grey.shape != tuple(size):
        raise InputError(
            f"{name} must have the size of its image, {size[0]}x{size[1]} (HxW), got {grey.shape[0]}x{grey.shape[1]}; "
            "export it again at that size"
        )
    return grey > threshold


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """bool (H, W) as an 8-bit one-channel PNG of 0 and 255."""
    write_png(path, checked_mask(mask).astype(np.uint8) * np.uint8(255))


def write_unit_map(path: str | Path, values: np.ndarray) -> None:
    """float (H, W) in [0, 1] as an 8-bit one-channel PNG, round(255 v)."""
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.ndim != 2 or values.size == 0:
        raise InputError(f"values must be a float array (H, W), got {kind(values)}; pass one map at a time")
    write_png(path, _to_bytes(_bounded(values, "values")))


def write_png(path: str | Path, values: np.ndarray) -> None:
    """uint8 (H, W) or (H, W, 3) as a PNG, whole or not at all; InputError as of `sas.io.atomic_write_bytes`."""
    encoded = io.BytesIO()
    Image.fromarray(values).save(encoded, format="PNG")
    write_file(path, encoded.getvalue(), sync=False)
