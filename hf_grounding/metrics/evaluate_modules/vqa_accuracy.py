"""`vqa_accuracy` as an `evaluate.Metric`."""

from typing import Any

import datasets
import evaluate

from hf_grounding.metrics import vqa_accuracy

DESCRIPTION = "Agreement of answers with those of ten people, by the official VQA procedure."
INPUTS = """
Args:
    predictions: one answer per question.
    references: one dict per question: "answers" (list of strings), "answer_type", "question_type" (may be empty).
Several processes: gather predictions by `hf_grounding.metrics.gather_by_id` and compute once.
"""


class VqaAccuracy(evaluate.Metric):
    """`compute(predictions=answers, references=...)`; the references are described in `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Value("string"),
            "references": {
                "answers": datasets.List(datasets.Value("string")),
                "answer_type": datasets.Value("string"),
                "question_type": datasets.Value("string"),
            },
        }
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation="", inputs_description=INPUTS, features=datasets.Features(features)
        )

    def _compute(self, predictions: list, references: list) -> dict[str, Any]:
        return vqa_accuracy(
            predictions,
            [reference["answers"] for reference in references],
            answer_types=[reference["answer_type"] for reference in references],
            question_types=[reference["question_type"] for reference in references],
        )
