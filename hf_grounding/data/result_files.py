"""Results and references to score, from the JSON files people have: COCO captions, VQA, grounded captions.

Every file may be gzipped. Ids are compared as text, because one file often has numbers where the other has strings. A
file that does not fit is refused with one line that names it and some of the ids in question.
"""

from __future__ import annotations

import gzip
import json
import os
import reprlib
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "CaptionResults",
    "GroundedResults",
    "VqaResults",
    "kind_of",
    "read_caption_results",
    "read_grounded_results",
    "read_vqa_results",
]

_MAX_BYTES = 2_000_000_000  # of JSON, unpacked: parsed, it takes several times as much memory
_CHUNK_BYTES = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_MAX_IDS = 5  # named in a message

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

_KINDS: dict[type, str] = {str: "text", list: "a list", dict: "an object"}
_SHORT = reprlib.Repr()
_SHORT.maxstring = 80


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
    file = _JsonFile(results)
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
    result_file, annotation_file = _JsonFile(results), _JsonFile(annotations)
    predictions = _texts(result_file, result_file.by_id("image"), "image", "caption")
    references = _reference_captions(annotation_file)
    _refuse_unknown(predictions, references, "image", result_file, annotation_file)
    if not allow_missing:
        _refuse(_absent(references, predictions), "image", f"no caption in {result_file}", _MISSING_HINT)
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
    result_file, question_file, annotation_file = (_JsonFile(path) for path in (results, questions, annotations))
    predictions = _texts(result_file, result_file.by_id("question"), "question", "answer")
    asked = question_file.by_id("question", part="questions")
    annotated = annotation_file.by_id("question", part="annotations")
    _refuse_unknown(predictions, asked, "question", result_file, question_file)
    _refuse(_absent(asked, annotated), "question", f"no annotation in {annotation_file}", _SPLIT_HINT)
    if not allow_missing:
        _refuse(_absent(asked, predictions), "question", f"no answer in {result_file}", _MISSING_HINT)
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
    result_file, reference_file = _JsonFile(results), _JsonFile(references)
    predictions = {
        image_id: _grounded_prediction(result_file, entry, f"image {image_id!r}")
        for image_id, entry in _by_image(result_file, "results").items()
    }
    captions = {
        image_id: _grounded_captions(reference_file, entry, f"image {image_id!r}")
        for image_id, entry in _by_image(reference_file, "annotations").items()
    }
    _refuse_unknown(predictions, captions, "image", result_file, reference_file)
    _refuse_without_references(captions, reference_file)
    image_ids = [image_id for image_id in captions if predictions.get(image_id) or not allow_missing]
    if not image_ids:
        raise ValueError(f"{result_file} has a prediction for none of its images.")
    return GroundedResults(
        image_ids,
        [predictions.get(image_id) for image_id in image_ids],
        [captions[image_id] for image_id in image_ids],
    )


class _JsonFile:
    """Content of a file, and the checks whose messages name the file."""

    def __init__(self, path: str | os.PathLike):
        self.path = path
        self.content = _load(path)

    def __str__(self) -> str:
        return f"'{self.path}'"

    def check(self, value: Any, what: str, kind: type) -> Any:
        """`value`, if it is of this kind; the message begins with `what` it is."""
        if not isinstance(value, kind):
            raise ValueError(f"In {self}, {what} must be {_KINDS[kind]}, got {_SHORT.repr(value)}.")
        return value

    def value(self, entry: Any, what: str, kind: type, *keys: str) -> Any:
        """The checked value that `entry` has under the first of `keys` that it has."""
        self.check(entry, what, dict)
        for key in keys:
            if key in entry:
                return self.check(entry[key], f"`{key}` of {what}", kind)
        raise ValueError(f"In {self}, {what} has no {' or '.join(f'`{key}`' for key in keys)}.")

    def by_id(self, noun: str, *, part: str | None = None, key: str | None = None) -> dict[str, dict]:
        """Entries by id, in the order of the list that the file is, or has as this part; each id once."""
        key = key or f"{noun}_id"
        if part is None:
            entries, place = self.check(self.content, "the top level", list), ""
        else:
            entries, place = self.value(self.content, "the top level", list, part), f" of `{part}`"
        if not entries:
            raise ValueError(f"{self} has no entries{place}.")
        ids = [self.entry_id(entry, f"entry {row}{place}", key) for row, entry in enumerate(entries)]
        repeated = [entry_id for entry_id, count in Counter(ids).items() if count > 1]
        _refuse(repeated, noun, f"more than one entry in {self}", "keep one of each")
        return dict(zip(ids, entries, strict=True))

    def entry_id(self, entry: Any, what: str, key: str) -> str:
        """The id that `entry` has under `key`, as text."""
        entry_id = self.value(entry, what, object, key)
        if not isinstance(entry_id, int | str) or isinstance(entry_id, bool):
            raise ValueError(
                f"In {self}, `{key}` of {what} must be a whole number or text, got {_SHORT.repr(entry_id)}."
            )
        return str(entry_id)


