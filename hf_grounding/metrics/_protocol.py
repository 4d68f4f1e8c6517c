"""What the grounding metrics share: checking the ground truth, choosing the queries that count, averaging.

A query is one phrase of one image; its ground truth is a list of boxes. Rules: "Multi-level Multimodal Common
Semantic Space for Image-Phrase Grounding" (CVPR 2019) and its released evaluator. Anything a number depends on ends
up in the result's "protocol".
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

BoxLists = Sequence[Sequence[Sequence[float]]]


@dataclass(frozen=True)
class Queries:
    """Checked ground truth of n queries, all boxes in one array.

    Attributes:
        boxes (`np.ndarray` of shape `(num_boxes, 4)`): xyxy, pixels.
        owner (`np.ndarray` of shape `(num_boxes,)`): The query each box belongs to, ascending.
        union (`np.ndarray` of shape `(n, 4)`): Smallest rectangle around a query's boxes; (inf, inf, -inf, -inf),
            which holds no point, where there are none.
        image_sizes (`np.ndarray` of shape `(n, 2)`): (width, height), pixels.
        members (`dict`): For each category a `(n,)` mask of its queries; a query may be in several.
        image (`np.ndarray` of shape `(n,)`): Number of the query's image; equal numbers are resampled together.
        counted (`np.ndarray` of shape `(n,)`): True for the queries that enter the score.
        skipped (`dict`): How many queries do not, by reason.
        protocol (`dict`): The switches that led here.
    """

    boxes: np.ndarray
    owner: np.ndarray
    union: np.ndarray
    image_sizes: np.ndarray
    members: dict[str, np.ndarray]
    image: np.ndarray
    counted: np.ndarray
    skipped: dict[str, int]
    protocol: dict[str, Any]


def read_queries(
    boxes: BoxLists,
    image_sizes: ArrayLike,
    categories: Sequence[Sequence[str]] | None,
    image_ids: Sequence[str | int] | None,
    *,
    min_box_area: float,
    skip_categories: Sequence[str],
) -> Queries:
    """Check the ground truth and choose the queries that count.

    A query is skipped if one of its categories is in `skip_categories`, if it has no boxes, or if the rectangle
    around its boxes covers a smaller share of the image than `min_box_area`; the first reason in this order is the
    one reported.

    Raises:
        ValueError: For empty input, lists of different lengths, boxes that are not xyxy, sizes that are not positive,
            or when no query is left.
    """
    n = len(boxes)
    if n == 0:
        raise ValueError("There is nothing to score: `boxes` is empty; expected one list of boxes per query.")
    if not 0 <= min_box_area <= 1:
        raise ValueError(f"`min_box_area` is a share of the image in [0, 1], got {min_box_area}; 5 % is 0.05.")
    if isinstance(skip_categories, str):
        raise ValueError(f"`skip_categories` must be a list of names, got the string {skip_categories!r}; use [...].")
    sizes = read_image_sizes(image_sizes)
    same_length(boxes=boxes, image_sizes=sizes, categories=categories, image_ids=image_ids)
    if image_ids is not None and any(image_id is None for image_id in image_ids):
        raise ValueError("`image_ids` must be the id of each query's image; some are None. Leave the argument out.")
    members = read_categories(categories)

    flat, owner = _flatten_boxes(boxes)
    union = np.concatenate([np.full((n, 2), np.inf), np.full((n, 2), -np.inf)], axis=1)
    np.minimum.at(union[:, :2], owner, flat[:, :2])
    np.maximum.at(union[:, 2:], owner, flat[:, 2:])
    share = (union[:, 2:] - union[:, :2]).prod(axis=1) / sizes.prod(axis=1)

    counted = np.ones(n, dtype=bool)
    skipped = {}
    for reason, rejected in {
        "skipped_category": _any_member(members, skip_categories, n),
        "no_boxes": np.bincount(owner, minlength=n) == 0,
        "small_box": share < min_box_area,
    }.items():
        skipped[reason] = int((counted & rejected).sum())
        counted = counted & ~rejected
    if not counted.any():
        raise ValueError(f"None of the {n} queries is left to score; skipped: {skipped}. Check the filters.")

    protocol = {
        "min_box_area": min_box_area,
        "skip_categories": list(skip_categories),
        "num_queries": n,
        "num_counted": int(counted.sum()),
        "num_skipped": int(n - counted.sum()),
        "resampling_unit": "query" if image_ids is None else "image",
    }
    image = np.arange(n) if image_ids is None else np.unique(np.asarray(image_ids), return_inverse=True)[1]
    return Queries(flat, owner, union, sizes, members, image, counted, skipped, protocol)


def summarize(
    name: str,
    values: np.ndarray,
    queries: Queries,
    *,
    in_categories: np.ndarray | None = None,
    extra: dict[str, Any],
    protocol: dict[str, Any],
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Mean of `values` (n,) over the counted queries, overall and by category, each with a 95 % interval.

    The interval is the percentile bootstrap over images: images are drawn with replacement, with all their queries,
    because phrases of one image share its boxes and are not independent.

    Args:
        in_categories (`np.ndarray` of shape `(n,)`): False takes a query out of the means by category only.
        extra, protocol (`dict`): The metric's own results and switches, to appear beside the common ones.
        num_resamples (`int`): Bootstrap samples; 0 gives `None` for every interval.
    """
    in_categories = queries.counted if in_categories is None else queries.counted & in_categories
    by_name = {category: mask & in_categories for category, mask in queries.members.items()}
    by_name = {category: mask for category, mask in by_name.items() if mask.any()}
    groups = np.stack([queries.counted, *by_name.values()], axis=1).astype(float)  # (n, 1 + categories)

    # Sums and counts of each image are all that a resample needs: it is one product with the draws of every image.
    _, image = np.unique(queries.image[queries.counted], return_inverse=True)
    num_images = int(image.max()) + 1
    sums, counts = np.zeros((2, num_images, groups.shape[1]))
    np.add.at(sums, image, (groups * values[:, None])[queries.counted])
    np.add.at(counts, image, groups[queries.counted])
    intervals: Sequence[list[float] | None] = [None] * groups.shape[1]
    if num_resamples > 0:
        intervals = _bootstrap_intervals(sums, counts, num_resamples, seed)

    totals, means = counts.sum(axis=0), sums.sum(axis=0) / counts.sum(axis=0)
    scores = [
        {name: float(mean), "interval": interval, "count": int(total)}
        for mean, interval, total in zip(means, intervals, totals, strict=True)
    ]
    return {
        **scores[0],
        **extra,
        "by_category": dict(zip(by_name, scores[1:], strict=True)),
        "skipped": queries.skipped,
        "protocol": {**protocol, **queries.protocol, "num_resamples": num_resamples, "seed": seed},
    }


