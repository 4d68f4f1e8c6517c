"""Regions: what a record refuses, box arithmetic, suppression and selection, padding."""

import math
import re
import subprocess
import sys

import numpy as np
import pytest

from hf_grounding.processing.regions import (
    Regions,
    box_areas,
    box_iou,
    clip_boxes,
    cxcywh_to_xyxy,
    denormalize_boxes,
    grid_boxes,
    nms,
    normalize_boxes,
    pad_regions,
    scale_boxes,
    select_regions,
    xywh_to_xyxy,
    xyxy_to_xywh,
)

HEIGHT, WIDTH = 40, 60


def random_boxes(n: int, seed: int = 0) -> np.ndarray:
    corners = np.random.default_rng(seed).random((n, 2, 2)) * [WIDTH, HEIGHT]
    return np.sort(corners, axis=1).reshape(n, 4)


def make_regions(n: int = 4, image_id: str = "123", dtype=np.float32, **changes) -> Regions:
    rng = np.random.default_rng(n)
    values = {
        "image_id": image_id,
        "image_size": (HEIGHT, WIDTH),
        "boxes": random_boxes(n, seed=n),
        "region_features": rng.normal(size=(n, 6)).astype(dtype),
        "class_probs": rng.dirichlet(np.ones(5), n).astype(dtype),
        "labels": rng.integers(0, 5, n),
        "scores": np.linspace(0.9, 0.1, n).astype(dtype),
    }
    return Regions(**values | changes)


