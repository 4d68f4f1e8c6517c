"""The `Regions` of one image: boxes, and what a detector says of each; box arithmetic, selection, padding. Numpy alone.

Boxes are xyxy in pixels unless a function says otherwise: (x1, y1) is the upper left corner, (x2, y2) the lower right
one, edges lie between pixels, so that a box is x2 - x1 wide and the whole image is (0, 0, width, height). Where another
code counts the pixels at both edges, `plus_one` gives its numbers. Image sizes are (height, width).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

PER_REGION = ("boxes", "region_features", "class_probs", "labels", "scores")
TOLERANCE = 1e-3  # how far probabilities may leave [0, 1]: one step of float16 above 1


class ImageError(ValueError):
    """Something is wrong with one image; all others of the run may be right."""


@dataclass(eq=False)
class Regions:
    r"""Detected regions of one image, best first.

    Everything is checked when a record is made: about 0.03 ms for 36 regions of 2048 features and 1601 classes.

    Args:
        image_id (`str`): Of the image.
        image_size (`tuple[int, int]`): (height, width) of the original image, upright, in pixels.
        boxes (`np.ndarray` of shape `(num_regions, 4)`): xyxy in pixels of the original image.
        region_features (`np.ndarray` of shape `(num_regions, feature_dim)`, *optional*): One vector for each region.
        class_probs (`np.ndarray` of shape `(num_regions, num_object_classes)`, *optional*): Detector posterior; the
            settings say what column 0 is and how it was normalised.
        labels (`np.ndarray` of shape `(num_regions,)`, *optional*): Best class of each region, as column of
            `class_probs`.
        scores (`np.ndarray` of shape `(num_regions,)`, *optional*): Confidence of each region.
        detector (`str`): Name of the detector.
        settings (`dict`): What the regions were made with, ready for JSON.

    Raises:
        ImageError: If arrays are of wrong shapes or differ in their number of regions, a box is not finite xyxy, a
            value is not finite, a probability or score is not in [0, 1], a label is no class, or the image size is not
            positive; names the image and the row.
    """

    image_id: str
    image_size: tuple[int, int]
    boxes: np.ndarray
    region_features: np.ndarray | None = None
    class_probs: np.ndarray | None = None
    labels: np.ndarray | None = None
    scores: np.ndarray | None = None
    detector: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            height, width = (int(side) for side in self.image_size)
            whole = (height, width) == tuple(self.image_size) and min(height, width) > 0
        except (TypeError, ValueError, OverflowError):
            whole = False
        if not whole:
            raise self._error(
                f"`image_size` must be (height, width), two positive whole numbers of pixels, got {self.image_size!r}."
            )
        self.image_size = (height, width)
        for name, shape, kinds in (
            ("boxes", (None, 4), "fiu"),
            ("region_features", (None, None), "fiu"),
            ("class_probs", (None, None), "fiu"),
            ("labels", (None,), "iu"),
            ("scores", (None,), "fiu"),
        ):
            if getattr(self, name) is not None:
                setattr(self, name, self._read(name, shape, kinds))
        self._check_values()

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, rows: Any) -> Regions:
        """The regions of these rows (indices or mask), in this order."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Regions(**values | {name: values[name][rows] for name in PER_REGION if values[name] is not None})

    def class_name(self, row: int) -> str:
        """Name of a region's class by the detector's labels in the settings, else its number, such as "class 7"."""
        if self.labels is None:
            raise self._error("`labels` are missing, so its regions have no class.")
        detector, label = self.settings.get("detector"), int(self.labels[row])
        names = detector.get("labels") if isinstance(detector, dict) else None
        return str(names[label]) if isinstance(names, list | tuple) and label < len(names) else f"class {label}"

    def _error(self, what: str, row: int | None = None) -> ImageError:
        return ImageError(f"Image {self.image_id!r}{'' if row is None else f', region {row}'}: {what}")

    def _read(self, name: str, shape: tuple[int | None, ...], kinds: str) -> np.ndarray:
        """The field as array of this shape, with one row for each box, and of one of these kinds of numbers."""
        try:
            array = np.asarray(getattr(self, name))
        except ValueError as error:  # rows of different lengths
            raise self._error(f"`{name}` is no array: {error}") from error
        fits = array.ndim == len(shape) and all(
            want in (None, got) for want, got in zip(shape, array.shape, strict=True)
        )
        if not fits:
            sides = {"boxes": "4", "region_features": "feature_dim", "class_probs": "num_object_classes"}
            expected = f"(num_regions, {sides[name]})" if name in sides else "(num_regions,)"
            raise self._error(f"`{name}` must have shape {expected}, got {array.shape}.")
        if array.dtype.kind not in kinds:
            raise self._error(f"`{name}` must be {'numbers' if 'f' in kinds else 'integers'}, got {array.dtype}.")
        if len(array) != len(self.boxes):
            raise self._error(f"`{name}` has {len(array)} regions where `boxes` has {len(self.boxes)}.")
        return array

    def _check_values(self) -> None:
        wrong = ~_are_xyxy(self.boxes)
        if wrong.any():
            row = int(wrong.argmax())
            raise self._error(
                f"`boxes` must be finite xyxy with x1 <= x2 and y1 <= y2, got {self.boxes[row].tolist()}. "
                "Boxes in xywh? Use `xywh_to_xyxy` first.",
                row,
            )
        if self.region_features is not None and not _all_finite(self.region_features):
            row, column = np.argwhere(~np.isfinite(self.region_features))[0].tolist()
            value = self.region_features[row, column]
            raise self._error(f"`region_features` must be finite, got {value} in column {column}.", row)
        for name, hint in (("class_probs", " Logits? Apply the detector's softmax or sigmoid first."), ("scores", "")):
            array = getattr(self, name)
            if array is not None and not _all_probabilities(array):
                row, *column = np.argwhere(~((array >= -TOLERANCE) & (array <= 1 + TOLERANCE)))[0].tolist()
                where = f" in column {column[0]}" if column else ""
                raise self._error(f"`{name}` must be in [0, 1], got {array[row][tuple(column)]}{where}.{hint}", row)
        if self.labels is not None:
            last = np.iinfo(np.int64).max if self.class_probs is None else self.class_probs.shape[1] - 1
            wrong = (self.labels < 0) | (self.labels > last)
            if wrong.any():
                row = int(wrong.argmax())
                allowed = "0 or more" if self.class_probs is None else f"a column of `class_probs`, 0 to {last}"
                raise self._error(f"`labels` must be {allowed}, got {self.labels[row]}.", row)


