"""Concepts: the vocabulary of a concept detector, labels from captions, ranked words, `image_concepts.json`.

A word of a caption is a lower-cased white-space token without the punctuation at its end, as `train_word_tokenizer` of
`words.py` cuts them, that has a letter or digit. So "Man-made, lake ." has the words man-made and lake. The vocabulary
holds the commonest words, function words included, as the detector is trained on them; ranking leaves them out.
"""

import json
import operator
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .image_processing_multilevel import MultiLevelGroundingImageProcessorPil
from .words import PAD

# The words that the public evaluation code of arXiv 1411.4952 treats as functional.
FUNCTION_WORDS = ("a", "on", "of", "the", "in", "with", "and", "is", "to", "an", "two", "at", "next", "are")


class RankedConcept(NamedTuple):
    """A word and its probability of being in the image."""

    word: str
    prob: float


def caption_words(caption: str) -> list[str]:
    r"""Words of a caption, in order.

    Example:

        >>> caption_words("A man rides, slowly, a man-made horse .")
        ['a', 'man', 'rides', 'slowly', 'a', 'man-made', 'horse']
    """
    tokens = (re.sub(r"[.,!?;:]+$", "", token) for token in caption.lower().split())
    return [token for token in tokens if re.search(r"[^\W_]", token)]


def commonest_words(captions: Iterable[str | Sequence[str]], size: int = 1000) -> list[str]:
    r"""The `size` commonest words of the captions, the commonest first; equally common ones in alphabetical order.

    Args:
        captions: Captions, or for each image a list of them.
        size (`int`): How many words; all of them where there are fewer.

    Raises:
        ValueError: If `size` is below 1 or there is no word.
    """
    if size < 1:
        raise ValueError(f"`size` must be 1 or more, got {size}.")
    counts: Counter[str] = Counter()
    for image, row in enumerate([captions] if isinstance(captions, str) else captions):
        for caption in _captions_of(image, row):
            counts.update(caption_words(caption))
    if not counts:
        raise ValueError("The captions have no words; give captions such as 'a man rides a horse'.")
    return sorted(counts, key=lambda word: (-counts[word], word))[:size]


