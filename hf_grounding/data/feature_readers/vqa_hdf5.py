"""Bottom-up features of the visual question answering code: one HDF5 file, and a pickle `image id -> row`.

Fixed: `image_features` (n, 36, dim), `image_bb` (n, 36, 4), `spatial_features` (n, 36, 6).
Adaptive: `image_features` (M, dim), `image_bb` (M, 4), `spatial_features` (M, 6), `pos_boxes` (n, 2) start and end.
`spatial_features` are x1/W, y1/H, x2/W, y2/H, w/W, h/H; with the boxes they give the size of the image.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...processing.regions import Regions
from .common import (
    MAX_ARRAY_BYTES,
    SIZES,
    Fault,
    Faults,
    ImageSizes,
    OnError,
    RegionBuilder,
    as_float32,
    check_image_sizes,
    checked_count,
    checked_image_id,
    checked_side,
    decoding,
    existing_file,
    given_size,
    whole_file,
)
from .plain_pickle import load_plain_pickle


def read_vqa_hdf5(
    path: str | os.PathLike,
    *,
    index: str | os.PathLike | None = None,
    image_sizes: ImageSizes = None,
    feature_dim: int | None = None,
    detector: str = "",
    on_error: OnError = None,
) -> Iterator[Regions]:
    r"""Regions of a fixed or adaptive HDF5 file, in the order of its rows; rows that the index leaves out are left out.

    Args:
        path (`str` or `os.PathLike`): The file, as `train36.hdf5`.
        index (`str` or `os.PathLike`, *optional*): Pickle of the dictionary image id -> row; by default
            `<stem>_imgid2idx.pkl` beside the file. Only plain data is read from it.
        image_sizes (`Mapping` or "boxes", *optional*): As in [`read_cocobu`]; by default from `spatial_features`.
        feature_dim (`int`, *optional*): Numbers of one region feature; by default those of the file.
        detector (`str`): Name for the records; the file does not have it.
        on_error (`callable` or `list`, *optional*): Gets the error of each broken row; the next rows are still read.

    Raises:
        FeatureFileError: If the file or its index is damaged; at the first broken row, if there is no `on_error`.
        FileNotFoundError: No such file.
        ImportError: Without h5py.
    """
    check_image_sizes(image_sizes)
    path = existing_file(path, "an HDF5 file of bottom-up features")
    index = path.with_name(f"{path.stem}_imgid2idx.pkl") if index is None else index
    index = existing_file(index, f"the index of '{path}', a pickle of image id -> row; give it as `index` (`--index`)")
    _h5py()
    builder = RegionBuilder(detector, {"format": "vqa-hdf5"}, feature_dim)
    return _regions(path, index, image_sizes, builder, Faults(path, on_error))


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError('HDF5 files need h5py: pip install "hf_grounding[formats]"') from error
    return h5py


def _regions(
    path: Path, index: Path, image_sizes: ImageSizes, builder: RegionBuilder, faults: Faults
) -> Iterator[Regions]:
    with whole_file(index):
        rows_of = load_plain_pickle(index)
        if not isinstance(rows_of, dict):
            raise Fault(f"the index must be a dictionary image id -> row, got {type(rows_of).__name__}")
        if not rows_of:
            raise Fault("the index is empty")
    rows: list[tuple[int, str]] = []
    for key, value in rows_of.items():
        with faults.at() as place:
            place.file = index
            rows.append(_row(key, value))
    with whole_file(path), decoding("the file"):
        file = _h5py().File(path, "r")
    with file:
        with whole_file(path):
            arrays = _Arrays(file, image_sizes is None)
        for row, image_id in sorted(rows):
            regions: Regions | None = None
            with faults.at(row, image_id):
                boxes, features, spatial = arrays.read(row)
                if not np.count_nonzero(boxes):
                    raise Fault("all boxes are 0, as in a row that was never written")
                if spatial is None:
                    size = given_size(image_sizes, image_id, boxes, f"no `spatial_features`, so give {SIZES}")
                else:
                    size = _size(boxes, spatial)
                regions = builder.build(image_id, size, boxes, features)
            if regions is not None:
                yield regions


def _row(key: Any, row: Any) -> tuple[int, str]:
    """Row and image id of one entry of the index."""
    image_id = checked_image_id(key)
    if type(row) is not int or not 0 <= row < 2**48:
        raise Fault(f"the row of image {image_id!r} must be a whole number from 0, got {str(row)[:40]}")
    return row, image_id


class _Arrays:
    """The data sets of a file, checked to be plain numbers inside this very file."""

    def __init__(self, file: Any, needs_spatial: bool):
        self.boxes = _dataset(file, "image_bb")
        self.features = _dataset(file, "image_features")
        with decoding("the file"):
            self.is_adaptive = "pos_boxes" in file
            has_spatial = needs_spatial and "spatial_features" in file
        self.spatial = _dataset(file, "spatial_features") if has_spatial else None
        self.spans = _dataset(file, "pos_boxes") if self.is_adaptive else None
        dims = 2 if self.is_adaptive else 3
        boxes, features = self.boxes.shape, self.features.shape
        spatial = None if self.spatial is None else self.spatial.shape
        fits = (
            len(boxes) == len(features) == dims
            and boxes[:-1] == features[:-1]
            and boxes[-1] == 4
            and spatial in (None, (*boxes[:-1], 6))
            and (self.spans is None or (len(self.spans.shape) == 2 and self.spans.shape[1] == 2))
        )
        if not fits:
            pos = "" if self.spans is None else f", `pos_boxes` {self.spans.shape}"
            raise Fault(
                f"the arrays do not belong together: `image_features` {features}, `image_bb` {boxes}, "
                f"`spatial_features` {spatial}{pos}"
            )
        if self.spans is not None and self.spans.dtype.kind not in "iu":
            raise Fault(f"`pos_boxes` must be whole numbers, got {self.spans.dtype}")
        self.num_images = boxes[0] if self.spans is None else self.spans.shape[0]

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Boxes, features and spatial features of one image."""
        if row >= self.num_images:
            raise Fault(f"the index points behind the last of {self.num_images} rows")
        place: int | slice = row
        count = self.boxes.shape[1] if self.spans is None else 0
        if self.spans is not None:
            start, end = (int(value) for value in _read(self.spans, row, "`pos_boxes`"))
            if not 0 <= start <= end <= self.boxes.shape[0]:
                raise Fault(f"`pos_boxes` are {start} to {end}, of {self.boxes.shape[0]} boxes")
            place, count = slice(start, end), end - start
        checked_count(count)
        if count * self.features.shape[-1] * self.features.dtype.itemsize > MAX_ARRAY_BYTES:
            raise Fault(f"it claims {count} boxes x {self.features.shape[-1]} numbers, over {MAX_ARRAY_BYTES} bytes")
        boxes = as_float32(_read(self.boxes, place, "`image_bb`"), "boxes")
        spatial = None if self.spatial is None else _read(self.spatial, place, "`spatial_features`")
        return boxes, _read(self.features, place, "`image_features`"), spatial


