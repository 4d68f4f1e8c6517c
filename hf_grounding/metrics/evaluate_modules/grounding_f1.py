"""`grounding_f1` as an `evaluate.Metric`."""

from typing import Any

import datasets
import evaluate

from hf_grounding.metrics import grounding_f1

DESCRIPTION = "F1_all and F1_loc: do generated captions name the objects of the images, each with the right box?"
INPUTS = """
Args:
    predictions: one dict per image: "classes" (of the object words, in order) and "boxes" (xyxy, one each).
    references: for each image a list of captions, dicts with "tokens", "classes", "indices" and "boxes".
    Further keyword arguments are those of `hf_grounding.metrics.grounding_f1`.
Several processes: gather predictions by `hf_grounding.metrics.gather_by_id` and compute once.
"""


class GroundingF1(evaluate.Metric):
    """`compute(predictions=..., references=..., **switches)`; both are described in `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        names, boxes = datasets.List(datasets.Value("string")), datasets.List(datasets.List(datasets.Value("float64")))
        features = {
            "predictions": {"classes": names, "boxes": boxes},
            "references": datasets.List(
                {"tokens": names, "classes": names, "indices": datasets.List(datasets.Value("int64")), "boxes": boxes}
            ),
        }
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation="", inputs_description=INPUTS, features=datasets.Features(features)
        )

    def _compute(self, predictions: list, references: list, **switches: Any) -> dict[str, Any]:
        return grounding_f1(predictions, references, **switches)