class ConceptProcessor(ProcessorMixin):
    r"""Photos -> `pixel_values` and captions -> `labels` of [`ConceptDetector`], and its outputs -> ranked words.

    Args:
        image_processor: Any image processor that makes what the backbone was trained with. Default: a
            [`MultiLevelGroundingImageProcessorPil`] as it is.
        concepts (`list[str]`): The vocabulary, in the order of the detector's outputs (`config.id2label`); may be made
            later by [`build_vocabulary`].
        concept_stopwords (`list[str]`): Words that are never ranked; default the 14 function words of the public
            evaluation code.
        num_concepts (`int`): How many words of an image are kept (49 with grid features, 36 with regions).
        pad_word (`str`): Fills the rows of images with fewer words.
    """

    def __init__(
        self,
        image_processor=None,
        concepts: Iterable[str] = (),
        concept_stopwords: Iterable[str] = FUNCTION_WORDS,
        num_concepts: int = 49,
        pad_word: str = PAD,
        **kwargs: Any,
    ):
        _check_positive("num_concepts", num_concepts)
        if isinstance(concepts, str) or isinstance(concept_stopwords, str):
            raise ValueError("`concepts` and `concept_stopwords` are lists of words, got one text.")
        self.concept_stopwords = list(concept_stopwords)
        self.num_concepts = num_concepts
        self.pad_word = pad_word
        self.concepts = self._checked(concepts)
        super().__init__(image_processor or MultiLevelGroundingImageProcessorPil(), **kwargs)

    def _checked(self, concepts: Iterable[str]) -> list[str]:
        concepts = list(concepts)
        wrong = [word for word in concepts if not isinstance(word, str) or not word or word == self.pad_word]
        if wrong:
            raise ValueError(f"Concepts must be words other than the padding {self.pad_word!r}, got {_listed(wrong)}.")
        twice = [word for word, count in Counter(concepts).items() if count > 1]
        if twice:
            raise ValueError(f"`concepts` has words more than once: {_listed(twice)}.")
        return concepts

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "labels"]

    @property
    def pad_id(self) -> int:
        """Id of `pad_word`: one after the last concept."""
        return len(self.concepts)

    def build_vocabulary(self, captions: Iterable[str | Sequence[str]], size: int = 1000) -> list[str]:
        r"""Makes `concepts` the commonest words of the captions and returns them, see [`commonest_words`].

        The detector then needs `ConceptDetectorConfig(id2label=dict(enumerate(processor.concepts)))`.
        """
        self.concepts = self._checked(commonest_words(captions, size))
        return self.concepts

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str | Sequence[str]] | None = None,
        return_tensors: str = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        r"""
        Args:
            images: A photo or a list of them, anything transformers' image processors take.
            text: For training: one caption, or a list of captions, for each image.
            return_tensors: Only `"pt"`.
            kwargs: Of the image processor (`size`, `do_resize`, ...): flat, or in `images_kwargs`.

        Returns:
            `BatchFeature` with `pixel_values` for `images` and `labels` for `text`.

        Raises:
            ValueError: If the numbers of images and texts differ, or as [`labels`].
        """
        if return_tensors != "pt":
            raise ValueError(f'`return_tensors` must be "pt" (labels are torch tensors), got {return_tensors!r}.')
        data: dict[str, Any] = {}
        if images is not None:
            options = self._merge_kwargs(**kwargs)["images_kwargs"]
            data.update(self.image_processor(images, **options, return_tensors="pt"))
        if text is not None:
            data["labels"] = self.labels(text)
            num_images = len(data["pixel_values"]) if "pixel_values" in data else len(data["labels"])
            if num_images != len(data["labels"]):
                raise ValueError(
                    f"{num_images} images but text for {len(data['labels'])}; give one caption, or a list of them, "
                    "for each."
                )
        return BatchFeature(data)

    def labels(self, captions: str | Iterable[str | Sequence[str]]) -> torch.Tensor:
        r"""Which concepts the captions of each image name.

        Args:
            captions: For each image one caption or a list of them.

        Returns:
            `torch.Tensor` of shape `(images, len(concepts))`: 1 = the word is in one of the image's captions, else 0.

        Raises:
            ValueError: If there is no vocabulary, or an image has no captions.
        """
        ids = self._ids()
        rows = []
        for image, row in enumerate([captions] if isinstance(captions, str) else captions):
            texts = _captions_of(image, row)
            if not texts:
                raise ValueError(f"Image {image} has no captions; give it at least one, or leave the image out.")
            words = {word for caption in texts for word in caption_words(caption)}
            rows.append([ids[word] for word in words if word in ids])
        labels = torch.zeros(len(rows), len(ids))
        for label, found in zip(labels, rows, strict=True):
            label[found] = 1.0
        return labels

    def rank(self, concept_probs: Any, top: int | None = None) -> list[list[RankedConcept]]:
        r"""The likeliest words of each image, the likeliest first, without `concept_stopwords`.

        Args:
            concept_probs (`torch.Tensor` of shape `(images, len(concepts))`): Of the detector.
            top (`int`, *optional*): How many words; default `num_concepts`. There are fewer where the vocabulary has
                no more. Of equally likely words the commoner comes first, that is the one earlier in `concepts`.

        Raises:
            ValueError: If `concept_probs` are not of this vocabulary or not finite, or `top` is below 1.
        """
        top = self.num_concepts if top is None else top
        _check_positive("top", top)
        probs = torch.as_tensor(concept_probs).detach().cpu()
        if probs.ndim != 2 or probs.shape[1] != len(self._ids()):
            raise ValueError(
                f"`concept_probs` must be (images, {len(self.concepts)}), one column for each of `concepts`; got "
                f"{tuple(probs.shape)}."
            )
        bad = (~probs.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(f"`concept_probs` has NaN or infinite values in rows {bad}.")
        left_out = set(self.concept_stopwords)
        kept = torch.tensor([i for i, word in enumerate(self.concepts) if word not in left_out], dtype=torch.long)
        values, order = probs[:, kept].sort(dim=1, descending=True, stable=True)
        rows = zip(kept[order[:, :top]].tolist(), values[:, :top].tolist(), strict=True)
        return [[RankedConcept(self.concepts[i], prob) for i, prob in zip(ids, row, strict=True)] for ids, row in rows]

    def encode(self, image_concepts: Iterable[Sequence[str | RankedConcept]], tokenizer: Any = None) -> BatchFeature:
        r"""Ranked words of each image -> `concept_ids` and `concept_mask`, `num_concepts` for each.

        Args:
            image_concepts: For each image its words, the likeliest first, as [`rank`] or [`read_image_concepts`] give
                them.
            tokenizer (*optional*): A word-level tokenizer whose ids are wanted, as of the captions that share their
                word embeddings with the concepts; words it does not have get its unknown token. Default: the ids of
                `concepts`, with `pad_id` for padding.

        Raises:
            ValueError: If a word is not in `concepts` (without `tokenizer`), or the tokenizer lacks `pad_word` or an
                unknown token.
        """
        rows = [[each.word if isinstance(each, RankedConcept) else each for each in row] for row in image_concepts]
        if tokenizer is None:
            ids = self._ids()
            unknown = sorted({word for row in rows for word in row if word not in ids})
            if unknown:
                raise ValueError(f"Words that are not in `concepts`: {_listed(unknown)}.")
            return self.pad([[ids[word] for word in row] for row in rows])
        vocabulary = tokenizer.get_vocab()
        if self.pad_word not in vocabulary:
            raise ValueError(f"The tokenizer has no {self.pad_word!r}; set `pad_word` to its padding token.")
        if tokenizer.unk_token_id is None:
            raise ValueError("The tokenizer has no unknown token, which stands for the words that it does not have.")
        found = [[vocabulary.get(word, tokenizer.unk_token_id) for word in row] for row in rows]
        return self.pad(found, pad_id=vocabulary[self.pad_word])

    def pad(self, ids: Iterable[Sequence[int]], pad_id: int | None = None) -> BatchFeature:
        r"""The first `num_concepts` ids of each image, rows with fewer filled with `pad_id`.

        Returns:
            `BatchFeature` with `concept_ids` and `concept_mask` of shape `(images, num_concepts)`; 1 = a concept,
            0 = padding.
        """
        rows = [list(row)[: self.num_concepts] for row in ids]
        concept_ids = torch.full((len(rows), self.num_concepts), self.pad_id if pad_id is None else pad_id)
        concept_mask = torch.zeros_like(concept_ids)
        for i, row in enumerate(rows):
            concept_ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
            concept_mask[i, : len(row)] = 1
        return BatchFeature({"concept_ids": concept_ids, "concept_mask": concept_mask})

    def read_image_concepts(self, path: str | os.PathLike) -> dict[int | str, list[str]]:
        r"""Reads `image_concepts.json`, see [`read_image_concepts`]; its words must be in `concepts`, if there are."""
        return read_image_concepts(path, self.concepts or None)

    def write_image_concepts(
        self,
        path: str | os.PathLike,
        image_concepts: Mapping[Any, Sequence[str | RankedConcept]]
        | Iterable[tuple[Any, Sequence[str | RankedConcept]]],
    ) -> None:
        r"""Writes `image_concepts.json`, see [`write_image_concepts`]; words must be in `concepts`, if there are."""
        write_image_concepts(path, image_concepts, self.concepts or None)

    def _ids(self) -> dict[str, int]:
        if not self.concepts:
            raise ValueError("This processor has no `concepts`; give them, or call `build_vocabulary` on captions.")
        return {word: index for index, word in enumerate(self.concepts)}


# image_concepts.json: a list of {"image_id": int, "image_concepts": [words, the likeliest first]}. Public files have
# numbers alone; where photos have names, such as "image3", ours has these.


def read_image_concepts(path: str | os.PathLike, concepts: Iterable[str] | None = None) -> dict[int | str, list[str]]:
    r"""Reads the public `image_concepts.json`: image id -> words, the likeliest first, in the order of the file.

    Args:
        path: File, a JSON list of `{"image_id": int, "image_concepts": [words]}`. Other keys are passed over. An id
            may be a name that is no number, too.
        concepts (*optional*): The vocabulary; default any words.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is not JSON (or cut off), not such a list, an image comes twice, or words are not in `concepts`.
    """
    try:
        entries = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON, or is cut off: {error}.") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} must hold a list of {_ENTRY}, got {_cut(entries)}.")
    pairs = []
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or not entry.keys() >= {"image_id", "image_concepts"}:
            raise ValueError(f"Entry {position} of {path} must be {_ENTRY}, got {_cut(entry)}.")
        pairs.append((entry["image_id"], entry["image_concepts"]))
    return dict(_checked_pairs(pairs, f"of {path}", concepts))