def _all_finite(array: np.ndarray) -> bool:
    if (
        array.dtype == np.float16
    ):  # numpy looks at halves one by one; their exponent bits, all 1 in inf and nan, are fast
        return bool((array.view(np.uint16) & 0x7C00).max(initial=0) < 0x7C00)
    return bool(np.isfinite(array).all())


def _all_probabilities(array: np.ndarray) -> bool:
    """True if everything is in [0, 1] but for `TOLERANCE`."""
    if array.dtype == np.float16 and array.view(np.uint16).max(initial=0) <= 0x3C01:
        return True  # as integers, 0x3C01 is 1 + 1/1024; all that is larger, nan or has a minus is above
    return bool(array.min(initial=0) >= -TOLERANCE and array.max(initial=0) <= 1 + TOLERANCE)


# Boxes


def _numbers(boxes: ArrayLike, name: str = "boxes") -> np.ndarray:
    """`boxes` (..., 4) as float32 or float64."""
    array = np.asarray(boxes)
    if array.ndim == 0 or array.shape[-1] != 4 or array.dtype.kind not in "fiu":
        raise ValueError(f"`{name}` must be numbers of shape (..., 4), got {array.dtype} of shape {array.shape}.")
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def _are_xyxy(boxes: np.ndarray) -> np.ndarray:
    """(n,) True where a box (n, 4) is finite and its corners are in order."""
    return np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] >= boxes[:, :2]).all(axis=1)