def _dataset(file: Any, name: str) -> Any:
    h5py = _h5py()
    with decoding(f"`{name}`"):
        if name not in file:
            raise Fault(f"there is no array `{name}`; it has {', '.join(list(file)[:10])[:200] or 'none'}")
        dataset = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
        if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
            raise Fault(f"`{name}` is no array inside this file")
        if dataset.dtype.kind not in "fiu" or dataset.shape is None:
            raise Fault(f"`{name}` must be numbers, got {dataset.dtype}")
        size = math.prod(dataset.shape) * dataset.dtype.itemsize
        stored = dataset.id.get_storage_size()
        if dataset.chunks is not None:
            if math.prod(dataset.chunks) * dataset.dtype.itemsize > MAX_ARRAY_BYTES:
                raise Fault(f"`{name}` has chunks of {dataset.chunks}, over {MAX_ARRAY_BYTES} bytes")
            if size and not stored:
                raise Fault(f"`{name}` was never written")
        elif stored < size:
            raise Fault(f"`{name}` of shape {dataset.shape} needs {size} bytes and has {stored}")
    return dataset


def _read(dataset: Any, place: int | slice, name: str) -> np.ndarray:
    with decoding(name):
        return np.asarray(dataset[place])


def _size(boxes: np.ndarray, spatial: np.ndarray) -> tuple[int, int]:
    """(height, width): the far corners in pixels, over the same as parts of the image."""
    width, height = (_side(boxes[:, 2 + axis], spatial[:, 2 + axis], name) for axis, name in enumerate(("W", "H")))
    return height, width


def _side(pixels: np.ndarray, parts: np.ndarray, name: str) -> int:
    best = int(np.nan_to_num(pixels, nan=-1.0, posinf=-1.0).argmax())
    far, part = float(pixels[best]), float(parts[best])
    if not (far > 0 and part > 0):
        raise Fault(f"`spatial_features` give no image size {name}; give {SIZES}")
    side = far / part
    if not math.isfinite(side) or abs(side - round(side)) > 0.05:
        raise Fault(f"`spatial_features` do not belong to the boxes: they give an image size {name} of {side:g}")
    return checked_side(round(side), name)
