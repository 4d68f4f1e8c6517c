"""Attention correctness: which share of a phrase's heatmap lies inside the phrase's boxes?

Rules of the released evaluator of "Multi-level Multimodal Common Semantic Space for Image-Phrase Grounding" (CVPR
2019). It resizes every heatmap to its image and sums pixels. Bilinear resizing is linear in the grid and separable,
so the sum over a rectangle is `row_weights @ heatmap @ column_weights`: the same number without the full-size map.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._protocol import BoxLists, read_queries, same_length, summarize


def attention_correctness(
    heatmaps: ArrayLike,
    boxes: BoxLists,
    image_sizes: ArrayLike,
    *,
    categories: Sequence[Sequence[str]] | None = None,
    image_ids: Sequence[str | int] | None = None,
    union_mask: bool = False,
    min_box_area: float = 0.0,
    skip_categories: Sequence[str] = ("notvisual",),
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Mean over queries of the heatmap's mass inside the boxes, as a share of all its mass.

    The heatmap is resized to the image (bilinear, half-pixel centres, no anti-aliasing: torch's
    `align_corners=False`) and divided by its sum. Of a box, corners cut to whole numbers, the pixels `[y1:y2, x1:x2]`
    count, upper bounds excluded; a box without such pixels gives 0. An all-zero heatmap scores 0 overall and is left
    out of the means by category.

    Args:
        heatmaps (`(n, grid_height, grid_width)`): Grid scores, 0 or more.
        boxes (n lists of xyxy boxes): Ground truth, pixels as annotated; a query with an empty list is skipped.
        image_sizes (`(n, 2)`): (width, height) of each query's image, pixels.
        categories, image_ids, min_box_area, skip_categories, num_resamples, seed: As in `pointing_game`.
        union_mask (`bool`): Count pixels in several boxes once. The evaluator counts them once per box, so a query
            can score above 1.

    Returns:
        `dict`: "attention_correctness" and the other keys of `pointing_game`'s result, with "zero_heatmaps" (how many
        counted queries have an all-zero heatmap) in place of "hits".

    Raises:
        ValueError: For lists of different lengths, malformed boxes or sizes, heatmaps with NaN, infinite or negative
            scores, empty input, or when every query is skipped.

    Example:

        >>> heatmap = [[1.0, 0.0], [0.0, 1.0]]
        >>> attention_correctness([heatmap], [[[0, 0, 1, 1]]], [[2, 2]])["attention_correctness"]
        0.5
    """
    queries = read_queries(
        boxes, image_sizes, categories, image_ids, min_box_area=min_box_area, skip_categories=skip_categories
    )
    grids = _read_heatmaps(heatmaps)
    same_length(heatmaps=grids, boxes=boxes)

    scores = np.zeros(len(grids))
    nonzero = np.zeros(len(grids), dtype=bool)
    whole_boxes = np.trunc(queries.boxes).astype(int)
    whole_sizes = queries.image_sizes.astype(int).tolist()
    first_box = np.searchsorted(queries.owner, np.arange(len(grids) + 1))
    for row in np.flatnonzero(queries.counted):
        own_boxes = whole_boxes[first_box[row] : first_box[row + 1]]
        inside, total = _box_mass(grids[row], own_boxes, *whole_sizes[row], union_mask=union_mask)
        if total > 0:
            scores[row], nonzero[row] = inside / total, True

    return summarize(
        "attention_correctness",
        scores,
        queries,
        in_categories=nonzero,
        extra={"zero_heatmaps": int((queries.counted & ~nonzero).sum())},
        protocol={
            "union_mask": union_mask,
            "box_bounds": "lower inclusive, upper exclusive, cut to whole pixels",
            "resize": "bilinear, half-pixel centres, no anti-aliasing",
            "zero_heatmap": "0 overall, left out by category",
        },
        num_resamples=num_resamples,
        seed=seed,
    )


def _box_mass(
    heatmap: np.ndarray, boxes: np.ndarray, width: int, height: int, *, union_mask: bool
) -> tuple[float, float]:
    """Sum inside the boxes (k, 4) and sum of everything, of the heatmap (grid_h, grid_w) resized to the image.

    The box edges cut the image into a few cells, each wholly inside or outside of every box.
    """
    grid_height, grid_width = heatmap.shape
    left, top, right, bottom = np.clip(boxes, 0, [width, height, width, height]).T  # each (k,)
    x_cuts = np.unique([0, width, *left, *right])
    y_cuts = np.unique([0, height, *top, *bottom])
    x_weights = np.diff(_cumulative_weights(width, grid_width)[x_cuts], axis=0)  # (columns of cells, grid_w)
    y_weights = np.diff(_cumulative_weights(height, grid_height)[y_cuts], axis=0)  # (rows of cells, grid_h)
    mass = y_weights @ heatmap @ x_weights.T  # (rows, columns)
    covers_x = (left[:, None] <= x_cuts[:-1]) & (x_cuts[:-1] < right[:, None])  # (k, columns)
    covers_y = (top[:, None] <= y_cuts[:-1]) & (y_cuts[:-1] < bottom[:, None])  # (k, rows)
    times_covered = covers_y.T.astype(float) @ covers_x.astype(float)  # (rows, columns)
    if union_mask:
        times_covered = np.minimum(times_covered, 1)
    return float((mass * times_covered).sum()), float(mass.sum())


@lru_cache(maxsize=1024)
def _cumulative_weights(size: int, grid: int) -> np.ndarray:
    """(size + 1, grid): row k holds what the first k pixels, together, take of each grid cell."""
    source = np.clip((np.arange(size) + 0.5) * grid / size - 0.5, 0, grid - 1)  # half-pixel centres
    low = source.astype(int)
    high = np.minimum(low + 1, grid - 1)
    weights = np.zeros((size + 1, grid))
    pixel = np.arange(1, size + 1)
    weights[pixel, low] += 1 - (source - low)
    weights[pixel, high] += source - low
    cumulative = weights.cumsum(axis=0)
    cumulative.setflags(write=False)  # shared by every caller through the cache
    return cumulative


def _read_heatmaps(heatmaps: ArrayLike) -> np.ndarray:
    """(n, grid_h, grid_w) of floats; `ValueError` names the first row that is no heatmap."""
    try:
        grids = np.asarray(heatmaps, dtype=float)
    except ValueError as error:
        raise ValueError("`heatmaps` must be grids of one size: (n, grid_height, grid_width).") from error
    if grids.ndim != 3:
        raise ValueError(f"`heatmaps` must have shape (n, grid_height, grid_width), got {grids.shape}.")
    bad = np.flatnonzero(~(np.isfinite(grids) & (grids >= 0)).all(axis=(1, 2)))
    if len(bad):
        values = grids[bad[0]]
        kind = "NaN" if np.isnan(values).any() else "infinite" if np.isinf(values).any() else "negative"
        raise ValueError(
            f"`heatmaps` must hold finite scores of 0 or more; row {bad[0]} has {kind} ones. "
            "A query without a heatmap is given as zeros."
        )
    return grids
