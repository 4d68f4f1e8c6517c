"""The `Regions` of one image: boxes, and what a detector says of each."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

PER_REGION = ("boxes", "region_features", "class_probs", "labels", "scores")


@dataclass
class Regions:
    r"""Detected regions of one image, best first.

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
        ValueError: If arrays are of wrong shapes or differ in their number of regions, a box is not finite xyxy, a
            value is not finite, or a probability or score is not in [0, 1]; names the image and the row.
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

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, rows: Any) -> Regions:
        """The regions of these rows (indices or mask), in this order."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Regions(**values | {name: values[name][rows] for name in PER_REGION if values[name] is not None})
