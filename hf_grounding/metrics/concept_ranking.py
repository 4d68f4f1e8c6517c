"""Concept ranking: do images that a word describes come before those it does not? Mean average precision over words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def concept_average_precision(
    scores: ArrayLike, labels: ArrayLike, *, concepts: Sequence[str] | None = None
) -> dict[str, Any]:
    r"""Average precision of each word over images, and its mean over words.

    Images are ranked by the word's score; the average precision is the mean, over the images that have the word, of the
    share of such images among all ranked at least as high. Equal scores share one rank. A word that no image has does
    not count.

    Args:
        scores (`(n, c)`): Score of each word in each image; only their order matters.
        labels (`(n, c)`): 1 where people use the word for the image.
        concepts (c names, *optional*): For "by_concept".

    Returns:
        `dict`: "mean_average_precision" in [0, 1]; "chance", that of a random order, about the mean share of images
        that have a word; "by_concept", name -> average precision, without those that do not count; "count", words.

    Raises:
        ValueError: If the shapes differ, a score is NaN, labels are not 0 or 1, or no word is in any image.
    """
    values, truth = np.asarray(scores, dtype=float), np.asarray(labels)
    if values.ndim != 2 or values.shape != truth.shape:
        raise ValueError(
            f"`scores` and `labels` must both be (images, words); got shapes {values.shape} and {truth.shape}."
        )
    if np.isnan(values).any():
        raise ValueError("`scores` has NaN; every image needs a score for every word.")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("`labels` must be 0 or 1.")
    if concepts is not None and len(concepts) != values.shape[1]:
        raise ValueError(f"`concepts` has {len(concepts)} names for {values.shape[1]} words.")
    truth = truth.astype(bool)
    used = np.flatnonzero(truth.any(axis=0))
    if not len(used):
        raise ValueError("There is nothing to score: no word is in any image.")
    precisions = {int(word): _average_precision(values[:, word], truth[:, word]) for word in used}
    names = range(values.shape[1]) if concepts is None else concepts
    return {
        "mean_average_precision": float(np.mean(list(precisions.values()))),
        "chance": float(truth[:, used].mean()),
        "by_concept": {str(names[word]): precision for word, precision in precisions.items()},
        "count": len(used),
    }


def _average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    # The last place of every group of equal scores stands for the group.
    last = np.searchsorted(-ranked, -ranked, side="right") - 1
    hits = truth[order].cumsum()
    return float((hits[last] / (last + 1))[truth[order]].mean())
