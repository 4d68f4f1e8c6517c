"""Region stores: what is written is read again, whole or not at all, whoever writes and however it ends."""

import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from hf_grounding.data.region_store import RegionStore, RegionStoreWriter, merge_shards
from hf_grounding.processing.regions import PER_REGION, Regions

SETTINGS = {"num_regions": 36, "threshold": 0.2, "levels": [1, 2]}


def _regions(number: int, dtype: str = "float16", **changes: Any) -> Regions:
    """Image `number`: 0 to 5 regions; numbers that their types hold exactly."""
    rng, n = np.random.default_rng(number), number % 6
    corners = rng.random((n, 2), np.float32)
    values = {
        "image_id": f"image{number}",
        "image_size": (300 + number, 400),
        "boxes": np.concatenate([corners, corners + 1], axis=1),
        "region_features": rng.standard_normal((n, 8), np.float32).astype(dtype),
        "class_probs": rng.dirichlet(np.ones(5), n).astype(np.float16),
        "labels": rng.integers(0, 5, n),
        "scores": rng.random(n, np.float32),
        "detector": "toy",
        "settings": SETTINGS,
    }
    return Regions(**values | changes)


def _assert_equal(found: Regions, expected: Regions) -> None:
    for field in fields(Regions):
        value, other = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(other, np.ndarray):
            assert (value.dtype, value.shape) == (other.dtype, other.shape), field.name
            np.testing.assert_array_equal(value, other)
        else:
            assert value == other, field.name


def _write(folder: Path, numbers: Any = range(20), dtype: str = "float16", **arguments: Any) -> Path:
    arguments = {"detector": "toy", "images_per_part": 4} | arguments
    with RegionStoreWriter(folder, arguments.pop("settings", SETTINGS), dtype, **arguments) as writer:
        for number in numbers:
            if not writer.done(f"image{number}"):
                writer.add(_regions(number, dtype))
    return folder


def _write_interrupted(folder: Path, number: int, shard: tuple[int, int] = (0, 1)) -> None:
    with RegionStoreWriter(folder, SETTINGS, shard=shard, detector="toy") as writer:
        writer.add(_regions(number))
        raise KeyboardInterrupt


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_written_is_read_exactly(tmp_path: Path, dtype: str):
    store = RegionStore(_write(tmp_path / "store", dtype=dtype))
    for number in range(20):  # four of them without regions
        _assert_equal(store[f"image{number}"], _regions(number, dtype))
    assert [regions.image_id for regions in store.read(["image7", "image3"])] == ["image7", "image3"]
    assert store.image_ids == list(store) == [f"image{number}" for number in range(20)]
    assert len(store) == 20
    assert "image19" in store
    assert "image20" not in store
    assert (store.detector, store.settings) == ("toy", SETTINGS)
    assert len(_parts(store.folders[0])) == 5
    store.verify()


def test_arrays_may_be_of_any_layout_and_precision(tmp_path: Path):
    features = np.arange(24.0).reshape(8, 3).T
    with RegionStoreWriter(tmp_path / "store", SETTINGS, detector="toy") as writer:
        for number in (3, 9):
            boxes = np.asfortranarray(_regions(number).boxes, np.float64)
            writer.add(_regions(number, region_features=features, boxes=boxes))
    store = RegionStore(tmp_path / "store")
    for number in (3, 9):
        _assert_equal(store[f"image{number}"], _regions(number, region_features=features.astype(np.float16)))


def test_a_reader_cannot_change_the_store(tmp_path: Path):
    store = RegionStore(_write(tmp_path / "store"))
    regions = store["image5"]
    for name in PER_REGION:
        with pytest.raises(ValueError, match="read-only"):
            getattr(regions, name)[0] = 1
    regions.settings["threshold"] = 0.9
    _assert_equal(store["image5"], _regions(5))
    store.verify()


