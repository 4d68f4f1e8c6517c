"""`rouge_l` as an `evaluate.Metric`."""

from hf_grounding.metrics import rouge_l
from hf_grounding.metrics.evaluate_modules import _caption_metric


class RougeL(_caption_metric.CaptionMetric):
    """ROUGE-L of one caption per image, as the COCO toolkit computes it."""

    function = staticmethod(rouge_l)
