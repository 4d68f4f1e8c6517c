"""Samples and draws one scene: a few coloured shapes on a muted background, and exactly where each of them is.

Boxes are xyxy pixel edges of what can be seen of a shape: x1 is its first column, x2 the column after its last.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["ATTRIBUTES", "COLORS", "SHAPES", "SIZES", "TEXTURES", "VOCABULARY", "Scene", "SceneObject", "sample_scene"]

ATTRIBUTES = ("size", "texture", "color", "shape")  # what tells objects apart, in the order it is said
# Name -> its two colours; the second one is the other half of a texture.
COLORS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "red": ((215, 35, 40), (120, 10, 20)),
    "green": ((40, 165, 60), (15, 85, 30)),
    "blue": ((45, 80, 225), (20, 30, 125)),
    "yellow": ((245, 215, 40), (175, 140, 10)),
    "orange": ((245, 130, 25), (165, 75, 5)),
    "purple": ((140, 50, 175), (75, 15, 100)),
    "white": ((245, 245, 245), (185, 185, 185)),
    "black": ((20, 20, 20), (85, 85, 85)),
}
# Name -> (smallest, largest) diameter as a part of the image side; the gaps keep the words apart.
SIZES = {"small": (0.15, 0.18), "medium": (0.23, 0.27), "large": (0.34, 0.40)}
SIZE_WEIGHTS = (0.45, 0.35, 0.20)
TEXTURES = ("plain", "striped", "dotted", "checkered")
BACKGROUNDS = ("plain", "gradient", "clouds", "tiles")

NUM_OBJECTS = (3, 6)
MAX_BOX_OVERLAP = 0.35  # of the smaller box, when a place is chosen
MIN_VISIBLE = 0.6  # of a shape's pixels, when all are drawn
MIN_COVERED = 0.03  # of a shape's pixels, for another one to be "in front of" it
MAX_TILT = 0.2  # radians: a square must not become a diamond


def _around(radii: list[float], start: float = -math.pi / 2) -> list[tuple[float, float]]:
    """Corners at equal angles with the given distances from the centre, the first one on top."""
    angles = [start + 2 * math.pi * index / len(radii) for index in range(len(radii))]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in zip(radii, angles, strict=True)]


def _heart() -> list[tuple[float, float]]:
    angles = [2 * math.pi * index / 40 for index in range(40)]
    return [
        (
            math.sin(angle) ** 3,
            -(13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)) / 16,
        )
        for angle in angles
    ]


# Corners in the square [-1, 1] x [-1, 1], y down.
SHAPES: dict[str, list[tuple[float, float]]] = {
    "circle": _around([1.0] * 40),
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(0.0, -0.95), (1.0, 0.85), (-1.0, 0.85)],
    "diamond": [(0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)],
    "star": _around([1.0, 0.42] * 5),
    "cross": [
        *[(-0.33, -1.0), (0.33, -1.0), (0.33, -0.33), (1.0, -0.33), (1.0, 0.33), (0.33, 0.33)],
        *[(0.33, 1.0), (-0.33, 1.0), (-0.33, 0.33), (-1.0, 0.33), (-1.0, -0.33), (-0.33, -0.33)],
    ],
    "heart": _heart(),
}
# Attribute -> its words.
VOCABULARY = {"size": tuple(SIZES), "texture": TEXTURES, "color": tuple(COLORS), "shape": tuple(SHAPES)}


@dataclass(frozen=True)
class SceneObject:
    """One shape. The words that tell it from others are its `size`, `texture`, `color` and `shape`."""

    size: str
    texture: str
    color: str
    shape: str
    center: tuple[float, float]  # pixels
    radius: float  # pixels
    tilt: float  # radians
    tint: int  # added to every channel of its colours
    phase: tuple[int, int]  # shift of its texture
    box: tuple[int, int, int, int] = (0, 0, 0, 0)  # of its visible pixels, known once drawn

    @property
    def middle(self) -> tuple[float, float]:
        """Centre (x, y) of `box`."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    `attributes` are those that tell the objects apart; `objects` stand in drawing order, later ones on top; `covers`
    has the pairs (i, j) where object i hides a part of object j; `pixels` is (side, side, 3) uint8; `owners` is (side,
    side) int8, the object seen at a pixel or -1.
    """

    objects: tuple[SceneObject, ...]
    covers: frozenset[tuple[int, int]]
    pixels: np.ndarray
    owners: np.ndarray
    attributes: tuple[str, ...] = ATTRIBUTES


def sample_scene(rng: random.Random, image_size: int, attributes: tuple[str, ...] = ATTRIBUTES) -> Scene:
    """A scene of 3 to 6 shapes, no two of them with the same words for all `attributes`, each of them mostly visible.

    Everything drawn comes from `rng`, whose streams are the same in every Python version and on every machine.
    """
    while True:
        background = draw_background(rng, image_size)
        scene = draw_scene(background, sample_objects(rng, image_size, attributes))
        if scene is not None and len(scene.objects) >= NUM_OBJECTS[0]:
            return replace(scene, attributes=attributes)


def sample_objects(rng: random.Random, image_size: int, attributes: tuple[str, ...] = ATTRIBUTES) -> list[SceneObject]:
    """Up to six shapes that fit together, their boxes not yet known; without "texture" all are plain,
    without "size" none is small."""
    # Few words for each scene, so that its objects share some and a phrase needs more than one of them.
    shapes = rng.sample(list(SHAPES), rng.randint(2, 3))
    colors = rng.sample(list(COLORS), rng.randint(2, 4))
    textures = ("plain", *rng.sample(TEXTURES[1:], rng.randint(0, 2))) if "texture" in attributes else ("plain",)
    size_weights = SIZE_WEIGHTS if "size" in attributes else (0.0, *SIZE_WEIGHTS[1:])
    wanted = rng.randint(*NUM_OBJECTS)
    objects: list[SceneObject] = []
    for _ in range(60):  # places run out in crowded scenes, which then have fewer objects
        if len(objects) == wanted:
            break
        size = rng.choices(list(SIZES), size_weights)[0]
        radius = rng.uniform(*SIZES[size]) * image_size / 2
        low, high = 1.1 * radius, image_size - 1 - 1.1 * radius  # a tilted corner reaches past the radius
        candidate = SceneObject(
            size=size,
            texture=rng.choice(textures),
            color=rng.choice(colors),
            shape=rng.choice(shapes),
            center=(rng.uniform(low, high), rng.uniform(low, high)),
            radius=radius,
            tilt=rng.uniform(-MAX_TILT, MAX_TILT),
            tint=rng.randint(-12, 12),
            phase=(rng.randrange(64), rng.randrange(64)),
        )
        if all(_can_share(candidate, other, attributes) for other in objects):
            objects.append(candidate)
    return objects


def _can_share(one: SceneObject, other: SceneObject, attributes: tuple[str, ...]) -> bool:
    """Two shapes fit in one scene: they differ in a word, overlap little, and not where they have the same colour."""
    if all(getattr(one, name) == getattr(other, name) for name in attributes):
        return False
    reach = one.radius + other.radius
    width = reach - abs(one.center[0] - other.center[0])
    height = reach - abs(one.center[1] - other.center[1])
    if width <= 0 or height <= 0:
        return True
    smaller = 2 * min(one.radius, other.radius)
    overlap = min(width, smaller) * min(height, smaller) / smaller**2
    return one.color != other.color and overlap <= MAX_BOX_OVERLAP


def draw_scene(background: np.ndarray, objects: list[SceneObject]) -> Scene | None:
    """Draws `objects` in order on a copy of `background` (side, side, 3); None if they hide too much of one of them."""
    side = len(background)
    pixels = background.copy()
    owners = np.full((side, side), -1, dtype=np.int8)
    areas: list[int] = []
    covers: set[tuple[int, int]] = set()
    for index, item in enumerate(objects):
        window, mask = _shape_mask(item, side)
        areas.append(int(mask.sum()))
        hidden = np.bincount(owners[window][mask] + 1, minlength=index + 1)[1:]
        covers.update((index, below) for below in range(index) if hidden[below] > MIN_COVERED * areas[below])
        owners[window][mask] = index
        pixels[window][mask] = _paint(item, mask, side)
    drawn = []
    for index, item in enumerate(objects):
        rows, columns = (owners == index).nonzero()
        if len(rows) < MIN_VISIBLE * areas[index]:
            return None
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        drawn.append(replace(item, box=box))
    return Scene(tuple(drawn), frozenset(covers), pixels, owners)


def _shape_mask(item: SceneObject, side: int) -> tuple[tuple[slice, slice], np.ndarray]:
    """The part of the image around the shape, and which of its pixels the shape has."""
    cos, sin = math.cos(item.tilt) * item.radius, math.sin(item.tilt) * item.radius
    x0, y0 = (max(0, int(c - 1.4 * item.radius)) for c in item.center)
    x1, y1 = (min(side, int(c + 1.4 * item.radius) + 2) for c in item.center)
    mask = Image.new("1", (x1 - x0, y1 - y0))
    corners = [
        (item.center[0] - x0 + x * cos - y * sin, item.center[1] - y0 + x * sin + y * cos)
        for x, y in SHAPES[item.shape]
    ]
    ImageDraw.Draw(mask).polygon(corners, fill=1)
    return (slice(y0, y1), slice(x0, x1)), np.asarray(mask)


def _paint(item: SceneObject, mask: np.ndarray, side: int) -> np.ndarray:
    """(number of pixels in `mask`, 3) uint8: the shape's colour with its texture."""
    colors = np.clip(np.array(COLORS[item.color]) + item.tint, 0, 255).astype(np.uint8)
    row, column = item.phase
    return colors[_texture(item.texture, side)[row : row + mask.shape[0], column : column + mask.shape[1]][mask]]


