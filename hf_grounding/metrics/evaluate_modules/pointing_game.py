"""`pointing_game` as an `evaluate.Metric`."""

from typing import Any

import datasets
import evaluate

from hf_grounding.metrics import pointing_game

DESCRIPTION = "Share of phrases whose point lies in one of their ground-truth boxes."
INPUTS = """
Args:
    predictions: one point [x, y] per phrase, pixels; [nan, nan] = no point, a miss.
    references: one dict per phrase: "boxes" (xyxy, pixels), "image_size" [width, height], "categories" (names, may be
        empty), "image_id" (string; phrases of one image are resampled together).
    Further keyword arguments are those of `hf_grounding.metrics.pointing_game`, e.g. `box_rule="union"`,
    `min_box_area=0.05`.
Several processes: gather predictions by `hf_grounding.metrics.gather_by_id` and compute once.
"""


class PointingGame(evaluate.Metric):
    """`compute(predictions=points, references=..., **switches)`; the references are described in `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.List(datasets.Value("float64")),
            "references": {
                "boxes": datasets.List(datasets.List(datasets.Value("float64"))),
                "image_size": datasets.List(datasets.Value("int64")),
                "categories": datasets.List(datasets.Value("string")),
                "image_id": datasets.Value("string"),
            },
        }
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation="", inputs_description=INPUTS, features=datasets.Features(features)
        )

    def _compute(self, predictions: list, references: list, **switches: Any) -> dict[str, Any]:
        return pointing_game(
            predictions,
            [reference["boxes"] for reference in references],
            [reference["image_size"] for reference in references],
            categories=[reference["categories"] for reference in references],
            image_ids=[reference["image_id"] for reference in references],
            **switches,
        )
