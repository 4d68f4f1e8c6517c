"""From a raw photo to its `Regions`: a detector's boxes, chosen, with features of a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from .detectors import Candidates, Detector
from .regions import Regions, nms, scale_boxes
from .roi_align import roi_mean

ROI_POINTS = 3  # a region's feature is the mean over 3 x 3 points of its box
SIDE_MULTIPLE = 32  # of the backbone's pixels: what strides divide, so that no cell lies partly outside the photo


class RegionExtractor:
    r"""Photo -> [`Regions`].

    Candidates that are too weak or too small are left out, then those that overlap a better one (class-agnostic
    non-maximum suppression), then all but the best `num_regions`.

    Args:
        detector ([`Detector`]): Boxes and class probabilities.
        backbone (*optional*): A transformers model whose last feature map gives each region its feature, in evaluation
            mode; without, there are no features.
        image_processor (*optional*): Of the backbone, for its mean, standard deviation and range.
        shorter_side (`int`): Photos are resized so for the backbone, both sides to multiples of 32 and so near to
            their aspect.
        num_regions (`int`): At most so many.
        threshold (`float`, *optional*): Adaptive number: only regions with this confidence, but at least `min_regions`.
        min_regions (`int`): See `threshold`.
        min_score (`float`): Candidates with less confidence are never taken.
        min_side (`float`): Smallest width and height, as share of the photo's.
        nms_threshold (`float`): IoU above which the weaker of two regions goes.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        backbone: Any = None,
        image_processor: Any = None,
        shorter_side: int = 288,
        num_regions: int = 36,
        threshold: float | None = None,
        min_regions: int = 10,
        min_score: float = 0.001,
        min_side: float = 0.02,
        nms_threshold: float = 0.6,
    ):
        for name, value in {
            "num_regions": num_regions,
            "min_regions": min_regions,
            "shorter_side": shorter_side,
        }.items():
            if value < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {value}.")
        shares = {"threshold": threshold, "min_score": min_score, "min_side": min_side, "nms_threshold": nms_threshold}
        for name, share in shares.items():
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {share}.")
        self.detector = detector
        self.backbone: Any = None if backbone is None else backbone.eval()
        self.image_processor = image_processor
        self.choice: dict[str, Any] = {**shares, "num_regions": num_regions, "min_regions": min_regions}
        self.shorter_side = shorter_side

    @property
    def settings(self) -> dict[str, Any]:
        """All that the regions depend on, ready for JSON."""
        settings: dict[str, Any] = {
            "detector": {"name": self.detector.name, "labels": self.detector.labels, **self.detector.settings},
            "choice": self.choice,
        }
        if self.backbone is not None:
            config = self.backbone.config
            settings["backbone"] = {
                "name": config.name_or_path or config.model_type,
                "shorter_side": self.shorter_side,
                "points": ROI_POINTS,
            }
        return settings

    def __call__(
        self,
        photos: Sequence[Image.Image],
        image_ids: Sequence[str],
        image_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Regions]:
        r"""Regions of upright RGB photos (`processing.photos.load_photo`).

        Args:
            photos: The photos.
            image_ids: Of each.
            image_sizes (*optional*): (height, width) of the originals, where the photos are smaller copies; boxes are
                in their pixels.
        """
        sizes = [(photo.height, photo.width) for photo in photos] if image_sizes is None else image_sizes
        settings, results = self.settings, []
        for photo, image_id, size, candidates in zip(photos, image_ids, sizes, self.detector(photos), strict=True):
            chosen, scores = self._choose(candidates, photo)
            boxes, probs = candidates.boxes[chosen], candidates.class_probs[chosen]
            results.append(
                Regions(
                    image_id,
                    (int(size[0]), int(size[1])),
                    scale_boxes(boxes, (photo.height, photo.width), size),
                    region_features=None if self.backbone is None else self._features(photo, boxes),
                    class_probs=probs.astype(np.float16),
                    labels=probs.argmax(axis=1) if len(probs) else np.zeros(0, dtype=np.int64),
                    scores=scores.astype(np.float32),
                    detector=self.detector.name,
                    settings=settings,
                )
            )
        return results

    def _choose(self, candidates: Candidates, photo: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the candidates taken, best first, and their confidence."""
        choice = self.choice
        scores = candidates.class_probs.max(axis=1)
        sides = (candidates.boxes[:, 2:] - candidates.boxes[:, :2]) / [photo.width, photo.height]
        possible = np.flatnonzero((scores > choice["min_score"]) & (sides > choice["min_side"]).all(axis=1))
        kept = possible[nms(candidates.boxes[possible], scores[possible], choice["nms_threshold"])]
        number = choice["num_regions"]
        if choice["threshold"] is not None:
            number = min(number, max(choice["min_regions"], int((scores[kept] >= choice["threshold"]).sum())))
        return kept[:number], scores[kept[:number]]

    @torch.no_grad()
    def _features(self, photo: Image.Image, boxes: np.ndarray) -> np.ndarray:
        """(num_regions, channels): mean over points of each box on the backbone's last map."""
        scale = self.shorter_side / min(photo.size) / SIDE_MULTIPLE
        width, height = (SIDE_MULTIPLE * max(1, round(side * scale)) for side in photo.size)
        # Resized here, because processors differ in how they take a size.
        resized = photo.resize((width, height), Image.Resampling.BICUBIC)
        inputs = self.image_processor(resized, do_resize=False, do_center_crop=False, return_tensors="pt")
        device = next(self.backbone.parameters()).device
        feature_map = self.backbone(inputs["pixel_values"].to(device)).last_hidden_state.float()
        steps = torch.tensor([feature_map.shape[3] / photo.width, feature_map.shape[2] / photo.height] * 2)
        where = [(torch.from_numpy(boxes) * steps).to(device)]
        return roi_mean(feature_map, where, output_size=ROI_POINTS, sampling_ratio=1).cpu().numpy()
