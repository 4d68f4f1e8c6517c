"""What question answerers answer: answers to a split's questions, accuracy beside baselines, and the report."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from transformers import BatchFeature

from ..metrics.vqa_accuracy import normalize_answer, vqa_accuracy
from ..modeling.modeling_mia_vqa import MIAForVQA
from ..processing.grounding import GroundedAnswer
from ..processing.processing_mia_vqa import MIAVQAProcessor
from ..visualization import write_report
from .caption_data import ImageInputs
from .common import evaluation_facts, write_json
from .recipe import Recipe
from .report import build_answer_report, evenly_spaced
from .vqa_data import Question, VQACollator

_MAX_DIGITS = 15  # of a number that every reader of JSON keeps as it is
NUM_EXAMPLES = 12  # pictures in the report


@torch.no_grad()
def answer_questions(
    model: MIAForVQA,
    processor: MIAVQAProcessor,
    images: ImageInputs,
    questions: Sequence[Question],
    *,
    batch_size: int = 64,
) -> list[str]:
    """The likeliest answer to each question."""
    model.eval()
    collate = VQACollator(processor, images, with_labels=False)
    answers: list[str] = []
    for start in range(0, len(questions), batch_size):
        inputs = BatchFeature(collate(questions[start : start + batch_size])).to(model.device)
        best = model(**inputs).logits.argmax(dim=1).tolist()
        answers += [processor.answers[index] for index in best]
    return answers


@torch.no_grad()
def ground_answers(
    model: MIAForVQA,
    processor: MIAVQAProcessor,
    images: ImageInputs,
    questions: Sequence[Question],
    *,
    top_k: int = 3,
) -> list[GroundedAnswer]:
    """For each question its likeliest answers and the regions they come from."""
    model.eval()
    texts = [question.text for question in questions]
    shown = images.read([question.image_id for question in questions])
    outputs = model(**processor(text=texts, **shown).to(model.device), output_attentions=True)
    return processor.post_process_answers(outputs, texts, shown["regions"], top_k=top_k)


def score_answers(answers: Sequence[str], questions: Sequence[Question]) -> dict[str, Any]:
    """Official accuracy, overall and by types; see [`Question`] for questions of one answer."""
    scores = vqa_accuracy(
        answers,
        [question.peoples_answers for question in questions],
        answer_types=[question.answer_type for question in questions],
        question_types=[question.question_type for question in questions],
    )
    return {name: value for name, value in scores.items() if name != "per_question"}


def measure_answers(
    answers: Sequence[str],
    questions: Sequence[Question],
    known_answers: Sequence[str],
    training: Sequence[Question] | None = None,
) -> dict[str, Any]:
    r"""Accuracy of answers, and of [`measure_baselines`].

    Returns:
        `dict`: "answers", as of [`score_answers`], with "distinct", how many different answers were given, and
        "reachable", the accuracy of always choosing the best of `known_answers`; "baselines", name -> the same scores.
    """
    variety = {"distinct": len(set(answers)), "reachable": _reachable(questions, known_answers)}
    baselines = {} if training is None else measure_baselines(questions, training)
    return {"answers": score_answers(answers, questions) | variety, "baselines": baselines}


def _reachable(questions: Sequence[Question], known_answers: Sequence[str]) -> float:
    """The best accuracy of answers that are all known."""
    # Only answers of one normalised form can match: the texts themselves are compared where people agree, forms else.
    known: dict[str, list[str]] = {}
    for answer in known_answers:
        known.setdefault(normalize_answer(answer), []).append(answer)
    best = []
    for question in questions:
        people = question.peoples_answers
        forms = {normalize_answer(answer) for answer in set(people)}
        tried = [answer for form in forms for answer in known.get(form, [])]
        scores = vqa_accuracy(tried, [people] * len(tried))["per_question"] if tried else []
        best.append(max(scores, default=0.0))
    return fmean(best)


def measure_baselines(questions: Sequence[Question], training: Sequence[Question]) -> dict[str, dict[str, Any]]:
    """Scores of the commonest main answer of the training questions, of all or of those of the same question type."""
    everything = Counter(question.main_answer for question in training)
    of_type: dict[str, Counter[str]] = {}
    for question in training:
        of_type.setdefault(question.question_type, Counter())[question.main_answer] += 1
    chosen = {
        "majority answer": [_commonest(everything) for _ in questions],
        "majority answer of the question type": [
            _commonest(of_type.get(question.question_type, everything)) for question in questions
        ],
    }
    return {name: score_answers(answers, questions) for name, answers in chosen.items()}


def _commonest(counts: Counter[str]) -> str:
    """The first in alphabetical order of those with the highest count."""
    return min(counts, key=lambda answer: (-counts[answer], answer))


def write_answers(path: Path, questions: Sequence[Question], answers: Sequence[str]) -> None:
    """The file that VQA's servers and `hf-grounding evaluate` read: `[{"question_id": 458752000, "answer": "net"}]`."""
    entries = [
        {"question_id": _number(question.question_id), "answer": answer}
        for question, answer in zip(questions, answers, strict=True)
    ]
    write_json(path, entries)


def _number(question_id: str) -> int | str:
    """As VQA's files have it, where no digit of the id is lost by that."""
    is_number = question_id.isascii() and question_id.isdecimal() and len(question_id) <= _MAX_DIGITS
    return int(question_id) if is_number and (question_id == "0" or question_id[0] != "0") else question_id


def run_facts(split: str, rows: Dataset, questions: Sequence[Question], images: ImageInputs) -> dict[str, Any]:
    """How answers of a split were measured."""
    single = all(len(question.answers) == 1 for question in questions)
    return {
        "image_withheld": images.withheld,
        "accuracy": "exact match with one answer" if single else "official, of people's answers",
        **evaluation_facts(split, rows),
    }


def report_answers(
    path: Path,
    title: str,
    results: Mapping[str, Any],
    model: MIAForVQA,
    processor: MIAVQAProcessor,
    recipe: Recipe,
    rows: Dataset,
    questions: Sequence[Question],
    images: ImageInputs,
) -> None:
    """Writes the report of a question answerer whose `results` are known."""
    chosen = [questions[index] for index in evenly_spaced(len(questions), NUM_EXAMPLES)]
    shown = ground_answers(model, processor, images, chosen)
    position = {image_id: row for row, image_id in enumerate(rows["image_id"])}
    examples = [
        (question, grounded, rows[position[question.image_id]]["image"])
        for question, grounded in zip(chosen, shown, strict=True)
    ]
    write_report(path, build_answer_report(title, results, examples, len(questions), asdict(recipe)))