def _rows_of_xyxy(boxes: ArrayLike, name: str = "boxes") -> np.ndarray:
    """`boxes` (n, 4) as float64; `ValueError` names the rows that are not xyxy."""
    array = _numbers(boxes, name).astype(np.float64)
    if array.ndim != 2:
        raise ValueError(f"`{name}` must have shape (n, 4), got {array.shape}.")
    wrong = np.flatnonzero(~_are_xyxy(array)).tolist()
    if wrong:
        raise ValueError(
            f"`{name}` must be finite xyxy with x1 <= x2 and y1 <= y2; rows {wrong[:10]} are not, "
            f"e.g. {array[wrong[0]].tolist()}. Boxes in xywh? Use `xywh_to_xyxy` first."
        )
    return array


def _sides(image_size: ArrayLike, boxes: np.ndarray, name: str = "image_size") -> np.ndarray:
    """(width, height, width, height) to divide or multiply `boxes` with, of their dtype."""
    sizes = np.asarray(image_size)
    if sizes.shape not in ((2,), (*boxes.shape[:-2], 2)):
        each = f", or one for each image, shape {(*boxes.shape[:-2], 2)}" if boxes.ndim > 2 else ""
        raise ValueError(f"`{name}` must be (height, width){each}; got shape {sizes.shape}.")
    if sizes.dtype.kind not in "fiu" or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ValueError(f"`{name}` must be positive (height, width) in pixels, got {sizes.tolist()}.")
    sides = sizes[..., [1, 0, 1, 0]].astype(boxes.dtype)
    return sides if sizes.ndim == 1 else sides[..., None, :]


def xywh_to_xyxy(boxes: ArrayLike) -> np.ndarray:
    """Boxes (..., 4) given as upper left corner, width and height."""
    boxes = _numbers(boxes)
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def xyxy_to_xywh(boxes: ArrayLike) -> np.ndarray:
    """Upper left corner, width and height of boxes (..., 4)."""
    boxes = _numbers(boxes)
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def cxcywh_to_xyxy(boxes: ArrayLike, image_size: ArrayLike = (1, 1)) -> np.ndarray:
    """Boxes (..., 4) given as centre, width and height in [0, 1], as detectors of the DETR family do; xyxy in pixels.

    `image_size` is that of one image, or (batch, 2) for boxes (batch, num_regions, 4); 1 x 1 leaves them in [0, 1].
    """
    boxes = _numbers(boxes)
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return np.concatenate([center - half, center + half], axis=-1) * _sides(image_size, boxes)


def normalize_boxes(boxes: ArrayLike, image_size: ArrayLike) -> np.ndarray:
    """Pixels to shares of the image: boxes (..., 4), `image_size` (2,), or (batch, 2) for (batch, num_regions, 4)."""
    boxes = _numbers(boxes)
    return boxes / _sides(image_size, boxes)


def denormalize_boxes(boxes: ArrayLike, image_size: ArrayLike) -> np.ndarray:
    """Shares of the image to pixels: boxes (..., 4), `image_size` (2,), or (batch, 2) for (batch, num_regions, 4)."""
    boxes = _numbers(boxes)
    return boxes * _sides(image_size, boxes)


def scale_boxes(boxes: ArrayLike, from_size: ArrayLike, to_size: ArrayLike) -> np.ndarray:
    """Boxes (..., 4) of an image of one size, at the same places in the same image of another size."""
    boxes = _numbers(boxes)
    return boxes * (_sides(to_size, boxes, "to_size") / _sides(from_size, boxes, "from_size"))


def grid_boxes(rows: int, columns: int, image_size: tuple[int, int]) -> np.ndarray:
    """Boxes (rows * columns, 4) of the cells of a grid laid on an image, row by row."""
    y, x = (np.linspace(0, side, cells + 1) for side, cells in zip(image_size, (rows, columns), strict=True))
    corners = (np.stack(np.meshgrid(x[end], y[end]), axis=-1) for end in (slice(-1), slice(1, None)))
    return np.concatenate([corner.reshape(-1, 2) for corner in corners], axis=1)


def clip_boxes(boxes: ArrayLike, image_size: ArrayLike) -> np.ndarray:
    """The parts of boxes (..., 4) inside the image; of a box outside, the nearest place of the border, without area."""
    boxes = _numbers(boxes)
    return np.clip(boxes, 0, _sides(image_size, boxes))


