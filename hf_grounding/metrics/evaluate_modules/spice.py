"""`spice` as an `evaluate.Metric`."""

from hf_grounding.metrics import spice
from hf_grounding.metrics.evaluate_modules import _caption_metric


class Spice(_caption_metric.CaptionMetric):
    """SPICE of one caption per image, by its Java program."""

    function = staticmethod(spice)
