"""Feature maps of a frozen backbone on disk: one memory-mapped float16 array for each level, and an index.

    <folder>/index.json     image ids in row order, and what the maps were made with
    <folder>/level_0.npy    (images, height, width, channels) float16, low level first

A folder appears only when it is complete: it is written aside and renamed. Plain `.npy`, read without pickle.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np


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
        self.settings: dict[str, Any] = index["settings"]
        self.rows: dict[str, int] = {image_id: row for row, image_id in enumerate(index["image_ids"])}
        self.levels = [self._open(name, shape) for name, shape in index["levels"].items()]

    def _open(self, name: str, shape: list[int]) -> np.ndarray:
        try:
            array = np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"'{self.folder / name}' cannot be read ({error}). Delete the folder; features are computed again."
            ) from error
        if list(array.shape) != shape or array.dtype != np.float16:
            raise ValueError(
                f"'{self.folder / name}' holds {array.dtype} {array.shape} where the index says float16 "
                f"{tuple(shape)}. Delete the folder; features are computed again."
            )
        return array

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

    On leaving the `with` block without an error it is renamed to `folder`.
    """

    def __init__(self, folder: str | os.PathLike, image_ids: Iterable[str], settings: dict[str, Any]):
        self.folder = Path(folder)
        self.image_ids = list(image_ids)
        self.settings = settings
        self.levels: list[np.memmap] = []

    def __enter__(self) -> "FeatureStoreWriter":
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.aside = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}-", dir=self.folder.parent))
        return self

    def write(self, start: int, maps: Sequence[np.ndarray]) -> None:
        """Maps of the images from row `start` on, for each level (images, height, width, channels)."""
        if not self.levels:
            for level, array in enumerate(maps):
                shape = (len(self.image_ids), *array.shape[1:])
                path = self.aside / f"level_{level}.npy"
                self.levels.append(np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape))
        for stored, array in zip(self.levels, maps, strict=True):
            stored[start : start + len(array)] = array

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            shutil.rmtree(self.aside, ignore_errors=True)
            return
        for level in self.levels:
            level.flush()
        shapes = {f"level_{i}.npy": list(level.shape) for i, level in enumerate(self.levels)}
        index = {"settings": self.settings, "levels": shapes, "image_ids": self.image_ids}
        (self.aside / "index.json").write_text(json.dumps(index), encoding="utf-8")
        if self.folder.exists():  # another process finished the same features first
            shutil.rmtree(self.aside)
        else:
            self.aside.rename(self.folder)
