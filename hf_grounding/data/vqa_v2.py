"""VQA v2: questions about COCO photos, ten answers each (Goyal et al., CVPR 2017, arXiv 1612.00837).

Two kinds of names of the files give the same rows; each file may be gzipped (".json.gz"):

- the official `v2_OpenEnded_mscoco_{train2014,val2014,test2015,test-dev2015}_questions.json` and
  `v2_mscoco_{train,val}2014_annotations.json`; nobody's answers to test questions are public, so theirs are empty;
- `vqa_questions_{train,valid}.json` and `vqa_annotations_{train,valid}.json`, of public subsets of train2014.

A row is an image, with all of the split's questions about it. Its `image_id` is COCO's number as text, "458752", and
the ids of questions are text too. The files do not say how large a photo is: rows have no `width` and `height`.

The main answer of an annotation, `multiple_choice_answer`, stands first among the answers: of several that equally many
people gave it is the one that counts for vocabularies of answers. Accuracy and soft scores do not ask for their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datasets import DatasetInfo, SplitGenerator, Version

from .json_files import JsonFile, refuse
from .schema import GROUNDING_FEATURES, AnnotationError
from .source_files import CocoPhotosConfig, SourceFilesBuilder, data_folder, find_coco_photo

__all__ = ["VqaV2", "VqaV2Config"]

_KEYS = (
    *("questions", "question_id", "image_id", "question"),
    *("annotations", "question_type", "answer_type", "multiple_choice_answer", "answers", "answer"),
)


class _Source(NamedTuple):
    """Where a split is: names of its files without their ending, and the folder of its photos."""

    questions: str
    annotations: str | None
    photo_dir: str


def _official(part: str, photo_dir: str, annotated: bool) -> _Source:
    annotations = f"v2_mscoco_{part}_annotations" if annotated else None
    return _Source(f"v2_OpenEnded_mscoco_{part}_questions", annotations, photo_dir)


_OFFICIAL = {
    "train": _official("train2014", "train2014", annotated=True),
    "val": _official("val2014", "val2014", annotated=True),
    "test": _official("test2015", "test2015", annotated=False),
    "test_dev": _official("test-dev2015", "test2015", annotated=False),
}
_SUBSET = {
    "train": _Source("vqa_questions_train", "vqa_annotations_train", "train2014"),
    "val": _Source("vqa_questions_valid", "vqa_annotations_valid", "train2014"),
}
_ID_DIGITS = 12  # in the names of photos


@dataclass(eq=False)  # BuilderConfig brings its own comparison
class VqaV2Config(CocoPhotosConfig):
    """Settings of [`VqaV2`].

    Args:
        data_dir (`str`): Folder of the questions and annotations.
        image_dir (`str`, *optional*): Folder of the photos' folders `train2014/`, `val2014/` and `test2015/`, absolute
            or relative to `data_dir`, which is the default. Without it, where such a folder is absent its rows have no
            `image`: models train from stored regions. A photo that is missing from a folder which is there is an error.
    """

    PHOTO_DIRS = ("train2014", "val2014", "test2015")

    def annotations(self) -> Iterable[Path]:
        return [path for files in source_files(self).values() for path in files if path is not None]


class VqaV2(SourceFilesBuilder):
    """Builder of VQA v2; its splits are those whose questions are there, of train, val, test and test_dev."""

    BUILDER_CONFIG_CLASS = VqaV2Config
    VERSION = Version("1.0.0")

    def _info(self) -> DatasetInfo:
        return DatasetInfo(features=GROUNDING_FEATURES, homepage="https://visualqa.org")

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        del dl_manager  # nothing is downloaded
        sources = _sources(self.config)
        return [
            SplitGenerator(
                name=split,
                gen_kwargs={
                    "questions": str(questions),
                    "annotations": None if annotations is None else str(annotations),
                    "photo_dir": sources[split].photo_dir,
                },
            )
            for split, (questions, annotations) in source_files(self.config).items()
        ]

    def _generate_examples(
        self, questions: str, annotations: str | None, photo_dir: str
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for image_id, asked in questions_by_image(questions, annotations).items():
            photo = self._find_photo(image_id, photo_dir, f"'{questions}', image '{image_id}'")
            yield (
                image_id,
                {
                    "image_id": image_id,
                    "image": None if photo is None else {"path": str(photo), "bytes": None},
                    "width": None,
                    "height": None,
                    "captions": [],
                    "phrases": [],
                    "questions": asked,
                },
            )

    def _find_photo(self, image_id: str, photo_dir: str, where: str) -> Path | None:
        # One with folders in it would read outside the data folder.
        if not image_id.isdecimal() or len(image_id) > _ID_DIGITS:
            raise AnnotationError(
                f"{where}: the image's id must be COCO's number of it, of at most {_ID_DIGITS} digits."
            )
        return find_coco_photo(self.config, photo_dir, f"COCO_{photo_dir}_{int(image_id):0{_ID_DIGITS}d}.jpg", where)


def questions_by_image(questions: str | Path, annotations: str | Path | None) -> dict[str, list[dict[str, Any]]]:
    """Image id -> its questions as the column `questions` has them, in the order of the file.

    Raises:
        FileNotFoundError: No such file.
        AnnotationError: A file cannot be read or is of another form, a question comes twice or has no annotation, or
            its annotation is of another image.
    """
    question_file = JsonFile(questions, keep=_KEYS)
    asked = question_file.by_id("question", part="questions")
    annotation_file = None if annotations is None else JsonFile(annotations, keep=_KEYS)
    annotated = {} if annotation_file is None else annotation_file.by_id("question", part="annotations")
    if annotation_file is not None:
        without = [question_id for question_id in asked if question_id not in annotated]
        refuse(without, "question", f"no annotation in {annotation_file}", "give files of the same split")
    by_image: dict[str, list[dict[str, Any]]] = {}
    for question_id, entry in asked.items():
        what = f"question {question_id!r}"
        image_id = question_file.entry_id(entry, what, "image_id")
        said: dict[str, Any] = {"answers": [], "answer_type": "", "question_type": ""}
        if annotation_file is not None:
            said = _annotation(annotation_file, annotated[question_id], what, image_id)
        text = " ".join(question_file.value(entry, what, str, "question").split())
        if not text.strip(" ,?"):  # marks that tokenizers of questions drop
            raise AnnotationError(f"In {question_file}, {what} has no words: {text!r}.")
        by_image.setdefault(image_id, []).append({"question_id": question_id, "question": text, **said})
    return by_image


def _annotation(file: JsonFile, entry: dict, what: str, image_id: str) -> dict[str, Any]:
    """What people said to a question, and of which kind it is."""
    if file.entry_id(entry, what, "image_id") != image_id:
        raise AnnotationError(
            f"In {file}, {what} is about image '{entry['image_id']}', and in the file of the questions about image "
            f"'{image_id}'; give files of the same split."
        )
    answers = file.value(entry, what, list, "answers")
    if not answers:
        raise AnnotationError(f"In {file}, {what} has no answers.")
    given = [file.value(answer, f"an answer of {what}", str, "answer") for answer in answers]
    main = file.value(entry, what, str, "multiple_choice_answer")
    return {
        "answers": sorted(given, key=lambda answer: answer != main),  # the others stay in their order
        "answer_type": file.value(entry, what, str, "answer_type"),
        "question_type": file.value(entry, what, str, "question_type"),
    }


def source_files(config: VqaV2Config) -> dict[str, tuple[Path, Path | None]]:
    """Each split that is there with its questions and its annotations; `None` where a split has none by design.

    Raises:
        FileNotFoundError: If the folder has no such file, or questions of train or val without their annotations.
    """
    folder = data_folder(config)
    found: dict[str, tuple[Path, Path | None]] = {}
    for split, source in _sources(config).items():
        questions = _json_file(folder, source.questions)
        if questions is None:
            continue
        annotations = None if source.annotations is None else _json_file(folder, source.annotations)
        if source.annotations is not None and annotations is None:
            raise FileNotFoundError(
                f"'{questions}' has no '{source.annotations}.json' or '.json.gz' beside it, with the answers."
            )
        found[split] = (questions, annotations)
    return found


def _sources(config: VqaV2Config) -> dict[str, _Source]:
    """The names that the folder's files have; the official ones where both kinds are there."""
    folder = data_folder(config)
    for sources in (_OFFICIAL, _SUBSET):
        if any(_json_file(folder, source.questions) for source in sources.values()):
            return sources
    raise FileNotFoundError(
        f"'{folder}' has no questions of VQA v2: expected 'v2_OpenEnded_mscoco_train2014_questions.json' and the like, "
        "or 'vqa_questions_train.json', gzipped or not. Give the right folder as `data_dir`."
    )


def _json_file(folder: Path, name: str) -> Path | None:
    candidates = (folder / f"{name}.json", folder / f"{name}.json.gz")
    return next((path for path in candidates if path.is_file()), None)
