"""Grounding metrics in plain numpy, one file each: pointing game, attention correctness, level selection, baselines.

`PointingGame` and `AttentionCorrectness` are the same metrics as `evaluate.Metric` classes; they load on first use,
because `import evaluate` takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .attention_correctness import attention_correctness
from .baselines import center_points, most_confident_region_points, random_points
from .level_selection import level_selection_rates
from .pointing_game import pointing_game

if TYPE_CHECKING:
    from .evaluate_modules.attention_correctness import AttentionCorrectness
    from .evaluate_modules.pointing_game import PointingGame

__all__ = [
    "AttentionCorrectness",
    "PointingGame",
    "attention_correctness",
    "center_points",
    "level_selection_rates",
    "most_confident_region_points",
    "pointing_game",
    "random_points",
]

_EVALUATE_CLASSES = {"AttentionCorrectness": "attention_correctness", "PointingGame": "pointing_game"}


def __getattr__(name: str) -> Any:
    if name in _EVALUATE_CLASSES:
        return getattr(import_module(f"{__name__}.evaluate_modules.{_EVALUATE_CLASSES[name]}"), name)
    raise AttributeError(f"`{__name__}` has no `{name}`; it has {', '.join(__all__)}.")