def test_columns_may_be_left_out_but_not_of_some_images(tmp_path: Path):
    bare: dict[str, Any] = dict.fromkeys(("region_features", "class_probs", "labels"))
    with RegionStoreWriter(tmp_path / "store", SETTINGS) as writer:
        writer.add(_regions(0, **bare, detector="", settings={}))
        writer.add(_regions(1, **bare, detector="", settings={}))
        with pytest.raises(
            ValueError, match=r"Image 'image2' has {'boxes'.*'region_features'.* where the images before"
        ):
            writer.add(_regions(2, detector="", settings={}))
    regions = RegionStore(tmp_path / "store")["image1"]
    assert regions.region_features is regions.class_probs is regions.labels is None
    np.testing.assert_array_equal(regions.scores, _regions(1).scores)
    with (
        pytest.raises(ValueError, match=r"'float16', \(8,\).* where the images before have"),
        RegionStoreWriter(tmp_path / "store", SETTINGS) as writer,
    ):
        writer.add(_regions(3, detector="", settings={}))


@pytest.mark.parametrize("numbers", [[], [0], [0, 6, 12, 18, 24, 1], [1, 0, 6, 12, 18, 24]])
def test_a_store_may_be_of_images_without_regions(tmp_path: Path, numbers: list[int]):
    store = RegionStore(_write(tmp_path / "store", numbers))
    assert len(store) == len(numbers)
    for number in numbers:
        assert len(store[f"image{number}"]) == 0 or number == 1
    if 1 in numbers:  # known then: their columns
        _assert_equal(store["image24"], _regions(24))
    else:
        assert numbers == [] or store["image0"].boxes.shape == (0, 4)


def test_two_processes_write_at_once(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(
            target=_write, args=(tmp_path / "store", range(i, 60, 2)), kwargs={"shard": (i, 2), "detector": "toy"}
        )
        for i in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    before = _contents(tmp_path / "store")
    assert "index.json" not in before
    assert len(RegionStore(tmp_path / "store")) == 60  # the index is no must
    store = merge_shards(tmp_path / "store")
    assert {name: content for name, content in _contents(tmp_path / "store").items() if name in before} == before
    for number in range(60):
        _assert_equal(store[f"image{number}"], _regions(number))


def test_an_unfinished_shard_is_named(tmp_path: Path):
    _write(tmp_path / "store", range(0, 9, 3), shard=(0, 3))
    with pytest.raises(KeyboardInterrupt):
        _write_interrupted(tmp_path / "store", 1, shard=(1, 3))
    assert "image1" in RegionStore(tmp_path / "store")  # what was added is kept
    with pytest.raises(ValueError, match="shards that are not finished: 1/3, 2/3"):
        merge_shards(tmp_path / "store")
    # Another number of shards may finish it, skipping what is done.
    for i in range(2):
        _write(tmp_path / "store", range(i, 9, 2), shard=(i, 2))
    assert sorted(merge_shards(tmp_path / "store")) == [f"image{number}" for number in range(9)]


def test_shards_without_images_are_finished_too(tmp_path: Path):
    for i in range(3):
        _write(tmp_path / "store", range(i, 1, 3), shard=(i, 3))
    assert list(merge_shards(tmp_path / "store")) == ["image0"]
    with pytest.raises(ValueError, match="not finished: all"):
        merge_shards(tmp_path / "nothing")


WRITE_FOREVER = """
import sys, time
from tests.data.test_region_store import SETTINGS, _regions
from hf_grounding.data.region_store import RegionStoreWriter

with RegionStoreWriter(sys.argv[1], SETTINGS, detector="toy", images_per_part=3) as writer:
    print("begins", flush=True)
    for number in range(4000):
        if not writer.done(f"image{number}"):
            writer.add(_regions(number))
"""


def test_a_killed_writer_goes_on_where_it_was(tmp_path: Path):
    folder, repo = tmp_path / "store", Path(__file__).resolve().parents[2]
    kept: dict[str, bytes] = {}
    for run in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOREVER, str(folder)], cwd=repo, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        while len(_parts(folder)) < len(kept) + 5 + run:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        parts = {path.name: path.read_bytes() for path in _parts(folder)}
        assert kept.items() <= parts.items()  # nothing is written again
        kept = parts
        store = RegionStore(folder)
        store.verify()
        assert store.image_ids == [f"image{number}" for number in range(3 * len(parts))]
    last = len(RegionStore(folder)) + 10
    (folder / f".{_parts(folder)[-1].stem}-0123abcd.tmp").write_bytes(b"half")
    _write(folder, range(last))
    store = RegionStore(folder)
    assert len(store) == last
    for number in range(last):
        _assert_equal(store[f"image{number}"], _regions(number))
    assert not list(folder.glob(".*"))
    before = _contents(folder)
    _write(folder, range(last))  # all is done
    assert _contents(folder) == before


