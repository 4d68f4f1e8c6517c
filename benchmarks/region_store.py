"""Formats for the regions of many images: time of a random read, throughput of a loader, writing, megabytes.

    python benchmarks/region_store.py                                   # 4,000 images of 36 x 1280, about two minutes
    python benchmarks/region_store.py --images 2000 --feature-dim 2048  # bottom-up features
    python benchmarks/region_store.py --images 100 --rounds 1           # to see that it runs

Every image has boxes, scores, labels and float16 features. Arrow and `.npy` are read through NumPy views made once on
opening, their fastest way, and hand out slices of them as `RegionStore` does, which makes `Regions` of them besides.
HDF5 has one chunk for each image, its best case. A read is of an image in random order, files in the page cache, and
looks at every memory page of the features; formats take turns, samples of all rounds together. "First" reads come
after opening, when a memory map still faults. The loader reads shuffled batches of 64 and pads them, in one process.
Writing includes `sync`. Every value that is read is compared with what was written, once.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa

from hf_grounding.data.region_store import RegionStore, RegionStoreWriter
from hf_grounding.processing.regions import Regions

COCO = 123_287
FIELDS = ("boxes", "region_features", "labels", "scores")
Arrays = dict[str, np.ndarray]
Images = list[tuple[str, Arrays]]
Reader = Callable[[str], Arrays]


def make_images(sizes: argparse.Namespace) -> Images:
    """Contents repeat after 64 images, so that making them costs neither time nor memory; no format compresses."""
    rng = np.random.default_rng(0)
    n, contents = sizes.regions, []
    for _ in range(64):
        corners = rng.random((n, 2), np.float32) * 200
        contents.append(
            {
                "boxes": np.concatenate([corners, corners + 1 + 200 * rng.random((n, 2), np.float32)], axis=1),
                "region_features": rng.random((n, sizes.feature_dim), np.float32).astype(np.float16),
                "labels": rng.integers(0, 80, n),
                "scores": -np.sort(-rng.random(n, np.float32)),
            }
        )
    return [(f"COCO_train2014_{i:012d}", contents[i % 64]) for i in range(sizes.images)]


def write_store(folder: Path, images: Images) -> None:
    with RegionStoreWriter(folder, {"num_regions": 36}, detector="synthetic") as writer:
        for image_id, arrays in images:
            writer.add(Regions(image_id, (500, 500), **arrays))


def open_store(folder: Path) -> Reader:
    store = RegionStore(folder)
    return lambda image_id: vars(store[image_id])


def write_arrow(folder: Path, images: Images) -> None:
    folder.mkdir()
    writer = None
    for start in range(0, len(images), 256):
        batch = images[start : start + 256]
        offsets = np.cumsum([0] + [len(arrays["boxes"]) for _, arrays in batch], dtype=np.int32)
        columns: dict[str, Any] = {"image_id": pa.array([image_id for image_id, _ in batch])}
        for name in FIELDS:
            rows = np.concatenate([arrays[name] for _, arrays in batch])
            values = pa.array(rows.reshape(-1))
            if rows.ndim == 2:
                values = pa.FixedSizeListArray.from_arrays(values, rows.shape[1])
            columns[name] = pa.ListArray.from_arrays(offsets, values)
        record = pa.record_batch(columns)
        writer = writer or pa.ipc.new_file(str(folder / "regions.arrow"), record.schema)
        writer.write_batch(record)
    writer.close()


def open_arrow(folder: Path) -> Reader:
    reader = pa.ipc.open_file(pa.memory_map(str(folder / "regions.arrow")))
    index: dict[str, tuple[Arrays, int, int]] = {}
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        views = {}
        for name in FIELDS:
            values = batch.column(name).values
            is_row = pa.types.is_fixed_size_list(values.type)
            shape = (-1, values.type.list_size) if is_row else (-1,)
            views[name] = (values.values if is_row else values).to_numpy().reshape(shape)
        offsets = batch.column("region_features").offsets.to_pylist()
        for row, image_id in enumerate(batch.column("image_id").to_pylist()):
            index[image_id] = (views, offsets[row], offsets[row + 1])
    return lambda image_id: slice_rows(*index[image_id])


def slice_rows(arrays: Arrays, start: int, end: int) -> Arrays:
    return {name: array[start:end] for name, array in arrays.items()}


def write_npy(folder: Path, images: Images) -> None:
    folder.mkdir()
    ends = np.cumsum([len(arrays["boxes"]) for _, arrays in images]).tolist()
    for name in FIELDS:
        first = images[0][1][name]
        header = {"descr": first.dtype.str, "fortran_order": False, "shape": (ends[-1], *first.shape[1:])}
        with open(folder / f"{name}.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for _, arrays in images:
                file.write(arrays[name].data)
    index = {"image_ids": [image_id for image_id, _ in images], "ends": ends}
    (folder / "index.json").write_text(json.dumps(index))


def open_npy(folder: Path) -> Reader:
    views = {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in FIELDS}
    index = json.loads((folder / "index.json").read_text())
    spans = dict(zip(index["image_ids"], zip([0, *index["ends"]], index["ends"], strict=False), strict=True))
    return lambda image_id: slice_rows(views, *spans[image_id])


def write_npz(folder: Path, images: Images) -> None:
    folder.mkdir()
    for image_id, arrays in images:
        np.savez(folder / f"{image_id}.npz", **arrays)


def open_npz(folder: Path) -> Reader:
    def read(image_id: str) -> Arrays:
        with np.load(folder / f"{image_id}.npz") as file:
            return {name: file[name] for name in FIELDS}

    return read


def write_hdf5(folder: Path, images: Images) -> None:
    folder.mkdir()
    n = len(images[0][1]["boxes"])
    with h5py.File(folder / "regions.h5", "w") as file:
        for name in FIELDS:
            first = images[0][1][name]
            shape = (n * len(images), *first.shape[1:])
            data = file.create_dataset(name, shape, first.dtype, chunks=first.shape)
            for row, (_, arrays) in enumerate(images):
                data[row * n : (row + 1) * n] = arrays[name]
        file["image_ids"] = [image_id for image_id, _ in images]


def open_hdf5(folder: Path) -> Reader:
    file = h5py.File(folder / "regions.h5", "r")
    rows = {image_id.decode(): row for row, image_id in enumerate(file["image_ids"][:])}
    data = {name: file[name] for name in FIELDS}
    n = len(data["boxes"]) // len(rows)

    def read(image_id: str) -> Arrays:
        start = rows[image_id] * n
        return {name: values[start : start + n] for name, values in data.items()}

    return read


FORMATS: dict[str, tuple[Callable[[Path, Images], None], Callable[[Path], Reader]]] = {
    "RegionStore (safetensors)": (write_store, open_store),
    "Arrow IPC": (write_arrow, open_arrow),
    "memory-mapped .npy": (write_npy, open_npy),
    "one .npz per image": (write_npz, open_npz),
    "HDF5, chunked": (write_hdf5, open_hdf5),
}


def padded_batches(read: Reader, image_ids: list[str]) -> Iterator[Arrays]:
    for start in range(0, len(image_ids), 64):
        batch = [read(image_id) for image_id in image_ids[start : start + 64]]
        most = max(len(arrays["boxes"]) for arrays in batch)
        features = np.zeros((len(batch), most, batch[0]["region_features"].shape[1]), np.float16)
        boxes, mask = np.zeros((len(batch), most, 4), np.float32), np.zeros((len(batch), most), np.int64)
        for row, arrays in enumerate(batch):
            n = len(arrays["boxes"])
            features[row, :n], boxes[row, :n], mask[row, :n] = arrays["region_features"], arrays["boxes"], 1
        yield {"region_features": features, "boxes": boxes, "region_mask": mask}


def read_times(read: Reader, image_ids: list[str]) -> list[float]:
    times = []
    for image_id in image_ids:
        start = time.perf_counter()
        read(image_id)["region_features"].reshape(-1)[::2048].copy()
        times.append(time.perf_counter() - start)
    return times


def check(read: Reader, images: Images) -> None:
    for image_id, arrays in images:
        found = read(image_id)
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype, name
            np.testing.assert_array_equal(found[name], array)


def measure(sizes: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    images = make_images(sizes)
    ids = [image_id for image_id, _ in images]
    rng = np.random.default_rng(1)
    results: dict[str, dict[str, Any]] = {}
    for name, (write, _) in FORMATS.items():
        os.sync()
        start = time.perf_counter()
        write(folder / name, images)
        os.sync()
        seconds = time.perf_counter() - start
        megabytes = sum(path.stat().st_size for path in (folder / name).iterdir()) / 1e6
        results[name] = {
            "write": len(ids) / seconds,
            "mb": megabytes,
            "warm": [],
            "first": [],
            "loader": [],
            "open": [],
        }
    for number in range(sizes.rounds):
        for name, (_, open_) in FORMATS.items():
            result = results[name]
            if number == 0:
                check(open_(folder / name), images)
            start = time.perf_counter()
            read = open_(folder / name)
            result["open"].append(time.perf_counter() - start)
            result["first"] += read_times(read, rng.permutation(ids).tolist())
            result["warm"] += read_times(read, rng.permutation(ids).tolist())
            start = time.perf_counter()
            for _ in padded_batches(read, rng.permutation(ids).tolist()):
                pass
            result["loader"].append(len(ids) / (time.perf_counter() - start))
            del read
    return results


def print_tables(results: dict[str, dict[str, Any]], sizes: argparse.Namespace) -> None:
    npz = statistics.median(results["one .npz per image"]["loader"])
    print(f"{sizes.images} images of {sizes.regions} x {sizes.feature_dim} float16, {sizes.rounds} rounds:\n")
    print(
        "| format | read, µs: median | 95 % | first, median | loader, images/s | times .npz | write, images/s | MB "
        "| open, ms |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for name, r in results.items():
        median, first = 1e6 * statistics.median(r["warm"]), 1e6 * statistics.median(r["first"])
        loader = statistics.median(r["loader"])
        print(
            f"| {name} | {median:.0f} | {1e6 * np.percentile(r['warm'], 95):.0f} | {first:.0f} | {loader:,.0f} | "
            f"{loader / npz:.1f} | {r['write']:,.0f} | {r['mb']:,.0f} | {1e3 * statistics.median(r['open']):.1f} |"
        )
    print(f"\nCOCO's {COCO:,} images at these rates:\n")
    print("| format | GB | minutes to write | seconds an epoch of loading |\n|---|---|---|---|")
    for name, r in results.items():
        gigabytes, seconds = r["mb"] / 1e3 * COCO / sizes.images, COCO / statistics.median(r["loader"])
        print(f"| {name} | {gigabytes:.1f} | {COCO / r['write'] / 60:.1f} | {seconds:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--regions", type=int, default=36)
    parser.add_argument("--feature-dim", type=int, default=1280)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; by default the folder of temporary files")
    sizes = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="region_store-", dir=sizes.folder))
    try:
        print_tables(measure(sizes, folder), sizes)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