def changed(array: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


# The record


@pytest.mark.parametrize("n", [0, 1, 4])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_proper_record_is_taken_as_it_is(n, dtype):
    regions = make_regions(n, dtype=dtype)
    assert len(regions) == n
    assert regions.image_size == (HEIGHT, WIDTH)
    assert regions.region_features.dtype == dtype


def test_only_boxes_are_needed():
    regions = Regions("1", np.array([480, 640]), [[0, 0, 1, 1], [2, 3, 2, 3]])
    assert regions.boxes.tolist() == [[0, 0, 1, 1], [2, 3, 2, 3]]
    assert regions.image_size == (480, 640)
    assert all(type(side) is int for side in regions.image_size)


def test_a_view_is_not_copied():
    features = np.ones((4, 6), np.float16)
    assert np.shares_memory(make_regions(region_features=features).region_features, features)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_probabilities_and_scores_may_leave_the_range_by_rounding(dtype):
    probs = np.array([[1.0009, -0.0], [-0.0009, 1]], dtype)
    assert len(make_regions(2, class_probs=probs, labels=None, scores=probs[:, 0])) == 2


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("value", [1.00195, -0.0012])
def test_but_no_further_than_a_thousandth(dtype, value):
    with pytest.raises(ValueError, match=r"region 1: `scores` must be in \[0, 1\]"):
        make_regions(2, scores=np.array([0.5, value], dtype))


def test_select_keeps_what_belongs_together_in_the_given_order():
    regions = make_regions()
    chosen = regions.select([2, 0])
    for name in ("boxes", "region_features", "class_probs", "labels", "scores"):
        assert getattr(chosen, name).tolist() == getattr(regions, name)[[2, 0]].tolist()
    assert len(regions.select(np.zeros(4, bool))) == 0
    assert len(Regions("1", (4, 4), np.zeros((3, 4))).select(slice(1))) == 1


@pytest.mark.parametrize(
    "size", [(0, 5), (5, -1), (4.5, 3), (5,), (1, 2, 3), 7, None, "ab", (math.nan, 3), (math.inf, 3)]
)
def test_the_image_size_is_two_positive_whole_numbers(size):
    with pytest.raises(ValueError, match=r"^Image '123': `image_size` must be \(height, width\), two positive whole"):
        make_regions(image_size=size)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("boxes", np.zeros(4), "`boxes` must have shape (num_regions, 4), got (4,)."),
        ("boxes", np.zeros((4, 5)), "`boxes` must have shape (num_regions, 4), got (4, 5)."),
        ("boxes", [], "`boxes` must have shape (num_regions, 4), got (0,)."),
        ("boxes", [[0, 0, 1, 1], [0, 0, 1]], "`boxes` is no array: "),
        ("boxes", [["a"] * 4] * 4, "`boxes` must be numbers, got <U1."),
        ("boxes", np.zeros((3, 4)), "`region_features` has 4 regions where `boxes` has 3."),
        ("region_features", np.zeros((4, 6, 1)), "`region_features` must have shape (num_regions, feature_dim), got ("),
        ("region_features", np.zeros((5, 6)), "`region_features` has 5 regions where `boxes` has 4."),
        ("class_probs", np.zeros(4), "`class_probs` must have shape (num_regions, num_object_classes), got (4,)."),
        ("class_probs", np.zeros((4, 5), complex), "`class_probs` must be numbers, got complex128."),
        ("labels", np.zeros((4, 1), int), "`labels` must have shape (num_regions,), got (4, 1)."),
        ("labels", np.zeros(4), "`labels` must be integers, got float64."),
        ("scores", np.zeros(3), "`scores` has 3 regions where `boxes` has 4."),
        ("scores", np.float32(1), "`scores` must have shape (num_regions,), got ()."),
    ],
)  # fmt: skip
def test_arrays_of_a_wrong_form_are_named(name, value, message):
    with pytest.raises(ValueError, match="^" + re.escape(f"Image '123': {message}")):
        make_regions(**{name: value})


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "name, place, value, message",
    [
        ("boxes", (2, 0), 61, "region 2: `boxes` must be finite xyxy with x1 <= x2 and y1 <= y2, got [61.0, "),
        ("boxes", (1, 3), -1, "region 1: `boxes` must be finite xyxy with x1 <= x2 and y1 <= y2, got ["),
        ("boxes", (3, 2), math.inf, "region 3: `boxes` must be finite xyxy"),
        ("boxes", (0, 1), math.nan, "region 0: `boxes` must be finite xyxy"),
        ("region_features", (2, 5), math.nan, "region 2: `region_features` must be finite, got nan in column 5."),
        ("region_features", (3, 0), -math.inf, "region 3: `region_features` must be finite, got -inf in column 0."),
        ("class_probs", (1, 4), 1.5, "region 1: `class_probs` must be in [0, 1], got 1.5 in column 4. Logits? Apply "),
        ("class_probs", (0, 2), -0.5, "region 0: `class_probs` must be in [0, 1], got -0.5 in column 2."),
        ("class_probs", (3, 3), math.nan, "region 3: `class_probs` must be in [0, 1], got nan in column 3."),
        ("class_probs", (3, 3), math.inf, "region 3: `class_probs` must be in [0, 1], got inf in column 3."),
        ("scores", (2,), 1.25, "region 2: `scores` must be in [0, 1], got 1.25."),
        ("scores", (2,), -0.25, "region 2: `scores` must be in [0, 1], got -0.25."),
        ("scores", (1,), math.nan, "region 1: `scores` must be in [0, 1], got nan."),
    ],
)
def test_the_first_wrong_value_is_named_with_its_region(name, place, value, message, dtype):
    array = getattr(make_regions(), name).astype(dtype)
    with pytest.raises(ValueError, match="^" + re.escape(f"Image '123', {message}")):
        make_regions(**{name: changed(array, place, value)})


def test_boxes_in_xywh_get_a_hint():
    with pytest.raises(ValueError, match="Boxes in xywh\\? Use `xywh_to_xyxy` first"):
        make_regions(boxes=changed(random_boxes(4), (1, 2), -5))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"labels": np.array([0, 1, 5, 9])}, "region 2: `labels` must be a column of `class_probs`, 0 to 4, got 5."),
        ({"labels": np.array([0, -1, 2, 3])}, "region 1: `labels` must be a column of `class_probs`, 0 to 4, got -1."),
        ({"labels": np.array([0, 7, 2, -3]), "class_probs": None}, "region 3: `labels` must be 0 or more, got -3."),
    ],
)
def test_labels_are_classes(changes, message):
    with pytest.raises(ValueError, match="^" + re.escape(f"Image '123', {message}")):
        make_regions(**changes)