def test_a_shard_that_two_processes_write_is_an_error(tmp_path: Path):
    first = RegionStoreWriter(tmp_path / "store", SETTINGS, detector="toy")
    first.add(_regions(1))
    _write(tmp_path / "store", [1, 2])
    with pytest.raises(FileExistsError, match="Run each shard once at a time"):
        first.flush()
    assert len(RegionStore(tmp_path / "store")) == 2


def _write_big(folder: Path, big: dict[str, Any]) -> None:
    with RegionStoreWriter(folder, SETTINGS, detector="toy", images_per_part=1) as writer:
        writer.add(_regions(1, **big))
        writer.flush()
        writer.images_per_part = 3
        for number in (7, 13, 19, 25):
            writer.add(_regions(number, **big))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of a process are Unix's")
def test_no_space_is_an_error_and_leaves_what_was_whole(tmp_path: Path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"region_features": np.ones((1, 2**19), np.float16)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**21, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            _write_big(tmp_path / "store", big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.suffix for path in (tmp_path / "store").iterdir()] == [".safetensors"]
    RegionStore(tmp_path / "store").verify()
    with RegionStoreWriter(tmp_path / "store", SETTINGS, detector="toy") as writer:
        assert [writer.done(f"image{number}") for number in (1, 7, 13)] == [
            True,
            False,
            False,
        ]  # written are whole parts
        writer.add(_regions(7, **big))
    assert len(RegionStore(tmp_path / "store")) == 2


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"settings": SETTINGS | {"threshold": 0.3}}, r"`settings.threshold` is 0.2 in the store, 0.3 here"),
        ({"settings": {"num_regions": 36, "threshold": 0.2}}, r"`settings.levels` is \[1, 2\] in the store, None"),
        ({"dtype": "float32"}, "`dtype` is 'float16' in the store, 'float32' here"),
        ({"detector": "other"}, "`detector` is 'toy' in the store, 'other' here"),
    ],
)
def test_a_store_goes_on_with_its_own_settings_only(tmp_path: Path, arguments: dict[str, Any], what: str):
    before = _contents(_write(tmp_path / "store"))
    with pytest.raises(ValueError, match=what):
        _write(tmp_path / "store", [99], **arguments)
    with RegionStoreWriter(**{"settings": SETTINGS, "detector": "toy", "folder": tmp_path / "other"} | arguments):
        pass
    with pytest.raises(ValueError, match=f"has other settings than .*{what}"):
        RegionStore(tmp_path / "store", tmp_path / "other")
    assert _contents(tmp_path / "store") == before


