"""The overview: one sheet that explains a result to somebody who knows nothing of it, panels laid out on a page.

Images are uint8 (h, w, 3) RGB, masks bool (h, w), all in one frame. Nothing passed in is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from sas.masks import check_mask, check_shape
from sas.visualize import (
    GREY,
    Color,
    check_fractions,
    check_image,
    fit,
    heat_map,
    layer_colors,
    load_font,
    outline,
    resize_image,
    tint,
    write_line,
)

WIDTH, MARGIN, GAP, COLUMNS = 1400, 36, 22, 4
PANEL_WIDTH = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) // COLUMNS
_SHORTEST, _TALLEST, _THINNEST = 150, 400, 24  # panel heights, and the least drawn side of a very thin image
_FINE = 2  # panels are drawn this many times too large, then averaged: smooth edges without a drawing library
_INK, _RULE, _BACK = (28, 30, 34), (222, 224, 228), (246, 247, 248)
_ORDINALS = ("First", "Second", "Third", "Fourth", "Fifth", "Sixth", "Seventh", "Eighth")
_COUNTS = ("", "", " two", " three", " four", " five", " six", " seven")


def overview(
    preview: np.ndarray,
    *,
    layer_masks: np.ndarray,
    uncertainty: np.ndarray,
    marks: Sequence[tuple[str, float, float]] = (),
    layer_notes: Sequence[str] = (),
    title: str = "",
    captions: Sequence[str] = (),
) -> np.ndarray:
    """One sheet, 1400 px wide, that explains a result to somebody who knows nothing of it: uint8 (H, 1400, 3).

    First row: the photo; all layers tinted by depth, hidden outlines dashed; the layers peeled apart; where the result
    is unsure. Below, one panel a layer: the seen part in the photo's colours, the hidden part hatched in the layer's
    colour, the rest faded.

    preview: uint8 (h, w, 3), at least one pixel. layer_masks: bool (K, h, w) amodal, front to back. uncertainty: (h, w)
    in [0, 1], 1 = yes and no are equally likely. marks: (text, x, y) for each object, pixels of the preview.
    layer_notes: a line under each layer's name, none or K. title, captions: the headline, and lines at the foot.
    """
    check_image(preview, name="preview")
    check_mask(layer_masks, name="layer_masks")
    size = {"h": preview.shape[0], "w": preview.shape[1]}
    count = check_shape(layer_masks, "K h w", name="layer_masks", **size)["K"]
    check_shape(uncertainty, "h w", name="uncertainty", **size)
    check_fractions(uncertainty, name="uncertainty")
    if layer_notes and len(layer_notes) != count:
        raise ValueError(
            f"layer_notes must hold one text a layer ({count}), got {len(layer_notes)}: add or remove some"
        )

    view = _View.of(preview, layer_masks, uncertainty)
    sheet = _Sheet(panel_height=view.box_height)
    sheet.headline(title or f"{count} layers")
    depth = view.marked(view.by_depth(), marks)
    stack = view.peeled() if count else view.blank("nothing to peel")
    sheet.row(
        [
            (view.photo_panel(), "The photo", "as it was given", None),
            (depth, "What lies in front of what", "warm = near, cool = far, dashed = hidden", None),
            (stack, "Peeled apart", "the nearest layer left, the photo right", None),
            (view.unsure(), "Where the answer is unsure", "where yes and no are equally likely", None),
        ]
    )
    sheet.color_bar(column=3)
    sheet.rule()
    if not count:
        sheet.message("No objects found", "The whole picture was taken as background.")
    notes = list(layer_notes) or [""] * count
    panels = [(view.layer(k), _layer_title(k), notes[k], view.colors[k]) for k in range(count)]
    for start in range(0, count, COLUMNS):
        sheet.row(panels[start : start + COLUMNS])
    sheet.legend(view.colors)
    sheet.foot(captions)
    return sheet.array()


def _layer_title(k: int) -> str:
    if k >= len(_ORDINALS):
        return f"Layer {k + 1}: behind the first {k}"
    return f"{_ORDINALS[k]} layer: " + (f"behind the first{_COUNTS[k]}" if k else "nobody in front")


@dataclass(frozen=True)
class _View:
    """The image and its masks at the size of a panel, drawn `_FINE` times too large.

    photo: uint8 (h, w, 3). masks: bool (K, h, w) amodal. hidden: bool (K, h, w), the part that earlier layers cover.
    """

    photo: np.ndarray
    masks: np.ndarray
    hidden: np.ndarray
    uncertainty: np.ndarray
    colors: tuple[Color, ...]
    box_height: int
    source: tuple[int, int]

    @classmethod
    def of(cls, preview: np.ndarray, layer_masks: np.ndarray, uncertainty: np.ndarray) -> _View:
        source = (preview.shape[0], preview.shape[1])
        box_height = min(_TALLEST, max(_SHORTEST, round(PANEL_WIDTH * source[0] / source[1])))
        height, width = (
            _FINE * side for side in fit(source[0], source[1], box_height, PANEL_WIDTH, thinnest=_THINNEST)
        )
        masks = np.zeros((len(layer_masks), height, width), dtype=bool)
        for k, mask in enumerate(layer_masks):
            masks[k] = _resize_map(mask.astype(np.float32), height, width) > 0.5
        hidden, before = masks.copy(), np.zeros((height, width), dtype=bool)
        for k in range(len(masks)):
            hidden[k] &= before
            before |= masks[k]
        return cls(
            photo=np.asarray(resize_image(preview, height, width)),
            masks=masks,
            hidden=hidden,
            uncertainty=np.clip(_resize_map(uncertainty.astype(np.float32), height, width), 0, 1),
            colors=layer_colors(len(masks)),
            box_height=box_height,
            source=source,
        )

    def photo_panel(self) -> Image.Image:
        return self._panel(self.photo)

    def by_depth(self) -> np.ndarray:
        canvas = self._faded(0.35)
        order = list(enumerate(zip(self.masks, self.hidden, self.colors, strict=True)))
        for _, (mask, hidden, color) in order:
            canvas = tint(canvas, mask & ~hidden, color=color, alpha=0.62)
        for _, (mask, hidden, color) in order:
            edge = outline(mask, width=2 * _FINE)
            canvas = tint(canvas, edge & ~hidden, color=_darker(color), alpha=1)
        for _, (mask, hidden, color) in reversed(order):
            edge = outline(mask, width=2 * _FINE) & hidden
            canvas = tint(canvas, edge, color=(255, 255, 255), alpha=0.9)
            canvas = tint(canvas, edge & _dashes(edge.shape), color=_darker(color), alpha=1)
        return canvas

    def layer(self, k: int) -> Image.Image:
        mask, hidden, color = self.masks[k], self.hidden[k], self.colors[k]
        canvas = self._faded(0.86)
        canvas[mask & ~hidden] = self.photo[mask & ~hidden]
        canvas = _hatched(canvas, hidden, color)
        canvas = tint(canvas, outline(mask, width=2 * _FINE), color=_darker(color), alpha=1)
        return self._panel(canvas)

    def unsure(self) -> Image.Image:
        grey = self._faded(0.55, grey=True).astype(np.float32)
        share = np.clip(self.uncertainty * 3, 0, 0.92)[..., None]
        return self._panel(np.rint(grey * (1 - share) + heat_map(self.uncertainty) * share).astype(np.uint8))

    def peeled(self) -> Image.Image:
        """The layers as sheets of glass standing one behind the other, nearest at the left, the faded photo at the
        right."""
        box_width, box_height = PANEL_WIDTH * _FINE, self.box_height * _FINE
        height, width = self.photo.shape[:2]
        cards = [self._card(k) for k in range(len(self.masks))]
        cards.append(np.dstack([self._faded(0.25), np.full((height, width), 255, dtype=np.uint8)]))
        squeeze, lift = 0.62, 0.22  # each sheet is turned away: narrower, and its right side higher
        scale = min(box_width * 0.56 / (width * squeeze), box_height * 0.94 / (height + lift * width * squeeze))
        card_width, card_height = max(2, round(width * squeeze * scale)), max(2, round(height * scale))
        rise = round(lift * card_width)
        step = (box_width - card_width) / max(1, len(cards) - 1)
        step = min(step, card_width * 0.62)
        start = (box_width - card_width - step * (len(cards) - 1)) / 2
        sheet = Image.new("RGBA", (box_width, box_height), (*_BACK, 255))
        top = (box_height - card_height - rise) // 2
        for place in reversed(range(len(cards))):  # far to near
            card = Image.fromarray(cards[place]).resize((card_width, card_height), Image.Resampling.BOX)
            color = self.colors[place] if place < len(self.colors) else GREY
            ImageDraw.Draw(card).rectangle(
                (0, 0, card_width - 1, card_height - 1), outline=(*color, 255), width=2 * _FINE
            )
            turned = card.transform(
                (card_width, card_height + rise),
                Image.Transform.AFFINE,
                (1, 0, 0, lift, 1, -rise),
                resample=Image.Resampling.BICUBIC,
            )
            sheet.alpha_composite(turned, (max(0, round(start + step * place)), max(0, top)))
        return sheet.convert("RGB").reduce(_FINE)

    def _card(self, k: int) -> np.ndarray:
        mask, hidden, color = self.masks[k], self.hidden[k], self.colors[k]
        picture = np.full_like(self.photo, 255)
        picture[mask] = self.photo[mask]
        picture = tint(picture, mask & ~hidden, color=color, alpha=0.35)
        picture = _hatched(picture, hidden, color)
        picture = tint(picture, outline(mask, width=3 * _FINE), color=_darker(color), alpha=1)
        return np.dstack([picture, np.where(mask, 255, 70).astype(np.uint8)])

    def marked(self, canvas: np.ndarray, marks: Sequence[tuple[str, float, float]]) -> Image.Image:
        """`canvas` as a panel with a numbered dot for each object."""
        panel = self._panel(canvas)
        draw = ImageDraw.Draw(panel)
        height, width = (side // _FINE for side in self.photo.shape[:2])
        left, top = (panel.width - width) / 2, (panel.height - height) / 2
        for text, x, y in marks:
            at = (left + (x + 0.5) / self.source[1] * width, top + (y + 0.5) / self.source[0] * height)
            radius = 9 if len(text) < 2 else 11
            at = (min(max(at[0], radius), panel.width - radius), min(max(at[1], radius), panel.height - radius))
            draw.ellipse((at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius), fill="white", outline=_INK)
            draw.text(at, text, fill=_INK, font=load_font(12), anchor="mm")
        return panel

    def blank(self, text: str) -> Image.Image:
        panel = Image.new("RGB", (PANEL_WIDTH, self.box_height), _BACK)
        ImageDraw.Draw(panel).text(
            (PANEL_WIDTH / 2, self.box_height / 2), text, fill=GREY, font=load_font(14), anchor="mm"
        )
        return panel

    def _faded(self, share: float, *, grey: bool = False) -> np.ndarray:
        """The photo, `share` of the way to white."""
        base = self.photo.astype(np.float32)
        if grey:
            base = np.repeat((base @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None], 3, axis=-1)
        faded: np.ndarray = np.rint(base * (1 - share) + 255 * share).astype(np.uint8)
        return faded

    def _panel(self, canvas: np.ndarray) -> Image.Image:
        """A canvas at its true size, centred in the panel's box."""
        panel = Image.new("RGB", (PANEL_WIDTH, self.box_height), _BACK)
        small = Image.fromarray(canvas).reduce(_FINE)
        panel.paste(small, ((PANEL_WIDTH - small.width) // 2, (self.box_height - small.height) // 2))
        return panel


class _Sheet:
    """A white page that grows downwards."""

    def __init__(self, *, panel_height: int) -> None:
        self.panel_height = panel_height
        self.page = Image.new("RGB", (WIDTH, 400), "white")
        self.draw = ImageDraw.Draw(self.page)
        self.y = MARGIN

    def _claim(self, height: int) -> int:
        """Top of the next `height` pixels; the page grows where it has to."""
        top, self.y = self.y, self.y + height
        if self.y > self.page.height:
            page = Image.new("RGB", (WIDTH, self.y + 400), "white")
            page.paste(self.page)
            self.page, self.draw = page, ImageDraw.Draw(page)
        return top

    def headline(self, text: str) -> None:
        top = self._claim(46)
        write_line(self.draw, (MARGIN, top), text, size=26, fill=_INK, width=WIDTH - 2 * MARGIN)

    def row(self, panels: Sequence[tuple[Image.Image, str, str, Color | None]]) -> None:
        """Panels side by side, each below its name, its note and, where given, a swatch of its colour."""
        top = self._claim(48 + self.panel_height + GAP)
        for i, (panel, name, note, color) in enumerate(panels):
            left = MARGIN + i * (PANEL_WIDTH + GAP)
            indent = 0
            if color is not None:
                self.draw.rectangle((left, top + 2, left + 14, top + 16), fill=color)
                indent = 22
            write_line(self.draw, (left + indent, top), name, size=17, fill=_INK, width=PANEL_WIDTH - indent)
            write_line(self.draw, (left, top + 24), note, size=14, fill=GREY, width=PANEL_WIDTH)
            self.page.paste(panel, (left, top + 48))
            frame = (left - 1, top + 47, left + panel.width, top + 48 + panel.height)
            self.draw.rectangle(frame, outline=_RULE)

    def color_bar(self, *, column: int) -> None:
        """From certain to unsure, right below the row's panel in `column`."""
        top = self._claim(20) - GAP + 10
        left = MARGIN + column * (PANEL_WIDTH + GAP)
        bar = PANEL_WIDTH - 130
        ramp = heat_map(np.linspace(0, 1, bar)[None].repeat(12, axis=0))
        self.page.paste(Image.fromarray(ramp), (left + 62, top))
        self.draw.rectangle((left + 61, top - 1, left + 62 + bar, top + 12), outline=_RULE)
        self.draw.text((left, top + 6), "certain", fill=GREY, font=load_font(14), anchor="lm")
        self.draw.text((left + PANEL_WIDTH, top + 6), "unsure", fill=GREY, font=load_font(14), anchor="rm")

    def rule(self) -> None:
        top = self._claim(24) + 6
        self.draw.line((MARGIN, top, WIDTH - MARGIN, top), fill=_RULE)

    def message(self, text: str, detail: str) -> None:
        top = self._claim(110)
        self.draw.text((WIDTH / 2, top + 34), text, fill=_INK, font=load_font(24), anchor="mm")
        self.draw.text((WIDTH / 2, top + 66), detail, fill=GREY, font=load_font(15), anchor="mm")

    def legend(self, colors: Sequence[Color]) -> None:
        """What the colours, the dashes and the hatching mean."""
        if not colors:
            return
        top = self._claim(34) + 4
        side = min(20.0, 260 / len(colors))  # the words need the rest of the line
        gap = 3 if side > 8 else 1
        for place, color in enumerate(colors):
            left, right = MARGIN + round(place * side), MARGIN + round((place + 1) * side) - gap
            self.draw.rectangle((left, top, max(left, right), top + 13), fill=color)
        x = self._term(MARGIN + round(len(colors) * side) + 4, top, "near to far")
        sample = np.full((14 * _FINE, 44 * _FINE, 3), 255, dtype=np.uint8)
        everywhere = np.ones(sample.shape[:2], dtype=bool)
        line = np.zeros_like(everywhere)
        line[6 * _FINE : 8 * _FINE] = True
        for mask, text in (
            (line, "outline seen"),
            (line & _dashes(line.shape), "outline hidden, completed by the model"),
        ):
            x = self._sample(x, top, tint(sample, mask, color=_darker(colors[0]), alpha=1), text)
        x = self._sample(x, top, _hatched(sample, everywhere, colors[0]), "hidden part, completed by the model")
        self.draw.ellipse((x, top - 2, x + 18, top + 16), fill="white", outline=_INK)
        self.draw.text((x + 9, top + 7), "0", fill=_INK, font=load_font(12), anchor="mm")
        self._term(x + 24, top, "number of the object")

    def _sample(self, x: int, top: int, picture: np.ndarray, text: str) -> int:
        small = Image.fromarray(picture).reduce(_FINE)
        self.page.paste(small, (x, top))
        return self._term(x + small.width + 6, top, text)

    def _term(self, x: int, top: int, text: str) -> int:
        self.draw.text((x, top + 7), text, fill=GREY, font=load_font(14), anchor="lm")
        return x + round(load_font(14).getlength(text)) + 28

    def foot(self, captions: Sequence[str]) -> None:
        for text in captions:
            top = self._claim(21)  # first: claiming may replace the page
            write_line(self.draw, (MARGIN, top), text, size=14, fill=GREY, width=WIDTH - 2 * MARGIN)

    def array(self) -> np.ndarray:
        return np.array(self.page.crop((0, 0, WIDTH, self.y + MARGIN - 10)))


# -- drawing parts ---------------------------------------------------------------------------------


def _hatched(image: np.ndarray, mask: np.ndarray, color: Color) -> np.ndarray:
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    stripes = (rows + columns) % (7 * _FINE) < 2 * _FINE
    return tint(tint(image, mask, color=color, alpha=0.45), mask & stripes, color=_darker(color), alpha=0.8)


def _dashes(shape: tuple[int, ...]) -> np.ndarray:
    """A chequerboard: a line in any direction crosses dark and light fields in turn."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    dark: np.ndarray = (rows // (5 * _FINE) + columns // (5 * _FINE)) % 2 == 0
    return dark


def _darker(color: Color) -> Color:
    return round(color[0] * 0.72), round(color[1] * 0.72), round(color[2] * 0.72)


def _resize_map(values: np.ndarray, height: int, width: int) -> np.ndarray:
    enlarging = height >= 4 * values.shape[0] or width >= 4 * values.shape[1]
    method = Image.Resampling.NEAREST if enlarging else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(values).resize((width, height), method))
