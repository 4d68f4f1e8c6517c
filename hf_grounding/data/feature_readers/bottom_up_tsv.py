"""Bottom-up features as tab-separated text: one line for each image, arrays as base64 of float32, no header line.

Columns: image_id, image_w, image_h, num_boxes, boxes, features. The public files have no class probabilities.
"""

from __future__ import annotations

import base64
import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from ...processing.regions import Regions
from .common import (
    MAX_ARRAY_BYTES,
    Fault,
    Faults,
    OnError,
    RegionBuilder,
    checked_count,
    checked_image_id,
    checked_side,
    decoding,
    existing_file,
    whole_file,
)

COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
MAX_LINE_BYTES = MAX_ARRAY_BYTES * 4 // 3 + 2**20  # the features in base64, and the rest


def read_bottom_up_tsv(
    path: str | os.PathLike,
    *,
    feature_dim: int | None = None,
    detector: str = "",
    on_error: OnError = None,
) -> Iterator[Regions]:
    r"""Regions of a bottom-up TSV, plain or gzipped, in the order of the file.

    Args:
        path (`str` or `os.PathLike`): The file.
        feature_dim (`int`, *optional*): Numbers of one region feature, 2048 in the public files; by default those of
            the first good row.
        detector (`str`): Name for the records; the file does not have it.
        on_error (`callable` or `list`, *optional*): Gets the error of each broken row; the next rows are still read.

    Raises:
        FeatureFileError: At the first broken row, if there is no `on_error`.
        FileNotFoundError: No such file.
    """
    path = existing_file(path, "a TSV of bottom-up features")
    builder = RegionBuilder(detector, {"format": "bottom-up-tsv"}, feature_dim)
    return _regions(path, builder, Faults(path, on_error))


def _regions(path: Path, builder: RegionBuilder, faults: Faults) -> Iterator[Regions]:
    with whole_file(path):
        if not path.stat().st_size:
            raise Fault("the file is empty")
    with _open(path) as stream:
        row = 0
        while True:
            row += 1
            line: bytes | None = None
            regions: Regions | None = None
            with faults.at(row):
                line = _read_line(stream)
            if line is None or line == b"":  # a stream that cannot be read any further has no next row
                return
            with faults.at(row) as place:
                fields = line.rstrip(b"\r\n").split(b"\t")
                if fields == [b""]:
                    continue
                if len(fields) > 1:
                    place.image_id = checked_image_id(fields[0])
                if len(line) > MAX_LINE_BYTES:
                    _skip_line(stream)
                    raise Fault(f"the line is longer than {MAX_LINE_BYTES} bytes")
                regions = _row(fields, builder)
            if regions is not None:
                yield regions


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path, "rb")) if zipped else path.open("rb")


def _read_line(stream: BinaryIO) -> bytes:
    with decoding("the rest of the file"):
        return stream.readline(MAX_LINE_BYTES + 1)


def _skip_line(stream: BinaryIO) -> None:
    with decoding("the rest of the file"):
        while (part := stream.readline(2**20)) and not part.endswith(b"\n"):
            pass


def _row(fields: list[bytes], builder: RegionBuilder) -> Regions:
    if len(fields) != len(COLUMNS):
        raise Fault(f"it has {len(fields)} columns, expected {len(COLUMNS)}: {', '.join(COLUMNS)}")
    image_id = checked_image_id(fields[0])
    width = checked_side(fields[1].decode("ascii", "replace"), "image_w")
    height = checked_side(fields[2].decode("ascii", "replace"), "image_h")
    if not fields[3].isdigit() or len(fields[3]) > 18:
        raise Fault(f"`num_boxes` must be a whole number, got {fields[3][:40].decode('ascii', 'replace')!r}")
    num_boxes = checked_count(int(fields[3]))
    boxes = _floats(fields[4], "boxes", num_boxes, 4)
    features = _floats(fields[5], "features", num_boxes, builder.feature_dim)
    return builder.build(image_id, (height, width), boxes, features)


def _floats(text: bytes, name: str, num_boxes: int, length: int | None) -> np.ndarray:
    with decoding(f"{name} as base64"):
        data = base64.b64decode(text, validate=True)
    if length is None:
        length = len(data) // (4 * num_boxes)
        if length == 0 or len(data) != 4 * num_boxes * length:
            raise Fault(f"{name} hold {len(data)} bytes, which are no float32 vectors for {num_boxes} boxes")
    needed = 4 * num_boxes * length
    if len(data) != needed:
        what = f"{num_boxes} boxes x {length} float32"
        raise Fault(f"{name} hold {len(data)} bytes where {what} need {needed}")
    return np.frombuffer(data, "<f4").reshape(num_boxes, length)
