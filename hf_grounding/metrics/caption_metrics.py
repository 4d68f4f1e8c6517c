"""How good are generated captions? All metrics of the COCO toolkit at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from ._captions import Caption, read_captions
from ._protocol import check_choice
from .bleu import bleu
from .cider import DocumentFrequencies, cider
from .meteor import meteor
from .rouge_l import rouge_l
from .spice import spice

METRICS = ("bleu", "meteor", "rouge_l", "cider_d", "spice")


def compute_caption_metrics(
    predictions: Sequence[Caption],
    references: Sequence[Sequence[Caption]],
    *,
    metrics: Sequence[str] = METRICS,
    df: DocumentFrequencies | str | os.PathLike | None = None,
    spice_models: str | os.PathLike | None = None,
) -> dict[str, Any]:
    r"""BLEU, METEOR, ROUGE-L, CIDEr-D and SPICE of one caption per image. Captions are tokenised once.

    Args:
        predictions, references: As in `bleu`.
        metrics (`Sequence[str]`): Of "bleu", "meteor", "rouge_l", "cider_d" and "spice". The second and the last need
            Java and the extra `[coco]`; where these are missing or fail, they are absent from the result, never 0.
        df: Document frequencies for CIDEr-D, see [`CiderScorer`].
        spice_models: Folder of SPICE's models, see `spice`.

    Returns:
        `dict` with "bleu_1" to "bleu_4", "meteor", "rouge_l", "cider_d" and "spice"; "per_image" with a list of values
        for each of these names; "spice_by_category"; "absent", name -> why, of metrics that could not be computed;
        "count", the images.

    Raises:
        ValueError: As in `bleu`, or for an unknown metric.
    """
    if isinstance(metrics, str):
        raise ValueError(f"`metrics` must be a list of names, got the string {metrics!r}; use [...].")
    wanted = list(metrics)
    for name in wanted:
        check_choice("metrics", name, METRICS)
    if not wanted:
        raise ValueError(f"`metrics` is empty; name one or more of {list(METRICS)}.")
    tokens = read_captions(predictions, references)
    functions: dict[str, Callable[[], dict[str, Any]]] = {
        "bleu": lambda: bleu(*tokens),
        "meteor": lambda: meteor(*tokens),
        "rouge_l": lambda: rouge_l(*tokens),
        "cider_d": lambda: cider(*tokens, df=df),
        "spice": lambda: spice(*tokens, models_dir=spice_models),
    }
    result: dict[str, Any] = {}
    per_image: dict[str, list[float]] = {}
    absent: dict[str, str] = {}
    for name in (name for name in METRICS if name in wanted):
        try:
            scores = functions[name]()
        except (RuntimeError, TimeoutError) as error:  # Java is missing, has failed or is too slow: the others count
            absent[name] = " ".join(str(error).split())
            continue
        values = scores.pop("per_image")
        per_image |= values if isinstance(values, dict) else {name: values}
        if "by_category" in scores:
            result[f"{name}_by_category"] = scores.pop("by_category")
        result |= scores
    return result | {"per_image": per_image, "absent": absent, "count": len(tokens[0])}
