"""Photos, captions and phrases -> tensors of `MultiLevelGroundingModel`, and its outputs -> `Grounding`s in pixels."""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .grounding import BOX_THRESHOLD, Grounding, box_coverage, heatmap_boxes, heatmap_points
from .words import Phrase, as_phrase, token_words

QUERY_HEATMAPS = ("auto", "word", "sentence")


class MultiLevelGroundingProcessor(ProcessorMixin):
    r"""Image processor and tokenizer in one, with phrases.

    Args:
        image_processor ([`MultiLevelGroundingImageProcessorPil`]): Fixed size, normalised for the backbone.
        tokenizer ([`PreTrainedTokenizerFast`]): Any fast tokenizer.
        grid_size (`int`): M of the model, for the box masks of training.
        query_heatmap (`str`): What a phrase's heatmap is made of: `"word"`, its words' heatmaps weighted by their
            relevance (Flickr30k protocol); `"sentence"`, the whole text's (ReferIt and Visual Genome protocol);
            `"auto"`, the sentence's where the phrase is the whole text, else the words'.
    """

    text_kwargs = {"padding": True}

    def __init__(
        self, image_processor=None, tokenizer=None, grid_size: int = 18, query_heatmap: str = "auto", **kwargs
    ):
        _check_query_heatmap(query_heatmap)
        self.grid_size = grid_size
        self.query_heatmap = query_heatmap
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | list[list[str]] | None = None,
        phrases: list | None = None,
        feature_maps: tuple[torch.Tensor, ...] | None = None,
        target_sizes: list[tuple[int, int]] | None = None,
        return_tensors: str = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        r"""
        Args:
            images: A photo or a list of them, anything transformers' image processors take.
            text: One caption for each image, or for each image a list of captions.
            phrases: For each caption (in the order of the flattened `text`) the list of its phrases: words of the
                caption, `(start, end)` spans of white-space tokens, or the phrases of a data set (dicts with `start`,
                `end` and, for training with boxes, `boxes`). Default: each caption is one phrase.
            feature_maps: Maps of the backbone instead of `images`, one (batch, channels, height, width) for each level.
            target_sizes: (height, width) of each caption's image in the pixels `boxes` are given in; with it the
                phrases' `boxes` become `box_masks`.
            return_tensors: Only `"pt"`.
            kwargs: Of the tokenizer (`padding`, `truncation`, `max_length`, ...) and of the image processor (`size`,
                `do_resize`, ...), as other processors take them: flat, or in `text_kwargs` and `images_kwargs`.

        Returns:
            `BatchFeature` with `pixel_values` or `feature_maps`, `input_ids`, `attention_mask`, `word_mask`,
            `phrase_mask`, with lists of captions `image_index`, with `target_sizes` `box_masks`, and `phrases`, a list
            of [`Phrase`]s for each caption.

        Raises:
            ValueError: For an empty caption, an image without captions, a phrase that is not in its caption or is cut
                off by `truncation`, features that are not finite, numbers of images, captions and phrases that do not
                fit, or boxes that are not xyxy.
        """
        if return_tensors != "pt":
            raise ValueError(
                f'`return_tensors` must be "pt" (phrase and box masks are torch tensors), got {return_tensors!r}.'
            )
        options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        data: dict[str, Any] = {}
        if images is not None:
            data.update(self.image_processor(images, **options["images_kwargs"], return_tensors="pt"))
        if feature_maps is not None:
            data["feature_maps"] = _finite_maps(feature_maps)
        if text is not None:
            captions, image_index = _flatten_captions(text)
            num_images = (
                len(data["pixel_values"]) if images is not None else len(feature_maps[0]) if feature_maps else None
            )
            expected = len(captions) if image_index is None else int(image_index[-1]) + 1
            if num_images not in (None, expected):
                raise ValueError(
                    f"{num_images} images but text for {expected}; give one caption, or a list of them, for each."
                )
            if image_index is not None:
                data["image_index"] = image_index
            data.update(self._text_inputs(captions, phrases, target_sizes, options["text_kwargs"]))
        return BatchFeature(data)

    def _text_inputs(
        self, captions: list[str], phrases: list | None, target_sizes: list | None, options: dict[str, Any]
    ) -> dict[str, Any]:
        raw = [[(0, len(caption.split()))] for caption in captions] if phrases is None else phrases
        if len(raw) != len(captions):
            raise ValueError(
                f"`phrases` has {len(raw)} entries for {len(captions)} captions; give a list of phrases for each."
            )
        if not all(isinstance(row, list | tuple) for row in raw):
            raise ValueError(f"`phrases` must be a list of phrases for each caption, such as [['a man']]; got {raw!r}.")
        spans = [[as_phrase(value, caption) for value in row] for row, caption in zip(raw, captions, strict=True)]
        always = {"return_offsets_mapping": True, "return_token_type_ids": False, "return_tensors": "pt"}
        encoded = self.tokenizer(captions, **(options | always))
        offsets = encoded.pop("offset_mapping").tolist()
        words = torch.tensor([token_words(caption, row) for caption, row in zip(captions, offsets, strict=True)])
        phrase_mask = torch.zeros(len(captions), max(1, max(map(len, spans))), words.shape[1], dtype=torch.long)
        for i, row in enumerate(spans):
            for j, phrase in enumerate(row):
                phrase_mask[i, j] = (words[i] >= phrase.start) & (words[i] < phrase.end)
                if not phrase_mask[i, j].any():
                    raise ValueError(
                        f"Nothing is left of phrase {phrase.text!r} in {captions[i]!r} cut to {words.shape[1]} tokens; "
                        "raise `max_length`, or leave the phrase out."
                    )
        data = {**encoded, "word_mask": (words >= 0).long(), "phrase_mask": phrase_mask, "phrases": spans}
        if target_sizes is not None:
            data["box_masks"] = self._box_masks(raw, target_sizes, phrase_mask.shape[1])
        return data

    def _box_masks(self, phrases: list, target_sizes: list, num_phrases: int) -> torch.Tensor:
        """Cells covered by each phrase's boxes, (captions, phrases, grid, grid); 0 for phrases without boxes."""
        if len(target_sizes) != len(phrases):
            raise ValueError(
                f"`target_sizes` has {len(target_sizes)} entries for {len(phrases)} captions; "
                "give (height, width) for each."
            )
        masks = torch.zeros(len(phrases), num_phrases, self.grid_size, self.grid_size)
        for i, (row, size) in enumerate(zip(phrases, target_sizes, strict=True)):
            height, width = _check_size(size)
            for j, phrase in enumerate(row):
                if not isinstance(phrase, dict) or "boxes" not in phrase:
                    raise ValueError(
                        f"`target_sizes` asks for box masks, which need phrases with `boxes`; got {phrase!r}."
                    )
                if len(phrase["boxes"]):
                    boxes = torch.as_tensor(phrase["boxes"], dtype=torch.float32)
                    if boxes.ndim != 2 or boxes.shape[1] != 4 or not (boxes[:, 2:] >= boxes[:, :2]).all():
                        raise ValueError(f"Boxes must be a list of xyxy with x1 <= x2 and y1 <= y2; got {phrase!r}.")
                    masks[i, j] = box_coverage(boxes, height, width, self.grid_size)
        return masks

    def phrase_heatmaps(
        self, outputs: Any, inputs: BatchFeature, query_heatmap: str | None = None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        r"""Heatmap and score of every phrase, on the grid.

        Args:
            outputs ([`MultiLevelGroundingOutput`]): Of the model on `inputs`.
            inputs (`BatchFeature`): What this processor made.
            query_heatmap: As in the class; default the processor's own.

        Returns:
            For each caption heatmaps (phrases, M, M) and scores (phrases,): the mean R_t of the words, or R_s.
        """
        query_heatmap = query_heatmap or self.query_heatmap
        _check_query_heatmap(query_heatmap)
        num_words = inputs["word_mask"].sum(dim=1)
        results = []
        for caption, phrases in enumerate(inputs["phrases"]):
            mask = inputs["phrase_mask"][caption, : len(phrases)].to(outputs.word_scores.dtype)  # (P, T)
            weights = mask * outputs.word_scores[caption].relu()  # below 0 with softmax attention alone
            total = weights.sum(dim=1, keepdim=True)
            heatmaps = torch.einsum(
                "pt,tyx->pyx", weights / total.clamp(min=torch.finfo(total.dtype).tiny), outputs.heatmaps[caption]
            )
            scores = (total / mask.sum(dim=1, keepdim=True).clamp(min=1))[:, 0]
            whole = mask.sum(dim=1) == num_words[caption]
            by_sentence = whole if query_heatmap == "auto" else torch.full_like(whole, query_heatmap == "sentence")
            heatmaps = torch.where(by_sentence[:, None, None], outputs.sentence_heatmaps[caption], heatmaps)
            results.append((heatmaps, torch.where(by_sentence, outputs.sentence_scores[caption], scores)))
        return results

    def post_process_grounding(
        self,
        outputs: Any,
        inputs: BatchFeature,
        target_sizes: list[tuple[int, int]],
        query_heatmap: str | None = None,
        box_threshold: float = BOX_THRESHOLD,
    ) -> list[list[Grounding]]:
        r"""Groundings of every phrase, in pixels of the original images.

        Args:
            outputs, inputs, query_heatmap: As in [`phrase_heatmaps`].
            target_sizes: (height, width) of each image in pixels.
            box_threshold: Share of the peak that still belongs to the box, see [`heatmap_boxes`].

        Returns:
            For each caption the list of its [`Grounding`]s.
        """
        phrases = inputs["phrases"]
        image_index = inputs["image_index"].tolist() if "image_index" in inputs else list(range(len(phrases)))
        if len(target_sizes) != max(image_index) + 1:
            raise ValueError(
                f"`target_sizes` has {len(target_sizes)} entries for {max(image_index) + 1} images; "
                "give (height, width) of each."
            )
        for size in target_sizes:
            _check_size(size)
        if not 0 < box_threshold <= 1:
            raise ValueError(f"`box_threshold` is a share of the peak in (0, 1], got {box_threshold}.")
        heatmaps = self.phrase_heatmaps(outputs, inputs, query_heatmap)
        return [
            _groundings(row, *maps, target_sizes[image], box_threshold)
            for row, maps, image in zip(phrases, heatmaps, image_index, strict=True)
        ]


def _check_query_heatmap(name: str) -> None:
    if name not in QUERY_HEATMAPS:
        raise ValueError(f"`query_heatmap` must be one of {QUERY_HEATMAPS}, got {name!r}.")


def _check_size(size: Any) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in size)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise ValueError(f"`target_sizes` must be (height, width) in pixels, 1 or more, got {size!r}.")
    return height, width


