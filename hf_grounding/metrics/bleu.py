"""How many n-grams of the generated captions are in the references? BLEU-1 to 4 of Papineni et al. (ACL 2002)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._captions import Caption, count_ngrams, read_captions

TINY, SMALL = 1e-15, 1e-9  # the toolkit's, against division by zero


def bleu(predictions: Sequence[Caption], references: Sequence[Sequence[Caption]]) -> dict[str, Any]:
    r"""BLEU as the COCO toolkit computes it: clipped n-gram precision of the corpus, times the brevity penalty.

    The length of the references of an image is the one closest to the prediction's, the shorter of two that are
    equally close.

    Args:
        predictions: One caption per image: text, which is tokenised by `ptb_tokenize`, or tokens, taken as they are.
        references: For each image its captions, one or more.

    Returns:
        `dict` with "bleu_1" to "bleu_4" in [0, 1], of the corpus (not a mean over images); "per_image", the same names
        with one value per image, the formula on that image alone; "count", the images.

    Raises:
        ValueError: For empty input, lists of different lengths, images without references, captions that are none.
    """
    hypotheses, read = read_captions(predictions, references)
    num_images = len(hypotheses)
    image = np.concatenate(
        [np.arange(num_images), np.repeat(np.arange(num_images), [len(captions) for captions in read])]
    )
    ngrams, counts = count_ngrams(hypotheses + [caption for captions in read for caption in captions])
    key = image[counts.caption] * np.int64(max(1, len(ngrams))) + counts.ngram
    split = counts.offsets[num_images]
    # The most that one reference of the image has of each n-gram.
    allowed_key, position = np.unique(key[split:], return_inverse=True)
    allowed = np.zeros(len(allowed_key), dtype=np.int64)
    np.maximum.at(allowed, position, counts.count[split:])
    clipped = np.zeros(split, dtype=np.int64)
    found = np.isin(key[:split], allowed_key, assume_unique=True)
    at = np.searchsorted(allowed_key, key[:split][found])
    clipped[found] = np.minimum(counts.count[:split][found], allowed[at])

    correct = np.zeros((num_images, 4), dtype=np.int64)
    np.add.at(correct, (counts.caption[:split], ngrams.length[counts.ngram[:split]]), clipped)
    hypothesis_length = counts.num_words[:num_images]
    guessed = np.maximum(0, hypothesis_length[:, None] - np.arange(4))
    lengths = (
        min((abs(len(caption) - len(hypothesis)), len(caption)) for caption in captions)[1]
        for hypothesis, captions in zip(hypotheses, read, strict=True)
    )
    reference_length = np.fromiter(lengths, np.int64, num_images)

    corpus = _bleu(correct.sum(axis=0), guessed.sum(axis=0), hypothesis_length.sum(), reference_length.sum())
    per_image = _bleu(correct, guessed, hypothesis_length, reference_length)
    return {
        **{f"bleu_{n + 1}": float(corpus[n]) for n in range(4)},
        "per_image": {f"bleu_{n + 1}": per_image[:, n].tolist() for n in range(4)},
        "count": num_images,
    }


def _bleu(correct: np.ndarray, guessed: np.ndarray, length: np.ndarray, reference_length: np.ndarray) -> np.ndarray:
    """(..., 4) scores of sums (..., 4) and lengths (...)."""
    precision = (correct + TINY) / (guessed + SMALL)
    means = precision.cumprod(axis=-1) ** (1 / np.arange(1, 5))
    ratio = np.asarray((length + TINY) / (reference_length + SMALL))
    with np.errstate(over="ignore"):
        penalty = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1)
    return means * penalty[..., None]
