"""Compose scenes from cutouts: paste them on a background in depth order, with exact amodal masks and occlusion order.

Everything is batched in torch, so the same code runs on CPU and GPU. All randomness comes from `Keys`: the scene at position p
of step s depends on (seed, s, p) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange, repeat
from torch.nn import functional

from sas.data.atlas import Atlas
from sas.data.degradation import degrade
from sas.data.touching import TOUCH_DRAWS, alike, edge_to_edge, half_sizes
from sas.data.warp import WARP_DRAWS, Warp
from sas.geometry import PADDING_VALUE
from sas.masks import overlap_areas, reduce_by_area
from sas.order import DEFAULT_MIN_OVERLAP
from sas.scene import Scene, SceneBatch
from sas.seeding import Keys

# What a scene, an object of it and a print on that object draw, each one uniform number. A new name at the end of the scene's leaves the others
# as they are; one of an object's would move those of all objects but the first, so it needs a stream of its own, as prints and warps have.
SCENE_DRAWS = (
    "aspect",
    "background",
    "centre_x",
    "centre_y",
    "count",
    "crop_x",
    "crop_y",
    "empty",
    "focus",
    "grain",
    "group",
    "intra_class",
    "letterbox",
    "level",
    "light_x",
    "light_y",
    "mirror",
    "one_size",
    "size",
    "slope_x",
    "slope_y",
    "spread",
    "table",
    "upright",
    "wide",
    "zoom",
    "touching",
)
OBJECT_DRAWS = (
    "angle",
    "blue",
    "exposure",
    "flip",
    "gamma",
    "green",
    "group",
    "red",
    "shadow",
    "size",
    "sprite",
    "stretch",
    "x",
    "y",
)
PRINT_DRAWS = (
    "printed",
    "background",
    "zoom",
    "crop_x",
    "crop_y",
    "turn",
    "strength",
    "label",
    "label_x",
    "label_y",
    "label_width",
    "label_height",
    "label_turn",
)
SHADE_DRAWS = ("shaded", "round", "behind", "outside", "x", "y", "width", "height", "turn", "soft", "depth")
Draws = dict[str, torch.Tensor]


@dataclass(frozen=True)
class SceneStyle:
    """What scenes look like; fractions are of the canvas's side, probabilities are shares of scenes where nothing else is said.

    objects: fewest and most objects. intra_class: all objects of one group. empty: no object at all. twins: share of
    pairs of neighbours (positions 0 and 1, 2 and 3, ...) of which the second repeats the first without its occluders, so that the model
    learns not to complete what ends there. scale: longer side of an object.
    spread: how far objects lie apart. min_visible: an object that shows less of itself is left out before pasting.
    letterbox: scenes with grey bars, as pictures that are not square have. lighting, colour, noise: strengths in [0, 1].
    appearance: share of objects, and of pictures, whose colours are changed beyond what light does (hue, saturation, contrast).
    prints: share of objects that wear a print, a piece of a background lit as they are: half of these all over, half on a label.
    warps: share of objects that are stretched, bent and tapered, so that few cutouts have many shapes.
    touching: share of scenes whose objects lie edge to edge (`sas.data.touching`).
    shades: share of pictures with a patch that is darker or lighter, an ellipse or a band, on all that is there or on the background alone;
    it is no object. degradation: share of pictures that are blurred, of fewer pixels, noisy, packed as JPEG (`sas.data.degradation`).
    """

    objects: tuple[int, int] = (1, 4)
    intra_class: float = 0.3
    empty: float = 0.03
    twins: float = 0.1
    scale: tuple[float, float] = (0.25, 0.6)
    spread: tuple[float, float] = (0.2, 0.9)
    min_visible: float = 0.05
    letterbox: float = 0.15
    lighting: float = 0.4
    colour: float = 0.25
    noise: float = 0.02
    appearance: float = 0.0
    prints: float = 0.0
    warps: float = 0.0
    touching: float = 0.0
    shades: float = 0.0
    degradation: float = 0.0


@dataclass(frozen=True, eq=False)
class Composition:
    """Scenes on the canvas. image: float (B, 3, C, C) in [0, 1]. masks: bool (B, N, C, C), front to back, padding last.
    counts: int64 (B,). overlaps: bool (B, N, N), in front and touching. order: those that count. frame: bool (B, 1, C, C)."""

    image: torch.Tensor
    masks: torch.Tensor
    counts: torch.Tensor
    overlaps: torch.Tensor
    order: torch.Tensor
    frame: torch.Tensor
    sprite: torch.Tensor
    dropped: torch.Tensor


class Window(NamedTuple):
    """Where objects are drawn: those of one slot in some scenes, in one window of the canvas. which: their rows among those drawn.
    warped: whether a warp may move them."""

    which: slice
    scenes: slice
    slot: int
    rows: slice
    columns: slice
    warped: bool


class Composer:
    """Source of composed scenes (see `sas.data.source.SceneSource`).

    backgrounds: uint8 (M, 3, S, S). image_size, mask_size: model resolution. oversample: canvas pixels a model pixel; masks are
    made on the canvas, where layers are decided, and each is reduced by area > 0.5 of what a cell shows beside grey bars.
    """

    def __init__(
        self,
        atlas: Atlas,
        backgrounds: torch.Tensor | np.ndarray,
        *,
        seed: int,
        image_size: int = 64,
        mask_size: int = 64,
        oversample: int = 2,
        style: SceneStyle = SceneStyle(),
        min_overlap: float = DEFAULT_MIN_OVERLAP,
        device: torch.device | str = "cpu",
    ) -> None:
        canvas = image_size * oversample
        if canvas % mask_size:
            raise ValueError(
                f"mask_size must divide the canvas of image_size x oversample = {canvas}, got {mask_size}: choose a divisor"
            )
        low, high = style.objects
        if not 0 <= low <= high or high < 1:
            raise ValueError(
                f"objects must be (fewest, most) with 0 <= fewest <= most and most >= 1, got {style.objects}: fix the range"
            )
        self.seed = seed
        self.image_size, self.mask_size, self.canvas = image_size, mask_size, canvas
        self.style = style
        self.min_overlap = min_overlap
        self.names = atlas.names
        self.device = torch.device(device)
        self.one_by_one = self.device.type == "cpu"  # see `_windows`; a picture stays in its cache, too
        self.sprites = atlas.sprites.to(self.device)
        self.half_sizes = half_sizes(self.sprites) if style.touching else None
        self.starts, self.sizes = atlas.group_starts, atlas.group_sizes
        self.shares = None if atlas.shares is None else atlas.shares.cumsum(0)
        self.soften = _soften(canvas).to(self.device)
        self.backgrounds = torch.as_tensor(backgrounds).to(self.device)

    # ------------------------------------------------------------------ sources

    def batch(self, step: int, positions: Sequence[int]) -> SceneBatch:
        """Scenes at model resolution, on the composer's device."""
        made = self.compose(step, positions)
        layer_index = layers_front_to_back(made.order, made.counts)
        image = made.image
        if self.canvas != self.image_size:
            image = functional.interpolate(image, size=(self.image_size, self.image_size), mode="area")
        # As the sampler sees a picture of another shape: a cell that a grey bar cuts is known, by what the bar leaves of it.
        reduced = reduce_by_area(
            torch.cat([made.masks, made.frame], dim=1), self.canvas // self.mask_size, shown=made.frame
        )
        return SceneBatch(
            image=image.mul(2).sub_(1),
            amodal_masks=reduced[:, :-1],
            counts=made.counts,
            layer_index=layer_index,
            order_matrix=made.order,
            known=reduced[:, -1:],
            ids=tuple(f"{self.seed}-{step}-{position}" for position in positions),
        )

    def scenes(self, step: int, positions: Sequence[int]) -> list[Scene]:
        """The same scenes as full-size ground truth, for writing to disk or looking at. What grey bars hide is not known.

        Read back, bars are part of the picture: a cell of the mask grid that one cuts counts if more than half of it is known.
        """
        made = self.compose(step, positions)
        images = rearrange((made.image * 255).round().byte(), "b c h w -> b h w c").cpu().numpy()
        result = []
        for b, position in enumerate(positions):
            count = int(made.counts[b])
            frame = made.frame[b, 0].cpu().numpy()
            result.append(
                Scene(
                    image=images[b],
                    amodal_masks=made.masks[b, :count].cpu().numpy(),
                    order_matrix=made.overlaps[b, :count, :count].cpu().numpy(),
                    names=tuple(self.names[i] for i in made.sprite[b, :count].tolist()),
                    id=f"{self.seed}-{step}-{position}",
                    min_overlap=self.min_overlap,
                    source="sas composer",
                    dropped=int(made.dropped[b]),
                    known=None if frame.all() else frame,
                )
            )
        return result

    # ------------------------------------------------------------------ composing

    def compose(self, step: int, positions: Sequence[int]) -> Composition:
        """Draw, place, light and paste. A CPU takes a few scenes at a time, which stay in its cache."""
        few = 8 if self.device.type == "cpu" else max(1, len(positions))
        parts = [self._compose(step, positions[i : i + few]) for i in range(0, max(1, len(positions)), few)]
        return Composition(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Composition)})

    def _compose(self, step: int, positions: Sequence[int]) -> Composition:
        """See the numbered steps."""
        keys, style = Keys(self.seed, step, tuple(positions)), self.style
        b, n, c = len(positions), style.objects[1], self.canvas

        # 1. A twin takes its numbers, but for shade, film, grain and degradation, from its left neighbour, so that both show the same objects.
        own = keys.uniform("twin")
        twin = torch.tensor(
            [bool(u < style.twins) and p % 2 == 1 for u, p in zip(own.tolist(), positions, strict=True)],
            dtype=torch.bool,
        )
        source = keys.at([p - 1 if t else p for p, t in zip(positions, twin.tolist(), strict=True)])
        per_scene = _named(source.uniform("scene", len(SCENE_DRAWS)).to(self.device), SCENE_DRAWS)
        per_object = _named(source.uniform("objects", n, len(OBJECT_DRAWS)).to(self.device), OBJECT_DRAWS)
        twin = twin.to(self.device)

        # 2. Which objects, and where; each is drawn in its window.
        sprite, present = self._choose(per_scene, per_object)
        inverse = self._place(per_scene, per_object, source, sprite, present)
        warp = self._warp(source)
        used, windows = self._windows(inverse, present, warp)
        premultiplied = self._sprites(sprite, per_object, source, used)
        masks = torch.zeros(b, n, c, c, dtype=torch.bool, device=self.device)
        drawn = []
        for which, scenes, slot, rows, columns, warped in windows:
            grid = _affine_grid(inverse[used[which]], c, rows, columns)
            if warp is not None and warped:
                grid = warp.apply(grid, used[which])
            drawn.append(functional.grid_sample(premultiplied[which], grid, mode="bilinear", align_corners=False))
            masks[scenes, slot, rows, columns] = drawn[-1][:, 3] > 0.5
        frame = self._frame(per_scene)
        masks &= frame

        # 3. Leave out what hardly shows, or covers no cell of the mask grid; in a twin, also what occludes anything.
        _clear(masks, ~reduce_by_area(masks, c // self.mask_size, shown=frame).flatten(2).any(dim=2))
        kept = self._visible_enough(masks, windows)
        _clear(masks, ~kept)
        order, overlaps = self._order(masks)
        kept = kept & ~(twin[:, None] & order.any(dim=2))

        # 4. Paste from front to back: what lies behind an object shows where its alpha lets it, darkened by its contact shadow.
        image, light = torch.zeros(b, 3, c, c, device=self.device), torch.ones(b, 1, c, c, device=self.device)
        dark = (0.15 + 0.45 * per_object["shadow"]) * kept
        down, across = self._shift(-0.08 * per_scene["light_y"]), self._shift(0.12 * (per_scene["light_x"] - 0.5)).mT
        for (_, scenes, slot, rows, columns, _), piece in zip(windows, drawn, strict=True):
            colour, alpha = (piece * kept[scenes, slot, None, None, None]).split([3, 1], dim=1)
            soft = self.soften[:, rows] @ alpha @ self.soften[:, columns].mT * dark[scenes, slot, None, None, None]
            image[scenes, :, rows, columns] += colour * light[scenes, :, rows, columns]
            light[scenes, :, rows, columns] *= 1 - alpha
            light[scenes] *= (down[scenes] @ soft @ across[scenes]).neg_().add_(1)
        background = self._background(per_scene)
        if style.shades:
            shaded, everywhere, behind = self._shades(keys)
            background[shaded] *= behind
        image = torch.addcmul(image, background, light)
        if style.shades:
            image[shaded] *= everywhere
        image = self._camera(image, per_scene, keys)
        if style.degradation:
            image = degrade(image, keys, share=style.degradation, one_by_one=self.one_by_one)
        image.clamp_(0, 1)
        barred = (~frame[:, 0, 0, 0]).nonzero()[:, 0]  # bars reach into every corner
        image[barred] = torch.where(frame[barred], image[barred], PADDING_VALUE / 255)

        # 5. Objects that are there first, padding last.
        slots = (~kept).long().argsort(dim=1, stable=True)
        _clear(masks, ~kept)
        masks = masks[torch.arange(b, device=self.device)[:, None], slots]
        pairs = kept[:, :, None] & kept[:, None, :]
        return Composition(
            image=image,
            masks=masks,
            counts=kept.sum(dim=1),
            overlaps=_permute(overlaps & pairs, slots),
            order=_permute(order & pairs, slots),
            frame=frame,
            sprite=sprite.gather(1, slots),
            dropped=(present & ~kept).sum(dim=1),
        )

    def _choose(self, scene: Draws, objects: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """Sprite of each slot, int64 (B, N), and which slots are used, bool (B, N)."""
        style, (low, high) = self.style, self.style.objects
        starts, sizes = self.starts.to(self.device), self.sizes.to(self.device)
        count = low + (scene["count"] * (high - low + 1)).long()
        count = torch.where(scene["empty"] < style.empty, 0, count)
        present = torch.arange(high, device=self.device)[None] < count[:, None]
        shared = (scene["intra_class"] < style.intra_class)[:, None]
        uniform = torch.where(shared, scene["group"][:, None], objects["group"])
        if self.shares is None:
            group = (uniform * len(starts)).long()
        else:
            group = torch.searchsorted(self.shares.to(self.device), uniform.contiguous(), right=True)
            group = group.clamp(max=len(starts) - 1)
        sprite = starts[group] + (objects["sprite"] * sizes[group]).long()
        return sprite, present

    def _place(
        self, scene: Draws, objects: Draws, keys: Keys, sprite: torch.Tensor, present: torch.Tensor
    ) -> torch.Tensor:
        """Inverse affine map of each slot, canvas to sprite in [-1, 1] coordinates: (B * N, 2, 3). Unused slots lie far outside."""
        style = self.style
        spread = _between(scene["spread"], *style.spread)[:, None]
        centre_x, centre_y = ((scene[name][:, None] - 0.5) * (1 - spread) * 1.2 for name in ("centre_x", "centre_y"))
        x = centre_x + (objects["x"] - 0.5) * 2 * spread
        y = centre_y + (objects["y"] - 0.5) * 2 * spread
        # On a table what is nearer stands lower in the picture; in a heap it may lie anywhere.
        # Used slots come first; heights of unused ones must not push them down.
        lowest_first = y.masked_fill(~present, -torch.inf).sort(dim=1, descending=True).values
        y = torch.where((scene["table"] < 0.6)[:, None] & present, lowest_first, y)
        common = _between(scene["size"], *style.scale)[:, None]
        size = torch.where(
            (scene["one_size"] < 0.5)[:, None],
            common * _between(objects["size"], 0.8, 1.25),
            _between(objects["size"], *style.scale),
        )
        upright = (scene["upright"] < 0.6)[:, None]
        angle = (objects["angle"] - 0.5) * torch.where(upright, 0.35, 2 * torch.pi)
        flip = torch.where(objects["flip"] < 0.5, -1.0, 1.0)
        stretch = _between(objects["stretch"], 0.9, 1.1)
        if self.half_sizes is not None:
            drawn = _named(keys.uniform("touch", sprite.shape[1], len(TOUCH_DRAWS)).to(self.device), TOUCH_DRAWS)
            touching = (scene["touching"] < style.touching)[:, None]
            angle = torch.where(touching, alike(angle, drawn), angle)
            half = self.half_sizes[sprite] * torch.stack([size * stretch, size], dim=-1)
            beside_x, beside_y, fit = edge_to_edge(angle, half, present, scene["table"] < 0.6, drawn)
            x = torch.where(touching, beside_x + centre_x / 2, x)
            y = torch.where(touching, beside_y + centre_y / 2, y)
            size = torch.where(touching, size * fit, size)
        cos, sin = angle.cos() / size, angle.sin() / size
        a, b_, d, e = flip * cos / stretch, flip * sin / stretch, -sin, cos
        far = 1000.0
        right, down = torch.where(present, -(a * x + b_ * y), far), torch.where(present, -(d * x + e * y), far)
        rows = [a, b_, right, d, e, down]
        return rearrange(torch.stack(rows, dim=-1), "b n (r k) -> (b n) r k", r=2, k=3)

    def _warp(self, keys: Keys) -> Warp | None:
        """How each slot's sprite is warped; None if the style warps nothing."""
        if not self.style.warps:
            return None
        drawn = keys.uniform("warp", self.style.objects[1], len(WARP_DRAWS)).to(self.device).flatten(0, 1)
        return Warp.drawn(_named(drawn, WARP_DRAWS), self.style.warps)

    def _windows(
        self, inverse: torch.Tensor, present: torch.Tensor, warp: Warp | None
    ) -> tuple[torch.Tensor, list[Window]]:
        """Slots that are drawn, int64 (U,), among the B * N, and where: the windows run through the scenes' slots from front to back.

        A CPU draws objects one by one, each in the window of the canvas that it touches. A GPU draws those of a slot in all scenes at once.
        """
        b, n = present.shape
        if not self.one_by_one:
            whole = slice(0, self.canvas)
            slots = torch.arange(b * n, device=self.device)
            warped = warp is not None
            return slots, [Window(slice(i, None, n), slice(None), i, whole, whole, warped) for i in range(n)]
        used = present.flatten().nonzero()[:, 0]
        turn, shift = inverse[used, :, :2], inverse[used, :, 2:]
        back = torch.linalg.inv(turn)
        # Bilinear sampling reaches half a pixel beyond the sprite's edge.
        reach = back.abs() if warp is None else back.abs() * warp.reach()[used, None]
        reach = reach.sum(dim=2) * (1 + 1 / self.sprites.shape[-1])
        centre = -(back @ shift)[..., 0]
        first = ((centre - reach + 1) / 2 * self.canvas).floor().long().clamp(0, self.canvas)
        last = ((centre + reach + 1) / 2 * self.canvas).ceil().long().clamp(0, self.canvas)
        moved = torch.zeros_like(used, dtype=torch.bool) if warp is None else warp.moves()[used]
        each = zip(used.tolist(), first.tolist(), last.tolist(), moved.tolist(), strict=True)
        return used, [
            Window(slice(k, k + 1), slice(slot // n, slot // n + 1), slot % n, slice(y0, y1), slice(x0, x1), moves)
            for k, (slot, (x0, y0), (x1, y1), moves) in enumerate(each)
        ]

    def _sprites(self, sprite: torch.Tensor, objects: Draws, keys: Keys, used: torch.Tensor) -> torch.Tensor:
        """Sprites of the slots in use, each with its own light and colour, premultiplied: float (U, 4, P, P) in [0, 1].

        used: int64 (U,), places among the B * N slots.
        """
        slot = {name: values.flatten()[used] for name, values in objects.items()}
        strength = self.style.colour
        gain = 1 + (torch.stack([slot[name] for name in ("red", "green", "blue")], dim=-1) - 0.5) * strength
        exposure = 1 + (slot["exposure"][:, None] - 0.5) * self.style.lighting
        gamma = torch.exp((slot["gamma"][:, None] - 0.5) * strength)
        # Bytes have 256 values: working these out and looking them up takes a tenth of the time of the pixels.
        levels = torch.arange(256, device=self.device) / 255
        lit = (levels ** gamma[..., None] * (gain * exposure)[..., None]).clamp(0, 1)
        table = torch.cat([lit, levels.expand(len(used), 1, 256)], dim=1)
        row = torch.arange(0, table.numel(), 256, dtype=torch.int32, device=self.device).view(len(used), 4, 1, 1)
        place = self.sprites[sprite.flatten()[used]].int().add_(row)
        taken = table.flatten().index_select(0, place.flatten()).view(place.shape)
        colour, alpha = taken.split([3, 1], dim=1)
        if self.style.appearance:
            drawn = keys.uniform("appearance", sprite.shape[1], 4).to(self.device).flatten(0, 1)[used]
            changed = (drawn[:, 0] < self.style.appearance).nonzero()[:, 0]
            colour[changed] = _recoloured(colour[changed], drawn[changed, 1:])
        if self.style.prints:
            drawn = keys.uniform("print", sprite.shape[1], len(PRINT_DRAWS)).to(self.device).flatten(0, 1)[used]
            changed = (drawn[:, 0] < self.style.prints).nonzero()[:, 0]
            colour[changed] = self._printed(colour[changed], alpha[changed], _named(drawn[changed], PRINT_DRAWS))
        colour *= alpha
        return taken

    def _printed(self, colour: torch.Tensor, alpha: torch.Tensor, drawn: Draws) -> torch.Tensor:
        """Sprites with a piece of a background printed on them, in their own light and shade.

        colour: float (B, 3, P, P) in [0, 1]; alpha: float (B, 1, P, P). drawn: (B,) each. Returns (B, 3, P, P) in [0, 1].
        """
        side = colour.shape[-1]
        row = (drawn["background"] * len(self.backgrounds)).long()
        zoom = _between(drawn["zoom"], 0.15, 0.6)
        centre = [(drawn[name] * 2 - 1) * (1 - zoom) for name in ("crop_x", "crop_y")]
        grid = _affine_grid(_turned(drawn["turn"] * 2 * torch.pi, zoom, zoom, *centre), side)
        pattern = functional.grid_sample(
            self.backgrounds[row].float() / 255, grid, mode="bilinear", padding_mode="reflection", align_corners=False
        )
        grey = colour.mean(dim=1, keepdim=True)
        level = (grey * alpha).sum(dim=(2, 3), keepdim=True) / alpha.sum(dim=(2, 3), keepdim=True).clamp(min=1)
        shade = grey / level.clamp(min=0.1)
        # A label is a rectangle, on the sprite or partly beyond it; in its own coordinates it reaches from -1 to 1.
        width, height = (_between(drawn[name], 0.15, 0.6) for name in ("label_width", "label_height"))
        x, y = ((drawn[name] - 0.5) / size for name, size in (("label_x", width), ("label_y", height)))
        inside = _affine_grid(_turned(drawn["label_turn"] * 2 * torch.pi, 1 / width, 1 / height, x, y), side).abs()
        label = (inside.amax(dim=-1) < 1) | (drawn["label"] < 0.5)[:, None, None]
        share = label[:, None] * _between(drawn["strength"], 0.5, 1.0)[:, None, None, None]
        return torch.lerp(colour, (pattern * shade).clamp(0, 1), share)

    def _frame(self, scene: Draws) -> torch.Tensor:
        """Part of the square that a picture of some other shape would fill: bool (B, 1, C, C)."""
        c = self.canvas
        share = torch.where(scene["letterbox"] < self.style.letterbox, _between(scene["aspect"], 0.5, 1.0), 1.0)
        inside = (torch.arange(c, device=self.device) + 0.5 - c / 2).abs()[None] < (share * c / 2)[:, None]
        wide = (scene["wide"] < 0.5)[:, None, None]
        return torch.where(wide, inside[:, :, None], inside[:, None, :])[:, None]

    def _visible_enough(self, masks: torch.Tensor, windows: Sequence[Window]) -> torch.Tensor:
        """Slots whose object shows at least `min_visible` of itself, and one pixel; decided from front to back: bool (B, N)."""
        taken = torch.zeros_like(masks[:, 0])
        kept = torch.zeros_like(masks[:, :, 0, 0])
        for _, scenes, slot, rows, columns, _ in windows:
            mask, before = masks[scenes, slot, rows, columns], taken[scenes, rows, columns]
            area, seen = mask.sum(dim=(-2, -1)), (mask & ~before).sum(dim=(-2, -1))
            keep = (seen > 0) & (seen >= self.style.min_visible * area)
            kept[scenes, slot] = keep
            before |= mask & keep[:, None, None]
        return kept

    def _order(self, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Edges that count and all overlaps, both front (smaller slot) to behind: bool (B, N, N)."""
        shared = overlap_areas(masks)
        areas = shared.diagonal(dim1=1, dim2=2)
        in_front = torch.ones(masks.shape[1], masks.shape[1], dtype=torch.bool, device=self.device).triu(1)
        return (shared > self.min_overlap * areas[:, None, :]) & in_front, (shared > 0) & in_front

    def _background(self, scene: Draws) -> torch.Tensor:
        """A random crop of a random background: float (B, 3, C, C) in [0, 1]."""
        row = (scene["background"] * len(self.backgrounds)).long()
        zoom = _between(scene["zoom"], 0.5, 1.0)
        flip = torch.where(scene["mirror"] < 0.5, -1.0, 1.0)
        x, y = (scene["crop_x"] * 2 - 1) * (1 - zoom), (scene["crop_y"] * 2 - 1) * (1 - zoom)
        zero = torch.zeros_like(zoom)
        theta = rearrange(torch.stack([zoom * flip, zero, x, zero, zoom, y], dim=-1), "b (r k) -> b r k", r=2)
        grid = _affine_grid(theta, self.canvas)
        return functional.grid_sample(
            self.backgrounds[row].float() / 255, grid, mode="bilinear", padding_mode="border", align_corners=False
        )

    def _shades(self, keys: Keys) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pictures with a patch of shadow or light, int64 (P,); what it leaves there of all, and of the background alone: float (P, 1, C, C) in (0, 1].

        A patch is an ellipse, or a band that crosses the picture, and its edge is sharp or soft. The picture is darker inside of it or outside.
        """
        everyone = keys.uniform("shade", len(SHADE_DRAWS)).to(self.device)
        which = (everyone[:, SHADE_DRAWS.index("shaded")] < self.style.shades).nonzero()[:, 0]
        drawn = _named(everyone[which], SHADE_DRAWS)
        width, height = (_between(drawn[name], 0.2, 1.1) for name in ("width", "height"))
        theta = _turned(
            (drawn["turn"] - 0.5) * torch.pi,
            1 / width,
            1 / height,
            *((1 - 2 * drawn[name]) / size for name, size in (("x", width), ("y", height))),
        )
        across, down = _affine_grid(theta, self.canvas).unbind(dim=-1)
        apart = torch.where((drawn["round"] < 0.5)[:, None, None], (across**2 + down**2).sqrt(), across.abs()) - 1
        inside = torch.sigmoid(
            -apart
            * torch.minimum(width, height)[:, None, None]
            / _between(drawn["soft"] ** 2, 0.005, 0.15)[:, None, None]
        )
        dark = torch.where((drawn["outside"] < 0.5)[:, None, None], 1 - inside, inside)
        left = (1 - _between(drawn["depth"], 0.1, 0.6)[:, None, None] * dark)[:, None]
        behind = (drawn["behind"] < 0.5)[:, None, None, None]
        return which, torch.where(behind, 1.0, left), torch.where(behind, left, 1.0)

    def _shift(self, by: torch.Tensor) -> torch.Tensor:
        """Bilinear interpolation of lines of the coarse grid of shadows at the canvas's pixels and `by` beyond them, as matrices.

        by: float (B,), the canvas's side being 2. Returns float (B, 1, C, coarse). Outside of the grid nothing is dark.
        """
        coarse = len(self.soften)
        line = (torch.arange(self.canvas, device=self.device) + 0.5) * (coarse / self.canvas) - 0.5
        at = line + by[:, None] * (coarse / 2)
        return (1 - (at[..., None] - torch.arange(coarse, device=self.device)).abs()).clamp(min=0)[:, None]

    def _camera(self, image: torch.Tensor, scene: Draws, keys: Keys) -> torch.Tensor:
        """The picture, in place, in light that falls off across it, with a soft focus now and then and sensor noise."""
        c, style = self.canvas, self.style
        line = torch.linspace(-1, 1, c, device=self.device)
        down, across = ((scene[name][:, None, None] - 0.5) * style.lighting for name in ("slope_y", "slope_x"))
        plane = down * line[None, :, None] + across * line[None, None, :]
        level = 1 + (scene["level"] - 0.5) * style.lighting
        image *= (level[:, None, None] + plane)[:, None]
        amount = (scene["focus"] - 0.5).clamp(min=0) * 2
        soft = (amount > 0).nonzero()[:, 0]
        for some in soft.split(1 if self.one_by_one else len(amount)):
            image[some] = torch.lerp(image[some], _blurred(image[some]), amount[some, None, None, None])
        if style.appearance:
            drawn = keys.uniform("film", 4).to(self.device)
            changed = (drawn[:, 0] < style.appearance).nonzero()[:, 0]
            drawn[:, 1] = 0  # light leaves hues alone
            image.clamp_(0, 1)
            image[changed] = _recoloured(image[changed], drawn[changed, 1:])
        if not style.noise:
            return image
        grain = keys.normal("grain", 1, c // 2, c // 2).to(self.device)
        grain *= scene["grain"][:, None, None, None] * style.noise
        return image.add_(functional.interpolate(grain, size=(c, c), mode="nearest"))


def _affine_grid(
    theta: torch.Tensor, side: int, rows: slice = slice(None), columns: slice = slice(None)
) -> torch.Tensor:
    """`functional.affine_grid` of square grids by sums of rows and columns, on a CPU 40 times as fast as by its product of matrices.

    theta: float (B, 2, 3). Returns float (B, H, W, 2), x and y, without `align_corners`, for the window of these rows and columns.
    """
    line = (torch.arange(side, device=theta.device) * 2 + 1) / side - 1
    across, down, shift = theta[..., None, None].unbind(2)
    return (across * line[columns] + (down * line[rows, None] + shift)).permute(0, 2, 3, 1)


def _turned(
    angle: torch.Tensor, across: torch.Tensor, down: torch.Tensor, x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    """Affine maps that turn, then scale and shift each axis: float (B,) each -> (B, 2, 3)."""
    cos, sin = angle.cos(), angle.sin()
    rows = [across * cos, -across * sin, x, down * sin, down * cos, y]
    return rearrange(torch.stack(rows, dim=-1), "b (r k) -> b r k", r=2)


def _blurred(image: torch.Tensor) -> torch.Tensor:
    """Mean over the 3 x 3 pixels around each: float (B, 3, H, W) -> the same. Pooling takes 6 times as long."""
    wider = functional.pad(image, (1, 1, 1, 1), mode="replicate")
    rows = (wider[:, :, :-2] + wider[:, :, 1:-1]).add_(wider[:, :, 2:])
    return (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).div_(9)


def _soften(side: int) -> torch.Tensor:
    """What makes contact shadows soft, along one axis, as a matrix: float (coarse, side).

    First the mean over each cell of a grid four times as coarse, then, twice, over a window of an eighth of the grid.
    """
    coarse = max(8, side // 4)
    cells = functional.interpolate(torch.eye(side)[None], size=coarse, mode="area")[0].T
    radius, place = max(1, coarse // 16), torch.arange(coarse)
    window = ((place[:, None] - place).abs() <= radius).float() / (2 * radius + 1)
    return window @ window @ cells


def _recoloured(colour: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Turn hues, scale saturation by 0 to 2 and contrast by 0.6 to 1.4.

    colour: float (B, 3, H, W) in [0, 1]. drawn: uniforms (B, 3) for hue, saturation, contrast.
    """
    angle = drawn[..., 0] * 2 * torch.pi
    cos, sin = angle.cos(), angle.sin() / 3**0.5
    saturation = 2 * drawn[..., 1]
    # A turn about the grey axis (Rodrigues' formula), then a step from grey along what is left of colour.
    one = torch.ones_like(cos) / 3
    diagonal, after, before = one + cos * 2 / 3, one - cos / 3 - sin, one - cos / 3 + sin
    turn = torch.stack([diagonal, after, before, before, diagonal, after, after, before, diagonal], dim=-1)
    turn = rearrange(turn, "b (r k) -> b r k", r=3)
    mixed = one[..., None, None] * torch.ones_like(turn)
    matrix = mixed + saturation[..., None, None] * (turn - mixed)
    turned = torch.einsum("brk,bkhw->brhw", matrix, colour)
    return ((turned - 0.5) * _between(drawn[..., 2], 0.6, 1.4)[..., None, None, None] + 0.5).clamp(0, 1)


def layers_front_to_back(order: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Layer of each object when every edge points from a smaller to a larger slot: (B, N, N) -> int64 (B, N), -1 padded."""
    b, n = order.shape[:2]
    layer = torch.zeros(b, n, dtype=torch.int64, device=order.device)
    for j in range(1, n):
        layer[:, j] = ((layer[:, :j] + 1) * order[:, :j, j]).amax(dim=1)
    padded = torch.arange(n, device=order.device)[None] >= counts[:, None]
    return layer.masked_fill(padded, -1)


def _between(u: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return low + u * (high - low)


def _clear(masks: torch.Tensor, which: torch.Tensor) -> None:
    """Empty some of the masks in place: bool (B, N, C, C), bool (B, N). As bytes, which a CPU takes 30 times as fast."""
    masks.view(torch.uint8).bitwise_and_((~which).view(torch.uint8)[:, :, None, None])


def _permute(pairs: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Rows and columns of (B, N, N) in a new order."""
    n = pairs.shape[1]
    rows = pairs.gather(1, repeat(slots, "b n -> b n m", m=n))
    return rows.gather(2, repeat(slots, "b m -> b n m", n=n))


def _named(table: torch.Tensor, names: Sequence[str]) -> Draws:
    """Columns of a table of uniforms by name: each (B,) for scenes, (B, N) for objects."""
    return dict(zip(names, table.unbind(dim=-1), strict=True))
