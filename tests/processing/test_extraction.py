"""Detectors and the region extractor: chosen boxes, conventions, settings; YOLOX beside what it gave before."""

import json
import logging
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    ConvNextImageProcessorPil,
    DetrConfig,
    DetrForObjectDetection,
    DFineConfig,
    DFineForObjectDetection,
    HGNetV2Config,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    ViTConfig,
    ViTModel,
    YolosImageProcessorPil,
)

from hf_grounding.processing.detectors import (
    Candidates,
    TransformersDetector,
    YoloxDetector,
    _grid,
    _hash_onnx,
    hash_weights,
)
from hf_grounding.processing.extraction import GridExtractor, RegionExtractor, load_extractor, load_vision_model
from hf_grounding.processing.photos import load_photo
from hf_grounding.processing.regions import select_regions
from tests.common import tiny_detector


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
    return tiny_detector()


def tiny_backbone() -> ResNetModel:
    """Of stride 8."""
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return ResNetModel(config).eval()


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


def test_per_class_a_box_goes_only_for_a_better_one_of_its_own_class_and_the_number_is_exact():
    boxes = [[0, 0, 50, 50], [1, 0, 50, 50], [2, 0, 50, 50], [60, 60, 100, 80]]
    probs = [[0.6, 0.0], [0.5, 0.3], [0.4, 0.2], [0.0, 0.1]]
    extractor = RegionExtractor(Given(boxes, probs), selection="per_class", num_regions=3)
    (regions,) = extractor([PHOTO], ["7"])
    # The second is the best cat there, though it is more of a dog; the third is neither's best, so of confidence 0.
    assert regions.boxes.tolist() == [boxes[0], boxes[1], boxes[3]]
    assert regions.labels.tolist() == [0, 1, 1]
    assert regions.scores.tolist() == pytest.approx([0.6, 0.3, 0.1])
    (all_four,) = RegionExtractor(Given(boxes, probs), selection="per_class", num_regions=4)([PHOTO], ["7"])
    assert all_four.boxes[3].tolist() == boxes[2]
    assert all_four.scores[3] == 0


@pytest.mark.parametrize(
    "rule", [{"num_regions": 20}, {"threshold": 0.9, "min_regions": 4, "num_regions": 30}, {"nms_threshold": 0.7}]
)
def test_per_class_is_the_rule_of_the_bottom_up_features(rule):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (60, 2))
    boxes, probs = np.concatenate([corners, corners + rng.uniform(5, 20, (60, 2))], axis=1), rng.random((60, 4)) ** 2
    given = Given(boxes, probs)
    (regions,) = RegionExtractor(given, selection="per_class", **rule)([PHOTO], ["7"])
    number = rule.get("num_regions", 36)
    adaptive = {"threshold": rule.get("threshold"), "min_regions": rule.get("min_regions"), "max_regions": number}
    rows, scores, labels = select_regions(
        given.candidates.boxes,
        given.candidates.class_probs,
        background=None,
        iou_threshold=rule.get("nms_threshold", 0.3),
        **(adaptive if "threshold" in rule else {"num_regions": number}),
    )
    np.testing.assert_array_equal(regions.boxes, given.candidates.boxes[rows])
    np.testing.assert_allclose(regions.scores, scores, rtol=1e-6)
    np.testing.assert_array_equal(regions.labels, labels)
    assert len(regions) == number if "threshold" not in rule else 4 <= len(regions) < 30


def test_per_class_the_most_confident_of_many_candidates_compete():
    rng = np.random.default_rng(0)
    corners = np.stack(np.meshgrid(np.arange(40), np.arange(20)), axis=-1).reshape(-1, 2) * 2.0
    boxes, probs = np.concatenate([corners, corners + 2], axis=1), rng.random((800, 1))
    (regions,) = RegionExtractor(Given(boxes, probs), selection="per_class", num_regions=400)([PHOTO], ["7"])
    np.testing.assert_allclose(regions.scores, np.sort(probs[:, 0])[::-1][:400], rtol=1e-6)


def test_a_photo_without_candidates_has_no_regions():
    (regions,) = RegionExtractor(Given([[0, 0, 5, 5]], [[0.0, 0.0]]))([PHOTO], ["7"])
    assert len(regions) == 0
    assert regions.class_probs.shape == (0, 2)


