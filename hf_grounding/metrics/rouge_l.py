"""How long is the longest common subsequence of a generated caption and its references? ROUGE-L of Lin (2004)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from ._captions import Caption, Tokens, read_captions

BETA = 1.2  # weight of the recall, the toolkit's


def rouge_l(predictions: Sequence[Caption], references: Sequence[Sequence[Caption]]) -> dict[str, Any]:
    r"""ROUGE-L as the COCO toolkit computes it: F-score of the best precision and, apart from it, the best recall.

    Args:
        predictions, references: As in `bleu`.

    Returns:
        `dict` with "rouge_l" in [0, 1], the mean over images, "per_image" and "count".

    Raises:
        ValueError: As in `bleu`.
    """
    hypotheses, read = read_captions(predictions, references)
    scores = [_score(prediction, captions) for prediction, captions in zip(hypotheses, read, strict=True)]
    return {"rouge_l": sum(scores) / len(scores), "per_image": scores, "count": len(scores)}


def _score(prediction: Tokens, references: list[Tokens]) -> float:
    prediction = prediction or [""]  # the toolkit splits an empty text into one empty word
    precision = recall = 0.0
    for reference in references:
        common = _longest_common_subsequence(prediction, reference or [""])
        precision = max(precision, common / len(prediction))
        recall = max(recall, common / max(1, len(reference)))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _longest_common_subsequence(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Its length, by Hyyrö's algorithm: one row of the table is one whole number, a bit for each word of `second`."""
    places: dict[Hashable, int] = {}
    for place, word in enumerate(second):
        places[word] = places.get(word, 0) | 1 << place
    everything = (1 << len(second)) - 1
    row = everything  # a 0 where the length grows
    for word in first:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & everything
    return len(second) - row.bit_count()
