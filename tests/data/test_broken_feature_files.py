"""Readers of region features: what broken files answer, and that what follows is still read."""

import base64
import gzip
import io
import pickle
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from hf_grounding.data.feature_readers import (
    read_bottom_up_tsv,
    read_cocobu,
    read_grounding_lmdb,
    read_npz_folder,
    read_regions_npz,
    read_vqa_hdf5,
)

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
    tsv_row,
    write_cocobu,
    write_hdf5,
    write_lmdb,
    write_npz_folder,
    write_regions_npz,
    write_tsv,
)


def floats(count):
    return base64.b64encode(np.ones(count, np.float32).tobytes()).decode()


BAD_BOX = base64.b64encode(np.array([[1, 2, 3, 4], [5, 6, 4, 8]], np.float32).tobytes()).decode()
NAN_BOX = base64.b64encode(np.array([[1, 2, 3, 4], [np.nan] * 4], np.float32).tobytes()).decode()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"features": floats(11)}, "features hold 44 bytes where 2 boxes x 6 float32 need 48"),
        ({"boxes": floats(4)}, "boxes hold 16 bytes where 2 boxes x 4 float32 need 32"),
        ({"num_boxes": 10**9}, "it claims 1000000000 boxes; an image has 1 to 10000"),
        ({"num_boxes": 0}, "it claims 0 boxes"),
        ({"num_boxes": -1}, "`num_boxes` must be a whole number, got '-1'"),
        ({"num_boxes": "9" * 5000}, "`num_boxes` must be a whole number"),
        ({"features": "ab!d"}, "features as base64 cannot be read"),
        ({"features": "abcde"}, "features as base64 cannot be read"),
        ({"image_w": 0}, "`image_w` must be a whole number of pixels from 1 to 1000000, got 0"),
        ({"image_h": "1e3"}, "`image_h` must be a whole number of pixels from 1 to 1000000, got '1e3'"),
        ({"boxes": BAD_BOX}, r"box 1 is not xyxy with x1 <= x2 and y1 <= y2: [5.0, 6.0, 4.0, 8.0]"),
        ({"boxes": NAN_BOX}, "box 1 is not finite"),
        (
            {"features": base64.b64encode(np.full(12, np.inf, np.float32).tobytes()).decode()},
            "features of box 0 are not",
        ),
        ({"features": "a\tb"}, "it has 7 columns, expected 6: image_id, image_w, image_h, num_boxes, boxes, features"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:25],
)
def test_a_broken_row_of_a_tsv_is_named_and_the_next_rows_still_read(tmp_path, changes, message):
    broken = tsv_row("123", *IMAGES["11"][:2], **changes)
    path = write_tsv(tmp_path / "x.tsv", [*TSV_ROWS[:2], broken, TSV_ROWS[2]])
    assert read_error(read_bottom_up_tsv(path)).startswith(f"'{path}', row 3 (image '123'): {message}")
    errors = []
    assert_same(read_bottom_up_tsv(path, on_error=errors))
    assert [(error.row, error.image_id, error.file) for error in errors] == [(3, "123", str(path))]
    calls = []
    assert_same(read_bottom_up_tsv(path, on_error=lambda error: calls.append(str(error))))
    assert calls == [str(errors[0])]


@pytest.mark.parametrize("image_id", ["../x", "a/b", "..", "", "a\\b", "x" * 300, "\0", " "])
def test_image_ids_that_lead_elsewhere_are_refused(tmp_path, image_id):
    path = write_tsv(tmp_path / "x.tsv", [tsv_row(image_id, *IMAGES["11"][:2])])
    assert "is no image id; expected a plain name" in read_error(read_bottom_up_tsv(path))


def test_other_lengths_of_features_within_one_file_are_refused(tmp_path):
    boxes, features, _ = IMAGES["22"]
    path = write_tsv(tmp_path / "x.tsv", [TSV_ROWS[0], tsv_row("22", boxes, features[:, :5].copy())])
    assert "features hold 60 bytes where 3 boxes x 6 float32 need 72" in read_error(read_bottom_up_tsv(path))
    assert "x 2048 float32 need 16384" in read_error(read_bottom_up_tsv(path, feature_dim=2048))
    path = write_tsv(tmp_path / "y.tsv", [tsv_row("1", boxes, features.ravel()[:17].copy())])
    assert "features hold 68 bytes, which are no float32 vectors for 3 boxes" in read_error(read_bottom_up_tsv(path))


