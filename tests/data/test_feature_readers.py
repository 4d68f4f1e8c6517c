"""Readers of region features: round trips on files written here, the real samples, names and arguments."""

import gzip
import io
import pickle

import numpy as np
import pytest
from PIL import Image

from hf_grounding.data.feature_readers import (
    FORMATS,
    FeatureFileError,
    read_bottom_up_tsv,
    read_cocobu,
    read_features,
    read_grounding_lmdb,
    read_npz_folder,
    read_regions_npz,
    read_vqa_hdf5,
)
from hf_grounding.data.feature_readers.plain_pickle import loads_plain_pickle

from .feature_files import (
    DIM,
    IDS,
    IMAGES,
    SIZE,
    TSV_ROWS,
    annotation,
    assert_same,
    jpeg,
    make_image,
    read_error,
    regions_arrays,
    write_cocobu,
    write_hdf5,
    write_lmdb,
    write_npz_folder,
    write_regions_npz,
    write_tsv,
)

# --- what whole files give


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_tsv_gives_what_was_written_plain_and_gzipped(tmp_path, ending):
    text = (ending.join(TSV_ROWS) + ending).encode()
    (tmp_path / "x.tsv").write_bytes(text)
    (tmp_path / "zipped").write_bytes(gzip.compress(text))
    assert_same(read_features(tmp_path / "x.tsv", "bottom-up-tsv"))
    assert_same(read_features(tmp_path / "zipped", "bottom-up-tsv", feature_dim=DIM))


@pytest.mark.parametrize("key", ["feat", "features", "arr_0"])
def test_cocobu_folders_give_what_was_written(tmp_path, key):
    folder = write_cocobu(tmp_path, key)
    sizes = {11: SIZE, "22": SIZE, 33: SIZE}
    assert_same(read_features(folder, "cocobu", image_sizes=sizes))
    assert_same(read_features(folder / "x_att", "cocobu", image_sizes=sizes))
    (folder / "x_box").rename(folder / "elsewhere")
    assert_same(read_cocobu(folder, image_sizes=sizes, box_dir=folder / "elsewhere"))


def test_sizes_guessed_from_boxes_hold_them_and_are_marked(tmp_path):
    for regions in read_cocobu(write_cocobu(tmp_path), image_sizes="boxes"):
        height, width = regions.image_size
        right, bottom = regions.boxes[:, 2:].max(axis=0)
        assert width - 1 < right <= width
        assert height - 1 < bottom <= height
        assert regions.settings["image_size_from"] == "boxes"


def test_npz_folder_names_the_best_class_that_is_not_background(tmp_path):
    found = list(read_features(write_npz_folder(tmp_path / "x"), "npz", detector="faster_rcnn"))
    assert_same(found)
    for regions, (_, _, probs) in zip(found, IMAGES.values(), strict=True):
        np.testing.assert_array_equal(regions.class_probs, probs)
        np.testing.assert_array_equal(regions.labels, probs[:, 1:].argmax(axis=1) + 1)
        np.testing.assert_array_equal(regions.scores, probs[:, 1:].max(axis=1))
        assert regions.detector == "faster_rcnn"
        assert regions.settings == {"format": "npz", "background_column": 0}
    regions = next(read_npz_folder(tmp_path / "x", background_column=None))
    np.testing.assert_array_equal(regions.labels, IMAGES["11"][2].argmax(axis=1))


def test_a_background_column_needs_other_columns(tmp_path):
    boxes, features, _ = IMAGES["11"]
    np.savez(tmp_path / "11.npz", feat=features, boxes=boxes, cls_prob=np.ones((2, 1)), image_w=400, image_h=300)
    assert "have 1 columns, with the background in column 0; give `background_column=None`" in read_error(
        read_npz_folder(tmp_path)
    )
    assert next(read_npz_folder(tmp_path, background_column=None)).labels.tolist() == [0, 0]


def test_npz_folder_without_sizes_or_probabilities(tmp_path):
    folder = write_npz_folder(tmp_path / "x", image_w=None, image_h=None, cls_prob=None)
    assert_same(read_npz_folder(folder, image_sizes=dict.fromkeys(IDS, SIZE)))
    assert next(read_npz_folder(folder, image_sizes="boxes")).class_probs is None
    assert "no `image_w` and `image_h`, so give `image_sizes`" in read_error(read_npz_folder(folder))


def test_probabilities_a_little_over_one_are_clipped(tmp_path):
    probs = np.array([[0, 1.0004]] * 2, np.float32)
    arrays = {"feat": IMAGES["11"][1], "boxes": IMAGES["11"][0], "cls_prob": probs, "image_w": [9], "image_h": [9]}
    np.savez(tmp_path / "1.npz", **arrays)
    assert next(read_npz_folder(tmp_path)).class_probs.max() == 1


