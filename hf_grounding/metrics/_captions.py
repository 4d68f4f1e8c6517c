"""What caption metrics share: reading captions, and their n-grams as numbers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import numpy as np

from .ptb_tokenizer import ptb_tokenize

Caption: TypeAlias = str | Sequence[Hashable]  # text, or tokens (words or ids) taken as they are
Tokens: TypeAlias = list[Hashable]


def tokens_of(caption: Caption, where: str) -> Tokens:
    """Tokens of a text by `ptb_tokenize`, or of a list as it is; `ValueError` names `where` if it is neither."""
    if isinstance(caption, str):
        return list(ptb_tokenize(caption))
    if isinstance(caption, list | tuple | np.ndarray):
        return list(caption)
    raise ValueError(f"{where} must be text or a list of tokens, got {caption!r}.")


def read_references(references: Sequence[Sequence[Caption]]) -> list[list[Tokens]]:
    """Tokens of every reference of every image.

    Raises:
        ValueError: If there are no images, or one has no references, or text in place of a list of them.
    """
    if not len(references):
        raise ValueError("There is nothing to score: `references` is empty; expected a list of captions per image.")
    read = []
    for image, captions in enumerate(references):
        if isinstance(captions, str) or not isinstance(captions, Sequence) or not len(captions):
            raise ValueError(
                f"`references` must hold a list of one caption or more per image; image {image} has {captions!r}."
            )
        read.append([tokens_of(caption, f"A reference of image {image}") for caption in captions])
    return read


def read_captions(
    predictions: Sequence[Caption], references: Sequence[Sequence[Caption]]
) -> tuple[list[Tokens], list[list[Tokens]]]:
    """Tokens of one prediction and of all references per image; `ValueError` also if their numbers differ."""
    if len(predictions) != len(references):
        raise ValueError(
            f"Got {len(predictions)} predictions for references of {len(references)} images; give one each."
        )
    read = read_references(references)
    return [tokens_of(caption, f"Prediction {image}") for image, caption in enumerate(predictions)], read


class Ngrams:
    r"""The n-grams of length 1 to 4 of a set of captions, numbered without gaps: words first, then pairs, ...

    A pair is known by the numbers of its two words, three words by those of the first pair and the last word, four by
    those of two pairs. So each is one 64-bit key, exactly, and a sorted array of keys is the whole dictionary.

    Args:
        vocabulary (`dict`): Token -> number.
        keys (list of 3 sorted `np.ndarray`): Keys of the pairs, triples and quadruples.

    Attributes:
        first (`np.ndarray` of shape `(5,)`): First number of each length, and how many n-grams there are.
    """

    def __init__(self, vocabulary: dict[Hashable, int], keys: Sequence[np.ndarray]):
        self.vocabulary = vocabulary
        self.keys = list(keys)
        self.first = np.cumsum([0, len(vocabulary), *map(len, keys)])

    def __len__(self) -> int:
        return int(self.first[-1])

    @property
    def length(self) -> np.ndarray:
        """Words of every n-gram, minus 1: (n-grams,) of 0 to 3."""
        return np.repeat(np.arange(4), np.diff(self.first))

    def find(self, other: Ngrams) -> np.ndarray:
        """Number here of every n-gram of `other`, -1 where it is unknown: (len(other),)."""
        words = np.fromiter((self.vocabulary.get(token, -1) for token in other.vocabulary), np.int64)
        pairs = words  # not read before it is set
        found = [words]
        for length, (keys, known) in enumerate(zip(other.keys, self.keys, strict=True), start=2):
            left, right = (words if length == 2 else pairs), (pairs if length == 4 else words)
            heads, tails = left[keys >> 32], right[keys & 0xFFFFFFFF]
            rank = _rank(known, (heads << 32) | tails)
            rank[(heads < 0) | (tails < 0)] = -1
            if length == 2:
                pairs = rank
            found.append(np.where(rank < 0, -1, rank + self.first[length - 1]))
        return np.concatenate(found)


@dataclass
class NgramCounts:
    """How often captions have n-grams: rows sorted by caption, then n-gram.

    Args:
        offsets (`np.ndarray` of shape `(captions + 1,)`): Rows of caption i are `offsets[i]:offsets[i + 1]`.
        ngram, count (`np.ndarray` of shape `(rows,)`): Number of the n-gram, and how often the caption has it.
        num_words (`np.ndarray` of shape `(captions,)`): Length of each caption.
    """

    offsets: np.ndarray
    ngram: np.ndarray
    count: np.ndarray
    num_words: np.ndarray

    @property
    def caption(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.num_words)), np.diff(self.offsets))

    def documents(self, image: np.ndarray, num_ngrams: int) -> np.ndarray:
        """In how many images each n-gram is, (num_ngrams,), given the image of each caption."""
        in_image = np.unique(image[self.caption] * np.int64(num_ngrams) + self.ngram)
        return np.bincount(in_image % num_ngrams, minlength=num_ngrams)


def count_ngrams(captions: Sequence[Tokens]) -> tuple[Ngrams, NgramCounts]:
    """The n-grams of captions, and how often each has them."""
    vocabulary: dict[Hashable, int] = {}
    words = np.fromiter(
        (vocabulary.setdefault(token, len(vocabulary)) for token in chain.from_iterable(captions)), np.int64
    )
    num_words = np.fromiter(map(len, captions), np.int64, len(captions))
    caption = np.repeat(np.arange(len(captions)), num_words)
    pairs = np.full(len(words), -1)
    keys: list[np.ndarray] = []
    numbers, owners = [words], [caption]
    first = len(vocabulary)
    for length in (2, 3, 4):
        starts = np.flatnonzero(caption[: 1 - length] == caption[length - 1 :])
        heads = words[starts] if length == 2 else pairs[starts]
        tails = pairs[starts + 2] if length == 4 else words[starts + length - 1]
        found, rank = np.unique((heads << 32) | tails, return_inverse=True)
        if length == 2:
            pairs[starts] = rank
        keys.append(found)
        numbers.append(rank + first)
        owners.append(caption[starts])
        first += len(found)
    row, count = np.unique(
        np.concatenate(owners) * np.int64(max(1, first)) + np.concatenate(numbers), return_counts=True
    )
    owner, ngram = np.divmod(row, max(1, first))
    offsets = np.searchsorted(owner, np.arange(len(captions) + 1))
    counts = NgramCounts(offsets, ngram.astype(np.int32), count.astype(np.int32), num_words)
    return Ngrams(vocabulary, keys), counts


def _rank(known: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Position in the sorted `known` of every key, -1 where it is not there."""
    if not len(known):
        return np.full(len(keys), -1)
    position = np.searchsorted(known, keys).clip(max=len(known) - 1)
    return np.where(known[position] == keys, position, -1)