def test_the_record_alone_loads_neither_torch_nor_transformers():
    code = (
        "import sys\nfrom hf_grounding.processing.regions import Regions, nms\nRegions('1', (2, 2), [[0, 0, 1, 1]])\n"
        "assert not {'torch', 'transformers', 'datasets'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Boxes


def test_box_formats_by_hand():
    assert xywh_to_xyxy([[1, 2, 3, 4]]).tolist() == [[1, 2, 4, 6]]
    assert xyxy_to_xywh([[1, 2, 4, 6]]).tolist() == [[1, 2, 3, 4]]
    # height 40, width 60: centre (30, 10), 12 wide, 20 high
    assert cxcywh_to_xyxy([0.5, 0.25, 0.2, 0.5], (40, 60)).tolist() == [24, 0, 36, 20]
    assert cxcywh_to_xyxy([0.5, 0.25, 0.5, 0.5]).tolist() == [0.25, 0, 0.75, 0.5]
    assert normalize_boxes([[15, 10, 30, 40]], (40, 60)).tolist() == [[0.25, 0.25, 0.5, 1]]
    assert denormalize_boxes([[0.25, 0.25, 0.5, 1]], (40, 60)).tolist() == [[15, 10, 30, 40]]
    assert scale_boxes([[15, 10, 30, 40]], (40, 60), (80, 20)).tolist() == [[5, 20, 10, 80]]
    assert box_areas([[1, 2, 4, 6], [5, 5, 5, 9]]).tolist() == [12, 0]
    assert box_areas([[1, 2, 4, 6], [5, 5, 5, 5]], plus_one=True).tolist() == [20, 1]


def test_cells_of_a_grid_go_row_by_row_in_the_pixels_of_the_image():
    boxes = [[0, 0, 30, 20], [30, 0, 60, 20], [60, 0, 90, 20], [0, 20, 30, 40], [30, 20, 60, 40], [60, 20, 90, 40]]
    assert grid_boxes(2, 3, (40, 90)).tolist() == boxes
    assert grid_boxes(0, 0, (40, 90)).shape == (0, 4)


def test_clipping_keeps_the_part_inside():
    boxes = [[-5, -5, 70, 50], [10, 10, 20, 20], [-9, 5, -3, 8], [61, 41, 99, 99]]
    assert clip_boxes(boxes, (40, 60)).tolist() == [[0, 0, 60, 40], [10, 10, 20, 20], [0, 5, 0, 8], [60, 40, 60, 40]]


def test_there_and_back_is_the_same():
    boxes = random_boxes(20)
    np.testing.assert_allclose(xywh_to_xyxy(xyxy_to_xywh(boxes)), boxes)
    np.testing.assert_allclose(denormalize_boxes(normalize_boxes(boxes, (40, 60)), (40, 60)), boxes)
    np.testing.assert_allclose(scale_boxes(scale_boxes(boxes, (40, 60), (7, 99)), (7, 99), (40, 60)), boxes)


@pytest.mark.parametrize("convert", [normalize_boxes, denormalize_boxes, clip_boxes, cxcywh_to_xyxy])
def test_a_batch_of_images_equals_its_images_one_at_a_time(convert):
    boxes, sizes = np.stack([random_boxes(3, seed) for seed in range(2)]), [(40, 60), (11, 7)]
    expected = np.stack([convert(*image) for image in zip(boxes, sizes, strict=True)])
    np.testing.assert_array_equal(convert(boxes, sizes), expected)


def test_conversions_keep_floats_and_make_floats_of_integers():
    for convert in (xywh_to_xyxy, xyxy_to_xywh, lambda boxes: normalize_boxes(boxes, (4, 4))):
        assert convert(np.ones((2, 4), np.float32)).dtype == np.float32
        assert convert(np.ones((2, 4), int)).dtype == np.float64
        assert convert(np.zeros((0, 4))).shape == (0, 4)


def literal_iou(a, b, extra):
    width = min(a[2], b[2]) - max(a[0], b[0]) + extra
    height = min(a[3], b[3]) - max(a[1], b[1]) + extra
    overlap = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0] + extra) * (box[3] - box[1] + extra) for box in (a, b)]
    union = areas[0] + areas[1] - overlap
    return overlap / union if union else 0.0


