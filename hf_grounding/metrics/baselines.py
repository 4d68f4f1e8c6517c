"""Points that need no model, to feed to `pointing_game`: what a grounding method must beat.

Points are continuous pixel coordinates, not rounded: the centre of a 5 x 4 image is (2.5, 2).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ._protocol import read_image_sizes, same_length


def random_points(image_sizes: ArrayLike, *, seed: int = 0) -> np.ndarray:
    """One uniform random point (x, y) in each image: (n, 2), pixels, from `image_sizes` (n, 2) = (width, height)."""
    sizes = read_image_sizes(image_sizes)
    return np.random.default_rng(seed).random(sizes.shape) * sizes


def center_points(image_sizes: ArrayLike) -> np.ndarray:
    """Centre (width / 2, height / 2) of each image: (n, 2), pixels, from `image_sizes` (n, 2) = (width, height)."""
    return read_image_sizes(image_sizes) / 2


def most_confident_region_points(
    region_boxes: Sequence[ArrayLike], region_scores: Sequence[ArrayLike], image_indices: ArrayLike
) -> np.ndarray:
    r"""Centre of the most confident detected region of each query's image.

    Args:
        region_boxes (one `(num_regions, 4)` per image): xyxy, pixels of the image the ground truth is annotated in.
        region_scores (one `(num_regions,)` per image): Detector confidence; the first of equal ones wins.
        image_indices (`(n,)`): The image of each query, as position in `region_boxes`.

    Returns:
        `np.ndarray` of shape `(n, 2)`: (x, y); NaN, a miss in `pointing_game`, for images without regions.

    Raises:
        ValueError: If boxes and scores do not belong together, or an index is no image.
    """
    same_length(region_boxes=region_boxes, region_scores=region_scores)
    centers = np.full((len(region_boxes), 2), np.nan)
    for image, (boxes, scores) in enumerate(zip(region_boxes, region_scores, strict=True)):
        box_array, score_array = np.asarray(boxes, dtype=float).reshape(-1, 4), np.asarray(scores, dtype=float)
        if score_array.shape != (len(box_array),):
            raise ValueError(
                f"`region_scores` must be one number per region; image {image} has {len(box_array)} regions and scores "
                f"of shape {score_array.shape}."
            )
        if len(box_array):
            best = box_array[score_array.argmax()]
            centers[image] = (best[:2] + best[2:]) / 2
    indices = np.asarray(image_indices, dtype=int)
    bad = np.flatnonzero((indices < 0) | (indices >= len(centers)))
    if len(bad):
        raise ValueError(
            f"`image_indices` must be positions in `region_boxes` (0 to {len(centers) - 1}); "
            f"row {bad[0]} is {indices[bad[0]]}."
        )
    return centers[indices]