def test_a_line_without_end_is_skipped_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_grounding.data.feature_readers.bottom_up_tsv.MAX_LINE_BYTES", 2000)
    path = write_tsv(tmp_path / "x.tsv", [TSV_ROWS[0], "5\t" + "A" * 3_000_000, *TSV_ROWS[1:]])
    errors = []
    assert_same(read_bottom_up_tsv(path, on_error=errors))
    assert [str(error) for error in errors] == [f"'{path}', row 2 (image '5'): the line is longer than 2000 bytes"]


def test_a_cut_gzip_gives_its_whole_rows_then_the_error(tmp_path):
    path = tmp_path / "x.tsv.gz"
    rows = [tsv_row(str(seed), *make_image(seed, 50)[:2]) for seed in range(20)]
    whole = gzip.compress("\n".join(rows).encode())
    path.write_bytes(whole[: len(whole) // 2])
    errors = []
    found = list(read_bottom_up_tsv(path, on_error=errors))
    assert 5 < len(found) < 15
    assert len(errors) == 1
    assert errors[0].row == len(found) + 1
    assert "the rest of the file cannot be read (Compressed file ended before the end-of-stream" in str(errors[0])


def test_broken_cocobu_images_are_named_and_the_next_still_read(tmp_path):
    folder = write_cocobu(tmp_path)
    (folder / "x_att" / "05.npz").write_bytes(b"PK")
    np.savez(folder / "x_att" / "06.npz", other=np.zeros(3))
    np.savez(folder / "x_att" / "07.npz", feat=np.zeros((2, DIM)))
    np.save(folder / "x_box" / "08.npy", np.zeros((2, 4)))
    np.savez(folder / "x_att" / "09.npz", feat=np.zeros((14, 14, DIM)))
    np.save(folder / "x_box" / "09.npy", np.zeros((196, 4)))
    np.savez(folder / "x_att" / "10.npz", feat=np.array([None], dtype=object))
    np.savez(folder / "x_att" / "44.npz", feat=np.zeros((2, DIM)))
    np.save(folder / "x_box" / "44.npy", np.zeros((3, 4)))
    np.savez(folder / "x_att" / "55.npz", feat=np.zeros((2, DIM)))
    np.save(folder / "x_box" / "55.npy", np.zeros((2, 4)))
    errors = []
    assert_same(read_cocobu(folder, image_sizes=dict.fromkeys(["09", "44", *IDS], SIZE), on_error=errors))
    expected = {
        "x_att/05.npz', image '05'": "the file cannot be read",
        "x_att/06.npz', image '06'": "there is no array `feat`; it has other",
        "x_box/07.npy', image '07'": "the file is missing",
        "x_att/08.npz', image '08'": "the file is missing",
        "x_box/09.npy', image '09'": "features have shape (14, 14, 6) for 196 boxes",
        "x_att/10.npz', image '10'": "`feat` holds object, expected plain numbers or text",
        "x_box/44.npy', image '44'": "features have shape (2, 6) for 3 boxes, expected (3, numbers)",
        "x_box/55.npy', image '55'": "its size is not in `image_sizes`",
    }
    for error, (place, reason) in zip(errors, expected.items(), strict=True):
        assert f"{place}: {reason}" in str(error)
    assert "size of the image is unknown: give `image_sizes`" in read_error(read_cocobu(write_cocobu(tmp_path / "y")))


def npy(shape, data=b"", descr="<f4"):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    "content, message",
    [
        (npy((10**9, 4)), "claims shape (1000000000, 4) of float32, over the limit of 67108864 bytes"),
        (npy((2**60, 2**60)), "has the impossible shape"),
        (npy((2, 4), bytes(8)), "holds 8 bytes where shape (2, 4) of float32 needs 32"),
        (npy((2, 4), bytes(40)), "goes on after its last number"),
        (npy((2, 4), bytes(32), "|V4"), "holds |V4, expected plain numbers or text"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "has `.npy` version (2, 0), expected (1, 0)"),
        (b"nothing", "cannot be read"),
    ],
    ids=["huge", "overflow", "cut", "long", "void", "version 2", "text"],
)
def test_arrays_that_claim_what_they_do_not_have_are_refused(tmp_path, content, message):
    folder = write_cocobu(tmp_path)
    (folder / "x_box" / "11.npy").write_bytes(content)
    assert message in read_error(read_cocobu(folder, image_sizes="boxes"))
    with zipfile.ZipFile(folder / "x_att" / "11.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("feat.npy", content)
    assert message in read_error(read_cocobu(folder, image_sizes="boxes"))


def test_other_compressions_of_npz_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "1.npz", "w", zipfile.ZIP_LZMA) as file:
        file.writestr("feat.npy", npy((1,), bytes(4)))
    assert "`feat` is compressed by method 14" in read_error(read_npz_folder(tmp_path))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"cls_prob": np.full((2, 5), 1.5)}, "class probabilities of box 0 leave [0, 1], e.g. 1.5"),
        ({"cls_prob": np.full((2, 5), np.nan)}, "class probabilities of box 0 are not finite"),
        ({"cls_prob": np.ones((2, 1))}, "class probabilities have 1 numbers for each box, where 5 are expected"),
        ({"image_w": [3, 4]}, "`image_w` must be one number, got shape (2,)"),
        ({"image_w": 2.5}, "`image_w` must be a whole number of pixels"),
        ({"image_h": None}, "there is no array `image_h`"),
        ({"boxes": None}, "there is no array `boxes`"),
        ({"boxes": np.zeros((2, 5))}, "boxes have shape (2, 5), expected (n, 4)"),
        ({"boxes": np.zeros((0, 4)), "features": np.zeros((0, DIM))}, "there are no boxes"),
        ({"features": np.full((2, DIM), "x")}, "features must be numbers, got <U1"),
        ({"features": np.full((2, DIM), 1e300)}, "features of box 0 are not finite"),
    ],
)
def test_broken_npz_images_are_named(tmp_path, changes, message):
    write_npz_folder(tmp_path)
    boxes, features, probs = IMAGES["11"]
    arrays = {"features": features, "boxes": boxes, "cls_prob": probs, "image_w": 9, "image_h": 9} | changes
    np.savez(tmp_path / "22.npz", **{name: value for name, value in arrays.items() if value is not None})
    errors = []
    found = list(read_npz_folder(tmp_path, on_error=errors))
    assert [regions.image_id for regions in found] == ["11", "33"]
    assert str(errors[0]).startswith(f"'{tmp_path / '22.npz'}', image '22': {message}")


