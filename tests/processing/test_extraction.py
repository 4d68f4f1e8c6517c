"""Detectors and the region extractor: chosen boxes, conventions, settings; YOLOX beside what it gave before."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    ConvNextImageProcessorPil,
    ResNetConfig,
    ResNetModel,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)

from hf_grounding.processing.detectors import Candidates, TransformersDetector, YoloxDetector, _grid
from hf_grounding.processing.extraction import RegionExtractor


class Given:
    """A detector that says what it is told."""

    name, labels, settings = "given", ["dog", "cat"], {}

    def __init__(self, boxes, probs):
        self.candidates = Candidates(np.array(boxes, dtype=np.float32), np.array(probs, dtype=np.float32))

    def __call__(self, photos):
        return [self.candidates] * len(photos)


BOXES = [[0, 0, 50, 50], [2, 0, 50, 50], [60, 60, 100, 80], [0, 0, 1, 80], [70, 10, 90, 30]]
PROBS = [[0.5, 0.1], [0.6, 0.2], [0.1, 0.9], [0.9, 0.9], [0.0005, 0.0]]
PHOTO = Image.new("RGB", (100, 80))


@pytest.fixture(scope="module")
def yolos() -> TransformersDetector:
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[32, 32],
        patch_size=8,
        num_detection_tokens=10,
        id2label={0: "dog", 1: "cat", 2: "car"},
    )
    return TransformersDetector(
        YolosForObjectDetection(config), YolosImageProcessorPil(size={"height": 32, "width": 32})
    )


def test_weak_small_and_overlapping_candidates_go_and_the_best_come_first():
    (regions,) = RegionExtractor(Given(BOXES, PROBS))([PHOTO], ["7"])
    assert regions.boxes.tolist() == [BOXES[2], BOXES[1]]
    assert regions.labels.tolist() == [1, 0]
    assert regions.scores.tolist() == pytest.approx([0.9, 0.6])
    assert (regions.image_id, regions.image_size, regions.detector) == ("7", (80, 100), "given")


def test_boxes_are_given_in_the_pixels_of_the_original():
    (regions,) = RegionExtractor(Given(BOXES, PROBS))([PHOTO], ["7"], [(160, 300)])
    assert regions.boxes.tolist() == [[180, 120, 300, 160], [6, 0, 150, 100]]
    assert regions.image_size == (160, 300)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"num_regions": 1}, 1),
        ({"nms_threshold": 1.0}, 3),
        ({"min_side": 0.0}, 3),
        ({"min_score": 0.7}, 1),
        ({"threshold": 0.7, "min_regions": 1}, 1),
        ({"threshold": 0.95, "min_regions": 2}, 2),
        ({"min_score": 0.0001}, 3),
    ],
)
def test_every_setting_of_the_choice_does_what_it_says(settings, count):
    (regions,) = RegionExtractor(Given(BOXES, PROBS), **settings)([PHOTO], ["7"])
    assert len(regions) == count


def test_a_photo_without_candidates_has_no_regions():
    (regions,) = RegionExtractor(Given([[0, 0, 5, 5]], [[0.0, 0.0]]))([PHOTO], ["7"])
    assert len(regions) == 0
    assert regions.class_probs.shape == (0, 2)


def test_settings_are_ready_for_json_and_tell_the_choice():
    settings = RegionExtractor(Given(BOXES, PROBS), num_regions=5).settings
    assert json.loads(json.dumps(settings)) == settings
    assert settings["choice"]["num_regions"] == 5
    assert settings["detector"]["labels"] == ["dog", "cat"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_regions": 0}, "`num_regions` must be 1 or more, got 0"),
        ({"nms_threshold": 2}, r"`nms_threshold` must be in \[0, 1\], got 2"),
        ({"threshold": -0.1}, r"`threshold` must be in \[0, 1\], got -0.1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RegionExtractor(Given(BOXES, PROBS), **settings)


def test_features_are_those_of_the_place_and_not_of_the_batch():
    torch.manual_seed(0)
    backbone = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))
    extractor = RegionExtractor(
        Given([[0, 0, 50, 80], [50, 0, 100, 80]], [[0.9, 0], [0.8, 0]]),
        backbone=backbone,
        image_processor=ConvNextImageProcessorPil(),
        shorter_side=96,
    )
    noise = Image.effect_noise((100, 80), 90).convert("RGB")
    halves = Image.new("RGB", (100, 80))
    halves.paste(noise.crop((50, 0, 100, 80)), (0, 0))
    first, second = extractor([noise, halves], ["a", "b"])
    assert first.region_features.shape[0] == 2
    assert np.abs(first.region_features[0] - first.region_features[1]).max() > 1e-4
    (alone,) = extractor([noise], ["a"])
    np.testing.assert_array_equal(alone.region_features, first.region_features)
    assert np.abs(second.region_features - first.region_features).max() > 1e-4


def test_a_detector_of_transformers_gives_boxes_inside_the_photo_and_probabilities_without_background(yolos):
    photos = [PHOTO, Image.effect_noise((40, 90), 90).convert("RGB")]
    both = yolos(photos)
    for photo, candidates in zip(photos, both, strict=True):
        assert candidates.boxes.shape == (10, 4)
        assert candidates.class_probs.shape == (10, 3)
        assert (candidates.boxes >= 0).all()
        assert (candidates.boxes <= [photo.width, photo.height] * 2).all()
        assert (candidates.class_probs.sum(axis=1) < 1).all()  # the rest is background
    with torch.no_grad():
        inputs = yolos.image_processor(photos, return_tensors="pt")
        outputs = yolos.model(**inputs)
    x, y, width, height = outputs.pred_boxes[1, 3].tolist()
    expected = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2]).clip(0, 1) * [40, 90, 40, 90]
    np.testing.assert_allclose(both[1].boxes[3], expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(both[1].class_probs[3], outputs.logits[1, 3].softmax(-1)[:3].numpy(), rtol=1e-5)


def test_the_activation_may_be_given_and_a_saved_detector_is_loaded(yolos, tmp_path):
    yolos.model.save_pretrained(tmp_path)
    yolos.image_processor.save_pretrained(tmp_path)
    loaded = TransformersDetector.from_pretrained(tmp_path, activation="sigmoid")
    assert loaded.labels == ["dog", "cat", "car"]
    assert loaded([PHOTO])[0].class_probs.shape == (10, 4)  # no column is background
    np.testing.assert_allclose(loaded([PHOTO])[0].boxes, yolos([PHOTO])[0].boxes, rtol=1e-5, atol=1e-4)


def test_cells_of_the_grid_go_row_by_row_and_level_by_level():
    cells, strides = _grid(32, (8, 16))
    assert cells[:5].tolist() == [[0, 0], [1, 0], [2, 0], [3, 0], [0, 1]]
    assert cells[16:].tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    assert strides[:, 0].tolist() == [8] * 16 + [16] * 4


def test_files_that_are_no_yolox_are_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(FileNotFoundError, match=r"must hold one \.onnx file and labels\.txt"):
        YoloxDetector.from_pretrained(tmp_path)
    (tmp_path / "labels.txt").write_text("dog\n")
    (tmp_path / "net.onnx").write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"net\.onnx' cannot be loaded as an ONNX network"):
        YoloxDetector.from_pretrained(tmp_path)


def test_the_labels_of_a_yolox_must_be_as_many_as_its_classes(data_dir):
    pytest.importorskip("onnxruntime")
    path = data_dir / "weights" / "yolox_nano_coco" / "yolox_nano.onnx"
    with pytest.raises(ValueError, match=r"where a YOLOX of 2 classes and input 416 gives \(batch, 3549, 7\)"):
        YoloxDetector(path, ["dog", "cat"])
