"""Damaged feature files: whatever bytes were changed, a reader gives valid regions or its own error, and soon.

`HF_GROUNDING_FUZZ_EXAMPLES=5000 pytest tests/data/test_feature_readers_fuzz.py` tries more.
"""

import base64
import contextlib
import gzip
import io
import os
import pickle
import time
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_grounding.data.feature_readers import FeatureFileError, read_features, read_grounding_lmdb
from hf_grounding.data.feature_readers.common import Fault
from hf_grounding.data.feature_readers.plain_pickle import loads_plain_pickle

EXAMPLES = int(os.environ.get("HF_GROUNDING_FUZZ_EXAMPLES", "120"))
SECONDS = 10  # a damaged file takes milliseconds
MEGABYTES = 700  # above what the process has; the limit of one array is 64
SIZE = (30, 40)
pytestmark = [
    pytest.mark.filterwarnings("error::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Reading `.npy` or `.npz` file required additional header parsing"),
]


def images():
    """(image id, boxes, features, class probabilities) of three small images."""
    rng = np.random.default_rng(0)
    for number in range(3):
        corners = rng.uniform(1, 14, (2 + number, 2, 2)).astype(np.float32)
        boxes = np.concatenate([corners[:, 0], corners.sum(axis=1)], axis=1)
        features = rng.standard_normal((2 + number, 5)).astype(np.float32)
        yield 10 + number, boxes, features, rng.dirichlet(np.ones(4), 2 + number).astype(np.float32)


def write_tsv(folder):
    rows = []
    for image_id, boxes, features, _ in images():
        arrays = [base64.b64encode(array.tobytes()).decode() for array in (boxes, features)]
        rows.append("\t".join([str(image_id), "40", "30", str(len(boxes)), *arrays]))
    (folder / "x.tsv").write_text("\n".join(rows))


def write_gzip(folder):
    write_tsv(folder)
    (folder / "x.tsv").write_bytes(gzip.compress((folder / "x.tsv").read_bytes()))


def write_cocobu(folder):
    for name in ("x_att", "x_box"):
        (folder / name).mkdir()
    for image_id, boxes, features, _ in images():
        save = np.savez if image_id == 11 else np.savez_compressed
        save(folder / "x_att" / f"{image_id}.npz", feat=features)
        np.save(folder / "x_box" / f"{image_id}.npy", boxes)


def write_npz(folder):
    for image_id, boxes, features, probs in images():
        save = np.savez if image_id == 11 else np.savez_compressed
        save(folder / f"{image_id}.npz", feat=features, boxes=boxes, cls_prob=probs, image_w=40, image_h=30)


def write_regions_npz(folder, save=np.savez_compressed):
    ids, boxes, features, probs = zip(*images(), strict=True)
    save(
        folder / "x.npz",
        image_ids=np.array(ids),
        offsets=np.cumsum([0, *map(len, boxes)]),
        boxes=np.concatenate(boxes),
        class_probs=np.concatenate(probs).astype(np.float16),
        region_features_q=np.rint(np.concatenate(features) * 20).astype(np.int8),
        feature_scale=np.full(5, 0.05, np.float32),
        image_size=np.array([SIZE[::-1]] * 3, np.int32),
    )


def write_hdf5(folder, adaptive=True, **storage):
    h5py = pytest.importorskip("h5py")
    ids, boxes, features, _ = zip(*images(), strict=True)
    if adaptive:
        ends = np.cumsum([0, *map(len, boxes)])
        spans = np.stack([ends[:-1], ends[1:]], axis=1).astype(np.int32)
        boxes, features = np.concatenate(boxes), np.concatenate(features)
    else:
        boxes, features = (np.stack([array[:2] for array in arrays]) for arrays in (boxes, features))
    parts = boxes / np.array([40, 30, 40, 30], np.float32)
    spatial = np.concatenate([parts, parts[..., 2:] - parts[..., :2]], axis=-1).astype(np.float32)
    with h5py.File(folder / "x.hdf5", "w") as file:
        for name, data in {"image_features": features, "image_bb": boxes, "spatial_features": spatial}.items():
            file.create_dataset(name, data=data, **storage)
        if adaptive:
            file.create_dataset("pos_boxes", data=spans)
    protocol = 2 if adaptive else 0
    (folder / "x_imgid2idx.pkl").write_bytes(pickle.dumps({key: row for row, key in enumerate(ids)}, protocol))