BOXES = regions_arrays()["boxes"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"boxes": None}, "there is no array `boxes`"),
        ({"offsets": np.array([0, 9, 5, 9])}, "`offsets` must rise from 0"),
        ({"offsets": np.array([0, 2, 5, 10**9])}, "row 2 claims 999999995 boxes; an image has at most 10000"),
        ({"offsets": np.array([0, 2, 5, 10])}, r"`boxes` has shape (9, 4), expected (10, numbers) by `offsets`"),
        ({"image_ids": np.array([1, 2])}, "the arrays do not belong together: `image_ids` int64 (2,), `offsets`"),
        ({"feature_scale": None}, "there is no array `feature_scale`"),
        ({"feature_scale": np.ones(5)}, "`feature_scale` has shape (5,), `region_features_q` (9, 6)"),
        ({"feature_scale": np.full(DIM, np.nan)}, "`feature_scale` must be one finite number for each column"),
        ({"class_probs": np.full((9, 2), "x")}, "`class_probs` must be numbers, got <U1"),
        ({"boxes": np.asfortranarray(BOXES)}, "`boxes` has shape (9, 4) in columns' order"),
    ],
)
def test_region_files_whose_arrays_do_not_fit_are_refused_whole(tmp_path, changes, message):
    path = write_regions_npz(tmp_path / "x.npz", **changes)
    assert read_error(read_regions_npz(path, on_error=[])).startswith(f"'{path}': {message}")


