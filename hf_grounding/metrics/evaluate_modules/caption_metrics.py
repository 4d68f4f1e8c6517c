"""`compute_caption_metrics` as an `evaluate.Metric`."""

from hf_grounding.metrics import compute_caption_metrics
from hf_grounding.metrics.evaluate_modules import _caption_metric


class CaptionMetrics(_caption_metric.CaptionMetric):
    """BLEU, METEOR, ROUGE-L, CIDEr-D and SPICE of one caption per image."""

    function = staticmethod(compute_caption_metrics)