def test_images_that_do_not_fit_are_named(tmp_path: Path):
    nameless = _regions(2)
    nameless.image_id = ""
    with RegionStoreWriter(tmp_path / "store", SETTINGS, detector="toy") as writer:
        writer.add(_regions(1))
        for regions, what in (
            (_regions(1), "Image 'image1' is in region store .* already"),
            (_regions(2, detector="other"), "Image 'image2' was made with other settings .*`detector` is 'toy'"),
            (
                _regions(2, region_features=np.full((2, 8), 7e4)),
                r"'image2': `region_features` has numbers .* for float16\. .*\(`--dtype float32`\)",
            ),
            (nameless, "Image ids must be text"),
        ):
            with pytest.raises(ValueError, match=what):
                writer.add(regions)
        writer.add(_regions(2))
    assert RegionStore(tmp_path / "store").image_ids == ["image1", "image2"]
    with pytest.raises(ValueError, match=r"counted from 0, got \(2, 2\)"):
        RegionStoreWriter(tmp_path / "store", SETTINGS, shard=(2, 2))
    with pytest.raises(ValueError, match="got 'int8'"):
        RegionStoreWriter(tmp_path / "store", SETTINGS, dtype="int8")


def test_an_unknown_image_is_answered_with_the_nearest(tmp_path: Path):
    store = RegionStore(_write(tmp_path / "store"))
    with pytest.raises(KeyError, match=r"No image 'image13.jpg' among the 20 .*The nearest is 'image13'"):
        store["image13.jpg"]
    with pytest.raises(KeyError, match="No image 7"):
        store.read(["image1", 7])  # type: ignore[list-item]


def test_several_stores_open_as_one(tmp_path: Path):
    first, second = _write(tmp_path / "a", range(5)), _write(tmp_path / "b", range(5, 9))
    store = RegionStore(first, second)
    assert store.image_ids == [f"image{number}" for number in range(9)]
    _assert_equal(store["image8"], _regions(8))
    shutil.copytree(first, tmp_path / "c")
    with pytest.raises(ValueError, match=r"Image 'image0' is in '.*/a/regions.*' and again in '.*/c/regions"):
        RegionStore(first, tmp_path / "c")


def _read_all(store: RegionStore, numbers: list[int]) -> None:
    for number in numbers:
        _assert_equal(store[f"image{number}"], _regions(number))


@pytest.mark.parametrize("method", [m for m in ("fork", "spawn") if m in multiprocessing.get_all_start_methods()])
def test_other_processes_read_an_open_store(tmp_path: Path, method: Any, monkeypatch: pytest.MonkeyPatch):
    _write(tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    store = RegionStore("store")
    _read_all(store, [3])
    context = multiprocessing.get_context(method)
    processes = [context.Process(target=_read_all, args=(store, list(range(i, 20)))) for i in range(2)]
    for process in processes:
        process.start()
    _read_all(store, list(range(20)))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301 - our own bytes
    monkeypatch.chdir("/")
    _read_all(copy, list(range(20)))
    assert len(pickle.dumps(store)) < 500


def _collate(batch: list[Regions]) -> list[Regions]:
    return batch


def test_workers_of_a_data_loader_read_a_store(tmp_path: Path):
    from torch.utils.data import DataLoader

    store = RegionStore(_write(tmp_path / "store"))
    batches = DataLoader(_ByNumber(store), batch_size=3, num_workers=2, collate_fn=_collate)  # type: ignore[arg-type]
    for number, regions in enumerate(regions for batch in batches for regions in batch):
        _assert_equal(regions, _regions(number))


class _ByNumber:
    def __init__(self, store: RegionStore):
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, number: int) -> Regions:
        return self.store[self.store.image_ids[number]]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts the open files of Linux")
