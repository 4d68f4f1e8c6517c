"""Results and references to score, from the JSON files people have: COCO captions, VQA, grounded captions.

A file that does not fit is refused with one line that names it and some of the ids in question.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .json_files import JsonFile, captions_by_image, refuse, refuse_without_references

__all__ = [
    "CaptionResults",
    "GroundedResults",
    "VqaResults",
    "kind_of",
    "read_caption_results",
    "read_grounded_results",
    "read_vqa_results",
]

_SPLIT_HINT = "give files of the same split"
_MISSING_HINT = "give one for each, or allow missing ones (`allow_missing`)"

# What `grounding_f1` takes -> the names it has in files: ours, and the public evaluator's.
_PREDICTION_FIELDS = {"classes": ("classes", "clss"), "boxes": ("boxes", "bbox")}
_REFERENCE_FIELDS = {
    "tokens": ("tokens",),
    "classes": ("classes", "process_clss"),
    "indices": ("indices", "process_idx"),
    "boxes": ("boxes", "process_bnd_box"),
}


@dataclass(frozen=True)
class CaptionResults:
    """For each of n images its id, the predicted caption and the reference captions (one or more)."""

    image_ids: list[str]
    predictions: list[str]
    references: list[list[str]]


@dataclass(frozen=True)
class VqaResults:
    """For each of n questions its id, the predicted answer, people's answers (ten in VQA) and its two types."""

    question_ids: list[str]
    predictions: list[str]
    answers: list[list[str]]
    answer_types: list[str]
    question_types: list[str]


@dataclass(frozen=True)
class GroundedResults:
    """For each of n images its id, the predicted object words and the reference captions, as `grounding_f1` takes them.

    A prediction has "classes" and "boxes", or is `None` where the image has none; each reference caption has "tokens",
    "classes", "indices" and "boxes".
    """

    image_ids: list[str]
    predictions: list[dict[str, list] | None]
    references: list[list[dict[str, list]]]


def kind_of(results: str | os.PathLike) -> Literal["captions", "answers", "grounded captions"]:
    """What a file of results holds, by its first entry. Raises as the readers do."""
    file = JsonFile(results)
    entries = file.content.get("results", file.content) if isinstance(file.content, dict) else file.content
    if isinstance(entries, dict):
        return "grounded captions"
    first = entries[0] if isinstance(entries, list) and entries else None
    keys = set(first) if isinstance(first, dict) else set()
    if "answer" in keys:
        return "answers"
    if keys & {name for names in _PREDICTION_FIELDS.values() for name in names}:
        return "grounded captions"
    if "caption" in keys:
        return "captions"
    raise ValueError(
        f"{file} holds no known results: expected a list of entries with `caption`, `answer`, or `classes` and `boxes`."
    )


def read_caption_results(
    results: str | os.PathLike, annotations: str | os.PathLike, *, allow_missing: bool = False
) -> CaptionResults:
    """Predicted and reference captions of the images in `annotations`, in the order of its images.

    Args:
        results: COCO results, a list of {"image_id", "caption"}, one per image.
        annotations: COCO captions, {"images": [{"id"}], "annotations": [{"image_id", "caption"}]}, or in short
            {image_id: [caption, ...]}.
        allow_missing: Leave out images without a predicted caption instead of refusing the results.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file cannot be read or is of another form, or images are missing, repeated or unknown.
    """
    result_file, annotation_file = JsonFile(results), JsonFile(annotations)
    predictions = _texts(result_file, result_file.by_id("image"), "image", "caption")
    references = _reference_captions(annotation_file)
    _refuse_unknown(predictions, references, "image", result_file, annotation_file)
    if not allow_missing:
        refuse(_absent(references, predictions), "image", f"no caption in {result_file}", _MISSING_HINT)
    image_ids = [image_id for image_id in references if image_id in predictions]
    return CaptionResults(
        image_ids,
        [predictions[image_id] for image_id in image_ids],
        [references[image_id] for image_id in image_ids],
    )


def read_vqa_results(
    results: str | os.PathLike,
    questions: str | os.PathLike,
    annotations: str | os.PathLike,
    *,
    allow_missing: bool = False,
) -> VqaResults:
    """Predicted and people's answers to `questions`, in their order; annotations of other questions are passed over.

    Args:
        results: VQA results, a list of {"question_id", "answer"}, one per question.
        questions: VQA questions, {"questions": [{"question_id"}]}.
        annotations: VQA annotations, {"annotations": [{"question_id", "answers": [{"answer"}], "answer_type",
            "question_type"}]}.
        allow_missing: Leave out questions without a predicted answer instead of refusing the results.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file cannot be read or is of another form, or questions are missing, repeated or unknown.
    """
    result_file, question_file, annotation_file = (JsonFile(path) for path in (results, questions, annotations))
    predictions = _texts(result_file, result_file.by_id("question"), "question", "answer")
    asked = question_file.by_id("question", part="questions")
    annotated = annotation_file.by_id("question", part="annotations")
    _refuse_unknown(predictions, asked, "question", result_file, question_file)
    refuse(_absent(asked, annotated), "question", f"no annotation in {annotation_file}", _SPLIT_HINT)
    if not allow_missing:
        refuse(_absent(asked, predictions), "question", f"no answer in {result_file}", _MISSING_HINT)
    scored = {question_id: annotated[question_id] for question_id in asked if question_id in predictions}
    return VqaResults(
        list(scored),
        [predictions[question_id] for question_id in scored],
        [_answers(annotation_file, entry, f"question {question_id!r}") for question_id, entry in scored.items()],
        list(_texts(annotation_file, scored, "question", "answer_type").values()),
        list(_texts(annotation_file, scored, "question", "question_type").values()),
    )


