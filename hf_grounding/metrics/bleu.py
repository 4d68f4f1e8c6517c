"""How many n-grams of the generated captions are in the references? BLEU-1 to 4 of Papineni et al. (ACL 2002)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._captions import Caption, Tokens, count_ngrams, read_captions

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
    statistics = bleu_statistics(predictions, references)
    corpus, per_image = bleu_scores(statistics.sum(axis=0)), bleu_scores(statistics)
    return {
        **{f"bleu_{n + 1}": float(corpus[n]) for n in range(4)},
        "per_image": {f"bleu_{n + 1}": per_image[:, n].tolist() for n in range(4)},
        "count": len(statistics),
    }


def bleu_statistics(predictions: Sequence[Caption], references: Sequence[Sequence[Caption]]) -> np.ndarray:
    r"""What BLEU is made of, so that sums over any images give the BLEU of these images.

    Returns:
        `np.ndarray` of shape `(images, 10)`: n-grams of length 1 to 4 that are right, n-grams that there are, words of
        the prediction, words of the closest reference.
    """
    hypotheses, read = read_captions(predictions, references)
    lengths = np.fromiter(map(len, hypotheses), np.int64, len(hypotheses))
    closest = (
        min((abs(len(caption) - len(hypothesis)), len(caption)) for caption in captions)[1]
        for hypothesis, captions in zip(hypotheses, read, strict=True)
    )
    guessed = np.maximum(0, lengths[:, None] - np.arange(4))
    reference_lengths = np.fromiter(closest, np.int64, len(hypotheses))
    return np.column_stack([_correct(hypotheses, read), guessed, lengths, reference_lengths])


def bleu_scores(statistics: np.ndarray) -> np.ndarray:
    """BLEU-1 to 4, (..., 4), of `bleu_statistics` or sums of them, (..., 10)."""
    precision = (statistics[..., :4] + TINY) / (statistics[..., 4:8] + SMALL)
    means = precision.cumprod(axis=-1) ** (1 / np.arange(1, 5))
    ratio = (statistics[..., 8] + TINY) / (statistics[..., 9] + SMALL)
    with np.errstate(over="ignore"):
        penalty = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1)
    return means * penalty[..., np.newaxis]


def _correct(hypotheses: list[Tokens], references: list[list[Tokens]]) -> np.ndarray:
    """N-grams of each hypothesis that its references have, each at most as often as one of them: (images, 4)."""
    num_images = len(hypotheses)
    numbers = np.arange(num_images)
    image = np.concatenate([numbers, np.repeat(numbers, [len(captions) for captions in references])])
    ngrams, counts = count_ngrams(hypotheses + [caption for captions in references for caption in captions])
    key = image[counts.caption] * np.int64(max(1, len(ngrams))) + counts.ngram
    split = counts.offsets[num_images]  # rows of the hypotheses come first
    allowed_key, position = np.unique(key[split:], return_inverse=True)
    allowed = np.zeros(len(allowed_key), dtype=np.int64)
    np.maximum.at(allowed, position, counts.count[split:])
    found = np.flatnonzero(np.isin(key[:split], allowed_key, assume_unique=True))
    clipped = np.minimum(counts.count[found], allowed[np.searchsorted(allowed_key, key[found])])
    row = counts.caption[found] * 4 + ngrams.length[counts.ngram[found]]
    return np.bincount(row, clipped, minlength=4 * num_images).reshape(num_images, 4)
