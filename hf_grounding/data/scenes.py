"""Generated scenes: coloured shapes with exact captions, phrases, boxes, questions and answers.

Image number i of a split depends on `(seed, split, i)` alone, so it is the same in a longer split, in a stream and with
any number of processes. Boxes are xyxy pixel edges, 0-based; the type of a phrase is the shape it names.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from datasets import BuilderConfig, DatasetInfo, GeneratorBasedBuilder, SplitGenerator, Version
from PIL import Image

from .scene_drawing import ATTRIBUTES, Scene, sample_scene
from .scene_language import describe_scene, question_scene
from .schema import GROUNDING_FEATURES

__all__ = ["Scenes", "ScenesConfig", "known_attributes", "redraw_scene", "scene_row"]

MIN_IMAGE_SIZE = 64  # below, the textures of small shapes cannot be told apart
SHARD_SIZE = 250  # images; the unit that processes and streaming workers share out


@dataclass(eq=False)  # BuilderConfig brings its own comparison
class ScenesConfig(BuilderConfig):
    """Settings of [`Scenes`].

    Args:
        seed (`int`): Other seeds draw other scenes.
        num_train, num_val, num_test (`int`): Images of each split; a split of 0 images is left out.
        image_size (`int`): Width and height in pixels, 64 or more.
        attributes (names): What tells objects apart, of size, texture, color and shape. Fewer make easier scenes;
            without texture all shapes are plain, without size none is small.
    """

    seed: int = 0
    num_train: int = 2000
    num_val: int = 200
    num_test: int = 200
    image_size: int = 128
    attributes: list[str] | tuple[str, ...] = ATTRIBUTES

    def __post_init__(self) -> None:
        super().__post_init__()
        lowest = {"seed": 0, "num_train": 0, "num_val": 0, "num_test": 0, "image_size": MIN_IMAGE_SIZE}
        for name, least in lowest.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"`{name}` must be a whole number of {least} or more, got {value!r}.")
        self.attributes = known_attributes(self.attributes)
        if not any(self.num_images.values()):
            raise ValueError("`num_train`, `num_val` and `num_test` are all 0. Ask for at least one image.")

    @property
    def num_images(self) -> dict[str, int]:
        """Images of each split."""
        return {"train": self.num_train, "val": self.num_val, "test": self.num_test}


class Scenes(GeneratorBasedBuilder):
    """Builder of generated scenes with the splits train, val and test."""

    BUILDER_CONFIG_CLASS = ScenesConfig
    VERSION = Version("1.0.0")  # part of the cache path: raise it when the same seed draws something else

    def _info(self) -> DatasetInfo:
        return DatasetInfo(features=GROUNDING_FEATURES)

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        del dl_manager  # nothing is downloaded
        return [
            SplitGenerator(
                name=split,
                gen_kwargs={
                    "split": split,
                    "ranges": [(start, min(start + SHARD_SIZE, count)) for start in range(0, count, SHARD_SIZE)],
                },
            )
            for split, count in self.config.num_images.items()
            if count
        ]

    def _generate_examples(self, split: str, ranges: list[tuple[int, int]]) -> Iterator[tuple[str, dict]]:
        for start, end in ranges:
            for index in range(start, end):
                row = scene_row(self.config.seed, split, index, self.config.image_size, self.config.attributes)
                yield row["image_id"], row


def scene_row(
    seed: int, split: str, index: int, image_size: int = 128, attributes: tuple[str, ...] = ATTRIBUTES
) -> dict[str, Any]:
    """One row with the columns of `GROUNDING_FEATURES`; the image is PNG bytes."""
    rng = _stream(seed, split, index)
    image_id = f"scene-{seed}-{split}-{index:06d}"
    scene = sample_scene(rng, image_size, attributes)
    captions, phrases = describe_scene(rng, scene)
    png = io.BytesIO()
    Image.fromarray(scene.pixels).save(png, "PNG", compress_level=1)  # higher levels take longer than all the rest
    return {
        "image_id": image_id,
        "image": {"path": None, "bytes": png.getvalue()},
        "width": image_size,
        "height": image_size,
        "captions": captions,
        "phrases": phrases,
        "questions": question_scene(rng, scene, image_id),
    }


def redraw_scene(row: Mapping[str, Any], attributes: tuple[str, ...] = ATTRIBUTES) -> Scene:
    """The scene of a row of [`Scenes`], drawn again by its id: all objects, also those that no caption names.

    Args:
        row: With `image_id`, `width`, `height` and `image`: a PIL image, or `{"bytes": ...}` where it is not decoded.
        attributes: The setting that the scenes were drawn with; rows do not say it.

    Raises:
        ValueError: If the row is no scene, or its image is not, pixel by pixel, the scene of this id and `attributes`.
    """
    attributes = known_attributes(attributes)
    image_id, image = row.get("image_id"), row.get("image")
    match = re.fullmatch(r"scene-(\d+)-(.+)-(\d{6,})", str(image_id))
    if match is None:
        raise ValueError(f"Image {image_id!r} is no generated scene. Give rows of the data set 'scenes' as they are.")
    if isinstance(image, Mapping) and isinstance(image.get("bytes"), bytes):
        image = Image.open(io.BytesIO(image["bytes"]))
    if not isinstance(image, Image.Image):
        raise ValueError(f"Image {image_id!r}: `image` must be a PIL image or {{'bytes': ...}}, got {type(image)}.")
    side = image.width
    if not row.get("width") == row.get("height") == image.height == side >= MIN_IMAGE_SIZE:
        raise ValueError(
            f"Image {image_id!r} must be a square of {MIN_IMAGE_SIZE} pixels or more, as its `width` and `height` say; "
            f"got {image.size}, {row.get('width')} and {row.get('height')}. Give rows as they were drawn."
        )
    kept = _drawn(int(match[1]), match[2], int(match[3]), side, attributes)
    scene = replace(kept, pixels=kept.pixels.copy(), owners=kept.owners.copy())  # the caller's own, to write on
    if not np.array_equal(np.asarray(image), scene.pixels):
        raise ValueError(
            f"Image {image_id!r} is not the scene of this id with {attributes=}. Give the `attributes` that the scenes "
            "were drawn with, and the images as they are; scenes prepared by other versions must be drawn again."
        )
    return scene


@lru_cache(maxsize=1)  # regions and concepts of a row are made one after the other
def _drawn(seed: int, split: str, index: int, image_size: int, attributes: tuple[str, ...]) -> Scene:
    return sample_scene(_stream(seed, split, index), image_size, attributes)


def known_attributes(attributes: Sequence[str]) -> tuple[str, ...]:
    """The names in the order of `ATTRIBUTES`; ValueError if one is unknown, or color or shape is missing."""
    if not {"color", "shape"} <= set(attributes) <= set(ATTRIBUTES):
        raise ValueError(f"`attributes` must be color, shape and any of size and texture, got {attributes!r}.")
    return tuple(name for name in ATTRIBUTES if name in attributes)


def _stream(seed: int, split: str, index: int) -> random.Random:
    # A text seed is hashed by SHA-512, not by Python's `hash`: the same everywhere, and disjoint streams by split.
    return random.Random(f"scenes/{seed}/{split}/{index}")