def test_a_store_may_have_more_parts_than_a_process_open_files(tmp_path: Path):
    import resource

    _write(tmp_path / "store", range(100), images_per_part=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 50, hard))
    try:
        _read_all(RegionStore(tmp_path / "store"), list(range(100)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("has_index", [True, False])
@pytest.mark.parametrize("cut", ["nothing left", "in the header", "in the tensors", "longer", "text"])
def test_a_damaged_part_is_named_on_opening(tmp_path: Path, cut: str, has_index: bool):
    folder = _write(tmp_path / "store")
    path = _parts(folder)[2]
    content = path.read_bytes()
    damaged = {
        "nothing left": b"",
        "in the header": content[:100],
        "in the tensors": content[:-8],
        "longer": content + b"\0",
        "text": b"version https://git-lfs.github.com/spec/v1",
    }
    path.write_bytes(damaged[cut])
    named = re.escape(str(path))
    if not has_index:
        (folder / "index.json").unlink()
        with pytest.raises(ValueError, match=named):
            RegionStoreWriter(folder, SETTINGS, detector="toy")
        with pytest.raises(ValueError, match=named):
            merge_shards(folder)
    with pytest.raises(ValueError, match=f"'.*{named}.*extract again"):
        RegionStore(folder)
    path.unlink()  # as the message says
    RegionStore(_write(folder)).verify()
    _read_all(RegionStore(folder), list(range(20)))


def test_files_of_something_else_are_not_called_damaged(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    for use in (RegionStore, merge_shards, lambda folder: RegionStoreWriter(folder, SETTINGS, detector="toy")):
        with pytest.raises(ValueError, match=r"is no region store, or holds what is none of it: 'model\.safetensors'"):
            use(tmp_path)


def _altered_tensors(content: bytes, change: str) -> bytes:
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]
    tensors = dict(load(content))
    if change == "no metadata":
        return save(tensors)
    if change == "no tensor":
        del tensors["boxes"]
    elif change == "other type":
        tensors["scores"] = tensors["scores"].astype(np.float64)
    elif change == "type of another column":
        tensors["scores"] = tensors["scores"].astype(np.float16)
    elif change == "unknown tensor":
        tensors["else"] = np.zeros(3, np.float32)
    elif change == "rows":
        tensors["labels"] = tensors["labels"][1:]
    elif change == "boxes":
        tensors["boxes"] = tensors["boxes"][:, :3].copy()
    elif change == "offsets":
        tensors["offsets"][1] = 99
    elif change == "offsets of no type":
        tensors["offsets"] = tensors["offsets"].astype(np.float32)
    elif change == "scalar":
        tensors["scores"] = np.array(1, np.float32)
    elif change == "sizes":
        tensors["image_sizes"] = tensors["image_sizes"][:, :1].copy()
    elif change == "ids":
        metadata["image_ids"] = json.dumps(["image8"])
    elif change == "ids of no text":
        metadata["image_ids"] = json.dumps([8, 9, 10, 11])
    elif change == "store":
        metadata["store"] = "[1]"
    elif change == "settings":
        metadata["store"] = json.dumps(json.loads(metadata["store"]) | {"settings": 1})
    elif change == "version":
        metadata["store"] = json.dumps(json.loads(metadata["store"]) | {"version": 2})
    else:
        metadata["store"] = "{"
    return save(tensors, metadata)


@pytest.mark.parametrize(
    "change",
    [
        *("no metadata", "no tensor", "other type", "type of another column", "unknown tensor", "rows", "boxes"),
        *("offsets", "offsets of no type", "scalar", "sizes", "ids", "ids of no text", "store", "settings", "version"),
        "no JSON",
    ],
)
def test_a_part_of_another_layout_is_named_on_opening(tmp_path: Path, change: str):
    folder = _write(tmp_path / "store")
    path = _parts(folder)[1]
    path.write_bytes(_altered_tensors(path.read_bytes(), change))
    (folder / "index.json").unlink()
    with pytest.raises(ValueError, match=f"'{re.escape(str(path))}' is no whole part"):
        RegionStore(folder)


def test_columns_of_other_parts_are_named(tmp_path: Path):
    _write(tmp_path / "a", range(4))
    with RegionStoreWriter(tmp_path / "b", SETTINGS, detector="toy") as writer:
        writer.add(_regions(5, class_probs=None))
    with pytest.raises(ValueError, match=r"/b/regions.* has the columns .* where '.*/a/regions"):
        RegionStore(tmp_path / "a", tmp_path / "b")


def test_every_altered_byte_is_found(tmp_path: Path):
    folder = _write(tmp_path / "store", range(6))
    path = _parts(folder)[0]
    content = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(content), 200).tolist():
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=re.escape(str(path)) + "|and again in|index|other settings"):
            RegionStore(folder).verify()
    path.write_bytes(content)
    RegionStore(folder).verify()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"parts": 1}', "\udcff"])
