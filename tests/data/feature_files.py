"""Feature files of every format, written for the tests of their readers."""

import base64
import io
import pickle

import numpy as np
import pytest
from PIL import Image

from hf_grounding.data.feature_readers import (
    FeatureFileError,
)

SIZE = (300, 400)  # height, width
DIM = 6
IDS = ["11", "22", "33"]


def make_image(seed, count=3, classes=5):
    """Boxes, features and class probabilities of one image."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 140, (count, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corners[:, 0], corners[:, 0] + corners[:, 1] + 1], axis=1)
    features = rng.standard_normal((count, DIM)).astype(np.float32)
    probs = rng.dirichlet(np.ones(classes), count).astype(np.float32)
    return boxes, features, probs


IMAGES = {image_id: make_image(seed, count=2 + seed) for seed, image_id in enumerate(IDS)}


def tsv_row(image_id, boxes, features, /, **changes):
    fields = {
        "image_id": image_id,
        "image_w": SIZE[1],
        "image_h": SIZE[0],
        "num_boxes": len(boxes),
        "boxes": base64.b64encode(boxes.tobytes()).decode(),
        "features": base64.b64encode(features.tobytes()).decode(),
    }
    return "\t".join(str(value) for value in (fields | changes).values())


TSV_ROWS = [tsv_row(image_id, boxes, features) for image_id, (boxes, features, _) in IMAGES.items()]


def write_tsv(path, rows=TSV_ROWS):
    path.write_text("\n".join(rows) + "\n")
    return path


def write_cocobu(folder, key="feat"):
    for name in ("x_att", "x_box", "x_fc"):
        (folder / name).mkdir(parents=True)
    for image_id, (boxes, features, _) in IMAGES.items():
        np.savez_compressed(folder / "x_att" / f"{image_id}.npz", **{key: features})
        np.save(folder / "x_box" / f"{image_id}.npy", boxes)
    return folder


def write_npz_folder(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    for image_id, (boxes, features, probs) in IMAGES.items():
        arrays = {"features": features, "boxes": boxes, "cls_prob": probs, "image_w": SIZE[1], "image_h": SIZE[0]}
        arrays = {name: value for name, value in (arrays | changes).items() if value is not None}
        np.savez_compressed(folder / f"{image_id}.npz", **arrays)
    return folder


def regions_arrays():
    boxes, features, probs = (np.concatenate(arrays) for arrays in zip(*IMAGES.values(), strict=True))
    return {
        "image_ids": np.array([11, 22, 33]),
        "offsets": np.cumsum([0] + [len(image[0]) for image in IMAGES.values()]),
        "boxes": boxes,
        "class_probs": probs.astype(np.float16),
        "region_features_q": np.rint(features * 20).astype(np.int8),
        "feature_scale": np.full(DIM, 0.05, np.float32),
        "image_size": np.array([SIZE[::-1]] * 3, np.int32),
    }


def write_regions_npz(path, **changes):
    arrays = {name: value for name, value in (regions_arrays() | changes).items() if value is not None}
    np.savez_compressed(path, **arrays)
    return path


def spatial_of(boxes):
    x1, y1, x2, y2 = (boxes / np.array([SIZE[1], SIZE[0]] * 2, np.float32)).T
    return np.stack([x1, y1, x2, y2, x2 - x1, y2 - y1], axis=1).astype(np.float32)


def write_hdf5(folder, adaptive=True, index=None, protocol=2, **changes):
    h5py = pytest.importorskip("h5py")
    folder.mkdir(parents=True, exist_ok=True)
    images = IMAGES if adaptive else {image_id: make_image(seed, 4) for seed, image_id in enumerate(IDS)}
    join = np.concatenate if adaptive else np.stack
    ends = np.cumsum([0] + [len(image[0]) for image in images.values()])
    arrays = {
        "image_features": join([image[1] for image in images.values()]),
        "image_bb": join([image[0] for image in images.values()]),
        "spatial_features": join([spatial_of(image[0]) for image in images.values()]),
        "pos_boxes": np.stack([ends[:-1], ends[1:]], axis=1).astype(np.int32) if adaptive else None,
    }
    with h5py.File(folder / "train36.hdf5", "w") as file:
        for name, value in (arrays | changes).items():
            if value is not None:
                file.create_dataset(name, data=value)
    index = {11: 0, 22: 1, 33: 2} if index is None else index
    (folder / "train36_imgid2idx.pkl").write_bytes(pickle.dumps(index, protocol))
    return folder / "train36.hdf5"


def jpeg(size=(40, 30)):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def annotation(**changes):
    phrase = {"query": "a dog", "idx": [0, 1], "bbox": [[1, 2, 30, 20]], "bbox_norm": [[0.0, 0.1, 0.8, 0.7]]}
    phrase |= {"category": {"animals"}, "image_size": (30, 40, 3)}
    return {"size": (30, 40, 3), "queries": ["a dog"], "annotations": [phrase]} | changes


def write_lmdb(folder, photos, annotations=None):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(folder), map_size=2**24) as env, env.begin(write=True) as transaction:
        for key, value in photos.items():
            transaction.put(key.encode(), value)
    if annotations is not None:
        (folder / "annotations.pkl").write_bytes(pickle.dumps(annotations))
    return folder


def assert_same(found, images=IMAGES):
    found = list(found)
    assert [regions.image_id for regions in found] == list(images)
    for regions, (boxes, features, _) in zip(found, images.values(), strict=True):
        np.testing.assert_array_equal(regions.boxes, boxes)
        np.testing.assert_array_equal(regions.region_features, features)
        assert regions.boxes.dtype == regions.region_features.dtype == np.float32
        assert regions.image_size == SIZE
        assert regions.boxes.flags.writeable


def read_error(regions):
    with pytest.raises(FeatureFileError) as info:
        list(regions)
    return str(info.value)
