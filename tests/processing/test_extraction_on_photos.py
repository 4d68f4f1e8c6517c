"""Photo -> regions on real photos: the regions that were stored come out again, and YOLOX has its average precision."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoImageProcessor, AutoModel

from hf_grounding.processing.detectors import YoloxDetector
from hf_grounding.processing.extraction import RegionExtractor
from hf_grounding.processing.photos import load_photo
from hf_grounding.processing.regions import box_iou, nms, scale_boxes, xyxy_to_xywh

STORED_FROM = 5e-4  # the stored class probabilities are 0 below


@pytest.fixture(scope="module")
def yolox(data_dir) -> YoloxDetector:
    pytest.importorskip("onnxruntime")
    return YoloxDetector.from_pretrained(data_dir / "weights" / "yolox_nano_coco")


def test_photos_give_their_stored_boxes_and_class_probabilities(data_dir, yolox):
    with np.load(data_dir / "regions" / "flickr8k_val.npz", allow_pickle=False) as file:
        stored = {name: file[name] for name in ("image_ids", "offsets", "boxes", "class_probs", "image_size")}
    extractor = RegionExtractor(yolox)
    rows = range(0, len(stored["image_ids"]), 24)  # 41 photos over the whole split
    matched = count = 0
    for row in rows:
        own = slice(*stored["offsets"][row : row + 2])
        image_id, (width, height) = str(stored["image_ids"][row]), stored["image_size"][row]
        photo = load_photo(data_dir / "flickr8k_entities" / "images" / f"{image_id}.jpg")
        (regions,) = extractor([photo], [image_id], [(height, width)])
        iou = box_iou(stored["boxes"][own], regions.boxes)
        found = iou.max(axis=1) > 0.95
        matched += found.sum()
        count += len(found)
        probs = regions.class_probs[iou.argmax(axis=1)][found]
        np.testing.assert_allclose(
            np.where(probs < STORED_FROM, 0, probs), stored["class_probs"][own][found], atol=2 * STORED_FROM
        )
    assert count > 20 * len(rows)
    assert matched >= 0.99 * count


def test_photos_give_their_stored_features(data_dir, yolox):
    weights, samples = data_dir / "weights" / "mobilenet_v2_1.0_224_imagenet", data_dir / "regions" / "layout_samples"
    backbone, image_processor = AutoModel.from_pretrained(weights), AutoImageProcessor.from_pretrained(weights)
    extractor = RegionExtractor(yolox, backbone=backbone, image_processor=image_processor)
    with np.load(data_dir / "regions" / "flickr8k_val.npz") as stored:
        sizes = dict(zip(map(str, stored["image_ids"]), map(tuple, stored["image_size"][:, ::-1]), strict=True))
    for path in sorted((samples / "cocobu_att").glob("*.npz")):
        photo = load_photo(data_dir / "flickr8k_entities" / "images" / f"{path.stem}.jpg")
        boxes = np.load(samples / "cocobu_box" / path.with_suffix(".npy").name)
        with np.load(path) as file:
            expected = file["feat"]
        size = sizes[path.stem]
        (regions,) = extractor([photo], [path.stem], [size])
        iou = box_iou(boxes, regions.boxes)
        assert (iou.max(axis=1) > 0.95).all()
        difference = regions.region_features[iou.argmax(axis=1)] - expected
        assert np.linalg.norm(difference) < 1e-3 * np.linalg.norm(expected)


def test_yolox_has_its_mean_average_precision_on_coco(data_dir, yolox):
    # The README of the data says .50; here each box is of its best class alone, which gives .482.
    coco = pytest.importorskip("pycocotools.coco")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(data_dir / "coco" / "annotations" / "instances_val2017.json")
    assert len(truth.imgs) == 79
    assert _map50(truth, _coco_results(truth, yolox, data_dir / "coco" / "val2017")) == pytest.approx(0.5, abs=0.03)


def _coco_results(truth, detector, photos: Path) -> list[dict]:
    """Detections in the layout of COCO's result files, as detectors are scored: non-maximum suppression by class."""
    categories = {category["name"]: category["id"] for category in truth.dataset["categories"]}
    results = []
    for image in truth.dataset["images"]:
        photo = load_photo(photos / image["file_name"])
        (candidates,) = detector([photo])
        labels, scores = candidates.class_probs.argmax(axis=1), candidates.class_probs.max(axis=1)
        possible = np.flatnonzero(scores > 0.001)
        kept = possible[nms(candidates.boxes[possible], scores[possible], 0.65, labels[possible])]
        # The photos are small copies; annotations are in pixels of the originals.
        boxes = scale_boxes(candidates.boxes[kept], photo.size[::-1], (image["height"], image["width"]))
        results += [
            {
                "image_id": image["id"],
                "category_id": categories[detector.labels[label]],
                "bbox": box,
                "score": score,
            }
            for box, label, score in zip(xyxy_to_xywh(boxes).tolist(), labels[kept], scores[kept].tolist(), strict=True)
        ]
    return results


def _map50(truth, results: list[dict]) -> float:
    """Average precision at an IoU of .5, mean over the classes, by COCO's own evaluator, which prints as it goes."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[1])