def _bootstrap_intervals(sums: np.ndarray, counts: np.ndarray, num_resamples: int, seed: int) -> list[list[float]]:
    """2.5 and 97.5 percentile of `sums` / `counts` (num_images, groups) over resampled images, for each group."""
    rng = np.random.default_rng(seed)
    num_images = len(sums)
    both = np.concatenate([sums, counts], axis=1)  # (images, 2 * groups)
    drawn = (rng.integers(num_images, size=num_images) for _ in range(num_resamples))
    resampled = np.stack([np.bincount(draw, minlength=num_images) @ both for draw in drawn])  # (resamples, 2 * groups)
    resampled_sums, resampled_counts = np.split(resampled, 2, axis=1)
    # A resample without any query of a rare category says nothing about it.
    means = resampled_sums / np.where(resampled_counts > 0, resampled_counts, np.nan)
    return np.nanpercentile(means, [2.5, 97.5], axis=0).T.tolist()


def read_image_sizes(image_sizes: ArrayLike) -> np.ndarray:
    """(n, 2) positive (width, height), pixels, as float; `ValueError` names the first row that is not."""
    sizes = np.asarray(image_sizes, dtype=float)
    if sizes.ndim != 2 or sizes.shape[1] != 2:
        raise ValueError(f"`image_sizes` must have shape (n, 2), one (width, height) per query, got {sizes.shape}.")
    bad = np.flatnonzero(~(np.isfinite(sizes) & (sizes >= 1)).all(axis=1))
    if len(bad):
        raise ValueError(
            f"`image_sizes` must be positive (width, height) in pixels; row {bad[0]} is {sizes[bad[0]].tolist()}."
        )
    return sizes


def read_categories(categories: Sequence[Sequence[str]] | None) -> dict[str, np.ndarray]:
    """For each category, in alphabetical order, the `(n,)` mask of the rows that have it; no categories, no masks."""
    rows: dict[str, list[int]] = {}
    for row, names in enumerate(() if categories is None else categories):
        if isinstance(names, str):
            raise ValueError(f"`categories` must be one list of names per query; row {row} is the string {names!r}.")
        for name in names:
            rows.setdefault(name, []).append(row)
    masks = {name: np.zeros(len(categories or ()), dtype=bool) for name in sorted(rows)}
    for name, mask in masks.items():
        mask[rows[name]] = True
    return masks


def same_length(**lists: Any) -> None:
    """`ValueError` with every length unless all given lists are equally long; `None` stands for "not given"."""
    lengths = {name: len(values) for name, values in lists.items() if values is not None}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"`{name}` {length}" for name, length in lengths.items())
        raise ValueError(f"Expected one entry per query in every list, got lengths {found}.")


def check_choice(argument: str, value: str, choices: Sequence[str]) -> None:
    """`ValueError` that names the nearest choice unless `value` is one of them."""
    if value not in choices:
        nearest = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.4)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"`{argument}` must be one of {list(choices)}, got {value!r}.{hint}")


def _flatten_boxes(boxes: BoxLists) -> tuple[np.ndarray, np.ndarray]:
    """All boxes (num_boxes, 4) and the query of each (num_boxes,)."""
    arrays = []
    for row, row_boxes in enumerate(boxes):
        try:
            array = np.array(list(row_boxes), dtype=float).reshape(-1, 4) if len(row_boxes) else np.empty((0, 4))
            matches = len(array) == len(row_boxes)
        except (TypeError, ValueError):
            matches = False
        if not matches:
            raise ValueError(f"`boxes` must be one list of xyxy boxes per query; row {row} is {row_boxes!r}.")
        arrays.append(array)
    flat = np.concatenate(arrays)
    owner = np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])
    bad = np.flatnonzero(~(np.isfinite(flat).all(axis=1) & (flat[:, 2:] >= flat[:, :2]).all(axis=1)))
    if len(bad):
        raise ValueError(
            f"`boxes` must be xyxy with x1 <= x2 and y1 <= y2; row {owner[bad[0]]} has {flat[bad[0]].tolist()}. "
            "If the boxes are xywh, add x and y to the last two numbers."
        )
    return flat, owner


def _any_member(members: dict[str, np.ndarray], names: Sequence[str], n: int) -> np.ndarray:
    """(n,) True where a query is in any of the named categories."""
    return np.any([np.zeros(n, dtype=bool), *(members[name] for name in names if name in members)], axis=0)