def write_lmdb(folder):
    lmdb = pytest.importorskip("lmdb")
    photos = {}
    for number, side in enumerate((2, 90, 4)):
        stream = io.BytesIO()
        noise = np.random.default_rng(number).integers(0, 255, (side, side, 3), np.uint8)
        Image.fromarray(noise).save(stream, "JPEG")
        photos[str(number)] = stream.getvalue()
    with lmdb.open(str(folder), map_size=2**20) as env, env.begin(write=True) as transaction:
        for key, photo in photos.items():
            transaction.put(key.encode(), photo)
    os.remove(folder / "lock.mdb")
    phrase = {"query": "a dog", "idx": [0, 1], "bbox": [[1, 2, 30, 20]], "category": {"animals"}}
    annotation = {"size": (90, 90, 3), "queries": ["a dog"], "annotations": [phrase]}
    (folder / "x.pkl").write_bytes(pickle.dumps(dict.fromkeys(photos, annotation), 2))


def reader(name, file, **options):
    return lambda folder, on_error: read_features(folder / file, name, on_error=on_error, **options)


# format -> writes a whole file, reads it
FORMATS = {
    "tsv": (write_tsv, reader("bottom-up-tsv", "x.tsv")),
    "tsv.gz": (write_gzip, reader("bottom-up-tsv", "x.tsv")),
    "cocobu": (write_cocobu, reader("cocobu", ".", image_sizes="boxes")),
    "npz": (write_npz, reader("npz", ".")),
    "regions-npz": (write_regions_npz, reader("regions-npz", "x.npz")),
    "regions-npz stored": (lambda folder: write_regions_npz(folder, np.savez), reader("regions-npz", "x.npz")),
    "hdf5 adaptive": (write_hdf5, reader("vqa-hdf5", "x.hdf5")),
    "hdf5 fixed": (lambda folder: write_hdf5(folder, adaptive=False), reader("vqa-hdf5", "x.hdf5")),
    "hdf5 chunked": (
        lambda folder: write_hdf5(folder, chunks=True, compression="gzip", shuffle=True, fletcher32=True),
        reader("vqa-hdf5", "x.hdf5"),
    ),
    "lmdb": (
        write_lmdb,
        lambda folder, on_error: read_grounding_lmdb(folder, annotations=folder / "x.pkl", on_error=on_error),
    ),
}

CHANGES = st.lists(
    st.tuples(
        st.integers(0, 2**20),  # which file
        st.sampled_from(["flip", "write", "insert", "delete", "cut", "repeat"]),
        st.integers(0, 2**30),  # where
        st.one_of(
            st.binary(min_size=1, max_size=8),
            st.sampled_from([b"\xff" * 4, b"\xff" * 8, b"\x7f", b"\0" * 8, b"\0\0\0\x10", b"1000000000", b"\t", b"\n"]),
        ),
    ),
    min_size=1,
    max_size=4,
)


def damaged(data, kind, place, value):
    """The bytes after one accident; `place` counts round and round."""
    place %= max(1, len(data))
    if kind == "flip":
        return data[:place] + bytes([data[place] ^ (1 << value[0] % 8)]) + data[place + 1 :] if data else data
    if kind == "write":
        return data[:place] + value + data[place + len(value) :]
    if kind == "insert":
        return data[:place] + value + data[place:]
    if kind == "delete":
        return data[:place] + data[place + len(value) :]
    if kind == "cut":
        return data[:place]
    return data[:place] + data[place : place + 64] * 2 + data[place + 64 :]


def damaged_inside(data, which, *change):
    """The bytes of a zip file with an accident in one of its members and right checksums, else of any other file."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = {name: file.read(name) for name in file.namelist()}
        name = sorted(members)[which % len(members)]
    except Exception:  # an accident before this one left no zip file
        return damaged(data, *change)
    members[name] = damaged(members[name], *change)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return stream.getvalue()


@contextlib.contextmanager
def memory_limit(megabytes=MEGABYTES):
    """Makes greater allocations fail, where the system can."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def assert_valid(item):
    if isinstance(item, tuple):
        assert item.image.getbbox(alpha_only=False) is None or item.image.size > (0, 0)
        assert isinstance(item.annotation["queries"], list)
        return
    boxes, count = item.boxes, len(item)
    assert item.image_id
    assert item.image_id.isprintable()
    assert not set("/\\") & set(item.image_id)
    assert all(type(side) is int and side > 0 for side in item.image_size)
    assert boxes.shape == (count, 4)
    assert np.isfinite(boxes).all()
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    for values in (item.region_features, item.class_probs):
        assert values is None or (values.shape[0] == count and np.isfinite(values).all())
    if item.class_probs is not None:
        assert ((item.class_probs >= 0) & (item.class_probs <= 1)).all()


