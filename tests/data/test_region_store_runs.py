"""Runs that begin or go on with a region store: whose weights it is of, and what a failed one leaves behind."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_grounding.data.region_store import RegionStore, RegionStoreWriter
from hf_grounding.processing.regions import Regions


def _add(writer: RegionStoreWriter, image_id: str) -> None:
    writer.add(Regions(image_id, (40, 60), np.array([[0, 0, 9, 9]], np.float32)))


def _write(folder: Path, image_id: str, weights: str | None, path: str) -> None:
    settings: dict[str, Any] = {"detector": {"name": path} | ({} if weights is None else {"weights": weights})}
    with RegionStoreWriter(folder, settings, detector=path) as writer:
        _add(writer, image_id)


def test_a_network_is_known_by_its_weights_and_not_by_its_path(tmp_path: Path):
    _write(tmp_path / "store", "1", "abc", "here/detr")
    _write(tmp_path / "store", "2", "abc", "there/detr")
    assert RegionStore(tmp_path / "store").image_ids == ["1", "2"]
    with pytest.raises(
        ValueError, match=r"`settings.detector.weights` is 'abc' in the store, 'def' here: other weight"
    ):
        _write(tmp_path / "store", "3", "def", "here/detr")


def test_a_store_that_does_not_say_its_weights_is_read_but_does_not_go_on(tmp_path: Path):
    _write(tmp_path / "store", "1", None, "here/detr")
    assert RegionStore(tmp_path / "store")["1"].detector == "here/detr"
    with pytest.raises(ValueError, match=r"`settings.detector.weights` is None .* one of the two does not say which"):
        _write(tmp_path / "store", "2", "abc", "here/detr")


def _begin_beside_one_that_fails(folder: Path) -> RegionStoreWriter:
    with suppress(RuntimeError), RegionStoreWriter(folder, {}, shard=(0, 2)):
        assert folder.exists()  # made at once
        other = RegionStoreWriter(folder, {}, shard=(1, 2))
        raise RuntimeError
    return other


def test_an_error_before_anything_is_written_leaves_no_folder_that_was_not_there(tmp_path: Path):
    other = _begin_beside_one_that_fails(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with other:
        _add(other, "1")
    assert RegionStore(tmp_path / "new").image_ids == ["1"]
    (tmp_path / "old").mkdir()
    _begin_beside_one_that_fails(tmp_path / "old")
    assert (tmp_path / "old").exists()
