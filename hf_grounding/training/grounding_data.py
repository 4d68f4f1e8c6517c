"""Training examples of phrase grounding: one caption of each image, drawn anew every epoch.

If asked, half of the images are mirrored.
"""

import random
import re
from itertools import groupby
from typing import Any

import torch
from datasets import Dataset

from ..data.feature_store import FeatureStore
from .features import read_inputs

_MIRRORED_WORDS = {"left": "right", "right": "left"}


class CaptionPerImage(torch.utils.data.Dataset):
    r"""Image i of the data set with one of its captions.

    What is drawn depends on the seed, the epoch and the image alone, so a resumed or distributed run draws what an
    uninterrupted one draws.

    Args:
        dataset (`datasets.Dataset`): Columns `image_id`, `width`, `height`, `captions`, `phrases`.
        seed (`int`): Of the draws.
        flip (`bool`): Mirror half of the images; "left" and "right" in their captions change places.
    """

    def __init__(self, dataset: Dataset, seed: int = 0, flip: bool = False):
        self.rows = dataset.select_columns(["image_id", "width", "height", "captions", "phrases"])
        empty = [i for i, captions in enumerate(dataset["captions"]) if not captions]
        if empty:
            example = self.rows[empty[0]]["image_id"]
            raise ValueError(f"{len(empty)} training images have no caption, e.g. '{example}'; leave them out.")
        self.seed, self.flip, self.epoch = seed, flip, 0

    def __len__(self) -> int:
        return len(self.rows)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        rng = random.Random(f"{self.seed}/{self.epoch}/{row['image_id']}")
        sentence = rng.randrange(len(row["captions"]))
        example = {
            "image_id": row["image_id"],
            "size": (row["height"], row["width"]),
            "caption": row["captions"][sentence],
            "phrases": [phrase for phrase in row["phrases"] if phrase["sentence"] == sentence],
            "flipped": self.flip and rng.random() < 0.5,
        }
        return mirror(example) if example["flipped"] else example


def mirror(example: dict[str, Any]) -> dict[str, Any]:
    """The example of the mirrored image: boxes change sides, and so do the words left and right."""
    width = example["size"][1]
    phrases = [
        {**phrase, "boxes": [[width - x2, y1, width - x1, y2] for x1, y1, x2, y2 in phrase["boxes"]]}
        for phrase in example["phrases"]
    ]
    caption = re.sub(r"(?i)\b(left|right)\b", lambda word: _MIRRORED_WORDS[word[0].lower()], example["caption"])
    return {**example, "caption": caption, "phrases": phrases}


class GroundingCollator:
    r"""Examples -> inputs of [`MultiLevelGroundingModel`].

    Args:
        processor ([`MultiLevelGroundingProcessor`]): Makes the text's inputs.
        plain ([`FeatureStore`]): Maps of the images.
        mirrored ([`FeatureStore`], *optional*): Maps of the mirrored images, for examples that are flipped.
    """

    def __init__(self, processor: Any, plain: FeatureStore, mirrored: FeatureStore | None = None):
        self.processor = processor
        self.stores = {False: plain} if mirrored is None else {False: plain, True: mirrored}

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        examples = sorted(examples, key=_is_flipped)
        inputs = self.processor(
            text=[example["caption"] for example in examples],
            phrases=[example["phrases"] for example in examples],
            target_sizes=[example["size"] for example in examples],
        )
        parts = [
            read_inputs(self.stores[flipped], [example["image_id"] for example in group])
            for flipped, group in groupby(examples, key=_is_flipped)
        ]
        images: dict[str, Any] = {}
        if "pixel_values" in parts[0]:
            images["pixel_values"] = torch.cat([part["pixel_values"] for part in parts])
        else:
            levels = zip(*(part["feature_maps"] for part in parts), strict=True)
            images["feature_maps"] = tuple(torch.cat(level) for level in levels)
        text = {name: value for name, value in inputs.items() if name != "phrases"}
        return text | images | {"return_loss": True}


def _is_flipped(example: dict[str, Any]) -> bool:
    return example["flipped"]
