"""`hf-grounding evaluate`: a trained model measured on a split beside trivial baselines, or files of results."""

import logging
from pathlib import Path
from typing import Annotated, Literal

import typer

from .common import model_folder, print_json, print_table, working
from .evaluate_files import EvaluatedFiles, evaluate_files

MODEL_OPTIONS = (
    *("recipe", "split", "data_dir", "min_box_area", "box_rule", "query_heatmap", "regions", "answers"),
    *("grounded_captions", "report"),
)
FILE_OPTIONS = ("annotations", "questions", "against", "metrics", "df", "spice_models", "allow_missing")


def evaluate(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(help="Output folder of `hf-grounding train`, or a JSON file of results.", exists=False)
    ],
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
    answers: Annotated[
        Path | None,
        typer.Option(dir_okay=False, writable=True, help="Write the answers to questions to this JSON file."),
    ] = None,
    grounded_captions: Annotated[
        Path | None,
        typer.Option(
            "--grounded_captions",
            dir_okay=False,
            writable=True,
            help="Write a captioner's objects and their boxes to this JSON file, of captions written greedily, and "
            "people's to NAME_references.json.",
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(dir_okay=False, writable=True, help="Write pictures and tables to this HTML file.")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Of a result file: what people said, COCO or VQA format.")
    ] = None,
    questions: Annotated[Path | None, typer.Option(dir_okay=False, help="Questions file, for VQA results.")] = None,
    against: Annotated[
        Path | None, typer.Option(dir_okay=False, help="A second result file, compared by a paired bootstrap.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Caption metrics, such as bleu,cider_d; default: all that can be computed.")
    ] = None,
    df: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Document frequencies for CIDEr-D; default: of the annotations.")
    ] = None,
    spice_models: Annotated[
        Path | None, typer.Option("--spice_models", file_okay=False, help="Folder with SPICE's models.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow_missing", help="Score only the images or questions that the results have.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Results as one JSON line.")] = False,
) -> None:
    """Measure a trained model, or files of results.

    A model: pointing game and attention correctness by category, with 95 % intervals and trivial baselines; boxes;
    levels. A concept detector: mean average precision over the commonest content words, beside chance. A captioner:
    BLEU, METEOR, ROUGE-L and CIDEr-D beside captions of similar training photos and one by a person. A question
    answerer: VQA accuracy by answer and question type beside the commonest answers. A file: captions
    (COCO format) by these and SPICE, answers (VQA format, with --questions) by VQA accuracy, captions with boxes by
    grounding F1; two of them compared with --against.
    """
    given = {name for name in MODEL_OPTIONS + FILE_OPTIONS if context.params[name] not in (None, False)}
    is_file = source.is_file() or (not source.exists() and bool(given & set(FILE_OPTIONS)))
    for name in sorted(given & set(MODEL_OPTIONS if is_file else FILE_OPTIONS)):
        raise typer.BadParameter(f"--{name} is of {'models' if is_file else 'result files'}, and '{source}' is none.")
    if is_file:
        files = EvaluatedFiles(source, annotations, questions, against, allow_missing)
        names = None if metrics is None else [name.strip() for name in metrics.split(",")]
        settings = {"metrics": names, "df": df, "spice_models": spice_models}
        evaluate_files(files, {name: value for name, value in settings.items() if value is not None}, as_json=as_json)
        return
    model_folder(source)
    with working(logging.INFO):
        from ..training.report import protocol_of, result_tables
        from ..training.run import evaluate as run

        results = run(
            source,
            recipe=recipe,
            split=split,
            data_dir=data_dir,
            min_box_area=min_box_area,
            box_rule=box_rule,
            query_heatmap=query_heatmap,
            regions=regions,
            answers=answers,
            grounded_captions=grounded_captions,
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
