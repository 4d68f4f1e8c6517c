"""The `Grounding` record users get, and how a grid heatmap becomes a point and a box in pixels."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .regions import Regions

BOX_THRESHOLD = 0.3  # share of the peak a cell must reach to belong to the box; the one of the authors' code
BOX_GRID = 64  # side of the grid on which the region around the point is grown


@dataclass
class Grounding:
    r"""A phrase and its place in the photo.

    Args:
        phrase (`str`): The words, as given.
        token_span (`tuple[int, int]`): First and one past the last white-space token of the phrase in its sentence; an
            answer's is that of the whole question.
        box (`tuple` of 4 floats, *optional*): xyxy in pixels of the original image; the rule is [`heatmap_boxes`].
        point (`tuple` of 2 floats, *optional*): (x, y) in pixels of the original image; `None` when nothing in the
            image answers to the phrase, that is the heatmap is 0 everywhere.
        score (`float`): How well the phrase fits the image, in [0, 1]: mean relevance R_t of its words, or R_s. Of
            a word or an answer that a model wrote: the weight of its region.
        heatmap (`np.ndarray` of shape `(grid_height, grid_width)`): Scores of the cells, at least 0, not normalised.
    """

    phrase: str
    token_span: tuple[int, int]
    box: tuple[float, float, float, float] | None
    point: tuple[float, float] | None
    score: float
    heatmap: np.ndarray | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the heatmap, ready for JSON."""
        return {name: getattr(self, name) for name in ("phrase", "token_span", "box", "point", "score")}


@dataclass
class GroundedCaption:
    r"""A written caption, and what each of its words or phrases is about.

    Args:
        caption (`str`): The words.
        groundings (list of [`Grounding`]): Of each word, or of the phrases that were asked for.
        region_weights (`np.ndarray` of shape `(num_words, num_regions)`, *optional*): How much each region counted when
            each word was written; `None` for a decoder without attention to regions.
        regions ([`Regions`], *optional*): Those that the weights are of.
        region_prior (`np.ndarray` of shape `(num_regions,)`, *optional*): How much each region counts whatever the
            word, sums to 1; of a captioner with Spatial-Semantic attention.
        object_classes (`dict`, *optional*): Number of each word that names an object -> the object's class; `None` if
            it is not known which words do.
    """

    caption: str
    groundings: list[Grounding]
    region_weights: np.ndarray | None = field(default=None, repr=False, compare=False)
    regions: Regions | None = field(default=None, repr=False, compare=False)
    region_prior: np.ndarray | None = field(default=None, repr=False, compare=False)
    object_classes: dict[int, str] | None = field(default=None, repr=False, compare=False)

    def objects(self) -> dict[str, list]:
        """Of each word that names an object and has a region: its class, its number in the caption, and the box of the
        region with the largest weight (xyxy, pixels), by the names that evaluators of grounded captions read."""
        found: dict[str, list] = {"clss": [], "idx_in_sent": [], "bbox": []}
        if self.region_weights is not None and self.regions is not None:
            for number, name in sorted((self.object_classes or {}).items()):
                weights = self.region_weights[number]
                if not np.isnan(weights).any():
                    values = (name, number, [float(side) for side in self.regions.boxes[int(weights.argmax())]])
                    for key, value in zip(found, values, strict=True):
                        found[key].append(value)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Caption and groundings, ready for JSON; where it is known which words are objects, these too."""
        told = {"caption": self.caption, "groundings": [grounding.to_dict() for grounding in self.groundings]}
        return told if self.object_classes is None else told | self.objects()


@dataclass
class GroundedAnswer:
    r"""The answers to a question about an image, and the regions that they were read from.

    Args:
        question (`str`): As it was asked.
        answers (list of `tuple[str, float]`): The most probable ones with their probabilities, best first.
        groundings (list of [`Grounding`]): First that of the best answer, with all words of the question as its span;
            then, for a model that attends by words, that of each word of the question.
        region_weights (`np.ndarray` of shape `(num_regions,)`): How much each region counted for the answer; sum 1.
        regions ([`Regions`]): Those that the weights are of.
    """

    question: str
    answers: list[tuple[str, float]]
    groundings: list[Grounding]
    region_weights: np.ndarray = field(repr=False, compare=False)
    regions: Regions = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Question, answers and groundings, ready for JSON."""
        return {
            "question": self.question,
            "answers": [{"answer": answer, "score": probability} for answer, probability in self.answers],
            "groundings": [grounding.to_dict() for grounding in self.groundings],
        }


def best_region(phrase: str, token_span: tuple[int, int], weights: np.ndarray, boxes: np.ndarray) -> Grounding:
    r"""The phrase at the region with the largest weight, which is its score.

    Shapes: `weights` (num_regions,), `boxes` (num_regions, 4), xyxy in pixels.
    """
    best = int(weights.argmax())
    x1, y1, x2, y2 = (float(side) for side in boxes[best])
    return Grounding(phrase, token_span, (x1, y1, x2, y2), ((x1 + x2) / 2, (y1 + y2) / 2), float(weights[best]))


