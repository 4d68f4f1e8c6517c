"""`compute_caption_metrics` as an `evaluate.Metric`."""

from typing import Any

import datasets
import evaluate

from hf_grounding.metrics import compute_caption_metrics

DESCRIPTION = "BLEU, METEOR, ROUGE-L, CIDEr-D and SPICE of one caption per image."
INPUTS = """
Args:
    predictions: one caption per image.
    references: for each image its captions, one or more.
    Further keyword arguments are those of `hf_grounding.metrics.compute_caption_metrics`.
"""


class CaptionMetrics(evaluate.Metric):
    """`compute(predictions=captions, references=lists_of_captions, **switches)`."""

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation="", inputs_description=INPUTS, features=datasets.Features(features)
        )

    def _compute(self, predictions: list, references: list, **switches: Any) -> dict[str, Any]:
        return compute_caption_metrics(predictions, references, **switches)
