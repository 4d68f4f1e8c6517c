"""What caption metrics share: reading captions, and their n-grams as numbers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence, Sized
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import numpy as np

from .ptb_tokenizer import ptb_tokenize

Caption: TypeAlias = str | Sequence[Hashable] | np.ndarray  # text, or tokens (words or ids) taken as they are
Tokens: TypeAlias = list[Hashable]


def tokens_of(caption: Caption, where: str) -> Tokens:
    """Tokens of a text by `ptb_tokenize`, or of a list as it is; `ValueError` names `where` if it is neither."""
    if isinstance(caption, str):
        return list(ptb_tokenize(caption))
    if isinstance(caption, list | tuple | np.ndarray):
        tokens = caption.tolist() if isinstance(caption, np.ndarray) else list(caption)
        if not tokens or not isinstance(tokens[0], list | tuple | np.ndarray):
            return tokens
    raise ValueError(f"{where} must be text or a list of tokens, got {caption!r}.")


def read_references(references: Sequence[Sequence[Caption]]) -> list[list[Tokens]]:
    """Tokens of every reference of every image.

    Raises:
        ValueError: If there are no images, or one has no references, or text in place of a list of them.
    """
    if not isinstance(references, Sized) or isinstance(references, str):
        raise ValueError(f"`references` must hold a list of captions per image, got {references!r}.")
    if not len(references):
        raise ValueError("There is nothing to score: `references` is empty; expected a list of captions per image.")
    read = []
    for image, captions in enumerate(references):
        if isinstance(captions, str) or not isinstance(captions, Sequence | np.ndarray) or not len(captions):
            raise ValueError(
                f"`references` must hold a list of one caption or more per image; image {image} has {captions!r}."
            )
        read.append([tokens_of(caption, f"A reference of image {image}") for caption in captions])
    return read


def read_captions(
    predictions: Sequence[Caption], references: Sequence[Sequence[Caption]]
) -> tuple[list[Tokens], list[list[Tokens]]]:
    """Tokens of one prediction and of all references per image; `ValueError` also if their numbers differ."""
    if not isinstance(predictions, Sized) or isinstance(predictions, str):
        raise ValueError(f"`predictions` must be a list of one caption per image, got {predictions!r}.")
    if not isinstance(references, Sized) or len(predictions) != len(references):
        number = len(references) if isinstance(references, Sized) else repr(references)
        raise ValueError(f"Got {len(predictions)} predictions for references of {number} images; give one each.")
    read = read_references(references)
    return [tokens_of(caption, f"Prediction {image}") for image, caption in enumerate(predictions)], read


class Ngrams:
    r"""The n-grams of length 1 to 4 of a set of captions, numbered without gaps: words first, then pairs, ...

    An n-gram is known by the number of its beginning, all but the last word, and that of the last word. So each is one
    64-bit key, exactly, and a sorted array of keys is the whole dictionary.

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
        found, beginnings = [words], words
        for keys, known, first in zip(other.keys, self.keys, self.first[1:], strict=False):
            heads, tails = beginnings[keys >> 32], words[keys & 0xFFFFFFFF]
            beginnings = np.full(len(keys), -1)
            possible = np.flatnonzero((heads >= 0) & (tails >= 0))  # what begins as nothing here is not here
            if len(known) and len(possible):
                wanted = (heads[possible] << 32) | tails[possible]
                position = np.searchsorted(known, wanted).clip(max=len(known) - 1)
                beginnings[possible] = np.where(known[position] == wanted, position, -1)
            found.append(np.where(beginnings < 0, -1, beginnings + first))
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
    keys: list[np.ndarray] = []
    numbers, owners = [words], [caption]
    first, beginnings = len(vocabulary), words
    for length in (2, 3, 4):
        starts = np.flatnonzero(caption[: 1 - length] == caption[length - 1 :])
        found, rank = np.unique((beginnings[starts] << 32) | words[starts + length - 1], return_inverse=True)
        beginnings = np.full(len(words), -1)
        beginnings[starts] = rank
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
