"""A simulated detector of generated scenes: regions and concepts as of a trained one, with errors of known rates.

    detector = SceneDetector()
    with RegionStoreWriter(folder, detector.settings, detector=detector.name) as writer:
        for row in load_grounding_dataset("scenes", split="train"):
            writer.add(detector(row))

What is said of an image depends on `(seed, image_id)` and the image alone: the same in any order and process. Captions
leave out one object in twenty, and with them one in five images would lack some, so objects come from the scene itself,
drawn again by its id. Nothing is read from captions, phrases or questions, so nothing of their wording gets out.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from ..processing.regions import Regions, box_areas, clip_boxes
from .scene_drawing import ATTRIBUTES, SHAPES, VOCABULARY
from .scenes import known_attributes, redraw_scene

__all__ = ["SCENE_CLASSES", "SceneDetector", "scene_concepts"]

SCENE_CLASSES = ("background", *SHAPES)  # columns of `class_probs`

# (least, greatest) probability of the class a region is taken for, and the background's part of what is left. The
# class stays the likeliest column: 0.5 > 0.5 * 0.8 and 0.4 > 0.6 * 0.6.
OBJECT_PROB, OBJECT_BACKGROUND = (0.5, 1.0), 0.2
DISTRACTOR_PROB, DISTRACTOR_BACKGROUND = (0.4, 0.7), 0.6
DISTRACTOR_SIDE = (0.15, 0.40)  # of the image side, as objects have it
MAX_COVERED = 0.2  # of a distractor's area, by boxes of objects
DISTRACTOR_TRIES = 64
TRUE_CONCEPT_BONUS = 0.5  # to a confidence drawn from [0, 1): true words mostly come before false ones


@dataclass(frozen=True)
class SceneDetector:
    r"""Row of the data set "scenes" -> its [`Regions`], the most confident first.

    Each object is missed or found, and a found one is taken for its own shape or for another. `class_probs`
    (num_regions, 8) float32 are a posterior over [`SCENE_CLASSES`], background in column 0, rows sum to 1; `labels` are
    its likeliest columns, never the background, and `scores` their probabilities: 0.5 to 1 for objects, 0.4 to 0.82
    for distractors. `region_features` (num_regions, 3 * feature_grid**2) float32 are the mean RGB in [0, 1] of each
    cell of a grid over the box as it was found: rows of cells from the top, each from the left. Size is in `boxes`
    alone.

    Args:
        seed (`int`): Other seeds make other errors.
        jitter (`float`): How far, at most, each edge of an object's box is off, as share of the box's width or height;
            below 0.5. Boxes are cut at the image border.
        miss_rate (`float`): Probability that an object is not found.
        confusion (`float`): Probability that a found object is taken for another shape, each equally likely.
        num_distractors (`int`): Regions with at most 20 % of objects' boxes in them that are taken for an object of any
            shape. Crowded scenes may have room for fewer.
        feature_grid (`int`): Cells of a box, across and down. From 4 a network of one hidden layer tells all colours,
            88 % of the shapes and 73 % of the textures of images of 64 pixels (always saying "plain": 60 %); from 8,
            97 % and 86 %.
        class_features (`bool`): Put `class_probs` behind the features, since those of a trained detector tell its
            classes too.
        depth_feature (`bool`): Put behind all others how near a region's object is, as a depth camera sees it: k for
            the k-th object in drawing order, 0 for distractors. Mean colours hardly tell which of two objects hides
            the other.
        attributes (names): The setting of the same name that the scenes were drawn with.

    Raises:
        ValueError: If a setting is out of its range; when called, if the row is no scene, see [`redraw_scene`].
    """

    name: ClassVar[str] = "scenes"

    seed: int = 0
    jitter: float = 0.08
    miss_rate: float = 0.05
    confusion: float = 0.1
    num_distractors: int = 3
    feature_grid: int = 4
    class_features: bool = False
    depth_feature: bool = False
    attributes: tuple[str, ...] = ATTRIBUTES

    def __post_init__(self) -> None:
        if not 0 <= self.jitter < 0.5:
            raise ValueError(f"`jitter` must be 0 or more and below 0.5, got {self.jitter}.")
        _check_shares(miss_rate=self.miss_rate, confusion=self.confusion)
        for name, least in {"num_distractors": 0, "feature_grid": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be {least} or more, got {getattr(self, name)}.")
        object.__setattr__(self, "attributes", known_attributes(self.attributes))

    @property
    def settings(self) -> dict[str, Any]:
        """All that the regions depend on, ready for JSON."""
        errors = asdict(self) | {"attributes": list(self.attributes)}
        return {"detector": {"name": self.name, "labels": list(SCENE_CLASSES), "background": 0, **errors}}

    def __call__(self, row: Mapping[str, Any]) -> Regions:
        scene = redraw_scene(row, self.attributes)
        rng = _stream("regions", self.seed, row["image_id"])
        image_size = scene.pixels.shape[:2]
        objects = np.array([item.box for item in scene.objects], dtype=np.float64)
        shapes = np.array([SCENE_CLASSES.index(item.shape) for item in scene.objects])

        # Drawn for all objects, so that a setting changes its own kind of error alone.
        found = rng.random(len(objects)) >= self.miss_rate
        sides = np.tile(objects[:, 2:] - objects[:, :2], 2)
        boxes = clip_boxes(objects + rng.uniform(-self.jitter, self.jitter, objects.shape) * sides, image_size)
        confused = rng.random(len(objects)) < self.confusion
        others = 1 + (shapes - 1 + rng.integers(1, len(SHAPES), len(shapes))) % len(SHAPES)
        labels = np.where(confused, others, shapes)
        probs = _posterior(rng, labels, OBJECT_PROB, OBJECT_BACKGROUND)

        distractors = _distractors(rng, objects, image_size)[: self.num_distractors]
        false_labels = rng.integers(1, len(SCENE_CLASSES), len(distractors))
        false_probs = _posterior(rng, false_labels, DISTRACTOR_PROB, DISTRACTOR_BACKGROUND)

        boxes = np.concatenate([boxes[found], distractors]).astype(np.float32)
        probs = np.concatenate([probs[found], false_probs]).astype(np.float32)
        features = pool_pixels(scene.pixels, boxes, self.feature_grid)
        if self.class_features:
            features = np.concatenate([features, probs], axis=1)
        if self.depth_feature:
            nearness = np.arange(1, len(objects) + 1)
            depth = np.concatenate([nearness[found], np.zeros(len(distractors))]).astype(np.float32)
            features = np.concatenate([features, depth[:, None]], axis=1)
        regions = Regions(
            row["image_id"],
            (image_size[0], image_size[1]),
            boxes,
            region_features=features,
            class_probs=probs,
            labels=np.concatenate([labels[found], false_labels]),
            scores=probs.max(axis=1),
            detector=self.name,
            settings=self.settings,
        )
        return regions.select(np.argsort(-probs.max(axis=1), kind="stable"))


def scene_concepts(
    row: Mapping[str, Any],
    seed: int = 0,
    *,
    miss_rate: float = 0.1,
    false_rate: float = 0.05,
    attributes: tuple[str, ...] = ATTRIBUTES,
) -> list[str]:
    r"""Words a concept detector would give for a scene, the likeliest first.

    They are the sizes, textures, colours and shapes (in the singular) of all its objects, whether captions say them or
    not, and some others of these words.

    Args:
        row: Of the data set "scenes".
        seed (`int`): Other seeds make other errors.
        miss_rate (`float`): Probability that a true word is left out.
        false_rate (`float`): Probability of each of the other words to be given. True words mostly come before them.
        attributes (names): The setting of the same name that the scenes were drawn with; words of others are not given.

    Raises:
        ValueError: If a rate is not in [0, 1] or the row is no scene, see [`redraw_scene`].
    """
    _check_shares(miss_rate=miss_rate, false_rate=false_rate)
    scene = redraw_scene(row, attributes)
    rng = _stream("concepts", seed, row["image_id"])
    words = [(name, word) for name in scene.attributes for word in VOCABULARY[name]]
    true = np.array([any(getattr(item, name) == word for item in scene.objects) for name, word in words])
    given = rng.random(len(words)) < np.where(true, 1 - miss_rate, false_rate)
    confidence = rng.random(len(words)) + TRUE_CONCEPT_BONUS * true
    return [words[index][1] for index in np.argsort(-confidence) if given[index]]


def pool_pixels(pixels: np.ndarray, boxes: np.ndarray, grid: int) -> np.ndarray:
    r"""Mean colour of each of `grid` x `grid` cells of boxes; a pixel partly in a cell counts by the part.

    Args:
        pixels (`np.ndarray` of shape `(height, width, 3)`): uint8.
        boxes (`np.ndarray` of shape `(num_regions, 4)`): xyxy in pixels, inside the image and with an area.
        grid (`int`): Cells across and down.

    Returns:
        `np.ndarray` of shape `(num_regions, grid * grid * 3)`, float32 in [0, 1].
    """
    height, width, channels = pixels.shape
    across, down = _cell_weights(boxes[:, [0, 2]], grid, width), _cell_weights(boxes[:, [1, 3]], grid, height)
    rows = down.reshape(-1, height) @ (pixels.reshape(height, -1) / np.float32(255))
    cells = across[:, None] @ rows.reshape(len(boxes), grid, width, channels)  # (num_regions, grid, grid, 3)
    return cells.reshape(len(boxes), grid * grid * channels)


def _cell_weights(spans: np.ndarray, grid: int, length: int) -> np.ndarray:
    """(num_regions, grid, length) float32: the part in each pixel of each cell of `spans` (num_regions, 2)."""
    edges = np.linspace(spans[:, 0], spans[:, 1], grid + 1, axis=1, dtype=np.float64)[..., None]
    starts = np.arange(length)
    overlaps = (np.minimum(edges[:, 1:], starts + 1) - np.maximum(edges[:, :-1], starts)).clip(min=0)
    return (overlaps / overlaps.sum(axis=2, keepdims=True)).astype(np.float32)


def _posterior(
    rng: np.random.Generator, labels: np.ndarray, prob: tuple[float, float], background: float
) -> np.ndarray:
    """(num_regions, num_object_classes): at least `prob` for the label, `background` of the rest for column 0, and
    what is then left spread over all shapes."""
    certain = rng.uniform(*prob, (len(labels), 1))
    rest = np.concatenate(
        [np.full((len(labels), 1), background), (1 - background) * rng.dirichlet(np.ones(len(SHAPES)), len(labels))],
        axis=1,
    )
    return certain * np.eye(len(SCENE_CLASSES))[labels] + (1 - certain) * rest


def _distractors(rng: np.random.Generator, objects: np.ndarray, image_size: tuple[int, ...]) -> np.ndarray:
    """(n, 4) float64 boxes anywhere in the image with little of the boxes `objects` in them."""
    extent = np.array(image_size[::-1])  # (width, height)
    sides = rng.uniform(*DISTRACTOR_SIDE, (DISTRACTOR_TRIES, 2)) * extent
    corners = rng.random((DISTRACTOR_TRIES, 2)) * (extent - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1)
    top_left = np.maximum(boxes[:, None, :2], objects[:, :2])  # (tries, objects, 2)
    bottom_right = np.minimum(boxes[:, None, 2:], objects[:, 2:])
    covered = (bottom_right - top_left).clip(min=0).prod(axis=2).sum(axis=1)
    return boxes[covered <= MAX_COVERED * box_areas(boxes)]


def _stream(what: str, seed: int, image_id: str) -> np.random.Generator:
    # As for the scenes, a text seed makes the same stream everywhere; `Random` hashes it, numpy draws arrays.
    return np.random.default_rng(random.Random(f"scene-{what}/{seed}/{image_id}").getrandbits(128))


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"`{name}` must be in [0, 1], got {share}.")