def test_regions_npz_gives_real_features_and_sizes_as_height_and_width(tmp_path):
    arrays = regions_arrays()
    found = list(read_features(write_regions_npz(tmp_path / "x.npz"), "regions-npz"))
    assert [regions.image_id for regions in found] == IDS
    features = np.concatenate([regions.region_features for regions in found])
    np.testing.assert_array_equal(features, arrays["region_features_q"].astype(np.float32) * arrays["feature_scale"])
    np.testing.assert_array_equal(np.concatenate([regions.boxes for regions in found]), arrays["boxes"])
    np.testing.assert_array_equal(np.concatenate([regions.class_probs for regions in found]), arrays["class_probs"])
    assert {regions.image_size for regions in found} == {SIZE}
    for regions in found:
        np.testing.assert_array_equal(regions.scores, regions.class_probs.max(axis=1))


def test_regions_npz_may_have_no_features_and_images_without_regions(tmp_path):
    changes = {"region_features_q": None, "feature_scale": None, "image_ids": np.array([b"a", b"b", b"c"])}
    path = write_regions_npz(tmp_path / "x.npz", **changes, offsets=np.array([0, 0, 5, 9]))
    found = list(read_regions_npz(path))
    assert [(regions.image_id, len(regions)) for regions in found] == [("a", 0), ("b", 5), ("c", 4)]
    assert all(regions.region_features is None for regions in found)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_adaptive_hdf5_gives_what_was_written_with_sizes_from_spatial_features(tmp_path, protocol):
    path = write_hdf5(tmp_path, index={np.int64(11): 0, "22": np.int32(1), 33: 2}, protocol=protocol)
    assert_same(read_features(path, "vqa-hdf5"))


def test_fixed_hdf5_gives_what_was_written(tmp_path):
    images = {image_id: make_image(seed, 4) for seed, image_id in enumerate(IDS)}
    path = write_hdf5(tmp_path, adaptive=False)
    assert_same(read_vqa_hdf5(path), images)
    index = path.with_name("train36_imgid2idx.pkl").rename(tmp_path / "other.pkl")
    assert_same(read_vqa_hdf5(path, index=index, image_sizes=dict.fromkeys(IDS, SIZE)), images)


def test_hdf5_rows_come_in_the_order_of_the_file_and_only_those_of_the_index(tmp_path):
    path = write_hdf5(tmp_path, index={"late": 2, "early": 0})
    assert [regions.image_id for regions in read_vqa_hdf5(path)] == ["early", "late"]


def test_lmdb_gives_photos_and_their_annotations(tmp_path):
    photos = {str(number): jpeg((40 + number, 30)) for number in range(150)}
    photos["small"] = jpeg((2, 2))  # lies in its leaf page, the others on pages of their own
    folder = write_lmdb(tmp_path / "x", photos, {"7": annotation(), "12": annotation()})
    found = list(read_grounding_lmdb(folder))
    assert [item.image_id for item in found] == sorted(photos)
    for item in found:
        assert item.image.size == Image.open(io.BytesIO(photos[item.image_id])).size
        assert item.annotation is None
    found = list(read_grounding_lmdb(folder / "data.mdb", annotations=folder / "annotations.pkl"))
    assert [(item.image_id, item.annotation) for item in found] == [("12", annotation()), ("7", annotation())]


