"""Drawing on arrays: colours of layers, tints, outlines, heat maps, grids of pictures, lines of text. Plain arrays in,
fresh uint8 arrays out; nothing passed in is changed.

Images are uint8 (h, w, 3) RGB, masks bool (h, w), colours (r, g, b) in 0..255. Everything in one call shares one frame.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sas.masks import check_mask, check_shape

Color = tuple[int, int, int]

# Nearest warm, farthest cool, after the "RdYlBu" scheme of ColorBrewer, which is safe for colour-blind eyes; its two
# light blues are a little darker here, to be seen on white.
LAYER_COLORS: tuple[Color, ...] = (
    (165, 0, 38),
    (215, 48, 39),
    (244, 109, 67),
    (253, 174, 97),
    (145, 200, 222),
    (100, 160, 205),
    (69, 117, 180),
    (49, 54, 149),
)
_SPREAD = {
    1: (2,),
    2: (1, 6),
    3: (1, 3, 6),
    4: (1, 3, 4, 7),
    5: (0, 2, 3, 5, 7),
    6: (0, 2, 3, 4, 6, 7),
    7: (0, 1, 2, 3, 4, 6, 7),
}
_HEAT = np.array([(244, 244, 240), (254, 224, 130), (249, 150, 60), (206, 50, 30), (100, 0, 30)], dtype=np.float64)
GREY = (104, 108, 116)  # of text beside the picture


def layer_colors(count: int) -> tuple[Color, ...]:
    """One colour a layer, nearest warm and farthest cool, as far apart as `count` allows; beyond eight they repeat in
    runs."""
    places = _SPREAD.get(count, [k * len(LAYER_COLORS) // max(count, 1) for k in range(count)])
    return tuple(LAYER_COLORS[place] for place in places)


def tint(image: np.ndarray, mask: np.ndarray, *, color: Color, alpha: float) -> np.ndarray:
    """`image` with `color` laid over `mask`, from alpha 0 (nothing) to 1 (paint): uint8 (h, w, 3)."""
    check_image(image, name="image")
    check_mask(mask, name="mask")
    check_shape(mask, "h w", name="mask", h=image.shape[0], w=image.shape[1])
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}: pass 0.5 for half transparent")
    result = image.copy()
    result[mask] = np.rint(image[mask] * (1 - alpha) + np.array(color) * alpha).astype(np.uint8)
    return result


def outline(mask: np.ndarray, *, width: int = 1) -> np.ndarray:
    """Pixels of `mask` less than `width` + 1 steps (4-neighbours) from a pixel outside it: bool (h, w).

    The picture's border is no edge: an object that leaves the picture is open there.
    """
    check_mask(mask, name="mask", ndim=2)
    if width < 1:
        raise ValueError(f"width must be at least 1 pixel, got {width}: leave the outline out instead")
    inner = mask
    for _ in range(width):
        framed = (
            np.pad(inner, 1, mode="edge")
            if inner.size
            else np.zeros((inner.shape[0] + 2, inner.shape[1] + 2), dtype=bool)
        )
        inner = inner & framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    ring: np.ndarray = mask & ~inner
    return ring


def heat_map(values: np.ndarray) -> np.ndarray:
    """Colours of `values` in [0, 1], from almost white over yellow and red to dark red: (h, w) float -> uint8 (h, w,
    3)."""
    check_shape(values, "h w", name="values")
    check_fractions(values, name="values")
    stops = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.rint(np.interp(values, stops, channel)) for channel in _HEAT.T], axis=-1).astype(np.uint8)


def image_grid(
    images: Sequence[np.ndarray], *, columns: int, captions: Sequence[str] | None = None, cell: int = 160
) -> np.ndarray:
    """Pictures in rows of `columns` on white, each fitted into a square of `cell` pixels, its caption below; a row is as high as its highest
    picture: uint8 (H, W, 3).

    images: uint8 (h, w, 3) or bool (h, w) masks, of any sizes. captions: one a picture, or None.
    """
    if columns < 1 or cell < 1:
        raise ValueError(
            f"columns and cell must be at least 1, got columns={columns}, cell={cell}: pass the number of pictures a "
            "row"
        )
    if captions is not None and len(captions) != len(images):
        raise ValueError(
            f"captions must hold one text an image ({len(images)}), got {len(captions)}: add or remove some"
        )
    gap, line = 8, 20 if captions else 0
    fitted = []
    for i, picture in enumerate(images):
        rgb = np.repeat(picture[..., None].astype(np.uint8) * 255, 3, -1) if picture.dtype == bool else picture
        check_image(rgb, name=f"images[{i}]")
        fitted.append(resize_image(rgb, *fit(rgb.shape[0], rgb.shape[1], cell, cell, thinnest=1)))
    heights = [max(one.height for one in fitted[i : i + columns]) for i in range(0, len(fitted), columns)]
    sheet = Image.new("RGB", (gap + columns * (cell + gap), gap + sum(heights) + len(heights) * (line + gap)), "white")
    draw, top = ImageDraw.Draw(sheet), gap
    for i, one in enumerate(fitted):
        left, high = gap + i % columns * (cell + gap), heights[i // columns]
        sheet.paste(one, (left + (cell - one.width) // 2, top + (high - one.height) // 2))
        if captions:
            write_line(draw, (left, top + high + 3), captions[i], size=12, fill=GREY, width=cell)
        if i % columns == columns - 1:
            top += high + line + gap
    return np.array(sheet)


# -- text and sizes --------------------------------------------------------------------------------


def fit(height: int, width: int, box_height: int, box_width: int, *, thinnest: int) -> tuple[int, int]:
    """Largest (height, width) of the same shape inside a box; a side never drops below `thinnest`, lest it vanish."""
    scale = min(box_height / height, box_width / width)
    sides = (max(thinnest, round(height * scale)), max(thinnest, round(width * scale)))
    return min(sides[0], box_height), min(sides[1], box_width)


def resize_image(image: np.ndarray, height: int, width: int) -> Image.Image:
    """uint8 (h, w, 3) at another size, smooth unless it is enlarged so much that its pixels are to be seen."""
    enlarging = height >= 4 * image.shape[0] or width >= 4 * image.shape[1]
    return Image.fromarray(image).resize(
        (width, height), Image.Resampling.NEAREST if enlarging else Image.Resampling.LANCZOS
    )


def load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that Pillow brings, `size` pixels high."""
    return ImageFont.load_default(size=size)


def write_line(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, *, size: int, fill: Color, width: int
) -> None:
    """One line of text, cut short to fit; the built-in font knows plain letters only, so accents go and the rest
    becomes "?"."""
    font = load_font(size)
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(c for c in plain if not unicodedata.combining(c)).encode("ascii", "replace").decode()
    plain = " ".join(plain.split())[: max(width, 1)]  # no letter is narrower than a pixel
    if font.getlength(plain) > width:
        while plain and font.getlength(plain + "...") > width:
            plain = plain[:-1]
        plain += "..."
    draw.text(at, plain, fill=fill, font=font)


def check_image(image: np.ndarray, *, name: str) -> None:
    """ValueError unless `image` is uint8 (h, w, 3) with at least one pixel."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"{name} must be uint8 of shape (h, w, 3) with at least one pixel, got {image.dtype} {image.shape}: "
            "convert it"
        )


def check_fractions(values: np.ndarray, *, name: str) -> None:
    """ValueError unless all values lie in [0, 1]."""
    if values.size and not (values.min() >= 0 and values.max() <= 1):  # False for NaN too
        raise ValueError(
            f"{name} must lie in [0, 1], got [{values.min()}, {values.max()}]: divide by the largest possible value"
        )
