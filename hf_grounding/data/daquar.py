"""DAQUAR: questions about photos of rooms (Malinowski and Fritz, NIPS 2014, arXiv 1410.0210); photos of NYU Depth v2.

Two layouts of the data folder give the same rows but for the photos' sizes, which only the first one says:

- `<split>.jsonl`: on each line a question with its ids, its photo and the photo's size;
- the authors' `qa.<split>.txt` (`qa.894.raw.train.txt` is one): a question and its answer on alternate lines. Every
  question names its image: "what is on the desk in the image3 ?".

A row is an image with its questions, which here are without the image's name, in both layouts alike: "what is on the
desk ?", and "in the corner of the image ?" for "in the corner of the image3 ?". An answer may have several parts,
"book, lamp". As in the authors' strict measure all of it counts as one answer, in the order it was written.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datasets import DatasetInfo, SplitGenerator, Version

from .schema import GROUNDING_FEATURES, AnnotationError
from .source_files import SourceFilesBuilder, SourceFilesConfig, data_folder

__all__ = ["Daquar", "DaquarConfig"]

IMAGE_DIRS = ("images", "nyu_depth_images", ".")
IMAGE_SUFFIXES = (".jpg", ".png")
LAYOUTS = ("jsonl", "text")
_JSON_KEYS = {"image_id": str, "question_raw": str, "answer": str, "width": int, "height": int}
_IMAGE = re.compile(r"\b(image\d+)\b")
_IN_THE_IMAGE = re.compile(r" in (the |this )?image\d+\b")
_QUESTION_TYPES = (
    ("how many", re.compile(r"how many\b")),
    ("what color", re.compile(r"what (is|are) the colou?rs?\b|what colou?rs?\b")),
    ("what", re.compile(r"what\b")),
)


@dataclass(eq=False)  # BuilderConfig brings its own comparison
class DaquarConfig(SourceFilesConfig):
    """Settings of [`Daquar`].

    Args:
        data_dir (`str`): Folder with `<split>.jsonl` or `qa.<split>.txt` files.
        layout (`str`, *optional*): "jsonl" or "text"; by default the first of them that is there.
        image_dir (`str`, *optional*): Folder of the photos, absolute or relative to `data_dir`. By default the first
            of `images/`, `nyu_depth_images/` and `data_dir` itself that has the photo, a .jpg or .png.
    """

    layout: str | None = None
    image_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout is not None and self.layout not in LAYOUTS:
            raise ValueError(f"`layout` must be one of {', '.join(LAYOUTS)}, got {self.layout!r}.")

    def annotations(self) -> Iterable[Path]:
        return split_files(self).values()


class Daquar(SourceFilesBuilder):
    """Builder of DAQUAR; its splits are the files in the folder."""

    BUILDER_CONFIG_CLASS = DaquarConfig
    VERSION = Version("1.0.0")

    def _info(self) -> DatasetInfo:
        return DatasetInfo(features=GROUNDING_FEATURES)

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        del dl_manager  # nothing is downloaded
        return [
            SplitGenerator(name=split, gen_kwargs={"path": str(path)})
            for split, path in split_files(self.config).items()
        ]

    def _generate_examples(self, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        entries = _json_lines(Path(path)) if path.endswith(".jsonl") else _text_lines(Path(path))
        by_image: dict[str, list[_Entry]] = {}
        for entry in entries:
            by_image.setdefault(entry.image_id, []).append(entry)
        for image_id, asked in by_image.items():
            yield (
                image_id,
                {
                    "image_id": image_id,
                    "image": {"path": str(self._find_photo(image_id, path)), "bytes": None},
                    "width": asked[0].width,
                    "height": asked[0].height,
                    "captions": [],
                    "phrases": [],
                    "questions": [_question(number, entry) for number, entry in enumerate(asked)],
                },
            )

    def _find_photo(self, image_id: str, path: str) -> Path:
        folder = data_folder(self.config)
        image_dirs = IMAGE_DIRS if self.config.image_dir is None else (self.config.image_dir,)
        candidates = [folder / name / f"{image_id}{suffix}" for name in image_dirs for suffix in IMAGE_SUFFIXES]
        for candidate in candidates:
            if candidate.is_file():
                return Path(os.path.abspath(candidate))
        raise AnnotationError(
            f"'{path}' asks about image '{image_id}', but its photo is not there: looked for "
            f"{', '.join(repr(str(candidate)) for candidate in candidates)}. Photos elsewhere? Give `image_dir`."
        )


class _Entry(NamedTuple):
    """A question as either layout has it."""

    image_id: str
    question: str
    answer: str
    width: int | None = None
    height: int | None = None


def _question(number: int, entry: _Entry) -> dict[str, Any]:
    """Question `number` about an image, as the column `questions` has it."""
    question_type = next((name for name, pattern in _QUESTION_TYPES if pattern.match(entry.question)), "other")
    return {
        "question_id": f"{entry.image_id.removeprefix('image')}{number:03d}",
        "question": _IMAGE.sub("image", _IN_THE_IMAGE.sub("", entry.question)),
        "answers": [entry.answer],
        "answer_type": "number" if entry.answer.isdecimal() else "other",
        "question_type": question_type,
    }


def split_files(config: DaquarConfig) -> dict[str, Path]:
    """Each split with its file.

    Raises:
        FileNotFoundError: If the folder has none, or none of this `layout`.
        AnnotationError: If two files are of one split.
    """
    folder = data_folder(config)
    for layout in LAYOUTS if config.layout is None else (config.layout,):
        found: dict[str, Path] = {}
        for path in sorted(folder.glob("*.jsonl" if layout == "jsonl" else "qa.*.txt")):
            split = path.stem.rpartition(".")[2]
            if split in found:
                raise AnnotationError(f"'{found[split]}' and '{path}' are both of '{split}'. Move one of them away.")
            found[split] = path
        if found:
            return found
    raise FileNotFoundError(
        f"'{folder}' has no questions of DAQUAR: expected '<split>.jsonl' or 'qa.<split>.txt'. Give the right folder "
        "as `data_dir`."
    )


def _json_lines(path: Path) -> Iterator[_Entry]:
    for where, line in _lines(path):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise AnnotationError(f"{where}: no JSON ({error}). Is the file cut off?") from error
        wrong = [
            name
            for name, kind in _JSON_KEYS.items()
            if not isinstance(entry, dict) or not isinstance(entry.get(name), kind) or not entry[name]
        ]
        if wrong:
            needed = ", ".join(f"`{name}`" for name in _JSON_KEYS)
            raise AnnotationError(f"{where}: expected an object with {needed}; there is no good `{wrong[0]}`.")
        if _IMAGE.fullmatch(entry["image_id"]) is None:
            raise AnnotationError(f"{where}: `image_id` must be such as 'image3', got {entry['image_id']!r}.")
        yield _entry(where, entry["image_id"], entry["question_raw"], entry["answer"], entry["width"], entry["height"])


def _text_lines(path: Path) -> Iterator[_Entry]:
    lines = list(_lines(path))
    if len(lines) % 2:
        raise AnnotationError(f"{lines[-1][0]}: a question without its answer. Is the file cut off?")
    for (where, question), (_, answer) in zip(lines[::2], lines[1::2], strict=True):
        named = _IMAGE.findall(question)
        if not named:
            raise AnnotationError(
                f"{where}: expected a question that names its image, such as 'image3', got {question!r}."
            )
        yield _entry(where, named[-1], question, answer)


def _entry(where: str, image_id: str, question: str, answer: str, *size: int) -> _Entry:
    question, answer = (" ".join(text.split()) for text in (question, answer))
    if not question or not answer:
        raise AnnotationError(f"{where}: expected a question and its answer, got {question!r} and {answer!r}.")
    return _Entry(image_id, question, answer, *size)


def _lines(path: Path) -> list[tuple[str, str]]:
    """Where each line is, and its text."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a byte order mark first
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(f"'{path}' cannot be read as UTF-8 text ({error}).") from error
    if not text.strip():
        raise AnnotationError(f"'{path}' is empty.")
    lines = text.rstrip("\n").split("\n")
    return [(f"'{path}', line {number}", line.strip()) for number, line in enumerate(lines, start=1)]
