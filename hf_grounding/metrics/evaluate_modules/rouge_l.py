"""`rouge_l` as an `evaluate.Metric`."""

from typing import Any

import datasets
import evaluate

from hf_grounding.metrics import rouge_l

DESCRIPTION = "ROUGE-L of one caption per image, as the COCO toolkit computes it."
INPUTS = """
Args:
    predictions: one caption per image.
    references: for each image its captions, one or more.
    Further keyword arguments are those of `hf_grounding.metrics.rouge_l`.
"""


class RougeL(evaluate.Metric):
    """`compute(predictions=captions, references=lists_of_captions, **switches)`."""

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation="", inputs_description=INPUTS, features=datasets.Features(features)
        )

    def _compute(self, predictions: list, references: list, **switches: Any) -> dict[str, Any]:
        return rouge_l(predictions, references, **switches)