def test_a_broken_image_of_a_region_file_is_skipped(tmp_path):
    boxes = BOXES.copy()
    boxes[3, 0] = 500
    path = write_regions_npz(tmp_path / "x.npz", boxes=boxes)
    errors = []
    assert [regions.image_id for regions in read_regions_npz(path, on_error=errors)] == ["11", "33"]
    assert str(errors[0]).startswith(f"'{path}', row 1 (image '22'): box 1 is not xyxy")


def test_a_region_file_with_a_wrong_checksum_gives_no_image(tmp_path):
    np.savez(tmp_path / "x.npz", **regions_arrays())
    content = bytearray((tmp_path / "x.npz").read_bytes())
    quantised = regions_arrays()["region_features_q"].tobytes()
    content[content.index(quantised) + 50] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    assert "`region_features_q` cannot be read (Bad CRC-32" in read_error(read_regions_npz(tmp_path / "x.npz"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"pos_boxes": np.array([[0, 2], [2, 10**9], [5, 9]])}, "`pos_boxes` are 2 to 1000000000, of 9 boxes"),
        ({"pos_boxes": np.array([[0, 2], [-1, 3], [5, 9]])}, "`pos_boxes` are -1 to 3, of 9 boxes"),
        ({"pos_boxes": np.array([[0, 2], [2, 2], [5, 9]])}, "it claims 0 boxes; an image has 1 to 10000"),
        ({"pos_boxes": np.array([[0, 2]])}, "the index points behind the last of 1 rows"),
        ({"spatial_features": None}, "the size of the image is unknown: no `spatial_features`, so give `image_sizes`"),
        ({"spatial_features": np.zeros((9, 6))}, "`spatial_features` give no image size W"),
        ({"spatial_features": np.full((9, 6), 0.7)}, "`spatial_features` do not belong to the boxes"),
        ({"image_bb": np.zeros((9, 4))}, "all boxes are 0, as in a row that was never written"),
        ({"image_features": np.full((9, DIM), np.nan)}, "features of box 0 are not finite"),
    ],
)
def test_broken_rows_of_hdf5_are_named(tmp_path, changes, message):
    path = write_hdf5(tmp_path, index={"123": 1}, **changes)
    assert read_error(read_vqa_hdf5(path)).startswith(f"'{path}', row 1 (image '123'): {message}")


def test_the_rows_after_a_broken_one_of_hdf5_are_still_read(tmp_path):
    path = write_hdf5(tmp_path, pos_boxes=np.array([[0, 2], [7, 3], [5, 9]]))
    errors = []
    assert [regions.image_id for regions in read_vqa_hdf5(path, on_error=errors)] == ["11", "33"]
    assert [(error.row, error.image_id) for error in errors] == [(1, "22")]


def test_a_broken_entry_of_the_index_is_skipped(tmp_path):
    path = write_hdf5(tmp_path, index={"11": 0, "22": -1, "a/b": 1, "33": 2})
    errors = []
    assert [regions.image_id for regions in read_vqa_hdf5(path, on_error=errors)] == ["11", "33"]
    assert [error.file for error in errors] == [str(tmp_path / "train36_imgid2idx.pkl")] * 2


@pytest.mark.filterwarnings("error")
def test_signalling_nans_and_overflow_are_our_error_and_no_warning(tmp_path):
    boxes = regions_arrays()["boxes"]
    boxes.view(np.uint32)[:] = 0x7F800001
    path = write_hdf5(tmp_path, image_bb=boxes)
    assert "`spatial_features` give no image size W" in read_error(read_vqa_hdf5(path))
    assert "box 0 is not finite" in read_error(read_vqa_hdf5(path, image_sizes=dict.fromkeys(IDS, SIZE)))
    assert "the boxes give no image size" in read_error(read_vqa_hdf5(path, image_sizes="boxes"))
    assert "box 0 is not finite" in read_error(read_regions_npz(write_regions_npz(tmp_path / "x.npz", boxes=boxes)))
    scale = np.full(DIM, 3e38, np.float32)
    path = write_regions_npz(tmp_path / "x.npz", feature_scale=scale)
    assert "features of box 0 are not finite" in read_error(read_regions_npz(path))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_bb": None}, "there is no array `image_bb`; it has"),
        (
            {"image_bb": np.zeros((8, 4))},
            "the arrays do not belong together: `image_features` (9, 6), `image_bb` (8, 4)",
        ),
        ({"image_bb": np.full((9, 4), b"x")}, "`image_bb` must be numbers"),
        ({"pos_boxes": np.zeros((3, 2))}, "`pos_boxes` must be whole numbers, got float64"),
        ({"pos_boxes": None}, "the arrays do not belong together"),
    ],
)
def test_hdf5_files_whose_arrays_do_not_fit_are_refused_whole(tmp_path, changes, message):
    path = write_hdf5(tmp_path, **changes)
    assert read_error(read_vqa_hdf5(path, on_error=[])).startswith(f"'{path}': {message}")