@pytest.mark.parametrize("plus_one", [False, True])
def test_iou_equals_the_literal_one_and_is_symmetric(plus_one):
    a, b = random_boxes(9), np.concatenate([random_boxes(5, seed=1), [[3, 3, 3, 3], [-9, -9, -1, -1]]])
    iou = box_iou(a, b, plus_one=plus_one)
    np.testing.assert_allclose(iou, [[literal_iou(x, y, plus_one) for y in b] for x in a])
    np.testing.assert_array_equal(iou, box_iou(b, a, plus_one=plus_one).T)
    np.testing.assert_allclose(np.diag(box_iou(a, a, plus_one=plus_one)), 1)
    assert ((iou >= 0) & (iou <= 1)).all()


def test_iou_by_hand():
    # 2x2 boxes shifted by (1, 1): overlap 1, union 4 + 4 - 1 = 7; with 1 added 3x3 boxes, overlap 4, union 14
    assert box_iou([[0, 0, 2, 2]], [[1, 1, 3, 3]]) == pytest.approx(1 / 7)
    assert box_iou([[0, 0, 2, 2]], [[1, 1, 3, 3]], plus_one=True) == pytest.approx(4 / 14)
    # worked example 2 of the grounding F1: area 100, and 50 or 60 inside it
    assert box_iou([[0, 0, 9, 9]], [[0, 0, 9, 4], [0, 0, 9, 5]], plus_one=True).tolist() == [[0.5, 0.6]]
    # boxes without area, one pixel when 1 is added
    assert box_iou([[4, 4, 4, 4]], [[4, 4, 4, 4]]).tolist() == [[0]]
    assert box_iou([[4, 4, 4, 4]], [[4, 4, 4, 4]], plus_one=True).tolist() == [[1]]
    assert box_iou(np.zeros((0, 4)), np.zeros((3, 4))).shape == (0, 3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: xywh_to_xyxy([[1, 2, 3]]), "`boxes` must be numbers of shape (..., 4), got int64 of shape (1, 3)."),
        (lambda: box_areas(3), "`boxes` must be numbers of shape (..., 4)"),
        (lambda: box_areas(["a"] * 4), "`boxes` must be numbers of shape (..., 4), got <U1 of shape (4,)."),
        (lambda: normalize_boxes(np.ones((2, 4)), (0, 5)), "`image_size` must be positive (height, width) in pixels"),
        (lambda: clip_boxes(np.ones((2, 4)), (3, math.nan)), "`image_size` must be positive"),
        (lambda: clip_boxes(np.ones((2, 4)), 3), "`image_size` must be (height, width); got shape ()."),
        (lambda: clip_boxes(np.ones((2, 4)), [(3, 3)] * 2), "`image_size` must be (height, width); got shape (2, 2)."),
        (
            lambda: clip_boxes(np.ones((3, 2, 4)), [(3, 3)] * 2),
            "`image_size` must be (height, width), or one for each image, shape (3, 2); got shape (2, 2).",
        ),
        (lambda: scale_boxes(np.ones((2, 4)), (3, -1), (2, 2)), "`from_size` must be positive"),
        (lambda: scale_boxes(np.ones((2, 4)), (3, 1), (2, 0)), "`to_size` must be positive"),
        (lambda: box_iou([0, 0, 1, 1], [[0, 0, 1, 1]]), "`boxes_a` must have shape (n, 4), got (4,)."),
        (
            lambda: box_iou([[0, 0, 1, 1]], [[0, 0, 1, 1], [0, 9, 1, 2]]),
            "`boxes_b` must be finite xyxy with x1 <= x2 and y1 <= y2; rows [1] are not, e.g. [0.0, 9.0, 1.0, 2.0].",
        ),
        (lambda: box_iou([[0, 0, math.nan, 1]], [[0, 0, 1, 1]]), "`boxes_a` must be finite xyxy"),
    ],
)
def test_box_functions_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        call()


# Suppression and selection


