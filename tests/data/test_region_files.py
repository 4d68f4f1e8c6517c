"""Files of detected regions: what is read, and what broken ones answer."""

import numpy as np
import pytest

from hf_grounding.data.region_files import read_region_boxes

GOOD = {
    "image_ids": np.array([7, 9]),
    "offsets": np.array([0, 2, 3]),
    "boxes": np.arange(12, dtype=np.float32).reshape(3, 4),
    "class_probs": np.array([[0.1, 0.7], [0.2, 0.0], [0.4, 0.3]], dtype=np.float32),
}


def test_every_image_gets_its_boxes_and_their_largest_class_probability(tmp_path):
    np.savez(tmp_path / "regions.npz", **GOOD)
    regions = read_region_boxes(tmp_path / "regions.npz")
    assert list(regions) == ["7", "9"]
    boxes, scores = regions["7"]
    assert boxes.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert scores.tolist() == pytest.approx([0.7, 0.2])
    assert regions["9"][1].tolist() == pytest.approx([0.4])


def test_image_ids_may_be_bytes(tmp_path):
    np.savez(tmp_path / "regions.npz", **(GOOD | {"image_ids": np.array([b"7", b"9"])}))
    assert list(read_region_boxes(tmp_path / "regions.npz")) == ["7", "9"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"boxes": None}, r"has no array \['boxes'\]"),
        (
            {"offsets": np.array([0, 2, 4])},
            r"together: .*`offsets` int64 \(3,\), `boxes` float32 \(3, 4\)",
        ),
        ({"offsets": np.array([0, 3, 2])}, "do not belong together"),
        ({"image_ids": np.array([7])}, "do not belong together"),
        ({"class_probs": np.zeros((2, 2))}, "do not belong together"),
        ({"boxes": GOOD["boxes"].astype(str)}, r"do not belong together: .*`boxes` <U\d+ \(3, 4\)"),
        ({"image_ids": np.array([[7], [9]])}, "do not belong together"),
    ],
    ids=["missing", "too far", "backwards", "too few", "other length", "text", "table of ids"],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, change, message):
    arrays = {name: value for name, value in (GOOD | change).items() if value is not None}
    np.savez(tmp_path / "regions.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_region_boxes(tmp_path / "regions.npz")


def test_files_that_are_no_npz_are_refused(tmp_path):
    np.savez(tmp_path / "whole.npz", **GOOD)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:200])
    np.save(tmp_path / "bare.npy", GOOD["boxes"])
    np.savez(tmp_path / "pickled.npz", **(GOOD | {"image_ids": np.array([7, None], dtype=object)}))
    (tmp_path / "empty.npz").touch()
    for name in ("cut.npz", "bare.npy", "pickled.npz", "empty.npz"):
        with pytest.raises(ValueError, match=f"{name}' cannot be read as an .npz file of regions"):
            read_region_boxes(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_region_boxes(tmp_path / "nothing.npz")
