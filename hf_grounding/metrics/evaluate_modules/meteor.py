"""`meteor` as an `evaluate.Metric`."""

from hf_grounding.metrics import meteor
from hf_grounding.metrics.evaluate_modules import _caption_metric


class Meteor(_caption_metric.CaptionMetric):
    """METEOR 1.5 of one caption per image, by its Java program."""

    function = staticmethod(meteor)
