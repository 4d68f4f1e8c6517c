"""The simulated detector of scenes: its errors have the rates it says, all else is true of the pixels."""

import io
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from hf_grounding.data import GROUNDING_FEATURES, load_grounding_dataset
from hf_grounding.data.region_store import RegionStore, RegionStoreWriter
from hf_grounding.data.scene_drawing import COLORS, SHAPES, VOCABULARY
from hf_grounding.data.scene_regions import SCENE_CLASSES, SceneDetector, pool_pixels, scene_concepts
from hf_grounding.data.scenes import redraw_scene, scene_row
from hf_grounding.processing.regions import PER_REGION, box_iou
from tests.common import REPO, run_python

EXACT = SceneDetector(jitter=0, miss_rate=0, confusion=0, num_distractors=0)
EASY = ("color", "shape")


@pytest.fixture(scope="module")
def rows():
    return [scene_row(0, "train", index, 64) for index in range(400)]


@pytest.fixture(scope="module")
def scenes(rows):
    return [redraw_scene(row) for row in rows]


def in_order(regions):
    """Regions sorted by their boxes, to compare those of detectors that differ in their scores."""
    return regions.select(np.lexsort(regions.boxes.T))


def assert_equal(one, other):
    for name in PER_REGION:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_row_gives_the_scene_it_was_drawn_from_whether_its_image_is_decoded_or_not():
    row = scene_row(3, "val", 7, 96, EASY)
    scene = redraw_scene(row, EASY)
    decoded = Dataset.from_list([row], features=GROUNDING_FEATURES)[0]
    assert isinstance(decoded["image"], Image.Image)
    np.testing.assert_array_equal(np.asarray(decoded["image"]), scene.pixels)
    assert_equal(SceneDetector(attributes=EASY)(row), SceneDetector(attributes=EASY)(decoded))


def test_without_errors_all_objects_are_found_with_their_boxes_and_shapes(rows, scenes):
    unnamed = 0
    for row, scene in zip(rows, scenes, strict=True):
        regions = EXACT(row)
        found = {
            (*box, SCENE_CLASSES[label]) for box, label in zip(regions.boxes.tolist(), regions.labels, strict=True)
        }
        assert found == {(*item.box, item.shape) for item in scene.objects}
        assert len(regions) == len(scene.objects)
        named = {tuple(box) for phrase in row["phrases"] for box in phrase["boxes"]}
        assert named <= {item.box for item in scene.objects}
        unnamed += len(scene.objects) - len(named)
    assert unnamed > 0  # objects of no phrase are found too


def test_labels_are_the_likeliest_classes_and_never_the_background(rows):
    for row in rows[:100]:
        regions = SceneDetector(confusion=0.5)(row)
        np.testing.assert_array_equal(regions.labels, regions.class_probs.argmax(axis=1))
        np.testing.assert_array_equal(regions.scores, regions.class_probs.max(axis=1))
        assert regions.labels.min() >= 1
        np.testing.assert_allclose(regions.class_probs.sum(axis=1), 1, atol=1e-6)
        assert (np.diff(regions.scores) <= 0).all()


@pytest.mark.parametrize("jitter", [0.08, 0.49])
def test_boxes_are_inside_the_image_with_an_area(rows, jitter):
    for row in rows[:100]:
        boxes = SceneDetector(jitter=jitter, num_distractors=5)(row).boxes
        assert boxes.min() >= 0
        assert boxes.max() <= 64
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_jitter_moves_each_edge_evenly_up_to_its_bound(rows):
    moves, ious = [], []
    for row in rows:
        true = in_order(EXACT(row)).boxes
        # Of the same object: with confusion and distractors off, the jittered boxes are matched by overlap.
        overlap = box_iou(true, replace(EXACT, jitter=0.08)(row).boxes)
        boxes = replace(EXACT, jitter=0.08)(row).boxes[overlap.argmax(axis=1)]
        inside = ((true > 6) & (true < 58)).all(axis=1)  # else the border of the image may have cut them
        moves.append(((boxes - true) / np.tile(true[:, 2:] - true[:, :2], 2))[inside])
        ious.append(overlap.max(axis=1))
    moves, ious = np.concatenate(moves), np.concatenate(ious)
    assert len(moves) > 300
    assert np.abs(moves).max() <= 0.08 + 1e-6
    # Uniform: mean 0, standard deviation 0.08 / sqrt(3) = 0.0462; over 1,200 numbers the bounds are 4 deviations.
    assert np.abs(moves.mean(axis=0)).max() < 4 * 0.0462 / np.sqrt(len(moves))
    assert moves.std() == pytest.approx(0.0462, rel=0.06)
    assert ious.min() >= (1 - 2 * 0.08) ** 2  # the worst is a box too small on all sides
    assert 0.8 < ious.mean() < 0.9


