"""Regions of many images on disk, read at random while a model trains: `RegionStoreWriter` writes, `RegionStore` reads.

    <folder>/regions-00000-of-00002-00003-1a2b3c4d.safetensors    shard 0 of 2, its part 3, checksum of the whole file
    <folder>/index.json                                           the parts there must be; `merge_shards` writes it

A part holds a few hundred images: one tensor for each field of `Regions`, the rows of all images below one another,
`offsets` where each image begins, `image_sizes`, and in the header the image ids, the detector and its settings. It is
written aside, synced and renamed, so a part is whole or not there, and a run that was killed goes on after its last.

Why safetensors: memory-mapped, it, Arrow and `.npy` are read within a few microseconds of one another, several times
faster than HDF5 and tens of times faster than `.npz` files (benchmarks/region_store.py). Against `.npy` one file holds
all fields and the header, so that one rename makes a part whole; against Arrow the rows are plain arrays, not lists to
be taken apart buffer by buffer, and the library checks on opening that the header covers the file.
"""

from __future__ import annotations

import bisect
import difflib
import json
import math
import os
import re
import secrets
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..processing.regions import PER_REGION, ImageError, Regions

__all__ = ["RegionStore", "RegionStoreWriter", "merge_shards"]

_VERSION = 1
_REPAIR = "Delete what is damaged and extract again: the images of all other files are kept."
_NAME = r"regions-(\d{5})-of-(\d{5})-(\d{5})-([0-9a-f]{8})\.safetensors"  # shard, shards, part, checksum
# `region_features` are of the store's `dtype`.
_DTYPES = {"boxes": "float32", "class_probs": "float16", "labels": "int64", "scores": "float32"}
_CODES = {"F16": "float16", "F32": "float32", "I64": "int64"}  # what safetensors calls them


class RegionStore:
    r"""Regions by image id: `store["1000092795"]` is a [`Regions`].

    Its arrays are read-only views of the memory-mapped files: copy what you change. So stores may be larger than
    memory, many processes share one copy, and a loader that pads copies each number once. A store goes along into
    forked processes; pickled, it is opened again where it is unpickled.

    Args:
        folders (`str` or `os.PathLike`): One store, or several of the same detector, settings and columns that share
            no image. A folder without index (shards still being written) is read as far as it goes.

    Raises:
        FileNotFoundError: If a folder is no region store.
        ValueError: If a file is damaged, missing or does not fit the others; names the file. Opening looks at sizes
            and shapes, [`~RegionStore.verify`] at every byte.
    """

    def __init__(self, *folders: str | os.PathLike):
        if not folders:
            raise ValueError("`RegionStore` needs the folder of a store, got none.")
        self.folders = [Path(folder).absolute() for folder in folders]  # processes may have other current folders
        self._parts: list[_Part] = []
        for folder in self.folders:
            _check_index(folder)
            parts = _open_parts(folder)
            if not parts:
                raise FileNotFoundError(
                    f"'{folder}' is no region store: no 'regions-*.safetensors' is in it. Write one with "
                    "`hf-grounding extract-features` or `RegionStoreWriter`."
                )
            self._parts += parts
        self._rows = _find_rows(self._parts)
        self.image_ids = list(self._rows)  # in the order of the files
        header = self._parts[0].header
        self.detector: str = header["detector"]
        self.settings: dict[str, Any] = header["settings"]
        self.columns = _find_columns(self._parts)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __getitem__(self, image_id: str) -> Regions:
        try:
            part, row = self._rows[image_id]
        except KeyError:
            raise KeyError(self._unknown(image_id)) from None
        start, end = part.offsets[row : row + 2]
        if start < end:
            arrays = {name: tensor[start:end] for name, tensor in part.tensors.items()}
        else:
            arrays = {name: np.empty((0, *shape), dtype) for name, (dtype, shape) in self.columns.items()}
        return _trusted_regions(
            image_id=image_id,
            image_size=part.image_sizes[row],
            detector=self.detector,
            settings=dict(self.settings),
            **{name: arrays.get(name) for name in PER_REGION},
        )

    def read(self, image_ids: Iterable[str]) -> list[Regions]:
        """Regions of some images, in this order; KeyError if one is not in the store."""
        return [self[image_id] for image_id in image_ids]

    def __reduce__(self) -> tuple:
        return type(self), tuple(self.folders)

    def _unknown(self, image_id: object) -> str:
        ids = sorted(self._rows)  # among all of 120,000 ids `difflib` would take seconds
        place = bisect.bisect(ids, str(image_id))
        near = difflib.get_close_matches(str(image_id), ids[max(0, place - 100) : place + 100], n=1, cutoff=0.0)
        names = ", ".join(repr(str(folder)) for folder in self.folders)
        hint = f" The nearest is {near[0]!r}." if near else ""
        return f"No image {image_id!r} among the {len(ids)} of region store {names}.{hint}"

    def verify(self) -> None:
        """Compares every byte with the checksums in the files' names; ValueError names the files that differ."""
        damaged = [str(part.path) for part in self._parts if f"{_checksum(part.path):08x}" != part.checksum]
        if damaged:
            raise ValueError(f"{damaged} differ from the checksums in their names. {_REPAIR}")

    def to_dataset(self) -> Any:
        """A `datasets.Dataset` to share: the fields of [`Regions`] as columns, `settings` as JSON."""
        from datasets import Dataset, Features, List, Value

        features = {"image_id": Value("string"), "height": Value("int32"), "width": Value("int32")}
        for name, (dtype, shape) in self.columns.items():
            features[name] = List(List(Value(dtype), length=shape[0]) if shape else Value(dtype))
        features |= {"detector": Value("string"), "settings": Value("string")}
        # `datasets` keeps what it made under a hash of these arguments.
        contents = " ".join(part.checksum for part in self._parts)
        return Dataset.from_generator(
            _dataset_rows, features=Features(features), gen_kwargs={"store": self, "contents": contents}
        )

    @classmethod
    def from_dataset(cls, dataset: Any, folder: str | os.PathLike, shard: tuple[int, int] = (0, 1)) -> RegionStore:
        """Writes a data set as [`~RegionStore.to_dataset`] makes them, streaming or not, to a store, and opens that.

        Run again after an interruption it goes on. Several processes give each its part of the rows as `dataset`, and
        its `shard=(i, n)`.

        Raises:
            ValueError: If a column is missing, there are no rows, or they were made with different settings.
        """
        features = dataset.features or {}
        if missing := {"image_id", "height", "width", "boxes", "detector", "settings"} - set(features):
            raise ValueError(f"The data set has no columns {sorted(missing)}, which `RegionStore.to_dataset` writes.")
        all_regions = (_from_row(row) for row in dataset.with_format("numpy"))
        first = next(all_regions, None)
        if first is None:
            raise ValueError("The data set has no rows, so there is nothing to store.")
        dtype = features["region_features"].feature.feature.dtype if "region_features" in features else "float16"
        with RegionStoreWriter(folder, first.settings, detector=first.detector, dtype=dtype, shard=shard) as writer:
            for regions in chain([first], all_regions):
                if not writer.done(regions.image_id):
                    writer.add(regions)
        return cls(folder)


