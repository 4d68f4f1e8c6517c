"""Is one model better than another on the same images? Paired bootstrap over images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def mean_statistics(values: ArrayLike) -> np.ndarray:
    """Statistics of a score that is a mean over images: (n, 2) of value and 1, from values (n,)."""
    array = np.asarray(values, dtype=float)
    return np.stack([array, np.ones_like(array)], axis=1)


def mean_score(sums: np.ndarray) -> np.ndarray:
    """Score of sums of `mean_statistics` (..., 2) -> (...)."""
    return sums[..., 0] / sums[..., 1]


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray] = mean_score,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Difference of two models' scores, with its 95 % interval and p.

    Images are drawn with replacement, the same ones for both models, and both are scored on what was drawn. A score
    need not be a mean: it is a function of sums over images, as BLEU and F1 are.

    Args:
        first, second (`np.ndarray` of shape `(n, ...)`): Statistics of each image: what `score` reads once they are
            summed over images.
        score (`Callable`): Sums (resamples, ...) -> scores (resamples,).
        num_resamples (`int`): Bootstrap samples.
        seed (`int`): Of the draws.

    Returns:
        `dict` with "first", "second", "difference" (first minus second), "interval" (percentiles 2.5 and 97.5 of the
        difference), "p" (two-sided: twice the share of samples, counting one more, in which the sign of the difference
        is not the one seen, or it is 0), "num_resamples", "seed".

    Raises:
        ValueError: If the statistics are not of the same images, or there are none.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(
            f"Both models need statistics of the same images, one or more; got {len(first)} and {len(second)}."
        )
    if num_resamples < 1:
        raise ValueError(f"`num_resamples` must be 1 or more, got {num_resamples}.")
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(len(first), size=len(first)) for _ in range(num_resamples)]
    # How often each image is in each sample; the first sample is the images as they are.
    times = np.stack([np.ones(len(first)), *(np.bincount(draw, minlength=len(first)) for draw in drawn)])
    scores = [score(np.tensordot(times, statistics, axes=1)) for statistics in (first, second)]
    difference, *resampled = scores[0] - scores[1]
    lower, upper = np.percentile(resampled, [2.5, 97.5])
    not_above, not_below = np.less_equal(resampled, 0).sum(), np.greater_equal(resampled, 0).sum()
    return {
        "first": float(scores[0][0]),
        "second": float(scores[1][0]),
        "difference": float(difference),
        "interval": [float(lower), float(upper)],
        "p": min(1.0, 2 * (1 + min(int(not_above), int(not_below))) / (1 + num_resamples)),
        "num_resamples": num_resamples,
        "seed": seed,
    }