def read_grounded_results(
    results: str | os.PathLike, references: str | os.PathLike, *, allow_missing: bool = False
) -> GroundedResults:
    """Object words and boxes of predicted captions, beside the reference captions, in the order of `references`.

    Fields may have our names or those of the public evaluator, given in brackets. Boxes and indices themselves are
    checked by `grounding_f1`.

    Args:
        results: {image_id: prediction}, or a list of predictions with an "image_id" each. A prediction has "classes"
            ("clss") and "boxes" ("bbox"); it may stand in a list of its own. All may be under "results".
        references: A list of {"image_id", "captions": [caption, ...]}, or {image_id: [caption, ...]}. A caption has
            "tokens", "classes" ("process_clss"), "indices" ("process_idx") and "boxes" ("process_bnd_box"). All may be
            under "annotations".
        allow_missing: Leave out images without a prediction, as those of other splits. Otherwise they are kept, with
            `None`: F1 counts their objects as not found.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file cannot be read or is of another form, or images are repeated or unknown.
    """
    result_file, reference_file = JsonFile(results), JsonFile(references)
    predictions = {
        image_id: _grounded_prediction(result_file, entry, f"image {image_id!r}")
        for image_id, entry in _by_image(result_file, "results").items()
    }
    captions = {
        image_id: _grounded_captions(reference_file, entry, f"image {image_id!r}")
        for image_id, entry in _by_image(reference_file, "annotations").items()
    }
    _refuse_unknown(predictions, captions, "image", result_file, reference_file)
    refuse_without_references(captions, reference_file)
    image_ids = [image_id for image_id in captions if predictions.get(image_id) or not allow_missing]
    if not image_ids:
        raise ValueError(f"{result_file} has a prediction for none of its images.")
    return GroundedResults(
        image_ids,
        [predictions.get(image_id) for image_id in image_ids],
        [captions[image_id] for image_id in image_ids],
    )


def _texts(file: JsonFile, entries: Mapping[str, dict], noun: str, key: str) -> dict[str, str]:
    """The text under `key` of each entry, by id."""
    return {entry_id: file.value(entry, f"{noun} {entry_id!r}", str, key) for entry_id, entry in entries.items()}


def _answers(file: JsonFile, annotation: dict, what: str) -> list[str]:
    """People's answers to one question, one or more."""
    answers = file.value(annotation, what, list, "answers")
    if not answers:
        raise ValueError(f"In {file}, {what} has no answers.")
    return [file.value(answer, f"an answer of {what}", str, "answer") for answer in answers]


def _reference_captions(file: JsonFile) -> dict[str, list[str]]:
    """Captions by image, at least one each, from COCO annotations or the short form."""
    content = file.check(file.content, "the top level", dict)
    if not content.keys().isdisjoint(("images", "annotations")):
        return captions_by_image(file)
    captions = {
        image_id: _captions(file, given, f"the captions of image {image_id!r}") for image_id, given in content.items()
    }
    refuse_without_references(captions, file)
    return captions


def _captions(file: JsonFile, captions: Any, what: str) -> list[str]:
    return [file.check(caption, f"each of {what}", str) for caption in file.check(captions, what, list)]


def _by_image(file: JsonFile, part: str) -> dict[str, Any]:
    """Entries by image id: an object as it is, or a list; either may be under `part`."""
    wrapped = isinstance(file.content, dict) and part in file.content
    entries = file.content[part] if wrapped else file.content
    if isinstance(entries, dict) and entries:
        return entries
    return file.by_id("image", part=part if wrapped else None)


def _grounded_prediction(file: JsonFile, entry: Any, what: str) -> dict[str, list] | None:
    """What one image has in a file of results."""
    if isinstance(entry, list):
        if len(entry) != 1:
            raise ValueError(f"In {file}, {what} has {len(entry)} captions; exactly one is scored.")
        (entry,) = entry
    return None if entry is None else _renamed(file, entry, what, _PREDICTION_FIELDS)


def _grounded_captions(file: JsonFile, entry: Any, what: str) -> list[dict[str, list]]:
    """What one image has in a file of references."""
    captions = entry if isinstance(entry, list) else file.value(entry, what, list, "captions")
    return [_renamed(file, caption, f"a caption of {what}", _REFERENCE_FIELDS) for caption in captions]


def _renamed(file: JsonFile, entry: Any, what: str, fields: Mapping[str, tuple[str, ...]]) -> dict[str, list]:
    return {name: file.value(entry, what, list, *keys) for name, keys in fields.items()}


def _absent(ids: Iterable[str], others: Collection[str]) -> list[str]:
    return [entry_id for entry_id in ids if entry_id not in others]


def _refuse_unknown(
    predictions: Iterable[str], references: Collection[str], noun: str, results: JsonFile, source: JsonFile
) -> None:
    refuse(_absent(predictions, references), noun, f"an entry in {results} but none in {source}", _SPLIT_HINT)
