"""What captioners read and learn from: regions or photos, and concepts; some captions of each; batches of both.

Question answerers read images in the same way ([`ImageInputs`], [`load_inputs`]); their questions are in `vqa_data.py`.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from datasets import Dataset

from ..data.region_store import RegionStore
from ..data.scene_regions import SceneDetector, scene_concepts
from ..metrics.caption_baselines import mean_features
from ..processing.concepts import read_image_concepts
from ..processing.paths import below_data_root
from ..processing.processing_mia import MIAProcessor
from ..processing.processing_ss_attention import MatchedPhrase, SSAttentionProcessor
from ..processing.regions import Regions
from .features import read_photo
from .recipe import Recipe


class Photos(Mapping[str, PIL.Image.Image]):
    """Upright photos of a data set by the ids of their images, each read when it is asked for."""

    def __init__(self, rows: Dataset):
        self.rows = rows
        self.position = {image_id: row for row, image_id in enumerate(rows["image_id"])}

    def __getitem__(self, image_id: str) -> PIL.Image.Image:
        return read_photo(self.rows, self.position[image_id]).convert("RGB")

    def __iter__(self) -> Iterator[str]:
        return iter(self.position)

    def __len__(self) -> int:
        return len(self.position)


class ImageInputs:
    r"""Regions and concepts of images by their id, as processors of captioners and question answerers take them.

    Args:
        regions (*optional*): Of each image, such as a [`RegionStore`]; `None` for a model that reads photos.
        concepts (*optional*): Ranked words of each image.
        photos (*optional*): Of each image, in place of regions.
        withheld (`bool`): Give for every image one region of ones, the whole image, or a black photo, and no concepts.
    """

    def __init__(
        self,
        regions: Mapping[str, Regions] | RegionStore | None,
        concepts: Mapping[str, list[str]] | None = None,
        photos: Mapping[str, PIL.Image.Image] | None = None,
        *,
        withheld: bool = False,
    ):
        self.regions, self.concepts, self.photos, self.withheld = regions, concepts, photos, withheld

    def check(self, image_ids: Sequence[str], where: str) -> None:
        """Raises a ValueError if an image lacks regions or concepts."""
        for name, known in (("regions", self.regions), ("concepts", self.concepts)):
            missing = [] if known is None else [image_id for image_id in image_ids if image_id not in known]
            if missing:
                raise ValueError(
                    f"{len(missing)} of {len(image_ids)} images of '{where}' have no {name}, such as '{missing[0]}'; "
                    f"extract them with `hf-grounding extract-{'features' if name == 'regions' else 'concepts'}`."
                )
        regions = self.regions
        empty = [] if regions is None else [image_id for image_id in image_ids if not len(regions[image_id])]
        if empty:
            raise ValueError(
                f"In {len(empty)} of {len(image_ids)} images of '{where}' no region was found, such as '{empty[0]}'; "
                "extract the cells of a grid (`--grid`) in place of a detector's regions, or leave such images out."
            )

    def read(self, image_ids: Sequence[str]) -> dict[str, Any]:
        """Arguments of [`MIAProcessor`] or [`MIAVQAProcessor`], an entry for each id, which may come more than once."""
        known: dict[str, Any] = {"images": self.photos, "regions": self.regions, "concepts": self.concepts}
        inputs: dict[str, Any] = {
            name: [values[image_id] for image_id in image_ids] for name, values in known.items() if values is not None
        }
        if self.withheld:  # not even the numbers of regions and concepts may tell images apart
            inputs = {name: [_withheld(value) for value in values] for name, values in inputs.items()}
        return inputs

    def mean_features(self, image_ids: Sequence[str]) -> np.ndarray:
        """Of the regions as they are: (images, feature_dim)."""
        regions = self.regions
        if regions is None:
            raise ValueError("Photos have no features to take the mean of; give `regions`.")
        records = (regions[image_id] for image_id in image_ids)
        return mean_features([record.region_features for record in records if record.region_features is not None])


def _withheld(value: Any) -> Any:
    """What stands for the photo, regions or concepts of an image that is not shown."""
    if isinstance(value, PIL.Image.Image):
        return PIL.Image.new("RGB", value.size)
    if not isinstance(value, Regions):
        return []
    if value.region_features is None:
        return value  # the processor says what is missing
    height, width = value.image_size
    # Not zeros, by which a model that multiplies image and question could not learn from questions either.
    nothing = np.ones((1, value.region_features.shape[1]), dtype=np.float32)
    probs = value.class_probs
    any_class = None if probs is None else np.full((1, probs.shape[1]), 1 / probs.shape[1], dtype=np.float32)
    whole = np.array([[0, 0, width, height]])
    return Regions(value.image_id, value.image_size, whole, region_features=nothing, class_probs=any_class)


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
        numbers = list(range(len(captions)))
        if len(captions) > self.captions_per_image:
            rng = random.Random(f"{self.seed}/{self.epoch}/{self.image_ids[index]}")
            numbers = rng.sample(numbers, self.captions_per_image)
        chosen = [captions[number] for number in numbers]
        return {"image_id": self.image_ids[index], "captions": chosen, "sentences": numbers}


class CaptioningCollator:
    r"""Rows with `image_id` and `captions` -> inputs of [`MIAForCaptioning`] with labels."""

    def __init__(self, processor: MIAProcessor, images: ImageInputs):
        self.processor, self.images = processor, images

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        inputs = self.images.read([row["image_id"] for row in rows])
        return dict(self.processor(captions=[row["captions"] for row in rows], **inputs))


class GroundedCaptioningCollator(CaptioningCollator):
    r"""Rows of [`CaptionsPerImage`] -> inputs of [`SSAttentionCaptioner`] with labels and targets.

    Args:
        rows (`datasets.Dataset`): With "image_id", "phrases", "width" and "height". Phrases of an image are matched
            with its regions once.
        grounding_target, attention_targets: As in [`SSAttentionProcessor`].
    """

    processor: SSAttentionProcessor

    def __init__(
        self,
        processor: SSAttentionProcessor,
        images: ImageInputs,
        rows: Dataset,
        *,
        grounding_target: str = "caption",
        attention_targets: bool = False,
    ):
        super().__init__(processor, images)
        self.annotations = rows.select_columns(["phrases", "width", "height"])
        self.position = {image_id: row for row, image_id in enumerate(rows["image_id"])}
        self.options: dict[str, Any] = {"grounding_target": grounding_target, "attention_targets": attention_targets}
        self.matched: dict[str, list[MatchedPhrase]] = {}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        inputs = self.images.read([row["image_id"] for row in rows])
        phrases = [self._match(row["image_id"], own) for row, own in zip(rows, inputs["regions"], strict=True)]
        captions, sentences = ([row[name] for row in rows] for name in ("captions", "sentences"))
        return dict(self.processor(captions=captions, phrases=phrases, sentences=sentences, **inputs, **self.options))

    def _match(self, image_id: str, regions: Regions) -> list[MatchedPhrase]:
        if image_id not in self.matched:
            row = self.annotations[self.position[image_id]]
            matched = self.processor.match_phrases(regions, row["phrases"], (row["height"], row["width"]))
            self.matched[image_id] = [phrase for phrase in matched if phrase.regions]
        return self.matched[image_id]


def load_images(recipe: Recipe, rows: Dataset, split: str) -> ImageInputs:
    r"""As [`load_inputs`], of images with captions.

    Raises:
        ValueError: If an image lacks captions, regions or concepts, or no store is named.
    """
    bare = [row for row, captions in enumerate(rows["captions"]) if not captions]
    if bare:
        example = rows["image_id"][bare[0]]
        raise ValueError(f"{len(bare)} images of '{split}' have no caption, such as '{example}'; leave them out.")
    return load_inputs(recipe, rows, split)


def load_inputs(recipe: Recipe, rows: Dataset, split: str) -> ImageInputs:
    r"""Regions and concepts of a split, from the recipe's files, or simulated for scenes; photos for a backbone.

    Raises:
        ValueError: If an image lacks regions or concepts, or no store is named.
    """
    photos = None if recipe.backbone is None else Photos(rows)
    regions: Mapping[str, Regions] | RegionStore | None
    concepts: dict[str, list[str]] | None
    if recipe.dataset.name == "scenes":
        regions, concepts = _simulated(recipe, rows)
    else:
        regions = _stored_regions(recipe) if recipe.backbone is None else None
        concepts = _stored_concepts(recipe)
    images = ImageInputs(regions, concepts, photos, withheld=recipe.images.withhold_image)
    images.check(rows["image_id"], split)
    return images


def extraction_of(recipe: Recipe) -> dict[str, Any] | None:
    """What `processor.extraction` of a model trained by the recipe says: how a photo's regions are made, or that those
    of the training were simulated."""
    given = recipe.images.extraction
    if given is None and recipe.dataset.name == "scenes" and recipe.backbone is None:
        return {"scene_detector": _simulation(recipe)}
    return given


def _simulation(recipe: Recipe) -> dict[str, Any]:
    """Arguments of the [`SceneDetector`] of a recipe on scenes."""
    return _attributes(recipe) | recipe.images.scene_detector


def _simulated(recipe: Recipe, rows: Dataset) -> tuple[dict[str, Regions] | None, dict[str, list[str]]]:
    """Regions, if no backbone takes their place, and concepts of scenes."""
    detector = SceneDetector(**_simulation(recipe)) if recipe.backbone is None else None
    regions: dict[str, Regions] = {}
    concepts: dict[str, list[str]] = {}
    for row in rows:
        if detector is not None:
            regions[row["image_id"]] = detector(row)
        concepts[row["image_id"]] = scene_concepts(row, **_attributes(recipe))
    return None if detector is None else regions, concepts


def _stored_regions(recipe: Recipe) -> RegionStore:
    if recipe.images.store is None:
        raise ValueError("Section `regions` names no `store`; make one with `hf-grounding extract-features`.")
    return RegionStore(below_data_root(recipe.images.store))


def _stored_concepts(recipe: Recipe) -> dict[str, list[str]] | None:
    if recipe.images.concepts is None:
        return None
    found = read_image_concepts(below_data_root(recipe.images.concepts))
    return {str(image_id): words for image_id, words in found.items()}


def _attributes(recipe: Recipe) -> dict[str, Any]:
    options = recipe.dataset.options
    return {name: options[name] for name in ("attributes",) if name in options}
