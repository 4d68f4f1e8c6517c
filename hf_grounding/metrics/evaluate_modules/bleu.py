"""`bleu` as an `evaluate.Metric`."""

from hf_grounding.metrics import bleu
from hf_grounding.metrics.evaluate_modules import _caption_metric


class Bleu(_caption_metric.CaptionMetric):
    """BLEU-1 to 4 of one caption per image, as the COCO toolkit computes it."""

    function = staticmethod(bleu)