def literal_nms(boxes, scores, threshold, classes=None, plus_one=False):
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        rivals = [k for k in kept if classes is None or classes[k] == classes[i]]
        if all(literal_iou(boxes[k], boxes[i], plus_one) <= threshold for k in rivals):
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold", [0, 0.2, 0.5, 1])
@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("per_class", [False, True])
def test_nms_equals_the_literal_one_and_doing_it_again_drops_nothing(threshold, plus_one, per_class):
    rng = np.random.default_rng(3)
    boxes, scores = random_boxes(60, seed=2), rng.integers(0, 10, 60) / 10  # with equal scores
    classes = rng.integers(0, 3, 60) if per_class else None
    kept = nms(boxes, scores, threshold, classes, plus_one=plus_one)
    assert kept.tolist() == literal_nms(boxes, scores, threshold, classes, plus_one)
    again = nms(boxes[kept], scores[kept], threshold, classes[kept] if per_class else None, plus_one=plus_one)
    assert again.tolist() == list(range(len(kept)))


def test_of_identical_boxes_the_best_stays_and_of_equal_scores_the_first():
    boxes = np.tile([1, 1, 5, 5], (4, 1))
    assert nms(boxes, [0.1, 0.9, 0.9, 0.3], 0.5).tolist() == [1]
    assert nms(boxes, [0.1, 0.9, 0.9, 0.3], 0.5, classes=["a", "b", "b", "a"]).tolist() == [1, 3]
    assert nms(boxes, [0.1, 0.9, 0.9, 0.3], 1).tolist() == [1, 2, 3, 0]


def test_an_overlap_of_exactly_the_threshold_is_kept():
    # 2 of 4 square pixels
    boxes = [[0, 0, 2, 2], [0, 0, 2, 1]]
    assert nms(boxes, [0.9, 0.8], 0.5).tolist() == [0, 1]
    assert nms(boxes, [0.9, 0.8], 0.49).tolist() == [0]


def test_nms_of_nothing_is_nothing():
    assert nms(np.zeros((0, 4)), [], 0.5).tolist() == []
    assert nms(np.zeros((0, 4)), [], 0.5, classes=[]).dtype == np.intp


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([[0, 0, 1, 1]], [0.5, 0.4], 0.5), "`scores` must have one entry per box, shape (1,), got (2,)."),
        (([[0, 0, 1, 1]] * 2, [0.5, math.nan], 0.5), "`scores` must be numbers; row 1 has nan."),
        (([[0, 0, 1, 1]], [0.5], 50), "`iou_threshold` must be in [0, 1], got 50."),
        (([[0, 0, 1, 1]], [0.5], 0.5, [1, 2]), "`classes` must have one entry per box, shape (1,), got (2,)."),
        (([[2, 0, 1, 1]], [0.5], 0.5), "`boxes` must be finite xyxy with x1 <= x2 and y1 <= y2; rows [0] are not"),
    ],
)
def test_nms_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        nms(*arguments)


def literal_confidences(boxes, probs, background, threshold, plus_one):
    """The loop of the bottom-up features: suppression in each class, largest surviving probability."""
    confidences, labels = [0.0] * len(boxes), [None] * len(boxes)
    for column in range(probs.shape[1]):
        if column == background:
            continue
        for i in literal_nms(boxes, probs[:, column], threshold, plus_one=plus_one):
            if probs[i, column] > confidences[i]:
                confidences[i], labels[i] = probs[i, column], column
    return confidences, labels


@pytest.mark.parametrize("background", [0, 3, None])
@pytest.mark.parametrize("plus_one", [False, True])
def test_confidence_is_that_of_the_literal_rule(background, plus_one):
    rng = np.random.default_rng(5)
    boxes, probs = random_boxes(40, seed=4), rng.dirichlet(np.full(4, 0.3), 40).round(2)  # with ties and zeros
    confidences, labels = literal_confidences(boxes, probs, background, 0.3, plus_one)
    order = sorted(range(40), key=lambda i: (-confidences[i], i))
    rows, scores, classes = select_regions(boxes, probs, background=background, num_regions=40, plus_one=plus_one)
    assert rows.tolist() == order
    assert scores.tolist() == [confidences[i] for i in order]
    objects = [column for column in range(4) if column != background]
    expected = [max(objects, key=lambda c: probs[i, c]) if labels[i] is None else labels[i] for i in order]
    assert classes.tolist() == expected
    assert background not in classes.tolist()

    count = int((scores >= 0.5).sum())
    assert 4 < count < 38
    for low, high, kept in ((0, 40, count), (count + 2, 40, count + 2), (0, 4, 4), (count, count, count)):
        chosen = select_regions(
            boxes, probs, background=background, threshold=0.5, min_regions=low, max_regions=high, plus_one=plus_one
        )
        assert chosen[0].tolist() == order[:kept]
        assert chosen[1].tolist() == scores[:kept].tolist()


