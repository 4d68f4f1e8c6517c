"""Readers of the region features people already have, one image at a time: `read_features(path, "bottom-up-tsv")`.

Each format is one file here; `FORMATS` names them. They share `common.py` (the error, the limits, checks of arrays),
`plain_pickle.py` (pickles that hold only data) and `lmdb_pages.py` (LMDB without its library).
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ...processing.regions import Regions
from .bottom_up_tsv import read_bottom_up_tsv
from .cocobu import read_cocobu
from .common import FeatureFileError
from .grounding_lmdb import AnnotatedImage, read_grounding_lmdb
from .region_npz import read_npz_folder, read_regions_npz
from .vqa_hdf5 import read_vqa_hdf5

__all__ = [
    "FORMATS",
    "AnnotatedImage",
    "FeatureFileError",
    "read_bottom_up_tsv",
    "read_cocobu",
    "read_features",
    "read_grounding_lmdb",
    "read_npz_folder",
    "read_regions_npz",
    "read_vqa_hdf5",
]

_READERS: dict[str, tuple[Callable[..., Iterator[Regions]], str]] = {
    "bottom-up-tsv": (read_bottom_up_tsv, "One TSV, plain or gzipped: sizes, boxes and features in base64."),
    "cocobu": (read_cocobu, "Folders `<name>_att/<id>.npz` and `<name>_box/<id>.npy`; needs `image_sizes`."),
    "npz": (read_npz_folder, "A folder of `<id>.npz` with features, boxes, sizes and `cls_prob`."),
    "regions-npz": (read_regions_npz, "One `.npz` of all images: ids, offsets, boxes, class probabilities."),
    "vqa-hdf5": (read_vqa_hdf5, "One HDF5 file, fixed or adaptive, with its pickle `image id -> row`."),
}

FORMATS: dict[str, str] = {name: line for name, (_, line) in _READERS.items()}
"""Names that [`read_features`] takes, each with one line about it."""


def read_features(path: str | os.PathLike, format: str, **options: Any) -> Iterator[Regions]:  # noqa: A002
    r"""Regions of a file or folder of one of the [`FORMATS`], one image at a time.

    Args:
        path (`str` or `os.PathLike`): The file or folder.
        format (`str`): One of [`FORMATS`].
        options: Those of the format's own reader; every one takes `on_error`, a function or a list that gets the
            errors of broken images, which are then left out.

    Raises:
        FeatureFileError: For a file that cannot be read at all; at the first broken image, if there is no `on_error`.
        FileNotFoundError: No such file or folder.
        ValueError: Unknown `format` or option.
    """
    if format not in _READERS:
        if format in ("lmdb", "grounding-lmdb"):
            raise ValueError(f"Format {format!r} holds photos, not regions. Use `read_grounding_lmdb`.")
        raise ValueError(f"Unknown format {format!r}.{_nearest(format, FORMATS)}")
    reader = _READERS[format][0]
    known = [name for name in inspect.signature(reader).parameters if name != "path"]
    for option in options:
        if option not in known:
            raise ValueError(f"Format {format!r} has no option `{option}`.{_nearest(option, known)}")
    return reader(path, **options)


def _nearest(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known: {', '.join(names)}."