def test_settings_are_ready_for_json_and_tell_the_choice():
    extractor = RegionExtractor(
        Given(BOXES, PROBS), num_regions=5, backbone=tiny_backbone(), image_processor=ConvNextImageProcessorPil()
    )
    settings = extractor.settings
    assert json.loads(json.dumps(settings)) == settings
    assert settings["backbone"]["processor"]["image_mean"] == [0.5, 0.5, 0.5]
    assert settings["choice"]["num_regions"] == 5
    assert settings["detector"]["labels"] == ["dog", "cat"]
    changed = [{"selection": "per_class"}, {"nms_threshold": 0.5}, {"detector_features": True}, {"num_regions": 6}]
    seen = [RegionExtractor(Given(BOXES, PROBS), **{"num_regions": 5} | change).settings for change in changed]
    assert all(seen.count(each) == 1 for each in seen)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_regions": 0}, "`num_regions` must be 1 or more, got 0"),
        ({"nms_threshold": 2}, r"`nms_threshold` must be in \[0, 1\], got 2"),
        ({"threshold": -0.1}, r"`threshold` must be in \[0, 1\], got -0.1"),
        ({"selection": "best"}, r"`selection` must be one of \['class_agnostic', 'per_class'\], got 'best'"),
        ({"detector_features": True, "backbone": tiny_backbone()}, "from the `backbone` or from the detector"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RegionExtractor(Given(BOXES, PROBS), **settings)


def test_features_are_those_of_the_place_and_not_of_the_batch():
    extractor = RegionExtractor(
        Given([[0, 0, 50, 80], [50, 0, 100, 80]], [[0.9, 0], [0.8, 0]]),
        backbone=tiny_backbone(),
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


def test_an_elongated_photo_becomes_smaller_and_not_huge():
    backbone, sizes = tiny_backbone(), []
    backbone.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[2:])))
    found = Given([[0, 0, 300, 4]], [[0.9, 0]])
    extractor = RegionExtractor(found, backbone=backbone, image_processor=ConvNextImageProcessorPil(), shorter_side=96)
    (regions,) = extractor([Image.new("RGB", (600, 4))], ["a"])
    assert sizes == [(32, 576)]  # six times the shorter side, and multiples of 32
    assert np.isfinite(regions.region_features).all()


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
    tiny_detector(tmp_path)
    loaded = TransformersDetector.from_pretrained(tmp_path, activation="sigmoid")
    assert loaded.labels == ["dog", "cat", "car"]
    assert loaded([PHOTO])[0].class_probs.shape == (10, 4)  # no column is background
    np.testing.assert_allclose(loaded([PHOTO])[0].boxes, yolos([PHOTO])[0].boxes, rtol=1e-5, atol=1e-4)


SIZES = {"d_model": 16, "num_queries": 10, "num_labels": 3, "decoder_layers": 2}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
STAGES = {"embedding_size": 8, "hidden_sizes": [8] * 4, "depths": [1] * 4}
HYBRID = {
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [8] * 3,
    "decoder_in_channels": [16] * 3,
    **SIZES,
    **HEADS,
}


def tiny_detr(family: str) -> PreTrainedModel:
    """Released families by their configuration, with random weights."""
    torch.manual_seed(0)
    three = {"out_features": ["stage2", "stage3", "stage4"]}
    if family == "rt_detr_v2":
        backbone: Any = RTDetrResNetConfig(layer_type="basic", **STAGES, **three)
        return RTDetrV2ForObjectDetection(RTDetrV2Config(backbone_config=backbone, **HYBRID)).eval()
    if family == "d_fine":
        names = ("in_channels", "mid_channels", "out_channels", "num_blocks", "numb_of_layers", "kernel_size")
        stages = {f"stage_{name}": [size] * 4 for name, size in zip(names, (8, 8, 8, 1, 1, 3), strict=True)}
        stages |= {"stage_downsample": [False, True, True, True], "stage_light_block": [False] * 4}
        backbone = HGNetV2Config(stem_channels=[3, 8, 8], **STAGES, **stages, **three)
        return DFineForObjectDetection(DFineConfig(backbone_config=backbone, **HYBRID)).eval()
    backbone = ResNetConfig(layer_type="basic", out_features=["stage4"], **STAGES)
    no_timm = {"backbone": None, "use_timm_backbone": False, "use_pretrained_backbone": False}
    return DetrForObjectDetection(DetrConfig(backbone_config=backbone, **no_timm, **SIZES, **HEADS)).eval()


NOISE = [Image.effect_noise(size, 90).convert("RGB") for size in ((100, 80), (40, 90), (100, 80))]