def test_lmdb_of_thousands_of_keys_and_an_empty_one_read_as_the_library_reads_them(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    photo = jpeg((2, 2))
    folder = write_lmdb(tmp_path / "x", {str(number): photo for number in range(3000)})
    with lmdb.open(str(folder), map_size=2**24) as env, env.begin(write=True) as transaction:
        for number in range(0, 3000, 3):
            transaction.delete(str(number).encode())
    with lmdb.open(str(folder), readonly=True) as env, env.begin() as transaction:
        expected = [key.decode() for key, _ in transaction.cursor()]
    assert [item.image_id for item in read_grounding_lmdb(folder)] == expected
    assert list(read_grounding_lmdb(write_lmdb(tmp_path / "empty", {}))) == []


def test_readers_hold_one_image_at_a_time(tmp_path):
    readers = [
        read_bottom_up_tsv(write_tsv(tmp_path / "x.tsv", [TSV_ROWS[0], "broken"])),
        read_vqa_hdf5(write_hdf5(tmp_path, index={11: 0, 22: 99})),
    ]
    for reader in readers:  # the first image comes before the broken second is looked at
        assert next(reader).image_id == "11"
        with pytest.raises(FeatureFileError):
            next(reader)


# --- the real samples


def test_the_tsv_and_cocobu_samples_of_the_same_photos_agree(data_dir):
    samples = data_dir / "regions" / "layout_samples"
    tsv = {regions.image_id: regions for regions in read_bottom_up_tsv(samples / "bottom_up.tsv")}
    cocobu = {regions.image_id: regions for regions in read_cocobu(samples, image_sizes="boxes")}
    assert (len(tsv), len(cocobu)) == (5, 20)
    for image_id, regions in tsv.items():
        np.testing.assert_array_equal(regions.boxes, cocobu[image_id].boxes)
        np.testing.assert_array_equal(regions.region_features, cocobu[image_id].region_features)
        assert regions.region_features.shape[1] == 1280


def test_the_real_region_files_agree_with_the_tsv_sample(data_dir):
    val = {regions.image_id: regions for regions in read_regions_npz(data_dir / "regions" / "flickr8k_val.npz")}
    assert len(val) == 966
    assert sum(map(len, val.values())) == 29_331
    for regions in read_bottom_up_tsv(data_dir / "regions" / "layout_samples" / "bottom_up.tsv"):
        same = val[regions.image_id]
        np.testing.assert_allclose(regions.boxes, same.boxes, atol=0.06)  # stored in tenths of a pixel
        assert regions.image_size == same.image_size
    rooms = list(read_regions_npz(data_dir / "regions" / "daquar_val.npz"))
    assert len(rooms) == 100
    assert rooms[0].region_features is None


def test_the_real_pickle_of_visual_genome_splits_is_read_without_pickle(data_dir):
    splits = loads_plain_pickle((data_dir / "visual_genome" / "splits" / "data_splits.pickle").read_bytes())
    assert sorted(len(ids) for ids in splits.values()) == [17_478, 90_599]


# --- names and arguments


def test_formats_and_options_are_named(tmp_path):
    assert set(FORMATS) == {"bottom-up-tsv", "cocobu", "npz", "regions-npz", "vqa-hdf5"}
    with pytest.raises(ValueError, match=r"Unknown format 'bottomup_tsv'\. Did you mean 'bottom-up-tsv'"):
        read_features(tmp_path, "bottomup_tsv")
    with pytest.raises(ValueError, match=r"has no option `image_size`\. Did you mean 'image_sizes'"):
        read_features(tmp_path, "cocobu", image_size={})
    with pytest.raises(ValueError, match=r"holds photos, not regions\. Use `read_grounding_lmdb`"):
        read_features(tmp_path, "lmdb")
    with pytest.raises(TypeError, match="`on_error` must be a function, a list or None, got str"):
        read_features(write_tsv(tmp_path / "x.tsv"), "bottom-up-tsv", on_error="skip")
    with pytest.raises(TypeError, match="`image_sizes` must map image ids"):
        read_features(tmp_path, "npz", image_sizes=(3, 4))


def test_files_and_folders_without_an_image_are_named(tmp_path):
    (tmp_path / "x.tsv").touch()
    assert read_error(read_bottom_up_tsv(tmp_path / "x.tsv")) == f"'{tmp_path / 'x.tsv'}': the file is empty"
    for folder in ("x_att", "x_box"):
        (tmp_path / folder).mkdir()
    for name in ("npz", "cocobu"):
        with pytest.raises(FileNotFoundError, match=r"x_att' has no `\.npz` files"):
            read_features(tmp_path / "x_att", name)
    assert "the index is empty" in read_error(read_vqa_hdf5(write_hdf5(tmp_path, index={})))


@pytest.mark.parametrize("name", FORMATS)
def test_missing_files_are_named_at_once(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="missing"):
        read_features(tmp_path / "missing", name)
    with pytest.raises(FileNotFoundError, match="missing"):
        read_grounding_lmdb(tmp_path / "missing")


def test_cocobu_folders_that_cannot_be_told_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be or hold one folder '<name>_att', got none"):
        read_cocobu(tmp_path)
    (tmp_path / "x_att").mkdir()
    with pytest.raises(FileNotFoundError, match="x_box' is no folder"):
        read_cocobu(tmp_path)
    (tmp_path / "y_att").mkdir()
    with pytest.raises(FileNotFoundError, match="got x_att, y_att"):
        read_cocobu(tmp_path)


def test_errors_survive_the_way_out_of_another_process():
    error = FeatureFileError("x.tsv", "it is short", row=7, image_id="123")
    assert str(error) == "'x.tsv', row 7 (image '123'): it is short"
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - written one line above
    assert (str(copy), copy.row, copy.image_id, copy.reason) == (str(error), 7, "123", "it is short")
