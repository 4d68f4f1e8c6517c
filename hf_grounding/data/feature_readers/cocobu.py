"""Bottom-up features as captioning toolboxes keep them: `<name>_att/<id>.npz` and `<name>_box/<id>.npy` side by side.

`<name>_fc/<id>.npy`, one vector for the whole image, may be there; `Regions` have no place for it and it is not read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ...processing.regions import Regions
from .common import (
    SIZES,
    Fault,
    Faults,
    ImageSizes,
    Npz,
    OnError,
    RegionBuilder,
    check_image_sizes,
    checked_image_id,
    existing_folder,
    given_size,
    read_npy,
)

FEATURE_NAMES = ("feat", "features", "arr_0")


def read_cocobu(
    path: str | os.PathLike,
    *,
    image_sizes: ImageSizes = None,
    box_dir: str | os.PathLike | None = None,
    feature_dim: int | None = None,
    detector: str = "",
    on_error: OnError = None,
) -> Iterator[Regions]:
    r"""Regions of cocobu folders, sorted by image id as text.

    Args:
        path (`str` or `os.PathLike`): The folder `<name>_att`, or the folder that holds it and no other such one.
        image_sizes (`Mapping`): (height, width) of each image by its id; the files do not have it. "boxes" takes the
            smallest size that holds all boxes of an image, a little too small where none touches the border.
        box_dir (`str` or `os.PathLike`, *optional*): Folder of the boxes; by default `<name>_box` beside `<name>_att`.
        feature_dim (`int`, *optional*): Numbers of one region feature; by default those of the first good image.
        detector (`str`): Name for the records; the files do not have it.
        on_error (`callable` or `list`, *optional*): Gets the error of each broken image; the next ones are still read.

    Raises:
        FeatureFileError: At the first broken image, if there is no `on_error`.
        FileNotFoundError: No such folder.
    """
    check_image_sizes(image_sizes)
    att_dir = _att_dir(existing_folder(path, "cocobu features"))
    if box_dir is None:
        if not att_dir.name.endswith("_att"):
            raise FileNotFoundError(
                f"'{att_dir}' is not called '<name>_att', so give the folder of boxes as `box_dir` (`--box_dir`)."
            )
        box_dir = att_dir.with_name(att_dir.name.removesuffix("_att") + "_box")
    box_dir = existing_folder(box_dir, "boxes `<id>.npy` of cocobu features")
    if not any(att_dir.glob("*.npz")):
        raise FileNotFoundError(f"'{att_dir}' has no `.npz` files; expected one for each image.")
    settings = {"format": "cocobu", "image_size_from": "boxes" if image_sizes == "boxes" else "given"}
    return _regions(att_dir, box_dir, image_sizes, RegionBuilder(detector, settings, feature_dim), on_error)


def _att_dir(path: Path) -> Path:
    if path.name.endswith("_att") or any(path.glob("*.npz")):
        return path
    inside = sorted(folder for folder in path.glob("*_att") if folder.is_dir())
    if len(inside) != 1:
        found = ", ".join(folder.name for folder in inside) or "none"
        raise FileNotFoundError(f"'{path}' must be or hold one folder '<name>_att', got {found}.")
    return inside[0]


def _regions(
    att_dir: Path, box_dir: Path, image_sizes: ImageSizes, builder: RegionBuilder, on_error: OnError
) -> Iterator[Regions]:
    faults = Faults(att_dir, on_error)
    names = {path.stem for path in att_dir.glob("*.npz")} | {path.stem for path in box_dir.glob("*.npy")}
    for name in sorted(names):
        regions: Regions | None = None
        with faults.at() as place:
            place.file = att_dir / f"{name}.npz"
            place.image_id = image_id = checked_image_id(name)
            with Npz(Path(place.file)) as file:
                features = file.array(first_of(FEATURE_NAMES, file))
            place.file = box_dir / f"{name}.npy"
            boxes = read_npy(Path(place.file))
            if boxes.shape[:1] == (0,):
                raise Fault("there are no boxes")
            size = given_size(image_sizes, image_id, boxes, f"give {SIZES}")
            regions = builder.build(image_id, size, boxes, features)
        if regions is not None:
            yield regions


def first_of(names: tuple[str, ...], file: Npz) -> str:
    """The first of these names that the file has; the very first if it has none, for the message."""
    return next((name for name in names if name in file), names[0])
