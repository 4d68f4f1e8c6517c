"""Captions that need no captioner, to be scored as its captions are: what it must beat, and what people reach.

The consensus of the captions of similar photos is the baseline of "Exploring Nearest Neighbor Approaches for Image
Captioning" (Devlin et al., arXiv 1505.04467).
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from ._captions import Caption
from ._protocol import same_length
from .cider import CiderScorer

NUM_NEIGHBORS = 25

AnyCaption = TypeVar("AnyCaption", bound=Caption)


def mean_features(region_features: Sequence[np.ndarray]) -> np.ndarray:
    r"""One vector for each image: the mean of its regions' features, of length 1.

    Args:
        region_features (one `(num_regions, feature_dim)` per image): One region or more.

    Returns:
        `np.ndarray` of shape `(images, feature_dim)`, float32.

    Raises:
        ValueError: If an image has no regions, or there is none.
    """
    if not len(region_features):
        raise ValueError("There are no images: `region_features` is empty.")
    for image, features in enumerate(region_features):
        if np.ndim(features) != 2 or not len(features):
            raise ValueError(
                f"Image {image} must have features (num_regions, feature_dim) of one region or more, got "
                f"shape {np.shape(features)}."
            )
    means = np.stack([np.mean(features, axis=0, dtype=np.float32) for features in region_features])
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def consensus_captions(
    features: ArrayLike,
    train_features: ArrayLike,
    train_captions: Sequence[Sequence[AnyCaption]],
    *,
    num_neighbors: int = NUM_NEIGHBORS,
    own: ArrayLike | None = None,
) -> list[AnyCaption]:
    r"""For each image the caption that says best what the captions of the most similar training images say.

    All captions of the `num_neighbors` training images of the largest cosine are candidates; the one with the largest
    mean CIDEr-D to the other candidates is given, the first of equal ones. N-grams are weighed by the training images.

    Args:
        features (`(images, feature_dim)`): One vector for each image, such as [`mean_features`].
        train_features (`(train_images, feature_dim)`): Of each training image.
        train_captions: Captions of each training image, one or more.
        num_neighbors (`int`): Fewer where there are fewer training images.
        own (`(images,)`, *optional*): Where the training set holds the image itself, which is then no neighbour; -1
            where it does not.

    Returns:
        A caption of `train_captions` for each image, as it was given.

    Raises:
        ValueError: If features do not fit to one another or to the captions, no neighbour is left, or as
            [`CiderScorer`].
    """
    queries, pool = _unit_rows("features", features), _unit_rows("train_features", train_features)
    same_length(train_features=pool, train_captions=train_captions)
    if queries.shape[1] != pool.shape[1]:
        raise ValueError(f"`features` has {queries.shape[1]} columns and `train_features` {pool.shape[1]}.")
    rows = np.full(len(queries), -1) if own is None else np.asarray(own, dtype=int)
    same_length(features=queries, own=rows)
    cosines = queries @ pool.T
    cosines[rows >= 0, rows[rows >= 0]] = -np.inf
    num_neighbors = min(num_neighbors, len(pool) - int((rows >= 0).any()))
    if num_neighbors < 1:
        raise ValueError("No training image is left to take captions from; give more, or a larger `num_neighbors`.")
    neighbors = np.argsort(-cosines, axis=1, kind="stable")[:, :num_neighbors]
    scorer = CiderScorer(train_captions)
    captions = [caption for row in train_captions for caption in row]
    given = []
    for images in neighbors:
        ranges = [np.arange(scorer.first_caption[image], scorer.first_caption[image + 1]) for image in images]
        candidates = np.concatenate(ranges)
        scores = scorer.between(candidates)
        np.fill_diagonal(scores, 0)
        given.append(captions[candidates[scores.sum(axis=1).argmax()]])
    return given


def one_against_the_others(
    captions: Sequence[Sequence[AnyCaption]],
) -> tuple[list[AnyCaption], list[list[AnyCaption]]]:
    r"""What people reach: the first caption of each image as a prediction, its other captions as references.

    Images of one caption are left out. References are one fewer than those of a captioner, which lowers most scores.

    Returns:
        Predictions and references, as the caption metrics take them.
    """
    several = [list(row) for row in captions if len(row) > 1]
    return [row[0] for row in several], [row[1:] for row in several]


def _unit_rows(name: str, features: ArrayLike) -> np.ndarray:
    array = np.asarray(features, dtype=np.float32)
    if array.ndim != 2 or not len(array):
        raise ValueError(f"`{name}` must be (images, feature_dim) of one image or more, got shape {array.shape}.")
    return array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), np.finfo(np.float32).tiny)