class RegionStoreWriter:
    r"""Writes a [`RegionStore`], or one shard of it, part by part; use it in a `with` statement.

        with RegionStoreWriter("features", settings, detector="yolox_nano", shard=(0, 8)) as writer:
            for image_id in image_ids[0::8]:
                if not writer.done(image_id):
                    writer.add(extract(image_id))

    Killed at any moment and run again, it goes on: images of finished parts are `done`, those since are asked for
    again. After the last shard [`merge_shards`] writes the index; a store of one shard has it at once.

    Args:
        folder (`str` or `os.PathLike`): Made if need be, and removed again by an error before anything is in it. What
            is in it must be of the same settings.
        settings (`dict`): What the regions are made with, ready for JSON; every image that is read has it. A part of it
            with "weights", the hash of a network's, is compared by them and not by its "name", which may be a path.
        detector (`str`): Its name.
        dtype (`str`): "float16" or "float32", of `region_features`. `class_probs` are stored as float16 always.
        shard (`tuple[int, int]`): (i, n): this process writes shard i of n, counted from 0.
        images_per_part (`int`): Images kept in memory until they are written; so many at most are lost by a kill.

    Raises:
        ValueError: If the folder is of other settings (names them) or has a damaged file.
        OSError: On a full disk; the part that did not fit is removed again.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        settings: dict[str, Any],
        dtype: str = "float16",
        shard: tuple[int, int] = (0, 1),
        *,
        detector: str = "",
        images_per_part: int = 256,
    ):
        if dtype not in ("float16", "float32"):
            raise ValueError(f"`dtype` must be 'float16' or 'float32', got {dtype!r}.")
        if not 0 <= shard[0] < shard[1] < 100_000:
            raise ValueError(f"`shard` must be (i, n) with 0 <= i < n, counted from 0, got {shard}.")
        self.folder, self.shard, self.images_per_part = Path(folder), shard, images_per_part
        settings = json.loads(json.dumps(settings))  # as it will be read
        self.header = {"version": _VERSION, "detector": detector, "settings": settings, "dtype": dtype}
        self._dtypes = _DTYPES | {"region_features": dtype}
        self._is_new = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)  # now, so that no work is lost where it cannot be made
        self._stem = f"regions-{shard[0]:05d}-of-{shard[1]:05d}"
        for path in self.folder.glob(f".{self._stem}-*.tmp"):  # of a run that was killed
            path.unlink(missing_ok=True)
        parts = _open_parts(self.folder)
        self._done = set(_find_rows(parts))
        if parts and (difference := _difference(parts[0].header, self.header)):
            raise ValueError(
                f"Region store '{folder}' has other settings: {difference}. Give the same, or another folder."
            )
        self._columns = _find_columns([part for part in parts if part.offsets[-1]])
        own = [part for part in parts if part.shard == shard]
        self._names = {part.path.name for part in own}
        self._number = own[-1].number + 1 if own else 0
        self._is_ended = bool(own) and own[-1].is_last
        self._added: list[tuple[str, tuple[int, int], dict[str, np.ndarray]]] = []

    def done(self, image_id: str) -> bool:
        """Whether the image is in the store (in any shard) or was added to this writer."""
        return image_id in self._done

    def add(self, regions: Regions) -> None:
        r"""Adds one image; it may be without regions.

        Raises:
            ImageError: If it has a number that the store's type cannot hold.
            ValueError: If the image was added before, or has other columns or settings than the store.
        """
        image_id, where = regions.image_id, f"Image {regions.image_id!r}"
        if not isinstance(image_id, str) or not image_id:
            raise ValueError(f"Image ids must be text, got {image_id!r}.")
        if self.done(image_id):
            raise ValueError(f"{where} is in region store '{self.folder}' already. Skip what is `done`.")
        given = self.header | {"detector": regions.detector, "settings": json.loads(json.dumps(regions.settings))}
        if (regions.detector or regions.settings) and (difference := _difference(self.header, given)):
            raise ValueError(f"{where} was made with other settings than region store '{self.folder}': {difference}.")
        arrays = {}
        for name in PER_REGION if len(regions) else ():
            if getattr(regions, name) is not None:
                dtype = self._dtypes[name]
                with np.errstate(over="ignore"):
                    arrays[name] = np.array(getattr(regions, name), dtype, order="C")
                if len(arrays[name]) != len(regions):
                    raise ValueError(f"{where} has {len(regions)} boxes, but {len(arrays[name])} rows of `{name}`.")
                if not np.isfinite(arrays[name]).all():
                    is_choice = name == "region_features" and dtype == "float16"
                    advice = " A store of float32 holds larger ones (`--dtype float32`)." if is_choice else ""
                    raise ImageError(
                        f"{where}: `{name}` has numbers that are not finite or too large for {dtype}.{advice}"
                    )
        if arrays:
            columns = {name: (str(array.dtype), array.shape[1:]) for name, array in arrays.items()}
            self._columns = self._columns or columns
            if columns != self._columns:
                raise ValueError(f"{where} has {columns} where the images before have {self._columns}.")
        if len(self._added) >= self.images_per_part:
            self.flush()
        height, width = regions.image_size
        self._added.append((image_id, (int(height), int(width)), arrays))
        self._done.add(image_id)

    def flush(self, is_last: bool = False) -> None:
        """Writes the images added since the last part as a part; `is_last` marks the shard as finished."""
        if not self._added and (self._is_ended or not is_last):
            return
        on_disk = {path.name for path in self.folder.glob(f"{self._stem}-*.safetensors")}
        if on_disk != self._names:
            raise FileExistsError(
                f"Another process has changed {sorted(on_disk ^ self._names)} in '{self.folder}', which are of the "
                f"shard {self.shard} that this process writes. Run each shard once at a time."
            )
        arrays = [arrays for _, _, arrays in self._added if arrays]
        tensors = {name: np.concatenate([rows[name] for rows in arrays]) for name in (self._columns if arrays else ())}
        tensors = tensors or {"boxes": np.empty((0, 4), np.float32)}
        counts = [len(arrays.get("boxes", ())) for _, _, arrays in self._added]
        tensors["offsets"] = np.cumsum([0, *counts], dtype=np.int64)
        tensors["image_sizes"] = np.array([size for _, size, _ in self._added], np.int64).reshape(-1, 2)
        image_ids = json.dumps([image_id for image_id, _, _ in self._added])
        content = save(
            tensors, {"store": json.dumps(self.header), "image_ids": image_ids, "is_last": json.dumps(is_last)}
        )
        name = f"{self._stem}-{self._number:05d}-{zlib.crc32(content):08x}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)  # another shard may have failed and removed it
        (self.folder / "index.json").unlink(missing_ok=True)  # it does not know this part
        _write_whole(self.folder / name, content)
        self._names.add(name)
        self._number += 1
        self._is_ended = is_last
        self._added = []

    def __enter__(self) -> RegionStoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            with suppress(OSError):  # what was added is whole, so it is kept where that is possible
                self.flush()
            if self._is_new:
                with suppress(OSError):  # a folder that holds anything stays
                    self.folder.rmdir()
            return
        self.flush(is_last=True)
        if self.shard == (0, 1):
            merge_shards(self.folder)


def merge_shards(folder: str | os.PathLike) -> RegionStore:
    """Writes the index of a store whose shards are all finished, and opens it. The regions stay where they are.

    Raises:
        ValueError: If a shard is not finished, or files are damaged or do not fit each other.
    """
    folder = Path(folder)
    parts = _open_parts(folder)
    last = {part.shard: part for part in parts}  # parts are sorted
    finished = {shard for shard, part in last.items() if part.is_last}
    # A store may have been begun with another number of shards; those that finished skipped what was done.
    missing = [[(i, n) for i in range(n) if (i, n) not in finished] for n in sorted({n for _, n in last})]
    if all(missing):
        names = ", ".join(f"{i}/{n}" for i, n in min(missing, key=len)[:10]) if missing else "all"
        raise ValueError(f"Region store '{folder}' has shards that are not finished: {names}. Run these again first.")
    sizes = {part.path.name: part.path.stat().st_size for part in parts}
    index = {"num_images": len(_find_rows(parts)), "parts": sizes}
    _write_whole(folder / "index.json", json.dumps(index, indent=1).encode())
    return RegionStore(folder)


class _Part:
    """One file of a store, its header read and the tensors mapped."""

    def __init__(self, path: Path):
        self.path = path
        match = re.fullmatch(_NAME, path.name)
        if match is None:
            raise ValueError(
                f"'{path.parent}' is no region store, or holds what is none of it: '{path.name}'. Give a folder of the "
                "store's own."
            )
        try:
            self.shard, self.number, self.checksum = (int(match[1]), int(match[2])), int(match[3]), match[4]
            with safe_open(path, "np") as file:  # it checks that the header covers the file
                metadata = file.metadata()
            self.header: dict[str, Any] = json.loads(metadata["store"])
            self.image_ids: list[str] = json.loads(metadata["image_ids"])
            self.is_last: bool = json.loads(metadata["is_last"])
            tensors = _map_tensors(path)
            offsets, sizes = tensors.pop("offsets"), tensors.pop("image_sizes")
            self.tensors = {name: tensors[name] for name in PER_REGION if name in tensors}
            self.columns = {name: (str(tensor.dtype), tensor.shape[1:]) for name, tensor in self.tensors.items()}
            dtypes = _DTYPES | {"region_features": self.header["dtype"]}
            if not (
                self.header["version"] == _VERSION
                and len(self.tensors) == len(tensors)
                and self.tensors["boxes"].shape[1:] == (4,)
                and offsets.shape == (len(self.image_ids) + 1,)
                and sizes.shape == (len(self.image_ids), 2)
                and offsets[0] == 0
                and (np.diff(offsets) >= 0).all()
                and offsets.dtype == sizes.dtype == np.int64
                and all(len(tensor) == offsets[-1] for tensor in self.tensors.values())
                and all(dtype == dtypes[name] for name, (dtype, _) in self.columns.items())
                and isinstance(self.header["detector"], str)
                and isinstance(self.header["settings"], dict)
                and all(isinstance(image_id, str) for image_id in self.image_ids)
            ):
                raise ValueError("its tensors do not fit its header")
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"'{path}' is no whole part of a region store ({error}). {_REPAIR}") from error
        self.offsets: list[int] = offsets.tolist()
        self.image_sizes: list[tuple[int, int]] = [(height, width) for height, width in sizes.tolist()]


def _map_tensors(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file as read-only views of the memory-mapped file.

    The library's own slices are copies and take some microseconds each, which costs a loader half its speed. Arrow's
    mapping, unlike Python's, keeps no file descriptor: a store may have more parts than a process may have open files.
    """
    with pa.memory_map(str(path)) as file:
        content = file.read_buffer()
    start = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(bytes(content[8:start]))
    entries.pop("__metadata__")
    tensors = {}
    for name, entry in entries.items():
        count, offset = math.prod(entry["shape"]), start + entry["data_offsets"][0]
        tensors[name] = np.frombuffer(content, _CODES[entry["dtype"]], count, offset).reshape(entry["shape"])
    return tensors


