"""Feature stores: whole or not there, and damage is named."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from hf_grounding.data.feature_store import FeatureStore, FeatureStoreWriter

MAPS = np.arange(24, dtype=np.float16).reshape(4, 2, 3, 1)


def _write(folder: Path) -> Path:
    with FeatureStoreWriter(folder, ["a", "b", "c", "d"], {"levels": [1, 2]}) as writer:
        writer.write([MAPS[:3], 2 * MAPS[:3]])
        writer.write([MAPS[3:], 2 * MAPS[3:]])
    return folder


def _write_zeros(folder: Path, number: int, announced: int) -> None:
    with FeatureStoreWriter(folder, [str(i) for i in range(announced)], {}) as writer:
        for _ in range(number):
            writer.write([np.zeros((1, 100, 100, 4))])


def test_rows_are_read_in_the_order_asked_for(tmp_path: Path):
    store = FeatureStore(_write(tmp_path / "store"))
    low, high = store.read(["d", "a"])
    np.testing.assert_array_equal(low, MAPS[[3, 0]])
    np.testing.assert_array_equal(high, 2 * MAPS[[3, 0]])
    assert len(store) == 4
    assert store.settings == {"levels": [1, 2]}
    with pytest.raises(KeyError, match=r"\['e'\] are not in the feature store"):
        store.read(["a", "e"])


def test_maps_may_be_any_layout_and_precision(tmp_path: Path):
    with FeatureStoreWriter(tmp_path / "store", ["a", "b"], {}) as writer:
        writer.write([np.moveaxis(np.arange(12.0).reshape(2, 3, 2, 1), 1, -1)])
    stored = FeatureStore(tmp_path / "store").read(["a", "b"])[0]
    np.testing.assert_array_equal(stored, np.moveaxis(np.arange(12.0).reshape(2, 3, 2, 1), 1, -1))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of a process are Unix's")
def test_no_space_is_an_error_and_leaves_nothing(tmp_path: Path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            _write_zeros(tmp_path / "store", 100, 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_takes_its_place_on_the_disk_at_once(tmp_path: Path):
    """A sparse file would fail when pages are filled, too late for an error."""
    with FeatureStoreWriter(tmp_path / "store", ["a", "b"], {}) as writer:
        writer.write([np.ones((1, 500, 500, 4))])
        assert (writer.aside / "level_0.npy").stat().st_size < 1.5 * 2 * 500 * 500 * 4
        writer.write([np.ones((1, 500, 500, 4))])


def test_an_interrupted_or_short_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="1 images were written where 2 were announced"):
        _write_zeros(tmp_path / "store", 1, 2)

    def interrupted(shape):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "zeros", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _write_zeros(tmp_path / "store", 1, 2)
    assert list(tmp_path.iterdir()) == []


def test_remains_of_a_killed_process_go_with_the_next(tmp_path: Path):
    old, young, other = (tmp_path / name for name in (".store-old", ".store-young", ".else-old"))
    for folder in (old, young, other):
        folder.mkdir()
        (folder / "level_0.npy").write_bytes(b"half")
    for path in (old, old / "level_0.npy", other, other / "level_0.npy"):
        os.utime(path, (0, 0))
    _write(tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".else-old", ".store-young", "store"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{", "index.json' cannot be read"),
        ("[]", "index.json' cannot be read .no index of features"),
        ("{}", "index.json' cannot be read .no index of features: KeyError"),
        (json.dumps({"settings": {}, "levels": [], "image_ids": []}), "no index of features"),
        (
            json.dumps({"settings": {}, "levels": {"level_0.npy": [9, 2, 3, 1]}, "image_ids": []}),
            "where the index says",
        ),
        (json.dumps({"settings": {}, "levels": {"level_7.npy": [9, 2, 3, 1]}, "image_ids": []}), "level_7.npy'"),
    ],
)
def test_a_damaged_index_is_named(tmp_path: Path, content: str, what: str):
    folder = _write(tmp_path / "store")
    (folder / "index.json").write_text(content)
    with pytest.raises(ValueError, match=what):
        FeatureStore(folder)


def test_a_cut_off_file_and_a_missing_index_are_named(tmp_path: Path):
    folder = _write(tmp_path / "store")
    path = folder / "level_1.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"level_1.npy' cannot be read .*Delete the folder"):
        FeatureStore(folder)
    with pytest.raises(FileNotFoundError, match="no feature store"):
        FeatureStore(tmp_path)
