"""`hf-grounding`: one file for each command; this one puts them together.

Everything heavy is imported inside the commands, so that `--help` answers at once.
"""

from collections.abc import Callable
from typing import Any

import typer

from .. import __version__
from .answer import answer
from .caption import caption
from .common import guarded
from .convert_features import convert_features
from .evaluate import evaluate
from .extract_concepts import extract_concepts
from .extract_features import extract_features
from .ground import ground
from .inspect import inspect
from .list import list_
from .train import train

app = typer.Typer(
    name="hf-grounding",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # square brackets mark phrases here
    pretty_exceptions_enable=False,
)


def _examples(*lines: str) -> str:
    """What a command's help ends with; \b keeps the line breaks."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _add(function: Callable[..., None], name: str, *examples: str, **settings: Any) -> None:
    app.command(name, epilog=_examples(*examples), **settings)(guarded(function))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback(
    epilog=_examples(
        "hf-grounding train multilevel_scenes",
        'hf-grounding ground photo.jpg "a man in red" --model runs/multilevel_flickr8k --draw out.png',
    )
)
def _app(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_version, is_eager=True),
) -> None:
    """Models that show which place in the picture each word stands for."""


_add(list_, "list", "hf-grounding list", "hf-grounding list --json")
_add(
    train,
    "train",
    "hf-grounding train multilevel_scenes --output_dir runs/demo",
    "hf-grounding train multilevel_flickr8k --learning_rate 2e-3 --supervision boxes",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
_add(
    evaluate,
    "evaluate",
    "hf-grounding evaluate runs/multilevel_flickr8k --split test --min_box_area 0.05 --report report.html",
    "hf-grounding evaluate captions.json --annotations captions_val2014.json --against others.json",
)
_add(
    ground,
    "ground",
    'hf-grounding ground photo.jpg "a man in red" --model runs/multilevel_flickr8k --draw out.png',
    'hf-grounding ground photo.jpg "[a man] rides [a horse]" --model runs/multilevel_flickr8k --json',
)
_add(
    caption,
    "caption",
    "hf-grounding caption photo.jpg --model runs/mia_up_down_flickr8k --draw out.png",
    "hf-grounding caption one.jpg two.jpg --model runs/mia_up_down_flickr8k --num_beams 5 --json",
)
_add(
    answer,
    "answer",
    'hf-grounding answer photo.jpg "How many chairs are there?" --model runs/vqa_ban_daquar --draw out.png',
    'hf-grounding answer photo.jpg "What is on the bed?" "What color is it?" --model runs/vqa_ban_daquar --json',
)
_add(
    extract_features,
    "extract-features",
    "hf-grounding extract-features photos/ --detector PekingU/rtdetr_v2_r18vd --out features",
    "hf-grounding extract-features photos/ --grid 7 --backbone microsoft/resnet-152 --out grid_features",
)
_add(
    extract_concepts,
    "extract-concepts",
    "hf-grounding extract-concepts photos/ --model runs/concepts_flickr8k --out image_concepts.json",
    "hf-grounding extract-concepts 42.jpg 43.jpg --model runs/concepts_flickr8k --out image_concepts.json --top 10",
)
_add(
    convert_features,
    "convert-features",
    "hf-grounding convert-features trainval_36.tsv --from bottom-up-tsv --out features",
    "hf-grounding convert-features train36.hdf5 --from vqa-hdf5 --index train36_imgid2idx.pkl --out features",
)
_add(
    inspect,
    "inspect",
    "hf-grounding inspect features",
    "hf-grounding inspect features --image 1000092795 --photo photos/1000092795.jpg --draw out.png",
)


def main() -> None:
    """The console script. Exit codes: 0, 1 for a run that failed, 2 for wrong arguments, 130 for Ctrl-C."""
    app()
