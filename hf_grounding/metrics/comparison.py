"""Is one model better than another on the same images? Paired bootstrap over images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

_BLOCK = 2**23  # numbers of draws that are held at once


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    score: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Difference of two models' scores, with its 95 % interval and p.

    Images are drawn with replacement, the same ones for both models, and both are scored on what was drawn.

    Args:
        first, second (`(n, ...)`): A value for each image, or, with `score`, what it reads once it is summed over
            images: BLEU and F1 are not means but functions of such sums.
        score (`Callable`, *optional*): Sums (resamples, ...) -> scores (resamples,). Default: the mean of the values.
        num_resamples (`int`): Bootstrap samples.
        seed (`int`): Of the draws.

    Returns:
        `dict` with "first", "second", "difference" (first minus second), "interval" (percentiles 2.5 and 97.5 of the
        difference), "p" (two-sided: twice the share of samples, counting one more, in which the sign of the difference
        is not the one seen, or it is 0), "num_resamples", "seed".

    Raises:
        ValueError: If the statistics are not of the same images, there are none, or a score is not finite.
    """
    statistics = [np.asarray(values, dtype=float) for values in (first, second)]
    num_images = len(statistics[0]) if statistics[0].ndim else 0
    if any(array.ndim == 0 or len(array) != num_images for array in statistics) or not num_images:
        shapes = " and ".join(str(array.shape) for array in statistics)
        raise ValueError(f"Both models need values of the same images, one or more; got shapes {shapes}.")
    if num_resamples < 1:
        raise ValueError(f"`num_resamples` must be 1 or more, got {num_resamples}.")
    if score is None:
        if any(array.ndim > 1 for array in statistics):
            raise ValueError("Several numbers for each image need `score`, which makes one score of their sums.")
        score = lambda sums: sums / num_images  # noqa: E731 - a sample has as many images

    scores = [score(array.sum(axis=0)[np.newaxis])[0] for array in statistics]
    rng = np.random.default_rng(seed)
    resampled: list[np.ndarray] = []
    for start in range(0, num_resamples, size := max(1, _BLOCK // num_images)):
        rows = range(min(size, num_resamples - start))
        drawn = (rng.integers(num_images, size=num_images) for _ in rows)
        times = np.stack([np.bincount(draw, minlength=num_images) for draw in drawn]).astype(float)
        block = [score(np.tensordot(times, array, axes=1)) for array in statistics]
        resampled.append(block[0] - block[1])
    differences = np.concatenate(resampled)
    if not (np.isfinite(scores).all() and np.isfinite(differences).all()):
        raise ValueError("A score is not finite; every image needs a number, and no sample may divide by 0.")
    lower, upper = np.percentile(differences, [2.5, 97.5])
    opposite = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return {
        "first": float(scores[0]),
        "second": float(scores[1]),
        "difference": float(scores[0] - scores[1]),
        "interval": [float(lower), float(upper)],
        "p": min(1.0, 2 * (1 + opposite) / (1 + num_resamples)),
        "num_resamples": num_resamples,
        "seed": seed,
    }
