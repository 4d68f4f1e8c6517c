"""`hf-grounding list`: what there is, one line each."""

import inspect
from typing import Annotated

import typer

from .common import print_json

# Written out, because importing a model brings torch.
MODELS = {
    "concept_detector": "Noisy-OR network over a photo's map: which words would people use? Learned from captions.",
    "mia": "Captioners over regions and concepts aligned by mutual iterative attention; each word has its region.",
    "ss_attention": "Captioner whose attention also knows where a region is and what class it has; objects have boxes.",
    "mia_vqa": "Answers to questions by Up-Down or BAN, over regions aligned with concepts by mutual attention.",
    "multilevel_grounding": "Multi-level common semantic space: heatmaps for words and phrases, learned from captions.",
}
METRICS = (
    *("pointing_game", "attention_correctness", "level_selection_rates", "concept_average_precision"),
    *("bleu", "meteor", "rouge_l", "cider", "spice", "compute_caption_metrics", "vqa_accuracy", "grounding_f1"),
)


def list_(as_json: Annotated[bool, typer.Option("--json", help="One JSON line.")] = False) -> None:
    """Recipes, models, data sets and metrics, one line each."""
    from .. import metrics
    from ..data import list_datasets
    from ..training.recipe import list_recipes

    # The first line of a metric's file says what it asks.
    lines = {name: inspect.getdoc(inspect.getmodule(getattr(metrics, name))) or "" for name in METRICS}
    everything = {
        "recipes": list_recipes(),
        "models": MODELS,
        "datasets": list_datasets(),
        "metrics": {name: line.partition("\n")[0] for name, line in lines.items()},
    }
    if as_json:
        print_json(everything)
        return
    width = max(len(name) for names in everything.values() for name in names)
    for kind, names in everything.items():
        typer.echo(f"{kind}:")
        for name, line in names.items():
            typer.echo(f"  {name:{width}}  {line}")
