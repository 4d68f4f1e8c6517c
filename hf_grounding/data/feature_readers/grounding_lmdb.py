"""Photos of the grounding code: an LMDB of image id -> JPEG bytes, and a pickle of image id -> annotations.

An annotation is `{"size": (H, W[, 3]), "queries": [text], "annotations": [{"query", "idx", "bbox": [[x1, y1, x2, y2]],
"bbox_norm", "category": set, "image_size", "source_sen"?}]}`.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .common import Fault, Faults, OnError, checked_image_id, checked_side, decoding, existing_file, whole_file
from .lmdb_pages import lmdb_entries
from .plain_pickle import load_plain_pickle

_MAX_PIXELS = 100_000_000  # 0.3 GB as RGB
_MAX_VALUES = 1_000_000  # in the annotation of one image
_MAX_DEPTH = 10


class AnnotatedImage(NamedTuple):
    """One photo; `annotation` is as in the pickle, or None without one."""

    image_id: str
    image: Image.Image
    annotation: dict[str, Any] | None


def read_grounding_lmdb(
    path: str | os.PathLike, *, annotations: str | os.PathLike | None = None, on_error: OnError = None
) -> Iterator[AnnotatedImage]:
    r"""Photos of an LMDB, in the order of its keys; with `annotations`, only those that these name, as of one split.

    Args:
        path (`str` or `os.PathLike`): The folder with `data.mdb`, or the file itself.
        annotations (`str` or `os.PathLike`, *optional*): Pickle of image id -> annotation. Only plain data is read.
        on_error (`callable` or `list`, *optional*): Gets the error of each broken photo or annotation, and of each
            annotation without photo; the next ones are still read. A damaged page ends the reading.

    Raises:
        FeatureFileError: If a file is damaged; at the first broken photo, if there is no `on_error`.
        FileNotFoundError: No such file.
    """
    path = Path(path) / "data.mdb" if Path(path).is_dir() else Path(path)
    path = existing_file(path, "an LMDB of photos, or a folder with `data.mdb`")
    if annotations is not None:
        annotations = existing_file(annotations, "a pickle of image id -> annotation")
    return _images(path, annotations, Faults(path, on_error))


def _images(path: Path, annotations: Path | None, faults: Faults) -> Iterator[AnnotatedImage]:
    wanted = None if annotations is None else _annotations(annotations)
    found: set[str] = set()
    with path.open("rb") as stream:
        with whole_file(path):
            entries = lmdb_entries(stream, path.stat().st_size)
        while True:
            entry = None
            with faults.at():
                entry = next(entries, None)
            if entry is None:
                break
            item: AnnotatedImage | None = None
            with faults.at() as place:
                place.image_id = image_id = checked_image_id(entry[0])
                if wanted is not None and image_id not in wanted:
                    continue
                found.add(image_id)
                image = _image(entry[1]())
                place.file = path if annotations is None else annotations
                item = AnnotatedImage(image_id, image, None if wanted is None else _annotation(wanted[image_id]))
            if item is not None:
                yield item
    for image_id in wanted or ():
        if image_id not in found:
            with faults.at(image_id=image_id):
                raise Fault(f"there is no such photo, but '{annotations}' has annotations of it")


def _annotations(path: Path) -> dict[str, Any]:
    with whole_file(path):
        annotations = load_plain_pickle(path)
        if not isinstance(annotations, dict):
            raise Fault(f"expected a dictionary image id -> annotation, got {type(annotations).__name__}")
        return {checked_image_id(key): value for key, value in annotations.items()}


def _image(data: bytes) -> Image.Image:
    with decoding("the photo"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged EXIF and large photos; the size is checked here
        image = Image.open(io.BytesIO(data), formats=["JPEG"])
        if image.width * image.height > _MAX_PIXELS:
            raise Fault(f"the photo claims {image.width} x {image.height} pixels, over the limit of {_MAX_PIXELS}")
        image.load()
    return image


def _annotation(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Fault(f"the annotation must be a dictionary, got {type(value).__name__}")
    _check_plain([value])
    size, queries, phrases = (value.get(key) for key in ("size", "queries", "annotations"))
    if isinstance(size, np.ndarray) and size.ndim == 1:
        size = size.tolist()
    if not isinstance(size, (tuple, list)) or len(size) not in (2, 3):
        raise Fault("`size` must be (height, width) or (height, width, channels)")
    checked_side(size[0], "height"), checked_side(size[1], "width")
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise Fault("`queries` must be a list of texts")
    if not isinstance(phrases, list) or not all(isinstance(phrase, dict) for phrase in phrases):
        raise Fault("`annotations` must be a list of dictionaries")
    for number, phrase in enumerate(phrases):
        if not isinstance(phrase.get("query"), str):
            raise Fault(f"annotation {number} has no text `query`")
        boxes = phrase.get("bbox")
        boxes = boxes.tolist() if isinstance(boxes, np.ndarray) else boxes
        if not isinstance(boxes, (list, tuple)) or not all(_is_box(box) for box in boxes):
            raise Fault(
                f"annotation {number}: `bbox` must be a list of finite [x1, y1, x2, y2] with x1 <= x2, y1 <= y2"
            )
    return value


def _is_box(box: Any) -> bool:
    box = box.tolist() if isinstance(box, np.ndarray) else box
    numbers = isinstance(box, (list, tuple)) and len(box) == 4 and all(type(side) in (int, float) for side in box)
    return numbers and all(map(math.isfinite, box)) and box[0] <= box[2] and box[1] <= box[3]


def _check_plain(values: list[Any]) -> None:
    """Only data, and not without end: lists in a pickle may hold themselves."""
    count = 0
    for _ in range(_MAX_DEPTH):
        deeper: list[Any] = []
        for value in values:
            if isinstance(value, dict):
                deeper += value.values()
            elif isinstance(value, (list, tuple)):
                deeper += value
            elif value is not None and not isinstance(value, (str, bytes, int, float, set, frozenset, np.ndarray)):
                raise Fault(f"the annotation holds something of type {type(value).__name__.lstrip('_')}")
            count += 1
            if count + len(deeper) > _MAX_VALUES:
                raise Fault(f"the annotation holds more than {_MAX_VALUES} values")
        values = deeper
    if values:
        raise Fault(f"the annotation is nested more than {_MAX_DEPTH} deep")