def _groundings(
    phrases: list[Phrase], heatmaps: torch.Tensor, scores: torch.Tensor, size: tuple[int, int], box_threshold: float
) -> list[Grounding]:
    heatmaps = heatmaps.detach().float().cpu()
    points = heatmap_points(heatmaps, *size)
    boxes = heatmap_boxes(heatmaps, points, *size, threshold=box_threshold)
    found = (~points.isnan().any(dim=1)).tolist()
    rows = zip(phrases, found, boxes.tolist(), points.tolist(), scores.tolist(), heatmaps.numpy(), strict=True)
    return [
        Grounding(
            phrase.text,
            (phrase.start, phrase.end),
            tuple(box) if ok else None,
            tuple(point) if ok else None,
            score,
            heatmap,
        )
        for phrase, ok, box, point, score, heatmap in rows
    ]


def _flatten_captions(text: str | list[str] | list[list[str]]) -> tuple[list[str], torch.Tensor | None]:
    """Flat captions and, for nested ones, the image of each. Empty captions and images without any are refused."""
    if not isinstance(text, Iterable):
        raise ValueError(f"`text` must be a caption, a list of captions, or a list of lists of them; got {text!r}.")
    rows: list[Any] = [text] if isinstance(text, str) else list(text)
    nested = bool(rows) and isinstance(rows[0], list | tuple)
    if nested and not all(isinstance(row, list | tuple) for row in rows):
        raise ValueError(
            f"`text` must hold one caption for each image, or for each a list of captions; got both in {rows!r}."
        )
    if not rows:
        raise ValueError("`text` is empty; give a caption, or a list of captions for each image.")
    for image, row in enumerate(rows if nested else ()):
        if not row:
            raise ValueError(f"Image {image} has no captions in `text`; give it at least one, or leave the image out.")
    captions = [caption for row in rows for caption in row] if nested else rows
    for position, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise ValueError(
                f"`text` must hold strings, or for each image a list of strings; entry {position} is {caption!r}."
            )
        if not caption.strip():
            raise ValueError(f"Caption {position} is empty; every caption needs at least one word.")
    return captions, torch.tensor([i for i, row in enumerate(rows) for _ in row]) if nested else None


def _finite_maps(feature_maps: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    maps = tuple(torch.as_tensor(feature_map) for feature_map in feature_maps)
    if not maps or len({len(feature_map) for feature_map in maps}) > 1:
        raise ValueError(
            "`feature_maps` must be one map for each level, all of the same images; got shapes "
            f"{[tuple(feature_map.shape) for feature_map in maps]}."
        )
    for level, feature_map in enumerate(maps):
        if feature_map.ndim != 4:
            raise ValueError(
                f"Level {level} of `feature_maps` must be (batch, channels, height, width), "
                f"got {tuple(feature_map.shape)}."
            )
        bad = (~feature_map.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"Level {level} of `feature_maps` has NaN or infinite values in rows {bad}; "
                "extract these features again."
            )
    return maps


__all__ = ["MultiLevelGroundingProcessor"]
