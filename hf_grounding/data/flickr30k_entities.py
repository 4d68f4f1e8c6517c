"""Flickr30k Entities: photos, five captions each, and boxes for the phrases (Plummer et al., ICCV 2015).

Two layouts of the data folder give the same rows: the public original (`Annotations/<id>.xml`, `Sentences/<id>.txt` and
for each split a list of image ids `<split>.txt`), and one `<split>.parquet` for each split. Boxes stay as the authors
give them: pixels of the original photo, 1-based and inclusive.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetInfo, SplitGenerator, Version

from .flickr30k_parsing import parse_annotation, parse_sentences, read_source
from .schema import GROUNDING_FEATURES, AnnotationError
from .source_files import SourceFilesBuilder, SourceFilesConfig, data_folder

__all__ = ["Flickr30kEntities", "Flickr30kEntitiesConfig"]

IMAGE_DIRS = ("images", "flickr30k-images", ".")
PARQUET_COLUMNS = ["image_id", "original_width", "original_height", "captions", "phrases"]
PHRASE_KEYS = list(GROUNDING_FEATURES["phrases"].feature)
SHARD_SIZE = 256  # images; the unit that processes and streaming workers share out


@dataclass(eq=False)  # BuilderConfig brings its own comparison
class Flickr30kEntitiesConfig(SourceFilesConfig):
    """Settings of [`Flickr30kEntities`].

    Args:
        data_dir (`str`): Folder with `<split>.parquet` files, or with `Annotations/`, `Sentences/` and `<split>.txt`.
        image_dir (`str`, *optional*): Folder of the photos `<id>.jpg`, absolute or relative to `data_dir`. By default
            the first of `images/`, `flickr30k-images/` and `data_dir` itself that has the photo.
    """

    image_dir: str | None = None

    def annotations(self) -> Iterable[Path]:
        return annotation_files(data_folder(self))


class Flickr30kEntities(SourceFilesBuilder):
    """Builder of Flickr30k Entities; its splits are the parquet files or id lists in the folder.

    A split may be cut into several parquet files, named as the Hub's: `train-00000-of-00002.parquet`.
    """

    BUILDER_CONFIG_CLASS = Flickr30kEntitiesConfig
    VERSION = Version("1.0.0")

    def _info(self) -> DatasetInfo:
        return DatasetInfo(features=GROUNDING_FEATURES, homepage="https://github.com/BryanPlummer/flickr30k_entities")

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        del dl_manager  # nothing is downloaded
        files: dict[str, list[Path]] = {}
        for path in split_files(data_folder(self.config)):
            files.setdefault(split_name(path), []).append(path)
        for paths in files.values():
            _check_parts(paths)
        return [
            SplitGenerator(
                name=name, gen_kwargs={"ranges": [(str(path), *rows) for path in paths for rows in _ranges(path)]}
            )
            for name, paths in files.items()
        ]

    def _generate_examples(self, ranges: list[tuple[str, int, int]]) -> Iterator[tuple[str, dict]]:
        for name, group in groupby(ranges, key=itemgetter(0)):
            path, rows_of = Path(name), [(start, end) for _, start, end in group]
            rows = _parquet_rows(path, rows_of) if path.suffix == ".parquet" else _original_rows(path, rows_of)
            for row in rows:
                _check_row(row, path)
                image = {"path": str(self._find_image(row["image_id"], path)), "bytes": None}
                yield row["image_id"], {**row, "image": image, "questions": []}

    def _find_image(self, image_id: str, split_file: Path) -> Path:
        image_dirs = IMAGE_DIRS if self.config.image_dir is None else (self.config.image_dir,)
        folder = data_folder(self.config)
        candidates = [Path(os.path.abspath(folder / image_dir / f"{image_id}.jpg")) for image_dir in image_dirs]
        for candidate in candidates:
            if candidate.is_file():
                return candidate
        raise AnnotationError(
            f"'{split_file}' lists image '{image_id}', but its photo is not there: looked for "
            f"{', '.join(repr(str(candidate)) for candidate in candidates)}. Photos elsewhere? Give `image_dir`."
        )


def split_files(folder: Path) -> list[Path]:
    """The file of each split: the `<split>.parquet` there are, else the id lists `<split>.txt` (lower-case names).

    Raises:
        FileNotFoundError: If the folder has neither layout.
    """
    if files := sorted(folder.glob("*.parquet")):
        return files
    if (folder / "Annotations").is_dir() and (folder / "Sentences").is_dir():
        # A capital marks other text that lies in such folders, as README.txt.
        if files := sorted(path for path in folder.glob("*.txt") if path.stem.islower()):
            return files
        raise FileNotFoundError(f"'{folder}' has no id list: expected e.g. 'train.txt', one image id on each line.")
    raise FileNotFoundError(
        f"'{folder}' is no Flickr30k Entities folder: expected '<split>.parquet' files, or 'Annotations', 'Sentences' "
        "and '<split>.txt' id lists. Give the right folder as `data_dir`."
    )


def split_name(path: Path) -> str:
    """Name of the split in a file: `val` of `val.parquet`, `val.txt` and `val-00000-of-00001.parquet`.

    Raises:
        AnnotationError: If the file's name is none of these.
    """
    match = re.fullmatch(r"(\w+)(-\d+-of-\d+)?", path.stem)
    if match is None:
        raise AnnotationError(
            f"'{path}' names no split: expected letters, digits and underscores, such as 'val{path.suffix}', or "
            "'val-00000-of-00001.parquet'. Rename the file or move it away."
        )
    return match[1]


def _check_parts(paths: list[Path]) -> None:
    """A split is one file or all of its parts, and every image is in it once."""
    numbers = [re.fullmatch(r"\w+-(\d+)-of-(\d+)", path.stem) for path in paths]
    parts = [(int(match[1]), int(match[2])) for match in numbers if match]
    is_whole = len(paths) == 1 and not parts
    if not is_whole and parts != [(number, len(paths)) for number in range(len(paths))]:
        raise AnnotationError(
            f"Split '{split_name(paths[0])}' must be one file or all of its parts, got "
            f"{', '.join(path.name for path in paths)} in '{paths[0].parent}'."
        )
    if paths[0].suffix != ".parquet":
        return  # an id list checks its own ids
    image_ids = [image_id for path in paths for image_id in _read_parquet(path, ["image_id"])["image_id"].to_pylist()]
    repeated = [image_id for image_id, count in Counter(image_ids).items() if count > 1]
    if repeated:
        names = ", ".join(repr(str(path)) for path in paths)
        raise AnnotationError(f"{names} has image {repeated[0]!r} more than once.")


def annotation_files(folder: Path) -> list[Path]:
    """Every file that rows are made of, photos left out."""
    splits = split_files(folder)
    if splits[0].suffix == ".parquet":
        return splits
    return splits + sorted(folder.glob("Annotations/*.xml")) + sorted(folder.glob("Sentences/*.txt"))


def _image_ids(id_list: Path) -> list[str]:
    lines = read_source(id_list).split("\n")
    image_ids = [line.strip() for line in lines if line.strip()]
    if not image_ids:
        raise AnnotationError(f"Id list '{id_list}' is empty; expected one image id on each line.")
    if len(set(image_ids)) < len(image_ids):
        repeated = next(image_id for image_id in image_ids if image_ids.count(image_id) > 1)
        raise AnnotationError(f"Id list '{id_list}' names image '{repeated}' more than once.")
    for number, line in enumerate(lines, start=1):
        if len(line.split()) > 1:
            raise AnnotationError(f"'{id_list}', line {number}: expected one image id, got '{line.strip()}'.")
    return image_ids


def _ranges(split_file: Path) -> list[tuple[int, int]]:
    """Row ranges (start, end) of at most `SHARD_SIZE` images that cover the split."""
    is_parquet = split_file.suffix == ".parquet"
    num_images = len(_read_parquet(split_file, ["image_id"])) if is_parquet else len(_image_ids(split_file))
    return [(start, min(start + SHARD_SIZE, num_images)) for start in range(0, num_images, SHARD_SIZE)]


def _parquet_rows(path: Path, ranges: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    table = _read_parquet(path, PARQUET_COLUMNS)
    for start, end in ranges:
        for row in table.slice(start, end - start).to_pylist():
            yield {
                "image_id": row["image_id"],
                "width": row["original_width"],
                "height": row["original_height"],
                "captions": row["captions"],
                "phrases": [{key: (phrase or {}).get(key) for key in PHRASE_KEYS} for phrase in row["phrases"] or ()],
            }


def _read_parquet(path: Path, columns: list[str]) -> pa.Table:
    try:
        missing = set(PARQUET_COLUMNS) - set(pq.read_schema(path).names)
        if not missing:
            return pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise AnnotationError(f"'{path}' cannot be read as parquet: {error}") from error
    raise AnnotationError(f"'{path}' has no column {sorted(missing)}; expected {PARQUET_COLUMNS}.")


def _check_name(image_id: Any, split_file: Path) -> None:
    """An image id becomes part of paths; one with folders in it would read outside the data folder."""
    if not isinstance(image_id, str) or not image_id:
        raise AnnotationError(f"'{split_file}' has the image id {image_id!r}; image ids are text.")
    if os.path.basename(image_id) != image_id:
        raise AnnotationError(f"'{split_file}' lists {image_id!r}, which is a path; image ids are plain names.")


def _check_row(row: dict[str, Any], split_file: Path) -> None:
    """What the types of a file do not say, or a parquet file of other types than ours lets through."""
    _check_name(row["image_id"], split_file)
    where = f"'{split_file}', image '{row['image_id']}'"
    width, height, captions = row["width"], row["height"], row["captions"]
    if not all(isinstance(size, int) and size > 0 for size in (width, height)):
        raise AnnotationError(f"{where}: width and height must be whole numbers above 0, got {width!r} x {height!r}.")
    if not captions or not all(isinstance(caption, str) and caption.strip() for caption in captions):
        raise AnnotationError(f"{where}: expected one caption or more, none of them empty, got {captions!r}.")
    for phrase in row["phrases"]:
        missing = [key for key, value in phrase.items() if value is None]
        if missing:
            raise AnnotationError(f"{where}: a phrase has no {', '.join(missing)}; it has {phrase!r}.")
        if not 0 <= phrase["sentence"] < len(captions):
            raise AnnotationError(
                f"{where}: a phrase is of sentence {phrase['sentence']}, of {len(captions)} captions."
            )


def _original_rows(id_list: Path, ranges: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    folder = id_list.parent
    image_ids = _image_ids(id_list)
    for start, end in ranges:
        for image_id in image_ids[start:end]:
            _check_name(image_id, id_list)
            width, height, boxes = parse_annotation(folder / "Annotations" / f"{image_id}.xml")
            captions, phrases = parse_sentences(folder / "Sentences" / f"{image_id}.txt")
            for phrase in phrases:
                phrase["boxes"] = [] if phrase["entity_id"] == "0" else boxes.get(phrase["entity_id"], [])
            yield {
                "image_id": image_id,
                "width": width,
                "height": height,
                "captions": captions,
                "phrases": phrases,
            }
