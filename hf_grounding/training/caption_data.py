"""What captioners read and learn from: regions and concepts of images, some captions of each, batches of both."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..data.region_store import RegionStore
from ..data.scene_regions import SceneDetector, scene_concepts
from ..metrics.caption_baselines import mean_features
from ..processing.concepts import read_image_concepts
from ..processing.paths import below_data_root
from ..processing.processing_mia import MIAProcessor
from ..processing.regions import Regions
from .recipe import Recipe, RegionSettings


class ImageInputs:
    r"""Regions and concepts of images by their id, as a captioner's processor takes them.

    Args:
        regions: Of each image, such as a [`RegionStore`].
        concepts (*optional*): Ranked words of each image.
        withheld (`bool`): Give for every image one region of zeros, the whole image, and no concepts.
    """

    def __init__(
        self,
        regions: Mapping[str, Regions] | RegionStore,
        concepts: Mapping[str, list[str]] | None = None,
        *,
        withheld: bool = False,
    ):
        self.regions, self.concepts, self.withheld = regions, concepts, withheld

    def check(self, image_ids: Sequence[str], where: str) -> None:
        """Raises a ValueError if an image lacks regions or concepts."""
        for name, known in (("regions", self.regions), ("concepts", self.concepts)):
            missing = [] if known is None else [image_id for image_id in image_ids if image_id not in known]
            if missing:
                raise ValueError(
                    f"{len(missing)} of {len(image_ids)} images of '{where}' have no {name}, such as '{missing[0]}'; "
                    f"extract them with `hf-grounding extract-{'features' if name == 'regions' else 'concepts'}`."
                )
        empty = [image_id for image_id in image_ids if not len(self.regions[image_id])]
        if empty:
            raise ValueError(
                f"In {len(empty)} of {len(image_ids)} images of '{where}' no region was found, such as '{empty[0]}'; "
                "extract the cells of a grid (`--grid`) in place of a detector's regions, or leave such images out."
            )

    def read(self, image_ids: Sequence[str]) -> dict[str, Any]:
        """Arguments of [`MIAProcessor`]."""
        inputs: dict[str, Any] = {"regions": [self.regions[image_id] for image_id in image_ids]}
        if self.concepts is not None:
            inputs["concepts"] = [self.concepts[image_id] for image_id in image_ids]
        if self.withheld:  # not even the numbers of regions and concepts may tell images apart
            inputs = {name: [_withheld(value) for value in values] for name, values in inputs.items()}
        return inputs

    def mean_features(self, image_ids: Sequence[str]) -> np.ndarray:
        """Of the regions as they are: (images, feature_dim)."""
        records = (self.regions[image_id] for image_id in image_ids)
        return mean_features([record.region_features for record in records if record.region_features is not None])


def _withheld(value: Any) -> Any:
    """What stands for the regions or concepts of an image that is not shown."""
    if not isinstance(value, Regions):
        return []
    if value.region_features is None:
        return value  # the processor says what is missing
    height, width = value.image_size
    nothing = np.zeros((1, value.region_features.shape[1]), dtype=np.float32)
    return Regions(value.image_id, value.image_size, np.array([[0, 0, width, height]]), region_features=nothing)


class CaptionsPerImage(torch.utils.data.Dataset):
    r"""Image i with some of its captions, drawn by seed, epoch and image alone, as [`CaptionPerImage`] draws."""

    def __init__(self, rows: Dataset, captions_per_image: int, seed: int = 0):
        self.image_ids, self.captions = rows["image_id"][:], rows["captions"][:]
        self.captions_per_image, self.seed, self.epoch = captions_per_image, seed, 0

    def __len__(self) -> int:
        return len(self.image_ids)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        captions = self.captions[index]
        if len(captions) > self.captions_per_image:
            rng = random.Random(f"{self.seed}/{self.epoch}/{self.image_ids[index]}")
            captions = rng.sample(captions, self.captions_per_image)
        return {"image_id": self.image_ids[index], "captions": captions}


class CaptioningCollator:
    r"""Rows with `image_id` and `captions` -> inputs of [`MIAForCaptioning`] with labels."""

    def __init__(self, processor: MIAProcessor, images: ImageInputs):
        self.processor, self.images = processor, images

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        inputs = self.images.read([row["image_id"] for row in rows])
        return dict(self.processor(captions=[row["captions"] for row in rows], **inputs))


def load_images(recipe: Recipe, rows: Dataset, split: str) -> ImageInputs:
    r"""Regions and concepts of a split, from the recipe's files, or simulated for scenes.

    Raises:
        ValueError: If an image lacks captions, regions or concepts, or no store is named.
    """
    bare = [row for row, captions in enumerate(rows["captions"]) if not captions]
    if bare:
        example = rows["image_id"][bare[0]]
        raise ValueError(f"{len(bare)} images of '{split}' have no caption, such as '{example}'; leave them out.")
    images = _simulated(recipe, rows) if recipe.dataset.name == "scenes" else _extracted(recipe.images)
    images.check(rows["image_id"], split)
    return images


def _simulated(recipe: Recipe, rows: Dataset) -> ImageInputs:
    options = {name: recipe.dataset.options[name] for name in ("attributes",) if name in recipe.dataset.options}
    detector = SceneDetector(**options, **recipe.images.scene_detector)
    concepts = {row["image_id"]: scene_concepts(row, **options) for row in rows}
    regions = {row["image_id"]: detector(row) for row in rows}
    return ImageInputs(regions, concepts, withheld=recipe.images.withhold_image)


def _extracted(settings: RegionSettings) -> ImageInputs:
    if settings.store is None:
        raise ValueError("Section `regions` names no `store`; make one with `hf-grounding extract-features`.")
    concepts = None
    if settings.concepts is not None:
        found = read_image_concepts(below_data_root(settings.concepts))
        concepts = {str(image_id): words for image_id, words in found.items()}
    return ImageInputs(RegionStore(below_data_root(settings.store)), concepts, withheld=settings.withhold_image)