def test_a_damaged_index_is_named(tmp_path: Path, content: str):
    folder = _write(tmp_path / "store")
    (folder / "index.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"index.json' cannot be read .*`merge_shards` writes it anew"):
        RegionStore(folder)
    assert len(merge_shards(folder)) == 20


def test_lost_and_foreign_parts_are_named(tmp_path: Path):
    folder, other = _write(tmp_path / "store"), _write(tmp_path / "other", [98, 99])
    lost = _parts(folder)[3]
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(ValueError, match=f"{re.escape(lost.name)}' has no bytes, its index says {len(content)}"):
        RegionStore(folder)
    lost.write_bytes(content)
    foreign = shutil.copy(_parts(other)[0], folder)
    with pytest.raises(ValueError, match=f"{re.escape(Path(foreign).name)}' has .* bytes, its index says none"):
        RegionStore(folder)
    with pytest.raises(FileNotFoundError, match="is no region store"):
        RegionStore(tmp_path)
    with pytest.raises(ValueError, match="needs the folder"):
        RegionStore()


def test_more_images_make_the_index_anew(tmp_path: Path):
    folder = _write(tmp_path / "store", range(5))
    with pytest.raises(KeyboardInterrupt):
        _write_interrupted(folder, 5)
    assert not (folder / "index.json").exists()
    with pytest.raises(ValueError, match="not finished: 0/1"):
        merge_shards(folder)
    _write(folder, range(5))
    assert json.loads((folder / "index.json").read_text())["num_images"] == len(RegionStore(folder)) == 6


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_dataset_holds_all_of_a_store(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    dataset = RegionStore(_write(tmp_path / "store", range(8), dtype)).to_dataset()
    assert dataset.num_rows == 8
    dataset.to_parquet(tmp_path / "shared.parquet")
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "shared.parquet"), split="train", streaming=True
    )
    for name, source in (("direct", dataset), ("parquet", loaded)):
        store = RegionStore.from_dataset(source, tmp_path / name)
        assert store.image_ids == [f"image{number}" for number in range(8)]
        for number in range(8):
            _assert_equal(store[f"image{number}"], _regions(number, dtype))
    before = _contents(tmp_path / "direct")
    RegionStore.from_dataset(dataset, tmp_path / "direct")
    assert _contents(tmp_path / "direct") == before
    with pytest.raises(ValueError, match=r"no columns \['settings'\]"):
        RegionStore.from_dataset(dataset.remove_columns("settings"), tmp_path / "none")
    with pytest.raises(ValueError, match="no rows"):
        RegionStore.from_dataset(dataset.select([]), tmp_path / "none")


def test_a_read_takes_less_than_a_tenth_of_a_millisecond(tmp_path: Path):
    values = {"region_features": np.ones((36, 2048), np.float16), "boxes": np.tile(np.float32([0, 0, 1, 1]), (36, 1))}
    with RegionStoreWriter(tmp_path / "store", {}, images_per_part=16) as writer:
        for number in range(64):
            writer.add(Regions(f"image{number}", (2, 2), **values))
    store = RegionStore(tmp_path / "store")
    times = []
    for _ in range(5):
        for image_id in store:
            start = time.perf_counter()
            store[image_id].region_features.copy()
            times.append(time.perf_counter() - start)
    assert np.median(times) < 1e-4


def test_every_array_of_regions_has_a_column(tmp_path: Path):
    store = RegionStore(_write(tmp_path / "store"))
    assert tuple(store.columns) == PER_REGION
    assert store.columns["region_features"] == ("float16", (8,))