def test_selection_by_hand():
    # Columns: background, cat, dog. Rows 0 and 1 are one place: 0 takes cat from 1, 1 takes dog from 0; row 2, the same
    # place, loses both. Row 3 stands alone, its 0.9 of background does not count.
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 9, 10], [20, 20, 30, 30]]
    probs = [[0.1, 0.6, 0.3], [0.1, 0.5, 0.4], [0.5, 0.3, 0.2], [0.9, 0.1, 0.0]]
    rows, confidences, labels = select_regions(boxes, probs, background=0, num_regions=4)
    assert rows.tolist() == [0, 1, 3, 2]
    assert confidences.tolist() == [0.6, 0.4, 0.1, 0]
    assert labels.tolist() == [1, 2, 1, 1]
    assert select_regions(boxes, probs, background=0, num_regions=2)[0].tolist() == [0, 1]
    assert select_regions(boxes, probs, background=0, min_regions=0)[0].tolist() == [0, 1]  # at least 0.2
    assert select_regions(boxes, probs, background=0)[0].tolist() == [0, 1, 3, 2]  # 10 are wanted, there are 4
    assert select_regions(boxes, probs, background=0, num_regions=36)[0].tolist() == [0, 1, 3, 2]


def test_a_confidence_of_exactly_the_threshold_is_enough():
    boxes, probs = [[0, 0, 1, 1], [2, 2, 3, 3]], [[0.2], [0.199]]
    assert select_regions(boxes, probs, background=None, min_regions=0)[0].tolist() == [0]


def test_selection_leaves_its_input_as_it_was_and_takes_half_precision():
    probs = np.random.default_rng(0).dirichlet(np.ones(5), 6).astype(np.float16)
    before = probs.copy()
    rows, confidences, labels = select_regions(random_boxes(6), probs, background=0, num_regions=3)
    assert (probs == before).all()
    assert len(Regions("1", (HEIGHT, WIDTH), random_boxes(6)[rows], labels=labels, scores=confidences)) == 3


def test_selection_of_no_regions_is_empty():
    for options in ({}, {"num_regions": 36}):
        assert [len(x) for x in select_regions(np.zeros((0, 4)), np.zeros((0, 5)), background=0, **options)] == [0] * 3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"boxes": [[0, 0, 1, 1]]}, "`class_probs` must have one row per box, shape (1, num_object_classes), got (2"),
        ({"class_probs": [0.5, 0.5]}, "`class_probs` must have one row per box, shape (2, num_object_classes), got (2"),
        ({"class_probs": [[0.5, 0.5], [0.5, math.nan]]}, "`class_probs` must be numbers; row 1 has nan."),
        ({"class_probs": [[0.5, 3], [-2, 0]]}, "`class_probs` must be in [0, 1], got values from -2.0 to 3.0. Logits?"),
        ({"class_probs": [[0.5], [0.5]]}, "`class_probs` of shape (2, 1) has no class of objects."),
        ({"background": 3}, "`background` must be a column of `class_probs`, 0 to 2, or None, got 3."),
        ({"background": -1}, "`background` must be a column of `class_probs`, 0 to 2, or None, got -1."),
        ({"iou_threshold": -0.1}, "`iou_threshold` must be in [0, 1], got -0.1."),
        ({"threshold": 20}, "`threshold` must be in [0, 1], got 20."),
        ({"min_regions": 11, "max_regions": 10}, "Expected 0 <= `min_regions` <= `max_regions`, got 11 and 10."),
        ({"num_regions": 0}, "`num_regions` must be 1 or more, got 0."),
    ],
)  # fmt: skip
def test_selection_says_what_is_wrong(changes, message):
    arguments = {"boxes": [[0, 0, 1, 1], [2, 2, 3, 3]], "class_probs": [[0.2, 0.3, 0.5]] * 2, "background": 0}
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        select_regions(**arguments | changes)


