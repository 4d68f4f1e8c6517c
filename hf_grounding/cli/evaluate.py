"""`hf-grounding evaluate`: a trained model measured on a split, beside trivial baselines."""

import logging
from pathlib import Path
from typing import Annotated, Literal

import typer

from .common import model_folder, print_json, print_table, working


def evaluate(
    model_dir: Annotated[Path, typer.Argument(help="Output folder of `hf-grounding train`.")],
    recipe: Annotated[
        str | None, typer.Option(help="Recipe whose data and protocol to use; default: the one saved with the model.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split, or a slice such as val[:100]; default: the recipe's.")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option("--data_dir", help="Folder of the data set; default: the recipe's.")
    ] = None,
    min_box_area: Annotated[
        float | None,
        typer.Option(
            "--min_box_area", min=0, max=1, help="Leave out phrases whose boxes cover a smaller share of the photo."
        ),
    ] = None,
    box_rule: Annotated[
        Literal["any", "union"] | None, typer.Option("--box_rule", help="A hit: in any box, or in the box around all.")
    ] = None,
    query_heatmap: Annotated[
        Literal["word", "sentence", "auto"] | None,
        typer.Option("--query_heatmap", help="Heatmap of a phrase: of its words, of the sentence, or by its length."),
    ] = None,
    regions: Annotated[
        str | None, typer.Option(help="Detected regions (.npz), for the most confident one as a baseline.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(dir_okay=False, writable=True, help="Write pictures and tables to this HTML file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Results as one JSON line.")] = False,
) -> None:
    """Measure a trained model.

    Pointing game and attention correctness by category, with 95 % intervals and trivial baselines; boxes; levels.
    """
    model_folder(model_dir)
    with working(logging.INFO):
        from ..training.report import protocol_of, result_tables
        from ..training.run import evaluate as run

        results = run(
            model_dir,
            recipe=recipe,
            split=split,
            data_dir=data_dir,
            min_box_area=min_box_area,
            box_rule=box_rule,
            query_heatmap=query_heatmap,
            regions=regions,
            report=report,
        )
    if as_json:
        print_json(results)
        return
    for table in result_tables(results):
        print_table(table)
    typer.echo("Protocol: " + ", ".join(f"{name} {value}" for name, value in protocol_of(results).items()))
    if report is not None:
        typer.echo(f"Report: {report}")
