"""COCO captions: photos with five captions or more each (Lin et al., ECCV 2014; Chen et al., arXiv 1504.00325).

Two kinds of annotation file give the same rows:

- `dataset_coco.json`, the split of Karpathy and Fei-Fei (CVPR 2015) on which captioners are compared: val and test have
  5,000 photos each, and train the 113,287 others ("restval", the rest of val2014, is trained on too).
- `annotations/captions_{train,val}{2014,2017}.json`, the official files with their own two splits.

A row's `image_id` is COCO's number as text, "391895". Captions are as people wrote them, white space aside. The file of
the split does not say how large a photo is; its rows have no `width` and `height`.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datasets import DatasetInfo, SplitGenerator, Version

from .json_files import JsonFile, captions_by_image
from .schema import GROUNDING_FEATURES, AnnotationError
from .source_files import CocoPhotosConfig, SourceFilesBuilder, data_folder, find_coco_photo

__all__ = ["CocoCaptions", "CocoCaptionsConfig"]

SPLIT_FILE = "dataset_coco.json"
SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}  # its name of a split -> ours
YEARS = (2014, 2017)

_SPLIT_FILE_KEYS = ("images", "cocoid", "filepath", "filename", "split", "sentences", "raw")
_OFFICIAL_KEYS = ("images", "id", "file_name", "width", "height", "annotations", "image_id", "caption")


@dataclass(eq=False)  # BuilderConfig brings its own comparison
class CocoCaptionsConfig(CocoPhotosConfig):
    """Settings of [`CocoCaptions`].

    Args:
        data_dir (`str`): Folder with `dataset_coco.json`, or with the official `annotations/`.
        year (`int`, *optional*): 2014 or 2017, to read the official files of that year. By default
            `dataset_coco.json`, and where there is none, the official files of the one year that is there.
        image_dir (`str`, *optional*): Folder of the photos' folders `train2014/`, `val2014/`, `train2017/` and
            `val2017/`, absolute or relative to `data_dir`, which is the default. Without it, where such a folder is
            absent its rows have no `image`: captioners train from stored regions. A photo that is missing from a folder
            which is there is an error.
    """

    PHOTO_DIRS = tuple(f"{split}{year}" for year in YEARS for split in ("train", "val"))

    year: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.year is not None and self.year not in YEARS:
            raise ValueError(f"`year` must be one of {', '.join(map(str, YEARS))}, got {self.year!r}.")

    def annotations(self) -> Iterable[Path]:
        return dict.fromkeys(path for _, path in annotation_files(self))


class CocoCaptions(SourceFilesBuilder):
    """Builder of COCO captions; its splits are those that the annotation files have."""

    BUILDER_CONFIG_CLASS = CocoCaptionsConfig
    VERSION = Version("1.0.0")

    def _info(self) -> DatasetInfo:
        return DatasetInfo(features=GROUNDING_FEATURES, homepage="https://cocodataset.org")

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        del dl_manager  # nothing is downloaded
        return [
            SplitGenerator(name=split, gen_kwargs={"split": split, "path": str(path)})
            for split, path in annotation_files(self.config)
        ]

    def _generate_examples(self, split: str, path: str) -> Iterator[tuple[str, dict]]:
        rows = _split_file_rows(path, split) if Path(path).name == SPLIT_FILE else _official_rows(path)
        for row in rows:
            where = f"'{path}', image '{row.image_id}'"
            photo = self._find_photo(row, where)
            yield (
                row.image_id,
                {
                    "image_id": row.image_id,
                    "image": None if photo is None else {"path": str(photo), "bytes": None},
                    "width": row.width,
                    "height": row.height,
                    "captions": _checked_captions(row.captions, where),
                    "phrases": [],
                    "questions": [],
                },
            )

    def _find_photo(self, row: _Row, where: str) -> Path | None:
        for name in (row.photo_dir, row.file_name):
            # One with folders in it would read outside the data folder.
            if os.path.basename(name) != name or name in ("", ".", ".."):
                raise AnnotationError(f"{where}: the photo's folder and file must be plain names, got {name!r}.")
        return find_coco_photo(self.config, row.photo_dir, row.file_name, where)


class _Row(NamedTuple):
    """What the two kinds of file say about an image."""

    image_id: str
    photo_dir: str
    file_name: str
    width: int | None
    height: int | None
    captions: list[str]


def annotation_files(config: CocoCaptionsConfig) -> list[tuple[str, Path]]:
    """Each split with its file, which several may share.

    Raises:
        FileNotFoundError: If the folder has no such file.
        ValueError: If the official files of two years are there and `year` does not choose.
        AnnotationError: If `dataset_coco.json` has an unknown split, or none.
    """
    folder = data_folder(config)
    split_file = folder / SPLIT_FILE
    if config.year is None and split_file.is_file():
        return [(split, split_file) for split in _splits_of(split_file)]
    official = {
        year: [(split, folder / "annotations" / f"captions_{split}{year}.json") for split in ("train", "val")]
        for year in (YEARS if config.year is None else (config.year,))
    }
    found = {
        year: [(split, path) for split, path in files if path.is_file()]
        for year, files in official.items()
        if any(path.is_file() for _, path in files)
    }
    if len(found) > 1:
        raise ValueError(f"'{folder}' has the official files of {' and '.join(map(str, found))}. Give `year`.")
    if found:
        (files,) = found.values()
        return files
    years = " or ".join(map(str, official))
    also = f"'{SPLIT_FILE}', or " if config.year is None else ""
    raise FileNotFoundError(
        f"'{folder}' has no captions of COCO: expected {also}'annotations/captions_train{years}.json' and "
        f"'captions_val{years}.json'. Give the right folder as `data_dir`."
    )


def _splits_of(path: Path) -> list[str]:
    """Splits in `dataset_coco.json`, found without parsing its 140 MB: quotes inside a caption are escaped."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise AnnotationError(f"'{path}' is empty.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            names = {match[1].decode(errors="replace") for match in re.finditer(rb'"split"\s*:\s*"([^"]*)"', content)}
    if not names or not names <= SPLITS.keys():
        raise AnnotationError(
            f"'{path}' must say the `split` of each image, one of {', '.join(SPLITS)}; got {sorted(names) or 'none'}."
        )
    return [split for split in dict.fromkeys(SPLITS.values()) if split in {SPLITS[name] for name in names}]


