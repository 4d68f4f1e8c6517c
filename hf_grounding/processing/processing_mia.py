"""Regions, concepts and captions -> tensors of `MIAForCaptioning`, and written captions -> `GroundedCaption`s."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.utils import ModelOutput

from .grounding import GroundedCaption, Grounding, best_region
from .image_inputs import check_concepts, concept_inputs, region_inputs
from .image_processing_multilevel import MultiLevelGroundingImageProcessorPil
from .regions import Regions, best_regions, check_grid_fits, grid_boxes
from .words import Phrase, as_phrase, token_words

IGNORED = -100  # in labels


class MIAProcessor(ProcessorMixin):
    r"""What a captioner reads, from `Regions`, concept words and captions; and what it wrote, as words with places.

    Args:
        image_processor (*optional*): Of the backbone in the model, for photos given as `images`. Default: a
            [`MultiLevelGroundingImageProcessorPil`] as it is.
        tokenizer ([`PreTrainedTokenizerFast`]): Of [`train_caption_tokenizer`] and the like.
        max_regions (`int`): Regions of an image, the best ones; 36 in the paper, 49 grid cells.
        max_concepts (`int`): Concepts of an image, the most probable ones.
        extraction (`dict`, *optional*): Where regions and concepts of the training came from, which a photo needs as
            well: "detector", "backbone" or "grid", "concept_detector", and further arguments of [`RegionExtractor`]; or
            "scene_detector", arguments of the [`SceneDetector`] that simulated them.
        object_words (`dict`, *optional*): Words of captions that name an object -> the object's class. Known, written
            captions say which of their words are objects.

    Raises:
        ValueError: If a number is below 1, or `max_regions` below the number of cells of the extraction's grid.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        max_regions: int = 36,
        max_concepts: int = 36,
        extraction: dict[str, Any] | None = None,
        object_words: dict[str, str] | None = None,
        **kwargs: Any,
    ):
        for name, value in {"max_regions": max_regions, "max_concepts": max_concepts}.items():
            if value < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {value}.")
        check_grid_fits(extraction, max_regions)
        self.max_regions, self.max_concepts = max_regions, max_concepts
        self.extraction = extraction
        self.object_words = object_words
        self._concept_ids: dict[str, int] = {}
        super().__init__(image_processor or MultiLevelGroundingImageProcessorPil(), tokenizer, **kwargs)

    _region_names: tuple[str, ...] = ("region_features", "region_mask")  # what the model reads of regions

    @property
    def model_input_names(self) -> list[str]:
        return ["region_features", "region_mask", "concept_ids", "concept_mask", "pixel_values", "labels"]

    def to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict(*args, **kwargs).items() if name != "_concept_ids"}

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        regions: Regions | Sequence[Regions] | None = None,
        concepts: Sequence[Sequence[str]] | None = None,
        captions: Sequence[str] | Sequence[Sequence[str]] | None = None,
        return_tensors: str = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        r"""
        Args:
            images: Photos, for a model with a backbone of its own.
            text: How each caption begins, of equally many words: `decoder_input_ids` for `generate`.
            regions ([`Regions`] or a list of them): Of each image, with features; a [`RegionStore`] holds them.
            concepts: For each image its words, the most probable first.
            captions: For training: of each image one caption, or a list of them, which share the image.
            return_tensors: Only `"pt"`.
            kwargs: Of the image processor.

        Returns:
            `BatchFeature` with `region_features`, `region_mask`, or `pixel_values`; `concept_ids`, `concept_mask`;
            `labels` (number of captions, longest caption), padded with -100, and, for lists of captions, `image_index`;
            `decoder_input_ids`. Each for what was given.

        Raises:
            ValueError: For an image without regions or features, an empty caption, or numbers of images that differ.
        """
        if return_tensors != "pt":
            raise ValueError(f'`return_tensors` must be "pt", got {return_tensors!r}.')
        data: dict[str, Any] = {}
        if images is not None:
            data.update(self.image_processor(images, return_tensors="pt", **kwargs))
        if regions is not None:
            padded = region_inputs([regions] if isinstance(regions, Regions) else list(regions), self.max_regions)
            data.update({name: padded[name] for name in self._region_names if name in padded})
        if concepts is not None:
            check_concepts(concepts)
            ids = [[self._concept_id(word) for word in words[: self.max_concepts]] for words in concepts]
            data.update(concept_inputs(ids, self.tokenizer.pad_token_id))
        if captions is not None:
            data.update(self._labels(captions))
        if text is not None:
            data["decoder_input_ids"] = self._prompts([text] if isinstance(text, str) else list(text))
        names = [name for name in ("pixel_values", "region_mask", "concept_ids", "decoder_input_ids") if name in data]
        counts: dict[str, int] = {name: len(data[name]) for name in names}
        if captions is not None:
            counts["captions"] = len(captions)
        if len(set(counts.values())) > 1:
            raise ValueError(f"All must be given for the same images, but their numbers differ: {counts}.")
        return BatchFeature(data)

    def _concept_id(self, word: str) -> int:
        """Of the word in the captions' vocabulary; of the unknown word if it is none, or is cut into several."""
        if word not in self._concept_ids:
            ids = self.tokenizer(word, add_special_tokens=False)["input_ids"]
            self._concept_ids[word] = ids[0] if len(ids) == 1 else self.tokenizer.unk_token_id
        return self._concept_ids[word]

    def _labels(self, captions: Sequence[str] | Sequence[Sequence[str]]) -> dict[str, torch.Tensor]:
        if isinstance(captions, str) or not captions:
            raise ValueError(f"`captions` must hold a caption, or a list of them, for each image; got {captions!r}.")
        rows = [[row] if isinstance(row, str) else list(row) for row in captions]
        for image, row in enumerate(rows):
            if not row or not all(isinstance(caption, str) and caption.strip() for caption in row):
                raise ValueError(f"Image {image} needs captions with at least one word each, got {row!r}.")
        encoded = self.tokenizer(
            [caption for row in rows for caption in row], padding=True, truncation=True, return_tensors="pt"
        )
        labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, IGNORED)
        if all(isinstance(row, str) for row in captions):
            return {"labels": labels}
        return {"labels": labels, "image_index": torch.tensor([image for image, row in enumerate(rows) for _ in row])}

    def _prompts(self, text: list[str]) -> torch.Tensor:
        ids = [self.tokenizer(each, add_special_tokens=False)["input_ids"] for each in text]
        if len({len(row) for row in ids}) != 1:
            raise ValueError(f"`text` must begin all captions with equally many words, got {text!r}.")
        return torch.tensor([[self.tokenizer.bos_token_id, *row] for row in ids])

    def batch_decode(self, sequences: Any, **kwargs: Any) -> list[str]:
        """Captions of `generate`'s ids."""
        return self.tokenizer.batch_decode(sequences, **({"skip_special_tokens": True} | kwargs))

    def post_process_grounded_captions(
        self,
        outputs: Any,
        regions: Regions | Sequence[Regions] | None = None,
        phrases: Sequence[Sequence[Any]] | None = None,
        target_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[GroundedCaption]:
        r"""What a captioner wrote, each word with its region.

        Args:
            outputs: Of `model.generate(..., return_dict_in_generate=True, output_attentions=True)`. Words of a prompt
                were given, not written, so they have no weights (NaN) and no box.
            regions ([`Regions`] or a list of them): Of each image, as they were given to this processor.
            phrases (*optional*): For each caption those of its phrases that are to be grounded: words of it, or spans
                of its words. Default: every word.
            target_sizes (list of `tuple[int, int]`, *optional*): In place of `regions` where the model read photos
                (`pixel_values`): (height, width) of each photo. Regions are the cells of the square grid that its
                backbone's map laid on the photo, in pixels of it.

        Returns:
            One [`GroundedCaption`] for each sequence, those of one image after another. A grounding's box is that of
            the region with the largest weight, mean over the phrase's words and each word's tokens; its score is that
            weight, as share of all regions'. Captions of a decoder without attention to regions have groundings without
            boxes.

        Raises:
            ValueError: If regions or phrases do not fit to the outputs, or not just one of regions and sizes is given.
        """
        if (regions is None) == (target_sizes is None):
            raise ValueError("Give either the `regions` that the model read, or the `target_sizes` of its photos.")
        if not isinstance(outputs, ModelOutput) or outputs.get("cross_attentions") is None:
            raise ValueError(
                "`outputs` must be of `model.generate(..., return_dict_in_generate=True, output_attentions=True)`, got "
                f"{'one without attentions' if isinstance(outputs, ModelOutput) else type(outputs).__name__}."
            )
        weights, prior = outputs.get("region_attentions"), outputs.get("region_prior")
        if weights is not None:  # those of Spatial-Semantic attention sum to more than 1
            weights = weights.float() / weights.float().sum(dim=-1, keepdim=True).clamp(min=1e-6)
        if target_sizes is not None:
            records = _cells(target_sizes, 0 if weights is None else weights.shape[2])
        else:
            given = [regions] if isinstance(regions, Regions) else list(regions or [])
            records = [best_regions(record, self.max_regions) for record in given]  # those that the model was given
        sequences = outputs.sequences[:, 1:].tolist()
        if not records or len(sequences) % len(records):
            name = "regions" if target_sizes is None else "target_sizes"
            raise ValueError(f"{len(sequences)} captions do not belong to {len(records)} images' `{name}`.")
        if phrases is not None and len(phrases) != len(sequences):
            raise ValueError(f"`phrases` has {len(phrases)} entries for {len(sequences)} captions.")
        per_image = len(sequences) // len(records)
        captions = []
        for number, ids in enumerate(sequences):
            record = records[number // per_image]
            caption, words = self._words(ids)
            by_word = None
            if weights is not None:
                if len(record) > weights.shape[2]:
                    raise ValueError(
                        f"Image '{record.image_id}' has {len(record)} regions, but `outputs` are of at most "
                        f"{weights.shape[2]}; give the regions that the model was given."
                    )
                by_word = _mean_by_word(weights[number, :, : len(record)].cpu().numpy(), words)
            spans = [Phrase(word, i, i + 1) for i, word in enumerate(caption.split())]
            if phrases is not None:
                spans = [as_phrase(value, caption) for value in phrases[number]]
            groundings = [_grounding(span, by_word, record.boxes) for span in spans]
            own_prior = None if prior is None else prior[number // per_image, : len(record)].float().cpu().numpy()
            captions.append(GroundedCaption(caption, groundings, by_word, record, own_prior, self._objects(caption)))
        return captions

    def _objects(self, caption: str) -> dict[int, str] | None:
        """Number of each word that names an object -> its class."""
        if self.object_words is None:
            return None
        classes = {number: self.object_words.get(word.lower()) for number, word in enumerate(caption.split())}
        return {number: name for number, name in classes.items() if name is not None}

    def words_of_tokens(self, captions: Sequence[str]) -> list[list[int]]:
        """For each caption the number of the white-space word that each token of its labels is part of, -1 for none."""
        encoded = self.tokenizer(list(captions), truncation=True, return_offsets_mapping=True)
        pairs = zip(captions, encoded["offset_mapping"], strict=True)
        return [token_words(caption, offsets) for caption, offsets in pairs]

    def _words(self, ids: list[int]) -> tuple[str, np.ndarray]:
        """A caption, and for each token the word of it that it is part of; -1 for tokens that are part of none."""
        starts = self.batch_decode([ids[: end + 1] for end in range(len(ids))])
        caption = starts[-1] if starts else ""
        # A token that begins a word without a letter of it leaves a space at the end of what is written so far.
        words = np.array([len(start.split()) - (start[-1:].strip() != "") for start in starts], dtype=int)
        special = np.isin(ids, self.tokenizer.all_special_ids)
        return caption, np.where(special | (words == len(caption.split())), -1, words)


def _cells(image_sizes: Sequence[tuple[int, int]], count: int) -> list[Regions]:
    """For each image the cells of a square grid, as many as the model attended to."""
    side = math.isqrt(count)
    if side**2 != count:
        raise ValueError(
            "`target_sizes` are of photos that the model reads as a square grid of cells, but `outputs` are of "
            f"{count} regions; give the `regions`."
        )
    return [Regions(str(image), size, grid_boxes(side, side, size)) for image, size in enumerate(image_sizes)]


def _mean_by_word(weights: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Mean weights of the tokens of each word, NaN for words of a prompt, which is before the first token with weights.

    (num_written, num_regions), (num_tokens,) -> (num_words, num_regions)
    """
    belongs = words == np.arange(words.max(initial=-1) + 1)[:, None]  # (num_words, num_tokens)
    belongs = belongs[:, len(words) - len(weights) :]
    counts = belongs.sum(axis=1, keepdims=True)
    return np.where(counts, belongs @ weights / counts.clip(min=1), np.nan)


def _grounding(phrase: Phrase, weights: np.ndarray | None, boxes: np.ndarray) -> Grounding:
    span = (phrase.start, phrase.end)
    rows = np.empty((0, len(boxes))) if weights is None else weights[slice(*span)]
    rows = rows[~np.isnan(rows).any(axis=1)]
    if not len(rows):
        return Grounding(phrase.text, span, None, None, 0.0)
    return best_region(phrase.text, span, rows.mean(axis=0), boxes)


__all__ = ["MIAProcessor"]