# Padding


def test_padding_puts_zeros_behind_and_changes_nothing_else():
    records = [make_regions(n, image_id=str(n), dtype=np.float16) for n in (2, 0, 5)]
    batch = pad_regions(records)
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "boxes": ((3, 5, 4), "float32"),
        "region_features": ((3, 5, 6), "float32"),
        "class_probs": ((3, 5, 5), "float32"),
        "region_mask": ((3, 5), "int64"),
        "image_sizes": ((3, 2), "int64"),
    }
    assert batch["region_mask"].tolist() == [[1, 1, 0, 0, 0], [0] * 5, [1] * 5]
    assert batch["image_sizes"].tolist() == [[HEIGHT, WIDTH]] * 3
    for row, record in enumerate(records):
        for name in ("boxes", "region_features", "class_probs"):
            np.testing.assert_array_equal(batch[name][row, : len(record)], getattr(record, name).astype(np.float32))
            assert not batch[name][row, len(record) :].any()
        alone = pad_regions([record])
        for name, array in alone.items():
            np.testing.assert_array_equal(array[0], batch[name][row, : len(record)] if array.ndim > 2 else array[0])
    assert pad_regions([records[1]])["boxes"].shape == (1, 0, 4)


def test_what_no_record_has_is_left_out():
    assert set(pad_regions([Regions("1", (2, 2), [[0, 0, 1, 1]])])) == {"boxes", "region_mask", "image_sizes"}


def test_truncation_keeps_the_best():
    record = make_regions(5)
    np.testing.assert_allclose(pad_regions([record], max_regions=2)["boxes"][0], record.boxes[:2], rtol=1e-6)
    assert pad_regions([record], max_regions=7)["region_mask"].tolist() == [[1] * 5]
    # scores 1 and 3 are the best two, wherever they stand; the order stays
    for scores in ([0.0, 0.5, 0.2, 0.9, 0.1], np.array([0, 1, 0, 1, 0], np.uint8)):
        unsorted = make_regions(5, scores=scores)
        np.testing.assert_allclose(pad_regions([unsorted], 2)["boxes"][0], unsorted.boxes[[1, 3]], rtol=1e-6)
    without = make_regions(5, scores=None)
    np.testing.assert_allclose(pad_regions([without], 3)["boxes"][0], without.boxes[:3], rtol=1e-6)


@pytest.mark.parametrize(
    "records, max_regions, message",
    [
        ([], None, "There is nothing to pad: `regions` is empty; expected one `Regions` per image."),
        ([make_regions()], 0, "`max_regions` must be 1 or more, got 0."),
        (
            [make_regions(), make_regions(image_id="9", region_features=None)],
            None,
            "All images of a batch must have the same `region_features`: image '123' has 6 columns, image '9' has n",
        ),
        (
            [make_regions(class_probs=np.zeros((4, 8))), make_regions(image_id="9")],
            None,
            "All images of a batch must have the same `class_probs`: image '123' has 8 columns, image '9' has 5 c",
        ),
    ],
)
def test_padding_says_what_is_wrong(records, max_regions, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        pad_regions(records, max_regions)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"detector": {"labels": ["cat", "dog"]}}, "dog"),
        ({"detector": {"labels": ["cat"]}}, "class 1"),  # fewer names than classes
        ({"detector": "yolox"}, "class 1"),
        ({}, "class 1"),
    ],
)
def test_a_class_has_the_detectors_name_or_its_number(settings, name):
    regions = Regions("a", (10, 10), [[0, 0, 5, 5]], labels=[1], settings=settings)
    assert regions.class_name(0) == name


def test_regions_without_labels_have_no_class():
    with pytest.raises(ValueError, match="Image 'a': `labels` are missing"):
        Regions("a", (10, 10), [[0, 0, 5, 5]]).class_name(0)