def box_areas(boxes: ArrayLike, *, plus_one: bool = False) -> np.ndarray:
    """Areas (...) of boxes (..., 4), in square pixels; `plus_one` adds 1 to widths and heights."""
    boxes = _numbers(boxes)
    return (boxes[..., 2:] - boxes[..., :2] + plus_one).prod(axis=-1)


def box_iou(boxes_a: ArrayLike, boxes_b: ArrayLike, *, plus_one: bool = False) -> np.ndarray:
    r"""Intersection over union of every box in `boxes_a` with every box in `boxes_b`.

    Args:
        boxes_a (`np.ndarray` of shape `(n, 4)`): xyxy, any one unit; pixels with `plus_one`.
        boxes_b (`np.ndarray` of shape `(m, 4)`): xyxy, the same unit.
        plus_one (`bool`): Add 1 to widths and heights, of boxes and of overlaps, as codes do that count the pixels at
            both edges (the bottom-up detector, the evaluator of Grounded Video Description).

    Returns:
        `np.ndarray` of shape `(n, m)`, float64, values in [0, 1]. Two boxes without area give 0, not NaN.

    Raises:
        ValueError: If a box is not finite xyxy; names the rows.

    Example:

        >>> box_iou([[0, 0, 2, 2]], [[1, 1, 3, 3]]).round(4)
        array([[0.1429]])
    """
    return _iou(_rows_of_xyxy(boxes_a, "boxes_a"), _rows_of_xyxy(boxes_b, "boxes_b"), plus_one)


def _iou(boxes_a: np.ndarray, boxes_b: np.ndarray, plus_one: bool) -> np.ndarray:
    top_left = np.maximum(boxes_a[:, None, :2], boxes_b[:, :2])  # (n, m, 2)
    bottom_right = np.minimum(boxes_a[:, None, 2:], boxes_b[:, 2:])  # (n, m, 2)
    overlap = (bottom_right - top_left + plus_one).clip(min=0).prod(axis=-1)  # (n, m)
    union = box_areas(boxes_a, plus_one=plus_one)[:, None] + box_areas(boxes_b, plus_one=plus_one) - overlap
    return overlap / np.maximum(union, np.finfo(union.dtype).tiny)


# Selection


def nms(
    boxes: ArrayLike,
    scores: ArrayLike,
    iou_threshold: float,
    classes: ArrayLike | None = None,
    *,
    plus_one: bool = False,
) -> np.ndarray:
    r"""Non-maximum suppression: drops each box that overlaps a better, kept one by more than `iou_threshold`.

    Args:
        boxes (`np.ndarray` of shape `(n, 4)`): xyxy.
        scores (`np.ndarray` of shape `(n,)`): The larger the better; of equal ones the first row is better.
        iou_threshold (`float`): In [0, 1]. An overlap of exactly this much is kept.
        classes (`np.ndarray` of shape `(n,)`, *optional*): A box is dropped for one of its own class only.
        plus_one (`bool`): As in [`box_iou`].

    Returns:
        `np.ndarray` of shape `(num_kept,)`: rows of the boxes kept, best first.

    Raises:
        ValueError: For boxes that are not xyxy, scores that are nan, lists of different lengths, or a threshold outside
            [0, 1].
    """
    boxes = _rows_of_xyxy(boxes)
    scores = _ranked(scores, (len(boxes),))
    _check_share("iou_threshold", iou_threshold)
    if classes is not None:
        classes = np.asarray(classes)
        if classes.shape != (len(boxes),):
            raise ValueError(f"`classes` must have one entry per box, shape {(len(boxes),)}, got {classes.shape}.")
    left = np.argsort(-scores, kind="stable")
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        dropped = _iou(boxes[best, None], boxes[left], plus_one)[0] > iou_threshold
        if classes is not None:
            dropped &= classes[left] == classes[best]
        left = left[~dropped]
    return np.array(kept, dtype=np.intp)


