"""Augmentation: another picture of the same scene, with masks, order and layers that are as true as before.

What moves pixels (flip, rotation, crop) moves image and masks together; what changes colours touches the image alone. All numbers
come from a key, so that the same key gives the same scene, whatever was made before.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, fields, replace

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from sas.scene import Scene
from sas.seeding import Keys

# What a scene draws, each one uniform number; a new name may be added at the end without moving the others.
DRAWS = (
    "flip",
    "rotation",
    "degrees",
    "crop",
    "crop_height",
    "crop_width",
    "crop_top",
    "crop_left",
    "colour",
    "brightness",
    "contrast",
    "saturation",
    "red",
    "green",
    "blue",
    "blur",
    "blur_radius",
    "noise",
    "noise_level",
    "jpeg",
    "jpeg_quality",
)
BEST_JPEG_QUALITY = 95  # Pillow's own advice for the highest quality worth its bytes
_PROBABILITIES = ("flip", "rotation", "crop", "colour", "blur", "noise", "jpeg")


@dataclass(frozen=True)
class Augmentation:
    """How often each change is made, a probability in [0, 1], and how strong it may be. Strengths are drawn evenly up to the most.

    flip: mirrored left to right. rotation: turned, by at most `degrees` in [0, 45] either way, and cut to the largest rectangle
    that shows no pixel from outside the picture. crop: cut to a random rectangle; each side keeps at least the share `crop_side` in
    (0, 1] of its length.
    colour: brightness, contrast, saturation and the weight of each channel are multiplied by a factor that lies at most
    `colour_change` in [0, 1) from 1 (for a channel a third of it). blur: Gaussian, of a standard deviation of at most `blur_radius`
    in [0, 0.1], a share of the picture's longer side. noise: normal, for each pixel and channel, of a standard deviation of at most
    `noise_level` in [0, 1], 1 being white. jpeg: packed as JPEG and unpacked, with a quality from `jpeg_quality` in 1..95 to 95.
    """

    flip: float = 0.5
    rotation: float = 0.5
    degrees: float = 15.0
    crop: float = 0.5
    crop_side: float = 0.6
    colour: float = 0.8
    colour_change: float = 0.3
    blur: float = 0.2
    blur_radius: float = 0.006
    noise: float = 0.3
    noise_level: float = 0.04
    jpeg: float = 0.3
    jpeg_quality: int = 40

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            _check(name, getattr(self, name), 0, 1, "pass a probability, 0 to switch it off")
        _check("degrees", self.degrees, 0, 45, "pass the largest angle; a flip is made by `flip`")
        _check("crop_side", self.crop_side, 1e-6, 1, "pass the share of a side that is always kept, 1 for no crop")
        _check("colour_change", self.colour_change, 0, 1 - 1e-6, "pass 0.3 for factors from 0.7 to 1.3")
        _check("blur_radius", self.blur_radius, 0, 0.1, "pass a share of the picture's longer side such as 0.006")
        _check("noise_level", self.noise_level, 0, 1, "pass a standard deviation where white is 1, such as 0.04")
        if not isinstance(self.jpeg_quality, int):
            raise ValueError(f"jpeg_quality must be a whole number, got {self.jpeg_quality!r}: round it")
        _check("jpeg_quality", self.jpeg_quality, 1, BEST_JPEG_QUALITY, "pass the lowest quality of the JPEG code")

    @classmethod
    def of(cls, strength: float) -> Augmentation:
        """The defaults scaled by one number in [0, 1]: 1 gives them as they are, 0 changes nothing.

        At one half everything happens half as often and goes half as far.
        """
        _check("strength", strength, 0, 1, "pass 0 for no augmentation, 1 for all of it")
        most = cls()
        scaled = {f.name: getattr(most, f.name) * strength for f in fields(cls)}
        scaled["crop_side"] = 1 - strength * (1 - most.crop_side)
        scaled["jpeg_quality"] = round(BEST_JPEG_QUALITY - strength * (BEST_JPEG_QUALITY - most.jpeg_quality))
        return cls(**scaled)


def augment(scene: Scene, augmentation: Augmentation, key: int | Keys) -> Scene:
    """Another version of a scene, pure in its arguments.

    key: a seed, or `Keys` of one position, say of an epoch and the scene's place in the data.
    Image, amodal and visible masks, alternatives and `known` move together; parts that leave the frame are unknown from then on.
    Objects without a visible pixel are dropped (`Scene.drop_invisible`), and the order is cut to those that are kept. Of a scene whose
    order and visible masks are unknown only objects without any pixel are dropped. Layers follow from the order and what still
    overlaps, so an object whose occluder was cut away moves to the front.
    """
    keys = Keys(key, 0, (0,)) if isinstance(key, int) else key
    if len(keys) != 1:
        raise ValueError(f"key must name one scene, got {len(keys)} positions: pass keys.at([position])")
    drawn = dict(zip(DRAWS, keys.uniform("augment", len(DRAWS))[0].tolist(), strict=True))
    happens = {name: drawn[name] < getattr(augmentation, name) for name in _PROBABILITIES}

    if happens["flip"]:
        scene = _cut(scene, (slice(None), slice(None, None, -1)))
    if happens["rotation"]:
        scene = _rotated(scene, (2 * drawn["degrees"] - 1) * augmentation.degrees)
    if happens["crop"]:
        height, top = _interval(scene.height, augmentation.crop_side, drawn["crop_height"], drawn["crop_top"])
        width, left = _interval(scene.width, augmentation.crop_side, drawn["crop_width"], drawn["crop_left"])
        scene = _cut(scene, (slice(top, top + height), slice(left, left + width)))
    scene = _drop_absent(scene).drop_invisible()

    picture = Image.fromarray(scene.image)
    if happens["colour"]:
        picture = _recoloured(picture, augmentation.colour_change, drawn)
    if happens["blur"]:
        sigma = drawn["blur_radius"] * augmentation.blur_radius * max(scene.height, scene.width)
        picture = picture.filter(ImageFilter.GaussianBlur(sigma))
    if happens["noise"]:
        grain = keys.normal("augment grain", scene.height, scene.width, 3)[0].numpy()
        noisy = np.asarray(picture) + grain * (drawn["noise_level"] * augmentation.noise_level * 255)
        picture = Image.fromarray(np.rint(noisy).clip(0, 255).astype(np.uint8))
    if happens["jpeg"]:
        quality = _between(drawn["jpeg_quality"], augmentation.jpeg_quality, BEST_JPEG_QUALITY)
        picture = as_jpeg(picture, round(quality))
    return replace(scene, image=np.array(picture))


def inner_size(height: int, width: int, degrees: float) -> tuple[int, int]:
    """(height, width) in pixels of the largest upright rectangle inside a picture turned about its centre; at least 1 x 1.

    An upright box of half sides (u, v) lies inside iff both u cos + v sin <= width / 2 and u sin + v cos <= height / 2, by the
    support function of the turned picture. Its area u v is greatest where both are equalities; or, if that point lies beyond the
    middle of the shorter side's line (shorter <= longer sin 2a), at that middle, where the longer side does not bind.
    """
    angle = math.radians(degrees)
    sin, cos = abs(math.sin(angle)), abs(math.cos(angle))
    shorter, longer = sorted((height, width))
    if shorter <= 2 * sin * cos * longer:
        along, across = shorter / (2 * sin), shorter / (2 * cos)
        inner = (across, along) if width >= height else (along, across)
    else:
        scale = cos * cos - sin * sin
        inner = (height * cos - width * sin) / scale, (width * cos - height * sin) / scale
    return max(1, math.floor(inner[0] + 1e-9)), max(1, math.floor(inner[1] + 1e-9))


def _rotated(scene: Scene, degrees: float) -> Scene:
    """The scene turned anticlockwise about its centre, and cut to where every pixel is known.

    Masks take the nearest pixel and not an area: then each pixel of all masks comes from one and the same source pixel, and whatever
    held between masks there (visible in amodal, disjoint, union) still holds. The image is bicubic.
    """
    height, width = inner_size(scene.height, scene.width, degrees)
    sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    # Pillow maps (x, y) of the result to (a x + b y + c, d x + e y + f) of the source; centre goes to centre.
    x, y = width / 2, height / 2
    c = scene.width / 2 - cos * x + sin * y
    f = scene.height / 2 - sin * x - cos * y
    affine = (cos, -sin, c, sin, cos, f)

    def turn(pixels: np.ndarray, how: Image.Resampling) -> np.ndarray:
        return np.array(Image.fromarray(pixels).transform((width, height), Image.Transform.AFFINE, affine, how))

    def turn_masks(masks: np.ndarray) -> np.ndarray:
        turned = [turn(mask.astype(np.uint8), Image.Resampling.NEAREST) > 0 for mask in masks]
        return np.stack(turned) if turned else np.zeros((0, height, width), dtype=bool)

    return replace(
        scene,
        image=turn(scene.image, Image.Resampling.BICUBIC),
        amodal_masks=turn_masks(scene.amodal_masks),
        visible_masks=None if scene.visible_masks is None else turn_masks(scene.visible_masks),
        alternatives=tuple(turn_masks(masks) for masks in scene.alternatives),
        known=None if scene.known is None else turn_masks(scene.known[None])[0],
    )


def _cut(scene: Scene, window: tuple[slice, slice]) -> Scene:
    """The scene in a window of (rows, columns); copies, so that nothing holds the whole picture in memory."""
    masks = (..., *window)
    return replace(
        scene,
        image=scene.image[window].copy(),
        amodal_masks=scene.amodal_masks[masks].copy(),
        visible_masks=None if scene.visible_masks is None else scene.visible_masks[masks].copy(),
        alternatives=tuple(a[masks].copy() for a in scene.alternatives),
        known=None if scene.known is None else scene.known[window].copy(),
    )


def _drop_absent(scene: Scene) -> Scene:
    """Without objects that have no pixel in the frame, where `Scene.drop_invisible` cannot know what is visible."""
    if scene.order_matrix is not None or scene.visible_masks is not None:
        return scene
    # The amodal masks stand in for the visible ones only while the absent are dropped.
    return replace(replace(scene, visible_masks=scene.amodal_masks).drop_invisible(), visible_masks=None)


def _recoloured(picture: Image.Image, change: float, drawn: dict[str, float]) -> Image.Image:
    def factor(name: str, most: float) -> float:
        return _between(drawn[name], 1 - most, 1 + most)

    picture = ImageEnhance.Brightness(picture).enhance(factor("brightness", change))
    picture = ImageEnhance.Contrast(picture).enhance(factor("contrast", change))
    picture = ImageEnhance.Color(picture).enhance(factor("saturation", change))
    levels = np.arange(256)
    tables = [np.rint(levels * factor(name, change / 3)).clip(0, 255) for name in ("red", "green", "blue")]
    return picture.point(np.concatenate(tables).astype(int).tolist())


def as_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    """The picture, RGB, packed as JPEG of a quality in 1..95, and unpacked."""
    packed = io.BytesIO()
    picture.save(packed, format="JPEG", quality=quality)
    return Image.open(packed).convert("RGB")


def _interval(length: int, least: float, size: float, place: float) -> tuple[int, int]:
    """Length of a random part of a side, at least 1 pixel, and where it starts; `size` and `place` are uniforms."""
    part = max(1, round(length * _between(size, least, 1)))
    return part, int(place * (length - part + 1))


def _between(u: float, low: float, high: float) -> float:
    return low + u * (high - low)


def _check(name: str, value: object, low: float, high: float, cure: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and low <= value <= high):  # type: ignore[operator]
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}: {cure}")