def _open_parts(folder: Path) -> list[_Part]:
    return [_Part(path) for path in sorted(folder.glob("*.safetensors"))]


def _check_index(folder: Path) -> None:
    path = folder / "index.json"
    if not path.exists():
        return
    try:
        expected = dict(json.loads(path.read_text(encoding="utf-8"))["parts"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{path}' cannot be read ({error!r}). `merge_shards` writes it anew.") from error
    found = {part.name: part.stat().st_size for part in folder.glob("*.safetensors")}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"'{folder / name}' has {found.get(name, 'no')} bytes, its index says {expected.get(name, 'none')}. "
                f"Copy the store again, or run `merge_shards` if this is meant. {_REPAIR}"
            )


def _find_rows(parts: list[_Part]) -> dict[str, tuple[_Part, int]]:
    """Image id -> part and row; ValueError if an image is twice there, or parts have different settings."""
    rows: dict[str, tuple[_Part, int]] = {}
    for part in parts:
        if difference := _difference(parts[0].header, part.header):
            raise ValueError(f"'{part.path}' has other settings than '{parts[0].path}': {difference}.")
        for row, image_id in enumerate(part.image_ids):
            if image_id in rows:
                raise ValueError(f"Image {image_id!r} is in '{rows[image_id][0].path}' and again in '{part.path}'.")
            rows[image_id] = part, row
    return rows


def _find_columns(parts: list[_Part]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> type and shape of a row; ValueError if parts differ. A part without any region does not count."""
    filled = [part for part in parts if part.offsets[-1]] or parts[:1]
    for part in filled:
        if part.columns != filled[0].columns:
            raise ValueError(
                f"'{part.path}' has the columns {part.columns} where '{filled[0].path}' has {filled[0].columns}."
            )
    return filled[0].columns if filled else {}


def _difference(stored: dict[str, Any], given: dict[str, Any]) -> str:
    """The first setting that differs, in words; empty if none does."""
    old, new = stored["settings"], given["settings"]
    by_weights = _have_weights(old.get("detector"), new.get("detector"))
    names = [name for name in ("version", "detector", "dtype") if name != "detector" or not by_weights]
    pairs = [(name, stored.get(name), given.get(name)) for name in names] + _leaves("settings", old, new)
    return next((f"`{name}` is {a!r} in the store, {b!r} here{_why(name, a, b)}" for name, a, b in pairs if a != b), "")


def _why(name: str, old: Any, new: Any) -> str:
    """What a difference of weights means: the numbers tell people nothing."""
    if not name.endswith(".weights"):
        return ""
    if old and new:
        return ": other weights, whatever the network is called"
    return ": one of the two does not say which weights it is of, as stores of earlier versions"


def _have_weights(old: Any, new: Any) -> bool:
    """Whether both describe a network by its weights, so that its name, which may be a path, says nothing more."""
    return all(isinstance(settings, dict) and "weights" in settings for settings in (old, new))


def _leaves(name: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """Pairs of values at the same place of two settings, by the name of the place."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [(name, old, new)]
    keys = sorted((old.keys() | new.keys()) - ({"name"} if _have_weights(old, new) else set()))
    return [leaf for key in keys for leaf in _leaves(f"{name}.{key}", old.get(key), new.get(key))]


def _trusted_regions(**values: Any) -> Regions:
    """`Regions` without its checks, which take longer than reading; they were made before the regions were written."""
    regions = object.__new__(Regions)
    regions.__dict__.update(values)
    return regions


def _write_whole(path: Path, content: bytes) -> None:
    """The file appears with all of its content on the disk, or not at all."""
    aside = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.tmp")
    try:
        with open(aside, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(2**22):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _dataset_rows(store: RegionStore, contents: str) -> Iterator[dict[str, Any]]:
    del contents  # tells `datasets` one store from another in the same folder
    for regions in map(store.__getitem__, store):
        height, width = regions.image_size
        row = {"image_id": regions.image_id, "height": height, "width": width, "detector": store.detector}
        arrays = {name: getattr(regions, name) for name in store.columns}
        yield row | arrays | {"settings": json.dumps(store.settings)}


def _from_row(row: dict[str, Any]) -> Regions:
    arrays = {name: np.asarray(row[name]) for name in PER_REGION if row.get(name) is not None}
    if len(arrays["boxes"]) == 0:  # of no type and no shape here
        arrays = {"boxes": np.empty((0, 4), np.float32)}
    return Regions(
        image_id=str(row["image_id"]),
        image_size=(int(row["height"]), int(row["width"])),
        detector=str(row["detector"]),
        settings=json.loads(str(row["settings"])),
        **arrays,
    )