def test_hdf5_arrays_elsewhere_or_never_written_or_in_huge_chunks_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = write_hdf5(tmp_path)
    (tmp_path / "secret").write_bytes(bytes(1000))

    def replace(create):
        with h5py.File(path, "a") as file:
            del file["image_bb"]
            create(file)
        return read_error(read_vqa_hdf5(path))

    def huge(file):
        file.create_dataset("image_bb", (10**9, 4), "f4", chunks=(10**7, 4))

    elsewhere = "`image_bb` is no array inside this file"
    external = [(str(tmp_path / "secret"), 0, 144)]
    layout = h5py.VirtualLayout((9, 4), "f4")
    layout[:] = h5py.VirtualSource("other.hdf5", "x", (9, 4))
    assert elsewhere in replace(lambda file: file.create_dataset("image_bb", (9, 4), "f4", external=external))
    assert elsewhere in replace(lambda file: file.create_virtual_dataset("image_bb", layout))
    assert elsewhere in replace(lambda file: file.__setitem__("image_bb", h5py.ExternalLink("other.hdf5", "x")))
    assert elsewhere in replace(lambda file: file.create_group("image_bb"))
    assert "needs 144 bytes and has 0" in replace(lambda file: file.create_dataset("image_bb", (9, 4), "f4"))
    assert "has chunks of (10000000, 4), over 67108864 bytes" in replace(huge)
    path.write_bytes(path.read_bytes()[:3000])
    assert f"'{path}': the file cannot be read" in read_error(read_vqa_hdf5(path))


@pytest.mark.parametrize(
    "index, message",
    [
        ([1, 2], "the index must be a dictionary image id -> row, got list"),
        ({"a": "0"}, "the row of image 'a' must be a whole number from 0, got 0"),
        ({"a": -1}, "the row of image 'a' must be a whole number from 0, got -1"),
        ({"a/b": 1}, "'a/b' is no image id"),
        ({(1, 2): 1}, "the pickle has a key of type tuple; keys are text or numbers"),
        ({1.5: 1}, "the image id must be text or a whole number, got float"),
        ({"a": 2**80}, "the pickle has a whole number of 11 bytes"),
    ],
)
def test_an_index_that_is_none_is_named(tmp_path, index, message):
    path = write_hdf5(tmp_path, index=index)
    place = path.with_name("train36_imgid2idx.pkl")
    assert read_error(read_vqa_hdf5(path)).startswith(f"'{place}': {message}")


def test_hdf5_without_h5py_names_the_extra(tmp_path, monkeypatch):
    path = write_hdf5(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r'pip install "hf_grounding\[formats\]"'):
        read_vqa_hdf5(path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"size": (0, 40)}, "`height` must be a whole number of pixels"),
        ({"size": 30}, "`size` must be (height, width)"),
        ({"queries": "a dog"}, "`queries` must be a list of texts"),
        ({"annotations": [1]}, "`annotations` must be a list of dictionaries"),
        ({"annotations": [{"query": None}]}, "annotation 0 has no text `query`"),
        ({"annotations": [{"query": "a", "bbox": [[1, 2, 0, 4]]}]}, "annotation 0: `bbox` must be a list of finite"),
        ({"annotations": [{"query": "a", "bbox": [[1, 2, 3]]}]}, "annotation 0: `bbox` must be a list of finite"),
    ],
)
def test_broken_annotations_are_named_and_the_next_still_read(tmp_path, change, message):
    photos = dict.fromkeys(["1", "2"], jpeg())
    folder = write_lmdb(tmp_path, photos, {1: annotation(**change), 2: annotation()})
    errors = []
    found = list(read_grounding_lmdb(folder, annotations=folder / "annotations.pkl", on_error=errors))
    assert [item.image_id for item in found] == ["2"]
    assert str(errors[0]).startswith(f"'{folder / 'annotations.pkl'}', image '1': {message}")