def write_image_concepts(
    path: str | os.PathLike,
    image_concepts: Mapping[Any, Sequence[str | RankedConcept]] | Iterable[tuple[Any, Sequence[str | RankedConcept]]],
    concepts: Iterable[str] | None = None,
) -> None:
    r"""Writes the public `image_concepts.json`, one image a line; aside and renamed, so it is never half there.

    Args:
        path: File; its folder is made if it is not there.
        image_concepts: Image id -> words, the likeliest first; a mapping, or pairs. Words may be [`RankedConcept`]s.
        concepts (*optional*): The vocabulary; default any words.

    Raises:
        ValueError: If an image comes twice, its id is neither a whole number nor a name that is none, or words are not
            in `concepts`.
    """
    pairs = image_concepts.items() if isinstance(image_concepts, Mapping) else image_concepts
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".part-{path.name}")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            separator = "[\n"
            for image_id, words in _checked_pairs(pairs, f"for {path}", concepts):
                file.write(separator + json.dumps({"image_id": image_id, "image_concepts": words}))
                separator = ",\n"
            file.write("[]\n" if separator == "[\n" else "\n]\n")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


_ENTRY = '{"image_id": int, "image_concepts": [words]}'


def _checked_pairs(
    pairs: Iterable[tuple[Any, Any]], where: str, concepts: Iterable[str] | None
) -> Iterator[tuple[int | str, list[str]]]:
    """Ids and words as they go into the file; `where` ends the messages' "entry 3"."""
    known = None if concepts is None else set(concepts)
    positions: dict[int | str, int] = {}
    for position, (image_id, row) in enumerate(pairs):
        entry = f"Entry {position} {where}"
        key = _image_key(image_id)
        if key is None:
            raise ValueError(
                f"{entry} has the `image_id` {_cut(image_id)}, which must be a whole number, or a name that is none."
            )
        if key in positions:
            raise ValueError(f"{entry} has the `image_id` {key} of entry {positions[key]}; give each image once.")
        positions[key] = position
        raw: list[Any] = list(row) if _is_row(row) else [None]
        words = [each.word if isinstance(each, RankedConcept) else each for each in raw]
        if not all(isinstance(word, str) and word for word in words):
            raise ValueError(f"{entry} (image {key}) must have a list of words, got {_cut(row)}.")
        unknown = [] if known is None else [word for word in dict.fromkeys(words) if word not in known]
        if unknown:
            raise ValueError(f"{entry} (image {key}) has words that are not in the vocabulary: {_listed(unknown)}.")
        yield key, words


def _image_key(image_id: Any) -> int | str | None:
    """A number as int, a name that is no number as it is; else `None`, "3" too, so that no image has two ids."""
    if isinstance(image_id, str):
        return None if not image_id or image_id.isdecimal() else image_id
    try:
        return None if isinstance(image_id, bool) else operator.index(image_id)
    except TypeError:
        return None


def _is_row(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | RankedConcept)


def _captions_of(image: int, row: Any) -> list[str]:
    texts = [row] if isinstance(row, str) else list(row) if isinstance(row, Sequence) else [row]
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise ValueError(f"Captions must be a text, or a list of texts, for each image; got {_cut(row)} at {image}.")
    return texts


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"`{name}` must be 1 or more, got {value}.")


def _cut(value: Any, most: int = 100) -> str:
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def _listed(words: Sequence[Any], most: int = 10) -> str:
    return ", ".join(map(repr, words[:most])) + (f" and {len(words) - most} more" if len(words) > most else "")


__all__ = [
    "FUNCTION_WORDS",
    "ConceptProcessor",
    "RankedConcept",
    "caption_words",
    "commonest_words",
    "read_image_concepts",
    "write_image_concepts",
]