@lru_cache(maxsize=32)
def _texture(name: str, side: int) -> np.ndarray:
    """(side + 64, side + 64) uint8 pattern of the first (0) and second (1) colour; its grain follows the image side."""
    grain = max(2, round(side / 40))
    y, x = np.indices((side + 64, side + 64))
    if name == "striped":
        second = (x + y) // grain % 2 == 1
    elif name == "checkered":
        second = (x // (grain + 1) + y // (grain + 1)) % 2 == 1
    elif name == "dotted":
        pitch = 2 * grain
        second = (x % pitch - grain + 0.5) ** 2 + (y % pitch - grain + 0.5) ** 2 <= (0.62 * grain) ** 2
    else:
        second = np.zeros_like(x, dtype=bool)
    return second.astype(np.uint8)


def draw_background(rng: random.Random, side: int) -> np.ndarray:
    """(side, side, 3) uint8 in two greyish tones, which no object has."""
    kind = rng.choice(BACKGROUNDS)
    level = rng.randint(100, 165)
    tones = [np.array([level + shift + rng.randint(-14, 14) for _ in range(3)], np.float32) for shift in (-14, 14)]
    if kind == "plain":
        mix = np.zeros((side, side), np.float32)
    elif kind == "gradient":
        angle = rng.uniform(0, 2 * math.pi)
        y, x = np.indices((side, side), dtype=np.float32) / side - 0.5
        mix = 0.5 + 0.7 * (x * math.cos(angle) + y * math.sin(angle))
    elif kind == "clouds":
        coarse = Image.frombytes("L", (5, 5), rng.randbytes(25))
        mix = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)) / np.float32(255)
    else:
        tile = max(2, round(side / rng.randint(4, 9)))
        y, x = np.indices((side, side))
        mix = ((x // tile + y // tile) % 2).astype(np.float32)
    mixed = tones[0] + mix[..., None] * (tones[1] - tones[0])
    return np.clip(mixed, 0, 255).astype(np.uint8)