def test_objects_are_missed_at_the_rate_given(rows, scenes):
    total = sum(len(scene.objects) for scene in scenes)
    found = sum(len(replace(EXACT, miss_rate=0.2)(row)) for row in rows)
    assert abs(1 - found / total - 0.2) < 4 * np.sqrt(0.2 * 0.8 / total)
    assert len(replace(EXACT, miss_rate=1)(rows[0])) == 0


def test_objects_are_taken_for_another_shape_at_the_rate_given(rows):
    taken = np.zeros((len(SCENE_CLASSES), len(SCENE_CLASSES)))
    for row in rows:
        np.add.at(taken, (in_order(EXACT(row)).labels, in_order(replace(EXACT, confusion=0.3)(row)).labels), 1)
    total, right = taken.sum(), np.diag(taken).sum()
    assert abs(1 - right / total - 0.3) < 4 * np.sqrt(0.3 * 0.7 / total)
    assert taken[0].sum() == taken[:, 0].sum() == 0  # no object is background
    assert (taken[1:, 1:] > 0).all()  # any shape for any other


def test_a_setting_leaves_the_other_errors_as_they_are(rows):
    row = rows[0]
    jittered, confused = replace(EXACT, jitter=0.1), replace(EXACT, jitter=0.1, confusion=1)
    np.testing.assert_array_equal(in_order(jittered(row)).boxes, in_order(confused(row)).boxes)
    assert not np.array_equal(in_order(jittered(row)).labels, in_order(confused(row)).labels)
    every = {tuple(box) for box in jittered(row).boxes}
    assert {tuple(box) for box in replace(jittered, miss_rate=0.5)(row).boxes} < every


def test_distractors_are_mostly_background_and_look_less_certain(rows, scenes):
    detector = replace(EXACT, num_distractors=3, miss_rate=1)
    scores, counts = [], []
    for row, scene in zip(rows, scenes, strict=True):
        regions = detector(row)
        counts.append(len(regions))
        scores.extend(regions.scores)
        for x1, y1, x2, y2 in regions.boxes.round().astype(int):
            # At most 20 % of the box are boxes of objects; whole pixels of a box may have a few more.
            assert (scene.owners[y1:y2, x1:x2] >= 0).mean() < 0.3
    assert max(counts) == 3
    assert np.mean(counts) > 2.9
    objects = np.concatenate([EXACT(row).scores for row in rows])
    assert 0.4 <= min(scores) < objects.min() + 0.1 < max(scores) <= 0.82  # they overlap
    assert np.mean(scores) < objects.mean() - 0.1


def test_features_are_the_mean_colours_of_the_cells():
    pixels = np.random.default_rng(0).integers(256, size=(6, 8, 3), dtype=np.uint8)
    whole, part = pool_pixels(pixels, np.array([[0, 0, 8, 6], [0.5, 1, 1.5, 2]]), 2).reshape(2, 2, 2, 3)
    expected = pixels.reshape(2, 3, 2, 4, 3).mean(axis=(1, 3)) / 255
    np.testing.assert_allclose(whole, expected, rtol=1e-5)
    # A box over halves of the pixels (1, 0) and (1, 1): its left cells see the first alone, its right ones the second.
    np.testing.assert_allclose(part, np.stack([pixels[1, :2], pixels[1, :2]]) / 255, rtol=1e-5)