def select_regions(
    boxes: ArrayLike,
    class_probs: ArrayLike,
    *,
    background: int | None,
    num_regions: int | None = None,
    threshold: float = 0.2,
    min_regions: int = 10,
    max_regions: int = 100,
    iou_threshold: float = 0.3,
    plus_one: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""The regions of an image worth describing, by the rule of the bottom-up features.

    Boxes go through non-maximum suppression once for each class, ranked by that class. The confidence of a region is
    its largest probability among the classes in which it survives, 0 if it survives in none. Kept are the `num_regions`
    most confident regions, or (adaptive) those of confidence at least `threshold`, though no fewer than `min_regions`
    and no more than `max_regions`, again by confidence. An image that has fewer regions keeps all.

    Args:
        boxes (`np.ndarray` of shape `(n, 4)`): xyxy, one for all classes of a region (before box regression).
        class_probs (`np.ndarray` of shape `(n, num_object_classes)`): Detector posterior.
        background (`int`, *optional*): Column of `class_probs` that is no object (0 for the bottom-up detector); `None`
            if there is none.
        num_regions (`int`, *optional*): Keep exactly this many; adaptive if left out.
        threshold, min_regions, max_regions: Of the adaptive choice.
        iou_threshold (`float`): Of the suppression.
        plus_one (`bool`): As in [`box_iou`]; the bottom-up detector's own suppression has it.

    Returns:
        Rows kept, best first (of equal confidence the first row), their confidences, and the classes these are of, as
        columns of `class_probs`; each of shape `(num_kept,)`. A region that survives nowhere has its most probable one.

    Raises:
        ValueError: For boxes that are not xyxy, arrays that do not belong together, or numbers that make no sense.
    """
    boxes = _rows_of_xyxy(boxes)
    probs = np.asarray(class_probs)
    if probs.ndim != 2 or len(probs) != len(boxes):
        expected = f"({len(boxes)}, num_object_classes)"
        raise ValueError(f"`class_probs` must have one row per box, shape {expected}, got {probs.shape}.")
    probs = _ranked(probs, probs.shape, "class_probs")
    if not _all_probabilities(probs):
        raise ValueError(
            f"`class_probs` must be in [0, 1], got values from {probs.min()} to {probs.max()}. Logits? Apply the "
            "detector's softmax or sigmoid first."
        )
    num_classes = probs.shape[1]
    if background is not None and not 0 <= background < num_classes:
        raise ValueError(
            f"`background` must be a column of `class_probs`, 0 to {num_classes - 1}, or None, got {background}."
        )
    if num_classes <= (background is not None):
        raise ValueError(f"`class_probs` of shape {probs.shape} has no class of objects.")
    _check_share("iou_threshold", iou_threshold)
    if num_regions is None:
        _check_share("threshold", threshold)
        if not 0 <= min_regions <= max_regions:
            raise ValueError(f"Expected 0 <= `min_regions` <= `max_regions`, got {min_regions} and {max_regions}.")
    elif num_regions < 1:
        raise ValueError(f"`num_regions` must be 1 or more, got {num_regions}.")
    if background is not None:
        probs[:, background] = -np.inf  # it is never the best, and never survives

    surviving = np.where(_survivors(boxes, probs, iou_threshold, plus_one), probs, 0)
    confidences = surviving.max(axis=1)
    labels = np.where(confidences > 0, surviving.argmax(axis=1), probs.argmax(axis=1))
    rows = np.argsort(-confidences, kind="stable")
    if num_regions is None:
        num_regions = int(np.clip((confidences >= threshold).sum(), min_regions, max_regions))
    rows = rows[:num_regions]
    return rows, confidences[rows], labels[rows]


def _survivors(boxes: np.ndarray, probs: np.ndarray, iou_threshold: float, plus_one: bool) -> np.ndarray:
    """(n, classes) True where a box survives the suppression of a class, for all classes of probability above 0.

    All classes go side by side, each from its best box to its worst: a loop over ranks, not over boxes and classes.
    """
    close = _iou(boxes, boxes, plus_one) > iou_threshold  # (n, n)
    probs = probs.T  # (classes, n)
    order = np.argsort(-probs, axis=1, kind="stable")
    alive, survives = probs > 0, np.zeros(probs.shape, dtype=bool)
    for rank in range(alive.sum(axis=1).max(initial=0)):
        best = order[:, rank]
        (live,) = np.nonzero(alive[np.arange(len(best)), best])
        best = best[live]
        survives[live, best] = True
        alive[live] &= ~close[best]
    return survives.T


def _ranked(scores: ArrayLike, shape: tuple[int, ...], name: str = "scores") -> np.ndarray:
    """`scores` of this shape as float64 without nan."""
    array = np.asarray(scores)
    if array.shape != shape:
        raise ValueError(f"`{name}` must have one entry per box, shape {shape}, got {array.shape}.")
    array = array.astype(np.float64)
    if np.isnan(array).any():
        raise ValueError(f"`{name}` must be numbers; row {np.argwhere(np.isnan(array))[0, 0]} has nan.")
    return array


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be in [0, 1], got {value}.")


# For models


def pad_regions(regions: Sequence[Regions], max_regions: int | None = None) -> dict[str, np.ndarray]:
    r"""Regions of several images as one batch, short images padded with zeros behind.

    Args:
        regions (list of [`Regions`]): One for each image; all with features or none, likewise class probabilities.
        max_regions (`int`, *optional*): Images with more keep only this many: those of the highest scores, or the first
            where a record has no scores. The order of the record stays.

    Returns:
        - `boxes` (batch, num_regions, 4) float32: xyxy in pixels
        - `region_features` (batch, num_regions, feature_dim) float32: only if the records have them
        - `class_probs` (batch, num_regions, num_object_classes) float32: only if the records have them
        - `region_mask` (batch, num_regions) int64: 1 = real region, 0 = padding
        - `image_sizes` (batch, 2) int64: (height, width)

        num_regions is that of the image with most: 0 if no image has any.

    Raises:
        ValueError: If there is no image, or what the records hold differs; names the image.
    """
    if not regions:
        raise ValueError("There is nothing to pad: `regions` is empty; expected one `Regions` per image.")
    if max_regions is not None and max_regions < 1:
        raise ValueError(f"`max_regions` must be 1 or more, got {max_regions}.")
    regions = [best_regions(record, max_regions) for record in regions]
    longest = max(len(record) for record in regions)
    batch = {}
    for name in ("boxes", "region_features", "class_probs"):
        dims = [None if getattr(record, name) is None else getattr(record, name).shape[1] for record in regions]
        for record, dim in zip(regions, dims, strict=True):
            if dim != dims[0]:
                raise ValueError(
                    f"All images of a batch must have the same `{name}`: image {regions[0].image_id!r} has "
                    f"{_columns(dims[0])}, image {record.image_id!r} has {_columns(dim)}."
                )
        if dims[0] is not None:
            batch[name] = np.zeros((len(regions), longest, dims[0]), dtype=np.float32)
            for row, record in zip(batch[name], regions, strict=True):
                row[: len(record)] = getattr(record, name)
    lengths = np.array([len(record) for record in regions])
    batch["region_mask"] = (np.arange(longest) < lengths[:, None]).astype(np.int64)
    batch["image_sizes"] = np.array([record.image_size for record in regions], dtype=np.int64)
    return batch


def best_regions(record: Regions, max_regions: int | None) -> Regions:
    """The record with at most so many regions: those of the highest scores, or the first ones; the order stays."""
    if max_regions is None or len(record) <= max_regions:
        return record
    if record.scores is None:
        return record.select(slice(max_regions))
    return record.select(np.sort(np.argsort(-record.scores.astype(np.float64), kind="stable")[:max_regions]))


def check_grid_fits(extraction: Mapping[str, Any] | None, max_regions: int) -> None:
    r"""Refuses an extraction whose grid has more cells than a model reads: none of them is better than another.

    Raises:
        ValueError: If "grid" squared is more than `max_regions`.
    """
    grid = (extraction or {}).get("grid")
    if grid is not None and max_regions < grid**2:
        raise ValueError(
            f"A grid of {grid} has {grid**2} cells, more than the {max_regions} regions that are read of an image "
            f"(`max_regions`). Raise it to {grid**2}, or take a smaller grid."
        )


def _columns(dim: int | None) -> str:
    return "none" if dim is None else f"{dim} columns"
