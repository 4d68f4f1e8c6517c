"""What all feature readers share: the error, the limits, `.npy` and `.npz` without pickle, and checked `Regions`.

Files come from anywhere, so a size is believed only after it was compared with a limit or with the bytes that are
there, and whatever a library raises over damaged bytes leaves as one kind of error that says where.
"""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from ...processing.regions import Regions

MAX_REGIONS = 10_000  # of one image; a 19 x 19 grid has 361
MAX_ARRAY_BYTES = 64 * 2**20  # of one array of one image; 100 regions x 2048 float32 are 0.8 MB
MAX_SIDE = 1_000_000  # pixels
MAX_ID_LENGTH = 255  # ids become names of files
_TOLERANCE = 1e-3  # by which probabilities may leave [0, 1]: float16 softmax


class FeatureFileError(ValueError):
    r"""A file of features is malformed or cut short. The message names file, row or image, and reason.

    Args:
        file (`str` or `os.PathLike`): The file, or the folder when a file is missing from it.
        reason (`str`): What is wrong.
        row (`int`, *optional*): Line of a text file counted from 1; row of an HDF5 file as its index counts, from 0.
        image_id (`str`, *optional*): Where it is known.
    """

    def __init__(self, file: str | os.PathLike, reason: str, row: int | None = None, image_id: str | None = None):
        self.file, self.reason, self.row, self.image_id = os.fspath(file), reason, row, image_id
        image = "" if image_id is None else f"image {image_id!r}"
        if row is None:
            where = f", {image}" if image else ""
        else:
            where = f", row {row} ({image})" if image else f", row {row}"
        super().__init__(f"'{self.file}'{where}: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.file, self.reason, self.row, self.image_id)


# A function that gets each error, or a list that collects them; reading goes on with the next image.
OnError = Callable[[FeatureFileError], object] | list[FeatureFileError] | None
# Image id -> (height, width); ids may be numbers. "boxes": the smallest size that holds all boxes of the image.
ImageSizes = Mapping[Any, tuple[int, int]] | str | None


SIZES = '`image_sizes` (`--image_sizes`: a JSON file), or "boxes" there to guess them from the boxes'  # what to give


class Fault(ValueError):
    """A reason without its place; [`Faults.at`] adds that."""


@contextlib.contextmanager
def decoding(what: str) -> Iterator[None]:
    """Stands around calls of other libraries on bytes from outside; on damaged ones they raise nearly anything."""
    try:
        yield
    except (Fault, FeatureFileError):
        raise
    except Exception as error:
        text = str(error) or type(error).__name__
        raise Fault(f"{what} cannot be read ({text[:200]})") from error


@dataclass
class Place:
    """Where in a file a reader is; filled in as it learns it."""

    file: str | os.PathLike
    row: int | None = None
    image_id: str | None = None


class Faults:
    """Gives every fault its place, then raises it or hands it to `on_error`."""

    def __init__(self, file: str | os.PathLike, on_error: OnError):
        if on_error is not None and not callable(on_error) and not isinstance(on_error, list):
            raise TypeError(f"`on_error` must be a function, a list or None, got {type(on_error).__name__}.")
        self.file, self.on_error = file, on_error

    @contextlib.contextmanager
    def at(self, row: int | None = None, image_id: str | None = None) -> Iterator[Place]:
        """The block's fault ends the block; without `on_error` it ends the reading."""
        place = Place(self.file, row, image_id)
        try:
            yield place
        except Fault as fault:
            error = FeatureFileError(place.file, str(fault), place.row, place.image_id)
            if self.on_error is None:
                raise error from fault
            if isinstance(self.on_error, list):
                self.on_error.append(error)
            else:
                self.on_error(error)


@contextlib.contextmanager
def whole_file(file: str | os.PathLike) -> Iterator[None]:
    """For what must be right before any image can be read: raised even with `on_error`, as nothing would follow."""
    try:
        yield
    except Fault as fault:
        raise FeatureFileError(file, str(fault)) from fault


def existing_file(path: str | os.PathLike, what: str) -> Path:
    """The path of a regular file. A named pipe or device would keep a reader waiting.

    Raises:
        FileNotFoundError: If there is none.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"'{os.fspath(path)}' is no file; expected {what}.")
    return Path(path)


def existing_folder(path: str | os.PathLike, what: str) -> Path:
    """The path of a folder.

    Raises:
        FileNotFoundError: If there is none.
    """
    if not Path(path).is_dir():
        raise FileNotFoundError(f"'{os.fspath(path)}' is no folder; expected {what}.")
    return Path(path)


def checked_image_id(value: Any) -> str:
    """An image id as text. It becomes a name of files, so one with folders in it would lead elsewhere."""
    if isinstance(value, bytes):
        with decoding("the image id"):
            value = value.decode("utf-8")
    if isinstance(value, np.integer):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value) if abs(value) < 2**64 else ""
    if not isinstance(value, str):
        raise Fault(f"the image id must be text or a whole number, got {type(value).__name__}")
    plain = value and value.isprintable() and value == value.strip() and not {"/", "\\"} & set(value)
    if not plain or value in (".", "..") or len(value) > MAX_ID_LENGTH:
        raise Fault(f"{value[:40]!r} is no image id; expected a plain name of at most {MAX_ID_LENGTH} characters")
    return value


def checked_side(value: Any, name: str) -> int:
    """Width or height in pixels, from a number or the text of one."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        value = int(value)
    whole = isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and 1 <= value <= MAX_SIDE
    if not whole or value != int(value):
        shown = (
            repr(value)[:40] if isinstance(value, (str, int, float)) and not _is_huge(value) else type(value).__name__
        )
        raise Fault(f"`{name}` must be a whole number of pixels from 1 to {MAX_SIDE}, got {shown}")
    return int(value)


def _is_huge(value: Any) -> bool:
    return isinstance(value, int) and value.bit_length() > 128  # Python refuses to print thousands of digits


def given_size(image_sizes: ImageSizes, image_id: str, boxes: np.ndarray, advice: str) -> tuple[int, int]:
    """(height, width) from what the caller gave, for files that do not have it."""
    if image_sizes == "boxes":
        if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "fiu" or not np.isfinite(boxes).all():
            raise Fault(f"the boxes give no image size: they are {boxes.dtype} {boxes.shape}, expected finite (n, 4)")
        width, height = (math.ceil(side) for side in boxes[:, 2:].max(axis=0, initial=1).tolist())
        return checked_side(height, "height"), checked_side(width, "width")
    if isinstance(image_sizes, Mapping):
        size = image_sizes.get(image_id)
        if size is None and image_id.isdecimal():
            size = image_sizes.get(int(image_id))
        if size is None:
            raise Fault("its size is not in `image_sizes`")
        return checked_side(size[0], "height"), checked_side(size[1], "width")
    raise Fault(f"the size of the image is unknown: {advice}")


def check_image_sizes(image_sizes: ImageSizes) -> None:
    """Refuses what cannot be image sizes before a file is opened."""
    if image_sizes is not None and image_sizes != "boxes" and not isinstance(image_sizes, Mapping):
        raise TypeError('`image_sizes` must map image ids to (height, width), or be "boxes" or None.')


def checked_count(value: Any, what: str = "boxes") -> int:
    """A number of regions of one image, before anything of that size is made."""
    if not 1 <= value <= MAX_REGIONS:
        raise Fault(f"it claims {value} {what}; an image has 1 to {MAX_REGIONS}")
    return int(value)


def as_float32(array: np.ndarray, name: str) -> np.ndarray:
    """The array's own float32 copy."""
    if array.dtype.kind not in "fiu":
        raise Fault(f"{name} must be numbers, got {array.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float32)


@dataclass
class RegionBuilder:
    """Makes `Regions` out of arrays after checking them; all images of one file have equally long vectors.

    `feature_dim` and `num_classes`, where not given, are those of the first good image.
    """

    detector: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    feature_dim: int | None = None
    num_classes: int | None = None
    background_column: int | None = None

    def build(
        self,
        image_id: str,
        image_size: tuple[int, int],
        boxes: np.ndarray,
        region_features: np.ndarray | None = None,
        class_probs: np.ndarray | None = None,
    ) -> Regions:
        """The whole record, or a [`Fault`]."""
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise Fault(f"boxes have shape {boxes.shape}, expected (n, 4)")
        boxes = as_float32(boxes, "boxes")
        _refuse_rows(~np.isfinite(boxes).all(axis=1), boxes, "not finite")
        _refuse_rows(np.any(boxes[:, 2:] < boxes[:, :2], axis=1), boxes, "not xyxy with x1 <= x2 and y1 <= y2")
        values: dict[str, Any] = {}
        if region_features is not None:
            features = self._vectors(region_features, len(boxes), "features", self.feature_dim)
            values["region_features"] = features
        if class_probs is not None:
            probs = self._vectors(class_probs, len(boxes), "class probabilities", self.num_classes)
            outside = (probs < -_TOLERANCE) | (probs > 1 + _TOLERANCE)
            if outside.any():
                row = int(outside.any(axis=1).argmax())
                raise Fault(f"class probabilities of box {row} leave [0, 1], e.g. {float(probs[outside][0]):g}")
            values["class_probs"] = probs = probs.clip(0, 1)
            values["labels"], values["scores"] = self._best_classes(probs)
        with decoding("the record"):
            regions = Regions(
                image_id, image_size, boxes, **values, detector=self.detector, settings=dict(self.settings)
            )
        if region_features is not None:
            self.feature_dim = features.shape[1]
        if class_probs is not None:
            self.num_classes = probs.shape[1]
        return regions

    def _vectors(self, array: np.ndarray, num_boxes: int, name: str, length: int | None) -> np.ndarray:
        if array.ndim != 2 or len(array) != num_boxes or array.shape[1] == 0:
            raise Fault(f"{name} have shape {array.shape} for {num_boxes} boxes, expected ({num_boxes}, numbers)")
        if length is not None and array.shape[1] != length:
            raise Fault(f"{name} have {array.shape[1]} numbers for each box, where {length} are expected")
        array = as_float32(array, name)
        bad = ~np.isfinite(array).all(axis=1)
        if bad.any():
            raise Fault(f"{name} of box {int(bad.argmax())} are not finite")
        return array

    def _best_classes(self, probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Column and probability of the best class of each region; the background is none."""
        objects = probs
        if self.background_column is not None:
            if not 0 <= self.background_column < probs.shape[1] or probs.shape[1] < 2:
                raise Fault(
                    f"class probabilities have {probs.shape[1]} columns, with the background in column "
                    f"{self.background_column}; give `background_column=None` (`--background_column none`) if they "
                    "have no background"
                )
            objects = probs.copy()
            objects[:, self.background_column] = -1
        labels = objects.argmax(axis=1)
        return labels, probs[np.arange(len(probs)), labels]


def _refuse_rows(bad: np.ndarray, boxes: np.ndarray, what: str) -> None:
    if bad.any():
        row = int(bad.argmax())
        raise Fault(f"box {row} is {what}: {boxes[row].tolist()}")


class Npy:
    """One array of `.npy` bytes, read from front to end: all of it, or some rows at a time. Never unpickles."""

    def __init__(self, stream: BinaryIO, name: str):
        self.stream, self.name = stream, name
        with decoding(name):
            version = np.lib.format.read_magic(stream)
            if version != (1, 0):  # what numpy writes for every header below 64 KB
                raise Fault(f"{name} has `.npy` version {version}, expected (1, 0)")
            shape, self.fortran_order, self.dtype = np.lib.format.read_array_header_1_0(stream)
        if self.dtype.kind not in "fiubUS" or not self.dtype.itemsize:
            raise Fault(f"{name} holds {self.dtype}, expected plain numbers or text")
        if not all(type(side) is int and 0 <= side < 2**48 for side in shape):
            raise Fault(f"{name} has the impossible shape {shape}")
        self.shape: tuple[int, ...] = shape

    @property
    def nbytes(self) -> int:
        """Bytes the whole array takes, by its header."""
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, count: int) -> np.ndarray:
        """The next `count` rows."""
        return self._read((count, *self.shape[1:]))

    def all(self, limit: int = MAX_ARRAY_BYTES) -> np.ndarray:
        """The whole array, if its header does not ask for more than `limit` bytes."""
        if self.nbytes > limit:
            raise Fault(f"{self.name} claims shape {self.shape} of {self.dtype}, over the limit of {limit} bytes")
        array = self._read(self.shape[::-1]).T if self.fortran_order else self._read(self.shape)
        self.end()
        return array

    def end(self) -> None:
        """Checks that no byte follows, and in a zip file with that the checksum."""
        with decoding(self.name):
            if self.stream.read(1):
                raise Fault(f"{self.name} goes on after its last number")

    def _read(self, shape: tuple[int, ...]) -> np.ndarray:
        size = math.prod(shape) * self.dtype.itemsize
        if size > MAX_ARRAY_BYTES:
            raise Fault(f"{self.name} claims {size} bytes, over the limit of {MAX_ARRAY_BYTES}")
        with decoding(self.name):
            data = self.stream.read(size)
            if len(data) != size:
                raise Fault(f"{self.name} holds {len(data)} bytes where shape {shape} of {self.dtype} needs {size}")
            return np.frombuffer(data, self.dtype).reshape(shape)


def read_npy(path: Path) -> np.ndarray:
    """The array of one small `.npy` file."""
    if not path.is_file():
        raise Fault("the file is missing")
    with decoding("the file"), path.open("rb") as stream:
        return Npy(stream, "the array").all()


class Npz:
    """Arrays of an `.npz` file, each opened only when it is asked for."""

    def __init__(self, path: Path):
        if not path.is_file():
            raise Fault("the file is missing")
        with decoding("the file"):
            self._zip = zipfile.ZipFile(path)
        self._streams = contextlib.ExitStack()  # an open member keeps the file open
        self.names = [name.removesuffix(".npy") for name in self._zip.namelist()]

    def __enter__(self) -> Npz:
        return self

    def __exit__(self, *error: object) -> None:
        self._streams.close()
        self._zip.close()

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def open(self, name: str) -> Npy:
        """The array `name`, to be read row by row."""
        if name not in self.names:
            raise Fault(f"there is no array `{name}`; it has {', '.join(self.names[:10])[:200] or 'none'}")
        member = f"{name}.npy"
        with decoding(f"`{name}`"):
            info = self._zip.getinfo(member)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others reserve gigabytes
                raise Fault(f"`{name}` is compressed by method {info.compress_type}, which numpy does not write")
            stream = self._streams.enter_context(self._zip.open(info))
            return Npy(cast(BinaryIO, stream), f"`{name}`")

    def array(self, name: str, limit: int = MAX_ARRAY_BYTES) -> np.ndarray:
        """The whole array `name`, if it is within `limit`."""
        return self.open(name).all(limit)

    def check(self, name: str) -> None:
        """Reads `name` through once: the checksum stands behind the last byte, and images come out before that."""
        npy = self.open(name)
        with decoding(f"`{name}`"):
            left = npy.nbytes
            while left:
                data = npy.stream.read(min(left, 2**20))
                if not data:
                    raise Fault(f"`{name}` is cut short: {left} bytes of shape {npy.shape} are missing")
                left -= len(data)
            npy.end()