def heatmap_points(heatmaps: torch.Tensor, height: int, width: int) -> torch.Tensor:
    r"""First maximum in row-major order of each heatmap resized to the image (bilinear, half-pixel centres).

    Shapes: `heatmaps` (n, grid_height, grid_width) -> (n, 2), (x, y) in pixels; NaN where a heatmap is 0 everywhere.
    """
    rows, row_weights = _peak_pixels(height, heatmaps.shape[1])
    columns, column_weights = _peak_pixels(width, heatmaps.shape[2])
    resized = row_weights @ heatmaps.cpu().double() @ column_weights.T  # (n, rows, columns)
    index = resized.flatten(1).argmax(dim=1)
    points = torch.stack([columns[index % len(columns)], rows[index // len(columns)]], dim=1).float()
    return points.to(heatmaps.device).masked_fill((heatmaps.flatten(1).amax(dim=1) <= 0)[:, None], torch.nan)


def _peak_pixels(size: int, grid: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of one side where a resized heatmap can have its first maximum, and their weights of the grid's cells.

    Between the centres of neighbouring cells the resized heatmap is bilinear, so its maximum over the pixels there lies
    at their ends: only the pixels beside a centre, and at the border, need be looked at.

    Returns:
        Pixels (k,) in ascending order, and weights (k, grid).
    """
    centers = (torch.arange(grid, dtype=torch.float64) + 0.5) * size / grid - 0.5
    ends = torch.tensor([0, size - 1])
    pixels = torch.cat([ends, centers.floor().long(), centers.ceil().long()]).clamp(0, size - 1).unique()
    source = ((pixels.double() + 0.5) * grid / size - 0.5).clamp(0, grid - 1)
    return pixels, (1 - (source[:, None] - torch.arange(grid)).abs()).clamp(min=0)


def heatmap_boxes(
    heatmaps: torch.Tensor, points: torch.Tensor, height: int, width: int, threshold: float = BOX_THRESHOLD
) -> torch.Tensor:
    r"""Bounding box of the connected region around the point where the heatmap is at least `threshold` times its peak.

    The region is grown (4 neighbours) on the heatmap resized to 64 x 64, so the box is exact to 1/64 of the image side.

    Shapes: `heatmaps` (n, grid_height, grid_width), `points` (n, 2) of [`heatmap_points`] -> (n, 4), xyxy in pixels;
    NaN where the point is.
    """
    cell = points.new_tensor([width / BOX_GRID, height / BOX_GRID])
    seeds = ((points.nan_to_num() + 0.5) / cell).long().clamp(max=BOX_GRID - 1)
    resized = F.interpolate(heatmaps[:, None].float(), size=(BOX_GRID, BOX_GRID), mode="bilinear")
    warm = (resized >= threshold * resized.amax(dim=(-2, -1), keepdim=True))[:, 0]  # (n, 64, 64)
    region, grown = torch.zeros_like(warm), torch.zeros_like(warm)
    grown[torch.arange(len(seeds)), seeds[:, 1], seeds[:, 0]] = True
    while not torch.equal(grown, region):
        region = grown
        for dim in (1, 2):
            grown = _fill_runs(grown, warm, dim)
    columns, rows = region.any(dim=1).float(), region.any(dim=2).float()  # (n, 64)
    low = torch.stack([columns.argmax(dim=1), rows.argmax(dim=1)], dim=1)
    high = BOX_GRID - torch.stack([columns.flip(1).argmax(dim=1), rows.flip(1).argmax(dim=1)], dim=1)
    boxes = torch.cat([low * cell, high * cell], dim=1)
    return boxes.masked_fill(points.isnan().any(dim=1, keepdim=True), torch.nan)


def _fill_runs(region: torch.Tensor, warm: torch.Tensor, dim: int) -> torch.Tensor:
    """`region` grown along `dim` to the whole of every unbroken run of `warm` cells that it touches."""
    # The same number for all cells of a run, and for the cold one before it; only an all-cold line counts further.
    run = (~warm).cumsum(dim).clamp(max=BOX_GRID - 1)
    touched = torch.zeros_like(region, dtype=torch.uint8).scatter_reduce(dim, run, region.byte(), "amax")
    return touched.gather(dim, run).bool() & warm | region


def box_coverage(boxes: torch.Tensor, height: float, width: float, grid_size: int) -> torch.Tensor:
    r"""Share of each grid cell covered by the best-covering box.

    Shapes: `boxes` (n, 4), xyxy in pixels of a height x width image -> (grid, grid).
    """
    edges = torch.arange(grid_size + 1, dtype=torch.float32) / grid_size

    def overlap(low: torch.Tensor, high: torch.Tensor, size: float) -> torch.Tensor:
        shared = torch.minimum(high[:, None] / size, edges[1:]) - torch.maximum(low[:, None] / size, edges[:-1])
        return shared.clamp(min=0) * grid_size  # (n, grid)

    x1, y1, x2, y2 = boxes.float().unbind(dim=1)
    return (overlap(y1, y2, height)[:, :, None] * overlap(x1, x2, width)[:, None, :]).amax(dim=0)