def _split_file_rows(path: str, split: str) -> Iterator[_Row]:
    file = JsonFile(path, keep=_SPLIT_FILE_KEYS)
    for image_id, entry in file.by_id("image", part="images", key="cocoid").items():
        what = f"image {image_id!r}"
        if SPLITS[file.value(entry, what, str, "split")] != split:
            continue
        sentences = file.value(entry, what, list, "sentences")
        captions = [file.value(sentence, f"a sentence of {what}", str, "raw") for sentence in sentences]
        folder, name = (file.value(entry, what, str, key) for key in ("filepath", "filename"))
        yield _Row(image_id, folder, name, width=None, height=None, captions=captions)


def _official_rows(path: str) -> Iterator[_Row]:
    file = JsonFile(path, keep=_OFFICIAL_KEYS)
    captions = captions_by_image(file)
    photo_dir = Path(path).stem.removeprefix("captions_")
    for image_id, entry in file.by_id("image", part="images", key="id").items():
        what = f"image {image_id!r}"
        width, height = (_side(file, entry, what, key) for key in ("width", "height"))
        name = file.value(entry, what, str, "file_name")
        yield _Row(image_id, photo_dir, name, width, height, captions[image_id])


def _side(file: JsonFile, entry: dict, what: str, key: str) -> int:
    side = file.value(entry, what, object, key)
    if not isinstance(side, int) or isinstance(side, bool) or side < 1:
        raise AnnotationError(f"In {file}, `{key}` of {what} must be a whole number of pixels above 0, got {side!r}.")
    return side


def _checked_captions(captions: list[str], where: str) -> list[str]:
    """Captions on one line each; some of COCO's have line breaks in them."""
    captions = [" ".join(caption.split()) for caption in captions]
    if not captions or not all(captions):
        raise AnnotationError(f"{where}: expected one caption or more, none of them empty, got {captions!r}.")
    return captions
