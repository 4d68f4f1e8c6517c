"""Regions in `.npz` files: one file for each image, with class probabilities; or one file for all images.

For each image (captioning toolboxes): `features` or `feat`, `boxes`, `image_w`, `image_h`, `cls_prob`.

For all images: `image_ids` (N,), `offsets` (N + 1,): regions of image i are rows
`offsets[i]:offsets[i + 1]`; `boxes` (M, 4), `class_probs` (M, classes), `image_size` (N, 2) as (width, height), and
`region_features_q` (M, dim) int8 with `feature_scale` (dim,), or neither of these two.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...processing.regions import Regions
from .cocobu import first_of
from .common import (
    MAX_REGIONS,
    SIZES,
    Fault,
    Faults,
    ImageSizes,
    Npy,
    Npz,
    OnError,
    RegionBuilder,
    as_float32,
    check_image_sizes,
    checked_image_id,
    checked_side,
    existing_file,
    existing_folder,
    given_size,
    whole_file,
)


def read_npz_folder(
    path: str | os.PathLike,
    *,
    image_sizes: ImageSizes = None,
    background_column: int | None = 0,
    feature_dim: int | None = None,
    detector: str = "",
    on_error: OnError = None,
) -> Iterator[Regions]:
    r"""Regions of a folder of `<id>.npz`, sorted by image id as text.

    Args:
        path (`str` or `os.PathLike`): The folder.
        image_sizes (`Mapping` or "boxes", *optional*): As in [`read_cocobu`], for files without `image_w`, `image_h`.
        background_column (`int`, *optional*): Column of `cls_prob` that is no object, 0 in bottom-up detectors; None if
            there is none. Labels and scores are of the best other column.
        feature_dim (`int`, *optional*): Numbers of one region feature; by default those of the first good image.
        detector (`str`): Name for the records; the files do not have it.
        on_error (`callable` or `list`, *optional*): Gets the error of each broken image; the next ones are still read.

    Raises:
        FeatureFileError: At the first broken image, if there is no `on_error`.
        FileNotFoundError: No such folder.
    """
    check_image_sizes(image_sizes)
    folder = existing_folder(path, "features, one `.npz` for each image")
    if not any(folder.glob("*.npz")):
        raise FileNotFoundError(f"'{folder}' has no `.npz` files; expected one for each image.")
    settings = {"format": "npz", "background_column": background_column}
    builder = RegionBuilder(detector, settings, feature_dim, background_column=background_column)
    return _folder_regions(folder, image_sizes, builder, Faults(folder, on_error))


def _folder_regions(folder: Path, image_sizes: ImageSizes, builder: RegionBuilder, faults: Faults) -> Iterator[Regions]:
    for path in sorted(folder.glob("*.npz")):
        regions: Regions | None = None
        with faults.at() as place:
            place.file = path
            place.image_id = image_id = checked_image_id(path.stem)
            with Npz(path) as file:
                features = file.array(first_of(("features", "feat"), file))
                boxes = file.array("boxes")
                probs = file.array("cls_prob") if "cls_prob" in file else None
                if boxes.shape[:1] == (0,):
                    raise Fault("there are no boxes")
                if "image_w" in file or "image_h" in file:
                    size = _side(file, "image_h"), _side(file, "image_w")
                else:
                    advice = f"there is no `image_w` and `image_h`, so give {SIZES}"
                    size = given_size(image_sizes, image_id, boxes, advice)
            regions = builder.build(image_id, size, boxes, features, probs)
        if regions is not None:
            yield regions


def _side(file: Npz, name: str) -> int:
    array = file.array(name)
    if array.size != 1:
        raise Fault(f"`{name}` must be one number, got shape {array.shape}")
    return checked_side(array.item(), name)


def read_regions_npz(path: str | os.PathLike, *, detector: str = "", on_error: OnError = None) -> Iterator[Regions]:
    r"""Regions of one `.npz` file with all images, in the order of the file; an image may have none.

    The arrays are gone through twice, first for their checksums, and never held whole.

    Args:
        path (`str` or `os.PathLike`): The file.
        detector (`str`): Name for the records; the file does not have it.
        on_error (`callable` or `list`, *optional*): Gets the error of each broken image; the next ones are still read.

    Raises:
        FeatureFileError: If the file or its arrays are damaged; at the first broken image, if there is no `on_error`.
        FileNotFoundError: No such file.
    """
    path = existing_file(path, "regions of all images in one `.npz`")
    builder = RegionBuilder(detector, {"format": "regions-npz", "background_column": None})
    return _file_regions(path, builder, Faults(path, on_error))


def _file_regions(path: Path, builder: RegionBuilder, faults: Faults) -> Iterator[Regions]:
    with whole_file(path):
        file = Npz(path)
    with file:
        with whole_file(path):
            image_ids, offsets, sizes = (file.array(name) for name in ("image_ids", "offsets", "image_size"))
            _check_index(image_ids, offsets, sizes)
            has_features = "region_features_q" in file
            scale = _scale(file) if has_features else None
            names = ["boxes", "class_probs", *(["region_features_q"] if has_features else [])]
            for name in names:
                file.check(name)
            streams = [file.open(name) for name in names]
            for stream in streams:
                _check_stream(stream, int(offsets[-1]))
            if scale is not None and streams[2].shape[1:] != scale.shape:
                raise Fault(f"`feature_scale` has shape {scale.shape}, `region_features_q` {streams[2].shape}")
        for row, image_id in enumerate(image_ids.tolist()):
            count = int(offsets[row + 1] - offsets[row])
            with whole_file(path):
                boxes, probs, *features = (stream.rows(count) for stream in streams)
            regions: Regions | None = None
            with faults.at(row) as place:
                place.image_id = image_id = checked_image_id(image_id)
                width, height = (checked_side(side, "image_size") for side in sizes[row].tolist())
                with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by the builder
                    vectors = None if scale is None else as_float32(features[0], "features") * scale
                regions = builder.build(image_id, (height, width), boxes, vectors, probs)
            if regions is not None:
                yield regions


def _check_index(image_ids: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> None:
    fits = (
        image_ids.dtype.kind in "iuUS"
        and image_ids.ndim == 1
        and offsets.dtype.kind in "iu"
        and offsets.shape == (len(image_ids) + 1,)
        and sizes.shape == (len(image_ids), 2)
        and sizes.dtype.kind in "iu"
    )
    if not fits:
        arrays = {"image_ids": image_ids, "offsets": offsets, "image_size": sizes}
        shapes = ", ".join(f"`{name}` {array.dtype} {array.shape}" for name, array in arrays.items())
        raise Fault(f"the arrays do not belong together: {shapes}, expected (N,), (N + 1,), (N, 2)")
    # Compared before they are subtracted: a damaged pair may differ by more than the type holds.
    if offsets[0] != 0 or (offsets[1:] < offsets[:-1]).any():
        raise Fault("`offsets` must rise from 0 to the number of regions")
    if (np.diff(offsets) > MAX_REGIONS).any():
        row = int((np.diff(offsets) > MAX_REGIONS).argmax())
        raise Fault(f"row {row} claims {offsets[row + 1] - offsets[row]} boxes; an image has at most {MAX_REGIONS}")


def _scale(file: Npz) -> np.ndarray:
    scale = file.array("feature_scale")
    if scale.ndim != 1 or scale.dtype.kind not in "fiu" or not np.isfinite(scale).all():
        raise Fault(f"`feature_scale` must be one finite number for each column, got {scale.dtype} {scale.shape}")
    return scale.astype(np.float32)


def _check_stream(stream: Npy, num_regions: int) -> None:
    if len(stream.shape) != 2 or stream.shape[0] != num_regions or stream.fortran_order:
        order = " in columns' order" if stream.fortran_order else ""
        raise Fault(f"{stream.name} has shape {stream.shape}{order}, expected ({num_regions}, numbers) by `offsets`")
    if stream.dtype.kind not in "fiu":
        raise Fault(f"{stream.name} must be numbers, got {stream.dtype}")
