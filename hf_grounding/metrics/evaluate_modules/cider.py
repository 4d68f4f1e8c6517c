"""`cider` as an `evaluate.Metric`."""

from hf_grounding.metrics import cider
from hf_grounding.metrics.evaluate_modules import _caption_metric


class Cider(_caption_metric.CaptionMetric):
    """CIDEr-D of one caption per image, which the COCO toolkit prints as CIDEr."""

    function = staticmethod(cider)