@pytest.mark.parametrize(("family", "layers_at"), [("rt_detr_v2", 1), ("d_fine", 0), ("detr", None)])
def test_features_of_a_detector_are_the_last_states_of_its_queries(family, layers_at):
    model = tiny_detr(family)
    processor = ConvNextImageProcessorPil(size={"shortest_edge": 384})  # from 384 on it makes a square
    detector = TransformersDetector(model, processor)
    (first, second) = RegionExtractor(detector, detector_features=True, selection="per_class")(NOISE[:2], ["a", "b"])
    assert first.region_features.shape == (10, 16)
    with torch.no_grad():
        outputs = model(processor(NOISE[:2], return_tensors="pt")["pixel_values"])
    states = outputs.last_hidden_state
    if layers_at is not None:  # where the layers of the intermediate states stand differs
        assert torch.equal(outputs.intermediate_hidden_states.select(layers_at, 1), states)
    for regions, own, probs in zip((first, second), states, outputs.logits.sigmoid(), strict=True):
        for feature, class_probs in zip(regions.region_features, regions.class_probs, strict=True):
            row = int((own - torch.tensor(feature)).abs().sum(dim=1).argmin())
            np.testing.assert_allclose(feature, own[row], rtol=1e-3, atol=1e-4)
            if detector.activation == "sigmoid":  # the feature is of the very query that has the probabilities
                np.testing.assert_allclose(class_probs, probs[row], rtol=1e-3, atol=1e-3)


def test_features_of_a_yolos_are_those_of_its_detection_tokens(yolos):
    (candidates,) = yolos([PHOTO])
    logits = yolos.model.class_labels_classifier(torch.from_numpy(candidates.features))
    np.testing.assert_allclose(
        logits.softmax(-1)[:, :-1].detach().numpy(), candidates.class_probs, rtol=1e-4, atol=1e-6
    )


def test_a_detector_without_features_is_named():
    extractor = RegionExtractor(Given(BOXES, PROBS), detector_features=True)
    with pytest.raises(ValueError, match="Detector 'given' gives no features of its own"):
        extractor([PHOTO], ["7"])


def test_photos_of_other_sizes_beside_it_change_nothing_for_a_photo(yolos):
    keeps_aspect = YolosImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 200})
    for model in (yolos.model, tiny_detr("detr")):
        detector = TransformersDetector(model, keeps_aspect)
        for photo, candidates in zip(NOISE, detector(NOISE), strict=True):
            (alone,) = detector([photo])
            np.testing.assert_allclose(candidates.boxes, alone.boxes, rtol=1e-4, atol=1e-3)
            np.testing.assert_allclose(candidates.class_probs, alone.class_probs, rtol=1e-4, atol=1e-5)