def test_annotations_that_hold_themselves_are_refused(tmp_path):
    endless = annotation()
    endless["more"] = endless
    folder = write_lmdb(tmp_path, {"1": jpeg()}, {"1": endless})
    wide = annotation(more=[[]] * 10)
    for _ in range(7):
        wide["more"] = [wide["more"]] * 10
    (folder / "wide.pkl").write_bytes(pickle.dumps({"1": wide}))
    assert "nested more than 10 deep" in read_error(read_grounding_lmdb(folder, annotations=folder / "annotations.pkl"))
    assert "holds more than 1000000 values" in read_error(read_grounding_lmdb(folder, annotations=folder / "wide.pkl"))


def test_broken_and_missing_photos_are_named(tmp_path):
    png = io.BytesIO()
    Image.new("RGB", (4, 4)).save(png, "PNG")
    photos = {"1": jpeg()[:-700], "2": png.getvalue(), "3": jpeg(), "a/b": jpeg()}
    folder = write_lmdb(tmp_path, photos, dict.fromkeys(["1", "2", "3", "4"], annotation()))
    errors = []
    assert [item.image_id for item in read_grounding_lmdb(folder, on_error=errors)] == ["3"]
    assert [error.image_id for error in errors] == ["1", "2", None]
    assert "the photo cannot be read (image file is truncated" in str(errors[0])
    assert "'a/b' is no image id" in str(errors[2])
    errors.clear()
    list(read_grounding_lmdb(folder, annotations=folder / "annotations.pkl", on_error=errors))
    assert "image '4': there is no such photo, but" in str(errors[-1])


def test_a_photo_that_claims_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    photo = bytearray(jpeg())
    start = photo.index(b"\xff\xc0") + 5
    photo[start : start + 4] = (12_000).to_bytes(2, "big") * 2
    folder = write_lmdb(tmp_path, {"1": bytes(photo)})
    assert "claims 12000 x 12000 pixels, over the limit" in read_error(read_grounding_lmdb(folder))


def test_an_lmdb_cut_short_gives_what_is_left_where_the_library_would_crash(tmp_path):
    photos = {f"{number:02}": jpeg((90, 90)) for number in range(50)}
    folder = write_lmdb(tmp_path, photos)
    file = folder / "data.mdb"
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.rindex(photos["40"][:200])])
    assert "the LMDB file is cut short: it points to byte" in read_error(read_grounding_lmdb(folder))
    errors = []
    found = [item.image_id for item in read_grounding_lmdb(folder, on_error=errors)]
    assert 0 < len(found) < 50
    assert sorted([*found, *(error.image_id for error in errors)]) == list(photos)
    file.write_bytes(whole[:9000])
    assert read_error(read_grounding_lmdb(folder)).startswith(f"'{file}': the LMDB file is cut short")
    file.write_bytes(bytes(10_000))
    assert "the file is no LMDB file: it has no meta page" in read_error(read_grounding_lmdb(folder))


def test_an_lmdb_whose_pages_run_in_a_circle_is_refused(tmp_path):
    folder = write_lmdb(tmp_path, {f"{number:04}": jpeg((2, 2)) for number in range(300)})
    file = folder / "data.mdb"
    whole = bytearray(file.read_bytes())
    pages = [number for number in range(2, len(whole) // 4096) if whole[number * 4096 + 10] == 1]  # branch pages
    for page in pages:
        start = page * 4096
        node = int.from_bytes(whole[start + 16 : start + 18], "little")  # where its first entry is
        whole[start + node : start + node + 6] = page.to_bytes(6, "little")
    file.write_bytes(whole)
    assert f"'{file}': the LMDB file comes to page {pages[-1]} twice" in read_error(read_grounding_lmdb(folder))
