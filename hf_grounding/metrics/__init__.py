"""Metrics in plain Python and numpy, one file each: of groundings, of captions, of answers.

Each has a class for Hugging Face's `evaluate` too (`_EVALUATE_CLASSES`), which loads on first use, because
`import evaluate` takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._java import JavaMetricUnavailable
from .attention_correctness import attention_correctness
from .baselines import center_points, most_confident_region_points, random_points
from .bleu import bleu
from .caption_baselines import consensus_captions, mean_features, one_against_the_others
from .caption_metrics import compute_caption_metrics
from .cider import CiderScorer, DocumentFrequencies, cider
from .comparison import paired_bootstrap
from .concept_ranking import concept_average_precision
from .distributed import gather_by_id
from .grounding_f1 import grounding_f1, gt_sentence_accuracy
from .level_selection import level_selection_rates
from .meteor import meteor
from .pointing_game import pointing_game
from .ptb_tokenizer import ptb_tokenize
from .rouge_l import rouge_l
from .spice import spice
from .vqa_accuracy import majority_answer, normalize_answer, soft_scores, vqa_accuracy

if TYPE_CHECKING:
    from .evaluate_modules.attention_correctness import AttentionCorrectness
    from .evaluate_modules.bleu import Bleu
    from .evaluate_modules.caption_metrics import CaptionMetrics
    from .evaluate_modules.cider import Cider
    from .evaluate_modules.grounding_f1 import GroundingF1
    from .evaluate_modules.meteor import Meteor
    from .evaluate_modules.pointing_game import PointingGame
    from .evaluate_modules.rouge_l import RougeL
    from .evaluate_modules.spice import Spice
    from .evaluate_modules.vqa_accuracy import VqaAccuracy

__all__ = [
    "AttentionCorrectness",
    "Bleu",
    "CaptionMetrics",
    "Cider",
    "CiderScorer",
    "DocumentFrequencies",
    "GroundingF1",
    "JavaMetricUnavailable",
    "Meteor",
    "PointingGame",
    "RougeL",
    "Spice",
    "VqaAccuracy",
    "attention_correctness",
    "bleu",
    "center_points",
    "cider",
    "compute_caption_metrics",
    "concept_average_precision",
    "consensus_captions",
    "gather_by_id",
    "grounding_f1",
    "gt_sentence_accuracy",
    "level_selection_rates",
    "majority_answer",
    "mean_features",
    "meteor",
    "most_confident_region_points",
    "normalize_answer",
    "one_against_the_others",
    "paired_bootstrap",
    "pointing_game",
    "ptb_tokenize",
    "random_points",
    "rouge_l",
    "soft_scores",
    "spice",
    "vqa_accuracy",
]

_EVALUATE_CLASSES = {
    "AttentionCorrectness": "attention_correctness",
    "Bleu": "bleu",
    "CaptionMetrics": "caption_metrics",
    "Cider": "cider",
    "GroundingF1": "grounding_f1",
    "Meteor": "meteor",
    "PointingGame": "pointing_game",
    "RougeL": "rouge_l",
    "Spice": "spice",
    "VqaAccuracy": "vqa_accuracy",
}


def __getattr__(name: str) -> Any:
    if name in _EVALUATE_CLASSES:
        return getattr(import_module(f"{__name__}.evaluate_modules.{_EVALUATE_CLASSES[name]}"), name)
    raise AttributeError(f"`{__name__}` has no `{name}`; it has {', '.join(__all__)}.")