def test_features_follow_the_colour_of_the_object(rows, scenes):
    means = {color: [] for color in COLORS}
    for row, scene in zip(rows[:100], scenes, strict=False):
        features = in_order(EXACT(row)).region_features
        assert features.dtype == np.float32
        assert features.shape == (len(scene.objects), 4 * 4 * 3)
        for item, feature in zip(sorted(scene.objects, key=lambda item: item.box[::-1]), features, strict=True):
            if item.texture == "plain" and item.shape == "square":
                means[item.color].append(feature.reshape(4, 4, 3)[1:3, 1:3].mean(axis=(0, 1)))  # no background in these
    seen = {color: np.mean(values, axis=0) for color, values in means.items() if values}
    assert len(seen) > 4
    for color, value in seen.items():
        nearest = min(COLORS, key=lambda name: np.abs(np.array(COLORS[name][0]) / 255 - value).sum())
        assert nearest == color


def test_the_same_image_gives_the_same_whatever_came_before(rows):
    detector = SceneDetector()
    forwards = [detector(row) for row in rows[:5]]
    for row, regions in zip(reversed(rows[:5]), reversed(forwards), strict=True):
        assert_equal(SceneDetector()(row), regions)
    assert not np.array_equal(SceneDetector(seed=1)(rows[0]).boxes, forwards[0].boxes)
    assert scene_concepts(rows[0]) == scene_concepts(rows[0])
    assert any(scene_concepts(row) != scene_concepts(row, seed=1) for row in rows[:5])


def test_another_process_finds_the_same(rows, tmp_path):
    code = """
import json, sys
from hf_grounding.data.scene_regions import SceneDetector, scene_concepts
from hf_grounding.data.scenes import scene_row
row = scene_row(0, "train", 5, 64)
regions = SceneDetector()(row)
found = [regions.boxes.tolist(), regions.class_probs.tolist(), regions.region_features.tolist(), scene_concepts(row)]
open(sys.argv[1], "w").write(json.dumps(found))
"""
    run_python(code, str(tmp_path / "found.json"), cwd=REPO)
    boxes, probs, features, concepts = json.loads((tmp_path / "found.json").read_text())
    regions = SceneDetector()(rows[5])
    assert boxes == regions.boxes.tolist()
    assert probs == regions.class_probs.tolist()
    assert features == regions.region_features.tolist()
    assert concepts == scene_concepts(rows[5])


def test_a_split_goes_into_a_region_store_row_by_row(tmp_path):
    scenes = load_grounding_dataset(
        "scenes", split="val", num_train=0, num_val=3, num_test=0, image_size=64, cache_dir=tmp_path / "cache"
    )
    detector = SceneDetector(jitter=0.1)
    with RegionStoreWriter(tmp_path / "regions", detector.settings, detector=detector.name) as writer:
        for row in scenes:
            writer.add(detector(row))
    store = RegionStore(tmp_path / "regions")
    assert store.image_ids == scenes["image_id"][:]
    np.testing.assert_array_equal(store[scenes[2]["image_id"]].boxes, detector(scenes[2]).boxes)
    kept = store.settings["detector"]
    assert (kept["labels"], kept["background"], kept["jitter"]) == (["background", *SHAPES], 0, 0.1)


def test_concepts_without_errors_are_the_words_of_all_objects(rows, scenes):
    for row, scene in zip(rows[:50], scenes, strict=False):
        words = {getattr(item, name) for item in scene.objects for name in VOCABULARY}
        concepts = scene_concepts(row, miss_rate=0, false_rate=0)
        assert set(concepts) == words
        assert len(concepts) == len(words)
    easy = scene_row(0, "train", 0, 64, EASY)
    assert set(scene_concepts(easy, false_rate=1, attributes=EASY)) <= {*COLORS, *SHAPES}


def test_concepts_do_not_depend_on_what_captions_say(rows):
    silent = rows[0] | {"captions": [], "phrases": [], "questions": []}
    assert scene_concepts(silent) == scene_concepts(rows[0])
    assert_equal(SceneDetector()(silent), SceneDetector()(rows[0]))


def test_concepts_are_missed_and_made_up_at_the_rates_given_and_true_ones_come_first(rows, scenes):
    vocabulary = {word for words in VOCABULARY.values() for word in words}
    missed = true = made_up = false = 0
    ranks = {True: [], False: []}
    for row, scene in zip(rows, scenes, strict=True):
        words = {getattr(item, name) for item in scene.objects for name in VOCABULARY}
        concepts = scene_concepts(row, miss_rate=0.2, false_rate=0.1)
        assert vocabulary.issuperset(concepts)
        missed, true = missed + len(words.difference(concepts)), true + len(words)
        made_up, false = made_up + len(set(concepts) - words), false + len(vocabulary - words)
        for rank, word in enumerate(concepts):
            ranks[word in words].append(rank / len(concepts))
    assert abs(missed / true - 0.2) < 4 * np.sqrt(0.2 * 0.8 / true)
    assert abs(made_up / false - 0.1) < 4 * np.sqrt(0.1 * 0.9 / false)
    assert np.mean(ranks[True]) < np.mean(ranks[False]) - 0.2


