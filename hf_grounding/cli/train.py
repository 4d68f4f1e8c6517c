"""`hf-grounding train`: a recipe, with any of its settings overridden."""

import difflib
import logging
from pathlib import Path
from typing import Annotated

import typer

from .common import one_line, print_json, print_table, working

OWN_OPTIONS = ("output_dir", "resume", "json", "help")


def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Name of a recipe (`hf-grounding list`), its YAML file or folder.")],
    output_dir: Annotated[
        Path | None, typer.Option("--output_dir", help="Where all goes; default: runs/<name of the recipe>.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the output folder.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Results as one JSON line.")] = False,
) -> None:
    """Train a recipe and measure the model.

    The output folder gets the model, its results and report.html. After Ctrl-C, --resume goes on where checkpoints end.

    Every setting of the recipe can be overridden: --key value, or --section.key value where a key is in two sections.
    """
    overrides = parse_overrides(context.args)
    with working(logging.INFO):
        from huggingface_hub.errors import StrictDataclassError

        from ..training.recipe import Recipe, find_recipe
        from ..training.report import result_tables
        from ..training.run import train as run

        try:
            settings = Recipe.load(recipe, overrides)
        except (ValueError, FileNotFoundError, StrictDataclassError) as error:
            raise typer.BadParameter(one_line(error)) from error
        if output_dir is None:
            file = find_recipe(recipe)
            output_dir = Path("runs", file.parent.name if file.stem in ("config", "recipe") else file.stem)
        results = run(settings, output_dir, resume=resume)
    if as_json:
        print_json(
            {"output_dir": str(output_dir)} | {name: value for name, value in results.items() if name != "curve"}
        )
        return
    for table in result_tables(results):
        print_table(table)
    typer.echo(f"Model, results and report.html: {output_dir}")


def parse_overrides(arguments: list[str]) -> dict[str, str]:
    r"""`["--seed", "1", "--text.min_count=2"]` -> `{"seed": "1", "text.min_count": "2"}`.

    Raises:
        typer.BadParameter: For a word without `--`, or a key without a value.
    """
    overrides = {}
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--"):
            raise typer.BadParameter(f"'{argument}' belongs to no option; settings are overridden by --key value.")
        key, equals, value = argument[2:].partition("=")
        if not equals:
            following = next(rest, None)
            if following is None or following.startswith("--"):
                nearest = difflib.get_close_matches(key, OWN_OPTIONS, n=1)
                hint = f" Did you mean --{nearest[0]}?" if nearest else ""
                raise typer.BadParameter(f"--{key} has no value; settings are overridden by --key value.{hint}")
            value = following
        overrides[key] = value
    return overrides
