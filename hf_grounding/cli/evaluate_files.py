"""`hf-grounding evaluate` of result files: captions, answers, or grounded captions, beside their annotations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from .common import print_json, print_table, working

if TYPE_CHECKING:
    from ..visualization import Table


@dataclass
class EvaluatedFiles:
    """Paths of the options of `hf-grounding evaluate`."""

    results: Path
    annotations: Path | None
    questions: Path | None
    against: Path | None
    allow_missing: bool


@dataclass
class Scores:
    """What one result file was worth.

    Args:
        ids: Images or questions, in the order of the statistics.
        result: Everything, ready for JSON.
        tables: The numbers for people.
        statistics: Gives, by name of a score, what `paired_bootstrap` compares: values of each image, and the score of
            their sums if it is not their mean.
    """

    ids: list[str]
    result: dict[str, Any]
    tables: list[Table]
    statistics: Callable[[], dict[str, tuple[Any, Callable[[np.ndarray], np.ndarray] | None]]]


def evaluate_files(files: EvaluatedFiles, settings: Mapping[str, Any], *, as_json: bool) -> None:
    """Scores the results, and those they are compared with; prints tables or JSON."""
    with working():
        first = score(files, files.results, settings)
        result, tables = first.result, first.tables
        if files.against is not None:
            comparison, table = compare(first, score(files, files.against, settings))
            result, tables = result | {"comparison": comparison}, [*tables, table] if comparison else tables
    if as_json:
        print_json(result)
        return
    for table in tables:
        print_table(table)
    for name, reason in result.get("absent", {}).items():
        typer.echo(f"Absent: {name}. {reason}")
    if not tables:
        raise typer.Exit(1)


def score(files: EvaluatedFiles, results: Path, settings: Mapping[str, Any]) -> Scores:
    """By what the file holds."""
    from ..data.result_files import kind_of

    kind = kind_of(results)
    if files.annotations is None:
        raise typer.BadParameter(f"Results in '{results}' are scored against --annotations; name that file.")
    if kind != "captions" and settings:
        raise typer.BadParameter(f"--{min(settings)} is of captions, and '{results}' holds {kind}.")
    if kind == "answers":
        if files.questions is None:
            raise typer.BadParameter(f"'{results}' holds answers; name the file of the questions too (--questions).")
        return score_answers(results, files.questions, files.annotations, allow_missing=files.allow_missing)
    if files.questions is not None:
        raise typer.BadParameter(f"--questions is of answers, and '{results}' holds {kind}.")
    if kind == "captions":
        metrics = settings.get("metrics", ("cider_d", "spice"))
        for option, metric in (("df", "cider_d"), ("spice_models", "spice")):
            if option in settings and metric not in metrics:
                raise typer.BadParameter(f"--{option} is of {metric}, which --metrics leaves out.")
        return score_captions(results, files.annotations, allow_missing=files.allow_missing, **settings)
    return score_grounded_captions(results, files.annotations, allow_missing=files.allow_missing)


def score_captions(results: Path, annotations: Path, *, allow_missing: bool, **settings: Any) -> Scores:
    """Caption metrics of a COCO result file; `settings` are those of `compute_caption_metrics`."""
    from ..data.result_files import read_caption_results
    from ..metrics import compute_caption_metrics
    from ..metrics.bleu import bleu_scores, bleu_statistics
    from ..visualization import Table

    read = read_caption_results(results, annotations, allow_missing=allow_missing)
    result = compute_caption_metrics(read.predictions, read.references, **settings)
    names = [name for name in result["per_image"] if name in result]
    note = f"Images: {result['count']}."
    if "cider_d" in names:
        note += " CIDEr-D is what the COCO toolkit prints as CIDEr."
    scores = [{"metric": name, "score, x 100": _hundred(result[name])} for name in names]
    tables = [Table("Captions", scores, note)] if scores else []
    if "spice_by_category" in result:
        rows = [{"category": name, "F, x 100": _hundred(value)} for name, value in result["spice_by_category"].items()]
        tables.append(Table("SPICE by category", rows, "Mean over the images where it is defined."))

    def statistics() -> dict[str, Any]:
        counts = bleu_statistics(read.predictions, read.references) if "bleu_1" in names else None
        orders = {f"bleu_{order + 1}": order for order in range(4)}
        return {
            name: (counts, lambda sums, order=orders[name]: bleu_scores(sums)[..., order])
            if name in orders
            else (result["per_image"][name], None)
            for name in names
        }

    return Scores(read.image_ids, result, tables, statistics)


def score_answers(results: Path, questions: Path, annotations: Path, *, allow_missing: bool) -> Scores:
    """VQA accuracy of a VQA result file."""
    from ..data.result_files import read_vqa_results
    from ..metrics import vqa_accuracy
    from ..visualization import Table

    read = read_vqa_results(results, questions, annotations, allow_missing=allow_missing)
    result = vqa_accuracy(
        read.predictions, read.answers, answer_types=read.answer_types, question_types=read.question_types
    )
    everything = {"all": {"vqa_accuracy": result["vqa_accuracy"], "count": result["count"]}}
    tables = [
        Table(
            title,
            [
                {"type": name, "accuracy, %": _hundred(row["vqa_accuracy"]), "questions": row["count"]}
                for name, row in rows.items()
            ],
            "Official procedure: the answer against those of people, each left out in turn.",
        )
        for title, rows in (
            ("VQA accuracy by type of answer", everything | result["by_answer_type"]),
            ("VQA accuracy by type of question", result["by_question_type"]),
        )
        if rows
    ]
    return Scores(read.question_ids, result, tables, lambda: {"vqa_accuracy": (result["per_question"], None)})


def score_grounded_captions(results: Path, annotations: Path, *, allow_missing: bool) -> Scores:
    """Grounding F1 of a file of captions with boxes."""
    from ..data.result_files import read_grounded_results
    from ..metrics import grounding_f1
    from ..metrics.grounding_f1 import grounding_f1_scores, grounding_f1_statistics
    from ..visualization import Table

    read = read_grounded_results(results, annotations, allow_missing=allow_missing)
    result = grounding_f1(read.predictions, read.references)
    rows = [
        {"mode": mode, **{name: _hundred(result[f"{name}_{mode}"]) for name in ("f1", "precision", "recall")}}
        for mode in ("all", "loc")
    ]
    without = result["protocol"]["images_without_prediction"]
    note = (
        f"Errors of language count in mode all (F1_all), not in loc. {result['count']} images, {without} of them "
        f"without a prediction; {result['num_classes']} classes; lemmas by {result['protocol']['lemmatizer']}."
    )
    if without > result["count"] / 2:
        note += " Images without a prediction count as not found; --allow_missing leaves them out."

    def statistics() -> dict[str, Any]:
        sums_of = grounding_f1_statistics(read.predictions, read.references)
        return {
            name: (sums_of, lambda sums, name=name: grounding_f1_scores(sums)[name]) for name in ("f1_all", "f1_loc")
        }

    return Scores(read.image_ids, result, [Table("Grounding of generated captions, x 100", rows, note)], statistics)


def compare(first: Scores, second: Scores) -> tuple[dict[str, Any], Table]:
    """Paired bootstrap of every score of two files."""
    from ..metrics import paired_bootstrap
    from ..visualization import Table

    if first.ids != second.ids:
        alone = sorted(set(first.ids) ^ set(second.ids))
        raise ValueError(
            f"The two files must have the same images or questions, and {len(alone)} are in one alone, such as "
            f"{', '.join(alone[:5])}."
        )
    others = second.statistics()
    comparison = {
        name: paired_bootstrap(values, others[name][0], score)
        for name, (values, score) in first.statistics().items()
        if name in others
    }
    rows = [
        {
            "score, x 100": name,
            "first": _hundred(row["first"]),
            "against": _hundred(row["second"]),
            "difference": _hundred(row["difference"]),
            "95 % interval": " – ".join(f"{100 * value:.2f}" for value in row["interval"]),
            "p": f"{row['p']:.3f}",
        }
        for name, row in comparison.items()
    ]
    note = f"Paired bootstrap over {len(first.ids)} images or questions, 1000 resamples."
    if "meteor" in comparison:
        note += " METEOR here is the mean over images, not the value of the corpus."
    return comparison, Table("Comparison", rows, note)


def _hundred(share: float) -> float:
    return round(100 * share, 2)