def _load(path: str | os.PathLike) -> Any:
    """What the JSON file holds, gzipped or not."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > _MAX_BYTES:
                raise _too_large(path)
            # Not told by the name: browsers unpack what they download and keep its ".gz".
            packed = file.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC)
            content = bytearray()
            # By chunks, because a small gzipped file may unpack to any size.
            source = gzip.GzipFile(fileobj=file) if packed else file
            while chunk := source.read(_CHUNK_BYTES):
                content += chunk
                if len(content) > _MAX_BYTES:
                    raise _too_large(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"No file '{path}'.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"'{path}' cannot be read ({error}).") from error
    if not content:
        raise ValueError(f"'{path}' is empty.")
    try:
        value = json.loads(content, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' cannot be read as JSON ({error}).") from error
    if not value:
        raise ValueError(f"'{path}' has no entries.")
    return value


def _too_large(path: str | os.PathLike) -> ValueError:
    return ValueError(f"'{path}' holds more than {_MAX_BYTES / 1e9:g} GB; give only the part to score.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Of a key that comes twice `json` keeps one value; here it may be an image with two entries."""
    values = dict(pairs)
    if len(values) < len(pairs):
        repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise ValueError(f"an object has {_counted(repeated, 'key')} more than once, such as {_some(repeated)}")
    return values


def _texts(file: _JsonFile, entries: Mapping[str, dict], noun: str, key: str) -> dict[str, str]:
    """The text under `key` of each entry, by id."""
    return {entry_id: file.value(entry, f"{noun} {entry_id!r}", str, key) for entry_id, entry in entries.items()}


def _answers(file: _JsonFile, annotation: dict, what: str) -> list[str]:
    """People's answers to one question, one or more."""
    answers = file.value(annotation, what, list, "answers")
    if not answers:
        raise ValueError(f"In {file}, {what} has no answers.")
    return [file.value(answer, f"an answer of {what}", str, "answer") for answer in answers]


def _reference_captions(file: _JsonFile) -> dict[str, list[str]]:
    """Captions by image, at least one each, from COCO annotations or the short form."""
    content = file.check(file.content, "the top level", dict)
    if content.keys().isdisjoint(("images", "annotations")):
        captions = {
            image_id: _captions(file, given, f"the captions of image {image_id!r}")
            for image_id, given in content.items()
        }
    else:
        captions = {image_id: [] for image_id in file.by_id("image", part="images", key="id")}
        unknown = []
        for row, entry in enumerate(file.value(content, "the top level", list, "annotations")):
            what = f"entry {row} of `annotations`"
            image_id, caption = file.entry_id(entry, what, "image_id"), file.value(entry, what, str, "caption")
            if image_id in captions:
                captions[image_id].append(caption)
            else:
                unknown.append(image_id)
        _refuse(unknown, "image", f"captions but no entry in `images` of {file}", "list them there")
    _refuse_without_references(captions, file)
    return captions


def _captions(file: _JsonFile, captions: Any, what: str) -> list[str]:
    return [file.check(caption, f"each of {what}", str) for caption in file.check(captions, what, list)]


def _by_image(file: _JsonFile, part: str) -> dict[str, Any]:
    """Entries by image id: an object as it is, or a list; either may be under `part`."""
    wrapped = isinstance(file.content, dict) and part in file.content
    entries = file.content[part] if wrapped else file.content
    if isinstance(entries, dict) and entries:
        return entries
    return file.by_id("image", part=part if wrapped else None)


def _grounded_prediction(file: _JsonFile, entry: Any, what: str) -> dict[str, list] | None:
    """What one image has in a file of results."""
    if isinstance(entry, list):
        if len(entry) != 1:
            raise ValueError(f"In {file}, {what} has {len(entry)} captions; exactly one is scored.")
        (entry,) = entry
    return None if entry is None else _renamed(file, entry, what, _PREDICTION_FIELDS)


def _grounded_captions(file: _JsonFile, entry: Any, what: str) -> list[dict[str, list]]:
    """What one image has in a file of references."""
    captions = entry if isinstance(entry, list) else file.value(entry, what, list, "captions")
    return [_renamed(file, caption, f"a caption of {what}", _REFERENCE_FIELDS) for caption in captions]


def _renamed(file: _JsonFile, entry: Any, what: str, fields: Mapping[str, tuple[str, ...]]) -> dict[str, list]:
    return {name: file.value(entry, what, list, *keys) for name, keys in fields.items()}


def _absent(ids: Iterable[str], others: Collection[str]) -> list[str]:
    return [entry_id for entry_id in ids if entry_id not in others]


def _refuse_unknown(
    predictions: Iterable[str], references: Collection[str], noun: str, results: _JsonFile, source: _JsonFile
) -> None:
    _refuse(_absent(predictions, references), noun, f"an entry in {results} but none in {source}", _SPLIT_HINT)


def _refuse_without_references(captions: dict[str, list], file: _JsonFile) -> None:
    bare = [image_id for image_id, given in captions.items() if not given]
    _refuse(bare, "image", f"no reference caption in {file}", "leave them out or add some")


def _refuse(ids: Iterable[str], noun: str, trouble: str, hint: str) -> None:
    """`ValueError` in one line if there are `ids` in `trouble`; each is counted once."""
    ids = list(dict.fromkeys(ids))
    if ids:
        verb = "has" if len(ids) == 1 else "have"
        raise ValueError(f"{_counted(ids, noun)} {verb} {trouble}, such as {_some(ids)}; {hint}.")


def _counted(items: Collection[str], noun: str) -> str:
    return f"1 {noun}" if len(items) == 1 else f"{len(items)} {noun}s"


def _some(ids: list[str]) -> str:
    """The first ids, escaped and cut where they would break the line."""
    return ", ".join(_SHORT.repr(entry_id)[1:-1] for entry_id in ids[:_MAX_IDS])