def test_cells_of_a_grid_are_boxes_of_the_original_with_the_cells_of_the_last_map():
    backbone, processor = tiny_backbone(), ConvNextImageProcessorPil()
    extractor = GridExtractor(backbone, processor, grid=3, image_size=24)
    first, second = extractor(NOISE[:2], ["a", "b"], [(80, 100), (180, 60)])
    assert first.boxes.shape == second.boxes.shape == (9, 4)
    np.testing.assert_allclose(
        second.boxes[[0, 1, 3, 8]], [[0, 0, 20, 60], [20, 0, 40, 60], [0, 60, 20, 120], [40, 120, 60, 180]]
    )
    pixels = processor(NOISE[1].resize((24, 24), Image.Resampling.BICUBIC), do_resize=False, return_tensors="pt")
    with torch.no_grad():
        cells = backbone(**pixels).last_hidden_state
    assert cells.shape == (1, 16, 3, 3)
    for row, feature in enumerate(second.region_features):
        np.testing.assert_allclose(feature, cells[0, :, row // 3, row % 3], rtol=1e-4, atol=1e-5)
    assert second.class_probs is None
    assert second.image_size == (180, 60)
    assert json.loads(json.dumps(second.settings)) == extractor.settings
    assert extractor.settings["grid"] == 3


def test_a_finer_map_is_averaged_and_a_coarser_one_refused():
    backbone, processor = tiny_backbone(), ConvNextImageProcessorPil()
    (fine,) = GridExtractor(backbone, processor, grid=6, image_size=48)(NOISE[:1], ["a"])
    (coarse,) = GridExtractor(backbone, processor, grid=3, image_size=48)(NOISE[:1], ["a"])
    blocks = fine.region_features.reshape(3, 2, 3, 2, 16).mean(axis=(1, 3))
    np.testing.assert_allclose(coarse.region_features, blocks.reshape(9, 16), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"map has 2 x 2 cells, fewer than the grid's 3 x 3, for photos of 16 pixels"):
        GridExtractor(backbone, processor, grid=3, image_size=16)(NOISE[:1], ["a"])


def test_a_backbone_without_a_map_and_a_grid_without_cells_are_refused():
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    extractor = GridExtractor(ViTModel(config), ConvNextImageProcessorPil(), grid=2, image_size=32)
    with pytest.raises(ValueError, match=r"must give a map .*; ViTModel gives \(1, 5, 16\)"):
        extractor(NOISE[:1], ["a"])
    with pytest.raises(ValueError, match="`grid` must be 1 or more, got 0"):
        GridExtractor(tiny_backbone(), ConvNextImageProcessorPil(), grid=0)


def test_a_backbone_leaves_out_its_classifier_in_silence_and_tells_what_it_lacks(tmp_path, caplog, monkeypatch):
    logger, told = logging.getLogger("transformers"), []
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    monkeypatch.setattr("hf_grounding.processing.extraction.logger.warning", told.append)
    config = tiny_backbone().config
    whole = ResNetForImageClassification(config)
    whole.save_pretrained(tmp_path / "whole")
    loaded = load_vision_model(str(tmp_path / "whole"))
    assert hash_weights(loaded) == hash_weights(whole.resnet)
    assert (caplog.text, told) == ("", [])
    kept = {name: value for name, value in whole.state_dict().items() if "stages.0" not in name}
    whole.save_pretrained(tmp_path / "cut", state_dict=kept)
    load_vision_model(str(tmp_path / "cut"))
    assert len(told) == 1
    assert "weights of the network, which are random now: ['encoder.stages.0." in told[0]


def test_a_released_backbone_gives_seven_by_seven_cells_of_a_real_photo(data_dir):
    folder = data_dir / "weights" / "mobilenet_v2_1.0_224_imagenet"
    backbone = AutoModel.from_pretrained(folder).eval()
    shapes = []
    backbone.register_forward_hook(lambda module, inputs, outputs: shapes.append(outputs.last_hidden_state.shape))
    photo = load_photo(min((data_dir / "flickr8k_entities" / "images").glob("*.jpg")))
    (regions,) = GridExtractor(backbone, AutoImageProcessor.from_pretrained(folder))([photo], ["a"])
    assert shapes == [(1, 1280, 7, 7)]
    assert regions.region_features.shape == (49, 1280)
    np.testing.assert_allclose(regions.boxes[-1, 2:], photo.size)


def test_cells_of_the_grid_go_row_by_row_and_level_by_level():
    cells, strides = _grid(32, (8, 16))
    assert cells[:5].tolist() == [[0, 0], [1, 0], [2, 0], [3, 0], [0, 1]]
    assert cells[16:].tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    assert strides[:, 0].tolist() == [8] * 16 + [16] * 4


def test_weights_have_one_hash_whatever_way_they_came_and_others_another(yolos, tmp_path):
    tiny_detector(tmp_path)
    loaded = TransformersDetector.from_pretrained(tmp_path)
    assert loaded.settings["weights"] == yolos.settings["weights"] == hash_weights(yolos.model)
    seen = [yolos.settings["weights"], hash_weights(loaded.model.bfloat16())]
    backbone = tiny_backbone()  # its counts of batches are numbers without dimension
    for tensor in backbone.state_dict().values():
        seen.append(hash_weights(backbone))
        tensor.flatten()[:1] += 1
    assert len(set(seen)) == len(seen)


def test_an_onnx_network_is_known_by_its_file_and_the_weights_beside_it(tmp_path):
    hashes = []
    for name, content in (("net.onnx", b"a"), ("net.onnx", b"b"), ("net.onnx.data", b"a"), ("net.onnx_data", b"b")):
        (tmp_path / name).write_bytes(content)
        hashes.append(_hash_onnx(tmp_path / "net.onnx"))
    (tmp_path / "net.onnx.txt").write_bytes(b"notes")
    assert _hash_onnx(tmp_path / "net.onnx") == hashes[-1]
    assert len(set(hashes)) == 4


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either a `detector` or a `grid`, got detector=None and grid=None"),
        ({"detector": "d", "grid": 2, "backbone": "b"}, "either a `detector` or a `grid`, got detector='d' and grid=2"),
        ({"grid": 2}, "A `grid` needs a `backbone`"),
        ({"grid": 2, "backbone": "b", "imagesize": 64}, "GridExtractor has no setting `imagesize`.* `image_size`"),
        ({"grid": 2, "backbone": "b", "num_regions": 4}, "GridExtractor has no setting `num_regions`"),
        ({"detector": "./none"}, "The detector './none' cannot be loaded"),
        ({"grid": 2, "backbone": "./none"}, "The backbone './none' cannot be loaded"),
    ],
)
def test_what_cannot_make_an_extractor_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_extractor(**arguments)
