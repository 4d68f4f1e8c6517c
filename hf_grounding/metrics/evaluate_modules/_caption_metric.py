"""What the `evaluate.Metric` classes of captions share."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import datasets
import evaluate

INPUTS = """
Args:
    predictions: one caption per image.
    references: for each image its captions, one or more.
    Further keyword arguments are those of the function of the same metric in `hf_grounding.metrics`.
Several processes: gather the captions by `hf_grounding.metrics.gather_by_id`, which leaves out the examples a sampler
repeats, and compute once. `num_process` counts repeated examples twice.
"""


class CaptionMetric(evaluate.Metric):
    """`compute(predictions=captions, references=lists_of_captions, **switches)`.

    A module of a metric imports this one as a module: `evaluate.load` takes the first metric class it finds by name.
    """

    function: ClassVar[Callable[..., dict[str, Any]]]

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
        return evaluate.MetricInfo(
            description=inspect.getdoc(self),
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions: list, references: list, **switches: Any) -> dict[str, Any]:
        return type(self).function(predictions, references, **switches)
