"""Detected regions of a data set's images, from one `.npz` file: what the "most confident region" baseline reads.

Arrays: `image_ids` (N,), `offsets` (N + 1,): regions of image i are rows `offsets[i]:offsets[i + 1]`; `boxes` (M, 4),
xyxy in pixels of the original image; `class_probs` (M, classes).
"""

from __future__ import annotations

import os
import zipfile

import numpy as np

__all__ = ["read_region_boxes"]

_ARRAYS = ("image_ids", "offsets", "boxes", "class_probs")


def read_region_boxes(path: str | os.PathLike) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Boxes (n, 4) and confidences (n,), the largest class probability of each, by image id.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is no such file, or its arrays do not belong together; the message says what is wrong.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        with file:
            arrays = {name: file[name] for name in _ARRAYS if name in file}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"'{path}' cannot be read as an .npz file of regions ({error}).") from error
    missing = [name for name in _ARRAYS if name not in arrays]
    if missing:
        raise ValueError(f"'{path}' has no array {missing}; a file of regions holds {list(_ARRAYS)}.")
    image_ids, offsets, boxes, class_probs = (arrays[name] for name in _ARRAYS)
    if image_ids.dtype.kind == "S":
        image_ids = np.char.decode(image_ids, "utf-8")
    numbers = offsets.dtype.kind in "iu" and boxes.dtype.kind in "iuf" and class_probs.dtype.kind in "iuf"
    fits = (
        numbers
        and image_ids.ndim == 1
        and offsets.shape == (len(image_ids) + 1,)
        and offsets[0] == 0
        and (np.diff(offsets) >= 0).all()
        and boxes.shape == (offsets[-1], 4)
        and class_probs.shape[:1] == boxes.shape[:1]
        and class_probs.ndim == 2
    )
    if not fits:
        shapes = ", ".join(f"`{name}` {array.dtype} {array.shape}" for name, array in arrays.items())
        raise ValueError(
            f"The arrays of '{path}' do not belong together: {shapes}, `offsets` from 0 up to all regions."
        )
    scores = class_probs.max(axis=1, initial=0)
    spans = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    return {
        str(image_id): (boxes[start:end], scores[start:end])
        for image_id, (start, end) in zip(image_ids.tolist(), spans, strict=True)
    }