def changed_image(row):
    pixels = np.array(Image.open(io.BytesIO(row["image"]["bytes"])))
    pixels[10, 10] ^= 255
    return row | {"image": Image.fromarray(pixels)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row | {"image_id": "1000092795.jpg"}, "Image '1000092795.jpg' is no generated scene"),
        (lambda row: row | {"image_id": "scene-0-train-000001"}, "is not the scene of this id with attributes="),
        (lambda row: row | {"image": "scene.png"}, "`image` must be a PIL image or {'bytes': ...}, got <class 'str'>"),
        (lambda row: row | {"width": 128}, r"must be a square of 64 pixels or more.*\(64, 64\), 128 and 64"),
        (lambda row: row | {"image": Image.new("RGB", (64, 48))}, r"must be a square.*\(64, 48\), 64 and 64"),
        (changed_image, "is not the scene of this id"),
        (lambda row: scene_row(0, "train", 0, 64, EASY), "Give the `attributes` that the scenes were drawn with"),
    ],
)
@pytest.mark.parametrize("use", [SceneDetector(), scene_concepts], ids=["detector", "concepts"])
def test_rows_that_are_no_scenes_are_refused(rows, use, change, message):
    with pytest.raises(ValueError, match=message):
        use(change(rows[0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(SceneDetector, jitter=0.5), "`jitter` must be 0 or more and below 0.5, got 0.5"),
        (partial(SceneDetector, miss_rate=1.5), r"`miss_rate` must be in \[0, 1\], got 1.5"),
        (partial(SceneDetector, confusion=-0.1), r"`confusion` must be in \[0, 1\], got -0.1"),
        (partial(SceneDetector, num_distractors=-1), "`num_distractors` must be 0 or more, got -1"),
        (partial(SceneDetector, feature_grid=0), "`feature_grid` must be 1 or more, got 0"),
        (partial(SceneDetector, attributes=("colour", "shape")), "`attributes` must be color, shape and any of"),
        (partial(scene_concepts, {}, false_rate=2), r"`false_rate` must be in \[0, 1\], got 2"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_features_may_have_the_class_probabilities_behind_the_pixels():
    row = scene_row(0, "train", 0, 64, ("color", "shape"))
    plain, both = (
        SceneDetector(attributes=("color", "shape"), feature_grid=2, class_features=wanted)(row)
        for wanted in (False, True)
    )
    np.testing.assert_array_equal(both.region_features, np.hstack([plain.region_features, plain.class_probs]))


def test_features_may_have_depth_behind_all_others_nearest_last_drawn():
    row = scene_row(0, "train", 3, 64, ("color", "shape"))
    exact = SceneDetector(attributes=("color", "shape"), jitter=0.0, miss_rate=0.0, class_features=True)
    plain, deep = exact(row), replace(exact, depth_feature=True)(row)
    np.testing.assert_array_equal(deep.region_features[:, :-1], plain.region_features)
    objects = redraw_scene(row, ("color", "shape")).objects
    nearness = {item.box: place for place, item in enumerate(objects, start=1)}
    assert len(nearness) == len(objects) < len(deep.boxes)  # the rest are distractors
    assert deep.region_features[:, -1].tolist() == [nearness.get(tuple(box), 0) for box in deep.boxes.tolist()]


def test_a_scene_that_was_written_on_is_drawn_as_it_was_the_next_time():
    row = scene_row(0, "train", 3, 64)
    first = redraw_scene(row)
    pixels, owners = first.pixels.copy(), first.owners.copy()
    first.pixels[:], first.owners[:] = 0, 0
    again = redraw_scene(row)
    np.testing.assert_array_equal(again.pixels, pixels)
    np.testing.assert_array_equal(again.owners, owners)
