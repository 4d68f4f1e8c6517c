"""Feature maps of a frozen backbone on disk: one memory-mapped float16 array for each level, and an index.

    <folder>/index.json     image ids in row order, and what the maps were made with
    <folder>/level_0.npy    (images, height, width, channels) float16, low level first

A folder appears only when it is complete: it is written aside and renamed. Plain `.npy`, read without pickle.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

_ABANDONED = 24 * 3600  # seconds after which files that nobody writes to any more are those of a killed process


class FeatureStore:
    r"""Maps of all images of a folder, read as they are asked for.

    Raises:
        FileNotFoundError: If the folder is no feature store.
        ValueError: If its files do not fit its index, as after a full disk or an interrupted copy.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        try:
            index = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"'{folder}' is no feature store: it has no index.json. Compute the features again."
            ) from error
        except ValueError as error:
            raise self._damaged("index.json", str(error)) from error
        try:
            self.settings: dict[str, Any] = index["settings"]
            self.rows: dict[str, int] = {image_id: row for row, image_id in enumerate(index["image_ids"])}
            levels = list(index["levels"].items())
        except (KeyError, TypeError, AttributeError) as error:
            raise self._damaged("index.json", f"no index of features: {error!r}") from error
        self.levels = [self._open(name, shape) for name, shape in levels]

    def _open(self, name: str, shape: list[int]) -> np.ndarray:
        try:
            array = np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise self._damaged(name, str(error)) from error
        if list(array.shape) != shape or array.dtype != np.float16:
            raise self._damaged(name, f"{array.dtype} {array.shape} where the index says float16 {shape}")
        return array

    def _damaged(self, name: str, what: str) -> ValueError:
        return ValueError(
            f"'{self.folder / name}' cannot be read ({what}). Delete the folder; features are computed again."
        )

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, image_ids: Sequence[str]) -> list[np.ndarray]:
        r"""Maps of some images: for each level (images, height, width, channels) float16.

        Raises:
            KeyError: If an image is not in the store.
        """
        missing = [image_id for image_id in image_ids if image_id not in self.rows]
        if missing:
            raise KeyError(f"Images {missing[:5]} are not in the feature store '{self.folder}' ({len(self)} images).")
        rows = [self.rows[image_id] for image_id in image_ids]
        return [level[rows] for level in self.levels]


class FeatureStoreWriter:
    r"""Writes a [`FeatureStore`] row by row, aside.

    On leaving the `with` block without an error it is renamed to `folder`. Plain writes, no memory map: on a full disk
    they raise an `OSError`, where a map would end the process with a signal.
    """

    def __init__(self, folder: str | os.PathLike, image_ids: Iterable[str], settings: dict[str, Any]):
        self.folder = Path(folder)
        self.image_ids = list(image_ids)
        self.settings = settings
        self.files: list[BinaryIO] = []
        self.shapes: list[tuple[int, ...]] = []
        self.num_written = 0

    def __enter__(self) -> "FeatureStoreWriter":
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned()
        self.aside = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}-", dir=self.folder.parent))
        return self

    def write(self, maps: Sequence[np.ndarray]) -> None:
        """Maps of the next images, for each level (images, height, width, channels)."""
        if not self.files:
            self._open(maps)
        for file, shape, array in zip(self.files, self.shapes, maps, strict=True):
            if array.shape[1:] != shape[1:]:
                raise ValueError(f"Maps of one level must have one shape: {shape[1:]}, then {array.shape[1:]}.")
            file.write(np.ascontiguousarray(array, dtype=np.float16).data)
        self.num_written += len(maps[0])

    def _open(self, maps: Sequence[np.ndarray]) -> None:
        for level, array in enumerate(maps):
            shape = (len(self.image_ids), *array.shape[1:])
            file = open(self.aside / f"level_{level}.npy", "wb")  # noqa: SIM115 - `__exit__` closes it
            header = {"descr": np.dtype(np.float16).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            self.files.append(file)
            self.shapes.append(shape)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            for file in self.files:
                file.close()
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self.aside, ignore_errors=True)  # nothing is there after a rename

    def _finish(self) -> None:
        if self.num_written != len(self.image_ids):
            raise ValueError(f"{self.num_written} images were written where {len(self.image_ids)} were announced.")
        levels = {f"level_{i}.npy": shape for i, shape in enumerate(self.shapes)}
        index = {"settings": self.settings, "levels": levels, "image_ids": self.image_ids}
        (self.aside / "index.json").write_text(json.dumps(index), encoding="utf-8")
        if not self.folder.exists():  # else another process finished the same features first
            self.aside.rename(self.folder)

    def _remove_abandoned(self) -> None:
        for folder in self.folder.parent.glob(f".{self.folder.name}-*"):
            times = [path.stat().st_mtime for path in (folder, *folder.iterdir())]
            if time.time() - max(times) > _ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)
