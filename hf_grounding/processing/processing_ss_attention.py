"""Regions with boxes and classes -> tensors of `SSAttentionCaptioner`, and phrases with boxes -> its targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature

from .processing_mia import MIAProcessor
from .regions import Regions, best_regions, box_iou, scale_boxes
from .words import head_word


@dataclass(frozen=True)
class MatchedPhrase:
    """A phrase of a caption (its number, first word, word after the last), and the regions that fit its boxes best."""

    sentence: int
    start: int
    end: int
    regions: tuple[int, ...]


class SSAttentionProcessor(MIAProcessor):
    r"""As [`MIAProcessor`], with what Spatial-Semantic attention reads of regions and learns from.

    Args:
        iou_plus_one (`bool`): Count a box's last pixels in, when regions are matched, as the evaluator of Grounded
            Video Description does.
        ignore_unmatched_boxes (`bool`): A box that no region overlaps has no region; else it has the first.
        image_processor, tokenizer, max_regions, max_concepts, extraction, object_words: As in [`MIAProcessor`].
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        max_regions: int = 36,
        max_concepts: int = 36,
        extraction: dict[str, Any] | None = None,
        object_words: dict[str, str] | None = None,
        iou_plus_one: bool = True,
        ignore_unmatched_boxes: bool = True,
        **kwargs: Any,
    ):
        super().__init__(image_processor, tokenizer, max_regions, max_concepts, extraction, object_words, **kwargs)
        self.iou_plus_one, self.ignore_unmatched_boxes = iou_plus_one, ignore_unmatched_boxes

    _region_names = (*MIAProcessor._region_names, "boxes", "class_probs", "image_sizes")

    @property
    def model_input_names(self) -> list[str]:
        own = ["boxes", "class_probs", "image_sizes", "grounding_targets", "attention_targets"]
        return super().model_input_names + own

    def match_phrases(
        self, regions: Regions, phrases: Sequence[Mapping[str, Any]], image_size: tuple[int, int]
    ) -> list[MatchedPhrase]:
        r"""For each box of each phrase the region of the largest IoU, of equal ones the first; none where all are 0,
        with `ignore_unmatched_boxes`.

        Args:
            regions ([`Regions`]): Of the image.
            phrases (list of `dict`): Of its captions, as data sets have them: "sentence", "start", "end" and "boxes",
                xyxy in pixels of the image as it was annotated.
            image_size (`tuple[int, int]`): (height, width) of that image; it may have another than the regions'.

        Raises:
            ValueError: If a phrase has a box that is none.
        """
        record = best_regions(regions, self.max_regions)
        counts = [len(phrase["boxes"]) for phrase in phrases]
        matched: list[int | None] = []
        if sum(counts) and len(record):
            annotated = np.concatenate([phrase["boxes"] for phrase in phrases if len(phrase["boxes"])])
            found = scale_boxes(record.boxes, record.image_size, image_size)
            try:
                overlaps = box_iou(found, annotated, plus_one=self.iou_plus_one)  # (num_regions, num_boxes)
            except ValueError as error:
                raise ValueError(f"The boxes of the phrases of image {regions.image_id!r}: {error}") from error
            best = overlaps.argmax(axis=0).tolist()  # the first of equal ones
            kept = (overlaps.max(axis=0) > 0) | (not self.ignore_unmatched_boxes)
            matched = [row if keep else None for row, keep in zip(best, kept, strict=True)]
        ends = np.cumsum(counts)
        return [
            MatchedPhrase(
                phrase["sentence"],
                phrase["start"],
                phrase["end"],
                tuple(dict.fromkeys(row for row in matched[end - count : end] if row is not None)),
            )
            for phrase, end, count in zip(phrases, ends.tolist(), counts, strict=True)
        ]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        regions: Regions | Sequence[Regions] | None = None,
        concepts: Sequence[Sequence[str]] | None = None,
        captions: Sequence[str] | Sequence[Sequence[str]] | None = None,
        return_tensors: str = "pt",
        *,
        phrases: Sequence[Sequence[MatchedPhrase]] | None = None,
        sentences: Sequence[Sequence[int]] | None = None,
        grounding_target: str = "caption",
        attention_targets: bool = False,
        **kwargs: Any,
    ) -> BatchFeature:
        r"""
        Args:
            images, text, regions, concepts, captions, return_tensors, kwargs: As in [`MIAProcessor`].
            phrases (*optional*): For training: of each image what [`match_phrases`] gives.
            sentences (*optional*): Of each image the numbers that its `captions` have in `phrases`; default 0, 1, ...
            grounding_target (`str`): Regions of a caption's own phrases ("caption"), or of those of all captions of its
                image ("image").
            attention_targets (`bool`): Also make those of single words.

        Returns:
            `BatchFeature`, to which regions add `boxes` (batch, num_regions, 4) in [0, 1], `image_sizes` (batch, 2)
            and, where the records have them, `class_probs`; phrases add `grounding_targets` (num_captions, num_regions)
            and, if asked for, `attention_targets` (num_captions, num_tokens, num_regions), which the tokens of a
            phrase's object word have, see [`head_word`]. The first are 0 or 1; the second are divided by the number of
            the word's tokens, so that each word counts once. All are 0 without boxes.

        Raises:
            ValueError: As [`MIAProcessor`]; also for phrases without regions and captions, of other images, of regions
                that an image does not have, or that are not matched.
        """
        batch = super().__call__(images, text, regions, concepts, captions, return_tensors, **kwargs)
        if phrases is None:
            return batch
        if regions is None or captions is None:
            raise ValueError("`phrases` say which `regions` the `captions` are about; give both.")
        if grounding_target not in ("caption", "image"):
            raise ValueError(f'`grounding_target` must be "caption" or "image", got {grounding_target!r}.')
        given = [[row] if isinstance(row, str) else list(row) for row in captions]
        numbers = [range(len(row)) for row in given] if sentences is None else sentences
        counts = {"captions": len(given), "phrases": len(phrases), "sentences": len(numbers)}
        if len(set(counts.values())) > 1 or [*map(len, given)] != [*map(len, numbers)]:
            raise ValueError(f"`phrases` and `sentences` must belong to the images and captions; got {counts}.")
        records = [regions] if isinstance(regions, Regions) else list(regions)
        for image, (record, row) in enumerate(zip(records, phrases, strict=True)):
            _check_matched(row, min(len(record), self.max_regions), image)
        places = [(image, number) for image, row in enumerate(numbers) for number in row]  # of each caption
        own = [
            [phrase for phrase in phrases[image] if grounding_target == "image" or phrase.sentence == number]
            for image, number in places
        ]
        num_regions = batch["region_mask"].shape[1]
        batch["grounding_targets"] = torch.stack([_one_hot(each, num_regions) for each in own])
        if attention_targets:
            words = [caption for row in given for caption in row]
            of_caption = [[p for p in phrases[image] if p.sentence == number] for image, number in places]
            batch["attention_targets"] = self._attention_targets(
                words, of_caption, batch["labels"].shape[1], num_regions
            )
        return batch

    def _attention_targets(
        self, captions: list[str], phrases: list[list[MatchedPhrase]], num_tokens: int, num_regions: int
    ) -> torch.Tensor:
        targets = torch.zeros(len(captions), num_tokens, num_regions)
        for number, words in enumerate(self.words_of_tokens(captions)):
            of_caption = captions[number].split()
            for phrase in phrases[number]:
                if phrase.end > len(of_caption):
                    raise ValueError(
                        f"A phrase of the words {phrase.start} to {phrase.end} belongs to no caption of "
                        f"{len(of_caption)}: '{captions[number]}'. Give phrases with the captions they are from."
                    )
                head = head_word(of_caption, phrase.start, phrase.end)
                tokens = [] if head is None else np.flatnonzero(np.array(words) == head).tolist()
                for token in tokens:
                    own = _one_hot([phrase], num_regions) / len(tokens)
                    targets[number, token] = torch.maximum(targets[number, token], own)
        return targets


def _check_matched(phrases: Sequence[MatchedPhrase], num_regions: int, image: int) -> None:
    for phrase in phrases:
        if not isinstance(phrase, MatchedPhrase):
            raise ValueError(
                f"`phrases` must be what `match_phrases` gives of an image's phrases, got {type(phrase).__name__} for "
                f"image {image}; call `processor.match_phrases(regions, phrases, image_size)`."
            )
        if any(not 0 <= row < num_regions for row in phrase.regions):
            raise ValueError(
                f"A phrase of image {image} has the regions {phrase.regions}, but the image has {num_regions}; match "
                "the phrases with the regions that are given."
            )


def _one_hot(phrases: Sequence[MatchedPhrase], num_regions: int) -> torch.Tensor:
    """(num_regions,), 1 for the regions of the phrases."""
    targets = torch.zeros(num_regions)
    targets[[row for phrase in phrases for row in phrase.regions]] = 1
    return targets


__all__ = ["SSAttentionProcessor"]
