"""From a raw photo to its `Regions`: a detector's boxes, chosen, or the cells of a grid; features of a backbone."""

from __future__ import annotations

import difflib
import inspect
import json
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel
from transformers.utils import logging

from .detectors import Candidates, Detector, hash_weights, load_detector
from .regions import Regions, grid_boxes, nms, scale_boxes, select_regions
from .roi_align import roi_mean

logger = logging.get_logger(__name__)

ROI_POINTS = 3  # a region's feature is the mean over 3 x 3 points of its box
LONGEST_SIDE = 6  # times the shorter side of the backbone's pixels; more elongated photos become smaller
SIDE_MULTIPLE = 32  # of the backbone's pixels: what strides divide, so that no cell lies partly outside the photo
# Candidates that the rule of the bottom-up features chooses from, the most confident: it compares all with all.
MAX_CANDIDATES = 300
# What a rule leaves out, unless told otherwise; that of the bottom-up features knows no least score or side.
DEFAULTS: dict[str, dict[str, float]] = {
    "class_agnostic": {"min_score": 0.001, "min_side": 0.02, "nms_threshold": 0.6},
    "per_class": {"min_score": 0.0, "min_side": 0.0, "nms_threshold": 0.3},
}


class RegionExtractor:
    r"""Photo -> [`Regions`].

    Candidates that are too weak or too small are left out, and the best of the others taken. Two rules say which:

    - `"class_agnostic"`: those that overlap a better one go, whatever their class; of the rest at most `num_regions`.
    - `"per_class"`: that of the bottom-up features ([`select_regions`]); exactly `num_regions`, if the detector has so
      many candidates.

    With a `threshold` both take an adaptive number.

    Args:
        detector ([`Detector`]): Boxes and class probabilities.
        backbone (*optional*): A transformers model whose last feature map gives each region its feature, in evaluation
            mode; without, there are no features.
        image_processor (*optional*): Of the backbone, for its mean, standard deviation and range.
        detector_features (`bool`): Features are those of the detector, in place of a backbone's: the states of the
            queries of a transformers detector.
        shorter_side (`int`): Photos are resized so for the backbone, both sides to multiples of 32 and so near to
            their aspect.
        selection (`str`): `"class_agnostic"` or `"per_class"`.
        num_regions (`int`): At most so many.
        threshold (`float`, *optional*): Adaptive number: only regions with this confidence, but at least `min_regions`.
            (The adaptive bottom-up features: 0.2, at least 10, at most 100.)
        min_regions (`int`): See `threshold`.
        min_score (`float`, *optional*): Candidates with less confidence are never taken. Default 0.001, per class 0.
        min_side (`float`, *optional*): Smallest width and height, as share of the photo's. Default 0.02, per class 0.
        nms_threshold (`float`, *optional*): IoU above which the weaker of two regions goes. Default 0.6, per class 0.3.

    Raises:
        ValueError: If a setting is out of its range, or features are to come from both backbone and detector.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        backbone: Any = None,
        image_processor: Any = None,
        detector_features: bool = False,
        shorter_side: int = 288,
        selection: Literal["class_agnostic", "per_class"] = "class_agnostic",
        num_regions: int = 36,
        threshold: float | None = None,
        min_regions: int = 10,
        min_score: float | None = None,
        min_side: float | None = None,
        nms_threshold: float | None = None,
    ):
        _check_counts(num_regions=num_regions, min_regions=min_regions, shorter_side=shorter_side)
        if selection not in DEFAULTS:
            raise ValueError(f"`selection` must be one of {list(DEFAULTS)}, got {selection!r}.")
        given = {"min_score": min_score, "min_side": min_side, "nms_threshold": nms_threshold}
        shares = DEFAULTS[selection] | {name: share for name, share in given.items() if share is not None}
        for name, share in {**shares, "threshold": threshold}.items():
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {share}.")
        if detector_features and backbone is not None:
            raise ValueError("Features come from the `backbone` or from the detector (`detector_features`), not both.")
        self.detector = detector
        self.detector_features = detector_features
        self.backbone: Any = None if backbone is None else backbone.eval()
        self.image_processor = image_processor
        self.choice: dict[str, Any] = {
            "selection": selection,
            **shares,
            "num_regions": num_regions,
            "threshold": threshold,
            "min_regions": min_regions,
        }
        self.shorter_side = shorter_side

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that the regions depend on, ready for JSON; with the weights' hashes as they are when first read."""
        settings: dict[str, Any] = {
            "detector": {"name": self.detector.name, "labels": self.detector.labels, **self.detector.settings},
            "choice": self.choice,
            "detector_features": self.detector_features,
        }
        if self.backbone is not None:
            settings["backbone"] = {
                **_settings(self.backbone, self.image_processor),
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

        Raises:
            ImageError: If the detector does not take a photo, or gives numbers that no `Regions` may have.
            ValueError: If features of the detector are wanted and it gives none.
        """
        sizes = [(photo.height, photo.width) for photo in photos] if image_sizes is None else image_sizes
        settings, results = self.settings, []
        for photo, image_id, size, candidates in zip(photos, image_ids, sizes, self.detector(photos), strict=True):
            rows, scores, labels = self._choose(candidates, photo)
            boxes = candidates.boxes[rows]
            results.append(
                Regions(
                    image_id,
                    (int(size[0]), int(size[1])),
                    scale_boxes(boxes, (photo.height, photo.width), size),
                    region_features=self._features(candidates, rows, photo),
                    class_probs=candidates.class_probs[rows].astype(np.float16),
                    labels=labels,
                    scores=scores.astype(np.float32),
                    detector=self.detector.name,
                    settings=settings,
                )
            )
        return results

    def _choose(self, candidates: Candidates, photo: Image.Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of the candidates taken, best first, their confidence, and the class it is of."""
        choice, boxes, probs = self.choice, candidates.boxes, candidates.class_probs
        scores = probs.max(axis=1)
        sides = (boxes[:, 2:] - boxes[:, :2]) / [photo.width, photo.height]
        possible = np.flatnonzero((scores >= choice["min_score"]) & (sides >= choice["min_side"]).all(axis=1))
        number, threshold = choice["num_regions"], choice["threshold"]
        if choice["selection"] == "per_class":
            best_first = np.argsort(-scores[possible], kind="stable")
            possible = possible[np.sort(best_first[: max(MAX_CANDIDATES, number)])]
            adaptive = {
                "threshold": threshold,
                "min_regions": min(choice["min_regions"], number),
                "max_regions": number,
            }
            rows, confidences, labels = select_regions(
                boxes[possible],
                probs[possible],
                background=None,
                iou_threshold=choice["nms_threshold"],
                **({"num_regions": number} if threshold is None else adaptive),
            )
            return possible[rows], confidences, labels
        kept = possible[nms(boxes[possible], scores[possible], choice["nms_threshold"])]
        if threshold is not None:
            number = min(number, max(choice["min_regions"], int((scores[kept] >= threshold).sum())))
        kept = kept[:number]
        return kept, scores[kept], probs.argmax(axis=1)[kept]

    def _features(self, candidates: Candidates, rows: np.ndarray, photo: Image.Image) -> np.ndarray | None:
        """(num_regions, feature_dim) of the detector, or means over points of each box on the backbone's last map."""
        if self.detector_features:
            if candidates.features is None:
                raise ValueError(
                    f"Detector '{self.detector.name}' gives no features of its own (`detector_features`); take those "
                    "of a `backbone`."
                )
            return candidates.features[rows]
        if self.backbone is None:
            return None
        scale = min(self.shorter_side / min(photo.size), LONGEST_SIDE * self.shorter_side / max(photo.size))
        width, height = (SIDE_MULTIPLE * max(1, round(side * scale / SIDE_MULTIPLE)) for side in photo.size)
        feature_map = _last_map(self.backbone, self.image_processor, [photo], (width, height))
        steps = torch.tensor([feature_map.shape[3] / photo.width, feature_map.shape[2] / photo.height] * 2)
        where = [(torch.from_numpy(candidates.boxes[rows]) * steps).to(feature_map.device)]
        return roi_mean(feature_map, where, output_size=ROI_POINTS, sampling_ratio=1).cpu().numpy()


class GridExtractor:
    r"""Photo -> [`Regions`] that are the cells of a grid laid on it, row by row; called as a [`RegionExtractor`].

    The photo is resized to a square, whatever its aspect; features are the cells of the backbone's last map, averaged
    where it is finer than the grid. A ResNet-152 and a grid of 7 give the 49 rows of Mutual Iterative Attention
    (NeurIPS 2019).

    Args:
        backbone: A transformers model with a feature map, such as ResNet or MobileNetV2, in evaluation mode.
        image_processor: Its image processor, for mean, standard deviation and range.
        grid (`int`): Cells along each side.
        image_size (`int`, *optional*): Side of the square, in pixels. Default: 32 for each cell, the stride of most
            backbones, so that a cell of the map is one of the grid.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(self, backbone: Any, image_processor: Any, *, grid: int = 7, image_size: int | None = None):
        self.grid, self.image_size = grid, 32 * grid if image_size is None else image_size
        _check_counts(grid=self.grid, image_size=self.image_size)
        self.backbone: Any = backbone.eval()
        self.image_processor = image_processor

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that the regions depend on, ready for JSON; with the weights' hashes as they are when first read."""
        backbone = {**_settings(self.backbone, self.image_processor), "image_size": self.image_size}
        return {"grid": self.grid, "backbone": backbone}

    def __call__(
        self,
        photos: Sequence[Image.Image],
        image_ids: Sequence[str],
        image_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Regions]:
        r"""Cells of upright RGB photos; arguments as of [`RegionExtractor`].

        Raises:
            ValueError: If the backbone's map is coarser than the grid.
        """
        sizes = [(photo.height, photo.width) for photo in photos] if image_sizes is None else image_sizes
        feature_map = _last_map(self.backbone, self.image_processor, photos, (self.image_size, self.image_size))
        if min(feature_map.shape[2:]) < self.grid:
            raise ValueError(
                f"The backbone's map has {' x '.join(map(str, feature_map.shape[2:]))} cells, fewer than the grid's "
                f"{self.grid} x {self.grid}, for photos of {self.image_size} pixels a side; take a larger `image_size`."
            )
        cells = torch.nn.functional.adaptive_avg_pool2d(feature_map, self.grid).flatten(2).mT.cpu().numpy()
        settings = self.settings
        return [
            Regions(
                image_id,
                (int(size[0]), int(size[1])),
                grid_boxes(self.grid, self.grid, size),
                region_features=features,
                settings=settings,
            )
            for image_id, size, features in zip(image_ids, sizes, cells, strict=True)
        ]


def load_extractor(
    *,
    detector: str | None = None,
    backbone: str | None = None,
    grid: int | None = None,
    device: Any = "cpu",
    **settings: Any,
) -> RegionExtractor | GridExtractor:
    r"""Extractor of a detector's regions, or of the cells of a grid, its networks loaded by their names.

    Args:
        detector: What [`load_detector`] takes. Give it or `grid`.
        backbone: A transformers vision model for the features, a folder or a name on the Hub.
        grid: Cells along each side.
        device: Where the networks run.
        settings: Further arguments of [`RegionExtractor`] or [`GridExtractor`].

    Raises:
        ValueError: If detector and grid are both there or both absent, a grid has no backbone, there is no such
            setting, or a network cannot be loaded.
    """
    if (detector is None) == (grid is None):
        raise ValueError(
            f"Regions need either a `detector` or a `grid`, got detector={detector!r} and grid={grid!r}. Name a "
            "detector for its regions, or the cells along each side of a grid."
        )
    if grid is not None and backbone is None:
        raise ValueError("A `grid` needs a `backbone`, whose last map gives the features of the cells.")
    kind = RegionExtractor if grid is None else GridExtractor
    known = list(inspect.signature(kind).parameters)
    for name in settings:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean `{nearest[0]}`?" if nearest else ""
            raise ValueError(f"{kind.__name__} has no setting `{name}`.{hint}")
    networks = {} if backbone is None else _loaded("backbone", backbone, _load_backbone, device)
    if grid is not None:
        return GridExtractor(**networks, grid=grid, **settings)
    return RegionExtractor(_loaded("detector", detector, load_detector, device), **networks, **settings)


def _loaded(kind: str, source: Any, load: Callable[[Any, Any], Any], device: Any) -> Any:
    try:
        return load(source, device)
    except Exception as error:  # whatever is missing from it or damaged
        where = "" if os.path.exists(source) else " (it is no folder here, so it must be a name on the Hub)"
        raise ValueError(f"The {kind} '{source}' cannot be loaded{where}: {error}") from error


def load_vision_model(source: str) -> PreTrainedModel:
    """A network that makes features: without the classifier it was trained with, and the report that this is left out.

    Weights that it lacks are warned of.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        network, report = AutoModel.from_pretrained(source, output_loading_info=True)
    finally:
        logging.set_verbosity(verbosity)
    if missing := sorted(report["missing_keys"]):
        logger.warning(f"'{source}' lacks {len(missing)} weights of the network, which are random now: {missing}.")
    return network


def _load_backbone(source: str, device: Any) -> dict[str, Any]:
    return {
        "backbone": load_vision_model(source).to(device),
        "image_processor": AutoImageProcessor.from_pretrained(source),
    }


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"`{name}` must be 1 or more, got {value}.")


def _settings(backbone: Any, image_processor: Any) -> dict[str, Any]:
    config = backbone.config
    return {
        "name": config.name_or_path or config.model_type,
        "weights": hash_weights(backbone),
        "processor": json.loads(image_processor.to_json_string()),
    }


@torch.no_grad()
def _last_map(
    backbone: Any, image_processor: Any, photos: Sequence[Image.Image], size: tuple[int, int]
) -> torch.Tensor:
    """(batch, channels, height, width) float32 of photos resized to (width, height)."""
    # Resized here, because processors differ in how they take a size.
    resized = [photo.resize(size, Image.Resampling.BICUBIC) for photo in photos]
    inputs = image_processor(resized, do_resize=False, do_center_crop=False, return_tensors="pt")
    device = next(backbone.parameters()).device
    # Convolutions on a CPU are much faster with channels last in memory.
    pixels = inputs["pixel_values"].to(device, memory_format=torch.channels_last)
    feature_map = backbone(pixels).last_hidden_state
    if feature_map.ndim != 4:
        raise ValueError(
            f"A backbone must give a map (batch, channels, height, width); {type(backbone).__name__} gives "
            f"{tuple(feature_map.shape)}. Take a convolutional one, such as ResNet or MobileNetV2."
        )
    return feature_map.float()