def check_reading(read, folder, on_error):
    """Reads all there is; returns how many images and the errors."""
    start, errors, found = time.monotonic(), [], 0
    with memory_limit():
        try:
            for item in read(folder, errors if on_error else None):
                assert_valid(item)
                found += 1
        except FeatureFileError as error:
            errors.append(error)
    for error in errors:
        text = str(error)
        assert str(folder) in text
        assert not any(word in text for word in ("MemoryError", "Unable to allocate", "Cannot allocate")), text
    assert time.monotonic() - start < SECONDS
    return found, errors


class Original:
    """A whole file of one format, its parts kept as bytes."""

    def __init__(self, name, folder):
        self.folder, (write, self.read) = folder, FORMATS[name]
        folder.mkdir()
        write(folder)
        self.parts = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    def check(self, changes, on_error):
        parts = dict(self.parts)
        for which, kind, place, value in changes:
            path = list(parts)[which % len(parts)]
            if path.suffix == ".npz" and which // 64 % 2:
                parts[path] = damaged_inside(parts[path], which // 128, kind, place, value)
            else:
                parts[path] = damaged(parts[path], kind, place, value)
        touched = [path for path in parts if parts[path] != self.parts[path]]
        try:
            for path in touched:
                path.write_bytes(parts[path])
            return check_reading(self.read, self.folder, on_error)
        finally:
            for path in touched:
                path.write_bytes(self.parts[path])


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_give_valid_regions_or_our_own_error(name, tmp_path_factory):
    original = Original(name, tmp_path_factory.mktemp("fuzz") / "x")
    assert check_reading(original.read, original.folder, False) == (3, [])

    @settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(changes=CHANGES, on_error=st.booleans())
    def run(changes, on_error):
        original.check(changes, on_error)

    run()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(-(2**63), 2**63), inner)
        | st.frozensets(st.text())
        | st.sets(st.integers(0, 9))
    ),
    max_leaves=20,
)


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
@given(value=VALUES, protocol=st.integers(0, 5))
def test_plain_pickles_are_read_as_pickle_reads_them(value, protocol):
    assert loads_plain_pickle(pickle.dumps(value, protocol)) == value


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
@given(changes=CHANGES, protocol=st.integers(0, 5))
def test_damaged_pickles_give_plain_data_or_our_own_error(changes, protocol):
    value = {"a": [1, 2**40, np.arange(6).reshape(2, 3), {"x"}], 5: (np.float32(2), b"z", 1.5), "b": {"c": None}}
    data = pickle.dumps(value, protocol)
    for _, kind, place, new in changes:
        data = damaged(data, kind, place, new)
    with memory_limit(), contextlib.suppress(Fault):
        loads_plain_pickle(data)


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
@given(data=st.binary(max_size=300))
def test_bytes_of_no_format_give_our_own_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("noise")
    for name in ("x.tsv", "x.npz", "x.hdf5", "data.mdb", "x.pkl", "x_imgid2idx.pkl"):
        (folder / name).write_bytes(data)
    for name in ("tsv", "npz", "regions-npz", "lmdb"):
        assert check_reading(FORMATS[name][1], folder, False)[0] == 0


def test_arrays_whose_headers_lie_are_refused_before_anything_is_made(tmp_path):
    for shape in ("(10**9, 4)", "(1000000000, 4)", "(9223372036854775807,)", "(-1, 4)", "(True, 4)", "(2.0, 4)", "()"):
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
        with zipfile.ZipFile(tmp_path / "1.npz", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("feat.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))
        found, errors = check_reading(FORMATS["npz"][1], tmp_path, False)
        assert (found, len(errors)) == (0, 1)
