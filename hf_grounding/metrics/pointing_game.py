"""Pointing game: does the strongest point of a phrase's heatmap lie in one of the phrase's boxes?

Rules of section 4 of "Multi-level Multimodal Common Semantic Space for Image-Phrase Grounding" (CVPR 2019) and of its
released evaluator; where the two differ a switch decides, and the result tells how it stood.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._protocol import BoxLists, Queries, check_choice, read_queries, same_length, summarize

BOX_RULES = ("any", "union")


def pointing_game(
    points: ArrayLike,
    boxes: BoxLists,
    image_sizes: ArrayLike,
    *,
    categories: Sequence[Sequence[str]] | None = None,
    image_ids: Sequence[str | int] | None = None,
    box_rule: str = "any",
    min_box_area: float = 0.0,
    skip_categories: Sequence[str] = ("notvisual",),
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Share of queries whose point lies in a ground-truth box, bounds included: hits / (hits + misses).

    Args:
        points (`(n, 2)`): (x, y) in pixels of the image the boxes are annotated in: the maximum of the heatmap
            resized to that image, the first in row-major order on ties. A row with NaN means "no point": a miss.
        boxes (n lists of xyxy boxes): Ground truth, pixels as annotated; a query with an empty list is skipped.
        image_sizes (`(n, 2)`): (width, height) of each query's image, pixels.
        categories (n lists of names, optional): A query with several counts in each.
        image_ids (n ids, optional): Which queries share an image, for the interval. Without, every query is resampled
            alone, which makes the interval too narrow when images have many phrases.
        box_rule (`"any"` or `"union"`): Hit any of the boxes, or the smallest rectangle around all (an older rule).
        min_box_area (`float`): Skip queries whose boxes' smallest common rectangle covers less than this share of the
            image. The published numbers come from an evaluator that uses 0.05; the paper does not mention it.
        skip_categories (names): Queries with one of these are skipped.
        num_resamples (`int`): Bootstrap samples of images; 0 gives no interval.
        seed (`int`): Seed of the bootstrap.

    Returns:
        `dict`: "pointing_accuracy" in [0, 1], its 95 % "interval" [low, high] (bootstrap over images), "hits",
        "count", "by_category" (name -> pointing_accuracy, interval, count), "skipped" (reason -> count) and
        "protocol" (all switches).

    Raises:
        ValueError: For lists of different lengths, malformed points, boxes or sizes, an unknown `box_rule`, empty
            input, or when every query is skipped.

    Example:

        >>> result = pointing_game([[2, 3], [9, 9]], [[[0, 0, 4, 4]], [[0, 0, 4, 4]]], [[10, 10], [10, 10]])
        >>> result["pointing_accuracy"], result["hits"], result["count"]
        (0.5, 1, 2)
    """
    check_choice("box_rule", box_rule, BOX_RULES)
    queries = read_queries(
        boxes, image_sizes, categories, image_ids, min_box_area=min_box_area, skip_categories=skip_categories
    )
    hits = _hits(queries, points, box_rule)
    return summarize(
        "pointing_accuracy",
        hits.astype(float),
        queries,
        extra={"hits": int(hits[queries.counted].sum())},
        protocol={"box_rule": box_rule, "box_bounds": "inclusive", "ties": "first maximum in row-major order"},
        num_resamples=num_resamples,
        seed=seed,
    )


def pointing_hits(
    points: ArrayLike,
    boxes: BoxLists,
    image_sizes: ArrayLike,
    *,
    categories: Sequence[Sequence[str]] | None = None,
    box_rule: str = "any",
    min_box_area: float = 0.0,
    skip_categories: Sequence[str] = ("notvisual",),
) -> tuple[np.ndarray, np.ndarray]:
    """Which queries are hit and which count for [`pointing_game`], with its arguments: two masks, (n,) each."""
    check_choice("box_rule", box_rule, BOX_RULES)
    queries = read_queries(
        boxes, image_sizes, categories, None, min_box_area=min_box_area, skip_categories=skip_categories
    )
    return _hits(queries, points, box_rule), queries.counted


def _hits(queries: Queries, points: ArrayLike, box_rule: str) -> np.ndarray:
    """(n,) whether the point of each query lies in its boxes."""
    point = np.asarray(points, dtype=float)
    if point.ndim != 2 or point.shape[1] != 2:
        raise ValueError(f"`points` must have shape (n, 2), one (x, y) per query, got {point.shape}.")
    same_length(points=point, boxes=queries.counted)
    if box_rule == "any":
        inside = _contains(queries.boxes, point[queries.owner])  # (num_boxes,)
        return np.bincount(queries.owner, weights=inside, minlength=len(point)) > 0
    return _contains(queries.union, point)


def _contains(boxes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(m,) whether box i (m, 4) holds point i (m, 2), bounds included; never for NaN."""
    return np.all((boxes[:, :2] <= points) & (points <= boxes[:, 2:]), axis=1)
